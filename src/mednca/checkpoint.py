"""The run folder: one training, complete and resumable.

::

    config.json             the complete configuration
    plan.json               what the planner chose and why, with the recipe native
    init.safetensors        the model whose rules it began with, where there is one
    split.json              which cases train, which validate, by which rule
    metrics.jsonl           a line per logged iteration, validation and event
    tensorboard/            the same for TensorBoard
    checkpoint.safetensors  everything that an interrupted training needs to go on, bit for bit
    model.safetensors       the product: running mean of the weights, one file (see modelfile.py)
    report.json, curve.png  evaluation on the validation cases, and the curve

A file is written under a temporary name and renamed, so that a stop at any moment leaves the last complete
one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mednca.config import RunConfig, from_dict, to_dict
from mednca.errors import InputError
from mednca.files import atomic_write, remove_leftovers
from mednca.modelfile import ModelFile, load_model, save_model

FORMAT = "mednca-checkpoint"
VERSION = 1
INIT = "init.safetensors"


@dataclass
class TrainState:
    """Where a training stands: counters, the sentinel's numbers, and tensors by name.

    Attributes:
        iteration: Iterations done in this attempt.
        attempt: Number of re-seeds and roll-backs so far; part of the random key.
        rate_factor: What roll-backs have left of the learning rate.
        logged: Number of complete lines in metrics.jsonl.
        sentinel: Fields of `Sentinel`.
        live: Weights, running means and moments now.
        good: The same at the end of a healthy window that another one followed, with its iteration in
            `good_iteration`: what a roll-back goes to. A fall at the end of a window shows only in
            the next.
        fresh: The same at the end of the last healthy window, with its iteration in `fresh_iteration`.
    """

    iteration: int = 0
    attempt: int = 0
    rate_factor: float = 1.0
    logged: int = 0
    good_iteration: int = 0
    fresh_iteration: int = 0
    sentinel: dict[str, Any] = field(default_factory=dict)
    live: dict[str, Tensor] = field(default_factory=dict)
    good: dict[str, Tensor] = field(default_factory=dict)
    fresh: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """Path of a run folder, and what is stored in it."""

    path: Path

    @property
    def model(self) -> Path:
        """The product."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """The log."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The evaluation; it is written last, so that it marks a run as complete."""
        return self.path / "report.json"

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        split: dict[str, Any],
        begin: ModelFile | None = None,
        *,
        force: bool = False,
    ) -> RunFolder:
        """Configuration, split and maybe the model to begin with -> a new run folder, whole or not at all.

        Raises:
            InputError: If the folder exists and `force` is not set, or cannot be made. An existing folder
                that is not a run is never replaced.
        """
        if path.exists():
            if not force:
                raise InputError(f"{path}: exists already; go on with --resume, start anew with --force")
            if not path.is_dir() or (any(path.iterdir()) and not _is_run(path)):
                raise InputError(f"{path}: is not a run folder, so --force does not replace it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".part-{path.name}-", dir=path.parent))
            temporary.chmod(0o755)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        try:
            atomic_write(temporary / "config.json", json.dumps(to_dict(config), indent=1))
            atomic_write(temporary / "split.json", json.dumps(split, indent=1))
            if begin is not None:
                save_model(temporary / INIT, begin)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".old-{path.name}-", dir=path.parent))
                path.replace(old / path.name)
                temporary.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _remove_folders_beside(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Path -> an existing run folder.

        Raises:
            InputError: If it is none.
        """
        if not _is_run(path):
            raise InputError(
                f"{path}: not a run folder (config.json and split.json expected); nothing to resume"
            )
        return cls(path)

    def tidy(self) -> None:
        """Remove what a killed training left half-written: temporary files in the folder and beside it."""
        remove_leftovers(self.path)
        _remove_folders_beside(self.path)

    def config(self) -> RunConfig:
        """The configuration that the run was started with."""
        return from_dict(RunConfig, self._json("config.json"), str(self.path / "config.json"))

    def split(self) -> dict[str, Any]:
        """The split: "training" and "validation", lists of case ids, and how they were drawn."""
        split = self._json("split.json")
        if not isinstance(split, dict) or not {"training", "validation"} <= set(split):
            raise InputError(f"{self.path / 'split.json'}: expected lists 'training' and 'validation'")
        return split

    def begin(self) -> ModelFile:
        """The model whose rules the run began with.

        Raises:
            InputError: If it is missing, damaged or another one.
        """
        model, wanted = load_model(self.path / INIT), self.config().train.init
        if model.hash != wanted:
            raise InputError(f"{self.path / INIT}: must be the model {wanted}, got {model.hash}")
        return model

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / name}: cannot be read ({error})") from error

    def save(self, state: TrainState) -> None:
        """State -> checkpoint, atomically; the lines of the log that it counts reach the disk first."""
        if self.metrics.exists():
            with self.metrics.open("ab") as file:
                os.fsync(file.fileno())
        header = {"format": FORMAT, "version": VERSION}
        header |= {k: getattr(state, k) for k in _COUNTERS}
        tensors = {f"{part}.{k}": v for part in _PARTS for k, v in getattr(state, part).items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(tensors, {"mednca": json.dumps(header)})
        atomic_write(self.path / "checkpoint.safetensors", content)

    def load(self) -> TrainState | None:
        """The last checkpoint, or None where the training had not yet come to one.

        Raises:
            InputError: If it is damaged or of a newer version.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(str(path), "pt") as file:
                header = json.loads(file.metadata()["mednca"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise InputError(
                f"{path}: not a complete checkpoint ({error}); start anew with --force"
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(f"{path}: not a checkpoint of mednca; start anew with --force")
        if header.get("version") != VERSION:
            raise InputError(
                f"{path}: checkpoint format version must be {VERSION}, got {header.get('version')!r}; "
                "go on with the mednca that wrote it, or start anew with --force"
            )
        header.setdefault("fresh_iteration", 0)  # came after version 1
        if missing := [name for name in _COUNTERS if name not in header]:
            raise InputError(f"{path}: {missing[0]!r} is missing in this checkpoint; start anew with --force")
        state = TrainState(**{k: header[k] for k in _COUNTERS})
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            if part in _PARTS:
                getattr(state, part)[key] = tensor
        return state

    def log(self, entry: dict[str, Any], state: TrainState) -> None:
        """One entry -> a line of metrics.jsonl.

        Raises:
            InputError: If it cannot be written.
        """
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise InputError(f"{self.metrics}: cannot be written ({error.strerror or error})") from error
        state.logged += 1

    def rewind_log(self, lines: int) -> list[dict[str, Any]]:
        """Keep the first lines of the log, those that the checkpoint knows of; return them.

        Raises:
            InputError: If the log lacks some of them or is damaged.
        """
        try:
            stored = self.metrics.read_text() if self.metrics.exists() else ""
            kept = stored.splitlines(keepends=True)[:lines]
            entries = [json.loads(line) for line in kept]
        except (OSError, ValueError) as error:
            raise InputError(f"{self.metrics}: cannot be read ({error}); start anew with --force") from error
        if len(kept) < lines:
            raise InputError(
                f"{self.metrics}: must have the {lines} lines that the checkpoint counts, got {len(kept)}; "
                "start anew with --force"
            )
        atomic_write(self.metrics, "".join(kept))
        return entries


def _is_run(path: Path) -> bool:
    """Path -> True for a folder with what every run has from its first moment."""
    return (path / "config.json").is_file() and (path / "split.json").is_file()


def _remove_folders_beside(path: Path) -> None:
    """Run folder -> what a killed `RunFolder.create` left beside it is gone: a new run not yet in its place,
    or an old one already replaced. No other run's: the random part of the name holds no '-'."""
    pattern = re.compile(rf"\.(part|old)-{re.escape(path.name)}-[a-z0-9_]{{8}}")
    for beside in path.parent.iterdir():
        if pattern.fullmatch(beside.name) and beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)


_COUNTERS = ("iteration", "attempt", "rate_factor", "logged", "good_iteration", "fresh_iteration", "sentinel")
_PARTS = ("live", "good", "fresh")
