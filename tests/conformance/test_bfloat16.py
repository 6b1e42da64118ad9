"""Training with products of bfloat16 numbers: states and gradients are those of the definition with the same
roundings, near those of float32, and the same bits at each run.

Tolerances: bfloat16 has 8 bits, a relative precision of 2^-9 = 2e-3. Against the definition that rounds in
the same places, to float32's precision, a sum seldom falls on the other side of a rounding; such a difference
is 4e-3 of one number among many, so 1e-3 of the largest state and 5e-3 of the largest gradient are allowed.
Against float32 every number differs, and near 0 a hidden unit may be on in one and off in the other: the
states may differ by 1e-2 of the largest, a whole array of gradients by 5e-2 of its norm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import difference, kept_bytes
from torch import Tensor

from benchmarks.cases import CASES, BackendCase, forward_backward
from mednca import engine
from mednca.augment import sample_batch
from mednca.backends import choose, load, native, why_no_half
from mednca.checkpoint import RunFolder, TrainState
from mednca.config import RunConfig
from mednca.fire import FireKey, fire_mask
from mednca.learner import Learner, learning_rate
from mednca.nca import Backbone, Window
from mednca.rule import MedNCAConfig
from mednca.train import fit
from tests.small_training import config, slices

needs_bfloat16 = pytest.mark.skipif(
    not engine.has_bfloat16(), reason="needs the C engine and a processor with AVX512_BF16"
)
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def rounded(numbers: Tensor) -> Tensor:
    return numbers.bfloat16().to(numbers.dtype)


class Product(torch.autograd.Function):
    """(..., K) x (K, N) -> (..., N), whose factors are rounded; those of its gradients too."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(left), rounded(right))
        return rounded(left) @ rounded(right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        gradient = rounded(gradient)
        return gradient @ right.t(), left.flatten(0, -2).t() @ gradient.flatten(0, -2)


class Depthwise(torch.autograd.Function):
    """Neighbourhoods (..., 9, n), rounded, and filters (9, n) -> (..., n); its gradient is rounded."""

    @staticmethod
    def forward(ctx: Any, around: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(around), filters)
        return (rounded(around) * filters).sum(dim=-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        around, filters = ctx.saved_tensors
        gradient = rounded(gradient).unsqueeze(-2)
        return gradient * filters, (gradient * around).flatten(0, -3).sum(dim=0)


def run_rounded(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """`mednca.nca.run_eager` with the roundings of runtime/c/train16.h."""
    n, image = rule.config.channels, rule.config.image_channels
    for step in range(steps):
        around = F.pad(state, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
        near = around.permute(0, 2, 3, 4, 5, 1).flatten(3, 4)  # (B, H, W, 9, n)
        views = []
        for conv in (rule.perceive_a, rule.perceive_b):
            filters = conv.weight.permute(2, 3, 1, 0).flatten(0, 1)  # (9, n or 1, n)
            if rule.config.perception == "depthwise":
                views.append(Depthwise.apply(near, filters[:, 0]) + conv.bias)
            else:
                views.append(Product.apply(near.flatten(3, 4), filters.flatten(0, 1)) + conv.bias)
        perception = torch.cat([state.movedim(1, -1), *views], dim=-1)
        hidden = F.relu(Product.apply(perception, rule.update_in.weight.t()) + rule.update_in.bias)
        residual = Product.apply(hidden, rule.update_out.weight[image:].t())
        after = state + F.pad(residual, (image, 0)).movedim(-1, 1)
        fires = fire_mask(key, step, window.items, window.rows, window.columns, rule.config.fire_rate)
        state = torch.where(fires.unsqueeze(1), after, state)
    assert state.shape[1] == n
    return state


def check(case: BackendCase, tolerance: float = 5e-3) -> None:
    last, gradients = forward_backward(native.run_native_half, case, torch.float32)
    expected_last, expected = forward_backward(run_rounded, case, torch.float32)
    assert last.dtype == torch.float32
    assert difference(last, expected_last) < 1e-3
    assert gradients.keys() == expected.keys() and len(gradients) == 8
    for name in expected:
        assert difference(gradients[name], expected[name]) < tolerance, name


@needs_bfloat16
@cases
def test_states_and_gradients_are_those_of_the_definition_rounded(case: BackendCase) -> None:
    check(case)


@needs_bfloat16
@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(2, 90),
    hidden=st.integers(1, 140),
    height=st.integers(2, 13),
    width=st.integers(2, 13),
    perception=st.sampled_from(["dense", "depthwise"]),
    corners=st.booleans(),
)
def test_any_size_is_right(
    channels: int, hidden: int, height: int, width: int, perception: str, corners: bool
) -> None:
    shape = MedNCAConfig(channels=channels, hidden=hidden, perception=perception)  # type: ignore[arg-type]
    # With few hidden units one that is on here and off there is felt.
    check(BackendCase("any", shape, 2, height, width, 2, corners), tolerance=5e-2)


@needs_bfloat16
@cases
def test_states_and_gradients_are_near_those_of_float32(case: BackendCase) -> None:
    last, gradients = forward_backward(native.run_native_half, case, torch.float32)
    expected_last, expected = forward_backward(native.run_native, case, torch.float32)
    assert 0 < difference(last, expected_last) < 1e-2
    for name in expected:
        assert (gradients[name] - expected[name]).norm() < 5e-2 * expected[name].norm(), name


@needs_bfloat16
@cases
def test_the_bits_are_the_same_at_each_run_and_however_much_is_kept(
    case: BackendCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, gradients = forward_backward(native.run_native_half, case, torch.float32)
    image = case.config.image_channels
    state = case.make(torch.float32)[1]
    assert torch.equal(last[:, :image], state[:, :image])
    for kept in (native.KEPT_BYTES, 20_000, 0):
        monkeypatch.setattr(native, "KEPT_BYTES", kept)
        again, again_gradients = forward_backward(native.run_native_half, case, torch.float32)
        assert torch.equal(last, again)
        assert all(torch.equal(gradients[name], again_gradients[name]) for name in gradients)
    rule, state, key, window = case.make(torch.float32)
    with torch.no_grad():
        assert torch.equal(last, native.run_native_half(rule, state, key, window, case.steps))


@needs_bfloat16
def test_half_as_much_is_kept() -> None:
    case = BackendCase("memory", MedNCAConfig(), 1, 32, 32, 64)
    assert kept_bytes(native.run_native_half, case) < 0.52 * kept_bytes(native.run_native, case)


@needs_bfloat16
def test_not_a_number_is_not_hidden() -> None:
    rule, state, key, window = CASES[0].make(torch.float32)
    state[0, 0, 3, 3] = torch.nan
    last = native.run_native_half(rule, state, key, window, 4)
    expected = run_rounded(rule, state, key, window, 4).isnan()
    assert expected[0, -1].any() and torch.equal(last.isnan()[:, 1:], expected[:, 1:])
    last.sum().backward()
    assert rule.update_in.weight.grad is not None and rule.update_in.weight.grad.isnan().any()


# -- training


def losses(run_config: RunConfig) -> list[float]:
    """Configuration of a tiny training -> the loss of each iteration."""
    learner = Learner(run_config, TrainState(), "cpu")
    half = run_config.train.precision == "bfloat16"
    run, data = choose("cpu", "native", half=half), [slices(0), slices(1)]
    found = []
    for iteration in range(run_config.train.iterations):
        batch = sample_batch(data, run_config, (16, 16), np.random.default_rng(iteration))
        rate = learning_rate(run_config.train, iteration)
        found.append(learner.step(batch, iteration, rate, run)["loss"])
    return found


@needs_bfloat16
def test_a_training_learns_as_with_float32() -> None:
    longer = {"iterations": 150, "batch_size": 4, "coarse_weight": 0.0, "warmup": 10, "learning_rate": 1e-2}
    full, half = losses(config(**longer)), losses(config(**longer, precision="bfloat16"))
    assert full[:3] != half[:3] and full[0] == pytest.approx(half[0], abs=1e-3)
    first, last = sum(full[:20]) / 20, sum(full[-20:]) / 20
    assert last < 0.7 * first
    assert sum(half[-20:]) / 20 == pytest.approx(last, abs=0.1 * (first - last))


def run_fit(path: Path, run_config: RunConfig) -> RunFolder:
    """Run folder's path and configuration -> trained from wherever it stands."""
    if not path.exists():
        RunFolder.create(path, run_config, {"training": ["a"], "validation": []})
    run = RunFolder.open(path)
    fit(run, run_config, [slices(0), slices(1)], [], {"name": "tiny"}, progress=False)
    return run


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def stop_after(monkeypatch: pytest.MonkeyPatch, step: Callable[..., Any], iterations: int) -> None:
    """Make the training stop after so many iterations."""
    left = [iterations]

    def counted(self: Learner, *arguments: Any) -> dict[str, float]:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        found: dict[str, float] = step(self, *arguments)
        return found

    monkeypatch.setattr(Learner, "step", counted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's event writer, of its dependencies
@pytest.mark.parametrize("has_it", [pytest.param(True, marks=needs_bfloat16), False])
def test_a_stop_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(engine, "has_bfloat16", lambda: has_it)
    tiny = config(precision="bfloat16")
    whole, step = run_fit(tmp_path / "whole", tiny), Learner.step
    for stop in (0, 7, 6, 1000):
        stop_after(monkeypatch, step, stop)
        if stop < 1000:
            with pytest.raises(Killed):
                run_fit(tmp_path / "stopped", tiny)
        else:
            stopped = run_fit(tmp_path / "stopped", tiny)
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    assert stopped.metrics.read_bytes() == whole.metrics.read_bytes()
    lines = whole.metrics.read_text()
    assert lines.count("float32 instead of bfloat16") == (0 if has_it else 1)
    if has_it:
        plain = run_fit(tmp_path / "plain", config())
        assert plain.metrics.read_text() != lines


# -- where there is no such instruction


def test_float32_is_taken_and_said_where_there_is_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "has_bfloat16", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert choose("cpu", half=True) is choose("cpu")
    said = [record.message for record in caplog.records if "not bfloat16" in record.message]
    assert len(said) == 1 and (not engine.available() or "no AVX512_BF16" in said[0])
    if engine.available():
        rule, state, key, window = CASES[0].make(torch.float32)
        with pytest.raises(ValueError, match="AVX512_BF16"):
            native.run_native_half(rule, state, key, window, 1)


def test_the_choice_follows_device_and_engine(caplog: pytest.LogCaptureFixture) -> None:
    assert choose("cuda", half=True) is load("folded") and not why_no_half("cuda")
    assert not caplog.records
    assert choose("cpu", "eager", half=True) is load("eager")
    assert ["only 'native'" in record.message for record in caplog.records] == [True]
    if engine.has_bfloat16():
        assert choose("cpu", half=True) is native.run_native_half and not why_no_half("cpu")
