"""The levels of the C engine, in every set of instructions, against the definition in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cases import CASES, BackendCase
from mednca import engine
from mednca.backends import numpy as in_numpy
from mednca.config import RunConfig
from mednca.engine.binding import Counts
from mednca.fire import FireKey, fire_mask
from mednca.modelfile import ModelFile, load_model, to_bytes
from mednca.nca import MedNCA, run_eager
from mednca.predict import Predictor
from mednca.slices import PreprocessConfig, prepare_image
from mednca.synthetic import phantom
from mednca.volume import Volume

pytestmark = pytest.mark.skipif(not engine.available(), reason=f"C engine: {engine.why_not()}")

#: Largest difference over the largest value, after up to 64 steps in float32; rewriting a rule costs a digit.
TOLERANCE = {False: 1e-5, True: 1e-4}
WHOLE = [case for case in CASES if not case.corners]  # the engine computes whole grids

#: The first model that was shipped, of the paper's shape: two levels of 16 steps, 70,016 parameters, trained
#: on MSD Task04 (CC-BY-SA 4.0, as its card says).
TRAINED = Path(__file__).resolve().parents[1] / "golden/two_levels.safetensors"


sets = pytest.mark.parametrize("instructions", engine.instructions() if engine.available() else [])
gauges = pytest.mark.parametrize("gauge", [False, True], ids=["plain", "rewritten"])
cases = pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)


@cache
def content(case: BackendCase) -> bytes:
    """Case -> a model file whose levels both have its rule, with a range wide enough for its states."""
    rule = case.make(torch.float32)[0]
    weights = {f"levels.{i}.{k}": v.numpy() for i in (0, 1) for k, v in rule.state_dict().items()}
    context = (case.config.image_channels - 1) // 2
    config = RunConfig("test", model=case.config, preprocess=PreprocessConfig(context=context))
    n, h = case.config.channels, case.config.hidden
    level = {"state": [8.0] * n, "views": [8.0] * 2 * n, "hidden": [8.0] * h}
    return to_bytes(ModelFile(config, weights, range={"levels": [level, level]}))


def inside(case: BackendCase, state: torch.Tensor) -> None:
    """States (B, n, H, W), in place: the image from 0 to 1, as images are; int16 has no room for others."""
    state[:, : case.config.image_channels] = state[:, : case.config.image_channels].abs().clamp(max=1)


@cache
def expected(case: BackendCase) -> tuple[np.ndarray, int]:
    """Case -> the definition's last states (B, H, W, n), and how many cells fired."""
    rule, state, key, window = case.make(torch.float64)
    inside(case, state)
    with torch.no_grad():
        last = run_eager(rule, state, key, window, case.steps)
    fired = sum(
        int(fire_mask(key, step, window.items, window.rows, window.columns, case.config.fire_rate).sum())
        for step in range(case.steps)
    )
    return last.permute(0, 2, 3, 1).numpy(), fired


def states(case: BackendCase) -> Iterator[tuple[int, np.ndarray]]:
    """Case -> the number of each item and its first state (H, W, n)."""
    _, state, _, window = case.make(torch.float32)
    inside(case, state)
    for item, cells in zip(window.items.flatten().tolist(), state, strict=True):
        yield item, cells.permute(1, 2, 0).contiguous().numpy().copy()


def run(case: BackendCase, threads: int = 1, **options: Any) -> tuple[np.ndarray, Counts]:
    """Case -> the engine's last states, and its counts."""
    model = engine.Model(content(case), **options)
    found, counts = [], []
    for item, cells in states(case):
        counts.append(model.run_level(1, cells, steps=case.steps, seed=7, item=item, threads=threads))
        found.append(cells)
    return np.stack(found), Counts.total(counts)


