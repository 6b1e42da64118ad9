"""Files of scans in, files of masks out: what `mednca predict` does.

    inputs -> find_scans -> place (where masks go; all are checked before anything is computed) -> predict

Each mask has a report beside it, `<name>.json`: version, model and its hash, seed, device, engine, seconds,
shape, spacing, foreground volume, input, output, warnings. A mask and its report appear complete or not at
all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mednca.cases import images_in
from mednca.errors import InputError
from mednca.files import replacing
from mednca.formats import suffix
from mednca.io import read_case, spacing_known, stem, supported_suffixes, write_mask
from mednca.predict import Predictor

#: Seconds before a progress bar appears.
PATIENCE = 2.0


@dataclass(frozen=True)
class Scan:
    """One scan to segment: its name, its files, one or, as nnU-Net has it, one per channel, and which of its
    channels to use, if not all."""

    name: str
    files: tuple[Path, ...]
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A scan, and where its mask and its report go."""

    scan: Scan
    mask: Path
    report: Path


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    channels: Sequence[int] = (),
    force: bool = False,
    progress: bool = True,
) -> Iterator[dict[str, Any]]:
    """Scans in files and folders -> a mask and a report in files for each; yields the reports as they come.

    Of several scans, one that cannot be segmented does not stop the others: in place of its report comes
    {"input": ..., "error": ...}. With a single scan the error is raised.

    Args:
        predictor: The model.
        inputs: Files, and folders of files; a folder of DICOM files is one scan.
        out: With a single file as input, the mask's file (an ending says its format); else a folder, in which
            each mask has the name and the format of its scan (NIfTI, for DICOM).
        channels: Numbers, from 0, of the channels to use of scans that have more; all where none is named.
        force: Replace masks that exist.
        progress: Whether to show progress on stderr: on a terminal, after two seconds.

    Raises:
        InputError: Before anything is computed: an input is missing or no image, channels of a scan are
            missing, a mask exists already and `force` is not set, or would replace its own scan.
    """
    scans = find_scans(inputs, predictor.file.config.preprocess.modalities)
    scans = [replace(scan, channels=tuple(channels)) for scan in scans]
    jobs = place(scans, Path(out), single=len(inputs) == 1 and not Path(inputs[0]).is_dir(), force=force)
    return _run(predictor, jobs, force=force, progress=progress)


def find_scans(inputs: Sequence[str | Path], channels: int) -> list[Scan]:
    """Files and folders, and the channels that the model takes -> the scans in them.

    Where there is more than one channel, files name_0000, name_0001, ... in one folder are one scan; a file
    without such a number holds all channels.

    Raises:
        InputError: If there is no scan, a file is missing or no image, two scans have one name, or a channel
            is missing.
    """
    if not inputs:
        raise InputError("INPUT: name at least one scan or folder of scans")
    files = images_in(inputs)
    if channels == 1:
        return [Scan(stem(file), (file,)) for file in files]
    found: dict[tuple[Path, str], dict[int, Path]] = {}
    for file in files:
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem(file))
        name, number = (numbered[1], int(numbered[2])) if numbered else (stem(file), -1)
        found.setdefault((file.parent, name), {})[number] = file
    scans: dict[str, Scan] = {}
    for (folder, name), parts in found.items():
        if name in scans:
            raise InputError(f"{folder / name}: two scans have this name; rename one")
        if -1 in parts and len(parts) > 1:
            raise InputError(
                f"{parts[-1]}: there is also {name}_0000; keep the one file or the numbered ones"
            )
        if -1 not in parts and set(parts) != set(range(channels)):
            got = ", ".join(f"_{number:04d}" for number in sorted(parts))
            wanted = f"{name}_0000 to {name}_{channels - 1:04d}"
            raise InputError(f"{folder / name}: this model takes {channels} channels, {wanted}; got {got}")
        scans[name] = Scan(name, tuple(parts[number] for number in sorted(parts)))
    return list(scans.values())


def place(scans: Sequence[Scan], out: Path, *, single: bool, force: bool) -> list[Job]:
    """Scans and OUT -> where each mask and report goes.

    Raises:
        InputError: If OUT does not fit the scans, cannot be written to, a mask or report exists and `force`
            is not set, or a mask would replace an input.
    """
    to_file = not out.is_dir() and bool(suffix(out))
    if to_file and not (single or len(scans) == 1):
        raise InputError(f"{out}: must be a folder for {len(scans)} scans; leave the ending out")
    if single and not to_file and out.suffix and not out.is_dir():
        raise InputError(f"{out}: the ending of a mask must be one of {' '.join(supported_suffixes())}")
    folder = out.parent if to_file else out
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: must be a folder for masks to go into, got a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: cannot be written to; choose another place for the masks")
    inputs = {file.resolve() for scan in scans for file in scan.files}
    jobs = []
    for scan in scans:
        first = scan.files[0]
        ending = ".nii.gz" if first.is_dir() else first.name[-len(suffix(first)) :]
        mask = out if to_file else out / (scan.name + ending)
        job = Job(scan, mask, mask.with_name(stem(mask) + ".json"))
        if mask.resolve() in inputs:
            raise InputError(f"{mask}: the mask would replace an input; choose another name or folder")
        for path in (job.mask, job.report):
            if path.is_dir():
                raise InputError(f"{path}: is a folder; choose another name")
            if path.exists() and not force:
                raise InputError(f"{path}: exists already; choose another name or give --force")
        jobs.append(job)
    return jobs


def _run(
    predictor: Predictor, jobs: Sequence[Job], *, force: bool, progress: bool
) -> Iterator[dict[str, Any]]:
    """Jobs -> their reports, one by one."""
    bar = tqdm(jobs, unit="scan", delay=PATIENCE, disable=None if progress and len(jobs) > 1 else True)
    for job in bar:
        try:
            yield predict_file(predictor, job, force=force, progress=progress)
        except InputError as error:
            if len(jobs) == 1:
                raise
            yield {"input": _told(job.scan), "error": str(error)}


def predict_file(
    predictor: Predictor, job: Job, *, force: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Job -> its report; mask and report are written.

    Raises:
        InputError: If the scan cannot be read or is not for this model, there is too little memory, or the
            files cannot be written.
    """
    first = job.scan.files[0]
    volume = read_case(job.scan.files, job.scan.channels)
    hidden = None if progress else True  # None shows the bar on a terminal only
    with tqdm(unit="slice", desc=job.scan.name, leave=False, delay=PATIENCE, disable=hidden) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            prediction = predictor.predict(volume, progress=show)
        except InputError as error:
            raise InputError(f"{_told(job.scan)}: {error}") from error
        except MemoryError as error:
            raise InputError(
                f"{first}: too little memory for {volume.shape} voxels on {predictor.device}"
            ) from error
    report: dict[str, Any] = {"input": _told(job.scan), "output": str(job.mask), **prediction.report}
    if not spacing_known(first):  # a volume in ml would be made up
        report["foreground_ml"] = dict.fromkeys(report["foreground_ml"])
        report["spacing_mm"] = None
    with replacing(job.report, force=force) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        write_mask(job.mask, prediction.mask, first, force=force)
    return report


def _told(scan: Scan) -> str:
    return ", ".join(map(str, scan.files))
