"""The benchmark: every engine is held to the reference, takes its turn, and stands in one table."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mednca import bench as module
from mednca import engine
from mednca.bench import bench, measure, scan_of
from mednca.bench.engines import ENGINES, agrees, difference, make_numpy, missing
from mednca.bench.measure import Times, memory, take_turns
from mednca.bench.report import Report, Row
from mednca.bench.task import Slice
from mednca.cli import main
from mednca.errors import InputError
from mednca.machine import machine
from mednca.modelfile import ModelFile, load_model, save_model
from tests.small import tiny_model

MODELS = {
    "own grid": tiny_model(),
    "resampled, neighbours": tiny_model(context=1, spacing=(1.3, 0.9)),
    "coronal, two classes": tiny_model(classes=2, axes=(1,)),
    "with a margin": tiny_model(margin=6),
    "three axes": tiny_model(context=1, axes=(1, 2, 0), spacing=(0.9, 0.9)),
    "stretched, two channels": tiny_model(modalities=2, size=(16, 16), normalise="slice"),
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "m.safetensors", tiny_model()))


def usable(name: str, model: ModelFile) -> None:
    """Skip where an engine cannot run a model here."""
    if missing(name, model):
        pytest.skip(f"{name}: {missing(name, model)}")


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "int16"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("kept", [True, False])
def test_every_engine_gives_what_numpy_gives_in_float64(name: str, kind: str, kept: bool) -> None:
    model = MODELS[kind]
    usable(name, model)
    task = Slice(model, (21, 18), kept)
    run = ENGINES[name][0](task, 1)
    expected = make_numpy(task, 1, np.float64)()
    for _ in range(2):  # the second time as the first
        apart = difference(task, run(), expected)
        assert apart["largest"] < 1e-4 and apart["dice"] > 0.99, apart
    found = task.voxelwise(run())
    rows = [axis for axis in range(3) if axis != model.config.preprocess.axes[0]]
    assert found.shape[0] == model.config.model.classes
    assert [found.shape[1 + axis] for axis in rows] == [21, 18]
    assert 0.02 < (found.sum(axis=0) > 0.5).mean() < 0.98


@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ("int16", "numpy")])
def test_threads_change_nothing(name: str) -> None:
    usable(name, MODELS["own grid"])
    task = Slice(MODELS["own grid"], (40, 32))
    one, two = (ENGINES[name][0](task, threads)() for threads in (1, 2))
    assert difference(task, one, two)["largest"] < 1e-5


def test_runs_take_turns_in_another_order_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "REST", 0)
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    ticks: list[int] = []
    times = take_turns(runs, 3, lambda: ticks.append(1))
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"  # the first round warms up
    counts = {name: (len(each.seconds), len(each.cpu_seconds)) for name, each in times.items()}
    assert counts == {"a": (3, 3), "b": (3, 3), "c": (3, 3)}
    assert len(ticks) == 12


def test_processor_time_is_told_beside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "REST", 0)
    rest = take_turns({"rest": lambda: time.sleep(0.1)}, 1)["rest"]
    assert rest.seconds[0] >= 0.1 and rest.cpu_seconds[0] < 0.05


def test_an_engine_that_gives_other_numbers_is_not_timed(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(task: Slice, threads: int) -> Any:
        right = make_numpy(task, threads)
        return lambda: right() + 0.01

    monkeypatch.setattr(measure, "REST", 0)
    monkeypatch.setitem(ENGINES, "PyTorch", (wrong, ()))
    monkeypatch.setattr(module, "memory", lambda *_: None)
    report = bench(source, sizes=[(12, 12)], threads=[1], repeats=1, compare=True)
    assert "PyTorch" not in {row.engine for row in report.rows}
    (told,) = [note for note in report.notes if note.startswith("PyTorch: ")]
    assert "not timed, it gives other numbers than NumPy in float64 (largest 0.01" in told


def test_int16_may_differ_by_as_much_as_it_is_told() -> None:
    assert agrees("int16", {"largest": 0.5, "mean": 0.01}) and not agrees(
        "int16", {"largest": 0.5, "mean": 0.03}
    )
    assert agrees("native", {"largest": 1e-3, "mean": 0}) and not agrees(
        "native", {"largest": 3e-3, "mean": 0}
    )


def test_the_difference_is_that_of_probabilities_and_masks() -> None:
    task = Slice(MODELS["own grid"], (12, 12))
    a: NDArray[np.float64] = np.zeros((1, 12, 12, 1))
    b = a.copy()
    a[0, :2, :6], b[0, :2, :3] = 0.75, 0.6
    apart = difference(task, a, b)
    assert apart["largest"] == pytest.approx(0.75)
    assert apart["mean"] == pytest.approx((6 * 0.75 + 6 * 0.15) / 144)
    assert apart["dice"] == pytest.approx(2 * 6 / 18)


def times(*seconds: float) -> Times:
    return Times(list(seconds), list(seconds))


def test_a_table_has_a_row_for_each_measurement() -> None:
    rows = [
        Row(
            "slice 64 x 64", "native", 1, times(0.01, 0.02, 0.04), {"above_python": 30.4, "above_loaded": 3.0}
        ),
        Row("slice 64 x 64", "numpy", None, times(0.2, 0.2, 0.3)),
        Row("slice 64 x 64", "PyTorch", 2, times(1.0, 1.0, 1.0)),
    ]
    model = {"name": "tiny", "hash": "abc", "steps": [2, 3], "ensemble": 1}
    report = Report(model, machine(), rows, ["a note"])
    assert [report.against_native(row) for row in rows] == [None, 10.0, None]
    text = report.table()
    assert "tiny (abc), 2 + 3 steps; mednca" in text and text.endswith("\n\na note")
    assert (
        "| slice 64 x 64 | native  | 1       | 0.0200 (0.0100 to 0.0400)    |              | 30          |"
        in text
    )
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({len(line) for line in table}) == 1
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["rows"][1]["times_native"] == 10.0 and stored["rows"][0]["median_s"] == 0.02


def test_the_command_prints_a_table_and_writes_every_measurement(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", source, "--size", "16x12,24x20", "--threads", "1,2", "--repeats", "2", "--steps", "1,2"]
    words += ["--json", str(tmp_path / "b.json"), "--quiet"]
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert not end.value.code and not err, err
    stored = json.loads((tmp_path / "b.json").read_text())
    assert {row["job"] for row in stored["rows"]} == {"slice 16 x 12", "slice 24 x 20", "scan 64 x 64 x 32"}
    first = "native" if engine.available() else "numpy"
    assert {row["engine"] for row in stored["rows"]} == {first}
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) <= row["median_s"] for row in stored["rows"])
    assert stored["model"]["steps"] == [1, 2] and stored["model"]["hash"][:4] in out
    assert stored["machine"]["processor"] in out and "| slice 16 x 12 " in out
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "exists already" in capsys.readouterr().err


def test_without_the_c_engine_numpy_is_timed_and_the_reason_told(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "REST", 0)
    monkeypatch.setattr(engine, "available", lambda: False)
    monkeypatch.setattr(engine, "why_not", lambda: "no compiler")
    monkeypatch.setattr(module, "memory", lambda *_: None)
    report = bench(source, sizes=[(12, 12)], repeats=1)
    assert {(row.engine, row.threads) for row in report.rows} == {("numpy", None)}
    assert "native: not timed, no compiler" in report.notes and "its own" in report.table()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sizes": [(4, 64)]}, "size must be at least 8x8"),
        ({"steps": [3]}, "steps must give a number >= 1 for each of the scales"),
        ({"threads": [0]}, "repeats and threads must be at least 1, got 5 and 0"),
        ({"repeats": 0}, "repeats and threads must be at least 1, got 0 and"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(source: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        bench(source, **settings)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "64"], "--size must be like 256x256 or 64x64,256x256, got '64'"),
        (["--size", "axb"], "--size must be whole numbers with 'x' between, got 'axb'"),
        (["--threads", "1;2"], "--threads must be whole numbers with ',' between, got '1;2'"),
    ],
)
def test_options_that_are_no_numbers_are_refused(
    source: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", source, *words])
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_a_scan_is_the_middle_of_what_the_model_was_trained_on() -> None:
    fingerprint = {"spacing_mm": [[1, 1, 2], [1, 2, 4]], "size_mm": [[20, 30, 60], [40, 60, 60]]}
    model = replace(MODELS["own grid"], card={"fingerprint": fingerprint})
    assert scan_of(model) == ((30, 30, 20), [1.0, 1.5, 3.0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak memory of a process")
@pytest.mark.parametrize("name", ["native", "numpy", "PyTorch"])
def test_memory_is_that_of_a_process_of_its_own(name: str, source: str) -> None:
    model = load_model(source)
    usable(name, model)
    taken = memory(source, Slice(model, (64, 64)), name)
    print(name, taken)
    assert (
        taken is not None and taken["above_python"] > 5 and 0 <= taken["above_loaded"] < taken["above_python"]
    )
    assert (taken["above_python"] > 120) == (name == "PyTorch")
