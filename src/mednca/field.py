"""The bias field: a smooth factor on a scan's intensities, as a coil makes it, is estimated and taken out.

The logarithm of the positive intensities is fitted by a polynomial in x, y and z of total degree `DEGREE`,
and the scan is divided by its exponential. A field whose logarithm is such a polynomial only adds to the fit:
the scan with it and the scan without it come out the same, however strong it is. (Polynomials on the
logarithm are an old way; Meyer et al., IEEE TMI 14(3), 1995, doi:10.1109/42.414608. What is new here is only
that nothing is segmented: a model that always sees what is left needs no true field, only always the same
one.)

What is not positive is no part of the fit, and neither is fill: the least intensity, where more than a `FILL`
of all voxels have it, as around a scan that was moved or widened.

The fit goes over a grid of at most `ACROSS` voxels along each axis. It is repeated with weights that fall
with the distance from the fit before (Cauchy's), so that voxels that are darker by orders of magnitude have
little say where they are few or scattered; a large dark part that is not 0 bends the fit. As these distances
do not change with a field either, nor do the weights.

All is in doubles, as in the C engine (runtime/c/field.h), whose logarithm and exponential are its own.
"""

from __future__ import annotations

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
#: The fit is kept within this on either side: far from the voxels that it was made of it may be anything.
FURTHEST = 500.0

Doubles = NDArray[np.float64]


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


def fitted(channel: Doubles) -> Doubles | None:
    """Channel of a scan (X, Y, Z) -> coefficients (4, 4, 4) of the logarithm of its field, by the powers of
    x, y and z; None where there are too few positive voxels to tell."""
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


def removed(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Channel of a scan (X, Y, Z), finite -> the same without its field, float32; fill and what is not
    positive is 0.

    The field is the exponential of the fit, so what is left lies around 1.
    """
    left = without_fill(channel)
    coefficients = fitted(left)
    if coefficients is not None:
        x, y, z = (places(size) for size in channel.shape)
        fit = polygrid3d(x, y, z, coefficients)
        left /= np.exp(np.clip(fit, -FURTHEST, FURTHEST))
    return np.minimum(left, np.finfo(np.float32).max).astype(np.float32)
