"""The table: each case by the model that has not seen it, perturbations evenly drawn, gone on with after a
stop."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.stats

from mednca.cases import Case, find_labelled_cases
from mednca.cli import main
from mednca.dataset import load_scan
from mednca.errors import InputError
from mednca.modelfile import load_model, save_model
from mednca.perturb import find
from mednca.predict import Look, Prediction
from mednca.robustness import CLEAN, Job
from mednca.trust import table as trust_table
from mednca.trust.table import (
    STRANGER,
    STRANGERS,
    VERSION,
    Part,
    draw_jobs,
    held_out,
    measure,
    perturbed,
    read_table,
)
from mednca.volume import Volume
from reproduce import trust as reproduce_trust
from tests.small import tiny_model, write_data

GEOMETRY = find(["crop", "pad", "translation"])


def folds(folder: Path, validation: dict[str, list[str]]) -> Path:
    """Folder and the held-out cases of each fold -> fold runs with models that differ."""
    for number, (name, cases) in enumerate(validation.items()):
        model = tiny_model()
        weights = {key: array * (1 - 0.01 * number) for key, array in model.weights.items()}
        save_model(folder / name / "model.safetensors", replace(model, weights=weights))
        (folder / name / "split.json").write_text(json.dumps({"training": [], "validation": cases}))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of eight cases."""
    return write_data(tmp_path / "data", 8)


def cases(data: Path) -> tuple[Case, ...]:
    return find_labelled_cases(data, "pairs").cases


def test_each_case_goes_to_the_model_that_has_not_seen_it(data: Path, tmp_path: Path) -> None:
    runs = folds(tmp_path / "cv", {"fold_0": ["a_1", "a_2", "a_5"], "fold_1": ["a_3", "a_4"]})
    parts = held_out(runs, cases(data))
    told = {part.model.name: [case.id for case in part.cases] for part in parts}
    assert told == {"fold_0": ["a_1", "a_2", "a_5"], "fold_1": ["a_3", "a_4"]}
    one = held_out(runs, cases(data), each=1)
    assert [[case.id for case in part.cases] for part in one] == [["a_1", "a_5"], ["a_3"]]
    alone = held_out(runs / "fold_1", cases(data))
    assert [[case.id for case in part.cases] for part in alone] == [["a_3", "a_4"]]


def test_drawn_persons_come_whole_and_more_of_them_begin_with_fewer(data: Path, tmp_path: Path) -> None:
    runs = folds(tmp_path / "cv", {"fold_0": [f"a_{n}" for n in range(1, 9)]})
    chosen = []
    for count in range(1, 5):
        (part,) = held_out(runs, cases(data), people=count)
        persons = Counter(case.group for case in part.cases)
        assert len(persons) == count and set(persons.values()) == {2}
        chosen.append(set(persons))
    assert all(a < b for a, b in itertools.pairwise(chosen))


