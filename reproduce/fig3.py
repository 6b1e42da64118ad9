"""The paper's Fig. 3, Dice against parameters: what is missing is trained, the picture is drawn from stored
results.

    python reproduce/fig3.py DATA_ROOT --runs runs       train, gather, draw
    python reproduce/fig3.py --runs runs --collect       gather and draw
    python reproduce/fig3.py --draw                      draw from results/fig3/*.json and
    results/table1/*.json

The points of Table 1 are trained by table1.py; here are the U-Nets with other encoders and nnU-Net, which is
trained by its own commands (see README.md of this folder)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.files import atomic_write, replacing
from reproduce.catalogue import FIG3, PAPER, TABLE1, Experiment
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Points of Table 1 that the figure has too.
SHARED = tuple(e for e in TABLE1 if e.split == "hippocampus_authors" and not e.separate)
#: What the paper says of nnU-Net: so much above Med-NCA on the hippocampus.
NNUNET_LEAD = 0.02
HEAD = ("point", "parameters", "soft", "hard, native grid", "seeds", "folds", "machine", "command")


def draw(results: Path, quick: bool) -> list[Path]:
    """Folder of results -> fig3.png, fig3.svg and fig3.md in it."""
    found = stored((*SHARED, *FIG3), results, quick=quick)
    text = [
        title("Fig. 3", quick=quick),
        "Drawn by `python reproduce/fig3.py --draw` from the files in `fig3/` and `table1/`. Hippocampus, "
        "the authors' split; the paper's points are soft Dice in its own split.",
        markdown(HEAD, [line(e, result, quick=quick) for e, result in found.items()]),
    ]
    atomic_write(results / "fig3.md", "\n\n".join(text) + "\n")
    return [*picture(found, results, quick=quick), results / "fig3.md"]


def line(experiment: Experiment, result: Result | None, *, quick: bool) -> list[str]:
    """Experiment and its result -> the cells of its row."""
    if result is None:
        nothing = why_not(experiment)
        return [experiment.row, "-", nothing, nothing, "-", "-", "-", code(experiment)]
    measured = soft(result)
    return [
        experiment.row,
        "not told" if result["parameters"] is None else f"{result['parameters']:,}",
        "not measured" if measured is None else f"{spread(measured[0])} ({measured[1]})",
        spread(statistic(result, "dice")),
        *done(result),
        *(where(result), code(experiment, quick=quick)),
    ]


def picture(found: dict[Experiment, Result | None], results: Path, *, quick: bool) -> list[Path]:
    """Results -> the picture: left the paper's measure, its points beside ours; right hard Dice, ours. Names
    stand beside it, by number: there are too many for the points."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure((12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    number = {row: at for at, row in enumerate(dict.fromkeys([*PAPER, *(e.row for e in found)]), 1)}
    for row, ((dice, _), _, parameters) in PAPER.items():
        left.plot(parameters, dice, "o", color="0.65")
        beside(left, number[row], parameters, dice, "0.5", left=True)
    left.axhline(PAPER["Med-NCA"][0][0] + NNUNET_LEAD, color="0.65", linestyle=":")
    for experiment, result in found.items():
        if result is None or result["parameters"] is None:
            continue
        colour, marker = ("tab:blue", "D") if experiment.row.startswith("ours") else ("tab:orange", "s")
        measured = soft(result)
        for axes, row in ((left, measured and measured[0]), (right, statistic(result, "dice"))):
            if not row:
                continue
            ends = [abs(row["mean"] - end) if end is not None else 0 for end in row["ci95"]]
            axes.errorbar(
                *(result["parameters"], row["mean"]),
                yerr=[[end] for end in ends],
                fmt=marker,
                markersize=5,
                color=colour,
                capsize=2,
            )
            beside(axes, number[experiment.row], result["parameters"], row["mean"], colour)
    if not any(result and statistic(result, "dice") for result in found.values()):
        right.text(0.5, 0.5, "not run", transform=right.transAxes, ha="center", color="0.5")
    for axes, words in ((left, "soft Dice, the paper's measure"), (right, "hard Dice on the native grid")):
        axes.set_xscale("log")
        axes.set_xlabel("parameters")
        axes.set_ylabel(words)
        axes.tick_params(labelleft=True)
        axes.grid(alpha=0.3)
    signs = [
        Line2D([], [], marker="o", color="0.65", linestyle="", label="paper"),
        Line2D([], [], color="0.65", linestyle=":", label="nnU-Net in the paper, parameters not told"),
        Line2D([], [], marker="D", color="tab:blue", linestyle="", label="ours, 95 % interval"),
        Line2D(
            [], [], marker="s", color="tab:orange", linestyle="", label="others, run by us, 95 % interval"
        ),
    ]
    figure.legend(handles=signs, loc="outside lower center", ncols=4, fontsize=8)
    there = PAPER.keys() | {e.row for e, result in found.items() if result is not None}
    names = [
        Line2D([], [], linestyle="", label=f"{at}  {row}" + ("" if row in there else " (not run)"))
        for row, at in number.items()
    ]
    figure.legend(handles=names, loc="outside right upper", fontsize=8, handlelength=0, handletextpad=0)
    figure.suptitle("Hippocampus, the authors' split" + (" (QUICK MODE: no result)" if quick else ""))
    paths = [results / f"fig3.{ending}" for ending in ("png", "svg")]
    for path in paths:
        # The same file for the same results.
        with replacing(path) as temporary, rc_context({"svg.hashsalt": "fig3", "svg.fonttype": "none"}):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, dpi=110, format=path.suffix[1:], metadata=metadata)
    return paths


def beside(axes: Axes, number: int, x: float, y: float, colour: str, *, left: bool = False) -> None:
    """A number beside its point."""
    axes.annotate(
        *(str(number), (x, y)),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        fontsize=8,
        color=colour,
        ha="right" if left else "left",
        va="center",
    )


def main(words: Sequence[str] | None = None) -> int:
    """Train, gather, draw."""
    return command_line(__doc__ or "", FIG3, draw, words)


if __name__ == "__main__":
    sys.exit(main())
