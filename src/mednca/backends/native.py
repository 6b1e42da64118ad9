"""The rule in C, forward and backward, for the cells that fire only: float32 on the CPU, one thread.

native.c is compiled for this machine at first use, into the user's cache folder. For the backward pass it
keeps the perceptions of the cells that fired, 3n numbers each (at n = 32 and fire rate 0.5 that is 192 bytes
for a cell and step, where the definition keeps 1.2 kB), restores the states from them going backwards, and
computes the hidden units again. The same inputs give the same bits on the same machine.

Shapes: B items, n channels, h hidden units, H x W cells.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mednca.fire import RATE_BITS, FireKey
from mednca.nca import Backbone, Window

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared"]
#: The C code works on whole vectors: channels and hidden units are padded with zeros to multiples of this.
_MULTIPLE = 16


def run_native(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """State float32 (B, n, H, W) on the CPU -> state after `steps` steps, channels-last; differentiable once.

    Raises:
        ValueError: Where state or rule is not float32 on the CPU, or the grid is smaller than 2 x 2.
        RuntimeError: Where there is no C compiler; see `available` and `why_not`.
    """
    for name, tensor in (("state", state), ("rule", rule.update_in.weight)):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"{name} must be float32 on the CPU, got {tensor.dtype} on {tensor.device}")
    if min(state.shape[-2:]) < 2:
        raise ValueError(f"state must have at least two rows and columns, got {tuple(state.shape)}")
    n = rule.config.channels
    arrays = _pack(rule)
    cells = F.pad(state.permute(0, 2, 3, 1), (0, -n % _MULTIPLE)).contiguous()
    fires, counts = fire_masks(key, steps, window, rule.config.fire_rate)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (cells, *arrays))
    depthwise = rule.config.perception == "depthwise"
    last: Tensor = _Steps.apply(cells, *arrays, fires, counts, depthwise, keep)  # type: ignore[no-untyped-call]
    return last[..., :n].permute(0, 3, 1, 2)


def fire_masks(key: FireKey, steps: int, window: Window, fire_rate: float) -> tuple[Tensor, Tensor]:
    """The masks of `mednca.fire.fire_mask` for all steps: uint8 (B, steps, H, W); their sums (B, steps)."""
    batch, height, width = len(window.items), window.rows.shape[1], window.columns.shape[2]
    items = window.items.reshape(batch).contiguous()
    rows = window.rows.reshape(-1, height).expand(batch, height).contiguous()
    columns = window.columns.reshape(-1, width).expand(batch, width).contiguous()
    fires = torch.empty(batch, steps, height, width, dtype=torch.uint8)
    counts = torch.empty(batch, steps, dtype=torch.int64)
    threshold = round(fire_rate * (1 << RATE_BITS))
    seed = key.seed & 0xFFFFFFFF
    _library().mednca_fires(
        *(ctypes.c_int64(value) for value in (batch, height, width, steps, seed, key.level)),
        ctypes.c_uint32(threshold),
        *_pointers(items, rows, columns, fires, counts),
    )
    return fires, counts


def _pack(rule: Backbone) -> tuple[Tensor, ...]:
    """Rule -> filters, views, w1, b1, w2 as native.c wants them, padded; torch takes their gradients back."""
    n, h = rule.config.channels, rule.config.hidden
    more, more_hidden = -n % _MULTIPLE, -h % _MULTIPLE
    filters = torch.stack([rule.perceive_a.weight, rule.perceive_b.weight]).permute(3, 4, 2, 0, 1)
    filters = F.pad(filters, (0, more, 0, 0, 0, more if filters.shape[2] > 1 else 0))
    assert rule.perceive_a.bias is not None and rule.perceive_b.bias is not None
    views = F.pad(torch.stack([rule.perceive_a.bias, rule.perceive_b.bias]), (0, more))
    w1 = F.pad(rule.update_in.weight.t().reshape(3, n, h), (0, more_hidden, 0, more))
    b1 = F.pad(rule.update_in.bias, (0, more_hidden))
    w2 = F.pad(rule.update_out.weight[rule.config.image_channels :], (0, 0, rule.config.image_channels, 0))
    w2 = F.pad(w2.t(), (0, more, 0, more_hidden))
    return (
        filters.reshape(-1, 2 * (n + more)).contiguous(),
        views.reshape(-1),
        w1.reshape(-1, h + more_hidden).contiguous(),
        b1,
        w2.contiguous(),
    )


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "height", "width", "channels", "hidden", "steps", "depthwise")
    ]


class _Steps(torch.autograd.Function):
    """All steps on packed arrays: state (B, H, W, n), multiples of 16 channels and hidden units."""

    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        filters: Tensor,
        views: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        fires: Tensor,
        counts: Tensor,
        depthwise: bool,
        keep: bool,
    ) -> Tensor:
        batch, height, width, n = state.shape
        ctx.shape = _Shape(batch, height, width, n, len(b1), counts.shape[1], depthwise)
        state = state.clone(memory_format=torch.contiguous_format)
        kept = torch.empty(int(counts.sum()), 3 * n) if keep else None
        status = _library().mednca_forward(
            ctypes.byref(ctx.shape), *_pointers(state, fires, filters, views, w1, b1, w2, kept)
        )
        _check(status)
        if keep:
            ctx.save_for_backward(state, filters, w1, b1, w2, fires, counts, kept)
        return state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_last: Tensor) -> tuple[Tensor | None, ...]:
        last, filters, w1, b1, w2, fires, counts, kept = ctx.saved_tensors
        state, d_state = last.clone(), d_last.clone(memory_format=torch.contiguous_format)
        gradients = [torch.zeros_like(array) for array in (filters, filters[0], w1, b1, w2)]
        filters_t = filters if ctx.shape.depthwise else filters.t().contiguous()
        w1_t, w2_t = w1.t().contiguous(), w2.t().contiguous()
        status = _library().mednca_backward(
            ctypes.byref(ctx.shape),
            *_pointers(state, d_state, fires, counts, kept, filters_t, w1, b1, w1_t, w2_t, *gradients),
        )
        _check(status)
        return d_state, *gradients, None, None, None, None


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for the native backend to work in; use smaller patches or images")


# ---- The library ----


def available() -> bool:
    """Whether `run_native` works on this machine; compiles it where that has not been done."""
    return isinstance(_load(), ctypes.CDLL)


def why_not() -> str:
    """What keeps `run_native` from working on this machine and what to do about it; "" where it works."""
    library = _load()
    return "" if isinstance(library, ctypes.CDLL) else library


def _library() -> ctypes.CDLL:
    library = _load()
    if not isinstance(library, ctypes.CDLL):
        raise RuntimeError(f"the native backend cannot be used: {library}")
    return library


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    compiler = _compiler()
    if not compiler:
        return (
            "there is no C compiler (cc, gcc, clang); install one, or name it in the environment variable CC"
        )
    try:
        return ctypes.CDLL(str(_compile(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"the C compiler {compiler[0]} did not make a library that can be loaded: {str(said).strip()}"


def _compiler() -> list[str]:
    """The command of the C compiler: `$CC`, or the first of the usual ones; empty where there is none."""
    found = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    return shlex.split(os.environ.get("CC", "")) or found[:1]


def _compile(compiler: list[str]) -> Path:
    """Command of a C compiler -> the library in the user's cache, made where it is not there yet.

    Its name holds all that decides its contents; it appears complete or not at all.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mednca"
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, text=True).stdout
    what = [_SOURCE.read_text("utf-8"), *_FLAGS, *compiler, version, _processor()]
    library = cache / f"native-{hashlib.sha256('|'.join(what).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "native.so"
            command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            try:
                subprocess.run([*command, "-march=native"], capture_output=True, check=True, text=True)
            except subprocess.CalledProcessError:  # not every compiler knows this machine
                subprocess.run(command, capture_output=True, check=True, text=True)
            made.replace(library)
    return library


def _processor() -> str:
    """What tells processors with other instructions apart, parts joined by "|"."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "|".join([platform.machine(), platform.processor(), *sorted(set(told))])
