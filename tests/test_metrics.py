"""The metrics: values worked out by hand, agreement with the library they come from, and properties."""

from __future__ import annotations

import builtins
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mednca.errors import InputError
from mednca.metrics import (
    dice_score,
    iou_score,
    soft_dice_score,
    surface_scores,
    volume_error,
    volume_ml,
)

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
MASKS = SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape)] * 2))
SPACINGS = st.tuples(*[st.floats(0.3, 5.0)] * 3)
BOUNDED = settings(max_examples=60, deadline=None)
OVERLAPS = (dice_score, iou_score, soft_dice_score)


def box(shape, start, stop):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))] = 1
    return mask


def same(first, second, tolerance=1e-9):
    return np.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_overlap_of_two_boxes_by_hand():
    mask, label = box((8, 8, 8), (0, 0, 0), (4, 4, 4)), box((8, 8, 8), (1, 0, 0), (5, 4, 4))
    assert dice_score(mask, label) == 2 * 48 / 128
    assert iou_score(mask, label) == 48 / 80


def test_soft_dice_is_the_papers_formula_without_threshold_or_smoothing():
    probability, label = np.array([[[0.7, 0.4, 0.1, 0.0]]]), np.array([[[1, 1, 0, 0]]])
    assert soft_dice_score(probability, label) == pytest.approx(2 * (0.7 + 0.4) / (1.2 + 2), rel=1e-15)
    assert dice_score(probability > 0.5, label) == pytest.approx(2 / 3)


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
@pytest.mark.parametrize("swap", [False, True])
def test_surfaces_of_two_shifted_cubes_by_hand(shift, swap):
    """Cubes of n³ voxels, one moved by k steps of x; y and z steps so long that nearest is along x."""
    n, (x, y, z) = 9, (0.5, 2.0, 3.0)
    mask = box((20, 15, 15), (2, 3, 3), (2 + n, 3 + n, 3 + n))
    label = np.roll(mask, shift, axis=0)
    # Elements sit on the corners between voxels. Inside a face one has the area of a voxel's side; an edge is
    # cut from the middle of one side to the middle of the other; a corner is a triangle between the middles
    # of three edges.
    edge = {"x": x * math.hypot(y, z) / 2, "y": y * math.hypot(x, z) / 2, "z": z * math.hypot(x, y) / 2}
    corner = math.sqrt((x * y) ** 2 + (y * z) ** 2 + (x * z) ** 2) / 8
    inner = (n - 1) ** 2 * y * z  # of a face across x
    rim = 2 * (n - 1) * (edge["y"] + edge["z"]) + 4 * corner
    ring = 2 * (n - 1) * (x * z + x * y) + 4 * edge["x"]  # one layer of the sides along x
    total = 2 * (inner + rim) + (n - 1) * ring
    # Far: the face that sticks out at distance k, the layers behind it at k-1 ... 1, and inside the other
    # cube the inner part of the opposite face at k.
    weighted = (2 * inner + rim) * shift * x + sum(ring * step * x for step in range(1, shift))

    def beyond(tolerance):
        far = 2 * inner + rim if shift * x > tolerance else 0.0
        return far + sum(ring for step in range(1, shift) if step * x > tolerance)

    for tolerance in (0.0, 0.5, 1.0, 1.5):
        scores = surface_scores(*((label, mask) if swap else (mask, label)), (x, y, z), tolerance)
        assert scores.hd95_mm == pytest.approx(shift * x)
        assert scores.assd_mm == pytest.approx(weighted / total)
        assert scores.nsd_score == pytest.approx(1 - beyond(tolerance) / total)


