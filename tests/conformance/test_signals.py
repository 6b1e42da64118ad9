"""Every engine tells the same signals, and stops a level of a slice at the same step, as the plain way does.

The plain way keeps the mask of a slice after every step in a list, and reads everything off that. Steps are
those of the definition in float64, or, for `int16`, single steps of the engine itself. Rules are calm ones,
so that no pixel lies on the threshold by less than the engines differ; counts are then equal, and
probabilities agree as in test_predictions.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mednca import engine, predict
from mednca.backends import numpy as in_numpy
from mednca.calibrate import measure_range
from mednca.engine.binding import Counts
from mednca.fire import FireKey, fire_mask
from mednca.modelfile import ModelFile, to_bytes
from mednca.nca import MedNCA, Window
from mednca.predict import ENGINES, Predictor, with_ensemble
from mednca.slices import mirrored, mirrored_plane, pad_to, prepare_image, restore, with_context
from mednca.volume import Volume
from tests.conformance.test_predictions import calm_file, reference

Array = NDArray[Any]
#: Level, state (H, W, n), number of the step, of the slice and seed -> the next state.
Step = Callable[[int, Array, int, int, int], Array]
needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())
engines = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_engine if name in predict.IN_C else ()) for name in ENGINES]
)
STEPS = (6, 9)
KINDS: dict[str, dict[str, Any]] = {
    "one run": {"model": {"steps": (6, 16)}},
    "few steps": {"model": {"steps": (3, 2)}},
    "three runs, padded": {"model": {"scales": (8, 2, 1), "steps": (5, 3, 8)}, "ensemble": 3},
    "three axes, two classes, resampled": {
        "classes": 2,
        "axes": (2, 0, 1),
        "spacing": (1.2, 1.2),
        "ensemble": 2,
        "mirror": (1,),
        "model": {"steps": STEPS},
    },
    "one level": {"model": {"scales": (1,), "steps": (9,)}, "ensemble": 2},
}


@dataclass
class Told:
    """What the plain way finds."""

    steps: int = 0
    all: int = 0
    flips: int = 0
    fine: int = 0
    coarse: int = 0
    agree: int = 0
    samples: list[Array] = field(default_factory=list)  # of each axis (S, X, Y, Z)
    probability: Array = field(default_factory=lambda: np.zeros(0))


def world(kind: str) -> tuple[ModelFile, Volume]:
    """Kind -> a model whose masks hold some of the voxels, and a scan."""
    options = dict(KINDS[kind])
    ensemble, mirror = options.pop("ensemble", 1), options.pop("mirror", ())
    random = np.random.default_rng(4)
    volume = Volume(random.normal(size=(1, 13, 15, 3)).astype(np.float32), np.diag([0.8, 1.1, 2.0, 1.0]))
    file, _ = reference(calm_file(2, **options), volume)
    images = [prepare_image(volume, view) for view in file.config.preprocess.views]
    file = replace(file, config=replace(file.config, predict=replace(file.config.predict, mirror=mirror)))
    return with_ensemble(replace(file, range=measure_range(file, images)), ensemble), volume


def by_definition(file: ModelFile) -> Step:
    """Model -> its steps in float64."""
    model = MedNCA.from_weights(file.config.model, file.weights).double()

    def step(level: int, state: Array, number: int, item: int, seed: int) -> Array:
        cells = torch.from_numpy(state).permute(2, 0, 1)[None]
        window = Window.whole(torch.tensor([item]), *state.shape[:2])
        rate = file.config.model.fire_rate
        fires = fire_mask(FireKey(seed, level), number, window.items, window.rows, window.columns, rate)
        with torch.no_grad():
            found: Array = model.levels[level].step(cells, fires)[0].permute(1, 2, 0).numpy()
        return found

    return step


def by_int16(file: ModelFile) -> Step:
    """Model -> its steps in 16 bits."""
    model = engine.Model(to_bytes(file), numbers="int16")

    def step(level: int, state: Array, number: int, item: int, seed: int) -> Array:
        found = np.array(state, np.float32, order="C")
        model.run_level(level, found, steps=1, first=number, seed=seed, item=item)
        return found

    return step


def plainly(
    file: ModelFile, volume: Volume, step: Step, patience: int | None, kind: type = np.float64
) -> Told:
    """Model, scan and steps -> what there is to tell."""
    told, config = Told(), file.config
    image_channels, classes, levels = config.model.image_channels, config.model.classes, config.model.scales
    alone = config.predict.ensemble * len(config.preprocess.views) == 1

    def shares(state: Array) -> Array:
        return in_numpy.softmax(state[..., image_channels : image_channels + classes].astype(float))

    def mask(state: Array) -> Array:
        found = shares(state)
        return np.where(found.sum(-1) > config.predict.threshold, 1 + found.argmax(-1), 0)

    def over(masks: list[Array], steps: int) -> bool:
        done = len(masks) - 1
        if patience is None or done < patience or any((m != masks[-1]).any() for m in masks[-patience - 1 :]):
            return False
        inside = masks[-1] > 0
        return bool(inside.any() and not inside.all()) or 2 * done >= steps

    averages = []
    for view in config.preprocess.views:
        image = prepare_image(volume, view)
        samples, found = [], []
        for number in range(len(image)):
            seen = with_context(image, np.array([number]), view.context)
            of_slice, ends = [], []
            for member in range(config.predict.ensemble):
                axes = config.predict.mirrored(member)
                item = len(image) - 1 - number if view.axis in axes else number
                (padded,), (rows, columns) = pad_to(
                    mirrored(seen, view, axes), config.multiple, config.smallest
                )
                padded = padded.astype(kind)
                state, before = np.zeros((0, 0, 0)), np.zeros((0, 0))
                for level, (scale, steps) in enumerate(zip(levels, config.model.steps, strict=True)):
                    here = (slice(rows.start // scale, -(-rows.stop // scale)),)
                    here += (slice(columns.start // scale, -(-columns.stop // scale)),)
                    sharp = in_numpy.downscale(padded, scale).transpose(1, 2, 0)
                    if level == 0:
                        state = np.zeros((*sharp.shape[:2], config.model.channels), kind)
                    else:
                        factor = levels[level - 1] // scale
                        before = mask(state).repeat(factor, 0).repeat(factor, 1)
                        state = state.repeat(factor, 0).repeat(factor, 1)
                    state[..., :image_channels] = sharp
                    states = [state]
                    while len(states) <= steps and not over([mask(s)[here] for s in states], steps):
                        states.append(step(level, states[-1], len(states) - 1, item, member))
                    told.steps += (len(states) - 1) * sharp.shape[0] * sharp.shape[1]
                    told.all += steps * sharp.shape[0] * sharp.shape[1]
                    states += [states[-1]] * (steps + 1 - len(states))
                    state = states[-1].copy()
                last = [mask(s)[rows, columns] for s in states[-1 - max(1, steps // 4) :]]
                told.flips += sum(int((a != b).sum()) for a, b in itertools.pairwise(last))
                told.fine += int((last[-1] > 0).sum())
                if len(levels) > 1:
                    told.coarse += int((before[rows, columns] > 0).sum())
                    told.agree += int(((last[-1] > 0) & (before[rows, columns] == last[-1])).sum())
                parts = min(3, max(1, steps // 4)) if alone else 0
                at = [steps - part * max(1, steps // 4) // parts for part in range(parts, 0, -1)]
                of_slice += [
                    mirrored_plane(shares(states[done])[rows, columns].sum(-1), view, axes)
                    for done in [*at, steps]
                ]
                ends.append(mirrored_plane(shares(state)[rows, columns].transpose(2, 0, 1), view, axes))
            samples.append(np.stack(of_slice))
            found.append(np.mean(ends, axis=0))
        told.samples.append(restore(np.stack(samples).astype(np.float32), volume, view))
        averages.append(restore(np.stack(found).astype(np.float32), volume, view))
    told.probability = np.mean(averages, axis=0)
    return told


@cache
def expected(kind: str, patience: int | None, numbers: str) -> Told:
    file, volume = world(kind)
    if numbers == "int16":
        return plainly(file, volume, by_int16(file), patience, np.float32)
    return plainly(file, volume, by_definition(file), patience)


@engines
@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_signals_and_stops_are_those_of_the_plain_way(name: str, kind: str, patience: int | None) -> None:
    file, volume = world(kind)
    wanted = expected(kind, patience, "int16" if name == "int16" else "fp32")
    found = Predictor(file, engine=name, probability=True, patience=patience, signals=True).predict(volume)
    assert found.probability is not None and found.spread is not None
    assert np.abs(found.probability.data - wanted.probability).max() < 3e-5
    assert (found.report["steps_run"], found.report["steps_all"]) == (wanted.steps, wanted.all)
    assert wanted.steps < wanted.all or patience is None or kind == "few steps"

    signals, several = found.report["signals"], len(wanted.samples) > 1
    samples = np.concatenate(wanted.samples).astype(float)
    means = np.stack([part.mean(axis=0, dtype=float) for part in wanted.samples])
    deviations = np.stack([samples.std(axis=0), means.std(axis=0)][: 1 + several])
    assert np.abs(found.spread.data - deviations).max() < 3e-5
    whole = wanted.probability.sum(dtype=float)
    assert signals["samples"] == len(samples)
    assert signals["nqm"] == pytest.approx(deviations[0].sum() / whole, abs=3e-5)
    assert signals["axes"] == (pytest.approx(deviations[-1].sum() / whole, abs=3e-5) if several else None)
    # One pixel may lie on the threshold, as far as float32 can tell: there and back.
    assert signals["flips"] == pytest.approx(wanted.flips / wanted.fine, abs=1e-6 + 2 / wanted.fine)
    dice = 2 * wanted.agree / max(1, wanted.fine + wanted.coarse)
    assert signals["levels"] == (None if kind == "one level" else pytest.approx(dice, abs=1e-6))


def test_the_plain_way_has_something_to_tell() -> None:
    """Masks that change, levels that differ, slices that stop at different steps."""
    told = {kind: expected(kind, None, "fp32") for kind in KINDS}
    assert sum(one.flips for one in told.values()) > 50
    assert sum(0 < one.agree < one.fine for one in told.values()) >= 2
    shares = [one.steps / one.all for one in (expected(kind, 2, "fp32") for kind in KINDS)]
    assert min(shares) > 0.3 and len({share for share in shares if share < 1}) >= 3


@engines
def test_looking_on_changes_no_bit(name: str) -> None:
    for kind in KINDS:
        file, volume = world(kind)
        plain, watched, patient = (
            Predictor(file, engine=name, probability=True, **options).predict(volume)
            for options in ({"signals": False}, {"signals": True}, {"signals": True, "patience": 1000})
        )
        assert plain.report["signals"] is None and plain.spread is None
        assert plain.probability is not None
        for found in (watched, patient):
            assert found.probability is not None
            assert np.array_equal(found.mask.data, plain.mask.data)
            assert np.array_equal(found.probability.data, plain.probability.data)
            assert found.report["steps_run"] == found.report["steps_all"]
        assert watched.report["signals"] == patient.report["signals"]


@needs_engine
@pytest.mark.parametrize("numbers", engine.NUMBERS)
@pytest.mark.parametrize("patience", [None, 2])
def test_nothing_depends_on_threads_or_instructions(numbers: str, patience: int | None) -> None:
    """Neither where each thread has slices of its own nor where all share each."""
    for kind, share in (("one run", 0.01), ("three axes, two classes, resampled", 0.003)):
        file, _ = world(kind)
        voxels = np.zeros((1, 70, 66, 3), np.float32)
        voxels[0, 28:42, 30:40] = np.random.default_rng(0).normal(size=(14, 10, 3))
        seen_by_all = Predictor(file, engine="native", probability=True).predict(Volume(voxels, np.eye(4)))
        assert seen_by_all.probability is not None  # few pixels are foreground, so that masks settle
        rare = float(np.quantile(seen_by_all.probability.data.sum(axis=0), 1 - share))
        told = replace(file.config.predict, threshold=rare)
        file = replace(file, config=replace(file.config, predict=told))
        views = len(file.config.preprocess.views)
        seen = []
        for instructions in engine.instructions() if numbers == "int16" else [None]:
            model = engine.Model(
                to_bytes(file), numbers=numbers, patience=patience, signals=True, instructions=instructions
            )
            for threads in (1, 2, 4):
                mask = np.zeros(voxels.shape[1:], np.uint8)
                spread = np.zeros((1 + (views > 1), *mask.shape), np.float32)
                counts = model.segment(voxels, mask, spread=spread, spacing=(0.8, 1.1, 2.0), threads=threads)
                without = model.segment(voxels, mask, spacing=(0.8, 1.1, 2.0), threads=threads)
                numbers_of = [
                    [getattr(one, name) for name, _ in counts._fields_] for one in (counts, without)
                ]
                seen.append((numbers_of[0], mask.tobytes(), spread.tobytes()))
                assert numbers_of[0] == numbers_of[1]
        assert all(one == seen[0] for one in seen)
        ran = {name: seen[0][0][at] for at, (name, _) in enumerate(Counts._fields_)}
        assert 0 < ran["fine"] < 0.5 * voxels.size * views * file.config.predict.ensemble
        assert ran["spread"] > 0
        assert ran["steps"] < ran["all"] or patience is None


@pytest.mark.parametrize("name", ["numpy", "eager", "folded"])
def test_a_slice_stops_for_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are run at a time."""
    file, volume = world("one run")
    found = []
    for cells in (1, 1 << 17):
        monkeypatch.setattr(predict, "CELLS", cells)
        found.append(Predictor(file, engine=name, probability=True, patience=2).predict(volume))
    one, all_at_once = found
    assert one.probability is not None and all_at_once.probability is not None
    assert np.abs(one.probability.data - all_at_once.probability.data).max() < 1e-6
    assert one.report["steps_run"] == all_at_once.report["steps_run"] < one.report["steps_all"]
    assert one.report["signals"] == all_at_once.report["signals"]
