"""Masks sorted by what is to be expected of them: nothing is lost, nothing stands in two places, and what
cannot be sorted is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mednca.cli import main
from mednca.errors import InputError
from mednca.io import read_volume
from mednca.modelfile import ModelFile, save_model
from mednca.predict import Predictor
from mednca.segment import COLUMNS, predict_files, read_review
from mednca.trust import Curve, Interval, Trust
from tests.small import tiny_model, voxels, write_nifti
from tests.trusting import score, trusted

#: Expects 0.9 of every mask, or next to nothing where more than this is foreground.
LIMIT = 0.5


def sorting(limit: float = LIMIT, dice: float = 0.9) -> ModelFile:
    """A model that expects little of masks of more ml than the limit, else this Dice."""
    scales = tuple(scale for scale in score().scales if scale.trait == "volume")
    volume = (np.log(limit) - scales[0].middle) / scales[0].spread
    curves = (Curve("volume+" if volume > 0 else "volume-", (abs(float(volume)),), (9.0,)),)
    odds = float(np.log(dice / (1 - dice)))
    return replace(tiny_model(), trust=Trust(odds, scales, (), curves, (Interval(0.0, 0.3),)))


def table(path: Path) -> list[dict[str, str]]:
    """review.csv -> its lines."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans, and what each mask has in ml."""
    for number in range(3):
        write_nifti(tmp_path / "scans" / f"s{number}.nii.gz", voxels(number))
    return tmp_path / "scans"


def volumes(scans: Path) -> list[float]:
    """Folder of scans -> ml of each mask of the tiny model."""
    predictor = Predictor(tiny_model())
    paths = sorted(scans.iterdir())
    return [predictor.predict(read_volume(path)).report["foreground_ml"]["foreground"] for path in paths]


def middle(scans: Path) -> ModelFile:
    """Folder of scans -> a model that expects little of some of them."""
    return sorting(float(np.mean([min(volumes(scans)), max(volumes(scans))])))


