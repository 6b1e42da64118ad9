"""What the gate costs on real scans: finer levels only near the coarse foreground, out of fold.

    python reproduce/gate.py Task04_Hippocampus --runs runs/hippocampus_cv

takes the five fold models that reproduce/hippocampus.py trained, predicts their held-out cases without a gate
and with gates of several widths (engine `native`, one run of fire masks), and writes
reproduce/results/gate.json: Dice against the label, against the ungated mask, and the share of the updates of
cells that were computed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mednca import __version__
from mednca.cases import find_cases
from mednca.checkpoint import RunFolder
from mednca.files import atomic_write
from mednca.io import read_case, read_label
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.predict import Predictor

RESULTS = Path(__file__).parent / "results"
GATES = (None, 16, 8, 4)


def main() -> None:
    """Predict and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    by_id = {case.id: case for case in find_cases(arguments.data, group="pairs", require_labels=True).cases}
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(arguments.runs.glob("fold_*")):
        model = load_model(path)
        engines = {str(gate): Predictor(model, engine="native", gate=gate) for gate in GATES}
        for name in tqdm(RunFolder.open(path).split()["validation"], desc=path.name, unit="scan"):
            case = by_id[name]
            assert case.label is not None
            label = read_label(case.label).data[0] > 0
            found = {gate: one.predict(read_case(case.images)) for gate, one in engines.items()}
            ungated = found["None"].mask.data[0] > 0
            cases[name] = {
                gate: {
                    "dice": round(dice_score(one.mask.data[0] > 0, label), 5),
                    "against_ungated": round(dice_score(one.mask.data[0] > 0, ungated), 5),
                    "computed": one.report["computed"],
                }
                for gate, one in found.items()
            }
    summary: dict[str, Any] = {}
    for gate in map(str, GATES):
        rows = [row[gate] for row in cases.values()]
        summary[gate] = {
            key: round(float(np.mean([row[key] for row in rows])), 5) for key in ("dice", "against_ungated")
        }
        summary[gate]["least_against_ungated"] = min(row["against_ungated"] for row in rows)
        all_of_them = float(np.mean([row["None"]["computed"] for row in cases.values()]))
        share = float(np.mean([row["computed"] for row in rows])) / all_of_them
        summary[gate]["share_of_updates"] = round(share, 4)
    result = {
        "summary": summary,
        "provenance": {
            "command": f"python reproduce/gate.py {arguments.data.name} --runs runs/hippocampus_cv",
            "seed": 0,
            "mednca": __version__,
            "cases": len(cases),
        },
        "cases": dict(sorted(cases.items())),
    }
    atomic_write(RESULTS / "gate.json", json.dumps(result, indent=1).encode() + b"\n", force=True)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
