"""The runs of the experiments: train what is missing, tell how far each is, gather what was measured.

::

    RUNS/<experiment>/seed_0/fold_0/     a run folder of mednca, and beside its files
        provenance.json                  machine, versions, minutes
        extra.json                       scores that only some experiments have, per case
        failed.json                      instead: why the training failed
    RUNS/quick/...                       the same of quick mode: few iterations, never mixed with the others
    reproduce/results/<table>/<experiment>.json     what `collect` makes of them

nnU-Net has commands of its own; its masks of all folds, judged by `mednca evaluate`, are
`RUNS/<experiment>/report.json`, and its minutes of a fold, device, machine and parameters `provenance.json`
beside it.

A training that fails, because it gave up or its weights are not finite, is a result too: it is told, the
others go on, and it is not tried again unless its folder is removed."""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from mednca.errors import InputError, TrainingFailedError
from mednca.files import atomic_write, read_json
from mednca.report import MERGED, Report, summarise
from reproduce import catalogue
from reproduce.catalogue import Experiment
from reproduce.folds import Folds, load

if TYPE_CHECKING:
    from mednca.checkpoint import RunFolder
    from mednca.config import RunConfig
    from mednca.modelfile import ModelFile
    from mednca.recipes import Fingerprint

RESULTS = Path(__file__).parent / "results"
FORMAT, VERSION = "mednca-experiment", 1
#: What is kept of a case's scores, per region.
KEPT = ("dice", "soft_dice", "soft_slices", "nsd", "hd95_mm", "assd_mm")
#: Quick mode: enough to see that an experiment runs, and what it will cost.
QUICK_ITERATIONS, QUICK_CASES = 30, 4
QUICK = "quick"

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


