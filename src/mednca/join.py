"""Several data sets as one: a dataset.json that lists the cases of all of them, each with its source.

Nothing is copied. The paths are relative, so that the folders may be moved together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mednca.cases import CaseSet, find_cases, find_labelled_cases
from mednca.errors import InputError
from mednca.files import atomic_write


def join(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    channels: Sequence[int] = (),
    leave_out: Collection[str] = (),
    force: bool = False,
) -> CaseSet:
    """Folders of data sets -> a folder with a dataset.json of their labelled cases, which is a data set too.

    Each case keeps the name of its set as its source. A class that the sets call differently gets both names;
    licences and references are put together.

    Args:
        folders: The sets, in any layout that `find_cases` knows; one is enough to choose its channels.
        out: Folder to make.
        channels: Numbers, from 0, of the channels to keep of every case; all where none is named. What is
            kept must mean the same in all sets.
        leave_out: Ids of cases that are not to be listed.
        force: Replace a joined set.

    Raises:
        InputError: If a set cannot be used, two sets have one name, two cases have one id, a case to leave
            out is in none, or `out` exists and is no joined set, or `force` is not set.
    """
    out = Path(out)
    sets = [find_labelled_cases(Path(folder), None) for folder in folders]
    names = [found.name for found in sets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice}: two sets have this name; give one another 'name' in its dataset.json")
    wrong = [channel for channel in channels if channel < 0]
    if wrong or len(set(channels)) < len(channels):
        raise InputError(f"channels must be different numbers from 0, got {list(channels)}")
    labelled = [(found, case) for found in sets for case in found.cases if case.label]
    if unknown := sorted(set(leave_out) - {case.id for _, case in labelled}):
        raise InputError(f"case {unknown[0]}, to be left out, is in none of the sets; check its name")
    _check_place(out, force)
    kept = _names_of_channels(sets, channels)
    content: dict[str, Any] = {
        "name": out.resolve().name,
        "licence": _told(sets, [found.licence for found in sets]),
        "reference": _told(sets, [found.reference for found in sets]),
        "labels": {"0": "background"} | {str(value): name for value, name in _names_of_classes(sets).items()},
        "modality": {str(number): name for number, name in enumerate(kept)},
        "training": [
            {
                "id": case.id,
                "image": [_path(image, out) for image in case.images],
                "label": _path(case.label, out),
                "source": case.source or found.name,
                "channels": list(channels) or list(case.channels),
            }
            for found, case in labelled
            if case.label and case.id not in leave_out
        ],
    }
    _check_ids(content["training"])
    atomic_write(out / "dataset.json", json.dumps(content, indent=1) + "\n")
    return find_cases(out)


def _check_place(out: Path, force: bool) -> None:
    """Raise InputError unless the folder is new, empty, or a joined set that may be replaced."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: must be a folder, got a file; choose another name")
    inside = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if inside and inside != ["dataset.json"]:
        raise InputError(f"{out}: holds other files than a joined set's; choose another name")
    if inside and not force:
        raise InputError(f"{out}: exists already; choose another name or give --force")


def _check_ids(entries: Sequence[dict[str, Any]]) -> None:
    """Raise InputError for two cases of one id."""
    seen: dict[str, str] = {}
    for entry in entries:
        if entry["id"] in seen:
            where = f"{seen[entry['id']]} and {entry['source']}"
            raise InputError(f"case {entry['id']} is in {where}; rename the files of one or leave it out")
        seen[entry["id"]] = entry["source"]


def _names_of_classes(sets: Sequence[CaseSet]) -> dict[int, str]:
    """Sets -> value and name of each class; where names differ, all of them."""
    names: dict[int, list[str]] = {}
    for found in sets:
        for value, name in found.labels.items():
            known = names.setdefault(value, [])
            if name.lower() not in (other.lower() for other in known):
                known.append(name)
    return {value: " / ".join(names[value]) for value in sorted(names)}


def _names_of_channels(sets: Sequence[CaseSet], channels: Sequence[int]) -> list[str]:
    """Sets and the channels to keep -> the names of those, as the first set that names all of them has it."""
    for found in sets:
        if found.channels and max(channels, default=0) < len(found.channels):
            return [found.channels[channel] for channel in channels or range(len(found.channels))]
    return []


def _told(sets: Sequence[CaseSet], texts: Sequence[str]) -> str:
    """Sets and what each says -> one text, each part with its set's name; the same words of all once."""
    said = [(found.name, text) for found, text in zip(sets, texts, strict=True) if text]
    if len(said) == len(sets) and len({text for _, text in said}) == 1:
        return said[0][1]
    return "; ".join(f"{name}: {text}" for name, text in said)


def _path(path: Path, out: Path) -> str:
    """Path and the folder of the joined set -> the path from there."""
    try:
        return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()
