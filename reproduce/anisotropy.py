"""What coarse voxels leave of a mask: a measure of how well anything can do on such a scan.

    python reproduce/anisotropy.py DATA_ROOT

Every held-out case of the folds of hippocampus_robust that the tree has goes through the anisotropy of its
report card (the same axis, the same factor), not as a scan but as a mask, which is then compared with the
label:

    label   the label, as an image; what is above a half then
    shape   the distance to the border of the label, positive inside, as an image; what is positive then.
            Between coarse voxels this draws the border on smoothly (shape-based interpolation: Herman et al.,
            IEEE Computer Graphics and Applications 12(3), 1992, doi:10.1109/38.135915)
    own     the same with the mask that the model of the fold draws on the scan as it is, with one run of fire
            masks, in place of the label

So `own` is what the model would have if it saw the coarse voxels of a scan as well as it sees the scan, and
drew on smoothly between them. Writes reproduce/results/anisotropy.json, with the Dice of the model's mask on
the scan as it is as `clean`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from mednca import __version__
from mednca.cases import Case
from mednca.dataset import load_scan
from mednca.files import atomic_write, read_json
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import VERSION, find, perturb
from mednca.predict import Predictor, with_ensemble
from reproduce.catalogue import find as find_experiments
from reproduce.folds import load
from reproduce.runs import MODELS
from reproduce.stored import RESULTS

EXPERIMENT, NAME = "hippocampus_robust", "anisotropy"
SEED = 0


def distances(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mask (X, Y, Z) with something in and outside -> distance to its border in voxels, positive inside."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)


def kept(case: Case, predictor: Predictor) -> dict[str, Any]:
    """Case and a model that has not seen it -> what is left at each factor, and the Dice of its mask on the
    scan as it is."""
    scan = load_scan(case)
    label = scan.label.data[0] > 0
    mask = predictor.predict(scan.image).mask.data[0] > 0
    images = {"label": label - np.float32(0.5), "shape": distances(label), "own": distances(mask)}
    told: dict[str, Any] = {"clean": round(dice_score(mask, label), 5)}
    for name, image in images.items():
        volume = scan.label.with_data(image[None])
        told[name] = {}
        for factor in find([NAME])[0].severities:
            coarse = perturb(NAME, volume, scan.label, factor, case=case.id, seed=SEED).image
            told[name][f"{factor:g}"] = round(dice_score(coarse.data[0] > 0, label), 5)
    return told


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    arguments = parser.parse_args()
    folds = load(find_experiments([EXPERIMENT])[0].split)
    by_id = {case.id: case for case in folds.cases(arguments.data_root).cases}
    todo = []
    for run in sorted(run for run in (MODELS / EXPERIMENT).iterdir() if (run / "split.json").is_file()):
        model = with_ensemble(load_model(run / "model.safetensors"), 1)
        predictor = Predictor(model, engine="native", signals=False, trust=False)
        todo += [(name, run.name, predictor) for name in read_json(run / "split.json")["validation"]]
    cases = {
        name: {"fold": fold, **kept(by_id[name], predictor)}
        for name, fold, predictor in tqdm(sorted(todo, key=lambda one: one[0]), unit="case")
    }
    result = {
        "summary": summary(list(cases.values())),
        "provenance": {
            "command": "python reproduce/anisotropy.py DATA_ROOT",
            "data": folds.split.data,
            "perturbations": VERSION,
            "seed": SEED,
            "mednca": __version__,
        },
        "cases": cases,
    }
    atomic_write(RESULTS / "anisotropy.json", json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(result["summary"]))


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Measured cases -> means of all that was measured."""
    first, told = cases[0], {"clean": round(statistics.fmean(case["clean"] for case in cases), 5)}
    means = {
        name: {factor: round(statistics.fmean(case[name][factor] for case in cases), 5) for factor in values}
        for name, values in first.items()
        if isinstance(values, dict)
    }
    return {**told, **means}


if __name__ == "__main__":
    main()
