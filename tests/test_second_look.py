"""A second look: what size an organ has and what is usual, when a scan is looked at again, and what comes of
it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mednca import engine, second_look
from mednca.calibrate import measure_range
from mednca.config import PredictConfig, RunConfig, from_dict
from mednca.dataset import measured
from mednca.errors import InputError
from mednca.modelfile import ModelFile, save_model
from mednca.predict import Predictor
from mednca.second_look import factors, ratios_of, resampled, settle, sizes_of, stretched, usual
from mednca.slices import prepare_image
from mednca.volume import Volume
from tests.runtime.builds import run
from tests.small import tiny_model, write_nifti

properties = settings(deadline=None, max_examples=40)
LAYERS = ("update_in.weight", "update_in.bias", "update_out.weight")
SIZES = (4.0, 6.0, 5.0, 1.3, 1.4, 2.5)


def ball(radii: tuple[float, float, float], shape: tuple[int, int, int] = (40, 50, 40)) -> NDArray[np.bool_]:
    """Radii in voxels -> an ellipsoid in the middle of a scan."""
    axes = [np.arange(n) - (n - 1) / 2 for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    return sum((x / r) ** 2 for x, r in zip(grid, radii, strict=True)) <= 1


@properties
@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.sampled_from([0.5, 1.0, 2.7])] * 3),
    st.tuples(*[st.integers(0, 9)] * 3),
)
def test_the_size_of_a_box_is_that_of_an_even_distribution(
    sides: tuple[int, int, int], spacing: tuple[float, float, float], at: tuple[int, int, int]
) -> None:
    """A side over the root of 12, wherever it lies: a voxel is no point."""
    mask = np.zeros((30, 30, 30), bool)
    mask[tuple(slice(first, first + side) for first, side in zip(at, sides, strict=True))] = True
    found = sizes_of(mask, spacing)
    if math.prod(sides) < 8:
        assert found is None
    else:
        assert found is not None
        wanted = [side * step / math.sqrt(12) for side, step in zip(sides, spacing, strict=True)]
        assert np.allclose(found, wanted, rtol=1e-9)


def test_what_is_usual_is_the_median_and_holds_all_training_cases() -> None:
    labels = [(ball((6, 5 + 0.05 * i, 4 + 0.3 * (i % 20))), (1.0, 2.0, 1.5)) for i in range(100)]
    found = usual([*labels, (np.zeros((4, 4, 4), bool), (1.0, 1.0, 1.0))])  # an empty label tells nothing
    assert found is not None
    sizes = np.array([sizes_of(*label) for label in labels])
    assert np.allclose(found[:3], np.exp(np.median(np.log(sizes), axis=0)), rtol=1e-5)
    away = np.exp(np.abs(np.log(sizes / found[:3])).max(axis=0))
    assert found[3] == 1.25 and np.allclose(found[4:], away[1:] ** 1.1, rtol=1e-4)
    assert all(factors(ratios_of(*label, found), found) is None for label in labels)
    few = usual(labels[:40:10])
    assert few is not None and np.isclose(few[4], max(1.25, _furthest(labels[:40:10], 1) ** 2), rtol=1e-4)
    assert usual([]) is None


def _furthest(labels: list[tuple[NDArray[np.bool_], tuple[float, float, float]]], axis: int) -> float:
    logs = np.log([sizes_of(*label)[axis] for label in labels])
    return float(np.exp(np.abs(logs - np.median(logs)).max()))


def test_an_organ_that_is_cut_off_is_not_small() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[:3, 8:12, 5:15] = True
    found = ratios_of(mask, (1, 1, 1), SIZES)
    assert found is not None and found[0] == 1
    assert np.allclose(found[1:], [4 / math.sqrt(12) / 6, 10 / math.sqrt(12) / 5])
    large = ratios_of(mask, (9, 1, 1), SIZES)
    assert large is not None and np.isclose(large[0], 27 / math.sqrt(12) / 4)
    flat = ratios_of(mask[1:2], (1, 1, 1), SIZES)
    assert flat is not None and flat[0] == 1
    mask[0, 8:12, 5:15] = [[True] * 5 + [False] * 5] * 4  # half of the next: it only touches the end
    touching = ratios_of(mask, (1, 1, 1), SIZES)
    assert touching is not None and touching[0] < 0.3


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.0, 1.0, 1.0), None),
        ((1.29, 1 / 1.39, 2.49), None),
        ((1.31, 1.0, 0.5), (1 / 1.31, 1, 1)),
        ((0.5, 2.0, 0.39), (2, 0.5, 1 / 0.39)),
        ((0.1, 9.0, 1.0), (10, 1 / 9, 1)),
    ],
)
def test_only_unusual_axes_are_stretched(
    ratios: tuple[float, ...], expected: tuple[float, ...] | None
) -> None:
    found = factors(np.array(ratios), SIZES)
    assert found == expected if expected is None else np.allclose(found, expected)


def test_resampling_keeps_ends_and_means() -> None:
    data = np.arange(12, dtype=np.float32)[None, :, None, None] * np.ones((2, 1, 5, 1), np.float32)
    found = resampled(data, (24, 5, 1))
    assert found.shape == (2, 24, 5, 1) and np.isclose(found.mean(), data.mean())
    assert np.allclose(np.diff(found[0, 1:-1, 0, 0]), 0.5) and found[0, 0, 0, 0] == 0 and found.max() == 11
    volume = Volume(data, np.diag([2.0, 1.0, 1.0, 1.0]))
    smaller = stretched(volume, (0.1, 2.0, 1.0))
    assert smaller.shape == (2, 10, 1) and smaller.spacing == volume.spacing


# ---- Looking ----


class Eye:
    """Sees every bright voxel, on a scan of any orientation, and counts."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, volume: Volume) -> Volume:
        self.looks += 1
        return volume.with_data((volume.data > 0.5).astype(np.uint8))


