"""Files of scans in, files of masks out: what `mednca predict` does.

    inputs -> find_scans -> place (where masks go; all are checked before anything is computed) -> predict

Each mask has a report beside it, `<name>.json`: version, model and its hash, seed, device, engine, seconds,
shape, spacing, foreground volume, trust, input, output, warnings. A mask and its report appear complete or
not at all.

With `review_below` masks are sorted: OUT/accepted, OUT/review, and OUT/review.csv, which lists all scans,
those that need a look first.
"""

from __future__ import annotations

import csv
import io
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
from mednca.files import atomic_write, replacing
from mednca.formats import suffix
from mednca.io import read_case, spacing_known, stem, supported_suffixes, write_map, write_mask
from mednca.predict import Prediction, Predictor
from mednca.signals import samples
from mednca.volume import Volume

#: Folders that masks are sorted into.
ACCEPTED, REVIEW = "accepted", "review"
#: Columns of review.csv.
COLUMNS = ("scan", "verdict", "expected_dice", "low", "high", "reasons", "mask", "input")
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
    """A scan, and where its mask, its report and, if wanted, its map of uncertainty go: there, or in the
    folder `accepted` or `review` beside."""

    scan: Scan
    mask: Path
    report: Path
    uncertainty: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is written."""
        return (self.mask, self.report) + ((self.uncertainty,) if self.uncertainty else ())

    def inside(self, folder: str) -> Job:
        """The same in a folder beside."""
        paths = [
            path and path.parent / folder / path.name for path in (self.mask, self.report, self.uncertainty)
        ]
        assert paths[0] is not None and paths[1] is not None
        return Job(self.scan, paths[0], paths[1], paths[2])


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    channels: Sequence[int] = (),
    force: bool = False,
    progress: bool = True,
    uncertainty: bool = False,
    review_below: float | None = None,
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
        uncertainty: Also write NAME_uncertainty.nii.gz, the standard deviation of the samples of the
            foreground's probability; the predictor must give probabilities and signals.
        review_below: Sort the masks in the folder `out`: with at least this expected Dice into `accepted`,
            others into `review`; `review.csv` lists all. A report then has "verdict".

    Raises:
        InputError: Before anything is computed: an input is missing or no image, channels of a scan are
            missing, a mask exists already and `force` is not set, or would replace its own scan; the model
            cannot tell what is asked for.
    """
    _check_wishes(predictor, uncertainty, review_below)
    scans = find_scans(inputs, predictor.file.config.preprocess.modalities)
    scans = [replace(scan, channels=tuple(channels)) for scan in scans]
    jobs = place(
        scans,
        Path(out),
        single=len(inputs) == 1 and not Path(inputs[0]).is_dir() and review_below is None,
        force=force,
        uncertainty=uncertainty,
        folders=(ACCEPTED, REVIEW) if review_below is not None else ("",),
    )
    reports = _run(predictor, jobs, force=force, progress=progress, review_below=review_below)
    if review_below is None:
        return reports
    path = Path(out) / "review.csv"
    return _listed(reports, jobs, path, read_review(path))


def _check_wishes(predictor: Predictor, uncertainty: bool, review_below: float | None) -> None:
    """Raise for what the model cannot tell."""
    if uncertainty and not (predictor.probability and predictor.signals):
        raise ValueError("uncertainty needs a predictor with probability and signals")
    if uncertainty and samples(predictor.file.config) < 2:
        raise InputError(
            "a map of uncertainty needs several samples, and this model has one; average several runs, as "
            "with --ensemble 3"
        )
    if review_below is None:
        return
    if not 0 < review_below <= 1:
        raise InputError(f"--review-below must be more than 0 and at most 1, got {review_below:g}")
    if reason := predictor.without_trust:
        name = predictor.file.card.get("name") or predictor.file.hash
        raise InputError(f"--review-below cannot be used with the model {name}: {reason}")


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


def place(
    scans: Sequence[Scan],
    out: Path,
    *,
    single: bool,
    force: bool,
    uncertainty: bool = False,
    folders: Sequence[str] = ("",),
) -> list[Job]:
    """Scans and OUT -> where each mask, report and map goes, in one of the folders.

    Raises:
        InputError: If OUT does not fit the scans, cannot be written to, a mask or report exists and `force`
            is not set, or a mask would replace an input.
    """
    to_file = not out.is_dir() and bool(suffix(out))
    if to_file and folders != ("",):
        raise InputError(f"{out}: must be a folder for masks to be sorted into; leave the ending out")
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
    jobs: list[Job] = []
    taken: dict[Path, str] = {}
    for scan in scans:
        first = scan.files[0]
        ending = ".nii.gz" if first.is_dir() else first.name[-len(suffix(first)) :]
        mask = out if to_file else out / (scan.name + ending)
        spread = mask.with_name(stem(mask) + "_uncertainty.nii.gz") if uncertainty else None
        job = Job(scan, mask, mask.with_name(stem(mask) + ".json"), spread)
        for path in (path for folder in folders for path in job.inside(folder).files):
            if path.resolve() in inputs:
                raise InputError(f"{path}: the mask would replace an input; choose another name or folder")
            if path.is_dir():
                raise InputError(f"{path}: is a folder; choose another name")
            if path.exists() and not force:
                raise InputError(f"{path}: exists already; choose another name or give --force")
            if uncertainty and taken.setdefault(path, scan.name) != scan.name:
                raise InputError(f"{path}: would be written for two scans; rename one")
        jobs.append(job)
    return jobs