@pytest.mark.parametrize("z_spacing", [0.0, 1.0, 77.0, math.nan])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_gets_two_dimensional_distances_whatever_its_thickness(z_spacing, axis):
    """Squares moved by one step x. In 3-D the two faces of the slab, at distance 0, would water it down."""
    n, x, y = 6, 0.5, 2.0
    mask = box((12, 12), (2, 2), (2 + n, 2 + n))
    label = np.roll(mask, 1, axis=0)
    diagonal = math.hypot(x, y) / 2
    total = 2 * (n - 1) * (x + y) + 4 * diagonal
    far = (
        2 * diagonal + 2 * (n - 1) * y
    )  # the side that sticks out, and the one inside without its two corners
    spacing = [x, y]
    spacing.insert(axis, z_spacing)
    scores = surface_scores(np.expand_dims(mask, axis), np.expand_dims(label, axis), spacing, 0.4)
    assert scores.hd95_mm == pytest.approx(x)
    assert scores.assd_mm == pytest.approx(x * far / total)
    assert scores.nsd_score == pytest.approx(1 - far / total)
    assert scores == surface_scores(mask, label, (x, y), 0.4)


def test_hd95_is_the_larger_of_the_two_directions():
    mask = box((30, 12, 12), (2, 2, 2), (10, 10, 10))
    label = mask.copy()
    label[24:28, 4:8, 4:8] = (
        1  # an island that the mask misses: far from the mask, while the mask is near the label
    )
    forth, back = surface_scores(mask, label, (1, 1, 1), 1), surface_scores(label, mask, (1, 1, 1), 1)
    assert same(forth, back)
    assert forth.hd95_mm > 14


def library_scores(mask, label, spacing, tolerance):
    """The library's own way, whose warnings and slowness are why we do not go it."""
    import surface_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = surface_distance.compute_surface_distances(label != 0, mask != 0, spacing)
    areas = found["surfel_areas_gt"], found["surfel_areas_pred"]
    means = surface_distance.compute_average_surface_distance(found)
    return (
        surface_distance.compute_robust_hausdorff(
            found, 95 - 1e-6
        ),  # as ours: rounding must not decide at exactly 95
        sum(area.sum() * mean for area, mean in zip(areas, means, strict=True))
        / (areas[0].sum() + areas[1].sum()),
        surface_distance.compute_surface_dice_at_tolerance(found, tolerance),
    )


@BOUNDED
@given(
    st.sampled_from([(5, 6, 4), (6, 7), (2, 2, 2)]).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape)] * 2)
    ),
    SPACINGS,
    st.floats(0.01, 4.0),
)
def test_surfaces_equal_the_librarys_own(pair, spacing, tolerance):
    mask, label = pair
    if mask.any() and label.any():
        steps = spacing[: mask.ndim]
        ours, theirs = (
            surface_scores(mask, label, steps, tolerance),
            library_scores(mask, label, steps, tolerance),
        )
        assert same(ours, theirs)


def test_rounding_in_the_spacing_does_not_cost_a_step_of_tolerance():
    mask = box((16, 16, 16), (2, 2, 2), (10, 10, 10))
    spacing = [float(np.float32(1.0) + np.float32(2e-7))] * 3
    assert spacing[0] > 1.0
    assert surface_scores(mask, np.roll(mask, 1, axis=0), spacing, 1.0).nsd_score == 1.0


@BOUNDED
@given(MASKS, SPACINGS, st.floats(0.0, 4.0), st.permutations([0, 1, 2]))
def test_scores_are_bounded_symmetric_and_do_not_depend_on_the_order_of_the_axes(
    pair, spacing, tolerance, order
):
    mask, label = pair
    for score in OVERLAPS:
        assert 0 <= score(mask, label) <= 1
        assert score(mask, label) == score(label, mask)
        assert score(mask.transpose(order), label.transpose(order)) == score(mask, label)
        assert score(mask, mask) == 1
    scores = surface_scores(mask, label, spacing, tolerance)
    assert 0 <= scores.nsd_score <= 1
    assert math.isnan(scores.hd95_mm) == math.isnan(scores.assd_mm) == (mask.any() != label.any())
    if not math.isnan(scores.hd95_mm):
        assert 0 <= scores.hd95_mm <= math.dist((0, 0, 0), np.multiply(mask.shape, spacing))
        assert scores.assd_mm >= 0
    assert same(surface_scores(label, mask, spacing, tolerance), scores)
    assert surface_scores(mask, mask, spacing, 0.0) == (0.0, 0.0, 1.0)
    if mask.shape.count(1) < 2:  # of a line the last axis of length 1 is dropped, and which that is changes
        turned = [spacing[axis] for axis in order]
        moved = surface_scores(mask.transpose(order), label.transpose(order), turned, tolerance)
        assert same(moved, scores, 1e-6)


