"""Does every training succeed? Seeds of a short phantom training, with and without what makes it reliable.

    python benchmarks/bench_reliability.py            ten seeds of each setting
    python benchmarks/bench_reliability.py --quick    two seeds, a few iterations: does the script work?

A run that is stored in results/reliability.json is not done again, unless its configuration has changed. The
table stands in README.md beside this file, between the marks of this benchmark.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mednca import __version__
from mednca.cases import find_cases
from mednca.checkpoint import RunFolder
from mednca.config import RunConfig, to_dict
from mednca.dataset import fingerprint, load_scans, training_cases
from mednca.errors import InputError
from mednca.evaluate import evaluate
from mednca.files import atomic_write
from mednca.machine import processor
from mednca.predict import Predictor
from mednca.recipes import Fingerprint, quick
from mednca.synthetic import write_phantoms
from mednca.train import fit

HERE = Path(__file__).resolve().parent
GOAL = 0.85
ITERATIONS, BATCH_SIZE, LEARNING_RATE = 2000, 4, 1e-2  # a smaller budget than that of the recipe `quick`
RESULTS = HERE / "results" / "reliability.json"
PAGE = HERE / "README.md"
MARKS = ("<!-- reliability: begin -->", "<!-- reliability: end -->")
TRAINING, HELD_OUT = 24, 6  # phantoms
Change = Callable[[RunConfig], RunConfig]


def ours(config: RunConfig) -> RunConfig:
    """The recipe as it is."""
    return config


def unguarded(config: RunConfig) -> RunConfig:
    """Clipping, running mean of the weights and sentinel switched off."""
    return replace(config, train=replace(config.train, clip=0.0, ema=0.0, sentinel=False))


def official(config: RunConfig) -> RunConfig:
    """The same with the authors' optimiser: rate 1.6e-3, betas 0.5 and 0.5, no warm-up, slow decay."""
    config = unguarded(config)
    train = replace(config.train, learning_rate=1.6e-3, betas=(0.5, 0.5), schedule="exponential", warmup=0)
    return replace(config, train=train)


#: Name in the table -> what it changes.
SETTINGS: dict[str, Change] = {"ours": ours, "unguarded": unguarded, "official": official}


def configure(data: Fingerprint, change: Change, seed: int, iterations: int) -> RunConfig:
    """Fingerprint, setting and seed -> a configuration of the benchmark's own budget."""
    config = quick(data)
    train = replace(
        config.train,
        iterations=iterations,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        validate_every=0,
        checkpoint_every=iterations,
        seed=seed,
    )
    return change(replace(config, recipe="bench_reliability", train=train))


def measure(config: RunConfig, training: Any, held_out: Any, labels: dict[int, str]) -> dict[str, Any]:
    """Configuration and scans -> Dice on the held-out phantoms, events and CPU seconds of one training."""
    started = time.process_time()
    cases = [case for scan in training for case in training_cases(scan, config)]
    with tempfile.TemporaryDirectory() as folder:
        split = {"training": [scan.id for scan in training], "validation": []}
        run = RunFolder.create(Path(folder) / "run", config, split)
        failed = ""
        try:
            model = fit(run, config, cases, [], {}, progress=False)
        except InputError as error:  # the sentinel gave up
            failed = str(error)
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    scores = {}
    if not failed:
        report = evaluate(Predictor(model), [scan.case for scan in held_out], labels=labels)
        scores = {name: case["merged"]["dice"] for name, case in report.cases.items()}
    dice = float(np.mean(list(scores.values()))) if scores else 0.0
    return {
        "dice": round(dice, 4),
        "worst_case": round(float(min(scores.values(), default=0.0)), 4),
        "events": [f"{e['reason']} at {e['iteration']}: {e['event']}" for e in lines if e["kind"] == "event"],
        "failed": failed,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def table(stored: dict[str, Any], iterations: int) -> str:
    """Stored results -> the markdown table, a row per seed."""
    runs = stored["runs"]
    names = [name for name in SETTINGS if any(run["setting"] == name for run in runs.values())]
    by_seed: dict[int, dict[str, Any]] = {}
    for run in runs.values():
        by_seed.setdefault(run["seed"], {})[run["setting"]] = run
    lines = [
        f"Mean Dice of {HELD_OUT} held-out phantoms after {iterations} iterations on {TRAINING} others.",
        "",
        f"| seed | {' | '.join(names)} |",
        "|---:" * (len(names) + 1) + "|",
    ]
    for seed in sorted(by_seed):
        cells = []
        for name in names:
            run = by_seed[seed].get(name)
            events = f" ({len(run['events'])} rescued)" if run and run["events"] else ""
            cells.append(f"{run['dice']:.3f}{events}" if run else "")
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    found = {name: [run["dice"] for run in runs.values() if run["setting"] == name] for name in names}
    reached = [f"{sum(dice >= GOAL for dice in values)} of {len(values)}" for values in found.values()]
    lines.append(f"| reach {GOAL} | {' | '.join(reached)} |")
    lines.append(f"| mean | {' | '.join(f'{np.mean(values):.3f}' for values in found.values())} |")
    lines.append(f"| least | {' | '.join(f'{min(values):.3f}' for values in found.values())} |")
    lines += ["", *(f"- `{name}`: {(SETTINGS[name].__doc__ or '').strip()}" for name in names)]
    seconds = np.median([run["cpu_seconds"] for run in runs.values()])
    where = stored["provenance"]
    lines += [
        "",
        "Dice is hard and of the merged foreground, on each scan's own grid. (n rescued): what the sentinel",
        "did about a stuck or diverged training.",
        f"{seconds:.0f} s of CPU per training, one thread, {where['processor']}; mednca {where['mednca']}, "
        f"PyTorch {where['torch']}.",
        "Command: `python benchmarks/bench_reliability.py`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Do the trainings that are not stored yet, store each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each setting")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--quick", action="store_true", help="two seeds, few iterations; not stored")
    options = parser.parse_args()
    iterations, seeds = (20, 2) if options.quick else (ITERATIONS, options.seeds)
    torch.set_num_threads(1)
    stored: dict[str, Any] = {"runs": {}}
    if RESULTS.is_file() and not options.quick:
        stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    stored["provenance"] = {
        "command": "python benchmarks/bench_reliability.py",
        "processor": processor(),
        "threads": 1,
        "mednca": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as folder:
        cases = find_cases(write_phantoms(Path(folder) / "phantoms", TRAINING + HELD_OUT, seed=2))
        scans = load_scans(cases.cases)
        training, held_out = scans[:TRAINING], scans[TRAINING:]
        data = fingerprint(cases, scans)
        # Seed by seed, so that an unfinished benchmark compares the settings on the same seeds.
        todo = [(seed, name) for seed in range(seeds) for name in options.settings]
        for seed, name in tqdm(todo, unit="training"):
            config = configure(data, SETTINGS[name], seed, iterations)
            settings = json.dumps(to_dict(config), sort_keys=True)
            digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
            key = f"{name} {seed}"
            if stored["runs"].get(key, {}).get("config") == digest:
                continue
            result = measure(config, training, held_out, cases.labels)
            stored["runs"][key] = {"setting": name, "seed": seed, "config": digest} | result
            tqdm.write(f"{key}: Dice {result['dice']:.3f}, {result['cpu_seconds']:.0f} s, {result['events']}")
            if not options.quick:
                atomic_write(RESULTS, json.dumps(stored, indent=1) + "\n")
    text = table(stored, iterations)
    print(text)
    if not options.quick:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
