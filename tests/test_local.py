"""Local normalisation: its definition, voxel by voxel; what it does not see; the same in C."""

from __future__ import annotations

import ctypes
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mednca import engine
from mednca.card import describe
from mednca.config import from_dict, to_dict
from mednca.engine import binding
from mednca.engine.arrays import locate, memory
from mednca.errors import InputError
from mednca.local import normalised, reach
from mednca.modelfile import to_bytes
from mednca.slices import PreprocessConfig, prepare_image, rescale
from mednca.volume import Volume
from tests.small import tiny_model

needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())
properties = settings(deadline=None, max_examples=60)
shapes = st.tuples(*[st.integers(1, 7)] * 3)
reaches = st.tuples(*[st.integers(0, 9)] * 3)
#: Sums in another order, each of doubles, then rounded to float32; where the numbers are within 10^6 of the
#: largest. Beyond that `LEAST` bounds what rounding can do.
TOLERANCE = 1e-6


def scan(seed: int, shape: tuple[int, ...] = (9, 8, 7)) -> NDArray[np.float32]:
    """Seed -> intensities of all sizes from 20 to 2000, and zeros."""
    random = np.random.default_rng(seed)
    return (np.exp(random.normal(5, 1, shape)) * (random.random(shape) < 0.9)).astype(np.float32)


def by_definition(channel: NDArray[Any], box: tuple[int, ...]) -> NDArray[np.float64]:
    """Channel and reach of the box -> what the first page of `mednca.local` says, voxel by voxel."""
    x = np.clip(channel.astype(np.float64) - np.percentile(channel.astype(np.float64), 0.5), 0, None)
    x = x / x.max() if x.max() > 0 else x
    y = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        around = x[tuple(slice(max(0, i - far), i + far + 1) for i, far in zip(at, box, strict=True))]
        least = (0.1 * around.mean()) ** 2 + 1e-10
        y[at] = 0.5 + (x[at] - around.mean()) / (6 * np.sqrt(around.var() + least))
    return np.clip(y, 0, 1)


@properties
@given(st.integers(0, 99), shapes, reaches)
def test_every_voxel_is_set_against_the_box_around_it(
    seed: int, shape: tuple[int, int, int], box: tuple[int, int, int]
) -> None:
    """At borders, where the box is cut, and of boxes that are larger than the scan, too."""
    channel = scan(seed, shape)
    found = normalised(channel, box)
    assert found.dtype == np.float32 and found.shape == shape
    assert np.abs(found - by_definition(channel, box)).max() < TOLERANCE


def test_a_box_reaches_half_its_side_in_whole_voxels_and_no_further_than_the_scan() -> None:
    assert reach(10.0, (1.0, 2.0, 4.0), (99, 99, 99)) == (5, 2, 1)  # halves down
    nearly = np.nextafter(33.07435938958063, 0.0)
    assert reach(33.07435938958063, (33.07435938958063, nearly, 1.0), (9, 9, 99)) == (0, 0, 17)
    assert reach(30.0, (1.0, 1.0, 1e-320), (99, 9, 1)) == (15, 9, 1)
    assert reach(0.5, (1.0, 0.3, 1e9), (5, 5, 5)) == (0, 1, 0)


@properties
@given(st.integers(0, 99), reaches, st.sampled_from([1e-30, 1e-12, 0.37, 8.0, 1e30]), st.floats(-3, 3))
def test_a_gain_and_an_offset_change_nothing(
    seed: int, box: tuple[int, int, int], gain: float, offset: float
) -> None:
    """But for rounding the scan itself to float32: 6e-8 of the brightest voxel, and deviations are 6e-3 of it
    or more."""
    channel = scan(seed)
    other = ((channel.astype(np.float64) + offset * channel.max()) * gain).astype(np.float32)
    assert np.abs(normalised(other, box) - normalised(channel, box)).max() < 1e-3
    doubled = normalised(channel * 2, box)  # to the bit
    assert np.array_equal(doubled, normalised(channel, box))


@properties
@given(st.floats(-1e6, 1e6, width=32), shapes, reaches, st.integers(0, 99))
def test_flat_parts_are_exactly_one_half(
    value: float, shape: tuple[int, int, int], box: tuple[int, int, int], seed: int
) -> None:
    assert (normalised(np.full(shape, value, np.float32), box) == 0.5).all()
    part = scan(seed, (20, 6, 6))
    part[:9] = 0.1 * np.abs(value) / 1e6  # beside what is not flat, below or above the 0.5 percentile
    flat = normalised(part, (3, 2, 1))[:6]
    assert (flat == 0.5).all()


