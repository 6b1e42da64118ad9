"""How good a trust score is, as JSON and as a few lines.

Everything is out of fold by person: of each row is told what a score expected that had not seen the person.
Beside the score stand the single signals that others use, each fitted in the same way.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mednca import __version__, perturb
from mednca.robustness import CLEAN
from mednca.trust import fit as fitting
from mednca.trust import traits
from mednca.trust.fit import Judged, figures
from mednca.trust.table import Row

FORMAT, VERSION = "mednca-trust", 1
#: What the score is compared with, each alone: name -> trait.
BASELINES = {
    "entropy": "entropy",
    "softmax confidence": "confidence",
    "variance": "variance",
    "NQM": "nqm",
}
Wrap = Callable[[Sequence[Any]], Iterable[Any]]


def report(
    rows: Sequence[Row],
    *,
    below: float = 0.8,
    families: bool = False,
    progress: Wrap | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Rows, the Dice under which a mask is bad, and options of `fit` -> the report.

    With `families` also what a score makes of perturbations of which it has seen none of the kind.
    """
    known = {row.perturbation: fitting.family(row.perturbation) for row in rows}
    apart = sorted(set(known.values()) - {CLEAN}) if families else []
    single = {
        name: trait
        for name, trait in BASELINES.items()
        if all(
            (row.variance if trait == "variance" else row.traits[trait]) is not None
            for row in rows
            if not row.empty
        )
    }
    wanted = [("score", ""), *(("alone", name) for name in single), *(("unknown", name) for name in apart)]
    found: dict[str, dict[str, list[Judged]]] = {"score": {}, "alone": {}, "unknown": {}}
    for kind, name in progress(wanted) if progress else wanted:
        if kind == "unknown":
            judged = fitting.unknown(rows, lambda row, name=name: known[row.perturbation] == name, **options)  # type: ignore[misc]
        else:
            judged = fitting.out_of_fold(rows, only=[single[name]] if name else None, **options)
        found[kind][name] = judged
    judged = found["score"][""]
    parts = {CLEAN: [one for one in judged if one.row.perturbation == CLEAN]}
    parts |= {
        name: [one for one in judged if known[one.row.perturbation] == name]
        for name in sorted(set(known.values()) - {CLEAN})
    }
    seconds = np.array([row.seconds for row in rows])
    return {
        "format": FORMAT,
        "version": VERSION,
        "below": below,
        "score": figures(judged, below=below),
        "alone": {name: figures(those, below=below) for name, those in found["alone"].items()},
        "parts": {name: figures(those, below=below) for name, those in parts.items()},
        "unknown": {name: figures(those, below=below) for name, those in found["unknown"].items()},
        "seconds": {
            "prediction": round(float(np.median(seconds[:, 0])), 4),
            "traits": round(float(np.median(seconds[:, 1])), 4),
        },
        "provenance": {
            **options,
            "persons": len({row.group for row in rows}),
            "cases": len({row.case for row in rows}),
            "models": sorted({row.model for row in rows}),
            "perturbations": perturb.VERSION,
            "traits": traits.VERSION,
            "versions": {
                "mednca": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
        "rows": [
            [one.row.case, one.row.perturbation, one.row.severity, round(one.row.dice, 4)]
            + [round(value, 4) for value in (one.expected.dice, one.expected.low, one.expected.high)]
            for one in judged
        ],
    }


def short(told: dict[str, Any]) -> dict[str, Any]:
    """Report -> what the card of a model says of its score."""
    score = told["score"]
    names = ("predictions", "persons", "spearman", "coverage", "flagged", "false_alarms")
    return {name: score.get(name) for name in names} | {
        "below": told["below"],
        "data": told["provenance"].get("data", ""),
    }


def summary(told: dict[str, Any]) -> str:
    """Report -> a few lines for a person."""
    score, below = told["score"], told["below"]
    rows = [("this score", score), *((f"{name} alone", part) for name, part in told["alone"].items())]
    lines = [
        f"{score['predictions']} predictions of {score['persons']} persons, {score['below']} with a Dice "
        f"below {below:g}; judged on persons that the score had not seen",
        f"{'':25}{'rank corr.':>11}{'flagged':>9}{'alarms':>8}{'coverage':>10}{'width':>7}",
    ]
    for name, part in rows:
        cells = [part.get(key) for key in ("spearman", "flagged", "false_alarms", "coverage", "width_median")]
        texts = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        lines.append(
            f"{name:25}"
            + "".join(f"{text:>{size}}" for text, size in zip(texts, (11, 9, 8, 10, 7), strict=True))
        )
    if score.get("strangers_flagged") is not None:
        share = 100 * score["strangers_flagged"]
        lines.append(f"images without an organ that were flagged: {share:.0f} % of {score['strangers']}")
    return "\n".join(lines)
