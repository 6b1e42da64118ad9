"""A second look: where a mask is smaller or larger than the organ ever was in training, the scan is resampled
to the usual size and looked at again.

A rule has seen organs of some sizes, told in cells. A scan whose header tells a wrong spacing, that was
resampled, or that shows a child, shows the organ at another; the mask is then worse, but mostly good enough
to tell by how much. The size along an axis is the standard deviation of the places of the foreground's
voxels, in mm. What is usual, and how far from it an organ may be, is measured on the training labels
(`usual`) and is part of the model (`PredictConfig.sizes`).

An axis along which the mask is cut off by an end of the scan is not small: there the organ goes on. The
second mask is taken where its own size, on the resampled scan, is more usual than that of the first, and so
on for up to `LOOKS` looks. Scans of usual organs are looked at once, so their masks stay the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mednca.slices import resize_matrix
from mednca.volume import Volume

#: Looks at a scan, at most.
LOOKS = 4
#: Least number of voxels of a mask that is judged.
VOXELS = 8
#: An end slice of the scan that holds more voxels than this share of the fullest slice cuts the organ off.
CUT = 0.5
#: The largest factor of an axis, and of the number of voxels of a scan.
LARGEST, GROWTH = 3.0, 8.0
#: What is added to the largest logarithm of a ratio in training, as a share of it: `MARGIN`, or 4 over the
#: number of cases where these are few. No ratio below `LEAST` is unusual.
MARGIN, LEAST = 0.1, 1.25

Array = NDArray[Any]
Seen = TypeVar("Seen")
#: Usual sizes (mm) along the RAS+ axes, and the ratio to each that is still usual, in either direction.
Sizes = tuple[float, ...]


def check_sizes(sizes: Sequence[float]) -> None:
    """Raise ValueError if they are not three sizes and three ratios above 1; nothing is yet to be
    measured."""
    if sizes and (len(sizes) != 6 or not min(sizes[:3]) > 0 or not min(sizes[3:]) > 1):
        raise ValueError(
            f"sizes must be three sizes (mm) and three ratios > 1, or nothing, got {tuple(sizes)}"
        )


def sizes_of(mask: Array, spacing: Sequence[float]) -> NDArray[np.float64] | None:
    """Mask (X, Y, Z) and spacing (mm) -> its size along each axis; None where it has too few voxels."""
    places = np.argwhere(mask)
    if len(places) < VOXELS:
        return None
    found: NDArray[np.float64] = np.sqrt(places.var(axis=0) + 1 / 12) * np.asarray(spacing, np.float64)
    return found


def usual(labels: Iterable[tuple[Array, Sequence[float]]]) -> Sizes | None:
    """Labels (X, Y, Z) of the training cases on RAS+ axes, with their spacings (mm) -> what is usual; None
    where no case has enough foreground."""
    found = [sizes for label, spacing in labels if (sizes := sizes_of(label != 0, spacing)) is not None]
    if not found:
        return None
    logs = np.log(found)
    middle = np.median(logs, axis=0)
    far = np.abs(logs - middle).max(axis=0) * (1 + max(MARGIN, 4 / len(logs)))
    ratios = np.maximum(np.exp(far), LEAST)
    return tuple(float(f"{value:.6g}") for value in (*np.exp(middle), *ratios))


def ratios_of(mask: Array, spacing: Sequence[float], sizes: Sizes) -> NDArray[np.float64] | None:
    """Mask (X, Y, Z) on RAS+ axes, spacing (mm) and what is usual -> its size over the usual one, along each
    axis; 1 where that cannot be told, as it is cut off. None where it has too few voxels."""
    found = sizes_of(mask, spacing)
    if found is None:
        return None
    ratios: NDArray[np.float64] = found / np.asarray(sizes[:3])
    for axis, length in enumerate(mask.shape):
        slices = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
        cut_off = max(slices[0], slices[-1]) > CUT * slices.max()
        if length == 1 or (cut_off and ratios[axis] < 1):
            ratios[axis] = 1
    return ratios


def strangeness(ratios: NDArray[np.float64], sizes: Sizes) -> float:
    """Ratios and what is usual -> the furthest axis: 1 is at the limit, 0 is the usual size."""
    return float((np.abs(np.log(ratios)) / np.log(sizes[3:])).max())


def factors(ratios: NDArray[np.float64], sizes: Sizes) -> tuple[float, ...] | None:
    """Ratios and what is usual -> by what each axis of the scan is to be stretched, 1 where it is usual; None
    where all are."""
    unusual = np.abs(np.log(ratios)) > np.log(sizes[3:])
    found = np.where(unusual, 1 / ratios, 1.0)
    return tuple(found.tolist()) if unusual.any() else None


def settle(
    volume: Volume,
    first: Seen,
    look: Callable[[Volume], Seen],
    mask_of: Callable[[Seen], tuple[Array, Sequence[float]]],
    sizes: Sizes,
) -> tuple[Seen, tuple[float, ...]]:
    """Scan and what was seen in it -> what is seen where its organ has the most usual size, and by what each
    axis of the scan was stretched for that, nothing where the first look counts.

    Args:
        volume: The scan.
        first: What was seen in it.
        look: Looks at a scan.
        mask_of: What was seen -> its mask (X, Y, Z) and spacing (mm) on RAS+ axes.
        sizes: What is usual.
    """
    order = io_orientation(volume.affine)[:, 0].astype(int)
    seen, stretch, ratios = first, np.ones(3), ratios_of(*mask_of(first), sizes)
    for _ in range(LOOKS - 1):
        by = None if ratios is None else factors(ratios, sizes)
        if ratios is None or by is None:
            break
        again = bearable(stretch * np.array(by)[order])
        if (again == stretch).all():
            break
        other = look(stretched(volume, again.tolist()))
        found = ratios_of(*mask_of(other), sizes)
        if found is None or strangeness(found, sizes) >= strangeness(ratios, sizes):
            break
        seen, stretch, ratios = other, again, found
    return seen, () if (stretch == 1).all() else tuple(stretch.tolist())


def bearable(by: NDArray[np.float64]) -> NDArray[np.float64]:
    """A factor for each axis of a scan -> the same, or nearer to 1 where that would be too much."""
    by = np.clip(by, 1 / LARGEST, LARGEST)
    more = np.prod(by[by > 1])
    if by.prod() > GROWTH:
        by = np.where(by > 1, by ** (np.log(GROWTH * more / by.prod()) / np.log(more)), by)
    return by


def stretched(volume: Volume, by: Sequence[float]) -> Volume:
    """Scan (M, X, Y, Z) and a factor for each of its axes -> resampled linearly to so many more voxels of the
    spacing that it had, float32."""
    shape = [max(min(2, n), round(n * factor)) for n, factor in zip(volume.shape, by, strict=True)]
    return Volume(resampled(volume.data, shape), volume.affine)


def resampled(data: Array, shape: Sequence[int]) -> NDArray[np.float32]:
    """Array (C, X, Y, Z) -> float32 (C, *shape), linearly; the ends of each axis stay where they are."""
    data = data.astype(np.float32)
    for axis, (old, new) in enumerate(zip(data.shape[1:], shape, strict=True), start=1):
        if old != new:
            weights = resize_matrix(old, new, "linear")
            data = np.moveaxis(np.tensordot(data, weights, axes=(axis, 1)), -1, axis)
    return np.ascontiguousarray(data, np.float32)