@needs_engine
def test_no_rounding_shows_in_the_dark_beside_the_bright() -> None:
    """Sums that have gone over bright voxels are not exact; nor are those of very unlike numbers."""
    part = np.zeros((20, 9, 9), np.float32)
    part[8:, :5] = scan(0, (12, 5, 9)) * 1.1
    part[12] *= 1e6
    for found in (normalised(part, (2, 2, 2)), in_c(part[None], window=5.0)[0]):
        assert (found[:6] == 0.5).all() and (found[14:, 7:] == 0.5).all()
        assert np.ptp(found) > 0.5


@properties
@given(
    st.integers(0, 99),
    reaches,
    st.sampled_from(list(permutations(range(3)))),
    st.sampled_from(list(product((1, -1), repeat=3))),
)
def test_a_turned_scan_gives_the_turned_result(
    seed: int, box: tuple[int, ...], order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    channel = scan(seed)
    turns = tuple(slice(None, None, sign) for sign in signs)
    found = normalised(channel.transpose(order)[turns], [box[axis] for axis in order])
    assert np.abs(found - normalised(channel, box).transpose(order)[turns]).max() < TOLERANCE


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_a_smooth_field_changes_far_less_than_of_intensities_that_are_scaled(strength: float) -> None:
    random = np.random.default_rng(0)
    channel = 100 + 50 * random.random((60, 60, 30))
    channel[20:35, 25:45, 8:20] += 150
    channel[:6], channel[:, 54:] = 0, 0  # air: what a field leaves as it is
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in channel.shape], indexing="ij")
    field = np.exp(strength * (0.6 * x - 0.5 * y + 0.3 * z))
    clean, shaded = channel.astype(np.float32), (channel * field).astype(np.float32)
    spacing, affine = (1.0, 1.0, 2.0), np.diag([1.0, 1.0, 2.0, 1.0])
    box = reach(12.0, spacing, channel.shape)
    apart = np.abs(normalised(shaded, box) - normalised(clean, box))
    scaled = np.abs(rescale(shaded) - rescale(clean))
    assert apart.mean() < 0.15 * scaled.mean() and scaled.mean() > 0.1
    config = PreprocessConfig(window=12.0)  # and so of what a model sees
    seen = [prepare_image(Volume(data[None], affine), config) for data in (clean, shaded)]
    assert np.abs(seen[0] - seen[1]).mean() == pytest.approx(apart.mean(), rel=1e-6)


def test_a_model_sees_the_scan_normalised_in_millimetres_each_channel_alone() -> None:
    data = np.stack([scan(0), scan(1)])
    volume = Volume(data, np.diag([1.0, 2.5, 4.0, 1.0]))
    config = PreprocessConfig(modalities=2, window=10.0, axes=(1,))
    for turned in (volume, volume.oriented("SLA")):
        found = prepare_image(turned, config)
        for channel in range(2):
            wanted = np.moveaxis(normalised(data[channel], (5, 2, 1)), 1, 0)
            assert np.abs(found[:, channel] - wanted).max() < TOLERANCE


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"window": 0.0}, r"window must be > 0 \(mm\), with normalise 'volume', got 0.0 and 'volume'"),
        ({"window": -1.0}, "window must be > 0"),
        ({"window": float("inf")}, "window must be > 0"),
        ({"window": float("nan")}, "window must be > 0"),
        ({"window": 20.0, "normalise": "slice"}, "got 20.0 and 'slice'"),
    ],
    ids=str,
)
def test_a_window_that_is_none_is_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**settings_)
    if np.isfinite(settings_["window"]):
        with pytest.raises(InputError, match=message):
            from_dict(PreprocessConfig, settings_, "config.json")


def test_a_window_is_stored_only_where_there_is_one() -> None:
    assert "window" not in to_dict(PreprocessConfig(), complete=False)
    config = PreprocessConfig(window=20.0)
    stored = to_dict(config, complete=False)
    assert stored["window"] == 20.0 and from_dict(PreprocessConfig, stored, "x") == config


def test_the_card_tells_how_intensities_are_normalised() -> None:
    assert "against those in a box of 12.5 mm around" in " ".join(describe(tiny_model(window=12.5)).split())
    assert "scaled per volume" in " ".join(describe(tiny_model()).split())


# ---- In C ----


