"""Arrays as C sees them: where they lie, and memory to work in.

An array is anything with a buffer, as NumPy's arrays, `array.array`, `bytes` and memoryviews have; strides
may be negative.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Anything with a buffer.
Array = Any
_STRIDED = 0x001C  # PyBUF_STRIDES | PyBUF_FORMAT
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
UINT8, FLOAT32 = _TYPES["B", 1], _TYPES["f", 4]


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
        return (ctypes.c_int64 * len(self.strides))(*self.strides)


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


def check(name: str, place: Place, shape: Sequence[int], kind: int, told: str) -> None:
    """Raise ValueError for an array of another shape or number type; `told` names the type."""
    if place.shape != tuple(shape) or place.type != kind:
        raise ValueError(f"{name} must be {told} of shape {tuple(shape)}, got shape {place.shape}")
