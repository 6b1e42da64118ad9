"""Times one slice of the paper's model in every engine, and says how much of the processor's peak they reach.

    python benchmarks/bench_inference.py --json benchmarks/results/inference.json

The paper's rule (n = 32, h = 128) with 64 + 64 steps on a slice of 256 x 256; its weights are random, drawn
from a seed, as seconds do not depend on them. All engines take turns in each round, after one round of
warming up, with the same fire masks; each is held to NumPy in float64 on this very slice before. In the same
rounds a loop of multiply-adds in registers measures the peak.

In the report, times_pytorch and times_runtimes say how many times as fast an engine is as the fastest of
PyTorch eager, and of ONNX Runtime and OpenVINO, with as many threads: by the clock, and (_cpu) in processor
time, which other work on the machine touches less. share_of_peak is of the multiply-adds that are computed,
in processor time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mednca import engine
from mednca.bench.engines import ENGINES, Maker, agrees, difference, make_native, make_numpy, missing
from mednca.bench.measure import memory, take_turns
from mednca.bench.task import Slice
from mednca.calibrate import measure_range
from mednca.config import RunConfig
from mednca.machine import machine
from mednca.modelfile import ModelFile, save_model, to_bytes
from mednca.nca import MedNCA
from mednca.rule import MedNCAConfig, weight_shapes

LOOP = """
#include <stdint.h>
#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
typedef float Vector __attribute__((vector_size(BYTES)));

/* Rounds of 12 independent multiply-adds of vectors -> how many of numbers they were. */
int64_t multiply_add(int64_t rounds, float *result)
{
    Vector a[12], b = {0}, c = {0};
    for (int k = 0; k < 12; k++)
        a[k] = b + (float)k;
    b += 0.999f;
    c += 0.001f;
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < 12; k++)
            a[k] = a[k] * b + c;
    }
    Vector sum = {0};
    for (int k = 0; k < 12; k++)
        sum += a[k];
    *result = sum[0];
    return rounds * 12 * (BYTES / 4);
}
"""


#: Of the loop: some tenths of a second.
ROUNDS = 50_000_000
#: Settings of PyTorch, and other runtimes, of which the fastest is what an engine is compared with.
PYTORCH, RUNTIMES = ("PyTorch", "PyTorch, channels-last"), ("ONNX Runtime", "OpenVINO")


def paper_model(steps: tuple[int, ...], seed: int = 0) -> ModelFile:
    """Steps of each level -> the paper's model with random weights, and the range of its states."""
    rule = MedNCAConfig(steps=steps)
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(rule).items():
        fan_in = {"perceive": 9 * rule.channels, "update_in": 3 * rule.channels, "update_out": rule.hidden}
        width = 0.4 if "update_out" in name else 1.0
        bound = width * next(fan for part, fan in fan_in.items() if part in name) ** -0.5
        weights[name] = random.uniform(-bound, bound, shape).astype(np.float32)
    model = ModelFile(RunConfig(model=rule), weights, {"name": "the paper's model, random weights"})
    return replace(model, range=measure_range(model, [Slice(model, (64, 64)).image[0][None]]))


def make_folded(task: Slice, threads: int) -> Callable[[], Any]:
    """PyTorch on the rule as two convolutions, the package's own `folded`; it draws the fire masks itself."""
    from mednca.backends.folded import run_folded
    from mednca.nca import probabilities

    model = MedNCA.from_weights(task.model.config.model, task.model.weights)
    image = torch.from_numpy(task.image[0][None])

    def run() -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            state, _ = model(image, seed=0, items=torch.arange(1), run=run_folded)[-1]
            return probabilities(model.logits(state))[0].numpy()

    return run


