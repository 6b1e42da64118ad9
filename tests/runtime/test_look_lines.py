"""Lines of k-space that no training scan has, in C: mended, judged and looked at as Python does."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from mednca import engine, spectrum
from mednca.engine import binding
from mednca.engine.arrays import locate
from mednca.errors import InputError
from mednca.modelfile import ModelFile, save_model, to_bytes
from mednca.second_look import sizes_of
from mednca.spectrum import Usual
from mednca.volume import Volume
from tests.runtime.beside import looked_at, with_setting
from tests.runtime.builds import run
from tests.small import tiny_model, write_nifti

needs_engine = pytest.mark.skipif(not engine.available(), reason="the C engine is not built")
properties = settings(deadline=None, max_examples=40)
SHAPE = (40, 37, 22)
LAYERS = ("update_in.weight", "update_in.bias", "update_out.weight")
TOLD = "line(s) of k-space are stronger or weaker here than in training scans"


def ball(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    """Seed -> a bright ball, a little blurred, in noise."""
    generator = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    radii, middle = generator.uniform(0.25, 0.32, 3) * shape, generator.uniform(-1.5, 1.5, 3)
    inside = sum(((x - at) / r) ** 2 for x, at, r in zip(grid, middle, radii, strict=True)) <= 1
    soft = ndimage.gaussian_filter(inside.astype(float), 0.7)
    return (100 * (0.1 + soft + 0.04 * generator.standard_normal(shape))).astype(np.float32)


def damaged(
    image: NDArray[np.float32], axis: int, lines: Sequence[int], factor: float
) -> NDArray[np.float32]:
    """Image -> the same with some lines of its k-space along an axis multiplied."""
    space = np.moveaxis(np.fft.rfft(image.astype(float), axis=axis), axis, 0)
    space[list(lines)] *= factor
    found = np.fft.irfft(np.moveaxis(space, 0, axis), image.shape[axis], axis=axis)
    return found.astype(np.float32)


def blurred(seed: int) -> NDArray[np.float32]:
    """A second channel, whose lines would be unusual in the first."""
    return np.asarray(ndimage.gaussian_filter(ball(seed), 1))


@pytest.fixture(scope="module")
def usual() -> Usual:
    return usual_of(ball)


def usual_of(channel: Callable[[int], NDArray[np.float32]]) -> Usual:
    found = spectrum.usual(channel(seed) for seed in range(8))
    assert found is not None
    return found


def model_of(*usual: Usual, sizes: tuple[float, ...] | None = None) -> ModelFile:
    """What is usual in each channel -> a model that sees what is bright in the first one."""
    channels = len(usual)
    plain = tiny_model(modalities=channels, sizes=sizes)
    weights = {name: np.zeros_like(array) for name, array in plain.weights.items()}
    for level in (0, 1):
        hidden, start, out = (weights[f"levels.{level}.{name}"] for name in LAYERS)
        hidden[:2, 0], start[:2] = [8, -8], [-4, 4]
        out[channels, :2] = [1, -1]
    numbers = tuple(number for one in usual for number in one.numbers)
    predict = replace(plain.config.predict, spectrum=numbers)
    return ModelFile(replace(plain.config, predict=predict), weights, plain.card)


# ---- Single functions ----


def in_c(model: engine.Model, channel: int, image: NDArray[np.float32], sign: int) -> tuple[Any, int]:
    """Channel of a scan -> what mednca_mend() makes of it, and how many lines it changed."""
    library, shape = binding.library(), (ctypes.c_int64 * 3)(*image.shape)
    pointer = ctypes.c_void_p
    library.mednca_mend_size.restype = ctypes.c_size_t
    library.mednca_mend_size.argtypes = [pointer, ctypes.POINTER(binding.Scan)]
    library.mednca_mend.restype = ctypes.c_int64
    library.mednca_mend.argtypes = [pointer, ctypes.c_int64, pointer, pointer, ctypes.c_int32, pointer]
    scan = binding.Scan(shape=(1, *image.shape))
    room = np.full(library.mednca_mend_size(model._handle, scan) + 8, 77, np.uint8)
    values = image.ravel(order="F").copy()  # x runs fastest
    place, desk = locate(values, writable=True), locate(room, writable=True)
    count = library.mednca_mend(model._handle, channel, place.address, shape, sign, desk.address)
    assert (room[-8:] == 77).all()  # nothing was written beside its memory
    return values.reshape(image.shape, order="F"), count


@needs_engine
@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 41), st.integers(14, 37), st.integers(14, 20)),
    lines=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 7), st.sampled_from([0.05, -3.0, 9.0, 60.0])),
        unique_by=lambda line: line[:2],
    ),
    fill=st.sampled_from([None, 0, 20]),
    sign=st.sampled_from([1, -1]),
    limit=st.sampled_from([0.3, 1.0, 2.5]),
)
def test_c_mends_as_python_does(
    usual: Usual,
    seed: int,
    shape: tuple[int, int, int],
    lines: list[tuple[int, int, float]],
    fill: int | None,
    sign: int,
    limit: float,
) -> None:
    image = ball(seed, shape)
    for axis, line, factor in lines:
        image = damaged(image, axis, [line], factor)
    if fill is not None:
        image = image.clip(fill + 1) if fill else image
        image[: shape[0] // 5], image[:, -3:] = fill, fill
    other = Usual(limit, usual.profiles[::-1] * 1.5)
    model = engine.Model(to_bytes(model_of(usual, other)))
    for channel, seen in enumerate((usual, other)):
        wanted, count = spectrum.mended(image, seen, sign)
        found, changed = in_c(model, channel, image, sign)
        assert changed == count
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
        if not count:
            assert np.array_equal(found, image)


@needs_engine
def test_c_mends_nothing_where_nothing_can_be_told(usual: Usual) -> None:
    model = engine.Model(to_bytes(model_of(usual)))
    broken = damaged(ball(0), 0, [5], 20)
    assert in_c(model, 0, broken, 1)[1]
    broken[3, 4, 5] = np.nan
    for image in (broken, np.full(SHAPE, 7, np.float32), ball(0, (15, 14, 13))):
        found, changed = in_c(model, 0, image, 1)
        assert not changed and np.array_equal(found, image, equal_nan=True)


@needs_engine
def test_c_tells_nothing_along_an_axis_where_a_scan_is_the_same(usual: Usual) -> None:
    """Only rounding is left there, which has lines of any strength."""
    row = damaged(ball(0, (1, 37, 1)), 1, [5], 20)
    wanted, count = spectrum.mended(np.tile(row, (7, 1, 7)), usual, 1)  # too few voxels to tell
    found, changed = in_c(engine.Model(to_bytes(model_of(usual))), 0, np.tile(row, (20, 1, 18)), 1)
    assert changed == count > 0
    assert np.allclose(found, wanted[:1, :, :1], atol=1e-3)


@needs_engine
def test_a_model_that_does_not_know_its_lines_asks_for_no_memory(usual: Usual) -> None:
    size = binding.library().mednca_mend_size
    size.restype, size.argtypes = ctypes.c_size_t, [ctypes.c_void_p, ctypes.POINTER(binding.Scan)]
    knows, other = (engine.Model(to_bytes(one)) for one in (model_of(usual), tiny_model()))
    huge = binding.Scan(shape=(1, 2, 3, 2**60))
    assert size(other._handle, huge) == 0
    assert size(knows._handle, huge) == ctypes.c_size_t(-1).value


@needs_engine
@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 4),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    power=st.sampled_from([0.1, 1, 8]),
)
def test_c_expects_the_overlap_that_python_does(
    seed: int, classes: int, shape: tuple[int, int, int], power: float
) -> None:
    library = binding.library()
    library.mednca_overlap.restype = ctypes.c_double
    library.mednca_overlap.argtypes = [ctypes.c_void_p] * 4
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet([0.3] * (classes + 1), shape) ** power
    shares[generator.random(shape) < 0.2] = 0
    probability = np.ascontiguousarray(np.moveaxis(shares[..., 1:], -1, 0), np.float32)
    model, place = engine.Model(to_bytes(tiny_model(classes=classes))), locate(probability)
    sides, strides = (ctypes.c_int64 * 3)(*shape), (ctypes.c_int64 * 4)(*place.strides)
    found = library.mednca_overlap(model._handle, sides, place.address, strides)
    assert found == spectrum.expected_overlap(probability)


@needs_engine
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        *(
            (wrong, "the usual lines of k-space must be 73 numbers for each channel")
            for wrong in (0, True, "73", [], [0.5] * 72, [0.5] * 74, ["0.5"] * 73)
        ),
        ([0.5] * 72 + [math.inf], "lines of k-space must be finite numbers"),
        ([0.0] * 73, "limit of unusual lines of k-space must be above 0"),
        ([-1.0] * 73, "limit of unusual lines of k-space must be above 0"),
        (None, None),
        ([0.5] + [-1.0] * 72, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_lines_that_cannot_be_are_refused(usual: Usual, numbers: Any, message: str | None) -> None:
    content = with_setting(model_of(usual), 6, "spectrum", numbers)
    if message is None:
        engine.Model(content)
        return
    with pytest.raises(InputError, match=re.escape(message)):
        engine.Model(content)


# ---- The program ----


def scan_of(data: NDArray[np.float32], orientation: str = "RAS") -> Volume:
    """Data (M, X, Y, Z) -> a scan of them."""
    return Volume(data, np.diag([1.0, 1.0, 1.5, 1.0])).oriented(orientation)


CASES = [
    ("RAS", 1, 0, [6], 12.0),
    ("PIL", 1, 0, [5, 6], -1.5),  # turned over: the third look counts
    ("RAS", 1, 1, [3, 4, 7], -4.0),
    ("SLA", 2, 2, [4], 9.0),
    ("RAS", 1, 0, [20], 30.0),  # the last line of an even number of voxels
    ("LAS", 1, 1, [18], 30.0),  # and of an odd one
]


@pytest.mark.parametrize(("orientation", "channels", "axis", "lines", "factor"), CASES, ids=str)
def test_the_program_in_c_mends_lines_as_python_does(
    usual: Usual,
    tmp_path: Path,
    orientation: str,
    channels: int,
    axis: int,
    lines: list[int],
    factor: float,
) -> None:
    bad = np.stack([damaged(ball(100), axis, lines, factor), blurred(100)][:channels])
    model = model_of(usual, usual_of(blurred)) if channels > 1 else model_of(usual)
    mask, expected, said = looked_at(model, scan_of(bad, orientation), tmp_path)
    assert (mask != expected.mask.data[0]).sum() <= 3
    changed = expected.report["lines_changed"]
    assert changed and f"scan.nii: {changed} {TOLD}" in said
    (tmp_path / "once").mkdir()
    once = replace(model, config=tiny_model(modalities=channels).config)
    plain, _, nothing = looked_at(once, scan_of(bad, orientation), tmp_path / "once")
    assert (plain != mask).sum() > 100 and not nothing  # it makes a difference


@pytest.mark.parametrize(("lines", "factor"), [([], 1.0), ([9], 0.02)], ids=["usual", "no surer"])
def test_a_scan_that_counts_as_it_is_keeps_its_mask(
    usual: Usual, tmp_path: Path, lines: list[int], factor: float
) -> None:
    """Where nothing is unusual, and where the model is no surer of the mended scan."""
    data = damaged(ball(100), 0, lines, factor) if lines else ball(100)
    assert bool(spectrum.mended(data, usual, 1)[1]) == bool(lines)
    mask, expected, said = looked_at(model_of(usual), scan_of(data[None]), tmp_path)
    assert np.array_equal(mask, expected.mask.data[0]) and mask.any() and not said
    assert expected.report["lines_changed"] is None


def test_a_second_look_for_sizes_sees_the_mended_scan(usual: Usual, tmp_path: Path) -> None:
    sizes = sizes_of(ball(100) > 60, (1.0, 1.0, 1.5))
    assert sizes is not None
    model = model_of(usual, sizes=(*(sizes * [1.5, 1.0, 1.3]).tolist(), 1.25, 1.25, 1.25))
    bad = damaged(ball(100), 1, [3, 4, 7], -4)
    mask, expected, said = looked_at(model, scan_of(bad[None], "PIR"), tmp_path)
    assert expected.report["stretched"] and expected.report["lines_changed"]
    assert f"{expected.report['lines_changed']} {TOLD}" in said and "looked at again" in said
    assert mask.any() and (mask != expected.mask.data[0]).mean() < 1e-4


def test_a_scan_that_is_too_large_is_refused_before_its_lines_are_looked_at(
    usual: Usual, tmp_path: Path
) -> None:
    """Which would take minutes."""
    scan = write_nifti(tmp_path / "scan.nii", np.zeros((32000, 32, 16), np.uint8))
    model = model_of(usual)
    seen = replace(model.config.preprocess, spacing=(0.1, 0.1))
    save_model(tmp_path / "model.safetensors", replace(model, config=replace(model.config, preprocess=seen)))
    done = run(tmp_path / "model.safetensors", scan, "-o", tmp_path / "mask.nii", timeout=30)
    assert done.returncode == 2 and "the scan is too large" in done.stderr
