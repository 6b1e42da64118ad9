"""Scans of thick slices, as a scanner gives them: what drawing on between slices is worth by the header.

    python reproduce/thick.py DATA_ROOT

Of the first 21 held-out cases of fold 0 of hippocampus_robust every n-th slice is kept, along the axis that
the anisotropy of their report card has, and the header says how far apart they are. The model of the fold
sees them with and without `predict.coarse`, one run of fire masks, and its mask of these slices is compared
with their label:

    whole    the mask that it draws on the whole scan, on these slices
    with     the scan drawn on between its slices
    without  the scan as it is

Writes reproduce/results/thick.json.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from mednca.cases import Case
from mednca.dataset import load_scan
from mednca.metrics import dice_score
from mednca.perturb import planes, stream
from mednca.predict import Predictor
from mednca.volume import Volume
from reproduce.first_fold import SEED, data_root, opened, store, with_and_without

FACTORS = (2, 3, 4, 6, 8)
WAYS = ("whole", "with", "without")


def thick(volume: Volume, axis: int, factor: int) -> Volume:
    """Scan or mask, an axis, and which slices along it to keep -> these, as a scan of thick slices."""
    first = factor // 2
    affine = volume.affine.copy()
    affine[:3, 3] += first * affine[:3, axis]
    affine[:3, axis] *= factor
    kept = np.take(volume.data, np.arange(first, volume.shape[axis], factor), axis=axis + 1)
    return Volume(np.ascontiguousarray(kept), affine)


def measure(case: Case, predictors: dict[str, Predictor]) -> dict[str, dict[str, float]]:
    """Case and predictors -> factor -> Dice by each, and how many slices there were."""
    scan = load_scan(case)
    axis = planes(scan.image)[int(stream(case.id, "anisotropy", SEED).integers(0, 3))]
    whole = predictors["with"].predict(scan.image).mask
    told = {}
    for factor in FACTORS:
        label = thick(scan.label, axis, factor).data[0] > 0
        masks = {name: one.predict(thick(scan.image, axis, factor)).mask for name, one in predictors.items()}
        masks["whole"] = thick(whole, axis, factor)
        told[str(factor)] = {
            name: round(float(dice_score(masks[name].data[0] > 0, label)), 5) for name in WAYS
        } | {"slices": label.shape[axis]}
    return told


def summary(cases: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measured cases -> factor -> mean Dice by each."""
    return {
        str(factor): {
            name: round(statistics.fmean(case[str(factor)][name] for case in cases.values()), 5)
            for name in WAYS
        }
        for factor in FACTORS
    }


def main() -> None:
    """Measure and write."""
    whole, chosen = opened(data_root(__doc__))
    model, predictors = with_and_without(whole, "coarse")
    cases = {case.id: measure(case, predictors) for case in tqdm(chosen, unit="case")}
    store("thick", model, summary(cases), cases=cases)


if __name__ == "__main__":
    main()