def _run(
    predictor: Predictor,
    jobs: Sequence[Job],
    *,
    force: bool,
    progress: bool,
    review_below: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Jobs -> their reports, one by one."""
    bar = tqdm(jobs, unit="scan", delay=PATIENCE, disable=None if progress and len(jobs) > 1 else True)
    for job in bar:
        try:
            yield predict_file(predictor, job, force=force, progress=progress, review_below=review_below)
        except InputError as error:
            if len(jobs) == 1 and review_below is None:
                raise
            yield {"input": _told(job.scan), "error": str(error)}


def predict_file(
    predictor: Predictor,
    job: Job,
    *,
    force: bool = False,
    progress: bool = False,
    review_below: float | None = None,
) -> dict[str, Any]:
    """Job -> its report; all files of the job are written, with `review_below` into one of two folders.

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
    verdict: dict[str, Any] = {}
    if review_below is not None:
        accepted = prediction.report["trust"]["expected_dice"] >= review_below
        verdict = {"verdict": ACCEPTED if accepted else REVIEW, "review_below": review_below}
        other = job.inside(REVIEW if accepted else ACCEPTED)
        job = job.inside(verdict["verdict"])
    report: dict[str, Any] = {
        "input": _told(job.scan),
        "output": str(job.mask),
        **prediction.report,
        **verdict,
    }
    if not spacing_known(first):  # a volume in ml would be made up
        report["foreground_ml"] = dict.fromkeys(report["foreground_ml"])
        report["spacing_mm"] = None
    with replacing(job.report, force=force) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if job.uncertainty:
            write_map(job.uncertainty, uncertainty_of(prediction), force=force)
        write_mask(job.mask, prediction.mask, first, force=force)
    if verdict:
        for path in other.files:  # of an earlier run that decided otherwise
            path.unlink(missing_ok=True)
    return report


def uncertainty_of(prediction: Prediction) -> Volume:
    """Prediction with the spread of its samples -> their standard deviation (1, X, Y, Z) at each voxel."""
    assert prediction.spread is not None
    return prediction.spread.with_data(prediction.spread.data[:1])


# ---- The list of what to look at ----


def _listed(
    reports: Iterator[dict[str, Any]], jobs: Sequence[Job], path: Path, before: Sequence[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """Reports -> the same, each in the list when it is given on. Scans that were listed before stay."""
    rows = {row["scan"]: row for row in before}
    for job, report in zip(jobs, reports, strict=True):
        rows[job.scan.name] = _row(job, report)
        write_review(path, list(rows.values()))
        yield report


def _row(job: Job, report: dict[str, Any]) -> dict[str, str]:
    """Job and its report -> its line in the list."""
    if "error" in report:
        told = {"verdict": "failed", "reasons": report["error"]}
    else:
        trust = report["trust"]
        low, high = trust["interval"]
        numbers = {"expected_dice": trust["expected_dice"], "low": low, "high": high}
        told = {"verdict": report["verdict"]} | {name: f"{value:.4f}" for name, value in numbers.items()}
        told |= {"reasons": "; ".join(trust["reasons"]), "mask": report["output"]}
    return dict.fromkeys(COLUMNS, "") | {"scan": job.scan.name, "input": report["input"]} | told


def read_review(path: Path) -> list[dict[str, str]]:
    """review.csv, there or not -> its lines.

    Raises:
        InputError: If it is no such list.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows = list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from error
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}: expected the columns {', '.join(COLUMNS)}; move the file away")
    return rows


def write_review(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Lines -> review.csv: what failed, what is to be looked at, worst first, then what was accepted."""
    order = ["failed", REVIEW, ACCEPTED]
    found = sorted(
        rows,
        key=lambda row: (order.index(row["verdict"]), float(row["expected_dice"] or 0), row["scan"]),
    )
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    return atomic_write(path, text.getvalue())


def _told(scan: Scan) -> str:
    return ", ".join(map(str, scan.files))
