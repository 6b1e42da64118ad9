"""What backends are tested and timed on: one list for tests/conformance and for benchmarks/bench_*.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mednca.fire import FireKey
from mednca.nca import Backbone, Run, Window
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
