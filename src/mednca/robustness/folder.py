"""The folder of a report: what it was measured with, so that nothing is mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mednca import perturb
from mednca.cases import CaseSet
from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.robustness import FORMAT, VERSION, Contender, digest


def open_report(folder: Path, setting: Mapping[str, Any], *, force: bool = False) -> Path:
    """Folder and what is measured (`describe`) -> its scores.jsonl, to be begun or gone on with.

    Raises:
        InputError: If the folder holds something else, or a report of another model or data set; with
            `force` a report is replaced.
    """
    file, scores = folder / "setting.json", folder / "scores.jsonl"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the report, this is a file; name another")
    if file.is_file():
        before = read_json(file)
        if not isinstance(before, dict) or before.get("format") != FORMAT:
            raise InputError(f"{file}: is no setting of a report; choose another folder")
        if force:
            shutil.rmtree(folder)
        else:
            _refuse_another(folder, before, setting)
            if before["baseline"] and not setting["baseline"]:
                setting = {**setting, "baseline": before["baseline"]}
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no report, so nothing is written there; choose another")
    atomic_write(file, json.dumps(setting, indent=1) + "\n")
    return scores


def describe(
    data: CaseSet, contenders: Sequence[Contender], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Data set, model and maybe its baseline, and options of prediction -> what a report must agree in to be
    gone on with."""
    model, *others = [{"name": one.name, "hash": one.hash} for one in contenders]
    return {
        "format": FORMAT,
        "version": VERSION,
        "perturbations": perturb.VERSION,
        "data": {"name": data.name, "digest": digest([case.id for case in data.cases])},
        "model": model,
        "baseline": others[0] if others else None,
        "options": dict(options or {}),
    }


def _refuse_another(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where a report of something else stands in the folder."""
    for what in ("version", "perturbations", "data", "model", "baseline", "options"):
        old: Any = before.get(what)
        new: Any = now[what]
        if what == "baseline" and not (old and new):
            continue  # one may come later, or be left out
        same = old.get("hash") == new["hash"] if what in ("model", "baseline") else old == new
        if not same:
            told = [one["name"] if what in ("data", "model", "baseline") else one for one in (old, new)]
            raise InputError(
                f"{folder}: holds a report with another {what} ({told[0]}; now {told[1]}); choose another "
                "folder, or start anew with --force"
            )
