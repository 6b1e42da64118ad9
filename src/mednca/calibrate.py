"""The range of a model's numbers: what the engine `int16` must know before it can round anything.

A model is run on some slices, in NumPy and in the open, and the largest magnitudes are kept: of each channel
of the state, of each view of the neighbourhood, and of each hidden unit before its ReLU. They become part of
the model file (`ModelFile.range`); the engine leaves as much room again above them.

Shapes: S slices, M modalities, I image channels, n channels, h hidden units, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca.backends.numpy import downscale
from mednca.fire import FireKey, fire_mask
from mednca.modelfile import ModelFile
from mednca.rule import MedNCAConfig
from mednca.slices import pad_to, with_context

#: Pixels that are looked at: enough for what a model meets, few enough for seconds.
PIXELS = 1 << 19
#: Cells whose neighbourhoods are gathered at a time.
CELLS = 4096

Array = NDArray[np.float32]


def measure_range(
    model: ModelFile,
    images: Sequence[Array],
    *,
    seed: int = 0,
    pixels: int = PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Model and prepared scans -> the largest magnitudes that it reaches on some of their slices.

    Args:
        model: The model; a range that it has is not looked at.
        images: Prepared scans (S, M, H, W), as `mednca.slices.prepare_image` makes them, along each axis of
            the model.
        seed: Draws the slices and names the fire masks.
        pixels: About how many pixels to look at; at least one slice is.
        progress: Called with pixels done and pixels in all.

    Returns:
        {"levels": [{"state": [n], "views": [2n], "hidden": [h]}, ...]}, four digits of each number.
    """
    model.require_automaton("a calibration")
    config, preprocess = model.config.model, model.config.preprocess
    rules = [Measured(config, model.weights, level) for level in range(len(config.scales))]
    every = [(scan, number) for scan, image in enumerate(images) for number in range(len(image))]
    total = min(pixels, sum(image[:, 0].size for image in images))
    done = 0
    for at in np.random.default_rng(seed).permutation(len(every)).tolist():
        scan, number = every[at]
        image = with_context(images[scan], np.array([number]), preprocess.context)
        padded, _ = pad_to(image, config.multiple, config.smallest, preprocess.margin)
        watch(config, rules, padded[0].astype(np.float32), item=number, seed=seed)
        done += image[0, 0].size
        if progress:
            progress(min(done, total), total)
        if done >= pixels:
            break
    return {"levels": [rule.told() for rule in rules]}


def watch(config: MedNCAConfig, rules: Sequence[Measured], image: Array, *, item: int, seed: int) -> Array:
    """Image (I, H, W) -> its last state (H, W, n); the rules remember what they saw."""
    state = np.zeros((0, 0, config.channels), np.float32)
    for level, (rule, scale) in enumerate(zip(rules, config.scales, strict=True)):
        sharp = downscale(image, scale).transpose(1, 2, 0)
        if level == 0:
            state = np.zeros((*sharp.shape[:2], config.channels), np.float32)
        else:
            factor = config.scales[level - 1] // scale
            state = state.repeat(factor, axis=0).repeat(factor, axis=1)
        state[..., : config.image_channels] = sharp
        rows, columns = np.arange(sharp.shape[0])[:, None], np.arange(sharp.shape[1])[None, :]
        for step in range(config.steps[level]):
            fires = fire_mask(FireKey(seed, level), step, item, rows, columns, config.fire_rate)
            state = rule.step(state, fires)
    return state


class Measured:
    """The rule of one level, which remembers the largest magnitude of everything that it computes."""

    def __init__(self, config: MedNCAConfig, weights: dict[str, Array], level: int) -> None:
        part = {
            name.removeprefix(f"levels.{level}."): array
            for name, array in weights.items()
            if name.startswith(f"levels.{level}.")
        }
        self.config = config
        filters = np.stack([part["perceive_a.weight"], part["perceive_b.weight"]])
        self.filters = filters.transpose(3, 4, 2, 0, 1).reshape(9, filters.shape[2], -1)  # (9, n or 1, 2n)
        self.bias = np.concatenate([part["perceive_a.bias"], part["perceive_b.bias"]])
        self.into, self.into_bias = part["update_in.weight"].T, part["update_in.bias"]
        self.out = part["update_out.weight"].T.copy()
        self.out[:, : config.image_channels] = 0
        self.largest = {
            "state": np.zeros(config.channels, np.float32),
            "views": np.zeros(2 * config.channels, np.float32),
            "hidden": np.zeros(config.hidden, np.float32),
        }

    def step(self, state: Array, fires: NDArray[np.bool_]) -> Array:
        """State (H, W, n) and fire mask (H, W) -> the next state."""
        height, width, n = state.shape
        padded = np.pad(state, ((1, 1), (1, 1), (0, 0)), mode="reflect")
        near = [padded[y : y + height, x : x + width].reshape(-1, n) for y in range(3) for x in range(3)]
        change = np.empty((height * width, n), np.float32)
        for start in range(0, len(change), CELLS):
            seen = np.stack([part[start : start + CELLS] for part in near], axis=1)  # (cells, 9, n)
            if self.config.perception == "depthwise":
                views = np.einsum("ctn,tvn->cvn", seen, self.filters.reshape(9, 2, n)).reshape(-1, 2 * n)
            else:
                views = seen.reshape(-1, 9 * n) @ self.filters.reshape(9 * n, 2 * n)
            views += self.bias
            hidden = np.concatenate([seen[:, 4], views], axis=1) @ self.into + self.into_bias
            self.remember("views", views)
            self.remember("hidden", hidden)
            change[start : start + CELLS] = np.maximum(hidden, 0) @ self.out
        following: Array = state + change.reshape(state.shape) * fires[..., None]
        self.remember("state", state.reshape(-1, n))
        self.remember("state", following.reshape(-1, n))
        return following

    def remember(self, name: str, values: Array) -> None:
        """Numbers (cells, k) of one kind -> their largest magnitudes, kept."""
        np.maximum(self.largest[name], np.abs(values).max(axis=0), out=self.largest[name])

    def told(self) -> dict[str, list[float]]:
        """What was seen, in four digits."""
        return {
            name: [float(f"{value:.4g}") for value in values.tolist()]
            for name, values in self.largest.items()
        }
