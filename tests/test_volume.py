"""Volumes: validated grids, and every turn of the axes has an exact way back."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mednca.volume import Volume, same_affine

CODES = ["".join(c) for p in permutations(("RL", "AP", "SI")) for c in product(*p)]
SHAPE = (3, 4, 5)


def numbered(affine: NDArray[np.float64], channels: int = 2) -> Volume:
    """Affine -> Volume in which every voxel has a number of its own."""
    data = np.arange(channels * np.prod(SHAPE), dtype=np.int16).reshape(channels, *SHAPE)
    return Volume(data, affine)


def of_codes(codes: str) -> NDArray[np.float64]:
    """Axis codes -> affine with spacing 1, 2, 3 along the voxel axes and an origin off zero."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[row, axis] = (axis + 1.0) * (1 if code in "RAS" else -1)
    affine[:3, 3] = (-7.5, 11.0, 2.25)
    return affine


@st.composite
def oblique_affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """Any rotation or reflection, with a spacing per axis, some shear and an origin."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.eye(3) + draw(st.sampled_from([0.0, 0.05])) * rng.uniform(-1, 1, (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ np.diag(rng.uniform(0.05, 8.0, 3))
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def positions(volume: Volume) -> dict[int, tuple[float, ...]]:
    """Volume -> where in the world each value of the first channel lies (mm)."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    world = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    values = volume.data[0].ravel().tolist()
    return dict(zip(values, map(tuple, world.reshape(-1, 3).tolist()), strict=True))


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_orientation_is_read_off_the_affine(codes: str) -> None:
    volume = numbered(of_codes(codes))
    assert volume.orientation == codes
    assert volume.spacing == pytest.approx((1, 2, 3))


@pytest.mark.parametrize("codes", CODES)
def test_canonical_runs_ras_and_leaves_every_voxel_where_it_is(codes: str) -> None:
    volume = numbered(of_codes(codes))
    canonical = volume.canonical()
    assert canonical.orientation == "RAS"
    assert canonical.data.flags.c_contiguous
    before, after = positions(volume), positions(canonical)
    for value, where in before.items():
        assert after[value] == pytest.approx(where)
    for axis in range(3):  # going up an axis of the array goes up that axis of the world
        assert canonical.affine[axis, axis] > 0


@given(affine=oblique_affines(), codes=st.sampled_from(CODES))
@settings(max_examples=80, deadline=None)
def test_any_turn_comes_back_exactly(affine: NDArray[np.float64], codes: str) -> None:
    volume = numbered(affine)
    for turned in (volume.canonical(), volume.oriented(codes)):
        before, after = positions(volume), positions(turned)
        assert max(np.abs(np.subtract(after[v], before[v])).max() for v in before) < 1e-9
        back = turned.oriented_like(volume)
        np.testing.assert_array_equal(back.data, volume.data)
        np.testing.assert_array_equal(back.affine, volume.affine)


@given(codes=st.sampled_from(CODES), to=st.sampled_from(CODES))
@settings(max_examples=60, deadline=None)
def test_oriented_gives_the_codes_asked_for(codes: str, to: str) -> None:
    turned = numbered(of_codes(codes)).oriented(to)
    assert turned.orientation == to
    np.testing.assert_array_equal(turned.oriented(codes).data, numbered(of_codes(codes)).data)


def test_axes_at_45_degrees_come_back_though_their_codes_are_a_toss_up() -> None:
    half = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:2, :2] = [[half, half], [half, -half]]
    volume = numbered(affine)
    back = volume.canonical().oriented_like(volume)
    np.testing.assert_array_equal(back.data, volume.data)


def test_a_mask_with_one_channel_comes_back_to_an_image_with_two() -> None:
    image = numbered(of_codes("LPI"))
    mask = image.with_data((image.data[:1] % 2).astype(np.uint8))
    back = mask.canonical().oriented_like(image)
    np.testing.assert_array_equal(back.data, mask.data)


def test_oriented_like_refuses_another_grid() -> None:
    volume = numbered(np.eye(4))
    shifted, scaled = np.eye(4), np.diag([2.0, 1, 1, 1])
    shifted[0, 3] = 1.0
    for other in (numbered(shifted), numbered(scaled), Volume(np.zeros((1, 3, 4, 6)), np.eye(4))):
        with pytest.raises(ValueError, match="same grid"):
            volume.oriented_like(other)


@pytest.mark.parametrize("codes", ["RA", "RAA", "RLS", "XYZ", "RASS", ""])
def test_wrong_axis_codes_are_refused(codes: str) -> None:
    with pytest.raises(ValueError, match="codes must name"):
        numbered(np.eye(4)).oriented(codes)


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 4, 5), "4 axes"), ((1, 1, 3, 4, 5), "4 axes"), ((1, 0, 4, 5), "empty axis")]
)
def test_data_of_another_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Volume(np.zeros(shape), np.eye(4))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "4 x 4"),
        (np.diag([1, 1, np.nan, 1]), "finite"),
        (np.diag([1.0, 0, 1, 1]), "invertible"),
        (np.diag([1.0, 1, 1, 2]), "last row"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "invertible"),
    ],
)
def test_an_affine_that_is_no_grid_is_refused(affine: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Volume(np.zeros((1, *SHAPE)), affine)


def test_tiny_and_thick_voxels_are_no_singular_affine() -> None:
    assert Volume(np.zeros((1, *SHAPE)), np.diag([1e-4, 1e-4, 50, 1])).spacing == pytest.approx(
        (1e-4, 1e-4, 50)
    )


def test_a_volume_keeps_its_affine_when_the_caller_changes_theirs() -> None:
    affine = np.eye(4)
    volume = numbered(affine)
    affine[0, 3] = 9
    assert volume.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 3] = 9


def test_with_data_wants_the_same_grid() -> None:
    volume = numbered(np.eye(4))
    assert volume.with_data(np.zeros((5, *SHAPE))).channels == 5
    with pytest.raises(ValueError, match="must have the shape"):
        volume.with_data(np.zeros((1, 3, 4, 6)))


def test_same_affine_has_a_tolerance_in_mm() -> None:
    moved = np.eye(4)
    moved[0, 3] = 9e-4
    assert same_affine(np.eye(4), moved)
    moved[0, 3] = 2e-3
    assert not same_affine(np.eye(4), moved)
