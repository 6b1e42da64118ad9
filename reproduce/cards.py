"""Report cards: how the models of experiments hold up, out of fold, under every perturbation of
`mednca robustness`, and what the robust recipe gains and costs.

    python reproduce/cards.py DATA_ROOT --runs runs                       hours; a stopped one goes on
    python reproduce/cards.py DATA_ROOT --only hippocampus_lean_robust --cases 8
    python reproduce/cards.py --draw                                      draw what is stored

Every case is judged by the model of the fold that has not seen it: those under RUNS, else those that the tree
has (`reproduce/models/`). Every model sees the same perturbed images, so cards are paired case by case, also
where they are measured on different days. Stored are

    results/cards/<experiment>.json     statistics, and the Dice of every case at every severity
    results/cards/<experiment>.md       one page
    results/cards.md, cards.png         all of them side by side

and single scores in RUNS/cards/<experiment>/scores.jsonl, with which a stopped run goes on. The paper's
Figs. 5 and 6 are drawn from the same files by `fig5.py` and `fig6.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.perturb import find as find_perturbations
from reproduce.catalogue import CARDS, find
from reproduce.folds import load
from reproduce.runs import QUICK, fold_models
from reproduce.stored import RESULTS
from reproduce.tables import markdown, why_not

FORMAT, VERSION = "mednca-card", 1
QUICK_CASES = 2
#: Card of the shipped model, on the cases of the first card, all of which it was trained on: what it loses
#: under perturbations is told too well, not too badly.
SHIPPED, BEFORE = "hippocampus", "shipped_hippocampus"
NAMES = (*CARDS, BEFORE)


def row_of(name: str) -> str:
    """Name of a card -> what it is of, in a few words."""
    return "shipped model, has seen these cases" if name == BEFORE else find([name])[0].row


def measure(
    name: str,
    data_root: Path,
    runs: Path,
    *,
    quick: bool = False,
    cases: int | None = None,
    ensemble: int | None = None,
    models: Path | None = None,
) -> dict[str, Any] | None:
    """Name of a card, folder of the data sets and folder of runs -> the card, as stored in JSON; None where
    there is no model.

    Args:
        quick: Few cases and severities.
        cases: The first so many held-out cases of each fold; None takes all.
        ensemble: Runs that are averaged, instead of the model's own number.
        models: Where the tree's models are, if elsewhere.

    Raises:
        InputError: If the data are not there.
    """
    from tqdm import tqdm

    from mednca import perturb
    from mednca.machine import machine
    from mednca.predict import Predictor
    from mednca.robustness import list_jobs
    from mednca.robustness import measure as score
    from mednca.robustness.contenders import open_folds, open_model, together
    from mednca.robustness.report import card, rounded

    experiment = find([CARDS[0] if name == BEFORE else name])[0]
    paths = fold_models(experiment, runs, models)
    if not paths:
        return None
    folds = load(experiment.split)
    data = folds.cases(data_root)
    limit = QUICK_CASES if quick else cases
    wanted = {name for fold in paths for name in folds.held_out[fold][:limit]}
    among = [case for case in data.cases if case.id in wanted]
    if name == BEFORE:
        one = open_model(SHIPPED, among, Predictor, all_cases=True, ensemble=ensemble)
    else:
        one = open_folds(name, paths, among, Predictor, ensemble=ensemble)
    judged = together([one], data.cases)
    jobs = list_jobs(find_perturbations(), quick=quick)
    folder = name + (f"_{ensemble}" if ensemble else "")
    scores = score(
        *([one], judged, jobs),
        runs / (QUICK if quick else "") / "cards" / folder / "scores.jsonl",
        labels=data.labels or None,
        progress=lambda items: tqdm(items, desc=name, unit=" predictions"),
    )
    command = f"python reproduce/cards.py DATA_ROOT --only {name}" + (" --quick" if quick else "")
    for option, value in (("cases", cases), ("ensemble", ensemble)):
        command += f" --{option} {value}" if value else ""
    provenance = {
        "command": command,
        "data": folds.split.data,
        "split": f"reproduce/folds/{folds.split.name}.json",
        "quick": quick,
        "seeds": 1,
        "fire_seed": 0,
        "ensemble": ensemble,
        "perturbations": perturb.VERSION,
        "machine": machine(),
        "versions": versions(),
        "minutes": round(sum(row.seconds for row in scores.values()) / 60, 1),
    }
    fold_of = {case: fold for fold, ids in folds.held_out.items() for case in ids}
    keys = [(case.id, [(label(job), scores[one.key(case.id, job)].dice) for job in jobs]) for case in judged]
    return {
        "format": FORMAT,
        "version": VERSION,
        "mode": "quick" if quick else "full",
        "experiment": name,
        "missing": [fold for fold in folds.held_out if fold not in paths],
        "report": card([one], judged, jobs, scores, provenance),
        "cases": rounded(
            {
                case: {"group": folds.persons[case], "fold": fold_of[case], "dice": dict(row)}
                for case, row in keys
            }
        ),
    }


def label(job: Any) -> str:
    """Job -> what its Dice is stored under: "scale 0.5", "clean 0"."""
    return f"{job.perturbation} {job.severity:g}"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import version

    return {package: version(package) for package in ("mednca", "numpy", "scipy", "torch", "torchio")}


# ---- Stored cards ----


def read_card(name: str, results: Path, *, quick: bool = False) -> dict[str, Any] | None:
    """Name of an experiment and folder of results -> its stored card; None where there is none.

    Raises:
        InputError: If it is none of this version, or of the other mode: quick and full are never mixed.
    """
    file = results / "cards" / f"{name}.json"
    if not file.is_file():
        return None
    result: dict[str, Any] = read_json(file)
    if (result.get("format"), result.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{file}: expected {FORMAT} version {VERSION}; measure it again")
    if (result["mode"] == "quick") != quick:
        raise InputError(f"{file}: is a result of {result['mode']} mode; remove it")
    return result


def write_card(result: dict[str, Any], results: Path) -> list[Path]:
    """Card -> its JSON and its page; one of fewer cases never replaces one of more.

    Raises:
        InputError: If the stored one has cases that this one lacks.
    """
    from mednca.robustness.report import summary

    name = result["experiment"]
    before = read_card(name, results, quick=result["mode"] == "quick")
    if before and (lost := before["cases"].keys() - result["cases"].keys()):
        raise InputError(
            f"{results / 'cards' / name}.json: the stored card has {len(lost)} cases more; measure them too, "
            "or remove it"
        )
    paths = [results / "cards" / f"{name}.{ending}" for ending in ("json", "md")]
    cases = ",\n".join(f"  {json.dumps(case)}: {json.dumps(row)}" for case, row in result["cases"].items())
    head = json.dumps({key: value for key, value in result.items() if key != "cases"}, indent=1)
    atomic_write(paths[0], f'{head[:-2]},\n "cases": {{\n{cases}\n }}\n}}\n')
    atomic_write(paths[1], summary(result["report"]))
    return paths


def difference(here: dict[str, Any], there: dict[str, Any], at: str, other: str | None = None) -> Any:
    """Two cards, and what is done to the cases in the first and (None: the same) in the second -> mean paired
    difference of Dice on the cases of both, with its interval over persons."""
    from mednca.robustness.report import paired

    common = [case for case in here["cases"] if case in there["cases"]]
    first = {case: here["cases"][case]["dice"][at] for case in common}
    second = {case: there["cases"][case]["dice"][other or at] for case in common}
    return paired(first, second, {case: str(here["cases"][case]["group"]) for case in common})


# ---- Draw ----


@dataclass(frozen=True)
class Claim:
    """What the default recipe is to hold.

    Attributes:
        perturbation: Its name.
        between: Severities, ends included.
        limit: Most points of 0.01 Dice that may be lost in the mean, at the worst of these severities.
        at_least: Instead: mean Dice that is enough in any case.
        above: Instead: points above the baseline of the same training that are enough.
        in_view: Whether only cases count in which the organ stays in view.
    """

    perturbation: str
    between: tuple[float, float]
    limit: float | None = None
    at_least: float | None = None
    above: float | None = None
    in_view: bool = False


CLAIMS = (
    Claim("translation", (0.1, 0.5), limit=1, in_view=True),
    Claim("translation_edge", (0.1, 0.5), limit=1, in_view=True),
    Claim("shape", (0.5, 2), limit=3),
    Claim("scale", (0.8, 1.5), limit=3),
    Claim("ghosting", (2.5, 2.5), at_least=0.75, above=12),
    Claim("anisotropy", (4, 4), limit=1),
    Claim("bias_field", (1.5, 1.5), limit=12),
    Claim("noise", (0.2, 0.2), limit=5),
)


def worst(card: dict[str, Any], claim: Claim) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Card and claim -> the severity in question at which most is lost, its entry, and the change there."""
    rows = card["report"]["perturbations"][claim.perturbation]["severities"]
    found = []
    for row in rows:
        if claim.between[0] <= row["severity"] <= claim.between[1]:
            (entry,) = row["models"]
            inside = claim.in_view and row["in_view"] < entry["n"]
            change = entry.get("change_in_view") if inside else entry["change"]
            if change is not None:
                found.append((row["severity"], entry, change))
    return min(found, key=lambda one: float(one[2]["mean"]))


