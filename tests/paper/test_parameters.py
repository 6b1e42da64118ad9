"""The numbers of parameters that the paper states (Table 1), and the formula behind them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.nca import Backbone, MedNCA
from mednca.rule import MedNCAConfig


def count(config: MedNCAConfig) -> int:
    """Config -> number of learnt values of all levels."""
    return sum(array.numel() for array in MedNCA(config).parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(MedNCAConfig(), 70_016, id="Med-NCA"),
        pytest.param(MedNCAConfig(channels=16), 25_920, id="n=16"),
        pytest.param(MedNCAConfig(scales=(1,), steps=(64,)), 35_008, id="one backbone"),
        # Table 1 prints 47,530. No reading of the formula gives that: 53,504 is what n = 32, h = 64 has.
        pytest.param(MedNCAConfig(hidden=64), 53_504, id="h=64"),
        # Ours, not the paper's: depthwise perception, four levels.
        pytest.param(
            MedNCAConfig(channels=16, hidden=64, perception="depthwise", scales=(8, 4, 2, 1), steps=(8,) * 4),
            17_920,
            id="lean",
        ),
    ],
)
def test_a_model_has_the_number_of_parameters_that_is_stated(config: MedNCAConfig, parameters: int) -> None:
    assert count(config) == parameters


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), h=st.integers(1, 150))
def test_a_backbone_has_as_many_parameters_as_the_formula_says(n: int, h: int) -> None:
    backbone = Backbone(MedNCAConfig(channels=n, hidden=h))
    assert (
        sum(array.numel() for array in backbone.parameters()) == 2 * (9 * n * n + n) + (3 * n * h + h) + h * n
    )


@given(levels=st.integers(1, 5))
def test_every_level_has_a_rule_of_its_own(levels: int) -> None:
    scales = tuple(2**level for level in reversed(range(levels)))
    config = MedNCAConfig(channels=4, hidden=8, scales=scales, steps=(1,) * levels)
    assert count(config) == levels * sum(array.numel() for array in Backbone(config).parameters())


def test_a_rule_is_seven_arrays() -> None:
    assert len(list(Backbone(MedNCAConfig()).parameters())) == 7
