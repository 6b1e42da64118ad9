"""Med-NCA, the whole method: a tiny learnt rule per level, applied by every cell of an image again and again.

Kalkhof, González, Mukhopadhyay, "Med-NCA: Robust and Lightweight Segmentation with Neural Cellular Automata",
IPMI 2023, doi:10.1007/978-3-031-34048-2_54, section 3. This file is the definition and the differentiable
reference that every other engine of the project is held to.

A cell's state is a vector of n channels::

    [ image (I, never changes) | logits (K, the answer) | hidden (what the cells tell each other) ]

Shapes: B items, n channels, H x W cells; H0 x W0 is the full resolution, a level of scale f
has (H0 / f) x (W0 / f).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mednca.fire import FireKey, fire_mask
from mednca.rule import MedNCAConfig


@dataclass(frozen=True)
class Window:
    """Where a piece of a level's grid lies: int64 (B, 1, 1) item numbers, (B or 1, H, 1) rows, (B or 1, 1, W)
    columns."""

    items: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def whole(cls, items: Tensor, height: int, width: int) -> Window:
        """Item numbers (B,) and a grid's size -> the window that covers the grid."""
        rows = torch.arange(height, device=items.device).view(1, -1, 1)
        columns = torch.arange(width, device=items.device).view(1, 1, -1)
        return cls(items.view(-1, 1, 1), rows, columns)

    @classmethod
    def at(cls, items: Tensor, origins: Tensor, size: tuple[int, int]) -> Window:
        """Item numbers (B,), upper left corners int64 (B, 2) and a size (H, W) -> a window for each item."""
        rows = origins[:, 0].view(-1, 1, 1) + torch.arange(size[0], device=items.device).view(1, -1, 1)
        columns = origins[:, 1].view(-1, 1, 1) + torch.arange(size[1], device=items.device).view(1, 1, -1)
        return cls(items.view(-1, 1, 1), rows, columns)

    def check_inside(self, around: Window, factor: int, level: int) -> None:
        """Raise ValueError if a cell lies outside `around`, whose cells are coarser by `factor`."""
        pairs = {"rows": (self.rows, around.rows), "columns": (self.columns, around.columns)}
        for name, (inner, outer) in pairs.items():
            low, high = outer.amin(dim=(1, 2)) * factor, (outer.amax(dim=(1, 2)) + 1) * factor
            if (inner.amin(dim=(1, 2)) < low).any() or (inner.amax(dim=(1, 2)) >= high).any():
                raise ValueError(f"patches of level {level} must lie inside level {level - 1}; {name} do not")

    def cut(self, grid: Tensor, scale: int = 1) -> Tensor:
        """Grid (B, C, H, W), coarser than the window by `scale` -> its cells under the window, repeated
        (nearest)."""
        batch = torch.arange(len(grid), device=grid.device).view(-1, 1, 1)
        rows = torch.div(self.rows, scale, rounding_mode="floor")
        columns = torch.div(self.columns, scale, rounding_mode="floor")
        return grid.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


class Backbone(nn.Module):
    """The rule of one level (paper section 3.2; b1 and b2 there): seven arrays."""

    def __init__(self, config: MedNCAConfig) -> None:
        super().__init__()
        n, h = config.channels, config.hidden
        groups = n if config.perception == "depthwise" else 1
        self.config = config
        self.perceive_a = nn.Conv2d(n, n, 3, groups=groups)
        self.perceive_b = nn.Conv2d(n, n, 3, groups=groups)
        self.update_in = nn.Linear(3 * n, h)
        self.update_out = nn.Linear(h, n, bias=False)
        nn.init.zeros_(self.update_out.weight)  # an untrained rule does nothing

    def seed(self, image: Tensor) -> Tensor:
        """Image (B, I, H, W) -> state (B, n, H, W): the image in front, zeros behind."""
        return F.pad(image, (0, 0, 0, 0, 0, self.config.channels - self.config.image_channels))

    def perceive(self, state: Tensor) -> Tensor:
        """State (B, n, H, W) -> perception (B, 3n, H, W): each cell's own state and two learnt views of its 3
        x 3 neighbours. Reflect padding, so that no cell can tell that it lies at the border."""
        around = F.pad(state, (1, 1, 1, 1), mode="reflect")
        return torch.cat([state, self.perceive_a(around), self.perceive_b(around)], dim=1)

    def update(self, perception: Tensor) -> Tensor:
        """Perception (B, 3n, H, W) -> residual (B, n, H, W), zero on the image channels."""
        image = self.config.image_channels
        hidden = F.relu(self.update_in(perception.movedim(1, -1)))
        residual = F.linear(hidden, self.update_out.weight[image:])
        return F.pad(residual, (image, 0)).movedim(-1, 1)

    def step(self, state: Tensor, fires: Tensor) -> Tensor:
        """State (B, n, H, W) and fire mask bool (B, H, W) -> the next state."""
        return torch.where(fires.unsqueeze(1), state + self.update(self.perceive(state)), state)


#: Looks on: level, steps done, state (B, n, H, W) -> bool (B, 1, 1): which items go on.
Watch = Callable[[int, int, Tensor], Tensor]
#: A way to run a rule: rule, state (B, n, H, W), key, window, steps -> state after the steps.
Run = Callable[[Backbone, Tensor, FireKey, Window, int], Tensor]


