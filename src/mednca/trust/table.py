"""Held-out cases, as they are and perturbed -> a table of what a model said of each and how right it was, to
which a trust score is fitted.

    held_out (each case, and the model that has not seen it) -> draw_jobs -> measure -> table.jsonl

The table has a line for each prediction and is gone on with after any stop. Besides the perturbations of
`mednca.perturb` there are strangers: images on the grid of a case that show no organ at all, whose masks are
worth nothing. They are made up; no other data are needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca.cases import Case
from mednca.dataset import LabelledScan, load_scan
from mednca.errors import InputError
from mednca.files import read_json, whole_lines
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.perturb import Perturbation, Perturbed, stream
from mednca.predict import Prediction, Predictor
from mednca.robustness import CLEAN, Job, apply
from mednca.robustness.contenders import fold_runs
from mednca.synthetic import blurred
from mednca.trust import traits
from mednca.trust.traits import Traits

#: Of a line; lines of another one are measured again.
VERSION = 2
#: Share of the label that must be in view.
KEPT = 0.05
#: What the names of strangers begin with.
STRANGER = "stranger:"
STRANGERS = ("noise", "clouds", "ramp", "constant")


@dataclass(frozen=True)
class Row:
    """One prediction, and how right it was.

    Attributes:
        case: Id.
        group: The person.
        perturbation: Its name, "clean", or "stranger:" and its kind.
        severity: Of the perturbation.
        seed: Of what is drawn.
        model: Hash of the model that has not seen the case.
        dice: Of all foreground, on the grid of the perturbed image; 0 of a stranger.
        kept: Share of the label that is in view.
        traits: What `mednca.trust.traits` tells.
        variance: Mean variance of the samples in the mask, to compare with; None where there are none.
        seconds: Of the prediction, and of its traits.
    """

    case: str
    group: str
    perturbation: str
    severity: float
    seed: int
    model: str
    dice: float
    kept: float
    traits: Traits
    variance: float | None = None
    seconds: tuple[float, float] = field(default=(0.0, 0.0))

    @property
    def key(self) -> tuple[str, Job, str]:
        """What no two lines share."""
        return self.case, Job(self.perturbation, self.severity, self.seed), self.model

    @property
    def counts(self) -> bool:
        """Whether a Dice means something: not where the organ has left the image."""
        return self.is_stranger or self.kept >= KEPT

    @property
    def is_stranger(self) -> bool:
        """Whether the image shows no organ."""
        return self.perturbation.startswith(STRANGER)

    @property
    def empty(self) -> bool:
        """Whether the mask is."""
        return self.traits["volume"] is None


@dataclass(frozen=True)
class Part:
    """A model file or run folder, and the cases that it has not seen."""

    model: Path
    cases: tuple[Case, ...]


def held_out(
    source: Path,
    cases: Sequence[Case],
    *,
    people: int | None = None,
    each: int | None = None,
    seed: int = 0,
) -> list[Part]:
    """Folder of fold runs, or one run folder with held-out cases, and the cases of the data set -> each model
    with the cases that it has not seen; of so many persons only, drawn by the seed, and so many of each,
    where numbers are given.

    Raises:
        InputError: If nothing is known to be held out, or a case is twice.
    """
    runs = fold_runs(source) or ({"": source} if (source / "model.safetensors").is_file() else {})
    if not runs or not all((path / "split.json").is_file() for path in runs.values()):
        raise InputError(
            f"{source}: expected the folder of a cross-validation ('mednca train ... --folds 5'), or a run "
            "folder with held-out cases; name it with --folds"
        )
    by_id = {case.id: case for case in cases if case.label is not None}
    persons = sorted({case.group or case.id for case in by_id.values()})
    if people is not None:
        persons = np.random.default_rng(seed).permutation(persons)[:people].tolist()
    parts: list[Part] = []
    seen: dict[str, str] = {}
    for name, path in runs.items():
        wanted = [case for case in read_json(path / "split.json")["validation"] if case in by_id]
        for case in wanted:
            if seen.setdefault(case, name) != name:
                raise InputError(f"{source}: case {case} is held out in {seen[case]} and {name}; keep one")
        taken: dict[str, list[Case]] = {}
        for case in wanted:
            taken.setdefault(by_id[case].group or case, []).append(by_id[case])
        chosen = [case for person, found in taken.items() if person in set(persons) for case in found[:each]]
        parts.append(Part(path, tuple(chosen)))
    if not any(part.cases for part in parts):
        raise InputError(f"{source}: no case of the data is held out there; check DATA and --folds")
    return parts


def draw_jobs(
    case: str, perturbations: Sequence[Perturbation], count: int, *, strangers: int = 1, seed: int = 0
) -> list[Job]:
    """Id of a case -> nothing, so many perturbations at some severity, and strangers.

    All perturbations come before one comes again with another severity. A larger number begins with those of
    a smaller one.
    """
    random = stream(case, "trust", seed)
    jobs = [Job(CLEAN, 0.0, 0)]
    left = {one.name: random.permutation(one.severities).tolist() for one in perturbations}
    while len(jobs) <= count and left:
        for name in random.permutation(sorted(left)).tolist():
            jobs.append(Job(name, float(left[name].pop()), seed))
            if not left[name]:
                del left[name]
    kinds = stream(case, "strangers", seed).permutation(STRANGERS).tolist()
    return jobs[: count + 1] + [Job(STRANGER + kind, 1.0, seed) for kind in kinds[:strangers]]


def perturbed(scan: LabelledScan, job: Job) -> Perturbed:
    """Case and job -> the perturbed case; of a stranger with an empty label."""
    if not job.perturbation.startswith(STRANGER):
        return apply(scan, job)
    random = stream(scan.id, job.perturbation, job.seed)
    image = scan.image.with_data(
        np.stack(
            [_stranger(job.perturbation.removeprefix(STRANGER), data, random) for data in scan.image.data]
        )
    )
    return Perturbed(image, scan.label.with_data(np.zeros_like(scan.label.data)), 0.0)


def _stranger(kind: str, data: NDArray[Any], random: np.random.Generator) -> NDArray[np.float32]:
    """Kind of a stranger and a channel (X, Y, Z) -> another of its shape, mean and spread."""
    mean, spread = float(data.mean()), float(data.std())
    found = np.zeros(data.shape)
    if kind == "noise":
        found = random.standard_normal(data.shape)
    elif kind == "clouds":
        found = blurred(random.standard_normal(data.shape), float(np.exp(random.uniform(0, 2))))
    elif kind == "ramp":
        for axis, slope in enumerate(random.standard_normal(3).tolist()):
            along = [1, 1, 1]
            along[axis] = -1
            found = found + slope * np.linspace(-1, 1, data.shape[axis]).reshape(along)
    found = found - found.mean()
    scaled: NDArray[np.float32] = (mean + spread * found / (found.std() or 1)).astype(np.float32)
    return scaled


def measure(
    parts: Sequence[Part],
    jobs: Callable[[Case], Sequence[Job]],
    path: Path,
    *,
    make: Callable[[Path], Predictor] | None = None,
    progress: Callable[[Sequence[tuple[Part, Case, Job]]], Iterable[tuple[Part, Case, Job]]] | None = None,
) -> list[Row]:
    """Models with cases that they have not seen, and what is done to each case -> the rows, in that order.

    Those that stand in the file are not measured again; the others are added, each on the disk before the
    next one is computed.

    Args:
        parts: As `held_out` gives them.
        jobs: Case -> what is done to it.
        path: table.jsonl.
        make: Path of a model -> its predictor, with probabilities and signals.
        progress: Wraps what is to be done, to show how far it is, as `tqdm.tqdm`.

    Raises:
        InputError: If a case or a model cannot be read, or the disk is full.
    """
    make = make or (lambda model: Predictor(load_model(model), probability=True))
    known = {row.key: row for row in read_table(path)}
    hashes = {part.model: load_model(part.model).hash for part in parts}
    every = [(part, case, job) for part in parts for case in part.cases for job in jobs(case)]
    todo = [(p, case, job) for p, case, job in every if (case.id, job, hashes[p.model]) not in known]
    scan: LabelledScan | None = None
    predictor: tuple[Path, Predictor] | None = None
    for part, case, job in progress(todo) if progress else todo:
        if scan is None or scan.id != case.id:
            scan = load_scan(case)
        if predictor is None or predictor[0] != part.model:
            predictor = part.model, make(part.model)
        row = judge(predictor[1], scan, perturbed(scan, job), job, hashes[part.model])
        known[row.key] = row
        write_row(path, row)
    return [known[case.id, job, hashes[part.model]] for part, case, job in every]


def judge(predictor: Predictor, scan: LabelledScan, case: Perturbed, job: Job, model: str) -> Row:
    """Predictor, case and what became of it -> the row."""
    prediction = predictor.predict(case.image)
    started = time.perf_counter()
    assert prediction.look is not None
    found = prediction.look.traits()
    seconds = (prediction.report["seconds"], round(time.perf_counter() - started, 4))
    mask, label = prediction.mask.data[0] != 0, case.label.data[0] != 0
    strange = job.perturbation.startswith(STRANGER)
    dice = 0.0 if strange else round(dice_score(mask, label), 6)
    group = scan.case.group or scan.id
    variance = _variance(prediction)
    return Row(scan.id, group, *job, model, dice, round(case.kept, 6), found, variance, seconds)


def _variance(prediction: Prediction) -> float | None:
    """Prediction -> mean variance of the samples in its mask; in that of the look that it comes from, where
    nothing is left of it on the scan's own grid."""
    if prediction.spread is None or prediction.look is None:
        return None
    spread, mask = prediction.spread.data, prediction.mask.data[0] != 0
    if not mask.any():
        spread, mask = prediction.look.spread, prediction.look.mask != 0
    return round(float((spread[0][mask].astype(np.float64) ** 2).mean()), 8) if mask.any() else None


def write_row(path: Path, row: Row) -> None:
    """Row -> a line more of table.jsonl.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"version": VERSION} | asdict(row)) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_table(path: Path) -> list[Row]:
    """table.jsonl, there or not -> its rows. A last line without its end is removed from the file; lines of
    another version are left out.

    Raises:
        InputError: If another line is no row.
    """
    return list(_rows(path, whole_lines(path)))


def _rows(path: Path, lines: Sequence[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        try:
            entry: Mapping[str, Any] = json.loads(line)
            if entry["version"] != VERSION:
                continue
            values = {name: entry[name] for name in Row.__dataclass_fields__}
            values["seconds"] = tuple(values["seconds"])
            for name in values["traits"]:
                traits.find(name)
            yield Row(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: is no row ({error!r}); remove the line") from error
