"""Traits of many predictions and their Dice -> slopes and curves of a trust score.

First slopes, by ridge regression among the masks that are worth something (`lean`): which of them are a
little better, for which a staircase of a few steps is too coarse. Each is a straight line in the middle, and
one more on either side. Then curves, by gradient boosting of steps on the log odds that the slopes leave
(`boost`): fractional logistic regression (Papke and Wooldridge 1996; Friedman 2001), in which no curve ever
goes up.

Shapes: N predictions; every feature, weight and Dice is (N,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca import trust
from mednca.trust import Curve, Slope, traits

#: Slopes: the least Dice of a mask that is worth something; how strongly they are drawn to 0; at how many
#: spreads from the middle they bend, and end.
WORTH, DRAWN, REACHES = 0.6, 5.0, (4.0, 8.0)
#: Boosting: rounds, share of a step that is taken, rows on each side of a step at least, places for steps per
#: feature, weight of the prior in a leaf, share of rows and of features that a round looks at.
ROUNDS, RATE, LEAF, PLACES, PRIOR, SHARE = 80, 0.1, 8, 64, 2.0, 0.8

Array = NDArray[np.float64]


def short(value: Any) -> Any:
    """Scale, group or slope -> the same with six digits of each number."""
    numbers = {name: float(f"{part:.6g}") for name, part in vars(value).items() if isinstance(part, float)}
    return replace(value, **numbers)


def middle_of(places: Array) -> tuple[float, float]:
    """Positions of a trait (N,) -> their median and robust standard deviation (1.4826 times the median
    distance from it, which is that of a normal distribution)."""
    middle = float(np.median(places))
    return middle, 1.4826 * float(np.median(np.abs(places - middle)))


def lean(
    places: Mapping[str, Array],
    dice: Array,
    clean: NDArray[np.bool_],
    organ: NDArray[np.bool_],
    weights: Array,
) -> tuple[tuple[Slope, ...], Array]:
    """Positions of the traits, Dice, whether it is a clean case, whether there is an organ in the image, and
    weights -> slopes, and what they add to the log odds of each prediction.

    Ridge regression (Hoerl and Kennard 1970) of the log odds of the Dice. A spread is that of the clean
    cases; a trait that is the same in all has no slope. Of signals more is better or less is: a piece of a
    slope that came out against that sense is left out, and the others are fitted anew.
    """
    worth = organ & (dice >= WORTH)
    usual = {name: _usual(places[name][clean]) for name in sorted(places)}
    names = [name for name, (_, spread) in usual.items() if spread > 0]
    if not worth.any() or not names:
        return (), np.zeros(len(dice))
    middles, spreads = np.array([usual[name] for name in names]).T
    far = np.nan_to_num((np.stack([places[name] for name in names], axis=1) - middles) / spreads)
    edges = [(-REACHES[1], -REACHES[0]), (-REACHES[0], REACHES[0]), REACHES]
    pieces = np.concatenate([np.clip(far, *edge) - np.clip(0, *edge) for edge in edges], axis=1)
    sense = np.tile([traits.find(name).good for name in names], len(edges))
    table, heavy = pieces[worth], weights[worth]
    odds = trust.log_odds(dice[worth])
    table = table - np.average(table, axis=0, weights=heavy)
    square = (table * heavy[:, None]).T @ table + DRAWN * np.eye(len(sense))
    along = (table * heavy[:, None]).T @ (odds - np.average(odds, weights=heavy))
    left = np.ones(len(sense), bool)
    while True:
        found = np.zeros(len(sense))
        found[left] = np.linalg.solve(square[np.ix_(left, left)], along[left])
        wrong = found * sense < 0
        if not wrong.any():
            break
        left &= ~wrong
    added, slopes = np.zeros(len(dice)), []
    for number, name in enumerate(names):
        below, within, above = found[number :: len(names)].tolist()
        if not any((below, within, above)):
            continue
        bend, end = REACHES
        at = [middles[number] + spreads[number] * place for place in (-end, -bend, bend, end)]
        adds = [-bend * within - (end - bend) * below, -bend * within]
        adds += [bend * within, bend * within + (end - bend) * above]
        slopes.append(Slope(name, _six(at), _six(adds)))
        added += trust.adds(slopes[-1], places[name])
    return tuple(slopes), added


def _usual(places: Array) -> tuple[float, float]:
    """Positions of the clean cases -> their median and robust standard deviation, or the plain one where most
    are the same; 0 where all are, but for what rounding hides, or where one is not there."""
    if not places.size or np.isnan(places).any():
        return 0.0, 0.0
    middle, spread = middle_of(places)
    spread = spread or float(places.std())
    return middle, spread if spread > 1e-5 * max(1.0, abs(middle)) else 0.0


def _six(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def boost(
    told: Mapping[str, Array],
    dice: Array,
    clean: NDArray[np.bool_],
    weights: Array,
    added: Array | float = 0.0,
    *,
    seed: int = 0,
) -> tuple[float, tuple[Curve, ...]]:
    """Features (N,) of N cases, Dice of each, whether it is a clean one, its weight, and what the slopes add
    to its log odds -> base and curves.

    Each round takes the one step down of one feature that lowers the loss most, among a part of the features
    and by a part of the rows, so that correlated traits share the work.
    """
    names = sorted(told)
    table = np.stack([told[name] for name in names], axis=1)  # (N, features)
    places = [_try(column) for column in table.T]
    width = max(map(len, places), default=0) + 1
    bins = np.stack(
        [np.searchsorted(at, column, side="left") for at, column in zip(places, table.T, strict=True)], axis=1
    )
    flat = bins + width * np.arange(len(names))
    steps = np.zeros((len(names), width))
    base = _level(dice, weights, added)
    odds = np.full(len(dice), base) + added
    count = _histogram(flat, np.ones(len(dice)), names, width)[:, :-1].cumsum(axis=1)
    allowed = (count >= LEAF) & (len(dice) - count >= LEAF)
    random = np.random.default_rng(seed)
    for _ in range(ROUNDS if allowed.any() else 0):
        chance = 1 / (1 + np.exp(-odds))
        drawn = np.flatnonzero(random.random(len(dice)) < SHARE)
        part = weights[drawn]
        slope, bend = part * (chance - dice)[drawn], part * (chance * (1 - chance))[drawn]
        gradient = _histogram(flat[drawn], slope, names, width)[:, :-1].cumsum(axis=1)
        hessian = _histogram(flat[drawn], bend, names, width)[:, :-1].cumsum(axis=1)
        rest = slope.sum() - gradient, bend.sum() - hessian
        left, right = -gradient / (hessian + PRIOR), -rest[0] / (rest[1] + PRIOR)
        gain = gradient**2 / (hessian + PRIOR) + rest[0] ** 2 / (rest[1] + PRIOR)
        gain = np.where(allowed & (right < left), gain, -np.inf)
        gain[random.random(len(names)) >= SHARE] = -np.inf
        feature, place = np.unravel_index(int(gain.argmax()), gain.shape)
        if not np.isfinite(gain[feature, place]):
            continue
        up, down = float(left[feature, place]), float(right[feature, place])
        base += RATE * up
        steps[feature, place] += RATE * (up - down)
        odds += RATE * np.where(bins[:, feature] > place, down, up)
    curves = []
    for number, name in enumerate(names):
        at = np.flatnonzero(steps[number] > 0)
        if not at.size:
            continue
        rising = np.cumsum(steps[number][at])
        curve = Curve(
            name,
            tuple(float(f"{places[number][place]:.6g}") for place in at.tolist()),
            tuple(float(f"{value:.5g}") for value in rising.tolist()),
        )
        usual = np.median(trust.takes(curve, table[clean, number]))
        curves.append(replace(curve, usual=float(usual)))
    return float(f"{base:.6g}"), tuple(curves)


def _level(dice: Array, weights: Array, added: Array | float) -> float:
    """Dice of N predictions, their weights and what the slopes add -> the log odds to begin with, by which
    they have the right mean."""
    wanted = float(np.clip((weights * dice).sum() / weights.sum(), 0.01, 0.99))
    low, high = -50.0, 50.0
    for _ in range(60):
        base = (low + high) / 2
        mean = (weights / (1 + np.exp(-np.clip(base + added, -50, 50)))).sum() / weights.sum()
        low, high = (base, high) if mean < wanted else (low, base)
    return base


def _try(column: Array) -> Array:
    """A feature of all rows -> the places where a step may be, between values that there are."""
    values = np.unique(column)
    middles = (values[1:] + values[:-1]) / 2
    if len(middles) > PLACES:
        shares = (np.arange(PLACES) + 1) / (PLACES + 1)
        wanted = np.quantile(column, shares, method="nearest")
        middles = middles[np.unique(np.clip(np.searchsorted(values, wanted), 0, len(middles) - 1))]
    return middles


def _histogram(flat: NDArray[np.int64], values: Array, names: Sequence[str], width: int) -> Array:
    """Bin of each row and feature, and a value for each row -> sums (features, bins)."""
    repeated = np.repeat(values, len(names))
    sums: Array = np.bincount(flat.ravel(), repeated, len(names) * width).astype(np.float64)
    return sums.reshape(len(names), width)
