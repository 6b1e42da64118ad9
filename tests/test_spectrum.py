"""Lines of k-space: what is usual, what is brought back, and which look at a scan counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mednca import spectrum
from mednca.config import PredictConfig, RunConfig, from_dict, to_dict
from mednca.dataset import measured, unmeasured
from mednca.errors import InputError
from mednca.modelfile import ModelFile, load_model, save_model
from mednca.predict import Predictor
from mednca.spectrum import (
    GAIN,
    GRID,
    Usual,
    candidates,
    expected_overlap,
    mended,
    of_channels,
    settle,
    usual,
)
from mednca.volume import Volume
from tests.small import tiny_model

SHAPE = (24, 30, 20)
properties = settings(deadline=None, max_examples=30)


def scan_of(seed: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    """A scan whose lines lie along a power law, each a little off, as those of organs do; positive."""
    random = np.random.default_rng(seed)
    waves = [np.fft.fftfreq(n) for n in shape]
    distance = np.sqrt(sum(w**2 for w in np.meshgrid(*waves, indexing="ij")) + 0.02)
    image = np.fft.ifftn(np.fft.fftn(random.normal(size=shape)) / distance**1.5).real
    return (500 + 100 * image / image.std()).astype(np.float32)


def with_lines(image: NDArray[np.float32], axis: int, lines: list[int], gain: float) -> NDArray[np.float32]:
    """Image, axis, numbers of lines along it and a factor -> the image with these lines multiplied by it."""
    spectra = np.fft.rfft(image.astype(float), axis=axis)
    np.moveaxis(spectra, axis, 0)[lines] *= gain
    return np.fft.irfft(spectra, image.shape[axis], axis=axis).astype(np.float32)


USUAL = usual(scan_of(seed) for seed in range(40))
assert USUAL is not None


def apart(image: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Two images -> their root mean square difference, over the standard deviation of the first."""
    return float(np.sqrt(np.mean((image - other) ** 2)) / image.std())


# ---- What is usual ----


def test_what_is_usual_is_measured_with_a_margin() -> None:
    assert USUAL is not None
    assert USUAL.profiles.shape == (3, GRID) and 0.1 < USUAL.limit < 1.5
    assert [mended(scan_of(seed), USUAL, 1)[1] for seed in range(40, 60)] == [0] * 20
    assert of_channels(USUAL.numbers, 1)[0].limit == USUAL.limit
    assert np.array_equal(of_channels(USUAL.numbers * 2, 2)[1].profiles, USUAL.profiles)


def test_where_there_are_too_few_lines_nothing_is_told() -> None:
    thin = [scan_of(seed, (15, 12, 9)) for seed in range(5)]
    assert usual(thin) is None
    assert usual([np.ones(SHAPE, np.float32)]) is None
    assert usual([]) is None
    along = np.repeat(scan_of(1)[:, :, :1], 20, axis=2)  # the same all along an axis
    assert [len(log) for log in spectrum.log_powers(along.astype(float))] == [12, 15, 0]
    flat = usual(scan_of(seed, (30, 40, 1)) for seed in range(5))
    assert flat is not None and not flat.profiles[2].any() and flat.profiles[0].any()


def test_powers_are_those_of_the_transform_however_many_slices_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = scan_of(2)
    wanted = []
    for axis in range(3):
        lines = np.fft.rfft(image.astype(float) - image.mean(dtype=float), axis=axis)
        power = np.abs(np.moveaxis(lines, axis, 0)[1:]) ** 2
        wanted.append(np.log(power.sum(axis=(1, 2))))
    for voxels in (1, 2500, 1 << 20):
        monkeypatch.setattr(spectrum, "SLAB", voxels)
        for found, expected in zip(spectrum.log_powers(image), wanted, strict=True):
            assert np.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_units_of_intensity_do_not_matter(scale: float) -> None:
    assert USUAL is not None
    image = with_lines(scan_of(3), 1, [4, 9], 6.0)
    found, count = mended(image * np.float32(scale), USUAL, 1)
    assert count == 2
    assert np.allclose(found / scale, mended(image, USUAL, 1)[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((1.0,) * 72, "must be 73 finite numbers, 73 for each channel, got 72"),
        ((0.0,) + (1.0,) * 72, "must have limits > 0"),
        ((1.0,) * 72 + (float("nan"),), "must be 73 finite numbers"),
    ],
)
def test_numbers_that_tell_nothing_are_refused(numbers: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(RunConfig(), predict=PredictConfig(spectrum=numbers))


def test_what_is_yet_to_be_measured_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="measured in training"):
        _ = RunConfig(predict=PredictConfig(spectrum=())).spectra
    assert RunConfig().spectra == []


# ---- Mending ----