def in_c(
    data: NDArray[Any], window: float, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), **preprocess: Any
) -> NDArray[np.float32]:
    """Scan (M, X, Y, Z) on RAS+ axes and a window -> what mednca_local() makes of it."""
    model = engine.Model(to_bytes(tiny_model(modalities=len(data), window=window, **preprocess)))
    source, library, job = locate(data), binding.library(), binding.Job()
    scan_ = binding.Scan(source.address, source.type, 1.0, 0.0, source.shape, source.strides, spacing)
    message = ctypes.create_string_buffer(binding.MESSAGE)
    size = library.mednca_work_size(model._handle, scan_, 1, message, binding.MESSAGE)
    work = locate(memory(size), writable=True)
    begun = library.mednca_begin(model._handle, scan_, work.address, job, message, binding.MESSAGE)
    assert not begun, message.value
    room = np.full(library.mednca_local_size(model._handle, scan_) + 8, 77, np.uint8)
    library.mednca_local(job, locate(room, writable=True).address)
    assert (room[-8:] == 77).all() and job.local == 1  # nothing was written beside its memory
    shape, strides = tuple(job.scan.shape), tuple(job.scan.strides)
    assert job.scan.type == 6
    first = job.scan.voxels - room.ctypes.data
    flat = room[first : first + 4 * int(np.prod(shape))].view(np.float32)
    assert strides == flat.reshape(shape).strides
    return flat.reshape(shape).copy()


@needs_engine
@properties
@example(
    seed=0,
    shape=(1, 1, 2),
    spacing=(1.0, 1.0, 33.07435938958063),
    window=33.07435938958063,
    kind="uint8",
    channels=1,
    flipped=False,
)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    spacing=st.tuples(*[st.floats(1e-3, 1e3) | st.sampled_from([1e-300, 5e-324, 9e8])] * 3),
    window=st.floats(0.01, 100) | st.sampled_from([1e-300, 1e8]),
    kind=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    channels=st.integers(1, 2),
    flipped=st.booleans(),
)
def test_c_normalises_as_python_does(
    seed: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    window: float,
    kind: str,
    channels: int,
    flipped: bool,
) -> None:
    data = np.stack([scan(seed + c, shape) for c in range(channels)]).clip(0, 250).astype(kind)
    data = data[:, ::-1, :, ::-1] if flipped else data
    found = in_c(data, window, spacing)
    for channel, of_c in zip(data, found, strict=True):
        wanted = normalised(channel.astype(np.float32), reach(window, spacing, shape))
        assert np.abs(of_c - wanted).max() < TOLERANCE


@needs_engine
@properties
@given(
    arrays(
        np.float32,
        (5, 6, 4),
        elements=st.floats(0, 1, width=32)
        | st.sampled_from([0.0, 5.0, -5.0, 1e-30, 1e30, -1e30, 3e-38, 3e38]),
        fill=st.sampled_from([0.0, 5.0]),
    )
)
def test_c_normalises_as_python_does_whatever_the_numbers(data: NDArray[np.float32]) -> None:
    """Of numbers on many scales `LEAST` keeps what rounding does small: 1e-16 beside 1e-10, of which the root
    is taken."""
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = normalised(data, (2, 2, 2))
    found = in_c(data[None], window=4.0)[0]
    assert np.isfinite(found).all() and np.abs(found - wanted).max() < 1e-5


@needs_engine
def test_the_lower_end_is_the_percentile_also_where_nearly_all_voxels_are_the_same() -> None:
    data = np.full((1, 20, 20, 5), 5, np.float32)
    data[0, 3, 4, 2], data[0, 10, 11, 3] = 0, 9
    found = in_c(data, window=6.0)[0]
    assert np.abs(found - normalised(data[0], (3, 3, 3))).max() < TOLERANCE
    assert found[3, 4, 2] == 0.5 and found[10, 11, 3] == 1  # 0 is below the percentile, 5


@needs_engine
def test_c_normalises_the_part_that_a_model_looks_at() -> None:
    data = scan(3, (10, 8, 6))[None]
    found = in_c(data, window=6.0, roi=(0.2, 0.8, 0.0, 0.5, 0.5, 1.0))
    assert np.abs(found[0] - normalised(data[0, 2:8, :4, 3:], (3, 3, 3))).max() < TOLERANCE


@needs_engine
def test_a_scan_that_cannot_be_held_asks_for_more_memory_than_there_is() -> None:
    model = engine.Model(to_bytes(tiny_model(window=5.0)))
    data = locate(np.zeros(1, np.float32))
    huge = (1, 2**40, 2**40, 2**40)
    given_ = binding.Scan(data.address, data.type, 1.0, 0.0, huge, (0, 0, 0, 0), (1.0, 1.0, 1.0))
    assert binding.library().mednca_local_size(model._handle, given_) == ctypes.c_size_t(-1).value
    other = engine.Model(to_bytes(tiny_model()))
    assert binding.library().mednca_local_size(other._handle, given_) == 0