def configuration(experiment: Experiment, data: Fingerprint, seed: int, *, quick: bool = False) -> RunConfig:
    """Experiment, fingerprint of its data and a seed -> the complete configuration.

    Raises:
        InputError: If there is no such recipe, or its settings cannot be replaced so.
    """
    from mednca.config import RunConfig, from_dict, merged, to_dict
    from mednca.plan import plan, with_fitting_start
    from mednca.recipes import recipe, with_classes

    kind, _, budget = experiment.recipe.partition(":")
    config = plan(data, budget).config if kind == "plan" else recipe(experiment.recipe, data)
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
    from mednca.dataset import fingerprint, load_scans
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
    lines = [line for line in _lines(folder.metrics) if line["kind"] == "train"]
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

    `soft_slices` is the paper's Dice where a recipe stretches slices as the paper does: soft, on the
    stretched slices. The fetal head has its circumference; see `circumference.py`."""
    from mednca.cases import find_cases
    from mednca.modelfile import load_model
    from reproduce.circumference import circumferences
    from reproduce.official import score

    model: ModelFile = load_model(training.path)
    by_id = {case.id: case for case in find_cases(root).cases}
    held_out = [by_id[name] for name in training.split["validation"]]
    found: dict[str, dict[str, float]] = {case.id: {} for case in held_out}
    if model.config.preprocess.size is not None and model.config.merge:
        for case in held_out:
            found[case.id]["soft_slices"] = round(score(model, case)["soft64"], 5)
    if experiment.split == "fetal_head":
        for name, values in circumferences(model, held_out, root).items():
            found[name] |= values
    return found


# ---- Gather ----


def collect(experiment: Experiment, runs: Path, *, quick: bool = False) -> dict[str, Any] | None:
    """Experiment and folder of runs -> its result as stored in JSON; None where nothing is finished.

    Raises:
        InputError: If the folders hold runs of different configurations, or of other cases.
    """
    folds = load(experiment.split)
    if experiment.by == "nnunet":
        deal(experiment, runs, folds)
    done, missing, told = [], [], {}
    settings: dict[str, Any] | None = None
    scores: dict[str, dict[str, Any]] = {}
    for training in trainings(experiment, runs, quick=quick, folds=folds):
        label = f"seed_{training.seed}/{training.fold}"
        if training.failed is not None:
            settings = _same_settings(settings, training)
            told[label] = _how(training) | {"failed": training.failed}
            continue
        if not training.finished:
            missing.append(f"{label}: {training.state()}")
            continue
        report = Report.from_json(
            (training.path / "report.json").read_text(encoding="utf-8"), name=str(training.path)
        )
        if report.cases.keys() != set(training.split["validation"]):
            raise InputError(
                f"{training.path / 'report.json'}: expected the {len(training.split['validation'])} cases of "
                f"{training.fold} of {experiment.split}, got others; remove the folder and run again"
            )
        more = training.path / "extra.json"
        extras = read_json(more) if more.is_file() else {}
        for case, regions in report.cases.items():
            entry = scores.setdefault(
                case, {"group": folds.persons[case], "fold": training.fold, "scores": {}}
            )
            entry["scores"][str(training.seed)] = kept(regions, extras.get(case, {}))
        settings = _same_settings(settings, training)
        told[label] = _how(training)
        done.append(training)
    if not told:
        return None
    versions = None  # where every training failed nothing was judged
    if done:
        versions = (
            report.provenance.get("versions") or next(iter(report.provenance["folds"].values()))["versions"]
        )
    result = {
        "format": FORMAT,
        "version": VERSION,
        "mode": "quick" if quick else "full",
        "experiment": asdict(experiment),
        "data": folds.split.data,
        "protocol": folds.split.protocol,
        "held_out_folds": len(folds.held_out),
        "parameters": _parameters(done[0].path) if done else None,
        "missing": missing,
        "provenance": {
            "command": command(experiment, quick=quick),
            "split": f"reproduce/folds/{experiment.split}.json",
            "versions": versions,
            "runs": told,
        },
        "config": settings,
    }
    cases = dict(sorted(scores.items()))
    averaged = mean_report(cases)
    result["summary"] = {
        region: {metric: _rounded(row) for metric, row in rows.items()}
        for region, rows in (summarise(averaged.cases, averaged.groups) if cases else {}).items()
    }
    result["seeds"] = {
        str(seed): {
            metric: round(statistics.fmean(values), 5)
            for metric in ("dice", "soft_dice", "soft_slices")
            if (values := _values(cases, str(seed), metric))
        }
        for seed in sorted({training.seed for training in done})
    }
    result["cases"] = cases
    return result


def deal(experiment: Experiment, runs: Path, folds: Folds) -> None:
    """RUNS/<experiment>/report.json, nnU-Net's masks of all folds as `mednca evaluate` judged them, and
    provenance.json beside it -> the same for each fold, in its place.

    Raises:
        InputError: If nnU-Net was not trained on the stored folds.
    """
    file = runs / experiment.name / "report.json"
    if not file.is_file():
        return
    report = Report.from_json(file.read_text(encoding="utf-8"), name=str(file))
    told = file.with_name("provenance.json")
    for fold, ids in folds.held_out.items():
        if {case for case, name in report.folds.items() if name == fold} != set(ids):
            raise InputError(
                f"{file}: {fold} must hold out the {len(ids)} cases of the stored split {experiment.split}, "
                "got others; export the data set with the same folds and --group"
            )
        path = runs / experiment.name / f"seed_{experiment.seeds[0]}" / fold
        part = replace(
            report,
            cases={case: report.cases[case] for case in ids},
            groups={case: report.groups[case] for case in ids},
            folds={},
            provenance=report.provenance["folds"][fold],
        )
        atomic_write(path / "report.json", part.to_json())
        if told.is_file():
            atomic_write(path / "provenance.json", told.read_bytes())


def kept(
    regions: dict[str, dict[str, float]], extras: dict[str, float]
) -> dict[str, dict[str, float | None]]:
    """Scores of a case and its extra ones -> what the result keeps, rounded; nan becomes None."""
    found: dict[str, dict[str, float | None]] = {}
    for region, values in regions.items():
        found[region] = {name: _number(values[name]) for name in KEPT if name in values}
    found[MERGED] |= {name: _number(value) for name, value in extras.items()}
    return found


def mean_report(cases: dict[str, Any], seeds: Collection[str] | None = None) -> Report:
    """Cases of a result -> a report with each case's scores averaged over the seeds that judged it, or over
    the given ones; a case that none of them judged is left out."""
    averaged: dict[str, dict[str, dict[str, float]]] = {}
    for name, entry in cases.items():
        runs = [row for seed, row in entry["scores"].items() if seeds is None or seed in seeds]
        if not runs:
            continue
        averaged[name] = {
            region: {
                metric: statistics.fmean(
                    float("nan") if row[region].get(metric) is None else row[region][metric] for row in runs
                )
                for metric in values
            }
            for region, values in runs[0].items()
        }
    groups = {name: cases[name]["group"] for name in averaged}
    folds = {name: cases[name]["fold"] for name in averaged}
    return Report(averaged, {}, {"tolerance_mm": 1.0}, groups, folds)


def result_path(experiment: Experiment, results: Path = RESULTS) -> Path:
    """Experiment -> where its result is stored."""
    return results / catalogue.table_of(experiment) / f"{experiment.name}.json"


def read_result(path: Path, *, quick: bool = False) -> dict[str, Any] | None:
    """Path -> a stored result, None where there is none.

    Raises:
        InputError: If it is none of this version, or of the other mode: quick and full are never mixed.
    """
    if not path.is_file():
        return None
    result: dict[str, Any] = read_json(path)
    if (result.get("format"), result.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: expected {FORMAT} version {VERSION}; collect it again")
    wanted = "quick" if quick else "full"
    if result["mode"] != wanted:
        raise InputError(f"{path}: is a result of {result['mode']} mode, expected {wanted}; remove it")
    return result


def command(experiment: Experiment, *, quick: bool = False) -> str:
    """Experiment -> the command that makes its result."""
    words = f"python reproduce/{catalogue.table_of(experiment)}.py DATA_ROOT --only {experiment.name}"
    return words + (" --quick" if quick else "")


# ---- What it costs ----


def cost(experiment: Experiment, runs: Path, results: Path = RESULTS) -> float | None:
    """Experiment -> core-minutes of what is missing of it; None where nothing tells.

    A training costs the median of what stored or finished ones took, else what the catalogue says.
    """
    result = read_result(result_path(experiment, results))
    stored = set(result["provenance"]["runs"]) if result else set()
    left, per_run = 0.0, _minutes_per_run(experiment, runs, result)
    for training in trainings(experiment, runs):
        there = training.finished or training.failed is not None
        if there or f"seed_{training.seed}/{training.fold}" in stored:
            continue
        started = (training.path / "config.json").is_file()
        done, of = training.progress() if started else (0, 1)
        left += 1 - done / of
    if not left:
        return 0.0
    return None if per_run is None else left * per_run


def _minutes_per_run(experiment: Experiment, runs: Path, result: dict[str, Any] | None) -> float | None:
    measured = [row["minutes"] for row in result["provenance"]["runs"].values()] if result else []
    measured += [_how(training)["minutes"] for training in trainings(experiment, runs) if training.finished]
    measured = [minutes for minutes in measured if minutes]
    return statistics.median(measured) if measured else experiment.minutes


def _how(training: Training) -> dict[str, Any]:
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
        "events": [line for line in _lines(log) if line["kind"] == "event"],
    }


def _lines(log: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, there or not -> its lines."""
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []


