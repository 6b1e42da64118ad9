"""Seconds of what takes turns, and the memory that a process of its own takes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mednca.bench.engines import ENGINES
from mednca.bench.task import Array, Slice, with_steps
from mednca.modelfile import load_model

K = TypeVar("K")
#: Seconds of rest before each measurement: the threads of the engine before stop spinning.
REST = 0.05


@dataclass(frozen=True)
class Times:
    """Seconds of each round: by the clock, and of processor time of all threads together.

    Where other programs keep a machine busy the second, for one thread, says what the first would be without.
    """

    seconds: list[float]
    cpu_seconds: list[float]

    @property
    def median(self) -> float:
        """By the clock."""
        return statistics.median(self.seconds)


def take_turns(
    runs: Mapping[K, Callable[[], Any]], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[K, Times]:
    """What to time by name -> its times. One more round goes before, which is not counted."""
    names = list(runs)
    times: dict[K, Times] = {name: Times([], []) for name in names}
    for number in range(-1, rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            time.sleep(REST)
            began, used = time.perf_counter(), time.process_time()
            runs[name]()
            if number >= 0:
                times[name].seconds.append(round(time.perf_counter() - began, 6))
                times[name].cpu_seconds.append(round(time.process_time() - used, 6))
            tick()
    return times


# ---- Memory ----

_MEMORY = """
import json, re, sys
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

bare = peak()
from mednca.bench.measure import prepare
run = prepare(**json.loads(sys.argv[1]))
loaded = peak()
run()
print(bare, loaded, peak())
"""


def prepare(source: str, steps: Sequence[int], size: Sequence[int], name: str) -> Callable[[], Array]:
    """What names a measurement -> the run, with one thread."""
    task = Slice(with_steps(load_model(source), steps), (size[0], size[1]), kept=False)
    return ENGINES[name][0](task, 1)


def memory(source: str, task: Slice, name: str) -> dict[str, float] | None:
    """Model, slice and engine -> MiB that a process of its own takes at its peak; None where the system does
    not tell.

    `above_python` is above a Python that has imported nothing, `above_loaded` above the same process with
    everything imported and the model opened.
    """
    if sys.platform != "linux":
        return None
    words = {"source": source, "steps": task.model.config.model.steps, "size": task.size, "name": name}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", _MEMORY, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the memory of {name} could not be measured: {said[-1]}")
    bare, loaded, peak = (int(word) / 1024 for word in done.stdout.split())
    return {"above_python": round(peak - bare, 1), "above_loaded": round(peak - loaded, 1)}
