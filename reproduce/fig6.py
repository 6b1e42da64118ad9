"""The paper's Fig. 6, robustness: Dice over ghosting, anisotropy and bias field of rising severity, ours
and a U-Net of the same folds, with what the paper's text says.

    python reproduce/fig6.py

Drawn from the report cards of `cards.py`, of which it shows three perturbations. The artefacts are TorchIO's,
as in the paper, which does not tell the parameters of its severities."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce.perturbed import Figure, Mark, Panel, command_line

FIGURE = Figure(
    "fig6",
    "Fig. 6: MRI artefacts",
    (
        Panel("ghosting", "at the worst severity Med-NCA is 12 % better than the U-Net", ()),
        Panel(
            "anisotropy",
            "neither Med-NCA nor the U-Net loses anything up to factor 4",
            (Mark("both", 0.0, lost=True, between=(1.0, 4.0)),),
        ),
        Panel(
            "bias_field",
            "Med-NCA and the U-Net lose more than 25 % at the worst severity",
            (Mark("both, more than", 0.25, lost=True),),
        ),
    ),
)


def main(words: Sequence[str] | None = None) -> int:
    """Draw."""
    return command_line(FIGURE, __doc__ or "", words)


if __name__ == "__main__":
    sys.exit(main())
