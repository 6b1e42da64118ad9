"""The bias field: a smooth factor on a scan's intensities, as a coil makes it, is brought back to what is
usual.

The logarithm of the positive intensities is fitted by a polynomial in x, y and z of total degree `DEGREE`,
its *shading*. Anatomy has one too, and a model learns from it; so what is usual is measured on the training
scans (`usual`): the median shading, and how far from it theirs are. A scan whose shading is no farther
(`limit`) is left as it is, to the bit. That of any other is replaced: wholly from `LIMIT_ENDS` times the
limit on, in part between. A field whose logarithm is such a polynomial, and that is strong enough, is thus
not seen at all. (Polynomials on the logarithm are an old way; Meyer et al., IEEE TMI 14(3), 1995,
doi:10.1109/42.414608.)

What is not positive is no part of the fit, and neither is fill: the least intensity, where more than a `FILL`
of all voxels have it, as around a scan that was moved or widened. Places are told within the box of the
others.

The fit goes over a grid of at most `ACROSS` voxels along each axis. It is repeated with weights that fall
with the distance from the fit before (Cauchy's), so that voxels that are darker by orders of magnitude have
little say where they are few or scattered; a large dark part that is not 0 bends the fit. As these distances
do not change with a field either, nor do the weights.

All is in doubles, as in the C engine (runtime/c/field.h), whose logarithm and exponential are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.polynomial.polynomial import polygrid3d
from numpy.typing import NDArray

#: Of the polynomial, in x, y and z together. TorchIO's random fields have order 3.
DEGREE = 3
#: Most voxels along an axis that the fit looks at.
ACROSS = 24
#: Fits; each weighs the voxels by the one before.
ROUNDS = 4
#: Distance from the fit, of natural logarithms, at which a voxel counts half.
WIDTH = 0.5
#: What is added to the diagonal of the normal equations, as a share of its mean: they can always be solved.
RIDGE = 1e-9
#: Least number of positive voxels in the grid for each coefficient; where there are fewer, nothing is done.
ENOUGH = 4
#: Share of the voxels, and number of them, above which those of the least intensity are fill.
FILL, SOME = 0.01, 8
#: The change is kept within this on either side: far from the voxels that it was made of it may be anything.
FURTHEST = 500.0
#: The limit, over the distance that this share of the training scans keeps; and where it ends, over itself.
LIMIT, SHARE, LIMIT_ENDS = 1.25, 0.99, 1.25
#: Exponents of x, y and z of the terms of a shading, in the order of `Usual.terms`. The constant is none.
TERMS = tuple(p for p in product(range(DEGREE + 1), repeat=3) if 0 < sum(p) <= DEGREE)

Doubles = NDArray[np.float64]


class Usual(NamedTuple):
    """Of a channel: the largest distance from the usual shading at which a scan is left as it is, and the
    coefficients of that shading, of `TERMS`. Numbers of `PreprocessConfig.field`, in this order."""

    limit: float
    terms: tuple[float, ...]

    @property
    def numbers(self) -> tuple[float, ...]:
        """As they stand in `PreprocessConfig.field`."""
        return (self.limit, *self.terms)


#: Every scan is made flat.
FLAT = Usual(0.0, (0.0,) * len(TERMS))


def of_channels(numbers: Sequence[float], channels: int) -> list[Usual]:
    """`PreprocessConfig.field` -> what is usual in each channel.

    Raises:
        ValueError: If they are not as many as they must be, or a limit is negative.
    """
    each = 1 + len(TERMS)
    if len(numbers) != channels * each:
        raise ValueError(
            f"field must be {channels * each} numbers, {each} for each channel, got {len(numbers)}"
        )
    found = [Usual(numbers[i], tuple(numbers[i + 1 : i + each])) for i in range(0, len(numbers), each)]
    if any(not 0 <= one.limit < np.inf for one in found):
        raise ValueError(f"field must have limits >= 0, got {[one.limit for one in found]}")
    return found


def usual(channel: Iterable[NDArray[np.float32]]) -> Usual | None:
    """One channel of each training scan (X, Y, Z), finite -> what is usual in it; None where no scan has
    enough positive voxels to tell."""
    fits = []
    for image in channel:
        left = without_fill(image)
        if (fit := fitted(left[box(left)])) is not None:
            fits.append(fit)
    if not fits:
        return None
    terms = np.array([[fit[term] for term in TERMS] for fit in fits])
    median = np.median(terms, axis=0)
    far = np.quantile([distance(row - median) for row in terms], SHARE)
    return Usual(float(f"{LIMIT * far:.6g}"), tuple(float(f"{value:.6g}") for value in median))


def distance(terms: Doubles) -> float:
    """Difference of two shadings, by its coefficients of `TERMS` -> how strong it is: the standard deviation
    over the box of the scan."""
    return float(np.sqrt(np.maximum(terms @ COVARIANCE @ terms, 0.0)))


def _means(powers: NDArray[np.int64]) -> Doubles:
    """Exponents (..., 3) -> means of the terms (...) over the cube from -1 to 1."""
    means: Doubles = np.where(powers % 2, 0.0, 1 / (powers + 1)).prod(axis=-1)
    return means


_POWERS = np.array(TERMS)
#: Of the terms, over the cube.
COVARIANCE = _means(_POWERS[:, None] + _POWERS) - np.outer(_means(_POWERS), _means(_POWERS))


def powers(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Shape of the grid -> exponents of x, y and z of each term; an axis of n voxels has powers below n."""
    x, y, z = (range(min(DEGREE, size - 1) + 1) for size in shape)
    return [(i, j, k) for i in x for j in y for k in z if i + j + k <= DEGREE]


