"""U-Nets on known encoders: their sizes, their place among the networks, and what is told where they cannot
run."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mednca.baselines import build, encoders, from_weights
from mednca.config import BaselineConfig, RunConfig
from mednca.errors import InputError
from mednca.rule import MedNCAConfig

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None,
    reason="segmentation-models-pytorch is not installed: pip install 'mednca[baselines]'",
)
# Libraries below it import parts of torch that are deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RUN = RunConfig(model=MedNCAConfig(scales=(1,), steps=(1,)))


def config(name: str, **baseline: int) -> RunConfig:
    """Encoder -> a run of one class on scans of one modality."""
    return replace(RUN, baseline=BaselineConfig(f"smp:{name}", **baseline))


@needs_library
@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_an_encoder_has_the_weights_that_are_told(name: str) -> None:
    torch.manual_seed(0)
    network = build(config(name))
    assert sum(weight.numel() for weight in network.parameters()) == encoders.ENCODERS[name]


@needs_library
def test_logits_cover_the_image_and_follow_its_channels() -> None:
    torch.manual_seed(0)
    run = replace(
        config("resnet18", copies=3),
        model=MedNCAConfig(classes=2, scales=(1,), steps=(1,)),
        labels=("a", "b"),
        values=(1, 2),
        merge=False,
    )
    network = build(run).train()
    ((logits, _),) = network(torch.rand(2, 1, 64, 96), seed=0, items=torch.arange(2))
    assert logits.shape == (2, 2, 64, 96)
    logits.square().mean().backward()
    first = network.network.encoder.conv1.weight
    assert first.shape[1] == 3 and first.grad is not None and first.grad.abs().sum() > 0


@needs_library
def test_a_stored_network_predicts_the_same() -> None:
    torch.manual_seed(0)
    network = build(config("mobilenet_v2"))
    with torch.no_grad():  # fill the statistics of the norms
        network.train()(torch.rand(4, 1, 64, 64), seed=0, items=torch.arange(4))
    again = from_weights(config("mobilenet_v2"), network.weights())
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        results = [n.eval()(image, seed=0, items=torch.arange(1))[0][0].numpy() for n in (network, again)]
    assert np.array_equal(*results) and np.abs(results[0]).max() > 0


@needs_library
def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(InputError, match=r"'smp:resnet19': .* no such encoder; take efficientnet-b0, "):
        build(config("resnet19"))


@pytest.mark.parametrize("missing", ["torchvision", "segmentation_models_pytorch"])
def test_a_missing_library_is_told_with_its_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing != "torchvision":
        monkeypatch.setattr(encoders, "import_torchvision", lambda: None)
    with pytest.raises(InputError) as told:
        build(config("resnet18"))
    assert str(told.value) == f"baseline 'smp:resnet18' needs {missing}: pip install 'mednca[baselines]'"


def imitate(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Folder, text of a module -> `import torchvision` runs it."""
    (folder / "torchvision.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision")


def test_operators_that_cannot_be_loaded_do_not_stop_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "import torch",
        *(f"torch.library.register_fake('torchvision::probe{n}', print)" for n in (1, 2)),
    ]
    imitate(tmp_path, monkeypatch, "\n".join(lines))
    encoders.import_torchvision()
    assert "torchvision" in sys.modules
    with pytest.raises(NotImplementedError):  # declared, and no more
        torch.ops.torchvision.probe1(torch.zeros(1), torch.zeros(1), 0.5)


@pytest.mark.parametrize("text", ["broken in\\nmany ways", "operator torchvision::odd name does not exist"])
def test_a_torchvision_that_does_not_fit_is_told_in_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate(tmp_path, monkeypatch, f"raise RuntimeError('{text}')")
    with pytest.raises(InputError, match=r"^torchvision cannot be used beside torch .*; install the build"):
        encoders.import_torchvision()
    with pytest.raises(InputError) as told:
        build(config("resnet18"))
    assert "\n" not in str(told.value)
