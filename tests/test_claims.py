"""Figures in README and in the shipped model's card are those of the stored results."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mednca.modelfile import load_model
from mednca.robustness.report import IN_VIEW, points
from mednca.trust.fit import spearman
from reproduce import anisotropy, claims, first_fold, ghosts, shifts, thick, unet_looks
from reproduce.catalogue import CARDS, PROSTATE_CARD
from reproduce.plans import rows, stored
from reproduce.stored_cards import difference, read_card

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def result(path: str) -> Any:
    """Path under the root -> the stored JSON."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_hippocampus_figures_are_those_of_the_out_of_fold_report() -> None:
    report = result("reproduce/results/hippocampus_oof.json")
    row = report["summary"]["merged"]
    dice, single = row["dice"], report["provenance"]["single_run"]["dice"]
    low, high = dice["ci95"]
    assert dice["n"] == 208
    assert f"**{dice['mean']:.3f}** ± {dice['sd']:.3f}, 95 % interval {low:.3f} to {high:.3f}" in README
    assert f"{single['mean']:.3f} ± {single['sd']:.3f} with one run" in README
    assert f"{load_model('hippocampus').parameters:,} parameters" in README
    assert f"HD95 {row['hd95_mm']['mean']:.2f} mm, ASSD {row['assd_mm']['mean']:.2f} mm" in README
    assert f"NSD within 1 mm {row['nsd']['mean']:.3f}" in README
    assert f"soft Dice {row['soft_dice']['mean']:.3f}" in README
    people = {case["group"] for case in report["cases"].values()}
    assert f"{len(report['cases'])} volumes of {len(people)} people" in README
    sides = {(case["group"], case["fold"]) for case in report["cases"].values()}
    assert len(sides) == len(people)  # nobody is on both sides


def test_the_shipped_model_carries_the_same_scores_and_its_page_its_hash() -> None:
    model = load_model("hippocampus")
    report = result("reproduce/results/hippocampus_oof.json")
    for name, row in model.card["scores"].items():
        if isinstance(row, dict):
            assert row["mean"] == report["summary"]["merged"][name]["mean"], name
    page = (ROOT / "src/mednca/models/hippocampus.md").read_text(encoding="utf-8")
    assert model.hash in page and f"{model.parameters:,}" in page and model.parameters <= 70_016
    assert sorted(model.card["training_cases"]) == sorted(report["cases"])
    assert "CC-BY-SA" in model.card["licence"] and "ot a medical device" in model.card["intended_use"]


def test_the_lean_figures_are_those_of_the_folds_and_of_the_plans() -> None:
    lean = result("reproduce/results/table1/hippocampus_lean.json")
    dice = lean["summary"]["merged"]["dice"]
    plans = result("reproduce/results/plans.json")["data"]
    pi = plans["Task04_Hippocampus"]["budgets"]["pi"]
    assert lean["missing"] == [] and dice["n"] == 208 and lean["parameters"] == pi["parameters"]
    assert f"{lean['parameters']:,} parameters, {pi['ratio_64']:.1f} times fewer multiplications" in README
    assert f"{dice['mean']:.3f} ± {dice['sd']:.3f} with one run" in README
    ratios = [entry["budgets"]["pi"]["ratio_64"] for entry in plans.values()]
    assert f"{min(ratios):.0f} to {max(ratios):.0f} times fewer multiplications" in README
    for entry in plans.values():  # the planner still chooses what is stored
        assert json.loads(json.dumps(rows(stored(entry["fingerprint"])))) == entry["budgets"]


def test_the_dice_of_other_steps_is_that_of_the_measurement() -> None:
    for name, runs in (("hippocampus_best", ", mean of 4 runs"), ("hippocampus_med_nca", "")):
        row = result("reproduce/results/steps.json")["experiments"][name]
        means = [row["means"][percent] for percent in ("50", "75", "100", "150", "200", "300")]
        told = f"({len(row['cases'])} held-out volumes{runs}) | " + ", ".join(f"{mean:.3f}" for mean in means)
        assert told in README and row["ensemble"] == (4 if runs else 1)


