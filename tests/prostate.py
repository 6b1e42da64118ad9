"""The paper's prostate data in small: files of the form that MSD Task05 and NCI-ISBI 2013 have.

Task05_Prostate: 4-D NIfTI (X, Y, Z, 2) with T2 and ADC, labels 1 PZ and 2 TZ. NCI-ISBI 2013: a folder for
each patient with the T2 series as DICOM, two folders down and oblique, and labels as NRRD.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

itk = pytest.importorskip("SimpleITK", reason="needs mednca[formats]")
pydicom = pytest.importorskip("pydicom", reason="needs mednca[dev]")

Array = NDArray[Any]
#: Columns of a tilted axial scan: rows to the left, columns to the back and down, slices up (LPS+).
TILT = np.array([[1, 0, 0], [0, 0.978, -0.208], [0, 0.208, 0.978]]) / [1, *2 * [np.hypot(0.978, 0.208)]]
ORIGIN = np.array([-9.5, -8.25, -3.125])
PATIENTS = ("Prostate3T-01-0001", "Prostate3T-01-0002", "Prostate3T-01-0003")
SPACING = (0.5, 0.625, 3.0)


def organ(seed: int, shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """Seed and shape -> T2-like image int16 and label uint8 with two zones, both (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.arange(n) / n - rng.uniform(0.45, 0.55) for n in shape)
    far = np.sqrt((x[:, None, None] * 3) ** 2 + (y[None, :, None] * 3) ** 2 + z[None, None] ** 2)
    label = np.where(far < 0.5, 2, np.where(far < 0.9, 1, 0)).astype(np.uint8)
    image = 200 + 150 * (label > 0) + 80 * (label == 1) + rng.normal(0, 20, shape)
    return image.clip(0).astype(np.int16), label


def write_task05(folder: Path, count: int = 3, shape: tuple[int, int, int] = (32, 32, 5)) -> Path:
    """Folder -> a data set in it as MSD Task05_Prostate is."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    affine = np.diag([0.625, 0.625, 3.6, 1.0])
    listed = []
    for number in range(count):
        name = f"prostate_{number:02d}.nii.gz"
        image, label = organ(number, shape)
        adc = (2000 - 3 * image).astype(np.int16)
        nib.save(nib.Nifti1Image(np.stack([image, adc], axis=3), affine), folder / "imagesTr" / name)
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / name)
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "PROSTATE",
        "reference": "Radboud University, Nijmegen Medical Centre",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "numTraining": count,
        "training": listed,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def as_itk(data: Array, *, origin: Array = ORIGIN, direction: Array = TILT) -> Any:
    """Voxels (X, Y, Z) -> a SimpleITK image of them in a tilted place."""
    image = itk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(SPACING)
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    return image


def write_dicom(
    folder: Path,
    data: Array,
    *,
    series: str = "1.2.826.0.1.7.1",
    description: str = "t2_tse_tra",
    order: Sequence[int] | None = None,
    positions: dict[int, Array] | None = None,
    ending: str = ".dcm",
    **elements: Any,
) -> Path:
    """Voxels int16 (X, Y, Z) -> one DICOM file for each slice in the folder, explicit VR, as a scanner's MR.

    Args:
        folder: Where to write.
        data: The voxels, as stored.
        series: SeriesInstanceUID.
        description: SeriesDescription.
        order: Number in the file name of each slice; None: against the order of the slices.
        positions: Slice -> another position than its own.
        ending: Of the file names.
        elements: Further elements of every file, by keyword; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(data.shape[2]):
        place = (positions or {}).get(z, ORIGIN + SPACING[2] * z * TILT[:, 2])
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{z + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_ = pydicom.Dataset()
        told = {
            "SOPClassUID": pydicom.uid.MRImageStorage,
            "SOPInstanceUID": f"{series}.{z + 1}",
            "Modality": "MR",
            "SeriesDescription": description,
            "PatientName": "made up",
            "PatientID": "made-up",
            "StudyInstanceUID": "1.2.826.0.1.7",
            "SeriesInstanceUID": series,
            "InstanceNumber": z + 1,
            "SliceThickness": 2.5,
            "ImagePositionPatient": [f"{value:.8f}" for value in place],
            "ImageOrientationPatient": [f"{value:.10f}" for value in (*TILT[:, 0], *TILT[:, 1])],
            "PixelSpacing": list(SPACING[1::-1]),
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": data.shape[1],
            "Columns": data.shape[0],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "PixelData": np.ascontiguousarray(data[:, :, z].T).astype("<i2").tobytes(),
        }
        for key, value in (told | elements).items():
            if value is not None:
                setattr(slice_, key, value[z] if isinstance(value, tuple) else value)
        slice_.file_meta = meta
        number = order[z] if order else data.shape[2] - 1 - z
        slice_.save_as(folder / f"{number:06d}{ending}", enforce_file_format=True)
    return folder


def write_nci_isbi(
    folder: Path, names: Sequence[str] = PATIENTS, shape: tuple[int, int, int] = (40, 40, 4)
) -> Path:
    """Folder -> a data set in it as the NCI-ISBI 2013 challenge is, put into images/ and labels/.

    The label of the second patient is stored with its slices from top to bottom, as some are.
    """
    (folder / "labels").mkdir(parents=True)
    for number, name in enumerate(names):
        image, label = organ(100 + number, shape)
        write_dicom(folder / "images" / name / "1.3.6.1.4.1.1" / f"1.3.6.1.4.1.2.{number}", image)
        stored = as_itk(label)
        if number == 1:
            stored = stored[:, :, ::-1]
        itk.WriteImage(stored, str(folder / "labels" / f"{name}.nrrd"), True)
    return folder


def small_settings(size: int = 32) -> dict[str, Any]:
    """What makes a recipe of the paper small enough for a test, for `--config`."""
    return {
        "model": {"channels": 8, "hidden": 8, "steps": [2, 2]},
        "preprocess": {"size": [size, size]},
        "train": {"canvas": [size, size], "patch": size // 4, "batch_size": 2, "iterations": 3},
    }
