"""One step of training, and what is needed to repeat it: model, running mean, optimiser, and their
recovery."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mednca.augment import Batch
from mednca.baselines import build
from mednca.checkpoint import TrainState
from mednca.config import RunConfig, TrainConfig
from mednca.errors import InputError, TrainingFailedError
from mednca.losses import cross_entropy, dice_loss, whole_dice_loss
from mednca.modelfile import ModelFile
from mednca.nca import MedNCA, Run, downscale
from mednca.sentinel import Sentinel
from mednca.transfer import transferred

#: Re-seeds and roll-backs after which a training gives up.
ATTEMPTS = 6


class Learner:
    """Model, running mean and optimiser of one training, and their way into and out of a checkpoint."""

    def __init__(
        self, config: RunConfig, state: TrainState, device: str, begin: ModelFile | None = None
    ) -> None:
        self.config, self.state, self.device, self.begin = config, state, device, begin
        self.start(config.train.seed)
        if state.live:
            self.restore(state.live)

    def start(self, seed: int) -> None:
        """Fresh weights, from a seed or from the model to begin with, mean and optimiser; torch's global
        generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build(self.config).to(self.device)
            self.mean = build(self.config).to(self.device).requires_grad_(False)
        if self.begin is not None:
            assert isinstance(self.model, MedNCA)
            weights = transferred(self.begin, self.config, self.model.weights())
            self.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
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
        kind = self.device.split(":")[0]
        # On the CPU an automaton's engine rounds what it multiplies, and keeps its states in float32.
        wanted = settings.precision == "bfloat16" and not self.config.is_automaton
        half = kind != "cpu" or (wanted and not why_no_autocast(self.device))
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            outputs = self.model(
                image, seed=fire_seed, items=items, patches=patches, steps=self.steps(iteration), run=run
            )
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
            if settings.whole_weight and goal.shape[1] > 1:
                level_loss = level_loss + settings.whole_weight * whole_dice_loss(logits, goal)
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
                for kept, now in zip(self.mean.buffers(), self.model.buffers(), strict=True):
                    kept.copy_(now)  # statistics of batch norms are running means already
        return {"loss": loss_value, "dice": dice, "foreground": foreground, "gradient_norm": norm}

    def steps(self, iteration: int) -> tuple[int, ...] | None:
        """Iteration -> steps of each level, by one factor drawn from `step_range`; None for the model's
        own."""
        settings = self.config.train
        least, largest = settings.step_range
        if (
            least == largest == 1
            or iteration < settings.step_range_from * settings.iterations / settings.cycles
        ):
            return None
        rng = np.random.default_rng((settings.seed, self.state.attempt, iteration, 1))
        factor = float(np.exp(rng.uniform(math.log(least), math.log(largest))))
        return tuple(max(1, round(steps * factor)) for steps in self.config.model.steps)

    def recover(self, verdict: str) -> dict[str, Any]:
        """Verdict -> what was done: a new start from another seed, or back to weights that a healthy window
        followed."""
        state, settings = self.state, self.config.train
        state.attempt += 1
        if state.attempt > ATTEMPTS:
            raise TrainingFailedError(
                f"training failed {state.attempt} times (last: {verdict}); lower --learning-rate, "
                "check the data with 'mednca doctor'"
            )
        if verdict == "stuck" or not state.good:
            self.start(settings.seed + 7919 * state.attempt)
            state.iteration, state.rate_factor = 0, state.rate_factor * (1.0 if verdict == "stuck" else 0.5)
            state.good, state.good_iteration, state.fresh, state.fresh_iteration = {}, 0, {}, 0
            state.sentinel = asdict(new_sentinel(settings))
            return {"event": "re-seeded", "reason": verdict}
        self.restore(state.good)
        state.iteration, state.rate_factor = state.good_iteration, state.rate_factor / 2
        state.fresh, state.fresh_iteration = {}, 0
        state.sentinel |= {"sums": [0.0] * 4, "losses": []}
        return {
            "event": f"rolled back to iteration {state.iteration}, learning rate halved",
            "reason": verdict,
        }

    def keep(self) -> None:
        """At the end of a healthy window: what it ended with may become what is rolled back to, and what the
        one before ended with does."""
        state = self.state
        if state.fresh:
            state.good, state.good_iteration = state.fresh, state.fresh_iteration
        state.fresh, state.fresh_iteration = self.tensors(), state.iteration

    def tensors(self) -> dict[str, Tensor]:
        """Weights, running means and moments by name, copied."""
        named = {f"weights.{k}": v for k, v in self.model.state_dict().items()}
        named |= {f"mean.{k}": v for k, v in self.mean.state_dict().items()}
        moments = self.optimizer.state_dict()["state"]  # by number; empty before the first step
        for number, (name, _) in enumerate(self.model.named_parameters()):
            named |= {f"{p}.{name}": torch.as_tensor(value) for p, value in moments.get(number, {}).items()}
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in named.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`.

        Raises:
            InputError: If they are not those of this model.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}

        try:
            self.model.load_state_dict(part("weights"))
            self.mean.load_state_dict(part("mean"))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"checkpoint does not fit the configuration of its run ({reason})") from error
        stored = self.optimizer.state_dict()
        moments = {p: part(p) for p in ("step", "exp_avg", "exp_avg_sq")}
        stored["state"] = {}
        for number, (name, weight) in enumerate(self.model.named_parameters()):
            shapes = {p: values[name].shape for p, values in moments.items() if name in values}
            if not shapes:
                continue
            if shapes != {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}:
                raise InputError(f"checkpoint does not fit the configuration of its run (moments of {name})")
            likes = {"step": moments["step"][name], "exp_avg": weight, "exp_avg_sq": weight}  # in memory too
            stored["state"][number] = {
                p: torch.empty_like(like, device="cpu").copy_(moments[p][name]) for p, like in likes.items()
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
        return ModelFile(self.config, self.mean.weights(), card | told)


def why_no_autocast(device: str) -> str:
    """Device -> why PyTorch should not compute a baseline in bfloat16 there; nothing if it should.

    A processor without such products emulates them, at several times the cost of float32.
    """
    if device.split(":")[0] != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return ""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return "" if any(ask is not None and ask() for ask in asked) else "this processor has no AVX512_BF16"


def new_sentinel(settings: TrainConfig) -> Sentinel:
    """Settings -> a watch that waits for the warm-up and a tenth of the training, 250 to 500 iterations
    more."""
    return Sentinel(patience=settings.warmup + min(500, max(250, settings.iterations // 10)))


def learning_rate(settings: TrainConfig, iteration: int) -> float:
    """Settings and iteration -> learning rate: in each cycle linear warm-up to half the peak of the one
    before, then cosine to zero; or the official decay."""
    if settings.schedule == "exponential":
        return settings.learning_rate * 0.9999**iteration
    length = -(-settings.iterations // settings.cycles)
    cycle, iteration = divmod(iteration, length)
    warm = min(1.0, (iteration + 1) / max(1, settings.warmup))
    done = max(0, iteration - settings.warmup) / max(1, length - settings.warmup)
    return settings.learning_rate * 0.5**cycle * warm * 0.5 * (1 + math.cos(math.pi * done))
