"""One model, one file: the same bytes for the same model, and one line for whatever is no model."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from small_training import model_file

import mednca.modelfile as modelfile
from mednca.config import BaselineConfig, RunConfig, TrainConfig, to_dict
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.modelfile import (
    ModelFile,
    find_model,
    load_model,
    save_model,
    to_bytes,
)
from mednca.nca import MedNCA
from mednca.recipes import Fingerprint, recipe
from mednca.rule import MedNCAConfig
from tests.small import FIELD


def write(path: Path, weights: dict[str, NDArray[Any]] | None = None, **header: Any) -> Path:
    """Weights and parts of the header that differ from a good file's -> a file with its own checks passed."""
    good = model_file()
    head = {"format": "mednca-model", "version": 1, "config": to_dict(good.config), "card": {}} | header
    path.write_bytes(
        safetensors.numpy.save(good.weights if weights is None else weights, {"mednca": json.dumps(head)})
    )
    return path


def refusal(path: Path) -> str:
    """Path -> the line that refuses it, which names it."""
    with pytest.raises(InputError) as caught:
        load_model(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path))
    return line


def test_a_model_comes_back_and_its_bytes_with_it(tmp_path: Path) -> None:
    model = model_file(name="blob", scores={"dice": 0.9})
    first = save_model(tmp_path / "a.safetensors", model)
    back = load_model(first)
    assert back.config == model.config and back.card == model.card and back.hash == model.hash
    assert all(np.array_equal(back.weights[name], array) for name, array in model.weights.items())
    assert save_model(tmp_path / "b.safetensors", back).read_bytes() == first.read_bytes()
    shuffled = replace(model, weights=dict(reversed(model.weights.items())))
    assert save_model(tmp_path / "c.safetensors", shuffled).read_bytes() == first.read_bytes()
    assert not list(tmp_path.glob(".part-*"))


def test_what_is_younger_than_the_format_changes_no_model_that_does_not_use_it(tmp_path: Path) -> None:
    weights = {"a": np.zeros(1, np.float32)}
    old = ModelFile(RunConfig(), weights)
    assert old.hash == "87fad5173d29e125"  # by the first release
    one_level = MedNCAConfig(scales=(1,), steps=(1,))
    network = RunConfig(model=one_level, baseline=BaselineConfig("unet"))
    in_half = replace(network, train=TrainConfig(precision="bfloat16"))
    models = [ModelFile(config, weights) for config in (RunConfig(model=one_level), network, in_half)]
    assert len({model.hash for model in [old, *models]}) == 4
    for model in models[1:]:
        assert load_model(save_model(tmp_path / "m.safetensors", model)).config == model.config
    shipped = find_model("hippocampus")
    assert to_bytes(load_model(shipped)) == shipped.read_bytes()


def test_the_hash_names_configuration_and_weights(tmp_path: Path) -> None:
    model = model_file()
    assert model.hash == model_file(name="another card").hash and len(model.hash) == 16
    weights = {name: array.copy() for name, array in model.weights.items()}
    weights["levels.1.update_out.weight"][0, 0] += 1e-6
    assert replace(model, weights=weights).hash != model.hash
    other = replace(model.config, predict=replace(model.config.predict, threshold=0.4))
    assert replace(model, config=other).hash != model.hash
    paper = recipe("paper_hippocampus", Fingerprint(1, (1.0, 1.0, 1.0), (35, 51, 36), {1: "x"}))
    whole = ModelFile(paper, MedNCA(paper.model).weights())  # whole numbers where floats belong
    assert load_model(save_model(tmp_path / "paper.safetensors", whole)).hash == whole.hash


@pytest.mark.parametrize(
    ("preprocess", "version"),
    [
        ({}, 1),
        ({"axes": (2, 0, 1)}, 2),
        ({"field": FIELD}, 4),
        ({"field": FIELD, "axes": (2, 0, 1)}, 4),
        ({"margin": 4}, 5),
        ({"margin": 4, "field": FIELD}, 5),
    ],
    ids=str,
)
def test_a_file_has_the_oldest_version_whose_readers_know_all_that_is_in_it(
    tmp_path: Path, preprocess: dict[str, Any], version: int
) -> None:
    model = model_file()
    config = replace(model.config, preprocess=replace(model.config.preprocess, **preprocess))
    changed = replace(model, config=config)
    path = save_model(tmp_path / "a.safetensors", changed)
    with safetensors.safe_open(str(path), "np") as file:
        header = json.loads(file.metadata()["mednca"])
    assert header["version"] == version
    assert header["config"]["preprocess"].get("field") == (list(FIELD) if "field" in preprocess else None)
    back = load_model(path)
    assert back.config == config and back.hash == changed.hash
    assert (back.hash == model.hash) == (not preprocess)


