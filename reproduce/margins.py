"""What a margin does for organs at the end of a scan, and to all others.

    python reproduce/margins.py DATA_ROOT

takes the model of fold 0 of the experiment hippocampus_robust that the tree has, and predicts held-out cases
with several margins of their slices (`PreprocessConfig.margin`): the first 21, as they are, cut off and
shifted. No model is trained for it: a margin changes nothing in training. Writes
reproduce/results/margins.json: Dice of each case (engine `native`, one run of fire masks), share of the
organ in view, and processor time over that without a margin, of the same scans in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from mednca import __version__
from mednca.cases import Case, find_cases
from mednca.dataset import load_scan
from mednca.files import atomic_write, read_json
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import VERSION, perturb
from mednca.predict import Predictor, with_ensemble
from mednca.robustness import CLEAN
from reproduce.runs import MODELS
from reproduce.stored import RESULTS

DATA, MODEL = "Task04_Hippocampus", MODELS / "hippocampus_robust" / "fold_0"
MARGINS = (0, 2, 4, 6, 8)
CASES = 21
VIEWS = (
    (CLEAN, 0.0),
    ("crop", 0.2),
    ("crop", 0.4),
    ("translation", 0.1),
    ("translation", 0.2),
    ("translation_edge", 0.2),
    ("translation_edge", 0.3),
)


def measured(case: Case, predictors: dict[str, Predictor]) -> dict[str, Any]:
    """Case and predictors by their margins -> view -> Dice by margin, share in view; and seconds by
    margin."""
    scan, told, seconds = load_scan(case), {}, dict.fromkeys(predictors, 0.0)
    for name, severity in VIEWS:
        image, label, kept = scan.image, scan.label, 1.0
        if name != CLEAN:
            image, label, kept = perturb(name, image, label, severity, case=case.id, seed=0)
        dice = {}
        for margin, predictor in predictors.items():
            began = time.process_time()
            mask = predictor.predict(image).mask
            seconds[margin] += time.process_time() - began
            dice[margin] = round(dice_score(mask.data[0] > 0, label.data[0] > 0), 5)
        told[f"{name} {severity:g}"] = {"dice": dice, "kept": round(kept, 5)}
    return {"views": told, "seconds": {margin: round(spent, 3) for margin, spent in seconds.items()}}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    arguments = parser.parse_args()
    model = with_ensemble(load_model(MODEL / "model.safetensors"), 1)
    predictors = {}
    for margin in MARGINS:
        preprocess = replace(model.config.preprocess, margin=margin)
        changed = replace(model, config=replace(model.config, preprocess=preprocess))
        predictors[str(margin)] = Predictor(changed, engine="native", trust=False)
    by_id = {case.id: case for case in find_cases(arguments.data_root / DATA, require_labels=True).cases}
    chosen = sorted(read_json(MODEL / "split.json")["validation"])[:CASES]
    cases = {name: measured(by_id[name], predictors) for name in tqdm(chosen, unit="case")}
    rows = list(cases.values())
    summary: dict[str, Any] = {
        view: {
            margin: round(statistics.fmean(row["views"][view]["dice"][margin] for row in rows), 5)
            for margin in predictors
        }
        for view in rows[0]["views"]
    }
    spent = {margin: statistics.fmean(row["seconds"][margin] for row in rows) for margin in predictors}
    result = {
        "summary": summary,
        "time": {margin: round(seconds / spent["0"], 2) for margin, seconds in spent.items()},
        "provenance": {
            "command": "python reproduce/margins.py DATA_ROOT",
            "data": DATA,
            "model": model.hash,
            "perturbations": VERSION,
            "seed": 0,
            "mednca": __version__,
        },
        "cases": cases,
    }
    atomic_write(RESULTS / "margins.json", json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(summary | {"time": result["time"]}, indent=1))


if __name__ == "__main__":
    main()
