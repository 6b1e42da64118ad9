"""Many seeds of one recipe: failed trainings are told, only the named folds are trained, and the table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mednca.errors import InputError
from mednca.plan import Fingerprint
from mednca.report import MERGED
from mednca.sentinel import Sentinel
from reproduce import __main__ as overview
from reproduce import catalogue, folds, gather, reliability, runs
from reproduce.catalogue import RELIABILITY, Experiment, find
from reproduce.stored import FORMAT, RESULTS, VERSION, result_path, write_result
from reproduce.tables import done
from tests.small_training import write_cases
from tests.test_reproduce import row_of

TINY = {
    "train": {"iterations": 2, "batch_size": 2, "warmup": 0, "validate_every": 0},
    "preprocess": {"size": [16, 16]},
    "model": {"steps": [2, 2], "channels": 8, "hidden": 8},
}


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Experiment]:
    """A tiny series of two seeds on one of five folds of blobs in tmp_path, one of two cases judged."""
    write_cases(tmp_path / "blobs", 10)
    split = folds.Split("blobs", "blobs", "by person", "pairs")
    shutil.copytree(folds.FOLDER, tmp_path / "folds")
    (tmp_path / "folds" / "blobs.json").write_text(folds.to_json(folds.draw(split, tmp_path)))
    monkeypatch.setattr(folds, "FOLDER", tmp_path / "folds")
    monkeypatch.setattr(folds, "SPLITS", (*folds.SPLITS, split))
    experiment = Experiment(
        *("tiny", "recipe native", "blobs", "paper_hippocampus", TINY),
        seeds=(0, 1),
        folds=("fold_2",),
        cases=1,
    )
    monkeypatch.setitem(catalogue.TABLES, "reliability", (*RELIABILITY, experiment))
    yield experiment


def changed(experiment: Experiment, **train: Any) -> Experiment:
    """Experiment and settings of its training -> the same with them."""
    return replace(experiment, changes=TINY | {"train": TINY["train"] | train})


def test_only_the_named_folds_are_trained_and_the_first_cases_judged(
    series: Experiment, tmp_path: Path
) -> None:
    runs.run(series, tmp_path, tmp_path / "runs", seeds=(1,), progress=False)
    first, second = runs.trainings(series, tmp_path / "runs")
    held_out = folds.load("blobs").held_out["fold_2"]
    assert (first.fold, second.fold, first.state(), second.state()) == (
        *("fold_2", "fold_2"),
        *("not started", "finished"),
    )
    assert len(held_out) == 2 and second.split["validation"] == [held_out[0]]
    assert not set(held_out) & set(second.split["training"])
    result = gather.collect(series, tmp_path / "runs")
    assert result is not None and set(result["cases"]) == {held_out[0]}
    assert result["missing"] == ["seed_0/fold_2: not started"]
    assert reliability.judged_on(series, result) == "the first 1 of 2 cases of fold_2, 5 folds by person"
    told = "1 of 5, by person, the first 1 cases of each at most (1 trainings missing)"
    assert done(result) == ("1", told)
    with pytest.raises(InputError, match="--fold must be one of fold_2 and --seed one of 0, 1, got 7"):
        runs.run(series, tmp_path, tmp_path / "runs", seeds=(7,), progress=False)


def test_a_training_that_gives_up_is_told_and_the_next_seed_is_trained(
    series: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = []

    def observe(self: Sentinel, iteration: int, **_: float) -> str:
        starts.append(1)
        return "stuck" if len(starts) <= 7 else "watching"  # the first seed has seven starts

    monkeypatch.setattr(Sentinel, "observe", observe)
    watched = changed(series, sentinel=True)
    runs.run(watched, tmp_path, tmp_path / "runs", progress=False)
    lost, found = runs.trainings(watched, tmp_path / "runs")
    assert (
        lost.state() == "failed" and not lost.finished and (lost.failed or "").startswith("training failed 7")
    )
    assert found.finished and "seed_0" in caplog.text
    result = gather.collect(watched, tmp_path / "runs")
    assert result is not None and not result["missing"] and set(result["seeds"]) == {"1"}
    told = result["provenance"]["runs"]
    assert told["seed_0/fold_2"]["failed"] == lost.failed and len(told["seed_0/fold_2"]["events"]) == 6
    row = reliability.measure(watched, result)
    assert (row.near, row.failed, row.reseeded, row.rolled_back) == (1, {"0": lost.failed}, 6, 0)
    write_result(result_path(watched, tmp_path / "results"), result)
    assert overview.state(watched, tmp_path / "runs", tmp_path / "results") == "stored"
    for results in (tmp_path / "results", tmp_path / "none"):
        assert overview.cost(watched, tmp_path / "runs", results) == 0
    before = len(starts)
    runs.run(watched, tmp_path, tmp_path / "runs", progress=False)
    assert len(starts) == before  # what failed is not tried again


def test_a_training_that_ends_with_no_numbers_is_told(series: Experiment, tmp_path: Path) -> None:
    wild = changed(series, iterations=12, learning_rate=1e38, clip=0.0, sentinel=False)
    runs.run(wild, tmp_path, tmp_path / "runs", progress=False)
    result = gather.collect(wild, tmp_path / "runs")
    assert result is not None and result["seeds"] == {} and result["parameters"] is None
    row = reliability.measure(wild, result)
    assert set(row.failed) == {"0", "1"} and row.median is None and row.near == 0 and row.reseeded is None
    assert row.failed["0"] == "loss or gradient not finite, first logged at iteration 10"


def test_another_error_is_no_failed_training(
    series: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise InputError("disk is full")

    monkeypatch.setattr("mednca.train.finish", broken)
    with pytest.raises(InputError, match="disk is full"):
        runs.run(series, tmp_path, tmp_path / "runs", progress=False)
    assert all(training.failed is None for training in runs.trainings(series, tmp_path / "runs"))


# ---- The series ----


def test_the_series_have_their_seeds_and_a_stored_fold() -> None:
    assert [len(e.seeds) for e in RELIABILITY] == [10, 10, 5, 5]
    for experiment in RELIABILITY:
        assert set(experiment.folds) < set(folds.load(experiment.split).held_out)


def test_the_official_training_of_our_model_differs_in_its_training_only() -> None:
    data = Fingerprint(1, (0.6, 0.6, 3.6), (320, 320, 24), {1: "prostate"}, share=0.02)
    ours, theirs = (
        runs.configuration(find([name])[0], data, 1)
        for name in ("reliability_prostate", "reliability_prostate_official")
    )
    official = runs.configuration(find(["reliability_hippocampus_official"])[0], data, 1)
    assert (ours.model, ours.preprocess, ours.predict) == (theirs.model, theirs.preprocess, theirs.predict)
    assert theirs.augment == official.augment != ours.augment
    for name in (
        *("learning_rate", "betas", "schedule", "warmup", "clip", "ema", "coarse_weight", "sentinel"),
        "step_range",
    ):
        assert getattr(theirs.train, name) == getattr(official.train, name) != getattr(ours.train, name), name
    for name in ("iterations", "batch_size", "canvas", "patch", "foreground"):
        assert getattr(theirs.train, name) == getattr(ours.train, name), name
    assert (ours.train.iterations, official.train.iterations) == (4000, 600)  # a prostate is learnt slowly


# ---- The table ----


def made_up(experiment: Experiment, dice: list[float], failed: tuple[int, ...] = (), **train: Any) -> Any:
    """Series, Dice of the seeds that ended and seeds that failed -> a result."""
    ended = [seed for seed in experiment.seeds if seed not in failed][: len(dice)]
    held_out = folds.load(experiment.split).held_out["fold_0"][: experiment.cases]
    run = {"minutes": 2.0, "device": "cpu", "machine": {"processor": "Abacus 3"}, "events": []}
    names = {f"seed_{seed}/fold_0": run for seed in ended}
    names |= {f"seed_{seed}/fold_0": run | {"failed": "gave up"} for seed in failed}
    if "seed_1/fold_0" in names:
        events = [{"event": "re-seeded"}, {"event": "rolled back to iteration 50, learning rate halved"}]
        names["seed_1/fold_0"] = names["seed_1/fold_0"] | {"events": events}
    settings = {"iterations": 600, "batch_size": 16, "sentinel": True} | train
    return {
        "format": FORMAT,
        "version": VERSION,
        "mode": "full",
        "protocol": "by person",
        "missing": [],
        "provenance": {"runs": names},
        "config": {"train": settings},
        "summary": {MERGED: {}},
        "seeds": {str(seed): {"dice": value} for seed, value in zip(ended, dice, strict=True)},
        "cases": {case: {} for case in held_out},
    }


def test_the_table_counts_seeds_near_the_median_and_those_that_failed(tmp_path: Path) -> None:
    ours, official, _, prostate = RELIABILITY
    dice = [0.85, 0.86, 0.86, 0.86, 0.88, 0.84, 0.881, 0.86, 0.86, 0.86]
    write_result(result_path(ours, tmp_path), made_up(ours, dice))
    write_result(
        result_path(official, tmp_path),
        made_up(official, [0.7, 0.0, 0.72, 0.71], failed=(1, 3), sentinel=False, batch_size=40),
    )
    data, text, png = reliability.draw(tmp_path, False)
    assert png.read_bytes().startswith(b"\x89PNG")
    told = json.loads(data.read_text())["series"]
    row = told["reliability_hippocampus"]
    assert (row["median"], row["least"], row["largest"], row["near"]) == (0.86, 0.84, 0.881, 9)
    assert (row["reseeded"], row["rolled_back"]) == (1, 1)
    assert told["reliability_hippocampus_official"]["near"] == 3
    page = text.read_text()
    first = dict(zip(reliability.HEAD, row_of(page, "hippocampus | recipe native"), strict=True))
    assert first["seeds"] == "10" and first["within 0.02 of it"] == "9 of 10" and first["failed"] == "0"
    assert first["judged on"] == "the first 12 of 42 cases of fold_0, 5 folds by person"
    assert first["iterations x slices"] == "600 x 16" and first["machine"].endswith("for 10 trainings")
    second = dict(zip(reliability.HEAD, row_of(page, "hippocampus | official settings"), strict=True))
    assert second["seeds"] == "6 of 10" and second["within 0.02 of it"] == "3 of 6"
    assert (second["failed"], second["least"], second["re-seeded"]) == ("2", "0.000", "no watch")
    assert "reliability_hippocampus_official, seed 3: failed: gave up." in page
    third = row_of(page, "prostate | official training of our model")
    assert (
        "not run: its 135 core-minutes of training, or more, were not to be had yet" in third
        and f"--only {prostate.name}`" in third[-1]
    )
    again = [path.read_bytes() for path in reliability.draw(tmp_path, False)]
    assert again == [path.read_bytes() for path in (data, text, png)]


def test_what_stands_in_the_tree_is_drawn_from_its_results(tmp_path: Path) -> None:
    for path in (RESULTS / "reliability").glob("*.json"):
        write_result(tmp_path / "reliability" / path.name, json.loads(path.read_text()))
    for path in reliability.draw(tmp_path, False)[:2]:
        assert path.read_text() == (RESULTS / path.name).read_text(), f"draw {path.name} again"
