"""A model in other forms: for other runtimes, and for machines without an operating system.

    onnx    a folder: one step of each level as an ONNX graph, a page that explains, a program that uses them
    c       a header: the bytes of the model file as a C array, for runtime/c/mednca.h

Shapes: B items, n channels, h hidden units, H x W cells.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mednca import __version__
from mednca.config import PredictConfig
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.modelfile import ModelFile, find_model, load_model

if TYPE_CHECKING:
    from onnx import ModelProto

    from mednca.rule import MedNCAConfig

#: Of the operators; the oldest that has all we need in its present form, so that old runtimes take it too.
OPSET = 13
#: Version of the file format that came with it.
_IR = 7
#: Slices by the axis that they are cut across.
_CUTS = (
    "sagittal slices, rows to the front (A), columns up (S)",
    "coronal slices, rows to the right (R), columns up (S)",
    "axial slices, rows to the right (R), columns to the front (A)",
)


def export(source: str | Path, form: str, out: Path, *, force: bool = False) -> list[Path]:
    """Model (run folder, file or name of a shipped one), form and place -> the files written.

    Raises:
        InputError: If there is no such model or form, or a file exists already and `force` is not set.
    """
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    model, path = load_model(source), find_model(source)
    model.require_automaton("an export")
    contents = FORMS[form](model, path, Path(out))
    for file in contents:
        if file.exists() and not force:
            raise InputError(f"{file}: exists already; choose another name or give --force")
    return [atomic_write(file, content, force=force) for file, content in contents.items()]


# ---- ONNX ----


def onnx_folder(model: ModelFile, path: Path, out: Path) -> dict[Path, bytes | str]:
    """Model, its file and a folder -> what stands in the folder, by file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --to onnx makes a folder, name one")
    names = [f"level_{level}.onnx" for level in range(len(model.config.model.scales))]
    files: dict[Path, bytes | str] = {
        out / name: step_graph(
            level_weights(model.weights, level), model.config.model, facts(model, level)
        ).SerializeToString(deterministic=True)
        for level, name in enumerate(names)
    }
    files[out / "example.py"] = (Path(__file__).parent / "export_example.py").read_text("utf-8")
    files[out / "README.md"] = page(model, names)
    return files


def level_weights(weights: Mapping[str, ArrayLike], level: int) -> dict[str, NDArray[np.float32]]:
    """Weights of a model and a level -> that level's seven arrays by their short names."""
    prefix = f"levels.{level}."
    return {
        name.removeprefix(prefix): np.asarray(array, np.float32)
        for name, array in weights.items()
        if name.startswith(prefix)
    }


