"""The planner: what the data are like and what may be spent -> a complete configuration, with its reasons.

No torch here. Lengths along a slice are counted in cells, the pixels that the model works on; the *width* of
the foreground is the mean length of a straight line through it, and tells a large organ from many small
nuclei where a bounding box cannot.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mednca.config import AugmentConfig, PredictConfig, RunConfig, TrainConfig
from mednca.cost import LANES, Cost, cost_of, iteration_seconds
from mednca.errors import InputError
from mednca.fingerprint import Fingerprint, slice_axes, slice_axis
from mednca.modelfile import shipped_model, shipped_models
from mednca.roi import borders
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig, padded_size, plane_axes
from mednca.transfer import why_not

Perception = Literal["dense", "depthwise"]

_log = logging.getLogger(__name__)

FORMAT = "mednca-plan"
VERSION = 1
#: Cells along the longer side of the coarsest level; factors of two come as close to it as they can.
COARSE_CELLS = 9
#: Steps of the finest level, of the next coarser one and so on; the last holds for all that follow. Coarse
#: levels have few cells, so that many steps cost little there, and they carry knowledge farthest.
STEPS = (8, 10, 16, 24)
#: A cell hears of what happens as many cells away as steps times fire rate.
FIRE_RATE = 0.5
#: An organ is seen with the surroundings within as many of its widths.
CONTEXT_WIDTHS = 8
#: Cells that are seen whatever the width.
LEAST_SPAN = 64
#: In-plane sizes without a known spacing that differ by more than this are stretched to one size.
STRETCH = 1.5
#: A working spacing up to this factor coarser than the scan's is not worth a resampling.
WORTH = 1.2
#: The training canvas has room for slices larger than the median by up to this factor.
ROOM = 1.25
#: Fewer hidden units than this are not tried.
LEAST_HIDDEN = 32
#: Channels that neither show the image nor answer, at the least.
LEAST_FREE = 8
LEAST_BATCH = 8
#: The window of training has at least this share of the canvas's longer side.
WINDOW = 0.4
#: Where the window of training has less than this share of the canvas, what lies far off is learnt on the
#: coarse levels: with a loss of their own, of this weight...
PART = 0.25
COARSE_WEIGHT = 0.5
#: ... and with fewer slices and windows drawn around the foreground than elsewhere.
FOREGROUND = 0.5
#: A foreground of less than this share of the voxels is rare: it may lie anywhere and most windows would not
#: hold any of it. Training then sees whole slices, with these settings.
RARE = 0.03
RARE_COARSE_WEIGHT, RARE_FOREGROUND = 0.3, 0.6
RARE_TRANSLATION, RARE_BIAS = 0.15, 0.4
#: There the loss still falls when the learning rate has come down: it rises again, and as long once more.
RARE_CYCLES = 2
#: Where slices are cut along one axis alone, neighbouring masks are smoothed so often.
RARE_SMOOTHING = 2
#: It is looked for where that of all scans lies, with this margin (a share of the field of view), where that
#: is less than this share of it.
MARGIN, LARGEST_ROI = 0.05, 0.7
#: Where so many of the labels are one piece, and rare or in flat images, so is the mask.
ONE_PIECE = 0.98
#: Sizes are varied by this factor at most, where no spacing is known.
LARGEST_SCALE = 0.5
#: Small sets are trained until each slice was seen so often, and no longer than that, but at least...
VIEWS = 200
#: ... so many iterations. An organ that may lie anywhere in a flat image takes twice as many to be found,
#: with smaller batches for as much work.
LEAST_ITERATIONS = 2000


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        parameters: Most parameters of the model.
        every_axis: Whether nearly isotropic volumes are looked at along all three axes.
        perception: Kind of the rule's filters, where that leaves room for all channels.
        channels: n, where the image needs no more.
        hidden: Most hidden units h.
        side: Cells of a slice's longer side beyond which the scan is worked on at a coarser spacing...
        across: ... as long as so many cells lie across the foreground's width...
        limit: ... and never more cells than this along a side.
        patch: Side of the training window of the finer levels, at the least.
        learning_rate: Peak rate.
        iterations: Most steps of the optimiser.
        ensemble: Fire-mask runs that are averaged.
        gamma: Largest exponent change of the contrast, as augmentation.
        step_range: Factors on the steps that training varies them by.
        work: Most multiply-adds for a pixel, along all axes and in all runs together, padding aside.
        seconds: Most seconds of one core per iteration, by estimate.
        start: Shipped model whose rules training begins with, where it fits and does not know the data.
    """

    parameters: int
    every_axis: bool
    perception: Perception
    channels: int
    hidden: int
    side: int
    across: int
    limit: int
    patch: int
    learning_rate: float
    iterations: int
    ensemble: int
    gamma: float = 0.3
    step_range: tuple[float, float] = (1.0, 1.0)
    work: float = math.inf
    seconds: float = 0.15
    start: str = ""


