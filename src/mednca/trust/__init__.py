"""Traits of a prediction -> the Dice that is to be expected, with an interval, and why: the trust score.

    traits.py    a scan and what a model said of it -> traits
    here         assess(trust, traits) -> Expected(dice=0.89, low=0.84, high=0.93, reasons=())
    table.py     held-out cases, as they are and perturbed -> a table of predictions and how right each was
    fit.py       table -> trust score, with regression.py
    report.py    how good it is

It is a sum of monotone curves and bounded slopes. For the curves each trait is turned so that more is worse:
a signal as it is, anything else as its distance from the training set, below and above its median, in robust
standard deviations. Three more distances are of many traits together (`Group`). Each curve then takes
something from the log odds of the Dice, never the less the worse the trait. A slope tells ordinary cases
apart: straight lines between a few values of a trait, level a few standard deviations from the median:

    dice = 1 / (1 + exp(-(base + sum of slope(trait) - sum of curve(trait))))

So a score never rises because something looks stranger than that. Where scan, mask or field of view as a
whole is farther from training than anything in calibration the curves know nothing; there the score is also
multiplied by the distance that was seen over that there is, and the interval goes down to 0. The interval is
conformal: for each range of expected Dice it is as wide as it must be to hold the true Dice of new persons so
often. See docs/explanation/trust.md.

All of it is plain numbers in the header of the model file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca.config import from_dict
from mednca.errors import InputError
from mednca.trust import traits
from mednca.trust.traits import Traits

#: Of the score; an older one is read as it was.
VERSION = 3
Array = NDArray[np.float64]
#: The largest distance that is told apart: nothing hangs on it, and JSON has no infinity.
FAR = 99.0
#: Keeps the log odds of a Dice of 0 and of 1 finite.
EDGE = 0.02
#: How much farther than in calibration a group of traits may be before it counts as outside.
SLACK = 1.5
#: Reasons that are told at most, and the least that a trait must take from the log odds to be one.
REASONS, PULL = 3, 0.25


@dataclass(frozen=True)
class Scale:
    """What a trait was like in training.

    Attributes:
        trait: Its name.
        middle: Median of its position (`Trait.position`).
        spread: Robust standard deviation of the same.
        low: Least value, as told to a person.
        high: Largest value.
    """

    trait: str
    middle: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Traits that are looked at together.

    Attributes:
        name: Of the distance.
        words: As a person is told.
        traits: Their names.
        precision: Inverse of the correlation of their distances from the middle, a row for each.
        high: Largest distance in training.
        above: Largest distance in calibration, but for 1 % of the cases.
    """

    name: str
    words: str
    traits: tuple[str, ...]
    precision: tuple[tuple[float, ...], ...]
    high: float
    above: float


@dataclass(frozen=True)
class Curve:
    """What a feature takes from the log odds of the Dice.

    Attributes:
        feature: Name of a trait where more or less of it is better, of one with "-" (below the middle) or
            "+" (above), or of a group.
        at: Values of the feature, rising, turned so that more is worse.
        takes: What is taken above each of them, together with those before.
        usual: What is taken of the median training case.
    """

    feature: str
    at: tuple[float, ...]
    takes: tuple[float, ...]
    usual: float = 0.0


@dataclass(frozen=True)
class Slope:
    """What a trait adds to the log odds of the Dice.

    Attributes:
        trait: Its name.
        at: Positions of the trait (`Trait.position`), rising.
        adds: What is added at each of them; between them it lies on straight lines, beyond the ends no more
            is added. Of a trait of which more or less is better it goes that way throughout.
    """

    trait: str
    at: tuple[float, ...]
    adds: tuple[float, ...]


@dataclass(frozen=True)
class Interval:
    """How far the true Dice is from an expected one of at least `above`, in log odds; None is any distance,
    as too few persons were seen to say."""

    above: float
    width: float | None


