"""The engines that can run a slice, and whether one gives the numbers that it must.

Each is held to NumPy in float64. The engines in C normalise the slice and draw the fire masks in their time,
`numpy` draws them; for PyTorch, ONNX Runtime and OpenVINO both are done beforehand and not timed.

Shapes: K classes, n channels, H x W cells, X x Y x Z voxels.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mednca import engine
from mednca.backends import numpy as in_numpy
from mednca.bench.task import Array, Slice
from mednca.modelfile import ModelFile, to_bytes

#: Takes a task and a number of threads, gives what is timed: no argument -> probabilities, (K, H, W) of the
#: levels' grid or (K, X, Y, Z) of the scan's voxels.
Maker = Callable[[Slice, int], Callable[[], Array]]

#: What a probability may differ from NumPy's in float64: at most, in fp32; on average, in int16.
FP32_TOLERANCE, INT16_TOLERANCE = 2e-3, 2e-2


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


# ---- Held to the reference ----


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
