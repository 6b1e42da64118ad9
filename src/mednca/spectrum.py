"""Lines of k-space that no training scan has: what ghosts and stripes are made of is brought back.

A scanner reads a scan line by line in the space of its frequencies. Where some lines come out too strong or
too weak, again and again as the patient breathes, or once as a spark jumps, the image has ghosts or stripes
all over. The lines of good scans of an organ are very much alike: along each axis of the body, the logarithm
of the mean power of a line is a usual profile over its frequency f (cycles per voxel), measured on the
training scans (`usual`), and what is particular to the scan, a + b log f + c f. A line that is farther off
than those of training scans (`Usual.limit`) is scaled back (`mended`).

The power of a line does not tell whether it is upside down, and an unusual line may belong to the scan. So
the model looks at the scan as it is, mended, and mended with these lines turned over, and the look of which
it is surest counts (`settle`), by the overlap with the truth that its own probabilities promise
(`expected_overlap`). A scan of usual lines is looked at once, so its mask stays the same to the bit. A line
that is lost cannot be brought back, and one that is only turned over is not seen.

Powers are those within the box of the voxels that are not fill (`mednca.field`), of the whole scan, also
where a model looks at a part of it alone. That a scan's own spectrum tells which of its lines are wrong is an
old way to find spikes (Foo et al., IEEE Transactions on Medical Imaging 13(1), 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mednca.field import box, without_fill
from mednca.volume import Volume, along_body

#: Points of a profile, evenly up to the highest frequency.
GRID = 24
POINTS = np.linspace(0.5 / GRID, 0.5, GRID)
#: Least number of lines along an axis of which anything is told.
LEAST = 8
#: Fits of what is particular to a scan; each weighs the lines by the one before.
ROUNDS = 8
#: Distance from the fit, of natural logarithms of powers, at which a line counts half: it halves from the
#: first of these to the last.
WIDTHS = (2.0, 0.3)
#: What is added to the diagonal of the normal equations.
RIDGE = 1e-9
#: The limit, over the largest distance of a line in this share of the training scans.
LIMIT, SHARE = 1.25, 0.99
#: Axes that are mended one after the other.
TURNS = 3
#: The largest change of a line, of the natural logarithm of its amplitude.
MOST = 3.0
#: Powers are told no lower than this share of their mean.
FLOOR = 1e-9
#: Where the mean power along an axis is no more than this share of all, the scan is the same all along it.
NOTHING = 1e-12
#: Voxels that are transformed at a time: bounds the memory.
SLAB = 1 << 20
#: By how much the expected overlap must be better for a mended scan to count.
GAIN = 0.02
#: Parts into which probabilities are sorted.
PARTS = 1024

Doubles = NDArray[np.float64]
Array = NDArray[Any]
Seen = TypeVar("Seen")


class Usual(NamedTuple):
    """Of a channel: the largest distance of a line at which it is left, and the profiles (3, GRID) along the
    axes of the body. Numbers of `PredictConfig.spectrum`, in this order."""

    limit: float
    profiles: Doubles

    @property
    def numbers(self) -> tuple[float, ...]:
        """As they stand in `PredictConfig.spectrum`."""
        return (self.limit, *self.profiles.ravel().tolist())


def of_channels(numbers: Sequence[float], channels: int) -> list[Usual]:
    """`PredictConfig.spectrum` -> what is usual in each channel.

    Raises:
        ValueError: If they are not as many as they must be, not finite, or a limit is not positive.
    """
    each = 1 + 3 * GRID
    if len(numbers) != channels * each or not np.isfinite(numbers).all():
        raise ValueError(
            f"spectrum must be {channels * each} finite numbers, {each} for each channel, got {len(numbers)}"
        )
    parts = [numbers[i : i + each] for i in range(0, len(numbers), each)]
    if any(part[0] <= 0 for part in parts):
        raise ValueError(f"spectrum must have limits > 0, got {[part[0] for part in parts]}")
    return [Usual(part[0], np.array(part[1:]).reshape(3, GRID)) for part in parts]


# ---- What is usual ----


def usual(images: Iterable[NDArray[np.float32]]) -> Usual | None:
    """One channel of each training scan on the axes of the body (X, Y, Z), finite -> what is usual in it;
    None where no scan has enough lines to tell."""
    scans = [log_powers(part) for image in images if (part := cut_to_box(image)) is not None]
    profiles, furthest = np.zeros((3, GRID)), np.zeros(len(scans))
    for axis, profile in enumerate(profiles):
        logs = [scan[axis] for scan in scans]
        rows = [np.interp(POINTS, frequencies(log), distances(log, profile)) for log in logs if len(log)]
        if rows:
            profile[:] = [float(f"{value:.6g}") for value in np.median(rows, axis=0)]
        furthest = np.maximum(furthest, [np.abs(distances(log, profile)).max(initial=0.0) for log in logs])
    limit = LIMIT * float(np.quantile(furthest, SHARE)) if scans else 0.0
    return Usual(float(f"{limit:.6g}"), profiles) if limit > 0 else None


def cut_to_box(channel: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Channel (X, Y, Z) -> a view of the part within the box of what is not fill; None where it is all one
    value."""
    part = channel[box(without_fill(channel))]
    return part if part.min() < part.max() else None


