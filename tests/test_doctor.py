"""The check-up: a clean set has no finding, every planted fault has its own, and none stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from mednca.cases import find_cases
from mednca.doctor import Audit, audit, exit_code, table, to_json

Array = NDArray[Any]
SHAPE = (8, 9, 10)
LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


def save(path: Path, data: Array, affine: Array | None = None, unit: str = "mm") -> None:
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)


def image_of(number: int, shape: tuple[int, ...] = SHAPE, mean: float = 100.0) -> Array:
    return np.random.default_rng(number).uniform(0, 2 * mean, shape).astype(np.float32)


def label_of(shape: tuple[int, ...] = SHAPE) -> Array:
    label = np.zeros(shape, np.uint8)
    label[2:4, 2:4, 2:4], label[4:6, 2:4, 2:4] = 1, 2
    return label


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A clean set of seven cases, case_1 to case_7."""
    for number in range(1, 8):
        save(tmp_path / f"imagesTr/case_{number}.nii.gz", image_of(number))
        save(tmp_path / f"labelsTr/case_{number}.nii.gz", label_of())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    return tmp_path


def check(folder: Path, group: str | None = None) -> Audit:
    return audit(find_cases(folder, group=group))


def test_a_clean_set_has_no_finding_and_is_measured(clean: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = audit(find_cases(clean), progress=lambda done, of: seen.append((done, of)))
    assert result.findings == ()
    assert exit_code(result) == 0
    assert seen == [(n, 7) for n in range(1, 8)]
    first = result.fingerprints[0]
    assert (first.case, first.shape, first.orientation, first.dtype) == ("case_1", SHAPE, "RAS", "float32")
    assert first.label_voxels == {1: 8, 2: 8}
    assert first.mean == pytest.approx(float(image_of(1).mean(dtype=np.float64)))
    assert (first.low, first.high) == (float(image_of(1).min()), float(image_of(1).max()))
    assert json.loads(to_json(result))["fingerprints"][6]["label_voxels"] == {"1": 8, "2": 8}
    assert "label 1 Anterior   8 voxels in 7 cases" in table(result)


def without(kind: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{kind}/case_3.nii.gz").unlink()


def replaced(kind: str, data: Array, affine: Array | None = None) -> Callable[[Path], None]:
    return lambda folder: save(folder / f"{kind}/case_3.nii.gz", data, affine)


def with_voxel(data: Array, value: float) -> Array:
    data = data.copy()
    data[0, 0, 0] = value
    return data


MOVED = np.eye(4)
MOVED[0, 3] = 0.1
FAULTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "image without label": ("error", "image without label", without("labelsTr")),
    "label without image": ("error", "label without image", without("imagesTr")),
    "shapes": ("error", "shapes differ", replaced("labelsTr", label_of((8, 9, 11)))),
    "affines": ("error", "affines differ", replaced("labelsTr", label_of(), MOVED)),
    "probabilities": ("error", "unusable label", replaced("labelsTr", image_of(3) / 200)),
    "value": ("error", "unknown label", replaced("labelsTr", with_voxel(label_of(), 7))),
    "empty": ("warning", "empty label", replaced("labelsTr", np.zeros(SHAPE, np.uint8))),
    "class": ("warning", "class missing", replaced("labelsTr", np.minimum(label_of(), 1))),
    "nan": ("error", "not finite", replaced("imagesTr", with_voxel(image_of(3), np.nan))),
    "all nan": ("error", "not finite", replaced("imagesTr", np.full(SHAPE, np.nan, np.float32))),
    "inf": ("error", "not finite", replaced("imagesTr", with_voxel(image_of(3), -np.inf))),
    "constant": ("error", "constant image", replaced("imagesTr", np.full(SHAPE, 3, np.int16))),
    "duplicate": ("error", "duplicate image", replaced("imagesTr", image_of(2))),
    "unreadable": (
        "error",
        "unreadable image",
        lambda folder: (folder / "imagesTr/case_3.nii.gz").write_bytes(b"x" * 999) and None,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_found_alone(clean: Path, name: str) -> None:
    severity, check_name, plant = FAULTS[name]
    plant(clean)
    result = check(clean)
    assert [(f.severity, f.check) for f in result.findings] == [(severity, check_name)]
    assert "case_3" in result.findings[0].case
    assert exit_code(result) == (severity == "error")
    assert f"{severity}: {check_name} (1)" in table(result)
    assert json.loads(to_json(result))["findings"][0]["check"] == check_name


@pytest.mark.parametrize("spacing", [(0.001, 0.001, 0.001), (60, 60, 60), (0.5, 0.5, 11)])
def test_odd_spacing_is_a_warning(clean: Path, spacing: tuple[float, ...]) -> None:
    for kind, data in (("imagesTr", image_of(3)), ("labelsTr", label_of())):
        save(clean / f"{kind}/case_3.nii.gz", data, np.diag([*spacing, 1.0]))
    assert [(f.severity, f.check, f.case) for f in check(clean).findings] == [
        ("warning", "odd spacing", "case_3")
    ]


def test_a_placeholder_spacing_is_one_warning_for_the_set(clean: Path) -> None:
    for number in (1, 2):
        save(clean / f"imagesTr/case_{number}.nii.gz", image_of(number), unit="unknown")
    findings = check(clean).findings
    assert [(f.severity, f.case, f.check) for f in findings] == [("warning", "", "spacing unknown")]
    assert "2 cases" in findings[0].message


def test_an_image_too_big_to_be_a_crop_is_found(clean: Path) -> None:
    """The fault hippocampus_010 of the course, made small: a label of normal size, an image far too big."""
    save(clean / "imagesTr/case_3.nii.gz", image_of(3, (24, 24, 24)))
    found = [(f.check, f.case) for f in check(clean).findings]
    assert found == [("shapes differ", "case_3"), ("size outlier", "case_3")]


def test_a_label_too_big_to_be_this_organ_is_found(clean: Path) -> None:
    """The fault hippocampus_281, made small: grid and foreground of another kind, one class only."""
    label = np.ones((40, 40, 10), np.uint8)
    save(clean / "labelsTr/case_3.nii.gz", label)
    found = [f.check for f in check(clean).findings]
    assert found == ["shapes differ", "class missing", "size outlier", "size outlier"]


def test_a_duplicate_of_the_same_person_is_a_warning(clean: Path) -> None:
    save(clean / "imagesTr/case_4.nii.gz", image_of(3))
    assert exit_code(check(clean)) == 1
    result = check(clean, group="pairs")
    assert [(f.severity, f.check) for f in result.findings] == [("warning", "duplicate image")]
    assert result.repeated == {
        "1": ("case_1", "case_2"),
        "2": ("case_3", "case_4"),
        "3": ("case_5", "case_6"),
    }
    assert "4, 3 with more than one scan" in table(result)


def test_a_set_of_images_alone_wants_no_labels(clean: Path) -> None:
    for path in (clean / "labelsTr").iterdir():
        path.unlink()
    assert check(clean).findings == ()


def many(folder: Path, means: list[float]) -> Path:
    for number, mean in enumerate(means, start=1):
        save(folder / f"imagesTr/h_{number:03d}.nii", image_of(number, (6, 6, 6), mean))
    return folder


def test_pairs_of_one_person_are_suspected(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    person = np.exp(rng.uniform(0, 8, 24)).repeat(2)
    result = check(many(tmp_path, person.tolist()))
    assert [(f.severity, f.check) for f in result.findings] == [("warning", "persons")]
    assert "--group pairs" in result.findings[0].message
    assert check(tmp_path, group="pairs").findings == ()


@pytest.mark.parametrize("kind", ["independent", "all alike", "by site"])
def test_no_pairs_are_suspected_where_there_are_none(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    means = {
        "independent": np.exp(rng.uniform(0, 8, 48)),
        "all alike": np.full(48, 100.0),
        "by site": np.exp(rng.uniform(0, 8, 8)).repeat(6),
    }[kind]
    assert check(many(tmp_path, means.tolist())).findings == ()
