"""The training loss: Dice + cross-entropy (paper section 4), for one class and for several.

Shapes: logits and targets (B, K, H, W); targets are shares in [0, 1] of the K foreground classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mednca.nca import probabilities


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Logits and targets (B, K, H, W) -> mean cross-entropy over the cells; binary cross-entropy for K = 1.

    Computed from logits, so that its gradient survives where a probability rounds to 0 or 1.
    """
    with_background = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
    return (torch.logsumexp(with_background, dim=1) - (target * logits).sum(dim=1)).mean()


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Logits and targets (B, K, H, W) -> 1 - soft Dice, pooled over the batch, mean over classes; in [0, 1].

    1 - (2 sum(p t) + 1) / (sum p + sum t + 1), as the authors have it.
    """
    return _dice_loss(probabilities(logits), target)


def whole_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Logits and targets (B, K, H, W) -> the same of the K classes taken together as one foreground."""
    return _dice_loss(probabilities(logits).sum(dim=1, keepdim=True), target.sum(dim=1, keepdim=True))


def _dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Probabilities and targets (B, K, H, W) -> 1 - soft Dice as `dice_loss` has it."""
    axes = (0, 2, 3)
    overlap = (probability * target).sum(axes)
    total = probability.sum(axes) + target.sum(axes)
    return (1 - (2 * overlap + 1) / (total + 1)).mean()
