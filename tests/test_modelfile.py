"""One model, one file: the same bytes for the same model, and one line for whatever is no model."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_training import model_file

import mednca.modelfile as modelfile
from mednca.config import to_dict
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.modelfile import ModelFile, find_model, load_model, save_model
from mednca.recipes import Fingerprint, recipe


def write(path: Path, weights: dict[str, torch.Tensor] | None = None, **header: Any) -> Path:
    """Weights and parts of the header that differ from a good file's -> a file with its own checks passed."""
    good = model_file()
    head = {"format": "mednca-model", "version": 1, "config": to_dict(good.config), "card": {}} | header
    path.write_bytes(
        safetensors.torch.save(good.weights if weights is None else weights, {"mednca": json.dumps(head)})
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
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in model.weights.items())
    assert save_model(tmp_path / "b.safetensors", back).read_bytes() == first.read_bytes()
    shuffled = replace(model, weights=dict(reversed(model.weights.items())))
    assert save_model(tmp_path / "c.safetensors", shuffled).read_bytes() == first.read_bytes()
    assert not list(tmp_path.glob(".part-*"))


def test_the_hash_names_configuration_and_weights(tmp_path: Path) -> None:
    model = model_file()
    assert model.hash == model_file(name="another card").hash and len(model.hash) == 16
    weights = {name: tensor.clone() for name, tensor in model.weights.items()}
    weights["levels.1.update_out.weight"][0, 0] += 1e-6
    assert replace(model, weights=weights).hash != model.hash
    other = replace(model.config, predict=replace(model.config.predict, threshold=0.4))
    assert replace(model, config=other).hash != model.hash
    paper = recipe("paper_hippocampus", Fingerprint(1, (1.0, 1.0, 1.0), (35, 51, 36), {1: "x"}))
    whole = ModelFile(paper, modelfile.MedNCA(paper.model).state_dict())  # whole numbers where floats belong
    assert load_model(save_model(tmp_path / "paper.safetensors", whole)).hash == whole.hash


def test_building_and_loading_leave_torchs_generator_alone(tmp_path: Path) -> None:
    path = save_model(tmp_path / "a.safetensors", model_file())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    built = load_model(path).build()
    assert torch.equal(torch.get_rng_state(), before)
    assert not built.training and not any(p.requires_grad for p in built.parameters())
    assert all(torch.equal(built.state_dict()[n], t) for n, t in model_file().weights.items())


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
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    assert "not a mednca model (no 'mednca' in its header)" in refusal(path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, {"mednca": "[1]"}))
    assert "not a mednca model" in refusal(path)
    assert "not a mednca model" in refusal(write(path, format="mednca-checkpoint"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 2}, "version 2 is newer than this mednca reads (1); upgrade"),
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
        write(path, good | {"levels.3.x": torch.zeros(1)})
    )
    assert "must have shape (8, 8), got (8, 9)" in refusal(write(path, good | {name: torch.zeros(8, 9)}))
    assert "must be float32, got torch.float64" in refusal(write(path, good | {name: good[name].double()}))
    for bad in (float("nan"), float("inf")):
        assert "are not finite" in refusal(write(path, good | {name: torch.full((8, 8), bad)}))


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
