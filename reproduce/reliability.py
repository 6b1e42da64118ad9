"""Does training succeed every time? Many seeds of the recipe native and of the official settings, on one
fold, with few iterations.

    python reproduce/reliability.py DATA_ROOT --runs runs                        train, gather, draw
    python reproduce/reliability.py DATA_ROOT --runs runs --only reliability_hippocampus --seed 0 2 4
    python reproduce/reliability.py DATA_ROOT --runs runs --quick                minutes; apart
    python reproduce/reliability.py --draw           draw from results/reliability/*.json only

DATA_ROOT holds the folders Task04_Hippocampus and PROMISE12_Prostate. The Dice of a seed is the mean over the
judged cases; each is set against the median of all seeds whose training ended. The series are in
catalogue.py; every training is a run folder that goes on where it was stopped, and `--seed` lets several
processes share a series."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.files import atomic_write, replacing
from reproduce.catalogue import RELIABILITY, Experiment
from reproduce.cli import command_line
from reproduce.folds import load
from reproduce.tables import Result, code, markdown, stored, title, where, why_not

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A seed this near to the median of its series is as good as the others.
NEAR = 0.02
HEAD = (
    "data",
    "series",
    "seeds",
    "median Dice",
    "least",
    "largest",
    f"within {NEAR} of it",
    "failed",
    "re-seeded",
    "rolled back",
    "iterations x slices",
    "judged on",
    "machine",
    "command",
)
#: Colour of the dots.
OURS, THEIRS = "tab:blue", "tab:orange"


@dataclass(frozen=True)
class Row:
    """What came of the seeds of a series.

    Attributes:
        dice: Seed -> mean Dice of its judged cases, for trainings that ended.
        failed: Seed -> why its training failed.
        seeds: Seeds that there should be.
        median: Of `dice`; None where every training failed.
        least: Of `dice`.
        largest: Of `dice`.
        near: Seeds within `NEAR` of the median.
        reseeded: New starts from another seed, over all seeds; None where nothing watched.
        rolled_back: Returns to earlier weights, over all seeds; None where nothing watched.
    """

    dice: dict[str, float]
    failed: dict[str, str]
    seeds: int
    median: float | None
    least: float | None
    largest: float | None
    near: int
    reseeded: int | None
    rolled_back: int | None


def measure(experiment: Experiment, result: Result) -> Row:
    """Series and its result -> what came of its seeds."""
    dice = {seed: row["dice"] for seed, row in result["seeds"].items()}
    names = result["provenance"]["runs"]
    runs = {name.split("/")[0].removeprefix("seed_"): run for name, run in names.items()}
    values = list(dice.values())
    median = round(statistics.median(values), 5) if values else None
    told = [event["event"] for run in runs.values() for event in run["events"]]
    watched = result["config"]["train"]["sentinel"]
    return Row(
        dice=dice,
        failed={seed: run["failed"] for seed, run in runs.items() if "failed" in run},
        seeds=1 if result["mode"] == "quick" else len(experiment.seeds),
        median=median,
        least=min(values, default=None),
        largest=max(values, default=None),
        near=0 if median is None else sum(abs(value - median) <= NEAR + 1e-9 for value in values),
        reseeded=sum(event.startswith("re-seeded") for event in told) if watched else None,
        rolled_back=sum(event.startswith("rolled back") for event in told) if watched else None,
    )


def draw(results: Path, quick: bool) -> list[Path]:
    """Folder of results -> reliability.json, reliability.md and, if there is a result, reliability.png."""
    found = stored(RELIABILITY, results, quick=quick)
    rows = {e: measure(e, result) for e, result in found.items() if result is not None}
    parts = [
        title("Reliability", quick=quick),
        "Drawn by `python reproduce/reliability.py --draw` from the files in `reliability/`, which hold "
        "every case. Short trainings that differ in their seed only, on one fold. Dice of the merged "
        "foreground, hard, native grid, mean over the judged cases; median, least and largest over the "
        "seeds whose training ended. *Failed*: gave up after new starts, or ended with weights that are not "
        "finite; such a seed counts as not near the median. The count near the median tells how alike the "
        "seeds are, the median how good.",
        "*Official settings* are the recipe `paper_hippocampus`, with its own, larger batches. *Official "
        "training of our model* has the official optimiser (Adam with betas 0.5 and 0.5, learning rate "
        "1.6e-3 with exponential decay), no clipping, no running mean, no loss on coarse levels, no watch, "
        "no augmentation and a fixed number of steps, on the planned model with its choice of slices and "
        "patches: the official prostate setting itself is too slow for a CPU. The official learning rate "
        "has hardly decayed after so few iterations, where ours has come down to zero: a part of the spread "
        "may come from that.",
        markdown(HEAD, [line(e, result, rows.get(e), quick=quick) for e, result in found.items()]),
    ]
    parts += [
        f"{e.name}, seed {seed}: failed: {why}."
        for e, row in rows.items()
        for seed, why in row.failed.items()
    ]
    paths = [results / "reliability.json", results / "reliability.md"]
    content = {
        "command": "python reproduce/reliability.py --draw",
        "near": NEAR,
        "series": {e.name: asdict(row) for e, row in rows.items()},
    }
    atomic_write(paths[0], json.dumps(content, indent=1) + "\n")
    atomic_write(paths[1], "\n\n".join(parts) + "\n")
    return [*paths, picture(rows, results, quick=quick)] if rows else paths


def line(experiment: Experiment, result: Result | None, row: Row | None, *, quick: bool) -> list[str]:
    """Series, its result and what came of it -> the cells of its row."""
    organ = organ_of(experiment)
    if result is None or row is None:
        return [organ, experiment.row, "-", why_not(experiment), *("-",) * (len(HEAD) - 5), code(experiment)]
    train = result["config"]["train"]
    ran = len(row.dice) + len(row.failed)
    return [
        *(organ, experiment.row),
        str(ran) if ran == row.seeds else f"{ran} of {row.seeds}",
        *("-" if value is None else f"{value:.3f}" for value in (row.median, row.least, row.largest)),
        f"{row.near} of {ran}",
        str(len(row.failed)),
        *("no watch" if count is None else str(count) for count in (row.reseeded, row.rolled_back)),
        f"{train['iterations']} x {train['batch_size']}",
        judged_on(experiment, result),
        *(where(result), code(experiment, quick=quick)),
    ]


def judged_on(experiment: Experiment, result: Result) -> str:
    """Series and its result -> "the first 12 of 42 cases of fold_0, 5 folds by person"."""
    held_out = load(experiment.split).held_out
    folds = experiment.folds or tuple(held_out)
    of = sum(len(held_out[fold]) for fold in folds)
    told = f"the first {len(result['cases'])} of {of}" if len(result["cases"]) < of else f"all {of}"
    return f"{told} cases of {', '.join(folds)}, {len(held_out)} folds {result['protocol']}"


def organ_of(experiment: Experiment) -> str:
    """Series -> "hippocampus" or "prostate"."""
    return experiment.split.partition("_")[0]


def picture(rows: dict[Experiment, Row], results: Path, *, quick: bool) -> Path:
    """Series -> reliability.png: every seed a dot, the band around the median, a cross for what failed."""
    from matplotlib.figure import Figure

    organs = list(dict.fromkeys(organ_of(e) for e in rows))
    figure = Figure((4.5 * len(organs), 4.2), layout="constrained")
    for axes, organ in zip(figure.subplots(1, len(organs), squeeze=False)[0], organs, strict=True):
        chosen = {e: row for e, row in rows.items() if organ_of(e) == organ}
        for at, (experiment, row) in enumerate(chosen.items()):
            strip(axes, at, row, OURS if experiment.row.startswith("default") else THEIRS)
        names = [f"{e.row}\n{row.near} of {len(row.dice) + len(row.failed)}" for e, row in chosen.items()]
        axes.set_xticks(range(len(chosen)), names, fontsize=8)
        axes.set_xlim(-0.6, len(chosen) - 0.4)
        axes.set_ylabel("hard Dice, native grid, mean of the cases")
        axes.set_title(organ)
        axes.grid(axis="y", alpha=0.3)
    told = f"Every dot a seed; band: median ± {NEAR}; cross: training failed"
    figure.suptitle(told + (" (QUICK MODE: no result)" if quick else ""), fontsize=9)
    path = results / "reliability.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def strip(axes: Axes, at: int, row: Row, colour: str) -> None:
    """Axes, position and series -> its dots, in the order of the seeds from left to right, and its band."""
    seeds = sorted([*row.dice, *row.failed], key=int)
    side = {seed: at + (k - (len(seeds) - 1) / 2) * 0.6 / max(1, len(seeds)) for k, seed in enumerate(seeds)}
    if row.median is not None:
        axes.fill_between(
            *((at - 0.4, at + 0.4), row.median - NEAR, row.median + NEAR), color=colour, alpha=0.15, lw=0
        )
        axes.plot((at - 0.4, at + 0.4), (row.median, row.median), color=colour, linewidth=1)
    axes.plot([side[seed] for seed in row.dice], list(row.dice.values()), "o", color=colour, markersize=5)
    axes.plot([side[seed] for seed in row.failed], [0.0] * len(row.failed), "x", color="tab:red")


def main(words: Sequence[str] | None = None) -> int:
    """Train, gather, draw."""
    return command_line(__doc__ or "", RELIABILITY, draw, words)


if __name__ == "__main__":
    sys.exit(main())
