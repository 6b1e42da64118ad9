"""Phantoms: made-up brain-like scans with a small two-part organ, for tests, docs and the quick start.

A phantom stands in for a T1-weighted crop around a hippocampus. It is made so that segmenting it is work: the
organ has the intensity of the grey matter and of blobs around it, its border is open in places, and every
scan has its own pose, size, bias field, noise and intensity scale. A threshold fails; a small network that
sees the slice does not. Nothing here is patient data, and a result on phantoms says nothing about patients.

Shapes: image (X, Y, Z) float32, label (X, Y, Z) uint8, affine (4, 4) float64 from voxel index to world mm
(RAS+).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mednca.errors import InputError

Float = npt.NDArray[np.float64]

Nifti: Any = nib.Nifti1Image  # nibabel has types for a part of it only

LABELS = {0: "background", 1: "anterior", 2: "posterior"}
NAME = "mednca phantoms"  # in dataset.json; only a folder that carries it is ever replaced
CSF, GREY, WHITE, ORGAN = 0.25, 0.57, 0.85, 0.60  # signal of the tissues, before bias field and scale


def phantom(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], Float]:
    """Return the phantom of a seed: image (X, Y, Z), label (X, Y, Z) and affine (4, 4), every time the same.

    The organ is a bent tube: an anterior head (label 1) and a body that tapers towards the back (label 2).
    The image is about 48 x 56 x 24 voxels of about 1 mm, a little oblique, stored in RAS or, for half of the
    seeds, in LPS order. Intensities are positive and have no unit, as in MRI.

    Raises:
        ValueError: If the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    random = np.random.default_rng(seed)
    shape = tuple(int(size) for size in random.integers((44, 52, 24), (53, 61, 28)))
    spacing = random.uniform(0.95, 1.08, 3)
    steps = [(np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True)]
    position = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)  # (X, Y, Z, 3) mm from the centre, RAS

    distance, along = _organ(random, position)
    signal = _tissue(random, position, distance)
    signal = blurred(signal, 0.5)  # the scanner's blur, on top of the partial volume in each boundary
    signal *= np.exp(random.uniform(0.08, 0.16) * _field(random, shape, 14.0))  # bias field
    noise = random.uniform(0.015, 0.03) * random.standard_normal((2, *shape))
    signal = np.hypot(signal + noise[0], noise[1])  # Rician: the magnitude of a complex signal with noise
    signal *= np.exp(random.uniform(np.log(80.0), np.log(800.0)))

    label = np.where(distance < 0, np.where(along < 0.3, 1, 2), 0).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = about_axis(random.uniform(-0.06, 0.06, 3)) * spacing
    affine[:3, 3] = random.uniform(-30.0, 30.0, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    image = signal.astype(np.float32)
    if random.random() < 0.5:  # RAS to LPS: turn the first two axes round
        affine[:3, 3] += affine[:3, :2] @ (np.array(shape[:2]) - 1)
        affine[:3, :2] *= -1
        image, label = image[::-1, ::-1], label[::-1, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(label), affine


def _organ(random: np.random.Generator, position: Float) -> tuple[Float, Float]:
    """Return two fields over positions (..., 3): the distance to the organ's surface (mm, < 0 inside) and
    how far along the organ a position lies (0 at the tip of the head, 1 at the tail)."""
    scale, bend, rise = random.uniform(0.9, 1.15), random.uniform(2.0, 5.0), random.uniform(0.0, 4.0)
    turn = about_axes(np.radians(random.uniform((-8, -8, -18), (8, 8, 18))))
    shift = random.uniform((-4.0, -4.0, -1.0), (4.0, 4.0, 1.0))
    t = np.linspace(0.0, 1.0, 40)
    line = np.stack([bend * (4 * t * (1 - t) - 0.7), 28.0 * (0.5 - t), rise * (t**2 - 0.4)], axis=-1)
    line = scale * line @ turn.T + shift
    radius = scale * (2.8 + 2.4 * (1 - t) + 1.7 * np.exp(-(((t - 0.12) / 0.15) ** 2)))
    surface = np.linalg.norm(position[..., None, :] - line, axis=-1) - radius  # (..., 40)
    return surface.min(axis=-1), t[surface.argmin(axis=-1)]


def _tissue(random: np.random.Generator, position: Float, distance: Float) -> Float:
    """Return the signal (X, Y, Z) of folded grey and white matter, CSF, the organ and its look-alikes."""
    shape = distance.shape
    folds = _field(random, shape, 2.6)
    signal = CSF + (GREY - CSF) * _inside(-1.3 - folds, 0.4) + (WHITE - GREY) * _inside(0.1 - folds, 0.4)

    # Blobs with the organ's signal, clear of the organ by some mm.
    candidates = np.argwhere(distance > 6.0)
    for centre in candidates[random.integers(len(candidates), size=8)]:
        radii = random.uniform(2.5, 4.5, 3)
        offset = np.linalg.norm((position - position[tuple(centre)]) / radii, axis=-1)
        blob = (offset - 1) * radii.mean()
        if random.random() < 0.5:
            signal += (WHITE - signal) * _inside(blob - 1.5)
        signal += (ORGAN - signal) * _inside(blob)

    # A rim of white matter or CSF around the organ, open where the field lies between the two.
    rim, side = _inside(distance - 1.8), _field(random, shape, 4.0)
    signal += (WHITE - signal) * rim * _inside(-0.7 - side, 0.3)
    signal += (CSF - signal) * rim * _inside(side + 1.1, 0.3)
    return signal + (ORGAN - signal) * _inside(distance)


def _inside(distance: Float, width: float = 1.0) -> Float:
    """Return the part of a voxel, 0 to 1, that lies inside a surface at a distance (negative inside)."""
    return np.clip(0.5 - distance / width, 0.0, 1.0)


def _field(random: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Float:
    """Return a smooth random field of a shape with mean 0 and standard deviation 1; sigma in voxels."""
    field = blurred(random.standard_normal(shape), sigma)
    return np.asarray((field - field.mean()) / field.std())


def blurred(field: Float, sigma: float) -> Float:
    """Array and sigma in elements -> the array blurred by a Gaussian, cut off at 4 sigma, edges mirrored."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in range(field.ndim):
        line = np.moveaxis(field, axis, 0)
        size = len(line)
        wide = np.pad(line, [(reach, reach)] + [(0, 0)] * (field.ndim - 1), mode="symmetric")
        total = weights[0] * line
        for away in range(reach, 0, -1):
            total += (wide[reach - away :][:size] + wide[reach + away :][:size]) * weights[away]
        field = np.moveaxis(total, 0, axis)
    return field


def about_axis(vector: Float) -> Float:
    """Axis times angle (radians) -> the rotation's matrix (3, 3), by Rodrigues' formula."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))


def about_axes(angles: Float) -> Float:
    """Angles (radians) about the fixed axes x, y and z, in this order -> the rotation's matrix (3, 3)."""
    x, y, z = (about_axis(angle * axis) for angle, axis in zip(angles, np.eye(3), strict=True))
    return np.asarray(z @ y @ x)


def write_phantoms(folder: str | Path, count: int, seed: int, force: bool = False) -> Path:
    """Write phantoms as a data set in the layout of the Medical Segmentation Decathlon and return its folder.

    The folder gets dataset.json, imagesTr/phantom_001.nii.gz ... and labelsTr/ with the same names. It
    appears whole or not at all. With equal versions of NumPy, equal arguments write equal bytes; a
    larger count adds cases to the same first ones, and other seeds give other cases.

    Args:
        folder: The folder to make; its parents are made too.
        count: How many cases, 1 or more.
        seed: Names the sequence of cases, 0 or more.
        force: Replace the folder if it already holds phantoms.

    Raises:
        InputError: If the folder exists and force is not set, or if it holds something else than phantoms.
        ValueError: If count is below 1 or the seed is negative.

    Source: Antonelli et al. 2022, The Medical Segmentation Decathlon, doi:10.1038/s41467-022-30695-9.
    """
    folder = Path(folder)
    if count < 1 or seed < 0:
        raise ValueError(f"count must be 1 or more and seed 0 or more, got count={count} and seed={seed}")
    if folder.exists() and not force:
        raise InputError(f"{folder} already exists; give another folder, or force to replace it")
    if folder.exists() and not _holds_phantoms(folder):
        raise InputError(f"{folder} does not hold phantoms, so it is not replaced; give another folder")

    names = [f"phantom_{number:03d}.nii.gz" for number in range(1, count + 1)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        for part in ("imagesTr", "labelsTr"):
            (new / part).mkdir(parents=True)
        for name, case_seed in zip(names, np.random.SeedSequence(seed).generate_state(count), strict=True):
            image, label, affine = phantom(int(case_seed))
            for part, data in (("imagesTr", image), ("labelsTr", label)):
                nifti = Nifti(data, affine)
                nifti.header.set_xyzt_units("mm")
                nifti.set_qform(affine, code="scanner")  # both forms, so that every reader agrees
                nifti.set_sform(affine, code="scanner")
                nib.save(nifti, new / part / name)
        description = {
            "name": NAME,
            "description": "Synthetic two-part organ in brain-like texture; not patient data",
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {str(value): label for value, label in LABELS.items()},
            "numTraining": count,
            "numTest": 0,
            "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
            "test": [],
        }
        (new / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)
    return folder


def _holds_phantoms(folder: Path) -> bool:
    """Return whether a folder is one that write_phantoms made."""
    try:
        return bool(json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["name"] == NAME)
    except (OSError, ValueError, KeyError, TypeError):
        return False