def grid(size: int) -> slice:
    """Voxels along an axis -> those that the fit looks at."""
    step = -(-size // ACROSS)
    return slice(step // 2, None, step)


def places(size: int) -> Doubles:
    """Voxels along an axis -> where they lie, from -1 to 1; a single one at 0."""
    return (2 * np.arange(size, dtype=np.float64) - (size - 1)) / max(size - 1, 1)


def without_fill(channel: NDArray[np.float32]) -> Doubles:
    """Channel of a scan, finite -> the same, 0 where it is fill or not positive."""
    least = channel.min()
    black = least if (channel == least).sum() > max(FILL * channel.size, SOME) else 0
    return np.where(channel > max(black, 0), channel, 0).astype(np.float64)


def box(channel: Doubles) -> tuple[slice, ...]:
    """Channel without fill -> the least box that holds all its positive voxels; everything where there are
    none."""
    found = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        there = np.flatnonzero((channel > 0).any(axis=others))
        found.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(None))
    return tuple(found)


def fitted(channel: Doubles) -> Doubles | None:
    """Channel without fill, cut to its box (X, Y, Z) -> coefficients (4, 4, 4) of the logarithm of its
    shading, by the powers of x, y and z; None where there are too few positive voxels to tell."""
    chosen = [grid(size) for size in channel.shape]
    seen = channel[tuple(chosen)]
    terms, inside = powers(seen.shape), seen > 0
    if inside.sum() < ENOUGH * len(terms):
        return None
    along = [places(size)[part] for size, part in zip(channel.shape, chosen, strict=True)]
    x, y, z = (place[inside] for place in np.meshgrid(*along, indexing="ij"))
    design = np.stack([x**i * y**j * z**k for i, j, k in terms], axis=1)
    logs = np.log(seen[inside])
    weights = np.ones(len(logs))
    for _ in range(ROUNDS):
        normal = design.T @ (design * weights[:, None])
        normal += RIDGE * np.trace(normal) / len(terms) * np.eye(len(terms))
        found = np.linalg.solve(normal, design.T @ (weights * logs))
        weights = 1 / (1 + ((logs - design @ found) / WIDTH) ** 2)
    coefficients = np.zeros((DEGREE + 1,) * 3)
    coefficients[tuple(np.transpose(terms))] = found
    return coefficients


def shaded_as_usual(channel: NDArray[np.float32], seen: Usual = FLAT) -> NDArray[np.float32]:
    """Channel of a scan (X, Y, Z), finite, and what is usual -> the same, float32, with no shading beyond the
    limit.

    Where it is changed, fill and what is not positive is 0, and the mean of the logarithms is that of the
    usual shading.
    """
    left = without_fill(channel)
    inside = box(left)
    fit = fitted(left[inside])
    if fit is None:
        return channel.astype(np.float32, copy=False) if seen.limit else left.astype(np.float32)
    change = np.zeros_like(fit)
    for term, value in zip(TERMS, seen.terms, strict=True):
        change[term] = value - fit[term]
    far = distance(np.array([change[term] for term in TERMS]))
    if far <= seen.limit and seen.limit:
        return channel.astype(np.float32, copy=False)
    ends = (LIMIT_ENDS - 1) * seen.limit
    change *= min(1.0, (far - seen.limit) / ends) if ends else 1.0
    change[0, 0, 0] = -fit[0, 0, 0]
    x, y, z = (places(size) for size in left[inside].shape)
    left[inside] *= np.exp(np.clip(polygrid3d(x, y, z, change), -FURTHEST, FURTHEST))
    return np.minimum(left, np.finfo(np.float32).max).astype(np.float32)