def told(claim: Claim) -> str:
    """Claim -> what is asked for, in words."""
    if claim.limit is not None:
        return f"at most {claim.limit:g} lost" + (" where in view" if claim.in_view else "")
    return f"Dice of {claim.at_least}, or {claim.above:g} above the U-Net"


def draw(results: Path, *, quick: bool = False) -> list[Path]:
    """Folder of results -> cards.md and, where there is a card, cards.png."""
    cards = {name: read_card(name, results, quick=quick) for name in NAMES}
    there = {name: card for name, card in cards.items() if card is not None}
    text = [
        "# Report cards" + (" (QUICK MODE: no result)" if quick else ""),
        "Drawn by `python reproduce/cards.py --draw` from the files in `cards/`, which hold every case. Out "
        "of fold, hard Dice of all foreground on the grid of the perturbed image, one draw of each "
        "perturbation. "
        "Points are 0.01 Dice: the mean paired difference to the same case unperturbed, with a 95 % interval "
        "over persons. What each severity is stands in `docs/reference/perturbations.md`.",
        markdown(
            (
                "model",
                "what it is",
                "cases",
                "persons",
                "folds missing",
                "unperturbed Dice",
                "least",
                "command",
            ),
            [_head(name, card) for name, card in cards.items()],
        ),
        "## What the recipe is to hold",
        "The worst of the severities named. *Met* or not is the mean's; the interval tells how sure that is.",
        markdown(
            ("perturbation", "asked for", *(row_of(name) for name in there)),
            [_row(claim, there) for claim in CLAIMS],
        ),
        "## Every perturbation",
        "Mean Dice at the worst severity, and points lost there.",
        markdown(
            ("perturbation", *(row_of(name) for name in there)),
            [_every(one.name, there) for one in find_perturbations()] if there else [],
        ),
    ]
    atomic_write(results / "cards.md", "\n\n".join(text) + "\n")
    return [results / "cards.md", *([_picture(there, results)] if there else [])]


