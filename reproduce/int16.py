"""What 16-bit arithmetic costs on real scans: out of fold, beside fp32 and beside another seed of fp32.

    python reproduce/int16.py Task04_Hippocampus --runs runs/hippocampus_cv

takes the five fold models that reproduce/hippocampus.py trained, calibrates each on its training cases,
predicts its held-out cases with the engines `native` (two seeds) and `int16`, one run of fire masks each,
and writes reproduce/results/int16.json: per case the Dice of each against the label, the Dice of int16
against fp32 and of one seed against the other, and how many numbers did not fit.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mednca import __version__
from mednca.calibrate import measure_range
from mednca.cases import find_cases
from mednca.checkpoint import RunFolder
from mednca.files import atomic_write
from mednca.io import read_case, read_label
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.predict import Predictor
from mednca.slices import prepare_image

RESULTS = Path(__file__).parent / "results"
#: Training cases that each model is calibrated on.
CALIBRATION = 32


def main() -> None:
    """Calibrate, predict and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    by_id = {case.id: case for case in find_cases(arguments.data, group="pairs", require_labels=True).cases}
    cases: dict[str, dict[str, Any]] = {}
    for path in sorted(arguments.runs.glob("fold_*")):
        model, split = load_model(path), RunFolder.open(path).split()
        drawn = np.random.default_rng(0).permutation(split["training"])[:CALIBRATION].tolist()
        scans, views = [read_case(by_id[name].images) for name in drawn], model.config.preprocess.views
        images = [prepare_image(scan, view) for scan in scans for view in views]
        model = replace(model, range=measure_range(model, images))
        engines = {
            "fp32": Predictor(model, engine="native"),
            "other_seed": Predictor(model, engine="native", seed=1000),
            "int16": Predictor(model, engine="int16"),
        }
        for name in tqdm(split["validation"], desc=path.name, unit="scan"):
            case = by_id[name]
            assert case.label is not None
            label = read_label(case.label).data[0] > 0
            found = {engine: one.predict(read_case(case.images)) for engine, one in engines.items()}
            masks = {engine: prediction.mask.data[0] > 0 for engine, prediction in found.items()}
            row: dict[str, Any] = {"fold": path.name}
            row |= {engine: round(dice_score(mask, label), 5) for engine, mask in masks.items()}
            row["int16_against_fp32"] = round(dice_score(masks["int16"], masks["fp32"]), 5)
            row["other_seed_against_fp32"] = round(dice_score(masks["other_seed"], masks["fp32"]), 5)
            row["saturated"] = found["int16"].report["saturated"]
            cases[name] = row
    names = ("fp32", "other_seed", "int16", "int16_against_fp32", "other_seed_against_fp32")
    means = {name: round(float(np.mean([row[name] for row in cases.values()])), 5) for name in names}
    saturated = [row["saturated"] for row in cases.values()]
    summary = means | {
        "cases": len(cases),
        "largest_loss_of_a_case": round(max(row["fp32"] - row["int16"] for row in cases.values()), 5),
        "cases_that_saturated": sum(count > 0 for count in saturated),
        "numbers_that_saturated": sum(saturated),
    }
    told = {
        "command": f"python reproduce/int16.py {arguments.data.name} --runs runs/hippocampus_cv",
        "seeds": {"fp32": 0, "other_seed": 1000, "int16": 0},
        "mednca": __version__,
        "machine": platform.machine(),
    }
    result = {"summary": summary, "provenance": told, "cases": dict(sorted(cases.items()))}
    atomic_write(RESULTS / "int16.json", json.dumps(result, indent=1).encode() + b"\n", force=True)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
