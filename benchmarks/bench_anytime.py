"""What stopping early saves and costs, and what the signals cost, on labelled scans.

    python benchmarks/bench_anytime.py hippocampus Task04_Hippocampus --json benchmarks/results/anytime.json

Every scan is segmented with all steps, with all steps and signals, and with levels that end when no pixel of
the mask has changed for so many steps (`mednca.signals`). All take turns on each scan, after one run of
warming up, on one thread of the engine in C; CPU seconds are counted, so that other work on the machine
counts less. Times are ratios to all steps without signals, of the sums over the scans of the least of the
rounds. Where the model was trained on the scans, Dice itself tells nothing new, what is lost of it does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from mednca.cases import Case, find_labelled_cases
from mednca.io import read_case, read_label
from mednca.machine import processor
from mednca.metrics import dice_score
from mednca.modelfile import ModelFile, load_model
from mednca.predict import Predictor, with_ensemble

PATIENCE = (2, 3, 4, 6, 8)


def measure(
    model: ModelFile, cases: Sequence[Case], patience: Sequence[int], rounds: int, engine: str
) -> dict[str, Any]:
    """Model and labelled cases -> seconds, steps and Dice of each way to run it."""
    ways: dict[str, dict[str, Any]] = {"all steps": {"signals": False}, "signals": {"signals": True}}
    ways |= {str(number): {"signals": False, "patience": number} for number in patience}
    predictors = {
        name: Predictor(model, engine=engine, threads=1, **options) for name, options in ways.items()
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for case in cases:
        assert case.label is not None
        volume, label = read_case(case.images, case.channels), read_label(case.label).data[0] > 0
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, predictor in predictors.items():
                start = time.process_time()
                found = predictor.predict(volume)
                seconds[name].append(time.process_time() - start)
                if number:
                    continue
                rows[name].append(
                    {
                        "dice": dice_score(found.mask.data[0] > 0, label),
                        "steps": found.report["steps_run"] / found.report["steps_all"],
                        "voxels": found.mask.data[0],
                    }
                )
        for name in ways:
            rows[name][-1]["seconds"] = min(seconds[name][1:])
    base = rows["all steps"]
    total = sum(row["seconds"] for row in base)
    found_of: dict[str, Any] = {}
    for name, some in rows.items():
        lost = [one["dice"] - row["dice"] for one, row in zip(base, some, strict=True)]
        same = [dice_score(one["voxels"] > 0, row["voxels"] > 0) for one, row in zip(base, some, strict=True)]
        found_of[name] = {
            "steps_run": round(statistics.mean(row["steps"] for row in some), 4),
            "time": round(sum(row["seconds"] for row in some) / total, 4),
            "dice": round(statistics.mean(row["dice"] for row in some), 5),
            "dice_lost": round(statistics.mean(lost), 5),
            "most_lost": round(max(lost), 5),
            "mask_dice_to_all_steps": round(min(same), 5),
        }
    return {"seconds_of_all_steps": round(total, 3), "ways": found_of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="run folder, .safetensors file or name of a shipped model")
    parser.add_argument("data", type=Path, help="folder of a labelled data set")
    parser.add_argument("--cases", type=int, default=6, help="how many, spread over the sorted ones")
    parser.add_argument("--ensemble", type=int, help="runs to average instead of the model's own number")
    parser.add_argument("--engine", default="native", choices=("native", "int16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the report here")
    arguments = parser.parse_args()
    model = with_ensemble(load_model(arguments.model), arguments.ensemble)
    every = find_labelled_cases(arguments.data, None).cases
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, arguments.cases).round().astype(int)]
    found = measure(model, chosen, PATIENCE, arguments.rounds, arguments.engine)
    trained_on = set(model.card.get("training_cases", []))
    report = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "model": model.card.get("name", ""),
        "model_hash": model.hash,
        "steps": list(model.config.model.steps),
        "ensemble": model.config.predict.ensemble,
        "engine": arguments.engine,
        "rounds": arguments.rounds,
        "cases": [case.id for case in chosen],
        "trained_on": sum(case.id in trained_on for case in chosen),
        **found,
    }
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
