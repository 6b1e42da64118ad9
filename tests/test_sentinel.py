"""The watch: healthy runs are left alone, stuck starts and cliffs are told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mednca.sentinel import Sentinel, Verdict


def verdicts(losses: list[float], dice: list[float], foreground: float = 0.1) -> list[Verdict]:
    """Loss and Dice of each window of 10 iterations -> the verdict at its end; patience 30."""
    watch = Sentinel(patience=30, window=10)
    found: list[Verdict] = []
    for window, (loss, overlap) in enumerate(zip(losses, dice, strict=True)):
        every = [watch.observe(10 * window + i, loss, overlap, foreground, 1.0) for i in range(10)]
        assert every[:-1] == ["watching"] * 9
        found.append(every[-1])
    return found


def test_a_run_that_learns_is_healthy() -> None:
    assert verdicts([1.5, 1.2, 0.9, 0.5, 0.3], [0.1, 0.2, 0.4, 0.7, 0.85]) == ["healthy"] * 5


def test_the_trivial_answer_is_stuck_once_patience_is_over() -> None:
    trivial = 2 * 0.1 / 1.1  # Dice of calling every cell foreground
    assert verdicts([1.4] * 5, [trivial] * 5) == ["healthy"] * 3 + ["stuck"] * 2
    # Where nearly all is foreground, a high Dice proves nothing.
    assert verdicts([1.0] * 4, [2 * 0.9 / 1.9] * 4, foreground=0.9)[-1] == "stuck"


def test_a_run_that_has_learnt_is_never_called_stuck() -> None:
    assert verdicts([1.0, 0.9, 0.9, 0.9, 0.9], [0.5, 0.18, 0.18, 0.18, 0.18]) == ["healthy"] * 5


def test_a_cliff_is_diverged_and_a_bump_is_not() -> None:
    assert verdicts([0.3, 0.6, 0.3], [0.8, 0.6, 0.8]) == ["healthy"] * 3
    assert verdicts([0.3, 0.7, 0.3], [0.8, 0.3, 0.8]) == ["healthy", "diverged", "healthy"]


def test_a_single_batch_with_a_huge_loss_is_no_cliff() -> None:
    watch = Sentinel(patience=30, window=10)
    losses = [0.3] * 10 + [0.3] * 5 + [40.0] + [0.3] * 4 + [2.0] * 6 + [0.3] * 4
    found = [watch.observe(i, loss, 0.8, 0.1, 1.0) for i, loss in enumerate(losses)]
    assert [found[i] for i in (9, 19, 29)] == ["healthy", "healthy", "diverged"]
    assert watch.losses == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_diverged_at_once(bad: float) -> None:
    assert Sentinel(30).observe(0, bad, 0.5, 0.1, 1.0) == "diverged"
    assert Sentinel(30).observe(0, 0.5, 0.5, 0.1, bad) == "diverged"


@given(st.lists(st.floats(0.05, 1.5), min_size=1, max_size=8))
def test_a_falling_loss_is_never_diverged(losses: list[float]) -> None:
    falling = sorted(losses, reverse=True)
    assert "diverged" not in verdicts(falling, [0.5] * len(falling))