#: Name on the command line -> budget.
BUDGETS = {
    "pi": Budget(20_000, True, "depthwise", 16, 64, 64, 10, 256, 32, 8e-3, 6000, 1, work=100_000),
    "laptop": Budget(45_000, False, "depthwise", 32, 64, 64, 10, 512, 40, 8e-3, 4000, 1),
    "best": Budget(
        *(70_016, True, "dense", 16, 128, 64, 10, 1024, 32, 4e-3, 10_000, 4, 0.5, (0.4, 2.0)),
        start="hippocampus",
    ),
}


@dataclass(frozen=True)
class Choice:
    """A setting, its value as text, and why it was chosen, in one line."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Plan:
    """A configuration, the data and the budget that it was made for, the reasons, and the cost."""

    budget: str
    data: Fingerprint
    config: RunConfig
    choices: tuple[Choice, ...]
    cost: Cost


@dataclass(frozen=True)
class Grid:
    """How slices are resampled.

    Attributes:
        preprocess: The settings, but for modalities and context.
        size: Median height and width of a slice, in cells.
        room: Height and width of the largest slice that the canvas should have room for.
        across: Width of the foreground in cells; 0 where it is not known.
        choice: The reason.
    """

    preprocess: PreprocessConfig
    size: tuple[int, int]
    room: tuple[int, int]
    across: float
    choice: Choice


def plan(data: Fingerprint, budget: str = "best") -> Plan:
    """Fingerprint and name of a budget -> a complete configuration with its reasons.

    Raises:
        InputError: If there is no such budget.
        ValueError: If no model of the budget can take so many channels.
    """
    if budget not in BUDGETS:
        raise InputError(f"budget {budget!r} is not known; choose one of {', '.join(BUDGETS)}")
    limits = BUDGETS[budget]
    rare = data.share is not None and data.share < RARE
    roi = roi_of(data) if rare else None
    whole, data = data, within(data, roi)
    axes = slice_axes(data) if limits.every_axis else (slice_axis(data),)
    grid = working_grid(data, axes, limits)
    span, why_span = span_of(grid, limits)
    context, model, why_context = shape_model(data, grid.room, span, limits, len(axes))
    preprocess = replace(grid.preprocess, modalities=data.modalities, context=context, roi=roi)
    sides = tuple(min(side, max(span, limits.patch)) for side in grid.room)
    canvas = padded_size((sides[0], sides[1]), model.multiple, model.smallest)
    patch = max(limits.patch, 8 * math.ceil(WINDOW * max(canvas) / 8))
    partly = patch**2 < PART * canvas[0] * canvas[1]
    flat = data.shape[axes[0]] == 1
    stacked = rare and len(axes) == 1 and not flat
    one_piece = (rare or flat) and data.one_piece is not None and data.one_piece >= ONE_PIECE
    rows_and_columns = plane_axes(axes[0])
    flip = (0,) if rows_and_columns[0] == 0 else ()
    config = RunConfig(
        recipe_name(budget),
        model=model,
        preprocess=preprocess,
        # Left and right only: anatomy has no other mirror.
        augment=AugmentConfig(
            flip=flip,
            scale=size_range(data, rows_and_columns),
            gamma=limits.gamma,
        ),
        train=TrainConfig(
            iterations=limits.iterations,
            canvas=canvas,
            patch=patch,
            learning_rate=limits.learning_rate,
            coarse_weight=COARSE_WEIGHT if partly else 0.0,
            foreground=FOREGROUND if partly else TrainConfig.foreground,
            precision="bfloat16",
            step_range=limits.step_range,
            step_range_from=0.5 if limits.step_range != (1.0, 1.0) else 0.0,
        ),
        predict=PredictConfig(
            ensemble=limits.ensemble,
            smoothing=RARE_SMOOTHING if stacked else 0,
            largest_component=one_piece,
            piece="surest" if one_piece else "largest",
            mirror=tuple(rows_and_columns[i] for i in flip) if limits.ensemble > 1 else (),
        ),
    )
    if rare:
        config = replace(
            config,
            augment=replace(config.augment, translation=RARE_TRANSLATION, bias=RARE_BIAS),
            train=replace(
                config.train, patch=None, coarse_weight=RARE_COARSE_WEIGHT, foreground=RARE_FOREGROUND
            ),
        )
    while config.train.batch_size > LEAST_BATCH and iteration_seconds(config) > limits.seconds:
        config = replace(config, train=replace(config.train, batch_size=config.train.batch_size - 2))
    wanted = math.ceil(VIEWS * data.slices / config.train.batch_size)
    searched = flat and one_piece and wanted < LEAST_ITERATIONS
    if searched:
        config = replace(config, train=replace(config.train, batch_size=LEAST_BATCH))
    wanted = max((1 + searched) * LEAST_ITERATIONS, wanted)
    cycles = RARE_CYCLES if rare else 1
    iterations = cycles * min(limits.iterations, wanted)
    config = replace(config, train=replace(config.train, iterations=iterations, cycles=cycles))
    start, why_start = start_of(limits, config, data)
    config = replace(config, train=replace(config.train, init=start))
    cost = cost_of(config, data)
    coarse = " x ".join(str(side // model.multiple) for side in canvas)
    choices = (
        Choice("slices", names_of(data, axes), why_axes(data, axes)),
        Choice("region", *told_of(roi)),
        grid.choice,
        Choice("context", f"{context} on each side", why_context),
        Choice("canvas", f"{canvas[0]} x {canvas[1]}", why_span),
        Choice(
            "levels", f"scales {text(model.scales)}", f"by factors of two; {coarse} cells on the coarsest"
        ),
        Choice(
            "steps",
            text(model.steps),
            f"a cell hears of others {reach(model):.0f} cells away, {span} are wanted; each step half fire",
        ),
        Choice(
            "rule",
            f"{model.perception}, n {model.channels}, h {model.hidden}",
            f"{cost.parameters:,} parameters in {len(model.scales)} levels, of at most {limits.parameters:,}",
        ),
        Choice(
            "patch",
            "whole slices" if rare else str(patch),
            f"the foreground is {100 * (data.share or 0):.2g} % of the voxels: most windows would hold none"
            if rare
            else "training runs the finer levels on a window: less time and memory",
        ),
        Choice(
            "batch",
            str(config.train.batch_size),
            f"about {cost.iteration_seconds:.2f} s an iteration on one core; {limits.seconds} are allowed"
            + ("; small ones, as there are few images" if searched else ""),
        ),
        Choice(
            "training",
            f"{config.train.iterations} iterations",
            f"each slice about {seen(config, data, len(axes))} times; learning rate to "
            f"{limits.learning_rate:g} and down to 0"
            + (", twice: a rare organ is learnt slowly" if rare else "")
            + ("; an organ must be found in the whole image first" if searched and not rare else "")
            + (", a loss on every level: the windows show a small part" if partly and not rare else ""),
        ),
        Choice("start", limits.start if start else "random weights", why_start),
        Choice(
            "mask",
            "surest piece" if one_piece else "as it is",
            "the labels are one piece each, and there is much room for others"
            if one_piece
            else "no cleaning: the labels do not call for it",
        ),
        Choice(
            "smoothing",
            f"{RARE_SMOOTHING} times" if stacked else "none",
            "what neighbouring slices say is averaged: where a small organ ends is seen better in several"
            if stacked
            else "slices along other axes tell of neighbours"
            if len(axes) > 1
            else "the organ is not small, or there are no neighbours",
        ),
        Choice(
            "ensemble",
            str(limits.ensemble),
            "runs with other fire masks are averaged"
            + ("; every second one sees the scan mirrored" if config.predict.mirror else "")
            if limits.ensemble > 1
            else "one run, to save time",
        ),
    )
    return Plan(budget, whole, config, choices, cost)


def roi_of(data: Fingerprint) -> tuple[float, ...] | None:
    """Fingerprint -> the part of the field of view, with a margin, where the foreground of all scans lies;
    None where that is nearly all of it, or not known. Slices are never left out."""
    if data.place is None:
        return None
    roi = [0.0, 1.0] * 3
    for axis in plane_axes(slice_axis(data)):
        low, high = data.place[2 * axis : 2 * axis + 2]
        roi[2 * axis : 2 * axis + 2] = max(0.0, low - MARGIN), min(1.0, high + MARGIN)
    shares = [high - low for low, high in zip(roi[::2], roi[1::2], strict=True)]
    return tuple(round(end, 3) for end in roi) if math.prod(shares) < LARGEST_ROI else None


def within(data: Fingerprint, roi: tuple[float, ...] | None) -> Fingerprint:
    """Fingerprint and ROI -> that of the scans, each cut to the ROI."""
    if roi is None:
        return data

    def cut(shape: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if shape is None:
            return None
        ends = [borders(n, *roi[2 * axis : 2 * axis + 2]) for axis, n in enumerate(shape)]
        x, y, z = (behind - first for first, behind in ends)
        return x, y, z

    shape = cut(data.shape)
    assert shape is not None
    return replace(data, shape=shape, least=cut(data.least), largest=cut(data.largest))


def told_of(roi: tuple[float, ...] | None) -> tuple[str, str]:
    """ROI -> as text, and the reason."""
    if roi is None:
        return "the whole field of view", "the foreground is not small, or may lie anywhere"
    names = ("left to right", "back to front", "foot to head")
    parts = [
        f"{100 * low:.0f} to {100 * high:.0f} % from {name}"
        for name, low, high in zip(names, roi[::2], roi[1::2], strict=True)
        if (low, high) != (0.0, 1.0)
    ]
    return ", ".join(parts), f"the foreground of all scans lies there, {100 * MARGIN:.0f} % from its border"


def size_range(data: Fingerprint, plane: tuple[int, int]) -> float:
    """Fingerprint and the axes of a slice -> how much training varies the size: more than usual where no
    spacing tells how large an organ is and the sizes in the files differ by more."""
    usual = AugmentConfig.scale
    if data.spacing_known or data.extent is None or data.extent_95 is None:
        return usual
    return round(min(LARGEST_SCALE, max(usual, *(data.extent_95[a] / data.extent[a] - 1 for a in plane))), 2)


def start_of(limits: Budget, config: RunConfig, data: Fingerprint) -> tuple[str, str]:
    """Budget, configuration and fingerprint -> hash of the model that training begins with, "" for none, and
    the reason."""
    if limits.start not in shipped_models():
        return "", "this budget has no model to begin with"
    model = shipped_model(limits.start)
    if model.hash in data.seen_by:
        return "", f"the shipped model {limits.start} was trained on some of these scans"
    if reason := why_not(model.config, config):
        return "", f"the shipped model {limits.start} does not fit: {reason}"
    return model.hash, "a rule learnt on another organ needs fewer iterations than random weights"


def with_fitting_start(config: RunConfig) -> RunConfig:
    """Planned configuration with other settings put in -> the same, beginning with random weights where the
    shipped model that was planned as its start no longer fits, and a line in the log."""
    models = {model.hash: model for model in map(shipped_model, shipped_models())}
    model = models.get(config.train.init)
    if model is None or (reason := why_not(model.config, config)) is None:
        return config
    name = model.card.get("name") or model.hash
    _log.warning("training begins with random weights: the model %s does not fit, %s", name, reason)
    return replace(config, train=replace(config.train, init=""))


def seen(config: RunConfig, data: Fingerprint, axes: int) -> int:
    """Configuration, fingerprint and number of axes -> how often training sees a slice, in the mean."""
    return max(1, round(config.train.iterations * config.train.batch_size / max(1, data.slices * axes)))


def recipe_name(budget: str) -> str:
    """Budget -> what the configuration calls its recipe."""
    return "native" if budget == "best" else f"native_{budget}"


#: RAS+ axis -> what slices across it are called.
AXES = ("sagittal", "coronal", "axial")


def names_of(data: Fingerprint, axes: tuple[int, ...]) -> str:
    """Fingerprint and the chosen axes -> what the slices are called."""
    return "flat" if min(data.shape) == 1 else ", ".join(AXES[axis] for axis in axes)


def why_axes(data: Fingerprint, axes: tuple[int, ...]) -> str:
    """Fingerprint and the chosen axes -> the reason."""
    axis = axes[0]
    if len(axes) > 1:
        return "voxels are nearly cubes: one rule sees slices along all axes, the probabilities are averaged"
    if data.shape[axis] == 1:
        return "images of one slice"
    rows, columns = plane_axes(axis)
    if data.spacing[axis] > 1.5 * max(data.spacing[rows], data.spacing[columns]):
        return f"they lie {data.spacing[axis]:.3g} mm apart, clearly more than the pixels in them"
    return "no axis is clearly coarser than the others"


def working_grid(data: Fingerprint, axes: tuple[int, ...], limits: Budget) -> Grid:
    """Fingerprint, slice axes and budget -> the grid to work on, with room for the slices along each axis."""
    planes = [plane_axes(axis) for axis in axes]
    unit = "mm" if data.spacing_known else "pixels"
    # Along several axes slices must have one spacing.
    own = [data.spacing[a] for a in planes[0]] if len(axes) == 1 else [sorted(data.spacing)[1]] * 2

    def sides(shape: tuple[int, int, int]) -> list[float]:
        """Voxels along the RAS+ axes -> rows and columns that hold a slice along any axis, at `own`."""
        return [max(shape[p[k]] * data.spacing[p[k]] / own[k] for p in planes) for k in (0, 1)]

    lengths = [side * step for side, step in zip(sides(data.shape), own, strict=True)]
    seen = {axis for plane in planes for axis in plane}
    width = 0.0 if data.chord is None else len(seen) / sum(1 / data.chord[a] for a in seen)
    wanted = max(lengths) / limits.side
    if width:
        wanted = min(wanted, width / limits.across)
    wanted = max(wanted, max(lengths) / limits.limit)
    spacing = [wanted if wanted > WORTH * step else step for step in own]
    coarser = spacing != own
    height, breadth = (max(2, round(n / step)) for n, step in zip(lengths, spacing, strict=True))
    across = 2 * width / sum(spacing)
    told = f"{height} x {breadth} cells" + (f", {across:.0f} across the foreground" if width else "")
    least, largest = (sides(shape or data.shape) for shape in (data.least, data.largest))
    if not data.spacing_known and any(b > STRETCH * a for a, b in zip(least, largest, strict=True)):
        sizes = f"{least[0]:.0f} x {least[1]:.0f} to {largest[0]:.0f} x {largest[1]:.0f}"
        why = f"sizes from {sizes} and no spacing: all are stretched to one; {told}"
        config = PreprocessConfig(axes=axes, size=(height, breadth))
        return Grid(
            config, (height, breadth), (height, breadth), across, Choice("size", f"{height} x {breadth}", why)
        )
    rows, columns = (
        max(n, min(round(most * step / new), round(ROOM * n)))
        for n, most, step, new in zip((height, breadth), largest, own, spacing, strict=True)
    )
    kept = (spacing[0], spacing[1]) if data.spacing_known or coarser else None
    value = f"{spacing[0]:.3g} x {spacing[1]:.3g} {unit}" if kept else "the images' own"
    why = f"coarser than their own {own[0]:.3g} x {own[1]:.3g}" if coarser else "their own"
    choice = Choice("spacing", value, f"{why}: {told}")
    return Grid(PreprocessConfig(axes=axes, spacing=kept), (height, breadth), (rows, columns), across, choice)


def span_of(grid: Grid, limits: Budget) -> tuple[int, str]:
    """Grid and budget -> cells that a cell must hear of, and the reason."""
    whole = max(grid.room)
    if not grid.across:
        span = min(whole, limits.side)
        return (
            span,
            "the whole slice" if span == whole else f"{span} cells of the slice; its foreground is unknown",
        )
    wanted = max(LEAST_SPAN, math.ceil(CONTEXT_WIDTHS * grid.across))
    if wanted >= whole:
        return whole, "the whole slice, also the larger ones"
    return wanted, f"{wanted} cells of the slice: enough around a foreground {grid.across:.0f} wide"


def shape_model(
    data: Fingerprint, room: tuple[int, int], span: int, limits: Budget, axes: int
) -> tuple[int, MedNCAConfig, str]:
    """Fingerprint, cells of a slice, cells that a cell must hear of, budget and number of axes -> context,
    model, and the reason for the context.

    Raises:
        ValueError: If the budget has no room for so many channels.
    """
    halvings = max(0, min(5, round(math.log2(span / COARSE_CELLS))))
    while halvings and 2 * min(room) < 2**halvings:  # else more than three quarters would be padding
        halvings -= 1
    scales = tuple(2**level for level in range(halvings, -1, -1))
    steps = [STEPS[min(level, len(STEPS) - 1)] for level in range(halvings, -1, -1)]
    fine = sum(count * scale for count, scale in zip(steps[1:], scales[1:], strict=True))
    steps[0] = max(steps[0], math.ceil((span / FIRE_RATE - fine) / scales[0]))
    neighbours = 1 if min(data.shape) > 1 else 0
    for perception, context, answers in wishes(neighbours, len(data.labels), limits):
        images = data.modalities * (2 * context + 1)
        channels = max(limits.channels, -(-(images + answers + LEAST_FREE) // LANES) * LANES)
        # Two convolutions of 3 x 3 with bias, then h units with bias from 3 n numbers and to n.
        filters = 18 * channels * (1 if perception == "depthwise" else channels) + 2 * channels
        left = limits.parameters // len(scales) - filters
        hidden = min(limits.hidden, left // (4 * channels + 1) // LANES * LANES)
        # The same per cell and step in multiply-adds, which have no biases.
        updates = sum(count / scale**2 for count, scale in zip(steps, scales, strict=True))
        spare = limits.work / (axes * limits.ensemble * updates) - (filters - 2 * channels)
        if hidden > LEAST_HIDDEN and spare < 4 * channels * hidden:
            hidden = max(LEAST_HIDDEN, int(spare / (4 * channels)) // LANES * LANES)
        if hidden >= LEAST_HIDDEN:
            break
    else:
        raise ValueError(f"no rule of {limits.parameters:,} parameters takes {data.modalities} channels")
    if context:
        why = "the slices before and behind come along as image channels"
    else:
        why = "no room for neighbours among the channels" if neighbours else "there are no neighbours"
    model = MedNCAConfig(
        image_channels=images,
        channels=channels,
        hidden=hidden,
        perception=perception,
        scales=scales,
        steps=tuple(steps),
        fire_rate=FIRE_RATE,
    )
    return context, model, why


def wishes(neighbours: int, labels: int, limits: Budget) -> Iterator[tuple[Perception, int, int]]:
    """Neighbours and labels that there are, and budget -> perception, context and classes to try in turn.

    Room for a class of each label is given up first, then dense filters, then neighbours.
    """
    for context in (neighbours, 0):
        yield limits.perception, context, labels
        yield limits.perception, context, 1
        yield "depthwise", context, 1


def reach(model: MedNCAConfig) -> float:
    """Model -> cells of the finest level that word travels in all steps, about."""
    return model.fire_rate * sum(s * scale for s, scale in zip(model.steps, model.scales, strict=True))


def text(numbers: tuple[int, ...]) -> str:
    """Numbers -> "8, 4, 2, 1"."""
    return ", ".join(str(number) for number in numbers)


def to_json(made: Plan) -> str:
    """Plan -> text of plan.json: everything that it holds, with a format and a version."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(made)}, indent=1)
