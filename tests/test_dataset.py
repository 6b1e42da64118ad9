"""A data set in memory: what does not fit together is refused by name, classes get the model's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_training import blob, config, write_cases, write_scan

from mednca import field, second_look
from mednca.cases import Case, find_cases
from mednca.dataset import (
    class_numbers,
    fingerprint,
    load_scan,
    load_scans,
    measured,
    scan_ranges,
    training_cases,
    unmeasured,
    with_fitting_field,
)
from mednca.errors import InputError
from mednca.field import FLAT
from mednca.roi import cut_out
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig
from mednca.volume import Volume


def test_a_scan_and_its_label_are_read(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 2)
    scan = load_scans(cases.cases)[0]
    image, label = blob(1)
    assert scan.id == "scan_01"
    assert np.array_equal(scan.image.data[0], image) and np.array_equal(scan.label.data[0], label)
    (case,) = training_cases(scan, config())
    assert case.image.shape == (4, 1, 16, 16) and case.label.shape == (4, 16, 16)
    assert np.array_equal(case.label, label.transpose(2, 0, 1))
    assert case.foreground_slices.tolist() == np.flatnonzero(label.any(axis=(0, 1))).tolist()


def test_a_scan_is_cut_along_every_axis_of_the_model(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 1)
    scan = load_scans(cases.cases)[0]
    run = replace(config(), preprocess=PreprocessConfig(axes=(2, 0, 1)))
    found = training_cases(scan, run)
    assert [case.axis for case in found] == [2, 0, 1]
    assert [case.image.shape for case in found] == [(4, 1, 16, 16), (16, 1, 16, 4), (16, 1, 16, 4)]
    label = blob(1)[1]
    for case in found:
        (alone,) = training_cases(scan, replace(config(), preprocess=PreprocessConfig(axes=(case.axis,))))
        assert np.array_equal(case.image, alone.image) and np.array_equal(case.label, alone.label)
        assert np.array_equal(np.moveaxis(case.label, 0, case.axis), label)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    image = write_scan(tmp_path / "image.nii.gz", blob(0)[0])
    label = write_scan(tmp_path / "label.nii.gz", blob(0)[1])
    with pytest.raises(InputError, match="case a: has no label"):
        load_scan(Case("a", (image,), None, "a"))
    with pytest.raises(InputError, match="missing"):
        load_scan(Case("a", (tmp_path / "missing.nii.gz",), label, "a"))
    with pytest.raises(InputError, match="missing"):
        load_scan(Case("a", (image,), tmp_path / "missing.nii.gz", "a"))
    small = write_scan(tmp_path / "small.nii.gz", blob(0)[1][1:])
    with pytest.raises(
        InputError, match=r"small.nii.gz: must have the shape of its image, \(16, 16, 4\), got"
    ):
        load_scan(Case("a", (image,), small, "a"))
    moved = tmp_path / "moved.nii.gz"
    nib.save(nib.Nifti1Image(blob(0)[1], np.diag([1.0, 1.0, 1.1, 1.0])), moved)
    with pytest.raises(InputError, match=r"moved.nii.gz: must have the affine of its image .*image.nii.gz"):
        load_scan(Case("a", (image,), moved, "a"))
    with pytest.raises(InputError, match=r"case b: must have 1 channel\(s\) as a, got 2"):
        load_scans([Case("a", (image,), label, "a"), Case("b", (image, image), label, "b")])
    with pytest.raises(InputError, match=r"case a: the configuration is for 2 channel\(s\), got 1"):
        two = replace(
            config(), preprocess=PreprocessConfig(2), model=MedNCAConfig(image_channels=2, channels=8)
        )
        training_cases(load_scan(Case("a", (image,), label, "a")), two)


def test_label_values_must_be_the_data_sets(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 2)
    scans = load_scans(cases.cases)
    assert fingerprint(cases, scans).labels == {1: "label 1"}
    with pytest.raises(InputError, match=r"label value 1 is not among the data set's \(2 organ\)"):
        fingerprint(replace(cases, labels={2: "organ"}), scans)
    for value in (-1, 300):
        data = (scans[0].label.data.astype(np.int16)) * value
        odd = replace(scans[0], label=scans[0].label.with_data(data))
        with pytest.raises(InputError, match=f"label value {value} is not among"):
            fingerprint(cases, [odd])
    empty = replace(scans[0], label=scans[0].label.with_data(np.zeros_like(scans[0].label.data)))
    with pytest.raises(InputError, match="all labels are empty"):
        fingerprint(cases, [empty])


def test_a_fingerprint_is_taken_along_the_worlds_axes(tmp_path: Path) -> None:
    image, label = blob(0, (16, 12, 4))
    turned = np.array([[0, 2.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])  # PRS
    for name, data in (("images", image), ("labels", label)):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(data, turned), tmp_path / name / "a.nii.gz")
    cases = find_cases(tmp_path)
    scans = load_scans(cases.cases)
    told = fingerprint(cases, scans)
    assert told.shape == (12, 16, 4) and told.spacing == pytest.approx((2, 1, 3)) and told.modalities == 1
    ranges = scan_ranges(scans)
    assert ranges["spacing_mm"] == [[2, 1, 3]] * 2 and ranges["size_mm"] == [[24, 16, 12]] * 2


def test_classes_get_the_models_numbers() -> None:
    label = Volume(np.array([0, 2, 5, 9], np.uint8).reshape(1, 4, 1, 1), np.eye(4))
    assert class_numbers(label, config()).data.ravel().tolist() == [0, 1, 1, 1]
    model = replace(config().model, classes=2)
    two = replace(config(), model=model, labels=("a", "b"), values=(5, 2), merge=False)
    assert class_numbers(label, two).data.ravel().tolist() == [0, 2, 1, 0]


def test_fields_are_left_where_intensities_are_negative(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More than 1 % of a channel of the part that the model looks at; noise about 0 may leave a few. Told
    numbers, as of a field that is known, are refused."""
    (scan,) = load_scans(write_cases(tmp_path, 1).cases)
    data = np.full((2, 20, 10, 5), 7, np.float32)
    data[0].reshape(-1)[:10], data[1].reshape(-1)[:10] = -1, -1
    few = replace(scan, image=Volume(data, np.eye(4)))
    model = replace(config().model, image_channels=2)
    run = replace(config(), model=model, preprocess=PreprocessConfig(modalities=2))
    taken_out = replace(run, preprocess=replace(run.preprocess, field=()))
    assert with_fitting_field(taken_out, [few, few]) == taken_out
    data = data.copy()
    data[1].reshape(-1)[:370] = -1
    many = replace(scan, image=Volume(data, np.eye(4)))
    message = (
        "case scan_01: has 37 % negative intensities, as CT has; a bias field is a factor on positive ones"
    )
    assert not caplog.messages
    assert with_fitting_field(taken_out, [few, many]) == run
    assert caplog.messages == [f"bias fields are left as they are: {message}"]
    told = replace(run, preprocess=replace(run.preprocess, field=FLAT.numbers * 2))
    with pytest.raises(InputError, match=f"^{message}; train with preprocess.field null$"):
        with_fitting_field(told, [few, many])
    assert with_fitting_field(run, [few, many]) == run
    elsewhere = replace(taken_out.preprocess, roi=(0.5, 1.0, 0.0, 1.0, 0.0, 1.0))
    beside = replace(run, preprocess=elsewhere)
    assert with_fitting_field(beside, [few, many]) == beside


