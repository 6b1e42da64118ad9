"""What finished runs measured -> the result of an experiment, as it is stored."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.report import MERGED, Report, summarise
from reproduce.catalogue import Experiment
from reproduce.folds import Folds, load
from reproduce.runs import Training, how, trainings
from reproduce.stored import FORMAT, VERSION, command

#: Settings that are measured on the scans of each training, by their part.
MEASURED = (("preprocess", "field"), ("predict", "sizes"), ("predict", "spectrum"), ("predict", "coarse"))
#: What is kept of a case's scores, per region.
KEPT = ("dice", "soft_dice", "soft_slices", "nsd", "hd95_mm", "assd_mm")


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
            told[label] = how(training) | {"failed": training.failed}
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
        told[label] = how(training)
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
    return summarised(result, scores)


def summarised(result: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """What is told of runs, and the scores of cases -> the result: with statistics over them, and the
    cases."""
    cases = dict(sorted(scores.items()))
    averaged = mean_report(cases)
    summary = summarise(averaged.cases, averaged.groups) if cases else {}
    seeds = sorted({int(seed) for entry in cases.values() for seed in entry["scores"]})
    return result | {
        "summary": {
            region: {metric: _rounded(row) for metric, row in rows.items()}
            for region, rows in summary.items()
        },
        "seeds": {
            str(seed): {
                metric: round(statistics.fmean(values), 5)
                for metric in ("dice", "soft_dice", "soft_slices")
                if (values := _values(cases, str(seed), metric))
            }
            for seed in seeds
        },
        "cases": cases,
    }


def joined(stored: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """The stored result of an experiment, if there is one, and what was collected now -> both in one, as runs
    may be on several machines; of a run that both have, what was collected now.

    Raises:
        InputError: If they are of different settings.
    """
    before = stored["provenance"]["runs"] if stored else {}
    if stored is None or not before.keys() - found["provenance"]["runs"].keys():
        return found
    if _with_defaults(stored["config"]) != _with_defaults(found["config"]):
        raise InputError(
            "the stored result is of other settings than these runs, and has runs that are not here, as "
            f"{min(before.keys() - found['provenance']['runs'].keys())}; remove it, or train those again"
        )
    told = dict(sorted((before | found["provenance"]["runs"]).items()))
    scores = {case: {**entry, "scores": dict(entry["scores"])} for case, entry in stored["cases"].items()}
    for case, entry in found["cases"].items():
        scores.setdefault(case, {**entry, "scores": {}})["scores"].update(entry["scores"])
    missing = [line for line in found["missing"] if line.partition(":")[0] not in told]
    provenance = found["provenance"] | {"runs": told}
    return summarised(found | {"missing": missing, "provenance": provenance}, scores)


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


def _same_settings(settings: dict[str, Any] | None, training: Training) -> dict[str, Any] | None:
    """Settings of the runs so far and one more run -> the settings without its seed; all must be the same,
    but for the model that each fold begins with and what is measured on its training scans."""
    from mednca.config import RunConfig, from_dict, to_dict

    file = training.path / "config.json"
    if not file.is_file():
        return settings
    # By way of the configuration: settings that are younger than the run have their defaults.
    config = to_dict(from_dict(RunConfig, read_json(file), str(file)))
    found: dict[str, Any] = json.loads(json.dumps(config))
    for part, name in MEASURED:
        found[part][name] = None if found[part][name] is None else []
    seed = found["train"].pop("seed")
    if seed != training.seed:
        raise InputError(f"{file}: must have seed {training.seed} as its folder says, got {seed}")
    if training.experiment.start:
        found["train"]["init"] = training.experiment.start
    if settings is not None and found != settings:
        raise InputError(f"{file}: has other settings than the other runs of this experiment; remove them")
    return found


def _with_defaults(settings: dict[str, Any] | None) -> dict[str, Any]:
    """Settings as a result has them -> with those that are younger than it, at their defaults."""
    from mednca.config import RunConfig, to_dict

    every: dict[str, Any] = json.loads(json.dumps(to_dict(RunConfig())))
    for name, value in (settings or {}).items():
        part = every.get(name)
        every[name] = {**part, **value} if isinstance(part, dict) and isinstance(value, dict) else value
    every["train"].pop("seed", None)
    return every


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
