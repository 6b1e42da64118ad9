"""What README and docs say holds: every command runs, every link leads somewhere.

Commands stand in fenced `console` blocks behind a `$ ` prompt; a backslash at the end continues a line. The
mednca commands of a page run one after the other, in a folder that holds what `write_inputs` writes, with
tiny models and scans.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from mednca import bench, cli, download, modelfile, synthetic
from mednca.commands import COMMANDS, Train
from mednca.config import RunConfig
from mednca.nca import MedNCA
from mednca.plan import with_fitting_start
from mednca.recipes import RECIPES
from tests.prostate import write_nci_isbi, write_task05

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Other programs that a page may call. Whatever else stands behind a prompt is a mistake or needs a test.
FOREIGN = {"git", "cd", "pip", "python", "python3", "tensorboard", "export", ".", "sudo", "./mednca-run"}
#: Pages that begin where a model has been trained already, in runs/mine.
WITH_RUN = {
    "docs/how-to/predict.md",
    "docs/how-to/resume-and-cross-validate.md",
    "docs/how-to/compare-with-nnunet.md",
    "docs/how-to/robustness.md",
    "docs/how-to/trust.md",
}
#: What is called by hand: every script here but the modules that others import.
SCRIPTS = [
    path
    for folder in ("reproduce", "benchmarks", "runtime/pi")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


def commands() -> list[tuple[str, list[str]]]:
    """All pages -> (page:line, words) of each command."""
    found = []
    for page in PAGES:
        inside, command, start = False, "", 0
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip().startswith("```"):
                inside = line.strip() == "```console"
            elif inside and (command or line.strip().startswith("$ ")):
                start = start if command else number
                command += line.strip().removeprefix("$ ") if not command else " " + line.strip()
                if command.endswith("\\"):
                    command = command[:-1].rstrip()
                    continue
                where = f"{page.relative_to(ROOT).as_posix()}:{start}"
                found.append((where, shlex.split(command, comments=True)))
                command = ""
    return found


def words_of(*programs: str) -> list[object]:
    """Names of programs -> a test parameter for each command that calls one of them."""
    return [
        pytest.param(words, id=f"{where} {' '.join(words)}")
        for where, words in commands()
        if words[0] in programs
    ]


@cache
def help_of(name: str) -> str:
    """Name of a command -> what `mednca ... --help` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = status_of([*name.split(), "--help"])
    assert status == 0, f"mednca {name} --help: exit status {status}"
    return out.getvalue()


