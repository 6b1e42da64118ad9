"""The C engine from Python: arrays of any kind, threads that change nothing, one line where it is missing."""

from __future__ import annotations

import array
import ctypes
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from mednca import engine, predict
from mednca.backends import numpy as in_numpy
from mednca.engine import binding
from mednca.engine.arrays import locate, memory
from mednca.engine.threads import run_slices, team_size
from mednca.errors import InputError
from mednca.fire import FireKey
from mednca.modelfile import ModelFile, to_bytes
from mednca.predict import choose_engine
from tests.small import FIELD, SHAPE, tiny_model, voxels, write_nifti

ROOT = Path(__file__).resolve().parents[1]
needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())
SPACING = (1.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def model() -> engine.Model:
    return engine.Model(to_bytes(tiny_model()))


def segmented(
    model: engine.Model, data: Any, **options: Any
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Model and voxels -> mask and probabilities."""
    mask = np.full(data.shape[1:], 77, np.uint8)
    probability = np.full((model.facts.classes, *data.shape[1:]), -1, np.float32)
    model.segment(data, mask, probability, spacing=SPACING, **options)
    return mask, probability


# ---- The library ----


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler")
def test_the_engine_is_there_where_there_is_a_compiler() -> None:
    assert engine.available(), f"run 'make setup': {engine.why_not()}"


def test_the_binding_loads_neither_numpy_nor_torch() -> None:
    program = (
        "import sys, mednca.engine as engine\n"
        "if engine.available(): engine.instructions()\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_structures_are_those_of_the_header(tmp_path: Path) -> None:
    """Name, size and offset of every field that the binding declares, as a C compiler sees them."""
    kinds = {
        kind: f"mednca_{kind.__name__.lower()}"
        for kind in (binding.Options, binding.Facts, binding.Scan, binding.Job, binding.Counts)
    }
    lines, expected = [], []
    for kind, name in kinds.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(kind)}")
        for field, *_ in kind._fields_:
            lines.append(f'printf("{field} %zu\\n", offsetof({name}, {field}));')
            expected.append(f"{field} {getattr(kind, field).offset}")
    for constant in ("ABI", "LEVELS", "MODALITIES", "CLASSES", "MESSAGE"):
        lines.append(f'printf("{constant} %d\\n", MEDNCA_{constant});')
        expected.append(f"{constant} {getattr(binding, constant)}")
    source = tmp_path / "sizes.c"
    source.write_text(
        '#include <stdio.h>\n#include "mednca.h"\nint main(void)\n{\n' + "\n".join(lines) + "\n}\n"
    )
    words = ["cc", f"-I{ROOT / 'runtime' / 'c'}", str(source), "-o", str(tmp_path / "sizes")]
    subprocess.run(words, check=True)
    told = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout
    assert told.split("\n")[:-1] == expected


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The library is looked for anew, during the test and after it."""
    caches = (binding._load, predict._warn_once)
    for cache in caches:
        cache.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_without_the_library_numpy_computes_and_that_is_said_once(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.setattr(binding, "_files", lambda: [])
    with caplog.at_level(logging.WARNING):
        assert [choose_engine("cpu") for _ in range(3)] == ["numpy"] * 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert (
        "three times as slow" in told
        and "install a C compiler" in told
        and "pip install" in told
        and "\n" not in told
    )
    with pytest.raises(InputError, match=r"the engine 'native' cannot be used: .* install a C compiler"):
        choose_engine("cpu", "native")
    with pytest.raises(RuntimeError, match="install a C compiler"):
        engine.Model(b"")


def test_a_library_that_is_none_is_named(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_engine.so").write_text("no library")
    fresh.setattr(binding, "_files", lambda: [tmp_path / "missing.so", tmp_path / "_engine.so"])
    assert not engine.available()
    assert re.fullmatch(r"\S+/_engine.so cannot be loaded \(.*\); install mednca again", engine.why_not())


@needs_engine
def test_a_library_of_another_version_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(binding, "ABI", binding.ABI + 1)
    wanted = rf"\S+ is of version {binding.ABI - 1}, version {binding.ABI} is needed; install mednca again"
    assert re.fullmatch(wanted, engine.why_not())


@needs_engine
def test_a_library_of_something_else_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(
        binding, "_files", lambda: [Path(sys.modules["numpy._core._multiarray_umath"].__file__ or "")]
    )
    assert "cannot be loaded" in engine.why_not() and "mednca_" in engine.why_not()


def test_the_choice_follows_device_and_name() -> None:
    assert choose_engine("cpu", "numpy") == "numpy" and choose_engine("cpu", "eager") == "eager"
    with pytest.raises(InputError, match="engine must be auto or one of native, int16, numpy, folded, eager"):
        choose_engine("cpu", "steam")
    if engine.available():
        assert choose_engine("cpu") == choose_engine("cpu", "native") == "native"
        assert choose_engine("cpu", "int16") == "int16"


def test_on_a_graphics_card_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "check_device", lambda device: None)
    assert choose_engine("cuda:0") == "folded" and choose_engine("cuda", "eager") == "eager"
    for name in ("native", "int16", "numpy"):
        with pytest.raises(InputError, match=f"'{name}' runs on the CPU only, got device 'cuda'"):
            choose_engine("cuda", name)


# ---- Arrays ----


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *(("int8", 0), ("uint8", 1), ("bool", 1), ("int16", 2), ("uint16", 3), ("int32", 4), ("uint32", 5)),
        *(("float32", 6), ("float64", 7), ("int64", -1), ("uint64", -1), ("float16", -1), ("complex64", -1)),
    ],
)
def test_an_array_is_found_where_it_lies(kind: str, number: int) -> None:
    data = np.zeros((2, 3, 4, 5), kind)
    for view in (data, data[:, ::-1], data.transpose(3, 0, 2, 1)[::2, :, ::-2], data[0, 1, 2, 3:4]):
        place = locate(view)
        assert (place.type, place.shape, place.strides) == (number, view.shape, view.strides)
        assert place.address == view.__array_interface__["data"][0]
    swapped = locate(data.astype(data.dtype.newbyteorder()))
    assert swapped.type == (number if data.itemsize == 1 else -1)


def test_an_array_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(TypeError):
        locate([1, 2])
    assert locate(b"abc").shape == (3,)
    for fixed in (b"abc", memoryview(b"abc"), np.broadcast_to(np.zeros(1), (3,))):
        with pytest.raises(TypeError, match="must be writable"):
            locate(fixed, writable=True)


@needs_engine
@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
def test_the_type_of_the_voxels_changes_nothing(kind: str, model: engine.Model) -> None:
    data = (voxels()[None] // 10).astype(kind)
    expected = segmented(model, data.astype(np.float32))
    for found, wanted in zip(segmented(model, data), expected, strict=True):
        assert np.array_equal(found, wanted)


@needs_engine
def test_turned_arrays_are_read_and_written_where_they_lie(model: engine.Model) -> None:
    data = voxels()[None]
    mask, probability = segmented(model, data)
    turned = np.asfortranarray(data[:, ::-1, :, ::-1])
    around = np.full((4, *(n + 2 for n in data.shape[1:])), 9, np.uint8)
    model.segment(turned[:, ::-1, :, ::-1], around[2, 1:-1, -2:0:-1, 1:-1][:, ::-1], spacing=SPACING)
    assert np.array_equal(around[2, 1:-1, 1:-1, 1:-1], mask)
    around[2, 1:-1, 1:-1, 1:-1] = 9
    assert (around == 9).all()  # nothing was written beside the mask
    assert (probability >= 0).all() and set(np.unique(mask)) == {0, 1}


@needs_engine
def test_arrays_of_plain_python_will_do(model: engine.Model) -> None:
    data = voxels()[None]
    flat = array.array("h", data.ravel().tolist())
    source = memoryview(flat).cast("B").cast("h", data.shape)
    target = bytearray(data.size)
    model.segment(source, memoryview(target).cast("B", data.shape[1:]), spacing=SPACING)
    assert np.array_equal(np.frombuffer(target, np.uint8).reshape(data.shape[1:]), segmented(model, data)[0])


@needs_engine
def test_arrays_that_do_not_fit_are_refused(model: engine.Model) -> None:
    data = voxels()[None]
    mask, probability = np.zeros(data.shape[1:], np.uint8), np.zeros(data.shape, np.float32)
    for source, target, shares, threads, message in (
        (data.astype(np.int64), mask, None, 1, "voxels must be"),
        (data[0], mask, None, 1, "voxels must be"),
        (data, mask[1:], None, 1, "mask must be uint8 of shape"),
        (data, mask.astype(np.int8), None, 1, "mask must be uint8 of shape"),
        (data, mask, probability[0], 1, "probability must be float32 of shape"),
        (data, mask, probability.astype(float), 1, "probability must be float32 of shape"),
        (data, mask, None, 0, "threads must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.segment(source, target, shares, spacing=SPACING, threads=threads)
    with pytest.raises(InputError, match=r"1 channel\(s\), got 2"):
        model.segment(np.concatenate([data, data]), mask, spacing=SPACING)
    with pytest.raises(InputError, match="not finite"):
        model.segment(np.where(data > 900, np.nan, data), mask, spacing=SPACING)
    with pytest.raises(InputError, match="spacing"):
        model.segment(data, mask, spacing=(1, 0, 1))


@needs_engine
def test_a_model_that_cannot_be_used_is_refused() -> None:
    content = to_bytes(tiny_model())
    for wrong, options in ((content[:-1], {}), (b"", {}), (content, {"instructions": "abacus"})):
        with pytest.raises(InputError) as caught:
            engine.Model(wrong, **options)
        assert str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="int16 needs"):
        engine.Model(content, numbers="int16")


# ---- Threads ----


@needs_engine
@pytest.mark.parametrize("slices", [1, 2, 5])
def test_the_result_does_not_depend_on_the_number_of_threads(slices: int) -> None:
    """Bit for bit, with slices of their own and, where there are few, as a team on each."""
    model = engine.Model(to_bytes(tiny_model(context=1, classes=2)))
    data = voxels(shape=(1, 70, 41, slices))
    expected = segmented(model, data)
    for threads in (2, 3, 7):
        for found, wanted in zip(segmented(model, data, threads=threads), expected, strict=True):
            assert np.array_equal(found, wanted)


@needs_engine
@pytest.mark.parametrize("numbers", engine.NUMBERS)
def test_along_several_axes_nothing_depends_on_threads_or_what_memory_held(numbers: str) -> None:
    """Bit for bit: the three views share their slices out in three ways, some of them as a team."""
    file = tiny_model(classes=2, axes=(2, 0, 1))
    n, h = file.config.model.channels, file.config.model.hidden
    level = {"state": [64.0] * n, "views": [64.0] * 2 * n, "hidden": [64.0] * h}
    model = engine.Model(to_bytes(replace(file, range={"levels": [level, level]})), numbers=numbers)
    data = voxels(shape=(1, 70, 41, 2))
    expected = segmented(model, data)
    counts = []
    for threads in (1, 2, 3, 7):
        for found, wanted in zip(segmented(model, data, threads=threads), expected, strict=True):
            assert np.array_equal(found, wanted)
        mask = np.zeros(data.shape[1:], np.uint8)
        told = model.segment(data, mask, spacing=SPACING, threads=threads)  # without probabilities
        assert np.array_equal(mask, expected[0])
        counts.append((told.cells, told.all, told.saturated, told.broken))
    assert len(set(counts)) == 1


@needs_engine
@pytest.mark.parametrize(
    ("kind", "taken_out", "broken"),
    [
        ({"axes": (2, 0)}, False, True),  # without memory for its average
        ({"field": FIELD}, False, True),  # with the field that it wants taken out
        ({"field": FIELD}, True, False),
        ({}, True, False),
    ],
    ids=str,
)
def test_a_slice_that_lacks_what_its_model_needs_is_counted_as_broken(
    kind: dict[str, Any], taken_out: bool, broken: bool
) -> None:
    model = engine.Model(to_bytes(tiny_model(**kind)))
    data, mask = voxels(), np.zeros(SHAPE, np.uint8)
    source = locate(data[None])
    scan = binding.Scan(source.address, source.type, 1.0, 0.0, source.shape, source.strides, SPACING)
    library, job, counts = binding.library(), binding.Job(), binding.Counts()
    message = ctypes.create_string_buffer(binding.MESSAGE)
    work = memory(library.mednca_work_size(model._handle, scan, 1, message, binding.MESSAGE))
    desk, target = locate(work, writable=True), locate(mask, writable=True)
    assert not library.mednca_begin(model._handle, scan, desk.address, job, message, binding.MESSAGE)
    room = locate(memory(library.mednca_field_size(model._handle, scan)), writable=True)
    if taken_out:
        library.mednca_field(job, room.address)
    library.mednca_slice(
        job, 0, desk.address, 0, 1, target.address, target.stride_array(), None, None, counts
    )
    assert counts.broken == (SHAPE[0] * SHAPE[1] if broken else 0)


@needs_engine
@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"axes": []}, "preprocessing is missing"),
        ({"axes": [0, 1, 0]}, "preprocessing is missing"),
        ({"axes": [0, 3]}, "preprocessing is missing"),
        ({"axes": [0, 0.5]}, "preprocessing is missing"),
        ({"axes": [0, 1, 2, 0]}, "preprocessing is missing"),
        ({"axis": 3}, "preprocessing is missing"),
        ({"axes": [0, 1], "spacing": [1.0, 2.0]}, "one spacing for all"),
        ({"axes": [0, 1], "roi": [0.0, 1.0]}, "six numbers"),
        ({"axes": [0, 1], "roi": [0, 1, 0.5, 0.5, 0, 1]}, "three pairs of rising shares"),
        *(
            ({"axes": [2], "field": wrong}, "the usual bias field must be 20 numbers for each channel")
            for wrong in (0, 1, "true", [True], [0.1] * 19, [0.1] * 21, ["0.1"] * 20)
        ),
        ({"axes": [2], "field": [0.1] * 20, "normalise": "slice"}, "with volumes only"),
        ({"axes": [2], "field": [-0.1] * 20}, "limit of a bias field must not be negative"),
        *(
            ({"axes": [2], "margin": wrong}, "margin of the model's slices must be a whole number")
            for wrong in (-1, 0.5, 1025, "6", None)
        ),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused(preprocess: dict[str, Any], message: str) -> None:
    content = to_bytes(tiny_model())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["mednca"])
    del about["config"]["preprocess"]["axis"]
    about["config"]["preprocess"] |= preprocess
    header["__metadata__"]["mednca"] = json.dumps(about)
    text = json.dumps(header).encode()
    with pytest.raises(InputError, match=message):
        engine.Model(len(text).to_bytes(8, "little") + text + content[8 + size :])


