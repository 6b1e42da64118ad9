"""What fig5.py and fig6.py share: out-of-fold runs judged on perturbed cases, stored, and drawn beside
what the paper's text says.

Every case is judged by the model of the fold that has not seen it, both models see the same perturbed
image, and single scores are kept in RUNS/robustness/<figure>/scores.jsonl, with which a stopped run goes
on."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednca.errors import InputError
from mednca.files import atomic_write, read_json, replacing
from mednca.perturb import find as find_perturbations
from reproduce.catalogue import Experiment, find
from reproduce.folds import load
from reproduce.runs import QUICK, trainings
from reproduce.stored import RESULTS
from reproduce.tables import markdown, title, why_not

#: Ours, and the U-Net trained on the same folds.
EXPERIMENTS = ("hippocampus_best", "hippocampus_unet")
COLOURS = ("tab:blue", "tab:orange")
FORMAT, VERSION = "mednca-figure", 1
QUICK_CASES = 2


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

    @property
    def command(self) -> str:
        """What measures it."""
        return f"python reproduce/{self.name}.py DATA_ROOT --runs runs"


def measure(
    figure: Figure, data_root: Path, runs: Path, *, quick: bool = False, cases: int | None = None
) -> dict[str, Any]:
    """Figure, folder of the data sets and folder of runs -> its result, as stored in JSON.

    Raises:
        InputError: If our own runs are not there, or the data are not.
    """
    from tqdm import tqdm

    from mednca import perturb
    from mednca.machine import machine
    from mednca.predict import Predictor
    from mednca.robustness import list_jobs, measure
    from mednca.robustness.contenders import open_folds, together
    from mednca.robustness.report import card, rounded

    chosen = [find([name])[0] for name in EXPERIMENTS]
    folds = load(chosen[0].split)
    data = folds.cases(data_root)
    limit = QUICK_CASES if quick else cases
    contenders, told = [], []
    for experiment in chosen:
        every = trainings(experiment, runs)
        done = {t.fold: t for t in every if t.finished and t.seed == experiment.seeds[0]}
        missing = [fold for fold in folds.held_out if fold not in done]
        told.append({"experiment": experiment.name, "row": experiment.row, "missing": missing})
        if done:
            held_out = {name for t in done.values() for name in t.split["validation"][:limit]}
            among = [case for case in data.cases if case.id in held_out]
            paths = {fold: t.path for fold, t in done.items()}
            contenders.append(open_folds(experiment.name, paths, among, Predictor))
        elif experiment is chosen[0]:
            raise InputError(f"{runs / experiment.name}: no finished run; train it first with table1.py")
    judged = together(contenders, data.cases)
    names = [panel.perturbation for panel in figure.panels]
    jobs = list_jobs(find_perturbations(names), quick=quick)
    path = runs / (QUICK if quick else "") / "robustness" / figure.name / "scores.jsonl"
    scores = measure(
        contenders,
        judged,
        jobs,
        path,
        labels=data.labels or None,
        progress=lambda items: tqdm(items, desc=figure.name, unit=" predictions"),
    )
    provenance = {
        "command": figure.command + (" --quick" if quick else f" --cases {cases}" if cases else ""),
        "data": folds.split.data,
        "split": f"reproduce/folds/{folds.split.name}.json",
        "quick": quick,
        "seeds": 1,
        "fire_seed": 0,
        "perturbations": perturb.VERSION,
        "machine": machine(),
        "versions": versions(),
        "minutes": round(sum(score.seconds for score in scores.values()) / 60, 1),
    }
    report = card(contenders, judged, jobs, scores, provenance)
    rows = {
        case.id: {
            f"{job.perturbation} {job.severity:g}": [scores[c.key(case.id, job)].dice for c in contenders]
            for job in jobs
        }
        for case in judged
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "mode": "quick" if quick else "full",
        "experiments": told,
        "report": report,
        "cases": rounded(rows),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import version

    return {package: version(package) for package in ("mednca", "numpy", "scipy", "torch", "torchio")}


# ---- Draw ----


def draw(figure: Figure, results: Path, *, quick: bool = False) -> list[Path]:
    """Figure and folder of results -> its PNG, SVG and Markdown, from the stored JSON; where there is
    none, every cell says so."""
    file = results / f"{figure.name}.json"
    result = read_json(file) if file.is_file() else None
    if result is not None:
        if (result.get("format"), result.get("version")) != (FORMAT, VERSION):
            raise InputError(f"{file}: expected {FORMAT} version {VERSION}; measure it again")
        if (result["mode"] == "quick") != quick:
            raise InputError(f"{file}: is a result of {result['mode']} mode; remove it")
    text = [
        title(figure.about, quick=quick),
        f"Drawn by `python reproduce/{figure.name}.py --draw` from `{figure.name}.json`, which "
        f"`{figure.command}` makes. Hippocampus, out of fold; hard Dice of all foreground on the grid of the "
        "perturbed image. The paper's text does not say on which organ its figure is, nor how its severities "
        "are counted; its percentages are set beside our points (0.01 Dice). Change: mean paired "
        "difference to the same cases unperturbed, with a 95 % interval over persons.",
        markdown(HEAD, [cells for panel in figure.panels for cells in lines(panel, result)]),
    ]
    atomic_write(results / f"{figure.name}.md", "\n\n".join(text) + "\n")
    return [*picture(figure, result, results, quick=quick), results / f"{figure.name}.md"]


HEAD = ("panel", "the paper", "model", "unperturbed", "range told of", "worst severity", "least case there")


def lines(panel: Panel, result: dict[str, Any] | None) -> list[list[str]]:
    """Panel and the stored result -> a row of cells for each model."""
    from mednca.robustness.report import decimals, points, title, worst_row

    rows = []
    for at, name in enumerate(EXPERIMENTS):
        head = [title(panel.perturbation), panel.paper] if at == 0 else ["", ""]
        experiment = find([name])[0]
        place = index(result, name)
        if result is None or place is None:
            rows.append([*head, experiment.row, *[reason(experiment, result)] * 4])
            continue
        report = result["report"]
        one = report["perturbations"][panel.perturbation]
        clean = report["models"][place]["clean"]
        worst = worst_row(one, place)
        entry = worst["models"][place]
        between = next((mark.between for mark in panel.marks if mark.between), None)
        inside = [row for row in one["severities"] if between and between[0] <= row["severity"] <= between[1]]
        least = min(inside, key=lambda row: row["models"][place]["mean"], default=None)
        rows.append(
            [
                *head,
                experiment.row,
                f"{decimals(clean['mean'])} ± {decimals(clean['sd'])}",
                f"{points(least['models'][place]['change'])} at {least['severity']:g}" if least else "",
                f"{decimals(entry['mean'])} at {worst['severity']:g}, {points(entry['change'])}"
                + in_view(worst, entry),
                decimals(entry["min"]),
            ]
        )
    if result is not None and all(index(result, name) is not None for name in EXPERIMENTS):
        one = result["report"]["perturbations"][panel.perturbation]
        worst = one["severities"][0 if panel.perturbation in ("scale", "shape") else -1]
        told = f"{points(worst['difference'])} at {worst['severity']:g}"
        rows.append(["", "", "ours - U-Net", points(result["report"]["difference_clean"]), "", told, ""])
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


def index(result: dict[str, Any] | None, name: str) -> int | None:
    """Result and experiment -> its number among the measured models; None where it was not measured."""
    names = [model["name"] for model in result["report"]["models"]] if result else []
    return names.index(name) if name in names else None


def reason(experiment: Experiment, result: dict[str, Any] | None) -> str:
    """Why there is no number of an experiment."""
    told = why_not(experiment)
    return told if result is not None else "not run: not measured yet"


def picture(figure: Figure, result: dict[str, Any] | None, results: Path, *, quick: bool) -> list[Path]:
    """Figure and the stored result -> a panel for each perturbation: ours with the interval as a band,
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
            place = index(result, name)
            if result is None or place is None:
                axes.text(
                    *(0.5, 0.5 - 0.08 * at, f"{find([name])[0].row}: not run"),
                    transform=axes.transAxes,
                    ha="center",
                    color=colour,
                )
                continue
            report = result["report"]
            rows = [
                (one.position(row["severity"]), row["models"][place])
                for row in report["perturbations"][panel.perturbation]["severities"]
            ]
            rows = sorted([(one.position(one.neutral), report["models"][place]["clean"]), *rows], key=_first)
            x = [row[0] for row in rows]
            axes.plot(x, [row[1]["mean"] for row in rows], "o-", color=colour, markersize=4)
            low, high = zip(*(_interval(row[1]) for row in rows), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        clean = result["report"]["models"][0]["clean"]["mean"] if result else None
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
    """What the script of a figure does: measure what is missing, store, draw. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?", help="folder that holds the data sets, to measure")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="where results go (default: the tree's)")
    parser.add_argument("--cases", type=int, metavar="N", help="the first N held-out cases of each fold")
    parser.add_argument("--quick", action="store_true", help="few cases and severities, kept apart")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what is stored")
    asked = parser.parse_args(words)
    if asked.data_root is None and not asked.draw:
        parser.error("DATA_ROOT is needed to measure; or give --draw")
    results = asked.results or (asked.runs / QUICK / "results" if asked.quick else RESULTS)
    try:
        if not asked.draw:
            result = measure(figure, asked.data_root, asked.runs, quick=asked.quick, cases=asked.cases)
            atomic_write(results / f"{figure.name}.json", json.dumps(result, indent=1) + "\n")
        _tell(draw(figure, results, quick=asked.quick))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _tell(paths: Iterable[Path]) -> None:
    for path in paths:
        print(path)
