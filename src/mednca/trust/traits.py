"""A scan and what a model said of it -> numbers that tell whether to believe it: its traits.

Three kinds: `sure`, how sure the model is of itself (`mednca.signals`, entropy, confidence); `mask`, what was
found, in mm and ml; `scan`, what the image is like. `mednca.trust` holds the last two against the training
set. None is what cannot be told: of an empty mask, of a constant image, of a model without the signal.

Nothing depends on the engine, and no run of the model is needed. Only sums, quantiles and differences of
neighbours are taken, of large scans from a part of the voxels, so that the cost stays far below a prediction.

Shapes: image (M, X, Y, Z), mask (X, Y, Z), probability (K, X, Y, Z), all on axes as close to RAS+ as they
can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: Of their definitions.
VERSION = 2
#: Voxels that the image is judged by at most, along each axis.
VOXELS = 1 << 21
#: How far around the mask its surroundings reach, in voxels.
SHELL = 2
#: Below which share of the intensity range a voxel counts as black.
BLACK = 0.02
AXES = ("R", "A", "S")
#: The two ends of a mask along each axis, and the share of its voxels that makes one up.
ENDS, END = (("left", "right"), ("back", "front"), ("lower", "upper")), 0.2
#: Percentiles of the probability in the mask, and of the steepness of the image.
SURE, STEEP = (5, 10, 25, 50), (10, 90)

Array = NDArray[Any]
Traits = dict[str, float | None]
Kind = Literal["sure", "mask", "scan"]


@dataclass(frozen=True)
class Trait:
    """What a number means.

    Attributes:
        name: As in tables and model files, without the channel.
        kind: Of the model's answer, the mask or the scan.
        words: As a person is told.
        unit: With the number.
        log: Whether ratios of it count, not differences.
        least: The least spread in training that is believed, in units of the number or of its logarithm.
        good: +1 where more is better, -1 where less is; 0 where only the distance from training says
            something.
    """

    name: str
    kind: Kind
    words: str
    unit: str = ""
    log: bool = False
    least: float = 0.02
    good: int = 0

    def position(self, value: float) -> float:
        """Value -> where it stands on the axis along which distances are taken."""
        return math.log(max(value, 1e-9)) if self.log else value


def _of_axes(name: str, kind: Kind, words: str, **more: Any) -> tuple[Trait, ...]:
    return tuple(Trait(f"{name}_{axis.lower()}", kind, f"{words} (axis {axis})", **more) for axis in AXES)


#: In the order of tables. Those of the intensities are there for each channel.
TRAITS: tuple[Trait, ...] = (
    Trait("nqm", "sure", "disagreement of the samples (NQM)", good=-1),
    Trait("axes", "sure", "disagreement of the axes", good=-1),
    Trait("flips", "sure", "flips of the mask in the last steps", good=-1),
    Trait("levels", "sure", "agreement of the two finest levels", good=1),
    Trait("entropy", "sure", "entropy for each voxel of the mask", unit=" bit", good=-1),
    Trait("confidence", "sure", "mean probability in the mask", good=1),
    Trait("overlap", "sure", "overlap of mask and probability", good=1),
    *(
        Trait(f"sure_{percent}", "sure", f"probability below which {percent} % of the mask lie", good=1)
        for percent in SURE
    ),
    *(
        Trait(f"apart_{end}", "sure", f"disagreement at the {end} end of the mask", log=True, good=-1)
        for ends in ENDS
        for end in ends
    ),
    Trait("volume", "mask", "volume", unit=" ml", log=True, least=0.1),
    *_of_axes("extent", "mask", "extent", unit=" mm", log=True, least=0.1),
    Trait("elongation", "mask", "elongation", log=True, least=0.1),
    Trait("roughness", "mask", "surface for its volume", log=True, least=0.1),
    Trait("largest", "mask", "share of the largest piece", least=0.02, good=1),
    *_of_axes("position", "mask", "position in the field of view", least=0.03),
    Trait("border", "mask", "share at the edge of the image", least=0.02, good=-1),
    *_of_axes("size", "scan", "field of view", unit=" mm", log=True, least=0.1),
    Trait("voxel", "scan", "size of a voxel", unit=" mm", log=True, least=0.1),
)
INTENSITIES: tuple[Trait, ...] = (
    Trait("dark", "scan", "lower quartile of the intensities"),
    Trait("median", "scan", "median of the intensities"),
    Trait("bright", "scan", "upper quartile of the intensities"),
    Trait("black", "scan", "share of black voxels"),
    Trait("uneven", "scan", "unevenness of the brightness"),
    Trait("edges", "scan", "strength of the edges", log=True, least=0.1),
    *_of_axes("noise", "scan", "noise", log=True, least=0.05),
    Trait("inside", "mask", "intensity in the mask", least=0.03),
    Trait("contrast", "mask", "contrast of the mask to its surroundings", least=0.02),
    *(
        Trait(
            f"{name}_{percent}",
            "mask",
            f"steepness of the image {where} the mask ({percent}th percentile)",
            unit=" for each mm",
            log=True,
            least=0.1,
        )
        for name, where in (("within", "in"), ("around", "around"))
        for percent in STEEP
    ),
    Trait("texture", "mask", "spread of the intensity in the mask", log=True, least=0.1),
)
#: Not measured here: what a score is compared with.
OTHERS: tuple[Trait, ...] = (Trait("variance", "sure", "mean variance of the samples", good=-1),)


def find(name: str) -> Trait:
    """Name in a table, "noise_r" or, of the third channel, "noise_r.2" -> the trait.

    Raises:
        KeyError: If there is none of that name.
    """
    known = {trait.name: trait for trait in (*TRAITS, *INTENSITIES, *OTHERS)}
    base, _, channel = name.partition(".")
    if channel and (known[base] not in INTENSITIES or not channel.isdigit()):
        raise KeyError(name)
    return known[base]


def names(channels: int) -> list[str]:
    """Channels of a scan -> the names of all traits."""
    of_channels = [
        f"{trait.name}.{channel}" if channel else trait.name
        for channel in range(channels)
        for trait in INTENSITIES
    ]
    return [trait.name for trait in TRAITS] + of_channels


def measure(
    image: Array,
    mask: Array,
    probability: Array,
    spread: Array,
    *,
    spacing: Sequence[float],
    signals: Mapping[str, float | None] | None,
    largest: float | None,
) -> Traits:
    """Image (M, X, Y, Z), mask (X, Y, Z), probability (K, X, Y, Z), the spread of its samples (0 to 2, X, Y,
    Z), spacing (mm), the signals of a report and the share of the foreground that is in its largest piece ->
    every trait, None where it cannot be told.

    `largest` is that of the mask before smaller pieces were removed, where they are.
    """
    inside = mask != 0
    empty = not inside.any()
    told: dict[str, float | None] = {name: (signals or {}).get(name) for name in ("nqm", "axes", "flips")}
    told["levels"] = None if empty or signals is None else signals.get("levels")
    told |= _sureness(probability, inside) | _ends(probability, spread, inside)
    told |= _shape(inside, spacing) | {"largest": None if empty else largest}
    size = [count * step for count, step in zip(inside.shape, spacing, strict=True)]
    told |= {f"size_{axis.lower()}": value for axis, value in zip(AXES, size, strict=True)}
    told["voxel"] = float(np.prod(spacing)) ** (1 / 3)
    around = _around(inside)
    for channel, data in enumerate(image):
        ending = f".{channel}" if channel else ""
        told |= {name + ending: value for name, value in _intensities(data, inside, around, spacing).items()}
    return {name: _rounded(told[name]) for name in names(len(image))}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _sureness(probability: Array, inside: NDArray[np.bool_]) -> Traits:
    """Probability of the foreground and mask -> entropy, confidence, its percentiles and overlap; None for an
    empty mask."""
    whole = np.clip(probability.sum(axis=0) if len(probability) > 1 else probability[0], 0, 1)
    voxels = int(inside.sum())
    if not voxels:
        return dict.fromkeys(("entropy", "confidence", "overlap", *(f"sure_{n}" for n in SURE)))
    open_ = whole[(whole > 1e-6) & (whole < 1 - 1e-6)].astype(np.float64)
    entropy = float(-(open_ * np.log2(open_) + (1 - open_) * np.log2(1 - open_)).sum())
    mass, all_ = float(whole[inside].sum(dtype=np.float64)), float(whole.sum(dtype=np.float64))
    return {
        "entropy": entropy / voxels,
        "confidence": mass / voxels,
        "overlap": 2 * mass / (all_ + voxels),
        **_percentiles("sure", whole[inside], SURE),
    }


def _percentiles(name: str, values: Array, percents: Sequence[int]) -> Traits:
    found = np.percentile(values, percents).tolist()
    return {f"{name}_{percent}": value for percent, value in zip(percents, found, strict=True)}


def _ends(probability: Array, spread: Array, inside: NDArray[np.bool_]) -> Traits:
    """Probability, the spread of its samples and mask -> how far the samples, or the axes where there are
    several, lie apart at each end of the mask, as `nqm` tells of all of it; None where it has no ends."""
    found: Traits = {f"apart_{end}": None for ends in ENDS for end in ends}
    if not len(spread) or not inside.any():
        return found
    for axis, ends in enumerate(ENDS):
        others = tuple(other for other in range(3) if other != axis)
        reached = np.cumsum(inside.sum(axis=others))
        first, last = np.searchsorted(reached, [END * reached[-1], (1 - END) * reached[-1]]).tolist()
        if first == last:
            continue
        mass = probability.sum(axis=(0, *(other + 1 for other in others)), dtype=np.float64)
        apart = spread[-1].sum(axis=others, dtype=np.float64)
        for end, part in zip(ends, (slice(first + 1), slice(last, None)), strict=True):
            if mass[part].sum() > 0:
                found[f"apart_{end}"] = float(apart[part].sum() / mass[part].sum())
    return found


def _shape(inside: NDArray[np.bool_], spacing: Sequence[float]) -> Traits:
    """Mask and spacing -> volume, extents, elongation, roughness, position, border; None for an empty one."""
    axes = [axis.lower() for axis in AXES]
    keys = ["volume", "elongation", "roughness", "border"]
    keys += [f"{name}_{axis}" for name in ("extent", "position") for axis in axes]
    if not inside.any():
        return dict.fromkeys(keys)
    steps = np.asarray(spacing, np.float64)
    places = np.argwhere(inside)
    count = len(places)
    low, high = places.min(axis=0), places.max(axis=0)
    middle = (places.mean(axis=0) + 0.5) / inside.shape
    spread = np.cov((places * steps).T, bias=True) + np.diag(steps**2) / 12  # a voxel is no point
    sizes = np.sqrt(np.linalg.eigvalsh(spread))
    thick = sizes[1:] if min(inside.shape) == 1 else sizes  # of a flat image in its plane
    area, areas = 0.0, np.prod(steps) / steps
    for axis in range(3):
        if inside.shape[axis] > 1:
            along = np.moveaxis(inside, axis, 0)
            ends = int(along[0].sum()) + int(along[-1].sum())
            area += areas[axis] * (int((along[1:] != along[:-1]).sum()) + ends)
    at_edge = np.zeros(count, bool)
    for axis, length in enumerate(inside.shape):
        if length > 1:
            at_edge |= (places[:, axis] == 0) | (places[:, axis] == length - 1)
    volume = count * float(np.prod(steps))
    found: Traits = {
        "volume": volume / 1000,
        "elongation": float(thick[-1] / thick[0]),
        "roughness": float(area / volume ** (2 / 3)),
        "border": float(at_edge.mean()),
    }
    for axis, name in enumerate(axes):
        found[f"extent_{name}"] = float((high[axis] - low[axis] + 1) * steps[axis])
        found[f"position_{name}"] = float(middle[axis])
    return found


def _around(inside: NDArray[np.bool_]) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """Mask -> a box around it and, in the box, what lies outside within a few voxels, by faces."""
    if not inside.any():
        return (slice(0, 0),) * 3, np.zeros((0, 0, 0), bool)
    box = []
    for axis in range(3):
        there = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(there[0]) - SHELL), int(there[-1]) + 1 + SHELL))
    grown = inside[tuple(box)].copy()
    for _ in range(SHELL):
        before = grown.copy()
        for axis in range(3):
            to, of = np.moveaxis(grown, axis, 0), np.moveaxis(before, axis, 0)
            to[1:] |= of[:-1]
            to[:-1] |= of[1:]
    return tuple(box), grown & ~inside[tuple(box)]


def _intensities(
    data: Array,
    inside: NDArray[np.bool_],
    around: tuple[tuple[slice, ...], NDArray[np.bool_]],
    spacing: Sequence[float],
) -> Traits:
    """One channel (X, Y, Z), the mask, its surroundings and spacing (mm) -> the traits of the intensities;
    None for a constant channel. They do not change when the channel is scaled or shifted."""
    found: Traits = {trait.name: None for trait in INTENSITIES}
    step = max(1, math.ceil((data.size / VOXELS) ** (1 / 3)))
    some = data[::step, ::step, ::step].astype(np.float64)
    low, dark, median, bright, high = np.percentile(some, (0.5, 25, 50, 75, 99.5)).tolist()
    range_ = high - low
    if not (math.isfinite(range_) and range_ > 0):
        return found
    some = (np.clip(some, low, high) - low) / range_
    found |= {"dark": (dark - low) / range_, "median": (median - low) / range_}
    found |= {"bright": (bright - low) / range_, "black": float((some < BLACK).mean())}
    halves = [np.array_split(np.arange(count), min(2, count)) for count in some.shape]
    octants = [some[np.ix_(x, y, z)].mean() for x in halves[0] for y in halves[1] for z in halves[2]]
    found["uneven"] = float(np.std(octants))
    steps, step = [], max(1, math.ceil(math.sqrt(data.size / VOXELS)))
    for axis, name in enumerate(AXES):
        if data.shape[axis] < 3:
            continue
        window = [slice(None, None, 1 if other == axis else step) for other in range(3)]
        part = np.clip(np.moveaxis(data[tuple(window)], axis, 0).astype(np.float64), low, high) / range_
        once = np.diff(part, axis=0)
        steps.append(float(np.abs(once).mean()))
        if steps[-1] > 0:  # a ramp has none, an image of independent voxels the most
            found[f"noise_{name.lower()}"] = float(np.abs(np.diff(once, axis=0)).mean()) / steps[-1]
    found["edges"] = float(np.mean(steps)) if steps else None
    box, shell = around
    if not inside.any():
        return found
    near = (np.clip(data[box].astype(np.float64), low, high) - low) / range_
    within = near[inside[box]]
    found |= {"inside": float(within.mean()), "texture": float(within.std())}
    every = math.ceil(near.size / VOXELS)
    steep = _steepness(near, spacing, every)
    for name, where in (("within", inside[box][::every]), ("around", shell[::every])):
        if where.any():
            found |= _percentiles(name, steep[where], STEEP)
    if shell.any():
        found["contrast"] = float(within.mean() - near[shell].mean())
    return found


def _steepness(data: Array, spacing: Sequence[float], every: int) -> Array:
    """Array (X, Y, Z), spacing (mm) and a step -> the length of its gradient for each mm, smoothed a little,
    of every so-manieth slice (ceil(X / every), Y, Z)."""
    if every > 1:
        parts = ((start := max(0, x - 2), x - start) for x in range(0, len(data), every))
        return np.stack([_steepness(data[a : a + at + 3], spacing, 1)[at] for a, at in parts])
    for axis, length in enumerate(data.shape):
        if length > 2:
            along = np.pad(np.moveaxis(data, axis, 0), ((1, 1), (0, 0), (0, 0)), "edge")
            data = np.moveaxis((along[:-2] + 2 * along[1:-1] + along[2:]) / 4, 0, axis)
    squares = np.zeros(data.shape)
    for axis, (length, step) in enumerate(zip(data.shape, spacing, strict=True)):
        if length > 1:
            squares += (np.gradient(data, axis=axis) / step) ** 2
    found: Array = np.sqrt(squares)
    return found
