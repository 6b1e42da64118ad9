"""What fig5.py and fig6.py share: panels of the stored report cards (`cards.py`), drawn beside what the
paper's text says."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednca.errors import InputError
from mednca.files import atomic_write, replacing
from mednca.perturb import find as find_perturbations
from reproduce.catalogue import find
from reproduce.runs import QUICK
from reproduce.stored import RESULTS
from reproduce.stored_cards import difference, read_card
from reproduce.tables import markdown, title

#: Ours, and the U-Net trained the same way on the same folds.
EXPERIMENTS = ("hippocampus_robust", "hippocampus_unet_robust")
COLOURS = ("tab:blue", "tab:orange")

Cards = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Mark:
    """A number of the paper's text, to be drawn beside ours.

    Attributes:
        who: Whose it is.
        value: Dice, or points lost against the unperturbed Dice, as a share.
        lost: Whether it is what is lost.
        between: Severities that it is told for; None is the worst one.
    """

    who: str
    value: float
    lost: bool = False
    between: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """A panel of a figure: perturbation, what the paper's text says of it, and the numbers in it."""

    perturbation: str
    paper: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Figure:
    """A figure of the paper by its number, what it is of, and its panels."""

    name: str
    about: str
    panels: tuple[Panel, ...]


# ---- Draw ----


def draw(figure: Figure, results: Path, *, quick: bool = False) -> list[Path]:
    """Figure and folder of results -> its PNG, SVG and Markdown, from the stored cards; a model that has none
    says so in every cell."""
    found = {name: read_card(name, results, quick=quick) for name in EXPERIMENTS}
    cards = {name: card for name, card in found.items() if card is not None}
    names = " and ".join(f"`cards/{name}.json`" for name in EXPERIMENTS)
    text = [
        title(figure.about, quick=quick),
        f"Drawn by `python reproduce/{figure.name}.py` from {names}, which `python reproduce/cards.py "
        f"DATA_ROOT` makes. Hippocampus, out of fold{scope(cards)}; hard Dice of all foreground on the grid "
        "of the perturbed image. The paper's text does not say on which organ its figure is, nor how its "
        "severities are counted; its percentages are set beside our points (0.01 Dice). Change: mean paired "
        "difference to the same cases unperturbed, with a 95 % interval over persons.",
        markdown(HEAD, [cells for panel in figure.panels for cells in lines(panel, cards)]),
    ]
    atomic_write(results / f"{figure.name}.md", "\n\n".join(text) + "\n")
    return [*picture(figure, cards, results, quick=quick), results / f"{figure.name}.md"]


HEAD = ("panel", "the paper", "model", "unperturbed", "range told of", "worst severity", "least case there")


def scope(cards: Cards) -> str:
    """Cards -> how many cases they have, and that folds are missing, where some are."""
    told = []
    for name, card in cards.items():
        missing = f", {len(card['missing'])} of 5 folds not run" if card["missing"] else ""
        told.append(f"{find([name])[0].row}: {card['report']['cases']} cases{missing}")
    return f" ({'; '.join(told)})" if told else ""


def lines(panel: Panel, cards: Cards) -> list[list[str]]:
    """Panel and cards -> a row of cells for each model, and one for their difference."""
    from mednca.robustness.report import decimals, points, title, worst_row

    rows = []
    for at, name in enumerate(EXPERIMENTS):
        head = [title(panel.perturbation), panel.paper] if at == 0 else ["", ""]
        row = find([name])[0].row
        if name not in cards:
            rows.append([*head, row, *["not run: it has no report card yet"] * 4])
            continue
        report = cards[name]["report"]
        one = report["perturbations"][panel.perturbation]
        clean = report["models"][0]["clean"]
        worst = worst_row(one, 0)
        (entry,) = worst["models"]
        between = next((mark.between for mark in panel.marks if mark.between), None)
        inside = [row for row in one["severities"] if between and between[0] <= row["severity"] <= between[1]]
        least = min(inside, key=lambda row: row["models"][0]["mean"], default=None)
        rows.append(
            [
                *head,
                row,
                f"{decimals(clean['mean'])} ± {decimals(clean['sd'])}",
                f"{points(least['models'][0]['change'])} at {least['severity']:g}" if least else "",
                f"{decimals(entry['mean'])} at {worst['severity']:g}, {points(entry['change'])}"
                + in_view(worst, entry),
                decimals(entry["min"]),
            ]
        )
    if len(cards) == len(EXPERIMENTS):
        here, there = (cards[name] for name in EXPERIMENTS)
        severities = here["report"]["perturbations"][panel.perturbation]["severities"]
        worst = severities[0 if panel.perturbation in ("scale", "shape") else -1]["severity"]
        told = f"{points(difference(here, there, f'{panel.perturbation} {worst:g}'))} at {worst:g}"
        rows.append(["", "", "ours - U-Net", points(difference(here, there, "clean 0")), "", told, ""])
    return rows


