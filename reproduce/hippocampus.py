"""The shipped hippocampus model and its honest figure: 5 folds by person, then a training on all cases.

    python reproduce/hippocampus.py DATA_ROOT --runs runs

trains what is not there yet (about 13 minutes of one core per training; a stopped one goes on), and writes

    reproduce/results/hippocampus_oof.json   every case's scores by the model that has not seen its person
    reproduce/results/hippocampus_curves.png the five curves
    src/mednca/models/hippocampus.safetensors   the model trained on all cases, with its card
    src/mednca/models/hippocampus.md            the card as a page

The folds are those of the experiment hippocampus_best of Table 1, and may be trained side by side, one
process each:

    python reproduce/table1.py DATA_ROOT --runs runs --only hippocampus_best --fold fold_0
    mednca train DATA_ROOT/Task04_Hippocampus -o runs/hippocampus_all --group pairs --validation 0
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from mednca import __version__
from mednca.cases import CaseSet, find_cases
from mednca.checkpoint import RunFolder
from mednca.evaluate import evaluate
from mednca.files import read_json, replacing
from mednca.modelfile import load_model
from mednca.predict import Predictor, with_ensemble
from mednca.report import MERGED, Report, merge_reports
from reproduce.catalogue import find
from reproduce.runs import run
from reproduce.shipped import TOLD, run_folder, ship, train_on_all

RESULTS = Path(__file__).parent / "results"
EXPERIMENT, DATA = "hippocampus_best", "Task04_Hippocampus"


def main() -> None:
    """Train what is missing, then write results and model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (experiment,) = find([EXPERIMENT])
    run(experiment, arguments.data_root, arguments.runs)
    cases = find_cases(arguments.data_root / DATA, group="pairs", require_labels=True)
    train_on_all("hippocampus", arguments.data_root, arguments.runs)
    folds = arguments.runs / EXPERIMENT / "seed_0"
    report = merge_reports(
        {
            path.name: Report.from_json((path / "report.json").read_text())
            for path in sorted(folds.glob("fold_*"))
        }
    )
    single = judge(cases, folds, ensemble=1)
    told = provenance(folds, "python reproduce/hippocampus.py DATA_ROOT")
    told["ensemble"] = load_model(run_folder("hippocampus", arguments.runs)).config.predict.ensemble
    told["single_run"] = {name: single.summary["merged"][name] for name in TOLD}
    report = replace(report, provenance=report.provenance | told)
    RESULTS.mkdir(exist_ok=True)
    report.write(RESULTS / "hippocampus_oof.json", force=True)
    draw(folds)
    ship("hippocampus", arguments.runs, report.summary[MERGED], len(report.cases))
    print(report.table())
    print(json.dumps(told["minutes"]))


def judge(cases: CaseSet, folds: Path, *, ensemble: int) -> Report:
    """Data set, folder of the folds and a number of fire-mask runs to average -> the out-of-fold report."""
    by_id = {case.id: case for case in cases.cases}
    reports = {}
    for path in sorted(folds.glob("fold_*")):
        predictor = Predictor(with_ensemble(load_model(path), ensemble), probability=True)
        held_out = [by_id[name] for name in RunFolder.open(path).split()["validation"]]
        progress = partial(tqdm, desc=f"judging {path.name}", unit="scan")
        reports[path.name] = evaluate(predictor, held_out, labels=cases.labels, progress=progress)
    return merge_reports(reports)


def provenance(folds: Path, command: str) -> dict[str, Any]:
    """Folder of the folds and the command -> how, where and how long."""
    minutes = {
        path.name: round(read_json(path / "provenance.json")["minutes"], 1)
        for path in sorted(folds.glob("fold_*"))
    }
    events = {
        path.name: [entry for entry in entries(path) if entry["kind"] == "event"]
        for path in sorted(folds.glob("fold_*"))
    }
    return {
        "command": command,
        "versions": {"mednca": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": f"{platform.processor() or platform.machine()}, one thread per training, shared machine",
        "minutes": minutes,
        "events": events,
    }


def entries(run: Path) -> list[dict[str, Any]]:
    """Run folder -> the lines of its log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def draw(folds: Path) -> None:
    """Folder of the folds -> a picture of loss and validation Dice of all folds."""
    figure = Figure((7.5, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for fold in sorted(folds.glob("fold_*")):
        log = entries(fold)
        training = [(e["iteration"], e["loss"]) for e in log if e["kind"] == "train"]
        width = 20
        smooth = [
            (training[i][0], sum(loss for _, loss in training[i - width : i]) / width)
            for i in range(width, len(training))
        ]
        top.semilogy(*zip(*smooth, strict=True), label=fold.name, linewidth=1)
        looked = [(e["iteration"], e["dice"]) for e in log if e["kind"] == "validation"]
        bottom.plot(*zip(*looked, strict=True), marker=".", label=fold.name, linewidth=1)
    top.set_ylabel("training loss (smoothed)")
    bottom.set_ylabel("hard Dice on 6 held-out cases")
    bottom.set_xlabel("iteration")
    top.legend(ncols=5, fontsize=8)
    bottom.grid(alpha=0.3)
    top.grid(alpha=0.3)
    with replacing(RESULTS / "hippocampus_curves.png") as path:
        figure.savefig(path, dpi=100, format="png")


if __name__ == "__main__":
    main()
