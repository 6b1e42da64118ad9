"""How far the trust score can be trusted: out of fold, on what it does not know, and on other organs.

    python reproduce/trust.py DATA_ROOT --runs runs                       hours; --people 40 takes minutes
    python reproduce/trust.py DATA_ROOT --runs runs --model hippocampus -o hippocampus.safetensors
    python reproduce/trust.py --draw

Every fold's model, under RUNS or in the tree, predicts its own held-out cases, as they are and perturbed; the
score is fitted to a part of the persons and judged on the others. Then it is judged on perturbations of which
it has seen none of the kind, on made-up images, and on scans of other organs, cut or shrunk to the size of
the training scans: the hard case, as whole ones have another field of view. The table of predictions is kept
in RUNS/trust/<experiment>/, with which a stopped run goes on. With --model the score is stored in a copy of
that model, which must be of the same recipe."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from mednca.cases import Case, find_cases
from mednca.dataset import LabelledScan, load_scan
from mednca.errors import InputError
from mednca.files import atomic_write, read_json, replacing
from mednca.io import read_case
from mednca.machine import machine
from mednca.modelfile import load_model, save_model
from mednca.perturb import Perturbed
from mednca.perturb import find as find_perturbations
from mednca.predict import Predictor
from mednca.robustness import CLEAN, Job
from mednca.slices import resize_matrix
from mednca.trust import fit as trust_fit
from mednca.trust import report as trust_report
from mednca.trust.table import STRANGER, Part, Row, draw_jobs, held_out, judge, measure, read_table, write_row
from mednca.volume import Volume
from reproduce.catalogue import find
from reproduce.folds import load
from reproduce.runs import MODELS
from reproduce.stored import RESULTS
from reproduce.tables import markdown

#: Folder of a data set -> what it shows.
OTHERS = {
    "PROMISE12_Prostate": "prostate MRI",
    "HC18_FetalHead": "fetal ultrasound",
    "COVIDCXR_Lungs": "chest X-ray",
    "DSB2018_Nuclei": "microscopy",
}
#: The same organ by another scanner, and drawn by other people.
ELSEWHERE = "Colin27_Hippocampus"
BELOW = 0.8
#: Perturbations of each case of which the rank correlation is told by themselves; draws for its interval; how
#: often persons are dealt into parts anew.
FIRST, DRAWS, DEALS = 5, 1000, 4


def others(data_root: Path, shape: tuple[int, int, int], count: int) -> Iterator[tuple[str, Case, Volume]]:
    """Folder of the data sets, shape of the training scans (voxels of 1 mm) and how many scans of each set ->
    kind, case and image of each way to make them as small."""
    for folder, name in OTHERS.items():
        if not (data_root / folder).is_dir():
            continue
        for case in find_cases(data_root / folder).cases[:count]:
            image = read_case(case.images, case.channels).canonical()
            data = image.data.astype(np.float32).mean(axis=0)
            if data.shape[2] > 1:
                fine = resized(data, [round(n * s) for n, s in zip(image.shape, image.spacing, strict=True)])
                yield f"{name}, cut", case, in_mm(middle(fine, shape))
                yield f"{name}, shrunk", case, in_mm(resized(data, shape))
            else:
                flat = resized(data, (*shape[:2], 1))
                yield f"{name}, shrunk", case, in_mm(flat)
                yield f"{name}, shrunk and stacked", case, in_mm(flat.repeat(shape[2], axis=2))


def in_mm(data: np.ndarray) -> Volume:
    """Array (X, Y, Z) -> a scan of voxels of 1 mm."""
    return Volume(np.ascontiguousarray(data, np.float32)[None], np.eye(4))


def resized(data: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Array (X, Y, Z) -> the same of another shape, linearly."""
    for axis, size in enumerate(shape):
        weights = resize_matrix(data.shape[axis], size, "linear")
        data = np.moveaxis(np.tensordot(data, weights, axes=(axis, 1)), -1, axis)
    return data


