"""Scores of cases, their summary with intervals, reports: values by hand, coverage, round trips, refusals."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mednca.errors import InputError
from mednca.evaluate import evaluate, score_case
from mednca.report import Report, bootstrap_interval, merge_reports, paired_difference, summarise

BOUNDED = settings(max_examples=40, deadline=None)


@dataclass(frozen=True)
class Volume:
    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self):
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))


@dataclass(frozen=True)
class Case:
    id: str
    images: tuple[str, ...]
    label: str | None
    group: str | None = None
    source: str = ""
    channels: tuple[int, ...] = ()


class Threshold:
    """A stand-in for a model: the image is the probability or, for several labels, the label itself."""

    def __init__(self, labels, with_probability=True):
        self.labels, self.with_probability, self.seen = labels, with_probability, []

    def predict(self, volume):
        self.seen.append(volume)
        several = len(self.labels) > 1
        mask = volume.data if several else (volume.data > 0.5) * next(iter(self.labels))
        probability = Volume(volume.data, volume.affine) if self.with_probability and not several else None
        return SimpleNamespace(mask=Volume(mask.astype(np.uint8), volume.affine), probability=probability)


AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def files(monkeypatch):
    """File name -> Volume, read in place of real files."""
    stored = {}
    stand_in = SimpleNamespace(
        read_case=lambda paths, channels: stored[paths[0]], read_label=lambda path, like: stored[path]
    )
    monkeypatch.setitem(sys.modules, "mednca.io", stand_in)
    return stored


def cube(value=1, start=2, shape=(8, 8, 8)):
    data = np.zeros((1, *shape), np.uint8)
    data[0, start : start + 4, 2:6, 2:6] = value
    return data


def add(files, name, image, label, affine=AFFINE, group=None):
    files[f"{name}.image"], files[f"{name}.label"] = Volume(image, AFFINE), Volume(label, affine)
    return Case(name, (f"{name}.image",), f"{name}.label", group)


def scores_of(values, region="merged", metric="dice"):
    return {f"case{at:03d}": {region: {metric: float(value)}} for at, value in enumerate(values)}


def report_of(values, groups=None, tolerance_mm=1.0, prefix="", metric="dice"):
    cases = {prefix + case: scores for case, scores in scores_of(values, metric=metric).items()}
    member = dict(zip(cases, groups or cases, strict=True))
    provenance = {"tolerance_mm": tolerance_mm, "labels": {"1": "foreground"}, "labels_merged": []}
    return Report(cases, summarise(cases, member), provenance, member)


def equal_but_for_nan(first, second):
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


# --- scores of one case ---


def test_each_label_and_the_merged_foreground_are_scored_by_hand():
    label = np.zeros((6, 4, 4), np.uint8)
    label[1:3, 1:3, 1:3], label[3:5, 1:3, 1:3] = 1, 2
    mask = label.copy()
    mask[3] = np.where(label[3] == 2, 1, label[3])  # one of the two layers of label 2 is called 1
    scores = score_case(mask, label, (1, 1, 2), {2: "tail", 1: "head"}, 1.0)
    assert list(scores) == ["head", "tail", "merged"]
    assert scores["head"]["dice"] == pytest.approx(2 * 8 / (12 + 8))
    assert scores["tail"]["dice"] == pytest.approx(2 * 4 / (4 + 8))
    assert scores["head"]["volume_error"] == 0.5 and scores["tail"]["volume_error"] == -0.5
    assert scores["head"]["volume_ml"] == pytest.approx(0.024)
    assert scores["head"]["label_volume_ml"] == pytest.approx(0.016)
    assert scores["merged"]["dice"] == scores["merged"]["nsd"] == 1 and scores["merged"]["hd95_mm"] == 0
    assert all("soft_dice" not in values for values in scores.values())


def test_soft_dice_stands_beside_dice_only_where_there_are_probabilities():
    label = cube()[0]
    one = score_case(label, label, (1, 1, 1), {1: "organ"}, 1.0, probability=0.8 * label)
    assert one["organ"]["dice"] == 1
    assert one["organ"]["soft_dice"] == one["merged"]["soft_dice"] == pytest.approx(1.6 / 1.8)
    two = label.copy()
    two[:4][label[:4] > 0] = 5
    channels = np.stack([0.6 * (two == 1), 0.9 * (two == 5)])  # in the order of the values, 1 then 5
    scores = score_case(two, two, (1, 1, 1), {5: "b", 1: "a"}, 1.0, probability=channels)
    assert scores["a"]["soft_dice"] == pytest.approx(1.2 / 1.6)
    assert scores["b"]["soft_dice"] == pytest.approx(1.8 / 1.9)
    assert scores["merged"]["soft_dice"] == pytest.approx(2 * 0.75 / 1.75)


def test_scores_of_what_does_not_fit_are_refused():
    label = cube()[0]
    for labels in ({}, {0: "a"}, {1: "merged"}, {1: "a", 2: "a"}):
        with pytest.raises(ValueError, match="labels must"):
            score_case(label, label, (1, 1, 1), labels, 1.0)
    with pytest.raises(ValueError, match=r"mask must hold 0 and \[1\] only, not \[3\]"):
        score_case(3 * label, label, (1, 1, 1), {1: "a"}, 1.0)
    with pytest.raises(ValueError, match="one channel per label"):
        score_case(label, label, (1, 1, 1), {1: "a", 2: "b"}, 1.0, probability=1.0 * label)
    with pytest.raises(TypeError, match="integer"):
        score_case(0.4 * label, label, (1, 1, 1), {1: "a"}, 1.0)


# --- summary ---


def test_summary_by_hand_leaves_out_and_counts_what_is_missing():
    row = summarise(scores_of([0.5, math.nan, 0.7, 0.9]))["merged"]["dice"]
    assert (row["n"], row["missing"], row["min"], row["max"]) == (3, 1, 0.5, 0.9)
    assert row["mean"] == pytest.approx(0.7) and row["median"] == pytest.approx(0.7)
    assert row["sd"] == pytest.approx(math.sqrt(0.08 / 3))  # population: divided by n, not n - 1
    nothing = summarise(scores_of([math.nan]))["merged"]["dice"]
    assert (nothing["n"], nothing["missing"]) == (0, 1)
    assert all(math.isnan(nothing[key]) for key in ("mean", "sd", "median", "min", "max"))
    with pytest.raises(ValueError, match="at least one"):
        summarise({})
    with pytest.raises(ValueError, match="case000"):
        summarise(scores_of([1]), {"other": "a"})


def test_interval_of_two_groups_by_hand():
    """Of the four draws of two groups a quarter is (a, a) and a quarter (b, b), so these are the ends."""
    member = np.array([0, 0, 0, 1])
    assert bootstrap_interval(np.array([0.1, 0.2, 0.3, 0.8]), member) == pytest.approx([0.2, 0.8])


def test_interval_of_the_mean_holds_the_truth_about_95_times_in_100():
    """Of 400 a right interval misses 20 ± 4.4; percentiles of 40 values are a little short, so up to 9 %."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.normal(0.85, 0.05, 40), np.arange(40), resamples=600)
        held += low <= 0.85 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_interval_agrees_with_scipy_where_every_case_is_its_own_group():
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).beta(8, 2, 60)
    theirs = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, batch=1000
    ).confidence_interval
    # Monte Carlo error of a 2.5 % percentile of 10,000 means is some 0.02 sd of the mean; 0.12 is 4 of both
    # together.
    assert np.allclose(
        bootstrap_interval(values, np.arange(60)), theirs, atol=0.12 * values.std() / math.sqrt(60)
    )


