"""Every engine gives the probabilities and masks of the definition, eager PyTorch in float64, over the whole
way from a scan to its mask.

Tolerances: probabilities agree to 1e-5 for rules that are as calm as trained ones (tens of steps in float32,
whose relative precision is 6e-8), to 3e-5 where the rule is rewritten (native), so that masks differ in
voxels on the threshold at most: Dice 0.999 or more. A mistake in one tap, border, cell, weight of the
resampling or channel is larger by orders of magnitude.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.cases import CASES, BackendCase
from mednca import engine
from mednca.backends import numpy as in_numpy
from mednca.modelfile import ModelFile, load_model
from mednca.nca import MedNCA, probabilities, run_eager
from mednca.predict import ENGINES, Predictor, decide, predict_slices
from mednca.rule import MedNCAConfig, weight_shapes
from mednca.slices import prepare_image, restore
from mednca.synthetic import phantom
from mednca.volume import Volume
from tests.small import FIELD, tiny_model

TOLERANCE = {"native": 3e-5, "numpy": 1e-5, "folded": 1e-5}
SAME_MASK = 0.999
Shares = NDArray[np.float32]
engines = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(name == "native" and not engine.available(), reason=engine.why_not()),
        )
        for name in ENGINES
        if name not in ("int16", "eager")  # int16 has its own rounding; eager is tested by the definition
    ],
)


def calm(seed: int = 0, **model: Any) -> tuple[MedNCAConfig, dict[str, NDArray[np.float32]]]:
    """Seed and settings -> a small rule whose states stay of the size of 1, as those of a trained one."""
    config = MedNCAConfig(**{"channels": 14, "hidden": 24, "steps": (4, 5), **model})
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        small = 0.3 if "update_out" in name else 1.0
        weights[name] = (small * random.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)
    return config, weights


def calm_file(seed: int = 0, *, model: dict[str, Any] | None = None, **options: Any) -> ModelFile:
    """Seed, settings of the rule and of `tiny_model` -> a model file with a calm rule."""
    file = tiny_model(**options)
    image_channels, classes = file.config.model.image_channels, file.config.model.classes
    config, weights = calm(seed, image_channels=image_channels, classes=classes, **(model or {}))
    return replace(file, config=replace(file.config, model=config), weights=weights)


def reference(
    file: ModelFile, volume: Volume, seed: int = 0, share_of_voxels: float = 0.5
) -> tuple[ModelFile, Shares]:
    """Model and scan -> probabilities (K, X, Y, Z) by the definition, with steps in float64; and the model
    with a threshold that the given share of the voxels exceed, so that masks tell something."""
    config = file.config
    model = MedNCA.from_weights(config.model, file.weights).double()

    def share(image: NDArray[Any], numbers: NDArray[np.int64], seed: int) -> NDArray[Any]:
        cells = torch.from_numpy(image).double()
        state, _ = model(cells, seed=seed, items=torch.from_numpy(numbers), run=run_eager)[-1]
        found: NDArray[Any] = probabilities(model.logits(state)).numpy()
        return found

    alone = []
    for view in config.preprocess.views:
        part = replace(config, preprocess=view)
        alone.append(
            restore(predict_slices(share, part, prepare_image(volume, view), seed=seed), volume, view)
        )
    in_grid = np.mean(alone, axis=0)
    told = replace(
        config.predict, ensemble=1, threshold=float(np.quantile(in_grid.sum(axis=0), 1 - share_of_voxels))
    )
    return replace(file, config=replace(config, predict=told)), in_grid


def check(name: str, file: ModelFile, volume: Volume, shares: Shares, seed: int = 0) -> None:
    """Hold an engine to the probabilities of the definition, and to the mask that they make."""
    found = Predictor(file, engine=name, probability=True, seed=seed).predict(volume)
    mask = decide(shares, file.config.predict.threshold, file.config.values)
    assert 0.05 < (mask > 0).mean() < 0.8
    assert found.probability is not None
    assert np.abs(found.probability.data - shares).max() < TOLERANCE[name]
    assert same(found.mask.data[0], mask) >= SAME_MASK


def same(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Two masks -> Dice of their foregrounds where they agree on the class; 1 if both are empty."""
    total = int((a > 0).sum() + (b > 0).sum())
    return 2 * int(((a == b) & (a > 0)).sum()) / total if total else 1.0


