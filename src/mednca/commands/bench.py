"""How fast this machine is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mednca.errors import InputError


@dataclass(frozen=True)
class Bench:
    """Tell how fast this machine runs a model: seconds of a slice and of a scan, memory, in one table.

    The seconds of a slice are of one run of the model; those of a scan are of all that 'mednca predict' does
    but reading and writing files. With --compare the same slices also go through PyTorch, ONNX Runtime and
    OpenVINO, where they are installed, in turns.

    Examples:
        mednca bench
        mednca bench hippocampus --size 64x64 --threads 1 --json bench.json
        mednca bench runs/hippocampus --compare
    """

    model: Annotated[Positional[str], arg(metavar="[MODEL]")] = "hippocampus"
    """Run folder, .safetensors file or name of a shipped model."""
    size: Annotated[str, arg(metavar="HxW,...")] = "64x64,256x256"
    """Rows and columns of the slices."""
    steps: Annotated[str | None, arg(metavar="N,...", help_behavior_hint="(default: the model's)")] = None
    """Steps of each level, coarse to fine. Masks of other numbers than the model's mean nothing."""
    threads: Annotated[str | None, arg(metavar="N,...", help_behavior_hint="(default: 1 and all)")] = None
    """Numbers of threads."""
    repeats: int = 5
    """Rounds that count; one of warming up goes before."""
    compare: bool = False
    """Also time NumPy, PyTorch, ONNX Runtime and OpenVINO."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write every measurement to this file."""
    force: bool = False
    """Replace an existing file."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Measure, and print the table."""
        from tqdm import tqdm

        from mednca.bench import bench
        from mednca.files import atomic_write

        if self.json is not None and self.json.exists() and not self.force:
            raise InputError(f"{self.json}: exists already; choose another name or give --force")
        sizes = [tuple(numbers("--size", part, "x")) for part in self.size.split(",")]
        if any(len(size) != 2 for size in sizes):
            raise InputError(f"--size must be like 256x256 or 64x64,256x256, got {self.size!r}")
        with tqdm(leave=False, delay=2, disable=True if self.quiet else None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            report = bench(
                self.model,
                sizes=[(size[0], size[1]) for size in sizes],
                steps=None if self.steps is None else numbers("--steps", self.steps),
                threads=None if self.threads is None else numbers("--threads", self.threads),
                repeats=self.repeats,
                compare=self.compare,
                progress=progress,
            )
        if self.json is not None:
            atomic_write(self.json, json.dumps(report.to_dict(), indent=1) + "\n", force=self.force)
        print(report.table())
        return 0


def numbers(option: str, text: str, between: str = ",") -> list[int]:
    """Name and text of an option, and what separates its numbers -> the numbers."""
    try:
        return [int(part) for part in text.split(between)]
    except ValueError:
        raise InputError(f"{option} must be whole numbers with {between!r} between, got {text!r}") from None
