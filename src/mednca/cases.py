"""Patients: which files belong to a case, which cases to a person, and folds that never part a person.

Found without being told: a folder of the Medical Segmentation Decathlon (MSD), one of nnU-Net, a pair of
folders `images` and `labels`, or a folder of images. An image is a file, or a folder with the files of a
DICOM series. Nothing here opens an image; `doctor` does.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mednca import dicom
from mednca.errors import InputError
from mednca.formats import suffix
from mednca.io import images_of, stem, supported_suffixes

Layout = Literal["msd", "nnunet", "folders", "files"]


@dataclass(frozen=True)
class Case:
    """One patient's scan.

    Attributes:
        id: Name of the files without their ending, and without nnU-Net's channel number.
        images: One file, or one per channel. A file that a list promises may be missing: reading it says so.
        label: The reference, if there is one.
        group: What must stay together in a split: the person.
        source: The set that it came from, where several were joined; else "".
        channels: Numbers, from 0, of the channels to use; all where none is named.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    group: str
    source: str = ""
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class CaseSet:
    """The cases of a folder and what is known of them.

    Attributes:
        name: Name of the set.
        root: Its folder.
        layout: How the folder is laid out.
        labels: Class number -> name of each foreground class; empty where nothing says so.
        channels: Name of each image channel; empty where nothing says so.
        cases: Sorted by id.
        licence: As the set states it, or "".
        reference: Whom to cite, or "".
        strays: Files in the folders of images and labels that belong to no case.
        grouping: The rule that the groups came from; None if every case is its own.
    """

    name: str
    root: Path
    layout: Layout
    labels: dict[int, str]
    channels: tuple[str, ...]
    cases: tuple[Case, ...]
    licence: str = ""
    reference: str = ""
    strays: tuple[Path, ...] = ()
    grouping: str | None = None


def find_cases(
    folder: str | Path,
    *,
    group: str | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    require_labels: bool = False,
) -> CaseSet:
    """Folder of a data set -> its cases, sorted by id.

    Args:
        folder: Where the set is. Its `dataset.json`, if any, gives the names of classes and channels and, in
            MSD's form, the list of cases.
        group: What makes a person. None: every case; "pairs": the last number of the id, 2k - 1 with 2k, as
            in MSD Task04; "re:PATTERN": what the pattern's one group finds in the id; "csv:FILE:COLUMN": a
            column of a table in the folder whose first column has ids or file names.
        images: Folder of images, inside `folder` or absolute, instead of looking for one.
        labels: The folder of labels that goes with it.
        require_labels: Refuse a set without any label.

    Raises:
        InputError: If there is no image, two files have one id, `dataset.json` or the rule cannot be used, or
            labels are required and there are none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of images, there is none; check the path")
    meta = _read_meta(root / "dataset.json")
    image_folder, label_folder, layout = _find_folders(root, images, labels)
    label_files = _by_id(label_folder) if label_folder else {}
    image_files = _by_id(image_folder)
    if layout == "msd" and _is_nnunet(meta, image_files, label_files):
        layout = "nnunet"
        cases = _nnunet_cases(meta, image_files, label_files)
    elif layout == "msd" and meta.get("training"):
        cases = [_listed_case(root, entry) for entry in meta["training"]]
    else:
        cases = [Case(name, (path,), label_files.get(name), name) for name, path in image_files.items()]
    if not cases:
        raise InputError(f"{root}: no image in {image_folder}; expected {' '.join(supported_suffixes())}")
    cases.sort(key=lambda case: case.id)
    for first, second in pairwise(cases):
        if first.id == second.id:
            raise InputError(f"{root}: ids must differ, {first.id} comes twice; repair dataset.json")
    if require_labels and not any(case.label for case in cases):
        raise InputError(f"{root}: labels are needed, got none; put them in labelsTr or labels")
    used = {path for case in cases for path in (*case.images, case.label)}
    find_group = _group_rule(group, root)
    return CaseSet(
        name=str(meta.get("name") or root.resolve().name),
        root=root,
        layout=layout,
        labels=_class_names(root, meta.get("labels") or {}),
        channels=_channel_names(root, meta.get("channel_names") or meta.get("modality") or {}),
        cases=tuple(replace(case, group=find_group(case.id)) for case in cases),
        licence=str(meta.get("licence") or meta.get("license") or ""),
        reference=str(meta.get("reference") or ""),
        strays=tuple(path for path in (*image_files.values(), *label_files.values()) if path not in used),
        grouping=group,
    )


def find_labelled_cases(folder: Path, group: str | None) -> CaseSet:
    """Folder of a data set and rule for persons -> its cases, of which some have labels.

    Raises:
        InputError: As `find_cases`, and if there is a label without an image, which would be left out.
    """
    cases = find_cases(folder, group=group, require_labels=True)
    folders = {case.label.parent for case in cases.cases if case.label}
    for path in cases.strays:
        if path.parent in folders:
            raise InputError(f"{path}: a label without an image; add its image or remove it")
    return cases


def split_folds(cases: CaseSet | Iterable[Case], folds: int, seed: int) -> list[list[str]]:
    """Cases -> the ids of each fold, sorted; no group is in two folds, and folds are about equally large.

    Groups are shuffled, then dealt from the largest to the smallest, each to the fold with the fewest cases.
    The result depends on ids, groups and seed only, not on the order of the cases.

    Raises:
        ValueError: If there are fewer than two folds.
        InputError: If there are fewer groups than folds.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    groups: dict[str, list[str]] = {}
    for case in sorted(cases.cases if isinstance(cases, CaseSet) else cases, key=lambda case: case.id):
        groups.setdefault(case.group, []).append(case.id)
    if len(groups) < folds:
        raise InputError(f"{folds} folds need as many groups, got {len(groups)}; ask for fewer")
    order = np.random.Generator(np.random.PCG64(seed)).random(len(groups)).argsort(kind="stable")
    names = sorted(groups)
    shuffled = [groups[names[index]] for index in order]
    result: list[list[str]] = [[] for _ in range(folds)]
    for ids in sorted(shuffled, key=len, reverse=True):
        min(result, key=len).extend(ids)
    return [sorted(ids) for ids in result]


