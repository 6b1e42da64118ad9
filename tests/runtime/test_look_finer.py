"""Scans of coarse voxels, in C: told, drawn on and looked at as Python does."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from mednca import coarse, engine
from mednca.engine import binding
from mednca.engine.arrays import locate
from mednca.errors import InputError
from mednca.modelfile import ModelFile, to_bytes
from mednca.volume import Volume
from tests.runtime.beside import looked_at, with_setting
from tests.small import tiny_model

needs_engine = pytest.mark.skipif(not engine.available(), reason="the C engine is not built")
properties = settings(deadline=None, max_examples=40)
LAYERS = ("update_in.weight", "update_in.bias", "update_out.weight")
WAYS = (1.0, 1.0, 1.5)


def blobs(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Seed -> soft blobs."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (100 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)


def model_of(ways: tuple[float, ...] | None = WAYS, **options: Any) -> ModelFile:
    """What is usual -> a model that sees what is bright in the first channel."""
    plain = tiny_model(**options)
    weights = {name: np.zeros_like(array) for name, array in plain.weights.items()}
    channels = plain.config.model.image_channels
    for level in (0, 1):
        hidden, start, out = (weights[f"levels.{level}.{name}"] for name in LAYERS)
        hidden[:2, 0], start[:2] = [8, -8], [-4, 4]
        out[channels, :2] = [1, -1]
    predict = replace(plain.config.predict, coarse=ways)
    return replace(plain, config=replace(plain.config, predict=predict), weights=weights)


def interpolated(
    seed: int, shape: tuple[int, int, int], axis: int, step: float, first: float
) -> NDArray[np.float32]:
    """An image of that shape that was interpolated along an axis."""
    places = first + step * np.arange(math.ceil((shape[axis] - 1 - first) / step) + 1)
    others = [length for other, length in enumerate(shape) if other != axis]
    between = coarse.shares(places, shape[axis])
    between[: math.ceil(first), 0] = 1  # before the first it is as there
    lines = np.tensordot(between, blobs(seed, (len(places), *others)), 1)
    return np.ascontiguousarray(np.moveaxis(lines, 0, axis), np.float32)


# ---- Single functions ----

POINTER, WHOLE, SHAPE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 3


def functions(model: engine.Model) -> Any:
    """Model -> the library, with the types of what is tested."""
    library, scan = binding.library(), ctypes.POINTER(binding.Scan)
    for name, result, arguments in (
        ("finer", WHOLE, [POINTER, scan, POINTER]),
        ("draw_size", ctypes.c_size_t, [POINTER, scan]),
        ("draw", None, [POINTER, POINTER, ctypes.c_int32, WHOLE, POINTER, POINTER]),
        ("middles", None, [POINTER, POINTER, ctypes.c_int32, WHOLE, POINTER]),
        ("redraw", WHOLE, [POINTER, scan, POINTER, POINTER]),
    ):
        function = getattr(library, f"mednca_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def scan_of(shape: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1)) -> binding.Scan:
    return binding.Scan(shape=(1, *shape), spacing=spacing)


@contextmanager
def desk(library: Any, model: engine.Model, scan: binding.Scan) -> Iterator[int]:
    """Library, model and scan -> the address of memory to work in; nothing must be written beside it."""
    room = np.full(library.mednca_draw_size(model._handle, scan) + 8, 77, np.uint8)
    yield locate(room, writable=True).address
    assert (room[-8:] == 77).all()


def fresh(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Image -> its values, x running fastest."""
    return image.ravel(order="F").copy()


@needs_engine
@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    axis=st.integers(0, 2),
    many=st.floats(1.9, 6),
)
def test_c_draws_on_and_comes_back_as_python_does(
    seed: int, shape: tuple[int, int, int], axis: int, many: float
) -> None:
    image, model = blobs(seed, shape), engine.Model(to_bytes(model_of()))
    library = functions(model)
    wanted = coarse.finer(Volume(image[None], np.eye(4)), axis, many).data
    values, found = fresh(image), np.zeros(wanted.size, np.float32)
    source, target = (locate(array, writable=True).address for array in (values, found))
    with desk(library, model, scan_of(shape)) as room:
        library.mednca_draw(source, SHAPE(*shape), axis, wanted.shape[axis + 1], target, room)
    found = found.reshape(wanted.shape[1:], order="F")
    assert np.abs(found - wanted[0]).max() <= 1e-4 * np.abs(image).max()

    back, finer = np.zeros(image.size, np.float32), fresh(wanted[0])
    source, target = (locate(array, writable=True).address for array in (finer, back))
    library.mednca_middles(source, SHAPE(*wanted.shape[1:]), axis, shape[axis], target)
    assert np.array_equal(back.reshape(shape, order="F"), coarse.brought_back(wanted, axis, shape[axis])[0])


