"""The paper's Fig. 4, seconds of a slice on a Raspberry Pi B+ by its size: an estimate, from counts.

    python reproduce/fig4.py

counts what an update of a cell costs on the emulated processor (runtime/pi/estimate.py) for rows of several
widths, multiplies with the updates of the paper's model (64 steps on the image downscaled by 4, 64 on the
full one), and writes reproduce/results/fig4.json and fig4.png. Nothing here was measured on a Raspberry Pi;
docs/explanation/pi-estimate.md has the method and what it leaves out. About two minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mednca import __version__
from mednca.files import atomic_write, replacing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "reproduce" / "results"
sys.path.insert(0, str(ROOT / "runtime" / "pi"))

#: Widths of a row of cells whose costs are counted; between them they are interpolated.
WIDTHS = (8, 16, 32, 64, 80, 128, 192, 256, 320)
SIZES = tuple(range(32, 321, 32))
STEPS, FIRE_RATE, SCALE = 64, 0.5, 4
#: The paper's figure: 30 minutes for a slice of 320 x 320.
PAPER_MINUTES, PAPER_SIZE = 30.0, 320


def main() -> None:
    """Count, estimate, write and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    import estimate

    if estimate.missing():
        sys.exit(f"fig4.py: {estimate.missing()}")
    costs: dict[str, dict[int, Any]] = {"fp32": {}, "int16": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = estimate.paper_model(Path(folder) / "paper.safetensors")
        for name, found in costs.items():
            for width in WIDTHS:
                found[width] = estimate.count(model, width, int16=name == "int16")
                print(f"{name}, rows of {width}: {found[width]}", file=sys.stderr)
    seconds = {
        name: {size: slice_seconds(found, size, estimate.HERTZ) for size in SIZES}
        for name, found in costs.items()
    }
    result = {
        "what": "an estimate from executed instructions, core cycles and cache misses; not measured on a Pi",
        "command": "python reproduce/fig4.py",
        "mednca": __version__,
        "model": "70,016 parameters, 64 + 64 steps",
        "misses_cycles": {"first": estimate.FIRST, "second": estimate.SECOND},
        "cost_of_a_cell_that_fires": {
            name: {
                width: asdict(cost) | {"interval_cycles": [round(x) for x in cost.interval()]}
                for width, cost in found.items()
            }
            for name, found in costs.items()
        },
        "seconds": {
            name: {size: [round(x, 1) for x in row["whole"]] for size, row in rows.items()}
            for name, rows in seconds.items()
        },
        "share_of_the_coarse_level": {name: round(rows[320]["coarse"], 3) for name, rows in seconds.items()},
        "paper_minutes_320": PAPER_MINUTES,
    }
    RESULTS.mkdir(exist_ok=True)
    atomic_write(RESULTS / "fig4.json", json.dumps(result, indent=1).encode() + b"\n", force=True)
    draw(seconds)
    for name, rows in seconds.items():
        low, high = (x / 60 for x in rows[320]["whole"])
        print(f"{name}: {low:.1f} to {high:.1f} minutes for a slice of 320 x 320 (paper: 30)")


def slice_seconds(costs: dict[int, Any], size: int, hertz: float) -> dict[str, Any]:
    """Costs by width and the size of a slice -> seconds from and to, and the coarse level's share of them."""
    parts = []
    for side in (size // SCALE, size):
        updates = side * side * STEPS * FIRE_RATE
        ends = [
            float(np.interp(side, WIDTHS, [costs[width].interval()[end] for width in WIDTHS]))
            for end in (0, 1)
        ]
        parts.append([updates * cycles / hertz for cycles in ends])
    whole = [coarse + fine for coarse, fine in zip(*parts, strict=True)]
    return {"whole": whole, "coarse": sum(parts[0]) / sum(whole)}


def draw(seconds: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Seconds by numbers and size -> the picture."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.6), layout="constrained")
    axes = figure.subplots()
    sizes = np.array(SIZES)
    axes.plot(
        sizes,
        PAPER_MINUTES * (sizes / PAPER_SIZE) ** 2,
        "--",
        color="0.4",
        label="paper: 30 min at 320 x 320, drawn in proportion to the pixels",
    )
    axes.plot([PAPER_SIZE], [PAPER_MINUTES], "o", color="0.4")
    for (name, rows), colour in zip(seconds.items(), ("tab:blue", "tab:orange"), strict=True):
        low, high = (np.array([rows[size]["whole"][end] for size in SIZES]) / 60 for end in (0, 1))
        axes.fill_between(sizes, low, high, alpha=0.45, color=colour, label=f"mednca, {name} (estimate)")
    axes.set_yscale("log")
    axes.set_xticks(sizes)
    axes.set_xlabel("side of the slice, pixels")
    axes.set_ylabel("minutes for a slice")
    axes.set_title("Raspberry Pi B+, 70,016 parameters, 64 + 64 steps\nestimated from counts, not measured")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with replacing(RESULTS / "fig4.png") as path:
        figure.savefig(path, dpi=110, format="png")


if __name__ == "__main__":
    main()
