"""The planner: what the data are like and what may be spent -> a complete configuration, with its reasons.

No torch here. Lengths along a slice are counted in cells, the pixels that the model works on; the *width* of
the foreground is the mean length of a straight line through it, and tells a large organ from many small
nuclei where a bounding box cannot.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mednca.config import AugmentConfig, PredictConfig, RunConfig, TrainConfig
from mednca.errors import InputError
from mednca.rule import MedNCAConfig, multiply_adds, parameters
from mednca.slices import PreprocessConfig, padded_size, plane_axes, plane_size

#: Cells across the coarsest level that the number of levels aims at, on a logarithmic scale.
COARSE_CELLS = 9
#: Word travels about as many cells as steps times fire rate.
FIRE_RATE = 0.5
#: An organ is seen with the surroundings within as many of its widths.
CONTEXT_WIDTHS = 8
#: In-plane sizes without a known spacing that differ by more than this are stretched to one size.
STRETCH = 1.5
#: Working spacings up to this factor coarser than the scan's are not worth a resampling.
WORTH = 1.2
#: Multiply-adds of one thread per second in training, forward and backward of native steps together; measured
#: on one core with AVX2.
TRAINING_RATE = 2.0e10


@dataclass(frozen=True)
class Fingerprint:
    """What a recipe must know of the data. Axes are those of RAS+.

    Attributes:
        modalities: Channels of a scan.
        spacing: Median spacing in mm; in pixels, so 1, where the files do not know it.
        shape: Median number of voxels.
        labels: Value in the label files -> name of each foreground label.
        spacing_known: Whether the spacing is more than a placeholder.
        least: Least number of voxels of any scan; None is as `shape`.
        largest: Largest number of voxels of any scan; None is as `shape`.
        cases: Number of scans.
        slices: Number of slices along the axis that is cut.
        extent: Median size in mm of the foreground's bounding box; None where it was not measured.
        extent_95: 95th percentile of the same.
        chord: Mean length in mm of a line along each axis through the foreground; median over the scans.
        share: Share of the voxels that are foreground.
    """

    modalities: int
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    labels: dict[int, str]
    spacing_known: bool = True
    least: tuple[int, int, int] | None = None
    largest: tuple[int, int, int] | None = None
    cases: int = 1
    slices: int = 1
    extent: tuple[float, float, float] | None = None
    extent_95: tuple[float, float, float] | None = None
    chord: tuple[float, float, float] | None = None
    share: float | None = None


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        parameters: Most parameters of the model.
        perception: Kind of the rule's filters.
        channels: n, where the image needs no more.
        hidden: Most hidden units h.
        side: Cells of a slice's longer side beyond which the scan is worked on at a coarser spacing...
        across: ... as long as so many cells lie across the foreground's width...
        limit: ... and never more cells than this along a side.
        patch: Side of the training window of the finer levels.
        learning_rate: Peak rate.
        iterations: Steps of the optimiser.
        ensemble: Fire-mask runs that are averaged.
        seconds: Most seconds of one core per iteration, by estimate.
    """

    parameters: int
    perception: Literal["dense", "depthwise"]
    channels: int
    hidden: int
    side: int
    across: int
    limit: int
    patch: int
    learning_rate: float
    iterations: int
    ensemble: int
    seconds: float = 0.15


#: Name on the command line -> budget.
BUDGETS = {
    "pi": Budget(20_000, "depthwise", 16, 64, 96, 12, 256, 48, 1e-2, 5000, 1),
    "laptop": Budget(45_000, "depthwise", 24, 96, 128, 16, 512, 40, 8e-3, 4000, 1),
    "best": Budget(70_016, "dense", 16, 128, 192, 24, 1024, 32, 5e-3, 5000, 3),
}