@needs_engine
def test_counts_do_not_depend_on_the_number_of_threads(model: engine.Model) -> None:
    data = voxels(shape=(1, 70, 41, 2))
    found = []
    for threads in (1, 2, 4):
        mask = np.zeros(data.shape[1:], np.uint8)
        counts = model.segment(data, mask, spacing=SPACING, threads=threads)
        found.append((counts.cells, counts.all, counts.saturated, counts.broken))
    assert found[0] == found[1] == found[2]
    cells, everything, saturated, broken = found[0]
    assert 0.4 < cells / everything < 0.6 and (saturated, broken) == (0, 0)  # the fire rate is 0.5


def test_a_team_is_as_large_as_the_work_allows() -> None:
    assert team_size(slices=40, rows=256, threads=4) == 1  # ten slices each
    assert team_size(slices=1, rows=256, threads=4) == 4
    assert team_size(slices=1, rows=64, threads=64) == 4  # 16 rows each
    assert team_size(slices=1, rows=16, threads=4) == 1
    assert team_size(slices=5, rows=256, threads=4) == 4  # else one thread would have two slices
    assert team_size(slices=3, rows=256, threads=4) == 4
    assert team_size(slices=1, rows=256, threads=1) == 1


def test_progress_is_told_in_the_callers_thread() -> None:
    told: list[tuple[int, int, bool]] = []
    here = threading.get_ident()
    for together in (False, True):
        told.clear()
        seen: set[tuple[int, int]] = set()
        run_slices(
            lambda number, thread, seen=seen: seen.add((number, thread)),
            7,
            3,
            together,
            lambda done, total: told.append((done, total, threading.get_ident() == here)),
        )
        assert told == [(n, 7, True) for n in range(1, 8)]
        assert len(seen) == (21 if together else 7) and {number for number, _ in seen} == set(range(7))


