"""Models that the paper's authors publish -> one of our model files.

A folder of theirs (github.com/MECLabTUDA: Med-NCA, and the tutorial of M3D-NCA) holds `config.json`, a list
with one table of settings, and a rule per level, `model0.pth` (coarse), `model1.pth`, ...: PyTorch files,
which are read with `weights_only=True`, so that no code in them runs.

===========  ==============  ==============================================================================
theirs       ours
===========  ==============  ==============================================================================
p0, p1       perceive_a, _b  their convolutions saw images with height and width exchanged: kernels (n, n, 3,
                             3) are transposed
fc0, fc1     update_in, out  dense layers, as they are
===========  ==============  ==============================================================================

Their `cell_fire_rate` is what a random number must exceed for a cell to update, so the chance to update, our
`fire_rate`, is 1 - cell_fire_rate.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mednca.config import RunConfig
from mednca.errors import InputError
from mednca.modelfile import ModelFile
from mednca.recipes import Fingerprint, paper
from mednca.rule import MedNCAConfig, weight_shapes

NAMES = {"p0": "perceive_a", "p1": "perceive_b", "fc0": "update_in", "fc1": "update_out"}
CARD = {
    "description": "Trained by the authors of Med-NCA with their own code, and imported.",
    "licence": "MIT",
    "attribution": "Copyright 2023 John Kalkhof; github.com/MECLabTUDA/M3D-NCA",
    "intended_use": "Research: to compare with what the authors published. Not a medical device.",
    "finished": True,
}
#: SHA-256 of model0.pth -> what is known of a published model beyond its files.
KNOWN: dict[str, dict[str, Any]] = {
    "c5ee0ff2861141a000bca497eb88b6b5477d07deb7957c65da7ab39382636be4": {
        "name": "authors' hippocampus",
        "data": "MSD Task04_Hippocampus, both labels merged",
        "iterations": 187_484,
        "notes": "The training cases are not published. The optimiser state and the scores point to the "
        "first 138 volumes in sorted order (numbers 1 to 221).",
    },
}


def import_official(folder: str | Path) -> ModelFile:
    """Folder with config.json and model0.pth, model1.pth, ... -> the model, with the authors' preprocessing.

    Raises:
        InputError: If a file is missing, damaged or not what it should be, or the model is one that has no
            counterpart here (3-D, several output channels).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with config.json and model0.pth, there is none")
    config = read_config(folder / "config.json")
    expected = weight_shapes(config.model)
    weights: dict[str, NDArray[np.float32]] = {}
    for level in range(len(config.model.scales)):
        path = folder / f"model{level}.pth"
        for name, tensor in read_rule(path).items():
            ours = f"levels.{level}.{name}"
            if tensor.shape != expected[ours]:
                raise InputError(
                    f"{path}: {name} must have the shape {expected[ours]} that config.json asks for, "
                    f"got {tuple(tensor.shape)}"
                )
            weights[ours] = tensor.numpy()
    known = KNOWN.get(hashlib.sha256((folder / "model0.pth").read_bytes()).hexdigest(), {})
    return ModelFile(config, weights, {"name": folder.resolve().name} | CARD | known)


def read_rule(path: Path) -> dict[str, Tensor]:
    """One .pth file of theirs -> the seven arrays of a rule, under our names and on our axes."""
    if not path.is_file():
        raise InputError(f"{path}: expected the rule of a level, there is no such file")
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged files raise whatever the unpickler stumbles over
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path}: not a PyTorch file of plain tensors ({reason[0]}); get it again"
        ) from error
    theirs = [
        f"{name}.{part}" for name in NAMES for part in ("weight", "bias") if (name, part) != ("fc1", "bias")
    ]
    if not isinstance(stored, dict) or set(stored) != set(theirs):
        got = ", ".join(sorted(map(str, stored))) if isinstance(stored, dict) else type(stored).__name__
        raise InputError(f"{path}: expected the tensors {', '.join(theirs)}; got {got[:200] or 'none'}")
    rule = {}
    for name in theirs:
        tensor = stored[name]
        if not isinstance(tensor, Tensor) or not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} must be finite numbers; get the file again")
        if name in ("p0.weight", "p1.weight"):
            if tensor.ndim != 4:
                raise InputError(
                    f"{path}: {name} must have 4 axes, got {tensor.ndim}; 3-D models have no place here"
                )
            tensor = tensor.transpose(2, 3)
        module, part = name.split(".")
        rule[f"{NAMES[module]}.{part}"] = tensor.float().contiguous()
    return rule


def read_config(path: Path) -> RunConfig:
    """Their config.json -> our configuration: the `paper` recipe with the numbers of the file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    table = stored[0] if isinstance(stored, list) and stored else stored
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected a list with a table of settings")
    try:
        sizes = [(int(height), int(width)) for height, width in table["input_size"]]
        steps = table["inference_steps"]
        model = MedNCAConfig(
            image_channels=int(table["input_channels"]),
            classes=int(table["output_channels"]),
            channels=int(table["channel_n"]),
            hidden=int(table["hidden_size"]),
            scales=tuple(_ratio(sizes[-1], size) for size in sizes),
            steps=tuple(map(int, steps)) if isinstance(steps, list) else (int(steps),) * len(sizes),
            fire_rate=1.0 - float(table["cell_fire_rate"]),
        )
        if model.classes != 1:  # theirs are independent sigmoids, ours are one softmax
            raise ValueError(f"output_channels must be 1, got {model.classes}")
        data = Fingerprint(model.image_channels, (1.0, 1.0, 1.0), (64, 64, 64), {1: "foreground"})
        config = paper(data, sizes[-1][0], model.steps[0], int(table.get("batch_size", 1)), 1)
        rate, betas = float(table.get("lr", 1.6e-3)), table.get("betas", (0.5, 0.5))
        train = replace(config.train, learning_rate=rate, betas=(float(betas[0]), float(betas[1])))
        preprocess = replace(config.preprocess, size=sizes[-1])
        return replace(config, recipe="official", model=model, preprocess=preprocess, train=train)
    except KeyError as error:
        raise InputError(
            f"{path}: setting {error} is missing; is it the config.json of the model?"
        ) from error
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not the settings of a Med-NCA model: {error}") from error


def _ratio(full: tuple[int, int], size: tuple[int, int]) -> int:
    """Sizes of the full grid and of a level's -> the level's scale."""
    scale = full[0] // size[0]
    if (size[0] * scale, size[1] * scale) != full:
        raise ValueError(f"input_size must shrink by one whole number, got {size} of {full}")
    return scale
