"""The C engine, bound: a model file's bytes and the voxels of a scan in, a mask out.

The library (runtime/c) lies beside this module and is loaded with ctypes when it is first needed; NumPy is
not imported. An array is anything with a buffer, as NumPy's arrays, `array.array`, `bytes` and memoryviews
have; strides may be negative. The library starts no thread: the threads are Python's, which hold no lock
while C computes.

Shapes: M modalities, X x Y x Z voxels in RAS+ order, K classes, H x W cells of n channels.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.machinery
import math
import mmap
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednca.errors import InputError

#: Anything with a buffer.
Array = Any
Progress = Callable[[int, int], None]
NUMBERS = ("fp32", "int16")
LEVELS, MODALITIES, CLASSES, MESSAGE = 8, 16, 255, 256
#: Version of the structures and functions that are declared here.
ABI = 3
#: Units of `Counts.mean`, `spread` and `axes` in 1.
UNITS = 1 << 24
_STRIDED = 0x001C  # PyBUF_STRIDES | PyBUF_FORMAT
_int32, _int64 = ctypes.c_int32, ctypes.c_int64


class Options(ctypes.Structure):
    """mednca_options."""

    _fields_ = [
        *((name, _int32) for name in ("numbers", "gauge", "gate", "ensemble", "patience", "signals")),
        ("seed", ctypes.c_uint32),
        ("steps", _int32 * LEVELS),
        ("instructions", ctypes.c_char_p),
    ]


class Facts(ctypes.Structure):
    """mednca_facts: what a model is."""

    _fields_ = [
        *((name, _int32) for name in ("modalities", "context", "views")),
        ("axes", _int32 * 3),
        *((name, _int32) for name in ("image_channels", "classes")),
        *((name, _int32) for name in ("channels", "hidden", "depthwise", "levels")),
        *((name, _int32 * LEVELS) for name in ("scales", "steps")),
        *((name, _int32) for name in ("ensemble", "largest_component", "parameters")),
        ("values", ctypes.c_uint8 * CLASSES),
        *((name, _int32) for name in ("numbers", "has_range")),
        ("condition", ctypes.c_double * LEVELS),
        ("instructions", ctypes.c_char * 16),
    ]


class Scan(ctypes.Structure):
    """mednca_scan: where the voxels of a scan are, and what they mean."""

    _fields_ = [
        ("voxels", ctypes.c_void_p),
        ("type", _int32),
        *((name, ctypes.c_double) for name in ("slope", "intercept")),
        *((name, _int64 * 4) for name in ("shape", "strides")),
        ("spacing", ctypes.c_double * 3),
    ]


class Job(ctypes.Structure):
    """mednca_job: a scan that has been measured."""

    _fields_ = [
        ("model", ctypes.c_void_p),
        ("scan", Scan),
        *((name, _int64) for name in ("view", "slices", "rows", "columns", "height", "width")),
        *((name, _int64) for name in ("grid_rows", "grid_columns", "top", "left")),
        *((name, ctypes.c_double * MODALITIES) for name in ("low", "high")),
        ("spread", ctypes.c_void_p),
        ("spread_strides", _int64 * 4),
    ]


class Counts(ctypes.Structure):
    """mednca_counts: cell updates computed, cells times steps, those of steps that were run, numbers that did
    not fit int16, logits that are not finite; then what signals are made of (`mednca.signals`)."""

    _fields_ = [
        *((name, _int64) for name in ("cells", "all", "steps", "saturated", "broken")),
        *((name, _int64) for name in ("flips", "fine", "coarse", "agree", "mean", "spread", "axes")),
    ]

    @classmethod
    def total(cls, parts: Sequence[Counts]) -> Counts:
        """The counts of several threads -> their sum."""
        return cls(*(sum(getattr(part, name) for part in parts) for name, *_ in cls._fields_))


class _Buffer(ctypes.Structure):
    """Py_buffer, which the stable interface of Python has since 3.11."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("len", "itemsize")),
        *((name, ctypes.c_int) for name in ("readonly", "ndim")),
        ("format", ctypes.c_char_p),
        *((name, ctypes.POINTER(ctypes.c_ssize_t)) for name in ("shape", "strides", "suboffsets")),
        ("internal", ctypes.c_void_p),
    ]


# ---- The library ----


