"""The rule as matrix products over the cells that fire, in PyTorch, with its own backward pass: the short way
that the backward pass in C is measured against. It is no engine of the package: bench_training.py tells why.

As in `folded`, the own state, the two perceiving convolutions and the first dense layer are one linear map of
a cell's neighbourhood. Here the neighbourhoods of the firing cells are gathered into the rows of a matrix, so
that a step is two products. For the backward pass only the old states of the cells that fired are kept: going
back, they are put in place again, and everything else is computed a second time.

Shapes: B items, n channels, h hidden units, C = B H W cells in one list, M of them fire in a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mednca.backends.folded import fold
from mednca.fire import FireKey, fire_mask
from mednca.nca import Backbone, Window


def run_gathered(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """State (B, n, H, W) -> state after `steps` steps, channels-last; differentiable once."""
    batch, n, height, width = state.shape
    weight, bias, out = fold(rule)
    inward = weight.permute(2, 3, 1, 0).reshape(9 * n, -1).contiguous()
    outward = out[:, :, 0, 0].t().contiguous()
    cells = state.permute(0, 2, 3, 1).reshape(-1, n)
    near = neighbours(batch, height, width, state.device)
    fires = [
        fire_mask(key, step, window.items, window.rows, window.columns, rule.config.fire_rate)
        .flatten()
        .nonzero()
        .squeeze(1)
        for step in range(steps)
    ]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (cells, inward, bias, outward))
    last: Tensor = _Steps.apply(cells, inward, bias, outward, near, fires, keep)  # type: ignore[no-untyped-call]
    return last.view(batch, height, width, n).permute(0, 3, 1, 2)


def neighbours(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Sizes of a grid -> int64 (C, 9): numbers of each cell's 3 x 3 neighbours, reflected at borders."""
    numbers = torch.arange(batch * height * width, device=device).view(batch, 1, height, width)
    around = torch.nn.functional.pad(numbers.double(), (1, 1, 1, 1), mode="reflect").long()
    windows = around.unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.reshape(-1, 9)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cells: Tensor,
        inward: Tensor,
        bias: Tensor,
        outward: Tensor,
        near: Tensor,
        fires: list[Tensor],
        keep: bool,
    ) -> Tensor:
        n = cells.shape[1]
        cells = cells.clone(memory_format=torch.contiguous_format)
        kept = []
        for firing in fires:
            rows = cells[near[firing].flatten()].view(-1, 9 * n)
            own = rows[:, 4 * n : 5 * n]
            hidden = torch.addmm(bias, rows, inward).relu_()
            cells.index_copy_(0, firing, torch.addmm(own, hidden, outward))
            if keep:
                kept.append(own.contiguous())
        ctx.fires = fires
        ctx.save_for_backward(cells, inward, bias, outward, near, *kept)
        return cells

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_last: Tensor) -> tuple[Tensor | None, ...]:
        last, inward, bias, outward, near, *kept = ctx.saved_tensors
        n = last.shape[1]
        cells, d_cells = last.clone(), d_last.clone(memory_format=torch.contiguous_format)
        d_inward, d_bias, d_outward = (torch.zeros_like(t) for t in (inward, bias, outward))
        for firing, old in zip(reversed(ctx.fires), reversed(kept), strict=True):
            cells.index_copy_(0, firing, old)
            at = near[firing].flatten()
            rows = cells[at].view(-1, 9 * n)
            hidden = torch.addmm(bias, rows, inward).relu_()
            d_out = d_cells[firing]
            d_outward.addmm_(hidden.t(), d_out)
            d_hidden = (d_out @ outward.t()).masked_fill_(hidden <= 0, 0)
            d_bias += d_hidden.sum(dim=0)
            d_inward.addmm_(rows.t(), d_hidden)
            d_cells.index_add_(0, at, (d_hidden @ inward.t()).view(-1, n))
        return d_cells, d_inward, d_bias, d_outward, None, None, None
