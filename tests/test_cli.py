"""The command line: help with examples, results on stdout, everything else on stderr, JSON that parses."""

from __future__ import annotations

import inspect
import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from mednca import __version__
from mednca.cli import guarded, main
from mednca.commands import COMMANDS
from mednca.modelfile import load_model, save_model
from mednca.signals import PATIENCE
from tests.small import tiny_model, write_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, scans and a data set, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return write_world(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    """Words of a command -> its stdout and stderr; holds it to the exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0) == status, err
    return out, err


def test_anytime_takes_a_number_or_none(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["predict", "--json", "--force"]
    for words, patience in (([], None), (["--anytime"], PATIENCE), (["--anytime", "7"], 7)):
        rest = ["model.safetensors", "scan.nii.gz", "-o", "mask.nii"]
        for order in (start + words + rest, start + rest + words):
            (report,) = json.loads(run(capsys, *order)[0])
            assert report["patience"] == patience
    out, err = run(capsys, *start, *rest, "--anytime", "-3", status=2)
    assert "patience must be at least 1 step, got -3" in err and not out


def examples(name: str) -> list[str]:
    """Name of a command -> the lines of its examples."""
    text = inspect.cleandoc(COMMANDS[name].__doc__ or "")
    return [line.strip() for line in text.partition("Examples:\n")[2].splitlines() if line.strip()]


def test_help_names_every_command_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "--help")
    assert all(f"\n  {name} " in out for name in COMMANDS) and not err
    assert "mednca predict hippocampus scan.nii.gz -o mask.nii.gz" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (f"mednca {__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_its_examples_on_lines_of_their_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, *name.split(), "--help")
    assert not err
    assert examples(name)
    lines = [line.strip() for line in out.splitlines()]
    for example in examples(name):
        assert example in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_parse(name: str) -> None:
    for example in examples(name):
        words = shlex.split(example.partition(" > ")[0])
        named = ["mednca", *name.split()]
        assert words[: len(named)] == named
        tyro.cli(COMMANDS[name], args=words[len(named) :], config=(tyro.conf.FlagCreatePairsOff,))


def test_help_does_not_load_torch() -> None:
    program = (
        "import sys; from mednca.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_predict_prints_a_line_for_each_scan(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "predict", "model.safetensors", "scans", "-o", "masks")
    assert [line.partition(":")[0] for line in out.splitlines()] == [f"masks/s{k}.nii.gz" for k in range(3)]
    assert "foreground" in out and " ml, " in out
    assert not err


def test_predict_prints_its_reports_as_json(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "predict", "model.safetensors", "scans", "-o", "masks", "--json")
    reports = json.loads(out)
    assert reports == [json.loads((world / "masks" / f"s{k}.json").read_text()) for k in range(3)]


def test_a_warning_of_the_model_is_told_once(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(world / "model.safetensors", tiny_model(card={"finished": False, "iterations": 10}))
    out, err = run(capsys, "predict", "model.safetensors", "scans", "-o", "masks", "--json")
    assert err.count("not finished") == len(err.splitlines()) == 1
    assert all(report["warnings"] for report in json.loads(out))


def test_evaluate_prints_a_table_and_writes_every_case(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "ids.txt").write_text("a_2\na_4\n")
    words = ["evaluate", "model.safetensors", "data", "--cases", "ids.txt", "--json", "report.json"]
    out, err = run(capsys, *words)
    assert "dice" in out and not err
    report = json.loads((world / "report.json").read_text())
    assert "a_2" in json.dumps(report) and "a_1" not in json.dumps(report)
    assert load_model(world / "model.safetensors").hash in json.dumps(report)


def test_evaluate_warns_of_cases_that_the_model_has_seen(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(world / "model.safetensors", tiny_model(card={"training_cases": ["a_3", "b_1"]}))
    _, err = run(capsys, "evaluate", "model.safetensors", "data", "--quiet")
    assert "trained on 1 of these 6 cases (as a_3)" in err


def test_info_tells_what_a_user_must_know(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = {
        "data": "made up",
        "training_cases": ["a", "b", "c"],
        "scores": {"dice": {"mean": 0.9, "sd": 0.01, "ci95": [0.88, 0.92]}, "cases": ["d", "e"]},
        "licence": "CC-BY-SA 4.0",
        "attribution": "the makers",
        "fingerprint": {"spacing_mm": [[1, 1, 2], [1, 1, 3]], "size_mm": [[9, 9, 9], [9, 9, 9]]},
        "finished": False,
        "iterations": 1234,
    }
    save_model(world / "model.safetensors", tiny_model(context=1, card=card))
    out, err = run(capsys, "info", "model.safetensors")
    assert not err
    parameters = f"{load_model('model.safetensors').parameters:,}"
    for told in (
        parameters,
        "2 + 3",
        "made up, 3 cases, 1,234 iterations",
        "dice 0.9000 (sd 0.0100, 95 % interval 0.8800 to 0.9200) on 2 cases",
        "CC-BY-SA 4.0",
        "the makers",
        "not a medical device",
        "spacing 1 x 1 x 2-3 mm",
        "not finished (iteration 1234 of 5000)",
    ):
        assert told in " ".join(out.split()), told


def test_info_as_json_has_the_whole_configuration(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "info", "model.safetensors", "--json")
    told = json.loads(out)
    assert told["config"]["model"]["steps"] == [2, 3] and told["card"]["name"] == "tiny"


def test_doctor_ends_with_its_finding(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "doctor", "data", "--json", "audit.json")
    json.loads((world / "audit.json").read_text())
    (world / "data" / "images" / "a_1.nii.gz").unlink()
    run(capsys, "doctor", "data", status=1)


def test_a_short_training_ends_in_a_model_that_predicts(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    settings = {"model": {"channels": 8, "hidden": 8, "steps": [2, 2]}, "train": {"patch": 8}}
    (world / "small.json").write_text(json.dumps(settings))
    words = ["train", "data", "-o", "run", "--config", "small.json", "--iterations", "2", "--batch-size", "2"]
    logging.getLogger("mednca").setLevel(logging.ERROR)
    try:
        out, _ = run(capsys, *words, "--quiet")
    finally:
        logging.getLogger("mednca").setLevel(logging.NOTSET)
    assert "dice" in out and out.splitlines()[-1] == "run: done"
    model = load_model("run")
    assert model.config.train.patch == 8 and model.config.model.steps == (2, 2)
    run(capsys, "predict", "run", "scan.nii.gz", "-o", "mask.nii.gz")


def test_the_real_process_keeps_results_and_messages_apart(world: Path) -> None:
    words = [sys.executable, "-m", "mednca", "predict", "model.safetensors", "scans", "-o", "masks", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 3 and not done.stderr


def test_a_missing_extra_is_named_and_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def needs(name: str) -> int:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert guarded(lambda: needs("torch.nn")) == 2
    assert "torch is needed and not installed; pip install 'mednca[train]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        guarded(lambda: needs("mednca.misspelt"))


@pytest.mark.parametrize("words", [["data"], ["data", "--help"], ["data", "-h"]])
def test_a_group_of_commands_lists_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told, _ = run(capsys, *words)
    assert all(name in told for name in ("data get", "data join", "data export-nnunet"))
    assert "predict" not in told


def test_a_command_that_its_group_lacks_is_refused_with_those_that_it_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, error = run(capsys, "data", "fetch", status=2)
    assert "no command 'data fetch'; choose one of data get, data join" in error


def test_an_unknown_recipe_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, error = run(capsys, "train", "nowhere", "-o", str(tmp_path / "run"), "--recipe", "best", status=2)
    assert "recipe 'best' is not known" in error