def on_body(seen: Volume) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    turned = seen.canonical()
    return turned.data[0], turned.spacing


def settled(mask: NDArray[np.bool_], orientation: str = "RAS") -> tuple[Volume, tuple[float, ...], int]:
    volume = Volume(mask[None].astype(np.float32), np.eye(4)).oriented(orientation)
    eye = Eye()
    seen, stretch = settle(volume, eye(volume), eye, on_body, SIZES)
    return seen, stretch, eye.looks


@pytest.mark.parametrize("orientation", ["RAS", "SLA", "PIR"])
def test_an_organ_of_another_size_is_looked_at_again(orientation: str) -> None:
    """Of a ball of radius r the size is r over the root of 5."""
    usual_one = ball((4.0 * 5**0.5, 6.0 * 5**0.5, 5.0 * 5**0.5))
    assert settled(usual_one, orientation)[1:] == ((), 1)
    seen, stretch, looks = settled(ball((2.0 * 5**0.5, 9.0 * 5**0.5, 5.0 * 5**0.5)), orientation)
    assert looks == 2
    order = [{"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter] for letter in orientation]
    assert np.allclose([stretch[order.index(axis)] for axis in range(3)], [2, 1 / 1.5, 1], rtol=0.03)
    found = ratios_of(*on_body(seen), SIZES)
    assert found is not None and np.allclose(found, 1, atol=0.06)


def test_a_second_look_that_is_no_better_is_not_taken() -> None:
    volume = Volume(ball((4, 6, 5))[None].astype(np.float32), np.eye(4))
    first = Eye()(volume)
    blind = volume.with_data(np.zeros_like(volume.data))
    for other in (lambda scan: blind, lambda scan: first):
        assert settle(volume, first, other, on_body, SIZES) == (first, ())
    tiny = Volume(ball((1.5, 1.5, 1.5))[None].astype(np.float32), np.eye(4))  # 1/1000 of what is usual
    again: list[Volume] = []

    def blinded(scan: Volume) -> Volume:
        again.append(scan)
        return blind

    settle(tiny, Eye()(tiny), blinded, on_body, SIZES)
    assert [math.prod(scan.shape) for scan in again] == [8 * math.prod(tiny.shape)]


def test_sizes_are_checked_and_measured() -> None:
    with pytest.raises(InputError, match="sizes must be three sizes"):
        from_dict(PredictConfig, {"sizes": [1.0, 2.0, 3.0]}, "x")
    with pytest.raises(ValueError, match="three ratios > 1"):
        PredictConfig(sizes=(1.0, 1.0, 1.0, 1.0, 2.0, 2.0))
    assert PredictConfig(sizes=()).sizes == ()
    assert measured(RunConfig(), []) == RunConfig()


# ---- A model ----


def scan_of(orientation: str = "RAS") -> Volume:
    """A bright ball in noise, voxels of 1 x 1 x 1.5 mm."""
    noise = np.random.default_rng(0).uniform(0, 0.1, (1, 40, 44, 30))
    bright = ball((7, 12, 6), (40, 44, 30))[None]
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    return Volume((100 * (bright + noise)).astype(np.float32), affine).oriented(orientation)


@pytest.fixture(scope="module")
def model() -> ModelFile:
    """Sees what is bright, and holds the ball for smaller than it should be."""
    plain = tiny_model()
    weights = {name: np.zeros_like(array) for name, array in plain.weights.items()}
    for level in (0, 1):
        hidden, start, out = (weights[f"levels.{level}.{name}"] for name in LAYERS)
        hidden[:2, 0], start[:2] = [8, -8], [-4, 4]
        out[1, :2] = [1, -1]
    sizes = sizes_of(scan_of().data[0] > 50, (1.0, 1.0, 1.5))
    assert sizes is not None
    wanted = (*(sizes * [1.5, 1.0, 1.3]).tolist(), 1.25, 1.25, 1.25)
    config = replace(plain.config, predict=replace(plain.config.predict, sizes=wanted))
    return calibrated_on(ModelFile(config, weights, plain.card), scan_of())


def calibrated_on(model: ModelFile, scan: Volume) -> ModelFile:
    images = [prepare_image(scan, view) for view in model.config.preprocess.views]
    return replace(model, range=measure_range(model, images))


def test_a_prediction_tells_of_its_second_look(model: ModelFile) -> None:
    scan = scan_of("LAS")
    found = Predictor(model, probability=True).predict(scan)
    stretch = found.report["stretched"]
    assert np.allclose(stretch, [1.5, 1, 1.3], rtol=0.05)
    assert any("looked at again" in warning for warning in found.report["warnings"])
    assert found.look is not None and found.look.volume.shape == stretched(scan, stretch).shape
    once = replace(model, config=replace(model.config, predict=replace(model.config.predict, sizes=None)))
    first = Predictor(once, probability=True).predict(scan)
    assert first.report["stretched"] is None and not np.array_equal(first.mask.data, found.mask.data)
    of_stretched = Predictor(once, probability=True).predict(stretched(scan, stretch))
    assert of_stretched.probability is not None and found.probability is not None
    wanted = resampled(of_stretched.probability.data, scan.shape)
    assert np.abs(found.probability.data - wanted).max() < 1e-6
    assert np.array_equal(found.mask.data[0] > 0, wanted[0] > model.config.predict.threshold)


@pytest.mark.parametrize("name", ["numpy", "int16", "eager"])
def test_engines_look_again_alike(model: ModelFile, name: str) -> None:
    if name == "int16" and not engine.available():
        pytest.skip(engine.why_not())
    scan = scan_of()
    found, expected = (Predictor(model, engine=one).predict(scan) for one in (name, "auto"))
    assert np.allclose(found.report["stretched"], expected.report["stretched"], rtol=0.02)
    assert (found.mask.data != expected.mask.data).mean() < (0.01 if name == "int16" else 1e-3)


@pytest.mark.parametrize("orientation", ["RAS", "PIL"])
def test_the_program_in_c_looks_again_as_python_does(
    model: ModelFile, tmp_path: Path, orientation: str
) -> None:
    turned = scan_of(orientation)
    scan = write_nifti(tmp_path / "scan.nii.gz", turned.data[0], turned.affine)
    save_model(tmp_path / "model.safetensors", model)
    done = run(tmp_path / "model.safetensors", scan, "-o", tmp_path / "mask.nii.gz", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "stretched by 1.5 x 1 x 1.3 (axes R, A, S)" in done.stderr
    found = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)
    expected = Predictor(model).predict(turned).mask.data[0]
    assert expected.any() and (found != expected).mean() < 1e-4


def test_no_scan_is_stretched_too_far() -> None:
    for by, wanted in (
        ((2.0, 2.0, 2.0), (2.0, 2.0, 2.0)),
        ((9.0, 1.0, 0.1), (3.0, 1.0, 1 / 3)),
        ((3.0, 3.0, 1.0), (8**0.5, 8**0.5, 1.0)),
        ((3.0, 2.0, 2.0), (3.0 ** (p := math.log(8) / math.log(12)), 2.0**p, 2.0**p)),
        ((3.0, 3.0, 0.5), (3.0, 3.0, 0.5)),
    ):
        assert np.allclose(second_look.bearable(np.array(by)), wanted)
