"""What is timed: a made-up slice, with the same fire masks for every engine.

Shapes: M modalities, K classes, I image channels, n channels, H x W cells.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca.errors import InputError
from mednca.fire import FireKey, fire_mask
from mednca.modelfile import ModelFile

Array = NDArray[Any]


@dataclass(frozen=True)
class Slice:
    """One slice to segment, the same for every engine.

    Attributes:
        model: With the steps that are to be run; it looks along its main axis alone.
        size: Rows and columns of the slice.
        kept: Whether fire masks are drawn once and kept, as for timing, or each time that one is needed.
    """

    model: ModelFile
    size: tuple[int, int]
    kept: bool = True

    def __post_init__(self) -> None:
        config = self.model.config
        one = replace(config, preprocess=config.preprocess.views[0])
        object.__setattr__(self, "model", replace(self.model, config=one))

    @property
    def name(self) -> str:
        """For tables."""
        return f"slice {self.size[0]} x {self.size[1]}"

    @functools.cached_property
    def scan(self) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
        """A made-up scan (M, X, Y, Z) of this one slice, and its spacing, which is the model's."""
        pre = self.model.config.preprocess
        shape, spacing = [1, 1, 1], [1.0, 1.0, 1.0]
        axes = (axis for axis in range(3) if axis != pre.axis)
        for axis, length, step in zip(axes, self.size, pre.spacing or (1.0, 1.0), strict=True):
            shape[axis], spacing[axis] = length, step
        return phantom(pre.modalities, (shape[0], shape[1], shape[2])), (spacing[0], spacing[1], spacing[2])

    @functools.cached_property
    def image(self) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
        """The slice as the levels want it, (I, H, W), and where in it the scan lies."""
        from mednca.slices import pad_to, prepare_image, with_context
        from mednca.volume import Volume

        pre, rule = self.model.config.preprocess, self.model.config.model
        slices = prepare_image(Volume(self.scan[0], np.diag([*self.scan[1], 1.0])), pre)
        stack, inside = pad_to(
            with_context(slices, np.arange(1), pre.context), rule.multiple, rule.smallest, pre.margin
        )
        return stack[0], inside

    def voxelwise(self, probability: Array) -> Array:
        """Probabilities as an engine gives them -> (K, X, Y, Z)."""
        from mednca.slices import restore
        from mednca.volume import Volume

        if probability.ndim == 4:
            return probability
        like = Volume(self.scan[0], np.diag([*self.scan[1], 1.0]))
        rows, columns = self.image[1]
        return restore(probability[None, :, rows, columns], like, self.model.config.preprocess)

    def fires(self, level: int, step: int) -> NDArray[np.bool_]:
        """The fire mask (1, H, W) of a step."""
        if not self.kept:
            return self._draw(level, step)
        if (level, step) not in self._masks:
            self._masks[level, step] = self._draw(level, step)
        return self._masks[level, step]

    @functools.cached_property
    def _masks(self) -> dict[tuple[int, int], NDArray[np.bool_]]:
        return {}

    def _draw(self, level: int, step: int) -> NDArray[np.bool_]:
        rule = self.model.config.model
        height, width = (length // rule.scales[level] for length in self.image[0].shape[1:])
        rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
        drawn: NDArray[np.bool_] = fire_mask(FireKey(0, level), step, 0, rows, columns, rule.fire_rate)
        return drawn


def phantom(modalities: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Shape -> a made-up scan (M, X, Y, Z), the same every time: blobs in noise."""
    random = np.random.default_rng(0)
    scan = random.normal(0.0, 0.1, (modalities, *shape)).astype(np.float32)
    for _ in range(8):
        blob = np.ones((1, 1, 1))
        for axis, length in enumerate(shape):
            centre, width = random.uniform(0.2, 0.8), random.uniform(0.05, 0.2)
            profile = np.exp(-(((np.arange(length) + 0.5) / length - centre) ** 2) / (2 * width**2))
            blob = blob * (profile.reshape([-1 if a == axis else 1 for a in range(3)]) if length > 1 else 1)
        scan += (random.uniform(0.3, 1.0, (modalities, 1, 1, 1)) * blob).astype(np.float32)
    return scan * 500 + 500


def with_steps(model: ModelFile, steps: Sequence[int] | None) -> ModelFile:
    """Model -> the same with other numbers of steps, one for each level; None keeps its own.

    Raises:
        InputError: If they are not one for each level, or below 1.
    """
    if steps is None:
        return model
    try:
        rule = replace(model.config.model, steps=tuple(steps))
    except ValueError as error:
        raise InputError(str(error)) from error
    return replace(model, config=replace(model.config, model=rule))
