"""More than one organ: what the planner chooses, by both recipes, and a U-Net, out of fold, on four
more data sets.

    python reproduce/organs.py DATA_ROOT --runs runs                  train, gather, draw
    python reproduce/organs.py DATA_ROOT --runs runs --only fetal_head
    python reproduce/organs.py --runs runs --collect                  gather and draw
    python reproduce/organs.py --draw                                 draw from results/organs/*.json

DATA_ROOT holds PROMISE12_Prostate, HC18_FetalHead, COVIDCXR_Lungs and DSB2018_Nuclei. The fetal head also has
its circumference in mm, against the sonographer's."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.report import MERGED
from reproduce.catalogue import EVERYTHING, ORGAN_SETS, ORGANS, Experiment
from reproduce.circumference import errors_mm
from reproduce.cli import command_line
from reproduce.gather import mean_report
from reproduce.paired import interval, paired, restricted
from reproduce.tables import Result, code, done, markdown, spread, statistic, stored, title, where, why_not

HEAD = (
    "model",
    "Dice, hard, native grid",
    "each label",
    "HD95, mm",
    "parameters",
    "seeds",
    "folds",
    "machine",
)
HEAD += ("command",)
ROWS = ("ours, best", "ours, best, robust", "U-Net, our training")
PAIRS = {"U-Net": ("ours, best", "U-Net, our training"), "native": ("ours, best, robust", "ours, best")}


def draw(results: Path, quick: bool) -> list[Path]:
    """Folder of results -> organs.md in it."""
    parts = [
        title("Other organs", quick=quick),
        "Drawn by `python reproduce/organs.py --draw` from the files in `organs/`. Out of fold, 5 folds "
        "by person, mean ± sd over cases.",
    ]
    for organ, split in ORGANS.items():
        chosen = [e for e in EVERYTHING if e.split == split and e.row in ROWS]
        found = stored(chosen, results, quick=quick)
        parts += [
            f"## {organ.replace('_', ' ').capitalize()}",
            markdown(HEAD, [line(e, result, quick=quick) for e, result in found.items()]),
        ]
        by_row = {e.row: result for e, result in found.items() if result is not None}
        for name, pair in PAIRS.items():
            if all(row in by_row for row in pair):
                parts.append(against(name, *(by_row[row] for row in pair)))
        if organ == "fetal_head":
            parts += [circumference(row, result) for row, result in by_row.items()]
    atomic_write(results / "organs.md", "\n\n".join(parts) + "\n")
    return [results / "organs.md"]


def line(experiment: Experiment, result: Result | None, *, quick: bool) -> list[str]:
    """Experiment and its result -> the cells of its row."""
    if result is None:
        return [experiment.row, why_not(experiment), *("-",) * 6, code(experiment)]
    labels = [
        f"{region} {row['dice']['mean']:.3f}" for region, row in result["summary"].items() if region != MERGED
    ]
    return [
        experiment.row,
        spread(statistic(result, "dice")),
        ", ".join(labels) if len(labels) > 1 else "one",
        spread(statistic(result, "hd95_mm")),
        "not told" if result["parameters"] is None else f"{result['parameters']:,}",
        *done(result),
        *(where(result), code(experiment, quick=quick)),
    ]


def against(name: str, ours: Result, theirs: Result) -> str:
    """What the second is called, and two results -> a sentence on their paired difference on the cases of
    the first, or on why there is none."""
    who = "Robust" if name == "native" else "Ours"
    try:
        measured = mean_report(ours["cases"])
        row = paired(measured, restricted(mean_report(theirs["cases"]), measured.cases), "dice")
    except InputError as error:
        return f"{who} minus {name}: not compared ({error})."
    return f"{who} minus {name}, per case: {interval(row)}."


def circumference(name: str, result: Result) -> str:
    """Result on HC18 -> a sentence on the head circumference."""
    cases = {
        case: {key: math.nan if value is None else value for key, value in scores[MERGED].items()}
        for case, entry in result["cases"].items()
        for scores in entry["scores"].values()
        if "circumference_mm" in scores[MERGED]
    }
    if not cases:
        return f"Head circumference, {name}: not measured."
    told = []
    for key, what in (("circumference_mm", "of the mask"), ("label_circumference_mm", "of the label")):
        row = errors_mm(cases, key)
        told.append(
            f"{what}: mean absolute error {row['absolute_mm']:.2f} mm, signed {row['signed_mm']:+.2f} mm "
            f"({row['cases']} cases, {row['missing']} without an ellipse)"
        )
    return f"Head circumference against the sonographer's, {name}: {'; '.join(told)}."


def main(words: Sequence[str] | None = None) -> int:
    """Train, gather, draw."""
    return command_line(__doc__ or "", ORGAN_SETS, draw, words)


if __name__ == "__main__":
    sys.exit(main())