def middle(data: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Array (X, Y, Z) -> the middle of it, no larger than the shape."""
    starts = [max(0, (size - wanted) // 2) for size, wanted in zip(data.shape, shape, strict=True)]
    return data[tuple(slice(a, a + n) for a, n in zip(starts, shape, strict=True))]


def measure_others(data_root: Path, part: Part, path: Path, count: int) -> list[Row]:
    """Folder of the data sets and the model of a fold -> rows of other organs, in which there is nothing to
    be found, and of the same organ from elsewhere; kept in the file."""
    known = {row.key: row for row in read_table(path)}
    file = load_model(part.model)
    predictor: Predictor | None = None
    grid = load_scan(part.cases[0]).image.canonical()
    shape = tuple(round(n * s) for n, s in zip(grid.shape, grid.spacing, strict=True))
    assert len(shape) == 3
    todo: list[tuple[Job, LabelledScan, Perturbed]] = []
    for kind, case, image in others(data_root, shape, count):
        label = image.with_data(np.zeros((1, *image.shape), np.uint8))
        todo.append(
            (Job(STRANGER + kind, 1.0, 0), LabelledScan(case, image, label), Perturbed(image, label, 0.0))
        )
    if (data_root / ELSEWHERE).is_dir():
        for case in find_cases(data_root / ELSEWHERE).cases:
            scan = load_scan(case)
            todo.append((Job("elsewhere", 1.0, 0), scan, Perturbed(scan.image, scan.label, 1.0)))
    rows = []
    for job, scan, image in tqdm(todo, desc="other organs", unit=" predictions"):
        key = (scan.id, job, file.hash)
        if key not in known:
            predictor = predictor or Predictor(file, probability=True, trust=False)
            known[key] = judge(predictor, scan, image, job, file.hash)
            write_row(path, known[key])
        rows.append(known[key])
    return rows


def cost(part: Part, score: trust_fit.Trust, count: int = 5) -> dict[str, float]:
    """Model of a fold, its score, and a number of cases -> seconds of a prediction with and without it on one
    thread, medians of CPU time, one after the other."""
    file = load_model(part.model)
    pair = [
        Predictor(replace(file, trust=score), threads=1, trust=trust, signals=signals)
        for trust, signals in ((True, True), (False, True), (False, False))
    ]
    scans = [load_scan(case).image for case in part.cases[:count]]
    seconds: list[list[float]] = [[], [], []]
    for image in [scans[0], *scans]:
        for predictor, found in zip(pair, seconds, strict=True):
            started = time.process_time()
            predictor.predict(image)
            found.append(time.process_time() - started)
    whole, signals, without = (float(np.median(found[1:])) for found in seconds)
    return {
        "with_score": round(whole, 4),
        "with_signals": round(signals, 4),
        "without": round(without, 4),
        "extra_percent": round(100 * (whole / without - 1), 2),
    }


def rank_correlation(
    rows: Sequence[Sequence[Any]], persons: Mapping[str, str], draws: int = DRAWS
) -> dict[str, Any]:
    """Labelled rows of a report, and the person of each case -> their rank correlation, its 95 % interval by
    drawing persons, and what it is of the first perturbations of each case alone."""
    drawn = {case: set(draw_jobs(case, find_perturbations(), FIRST)) for case in persons}
    first = [row for row in rows if Job(row[1], row[2], 0) in drawn[row[0]]]
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(persons[row[0]], []).append(place)
    pairs, parts = np.array([row[3:5] for row in rows]), [np.array(part) for part in places.values()]
    random = np.random.default_rng(0)
    found = [
        trust_fit.spearman(*pairs[np.concatenate([parts[one] for one in chosen])].T)
        for chosen in random.integers(len(parts), size=(draws, len(parts)))
    ]
    return {
        "of": len(rows),
        "spearman": round(trust_fit.spearman(*pairs.T), 4),
        "interval": [round(float(end), 4) for end in np.quantile(found, (0.025, 0.975))],
        "of_first": len(first),
        "spearman_of_first": round(trust_fit.spearman(*np.array([row[3:5] for row in first]).T), 4),
    }


def of_three(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """Cases and a number -> so many of every three of them."""
    return tuple(case for number, case in enumerate(cases) if number % 3 < count)


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Options -> the result: measure what is missing, fit, judge."""
    experiment = find([asked.experiment])[0]
    folds = load(experiment.split)
    data = folds.cases(asked.data_root)
    source = asked.runs / experiment.name / f"seed_{experiment.seeds[0]}"
    if not source.is_dir() and (MODELS / experiment.name).is_dir():
        source = MODELS / experiment.name
    parts = held_out(source, data.cases, people=asked.people, each=asked.each)
    parts = [replace(part, cases=of_three(part.cases, asked.of_three)) for part in parts if part.cases]
    folder = asked.runs / "trust" / experiment.name
    every = measure(
        parts,
        lambda case: draw_jobs(case.id, find_perturbations(), asked.perturbations),
        asked.table or folder / "table.jsonl",
        progress=lambda todo: tqdm(todo, unit=" predictions"),
    )
    rows = [row for row in every if row.counts]
    options: dict[str, Any] = {"ensemble": load_model(parts[0].model).config.predict.ensemble}
    score = trust_fit.fit(rows, **options)
    result = trust_report.report(
        rows, below=BELOW, families=True, progress=lambda todo: tqdm(todo, unit=" fits"), **options
    )
    bare = trust_fit.out_of_fold(rows, slopes=False, **options)
    result["without_slopes"] = trust_fit.figures(bare, below=BELOW)
    labelled = [row for row in result["rows"] if not row[1].startswith(STRANGER)]
    anew = [trust_fit.out_of_fold(rows, seed=n + 1, spread=False, **options) for n in range(DEALS)]
    result["rank_correlation"] = rank_correlation(labelled, {row.case: row.group for row in rows}) | {
        "dealt_anew": [trust_fit.figures(judged)["spearman"] for judged in anew]
    }
    naive = trust_fit.fit([row for row in rows if not row.is_stranger], **options)
    foreign = measure_others(asked.data_root, parts[0], folder / "others.jsonl", asked.others)
    result["others"] = {}
    for kind in dict.fromkeys(row.perturbation for row in foreign):
        those = [row for row in foreign if row.perturbation == kind]
        judged, unwarned = (trust_fit.judge(one, those) for one in (score, naive))
        result["others"][kind.removeprefix(STRANGER)] = {
            "cases": len(those),
            "dice": round(float(np.mean([row.dice for row in those])), 4),
            "expected": round(float(np.mean([one.expected.dice for one in judged])), 4),
            "largest": round(max(one.expected.dice for one in judged), 4),
            "flagged": round(float(np.mean([one.expected.dice < BELOW for one in judged])), 4),
            "flagged_without_strangers": round(
                float(np.mean([one.expected.dice < BELOW for one in unwarned])), 4
            ),
        }
    result["cost"] = cost(parts[0], score)
    left = len(every) - len(rows)
    fewer = f" --of-three {asked.of_three}" if asked.of_three < 3 else ""
    result["provenance"] |= {
        "command": f"python reproduce/trust.py DATA_ROOT --runs runs --perturbations {asked.perturbations}"
        + "".join(f" --{name} {n}" for name in ("people", "each") if (n := getattr(asked, name)))
        + fewer,
        "data": folds.split.data,
        "experiment": experiment.name,
        "out_of_view": left,
        "machine": machine(),
    }
    if asked.model:
        model = load_model(asked.model)
        card = model.card | {"trust": trust_report.short(result)}
        save_model(asked.out, replace(model, trust=score, card=card))
    return result


def page(result: dict[str, Any]) -> str:
    """Result -> its tables as Markdown."""

    def line(name: str, part: dict[str, Any]) -> list[str]:
        keys = ("predictions", "below", "spearman", "area", "flagged", "false_alarms", "flagged_at")
        keys += ("coverage", "width_median", "mean_error")
        cells = [part.get(key) for key in keys]
        return [name] + ["" if c is None else str(c) if isinstance(c, int) else f"{c:.3f}" for c in cells]

    head = ("", "predictions", "Dice < 0.8", "rank correlation", "ROC area", "flagged", "false alarms")
    head += ("flagged at 15 % alarms", "coverage", "median width", "mean error")
    told, score, bare = result["provenance"], result["score"], result["without_slopes"]
    rank = result["rank_correlation"]
    alone = [line(f"{name} alone", part) for name, part in result["alone"].items()]
    parts = [line(name, part) for name, part in result["parts"].items()]
    unknown = [line(name, part) for name, part in result["unknown"].items()]
    strange = [
        f"{name}: {100 * part['strangers_flagged']:.0f} % of {part['strangers']}"
        for name, part in (("known", score), ("unknown", result["unknown"]["strangers"]))
    ]
    others = [
        [kind, str(part["cases"])]
        + [
            f"{part[key]:.2f}"
            for key in ("dice", "expected", "largest", "flagged", "flagged_without_strangers")
        ]
        for kind, part in result["others"].items()
    ]
    cost = result["cost"]
    return "\n\n".join(
        [
            "# The trust score",
            f"Made by `{told['command']}`: {told['cases']} cases of {told['persons']} persons of "
            f"{told['data']} (`{told['experiment']}`), out of fold; the score is judged on persons it has "
            f"not seen. Flagged: expected Dice below {result['below']:g}, of the masks whose Dice is; false "
            f"alarms: the same of the others. {told['out_of_view']} predictions in which the organ has left "
            "the image are left out.",
            markdown(head, [line("the score", score), line("without slopes", bare), *alone]),
            f"Rank correlation of the {rank['of']} predictions of scans: {rank['spearman']:.3f}, 95 % "
            f"interval {rank['interval'][0]:.3f} to {rank['interval'][1]:.3f} by drawing persons; of the "
            f"{rank['of_first']} as they are and with the first {FIRST} perturbations of each: "
            f"{rank['spearman_of_first']:.3f}. With persons dealt into other parts: "
            f"{', '.join(f'{value:.3f}' for value in rank['dealt_anew'])}.",
            "By what was done to the scans:",
            markdown(head, parts),
            "By a score that has seen nothing of the kind:",
            markdown(head, unknown),
            "Images without an organ (noise, clouds, a ramp, a constant) that were flagged: "
            f"{'; '.join(strange)}.",
            "Other organs, cut or shrunk to the size of the training scans (Dice 0: there is nothing to "
            "find), and the same organ from elsewhere. The last column is of a score that was fitted without "
            "any image that shows no organ:",
            markdown(
                ("", "scans", "Dice", "expected", "largest", "flagged", "flagged, without such images"),
                others,
            ),
            f"Cost: a median prediction takes {cost['with_score']:.3f} s of one core with the score, "
            f"{cost['with_signals']:.3f} s without it, {cost['without']:.3f} s without signals too "
            f"({cost['extra_percent']:+.1f} %); no run of the model is added.",
        ]
    )


def draw(results: Path) -> list[Path]:
    """Folder of results -> trust.md and trust.png in it, from trust.json."""
    from matplotlib.figure import Figure

    result = read_json(results / "trust.json")
    atomic_write(results / "trust.md", page(result) + "\n")
    rows = [row for row in result["rows"] if not row[1].startswith(STRANGER)]
    names = [CLEAN, *trust_fit.FAMILIES]
    figure = Figure((6.2, 5.6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        those = [row for row in rows if trust_fit.family(row[1]) == name]
        axes.plot(
            [row[4] for row in those],
            [row[3] for row in those],
            ".",
            color=f"C{number}",
            markersize=4,
            label=name,
        )
    axes.plot([0, 1], [0, 1], "-", color="0.6", linewidth=1)
    for along in (axes.axvline, axes.axhline):
        along(BELOW, color="0.6", linestyle=":", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="expected Dice", ylabel="true Dice")
    axes.legend(fontsize=8)
    with replacing(results / "trust.png") as path:
        figure.savefig(path, dpi=110, format="png")
    return [results / "trust.md", results / "trust.png"]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--experiment", default="hippocampus_robust", metavar="NAME")
    parser.add_argument("--people", type=int, metavar="N", help="so many persons, drawn")
    parser.add_argument("--each", type=int, metavar="N", help="so many scans of each person")
    parser.add_argument("--of-three", type=int, default=3, metavar="N", help="so many of every three cases")
    parser.add_argument("--perturbations", type=int, default=8, metavar="N", help="for each case")
    parser.add_argument("--others", type=int, default=5, metavar="N", help="scans of each other data set")
    parser.add_argument("--table", type=Path, help="table of predictions, elsewhere")
    parser.add_argument("--model", help="model to store the score in")
    parser.add_argument("-o", "--out", type=Path, help="where to write it")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    asked = parser.parse_args(words)
    if asked.data_root is None and not asked.draw:
        parser.error("DATA_ROOT is needed to measure; or give --draw")
    if bool(asked.model) != bool(asked.out):
        parser.error("--model and --out go together")
    try:
        if not asked.draw:
            atomic_write(asked.results / "trust.json", json.dumps(run(asked), indent=1) + "\n")
        for path in draw(asked.results):
            print(path)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