def _same_settings(settings: dict[str, Any] | None, training: Training) -> dict[str, Any] | None:
    """Settings of the runs so far and one more run -> the settings without its seed; all must be the same,
    but for the model that each fold begins with."""
    from mednca.config import RunConfig, from_dict, to_dict

    file = training.path / "config.json"
    if not file.is_file():
        return settings
    # By way of the configuration: settings that are younger than the run have their defaults.
    config = to_dict(from_dict(RunConfig, read_json(file), str(file)))
    found: dict[str, Any] = json.loads(json.dumps(config))
    seed = found["train"].pop("seed")
    if seed != training.seed:
        raise InputError(f"{file}: must have seed {training.seed} as its folder says, got {seed}")
    if training.experiment.start:
        found["train"]["init"] = training.experiment.start
    if settings is not None and found != settings:
        raise InputError(f"{file}: has other settings than the other runs of this experiment; remove them")
    return found


def _parameters(path: Path) -> int | None:
    """Run folder -> number of weights of its model; None for what has no model of ours."""
    from mednca.modelfile import load_model

    if (path / "model.safetensors").is_file():
        return load_model(path).parameters
    told = path / "provenance.json"
    return read_json(told).get("parameters") if told.is_file() else None


def _values(cases: dict[str, Any], seed: str, metric: str) -> list[float]:
    found = (entry["scores"].get(seed, {}).get(MERGED, {}).get(metric) for entry in cases.values())
    return [value for value in found if value is not None]


def _number(value: float) -> float | None:
    return round(value, 5) if value == value else None


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [_number(v) for v in value]
        if isinstance(value, list)
        else _number(value)
        if isinstance(value, float)
        else value
        for key, value in row.items()
    }


# ---- The command line of a table ----


def command_line(
    description: str,
    experiments: tuple[Experiment, ...],
    draw: Callable[[Path, bool], Sequence[Path]],
    words: Sequence[str] | None = None,
) -> int:
    """What a script of a table does: train what is missing, gather, draw. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?", help="folder that holds the data sets, to train")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="where results go (default: the tree's)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="experiments, or beginnings")
    parser.add_argument("--fold", nargs="+", default=[], metavar="FOLD", help="train these folds only")
    parser.add_argument("--seed", nargs="+", default=[], type=int, metavar="N", help="train these seeds only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a few iterations, kept apart under RUNS/quick")
    parser.add_argument("--collect", action="store_true", help="train nothing, gather what there is")
    parser.add_argument("--draw", action="store_true", help="train and gather nothing, draw stored results")
    asked = parser.parse_args(words)
    if asked.data_root is None and not asked.collect and not asked.draw:
        parser.error("DATA_ROOT is needed to train; or give --collect or --draw")
    results = asked.results or (asked.runs / QUICK / "results" if asked.quick else RESULTS)
    failed = 0
    try:
        chosen = catalogue.find(asked.only, experiments)
        for experiment in () if asked.draw else chosen:
            try:
                if not asked.collect:
                    run(
                        *(experiment, asked.data_root, asked.runs),
                        quick=asked.quick,
                        device=asked.device,
                        only=asked.fold,
                        seeds=asked.seed,
                    )
                result = collect(experiment, asked.runs, quick=asked.quick)
                if result is not None:
                    write_result(result_path(experiment, results), result)
            except InputError as error:
                failed += 1
                print(f"{experiment.name}: not run: {error}", file=sys.stderr)
        for path in draw(results, asked.quick):
            print(path)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Result -> its file; one with fewer runs never replaces one with more.

    Raises:
        InputError: If the stored one has runs that this one lacks.
    """
    stored = read_result(path, quick=result["mode"] == "quick")
    if stored and (lost := stored["provenance"]["runs"].keys() - result["provenance"]["runs"].keys()):
        raise InputError(
            f"{path}: the stored result has runs that are not under --runs, as {sorted(lost)[0]}; "
            "collect where they are, or remove the file"
        )
    atomic_write(path, json.dumps(result, indent=1) + "\n")
