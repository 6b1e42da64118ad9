"""Made-up tables of predictions: the true Dice falls with what a model is unsure of, and with odd volumes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from mednca.modelfile import ModelFile
from mednca.robustness import CLEAN
from mednca.trust import Trust, traits
from mednca.trust import fit as trust_fit
from mednca.trust.table import STRANGER, Row

#: What a mask and a scan are like, of a usual case.
USUAL = {
    **{"nqm": 0.05, "axes": 0.04, "flips": 0.02, "levels": 0.95, "entropy": 0.4, "confidence": 0.95},
    **{"overlap": 0.95, "volume": 3.0, "elongation": 3.0, "roughness": 9.0, "largest": 1.0, "border": 0.0},
    **{"voxel": 1.0, "dark": 0.2, "median": 0.4, "bright": 0.6, "black": 0.05, "uneven": 0.05, "edges": 0.05},
    **{"inside": 0.6, "contrast": 0.2, "texture": 0.1},
    **{"sure_5": 0.6, "sure_10": 0.7, "sure_25": 0.9, "sure_50": 0.99},
    **{f"apart_{end}": 0.1 for ends in traits.ENDS for end in ends},
    **{"within_10": 0.02, "within_90": 0.1, "around_10": 0.04, "around_90": 0.2},
    **{f"{name}_{axis}": 30.0 for name in ("extent", "size") for axis in "ras"},
    **{f"{name}_{axis}": 0.5 for name in ("position", "noise") for axis in "ras"},
}


def table(persons: int = 40, each: int = 6, seed: int = 0, strangers: bool = True) -> list[Row]:
    """Persons, rows of each beside the clean one, and a seed -> rows."""
    random = np.random.default_rng(seed)
    names = sorted(name for members in trust_fit.FAMILIES.values() for name in members)
    rows = []
    for person in range(persons):
        for number in range(each + 1):
            harm = 0.0 if number == 0 else float(random.uniform(0, 1) ** 2)
            found = {name: value * float(np.exp(random.normal(0, 0.05))) for name, value in USUAL.items()}
            for name in ("nqm", "axes", "flips", "entropy"):
                found[name] *= 1 + 8 * harm
            found["volume"] *= float(np.exp(-2 * harm * random.uniform(0.5, 1)))
            dice = float(np.clip(0.92 - 0.9 * harm + random.normal(0, 0.02), 0, 1))
            kind = CLEAN if number == 0 else names[int(random.integers(len(names)))]
            rows.append(row(found, dice, kind, person, number))
        if strangers:
            rows.append(row(dict.fromkeys(USUAL, None), 0.0, STRANGER + "noise", person, 0))
    return rows


def row(found: traits.Traits, dice: float, kind: str, person: int, number: int) -> Row:
    """What a prediction was like and how right it was -> the row."""
    full = {name: found.get(name) for name in traits.names(1)}
    variance = None if full["nqm"] is None else full["nqm"] / 100
    return Row(f"p{person}", f"p{person}", kind, float(number), 0, "m", dice, 1.0, full, variance)


@cache
def score() -> Trust:
    """A score, fitted to such a table."""
    return trust_fit.fit(table())


def trusted(file: ModelFile) -> ModelFile:
    """Model -> the same with a score that fits its ensemble."""
    return replace(file, trust=replace(score(), ensemble=file.config.predict.ensemble))
