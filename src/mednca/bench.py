"""How fast this machine runs a model: seconds of a slice and of a scan, memory, also of other runtimes.

Engines take turns in each round, in another order each time, after a round of warming up. Each is held to
NumPy in float64 on a small slice first; one that gives other numbers is not timed. All get the same slice and
the same fire masks. The engines in C normalise the slice and draw the masks in their time, `numpy` draws
them; for PyTorch, ONNX Runtime and OpenVINO both are done beforehand and not timed.

Shapes: M modalities, K classes, I image channels, n channels, H x W cells.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mednca import engine
from mednca.backends import numpy as in_numpy
from mednca.errors import InputError
from mednca.fire import FireKey, fire_mask
from mednca.machine import machine, processors
from mednca.modelfile import ModelFile, load_model, to_bytes

Array = NDArray[Any]
K = TypeVar("K")
#: Takes a task and a number of threads, gives what is timed: no argument -> probabilities, (K, H, W) of the
#: levels' grid or (K, X, Y, Z) of the scan's voxels.
Maker = Callable[["Slice", int], Callable[[], Array]]

#: What a probability may differ from NumPy's in float64: at most, in fp32; on average, in int16.
FP32_TOLERANCE, INT16_TOLERANCE = 2e-3, 2e-2
#: Rows and columns, at most, of the slice on which engines are held to that.
CHECKED = 64
#: Seconds of rest before each measurement: the threads of the engine before stop spinning.
REST = 0.05


@dataclass(frozen=True)
class Slice:
    """One slice to segment, the same for every engine.

    Attributes:
        model: With the steps that are to be run; it looks along its main axis alone.
        size: Rows and columns of the slice.
        kept: Whether fire masks are drawn once and kept, as for timing, or each time that one is needed.
    """

    model: ModelFile
    size: tuple[int, int]
    kept: bool = True

    def __post_init__(self) -> None:
        config = self.model.config
        one = replace(config, preprocess=config.preprocess.views[0])
        object.__setattr__(self, "model", replace(self.model, config=one))

    @property
    def name(self) -> str:
        """For tables."""
        return f"slice {self.size[0]} x {self.size[1]}"

    @functools.cached_property
    def scan(self) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
        """A made-up scan (M, X, Y, Z) of this one slice, and its spacing, which is the model's."""
        pre = self.model.config.preprocess
        shape, spacing = [1, 1, 1], [1.0, 1.0, 1.0]
        axes = (axis for axis in range(3) if axis != pre.axis)
        for axis, length, step in zip(axes, self.size, pre.spacing or (1.0, 1.0), strict=True):
            shape[axis], spacing[axis] = length, step
        return phantom(pre.modalities, (shape[0], shape[1], shape[2])), (spacing[0], spacing[1], spacing[2])

    @functools.cached_property
    def image(self) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
        """The slice as the levels want it, (I, H, W), and where in it the scan lies."""
        from mednca.slices import pad_to, prepare_image, with_context
        from mednca.volume import Volume

        pre, rule = self.model.config.preprocess, self.model.config.model
        slices = prepare_image(Volume(self.scan[0], np.diag([*self.scan[1], 1.0])), pre)
        stack, inside = pad_to(with_context(slices, np.arange(1), pre.context), rule.multiple, rule.smallest)
        return stack[0], inside

    def voxelwise(self, probability: Array) -> Array:
        """Probabilities as an engine gives them -> (K, X, Y, Z)."""
        from mednca.slices import restore
        from mednca.volume import Volume

        if probability.ndim == 4:
            return probability
        like = Volume(self.scan[0], np.diag([*self.scan[1], 1.0]))
        rows, columns = self.image[1]
        return restore(probability[None, :, rows, columns], like, self.model.config.preprocess)

    def fires(self, level: int, step: int) -> NDArray[np.bool_]:
        """The fire mask (1, H, W) of a step."""
        if not self.kept:
            return self._draw(level, step)
        if (level, step) not in self._masks:
            self._masks[level, step] = self._draw(level, step)
        return self._masks[level, step]

    @functools.cached_property
    def _masks(self) -> dict[tuple[int, int], NDArray[np.bool_]]:
        return {}

    def _draw(self, level: int, step: int) -> NDArray[np.bool_]:
        rule = self.model.config.model
        height, width = (length // rule.scales[level] for length in self.image[0].shape[1:])
        rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
        drawn: NDArray[np.bool_] = fire_mask(FireKey(0, level), step, 0, rows, columns, rule.fire_rate)
        return drawn


def phantom(modalities: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Shape -> a made-up scan (M, X, Y, Z), the same every time: blobs in noise."""
    random = np.random.default_rng(0)
    scan = random.normal(0.0, 0.1, (modalities, *shape)).astype(np.float32)
    for _ in range(8):
        blob = np.ones((1, 1, 1))
        for axis, length in enumerate(shape):
            centre, width = random.uniform(0.2, 0.8), random.uniform(0.05, 0.2)
            profile = np.exp(-(((np.arange(length) + 0.5) / length - centre) ** 2) / (2 * width**2))
            blob = blob * (profile.reshape([-1 if a == axis else 1 for a in range(3)]) if length > 1 else 1)
        scan += (random.uniform(0.3, 1.0, (modalities, 1, 1, 1)) * blob).astype(np.float32)
    return scan * 500 + 500


# ---- Engines ----


def solve(task: Slice, run_level: Callable[[int, Array], Array]) -> Array:
    """A slice and a way to run a level's steps, on a state (1, n, H, W) -> probabilities (K, H, W)."""
    rule, image = task.model.config.model, task.image[0]
    state = np.zeros((1, rule.channels, 1, 1), np.float32)
    for level, scale in enumerate(rule.scales):
        sharp = in_numpy.downscale(image, scale)
        height, width = sharp.shape[1:]
        state = state.repeat(height // state.shape[2], axis=2).repeat(width // state.shape[3], axis=3)
        state[0, : rule.image_channels] = sharp
        state = run_level(level, state)
    logits = state[0, rule.image_channels : rule.image_channels + rule.classes]
    shares: Array = in_numpy.softmax(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    return shares


def make_native(task: Slice, threads: int, numbers: str = "fp32", **options: Any) -> Callable[[], Array]:
    """The engine in C, from voxels to probabilities (K, X, Y, Z); options are those of `engine.Model`."""
    model = engine.Model(to_bytes(task.model), numbers=numbers, ensemble=1, **options)
    voxels, spacing = task.scan
    mask = np.zeros(voxels.shape[1:], np.uint8)
    probability = np.zeros((task.model.config.model.classes, *mask.shape), np.float32)

    def run() -> Array:
        model.segment(voxels, mask, probability, spacing=spacing, threads=threads)
        return probability

    return run


def make_numpy(task: Slice, threads: int, dtype: Any = np.float32) -> Callable[[], Array]:
    """NumPy, with as many threads as its own library takes."""
    rule = task.model.config.model
    rules = in_numpy.fold(rule, task.model.weights, dtype)

    def run() -> Array:
        image = task.image[0].astype(dtype)
        shares: Array = in_numpy.probabilities(rule, rules, image[None], np.arange(1), 0)[0]
        return shares

    return run


def make_torch(task: Slice, threads: int, channels_last: bool = False) -> Callable[[], Array]:
    """PyTorch, the definition as it stands."""
    import torch

    from mednca.nca import Backbone, MedNCA

    rule = task.model.config.model
    model = MedNCA.from_weights(rule, task.model.weights)
    form = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=form)  # type: ignore[call-overload]

    def run_level(level: int, state: Array) -> Array:
        backbone = model.levels[level]
        assert isinstance(backbone, Backbone)
        cells = torch.from_numpy(state).contiguous(memory_format=form)
        for step in range(rule.steps[level]):
            cells = backbone.step(cells, torch.from_numpy(task.fires(level, step)))
        return cells.numpy()

    def run() -> Array:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return solve(task, run_level)

    return run


def step_graphs(model: ModelFile) -> list[bytes]:
    """Model -> the ONNX graph of a step of each level."""
    from mednca.export import level_weights, step_graph

    rule = model.config.model
    return [
        step_graph(level_weights(model.weights, level), rule, {}).SerializeToString()
        for level in range(len(rule.scales))
    ]


def make_onnxruntime(task: Slice, threads: int) -> Callable[[], Array]:
    """ONNX Runtime on the exported steps; states stay in two places of its own, in turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    sessions = [
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for graph in step_graphs(task.model)
    ]
    place = onnxruntime.OrtValue.ortvalue_from_numpy

    def run_level(level: int, state: Array) -> Array:
        arrays = [np.ascontiguousarray(state), np.empty_like(state)]  # the places are these arrays' memory
        places = [place(array) for array in arrays]
        for step in range(task.model.config.model.steps[level]):
            mask = task.fires(level, step)
            binding = sessions[level].io_binding()
            binding.bind_ortvalue_input("state", places[step % 2])
            binding.bind_ortvalue_input("fires", place(mask))
            binding.bind_ortvalue_output("next", places[(step + 1) % 2])
            sessions[level].run_with_iobinding(binding)
        return arrays[task.model.config.model.steps[level] % 2]

    return functools.partial(solve, task, run_level)


def make_openvino(task: Slice, threads: int) -> Callable[[], Array]:
    """OpenVINO on the exported steps, in float32; two requests in turns, so that no state is copied."""
    import io

    import openvino

    core = openvino.Core()
    wanted = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    requests = [
        [core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", wanted)]
        for graph in step_graphs(task.model)
    ]
    pairs = [[compiled.create_infer_request() for _ in range(2)] for (compiled,) in requests]

    def run_level(level: int, state: Array) -> Array:
        for step in range(task.model.config.model.steps[level]):
            inputs = {"state": state, "fires": task.fires(level, step)}
            state = pairs[level][step % 2].infer(inputs, share_inputs=True, share_outputs=True)[0]
        return state

    return functools.partial(solve, task, run_level)


#: Name -> what makes it, and what must be installed for it.
ENGINES: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "native": (make_native, ()),
    "int16": (functools.partial(make_native, numbers="int16"), ()),
    "numpy": (make_numpy, ()),
    "PyTorch": (make_torch, ("torch",)),
    "PyTorch, channels-last": (functools.partial(make_torch, channels_last=True), ("torch",)),
    "ONNX Runtime": (make_onnxruntime, ("onnx", "onnxruntime")),
    "OpenVINO": (make_openvino, ("onnx", "openvino")),
}
OWN = ("native", "int16", "numpy")


def missing(name: str, model: ModelFile) -> str:
    """Name of an engine and a model -> what keeps the engine from running it here, or nothing."""
    if name in ("native", "int16") and not engine.available():
        return engine.why_not()
    if name == "int16" and model.range is None:
        return "the model holds no range of its states; 'mednca calibrate' measures it"
    absent = [module for module in ENGINES[name][1] if importlib.util.find_spec(module) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


# ---- Measuring ----


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


def difference(task: Slice, found: Array, expected: Array) -> dict[str, float]:
    """Probabilities of an engine and those expected -> how far they are apart: the largest and the mean
    difference, and the Dice of the two foregrounds."""
    threshold = task.model.config.predict.threshold
    found, expected = task.voxelwise(found), task.voxelwise(expected)
    apart = np.abs(found.astype(np.float64) - expected)
    a, b = found.sum(axis=0) > threshold, expected.sum(axis=0) > threshold
    both = int(a.sum()) + int(b.sum())
    dice = 2 * int((a & b).sum()) / both if both else 1.0
    return {"largest": float(apart.max()), "mean": float(apart.mean()), "dice": dice}


def agrees(name: str, apart: Mapping[str, float]) -> bool:
    """Engine and its differences to the reference -> whether they are as small as they must be."""
    return apart["mean"] <= INT16_TOLERANCE if name == "int16" else apart["largest"] <= FP32_TOLERANCE


_MEMORY = """
import json, re, sys
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

bare = peak()
from mednca.bench import prepare
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


# ---- The report ----


@dataclass(frozen=True)
class Row:
    """What was measured of one engine in one job.

    Attributes:
        job: Name of the slice or scan.
        engine: Its name.
        threads: How many; None where the engine decides.
        times: Of each round.
        memory_mib: See `memory`; None where it was not measured.
        apart: See `difference`, on a small slice against NumPy in float64; None for a scan.
    """

    job: str
    engine: str
    threads: int | None
    times: Times
    memory_mib: dict[str, float] | None = None
    apart: dict[str, float] | None = None


@dataclass(frozen=True)
class Report:
    """What a benchmark found, to be read (`table`) and to be stored (`to_dict`)."""

    model: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rows = []
        for row in self.rows:
            told = asdict(row) | {"median_s": row.times.median, "times_native": self.against_native(row)}
            rows.append(told | told.pop("times"))
        return {"model": self.model, "machine": self.machine, "rows": rows, "notes": self.notes}

    def against_native(self, row: Row) -> float | None:
        """How many times as long as `native` with as many threads; None for itself, or without it."""
        for other in self.rows:
            same = other.job == row.job and row.threads in (None, other.threads)
            if same and other.engine == "native" != row.engine:
                return round(row.times.median / other.times.median, 3)
        return None

    def table(self) -> str:
        """Markdown that can be pasted into a message."""
        lines = [["job", "engine", "threads", "seconds: median (min to max)", "times native", "memory, MiB"]]
        for row in self.rows:
            times = self.against_native(row)
            seconds = row.times.seconds
            median, least, most = map(_digits, (row.times.median, min(seconds), max(seconds)))
            lines.append(
                [
                    row.job,
                    row.engine,
                    str(row.threads or "its own"),
                    f"{median} ({least} to {most})",
                    "" if times is None else f"{times:.2f}",
                    f"{row.memory_mib['above_python']:.0f}" if row.memory_mib else "",
                ]
            )
        filled = [k for k in range(len(lines[0])) if any(line[k] for line in lines[1:])]
        widths = {k: max(len(line[k]) for line in lines) for k in filled}
        told = ["| " + " | ".join(f"{line[k]:{widths[k]}}" for k in filled) + " |" for line in lines]
        told.insert(1, "|" + "|".join("-" * (widths[k] + 2) for k in filled) + "|")
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([*self.head(), "", *told, *notes])

    def head(self) -> list[str]:
        """What was run, and on what, in lines."""
        model, here = self.model, self.machine
        runs = f", mean of {model['ensemble']} runs for a scan" if model["ensemble"] > 1 else ""
        versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
        told = f", {here['instructions']}" if here["instructions"] else ""
        return [
            f"{model['name']} ({model['hash']}), {' + '.join(map(str, model['steps']))} steps{runs}; "
            f"mednca {here['mednca']}, {here['date']}",
            f"{here['processor']}, {here['processors']} processor(s){told}; {here['system']}",
            versions,
        ]


def _digits(seconds: float) -> str:
    """Seconds -> text of three digits that count."""
    return f"{seconds:.{max(0, 2 - int(np.floor(np.log10(max(seconds, 1e-9)))))}f}"


def with_steps(model: ModelFile, steps: Sequence[int] | None) -> ModelFile:
    """Model -> the same with other numbers of steps, one for each level; None keeps its own.

    Raises:
        InputError: If they are not one for each level, or below 1.
    """
    if steps is None:
        return model
    try:
        rule = replace(model.config.model, steps=tuple(steps))
    except ValueError as error:
        raise InputError(str(error)) from error
    return replace(model, config=replace(model.config, model=rule))


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
