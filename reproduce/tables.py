"""What the scripts of tables and figures share: cells and rows from stored results, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mednca.recipes import RECIPES
from mednca.report import MERGED
from reproduce.catalogue import Experiment
from reproduce.folds import load
from reproduce.stored import command, read_result, result_path

Result = dict[str, Any]


def stored(
    experiments: Iterable[Experiment], results: Path, *, quick: bool
) -> dict[Experiment, Result | None]:
    """Experiments -> their stored results, None where there is none. (Keyed by name where order matters.)"""
    return {e: read_result(result_path(e, results), quick=quick) for e in experiments}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Column names and rows of cells -> a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def statistic(result: Result, metric: str, region: str = MERGED) -> dict[str, Any] | None:
    """Result and metric -> its statistics over the cases, None where it was not measured."""
    found: dict[str, Any] | None = result["summary"].get(region, {}).get(metric)
    return found if found and found["mean"] is not None else None


def soft(result: Result) -> tuple[dict[str, Any], str] | None:
    """Result -> soft Dice as near to the paper's as was measured, and on which grid that is."""
    for metric, grid in (("soft_slices", "stretched slices, as theirs"), ("soft_dice", "native grid")):
        if row := statistic(result, metric):
            return row, grid
    return None


def spread(row: dict[str, Any] | None) -> str:
    """Statistics -> "0.886 ± 0.042"."""
    return "not measured" if row is None else f"{row['mean']:.3f} ± {row['sd']:.3f}"


def why_not(experiment: Experiment) -> str:
    """Experiment without a result -> "not run: reason"."""
    kind = experiment.recipe.partition(":")[0]
    known = experiment.by != "mednca" or experiment.recipe in RECIPES or kind in (*RECIPES, "plan")
    reason = cost(experiment) if known else f"there is no recipe {experiment.recipe} yet"
    return f"not run: {experiment.why or reason}"


def cost(experiment: Experiment) -> str:
    """Experiment that nobody has trained -> what it would cost."""
    count = len(experiment.seeds) * len(experiment.folds or load(experiment.split).held_out)
    if experiment.minutes is None:
        return "not trained yet"
    return f"its {count * experiment.minutes:g} core-minutes of training, or more, were not to be had yet"


def done(result: Result) -> tuple[str, str]:
    """Result -> its seeds, and its folds, those that are missing said, and what was left out on purpose."""
    runs = result["provenance"]["runs"]
    names = [name.split("/") for name, row in runs.items() if "failed" not in row]
    seeds, folds = {seed for seed, _ in names}, {fold for _, fold in names}
    of = result.get("held_out_folds", len(folds))
    told = f"{len(folds)}, " if len(folds) == of else f"{len(folds)} of {of}, "
    told += result["protocol"]
    cases = result.get("experiment", {}).get("cases")
    told += f", the first {cases} cases of each at most" if cases else ""
    for count, what in ((len(result["missing"]), "missing"), (len(runs) - len(names), "failed")):
        told += f" ({count} trainings {what})" if count else ""
    return str(len(seeds)), told


def where(result: Result) -> str:
    """Result -> processors or cards, and minutes in all."""
    runs = result["provenance"]["runs"].values()
    names = {
        row["device"] if row["device"] != "cpu" else (row["machine"] or {}).get("processor", "a CPU")
        for row in runs
    }
    minutes = [row["minutes"] for row in runs if row["minutes"] is not None]
    return f"{', '.join(sorted(names))}; {sum(minutes):.0f} min for {len(minutes)} trainings"


def code(experiment: Experiment, *, quick: bool = False) -> str:
    """Experiment -> its command, as Markdown."""
    return f"`{command(experiment, quick=quick)}`"


def title(text: str, *, quick: bool) -> str:
    """A heading, which says it where all below is of quick mode."""
    return f"# {text}" + (" (QUICK MODE: no result, only a look at what runs)" if quick else "")
