"""Times the backends on the CPU with one thread: forward and backward as in training, and forward only.

    python benchmarks/bench_training.py --json benchmarks/results/training.json

CPU seconds (not the wall clock, so that other work on the machine counts less). All backends take turns in
each round, after one round of warming up, in which each is also held to the definition: what gives other
numbers is not timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.cases import BackendCase
from mednca.backends import BACKENDS, load, native
from mednca.nca import MedNCA, Run
from mednca.rule import MedNCAConfig

_PAPER = MedNCAConfig(image_channels=3, steps=(16, 16))
_LEAN = MedNCAConfig(image_channels=3, steps=(16, 16), channels=16, hidden=64, perception="depthwise")


def jobs() -> dict[str, Callable[[Run], Tensor]]:
    """Name -> what to time; it returns a number that all backends must agree on."""
    made: dict[str, Callable[[Run], Tensor]] = {}
    for name, config in (("paper", _PAPER), ("lean", _LEAN)):
        torch.manual_seed(0)
        model = MedNCA(config)
        for rule in model.levels:
            torch.nn.init.normal_(rule.update_out.weight, std=0.02)
        images, corners = torch.rand(36, 3, 48, 64), torch.randint(0, 16, (16, 2))

        def train(
            run: Run, model: MedNCA = model, images: Tensor = images, corners: Tensor = corners
        ) -> Tensor:
            model.zero_grad()
            items = torch.arange(len(corners))
            patches = [(corners, (32, 32))]
            outputs = model(images[: len(corners)], seed=1, items=items, patches=patches, run=run)
            sum(model.logits(state).square().mean() for state, _ in outputs).backward()
            return torch.cat([array.grad.reshape(-1) for array in model.parameters()]).norm()

        def infer(run: Run, model: MedNCA = model, images: Tensor = images) -> Tensor:
            with torch.no_grad():
                outputs = model(images, seed=1, items=torch.arange(len(images)), run=run)
            return model.logits(outputs[-1][0]).norm()

        made[f"{name}: forward and backward, 16 images 48x64, patches 32x32, 16 + 16 steps"] = train
        made[f"{name}: forward, 36 images 48x64, 16 + 16 steps"] = infer
    return made


def kept_bytes(run: Run, config: MedNCAConfig) -> float:
    """Bytes that a run keeps for its backward pass, for a cell and a step, without weights."""
    case = BackendCase("memory", config, batch=2, height=32, width=32, steps=32)
    rule, state, key, window = case.make(torch.float32)
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        last = run(rule, state, key, window, case.steps)
    assert last.requires_grad
    for array in rule.parameters():
        sizes.pop(array.untyped_storage().data_ptr(), None)
    return sum(sizes.values()) / (case.batch * case.height * case.width * case.steps)


def measure(rounds: int) -> dict[str, object]:
    """Number of rounds -> the report."""
    runs = {name: load(name) for name in BACKENDS if name != "native" or native.available()}
    times: dict[str, object] = {}
    for job, work in jobs().items():
        expected = work(runs["eager"])
        for name, run in runs.items():
            torch.testing.assert_close(
                work(run), expected, rtol=1e-4, atol=0, msg=f"{name} is wrong in {job}"
            )
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.process_time()
                work(run)
                seconds[name].append(time.process_time() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        times[job] = {
            name: {
                "median_s": round(medians[name], 4),
                "min_s": round(min(values), 4),
                "max_s": round(max(values), 4),
                "times_eager": round(medians["eager"] / medians[name], 2),
            }
            for name, values in seconds.items()
        }
    told = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in told if line.startswith("model name")]
    kept = {
        rule: {name: round(kept_bytes(run, config)) for name, run in runs.items()}
        for rule, config in (("paper", _PAPER), ("lean", _LEAN))
    }
    return {
        "date": date.today().isoformat(),
        "processor": f"{platform.machine()} {models[0] if models else platform.processor()}",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "without": "" if native.available() else f"native: {native.why_not()}",
        "cpu_seconds": times,
        "kept_bytes_per_cell_and_step": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = json.dumps(measure(arguments.rounds), indent=2)
    print(report)
    if arguments.json:
        arguments.json.write_text(report + "\n", "utf-8")


if __name__ == "__main__":
    main()
