"""What is judged: whatever fits the protocol of `evaluate.Predictor`, and masks of another program.

A model file, a run folder (its validation cases), a folder of fold runs (each case by the model that has not
seen it), an exported ONNX folder, or masks of the perturbed images (`images.write_images`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mednca.cases import Case
from mednca.errors import InputError
from mednca.evaluate import Predictor
from mednca.files import read_json
from mednca.modelfile import ModelFile, load_model
from mednca.predict import with_ensemble
from mednca.robustness import Contender, Job, digest
from mednca.robustness.images import file_name
from mednca.volume import Volume, same_affine

#: How a model file becomes what predicts: device, engine, threads.
Make = Callable[[ModelFile], Predictor]


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
    """Folder -> the finished fold runs in it, by name: not those with a checkpoint to go on from, and no
    report yet."""
    found = sorted(path.parent for path in folder.glob("fold_*/model.safetensors"))
    return {
        path.name: path
        for path in found
        if (path / "report.json").is_file() or not (path / "checkpoint.safetensors").is_file()
    }


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
        digest(hashes.values()),
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
    hashed = digest([hashlib.sha256(files[name].read_bytes()).hexdigest() for name in sorted(wanted)])

    def mask(case: str, job: Job, image: Volume) -> NDArray[Any]:
        from mednca.io import read_label

        path = files[file_name(case, job)]
        found = read_label(path, like=image)
        if found.shape != image.shape or not same_affine(found.affine, image.affine):
            raise InputError(f"{path}: must lie on the grid of its image, {image.shape}, got {found.shape}")
        values: NDArray[Any] = found.data[0]
        return values

    note = "masks of another program, read from a folder"
    hashes = dict.fromkeys([case.id for case in cases], hashed)
    return Contender(str(folder), hashed, {1: "foreground"}, hashes, mask, notes=(note,))


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
