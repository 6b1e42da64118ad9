"""The experiments behind tables and figures: stored folds, runs, results, and what is drawn from them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mednca.cases import Case, split_folds
from mednca.checkpoint import RunFolder
from mednca.coarse import usual
from mednca.dataset import load_scan, load_scans, unmeasured
from mednca.errors import InputError
from mednca.metrics import dice_score
from mednca.modelfile import load_model
from mednca.plan import Fingerprint
from mednca.predict import Predictor
from mednca.report import MERGED, Report, merge_reports, summarise
from mednca.rule import parameters
from mednca.train import train
from reproduce import __main__ as overview
from reproduce import (
    catalogue,
    circumference,
    fig3,
    folds,
    gather,
    leak,
    organs,
    paired,
    prepare,
    runs,
    smoothing,
    steps,
    table1,
    trials,
)
from reproduce.catalogue import EVERYTHING, PAPER, Experiment, find
from reproduce.stored import FORMAT, RESULTS, VERSION, command, read_result, result_path, write_result
from tests.small_training import config, model_file, write_cases

TINY = {"train": {"iterations": 2, "batch_size": 2, "warmup": 0, "validate_every": 0}}


# ---- Folds ----


@pytest.mark.parametrize("split", folds.SPLITS, ids=lambda split: split.name)
def test_the_stored_folds_are_those_that_the_rule_gives(split: folds.Split) -> None:
    stored = folds.load(split.name)
    held_out = [case for ids in stored.held_out.values() for case in ids]
    if split.protocol == "authors":
        numbers = {case: int(case.rpartition("_")[2]) for case in stored.persons}
        assert set(held_out) == {case for case, number in numbers.items() if number >= 223}
        assert set(stored.left_out) == {case for case, number in numbers.items() if number == 222}
        return
    by_person = split.protocol == "by person"
    cases = [Case(name, (), None, who if by_person else name) for name, who in stored.persons.items()]
    assert [list(ids) for ids in stored.held_out.values()] == split_folds(cases, 5, 0)
    assert sorted(held_out) == sorted(stored.persons) and not stored.left_out


@pytest.mark.parametrize("split", folds.SPLITS, ids=lambda split: split.name)
def test_nobody_is_on_both_sides_but_in_the_split_by_volume(split: folds.Split) -> None:
    stored = folds.load(split.name)
    both = 0
    for part in stored.parts("x").values():
        trained = {stored.persons[case] for case in part["training"]}
        both += sum(stored.persons[case] in trained for case in part["validation"])
        assert not set(part["training"]) & set(part["validation"])
    assert both == (110 if split.protocol == "by volume" else 0)


def test_a_stored_part_is_what_train_writes_into_its_run_folder(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "data", 10)
    tiny = replace(config(), train=replace(config().train, iterations=1, validate_every=0))
    train(cases, tmp_path / "cv", lambda _: tiny, folds=5, fold=3, progress=False)
    drawn = folds.draw(folds.Split("blobs", "data", "by person", "pairs"), tmp_path)
    assert RunFolder.open(tmp_path / "cv" / "fold_3").split() == drawn.parts(cases.name)["fold_3"]


def test_other_cases_than_stored_are_left_out_and_missing_ones_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_cases(tmp_path / "data", 6)
    split = folds.Split("blobs", "data", "by person", "pairs")
    persons = {f"scan_{number:02d}": str((number + 1) // 2) for number in range(1, 5)}
    stored = folds.Folds(split, {"fold_0": ("scan_01",)}, (), persons)
    assert [case.id for case in stored.cases(tmp_path).cases] == list(persons)
    assert "2 cases are not in the stored split blobs" in caplog.text
    with pytest.raises(InputError, match="1 of them are not here, as scan_99"):
        replace(stored, persons=persons | {"scan_99": "50"}).cases(tmp_path)


def test_a_split_that_is_not_stored_is_named() -> None:
    with pytest.raises(InputError, match=r"nobody\.json: there is no such split"):
        folds.load("nobody")


# ---- The list ----


def test_every_experiment_has_a_name_of_its_own_a_stored_split_and_a_command() -> None:
    names = [experiment.name for experiment in EVERYTHING]
    assert len(set(names)) == len(names)
    for experiment in EVERYTHING:
        assert folds.load(experiment.split)
        assert find([experiment.name]) == (experiment,)
        assert f"--only {experiment.name}" in command(experiment)


def test_every_row_of_the_paper_has_an_experiment_on_both_organs() -> None:
    for organ in ("hippocampus", "prostate"):
        rows = {experiment.row for experiment in catalogue.TABLE1 if experiment.name.startswith(organ)}
        assert rows >= PAPER.keys()


def test_beginnings_choose_experiments_and_nonsense_is_refused() -> None:
    assert {e.name for e in find(["fetal"])} == {"fetal_head_best", "fetal_head_robust", "fetal_head_unet"}
    with pytest.raises(InputError, match="spleen: there is no such experiment"):
        find(["spleen"])


# ---- Runs ----


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data set of blobs, its stored folds, and an experiment on it that was run: in full with two
    iterations, and quick."""
    root = tmp_path_factory.mktemp("reproduce")
    write_cases(root / "blobs", 10)
    with pytest.MonkeyPatch.context() as patch:
        split = folds.Split("blobs", "blobs", "by person", "pairs")
        shutil.copytree(folds.FOLDER, root / "folds")
        (root / "folds" / "blobs.json").write_text(folds.to_json(folds.draw(split, root)))
        patch.setattr(folds, "FOLDER", root / "folds")
        patch.setattr(folds, "SPLITS", (*folds.SPLITS, split))
        patch.setattr(runs, "QUICK_ITERATIONS", 2)
        stretched = TINY | {
            "preprocess": {"size": [16, 16]},
            "model": {"steps": [2, 2], "channels": 8, "hidden": 8},
        }
        experiment = Experiment(
            "blobs_tiny", "Med-NCA", "blobs", "paper_hippocampus", stretched, seeds=(0, 1)
        )
        patch.setitem(catalogue.TABLES, "table1", (*catalogue.TABLE1, experiment))
        runs.run(experiment, root, root / "runs", only=("fold_0", "fold_1"), progress=False)
        runs.run(experiment, root, root / "runs", quick=True, progress=False)
        yield root, experiment


