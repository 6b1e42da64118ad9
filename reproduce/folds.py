"""Which cases are held out in which fold: stored in the tree, so that every model is judged on the same ones.

    python reproduce/folds.py DATA_ROOT            write reproduce/folds/*.json (ids only)
    python reproduce/folds.py DATA_ROOT --check    compare them with what the data give now

DATA_ROOT holds the folders of the data sets. The folds by person are those of `mednca train --folds 5` with
the same `--group` and seed 0. "By volume" is the customary way, where the two volumes of one person may lie
on both sides; "authors" is the split that the authors' published checkpoint was most likely trained on."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mednca.cases import Case, CaseSet, find_cases, split_folds
from mednca.errors import InputError
from mednca.files import atomic_write, read_json

FOLDER = Path(__file__).parent / "folds"
FORMAT, VERSION = "mednca-folds", 1
FOLDS, SEED = 5, 0
#: Of Task04: the authors' model was trained on ids up to the first; 222 is of the person of 221.
AUTHORS_TRAIN_UP_TO, AUTHORS_TEST_FROM = 221, 223

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A way to hold cases out.

    Attributes:
        name: Name of its file, without ending.
        data: Folder of the data set.
        protocol: "by person", "by volume" or "authors".
        group: Rule for persons, as of `mednca train --group`.
    """

    name: str
    data: str
    protocol: str
    group: str | None


SPLITS = (
    Split("hippocampus_by_person", "Task04_Hippocampus", "by person", "pairs"),
    Split("hippocampus_by_volume", "Task04_Hippocampus", "by volume", "pairs"),
    Split("hippocampus_authors", "Task04_Hippocampus", "authors", "pairs"),
    Split("prostate", "PROMISE12_Prostate", "by person", None),
    Split("fetal_head", "HC18_FetalHead", "by person", None),
    Split("lungs", "COVIDCXR_Lungs", "by person", "csv:cases.csv:patient"),
    Split("nuclei", "DSB2018_Nuclei", "by person", None),
)


@dataclass(frozen=True)
class Folds:
    """A stored split.

    Attributes:
        split: What was asked for.
        held_out: Fold -> ids of the cases that its model does not see.
        left_out: Cases that take no part.
        persons: Case -> person.
    """

    split: Split
    held_out: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    persons: dict[str, str]

    def parts(self, name: str) -> dict[str, dict[str, Any]]:
        """Name of the data set -> fold -> what a run folder's split.json holds; the same as `mednca train`
        writes, where that draws the same split."""
        grouping = self.split.group if self.split.protocol == "by person" else None
        told = {"data": name, "grouping": grouping, "folds": FOLDS, "seed": SEED}
        if self.split.protocol == "authors":
            told |= {"grouping": "authors", "folds": 1}
        taking_part = [case for case in self.persons if case not in set(self.left_out)]
        return {
            fold: told
            | {
                "training": [case for case in taking_part if case not in set(ids)],
                "validation": list(ids),
            }
            for fold, ids in self.held_out.items()
        }

    def cases(self, root: Path) -> CaseSet:
        """Folder of the data sets -> the cases of this split.

        Raises:
            InputError: If one is missing. Others that are there are left out, with a warning in the log.
        """
        found = find_cases(root / self.split.data, group=self.split.group, require_labels=True)
        by_id = {case.id: case for case in found.cases}
        if missing := [case for case in self.persons if case not in by_id]:
            raise InputError(
                f"{found.root}: the stored split {self.split.name} has {len(self.persons)} cases, "
                f"{len(missing)} of them are not here, as {missing[0]}; get them, or store another split"
            )
        if extra := sorted(by_id.keys() - self.persons.keys()):
            _log.warning(
                "%s: %d cases are not in the stored split %s and are left out, as %s",
                *(found.root, len(extra), self.split.name, extra[0]),
            )
        return replace(found, cases=tuple(by_id[case] for case in self.persons))


def draw(split: Split, root: Path) -> Folds:
    """Split and folder of the data sets -> the folds that its rule gives."""
    cases = find_cases(root / split.data, group=split.group, require_labels=True).cases
    persons = {case.id: case.group for case in cases}
    if split.protocol == "authors":
        test = tuple(case for case in persons if _number(case) >= AUTHORS_TEST_FROM)
        between = range(AUTHORS_TRAIN_UP_TO + 1, AUTHORS_TEST_FROM)
        return Folds(split, {"test": test}, tuple(c for c in persons if _number(c) in between), persons)
    drawn_from: tuple[Case, ...] = cases
    if split.protocol == "by volume":
        drawn_from = tuple(replace(case, group=case.id) for case in cases)
    drawn = split_folds(drawn_from, FOLDS, SEED)
    return Folds(split, {f"fold_{i}": tuple(ids) for i, ids in enumerate(drawn)}, (), persons)


def load(name: str) -> Folds:
    """Name of a split -> its stored folds.

    Raises:
        InputError: If there are none, or the file is not one of this version.
    """
    split = {split.name: split for split in SPLITS}.get(name)
    path = FOLDER / f"{name}.json"
    if split is None or not path.is_file():
        raise InputError(
            f"{path}: there is no such split; expected one of {', '.join(s.name for s in SPLITS)}"
        )
    content = read_json(path)
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise InputError(
            f"{path}: expected {FORMAT} version {VERSION}; write it again with reproduce/folds.py"
        )
    held_out = {fold: tuple(ids) for fold, ids in content["held_out"].items()}
    return Folds(split, held_out, tuple(content["left_out"]), content["persons"])


def to_json(folds: Folds) -> str:
    """Folds -> the text of their file."""
    split = folds.split
    content = {
        "format": FORMAT,
        "version": VERSION,
        "command": "python reproduce/folds.py DATA_ROOT",
        "data": split.data,
        "protocol": split.protocol,
        "group": split.group,
        "seed": None if split.protocol == "authors" else SEED,
        "cases": len(folds.persons),
        "groups": len(set(folds.persons.values())),
        "held_out": folds.held_out,
        "left_out": folds.left_out,
        "persons": folds.persons,
    }
    return json.dumps(content, indent=1) + "\n"


def _number(case: str) -> int:
    """Id of a case of Task04 -> its number."""
    return int(re.findall(r"\d+", case)[-1])


def main() -> int:
    """Write or compare all splits of the data sets that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 for a difference")
    asked = parser.parse_args()
    differ = 0
    for split in SPLITS:
        if not (asked.data_root / split.data).is_dir():
            print(f"{split.name}: {split.data} is not here")
            continue
        text, path = to_json(draw(split, asked.data_root)), FOLDER / f"{split.name}.json"
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if not same and not asked.check:
            atomic_write(path, text)
        differ += not same
        print(f"{split.name}: {'as stored' if same else 'differs' if asked.check else 'written'}")
    return 1 if differ and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
