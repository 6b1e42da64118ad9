"""The rule in C, forward and backward, for the cells that fire only: float32 on the CPU, one thread; its
products of bfloat16 numbers if that is asked for.

It lives in the C engine (`mednca.engine`; runtime/c/train.h). For the backward pass it keeps the perceptions
of the cells that fired, 3n numbers each (at n = 32 and fire rate 0.5 that is 192 bytes for a cell and step,
where the definition keeps 1.2 kB), restores the states from them going backwards, and computes the hidden
units again. Long runs keep less, and compute these too again. The same inputs give the same bits on the same
machine.

With bfloat16 (runtime/c/train16.h) what goes into a product is rounded to 8 bits of precision; states, sums,
weights and gradients stay float32. It keeps half as much, and needs a processor with AVX512_BF16.

Shapes: B items, n channels, h hidden units, H x W cells.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mednca import engine
from mednca.engine.binding import library
from mednca.fire import RATE_BITS, FireKey
from mednca.nca import Backbone, Window

#: The C code works on whole vectors: channels and hidden units are padded with zeros to multiples of this.
_MULTIPLE = 16
#: What a run keeps at most for its backward pass, where that is possible; beyond it memory grows with the
#: square root of batch x steps. A smaller bound means less memory and up to a third more time, and the same
#: bits.
KEPT_BYTES = 512 << 20
#: Parameters of glibc's mallopt.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def run_native(
    rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int, *, half: bool = False
) -> Tensor:
    """State float32 (B, n, H, W) on the CPU -> state after `steps` steps, channels-last; differentiable once.

    Args:
        rule: The rule, float32.
        state: The state.
        key: Names the random stream of the fire masks.
        window: Where the state lies.
        steps: How many.
        half: Whether products are of bfloat16 numbers; see `engine.has_bfloat16`.

    Raises:
        ValueError: Where state or rule is not float32 on the CPU, or the grid is smaller than 2 x 2.
        RuntimeError: Where the C engine is not there; see `mednca.engine.why_not`.
    """
    if half and not engine.has_bfloat16():
        raise ValueError("half must be False on a processor without AVX512_BF16, got True; use float32")
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
    last: Tensor = _Steps.apply(cells, *arrays, fires, counts, depthwise, keep, half)  # type: ignore[no-untyped-call]
    return last[..., :n].permute(0, 3, 1, 2)


def run_native_half(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """`run_native` with products of bfloat16 numbers: a `mednca.nca.Run`."""
    return run_native(rule, state, key, window, steps, half=True)


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
    library().mednca_fires(
        *(ctypes.c_int64(value) for value in (batch, height, width, steps, seed, key.level)),
        ctypes.c_uint32(threshold),
        *_pointers(items, rows, columns, fires, counts),
    )
    return fires, counts


def _pack(rule: Backbone) -> tuple[Tensor, ...]:
    """Rule -> filters, views, w1, b1, w2 as train.h wants them, padded; torch takes their gradients back."""
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
    """All steps on packed arrays: state (B, H, W, n), multiples of 16 channels and hidden units.

    `kept` holds the perceptions of the last pieces, `starts` the states at the start of those before them.
    """

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
        half: bool,
    ) -> Tensor:
        weights = (filters, views, w1, b1, w2)
        state = state.clone(memory_format=torch.contiguous_format)
        if not keep:
            _forward(state, fires, weights, depthwise, half, None)
            return state
        reuse_memory()
        n = state.shape[3]
        kind = torch.bfloat16 if half else torch.float32
        pieces, again = _pieces(counts, _bytes(state[0]), 3 * n * kind.itemsize)
        starts = state.new_empty(again, *state.shape[1:])
        kept = state.new_empty(sum(piece.firing for piece in pieces[again:]), 3 * n, dtype=kind)
        at = 0
        for number, (items, steps, firing) in enumerate(pieces):
            if number < again:
                starts[number] = state[items]
            seen = None if number < again else kept[at : (at := at + firing)]
            _forward(state[items], fires[items, steps], weights, depthwise, half, seen)
        ctx.depthwise, ctx.half, ctx.pieces = depthwise, half, pieces
        ctx.save_for_backward(state, fires, counts, starts, kept, *weights)
        return state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_last: Tensor) -> tuple[Tensor | None, ...]:
        last, fires, counts, starts, kept, *weights = ctx.saved_tensors
        filters, _, w1, b1, w2 = weights
        state, d_state = last.clone(), d_last.clone(memory_format=torch.contiguous_format)
        gradients = [torch.zeros_like(array) for array in weights]
        backward = library().mednca_backward16 if ctx.half else library().mednca_backward
        filters_t = filters if ctx.depthwise else filters.t().contiguous()
        transposed = (filters_t, w1, b1, w1.t().contiguous(), w2.t().contiguous())
        again = ctx.pieces[: len(starts)]
        memory = kept.new_empty(max((piece.firing for piece in again), default=0), kept.shape[1])
        end = len(kept)
        for number, (items, steps, firing) in reversed(list(enumerate(ctx.pieces))):
            if number < len(starts):
                seen = memory[:firing]
                start = starts[number : number + 1].clone()
                _forward(start, fires[items, steps], weights, ctx.depthwise, ctx.half, seen)
            else:
                seen = kept[end - firing : end]
                end -= firing
            shape = _shape(state[items], fires[items, steps], b1, ctx.depthwise)
            status = backward(
                ctypes.byref(shape),
                *_pointers(state[items], d_state[items], fires[items, steps], counts[items, steps], seen),
                *_pointers(*transposed, *gradients),
            )
            _check(status)
        return d_state, *gradients, None, None, None, None, None


class _Piece(NamedTuple):
    """Items and steps that are run in one go, and how many of their cells fire."""

    items: slice
    steps: slice
    firing: int


def _pieces(counts: Tensor, state_bytes: int, seen_bytes: int) -> tuple[list[_Piece], int]:
    """Sums of fire masks (B, steps) and bytes of an item's state and of a perception -> the pieces of a run
    in order, and how many of them, from the first, are to be computed again.

    Where everything fits into `KEPT_BYTES` that is one piece. Where not, an item's steps are cut so that the
    states at the start of all pieces and the perceptions of one, which is what computing them again needs,
    are about as large; the last pieces are kept as far as there is room beside these.
    """
    batch, steps = counts.shape
    everything = _Piece(slice(0, batch), slice(0, steps), int(counts.sum()))
    if everything.firing * seen_bytes <= KEPT_BYTES:
        return [everything], 0
    length = min(steps, math.ceil(math.sqrt(batch * steps)))
    pieces = [
        _Piece(slice(item, item + 1), slice(first, min(first + length, steps)), 0)
        for item in range(batch)
        for first in range(0, steps, length)
    ]
    pieces = [piece._replace(firing=int(counts[piece.items, piece.steps].sum())) for piece in pieces]
    room = KEPT_BYTES - len(pieces) * state_bytes - max(piece.firing for piece in pieces) * seen_bytes
    again = len(pieces)
    while again and pieces[again - 1].firing * seen_bytes <= room:
        again -= 1
        room -= pieces[again].firing * seen_bytes
    return pieces, again


@functools.cache
def reuse_memory() -> None:
    """Let this process keep up to 1 GB of memory that is freed.

    By default large blocks go back to the system at once, and each iteration of a training would fetch them
    anew, page by page: a sixth of its time. Only where the C library has a `mallopt` (glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        mallopt(parameter, 1 << 30)


def _shape(state: Tensor, fires: Tensor, b1: Tensor, depthwise: bool) -> _Shape:
    return _Shape(*state.shape, len(b1), fires.shape[1], depthwise)


def _forward(
    state: Tensor,
    fires: Tensor,
    weights: Sequence[Tensor],
    depthwise: bool,
    half: bool,
    seen: Tensor | None,
) -> None:
    """State, in place -> after the steps; writes perceptions (firing cells, 3n) unless `seen` is None."""
    shape = _shape(state, fires, weights[3], depthwise)
    forward = library().mednca_forward16 if half else library().mednca_forward
    _check(forward(ctypes.byref(shape), *_pointers(state, fires, *weights, seen)))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for the native backend to work in; use smaller patches or images")
