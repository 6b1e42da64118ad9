"""Baselines: the paper's parameter counts, the interface of Med-NCA, and the way from labelled scans to a
report and back from any stop."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mednca.train as training
from mednca import engine, learner
from mednca.augment import sample_batch
from mednca.baselines import build, from_weights
from mednca.card import describe
from mednca.checkpoint import RunFolder, TrainState
from mednca.config import BaselineConfig, RunConfig
from mednca.errors import InputError
from mednca.evaluate import evaluate
from mednca.io import read_case
from mednca.learner import Learner
from mednca.modelfile import ModelFile, load_model, save_model, to_bytes
from mednca.nca import MedNCA, run_eager
from mednca.predict import Predictor
from mednca.recipes import Fingerprint, recipe
from mednca.rule import MedNCAConfig
from mednca.train import canvas_size, fit, train
from tests.small_training import TRAIN, blob, slices, write_cases, write_scan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own

needs_engine = pytest.mark.skipif(not engine.available(), reason=engine.why_not())
UNET = BaselineConfig("unet", filters=4, depth=3)
ONE_LEVEL = MedNCAConfig(channels=8, hidden=8, scales=(1,), steps=(4,))


def config(baseline: BaselineConfig = UNET, classes: int = 1, **train: Any) -> RunConfig:
    """Baseline, classes, and settings of the training that differ -> a tiny run."""
    train = {"patch": None, "coarse_weight": 0.0, **train}
    names, values = tuple("abc"[:classes]), tuple(range(1, classes + 1))
    model = replace(ONE_LEVEL, classes=classes)
    return RunConfig(
        "tiny", names, values, classes == 1, model, train=replace(TRAIN, **train), baseline=baseline
    )


def parameters(run_config: RunConfig) -> int:
    """Configuration -> weights that its network learns."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build(run_config).parameters())


def model_file(run_config: RunConfig, seed: int = 0) -> ModelFile:
    """Configuration and seed -> a model of fresh weights."""
    torch.manual_seed(seed)
    return ModelFile(run_config, build(run_config).weights(), {"name": "tiny"})


# -- networks


def test_the_unet_of_the_paper_has_its_number_of_parameters() -> None:
    assert parameters(config(BaselineConfig("unet", copies=3), classes=3)) == 36_951_555


def test_the_unet_of_the_recipes_has_one_output_less_for_every_class_less() -> None:
    data = Fingerprint(1, (1.0, 1.0, 1.0), (36, 50, 36), {1: "organ"})
    for name in ("unet", "unet_plain"):
        assert parameters(recipe(name, data)) == 36_951_555 - 2 * 65


@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_baseline_gives_logits_of_the_size_of_the_image(norm: Any, copies: int) -> None:
    two = config(replace(UNET, norm=norm, copies=copies), classes=2)
    network = build(two)
    image = torch.rand(3, 1, 8, 16)
    outputs = network(image, seed=0, items=torch.arange(3), patches=None, run=run_eager)
    assert len(outputs) == 1
    cells, window = outputs[0]
    assert network.logits(cells).shape == (3, 2, 8, 16)
    assert torch.equal(window.cut(image), image)


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    network = build(config())
    for size in ((8, 10), (10, 8), (4, 8)):
        with pytest.raises(ValueError, match=f"multiples of 4 and at least 8, got {size[0]} x {size[1]}"):
            network(torch.rand(1, 1, *size), seed=0, items=torch.arange(1))


