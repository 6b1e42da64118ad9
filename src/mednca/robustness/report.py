"""Scores of perturbed cases -> the report card: statistics for each severity, areas, differences, a page of
text.

All is paired over cases: a case's score at a severity is the mean over the seeds, its difference that to the
same case unperturbed, or to the same perturbed case as the baseline saw it. Intervals are `report.py`'s, a
bootstrap that draws persons. The area under the curve of a case is that of Dice over the severity, the
unperturbed case included, divided by the range; factors lie on a logarithmic axis.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mednca.cases import Case
from mednca.perturb import PERTURBATIONS, Perturbation
from mednca.report import MERGED, Report, paired_difference, summarise
from mednca.robustness import CLEAN, FORMAT, VERSION, Contender, Job, Key, Scores

#: Draws of the bootstrap: there are many intervals, and their third digit does not matter.
RESAMPLES = 2000
#: An organ counts as in view where this share of its label is.
IN_VIEW = 0.99

#: Case -> a number.
Values = dict[str, float]


def card(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    jobs: Sequence[Job],
    scores: Scores,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Contenders (the model, then maybe its baseline), cases, jobs, scores and how they were measured -> the
    content of report.json.

    It depends on the scores alone, not on the order in which they came or on their seconds.
    """
    groups = {case.id: str(case.group or case.id) for case in cases}
    asked = {job.perturbation for job in jobs}
    chosen = [one for one in PERTURBATIONS if one.name in asked]
    severities = {
        one.name: sorted({job.severity for job in jobs if job.perturbation == one.name}) for one in chosen
    }
    values = [_values(one, cases, jobs, scores) for one in contenders]
    told: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": dict(provenance),
        "cases": len(cases),
        "persons": len(set(groups.values())),
        "models": [
            {
                "name": one.name,
                "hash": one.hash,
                "notes": list(one.notes),
                "clean": _statistics(found[CLEAN, 0.0], groups),
            }
            for one, found in zip(contenders, values, strict=True)
        ],
        "perturbations": {
            one.name: _perturbation(
                one, severities[one.name], cases, contenders, values, scores, jobs, groups
            )
            for one in chosen
        },
    }
    if len(values) == 2:
        told["difference_clean"] = paired(values[0][CLEAN, 0.0], values[1][CLEAN, 0.0], groups)
    report: dict[str, Any] = rounded(told)
    return report


def _perturbation(
    one: Perturbation,
    severities: Sequence[float],
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    values: Sequence[Mapping[tuple[str, float], Values]],
    scores: Scores,
    jobs: Sequence[Job],
    groups: Mapping[str, str],
) -> dict[str, Any]:
    """A perturbation -> what is told of it: for each severity and model statistics, and areas."""
    rows = []
    for severity in severities:
        name = (one.name, severity)
        kept = _kept(contenders[0], one.name, severity, cases, jobs, scores)
        seen = [case for case, share in kept.items() if share >= IN_VIEW]
        row: dict[str, Any] = {
            "severity": severity,
            "kept": statistics.fmean(kept.values()),
            "in_view": len(seen),
            "models": [],
        }
        for found in values:
            here, clean = found[name], found[CLEAN, 0.0]
            entry = _statistics(here, groups) | {"change": paired(here, clean, groups)}
            if seen and len(seen) < len(kept):
                entry["change_in_view"] = paired(
                    {case: here[case] for case in seen}, {case: clean[case] for case in seen}, groups
                )
            row["models"].append(entry)
        if len(values) == 2:
            row["difference"] = paired(values[0][name], values[1][name], groups)
        rows.append(row)
    areas = [_areas(one, severities, found) for found in values]
    told: dict[str, Any] = {
        "kind": one.kind,
        "parameter": one.parameter,
        "neutral": one.neutral,
        "severities": rows,
        "area": [_statistics(area, groups) for area in areas],
        "worst": [
            min(
                ({"severity": row["severity"], **row["models"][at]} for row in rows),
                key=lambda entry: float(entry["mean"]),
            )["severity"]
            for at in range(len(values))
        ],
    }
    if len(areas) == 2:
        told["area_difference"] = paired(areas[0], areas[1], groups)
    return told


def _values(
    one: Contender, cases: Sequence[Case], jobs: Sequence[Job], scores: Scores
) -> dict[tuple[str, float], Values]:
    """Contender -> (perturbation, severity) -> case -> Dice, the mean over the seeds."""
    found: dict[tuple[str, float], dict[str, list[float]]] = {}
    for job in jobs:
        rows = found.setdefault((job.perturbation, job.severity), {})
        for case in cases:
            rows.setdefault(case.id, []).append(scores[one.key(case.id, job)].dice)
    return {name: {case: statistics.fmean(row) for case, row in rows.items()} for name, rows in found.items()}


def _kept(
    one: Contender,
    name: str,
    severity: float,
    cases: Sequence[Case],
    jobs: Sequence[Job],
    scores: Scores,
) -> Values:
    """Perturbation and severity -> case -> share of its label in view, the mean over the seeds."""
    these = [job for job in jobs if (job.perturbation, job.severity) == (name, severity)]
    return {
        case.id: statistics.fmean(scores[Key(case.id, *job, one.hashes[case.id])].kept for job in these)
        for case in cases
    }


