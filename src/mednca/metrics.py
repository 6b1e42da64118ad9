"""How well a mask agrees with a label: overlap, distance between the surfaces, volume.

Functions over arrays; no files, no torch. A mask (prediction) and a label (reference) are arrays of one
shape, (X, Y, Z) or (X, Y), of bool or an integer type, in which **non-zero is foreground**. Spacing is in mm,
one number per axis. The two may be swapped everywhere but in `volume_error`.

What an empty mask or label gives:

| | both empty | one empty |
|---|---|---|
| Dice, IoU, soft Dice, NSD | 1 | 0 |
| HD95, ASSD | 0 mm | nan (there is no distance; counted as missing in a summary) |
| volume error | 0 | -1 if the mask is empty, nan if the label is |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mednca.errors import InputError

Mask = npt.NDArray[np.bool_]


class SurfaceScores(NamedTuple):
    """Two distances in mm (lower is better), and the share of surface within tolerance (higher is better)."""

    hd95_mm: float
    assd_mm: float
    nsd_score: float


def _foreground(name: str, array: npt.ArrayLike) -> Mask:
    """An array of bool or integers -> its non-zero voxels."""
    values = np.asarray(array)
    # A probability would pass as a mask in which nearly every voxel is foreground, and score a plausible
    # number.
    if values.dtype.kind not in "biu":
        raise TypeError(f"{name} must be of bool or an integer type, not {values.dtype}; threshold it first")
    if values.ndim not in (2, 3):
        raise ValueError(f"{name} must have the axes (X, Y, Z) or (X, Y), not shape {values.shape}")
    foreground: Mask = values != 0
    return foreground


def _pair(mask: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Mask, Mask]:
    ours, theirs = _foreground("mask", mask), _foreground("label", label)
    if ours.shape != theirs.shape:
        raise ValueError(f"mask and label must have one shape, not {ours.shape} and {theirs.shape}")
    return ours, theirs


def _check_spacing(spacing: Sequence[float], axes: int) -> None:
    if len(spacing) != axes or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing must be {axes} positive, finite numbers (mm), not {tuple(spacing)}")


def dice_score(mask: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Mask and label -> Dice, 2 |M and L| / (|M| + |L|), in [0, 1]. Both empty: 1; one empty: 0.

    Raises:
        TypeError: An array is neither bool nor integer.
        ValueError: The shapes differ, or have not two or three axes.
    """
    ours, theirs = _pair(mask, label)
    total = np.count_nonzero(ours) + np.count_nonzero(theirs)
    return 2 * np.count_nonzero(ours & theirs) / total if total else 1.0


