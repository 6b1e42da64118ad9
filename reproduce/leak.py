"""What a split by volume hides: the same recipe, folds by person and by volume, on MSD Task04.

    python reproduce/leak.py          writes reproduce/results/leak.json and the table of its page

Takes the stored results of table1.py. A volume *leaks* in the split by volume where the other hippocampus of
its person is in the training set of its fold. The difference is taken per case, over the seeds that both
protocols have; its interval draws persons."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.files import atomic_write
from reproduce.catalogue import find
from reproduce.folds import Folds, load
from reproduce.gather import mean_report
from reproduce.paired import interval, paired, restricted
from reproduce.stored import RESULTS, read_result, result_path
from reproduce.tables import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "splits-by-person.md"
BEGIN, END = "<!-- by reproduce/leak.py: begin -->", "<!-- end -->"
#: By person, by volume.
PAIRS = (("hippocampus_lean", "hippocampus_lean_by_volume"),)
HEAD = ("model", "volumes", "by person", "by volume", "by volume - by person, per case")


def leaking(folds: Folds) -> list[str]:
    """Folds by volume -> the held-out volumes of which the training set has the person's other one."""
    fold = {case: name for name, ids in folds.held_out.items() for case in ids}
    where: dict[str, set[str]] = {}
    for case, person in folds.persons.items():
        where.setdefault(person, set()).add(fold[case])
    return [case for case, person in folds.persons.items() if where[person] - {fold[case]}]


def measure(results: Path = RESULTS) -> dict[str, Any]:
    """Folder of results -> row -> the means and differences, or "not run: reason"."""
    leaks = set(leaking(load("hippocampus_by_volume")))
    rows: dict[str, Any] = {}
    for names in PAIRS:
        experiments = [find([name])[0] for name in names]
        stored = [read_result(result_path(experiment, results)) for experiment in experiments]
        row = experiments[0].row
        if lost := [name for name, result in zip(names, stored, strict=True) if result is None]:
            rows[row] = f"not run: no result of {' and '.join(lost)}"
            continue
        seeds = set.intersection(*(set(result["seeds"]) for result in stored if result))
        reports = [mean_report(result["cases"], seeds) for result in stored if result]
        both = reports[0].cases.keys() & reports[1].cases.keys()
        rows[row] = {"seeds": sorted(seeds)}
        for name, chosen in (
            ("all", both),
            ("the other side in training", both & leaks),
            ("no other side in training", both - leaks),
        ):
            person, volume = (restricted(report, sorted(chosen)) for report in reports)
            rows[row][name] = {
                "by_person": _mean(person),
                "by_volume": _mean(volume),
                "difference": paired(volume, person, "dice"),
            }
    return rows


def table(rows: dict[str, Any]) -> str:
    """What was measured -> the table of the page."""
    lines = []
    for model, parts in rows.items():
        if isinstance(parts, str):
            lines.append([model, "-", parts, parts, "-"])
            continue
        lines += [
            [model, name, f"{row['by_person']:.4f}", f"{row['by_volume']:.4f}", interval(row["difference"])]
            for name, row in parts.items()
            if name != "seeds"
        ]
    return markdown(HEAD, lines)


def put_in(page: str, content: str) -> str:
    """Text of a page and a table -> the page with the table between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END, 1)[1]}"


def _mean(report: Any) -> float:
    values = [scores["merged"]["dice"] for scores in report.cases.values()]
    return round(sum(values) / len(values), 5)


def main() -> int:
    """Compare, and write file and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    rows = measure(asked.results)
    told = {"command": "python reproduce/leak.py", "metric": "hard Dice, native grid", "resamples": 10_000}
    content = {
        "provenance": told,
        "leaking_volumes": len(leaking(load("hippocampus_by_volume"))),
        "rows": rows,
    }
    atomic_write(asked.results / "leak.json", json.dumps(content, indent=1) + "\n")
    atomic_write(asked.page, put_in(asked.page.read_text(encoding="utf-8"), table(rows)))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
