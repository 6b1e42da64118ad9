"""The runs of the experiments: where each is, how far it is, and the training of what is missing.

::

    RUNS/<experiment>/seed_0/fold_0/     a run folder of mednca, and beside its files
        provenance.json                  machine, versions, minutes
        extra.json                       scores that only some experiments have, per case
        failed.json                      instead: why the training failed
    RUNS/quick/...                       the same of quick mode: few iterations, never mixed with the others
    reproduce/results/<table>/<experiment>.json     what `gather.collect` makes of them
    reproduce/models/<experiment>/fold_0/           model and split of a fold, of experiments that are kept

nnU-Net has commands of its own; its masks of all folds, judged by `mednca evaluate`, are
`RUNS/<experiment>/report.json`, and its minutes of a fold, device, machine and parameters `provenance.json`
beside it.

A training that fails, because it gave up or its weights are not finite, is a result too: it is told, the
others go on, and it is not tried again unless its folder is removed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from mednca.errors import InputError, TrainingFailedError
from mednca.files import atomic_write, read_json
from reproduce.catalogue import Experiment
from reproduce.folds import Folds, load

if TYPE_CHECKING:
    from mednca.checkpoint import RunFolder
    from mednca.config import RunConfig
    from mednca.modelfile import ModelFile
    from mednca.recipes import Fingerprint

#: Quick mode: enough to see that an experiment runs, and what it will cost.
QUICK_ITERATIONS, QUICK_CASES = 30, 4
QUICK = "quick"
#: Where the tree has models of folds, and what of a run folder is there.
MODELS = Path(__file__).parent / "models"
KEPT = ("model.safetensors", "split.json")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """One run folder of an experiment: its seed, its fold, its split as split.json has it."""

    experiment: Experiment
    seed: int
    fold: str
    path: Path
    split: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether its held-out cases are judged."""
        return (self.path / "report.json").is_file() and self.failed is None

    @property
    def failed(self) -> str | None:
        """Why it failed; None where it did not, or is not done."""
        file = self.path / "failed.json"
        return str(read_json(file)["reason"]) if file.is_file() else None

    def state(self) -> str:
        """ "finished", "failed", "not started" or how far it is."""
        if self.failed is not None:
            return "failed"
        if self.finished:
            return "finished"
        if not (self.path / "config.json").is_file():
            return "not started"
        return "iteration {} of {}".format(*self.progress())

    def progress(self) -> tuple[int, int]:
        """Iterations done (as far as the log tells) and in all."""
        iterations = int(read_json(self.path / "config.json")["train"]["iterations"])
        log = self.path / "metrics.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        return (int(json.loads(lines[-1])["iteration"]) if lines else 0), iterations


def trainings(
    experiment: Experiment, runs: Path, *, quick: bool = False, folds: Folds | None = None, name: str = ""
) -> Iterator[Training]:
    """Experiment and folder of runs -> its trainings, seed by seed; quick mode has the first fold of the
    first seed only, and judges few cases. `name` is that of the data set as its `dataset.json` tells it."""
    parts = (folds or load(experiment.split)).parts(name)
    chosen = {fold: parts[fold] for fold in experiment.folds or parts}
    root = runs / QUICK / experiment.name if quick else runs / experiment.name
    for seed in experiment.seeds[:1] if quick else experiment.seeds:
        for fold, split in list(chosen.items())[: 1 if quick else None]:
            if quick or experiment.cases is not None:
                judged = QUICK_CASES if quick else experiment.cases
                split = split | {"validation": split["validation"][:judged]}
            yield Training(experiment, seed, fold, root / f"seed_{seed}" / fold, split)


def fold_models(experiment: Experiment, runs: Path) -> dict[str, Path]:
    """Experiment and folder of runs -> fold -> run folder of its first seed; where it is not finished, what
    the tree has of it (`keep`)."""
    found = {}
    for training in trainings(experiment, runs):
        kept = kept_model(training)
        if training.seed == experiment.seeds[0] and (training.finished or kept.is_dir()):
            found[training.fold] = training.path if training.finished else kept
    return found


