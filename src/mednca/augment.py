"""Training batches: which slices, seen how. A batch is a pure function of the data, the configuration and a
generator.

Geometry (crop, pad, flip, rotation, scale, shift) is one resampling of the slice onto the canvas; intensities
follow.

Shapes: S slices, I image channels, K classes, H x W pixels of a slice, Hc x Wc of the canvas, B slices of a
    batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mednca.config import AugmentConfig, RunConfig
from mednca.slices import plane_axes, with_context

Patches = list[tuple[Tensor, tuple[int, int]]]


@dataclass(frozen=True)
class TrainingCase:
    """One case, cut along one axis, ready for training: image float32 (S, M, H, W), label uint8 (S, H, W)
    with values 0 to K."""

    id: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    axis: int = 2

    @cached_property
    def foreground_slices(self) -> NDArray[np.int64]:
        """Numbers of the slices that hold foreground."""
        return np.flatnonzero(self.label.any(axis=(1, 2)))


@dataclass(frozen=True)
class Batch:
    """Image (B, I, Hc, Wc), target (B, K, Hc, Wc) with shares in [0, 1], and the patches of the finer
    levels."""

    image: Tensor
    target: Tensor
    patches: Patches | None


def sample_batch(
    cases: Sequence[TrainingCase],
    config: RunConfig,
    canvas: tuple[int, int],
    rng: np.random.Generator,
    copies: Sequence[TrainingCase] = (),
) -> Batch:
    """Cases, configuration, canvas, a generator and copies of cases with artefacts -> one training batch."""
    images, targets = [], []
    share = config.augment.artefacts if copies else 0.0
    for _ in range(config.train.batch_size):
        among = copies if share and rng.random() < share else cases
        case = among[int(rng.integers(len(among)))]
        candidates = case.foreground_slices
        if len(candidates) == 0 or rng.random() >= config.train.foreground:
            candidates = np.arange(len(case.image))
        index = candidates[rng.integers(len(candidates))]
        flip, across = mirrors(config, case.axis)
        slices, place = case.image, index
        if across and rng.random() < 0.5:
            slices, place = slices[::-1], len(slices) - 1 - index
        image = with_context(slices, np.array([place]), config.preprocess.context)
        target = one_hot(case.label[index], config.model.classes)
        grid = canvas_grid(target.shape[-2:], canvas, replace(config.augment, flip=flip), rng)
        images.append(
            F.grid_sample(torch.from_numpy(image), grid, padding_mode="border", align_corners=False)
        )
        targets.append(F.grid_sample(target[None], grid, padding_mode="border", align_corners=False))
    image_batch = vary_intensity(torch.cat(images), config.augment, rng)
    target_batch = torch.cat(targets)
    return Batch(image_batch, target_batch, draw_patches(target_batch, config, rng))


def mirrors(config: RunConfig, axis: int) -> tuple[tuple[int, ...], bool]:
    """Configuration and the axis that a slice is cut along -> its in-plane axes that may be mirrored, and
    whether the order of its neighbours may be reversed.

    `config.augment.flip` names axes of the body by what they are in slices along the main axis.
    """
    main, *others = config.preprocess.axes
    if not others:
        return config.augment.flip, False
    body = {plane_axes(main)[row_or_column] for row_or_column in config.augment.flip}
    return tuple(i for i, there in enumerate(plane_axes(axis)) if there in body), axis in body


def one_hot(label: NDArray[np.uint8], classes: int) -> Tensor:
    """Label (H, W) with values 0 to K -> float (K, H, W)."""
    return torch.from_numpy(np.stack([label == k for k in range(1, classes + 1)]).astype(np.float32))


def canvas_grid(
    size: tuple[int, ...], canvas: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator
) -> Tensor:
    """Slice size, canvas and ranges -> sampling grid (1, Hc, Wc, 2) for `grid_sample`, without distortion but
    for the drawn one."""
    angle = np.deg2rad(rng.uniform(-augment.rotation, augment.rotation))
    zoom = (1 + augment.scale) ** rng.uniform(-1, 1)
    stretch = (1 + augment.stretch) ** rng.uniform(-0.5, 0.5)
    mirror = [(-1.0 if axis in augment.flip and rng.random() < 0.5 else 1.0) for axis in (0, 1)]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag(mirror) @ turn @ np.diag([stretch / zoom, 1 / (zoom * stretch)])
    slack = [max(0.0, (s - c) / 2) + augment.translation * c for s, c in zip(size, canvas, strict=True)]
    shift = np.array([rng.uniform(-s, s) for s in slack])
    rows = np.arange(canvas[0]) - (canvas[0] - 1) / 2
    columns = np.arange(canvas[1]) - (canvas[1] - 1) / 2
    points = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1) @ matrix.T + shift
    normalised = 2 * points[..., ::-1] / np.array([size[1], size[0]])
    return torch.from_numpy(np.ascontiguousarray(normalised, dtype=np.float32))[None]


def vary_intensity(image: Tensor, augment: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Image (B, I, Hc, Wc) in [0, 1] -> the same with another contrast, brightness, bias field and noise."""
    b, channels, height, width = image.shape

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (b, 1, 1, 1)).astype(np.float32))

    if augment.gamma:
        image = image.clamp(0, 1) ** torch.exp(draw(-augment.gamma, augment.gamma))
    if augment.brightness:
        image = image * (1 + draw(-augment.brightness, augment.brightness))
        image = image + draw(-augment.brightness, augment.brightness)
    if augment.bias:
        knots = torch.from_numpy(rng.normal(0, augment.bias, (b, 1, 3, 3)).astype(np.float32))
        image = image * torch.exp(F.interpolate(knots, (height, width), mode="bicubic", align_corners=True))
    if augment.noise:
        noise = torch.from_numpy(rng.standard_normal((b, channels, height, width), dtype=np.float32))
        image = image + draw(0, augment.noise) * noise
    return image


def draw_patches(target: Tensor, config: RunConfig, rng: np.random.Generator) -> Patches | None:
    """Targets (B, K, Hc, Wc) -> corner int64 (B, 2) and size of the window of each finer level, each inside
    the one before; a share `config.train.foreground` of them lies around a foreground cell."""
    side = config.train.patch
    if side is None:
        return None
    b, _, height, width = target.shape
    centres = np.stack([rng.integers(0, height, b), rng.integers(0, width, b)], axis=1)
    foreground = (target.sum(dim=1) > 0.5).numpy()
    for i in range(b):
        cells = np.argwhere(foreground[i])
        if len(cells) and rng.random() < config.train.foreground:
            centres[i] = cells[rng.integers(len(cells))] + rng.integers(-side // 4, side // 4 + 1, 2)
    patches: Patches = []
    low = np.zeros((b, 2), dtype=np.int64)
    extent = np.array([height // config.model.scales[0], width // config.model.scales[0]])
    for coarser, scale in zip(config.model.scales, config.model.scales[1:], strict=False):
        low, extent = low * (coarser // scale), extent * (coarser // scale)
        size = np.minimum(extent, side)
        low = np.clip(centres // scale - size // 2, low, low + extent - size)
        extent = size
        patches.append((torch.from_numpy(low.copy()), (int(size[0]), int(size[1]))))
    return patches
