"""Whatever a user gets wrong: exit status 2, one line that names it, no traceback, nothing left behind."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch

from mednca.cli import main
from mednca.modelfile import save_model
from tests.small import SHAPE, tiny_model, voxels, write_nifti, write_world

pytest.importorskip("torch.utils.tensorboard", reason="training needs the extra 'train'")

Words = list[str]
Make = Callable[[Path], Words]

PREDICT = ["predict", "model.safetensors"]
OUT = ["-o", "mask.nii.gz"]
TRAIN = ["train", "data", "-o", "run", "--quiet"]
EVALUATE = ["evaluate", "model.safetensors", "data", "--quiet"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good files, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return write_world(tmp_path)


def listing(folder: Path) -> dict[str, bytes | None]:
    """Folder -> everything in it, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def check(words: Words, world: Path, capsys: pytest.CaptureFixture[str], expected: str) -> None:
    """Run the command; hold it to the promise above."""
    before = listing(world)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("mednca: error:")]
    assert len(lines) == 1, err
    assert expected in lines[0]
    assert "Traceback" not in err and not out
    assert len(err.strip().splitlines()) == 1, err
    assert listing(world) == before


def changed(name: str, change: Callable[[Path], object], *words: str) -> Make:
    """Name of a file, what is done to it, and the command -> a case."""

    def make(world: Path) -> Words:
        change(world / name)
        return list(words)

    return make


def command(*words: str) -> Make:
    """A command that is wrong by itself."""
    return lambda world: list(words)


def text(path: Path) -> None:
    path.write_text("this is no image\n" * 40)


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_axis(path: Path) -> None:
    image = nib.load(path)
    image.header["dim"][3] = 0
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4)))


def four_axes(path: Path) -> None:
    write_nifti(path, voxels(shape=(*SHAPE, 3)))


def not_a_number(path: Path) -> None:
    data = voxels().astype(np.float32)
    data[3, 3, 3] = np.nan
    write_nifti(path, data)


def half_labels(path: Path) -> None:
    write_nifti(path, np.full(SHAPE, 0.5, np.float32))


def other_shape(path: Path) -> None:
    write_nifti(path, np.ones((*SHAPE[:2], 5), np.uint8))


def other_place(path: Path) -> None:
    write_nifti(path, np.ones(SHAPE, np.uint8), np.diag([1.0, 1.0, 2.5, 1.0]))


def all_background(path: Path) -> None:
    for file in path.iterdir():
        write_nifti(file, np.zeros(SHAPE, np.uint8))


def remove(path: Path) -> None:
    path.unlink()


def remove_files(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def newer(path: Path) -> None:
    header = {"format": "mednca-model", "version": 99, "config": {}}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"mednca": json.dumps(header)})


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)


def two_channels(path: Path) -> None:
    save_model(path, tiny_model(modalities=2))


def content(written: Any) -> Callable[[Path], object]:
    """JSON -> what writes it to a file."""
    return lambda path: path.write_text(json.dumps(written))


def another_run(world: Path) -> Words:
    from mednca.checkpoint import RunFolder
    from mednca.config import RunConfig

    RunFolder.create(world / "run", RunConfig(), {"training": [], "validation": []})
    return [*TRAIN, "--resume", "--iterations", "7"]


def missing_channel(world: Path) -> Words:
    two_channels(world / "model.safetensors")
    write_nifti(world / "b" / "x_0000.nii.gz", voxels())
    return [*PREDICT, "b", "-o", "masks"]


def official(change: Callable[[Path], object]) -> Make:
    """What is done to a folder of the authors' kind -> the command that imports it."""

    def make(world: Path) -> Words:
        from tests.test_official import write_official

        change(write_official(world / "official"))
        return ["import-official", "official", "-o", "imported.safetensors"]

    return make


def official_config(**changes: Any) -> Make:
    """Settings to change in the authors' config.json -> the command."""

    def change(folder: Path) -> None:
        table = json.loads((folder / "config.json").read_text())[0]
        table |= changes
        table = {name: value for name, value in table.items() if value is not None}
        (folder / "config.json").write_text(json.dumps([table]))

    return official(change)


