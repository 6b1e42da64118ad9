"""Training: one visible loop, reliable and resumable.

Every random draw of iteration i is a function of (seed, attempt, i), so a resumed run needs no generator's
state and gives the weights of an uninterrupted one, bit for bit on the CPU. An attempt ends when the sentinel
re-seeds a stuck start or rolls a diverged run back.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mednca.augment import TrainingCase, sample_batch
from mednca.backends import choose
from mednca.checkpoint import RunFolder, TrainState
from mednca.config import RunConfig
from mednca.learner import Learner, learning_rate, new_sentinel
from mednca.metrics import dice_score
from mednca.modelfile import ModelFile, save_model
from mednca.predict import Predictor, check_device
from mednca.sentinel import Sentinel
from mednca.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationCase:
    """A case that is looked at during training: image, and label with the classes of the model."""

    id: str
    image: Volume
    label: Volume


def fit(
    run: RunFolder,
    config: RunConfig,
    training: Sequence[TrainingCase],
    validation: Sequence[ValidationCase],
    card: dict[str, Any],
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
        device: "cpu" or "cuda"; on CUDA the rule runs in bfloat16.
        engine: Name of the backend, or "auto".
        progress: Whether to show a progress bar on stderr.

    Raises:
        InputError: If the device is absent, the checkpoint does not fit, or training keeps failing.
    """
    check_device(device)
    settings = config.train
    engine_run = choose(device, engine)
    canvas = canvas_size(training, config)
    state = run.load() or TrainState()
    state.sentinel = state.sentinel or asdict(new_sentinel(settings))
    learner = Learner(config, state, device)
    lines = run.rewind_log(state.logged)
    best = max((e["dice"] for e in lines if e["kind"] == "validation"), default=math.nan)
    dice = best
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
            batch = sample_batch(training, config, canvas, rng)
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
                logger.warning("%s: %s at iteration %d: %s", run.path, verdict, iteration, event["event"])
                bar.write(f"{run.path.name}: {verdict} at iteration {iteration}; {event['event']}")
                run.save(learner.snapshot())
                bar.n = state.iteration
                continue
            if verdict == "healthy":
                state.good, state.good_iteration = learner.tensors(), state.iteration
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
            every = settings.validate_every
            if (
                validation
                and every
                and (state.iteration % every == 0 or state.iteration == settings.iterations)
            ):
                looked_at = validation[: settings.validation_cases]
                dice = validate(learner.model_file(card), looked_at, device, engine)
                run.log({"kind": "validation", "iteration": state.iteration, "dice": round(dice, 6)}, state)
                board.add_scalar("validation/dice", dice, state.iteration)
            if state.iteration % settings.checkpoint_every == 0 or state.iteration == settings.iterations:
                save_model(run.model, learner.model_file(card))
                run.save(learner.snapshot())
            bar.update(1)
            bar.set_postfix(loss=f"{measured['loss']:.3f}", dice=f"{dice:.3f}", refresh=False)
    model = learner.model_file(card)
    save_model(run.model, model)
    return model


def canvas_size(training: Sequence[TrainingCase], config: RunConfig) -> tuple[int, int]:
    """Cases and configuration -> height and width of the training image: room for every slice, up to 256."""
    if config.train.canvas is not None:
        wanted = config.train.canvas
    else:
        wanted = tuple(min(256, max(case.image.shape[axis] for case in training)) for axis in (2, 3))
    multiple, smallest = config.model.multiple, config.model.smallest
    height, width = (max(smallest, -(-size // multiple) * multiple) for size in wanted)
    return height, width


def validate(model: ModelFile, cases: Sequence[ValidationCase], device: str, engine: str) -> float:
    """Model and cases -> mean hard Dice of the merged foreground on the native grid."""
    predictor = Predictor(model, device, engine=engine)
    scores = [dice_score(predictor.predict(c.image).mask.data[0] > 0, c.label.data[0] > 0) for c in cases]
    return float(np.mean(scores))


@contextlib.contextmanager
def tensorboard(run: RunFolder, iteration: int) -> Iterator[SummaryWriter]:
    """Run folder -> a writer of TensorBoard's logs that drops what a resumed run writes again."""
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=iteration or None)
    try:
        yield writer
    finally:
        writer.close()
