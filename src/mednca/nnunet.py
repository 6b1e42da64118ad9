"""The way to nnU-Net v2 and back: our cases and folds in its folders, its commands in order, its masks found.

    export_raw -> next_commands -> (nnU-Net runs) -> find_masks -> evaluate.evaluate_masks

nnU-Net itself is not needed here, and never imported.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021, doi:10.1038/s41592-020-01008-z; the folders and keys
as its version 2 reads them.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from mednca.cases import Case, CaseSet
from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.formats import grid, suffix
from mednca.io import is_image, read_case, read_label, stem, write_mask
from mednca.volume import Volume, same_affine

#: Endings that nnU-Net's own readers take as our files hold them; of anything else a NIfTI is made.
KEPT = (".nii.gz", ".mha", ".nrrd", ".png")
FOREGROUND = "foreground"


def export_raw(
    cases: CaseSet,
    folds: Sequence[Sequence[str]],
    out: Path,
    *,
    number: int = 1,
    merge: bool = True,
    copy: bool = False,
    force: bool = False,
    progress: Callable[[Sequence[Case]], Iterable[Case]] | None = None,
) -> Path:
    """Labelled cases and the held-out ids of each fold -> nnU-Net's folders in `out`; gives the data set's.

    Written are `nnUNet_raw/DatasetNNN_NAME` (whole or not at all), with images as links or copies where
    nnU-Net can read them as they are and as NIfTI otherwise, and `splits_final.json` in `nnUNet_preprocessed/
    DatasetNNN_NAME`, from which nnU-Net takes its folds. Labels are linked too where their values need no
    change.

    Args:
        cases: The data set; every case needs a label on the grid of its image.
        folds: As `cases.split_folds` gives them: every id in one fold.
        out: Folder that gets nnU-Net's three.
        number: Of the data set, 1 to 999, by which nnU-Net calls it.
        merge: All labels as one class, "foreground"; otherwise their own values, which must be 1, 2, ...
        copy: Copy files instead of linking to them, so that the folder can be moved to another machine.
        force: Replace the data set of this number and name.
        progress: Wraps the cases to show how far it is, as `tqdm.tqdm`.

    Raises:
        InputError: The number is taken, a file is missing or unusable, labels do not fit nnU-Net.
        ValueError: The folds do not hold every case once, or the number is out of range.
    """
    if not 1 <= number <= 999:
        raise ValueError(f"number must be from 1 to 999, got {number}")
    ids = sorted(case.id for case in cases.cases)
    if sorted(name for fold in folds for name in fold) != ids:
        raise ValueError("folds must hold the id of every case once")
    name = f"Dataset{number:03d}_{re.sub(r'[^A-Za-z0-9_-]+', '', cases.name) or 'Data'}"
    raw = out / "nnUNet_raw"
    target = raw / name
    for taken in sorted(raw.glob(f"Dataset{number:03d}_*")):
        if taken != target:
            raise InputError(f"{taken}: has the number {number} already; choose another with --number")
    if target.exists() and not force:
        raise InputError(f"{target}: exists already; choose another folder or give --force")
    if target.exists() and not (target / "dataset.json").is_file():
        raise InputError(f"{target}: is no data set, so it is not replaced; choose another folder")
    labels = {1: FOREGROUND} if merge else _consecutive(cases)
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=raw) as temporary:
        new = Path(temporary) / "new"
        for part in ("imagesTr", "labelsTr"):
            (new / part).mkdir(parents=True)
        channels = _load(cases.cases[0])[0].channels
        ending = _ending(cases.cases, channels)
        flat = True
        for case in progress(cases.cases) if progress else cases.cases:
            image, label = _load(case)
            flat &= image.shape[2] == 1
            if image.channels != channels:
                raise InputError(
                    f"case {case.id}: must have {channels} channel(s) as {cases.cases[0].id}, "
                    f"got {image.channels}"
                )
            _put_image(case, image, new / "imagesTr", ending, copy)
            _put_label(case, label, labels, merge, new / "labelsTr" / (case.id + ending), copy)
        named = len(cases.channels) == channels
        meta = {
            "name": cases.name,
            "channel_names": {
                str(at): cases.channels[at] if named else f"channel {at}" for at in range(channels)
            },
            "labels": {"background": 0} | {label: value for value, label in labels.items()},
            "numTraining": len(ids),
            "file_ending": ending,
            "tensorImageSize": "2D" if flat else "3D",
            "licence": cases.licence,
            "reference": cases.reference,
        }
        (new / "dataset.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(Path(temporary) / "old")
        new.rename(target)
    splits = [{"train": sorted(set(ids) - set(fold)), "val": sorted(fold)} for fold in folds]
    atomic_write(
        out / "nnUNet_preprocessed" / name / "splits_final.json", json.dumps(splits, indent=2) + "\n"
    )
    return target


def next_commands(dataset: Path, *, trainer: str = "nnUNetTrainer", device: str = "cuda") -> list[str]:
    """Exported data set -> the shell commands that prepare and train it, each fold of each configuration.

    2d, and 3d_fullres unless all scans are flat. `trainer` is one of nnU-Net's, as nnUNetTrainer_250epochs.
    """
    out, number = dataset.parent.parent, int(dataset.name[len("Dataset") :][:3])
    kinds = configurations(dataset)
    splits = read_json(out / "nnUNet_preprocessed" / dataset.name / "splits_final.json")
    where = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    lines = [f"export {folder}={shlex.quote(str(out.absolute() / folder))}" for folder in where]
    lines.append(
        f"nnUNetv2_plan_and_preprocess -d {number} -c {' '.join(kinds)} --clean --verify_dataset_integrity"
    )
    return lines + [
        f"nnUNetv2_train {number} {kind} {fold} -tr {trainer} -device {device}"
        for kind in kinds
        for fold in range(len(splits))
    ]


def configurations(dataset: Path) -> tuple[str, ...]:
    """Exported data set -> nnU-Net's configurations that are worth training."""
    flat = read_json(dataset / "dataset.json").get("tensorImageSize") == "2D"
    return ("2d",) if flat else ("2d", "3d_fullres")