@needs_engine
@properties
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(26, 40)] * 3),
    axis=st.integers(0, 2),
    step=st.sampled_from([3.0, 3.3, 4.0, 5.5]),
    first=st.floats(-0.5, 2),
    spacing=st.tuples(*[st.sampled_from([0.4, 0.6, 1.0])] * 3),
)
def test_c_draws_again_what_was_interpolated_as_python_does(
    seed: int,
    shape: tuple[int, int, int],
    axis: int,
    step: float,
    first: float,
    spacing: tuple[float, float, float],
) -> None:
    image = interpolated(seed, shape, axis, step, first)
    model = engine.Model(to_bytes(model_of()))
    library, scan = functions(model), scan_of(shape, spacing)
    wanted = coarse.drawn(Volume(image[None], np.diag([*spacing, 1.0])), WAYS)
    values = fresh(image)
    with desk(library, model, scan) as room:
        count = library.mednca_redraw(model._handle, scan, locate(values, writable=True).address, room)
    assert count == wanted.slices
    assert bool(count) == (step * spacing[axis] / WAYS[axis] >= coarse.LEAST)
    found = values.reshape(shape, order="F")
    assert np.abs(found - wanted.volume.data[0]).max() <= 1e-4 * np.abs(image).max()
    assert count or np.array_equal(found, image)


@needs_engine
@pytest.mark.parametrize(
    "image",
    [
        blobs(0, (30, 31, 20)),
        np.zeros((20, 20, 20)),
        np.ones((1, 1, 1)),
        np.broadcast_to(np.arange(30) // 4, (8, 9, 30)),
        np.full((9, 9, 40), 3e38) * (np.arange(40) % 8 < 4),
    ],
    ids=["scan", "nothing", "a voxel", "stairs", "huge"],
)
def test_c_leaves_what_was_not_interpolated(image: NDArray[Any]) -> None:
    channel = image.astype(np.float32)
    model = engine.Model(to_bytes(model_of((0.1, 0.1, 0.1))))
    library, scan, values = functions(model), scan_of(channel.shape), fresh(channel)
    with desk(library, model, scan) as room:
        place = locate(values, writable=True).address
        assert not library.mednca_redraw(model._handle, scan, place, room)
    assert np.array_equal(values, fresh(channel))
    assert coarse.interpolated(channel) == [None] * 3


@needs_engine
@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((9, 9, 9), (1, 1, 1), None),
        ((9, 9, 9), (1.89, 1.0, 2.84), None),
        ((9, 9, 9), (1.91, 1.0, 2.84), 0),
        ((9, 9, 9), (2.0, 2.5, 3.0), 1),
        ((9, 9, 9), (3.0, 3.0, 4.5), 0),  # of the same the first
        ((9, 9, 1), (1.0, 1.0, 15.0), None),
        ((9, 9, 9), (16.0, 16.1, 24.1), 0),
        ((1, 9, 9), (9.0, 2.0, 1.0), 1),
    ],
)
def test_c_tells_a_coarse_scan_as_python_does(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], axis: int | None
) -> None:
    model, place = engine.Model(to_bytes(model_of())), ctypes.c_int32(7)
    count = functions(model).mednca_finer(model._handle, scan_of(shape, spacing), ctypes.byref(place))
    drawn = coarse.drawn(Volume(blobs(0, shape)[None], np.diag([*spacing, 1.0])), WAYS)
    assert drawn.axis == axis
    assert (place.value, count) == ((-1, 0) if axis is None else (axis, drawn.volume.shape[axis]))