def scan(seed: int, slices: int) -> Volume:
    """Seed and number -> so many slices of a phantom, 40 x 48 pixels each."""
    image, _, _ = phantom(seed)
    middle = [(size - part) // 2 for size, part in zip(image.shape, (40, 48, slices), strict=True)]
    x, y, z = (slice(at, at + part) for at, part in zip(middle, (40, 48, slices), strict=True))
    return Volume(image[None, x, y, z].copy(), np.eye(4))


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@cases
@gauges
@sets
def test_states_are_those_of_the_definition(instructions: str, gauge: bool, case: BackendCase) -> None:
    found, counts = run(case, instructions=instructions, gauge=gauge)
    last, fired = expected(case)
    assert np.abs(found - last).max() / np.abs(last).max() < TOLERANCE[gauge]
    assert counts.cells == fired
    assert counts.all == last[..., 0].size * case.steps
    assert counts.saturated == 0


@cases
@sets
@pytest.mark.parametrize("numbers", engine.NUMBERS)
def test_the_number_of_threads_does_not_change_a_bit(
    numbers: str, instructions: str, case: BackendCase
) -> None:
    alone, counts = run(case, instructions=instructions, numbers=numbers)
    for threads in (2, 4):
        together, counted = run(case, threads, instructions=instructions, numbers=numbers)
        assert digest(together) == digest(alone)
        assert (counted.cells, counted.all, counted.saturated) == (counts.cells, counts.all, counts.saturated)


@cases
@gauges
def test_int16_has_the_same_bits_in_every_set_of_instructions(gauge: bool, case: BackendCase) -> None:
    found = {
        name: run(case, instructions=name, numbers="int16", gauge=gauge) for name in engine.instructions()
    }
    assert len({digest(last) for last, _ in found.values()}) == 1
    assert len({counts.saturated for _, counts in found.values()}) == 1
    last, _ = expected(case)
    some = next(iter(found.values()))[0]
    assert np.abs(some - last).max() / np.abs(last).max() < 0.05  # a rounded rule, not another one


@sets
@pytest.mark.parametrize("numbers", engine.NUMBERS)
@pytest.mark.parametrize("rate", [0.5, 0.03, 1.0])
def test_each_cell_fires_when_the_definition_says(numbers: str, instructions: str, rate: float) -> None:
    """A rule that adds 1 to one channel counts how often each cell fired."""
    base = load_model(TRAINED)
    config = replace(base.config.model, fire_rate=rate)
    weights = {name: np.zeros_like(array) for name, array in base.weights.items()}
    for level in range(2):
        weights[f"levels.{level}.update_in.bias"][3] = 1
        weights[f"levels.{level}.update_out.weight"][9, 3] = 1
    one = {"state": [64.0] * 32, "views": [1.0] * 64, "hidden": [1.0] * 128}
    model = replace(
        base, config=replace(base.config, model=config), weights=weights, range={"levels": [one, one]}
    )
    opened = engine.Model(to_bytes(model), numbers=numbers, instructions=instructions)
    state = np.zeros((9, 21, 32), np.float32)
    opened.run_level(1, state, first=5, steps=40, seed=2**32 - 3, item=12)
    rows, columns = np.arange(9)[:, None], np.arange(21)[None, :]
    fired = sum(
        fire_mask(FireKey(2**32 - 3, 1), step, 12, rows, columns, rate).astype(int) for step in range(5, 45)
    )
    assert np.abs(state[..., 9] - fired).max() < (1e-6 if numbers == "fp32" else 0.2)
    assert not state[..., :9].any() and not state[..., 10:].any()


@sets
@pytest.mark.parametrize("numbers", engine.NUMBERS)
def test_only_cells_in_the_gate_change(numbers: str, instructions: str) -> None:
    case = WHOLE[0]
    gate = (np.random.default_rng(0).random((case.height, case.width)) < 0.4).astype(np.uint8)
    model = engine.Model(content(case), numbers=numbers, instructions=instructions)
    item, before = next(states(case))
    after, all_open, free = before.copy(), before.copy(), before.copy()
    counts = model.run_level(1, after, steps=4, item=item, gate=gate)
    model.run_level(1, all_open, steps=4, item=item, gate=np.ones_like(gate))
    model.run_level(1, free, steps=4, item=item)
    assert digest(all_open) == digest(free)
    shut = np.abs(after - before)[gate == 0]
    assert shut.max() < (1e-30 if numbers == "fp32" else 1e-3)  # int16 rounds what it is given
    assert np.abs(after - before)[gate == 1].max() > 0.01
    assert counts.cells < counts.all * 0.4


def paper_steps() -> ModelFile:
    """A trained model with the paper's 64 + 64 steps, four times its own: errors have time to grow."""
    file = load_model(TRAINED)
    config = replace(file.config.model, steps=(64, 64))
    predict = replace(file.config.predict, ensemble=1)
    return replace(file, config=replace(file.config, model=config, predict=predict))


@cache
def definition_of_paper_steps() -> tuple[np.ndarray, np.ndarray]:
    """Image (2, 3, 40, 48) of a phantom, and the definition's logits (2, 40, 48) in float64."""
    file = paper_steps()
    image = prepare_image(scan(3, 2), file.config.preprocess)
    stacked = image[np.clip(np.arange(2)[:, None] + np.arange(-1, 2), 0, 1)][:, :, 0]
    network = MedNCA(file.config.model).double()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in file.weights.items()})
    with torch.no_grad():
        cells = torch.from_numpy(stacked.astype(np.float64))
        state, _ = network(cells, seed=0, items=torch.arange(2))[-1]
    return stacked, network.logits(state)[:, 0].numpy()