def test_interval_over_persons_is_wider_when_a_person_has_several_alike_scans():
    values = np.repeat(np.random.default_rng(0).normal(0.85, 0.05, 40), 4)
    cases = scores_of(values)
    persons = {case: f"person{at // 4}" for at, case in enumerate(cases)}
    naive = summarise(cases)["merged"]["dice"]
    grouped = summarise(cases, persons)["merged"]["dice"]
    once = summarise(scores_of(values[::4]))["merged"]["dice"]
    assert naive["mean"] == grouped["mean"] and naive["sd"] == grouped["sd"]
    assert np.ptp(grouped["ci95"]) / np.ptp(naive["ci95"]) == pytest.approx(2, abs=0.15)  # the root of 4
    # Copies of a case tell nothing new: the interval is that of one scan each.
    assert grouped["ci95"] == pytest.approx(once["ci95"])


@BOUNDED
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdef")), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_summary_does_not_depend_on_the_order_of_cases_or_the_names_of_groups(rows, random):
    cases = scores_of([value for value, _ in rows])
    groups = {case: group for case, (_, group) in zip(cases, rows, strict=True)}
    names = list(cases)
    random.shuffle(names)
    renamed = {case: "xyzuvw"["abcdef".index(group)] for case, group in groups.items()}
    first = summarise(cases, groups, resamples=200)["merged"]["dice"]
    second = summarise({name: cases[name] for name in names}, renamed, resamples=200)["merged"]["dice"]
    for key in ("mean", "sd", "median", "min", "max", "n", "missing"):
        assert first[key] == pytest.approx(second[key], abs=1e-9)
    assert np.allclose(first["ci95"], second["ci95"], atol=1e-9, equal_nan=True)
    if len(set(groups.values())) == 1:
        assert all(math.isnan(end) for end in first["ci95"])
    else:
        assert first["min"] - 1e-9 <= first["ci95"][0] <= first["ci95"][1] <= first["max"] + 1e-9


