"""The library of the C engine, loaded: its structures and functions as runtime/c/mednca.h declares them.

It lies beside this package, and is loaded with ctypes when it is first needed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NUMBERS = ("fp32", "int16")
LEVELS, MODALITIES, CLASSES, MESSAGE = 8, 16, 255, 256
#: Version of the structures and functions that are declared here.
ABI = 8
#: Units of `Counts.mean`, `spread` and `axes` in 1.
UNITS = 1 << 24
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
        *((name, _int32) for name in ("ensemble", "smoothing", "largest_component", "parameters")),
        ("values", ctypes.c_uint8 * CLASSES),
        *((name, _int32) for name in ("second_look", "numbers", "has_range")),
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
        ("first", _int64 * 3),
        *((name, _int64) for name in ("view", "slices", "rows", "columns", "height", "width")),
        *((name, _int64) for name in ("grid_rows", "grid_columns", "top", "left")),
        *((name, ctypes.c_double * MODALITIES) for name in ("low", "high")),
        ("field", _int64),
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


# ---- The library ----


def _files() -> list[Path]:
    """Where the library may be: beside this package, under the names that extensions have here."""
    beside = Path(__file__).resolve().parents[1]
    return [beside / f"_engine{end}" for end in importlib.machinery.EXTENSION_SUFFIXES]


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
            "field_size": (size, [pointer, scan]),
            "field": (None, [job, pointer]),
            "turn": (None, [job, _int32]),
            "slice": (None, [job, _int64, pointer, *member, *pixels, *pixels, counts]),
            "smooth": (None, [job, pointer, strides, pointer, strides]),
            "largest_component": (None, [pointer, strides, strides, pointer]),
            "surest_component": (None, [pointer, strides, strides, *pixels, _int32, pointer]),
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
