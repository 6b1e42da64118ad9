"""The command line that all scripts of a table share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mednca.errors import InputError
from reproduce import catalogue
from reproduce.catalogue import Experiment
from reproduce.gather import collect, joined
from reproduce.runs import QUICK, keep, run
from reproduce.stored import RESULTS, read_result, result_path, write_result


def command_line(
    description: str,
    experiments: tuple[Experiment, ...],
    draw: Callable[[Path, bool], Sequence[Path]],
    words: Sequence[str] | None = None,
) -> int:
    """What a script of a table does: train what is missing, gather, draw. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?", help="folder that holds the data sets, to train")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="where results go (default: the tree's)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="experiments, or beginnings")
    parser.add_argument("--fold", nargs="+", default=[], metavar="FOLD", help="train these folds only")
    parser.add_argument("--seed", nargs="+", default=[], type=int, metavar="N", help="train these seeds only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a few iterations, kept apart under RUNS/quick")
    parser.add_argument("--collect", action="store_true", help="train nothing, gather what there is")
    parser.add_argument("--draw", action="store_true", help="train and gather nothing, draw stored results")
    asked = parser.parse_args(words)
    if asked.data_root is None and not asked.collect and not asked.draw:
        parser.error("DATA_ROOT is needed to train; or give --collect or --draw")
    results = asked.results or (asked.runs / QUICK / "results" if asked.quick else RESULTS)
    failed = 0
    try:
        chosen = catalogue.find(asked.only, experiments)
        for experiment in () if asked.draw else chosen:
            try:
                if not asked.collect:
                    run(
                        *(experiment, asked.data_root, asked.runs),
                        quick=asked.quick,
                        device=asked.device,
                        only=asked.fold,
                        seeds=asked.seed,
                    )
                result = collect(experiment, asked.runs, quick=asked.quick)
                if result is not None:
                    path = result_path(experiment, results)
                    write_result(path, joined(read_result(path, quick=asked.quick), result))
                if experiment.kept and not asked.quick and results == RESULTS:
                    keep(experiment, asked.runs)
            except InputError as error:
                failed += 1
                print(f"{experiment.name}: not run: {error}", file=sys.stderr)
        for path in draw(results, asked.quick):
            print(path)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0
