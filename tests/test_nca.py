"""The method: one step as the paper's formula has it, and the guarantees that everything else builds on.

All in float64. TOLERANCE is for sums whose order may differ (a convolution of another size or batch takes
another path through the library); the values are of order one, and rounding leaves about 1e-14 after so few
steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mednca.fire import FireKey
from mednca.nca import Backbone, MedNCA, Window, downscale, lift, probabilities, run_eager
from mednca.rule import MedNCAConfig

TOLERANCE = 1e-11
PERCEPTIONS = ["dense", "depthwise"]

properties = settings(deadline=None, max_examples=40)


def small(**settings_: Any) -> MedNCAConfig:
    """Settings -> a config of few channels, with these settings."""
    return MedNCAConfig(**{"channels": 6, "hidden": 12, "steps": (3, 3), **settings_})


def lively(config: MedNCAConfig, seed: int = 0) -> MedNCA:
    """Config -> float64 model whose rules do something (a fresh one has update_out zero and does nothing)."""
    generator = torch.Generator().manual_seed(seed)
    model = MedNCA(config).double().requires_grad_(False)
    for array in model.parameters():
        fan_in = array[0].numel() if array.ndim > 1 else 4
        array.copy_(torch.randn(array.shape, generator=generator, dtype=torch.float64) * fan_in**-0.5)
    return model


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Shape -> float64 normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Fail where two tensors of the same shape differ by more than rounding."""
    assert actual.shape == expected.shape
    assert actual.numel() > 0
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


# -- one step


def by_the_paper(rule: Backbone, state: np.ndarray, fires: np.ndarray) -> np.ndarray:
    """State (n, H, W) and fires (H, W) -> next state: section 3.2 cell by cell, without torch."""
    config = rule.config
    array = {name: value.numpy() for name, value in rule.state_dict().items()}
    around = np.pad(state, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    result = state.copy()
    for row, column in np.argwhere(fires):
        neighbours = around[:, row : row + 3, column : column + 3]
        views = [state[:, row, column]]
        for name in ("perceive_a", "perceive_b"):
            kernel = array[f"{name}.weight"]
            if config.perception == "dense":
                view = np.einsum("oiyx,iyx->o", kernel, neighbours)
            else:
                view = np.einsum("oyx,oyx->o", kernel[:, 0], neighbours)
            views.append(view + array[f"{name}.bias"])
        hidden = np.maximum(array["update_in.weight"] @ np.concatenate(views) + array["update_in.bias"], 0)
        residual = array["update_out.weight"] @ hidden
        result[config.image_channels :, row, column] += residual[config.image_channels :]
    return result


@pytest.mark.parametrize("perception", PERCEPTIONS)
@pytest.mark.parametrize("image_channels", [1, 2])
def test_a_step_is_the_papers_formula(perception: str, image_channels: int) -> None:
    rule = lively(small(perception=perception, image_channels=image_channels)).levels[0]
    assert isinstance(rule, Backbone)
    state = noise(1, 6, 5, 7)
    fires = noise(1, 5, 7, seed=2) > 0
    expected = torch.from_numpy(by_the_paper(rule, state[0].numpy(), fires[0].numpy()))
    assert_close(rule.step(state, fires)[0], expected)


def test_an_untrained_rule_does_nothing() -> None:
    model = MedNCA(MedNCAConfig(channels=8, hidden=16, steps=(4, 4)))
    image = torch.rand(2, 1, 16, 16)
    states = model(image, seed=0, items=torch.arange(2))
    assert torch.equal(states[-1][0], model.levels[0].seed(image))
    assert not model.logits(states[-1][0]).any()


def test_the_seed_is_the_image_and_zeros() -> None:
    rule = Backbone(small(image_channels=2))
    image = torch.rand(1, 2, 4, 5)
    state = rule.seed(image)
    assert state.shape == (1, 6, 4, 5)
    assert torch.equal(state[:, :2], image) and not state[:, 2:].any()


@properties
@given(
    image_channels=st.integers(1, 3),
    perception=st.sampled_from(PERCEPTIONS),
    fire_rate=st.sampled_from([0.3, 0.5, 1.0]),
    scales=st.sampled_from([(1,), (4, 1), (4, 2, 1), (3, 1)]),
    seed=st.integers(0, 1000),
)
def test_the_image_channels_never_change(
    image_channels: int, perception: str, fire_rate: float, scales: tuple[int, ...], seed: int
) -> None:
    config = small(
        image_channels=image_channels,
        perception=perception,
        fire_rate=fire_rate,
        scales=scales,
        steps=(3,) * len(scales),
    )
    image = noise(2, image_channels, 12, 24, seed=seed)
    states = lively(config, seed)(image, seed=seed, items=torch.arange(2))
    assert len(states) == len(scales)
    for (state, _), scale in zip(states, scales, strict=True):
        assert torch.equal(state[:, :image_channels], downscale(image, scale))
        assert state[:, image_channels:].any()


def test_cells_that_do_not_fire_keep_their_state_and_the_others_change() -> None:
    rule = lively(small()).levels[0]
    assert isinstance(rule, Backbone)
    state, fires = noise(1, 6, 8, 8), noise(1, 8, 8, seed=2) > 0
    changed = (rule.step(state, fires) != state).any(dim=1)
    assert torch.equal(changed, fires)


def test_gradients_reach_every_array_of_every_level() -> None:
    model = lively(small()).requires_grad_(True)
    state, _ = model(noise(1, 1, 16, 16), seed=0, items=torch.arange(1))[-1]
    model.logits(state).square().mean().backward()
    for name, array in model.named_parameters():
        assert array.grad is not None and array.grad.abs().max() > 0, name


# -- invariances


@properties
@given(
    shift=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    perception=st.sampled_from(PERCEPTIONS),
    seed=st.integers(0, 1000),
)
def test_at_fire_rate_1_a_rule_commutes_with_translation(
    shift: tuple[int, int], perception: str, seed: int
) -> None:
    steps, size = 4, 20
    rule = lively(small(perception=perception, fire_rate=1.0), seed).levels[0]
    assert isinstance(rule, Backbone)
    scene = noise(1, 6, size + 6, size + 6, seed=seed)
    window = Window.whole(torch.arange(1), size, size)
    down, right = shift
    here = run_eager(rule, scene[..., :size, :size], FireKey(0), window, steps)
    moved = scene[..., down : down + size, right : right + size]
    there = run_eager(rule, moved, FireKey(0), window, steps)
    # What lies `steps` cells or more from the border of both has not heard of either border.
    assert_close(
        there[..., steps : size - steps - down, steps : size - steps - right],
        here[..., steps + down : size - steps, steps + right : size - steps],
    )


@properties
@given(shift=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 1000))
def test_at_fire_rate_1_a_model_commutes_with_translation_by_whole_coarse_cells(
    shift: tuple[int, int], seed: int
) -> None:
    model = lively(small(scales=(2, 1), steps=(3, 3), fire_rate=1.0), seed)
    size, margin = 32, 2 * 3 + 3 + 1
    scene = noise(1, 1, size + 6, size + 6, seed=seed)
    down, right = 2 * shift[0], 2 * shift[1]

    def final(image: Tensor) -> Tensor:
        return model(image, seed=0, items=torch.arange(1))[-1][0]

    here = final(scene[..., :size, :size])
    there = final(scene[..., down : down + size, right : right + size])
    assert_close(
        there[..., margin : size - margin - down, margin : size - margin - right],
        here[..., margin + down : size - margin, margin + right : size - margin],
    )


