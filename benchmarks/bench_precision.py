"""Times iterations of training with products of float32 and of bfloat16 numbers, on one thread of the CPU.

    python benchmarks/bench_precision.py --json benchmarks/results/precision.json

An iteration is all that `mednca train` does in one: forward, loss, backward, clipping, Adam and the running
mean, for 16 images of 64 x 64 and patches of 32 x 32. Both take turns, after one iteration each of warming
up; CPU seconds are counted, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mednca import engine
from mednca.augment import TrainingCase, sample_batch
from mednca.backends import choose
from mednca.checkpoint import TrainState
from mednca.config import RunConfig, TrainConfig
from mednca.learner import Learner
from mednca.machine import processor
from mednca.rule import MedNCAConfig

CASES = {
    "two levels, dense, 32 channels, 128 hidden units": MedNCAConfig(steps=(16, 16)),
    "four levels, dense, 16 channels, 128 hidden units": MedNCAConfig(
        channels=16, scales=(8, 4, 2, 1), steps=(24, 16, 10, 8)
    ),
    "four levels, depthwise, 16 channels, 32 hidden units": MedNCAConfig(
        channels=16, hidden=32, perception="depthwise", scales=(8, 4, 2, 1), steps=(8, 8, 8, 8)
    ),
}
PRECISIONS = ("float32", "bfloat16")


def disc(seed: int) -> TrainingCase:
    """Seed -> four slices of 64 x 64 with a bright disc on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    label = np.stack([(rows - 32) ** 2 + (columns - 30) ** 2 < 150 + 10 * k for k in range(4)])
    image = (label + rng.normal(0, 0.3, label.shape)).astype(np.float32)
    return TrainingCase(str(seed), image[:, None].copy(), label.astype(np.uint8))


def measure(model: MedNCAConfig, rounds: int) -> dict[str, Any]:
    """Shape of a model -> CPU seconds of an iteration at each precision: median, least, largest; their ratio
    and the losses of the last iteration."""
    data = [disc(seed) for seed in range(4)]
    settings = RunConfig(model=model, train=TrainConfig(coarse_weight=0.0))
    learners = {
        precision: Learner(
            replace(settings, train=replace(settings.train, precision=precision)), TrainState(), "cpu"
        )
        for precision in PRECISIONS
    }
    runs = {precision: choose("cpu", "native", half=precision == "bfloat16") for precision in PRECISIONS}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    losses = {}
    for number in range(rounds + 1):
        batch = sample_batch(data, settings, (64, 64), np.random.default_rng(number))
        for precision, learner in learners.items():
            start = time.thread_time()
            losses[precision] = learner.step(batch, number, 1e-3, runs[precision])["loss"]
            seconds[precision].append(time.thread_time() - start)
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        values = seconds[precision][1:]
        found[precision] = {
            "median_s": round(statistics.median(values), 4),
            "min_s": round(min(values), 4),
            "max_s": round(max(values), 4),
            "loss": round(losses[precision], 4),
        }
    found["times_float32"] = round(found["float32"]["median_s"] / found["bfloat16"]["median_s"], 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if not engine.has_bfloat16():
        parser.exit(2, "this processor has no AVX512_BF16, or the C engine is not there\n")
    torch.set_num_threads(1)
    report = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "cases": {name: measure(model, arguments.rounds) for name, model in CASES.items()},
    }
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
