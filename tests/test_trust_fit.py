"""The fit: intervals hold what they promise, persons are never on both sides, and a score never rises with
what is worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca import trust
from mednca.errors import InputError
from mednca.trust import fit as trust_fit
from mednca.trust.fit import figures, out_of_fold, quantile, spearman
from mednca.trust.regression import DRAWN, REACHES, _level, lean
from tests.trusting import score, table

GROUPS = st.lists(
    st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=4), min_size=2, max_size=30
)


@settings(deadline=None)
@given(GROUPS, st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_a_new_person_is_covered_as_often_as_promised(groups: list[list[float]], coverage: float) -> None:
    """Exchangeable persons: each in turn is the new one, and the share is taken over all of them. This holds
    for every table of numbers, not only on average."""
    shares = []
    for number, mine in enumerate(groups):
        others = [(value, str(at)) for at, part in enumerate(groups) if at != number for value in part]
        limit = quantile([value for value, _ in others], [name for _, name in others], coverage)
        shares.append(np.mean([value <= limit for value in mine]))
    assert np.mean(shares) >= coverage - 1e-9


def test_with_a_row_for_each_person_it_is_split_conformal_prediction() -> None:
    scores = np.random.default_rng(0).random(39).tolist()
    names = [str(number) for number in range(39)]
    for coverage in (0.5, 0.8, 0.9, 0.95, 0.975):
        place = math.ceil(40 * coverage - 1e-9)
        expected = sorted(scores)[place - 1] if place <= 39 else math.inf
        assert quantile(scores, names, coverage) == expected


def test_a_person_of_many_rows_counts_once() -> None:
    """Nine persons with a small score and one with a thousand large ones."""
    scores = [0.1] * 9 + [5.0] * 1000
    names = [str(number) for number in range(9)] + ["many"] * 1000
    assert quantile(scores, names, 0.8) == 0.1


@pytest.mark.parametrize("persons", [1, 5, 8])
def test_too_few_persons_promise_nothing(persons: int) -> None:
    assert quantile([0.1] * persons, [str(number) for number in range(persons)], 0.9) == math.inf


def test_the_score_finds_what_makes_a_mask_bad() -> None:
    judged = out_of_fold(table(persons=60))
    told = figures(judged)
    assert told["spearman"] > 0.85 and told["flagged"] > 0.85 and told["false_alarms"] < 0.1
    assert 0.86 <= told["coverage"] <= 0.96 and told["width_median"] < 0.2
    assert told["strangers_flagged"] == 1 and abs(told["bias"]) < 0.02
    one = [o for o in judged if not o.row.is_stranger]
    assert all(o.expected.low <= o.expected.dice <= o.expected.high for o in one)


def test_a_single_signal_is_judged_in_the_same_way() -> None:
    rows = table(persons=30)
    best = figures(out_of_fold(rows, only=["nqm"]))
    blind = figures(out_of_fold(rows, only=["elongation"]))  # has nothing to do with the Dice
    assert best["spearman"] > 0.7 and abs(blind["spearman"]) < 0.25
    assert figures(out_of_fold(rows, only=["variance"]))["spearman"] > 0.7


def test_nobody_is_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the judgement nor within a fit, where the intervals come from."""
    rows, seen = table(persons=12), []
    fit, judge = trust_fit.fit, trust_fit.judge

    def spy_fit(those, **options):  # type: ignore[no-untyped-def]
        seen.append({row.group for row in those})
        found = fit(those, **options)
        seen.append({row.group for row in those})
        return found

    def spy_judge(found, those):  # type: ignore[no-untyped-def]
        assert not seen[-1] & {row.group for row in those}
        return judge(found, those)

    monkeypatch.setattr(trust_fit, "fit", spy_fit)
    monkeypatch.setattr(trust_fit, "judge", spy_judge)
    judged = out_of_fold(rows)
    assert sorted(o.row.key for o in judged) == sorted(row.key for row in rows)
    trust_fit.unknown(rows, lambda row: row.perturbation == "noise")
    assert len(seen) > 2 * 30


def test_what_is_to_be_unknown_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(persons=12)
    fit = trust_fit.fit

    def spy(those, **options):  # type: ignore[no-untyped-def]
        assert not any(trust_fit.family(row.perturbation) == "size" for row in those)
        return fit(those, **options)

    monkeypatch.setattr(trust_fit, "fit", spy)
    judged = trust_fit.unknown(rows, lambda row: trust_fit.family(row.perturbation) == "size")
    assert {o.row.key for o in judged} == {
        row.key for row in rows if trust_fit.family(row.perturbation) == "size"
    }