@BOUNDED
@given(MASKS)
def test_iou_follows_from_dice_and_soft_dice_of_a_binary_probability_is_dice(pair):
    mask, label = pair
    dice = dice_score(mask, label)
    assert iou_score(mask, label) == pytest.approx(dice / (2 - dice))
    assert soft_dice_score(mask.astype(np.float32), label) == pytest.approx(dice)


@BOUNDED
@given(MASKS, SPACINGS, st.integers(1, 3))
def test_empty_space_around_changes_nothing_and_distances_scale_with_the_spacing(pair, spacing, margin):
    mask, label = pair
    if 1 in mask.shape:
        return
    scores = surface_scores(mask, label, spacing, 1.0)
    assert same(surface_scores(np.pad(mask, margin), np.pad(label, margin), spacing, 1.0), scores)
    doubled = surface_scores(mask, label, [2 * step for step in spacing], 2.0)
    assert same(doubled, (2 * scores.hd95_mm, 2 * scores.assd_mm, scores.nsd_score))


def test_both_empty_agree_and_one_empty_has_no_distance():
    none, some = np.zeros((4, 4, 4), np.uint8), box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    for score in OVERLAPS:
        assert score(none, none) == 1
        assert score(none, some) == score(some, none) == 0
    assert surface_scores(none, none, (1, 1, 1), 1) == (0, 0, 1)
    for mask, label in ((none, some), (some, none)):
        hd95, assd, nsd = surface_scores(mask, label, (1, 1, 1), 1)
        assert math.isnan(hd95) and math.isnan(assd) and nsd == 0
    assert volume_error(none, none) == 0
    assert volume_error(none, some) == -1
    assert math.isnan(volume_error(some, none))


def test_volume_is_in_millilitres_and_its_error_is_signed():
    mask, label = box((6, 6, 6), (0, 0, 0), (5, 5, 4)), box((6, 6, 6), (0, 0, 0), (5, 5, 5))
    assert volume_ml(label, (2, 2, 10)) == pytest.approx(125 * 40 / 1000)
    assert volume_error(mask, label) == pytest.approx(-0.2)
    assert volume_error(label, mask) == pytest.approx(0.25)


@pytest.mark.parametrize("values", [255, -1, 2])
def test_any_value_but_zero_is_foreground(values):
    mask = box((4, 4, 4), (1, 1, 1), (3, 3, 3)).astype(np.int16)
    assert dice_score(mask * values, mask) == iou_score(mask * values, mask) == 1
    assert volume_ml(mask * values, (1, 1, 1)) == 0.008
    assert surface_scores(mask * values, mask, (1, 1, 1), 0).nsd_score == 1


def test_what_cannot_be_scored_is_refused():
    mask = box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    for score in (dice_score, iou_score, volume_error, soft_dice_score):
        with pytest.raises(ValueError, match="one shape"):
            score(mask, mask[:3])
    for score in (dice_score, iou_score, volume_error):
        with pytest.raises(TypeError, match="threshold it first"):
            score(mask * 0.3, mask)
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            soft_dice_score(mask * wrong, mask)
    for spacing in ((1, 1), (1, 1, 0), (1, -1, 1), (1, math.inf, 1), (1, math.nan, 1)):
        with pytest.raises(ValueError, match="spacing"):
            surface_scores(mask, mask, spacing, 1)
        with pytest.raises(ValueError, match="spacing"):
            volume_ml(mask, spacing)
    for tolerance in (-1, math.nan):
        with pytest.raises(ValueError, match="tolerance_mm"):
            surface_scores(mask, mask, (1, 1, 1), tolerance)


def test_a_missing_library_names_the_extra_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.startswith("surface_distance"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    mask = box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    with pytest.raises(InputError, match=r"pip install 'mednca\[train\]'"):
        surface_scores(mask, mask, (1, 1, 1), 1)
