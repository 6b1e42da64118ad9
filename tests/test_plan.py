"""The planner: counts are exact, plans keep their laws for any data, and reasons are told and stored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.cli import main
from mednca.commands import Train
from mednca.config import RunConfig, from_dict, to_dict
from mednca.cost import cost_of, iteration_seconds, slice_multiply_adds
from mednca.dataset import fingerprint, foreground, load_scans
from mednca.errors import InputError
from mednca.fingerprint import Fingerprint
from mednca.modelfile import shipped_model
from mednca.nca import MedNCA
from mednca.plan import BUDGETS, LEAST_HIDDEN, VIEWS, plan, reach, to_json, with_fitting_start
from mednca.recipes import RECIPES, planned, quick, recipe, with_classes
from mednca.rule import MedNCAConfig, multiply_adds, parameters
from mednca.train import train
from mednca.volume import Volume
from tests.small_training import config, write_cases

#: What four kinds of data are like: crops of one organ, thick slices, ultrasound, nuclei.
CROPS = Fingerprint(
    1,
    (1.0, 1.0, 1.0),
    (35, 50, 36),
    {1: "anterior", 2: "posterior"},
    least=(31, 40, 24),
    largest=(43, 59, 47),
    cases=208,
    slices=7413,
    extent=(22.0, 39.0, 26.0),
    extent_95=(25.0, 44.0, 32.0),
    chord=(8.8, 8.3, 6.0),
    share=0.053,
)
PROSTATE = replace(
    CROPS,
    spacing=(0.6, 0.6, 3.0),
    shape=(320, 320, 24),
    labels={1: "prostate"},
    least=(256, 256, 15),
    largest=(400, 400, 54),
    chord=(29.0, 25.0, 20.0),
)
ULTRASOUND = replace(
    PROSTATE,
    spacing=(1.0, 1.0, 1.0),
    shape=(800, 540, 1),
    spacing_known=False,
    least=(799, 540, 1),
    largest=(800, 563, 1),
    chord=(368.0, 295.0, 1.0),
)
NUCLEI = replace(ULTRASOUND, shape=(256, 256, 1), least=None, largest=None, chord=(11.3, 10.8, 1.0))


# -- counts


def test_multiply_adds_are_the_papers() -> None:
    paper = MedNCAConfig()
    one = replace(paper, scales=(1,), steps=(1,))
    assert multiply_adds(one, 1, 1) == 34_816 == 2 * 9 * 32 * 32 + 3 * 32 * 128 + 128 * 32
    assert multiply_adds(paper, 256, 256) == 34_816 * 64 * (64 * 64 + 256 * 256)
    assert multiply_adds(paper, 256, 256) / 1e9 == pytest.approx(155, abs=0.5)
    assert multiply_adds(paper, 320, 320) / 1e9 == pytest.approx(242, abs=0.5)
    assert multiply_adds(paper, 256, 256) / 256**2 == pytest.approx(2_368_000, rel=1e-3)
    assert multiply_adds(replace(paper, steps=(16, 16)), 256, 256) / 256**2 == pytest.approx(
        592_000, rel=1e-3
    )


def test_multiply_adds_of_a_lean_rule_are_those_counted_by_hand() -> None:
    lean = MedNCAConfig(
        channels=16, hidden=64, perception="depthwise", scales=(8, 4, 2, 1), steps=(8, 8, 8, 8)
    )
    a_cell = 9 * 16 * 2 + 3 * 16 * 64 + 64 * 16
    assert a_cell == 4_384
    assert multiply_adds(lean, 64, 64) == a_cell * 8 * (64 + 256 + 1024 + 4096)
    assert parameters(lean) == 17_920


@pytest.mark.parametrize("model", [MedNCAConfig(), plan(CROPS, "pi").config.model, plan(NUCLEI).config.model])
def test_parameters_are_those_of_the_model(model: MedNCAConfig) -> None:
    assert parameters(model) == sum(weight.numel() for weight in MedNCA(model).parameters())


def test_a_slice_is_counted_with_its_padding_and_every_run_of_the_ensemble() -> None:
    lean = plan(CROPS, "best").config
    assert (lean.model.multiple, lean.predict.ensemble) == (8, 4)
    assert slice_multiply_adds(lean, (35, 50)) == 4 * multiply_adds(lean.model, 40, 56)


def test_every_second_run_sees_the_scan_mirrored_where_training_did_too() -> None:
    best = plan(CROPS).config
    assert best.augment.flip == (0,) and best.predict.mirror == (0,)
    assert plan(CROPS, "pi").config.predict.mirror == ()  # one run
    sagittal = replace(CROPS, spacing=(3.0, 1.0, 1.0), spacing_known=True)
    cut_left_to_right = plan(sagittal).config
    assert cut_left_to_right.preprocess.axes == (0,)
    assert (cut_left_to_right.augment.flip, cut_left_to_right.predict.mirror) == ((), ())
    network = recipe("unet", CROPS)
    assert (network.predict.ensemble, network.predict.mirror) == (2, (0,))
    named = with_classes(best, {1: "left lung", 2: "right lung"})
    assert (named.augment.flip, named.predict.mirror) == ((), ())


def test_a_scan_seen_along_three_axes_is_counted_three_times() -> None:
    model = plan(CROPS).config.model
    views = 36 * multiply_adds(model, 40, 56) + 35 * multiply_adds(model, 56, 40)
    views += 50 * multiply_adds(model, 40, 40)
    assert plan(CROPS).cost.multiply_adds == round(4 * views / 36)  # four runs, by axial slices


def test_the_papers_model_costs_what_the_papers_model_costs() -> None:
    paper = RunConfig(model=MedNCAConfig())
    flat = replace(CROPS, shape=(50, 35, 1))
    assert cost_of(paper, flat).ratio_64 == 1.0 and cost_of(paper, flat).ratio_16 == 0.25
    assert cost_of(paper, flat).fired_multiply_adds == multiply_adds(MedNCAConfig(), 52, 36) / 2


def test_training_takes_longer_with_more_of_anything() -> None:
    base = plan(PROSTATE, "laptop").config
    seconds = iteration_seconds(base)
    for more in (
        replace(base, model=replace(base.model, hidden=base.model.hidden + 16)),
        replace(base, model=replace(base.model, channels=base.model.channels + 16)),
        replace(base, model=replace(base.model, steps=tuple(s + 1 for s in base.model.steps))),
        replace(base, model=replace(base.model, perception="dense")),
        replace(base, train=replace(base.train, batch_size=base.train.batch_size + 1)),
        replace(base, train=replace(base.train, patch=base.train.patch and base.train.patch + 8)),
        replace(base, train=replace(base.train, canvas=(256, 256))),
        replace(
            base,
            model=replace(base.model, image_channels=5),
            preprocess=replace(base.preprocess, context=2),
        ),
    ):
        assert iteration_seconds(more) > seconds


# -- what is found in the data


def test_the_width_of_the_foreground_tells_many_small_things_from_a_large_one() -> None:
    data = np.zeros((1, 24, 24, 2), np.uint8)
    data[0, 2:22, 4:16] = 1
    chord, extent = foreground(Volume(data, np.diag([2.0, 1.0, 5.0, 1.0]))) or ((), ())
    assert chord == pytest.approx((40, 12, 10)) and extent == pytest.approx((40, 12, 10))
    data[:] = 0
    for row in range(0, 24, 8):
        for column in range(0, 24, 8):
            data[0, row : row + 4, column : column + 2] = 1  # the first stand at the edge of the scan
    chord, extent = foreground(Volume(data, np.eye(4))) or ((), ())
    assert chord == pytest.approx((4, 2, 2)) and extent == pytest.approx((20, 18, 2))
    assert foreground(Volume(np.zeros((1, 2, 2, 2), np.uint8), np.eye(4))) is None


def test_a_fingerprint_has_what_the_planner_needs(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 4)
    data = fingerprint(cases, load_scans(cases.cases))
    assert (data.cases, data.slices, data.least, data.largest) == (4, 16, (16, 16, 4), (16, 16, 4))
    assert not data.spacing_known  # NIfTI of 1 x 1 x 1 without a unit
    assert data.extent and data.extent_95 and data.chord and data.share
    assert all(a <= b <= n for a, b, n in zip(data.extent, data.extent_95, data.shape, strict=True))
    assert all(0 < a <= b for a, b in zip(data.chord, data.extent, strict=True)) and 0 < data.share < 0.3


# -- plans


def three(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[float, float, float]]:
    """Strategy -> three values of it."""
    return st.tuples(values, values, values)


@st.composite
def fingerprints(draw: st.DrawFn) -> Fingerprint:
    """Any data: flat or not, thick slices, thin foreground, several channels, sizes that differ."""
    shape = list(draw(three(st.integers(4, 1500))))
    if draw(st.booleans()):
        shape[draw(st.integers(0, 2))] = 1
    known = draw(st.booleans())
    spacing = draw(three(st.floats(0.1, 8.0))) if known else (1.0, 1.0, 1.0)
    chord = None
    if draw(st.booleans()):
        shares = draw(three(st.floats(0.001, 1.0)))
        chord = tuple(max(d, n * d * s) for n, d, s in zip(shape, spacing, shares, strict=True))
    smaller, larger = draw(st.floats(0.3, 1.0)), draw(st.floats(1.0, 4.0))
    return Fingerprint(
        modalities=draw(st.integers(1, 4)),
        spacing=spacing,
        shape=tuple(shape),
        labels={value: f"label {value}" for value in range(1, draw(st.integers(1, 6)) + 1)},
        spacing_known=known,
        least=tuple(max(1, int(n * smaller)) for n in shape),
        largest=tuple(max(1, int(n * larger)) if n > 1 else 1 for n in shape),
        cases=draw(st.integers(1, 500)),
        slices=draw(st.integers(1, 50_000)),
        chord=chord,
    )


@settings(deadline=None)  # other programs may be busy
@given(fingerprints(), st.sampled_from(list(BUDGETS)))
def test_a_plan_keeps_its_laws_whatever_the_data(data: Fingerprint, budget: str) -> None:
    made = plan(data, budget)
    limits, settings, model = BUDGETS[budget], made.config, made.config.model
    assert parameters(model) == made.cost.parameters <= limits.parameters
    assert LEAST_HIDDEN <= model.hidden <= limits.hidden
    assert model.perception in ("depthwise", limits.perception)
    assert model.channels % 16 == model.hidden % 16 == 0  # the engines pad to that
    assert model.channels >= model.image_channels + model.classes + 8
    assert model.scales == tuple(2**level for level in reversed(range(len(model.scales))))
    height, width = settings.train.canvas or (0, 0)
    assert height % model.multiple == width % model.multiple == 0 and min(height, width) >= model.smallest
    seen = max(height, width) - model.multiple + 1  # but for what was rounded up
    assert reach(model) >= seen or max(height, width) == model.smallest
    assert 8 <= settings.train.batch_size <= 16
    assert settings.train.batch_size == 8 or iteration_seconds(settings) <= limits.seconds
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(settings))), "x") == settings
    a_cell = (18 if model.perception == "depthwise" else 18 * model.channels) * model.channels
    a_cell += 4 * model.channels * model.hidden
    updates = sum(s / scale**2 for s, scale in zip(model.steps, model.scales, strict=True))
    work = a_cell * updates * len(settings.preprocess.axes) * settings.predict.ensemble
    assert work <= limits.work or model.hidden == LEAST_HIDDEN
    assert all(choice.why and "\n" not in choice.why + choice.value for choice in made.choices)
    told = json.loads(to_json(made))
    assert (told["format"], told["version"], told["budget"]) == ("mednca-plan", 1, budget)


@settings(deadline=None)
@given(fingerprints(), st.sampled_from(list(BUDGETS)))
def test_slices_are_never_finer_than_they_are_nor_larger_than_the_budget(
    data: Fingerprint, budget: str
) -> None:
    preprocess = plan(data, budget).config.preprocess
    axes = preprocess.axes
    plane = [axis for axis in range(3) if axis != axes[0]]
    if len(axes) == 3:
        own = sorted(data.spacing)[1]
        spacing = preprocess.spacing or (0.0, 0.0)
        assert own <= spacing[0] == spacing[1] and BUDGETS[budget].every_axis and data.spacing_known
        assert max(data.shape) * min(data.spacing) / spacing[0] <= 1.2 * BUDGETS[budget].limit
        return
    if preprocess.size is not None:
        assert not data.spacing_known
        assert all(cells <= data.shape[a] for cells, a in zip(preprocess.size, plane, strict=True))
        return
    for step, axis in zip(preprocess.spacing or (1.0, 1.0), plane, strict=True):
        assert step >= data.spacing[axis] * (1 - 1e-9)
        assert data.shape[axis] * data.spacing[axis] / step <= 1.2 * BUDGETS[budget].limit


def test_a_lean_plan_has_far_fewer_multiply_adds_than_the_paper() -> None:
    for data, times in ((CROPS, 24), (PROSTATE, 40), (ULTRASOUND, 40), (NUCLEI, 40)):
        cost = plan(data, "pi").cost
        assert cost.ratio_64 >= times and cost.ratio_16 >= times / 4 and cost.parameters <= 20_000
        assert cost.ratio_64 > plan(data, "laptop").cost.ratio_64 > plan(data, "best").cost.ratio_64


def test_a_crop_of_one_organ_is_taken_as_it_is() -> None:
    settings = plan(CROPS).config
    assert settings.preprocess.spacing == (1.0, 1.0) and settings.preprocess.context == 1
    assert (settings.model.scales, settings.model.steps) == ((8, 4, 2, 1), (24, 16, 10, 8))
    assert settings.preprocess.axes == (2, 0, 1) and settings.train.canvas == (64, 64)
    assert settings.model.perception == "dense"
    assert (settings.model.channels, settings.model.hidden) == (16, 128)
    lean = plan(CROPS, "pi").config
    assert (lean.preprocess.axes, lean.train.canvas, lean.model.hidden) == ((2, 0, 1), (64, 64), 32)
    flat = plan(replace(CROPS, spacing=(1.0, 1.0, 3.0)), "pi").config
    assert (flat.preprocess.axes, flat.model.hidden) == ((2,), 64)  # one axis leaves work for a wider rule


def test_one_huge_slice_does_not_make_the_canvas_huge() -> None:
    odd = replace(CROPS, largest=(35, 400, 36))
    assert plan(odd, "laptop").config.train.canvas == (40, 64)  # 1.25 times the median of 50, rounded up


def test_a_large_image_is_worked_on_coarser_unless_what_is_sought_is_small() -> None:
    for budget, side in (("pi", 64), ("laptop", 64), ("best", 64)):
        spacing = plan(ULTRASOUND, budget).config.preprocess.spacing
        assert spacing == pytest.approx((800 / side, 800 / side))
    large = replace(NUCLEI, shape=(800, 540, 1))
    assert plan(large).config.preprocess.spacing is None
    assert max(plan(large).config.train.canvas or ()) <= 104  # eight widths, for the levels around it


def test_thick_slices_are_cut_and_resampled_in_their_plane_only() -> None:
    preprocess = plan(PROSTATE, "best").config.preprocess
    assert preprocess.axes == (2,)
    assert preprocess.spacing == pytest.approx((2.685, 2.685), abs=1e-3)  # 10 cells across the foreground
    assert "3 mm apart" in plan(PROSTATE, "best").choices[0].why


def test_sizes_that_differ_without_a_spacing_are_stretched_to_one() -> None:
    odd = replace(PROSTATE, spacing=(1.0, 1.0, 1.0), spacing_known=False, shape=(160, 160, 24))
    odd = replace(odd, least=(128, 128, 15), largest=(256, 256, 47))
    assert plan(odd).config.preprocess.size == (64, 64)
    assert plan(odd, "pi").config.preprocess.size == (64, 64)
    assert plan(replace(odd, spacing_known=True)).config.preprocess.size is None
    assert plan(replace(odd, least=(150, 150, 15), largest=(170, 170, 47))).config.preprocess.size is None


def test_a_small_organ_is_looked_for_where_it_lies() -> None:
    rare = replace(PROSTATE, share=0.02, place=(0.25, 0.74, 0.31, 0.81, 0.0, 0.9))
    found = plan(rare)
    assert found.config.preprocess.roi == (0.2, 0.79, 0.26, 0.86, 0.0, 1.0) and found.data == rare
    whole = plan(replace(rare, place=None)).config.preprocess
    assert whole.roi is None and whole.spacing is not None and found.config.preprocess.spacing is not None
    assert whole.spacing > found.config.preprocess.spacing  # as many cells on a smaller part
    for other in ({"share": 0.05}, {"place": (0.0, 0.9, 0.1, 1.0, 0.2, 0.3)}):  # common; all over the place
        assert plan(replace(rare, **other)).config.preprocess.roi is None
    told = next(choice for choice in found.choices if choice.name == "region")
    assert told.value == "20 to 79 % from left to right, 26 to 86 % from back to front"


def test_a_rare_foreground_is_learnt_on_whole_slices_and_kept_in_one_piece() -> None:
    common = plan(replace(PROSTATE, share=0.05, one_piece=1.0)).config
    assert (common.train.patch, common.predict.largest_component) == (32, False)
    rare = plan(replace(PROSTATE, share=0.02, one_piece=1.0)).config
    assert (rare.train.patch, rare.train.coarse_weight, rare.train.foreground) == (None, 0.3, 0.6)
    assert (rare.train.cycles, rare.train.iterations) == (2, 2 * common.train.iterations)
    assert rare.augment.bias > common.augment.bias
    assert rare.predict.largest_component and rare.predict.piece == "surest"
    assert (rare.predict.smoothing, common.predict.smoothing) == (2, 0)
    flat = plan(replace(PROSTATE, share=0.02, shape=(256, 256, 1), least=None, largest=None)).config
    assert flat.train.cycles == 2 and flat.predict.smoothing == 0
    cubes = plan(replace(CROPS, share=0.02)).config
    assert len(cubes.preprocess.axes) == 3 and cubes.predict.smoothing == 0
    assert not plan(replace(PROSTATE, share=0.02, one_piece=0.9)).config.predict.largest_component
    assert not plan(replace(PROSTATE, share=0.02)).config.predict.largest_component


def test_an_organ_in_few_flat_images_is_searched_in_smaller_steps_and_kept_in_one_piece() -> None:
    flat = replace(PROSTATE, share=0.2, one_piece=1.0, shape=(256, 256, 1), least=None, largest=None)
    few, many, several = (
        plan(replace(flat, **changes)).config
        for changes in ({"slices": 120}, {"slices": 5000}, {"slices": 120, "one_piece": 0.5})
    )
    told = [
        (c.train.batch_size, c.train.iterations, c.predict.largest_component) for c in (few, many, several)
    ]
    assert told[0] == (8, 4000, True) and told[2][1:] == (2000, False)
    assert told[1][0] == told[2][0] > 8 and told[1][1:] == (10_000, True)


def test_sizes_vary_in_training_as_they_do_in_files_without_a_spacing() -> None:
    odd = replace(PROSTATE, extent=(50.0, 44.0, 14.0), extent_95=(80.0, 60.0, 20.0))
    assert plan(odd).config.augment.scale == 0.2
    unknown = replace(odd, spacing=(1.0, 1.0, 1.0), spacing_known=False)
    assert plan(unknown).config.augment.scale == 0.5  # 0.6, but no more than that
    assert plan(replace(unknown, extent_95=(65.0, 60.0, 20.0))).config.augment.scale == 0.36
    assert plan(replace(unknown, extent_95=(51.0, 45.0, 15.0))).config.augment.scale == 0.2


def test_a_shipped_model_is_the_start_where_it_fits_and_does_not_know_the_scans() -> None:
    shipped = shipped_model("hippocampus")
    fitting = shipped.config.model.channels == plan(PROSTATE).config.model.channels
    assert plan(PROSTATE).config.train.init == (shipped.hash if fitting else "")
    assert plan(replace(CROPS, seen_by=(shipped.hash,))).config.train.init == ""
    assert plan(PROSTATE, "pi").config.train.init == ""
    reasons = {choice.name: choice.why for choice in plan(PROSTATE).choices}
    assert ("fewer iterations" if fitting else "does not fit: its channels") in reasons["start"]


def test_a_planned_start_is_dropped_where_other_settings_leave_it_no_room() -> None:
    config = replace(plan(PROSTATE).config, train=replace(plan(PROSTATE).config.train, init=""))
    assert with_fitting_start(config) == config
    shipped = shipped_model("hippocampus")
    planned = replace(config, train=replace(config.train, init=shipped.hash))
    n = shipped.config.model.channels
    for channels, wanted in ((n, shipped.hash), (2 * n, "")):
        changed = replace(planned, model=replace(planned.model, channels=channels))
        assert with_fitting_start(changed).train.init == wanted


def test_channels_that_leave_no_room_cost_dense_filters_then_neighbours() -> None:
    rule = plan(replace(CROPS, modalities=4)).config
    assert (rule.model.perception, rule.model.channels, rule.preprocess.context) == ("depthwise", 32, 1)
    assert plan(replace(CROPS, modalities=2), "pi").config.preprocess.context == 1
    many = plan(replace(CROPS, modalities=12), "pi")
    assert many.config.preprocess.context == 0
    assert "no room" in next(choice.why for choice in many.choices if choice.name == "context")
    with pytest.raises(ValueError, match="no rule of 20,000 parameters takes 99 channels"):
        plan(replace(CROPS, modalities=99), "pi")


def test_a_budget_or_recipe_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="budget 'phone' is not known; choose one of pi, laptop, best"):
        plan(CROPS, "phone")
    with pytest.raises(InputError, match="budget 'pi' is for the recipes robust and native, got 'quick'"):
        recipe("quick", CROPS, "pi")


def test_the_recipe_native_is_the_best_plan_and_budgets_have_names_of_their_own() -> None:
    assert recipe("native", CROPS) == plan(CROPS, "best").config == RECIPES["native"](CROPS)
    assert recipe("native", CROPS, "pi").recipe == "native_pi"
    assert {plan(CROPS, budget).config.recipe for budget in BUDGETS} == {
        "native",
        "native_pi",
        "native_laptop",
    }


def test_the_quick_recipe_is_as_it_was() -> None:
    made = quick(CROPS)
    assert (made.model.channels, made.model.hidden, made.model.scales) == (16, 64, (2, 1))
    assert made.train.canvas is None and made.train.coarse_weight == 1.0
    assert made.preprocess.spacing == (1.0, 1.0)


# -- the command


def test_plan_tells_what_it_found_and_chose_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path / "data", 4)
    out = tmp_path / "plan.json"
    with pytest.raises(SystemExit) as end:
        main(["plan", str(tmp_path / "data"), "--budget", "pi", "--json", str(out)])
    assert not end.value.code
    told = capsys.readouterr().out
    stored = json.loads(out.read_text())
    assert stored["budget"] == "pi" and stored["data"]["shape"] == [16, 16, 4]
    assert "Found in the data" in told and "not known: lengths are in pixels" in told
    for choice in stored["choices"]:
        assert choice["name"] in told and choice["value"] in told and choice["why"] in told
    assert f"{stored['cost']['parameters']:,}" in told
    assert f"{stored['cost']['ratio_64']:.3g} times as many" in told
    from_dict(RunConfig, stored["config"], "plan.json")
    with pytest.raises(SystemExit) as end:
        main(["plan", str(tmp_path / "data"), "--json", str(out)])
    assert end.value.code == 2 and "exists already" in capsys.readouterr().err


def test_a_run_stores_the_plan_behind_it(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "data", 4)
    command = Train(tmp_path / "data", tmp_path / "run", budget="laptop")
    tiny = config(iterations=1, validate_every=0)
    train(
        cases,
        tmp_path / "run",
        lambda _: tiny,
        explain=command.explain,
        validation=0.0,
        engine="eager",
        progress=False,
    )
    data = fingerprint(cases, load_scans(cases.cases))
    stored = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert stored == json.loads(to_json(planned("robust", data, "laptop")))
    assert stored["config"] == json.loads(json.dumps(to_dict(command.configure(data))))
    assert command.configure(data).recipe == "robust_laptop"
    plain = replace(command, recipe="native")
    assert plain.configure(data).recipe == "native_laptop"
    assert plain.explain(data) == plan(data, "laptop")
    assert math.isclose(stored["data"]["share"], data.share or 0)


def test_windows_that_show_little_of_the_slice_bring_a_loss_on_every_level() -> None:
    small, large = plan(CROPS).config.train, plan(PROSTATE).config.train
    assert (small.coarse_weight, small.foreground) == (0.0, 0.7)
    assert (large.coarse_weight, large.foreground) == (0.5, 0.5)


def test_small_sets_are_trained_less_long_and_none_longer_than_the_budget() -> None:
    def iterations(slices: int) -> int:
        return plan(replace(ULTRASOUND, slices=slices)).config.train.iterations

    assert iterations(30) == 2000 and iterations(100_000) == 10_000
    assert iterations(400) == 400 * 200 / plan(ULTRASOUND).config.train.batch_size


def test_the_page_has_the_budgets_numbers() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/reference/planner.md").read_text(encoding="utf-8")
    table = page[page.index("| | `pi` | `laptop` | `best` |") :].split("\n\n")[0]
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:5]]
        for row in table.splitlines()
    }

    def stated(beginning: str) -> list[str]:
        """Beginning of a row's name -> its cells."""
        (found,) = (row for name, row in rows.items() if name.startswith(beginning))
        return found

    limits = [BUDGETS[name] for name in ("pi", "laptop", "best")]
    for beginning, wanted in (
        ("parameters", [f"{b.parameters:,}" for b in limits]),
        ("filters", [b.perception for b in limits]),
        ("channels n", [f"{b.channels}, {b.hidden}" for b in limits]),
        ("multiply-adds", [f"{b.work:,.0f}" if math.isfinite(b.work) else "" for b in limits]),
        ("cells of the longer side of a slice", [str(b.side) for b in limits]),
        ("cells across", [str(b.across) for b in limits]),
        ("cells of the longer side, at most", [f"{b.limit:,}" for b in limits]),
        ("patch", [str(b.patch) for b in limits]),
        ("iterations", [f"{b.iterations:,}" for b in limits]),
        ("peak learning rate", [f"{b.learning_rate:g}" for b in limits]),
        ("contrast", [f"{b.gamma:g}" for b in limits]),
        ("fire-mask runs", [str(b.ensemble) for b in limits]),
        ("begins with", [f"`{b.start}`" if b.start else "" for b in limits]),
    ):
        assert stated(beginning) == wanted, beginning
    (least, most), first = BUDGETS["best"].step_range, plan(PROSTATE).config.train.step_range_from
    assert (
        stated("number of steps")[2] == f"{least:g} to {most:g}, after half of the iterations"
        and first == 0.5
    )
    assert f"show each slice {VIEWS} times" in page
