"""Prediction: exact on every grid, independent of how it is cut up, bounded in memory; and its files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from mednca import engine, predict
from mednca.calibrate import measure_range
from mednca.errors import InputError
from mednca.machine import processors
from mednca.modelfile import ModelFile, save_model
from mednca.predict import (
    Predictor,
    decide,
    largest_component,
    plausibility,
    surest_component,
    with_ensemble,
)
from mednca.rule import MedNCAConfig, weight_shapes
from mednca.segment import find_scans, predict_files
from mednca.slices import prepare_image
from mednca.volume import Volume
from tests.small import SHAPE, tiny_model, voxels, write_nifti

CODES = [
    "".join(codes)
    for a in range(3)
    for b in {0, 1, 2} - {a}
    for codes in (
        (x, y, z)
        for x in ("RL", "AP", "SI")[a]
        for y in ("RL", "AP", "SI")[b]
        for z in ("RL", "AP", "SI")[3 - a - b]
    )
]
MODELS = {
    "own grid": tiny_model(),
    "native": tiny_model(context=1, spacing=(1.3, 0.9)),
    "coronal, two classes": tiny_model(classes=2, axes=(1,)),
    "three axes": tiny_model(classes=2, axes=(0, 2, 1), spacing=(1.2, 1.2)),
    "three axes, one size": tiny_model(axes=(2, 0, 1), size=(16, 20)),
    "smoothed": tiny_model(classes=2, context=1, axes=(1,), smoothing=2),
    "stretched": tiny_model(size=(16, 16), normalise="slice"),
}


ENGINES = [
    pytest.param("native", marks=pytest.mark.skipif(not engine.available(), reason=engine.why_not())),
    "numpy",
    "folded",
]

needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())


def turned(volume: Volume, codes: str) -> Volume:
    """Volume and axis codes -> the same scan stored along other axes, made with nibabel alone."""
    turn = ornt_transform(nib.orientations.io_orientation(volume.affine), axcodes2ornt(codes))
    data = np.stack([apply_orientation(channel, turn) for channel in volume.data])
    return Volume(data, volume.affine @ inv_ornt_aff(turn, volume.shape))


def scan(affine: NDArray[np.float64] | None = None) -> Volume:
    """A scan of 12 x 14 x 6 voxels, by default of 1 x 1 x 2 mm in RAS order."""
    return Volume(voxels()[None], np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine)


@pytest.fixture(scope="module", params=ENGINES[:2])
def predictors(request: pytest.FixtureRequest) -> dict[str, Predictor]:
    return {name: Predictor(model, probability=True, engine=request.param) for name, model in MODELS.items()}


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("name", MODELS)
def test_the_tiny_models_are_no_trivial_ones(name: str, predictors: dict[str, Predictor]) -> None:
    mask = predictors[name].predict(scan()).mask.data
    assert 0.02 < (mask > 0).mean() < 0.98
    assert set(np.unique(mask)) == {0, *predictors[name].labels}


@pytest.mark.parametrize("codes", CODES)
def test_a_turned_scan_gives_the_turned_mask(codes: str, predictors: dict[str, Predictor]) -> None:
    """For every model, bit for bit: slices are cut along the axes of the body, not of the file."""
    for predictor in predictors.values():
        expected = predictor.predict(scan())
        found = predictor.predict(turned(scan(), codes))
        assert np.array_equal(found.mask.data, turned(expected.mask, codes).data)
        assert expected.probability is not None and found.probability is not None
        assert np.array_equal(found.probability.data, turned(expected.probability, codes).data)
        assert np.abs(found.mask.affine - turned(scan(), codes).affine).max() <= 1e-6


@pytest.mark.parametrize("name", ENGINES[:2])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(CODES))
def test_a_turned_oblique_scan_gives_the_turned_mask(name: str, seed: int, codes: str) -> None:
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(random.uniform(0.6, 2.5, 3))
    affine[:3, 3] = random.uniform(-300, 300, 3)
    volume, predictor = scan(affine), Predictor(MODELS["native"], engine=name)
    found, expected = (
        predictor.predict(turned(volume, codes)).mask,
        turned(predictor.predict(volume).mask, codes),
    )
    assert np.array_equal(found.data, expected.data)
    assert np.abs(found.affine - expected.affine).max() <= 1e-6


def along(model: ModelFile, axes: tuple[int, ...]) -> ModelFile:
    """Model -> the same model along other axes."""
    preprocess = replace(model.config.preprocess, axes=axes)
    return replace(model, config=replace(model.config, preprocess=preprocess))


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=8, deadline=None)
@given(
    axes=st.integers(2, 3).flatmap(lambda count: st.permutations(range(3)).map(lambda p: tuple(p[:count]))),
    codes=st.sampled_from(CODES),
)
def test_the_axes_of_a_model_are_averaged(name: str, axes: tuple[int, ...], codes: str) -> None:
    model, volume = MODELS["three axes"], turned(scan(), codes)
    alone = [Predictor(along(model, (axis,)), engine=name, probability=True).predict(volume) for axis in axes]
    told: list[tuple[int, int]] = []
    predictor = Predictor(along(model, axes), engine=name, probability=True)
    together = predictor.predict(volume, progress=lambda done, total: told.append((done, total)))
    assert together.probability is not None
    average = np.mean([one.probability.data.astype(np.float64) for one in alone if one.probability], axis=0)
    assert np.abs(together.probability.data - average).max() < 3e-7
    decided = decide(together.probability.data, model.config.predict.threshold, model.config.values)
    assert np.array_equal(together.mask.data[0], decided)
    assert any((one.mask.data != together.mask.data).mean() > 0.01 for one in alone)
    slices = sum(scan().shape[axis] for axis in axes)
    assert told[-1] == (slices, slices) and [done for done, _ in told] == sorted({done for done, _ in told})
    bare = Predictor(along(model, axes), engine=name).predict(volume)  # nobody asked for probabilities
    assert bare.probability is None and np.array_equal(bare.mask.data, together.mask.data)


@pytest.mark.parametrize("with_engine", ["numpy", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_the_result_does_not_depend_on_how_many_slices_run_at_a_time(
    name: str, with_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(MODELS[name], probability=True, engine=with_engine)
    expected = predictor.predict(scan()).probability
    monkeypatch.setattr(predict, "CELLS", 1)  # one slice at a time
    alone = predictor.predict(scan()).probability
    assert expected is not None and alone is not None
    # The same draws in both. NumPy goes slice by slice, the same bits; a convolution over another number of
    # slices may sum in another order, and these random rules make much of a float32's rounding.
    np.testing.assert_allclose(alone.data, expected.data, rtol=0, atol=0 if with_engine == "numpy" else 1e-4)


def test_the_seed_names_the_draws_and_an_ensemble_averages_them() -> None:
    model = MODELS["own grid"]
    one, again, other = (Predictor(model, seed=s, probability=True).predict(scan()) for s in (0, 0, 1))
    both = Predictor(with_ensemble(model, 2), probability=True).predict(scan())
    shares = [p.probability.data for p in (one, other, both) if p.probability]
    assert np.array_equal(one.mask.data, again.mask.data)
    assert not np.array_equal(shares[0], shares[1])
    np.testing.assert_allclose(shares[2], (shares[0] + shares[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("with_engine", [*ENGINES, pytest.param("int16", marks=needs_engine)])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("axes", [(0,), (1, 2), (2,)], ids=str)
def test_smoothing_averages_neighbouring_slices(axes: tuple[int, ...], times: int, with_engine: str) -> None:
    """By definition: what scipy makes of the probabilities of the model that does not smooth."""
    volume = Volume(
        np.random.default_rng(3).random((1, 9, 11, 8)).astype(np.float32),
        np.array([[0, -1.0, 0, 5], [1.0, 0, 0, 7], [0, 0, 2.0, 1], [0, 0, 0, 1]]),
    )
    file = tiny_model(classes=2, axes=axes, roi=(0, 1, 0.1, 0.9, 0, 0.7))
    images = [prepare_image(volume, view) for view in file.config.preprocess.views]
    file = replace(file, range=measure_range(file, images))
    plain = Predictor(file, engine=with_engine, probability=True).predict(volume)
    settings_ = replace(file.config.predict, smoothing=times)
    smooth = replace(file, config=replace(file.config, predict=settings_))
    found = Predictor(smooth, engine=with_engine, probability=True).predict(volume)
    assert plain.probability is not None and found.probability is not None
    inside = plain.probability.canonical().data.any(axis=0)
    assert not inside.all()
    corners = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = (slice(None), *(slice(where[0], where[-1] + 1) for where in corners))
    expected = plain.probability.canonical().data[box].astype(np.float64)
    for _ in range(times):
        expected = convolve1d(expected, [0.25, 0.5, 0.25], axis=1 + axes[0], mode="nearest")
    shares = found.probability.canonical().data
    np.testing.assert_allclose(shares[box], expected, atol=1e-6)
    assert np.abs(expected - plain.probability.canonical().data[box]).max() > 0.05
    decided = decide(shares, 0.5, (1, 2))
    assert np.array_equal(found.mask.canonical().data[0], decided) and decided[box[1:]].any()
    decided[box[1:]] = 0
    assert not decided.any()


@pytest.mark.parametrize("with_engine", [*ENGINES, pytest.param("int16", marks=needs_engine)])
@pytest.mark.parametrize("mirror", [(0,), (1,), (2,), (2, 0)], ids=str)
def test_a_mirrored_run_is_that_of_the_mirrored_scan(mirror: tuple[int, ...], with_engine: str) -> None:
    """By definition: a whole scan is mirrored, predicted, and the answer mirrored back."""
    volume = Volume(
        np.random.default_rng(3).random((1, 9, 11, 4)).astype(np.float32),
        np.array([[0, -1.0, 0, 5], [1.0, 0, 0, 7], [0, 0, 2.0, 1], [0, 0, 0, 1]]),
    )
    file = tiny_model(context=1, axes=(2, 0, 1), spacing=(1.0, 1.0))
    images = [prepare_image(volume, view) for view in file.config.preprocess.views]
    file = replace(file, range=measure_range(file, images))
    settings_ = replace(file.config.predict, ensemble=2 ** len(mirror), mirror=mirror)
    several = replace(file, config=replace(file.config, predict=settings_))
    found = Predictor(several, engine=with_engine, seed=5, probability=True).predict(volume)
    expected = np.zeros(volume.shape)
    for run in range(2 ** len(mirror)):
        turned = volume.canonical()
        places = [axis + 1 for k, axis in enumerate(mirror) if run >> k & 1]
        turned = turned.with_data(np.ascontiguousarray(np.flip(turned.data, places)))
        one = Predictor(file, engine=with_engine, seed=5 + run, probability=True).predict(turned).probability
        assert one is not None
        back = turned.with_data(np.ascontiguousarray(np.flip(one.data, places))).oriented_like(volume)
        expected += back.data[0] / 2 ** len(mirror)
    assert found.probability is not None
    tolerance = 2e-3 if with_engine == "int16" else 2e-4
    np.testing.assert_allclose(found.probability.data[0], expected, atol=tolerance)


def test_a_voxel_is_the_likeliest_class_where_the_foreground_exceeds_the_threshold() -> None:
    probability = np.array([[0.3, 0.1, 0.6], [0.3, 0.2, 0.1]], np.float32).reshape(2, 3, 1, 1)
    assert decide(probability, 0.5, (4, 9)).ravel().tolist() == [4, 0, 4]


def test_the_largest_component_stays() -> None:
    mask = np.zeros((8, 4, 4), np.uint8)
    mask[:2, :2], mask[5:] = 1, 2
    kept = largest_component(mask)
    assert np.array_equal(kept, np.where(np.arange(8)[:, None, None] >= 5, mask, 0))


@pytest.mark.parametrize("name", ["auto", "numpy", "eager"])
def test_the_surest_piece_stays_where_the_model_says_so(name: str) -> None:
    model = tiny_model()
    whole = Predictor(model, engine=name, probability=True).predict(scan())
    assert whole.probability is not None
    inside, chances = whole.mask.data[0], whole.probability.data
    kept = {}
    for piece in ("largest", "surest"):
        predict = replace(model.config.predict, largest_component=True, piece=piece)
        changed = replace(model, config=replace(model.config, predict=predict))
        kept[piece] = Predictor(changed, engine=name).predict(scan())
        share = kept[piece].mask.data.sum() / inside.sum()
        assert kept[piece].report["largest_piece"] == pytest.approx(share, abs=1e-6)
    assert np.array_equal(kept["largest"].mask.data[0], largest_component(inside))
    assert np.array_equal(kept["surest"].mask.data[0], surest_component(inside, chances))


def test_a_scan_far_from_the_training_scans_carries_a_warning() -> None:
    fingerprint = {"spacing_mm": [[1, 1, 2], [1, 1, 2]], "size_mm": [[12, 14, 12], [12, 14, 12]]}
    assert plausibility(scan(), fingerprint) == []
    (first, second) = plausibility(scan(np.diag([2.0, 1.0, 2.0, 1.0])), fingerprint)
    assert first.startswith("spacing 2 x 1 x 2 mm") and second.startswith("field of view 24 x 14 x 12 mm")


# -- files


def test_a_mask_has_grid_and_format_of_its_scan_and_a_report_beside_it(tmp_path: Path) -> None:
    affine = np.array([[0, -1.2, 0, 5], [0.9, 0, 0.1, -3], [0, 0.1, 2, 8], [0, 0, 0, 1.0]])
    path = write_nifti(tmp_path / "a.b.nii.gz", voxels(), affine)
    predictor = Predictor(tiny_model(), seed=5)
    (report,) = predict_files(predictor, [path], tmp_path / "mask.nii")
    image, mask = nib.load(path), nib.load(tmp_path / "mask.nii")
    assert np.array_equal(image.affine, mask.affine) and image.shape == mask.shape
    assert mask.get_data_dtype() == np.uint8
    assert report == json.loads((tmp_path / "mask.json").read_text())
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    count = int(np.asarray(mask.dataobj).sum())
    assert report["foreground_voxels"] == {"foreground": count}
    assert report["foreground_ml"]["foreground"] == pytest.approx(count * voxel_ml, abs=1e-6)
    if engine.available():
        told = {"engine": "native", "threads": processors(), "instructions": engine.instructions()[0]}
        assert told.items() <= report.items() and 0.4 < report["computed"] < 0.6  # the fire rate is 0.5
    else:
        assert (report["engine"], report["threads"], report["instructions"]) == ("numpy", None, None)
    told = {name: report[name] for name in ("model", "model_hash", "seed", "device", "shape", "warnings")}
    assert told == {
        "model": "tiny",
        "model_hash": predictor.file.hash,
        "seed": 5,
        "device": "cpu",
        "shape": [12, 14, 6],
        "warnings": [],
    }


def test_a_volume_is_not_made_up_where_the_spacing_is_a_placeholder(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(voxels(), np.eye(4)), tmp_path / "a.nii.gz")  # 1 x 1 x 1 of no unit
    (report,) = predict_files(Predictor(tiny_model()), [tmp_path / "a.nii.gz"], tmp_path / "m.nii.gz")
    assert report["foreground_ml"] == {"foreground": None} and report["spacing_mm"] is None
    assert report["foreground_voxels"]["foreground"] > 0


def test_masks_of_a_folder_have_the_names_and_formats_of_its_scans(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    from PIL import Image

    write_nifti(tmp_path / "in" / "a.nii.gz", voxels())
    write_nifti(tmp_path / "in" / "b.nii", voxels(1))
    Image.fromarray(voxels(2, (20, 16)).astype(np.uint8)).save(tmp_path / "in" / "c.png")
    (tmp_path / "in" / "notes.txt").write_text("left alone")
    reports = list(predict_files(Predictor(tiny_model()), [tmp_path / "in"], tmp_path / "new" / "out"))
    names = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert names == ["a.json", "a.nii.gz", "b.json", "b.nii", "c.json", "c.png"]
    assert [Path(report["output"]).name for report in reports] == ["a.nii.gz", "b.nii", "c.png"]


def test_numbered_files_are_the_channels_of_one_scan(tmp_path: Path) -> None:
    model = tiny_model(modalities=2)
    for name, seed in (("x_0001", 1), ("x_0000", 0), ("y_0000", 2), ("y_0001", 3)):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", voxels(seed))
    both = np.stack([voxels(0), voxels(1)], axis=-1)
    write_nifti(tmp_path / "z.nii.gz", both)
    inputs = [tmp_path / "in", tmp_path / "z.nii.gz"]
    assert [scan.name for scan in find_scans(inputs, 2)] == ["x", "y", "z"]
    list(predict_files(Predictor(model), inputs, tmp_path / "out"))
    masks = [np.asarray(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj) for name in "xyz"]
    assert np.array_equal(masks[0], masks[2]) and not np.array_equal(masks[0], masks[1])


def test_with_one_channel_a_number_is_part_of_the_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "x_0000.nii.gz", voxels())
    assert [scan.name for scan in find_scans([tmp_path], 1)] == ["x_0000"]


def test_force_replaces_masks_and_their_reports(tmp_path: Path) -> None:
    path, mask = write_nifti(tmp_path / "a.nii.gz", voxels()), tmp_path / "m.nii.gz"
    list(predict_files(Predictor(tiny_model()), [path], mask))
    before = mask.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        predict_files(Predictor(tiny_model(), seed=1), [path], mask)
    list(predict_files(Predictor(tiny_model(), seed=1), [path], mask, force=True))
    assert mask.read_bytes() != before
    assert json.loads((tmp_path / "m.json").read_text())["seed"] == 1


def test_an_unfinished_training_is_told_in_every_report(tmp_path: Path) -> None:
    model = tiny_model(card={"finished": False, "iterations": 100})
    path = write_nifti(tmp_path / "a.nii.gz", voxels())
    (report,) = predict_files(Predictor(model), [path], tmp_path / "m.nii.gz")
    assert report["warnings"] == ["the training of this model is not finished (iteration 100 of 5000)"]


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from mednca.modelfile import load_model
from mednca.predict import Predictor
from mednca.volume import Volume

def memory(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

predictor = Predictor(load_model(sys.argv[1]), engine=sys.argv[2])
random = np.random.default_rng(0)
predictor.predict(Volume(random.random((1, 16, 16, 2), np.float32), np.eye(4)))
volume = Volume(random.random((1, 256, 256, 40), np.float32), np.eye(4))
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = memory("VmRSS")
predictor.predict(volume)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a part of a process")
@pytest.mark.parametrize("with_engine", ENGINES)
def test_a_volume_of_256_x_256_x_40_predicts_in_bounded_memory(with_engine: str, tmp_path: Path) -> None:
    """Peak memory over what is in use with the volume loaded, with the paper's n = 32 and h = 128.

    The volume takes 10 MB as float32. In C it is not copied; each thread has the states of a slice, 258 x 258
    x 32 x 4 B = 8.5 MB. For the others a few copies are made, and two slices run at a time (CELLS): 2 x 256 x
    256 x 128 x 4 B = 64 MB of hidden units in the folded engine.
    """
    tiny = tiny_model()
    config = replace(tiny.config, model=MedNCAConfig(steps=(1, 1)))
    path = save_model(tmp_path / "m.safetensors", ModelFile(config, still(config.model)))
    words = [sys.executable, "-c", MEASURE, str(path), with_engine]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = float(done.stdout)
    print(f"peak memory of a 256 x 256 x 40 volume, {with_engine}: {peak:.0f} MiB")
    assert peak < (60 if with_engine == "native" else 400)


def still(config: MedNCAConfig) -> dict[str, NDArray[np.float32]]:
    """Config -> the arrays of a rule that does nothing, as an untrained one."""
    return {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(config).items()}


# ---- Engines ----


@needs_engine
def test_threads_and_gate_are_for_the_engines_in_c() -> None:
    model = MODELS["own grid"]
    for options in ({"threads": 2}, {"gate": 3}):
        (name,) = options
        with pytest.raises(
            InputError, match=f"{name} is for the engines native and int16, this one is numpy"
        ):
            Predictor(model, engine="numpy", **options)
    for options, least in (({"threads": 0}, 1), ({"gate": -1}, 0)):
        with pytest.raises(InputError, match=f"must be at least {least}, got"):
            Predictor(model, engine="native", **options)
    assert Predictor(model, engine="native", threads=3).predict(scan()).report["threads"] == 3


def bright(least: float) -> ModelFile:
    """Intensity from 0 to 1 -> a model of two levels that finds what is brighter, by each pixel alone."""
    model = MODELS["own grid"]
    weights = still(model.config.model)
    for level in (0, 1):
        weights[f"levels.{level}.update_in.weight"][0, 0] = 10.0  # hidden unit 0: how much brighter
        weights[f"levels.{level}.update_in.bias"][:2] = -10.0 * least, 1.0  # hidden unit 1: always 1
        weights[f"levels.{level}.update_out.weight"][1, :2] = 1.0, -0.5
    config = replace(model.config, model=replace(model.config.model, fire_rate=1.0))
    return replace(model, config=config, weights=weights)


@needs_engine
def test_a_gate_computes_less_and_finds_the_same_near_the_coarse_foreground() -> None:
    data = voxels(shape=(1, 96, 64, 3)).astype(np.float32) / 10
    data[0, 8:24, 12:20] += 1000
    volume = Volume(data, np.eye(4))
    whole, near, wide = (
        Predictor(bright(0.5), engine="native", gate=gate, probability=True).predict(volume)
        for gate in (None, 4, 999)
    )
    assert (whole.report["gate"], near.report["gate"], whole.report["computed"]) == (None, 4, 1.0)
    cells = {"coarse": 24 * 16 * 2, "fine": 96 * 64 * 3}  # cells times steps
    opened = 24 * 16 * 3  # the foreground of 16 x 8 and 4 pixels around it, at the fine level
    expected = (cells["coarse"] + opened) / sum(cells.values())
    assert near.report["computed"] == pytest.approx(expected, abs=1e-4)
    assert near.mask.data.sum() == 16 * 8 * 3 and np.array_equal(near.mask.data, whole.mask.data)
    assert whole.probability is not None and near.probability is not None and wide.probability is not None
    assert not np.array_equal(near.probability.data, whole.probability.data)
    assert np.array_equal(wide.probability.data, whole.probability.data)


@needs_engine
def test_a_gate_is_wide_open_where_the_coarse_level_finds_nothing() -> None:
    volume = Volume(voxels(shape=(1, 96, 64, 2)), np.eye(4))
    report = Predictor(bright(5.0), engine="native", gate=4).predict(volume).report
    assert report["computed"] == 1.0 and report["foreground_voxels"] == {"foreground": 0}


@pytest.mark.parametrize("with_engine", ENGINES)
@pytest.mark.parametrize(("least", "share"), [(5.0, 0.5), (-5.0, 0.5), (0.5, (3 / 16 + 2) / (20 / 16 + 20))])
def test_an_empty_or_full_mask_is_believed_after_half_of_the_steps(
    least: float, share: float, with_engine: str
) -> None:
    """Another as soon as it has not changed for two steps: here after the third, and the second that fine."""
    model = bright(least)
    model = replace(model, config=replace(model.config, model=replace(model.config.model, steps=(20, 20))))
    data = np.zeros((1, 24, 16, 6), np.float32)
    data[0, 4:8, 8:12] = 1
    report = Predictor(model, engine=with_engine, patience=2).predict(Volume(data, np.eye(4))).report
    assert report["steps_run"] / report["steps_all"] == pytest.approx(share, abs=1e-9)
    assert report["signals"]["flips"] == 0 and report["signals"]["levels"] == 1
    assert (report["foreground_voxels"]["foreground"] > 0) == (least < 5)


def test_patience_is_a_number_of_steps() -> None:
    with pytest.raises(InputError, match="patience must be at least 1 step, got 0"):
        Predictor(MODELS["own grid"], engine="numpy", patience=0)


def test_a_report_tells_what_the_answer_looks_like_from_inside() -> None:
    model = MODELS["own grid"]
    predictor = Predictor(model, probability=True)
    report = predictor.predict(scan()).report
    assert report["patience"] is None and report["steps_run"] == report["steps_all"] > 0
    assert report["signals"].keys() == {"nqm", "samples", "axes", "flips", "levels"}
    assert report["signals"]["samples"] == 2 and report["signals"]["axes"] is None
    assert 0 < report["signals"]["levels"] < 1 and report["signals"]["nqm"] > 0
    told = predictor.predict(scan())
    assert told.spread is not None and told.spread.shape == SHAPE
    assert Predictor(model).predict(scan()).spread is None
    assert Predictor(model).predict(scan()).report["signals"] == report["signals"]
    assert Predictor(model, signals=False).predict(scan()).report["signals"] is None


@needs_engine
def test_int16_needs_a_calibrated_model_and_counts_what_does_not_fit() -> None:
    model = MODELS["own grid"]
    with pytest.raises(InputError, match=r"the engine 'int16' cannot run the model tiny: .* int16 needs"):
        Predictor(model, engine="int16")
    level = {"state": [0.1] * 8, "views": [0.1] * 16, "hidden": [0.1] * 8}
    predictor = Predictor(replace(model, range={"levels": [level, level]}), engine="int16")
    report = predictor.predict(scan()).report
    assert report["saturated"] > 0 and predictor.saturated == report["saturated"]
    assert any(f"{report['saturated']} numbers did not fit the range" in told for told in report["warnings"])
    predictor.predict(scan())
    assert predictor.saturated == 2 * report["saturated"]


@pytest.mark.parametrize("with_engine", ENGINES)
def test_a_model_that_overflows_is_told(with_engine: str) -> None:
    model = MODELS["own grid"]
    weights = {name: array * np.float32(1e12) for name, array in model.weights.items()}
    report = Predictor(replace(model, weights=weights), engine=with_engine).predict(scan()).report
    assert report["not_finite"] > 0 and report["signals"] is None
    assert (
        "the model gave numbers that are not finite for this scan; do not use this mask" in report["warnings"]
    )


@pytest.mark.parametrize("kind", ["int64", "uint64", "float16", ">f4", "<i2", "bool"])
def test_any_type_of_number_is_read(kind: str) -> None:
    data = (voxels() // 4).astype(kind)[None]
    expected = Predictor(MODELS["own grid"], engine="numpy").predict(Volume(data, np.eye(4)))
    found = Predictor(MODELS["own grid"]).predict(Volume(data, np.eye(4)))
    assert np.array_equal(found.mask.data, expected.mask.data)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRA"])
@pytest.mark.parametrize("with_engine", ENGINES[:2])
def test_of_two_pieces_of_one_size_the_first_along_the_body_stays(with_engine: str, codes: str) -> None:
    """Whatever the orientation of the file."""
    model = bright(0.5)
    told = replace(model.config.predict, largest_component=True)
    model = replace(model, config=replace(model.config, predict=told))
    data = np.zeros((1, 24, 16, 6), np.float32)
    data[0, 4:8, 8:12, 1:4] = data[0, 12:16, 4:8, 2:5] = 1
    expected = data[0] > 0
    expected[12:] = False
    found = Predictor(model, engine=with_engine).predict(turned(Volume(data, np.eye(4)), codes)).mask
    assert np.array_equal(found.oriented("RAS").data[0] > 0, expected)