def frequencies(log: Doubles) -> Doubles:
    """Logarithms of the powers of lines 1, 2, ... -> their frequencies. Lines of an even and of an odd number
    of voxels end a little apart; both are told as if the last were 0.5."""
    found: Doubles = np.arange(1, len(log) + 1) / (2 * len(log))
    return found


def log_powers(part: NDArray[np.floating[Any]]) -> list[Doubles]:
    """Part of a channel -> for each axis, natural logarithm of the mean power of each line along it but that
    of frequency 0; nothing where there are too few, or where all of them are rounding."""
    found: list[Doubles] = []
    mean = part.mean(dtype=np.float64)
    for axis, length in enumerate(part.shape):
        others = tuple(other for other in range(3) if other != axis)
        slices = np.moveaxis(part, others[0], 0)
        at_once = max(1, SLAB * len(slices) // part.size)
        power, all_there_is = np.zeros(length // 2 + 1), 0.0
        for start in range(0, len(slices) if length // 2 >= LEAST else 0, at_once):
            away = np.moveaxis(slices[start : start + at_once].astype(np.float64) - mean, 0, others[0])
            power += (np.abs(np.fft.rfft(away, axis=axis)) ** 2).sum(axis=others)
            all_there_is += float((away**2).sum())
        power = power[1:]
        told = len(power) and power.mean() > NOTHING * all_there_is
        found.append(np.log(np.maximum(power, FLOOR * power.mean())) if told else np.zeros(0))
    return found


def distances(log: Doubles, profile: Doubles) -> Doubles:
    """Logarithms of powers and the usual profile -> distance of each line from what it should be."""
    f = frequencies(log)
    terms = np.stack([np.ones_like(f), np.log(f), f], axis=1)
    left = log - np.interp(f, POINTS, profile)
    weights = np.ones(len(f))
    for turn in range(ROUNDS):
        normal = terms.T @ (terms * weights[:, None]) + RIDGE * np.eye(3)
        away: Doubles = left - terms @ np.linalg.solve(normal, terms.T @ (weights * left))
        weights = 1 / (1 + (away / max(WIDTHS[1], WIDTHS[0] / 2**turn)) ** 2)
    return away


# ---- Mending ----


def mended(channel: NDArray[np.float32], seen: Usual, sign: int) -> tuple[NDArray[np.float32], int]:
    """Channel on the axes of the body (X, Y, Z), finite, what is usual, and 1, or -1 to turn the unusual
    lines over -> the same with them brought back, and how many there were.

    The axis with the most unusual lines is mended first, and its lines alone are turned over.
    """
    inside = box(without_fill(channel))
    part: NDArray[np.floating[Any]] | None = cut_to_box(channel)
    count = 0
    if part is None:
        return channel, 0
    for _ in range(TURNS):
        away = [distances(*pair) for pair in zip(log_powers(part), seen.profiles, strict=True)]
        unusual = [np.abs(one) > seen.limit for one in away]
        excess = [float((one[bad] ** 2).sum()) for one, bad in zip(away, unusual, strict=True)]
        axis = int(np.argmax(excess))
        if not excess[axis]:
            break
        bad, mean = unusual[axis], part.mean(dtype=np.float64)
        gain = np.ones(1 + len(bad))
        gain[1:][bad] = sign * np.exp(np.clip(-away[axis][bad] / 2, -MOST, MOST))
        count, sign = count + int(bad.sum()), 1
        shape = [-1 if other == axis else 1 for other in range(3)]
        lines = np.fft.rfft(part.astype(np.float64) - mean, axis=axis) * gain.reshape(shape)
        part = np.fft.irfft(lines, part.shape[axis], axis=axis) + mean
    if not count:
        return channel, 0
    after = channel.astype(np.float32, copy=True)
    after[inside] = part
    return after, count


def candidates(volume: Volume, seen: Sequence[Usual]) -> list[tuple[Volume, int]]:
    """Scan and what is usual in its channels -> the same with unusual lines brought back, and with them
    turned over too, each with how many lines were changed; nothing where all are usual."""
    found = []
    for sign in (1, -1):
        data = volume.data.astype(np.float32)
        counts = 0
        for channel, one in zip(along_body(data, volume), seen, strict=True):
            channel[...], count = mended(channel.copy(), one, sign)
            counts += count
        if not counts:
            return []
        found.append((volume.with_data(data), counts))
    return found


# ---- Which look counts ----


def expected_overlap(probability: Array) -> float:
    """Probabilities (K, X, Y, Z) -> the largest Dice that a mask can be expected to have, if they are right.

    The mask with the largest expected Dice holds all voxels above some probability. They are sorted into
    `PARTS` parts, so all sums are of whole numbers; what is no number counts as 0 (Lipton et al., 2014,
    doi:10.1007/978-3-662-44851-9_15).
    """
    foreground = np.nan_to_num(probability.sum(axis=0, dtype=np.float32).ravel()) * np.float32(PARTS)
    counts = np.bincount(np.clip(foreground, 0, PARTS - 1).astype(np.int64), minlength=PARTS)
    voxels = np.cumsum(counts[::-1])
    shares = np.cumsum((counts * (2 * np.arange(PARTS) + 1))[::-1])  # in units of 1 / (2 PARTS)
    overlap: float = (2 * shares / np.maximum(2 * PARTS * voxels + shares[-1], 1)).max()
    return float(overlap)


def settle(
    volume: Volume,
    look: Callable[[Volume, bool], Seen],
    overlap_of: Callable[[Seen], float],
    usual: Sequence[Usual],
) -> tuple[Seen, Volume, int]:
    """Scan -> what is seen where the model is surest, the scan that it then sees, and how many of its lines
    were changed.

    Args:
        volume: The scan.
        look: Looks at a scan; told whether its overlap will be asked for.
        overlap_of: What was seen -> the overlap that its probabilities promise.
        usual: What is usual in each channel; nothing looks once.
    """
    found = candidates(volume, usual) if usual else []
    best, shown, lines = look(volume, bool(found)), volume, 0
    least = overlap_of(best) + GAIN if found else 0.0
    for other, count in found:
        again = look(other, True)
        if (overlap := overlap_of(again)) > least:
            best, shown, lines, least = again, other, count, overlap
    return best, shown, lines


def told_of(lines: int) -> str:
    """Number of lines that were changed -> the warning."""
    return (
        f"{lines} line(s) of k-space are stronger or weaker here than in training scans, as with ghosts or "
        "stripes; the scan was looked at with them brought back to the usual, which makes the model surer"
    )
