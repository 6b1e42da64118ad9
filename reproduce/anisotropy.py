"""What coarse voxels leave of the true mask itself: a measure of how well anything can do on such a scan.

    python reproduce/anisotropy.py DATA_ROOT

The label of every hippocampus goes through the anisotropy that its scan goes through on a report card (the
same axis, the same factor), as an image; what is above a half then is compared with the label. A model need
not stay below that, as it may know what hippocampi look like; but it would have to know more than the scan
shows. Writes reproduce/results/anisotropy.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from mednca import __version__
from mednca.cases import Case, find_cases
from mednca.dataset import load_scan
from mednca.files import atomic_write
from mednca.metrics import dice_score
from mednca.perturb import VERSION, find, perturb
from reproduce.stored import RESULTS

DATA, NAME = "Task04_Hippocampus", "anisotropy"


def kept(case: Case) -> dict[str, float]:
    """Case -> factor -> Dice of the label against itself at coarser voxels."""
    scan = load_scan(case)
    label = scan.label.data > 0
    image = scan.label.with_data(label.astype(np.float32))
    found = {}
    for factor in find([NAME])[0].severities:
        coarse = perturb(NAME, image, scan.label, factor, case=case.id, seed=0).image
        found[f"{factor:g}"] = round(dice_score(coarse.data[0] > 0.5, label[0]), 5)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    arguments = parser.parse_args()
    every = find_cases(arguments.data_root / DATA, require_labels=True).cases
    cases = {case.id: kept(case) for case in tqdm(every, unit="label")}
    factors = list(next(iter(cases.values())))
    means = {factor: round(statistics.fmean(row[factor] for row in cases.values()), 5) for factor in factors}
    result = {
        "dice": means,
        "provenance": {
            "command": "python reproduce/anisotropy.py DATA_ROOT",
            "data": DATA,
            "perturbations": VERSION,
            "seed": 0,
            "mednca": __version__,
        },
        "cases": cases,
    }
    atomic_write(RESULTS / "anisotropy.json", json.dumps(result, indent=1) + "\n", force=True)
    print(json.dumps(means))


if __name__ == "__main__":
    main()
