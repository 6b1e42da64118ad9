"""The log of recipe trials: short trainings that rank ideas, one file each, and a table of all of them.

    python reproduce/trials.py FOLDER        take the trials in FOLDER/*.json into reproduce/experiments/
    python reproduce/trials.py               write reproduce/experiments/README.md anew

A trial as it comes has "name", "options", "canvas", "curve" (Dice of the training batches), "cpu_minutes",
"parameters", "summary" and "cases". reproduce/experiments/hypotheses.json says of each what was to be
learnt::

    {"base": {"hypothesis": "...", "expected": "...", "against": null, "verdict": "..."}}

`against` names the trial that it is compared with: paired on the cases of both, interval over persons. The
table has the trials in the order of that file, then the others. Trials may be taken in again and again. The
figures rank ideas on one fold and one seed; they are no results."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednca.errors import InputError
from mednca.files import atomic_write, read_json
from mednca.report import MERGED, Report
from reproduce import folds
from reproduce.paired import paired
from reproduce.tables import markdown

FOLDER = Path(__file__).parent / "experiments"
FORMAT, VERSION = "mednca-trial", 1
DATA = "Task04_Hippocampus"
#: What a trial must have to be taken in.
NEEDED = ("name", "options", "curve", "cpu_minutes", "parameters", "cases")
TOLD = ("hypothesis", "expected", "against", "verdict")
#: What a trial changes where its options name no recipe. It was called `native` when the trials were made.
RECIPE = "own_grid"
#: Options of trials that are no settings of a configuration.
OPTIONS = {
    "axes": "one rule for slices along these axes; the probabilities are averaged",
    "sep": "a class for each label",
    "union": "weight of a Dice loss of all labels together",
    "steprange": "least and largest factor on all steps, drawn in each iteration",
    "stepfrom": "share of the training before which the steps are not varied",
    "muon": "momentum made orthogonal instead of Adam for matrices, with so many times the learning rate",
}


def take_in(raw: Any, where: str) -> dict[str, Any]:
    """A trial as it was written (and the name of its file) -> the form in which it is stored.

    Raises:
        InputError: If a part is missing, or it holds a path of the machine that it ran on.
    """
    if not isinstance(raw, dict) or (lost := [name for name in NEEDED if name not in raw]):
        raise InputError(f"{where}: a trial needs {', '.join(NEEDED)}; missing: {', '.join(lost)}")
    options = dict(raw["options"])
    data = Path(options.pop("data", DATA)).name
    if paths := [text for text in texts(options) if text.startswith(("/", "~"))]:
        raise InputError(f"{where}: options must not hold a path, got {paths[0]!r}; run it by a name instead")
    config = options.pop("config", {})
    split = "authors' split" if options.pop("split", "") == "authors" else "by person"
    fold = options.pop("fold", 0)
    seed = config.get("train", {}).get("seed", 0)
    cases = {
        name: {way: list(map(_short, found)) for way, found in row.items()}
        for name, row in raw["cases"].items()
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": raw["name"],
        "data": data,
        "split": split if split != "by person" else f"fold {fold} of 5, by person",
        "seed": seed,
        "recipe": options.pop("recipe", RECIPE),
        "config": config,
        "other": options,
        "canvas": raw.get("canvas"),
        "parameters": raw["parameters"],
        "cpu_minutes": raw["cpu_minutes"],
        "curve": raw["curve"],
        "summary": {
            way: [
                _short(sum(values) / len(values))
                for values in zip(*(row[way] for row in cases.values()), strict=True)
            ]
            for way in next(iter(cases.values()))
        },
        "cases": cases,
    }


def texts(value: Any) -> Iterator[str]:
    """Nested options -> every text in them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(key)
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Folder of stored trials -> name -> trial, sorted by name.

    Raises:
        InputError: If a file is none of this version.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "hypotheses.json":
            continue
        trial = read_json(path)
        if (trial.get("format"), trial.get("version")) != (FORMAT, VERSION):
            raise InputError(f"{path}: expected {FORMAT} version {VERSION}; take it in again")
        found[trial["name"]] = trial
    return found


