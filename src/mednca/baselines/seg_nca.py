"""Seg. NCA, the earlier segmentation by neural cellular automata in the paper's Table 1.

Sandler, Zhmoginov, Luo, Mordvintsev, Randazzo, Aguera y Arcas, "Image segmentation via Cellular Automata",
arXiv:2008.04965. What is known: cells on every pixel, updated at random by a small network that sees their
own state, the colour and the state of the 3 x 3 neighbours, again and again until the mask stands; and the
39,472 weights of Table 1. How they are split over layers, neither the paper nor its authors' code tells.

Our reading: the rule of "Growing Neural Cellular Automata" (Mordvintsev et al., Distill 2020,
doi:10.23915/distill.00023), by part of the same authors, with the image in front of the state. A cell sees
its state and the state's gradient, by two fixed Sobel filters; two dense layers, 3n -> h with bias and
h -> n, make the residual; half of the cells fire in a step. With n = 32 channels, h = 306 comes nearest to
the table: 39,474 weights are learnt. The number of steps, 64, and reflect padding are ours too.

That is Med-NCA's rule on one level with depthwise perception whose filters are given, so that every engine
runs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mednca.config import RunConfig
from mednca.nca import Backbone, MedNCA

#: Gradient along the columns of a 3 x 3 neighbourhood; transposed, along the rows.
# On the CPU whatever device is the default where this module is first imported ("meta", for a stored model).
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device="cpu") / 8


def build(config: RunConfig) -> MedNCA:
    """Configuration of one level with depthwise perception -> the automaton, its filters given and not
    learnt."""
    model = MedNCA(config.model)
    rule = model.levels[0]
    assert isinstance(rule, Backbone)
    for perceive, filters in ((rule.perceive_a, SOBEL), (rule.perceive_b, SOBEL.t())):
        give(perceive.weight, filters.expand_as(perceive.weight))
        assert perceive.bias is not None
        give(perceive.bias, torch.zeros_like(perceive.bias))
    return model


def give(weight: Tensor, values: Tensor) -> None:
    """Weight and its values -> the weight has them and is not learnt."""
    weight.requires_grad_(False).copy_(values)
