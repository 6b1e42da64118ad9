"""What a shift costs while the organ stays in view, on every held-out case that has room for it.

    python reproduce/shifts.py DATA_ROOT

A report card shifts a few cases by half an image, and few of them keep their organ then. This takes the
models of all folds of the experiment hippocampus_robust that the tree has, and all their held-out cases, and
predicts only what counts: the case as it is, and each shift that leaves at least 99 % of the organ in view;
all with one run of fire masks, as on a card, and shifts of 0.2 and more with the model's own number of runs
too. Writes reproduce/results/shifts.json: Dice of each (engine `native`), and for each fill and shift the
points of 0.01 Dice lost, with a 95 % interval by drawing persons. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from mednca import __version__
from mednca.cases import Case
from mednca.dataset import load_scan
from mednca.files import atomic_write, read_json
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import VERSION, find, perturb
from mednca.predict import Predictor, with_ensemble
from mednca.report import bootstrap_interval
from mednca.robustness import CLEAN
from mednca.robustness.report import IN_VIEW
from reproduce.catalogue import find as find_experiments
from reproduce.folds import load
from reproduce.runs import MODELS
from reproduce.stored import RESULTS

EXPERIMENT, FILLS = "hippocampus_robust", ("translation", "translation_edge")
#: Shifts from which on the model's own runs are measured too: smaller ones cost next to nothing.
FAR = 0.2
SEED = 0


def measure(case: Case, predictors: dict[str, Predictor], told: dict[str, dict[str, float]]) -> None:
    """Case, predictors with one run and with the model's own, and what is known of both -> the Dice of the
    case as it is and of each shift with the organ in view, added to what is known."""
    scan = load_scan(case)
    views = {CLEAN: (0.0, scan.image, scan.label)}
    for fill in find(list(FILLS)):
        for shift in fill.severities:
            image, label, kept = perturb(fill, scan.image, scan.label, shift, case=case.id, seed=SEED)
            if kept >= IN_VIEW:
                views[f"{fill.name} {shift:g}"] = shift, image, label
    far = {name: view for name, view in views.items() if view[0] >= FAR}
    wanted = {"one": views, "own": {CLEAN: views[CLEAN], **far} if far else {}}
    for runs, predictor in predictors.items():
        for name, (_, image, label) in wanted[runs].items():
            if name not in told[runs]:
                mask = predictor.predict(image).mask
                told[runs][name] = round(dice_score(mask.data[0] > 0, label.data[0] > 0), 5)


def lost(cases: dict[str, dict[str, Any]], runs: str) -> dict[str, dict[str, Any]]:
    """Measured cases, and with how many runs -> shift -> cases, persons, their Dice as they are, points lost
    and its interval."""
    told = {}
    for name in sorted({view for case in cases.values() for view in case[runs]} - {CLEAN}):
        those = [case for case in cases.values() if name in case[runs]]
        points = np.array([100 * (case[runs][CLEAN] - case[runs][name]) for case in those])
        persons, member = np.unique([case["person"] for case in those], return_inverse=True)
        interval = bootstrap_interval(points, member, seed=SEED)
        told[name] = {
            "cases": len(those),
            "persons": len(persons),
            "as_is": round(float(np.mean([case[runs][CLEAN] for case in those])), 5),
            "lost": round(float(points.mean()), 3),
            "interval": [round(end, 2) + 0.0 if math.isfinite(end) else None for end in interval],
            "worst": round(float(points.max()), 2),
        }
    return told


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    asked = parser.parse_args()
    (experiment,) = find_experiments([EXPERIMENT])
    folds = load(experiment.split)
    by_id = {case.id: case for case in folds.cases(asked.data_root).cases}
    path = RESULTS / "shifts.json"
    before = read_json(path)["cases"] if path.is_file() else {}
    cases: dict[str, dict[str, Any]] = {}
    todo = []
    for run in sorted(run for run in (MODELS / EXPERIMENT).iterdir() if (run / "split.json").is_file()):
        model = load_model(run / "model.safetensors")
        made = {"one": with_ensemble(model, 1), "own": model}
        predictors = {runs: Predictor(file, engine="native", trust=False) for runs, file in made.items()}
        for name in read_json(run / "split.json")["validation"]:
            known = before.get(name, {})
            same = known if known.get("model") == model.hash else {"one": {}, "own": {}}
            cases[name] = {
                **{"fold": run.name, "model": model.hash, "person": folds.persons.get(name, name)},
                **{runs: dict(same[runs]) for runs in made},
            }
            todo.append((name, predictors))
    for name, predictors in tqdm(todo, unit="case"):
        measure(by_id[name], predictors, cases[name])
        result = {
            "summary": {runs: lost(cases, runs) for runs in ("one", "own")},
            "provenance": {
                "command": "python reproduce/shifts.py DATA_ROOT",
                "data": folds.split.data,
                "perturbations": VERSION,
                "seed": SEED,
                "mednca": __version__,
            },
            "cases": dict(sorted(cases.items())),
        }
        atomic_write(path, json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
