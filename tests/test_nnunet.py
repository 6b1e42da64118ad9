"""The way to nnU-Net v2 and back: its raw layout, our folds in it, its commands, its masks in our report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mednca.cases import CaseSet, find_cases, find_labelled_cases, split_folds
from mednca.cli import main
from mednca.errors import InputError
from mednca.evaluate import evaluate_masks
from mednca.io import read_case, read_label, read_volume, write_mask
from mednca.nnunet import configurations, export_raw, find_masks, mask_labels, next_commands, results_folder
from mednca.report import Report
from reproduce import nnunet as script
from tests.small import voxels, write_nifti

IDS = [f"scan_{number:02d}" for number in range(1, 11)]
KEYS = {"channel_names", "labels", "numTraining", "file_ending"}  # those that nnU-Net v2 asks for


def write_msd(
    folder: Path, channels: int = 1, values: tuple[int, ...] = (1, 2), ending: str = ".nii.gz"
) -> Path:
    """Folder -> a data set in MSD layout: ten scans (1 x 1 x 2 mm) of two parts, two scans of each person."""
    for number, name in enumerate(IDS):
        data = np.stack([voxels(10 * number + channel) for channel in range(channels)], axis=-1)
        label = np.select([data[..., 0] > 800, data[..., 0] > 500], values[::-1]).astype(np.uint8)
        write_nifti(folder / "imagesTr" / (name + ending), data if channels > 1 else data[..., 0])
        write_nifti(folder / "labelsTr" / (name + ending), label)
    names = {"0": "background"} | {str(value): f"part {value}" for value in values}
    entries = [{"image": f"imagesTr/{n}{ending}", "label": f"labelsTr/{n}{ending}"} for n in IDS]
    meta = {"name": "Two Parts", "licence": "CC0", "labels": names, "training": entries}
    meta["modality"] = {str(channel): f"echo {channel}" for channel in range(channels)}
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder


def write_pngs(folder: Path, mode: str = "L") -> Path:
    """Folder -> a data set of four grey or RGB PNG and their labels 0 and 1, images/ and labels/."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(4):
        data = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        label = (data[..., 0] > 128).astype(np.uint8)
        Image.fromarray(data if mode == "RGB" else data[..., 0]).save(folder / "images" / f"s{number}.png")
        stored = Image.fromarray(label)
        if mode == "P":
            stored = Image.fromarray(label, "P")
            stored.putpalette([0, 0, 0, 255, 0, 0])
        stored.save(folder / "labels" / f"s{number}.png")
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> CaseSet:
    """Ten scans of five persons."""
    return find_labelled_cases(write_msd(tmp_path / "data"), "pairs")


def test_the_raw_layout_is_exactly_nnunets(cases: CaseSet, tmp_path: Path) -> None:
    folder = export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out", number=7)
    assert folder == tmp_path / "out" / "nnUNet_raw" / "Dataset007_TwoParts"
    assert {path.name for path in folder.iterdir()} == {"imagesTr", "labelsTr", "dataset.json"}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["Dataset007_TwoParts"]
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [f"{n}_0000.nii.gz" for n in IDS]
    assert sorted(p.name for p in (folder / "labelsTr").iterdir()) == [f"{n}.nii.gz" for n in IDS]
    meta = json.loads((folder / "dataset.json").read_text())
    assert meta.keys() >= KEYS
    assert meta["channel_names"] == {"0": "echo 0"}
    assert meta["labels"] == {"background": 0, "foreground": 1}
    assert meta["numTraining"] == 10 and meta["file_ending"] == ".nii.gz"
    assert meta["licence"] == "CC0"


def test_merged_labels_are_all_that_is_not_background(cases: CaseSet, tmp_path: Path) -> None:
    folder = export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out")
    for case in cases.cases:
        written, own = read_label(folder / "labelsTr" / f"{case.id}.nii.gz"), read_label(case.label or "")
        assert np.array_equal(written.data, own.data != 0) and np.array_equal(written.affine, own.affine)


def test_separate_labels_keep_their_values_and_names(cases: CaseSet, tmp_path: Path) -> None:
    folder = export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out", merge=False)
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "part 1": 1,
        "part 2": 2,
    }
    for case in cases.cases:
        assert (folder / "labelsTr" / f"{case.id}.nii.gz").resolve() == (case.label or Path()).resolve()


