"""Fire masks: a pure function of integers, the same bits everywhere, fair, and without pattern."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.fire import FireKey, fire_mask, mix

# Statistical bounds are at five standard deviations. The masks are fixed, so a test passes always or never.
SIGMAS = 5.0


def grid(
    seed: int = 1,
    level: int = 0,
    step: int = 0,
    items: tuple[int, ...] = (0,),
    origin: tuple[int, int] = (0, 0),
    size: tuple[int, int] = (512, 512),
    rate: float = 0.5,
) -> Any:
    """Where and when -> mask bool (B, H, W) by NumPy."""
    numbers = np.asarray(items, dtype=np.int64).reshape(-1, 1, 1)
    rows = (origin[0] + np.arange(size[0], dtype=np.int64)).reshape(1, -1, 1)
    columns = (origin[1] + np.arange(size[1], dtype=np.int64)).reshape(1, 1, -1)
    return fire_mask(FireKey(seed, level), step, numbers, rows, columns, rate)


def by_the_book(*counters: int) -> int:
    """Seed, level, step, item, row, column -> a cell's 24 bits: the definition once more, by itself."""
    word = 0
    for value in counters:
        word = (word + value + 0x9E3779B9) % 2**32
        word ^= word >> 16
        word = word * 0x85EBCA6B % 2**32
        word ^= word >> 13
        word = word * 0xC2B2AE35 % 2**32
        word ^= word >> 16
    return word // 2**8


@pytest.mark.parametrize(("word", "mixed"), [(0, 0), (1, 0x514E28B7), (0xFFFFFFFF, 0x81F16F39)])
def test_mix_is_the_finaliser_of_murmurhash3(word: int, mixed: int) -> None:
    # MurmurHash3_x86_32 of the empty string is this function of the seed; these are its published values.
    assert mix(word) == mixed


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(-(2**40), 2**40),
    level=st.integers(0, 7),
    step=st.integers(0, 300),
    item=st.integers(0, 2**31),
    row=st.integers(0, 5000),
    column=st.integers(0, 5000),
    rate=st.floats(0.01, 1.0),
)
def test_numpy_torch_and_python_draw_the_same_bits(
    seed: int, level: int, step: int, item: int, row: int, column: int, rate: float
) -> None:
    height, width = 3, 4
    key = FireKey(seed, level)
    by_numpy = grid(seed, level, step, (item, item + 1), (row, column), (height, width), rate)
    by_torch = fire_mask(
        key,
        step,
        torch.tensor([item, item + 1]).view(-1, 1, 1),
        torch.arange(row, row + height).view(1, -1, 1),
        torch.arange(column, column + width).view(1, 1, -1),
        rate,
    )
    assert by_numpy.dtype == np.bool_ and by_torch.dtype == torch.bool
    assert by_numpy.shape == (2, height, width)
    assert np.array_equal(by_numpy, by_torch.numpy())
    for b, r, c in itertools.product(range(2), range(height), range(width)):
        by_integers = fire_mask(key, step, item + b, row + r, column + c, rate)
        assert by_integers == by_numpy[b, r, c]
        bits = by_the_book(seed, level, step, item + b, row + r, column + c)
        assert by_integers == (bits < round(rate * 2**24))


def test_the_same_key_gives_the_same_mask_and_only_the_lower_32_bits_of_the_seed_count() -> None:
    assert np.array_equal(grid(seed=5), grid(seed=5))
    assert np.array_equal(grid(seed=5), grid(seed=5 + 2**32))
    assert np.array_equal(grid(seed=-1), grid(seed=2**32 - 1))


def test_a_cell_fires_where_its_bits_are_below_the_rate_and_not_where_they_equal_it() -> None:
    bits = by_the_book(1, 0, 2, 3, 4, 5)
    assert not fire_mask(FireKey(1, 0), 2, 3, 4, 5, bits / 2**24)
    assert fire_mask(FireKey(1, 0), 2, 3, 4, 5, (bits + 1) / 2**24)


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 0.9])
def test_the_share_of_cells_that_fire_is_the_fire_rate(rate: float) -> None:
    mask = grid(items=(0, 1, 2, 3), rate=rate)
    assert abs(mask.mean() - rate) < SIGMAS * math.sqrt(rate * (1 - rate) / mask.size)


def test_at_rate_1_every_cell_fires() -> None:
    assert grid(rate=1.0).all()


def test_a_higher_rate_only_adds_cells() -> None:
    assert not (grid(rate=0.3) & ~grid(rate=0.6)).any()


@pytest.mark.parametrize(
    "other",
    [
        {"origin": (1, 0)},
        {"origin": (0, 1)},
        {"origin": (1, 1)},
        {"origin": (8, 0)},
        {"origin": (0, 64)},
        {"step": 1},
        {"step": 63},
        {"level": 1},
        {"items": (1,)},
        {"items": (256,)},
        {"seed": 2},
        {"seed": 2**31},
    ],
    ids=str,
)
def test_masks_of_neighbours_steps_levels_items_and_seeds_are_not_correlated(other: dict[str, Any]) -> None:
    one, two = grid() - 0.5, grid(**other) - 0.5
    correlation = float((one * two).mean() / 0.25)
    assert abs(correlation) < SIGMAS / math.sqrt(one.size)


def test_rows_and_columns_are_told_apart() -> None:
    square = grid(size=(256, 256))[0]
    agreement = float((square == square.T)[np.triu_indices(256, 1)].mean())
    assert abs(agreement - 0.5) < SIGMAS * 0.5 / math.sqrt(256 * 255 / 2)


def test_all_patterns_of_2_by_2_cells_are_equally_frequent() -> None:
    mask = grid()[0].astype(np.int64)
    patterns = mask[::2, ::2] + 2 * mask[1::2, ::2] + 4 * mask[::2, 1::2] + 8 * mask[1::2, 1::2]
    counts = np.bincount(patterns.ravel(), minlength=16)
    expected = patterns.size / 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 50.5  # 15 degrees of freedom: exceeded once in 100,000


def test_a_cells_number_of_updates_spreads_as_coin_tosses_do() -> None:
    updates = sum(grid(step=step, size=(64, 64)).astype(np.int64) for step in range(64))
    assert updates.var() == pytest.approx(16, rel=SIGMAS * math.sqrt(2 / 64**2))  # 64 tosses: variance 64 / 4


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.data(),
)
def test_a_window_sees_the_same_mask_as_the_whole_grid(
    origin: tuple[int, int], size: tuple[int, int], data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, 99))
    whole = grid(step=step, size=(100, 100))
    window = grid(step=step, origin=origin, size=size)
    assert np.array_equal(window, whole[:, origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]])