@properties
@given(
    top=st.integers(0, 24),
    left=st.integers(0, 22),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    perception=st.sampled_from(PERCEPTIONS),
    seed=st.integers(0, 1000),
)
def test_a_tile_with_a_halo_of_as_many_cells_as_steps_equals_the_whole(
    top: int, left: int, height: int, width: int, perception: str, seed: int
) -> None:
    steps, rows, columns = 4, 25, 23
    rule = lively(small(perception=perception), seed).levels[0]
    assert isinstance(rule, Backbone)
    state, items = noise(1, 6, rows, columns, seed=seed), torch.tensor([seed])
    whole = run_eager(rule, state, FireKey(seed), Window.whole(items, rows, columns), steps)

    bottom, right = min(top + height, rows), min(left + width, columns)
    y0, x0, y1, x1 = (
        max(top - steps, 0),
        max(left - steps, 0),
        min(bottom + steps, rows),
        min(right + steps, columns),
    )
    window = Window.at(items, torch.tensor([[y0, x0]]), (y1 - y0, x1 - x0))
    tile = run_eager(rule, state[..., y0:y1, x0:x1], FireKey(seed), window, steps)
    assert_close(
        tile[..., top - y0 : bottom - y0, left - x0 : right - x0], whole[..., top:bottom, left:right]
    )


@pytest.mark.parametrize("perception", PERCEPTIONS)
def test_batch_1_equals_batch_8(perception: str) -> None:
    model = lively(small(perception=perception))
    images, items = noise(8, 1, 16, 24), torch.tensor([5, 3, 100, 0, 7, 2**31, 8, 9])
    together = model(images, seed=4, items=items)
    for number in range(8):
        alone = model(images[number : number + 1], seed=4, items=items[number : number + 1])
        for (one, _), (all_, _) in zip(alone, together, strict=True):
            assert_close(one[0], all_[number])


