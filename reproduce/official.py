"""The authors' published hippocampus model, run through this project, against what it is known to score.

    python reproduce/official.py DATA CHECKPOINT [-o reproduce/results/official.json] [--cases N]

DATA is MSD Task04_Hippocampus, CHECKPOINT a folder with config.json, model0.pth, model1.pth and, to compare
with, dice_on_task04.json. The authors' protocol, per case and for all labels merged:

    soft64  soft Dice of the volume on the 64 x 64 grid, probabilities without threshold (the paper's "Dice")
    hard64  Dice on the 64 x 64 grid, thresholded
    native  probabilities resized back to the scan's grid, thresholded, against the original label

Exit status 1 where a mean is off by more than 0.003, or a case by more than 0.03.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import mednca
from mednca.backends import choose
from mednca.cases import Case, find_cases
from mednca.dataset import class_numbers, load_scan
from mednca.files import atomic_write
from mednca.metrics import dice_score, soft_dice_score
from mednca.modelfile import ModelFile
from mednca.official import import_official
from mednca.predict import decide, predict_slices, share_with_torch
from mednca.slices import prepare_image, prepare_label, restore

MEASURES = ("soft64", "hard64", "native")
MEAN_TOLERANCE, CASE_TOLERANCE = 0.003, 0.03


def score(model: ModelFile, case: Case, *, seed: int = 0, engine: str = "auto") -> dict[str, float]:
    """Model and labelled case -> its three Dice values in the authors' protocol."""
    config, scan = model.config, load_scan(case)
    label = class_numbers(scan.label, config)
    image = prepare_image(scan.image, config.preprocess)
    share = share_with_torch(model, choose("cpu", engine))
    shares = predict_slices(share, config, image, seed=seed)
    small = prepare_label(label, config.preprocess, 1)
    mask = decide(restore(shares, scan.image, config.preprocess), config.predict.threshold, (1,))
    return {
        "soft64": soft_dice_score(shares[:, 0], small),
        "hard64": dice_score(shares[:, 0] > config.predict.threshold, small),
        "native": dice_score(mask, label.data[0]),
    }


def main() -> int:
    """Score every case, print the table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "official.json")
    parser.add_argument("--cases", type=int, help="only the first N")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    model = import_official(asked.checkpoint)
    known = json.loads((asked.checkpoint / "dice_on_task04.json").read_text())
    cases = find_cases(asked.data, require_labels=True).cases[: asked.cases]
    scores = {case.id: score(model, case, seed=asked.seed) for case in tqdm(cases, unit="scan")}
    table = {}
    for name in MEASURES:
        ours = np.array([scores[case.id][name] for case in cases])
        theirs = np.array([known[f"{case.id}.nii.gz"][name] for case in cases])
        table[name] = {
            "ours": round(float(ours.mean()), 5),
            "expected": round(float(theirs.mean()), 5),
            "difference": round(float(ours.mean() - theirs.mean()), 5),
            "largest_difference_of_a_case": round(float(np.abs(ours - theirs).max()), 5),
        }
    holds = all(
        abs(row["difference"]) <= MEAN_TOLERANCE and row["largest_difference_of_a_case"] <= CASE_TOLERANCE
        for row in table.values()
    )
    report = {
        "what": "Dice of the authors' hippocampus model on MSD Task04, merged foreground, authors' protocol",
        "command": "python reproduce/official.py DATA CHECKPOINT"
        + (f" --cases {asked.cases}" if asked.cases else "")
        + (f" --seed {asked.seed}" if asked.seed else ""),
        "seed": asked.seed,
        "model_hash": model.hash,
        "cases": len(cases),
        "holds": holds,
        "means": table,
        "versions": {
            "mednca": mednca.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "scores": {name: {k: round(v, 4) for k, v in row.items()} for name, row in scores.items()},
        "expected_scores": {case.id: {k: known[f"{case.id}.nii.gz"][k] for k in MEASURES} for case in cases},
    }
    atomic_write(asked.out, json.dumps(report, indent=1) + "\n")
    print(f"{len(cases)} cases   ours  expected  difference  largest of a case")
    for name, row in table.items():
        print(
            f"{name:10} {row['ours']:.4f}    {row['expected']:.4f}     {row['difference']:+.4f}             "
            f"{row['largest_difference_of_a_case']:.4f}"
        )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
