"""Whether the trust score holds where lines of k-space were brought back, which it was not fitted on.

    python reproduce/mended.py DATA_ROOT

The first 21 held-out cases of fold 0 of hippocampus_robust, with ghosts and spikes, are judged by the model
of the fold, which brings lines back, with its own runs of fire masks and the trust score of the shipped model
`hippocampus_robust`. That score was fitted to predictions of these people too, but to none of a scan whose
lines were brought back. Writes reproduce/results/mended.json: true and expected Dice, interval, and how many
lines were changed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from mednca.dataset import load_scan
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import perturb
from mednca.predict import Predictor
from reproduce.first_fold import EXPERIMENT, SEED, data_root, opened, store

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
    whole, chosen = opened(data_root(__doc__))
    model = replace(whole, trust=load_model(EXPERIMENT).trust)
    predictor = Predictor(model, engine="native")
    todo = [(case, name, strength) for case in chosen for name, of in PERTURBED.items() for strength in of]
    rows = []
    for case, name, severity in tqdm(todo, unit="prediction"):
        scan = load_scan(case)
        image, label, _ = perturb(name, scan.image, scan.label, severity, case=case.id, seed=SEED)
        found = predictor.predict(image)
        trust = found.report["trust"]
        rows.append(
            {
                "case": case.id,
                "perturbation": f"{name} {severity:g}",
                "dice": round(float(dice_score(found.mask.data[0] > 0, label.data[0] > 0)), 5),
                "expected": float(trust["expected_dice"]),
                "low": float(trust["interval"][0]),
                "high": float(trust["interval"][1]),
                "lines": found.report["lines_changed"] or 0,
            }
        )
    store("mended", model, summary(rows), rows=rows)


if __name__ == "__main__":
    main()
