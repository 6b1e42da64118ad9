"""Which cells fire: the fire mask as a pure function of integers, the same bits in every engine.

A counter-based generator: the seed, the level, the step, the item and the cell's row and column are absorbed
one after the other into a 32-bit word, and a cell fires where the last word is below the fire rate. Nothing
is drawn from a stream, so a mask does not depend on device, batch, tile, thread or order; two windows of one
grid agree where they overlap. The mixing function is the 32-bit finaliser of MurmurHash3 (A. Appleby, public
domain).

The functions use only operators that NumPy arrays, PyTorch tensors and Python's integers share, and they
return what they are given: there is one definition for all.

Shapes: B items, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: A NumPy array or a PyTorch tensor of 64-bit integers, or a Python integer.
Integers = Any

_WORD = 0xFFFFFFFF
#: Resolution of the fire rate: hashes are compared through their upper 24 bits.
RATE_BITS = 24


@dataclass(frozen=True)
class FireKey:
    """The name of one random stream.

    Attributes:
        seed: Any integer; its lower 32 bits count.
        level: Level of the pyramid, 0 is the coarsest.
    """

    seed: int
    level: int = 0


def mix(word: Integers) -> Integers:
    """Word in [0, 2^32) -> word in [0, 2^32), a bijection in which every input bit moves half of the output
    bits."""
    word = word ^ (word >> 16)
    word = (word * 0x85EBCA6B) & _WORD
    word = word ^ (word >> 13)
    word = (word * 0xC2B2AE35) & _WORD
    return word ^ (word >> 16)


def absorb(word: Integers, value: Integers) -> Integers:
    """Words and values (they broadcast) -> words that depend on both, in order."""
    return mix((word + value + 0x9E3779B9) & _WORD)


def fire_mask(
    key: FireKey, step: int, items: Integers, rows: Integers, columns: Integers, fire_rate: float
) -> Integers:
    """Key, step and coordinates -> boolean mask, True where the cell updates in this step.

    Args:
        key: Seed and level.
        step: Number of the step within its level, from 0.
        items: int64 (B, 1, 1), what tells the images of a stream apart: slice index, or running number in
            training.
        rows: int64 (B or 1, H, 1), row of each cell in the whole grid of this level.
        columns: int64 (B or 1, 1, W), column of each cell in the whole grid of this level.
        fire_rate: Chance to update in (0, 1], resolved to 2^-24.

    Returns:
        bool (B, H, W), of the kind of the coordinates.
    """
    word = absorb(absorb(absorb(0, key.seed & _WORD), key.level), step)
    cells = absorb(absorb(absorb(word, items), rows), columns)
    return (cells >> (32 - RATE_BITS)) < round(fire_rate * (1 << RATE_BITS))