def in_view(row: dict[str, Any], entry: dict[str, Any]) -> str:
    """Row of a severity and a model's entry in it -> what is to be told where the organ has left the
    image."""
    from mednca.robustness.report import points

    if row["kept"] > 0.995:
        return ""
    told = f"; {100 * row['kept']:.0f} % of the label in view"
    if "change_in_view" in entry:
        told += f", {points(entry['change_in_view'])} in the {row['in_view']} cases where all of it is"
    return told


def picture(figure: Figure, cards: Cards, results: Path, *, quick: bool) -> list[Path]:
    """Figure and cards -> a panel for each perturbation: ours with the interval as a band,
    the paper's numbers as dashed lines."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    canvas = Canvas((4.2 * len(figure.panels), 4.6), layout="constrained")
    for letter, axes, panel in zip(
        "abc",
        canvas.subplots(1, len(figure.panels), sharey=True, squeeze=False)[0],
        figure.panels,
        strict=False,
    ):
        (one,) = find_perturbations([panel.perturbation])
        for at, (colour, name) in enumerate(zip(COLOURS, EXPERIMENTS, strict=True)):
            if name not in cards:
                axes.text(
                    *(0.5, 0.5 - 0.08 * at, f"{find([name])[0].row}: not run"),
                    transform=axes.transAxes,
                    ha="center",
                    color=colour,
                )
                continue
            report = cards[name]["report"]
            rows = [
                (one.position(row["severity"]), row["models"][0])
                for row in report["perturbations"][panel.perturbation]["severities"]
            ]
            rows = sorted([(one.position(one.neutral), report["models"][0]["clean"]), *rows], key=_first)
            x = [row[0] for row in rows]
            axes.plot(x, [row[1]["mean"] for row in rows], "o-", color=colour, markersize=4)
            low, high = zip(*(_interval(row[1]) for row in rows), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        ours = cards.get(EXPERIMENTS[0])
        clean = ours["report"]["models"][0]["clean"]["mean"] if ours else None
        for mark in panel.marks:
            if mark.lost and clean is None:
                continue
            y = clean - mark.value if mark.lost else mark.value
            ends = mark.between or (one.severities[-2], one.severities[-1])
            axes.plot([one.position(end) for end in ends], [y, y], "--", color="0.35", linewidth=1.3)
            told = f"{100 * mark.value:.0f} % lost" if mark.lost else f"{mark.value:.2f}"
            axes.annotate(
                *(f"paper, {mark.who}: {told}", (one.position(ends[1]), y)),
                xytext=(0, -9 if y > 0.05 else 3),
                textcoords="offset points",
                fontsize=7,
                color="0.25",
                ha="right",
            )
        ticks = sorted([one.neutral, *one.severities])
        axes.set_xticks([one.position(tick) for tick in ticks], [f"{tick:g}" for tick in ticks], fontsize=8)
        axes.set(ylim=(-0.03, 1.0), xlabel=one.parameter)
        axes.tick_params(labelleft=True)
        told = textwrap.fill(f"paper: {panel.paper}", 56)
        axes.set_title(f"({letter}) {panel.perturbation.replace('_', ' ')}\n{told}", fontsize=8)
        axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], color=colour, marker="o", label=f"{find([name])[0].row}, run by us, 95 % interval")
        for colour, name in zip(COLOURS, EXPERIMENTS, strict=True)
    ]
    handles.append(Line2D([], [], color="0.35", linestyle="--", label="the paper's text"))
    canvas.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    canvas.suptitle(figure.about + (" (QUICK MODE: no result)" if quick else ""))
    paths = [results / f"{figure.name}.{ending}" for ending in ("png", "svg")]
    for path in paths:
        # The same file for the same results.
        with replacing(path) as temporary, rc_context({"svg.hashsalt": figure.name, "svg.fonttype": "none"}):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            canvas.savefig(temporary, dpi=110, format=path.suffix[1:], metadata=metadata)
    return paths


def _first(row: tuple[float, Any]) -> float:
    return row[0]


def _interval(row: dict[str, Any]) -> tuple[float, float]:
    """Statistics -> the interval of the mean; the mean itself where there are too few persons for one."""
    low, high = row["ci95"]
    return (row["mean"], row["mean"]) if low is None else (low, high)


# ---- The command line ----


def command_line(figure: Figure, description: str, words: Sequence[str] | None = None) -> int:
    """What the script of a figure does: draw what is stored. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="where results are (default: the tree's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs, for --quick")
    parser.add_argument("--quick", action="store_true", help="what quick mode has measured")
    asked = parser.parse_args(words)
    results = asked.results or (asked.runs / QUICK / "results" if asked.quick else RESULTS)
    try:
        for path in draw(figure, results, quick=asked.quick):
            print(path)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
