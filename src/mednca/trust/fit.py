"""A table of predictions and how right each was -> a trust score, and how far that is to be trusted itself.

    rows -> fit -> Trust              what is stored in the model file
    rows -> out_of_fold -> Judged     the same, each person judged by a score that has not seen them
    Judged -> figures                 rank correlation, flagged cases, false alarms, coverage

Everything is split by person, never by row: two predictions of one person are alike. How slopes and curves
are fitted is in `regression`. The interval is split conformal with groups of predictions, `quantile`, for
each range of expected Dice by itself (Mondrian), with residuals of persons that the score had not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca import trust
from mednca.errors import InputError
from mednca.robustness import CLEAN
from mednca.trust import Expected, Group, Interval, Scale, Trust, traits
from mednca.trust.regression import boost, lean, middle_of, short
from mednca.trust.table import STRANGER, Row

#: Parts that persons are dealt into.
PARTS = 5
#: Ranges of expected Dice with an interval of their own at most, and persons in each at least.
RANGES, PERSONS = 6, 20
#: Persons that a fit needs.
LEAST = 4
#: A distance of a group that calibration is taken to have seen in any case.
REACH = 3.0
#: How much the correlations of a group are drawn to 0.
SHRINK = 0.2
#: Distances that are measured together.
TOGETHER: dict[str, tuple[str, tuple[str, ...]]] = {
    "scan~": (
        "the image",
        ("dark", "median", "bright", "black", "uneven", "edges", "noise_r", "noise_a", "noise_s"),
    ),
    "mask~": (
        "the mask",
        (
            *("volume", "extent_r", "extent_a", "extent_s", "elongation", "roughness"),
            *("inside", "contrast", "texture"),
        ),
    ),
    "view~": ("the field of view", ("size_r", "size_a", "size_s", "voxel")),
}
#: Perturbations that are alike: left out together to see what the score makes of what it does not know.
FAMILIES: dict[str, tuple[str, ...]] = {
    "size": ("scale", "scale_all", "shape"),
    "field of view": ("crop", "pad", "translation", "translation_edge", "rotation"),
    "k-space": ("ghosting", "motion", "spike"),
    "resolution": ("anisotropy", "blur"),
    "noise": ("noise",),
    "brightness": ("bias_field", "gamma"),
    "inversion": ("inversion",),
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A row, and what a score that had not seen the person expected of it."""

    row: Row
    expected: Expected


# ---- Fit ----


def fit(
    rows: Sequence[Row],
    *,
    only: Collection[str] | None = None,
    coverage: float = 0.9,
    ensemble: int = 1,
    seed: int = 0,
    spread: bool = True,
    slopes: bool = True,
) -> Trust:
    """Rows -> trust score.

    Args:
        rows: Of held-out cases, with clean ones among them, and strangers or not.
        only: Names of the traits to use; None uses all.
        coverage: How often an interval is to hold the true Dice.
        ensemble: Runs with other fire masks of the model that was judged.
        seed: Deals persons into parts.
        spread: Whether to fit intervals, which costs five more fits; without them they are [0, 1].
        slopes: Whether it has slopes beside its curves.

    Raises:
        InputError: If there are too few persons.
    """
    persons = sorted({row.group for row in rows})
    if spread and len(persons) < LEAST:
        raise InputError(
            f"a trust score needs held-out scans of at least {LEAST} persons, got {len(persons)}"
        )
    scales, groups = reference(rows, only)
    seen = [row for row in rows if not row.empty]
    cases = [_traits(row) for row in seen]
    dice = np.array([row.dice for row in seen])
    weights = _fair([row.group for row in seen])
    clean = np.array([row.perturbation == CLEAN for row in seen], bool)
    organ = np.array([not row.is_stranger for row in seen], bool)
    places = {scale.trait: trust.positions(scale.trait, cases) for scale in scales}
    leaning, added = lean(places, dice, clean, organ, weights) if slopes else ((), np.zeros(len(dice)))
    base, curves = boost(
        trust.features(scales, groups, cases),
        dice,
        clean,
        weights,
        added,
    )
    empty = [row.dice for row in rows if row.empty]
    found = Trust(
        base,
        scales,
        groups,
        curves,
        (Interval(0.0, None),),
        empty_dice=float(np.mean(empty)) if empty else 0.0,
        slopes=leaning,
        coverage=coverage,
        ensemble=ensemble,
    )
    if not spread:
        return found
    options: dict[str, Any] = {"only": only, "coverage": coverage, "ensemble": ensemble, "slopes": slopes}
    judged = _crossed(rows, seed=seed, spread=False, **options)
    return replace(found, **_intervals(judged, coverage))


def _traits(row: Row) -> traits.Traits:
    return {**row.traits, "variance": row.variance}


def _fair(groups: Sequence[str]) -> Array:
    """Person of each row -> weights by which every person counts alike, 1 on average."""
    _, member = np.unique(groups, return_inverse=True)
    counts = np.bincount(member)
    weights: Array = (1 / counts[member]) * len(member) / len(counts)
    return weights


