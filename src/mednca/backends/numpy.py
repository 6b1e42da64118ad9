"""The whole model in NumPy: for machines that have neither the C library of this package nor PyTorch.

Only the cells that fire are computed. Between their neighbourhood and the hidden units stand nothing but
linear maps, so these are composed, once, into one matrix; a step gathers the neighbourhoods of the firing
cells, a part of them at a time, and is two products of matrices. Exact algebra, other rounding.

A state is kept with its border, which mirrors the cells inside it, as an array (H + 2, W + 2, n).

Shapes: I image channels, K classes, n channels, h hidden units, H x W cells; B slices of H0 x W0 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mednca.fire import FireKey, fire_mask
from mednca.rule import MedNCAConfig

if TYPE_CHECKING:
    from mednca.signals import Watch

Array = NDArray[Any]
#: Cells whose neighbourhoods are gathered at a time: what they need stays in a processor's cache.
CELLS = 1024


@dataclass(frozen=True)
class Rule:
    """The rule of one level as two matrices: `into` (9n, h) and `bias` (h,), then `out` (h, n).

    `out` is zero for the image channels, which never change.
    """

    into: Array
    bias: Array
    out: Array


def fold(config: MedNCAConfig, weights: Mapping[str, Array], dtype: Any = np.float32) -> list[Rule]:
    """Config and arrays by name (a model file's) -> the rule of each level, composed in float64."""
    n, h = config.channels, config.hidden
    rules = []
    for level in range(len(config.scales)):
        part = {
            name.removeprefix(f"levels.{level}."): np.asarray(array, np.float64)
            for name, array in weights.items()
        }
        own, *views = np.split(part["update_in.weight"], 3, axis=1)  # each (h, n)
        into = np.zeros((3, 3, n, h))
        into[1, 1] = own.T
        bias = part["update_in.bias"].copy()
        for view, name in zip(views, ("perceive_a", "perceive_b"), strict=True):
            kernel = part[f"{name}.weight"].transpose(2, 3, 1, 0)  # (3, 3, inputs, n)
            if config.perception == "depthwise":
                into += kernel.transpose(0, 1, 3, 2) * view.T
            else:
                into += kernel @ view.T
            bias += view @ part[f"{name}.bias"]
        out = part["update_out.weight"].T.copy()
        out[:, : config.image_channels] = 0
        rules.append(
            Rule(into.reshape(9 * n, h).astype(dtype), bias.astype(dtype), np.ascontiguousarray(out, dtype))
        )
    return rules


def probabilities(
    config: MedNCAConfig,
    rules: Sequence[Rule],
    image: Array,
    numbers: NDArray[np.int64],
    seed: int,
    watch: Watch | None = None,
) -> Array:
    """Slices (B, I, H0, W0), their numbers (B,) and a seed -> probabilities (B, K, H0, W0) of the classes.

    Height and width must be multiples of `config.multiple`, and at least `config.smallest`. With a watch,
    there must be one slice.
    """
    assert watch is None or len(image) == 1
    first, last = config.image_channels, config.image_channels + config.classes
    found = np.empty((len(image), config.classes, *image.shape[2:]), image.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted in the end
        for at, number in enumerate(numbers.tolist()):
            state = run_slice(config, rules, image[at], number, seed, watch)
            found[at] = softmax(state[..., first:last]).transpose(2, 0, 1)
    return found


def run_slice(
    config: MedNCAConfig,
    rules: Sequence[Rule],
    image: Array,
    item: int,
    seed: int,
    watch: Watch | None = None,
) -> Array:
    """Slice (I, H0, W0), the number that names its fire masks, and a seed -> its last state (H0, W0, n)."""
    state = np.zeros((0, 0, config.channels), image.dtype)
    for level, (rule, scale) in enumerate(zip(rules, config.scales, strict=True)):
        sharp = downscale(image, scale)
        if level == 0:
            state = np.zeros((*sharp.shape[1:], config.channels), image.dtype)
        else:
            factor = config.scales[level - 1] // scale
            state = state.repeat(factor, axis=0).repeat(factor, axis=1)
        state[..., : config.image_channels] = sharp.transpose(1, 2, 0)
        goes_on = None if watch is None else _looking(watch, config, level)
        steps = config.steps[level]
        state = run_level(rule, state, FireKey(seed, level), item, steps, config.fire_rate, goes_on)
    return state


def _looking(watch: Watch, config: MedNCAConfig, level: int) -> Callable[[int, Array], bool]:
    """Watch and level -> what takes the steps done and the state (H, W, n), and tells whether to go on."""
    first, last = config.image_channels, config.image_channels + config.classes

    def goes_on(done: int, state: Array) -> bool:
        return not watch.looks(level, done) or bool(watch(level, done, state[None, ..., first:last])[0])

    return goes_on


def run_level(
    rule: Rule,
    state: Array,
    key: FireKey,
    item: int,
    steps: int,
    fire_rate: float,
    goes_on: Callable[[int, Array], bool] | None = None,
) -> Array:
    """State (H, W, n) -> the state after the steps of a level, or after as many as `goes_on` wants: it is
    called before each of them, and in the end, with the steps done and the state."""
    height, width, n = state.shape
    hidden = len(rule.bias)
    padded = np.pad(state, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    cells = padded.reshape(-1, n)
    around = np.array([row * (width + 2) + column for row in (-1, 0, 1) for column in (-1, 0, 1)])
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    inside = (rows + 1) * (width + 2) + columns + 1
    seen = np.empty((CELLS, 9, n), state.dtype)
    units = np.empty((CELLS, hidden), state.dtype)
    for step in range(steps):
        if goes_on is not None and not goes_on(step, padded[1:-1, 1:-1]):
            break
        firing = inside[fire_mask(key, step, item, rows, columns, fire_rate)]
        change = np.empty((len(firing), n), state.dtype)
        for start in range(0, len(firing), CELLS):
            some = firing[start : start + CELLS]
            count = len(some)
            # Clipping changes nothing here: it spares `take` a copy that it makes to be able to raise.
            np.take(cells, some[:, None] + around, axis=0, out=seen[:count], mode="clip")
            unit = np.matmul(seen[:count].reshape(count, 9 * n), rule.into, out=units[:count])
            unit += rule.bias
            np.maximum(unit, 0, out=unit)
            np.matmul(unit, rule.out, out=change[start : start + count])
        cells[firing] += change
        padded[0], padded[-1] = padded[2], padded[-3]
        padded[:, 0], padded[:, -1] = padded[:, 2], padded[:, -3]
    if goes_on is not None:
        goes_on(steps, padded[1:-1, 1:-1])
    return padded[1:-1, 1:-1].copy()


def downscale(image: Array, scale: int) -> Array:
    """Image (I, H, W) -> (I, H / scale, W / scale), as `mednca.nca.downscale`: the mean of the central 2 x 2
    pixels of each block, or its central pixel where the scale is odd."""
    low, high = (scale - 1) // 2, scale // 2
    rows = (image[:, low::scale] + image[:, high::scale]) / 2
    found: Array = ((rows[:, :, low::scale] + rows[:, :, high::scale]) / 2).astype(image.dtype)
    return found


def softmax(logits: Array) -> Array:
    """Logits (..., K) -> probabilities (..., K) of the K foreground classes; the background's logit is 0."""
    largest = np.maximum(logits.max(axis=-1, keepdims=True), 0)
    powers = np.exp(logits - largest)
    shares: Array = powers / (powers.sum(axis=-1, keepdims=True) + np.exp(-largest))
    return shares


def one_piece(mask: NDArray[np.uint8], foreground: Array | None = None) -> NDArray[np.uint8]:
    """Mask (X, Y, Z) and maybe the foreground's probability -> the mask with all but the largest piece of its
    foreground removed; with the probability, all but the surest (`mednca.config.PredictConfig`).

    Voxels are joined by their faces; of two equal pieces the one with the first voxel stays. Every voxel
    starts as a piece of its own, named by its number; neighbours whose pieces differ join the one with
    the smaller name, until none differ.
    """
    inside = mask > 0
    number = np.full(mask.shape, -1, np.int64)
    number[inside] = np.arange(int(inside.sum()))
    pairs = []
    for axis in range(3):
        ahead, behind = np.moveaxis(number, axis, 0)[1:], np.moveaxis(number, axis, 0)[:-1]
        both = (ahead >= 0) & (behind >= 0)
        pairs.append(np.stack([ahead[both], behind[both]]))
    first, second = np.concatenate(pairs, axis=1)
    piece = np.arange(int(inside.sum()))
    while first.size:
        a, b = piece[first], piece[second]
        np.minimum.at(piece, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(above := piece[piece], piece):
            piece = above
        apart = piece[first] != piece[second]
        first, second = first[apart], second[apart]
    found = np.zeros_like(mask)
    if piece.size:
        sizes = np.bincount(piece)
        worth = sizes.astype(float)
        if foreground is not None:
            sums = np.bincount(piece, foreground[inside].astype(float))
            worth = np.where((4 * sizes >= sizes.max()) & (sizes > 0), sums / np.maximum(sizes, 1), -1)
        found[inside] = np.where(piece == worth.argmax(), mask[inside], 0)
    return found