def test_the_difference_to_the_authors_checkpoint_is_the_paired_one() -> None:
    differences = result("reproduce/results/paired.json")["differences"]
    for theirs in ("the authors' checkpoint", "the authors' checkpoint as listed"):
        row = differences[f"hippocampus_best_authors_long - {theirs}"]
        low, high = row["ci95"]
        assert f"{row['mean']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}" in README
        assert f"on the {row['n']} that it does not" in README


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("table1/prostate_best", "table1/prostate_unet"),
        ("table1/hippocampus_best", "table1/hippocampus_unet"),
        *((f"organs/{name}_best", f"organs/{name}_unet") for name in ("fetal_head", "lungs", "nuclei")),
        ("table1/hippocampus_best_authors", "table1/hippocampus_unet_authors"),
        ("table1/hippocampus_best_authors", "table1/hippocampus_unet_large_authors"),
    ],
)
def test_what_a_u_net_beside_it_came_to_is_told(ours: str, theirs: str) -> None:
    """Its Dice, but where the row tells the difference alone; and the paired difference."""
    names = " - ".join(path.rpartition("/")[2] for path in (ours, theirs))
    difference = result("reproduce/results/paired.json")["differences"][names]
    low, high = difference["ci95"]
    assert f"{difference['mean']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}" in README
    for path in (ours, theirs):
        stored = result(f"reproduce/results/{path}.json")
        dice = stored["summary"]["merged"]["dice"]
        assert stored["missing"] == [] and dice["n"] == difference["n"]
        if "authors" not in names:
            assert f"{dice['mean']:.3f} ± {dice['sd']:.3f}" in README.replace("**", "")


def test_how_alike_the_seeds_are_is_what_they_came_to() -> None:
    for row in result("reproduce/results/reliability.json")["series"].values():
        told = f"{row['near']} of {row['seeds']} within 0.02 of the median {row['median']:.3f}"
        assert f"{told} ({row['least']:.3f} to {row['largest']:.3f})" in README


#: What the page on robustness tells of, in its words.
PERTURBED = {
    "clean 0": "nothing",
    "bias_field 1.5": "bias field at the worst severity",
    "ghosting 2.5": "ghosting at the worst severity",
    "noise 0.2": "noise of 0.2 of the range",
    "anisotropy 4": "anisotropy, factor 4",
    "anisotropy 8": "anisotropy, factor 8",
    "shape 0.5": "half the height",
    "shape 2": "twice the height",
    "scale 0.8": "0.8 times the size",
    "scale 1.5": "1.5 times the size",
    "scale 0.5": "half the size",
    "blur 2": "blur of 2 mm",
    "spike 2": "spike at the worst severity",
    "rotation 45": "45 degrees in plane",
    "crop 0.4": "40 % of height and width cut off",
}


def rows_of(page: str, heading: str) -> dict[str, str]:
    """Page and what the last column head before a table begins with -> its rows by their first cell."""
    table = page.split(heading, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in table}


def mean_dice(card: dict[str, Any], at: str, cases: Iterable[str] | None = None) -> float:
    return statistics.fmean(card["cases"][case]["dice"][at] for case in cases or card["cases"])