def step_graph(
    weights: Mapping[str, NDArray[np.float32]], config: MedNCAConfig, told: Mapping[str, str]
) -> ModelProto:
    """The seven arrays of a level, its shape and what to say of it -> one step as an ONNX model.

    Inputs `state` float32 (B, n, H, W) and `fires` bool (B, H, W), output `next` like `state`; B, H and W are
    free, H and W at least 2. The two convolutions of the perception are one with 2n outputs; dense layers are
    1 x 1 convolutions; image channels get a residual of exactly zero.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    n, image, depthwise = config.channels, config.image_channels, config.perception == "depthwise"
    views = np.stack([weights["perceive_a.weight"], weights["perceive_b.weight"]], axis=1 if depthwise else 0)
    offsets = np.stack([weights["perceive_a.bias"], weights["perceive_b.bias"]], axis=1 if depthwise else 0)
    update_in = weights["update_in.weight"]
    if depthwise:  # a group's two outputs lie side by side: a0 b0 a1 b1 ...
        paired = update_in[:, n:].reshape(-1, 2, n).swapaxes(1, 2)
        update_in = np.concatenate([update_in[:, :n], paired.reshape(len(update_in), 2 * n)], axis=1)
    update_out = weights["update_out.weight"].copy()
    update_out[:image] = 0
    arrays = {
        "views.weight": views.reshape(2 * n, *views.shape[2:]),
        "views.bias": offsets.reshape(2 * n),
        "update_in.weight": update_in[:, :, None, None],
        "update_in.bias": weights["update_in.bias"],
        "update_out.weight": update_out[:, :, None, None],
        "border": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "channel_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Pad", ["state", "border"], ["around"], mode="reflect"),
        helper.make_node(
            "Conv",
            ["around", "views.weight", "views.bias"],
            ["views"],
            kernel_shape=[3, 3],
            group=n if depthwise else 1,
        ),
        helper.make_node("Concat", ["state", "views"], ["perception"], axis=1),
        helper.make_node(
            "Conv", ["perception", "update_in.weight", "update_in.bias"], ["units"], kernel_shape=[1, 1]
        ),
        helper.make_node("Relu", ["units"], ["hidden"]),
        helper.make_node("Conv", ["hidden", "update_out.weight"], ["residual"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["state", "residual"], ["updated"]),
        helper.make_node("Unsqueeze", ["fires", "channel_axis"], ["fires_of_cells"]),
        helper.make_node("Where", ["fires_of_cells", "updated", "state"], ["next"]),
    ]
    cells: list[str | int | None] = ["batch", n, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "step",
        [
            helper.make_tensor_value_info("state", TensorProto.FLOAT, cells),
            helper.make_tensor_value_info("fires", TensorProto.BOOL, ["batch", "height", "width"]),
        ],
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, cells)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
        doc_string="One step of a Med-NCA level: cells look around, and those that fire update.",
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR,
        producer_name="mednca",
        producer_version=__version__,
        doc_string="README.md beside this file tells how the steps make a mask.",
    )
    helper.set_model_props(made, dict(told))
    checker.check_model(made, full_check=True)
    return made


def facts(model: ModelFile, level: int) -> dict[str, str]:
    """Model and level -> what an ONNX file says of itself, as text; lists have spaces between."""
    config, rule, card = model.config, model.config.model, model.card
    told = {
        "mednca": __version__,
        "model": card.get("name"),
        "model_hash": model.hash,
        "level": level,
        "levels": len(rule.scales),
        "scale": rule.scales[level],
        "steps": rule.steps[level],
        "fire_rate": repr(rule.fire_rate),
        "image_channels": rule.image_channels,
        "classes": rule.classes,
        "channels": rule.channels,
        "modalities": config.preprocess.modalities,
        "context": config.preprocess.context,
        "axes": config.preprocess.axes,
        "normalise": config.preprocess.normalise,
        "spacing_mm": config.preprocess.spacing,
        "roi": config.preprocess.roi,
        "field": config.preprocess.field,
        "size": config.preprocess.size,
        "margin": config.preprocess.margin or None,
        "labels": ", ".join(config.labels),
        "values": config.values,
        "threshold": repr(config.predict.threshold),
        "ensemble": config.predict.ensemble,
        "mirror": config.predict.mirror or None,
        "smoothing": config.predict.smoothing or None,
        "sizes": config.predict.sizes,
        "spectrum": config.predict.spectrum,
        "coarse": config.predict.coarse,
        "largest_component": config.predict.largest_component,
        "piece": config.predict.piece if config.predict.largest_component else None,
        "licence": card.get("licence"),
        "attribution": card.get("attribution"),
        "data": card.get("data"),
        "intended_use": card.get("intended_use") or "research; not a medical device",
    }
    return {name: _text(value) for name, value in told.items() if value not in (None, "")}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def page(model: ModelFile, names: Sequence[str]) -> str:
    """Model and the names of its ONNX files -> the page that explains them."""
    config, rule = model.config, model.config.model
    pre, told = config.preprocess, facts(model, 0)
    rows = [
        f"| `{name}` | 1/{scale} | {steps} |"
        for name, scale, steps in zip(names, rule.scales, rule.steps, strict=True)
    ]
    first, last = rule.image_channels, rule.image_channels + rule.classes - 1
    scaled = (
        f"each channel of a {pre.normalise} is clipped to its 0.5 and 99.5 percentile and scaled to [0, 1]"
    )
    prepare = [
        f"the scan, {pre.modalities} channel(s), on its RAS+ axes (x to the right, y to the front, z up)",
        _region(pre.roi),
        _FIELD if pre.field is not None else "",
        scaled if pre.normalise == "volume" else "",
        "; or ".join(_CUTS[axis] for axis in pre.axes),
        f"stretched to {pre.size[0]} x {pre.size[1]} pixels" if pre.size else "",
        f"resampled to {pre.spacing[0]:g} x {pre.spacing[1]:g} mm" if pre.spacing and not pre.size else "",
        scaled if pre.normalise == "slice" else "",
        f"{pre.context} neighbour(s) on each side as further channels, in their order" if pre.context else "",
        f"padded by repetition, centred, to multiples of {rule.scales[0]}, at least {2 * rule.scales[0]}"
        + (f", and by at least {pre.margin} pixels at each side" if pre.margin else ""),
    ]
    text = _PAGE.format(
        name=told.get("model") or "A Med-NCA model",
        version=__version__,
        hash=model.hash,
        opset=OPSET,
        ir=_IR,
        rows="\n".join(rows),
        n=rule.channels,
        image=rule.image_channels,
        channels=f"{rule.image_channels} of the image, {rule.classes} of logits, the others hidden",
        logits=f"channel {first}" if first == last else f"channels {first} to {last}",
        rate=rule.fire_rate,
        threshold=config.predict.threshold,
        values=", ".join(f"{v} {name}" for v, name in zip(config.values, config.labels, strict=True)),
        prepare="; ".join(line for line in prepare if line),
        runs=_runs(config.predict, len(pre.axes)),
        component=_COMPONENTS[config.predict.piece] if config.predict.largest_component else "",
        looks=_second_look(config.predict.sizes)
        + _lines(config.predict.spectrum)
        + _coarse(config.predict.coarse),
        licence=told.get("licence") or "not stated",
        attribution=told.get("attribution") or "not stated",
        data=told.get("data") or "not stated",
        use=told["intended_use"],
    )
    return "\n".join(_wrapped(line) for line in text.splitlines()) + "\n"


def _second_look(sizes: Sequence[float] | None) -> str:
    """What sizes of the organ are usual -> what to do about others."""
    if not sizes:
        return ""
    usual = ", ".join(
        f"{name} {size:g} mm within a factor of {ratio:g}"
        for name, size, ratio in zip("xyz", sizes[:3], sizes[3:], strict=True)
    )
    return (
        f"7. The organ's size along an axis, the standard deviation of its voxels' places, was {usual} in "
        "training. Where it is another, `mednca predict` stretches the scan to the usual size and looks "
        "again (`example.py` does not).\n"
    )


def _lines(spectrum: Sequence[float] | None) -> str:
    """What lines of k-space are usual -> what to do about others."""
    if not spectrum:
        return ""
    return (
        "8. Where lines of k-space are stronger or weaker than in training, `mednca predict` looks at the "
        "scan with them brought back, too, and the look counts of which the model is surer (`example.py` "
        "does not).\n"
    )


def _coarse(ways: Sequence[float] | None) -> str:
    """The longest ways from slice to slice in training -> what to do about longer ones."""
    if not ways:
        return ""
    longest = ", ".join(f"{way:g} along {name}" for name, way in zip("xyz", ways, strict=True))
    return (
        f"9. The longest way (mm) from slice to slice in training was {longest}. Where it is about twice as "
        "long or more, `mednca predict` draws the scan on between its slices before all this (`example.py` "
        "does not).\n"
    )


def _region(roi: Sequence[float] | None) -> str:
    """ROI -> how to cut a scan to it; its mask is background elsewhere."""
    if roi is None:
        return ""
    shares = ", ".join(
        f"{name} from {low:g} to {high:g}" for name, low, high in zip("xyz", roi[::2], roi[1::2], strict=True)
    )
    return f"cut to a part of its field of view, in shares of it ({shares}), outside of which is background"


def _wrapped(line: str) -> str:
    """Line of a page -> the same, broken where it is long and no row of a table."""
    indent = "   " if line[:1].isdigit() else ""
    return line if line.startswith("|") else textwrap.fill(line, 120, subsequent_indent=indent, **_WHOLE)


def _runs(predict: PredictConfig, axes: int) -> str:
    runs = predict.ensemble
    told = [f"Those of {runs} runs, seeds 0 to {runs - 1}, are averaged."] if runs > 1 else []
    for run in range(runs if predict.mirror else 0):
        if names := " and ".join("xyz"[axis] for axis in predict.mirrored(run)):
            told.append(f"Run {run} sees the scan mirrored along {names}; its answer is mirrored back.")
    if axes > 1:
        told.append(
            f"So are, voxel by voxel in the grid of the scan, those of the slices along the {axes} axes "
            "(`example.py` looks along one)."
        )
    if predict.smoothing:
        told.append(
            f"Then, {predict.smoothing} times, those of neighbouring slices are averaged with weights 1, 2 "
            "and 1; a slice at an end is its own neighbour there."
        )
    return " ".join(told)


_PAGE = """# {name} as ONNX

