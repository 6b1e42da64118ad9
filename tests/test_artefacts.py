"""Copies of training scans with artefacts: repeatable, with the label where the organ is, and a training with
them that goes on where it stopped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_training import config, slices, write_cases

from mednca import artefacts
from mednca.artefacts import ARTEFACTS, copies, severity
from mednca.augment import TrainingCase, sample_batch
from mednca.cases import CaseSet
from mednca.checkpoint import RunFolder
from mednca.config import AugmentConfig, RunConfig, from_dict, to_dict
from mednca.dataset import LabelledScan, load_scans, training_cases
from mednca.errors import InputError
from mednca.learner import Learner
from mednca.perturb import Perturbation, Perturbed, find, perturb
from mednca.train import train, with_artefacts
from mednca.volume import Volume

pytest.importorskip("torchio", reason="needs pip install 'mednca[robustness]'")
# TensorBoard's event writer warns of its own dependencies' ways.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

#: A scanner's and a patient's; dark for bright is another modality.
NAMES = ["ghosting", "anisotropy", "bias_field", "noise", "motion", "spike", "blur", "gamma"]
NOTHING = AugmentConfig((), 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> CaseSet:
    """Six scans of three persons."""
    return write_cases(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def scans(cases: CaseSet) -> list[LabelledScan]:
    return load_scans(cases.cases)


# ---- Copies ----


def test_a_copy_is_a_function_of_case_number_and_seed(scans: list[LabelledScan]) -> None:
    one, other = scans[:2]
    first = [copy.image.data for copy in copies(one, 3, 7)]
    list(copies(other, 2, 7))
    again = list(copies(one, 2, 7))  # fewer of them, and after others
    for before, after in zip(first, again, strict=False):
        assert np.array_equal(before, after.image.data)
    changed = [
        first[1],
        next(copies(one, 1, 8)).image.data,
        next(copies(replace(one, case=other.case), 1, 7)).image.data,
    ]
    for image in changed:
        assert image.shape != first[0].shape or not np.array_equal(image, first[0])


def test_the_label_moves_with_the_view_and_the_scan_stays_as_it_was(
    scans: list[LabelledScan], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scans[0]
    before, label = one.image.data.copy(), one.label.data.copy()
    found = list(copies(one, 40, 0))
    whole = [copy for copy in found if copy.label is one.label]
    assert 12 <= len(whole) <= 28  # half of them
    for copy in found:
        assert copy.id == one.id and np.isfinite(copy.image.data).all()
        assert copy.image.data.shape[1:] == copy.label.data.shape[1:]
        assert np.array_equal(copy.image.affine, copy.label.affine)
    for copy in whole:
        assert copy.image.data.shape == before.shape and not np.array_equal(copy.image.data, before)
    assert np.array_equal(one.image.data, before) and np.array_equal(one.label.data, label)
    # Without the artefacts: bright where the label is, as in the scan itself.
    monkeypatch.setattr(
        artefacts,
        "severity",
        lambda one, random: one.neutral + (0.2 if one.kind == "geometry" else 0.0),
    )
    contrasts = [
        float(copy.image.data[copy.label.data > 0].mean() - copy.image.data[copy.label.data == 0].mean())
        for copy in copies(one, 40, 0)
        if (copy.label.data > 0).any()
    ]
    assert len(contrasts) > 30 and min(contrasts) > 0


def test_without_other_views_copies_have_the_same_artefacts_on_the_view_of_the_scan(
    scans: list[LabelledScan],
) -> None:
    one = scans[0]
    pairs = list(zip(copies(one, 20, 0), copies(one, 20, 0, other_views=False), strict=True))
    assert all(beside.label is one.label for _, beside in pairs)
    same = [np.array_equal(copy.image.data, beside.image.data) for copy, beside in pairs]
    assert same == [copy.label is one.label for copy, _ in pairs]
    assert 4 <= sum(same) <= 16


def test_a_model_of_a_part_of_the_scan_is_shown_no_other_view(scans: list[LabelledScan]) -> None:
    """Nor is its organ taken out of that part."""
    run = replace(config(), augment=AugmentConfig(artefacts=0.5, copies=12))
    inside = replace(run, preprocess=replace(run.preprocess, roi=(0.0, 1.0, 0.0, 1.0, 0.0, 1.0)))
    for settings, moved in ((run, True), (inside, False)):
        label = training_cases(scans[0], settings)[0].label
        found = with_artefacts(scans[:1], settings, progress=False)
        assert any(not np.array_equal(case.label, label) for case in found) == moved


def test_copies_have_one_or_two_artefacts_of_any_kind_and_half_of_them_another_view(
    scans: list[LabelledScan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[str, str]]] = []
    views: list[str] = []
    strengths: dict[int, list[float]] = {3: [], 4: []}

    def noted(
        one: Perturbation, image: Volume, label: Volume, strength: float, *, case: str, seed: int
    ) -> Perturbed:
        if one.kind == "geometry":
            views.append(one.name)
            return Perturbed(image, label, 1.0)
        asked[-1].append((one.name, case))
        strengths[seed].append(strength)
        assert min(*one.severities, one.neutral) <= strength <= max(*one.severities, one.neutral)
        return Perturbed(image, label, 1.0)

    monkeypatch.setattr(artefacts, "perturb", noted)
    for scan in scans:
        asked.append([])
        for _ in copies(scan, 100, 3):
            asked.append([])
        asked.pop()
    assert [one.name for one in ARTEFACTS] == NAMES
    assert {name for of_copy in asked for name, _ in of_copy} == set(NAMES)
    assert set(views) == {"crop", "translation", "translation_edge"}
    assert len(views) / len(asked) == pytest.approx(0.5, abs=0.06)
    first = [of_copy[0][0] for of_copy in asked]
    assert first.count("ghosting") / len(first) == pytest.approx(0.2, abs=0.05)  # twice as often
    assert first.count("noise") / len(first) == pytest.approx(0.1, abs=0.04)
    counts = [len(of_copy) for of_copy in asked]
    assert set(counts) == {1, 2} and counts.count(2) / len(counts) == pytest.approx(0.3, abs=0.06)
    assert all(len({name for name, _ in of_copy}) == len(of_copy) for of_copy in asked)
    assert len({case for of_copy in asked for _, case in of_copy}) == 600  # each copy has its own draw
    other = len(list(copies(scans[0], 100, 4)))
    assert not set(strengths[4]) & set(strengths[3]) and len(strengths[4]) >= other


@pytest.mark.parametrize("name", NAMES)
def test_severities_lie_evenly_from_nothing_to_the_worst_on_each_side(name: str) -> None:
    (one,) = find([name])
    random = np.random.default_rng(0)
    places = np.array([one.position(severity(one, random)) for _ in range(4000)]) - one.position(one.neutral)
    worst = one.position(one.severities[-1]) - one.position(one.neutral)
    assert places.max() <= worst and places.max() > 0.99 * worst
    if name == "gamma":  # brighter and darker
        assert places.min() >= -worst and places.min() < -0.99 * worst
        assert np.mean(places < 0) == pytest.approx(0.5, abs=0.03)
    else:
        assert places.min() >= 0
    shares = np.histogram(np.abs(places) / worst, 4, (0, 1))[0] / len(places)
    assert shares == pytest.approx(np.full(4, 0.25), abs=0.03)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 1e-9, 1e-6, 1 - 1e-12])
def test_every_severity_that_may_be_drawn_can_be_made(name: str, share: float) -> None:
    (one,) = find([name])

    class Fixed:
        def integers(self, count: int) -> int:
            return 0

        def random(self) -> float:
            return share

    strength = severity(one, Fixed())  # type: ignore[arg-type]
    image = Volume(np.random.default_rng(0).random((1, 9, 8, 5)).astype(np.float32), np.eye(4))
    label = Volume(np.zeros((1, 9, 8, 5), np.uint8), np.eye(4))
    found = perturb(one, image, label, strength, case="a")
    assert found.image.shape == image.shape and np.isfinite(found.image.data).all()


# ---- Batches ----


def constant(value: float) -> TrainingCase:
    return TrainingCase("x", np.full((2, 1, 8, 8), value, np.float32), np.ones((2, 8, 8), np.uint8))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_about_the_share_asked_for_comes_from_copies(share: float) -> None:
    run = replace(config(batch_size=500), augment=replace(NOTHING, artefacts=share))
    batch = sample_batch([constant(0.25)], run, (8, 8), np.random.default_rng(0), [constant(0.75)] * 3)
    assert set(batch.image.unique().tolist()) <= {0.25, 0.75}
    assert (batch.image[:, 0, 0, 0] == 0.75).float().mean().item() == pytest.approx(share, abs=0.05)


def test_without_artefacts_a_batch_is_what_it_always_was() -> None:
    """No number is drawn for them, so that trainings that had none can be repeated: the first one picks the
    case."""
    many = [constant(value) for value in np.linspace(0, 1, 50)]
    for seed in range(20):
        run = replace(config(batch_size=1), augment=NOTHING)
        batches = [
            sample_batch(many, run, (8, 8), np.random.default_rng(seed)),
            sample_batch(many, run, (8, 8), np.random.default_rng(seed), [constant(2.0)]),
        ]
        wanted = many[int(np.random.default_rng(seed).integers(50))].image[0, 0, 0, 0]
        for batch in batches:
            assert batch.image[0, 0, 0, 0].item() == pytest.approx(wanted)
    generators = [np.random.default_rng(5) for _ in range(3)]
    several = replace(config(), augment=AugmentConfig())
    with_share = replace(several, augment=AugmentConfig(artefacts=0.5))
    sample_batch([slices(0)], several, (16, 16), generators[0])
    sample_batch([slices(0)], with_share, (16, 16), generators[1])  # there are no copies
    sample_batch([slices(0)], several, (16, 16), generators[2], [slices(1)])
    assert len({generator.random() for generator in generators}) == 1


def test_artefacts_are_stored_only_where_there_are_some_and_are_a_share() -> None:
    assert "artefacts" not in to_dict(AugmentConfig(), complete=False)
    stored = to_dict(AugmentConfig(artefacts=0.5, copies=2), complete=False)
    assert from_dict(AugmentConfig, stored, "x") == AugmentConfig(artefacts=0.5, copies=2)
    for wrong in ({"artefacts": 1.1}, {"artefacts": -0.1}, {"copies": 0}):
        with pytest.raises(ValueError, match="artefacts"):
            AugmentConfig(**wrong)  # type: ignore[arg-type]


# ---- Training ----


def with_some(data: Any = None) -> RunConfig:
    """Fingerprint -> a small training, half of whose slices have artefacts."""
    run = config(iterations=8, validate_every=0, checkpoint_every=3)
    return replace(run, augment=replace(run.augment, artefacts=0.5, copies=2))


def start(cases: CaseSet, out: Path, **options: Any) -> RunFolder:
    train(cases, out, with_some, engine="eager", progress=False, **options)
    return RunFolder(out)


def test_copies_are_seen_as_the_model_sees_scans(scans: list[LabelledScan]) -> None:
    run = with_some()
    run = replace(run, preprocess=replace(run.preprocess, axes=(2, 0)))
    found = with_artefacts(scans[:2], run, progress=False)
    wanted = [
        case
        for scan in scans[:2]
        for copy in copies(scan, 2, run.train.seed)
        for case in training_cases(copy, run)
    ]
    assert len(found) == len(wanted) == 2 * 2 * 2
    for case, expected in zip(found, wanted, strict=True):
        assert (case.id, case.axis) == (expected.id, expected.axis)
        assert np.array_equal(case.image, expected.image) and np.array_equal(case.label, expected.label)


def test_a_resumed_training_with_artefacts_gives_the_weights_of_an_uninterrupted_one(
    cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for kill -9."""

    whole, out, step = start(cases, tmp_path / "whole" / "run"), tmp_path / "killed" / "run", Learner.step

    def until(self: Learner, batch: Any, iteration: int, *rest: Any) -> Any:
        if iteration == 5:
            raise Killed
        return step(self, batch, iteration, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Learner, "step", until)
        start(cases, out)
    assert RunFolder(out).load() is not None
    assert start(cases, out, resume=True).model.read_bytes() == whole.model.read_bytes()
    plain = tmp_path / "plain" / "run"
    train(
        cases,
        plain,
        lambda data: replace(with_some(), augment=config().augment),
        engine="eager",
        progress=False,
    )
    assert RunFolder(plain).metrics.read_bytes() != whole.metrics.read_bytes()  # they do matter


def test_a_missing_torchio_is_told_in_a_line_before_anything_is_made(
    cases: CaseSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchio", None)
    for options in ({}, {"folds": 3}):
        with pytest.raises(InputError, match=r"pip install 'mednca\[robustness\]'") as caught:
            start(cases, tmp_path / "run", **options)
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
