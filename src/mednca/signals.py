"""What a cellular automaton tells of its own answer, at no run more, and when its mask has settled.

Signals, each a number of a scan:

- `nqm`: how far the samples of the foreground's probability lie apart, as M3D-NCA (Kalkhof and Mukhopadhyay,
  MICCAI 2023) measures it: the sum of their standard deviation over all voxels, over the sum of the
  probability. Samples are the ends of all runs that are averaged anyway, with other fire masks and along
  other axes. Where there is but one run, they are up to four of its states, evenly spread over the last
  quarter of the finest level's steps, from the one before it to the last one.
- `axes`: the same of the means along each axis, where there are several.
- `flips`: how often a pixel's value in the mask changed in the last quarter of the finest level's steps, for
  each pixel of the foreground in the end. A mask that has settled has none.
- `levels`: Dice between the mask at the end of the level before the finest one, lifted, and that at the end
  of the run; both empty gives 1, no other level none.

The last two are of all runs together, on the slices' own pixels, before anything is averaged.

The mask has settled when no pixel has changed for `patience` steps. One that is empty or full, as all are at
first, says little: that is believed only after half of the level's steps.

The engines in C count the same (`runtime/c/levels.h`); this is for the others. Shapes: B slices, h x w cells
of a level, K classes; X x Y x Z voxels, S samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca.backends.numpy import softmax
from mednca.config import RunConfig
from mednca.rule import MedNCAConfig

Array = NDArray[np.floating[Any]]
#: Steps without a change after which a mask counts as settled, unless something else is asked for: the number
#: for which `benchmarks/bench_anytime.py` finds next to nothing lost, of models of two levels and of four.
PATIENCE = 4


def quarter(steps: int) -> int:
    """Steps of a level -> how many of them, at the end, are looked at."""
    return max(1, steps // 4)


def moments(steps: int) -> list[int]:
    """Steps of a level -> after how many of them a sample is taken, where there is one run alone, besides
    the last."""
    parts = min(3, quarter(steps))
    return [steps - part * quarter(steps) // parts for part in range(parts, 0, -1)]


def mask_values(logits: Array, threshold: float) -> NDArray[np.uint8]:
    """Logits (..., K) -> 0 for the background, else 1 + the likeliest class."""
    total = logits[..., 0] if logits.shape[-1] == 1 else np.logaddexp.reduce(logits, axis=-1)
    foreground = total > math.log(threshold / (1 - threshold))
    found: NDArray[np.uint8] = np.where(foreground, 1 + logits.argmax(axis=-1), 0).astype(np.uint8)
    return found


@dataclass
class Counts:
    """What is counted while slices are computed, as `mednca_counts` has it.

    Attributes:
        all: Cells times steps.
        steps: Of these, those of steps that were run.
        flips: Pixels that changed in the mask, in the last quarter of the finest level's steps.
        fine: Pixels of the foreground in the end.
        coarse: The same at the end of the level before; 0 where there is none.
        agree: In both, and of the same class.
    """

    all: int = 0
    steps: int = 0
    flips: int = 0
    fine: int = 0
    coarse: int = 0
    agree: int = 0


class Watch:
    """Looks at the logits of some slices between the steps of one run.

    It is called with the level, the number of steps done and the logits (B, h, w, K), from 0 steps to all of
    them; steps may be left out that it does not look at, and when none of the slices goes on. It answers
    which slices go on.
    """

    def __init__(
        self,
        config: MedNCAConfig,
        threshold: float,
        inside: tuple[slice, slice],
        counts: Counts,
        *,
        patience: int | None = None,
        signals: bool = False,
        samples: bool = False,
    ) -> None:
        """Model and where the slices lie in the padded image -> the watch, for one run of some slices.

        Args:
            config: The model.
            threshold: Above which probability a cell is foreground.
            inside: Rows and columns at full resolution; the rest is not looked at.
            counts: Is added to.
            patience: Steps without a change after which a level of a slice ends; None runs all.
            signals: Whether to count what the signals are made of.
            samples: Whether to take samples of the foreground's probability before the end of the run.
        """
        self.config, self.threshold, self.inside, self.counts = config, threshold, inside, counts
        self.patience, self.signals, self.samples = patience, signals, samples
        #: Foreground's probability (B, H, W) of the slices at each moment before the end.
        self.taken: list[Array] = []
        self._mask = self._coarse = np.zeros((0, 0, 0), np.uint8)
        self._quiet, self._going, self._done = np.zeros(0, int), np.zeros(0, bool), 0

    def looks(self, level: int, done: int) -> bool:
        """Whether it looks at this level after so many steps."""
        steps, finest = self.config.steps[level], len(self.config.scales) - 1
        if done in (0, steps) or self.patience is not None:
            return True
        return self.signals and level == finest and done >= steps - quarter(steps)

    def __call__(self, level: int, done: int, logits: Array) -> NDArray[np.bool_]:
        """Level, steps done and logits (B, h, w, K) -> bool (B,): which slices go on."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by others
            return self._see(level, done, logits)

    def _see(self, level: int, done: int, logits: Array) -> NDArray[np.bool_]:
        steps, finest = self.config.steps[level], len(self.config.scales) - 1
        cells = logits.shape[1] * logits.shape[2]
        if done == 0:
            self._going = np.ones(len(logits), bool)
            self._quiet, self._done = np.zeros(len(logits), int), 0
            self.counts.all += len(logits) * cells * steps
        self.counts.steps += int(self._going.sum()) * cells * (done - self._done)
        self._done = done
        if self.patience is not None or (self.signals and level == finest and done >= steps - quarter(steps)):
            self._look(level, done, logits)
        if self.samples and level == finest:
            while len(self.taken) < sum(moment <= done for moment in moments(steps)):
                self.taken.append(foreground(logits[:, *self.inside]))
        if done == steps and self.signals:
            self._end(level, logits)
        return self._going

    def _look(self, level: int, done: int, logits: Array) -> None:
        steps, last = self.config.steps[level], level == len(self.config.scales) - 1
        rows, columns = (
            slice(part.start // scale, -(-part.stop // scale))
            for scale in [self.config.scales[level]]
            for part in self.inside
        )
        mask = mask_values(logits[:, rows, columns], self.threshold)
        first = 0 if self.patience is not None else steps - quarter(steps)
        if done > first:
            changed = (mask != self._mask).sum(axis=(1, 2))
            if self.signals and last and done > steps - quarter(steps):
                self.counts.flips += int(changed.sum())
            if self.patience is not None:
                self._quiet = np.where(changed > 0, 0, self._quiet + 1)
                plain = (mask > 0).all(axis=(1, 2)) | (mask == 0).all(axis=(1, 2))
                self._going &= ~((self._quiet >= self.patience) & (~plain | (2 * done >= steps)))
        self._mask = mask

    def _end(self, level: int, logits: Array) -> None:
        """The last state of a level: its mask is kept for the next, or compared with that of the one
        before."""
        scales = self.config.scales
        if level < len(scales) - 1:
            if level == len(scales) - 2:
                self._coarse = mask_values(logits, self.threshold)
            return
        fine = mask_values(logits[:, *self.inside], self.threshold)
        self.counts.fine += int((fine > 0).sum())
        if level:
            factor = scales[level - 1]
            coarse = self._coarse.repeat(factor, axis=1).repeat(factor, axis=2)[:, *self.inside]
            self.counts.coarse += int((coarse > 0).sum())
            self.counts.agree += int(((fine > 0) & (fine == coarse)).sum())


def foreground(logits: Array) -> Array:
    """Logits (..., K) -> probability (...) of all foreground classes together."""
    whole: Array = softmax(logits).sum(axis=-1)
    return whole


class Spread:
    """How far samples of the foreground's probability lie apart, axis by axis."""

    def __init__(self) -> None:
        self.samples = self.axes = 0
        self._within: Array | float = 0.0
        self._between: Array | float = 0.0
        self._mean: Array | float = 0.0

    def add(self, samples: Array) -> None:
        """Samples (S, X, Y, Z) along one axis more, as many as along each other."""
        with np.errstate(invalid="ignore"):
            mean = samples.mean(axis=0)
            self._within = self._within + ((samples - mean) ** 2).sum(axis=0)
            apart = mean - self._mean
            self._mean = self._mean + apart / (self.axes + 1)
            self._between = self._between + apart * (mean - self._mean)
        self.axes += 1
        self.samples += len(samples)

    def deviations(self) -> NDArray[np.float32]:
        """Standard deviation float32 (1, X, Y, Z) of all samples; of several axes (2, X, Y, Z) with that of
        their means."""
        between = np.asarray(self._between)
        whole = np.sqrt((self._within + self.samples / self.axes * between) / self.samples)
        parts = [whole, np.sqrt(between / self.axes)][: 1 + (self.axes > 1)]
        return np.stack(parts).astype(np.float32)


def samples(config: RunConfig) -> int:
    """Settings of a model -> how many samples of the foreground's probability a prediction has."""
    runs = config.predict.ensemble * len(config.preprocess.views)
    if runs > 1 or not config.is_automaton:
        return runs
    return len(moments(config.model.steps[-1])) + 1


def told(config: RunConfig, counts: Any, mean: float, spread: float, axes: float) -> dict[str, Any]:
    """Settings, counts (a `Counts`, or of the engine in C) and sums over the voxels of the foreground's
    probability, of the deviation of its samples and of that of its means along each axis -> the signals of a
    report. What there is not is None."""
    several, automaton = len(config.preprocess.views) > 1, config.is_automaton
    both = counts.fine + counts.coarse
    dice = 2 * counts.agree / both if both else 1.0
    return {
        "nqm": round(spread / mean, 6) if mean > 0 and samples(config) > 1 else None,
        "samples": samples(config),
        "axes": round(axes / mean, 6) if mean > 0 and several else None,
        "flips": round(counts.flips / max(1, counts.fine), 6) if automaton else None,
        "levels": round(dice, 6) if automaton and len(config.model.scales) > 1 else None,
    }