@cache
def shipped_reference(number: int) -> tuple[ModelFile, Volume, Shares]:
    """Number -> the shipped model, a part of a phantom in which it finds something, and its probabilities."""
    image, _, affine = phantom(number)
    first = (2, 18)[number]
    volume = Volume(image[None, 13:49, :48, first : first + 8], affine)
    file, shares = reference(load_model("hippocampus"), volume, share_of_voxels=0.1)
    return file, volume, shares


@engines
@pytest.mark.parametrize("number", range(2))
def test_the_shipped_model_predicts_what_the_definition_says(name: str, number: int) -> None:
    file, volume, shares = shipped_reference(number)
    assert shares.max() > 0.25  # of a phantom, which is no hippocampus
    check(name, file, volume, shares)


CODES = ("RAS", "LPS", "SLA", "AIR", "PSL")
MODELS = {
    "own grid": {},
    "resampled, with neighbours": {"context": 1, "spacing": (1.3, 0.7)},
    "coronal, two classes": {"classes": 2, "axes": (1,)},
    "sagittal, two channels": {"modalities": 2, "axes": (0,)},
    "stretched": {"size": (24, 16), "normalise": "slice"},
    "three axes, two classes": {"classes": 2, "context": 1, "axes": (2, 0, 1), "spacing": (1.2, 1.2)},
    "three axes, stretched": {"axes": (2, 1, 0), "size": (24, 16), "context": 1},
    "with a usual field": {"field": FIELD, "context": 1, "spacing": (1.3, 0.7)},
    "with a margin": {"margin": 3, "context": 1},
    "with a margin, three axes": {"margin": 5, "axes": (2, 0, 1), "spacing": (1.2, 1.2)},
    "with usual fields, three axes, two channels": {"field": FIELD * 2, "modalities": 2, "axes": (2, 0, 1)},
    "depthwise, four levels": {
        "model": {"perception": "depthwise", "scales": (8, 4, 2, 1), "steps": (2, 3, 2, 3)}
    },
    "odd scales": {"model": {"scales": (9, 3, 1), "steps": (2, 2, 2)}},
    "one level": {"model": {"scales": (1,), "steps": (5,), "fire_rate": 1.0}},
}


@engines
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_predicts_what_the_definition_says(name: str, kind: str) -> None:
    file = calm_file(3, **MODELS[kind])
    random = np.random.default_rng(1)
    channels = file.config.preprocess.modalities
    volume = Volume(
        random.normal(size=(channels, 19, 23, 5)).astype(np.float32), np.diag([0.8, 1.1, 2.0, 1.0])
    )
    file, shares = reference(file, volume, seed=4)
    check(name, file, volume, shares, seed=4)