def options_of_help(text: str) -> set[str]:
    """Text of a help page -> the options that it has a row for."""
    rows = re.findall(r"^[│ ] (-.*?)(?:  |│|$)", text, flags=re.M)
    return {option for row in rows for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", row)}


def options_of_table(text: str) -> set[str]:
    """Text of a section of the reference -> the options in the first column of its table."""
    rows = re.findall(r"^\| ((?:[^|\\]|\\.)*) \|", text, flags=re.M)
    return {option for row in rows for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", row)}


def status_of(words: Sequence[str]) -> int:
    """Words of a mednca command -> its exit status, run in this process."""
    try:
        cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("main must end with an exit status")


# ---- The reference and --help ----


def test_mednca_runs_as_a_module_and_names_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mednca", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [name for name in COMMANDS if name not in done.stdout]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_lists_exactly_the_options_of_a_command(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## mednca ([\w -]+)\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    assert sections.keys() == COMMANDS.keys()
    there = options_of_help(help_of(name)) - {"-h", "--help"}
    told = options_of_table(sections[name])
    assert there, "no option found: is the pattern still right?"
    assert not there - told, f"docs/reference/cli.md lacks options of mednca {name}"
    assert not told - there, f"docs/reference/cli.md has options that mednca {name} does not"


def test_the_reference_names_exactly_the_recipes() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `--recipe NAME` \|(.*)$", page, flags=re.M)
    assert set(re.findall(r"`(\w+)`", row)) == RECIPES.keys()


# ---- The commands run ----


def scan(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seed -> image float32 (16, 20, 6) with a two-part organ, label uint8 and affine, as of a phantom."""
    random = np.random.default_rng(seed)
    label = np.zeros((16, 20, 6), np.uint8)
    label[5:11, 4:9, 1:5], label[5:11, 9:15, 1:5] = 1, 2
    image = (100 + 100 * (label > 0) + 20 * random.random(label.shape)).astype(np.float32)
    return image, label, np.diag([1.0, 1.0, 2.0, 1.0])


def write_set(folder: Path, names: Sequence[str]) -> None:
    """Write small labelled scans under these names, in the layout of the Medical Segmentation Decathlon."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(names):
        image, label, affine = scan(number)
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"{name}.nii.gz")
    meta = {"name": folder.name, "labels": {"0": "background", "1": "head", "2": "tail"}}
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    (folder / "dataset.json").write_text(json.dumps(meta | {"training": listed}), encoding="utf-8")


def write_official(folder: Path) -> None:
    """Write what the authors publish of a model, with random weights: two rules and their settings."""
    folder.mkdir()
    n, h, random = 32, 128, torch.Generator().manual_seed(0)
    shapes = {"p0.weight": (n, n, 3, 3), "p0.bias": (n,), "p1.weight": (n, n, 3, 3), "p1.bias": (n,)}
    shapes |= {"fc0.weight": (h, 3 * n), "fc0.bias": (h,), "fc1.weight": (n, h)}
    for level in range(2):
        rule = {name: 0.01 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
        torch.save(rule, folder / f"model{level}.pth")
    settings = {"channel_n": n, "hidden_size": h, "inference_steps": 16, "cell_fire_rate": 0.5}
    settings |= {"input_channels": 1, "output_channels": 1, "input_size": [[16, 16], [64, 64]]}
    settings |= {"lr": 1.6e-3, "betas": [0.5, 0.5], "batch_size": 40, "n_epoch": 1500}
    (folder / "config.json").write_text(json.dumps([settings]), encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """Write all that a page may take as given: data sets, scans, a table of persons, an official model."""
    subjects = [f"sub-{number:02d}_scan" for number in range(1, 11)]
    write_set(folder / "DATA", subjects)
    write_set(folder / "TEST_DATA", ["sub-21_scan", "sub-22_scan"])
    write_set(folder / "Task04_Hippocampus", [f"hippocampus_{number:03d}" for number in range(1, 11)])
    rows = ["case,patient_id", *(f"{name},{name[:6]}" for name in subjects)]
    (folder / "DATA" / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "held_out.txt").write_text("hippocampus_001\nhippocampus_002\n", encoding="utf-8")
    (folder / "settings.json").write_text('{"train": {"patch": 24}}', encoding="utf-8")
    (folder / "scans").mkdir()
    for number, name in enumerate(("scan", "a", "b", "scans/d", "scans/e")):
        image, _, affine = scan(number)
        nib.save(nib.Nifti1Image(image, affine), folder / f"{name}.nii.gz")
    for name in ("b.mha", "c.nrrd"):
        stored = SimpleITK.GetImageFromArray(scan(0)[0].T)
        stored.SetSpacing((1.0, 1.0, 2.0))
        SimpleITK.WriteImage(stored, str(folder / name))
    write_task05(folder / "Task05_Prostate")
    write_nci_isbi(
        folder / "NCI-ISBI-2013", ["Prostate3T-01-0001", "ProstateDx-01-0002", "ProstateDx-01-0055"]
    )
    write_official(folder / "FOLDER")
    write_official(folder / "authors_checkpoint")


def tiny(configure: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """How a command makes its configuration -> the same, then a model and a training that take no time."""

    def shrunk(command: Any, data: Any) -> RunConfig:
        config = configure(command, data)
        model = replace(config.model, channels=8, hidden=8, steps=tuple(2 for _ in config.model.steps))
        train = replace(config.train, iterations=2, batch_size=2, validation_cases=1)
        baseline = config.baseline and replace(config.baseline, filters=2)
        return with_fitting_start(replace(config, model=model, train=train, baseline=baseline))

    return shrunk


def fetched(name: str, out: Path | None = None, **_: Any) -> Path:
    """Name of a public set and a folder -> a small set in its place, where there is none."""
    folder = Path(out or name)
    return folder if folder.exists() else write_task05(folder)


def quick(measure: Callable[..., Any]) -> Callable[..., Any]:
    """The benchmark -> the same of one round and a small slice."""
    return lambda source, **more: measure(source, **more | {"sizes": [(16, 16)], "repeats": 1})


@contextlib.contextmanager
def small_world(folder: Path) -> Iterator[None]:
    """Folder -> commands run in it, with small phantoms, tiny models, and `hippocampus` where there is
    none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Train, "configure", tiny(Train.configure))
        patch.setattr(synthetic, "phantom", scan)
        patch.setattr(download, "get", fetched)
        patch.setattr(bench, "bench", quick(bench.bench))
        patch.setattr(bench, "memory", lambda *_: None)
        patch.setattr(bench, "scan_of", lambda _: ((16, 16, 4), [1.0, 1.0, 1.0]))
        if "hippocampus" not in modelfile.shipped_models():
            shipped = folder / ".shipped"
            shipped.mkdir(exist_ok=True)
            config = RunConfig()
            model = modelfile.ModelFile(config, MedNCA(config.model).weights(), {"name": "hippocampus"})
            modelfile.save_model(shipped / "hippocampus.safetensors", model)
            patch.setattr(modelfile, "SHIPPED", shipped)
        yield


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a page may take as given, and a finished run in runs/given."""
    folder = tmp_path_factory.mktemp("given")
    write_inputs(folder)
    with small_world(folder):
        assert status_of(["train", "DATA", "-o", "runs/given", "--quiet"]) == 0
    return folder


def run_all(lines: Sequence[tuple[str, list[str]]]) -> None:
    """(where, words) of mednca commands -> each run in turn: exit status 0, and what it names is written."""
    for where, words in lines:
        call, into = (words[:-2], words[-1]) if words[-2] == ">" else (words, None)
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            status = status_of(call[1:])
        if into:
            Path(into).write_text(out.getvalue(), encoding="utf-8")
        told = f"{where}: $ {' '.join(words)}\n{said.getvalue()}{out.getvalue()}"
        assert status == 0, f"exit status {status} of {told}"
        for option, value in pairwise(words):
            if option in ("-o", "--out") or (option == "--json" and value.endswith(".json")):
                assert Path(value).exists(), f"{value} was not written by {told}"


PAGES_THAT_CALL = sorted({where.rpartition(":")[0] for where, words in commands() if words[0] == "mednca"})


@pytest.mark.parametrize("page", PAGES_THAT_CALL)
def test_the_commands_of_a_page_run_one_after_the_other(page: str, given: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(given, tmp_path / "here"))
    if page in WITH_RUN:
        (folder / "runs" / "given").rename(folder / "runs" / "mine")
    with small_world(folder):
        run_all(
            [(at, words) for at, words in commands() if words[0] == "mednca" and at.startswith(page + ":")]
        )


def test_the_examples_of_every_help_page_run(given: Path, tmp_path: Path) -> None:
    examples = []
    for name in COMMANDS:
        block = re.search(r"^Examples?:\n((?: +\S.*\n?)+)", help_of(name), flags=re.M)
        assert block, f"mednca {name} --help shows no example"
        lines = [line.strip().removeprefix("$ ") for line in block[1].splitlines()]
        examples += [(f"mednca {name} --help", shlex.split(line)) for line in lines]
    folder = Path(shutil.copytree(given, tmp_path / "here"))
    with small_world(folder):
        run_all(examples)


# ---- Other programs ----


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_script_behind_a_figure_tells_how_to_call_it(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert not end.value.code
    assert "usage" in capsys.readouterr().out.lower()


def test_python_commands_of_the_docs_call_what_there_is() -> None:
    for where, words in commands():
        if words[0] in ("python", "python3") and words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]), f"{where}: there is no module {words[2]}"
        elif words[0] in ("python", "python3"):
            assert (ROOT / words[1]) in SCRIPTS, f"{where}: {words[1]} is no script of this project"


@pytest.mark.parametrize("words", words_of("make"))
def test_a_make_command_of_the_docs_has_its_target(words: list[str]) -> None:
    folder, words = (words[2], words[3:]) if words[1:2] == ["-C"] else ("", words[1:])
    makefile = (ROOT / folder / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.M))
    variables = set(re.findall(r"^([A-Z]+) :=", makefile, flags=re.M))
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"the Makefile has no {name}"


@pytest.mark.parametrize("words", words_of("./mednca-run"))
def test_a_call_of_mednca_run_has_its_options(words: list[str]) -> None:
    source = (ROOT / "runtime" / "c" / "mednca-run.c").read_text(encoding="utf-8")
    for word in words[1:]:
        if word.startswith("-"):
            assert f'"{word}"' in source, f"mednca-run has no {word}"


def test_pages_call_only_programs_that_are_checked_or_known() -> None:
    unknown = [
        f"{where}: {words[0]}" for where, words in commands() if words[0] not in FOREIGN | {"mednca", "make"}
    ]
    assert not unknown
    assert any(words[0] == "make" for _, words in commands()), "no command found: is the pattern still right?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}: no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, f"docs/index.md does not name {name}"
