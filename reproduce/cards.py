"""Report cards: how the models of experiments hold up, out of fold, under every perturbation of
`mednca robustness`, and what the robust recipe gains and costs.

    python reproduce/cards.py DATA_ROOT --runs runs                       hours; a stopped one goes on
    python reproduce/cards.py DATA_ROOT --only hippocampus_robust --cases 21
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
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.errors import InputError
from mednca.perturb import find as find_perturbations
from reproduce.catalogue import CARDS, find
from reproduce.claims import draw
from reproduce.folds import load
from reproduce.runs import QUICK, fold_models
from reproduce.stored import RESULTS
from reproduce.stored_cards import BEFORE, FORMAT, NAMES, SHIPPED, VERSION, write_card

QUICK_CASES = 2


def measure(
    name: str,
    data_root: Path,
    runs: Path,
    *,
    quick: bool = False,
    cases: int | None = None,
    ensemble: int | None = None,
) -> dict[str, Any] | None:
    """Name of a card, folder of the data sets and folder of runs -> the card, as stored in JSON; None where
    there is no model.

    Args:
        quick: Few cases and severities.
        cases: The first so many held-out cases of each fold; None takes all.
        ensemble: Runs that are averaged, instead of the model's own number.

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
    paths = fold_models(experiment, runs)
    if not paths:
        return None
    folds = load(experiment.split)
    data = folds.cases(data_root)
    limit = QUICK_CASES if quick else cases
    wanted = {case for fold in paths for case in folds.held_out[fold][:limit]}
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
