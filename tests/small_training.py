"""A training small enough for the tests: blobs on noise, a rule of 8 channels, a few seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from mednca.augment import TrainingCase
from mednca.cases import CaseSet, find_cases
from mednca.config import RunConfig, TrainConfig
from mednca.modelfile import ModelFile
from mednca.rule import MedNCAConfig, weight_shapes

MODEL = MedNCAConfig(channels=8, hidden=8, perception="depthwise", scales=(4, 2, 1), steps=(3, 2, 2))
TRAIN = TrainConfig(
    iterations=24,
    batch_size=2,
    patch=8,
    learning_rate=4e-3,
    warmup=4,
    validate_every=16,
    validation_cases=1,
    checkpoint_every=5,
)


def config(**train: Any) -> RunConfig:
    """Settings of the training that differ -> the configuration of a tiny run."""
    return RunConfig("tiny", model=MODEL, train=replace(TRAIN, **train))


def blob(seed: int, shape: tuple[int, int, int] = (16, 16, 4)) -> tuple[np.ndarray, np.ndarray]:
    """Seed -> image float32 (X, Y, Z) with a bright ellipsoid on noise, and its label uint8 (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    axes = [np.arange(n) - n * rng.uniform(0.4, 0.6) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    label = (x / shape[0] * 4) ** 2 + (y / shape[1] * 3) ** 2 + (z / shape[2] * 2) ** 2 < 1
    return (100 * label + rng.normal(0, 10, shape)).astype(np.float32), label.astype(np.uint8)


def slices(seed: int = 0) -> TrainingCase:
    """Seed -> a case ready for training: 4 slices of 16 x 16."""
    image, label = blob(seed)
    scaled = ((image - image.min()) / np.ptp(image)).transpose(2, 0, 1)
    return TrainingCase(f"case_{seed}", scaled[:, None].copy(), label.transpose(2, 0, 1).copy())


def write_scan(path: Path, data: np.ndarray) -> Path:
    """Path and array -> NIfTI with spacing 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def write_cases(folder: Path, count: int = 6, group: str | None = "pairs") -> CaseSet:
    """Folder -> a data set images/ and labels/ of blobs, two scans of each person."""
    for number in range(1, count + 1):
        image, label = blob(number)
        write_scan(folder / "images" / f"scan_{number:02d}.nii.gz", image)
        write_scan(folder / "labels" / f"scan_{number:02d}.nii.gz", label)
    return find_cases(folder, group=group, require_labels=True)


def model_file(seed: int = 0, **card: Any) -> ModelFile:
    """Seed -> a tiny model with random weights in every array."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator).numpy() for name, shape in weight_shapes(MODEL).items()
    }
    return ModelFile(config(), weights, card)
