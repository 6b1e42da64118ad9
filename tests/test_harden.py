"""The robust recipe: the plan and what prepares it, told with its reasons, within its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mednca.cost import copy_bytes, training_bytes
from mednca.errors import InputError
from mednca.harden import COPIES_BYTES, hardened
from mednca.plan import BUDGETS, plan
from mednca.recipes import PLANNED, RECIPES, planned, recipe
from reproduce.catalogue import find
from tests.test_plan import CROPS, PROSTATE

UNEVEN = replace(PROSTATE, spacing=(1.0, 1.0, 1.0), spacing_known=False, shape=(160, 160, 24))
UNEVEN = replace(UNEVEN, least=(128, 128, 15), largest=(256, 256, 47))


@pytest.mark.parametrize("budget", [None, *BUDGETS])
def test_the_robust_recipe_is_the_plan_with_its_input_prepared(budget: str | None) -> None:
    plain, found = (recipe(name, CROPS, budget) for name in ("native", "robust"))
    assert found.preprocess == replace(plain.preprocess, field=(), margin=6)
    assert found.augment == replace(plain.augment, artefacts=0.3)
    assert found.predict == replace(plain.predict, sizes=(), spectrum=(), coarse=())
    assert (found.model, found.train) == (plain.model, plain.train)
    assert found.recipe == plain.recipe.replace("native", "robust")
    (unet,) = find(["hippocampus_unet_robust"])  # trained the same way
    assert {part: unet.changes[part] for part in ("preprocess", "augment", "predict")} == {
        "preprocess": {"field": list(found.preprocess.field or ()), "margin": found.preprocess.margin},
        "augment": {"artefacts": found.augment.artefacts},
        "predict": {"sizes": [], "spectrum": [], "coarse": []},
    }


def test_it_is_the_default_and_what_a_plan_of_it_tells_is_what_it_is() -> None:
    assert next(iter(RECIPES)) == PLANNED[0] == "robust"
    for name in PLANNED:
        assert planned(name, CROPS).config == recipe(name, CROPS)
        assert planned(name, CROPS, "pi").config == recipe(name, CROPS, "pi")
    with pytest.raises(InputError, match="budget 'best' is for the recipes robust and native, got 'quick'"):
        planned("quick", CROPS)


def test_its_reasons_come_after_those_of_the_plan() -> None:
    plain, made = plan(CROPS), planned("robust", CROPS)
    assert made.choices[: len(plain.choices)] == plain.choices
    told = {choice.name: choice for choice in made.choices[len(plain.choices) :]}
    assert list(told) == ["artefacts", "unusual", "margin"]
    assert told["artefacts"].value == "30% of the slices" and "of 4 copies of each" in told["artefacts"].why
    assert told["margin"].value == "6 pixels"


def test_slices_of_one_size_have_no_margin() -> None:
    """They fill their canvas."""
    for data, margin in ((UNEVEN, 0), (replace(UNEVEN, spacing_known=True), 6)):
        made = planned("robust", data)
        assert made.config.preprocess.margin == margin
        assert made.choices[-1].value == f"{margin} pixels"


def test_it_costs_what_it_computes_in_the_part_that_is_looked_at() -> None:
    somewhere = replace(UNEVEN, share=0.02, place=(0.25, 0.74, 0.31, 0.81, 0.0, 0.9))
    plain, made = plan(somewhere), planned("robust", somewhere)
    assert made.config.preprocess.roi is not None and made.config.preprocess.margin == 0
    assert made.cost.multiply_adds == plain.cost.multiply_adds  # without a margin, nothing more
    assert planned("robust", CROPS).cost.multiply_adds > plan(CROPS).cost.multiply_adds


@given(st.integers(1, 5000), st.integers(16, 700), st.integers(1, 400), st.integers(1, 4))
def test_copies_are_as_many_as_their_memory_allows(cases: int, side: int, depth: int, channels: int) -> None:
    data = replace(CROPS, cases=cases, shape=(side, side, depth), least=None, largest=None)
    data = replace(data, modalities=channels)
    made, plain = planned("robust", data, "laptop"), plan(data, "laptop")
    copies, each = made.config.augment.copies, copy_bytes(made.config, data)
    assert 1 <= copies <= 4
    assert copies == 1 or copies * each <= COPIES_BYTES
    assert copies == 4 or (copies + 1) * each > COPIES_BYTES
    assert ("more would need much memory" in made.choices[-3].why) == (copies < 4)
    more = training_bytes(made.config, data) - training_bytes(plain.config, data)
    assert more == pytest.approx(copies * each)
    assert made.cost.training_bytes == training_bytes(made.config, data)


def test_a_plan_is_not_changed_where_it_is_made() -> None:
    made = plan(CROPS)
    assert hardened(made).config != made.config == plan(CROPS).config
