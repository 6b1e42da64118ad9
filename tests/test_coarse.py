"""Scans of coarse voxels are drawn on between their slices; others stay as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from mednca import coarse, engine
from mednca.config import PredictConfig
from mednca.metrics import dice_score
from mednca.modelfile import load_model, save_model, to_bytes
from mednca.perturb import perturb
from mednca.predict import Predictor
from mednca.volume import Volume
from tests.small import tiny_model

properties = settings(deadline=None, max_examples=40)
LAYERS = ("update_in.weight", "update_in.bias", "update_out.weight")
WAYS = (1.0, 1.0, 1.0)


def tilted(shape: tuple[int, int, int] = (30, 28, 40), slope: float = 0.4) -> NDArray[np.float32]:
    """A bright bar that moves from slice to slice along z, on a ground of soft noise."""
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    bar = np.hypot(x - slope * z, y + slope / 2 * z) < 5
    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 1.5)
    return (100 * (bar + 0.5 * noise + 0.2)).astype(np.float32)


def bar_of(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What is bright there."""
    return image > 70


def seen_by(ways: tuple[float, ...] | None, **preprocess: Any) -> Any:
    """What is usual -> a model that sees what is bright."""
    plain = tiny_model(**preprocess)
    weights = {name: np.zeros_like(array) for name, array in plain.weights.items()}
    channels = plain.config.model.image_channels
    for level in (0, 1):
        hidden, start, out = (weights[f"levels.{level}.{name}"] for name in LAYERS)
        hidden[:2, channels // 2], start[:2] = [8, -8], [-4, 4]
        out[channels, :2] = [1, -1]
    predict = replace(plain.config.predict, coarse=ways)
    return replace(plain, config=replace(plain.config, predict=predict), weights=weights)


# ---- Between two slices ----


@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    down=st.floats(-3, 3),
    right=st.floats(-3, 3),
)
def test_what_moves_as_a_whole_is_found(seed: int, down: float, right: float) -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((48, 44)), 3)
    first, second = (ndimage.shift(image, sign * np.array([down, right]) / 2, order=3) for sign in (-1, 1))
    found = coarse.movement(first, second)[:, 12:-12, 12:-12]
    assert np.abs(found - np.array([down, right])[:, None, None]).mean() < 0.4


@properties
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_movement_is_turned_round_with_the_slices(seed: int, height: int, width: int) -> None:
    first, second = np.random.default_rng(seed).standard_normal((2, height, width))
    there, back = coarse.movement(first, second), coarse.movement(second, first)
    assert np.allclose(there, -back, atol=1e-6) and np.abs(there).max() <= coarse.FURTHEST


def test_nothing_moves_where_nothing_is() -> None:
    flat = np.full((5, 6), 3.0)
    assert not coarse.movement(flat, flat).any() and not coarse.movement(flat, flat + 1).any()
    assert not coarse.movement(1e-300 * np.eye(5), np.zeros((5, 5))).any()  # squares of it are 0


@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 6)),
    at=st.lists(st.floats(-1, 6), min_size=1, max_size=8).map(sorted),
)
def test_what_is_drawn_on_passes_through_the_slices_and_stays_within_them(
    seed: int, shape: tuple[int, int, int], at: list[float]
) -> None:
    slices = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    assert np.array_equal(coarse.drawn_on(slices, np.arange(-1.0, shape[0] + 1))[1:-1], slices)
    found = coarse.drawn_on(slices, np.array(at))
    assert found.min() >= slices.min() - 1e-5 and found.max() <= slices.max() + 1e-5
    for place, line in zip(at, found, strict=True):
        if place <= 0 or place >= shape[0] - 1:
            assert np.array_equal(line, slices[0 if place <= 0 else -1])