@needs_engine
def test_a_model_that_sees_coarse_scans_as_they_are_asks_for_no_memory() -> None:
    draws, other = (engine.Model(to_bytes(model_of(ways))) for ways in (WAYS, None))
    size, place = functions(draws).mednca_draw_size, ctypes.c_int32()
    assert size(other._handle, scan_of((2, 3, 4))) == 0 < size(draws._handle, scan_of((2, 3, 4)))
    assert size(draws._handle, scan_of((2, 3, 2**60))) == ctypes.c_size_t(-1).value
    thick = scan_of((9, 9, 9), (1, 1, 9))
    assert not functions(other).mednca_finer(other._handle, thick, ctypes.byref(place)) and place.value == -1


@needs_engine
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        *(
            (wrong, "distances of slices must be three numbers")
            for wrong in (0, True, "1", [], [1, 2], [1] * 4)
        ),
        *(
            (wrong, "distances of slices must be above 0")
            for wrong in ([1, 0, 1], [1, -1, 1], [1, 1, math.inf])
        ),
        (None, None),
        ([1, 2, 3], None),
    ],
    ids=str,
)
def test_distances_that_cannot_be_are_refused(numbers: Any, message: str | None) -> None:
    content = with_setting(model_of(), 7, "coarse", numbers)
    if message is None:
        engine.Model(content)
        return
    with pytest.raises(InputError, match=re.escape(message)):
        engine.Model(content)


# ---- The program ----


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "AIR"])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"axes": (0, 2), "spacing": (1.2, 1.2), "context": 1},
        {"modalities": 2, "smoothing": 1},
        {"sizes": (4.0, 3.0, 3.0, 1.05, 1.05, 1.05)},
        {"piece": "largest"},
        {"piece": "surest", "axes": (1, 2)},
    ],
    ids=lambda kind: "+".join(kind) or "plain",
)
def test_the_program_in_c_sees_coarse_scans_as_python_does(
    kind: dict[str, Any], orientation: str, tmp_path: Path
) -> None:
    channels = kind.get("modalities", 1)
    data = np.stack([blobs(seed, (24, 25, 9)) for seed in range(channels)])
    scan = Volume(data, np.diag([1.0, 1.0, 4.0, 1.0])).oriented(orientation)
    piece = kind.get("piece")
    model = model_of(**{name: value for name, value in kind.items() if name != "piece"})
    if piece:
        predict = replace(model.config.predict, largest_component=True, piece=piece)
        model = replace(model, config=replace(model.config, predict=predict))
    mask, expected, said = looked_at(model, scan, tmp_path)
    assert expected.report["drawn_on"] == 9 and mask.any()
    assert (mask != expected.mask.data[0]).sum() <= 2
    assert "scan.nii: the 9 slices are 4 mm apart (axis S), which is coarse for this model" in said
    if "sizes" in kind:
        assert expected.report["stretched"] and "looked at again" in said


@pytest.mark.parametrize("orientation", ["RAS", "PIL"])
def test_the_program_in_c_sees_interpolated_scans_as_python_does(orientation: str, tmp_path: Path) -> None:
    image = interpolated(3, (30, 28, 37), 2, 4, 0.5)
    scan = Volume(image[None], np.eye(4)).oriented(orientation)
    mask, expected, said = looked_at(model_of(), scan, tmp_path)
    assert expected.report["drawn_on"] == 9 and mask.any()
    assert (mask != expected.mask.data[0]).sum() <= 2
    assert "scan.nii: the scan was interpolated from 9 slices; it was drawn on" in said
    (tmp_path / "plain").mkdir()
    plain, _, nothing = looked_at(model_of(None), scan, tmp_path / "plain")
    assert (plain != mask).sum() > 100 and not nothing  # it makes a difference


def test_a_usual_scan_keeps_its_mask(tmp_path: Path) -> None:
    scan = Volume(blobs(1, (24, 25, 20))[None], np.diag([1.0, 1.0, 2.0, 1.0]))
    mask, expected, said = looked_at(model_of(), scan, tmp_path)
    assert np.array_equal(mask, expected.mask.data[0]) and mask.any() and not said
    assert expected.report["drawn_on"] is None