def test_every_perturbation_has_a_family() -> None:
    from mednca.perturb import PERTURBATIONS

    members = [name for family in trust_fit.FAMILIES.values() for name in family]
    assert sorted(members) == sorted(one.name for one in PERTURBATIONS)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["nqm", "axes", "flips", "entropy", "apart_left"]), st.floats(0, 5), st.floats(0, 5))
def test_the_expected_dice_never_rises_with_what_is_worse(name: str, a: float, b: float) -> None:
    usual = table(persons=1)[0].traits
    less, more = sorted((a, b))
    many = trust.expect(score(), [usual | {name: less}, usual | {name: more}])
    assert many.dice[0] >= many.dice[1]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["volume", "inside", "size_r", "edges"]), st.booleans(), st.floats(1, 9))
def test_nor_with_the_distance_from_training(name: str, above: bool, further: float) -> None:
    """Beyond what a slope reaches, which tells ordinary cases apart."""
    found = dict(table(persons=1)[0].traits)
    scale = next(scale for scale in score().scales if scale.trait == name)
    ends = [slope.at[-1 if above else 0] for slope in score().slopes if slope.trait == name]
    reach = max([abs(end - scale.middle) for end in ends], default=0.0)
    value = math.exp if trust.traits.find(name).log else float
    places = [scale.middle + (1 if above else -1) * far for far in (reach, reach * further)]
    near, far = (found | {name: value(place)} for place in places)
    many = trust.expect(score(), [near, far])
    assert many.dice[0] >= many.dice[1] - 1e-12


def test_slopes_tell_ordinary_cases_apart() -> None:
    """Good masks only, a little better the larger the organ and the surer the model; steps alone say less."""
    random = np.random.default_rng(5)
    rows = []
    for row in table(persons=80, each=0, strangers=False):
        sure, large = random.normal(size=2)
        told = {"entropy": 0.4 - 0.05 * sure, "volume": 3 * math.exp(0.2 * large)}
        dice = 0.88 + 0.02 * sure + 0.02 * large + random.normal(0, 0.01)
        rows.append(replace(row, dice=float(dice), traits=row.traits | told))
    found = trust_fit.fit(rows)
    slopes = {slope.trait: slope.adds[-2] / REACHES[0] for slope in found.slopes}  # for each spread
    assert slopes["entropy"] < -0.05 and slopes["volume"] > 0.05
    assert all(abs(adds) < 0.03 for name, adds in slopes.items() if name not in ("entropy", "volume"))
    assert figures(out_of_fold(rows))["spearman"] > 0.85
    assert trust_fit.fit(rows, slopes=False).slopes == ()
    assert figures(out_of_fold(rows, slopes=False))["spearman"] < 0.8


def test_slopes_are_those_of_ridge_regression() -> None:
    """Two traits, spreads of 1.4826 around 0 and 1; the last case is worth nothing."""
    volume = np.array([-1.0, 0.0, 1.0, 9.0, 3.0])
    places = {"volume": volume, "entropy": np.array([0.0, 1.0, 2.0, 2.0, 1.0])}
    dice, weights = np.array([0.7, 0.8, 0.9, 0.1, 0.95]), np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    clean, organ = np.array([True, True, True, False, False]), np.array([True] * 5)
    found, added = lean(places, dice, clean, organ, weights)
    kept = [0, 1, 2, 4]
    table = np.stack([places["entropy"] - 1, volume], axis=1)[kept] / 1.4826  # within 4 spreads, all of them
    heavy = np.diag(weights[kept])
    table = table - np.average(table, axis=0, weights=weights[kept])
    odds = trust.log_odds(dice[kept])
    along = table.T @ heavy @ (odds - np.average(odds, weights=weights[kept]))
    wanted = np.linalg.solve(table.T @ heavy @ table + DRAWN * np.eye(2), along)
    assert wanted[0] > 0 > -wanted[1]  # less entropy is better: that slope is left out
    wanted = along[1] / ((table.T @ heavy @ table)[1, 1] + DRAWN)
    (slope,) = found
    bend, end = REACHES
    assert slope.trait == "volume"
    assert slope.at == pytest.approx([1.4826 * place for place in (-end, -bend, bend, end)], rel=1e-5)
    assert slope.adds == pytest.approx(
        [-bend * wanted, -bend * wanted, bend * wanted, bend * wanted], rel=1e-5
    )
    assert added == pytest.approx(np.clip(volume / 1.4826, -bend, bend) * wanted, rel=1e-5)