@dataclass(frozen=True)
class Choice:
    """A setting, its value as text, and why it was chosen, in one line."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Plan:
    """A configuration, the data and the budget that it was made for, and the reasons."""

    budget: str
    data: Fingerprint
    config: RunConfig
    choices: tuple[Choice, ...]


def plan(data: Fingerprint, budget: str = "best") -> Plan:
    """Fingerprint and name of a budget -> a complete configuration with its reasons.

    Raises:
        InputError: If there is no such budget.
        ValueError: If no model of the budget can take so many channels.
    """
    if budget not in BUDGETS:
        raise InputError(f"budget {budget!r} is not known; choose one of {', '.join(BUDGETS)}")
    limits = BUDGETS[budget]
    choices: list[Choice] = []
    axes = slice_axes(data)
    axis = axes[0]
    rows, columns = plane_axes(axis)
    volumetric = min(data.shape) > 1
    if not volumetric:
        why = "the images are flat"
    elif data.spacing[axis] > 1.5 * max(data.spacing[rows], data.spacing[columns]):
        why = f"slices lie {data.spacing[axis]:.3g} apart, clearly more than the pixels within them"
    else:
        why = "the voxels are about as long along every axis"
    if len(axes) > 1:
        why += "; one rule sees slices along all three, and their probabilities are averaged"
    choices.append(Choice("slice axes", text_of(axes), why))

    preprocess, cells, width, choice = grid(data, axes, limits)
    choices.append(choice)
    context = 1 if volumetric else 0
    images = data.modalities * (2 * context + 1)
    if images + 1 > limits.channels and context:
        context, images = 0, data.modalities
        choices.append(
            Choice("context", "0", f"{data.modalities} channels leave no room for neighbour slices")
        )
    elif context:
        choices.append(Choice("context", "1", "the slices before and behind come along as image channels"))
    preprocess = replace(preprocess, modalities=data.modalities, context=context)

    span = min(max(cells), max(64, math.ceil(CONTEXT_WIDTHS * width)) if width else limits.side)
    model = shape_model(images, cells, span, limits)
    coarse = " x ".join(str(-(-min(c, span) // model.multiple)) for c in cells)
    multiple = model.multiple
    height, width_ = (
        max(model.smallest, -(-min(c, max(span, limits.patch)) // multiple) * multiple) for c in cells
    )
    choices += [
        Choice(
            "levels",
            f"scales {text(model.scales)}",
            f"factors of two down to {coarse} cells over {span} cells",
        ),
        Choice(
            "steps",
            text(model.steps),
            f"word travels {reach(model):.0f} cells at fire rate {FIRE_RATE}, {span} are wanted",
        ),
        Choice(
            "rule",
            f"{model.perception}, n = {model.channels}, h = {model.hidden}",
            f"{parameters(model):,} of at most {limits.parameters:,} parameters",
        ),
        Choice(
            "canvas",
            f"{height} x {width_}",
            "room for the largest slice"
            if span >= max(cells)
            else f"{CONTEXT_WIDTHS} widths of the foreground",
        ),
    ]
    train = TrainConfig(
        iterations=limits.iterations,
        canvas=(height, width_),
        patch=limits.patch,
        learning_rate=limits.learning_rate,
        coarse_weight=0.0,
    )
    name = "native" if budget == "best" else f"native_{budget}"
    config = RunConfig(
        name,
        model=model,
        preprocess=preprocess,
        # Left and right only: anatomy has no other mirror.
        augment=AugmentConfig(flip=(0,) if rows == 0 else ()),
        train=train,
        predict=PredictConfig(ensemble=limits.ensemble),
    )
    batch = train.batch_size
    while (
        batch > 8
        and iteration_seconds(replace(config, train=replace(train, batch_size=batch))) > limits.seconds
    ):
        batch -= 2
    config = replace(config, train=replace(train, batch_size=batch))
    seconds = iteration_seconds(config)
    choices += [
        Choice("patch", str(train.patch), "the finer levels see a window, which bounds time and memory"),
        Choice("batch", str(batch), f"about {seconds:.2f} s of one core per iteration"),
        Choice("iterations", str(train.iterations), f"learning rate {train.learning_rate:g}, cosine to zero"),
        Choice("ensemble", str(limits.ensemble), "runs with other fire masks that are averaged"),
    ]
    return Plan(budget, data, config, tuple(choices))


def grid(
    data: Fingerprint, axes: tuple[int, ...], limits: Budget
) -> tuple[PreprocessConfig, tuple[int, int], float, Choice]:
    """Fingerprint, slice axes and budget -> how slices are resampled, cells of the slice that the canvas must
    hold, the foreground's width in cells (0 unknown), and the reason."""
    planes = [plane_axes(axis) for axis in axes]
    unit = "mm" if data.spacing_known else "pixels"
    own = [data.spacing[a] for a in planes[0]] if len(axes) == 1 else [sorted(data.spacing)[1]] * 2

    def span(voxels: tuple[int, int, int]) -> list[int]:
        """Voxels along the RAS+ axes -> rows and columns, at `own` spacing, that hold a slice of any axis."""
        return [
            max(round(voxels[plane[k]] * data.spacing[plane[k]] / own[k]) for plane in planes) for k in (0, 1)
        ]

    shape = span(data.shape)
    seen = sorted({a for plane in planes for a in plane})
    width = 0.0 if data.chord is None else len(seen) / sum(1 / max(data.chord[a], 1e-6) for a in seen)
    longest = max(n * s for n, s in zip(shape, own, strict=True))
    wanted = longest / limits.side
    if width:
        wanted = min(wanted, width / limits.across)
    wanted = max(wanted, longest / limits.limit)
    coarser = wanted > WORTH * max(own)
    spacing = [max(s, wanted) if coarser else s for s in own]
    size = [max(2, round(n * s / t)) for n, s, t in zip(shape, own, spacing, strict=True)]
    across = width / (sum(spacing) / 2)
    told = f"{size[0]} x {size[1]} cells"
    if width:
        told += f", {across:.0f} across the foreground"
    least, largest = span(data.least or data.shape), span(data.largest or data.shape)
    if not data.spacing_known and any(b > STRETCH * a for a, b in zip(least, largest, strict=True)):
        why = (
            f"the spacing is not known and sizes differ {least} to {largest}: every slice is stretched to one"
        )
        config = PreprocessConfig(axes=axes, size=(size[0], size[1]))
        return config, (size[0], size[1]), across, Choice("grid", told, why)
    room = tuple(
        max(n, min(round(m * s / t), round(1.25 * n)))
        for n, m, s, t in zip(size, largest, own, spacing, strict=True)
    )
    if coarser:
        value = f"{spacing[0]:.3g} {unit}"
        why = f"coarser than the images' own {own[0]:.3g}: {told}"
    else:
        value = "the scan's own" if not data.spacing_known else f"{spacing[0]:.3g} x {spacing[1]:.3g} {unit}"
        why = f"the scans' own: {told}"
    kept = (spacing[0], spacing[1]) if data.spacing_known or coarser else None
    config = PreprocessConfig(axes=axes, spacing=kept)
    return config, (room[0], room[1]), across, Choice("spacing", value, why)


