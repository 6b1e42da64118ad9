"""What is told of the machine beside what was measured on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mednca import machine as module
from mednca.machine import machine, memory_mib, processor, processors


def write(root: Path, **files: str) -> None:
    """Folder and texts -> the files of a Linux that tells them."""
    for name, text in files.items():
        path = root / {"cpu": "proc/cpuinfo", "board": "proc/device-tree/model"}[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"cpu": "processor\t: 0\nmodel name\t: Abacus 3: Pro\nmodel name\t: Abacus 4\n"}, "Abacus 3: Pro"),
        ({"cpu": "model name\t: ARMv6", "board": "Raspberry Pi Model B Plus\0"}, "Raspberry Pi Model B Plus"),
        ({"cpu": "Features\t: fp\n"}, "wheels"),
        ({}, "wheels"),
    ],
)
def test_the_processor_is_named_as_the_system_tells_it(
    files: dict[str, str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, **files)
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / path[1:])
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    monkeypatch.setattr(module.platform, "machine", lambda: "wheels")
    assert processor() == name


def test_all_of_it_can_be_stored() -> None:
    told = machine()
    assert json.loads(json.dumps(told)) == told
    assert (told["processor"], told["processors"], told["memory_mib"]) == (
        processor(),
        processors(),
        memory_mib(),
    )
    assert 1 <= told["processors"] <= (os.cpu_count() or 1) and told["versions"]["numpy"]