def _files() -> list[Path]:
    """Where the library may be: beside this module, under the names that extensions have here."""
    return [Path(__file__).with_name("_engine" + end) for end in importlib.machinery.EXTENSION_SUFFIXES]


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    path = next((file for file in _files() if file.is_file()), None)
    if path is None:
        return (
            "the C engine was not built when mednca was installed; install a C compiler (gcc or clang) and "
            "then mednca again, with pip install --force-reinstall --no-deps --no-binary mednca mednca"
        )
    try:
        library = ctypes.CDLL(str(path))
        pointer, size, text, strides = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_char_p,
            ctypes.POINTER(_int64),
        )
        scan, job, counts = ctypes.POINTER(Scan), ctypes.POINTER(Job), ctypes.POINTER(Counts)
        message, member = [text, size], [_int32, _int32]
        pixels = [pointer, strides]
        grid, key = [_int64, _int64], ctypes.c_uint32
        declared: dict[str, tuple[Any, list[Any]]] = {
            "abi": (_int32, []),
            "instructions": (text, [_int32]),
            "has_bfloat16": (ctypes.c_int, []),
            "open": (pointer, [text, size, ctypes.POINTER(Options), *message]),
            "close": (None, [pointer]),
            "about": (None, [pointer, ctypes.POINTER(Facts)]),
            "work_size": (size, [pointer, scan, _int32, *message]),
            "begin": (ctypes.c_int, [pointer, scan, pointer, job, *message]),
            "turn": (None, [job, _int32]),
            "slice": (None, [job, _int64, pointer, *member, *pixels, *pixels, counts]),
            "largest_component": (None, [pointer, strides, strides, pointer]),
            "level_size": (size, [pointer, *grid, _int32]),
            "level": (
                None,
                [
                    pointer,
                    _int32,
                    pointer,
                    *grid,
                    _int32,
                    _int32,
                    key,
                    _int64,
                    pointer,
                    pointer,
                    *member,
                    counts,
                ],
            ),
        }
        for name, (result, arguments) in declared.items():
            function = getattr(library, f"mednca_{name}")
            function.restype, function.argtypes = result, arguments
        if (found := library.mednca_abi()) != ABI:
            return f"{path} is of version {found}, version {ABI} is needed; install mednca again"
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error}); install mednca again"
    return library


def library() -> ctypes.CDLL:
    """The library, loaded, with the types of its functions declared.

    Raises:
        RuntimeError: Where there is none; see `why_not`.
    """
    found = _load()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def available() -> bool:
    """Whether the library is there."""
    return not isinstance(_load(), str)


def why_not() -> str:
    """Why the library is not there, and what to do; nothing if it is."""
    found = _load()
    return found if isinstance(found, str) else ""


def instructions() -> list[str]:
    """Names of the sets of instructions that library and machine have, best first."""
    found: list[str] = []
    while name := library().mednca_instructions(len(found)):
        found.append(name.decode())
    return found


def has_bfloat16() -> bool:
    """Whether the library can train with products of bfloat16 numbers on this processor."""
    return available() and bool(library().mednca_has_bfloat16())


# ---- Arrays ----

#: Letter of a number type, size in bytes -> MEDNCA_I8 to MEDNCA_F64.
_TYPES = {
    (letter, size): at
    for at, (letters, size) in enumerate(
        (("b", 1), ("B?", 1), ("hil", 2), ("HIL", 2), ("hil", 4), ("HIL", 4), ("f", 4), ("d", 8))
    )
    for letter in letters
}
#: What may stand before the letter: the order of this machine's bytes, in words or not.
_NATIVE = "@=<" if sys.byteorder == "little" else "@=>!"
_UINT8, _FLOAT32 = _TYPES["B", 1], _TYPES["f", 4]


@dataclass(frozen=True)
class Place:
    """Where an array lies in memory; it lives as long as this does.

    Attributes:
        address: Of its first element.
        type: Its number type, as MEDNCA_I8 to MEDNCA_F64, or -1 for another.
        shape: Elements along each axis.
        strides: Bytes from one to the next.
        keeper: What keeps the array alive.
    """

    address: int
    type: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    keeper: memoryview

    def stride_array(self) -> Any:
        """The strides as C wants them."""
        return (_int64 * len(self.strides))(*self.strides)


