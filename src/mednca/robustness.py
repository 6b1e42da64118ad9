"""How a model holds up: every case under every perturbation and severity, predicted and held against its
label.

    open_model -> Contender
    cases x jobs -> measure -> scores.jsonl, a line for each, gone on with after any stop
    scores -> robustness_report.card -> report.json, summary.md; robustness_page -> index.html

Judged is whatever fits the protocol of `evaluate.Predictor`: a model file, a run folder (its validation
cases), a folder of fold runs (each case by the model that has not seen it), an exported ONNX folder, or
masks that another program made of the perturbed images (`write_images`). The score is the Dice of all
foreground together, on the grid of the perturbed image.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mednca import perturb as perturbing
from mednca.cases import Case, CaseSet
from mednca.dataset import LabelledScan, load_scan
from mednca.errors import InputError
from mednca.evaluate import Predictor
from mednca.files import atomic_write, read_json, replacing
from mednca.metrics import dice_score
from mednca.modelfile import ModelFile, load_model
from mednca.perturb import Perturbation, Perturbed, perturb
from mednca.predict import with_ensemble
from mednca.volume import Volume, same_affine

FORMAT, VERSION = "mednca-robustness", 1
#: The case as it is, among the names of perturbations.
CLEAN = "clean"
#: Cases of quick mode.
QUICK_CASES = 40


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
#: How a model file becomes what predicts: device, engine, threads.
Make = Callable[[ModelFile], Predictor]


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


# ---- What is judged ----


def open_model(
    source: str | Path,
    cases: Sequence[Case],
    make: Make,
    *,
    all_cases: bool = False,
    ensemble: int | None = None,
    seed: int = 0,
) -> Contender:
    """Model and the cases of a data set -> the contender, on those cases that it was not trained on.

    Args:
        source: Model file, shipped model, run folder, folder of fold runs or exported ONNX folder.
        cases: Those to choose from.
        make: How a model becomes a predictor.
        all_cases: Take training cases too, with a note.
        ensemble: Runs with other fire masks to average, instead of the model's own number.
        seed: Of the fire masks of an ONNX folder, for which `make` is not asked.

    Raises:
        InputError: If it cannot be loaded, or no case is left.
    """
    path = Path(source)
    runs = fold_runs(path)
    if runs and not (path / "model.safetensors").is_file():
        if all_cases:
            raise InputError(f"{path}: --all-cases is for a single model; folds judge every case held out")
        return open_folds(str(source), runs, cases, make, ensemble=ensemble)
    if (path / "level_0.onnx").is_file():
        from mednca.backends.onnx import Exported

        exported = Exported(path, seed, ensemble)
        note = "it is not known which cases it was trained on"
        return _single(str(source), exported, exported.hash, [case.id for case in cases], (note,))
    model = with_ensemble(load_model(source), ensemble)
    trained = set(model.card.get("training_cases", []))
    judged = [case.id for case in cases]
    notes: tuple[str, ...] = ()
    if (path / "split.json").is_file():
        split = read_json(path / "split.json")
        trained |= set(split["training"])
        held_out = set(split["validation"]) & set(judged)
        judged = [case for case in judged if all_cases or not held_out or case in held_out]
    seen = [case for case in judged if case in trained]
    if seen and all_cases:
        notes = (f"trained on {len(seen)} of these {len(judged)} cases: this is no independent test",)
    elif seen:
        judged = [case for case in judged if case not in trained]
        notes = (f"{len(seen)} cases that it was trained on are left out",)
    if not judged:
        raise InputError(
            f"{source}: was trained on all {len(seen)} cases; give the folder of its fold runs, or judge it "
            "all the same with --all-cases"
        )
    return _single(str(source), make(model), model.hash, judged, notes)


def fold_runs(folder: Path) -> dict[str, Path]:
    """Folder -> the finished fold runs in it, by name."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("fold_*/model.safetensors"))}