@pytest.mark.parametrize("together", [False, True])
def test_an_error_in_a_thread_is_raised_and_an_interrupt_ends_the_work(together: bool) -> None:
    computed: list[int] = []

    def fail(number: int, thread: int) -> None:
        raise MemoryError("none left")

    def slow(number: int, thread: int) -> None:
        time.sleep(0.02)
        computed.append(number)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(MemoryError, match="none left"):
        run_slices(fail, 5, 2, together, None)
    with pytest.raises(KeyboardInterrupt):
        run_slices(slow, 1000, 2, together, interrupt)
    time.sleep(0.2)
    assert len(computed) <= 4  # what was begun came to its end, and no more


@needs_engine
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child alone")
def test_a_prediction_is_stopped_by_ctrl_c(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", voxels(shape=(400, 400, 60)))
    program = (
        "import signal, sys\n"
        "from mednca import cli\n"
        "from mednca.engine import model\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner may have it ignored\n"
        "begun = model.run_slices\n"
        "def run(*rest):\n"
        "    print('computing', flush=True)\n"
        "    begun(*rest)\n"
        "model.run_slices = run\n"
        "cli.main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", program, "predict", "hippocampus", "scan.nii.gz", "-o", "mask.nii.gz"]
    with subprocess.Popen(
        [*words, "--ensemble", "100"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        try:
            assert child.stdout.readline() == "computing\n", child.stderr.read()
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            assert child.wait(timeout=20) == 130
        finally:
            child.kill()
        told = child.stderr.read().strip().splitlines()
    assert told[-1].startswith("mednca: stopped") and "Traceback" not in "".join(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nii.gz"]


# ---- Levels ----


@needs_engine
@pytest.mark.parametrize("perception", ["dense", "depthwise"])
def test_a_level_is_that_of_numpy(perception: str) -> None:
    """The same cells fire, and states agree to the rounding of some steps in float32."""
    file = tiny_model()
    config = replace(file.config.model, perception=perception)
    weights = dict(file.weights)
    if perception == "depthwise":
        weights |= {name: w[:, :1] for name, w in weights.items() if w.ndim == 4}
    file = replace(file, config=replace(file.config, model=config), weights=weights)
    rules = in_numpy.fold(config, weights, np.float64)
    state = np.random.default_rng(1).normal(size=(37, 20, 8)).astype(np.float32)
    for gauge in (True, False):
        model = engine.Model(to_bytes(file), gauge=gauge)
        for level in (0, 1):
            expected = in_numpy.run_level(
                rules[level], state.astype(np.float64), FireKey(5, level), 3, 4, config.fire_rate
            )
            found = state.copy()
            model.run_level(level, found, steps=2, seed=5, item=3)
            model.run_level(level, found, first=2, steps=2, seed=5, item=3, threads=3)
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
            assert np.array_equal(found[..., 0], state[..., 0])  # the image


@needs_engine
def test_cells_outside_the_gate_stay_as_they_are(model: engine.Model) -> None:
    state = np.random.default_rng(1).normal(size=(30, 20, 8)).astype(np.float32)
    gate = np.zeros((30, 20), np.uint8)
    gate[10:20, 5:9] = 1
    found = state.copy()
    model.run_level(1, found, steps=3, gate=gate)
    changed = (found != state).any(axis=-1)
    assert changed.sum() > 20 and not changed[gate == 0].any()


@needs_engine
def test_levels_that_do_not_fit_are_refused(model: engine.Model) -> None:
    state = np.zeros((6, 5, 8), np.float32)
    for level, cells, gate, message in (
        (2, state, None, "on a level"),
        (0, state[:1], None, "at least 2 x 2 cells"),
        (0, state[..., :7], None, "float32 of shape"),
        (0, state.astype(float), None, "float32 of shape"),
        (0, np.zeros((6, 10, 8), np.float32)[:, ::2], None, "contiguous"),
        (0, state, np.zeros((5, 6), np.uint8), "gate must be uint8"),
        (0, state, np.zeros((12, 5), np.uint8)[::2], "gate must be contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            model.run_level(level, cells, steps=1, gate=gate)


# ---- The largest piece ----


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3), st.floats(0.02, 0.9))
def test_the_largest_piece_is_that_of_scipy(seed: int, shape: tuple[int, ...], share: float) -> None:
    random = np.random.default_rng(seed)
    mask = (random.random(shape) < share).astype(np.uint8) * random.integers(1, 4, shape, dtype=np.uint8)
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    expected = np.where((pieces == sizes.argmax()) & (mask > 0), mask, 0)
    assert np.array_equal(in_numpy.one_piece(mask), expected)
    if engine.available():
        found = np.asfortranarray(mask)
        engine.largest_component(found)
        assert np.array_equal(found, expected)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.floats(0.02, 0.9),
    st.integers(1, 3),
)
def test_the_surest_piece_is_the_one_of_the_highest_mean_of_those_that_are_large(
    seed: int, shape: tuple[int, int, int], share: float, classes: int
) -> None:
    random = np.random.default_rng(seed)
    mask = (random.random(shape) < share).astype(np.uint8)
    chances = (random.integers(0, 1 << 10, (classes, *shape)) / 1024 / classes).astype(
        np.float32
    )  # exact sums
    pieces, count = ndimage.label(mask)
    numbers = np.arange(1, count + 1)
    expected = mask
    if count:
        sizes = ndimage.sum(mask, pieces, numbers)
        means = ndimage.mean(chances.sum(axis=0, dtype=float), pieces, numbers)
        kept = numbers[np.where(4 * sizes >= sizes.max(), means, -1).argmax()]
        expected = np.where(pieces == kept, mask, 0).astype(np.uint8)
    assert np.array_equal(in_numpy.one_piece(mask, chances.sum(axis=0, dtype=float)), expected)
    if engine.available():
        found = np.asfortranarray(mask)
        engine.surest_component(found, np.asfortranarray(chances))
        assert np.array_equal(found, expected)


@needs_engine
def test_a_piece_of_no_known_kind_is_refused() -> None:
    predict = replace(tiny_model().config.predict, largest_component=True, piece="surest")
    content = to_bytes(replace(tiny_model(), config=replace(tiny_model().config, predict=predict)))
    assert engine.Model(content).facts.largest_component == 2
    with pytest.raises(InputError, match="must be the largest or the surest"):
        engine.Model(content.replace(b"surest", b"finest"))


@needs_engine
def test_probabilities_of_another_shape_are_refused() -> None:
    mask = np.zeros((2, 3, 4), np.uint8)
    for wrong in (
        np.zeros((2, 3, 4), np.float32),
        np.zeros((1, 2, 3, 5), np.float32),
        np.zeros((1, 2, 3, 4)),
    ):
        with pytest.raises(ValueError, match="must be"):
            engine.surest_component(mask, wrong)


@needs_engine
def test_a_mask_of_another_kind_is_refused() -> None:
    for wrong in (np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2), np.int8)):
        with pytest.raises(ValueError, match="mask must be"):
            engine.largest_component(wrong)


# ---- Whole numbers ----


def calm(size: float) -> ModelFile:
    """A number -> a tiny model whose states stay below 4, and a range as if a calibration had seen this."""
    file = tiny_model()
    weights = {name: array * (0.05 if "update_out" in name else 1) for name, array in file.weights.items()}
    level = {"state": [size] * 8, "views": [4 * size] * 16, "hidden": [16 * size] * 8}
    return replace(file, weights=weights, range={"levels": [level, level]})


@needs_engine
def test_int16_takes_a_range_and_counts_what_does_not_fit() -> None:
    data = voxels()[None]
    _, expected = segmented(engine.Model(to_bytes(calm(4.0))), data)
    for size, fits in ((4.0, True), (0.1, False)):
        model = engine.Model(to_bytes(calm(size)), numbers="int16")
        mask, found = np.zeros(data.shape[1:], np.uint8), np.zeros(data.shape, np.float32)
        counts = model.segment(data, mask, found, spacing=SPACING)
        assert (counts.saturated == 0) == fits
        assert (np.abs(found - expected).max() < 1e-3) == fits
