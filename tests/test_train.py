"""Training: a stop at any moment changes no bit of the result, failures are met and written down, no person
is on both sides of a split."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import config, slices, write_cases

import mednca.learner as learner_module
import mednca.train as train_module
from mednca.augment import Batch, TrainingCase, sample_batch
from mednca.cases import CaseSet
from mednca.checkpoint import RunFolder, TrainState
from mednca.config import RunConfig, to_dict
from mednca.errors import InputError
from mednca.field import FLAT
from mednca.learner import ATTEMPTS, Learner, learning_rate
from mednca.modelfile import load_model
from mednca.nca import run_eager
from mednca.recipes import Fingerprint
from mednca.sentinel import Sentinel
from mednca.train import RECOVERY, canvas_size, fit, held_out_cases, train

# TensorBoard's event writer warns of its own dependencies' ways.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CASES = [slices(0), slices(1)]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def run_fit(path: Path, run_config: RunConfig) -> RunFolder:
    """Run folder's path and configuration -> trained from wherever it stands."""
    if not path.exists():
        RunFolder.create(path, run_config, {"training": ["a"], "validation": []})
    run = RunFolder.open(path)
    fit(run, run_config, CASES, [], {"name": "tiny"}, engine="eager", progress=False)
    return run


def product(run: RunFolder) -> tuple[bytes, bytes]:
    """Run -> the bytes of its model and of its log."""
    return run.model.read_bytes(), run.metrics.read_bytes()


def events(run: RunFolder) -> list[dict[str, Any]]:
    """Run -> the entries of its log that tell of failures."""
    return [e for e in map(json.loads, run.metrics.read_text().splitlines()) if e["kind"] == "event"]


def poisoned(monkeypatch: pytest.MonkeyPatch, when: set[tuple[int, int]]) -> None:
    """Make the loss NaN at these (attempt, iteration)."""
    original, step = learner_module.cross_entropy, Learner.step
    bad = [False]

    def spoilt(self: Learner, batch: Batch, iteration: int, *rest: Any) -> dict[str, float]:
        bad[0] = (self.state.attempt, iteration) in when
        return step(self, batch, iteration, *rest)

    monkeypatch.setattr(Learner, "step", spoilt)
    monkeypatch.setattr(
        learner_module, "cross_entropy", lambda *a: original(*a) * (float("nan") if bad[0] else 1.0)
    )


def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sentinel's windows 6 iterations long, so that a tiny training has some."""
    monkeypatch.setattr(train_module, "new_sentinel", lambda settings: Sentinel(1000, 6))
    monkeypatch.setattr(learner_module, "new_sentinel", lambda settings: Sentinel(1000, 6))


# -- resume


@pytest.mark.parametrize("with_event", [False, True])
def test_a_stop_at_any_iteration_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_event: bool
) -> None:
    short_windows(monkeypatch)
    poisoned(monkeypatch, {(0, 2), (1, 15)} if with_event else set())
    whole = run_fit(tmp_path / "whole", config())
    assert [e["event"].split()[0] for e in events(whole)] == (["re-seeded", "rolled"] if with_event else [])
    spoilt = Learner.step
    path, countdown = tmp_path / "stopped", [0]

    def step(self: Learner, *arguments: Any) -> dict[str, float]:
        countdown[0] -= 1
        if countdown[0] < 0:
            raise Killed
        return spoilt(self, *arguments)

    monkeypatch.setattr(Learner, "step", step)
    for stop in (0, 4, 7, 6, 11, 3, 1000):  # before the first checkpoint, between, across an event
        countdown[0] = stop
        if stop < 1000:
            with pytest.raises(Killed):
                run_fit(path, config())
            RunFolder.open(path).load()
        else:
            run_fit(path, config())
    assert product(RunFolder(path)) == product(whole)


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run = run_fit(tmp_path / "run", config(iterations=3))
    before = product(run)
    assert product(run_fit(run.path, config(iterations=3))) == before