@dataclass(frozen=True)
class Trust:
    """A fitted trust score.

    Attributes:
        base: Log odds of the Dice where nothing is added or taken.
        scales: Of every trait that is used.
        groups: Of those that are held against it together.
        curves: What is taken.
        intervals: By expected Dice, rising from 0.
        empty: The same for empty masks, whose expected Dice is `empty_dice`.
        empty_dice: Mean Dice of the empty masks in calibration; 0 where there were none.
        slopes: What is added.
        coverage: How often an interval holds the true Dice.
        ensemble: Runs with other fire masks that the model was calibrated with.
        version: Of the traits and of this.
    """

    base: float
    scales: tuple[Scale, ...]
    groups: tuple[Group, ...]
    curves: tuple[Curve, ...]
    intervals: tuple[Interval, ...]
    empty: Interval = field(default_factory=lambda: Interval(0.0, None))
    empty_dice: float = 0.0
    slopes: tuple[Slope, ...] = ()
    coverage: float = 0.9
    ensemble: int = 1
    version: int = VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.version <= VERSION:
            raise ValueError(
                f"version of the trust score must be at most {VERSION}, got {self.version}; upgrade mednca"
            )
        groups = {group.name for group in self.groups}
        known = {scale.trait for scale in self.scales}
        used = [name for group in self.groups for name in group.traits]
        used += [c.feature.rstrip("+-") for c in self.curves if c.feature not in groups]
        used += [slope.trait for slope in self.slopes]
        if lost := sorted(set(used) - known):
            raise ValueError(f"scales must hold {lost[0]!r}")
        for scale in self.scales:
            try:
                traits.find(scale.trait)
            except KeyError as error:
                raise ValueError(f"there is no trait {scale.trait!r}; upgrade mednca") from error
            if not scale.spread > 0:
                raise ValueError(f"scale of {scale.trait} must have a spread of more than 0")
        for group in self.groups:
            shape = (len(group.traits),) * 2
            if np.shape(group.precision) != shape:
                raise ValueError(f"precision of {group.name} must be {shape}")
            if not group.above > 0:
                raise ValueError(f"group {group.name} must reach beyond 0")
        for curve in self.curves:
            if len(curve.at) != len(curve.takes) or list(curve.at) != sorted(curve.at):
                raise ValueError(f"curve of {curve.feature} must have as many rising places as values")
            if list(curve.takes) != sorted(curve.takes) or min(curve.takes, default=0) < 0:
                raise ValueError(f"curve of {curve.feature} must rise from 0 or more")
        for slope in self.slopes:
            if len(slope.at) != len(slope.adds) or len(slope.at) < 2 or not (np.diff(slope.at) > 0).all():
                raise ValueError(
                    f"slope of {slope.trait} must have as many rising places as values, from 2 on"
                )
            if (np.diff(slope.adds) * traits.find(slope.trait).good < 0).any():
                raise ValueError(f"slope of {slope.trait} must go the trait's own way")
        starts = [interval.above for interval in self.intervals]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise ValueError(f"intervals must begin at 0 and rise, got {starts}")
        if not 0 < self.coverage < 1 or not 0 <= self.empty_dice <= 1:
            raise ValueError("coverage and empty_dice must be shares")