def test_a_run_has_the_seed_of_its_folder_and_the_stored_split(world: Any) -> None:
    root, experiment = world
    for training in runs.trainings(experiment, root / "runs"):
        assert training.finished == (training.fold in ("fold_0", "fold_1"))
        if training.finished:
            run = RunFolder.open(training.path)
            assert run.config().train.seed == training.seed
            assert run.config().train.iterations == 2
            assert run.split()["validation"] == training.split["validation"]
            told = json.loads((training.path / "provenance.json").read_text())
            assert told["sessions"] == 1 and told["minutes"] > 0 and told["machine"]["processor"]


def test_what_is_finished_is_not_trained_again(world: Any) -> None:
    root, experiment = world
    (first, *_) = runs.trainings(experiment, root / "runs")
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    runs.run(experiment, root, root / "runs", only=("fold_0",), progress=False)
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before


def test_a_stopped_training_goes_on_and_its_minutes_add_up(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    (first, *_) = runs.trainings(experiment, root / "runs")
    runs.run(replace(experiment, seeds=(0,)), root, tmp_path, only=("fold_0",), progress=False)
    (again, *_) = runs.trainings(experiment, tmp_path)
    (again.path / "report.json").unlink()  # as if stopped before it was judged
    assert again.state() == "iteration 2 of 2"
    runs.run(replace(experiment, seeds=(0,)), root, tmp_path, only=("fold_0",), progress=False)
    assert json.loads((again.path / "provenance.json").read_text())["sessions"] == 2
    ours, theirs = ((path / "model.safetensors").read_bytes() for path in (again.path, first.path))
    assert ours == theirs


def test_a_result_holds_every_case_of_every_seed_and_says_what_is_missing(world: Any) -> None:
    root, experiment = world
    result = gather.collect(experiment, root / "runs")
    assert result is not None
    assert result["mode"] == "full"
    assert len(result["missing"]) == 6 and all(line.endswith(": not started") for line in result["missing"])
    assert set(result["provenance"]["runs"]) == {f"seed_{s}/fold_{f}" for s in (0, 1) for f in (0, 1)}
    assert len(result["cases"]) == 4
    for name, entry in result["cases"].items():
        assert entry["group"] == str((int(name[-2:]) + 1) // 2)
        assert set(entry["scores"]) == {"0", "1"}
        assert {"dice", "soft_dice", "soft_slices", "hd95_mm"} <= entry["scores"]["0"][MERGED].keys()
    values = [entry["scores"][seed][MERGED]["dice"] for entry in result["cases"].values() for seed in "01"]
    assert result["summary"][MERGED]["dice"]["mean"] == pytest.approx(np.mean(values), abs=1e-5)
    assert "seed" not in result["config"]["train"]


def test_runs_of_other_settings_are_not_mixed(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    one = replace(experiment, seeds=(0,))
    runs.run(one, root, tmp_path, only=("fold_0",), progress=False)
    other = replace(one, changes=experiment.changes | {"predict": {"threshold": 0.4}})
    runs.run(other, root, tmp_path, only=("fold_1",), progress=False)
    with pytest.raises(InputError, match="other settings than the other runs"):
        gather.collect(one, tmp_path)


def test_a_model_of_the_tree_gets_what_its_recipe_measures_now(tmp_path: Path) -> None:
    model, scans = model_file(), load_scans(write_cases(tmp_path, 4).cases)
    found = prepare.completed(model, scans)
    assert found.config.predict.spectrum and len(found.config.predict.spectrum) == 73
    assert found.config.predict.coarse == usual(scan.image for scan in scans)
    assert unmeasured(found.config).predict == replace(model.config.predict, spectrum=(), coarse=())
    assert found.weights is model.weights
    assert prepare.completed(found, []) == found  # it has all


def test_what_each_fold_has_measured_on_its_scans_is_no_other_setting(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    asked = replace(experiment, seeds=(0,), changes=experiment.changes | {"predict": {"sizes": []}})
    runs.run(asked, root, tmp_path, only=("fold_0", "fold_1"), progress=False)
    trained = [one for one in runs.trainings(asked, tmp_path) if one.finished]
    sizes = [load_model(one.path).config.predict.sizes for one in trained]
    assert len(set(sizes)) == 2 and None not in sizes
    result = gather.collect(asked, tmp_path)
    assert result is not None and result["config"]["predict"]["sizes"] == []
    assert {case["fold"] for case in result["cases"].values()} == {"fold_0", "fold_1"}


def test_quick_results_are_marked_and_never_taken_for_full_ones(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    result = gather.collect(experiment, root / "runs", quick=True)
    assert result is not None and result["mode"] == "quick"
    assert set(result["provenance"]["runs"]) == {"seed_0/fold_0"}
    assert "--quick" in result["provenance"]["command"]
    path = tmp_path / "table1" / "blobs_tiny.json"
    write_result(path, result)
    with pytest.raises(InputError, match="is a result of quick mode, expected full"):
        read_result(path)
    assert (read_result(path, quick=True) or {})["cases"] == result["cases"]


def test_runs_of_several_machines_make_one_result(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    one = replace(experiment, seeds=(0,))
    whole = gather.collect(one, root / "runs")
    for fold in ("fold_0", "fold_1"):
        shutil.copytree(root / "runs/blobs_tiny/seed_0" / fold, tmp_path / fold / "blobs_tiny/seed_0" / fold)
    first, second = (gather.collect(one, tmp_path / fold) for fold in ("fold_0", "fold_1"))
    assert whole is not None and first is not None and second is not None
    assert gather.joined(None, second) is second and gather.joined(first, whole) is whole
    del first["config"]["predict"]["spectrum"]  # a setting that is younger than the stored result
    assert gather.joined(first, second) == whole
    first["config"]["predict"]["threshold"] = 0.4
    with pytest.raises(InputError, match=r"of other settings than these .* seed_0/fold_0"):
        gather.joined(first, second)


def test_a_result_never_loses_runs_in_silence(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    result = gather.collect(experiment, root / "runs")
    assert result is not None
    write_result(tmp_path / "result.json", result)
    less = result | {"provenance": {"runs": {}}}
    with pytest.raises(InputError, match="the stored result has runs that are not under --runs"):
        write_result(tmp_path / "result.json", less)


def test_the_cost_is_that_of_finished_runs_times_what_is_missing(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    known = [
        json.loads((training.path / "provenance.json").read_text())["minutes"]
        for training in runs.trainings(experiment, root / "runs")
        if training.finished
    ]
    assert overview.cost(experiment, root / "runs", tmp_path) == pytest.approx(6 * float(np.median(known)))
    assert overview.cost(experiment, tmp_path, tmp_path) is None
    assert overview.cost(replace(experiment, minutes=3.0), tmp_path, tmp_path) == 30


def test_the_masks_of_nnu_net_are_dealt_to_the_stored_folds(world: Any, tmp_path: Path) -> None:
    root, experiment = world
    theirs = replace(experiment, name="blobs_nnunet", by="nnunet", seeds=(0,))
    stored = folds.load("blobs")
    parts = {}
    for fold, ids in stored.held_out.items():
        scores = {case: {MERGED: {"dice": 0.9}, "foreground": {"dice": 0.9}} for case in ids}
        told = {"tolerance_mm": 1.0, "labels": {"1": "foreground"}, "versions": {"mednca": "0"}}
        parts[fold] = Report(scores, {}, told, {case: stored.persons[case] for case in ids})
    (tmp_path / "blobs_nnunet").mkdir()
    file = tmp_path / "blobs_nnunet" / "report.json"
    merge_reports(parts).write(file)
    file.with_name("provenance.json").write_text('{"minutes": 7, "parameters": 123, "device": "card"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalogue.TABLES, "fig3", (theirs,))
        result = gather.collect(theirs, tmp_path)
    assert result is not None and not result["missing"] and len(result["cases"]) == 10
    assert result["parameters"] == 123 and result["provenance"]["runs"]["seed_0/fold_4"]["minutes"] == 7
    swapped = dict(zip(parts, [*list(parts.values())[1:], parts["fold_0"]], strict=True))
    merge_reports(swapped).write(file, force=True)
    with pytest.raises(InputError, match="fold_0 must hold out the 2 cases of the stored split blobs"):
        gather.collect(theirs, tmp_path)
    with pytest.raises(InputError, match="is trained by nnunet's own commands"):
        runs.run(theirs, root, tmp_path)


def test_the_encoders_of_fig_3_are_the_u_net_with_another_network() -> None:
    data = Fingerprint(1, (1.0, 1.0, 1.0), (35, 50, 36), {1: "organ"})
    for experiment in catalogue.FIG3:
        if experiment.by == "mednca":
            found = runs.configuration(experiment, data, 3)
            assert found.baseline is not None and found.baseline.name.partition(":")[2] in catalogue.ENCODERS
            assert found.train.seed == 3
    (lean,) = find(["hippocampus_lean"])
    assert parameters(runs.configuration(lean, data, 0).model) <= 20_000


def test_steps_change_the_steps_and_nothing_else(world: Any) -> None:
    root, experiment = world
    model = model_file()
    half = steps.with_steps(model, 50)
    assert half.config.model.steps == (2, 1, 1)  # of 3, 2, 2
    assert steps.with_steps(model, 300).config.model.steps == (9, 6, 6)
    assert steps.with_steps(model, 100).config == model.config and half.weights is model.weights
    found = steps.measure(experiment, root, root / "runs", cases=1)
    assert found["steps"] == [2, 2] and found["folds"] == ["fold_0", "fold_1"]
    assert all(set(row) == {str(percent) for percent in steps.PERCENT} for row in found["cases"].values())
    report = Report.from_json((root / "runs/blobs_tiny/seed_0/fold_0/report.json").read_text())
    (name, row), *_ = found["cases"].items()
    assert row["100"] == pytest.approx(report.cases[name][MERGED]["dice"], abs=1e-5)


def test_smoothing_is_judged_as_a_model_that_smooths_would_be(world: Any) -> None:
    root, experiment = world
    found = smoothing.measure(experiment, root, root / "runs", most=2)
    assert found["folds"] == ["fold_0", "fold_1"] and set(found["means"]) == {"0", "1", "2"}
    path = root / "runs/blobs_tiny/seed_0/fold_0"
    report = Report.from_json((path / "report.json").read_text())
    own = {name: case[MERGED]["dice"] for name, case in report.cases.items()}
    assert {n: found["cases"][n]["0"] for n in own} == pytest.approx(own, abs=1e-5)
    model = load_model(path)
    smooth = replace(model.config, predict=replace(model.config.predict, smoothing=2))
    predictor = Predictor(replace(model, config=smooth))
    for case in folds.load(experiment.split).cases(root).cases:
        if case.id in own:
            scan = load_scan(case)
            dice = dice_score(predictor.predict(scan.image).mask.data[0] > 0, scan.label.data[0] > 0)
            assert found["cases"][case.id]["2"] == pytest.approx(dice, abs=1e-5)


# ---- Statistics ----


def report(values: dict[str, float], persons: dict[str, str]) -> Report:
    """Case -> Dice, case -> person -> a report."""
    return Report({name: {MERGED: {"dice": value}} for name, value in values.items()}, {}, {}, persons)


def test_a_paired_difference_draws_persons_not_volumes() -> None:
    rng = np.random.default_rng(3)
    apart = rng.normal(0.01, 0.02, 20)
    names = [f"{side}{person:02d}" for person in range(20) for side in "lr"]
    base = report(dict.fromkeys(names, 0.8), {name: name[1:] for name in names})
    ours = report({name: 0.8 + apart[int(name[1:])] for name in names}, base.groups)
    row = paired.paired(ours, base, "dice")
    assert row["mean"] == pytest.approx(apart.mean()) and row["n"] == 40
    drawn = apart[np.random.default_rng(1).integers(20, size=(20_000, 20))].mean(axis=1)
    assert row["ci95"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=6e-4)
    alone = [replace(r, groups={name: name for name in names}) for r in (ours, base)]
    narrow = paired.paired(*alone, "dice")["ci95"]
    assert narrow[1] - narrow[0] < 0.8 * (row["ci95"][1] - row["ci95"][0])
    assert paired.paired(ours, base, "dice") == row  # the same every time


def test_the_authors_checkpoint_is_a_report_on_the_cases_that_are_asked_for() -> None:
    known = paired.authors()
    test = folds.load("hippocampus_authors").held_out["test"]
    chosen = paired.restricted(known, test)
    assert len(known.cases) == 208 and len(chosen.cases) == 92
    mean = np.mean([row[MERGED]["dice"] for row in chosen.cases.values()])
    assert 0.86 < mean < 0.91
    with pytest.raises(InputError, match="case nobody is not among the 208"):
        paired.restricted(known, ["nobody"])


def test_a_comparison_without_results_says_so(tmp_path: Path) -> None:
    for path in paired.draw(tmp_path):
        assert "not run: hippocampus_best has no result" in path.read_text()


# ---- Tables from results ----


def fake(experiment: Experiment, dice: float, *, seeds: int = 1, spread: float = 0.02) -> dict[str, Any]:
    """Experiment and a mean -> a result on all of its cases."""
    stored = folds.load(experiment.split)
    fold = {case: name for name, ids in stored.held_out.items() for case in ids}
    cases = {}
    for at, case in enumerate(sorted(fold)):
        value = round(dice + spread * (at % 3 - 1), 5)
        row = {
            MERGED: {"dice": value, "soft_dice": value - 0.02, "soft_slices": value - 0.01, "hd95_mm": 1.0}
        }
        scores = {str(seed): row for seed in range(seeds)}
        cases[case] = {"group": stored.persons[case], "fold": fold[case], "scores": scores}
    averaged = gather.mean_report(cases)
    told = {"minutes": 12.0, "device": "cpu", "machine": {"processor": "Abacus 3"}, "events": []}
    names = [f"seed_{seed}/{name}" for seed in range(seeds) for name in stored.held_out]
    return {
        "format": FORMAT,
        "version": VERSION,
        "mode": "full",
        "data": stored.split.data,
        "protocol": stored.split.protocol,
        "parameters": 70_016,
        "missing": [],
        "provenance": {"command": "-", "runs": dict.fromkeys(names, told)},
        "summary": {
            region: {metric: gather._rounded(row) for metric, row in rows.items()}
            for region, rows in summarise(averaged.cases, averaged.groups, resamples=200).items()
        },
        "seeds": {str(seed): {} for seed in range(seeds)},
        "cases": cases,
    }


def store(results: Path, name: str, dice: float, **more: Any) -> dict[str, Any]:
    """Folder, name of an experiment and a mean -> its made-up result, stored."""
    (experiment,) = find([name])
    result = fake(experiment, dice, **more)
    write_result(result_path(experiment, results), result)
    return result


def row_of(text: str, begin: str) -> list[str]:
    """Markdown and the beginning of a row -> its cells."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {begin} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_1_sets_ours_beside_the_paper(tmp_path: Path) -> None:
    store(tmp_path, "hippocampus_med_nca", 0.9, seeds=3)
    store(tmp_path, "prostate_med_nca", 0.85)
    (path,) = table1.draw(tmp_path, False)
    hippocampus, prostate = path.read_text().split("## Prostate")
    cells = dict(zip(table1.HEAD, row_of(hippocampus, "Med-NCA, authors' split"), strict=True))
    assert cells["paper"] == "0.886 ± 0.042"
    assert cells["ours, soft"].startswith("0.890 ± 0.016 (stretched slices")
    assert cells["ours, hard, native grid"] == "0.900 ± 0.016"
    assert cells["gap"] == "+0.004"
    assert cells["seeds"] == "3" and cells["folds"] == "1, authors"
    assert cells["machine"] == "Abacus 3; 36 min for 3 trainings"
    assert "--only hippocampus_med_nca`" in cells["command"]
    assert dict(zip(table1.HEAD, row_of(prostate, "Med-NCA"), strict=True))["gap"] == "other data"
    missing = row_of(hippocampus, "Med-NCA, n = 16, authors' split")
    assert missing[1] == "0.873 ± 0.033" and missing[2] == missing[3]
    assert missing[2] == "not run: its 5 core-minutes of training, or more, were not to be had yet"
    assert "0.871 (its sd is a misprint)" in hippocampus
    for line in hippocampus.splitlines()[6:]:
        if line.startswith("| ") and not line.startswith("| row"):
            assert "not run: " in line or "0.900" in line


def test_a_table_is_the_same_every_time_and_quick_ones_say_so(tmp_path: Path) -> None:
    store(tmp_path, "hippocampus_unet", 0.9)
    first = [path.read_bytes() for path in (*table1.draw(tmp_path, False), *fig3.draw(tmp_path, False))]
    again = [path.read_bytes() for path in (*table1.draw(tmp_path, False), *fig3.draw(tmp_path, False))]
    assert first == again
    with pytest.raises(InputError, match="is a result of full mode, expected quick"):
        table1.draw(tmp_path, True)
    (path,) = table1.draw(tmp_path / "quick", True)
    assert "QUICK MODE: no result" in path.read_text()


def test_fig_3_has_a_point_for_every_result(tmp_path: Path) -> None:
    store(tmp_path, "hippocampus_unet_resnet18", 0.88)
    store(tmp_path, "hippocampus_best", 0.91)
    png, svg, text = fig3.draw(tmp_path, False)
    assert png.read_bytes().startswith(b"\x89PNG")
    for word in ("U-Net, resnet18", "ours, best", "Seg. NCA", "nnU-Net in the paper"):
        assert f"<!-- {word}" in svg.read_text() or word in svg.read_text(), word
    assert "0.880" in row_of(text.read_text(), "U-Net, resnet18")[3]
    assert row_of(text.read_text(), "nnU-Net 2d")[2].startswith("not run: ")


def test_other_organs_stand_beside_a_u_net_and_the_head_has_its_circumference(tmp_path: Path) -> None:
    for name, dice, apart in (("fetal_head_best", 0.95, 1.0), ("fetal_head_unet", 0.94, -2.0)):
        result = store(tmp_path, name, dice)
        for entry in result["cases"].values():
            entry["scores"]["0"][MERGED] |= {
                "circumference_mm": 100 + apart,
                "label_circumference_mm": 100.5,
                "reference_circumference_mm": 100.0,
            }
        (experiment,) = find([name])
        write_result(result_path(experiment, tmp_path), result)
    store(tmp_path, "nuclei_best", 0.925)
    few = store(tmp_path, "nuclei_robust", 0.92)
    few["cases"] = {case: entry for case, entry in few["cases"].items() if entry["fold"] == "fold_0"}
    write_result(result_path(find(["nuclei_robust"])[0], tmp_path), few)
    (path,) = organs.draw(tmp_path, False)
    text = path.read_text()
    number = len(few["cases"])
    assert 10 < number < 30
    told = f"Robust minus native, per case: -0.0050, 95 % interval -0.0050 to -0.0050 ({number} cases)."
    assert told in text.split("## Nuclei")[1]
    assert "Ours minus U-Net, per case: +0.0100, 95 % interval +0.0100 to +0.0100 (120 cases)." in text
    assert "U-Net, our training: of the mask: mean absolute error 2.00 mm, signed -2.00 mm (120 cases" in text
    assert "of the label: mean absolute error 0.50 mm, signed +0.50 mm" in text
    assert "not run: " in text.split("## Nuclei")[1]


def test_the_leak_is_the_difference_of_the_two_protocols(tmp_path: Path) -> None:
    leaks = set(leak.leaking(folds.load("hippocampus_by_volume")))
    assert len(leaks) == 110
    store(tmp_path, "hippocampus_lean", 0.88, seeds=3)
    volume = store(tmp_path, "hippocampus_lean_by_volume", 0.88)
    for case, entry in volume["cases"].items():
        entry["scores"]["0"][MERGED]["dice"] += 0.01 * (case in leaks)
    (experiment,) = find(["hippocampus_lean_by_volume"])
    write_result(result_path(experiment, tmp_path), volume)
    rows = leak.measure(tmp_path)
    assert rows["ours, lean"]["seeds"] == ["0"]
    differences = {name: row["difference"] for name, row in rows["ours, lean"].items() if name != "seeds"}
    assert {name: row["n"] for name, row in differences.items()} == {
        "all": 208,
        "the other side in training": 110,
        "no other side in training": 98,
    }
    assert differences["the other side in training"]["mean"] == pytest.approx(0.01)
    assert differences["no other side in training"]["mean"] == pytest.approx(0, abs=1e-9)
    page = leak.put_in(f"before {leak.BEGIN} old {leak.END} after", leak.table(rows))
    assert page.startswith("before") and page.endswith("after") and " old " not in page
    assert "+0.0100" in page
    assert "no result of hippocampus_lean" in leak.table(leak.measure(tmp_path / "nothing"))
    assert leak.put_in(page, leak.table(rows)) == page


def test_what_stands_in_the_tree_is_drawn_from_its_results(tmp_path: Path) -> None:
    for table in ("table1", "fig3", "organs"):
        for path in (RESULTS / table).glob("*.json"):
            write_result(tmp_path / table / path.name, json.loads(path.read_text()))
    (tmp_path / "official.json").write_text((RESULTS / "official.json").read_text())
    drawn = [*table1.draw(tmp_path, False), *fig3.draw(tmp_path, False), *organs.draw(tmp_path, False)]
    for path in [*drawn, *paired.draw(tmp_path)]:
        if path.suffix in (".md", ".json"):
            assert path.read_text() == (RESULTS / path.name).read_text(), f"draw {path.name} again"
    page = leak.PAGE.read_text(encoding="utf-8")
    assert leak.put_in(page, leak.table(leak.measure())) == page, "run reproduce/leak.py again"
    assert trials.page(trials.FOLDER) == (trials.FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_list_tells_state_cost_and_command(tmp_path: Path) -> None:
    store(tmp_path, "hippocampus_unet", 0.9)
    lines = overview.listing(tmp_path / "runs", tmp_path).splitlines()
    (unet,) = [line for line in lines if line.split()[:1] == ["hippocampus_unet"]]
    assert " stored " in unet and " nothing " in unet
    (paper,) = [line for line in lines if line.split()[:1] == ["hippocampus_med_nca_n16"]]
    assert " not trained yet " in paper and " 5 core-min " in paper
    assert paper.endswith("python reproduce/table1.py DATA_ROOT --only hippocampus_med_nca_n16")


# ---- Circumference ----


@pytest.mark.parametrize(("half_axes", "turn"), [((60, 60), 0.0), ((80, 50), 0.0), ((80, 50), 0.6)])
def test_the_circumference_is_that_of_the_ellipse(half_axes: tuple[int, int], turn: float) -> None:
    x, y = np.mgrid[-100:101, -100:101]
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    a, b = half_axes
    mask = (u / a) ** 2 + (v / b) ** 2 <= 1
    t = np.linspace(0, 2 * np.pi, 20_001)
    exact = np.hypot(np.diff(a * np.cos(t)), np.diff(b * np.sin(t))).sum()
    assert circumference.circumference_mm(mask, 0.25) == pytest.approx(0.25 * exact, rel=1e-3)


def test_an_empty_mask_has_no_circumference_and_is_counted() -> None:
    assert math.isnan(circumference.circumference_mm(np.zeros((5, 5)), 1.0))
    rows = {"a": (3.0, 1.0), "b": (1.0, 2.0), "c": (math.nan, 2.0)}
    cases = {
        name: {"circumference_mm": ours, "reference_circumference_mm": theirs}
        for name, (ours, theirs) in rows.items()
    }
    found = circumference.errors_mm(cases)
    assert found["signed_mm"] == 0.5 and found["absolute_mm"] == 1.5
    assert found["cases"] == 2 and found["missing"] == 1


# ---- Trials ----


def raw_trial(name: str, gain: float = 0.0, **options: Any) -> dict[str, Any]:
    """Name and gain -> a trial as it comes."""
    ids = list(folds.load("hippocampus_by_person").held_out["fold_0"])
    cases = {case: {"avg": [0.8 + 0.001 * at + gain]} for at, case in enumerate(ids)}
    cases[ids[0]]["avg"][0] -= 0.42  # the mean is not the median
    return {
        "name": name,
        "options": options,
        "canvas": [44, 60],
        "curve": [0.3, 0.6],
        "cpu_minutes": 4.8,
        "parameters": 70016,
        "cases": cases,
    }


def test_trials_are_taken_in_and_told_with_their_hypotheses(tmp_path: Path) -> None:
    new, log = tmp_path / "new", tmp_path / "log"
    new.mkdir()
    log.mkdir()
    (new / "base.json").write_text(json.dumps(raw_trial("base")))
    changed = raw_trial("ema", 0.01, config={"train": {"ema": 0.9, "seed": 4}}, union=1.0, fold=0)
    (new / "ema.json").write_text(json.dumps(changed))
    (new / "settings.json").write_text('{"train": {"iterations": 5}}')
    side = {
        "ema": {
            "hypothesis": "shorter mean | fits",
            "expected": "+0.005",
            "against": "base",
            "verdict": "kept",
        }
    }
    (log / "hypotheses.json").write_text(json.dumps(side))
    assert trials.main([str(new), "--log", str(log)]) == 0
    assert sorted(path.name for path in log.iterdir()) == [
        *("README.md", "base.json", "ema.json", "hypotheses.json")
    ]
    stored = json.loads((log / "ema.json").read_text())
    assert (
        stored["seed"] == 4
        and stored["other"] == {"union": 1.0}
        and stored["split"] == "fold 0 of 5, by person"
    )
    line = next(line for line in (log / "README.md").read_text().splitlines() if line.startswith("| [ema]"))
    assert "shorter mean \\| fits" in line and "`train.ema=0.9`" in line and "`union=1.0`" in line
    assert "base: +0.0100 (+0.0100 to +0.0100), median +0.0100 |" in line and line.endswith("| kept |")
    assert "| avg 0.8205 | 0.8305 |" in line and "| `own_grid` `train.ema=0.9`" in line
    lines = (log / "README.md").read_text().splitlines()
    assert [at.split("]")[0] for at in lines if at.startswith("| [")] == ["| [ema", "| [base"]
    base = next(line for line in (log / "README.md").read_text().splitlines() if line.startswith("| [base]"))
    assert "not stated" in base and base.endswith("| open |")


def test_a_trial_with_a_path_or_without_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="options must not hold a path, got '/home/me/start'"):
        trials.take_in(raw_trial("base", start={"from": ["/home/me/start"]}), "base.json")
    assert (
        trials.take_in(raw_trial("base", data="/data/Task04_Hippocampus"), "x")["data"]
        == "Task04_Hippocampus"
    )
    lacking = raw_trial("base")
    del lacking["curve"]
    with pytest.raises(InputError, match="missing: curve"):
        trials.take_in(lacking, "base.json")
    (tmp_path / "hypotheses.json").write_text('{"ghost": {"verdict": "x"}}')
    with pytest.raises(InputError, match="ghost, or what it is against, is no stored trial"):
        trials.page(tmp_path)
