"""What smoothing across slices is worth: Dice out of fold against how often neighbours are averaged.

    python reproduce/smoothing.py DATA_ROOT --runs runs --only prostate_best

Each fold's model predicts its held-out cases once, without smoothing; its probabilities are then smoothed 0
to `--most` times as `predict.smoothing` does, and each gives a mask. Writes results/smoothing.json."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.metrics import dice_score
from mednca.slices import smoothed
from reproduce.catalogue import Experiment, find
from reproduce.folds import load
from reproduce.runs import finished
from reproduce.stored import RESULTS


def measure(experiment: Experiment, data_root: Path, runs: Path, most: int) -> dict[str, Any]:
    """Experiment with finished runs -> case -> times -> hard Dice on the native grid, and the means.

    Raises:
        InputError: If no run of its first seed is finished.
    """
    from mednca.dataset import class_numbers, load_scan
    from mednca.modelfile import load_model
    from mednca.predict import Predictor, decide, largest_component

    done = finished(experiment, runs)
    by_id = {case.id: case for case in load(experiment.split).cases(data_root).cases}
    rows: dict[str, dict[str, float]] = {}
    for training in done:
        model = load_model(training.path)
        own, axis = model.config.predict, model.config.preprocess.axes[0]
        plain = replace(model, config=replace(model.config, predict=replace(own, smoothing=0)))
        predictor = Predictor(plain, probability=True)
        for name in tqdm(training.split["validation"], desc=f"{experiment.name} {training.fold}"):
            scan = load_scan(by_id[name])
            label = class_numbers(scan.label, model.config).canonical().data[0] > 0
            found = predictor.predict(scan.image).probability
            assert found is not None
            shares, scores = found.canonical().data, {}
            for times in range(most + 1):
                mask = decide(smoothed(shares, axis, times), own.threshold, model.config.values)
                if own.largest_component:
                    mask = largest_component(mask)
                scores[str(times)] = round(dice_score(mask > 0, label), 5)
            rows[name] = scores
    means = {
        str(n): round(float(np.mean([row[str(n)] for row in rows.values()])), 5) for n in range(most + 1)
    }
    return {"folds": [training.fold for training in done], "means": means, "cases": rows}


def main(words: Sequence[str] | None = None) -> int:
    """Do what the docstring of this file says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", default="prostate_best", metavar="NAME")
    parser.add_argument("--most", type=int, default=6, metavar="N", help="smooth up to N times")
    asked = parser.parse_args(words)
    try:
        (experiment,) = find([asked.only])
        row = measure(experiment, asked.data_root, asked.runs, asked.most)
    except InputError as error:
        print(f"smoothing.py: {error}", file=sys.stderr)
        return 1
    row["command"] = f"python reproduce/smoothing.py DATA_ROOT --only {asked.only}"
    path = asked.results / "smoothing.json"
    atomic_write(path, json.dumps({"experiments": {asked.only: row}}, indent=1) + "\n", force=True)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