def locate(array: Array, *, writable: bool = False) -> Place:
    """Array -> where it lies.

    Raises:
        TypeError: If it has no buffer, or one that must not be written to.
    """
    view = memoryview(array)
    if writable and view.readonly:
        raise TypeError("array must be writable, got a read-only one")
    buffer = _Buffer()
    python = ctypes.pythonapi
    python.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), _STRIDED)
    address = buffer.buf or 0
    python.PyBuffer_Release(ctypes.byref(buffer))  # the view holds the array where it is
    kind = _TYPES.get((view.format.lstrip(_NATIVE), view.itemsize), -1)
    return Place(address, kind, view.shape or (), view.strides or (), view)


def memory(size: int) -> mmap.mmap:
    """Number of bytes -> so many zeros, which take no memory before they are written to.

    Raises:
        MemoryError: If there is too little.
    """
    try:
        return mmap.mmap(-1, max(1, size))
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{size} bytes") from error


def _check(name: str, place: Place, shape: Sequence[int], kind: int, told: str) -> None:
    if place.shape != tuple(shape) or place.type != kind:
        raise ValueError(f"{name} must be {told} of shape {tuple(shape)}, got shape {place.shape}")


# ---- Models ----


class Model:
    """A model, opened. It never changes: several threads may use it at a time."""

    def __init__(
        self,
        content: bytes,
        *,
        numbers: str = "fp32",
        gauge: bool = True,
        gate: int | None = None,
        ensemble: int = 0,
        seed: int = 0,
        steps: Sequence[int] = (),
        instructions: str | None = None,
        patience: int | None = None,
        signals: bool = False,
    ) -> None:
        """Content of a model file -> the model.

        Args:
            content: The bytes of the .safetensors file.
            numbers: "fp32", or "int16", for which the file must hold the range of its states.
            gauge: Rewrite the rule with fewer multiplications where that is well conditioned.
            gate: Compute finer levels only where the coarse foreground, dilated by so many pixels, lies.
            ensemble: Runs with other fire masks to average; 0 takes the model's own number.
            seed: Names the random stream of the fire masks; its lower 32 bits count.
            steps: Steps of each level instead of the model's own.
            instructions: One of `instructions()` instead of the best.
            patience: A level of a slice ends when no pixel of its mask has changed for so many steps (see
                `mednca.signals`); None runs all steps.
            signals: Whether `segment` also counts what the signals are made of.

        Raises:
            InputError: If the model cannot be used so.
            RuntimeError: If the library is not there.
        """
        self._library = library()
        told = instructions.encode() if instructions else None
        options = Options(
            NUMBERS.index(numbers),
            int(gauge),
            -1 if gate is None else gate,
            ensemble,
            patience or 0,
            int(signals),
            seed & 0xFFFFFFFF,
            (_int32 * LEVELS)(*steps),
            told,
        )
        message = ctypes.create_string_buffer(MESSAGE)
        self._handle = self._library.mednca_open(content, len(content), options, message, MESSAGE)
        if not self._handle:
            raise InputError(_text(message))
        # Not at exit: a thread that was left behind by an interrupt may still compute.
        weakref.finalize(self, self._library.mednca_close, self._handle).atexit = False
        self.signals = signals
        self.facts = Facts()
        self._library.mednca_about(self._handle, self.facts)

    def segment(
        self,
        voxels: Array,
        mask: Array,
        probability: Array | None = None,
        spread: Array | None = None,
        *,
        spacing: Sequence[float],
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Counts:
        """Voxels (M, X, Y, Z) of a scan -> its mask, and its probabilities, written where they are wanted.

        The result does not depend on the number of threads. Where there are at least as many slices as
        threads, each thread takes one slice after the other, in memory of its own; else all of them share
        every slice. Of a model of several axes, the slices along one follow those along the other, and their
        probabilities are averaged.

        Args:
            voxels: Integers of up to 32 bits, float32 or float64, on axes that run as RAS+.
            mask: uint8 (X, Y, Z), written to: 0 background, else the value of a class.
            probability: float32 (K, X, Y, Z), written to.
            spread: float32 (1, X, Y, Z), written to: standard deviation of the samples of the foreground's
                probability, if the model was opened with `signals`. Of a model of several axes (2, X, Y, Z):
                also of its means along each axis.
            spacing: Distance of neighbouring voxels in mm, along X, Y and Z.
            threads: How many threads to use.
            progress: Called in the calling thread with slices done and slices in all, along all axes.

        Raises:
            InputError: If the model cannot take such a scan, or it holds values that are not finite.
            MemoryError: If there is too little memory to work in.
            TypeError, ValueError: If an array is not what it must be.
        """
        source, target = locate(voxels), locate(mask, writable=True)
        if source.type < 0 or len(source.shape) != 4:
            raise ValueError(
                f"voxels must be (M, X, Y, Z), integers of up to 32 bits or floats, got shape {source.shape}"
            )
        _check("mask", target, source.shape[1:], _UINT8, "uint8")
        shares = None
        if probability is not None:
            shares = locate(probability, writable=True)
            _check("probability", shares, (self.facts.classes, *source.shape[1:]), _FLOAT32, "float32")
        elif self.facts.views > 1:  # they are added up there
            numbers = memory(4 * self.facts.classes * math.prod(source.shape[1:]))
            shares = locate(
                memoryview(numbers).cast("f", (self.facts.classes, *source.shape[1:])), writable=True
            )
        deviations = None
        several = (1 + (self.facts.views > 1), *source.shape[1:])
        if self.signals and spread is not None:
            deviations = locate(spread, writable=True)
            _check("spread", deviations, several, _FLOAT32, "float32")
        elif self.signals and self.facts.views > 1:  # those of one axis are summed up there
            numbers = memory(4 * math.prod(several))
            deviations = locate(memoryview(numbers).cast("f", several), writable=True)
        if threads < 1 or len(spacing) != 3:
            raise ValueError(f"threads must be at least 1 and spacing 3 numbers, got {threads} and {spacing}")
        scan = Scan(source.address, source.type, 1.0, 0.0, source.shape, source.strides, tuple(spacing))
        message = ctypes.create_string_buffer(MESSAGE)

        def desk(team: int) -> Place:
            size = self._library.mednca_work_size(self._handle, scan, team, message, MESSAGE)
            if not size:
                raise InputError(_text(message))
            return locate(memory(size), writable=True)

        job, first = Job(), desk(1)
        if self._library.mednca_begin(self._handle, scan, first.address, job, message, MESSAGE):
            raise InputError(_text(message))
        if deviations:
            job.spread, job.spread_strides = deviations.address, deviations.stride_array()
        counts = [Counts() for _ in range(threads)]
        lengths = [source.shape[1 + axis] for axis in self.facts.axes[: self.facts.views]]
        for view, (slices, told) in enumerate(zip(lengths, in_turn(progress, lengths), strict=True)):
            self._library.mednca_turn(job, view)
            team = team_size(slices, job.grid_rows, threads)
            desks = [desk(team)] if team > 1 else [desk(1) for _ in range(min(threads, slices))]
            one = self._worker(job, desks, team, target, shares, counts)
            run_slices(one, slices, team if team > 1 else len(desks), team > 1, told)
        return Counts.total(counts)

    def _worker(
        self,
        job: Job,
        desks: Sequence[Place],
        team: int,
        mask: Place,
        shares: Place | None,
        counts: Sequence[Counts],
    ) -> Callable[[int, int], None]:
        """A job, memory to work in and where results go -> what computes a slice in a thread."""
        strides, share_strides = mask.stride_array(), shares.stride_array() if shares else None

        def one(number: int, thread: int) -> None:
            rank, work = (thread, desks[0]) if team > 1 else (0, desks[thread])
            self._library.mednca_slice(
                job,
                number,
                work.address,
                rank,
                team,
                mask.address,
                strides,
                shares.address if shares else None,
                share_strides,
                counts[thread],
            )

        return one

    def run_level(
        self,
        level: int,
        state: Array,
        *,
        steps: int,
        first: int = 0,
        seed: int = 0,
        item: int = 0,
        gate: Array | None = None,
        threads: int = 1,
    ) -> Counts:
        """State float32 (H, W, n) of a level, in place -> the state after some of its steps.

        Args:
            level: From 0, the coarsest.
            state: Contiguous; at least 2 x 2 cells.
            steps: How many.
            first: Number of the first of them, for its fire mask.
            seed: Names the random stream of the fire masks.
            item: What names the image in it.
            gate: uint8 (H, W), contiguous: cells that may fire. None: all.
            threads: How many threads to use.

        Raises:
            ValueError: If an array has not the right shape or type.
        """
        place = locate(state, writable=True)
        shape = place.shape
        if len(shape) != 3 or min(shape[:2]) < 2 or not 0 <= level < self.facts.levels or threads < 1:
            raise ValueError(
                f"state must be (H, W, n) of at least 2 x 2 cells, on a level, got shape {shape}"
            )
        _check("state", place, (*shape[:2], self.facts.channels), _FLOAT32, "float32")
        if place.strides != (shape[1] * shape[2] * 4, shape[2] * 4, 4):
            raise ValueError(f"state must be contiguous, got strides {place.strides}")
        cells = None if gate is None else locate(gate)
        if cells is not None:
            _check("gate", cells, shape[:2], _UINT8, "uint8")
            if cells.strides != (shape[1], 1):
                raise ValueError(f"gate must be contiguous, got strides {cells.strides}")
        desk = memory(self._library.mednca_level_size(self._handle, *shape[:2], threads))
        work = locate(desk, writable=True)
        counts = [Counts() for _ in range(threads)]

        def one(_: int, rank: int) -> None:
            self._library.mednca_level(
                self._handle,
                level,
                place.address,
                *shape[:2],
                first,
                steps,
                seed & 0xFFFFFFFF,
                item,
                None if cells is None else cells.address,
                work.address,
                rank,
                threads,
                counts[rank],
            )

        run_slices(one, 1, threads, True, None)
        return Counts.total(counts)


def largest_component(mask: Array) -> None:
    """Mask uint8 (X, Y, Z), in place -> the same with all but the largest piece of its foreground removed.

    Voxels are joined by their faces. Of two pieces of one size the one with the first voxel stays.
    """
    place = locate(mask, writable=True)
    if len(place.shape) != 3:
        raise ValueError(f"mask must be (X, Y, Z), got shape {place.shape}")
    _check("mask", place, place.shape, _UINT8, "uint8")
    names = memory(4 * place.shape[0] * place.shape[1] * place.shape[2])
    library().mednca_largest_component(
        place.address, (_int64 * 3)(*place.shape), place.stride_array(), locate(names, writable=True).address
    )


def team_size(slices: int, rows: int, threads: int) -> int:
    """Slices, rows of their grid and threads -> how many threads share a slice; 1: each has its own slices.

    A thread of a team should have at least 16 rows, as all wait for each other twice in each step; the time
    for that is taken as a fifth of the work. Of the two ways the one with less to do, one after the other, is
    taken.
    """
    team = min(threads, rows // 16)
    return team if team > 1 and 1.2 * slices / team < math.ceil(slices / threads) else 1


def in_turn(progress: Progress | None, lengths: Sequence[int]) -> list[Progress | None]:
    """What to call with slices done and slices in all, and the numbers of slices of several parts -> what
    each part calls with its own."""

    def part(at: int) -> Progress | None:
        before, total = sum(lengths[:at]), sum(lengths)
        return None if progress is None else lambda done, _: progress(before + done, total)

    return [part(at) for at in range(len(lengths))]


def run_slices(
    one: Callable[[int, int], None],
    slices: int,
    threads: int,
    together: bool,
    progress: Progress | None,
) -> None:
    """Call one(slice, thread) for every slice in threads, and tell the caller's own thread of the progress.

    Args:
        one: Computes a slice, or, if `together`, a thread's part of it.
        slices: How many.
        threads: How many.
        together: Whether all threads share each slice, or each takes slices of its own.
        progress: Called with slices done and slices in all.

    The caller's thread only waits, so that an interrupt is seen at once. The others are not waited for then:
    they hold what they work on, end with the slice that they are at, and do not keep Python from ending.
    """
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    open_slices = collections.deque(range(slices))

    def own(thread: int) -> None:
        try:
            while True:
                try:
                    number = open_slices.popleft()
                except IndexError:
                    return
                one(number, thread)
                done.put(None)
        except BaseException as error:
            done.put(error)

    def shared(number: int, thread: int) -> None:
        try:
            one(number, thread)
            done.put(None)
        except BaseException as error:
            done.put(error)

    def wait() -> None:
        while True:  # with a time limit, as without one Windows sees no interrupt
            try:
                error = done.get(timeout=0.2)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return

    try:
        if not together:
            for thread in range(min(threads, slices)):
                threading.Thread(target=own, args=(thread,), daemon=True).start()
        for number in range(slices):
            if together:
                for thread in range(threads):
                    threading.Thread(target=shared, args=(number, thread), daemon=True).start()
            for _ in range(threads if together else 1):
                wait()
            if progress:
                progress(number + 1, slices)
    finally:
        open_slices.clear()


def _text(message: Any) -> str:
    return str(message.value.decode(errors="replace"))