def test_what_holds_nothing_out_is_refused(data: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m" / "model.safetensors", tiny_model())
    with pytest.raises(InputError, match="expected the folder of a cross-validation"):
        held_out(tmp_path / "m", cases(data))
    with pytest.raises(InputError, match="held out in fold_0 and fold_1"):
        held_out(folds(tmp_path / "twice", {"fold_0": ["a_1"], "fold_1": ["a_1"]}), cases(data))
    with pytest.raises(InputError, match="no case of the data is held out"):
        held_out(folds(tmp_path / "none", {"fold_0": ["b_1"]}), cases(data))


def test_perturbations_are_drawn_evenly_and_more_begin_with_fewer() -> None:
    every = find()
    for count in (1, 8, 40):
        jobs = draw_jobs("a", every, count)
        assert len(jobs) == count + 2 and jobs[0].perturbation == CLEAN
        assert jobs[-1].perturbation.removeprefix(STRANGER) in STRANGERS
        assert len(set(jobs)) == len(jobs)
        assert draw_jobs("a", every, 60)[: count + 1] == jobs[:-1]
        known = {one.name: one for one in every}
        assert all(job.severity in known[job.perturbation].severities for job in jobs[1:-1])
    assert draw_jobs("a", every, 8) != draw_jobs("b", every, 8)
    names = Counter(job.perturbation for job in draw_jobs("a", every, len(every))[1:-1])
    assert set(names.values()) == {1} and len(names) == len(every)
    all_of_them = draw_jobs("a", every, 10_000)
    assert len(all_of_them) == sum(len(one.severities) for one in every) + 2


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_has_the_grid_of_its_case_and_no_organ(kind: str, data: Path) -> None:
    scan = load_scan(cases(data)[0])
    job = Job(STRANGER + kind, 1.0, 0)
    image, label, _ = perturbed(scan, job)
    assert image.shape == scan.image.shape and np.array_equal(image.affine, scan.image.affine)
    assert not label.data.any() and np.isfinite(image.data).all()
    assert image.data.mean() == pytest.approx(scan.image.data.mean(), rel=1e-3)
    spread = 0.0 if kind == "constant" else scan.image.data.std()
    assert image.data.std() == pytest.approx(spread, rel=1e-3)
    assert np.array_equal(image.data, perturbed(scan, job).image.data)


def test_a_stopped_table_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    runs = folds(tmp_path / "cv", {"fold_0": ["a_1", "a_2"], "fold_1": ["a_3"]})
    parts, path = held_out(runs, cases(data)), tmp_path / "t.jsonl"

    def jobs(case: Case) -> list[Job]:
        return draw_jobs(case.id, GEOMETRY, 2)

    rows = measure(parts, jobs, path)
    assert len(rows) == 12 and [row.key for row in read_table(path)] == [row.key for row in rows]
    content = path.read_bytes()
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:5]) + b'{"torn')
    done: list[object] = []

    def watched(todo):  # type: ignore[no-untyped-def]
        done.extend(todo)
        return todo

    again = measure(parts, jobs, path, progress=watched)
    assert len(done) == 7

    def timeless(found: list[trust_table.Row]) -> list[trust_table.Row]:
        return [replace(row, seconds=(0.0, 0.0)) for row in found]

    assert timeless(again) == timeless(rows)
    assert len({row.model for row in rows}) == 2
    measure(parts, jobs, path, progress=watched)
    assert len(done) == 7


def test_the_dice_is_that_of_the_mask(data: Path, tmp_path: Path) -> None:
    runs = folds(tmp_path / "cv", {"fold_0": ["a_1"]})
    part = held_out(runs, cases(data))[0]
    (row,) = measure([part], lambda case: [Job(CLEAN, 0.0, 0)], tmp_path / "t.jsonl")
    main_ = ["predict", str(part.model), str(part.cases[0].images[0]), "-o", str(tmp_path / "m.nii")]
    with pytest.raises(SystemExit):
        main(main_)
    mask = nib.load(tmp_path / "m.nii").get_fdata() > 0
    label = nib.load(part.cases[0].label).get_fdata() > 0
    assert row.dice == pytest.approx(2 * (mask & label).sum() / (mask.sum() + label.sum()), abs=1e-6)
    assert row.traits["volume"] == pytest.approx(mask.sum() * 2 / 1000)
    assert row.counts and not row.is_stranger and not row.empty and row.group == "1"


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"version": {VERSION}}}\n')
    with pytest.raises(InputError, match="line 1: is no row"):
        read_table(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"version": 0}\n')  # an older one is measured again
    assert read_table(tmp_path / "t.jsonl") == []