def test_seed_and_item_name_the_random_stream() -> None:
    model, image = lively(small()), noise(1, 1, 16, 16)

    def final(seed: int, item: int) -> Tensor:
        return model(image, seed=seed, items=torch.tensor([item]))[-1][0]

    assert torch.equal(final(0, 0), final(0, 0))
    assert not torch.allclose(final(0, 0), final(1, 0))
    assert not torch.allclose(final(0, 0), final(0, 1))


# -- levels and patches


def inside(
    window: Window, item: int, margin: int, size: tuple[int, int]
) -> tuple[slice, slice, slice, slice]:
    """A patch's window and margin -> where its untouched interior lies in the patch, and in the whole grid.

    An edge of the patch that is an edge of the grid needs no margin.
    """
    slices = []
    for numbers, length in zip((window.rows, window.columns), size, strict=True):
        line = numbers[item % len(numbers)].flatten()
        first, last = int(line[0]), int(line[-1]) + 1
        before = 0 if first == 0 else margin
        after = 0 if last == length else margin
        slices.append((slice(before, last - first - after), slice(first + before, last - after)))
    (rows_here, rows_there), (columns_here, columns_there) = slices
    return rows_here, columns_here, rows_there, columns_there


@properties
@given(corners=st.lists(st.tuples(st.integers(0, 16), st.integers(0, 24)), min_size=2, max_size=2))
def test_a_patch_equals_the_whole_image_in_its_interior(corners: list[tuple[int, int]]) -> None:
    model = lively(small())
    image, items = noise(2, 1, 32, 40), torch.tensor([3, 8])
    whole, _ = model(image, seed=1, items=items)[-1]
    patch, window = model(image, seed=1, items=items, patches=[(torch.tensor(corners), (16, 16))])[-1]
    assert patch.shape == (2, 6, 16, 16)
    for item in range(2):
        y, x, rows, columns = inside(window, item, 3, (32, 40))
        assert_close(patch[item, :, y, x], whole[item, :, rows, columns])