Written by mednca {version} from the model with the hash `{hash}`. ONNX operators of opset {opset}, file \
format (IR) {ir}. Each file holds one step of one level; a loop around it makes the mask.

| file | resolution | steps |
|---|---|---|
{rows}

`example.py` is the whole way for one slice, with NumPy and ONNX Runtime alone: `python example.py SCAN.npy \
NUMBER MASK.npy`. It resamples nothing: give it slices at the spacing below.

## A step

| name | type | shape | |
|---|---|---|---|
| `state` (input) | float32 | (batch, {n}, height, width) | {channels} |
| `fires` (input) | bool | (batch, height, width) | the cells that update in this step |
| `next` (output) | float32 | as `state` | the state after the step |

Batch, height and width are free; height and width are at least 2. Image channels never change.

## The way to a mask

1. The image, float32 ({image}, rows, columns): {prepare}.
2. Coarsest level: the image, made smaller by the level's scale (the mean of the pixels next to each block's \
centre, for 4 the central 2 x 2), is put into the image channels; all other channels are zero. Then the \
level's steps.
3. Every finer level: each cell hands its state to the cells that it splits into (nearest), the image at \
this resolution is put into the image channels, and the level's steps follow.
4. The logits are {logits} of the last state. Probabilities are a softmax over them and a background whose \
logit is 0. {runs}
5. Where the foreground's probability exceeds {threshold:g}, the mask has the likeliest class ({values}), \
else 0.
{component}{looks}
## Which cells fire