def test_how_the_robust_recipe_holds_is_what_its_card_says() -> None:
    robust, plain = (
        result(f"reproduce/results/table1/hippocampus_{name}.json") for name in ("robust", "best")
    )
    judged = {case["fold"] for case in robust["cases"].values()}
    same = {name: case for name, case in plain["cases"].items() if case["fold"] in judged}
    assert same.keys() == robust["cases"].keys()
    dice = [
        [case["scores"]["0"]["merged"]["dice"] for case in cases.values()]
        for cases in (robust["cases"], same)
    ]
    means = [statistics.fmean(values) for values in dice]
    cards = {name: read_card(name, ROOT / "reproduce/results") for name in CARDS}
    there = {name: card for name, card in cards.items() if card is not None}
    assert list(there) == list(CARDS)
    card, unet = there.values()
    lost = {claim.perturbation: -100 * claims.worst(card, claim)[2]["mean"] for claim in claims.CLAIMS}
    told = ", ".join(f"{lost[name] + 0.0:.1f}" for name in ("bias_field", "noise", "scale"))
    assert f"{means[0]:.3f} (recipe `native`: {means[1]:.3f}); {told}; " in README
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    for values, recipe in zip(dice, ("recipe `robust`", "recipe `native`"), strict=True):
        assert f"{statistics.fmean(values):.3f} with the {recipe} (least {min(values):.3f})" in words
    assert f"the {len(dice[0])} cases of the five folds" in words and len(judged) == 5
    asked = rows_of(page, "| what is done to the scan | asked for |")
    assert len(asked) == len(claims.CLAIMS)
    for claim, row in zip(claims.CLAIMS, asked.values(), strict=True):
        assert f"| {lost[claim.perturbation] + 0.0:.1f}" in row
        assert row.endswith("| met |") == claims.met(claim, CARDS[0], there)
    ghosting = next(claim for claim in claims.CLAIMS if claim.perturbation == "ghosting")
    ahead = 100 * difference(card, unet, "ghosting 2.5")["mean"]
    at_two = [f"{mean_dice(one, 'ghosting 2'):.3f}" for one in (card, unet)]
    assert "missed at the one before, 2.0 ({}; the U-Net: {})".format(*at_two) in words
    turned = result("reproduce/results/robust_trials.json")["turned_lines"]["dice"]
    assert turned["ghosting 2, as it is"] == pytest.approx(mean_dice(card, "ghosting 2"), abs=1e-4)
    assert f"turning back what can be told gave {turned['ghosting 2, turned back']:.3f}" in words
    between = [f"{mean_dice(card, at):.3f}" for at in ("ghosting 1", "ghosting 1.5")]
    assert "At 1.0 and 1.5 it is {} and {}".format(*between) in words
    spikes = min(mean_dice(card, at) for at in ("spike 0.25", "spike 0.5", "spike 1", "spike 2"))
    assert f"at spikes of any strength at least {spikes:.3f}" in words
    told = "the worst ghosting {:.1f} (Dice {:.3f}), spikes {:.1f}"
    worst = claims.worst(card, ghosting)
    change = 100 * (mean_dice(card, "clean 0") - mean_dice(card, "spike 2"))
    assert told.format(-100 * worst[2]["mean"], worst[1]["mean"], change) in README
    assert f"Dice {claims.worst(card, ghosting)[1]['mean']:.3f}, {ahead:+.1f} to the U-Net" in page
    before = read_card("shipped_hippocampus", ROOT / "reproduce/results")
    assert before is not None
    for other, heading in ((before, "| shipped model, has seen these"), (unet, "| U-Net |")):
        rows = rows_of(page, heading)
        assert len(rows) >= 7
        for words, row in rows.items():
            at = next(at for at, name in PERTURBED.items() if name == words)
            cases = [case for case in other["cases"] if case in card["cases"]]
            ours, theirs = (f"{mean_dice(one, at, cases):.3f}" for one in (card, other))
            cells = f"{theirs} | {ours}" if other is before else f"{ours} | {theirs}"
            assert row == f"| {words} | {cells} | {points(difference(card, other, at))} |"


def test_how_a_u_net_does_that_looks_the_same_way_is_what_was_measured() -> None:
    told, card = (
        result("reproduce/results/unet_looks.json"),
        read_card("hippocampus_robust", ROOT / "reproduce/results"),
    )
    assert card is not None and told["cases"].keys() == card["cases"].keys()
    assert unet_looks.summary(told["cases"]) == told["summary"]
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    rows = rows_of(page, "| ours | a U-Net that looks the same way |")
    assert len(rows) == 8
    for words, row in rows.items():
        at = "clean 0" if words == "nothing" else words
        assert row == f"| {words} | {mean_dice(card, at):.3f} | {told['summary'][at]:.3f} |"


def test_what_the_versions_of_the_robust_recipe_came_to_is_what_is_stored() -> None:
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    trials = result("reproduce/results/robust_trials.json")["trials"]
    card = read_card("hippocampus_robust", ROOT / "reproduce/results")
    every = result("reproduce/results/table1/hippocampus_robust.json")["cases"].values()
    now = [case for case in every if case["fold"] == "fold_0"]
    assert card is not None
    before = [trials[name] for name in ("best_before", "best_second", "best_third")]
    means = [trial["dice"] for trial in before]
    mean = statistics.fmean(case["scores"]["0"]["merged"]["dice"] for case in now)
    assert mean == pytest.approx(means[-1], abs=1e-5)
    told = "a Dice of {:.3f}, {:.3f} and {:.3f} by the first three versions".format(*means)
    assert told in " ".join(page.split())
    assert all(trial["perturbed"]["cases"] == len(card["cases"]) for trial in before)
    rows = rows_of(page, "| full length | first |")
    assert len(rows) >= 10
    for words, row in rows.items():
        at = next(at for at, name in PERTURBED.items() if name == words)
        stored = [trial["perturbed"]["perturbations"][at] for trial in before]
        told = [f"{one['dice']:.3f}, {-100 * one['change'] + 0:.1f}" for one in stored]
        lost = 100 * (mean_dice(card, "clean 0") - mean_dice(card, at))
        told.append(f"{mean_dice(card, at):.3f}, {lost + 0:.1f}")
        assert row == f"| {words} | {' | '.join(told)} |"


