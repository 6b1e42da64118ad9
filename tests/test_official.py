"""The authors' own model, imported, scores here what it is known to score."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mednca.cases import find_cases
from mednca.modelfile import load_model, save_model
from mednca.nca import Backbone, MedNCA
from mednca.official import import_official
from mednca.rule import MedNCAConfig
from reproduce.official import CASE_TOLERANCE, MEAN_TOLERANCE, MEASURES, score

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MEDNCA_DATA") or ROOT.parent / "shared" / "data")
CHECKPOINT, TASK04 = DATA / "authors_checkpoint", DATA / "Task04_Hippocampus"
needs_checkpoint = pytest.mark.skipif(
    not CHECKPOINT.is_dir(), reason="the authors' checkpoint is not there; MEDNCA_DATA names the data folder"
)


def write_official(folder: Path, n: int = 8, hidden: int = 8) -> Path:
    """Folder -> two small random rules in it, stored as the authors store theirs."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for level in range(2):
        shapes = {
            "p0.weight": (n, n, 3, 3),
            "p0.bias": (n,),
            "p1.weight": (n, n, 3, 3),
            "p1.bias": (n,),
            "fc0.weight": (hidden, 3 * n),
            "fc0.bias": (hidden,),
            "fc1.weight": (n, hidden),
        }
        rule = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
        torch.save(rule, folder / f"model{level}.pth")
    table = {
        "channel_n": n,
        "hidden_size": hidden,
        "inference_steps": 4,
        "cell_fire_rate": 0.75,
        "input_channels": 1,
        "output_channels": 1,
        "input_size": [[16, 16], [64, 64]],
        "batch_size": 40,
        "lr": 0.0016,
        "betas": [0.5, 0.5],
    }
    (folder / "config.json").write_text(json.dumps([table]))
    return folder


def test_a_step_equals_the_authors_on_exchanged_axes(tmp_path: Path) -> None:
    """Their step, written out: both convolutions and the dense layers on (B, n, W, H), every cell firing."""
    model = import_official(write_official(tmp_path / "official"))
    theirs = torch.load(tmp_path / "official" / "model1.pth", weights_only=True)
    state = torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(1))
    around = torch.nn.functional.pad(state.transpose(2, 3), (1, 1, 1, 1), mode="reflect")
    views = [
        torch.nn.functional.conv2d(around, theirs[f"{p}.weight"], theirs[f"{p}.bias"]) for p in ("p0", "p1")
    ]
    seen = torch.cat([state, *(view.transpose(2, 3) for view in views)], dim=1).movedim(1, -1)
    hidden = torch.relu(seen @ theirs["fc0.weight"].T + theirs["fc0.bias"])
    expected = state + (hidden @ theirs["fc1.weight"].T).movedim(-1, 1)
    expected[:, 0] = state[:, 0]
    rule = MedNCA.from_weights(model.config.model, model.weights).levels[1]
    assert isinstance(rule, Backbone)
    stepped = rule.step(state, torch.ones(2, 6, 7, dtype=torch.bool))
    torch.testing.assert_close(stepped, expected, rtol=0, atol=2e-6)  # float32 rounding of sums of 8 x 9


def test_an_imported_model_is_the_same_after_a_file(tmp_path: Path) -> None:
    model = import_official(write_official(tmp_path / "official"))
    stored = load_model(save_model(tmp_path / "a.safetensors", model))
    assert (stored.hash, stored.config, stored.card) == (model.hash, model.config, model.card)


def test_settings_become_ours(tmp_path: Path) -> None:
    config = import_official(write_official(tmp_path / "official")).config
    assert config.model == MedNCAConfig(channels=8, hidden=8, scales=(4, 1), steps=(4, 4), fire_rate=0.25)
    assert (config.preprocess.axis, config.preprocess.size) == (2, (64, 64))
    assert config.preprocess.normalise == "slice"
    assert config.merge and config.predict.threshold == 0.5


@needs_checkpoint
def test_the_card_of_the_published_model_states_licence_and_source() -> None:
    model = import_official(CHECKPOINT)
    assert model.parameters == 70_016
    assert model.config.model == MedNCAConfig(steps=(16, 16))
    assert model.card["licence"] == "MIT" and "John Kalkhof" in model.card["attribution"]
    assert "first 138 volumes" in model.card["notes"]


def test_the_stored_result_over_all_cases_holds() -> None:
    stored = json.loads((ROOT / "reproduce" / "results" / "official.json").read_text())
    assert stored["cases"] == len(stored["scores"]) == 208 and stored["holds"]
    expected = {"soft64": 0.8857, "hard64": 0.8963, "native": 0.8934}  # what came with the checkpoint
    for name in MEASURES:
        mean = sum(scores[name] for scores in stored["scores"].values()) / 208
        assert mean == pytest.approx(stored["means"][name]["ours"], abs=1e-4)
        assert mean == pytest.approx(expected[name], abs=MEAN_TOLERANCE)


@needs_checkpoint
@pytest.mark.skipif(not TASK04.is_dir(), reason="Task04_Hippocampus is not there; see MEDNCA_DATA")
def test_the_published_model_scores_what_it_is_known_to_score() -> None:
    """Four cases; reproduce/official.py does all, and its result is stored."""
    model = import_official(CHECKPOINT)
    known = json.loads((CHECKPOINT / "dice_on_task04.json").read_text())
    for case in find_cases(TASK04).cases[5:200:60]:
        measured = score(model, case)
        for name in MEASURES:
            # Other fire masks move a case by up to 0.01.
            assert measured[name] == pytest.approx(known[f"{case.id}.nii.gz"][name], abs=CASE_TOLERANCE), (
                case.id
            )
