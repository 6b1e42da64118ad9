"""What a configuration costs: multiply-adds of a slice, exactly; seconds and bytes of training, roughly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mednca.config import RunConfig
from mednca.fingerprint import Fingerprint
from mednca.rule import MedNCAConfig, multiply_adds, parameters
from mednca.slices import padded_size, plane_size

#: The engines compute on vectors of this many channels or hidden units.
LANES = 16
# Time and memory of training, fitted to measured settings (n 16 to 32, h 48 to 128, canvases of 48 x 64 to
# 192 x 144) on one core of an AMD EPYC server with other work beside it.
UPDATE_RATE = 2.9e10  # multiply-adds of the update per second, forward and backward
CELL_SECONDS = (1.24e-7, 5.5e-9)  # of a firing cell besides, and the same per channel
PIXEL_SECONDS = (3.6e-8, 1.6e-8)  # of a drawn training pixel, and the same per image channel
FIXED_BYTES = 480e6  # Python, PyTorch and one batch


@dataclass(frozen=True)
class Cost:
    """What a configuration costs, for a slice of the data's median shape.

    Attributes:
        parameters: Of the model.
        multiply_adds: Of a slice along the main axis, with padding and ensemble, as if every cell fired;
            where a scan is looked at along several axes, of the scan divided by these slices.
        fired_multiply_adds: The same without the cells that do not fire, in the mean.
        ratio_64: How many times as many the paper's model takes on the same grid: two levels, dense, n = 32,
            h = 128, 64 steps each.
        ratio_16: The same with 16 steps each, as the authors' later code has it.
        iteration_seconds: Of training, on one core; a rough estimate.
        training_bytes: Memory of training; a rough estimate.
    """

    parameters: int
    multiply_adds: int
    fired_multiply_adds: int
    ratio_64: float
    ratio_16: float
    iteration_seconds: float
    training_bytes: float


def cost_of(config: RunConfig, data: Fingerprint) -> Cost:
    """Configuration and fingerprint -> what it costs on such data."""
    rule, margin, views = config.model, config.preprocess.margin, config.preprocess.views
    sizes = [plane_size(data.shape, data.spacing, view) for view in views]
    slices = [data.shape[view.axis] for view in views]
    scan = sum(n * slice_multiply_adds(config, size) for n, size in zip(slices, sizes, strict=True))
    here, size = scan / slices[0], sizes[0]
    height, width = padded_size(padded_size(size, rule.multiple, rule.smallest, margin), 4, 8)
    paper = {steps: multiply_adds(MedNCAConfig(steps=(steps, steps)), height, width) for steps in (64, 16)}
    return Cost(
        parameters=parameters(config.model),
        multiply_adds=round(here),
        fired_multiply_adds=round(here * config.model.fire_rate),
        ratio_64=round(paper[64] / here, 2),
        ratio_16=round(paper[16] / here, 2),
        iteration_seconds=round(iteration_seconds(config), 3),
        training_bytes=training_bytes(config, data),
    )


def slice_multiply_adds(config: RunConfig, size: tuple[int, int]) -> int:
    """Configuration and the size of a slice as the model sees it -> multiply-adds, every cell computed, with
    padding and ensemble."""
    rule, margin = config.model, config.preprocess.margin
    height, width = padded_size(size, rule.multiple, rule.smallest, margin)
    return config.predict.ensemble * multiply_adds(rule, height, width)


def iteration_seconds(config: RunConfig) -> float:
    """Configuration with a canvas -> rough seconds of one core for an iteration of training."""
    height, width = config.train.canvas or (256, 256)
    side = config.train.patch or max(height, width)
    model = config.model
    fired = 0.0
    for level, (scale, steps) in enumerate(zip(model.scales, model.steps, strict=True)):
        rows, columns = height // scale, width // scale
        if level:
            rows, columns = min(rows, side), min(columns, side)
        fired += rows * columns * steps * model.fire_rate
    n, h = (-(-number // LANES) * LANES for number in (model.channels, model.hidden))
    update = 4 * n * h + (18 * n * n if model.perception == "dense" else 0)
    cells = fired * (update / UPDATE_RATE + CELL_SECONDS[0] + CELL_SECONDS[1] * n)
    pixels = height * width * (PIXEL_SECONDS[0] + PIXEL_SECONDS[1] * model.image_channels)
    return config.train.batch_size * (cells + pixels)


def training_bytes(config: RunConfig, data: Fingerprint) -> float:
    """Configuration and fingerprint -> rough bytes of memory of training: all scans, and as slices they and
    their copies with artefacts."""
    scans = data.cases * math.prod(data.shape) * (4 * data.modalities + 1)
    sets = 1 + (config.augment.copies if config.augment.artefacts else 0)
    return FIXED_BYTES + scans + sets * copy_bytes(config, data)


def copy_bytes(config: RunConfig, data: Fingerprint) -> float:
    """Configuration and fingerprint -> rough bytes of one copy of all scans, as slices."""
    cells = 0
    for view in config.preprocess.views:
        cells += data.shape[view.axis] * math.prod(plane_size(data.shape, data.spacing, view))
    return data.cases * cells * (4 * data.modalities + 1)
