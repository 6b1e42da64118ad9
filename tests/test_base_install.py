"""What the base install does: everything but training, without PyTorch and without any other extra."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mednca import engine
from mednca.commands import COMMANDS
from mednca.config import BaselineConfig
from mednca.modelfile import ModelFile, load_model, save_model
from tests.small import write_world

ROOT = Path(__file__).resolve().parents[1]
#: Runs the command line in a Python that finds none of the extras.
PROGRAM = """
import sys

EXTRAS = {"torch", "scipy", "tensorboard", "matplotlib", "surface_distance", "SimpleITK", "PIL", "tifffile"}
EXTRAS |= {"onnx", "onnxruntime", "openvino", "pooch", "requests"}

class WithoutExtras:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in EXTRAS else self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [WithoutExtras(finder) for finder in sys.meta_path]
from mednca.cli import main
main(sys.argv[1:])
"""
needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a model, scans and a data set."""
    return write_world(tmp_path)


def base(folder: Path, *words: str, status: int = 0) -> tuple[str, str]:
    """Folder and words of a command -> its stdout and stderr, run there with the base install alone."""
    call = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_every_command_explains_itself(world: Path) -> None:
    assert all(name in base(world, "--help")[0] for name in COMMANDS)
    for name in COMMANDS:
        assert "Examples" in base(world, *name.split(), "--help")[0]


def test_what_a_model_is_can_be_told(world: Path) -> None:
    assert "51,840" in base(world, "info", "hippocampus")[0]
    assert json.loads(base(world, "info", "hippocampus", "--json")[0])["hash"]


def test_a_baseline_is_told_of_and_what_it_needs_to_predict(world: Path) -> None:
    automaton = load_model(world / "model.safetensors").config
    one_level = replace(automaton.model, scales=(1,), steps=(1,))
    config = replace(automaton, model=one_level, baseline=BaselineConfig("unet"))
    file = ModelFile(config, {"network.head.bias": np.zeros(1, np.float32)})
    save_model(world / "unet.safetensors", file)
    told = base(world, "info", "unet.safetensors")[0]
    assert "the baseline 'unet'" in told and "predicts with the extra train only" in " ".join(told.split())
    said = base(world, "predict", "unet.safetensors", "scan.nii.gz", "-o", "mask.nii.gz", status=2)[1]
    assert said == "mednca: error: torch is needed and not installed; pip install 'mednca[train]'\n"
    for words in ("bench", "export --to c -o m.h", "calibrate scan.nii.gz -o m.safetensors"):
        name, *rest = words.split()
        said = base(world, name, "unet.safetensors", *rest, status=2)[1]
        assert "takes cellular automata; the model" in said and "is the baseline 'unet'" in said


@pytest.mark.parametrize("name", [pytest.param("native", marks=needs_engine), "numpy", "auto"])
def test_scans_are_segmented(name: str, world: Path) -> None:
    _, said = base(world, "predict", "model.safetensors", "scans", "-o", "masks", "--engine", name)
    assert not said or (name == "auto" and not engine.available())
    assert np.asarray(nib.load(world / "masks" / "s0.nii.gz").dataobj).any()
    report = json.loads((world / "masks" / "s0.json").read_text())
    assert report["engine"] == (name if name != "auto" else "native" if engine.available() else "numpy")


def test_models_are_judged_but_for_the_surfaces_and_that_is_said(world: Path) -> None:
    out, said = base(world, "evaluate", "model.safetensors", "data", "--json", "report.json", "--quiet")
    assert "dice" in out and "Not measured, as the extra train is not installed: nsd, hd95_mm, assd_mm" in out
    (line,) = [line for line in said.splitlines() if "left out" in line]
    assert "nsd, hd95_mm, assd_mm are left out" in line and "pip install 'mednca[train]'" in line
    report = json.loads((world / "report.json").read_text())
    assert report["provenance"]["left_out"] == ["nsd", "hd95_mm", "assd_mm"]
    scores = report["cases"]["a_1"]["scores"]["merged"]
    assert set(scores) == {"dice", "iou", "volume_ml", "label_volume_ml", "volume_error", "soft_dice"}


def test_models_are_exported_and_calibrated(world: Path) -> None:
    assert "bytes" in base(world, "export", "model.safetensors", "--to", "c", "-o", "model.h")[0]
    assert (world / "model.h").is_file()
    base(world, "calibrate", "model.safetensors", "scans", "-o", "calibrated.safetensors", "--quiet")
    assert load_model(world / "calibrated.safetensors").range is not None
    if engine.available():
        words = "predict calibrated.safetensors scan.nii.gz -o mask.nii.gz --engine int16"
        base(world, *words.split())
        assert json.loads((world / "mask.json").read_text())["engine"] == "int16"