Each with a chance of {rate:g}. Which ones is a function of seed, level, step, slice, row and column, \
`fire_mask` in `example.py`; with it every engine of mednca draws the same cells. It is an input because \
random numbers inside ONNX differ between runtimes.

## Licence

Model: {licence}. Attribution: {attribution}. Data: {data}. Intended use: {use}. `example.py`: MIT.

The same facts stand in the metadata of each file, as text.
"""
_COMPONENTS = {
    "largest": "6. Of the mask of the whole scan only the largest connected piece is kept (`example.py` does "
    "not).\n",
    "surest": "6. Of the mask of the whole scan only one connected piece is kept: that of the highest mean "
    "probability, of those that are at least a quarter as large as the largest (`example.py` does not).\n",
}
_FIELD = "a bias field beyond the usual is brought back to it, as `shaded_as_usual` in `example.py` does"
_WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


# ---- C ----


def c_header(model: ModelFile, path: Path, out: Path) -> dict[Path, bytes | str]:
    """Model, its file and the header to make -> the header: the bytes of the file, and how to use them."""
    if out.is_dir() or out.suffix != ".h":
        raise InputError(f"{out}: --to c makes a header; name a file that ends in .h")
    data, name = path.read_bytes(), "model_" + re.sub(r"\W", "_", out.stem, flags=re.ASCII)
    told, config = facts(model, 0), model.config
    smooth = _SMOOTH if config.predict.smoothing else ""
    field = _TAKE_OUT if config.preprocess.field is not None else ""
    shares = smooth or len(config.preprocess.axes) > 1
    lines = [f"{told.get('model') or 'Med-NCA model'}, hash {model.hash}; written by mednca {__version__}."]
    for key in ("licence", "attribution", "data", "intended_use"):
        if key in told:
            lines.append(f"{key.replace('_', ' ').capitalize()}: {told[key]}")
    comment = "\n".join(
        textwrap.fill(
            line.replace("*/", "* /"), 114, initial_indent=" * ", subsequent_indent=" *   ", **_WHOLE
        )
        for line in lines
    )
    numbers = "\n".join(
        ",".join(map(str, data[start : start + 32])) + "," for start in range(0, len(data), 32)
    )
    return {
        out: _HEADER.format(
            comment=comment,
            name=name,
            file=out.name,
            loop=(_LOOPS if shares else _LOOP).format(
                classes=config.model.classes,
                smooth=smooth,
                field=field,
                done="\n *         free(even);" if field else "",
            ),
            guard=f"{name.upper()}_H",
            size=len(data),
            sha=hashlib.sha256(data).hexdigest(),
            numbers=numbers,
        )
    }


_HEADER = """/*
{comment}
 *
 * The bytes of the model file, {size} of them, SHA-256
 * {sha}.
 * They stay where the linker puts constants (flash, on a microcontroller). With mednca.h and mednca.c:
 *
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *     #include <string.h>
 *     #include "mednca.h"
 *     #include "{file}"
 *
 *     int segment(const int16_t *voxels, int64_t x, int64_t y, int64_t z, uint8_t *mask) // x runs fastest
 *     {{
 *         char message[MEDNCA_MESSAGE] = "there is too little memory";
 *         int64_t strides[3] = {{1, x, x * y}};
 *         mednca_scan scan = {{voxels, MEDNCA_I16, 1.0, 0.0, {{1, x, y, z}}, {{0, 2, 2 * x, 2 * x * y}},
 *                             {{1.0, 1.0, 1.0}}}}; // spacing in mm
 *         mednca_counts counts = {{0}};
 *         memset(mask, 0, (size_t)(x * y * z));
 *         mednca_job job;
 *         mednca_model *model = mednca_open({name}, {name}_size, NULL, message, sizeof message);
 *         size_t size = model ? mednca_work_size(model, &scan, 1, message, sizeof message) : 0;
 *         void *work = size ? calloc(1, size) : NULL;
{loop}
 *         if (failed)
 *             puts(message);
 *         free(work);
 *         mednca_close(model);
 *         return failed;
 *     }}
 *
 * Include it in one source file only.
 */
