"""Whether the trust score holds where lines of k-space were brought back, which it was not fitted on.

    python reproduce/mended.py DATA_ROOT

The first 21 held-out cases of fold 0 of hippocampus_robust, with ghosts and spikes, are judged by the model
of the fold, which brings lines back, with its own runs of fire masks and the trust score of the shipped model
`hippocampus_robust`. That score was fitted to predictions of these people too, but to none of a scan whose
lines were brought back. Writes reproduce/results/mended.json: true and expected Dice, interval, and how many
lines were changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from mednca import __version__
from mednca.dataset import load_scan
from mednca.files import atomic_write, read_json
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import perturb
from mednca.predict import Predictor
from reproduce.catalogue import find
from reproduce.folds import load
from reproduce.runs import MODELS
from reproduce.stored import RESULTS

EXPERIMENT, FOLD, CASES = "hippocampus_robust", "fold_0", 21
SEED = 0
#: Perturbation -> severities.
PERTURBED = {"ghosting": (1.5, 2.0, 2.5), "spike": (0.5, 2.0)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Predictions -> how many, of how many were lines changed; of those, how often the interval holds the
    true Dice, and how many of the masks below 0.8 and of the others are expected to be below it."""
    mended = [row for row in rows if row["lines"]]
    bad = [row for row in mended if row["dice"] < 0.8]
    good = [row for row in mended if row["dice"] >= 0.8]
    return {
        "predictions": len(rows),
        "mended": len(mended),
        "held": sum(row["low"] <= row["dice"] <= row["high"] for row in mended),
        "above": sum(row["dice"] > row["high"] for row in mended),
        "bad": len(bad),
        "bad_flagged": sum(row["expected"] < 0.8 for row in bad),
        "good_flagged": sum(row["expected"] < 0.8 for row in good),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    asked = parser.parse_args()
    folds, run = load(find([EXPERIMENT])[0].split), MODELS / EXPERIMENT / FOLD
    by_id = {case.id: case for case in folds.cases(asked.data_root).cases}
    model = replace(load_model(run / "model.safetensors"), trust=load_model(EXPERIMENT).trust)
    predictor = Predictor(model, engine="native")
    chosen = read_json(run / "split.json")["validation"][:CASES]
    todo = [(case, name, strength) for case in chosen for name, of in PERTURBED.items() for strength in of]
    rows = []
    for case, name, severity in tqdm(todo, unit="prediction"):
        scan = load_scan(by_id[case])
        image, label, _ = perturb(name, scan.image, scan.label, severity, case=case, seed=SEED)
        found = predictor.predict(image)
        trust = found.report["trust"]
        rows.append(
            {
                "case": case,
                "perturbation": f"{name} {severity:g}",
                "dice": round(float(dice_score(found.mask.data[0] > 0, label.data[0] > 0)), 5),
                "expected": float(trust["expected_dice"]),
                "low": float(trust["interval"][0]),
                "high": float(trust["interval"][1]),
                "lines": found.report["lines_changed"] or 0,
            }
        )
    result = {
        "summary": summary(rows),
        "provenance": {
            "command": "python reproduce/mended.py DATA_ROOT",
            "data": folds.split.data,
            "model": model.hash,
            "seed": SEED,
            "mednca": __version__,
        },
        "rows": rows,
    }
    atomic_write(RESULTS / "mended.json", json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
