"""What the planner chooses for each data set and budget, and what that costs beside the paper's model.

    python reproduce/plans.py DATA_ROOT            write results/plans.json
    python reproduce/plans.py DATA_ROOT --check    compare it with what the planner chooses now

DATA_ROOT holds the folders of the data sets by their names. The fingerprints (numbers, no scan) are stored
beside the plans, so that a plan can be made again from the file alone."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.cases import find_cases
from mednca.config import to_dict
from mednca.dataset import fingerprint, load_scans
from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.fingerprint import Fingerprint
from mednca.plan import BUDGETS, plan
from reproduce.folds import SPLITS
from reproduce.stored import RESULTS

FILE = "plans.json"


def rows(data: Fingerprint) -> dict[str, Any]:
    """Fingerprint -> budget -> configuration and cost."""
    made = {budget: plan(data, budget) for budget in BUDGETS}
    return {
        budget: {
            **asdict(planned.cost),
            "estimated_minutes": round(
                planned.cost.iteration_seconds * planned.config.train.iterations / 60, 1
            ),
            "config": to_dict(planned.config),
        }
        for budget, planned in made.items()
    }


def stored(data: dict[str, Any]) -> Fingerprint:
    """Fingerprint as JSON has it -> the fingerprint."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return Fingerprint(**values | {"labels": {int(k): name for k, name in data["labels"].items()}})


def measure(root: Path) -> dict[str, Any]:
    """Folder of the data sets -> for each one its fingerprint and its plans."""
    groups = {split.data: split.group for split in SPLITS}
    found = {}
    for name, group in sorted(groups.items()):
        cases = find_cases(root / name, group=group, require_labels=True)
        data = fingerprint(cases, load_scans(cases.cases))
        found[name] = {"fingerprint": asdict(data), "budgets": rows(data)}
    return found


def main() -> int:
    """Plan, and write or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    try:
        found = json.loads(json.dumps(measure(asked.root)))
        if asked.check:
            same = read_json(asked.results / FILE)["data"] == found
            print("as stored" if same else f"{asked.results / FILE}: the planner now chooses otherwise")
            return 0 if same else 1
    except InputError as error:
        print(f"plans.py: {error}", file=sys.stderr)
        return 2
    content = {"provenance": {"command": "python reproduce/plans.py DATA_ROOT"}, "data": found}
    atomic_write(asked.results / FILE, json.dumps(content, indent=1) + "\n", force=True)
    for name, entry in found.items():
        for budget, row in entry["budgets"].items():
            cost = f"{row['parameters']:>8,}  {row['ratio_64']:>6.1f}x  {row['ratio_16']:>5.1f}x"
            print(f"{name:24}{budget:8}{cost}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
