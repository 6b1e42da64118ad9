"""Scans of coarse voxels are drawn on between their slices, along what moves from one to the next.

A model has seen scans of one spacing. Where the voxels of a scan are much longer along an axis, it would see
the organ jump from slice to slice; where such a scan was interpolated to finer voxels, it sees each slice
fade into the next. Neither is what an organ looks like. So between two slices A and B the scan is, at the
share t of the way,

    (1 - t) A(p - t v) + t B(p + (1 - t) v)

where v(p) is the movement from A to B of what is seen at p halfway, estimated from both slices alike, by
least squares over windows that become smaller (`movement`). So Lucas and Kanade (IJCAI 1981) found movements,
and to draw slices on along them is known to serve better than to fade (Penney et al., IEEE Transactions on
Medical Imaging 23(7), 2004, doi:10.1109/TMI.2004.828352). Nothing is learnt for it.

How far apart slices may be, the training scans say (`usual`): along each axis of the body, the longest way
from one slice to the next in any of them. It is part of the model (`PredictConfig.coarse`). A scan whose
slices are at least `LEAST` times as far apart is drawn on to that distance, and its mask brought back to its
own grid. Where the header does not say it, a channel is drawn on, on its own grid, that runs straight between
lines so far apart, as linear interpolation leaves it. Any other scan stays as it is, to the bit.

Shapes: K slices of H x W pixels. Axes of the body are as close to RAS+ as those of a scan can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mednca.volume import Volume, along_body, spacing_of_body

#: Slices so many times as far apart as in training are coarse; with more, nothing could be drawn between.
LEAST, MOST = 1.9, 16.0
#: Least number of slices of a scan that is drawn on; of bends that tell that one was interpolated.
SLICES, BENDS = 2, 4
#: A line of an interpolated channel is bent where its second difference is more than this share of the
#: largest one.
BENT = 0.1
#: A slice may lie beyond an end of the scan by this share of the way to the next one.
BEYOND = 0.75
#: A channel runs straight between slices where all that does not is at most this share of its standard
#: deviation.
STRAIGHT = 0.01
#: Pixels to each side of the windows in which movements are estimated, one after the other.
WINDOWS = (8, 8, 6, 6, 4, 4, 4, 4)
#: What is added to the squares of gradients, as a share of their mean.
RIDGE = 0.01
#: The largest movement along rows or columns, in pixels.
FURTHEST = 8.0

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]
#: The longest way (mm) from slice to slice in training, along each axis of the body.
Ways = tuple[float, ...]


class Drawn(NamedTuple):
    """A scan as a model is to see it.

    Attributes:
        volume: The scan, drawn on where it is coarse.
        axis: The axis of the scan, of its data, along which there are more voxels now; None where its grid is
            the same.
        slices: Slices that were drawn on between; 0 where it is as it was.
    """

    volume: Volume
    axis: int | None
    slices: int


def check_ways(ways: Sequence[float]) -> None:
    """Raise ValueError if they are not three distances above 0; nothing is yet to be measured."""
    if ways and (len(ways) != 3 or not all(0 < way < np.inf for way in ways)):
        raise ValueError(f"coarse must be three distances of slices (mm), or nothing, got {tuple(ways)}")


def usual(volumes: Iterable[Volume]) -> Ways:
    """Training scans, finite -> the longest way (mm) from slice to slice along each axis of the body."""
    longest = np.zeros(3)
    for volume in volumes:
        for channel in along_body(volume.data.astype(np.float32), volume):
            steps = [1.0 if lines is None else lines.step for lines in interpolated(channel)]
            longest = np.maximum(longest, np.array(steps) * spacing_of_body(volume))
    return tuple(float(f"{way:.6g}") for way in longest)


def drawn(volume: Volume, ways: Ways | None) -> Drawn:
    """Scan (C, X, Y, Z), finite, and the longest ways in training (mm) -> the scan as a model is to see it;
    as it is where no ways are known."""
    if not ways:
        return Drawn(volume, None, 0)
    times = np.array(spacing_of_body(volume)) / ways
    enough = np.array(along_body(volume.data, volume).shape[1:]) >= SLICES
    bearable = np.where(enough & (times <= MOST), times, 0)
    place = int(np.argmax(bearable))
    if bearable[place] >= LEAST:
        axis = io_orientation(volume.affine)[:, 0].astype(int).tolist().index(place)
        return Drawn(finer(volume, axis, float(times[place])), axis, volume.shape[axis])
    data, slices = volume.data.astype(np.float32), 0
    for channel in along_body(data, volume):
        found = [lines for lines in interpolated(channel) if lines]
        found = [lines for lines in found if LEAST <= lines.step * times[lines.axis] <= MOST]
        if found:
            coarsest = max(found, key=lambda lines: lines.step * times[lines.axis])
            slices = max(slices, coarsest.within(channel.shape[coarsest.axis]))
            channel[...] = drawn_again(channel, coarsest)
    return Drawn(volume.with_data(data) if slices else volume, None, slices)


# ---- Coarse by its header ----


def finer(volume: Volume, axis: int, many: float) -> Volume:
    """Scan, an axis, and by how many voxels to replace each along it -> the scan drawn on, float32: the same
    field of view, with the nearest whole number of voxels."""
    length = volume.shape[axis]
    count = max(2, round(length * many))
    at = (np.arange(count, dtype=np.float64) - (count / length - 1) / 2) / (count / length)
    data = [
        np.moveaxis(drawn_on(np.moveaxis(channel, axis, 0).astype(np.float32), at), 0, axis)
        for channel in volume.data
    ]
    affine = volume.affine.copy()
    affine[:3, axis] *= length / count
    affine[:3, 3] += (affine[:3, axis] - volume.affine[:3, axis]) / 2
    return Volume(np.stack(data), affine)


def brought_back(data: NDArray[np.float32], axis: int, length: int) -> Array:
    """Array (C, X, Y, Z) on the finer grid, the axis and the length that it had -> float32 on the grid of the
    scan: what is at the middle of each slice."""
    at = (np.arange(length) + 0.5) * (data.shape[axis + 1] / length) - 0.5
    below = at.astype(int)
    above = np.minimum(below + 1, data.shape[axis + 1] - 1)
    share = (at - below).astype(np.float32).reshape([-1 if other == axis + 1 else 1 for other in range(4)])
    lower, upper = np.take(data, below, axis=axis + 1), np.take(data, above, axis=axis + 1)
    return np.ascontiguousarray(lower + share * (upper - lower))


# ---- Coarse before it was interpolated ----


class Lines(NamedTuple):
    """Where a channel had its slices before it was interpolated.

    Attributes:
        axis: Along which.
        places: float64 (K,), in voxels, at even distances.
    """

    axis: int
    places: Doubles

    @property
    def step(self) -> float:
        """Voxels from one to the next."""
        return float(self.places[1] - self.places[0])

    def within(self, count: int) -> int:
        """How many of them lie within so many voxels."""
        return int(np.sum((self.places > -0.5) & (self.places < count - 0.5)))


def interpolated(channel: Array) -> list[Lines | None]:
    """Channel (X, Y, Z), finite -> for each axis where its slices were; None where it was not interpolated
    linearly along it."""
    found: list[Lines | None] = []
    for axis in range(3):
        lines = np.moveaxis(channel, axis, 0)
        places = evenly(bends(lines))
        found.append(Lines(axis, places) if places is not None and is_straight(lines, places) else None)
    return found


def bends(lines: NDArray[np.floating[Any]]) -> Doubles:
    """Lines (N, H, W) -> mean absolute second difference at each of the N; 0 at the ends."""
    found = np.zeros(len(lines))
    for i in range(1, len(lines) - 1):
        before, here, after = (lines[i + k].astype(np.float64) for k in (-1, 0, 1))
        found[i] = np.abs(before - 2 * here + after).mean()
    return found


def evenly(bend: Doubles) -> Doubles | None:
    """Second differences (N,) -> the places at even distances where lines are bent, from end to end; None
    where there are too few, or lines are bent elsewhere.

    A bend between two voxels is seen at both. Those next to the ends of the scan may be seen in part, so the
    others tell where all are; a weak one may be missing. A slice may lie a little beyond an end (`BEYOND`).
    """
    count, bent = len(bend), bend > BENT * bend.max(initial=0.0)
    places, i = [], 1
    while i < count - 1:
        if not bent[i]:
            i += 1
            continue
        end = i + 1
        while bent[end]:  # the last one is not
            end += 1
        if end - i > 2:
            return None
        weights = bend[i - 1 : end + 1]
        places.append(float((weights * np.arange(i - 1, end + 1)).sum() / weights.sum()))
        i = end
    if len(places) < BENDS:
        return None
    inner = np.array(places[1:-1])
    way = inner[-1] - inner[0]
    step = way / np.rint(way / np.diff(inner).min())
    first = inner[0] - step * np.floor(inner[0] / step + BEYOND)
    return np.asarray(first + step * np.arange(int((count - 1 - first) / step + BEYOND) + 1), np.float64)


def shares(places: Doubles, count: int) -> Doubles:
    """Places of slices (K,) and a number of voxels N -> (N, K): what each voxel has of each slice; nothing
    where it lies beyond the first or the last."""
    at = np.arange(count)[:, None]
    found: Doubles = np.clip(1 - np.abs(at - places) / (places[1] - places[0]), 0, 1)
    return np.where((at >= places[0]) & (at <= places[-1]), found, 0)


def taken(lines: NDArray[np.floating[Any]], places: Doubles) -> Array:
    """Lines (N, H, W) and the places of slices -> the slices float32 (K, H, W) of which the lines between
    them were interpolated, by least squares."""
    of = shares(places, len(lines))
    back = np.linalg.solve(of.T @ of, of.T)
    most = np.finfo(np.float32).max
    found = [np.clip(np.tensordot(row, lines, axes=1), -most, most) for row in back]
    return np.stack(found).astype(np.float32)


def is_straight(lines: NDArray[np.floating[Any]], places: Doubles) -> bool:
    """Lines (N, H, W) and the places of slices -> whether they run straight between them."""
    slices, apart, count = taken(lines, places), 0.0, 0
    for row, line in zip(shares(places, len(lines)), lines, strict=True):
        if row.any():
            apart += float(((np.tensordot(row, slices, axes=1) - line) ** 2).sum())
            count += line.size
    return apart <= STRAIGHT**2 * count * float(lines.var(dtype=np.float64))


def drawn_again(channel: Array, lines: Lines) -> Array:
    """Channel (X, Y, Z) that was interpolated, and where its slices were -> drawn on between them."""
    along = np.moveaxis(channel, lines.axis, 0)
    at = (np.arange(len(along)) - lines.places[0]) / lines.step
    return np.moveaxis(drawn_on(taken(along, lines.places), at), 0, lines.axis)


# ---- Between two slices ----


def drawn_on(slices: Array, at: Doubles) -> Array:
    """Slices (K, H, W), finite, and places (N,), in slices, rising -> float32 (N, H, W). Beyond the first and
    the last slice it is these."""
    found = np.empty((len(at), *slices.shape[1:]), np.float32)
    known, by = -1, np.zeros(0)
    for i, place in enumerate(np.clip(at, 0, len(slices) - 1)):
        k = min(int(place), len(slices) - 2)
        if (t := place - k) in (0, 1):
            found[i] = slices[k + int(t)]
            continue
        first, second = slices[k].astype(np.float64), slices[k + 1].astype(np.float64)
        if k != known:
            known, by = k, movement(first, second)
        found[i] = (1 - t) * moved(first, -t * by) + t * moved(second, (1 - t) * by)
    return found


def movement(first: Doubles, second: Doubles) -> Doubles:
    """Two slices (H, W) -> (2, H, W): how many rows and columns what is seen halfway moves from one to the
    other."""
    by = np.zeros((2, *first.shape))
    for window in WINDOWS:
        before, after = moved(first, -by / 2), moved(second, by / 2)
        (down, right), left = gradient((before + after) / 2), after - before
        products = (down * down, right * right, down * right, down * left, right * left)
        dd, rr, dr, dl, rl = (windowed(product, window) for product in products)
        ridge = RIDGE * (dd.mean() + rr.mean())
        if not ridge * ridge > 0:
            break
        dd, rr = dd + ridge, rr + ridge
        by -= np.stack([rr * dl - dr * rl, dd * rl - dr * dl]) / (dd * rr - dr * dr)
        by = np.clip(by, -FURTHEST, FURTHEST)
    return by


def moved(image: Doubles, by: Doubles) -> Doubles:
    """Image (H, W) and distances (2, H, W) -> what is so far from each pixel, linearly, the edge repeated."""
    height, width = image.shape
    rows = np.clip(np.arange(height)[:, None] + by[0], 0, height - 1)
    columns = np.clip(np.arange(width) + by[1], 0, width - 1)
    top, left = rows.astype(int), columns.astype(int)
    below, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    rows, columns = rows - top, columns - left
    upper = image[top, left] + columns * (image[top, beside] - image[top, left])
    lower = image[below, left] + columns * (image[below, beside] - image[below, left])
    found: Doubles = upper + rows * (lower - upper)
    return found


def gradient(image: Doubles) -> tuple[Doubles, Doubles]:
    """Image (H, W) -> half the difference of the neighbours below and above, and right and left."""
    edged = np.pad(image, 1, mode="edge")
    return (edged[2:, 1:-1] - edged[:-2, 1:-1]) / 2, (edged[1:-1, 2:] - edged[1:-1, :-2]) / 2


def windowed(image: Doubles, window: int) -> Doubles:
    """Image (H, W) -> sums over windows of so many pixels to each side, the edge repeated."""
    for _ in range(2):
        sums = np.cumsum(np.pad(image, ((window + 1, window), (0, 0)), mode="edge"), axis=0)
        image = (sums[2 * window + 1 :] - sums[: -2 * window - 1]).T
    return image


# ---- For people ----


def told_of(found: Drawn, volume: Volume) -> str:
    """A scan that was drawn on, and as it was -> the warning."""
    if found.axis is None:
        return (
            f"the scan was interpolated from {found.slices} slices; it was drawn on between them along what "
            "moves, as it does not show what lies there"
        )
    return (
        f"the {found.slices} slices are {volume.spacing[found.axis]:.3g} mm apart, which is coarse for this "
        "model; the scan was drawn on between them along what moves, as it does not show what lies there"
    )