def _areas(
    one: Perturbation, severities: Sequence[float], found: Mapping[tuple[str, float], Values]
) -> Values:
    """Perturbation and case -> Dice at each severity -> case -> area under the curve, over the range."""
    curve = sorted(
        [
            (one.position(one.neutral), found[CLEAN, 0.0]),
            *((one.position(s), found[one.name, s]) for s in severities),
        ],
        key=lambda point: point[0],
    )
    range_ = curve[-1][0] - curve[0][0]
    return {
        case: sum((x1 - x0) * (at0[case] + at1[case]) / 2 for (x0, at0), (x1, at1) in pairwise(curve))
        / range_
        for case in found[CLEAN, 0.0]
    }


def _statistics(values: Values, groups: Mapping[str, str]) -> dict[str, Any]:
    """Case -> value -> mean, sd, interval of the mean, and the worst case by name."""
    report = _report(values, groups)
    row = summarise(report.cases, report.groups, resamples=RESAMPLES)[MERGED]["dice"]
    worst = min(values, key=lambda case: (values[case], case))
    return {
        **{name: row[name] for name in ("mean", "sd", "median", "min", "ci95", "n")},
        "worst_case": worst,
    }


def paired(here: Values, there: Values, groups: Mapping[str, str]) -> dict[str, Any]:
    """Two values of each case -> mean of here - there, with its interval."""
    row = paired_difference(_report(here, groups), _report(there, groups), "dice", resamples=RESAMPLES)
    return {name: row[name] for name in ("mean", "ci95", "min", "n")}


def _report(values: Values, groups: Mapping[str, str]) -> Report:
    cases = {case: {MERGED: {"dice": value}} for case, value in values.items()}
    return Report(cases, {}, {}, {case: groups[case] for case in values})


def rounded(content: Any) -> Any:
    """What goes into JSON -> the same with five digits after the point, and null for what is no number."""
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    if isinstance(content, float):
        return round(content, 5) if math.isfinite(content) else None
    return content


# ---- A page of text ----


def title(name: str) -> str:
    """ "bias_field" -> "Bias field"."""
    return name.replace("_", " ").capitalize()


def points(row: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    """Difference -> "-3.1 (-4.0 to -2.2)", in points of 0.01 Dice; nothing for none."""
    if row is None or row["mean"] is None:
        return ""
    low, high = row["ci95"]
    told = f"{100 * row['mean']:+.1f}"
    return told if low is None or not interval else f"{told} ({100 * low:+.1f} to {100 * high:+.1f})"


def decimals(value: float | None) -> str:
    """A score -> three digits."""
    return "" if value is None else f"{value:.3f}"


def summary(report: Mapping[str, Any]) -> str:
    """Content of report.json -> one page of Markdown: a row for each perturbation."""
    models = report["models"]
    baseline = len(models) == 2
    head = [
        "perturbation",
        "severities",
        "area under the curve",
        "worst severity",
        "mean there",
        "change, points",
    ]
    head += ["least case", *(["area - baseline's, points", "worst - baseline's, points"] if baseline else [])]
    rows = []
    for name, one in report["perturbations"].items():
        worst = worst_row(one, 0)
        entry = worst["models"][0]
        cells = [
            title(name),
            f"{one['severities'][0]['severity']:g} to {one['severities'][-1]['severity']:g}",
            decimals(one["area"][0]["mean"]),
            f"{worst['severity']:g}",
            decimals(entry["mean"]),
            points(entry["change"]),
            decimals(entry["min"]),
        ]
        if baseline:
            cells += [points(one["area_difference"]), points(worst["difference"])]
        rows.append(cells)
    lines = [f"# Robustness of {models[0]['name']}", ""]
    for role, model in zip(("Model", "Baseline"), models, strict=False):
        clean = model["clean"]
        lines.append(
            f"{role}: {model['name']} (`{model['hash']}`), unperturbed Dice {decimals(clean['mean'])} ± "
            f"{decimals(clean['sd'])}, least {decimals(clean['min'])}."
        )
        lines += [f"*{note[0].upper()}{note[1:]}.*" for note in model["notes"]]
        lines.append("")
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *explanation(report)]
    return "\n".join(lines) + "\n"


def worst_row(one: Mapping[str, Any], model: int) -> dict[str, Any]:
    """A perturbation of the report and the number of a model -> the row of its worst severity."""
    row: dict[str, Any] = next(r for r in one["severities"] if r["severity"] == one["worst"][model])
    return row


def explanation(report: Mapping[str, Any]) -> list[str]:
    """Content of report.json -> what a reader must know of its numbers."""
    told = report["provenance"]
    mode = "Quick mode: some severities, " if told["quick"] else "All severities, "
    return [
        f"{mode}{report['cases']} cases of {report['persons']} persons from {told['data']}, {told['seeds']} "
        "seed(s). Dice of all foreground together, on the grid of the perturbed image. Change: mean of the "
        "paired difference to the same case unperturbed, in points of 0.01, with the 95 % interval of a "
        "bootstrap that draws persons. Area: Dice over the severity, the unperturbed case included, divided "
        "by the range. What each severity is stands in report.json and in docs/reference/perturbations.md.",
    ]
