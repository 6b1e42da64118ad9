"""The paper's Fig. 5, input invariance: Dice over scale, shape and translation, ours and a U-Net of the same
folds, with what the paper's text says.

    python reproduce/fig5.py

Drawn from the report cards of `cards.py`, of which it shows three perturbations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce.perturbed import Figure, Mark, Panel, command_line

FIGURE = Figure(
    "fig5",
    "Fig. 5: input invariance",
    (
        Panel(
            "scale",
            "Med-NCA loses at most 3 % from 0.8 to 1.5 times the training size",
            (Mark("Med-NCA", 0.03, lost=True, between=(0.8, 1.5)),),
        ),
        Panel(
            "shape",
            "Med-NCA loses 3 %, the U-Net 13 %; nnU-Net falls to 50 %",
            (Mark("Med-NCA", 0.03, lost=True), Mark("U-Net", 0.13, lost=True), Mark("nnU-Net", 0.50)),
        ),
        Panel(
            "translation",
            "Med-NCA loses nothing, the U-Net falls to 0 %, nnU-Net to 56 %",
            (Mark("Med-NCA", 0.0, lost=True), Mark("U-Net", 0.0), Mark("nnU-Net", 0.56)),
        ),
    ),
)


def main(words: Sequence[str] | None = None) -> int:
    """Draw."""
    return command_line(FIGURE, __doc__ or "", words)


if __name__ == "__main__":
    sys.exit(main())