def _head(name: str, card: dict[str, Any] | None) -> list[str]:
    from mednca.robustness.report import decimals

    row = row_of(name)
    if card is None:
        experiment = find([CARDS[0] if name == BEFORE else name])[0]
        told = (
            "not run: no models of its folds were to be had yet" if experiment.kept else why_not(experiment)
        )
        return [name, row, told, "", "", "", "", ""]
    report = card["report"]
    clean = report["models"][0]["clean"]
    return [
        name,
        row,
        *(str(report[key]) for key in ("cases", "persons")),
        str(len(card["missing"])),
        f"{decimals(clean['mean'])} ± {decimals(clean['sd'])}",
        decimals(clean["min"]),
        f"`{report['provenance']['command']}`",
    ]


def _row(claim: Claim, cards: dict[str, dict[str, Any]]) -> list[str]:
    """Claim and cards -> its row of the table."""
    from mednca.robustness.report import decimals, points, title

    low, high = claim.between
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    cells = [f"{title(claim.perturbation)} {span}", told(claim)]
    for card in cards.values():
        severity, entry, change = worst(card, claim)
        at = "" if low == high else f" at {severity:g}"
        if claim.limit is not None:
            good = -100 * change["mean"] <= claim.limit
        else:
            good = entry["mean"] > (claim.at_least or 0)
        cells.append(f"{decimals(entry['mean'])}, {points(change)}{at}{': met' if good else ''}")
    return cells


