"""The quick start: everything it promises is there, it repeats onto its own folder and touches no other."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mednca import demo as module
from mednca.checkpoint import RunFolder
from mednca.demo import MARKER, PARTS, demo, main
from mednca.errors import InputError
from mednca.synthetic import write_phantoms


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tiny demo: four phantoms, three iterations. Its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out, iterations=3, phantoms=4, progress=False)


def test_everything_promised_is_written(made: tuple[Path, str]) -> None:
    out, text = made
    assert {path.name for path in out.iterdir()} == {*PARTS, MARKER}
    for name in ("overlay.png", "curve.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert (out / "README.txt").read_text(encoding="utf-8") == text + "\n"
    assert (out / "run" / "model.safetensors").is_file()
    assert RunFolder(out / "run").config().recipe == "quick"


def test_masks_and_scores_are_of_the_held_out_cases_on_their_own_grid(made: tuple[Path, str]) -> None:
    out, text = made
    (held_out,) = RunFolder(out / "run").split()["validation"]
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["cases"]) == [held_out]
    assert metrics["provenance"]["cpu_seconds"] > 0
    path = out / "masks" / f"{held_out}.nii.gz"
    assert {other.name for other in path.parent.iterdir()} == {path.name, f"{held_out}.json"}
    mask, scan = nib.load(path), nib.load(out / "phantoms" / "imagesTr" / path.name)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, rtol=0, atol=1e-6)
    assert "4 synthetic scans" in text
    assert "from 3 of them, in 3 steps" in " ".join(text.split())
    assert f"{metrics['summary']['merged']['dice']['mean']:.3f}" in text


def test_the_text_says_what_to_type_and_is_no_wider_than_a_terminal(made: tuple[Path, str]) -> None:
    out, text = made
    assert f"predict {(out / 'run').as_posix()} SCAN.nii.gz -o mask.nii.gz" in text
    short = text.replace(out.as_posix(), "demo")
    assert max(len(line) for line in short.splitlines()) <= 90


def test_a_second_demo_replaces_what_the_first_made_and_nothing_else(tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "data", 4, seed=3)
    out = tmp_path / "demo"
    module.prepare(out, None)
    (out / "masks").mkdir()
    (out / "masks" / "old.nii.gz").touch()
    (out / "phantoms").mkdir()
    (out / "notes.txt").write_text("mine")
    text = demo(out, data, iterations=2, progress=False)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "phantoms").exists()
    assert not (out / "masks" / "old.nii.gz").exists()
    assert f"4 labelled scans were read ({data})" in " ".join(text.split())
    assert "--group" in text


def test_a_folder_that_no_demo_made_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(InputError, match="was not made by a demo"):
        demo(tmp_path, progress=False)
    assert (tmp_path / "run" / "precious").read_text() == "x"
    assert not (tmp_path / MARKER).exists()


def test_data_within_what_is_replaced_are_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    module.prepare(out, None)
    data = write_phantoms(out / "phantoms", 2, seed=0)
    with pytest.raises(InputError, match="writes anew"):
        demo(out, data, progress=False)
    assert (data / "dataset.json").is_file()


def test_unusable_data_leave_the_last_demo_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    module.prepare(out, None)
    (out / "README.txt").write_text("last")
    with pytest.raises(InputError):
        demo(out, tmp_path / "nowhere", progress=False)
    assert (out / "README.txt").read_text() == "last"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--group", "pairs"], "--data"),
        (["--iterations", "0"], "--iterations"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("mednca: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_reaches_dice_090_on_held_out_phantoms(tmp_path: Path) -> None:
    demo(tmp_path / "demo", progress=False)
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text(encoding="utf-8"))
    assert len(metrics["cases"]) == 8
    assert metrics["summary"]["merged"]["dice"]["mean"] >= 0.90