def open_folds(
    name: str, runs: Mapping[str, Path], cases: Sequence[Case], make: Make, *, ensemble: int | None = None
) -> Contender:
    """Name, fold -> run folder, and cases -> the contender that has each case judged by the model that
    has not seen it.

    Raises:
        InputError: If a case is held out twice, or none is.
    """
    known = {case.id for case in cases}
    folds: dict[str, str] = {}
    for fold, path in runs.items():
        for case in read_json(path / "split.json")["validation"]:
            if folds.setdefault(case, fold) != fold:
                raise InputError(f"{name}: case {case} is held out in {folds[case]} and {fold}; keep one")
    folds = {case: fold for case, fold in folds.items() if case in known}
    if not folds:
        raise InputError(f"{name}: no case of the data is held out in {', '.join(runs)}; check the data")

    def model(fold: str) -> ModelFile:
        return with_ensemble(load_model(runs[fold]), ensemble)

    @lru_cache(maxsize=1)  # cases come fold by fold, and a network may be large
    def predictor(fold: str) -> Predictor:
        return make(model(fold))

    hashes, labels = {}, []
    for fold in sorted(runs):
        file = model(fold)
        hashes[fold] = file.hash
        labels.append(dict(zip(file.config.values, file.config.labels, strict=True)))
    if any(one != labels[0] for one in labels):
        raise InputError(f"{name}: the models of its folds have different labels; name one of them")
    without = len(known) - len(folds)
    note = (f"{without} cases of the data are held out in no fold and left out",) if without else ()
    return Contender(
        name,
        _digest(hashes.values()),
        labels[0],
        {case: hashes[fold] for case, fold in folds.items()},
        lambda case, job, image: predictor(folds[case]).predict(image).mask.data[0],
        folds,
        (f"each case by the one of {len(runs)} models that has not seen it", *note),
    )


def _single(
    name: str, predictor: Predictor, model: str, judged: Iterable[str], notes: tuple[str, ...]
) -> Contender:
    return Contender(
        name,
        model,
        predictor.labels,
        dict.fromkeys(judged, model),
        lambda case, job, image: predictor.predict(image).mask.data[0],
        notes=notes,
    )


def open_masks(folder: Path, cases: Sequence[Case], jobs: Sequence[Job]) -> Contender:
    """Folder of masks named as `write_images` names the images -> the contender. Every non-zero value
    counts as foreground.

    Raises:
        InputError: If a mask is missing.
    """
    from mednca.io import is_image, stem

    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of masks, there is none; check the path")
    files = {stem(path): path for path in sorted(folder.iterdir()) if is_image(path)}
    wanted = [file_name(case.id, job) for case in cases for job in jobs]
    if missing := [name for name in wanted if name not in files]:
        raise InputError(
            f"{folder}: has no mask of {len(missing)} of {len(wanted)} images, as {missing[0]}.nii.gz; add "
            "them, or judge with the options that the images were written with"
        )
    digest = _digest([hashlib.sha256(files[name].read_bytes()).hexdigest() for name in sorted(wanted)])

    def mask(case: str, job: Job, image: Volume) -> NDArray[Any]:
        from mednca.io import read_label

        path = files[file_name(case, job)]
        found = read_label(path, like=image)
        if found.shape != image.shape or not same_affine(found.affine, image.affine):
            raise InputError(f"{path}: must lie on the grid of its image, {image.shape}, got {found.shape}")
        values: NDArray[Any] = found.data[0]
        return values

    note = "masks of another program, read from a folder"
    hashes = dict.fromkeys([case.id for case in cases], digest)
    return Contender(str(folder), digest, {1: "foreground"}, hashes, mask, notes=(note,))


def together(contenders: Sequence[Contender], cases: Sequence[Case]) -> tuple[Case, ...]:
    """Contenders -> the cases that all of them can be judged on, in an order that keeps folds together.

    Raises:
        InputError: If there are none.
    """
    found = [case for case in cases if all(case.id in c.hashes for c in contenders)]
    if not found:
        names = " and ".join(c.name for c in contenders)
        raise InputError(f"{names}: no case is held out for both; judge models of the same folds")
    return tuple(sorted(found, key=lambda case: (*(c.folds.get(case.id, "") for c in contenders), case.id)))


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
    progress: Callable[[Sequence[tuple[Case, Job]]], Iterable[tuple[Case, Job]]] | None = None,
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
        progress: Wraps what is to be done, to show how far it is, as `tqdm.tqdm`.

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
    scan: LabelledScan | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for case, job in progress(todo) if progress else todo:
                if scan is None or scan.id != case.id:
                    scan = load_scan(case)
                    for one in contenders:
                        _check_values(scan, one, labels)
                image, label, kept = apply(scan, job)
                for one in contenders:
                    key = one.key(case.id, job)
                    if key in scores:
                        continue
                    started = time.perf_counter()
                    mask = one.mask(case.id, job, image)
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
    if not path.is_file():
        return {}
    try:
        whole, end, torn = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if torn:
        atomic_write(path, whole + end)
    scores: Scores = {}
    for number, line in enumerate(whole.splitlines(), 1):
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


