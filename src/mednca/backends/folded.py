"""The rule as two convolutions: what there is for GPUs, and for machines without a C compiler.

Nothing but linear maps lies between a state and the hidden units, so the own state, the two perceiving
convolutions and the first dense layer are composed into one 3 x 3 convolution n -> h. Exact algebra, other
rounding. States are kept channels-last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mednca.fire import FireKey, fire_mask
from mednca.nca import Backbone, Window


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


def run_folded(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """State (B, n, H, W) -> state after `steps` steps, channels-last."""
    weight, bias, out = fold(rule)
    state = state.contiguous(memory_format=torch.channels_last)
    for step in range(steps):
        fires = fire_mask(key, step, window.items, window.rows, window.columns, rule.config.fire_rate)
        hidden = F.relu(F.conv2d(F.pad(state, (1, 1, 1, 1), mode="reflect"), weight, bias))
        state = torch.addcmul(state, F.conv2d(hidden, out), fires.unsqueeze(1).to(state.dtype))
    return state
