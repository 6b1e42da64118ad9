"""What a shift costs while the whole organ stays in view, on every held-out case that has room for it.

    python reproduce/shifts.py DATA_ROOT
    python reproduce/shifts.py DATA_ROOT --folds fold_2 fold_3     these are added to what is there

A report card shifts a few cases by half an image, and few of them keep their organ then. This takes the
models of all folds of the experiment hippocampus_robust that the tree has, and all their held-out cases, and
predicts only what counts: the case as it is, and each shift that leaves the whole organ in view. Writes
reproduce/results/shifts.json: Dice of each (engine `native`, one run of fire masks), and for each fill and
shift the points of 0.01 Dice lost, with a 95 % interval by drawing persons.
"""

from __future__ import annotations

import argparse
import json
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
from mednca.robustness import CLEAN
from reproduce.catalogue import find as find_experiments
from reproduce.folds import load
from reproduce.runs import MODELS
from reproduce.stored import RESULTS

EXPERIMENT, FILLS = "hippocampus_robust", ("translation", "translation_edge")
DRAWS, SEED = 2000, 0


def measured(case: Case, predictor: Predictor) -> dict[str, float]:
    """Case and the predictor that has not seen it -> Dice as it is, and of each shift with the organ in
    view."""
    scan = load_scan(case)
    views = [(CLEAN, scan.image, scan.label)]
    for fill in find(list(FILLS)):
        for severity in fill.severities:
            image, label, kept = perturb(fill, scan.image, scan.label, severity, case=case.id, seed=SEED)
            if kept == 1:
                views.append((f"{fill.name} {severity:g}", image, label))
    return {
        name: round(dice_score(predictor.predict(image).mask.data[0] > 0, label.data[0] > 0), 5)
        for name, image, label in views
    }


def lost(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Measured cases -> shift -> cases, persons, their Dice as they are, points lost and its interval."""
    told = {}
    for name in sorted({view for case in cases.values() for view in case["dice"]} - {CLEAN}):
        those = [case for case in cases.values() if name in case["dice"]]
        points = np.array([100 * (case["dice"][CLEAN] - case["dice"][name]) for case in those])
        persons, member = np.unique([case["person"] for case in those], return_inverse=True)
        draws = np.random.default_rng(SEED).multinomial(
            len(persons), np.full(len(persons), 1 / len(persons)), DRAWS
        )
        counts = draws[:, member]
        means = (counts * points).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
        told[name] = {
            "cases": len(those),
            "persons": len(persons),
            "as_is": round(float(np.mean([case["dice"][CLEAN] for case in those])), 5),
            "lost": round(float(points.mean()), 3),
            "interval": [round(float(value), 2) for value in np.quantile(means, [0.025, 0.975])],
            "worst": round(float(points.max()), 2),
        }
    return told


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="only these, beside what is there")
    asked = parser.parse_args()
    (experiment,) = find_experiments([EXPERIMENT])
    folds = load(experiment.split)
    by_id = {case.id: case for case in folds.cases(asked.data_root).cases}
    path = RESULTS / "shifts.json"
    before = read_json(path) if asked.folds and path.is_file() else {"models": {}, "cases": {}}
    models, cases = before["models"], before["cases"]
    runs = sorted(run for run in (MODELS / EXPERIMENT).iterdir() if (run / "model.safetensors").is_file())
    todo = []
    for run in runs:
        if not asked.folds or run.name in asked.folds:
            model = with_ensemble(load_model(run / "model.safetensors"), 1)
            models[run.name] = model.hash
            predictor = Predictor(model, engine="native", trust=False)
            todo += [(run.name, name, predictor) for name in read_json(run / "split.json")["validation"]]
    for fold, name, predictor in tqdm(todo, unit="case"):
        cases[name] = {
            "fold": fold,
            "person": folds.persons.get(name, name),
            "dice": measured(by_id[name], predictor),
        }
    cases = dict(sorted(cases.items()))
    result = {
        "summary": lost(cases),
        "cases_judged": len(cases),
        "models": dict(sorted(models.items())),
        "provenance": {
            "command": "python reproduce/shifts.py DATA_ROOT",
            "data": folds.split.data,
            "perturbations": VERSION,
            "seed": SEED,
            "mednca": __version__,
        },
        "cases": cases,
    }
    atomic_write(path, json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