def same_mask(found: np.ndarray, wanted: np.ndarray) -> None:
    """Numbers of two engines -> their masks agree, cut at the median: no easy place to cut."""
    a, b = found > np.median(wanted), wanted > np.median(wanted)
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.999


@sets
@gauges
def test_a_trained_model_gives_the_logits_of_the_definition_after_64_and_64_steps(
    gauge: bool, instructions: str
) -> None:
    stacked, wanted = definition_of_paper_steps()
    model = engine.Model(to_bytes(paper_steps()), instructions=instructions, gauge=gauge)
    found = []
    for item, image in enumerate(stacked):
        coarse = np.zeros((10, 12, 32), np.float32)
        coarse[..., :3] = in_numpy.downscale(image, 4).transpose(1, 2, 0)
        model.run_level(0, coarse, steps=64, item=item)
        fine = coarse.repeat(4, axis=0).repeat(4, axis=1)
        fine[..., :3] = image.transpose(1, 2, 0)
        model.run_level(1, fine, steps=64, item=item)
        found.append(fine[..., 3])
    assert np.abs(wanted).max() > 10
    assert np.abs(np.stack(found) - wanted).max() < 1e-4 * np.abs(wanted).max()
    same_mask(np.stack(found), wanted)


@sets
def test_the_whole_way_of_a_scan_in_c_is_that_of_the_definition(instructions: str) -> None:
    file, volume = paper_steps(), scan(3, 2)
    _, wanted = definition_of_paper_steps()
    model = engine.Model(to_bytes(file), instructions=instructions)
    mask, shares = np.zeros(volume.shape, np.uint8), np.zeros((1, *volume.shape), np.float32)
    model.segment(volume.data, mask, shares, spacing=(1, 1, 1))
    probability = 1 / (1 + np.exp(-wanted.transpose(1, 2, 0)))
    assert np.abs(shares[0] - probability).max() < 1e-4
    same_mask(shares[0], probability)


@cache
def along_three_axes() -> tuple[bytes, np.ndarray]:
    """The trained rule along three axes, as a model file, and what NumPy makes of a phantom with it."""
    base = load_model(TRAINED)
    preprocess = replace(base.config.preprocess, axes=(2, 0, 1))
    file = replace(base, config=replace(base.config, preprocess=preprocess))
    found = Predictor(file, engine="numpy", probability=True).predict(scan(3, 20)).probability
    assert found is not None
    return to_bytes(file), found.data


@sets
@pytest.mark.parametrize("numbers", engine.NUMBERS)
def test_a_scan_along_three_axes_is_that_of_numpy_whatever_the_threads(
    numbers: str, instructions: str
) -> None:
    content, wanted = along_three_axes()
    volume = scan(3, 20)
    model = engine.Model(content, numbers=numbers, instructions=instructions)
    found = []
    for threads in (1, 3):
        mask, shares = np.zeros(volume.shape, np.uint8), np.full((1, *volume.shape), -1, np.float32)
        model.segment(volume.data, mask, shares, spacing=(1, 1, 1), threads=threads)
        assert np.array_equal(mask, shares[0] > np.float32(0.5))
        found.append(digest(shares))
    assert found[0] == found[1]
    assert np.abs(shares - wanted).max() < (1e-4 if numbers == "fp32" else 0.1)
    same_mask(shares[0], wanted[0]) if numbers == "fp32" else None
    if numbers == "int16":  # the same bits in every set
        best = engine.Model(content, numbers=numbers)
        others = np.zeros_like(shares)
        best.segment(volume.data, mask, others, spacing=(1, 1, 1))
        assert digest(others) == found[0]
