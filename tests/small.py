"""What the tests of commands work on: a model of a few hundred weights, and scans of a few hundred voxels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from mednca.config import PredictConfig, RunConfig
from mednca.field import TERMS
from mednca.modelfile import ModelFile, save_model
from mednca.rule import MedNCAConfig, weight_shapes
from mednca.slices import PreprocessConfig

SHAPE = (12, 14, 6)
#: `PreprocessConfig.field` of one channel: a limit, and the terms of a usual shading.
FIELD = (0.3, *(round(0.4 * math.sin(term), 3) for term in range(len(TERMS))))


def tiny_model(
    *,
    modalities: int = 1,
    context: int = 0,
    classes: int = 1,
    card: dict[str, Any] | None = None,
    smoothing: int = 0,
    sizes: tuple[float, ...] | None = None,
    spectrum: tuple[float, ...] | None = None,
    coarse: tuple[float, ...] | None = None,
    **preprocess: Any,
) -> ModelFile:
    """A model with random weights that says neither yes nor no everywhere."""
    image_channels = modalities * (2 * context + 1)
    channels = max(8, image_channels + classes + 2)
    config = MedNCAConfig(image_channels, classes, channels, hidden=8, steps=(2, 3))
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: (torch.randn(shape, generator=generator) * 0.4).numpy()
        for name, shape in weight_shapes(config).items()
    }
    names = ("foreground",) if classes == 1 else tuple(f"part {k}" for k in range(1, classes + 1))
    run = RunConfig(
        "tiny",
        labels=names,
        values=tuple(range(1, classes + 1)),
        merge=classes == 1,
        model=config,
        preprocess=PreprocessConfig(modalities=modalities, context=context, **preprocess),
        predict=PredictConfig(smoothing=smoothing, sizes=sizes, spectrum=spectrum, coarse=coarse),
    )
    return ModelFile(run, weights, {"name": "tiny"} | (card or {}))


def voxels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """Seed -> the intensities of a scan."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def write_nifti(path: Path, data: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
    """Data and affine (default: 1 x 1 x 2 mm) -> a NIfTI file in mm."""
    image = nib.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_data(folder: Path, count: int = 6) -> Path:
    """Folder -> a data set in it, images/ and labels/, cases a_1 to a_`count`."""
    for number in range(1, count + 1):
        data = voxels(number)
        write_nifti(folder / "images" / f"a_{number}.nii.gz", data)
        write_nifti(folder / "labels" / f"a_{number}.nii.gz", (data > 600).astype(np.uint8))
    return folder


def write_world(folder: Path) -> Path:
    """Folder -> a model, a scan, a folder of scans and a data set in it, for commands to work on."""
    save_model(folder / "model.safetensors", tiny_model())
    write_nifti(folder / "scan.nii.gz", voxels())
    for number in range(3):
        write_nifti(folder / "scans" / f"s{number}.nii.gz", voxels(number))
    write_data(folder / "data")
    return folder
