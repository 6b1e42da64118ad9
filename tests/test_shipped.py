"""The models that come with the package: their pages are drawn from their cards, their figures are stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mednca.errors import InputError
from mednca.modelfile import SHIPPED, load_model, shipped_models
from mednca.report import MERGED
from reproduce import shipped
from reproduce.plans import stored
from reproduce.stored import RESULTS


@pytest.mark.parametrize("name", shipped_models())
def test_the_page_of_a_model_is_drawn_from_its_card(name: str) -> None:
    model = load_model(name)
    assert shipped.page(name, model) == (SHIPPED / f"{name}.md").read_text()
    assert f"`{model.hash}`" in shipped.page(name, model)


@pytest.mark.parametrize("name", shipped_models())
def test_the_figures_of_a_card_are_those_that_are_stored(name: str) -> None:
    card, told = load_model(name).card, shipped.CARDS[name]
    result = json.loads((RESULTS / told.report).read_text())
    summary = result["summary"]
    summary = summary.get(MERGED) or summary["merged"]
    assert card["licence"] == told.licence and card["data"] == told.data
    assert card["scores"]["cases"] == len(result["cases"])
    folds = {case["fold"] for case in result["cases"].values()}
    if len(folds) == 5:
        assert sorted(result["cases"]) == sorted(card["training_cases"])
    else:
        assert set(result["cases"]) < set(card["training_cases"])
        assert card["scores"]["protocol"].startswith(f"{len(folds)} of 5 folds")
    for metric in ("dice", "hd95_mm"):
        assert card["scores"][metric]["mean"] == pytest.approx(summary[metric]["mean"], abs=1e-4)


def test_a_page_tells_how_good_the_trust_score_is_and_nothing_where_there_is_none() -> None:
    told = {"predictions": 9, "persons": 3, "spearman": 0.876, "below": 0.8}
    told |= {"flagged": 0.914, "false_alarms": 0.127, "coverage": 0.905}
    section = " ".join(shipped.trusted({"trust": told}))
    for words in ("9 predictions of 3 people", "0.88;", "below 0.8, 91 % are", "others 13 %", "holds 90 %"):
        assert words in section
    assert shipped.trusted({}) == []


def test_the_shipped_robust_model_is_of_the_recipe_that_is_told() -> None:
    data = json.loads((RESULTS / "plans.json").read_text())["data"]["Task04_Hippocampus"]
    asked, found = shipped.robust_start(stored(data["fingerprint"])), load_model("hippocampus_robust").config
    measured = {name: getattr(found.predict, name) for name in ("sizes", "spectrum", "coarse")}
    assert found.preprocess.field and all(measured.values())
    assert asked.preprocess.field == () and {getattr(asked.predict, name) for name in measured} == {()}
    preprocess = replace(asked.preprocess, field=found.preprocess.field)  # measured on the training scans
    predict = replace(asked.predict, **measured)
    assert found == replace(asked, preprocess=preprocess, predict=predict)


def test_only_a_card_that_says_so_is_of_some_of_the_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {"cases": {"a": {}}, "missing": ["seed_0/fold_1: not started"]}
    monkeypatch.setattr(shipped, "read_result", lambda path: some)
    assert shipped.experiment_result("hippocampus_robust") is some
    with pytest.raises(InputError, match=r"nuclei: has no figures yet; .*organs.py .* nuclei_best"):
        shipped.experiment_result("nuclei")
    monkeypatch.setattr(shipped, "read_result", lambda path: None)
    with pytest.raises(InputError, match=r"table1.py .* hippocampus_robust"):
        shipped.experiment_result("hippocampus_robust")


def test_nothing_is_shipped_that_the_data_do_not_allow() -> None:
    assert set(shipped_models()) <= set(shipped.CARDS)
    folders = {card.folder for card in shipped.CARDS.values()}
    assert not folders & {"PROMISE12_Prostate", "COVIDCXR_Lungs"}