@dataclass(frozen=True)
class Expected:
    """What is to be expected of a mask.

    Attributes:
        dice: Expected Dice of all foreground.
        low: Lower end of the interval.
        high: Upper end.
        reasons: What pulls it down most, in plain words, worst first.
        outside: Whether something is farther from training than anything in calibration, so that the
            interval promises nothing.
    """

    dice: float
    low: float
    high: float
    reasons: tuple[str, ...] = ()
    outside: bool = False

    def told(self, coverage: float) -> dict[str, Any]:
        """As a report has it."""
        return {
            "expected_dice": round(self.dice, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
            "coverage": coverage,
            "outside": self.outside,
            "reasons": list(self.reasons),
        }


def in_words(told: Mapping[str, Any]) -> str:
    """What a report has -> a line for a person."""
    low, high = told["interval"]
    line = f"expected Dice {told['expected_dice']:.2f} ({low:.2f} to {high:.2f})"
    return line + (f": {'; '.join(told['reasons'])}" if told["reasons"] else "")


def to_json(trust: Trust) -> dict[str, Any]:
    """Trust score -> as a model file has it."""
    return asdict(trust)


def from_json(values: Any, where: str) -> Trust:
    """What a model file has, and the file's name -> the trust score.

    Raises:
        InputError: If a part is missing or unknown, or does not fit the others.
    """
    try:
        return from_dict(Trust, _as_now(values), where)
    except TypeError as error:
        raise InputError(f"{where}: {error}; fit it again with 'mednca trust'") from error


def _as_now(values: Any) -> Any:
    """What a model file has -> the same as it is written now: in version 2, a slope had what is added for
    each spread and how many spreads it reaches."""
    try:
        if values["version"] != 2:
            return values
        scales = {scale["trait"]: scale for scale in values["scales"]}
        slopes = []
        for slope in values["slopes"]:
            scale, reach = scales[slope["trait"]], slope["reach"]
            ends = [scale["middle"] + side * reach * scale["spread"] for side in (-1, 1)]
            adds = [side * reach * slope["adds"] for side in (-1, 1)]
            slopes.append({"trait": slope["trait"], "at": ends, "adds": adds})
    except (KeyError, TypeError):
        return values  # what is missing is told by what reads it
    return {**values, "slopes": slopes}


# ---- Features ----


def positions(name: str, cases: Sequence[Traits]) -> Array:
    """Name of a trait and traits of N cases -> where each stands (N,); nan for what is not there."""
    position = traits.find(name).position
    values = [case.get(name) for case in cases]
    return np.array([math.nan if value is None else position(value) for value in values])


def distances(scales: Sequence[Scale], cases: Sequence[Traits]) -> dict[str, Array]:
    """What traits were like in training, and traits of N cases -> of each trait how many spreads it is from
    the middle (N,); nan for what is not there."""
    told = {}
    for scale in scales:
        places = positions(scale.trait, cases)
        told[scale.trait] = np.clip((places - scale.middle) / scale.spread, -FAR, FAR)
    return told


def unlike(group: Group, places: Mapping[str, Array]) -> Array:
    """Group and the distances of its traits (N,) -> their distance together (N,), 1 for a usual case; traits
    that are not there are far."""
    vectors = np.nan_to_num(np.stack([places[name] for name in group.traits], axis=1), nan=FAR)
    squared = ((vectors @ np.array(group.precision)) * vectors).sum(axis=1) / len(group.traits)
    together: Array = np.minimum(np.sqrt(np.maximum(squared, 0.0)), FAR)
    return together


def features(scales: Sequence[Scale], groups: Sequence[Group], cases: Sequence[Traits]) -> dict[str, Array]:
    """What training was like, and traits of N cases -> every feature (N,), turned so that more is worse."""
    told: dict[str, Array] = {}
    places = distances(scales, cases)
    for name, place in places.items():
        good = traits.find(name).good
        if good:
            values = [case.get(name) for case in cases]
            told[name] = np.array([FAR if value is None else -good * value for value in values])
        else:
            told[name + "-"] = np.nan_to_num(np.maximum(-place, 0), nan=FAR)
            told[name + "+"] = np.nan_to_num(np.maximum(place, 0), nan=FAR)
    return told | {group.name: unlike(group, places) for group in groups}


def takes(curve: Curve, values: Array) -> Array:
    """Curve and its feature (N,) -> what is taken from the log odds (N,)."""
    below = np.searchsorted(curve.at, values, side="left")  # how many places are below each value
    found: Array = np.array([0.0, *curve.takes])[below]
    return found


def adds(slope: Slope, places: Array) -> Array:
    """Slope and the positions of its trait (N,) -> what is added to the log odds (N,), nothing for what is
    not there."""
    found: Array = np.nan_to_num(np.interp(places, slope.at, slope.adds))
    return found


# ---- Assess ----


@dataclass(frozen=True)
class Many:
    """What is to be expected of N masks: each (N,), as in `Expected`; `excess` is how far outside each is, at
    most 1 for inside."""

    dice: Array
    low: Array
    high: Array
    excess: Array


def expect(trust: Trust, cases: Sequence[Traits]) -> Many:
    """Trust score and traits of N cases -> what is to be expected of their masks."""
    told = features(trust.scales, trust.groups, cases)
    odds = np.full(len(cases), trust.base)
    for slope in trust.slopes:
        odds += adds(slope, positions(slope.trait, cases))
    for curve in trust.curves:
        odds -= takes(curve, told[curve.feature])
    starts = [interval.above for interval in trust.intervals]
    empty = np.array([_empty(case) for case in cases], bool)
    dice = np.where(empty, trust.empty_dice, 1 / (1 + np.exp(-np.clip(odds, -50, 50))))
    which = np.where(empty, len(starts), np.searchsorted(starts, dice, side="right") - 1)
    every = [one.width for one in (*trust.intervals, trust.empty)]
    width = np.array([math.inf if one is None else one for one in every])[which]
    low, high = bounds(dice, width)
    excess = np.ones(len(cases))
    for group in trust.groups:
        excess = np.maximum(excess, told[group.name] / (SLACK * group.above))
    dice, low = dice / excess, np.where(excess > 1, 0.0, low)
    return Many(dice, low, high, excess)


def assess(trust: Trust, found: Traits) -> Expected:
    """Trust score and traits of a case -> what is to be expected of its mask, and why."""
    many = expect(trust, [found])
    dice, low, high, excess = (float(part[0]) for part in (many.dice, many.low, many.high, many.excess))
    return Expected(dice, low, high, _reasons(trust, found), excess > 1)


def bounds(dice: Array, width: Array) -> tuple[Array, Array]:
    """Expected Dice and the width of its interval in log odds -> its ends."""
    return inverse(log_odds(dice) - width), inverse(log_odds(dice) + width)


def log_odds(dice: Array) -> Array:
    """Dice -> its log odds, finite for 0 and 1."""
    odds: Array = np.log((dice + EDGE) / (1 - dice + EDGE))
    return odds


def inverse(odds: Array) -> Array:
    """Log odds, maybe infinite -> the Dice, in [0, 1]."""
    whole = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
    found: Array = np.clip((1 + 2 * EDGE) * whole - EDGE, 0.0, 1.0)
    return found


def _empty(case: Traits) -> bool:
    """Whether the mask of a case is, where its volume is looked at at all."""
    return "volume" in case and case["volume"] is None


def _reasons(trust: Trust, found: Traits) -> tuple[str, ...]:
    """What lies outside the training set and pulls the expected Dice down, worst first."""
    told = features(trust.scales, trust.groups, [found])
    scales = {scale.trait: scale for scale in trust.scales}
    groups = {group.name: group for group in trust.groups}
    pulls = {
        curve.feature: float(takes(curve, told[curve.feature])[0]) - curve.usual for curve in trust.curves
    }
    for group in trust.groups:  # what is outside comes first
        excess = float(told[group.name][0]) / (SLACK * group.above)
        if excess > 1:
            pulls[group.name] = pulls.get(group.name, 0.0) + FAR * excess
    places = {name: float(values[0]) for name, values in distances(trust.scales, [found]).items()}
    for slope in trust.slopes:
        place = places[slope.trait]
        side = "" if traits.find(slope.trait).good else "+" if place > 0 else "-"
        key = slope.trait + side
        pulls[key] = pulls.get(key, 0.0) - float(adds(slope, positions(slope.trait, [found]))[0])
    empty = _empty(found)
    reasons = ["the mask is empty"] if empty else []
    for name in sorted(pulls, key=lambda name: -pulls[name]):
        if pulls[name] < PULL:
            break
        if name in groups:  # told by the trait that is farthest off
            text = _of_group(groups[name], float(told[name][0]))
            farthest = sorted(groups[name].traits, key=lambda one: -abs(places[one]))
            members = [scales[one] for one in farthest[:1] if text]
        else:
            text, members = "", [scales[name.rstrip("+-")]]
        if empty:
            text, members = "", [one for one in members if traits.find(one.trait).kind == "scan"]
        parts = [_of_trait(one, found.get(one.trait)) for one in members]
        text = ": ".join(part for part in (text, *parts) if part)
        if text and not any(part and part in reason for reason in reasons for part in (text, *parts)):
            reasons.append(text)
    return tuple(reasons[:REASONS])


def _of_trait(scale: Scale, value: float | None) -> str:
    """What training was like and a value outside it -> the reason; "" for one inside."""
    trait = traits.find(scale.trait)
    channel = scale.trait.partition(".")[2]
    words = trait.words + (f" of channel {channel}" if channel else "")
    there = f"in training {scale.low:.3g} to {scale.high:.3g}{trait.unit}"
    if value is None:
        return f"{words} cannot be told ({there})"
    return "" if scale.low <= value <= scale.high else f"{words} {value:.3g}{trait.unit} ({there})"


def _of_group(group: Group, value: float) -> str:
    return "" if value <= group.high else f"{group.words} is unlike training"
