"""What `measure_range` sees is what the definition reaches, and int16 rests on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mednca import engine
from mednca.calibrate import measure_range
from mednca.config import RunConfig
from mednca.fire import FireKey
from mednca.modelfile import ModelFile, check_range, load_model, save_model, to_bytes
from mednca.nca import Backbone, MedNCA, Window, run_eager
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig, prepare_image
from mednca.volume import Volume

CONFIGS = {
    "dense": MedNCAConfig(channels=12, hidden=30, scales=(2, 1), steps=(5, 4)),
    "depthwise": MedNCAConfig(
        channels=9, hidden=20, image_channels=3, perception="depthwise", scales=(4, 2, 1), steps=(3, 2, 4)
    ),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def model(config: MedNCAConfig) -> ModelFile:
    """Config -> a model with random weights of a size that is felt."""
    torch.manual_seed(0)
    network = MedNCA(config)
    with torch.no_grad():
        for array in network.parameters():
            fan_in = array[0].numel() if array.dim() > 1 else 4.0
            array.copy_(torch.randn(array.shape) * fan_in**-0.5)
    weights = {name: array.numpy().copy() for name, array in network.state_dict().items()}
    context = (config.image_channels - 1) // 2
    return ModelFile(RunConfig("test", model=config, preprocess=PreprocessConfig(context=context)), weights)


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    scans = [rng.random((1, 16, 24, 3)).astype(np.float32), rng.random((1, 13, 17, 2)).astype(np.float32)]
    return [prepare_image(Volume(scan, np.eye(4)), PreprocessConfig()) for scan in scans]


def reached(file: ModelFile, image: np.ndarray, seed: int) -> list[dict[str, np.ndarray]]:
    """Model and one scan whose slices need no padding -> what the definition reaches on all of its slices."""
    config = file.config.model
    network = MedNCA(config).double()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in file.weights.items()})
    seen: list[dict[str, np.ndarray]] = [{} for _ in config.scales]

    def watched(
        rule: Backbone, state: torch.Tensor, key: FireKey, window: Window, steps: int
    ) -> torch.Tensor:
        def remember(name: str, values: torch.Tensor) -> None:
            largest = values.abs().amax(dim=(0, 2, 3)).detach().numpy()
            seen[key.level][name] = np.maximum(seen[key.level].get(name, 0), largest)

        for count in range(steps + 1):
            now = run_eager(rule, state, key, window, count)
            remember("state", now)
            if count < steps:
                perception = rule.perceive(now)
                remember("views", perception[:, config.channels :])
                remember("hidden", rule.update_in(perception.movedim(1, -1)).movedim(-1, 1))
        return now

    context = file.config.preprocess.context
    around = np.clip(np.arange(len(image))[:, None] + np.arange(-context, context + 1), 0, len(image) - 1)
    stacked = torch.from_numpy(image[around][:, :, 0].astype(np.float64))
    network(stacked, seed=seed, items=torch.arange(len(image)), run=watched)
    return seen


@configs
def test_the_range_is_what_the_definition_reaches(config: MedNCAConfig) -> None:
    file, image = model(config), images()[0]
    found = check_range(measure_range(file, [image], seed=3), config)
    for level, expected in enumerate(reached(file, image, 3)):
        for name, largest in expected.items():
            np.testing.assert_allclose(found["levels"][level][name], largest, rtol=1e-3)


def test_slices_are_looked_at_with_their_margin() -> None:
    """As if they were larger: 16 x 24 pixels and 3 at each side fill a grid of 22 x 30 cells."""
    file, image = model(CONFIGS["dense"]), images()[0]
    preprocess = replace(file.config.preprocess, margin=3)
    wider = replace(file, config=replace(file.config, preprocess=preprocess))
    continued = np.pad(image, [(0, 0), (0, 0), (3, 3), (3, 3)], mode="edge")
    expected = measure_range(file, [continued], seed=1)
    assert measure_range(wider, [image], seed=1) == expected != measure_range(file, [image], seed=1)


def test_some_slices_are_enough_and_the_same_seed_takes_the_same() -> None:
    file, scans = model(CONFIGS["dense"]), images()
    told: list[tuple[int, int]] = []
    one = measure_range(file, scans, pixels=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 1)]
    assert one == measure_range(file, scans, pixels=1)
    every = measure_range(file, scans)
    for part, whole in zip(one["levels"], every["levels"], strict=True):
        assert all(a <= b for name in part for a, b in zip(part[name], whole[name], strict=True))
    assert one != every


@pytest.mark.skipif(not engine.available(), reason=f"C engine: {engine.why_not()}")
@configs
def test_a_calibrated_model_runs_in_int16_close_to_fp32_and_saturates_nowhere(config: MedNCAConfig) -> None:
    file = model(config)
    scans = images()
    with pytest.raises(Exception, match="calibrate"):
        engine.Model(to_bytes(file), numbers="int16")
    content = to_bytes(replace(file, range=measure_range(file, scans)))
    shares = {}
    for numbers in engine.NUMBERS:
        opened = engine.Model(content, numbers=numbers)
        voxels = np.ascontiguousarray(scans[0].transpose(1, 2, 3, 0))
        mask = np.zeros(voxels.shape[1:], np.uint8)
        shares[numbers] = np.zeros((config.classes, *mask.shape), np.float32)
        counts = opened.segment(voxels, mask, shares[numbers], spacing=(1, 1, 1))
        assert counts.saturated == 0 and counts.broken == 0
    assert np.abs(shares["fp32"] - shares["int16"]).max() < 0.02


def test_the_shipped_model_is_calibrated() -> None:
    assert load_model("hippocampus").range is not None


def test_a_range_is_kept_in_the_file(tmp_path: Path) -> None:
    file = model(CONFIGS["dense"])
    ranged = replace(file, range=measure_range(file, images(), pixels=1))
    assert load_model(save_model(tmp_path / "model.safetensors", ranged)).range == ranged.range
    assert ranged.hash == file.hash