def test_the_folds_are_ours_and_keep_persons_together(cases: CaseSet, tmp_path: Path) -> None:
    folds = split_folds(cases, 5, 3)
    export_raw(cases, folds, tmp_path / "out")
    path = tmp_path / "out" / "nnUNet_preprocessed" / "Dataset001_TwoParts" / "splits_final.json"
    splits = json.loads(path.read_text())
    assert [split["val"] for split in splits] == folds
    group = {case.id: case.group for case in cases.cases}
    for split in splits:
        assert sorted(split["train"] + split["val"]) == IDS
        assert not {group[name] for name in split["train"]} & {group[name] for name in split["val"]}


def test_folds_that_lose_a_case_are_refused(cases: CaseSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every case once"):
        export_raw(cases, [IDS[:5], IDS[5:9]], tmp_path / "out")


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_links_or_copies_of_the_same_bytes(cases: CaseSet, tmp_path: Path, copy: bool) -> None:
    folder = export_raw(cases, split_folds(cases, 2, 0), tmp_path / "out", copy=copy)
    for case in cases.cases:
        path = folder / "imagesTr" / f"{case.id}_0000.nii.gz"
        assert path.is_symlink() != copy
        assert path.read_bytes() == case.images[0].read_bytes()


def test_what_was_exported_is_read_back_as_the_same_cases(cases: CaseSet, tmp_path: Path) -> None:
    back = find_cases(export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out", merge=False))
    assert back.layout == "nnunet" and back.labels == cases.labels and back.channels == cases.channels
    assert [case.id for case in back.cases] == IDS


def test_channels_of_one_file_become_a_file_each(tmp_path: Path) -> None:
    cases = find_labelled_cases(write_msd(tmp_path / "data", channels=2), None)
    folder = export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out")
    assert len(list((folder / "imagesTr").iterdir())) == 20
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {
        "0": "echo 0",
        "1": "echo 1",
    }
    own = read_case(cases.cases[3].images)
    written = read_case([folder / "imagesTr" / f"scan_04_{channel:04d}.nii.gz" for channel in (0, 1)])
    assert np.array_equal(own.data, written.data) and np.allclose(own.affine, written.affine)


def test_of_chosen_channels_only_these_are_written(tmp_path: Path) -> None:
    cases = find_labelled_cases(write_msd(tmp_path / "data", channels=2), None)
    chosen = [replace(case, channels=(1,)) for case in cases.cases]
    cases = replace(cases, cases=tuple(chosen), channels=("echo 1",))
    folder = export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out")
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [f"{n}_0000.nii.gz" for n in IDS]
    own, written = read_case(chosen[0].images), read_volume(folder / "imagesTr" / "scan_01_0000.nii.gz")
    assert np.array_equal(own.data[1:], written.data)


def test_a_format_that_nnunet_cannot_read_becomes_nifti(tmp_path: Path) -> None:
    cases = find_labelled_cases(write_msd(tmp_path / "data", ending=".nii"), None)
    folder = export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out", merge=False)
    assert json.loads((folder / "dataset.json").read_text())["file_ending"] == ".nii.gz"
    own, written = read_case(cases.cases[0].images), read_volume(folder / "imagesTr" / "scan_01_0000.nii.gz")
    assert np.array_equal(own.data, written.data) and np.allclose(own.affine, written.affine)
    assert nib.load(folder / "imagesTr" / "scan_01_0000.nii.gz").header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(
        read_label(cases.cases[0].label or "").data, read_label(folder / "labelsTr" / "scan_01.nii.gz").data
    )


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_flat_images_stay_png_and_are_trained_in_2d_only(tmp_path: Path, mode: str, channels: int) -> None:
    cases = find_labelled_cases(write_pngs(tmp_path / "data", mode), None)
    folder = export_raw(cases, split_folds(cases, 2, 0), tmp_path / "out")
    meta = json.loads((folder / "dataset.json").read_text())
    assert meta["file_ending"] == ".png"
    assert meta["channel_names"] == {str(at): f"channel {at}" for at in range(channels)}
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [f"s{n}_0000.png" for n in range(4)]
    assert configurations(folder) == ("2d",)
    assert not any("3d" in line for line in next_commands(folder))


def test_a_label_with_a_palette_is_written_as_numbers(tmp_path: Path) -> None:
    cases = find_labelled_cases(write_pngs(tmp_path / "data", "P"), None)
    folder = export_raw(cases, split_folds(cases, 2, 0), tmp_path / "out")
    with Image.open(folder / "labelsTr" / "s1.png") as image:
        assert image.mode == "L" and set(np.unique(np.asarray(image))) == {0, 1}


def test_labels_that_nnunet_does_not_take_are_refused_unless_merged(tmp_path: Path) -> None:
    cases = find_labelled_cases(write_msd(tmp_path / "data", values=(1, 3)), None)
    folds = split_folds(cases, 5, 0)
    with pytest.raises(InputError, match=r"1, 2, .* only, got \[1, 3\]; merge"):
        export_raw(cases, folds, tmp_path / "out", merge=False)
    folder = export_raw(cases, folds, tmp_path / "out")
    assert set(np.unique(read_label(folder / "labelsTr" / "scan_01.nii.gz").data)) == {0, 1}


def test_an_export_is_whole_or_absent(cases: CaseSet, tmp_path: Path) -> None:
    (cases.root / "labelsTr" / "scan_09.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="scan_09"):
        export_raw(cases, split_folds(cases, 5, 0), tmp_path / "out")
    assert not list((tmp_path / "out" / "nnUNet_raw").iterdir())
    assert not (tmp_path / "out" / "nnUNet_preprocessed").exists()


def test_nothing_is_replaced_unasked(cases: CaseSet, tmp_path: Path) -> None:
    folds = split_folds(cases, 5, 0)
    folder = export_raw(cases, folds, tmp_path / "out", merge=False)
    with pytest.raises(InputError, match="--force"):
        export_raw(cases, folds, tmp_path / "out")
    assert "part 1" in (folder / "dataset.json").read_text()
    export_raw(cases, folds, tmp_path / "out", force=True)
    assert "part 1" not in (folder / "dataset.json").read_text()
    folder.rename(folder.with_name("Dataset001_Other"))
    with pytest.raises(InputError, match=r"Dataset001_Other: has the number 1 already"):
        export_raw(cases, folds, tmp_path / "out", force=True)


def test_the_commands_train_every_fold_of_every_configuration(cases: CaseSet, tmp_path: Path) -> None:
    folder = export_raw(cases, split_folds(cases, 3, 0), tmp_path / "my out", number=12)
    lines = next_commands(folder, trainer="nnUNetTrainer_250epochs", device="cpu")
    assert lines[0] == f"export nnUNet_raw='{tmp_path}/my out/nnUNet_raw'"
    assert lines[3].startswith("nnUNetv2_plan_and_preprocess -d 12 -c 2d 3d_fullres ")
    assert lines[4:] == [
        f"nnUNetv2_train 12 {kind} {fold} -tr nnUNetTrainer_250epochs -device cpu"
        for kind in ("2d", "3d_fullres")
        for fold in range(3)
    ]


# ---- The way back ----


def out_of_fold(cases: CaseSet, folds: list[list[str]], folder: Path, merge: bool = True) -> dict[str, float]:
    """Write what nnU-Net leaves behind, with masks that are the labels less some planes; the Dice of each."""
    labels = {"background": 0, "foreground": 1} if merge else {"background": 0, "part 1": 1, "part 2": 2}
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    by_id, dice = {case.id: case for case in cases.cases}, {}
    for fold, ids in enumerate(folds):
        inside = folder / f"fold_{fold}" / "validation"
        inside.mkdir(parents=True)
        (inside / "summary.json").write_text("{}")
        for name in ids:
            path = by_id[name].label
            assert path is not None
            label = read_label(path)
            data = label.data.copy()
            data[:, : IDS.index(name)] = 0
            kept, whole = np.count_nonzero(data), np.count_nonzero(label.data)
            dice[name] = 2 * kept / (kept + whole)
            data = (data > 0).astype(np.uint8) if merge else data
            write_mask(inside / f"{name}.nii.gz", label.with_data(data), like=path)
    return dice


def call(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> tuple[str, str]:
    """Words of a command -> its stdout and stderr; holds it to the exit status."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0) == status, err
    return out, err


@pytest.mark.parametrize("merge", [True, False])
def test_a_folder_of_folds_gives_the_report_of_a_cross_validation(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], merge: bool
) -> None:
    folds = split_folds(cases, 5, 0)
    dice = out_of_fold(cases, folds, tmp_path / "folds", merge)
    words = ["evaluate", tmp_path / "folds", cases.root, "--group", "pairs", "--json", tmp_path / "r.json"]
    out, err = call(capsys, *words, "--quiet")
    assert "10 cases of 5 groups" in out and not err
    report = Report.from_json((tmp_path / "r.json").read_text())
    assert {name: scores["merged"]["dice"] for name, scores in report.cases.items()} == pytest.approx(dice)
    assert report.folds == {name: f"fold_{fold}" for fold, ids in enumerate(folds) for name in ids}
    assert report.provenance["groups_in_several_folds"] == []
    regions = {"foreground", "merged"} if merge else {"part 1", "part 2", "merged"}
    assert report.summary.keys() == regions
    assert report.provenance["labels_merged"] == ([1, 2] if merge else [])


def test_folds_that_are_missing_and_persons_in_two_are_told(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_of_fold(cases, [IDS[:3], IDS[3:5]], tmp_path / "folds")  # scans 3 and 4 are one person
    out, err = call(capsys, "evaluate", tmp_path / "folds", cases.root, "--group", "pairs", "--quiet")
    assert "5 cases of 3 groups" in out
    assert "no mask of 5 of the 10 cases, as scan_06" in err
    assert "1 person(s), as 2, are in several folds" in err


def test_a_plain_folder_of_masks_is_judged_whole_or_by_name(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = out_of_fold(cases, [IDS[:4]], tmp_path / "folds")
    masks = tmp_path / "folds" / "fold_0" / "validation"
    _, err = call(capsys, "evaluate", masks, cases.root, "--labels", "merged", "--quiet", status=2)
    assert "has no mask of 6 of the 10 cases, as scan_05" in err
    (tmp_path / "ids.txt").write_text("scan_02\nscan_03\n")
    words = ["evaluate", masks, cases.root, "--labels", "merged", "--cases", tmp_path / "ids.txt"]
    call(capsys, *words, "--json", tmp_path / "r.json", "--quiet")
    report = Report.from_json((tmp_path / "r.json").read_text())
    assert report.cases.keys() == {"scan_02", "scan_03"} and not report.folds
    assert report.cases["scan_03"]["merged"]["dice"] == pytest.approx(dice["scan_03"])


def test_what_is_for_models_is_refused_for_masks_and_the_other_way(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_of_fold(cases, [IDS], tmp_path / "folds")
    _, err = call(capsys, "evaluate", tmp_path / "folds", cases.root, "--ensemble", "3", status=2)
    assert "--ensemble is for a model" in err
    _, err = call(capsys, "evaluate", "hippocampus", cases.root, "--labels", "merged", status=2)
    assert "--labels is for a folder of masks" in err


def test_masks_of_other_cases_values_or_grids_are_refused(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_of_fold(cases, [IDS], tmp_path / "folds")
    inside = tmp_path / "folds" / "fold_0" / "validation"
    masks, known = {name: inside / f"{name}.nii.gz" for name in IDS}, {1: "foreground"}
    with pytest.raises(InputError, match=r"case scan_01: has no mask"):
        evaluate_masks({}, known, cases.cases, labels=cases.labels)
    with pytest.raises(InputError, match=r"scan_01.nii.gz: holds the values \[1\]"):
        evaluate_masks(masks, {2: "foreground"}, cases.cases, labels=cases.labels)
    write_nifti(masks["scan_01"], np.ones((12, 14, 6), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(InputError, match=r"scan_01.nii.gz: must lie on the grid of its image, .* 5 mm off"):
        evaluate_masks(masks, known, cases.cases, labels=cases.labels)
    write_nifti(masks["scan_01"], np.ones((12, 14, 5), np.uint8))
    with pytest.raises(InputError, match=r"scan_01.nii.gz: must have the shape of its image"):
        evaluate_masks(masks, known, cases.cases, labels=cases.labels)
    (inside / "scan_01.nii.gz").rename(inside / "scan_99.nii.gz")
    _, err = call(capsys, "evaluate", tmp_path / "folds", cases.root, "--quiet", status=2)
    assert "holds a mask scan_99, which is no case of" in err


def test_masks_are_found_in_folds_or_plainly_but_not_in_a_run_folder(tmp_path: Path) -> None:
    mask = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert find_masks(tmp_path) == {"": {"a": mask}}
    mask = write_nifti(tmp_path / "fold_1" / "validation" / "b.nii.gz", np.zeros((2, 2, 2), np.uint8))
    (tmp_path / "fold_2").mkdir()
    assert find_masks(tmp_path) == {"fold_1": {"b": mask}}
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_masks(tmp_path) == {} == find_masks(tmp_path / "nowhere")
    assert mask_labels(tmp_path) == {}


def test_the_command_prints_a_script_that_ends_in_our_judgement(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "export-nnunet", cases.root, "-o", tmp_path / "out", "--group", "pairs", "--number", "4"]
    out, err = call(capsys, *words, "--trainer", "nnUNetTrainer_50epochs", "--quiet")
    lines = out.splitlines()
    assert not err and {line.split()[0] for line in lines} == {
        "#",
        "export",
        "mednca",
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
    }
    dataset = tmp_path / "out" / "nnUNet_raw" / "Dataset004_TwoParts"
    where = results_folder(dataset, "2d", "nnUNetTrainer_50epochs")
    assert where.name == "nnUNetTrainer_50epochs__nnUNetPlans__2d"
    assert f"mednca evaluate {where} {cases.root} --group pairs --json nnunet_2d.json" in lines
    out_of_fold(cases, split_folds(cases, 5, 0), where)
    (evaluate,) = (line.split()[1:] for line in lines if line.endswith("nnunet_2d.json"))
    call(capsys, *evaluate[:-2], "--quiet")


def test_the_command_refuses_in_one_line(
    cases: CaseSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "export-nnunet", cases.root, "-o", tmp_path / "out"]
    for option, value, told in (
        ("--folds", "1", "--folds must be at least 2, got 1"),
        ("--number", "0", "--number must be from 1 to 999, got 0"),
        ("--folds", "11", "11 folds need as many groups, got 10"),
    ):
        _, err = call(capsys, *words, option, value, status=2)
        assert told in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- The script that runs it ----


def test_the_script_goes_on_where_it_stopped_and_leaves_our_reports(
    cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, log = tmp_path / "runs", []
    folds = split_folds(cases, 5, 0)

    def imitated(out: Path, *words: str) -> None:
        log.append(words)
        if words[0] == "nnUNetv2_plan_and_preprocess":
            for kind in ("2d", "3d_fullres"):
                (out / "nnUNet_preprocessed" / "Dataset004_TwoParts" / f"nnUNetPlans_{kind}").mkdir()
            return
        fold = int(words[3])
        place = results_folder(out / "nnUNet_raw" / "Dataset004_TwoParts", words[2], words[5])
        (place / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        if fold == 1 and words[-1] != "--c":
            (place / "fold_1" / "checkpoint_latest.pth").touch()
            raise InputError("stopped")
        out_of_fold(cases, folds, tmp_path / f"of {fold}")
        (tmp_path / f"of {fold}" / "dataset.json").replace(place / "dataset.json")
        (tmp_path / f"of {fold}" / f"fold_{fold}" / "validation").rename(
            place / f"fold_{fold}" / "validation"
        )

    monkeypatch.setattr(script, "call", imitated)
    monkeypatch.setattr(script, "check_installed", lambda: None)
    monkeypatch.setattr(script, "parameters", lambda dataset, kind: 7)
    words = [str(cases.root), "--runs", str(runs), "--group", "pairs", "--kind", "2d"]
    words += ["--fold", "0", "--fold", "1", "--trainer", "nnUNetTrainer_5epochs"]
    assert script.main(words) == 2 and capsys.readouterr().err.endswith("error: stopped\n")
    assert script.main(words) == 0 == script.main(words)
    assert [call[0] for call in log] == ["nnUNetv2_plan_and_preprocess", *["nnUNetv2_train"] * 3]
    assert log[1][1:] == ("004", "2d", "0", "-tr", "nnUNetTrainer_5epochs", "-device", "cuda")
    assert log[3][3] == "1" and log[3][-1] == "--c"
    for fold in (0, 1):
        place = runs / "hippocampus_nnunet_2d" / "seed_0" / f"fold_{fold}"
        report = Report.from_json((place / "report.json").read_text())
        assert sorted(report.cases) == folds[fold]
        told = json.loads((place / "provenance.json").read_text())
        assert told["epochs"] == 5 and told["parameters"] == 7 and told["sessions"] == 1 + fold
    assert script.main([*words[:-1], "nnUNetTrainer"]) == 2
    assert "was trained by nnUNetTrainer_5epochs" in capsys.readouterr().err


def test_the_epochs_of_a_trainer_are_in_its_name() -> None:
    names = ("nnUNetTrainer", "nnUNetTrainer_1epoch", "nnUNetTrainer_250epochs_NoMirroring")
    assert [script.epochs(name) for name in names] == [1000, 1, 250]


def test_the_script_says_what_to_install(
    cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "entry_points", lambda **_: ())
    assert script.main([str(cases.root), "--runs", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert told == "nnunet.py: error: nnunetv2 is needed and not installed; pip install nnunetv2\n"
    assert not (tmp_path / "runs").exists()