def _every(name: str, cards: dict[str, dict[str, Any]]) -> list[str]:
    """Perturbation and cards -> its row of the table of all."""
    from mednca.robustness.report import decimals, points, title, worst_row

    cells = [title(name)]
    for card in cards.values():
        row = worst_row(card["report"]["perturbations"][name], 0)
        (entry,) = row["models"]
        cells.append(f"{decimals(entry['mean'])} at {row['severity']:g}, {points(entry['change'])}")
    return cells


def _picture(cards: dict[str, dict[str, Any]], results: Path) -> Path:
    """Cards -> a panel for each perturbation, a curve for each card."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from mednca.files import replacing
    from mednca.robustness.page import panel

    colours = [f"C{number}" for number in range(len(cards))]
    perturbations = find_perturbations()
    columns = 5
    figure = Figure((3.0 * columns, 2.5 * -(-len(perturbations) // columns) + 0.5), layout="constrained")
    panels = figure.subplots(-(-len(perturbations) // columns), columns, sharey=True, squeeze=False).ravel()
    for axes, one in zip(panels, perturbations, strict=False):
        for colour, card in zip(colours, cards.values(), strict=True):
            report = card["report"]
            panel(axes, one.name, report["perturbations"][one.name], report["models"], colours=(colour,))
    for axes in panels[len(perturbations) :]:
        axes.axis("off")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=row_of(name))
        for colour, name in zip(colours, cards, strict=True)
    ]
    handles.append(Line2D([], [], color="0.5", linewidth=0.8, linestyle=":", label="least case"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    with replacing(results / "cards.png") as path:
        figure.savefig(path, dpi=80, format="png")
    return results / "cards.png"


# ---- The command line ----


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, store, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?", help="folder that holds the data sets, to measure")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="where results go (default: the tree's)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=NAMES, help="experiments")
    parser.add_argument("--cases", type=int, metavar="N", help="the first N held-out cases of each fold")
    parser.add_argument("--ensemble", type=int, metavar="N", help="runs to average (default: the model's)")
    parser.add_argument("--quick", action="store_true", help="few cases and severities, kept apart")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what is stored")
    asked = parser.parse_args(words)
    if asked.data_root is None and not asked.draw:
        parser.error("DATA_ROOT is needed to measure; or give --draw")
    results = asked.results or (asked.runs / QUICK / "results" if asked.quick else RESULTS)
    made: list[Path] = []
    try:
        for name in () if asked.draw else asked.only or NAMES:
            result = measure(
                *(name, asked.data_root, asked.runs),
                quick=asked.quick,
                cases=asked.cases,
                ensemble=asked.ensemble,
            )
            if result is not None:
                made += write_card(result, results)
            elif asked.only:
                raise InputError(f"{asked.runs / name}: no finished run; train it first with table1.py")
        _tell([*made, *draw(results, quick=asked.quick)])
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _tell(paths: Iterable[Path]) -> None:
    for path in paths:
        print(path)


if __name__ == "__main__":
    sys.exit(main())