def test_masks_are_sorted_and_all_are_listed(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reports = list(predict_files(Predictor(middle(scans)), [scans], out, review_below=0.8))
    kinds = [report["verdict"] for report in reports]
    assert set(kinds) == {"accepted", "review"}
    for report, kind in zip(reports, kinds, strict=True):
        expected = report["trust"]["expected_dice"]
        assert (kind == "accepted") == (expected >= 0.8)
        assert Path(report["output"]).parent == out / kind and Path(report["output"]).is_file()
        assert json.loads(Path(report["output"].replace(".nii.gz", ".json")).read_text()) == report
    files = sorted(path.name for path in out.rglob("*.nii.gz"))
    assert files == ["s0.nii.gz", "s1.nii.gz", "s2.nii.gz"] and not list(out.glob("*.nii.gz"))
    rows = table(out / "review.csv")
    assert tuple(rows[0]) == COLUMNS and {row["scan"] for row in rows} == {"s0", "s1", "s2"}
    assert [row["verdict"] for row in rows] == sorted(kinds, reverse=True)  # those to review come first
    assert all(Path(row["mask"]).is_file() for row in rows)
    masks = [nib.load(report["output"]).get_fdata() for report in reports]
    plain = list(predict_files(Predictor(tiny_model()), [scans], tmp_path / "plain"))
    for mask, report in zip(masks, plain, strict=True):
        assert np.array_equal(mask, nib.load(report["output"]).get_fdata())


def test_the_limit_itself_is_accepted(scans: Path, tmp_path: Path) -> None:
    model = sorting(1e-6)
    (report, *_) = predict_files(Predictor(model), [scans], tmp_path / "a", review_below=0.5)
    expected = report["trust"]["expected_dice"]
    (report, *_) = predict_files(Predictor(model), [scans], tmp_path / "b", review_below=expected)
    assert report["verdict"] == "accepted"


def test_a_mask_that_is_made_again_stands_in_one_place(scans: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", middle(scans)
    list(predict_files(Predictor(model), [scans], out, review_below=0.0001))
    assert len(list((out / "accepted").glob("*.nii.gz"))) == 3
    with pytest.raises(InputError, match="exists already"):
        predict_files(Predictor(model), [scans], out, review_below=0.8)
    list(predict_files(Predictor(model), [scans], out, review_below=0.8, force=True))
    assert len(list(out.rglob("*.nii.gz"))) == 3 and len(list(out.rglob("*.json"))) == 3
    assert (out / "review").is_dir() and list((out / "review").glob("*.nii.gz"))
    assert len(table(out / "review.csv")) == 3


def test_scans_that_come_later_join_the_list(scans: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", middle(scans)
    list(predict_files(Predictor(model), [scans / "s0.nii.gz"], out, review_below=0.8))
    assert [row["scan"] for row in table(out / "review.csv")] == ["s0"]
    list(predict_files(Predictor(model), [scans / "s1.nii.gz", scans / "s2.nii.gz"], out, review_below=0.8))
    assert {row["scan"] for row in table(out / "review.csv")} == {"s0", "s1", "s2"}


def test_what_fails_is_listed_first_and_stops_nothing(scans: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", middle(scans)
    (scans / "s1.nii.gz").write_bytes(b"no image")
    reports = list(predict_files(Predictor(model), [scans], out, review_below=0.8))
    assert ["error" in report for report in reports] == [False, True, False]
    rows = table(out / "review.csv")
    assert len(rows) == 3 and rows[0]["scan"] == "s1" and rows[0]["verdict"] == "failed"
    assert "s1.nii.gz" in rows[0]["reasons"] and not rows[0]["mask"]


def test_a_stop_loses_nothing_that_was_done(scans: Path, tmp_path: Path) -> None:
    reports = predict_files(Predictor(middle(scans)), [scans], tmp_path / "out", review_below=0.8)
    next(reports)
    assert [row["scan"] for row in table(tmp_path / "out" / "review.csv")] == ["s0"]


@pytest.mark.parametrize(
    ("options", "below", "told"),
    [
        ({}, 0.8, "the model has no trust score"),
        ({"file": "trusted", "gate": 2}, 0.8, "leave that out"),
        ({"file": "trusted"}, 1.5, "at most 1, got 1.5"),
        ({"file": "trusted"}, 0.0, "more than 0"),
    ],
)
def test_what_cannot_be_sorted_is_refused_before_anything_is_computed(
    options: dict[str, Any], below: float, told: str, scans: Path, tmp_path: Path
) -> None:
    file = trusted(tiny_model()) if options.pop("file", None) else tiny_model()
    with pytest.raises(InputError, match=told):
        predict_files(Predictor(file, **options), [scans], tmp_path / "out", review_below=below)
    assert not (tmp_path / "out").exists()


def test_masks_are_sorted_into_a_folder_only(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a folder for masks to be sorted into"):
        predict_files(
            Predictor(trusted(tiny_model())), [scans / "s0.nii.gz"], tmp_path / "m.nii", review_below=0.8
        )


def test_a_foreign_list_is_not_replaced(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "review.csv").write_text("name,age\nA,3\n")
    with pytest.raises(InputError, match="expected the columns"):
        predict_files(Predictor(middle(scans)), [scans], tmp_path, review_below=0.8)
    assert (tmp_path / "review.csv").read_text() == "name,age\nA,3\n"
    assert read_review(tmp_path / "none.csv") == []


def test_the_map_of_uncertainty_is_the_spread_of_the_samples(scans: Path, tmp_path: Path) -> None:
    predictor = Predictor(tiny_model(), probability=True)
    (report,) = predict_files(predictor, [scans / "s0.nii.gz"], tmp_path / "mask.nii.gz", uncertainty=True)
    image = nib.load(tmp_path / "mask_uncertainty.nii.gz")
    spread = predictor.predict(read_volume(scans / "s0.nii.gz")).spread
    assert spread is not None and image.get_data_dtype() == np.float32
    assert np.array_equal(image.get_fdata(), spread.data[0])
    assert np.array_equal(image.affine, nib.load(report["output"]).affine)
    with pytest.raises(InputError, match="exists already"):
        predict_files(predictor, [scans / "s0.nii.gz"], tmp_path / "mask.nii.gz", uncertainty=True)


def test_two_scans_may_not_share_a_file(scans: Path, tmp_path: Path) -> None:
    write_nifti(scans / "s0_uncertainty.nii.gz", voxels(5))
    with pytest.raises(InputError, match="would be written for two scans"):
        predict_files(Predictor(tiny_model(), probability=True), [scans], tmp_path / "out", uncertainty=True)


def test_the_command_tells_sorts_and_counts(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.safetensors", middle(scans))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "m.safetensors", "scans", "-o", "out", "--review-below", "0.8", "--uncertainty"])
    out, err = capsys.readouterr()
    assert not stopped.value.code and not err
    lines = out.splitlines()
    assert all("expected Dice 0." in line for line in lines[:3])
    count = len(list((tmp_path / "out" / "review").glob("*_uncertainty.nii.gz")))
    assert lines[3] == f"out/review.csv: {count} of 3 masks to review" and 0 < count < 3
    save_model(tmp_path / "plain.safetensors", tiny_model())
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "plain.safetensors", "scans", "-o", "more", "--review-below", "0.8"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out and len(err.splitlines()) == 1
    assert "'mednca trust' makes one" in err
