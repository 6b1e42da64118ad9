"""The report card: every prediction once, the same whatever the order or the stops; nothing is mixed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mednca import cli
from mednca.cases import Case, find_cases
from mednca.dataset import LabelledScan, load_scan
from mednca.errors import InputError
from mednca.evaluate import Predictor
from mednca.export import export
from mednca.modelfile import ModelFile, save_model
from mednca.perturb import find
from mednca.predict import Predictor as RealPredictor
from mednca.robustness import (
    CLEAN,
    Contender,
    Job,
    Score,
    Scores,
    draw_cases,
    list_jobs,
    measure,
    read_scores,
)
from mednca.robustness import perturbed as perturbed_cases
from mednca.robustness.contenders import fold_runs, open_masks, open_model, together
from mednca.robustness.folder import describe, open_report
from mednca.robustness.images import write_images
from mednca.robustness.report import card, summary
from mednca.volume import Volume
from reproduce import anisotropy, cards, claims, fig5, fig6, stored_cards
from reproduce import folds as stored_folds
from reproduce.catalogue import CARDS
from reproduce.catalogue import find as find_experiments
from reproduce.runs import fold_models, keep
from tests.small import tiny_model, write_nifti

pytest.importorskip("torchio")

JOBS = list_jobs(find(["scale", "translation", "noise"]), quick=True)


def blob(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Number -> image (16, 18, 6) with a bright box on a dark ground, and its label."""
    label = np.zeros((16, 18, 6), np.uint8)
    label[4 : 9 + number % 3, 5:13, 1:5] = 1
    noise = np.random.default_rng(number).normal(0, 4, label.shape)
    return (50 + 200.0 * label + noise).astype(np.float32), label


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of six cases of three persons."""
    for number in range(1, 7):
        image, label = blob(number)
        write_nifti(tmp_path / "data" / "images" / f"scan_{number}.nii.gz", image)
        write_nifti(tmp_path / "data" / "labels" / f"scan_{number}.nii.gz", label)
    return tmp_path / "data"


def cases_of(data: Path) -> tuple[Case, ...]:
    return find_cases(data, group="pairs").cases


def half(image: Volume) -> np.ndarray:
    """An image -> what is above the middle between dark and bright."""
    low, high = np.percentile(image.data[0], (2, 98))
    return (image.data[0] > (low + high) / 2).astype(np.uint8)


def stub(
    cases: Sequence[Case], name: str = "stub", mask: Callable[[Volume], np.ndarray] = half
) -> tuple[Contender, list[tuple[str, Job]]]:
    """Cases -> a contender that thresholds, and the list of what it was asked."""
    asked: list[tuple[str, Job]] = []

    def judge(case: str, job: Job, image: Volume) -> np.ndarray:
        asked.append((case, job))
        return mask(image)

    return Contender(name, name, {1: "foreground"}, {c.id: name for c in cases}, judge), asked


def without_seconds(scores: Scores) -> dict[Any, Any]:
    return {key: score._replace(seconds=0) for key, score in scores.items()}


def report_of(contenders: Sequence[Contender], cases: Sequence[Case], scores: Scores) -> dict[str, Any]:
    told = {"data": "blobs", "quick": True, "seeds": 1, "versions": {"mednca": "0"}}
    return card(contenders, cases, JOBS, scores, told)


# ---- Measuring ----


def test_every_case_and_job_has_one_line_and_the_file_gives_back_what_was_measured(
    data: Path, tmp_path: Path
) -> None:
    cases = cases_of(data)
    one, asked = stub(cases)
    path = tmp_path / "report" / "scores.jsonl"
    scores = measure([one], cases, JOBS, path)
    assert len(path.read_text().splitlines()) == len(scores) == len(asked) == len(cases) * len(JOBS)
    assert read_scores(path) == scores
    for case in cases:
        assert scores[one.key(case.id, Job(CLEAN, 0.0, 0))].dice == 1
        assert scores[one.key(case.id, Job("scale", 2.0, 0))].dice > 0.9  # on the perturbed grid
        assert scores[one.key(case.id, Job("translation", 0.5, 0))].kept < 1


def test_a_stopped_measurement_goes_on_and_gives_the_same_report(data: Path, tmp_path: Path) -> None:
    cases = cases_of(data)
    one, _ = stub(cases)
    whole = measure([one], cases, JOBS, tmp_path / "whole.jsonl")
    path = tmp_path / "stopped.jsonl"

    def stop(items: Sequence[Any]) -> Iterable[Any]:
        yield from items[:17]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([one], cases, JOBS, path, progress=stop)
    with path.open("a") as file:  # the stop came in the middle of a line
        file.write('{"case": "scan_3", "perturba')
    again, asked = stub(cases)
    scores = measure([again], cases, JOBS, path)
    assert len(asked) == len(whole) - 17
    assert without_seconds(scores) == without_seconds(whole)
    assert without_seconds(read_scores(path)) == without_seconds(whole)
    assert report_of([again], cases, scores) == report_of([one], cases, whole)


def test_scores_do_not_depend_on_the_order_of_cases_or_jobs(data: Path, tmp_path: Path) -> None:
    cases = cases_of(data)
    one, _ = stub(cases)
    first = measure([one], cases, JOBS, tmp_path / "a.jsonl")
    second = measure([one], cases[::-1], JOBS[::-1], tmp_path / "b.jsonl")
    assert without_seconds(first) == without_seconds(second)
    assert report_of([one], cases, first) == report_of([one], cases[::-1], second)


def test_two_contenders_see_the_same_perturbed_image_and_one_may_come_later(
    data: Path, tmp_path: Path
) -> None:
    cases = cases_of(data)[:2]
    seen: dict[str, list[bytes]] = {"a": [], "b": []}

    def eye(name: str) -> Contender:
        def mask(image: Volume) -> np.ndarray:
            seen[name].append(image.data.tobytes())
            return half(image)

        return stub(cases, name, mask)[0]

    a, b = eye("a"), eye("b")
    measure([a], cases, JOBS, tmp_path / "scores.jsonl")
    scores = measure([a, b], cases, JOBS, tmp_path / "scores.jsonl")
    assert seen["a"] == seen["b"] and len(seen["a"]) == 2 * len(JOBS)
    assert len(scores) == 4 * len(JOBS)


def test_a_damaged_line_is_named_and_an_unknown_label_value_refused(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"case": "a"}\n')
    with pytest.raises(InputError, match=r"scores\.jsonl, line 1: is no score"):
        read_scores(path)
    cases = cases_of(data)
    one = replace(stub(cases)[0], labels={2: "tail", 3: "head"})
    with pytest.raises(InputError, match=r"case scan_1: its label holds the values \[1\], stub knows"):
        measure([one], cases, JOBS, tmp_path / "other.jsonl")


def test_cases_are_drawn_by_the_seed_whatever_their_order(data: Path) -> None:
    cases = cases_of(data)
    chosen = draw_cases(cases, 3, seed=0)
    assert len(chosen) == 3
    assert set(draw_cases(cases[::-1], 3, seed=0)) == set(chosen)
    assert {draw_cases(cases, 3, seed=seed) for seed in range(20)} != {chosen}
    assert draw_cases(cases, 40, seed=0) == cases


# ---- The numbers of the report ----


def test_statistics_are_those_of_the_scores() -> None:
    cases = [Case(name, (), None, name[0]) for name in ("a1", "a2", "b1", "b2")]
    model, other = stub(cases, "m")[0], stub(cases, "o")[0]
    jobs = [Job(CLEAN, 0.0, 0), *(Job("translation", s, seed) for s in (0.1, 0.5) for seed in (0, 1))]
    scores: Scores = {}
    for at, case in enumerate(cases):
        clean = 0.9 - 0.1 * at
        scores[model.key(case.id, jobs[0])] = Score(clean, 1, 0)
        scores[other.key(case.id, jobs[0])] = Score(clean - 0.2, 1, 0)
        for job in jobs[1:]:
            lost = {0.1: 0.02, 0.5: 0.3}[job.severity] + (0.01 if job.seed else -0.01)
            kept = 1.0 if at < 2 or job.severity == 0.1 else 0.4
            scores[model.key(case.id, job)] = Score(clean - lost - (0.1 if kept < 1 else 0), kept, 0)
            scores[other.key(case.id, job)] = Score(0.0, kept, 0)
    told = {"data": "d", "quick": False, "seeds": 2, "versions": {}}
    report = card([model, other], cases, jobs, scores, told)
    assert (report["cases"], report["persons"]) == (4, 2)
    assert report["models"][0]["clean"]["mean"] == pytest.approx(0.75)
    assert report["difference_clean"]["mean"] == pytest.approx(0.2)
    one = report["perturbations"]["translation"]
    mild, severe = one["severities"]
    assert mild["models"][0]["change"]["mean"] == pytest.approx(-0.02)
    assert mild["models"][0]["change"]["ci95"] == pytest.approx([-0.02, -0.02])
    assert "change_in_view" not in mild["models"][0] and mild["in_view"] == 4
    assert severe["models"][0]["change"]["mean"] == pytest.approx(-0.35)
    assert severe["models"][0]["change_in_view"]["mean"] == pytest.approx(-0.3)
    assert severe["in_view"] == 2 and severe["kept"] == pytest.approx(0.7)
    assert severe["models"][0]["worst_case"] == "b2" and severe["models"][0]["min"] == pytest.approx(0.2)
    assert severe["difference"]["mean"] == pytest.approx(0.4)
    assert one["worst"][0] == 0.5
    area = (0.1 * (0.75 + 0.73) / 2 + 0.4 * (0.73 + 0.40) / 2) / 0.5
    assert one["area"][0]["mean"] == pytest.approx(area, abs=1e-5)
    assert one["area"][1]["mean"] == pytest.approx(0.1 * 0.55 / 2 / 0.5, abs=1e-5)
    text = summary(report)
    assert "| Translation | 0.1 to 0.5 |" in text and "-35.0 (-40.0 to -30.0)" in text


# ---- What is judged ----


def make(file: ModelFile) -> Predictor:
    return RealPredictor(file, engine="numpy")


def write_run(folder: Path, model: ModelFile, training: list[str], validation: list[str]) -> Path:
    """A run folder as far as it is read here."""
    folder.mkdir(parents=True)
    save_model(folder / "model.safetensors", model)
    split = {"training": training, "validation": validation}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def another() -> ModelFile:
    model = tiny_model()
    return replace(model, weights={name: array * 0.9 for name, array in model.weights.items()})


def test_a_run_is_judged_on_its_validation_cases_and_a_file_on_what_it_has_not_seen(
    data: Path, tmp_path: Path
) -> None:
    cases = cases_of(data)
    ids = [case.id for case in cases]
    run = write_run(tmp_path / "run", tiny_model(), ids[:3], ids[4:])
    assert list(open_model(run, cases, make).hashes) == ids[4:]
    every = open_model(run, cases, make, all_cases=True)
    assert list(every.hashes) == ids and "trained on 3 of these 6 cases" in every.notes[0]
    save_model(tmp_path / "seen.safetensors", tiny_model(card={"training_cases": ids[:5]}))
    seen = open_model(tmp_path / "seen.safetensors", cases, make)
    assert list(seen.hashes) == ids[5:] and "5 cases" in seen.notes[0]
    save_model(tmp_path / "all.safetensors", tiny_model(card={"training_cases": ids}))
    with pytest.raises(InputError, match=r"trained on all 6 cases.*--all-cases"):
        open_model(tmp_path / "all.safetensors", cases, make)


def test_each_case_is_judged_by_the_fold_that_has_not_seen_it(data: Path, tmp_path: Path) -> None:
    cases = cases_of(data)
    ids = [case.id for case in cases]
    first, second = tiny_model(), another()
    write_run(tmp_path / "cv" / "fold_0", first, ids[3:], ids[:3])
    write_run(tmp_path / "cv" / "fold_1", second, ids[:3], ids[3:5])
    one = open_model(tmp_path / "cv", cases, make)
    assert one.hashes == dict.fromkeys(ids[:3], first.hash) | dict.fromkeys(ids[3:5], second.hash)
    assert one.folds == dict.fromkeys(ids[:3], "fold_0") | dict.fromkeys(ids[3:5], "fold_1")
    assert any("1 cases of the data are held out in no fold" in note for note in one.notes)
    assert open_model(tmp_path / "cv", cases[:2], make).hash == one.hash
    image = load_scan(cases[3]).image
    got = one.mask(ids[3], JOBS[0], image)
    assert np.array_equal(got, make(second).predict(image).mask.data[0])
    assert not np.array_equal(got, make(first).predict(image).mask.data[0])
    with pytest.raises(InputError, match="--all-cases is for a single model"):
        open_model(tmp_path / "cv", cases, make, all_cases=True)
    write_run(tmp_path / "cv" / "fold_2", second, [], ids[:1])
    with pytest.raises(InputError, match="case scan_1 is held out in fold_0 and fold_2"):
        open_model(tmp_path / "cv", cases, make)


def test_two_models_are_judged_on_the_cases_that_both_hold_out(data: Path) -> None:
    cases = cases_of(data)
    a, b = stub(cases[:4])[0], stub(cases[2:], "b")[0]
    assert together([a, b], cases) == cases[2:4]
    with pytest.raises(InputError, match="stub and b: no case is held out for both"):
        together([a, stub(cases[4:], "b")[0]], cases)


def test_an_exported_model_gives_the_masks_of_the_model(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for at, model in enumerate((tiny_model(context=1, axes=(2, 0)), tiny_model(classes=2))):
        save_model(tmp_path / f"{at}.safetensors", model)
        export(tmp_path / f"{at}.safetensors", "onnx", tmp_path / f"onnx{at}")
        cases = cases_of(data)[:1]
        one = open_model(tmp_path / f"onnx{at}", cases, make)
        assert one.hash == f"onnx-{model.hash}" and one.labels == make(model).labels
        image = load_scan(cases[0]).image
        ours, theirs = make(model).predict(image).mask.data[0], one.mask(cases[0].id, JOBS[0], image)
        assert 0 < np.count_nonzero(ours) < ours.size
        assert np.mean(ours == theirs) > 0.999  # a sum in another order may turn a voxel at the threshold
    (tmp_path / "onnx0" / "level_1.onnx").unlink()
    with pytest.raises(InputError, match=r"onnx0: is no model exported by mednca"):
        open_model(tmp_path / "onnx0", cases, make)


def test_a_case_is_read_once_while_its_jobs_follow_one_another(data: Path) -> None:
    todo = [(case, job) for case in cases_of(data)[:2] for job in JOBS[:3]]
    read: list[str] = []

    def counted(case: Case) -> LabelledScan:
        read.append(case.id)
        return load_scan(case)

    found = [(case, job) for case, job, _ in perturbed_cases(todo, read=counted)]
    assert found == [(case.id, job) for case, job in todo] and read == ["scan_1", "scan_2"]


def test_images_are_written_for_other_programs_and_their_masks_judged(data: Path, tmp_path: Path) -> None:
    cases = cases_of(data)[:2]
    index = write_images(cases, JOBS, tmp_path / "images", folds={"scan_1": "fold_3"})
    told = json.loads(index.read_text())
    assert len(told["files"]) == 2 * len(JOBS)
    name = "scan_1__translation__0.5__0"
    entry = told["files"][name]
    assert entry["fold"] == "fold_3" and entry["severity"] == 0.5 and 0 < entry["kept"] < 1
    assert (tmp_path / "images" / "imagesTs" / f"{name}_0000.nii.gz").is_file()
    masks = tmp_path / "images" / "labelsTs"
    one = open_masks(masks, cases, JOBS)
    scores = measure([one], cases, JOBS, tmp_path / "scores.jsonl")
    assert all(score.dice == 1 for score in scores.values())
    (masks / f"{name}.nii.gz").rename(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(InputError, match=rf"has no mask of 1 of {2 * len(JOBS)} images, as {name}"):
        open_masks(masks, cases, JOBS)
    write_nifti(masks / f"{name}.nii.gz", np.zeros((3, 3, 3), np.uint8))
    changed = open_masks(masks, cases, JOBS)
    assert changed.hash != one.hash
    with pytest.raises(InputError, match="must lie on the grid of its image"):
        measure([changed], cases, JOBS, tmp_path / "scores.jsonl")


# ---- The folder of a report ----


def test_a_report_is_gone_on_with_only_for_the_same_model_and_data(data: Path, tmp_path: Path) -> None:
    found = find_cases(data)
    a, b = stub(found.cases, "a")[0], stub(found.cases, "b")[0]
    folder = tmp_path / "report"
    setting = describe(found, [a])
    path = open_report(folder, setting)
    path.write_text("")
    assert open_report(folder, setting) == path
    both = describe(found, [a, b])
    open_report(folder, both)  # a baseline may come later
    open_report(folder, setting)  # and stays known when it is left out
    assert json.loads((folder / "setting.json").read_text())["baseline"]["name"] == "b"
    for what, other in (
        ("model", describe(found, [b])),
        ("baseline", describe(found, [a, stub(found.cases, "c")[0]])),
        ("data", describe(replace(found, cases=found.cases[:3]), [a])),
    ):
        with pytest.raises(InputError, match=rf"report with another {what} .*--force"):
            open_report(folder, other)
        assert path.is_file()
    open_report(folder, describe(found, [b]), force=True)
    assert not path.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="mine: is not empty and no report"):
            open_report(tmp_path / "mine", setting, force=force)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


# ---- The command ----


def status_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["robustness", *words])
    return int(end.value.code or 0)


def test_the_command_writes_a_card_that_a_second_call_leaves_as_it_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "a.safetensors", tiny_model())
    save_model(tmp_path / "b.safetensors", another())
    out = tmp_path / "report"
    words = [str(tmp_path / "a.safetensors"), str(data), "-o", str(out), "--quick", "--quiet"]
    words += ["--only", "noise,crop", "--baseline", str(tmp_path / "b.safetensors"), "--engine", "numpy"]
    assert status_of(*words) == 0
    shown = capsys.readouterr().out
    assert shown == (out / "summary.md").read_text() and "| Noise |" in shown
    names = ("index.html", "summary.md", "report.json", "scores.jsonl", "setting.json")
    before = {name: (out / name).read_bytes() for name in names}
    page = before["index.html"].decode()
    assert page.count('src="data:image/png;base64,') == 3  # curves, and a case under each perturbation
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained
    report = json.loads(before["report.json"])
    assert list(report["perturbations"]) == ["crop", "noise"] and report["cases"] == 6
    assert report["provenance"]["versions"]["torchio"]
    monkeypatch.setattr("mednca.robustness.page.strips", lambda *_: {})
    assert status_of(*words) == 0
    assert {name: (out / name).read_bytes() for name in names[1:]} == {n: before[n] for n in names[1:]}


def test_mistakes_are_one_line_that_says_what_to_do(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = str(tmp_path / "a.safetensors"), ["-o", str(tmp_path / "report"), "--quiet"]
    save_model(tmp_path / "a.safetensors", tiny_model())
    (tmp_path / "empty").mkdir()
    write_nifti(tmp_path / "bare" / "images" / "a.nii.gz", blob(0)[0])
    for words, told in (
        ([model, str(data), "--only", "smoke"], "there is no perturbation 'smoke'; known are scale, "),
        ([model, str(data), "--only", ","], "--only must name at least one perturbation"),
        ([model, str(data), "--seeds", "0"], "seeds must be at least 1, got 0"),
        ([model, str(tmp_path / "empty")], "no image in"),
        ([model, str(tmp_path / "bare")], "labels are needed, got none"),
        ([model, str(data), "--baseline", model, "--masks", "x"], "give one"),
        ([model, str(data), "--masks", str(tmp_path / "nowhere")], "expected a folder of masks"),
        (["nobody", str(data)], "no such model"),
    ):
        assert status_of(*words, *out) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
    monkeypatch.setitem(__import__("sys").modules, "torchio", None)
    assert status_of(model, str(data), *out) == 2
    assert "pip install 'mednca[robustness]'" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


# ---- The figures of the paper ----


@pytest.mark.parametrize("script", [fig5, fig6])
def test_a_figure_without_a_card_says_so_in_every_cell(script: Any, tmp_path: Path) -> None:
    assert script.main(["--results", str(tmp_path)]) == 0
    text = (tmp_path / f"{script.FIGURE.name}.md").read_text()
    assert text.count("not run: ") >= 2 * len(script.FIGURE.panels)
    for panel in script.FIGURE.panels:
        assert panel.paper in text
    assert (tmp_path / f"{script.FIGURE.name}.svg").is_file()


@pytest.fixture
def folds(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Runs of two folds of the first card's experiment: fold -> its held-out cases."""
    split = stored_folds.Split("blobs", "data", "by person", "pairs")
    ids = [case.id for case in cases_of(data)]
    held_out = {"fold_0": tuple(ids[:4]), "fold_1": tuple(ids[4:])}
    found = stored_folds.Folds(split, held_out, (), {case.id: str(case.group) for case in cases_of(data)})
    monkeypatch.setattr(cards, "load", lambda _: found)
    monkeypatch.setattr("reproduce.runs.load", lambda _: found)
    monkeypatch.setattr("reproduce.runs.MODELS", tmp_path / "models")
    for at, fold in enumerate(held_out):
        path = tmp_path / "runs" / CARDS[0] / "seed_0" / fold
        training = [case for case in ids if case not in held_out[fold]]
        write_run(path, (tiny_model(), another())[at], training, list(held_out[fold]))
        (path / "report.json").write_text("{}")
        (path / "config.json").write_text("{}")
    return held_out


