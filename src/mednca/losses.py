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
    probability = probabilities(logits)
    axes = (0, 2, 3)
    overlap = (probability * target).sum(axes)
    total = probability.sum(axes) + target.sum(axes)
    return (1 - (2 * overlap + 1) / (total + 1)).mean()