@properties
@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_windows_hold_the_sums_that_they_should(seed: int, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(seed).standard_normal(shape)
    for window in (4, 8):
        wide = ndimage.uniform_filter(image, 2 * window + 1, mode="nearest") * (2 * window + 1) ** 2
        assert np.allclose(coarse.windowed(image, window), wide, atol=1e-9)


def test_a_bar_that_moves_is_drawn_better_than_by_fading() -> None:
    image = tilted(slope=0.8)
    few = np.moveaxis(image[:, :, 2::5], 2, 0)
    at = (np.arange(image.shape[2]) - 2) / 5
    below = np.clip(at, 0, 6.999).astype(int)
    share = np.clip(at - below, 0, 1)[:, None, None]
    faded = few[below] + share * (few[below + 1] - few[below])
    found, linear = (
        dice_score(bar_of(np.moveaxis(one, 0, 2)), bar_of(image)) for one in (coarse.drawn_on(few, at), faded)
    )
    assert found > 0.95 and 1 - found < 0.4 * (1 - linear)


# ---- Coarse before it was interpolated ----


@pytest.mark.parametrize("factor", [3, 4, 6, 8])
@pytest.mark.parametrize("whole", [False, True], ids=["floats", "whole numbers"])
def test_what_was_interpolated_is_told(factor: int, whole: bool) -> None:
    pytest.importorskip("torchio")
    image = Volume(tilted((41, 50, 47))[None], np.eye(4))
    for case in "abcd":
        after = perturb("anisotropy", image, image, float(factor), case=case).image.data[0]
        seen = np.rint(10 * after).astype(np.float32) / 10 if whole else after
        (found,) = (lines for lines in coarse.interpolated(seen) if lines)
        assert found.step == pytest.approx(factor, abs=0.02)
        lines = np.moveaxis(after, found.axis, 0)
        between = coarse.shares(found.places, len(lines))
        off = (np.tensordot(between, coarse.taken(lines, found.places), 1) - lines)[between.any(axis=1)]
        assert np.abs(off).max() < 0.002 * np.ptp(lines)
        drawn = coarse.drawn(Volume(after[None], np.eye(4)), WAYS)
        assert drawn.axis is None and drawn.slices == -(-after.shape[found.axis] // factor)


@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(9, 11),
    step=st.sampled_from([3.0, 3.3, 4.0, 4.5, 7.0]),
    first=st.floats(-0.7, 1.9),
    weak=st.sampled_from([None, 3]),
)
def test_slices_are_taken_back_from_between_voxels(
    seed: int, count: int, step: float, first: float, weak: int | None
) -> None:
    """Also where they do not lie on voxels, the first lies beyond the end, and lines hardly bend at one."""
    slices = np.random.default_rng(seed).standard_normal((count, 7, 6)).astype(np.float32)
    if weak is not None:
        slices[weak] = (slices[weak - 1] + slices[weak + 1]) / 2
    places = first + step * np.arange(count)
    lines = np.tensordot(coarse.shares(places, int(places[-1] + 1)), slices, 1).astype(np.float32)
    lines = lines[math.ceil(first) :] if first > 0 else lines
    places -= max(0, math.ceil(first))
    found = coarse.interpolated(lines)[0]
    assert found is not None and found.step == pytest.approx(step, rel=1e-3)
    assert sum(np.abs(found.places - place).min() < 0.02 for place in places) >= count - 1
    between = coarse.shares(found.places, len(lines))
    off = (np.tensordot(between, coarse.taken(lines, found.places), 1) - lines)[between.any(axis=1)]
    assert np.abs(off).max() < 0.1


@pytest.mark.parametrize(("first", "found"), [(0.0, 0.0), (-2.0, -2.0), (-3.0, -3.0), (-3.5, 0.5)])
def test_a_slice_may_lie_a_little_beyond_the_end(first: float, found: float) -> None:
    """As where a scan was cut after it was interpolated."""
    slices = np.random.default_rng(5).standard_normal((9, 7, 6)).astype(np.float32)
    places = first + 4 * np.arange(9)
    lines = np.tensordot(coarse.shares(places, int(places[-1]) + 1), slices, 1).astype(np.float32)
    told = coarse.interpolated(lines)[0]
    assert told is not None and told.places[0] == pytest.approx(found, abs=0.01)
    assert told.within(len(lines)) == np.sum((places > -0.5) & (places < len(lines) - 0.5))
    if first < 0 and found == first:
        assert np.allclose(coarse.taken(lines, told.places)[0], slices[0], atol=0.05)


@pytest.mark.parametrize(
    "image",
    [
        tilted(),
        np.random.default_rng(0).standard_normal((30, 31, 32)),
        np.zeros((20, 20, 20)),
        np.ones((1, 1, 1)),
        np.broadcast_to(np.arange(30.0), (8, 9, 30)),
        np.broadcast_to(np.arange(30) // 4, (8, 9, 30)),
        (np.indices((30, 30, 30)) // 5 % 2).sum(axis=0),
        np.cumsum(np.cumsum(np.random.default_rng(2).random((40, 9, 9)) < 0.06, axis=0), axis=0),
    ],
    ids=["scan", "noise", "nothing", "a voxel", "ramp", "stairs", "chequers", "bends anywhere"],
)
def test_what_was_not_interpolated_is_left(image: NDArray[Any]) -> None:
    channel = image.astype(np.float32)
    assert coarse.interpolated(channel) == [None, None, None]
    volume = Volume(channel[None], np.eye(4))
    assert coarse.drawn(volume, WAYS) == (volume, None, 0)


# ---- A scan as it is to be seen ----


def test_training_scans_tell_how_far_apart_slices_may_be() -> None:
    flat = Volume(tilted()[None], np.diag([0.5, 0.5, 3.0, 1.0])).oriented("SPL")
    faded = Volume(np.kron(tilted()[None], np.ones((1, 1, 1, 1))), np.diag([1.0, 1.0, 1.0, 1.0]))
    places = np.arange(10) * 4.0
    lines = np.tensordot(coarse.shares(places, 37), tilted()[:10], 1).astype(np.float32)
    assert coarse.usual([flat, faded]) == (1.0, 1.0, 3.0)
    assert coarse.usual([faded, Volume(lines[None], np.diag([0.7, 1.0, 1.0, 1.0]))]) == (2.8, 1.0, 1.0)


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "AIR"])
def test_a_scan_of_coarse_voxels_is_drawn_on_to_what_is_usual(orientation: str) -> None:
    scan = Volume(tilted((30, 28, 12), 1.6)[None], np.diag([1.0, 1.0, 4.0, 1.0])).oriented(orientation)
    found = coarse.drawn(scan, WAYS)
    assert found.axis == scan.orientation.replace("I", "S").index("S") and found.slices == 12
    finer = found.volume
    assert finer.shape[found.axis] == 48 and finer.spacing == pytest.approx((1, 1, 1))
    for corner in ((-0.5, -0.5, -0.5), np.array(scan.shape) - 0.5):  # the same field of view
        other = np.where(np.array(corner) < 0, -0.5, np.array(finer.shape) - 0.5)
        assert np.allclose(scan.affine @ [*corner, 1], finer.affine @ [*other, 1])
    assert finer.data.dtype == np.float32
    back = coarse.brought_back(finer.data, found.axis, 12)
    assert np.abs(back - scan.data).mean() < 0.1 * scan.data.std()


@pytest.mark.parametrize("spacing", [1.0, 1.5, 1.89])
def test_a_scan_that_is_not_much_coarser_stays_as_it_is(spacing: float) -> None:
    scan = Volume(tilted()[None], np.diag([1.0, 1.0, spacing, 1.0]))
    assert coarse.drawn(scan, WAYS).volume is scan
    assert coarse.drawn(Volume(tilted()[None], np.diag([1.0, 1.0, 1.91, 1.0])), WAYS).axis == 2
    assert coarse.drawn(Volume(tilted()[None], np.diag([1.0, 1.0, 5.0, 1.0])), (1, 1, 3)).axis is None


def test_a_header_that_cannot_be_right_draws_nothing() -> None:
    scan = Volume(tilted()[None], np.diag([1.0, 1.0, 1000.0, 1.0]))
    assert coarse.drawn(scan, WAYS).volume is scan
    assert coarse.drawn(Volume(tilted()[None], np.diag([1.0, 2.0, 16.1, 1.0])), WAYS).axis == 1


def test_a_flat_image_has_nothing_to_draw_between() -> None:
    flat = Volume(tilted()[None, :, :, :1], np.diag([1.0, 1.0, 30.0, 1.0]))
    assert coarse.drawn(flat, WAYS).volume is flat


def test_each_channel_is_drawn_on_by_itself() -> None:
    """One of two that lie on one grid had been coarser."""
    fine, places = tilted((37, 28, 30)), np.arange(10) * 4.0
    faded = np.tensordot(coarse.shares(places, 37), fine[:10], 1).astype(np.float32)
    found = coarse.drawn(Volume(np.stack([fine, faded]), np.eye(4)), WAYS)
    assert found.axis is None and found.slices == 10
    assert np.array_equal(found.volume.data[0], fine) and not np.array_equal(found.volume.data[1], faded)
    assert coarse.drawn(Volume(np.stack([fine, faded]), np.eye(4)), (3, 1, 1)).slices == 0


# ---- In a prediction ----


ENGINES = [
    pytest.param(
        "native", marks=pytest.mark.skipif(not engine.available(), reason="the C engine is not built")
    ),
    "numpy",
    "folded",
]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("orientation", ["RAS", "PSL"])
def test_the_mask_of_a_coarse_scan_is_that_of_the_drawn_one(name: str, orientation: str) -> None:
    scan = Volume(tilted(slope=0.8)[None, :, :, 2::5], np.diag([1.0, 1.0, 5.0, 1.0])).oriented(orientation)
    model, plain = (seen_by(ways, context=1, axes=(0, 2), spacing=(1.0, 1.0)) for ways in (WAYS, None))
    found = Predictor(model, engine=name, probability=True).predict(scan)
    drawn = coarse.drawn(scan, WAYS)
    assert drawn.axis is not None
    fine = Predictor(plain, engine=name, probability=True).predict(drawn.volume)
    wanted = coarse.brought_back(fine.probability.data, drawn.axis, 8)
    assert np.array_equal(found.probability.data, wanted)
    assert np.array_equal(found.mask.data, wanted > 0.5) and found.mask.data.any()
    assert found.mask.affine.tolist() == scan.affine.tolist()
    assert found.spread.shape == scan.shape and found.look.volume.shape == drawn.volume.shape
    assert found.report["drawn_on"] == 8 and found.report["shape"] == list(scan.shape)
    assert found.report["foreground_voxels"]["foreground"] == np.count_nonzero(found.mask.data)
    assert any("the 8 slices are 5 mm apart" in line for line in found.report["warnings"])
    without = Predictor(model, engine=name).predict(scan)  # no probabilities were asked for
    assert np.array_equal(without.mask.data, found.mask.data) and without.probability is None
    assert Predictor(plain, engine=name).predict(scan).report["drawn_on"] is None


def test_a_usual_scan_has_the_mask_that_it_had() -> None:
    scan = Volume(tilted()[None], np.diag([1.0, 1.0, 1.5, 1.0]))
    found, plain = (Predictor(seen_by(ways), probability=True).predict(scan) for ways in (WAYS, None))
    assert np.array_equal(found.probability.data, plain.probability.data)
    assert found.report["drawn_on"] is None and found.report["warnings"] == plain.report["warnings"]


# ---- In a model ----


def test_it_is_part_of_the_model_file(tmp_path: Path) -> None:
    model = seen_by((1.0, 2.5, 3.0))
    content = to_bytes(model)
    assert b'\\"version\\": 7' in content
    assert load_model(save_model(tmp_path / "m.safetensors", model)).config == model.config
    assert b'\\"version\\": 1' in to_bytes(seen_by(None))


@pytest.mark.parametrize(
    "ways", [(1.0,), (1.0, 1.0, 0.0), (1.0, float("nan"), 1.0), (1.0, 1.0, float("inf"))]
)
def test_distances_that_cannot_be_are_refused(ways: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="coarse must be three distances"):
        PredictConfig(coarse=ways)