@pytest.mark.skipif(not engine.available(), reason=engine.why_not())
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 3.0)] * 3),
    codes=st.sampled_from(CODES),
    kind=st.sampled_from(["int16", "uint8", "float32", "float64", "int64", "bool", ">i2"]),
    axes=st.integers(1, 3).flatmap(lambda n: st.permutations(range(3)).map(lambda p: tuple(p[:n]))),
    context=st.integers(0, 2),
    classes=st.integers(1, 3),
    modalities=st.integers(1, 2),
    normalise=st.sampled_from(["volume", "slice", "with a usual field"]),
    spread=st.sampled_from([{}, {"spacing": (1.0, 1.5)}, {"size": (18, 33)}]),
    margin=st.integers(0, 9),
    threads=st.integers(1, 3),
)
def test_any_scan_goes_through_c_as_through_numpy(
    seed: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    codes: str,
    kind: str,
    axes: tuple[int, ...],
    context: int,
    classes: int,
    modalities: int,
    normalise: str,
    spread: dict[str, Any],
    margin: int,
    threads: int,
) -> None:
    """Sizes down to a voxel, every orientation, type and kind of preprocessing."""
    if len(axes) > 1:  # one spacing for all
        spread = {"spacing": (1.25, 1.25)} if spread else {}
    file = calm_file(
        seed % 5,
        modalities=modalities,
        context=context,
        classes=classes,
        axes=axes,
        **({"field": FIELD * modalities} if normalise == "with a usual field" else {"normalise": normalise}),
        model={"steps": (2, 2)},
        margin=margin,
        **spread,
    )
    values = np.random.default_rng(seed).normal(size=(modalities, *shape)) * 30 + 100
    data = values > 100 if kind == "bool" else values.astype(kind)
    volume = Volume(data, np.diag([*spacing, 1.0])).oriented(codes)
    native = Predictor(file, engine="native", probability=True, threads=threads).predict(volume)
    plain = Predictor(file, engine="numpy", probability=True).predict(volume)
    assert native.probability is not None and plain.probability is not None
    assert np.abs(native.probability.data - plain.probability.data).max() < TOLERANCE["native"]
    apart = native.mask.data != plain.mask.data
    shares = plain.probability.data
    near = np.abs(shares.sum(axis=0) - 0.5) < TOLERANCE["native"]
    tied = np.sort(shares, axis=0)[-1] - np.sort(shares, axis=0)[-min(2, classes)] < TOLERANCE["native"]
    assert not (apart[0] & ~near & ~(tied & (classes > 1))).any()
    assert native.report["foreground_ml"].keys() == plain.report["foreground_ml"].keys()


# ---- NumPy's levels ----


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_level_in_numpy_is_that_of_the_definition(case: BackendCase) -> None:
    """In float64, where only the order of the sums differs: to 1e-12 of the largest value."""
    if case.corners:
        pytest.skip("a window into a grid is for training alone")
    rule, state, key, window = case.make(torch.float64)
    with torch.no_grad():
        expected = run_eager(rule, state, key, window, case.steps).permute(0, 2, 3, 1).numpy()
    weights = {f"levels.0.{name}": array.detach().numpy() for name, array in rule.state_dict().items()}
    config = replace(case.config, scales=(1,), steps=(1,))
    (folded,) = in_numpy.fold(config, weights, np.float64)
    cells = state.permute(0, 2, 3, 1).detach().numpy()
    for at, item in enumerate(window.items.ravel().tolist()):
        found = in_numpy.run_level(folded, cells[at], key, item, case.steps, config.fire_rate)
        assert np.abs(found - expected[at]).max() <= 1e-12 * np.abs(expected[at]).max()


def test_numpy_computes_as_many_cells_at_a_time_as_one_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = calm()
    rules = in_numpy.fold(config, weights)
    image = np.random.default_rng(0).random((2, 1, 24, 20), np.float32)
    numbers = np.array([5, 9])
    expected = in_numpy.probabilities(config, rules, image, numbers, 1)
    monkeypatch.setattr(in_numpy, "CELLS", 7)
    found = in_numpy.probabilities(config, rules, image, numbers, 1)
    assert np.abs(found - expected).max() < 1e-6
    alone = in_numpy.probabilities(config, rules, image[1:], numbers[1:], 1)
    assert np.array_equal(alone[0], found[1])


def test_numpy_hides_nothing_that_is_not_finite() -> None:
    config, weights = calm(steps=(1, 1))
    image = np.zeros((1, 1, 8, 8), np.float32)
    image[0, 0, 3, 3] = np.nan
    assert np.isnan(
        in_numpy.probabilities(config, in_numpy.fold(config, weights), image, np.array([0]), 0)
    ).any()
