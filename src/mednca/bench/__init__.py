"""How fast this machine runs a model: seconds of a slice and of a scan, memory, also of other runtimes.

Engines take turns in each round, in another order each time, after a round of warming up. Each is held to
NumPy in float64 on a small slice first; one that gives other numbers is not timed. All get the same slice and
the same fire masks.

    task.py       the slice that is timed
    engines.py    what can run it, and whether the numbers are right
    measure.py    seconds and memory
    report.py     the table
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mednca.bench.engines import ENGINES, OWN, agrees, difference, make_numpy, missing
from mednca.bench.measure import memory, take_turns
from mednca.bench.report import Report, Row
from mednca.bench.task import Slice, phantom, with_steps
from mednca.errors import InputError
from mednca.machine import machine, processors
from mednca.modelfile import ModelFile, load_model

#: Rows and columns, at most, of the slice on which engines are held to that.
CHECKED = 64


def scan_of(model: ModelFile) -> tuple[tuple[int, int, int], list[float]]:
    """Model -> voxels and spacing of a scan as it was trained on, the middle of their ranges; where it does
    not tell, 64 x 64 x 32 of 1 mm."""
    told = model.card.get("fingerprint")
    if not isinstance(told, dict):
        return (64, 64, 32), [1.0, 1.0, 1.0]
    sizes, spacing = (np.mean(told[f"{name}_mm"], axis=0) for name in ("size", "spacing"))
    x, y, z = (max(2, round(float(a / b))) for a, b in zip(sizes, spacing, strict=True))
    return (x, y, z), [float(step) for step in spacing]


def make_scan(model: ModelFile, name: str, threads: int | None) -> Callable[[], Any]:
    """Model, engine and threads -> the segmentation of a whole scan, as `mednca predict` does it."""
    from mednca.predict import Predictor
    from mednca.volume import Volume

    shape, spacing = scan_of(model)
    volume = Volume(phantom(model.config.preprocess.modalities, shape), np.diag([*spacing, 1.0]))
    return functools.partial(Predictor(model, engine=name, threads=threads).predict, volume)


def bench(
    source: str,
    *,
    sizes: Sequence[tuple[int, int]] = ((64, 64), (256, 256)),
    steps: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    repeats: int = 5,
    compare: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Model -> how fast this machine runs it.

    Args:
        source: Run folder, file or name of a shipped model.
        sizes: Rows and columns of the slices.
        steps: Steps of each level instead of the model's own.
        threads: Numbers of threads; by default 1, and as many as there are processors.
        repeats: Rounds that count.
        compare: Also time every other runtime that is installed.
        progress: Called with measurements done and in all.

    Raises:
        InputError: If the model or a setting cannot be used.
    """
    model = with_steps(load_model(source), steps)
    model.require_automaton("the benchmark")
    counts = sorted(set(threads or (1, processors())))
    least = model.config.model.smallest
    if repeats < 1 or counts[0] < 1:
        raise InputError(f"repeats and threads must be at least 1, got {repeats} and {counts[0]}")
    if not sizes or min(map(min, sizes)) < least:
        raise InputError(f"size must be at least {least}x{least} for this model, got {sizes}")
    here = machine()
    names: list[str] = []
    notes: list[str] = []
    for name in ENGINES:
        if not compare and (name not in OWN or (name == "numpy" and names)):
            continue
        if why := missing(name, model):
            notes.append(f"{name}: not timed, {why}")
        else:
            names.append(name)
    small = Slice(model, (min(CHECKED, sizes[0][0]), min(CHECKED, sizes[0][1])))
    expected = make_numpy(small, 1, np.float64)()
    apart = {name: difference(small, ENGINES[name][0](small, 1)(), expected) for name in names}
    for name in [name for name in names if not agrees(name, apart[name])]:
        names.remove(name)
        told = ", ".join(f"{key} {value:.2g}" for key, value in apart[name].items())
        notes.append(f"{name}: not timed, it gives other numbers than NumPy in float64 ({told})")
    if here["load"] and here["load"][0] > 0.5 * here["processors"]:
        notes.append(f"The machine was busy (load {here['load'][0]:.1f}): it can do better than this.")

    tasks = [Slice(model, size) for size in sizes]
    jobs: dict[str, dict[tuple[str, int | None], Callable[[], Any]]] = {}
    for task in tasks:
        jobs[task.name] = {
            (name, count): ENGINES[name][0](task, count or 1)
            for name in names
            for count in _counts(name, counts)
        }
    whole = "scan " + " x ".join(map(str, scan_of(model)[0]))
    jobs[whole] = {
        (name, count): make_scan(model, name, count)
        for name in names
        if name in OWN
        for count in _counts(name, counts)
    }
    done, total = 0, sum(map(len, jobs.values())) * (1 + repeats) + len(names)

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    largest = max(tasks, key=lambda task: task.size[0] * task.size[1])
    taken = {}
    for name in names:
        taken[name] = memory(source, largest, name)
        tick()
    rows = []
    for job, runs in jobs.items():
        for (name, count), times in take_turns(runs, repeats, tick).items():
            measured = job == largest.name and count in (None, counts[0])
            rows.append(
                Row(
                    job,
                    name,
                    count,
                    times,
                    taken[name] if measured else None,
                    apart[name] if job != whole else None,
                )
            )
    card = {"name": model.card.get("name") or Path(source).name, "hash": model.hash}
    rule = {"steps": list(model.config.model.steps), "ensemble": model.config.predict.ensemble}
    return Report(card | rule, here, rows, notes)


def _counts(name: str, counts: Sequence[int]) -> Sequence[int | None]:
    """NumPy takes as many threads as its own library likes."""
    return [None] if name == "numpy" else counts