def keep(experiment: Experiment, runs: Path) -> list[Path]:
    """Experiment and folder of runs -> models of its folds, and which cases each has not seen, copied into
    the tree."""
    made = []
    for training in trainings(experiment, runs):
        if training.seed == experiment.seeds[0] and training.finished:
            folder = kept_model(training)
            folder.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                atomic_write(folder / name, (training.path / name).read_bytes())
            made.append(folder)
    return made


def kept_model(training: Training) -> Path:
    """Training -> the folder of its model in the tree."""
    return MODELS / training.experiment.name / training.fold


def finished(experiment: Experiment, runs: Path) -> list[Training]:
    """Experiment -> the finished trainings of its first seed.

    Raises:
        InputError: If there are none.
    """
    done = [t for t in trainings(experiment, runs) if t.finished and t.seed == experiment.seeds[0]]
    if not done:
        raise InputError(f"{runs / experiment.name}: no finished run; train it first")
    return done


def configuration(experiment: Experiment, data: Fingerprint, seed: int, *, quick: bool = False) -> RunConfig:
    """Experiment, fingerprint of its data and a seed -> the complete configuration.

    Raises:
        InputError: If there is no such recipe, or its settings cannot be replaced so.
    """
    from mednca.config import RunConfig, from_dict, merged, to_dict
    from mednca.plan import with_fitting_start
    from mednca.recipes import recipe, with_classes

    kind, _, budget = experiment.recipe.partition(":")
    config = recipe("native" if kind == "plan" else kind, data, budget or None)
    if experiment.separate:
        config = with_classes(config, data.labels)
    config = from_dict(
        RunConfig, merged(to_dict(config), experiment.changes, experiment.name), experiment.name
    )
    config = with_fitting_start(config)
    train = replace(config.train, seed=seed)
    if quick:
        few = min(QUICK_ITERATIONS, train.iterations)
        train = replace(train, iterations=few, warmup=min(train.warmup, few // 3), validate_every=0)
    return replace(config, train=train)


def how(training: Training) -> dict[str, Any]:
    """Finished training -> where, how long, and what its watch had to do."""
    file, log = training.path / "provenance.json", training.path / "metrics.jsonl"
    told = read_json(file) if file.is_file() else {}
    minutes = told.get("minutes")
    if minutes is None and (training.path / "config.json").is_file():  # trained by `mednca train`
        ends = [(training.path / name).stat().st_mtime for name in ("config.json", "report.json")]
        minutes = round((ends[1] - ends[0]) / 60, 2)
    return {
        "minutes": minutes,
        "device": told.get("device", "cpu"),
        "machine": told.get("machine"),
        "events": [line for line in lines_of(log) if line["kind"] == "event"],
    }


def lines_of(log: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, there or not -> its lines."""
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []


# ---- Train ----


def run(
    experiment: Experiment,
    data_root: Path,
    runs: Path,
    *,
    quick: bool = False,
    device: str = "cpu",
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    folds: Folds | None = None,
    progress: bool = True,
) -> None:
    """Experiment, folder of the data sets and folder of runs -> its missing trainings, done one after the
    other.

    A stopped one goes on; one that fails is recorded as failed, and the next is trained. `only` names folds
    ("fold_0") to be trained, `seeds` the seeds; none trains all.

    Raises:
        InputError: If recipe, data or an existing run folder cannot be used.
    """
    from mednca.dataset import fingerprint, load_scans, measured
    from mednca.machine import machine
    from mednca.modelfile import load_model
    from mednca.train import finish, one_thread, open_run

    if experiment.by != "mednca":
        raise InputError(
            f"{experiment.name}: is trained by {experiment.by}'s own commands, see reproduce/README.md; "
            "--collect takes what they made"
        )
    folds = folds or load(experiment.split)
    cases = folds.cases(data_root)
    wanted = [
        training
        for training in trainings(experiment, runs, quick=quick, folds=folds, name=cases.name)
        if (not only or training.fold in only) and (not seeds or training.seed in seeds)
    ]
    if not wanted:
        raise InputError(
            f"--fold must be one of {', '.join(experiment.folds or folds.held_out)} and --seed one of "
            f"{', '.join(map(str, experiment.seeds))}, got {', '.join([*only, *map(str, seeds)])}"
        )
    wanted = [
        training
        for training in wanted
        if training.failed is None and not (training.finished and (training.path / "extra.json").is_file())
    ]
    if not wanted:
        return
    scans = load_scans(cases.cases)
    data = fingerprint(cases, scans)
    for training in wanted:
        config = configuration(experiment, data, training.seed, quick=quick)
        seen = set(training.split["training"])
        config = measured(config, [scan for scan in scans if scan.id in seen])
        begin = None
        if experiment.start:
            folder_of_start = training.path.parents[2] / experiment.start
            begin = load_model(folder_of_start / f"seed_{training.seed}" / training.fold)
            config = replace(config, train=replace(config.train, init=begin.hash))
        folder = open_run(training.path, config, training.split, begin, resume=True, force=False)
        was_finished, started = training.finished, time.perf_counter()
        try:
            with one_thread():
                finish(folder, cases, scans, device=device, engine="auto", progress=progress)
        except TrainingFailedError as error:
            fail(training, str(error))
        except (InputError, ValueError):
            if not_finite(folder) is None:
                raise
        finally:
            if not was_finished:
                note(training.path, (time.perf_counter() - started) / 60, device, machine())
        if training.failed is None and (reason := not_finite(folder)) is not None:
            fail(training, reason)
        if training.failed is not None:
            continue
        if not (training.path / "extra.json").is_file():
            found = extra(experiment, training, cases.root)
            atomic_write(training.path / "extra.json", json.dumps(found, indent=1) + "\n")


def fail(training: Training, reason: str) -> None:
    """Training and the reason for which it failed -> failed.json, and a line in the log."""
    atomic_write(training.path / "failed.json", json.dumps({"reason": reason}, indent=1) + "\n")
    _log.warning("%s: failed: %s", training.path, reason)


def not_finite(folder: RunFolder) -> str | None:
    """Run folder -> since when loss or gradient, or else the weights, are inf or nan; None where they are
    not."""
    lines = [line for line in lines_of(folder.metrics) if line["kind"] == "train"]
    good = [math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"]) for line in lines]
    if lines and not good[-1]:
        return (
            f"loss or gradient not finite, first logged at iteration {lines[good.index(False)]['iteration']}"
        )
    if folder.model.is_file():
        weights = safetensors.numpy.load_file(folder.model)
        if not all(np.isfinite(values).all() for values in weights.values()):
            return "weights not finite"
    return None


def note(path: Path, minutes: float, device: str, here: dict[str, Any]) -> None:
    """Run folder, minutes of a session and the machine -> provenance.json, with the minutes of earlier
    sessions added."""
    file = path / "provenance.json"
    before = read_json(file) if file.is_file() else {"minutes": 0.0, "sessions": 0}
    told = {
        "minutes": round(before["minutes"] + minutes, 4),
        "sessions": before["sessions"] + 1,
        "device": device_name(device),
        "machine": here,
    }
    atomic_write(file, json.dumps(told, indent=1) + "\n")


def device_name(device: str) -> str:
    """ "cpu" -> "cpu"; "cuda" -> the name of the card."""
    if device == "cpu":
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def extra(experiment: Experiment, training: Training, root: Path) -> dict[str, dict[str, float]]:
    """Trained run -> case -> scores beyond those of the report.

    `soft_slices` is the paper's Dice where a recipe stretches slices as the paper does, whole ones: soft, on
    the stretched slices. The fetal head has its circumference; see `circumference.py`."""
    from mednca.cases import find_cases
    from mednca.modelfile import load_model
    from reproduce.circumference import circumferences
    from reproduce.official import score

    model: ModelFile = load_model(training.path)
    by_id = {case.id: case for case in find_cases(root).cases}
    held_out = [by_id[name] for name in training.split["validation"]]
    found: dict[str, dict[str, float]] = {case.id: {} for case in held_out}
    seen = model.config.preprocess
    if seen.size is not None and seen.roi is None and model.config.merge:
        for case in held_out:
            found[case.id]["soft_slices"] = round(score(model, case)["soft64"], 5)
    if experiment.split == "fetal_head":
        for name, values in circumferences(model, held_out, root).items():
            found[name] |= values
    return found
