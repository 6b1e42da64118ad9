"""The watch over a training: says early that a run is stuck or diverging.

Med-NCA's published training fails often in two ways: a start that never leaves the trivial answer, and a run
that learns and then falls off a cliff. Both show in means over short windows of iterations.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["healthy", "watching", "stuck", "diverged"]


@dataclass
class Sentinel:
    """Running state of the watch; plain numbers, kept in every checkpoint.

    Attributes:
        patience: Iterations after which a run must have learnt something.
        window: Iterations of a window.
        best_loss: Least median loss of a window.
        best_skill: Largest skill of a window: how far the soft Dice stands above that of calling every cell
            foreground, as a share of what is left to 1.
        sums: Running sums of the open window: iterations, loss, soft Dice, share of foreground.
        losses: The losses of the open window.
    """

    patience: int
    window: int = 50
    best_loss: float = math.inf
    best_skill: float = -math.inf
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    losses: list[float] = field(default_factory=list)

    def observe(
        self, iteration: int, loss: float, dice: float, foreground: float, gradient_norm: float
    ) -> Verdict:
        """One iteration's loss, soft Dice, share of foreground in the target and gradient norm -> verdict.

        "watching" within a window; at its end "healthy", "stuck" or "diverged"; a number that is not finite
        is "diverged" at once. The losses are judged by their median: cross-entropy has no upper bound, so
        that a single batch can make any mean large, and a run that is well on the next batch goes on.
        """
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return "diverged"
        for i, value in enumerate((1.0, loss, dice, foreground)):
            self.sums[i] += value
        self.losses.append(loss)
        if self.sums[0] < self.window:
            return "watching"
        dice, foreground = (total / self.sums[0] for total in self.sums[2:])
        loss = statistics.median(self.losses)
        self.sums, self.losses = [0.0] * 4, []
        if loss > 1.5 * self.best_loss + 0.2:
            return "diverged"
        trivial = 2 * foreground / (1 + foreground)
        self.best_loss = min(self.best_loss, loss)
        self.best_skill = max(self.best_skill, (dice - trivial) / max(1 - trivial, 1e-6))
        if iteration >= self.patience and self.best_skill < 0.1:
            return "stuck"
        return "healthy"
