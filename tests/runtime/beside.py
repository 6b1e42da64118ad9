"""What tests of looks share: mednca-run beside Python on one scan, and a model file with another setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mednca import engine
from mednca.modelfile import ModelFile, save_model, to_bytes
from mednca.predict import Prediction, Predictor
from mednca.volume import Volume
from tests.runtime.builds import run
from tests.small import write_nifti


def looked_at(model: ModelFile, volume: Volume, folder: Path) -> tuple[NDArray[Any], Prediction, str]:
    """Model and scan -> mask of mednca-run, prediction of Python, and what mednca-run said."""
    voxels = np.moveaxis(volume.data, 0, -1)
    scan = write_nifti(folder / "scan.nii", voxels if volume.channels > 1 else voxels[..., 0], volume.affine)
    save_model(folder / "model.safetensors", model)
    done = run(folder / "model.safetensors", scan, "-o", folder / "mask.nii", "--quiet", "--threads", 1)
    assert done.returncode == 0, done.stderr
    expected = Predictor(model, engine="native" if engine.available() else "numpy").predict(volume)
    return np.asarray(nibabel.load(folder / "mask.nii").dataobj), expected, done.stderr


def with_setting(model: ModelFile, version: int, name: str, value: Any) -> bytes:
    """Model, version of its file, and a setting of predictions -> its file with another value there,
    whatever that is."""
    content = to_bytes(model)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["mednca"])
    assert about["version"] == version
    about["config"]["predict"][name] = value
    header["__metadata__"]["mednca"] = json.dumps(about).replace("Infinity", "1e999")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