def test_trainings_on_other_scans_differ_in_what_was_measured_alone(tmp_path: Path) -> None:
    scans = load_scans(write_cases(tmp_path, 4).cases)
    plain = config()
    asked = replace(
        plain,
        preprocess=replace(plain.preprocess, field=()),
        predict=replace(plain.predict, sizes=()),
    )
    one, other = measured(asked, scans[:2]), measured(asked, scans[2:])
    assert one != other and unmeasured(one) == unmeasured(other) == asked
    assert unmeasured(plain) == plain


def test_what_is_usual_is_measured_on_the_training_scans_where_the_model_looks(tmp_path: Path) -> None:
    scans = load_scans(write_cases(tmp_path, 3).cases)
    plain, roi = config(), (0.1, 1.0, 0.0, 0.9, 0.0, 1.0)
    asked = replace(
        plain,
        preprocess=replace(plain.preprocess, field=(), roi=roi),
        predict=replace(plain.predict, sizes=()),
    )
    found = measured(asked, scans)
    images = [cut_out(scan.image, roi).canonical().data[0].astype(np.float32) for scan in scans]
    labels = [cut_out(scan.label, roi).canonical() for scan in scans]
    usual = field.usual(images)
    assert usual is not None and found.preprocess.field == usual.numbers
    assert found.predict.sizes == second_look.usual((label.data[0], label.spacing) for label in labels)
    assert measured(found, scans[:1]) == found and measured(plain, scans) == plain
    assert measured(asked, scans[:1]) != found
    black = [replace(scan, image=scan.image.with_data(0 * scan.image.data)) for scan in scans]
    assert measured(asked, black).preprocess.field is None
