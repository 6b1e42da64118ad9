"""How a model holds up: every case under every perturbation and severity, predicted and held against its
label.

    contenders.py    a model, or masks of another program -> Contender, which is judged
    here             cases x jobs -> measure -> scores.jsonl, a line for each, gone on with after any stop
    folder.py        the folder of a report, and what may be gone on with
    report.py        scores -> report.json, summary.md
    page.py          the same -> index.html
    images.py        the perturbed images, for other programs

The score is the Dice of all foreground together, on the grid of the perturbed image.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mednca.cases import Case
from mednca.dataset import LabelledScan, load_scan
from mednca.errors import InputError
from mednca.files import whole_lines
from mednca.metrics import dice_score
from mednca.perturb import Perturbation, Perturbed, perturb
from mednca.volume import Volume

FORMAT, VERSION = "mednca-robustness", 1
#: The case as it is, among the names of perturbations.
CLEAN = "clean"
#: Cases of quick mode.
QUICK_CASES = 24


class Job(NamedTuple):
    """What is done to a case: name of a perturbation or "clean", severity, seed of what is drawn."""

    perturbation: str
    severity: float
    seed: int


class Key(NamedTuple):
    """What a score belongs to; `model` is the hash of the model that judged the case."""

    case: str
    perturbation: str
    severity: float
    seed: int
    model: str


class Score(NamedTuple):
    """Dice of all foreground, share of the label that is in view, and seconds that the prediction took."""

    dice: float
    kept: float
    seconds: float


Scores = dict[Key, Score]
#: Wraps what is to be done, to show how far it is, as `tqdm.tqdm`.
Progress = Callable[[Sequence[tuple[Case, Job]]], Iterable[tuple[Case, Job]]]


@dataclass(frozen=True)
class Contender:
    """Something that is judged.

    Attributes:
        name: As the user named it.
        hash: Of the model, or of all of them together.
        labels: Value in its masks -> name of the class.
        hashes: Case -> hash of the model that judges it; these are the cases that it can be judged on.
        mask: Id of a case, job and perturbed image -> mask (X, Y, Z).
        folds: Case -> fold, where there are several models.
        notes: What a reader of the report must know.
    """

    name: str
    hash: str
    labels: Mapping[int, str]
    hashes: Mapping[str, str]
    mask: Callable[[str, Job, Volume], NDArray[Any]]
    folds: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def key(self, case: str, job: Job) -> Key:
        """Case and job -> what its score is stored under."""
        return Key(case, *job, self.hashes[case])


def digest(parts: Iterable[str]) -> str:
    """Texts -> 16 digits that stand for all of them in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# ---- What is done ----


def draw_cases(cases: Sequence[Case], count: int, seed: int) -> tuple[Case, ...]:
    """Cases -> so many of them, drawn by the seed, whatever their order; all where there are no more."""
    ordered = sorted(cases, key=lambda case: case.id)
    chosen = set(np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))[:count].tolist())
    ids = {case.id for at, case in enumerate(ordered) if at in chosen}
    return tuple(case for case in cases if case.id in ids)


def list_jobs(perturbations: Sequence[Perturbation], *, quick: bool = False, seeds: int = 1) -> list[Job]:
    """Perturbations -> what is done to every case: nothing, then every severity with every seed.

    Raises:
        InputError: If there is not at least one seed.
    """
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    return [Job(CLEAN, 0.0, 0)] + [
        Job(one.name, severity, seed)
        for one in perturbations
        for severity in (one.quick if quick else one.severities)
        for seed in range(seeds)
    ]


def perturbed(
    todo: Sequence[tuple[Case, Job]],
    progress: Progress | None = None,
    read: Callable[[Case], LabelledScan] = load_scan,
) -> Iterator[tuple[str, Job, Perturbed]]:
    """Cases with jobs -> the case's id, the job and the perturbed case of each, in this order. A case is read
    once while its jobs follow one another.

    Raises:
        InputError: If a case cannot be read.
    """
    scan: LabelledScan | None = None
    for case, job in progress(todo) if progress else todo:
        if scan is None or scan.id != case.id:
            scan = read(case)
        yield case.id, job, apply(scan, job)


def apply(scan: LabelledScan, job: Job) -> Perturbed:
    """Case and job -> the perturbed case."""
    if job.perturbation == CLEAN:
        return Perturbed(scan.image, scan.label, 1.0)
    return perturb(job.perturbation, scan.image, scan.label, job.severity, case=scan.id, seed=job.seed)


# ---- The measurement ----


def measure(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    jobs: Sequence[Job],
    path: Path,
    *,
    labels: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Contenders, cases and jobs -> all scores in the file, in which those that were missing are now added.

    Each perturbed case is made once and seen by every contender. A score is on the disk before the next
    one is computed; a last line that a stop has torn is dropped.

    Args:
        contenders: What is judged.
        cases: Each held out for every contender, as `together` gives them.
        jobs: What is done to them.
        path: scores.jsonl.
        labels: Value -> name in the label files, where known.
        progress: Shows how far it is.

    Raises:
        InputError: If a case cannot be read, has a label that a model does not know, or the disk is full.
    """
    scores = read_scores(path)
    todo = [
        (case, job)
        for case in cases
        for job in jobs
        if any(one.key(case.id, job) not in scores for one in contenders)
    ]

    def read(case: Case) -> LabelledScan:
        scan = load_scan(case)
        for one in contenders:
            _check_values(scan, one, labels)
        return scan

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for case, job, (image, label, kept) in perturbed(todo, progress, read):
                for one in contenders:
                    key = one.key(case, job)
                    if key in scores:
                        continue
                    started = time.perf_counter()
                    mask = one.mask(case, job, image)
                    seconds = time.perf_counter() - started
                    dice = dice_score(mask != 0, label.data[0] != 0)
                    scores[key] = Score(round(dice, 6), round(kept, 6), round(seconds, 4))
                    file.write(json.dumps(key._asdict() | scores[key]._asdict()) + "\n")
                    file.flush()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return scores


def read_scores(path: Path) -> Scores:
    """scores.jsonl, there or not -> what stands in it. A last line without its end is removed from the file.

    Raises:
        InputError: If another line is no score.
    """
    scores: Scores = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            entry = json.loads(line)
            key = Key(*(entry[name] for name in Key._fields))
            scores[key._replace(severity=float(key.severity))] = Score(
                *(float(entry[name]) for name in Score._fields)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: is no score ({error!r}); remove the line") from error
    return scores


def _check_values(scan: LabelledScan, one: Contender, labels: Mapping[int, str] | None) -> None:
    """Raise for a label value that the model does not know, as `evaluate` does; a model of one label is held
    against all of them where the data name several, or where its label is called "foreground"."""
    named = one.labels if labels is None else labels
    if len(one.labels) == 1 and (len(named) > 1 or "foreground" in one.labels.values()):
        return
    if unknown := sorted(set(np.unique(scan.label.data).tolist()) - {0} - set(one.labels)):
        raise InputError(
            f"case {scan.id}: its label holds the values {unknown}, {one.name} knows {dict(one.labels)}; "
            "judge a model that was trained on these labels"
        )
