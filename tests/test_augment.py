"""Batches: nothing moves where nothing is asked for, label and image move together, patches stay inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import config, slices

from mednca.augment import TrainingCase, canvas_grid, draw_patches, mirrors, sample_batch, vary_intensity
from mednca.config import AugmentConfig, RunConfig
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig, with_context

NOTHING = AugmentConfig((), 0, 0, 0, 0, 0, 0, 0, 0)
GEOMETRY = AugmentConfig(gamma=0, brightness=0, noise=0, bias=0, flip=(0, 1), rotation=40, stretch=0.3)
properties = settings(deadline=None, max_examples=30)


def still(**train: Any) -> RunConfig:
    """Settings of the training -> a configuration without augmentation."""
    return replace(config(**train), augment=NOTHING)


def numbered(size: tuple[int, int] = (16, 12), count: int = 3) -> TrainingCase:
    """Size -> a case whose every pixel has a value of its own, with foreground in slice 1 only."""
    image = np.arange(count * size[0] * size[1], dtype=np.float32).reshape(count, 1, *size)
    label = np.zeros((count, *size), np.uint8)
    label[1, 5:8, 3:6] = 1
    return TrainingCase("numbered", image / image.max(), label)


def test_without_augmentation_a_slice_comes_through_unchanged() -> None:
    case = numbered()
    batch = sample_batch([case], still(batch_size=6), (16, 12), np.random.default_rng(0))
    for image, target in zip(batch.image, batch.target, strict=True):
        distance = np.abs(case.image[:, 0] - image[0].numpy()).max(axis=(1, 2))
        index = int(distance.argmin())
        assert distance[index] < 1e-6  # grid_sample rounds
        assert np.abs(target[0].numpy() - (case.label[index] == 1)).max() < 1e-5


@pytest.mark.parametrize("canvas", [(24, 20), (8, 8), (32, 4)])
def test_a_canvas_of_another_size_pads_and_crops_around_the_middle(canvas: tuple[int, int]) -> None:
    case = numbered()
    grid = canvas_grid((16, 12), canvas, NOTHING, np.random.default_rng(0))
    assert grid.shape == (1, *canvas, 2)
    # The step from cell to cell is one pixel of the slice: nothing is stretched.
    assert np.diff(grid[0, :, 0, 1].numpy() * 16 / 2) == pytest.approx(1, abs=1e-5)
    assert np.diff(grid[0, 0, :, 0].numpy() * 12 / 2) == pytest.approx(1, abs=1e-5)
    batch = sample_batch([case], still(batch_size=4), canvas, np.random.default_rng(0))
    assert batch.image.shape == (4, 1, *canvas) and torch.isfinite(batch.image).all()
    if canvas[0] > 16 and canvas[1] > 12:  # centred: the slice with its edge repeated
        middle = batch.image[0, 0, 4:20, 4:16].numpy()
        assert np.abs(case.image[:, 0] - middle).max(axis=(1, 2)).min() < 1e-6
        assert (batch.image[0, 0, 0] - batch.image[0, 0, 4]).abs().max() < 1e-6


def test_a_larger_slice_is_cropped_anywhere_inside() -> None:
    corners = {
        tuple(np.round(canvas_grid((16, 12), (8, 8), NOTHING, np.random.default_rng(s))[0, 0, 0].numpy(), 3))
        for s in range(20)
    }
    assert len(corners) == 20
    for x, y in corners:  # never beyond the middle of the first pixel
        assert x >= -1 + 1 / 12 - 1e-3 and y >= -1 + 1 / 16 - 1e-3


def several_axes(context: int = 1, flip: tuple[int, ...] = (0,)) -> RunConfig:
    """A configuration of slices along all axes, only mirrored."""
    run = config(batch_size=64)
    return replace(
        run,
        model=replace(run.model, image_channels=2 * context + 1),
        preprocess=PreprocessConfig(context=context, axes=(2, 0, 1)),
        augment=replace(NOTHING, flip=flip),
    )


@pytest.mark.parametrize(
    ("flip", "wanted"),
    [
        ((), {2: ((), False), 0: ((), False), 1: ((), False)}),
        ((0,), {2: ((0,), False), 0: ((), True), 1: ((0,), False)}),  # left and right
        ((1,), {2: ((1,), False), 0: ((0,), False), 1: ((), True)}),  # front and back
    ],
)
def test_slices_along_all_axes_are_mirrored_along_the_same_axes_of_the_body(
    flip: tuple[int, ...], wanted: dict[int, tuple[tuple[int, ...], bool]]
) -> None:
    run = several_axes(flip=flip)
    assert {axis: mirrors(run, axis) for axis in wanted} == wanted
    one = replace(run, preprocess=replace(run.preprocess, axes=(0,)))
    assert mirrors(one, 0) == (flip, False)  # of one axis: as they were named


def test_a_mirrored_body_gives_the_slices_of_mirrored_batches() -> None:
    """What left-right mirroring draws of sagittal and coronal slices are slices of the mirrored body."""
    body = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)  # x, y, z
    run = several_axes()
    for axis in (0, 1, 2):
        found = [
            with_context(np.moveaxis(scan, axis, 0)[:, None], np.arange(16), 1) for scan in (body, body[::-1])
        ]
        image = np.ascontiguousarray(np.moveaxis(body, axis, 0)[:, None])
        case = TrainingCase("body", image, (image[:, 0] > 0.5).astype(np.uint8), axis)
        drawn = sample_batch([case], run, (16, 16), np.random.default_rng(1))
        batch = drawn.image.numpy()
        assert np.abs(drawn.target.numpy()[:, 0] - (batch[:, 1] > 0.5)).max() < 1e-3  # the label moves along
        plain, mirrored = (
            [bool((np.abs(item - of_scan).max(axis=(1, 2, 3)) < 1e-6).any()) for item in batch]
            for of_scan in found
        )
        assert all(a != b for a, b in zip(plain, mirrored, strict=True))  # each is of one body
        assert 16 < sum(plain) < 48


@properties
@given(seed=st.integers(0, 10_000))
def test_label_and_image_move_together(seed: int) -> None:
    case = slices(seed % 5)
    binary = TrainingCase("binary", (case.label == 1)[:, None].astype(np.float32), case.label)
    batch = sample_batch(
        [binary], replace(config(batch_size=3), augment=GEOMETRY), (20, 16), np.random.default_rng(seed)
    )
    assert torch.equal(batch.image, batch.target)
    assert batch.target.min() >= 0 and batch.target.max() <= 1 + 1e-6


def test_several_classes_come_as_shares_that_do_not_overlap() -> None:
    case = numbered()
    label = case.label.copy()
    label[1, 8:10, 3:6] = 2
    model = MedNCAConfig(classes=2, channels=8, hidden=8, scales=(2, 1), steps=(1, 1))
    run = RunConfig(
        labels=("a", "b"), values=(1, 2), merge=False, model=model, train=config().train, augment=GEOMETRY
    )
    batch = sample_batch([TrainingCase("two", case.image, label)], run, (16, 12), np.random.default_rng(0))
    assert batch.target.shape[1] == 2 and batch.target.sum(dim=1).max() <= 1 + 1e-6
    assert batch.target[:, 0].max() > 0.5 and batch.target[:, 1].max() > 0.5


def test_a_batch_depends_on_its_generator_only() -> None:
    torch.manual_seed(1)
    first = sample_batch([slices(0), slices(1)], config(), (16, 16), np.random.default_rng((3, 0, 7)))
    torch.manual_seed(2)
    again = sample_batch([slices(0), slices(1)], config(), (16, 16), np.random.default_rng((3, 0, 7)))
    other = sample_batch([slices(0), slices(1)], config(), (16, 16), np.random.default_rng((3, 0, 8)))
    assert torch.equal(first.image, again.image) and torch.equal(first.target, again.target)
    assert first.patches is not None and again.patches is not None
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first.patches, again.patches, strict=True))
    assert not torch.equal(first.image, other.image)


def test_intensities_vary_within_their_ranges() -> None:
    image = torch.full((64, 2, 8, 8), 0.5)
    rng = np.random.default_rng(0)
    brighter = vary_intensity(image, replace(NOTHING, brightness=0.1), rng)
    assert brighter.min() >= 0.5 * 0.9 - 0.1 and brighter.max() <= 0.5 * 1.1 + 0.1
    assert brighter.std(dim=(1, 2, 3)).max() < 1e-6 < brighter[:, 0, 0, 0].std()  # one draw for an item
    noisy = vary_intensity(image, replace(NOTHING, noise=0.05), rng) - 0.5
    assert 0.01 < noisy.std() < 0.05
    bent = vary_intensity(image, replace(NOTHING, gamma=0.3), rng)
    assert bent.min() >= 0.5 ** np.exp(0.3) - 1e-6 and bent.max() <= 0.5 ** np.exp(-0.3) + 1e-6
    assert vary_intensity(image, NOTHING, rng) is image


@properties
@given(
    scales=st.sampled_from([(1,), (4, 1), (2, 1), (3, 1), (8, 4, 2, 1), (12, 4, 1)]),
    side=st.integers(2, 40),
    cells=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    seed=st.integers(0, 10_000),
)
def test_patches_lie_inside_the_grid_and_inside_each_other(
    scales: tuple[int, ...], side: int, cells: tuple[int, int], seed: int
) -> None:
    model = MedNCAConfig(channels=8, hidden=8, scales=scales, steps=(1,) * len(scales))
    run = RunConfig(model=model, train=replace(config().train, patch=side))
    height, width = cells[0] * scales[0], cells[1] * scales[0]
    rng = np.random.default_rng(seed)
    target = torch.from_numpy((rng.random((3, 1, height, width)) < 0.01).astype(np.float32))
    patches = draw_patches(target, run, rng)
    assert patches is not None and len(patches) == len(scales) - 1
    low, high = torch.zeros(3, 2, dtype=torch.int64), torch.tensor([height, width]).expand(3, 2)
    for (corners, size), scale in zip(patches, scales[1:], strict=True):
        assert size[0] <= side and size[1] <= side
        assert (corners * scale >= low).all()
        low, high_before = corners * scale, high
        high = (corners + torch.tensor(size)) * scale
        assert (high <= high_before).all()


def test_patches_go_round_the_foreground_as_often_as_asked() -> None:
    target = torch.zeros(400, 1, 64, 64)
    target[..., 50, 10] = 1
    hits = {}
    for share in (0.0, 0.5, 1.0):
        run = still(patch=8, foreground=share)
        patches = draw_patches(target, run, np.random.default_rng(0))
        assert patches is not None
        corners, size = patches[-1]
        inside = (corners <= torch.tensor([50, 10])) & (torch.tensor([50, 10]) < corners + torch.tensor(size))
        hits[share] = inside.all(dim=1).float().mean().item()
    assert hits[0.0] < 0.06 and abs(hits[0.5] - 0.5) < 0.1 and hits[1.0] == 1.0


def test_slices_with_foreground_come_as_often_as_asked() -> None:
    for share, low, high in ((1.0, 1.0, 1.0), (0.0, 0.2, 0.46)):
        run = still(batch_size=150, foreground=share)
        batch = sample_batch([numbered()], run, (16, 12), np.random.default_rng(0))
        assert low <= (batch.target.amax(dim=(1, 2, 3)) > 0.5).float().mean().item() <= high


def test_cases_without_foreground_are_sampled_too() -> None:
    empty = TrainingCase("empty", numbered().image, np.zeros((3, 16, 12), np.uint8))
    batch = sample_batch([empty], config(foreground=1.0), (16, 12), np.random.default_rng(0))
    assert batch.target.max() == 0 and batch.patches is not None
    assert sample_batch([empty], config(patch=None), (16, 12), np.random.default_rng(0)).patches is None
