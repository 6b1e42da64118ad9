"""The one-step ONNX graph, run by ONNX Runtime, gives the states of the definition in float64.

Tolerances: as for the other backends, 1e-5 of the largest magnitude (tests/conformance/test_backends.py says
why). Over a whole model with 64 + 64 steps small differences grow with the states: 1e-4 of the largest logit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cases import CASES, BackendCase
from mednca.export import step_graph
from mednca.fire import FireKey, fire_mask
from mednca.nca import Backbone, MedNCA, MedNCAConfig, Run, Window, run_eager

pytest.importorskip("onnx", reason="needs pip install 'mednca[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="needs pip install 'mednca[onnx]'")

STATE_TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-4


def run_onnx(rule: Backbone, state: Tensor, key: FireKey, window: Window, steps: int) -> Tensor:
    """A rule, run by ONNX Runtime; a `mednca.nca.Run` without gradients."""
    weights = {name: array.numpy() for name, array in rule.state_dict().items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = step_graph(weights, rule.config, {}).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    cells: NDArray[Any] = state.numpy()
    for step in range(steps):
        fires = fire_mask(key, step, window.items, window.rows, window.columns, rule.config.fire_rate)
        (cells,) = session.run(["next"], {"state": cells, "fires": fires.numpy()})
    return torch.from_numpy(cells)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_states_are_those_of_the_definition(case: BackendCase) -> None:
    rule, state, key, window = case.make(torch.float32)
    found = run_onnx(rule, state, key, window, case.steps)
    rule, wide, key, window = case.make(torch.float64)
    with torch.no_grad():
        expected = run_eager(rule, wide, key, window, case.steps)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < STATE_TOLERANCE
    image = case.config.image_channels
    assert torch.equal(found[:, :image], state[:, :image])


@pytest.mark.parametrize("perception", ["dense", "depthwise"])
def test_a_whole_model_gives_the_same_mask_after_64_and_64_steps(perception: Any) -> None:
    config = MedNCAConfig(image_channels=3, steps=(64, 64), perception=perception)
    torch.manual_seed(0)
    model = MedNCA(config)
    for rule in model.levels:
        torch.nn.init.normal_(rule.update_out.weight, std=0.02)
    image = torch.rand(2, 3, 32, 40)

    def logits(run: Run, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            outputs = model.to(dtype)(image.to(dtype), seed=3, items=torch.tensor([4, 9]), run=run)
        return model.logits(outputs[-1][0])

    found, expected = logits(run_onnx, torch.float32), logits(run_eager, torch.float64)
    expected -= (middle := expected.median())
    found -= middle
    assert ((found - expected).abs().max() / expected.abs().max()).item() < LOGIT_TOLERANCE
    both = ((found > 0) & (expected > 0)).sum()
    dice = 2 * both / ((found > 0).sum() + (expected > 0).sum())
    assert 0.2 < (expected > 0).double().mean() < 0.8
    assert dice >= 0.999