CASES: dict[str, tuple[Make, str]] = {
    # scans
    "missing file": (command(*PREDICT, "none.nii.gz", *OUT), "none.nii.gz"),
    "text renamed": (changed("scan.nii.gz", text, *PREDICT, "scan.nii.gz", *OUT), "scan.nii.gz"),
    "truncated gzip": (changed("scan.nii.gz", half, *PREDICT, "scan.nii.gz", *OUT), "cut off"),
    "empty file": (changed("scan.nii.gz", empty, *PREDICT, "scan.nii.gz", *OUT), "empty file"),
    "axis without voxels": (changed("scan.nii.gz", no_axis, *PREDICT, "scan.nii.gz", *OUT), "scan.nii.gz"),
    "4-D scan": (
        changed("scan.nii.gz", four_axes, *PREDICT, "scan.nii.gz", *OUT),
        "scan.nii.gz: this model takes",
    ),
    "NaN": (changed("scan.nii.gz", not_a_number, *PREDICT, "scan.nii.gz", *OUT), "finite"),
    "no image": (changed("scan.jpg", text, *PREDICT, "scan.jpg", *OUT), "scan.jpg"),
    "empty folder": (changed("scans", remove_files, *PREDICT, "scans", "-o", "masks"), "scans: no image"),
    "no scan": (command(*PREDICT, *OUT), "INPUT"),
    "one name twice": (command(*PREDICT, "scans", "scans/s1.nii.gz", "-o", "masks"), "s1.nii.gz"),
    # where masks go
    "mask exists": (
        changed("mask.nii.gz", text, *PREDICT, "scan.nii.gz", *OUT),
        "mask.nii.gz: exists already",
    ),
    "report exists": (changed("mask.json", text, *PREDICT, "scan.nii.gz", *OUT), "mask.json: exists already"),
    "one mask of many exists": (
        changed("s1.nii.gz", text, *PREDICT, "scans", "-o", "."),
        "s1.nii.gz: exists already",
    ),
    "mask over its scan": (
        command(*PREDICT, "scan.nii.gz", "-o", "scan.nii.gz", "--force"),
        "scan.nii.gz: the mask would replace",
    ),
    "masks over their scans": (
        command(*PREDICT, "scans", "-o", "scans", "--force"),
        "s0.nii.gz: the mask would replace",
    ),
    "unknown ending of the mask": (command(*PREDICT, "scan.nii.gz", "-o", "mask.jpg"), "mask.jpg"),
    "one mask for many scans": (command(*PREDICT, "scans", *OUT), "mask.nii.gz: must be a folder"),
    "file as a folder": (command(*PREDICT, "scans", "-o", "scan.nii.gz/masks"), "scan.nii.gz"),
    "slices into one picture": (command(*PREDICT, "scan.nii.gz", "-o", "mask.png"), "mask.png"),
    # models
    "model cut in half": (
        changed("model.safetensors", half, *PREDICT, "scan.nii.gz", *OUT),
        "model.safetensors: not a complete",
    ),
    "model of a newer version": (changed("model.safetensors", newer, *PREDICT, "scan.nii.gz", *OUT), "newer"),
    "foreign weights": (
        changed("model.safetensors", foreign, "info", "model.safetensors"),
        "not a mednca model",
    ),
    "unknown shipped model": (command("predict", "spleen", "scan.nii.gz", *OUT), "spleen"),
    "folder without a model": (command("info", "data"), "data: not a run folder"),
    "wrong number of channels": (
        changed("model.safetensors", two_channels, *PREDICT, "scan.nii.gz", *OUT),
        "takes scans of 2 channel(s), got 1",
    ),
    "missing channel": (
        missing_channel,
        "x_0000 to x_0001; got _0000",
    ),
    # settings of predict
    "ensemble of none": (command(*PREDICT, "scan.nii.gz", *OUT, "--ensemble", "0"), "ensemble"),
    "unknown device": (command(*PREDICT, "scan.nii.gz", *OUT, "--device", "abacus"), "abacus"),
    "unknown engine": (command(*PREDICT, "scan.nii.gz", *OUT, "--engine", "steam"), "steam"),
    # data sets
    "no data": (command("evaluate", "model.safetensors", "none"), "none: expected a folder"),
    "label without image": (changed("data/images/a_2.nii.gz", remove, *EVALUATE), "labels/a_2.nii.gz"),
    "label without image, training": (changed("data/images/a_2.nii.gz", remove, *TRAIN), "labels/a_2.nii.gz"),
    "image without label": (changed("data/labels/a_2.nii.gz", remove, *TRAIN), "a_2"),
    "no label at all": (changed("data/labels", remove_files, *TRAIN), "labels are needed"),
    "no label at all to judge by": (changed("data/labels", remove_files, *EVALUATE), "labels are needed"),
    "nothing to learn": (changed("data/labels", all_background, *TRAIN), "all labels are empty"),
    "label of another shape": (changed("data/labels/a_1.nii.gz", other_shape, *TRAIN), "labels/a_1.nii.gz"),
    "label of another place": (changed("data/labels/a_1.nii.gz", other_place, *TRAIN), "labels/a_1.nii.gz"),
    "label of another shape to judge by": (
        changed("data/labels/a_1.nii.gz", other_shape, *EVALUATE),
        "shape",
    ),
    "label of another place to judge by": (changed("data/labels/a_1.nii.gz", other_place, *EVALUATE), "a_1"),
    "float labels": (changed("data/labels/a_1.nii.gz", half_labels, *TRAIN), "whole numbers"),
    "damaged image in a training": (changed("data/images/a_3.nii.gz", half, *TRAIN), "images/a_3.nii.gz"),
    "bad rule for persons": (command(*TRAIN, "--group", "families"), "families"),
    "rule without a match": (command(*TRAIN, "--group", "re:b_(\\d)"), "a_1"),
    "table of persons missing": (command(*EVALUATE, "--group", "csv:persons.csv:id"), "persons.csv"),
    "unknown case": (
        changed("ids.txt", lambda p: p.write_text("a_1\na_9\n"), *EVALUATE, "--cases", "ids.txt"),
        "a_9",
    ),
    "list of cases missing": (command(*EVALUATE, "--cases", "ids.txt"), "ids.txt"),
    "list of no case": (changed("ids.txt", empty, *EVALUATE, "--cases", "ids.txt"), "no cases"),
    "report of an evaluation exists": (
        changed("r.json", text, *EVALUATE, "--json", "r.json"),
        "r.json: exists already",
    ),
    "negative tolerance": (command(*EVALUATE, "--tolerance", "-1"), "tolerance"),
    "audit of nothing": (command("doctor", "none"), "none: expected a folder"),
    # trainings
    "unknown recipe": (command(*TRAIN, "--recipe", "soup"), "soup"),
    "unknown setting": (
        changed("c.json", content({"train": {"patience": 3}}), *TRAIN, "--config", "c.json"),
        "patience",
    ),
    "wrong type of a setting": (
        changed("c.json", content({"train": {"patch": "big"}}), *TRAIN, "--config", "c.json"),
        "patch",
    ),
    "settings that are no table": (changed("c.json", content([1]), *TRAIN, "--config", "c.json"), "c.json"),
    "settings that are no JSON": (
        changed("c.json", text, *TRAIN, "--config", "c.json"),
        "c.json: is not JSON",
    ),
    "settings missing": (command(*TRAIN, "--config", "c.json"), "c.json"),
    "negative iterations": (command(*TRAIN, "--iterations", "-5"), "iterations"),
    "negative seed": (command(*TRAIN, "--seed", "-1"), "seed"),
    "learning rate of nothing": (command(*TRAIN, "--learning-rate", "0"), "learning_rate"),
    "fold out of range": (command(*TRAIN, "--folds", "2", "--fold", "2"), "fold"),
    "fold without folds": (command(*TRAIN, "--fold", "0"), "fold"),
    "more folds than persons": (command(*TRAIN, "--folds", "4", "--group", "pairs"), "4 folds"),
    "nothing left to train on": (command(*TRAIN, "--validation", "0.9"), "validation"),
    "training on an unknown engine": (command(*TRAIN, "--engine", "steam"), "steam"),
    "run exists": (changed("run", Path.mkdir, *TRAIN), "run: exists already"),
    "no run to replace": (
        command("train", "data", "-o", "scans", "--force", "--quiet"),
        "scans: is not a run",
    ),
    "no run to resume": (
        command("train", "data", "-o", "scans", "--resume", "--quiet"),
        "scans: not a run folder",
    ),
    "run of another configuration": (another_run, "run: was started with"),
    # the authors' models
    "no folder to import": (command("import-official", "none", "-o", "a.safetensors"), "none"),
    "rule missing": (official(lambda f: (f / "model1.pth").unlink()), "model1.pth"),
    "rule damaged": (official(lambda f: half(f / "model1.pth")), "model1.pth"),
    "rule that is text": (official(lambda f: text(f / "model0.pth")), "model0.pth"),
    "rule of another network": (
        official(lambda f: torch.save({"conv.weight": torch.zeros(2)}, f / "model0.pth")),
        "model0.pth: expected the tensors",
    ),
    "rule of another size": (official_config(channel_n=16), "must have the shape"),
    "settings of the authors missing": (official(lambda f: (f / "config.json").unlink()), "config.json"),
    "settings of the authors damaged": (
        official(lambda f: text(f / "config.json")),
        "config.json: is not JSON",
    ),
    "setting of the authors missing": (official_config(channel_n=None), "'channel_n' is missing"),
    "3-D model of the authors": (official_config(input_size=[[16, 16, 13], [64, 64, 52]]), "config.json"),
    "model of the authors with three outputs": (official_config(output_channels=3), "output_channels"),
    "imported model exists": (
        lambda world: [*official(lambda f: None)(world)[:-1], "model.safetensors"],
        "model.safetensors: exists already",
    ),
    # the rest
    "no phantoms": (command("phantoms", "p", "--count", "0"), "count"),
    "phantoms over a data set": (command("phantoms", "data", "--force"), "data"),
    "no command": (command(), "a command is missing"),
    "unknown command": (command("segment", "scan.nii.gz"), "segment"),
}


