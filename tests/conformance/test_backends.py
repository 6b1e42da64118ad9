"""Every backend gives the states and the gradients of the definition, eager PyTorch in float64.

Tolerances: float32 has a relative precision of 6e-8; some ten steps with sums of a few hundred terms leave
about 1e-6 of the largest value. Allowed are 1e-5 for states and 1e-4 for gradients, of the largest magnitude
of each array. A mistake in one tap, border, cell or channel is larger by orders of magnitude.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.cases import CASES, TRAININGS, BackendCase, TrainingCase, forward_backward
from benchmarks.gathered import run_gathered
from mednca import engine
from mednca.backends import BACKENDS, choose, folded, load, native
from mednca.engine import binding
from mednca.fire import FireKey, fire_mask
from mednca.nca import Run, Window, run_eager
from mednca.rule import MedNCAConfig

STATE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

needs_compiler = pytest.mark.skipif(not engine.available(), reason=f"native backend: {engine.why_not()}")
backends = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=needs_compiler if name == "native" else ()) for name in BACKENDS]
)
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cache
def reference(case: BackendCase) -> tuple[Tensor, dict[str, Tensor]]:
    return forward_backward(run_eager, case, torch.float64)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def check(run: Run, case: BackendCase) -> None:
    last, gradients = forward_backward(run, case, torch.float32)
    expected_last, expected_gradients = reference(case)
    assert last.shape == expected_last.shape and last.dtype == torch.float32
    assert difference(last, expected_last) < STATE_TOLERANCE
    assert gradients.keys() == expected_gradients.keys() and len(gradients) == 8
    for name, expected in expected_gradients.items():
        assert difference(gradients[name], expected) < GRADIENT_TOLERANCE, name


@cases
@backends
def test_states_and_gradients_are_those_of_the_definition(backend: str, case: BackendCase) -> None:
    check(load(backend), case)


@backends
@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(2, 40),
    hidden=st.integers(1, 70),
    height=st.integers(2, 13),
    width=st.integers(2, 13),
    perception=st.sampled_from(["dense", "depthwise"]),
    corners=st.booleans(),
)
def test_any_size_is_right(
    backend: str, channels: int, hidden: int, height: int, width: int, perception: str, corners: bool
) -> None:
    config = MedNCAConfig(channels=channels, hidden=hidden, perception=perception)  # type: ignore[arg-type]
    check(load(backend), BackendCase("any", config, 2, height, width, 3, corners))


@cases
@backends
def test_the_same_inputs_give_the_same_bits(backend: str, case: BackendCase) -> None:
    first, first_gradients = forward_backward(load(backend), case, torch.float32)
    again, again_gradients = forward_backward(load(backend), case, torch.float32)
    assert torch.equal(first, again)
    assert all(torch.equal(first_gradients[name], again_gradients[name]) for name in first_gradients)


@cases
@backends
def test_without_gradients_the_states_are_the_same_and_the_image_never_changes(
    backend: str, case: BackendCase
) -> None:
    rule, state, key, window = case.make(torch.float32)
    before = state.clone()
    with torch.no_grad():
        last = load(backend)(rule, state, key, window, case.steps)
    assert not last.requires_grad
    assert torch.equal(state, before)
    assert torch.equal(last[:, : case.config.image_channels], state[:, : case.config.image_channels])
    assert torch.equal(last, forward_backward(load(backend), case, torch.float32)[0])


@backends
def test_no_step_changes_nothing(backend: str) -> None:
    rule, state, key, window = CASES[0].make(torch.float32)
    assert torch.equal(load(backend)(rule, state, key, window, 0), state)


@needs_compiler
@settings(deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    level=st.integers(0, 5),
    corner=st.integers(-(2**40), 2**40),
    item=st.integers(-(2**40), 2**40),
    rate=st.floats(1e-6, 1.0),
)
def test_native_masks_are_the_same_bits(seed: int, level: int, corner: int, item: int, rate: float) -> None:
    items, corners = torch.tensor([item, item + 1]), torch.tensor([[corner, -corner], [3, 5]])
    for window in (Window.at(items, corners, (5, 6)), Window.whole(items, 6, 5)):
        fires, counts = native.fire_masks(FireKey(seed, level), 3, window, rate)
        for step in range(3):
            expected = fire_mask(FireKey(seed, level), step, window.items, window.rows, window.columns, rate)
            assert torch.equal(fires[:, step].bool(), expected)
        assert torch.equal(counts, fires.sum(dim=(2, 3)))


@needs_compiler
def test_native_keeps_a_fifth_of_what_the_definition_keeps() -> None:
    case = BackendCase("memory", MedNCAConfig(), 1, 32, 32, 16)
    cell_steps = case.height * case.width * case.steps
    assert kept_bytes(run_eager, case) / cell_steps > 1000
    assert kept_bytes(native.run_native, case) / cell_steps < 210  # 3 x 32 floats x 0.5, masks, one state


def kept_bytes(run: Run, case: BackendCase) -> int:
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    rule, state, key, window = case.make(torch.float32)
    weights = {array.untyped_storage().data_ptr() for array in rule.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        last = run(rule, state, key, window, case.steps)
    assert last.requires_grad
    return sum(size for pointer, size in seen.items() if pointer not in weights)


@needs_compiler
def test_a_backward_pass_can_be_repeated() -> None:
    rule, state, key, window = CASES[0].make(torch.float32)
    loss = native.run_native(rule, state, key, window, 4).square().sum()
    first = torch.autograd.grad(loss, list(rule.parameters()), retain_graph=True)
    again = torch.autograd.grad(loss, list(rule.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@needs_compiler
def test_not_a_number_is_not_hidden() -> None:
    rule, state, key, window = CASES[0].make(torch.float32)
    state[0, 0, 3, 3] = torch.nan
    last = native.run_native(rule, state, key, window, 4)
    assert last[0, -1, 2:5, 2:5].isnan().any()


@needs_compiler
def test_native_refuses_what_it_cannot_run() -> None:
    rule, state, key, window = CASES[0].make(torch.float64)
    with pytest.raises(ValueError, match="float32"):
        native.run_native(rule, state, key, window, 1)
    with pytest.raises(ValueError, match="two rows"):
        native.run_native(rule.float(), state[:, :, :1].float(), key, window, 1)


def test_without_the_engine_the_folded_backend_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(binding, "_load", lambda: "no engine here")
    with caplog.at_level(logging.WARNING):
        assert choose("cpu") is load("folded")
    assert ["no engine here" in record.message for record in caplog.records] == [True]
    with pytest.raises(ValueError, match="no engine here"):
        choose("cpu", "native")
    with pytest.raises(RuntimeError, match="no engine here"):
        native.fire_masks(FireKey(0), 1, Window.whole(torch.arange(1), 2, 2), 0.5)


@needs_compiler
@cases
@pytest.mark.parametrize("kept", [0, 20_000])
def test_memory_that_is_saved_does_not_change_a_bit(
    kept: int, case: BackendCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, gradients = forward_backward(native.run_native, case, torch.float32)
    monkeypatch.setattr(native, "KEPT_BYTES", kept)
    again, again_gradients = forward_backward(native.run_native, case, torch.float32)
    assert torch.equal(last, again)
    assert all(torch.equal(gradients[name], again_gradients[name]) for name in gradients)


@cases
def test_what_the_benchmark_compares_with_is_right_too(case: BackendCase) -> None:
    check(run_gathered, case)


@cases
def test_folded_saves_memory_by_computing_again(case: BackendCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "KEPT_BYTES", 0)
    check(folded.run_folded, case)


@needs_compiler
def test_what_is_kept_grows_with_the_square_root_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "KEPT_BYTES", 0)
    sizes = [
        kept_bytes(native.run_native, BackendCase("memory", MedNCAConfig(), 1, 16, 16, steps)) - 256 * steps
        for steps in (16, 64, 256)  # a byte for each fire mask's cell grows with the steps
    ]
    state = 16 * 16 * 32 * 4
    assert sizes[0] < 10 * state and sizes[1] < 2.5 * sizes[0] and sizes[2] < 2.5 * sizes[1]


@needs_compiler
@pytest.mark.parametrize("case", TRAININGS, ids=lambda case: case.name)
def test_an_iteration_of_training_has_the_gradients_of_the_definition(case: TrainingCase) -> None:
    config = replace(case.config, steps=(6,) * len(case.config.scales))
    small = replace(case, batch=2, size=32, patch=case.patch and 8, config=config)
    gradients = {}
    for run, dtype in ((run_eager, torch.float64), (native.run_native, torch.float32)):
        model = small.model(dtype)
        small.loss(model, run).backward()
        gradients[run] = {key: array.grad for key, array in model.named_parameters()}
    for key, expected in gradients[run_eager].items():
        assert difference(gradients[native.run_native][key], expected) < GRADIENT_TOLERANCE, key


def test_the_choice_follows_the_device() -> None:
    assert choose("cuda:0") is load("folded")
    assert choose("cpu", "eager") is run_eager
    assert choose("cpu") is load("native" if engine.available() else "folded")
    with pytest.raises(ValueError, match="CPU only"):
        choose("cuda", "native")
    with pytest.raises(ValueError, match="eager, folded, native"):
        choose("cpu", "abacus")