@properties
@given(
    st.integers(100, 200),
    st.integers(0, 2),
    st.lists(st.sampled_from([3, 6, 9]), min_size=1, max_size=2, unique=True),
    st.sampled_from([-8.0, -3.0, 0.2, 4.0, 12.0]),
)
def test_unusual_lines_are_brought_back(seed: int, axis: int, lines: list[int], gain: float) -> None:
    """With the sign that they have, to what they may have been: no line is far from what is usual."""
    assert USUAL is not None
    image = scan_of(seed)
    faulty = with_lines(image, axis, lines, gain)
    found, count = mended(faulty, USUAL, -1 if gain < 0 else 1)
    assert len(lines) <= count <= len(lines) + 1  # a neighbour that was nearly unusual may be too
    assert apart(image, found) < 0.25 * apart(image, faulty) + 0.02
    left = np.fft.rfft(image.astype(float), axis=axis), np.fft.rfft(found.astype(float), axis=axis)
    others = [line for line in range(1, left[0].shape[axis]) if line not in lines]
    kept = [np.take(spectra, others, axis) for spectra in left]
    same = np.isclose(*kept, atol=1e-3 * np.abs(kept[0]).max())
    assert same.all(axis=tuple(other for other in range(3) if other != axis)).sum() >= len(others) - 1


def test_a_scan_of_usual_lines_is_left_to_the_bit() -> None:
    assert USUAL is not None
    image = scan_of(50)
    found, count = mended(image, USUAL, -1)
    assert found is image and count == 0
    assert candidates(Volume(image[None], np.eye(4)), [USUAL]) == []


def test_fill_is_no_part_of_a_scan() -> None:
    """Lines are those within the box of the rest; what lies around it stays."""
    assert USUAL is not None
    image = with_lines(scan_of(51), 1, [5], 8.0)
    around = np.zeros((40, 50, 20), np.float32)
    around[7:31, 3:33] = image
    found, count = mended(around, USUAL, 1)
    assert count == 1
    assert np.array_equal(found[7:31, 3:33], mended(image, USUAL, 1)[0])
    found[7:31, 3:33] = 0
    assert not found.any()


def test_scans_are_mended_along_the_axes_of_the_body() -> None:
    """However they are stored."""
    assert USUAL is not None
    image = with_lines(scan_of(52), 2, [3, 6], 9.0)
    volume = Volume(image[None], np.eye(4))
    affine = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    turned = Volume(np.ascontiguousarray(image[:, ::-1, ::-1].transpose(1, 2, 0))[None], affine)
    assert np.array_equal(turned.canonical().data, volume.data)
    for (one, count), (other, same) in zip(
        candidates(volume, [USUAL]), candidates(turned, [USUAL]), strict=True
    ):
        assert count == same == 2
        assert np.array_equal(other.canonical().data, one.data)
        assert not np.array_equal(one.data, volume.data)


def test_every_channel_has_what_is_usual_in_it() -> None:
    assert USUAL is not None
    faulty = with_lines(scan_of(53), 0, [7], 10.0)
    both = Volume(np.stack([scan_of(54), faulty]), np.eye(4))
    (right, count), (over, _) = candidates(both, [USUAL, USUAL])
    assert count == 1 and np.array_equal(right.data[0], both.data[0])
    assert np.array_equal(right.data[1], mended(faulty, USUAL, 1)[0])
    assert np.array_equal(over.data[1], mended(faulty, USUAL, -1)[0])


# ---- Which look counts ----


@properties
@given(st.lists(st.integers(0, 1023), min_size=1, max_size=60))
def test_the_expected_overlap_is_that_of_the_best_mask(parts: list[int]) -> None:
    """Of all masks that hold the voxels above some probability."""
    shares = (np.array(parts) + 0.5) / 1024
    wanted = max(
        2 * shares[shares >= least].sum() / (np.count_nonzero(shares >= least) + shares.sum())
        for least in shares
    )
    probability = shares.astype(np.float32).reshape(1, -1, 1, 1)
    assert expected_overlap(probability) == pytest.approx(wanted, rel=1e-9)
    halves = np.concatenate([probability / 2, probability / 2])  # two classes, told as one foreground
    assert expected_overlap(halves) == pytest.approx(wanted, rel=1e-9)


def test_a_sure_mask_overlaps_and_a_flat_one_does_not() -> None:
    sure = np.zeros((1, 10, 10, 10), np.float32)
    sure[:, 2:5] = 1
    assert expected_overlap(sure) > 0.99
    assert expected_overlap(np.full((1, 10, 10, 10), 0.2, np.float32)) == pytest.approx(1 / 3, abs=2e-3)
    assert expected_overlap(np.zeros((1, 4, 4, 4), np.float32)) < 0.01
    sure[:, 8:] = np.nan  # what a broken answer is not sure of
    assert expected_overlap(sure) > 0.99