#ifndef {guard}
#define {guard}

static const unsigned long {name}_size = {size}UL;
static const unsigned char {name}[{size}] = {{
{numbers}
}};

#endif
"""

#: The slices along the axis of a model, and along each of several; these, and what smooths, take memory.
_LOOP = """\
 *         int failed = !work || mednca_begin(model, &scan, work, &job, message, sizeof message);
{field} *         for (int64_t i = 0; !failed && i < job.slices; i++)
 *             mednca_slice(&job, i, work, 0, 1, mask, strides, NULL, NULL, &counts);{done}"""
_LOOPS = """\
 *         float *shares = calloc((size_t)(x * y * z) * {classes}, sizeof(float)); // probabilities
 *         int64_t share_strides[4] = {{4 * x * y * z, 4, 4 * x, 4 * x * y}};
 *         int failed = !work || !shares || mednca_begin(model, &scan, work, &job, message, sizeof message);
{field} *         mednca_facts facts = {{0}};
 *         if (!failed)
 *             mednca_about(model, &facts);
 *         for (int32_t view = 0; view < facts.views; view++) {{
 *             mednca_turn(&job, view);
 *             memset(work, 0, size);
 *             for (int64_t i = 0; i < job.slices; i++)
 *                 mednca_slice(&job, i, work, 0, 1, mask, strides, shares, share_strides, &counts);
 *         }}
{smooth} *         free(shares);{done}"""
_TAKE_OUT = """\
 *         void *even = failed ? NULL : malloc(mednca_field_size(model, &scan)); // to be kept to the end
 *         failed = failed || !even;
 *         if (!failed)
 *             mednca_field(&job, even);
"""
_SMOOTH = """\
 *         if (!failed)
 *             mednca_smooth(&job, mask, strides, shares, share_strides);
"""

#: Form -> what makes it: model, its file and the place -> contents by file.
FORMS: dict[str, Callable[[ModelFile, Path, Path], dict[Path, bytes | str]]] = {
    "onnx": onnx_folder,
    "c": c_header,
}
