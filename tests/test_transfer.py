"""A training that begins with another model's rules: what is carried over, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.checkpoint import INIT, RunFolder
from mednca.config import RunConfig
from mednca.errors import InputError
from mednca.modelfile import ModelFile, load_model, save_model
from mednca.nca import MedNCA
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig
from mednca.train import train
from mednca.transfer import Channels, check_unseen, matching, transferred, why_not
from tests import small_training


def config(context: int = 1, classes: int = 1, hidden: int = 6, levels: int = 2, **more: object) -> RunConfig:
    """A small configuration; `more` goes to the model."""
    rule = {
        "image_channels": 2 * context + 1,
        "classes": classes,
        "channels": 8,
        "hidden": hidden,
        "scales": tuple(2**level for level in range(levels - 1, -1, -1)),
        "steps": (3,) * levels,
        "fire_rate": 0.5,
    } | more
    names = tuple(f"label {k}" for k in range(1, classes + 1))
    return RunConfig(
        model=MedNCAConfig(**rule),  # type: ignore[arg-type]
        preprocess=PreprocessConfig(context=context),
        labels=names,
        values=tuple(range(1, classes + 1)),
        merge=classes == 1,
    )


def drawn(asked: RunConfig, seed: int = 0) -> ModelFile:
    """Configuration -> a model of it with random weights, none of them zero."""
    generator = np.random.default_rng(seed)
    shapes = {name: array.shape for name, array in MedNCA(asked.model).weights().items()}
    weights = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for level in range(len(asked.model.scales)):
        weights[f"levels.{level}.update_out.weight"][: asked.model.image_channels] = 0
    return ModelFile(asked, weights, {"name": "start", "training_cases": ["a", "b"]})


def begun(start: ModelFile, asked: RunConfig) -> MedNCA:
    """Model to begin with and configuration -> the network at its first iteration."""
    torch.manual_seed(1)
    fresh = MedNCA(asked.model).weights()
    return MedNCA.from_weights(asked.model, transferred(start, asked, fresh))


def logits(network: MedNCA, image: torch.Tensor) -> torch.Tensor:
    """Network and image -> the last logits."""
    with torch.inference_mode():
        state, _ = network(image, seed=3, items=torch.arange(len(image)))[-1]
        return network.logits(state)


@pytest.mark.parametrize("perception", ["dense", "depthwise"])
def test_the_same_shape_takes_the_weights_as_they_are(perception: str) -> None:
    start = drawn(config(perception=perception))
    weights = begun(start, config(perception=perception)).weights()
    assert all(np.array_equal(weights[name], start.weights[name]) for name in start.weights)


@settings(max_examples=10, deadline=None)
@given(st.integers(6, 9), st.sampled_from(["dense", "depthwise"]))
def test_more_hidden_units_answer_the_same(hidden: int, perception: str) -> None:
    start = drawn(config(perception=perception))
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(hidden))
    asked = config(hidden=hidden, perception=perception)
    for level in range(2):  # as where training begins: fresh units have no say yet
        assert not MedNCA(asked.model).levels[level].update_out.weight.any()
    found = logits(begun(start, asked), image)
    torch.testing.assert_close(found, logits(MedNCA.from_weights(start.config.model, start.weights), image))


def test_a_flat_image_is_seen_as_a_slice_between_copies_of_itself() -> None:
    start = drawn(config(context=1))
    for name in start.weights:  # the two hidden channels that the flat model has more of stay silent
        if name.endswith("update_out.weight"):
            start.weights[name][6:] = 0
    image = torch.rand(2, 1, 8, 8)
    found = logits(begun(start, config(context=0)), image)
    expected = logits(
        MedNCA.from_weights(start.config.model, start.weights), image.expand(-1, 3, -1, -1).contiguous()
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_of_several_classes_begins_as_the_foreground() -> None:
    start = drawn(config(context=0, classes=1))
    for name in start.weights:  # a channel less is free
        if name.endswith("update_out.weight"):
            start.weights[name][7] = 0
    image = torch.rand(2, 1, 8, 8)
    found = logits(begun(start, config(context=0, classes=2)), image)
    expected = logits(MedNCA.from_weights(start.config.model, start.weights), image)
    torch.testing.assert_close(found, expected.expand(-1, 2, -1, -1), rtol=1e-4, atol=1e-5)


def test_channels_that_the_start_did_not_have_can_still_learn() -> None:
    start = drawn(config(context=1))
    network = begun(start, config(context=0)).requires_grad_(True)
    state, _ = network(torch.rand(2, 1, 8, 8), seed=0, items=torch.arange(2))[-1]
    network.logits(state).square().sum().backward()
    rule = network.levels[1]
    last = rule.update_out.weight.grad[-1]  # type: ignore[index, union-attr]
    assert last.abs().sum() > 0


def test_levels_are_matched_from_the_finest() -> None:
    start = drawn(config(levels=2))
    weights = begun(start, config(levels=3)).weights()
    name = "update_in.weight"
    for level, source in ((2, 1), (1, 0), (0, 0)):
        assert np.array_equal(weights[f"levels.{level}.{name}"], start.weights[f"levels.{source}.{name}"])
    weights = begun(start, config(levels=1)).weights()
    assert np.array_equal(weights[f"levels.0.{name}"], start.weights[f"levels.1.{name}"])


def test_modalities_and_neighbours_are_matched_by_what_they_are() -> None:
    old, new = Channels(1, 1, 1, 8), Channels(2, 1, 1, 12)
    reads = matching(old, replace(new, count=8))
    # New images: (-1, m0), (-1, m1), (0, m0), (0, m1), (1, m0), (1, m1)
    assert [int(row.argmax()) for row in reads[:3]] == [0, 2, 4]
    assert reads[3, 6] == 1  # the class


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (config(channels=16), "its channels must be 16, got 8"),
        (config(perception="depthwise"), "its perception must be depthwise, got dense"),
    ],
)
def test_what_does_not_fit_is_refused(asked: RunConfig, reason: str) -> None:
    start = drawn(config())
    assert why_not(start.config, asked) == reason
    with pytest.raises(InputError, match=f"the model to begin with, start: {reason}"):
        begun(start, asked)


def test_a_start_that_knows_the_held_out_cases_is_refused() -> None:
    check_unseen(drawn(config()), ["c"])
    with pytest.raises(InputError, match="was trained on 1 of the cases that are held out here, as b"):
        check_unseen(drawn(config()), ["b", "c"])


def test_a_run_keeps_the_model_that_it_began_with(tmp_path: Path) -> None:
    start = drawn(config())
    asked = config()
    asked = replace(asked, train=replace(asked.train, init=start.hash))
    run = RunFolder.create(tmp_path / "run", asked, {"training": [], "validation": []}, start)
    assert run.begin().hash == start.hash
    save_model(run.path / INIT, drawn(config(), seed=1))
    with pytest.raises(InputError, match=f"must be the model {start.hash}"):
        run.begin()


def test_training_begins_there_and_says_so(tmp_path: Path) -> None:
    cases = small_training.write_cases(tmp_path / "data")
    settings = small_training.config(iterations=1, learning_rate=1e-30, ema=0.0, warmup=0, validate_every=0)
    start = drawn(settings, seed=4)
    settings = replace(settings, train=replace(settings.train, init=start.hash))
    with pytest.raises(InputError, match=f"must have the hash {start.hash}, no shipped model has it"):
        train(cases, tmp_path / "run", lambda _: settings, progress=False)
    assert not (tmp_path / "run").exists()
    knowing = replace(start, card={"training_cases": [case.id for case in cases.cases]})
    with pytest.raises(InputError, match="cases that are held out here"):
        train(cases, tmp_path / "run", lambda _: settings, begin=knowing, progress=False)
    train(cases, tmp_path / "run", lambda _: settings, begin=start, progress=False)
    model = load_model(tmp_path / "run")
    assert model.card["began_with"] == {"hash": start.hash, "name": "start"}
    for name, weights in start.weights.items():
        np.testing.assert_array_equal(model.weights[name], weights)
    train(cases, tmp_path / "run", lambda _: settings, resume=True, progress=False)  # needs no model
