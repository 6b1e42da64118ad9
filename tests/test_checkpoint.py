"""The run folder: complete at every moment, and never mistaken for something else."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_training import config

from mednca.checkpoint import RunFolder, TrainState
from mednca.errors import InputError
from mednca.learner import Learner

SPLIT = {"training": ["a", "b"], "validation": ["c"]}


def new(path: Path, **settings: Any) -> RunFolder:
    """Path -> a new run folder there."""
    return RunFolder.create(path, config(), SPLIT, **settings)


def state(value: float = 1.0) -> TrainState:
    """A state with every field set."""
    tensors = {"weights.x": torch.full((2, 3), value), "step.x": torch.tensor(7.0)}
    return TrainState(
        12,
        2,
        0.25,
        0,
        10,
        11,
        {"patience": 5, "best_loss": float("inf")},
        tensors,
        {k: v.clone() for k, v in tensors.items()},
        {k: v + 1 for k, v in tensors.items()},
    )


def test_a_run_folder_gives_back_what_it_was_given(tmp_path: Path) -> None:
    run = new(tmp_path / "deep" / "run")
    assert RunFolder.open(run.path).config() == config() and run.split() == SPLIT
    assert run.load() is None
    run.save(state())
    back = run.load()
    assert back is not None
    for name in ("iteration", "attempt", "rate_factor", "good_iteration", "fresh_iteration", "sentinel"):
        assert getattr(back, name) == getattr(state(), name)
    for part in ("live", "good", "fresh"):
        assert getattr(back, part).keys() == state().live.keys()
        assert all(torch.equal(getattr(back, part)[k], v) for k, v in getattr(state(), part).items())


def test_an_existing_folder_is_replaced_only_if_it_is_a_run_and_forced(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    (run.path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="exists already; go on with --resume, start anew with --force"):
        new(run.path)
    assert (run.path / "mine.txt").exists()
    new(run.path, force=True)
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "split.json"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    new(foreign, force=True)  # empty: nothing to lose
    for name in ("photos", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")  # as other libraries' models have
        with pytest.raises(InputError, match="is not a run folder, so --force does not replace it"):
            new(tmp_path / name, force=True)
        assert (tmp_path / name / "config.json").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a run folder"):
        new(tmp_path / "file", force=True)
    with pytest.raises(InputError, match="cannot be written"):
        new(tmp_path / "file" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "foreign", "model", "photos", "run"]


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run folder .* nothing to resume"):
        RunFolder.open(tmp_path)
    run = new(tmp_path / "run")
    (run.path / "split.json").write_text("[]")
    with pytest.raises(InputError, match="expected lists 'training' and 'validation'"):
        run.split()
    (run.path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match=r"config.json: cannot be read"):
        run.config()


def checkpoint(path: Path, header: Any, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write a checkpoint with any header."""
    content = safetensors.torch.save(tensors or {"live.x": torch.zeros(1)}, {"mednca": json.dumps(header)})
    (path / "checkpoint.safetensors").write_bytes(content)


def test_a_checkpoint_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    run.save(state())
    path = run.path / "checkpoint.safetensors"
    content = path.read_bytes()

    def refusal() -> str:
        with pytest.raises(InputError) as caught:
            run.load()
        assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
        return str(caught.value)

    path.write_bytes(content[: len(content) // 2])
    assert "not a complete checkpoint" in refusal()
    path.write_bytes(b"")
    assert "not a complete checkpoint" in refusal()
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    assert "not a complete checkpoint" in refusal()
    for header in ([], {}, {"format": "mednca-model", "version": 1}):
        checkpoint(run.path, header)
        assert "not a checkpoint of mednca" in refusal()
    for version in (2, "1", None):
        checkpoint(run.path, {"format": "mednca-checkpoint", "version": version})
        assert f"version must be 1, got {version!r}" in refusal()
    checkpoint(run.path, {"format": "mednca-checkpoint", "version": 1, "iteration": 3})
    assert "'attempt' is missing" in refusal()


def test_a_checkpoint_of_another_model_is_refused() -> None:
    learner = Learner(config(), TrainState(), "cpu")
    tensors = learner.tensors()
    wider = replace(config(), model=replace(config().model, hidden=9))
    for bad in (
        Learner(wider, TrainState(), "cpu").tensors(),
        {k: v for k, v in tensors.items() if k != "mean.levels.0.update_in.bias"},
        tensors | {"exp_avg.levels.0.update_in.bias": torch.zeros(8)},
        tensors | {f"{p}.levels.0.update_in.bias": torch.zeros(3) for p in ("step", "exp_avg", "exp_avg_sq")},
    ):
        with pytest.raises(InputError, match="checkpoint does not fit the configuration") as caught:
            Learner(config(), TrainState(live=bad), "cpu")
        assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(tmp_path / "run")
    run.save(state(1.0))
    files = {p.name: p.read_bytes() for p in run.path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            run.save(state(2.0))
        with pytest.raises(InputError, match="No space left on device"):
            new(tmp_path / "other")
        with pytest.raises(InputError, match="No space left on device"):
            new(run.path, force=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(InputError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
            run.log({"kind": "train"}, state())
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == files
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_read_only_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(InputError, match=r"run: cannot be written \(Permission denied\)"):
        new(tmp_path / "run")


def test_the_log_is_rewound_to_what_the_checkpoint_counts(tmp_path: Path) -> None:
    run, now = new(tmp_path / "run"), TrainState()
    assert run.rewind_log(0) == []
    for number in range(3):
        run.log({"kind": "train", "iteration": number}, now)
    with run.metrics.open("a") as file:
        file.write('{"kind": "tr')  # killed while writing
    assert now.logged == 3
    assert [entry["iteration"] for entry in run.rewind_log(2)] == [0, 1]
    assert run.metrics.read_text().count("\n") == 2 and run.metrics.read_text().endswith("}\n")
    with pytest.raises(InputError, match="must have the 3 lines that the checkpoint counts, got 2"):
        run.rewind_log(3)
    run.metrics.write_text("{\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: cannot be read"):
        run.rewind_log(1)


def test_leftovers_of_a_killed_run_go_and_nothing_else_does(tmp_path: Path) -> None:
    run = new(tmp_path / "run")
    leftovers = [run.path / ".part-abc-model.safetensors", tmp_path / ".part-run-abcd_123"]
    leftovers += [tmp_path / ".old-run-abcd_123"]
    keep = [tmp_path / ".part-run-2-abcd_123", tmp_path / ".old-ru-abcd_123", run.path / ".notes"]
    leftovers[0].write_text("half")
    for folder in (*leftovers[1:], *keep[:2]):
        folder.mkdir()
        (folder / "x").write_text("")
    keep[2].write_text("mine")
    run.tidy()
    assert not any(p.exists() for p in leftovers) and all(p.exists() for p in keep)
    assert RunFolder.open(run.path).config() == config()