def run_eager(
    rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int, watch: Watch | None = None
) -> Tensor:
    """State (B, n, H, W) -> state after `steps` steps, or as many as the watch lets run; the reference."""
    for step in range(steps):
        fires = fire_mask(key, step, window.items, window.rows, window.columns, rule.config.fire_rate)
        if watch is not None:
            fires = fires & watch(key.level, step, state)
            if not fires.any():
                continue
        state = rule.step(state, fires)
    if watch is not None:
        watch(key.level, steps, state)
    return state


class MedNCA(nn.Module):
    """One rule per level, coarse to fine (paper sections 3.3 and 3.4)."""

    def __init__(self, config: MedNCAConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(Backbone(config) for _ in config.scales)

    @classmethod
    def from_weights(cls, config: MedNCAConfig, weights: Mapping[str, Any]) -> MedNCA:
        """Config and NumPy arrays by name (a model file's) -> the model, ready for inference."""
        with torch.device("meta"):  # no memory, and no draw from torch's global generator
            model = cls(config)
        model.to_empty(device="cpu").load_state_dict({name: torch.tensor(weights[name]) for name in weights})
        return model.eval().requires_grad_(False)

    def weights(self) -> dict[str, Any]:
        """The NumPy arrays float32 of the model by name, copied: what a model file holds."""
        return {
            name: tensor.detach().cpu().float().numpy().copy() for name, tensor in self.state_dict().items()
        }

    def forward(
        self,
        image: Tensor,
        *,
        seed: int,
        items: Tensor,
        patches: Sequence[tuple[Tensor, tuple[int, int]]] | None = None,
        steps: Sequence[int] | None = None,
        run: Run = run_eager,
    ) -> list[tuple[Tensor, Window]]:
        """Image (B, I, H0, W0) -> for each level its last state (B, n, H, W) and the window that it covers.

        The coarsest level sees the whole image. At each finer one the state is lifted (each cell hands its
        state to the cells it splits into), the sharp image is put in and the level's own rule runs: on the
        whole image, or, where `patches` are given, on a window of it, which is what keeps the memory of
        training small.

        Args:
            image: float (B, I, H0, W0); H0 and W0 multiples of `config.multiple`, at least `config.smallest`.
            seed: Names the random stream of the fire masks.
            items: int64 (B,), numbers that tell the images of this stream apart.
            patches: For each level after the first, corners int64 (B, 2) in cells of that level and a size
                (H, W). A patch must lie inside the one before it.
            steps: Steps per level instead of `config.steps`.
            run: The engine.
        """
        config = self.config
        height, width = image.shape[-2:]
        if height % config.multiple or width % config.multiple or min(height, width) < config.smallest:
            raise ValueError(
                f"image height and width must be multiples of {config.multiple} and at least "
                f"{config.smallest}, got {height} x {width}"
            )
        counts = config.steps if steps is None else tuple(steps)
        if len(counts) != len(config.steps):
            raise ValueError(f"steps must have {len(config.steps)} entries, got {len(counts)}")
        if patches is not None and len(patches) != len(config.steps) - 1:
            raise ValueError(f"patches must have {len(config.steps) - 1} entries, got {len(patches)}")
        outputs: list[tuple[Tensor, Window]] = []
        for level, (rule, scale) in enumerate(zip(self.levels, config.scales, strict=True)):
            assert isinstance(rule, Backbone)
            sharp = downscale(image, scale)
            window = Window.whole(items, height // scale, width // scale)
            if level == 0:
                state = rule.seed(sharp)
            else:
                coarse, around = outputs[-1]
                factor = config.scales[level - 1] // scale
                if patches is not None:
                    window = Window.at(items, *patches[level - 1])
                    window.check_inside(around, factor, level)
                state = lift(coarse, around, window, factor)
                state = torch.cat([window.cut(sharp), state[:, config.image_channels :]], dim=1)
            outputs.append((run(rule, state, FireKey(seed, level), window, counts[level]), window))
        return outputs

    def logits(self, state: Tensor) -> Tensor:
        """State (B, n, H, W) -> logits (B, K, H, W)."""
        return state[:, self.config.image_channels : self.config.image_channels + self.config.classes]


def downscale(image: Tensor, scale: int) -> Tensor:
    """Image (B, I, H, W) -> (B, I, H / scale, W / scale), linear between the pixels nearest to each new
    centre: for scale 4 the mean of the central 2 x 2 of each block."""
    if scale == 1:
        return image
    size = (image.shape[-2] // scale, image.shape[-1] // scale)
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def lift(coarse: Tensor, around: Window, window: Window, factor: int) -> Tensor:
    """State (B, n, H, W) that covers `around` -> the state of the finer cells in `window`, repeated
    (nearest)."""
    inside = Window(
        window.items,
        window.rows - factor * around.rows[:, :1],
        window.columns - factor * around.columns[:, :, :1],
    )
    return inside.cut(coarse, factor)


def probabilities(logits: Tensor) -> Tensor:
    """Logits (B, K, ...) -> probabilities (B, K, ...) of the K foreground classes; the background has the
    rest."""
    background = torch.zeros_like(logits[:, :1])
    return torch.softmax(torch.cat([background, logits], dim=1), dim=1)[:, 1:]