def test_what_cannot_be_a_baseline_is_refused() -> None:
    for wrong in (
        {"name": "vnet"},
        {"name": "smp:"},
        {"filters": 0},
        {"depth": 1},
        {"copies": 0},
        {"norm": "x"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BaselineConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scales of the model must be \(1,\) for a baseline"):
        RunConfig(baseline=UNET)


def seg_nca(**train: Any) -> RunConfig:
    """Settings of the training that differ -> a tiny Seg. NCA."""
    model = replace(ONE_LEVEL, perception="depthwise")
    return replace(config(**train), model=model, baseline=BaselineConfig("seg_nca"))


def test_seg_nca_perceives_by_sobel_filters_and_learns_the_rest() -> None:
    network = build(seg_nca())
    assert isinstance(network, MedNCA)
    rule = network.levels[0]
    columns = torch.arange(8.0).expand(1, 8, 6, 8).contiguous()
    seen = rule.perceive(columns)[0, :, 2, 3]
    assert seen.tolist() == [3.0] * 8 + [1.0] * 8 + [0.0] * 8  # state, slope along columns, along rows
    rows = columns.transpose(2, 3).contiguous()
    assert rule.perceive(rows)[0, :, 3, 2].tolist() == [3.0] * 8 + [0.0] * 8 + [1.0] * 8
    learnt = [name for name, weight in rule.named_parameters() if weight.requires_grad]
    assert learnt == ["update_in.weight", "update_in.bias", "update_out.weight"]
    with pytest.raises(ValueError, match="perception must be 'depthwise' for seg_nca, got 'dense'"):
        replace(seg_nca(), model=ONE_LEVEL)


# -- model files


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_stored_baseline_predicts_as_the_network_did(tmp_path: Path, norm: Any) -> None:
    settings = config(replace(UNET, norm=norm))
    torch.manual_seed(0)
    network = build(settings)
    image, items = torch.rand(2, 1, 16, 16), torch.arange(2)
    network(image, seed=0, items=items)  # gives the batch norms statistics
    model = load_model(save_model(tmp_path / "m.safetensors", ModelFile(settings, network.weights())))
    assert model.config == settings
    assert model.parameters == parameters(settings)
    back = from_weights(settings, model.weights)
    network.eval()
    expected = network(image, seed=0, items=items)[0][0]
    assert torch.equal(back(image, seed=0, items=items)[0][0], expected)


def test_weights_of_another_network_are_refused() -> None:
    model = model_file(config())
    wider = replace(model, config=config(replace(UNET, filters=5)))
    with pytest.raises(InputError, match=r"baseline 'unet': weights 'network.* must have shape \(5, "):
        Predictor(wider)
    with pytest.raises(InputError, match="unknown weights 'more'"):
        Predictor(replace(model, weights=model.weights | {"more": np.zeros(1, np.float32)}))
    short = {name: array for name, array in model.weights.items() if not name.endswith("head.bias")}
    with pytest.raises(InputError, match=r"'network.head.bias' must have shape \(1,\), got none"):
        Predictor(replace(model, weights=short))


def test_a_card_tells_of_the_network() -> None:
    told = " ".join(describe(model_file(config(replace(UNET, copies=3)))).split())
    assert "the baseline 'unet', 3 blocks, 4 filters in the first, norm none, sees the image 3 times" in told
    assert "steps" not in told and "levels" not in told


# -- prediction


@pytest.mark.parametrize("shape", [(16, 16, 4), (7, 21, 3), (3, 3, 1)])
def test_a_scan_of_any_size_gets_a_mask_in_its_grid(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    scan = read_case([write_scan(tmp_path / "scan.nii.gz", blob(0, shape)[0])])
    predictor = Predictor(model_file(config()), probability=True)
    found = predictor.predict(scan)
    assert predictor.engine == found.report["engine"] == "eager"
    assert found.mask.shape == shape and found.probability is not None
    assert ((found.probability.data > 0) & (found.probability.data < 1)).all()


@pytest.mark.parametrize("engine", ["native", "int16", "numpy", "folded"])
def test_an_engine_of_automata_does_not_run_a_baseline(engine: str) -> None:
    with pytest.raises(
        InputError, match=f"the engine '{engine}' runs cellular automata, this model is the baseline"
    ):
        Predictor(model_file(config()), engine=engine)


@needs_engine
def test_the_engine_in_c_takes_automata_and_says_of_another_baseline_that_it_is_none() -> None:
    with pytest.raises(InputError, match="the model is no cellular automaton but a baseline"):
        engine.Model(to_bytes(model_file(config())))
    assert engine.Model(to_bytes(model_file(seg_nca()))).facts.levels == 1


# -- training


def run_fit(path: Path, settings: RunConfig) -> RunFolder:
    """Run folder's path and configuration -> trained from wherever it stands."""
    if not path.exists():
        RunFolder.create(path, settings, {"training": ["a"], "validation": []})
    run = RunFolder.open(path)
    fit(run, settings, [slices(0), slices(1)], [], {"name": "tiny"}, progress=False)
    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stop_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    settings = config(replace(UNET, norm="batch"), precision=precision, iterations=12)
    whole = run_fit(tmp_path / "whole", settings)
    step, left = Learner.step, [7]

    def stopping(self: Learner, *arguments: Any) -> dict[str, float]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path / "stopped", settings)
    left[0] = 100
    stopped = run_fit(tmp_path / "stopped", settings)
    assert left[0] == 100 - 7  # it went on from the checkpoint at iteration 5
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    assert stopped.metrics.read_bytes() == whole.metrics.read_bytes()


def test_the_kept_weights_come_with_the_statistics_of_the_norms() -> None:
    settings = config(replace(UNET, norm="batch"))
    learner = Learner(settings, TrainState(), "cpu")
    for iteration in range(3):
        batch = sample_batch([slices(0)], settings, (16, 16), np.random.default_rng(iteration))
        learner.step(batch, iteration, 1e-2, run_eager)
    kept, now = dict(learner.mean.named_buffers()), dict(learner.model.named_buffers())
    assert all(torch.equal(kept[name], now[name]) for name in now)
    assert any(now[name].any() for name in now if name.endswith("running_mean"))
    assert not torch.equal(learner.mean.network.head.weight, learner.model.network.head.weight)


def test_a_unet_learns_and_is_judged_as_any_model(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "data")
    settings = config(iterations=60, learning_rate=1e-2, batch_size=4)
    report = train(cases, tmp_path / "run", lambda data: settings, progress=False)
    assert report is not None and report.summary["merged"]["dice"]["mean"] > 0.8
    model = load_model(tmp_path / "run")
    assert model.config == settings and model.range is None
    held_out = json.loads((tmp_path / "run" / "split.json").read_text())["validation"]
    again = evaluate(Predictor(model), [case for case in cases.cases if case.id in held_out])
    assert again.summary["merged"]["dice"]["mean"] == report.summary["merged"]["dice"]["mean"]


@pytest.mark.parametrize("reason", ["", "this processor has no AVX512_BF16"])
def test_a_unet_is_trained_in_bfloat16_only_where_the_processor_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    for module in (learner, training):
        monkeypatch.setattr(module, "why_no_autocast", lambda device: reason)
    cases = write_cases(tmp_path / "data", 2)
    weights = {}
    for precision in ("float32", "bfloat16"):
        settings = config(iterations=3, precision=precision)
        train(cases, tmp_path / precision, lambda data, c=settings: c, validation=0.0, progress=False)
        weights[precision] = load_model(tmp_path / precision).weights
    same = [np.array_equal(weights["float32"][name], array) for name, array in weights["bfloat16"].items()]
    assert all(same) if reason else not all(same)
    assert all(
        np.allclose(weights["float32"][name], array, atol=0.02) for name, array in weights["bfloat16"].items()
    )
    said = [record.message for record in caplog.records if "float32, not bfloat16" in record.message]
    logged = (tmp_path / "bfloat16" / "metrics.jsonl").read_text().count("float32 instead of bfloat16")
    assert (len(said), logged) == ((1, 1) if reason else (0, 0))


@pytest.mark.parametrize(("has", "machine"), [(True, "x86_64"), (False, "x86_64"), (False, "aarch64")])
def test_it_is_the_processor_that_is_asked(monkeypatch: pytest.MonkeyPatch, has: bool, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: has, raising=False)
    assert bool(learner.why_no_autocast("cpu")) == (machine == "x86_64" and not has)
    assert not learner.why_no_autocast("cuda:0")


def test_seg_nca_learns_with_its_filters_given_and_every_engine_runs_it(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "data")
    settings = seg_nca(iterations=20)
    assert train(cases, tmp_path / "run", lambda data: settings, progress=False) is not None
    model = load_model(tmp_path / "run")
    fresh = model_file(settings).weights
    for name, array in model.weights.items():
        given = ".perceive_" in name
        assert np.array_equal(array, fresh[name]) == given, name
    assert model.parameters == 8 * (24 + 1) + 8 * 8 and model.range is not None
    scan = read_case(cases.cases[0].images)
    masks = [Predictor(model, engine=name).predict(scan).mask.data for name in ("auto", "numpy", "eager")]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_training_with_an_engine_of_automata_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "data", 2)
    with pytest.raises(InputError, match="the engine 'native' runs cellular automata"):
        train(cases, tmp_path / "run", lambda data: config(), engine="native", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_as_another_network(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "data", 2)
    start: dict[str, Any] = {"validation": 0.0, "progress": False}
    automaton = replace(config(iterations=1), baseline=None)
    train(cases, tmp_path / "unet", lambda data: config(iterations=1), **start)
    train(cases, tmp_path / "nca", lambda data: automaton, **start)
    with pytest.raises(InputError, match="was started with baseline"):
        train(cases, tmp_path / "unet", lambda data: automaton, resume=True, **start)
    with pytest.raises(InputError, match="was started with baseline"):
        train(cases, tmp_path / "nca", lambda data: config(iterations=1), resume=True, **start)


def test_the_canvas_has_a_size_that_the_network_takes() -> None:
    deep = config(replace(UNET, depth=5))
    assert canvas_size([slices(0)], deep) == (32, 32)


def test_the_filters_of_seg_nca_are_numbers_wherever_it_is_first_imported() -> None:
    code = "import torch\nwith torch.device('meta'):\n    from mednca.baselines.seg_nca import SOBEL\n"
    code += "print(SOBEL.device)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "cpu"
