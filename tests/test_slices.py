"""Volumes to slices and back: resizing has torch's values, and every orientation comes back on its grid."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mednca.slices import (
    PreprocessConfig,
    cut,
    join,
    nearest,
    pad_to,
    plane_axes,
    plane_size,
    prepare_image,
    prepare_label,
    rescale,
    resize,
    resize_matrix,
    restore,
    with_context,
)
from mednca.volume import Volume

CODES = ["".join(c) for p in permutations(("RL", "AP", "SI")) for c in product(*p)]
properties = settings(deadline=None, max_examples=30)
lengths = st.integers(2, 40)


def ramp(shape: tuple[int, int, int], channels: int = 1) -> Volume:
    """Shape -> RAS+ scan of smooth values that differ in every voxel, spacing 1, 2, 3 mm."""
    grids = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    data = np.stack([grids[0] + 2 * grids[1] + (c + 4) * grids[2] for c in range(channels)])
    return Volume(data.astype(np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_join_is_the_inverse_of_cut(axis: int) -> None:
    data = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    slices = cut(data, axis)
    assert slices.shape[0] == data.shape[axis + 1]
    assert np.array_equal(slices[1, 0], np.take(data[0], 1, axis))  # rows first, then columns
    assert np.array_equal(join(slices, axis), data)


@properties
@given(old=st.tuples(lengths, lengths), new=st.tuples(lengths, lengths), seed=st.integers(0, 99))
def test_cubic_is_torchs_bicubic(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).random((1, 2, *old), dtype=np.float32)
    expected = F.interpolate(torch.from_numpy(image), new, mode="bicubic", align_corners=False)
    # Atol: torch finds the centres in float32, whose rounding the kernel's slope carries on.
    np.testing.assert_allclose(resize(image, new, "cubic"), expected, atol=2e-5)


@properties
@given(old=st.tuples(lengths, lengths), more=st.tuples(lengths, lengths), seed=st.integers(0, 99))
def test_linear_enlarges_as_torchs_bilinear(old: tuple[int, int], more: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).random((1, 2, *old), dtype=np.float32)
    new = old[0] + more[0], old[1] + more[1]
    expected = F.interpolate(torch.from_numpy(image), new, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize(image, new, "linear"), expected, atol=1e-5)


def test_linear_shrinks_as_torchs_antialiased_bilinear_away_from_borders() -> None:
    image = np.random.default_rng(0).random((1, 1, 60, 47), dtype=np.float32)
    expected = F.interpolate(
        torch.from_numpy(image), (20, 31), mode="bilinear", align_corners=False, antialias=True
    )
    # Borders differ: torch cuts the kernel there, ours repeats the edge.
    np.testing.assert_allclose(
        resize(image, (20, 31), "linear")[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5
    )


@properties
@given(old=st.integers(1, 60), new=st.integers(1, 60), kernel=st.sampled_from(["linear", "cubic"]))
def test_rows_of_weights_sum_to_one_so_a_constant_stays(old: int, new: int, kernel: str) -> None:
    weights = resize_matrix(old, new, kernel)
    assert weights.shape == (new, old)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    constant = np.full((1, 1, old, old), 3.5, np.float32)
    np.testing.assert_allclose(resize(constant, (new, new), kernel), 3.5, atol=1e-5)


def test_resizing_to_the_same_size_changes_no_bit() -> None:
    image = np.random.default_rng(0).random((2, 1, 9, 7), dtype=np.float32)
    assert np.array_equal(resize(image, (9, 7), "cubic"), image)


@pytest.mark.parametrize(("old", "new"), [(35, 64), (51, 64), (7, 3), (5, 5)])
def test_nearest_is_opencvs(old: int, new: int) -> None:
    assert nearest(old, new).tolist() == [int(i * (old / new)) for i in range(new)]


@properties
@given(
    codes=st.sampled_from(CODES),
    axis=st.integers(0, 2),
    shape=st.tuples(*[st.integers(2, 7)] * 3),
    context=st.integers(0, 1),
)
def test_a_scan_in_any_orientation_comes_back_on_its_own_grid(
    codes: str, axis: int, shape: tuple[int, int, int], context: int
) -> None:
    upright = ramp(shape, channels=2)
    scan = upright.oriented(codes)
    config = PreprocessConfig(modalities=2, axes=(axis,), context=context)
    slices = prepare_image(scan, config)
    assert np.array_equal(slices, prepare_image(upright, config))
    back = restore(slices, scan, config)  # the image in the place of probabilities
    assert back.shape == scan.data.shape
    assert np.array_equal(back, np.stack([rescale(channel) for channel in scan.data]))


@pytest.mark.parametrize("codes", CODES)
def test_resampled_slices_come_back_where_they_were(codes: str) -> None:
    scan = ramp((12, 10, 6)).oriented(codes)
    config = PreprocessConfig(spacing=(0.5, 1.0))  # finer by 2 in both axes
    slices = prepare_image(scan, config)
    assert slices.shape == (6, 1, 24, 20)
    wanted = rescale(scan.data[0])
    assert np.abs(restore(slices, scan, config)[0] - wanted).max() < 0.03  # a blur of a ramp; its range is 1


def test_sizes_follow_the_plane() -> None:
    assert [plane_axes(axis) for axis in range(3)] == [(1, 2), (0, 2), (0, 1)]
    shape, spacing = (10, 20, 30), (1.0, 2.0, 0.5)
    assert plane_size(shape, spacing, PreprocessConfig(axes=(1,))) == (10, 30)
    assert plane_size(shape, spacing, PreprocessConfig(axes=(1,), spacing=(2.0, 1.0))) == (5, 15)
    assert plane_size(shape, spacing, PreprocessConfig(axes=(0,), size=(8, 9), spacing=(1.0, 1.0))) == (8, 9)
    assert plane_size((1, 1, 5), spacing, PreprocessConfig(spacing=(9.0, 9.0))) == (2, 2)


@properties
@given(
    arrays(
        np.float32, st.tuples(*[st.integers(1, 6)] * 2), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    )
)
def test_rescale_gives_finite_values_from_0_to_1(image: np.ndarray) -> None:
    scaled = rescale(image)
    assert scaled.dtype == np.float32
    assert np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1
    assert scaled.max() == (1 if np.ptp(image) > 0 else 0)


def test_rescale_clips_at_the_percentiles_but_keeps_a_rare_object() -> None:
    image = np.arange(1001, dtype=np.float32)
    scaled = rescale(image)
    assert (scaled == 0).sum() == 6 and (scaled == 1).sum() == 6  # 0.5 % of 1000 on each side, and the end
    assert scaled[500] == pytest.approx(0.5)
    rare = np.zeros((100, 100), np.float32)
    rare[3, 4] = 7  # both percentiles are 0 here
    assert rescale(rare)[3, 4] == 1 and rescale(rare).sum() == 1


def test_normalising_by_slice_and_by_volume_differ_as_said() -> None:
    data = np.zeros((1, 4, 4, 3), np.float32)
    data[..., 1] = np.arange(16).reshape(4, 4)
    data[..., 2] = 100 + np.arange(16).reshape(4, 4)
    volume = Volume(data, np.eye(4))
    by_slice = prepare_image(volume, PreprocessConfig(normalise="slice"))
    assert np.array_equal(by_slice[1], by_slice[2]) and by_slice[0].max() == 0
    by_volume = prepare_image(volume, PreprocessConfig())
    assert by_volume[1].max() < 0.2 < by_volume[2].min()


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have 2 channel\(s\), got 1"):
        prepare_image(ramp((3, 3, 3)), PreprocessConfig(modalities=2))


def test_labels_lie_on_the_grid_of_their_image() -> None:
    data = np.zeros((1, 8, 8, 2), np.int16)
    data[0, 2:6, 2:6] = 1
    data[0, 4:6, 2:6] = 2
    label = Volume(data, np.eye(4))
    plain = prepare_label(label, PreprocessConfig(), 2)
    assert plain.dtype == np.uint8 and np.array_equal(plain, data[0].transpose(2, 0, 1))
    for config in (PreprocessConfig(size=(16, 16)), PreprocessConfig(spacing=(0.5, 0.5))):
        finer = prepare_label(label, config, 2)
        assert finer.shape == (2, 16, 16)
        assert np.array_equal(finer, data[0].transpose(2, 0, 1).repeat(2, 1).repeat(2, 2))
    coarser = prepare_label(label, PreprocessConfig(spacing=(2.0, 2.0)), 2)[0]
    assert coarser.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 2, 2, 0], [0, 0, 0, 0]]
    shrunk = prepare_label(label, PreprocessConfig(size=(4, 4)), 2)[0]
    assert shrunk.tolist() == coarser.tolist()


def test_context_brings_neighbours_and_repeats_the_edge() -> None:
    slices = np.arange(4 * 2, dtype=np.float32).reshape(4, 2, 1, 1) * np.ones((1, 1, 2, 2), np.float32)
    image = with_context(slices, np.array([0, 2, 3]), 1)
    assert image[:, :, 0, 0].tolist() == [[0, 1, 0, 1, 2, 3], [2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 6, 7]]
    assert np.array_equal(with_context(slices, np.array([2]), 0), slices[2:3])


@properties
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    multiple=st.sampled_from([1, 2, 4, 8]),
    margin=st.integers(0, 12),
)
def test_padding_holds_the_image_where_it_says(size: tuple[int, int], multiple: int, margin: int) -> None:
    image = np.arange(size[0] * size[1], dtype=np.float32).reshape(1, *size)
    padded, inside = pad_to(image, multiple, 2 * multiple, margin)
    assert np.array_equal(padded[..., inside[0], inside[1]], image)
    for length, before, place in zip(padded.shape[-2:], size, inside, strict=True):
        assert length % multiple == 0 and length >= 2 * multiple
        assert length - before < max(2 * margin + multiple, 2 * multiple - before + 1)
        assert min(place.start, length - place.stop) >= margin
        assert 0 <= length - place.stop - place.start <= 1
    assert padded[0, 0, 0] == image[0, 0, 0] and padded[0, -1, -1] == image[0, -1, -1]


@pytest.mark.parametrize(
    "settings_",
    [
        {"modalities": 0},
        {"context": -1},
        {"axes": (3,)},
        {"axes": ()},
        {"axes": (0, 2, 0)},
        {"spacing": (1.0, 2.0), "axes": (0, 1)},
        {"normalise": "none"},
        {"size": (64,)},
        {"size": (1, 64)},
        {"spacing": (1.0,)},
        {"spacing": (1.0, 0.0)},
        {"spacing": (1.0, float("nan"))},
        {"spacing": (float("inf"), 1.0)},
        {"spacing": ()},
        {"margin": -1},
        {"margin": 1025},
    ],
)
def test_preprocessing_out_of_range_is_refused(settings_: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings_))):
        PreprocessConfig(**settings_)
