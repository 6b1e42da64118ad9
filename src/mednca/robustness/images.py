"""The perturbed images as files, for other programs, whose masks can then be judged (`open_masks`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mednca import perturb
from mednca.cases import Case
from mednca.files import atomic_write, replacing
from mednca.robustness import Job, Progress, perturbed
from mednca.volume import Volume


def file_name(case: str, job: Job) -> str:
    """Case and job -> name of its files, without ending."""
    return f"{case}__{job.perturbation}__{job.severity:g}__{job.seed}"


def write_images(
    cases: Sequence[Case],
    jobs: Sequence[Job],
    folder: Path,
    *,
    folds: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Cases and jobs -> imagesTs/NAME_0000.nii.gz (one file for each channel, as nnU-Net reads them),
    labelsTs/NAME.nii.gz and index.json, which says what each NAME is and, with `folds`, in which fold it was
    held out. Files that are there stay as they are.

    Raises:
        InputError: If a case cannot be read, or the folder not be written.
    """
    index: dict[str, Any] = {}
    todo = [(case, job) for case in cases for job in jobs]
    for case, job, (image, label, kept) in perturbed(todo, progress):
        name = file_name(case, job)
        for channel, data in enumerate(image.data):
            _write_nifti(folder / "imagesTs" / f"{name}_{channel:04d}.nii.gz", data, image)
        _write_nifti(folder / "labelsTs" / f"{name}.nii.gz", label.data[0], label)
        index[name] = {"case": case, **job._asdict(), "kept": round(kept, 6)}
        if folds and case in folds:
            index[name]["fold"] = folds[case]
    content = {"format": "mednca-perturbed", "version": perturb.VERSION, "files": index}
    return atomic_write(folder / "index.json", json.dumps(content, indent=1) + "\n")


def _write_nifti(path: Path, data: NDArray[Any], grid: Volume) -> None:
    import nibabel as nib

    if path.is_file():
        return
    make: Any = nib.Nifti1Image  # nibabel has types for a part of it only
    image = make(data, grid.affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as part:
        nib.save(image, part)
