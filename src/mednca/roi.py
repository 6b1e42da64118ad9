"""The region of interest (ROI): the part of a scan that a model looks at, where that is not all of it.

An organ that is small in its field of view, and always lies at about the same place, is found better by a
model that does not see the surroundings. A ROI names shares of the field of view along the RAS+ axes, x from
left to right, y from back to front, z from foot to head: (x from, x to, y from, y to, z from, z to), each
pair within 0 to 1. Voxels are counted from the least coordinate, borders rounded to the nearest voxel, halves
to the even one, as `mednca_roi` in C does; there is always at least one.

Outside of it there is background, in training, masks and probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mednca.volume import Volume

#: The six numbers.
Roi = tuple[float, ...]


def check_roi(roi: Sequence[float]) -> None:
    """Raise ValueError if it is not three pairs, each rising and within 0 to 1."""
    pairs = list(zip(roi[::2], roi[1::2], strict=False))
    if len(roi) != 6 or not all(0 <= low < high <= 1 for low, high in pairs):
        raise ValueError(f"roi must be three pairs of rising shares from 0 to 1, got {tuple(roi)}")


def borders(length: int, low: float, high: float) -> tuple[int, int]:
    """Voxels along an axis and the shares of a ROI -> the first voxel in it, and the first behind it."""
    first = min(round(low * length), length - 1)
    return first, max(first + 1, round(high * length))


def inside(volume: Volume, roi: Roi | None) -> tuple[slice, slice, slice]:
    """Volume and ROI -> where it lies along the volume's own axes."""
    if roi is None:
        return slice(None), slice(None), slice(None)
    found = []
    for length, (axis, direction) in zip(volume.shape, io_orientation(volume.affine), strict=True):
        first, behind = borders(length, *roi[2 * int(axis) : 2 * int(axis) + 2])
        found.append(slice(first, behind) if direction > 0 else slice(length - behind, length - first))
    return found[0], found[1], found[2]


def cut_out(volume: Volume, roi: Roi | None) -> Volume:
    """Volume -> the part of it in the ROI, where it was in the world."""
    if roi is None:
        return volume
    where = inside(volume, roi)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in where]
    return Volume(volume.data[(slice(None), *where)], affine)


def put_back(part: NDArray[Any], volume: Volume, roi: Roi | None) -> NDArray[Any]:
    """Array (C, x, y, z) on the part of a volume in the ROI -> (C, X, Y, Z) on all of it, zero outside."""
    if roi is None:
        return part
    whole = np.zeros((len(part), *volume.shape), part.dtype)
    whole[(slice(None), *inside(volume, roi))] = part
    return whole


def touches(mask: NDArray[Any], volume: Volume, roi: Roi | None) -> bool:
    """Mask (X, Y, Z) of a volume -> whether it reaches a border of the ROI that is not one of the scan."""
    if roi is None:
        return False
    where = inside(volume, roi)
    for axis, (part, length) in enumerate(zip(where, volume.shape, strict=True)):
        for edge, at_end in ((part.start, part.start == 0), (part.stop - 1, part.stop == length)):
            if not at_end and np.take(mask, edge, axis).any():
                return True
    return False