def test_same_seed_same_interval_and_another_seed_another():
    cases = scores_of(np.linspace(0.6, 0.9, 15))
    again = [summarise(cases, seed=seed)["merged"]["dice"]["ci95"] for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


# --- evaluation ---


def test_evaluate_scores_every_case_on_its_own_grid(files):
    cases = [
        add(files, "right", cube() * 0.9, cube(), group="ann"),
        add(files, "shifted", cube(start=3) * 0.9, cube(), group="ann"),
        add(files, "nothing", cube() * 0.4, cube(), group="bob"),
        add(files, "none", cube(0) * 0.1, cube(0)),
    ]
    shown = []
    report = evaluate(
        Threshold({1: "organ"}), cases, progress=lambda each: (shown.append(len(each)), each)[1]
    )
    assert shown == [4]
    assert [report.cases[case.id]["organ"]["dice"] for case in cases] == [1, 0.75, 0, 1]
    assert report.cases["right"]["organ"]["soft_dice"] == pytest.approx(1.8 / 1.9)
    assert report.cases["shifted"]["organ"]["hd95_mm"] == 1  # x has steps of 1 mm
    assert report.cases["right"]["organ"]["volume_ml"] == pytest.approx(64 * 6 / 1000)
    assert (
        report.summary["organ"]["hd95_mm"]["missing"] == 1 and report.summary["organ"]["dice"]["missing"] == 0
    )
    assert report.groups == {"right": "ann", "shifted": "ann", "nothing": "bob", "none": "none"}
    assert report.summary == summarise(report.cases, report.groups)
    assert report.provenance["tolerance_mm"] == 1.0 and report.provenance["labels_merged"] == []


def test_a_model_without_probabilities_has_no_soft_dice(files):
    report = evaluate(
        Threshold({1: "organ"}, with_probability=False), [add(files, "a", cube() * 0.9, cube())]
    )
    assert "soft_dice" not in report.summary["organ"]


def test_labels_are_merged_for_a_model_of_the_foreground_and_the_report_says_so(files):
    label = cube()
    label[0, 4:][label[0, 4:] > 0] = 2
    case = add(files, "a", cube() * 0.9, label)
    for model, named in (
        ({1: "foreground"}, None),
        ({1: "organ"}, {1: "head", 2: "tail"}),
        ({7: "foreground"}, None),
    ):
        report = evaluate(Threshold(model), [case], labels=named)
        assert report.cases["a"]["merged"]["dice"] == 1
        assert report.provenance["labels_merged"] == [1, 2]
        assert "values 1, 2 were merged" in report.table()
    plain = evaluate(Threshold({1: "foreground"}), [add(files, "b", cube() * 0.9, cube())])
    assert plain.provenance["labels_merged"] == [] and "merged into" not in plain.table()
    with pytest.raises(InputError, match=r"case a: label a.label holds the values \[2\]"):
        evaluate(Threshold({1: "organ"}), [case])
    with pytest.raises(InputError, match=r"values \[2\]"):
        evaluate(Threshold({1: "foreground"}), [case], labels={1: "head"} | {3: "tail"})
    with pytest.raises(InputError, match=r"values \[2\]"):
        evaluate(Threshold({1: "head", 3: "tail"}), [case])
    both = evaluate(Threshold({1: "head", 2: "tail"}), [add(files, "c", label, label)])
    assert both.cases["c"]["tail"]["dice"] == 1 and both.provenance["labels_merged"] == []


def test_what_cannot_be_compared_is_refused_by_the_name_of_its_case(files):
    model = Threshold({1: "organ"})
    shifted, turned = AFFINE.copy(), AFFINE.copy()
    shifted[0, 3] = 0.2
    turned[0, 0] = -1
    for affine in (shifted, turned):
        with pytest.raises(InputError, match=r"case a: label a.label must lie on the grid"):
            evaluate(model, [add(files, "a", cube() * 0.9, cube(), affine)])
    rounded = AFFINE + np.float32(1e-6)
    assert evaluate(model, [add(files, "a", cube() * 0.9, cube(), rounded)]).cases["a"]["organ"]["dice"] == 1
    with pytest.raises(InputError, match=r"case a: label a.label must have the shape"):
        evaluate(model, [add(files, "a", cube() * 0.9, cube(shape=(8, 8, 9)))])
    good = add(files, "a", cube() * 0.9, cube())
    before = len(model.seen)
    with pytest.raises(InputError, match="two cases have the id a"):
        evaluate(model, [good, good])
    with pytest.raises(InputError, match="case b has no label"):
        evaluate(model, [good, Case("b", ("b",), None)])
    with pytest.raises(InputError, match="no cases"):
        evaluate(model, [])
    assert len(model.seen) == before  # found before the work, not after it


# --- reports ---


def test_report_survives_json_with_null_for_nan(tmp_path, files):
    cases = [
        add(files, "a", cube() * 0.4, cube(), group="x"),
        add(files, "b", cube() * 0.9, cube(), group="y"),
    ]
    report = merge_reports({"0": evaluate(Threshold({1: "organ"}), cases)})
    text = report.to_json()
    assert "NaN" not in text and json.loads(text)["cases"]["a"]["scores"]["organ"]["hd95_mm"] is None
    back = Report.from_json(text)
    for part in ("cases", "summary", "provenance", "groups", "folds"):
        assert equal_but_for_nan(getattr(back, part), getattr(report, part))
    assert back.to_json() == text
    for bad in (
        "{",
        "[]",
        '{"format": "mednca-report", "version": 99}',
        '{"format": "mednca-report", "version": 1}',
    ):
        with pytest.raises(InputError, match=r"here\.json"):
            Report.from_json(bad, name="here.json")


def test_report_is_written_whole_or_not_at_all(tmp_path):
    path, report = tmp_path / "report.json", report_of([0.5, 0.7])
    report.write(path)
    assert path.read_text() == report.to_json()
    with pytest.raises(InputError, match="exists"):
        report_of([0.1]).write(path)
    broken = Report(report.cases, report.summary, {"tolerance_mm": object()})
    with pytest.raises(TypeError):
        broken.write(path, force=True)
    assert path.read_text() == report.to_json()
    report_of([0.1]).write(path, force=True)
    assert path.read_text() == report_of([0.1]).to_json()
    with pytest.raises(InputError, match="does not exist"):
        report.write(tmp_path / "absent" / "report.json")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_table_fits_a_terminal_and_shows_what_is_missing():
    mask = cube()[0]
    labels = {1: "anterior", 2: "a very long name of a label"}
    cases = {
        "a": score_case(mask, mask, (1, 1, 1), labels, 1.0),
        "b": score_case(0 * mask, mask, (100, 100, 100), labels, 1.0),
    }
    table = Report(cases, summarise(cases), {"tolerance_mm": 1.5}).table()
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "within 1.5 mm" in table and "2 cases of 2 groups" in table
    row = next(line for line in table.splitlines() if "hd95_mm" in line)
    assert row.split()[:2] == ["hd95_mm", "0.000"] and row.split()[-1] == "1"
    assert "\nanterior        dice " in table and "\na very long na  dice " in table
    assert len([line for line in table.splitlines() if "dice" in line]) == 3
    one = {"a": score_case(mask, mask, (1, 1, 1), {1: "organ"}, 1.0)}
    assert "merged" not in Report(one, summarise(one), {"tolerance_mm": 1.0}).table()


def test_merging_folds_equals_one_report_over_all_cases():
    first, second = report_of([0.5, 0.6], ["p", "q"], prefix="x"), report_of([0.8], ["p"], prefix="y")
    merged = merge_reports({"fold0": first, "fold1": second})
    assert merged.folds == {"xcase000": "fold0", "xcase001": "fold0", "ycase000": "fold1"}
    assert merged.groups == {"xcase000": "p", "xcase001": "q", "ycase000": "p"}
    assert merged.summary == summarise(first.cases | second.cases, merged.groups)
    assert merged.summary["merged"]["dice"]["mean"] == pytest.approx(1.9 / 3)
    assert merged.provenance["groups_in_several_folds"] == ["p"]
    with pytest.raises(InputError, match=r"case xcase000 is in reports a and b"):
        merge_reports({"a": first, "b": first})
    with pytest.raises(InputError, match=r"differ in tolerance_mm: 1.0 and 2.0"):
        merge_reports({"a": first, "b": report_of([0.8], tolerance_mm=2.0, prefix="y")})
    with pytest.raises(InputError, match="at least one"):
        merge_reports({})


def test_paired_difference_sees_what_the_two_means_hide():
    rng = np.random.default_rng(1)
    base = rng.normal(0.8, 0.1, 60)
    groups = [f"p{at // 2}" for at in range(60)]
    worse, better = report_of(base, groups), report_of(base + rng.normal(0.01, 0.005, 60), groups)
    found = paired_difference(better, worse, "dice")
    assert found["mean"] == pytest.approx(0.01, abs=0.003) and found["n"] == 60
    assert 0 < found["ci95"][0] < 0.01 < found["ci95"][1] < 0.02
    low, high = (report.summary["merged"]["dice"]["ci95"] for report in (worse, better))
    assert low[1] > high[0]  # the intervals of the means overlap widely
    back = paired_difference(worse, better, "dice")
    assert back["mean"] == -found["mean"]
    assert paired_difference(worse, worse, "dice")["ci95"] == [0, 0]


def test_paired_difference_draws_groups_and_counts_pairs_with_a_missing_value():
    difference = np.repeat([0.1, -0.1, 0.2, 0.0, 0.05, 0.3], 4)
    groups = [f"p{at // 4}" for at in range(24)]
    zero = [0.0] * 24
    grouped = paired_difference(report_of(difference, groups), report_of(zero, groups), "dice")
    naive = paired_difference(report_of(difference), report_of(zero), "dice")
    assert np.ptp(grouped["ci95"]) > 1.5 * np.ptp(naive["ci95"])
    gap = paired_difference(report_of([0.5, math.nan, 0.7]), report_of([0.4, 0.5, math.nan]), "dice")
    assert (gap["n"], gap["missing"]) == (1, 2) and gap["mean"] == pytest.approx(0.1)


def test_paired_difference_of_unlike_reports_is_refused():
    report = report_of([0.5, 0.6])
    with pytest.raises(InputError, match="same cases; 1 are in one only, as case002"):
        paired_difference(report, report_of([0.5, 0.6, 0.7]), "dice")
    with pytest.raises(InputError, match="same groups"):
        paired_difference(report, report_of([0.5, 0.6], ["p", "p"]), "dice")
    with pytest.raises(InputError, match="report a has no iou of merged"):
        paired_difference(report, report, "iou")
    near, far = (report_of([0.5], tolerance_mm=tolerance, metric="nsd") for tolerance in (1.0, 2.0))
    with pytest.raises(InputError, match=r"within 1.0 and 2.0 mm"):
        paired_difference(near, far, "nsd")
