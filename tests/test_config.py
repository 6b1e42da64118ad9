"""Configurations: what is stored is what comes back, and what cannot work is refused when it is made."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.baselines import build
from mednca.config import AugmentConfig, PredictConfig, RunConfig, TrainConfig, from_dict, to_dict
from mednca.errors import InputError
from mednca.fingerprint import Fingerprint, slice_axis
from mednca.recipes import RECIPES, recipe, with_classes
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig

amounts = st.one_of(st.integers(0, 50), st.floats(0, 50))  # whole numbers too: JSON and people write them
positive = st.floats(0.001, 100)
sizes = st.integers(2, 300)

shared = {
    "modalities": st.integers(1, 3),
    "context": st.integers(0, 2),
    "normalise": st.sampled_from(["volume", "slice"]),
    "margin": st.integers(0, 1024),
    "roi": st.none() | st.floats(0, 0.4).map(lambda share: (share, 0.9, 0.0, 1.0, 0.1, 1.0 - share)),
}
preprocesses = st.builds(
    PreprocessConfig,
    axes=st.integers(0, 2).map(lambda axis: (axis,)),
    spacing=st.none() | st.tuples(positive, positive),
    size=st.none() | st.tuples(sizes, sizes),
    **shared,
) | st.builds(
    PreprocessConfig,
    axes=st.permutations(range(3)).map(tuple),
    spacing=st.none() | positive.map(lambda step: (step, step)),
    **shared,
)
augments = st.builds(
    AugmentConfig,
    st.lists(st.integers(0, 1), unique=True).map(tuple),
    *[amounts] * 8,
)
trains = st.builds(
    TrainConfig,
    iterations=st.integers(1, 9999),
    batch_size=st.integers(1, 99),
    canvas=st.none() | st.tuples(sizes, sizes),
    patch=st.none() | sizes,
    foreground=st.floats(0, 1),
    learning_rate=positive,
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    schedule=st.sampled_from(["cosine", "exponential"]),
    clip=amounts,
    ema=st.floats(0, 0.999),
    sentinel=st.booleans(),
    seed=st.integers(0, 2**31),
)
predicts = st.builds(
    PredictConfig,
    threshold=st.floats(0.01, 0.99),
    ensemble=st.integers(1, 9),
    largest_component=st.booleans(),
    piece=st.sampled_from(["largest", "surest"]),
    mirror=st.lists(st.integers(0, 2), unique=True).map(tuple),
    smoothing=st.integers(0, 5),
)


@st.composite
def runs(draw: st.DrawFn) -> RunConfig:
    """Any valid configuration."""
    preprocess = draw(preprocesses)
    classes = draw(st.integers(1, 3))
    scales = draw(st.sampled_from([(1,), (4, 1), (8, 4, 2, 1)]))
    model = MedNCAConfig(
        image_channels=preprocess.image_channels,
        classes=classes,
        channels=preprocess.image_channels + classes + draw(st.integers(0, 9)),
        perception=draw(st.sampled_from(["dense", "depthwise"])),
        scales=scales,
        steps=tuple(draw(st.integers(1, 64)) for _ in scales),
        fire_rate=draw(st.floats(0.01, 1)),
    )
    values = draw(st.lists(st.integers(1, 255), min_size=classes, max_size=classes, unique=True))
    return RunConfig(
        recipe=draw(st.text(max_size=9)),
        labels=tuple(draw(st.text(max_size=9)) for _ in range(classes)),
        values=tuple(values),
        merge=classes == 1,
        model=model,
        preprocess=preprocess,
        augment=draw(augments),
        train=draw(trains),
        predict=draw(predicts),
    )


@settings(deadline=None, max_examples=60)
@given(runs())
def test_a_configuration_survives_json_exactly(config: RunConfig) -> None:
    text = json.dumps(to_dict(config))
    back = from_dict(RunConfig, json.loads(text), "test")
    assert back == config
    assert json.dumps(to_dict(back)) == text  # 0 for 0.0 would give a model another hash once stored


def test_a_configuration_from_when_there_was_one_axis_is_read() -> None:
    values = to_dict(RunConfig())
    del values["preprocess"]["axes"]
    values["preprocess"]["axis"] = 1
    assert from_dict(RunConfig, values, "x") == RunConfig(preprocess=PreprocessConfig(axes=(1,)))
    values["preprocess"]["axis"] = "2"
    with pytest.raises(InputError, match="x: preprocess: axes: expected int, got '2'"):
        from_dict(RunConfig, values, "x")
    values["preprocess"] |= {"axis": 2, "axes": [2]}
    with pytest.raises(InputError, match="x: preprocess: unknown setting 'axis'"):
        from_dict(RunConfig, values, "x")


def test_missing_settings_take_their_defaults() -> None:
    assert from_dict(RunConfig, {"train": {"seed": 3}}, "test") == RunConfig(train=TrainConfig(seed=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patches": 1}, "unknown setting 'patches'; known are augment, "),
        ({"train": {"sed": 1}}, "file.json: train: unknown setting 'sed'; known are "),
        ({"train": {"iterations": True}}, "train: iterations: expected int, got True"),
        ({"train": {"iterations": 2.0}}, "iterations: expected int, got 2.0"),
        ({"train": {"learning_rate": "0.1"}}, "learning_rate: expected float, got '0.1'"),
        ({"train": {"learning_rate": True}}, "learning_rate: expected float, got True"),
        ({"train": {"learning_rate": None}}, "learning_rate: expected float, got None"),
        ({"train": {"clip": float("nan")}}, "clip: expected a finite number, got nan"),
        ({"train": {"clip": float("inf")}}, "clip: expected a finite number, got inf"),
        ({"train": {"clip": 10**400}}, "clip: expected a finite number"),
        ({"train": {"sentinel": 1}}, "sentinel: expected bool, got 1"),
        ({"train": {"schedule": "linear"}}, "schedule: expected "),
        ({"train": {"betas": [0.9, 0.9, 0.9]}}, "betas: expected two values, got [0.9, 0.9, 0.9]"),
        ({"train": {"betas": 0.9}}, "betas: expected "),
        ({"train": {"canvas": "64"}}, "canvas: expected "),
        ({"train": {"canvas": [64, 6.5]}}, "canvas: expected int, got 6.5"),
        ({"train": []}, "train: expected a table of settings for TrainConfig, got list"),
        ([], "file.json: expected a table of settings for RunConfig, got list"),
        ({"recipe": 3}, "recipe: expected str, got 3"),
        ({"labels": "organ"}, "labels: expected "),
        ({"labels": ["a", 2]}, "labels: expected str, got 2"),
        ({"train": {"iterations": 0}}, "file.json: train: iterations must be >= 1, got 0"),
        ({"model": {"scales": [4, 2]}}, "model: scales must fall to 1"),
    ],
)
def test_what_json_must_not_say_is_one_line_with_its_place(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        from_dict(RunConfig, values, "file.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("file.json")


@pytest.mark.parametrize(
    ("kind", "settings_"),
    [
        (AugmentConfig, {"flip": (2,)}),
        *((AugmentConfig, {name: -0.1}) for name in ("rotation", "scale", "stretch", "translation")),
        *((AugmentConfig, {name: float("nan")}) for name in ("gamma", "brightness", "noise", "bias")),
        *((TrainConfig, {name: 0}) for name in ("iterations", "batch_size", "checkpoint_every")),
        *((TrainConfig, {name: -1}) for name in ("warmup", "validate_every", "validation_cases", "seed")),
        *((TrainConfig, {name: float("nan")}) for name in ("clip", "coarse_weight", "learning_rate")),
        (TrainConfig, {"ema": 1.0}),
        (TrainConfig, {"foreground": 1.1}),
        (TrainConfig, {"learning_rate": 0.0}),
        (TrainConfig, {"schedule": "linear"}),
        (TrainConfig, {"patch": 1}),
        (TrainConfig, {"betas": (0.9, 1.0)}),
        (TrainConfig, {"betas": (0.9,)}),
        (TrainConfig, {"canvas": (64,)}),
        (TrainConfig, {"canvas": (0, 64)}),
        (PredictConfig, {"threshold": 0.0}),
        (TrainConfig, {"step_range": (1.5, 0.5)}),
        (TrainConfig, {"step_range": (0.0, 0.5)}),
        (TrainConfig, {"step_range_from": 1.5}),
        (TrainConfig, {"cycles": 0}),
        (TrainConfig, {"cycles": 6, "iterations": 5}),
        (TrainConfig, {"whole_weight": -1.0}),
        (PredictConfig, {"threshold": float("nan")}),
        (PredictConfig, {"ensemble": 0}),
        (PredictConfig, {"mirror": (0, 0)}),
        (PredictConfig, {"mirror": (3,)}),
        (PredictConfig, {"smoothing": -1}),
        (RunConfig, {"labels": ("a", "b")}),
        (RunConfig, {"values": (0,)}),
        (RunConfig, {"values": (256,)}),
        (RunConfig, {"values": (1, 1)}),
        (RunConfig, {"model": MedNCAConfig(image_channels=2)}),
        (
            RunConfig,
            {"merge": True, "model": MedNCAConfig(classes=2), "labels": ("a", "b"), "values": (1, 2)},
        ),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(kind: type, settings_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings_))):
        kind(**settings_)


HIPPOCAMPUS = Fingerprint(1, (1.0, 1.0, 1.0), (35, 51, 36), {1: "anterior", 2: "posterior"})


SIZES = {"quick": 8_960, "native": 51_840, "robust": 51_840, "backbone": 35_008, "seg_nca": 39_474}
SIZES |= dict.fromkeys(
    ("unet", "unet_plain"), 36_951_425
)  # the paper's 36,951,555 with one output, not three


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_its_own_name_and_size(name: str) -> None:
    config = recipe(name, HIPPOCAMPUS)
    assert config.recipe == name
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in build(config).parameters() if weight.requires_grad)
    assert parameters == SIZES.get(name, 70_016)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config))), "x") == config


def test_classes_of_their_own_take_the_datas_values() -> None:
    config = with_classes(recipe("native", HIPPOCAMPUS), {5: "b", 2: "a"})
    assert (config.labels, config.values, config.merge, config.model.classes) == (
        ("a", "b"),
        (2, 5),
        False,
        2,
    )


def test_recipes_say_in_one_line_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="recipe 'nativ' is not known; choose one of robust, "):
        recipe("nativ", HIPPOCAMPUS)
    with pytest.raises(InputError, match="recipe 'native' does not fit 1000 channel"):
        recipe("native", Fingerprint(1000, (1.0, 1.0, 1.0), (9, 9, 9), {1: "x"}))
    with pytest.raises(InputError, match="cannot have a class each: channels must be at least"):
        with_classes(recipe("native", HIPPOCAMPUS), {i: f"l{i}" for i in range(1, 40)})


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((35, 51, 36), (1.0, 1.0, 1.0), 2),
        ((320, 320, 20), (0.6, 0.6, 3.6), 2),
        ((20, 320, 320), (3.6, 0.6, 0.6), 0),
        ((64, 64, 64), (1.0, 1.4, 1.0), 2),
        ((64, 1, 64), (1.0, 1.0, 1.0), 1),
    ],
)
def test_slices_are_cut_where_the_scan_is_coarse(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], axis: int
) -> None:
    assert slice_axis(Fingerprint(1, spacing, shape, {1: "x"})) == axis


@pytest.mark.parametrize(
    ("shape", "spacing", "axes", "in_plane"),
    [
        ((35, 51, 36), (1.0, 1.0, 1.0), (2, 0, 1), (1.0, 1.0)),
        ((35, 51, 36), (0.9, 1.3, 1.1), (2, 0, 1), (1.1, 1.1)),
        ((35, 51, 36), (0.8, 1.0, 1.3), (2,), (0.8, 1.0)),  # too unlike
        ((35, 51, 15), (1.0, 1.0, 1.0), (2,), (1.0, 1.0)),  # too flat
        ((64, 64, 1), (1.0, 1.0, 1.0), (2,), (1.0, 1.0)),
    ],
)
def test_nearly_isotropic_scans_are_cut_along_all_axes(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    axes: tuple[int, ...],
    in_plane: tuple[float, float],
) -> None:
    found = recipe("native", Fingerprint(1, spacing, shape, {1: "x"})).preprocess
    assert found.axes == axes and found.spacing == in_plane


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        ({1: "right lung", 2: "left_lung"}, ()),
        ({1: "Hippocampus-L", 2: "Hippocampus-R"}, ()),
        ({1: "anterior", 2: "posterior"}, (0,)),
        ({1: "cleft", 2: "bright rim"}, (0,)),
    ],
)
def test_what_is_left_or_right_is_not_mirrored(names: dict[int, str], flip: tuple[int, ...]) -> None:
    assert with_classes(recipe("native", HIPPOCAMPUS), names).augment.flip == flip


@pytest.mark.parametrize(("axis", "flip"), [(0, ()), (1, (0,)), (2, (0,))])
def test_only_left_and_right_are_mirrored(axis: int, flip: tuple[int, ...]) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    config = recipe("native", replace(HIPPOCAMPUS, spacing=(spacing[0], spacing[1], spacing[2])))
    assert config.preprocess.axes == (axis,) and config.augment.flip == flip
