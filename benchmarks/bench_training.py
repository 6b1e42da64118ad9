"""Times the backends in training: forward, loss, backward and Adam, at the sizes of the paper.

    python benchmarks/bench_training.py --json benchmarks/results/training.json
    python benchmarks/bench_training.py --device cuda --json benchmarks/results/training_cuda.json

All engines take turns in each round, after one round of warming up, in which each is also held to the
definition: what gives another loss or other gradients is not timed. On the CPU, with one thread, the seconds
of the thread are counted beside those of the wall clock, so that other work on the machine counts less; the
peak memory is that of a process which does nothing but two iterations of one engine. On CUDA the device's own
allocator is asked.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.cases import TRAININGS, TrainingCase
from benchmarks.gathered import run_gathered
from mednca import engine
from mednca.backends import BACKENDS, load
from mednca.fire import FireKey, fire_mask
from mednca.machine import processor
from mednca.nca import Backbone, MedNCA, Run, Window, run_eager

#: Steps per level of the memory that is measured over them, on the full image.
STEPS = (16, 64, 256)


def run_channels_last(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """The definition, with states kept channels-last."""
    return run_eager(rule, state.contiguous(memory_format=torch.channels_last), key, window, steps)


@cache
def compiled_step(mode: str) -> Callable[[Backbone, Tensor, Tensor], Tensor]:
    return torch.compile(Backbone.step, mode=mode, dynamic=False)  # type: ignore[no-any-return]


def run_compiled(
    rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int, mode: str = "default"
) -> Tensor:
    """The definition, its step compiled by PyTorch."""
    state = state.contiguous(memory_format=torch.channels_last)
    for step in range(steps):
        fires = fire_mask(key, step, window.items, window.rows, window.columns, rule.config.fire_rate)
        state = compiled_step(mode)(rule, state, fires)
    return state


def engines(device: str, compiled: bool) -> dict[str, Run]:
    """Device -> name and run of what is timed there; the definition in both memory layouts first."""
    runs: dict[str, Run] = {"eager": run_eager, "eager, channels-last": run_channels_last}
    if compiled:
        runs["compiled"] = run_compiled
    runs["gathered"] = run_gathered
    for name in BACKENDS:
        if name != "eager" and (name != "native" or (device == "cpu" and engine.available())):
            runs[name] = load(name)
    return runs


class Job:
    """A model with its optimiser, and an engine to train it with."""

    def __init__(self, case: TrainingCase, name: str, run: Run, device: str) -> None:
        self.case, self.run, self.device = case, run, device
        self.model: MedNCA = case.model().to(device)
        if name in ("eager, channels-last", "compiled"):
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def iterate(self, seed: int) -> float:
        """One iteration -> the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.case.loss(self.model, self.run, seed)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def time(self, seed: int) -> tuple[float, float]:
        """One iteration -> CPU seconds of this thread and seconds on the wall."""
        self.wait()
        cpu, wall = time.thread_time(), time.perf_counter()
        self.iterate(seed)
        self.wait()
        return time.thread_time() - cpu, time.perf_counter() - wall

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def gradients(self) -> Tensor:
        """The gradients of the last iteration in one vector."""
        return torch.cat(
            [array.grad.reshape(-1) for array in self.model.parameters() if array.grad is not None]
        )


def check(jobs: dict[str, Job]) -> None:
    """First iteration of each engine; AssertionError where loss or gradients are not the definition's."""
    expected = jobs["eager"].iterate(0)
    gradients = jobs["eager"].gradients()
    for name, job in jobs.items():
        if name != "eager":
            found = job.iterate(0)
            error = float((job.gradients() - gradients).norm() / gradients.norm())
            assert abs(found - expected) < 1e-4 * abs(expected) and error < 1e-3, (
                name,
                found,
                expected,
                error,
            )


