"""The kernels for the Raspberry Pi 1, under QEMU: the same bits as plain C, and a safe way on a later Pi."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mednca.calibrate import measure_range
from mednca.modelfile import SHIPPED, load_model, save_model
from tests.runtime.builds import built, need
from tests.runtime.test_everywhere import random_model

#: 13 columns: most rows fill no whole number of tiles, neither of three cells nor of four.
SIZE = "11x13"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model, and one whose numbers outgrow int16 so that every way of rounding is taken."""
    small = random_model(channels=8, hidden=24, classes=2)
    images = [np.random.default_rng(3).random((2, 1, 12, 12), dtype=np.float32)]
    tight = measure_range(small, images)
    narrow = {"levels": [{key: [x / 9 for x in row] for key, row in one.items()} for one in tight["levels"]]}
    path = tmp_path_factory.mktemp("armv6") / "narrow.safetensors"
    return {
        "shipped": SHIPPED / "hippocampus.safetensors",
        "narrow": save_model(path, replace(small, range=narrow)),
    }


def bench(model: Path, numbers: str, *options: str, processor: str = "arm1176") -> str:
    """Model -> what the program says of two steps on each level."""
    need("qemu-arm", "qemu-user")
    words = [str(built("armv6")), str(model), "--bench", "--size", SIZE]
    words += ["--steps", ",".join("2" * len(load_model(model).config.model.scales))]
    words += ["--int16"] * (numbers == "int16")
    done = subprocess.run(
        ["qemu-arm", "-cpu", processor, *words, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def states(model: Path, numbers: str, *options: str, processor: str = "arm1176") -> str:
    """Model -> the hash of its states."""
    return bench(model, numbers, "--hash", *options, processor=processor)


@pytest.mark.parametrize("numbers", ["fp32", "int16"])
@pytest.mark.parametrize("name", ["shipped", "narrow"])
def test_states_have_the_bits_of_plain_c(models: dict[str, Path], name: str, numbers: str) -> None:
    expected = states(models[name], numbers, "--instructions", "portable")
    assert states(models[name], numbers, "--instructions", "armv6") == expected


def test_numbers_that_do_not_fit_are_counted_as_in_plain_c(models: dict[str, Path]) -> None:
    def saturated(instructions: str) -> list[str]:
        said = bench(models["narrow"], "int16", "--instructions", instructions).splitlines()
        return [line for line in said if line.startswith("saturated")]

    assert len(saturated("armv6")) == 1
    assert saturated("armv6") == saturated("portable")


@pytest.mark.parametrize("numbers", ["fp32", "int16"])
def test_a_later_processor_gets_no_short_vectors(models: dict[str, Path], numbers: str) -> None:
    """There they are illegal; the program for ARMv6 is what a 32-bit Raspberry Pi OS runs on every Pi."""
    expected = states(models["shipped"], numbers, "--instructions", "portable")
    assert states(models["shipped"], numbers, processor="cortex-a7") == expected