def peak_loop(folder: Path, compiler: str) -> ctypes.CDLL:
    """Folder and compiler -> the loop of multiply-adds, compiled for this machine."""
    (folder / "loop.c").write_text(LOOP)
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    subprocess.run([*shlex.split(compiler), *flags, "loop.c", "-o", "loop.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "loop.so"))
    library.multiply_add.restype = ctypes.c_int64
    library.multiply_add.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]
    return library


def multiply_adds(task: Slice, gauge: bool) -> tuple[int, bool]:
    """A slice -> multiply-adds of the cells that fire, as the engine in C computes them, and whether it
    rewrote the rule."""
    rule = task.model.config.model
    n, h = rule.channels, rule.hidden
    model = engine.Model(to_bytes(task.model), ensemble=1, gauge=gauge)
    voxels, spacing = task.scan
    counts = model.segment(voxels, np.zeros(voxels.shape[1:], np.uint8), spacing=spacing)
    rewritten = all(model.facts.condition[level] > 0 for level in range(len(rule.scales)))
    per_cell = 2 * 9 * n * n + 3 * n * (h - 2 * n * rewritten) + h * n
    return counts.cells * per_cell, rewritten


def measure(
    size: tuple[int, int],
    steps: tuple[int, int],
    threads: list[int],
    rounds: int,
    compiler: str,
    command: str,
) -> dict[str, Any]:
    """Size, steps, numbers of threads and rounds -> the report."""
    model = paper_model(steps)
    task = Slice(model, size)
    sets = engine.instructions()
    makers: dict[str, Maker] = {name: maker for name, (maker, _) in ENGINES.items() if name != "numpy"}
    makers |= {
        "native, not rewritten": partial(make_native, gauge=False),
        "int16, not rewritten": partial(make_native, numbers="int16", gauge=False),
        "PyTorch, folded": make_folded,
    }
    without = {name: why for name in ENGINES if (why := missing(name, model))}
    makers = {name: maker for name, maker in makers.items() if name not in without}
    slower = {f"native, {name}": partial(make_native, instructions=name) for name in sets[1:]}
    here = machine()
    expected = make_numpy(task, 1, np.float64)()
    apart = {name: difference(task, maker(task, 1)(), expected) for name, maker in (makers | slower).items()}
    for name, far in apart.items():
        if not agrees(name.partition(",")[0], far):
            raise SystemExit(f"{name} gives other numbers than NumPy in float64: {far}")
    with tempfile.TemporaryDirectory() as folder:
        source = str(save_model(Path(folder) / "model.safetensors", model))
        taken = {name: memory(source, task, name) for name in ENGINES if name in makers}
        library = peak_loop(Path(folder), compiler)
        runs: dict[tuple[str, int], Callable[[], Any]] = {}
        for count in threads:
            runs |= {(name, count): maker(task, count) for name, maker in makers.items()}
        runs["peak", 1] = partial(library.multiply_add, ROUNDS, ctypes.c_float())
        runs |= {(name, 1): maker(task, 1) for name, maker in slower.items()}
        times = take_turns(runs, rounds)
        peak = runs["peak", 1]() / statistics.median(times["peak", 1].cpu_seconds)
    rows = []
    for (name, count), each in times.items():
        if name == "peak":
            continue
        cpu = statistics.median(each.cpu_seconds)
        row: dict[str, Any] = {
            "engine": name,
            "threads": count,
            "median_s": each.median,
            "min_s": min(each.seconds),
            "max_s": max(each.seconds),
            "cpu_median_s": cpu,
        }
        for key, others in (("pytorch", PYTORCH), ("runtimes", RUNTIMES)):
            theirs = [times[other, count] for other in others if (other, count) in times]
            if theirs:
                row[f"times_{key}"] = round(min(other.median for other in theirs) / each.median, 2)
                least = min(statistics.median(other.cpu_seconds) for other in theirs)
                row[f"times_{key}_cpu"] = round(least / cpu, 2)
        if name.startswith("native"):
            work, row["rewritten"] = multiply_adds(task, gauge="not rewritten" not in name)
            row["multiply_adds"] = work
            row["share_of_peak"] = round(work / cpu / peak, 3)
        row |= {"apart": apart[name], "memory_mib": taken.get(name) if count == threads[0] else None}
        rows.append(row | {"seconds": each.seconds, "cpu_seconds": each.cpu_seconds})
    return {
        "what": f"one slice of {size[0]} x {size[1]}, {' + '.join(map(str, steps))} steps, n = 32, h = 128",
        "command": command,
        "rounds": rounds,
        "machine": here,
        "compiler": subprocess.run(
            [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0],
        "instructions": sets,
        "not_timed": without,
        "peak_gmac_per_cpu_s": round(peak / 1e9, 1),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--steps", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiler", default="cc", help="for the loop that measures the peak")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    command = shlex.join(["python", "benchmarks/bench_inference.py", *sys.argv[1:]])
    size, steps = tuple(given.size), tuple(given.steps)
    found = measure(size, steps, given.threads, given.rounds, given.compiler, command)
    for row in found["rows"]:
        share = f", {row['share_of_peak']:.0%} of the peak" if "share_of_peak" in row else ""
        times = ", ".join(f"{row[key]:.2f}" for key in row if key.startswith("times_"))
        print(
            f"{row['engine']:24}{row['threads']:2} {row['median_s']:8.3f} s ({row['min_s']:.3f} to "
            f"{row['max_s']:.3f}), CPU {row['cpu_median_s']:.3f} s; {times}{share}"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