def test_a_slope_bends_where_far_cases_go_another_way() -> None:
    random = np.random.default_rng(2)
    far = np.concatenate([random.normal(size=300), random.uniform(4, 8, size=300)])
    dice = 0.9 + 0.01 * np.clip(far, -4, 4) - 0.05 * np.maximum(far - 4, 0)
    clean = np.arange(600) < 300
    found, _ = lean({"volume": far}, dice, clean, np.ones(600, bool), np.ones(600))
    _, below, above, end = found[0].adds
    assert below < -0.2 and above > 0.2 and end < above - 0.5


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-6, 1e-5, 1e-4, 1e-3])
def test_a_trait_that_hardly_varies_has_a_slope_that_can_be_stored_or_none(spread: float) -> None:
    random = np.random.default_rng(1)
    size = 37 + spread * random.normal(size=100)
    dice = np.clip(0.9 + 0.02 * random.normal(size=100), 0, 1)
    there = np.ones(100, bool)
    found, added = lean({"volume": size}, dice, there, there, np.ones(100))
    for slope in found:
        assert (np.diff(slope.at) > 0).all()
    assert np.isfinite(added).all() and (spread >= 1e-3 or not found)


def test_the_level_gives_the_right_mean() -> None:
    random = np.random.default_rng(4)
    dice, weights, added = random.random(50), random.random(50), random.normal(size=50)
    base = _level(dice, weights, added)
    assert np.average(1 / (1 + np.exp(-base - added)), weights=weights) == pytest.approx(
        np.average(dice, weights=weights)
    )


def test_too_few_persons_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 persons, got 3"):
        trust_fit.fit(table(persons=3))


def test_a_fit_without_any_mask_is_refused() -> None:
    rows = [row for row in table(persons=5) if row.is_stranger]
    with pytest.raises(InputError, match="clean cases"):
        trust_fit.fit(rows)


def test_the_same_table_gives_the_same_score() -> None:
    assert trust_fit.fit(table(persons=8)) == trust_fit.fit(table(persons=8))


def test_ranks_are_those_of_scipy() -> None:
    random = np.random.default_rng(3)
    first, second = random.integers(0, 9, 50).astype(float), random.integers(0, 9, 50).astype(float)
    assert spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    good, bad = first[:30], second[:20]
    wins = np.mean([(g > b) + (g == b) / 2 for g in good for b in bad])
    assert trust_fit.area(good, bad) == pytest.approx(wins)


def test_a_table_of_few_persons_has_intervals_of_anything() -> None:
    found = trust_fit.fit(table(persons=5))
    assert [one.width for one in found.intervals] == [None]
    many = trust.expect(found, [table(persons=1)[0].traits])
    assert (many.low[0], many.high[0]) == (0, 1)


def test_traits_that_a_model_does_not_have_are_left_out() -> None:
    rows = [
        replace(row, traits=row.traits | {"axes": None, "levels": None}, variance=None)
        for row in table(persons=10)
    ]
    found = trust_fit.fit(rows)
    assert not {"axes", "levels"} & {scale.trait for scale in found.scales}
    assert figures(out_of_fold(rows))["spearman"] > 0.7


def test_a_trait_that_never_varies_says_nothing() -> None:
    rows = [replace(row, traits=row.traits | {"nqm": 0.1}) for row in table(persons=10, strangers=False)]
    found = trust_fit.fit(rows, only=["nqm"])
    assert found.curves == found.slopes == ()
    mean = np.mean([row.dice for row in rows])
    assert trust.expect(found, [rows[0].traits]).dice[0] == pytest.approx(mean, abs=1e-4)


def test_a_trait_that_goes_the_wrong_way_is_not_used() -> None:
    """The more the samples disagree, the better the mask: chance, or a fault; no curve follows it."""
    rows = [replace(row, traits=row.traits | {"nqm": row.dice}) for row in table(persons=20, strangers=False)]
    found = trust_fit.fit(rows, only=["nqm"])
    many = trust.expect(found, [{"nqm": value} for value in (0.1, 0.5, 0.9)])
    assert np.ptp(many.dice) == 0
    assert many.dice[0] == pytest.approx(np.mean([row.dice for row in rows]), abs=0.02)