def test_what_more_ghosts_in_training_came_to_is_what_is_stored() -> None:
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    trials = result("reproduce/results/robust_trials.json")["trials"]
    before, after = trials["best_third"], trials["ghosts_and_coarse"]
    assert after["perturbed"]["cases"] == before["perturbed"]["cases"]
    assert f"The 42 cases have {after['dice']:.3f} then" in page
    rows = rows_of(page, "| trained on with ghosts and coarse voxels |")
    assert len(rows) == 7
    for words, row in rows.items():
        at = next(at for at, name in PERTURBED.items() if name == words)
        dice = [trial["perturbed"]["perturbations"][at]["dice"] for trial in (before, after)]
        assert row == f"| {words} | {dice[0]:.3f} | {dice[1]:.3f} |"


def test_what_lines_of_k_space_are_worth_against_other_ghosts_is_what_was_measured() -> None:
    page = (ROOT / "docs/explanation/robust-input.md").read_text(encoding="utf-8")
    told = result("reproduce/results/ghosts.json")
    assert ghosts.summary(told["cases"]) == told["summary"] and len(told["cases"]) == first_fold.CASES
    rows = rows_of(page, "| ghosts | Dice without |").values()
    for row, one in zip(rows, told["summary"].values(), strict=True):
        assert row.endswith(f"| {one['without']:.3f} | {one['with']:.3f} | {one['changed']} |")


def test_what_coarse_voxels_leave_is_what_was_measured() -> None:
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    told = result("reproduce/results/anisotropy.json")
    found, (ours, unet) = told["cases"], (read_card(name, ROOT / "reproduce/results") for name in CARDS)
    assert ours is not None and unet is not None and ours["cases"].keys() == unet["cases"].keys()
    assert anisotropy.summary(list(found.values())) == told["summary"]
    those = [found[case] for case in ours["cases"]]
    rows = rows_of(page, "| factor | true mask, drawn on |")
    assert list(rows) == ["1", *those[0]["own"]]
    for factor, row in rows.items():
        if factor == "1":
            masks = [1.0, statistics.fmean(case["clean"] for case in those)]
        else:
            masks = [statistics.fmean(case[name][factor] for case in those) for name in ("shape", "own")]
        at = "clean 0" if factor == "1" else f"anisotropy {factor}"
        dice = [f"{value:.3f}" for value in (*masks, mean_dice(ours, at), mean_dice(unet, at))]
        assert row == f"| {factor} | {' | '.join(dice)} |"
    with_voxels = 100 * statistics.fmean(case["clean"] - case["own"]["4"] for case in those)
    lost = 100 * (mean_dice(ours, "clean 0") - mean_dice(ours, "anisotropy 4"))
    words = " ".join(page.split())
    assert f"of the {lost:.1f} points that are lost at factor 4, {with_voxels:.1f} are lost with" in words
    assert f"The other {lost - with_voxels:.1f} are the rule's own" in words