def images_in(paths: Iterable[str | Path]) -> list[Path]:
    """Files and folders -> the images, those of a folder sorted by name.

    A folder of DICOM files is one image. In any other folder the images are its files, and those of its
    folders that hold DICOM files.

    Raises:
        InputError: If a path is missing or no image, a folder has none, or two images have one name, which is
            what the results are called by.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir() and any(map(dicom.is_file, path.iterdir())):
            found.append(path)
        elif path.is_dir():
            inside = images_of(path)
            if not inside:
                expected = " ".join(supported_suffixes())
                raise InputError(f"{path}: no image in this folder; expected {expected} or DICOM")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: expected an image or a folder of images, got nothing; check the path")
        elif not suffix(path):
            raise InputError(f"{path}: the ending must be one of {' '.join(supported_suffixes())}")
        else:
            found.append(path)
    names: dict[str, Path] = {}
    for path in found:
        if stem(path) in names:
            raise InputError(f"{path}: has the name of {names[stem(path)]}; rename one")
        names[stem(path)] = path
    return found


def _read_meta(path: Path) -> dict[str, Any]:
    """dataset.json -> its content, {} where there is none."""
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, got {error}; repair the file") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("training", []), list):
        raise InputError(f"{path}: expected an object with a list 'training'; repair the file")
    return meta


def _find_folders(
    root: Path, images: str | Path | None, labels: str | Path | None
) -> tuple[Path, Path | None, Layout]:
    """Root and what was given -> folders of images and labels, and the layout (nnU-Net still as "msd")."""
    if images is not None or labels is not None:
        if images is None:
            raise InputError(f"{root}: a folder of labels needs its folder of images; give both")
        given = [root / path for path in (images, labels) if path is not None]
        for path in given:
            if not path.is_dir():
                raise InputError(f"{path}: expected a folder, there is none; check the path")
        return given[0], given[1] if labels is not None else None, "folders"
    known: tuple[tuple[str, str, Layout], ...]
    known = (("imagesTr", "labelsTr", "msd"), ("images", "labels", "folders"))
    for image_name, label_name, layout in known:
        if (root / image_name).is_dir():
            label_folder = root / label_name
            return root / image_name, label_folder if label_folder.is_dir() else None, layout
    return root, None, "msd" if (root / "dataset.json").exists() else "files"


def _by_id(folder: Path) -> dict[str, Path]:
    """Folder -> its images by name without ending, sorted."""
    files: dict[str, Path] = {}
    for path in images_of(folder):
        if stem(path) in files:
            raise InputError(f"{path}: ids must differ, {files[stem(path)].name} has the same; remove one")
        files[stem(path)] = path
    return files


def _is_nnunet(meta: dict[str, Any], images: dict[str, Path], labels: dict[str, Path]) -> bool:
    """True where images carry channel numbers (x_0000) that their labels (x) lack."""
    numbered = bool(images) and all(re.search(r"_\d{4}$", name) for name in images)
    first = any(name.endswith("_0000") for name in images)
    return "channel_names" in meta or (numbered and first and not labels.keys() & images.keys())


def _nnunet_cases(meta: dict[str, Any], images: dict[str, Path], labels: dict[str, Path]) -> list[Case]:
    """Files x_0000, x_0001, ... -> cases, all with as many channels, whether the files exist or not."""
    found: dict[str, dict[int, Path]] = {}
    for name, path in images.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if not match:
            raise InputError(f"{path}: nnU-Net's images end in _0000, _0001, ...; rename it")
        found.setdefault(match[1], {})[int(match[2])] = path
    channels = len(meta.get("channel_names") or ()) or 1 + max(max(files) for files in found.values())
    cases = []
    for name, files in found.items():
        any_file = next(iter(files.values()))
        end = any_file.name[-len(suffix(any_file)) :]
        promised = (any_file.with_name(f"{name}_{number:04d}{end}") for number in range(channels))
        paths = tuple(files.get(number, path) for number, path in enumerate(promised))
        cases.append(Case(name, paths, labels.get(name), name))
    return cases


def _listed_case(root: Path, entry: Any) -> Case:
    """Entry of MSD's list, {"image": ..., "label": ...} or a path -> the case.

    Joined sets (see `join`) also give "id", "source", "channels", and a list of paths as "image".
    """
    entry = {"image": entry} if isinstance(entry, str) else entry
    try:
        images = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
        paths, label = tuple(root / image for image in images), entry.get("label")
        name, source = entry.get("id", stem(paths[0])), entry.get("source", "")
        channels = tuple(entry.get("channels", ()))
        if not isinstance(name, str) or not isinstance(source, str):
            raise TypeError("names must be text")
        if not all(type(channel) is int for channel in channels):
            raise TypeError("channels must be numbers")
        return Case(name, paths, root / label if label else None, name, source, channels)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{root / 'dataset.json'}: 'training' must list images, got {entry!r}; repair it"
        ) from error


def _class_names(root: Path, labels: Any) -> dict[int, str]:
    """{"0": "background", "1": "x"} of MSD or {"background": 0, "x": 1} of nnU-Net -> {1: "x"}."""
    names: dict[int, str] = {}
    try:
        for key, value in labels.items():
            number, name = (value, key) if isinstance(value, int) else (int(key), str(value))
            if name == "ignore":
                raise ValueError("a class to ignore")
            names[number] = name
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{root / 'dataset.json'}: 'labels' must give each class a number (no regions, no ignore), got "
            f"{labels!r}; repair it"
        ) from error
    return {number: names[number] for number in sorted(names) if number}


def _channel_names(root: Path, channels: Any) -> tuple[str, ...]:
    """{"0": "T1", "1": "T2"} -> ("T1", "T2")."""
    try:
        return tuple(str(channels[key]) for key in sorted(channels, key=int))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{root / 'dataset.json'}: channels need numbers, got {channels!r}; repair it"
        ) from error


def _group_rule(rule: str | None, root: Path) -> Callable[[str], str]:
    """Rule for persons -> function from a case's id to its group."""
    if rule is None:
        return str
    if rule == "pairs":
        return _pair
    kind, _, rest = rule.partition(":")
    if kind == "re" and rest:
        try:
            pattern = re.compile(rest)
        except re.error as error:
            raise InputError(f"group {rule!r}: not a regular expression: {error}") from error
        if pattern.groups != 1:
            raise InputError(f"group {rule!r}: must have one group in brackets, got {pattern.groups}")
        return lambda name: _matched(pattern, name)
    file, _, column = rest.rpartition(":")
    if kind == "csv" and file and column:
        table = _read_column(root / file, column)
        return lambda name: _looked_up(table, name, root / file, column)
    raise InputError(f"group {rule!r}: must be pairs, re:PATTERN or csv:FILE:COLUMN")


def _pair(name: str) -> str:
    numbers = re.findall(r"\d+", name)
    if not numbers:
        raise InputError(f"group 'pairs': ids need a number, got {name!r}; use re:... or csv:...")
    return str((int(numbers[-1]) + 1) // 2)


def _matched(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    if not match or not match[1]:
        raise InputError(f"group 're:{pattern.pattern}': must match every id, got {name!r}")
    return match[1]


def _read_column(path: Path, column: str) -> dict[str, str]:
    """CSV file -> what the column says of each id of the first column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from error
    if not rows or column not in rows[0]:
        raise InputError(f"{path}: needs a column {column!r}, got {', '.join(rows[0]) if rows else 'no row'}")
    first = next(iter(rows[0]))
    table: dict[str, str] = {}
    for row in rows:
        name = row[first] or ""
        table[stem(name) if suffix(name) else name] = row[column] or ""
    return table


def _looked_up(table: dict[str, str], name: str, path: Path, column: str) -> str:
    if not table.get(name):
        raise InputError(f"{path}: must give {column!r} of every case, got none of {name!r}; add the row")
    return table[name]
