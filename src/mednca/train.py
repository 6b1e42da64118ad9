"""Training: one visible loop, reliable and resumable.

Every random draw of iteration i is a function of (seed, attempt, i), so a resumed run needs no generator's state and
gives the weights of an uninterrupted one, bit for bit on the CPU. An attempt ends when the sentinel re-seeds a stuck
start or rolls a diverged run back.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mednca.augment import Batch, TrainingCase, sample_batch
from mednca.backends import choose
from mednca.checkpoint import RunFolder, TrainState
from mednca.config import RunConfig, TrainConfig
from mednca.errors import InputError
from mednca.losses import cross_entropy, dice_loss
from mednca.metrics import dice_score
from mednca.modelfile import ModelFile, save_model
from mednca.nca import MedNCA, Run, downscale
from mednca.predict import Predictor, check_device
from mednca.sentinel import Sentinel
from mednca.volume import Volume

logger = logging.getLogger(__name__)

#: Re-seeds and roll-backs after which a training gives up.
ATTEMPTS = 6


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
    """Prepared cases -> a trained model, written to the run folder; goes on from its checkpoint if there is one.

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
                entry = {"kind": "train", "iteration": iteration, "attempt": state.attempt, "learning_rate": rate}
                entry |= {name: round(value, 6) for name, value in measured.items()}
                run.log(entry, state)
                for name in ("loss", "dice", "gradient_norm"):
                    board.add_scalar(f"train/{name}", measured[name], iteration)
            every = settings.validate_every
            if validation and every and (state.iteration % every == 0 or state.iteration == settings.iterations):
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


class Learner:
    """Model, running mean and optimiser of one training, and their way into and out of a checkpoint."""

    def __init__(self, config: RunConfig, state: TrainState, device: str) -> None:
        self.config, self.state, self.device = config, state, device
        self.start(config.train.seed)
        if state.live:
            self.restore(state.live)

    def start(self, seed: int) -> None:
        """Fresh weights, mean and optimiser from a seed; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = MedNCA(self.config.model).to(self.device)
            self.mean = MedNCA(self.config.model).to(self.device).requires_grad_(False)
        self.mean.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.Adam(self.model.parameters(), betas=self.config.train.betas)

    def step(self, batch: Batch, iteration: int, rate: float, run: Run) -> dict[str, float]:
        """One batch -> one step of the optimiser -> loss, soft Dice, share of foreground, gradient norm."""
        settings = self.config.train
        image, target = batch.image.to(self.device), batch.target.to(self.device)
        items = iteration * settings.batch_size + torch.arange(len(image), device=self.device)
        patches = batch.patches and [(origins.to(self.device), size) for origins, size in batch.patches]
        fire_seed = settings.seed * 1_000_003 + self.state.attempt
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device != "cpu"):
            outputs = self.model(image, seed=fire_seed, items=items, patches=patches, run=run)
        loss = torch.zeros((), device=self.device)
        dice = foreground = 0.0
        for level, (cells, window) in enumerate(outputs):
            scale = self.config.model.scales[level]
            finest = level == len(outputs) - 1
            if not finest and not settings.coarse_weight:
                continue
            goal = window.cut(downscale(target, scale))
            logits = self.model.logits(cells).float()
            overlap = dice_loss(logits, goal)
            level_loss = overlap + cross_entropy(logits, goal)
            loss = loss + (level_loss if finest else settings.coarse_weight * level_loss)
            if finest:
                dice, foreground = 1 - float(overlap.detach()), float(goal.sum(dim=1).mean())
        loss.backward()
        limit = settings.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        loss_value = float(loss.detach())
        if not settings.sentinel or (math.isfinite(norm) and math.isfinite(loss_value)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            keep = min(settings.ema, (1 + iteration) / (10 + iteration)) if settings.ema else 0.0
            with torch.no_grad():
                torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), 1 - keep)
        return {"loss": loss_value, "dice": dice, "foreground": foreground, "gradient_norm": norm}

    def recover(self, verdict: str) -> dict[str, Any]:
        """Verdict -> what was done: a new start from another seed, or back to the last healthy weights."""
        state, settings = self.state, self.config.train
        state.attempt += 1
        if state.attempt > ATTEMPTS:
            raise InputError(
                f"training failed {ATTEMPTS} times (last: {verdict}); lower --learning-rate, check the data with "
                "'mednca doctor'"
            )
        if verdict == "stuck" or not state.good:
            self.start(settings.seed + 7919 * state.attempt)
            state.iteration, state.rate_factor = 0, state.rate_factor * (1.0 if verdict == "stuck" else 0.5)
            state.good, state.good_iteration = {}, 0
            state.sentinel = asdict(new_sentinel(settings))
            return {"event": "re-seeded", "reason": verdict}
        self.restore(state.good)
        state.iteration, state.rate_factor = state.good_iteration, state.rate_factor / 2
        state.sentinel["sums"] = [0.0] * 4
        return {"event": f"rolled back to iteration {state.iteration}, learning rate halved", "reason": verdict}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, running means and moments by name, copied."""
        named = {f"weights.{k}": v for k, v in self.model.state_dict().items()}
        named |= {f"mean.{k}": v for k, v in self.mean.state_dict().items()}
        for (name, _), moments in zip(
            self.model.named_parameters(), self.optimizer.state_dict()["state"].values(), strict=False
        ):
            named |= {f"{part}.{name}": torch.as_tensor(value) for part, value in moments.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}

        try:
            self.model.load_state_dict(part("weights"))
            self.mean.load_state_dict(part("mean"))
        except RuntimeError as error:
            raise InputError(f"checkpoint does not fit the configuration of its run ({error})") from error
        stored = self.optimizer.state_dict()
        names = [name for name, _ in self.model.named_parameters()]
        moments = {p: part(p) for p in ("step", "exp_avg", "exp_avg_sq")}
        stored["state"] = {
            i: {p: values[name].clone() for p, values in moments.items()}
            for i, name in enumerate(names)
            if name in moments["step"]
        }
        self.optimizer.load_state_dict(stored)

    def snapshot(self) -> TrainState:
        """The state with the tensors of now."""
        self.state.live = self.tensors()
        return self.state

    def model_file(self, card: dict[str, Any]) -> ModelFile:
        """The running mean of the weights as a model file."""
        iterations = self.config.train.iterations
        told = {"iterations": self.state.iteration, "finished": self.state.iteration >= iterations}
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.mean.state_dict().items()}
        return ModelFile(self.config, weights, card | told)


def new_sentinel(settings: TrainConfig) -> Sentinel:
    """Settings -> a watch that waits for the warm-up and a tenth of the training, at most 500 iterations more."""
    return Sentinel(patience=settings.warmup + min(500, max(100, settings.iterations // 10)))


def learning_rate(settings: TrainConfig, iteration: int) -> float:
    """Settings and iteration -> learning rate: linear warm-up, then cosine to zero; or the official decay."""
    if settings.schedule == "exponential":
        return settings.learning_rate * 0.9999**iteration
    warm = min(1.0, (iteration + 1) / max(1, settings.warmup))
    done = max(0, iteration - settings.warmup) / max(1, settings.iterations - settings.warmup)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


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
    scores = [dice_score(predictor.predict(c.image).mask.data > 0, c.label.data > 0) for c in cases]
    return float(np.mean(scores))


@contextlib.contextmanager
def tensorboard(run: RunFolder, iteration: int) -> Iterator[SummaryWriter]:
    """Run folder -> a writer of TensorBoard's logs that drops what a resumed run writes again."""
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=iteration or None)
    try:
        yield writer
    finally:
        writer.close()
