"""Times one slice of the paper's model in every engine, and says how much of the processor's peak they reach.

    python benchmarks/bench_inference.py --json benchmarks/results/inference.json

The paper's rule (n = 32, h = 128) with 64 + 64 steps on a slice of 256 x 256; its weights are random, drawn
from a seed, as seconds do not depend on them. All engines take turns in each round, after one round of
warming up, with the same fire masks; each is held to NumPy in float64 on this very slice before. In the same
rounds a loop of multiply-adds in registers measures the peak.
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
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mednca import engine
from mednca.bench import (
    ENGINES,
    Maker,
    Slice,
    agrees,
    difference,
    machine,
    make_native,
    make_numpy,
    memory,
    missing,
    take_turns,
)
from mednca.config import RunConfig
from mednca.fire import FireKey
from mednca.modelfile import ModelFile, save_model, to_bytes
from mednca.nca import Backbone, MedNCA, Window
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
    return replace(model, range=seen_range(Slice(model, (64, 64))))


def seen_range(task: Slice) -> dict[str, Any]:
    """A slice -> the largest magnitudes of state, views and hidden units in all steps, as a model file holds
    them."""
    config = task.model.config.model
    seen: list[dict[str, list[float]]] = []

    def run(rule: Backbone, state: torch.Tensor, key: FireKey, window: Window, steps: int) -> torch.Tensor:
        n, largest = (
            config.channels,
            [torch.zeros(k) for k in (config.channels, 2 * config.channels, config.hidden)],
        )
        for step in range(steps):
            perception = rule.perceive(state)
            units = rule.update_in(perception.movedim(1, -1)).movedim(-1, 1)
            state = rule.step(state, torch.from_numpy(task.fires(key.level, step)))
            for k, values in enumerate((state, perception[:, n:], units)):
                largest[k] = torch.maximum(largest[k], values.abs().amax(dim=(0, 2, 3)))
        seen.append(dict(zip(("state", "views", "hidden"), (part.tolist() for part in largest), strict=True)))
        return state

    with torch.inference_mode():
        image = torch.from_numpy(task.image[0][None])
        MedNCA.from_weights(config, task.model.weights)(image, seed=0, items=torch.arange(1), run=run)
    return {"levels": seen}


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


def make_peak(library: ctypes.CDLL, threads: int) -> Callable[[], int]:
    """The loop -> a run of it in so many threads, which gives the number of multiply-adds."""

    def run(rounds: int = 20_000_000) -> int:
        done = [0] * threads

        def one(number: int) -> None:
            done[number] = library.multiply_add(rounds, ctypes.c_float())

        team = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
        for member in team:
            member.start()
        for member in team:
            member.join()
        return sum(done)

    return run


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
            runs["peak", count] = make_peak(library, count)
        runs |= {(name, 1): maker(task, 1) for name, maker in slower.items()}
        times = take_turns(runs, rounds)
        peak = {n: runs["peak", n]() / min(times["peak", n].seconds) for n in threads}
    rows = []
    for (name, count), each in times.items():
        if name == "peak":
            continue
        best = {
            kind: min(
                times[other, count].median
                for other in makers
                if (other, count) in times and other.startswith(kind) and other != "PyTorch, folded"
            )
            for kind in ("PyTorch", "O")  # O: ONNX Runtime, OpenVINO
            if any(other.startswith(kind) for other in makers)
        }
        row = {
            "engine": name,
            "threads": count,
            "median_s": each.median,
            "min_s": min(each.seconds),
            "max_s": max(each.seconds),
            "cpu_median_s": statistics.median(each.cpu_seconds),
            "faster_than_pytorch": round(best["PyTorch"] / each.median, 2),
            "apart": apart[name],
            "memory_mib": taken.get(name),
            "seconds": each.seconds,
            "cpu_seconds": each.cpu_seconds,
        }
        if "O" in best:
            row["faster_than_onnx_and_openvino"] = round(best["O"] / each.median, 2)
        if name.startswith("native"):
            work, rewritten = multiply_adds(task, gauge="not rewritten" not in name)
            row |= {"multiply_adds": work, "rewritten": rewritten}
            row["share_of_peak"] = round(work / each.median / peak[count], 3)
        rows.append(row)
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
        "peak_gmac_per_s": {str(count): round(value / 1e9, 1) for count, value in peak.items()},
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
        share = f"{row['share_of_peak']:7.0%}" if "share_of_peak" in row else ""
        print(
            f"{row['engine']:24}{row['threads']:2}{row['median_s']:9.3f} s ({row['min_s']:.3f} to "
            f"{row['max_s']:.3f}), CPU {row['cpu_median_s']:.3f}{row['faster_than_pytorch']:7.2f}{share}"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