def kill_and_resume(folder: Path, kills: int, iterations: int) -> None:
    """Train by the command line, once in one go and once killed again and again; compare every byte."""
    write_cases(folder / "data", 4)
    settings_ = to_dict(config(iterations=iterations))
    wanted = {name: settings_[name] for name in ("model", "train", "preprocess")}
    (folder / "config.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "mednca", "train", str(folder / "data"), "--group", "pairs"]
    command += [
        "--config",
        str(folder / "config.json"),
        "--engine",
        "eager",
        "--quiet",
        "--validation",
        "0.5",
    ]

    def start(out: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "-o", str(folder / out), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(process: subprocess.Popen[bytes]) -> None:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()

    finish(start("whole/run"))  # the model is named after its folder: both are "run"
    rng, out = random.Random(0), folder / "killed" / "run"
    for _ in range(kills):
        process = start("killed/run", "--resume")
        before = (out / "metrics.jsonl").stat().st_mtime_ns if (out / "metrics.jsonl").exists() else 0
        while process.poll() is None:  # starting takes seconds: wait for the training to write, then a moment
            if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():
            run = RunFolder.open(out)
            run.load()
            run.config()
            run.split()
            if run.model.exists():
                load_model(out)
    (out / ".part-abcdefgh-model.safetensors").write_text("as a kill in the middle of writing leaves it")
    finish(start("killed/run", "--resume"))
    assert product(RunFolder(out)) == product(RunFolder(folder / "whole" / "run"))
    assert (out / "report.json").exists()
    assert not [p.name for p in [*out.iterdir(), *out.parent.iterdir()] if p.name.startswith(".")]


def test_kill_9_changes_no_bit(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=2, iterations=40)


@pytest.mark.slow
def test_kill_9_at_ten_moments_changes_no_bit(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=10, iterations=300)


# -- failures


def test_a_number_that_is_not_finite_is_undone_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_windows(monkeypatch)
    poisoned(monkeypatch, {(0, 2), (1, 15)})
    run = run_fit(tmp_path / "run", config())
    first, second = events(run)
    assert (first["iteration"], first["event"], first["reason"]) == (2, "re-seeded", "diverged")
    assert (second["iteration"], second["attempt"]) == (15, 2)
    assert second["event"] == "rolled back to iteration 6, learning rate halved"
    assert all(np.isfinite(array).all() for array in load_model(run.path).weights.values())
    state = run.load()
    assert state is not None and state.attempt == 2 and state.iteration == 24
    # Two and three healthy windows of 6 iterations since each failure, from half of what was left.
    assert state.rate_factor == pytest.approx(0.5 * RECOVERY**2 / 2 * RECOVERY**3)


def test_a_fall_at_the_end_of_a_window_that_looked_healthy_is_undone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallen = []

    def observe(self: Sentinel, iteration: int, **_: float) -> str:
        if iteration == 17 and not fallen:  # the third window tells of what happened in the second
            fallen.append(1)
            return "diverged"
        return "healthy" if iteration % 6 == 5 else "watching"

    monkeypatch.setattr(Sentinel, "observe", observe)
    run = run_fit(tmp_path / "run", config())
    assert [event["event"] for event in events(run)] == ["rolled back to iteration 6, learning rate halved"]
    state = run.load()
    assert state is not None and (state.good_iteration, state.fresh_iteration) == (18, 24)


def test_the_learning_rate_recovers_from_one_roll_back_and_not_from_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_windows(monkeypatch)
    for name, bad, factor in (("once", {(0, 7)}, 1.0), ("twice", {(0, 7), (1, 8)}, 0.5)):
        with monkeypatch.context() as patch:
            poisoned(patch, bad)
            run = run_fit(tmp_path / name, config(iterations=90))
        state = run.load()
        assert state is not None and state.rate_factor == factor and len(events(run)) == len(bad)


def test_an_absurd_learning_rate_ends_with_finite_weights_or_one_line(tmp_path: Path) -> None:
    try:
        run_fit(tmp_path / "run", config(learning_rate=1e6, warmup=0, clip=0.0))
    except InputError as error:
        assert "lower --learning-rate" in str(error)
    run = RunFolder(tmp_path / "run")
    assert events(run)
    state = run.load()
    assert state is not None and state.rate_factor < 1
    assert all(torch.isfinite(tensor).all() for tensor in state.live.values())


def test_training_gives_up_after_some_attempts_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {(attempt, 1) for attempt in range(100)})
    with pytest.raises(InputError, match=f"training failed {ATTEMPTS + 1} times") as caught:
        run_fit(tmp_path / "run", config())
    assert "\n" not in str(caught.value)
    assert len(events(RunFolder(tmp_path / "run"))) == ATTEMPTS
    assert RunFolder(tmp_path / "run").load() is not None


def test_a_stuck_start_begins_again_from_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe(self: Sentinel, iteration: int, **_: float) -> str:
        return "stuck" if iteration == 5 and not stuck else "watching"

    stuck: list[int] = []
    recover = Learner.recover
    starts: list[torch.Tensor] = []

    def noting(self: Learner, verdict: str) -> dict[str, Any]:
        stuck.append(1)
        event = recover(self, verdict)
        starts.append(self.model.state_dict()["levels.0.update_in.weight"].clone())
        return event

    monkeypatch.setattr(Sentinel, "observe", observe)
    monkeypatch.setattr(Learner, "recover", noting)
    run = run_fit(tmp_path / "run", config(iterations=8))
    assert [e["event"] for e in events(run)] == ["re-seeded"]
    fresh = Learner(config(), TrainState(), "cpu").model.state_dict()["levels.0.update_in.weight"]
    assert not torch.equal(starts[0], fresh)
    state = run.load()
    assert state is not None and state.rate_factor == 1 and state.iteration == 8


def test_failures_go_to_the_log_and_not_to_stdout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    poisoned(monkeypatch, {(0, 2)})
    run_fit(tmp_path / "run", config(iterations=4))
    assert capsys.readouterr() == ("", "")
    assert "diverged at iteration 2: re-seeded" in caplog.text


# -- one step


def one_step(run_config: RunConfig) -> Learner:
    """Configuration -> learner after one step, with update_out not zero so that every gradient lives."""
    learner = Learner(run_config, TrainState(), "cpu")
    with torch.no_grad():
        for rule in learner.model.levels:
            rule.update_out.weight.fill_(0.01)
    batch = sample_batch(CASES, run_config, (16, 16), np.random.default_rng(0))
    learner.step(batch, 0, 1e-3, run_eager)
    return learner


def test_every_level_gets_a_gradient_and_deep_supervision_adds_to_the_coarse() -> None:
    grads: dict[float, list[torch.Tensor]] = {}
    for weight in (0.0, 0.3, 0.6):
        learner = one_step(config(coarse_weight=weight, clip=0.0))
        grads[weight] = [rule.update_out.weight.grad for rule in learner.model.levels]
        assert all(grad is not None and grad.abs().max() > 0 for grad in grads[weight])
    coarse = [at_0_3 - at_0 for at_0, at_0_3 in zip(grads[0.0], grads[0.3], strict=True)]
    twice = [at_0_6 - at_0 for at_0, at_0_6 in zip(grads[0.0], grads[0.6], strict=True)]
    for level in (0, 1):
        assert coarse[level].norm() > 0.05 * grads[0.0][level].norm()
        torch.testing.assert_close(twice[level], 2 * coarse[level], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grads[0.3][2], grads[0.0][2])  # the finest level has the one loss


def test_what_is_saved_is_the_running_mean() -> None:
    learner = one_step(config(ema=0.5))
    start = Learner(config(), TrainState(), "cpu").mean.state_dict()
    name = "levels.0.update_in.weight"
    now, mean = learner.model.state_dict()[name], torch.tensor(learner.model_file({}).weights[name])
    torch.testing.assert_close(mean, start[name] + 0.9 * (now - start[name]))  # it starts with a short memory
    assert not torch.equal(mean, now)
    last = one_step(config(ema=0.0))
    assert torch.equal(torch.tensor(last.model_file({}).weights[name]), last.model.state_dict()[name])


def test_checkpointed_tensors_restore_a_learner_exactly() -> None:
    learner = one_step(config())
    again = Learner(config(), TrainState(live=learner.tensors()), "cpu")
    for name, tensor in learner.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert any(name.startswith("exp_avg_sq.") for name in again.tensors())


def test_the_learning_rate_warms_up_and_decays() -> None:
    settings_ = config(iterations=100, warmup=10, learning_rate=1.0).train
    rates = [learning_rate(settings_, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == pytest.approx(1)
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.001
    twice = replace(settings_, iterations=200, cycles=2)
    assert [learning_rate(twice, i) for i in range(200)] == pytest.approx(
        [*rates, *(rate / 2 for rate in rates)]
    )
    thrice = [learning_rate(replace(settings_, cycles=3), i) for i in range(100)]
    assert thrice[34] == rates[0] / 2 and thrice[33] < 0.01 and thrice[99] > 0  # 34, 34 and 32 iterations
    official = replace(settings_, schedule="exponential")
    assert learning_rate(official, 1000) == pytest.approx(0.9999**1000)


def test_the_canvas_has_room_for_every_slice_up_to_256() -> None:
    def of(*sizes: tuple[int, int]) -> list[TrainingCase]:
        return [
            TrainingCase("x", np.zeros((1, 1, *s), np.float32), np.zeros((1, *s), np.uint8)) for s in sizes
        ]

    assert canvas_size(of((15, 33), (18, 30)), config()) == (20, 36)
    assert canvas_size(of((3, 900)), config()) == (8, 256)
    assert canvas_size(of((3, 900)), config(canvas=(31, 9))) == (32, 12)


# -- splits and cross-validation


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    """Six scans of three persons."""
    return write_cases(tmp_path_factory.mktemp("data"))


def quick(data: Fingerprint) -> RunConfig:
    """A configuration that is trained in a moment."""
    return config(iterations=2, validate_every=0)


def quick_train(cases: CaseSet, out: Path, **options: Any) -> Any:
    """Train on one core without a word."""
    return train(cases, out, quick, engine="eager", progress=False, **options)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.34, 0.4, 0.5])
def test_about_the_share_asked_for_is_held_out_in_whole_groups(cases: CaseSet, share: float) -> None:
    many = tuple(replace(cases.cases[0], id=f"{i:03d}", group=str(i // 3)) for i in range(120))
    held_out = held_out_cases(replace(cases, cases=many), share, 0)
    assert len(held_out) == pytest.approx(120 * share, abs=3) and held_out == sorted(held_out)
    groups = {case.group for case in many if case.id in held_out}
    assert len(held_out) == 3 * len(groups)
    assert held_out_cases(cases, 0.0, 0) == []
    assert len(held_out_cases(cases, share, 0)) == (2 if share < 0.5 else 4)  # of three persons, one or two


def test_folds_never_share_a_person_and_are_merged(cases: CaseSet, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    assert quick_train(cases, out, folds=3, fold=1) is None
    report = quick_train(cases, out, folds=3, resume=True)
    group = {case.id: case.group for case in cases.cases}
    seen: list[str] = []
    for i in range(3):
        split = RunFolder.open(out / f"fold_{i}").split()
        assert not {group[x] for x in split["training"]} & {group[x] for x in split["validation"]}
        assert sorted(split["training"] + split["validation"]) == sorted(group)
        seen += split["validation"]
        card = load_model(out / f"fold_{i}").card
        assert card["training_cases"] == split["training"] and card["finished"]
        assert card["scores"]["cases"] == split["validation"]
    assert sorted(seen) == sorted(group) == sorted(report.cases)
    assert json.loads((out / "report.json").read_text())
    assert report.folds[seen[0]] == "fold_0"

    # One fold anew with other settings is trained, but the folds are not merged with it.
    again = train(
        cases,
        out,
        lambda data: config(iterations=1, validate_every=0),
        folds=3,
        fold=2,
        force=True,
        engine="eager",
        progress=False,
    )
    assert again is None and not (out / "report.json").exists()


def test_a_fold_in_the_way_is_told_before_any_is_trained(cases: CaseSet, tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "cv" / "fold_2", config(), {"training": [], "validation": []})
    with pytest.raises(InputError, match="fold_2: exists already"):
        quick_train(cases, tmp_path / "cv", folds=3)
    assert not list((tmp_path / "cv").glob("*/model.safetensors"))


def test_without_validation_all_cases_train_and_nothing_is_reported(cases: CaseSet, tmp_path: Path) -> None:
    assert quick_train(cases, tmp_path / "run", validation=0) is None
    split = RunFolder.open(tmp_path / "run").split()
    assert split["training"] == [case.id for case in cases.cases] and split["validation"] == []
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "curve.png", "metrics.jsonl"} <= names and "report.json" not in names


def test_the_model_has_its_scores_before_the_report_marks_the_run_as_complete(
    cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_module.Report, "write", killed)
        quick_train(cases, tmp_path / "run")
    assert load_model(tmp_path / "run").card["scores"]["cases"]
    assert quick_train(cases, tmp_path / "run", resume=True) is not None
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["iteration"] for e in lines if e["kind"] == "validation"] == [2]  # 0: only at the end


def test_what_cannot_be_trained_is_refused(cases: CaseSet, tmp_path: Path) -> None:
    for options, message in (
        ({"folds": 1}, "folds must be 0"),
        ({"folds": 7}, "7 folds need as many groups, got 3"),
        ({"fold": 1}, "fold 1 needs the number of folds"),
        ({"folds": 3, "fold": 3}, "fold must be from 0 to 2"),
        ({"validation": 0.6}, "validation must be a share from 0 to 0.5"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda'"),
    ):
        with pytest.raises(InputError, match=message):
            quick_train(cases, tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
    run = RunFolder.create(tmp_path / "run", config(iterations=9), {"training": [], "validation": []})
    with pytest.raises(InputError, match="exists already; go on with --resume"):
        quick_train(cases, run.path)
    with pytest.raises(InputError, match=r"was started with train.iterations = 9, now asked for 2"):
        quick_train(cases, run.path, resume=True)
    with pytest.raises(InputError, match="is a single run; choose another folder"):
        quick_train(cases, run.path, folds=3)
    RunFolder.create(run.path, quick(None), {"training": [], "validation": []}, force=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="was started on other cases or another split"):
        quick_train(cases, run.path, resume=True)


def test_scans_with_negative_intensities_keep_them(tmp_path: Path) -> None:
    """Of what is trained on and of what is held out: fields are left; told to be changed, nothing is made."""
    cases = write_cases(tmp_path / "data")  # noise about 0

    def with_field(*numbers: float) -> Callable[[Fingerprint], RunConfig]:
        settings = config(iterations=1, validate_every=0)
        settings = replace(settings, preprocess=replace(settings.preprocess, field=numbers))
        return lambda _: settings

    options: dict[str, Any] = {"engine": "eager", "progress": False}
    train(cases, tmp_path / "run", with_field(), **options)
    assert RunFolder.open(tmp_path / "run").config().preprocess.field is None
    with pytest.raises(InputError, match=r"case scan_01: has \d\d % negative intensities, as CT has"):
        train(cases, tmp_path / "told", with_field(*FLAT.numbers), **options)
    assert not (tmp_path / "told").exists()


def test_steps_are_drawn_from_their_range_once_the_rule_has_learnt() -> None:
    settings = config(iterations=100, step_range=(0.5, 2.0), step_range_from=0.4)
    learner = Learner(settings, TrainState(), "cpu")
    assert {learner.steps(iteration) for iteration in range(40)} == {None}
    drawn = [learner.steps(iteration) for iteration in range(40, 100)]
    assert drawn == [learner.steps(iteration) for iteration in range(40, 100)]
    first = [steps[0] for steps in drawn if steps]
    assert len(first) == 60 and min(first) == 2 and max(first) == 6  # 3 steps: half of them, and twice
    assert all(steps[1] == steps[2] and 1 <= steps[1] <= 4 for steps in drawn if steps)
    assert Learner(config(), TrainState(), "cpu").steps(99) is None
    longer = config(iterations=200, cycles=2, step_range=(0.5, 2.0), step_range_from=0.4)
    again = Learner(longer, TrainState(), "cpu")
    assert [again.steps(iteration) for iteration in range(100)] == [None] * 40 + drawn


def test_the_loss_of_the_whole_foreground_is_part_of_the_training() -> None:
    def loss(**train: float) -> float:
        several = replace(
            config(**train),
            labels=("a", "b"),
            values=(1, 2),
            merge=False,
            model=replace(config().model, classes=2),
        )
        batch = Batch(torch.rand(2, 1, 16, 16), torch.rand(2, 2, 16, 16) / 2, None)
        return Learner(several, TrainState(), "cpu").step(batch, 0, 1e-3, run_eager)["loss"]

    torch.manual_seed(0)
    without = loss()
    torch.manual_seed(0)
    assert loss(whole_weight=1.0) > without + 0.1
