"""What can be reproduced: what is stored, what is trained in part, what the rest costs, and by which command.

python reproduce                       the list
python reproduce --runs runs           the same with the runs in another folder
python reproduce table1 --draw         what follows a script's name goes to the script
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce.catalogue import EVERYTHING, Experiment
from reproduce.runs import how, trainings
from reproduce.stored import RESULTS, command, read_result, result_path

HERE = Path(__file__).resolve().parent
#: Scripts that make a result of their own -> its file, and what it costs on one core.
SCRIPTS = {
    "hippocampus": ("hippocampus_oof.json", "6 trainings of about 16 min"),
    "official": ("official.json", "about 10 min"),
    "shipped": ("../../src/mednca/models/nuclei.safetensors", "about 10 min, after organs"),
    "int16": ("int16.json", "about 3 min, after hippocampus"),
    "gate": ("gate.json", "about 2 min, after hippocampus"),
    "fig4": ("fig4.json", "about 2 min"),
    "plans": ("plans.json", "seconds"),
    "paired": ("paired.json", "seconds, from stored results"),
    "leak": ("leak.json", "seconds, from stored results"),
    "steps": ("steps.json", "minutes, after table1"),
    "smoothing": ("smoothing.json", "minutes, after table1"),
    "cards": ("cards/hippocampus_robust.json", "an hour, after table1"),
    "anisotropy": ("anisotropy.json", "3 min"),
    "margins": ("margins.json", "10 minutes"),
    "ghosts": ("ghosts.json", "5 minutes"),
    "thick": ("thick.json", "3 minutes"),
    "unet_looks": ("unet_looks.json", "8 minutes, after table1"),
    "fig5": ("fig5.png", "seconds, from stored cards"),
    "fig6": ("fig6.png", "seconds, from stored cards"),
    "trust": ("trust.json", "three hours, after table1"),
}


def listing(runs: Path, results: Path = RESULTS) -> str:
    """Folder of runs -> a line for each script and experiment: stored, partly done, missing; cost;
    command."""
    lines = ["results of scripts"]
    for name, (file, told) in SCRIPTS.items():
        there = "stored" if (results / file).is_file() else "not run"
        lines.append(f"  {name:<34} {there:<32} {told:<28} python reproduce/{name}.py --help")
    lines.append("experiments")
    total, unknown = 0.0, 0
    for experiment in EVERYTHING:
        minutes = cost(experiment, runs, results)
        total, unknown = total + (minutes or 0), unknown + (minutes is None)
        told = "nothing" if minutes == 0 else "unknown" if minutes is None else f"{minutes:.0f} core-min"
        lines.append(
            f"  {experiment.name:<34} {state(experiment, runs, results):<32} {told:<28} {command(experiment)}"
        )
    lines.append(f"\nto be done: {total:.0f} core-minutes, and {unknown} experiments of unknown cost")
    lines.append("the tables: table1, fig3, organs, reliability; --draw draws each from what is stored")
    return "\n".join(lines)


def state(experiment: Experiment, runs: Path, results: Path) -> str:
    """Experiment -> what is stored of it and how far its runs are, in a few words."""
    result = read_result(result_path(experiment, results))
    states = [training.state() for training in trainings(experiment, runs)]
    stored = len(result["provenance"]["runs"]) if result else 0
    finished = states.count("finished") + states.count("failed")
    if stored == len(states):
        return "stored"
    told = [f"{stored}/{len(states)} stored"] if stored else []
    told += [f"{finished}/{len(states)} trained"] if finished else []
    told += [text.replace("iteration ", "at ") for text in states if text.startswith("iteration")]
    return ", ".join(told) or experiment.why or "not trained yet"


def cost(experiment: Experiment, runs: Path, results: Path = RESULTS) -> float | None:
    """Experiment -> core-minutes of what is missing of it; None where nothing tells.

    A training costs the median of what stored or finished ones took, else what the catalogue says.
    """
    result = read_result(result_path(experiment, results))
    stored = set(result["provenance"]["runs"]) if result else set()
    left, per_run = 0.0, _minutes_per_run(experiment, runs, result)
    for training in trainings(experiment, runs):
        there = training.finished or training.failed is not None
        if there or f"seed_{training.seed}/{training.fold}" in stored:
            continue
        started = (training.path / "config.json").is_file()
        done, of = training.progress() if started else (0, 1)
        left += 1 - done / of
    if not left:
        return 0.0
    return None if per_run is None else left * per_run


def _minutes_per_run(experiment: Experiment, runs: Path, result: dict[str, Any] | None) -> float | None:
    measured = [row["minutes"] for row in result["provenance"]["runs"].values()] if result else []
    measured += [how(training)["minutes"] for training in trainings(experiment, runs) if training.finished]
    measured = [minutes for minutes in measured if minutes]
    return statistics.median(measured) if measured else experiment.minutes


def main() -> int:
    """List, or hand over to a script."""
    words = sys.argv[1:]
    if words and (HERE / f"{words[0]}.py").is_file() and words[0] != "__main__":
        script = HERE / f"{words[0]}.py"
        sys.argv = [str(script), *words[1:]]
        runpy.run_path(str(script), run_name="__main__")
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    print(listing(parser.parse_args().runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