def test_what_drawing_on_is_worth_is_what_was_measured() -> None:
    told = result("reproduce/results/thick.json")
    assert thick.summary(told["cases"]) == told["summary"] and len(told["cases"]) == first_fold.CASES
    page = (ROOT / "docs/explanation/robust-input.md").read_text(encoding="utf-8")
    rows = rows_of(page, "| every n-th slice | of the whole scan |")
    assert list(rows) == list(told["summary"])
    lost: dict[str, dict[str, str]] = {"with": {}, "without": {}}
    for factor, row in rows.items():
        dice = told["summary"][factor]
        assert row == f"| {factor} | {dice['whole']:.3f} | {dice['without']:.3f} | {dice['with']:.3f} |"
        for name, of in lost.items():
            of[factor] = f"{100 * (dice['whole'] - dice[name]):.1f}"
    seen, blind = lost.values()
    assert f"slices of 4 mm cost {seen['4']} points instead of {blind['4']}" in " ".join(page.split())
    words = " ".join((ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8").split())
    assert f"Slices of 3 mm cost {seen['3']} points then, of 4 mm {seen['4']}, of 8 mm {seen['8']}" in words
    assert f"without drawing on {blind['3']}, {blind['4']} and {blind['8']}" in words
    assert f"slices of 3 and 4 mm {seen['3']} and {seen['4']}" in README
    stored = result("reproduce/results/robust_trials.json")
    tried = stored["between_slices"]["dice"]
    numbers = ("splines", "fading", "movement", "fading in steps", "TV-L1", "trust across")
    told_of = (
        "Cubic splines between slices ({:.3f} on eleven of the scans at a factor of 4, where fading has "
        "{:.3f} and this {:.3f}), fading in steps ({:.3f}), another known way to find movements, TV-L1 "
        "({:.3f}), and to trust the view across the slices more than the others ({:.3f})"
    )
    assert told_of.format(*(tried[name] for name in numbers)) in " ".join(page.split())
    card = read_card("hippocampus_robust", ROOT / "reproduce/results")
    assert card is not None
    before = stored["trials"]["best_third"]["perturbed"]["perturbations"]["anisotropy 4"]["dice"]
    now = mean_dice(card, "anisotropy 4")
    assert f"{now:.3f} instead of {before:.3f} at a factor of 4" in " ".join(page.split())


def test_what_a_margin_does_is_what_was_measured() -> None:
    told = result("reproduce/results/margins.json")
    page = (ROOT / "docs/explanation/robust-input.md").read_text(encoding="utf-8")
    rows = rows_of(page, "| margin | as they are |")
    assert {name.replace("none", "0") for name in rows} == told["time"].keys()
    views = ("clean 0", "crop 0.2", "crop 0.4", "translation 0.2", "translation_edge 0.3")
    for name, row in rows.items():
        margin = name.replace("none", "0")
        dice = [f"{told['summary'][view][margin]:.3f}" for view in views]
        assert row == f"| {name} | {' | '.join(dice)} | {told['time'][margin]:.2f} |"
    assert all(len(case["views"]) == len(told["summary"]) for case in told["cases"].values())
    lost = {
        margin: [
            100
            * statistics.fmean(
                case["views"]["clean 0"]["dice"][margin] - case["views"][view]["dice"][margin]
                for case in told["cases"].values()
                if case["views"][view]["kept"] >= IN_VIEW
            )
            for view in ("translation 0.2", "translation_edge 0.3")
        ]
        for margin in ("0", "6")
    }
    words = " ".join((ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8").split())
    assert "({:.2f} and {:.2f})".format(*lost["6"]) in words
    assert "it was {:.1f} and {:.1f} points".format(*lost["0"]) in words


FILLS = {"translation": "black", "translation_edge": "edge repeated"}


def test_what_a_shift_costs_is_what_was_measured() -> None:
    told = result("reproduce/results/shifts.json")
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    lines = page.split("| shift | fill |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    one, own = (told["summary"][runs] for runs in ("one", "own"))
    rows = []
    for name, part in one.items():
        fill, shift = name.split()
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(row["lost"], *row["interval"]) if row else ""
            for row in (part, own.get(name))
        ]
        rows.append(
            f"| {shift} | {FILLS[fill]} | {part['cases']} ({part['persons']}) | {' | '.join(cells)} |"
        )
    assert sorted(lines) == sorted(rows)
    for runs, summary in told["summary"].items():
        assert shifts.lost(told["cases"], runs) == summary
    judged = result("reproduce/results/table1/hippocampus_robust.json")["cases"]
    folds = {case["fold"] for case in told["cases"].values()}
    assert folds == {f"fold_{number}" for number in range(4)}
    assert told["cases"].keys() == {name for name, case in judged.items() if case["fold"] in folds}
    assert f"all {len(told['cases'])} held-out cases" in " ".join(page.split())
    most = [max(part["lost"] for part in told["summary"][runs].values()) for runs in ("own", "one")]
    words = "shifts that keep the organ in view {:.1f} at most with its four runs (one run: {:.1f})"
    assert words.format(*most) in README


def test_how_the_prostate_holds_is_what_its_card_says() -> None:
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    card = read_card(PROSTATE_CARD, ROOT / "reproduce/results")
    robust, plain = (result(f"reproduce/results/table1/prostate_{name}.json") for name in ("robust", "best"))
    assert card is not None
    for words, row in rows_of(page, "| what is done to the scan | Dice |").items():
        at = next(at for at, name in PERTURBED.items() if name == words)
        lost = 100 * (mean_dice(card, "clean 0") - mean_dice(card, at))
        assert row == f"| {words} | {mean_dice(card, at):.3f} | {lost + 0:.1f} |"
    dice = [
        statistics.fmean(
            case["scores"]["0"]["merged"]["dice"]
            for case in one["cases"].values()
            if case["fold"] == "fold_0"
        )
        for one in (robust, plain)
    ]
    words = " ".join(page.split())
    assert (
        f"have a Dice of {dice[0]:.3f}; with the recipe `native` and 20,000 iterations, {dice[1]:.3f}."
        in words
    )


def test_what_other_views_cost_a_model_of_a_part_is_what_was_measured() -> None:
    told = result("reproduce/results/prostate_views.json")
    for name, mean in told["mean"].items():
        assert mean == pytest.approx(
            statistics.fmean(case[name] for case in told["cases"].values()), abs=1e-5
        )
    page = " ".join((ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8").split())
    means = [f"{told['mean'][name]:.3f}" for name in ("other views", "own view", "native")]
    words = "4,000 iterations gave {}, without them {}, and the recipe `native` {} (mean of five seeds"
    assert words.format(*means) in page


def dice_of(cases: dict[str, Any], names: Iterable[str]) -> np.ndarray:
    return np.array([cases[name]["scores"]["0"]["merged"]["dice"] for name in names])


CONFIDENCE = ("softmax confidence", "variance")


def test_how_good_the_trust_score_is_is_what_was_measured() -> None:
    told = result("reproduce/results/trust.json")
    page = (ROOT / "docs/explanation/trust.md").read_text(encoding="utf-8")
    rows = rows_of(page, "| | rank correlation | flagged, of the bad")
    parts = {"the score": told["score"], "the same without slopes": told["without_slopes"]}
    parts |= {f"{name} alone": part for name, part in told["alone"].items()}
    assert list(rows) == list(parts)
    unknown = rows_of(page, "| kind | rank correlation |")
    assert set(unknown) <= set(told["unknown"]) and len(unknown) >= 3
    for name, row in (rows | unknown).items():
        part = parts.get(name) or told["unknown"][name]
        shares = [f"{100 * part[key]:.0f} %" for key in ("flagged", "false_alarms", "coverage")]
        assert row == f"| {name} | {part['spearman']:.2f} | {' | '.join(shares)} |"
    others = rows_of(page, "| | scans | mean expected Dice |")
    assert others.keys() == told["others"].keys()
    for name, row in others.items():
        part = told["others"][name]
        dice = f"{part['expected']:.2f} | {part['largest']:.2f}"
        assert row == f"| {name} | {part['cases']} | {dice} | {100 * part['flagged']:.0f} % |"
    score, strangers = told["score"], told["unknown"]["strangers"]
    line = f"{score['predictions']} predictions of {told['provenance']['cases']} cases of {score['persons']}"
    line += f" people, as they are and perturbed, {score['below']} with a Dice below 0.8"
    words = " ".join(page.split())
    assert line in words
    assert f"flags 15 % of the good ones, {100 * score['flagged_at']:.0f} % of the bad are found" in words
    clean, inverted = told["parts"]["clean"], told["parts"]["inversion"]
    assert f"({clean['spearman']:.2f} on the {clean['predictions']} scans as they are)" in words
    widths = [part["width_median"] for part in (score, *(told["alone"][name] for name in CONFIDENCE))]
    told_widths = "(median width {:.2f}; {:.2f} with confidence, {:.2f} with variance)".format(*widths)
    assert told_widths in words
    ours, theirs, robust = (
        result(f"reproduce/results/table1/hippocampus_{name}.json")["cases"]
        for name in ("best", "unet", "robust")
    )
    ranked = []
    for chosen in (("fold_0", "fold_1"), ("fold_2", "fold_3", "fold_4")):
        pairs = [
            row[3:5] for row in told["rows"] if robust[row[0]]["fold"] in chosen and "stranger" not in row[1]
        ]
        ranked.append(spearman(*np.array(pairs).T))
    assert "on these two the rank correlation is {:.2f}, on the other three {:.2f}.".format(*ranked) in words
    rank = told["rank_correlation"]
    assert (
        rank["spearman"] == pytest.approx(score["spearman"], abs=1e-3) and rank["of"] == score["predictions"]
    )
    low, high = rank["interval"]
    line = f"correlation is {rank['spearman']:.3f} (95 % interval {low:.2f} to {high:.2f}, by drawing people)"
    first = f"{rank['spearman_of_first']:.3f} of the {rank['of_first']} predictions as they are and with"
    assert f"{line}; {first} the first 5 perturbations" in words
    least, most = min(rank["dealt_anew"]), max(rank["dealt_anew"])
    assert f"people dealt into other parts, four times, {least:.3f} to {most:.3f}" in words
    best = max(part["spearman"] for part in told["alone"].values())
    assert f"a rank correlation of {100 * (score['spearman'] - best):.0f} hundredths more" in words
    alike = spearman(*(dice_of(cases, sorted(ours)) for cases in (ours, theirs)))
    assert f"has a rank correlation of {alike:.2f} with that of a U-Net" in words
    unseen = told["unknown"]["inversion"]
    assert inverted["flagged"] == unseen["flagged"] == 1
    assert f"All {inverted['predictions']} inverted scans are flagged, by both." in words
    view, bright = (told["unknown"][name] for name in ("field of view", "brightness"))
    line = f"({100 * view['coverage']:.0f} % and {100 * bright['coverage']:.0f} %; it was 84 % and 90 %"
    assert line in words
    assert f"by {-view['bias']:.2f} and {-bright['bias']:.2f} on average" in words
    assert f"than two measurements of it differ ({told['cost']['extra_percent']:+.0f} %)" in words
    assert f"{100 * score['strangers_flagged']:.0f} % of {score['strangers']} flagged" in page
    assert f"flagged; {100 * strangers['strangers_flagged']:.0f} % by a score" in page
    found = f"{score['spearman']:.2f}; {100 * score['flagged_at']:.0f} %; {100 * score['coverage']:.0f} %"
    assert f"({score['predictions']} predictions of {score['persons']} people)" in README and found in README
    card = load_model("hippocampus_robust").card["trust"]
    for key in ("predictions", "persons", "spearman", "coverage", "flagged", "false_alarms"):
        assert card[key] == score[key]


def test_what_the_parts_of_the_robust_recipe_cost_is_what_the_trials_say() -> None:
    trials = result("reproduce/results/robust_trials.json")["trials"]
    for trial in trials.values():
        assert len(trial["cases"]) == 42
        assert trial["dice"] == pytest.approx(statistics.fmean(trial["cases"].values()), abs=1e-5)
    page = (ROOT / "docs/explanation/robustness.md").read_text(encoding="utf-8")
    lines = (
        ("default", "| the recipe `native` | {} |"),
        ("artefacts", "| with copies with artefacts (0.4 of the slices) | {} |"),
        ("field", "| with the field taken out | {} |"),
        ("robust", "fields on slices | {} |"),
        ("local_normalisation", "6,000 iterations | {}; the recipe `native` then has 0.870 |"),
    )
    for name, line in lines:
        assert line.format(f"{trials[name]['dice']:.3f}") in page
    lean = result("reproduce/results/table1/hippocampus_lean.json")["cases"].values()
    fold = [case["scores"]["0"]["merged"]["dice"] for case in lean if case["fold"] == "fold_0"]
    assert f"{statistics.fmean(fold):.3f}" == "0.870"
    at_worst = trials["artefacts"]["perturbed"]["perturbations"]["bias_field 1.5"]["dice"]
    assert f"the model with copies had a Dice of {at_worst:.2f}." in " ".join(page.split())
    page = " ".join((ROOT / "docs/explanation/robust-input.md").read_text(encoding="utf-8").split())
    dice = [f"{trials[name]['dice']:.3f}" for name in ("field", "default")]
    assert f"in a short trial ({dice[0]} for {dice[1]})" in page
    local = trials["local_normalisation"]
    still = -100 * local["perturbed"]["perturbations"]["bias_field 1.5"]["change"]
    assert f"({local['dice']:.3f} for 0.870), and still lost {still:.0f} points" in page


def test_the_papers_recipe_came_to_what_its_runs_came_to() -> None:
    row = result("reproduce/results/table1/hippocampus_med_nca.json")
    hard, table = row["summary"]["merged"]["dice"], (ROOT / "reproduce/results/table1.md").read_text()
    soft = re.search(r"\| Med-NCA, authors' split \| [^|]*\| (\S+ ± \S+) \(stretched", table)
    assert soft and len(row["seeds"]) == 3
    assert f"soft {soft[1]}, hard {hard['mean']:.3f} ± {hard['sd']:.3f} on the native grid" in README


def test_the_figures_of_two_classes_are_those_of_the_folds() -> None:
    summary = result("reproduce/results/table1/hippocampus_best_classes.json")["summary"]
    anterior, posterior = (summary[name]["dice"]["mean"] for name in ("Anterior", "Posterior"))
    told = f"{(anterior + posterior) / 2:.3f} (anterior {anterior:.3f}, posterior {posterior:.3f})"
    assert f"mean Dice of the two | {told}" in README


def test_the_official_figures_are_those_of_the_run_over_all_cases() -> None:
    means = result("reproduce/results/official.json")["means"]
    for name, key in (("soft", "soft64"), ("hard", "hard64"), ("native", "native")):
        assert f"{name} {means[key]['ours']:.3f}" in README
        assert abs(means[key]["difference"]) <= 0.003
        assert means[key]["largest_difference_of_a_case"] <= 0.03


def test_the_speed_of_training_is_that_of_the_benchmark() -> None:
    cases = result("benchmarks/results/training.json")["cases"]
    native = {name: case["engines"]["native"] for name, case in cases.items()}
    patches, whole, lean = (native[name] for name in ("patches", "whole", "lean"))
    assert f"{patches['times_best_eager']:.1f} times as fast" in README
    assert f"{whole['times_best_eager']:.1f} times as fast" in README
    assert f"in {whole['memory']['peak_mb'] / 1000:.1f} GB" in README
    assert f"{lean['times_best_eager']:.1f} times" in README
    assert patches["times_best_eager"] >= 2 and lean["times_best_eager"] >= 4
    best_torch = min(cases["patches"]["engines"][name]["cpu_s"]["median"] for name in ("folded", "gathered"))
    assert best_torch >= 1.5 * patches["cpu_s"]["median"]  # what the backward pass in C is kept for


def test_the_speed_of_bfloat16_is_that_of_the_benchmark() -> None:
    page = (ROOT / "docs/explanation/engines.md").read_text(encoding="utf-8")
    cases = result("benchmarks/results/precision.json")["cases"].values()
    for case in cases:
        row = f"| {case['float32']['median_s']:.3f} | {case['bfloat16']['median_s']:.3f} | "
        assert f"{row}{case['times_float32']:.2f} times" in page
    assert min(case["times_float32"] for case in cases) >= 1.5


def test_int16_costs_what_was_measured() -> None:
    summary = result("reproduce/results/int16.json")["summary"]
    assert summary["cases"] == 208
    assert f"{summary['int16']:.4f} against {summary['fp32']:.4f}" in README
    assert summary["int16_against_fp32"] > summary["other_seed_against_fp32"]
    page = (ROOT / "docs/explanation/c-engine.md").read_text(encoding="utf-8")
    for name in ("fp32", "int16", "other_seed", "int16_against_fp32", "other_seed_against_fp32"):
        assert f"{summary[name]:.4f}" in page, name


def test_the_time_on_a_pi_is_that_of_the_estimate() -> None:
    seconds = result("reproduce/results/fig4.json")["seconds"]
    page = (ROOT / "docs/explanation/pi-estimate.md").read_text(encoding="utf-8")
    for name in ("fp32", "int16"):
        low, high = (x / 60 for x in seconds[name]["320"])
        assert f"{low:.1f} to {high:.1f}" in README and f"{low:.1f} to {high:.1f}" in page
    gates = result("reproduce/results/gate.json")["summary"]
    for row in gates.values():
        assert f"| {row['dice']:.4f} |" in page and f"| {100 * row['share_of_updates']:.0f} % |" in page


def test_the_speed_of_inference_is_that_of_the_benchmark() -> None:
    report = result("benchmarks/results/inference.json")
    rows = {(row["engine"], row["threads"]): row["median_s"] for row in report["rows"]}
    for threads in (1, 2):
        native = rows["native", threads]
        torch = min(rows["PyTorch", threads], rows["PyTorch, channels-last", threads])
        assert f"{torch / native:.1f} times" in README
        others = min(rows[name, threads] for name in ("ONNX Runtime", "OpenVINO"))
        assert f"{others / native:.1f} times" in README


def test_the_reliability_is_that_of_the_benchmark() -> None:
    runs = result("benchmarks/results/reliability.json")["runs"].values()
    for setting, words in (("ours", "reach Dice 0.85"), ("unguarded", "without")):
        found = [run["dice"] for run in runs if run["setting"] == setting]
        assert len(found) == 10
        assert f"{sum(dice >= 0.85 for dice in found)} of 10 {words}" in README


@pytest.mark.parametrize("name", ["anytime", "anytime_two_levels"])
def test_what_stopping_early_saves_and_costs_is_that_of_the_benchmark(name: str) -> None:
    page = (ROOT / "docs/explanation/engines.md").read_text(encoding="utf-8")
    report = result(f"benchmarks/results/{name}.json")
    for patience in ("2", "4", "6", "8"):
        way = report["ways"][patience]
        cells = [f"{100 * way['steps_run']:.1f} %", f"{100 * way['time']:.1f} %"]
        cells += [f"{way[key]:.4f}".replace("-0.0000", "0.0000") for key in ("dice_lost", "most_lost")]
        assert f"| {patience} | {' | '.join(cells)} |" in page
    if name == "anytime":
        assert f"{100 * report['ways']['signals']['time'] - 100:.1f} % more time" in page
        assert report["model_hash"] == load_model("hippocampus").hash
    assert len(report["cases"]) == report["trained_on"] == 6
