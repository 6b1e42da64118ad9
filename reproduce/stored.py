"""The results of the experiments in the tree: where each is, what it may replace, which command makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from reproduce import catalogue
from reproduce.catalogue import Experiment

RESULTS = Path(__file__).parent / "results"
FORMAT, VERSION = "mednca-experiment", 1


def result_path(experiment: Experiment, results: Path = RESULTS) -> Path:
    """Experiment -> where its result is stored."""
    return results / catalogue.table_of(experiment) / f"{experiment.name}.json"


def read_result(path: Path, *, quick: bool = False) -> dict[str, Any] | None:
    """Path -> a stored result, None where there is none.

    Raises:
        InputError: If it is none of this version, or of the other mode: quick and full are never mixed.
    """
    if not path.is_file():
        return None
    result: dict[str, Any] = read_json(path)
    if (result.get("format"), result.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: expected {FORMAT} version {VERSION}; collect it again")
    wanted = "quick" if quick else "full"
    if result["mode"] != wanted:
        raise InputError(f"{path}: is a result of {result['mode']} mode, expected {wanted}; remove it")
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Result -> its file; one with fewer runs never replaces one with more.

    Raises:
        InputError: If the stored one has runs that this one lacks.
    """
    stored = read_result(path, quick=result["mode"] == "quick")
    if stored and (lost := stored["provenance"]["runs"].keys() - result["provenance"]["runs"].keys()):
        raise InputError(
            f"{path}: the stored result has runs that are not under --runs, as {sorted(lost)[0]}; "
            "collect where they are, or remove the file"
        )
    atomic_write(path, json.dumps(result, indent=1) + "\n")


def command(experiment: Experiment, *, quick: bool = False) -> str:
    """Experiment -> the command that makes its result."""
    words = f"python reproduce/{catalogue.table_of(experiment)}.py DATA_ROOT --only {experiment.name}"
    return words + (" --quick" if quick else "")
