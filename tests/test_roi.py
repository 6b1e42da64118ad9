"""The region of interest: cut out and put back on any axes, the same in every engine, told where it cuts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca import engine, predict
from mednca.backends.onnx import Exported
from mednca.calibrate import measure_range
from mednca.dataset import class_numbers, load_scans, place, training_cases
from mednca.export import export
from mednca.modelfile import ModelFile, save_model
from mednca.predict import Predictor
from mednca.roi import borders, check_roi, cut_out, inside, put_back, touches
from mednca.slices import PreprocessConfig, prepare_image
from mednca.volume import Volume
from tests.small import tiny_model

ROI = (0.2, 0.8, 0.0, 0.65, 0.25, 1.0)
AFFINES = {
    "RAS": np.diag([1.0, 1.0, 2.0, 1.0]),
    "other axes": np.array([[0, 0, -1.5, 9], [-1.0, 0, 0, 4], [0, 1.0, 0, 2], [0, 0, 0, 1]]),
}
shares = st.tuples(st.floats(0, 0.97), st.floats(0.01, 1)).map(lambda p: (p[0], min(1.0, p[0] + p[1])))
rois = st.tuples(shares, shares, shares).map(lambda three: sum(three, ()))
needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())
engines = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_engine if name in predict.IN_C else ()) for name in predict.ENGINES],
)


def scan(affine: np.ndarray, channels: int = 1) -> Volume:
    return Volume(np.random.default_rng(2).normal(size=(channels, 13, 15, 9)).astype(np.float32), affine)


@given(rois, st.sampled_from(sorted(AFFINES)))
@settings(deadline=None)
def test_what_was_cut_out_is_put_back_where_it_was(roi: tuple[float, ...], name: str) -> None:
    volume = scan(AFFINES[name], 2)
    part = cut_out(volume, roi)
    back = put_back(part.data, volume, roi)
    assert back.shape == volume.data.shape and np.count_nonzero(back) <= part.data.size
    assert np.array_equal(cut_out(volume.with_data(back), roi).data, part.data)
    first = [where.start for where in inside(volume, roi)]
    np.testing.assert_allclose(part.affine[:3, 3], volume.affine[:3] @ [*first, 1])
    np.testing.assert_array_equal(  # the axes of the file do not matter
        cut_out(volume.canonical(), roi).data, part.canonical().data
    )


def test_borders_are_those_of_the_definition() -> None:
    assert [borders(10, 0.25, 0.75), borders(10, 0.35, 0.65)] == [(2, 8), (4, 6)]  # halves to the even one
    assert borders(1, 0.6, 0.9) == (0, 1) and borders(3, 0.99, 1.0) == (2, 3)


@pytest.mark.parametrize(
    "roi", [(0.0, 1.0), (0.5, 0.5, 0, 1, 0, 1), (-0.1, 1, 0, 1, 0, 1), (0, 1, 0, 1, 0, 1.1)]
)
def test_a_wrong_roi_is_refused(roi: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three pairs of rising shares"):
        check_roi(roi)
    with pytest.raises(ValueError, match="three pairs of rising shares"):
        PreprocessConfig(roi=roi)


def model_with(roi: tuple[float, ...] | None, volume: Volume, axes: tuple[int, ...] = (2,)) -> ModelFile:
    """Model that looks at a ROI, calibrated for int16."""
    model = tiny_model(context=1, axes=axes, spacing=(1.2, 1.2))
    images = [prepare_image(volume, view) for view in model.config.preprocess.views]
    preprocess = replace(model.config.preprocess, roi=roi)
    return replace(
        model, config=replace(model.config, preprocess=preprocess), range=measure_range(model, images)
    )


@engines
@pytest.mark.parametrize("axes", [(2,), (0, 2, 1)], ids=str)
@pytest.mark.parametrize("orientation", AFFINES)
def test_every_engine_predicts_what_it_predicts_of_the_part_alone(
    name: str, axes: tuple[int, ...], orientation: str
) -> None:
    volume = scan(AFFINES[orientation])
    part = cut_out(volume, ROI)
    alone = Predictor(model_with(None, volume, axes), engine=name, probability=True).predict(part)
    found = Predictor(model_with(ROI, volume, axes), engine=name, probability=True).predict(volume)
    assert alone.probability and found.probability and alone.spread and found.spread
    assert np.array_equal(found.mask.data, put_back(alone.mask.data, volume, ROI)) and found.mask.data.any()
    assert np.array_equal(found.probability.data, put_back(alone.probability.data, volume, ROI))
    assert np.array_equal(found.spread.data, put_back(alone.spread.data, volume, ROI))
    assert found.report["signals"] == alone.report["signals"]


def test_an_exported_model_looks_at_the_same_part(tmp_path: Path) -> None:
    volume = scan(AFFINES["other axes"])
    model = model_with(ROI, volume)
    export(save_model(tmp_path / "m.safetensors", model), "onnx", tmp_path / "out")
    expected = Predictor(model, engine="numpy").predict(volume).mask.data
    found = Exported(tmp_path / "out").predict(volume).mask.data
    assert (found != expected).mean() < 0.003 and expected.any()
    assert "x from 0.2 to 0.8" in (tmp_path / "out" / "README.md").read_text()


def test_training_sees_the_part_alone(tmp_path: Path) -> None:
    from tests.small_training import write_cases

    cases = write_cases(tmp_path, 1)
    (one,) = load_scans(cases.cases)
    model = tiny_model()
    config = replace(model.config, preprocess=replace(model.config.preprocess, roi=ROI))
    (found,) = training_cases(one, config)
    part, label = cut_out(one.image, ROI), cut_out(class_numbers(one.label, config), ROI)
    np.testing.assert_array_equal(found.image, prepare_image(part, replace(config.preprocess, roi=None)))
    assert found.label.sum() == label.data.sum()


def test_a_mask_that_the_border_cuts_is_told() -> None:
    volume = scan(AFFINES["RAS"])
    everything = np.zeros(volume.shape, np.uint8)
    everything[inside(volume, ROI)] = 1
    assert touches(everything, volume, ROI) and not touches(everything, volume, None)
    middle = np.zeros(volume.shape, np.uint8)
    middle[6, 5, 8] = 1  # the last slice, which the ROI does not cut
    assert not touches(middle, volume, ROI)
    warnings = Predictor(model_with(ROI, volume), engine="numpy").predict(volume).report["warnings"]
    assert any("reaches the border of the part" in warning for warning in warnings)


def test_the_place_of_the_foreground_is_that_of_all_labels_along_the_axes_of_the_body() -> None:
    first, second = np.zeros((1, 10, 8, 4), np.uint8), np.zeros((1, 10, 8, 4), np.uint8)
    first[0, 2:5, 3, 1], second[0, 4:7, 5:7, 3] = 1, 2
    labels = [Volume(first, np.eye(4)), Volume(second, np.eye(4)), Volume(np.zeros_like(first), np.eye(4))]
    assert place(labels) == (0.2, 0.7, 0.375, 0.875, 0.25, 1.0)
    assert place([label.oriented("PIL") for label in labels]) == (0.2, 0.7, 0.375, 0.875, 0.25, 1.0)
