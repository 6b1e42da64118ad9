"""Dice against the number of steps: a model run for 50 to 300 % of the steps that it was trained with.

    python reproduce/steps.py DATA_ROOT --runs runs --only hippocampus_best hippocampus_med_nca
    python reproduce/steps.py --draw

Every fold's model judges its own held-out cases (or the first `--cases` of each), with seed 0 and its own
number of fire-mask runs; results/steps.json holds each case, steps.png the curves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from mednca.errors import InputError
from mednca.files import atomic_write, read_json, replacing
from mednca.metrics import dice_score
from reproduce.catalogue import Experiment, find
from reproduce.folds import load
from reproduce.runs import finished
from reproduce.stored import RESULTS

if TYPE_CHECKING:
    from mednca.modelfile import ModelFile

PERCENT = (50, 75, 100, 150, 200, 300)


def with_steps(model: ModelFile, percent: int) -> ModelFile:
    """Model -> the same with each level's steps at a percentage of its own, at least 1: the weights do not
    depend on the steps."""
    steps = tuple(max(1, round(count * percent / 100)) for count in model.config.model.steps)
    config = replace(model.config, model=replace(model.config.model, steps=steps))
    return replace(model, config=config)


def measure(experiment: Experiment, data_root: Path, runs: Path, cases: int | None = None) -> dict[str, Any]:
    """Experiment with finished runs -> trained steps, and case -> percent -> hard Dice on the native grid.

    Raises:
        InputError: If no run of its first seed is finished.
    """
    from mednca.dataset import class_numbers, load_scan
    from mednca.modelfile import load_model
    from mednca.predict import Predictor

    done = finished(experiment, runs)
    by_id = {case.id: case for case in load(experiment.split).cases(data_root).cases}
    rows: dict[str, dict[str, float]] = {}
    for training in done:
        model = load_model(training.path)
        predictors = {percent: Predictor(with_steps(model, percent)) for percent in PERCENT}
        for name in tqdm(training.split["validation"][:cases], desc=f"{experiment.name} {training.fold}"):
            scan = load_scan(by_id[name])
            label = class_numbers(scan.label, model.config).data[0] > 0
            rows[name] = {
                str(percent): round(dice_score(predictor.predict(scan.image).mask.data[0] > 0, label), 5)
                for percent, predictor in predictors.items()
            }
    means = {str(p): round(float(np.mean([row[str(p)] for row in rows.values()])), 5) for p in PERCENT}
    return {
        "steps": list(model.config.model.steps),
        "ensemble": model.config.predict.ensemble,
        "folds": [training.fold for training in done],
        "means": means,
        "largest_loss": round(max(means.values()) - min(means.values()), 5),
        "cases": rows,
    }


def draw(results: Path) -> Path:
    """Folder of results -> steps.png in it, from steps.json."""
    from matplotlib.figure import Figure

    figure = Figure((6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, row in read_json(results / "steps.json")["experiments"].items():
        steps = "+".join(str(count) for count in row["steps"])
        means = [row["means"][str(percent)] for percent in PERCENT]
        told = f"{name} ({steps} steps, {len(row['cases'])} cases, mean of {row['ensemble']} runs)"
        axes.plot(PERCENT, means, marker="o", label=told)
    axes.axvline(100, color="0.6", linestyle=":")
    axes.set_xlabel("steps, % of those in training")
    axes.set_ylabel("hard Dice, native grid, out of fold")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(results / "steps.png") as path:
        figure.savefig(path, dpi=110, format="png")
    return results / "steps.png"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", default=["hippocampus_best"], metavar="NAME")
    parser.add_argument("--cases", type=int, metavar="N", help="the first N held-out cases of each fold")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    asked = parser.parse_args(words)
    if asked.data_root is None and not asked.draw:
        parser.error("DATA_ROOT is needed to measure; or give --draw")
    file = asked.results / "steps.json"
    try:
        if not asked.draw:
            content = read_json(file) if file.is_file() else {"experiments": {}}
            for name in asked.only:
                row = measure(find([name])[0], asked.data_root, asked.runs, asked.cases)
                row["command"] = f"python reproduce/steps.py DATA_ROOT --only {name}"
                row["command"] += f" --cases {asked.cases}" if asked.cases else ""
                content["experiments"][name] = row
            atomic_write(file, json.dumps(content, indent=1) + "\n")
        print(draw(asked.results))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
