"""Perturbed cases: a function of case, name, seed and severity; label and image move together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.errors import InputError
from mednca.perturb import PERTURBATIONS, find, perturb, planes
from mednca.volume import Volume

pytest.importorskip("torchio")

NAMES = [p.name for p in PERTURBATIONS]
GEOMETRY = [p.name for p in PERTURBATIONS if p.kind == "geometry"]
SHAPE = (20, 24, 14)
BOUNDED = settings(max_examples=15, deadline=None, database=None, derandomize=True)


def ball(
    shape: tuple[int, int, int] = SHAPE, affine: np.ndarray | None = None, channels: int = 1
) -> tuple[Volume, Volume]:
    """A grid -> an image with a bright ellipsoid on noise, and its label."""
    where = np.indices(shape).astype(float)
    size = np.array(shape, float).reshape(3, 1, 1, 1)
    away = (((where - (size - 1) / 2) / np.maximum(size * 0.27, 0.5)) ** 2).sum(axis=0)
    label = (away < 1).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 10, (channels, *shape))
    image = (100 + 400.0 * label + noise).astype(np.float32)
    grid = np.diag([1.0, 1.2, 1.3, 1.0]) if affine is None else affine
    return Volume(image, grid), Volume(label[None], grid)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("name", NAMES)
def test_the_neutral_severity_gives_back_what_came_in(name: str) -> None:
    image, label = ball()
    found = perturb(name, image, label, find([name])[0].neutral, case="a")
    assert found.image is image and found.label is label and found.kept == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flat", [False, True])
def test_the_same_key_gives_the_same_bits_whatever_came_before(name: str, flat: bool) -> None:
    image, label = ball((20, 24, 1) if flat else SHAPE)
    severity = find([name])[0].severities[-1]
    torch.manual_seed(1)
    first = perturb(name, image, label, severity, case="a", seed=3)
    before = torch.random.get_rng_state()
    perturb(name, image, label, severity, case="b", seed=4)
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's randomness is touched
    torch.manual_seed(2)
    again = perturb(name, image, label, severity, case="a", seed=3)
    assert np.array_equal(first.image.data, again.image.data)
    assert np.array_equal(first.label.data, again.label.data) and first.kept == again.kept
    assert np.isfinite(first.image.data).all()
    assert first.image.shape == first.label.shape
    assert np.array_equal(first.image.affine, first.label.affine)
    assert not flat or first.image.shape[2] == 1


@pytest.mark.parametrize("name", NAMES)
def test_something_happens_and_more_of_it_with_a_higher_severity(name: str) -> None:
    image, label = ball()
    one = find([name])[0]
    ends = (one.severities[0], one.severities[-1])

    def change(severity: float) -> float:
        found = perturb(one, image, label, severity, case="a")
        if found.image.shape != image.shape:
            return abs(np.log(np.prod(found.image.shape) / np.prod(image.shape)))
        return float(np.abs(found.image.data - image.data).mean())

    assert all(change(severity) > 0.01 for severity in ends)
    if one.neutral < one.severities[0] < one.severities[-1]:
        assert change(one.severities[0]) < change(one.severities[-1])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in GEOMETRY])
def test_an_artefact_leaves_grid_and_label_alone_and_sees_every_channel(name: str) -> None:
    image, label = ball(channels=2)
    found = perturb(name, image, label, find([name])[0].severities[-1], case="a")
    assert found.label is label and found.kept == 1
    assert found.image.data.shape == image.data.shape and found.image.data.dtype == np.float32
    assert np.array_equal(found.image.affine, image.affine)
    for channel in range(2):
        assert not np.array_equal(found.image.data[channel], image.data[channel])


@pytest.mark.parametrize("name", ["ghosting", "bias_field", "motion", "spike", "blur", "anisotropy", "noise"])
def test_an_artefact_keeps_the_organ_where_its_label_is(name: str) -> None:
    image, label = ball()
    found = perturb(name, image, label, find([name])[0].severities[0], case="a")
    inside = label.data[0] > 0
    here = np.corrcoef(found.image.data[0].ravel(), inside.ravel())[0, 1]
    shifted = [
        np.corrcoef(np.roll(found.image.data[0], by, axis).ravel(), inside.ravel())[0, 1]
        for axis in range(3)
        for by in (-3, 3)
    ]
    assert here > 0.6 and here > max(shifted)


@BOUNDED
@given(
    name=st.sampled_from(GEOMETRY),
    share=st.floats(0, 1),
    seed=st.integers(0, 1 << 40),
    turn=st.sampled_from(["RAS", "LPS", "SRA", "PIR"]),
)
def test_label_and_image_move_together(name: str, share: float, seed: int, turn: str) -> None:
    one = find([name])[0]
    severity = one.severities[0] + share * (one.severities[-1] - one.severities[0])
    image, label = ball()
    image, label = image.oriented(turn), label.oriented(turn)
    bright = image.with_data(label.data.astype(np.float32))
    found = perturb(one, bright, label, severity, case="a", seed=seed)
    moved = found.image.data[0] > 0.5
    if found.kept > 0.2:  # otherwise too few voxels to compare shapes
        assert dice(moved, found.label.data[0] > 0) > 0.8
    assert 0 <= found.kept <= 1
    assert found.image.spacing == pytest.approx(image.spacing)  # the header tells the model nothing


def test_scale_makes_the_organ_larger_in_plane_or_along_all_axes() -> None:
    image, label = ball()
    count = int(label.data.sum())
    for factor in (0.5, 2.0):
        plane, every = (perturb(n, image, label, factor, case="a") for n in ("scale", "scale_all"))
        assert plane.image.shape == (20 * factor, 24 * factor, 14) and plane.kept == 1
        assert every.image.shape == (20 * factor, 24 * factor, 14 * factor)
        assert plane.label.data.sum() == pytest.approx(count * factor**2, rel=0.1)
        assert every.label.data.sum() == pytest.approx(count * factor**3, rel=0.1)
    tall = perturb("shape", image, label, 1.5, case="a")
    assert tall.image.shape == (20, 36, 14)


def test_a_shift_is_exact_and_tells_what_is_left() -> None:
    image, label = ball((20, 20, 8), np.eye(4))
    seen = set()
    for seed in range(12):
        found = perturb("translation", image, label, 0.5, case="a", seed=seed)
        at = np.argwhere(found.label.data[0]).mean(axis=0) - np.argwhere(label.data[0]).mean(axis=0)
        axis = int(np.abs(at).argmax())
        assert axis in (0, 1)  # in plane
        way = int(np.sign(at[axis]))
        seen.add((axis, way))
        whole = np.zeros_like(label.data)
        old: list[slice] = [slice(None)] * 4
        new = list(old)
        old[axis + 1], new[axis + 1] = (slice(0, 10), slice(10, 20))[::way]
        whole[tuple(new)] = label.data[tuple(old)]
        assert np.array_equal(found.label.data, whole)
        assert found.kept == pytest.approx(whole.sum() / label.data.sum())
        assert np.array_equal(found.image.data[tuple(new)], image.data[tuple(old)])
        assert (found.image.data[tuple(old)] == image.data.min()).all()  # black
    assert len(seen) == 4  # every direction comes up


def test_a_shift_with_the_edge_repeated_shows_nothing_new_and_labels_nothing_there() -> None:
    data = np.arange(20.0)[None, :, None, None] + np.zeros((1, 20, 20, 3))
    image, label = Volume(data, np.eye(4)), Volume(np.ones((1, 20, 20, 3), np.uint8), np.eye(4))
    for seed in range(8):
        found = perturb("translation_edge", image, label, 0.25, case="a", seed=seed)
        assert found.kept == 0.75
        unlabelled = found.image.data[found.label.data == 0]
        along_rows = found.label.data[0].all(axis=(1, 2)).any()
        assert set(unlabelled) == ({unlabelled[0]} if along_rows else set(data[0, :, 0, 0]))
        assert not along_rows or unlabelled[0] in (0, 19)


def test_cut_and_padded_fields_of_view_keep_the_world_position_of_a_voxel() -> None:
    affine = np.array([[0.0, -1.2, 0, 7], [1.0, 0, 0, -3], [0, 0, 1.3, 5], [0, 0, 0, 1]])
    image, label = ball(affine=affine)
    for name, severity, shape in (("crop", 0.4, (12, 14, 14)), ("pad", 0.5, (40, 48, 14))):
        found = perturb(name, image, label, severity, case="a")
        assert found.image.shape == shape
        peak = [np.unravel_index(v.data[0].argmax(), v.shape) for v in (image, found.image)]
        if name == "pad":  # a crop may lose the brightest voxel
            world = [v.affine @ [*p, 1] for v, p in zip((image, found.image), peak, strict=True)]
            assert world[0] == pytest.approx(world[1])
            assert found.label.data.sum() == label.data.sum() and found.kept == 1
        middle = [v.affine @ [*((np.array(v.shape) - 1) / 2), 1] for v in (image, found.image)]
        assert middle[0] == pytest.approx(middle[1])


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    image, label = ball((21, 21, 5), np.eye(4))
    label.data[0, :6] = 0
    image.data[0, :6] = 0
    found = perturb("rotation", image, label, 90, case="a")
    turns = [np.rot90(label.data[0], k) for k in (1, 3)]
    assert any(np.array_equal(found.label.data[0], turn) for turn in turns)
    assert found.kept == 1


def test_slices_are_cut_across_the_coarse_axis_else_axially_else_across_the_flat_one() -> None:
    data = np.zeros((1, 5, 6, 7))
    assert planes(Volume(data, np.eye(4))) == (2, 0, 1)
    assert planes(Volume(data, np.eye(4)).oriented("SPL")) == (0, 2, 1)
    assert planes(Volume(data, np.diag([3.0, 1, 1, 1]))) == (0, 1, 2)
    assert planes(Volume(np.zeros((1, 5, 1, 7)), np.eye(4))) == (1, 0, 2)


@pytest.mark.parametrize("factor", [2, 3, 4, 6, 8, 5.5])
def test_a_coarse_axis_is_coarse_up_to_its_ends_and_leaves_nothing_black(factor: float) -> None:
    shape = (21, 26, 13)
    data = np.random.default_rng(0).uniform(50, 60, shape).astype(np.float32)
    data[10, 13, 6] = -1000  # what black would be
    image = Volume(data[None], np.diag([0.9, 1.1, 1.3, 1]))
    label = Volume(np.zeros((1, *shape), np.uint8), image.affine)
    seen = set()
    for seed in range(8):
        found = perturb("anisotropy", image, label, factor, case="a", seed=seed).image.data[0]
        rough = [float(np.abs(np.diff(found[12:], axis=axis)).mean()) for axis in range(3)]
        seen.add(int(np.argmin(rough)))  # smooth along the coarse axis
        found[10, 13, :] = found[10, :, 6] = found[:, 13, 6] = 55  # where the black voxel may have spread
        assert found.shape == shape and found.min() >= 49.9
    assert len(seen) > 1


def test_noise_has_the_deviation_that_it_says_and_inversion_turns_back() -> None:
    image, label = ball()
    low, high = np.percentile(image.data, (0.5, 99.5))
    found = perturb("noise", image, label, 0.2, case="a")
    assert (found.image.data - image.data).std() == pytest.approx(0.2 * (high - low), rel=0.05)
    dark = perturb("inversion", image, label, 1, case="a")
    assert dark.image.data[0][label.data[0] > 0].mean() < dark.image.data[0][label.data[0] == 0].mean()
    again = perturb("inversion", dark.image, label, 1, case="a")
    assert np.abs(again.image.data - image.data).max() < 0.01 * (high - low)


def test_an_empty_label_is_all_in_view_and_a_constant_image_stays_finite() -> None:
    image, label = ball()
    blank, nothing = image.with_data(np.full_like(image.data, 7)), label.with_data(0 * label.data)
    for one in PERTURBATIONS:
        found = perturb(one, blank, nothing, one.severities[-1], case="a")
        assert found.kept == 1 and np.isfinite(found.image.data).all(), one.name


def test_what_cannot_be_done_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    image, label = ball()
    with pytest.raises(InputError, match="there is no perturbation 'smoke'; known are scale, "):
        perturb("smoke", image, label, 1, case="a")
    with pytest.raises(ValueError, match=r"severity of noise must be from 0 to 0\.3, got 3"):
        perturb("noise", image, label, 3, case="a")
    with pytest.raises(ValueError, match="label must be"):
        perturb("noise", image, ball((5, 6, 7))[1], 0.1, case="a")
    monkeypatch.setitem(__import__("sys").modules, "torchio", None)
    with pytest.raises(InputError, match=r"pip install 'mednca\[robustness\]'"):
        perturb("noise", image, label, 0.1, case="a")


def test_every_perturbation_has_ordered_severities_and_a_quick_part_of_them() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for one in PERTURBATIONS:
        assert list(one.severities) == sorted(set(one.severities)) and one.neutral not in one.severities
        assert one.quick and set(one.quick) <= set(one.severities)


def test_the_reference_lists_exactly_the_perturbations_and_their_severities() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "perturbations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|`]+) \| ([-\d., *]+) \|$", page, flags=re.M)
    assert [(name, what) for name, what, _ in rows] == [(p.name, p.parameter) for p in PERTURBATIONS]
    for one, (_, _, told) in zip(PERTURBATIONS, rows, strict=True):
        assert tuple(float(word.strip("* ")) for word in told.split(",")) == one.severities
        assert tuple(float(word) for word in re.findall(r"\*\*([-\d.]+)\*\*", told)) == one.quick
