"""Local normalisation: each voxel against what lies around it, so that a bias field, a coil's fading light or
another contrast changes little of what a model sees.

x is the intensity above the channel's 0.5 percentile, not below 0, as a share of the largest one. With the
mean m and the standard deviation s of a box around each voxel

    y = 1/2 + (x - m) / (6 sqrt(s^2 + (FLOOR m)^2 + LEAST^2)),   clipped to [0, 1]

(local contrast normalisation; Jarrett et al., ICCV 2009, doi:10.1109/ICCV.2009.5459469). The floor is a share
of the local mean, not of the range of the scan: where a field multiplies x, m and s by the same number, y
stays, however bright the brightest corner is. LEAST is far below what can be seen: without it, rounding alone
would decide where a part of the scan is a million times darker than another. Flat parts are 1/2.

The box is cut at the borders of the scan. All is in doubles, as in the C engine (runtime/c/local.h), which
makes the sums in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Least standard deviation that is blown up, as a share of the local mean.
FLOOR = 0.1
#: The same, as a share of the largest intensity.
LEAST = 1e-5
#: Standard deviations from black to white.
RANGE = 6.0
#: Half a voxel more than this is rounded up: a spacing whose last bit differs decides nothing.
TIE = 1e-6


def reach(window: float, spacing: Sequence[float], shape: Sequence[int]) -> tuple[int, ...]:
    """Side of the box and spacing (mm), and shape of the scan -> voxels that the box reaches to each side
    along each axis, no more than there are."""
    voxels = (min(window / (2 * step), size) for step, size in zip(spacing, shape, strict=True))
    return tuple(math.floor(count + 0.5 - TIE) for count in voxels)


def normalised(channel: NDArray[np.float32], reaches: Sequence[int]) -> NDArray[np.float32]:
    """Channel of a scan (X, Y, Z), any real numbers, and the reach of the box along each axis -> float32 in
    [0, 1]."""
    (low,) = np.percentile(channel, (0.5,))  # a double, as in C
    x = np.maximum(channel.astype(np.float64) - low, 0)
    x /= x.max() or 1
    count, first, second = np.ones(x.shape), x, x * x
    for axis, length in enumerate(reaches):
        count, first, second = (box_sums(part, axis, length) for part in (count, first, second))
    mean = first / count
    variance = np.maximum(second / count - mean * mean, 0)
    spread = np.sqrt(variance + (FLOOR * mean) ** 2 + LEAST**2)
    found: NDArray[np.float32] = np.clip(0.5 + (x - mean) / (RANGE * spread), 0, 1).astype(np.float32)
    return found


def box_sums(values: NDArray[np.float64], axis: int, length: int) -> NDArray[np.float64]:
    """Values, an axis and a reach -> sums over as many neighbours on each side along it, fewer at the
    ends."""
    size = values.shape[axis]
    sums = np.concatenate([np.zeros_like(np.take(values, [0], axis)), np.cumsum(values, axis)], axis)
    places = np.arange(size)
    behind, before = np.minimum(places + length + 1, size), np.maximum(places - length, 0)
    inside: NDArray[np.float64] = np.take(sums, behind, axis) - np.take(sums, before, axis)
    return inside
