"""The rule as two convolutions: what there is for GPUs, and for machines without a C compiler.

Nothing but linear maps lies between a state and the hidden units, so the own state, the two perceiving
convolutions and the first dense layer are composed into one 3 x 3 convolution n -> h. Exact algebra, other
rounding. States are kept channels-last.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mednca.fire import FireKey, fire_mask
from mednca.nca import Backbone, Watch, Window


def fold(rule: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Rule -> weight (h, n, 3, 3) and bias (h,) into the hidden units, weight (n, h, 1, 1) out of them."""
    n = rule.config.channels
    own, a, b = torch.split(rule.update_in.weight, n, dim=1)
    weight = F.pad(own[:, :, None, None], (1, 1, 1, 1))
    for part, perceive in ((a, rule.perceive_a), (b, rule.perceive_b)):
        if rule.config.perception == "depthwise":
            weight = weight + part[:, :, None, None] * perceive.weight[:, 0]
        else:
            weight = weight + torch.einsum("hc,cdij->hdij", part, perceive.weight)
    assert rule.perceive_a.bias is not None and rule.perceive_b.bias is not None
    bias = rule.update_in.bias + a @ rule.perceive_a.bias + b @ rule.perceive_b.bias
    changes = torch.ones(n, dtype=weight.dtype, device=weight.device)
    changes[: rule.config.image_channels] = 0
    out = (rule.update_out.weight * changes[:, None])[:, :, None, None]
    return weight.contiguous(memory_format=torch.channels_last), bias, out


#: What a run keeps about for its backward pass before it computes segments of its steps again instead.
KEPT_BYTES = 2 << 30


def run_folded(
    rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int, watch: Watch | None = None
) -> Tensor:
    """State (B, n, H, W) -> state after `steps` steps, or as many as the watch lets run; channels-last.

    The steps are taken in some sqrt(steps) segments. Where keeping what the backward pass needs of all of
    them would take more than `KEPT_BYTES`, only the states between the segments are kept.
    """
    weight, bias, out = fold(rule)
    state = state.contiguous(memory_format=torch.channels_last)
    kept_of_a_cell = (2 * rule.config.channels + rule.config.hidden) * state.element_size()
    again = kept_of_a_cell * steps * state[:, 0].numel() > KEPT_BYTES and torch.is_grad_enabled()
    length = math.isqrt(max(steps - 1, 0)) + 1

    def segment(first: int, state: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        numbers: Any = torch.arange(first, min(first + length, steps), device=state.device).view(-1, 1, 1, 1)
        masks = fire_mask(key, numbers, window.items, window.rows, window.columns, rule.config.fire_rate)
        for step, fires in enumerate(masks.unsqueeze(2).to(state.dtype), first):
            if watch is not None:
                going = watch(key.level, step, state)
                if not going.any():
                    continue
                fires = fires * going.unsqueeze(1)
            hidden = F.relu(F.conv2d(F.pad(state, (1, 1, 1, 1), mode="reflect"), weight, bias))
            state = torch.addcmul(state, F.conv2d(hidden, out), fires)
        return state

    for first in range(0, steps, length):
        if again:
            state = checkpoint(
                segment, first, state, weight, bias, out, use_reentrant=False, preserve_rng_state=False
            )
        else:
            state = segment(first, state, weight, bias, out)
    if watch is not None:
        watch(key.level, steps, state)
    return state