@properties
@given(
    first=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=2, max_size=2),
    second=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=2),
)
def test_nested_patches_equal_the_whole_image_in_their_interior(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    model = lively(small(scales=(4, 2, 1), steps=(2, 1, 1)))
    image, items = noise(2, 1, 40, 48), torch.tensor([3, 8])
    outer = torch.tensor(first)
    inner = 2 * outer + torch.tensor(second)
    whole = model(image, seed=1, items=items)
    patches = model(image, seed=1, items=items, patches=[(outer, (12, 12)), (inner, (16, 16))])
    # A step on the outer patch spoils one cell there, two of the finer cells; a step on the inner patch one.
    for level, margin in ((1, 1), (2, 3)):
        patch, window = patches[level]
        size = (40 // model.config.scales[level], 48 // model.config.scales[level])
        for item in range(2):
            y, x, rows, columns = inside(window, item, margin, size)
            assert_close(patch[item, :, y, x], whole[level][0][item, :, rows, columns])


def test_a_finer_level_starts_from_the_coarser_state_and_the_sharp_image() -> None:
    config = small(steps=(3, 3))
    model = lively(config)
    torch.nn.init.zeros_(model.levels[1].update_out.weight)
    image = noise(1, 1, 16, 16)
    (coarse, _), (fine, _) = model(image, seed=0, items=torch.arange(1))
    assert torch.equal(fine[:, :1], image)
    assert torch.equal(fine[:, 1:], coarse[:, 1:].repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2))


def test_steps_may_be_chosen_per_call_and_a_run_function_is_used() -> None:
    model = lively(small())
    image, calls = noise(1, 1, 16, 16), []

    def run(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
        calls.append((key, tuple(state.shape), steps))
        return run_eager(rule, state, key, window, steps)

    model(image, seed=7, items=torch.arange(1), steps=(1, 5), run=run)
    assert calls == [(FireKey(7, 0), (1, 6, 4, 4), 1), (FireKey(7, 1), (1, 6, 16, 16), 5)]


@pytest.mark.parametrize("scale", [2, 4, 6])
def test_downscaling_by_an_even_factor_takes_the_mean_of_the_central_four(scale: int) -> None:
    image = noise(1, 2, 4 * scale, 3 * scale)
    blocks = image.unfold(2, scale, scale).unfold(3, scale, scale)
    middle = slice(scale // 2 - 1, scale // 2 + 1)
    assert_close(downscale(image, scale), blocks[..., middle, middle].mean(dim=(-1, -2)))


@settings(deadline=None, max_examples=60)
@given(scale=st.integers(1, 64), rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_downscaling_gives_the_size_divided_by_the_scale(scale: int, rows: int, columns: int) -> None:
    small_image = downscale(torch.zeros(1, 1, rows * scale, columns * scale), scale)
    assert small_image.shape == (1, 1, rows, columns)


def test_downscaling_by_an_odd_factor_takes_the_central_pixel() -> None:
    image = noise(1, 1, 12, 9)
    assert_close(downscale(image, 3), image[..., 1::3, 1::3])


def test_lifting_hands_each_cell_to_the_cells_it_splits_into() -> None:
    state, items = noise(2, 3, 4, 5), torch.arange(2)
    around, window = Window.whole(items, 4, 5), Window.whole(items, 12, 15)
    lifted = lift(state, around, window, 3)
    assert torch.equal(lifted, state.repeat_interleave(3, dim=-2).repeat_interleave(3, dim=-1))


def test_logits_are_the_channels_after_the_image() -> None:
    model = MedNCA(small(image_channels=2, classes=3))
    state = noise(1, 6, 4, 4)
    assert torch.equal(model.logits(state), state[:, 2:5])


# -- probabilities


def test_for_one_class_probabilities_are_the_sigmoid() -> None:
    logits = torch.linspace(-40, 40, 101, dtype=torch.float64).view(1, 1, 1, -1)
    torch.testing.assert_close(probabilities(logits), torch.sigmoid(logits), rtol=1e-12, atol=0)


def test_for_several_classes_probabilities_are_a_softmax_with_a_background_logit_of_zero() -> None:
    logits = noise(2, 3, 4, 5)
    result = probabilities(logits)
    odds = logits.exp()
    assert result.shape == logits.shape
    assert_close(result, odds / (1 + odds.sum(dim=1, keepdim=True)))
    assert (result.sum(dim=1) < 1).all()


# -- what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_channels": 0}, "image_channels"),
        ({"classes": 0}, "classes"),
        ({"channels": 0}, "channels"),
        ({"hidden": 0}, "hidden"),
        ({"channels": 4, "image_channels": 3, "classes": 2}, "image_channels \\+ classes, here 3"),
        ({"perception": "sobel"}, "perception"),
        ({"scales": (), "steps": ()}, "steps"),
        ({"scales": (4, 1), "steps": (64,)}, "steps"),
        ({"scales": (4, 1), "steps": (64, 0)}, "steps"),
        ({"scales": (4, 2)}, "scales"),
        ({"scales": (1, 4)}, "scales"),
        ({"scales": (1, 1)}, "scales"),
        ({"scales": (6, 4, 1), "steps": (1, 1, 1)}, "scales"),
        ({"fire_rate": 0.0}, "fire_rate"),
        ({"fire_rate": 1.5}, "fire_rate"),
        ({"fire_rate": float("nan")}, "fire_rate"),
    ],
    ids=str,
)
def test_a_config_refuses_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MedNCAConfig(**wrong)


def test_a_config_knows_what_size_an_image_must_have() -> None:
    config = MedNCAConfig(scales=(8, 4, 1), steps=(1, 1, 1))
    assert config.multiple == 8
    assert config.smallest == 16


@pytest.mark.parametrize("size", [(16, 18), (18, 16), (4, 16), (16, 4)])
def test_an_image_of_a_size_that_the_levels_cannot_divide_is_refused(size: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="multiples of 4 and at least 8"):
        MedNCA(small())(torch.zeros(1, 1, *size), seed=0, items=torch.arange(1))


def test_patches_outside_the_image_are_refused() -> None:
    model = MedNCA(MedNCAConfig(channels=4, hidden=8, steps=(1, 1)))
    image, items = torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.int64)
    for corner in ([-1, 0], [0, 9], [9, 0]):
        with pytest.raises(ValueError, match="level 1 must lie inside"):
            model(image, seed=0, items=items, patches=[(torch.tensor([corner]), (8, 8))])
    model(image, seed=0, items=items, patches=[(torch.tensor([[8, 8]]), (8, 8))])
    with pytest.raises(ValueError, match="steps must have 2 entries, got 1"):
        model(image, seed=0, items=items, steps=(3,))


def test_an_overflow_stays_in_the_cells_that_fired_and_out_of_the_image() -> None:
    rule = Backbone(MedNCAConfig(channels=4, hidden=8))
    torch.nn.init.constant_(rule.update_out.weight, math.inf)
    torch.nn.init.constant_(rule.update_in.bias, 1.0)
    state, fires = torch.rand(1, 4, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    fires[0, 0, 0] = True
    after = rule.step(state, fires)
    assert torch.equal(after[:, :1], state[:, :1])
    assert torch.equal(after[:, :, 1:], state[:, :, 1:])
    assert not torch.isfinite(after[0, 1:, 0, 0]).any()
