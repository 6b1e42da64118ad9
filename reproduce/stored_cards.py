"""The report cards in the tree: which there are, where each is, what it may replace, how two are compared.

A card is the JSON that `cards.py` measures: "report" as `mednca robustness` has it, of one model, and
"cases", case -> {"group": person, "fold", "dice": {"noise 0.2": Dice, ...}}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from reproduce.catalogue import CARDS, PROSTATE_CARD, find

FORMAT, VERSION = "mednca-card", 1
#: Card of the shipped model, on the cases of the first card, all of which it was trained on: what it loses
#: under perturbations is told too well, not too badly.
SHIPPED, BEFORE = "hippocampus", "shipped_hippocampus"
NAMES = (*CARDS, BEFORE, PROSTATE_CARD)


def row_of(name: str) -> str:
    """Name of a card -> what it is of, in a few words."""
    if name == BEFORE:
        return "shipped model, has seen these cases"
    return f"prostate, {find([name])[0].row}" if name == PROSTATE_CARD else find([name])[0].row


def read_card(name: str, results: Path, *, quick: bool = False) -> dict[str, Any] | None:
    """Name of an experiment and folder of results -> its stored card; None where there is none.

    Raises:
        InputError: If it is none of this version, or of the other mode: quick and full are never mixed.
    """
    file = results / "cards" / f"{name}.json"
    if not file.is_file():
        return None
    result: dict[str, Any] = read_json(file)
    if (result.get("format"), result.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{file}: expected {FORMAT} version {VERSION}; measure it again")
    if (result["mode"] == "quick") != quick:
        raise InputError(f"{file}: is a result of {result['mode']} mode; remove it")
    return result


def write_card(result: dict[str, Any], results: Path) -> list[Path]:
    """Card -> its JSON and its page; one of fewer cases never replaces one of more.

    Raises:
        InputError: If the stored one has cases that this one lacks.
    """
    from mednca.robustness.report import summary

    name = result["experiment"]
    before = read_card(name, results, quick=result["mode"] == "quick")
    if before and (lost := before["cases"].keys() - result["cases"].keys()):
        raise InputError(
            f"{results / 'cards' / name}.json: the stored card has {len(lost)} cases more; measure them too, "
            "or remove it"
        )
    paths = [results / "cards" / f"{name}.{ending}" for ending in ("json", "md")]
    cases = ",\n".join(f"  {json.dumps(case)}: {json.dumps(row)}" for case, row in result["cases"].items())
    head = json.dumps({key: value for key, value in result.items() if key != "cases"}, indent=1)
    atomic_write(paths[0], f'{head[:-2]},\n "cases": {{\n{cases}\n }}\n}}\n')
    atomic_write(paths[1], summary(result["report"]))
    return paths


def difference(here: dict[str, Any], there: dict[str, Any], at: str) -> dict[str, Any]:
    """Two cards, and what is done to the cases ("noise 0.2") -> mean paired difference of Dice, here - there,
    on the cases of both, with its 95 % interval over persons."""
    from mednca.robustness.report import paired

    common = [case for case in here["cases"] if case in there["cases"]]
    first = {case: here["cases"][case]["dice"][at] for case in common}
    second = {case: there["cases"][case]["dice"][at] for case in common}
    return paired(first, second, {case: str(here["cases"][case]["group"]) for case in common})
