"""A U-Net trained the same way, where it too sees scans with their lines brought back and drawn on.

    python reproduce/unet_looks.py DATA_ROOT --runs runs

Its report card (`results/cards/hippocampus_unet_robust.json`) is of a training that knew neither. This judges
a model of fold 0 under RUNS, trained by `table1.py --only hippocampus_unet_robust --fold fold_0` since, on
what they are for: ghosts, spikes and coarse voxels, on the cases of the cards. What it lacks of what is usual
is measured as `prepare.py` does. Writes reproduce/results/unet_looks.json: Dice of every case, and means.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from mednca import __version__
from mednca.dataset import load_scan, load_scans
from mednca.files import atomic_write, read_json
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import VERSION, find, perturb
from mednca.predict import Predictor, with_ensemble
from mednca.robustness import CLEAN
from reproduce.catalogue import find as find_experiments
from reproduce.first_fold import CASES, SEED
from reproduce.folds import load
from reproduce.prepare import completed
from reproduce.stored import RESULTS

EXPERIMENT, NAMES = "hippocampus_unet_robust", ("ghosting", "anisotropy", "spike")


def summary(cases: dict[str, dict[str, float]]) -> dict[str, float]:
    """Case -> what was done -> Dice: means by what was done."""
    return {
        name: round(statistics.fmean(case[name] for case in cases.values()), 5)
        for name in next(iter(cases.values()))
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    asked = parser.parse_args()
    (experiment,) = find_experiments([EXPERIMENT])
    run = asked.runs / EXPERIMENT / "seed_0" / "fold_0"
    split = read_json(run / "split.json")
    by_id = {case.id: case for case in load(experiment.split).cases(asked.data_root).cases}
    scans = load_scans([by_id[name] for name in split["training"]], lambda todo: tqdm(todo, unit="scan"))
    model = with_ensemble(completed(load_model(run / "model.safetensors"), scans), 1)
    predictor = Predictor(model, signals=False, trust=False)
    cases: dict[str, dict[str, float]] = {}
    for name in tqdm(split["validation"][:CASES], unit="case"):
        scan = load_scan(by_id[name])
        views = {f"{CLEAN} 0": (scan.image, scan.label)}
        for one in find(list(NAMES)):
            for severity in one.severities:
                seen = perturb(one, scan.image, scan.label, severity, case=name, seed=SEED)
                views[f"{one.name} {severity:g}"] = seen.image, seen.label
        cases[name] = {
            what: round(float(dice_score(predictor.predict(image).mask.data[0] > 0, label.data[0] > 0)), 5)
            for what, (image, label) in views.items()
        }
    result = {
        "summary": summary(cases),
        "provenance": {
            "command": "python reproduce/unet_looks.py DATA_ROOT --runs runs",
            "model": model.hash,
            "perturbations": VERSION,
            "seed": SEED,
            "mednca": __version__,
        },
        "cases": cases,
    }
    atomic_write(RESULTS / "unet_looks.json", json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