def results_folder(dataset: Path, configuration: str, trainer: str = "nnUNetTrainer") -> Path:
    """Exported data set -> where nnU-Net puts the folds of a configuration."""
    return (
        dataset.parent.parent / "nnUNet_results" / dataset.name / f"{trainer}__nnUNetPlans__{configuration}"
    )


def find_masks(folder: Path) -> dict[str, dict[str, Path]]:
    """Folder of masks -> {"": case id -> mask}; nnU-Net's folder of folds -> fold's name -> case id -> mask.

    Of the latter the masks in `fold_*/validation` are taken: those of the cases that a fold has not seen.
    Empty where there is none. A folder with a model is none of both.

    Raises:
        InputError: A case has two masks.
    """
    if not folder.is_dir() or (folder / "model.safetensors").exists():
        return {}
    folds = {path.parent.name: path for path in sorted(folder.glob("fold_*/validation")) if path.is_dir()}
    found: dict[str, dict[str, Path]] = {}
    for name, inside in (folds or {"": folder}).items():
        masks: dict[str, Path] = {}
        for path in sorted(inside.iterdir()):
            if not is_image(path) or not path.is_file():
                continue
            if stem(path) in masks:
                raise InputError(f"{path}: {masks[stem(path)].name} is of the same case; remove one")
            masks[stem(path)] = path
        if masks:
            found[name] = masks
    return found