def time_case(case: TrainingCase, runs: dict[str, Run], device: str, rounds: int) -> dict[str, Any]:
    """Case, engines -> seconds of an iteration of each, and its ratio to the faster of the eager two."""
    jobs = {name: Job(case, name, run, device) for name, run in runs.items()}
    check(jobs)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name, job in jobs.items():
            seconds[name].append(job.time(number + 1))
    found: dict[str, Any] = {}
    for name, pairs in seconds.items():
        clocks = dict(zip(("cpu_s", "wall_s"), zip(*pairs, strict=True), strict=True))
        if device != "cpu":
            del clocks["cpu_s"]
        found[name] = {
            clock: {
                key: round(function(values), 4)
                for key, function in (("median", statistics.median), ("min", min), ("max", max))
            }
            for clock, values in clocks.items()
        }
    clock = "cpu_s" if device == "cpu" else "wall_s"
    best = min(found[name][clock]["median"] for name in found if name.startswith("eager"))
    for row in found.values():
        row["times_best_eager"] = round(best / row[clock]["median"], 2)
    return found


def peak(case: TrainingCase, engine: str, device: str) -> dict[str, float]:
    """Case and engine -> MB in use before and at the peak of two iterations; for a fresh process."""
    run = engines(device, compiled=True)[engine]
    job = Job(case, engine, run, device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
        job.iterate(0)
        job.iterate(1)
        return {"before_mb": round(before), "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6)}
    before = resident("VmRSS")
    job.iterate(0)
    job.iterate(1)
    return {"before_mb": round(before), "peak_mb": round(resident("VmHWM"))}


def resident(name: str) -> float:
    """ "VmRSS" or "VmHWM" -> MB of this process in memory, now or at most."""
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: the peak is all there is to be had
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    found = re.search(name + r":\s*(\d+) kB", status.read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def peak_elsewhere(
    case: TrainingCase, engine: str, device: str, steps: int | None = None
) -> dict[str, float]:
    """`peak`, in a process of its own."""
    words = [sys.executable, __file__, "--device", device, "--peak", case.name, engine, str(steps or 0)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.name}, {engine}: {done.stderr}")
    return dict(json.loads(done.stdout))


def measure(rounds: int, device: str, compiled: bool, names: list[str]) -> dict[str, object]:
    """Number of rounds, device, cases -> the report."""
    runs = engines(device, compiled)
    cases = {case.name: case for case in TRAININGS if not names or case.name in names}
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device != "cpu" else processor(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cases": {},
    }
    for case in cases.values():
        print(case.about, file=sys.stderr)
        rows = time_case(case, runs, device, rounds)
        for name, row in rows.items():
            row["memory"] = peak_elsewhere(case, name, device)
        report["cases"][case.name] = {"about": case.about, "engines": rows}
    if "whole" in cases:
        report["peak_mb_by_steps"] = {
            name: {steps: peak_elsewhere(cases["whole"], name, device, steps)["peak_mb"] for steps in STEPS}
            for name in runs
            if not name.startswith(("eager", "compiled"))
        }
    return report


def table(report: dict[str, Any]) -> str:
    """Report -> a table in Markdown."""
    lines = []
    for case in report["cases"].values():
        lines += [
            f"{case['about']}",
            "",
            "| engine | s per iteration | times the best eager | peak MB |",
            "|---|---:|---:|---:|",
        ]
        for name, row in case["engines"].items():
            clock = row.get("cpu_s", row["wall_s"])
            seconds = f"{clock['median']:.3f} ({clock['min']:.3f} to {clock['max']:.3f})"
            lines.append(
                f"| {name} | {seconds} | {row['times_best_eager']:.2f} | {row['memory']['peak_mb']:,} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="*", default=[], help=", ".join(case.name for case in TRAININGS))
    parser.add_argument("--compiled", action="store_true", help="torch.compile too (always on CUDA)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        name, engine, steps = arguments.peak
        case = next(case for case in TRAININGS if case.name == name)
        if int(steps):
            levels = (int(steps),) * len(case.config.scales)
            case = replace(case, config=replace(case.config, steps=levels))
        print(json.dumps(peak(case, engine, arguments.device)))
        return
    compiled = arguments.compiled or arguments.device != "cpu"
    report = measure(arguments.rounds, arguments.device, compiled, arguments.cases)
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