def shape_model(images: int, cells: tuple[int, int], span: int, limits: Budget) -> MedNCAConfig:
    """Image channels, cells of a slice, cells that word must travel and budget -> the model.

    Raises:
        ValueError: If the budget has no room for so many channels.
    """
    halvings = max(0, min(5, round(math.log2(span / COARSE_CELLS))))
    while halvings and min(cells) / 2**halvings < 4:
        halvings -= 1
    levels = halvings + 1
    channels = max(limits.channels, -(-(images + 13) // 4) * 4)
    # two filters with bias, h (4 n + 1) for the update
    filters = 20 * channels if limits.perception == "depthwise" else 18 * channels**2 + 2 * channels
    hidden = (limits.parameters // levels - filters) // (4 * channels + 1) // 8 * 8
    if hidden < 16:
        raise ValueError(f"{images} image channels need more than {limits.parameters:,} parameters")
    scales = tuple(2**level for level in range(halvings, -1, -1))
    rest = span / FIRE_RATE - sum(8 * scale for scale in scales[1:])
    return MedNCAConfig(
        image_channels=images,
        channels=channels,
        hidden=min(hidden, limits.hidden),
        perception=limits.perception,
        scales=scales,
        steps=(max(8, math.ceil(rest / scales[0])), *(8,) * halvings),
        fire_rate=FIRE_RATE,
    )


def reach(model: MedNCAConfig) -> float:
    """Model -> cells of the finest level that word travels in all steps, in the mean over fire masks."""
    return model.fire_rate * sum(s * scale for s, scale in zip(model.steps, model.scales, strict=True))


def iteration_seconds(config: RunConfig) -> float:
    """Configuration with a canvas -> rough seconds of one core per iteration of training."""
    height, width = config.train.canvas or (256, 256)
    side = config.train.patch or max(height, width)
    model = config.model
    total = 0.0
    for level, (scale, steps) in enumerate(zip(model.scales, model.steps, strict=True)):
        rows, columns = height // scale, width // scale
        cells = rows * columns if level == 0 else min(rows, side) * min(columns, side)
        total += cells * steps * model.fire_rate
    work = config.train.batch_size * total * multiply_adds_per_cell(model)
    return work / TRAINING_RATE


def multiply_adds_per_cell(model: MedNCAConfig) -> int:
    """Model -> multiply-adds of one cell in one step."""
    return multiply_adds(replace(model, scales=(1,), steps=(1,)), 1, 1)


def slice_multiply_adds(
    config: RunConfig, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> int:
    """Configuration, RAS+ shape and spacing of a scan -> multiply-adds of one slice, all cells computed, with
    padding and ensemble."""
    height, width = padded_size(
        plane_size(shape, spacing, config.preprocess), config.model.multiple, config.model.smallest
    )
    return config.predict.ensemble * multiply_adds(config.model, height, width)


def text_of(axes: tuple[int, ...]) -> str:
    """Slice axes -> "axial, sagittal, coronal"."""
    return ", ".join(("sagittal", "coronal", "axial")[axis] for axis in axes)


def text(numbers: tuple[int, ...]) -> str:
    """Numbers -> "8, 4, 2, 1"."""
    return ", ".join(str(number) for number in numbers)


def to_json(made: Plan) -> dict[str, Any]:
    """Plan -> what plan.json holds."""
    return asdict(made)


def slice_axes(data: Fingerprint) -> tuple[int, ...]:
    """The axes to cut along, the main one first: all three of a nearly isotropic volume, with known spacings
    within a factor of 1.5 and at least 16 voxels along each axis; else one."""
    main = slice_axis(data)
    if not data.spacing_known or min(data.shape) < 16 or max(data.spacing) > 1.5 * min(data.spacing):
        return (main,)
    return (main, *(axis for axis in range(3) if axis != main))


def slice_axis(data: Fingerprint) -> int:
    """The axis to cut along: the coarsest one where it is clearly coarser, else axial; the flat one in 2D."""
    for axis in range(3):
        if data.shape[axis] == 1:
            return axis
    largest = max(range(3), key=lambda a: data.spacing[a])
    others = [s for a, s in enumerate(data.spacing) if a != largest]
    return largest if data.spacing[largest] > 1.5 * max(others) else 2