def test_a_model_of_one_axis_is_stored_as_before_there_were_several(tmp_path: Path) -> None:
    """Older programs read it, and its hash is that of its stored configuration."""
    model = model_file()
    path = save_model(tmp_path / "a.safetensors", model)
    with safetensors.safe_open(str(path), "np") as file:
        header = json.loads(file.metadata()["mednca"])
    config = header["config"]
    assert header["version"] == 1
    assert config["preprocess"]["axis"] == 2 and "axes" not in config["preprocess"]
    several = replace(model.config, preprocess=replace(model.config.preprocess, axes=(2, 0, 1)))
    back = load_model(save_model(tmp_path / "b.safetensors", replace(model, config=several)))
    assert back.config == several and back.hash != model.hash


def test_building_and_loading_leave_torchs_generator_alone(tmp_path: Path) -> None:
    path = save_model(tmp_path / "a.safetensors", model_file())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = load_model(path)
    built = MedNCA.from_weights(model.config.model, model.weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert not built.training and not any(p.requires_grad for p in built.parameters())
    assert all(np.array_equal(built.weights()[name], array) for name, array in model_file().weights.items())


def test_the_header_is_json_that_every_reader_knows(tmp_path: Path) -> None:
    card = {"scores": {"dice": {"ci95": [float("nan"), 0.5], "max": float("inf")}}}
    path = save_model(tmp_path / "a.safetensors", model_file(**card))
    assert b"NaN" not in path.read_bytes()
    assert load_model(path).card == {"scores": {"dice": {"ci95": [None, 0.5], "max": None}}}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.999])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    content = save_model(tmp_path / "whole.safetensors", model_file()).read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(len(content) * share)])
    assert "not a complete .safetensors file" in refusal(path)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(range(256)) * 20)
    assert "not a complete .safetensors file" in refusal(path)
    path.write_text("weights\n" * 100)
    assert "not a complete .safetensors file" in refusal(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}))
    assert "not a mednca model (no 'mednca' in its header)" in refusal(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}, {"mednca": "[1]"}))
    assert "not a mednca model" in refusal(path)
    assert "not a mednca model" in refusal(write(path, format="mednca-checkpoint"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 8}, "version 8 is newer than this mednca reads (7); upgrade"),
        ({"version": "1"}, "version must be a number >= 1, got '1'"),
        ({"version": 0}, "version must be a number >= 1, got 0"),
        ({"config": None}, "config: expected a table of settings for RunConfig, got NoneType"),
        ({"config": {"levels": 2}}, "config: unknown setting 'levels'"),
        ({"config": {"model": {"cells": 2}}}, "config: model: unknown setting 'cells'"),
        ({"config": {}}, "'levels.0.perceive_a.weight' must have shape (32, 32, 3, 3), got (8, 1, 3, 3)"),
        ({"config": {"model": {"hidden": 10**15}}}, "must have shape"),  # and takes no memory
        ({"card": []}, "card: expected a table, got list"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(
    tmp_path: Path, header: dict[str, Any], message: str
) -> None:
    assert message in refusal(write(tmp_path / "x.safetensors", **header))


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    name = "levels.2.update_out.weight"
    good, path = model_file().weights, tmp_path / "x.safetensors"
    missing = {n: t for n, t in good.items() if n != name}
    assert f"weights {name!r} are missing" in refusal(write(path, missing))
    assert "unknown weights 'levels.3.x' for a model of 3 levels" in refusal(
        write(path, good | {"levels.3.x": np.zeros(1, np.float32)})
    )
    wide = np.zeros((8, 9), np.float32)
    assert "must have shape (8, 8), got (8, 9)" in refusal(write(path, good | {name: wide}))
    assert "must be float32 (F32), got F64" in refusal(write(path, good | {name: good[name].astype(float)}))
    for bad in (float("nan"), float("inf")):
        assert "are not finite" in refusal(write(path, good | {name: np.full((8, 8), bad, np.float32)}))


def test_brain_floats_are_refused_by_their_name(tmp_path: Path) -> None:
    """NumPy has no bfloat16, so that the file must not be asked for it."""
    weights = {name: torch.from_numpy(array).bfloat16() for name, array in model_file().weights.items()}
    head = {"format": "mednca-model", "version": 1, "config": to_dict(model_file().config)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save(weights, {"mednca": json.dumps(head)}))
    assert "must be float32 (F32), got BF16" in refusal(path)


def small_range(**changed: Any) -> dict[str, Any]:
    """Parts of level 1 that differ -> the range of the tiny model: 3 levels, n = 8, h = 8."""
    levels = [{"state": [1.5] * 8, "views": [0.0] * 16, "hidden": [2] * 8} for _ in range(3)]
    levels[1] |= changed
    return {"levels": levels}


def test_a_range_is_kept_and_does_not_rename_the_model(tmp_path: Path) -> None:
    model = model_file()
    seen = replace(model, range=small_range())
    assert seen.hash == model.hash
    path = save_model(tmp_path / "a.safetensors", seen)
    back = load_model(path)
    assert back.range == seen.range and back.hash == model.hash
    assert save_model(tmp_path / "b.safetensors", back).read_bytes() == path.read_bytes()
    assert load_model(save_model(tmp_path / "c.safetensors", model)).range is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "range must hold 'levels', a list of 3 tables"),
        ({"levels": []}, "range must hold 'levels', a list of 3 tables"),
        ({**small_range(), "bits": 16}, "range must hold 'levels'"),
        ({"levels": [{}, {}, {}]}, "range of level 0 must hold state, views, hidden, and nothing else"),
        (small_range(bits=[1]), "range of level 1 must hold state, views, hidden, and nothing else"),
        (small_range(state=[1.0] * 9), "range of level 1: state must have 8 numbers, got 9"),
        (small_range(views=3), "range of level 1: views must have 16 numbers, got int"),
        (small_range(hidden=[1.0] * 7 + [-1.0]), "hidden must be finite numbers of at least 0"),
        (small_range(hidden=[1.0] * 7 + [float("inf")]), "hidden must be finite numbers of at least 0"),
        (small_range(hidden=[1.0] * 7 + [10**400]), "hidden must be finite numbers of at least 0"),
        (small_range(hidden=[1.0] * 7 + [True]), "hidden must be finite numbers of at least 0"),
        (small_range(hidden=[1.0] * 7 + ["1"]), "hidden must be finite numbers of at least 0"),
    ],
)
def test_a_range_that_does_not_fit_is_refused(tmp_path: Path, found: Any, message: str) -> None:
    assert message in refusal(write(tmp_path / "x.safetensors", range=found))
    with pytest.raises(ValueError, match=message.partition(" must")[0]):
        save_model(tmp_path / "y.safetensors", replace(model_file(), range=found))
    assert not (tmp_path / "y.safetensors").exists()


