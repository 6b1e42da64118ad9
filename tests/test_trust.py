"""A stored score: what it says, why, and that a model file keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mednca import trust
from mednca.card import describe
from mednca.errors import InputError
from mednca.modelfile import load_model, save_model, to_bytes
from mednca.predict import Predictor
from mednca.trust import Curve, Group, Interval, Scale, Slope, Trust, assess
from mednca.volume import Volume
from tests.small import tiny_model, voxels
from tests.trusting import score, table, trusted

#: Half the log odds of 0.9 for a volume far below, all that is known.
SMALL = Trust(
    base=2.0,
    scales=(
        Scale("volume", np.log(2.0), 0.5, 1.1, 4.6),
        Scale("size_r", np.log(30.0), 0.1, 28.0, 33.0),
        Scale("nqm", 0.05, 0.01, 0.03, 0.08),
    ),
    groups=(Group("view~", "the field of view", ("size_r",), ((1.0,),), 2.0, 4.0),),
    curves=(Curve("volume-", (2.0, 4.0), (1.0, 3.0)), Curve("nqm", (0.1,), (1.5,), 0.0)),
    intervals=(Interval(0.0, None), Interval(0.5, 0.4)),
    empty=Interval(0.0, 0.1),
)
USUAL = {"volume": 2.0, "size_r": 30.0, "nqm": 0.05}


def test_a_usual_case_has_the_base_and_no_reason() -> None:
    found = assess(SMALL, USUAL)
    assert found.dice == pytest.approx(1 / (1 + np.exp(-2)))
    assert found.low < found.dice < found.high and not found.reasons and not found.outside


def test_a_reason_says_what_is_odd_and_what_training_had() -> None:
    found = assess(SMALL, USUAL | {"volume": 0.2})
    assert found.dice == pytest.approx(1 / (1 + np.exp(1)))
    assert found.reasons == ("volume 0.2 ml (in training 1.1 to 4.6 ml)",)
    assert (found.low, found.high) == (0, 1)  # that low too few persons were seen
    told = trust.in_words(found.told(0.9))
    assert told == "expected Dice 0.27 (0.00 to 1.00): volume 0.2 ml (in training 1.1 to 4.6 ml)"


def test_reasons_come_worst_first() -> None:
    found = assess(SMALL, USUAL | {"volume": 0.2, "nqm": 0.2})
    assert [reason.split()[0] for reason in found.reasons] == ["volume", "disagreement"]


def test_what_lies_inside_the_training_set_is_no_reason() -> None:
    odd = replace(SMALL, curves=(Curve("volume+", (0.2,), (1.0,)),))
    assert assess(odd, USUAL | {"volume": 4.0}).dice < 0.8
    assert assess(odd, USUAL | {"volume": 4.0}).reasons == ()


@pytest.mark.parametrize(
    ("nqm", "volume", "adds"),
    [
        (0.05, 2.0, 0.0),
        (0.04, 2.0, 0.3),
        (0.03, 2.0, 0.6),
        (0.01, 2.0, 0.6),  # no farther than it reaches
        (None, 2.0, -1.5),  # not there: nothing is added, and the curve takes all
        (0.05, 2.0 * np.exp(0.5), 0.1),
        (0.05, 40.0, 0.2),
    ],
)
def test_a_slope_adds_along_its_lines_and_ends(nqm: float | None, volume: float, adds: float) -> None:
    size = np.log(2.0)
    by_size = Slope("volume", (size - 1, size, size + 1), (-0.2, 0.0, 0.2))
    leaning = replace(SMALL, slopes=(Slope("nqm", (0.03, 0.07), (0.6, -0.6)), by_size))
    found = assess(leaning, USUAL | {"nqm": nqm, "volume": volume})
    assert found.dice == pytest.approx(1 / (1 + np.exp(-2 - adds)))


def test_what_a_slope_takes_is_a_reason() -> None:
    by_size = Slope("volume", (np.log(2.0) - 1.5, np.log(2.0) + 1.5), (-0.9, 0.9))
    leaning = replace(SMALL, slopes=(Slope("nqm", (0.03, 0.07), (0.6, -0.6)), by_size), curves=())
    found = assess(leaning, USUAL | {"nqm": 0.09, "volume": 0.5})
    assert [reason.split()[0] for reason in found.reasons] == ["volume", "disagreement"]
    assert assess(leaning, USUAL | {"volume": 40.0}).reasons == ()  # it is odd, but nothing is taken for it


def test_a_score_without_slopes_is_read_as_before() -> None:
    values = {name: value for name, value in trust.to_json(SMALL).items() if name != "slopes"}
    back = trust.from_json(json.loads(json.dumps(values | {"version": 1})), "old.safetensors: trust")
    assert back == replace(SMALL, version=1)
    assert assess(back, USUAL | {"volume": 0.2}) == assess(SMALL, USUAL | {"volume": 0.2})


def test_slopes_of_version_2_are_read_as_they_were() -> None:
    """Then a slope had what is added for each spread, and how many spreads it reaches."""
    old = {"trait": "volume", "adds": 0.1, "reach": 2.0}
    values = json.loads(json.dumps(trust.to_json(SMALL))) | {"version": 2, "slopes": [old]}
    back = trust.from_json(values, "old.safetensors: trust")
    assert back.slopes == (Slope("volume", (np.log(2.0) - 1.0, np.log(2.0) + 1.0), (-0.2, 0.2)),)
    for spreads, adds in ((0.0, 0.0), (1.5, 0.15), (-9.0, -0.2)):
        place = np.array([np.log(2.0) + 0.5 * spreads])
        assert trust.adds(back.slopes[0], place)[0] == pytest.approx(adds)
    lost = values | {"slopes": [{"trait": "beauty", "adds": 0.1, "reach": 2.0}]}
    with pytest.raises(InputError, match="slopes"):
        trust.from_json(lost, "old.safetensors: trust")


def test_outside_of_what_was_calibrated_the_score_falls_with_the_distance() -> None:
    inside, far, farther = (assess(SMALL, USUAL | {"size_r": size}) for size in (40.0, 90.0, 400.0))
    assert not inside.outside and inside.dice == assess(SMALL, USUAL).dice
    excess = np.log(3) / 0.1 / (trust.SLACK * 4)
    assert far.outside and far.low == 0 and far.dice == pytest.approx(inside.dice / excess)
    assert farther.dice < far.dice
    assert far.reasons == (
        "the field of view is unlike training: field of view (axis R) 90 mm (in training 28 to 33 mm)",
    )


def test_an_empty_mask_has_what_empty_masks_had() -> None:
    found = assess(SMALL, USUAL | {"volume": None, "nqm": None})
    assert found.dice == 0 and found.low == 0 and found.high < 0.05
    assert found.reasons == ("the mask is empty",)
    assert assess(replace(SMALL, empty_dice=0.4), USUAL | {"volume": None}).dice == 0.4


@given(st.floats(0, 1), st.floats(0, 20))
def test_an_interval_holds_what_is_expected(dice: float, width: float) -> None:
    (low,), (high,) = trust.bounds(np.array([dice]), np.array([width]))
    assert 0 <= low <= dice + 1e-9 and dice - 1e-9 <= high <= 1
    assert trust.inverse(trust.log_odds(np.array([dice])))[0] == pytest.approx(dice, abs=1e-9)


def test_many_at_once_are_as_one_by_one() -> None:
    cases = [row.traits for row in table(persons=3)]
    many = trust.expect(score(), cases)
    for number, case in enumerate(cases):
        one = assess(score(), case)
        assert one.dice == many.dice[number] and one.low == many.low[number]


def test_a_model_file_keeps_its_score_and_its_hash(tmp_path: Path) -> None:
    model = trusted(tiny_model())
    back = load_model(save_model(tmp_path / "m.safetensors", model))
    assert back.trust == model.trust and back.hash == tiny_model().hash
    assert len(json.dumps(trust.to_json(score()))) < 40_000
    assert "tells what Dice to expect" in describe(back)
    assert load_model(save_model(tmp_path / "n.safetensors", tiny_model())).trust is None
    assert "trust" not in describe(tiny_model())


def test_the_engine_in_c_opens_a_model_with_a_score() -> None:
    assert len(to_bytes(trusted(tiny_model()))) > len(to_bytes(tiny_model()))
    prediction = Predictor(trusted(tiny_model()), engine="native").predict(scan())
    assert prediction.report["trust"] is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 99}, "version of the trust score"),
        ({"base": "high"}, "base"),
        ({"more": 1}, "unknown setting 'more'"),
        ({"curves": [{"feature": "beauty", "at": [1.0], "takes": [1.0]}]}, "scales must hold 'beauty'"),
        ({"curves": [{"feature": "nqm", "at": [1.0], "takes": [-1.0]}]}, "must rise"),
        ({"curves": [{"feature": "nqm", "at": [2.0, 1.0], "takes": [0.0, 1.0]}]}, "rising places"),
        ({"slopes": [{"trait": "beauty", "at": [0, 1], "adds": [0, 1]}]}, "scales must hold 'beauty'"),
        ({"slopes": [{"trait": "nqm", "at": [0, 1], "adds": [0, 1]}]}, "the trait's own way"),
        ({"slopes": [{"trait": "volume", "at": [0, 1, 1], "adds": [0, 1, 2]}]}, "rising places"),
        ({"slopes": [{"trait": "volume", "at": [0, 1], "adds": [0, 1, 2]}]}, "rising places"),
        ({"slopes": [{"trait": "volume", "at": [0], "adds": [0]}]}, "from 2 on"),
        ({"slopes": [{"trait": "nqm", "adds": -1.0, "reach": 3.0}]}, "slopes"),
        ({"intervals": []}, "intervals must begin at 0"),
        ({"coverage": 1.5}, "must be shares"),
        (
            {"scales": [{"trait": "beauty", "middle": 0, "spread": 1, "low": 0, "high": 1}]},
            "scales must hold",
        ),
    ],
)
def test_a_damaged_score_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    values = json.loads(json.dumps(trust.to_json(score()))) | change
    with pytest.raises(InputError, match=told) as error:
        trust.from_json(values, "m.safetensors: trust")
    assert str(error.value).startswith("m.safetensors: trust")


def scan(seed: int = 0) -> Volume:
    """Seed -> a scan of voxels of 1 x 1 x 2 mm."""
    return Volume(voxels(seed)[None], np.diag([1.0, 1.0, 2.0, 1.0]))


@pytest.mark.parametrize("engine", ["numpy", "folded", "eager"])
def test_every_engine_expects_the_same(engine: str) -> None:
    model = trusted(tiny_model())
    native, other = (Predictor(model, engine=name).predict(scan()).report for name in ("native", engine))
    assert other["trust"]["expected_dice"] == pytest.approx(native["trust"]["expected_dice"], abs=0.01)


def test_a_prediction_is_the_same_with_and_without_a_score() -> None:
    with_it, without = (Predictor(file).predict(scan()) for file in (trusted(tiny_model()), tiny_model()))
    assert np.array_equal(with_it.mask.data, without.mask.data)
    assert with_it.probability is None and with_it.spread is None
    assert without.report["trust"] is None and with_it.report["signals"] == without.report["signals"]


def test_turning_a_scan_does_not_change_what_is_expected() -> None:
    model = trusted(tiny_model())
    turned = scan().oriented("LIP")
    told = [Predictor(model).predict(volume).report["trust"] for volume in (scan(), turned)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("options", "told"), [({"gate": 2}, "gate"), ({"patience": 4}, "anytime"), ({}, "ensemble of 7")]
)
def test_a_model_that_is_run_otherwise_than_calibrated_says_so(options: dict[str, Any], told: str) -> None:
    model = trusted(tiny_model())
    if not options:
        model = replace(model, trust=replace(score(), ensemble=7))
    predictor = Predictor(model, **options)
    assert told in predictor.without_trust
    assert predictor.predict(scan()).report["trust"] is None


def test_without_signals_nothing_is_expected() -> None:
    assert Predictor(trusted(tiny_model()), signals=False).predict(scan()).report["trust"] is None
    assert Predictor(trusted(tiny_model()), trust=False).predict(scan()).report["trust"] is None


def test_a_prediction_that_is_not_finite_is_worth_nothing() -> None:
    model = trusted(tiny_model())
    weights = {name: array * np.float32(1e12) for name, array in model.weights.items()}
    told = Predictor(replace(model, weights=weights)).predict(scan()).report["trust"]
    assert told["expected_dice"] == 0 and "not finite" in told["reasons"][0]