def page(folder: Path) -> str:
    """Folder of stored trials -> its README.md.

    Raises:
        InputError: If hypotheses.json names a trial that is not there, or says something unknown of one.
    """
    trials, side = read(folder), folder / "hypotheses.json"
    told = read_json(side) if side.is_file() else {}
    for name, entry in told.items():
        if unknown := sorted(set(entry) - set(TOLD)):
            raise InputError(f"{side}: {name}: expected {', '.join(TOLD)}, got {unknown[0]!r}")
        if name not in trials or (entry.get("against") or name) not in trials:
            raise InputError(
                f"{side}: {name}, or what it is against, is no stored trial; known: {', '.join(trials)}"
            )
    head = (
        "trial",
        "hypothesis",
        "expected",
        "settings",
        "split, seed",
        "parameters",
        "Dice, mean",
        "median",
    )
    head += ("against, paired difference", "core-minutes", "verdict")
    rows = []
    for name in dict.fromkeys([*told, *trials]):
        trial, entry = trials[name], told.get(name, {})
        against = entry.get("against")
        rows.append(
            [
                f"[{name}]({name}.json)",
                entry.get("hypothesis") or "not stated",
                entry.get("expected") or "not stated",
                f"`{trial['recipe']}` {settings(trial)}".strip(),
                f"{trial['data']}, {trial['split']}, {trial['seed']}",
                f"{trial['parameters']:,}",
                "; ".join(
                    f"{way} " + ", ".join(f"{value:.4f}" for value in values)
                    for way, values in trial["summary"].items()
                ),
                f"{statistics.median(_merged(trial).values()):.4f}",
                difference(trial, trials[against]) if against else "-",
                f"{trial['cpu_minutes']:.0f}",
                entry.get("verdict") or "open",
            ]
        )
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return (
        "# Trials of recipes\n\nWritten by `python reproduce/trials.py` from the files here, which hold "
        "curve and cases. Short trainings, one fold, one seed: they rank ideas, they are no results. Dice: "
        "hard, native grid, of the held-out cases; the first number is the merged foreground, those that "
        "follow are the labels. `avg`: the prediction; `ax0` to `ax2`: slices along that axis alone. The "
        "median over the cases stands beside the mean, and that of the differences too: two cases of one "
        "person, hippocampus_221 and hippocampus_222 of fold 0, are so much worse than the others that they "
        "decide many a mean.\n\n"
        f"Settings are changes of the recipe that is named; `{RECIPE}` is `mednca.recipes.{RECIPE}`. Not "
        "settings of a configuration are "
        + "; ".join(f"`{name}`: {what}" for name, what in OPTIONS.items())
        + ".\n\n"
        + markdown(head, rows)
        + "\n"
    )


def settings(trial: dict[str, Any]) -> str:
    """Trial -> what it changed, as Markdown code, nothing for nothing."""
    changed = {f"{part}.{k}": v for part, values in trial["config"].items() for k, v in _items(values)}
    changed = {name.removesuffix("."): value for name, value in (changed | trial["other"]).items()}
    return ", ".join(f"`{name}={json.dumps(value)}`" for name, value in changed.items())


def difference(trial: dict[str, Any], other: dict[str, Any]) -> str:
    """Two trials -> their paired difference of the merged foreground, or why there is none."""
    try:
        row = paired(_report(trial), _report(other), "dice")
    except InputError:
        return f"{other['name']}: judged on other cases"
    low, high = row["ci95"]
    return f"{other['name']}: {row['mean']:+.4f} ({low:+.4f} to {high:+.4f}), median {row['median']:+.4f}"


def _report(trial: dict[str, Any]) -> Report:
    """Trial -> its Dice of the merged foreground, by the first way of prediction, with persons as groups."""
    scores = {name: {MERGED: {"dice": value}} for name, value in _merged(trial).items()}
    persons = {}
    for split in folds.SPLITS:
        if split.data == trial["data"]:
            persons |= folds.load(split.name).persons
    return Report(scores, {}, {}, {name: persons.get(name, name) for name in scores}, {})


def _merged(trial: dict[str, Any]) -> dict[str, float]:
    """Trial -> case -> Dice of the merged foreground, by the first way of prediction."""
    return {name: next(iter(row.values()))[0] for name, row in trial["cases"].items()}


def _items(values: Any) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, dict) else [("", values)]


def _short(value: float) -> float:
    return round(float(value), 5)


def main(words: Sequence[str] | None = None) -> int:
    """Take trials in, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of new trials")
    parser.add_argument("--log", type=Path, default=FOLDER, help="where they are stored")
    asked = parser.parse_args(words)
    try:
        for path in sorted(asked.folder.glob("*.json")) if asked.folder else ():
            raw = read_json(path)
            if not isinstance(raw, dict) or "cases" not in raw:  # settings, or a trial that has not ended
                print(f"{path.name}: no finished trial, left out", file=sys.stderr)
                continue
            trial = take_in(raw, path.name)
            atomic_write(asked.log / f"{trial['name']}.json", json.dumps(trial, indent=1) + "\n")
        print(atomic_write(asked.log / "README.md", page(asked.log)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
