"""What backends are tested and timed on: one list for tests/conformance and for benchmarks/bench_*.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mednca.fire import FireKey
from mednca.losses import cross_entropy, dice_loss
from mednca.nca import Backbone, MedNCA, Run, Window
from mednca.rule import MedNCAConfig


@dataclass(frozen=True)
class BackendCase:
    """One rule, one grid and a number of steps.

    Attributes:
        name: Short, for test ids and tables.
        config: Of the rule; scales and steps do not matter.
        batch: B.
        height: H, rows of the grid or window.
        width: W, columns.
        steps: Steps to run.
        corners: Whether each item has a window of its own somewhere in a larger grid.
    """

    name: str
    config: MedNCAConfig
    batch: int
    height: int
    width: int
    steps: int
    corners: bool = False

    def make(self, dtype: torch.dtype) -> tuple[Backbone, Tensor, FireKey, Window]:
        """The arguments of a run, without the steps: the same numbers at each call, rounded to `dtype`.

        Every state channel and every weight is random and of a size that is felt: no zero hides a thing.
        """
        generator = torch.Generator().manual_seed(0)
        random = partial(torch.randn, generator=generator)
        rule = Backbone(self.config).to(dtype)
        with torch.no_grad():
            for array in rule.parameters():
                fan_in = array[0].numel() if array.dim() > 1 else 1.0
                array.copy_(random(array.shape) * 0.5 * fan_in**-0.5)
            rule.update_out.weight.mul_(0.2)
        state = random(self.batch, self.config.channels, self.height, self.width).to(dtype)
        items = torch.randint(0, 1 << 20, (self.batch,), generator=generator)
        window = Window.whole(items, self.height, self.width)
        if self.corners:
            corners = torch.randint(0, 300, (self.batch, 2), generator=generator)
            window = Window.at(items, corners, (self.height, self.width))
        return rule, state, FireKey(seed=7, level=1), window


def forward_backward(run: Run, case: BackendCase, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """The last state of a case, and a loss's gradients by name: of "state" and of the rule's seven arrays."""
    rule, state, key, window = case.make(dtype)
    state.requires_grad_()
    last = run(rule, state, key, window, case.steps)
    weight = torch.randn(last.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (weight * last + 0.5 * last.square()).sum().backward()
    gradients = {"state": state.grad} | {name: array.grad for name, array in rule.named_parameters()}
    return last.detach(), {name: grad for name, grad in gradients.items() if grad is not None}


_dense = partial(MedNCAConfig, perception="dense")
_depthwise = partial(MedNCAConfig, perception="depthwise")

CASES = [
    BackendCase("paper", _dense(), 2, 12, 16, 8),
    BackendCase("paper-rgb-window", _dense(image_channels=3), 3, 16, 16, 4, corners=True),
    BackendCase("paper-64-steps", _dense(), 1, 8, 8, 64),
    BackendCase("every-cell-fires", _dense(channels=16, hidden=64, fire_rate=1.0), 2, 9, 13, 4),
    BackendCase("lean", _depthwise(channels=16, hidden=64), 2, 16, 12, 8),
    BackendCase(
        "lean-rgb-window", _depthwise(channels=16, hidden=64, image_channels=3), 3, 7, 20, 4, corners=True
    ),
    BackendCase("depthwise-wide", _depthwise(fire_rate=1.0), 1, 10, 10, 3),
    BackendCase("smallest", _dense(channels=16, hidden=64), 2, 2, 2, 5),
    BackendCase("thin", _dense(), 1, 2, 31, 3),
    BackendCase("odd-numbers", _dense(channels=7, hidden=21, image_channels=3), 2, 5, 6, 6),
    BackendCase("odd-numbers-depthwise", _depthwise(channels=19, hidden=33), 2, 6, 5, 6),
    BackendCase("rarely-fires", _dense(fire_rate=0.02), 4, 6, 6, 6),
]


@dataclass(frozen=True)
class TrainingCase:
    """One setting of a training: a model, a batch of random images and what an iteration does with them.

    Attributes:
        name: Short, for tests, tables and the command line.
        about: What it is, in a line.
        config: Of the model.
        batch: B, images in a batch.
        size: Height and width of an image.
        patch: Height and width of the window that each finer level sees; None for the whole image.
    """

    name: str
    about: str
    config: MedNCAConfig
    batch: int
    size: int
    patch: int | None = None

    def model(self, dtype: torch.dtype = torch.float32) -> MedNCA:
        """A model with random weights, the same at each call, that changes states a little in each step."""
        generator = torch.Generator().manual_seed(0)
        model = MedNCA(self.config)
        with torch.no_grad():
            for array in model.parameters():
                fan_in = array[0].numel() if array.dim() > 1 else 1.0
                array.copy_(torch.randn(array.shape, generator=generator) * 0.5 * fan_in**-0.5)
            for rule in model.levels:
                rule.get_submodule("update_out").weight.mul_(0.02)
        return model.to(dtype)

    def loss(self, model: MedNCA, run: Run, seed: int = 0) -> Tensor:
        """Model and engine -> the loss of a batch, cut and judged as `mednca.learner` does it."""
        generator = torch.Generator().manual_seed(seed)
        weight = next(model.parameters())
        images = torch.rand(self.batch, self.config.image_channels, self.size, self.size, generator=generator)
        images = images.to(weight)
        target = (images[:, :1] > 0.5).to(weight).expand(-1, self.config.classes, -1, -1)
        patches = None
        if self.patch is not None:
            corners = torch.randint(0, self.size - self.patch + 1, (self.batch, 2), generator=generator)
            corners = corners.to(weight.device)
            patches = [(corners, (self.patch, self.patch))] * (len(self.config.scales) - 1)
        items = torch.arange(self.batch, device=weight.device)
        cells, window = model(images, seed=seed, items=items, patches=patches, run=run)[-1]
        goal, logits = window.cut(target), model.logits(cells)
        return dice_loss(logits, goal) + cross_entropy(logits, goal)


_paper = MedNCAConfig(steps=(64, 64))
_lean = _depthwise(channels=16, hidden=64, scales=(8, 4, 2, 1), steps=(8, 8, 8, 8))

TRAININGS = [
    TrainingCase(
        "patches",
        "the paper's hippocampus: 48 images 64x64, patches 16x16, 64 + 64 steps",
        _paper,
        48,
        64,
        16,
    ),
    TrainingCase("whole", "a full image 256x256, no patches, 64 + 64 steps", _paper, 1, 256),
    TrainingCase("lean", "the lean rule: 16 images 64x64, four levels of 8 steps", _lean, 16, 64),
]
