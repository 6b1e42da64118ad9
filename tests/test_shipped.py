"""The models that come with the package: their pages are drawn from their cards, their figures are stored."""

from __future__ import annotations

import json

import pytest

from mednca.modelfile import SHIPPED, load_model, shipped_models
from mednca.report import MERGED
from reproduce import shipped
from reproduce.stored import RESULTS


@pytest.mark.parametrize("name", shipped_models())
def test_the_page_of_a_model_is_drawn_from_its_card(name: str) -> None:
    model = load_model(name)
    assert shipped.page(name, model) == (SHIPPED / f"{name}.md").read_text()
    assert f"`{model.hash}`" in shipped.page(name, model)


@pytest.mark.parametrize("name", shipped_models())
def test_the_figures_of_a_card_are_those_that_are_stored(name: str) -> None:
    card, told = load_model(name).card, shipped.CARDS[name]
    stored = json.loads((RESULTS / told.report).read_text())
    summary = stored["summary"]
    summary = summary.get(MERGED) or summary["merged"]
    assert card["licence"] == told.licence and card["data"] == told.data
    assert card["scores"]["cases"] == len(stored["cases"]) == len(card["training_cases"])
    assert sorted(stored["cases"]) == sorted(card["training_cases"])
    for metric in ("dice", "hd95_mm"):
        assert card["scores"][metric]["mean"] == pytest.approx(summary[metric]["mean"], abs=1e-4)


def test_nothing_is_shipped_that_the_data_do_not_allow() -> None:
    assert set(shipped_models()) <= set(shipped.CARDS)
    folders = {card.folder for card in shipped.CARDS.values()}
    assert not folders & {"PROMISE12_Prostate", "COVIDCXR_Lungs"}
