"""A model of the C engine: opened from a model file's bytes, it takes the voxels of a scan and gives a mask.

Shapes: M modalities, X x Y x Z voxels in RAS+ order, K classes, H x W cells of n channels.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from mednca.engine.arrays import FLOAT32, UINT8, Array, Place, check, locate, memory
from mednca.engine.binding import LEVELS, MESSAGE, NUMBERS, Counts, Facts, Job, Options, Scan, library
from mednca.engine.threads import Progress, in_turn, run_slices, team_size
from mednca.errors import InputError


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
            (ctypes.c_int32 * LEVELS)(*steps),
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
        check("mask", target, source.shape[1:], UINT8, "uint8")
        shares = None
        if probability is not None:
            shares = locate(probability, writable=True)
            check("probability", shares, (self.facts.classes, *source.shape[1:]), FLOAT32, "float32")
        elif self.facts.views > 1 or self.facts.smoothing:  # they are added up, or smoothed, there
            numbers = memory(4 * self.facts.classes * math.prod(source.shape[1:]))
            shares = locate(
                memoryview(numbers).cast("f", (self.facts.classes, *source.shape[1:])), writable=True
            )
        deviations = None
        several = (1 + (self.facts.views > 1), *source.shape[1:])
        if self.signals and spread is not None:
            deviations = locate(spread, writable=True)
            check("spread", deviations, several, FLOAT32, "float32")
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
        if size := self._library.mednca_field_size(self._handle, scan):
            even = locate(memory(size), writable=True)
            self._library.mednca_field(job, even.address)
        if deviations:
            job.spread, job.spread_strides = deviations.address, deviations.stride_array()
        counts = [Counts() for _ in range(threads)]
        lengths = [job.scan.shape[1 + axis] for axis in self.facts.axes[: self.facts.views]]
        for view, (slices, told) in enumerate(zip(lengths, in_turn(progress, lengths), strict=True)):
            self._library.mednca_turn(job, view)
            team = team_size(slices, job.grid_rows, threads)
            desks = [desk(team)] if team > 1 else [desk(1) for _ in range(min(threads, slices))]
            one = self._worker(job, desks, team, target, shares, counts)
            run_slices(one, slices, team if team > 1 else len(desks), team > 1, told)
        if shares and self.facts.smoothing:
            self._library.mednca_smooth(
                job, target.address, target.stride_array(), shares.address, shares.stride_array()
            )
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
        check("state", place, (*shape[:2], self.facts.channels), FLOAT32, "float32")
        if place.strides != (shape[1] * shape[2] * 4, shape[2] * 4, 4):
            raise ValueError(f"state must be contiguous, got strides {place.strides}")
        cells = None if gate is None else locate(gate)
        if cells is not None:
            check("gate", cells, shape[:2], UINT8, "uint8")
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
    check("mask", place, place.shape, UINT8, "uint8")
    names = locate(memory(4 * math.prod(place.shape)), writable=True)
    shape = (ctypes.c_int64 * 3)(*place.shape)
    library().mednca_largest_component(place.address, shape, place.stride_array(), names.address)


def surest_component(mask: Array, probability: Array) -> None:
    """Mask uint8 (X, Y, Z), in place, and probabilities float32 (K, X, Y, Z) -> the mask with all but its
    surest piece removed.

    That is the piece of the highest mean probability of the foreground, among those that are at least a
    quarter as large as the largest. Of two that are as sure the one with the first voxel stays.

    Raises:
        ValueError: If an array has not the right shape or type.
    """
    place, shares = locate(mask, writable=True), locate(probability)
    if len(place.shape) != 3 or len(shares.shape) != 4:
        raise ValueError(
            f"mask must be (X, Y, Z), probability (K, X, Y, Z), got {place.shape}, {shares.shape}"
        )
    check("mask", place, place.shape, UINT8, "uint8")
    check("probability", shares, (shares.shape[0], *place.shape), FLOAT32, "float32")
    names = locate(memory(12 * math.prod(place.shape)), writable=True)
    shape = (ctypes.c_int64 * 3)(*place.shape)
    library().mednca_surest_component(
        *(place.address, shape, place.stride_array(), shares.address, shares.stride_array()),
        *(shares.shape[0], names.address),
    )


def _text(message: Any) -> str:
    return str(message.value.decode(errors="replace"))