def test_a_model_is_found_by_folder_file_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, run = tmp_path / "shipped", tmp_path / "run"
    run.mkdir()
    save_model(shipped / "organ.safetensors", model_file())
    monkeypatch.setattr(modelfile, "SHIPPED", shipped)
    monkeypatch.chdir(tmp_path)
    assert modelfile.shipped_models() == ["organ"]
    assert find_model("organ") == shipped / "organ.safetensors"
    assert find_model(shipped / "organ.safetensors") == shipped / "organ.safetensors"
    with pytest.raises(InputError, match=r"hippo: no such model; expected .* shipped model \(organ\)"):
        find_model("hippo")
    with pytest.raises(InputError, match="no such model"):
        find_model("elsewhere/organ")
    (tmp_path / "organ").mkdir()  # somebody's folder of that name
    assert find_model("organ") == shipped / "organ.safetensors"
    with pytest.raises(InputError, match=r"not a run folder \(no model.safetensors in it\)"):
        find_model(run)
    (run / "config.json").write_text("{}")
    with pytest.raises(InputError, match="this run has no model yet; go on with"):
        find_model(run)
    save_model(run / "model.safetensors", model_file())
    assert find_model(run) == run / "model.safetensors"
    save_model(tmp_path / "cv" / "fold_0" / "model.safetensors", model_file())
    with pytest.raises(InputError, match=r"cv: a cross-validation; name one of its models, as .*fold_0"):
        find_model(tmp_path / "cv")


def test_an_existing_file_stays_unless_forced_and_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model(tmp_path / "a.safetensors", model_file(0))
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already; choose another name or give --force"):
        save_model(path, model_file(1), force=False)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"a.safetensors: cannot be written \(No space left on device\)"):
        save_model(path, model_file(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_written_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "folder", b"")
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(InputError, match=r"x: cannot be written \(Permission denied\)"):
        atomic_write(tmp_path / "x", b"")