def command(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trust", *words])
    assert (stopped.value.code or 0) == status


def test_the_command_makes_a_model_that_knows_what_to_expect(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchio")
    monkeypatch.chdir(tmp_path)
    folds(tmp_path / "cv", {f"fold_{k}": [f"a_{k + 1}", f"a_{k + 5}"] for k in range(4)})
    save_model(tmp_path / "m.safetensors", tiny_model())
    words = [
        "m.safetensors",
        "data",
        "--folds",
        "cv",
        "-o",
        "t.safetensors",
        "--perturbations",
        "2",
        "--quiet",
    ]
    command(*words)
    out, err = capsys.readouterr()
    assert (
        "predictions of 8 persons" in out and "entropy alone" in out and out.endswith("t.safetensors: done\n")
    )
    assert not err
    model, report = load_model("t.safetensors"), json.loads(Path("t.json").read_text())
    assert model.trust is not None and model.hash == tiny_model().hash
    assert model.card["trust"]["persons"] == 8 and model.card["name"] == "tiny"
    assert report["score"]["persons"] == 8 and len(report["rows"]) == len(read_table(Path("t.jsonl")))
    before = Path("t.jsonl").read_bytes()
    command(*words, status=2)
    assert "exists already" in capsys.readouterr().err
    command(*words, "--force")
    assert Path("t.jsonl").read_bytes() == before  # nothing was predicted twice
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", "t.safetensors", "data/images/a_1.nii.gz", "-o", "mask.nii.gz"])
    assert "expected Dice 0." in capsys.readouterr().out


def test_folds_of_another_recipe_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchio")
    folds(tmp_path / "cv", {"fold_0": ["a_1"]})
    other = tiny_model()
    config = replace(other.config, predict=replace(other.config.predict, threshold=0.4))
    save_model(tmp_path / "m.safetensors", replace(other, config=config))
    words = (str(tmp_path / "m.safetensors"), str(data), "--folds", str(tmp_path / "cv"))
    command(*words, "-o", str(tmp_path / "t.safetensors"), status=2)
    assert "its predict is another" in capsys.readouterr().err
    for option, told in (("--people", "0"), ("--coverage", "1"), ("--below", "0")):
        command(*words, "-o", str(tmp_path / "t.safetensors"), option, told, status=2)
        assert option in capsys.readouterr().err


def test_a_part_without_cases_is_skipped(data: Path, tmp_path: Path) -> None:
    runs = folds(tmp_path / "cv", {"fold_0": ["a_1"]})
    part = held_out(runs, cases(data))[0]
    empty = Part(part.model, ())
    assert measure([empty], lambda case: [Job(CLEAN, 0.0, 0)], tmp_path / "t.jsonl") == []


def test_the_variance_is_that_of_the_look_where_the_mask_is_gone_on_the_scan_s_own_grid() -> None:
    """A second look on a finer grid may find a few voxels that do not come back."""
    there = np.zeros((3, 3, 3), np.uint8)
    there[1, 1, 1] = 1
    spread = np.full((1, 3, 3, 3), 0.2, np.float32)
    own, fine = Volume(np.zeros((1, 2, 2, 2), np.uint8), np.eye(4)), Volume(there[None], np.eye(4))
    look = Look(fine, there, spread, spread, {}, None)
    nothing = Volume(np.full((1, 2, 2, 2), 0.5, np.float32), np.eye(4))
    gone = Prediction(own, None, {}, nothing, look)
    assert trust_table._variance(gone) == pytest.approx(0.04)
    stayed = replace(gone, mask=own.with_data(np.ones_like(own.data)))
    assert trust_table._variance(stayed) == pytest.approx(0.25)
    assert trust_table._variance(replace(gone, look=replace(look, mask=np.zeros_like(there)))) is None


def test_the_rank_correlation_is_told_with_its_interval_and_of_the_first_perturbations() -> None:
    random = np.random.default_rng(0)
    persons = {f"c{number}": f"p{number // 2}" for number in range(12)}
    rows = []
    for case in persons:
        for job in draw_jobs(case, find(), 8, strangers=0):
            dice = float(random.random())
            rows.append([case, job.perturbation, job.severity, dice, dice + 0.1 * float(random.normal())])
    told = reproduce_trust.rank_correlation(rows, persons, draws=200)
    wanted = scipy.stats.spearmanr([row[3] for row in rows], [row[4] for row in rows]).statistic
    assert told["spearman"] == pytest.approx(wanted, abs=1e-4) and told["of"] == 12 * 9
    assert told["interval"][0] < told["spearman"] < told["interval"][1] and told["of_first"] == 12 * 6
    first = [row for row in rows if Job(row[1], row[2], 0) in draw_jobs(row[0], find(), 5)]
    wanted = scipy.stats.spearmanr([row[3] for row in first], [row[4] for row in first]).statistic
    assert told["spearman_of_first"] == pytest.approx(wanted, abs=1e-4)
