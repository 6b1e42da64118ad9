"""The classic U-Net in two dimensions, as the paper's Table 1 has it (36,951,555 weights).

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
doi:10.1007/978-3-319-24574-4_28, with zero padding, so that the logits have the size of the image, and with
transposed convolutions that keep the number of channels, as in the package `unet`, which the authors used: 3
inputs, 3 outputs, 64 filters in the first of 5 blocks and no norm give the paper's number exactly. Initial
weights are He's, as in the U-Net's own paper.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mednca.config import RunConfig

Norm = Literal["none", "batch", "instance"]


class UNet(nn.Module):
    """Blocks down, each on half the resolution of the one before and twice as wide, and the same way up, with
    what each saw on the way down beside it."""

    def __init__(
        self, inputs: int, outputs: int, filters: int = 64, depth: int = 5, norm: Norm = "none"
    ) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(depth)]
        self.down = nn.ModuleList(block(a, b, norm) for a, b in pairwise([inputs, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, wide, 2, stride=2) for wide in widths[1:])
        self.join = nn.ModuleList(block(narrow + wide, narrow, norm) for narrow, wide in pairwise(widths))
        self.head = nn.Conv2d(filters, outputs, 1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and part is not self.head:
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, inputs, H, W), H and W multiples of 2 ** (depth - 1) -> logits (B, outputs, H, W)."""
        seen = [self.down[0](image)]
        for down in list(self.down)[1:]:
            seen.append(down(F.max_pool2d(seen[-1], 2)))
        state = seen.pop()
        for up, join in reversed(list(zip(self.up, self.join, strict=True))):
            state = join(torch.cat([seen.pop(), up(state)], dim=1))
        logits: Tensor = self.head(state)
        return logits


def block(before: int, after: int, norm: Norm) -> nn.Sequential:
    """Channels before and after, and a norm -> two 3 x 3 convolutions, each with its norm and a ReLU."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers.append(nn.Conv2d(channels, after, 3, padding=1))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(after))
        if norm == "instance":
            layers.append(nn.InstanceNorm2d(after, affine=True))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def build(config: RunConfig) -> UNet:
    """Configuration -> the U-Net that it asks for."""
    settings = config.baseline
    assert settings is not None
    inputs = settings.copies * config.model.image_channels
    return UNet(inputs, config.model.classes, settings.filters, settings.depth, settings.norm)