# ---- The folder of a report ----


def open_report(folder: Path, setting: Mapping[str, Any], *, force: bool = False) -> Path:
    """Folder and what is measured (`describe`) -> its scores.jsonl, to be begun or gone on with.

    Raises:
        InputError: If the folder holds something else, or a report of another model or data set; with
        `force` a
            report is replaced.
    """
    file, scores = folder / "setting.json", folder / "scores.jsonl"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the report, this is a file; name another")
    if file.is_file():
        before = read_json(file)
        if not isinstance(before, dict) or before.get("format") != FORMAT:
            raise InputError(f"{file}: is no setting of a report; choose another folder")
        if force:
            shutil.rmtree(folder)
        else:
            _refuse_another(folder, before, setting)
            if before["baseline"] and not setting["baseline"]:
                setting = {**setting, "baseline": before["baseline"]}
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no report, so nothing is written there; choose another")
    atomic_write(file, json.dumps(setting, indent=1) + "\n")
    return scores


def describe(
    data: CaseSet, contenders: Sequence[Contender], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Data set, model and maybe its baseline, and options of prediction -> what a report must agree in to be
    gone on with."""
    model, *others = [{"name": one.name, "hash": one.hash} for one in contenders]
    return {
        "format": FORMAT,
        "version": VERSION,
        "perturbations": perturbing.VERSION,
        "data": {"name": data.name, "digest": _digest([case.id for case in data.cases])},
        "model": model,
        "baseline": others[0] if others else None,
        "options": dict(options or {}),
    }


def _refuse_another(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where a report of something else stands in the folder."""
    for what in ("version", "perturbations", "data", "model", "baseline", "options"):
        old: Any = before.get(what)
        new: Any = now[what]
        if what == "baseline" and not (old and new):
            continue  # one may come later, or be left out
        same = old.get("hash") == new["hash"] if what in ("model", "baseline") else old == new
        if not same:
            told = [one["name"] if what in ("data", "model", "baseline") else one for one in (old, new)]
            raise InputError(
                f"{folder}: holds a report with another {what} ({told[0]}; now {told[1]}); choose another "
                "folder, or start anew with --force"
            )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# ---- For other programs ----


def file_name(case: str, job: Job) -> str:
    """Case and job -> name of its files, without ending."""
    return f"{case}__{job.perturbation}__{job.severity:g}__{job.seed}"


def write_images(
    cases: Sequence[Case],
    jobs: Sequence[Job],
    folder: Path,
    *,
    folds: Mapping[str, str] | None = None,
    progress: Callable[[Sequence[tuple[Case, Job]]], Iterable[tuple[Case, Job]]] | None = None,
) -> Path:
    """Cases and jobs -> imagesTs/NAME_0000.nii.gz (one file for each channel, as nnU-Net reads them),
    labelsTs/NAME.nii.gz and index.json, which says what each NAME is and, with `folds`, in which fold it was
    held out. Files that are there stay as they are.

    Raises:
        InputError: If a case cannot be read, or the folder not be written.
    """
    index: dict[str, Any] = {}
    scan: LabelledScan | None = None
    todo = [(case, job) for case in cases for job in jobs]
    for case, job in progress(todo) if progress else todo:
        if scan is None or scan.id != case.id:
            scan = load_scan(case)
        image, label, kept = apply(scan, job)
        name = file_name(case.id, job)
        for channel, data in enumerate(image.data):
            _write_nifti(folder / "imagesTs" / f"{name}_{channel:04d}.nii.gz", data, image)
        _write_nifti(folder / "labelsTs" / f"{name}.nii.gz", label.data[0], label)
        index[name] = {"case": case.id, **job._asdict(), "kept": round(kept, 6)}
        if folds and case.id in folds:
            index[name]["fold"] = folds[case.id]
    content = {"format": "mednca-perturbed", "version": perturbing.VERSION, "files": index}
    return atomic_write(folder / "index.json", json.dumps(content, indent=1) + "\n")


def _write_nifti(path: Path, data: NDArray[Any], grid: Volume) -> None:
    import nibabel as nib

    if path.is_file():
        return
    make: Any = nib.Nifti1Image  # nibabel has types for a part of it only
    image = make(data, grid.affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as part:
        nib.save(image, part)
