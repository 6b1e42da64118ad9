"""The bias field: what is fitted, by its definition; no smooth field changes what is left; the same in C."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mednca import engine
from mednca.card import describe
from mednca.config import from_dict, to_dict
from mednca.engine import binding
from mednca.engine.arrays import locate, memory
from mednca.errors import InputError
from mednca.field import FLAT, TERMS, Usual, box, distance, fitted, shaded_as_usual, usual, without_fill
from mednca.modelfile import to_bytes
from mednca.slices import PreprocessConfig, prepare_image, rescale
from mednca.volume import Volume
from tests.small import FIELD, tiny_model

needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())
properties = settings(deadline=None, max_examples=40)
#: Flat ones too; along axes of more than 24 voxels not all are looked at.
shapes = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 9))
#: Of what is left: another solver, another order of sums, and the share of the ridge.
TOLERANCE = 1e-5
#: A field also rounds the scan itself to float32, and the ridge pulls at the strongest a little.
UNSEEN = 1e-4
ROOT = Path(__file__).parents[1]
USUAL = Usual(FIELD[0], FIELD[1:])


def scan(seed: int, shape: tuple[int, ...] = (14, 12, 9)) -> NDArray[np.float32]:
    """Seed -> intensities of all sizes from 20 to 1000, and air: zeros."""
    random = np.random.default_rng(seed)
    return (np.exp(random.normal(5, 0.7, shape)) * (random.random(shape) < 0.8)).astype(np.float32)


def places(shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Shape -> x, y and z of each voxel, from -1 to 1."""
    lines = [np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in shape]
    return np.meshgrid(*lines, indexing="ij")


def smooth(seed: int, shape: tuple[int, ...], strength: float) -> NDArray[np.float64]:
    """Seed, shape and strength -> a field whose logarithm is a polynomial of degree 3."""
    random = np.random.default_rng(seed)
    x, y, z = places(shape)
    terms = [x**i * y**j * z**k for i, j, k in product(range(4), repeat=3) if i + j + k <= 3]
    return np.exp(strength * np.tensordot(random.uniform(-1, 1, len(terms)), np.array(terms), 1))


def apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Two results -> how far they lie apart, as a share of what a voxel has."""
    return float((np.abs(found.astype(np.float64) - expected) / np.maximum(expected, 1e-30)).max())


def enough(channel: NDArray[np.float32]) -> bool:
    left = without_fill(channel)
    return fitted(left[box(left)]) is not None


def by_definition(channel: NDArray[np.float32]) -> NDArray[np.float64]:
    """Channel -> what the first page of `mednca.field` says, by another solver and without its ridge."""
    x, y, z = places(channel.shape)
    each = np.ones(channel.shape, bool)
    for axis, size in enumerate(channel.shape):
        step = math.ceil(size / 24)
        seen = np.isin(np.arange(size), np.arange(step // 2, size, step))
        each &= np.expand_dims(seen, [other for other in range(3) if other != axis])
    each &= channel > 0
    terms = [x**i * y**j * z**k for i, j, k in product(range(4), repeat=3) if i + j + k <= 3]
    design = np.stack([term[each] for term in terms], axis=1)
    logs = np.log(channel[each].astype(np.float64))
    weights = np.ones(len(logs))
    for _ in range(4):
        roots = np.sqrt(weights)
        found = np.linalg.lstsq(design * roots[:, None], logs * roots)[0]
        weights = 1 / (1 + 4 * (logs - design @ found) ** 2)
    return np.maximum(channel, 0) / np.exp(np.tensordot(found, np.array(terms), 1))


@properties
@given(st.integers(0, 99), shapes)
def test_the_scan_is_divided_by_the_exponential_of_the_fit(seed: int, shape: tuple[int, int, int]) -> None:
    channel = scan(seed, shape)
    channel[0, 0, 0] = channel[-1, -1, -1] = 100  # their box is the whole scan
    assume(enough(channel))
    found = shaded_as_usual(channel)
    assert found.dtype == np.float32 and found.shape == shape
    assert apart(found, by_definition(channel).astype(np.float32)) < TOLERANCE


@properties
@given(
    st.integers(0, 99),
    shapes,
    st.sampled_from([1e-12, 0.37, 8.0, 1e12]),
    st.floats(0, 2),
)
def test_a_gain_and_a_smooth_field_change_nothing(
    seed: int, shape: tuple[int, int, int], gain: float, strength: float
) -> None:
    channel = scan(seed, shape)
    assume(enough(channel))
    shaded = (channel * gain * smooth(seed + 1, shape, strength)).astype(np.float32)
    assert apart(shaded_as_usual(shaded), shaded_as_usual(channel)) < UNSEEN
    assert np.abs(rescale(shaded_as_usual(shaded)) - rescale(shaded_as_usual(channel))).max() < UNSEEN


@pytest.mark.parametrize("kind", ["fourth degree", "wave"])
def test_a_field_that_is_no_polynomial_of_the_third_degree_is_not_wholly_taken_out(kind: str) -> None:
    channel = scan(0, (20, 20, 12))
    x, y, _ = places(channel.shape)
    log = x**2 * y**2 if kind == "fourth degree" else np.sin(9 * x)
    shaded = (channel * np.exp(log)).astype(np.float32)
    assert apart(shaded_as_usual(shaded), shaded_as_usual(channel)) > 0.05


@properties
@given(
    st.integers(0, 99),
    st.tuples(*[st.integers(4, 24) | st.sampled_from([25, 27])] * 2),
    st.sampled_from(list(permutations(range(3)))),
    st.sampled_from(list(product((1, -1), repeat=3))),
)
def test_a_turned_scan_gives_the_turned_result(
    seed: int, sides: tuple[int, int], order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """Flips only of axes whose grid is as far from one end as from the other, as with up to 24 voxels; models
    see all scans on RAS+ axes."""
    channel = scan(seed, (*sides, 6))
    turns = tuple(slice(None, None, sign) for sign in signs)
    found = shaded_as_usual(channel.transpose(order)[turns])
    assert apart(found, shaded_as_usual(channel).transpose(order)[turns]) < TOLERANCE


@properties
@given(st.integers(0, 99), st.integers(0, 4), st.integers(0, 4))
def test_what_is_not_positive_becomes_zero_and_has_no_say(seed: int, before: int, behind: int) -> None:
    channel = scan(seed)
    expected = shaded_as_usual(channel)
    assert ((expected == 0) == (channel == 0)).all()
    random = np.random.default_rng(seed)
    below = np.where(channel > 0, channel, -random.exponential(50, channel.shape)).astype(np.float32)
    assert np.array_equal(shaded_as_usual(below), expected)
    larger = np.pad(channel, ((before, behind), (behind, 0), (0, before)))  # air around it
    inside = tuple(
        slice(first, first + size) for first, size in zip((before, behind, 0), channel.shape, strict=True)
    )
    assert apart(shaded_as_usual(larger)[inside], expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["scattered", "a border"])
def test_dark_voxels_that_are_few_or_scattered_hardly_bend_the_fit(kind: str) -> None:
    """Darker by orders of magnitude, but not 0. The organ keeps the spread that it had, 10 %."""
    random = np.random.default_rng(0)
    organ = 300 * smooth(3, (20, 20, 10), 0.5) * np.exp(random.normal(0, 0.1, (20, 20, 10)))
    dark = random.random(organ.shape) < 0.2
    if kind == "a border":
        dark[:], dark[0] = False, True
    left = shaded_as_usual(np.where(dark, 1e-3 * organ, organ).astype(np.float32))[~dark]
    assert left.std() / left.mean() < 0.11 and 0.97 < left.mean() < 1.04


def test_where_too_few_voxels_are_positive_nothing_is_done() -> None:
    channel = np.full((5, 6, 4), -3, np.float32)
    places_ = np.random.default_rng(0).permutation(channel.size)[:80]
    channel.reshape(-1)[places_] = np.arange(1, 81)
    assert apart(shaded_as_usual(channel), channel.clip(0)) > 0.1  # 4 for each of 20 coefficients are enough
    channel.reshape(-1)[places_[0]] = 0
    assert np.array_equal(shaded_as_usual(channel), channel.clip(0))
    tiny = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    assert np.array_equal(shaded_as_usual(tiny), tiny)


@pytest.mark.parametrize("value", [1e-40, 1e-6, 1.0, 700.0, 3e38])
@pytest.mark.parametrize("shape", [(1, 1, 40), (30, 2, 3), (9, 9, 9)])
def test_a_constant_scan_is_nothing_but_fill(value: float, shape: tuple[int, int, int]) -> None:
    assert (shaded_as_usual(np.full(shape, value, np.float32)) == 0).all()
    assert (shaded_as_usual(np.full(shape, -value, np.float32)) == 0).all()


@pytest.mark.parametrize("fill", [0.0, -3.0, 1.5])
@pytest.mark.parametrize("in_engine", [False, pytest.param(True, marks=needs_engine)])
def test_what_is_put_around_a_scan_has_no_say(fill: float, in_engine: bool) -> None:
    """All voxels of both are on the grid of the fit, and polynomials in the places of one are such in those
    of the other."""
    inside = scan(5, (11, 12, 9)) + np.random.default_rng(0).uniform(2, 3, (11, 12, 9)).astype(np.float32)
    wide = np.full((20, 22, 16), fill, np.float32)
    wide[4:15, 7:19, 6:15] = inside
    found = in_c(wide[None])[0] if in_engine else shaded_as_usual(wide)
    assert apart(found[4:15, 7:19, 6:15], shaded_as_usual(inside)) < 1e-4
    found[4:15, 7:19, 6:15] = 0
    assert (found == 0).all()
    few = inside.copy()
    few[0, 0, :7] = 1.5  # too few of them to be fill
    assert (shaded_as_usual(few)[0, 0, :7] > 0).all()


#: Finite numbers of all sizes.
anything = arrays(
    np.float32,
    (7, 6, 5),
    elements=st.floats(0, 1, width=32)
    | st.sampled_from([0.0, 5.0, -5.0, 1e-45, 1e-30, 1e30, -1e30, 3e-38, 3.4e38, -3.4e38]),
    fill=st.sampled_from([0.0, 5.0]),
)


@properties
@given(anything)
def test_whatever_is_finite_stays_finite(channel: NDArray[np.float32]) -> None:
    found = (
        [shaded_as_usual(channel), in_c(channel[None])[0]]
        if engine.available()
        else [shaded_as_usual(channel)]
    )
    for left in found:
        assert np.isfinite(left).all() and (left >= 0).all() and np.isfinite(rescale(left)).all()


def test_a_fit_that_is_far_off_leaves_finite_numbers() -> None:
    """Numbers far apart in a corner; elsewhere two voxels that are not in the grid, and zeros."""
    channel = np.zeros((26, 26, 26), np.float32)
    channel[:10, :10, :10] = 10.0 ** np.random.default_rng(0).uniform(-37, 37, (10, 10, 10))
    channel[24, 0, 0] = channel[0, 24, 24] = 1  # where the fit is -1680 and 1258
    for found in (
        (shaded_as_usual(channel), in_c(channel[None])[0])
        if engine.available()
        else (shaded_as_usual(channel),)
    ):
        assert np.isfinite(found).all() and (found[11:24] == 0).all()
        assert found[24, 0, 0] == np.finfo(np.float32).max and found[0, 24, 24] == 0


# ---- What is usual ----


def shading(channel: NDArray[np.float32]) -> NDArray[np.float64]:
    """Channel -> coefficients of its shading, of `TERMS`."""
    left = without_fill(channel)
    fit = fitted(left[box(left)])
    assert fit is not None
    return np.array([fit[term] for term in TERMS])


@properties
@given(st.integers(0, 99), st.floats(0, 3))
def test_a_usual_shading_is_left_and_another_is_replaced(seed: int, strength: float) -> None:
    channel = (scan(seed) * smooth(seed, (14, 12, 9), strength)).astype(np.float32)
    channel[0, 0, :5] = -3
    terms = shading(channel)
    far = distance(terms - USUAL.terms)
    kept = shaded_as_usual(channel, USUAL._replace(limit=1.0001 * far))
    assert np.array_equal(kept, channel) and kept.dtype == np.float32
    replaced = shaded_as_usual(channel, USUAL._replace(limit=far / 1.26))
    assert distance(shading(replaced) - USUAL.terms) < 1e-5
    assert apart(replaced, shaded_as_usual(channel, USUAL._replace(limit=far / 9))) < TOLERANCE
    half = shaded_as_usual(channel, USUAL._replace(limit=far / 1.125))
    assert abs(distance(shading(half) - USUAL.terms) - far / 2) < 1e-4 * far


def test_the_distance_of_a_shading_is_its_deviation_over_the_box() -> None:
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.arange(-0.99, 1, 0.02)] * 3, indexing="ij")
    for _ in range(3):
        terms = random.normal(size=len(TERMS))
        field_ = sum(c * x**i * y**j * z**k for c, (i, j, k) in zip(terms, TERMS, strict=True))
        assert distance(terms) == pytest.approx(np.std(field_), rel=1e-3)


def test_what_is_usual_is_the_median_and_the_limit_holds_the_training_scans() -> None:
    scans = [(scan(i) * smooth(i, (14, 12, 9), 0.1 + 0.01 * i)).astype(np.float32) for i in range(60)]
    found = usual([*scans, np.zeros((14, 12, 9), np.float32)])  # of one nothing can be told
    assert found is not None
    terms = np.array([shading(one) for one in scans])
    assert np.allclose(found.terms, np.median(terms, axis=0), rtol=1e-5)
    far = [distance(row - np.median(terms, axis=0)) for row in terms]
    assert found.limit == pytest.approx(1.25 * np.quantile(far, 0.99), rel=1e-5)
    assert all(np.array_equal(shaded_as_usual(one, found), one) for one in scans)
    assert usual([np.zeros((14, 12, 9), np.float32)]) is None


def test_where_too_little_is_positive_a_scan_stays_as_it_is() -> None:
    tiny = np.arange(-5, 22, dtype=np.float32).reshape(3, 3, 3)
    assert np.array_equal(shaded_as_usual(tiny, USUAL), tiny)
    assert np.array_equal(shaded_as_usual(tiny, FLAT), tiny.clip(0))


# ---- What a model sees ----


def test_a_model_sees_the_scan_without_its_field_and_scaled_each_channel_alone() -> None:
    data = np.stack([scan(0), scan(1)])
    volume = Volume(data, np.diag([1.0, 2.5, 4.0, 1.0]))
    config = PreprocessConfig(modalities=2, field=FLAT.numbers * 2, axes=(1,))
    for turned in (volume, volume.oriented("SLA")):
        found = prepare_image(turned, config)
        for channel in range(2):
            wanted = np.moveaxis(rescale(shaded_as_usual(data[channel])), 1, 0)
            assert np.abs(found[:, channel] - wanted).max() < TOLERANCE
    shaded = volume.with_data((data * smooth(5, data.shape[1:], 1.0)).astype(np.float32))
    assert np.abs(prepare_image(shaded, config) - prepare_image(volume, config)).max() < UNSEEN
    without = PreprocessConfig(modalities=2, axes=(1,))
    assert np.abs(prepare_image(shaded, without) - prepare_image(volume, without)).mean() > 0.05


def test_a_field_is_taken_out_of_volumes_only() -> None:
    message = "normalise must be 'volume' where field is on, got 'slice'"
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(field=(), normalise="slice")
    with pytest.raises(InputError, match=message):
        from_dict(PreprocessConfig, {"field": [], "normalise": "slice"}, "config.json")
    with pytest.raises(InputError, match="field: expected tuple"):
        from_dict(PreprocessConfig, {"field": 1}, "config.json")
    with pytest.raises(InputError, match="field must be 40 numbers, 20 for each channel, got 20"):
        from_dict(PreprocessConfig, {"field": FIELD, "modalities": 2}, "config.json")
    with pytest.raises(InputError, match="limits >= 0"):
        from_dict(PreprocessConfig, {"field": [-1.0, *FIELD[1:]]}, "config.json")
    with pytest.raises(ValueError, match="measured in training"):
        prepare_image(Volume(scan(0)[None], np.eye(4)), PreprocessConfig(field=()))
    PreprocessConfig(field=None, normalise="slice")


def test_the_setting_is_stored_only_where_it_is_on() -> None:
    assert "field" not in to_dict(PreprocessConfig(), complete=False)
    config = PreprocessConfig(field=FIELD)
    stored = to_dict(config, complete=False)
    assert stored["field"] == FIELD and from_dict(PreprocessConfig, stored, "x") == config


def test_files_of_before_are_read() -> None:
    """There a field was taken out, or not."""
    found = from_dict(PreprocessConfig, {"modalities": 2, "field": True}, "x")
    assert found == PreprocessConfig(modalities=2, field=FLAT.numbers * 2)
    assert from_dict(PreprocessConfig, {"field": False}, "x") == PreprocessConfig()


def test_the_card_tells_that_the_field_is_taken_out() -> None:
    told = " ".join(describe(tiny_model(field=FLAT.numbers)).split())
    assert "unusual bias fields brought back to the usual, intensities scaled per volume" in told
    assert "bias field" not in describe(tiny_model())


# ---- In C ----


def in_c(data: NDArray[Any], **preprocess: Any) -> NDArray[np.float32]:
    """Scan (M, X, Y, Z) on RAS+ axes -> what mednca_field() makes of it."""
    model = engine.Model(
        to_bytes(tiny_model(modalities=len(data), **({"field": FLAT.numbers * len(data)} | preprocess)))
    )
    source, library, job = locate(data), binding.library(), binding.Job()
    scan_ = binding.Scan(source.address, source.type, 1.0, 0.0, source.shape, source.strides, (1.0, 1.0, 1.0))
    message = ctypes.create_string_buffer(binding.MESSAGE)
    size = library.mednca_work_size(model._handle, scan_, 1, message, binding.MESSAGE)
    work = locate(memory(size), writable=True)
    begun = library.mednca_begin(model._handle, scan_, work.address, job, message, binding.MESSAGE)
    assert not begun, message.value
    room = np.full(library.mednca_field_size(model._handle, scan_) + 8, 77, np.uint8)
    library.mednca_field(job, locate(room, writable=True).address)
    assert (room[-8:] == 77).all() and job.field == 1  # nothing was written beside its memory
    library.mednca_field(job, None)  # a second call does nothing
    shape, strides = tuple(job.scan.shape), tuple(job.scan.strides)
    assert (job.scan.type, job.scan.slope, job.scan.intercept) == (6, 1.0, 0.0)
    first = job.scan.voxels - room.ctypes.data
    flat = room[first : first + 4 * math.prod(shape)].view(np.float32)
    found = flat.reshape(shape[0], *shape[:0:-1]).transpose(0, 3, 2, 1)  # x runs fastest
    assert strides == found.strides
    for channel, low, high in zip(found, job.low, job.high, strict=False):
        ends = np.percentile(channel, (0.5, 99.5))
        ends = ends if ends[1] > ends[0] else np.array([channel.min(), channel.max()])
        assert np.allclose((low, high), ends, rtol=1e-12, atol=0)  # measured anew
    return found.copy()


@needs_engine
@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 21), st.integers(1, 26)),
    kind=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    channels=st.integers(1, 2),
    flipped=st.booleans(),
    limit=st.sampled_from([0.0, 0.1, 0.7, 0.9, 1.1, 9.0]),
)
def test_c_shades_as_python_does(
    seed: int, shape: tuple[int, int, int], kind: str, channels: int, flipped: bool, limit: float
) -> None:
    data = np.stack([scan(seed + c, shape) for c in range(channels)]).clip(0, 250)
    data = (data - (0 if kind == "uint8" else 15)).astype(kind)  # some below 0
    data = data[:, ::-1, :, ::-1] if flipped else data
    seen = Usual(limit, FIELD[1:])
    for channel, of_c in zip(data, in_c(data, field=seen.numbers * channels), strict=True):
        wanted = shaded_as_usual(channel.astype(np.float32), seen)
        assert apart(of_c.clip(0), wanted.clip(0)) < 10 * TOLERANCE
        assert np.array_equal(of_c.clip(None, 0), wanted.clip(None, 0))


@needs_engine
def test_c_takes_no_field_out_where_too_few_voxels_are_positive() -> None:
    data = scan(0, (4, 4, 4))[None] - 40
    assert np.array_equal(in_c(data), data.clip(0))


@needs_engine
def test_c_fits_the_part_that_a_model_looks_at() -> None:
    data = scan(3, (20, 16, 12))[None]
    found = in_c(data, roi=(0.2, 0.8, 0.0, 0.5, 0.5, 1.0))
    assert apart(found[0], shaded_as_usual(data[0, 4:16, :8, 6:])) < TOLERANCE


@needs_engine
def test_a_scan_that_cannot_be_held_asks_for_more_memory_than_there_is() -> None:
    model = engine.Model(to_bytes(tiny_model(field=FLAT.numbers)))
    data = locate(np.zeros(1, np.float32))
    huge = (1, 2**40, 2**40, 2**40)
    given_ = binding.Scan(data.address, data.type, 1.0, 0.0, huge, (0, 0, 0, 0), (1.0, 1.0, 1.0))
    assert binding.library().mednca_field_size(model._handle, given_) == ctypes.c_size_t(-1).value
    other = engine.Model(to_bytes(tiny_model()))
    assert binding.library().mednca_field_size(other._handle, given_) == 0


LOG = """
#include <stdint.h>
#include <string.h>
#include "log.h"
void both(const double *x, double *y, int64_t count, int which)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = which ? exponential(x[i]) : logarithm(x[i]);
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler called cc")
def test_logarithm_and_exponential_are_those_of_the_library_to_a_few_bits(tmp_path: Path) -> None:
    (tmp_path / "log.c").write_text(LOG)
    words = ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(
        [*words, f"-I{ROOT / 'runtime' / 'c'}", str(tmp_path / "log.c"), "-o", str(tmp_path / "log.so")],
        check=True,
    )
    both = ctypes.CDLL(str(tmp_path / "log.so")).both
    random = np.random.default_rng(0)

    def of_c(x: NDArray[np.float64], which: int) -> NDArray[np.float64]:
        y = np.empty_like(x)
        both(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(len(x)), which)
        return y

    limits = np.finfo(np.float64)
    ends = [1.0, math.sqrt(0.5), math.sqrt(2), 2.0, 5e-324, 1e-310, limits.tiny, limits.max]
    around = 1 + random.uniform(-1, 1, 5000) * 10.0 ** random.uniform(-16, 0, 5000)
    x = np.concatenate([ends, np.exp(random.uniform(-744, 709, 20000)), np.maximum(around, 5e-324)])
    exact = np.array([math.log(value) for value in x])
    assert (np.abs(of_c(x, 0) - exact) <= 1e-15 * np.abs(exact)).all()
    x = np.concatenate([[0.0, -0.0, 700.0, -700.0, 500.0, -500.0], random.uniform(-700, 700, 20000)])
    exact = np.array([math.exp(value) for value in x])
    assert (np.abs(of_c(x, 1) - exact) <= 1e-15 * exact).all()
