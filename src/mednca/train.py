"""Training: one visible loop, reliable and resumable.

Every random draw of iteration i is a function of (seed, attempt, i), so a resumed run needs no generator's
state and gives the weights of an uninterrupted one, bit for bit on the CPU. An attempt ends when the sentinel
re-seeds a stuck start or rolls a diverged run back.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mednca.augment import TrainingCase, sample_batch
from mednca.backends import choose, why_no_half
from mednca.calibrate import measure_range
from mednca.cases import CaseSet, split_folds
from mednca.checkpoint import RunFolder, TrainState
from mednca.config import RunConfig, to_dict
from mednca.dataset import (
    LabelledScan,
    fingerprint,
    load_scans,
    measured,
    scan_ranges,
    training_cases,
    with_fitting_field,
)
from mednca.errors import InputError
from mednca.evaluate import evaluate
from mednca.figures import curves
from mednca.files import atomic_write
from mednca.fingerprint import Fingerprint
from mednca.learner import Learner, learning_rate, new_sentinel, why_no_autocast
from mednca.metrics import dice_score
from mednca.modelfile import ModelFile, save_model, shipped_model, shipped_models
from mednca.perturb import require_torchio
from mednca.plan import Plan, to_json
from mednca.predict import Predictor, check_device, choose_engine
from mednca.report import Report, merge_reports
from mednca.sentinel import Sentinel
from mednca.transfer import check_unseen, why_not

#: After a roll-back, the learning rate is back where it was after ten healthy windows: a cliff is an accident
#: of some batches, and half the rate to the end costs accuracy. From the second one on it stays halved.
RECOVERY = 2 ** (1 / 10)
logger = logging.getLogger(__name__)


def train(
    cases: CaseSet,
    out: Path,
    configure: Callable[[Fingerprint], RunConfig],
    *,
    explain: Callable[[Fingerprint], Plan] | None = None,
    begin: ModelFile | None = None,
    folds: int = 0,
    fold: int | None = None,
    validation: float = 0.2,
    device: str = "cpu",
    engine: str = "auto",
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Report | None:
    """Labelled cases -> one or more run folders with trained models, evaluated on cases that they never saw.

    Args:
        cases: The data set; persons (groups) are kept together.
        out: Run folder to make, or, for a cross-validation, the folder of its runs `fold_0`, `fold_1`, ...
        configure: Gives the configuration for the data's fingerprint, as a recipe does.
        explain: Gives the plan behind the configuration, which is stored with its reasons in `plan.json`.
        begin: The model that the configuration begins with, `train.init`; None looks among those that are
            shipped.
        folds: Number of folds of a cross-validation; 0 makes one run.
        fold: The only fold to train, from 0; None trains all, one after the other.
        validation: Without folds: share of the cases that is kept out and reported on; 0 trains on all.
        device: "cpu" or "cuda".
        engine: Name of the backend, or "auto".
        resume: Go on where a stopped training was; finished folds are left alone.
        force: Replace existing runs.
        progress: Whether to show progress on stderr.

    Returns:
        The report on the cases kept out; for a cross-validation, once all folds are there, on all cases,
        out of fold (also in `out/report.json`). None where nothing was kept out or folds are missing.

    Raises:
        InputError: If data, run folder or device cannot be used, a scan has many negative intensities where
            bias fields are told to be changed, or a resumed run was started with another configuration.
    """
    check_device(device)
    if folds < 0 or folds == 1:
        raise InputError(f"folds must be 0 (one run) or at least 2, got {folds}")
    if fold is not None and not folds:
        raise InputError(f"fold {fold} needs the number of folds; give --folds too")
    if fold is not None and not 0 <= fold < folds:
        raise InputError(f"fold must be from 0 to {folds - 1} for {folds} folds, got {fold}")
    if not 0 <= validation <= 0.5:
        raise InputError(f"validation must be a share from 0 to 0.5, got {validation}")
    if not resume and not force and folds == 0 and out.exists():
        raise InputError(f"{out}: exists already; go on with --resume, start anew with --force")
    if folds and (out / "config.json").exists():
        raise InputError(f"{out}: is a single run; choose another folder for a cross-validation")
    if not progress:
        scans = load_scans(cases.cases)
    else:
        scans = load_scans(cases.cases, lambda c: tqdm(c, desc="reading", unit="scan", disable=len(c) < 20))
    data = fingerprint(cases, scans)
    config = with_fitting_field(configure(data), scans)
    engine = engine_of(config, device, engine)
    if config.augment.artefacts:
        require_torchio()
    if folds:
        parts = {out / f"fold_{i}": ids for i, ids in enumerate(split_folds(cases, folds, config.train.seed))}
    else:
        parts = {out: held_out_cases(cases, validation, config.train.seed)}
    sources = {case.id: case.source for case in cases.cases if case.source}
    splits = {
        path: {
            "data": cases.name,
            "grouping": cases.grouping,
            "folds": folds,
            "seed": config.train.seed,
            "training": [scan.id for scan in scans if scan.id not in held_out],
            "validation": held_out,
            **({"sources": sources} if sources else {}),
        }
        for path, held_out in parts.items()
    }
    chosen = list(splits) if fold is None else [out / f"fold_{fold}"]

    @cache
    def config_of(path: Path) -> RunConfig:
        return measured(config, [scan for scan in scans if scan.id not in parts[path]])

    # All folders are opened before the first is trained: one that is in the way is told now, not hours later.
    runs = [
        open_run(path, config_of(path), splits[path], begin, resume=resume, force=force) for path in chosen
    ]
    if explain:
        for run in runs:
            atomic_write(run.path / "plan.json", to_json(explain(data)), force=True)
    if folds and force:
        (out / "report.json").unlink(missing_ok=True)
    with one_thread():
        reports = [finish(run, cases, scans, device=device, engine=engine, progress=progress) for run in runs]
    if not folds:
        return reports[0]
    finished = {path.name: RunFolder(path).report for path in splits}
    if not all(path.is_file() for path in finished.values()):
        return None
    try:
        for path, split in splits.items():
            check_same(RunFolder.open(path), config_of(path), split)
    except InputError as error:
        logger.warning("the folds are not merged into one report: %s", error)
        return None
    report = merge_reports({name: Report.from_json(path.read_text()) for name, path in finished.items()})
    report.write(out / "report.json", force=True)
    return report


def check_engine(device: str, engine: str) -> None:
    """Raise InputError for a device or an engine of training that cannot be used here."""
    check_device(device)
    try:
        choose(device, engine)
    except ValueError as error:
        raise InputError(f"engine {engine!r} cannot be used: {error}") from error


def engine_of(config: RunConfig, device: str, engine: str) -> str:
    """Configuration, device and name of an engine of training -> the name; only automata have a choice.

    Raises:
        InputError: If the engine does not run the baseline.
    """
    return engine if config.is_automaton else choose_engine(device, engine, config.baseline)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run the block with one thread of PyTorch, then as before.

    The native engine has one thread, and the other tensors are small: where other programs use the cores too,
    threads that wait for each other took seven times as long. Sums are then also made in one order, whatever
    the number of cores. Two trainings side by side use two cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def held_out_cases(cases: CaseSet, share: float, seed: int) -> list[str]:
    """Cases and a share of them -> ids of about as many, sorted, whole groups; none for 0, else at least one
    group."""
    if not share:
        return []
    groups = max(2, len({case.group for case in cases.cases}))
    most = min(groups, 20)  # parts that a larger share is counted in; more of them would be uneven
    if share < 1 / most:
        part = Fraction(1, min(groups, round(1 / share)))
    else:
        part = Fraction(share).limit_denominator(most)
    folds = split_folds(cases, part.denominator, seed)
    return sorted(name for fold in folds[: part.numerator] for name in fold)


def open_run(
    path: Path,
    config: RunConfig,
    split: dict[str, Any],
    begin: ModelFile | None = None,
    *,
    resume: bool,
    force: bool,
) -> RunFolder:
    """Path, configuration, split and the model to begin with -> a new run folder, or, to resume, the existing
    one if it is the same.

    Raises:
        InputError: If it exists and neither `resume` nor `force` is set, or is a run of something else; or
            the model to begin with is not here, does not fit, or has seen cases that are held out.
    """
    if not resume or not path.exists():
        if config.train.init:
            begin = start_of(config, begin)
            check_unseen(begin, split["validation"])
        return RunFolder.create(path, config, split, begin if config.train.init else None, force=force)
    run = RunFolder.open(path)
    check_same(run, config, split)
    run.tidy()
    return run


def start_of(config: RunConfig, begin: ModelFile | None = None) -> ModelFile:
    """Configuration, and maybe the model that it begins with -> that model, else looked up among the shipped
    ones.

    Raises:
        InputError: If it is not here, or does not fit.
    """
    if begin is None:
        shipped = (shipped_model(name) for name in shipped_models())
        begin = next((model for model in shipped if model.hash == config.train.init), None)
    if begin is None or begin.hash != config.train.init:
        got = f"got {begin.hash}" if begin else "no shipped model has it"
        raise InputError(
            f"the model to begin with must have the hash {config.train.init}, {got}; give it by --init"
        )
    if reason := why_not(begin.config, config):
        raise InputError(f"the model to begin with, {begin.card.get('name') or begin.hash}: {reason}")
    return begin


def check_same(run: RunFolder, config: RunConfig, split: dict[str, Any]) -> None:
    """Raise InputError for a run that was started with another configuration or on another split."""
    stored, wanted = flat(to_dict(run.config())), flat(to_dict(config))
    for name in stored | wanted:
        if (asked := wanted.get(name)) != (value := stored.get(name)):
            raise InputError(
                f"{run.path}: was started with {name} = {value}, now asked for {asked}; give the same "
                "options to resume, or --force to start anew"
            )
    if run.split() != split:
        raise InputError(
            f"{run.path}: was started on other cases or another split; give the same data and --group to "
            "resume, or --force to start anew"
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary -> one level, with dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def finish(
    run: RunFolder,
    cases: CaseSet,
    scans: Sequence[LabelledScan],
    *,
    device: str,
    engine: str,
    progress: bool,
) -> Report | None:
    """Run folder and scans -> the run trained to its end and its held-out cases judged."""
    if run.report.is_file():
        return Report.from_json(run.report.read_text(), name=str(run.report))
    config, split = run.config(), run.split()
    by_id = {scan.id: scan for scan in scans}
    training = [by_id[name] for name in split["training"]]
    card = {
        "name": run.path.name,
        "data": cases.name,
        "licence": cases.licence,
        "attribution": cases.reference,
        "training_cases": split["training"],
        "fingerprint": scan_ranges(training),
    }
    if config.train.init:
        begin = run.begin()
        card["began_with"] = {"hash": begin.hash} | {
            name: begin.card[name]
            for name in ("name", "data", "licence", "attribution")
            if begin.card.get(name)
        }
    prepared = [case for scan in training for case in training_cases(scan, config)]
    copied = with_artefacts(training, config, progress) if config.augment.artefacts else []
    held_out = [by_id[name] for name in split["validation"]]
    model = fit(
        *(run, config, prepared, held_out, card, copied), device=device, engine=engine, progress=progress
    )
    curves(run.path / "curve.png", run.metrics)
    if not held_out:
        return None
    predictor = Predictor(model, device, engine=engine, probability=True)
    bar = (lambda c: tqdm(c, desc="judging", unit="scan")) if progress else None
    report = evaluate(predictor, [scan.case for scan in held_out], labels=cases.labels or None, progress=bar)
    scores = {"dice": report.summary["merged"]["dice"], "cases": split["validation"]}
    save_model(run.model, replace(model, card=model.card | {"scores": scores}))
    report.write(run.report, force=True)  # last: it marks the run as complete
    return report


def fit(
    run: RunFolder,
    config: RunConfig,
    training: Sequence[TrainingCase],
    validation: Sequence[LabelledScan],
    card: dict[str, Any],
    copied: Sequence[TrainingCase] = (),
    *,
    device: str = "cpu",
    engine: str = "auto",
    progress: bool = True,
) -> ModelFile:
    """Prepared cases -> a trained model, written to the run folder; goes on from its checkpoint if there is
    one.

    Args:
        run: The run folder.
        config: Its configuration.
        training: Cases to learn from.
        validation: Cases to look at on the way.
        card: What the model file says besides weights and configuration.
        copied: Copies of the cases with artefacts, to learn from too.
        device: "cpu" or "cuda"; on CUDA the rule runs in bfloat16.
        engine: Name of the backend, or "auto".
        progress: Whether to show a progress bar on stderr.

    Raises:
        InputError: If the device is absent, the checkpoint does not fit, or training keeps failing.
    """
    check_device(device)
    settings = config.train
    engine = engine_of(config, device, engine)
    half = settings.precision == "bfloat16"
    engine_run = choose(device, engine, half=half and config.is_automaton)
    canvas = canvas_size(training, config)
    state = run.load() or TrainState()
    state.sentinel = state.sentinel or asdict(new_sentinel(settings))
    learner = Learner(config, state, device, run.begin() if config.train.init else None)
    lines = run.rewind_log(state.logged)
    unfit = why_no_half(device, engine) if config.is_automaton else why_no_autocast(device)
    if half and (reason := unfit):
        told = {"event": "float32 instead of bfloat16", "reason": reason}
        if not any(told.items() <= line.items() for line in lines):
            run.log({"kind": "event", "iteration": state.iteration, "attempt": state.attempt, **told}, state)
        if not config.is_automaton:  # for automata `choose` has said so
            logger.warning("training computes in float32, not bfloat16: %s", reason)
    dice = next((e["dice"] for e in reversed(lines) if e["kind"] == "validation"), math.nan)
    bar = tqdm(
        total=settings.iterations,
        initial=state.iteration,
        disable=not progress,
        unit="it",
        desc=run.path.name,
        dynamic_ncols=True,
        mininterval=1.0,
    )
    with contextlib.closing(bar), tensorboard(run, state.iteration) as board:
        while state.iteration < settings.iterations:
            iteration = state.iteration
            rng = np.random.default_rng((settings.seed, state.attempt, iteration))
            batch = sample_batch(training, config, canvas, rng, copied)
            rate = learning_rate(settings, iteration) * state.rate_factor
            measured = learner.step(batch, iteration, rate, engine_run)
            watch = Sentinel(**state.sentinel)
            verdict = watch.observe(iteration, **measured) if settings.sentinel else "watching"
            state.sentinel = asdict(watch)
            state.iteration += 1
            if verdict in ("stuck", "diverged"):
                event = learner.recover(verdict)
                entry = {"kind": "event", "iteration": iteration, "attempt": state.attempt, **event}
                run.log(entry, state)
                bar.clear()
                logger.warning("%s: %s at iteration %d: %s", run.path, verdict, iteration, event["event"])
                run.save(learner.snapshot())
                bar.n = state.iteration
                continue
            if verdict == "healthy":
                learner.keep()
                most = 0.5 ** max(0, state.attempt - 1)
                state.rate_factor = max(state.rate_factor, min(most, state.rate_factor * RECOVERY))
            if iteration % 10 == 0 or state.iteration == settings.iterations:
                entry = {
                    "kind": "train",
                    "iteration": iteration,
                    "attempt": state.attempt,
                    "learning_rate": rate,
                }
                entry |= {name: round(value, 6) for name, value in measured.items()}
                run.log(entry, state)
                for name in ("loss", "dice", "gradient_norm"):
                    board.add_scalar(f"train/{name}", measured[name], iteration)
            every = settings.validate_every or settings.iterations
            looked_at = validation[: settings.validation_cases]
            if looked_at and (state.iteration % every == 0 or state.iteration == settings.iterations):
                dice = validate(learner.model_file(card), looked_at, device, engine)
                run.log({"kind": "validation", "iteration": state.iteration, "dice": round(dice, 6)}, state)
                board.add_scalar("validation/dice", dice, state.iteration)
            if state.iteration % settings.checkpoint_every == 0 or state.iteration == settings.iterations:
                save_model(run.model, learner.model_file(card))
                run.save(learner.snapshot())
            bar.update(1)
            bar.set_postfix(loss=f"{measured['loss']:.3f}", dice=f"{dice:.3f}", refresh=False)
    model = learner.model_file(card)
    if config.is_automaton:
        measured_on = [case.image for case in training]
        model = replace(model, range=measure_range(model, measured_on, seed=settings.seed))
    save_model(run.model, model)
    return model


def with_artefacts(scans: Sequence[LabelledScan], config: RunConfig, progress: bool) -> list[TrainingCase]:
    """Scans -> slices of their copies with artefacts, as the model sees them.

    Raises:
        InputError: If TorchIO is not installed.
    """
    from mednca.artefacts import copies

    count, seed, views = config.augment.copies, config.train.seed, config.preprocess.roi is None
    return [
        case
        for scan in tqdm(scans, desc="artefacts", unit="scan", disable=not progress or len(scans) < 20)
        for copy in copies(scan, count, seed, other_views=views)
        for case in training_cases(copy, config)
    ]


def canvas_size(training: Sequence[TrainingCase], config: RunConfig) -> tuple[int, int]:
    """Cases and configuration -> height and width of the training image: room for every slice, up to 256."""
    if config.train.canvas is not None:
        wanted = config.train.canvas
    else:
        wanted = tuple(min(256, max(case.image.shape[axis] for case in training)) for axis in (2, 3))
    multiple, smallest = config.multiple, config.smallest
    height, width = (max(smallest, -(-size // multiple) * multiple) for size in wanted)
    return height, width


def validate(model: ModelFile, scans: Sequence[LabelledScan], device: str, engine: str) -> float:
    """Model and scans -> mean hard Dice of the merged foreground on the native grid."""
    predictor = Predictor(model, device, engine=engine)
    scores = [dice_score(predictor.predict(s.image).mask.data[0] > 0, s.label.data[0] > 0) for s in scans]
    return float(np.mean(scores))


@contextlib.contextmanager
def tensorboard(run: RunFolder, iteration: int) -> Iterator[SummaryWriter]:
    """Run folder -> a writer of TensorBoard's logs that drops what a resumed run writes again."""
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=iteration or None)
    try:
        yield writer
    finally:
        writer.close()