@pytest.mark.parametrize(
    ("overlaps", "best"),
    [((0.6, 0.9, 0.8), 1), ((0.6, 0.8, 0.9), 2), ((0.6, 0.6 + GAIN / 2, 0.5), 0), ((0.9, 0.6, 0.6), 0)],
)
def test_the_look_counts_that_the_model_is_surest_of(overlaps: tuple[float, ...], best: int) -> None:
    assert USUAL is not None
    volume = Volume(with_lines(scan_of(55), 1, [5], 8.0)[None], np.eye(4))
    shown: list[Volume] = []

    def look(scan: Volume, shares: bool) -> int:
        assert shares
        shown.append(scan)
        return len(shown) - 1

    seen, scan, lines = settle(volume, look, lambda number: overlaps[number], [USUAL])
    assert len(shown) == 3 and shown[0] is volume
    assert seen == best and scan is shown[best] and lines == (1 if best else 0)


def test_usual_scans_are_looked_at_once_and_nothing_more_is_asked_for() -> None:
    asked: list[bool] = []
    volume = Volume(scan_of(56)[None], np.eye(4))
    for known in ([USUAL], []):
        asked.clear()
        seen = settle(volume, lambda _, shares: asked.append(shares), lambda _: 0.0, known)  # type: ignore
        assert asked == [False] and seen[1:] == (volume, 0)


# ---- In a model ----


def knowing(model: ModelFile) -> ModelFile:
    """Model -> the same, which knows what is usual here."""
    assert USUAL is not None
    predict = replace(model.config.predict, spectrum=USUAL.numbers)
    return replace(model, config=replace(model.config, predict=predict))


def test_a_model_file_keeps_what_is_usual_and_older_programs_do_not_read_it(tmp_path: Path) -> None:
    plain = tiny_model()
    model = knowing(plain)
    read = load_model(save_model(tmp_path / "model.safetensors", model))
    assert read.config == model.config and read.hash == model.hash != plain.hash
    assert b'"version": 6' in (tmp_path / "model.safetensors").read_bytes().replace(b'\\"', b'"')
    assert "spectrum" not in to_dict(plain.config, complete=False)["predict"]
    assert from_dict(RunConfig, to_dict(model.config), "x") == model.config


@pytest.mark.parametrize("engine", ["native", "numpy"])
def test_the_report_tells_what_was_changed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "GAIN", -1.0)  # the mended scan counts, however unsure this model is
    model = knowing(tiny_model())
    once = replace(model, config=replace(model.config, predict=replace(model.config.predict, spectrum=None)))
    volume = Volume(with_lines(scan_of(57), 0, [4, 8], 7.0)[None], np.eye(4))
    found = Predictor(model, engine=engine, probability=True).predict(volume)
    assert found.report["lines_changed"] == 2
    assert any("2 line(s) of k-space are stronger or weaker" in told for told in found.report["warnings"])
    assert USUAL is not None
    looks = [
        Predictor(once, engine=engine, probability=True).predict(scan)
        for scan, _ in candidates(volume, [USUAL])
    ]
    surest = max(looks, key=lambda one: expected_overlap(one.probability.data) if one.probability else 0)
    assert np.array_equal(found.mask.data, surest.mask.data)
    usual_scan = Volume(scan_of(58)[None], np.eye(4))
    told, plain = (Predictor(one, engine=engine).predict(usual_scan) for one in (model, once))
    assert told.report["lines_changed"] is None and np.array_equal(told.mask.data, plain.mask.data)


def test_what_is_usual_is_measured_on_the_whole_training_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model looks at a part."""
    asked = RunConfig(predict=PredictConfig(spectrum=()))
    inside = replace(asked, preprocess=replace(asked.preprocess, roi=(0.2, 0.8, 0.2, 0.8, 0.0, 1.0)))
    scans: list[Any] = [
        type("Scan", (), {"id": str(seed), "image": Volume(scan_of(seed)[None], np.eye(4))})
        for seed in range(40)
    ]
    assert USUAL is not None
    for config in (asked, inside):
        found = measured(config, scans)
        assert found.predict.spectrum == USUAL.numbers
        assert unmeasured(found) == config
    thin = [type("Scan", (), {"id": "x", "image": Volume(np.ones((1, 4, 4, 4)), np.eye(4))})]
    assert measured(asked, thin).predict.spectrum is None  # type: ignore[arg-type]


def test_a_newer_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "model.safetensors", knowing(tiny_model()))
    monkeypatch.setattr("mednca.modelfile.VERSION", 5)
    with pytest.raises(InputError, match=r"version 6 is newer than this mednca reads \(5\)"):
        load_model(path)


def test_limits_and_profiles_come_in_the_order_of_the_numbers() -> None:
    numbers = tuple(float(i + 1) for i in range(73))
    (one,) = of_channels(numbers, 1)
    assert (
        one.limit == 1 and one.profiles[0, 0] == 2 and one.profiles[1, 0] == 26 and one.profiles[2, -1] == 73
    )
    assert Usual(one.limit, one.profiles).numbers == numbers
