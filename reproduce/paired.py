"""Ours against others, case by case: mean paired difference with a bootstrap interval.

    python reproduce/paired.py        writes reproduce/results/paired.json and paired.md from stored results

The interval is `mednca.report.paired_difference`'s: percentiles of 10,000 resamples, seed 0, that draw
*persons*, since two volumes of one are not independent; scipy.stats.bootstrap would draw volumes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.report import MERGED, Report, paired_difference
from reproduce import folds
from reproduce.catalogue import find
from reproduce.gather import mean_report
from reproduce.stored import RESULTS, read_result, result_path
from reproduce.tables import markdown

#: The authors' checkpoint as official.py measured it: a stored result in the place of an experiment.
AUTHORS = "the authors' checkpoint"
#: The same as listed beside it, by their own code.
LISTED = "the authors' checkpoint as listed"


@dataclass(frozen=True)
class Comparison:
    """a minus b in a metric, on the cases of a."""

    a: str
    b: str
    metric: str = "dice"


COMPARISONS = (
    Comparison("hippocampus_best", "hippocampus_unet"),
    Comparison("hippocampus_best_authors", "hippocampus_unet_authors"),
    Comparison("hippocampus_best_authors", "hippocampus_unet_plain"),
    Comparison("hippocampus_best_authors", "hippocampus_unet_large_authors"),
    Comparison("hippocampus_best_authors", "hippocampus_med_nca"),
    Comparison("hippocampus_lean", "hippocampus_unet"),
    Comparison("hippocampus_robust", "hippocampus_best"),
    Comparison("hippocampus_robust", "hippocampus_unet"),
    Comparison("hippocampus_best", "hippocampus_nnunet_2d"),
    Comparison("hippocampus_best", "hippocampus_nnunet_3d_fullres"),
    Comparison("hippocampus_best_authors", AUTHORS),
    Comparison("hippocampus_best_authors_long", AUTHORS),
    Comparison("hippocampus_best_authors_long", LISTED),
    Comparison("hippocampus_lean_authors", AUTHORS),
    Comparison("prostate_best", "prostate_unet"),
    Comparison("prostate_robust", "prostate_best"),
    Comparison("fetal_head_best", "fetal_head_unet"),
    Comparison("lungs_best", "lungs_unet"),
    Comparison("nuclei_best", "nuclei_unet"),
    *(Comparison(f"{organ}_robust", f"{organ}_best") for organ in ("fetal_head", "lungs", "nuclei")),
)


def paired(a: Report, b: Report, metric: str) -> dict[str, Any]:
    """Two reports on the same cases -> statistics of a - b per case; see
    `mednca.report.paired_difference`."""
    return paired_difference(a, b, metric, seed=0, resamples=10_000)


def restricted(report: Report, cases: Collection[str]) -> Report:
    """Report -> the same on some of its cases.

    Raises:
        InputError: If it lacks one of them.
    """
    if lost := sorted(set(cases) - report.cases.keys()):
        raise InputError(f"case {lost[0]} is not among the {len(report.cases)} measured ones")
    chosen = {name: report.cases[name] for name in cases}
    groups = {name: report.groups[name] for name in cases}
    return Report(chosen, {}, report.provenance, groups, {})


def authors(results: Path = RESULTS, which: str = "scores") -> Report:
    """Folder of results -> the authors' checkpoint on every case of Task04: hard Dice on the native grid as
    "dice", their own soft Dice as "soft_slices". "scores" are those of our pipeline, "expected_scores" those
    listed beside the checkpoint."""
    scores = read_json(results / "official.json")[which]
    persons = folds.load("hippocampus_by_person").persons
    cases = {
        name: {MERGED: {"dice": row["native"], "soft_slices": row["soft64"]}} for name, row in scores.items()
    }
    return Report(cases, {}, {}, {name: persons[name] for name in cases}, {})


def compare(comparison: Comparison, results: Path = RESULTS) -> dict[str, Any] | str:
    """Comparison -> its statistics, or "not run: reason"."""
    reports = []
    for name in (comparison.a, comparison.b):
        if name in (AUTHORS, LISTED):
            which = "scores" if name == AUTHORS else "expected_scores"
            reports.append(restricted(authors(results, which), reports[0].cases.keys()))
            continue
        result = read_result(result_path(find([name])[0], results))
        if result is None:
            return f"not run: {name} has no result"
        if result["missing"]:
            return f"not run: {len(result['missing'])} trainings of {name} are missing"
        reports.append(mean_report(result["cases"]))
    return paired(reports[0], restricted(reports[1], reports[0].cases), comparison.metric)


def interval(row: dict[str, Any]) -> str:
    """Statistics of a difference -> "+0.010, 95 % interval +0.002 to +0.018 (208 cases)"."""
    low, high = row["ci95"]
    return f"{row['mean']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({row['n']} cases)"


def draw(results: Path = RESULTS) -> list[Path]:
    """Folder of results -> paired.json and paired.md in it."""
    found = {f"{c.a} - {c.b}": compare(c, results) for c in COMPARISONS}
    told = {
        "command": "python reproduce/paired.py",
        "seed": 0,
        "resamples": 10_000,
        "metric": "hard Dice, native",
    }
    content = {"provenance": told, "differences": found}
    atomic_write(results / "paired.json", json.dumps(content, indent=1) + "\n")
    rows = [[name, row if isinstance(row, str) else interval(row)] for name, row in found.items()]
    text = (
        "# Ours against others\n\nMean of the paired difference of hard Dice on the native grid, case by "
        "case; the interval draws persons. By `python reproduce/paired.py`.\n\n"
    )
    atomic_write(results / "paired.md", text + markdown(("a - b", "difference"), rows) + "\n")
    return [results / "paired.json", results / "paired.md"]


def main() -> int:
    """Compare what is stored."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    for path in draw(parser.parse_args().results):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