def reference(
    rows: Sequence[Row], only: Collection[str] | None = None
) -> tuple[tuple[Scale, ...], tuple[Group, ...]]:
    """Rows and the traits to use -> what training was like (the clean rows), and how far the labelled rows
    went from it. Traits that the clean rows do not all have are left out."""
    clean = [_traits(row) for row in rows if row.perturbation == CLEAN and not row.empty]
    labelled = [_traits(row) for row in rows if not row.is_stranger]
    if not clean:
        raise InputError("a trust score needs clean cases with a mask that is not empty, got none")
    scales = []
    for name in only if only is not None else rows[0].traits:
        trait = traits.find(name)
        values = [case.get(name) for case in clean]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            continue
        places = np.array([trait.position(value) for value in known])
        middle, spread = middle_of(places)
        scales.append(short(Scale(name, middle, max(spread, trait.least), min(known), max(known))))
    of_clean, of_labelled = (trust.distances(scales, cases) for cases in (clean, labelled))
    groups = []
    for name, (words, members) in TOGETHER.items():
        there = tuple(one.trait for one in scales if one.trait.partition(".")[0] in members)
        if len(there) < 2 or only is not None:  # what is compared with knows no outside
            continue
        vectors = np.clip(np.stack([of_clean[one] for one in there], axis=1), -REACH, REACH)
        correlation = (vectors.T @ vectors) / len(vectors)
        inverse = np.linalg.inv((1 - SHRINK) * correlation + SHRINK * np.eye(len(there)))
        precision = tuple(tuple(float(f"{x:.5g}") for x in row) for row in inverse.tolist())
        group = Group(name, words, there, precision, 0.0, REACH)
        full = ~np.isnan(np.stack([of_labelled[one] for one in there])).any(axis=0)
        far = trust.unlike(group, {one: of_labelled[one][full] for one in there})
        high = float(trust.unlike(group, of_clean).max())
        groups.append(short(replace(group, high=high, above=max(REACH, float(np.quantile(far, 0.99))))))
    return tuple(scales), tuple(groups)


# ---- Intervals ----


def quantile(scores: Sequence[float], groups: Sequence[str], coverage: float) -> float:
    """Scores, the person of each, and a share -> what the score of a new person is at most, with at least
    this chance; infinity where there are too few persons to say.

    Persons are exchangeable, the rows of one are not: each person has one weight, shared by all rows, and the
    new person has one more, at infinity. With a row for each person this is split conformal prediction.

    Source: Lee, Barber and Willett, Distribution-free inference with hierarchical data, 2023,
    arXiv:2306.06342.
    """
    values = np.asarray(scores, np.float64)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(member)
    weights = 1 / counts[member] / (len(counts) + 1)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    at = int(np.searchsorted(reached, coverage - 1e-9))  # rounding must not cost a person
    return float(values[order][at]) if at < len(values) else math.inf


def _intervals(judged: Sequence[Judged], coverage: float) -> dict[str, Any]:
    """Rows with what a score expected that had not seen the person -> the intervals.

    Strangers are left out: nobody asks how wide the interval of no organ is. So are those outside, whose
    interval begins at 0.
    """
    found = [one for one in judged if not one.row.is_stranger and not one.expected.outside]
    full, empty = ([one for one in found if one.row.empty == what] for what in (False, True))
    expected = np.array([one.expected.dice for one in full])
    persons = np.array([one.row.group for one in full])
    score = _apart(full)
    starts = [0.0]
    for edge in np.quantile(expected, np.arange(1, RANGES) / RANGES).tolist():
        rest = len(set(persons[expected >= edge]))
        since = len(set(persons[(expected >= starts[-1]) & (expected < edge)]))
        if edge > starts[-1] and rest >= PERSONS and since >= PERSONS:
            starts.append(float(f"{edge:.4g}"))
    intervals = []
    for low, high in zip(starts, [*starts[1:], 2.0], strict=True):
        here = (expected >= low) & (expected < high)
        intervals.append(_interval(low, score[here], persons[here], coverage))
    of_empty = _interval(0.0, _apart(empty), np.array([one.row.group for one in empty]), coverage)
    return {"intervals": tuple(intervals), "empty": of_empty}


def _apart(judged: Sequence[Judged]) -> Array:
    """Judged rows -> how far true and expected Dice are apart, in log odds."""
    true, expected = ([one.row.dice for one in judged], [one.expected.dice for one in judged])
    apart: Array = np.abs(trust.log_odds(np.array(true)) - trust.log_odds(np.array(expected)))
    return apart


def _interval(above: float, scores: Array, groups: NDArray[Any], coverage: float) -> Interval:
    width = quantile(scores.tolist(), groups.tolist(), coverage)
    return Interval(above, float(f"{width + 5e-6:.6g}") if math.isfinite(width) else None)


# ---- Judge ----


def deal(persons: Collection[str], parts: int, seed: int) -> dict[str, int]:
    """Persons -> the part of each."""
    names = sorted(persons)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    return {names[at]: number % parts for number, at in enumerate(order)}


