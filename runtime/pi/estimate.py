"""What an update of a cell costs on the processor of a Raspberry Pi B+ (ARM1176): counted, not measured.

    python runtime/pi/estimate.py MODEL.safetensors --width 320 --int16

runs the ARMv6 program under qemu-arm with the plugin arm1176.c, once with one step and once with three, and
prints the difference for each cell that fires: instructions, core cycles, misses of the first and second data
cache, and the interval of cycles that follows. docs/explanation/pi-estimate.md has the method. Needs make,
cc, gcc-arm-linux-gnueabi, qemu-user.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from mednca.calibrate import measure_range
from mednca.config import RunConfig
from mednca.fire import FireKey, fire_mask
from mednca.modelfile import ModelFile, save_model
from mednca.rule import MedNCAConfig, weight_shapes
from mednca.slices import PreprocessConfig

PI, C = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1] / "c"
#: Core cycles of a miss, from and to: of the first cache, and what a miss of the second adds. No trustworthy
#: figure for the memory of this machine was found; hence an interval.
FIRST, SECOND = (20, 50), (0, 100)
HERTZ = 700e6
#: Rows of the grid that is run: enough for several blocks of cells, few enough for seconds.
ROWS = 12


@dataclass(frozen=True)
class Cost:
    """Of one cell that fires, in one step."""

    instructions: float
    cycles: float
    first_misses: float
    second_misses: float

    def interval(self) -> tuple[float, float]:
        """Cycles in all, from and to."""
        low, high = (
            self.cycles + self.first_misses * FIRST[end] + self.second_misses * SECOND[end] for end in (0, 1)
        )
        return low, high


def missing() -> str:
    """What is not here and must be installed; "" if nothing."""
    programs = {
        "make": "make",
        "cc": "gcc",
        "arm-linux-gnueabi-gcc": "gcc-arm-linux-gnueabi libc6-dev-armel-cross",
        "qemu-arm": "qemu-user",
    }
    lacking = [package for program, package in programs.items() if not shutil.which(program)]
    if not lacking and "-plugin" not in run(["qemu-arm", "-h"]):
        lacking = ["qemu-user (a build with plugins)"]
    return f"needs {' '.join(lacking)}" if lacking else ""


def run(words: list[str]) -> str:
    """Command -> its output; RuntimeError with what it said where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def paper_model(path: Path) -> Path:
    """Path -> a model file of the paper's shape, 70,016 parameters with neighbouring slices in the image
    channels, with drawn weights: what an update costs does not depend on them."""
    config = RunConfig(
        model=MedNCAConfig(image_channels=3, steps=(16, 16)), preprocess=PreprocessConfig(context=1)
    )
    generator = np.random.default_rng(0)
    shapes = weight_shapes(config.model)
    weights = {name: generator.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    for level in range(2):
        weights[f"levels.{level}.update_out.weight"][:3] = 0
    model = ModelFile(config, weights, {"name": "paper"})
    seen = measure_range(model, [generator.random((4, 1, 32, 32), dtype=np.float32)])
    return save_model(path, replace(model, range=seen))


def programs(folder: Path) -> tuple[Path, Path]:
    """Folder -> the ARMv6 program, and the plugin, compiled into the folder."""
    run(["make", "-s", "-C", str(C), "build/armv6/mednca-run"])
    plugin = folder / "arm1176.so"
    run(["cc", "-O2", "-shared", "-fPIC", str(PI / "arm1176.c"), "-o", str(plugin)])
    return C / "build/armv6/mednca-run", plugin


def count(model: Path, width: int, *, int16: bool, fast: bool = False, rows: int = ROWS) -> Cost:
    """Model file and width of the grid -> the cost of a cell that fires, on the finest of two levels.

    Args:
        model: Two levels, fire rate 0.5.
        width: Cells in a row: decides what the caches hold.
        int16: 16-bit integers instead of float32.
        fast: Count instructions only.
        rows: Rows of the grid.

    Raises:
        RuntimeError: If something that is needed is missing or fails.
    """
    if missing():
        raise RuntimeError(missing())
    totals = []
    with tempfile.TemporaryDirectory() as name:
        program, plugin = programs(Path(name))
        for steps in (1, 3):
            told = Path(name) / "told"
            words = ["qemu-arm", "-cpu", "arm1176", "-plugin", f"{plugin},out={told}{',fast=on' * fast}"]
            words += [str(program), str(model), "--bench", "--hash", "--size", f"{rows}x{width}"]
            run([*words, "--steps", f"1,{steps}", *(["--int16"] if int16 else [])])
            pairs = told.read_text().split("\n")[0].split()
            totals.append(dict(zip(pairs[::2], map(int, pairs[1::2]), strict=True)))
    fired = sum(
        int(fire_mask(FireKey(7, 1), step, 3, np.arange(rows)[:, None], np.arange(width)[None], 0.5).sum())
        for step in (1, 2)
    )
    more = {key: (totals[1][key] - totals[0][key]) / fired for key in totals[0]}
    first = more["l1_loads"] + more["l1_stores"]
    return Cost(*(round(x, 1) for x in (more["instructions"], more["cycles"], first, more["l2"])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--int16", action="store_true")
    arguments = parser.parse_args()
    try:
        cost = count(arguments.model, arguments.width, int16=arguments.int16)
    except RuntimeError as error:
        sys.exit(f"estimate.py: {error}")
    print(json.dumps(asdict(cost) | {"interval_cycles": cost.interval()}, indent=1))


if __name__ == "__main__":
    main()
