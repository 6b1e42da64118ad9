"""The same answer on every machine: the static programs for ARMv6 (the processor of the Raspberry Pi B+),
aarch64 and x86-64, the first two under QEMU; and what the sanitizers say."""

from __future__ import annotations

import gzip
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mednca.calibrate import measure_range
from mednca.config import RunConfig
from mednca.io import read_volume
from mednca.metrics import dice_score
from mednca.modelfile import ModelFile, load_model, save_model
from mednca.rule import MedNCAConfig, weight_shapes
from mednca.slices import PreprocessConfig, prepare_image
from tests.runtime.builds import built, run, succeeded
from tests.small import FIELD, voxels, write_nifti

TARGETS = ["armv6", "aarch64", "x86-64"]
MODELS = ["dense", "depthwise", "three axes", "field"]
targets = pytest.mark.parametrize("target", TARGETS)


def random_model(
    context: int = 0, axes: tuple[int, ...] = (2,), field: tuple[float, ...] | None = None, **rule: Any
) -> ModelFile:
    """Settings of the rule -> a model of random weights whose states stay small."""
    config = MedNCAConfig(image_channels=1 + 2 * context, steps=(3, 4), **rule)
    random = np.random.default_rng(5)
    weights = {}
    for name, shape in weight_shapes(config).items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        weights[name] = (random.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    labels, values = ("a", "b")[: config.classes], (1, 2)[: config.classes]
    preprocess = PreprocessConfig(context=context, axes=axes, field=field)
    run = RunConfig("test", labels, values, config.classes == 1, model=config, preprocess=preprocess)
    return ModelFile(run, weights)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with calibrated models and a scan of 12 x 14 x 6 voxels."""
    folder = tmp_path_factory.mktemp("world")
    scan = write_nifti(folder / "scan.nii", voxels())
    for name, model in {
        "dense": random_model(classes=2, channels=12, hidden=32),
        "depthwise": random_model(context=1, channels=9, hidden=20, perception="depthwise"),
        "three axes": random_model(context=1, axes=(2, 0, 1), classes=2, channels=12, hidden=32),
        "field": random_model(field=FIELD, axes=(2, 1), channels=12, hidden=32),
    }.items():
        images = [prepare_image(read_volume(scan), view) for view in model.config.preprocess.views]
        save_model(folder / f"{name}.safetensors", replace(model, range=measure_range(model, images)))
    return folder


def mask(folder: Path, name: str, target: str, *options: object) -> np.ndarray:
    """Model and target -> the mask that its program makes of the scan."""
    out = folder / f"{name}-{target}.nii"
    model = folder / f"{name}.safetensors"
    succeeded(model, folder / "scan.nii", "-o", out, "--force", *options, target=target)
    return np.asarray(nibabel.load(out).dataobj)


@targets
@pytest.mark.parametrize("name", MODELS)
def test_masks_are_those_of_this_machine(world: Path, name: str, target: str) -> None:
    assert np.array_equal(mask(world, name, target, "--int16"), mask(world, name, "host", "--int16"))
    here, there = mask(world, name, "host"), mask(world, name, target)
    assert len(np.unique(here)) > 1
    assert dice_score(here > 0, there > 0) >= 0.995  # random weights: a voxel or two lie on the threshold


@pytest.mark.parametrize("name", MODELS)
def test_int16_masks_have_the_same_bits_whatever_the_instructions(world: Path, name: str) -> None:
    told = succeeded(world / f"{name}.safetensors", "--info")
    (sets,) = re.findall(r"^instructions +(.*?) \(", told, re.M)
    expected = mask(world, name, "host", "--int16")
    for chosen in sets.split():
        assert np.array_equal(mask(world, name, "host", "--int16", "--instructions", chosen), expected)


def states(folder: Path, name: str, target: str, *options: object) -> str:
    """Model and target -> the hash of all states after the last step of each level."""
    words = (folder / f"{name}.safetensors", "--bench", "--hash", "--size", "16x20", *options)
    return succeeded(*words, target=target).strip()


@pytest.mark.parametrize("name", ["dense", "depthwise"])
def test_int16_states_have_the_same_bits_on_every_machine_and_with_any_threads(
    world: Path, name: str
) -> None:
    expected = states(world, name, "host", "--int16")
    assert expected != states(world, name, "host", "--int16", "--steps", "3,3")
    found = {target: states(world, name, target, "--int16") for target in TARGETS}
    told = succeeded(world / f"{name}.safetensors", "--info")
    sets = (
        next(line for line in told.splitlines() if line.startswith("instructions")).split("(")[0].split()[1:]
    )
    for chosen in sets:
        found[chosen] = states(world, name, "host", "--int16", "--instructions", chosen)
    for threads in (1, 2, 4):
        found[f"{threads} threads"] = states(world, name, "host", "--int16", "--threads", threads)
    assert len(found) > 6 and set(found.values()) == {expected}, found


@targets
def test_the_shipped_rule_has_the_same_int16_states_everywhere(tmp_path: Path, target: str) -> None:
    """All its weights, the rewriting of the rule and its rounding, two steps on each level."""
    save_model(tmp_path / "shipped.safetensors", load_model("hippocampus"))
    options = ("--int16", "--steps", "2,2,2,2")
    assert states(tmp_path, "shipped", target, *options) == states(tmp_path, "shipped", "host", *options)


@targets
def test_packed_scans_and_masks_are_the_same_everywhere(world: Path, target: str) -> None:
    model = world / "dense.safetensors"
    if "not built in" in succeeded(model, "--info", target=target):
        pytest.skip(f"needs zlib for {target}: make -C runtime/c zlib, then build again")
    (world / "scan.nii.gz").write_bytes(gzip.compress((world / "scan.nii").read_bytes()))
    out = world / f"packed-{target}.nii.gz"
    succeeded(model, world / "scan.nii.gz", "-o", out, "--int16", target=target)
    assert np.array_equal(np.asarray(nibabel.load(out).dataobj), mask(world, "dense", "host", "--int16"))


def test_the_emulated_processor_is_that_of_a_raspberry_pi(world: Path) -> None:
    """A program for a later ARM must not pass for one that runs on a Pi."""
    program = built("armv6")
    told = subprocess.run(["readelf", "-A", str(program)], capture_output=True, text=True, check=False).stdout
    assert "Tag_CPU_arch: v6" in told and "Tag_FP_arch: VFPv2" in told
    assert "armv6" in run(world / "dense.safetensors", "--info", target="armv6").stdout


# ---- Sanitizers ----


def test_the_sanitizers_find_nothing_on_the_way_of_a_scan(world: Path) -> None:
    for name in MODELS:
        for numbers in ((), ("--int16",)):
            for threads in (1, 3):
                found = mask(world, name, "sanitize-portable", *numbers, "--threads", threads)
                assert np.array_equal(
                    found, mask(world, name, "host", *numbers, "--instructions", "portable")
                )
        mask(world, name, "sanitize-portable", "--gate", 1, "--ensemble", 2)


def fuzz(target: str, count: int, seed: int) -> str:
    done = subprocess.run(
        [built(target, "fuzz"), str(count), str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_damaged_files_do_no_harm() -> None:
    said = fuzz("sanitize-portable", 20_000, 1)
    assert said.startswith("20000 inputs")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_million_damaged_files_do_no_harm(seed: int) -> None:
    assert fuzz("sanitize", 500_000, seed).startswith("500000 inputs")


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_the_vector_instructions(world: Path) -> None:
    for name in MODELS:
        for numbers in ((), ("--int16",)):
            found = mask(world, name, "sanitize", *numbers, "--threads", 3)
            assert np.array_equal(found, mask(world, name, "host", *numbers))
