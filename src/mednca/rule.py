"""What a model is made of: the numbers that decide its shape and arithmetic, and the arrays of its rules.

No torch and no NumPy here: engines, model files and the method itself (`mednca.nca`) all start from this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MedNCAConfig:
    """Everything that decides the shape and the arithmetic of a model; validated when made.

    Attributes:
        image_channels: I, image channels at the front of the state.
        classes: K, foreground classes, one logit channel each. The background's logit is 0 by definition, so
            that probabilities are a softmax over K + 1, which for one class is the sigmoid.
        channels: n, length of a cell's state.
        hidden: h, hidden units of the update.
        perception: "dense" for the paper's two convolutions n -> n, "depthwise" for two filters per channel.
        scales: Downscaling factor of each level, coarse to fine, each a multiple of the next, the last one 1.
        steps: Number of steps of each level.
        fire_rate: Chance of a cell to update in a step, in (0, 1].

    Raises:
        ValueError: Where a value is out of its range.
    """

    image_channels: int = 1
    classes: int = 1
    channels: int = 32
    hidden: int = 128
    perception: Literal["dense", "depthwise"] = "dense"
    scales: tuple[int, ...] = (4, 1)
    steps: tuple[int, ...] = (64, 64)
    fire_rate: float = 0.5

    def __post_init__(self) -> None:
        for name in ("image_channels", "classes", "channels", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_channels + self.classes > self.channels:
            raise ValueError(
                f"channels must be at least image_channels + classes, here {self.image_channels} + "
                f"{self.classes}, got {self.channels}"
            )
        if self.perception not in ("dense", "depthwise"):
            raise ValueError(f"perception must be 'dense' or 'depthwise', got {self.perception!r}")
        if not self.scales or len(self.steps) != len(self.scales) or min(self.steps) < 1:
            raise ValueError(
                f"steps must give a number >= 1 for each of the scales {self.scales}, got {self.steps}"
            )
        if self.scales[-1] != 1 or any(
            a <= b or a % b for a, b in zip(self.scales, self.scales[1:], strict=False)
        ):
            raise ValueError(
                f"scales must fall to 1, each a multiple of the next, as (4, 1); got {self.scales}"
            )
        if not 0.0 < self.fire_rate <= 1.0:
            raise ValueError(f"fire_rate must be in (0, 1], got {self.fire_rate}")

    @property
    def multiple(self) -> int:
        """What the height and width of an image must be a multiple of."""
        return self.scales[0]

    @property
    def smallest(self) -> int:
        """The least height and width of an image: reflect padding needs two cells on the coarsest level."""
        return 2 * self.scales[0]


def weight_shapes(config: MedNCAConfig) -> dict[str, tuple[int, ...]]:
    """Config -> name and shape of each array of a model, seven for each level, as `MedNCA` holds them."""
    n, h = config.channels, config.hidden
    kernel = (n, 1 if config.perception == "depthwise" else n, 3, 3)
    rule: dict[str, tuple[int, ...]] = {
        "perceive_a.weight": kernel,
        "perceive_a.bias": (n,),
        "perceive_b.weight": kernel,
        "perceive_b.bias": (n,),
        "update_in.weight": (h, 3 * n),
        "update_in.bias": (h,),
        "update_out.weight": (n, h),
    }
    levels = len(config.scales)
    return {f"levels.{level}.{name}": shape for level in range(levels) for name, shape in rule.items()}


def parameters(config: MedNCAConfig) -> int:
    """Config -> number of learnt values of a model, all levels together."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def multiply_adds(config: MedNCAConfig, height: int, width: int) -> int:
    """Config and the size of an image -> multiply-adds of all levels and steps, every cell computed.

    Skipping the cells that do not fire leaves `config.fire_rate` of them in the mean, with the same result.
    The rows of the last matrix that would change the image are counted, as the paper's formula has them.
    """
    n, h = config.channels, config.hidden
    filters = 9 * n * 2 if config.perception == "depthwise" else 9 * n * n * 2
    cells = sum(
        (height // scale) * (width // scale) * steps
        for scale, steps in zip(config.scales, config.steps, strict=True)
    )
    return cells * (filters + 3 * n * h + h * n)