def mask_labels(folder: Path) -> dict[int, str]:
    """Folder of masks or of nnU-Net's folds -> value -> name of each class, {} where nothing says so.

    nnU-Net leaves the `dataset.json` that it was trained on beside its folds and its predictions.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return {}
    labels = read_json(path).get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(value, int) for value in labels.values()):
        raise InputError(f"{path}: 'labels' must give each class a number (no regions), got {labels!r}")
    return {value: str(name) for name, value in sorted(labels.items(), key=lambda item: item[1]) if value}


def _consecutive(cases: CaseSet) -> dict[int, str]:
    """The names of the labels, if their values are those that nnU-Net takes."""
    labels = cases.labels
    if not labels:
        raise InputError(f"{cases.root}: labels need names in dataset.json; add them, or merge the labels")
    if list(labels) != list(range(1, len(labels) + 1)):
        raise InputError(
            f"{cases.root}: nnU-Net takes the label values 1, 2, ... only, got {list(labels)}; merge the "
            "labels"
        )
    return labels


def _load(case: Case) -> tuple[Volume, Volume]:
    """Case -> its image and label, on one grid."""
    if case.label is None:
        raise InputError(f"case {case.id}: has no label; nnU-Net's training cases need one")
    image = read_case(case.images, case.channels)
    label = read_label(case.label, like=image)
    if label.shape != image.shape or not same_affine(label.affine, image.affine):
        raise InputError(f"{case.label}: must have the shape and affine of {case.images[0]}; resample it")
    return image, label


def _ending(cases: Sequence[Case], channels: int) -> str:
    """Cases of so many channels -> the ending that nnU-Net's files get: the images' own where all can
    stay."""
    endings = {suffix(path) for case in cases for path in case.images}
    ending = next(iter(endings))
    if len(endings) > 1 or ending not in KEPT:
        return ".nii.gz"
    if not all(_one_each(case, channels, ending) for case in cases):
        return ".nii.gz"
    if ending == ".png" and not all(_plain_png(path) for case in cases for path in case.images):
        return ".nii.gz"
    return ending


def _one_each(case: Case, channels: int, ending: str) -> bool:
    """Case of so many channels -> True where nnU-Net finds them in its files: one in each, or an RGB PNG."""
    if case.channels:
        return False
    return len(case.images) == channels or (ending == ".png" and len(case.images) == 1)


def _plain_png(path: Path) -> bool:
    """PNG -> True if every reader finds the same numbers in it: grey or RGB of 8 bits, or grey of 16."""
    with path.open("rb") as file:
        bits, colour = file.read(26)[24:26]
    return (bits, colour) in ((8, 0), (16, 0), (8, 2))


def _put_image(case: Case, image: Volume, folder: Path, ending: str, copy: bool) -> None:
    """Image of a case -> its files NAME_0000, ... in the folder: as they are, or a NIfTI for each channel."""
    kept = all(suffix(path) == ending for path in case.images)
    if kept and _one_each(case, image.channels, ending):
        for at, path in enumerate(case.images):
            _place(path, folder / f"{case.id}_{at:04d}{ending}", copy)
        return
    for at, data in enumerate(image.data):
        nifti = nib.Nifti1Image(data, image.affine)
        nifti.header.set_xyzt_units("mm")
        (folder / f"{case.id}_{at:04d}{ending}").write_bytes(gzip.compress(nifti.to_bytes(), 6, mtime=0))


def _put_label(
    case: Case, label: Volume, labels: dict[int, str], merge: bool, target: Path, copy: bool
) -> None:
    """Label of a case -> its file: as it is where the values need no change, written anew otherwise."""
    assert case.label is not None  # _load
    values = set(np.unique(label.data).tolist()) - {0}
    if not merge and (unknown := sorted(values - set(labels))):
        raise InputError(f"{case.label}: holds the values {unknown}, dataset.json names {labels}; mend it")
    shape, affine = grid(case.label)
    as_stored = (*shape, 1)[:3] == label.shape and same_affine(affine, label.affine)
    readable = suffix(case.label) != ".png" or _plain_png(case.label)
    if values <= set(labels) and suffix(case.label) == suffix(target) and as_stored and readable:
        _place(case.label, target, copy)
    else:
        data = (label.data != 0) if merge else label.data
        write_mask(target, label.with_data(data.astype(np.uint8)), like=case.images[0])


def _place(source: Path, target: Path, copy: bool) -> None:
    """File -> a copy of it, or a link to it, under another name."""
    if copy:
        shutil.copyfile(source, target)
    else:
        target.symlink_to(source.resolve())