def test_a_card_is_measured_out_of_fold_stored_and_drawn_again(
    folds: dict[str, tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--runs", str(tmp_path / "runs"), "--quick"]
    assert cards.main(words) == 0
    where = tmp_path / "runs" / "quick" / "results"
    card_ = json.loads((where / "cards" / f"{CARDS[0]}.json").read_text())
    assert card_["mode"] == "quick" and card_["report"]["cases"] == 4  # two of each fold
    assert card_["missing"] == [] and not (where / "cards" / f"{CARDS[1]}.json").exists()
    first = card_["cases"][folds["fold_1"][0]]
    assert first["fold"] == "fold_1" and {"clean 0", "noise 0.2", "ghosting 2.5"} <= first["dice"].keys()
    mean = np.mean([row["dice"]["noise 0.2"] for row in card_["cases"].values()])
    rows = card_["report"]["perturbations"]["noise"]["severities"]
    assert rows[-1]["models"][0]["mean"] == pytest.approx(mean, abs=1e-5)
    drawn = (where / "cards.md").read_text()
    assert "QUICK MODE" in drawn and "not run: " in drawn and (where / "cards.png").is_file()
    assert cards.main(["--draw", "--quick", "--runs", str(tmp_path / "runs")]) == 0
    assert (where / "cards.md").read_text() == drawn
    assert fig6.main(["--quick", "--runs", str(tmp_path / "runs")]) == 0
    assert "U-Net, robust | not run: " in (where / "fig6.md").read_text()
    capsys.readouterr()
    assert cards.main(["--draw", "--results", str(where)]) == 2
    assert "is a result of quick mode" in capsys.readouterr().err
    assert cards.main([str(tmp_path), "--runs", str(tmp_path / "none"), "--only", CARDS[0]]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_what_is_kept_of_the_folds_is_judged_as_the_runs_are(
    folds: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    (experiment,) = find_experiments([CARDS[0]])
    runs, none = tmp_path / "runs", tmp_path / "none"
    assert fold_models(experiment, none) == {}
    kept = keep(experiment, runs)
    assert [path.name for path in kept] == list(folds)
    assert fold_models(experiment, none) == dict(zip(folds, kept, strict=True))
    assert set(fold_models(experiment, runs).values()).isdisjoint(kept)  # the runs come first
    found = [cards.measure(CARDS[0], tmp_path, where, quick=True) for where in (runs, none)]
    assert found[0] and found[1] and found[0]["cases"] == found[1]["cases"]


def test_a_card_of_fewer_cases_replaces_none(folds: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    whole = cards.measure(CARDS[0], tmp_path, tmp_path / "runs", quick=True)
    assert whole
    stored_cards.write_card(whole, tmp_path)
    fewer = {**whole, "cases": dict(list(whole["cases"].items())[1:])}
    with pytest.raises(InputError, match="the stored card has 1 cases more"):
        stored_cards.write_card(fewer, tmp_path)
    assert stored_cards.read_card(CARDS[0], tmp_path, quick=True) == whole
    assert stored_cards.difference(whole, whole, "noise 0.2")["mean"] == 0
    worse = {
        case: row | {"dice": {"noise 0.2": at / 10}} for at, (case, row) in enumerate(fewer["cases"].items())
    }
    apart = stored_cards.difference(whole, {**whole, "cases": worse}, "noise 0.2")
    lost = [whole["cases"][case]["dice"]["noise 0.2"] - at / 10 for at, case in enumerate(worse)]
    assert apart["mean"] == pytest.approx(np.mean(lost), abs=1e-5) and apart["n"] == 3


@pytest.mark.parametrize(
    ("lost", "mean", "met"),
    [((-0.009, -0.02), 0.8, False), ((-0.009, 0.03), 0.8, True), ((-0.011, 0), 0.8, False)],
)
def test_a_claim_is_met_by_the_worst_of_its_severities(
    lost: tuple[float, float], mean: float, met: bool
) -> None:
    rows = [
        {"severity": s, "in_view": 9, "models": [{"mean": mean, "n": 9, "change": change(value)}]}
        for s, value in ((4, lost[0]), (6, lost[1]), (8, -0.5))
    ]
    card_ = {"report": {"perturbations": {"anisotropy": {"severities": rows}}}}
    claim = claims.Claim("anisotropy", (4, 6), limit=1)
    severity, _, worst = claims.worst(card_, claim)
    assert severity == (4 if lost[0] < lost[1] else 6) and worst["mean"] == min(lost)
    assert claims.met(claim, "x", {"x": card_}) == met


@pytest.mark.parametrize(
    ("mean", "baseline", "met"),
    [(0.76, 0.76, True), (0.5, None, False), (0.5, 0.37, True), (0.5, 0.39, False)],
)
def test_ghosts_are_borne_in_absolute_terms_or_better_than_by_the_unet(
    mean: float, baseline: float | None, met: bool
) -> None:
    claim = next(claim for claim in claims.CLAIMS if claim.perturbation == "ghosting")
    found = {name: flat(dice) for name, dice in zip(CARDS, (mean, baseline), strict=True) if dice is not None}
    assert claims.met(claim, CARDS[0], found) == met
    if baseline is not None:
        assert claims.met(claim, CARDS[1], found) == (baseline > 0.75)


def flat(dice: float) -> dict[str, Any]:
    """A Dice -> a card of two persons who have it under the worst ghosts."""
    row = {"severity": 2.5, "in_view": 2, "models": [{"mean": dice, "n": 2, "change": change(dice - 0.9)}]}
    return {
        "report": {"perturbations": {"ghosting": {"severities": [row]}}},
        "cases": {name: {"group": name, "fold": "fold_0", "dice": {"ghosting 2.5": dice}} for name in "ab"},
    }


def change(mean: float) -> dict[str, Any]:
    """Mean of a difference -> what a report says of it."""
    return {"mean": mean, "ci95": [mean, mean], "min": mean, "n": 9}


def test_coarser_voxels_leave_less_of_a_label_and_those_of_its_own_steps_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fine = (rng.random((24, 24, 24)) < 0.5).astype(np.uint8)
    blocks = np.kron(rng.random((3, 3, 3)) < 0.5, np.ones((8, 8, 8))).astype(np.uint8)
    for name, label in (("fine", fine), ("blocks", blocks)):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", label.astype(np.float32))
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label)
    knows: Any = SimpleNamespace(predict=lambda image: SimpleNamespace(mask=image))  # images are the labels
    told = {case.id: anisotropy.kept(case, knows) for case in find_cases(tmp_path).cases}
    found = {case: one["label"] for case, one in told.items()}
    assert list(found["fine"]) == [f"{one:g}" for one in find(["anisotropy"])[0].severities]
    assert all(found["blocks"][factor] == 1 for factor in ("2", "4", "8"))  # blocks of 8 voxels
    assert sorted(found["fine"].values(), reverse=True) == list(found["fine"].values())
    assert 0.5 < found["fine"]["8"] < found["fine"]["2"] < 0.8
    assert all(one["clean"] == 1 and one["own"] == one["shape"] for one in told.values())
    means = anisotropy.summary(list(told.values()))
    assert means["label"]["8"] == pytest.approx((found["fine"]["8"] + 1) / 2, abs=1e-5)


def test_the_border_between_coarse_voxels_is_drawn_on_smoothly() -> None:
    ball = sum((np.indices((30, 30, 30)) - 14.5) ** 2) < 100
    away = anisotropy.distances(ball)
    assert np.array_equal(away > 0, ball) and away.max() == pytest.approx(9.5, abs=1)
    assert away[0, 14, 14] == pytest.approx(-4.5, abs=1)


def test_a_fold_that_is_still_trained_is_not_judged(tmp_path: Path) -> None:
    """It has a model and a checkpoint; a finished one has a report too, one that was stored neither."""
    for name, files in (
        ("fold_0", ("checkpoint.safetensors", "report.json")),
        ("fold_1", ("checkpoint.safetensors",)),
        ("fold_2", ()),
    ):
        (tmp_path / name).mkdir()
        for file in ("model.safetensors", *files):
            (tmp_path / name / file).touch()
    assert list(fold_runs(tmp_path)) == ["fold_0", "fold_2"]