@pytest.mark.parametrize(("make", "expected"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    make: Make, expected: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = make(world)
    check(words, world, capsys, expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("words", [[*PREDICT, "scan.nii.gz", *OUT], EVALUATE, TRAIN], ids=lambda w: w[0])
def test_cuda_is_refused_where_there_is_none(
    words: Words, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check([*words, "--device", "cuda"], world, capsys, "no CUDA device")


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("method", ["write_bytes", "write_text", "replace"])
def test_a_full_disk_leaves_neither_mask_nor_report(
    method: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, method, no_space)
    check([*PREDICT, "scan.nii.gz", *OUT], world, capsys, "No space left")


def test_a_full_disk_leaves_no_model(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = official(lambda folder: None)(world)
    monkeypatch.setattr(os, "fsync", no_space)
    check(words, world, capsys, "No space left")


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_computed(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("mednca.predict.Predictor.predict", lambda *_: pytest.fail("computed"))
    check([*PREDICT, "scan.nii.gz", *OUT], world, capsys, "cannot be written to")


def test_a_disk_that_became_read_only_is_told(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    check([*PREDICT, "scan.nii.gz", *OUT], world, capsys, "Read-only")


@pytest.mark.parametrize(
    "words",
    [
        [*PREDICT, "scan.nii.gz", *OUT, "--speed", "9"],
        ["predict"],
        [*TRAIN, "--iterations", "many"],
        [*TRAIN, "--labels", "some"],
        ["evaluate", "model.safetensors", "data", "--tolerance"],
    ],
    ids=["unknown option", "missing argument", "no number", "no choice", "missing value"],
)
def test_a_mistyped_option_ends_with_status_2(
    words: Words, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(world)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert not out and "Traceback" not in err and "--help" in err
    assert listing(world) == before


def test_one_bad_scan_does_not_stop_the_others(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half(world / "scans" / "s1.nii.gz")
    with pytest.raises(SystemExit) as stopped:
        main([*PREDICT, "scans", "-o", "masks"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert sorted(p.name for p in (world / "masks").iterdir()) == [
        "s0.json",
        "s0.nii.gz",
        "s2.json",
        "s2.nii.gz",
    ]
    assert len(out.splitlines()) == 2
    first, last = err.splitlines()
    assert first.startswith("mednca: error: scans/s1.nii.gz: ")
    assert last == "mednca: 1 of 3 scans could not be segmented"


def test_the_real_process_tells_a_mistake_in_one_line(world: Path) -> None:
    words = [sys.executable, "-m", "mednca", "predict", "model.safetensors", "none.nii.gz", *OUT]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=world)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("mednca: error: none.nii.gz") and len(done.stderr.splitlines()) == 1


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 25