@needs_engine
def test_the_machine_is_timed(world: Path) -> None:
    words = "bench model.safetensors --size 16x16 --repeats 1 --threads 1 --quiet --json bench.json"
    assert "16" in base(world, *words.split())[0]
    assert json.loads((world / "bench.json").read_text())


def test_data_are_made_and_audited(world: Path) -> None:
    base(world, "phantoms", "made", "--count", "2")
    assert "2" in base(world, "doctor", "made")[0]
    assert "parameters" in base(world, "plan", "made", "--budget", "pi")[0]


@pytest.mark.parametrize(
    "words",
    [
        "train data -o run",
        "import-official data -o authors.safetensors",
        "predict model.safetensors scan.nii.gz -o mask.nii.gz --engine eager",
        "predict model.safetensors scan.nii.gz -o mask.nii.gz --engine folded",
        "predict model.safetensors scan.nii.gz -o mask.nii.gz --device cuda",
        "evaluate model.safetensors data --engine eager",
        "export model.safetensors --to onnx -o exported",
        "data get Task04_Hippocampus",
    ],
)
def test_what_needs_an_extra_says_so_in_a_line_and_leaves_nothing(words: str, world: Path) -> None:
    before = sorted(world.rglob("*"))
    out, said = base(world, *words.split(), status=2)
    others = {"export": ("onnx", "onnx"), "data": ("pooch", "data")}
    module, extra = others.get(words.split()[0], ("torch", "train"))
    assert said == f"mednca: error: {module} is needed and not installed; pip install 'mednca[{extra}]'\n"
    assert not out and sorted(world.rglob("*")) == before


# ---- The real thing ----


def size(path: Path) -> float:
    """File, or folder with all in it -> MB."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def copied(target: Path) -> Path:
    """Folder to make -> what the package is built from in it, without what an earlier build left."""
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "src/mednca",
        "runtime/c",
    ):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, path, ignore=shutil.ignore_patterns("_engine*", "__pycache__", "build")
            )
        else:
            shutil.copyfile(ROOT / name, path)
    return target


@pytest.mark.slow
def test_a_clean_environment_predicts_without_torch(tmp_path: Path) -> None:
    """Builds the wheel, installs it alone, and measures: sizes, and seconds from pip to the first mask."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str | Path) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = ("-m", "pip", "--disable-pip-version-check")
    source = copied(tmp_path / "source")
    run(sys.executable, *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", source)
    (wheel,) = (tmp_path / "wheels").iterdir()
    venv.create(tmp_path / "clean", with_pip=True)
    (python,) = [*(tmp_path / "clean").glob("bin/python"), *(tmp_path / "clean").glob("Scripts/python.exe")]
    (packages,) = [path for path in (tmp_path / "clean").rglob("site-packages") if path.is_dir()]
    there = {path.name: size(path) for path in packages.iterdir()}

    started = time.perf_counter()
    run(python, *pip, "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    installed = time.perf_counter()
    mednca = (python, "-m", "mednca")
    run(*mednca, "phantoms", "phantoms", "--count", "1")
    (scan,) = (tmp_path / "phantoms" / "imagesTr").glob("*.nii.gz")
    begun = time.perf_counter()
    run(*mednca, "predict", "hippocampus", scan, "-o", "mask.nii.gz")
    masked = time.perf_counter()
    run(*mednca, "export", "hippocampus", "--to", "c", "-o", "model.h")
    if engine.available():
        print(run(*mednca, "bench", "--size", "64x64", "--repeats", "3", "--quiet"))

    for package in ("torch", "scipy"):
        gone = subprocess.run(
            [python, "-c", f"import {package}"], capture_output=True, text=True, check=False
        )
        assert gone.returncode == 1 and f"No module named '{package}'" in gone.stderr
    assert "51,840" in run(*mednca, "info", "hippocampus")
    report = json.loads((tmp_path / "mask.json").read_text())
    assert report["engine"] == ("native" if engine.available() else "numpy")
    added = {path.name: size(path) for path in packages.iterdir() if path.name not in there}
    largest = ", ".join(f"{name} {added[name]:.1f}" for name in sorted(added, key=lambda n: -added[n])[:8])
    print()
    print(f"wheel {wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    print(f"installed: {sum(added.values()):.1f} MB ({largest})")
    print(
        f"pip install {installed - started:.1f} s, first mask of a phantom {masked - begun:.1f} s "
        f"({report['engine']}, {report['threads']} threads, {report['shape']} voxels)"
    )