def _crossed(rows: Sequence[Row], *, parts: int = PARTS, seed: int = 0, **options: Any) -> list[Judged]:
    """Rows -> each judged by the score that is fitted to the other parts of the persons."""
    part = deal({row.group for row in rows}, parts, seed)
    judged = []
    for number in range(parts):
        others = [row for row in rows if part[row.group] != number]
        found = fit(others, seed=seed, **options)
        judged += judge(found, [row for row in rows if part[row.group] == number])
    return judged


def judge(found: Trust, rows: Sequence[Row]) -> list[Judged]:
    """Trust score and rows -> each with what it expects, without reasons."""
    if not rows:
        return []
    many = trust.expect(found, [_traits(row) for row in rows])
    return [
        Judged(row, Expected(float(dice), float(low), float(high), outside=bool(excess > 1)))
        for row, dice, low, high, excess in zip(
            rows, many.dice, many.low, many.high, many.excess, strict=True
        )
    ]


def out_of_fold(
    rows: Sequence[Row],
    *,
    parts: int = PARTS,
    only: Collection[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Judged]:
    """Rows -> each with what a score expects, intervals and all, that has not seen the person. Options are
    those of `fit`."""
    return _crossed(rows, parts=parts, only=only, seed=seed + 1, **options)


def unknown(
    rows: Sequence[Row], left_out: Callable[[Row], bool], *, parts: int = PARTS, seed: int = 0, **options: Any
) -> list[Judged]:
    """Rows, and which are to be unknown -> those, judged by a score that has seen neither the person nor
    anything of the kind."""
    part = deal({row.group for row in rows}, parts, seed + 1)
    judged = []
    for number in range(parts):
        others = [row for row in rows if part[row.group] != number and not left_out(row)]
        those = [row for row in rows if part[row.group] == number and left_out(row)]
        if those:
            found = fit(others, seed=seed + 1, **options)
            judged += judge(found, those)
    return judged


def figures(judged: Sequence[Judged], *, below: float = 0.8, alarms: float = 0.15) -> dict[str, Any]:
    """Judged rows -> how good the score is: for labelled rows rank correlation, mean error, coverage and
    width of the interval; flagged cases and false alarms; of strangers how many are flagged.

    `flagged` is the share of cases under the Dice `below` whose expected Dice is, too, `false_alarms` the
    same of the others; `flagged_at` is the first with the threshold for which the second is at most `alarms`.
    """
    labelled = [one for one in judged if not one.row.is_stranger]
    strange = [one for one in judged if one.row.is_stranger]
    told: dict[str, Any] = {"predictions": len(labelled), "strangers": len(strange)}
    told["persons"] = len({one.row.group for one in judged})
    if strange:
        told["strangers_flagged"] = _round(np.mean([one.expected.dice < below for one in strange]))
    if not labelled:
        return told
    true = np.array([one.row.dice for one in labelled])
    expected = np.array([one.expected.dice for one in labelled])
    low, high = (np.array([getattr(one.expected, end) for one in labelled]) for end in ("low", "high"))
    bad = true < below
    told |= {
        "spearman": _round(spearman(true, expected)),
        "mean_error": _round(np.abs(true - expected).mean()),
        "bias": _round((expected - true).mean()),
        "coverage": _round(((low <= true) & (true <= high)).mean()),
        "width": _round((high - low).mean()),
        "width_median": _round(np.median(high - low)),
        "outside": _round(np.mean([one.expected.outside for one in labelled])),
        "below": int(bad.sum()),
        "flagged": _round((expected[bad] < below).mean()) if bad.any() else None,
        "false_alarms": _round((expected[~bad] < below).mean()) if not bad.all() else None,
    }
    if bad.any() and not bad.all():
        cut = float(np.quantile(expected[~bad], alarms, method="lower"))
        told |= {"flagged_at": _round((expected[bad] < cut).mean()), "cut": _round(cut)}
        told["area"] = _round(area(expected[~bad], expected[bad]))
    return told


def spearman(first: Array, second: Array) -> float:
    """Two sets of numbers -> their rank correlation; nan where one is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    if any(float(rank.std()) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def area(good: Array, bad: Array) -> float:
    """Scores of good and of bad cases -> the chance that a good one has more than a bad one (area under the
    ROC curve); ties count half."""
    ranks = _ranks(np.concatenate([good, bad]))[: len(good)]
    return float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def _ranks(values: Array) -> Array:
    """Numbers -> their ranks from 1, ties the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = ((ends - counts + 1 + ends) / 2)[place]
    return ranks


def _round(value: Any) -> float | None:
    number = float(value)
    return round(number, 4) if math.isfinite(number) else None


def family(perturbation: str) -> str:
    """Name of a perturbation -> the family that it is left out with."""
    if perturbation.startswith(STRANGER):
        return "strangers"
    return next((name for name, members in FAMILIES.items() if perturbation in members), perturbation)
