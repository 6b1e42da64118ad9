"""The paper's Table 1 beside ours: what is missing is trained, results are stored, the table is drawn from
them.

    python reproduce/table1.py DATA_ROOT --runs runs                 train, gather, draw
    python reproduce/table1.py DATA_ROOT --runs runs --only hippocampus_unet --fold fold_0
    python reproduce/table1.py DATA_ROOT --runs runs --quick         minutes; apart, under runs/quick
    python reproduce/table1.py --runs runs --collect                 gather and draw
    python reproduce/table1.py --draw                                draw from results/table1/*.json only

DATA_ROOT holds the folders Task04_Hippocampus and PROMISE12_Prostate. The paper's Dice is soft, on slices
stretched to the training size; ours stands beside it so, and hard on the native grid. The rows are in
catalogue.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.files import atomic_write
from reproduce.catalogue import PAPER, TABLE1, Experiment
from reproduce.cli import command_line
from reproduce.tables import (
    Result,
    code,
    done,
    markdown,
    soft,
    spread,
    statistic,
    stored,
    title,
    where,
    why_not,
)

HEAD = (
    "row",
    "paper",
    "ours, soft",
    "ours, hard, native grid",
    "gap",
    "parameters (paper)",
    "seeds",
    "folds",
)
HEAD += ("machine", "command")


def draw(results: Path, quick: bool) -> list[Path]:
    """Folder of results -> table1.md in it."""
    found = stored(TABLE1, results, quick=quick)
    parts = [
        title("Table 1", quick=quick),
        "Drawn by `python reproduce/table1.py --draw` from the files in `table1/`, which hold every case.\n"
        "Dice of the merged foreground, mean ± sd over volumes. *Soft* is the paper's: probabilities without "
        "a threshold. *Gap* is ours, soft, minus the paper's, where the data are the paper's; the paper's "
        "split is by volume, ours by person unless the row says otherwise.",
    ]
    for organ, heading in (
        ("hippocampus", "Hippocampus (MSD Task04, 208 of its volumes)"),
        ("prostate", "Prostate (PROMISE12, 34 cases; the paper's data cannot be had, so no gap is formed)"),
    ):
        rows = [
            line(e, column=0 if organ == "hippocampus" else 1, result=result, quick=quick)
            for e, result in found.items()
            if e.name.startswith(organ)
        ]
        parts += [f"## {heading}", markdown(HEAD, rows)]
    path = results / "table1.md"
    atomic_write(path, "\n\n".join(parts) + "\n")
    return [path]


def line(experiment: Experiment, *, column: int, result: Result | None, quick: bool) -> list[str]:
    """Experiment, column of the paper's table (0 hippocampus, 1 prostate) and result -> the cells of its
    row."""
    theirs = PAPER.get(experiment.row)
    paper = "no such row"
    if theirs is not None:
        mean, sd = theirs[column]
        paper = f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else " (its sd is a misprint)")
    name = experiment.row + ("" if "by_volume" not in experiment.split else ", split **by volume**")
    name += ", authors' split" if "authors" in experiment.split else ""
    weights = f"{theirs[2]:,}" if theirs else "-"
    if result is None:
        nothing = why_not(experiment)
        return [name, paper, nothing, nothing, "-", f"- ({weights})", "-", "-", "-", code(experiment)]
    measured = soft(result)
    gap = "-"
    if theirs is not None:
        gap = "other data" if column else "not measured"
        if measured and not column:
            gap = f"{measured[0]['mean'] - theirs[0][0]:+.3f}"
    cell = "not measured" if measured is None else f"{spread(measured[0])} ({measured[1]})"
    count = "not told" if result["parameters"] is None else f"{result['parameters']:,}"
    return [
        *(name, paper, cell, spread(statistic(result, "dice")), gap, f"{count} ({weights})"),
        *done(result),
        *(where(result), code(experiment, quick=quick)),
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Train, gather, draw."""
    return command_line(__doc__ or "", TABLE1, draw, words)


if __name__ == "__main__":
    sys.exit(main())