def iou_score(mask: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Mask and label -> intersection over union (Jaccard), in [0, 1]; Dice / (2 - Dice). Both empty: 1.

    Raises:
        TypeError: An array is neither bool nor integer.
        ValueError: The shapes differ, or have not two or three axes.
    """
    ours, theirs = _pair(mask, label)
    union = np.count_nonzero(ours | theirs)
    return np.count_nonzero(ours & theirs) / union if union else 1.0


def soft_dice_score(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Probability in [0, 1] and label of one shape -> soft Dice, 2 sum(p t) / (sum p + sum t), no threshold.

    The "Dice" of the paper's Table 1 is this, over sigmoid probabilities of a volume, on the resized grid and
    with a smoothing of 0 (the authors' code; the paper does not say). It rewards certainty: of the authors'
    model it is 0.01 below `dice_score`, so the two must not be compared. All p zero and an empty label: 1.
    The authors leave volumes without foreground out.

    Raises:
        TypeError: The label is neither bool nor integer.
        ValueError: The shapes differ, or a probability is not in [0, 1].
    """
    chance, truth = np.asarray(probability, dtype=np.float64), _foreground("label", label)
    if chance.shape != truth.shape:
        raise ValueError(f"probability and label must have one shape, not {chance.shape} and {truth.shape}")
    if not np.all((chance >= 0) & (chance <= 1)):  # also refuses nan
        raise ValueError("probability must be in [0, 1] everywhere; are these logits, or not finite?")
    total = float(chance.sum()) + np.count_nonzero(truth)
    return 2 * float(chance[truth].sum()) / total if total else 1.0


def surfaces_available() -> bool:
    """Whether `surface_scores` has the libraries that it needs: those of the extra `train`."""
    try:
        import surface_distance  # noqa: F401 - and with it SciPy
    except ImportError:
        return False
    return True


def surface_scores(
    mask: npt.ArrayLike, label: npt.ArrayLike, spacing: Sequence[float], tolerance_mm: float
) -> SurfaceScores:
    """Mask, label, spacing (mm per axis) and tolerance (mm) -> HD95, ASSD and NSD of the two surfaces.

    Surfaces are those of `surface-distance-based-measures`: elements (marching cubes; in 2-D marching
    squares) at the corners between voxels, each with an area a (mm²; in 2-D a length, mm) and a distance d to
    the nearest element of the other surface. A surface is closed where the object meets the edge of the
    image. With M and L the elements of mask and label:

    - HD95 = max(P95(d over M), P95(d over L)), the percentile of each direction weighted by area;
    - ASSD = (sum over M of a d + sum over L of a d) / (sum over M of a + sum over L of a);
    - NSD = (area of M with d <= tolerance + area of L with d <= tolerance) / (area of M + area of L), with
      the
      tolerance enlarged by 1e-5 of itself against rounding in the spacing.

    An image of one slice has no surface but a contour: the last axis of length 1 is dropped with its spacing,
    which is often meaningless, and the 2-D measures are taken. Both empty: 0 mm, 0 mm, 1; one empty: nan,
    nan, 0.

    Source: Nikolov et al., 2021, doi:10.2196/26151 (NSD and the areas).

    Raises:
        InputError: The extra `train` is not installed.
        TypeError: An array is neither bool nor integer.
        ValueError: Shapes differ; spacing is not positive and finite, one per axis; tolerance is negative or
            nan.
    """
    ours, theirs = _pair(mask, label)
    steps = tuple(float(step) for step in spacing)
    if len(steps) != ours.ndim:
        raise ValueError(f"spacing must have {ours.ndim} numbers (mm), one per axis, not {steps}")
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm must be 0 or more, not {tolerance_mm}")
    if ours.ndim == 3 and 1 in ours.shape:
        flat = max(axis for axis in range(3) if ours.shape[axis] == 1)
        ours, theirs = np.squeeze(ours, axis=flat), np.squeeze(theirs, axis=flat)
        steps = steps[:flat] + steps[flat + 1 :]
    _check_spacing(steps, ours.ndim)
    if not ours.any() and not theirs.any():
        return SurfaceScores(0.0, 0.0, 1.0)
    if not ours.any() or not theirs.any():
        return SurfaceScores(math.nan, math.nan, 0.0)

    # The library's own `compute_surface_distances` needs np.bool (absent from NumPy 1.24 to 1.26) and SciPy
    # namespaces that warn and go in SciPy 2; its area tables and its reductions work everywhere, so we take
    # those.
    try:
        from surface_distance import compute_robust_hausdorff, compute_surface_dice_at_tolerance
    except ImportError as error:
        message = "surface distances need surface-distance-based-measures: pip install 'mednca[train]'"
        raise InputError(message) from error
    elements = _surface_elements(ours, theirs, steps)
    # An affine of float32 gives a spacing of 1.00000003 mm for 1 mm; such a step must be within 1 mm.
    within = tolerance_mm * (1 + 1e-5)
    areas = np.concatenate([elements["surfel_areas_pred"], elements["surfel_areas_gt"]])
    distances = np.concatenate([elements["distances_pred_to_gt"], elements["distances_gt_to_pred"]])
    return SurfaceScores(
        # Just below 95: of 20 equal elements the 19th, whichever way the sum of their areas is rounded.
        hd95_mm=float(compute_robust_hausdorff(elements, 95 - 1e-6)),
        assd_mm=float(np.sum(areas * distances) / np.sum(areas)),
        nsd_score=float(compute_surface_dice_at_tolerance(elements, within)),
    )


def _surface_elements(ours: Mask, theirs: Mask, spacing: tuple[float, ...]) -> dict[str, Any]:
    """Two masks, neither empty -> distance (mm) and area of each surface element, sorted by distance.

    The result has the keys and the values of the library's `compute_surface_distances`; a test holds the two
    together.
    """
    from scipy.ndimage import correlate, distance_transform_edt, find_objects
    from surface_distance import lookup_tables

    if len(spacing) == 2:
        kernel: Any = lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL
        area_of_code: Any = lookup_tables.create_table_neighbour_code_to_contour_length(spacing)
    else:
        kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
        area_of_code = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    # Elements and their nearest neighbours all lie in the joint bounding box, so nothing is lost by the cut.
    (box,) = find_objects((ours | theirs).astype(np.uint8))

    codes: list[Any] = []
    borders: list[Any] = []
    for foreground in (theirs, ours):
        # One voxel of background at the end of each axis, and `constant` before its start: 2x2x2 neighbours
        # at all corners. The code of a corner has one bit per neighbour; 0 is all outside, the kernel's sum
        # all inside.
        padded = np.pad(foreground[box], (0, 1)).astype(np.uint8)
        code = correlate(padded, kernel, mode="constant", cval=0)
        codes.append(code)
        borders.append((code != 0) & (code != kernel.sum()))
    elements: dict[str, Any] = {}
    for at, (name, other) in enumerate((("gt", "pred"), ("pred", "gt"))):
        distance = distance_transform_edt(~borders[1 - at], sampling=spacing)[borders[at]]
        order = np.argsort(distance, kind="stable")
        elements[f"distances_{name}_to_{other}"] = distance[order]
        elements[f"surfel_areas_{name}"] = area_of_code[codes[at][borders[at]]][order]
    return elements


def volume_ml(mask: npt.ArrayLike, spacing: Sequence[float]) -> float:
    """Mask (X, Y, Z) and spacing (mm) -> volume of the foreground in millilitres (1 ml = 1000 mm³).

    Of a single slice it is the area times the spacing of the missing axis, whatever the file says that is.

    Raises:
        TypeError: The mask is neither bool nor integer.
        ValueError: The mask has not three axes, or spacing is not three positive, finite numbers.
    """
    foreground = _foreground("mask", mask)
    _check_spacing(spacing, 3)
    if foreground.ndim != 3:
        raise ValueError(f"mask must have the axes (X, Y, Z), not shape {foreground.shape}")
    return np.count_nonzero(foreground) * math.prod(float(step) for step in spacing) / 1000


def volume_error(mask: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Mask and label -> signed relative volume error, (|M| - |L|) / |L|: 0.1 is a mask 10 % too large.

    On one grid it needs no spacing. Both empty: 0; only the mask empty: -1; only the label empty: nan. Raises
    as `dice_score`.
    """
    ours, theirs = (np.count_nonzero(foreground) for foreground in _pair(mask, label))
    if not theirs:
        return math.nan if ours else 0.0
    return (ours - theirs) / theirs
