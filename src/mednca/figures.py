"""Pictures to judge a model by: outlines on slices, training curves and Dice per case, as PNG files.

Slices are shown in the neurological convention, the patient's left on the left, with letters for the
directions. The reference is a broad blue line and the prediction a thin orange one on top of it, so that both
show where they agree and so that a colour-blind reader can tell them apart. A figure is written whole or not
at all.

Shapes: image (X, Y, Z) in any intensity; reference and mask (X, Y, Z), 0 for background; spacing (3,) in mm.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mednca.errors import InputError
from mednca.files import replacing
from mednca.metrics import dice_score

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise InputError(
        "figures need Matplotlib, which is not installed: pip install 'mednca[train]'"
    ) from error

Array = npt.NDArray[Any]

# Okabe and Ito's colours, which differ for every kind of colour vision.
REFERENCE, PREDICTION, EVENTS = "#56B4E9", "#E69F00", ("#D55E00", "#009E73", "#CC79A7", "#0072B2")
WIDTHS = (3.6, 1.5)  # points: the reference shows on both sides of the prediction
DIRECTIONS = ("LR", "PA", "IS")  # the low and the high end of each axis in RAS+ order
PLANES = ("sagittal", "coronal", "axial")
MARGIN_MM = 15.0  # shown around the organ, so that its surroundings are seen
DPI = 110
GREYS = 40  # few enough for a small file, too many to see


class Picture(NamedTuple):
    """One case to show: image, reference and mask (X, Y, Z), spacing (3,) in mm, and the axes' directions."""

    name: str
    image: npt.ArrayLike
    reference: npt.ArrayLike
    mask: npt.ArrayLike
    spacing: Sequence[float]
    orientation: str = "RAS"  # where each axis leads, as "".join(nibabel.aff2axcodes(affine))


def overlay(
    path: str | Path,
    image: npt.ArrayLike,
    reference: npt.ArrayLike,
    mask: npt.ArrayLike,
    spacing: Sequence[float],
    title: str,
    *,
    orientation: str = "RAS",
) -> Path:
    """Draw three slices through the organ, plain at left and with both outlines at right; return the PNG.

    The slices lie where the reference and the mask begin, centre and end; they are cut across the thickest
    axis of an anisotropic image, else they are axial. The title carries the Dice of all foreground together.

    Args:
        path: The PNG to write.
        image: Any intensities; shown from the 0.5th to the 99.5th percentile of the slices' part.
        reference: Labels, 0 for background.
        mask: The prediction, with the same values.
        spacing: Of the three axes, in mm.
        title: What the figure shows, as a case's name.
        orientation: Where each axis leads, three letters as nibabel.aff2axcodes gives them.

    Raises:
        ValueError: If shapes differ, an array is not 3-D, or spacing or orientation cannot be such.
    """
    case = Picture(title, image, reference, mask, spacing, orientation)
    panels, plane = _slices(case)
    sizes = [_size_mm(panel) for panel in panels]
    width = 2.7  # inches of a panel
    height = sum(width * size[1] / size[0] + 0.3 for size in sizes)
    figure = Figure((2 * width + 0.6, min(height, 14.0) + 1.4), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        _draw(row[0], panel, outlines=False)
        _draw(row[1], panel, outlines=True)
    figure.suptitle(f"{_wrap(title, 60)}\nDice {_dice(case):.3f}", fontsize=12)
    _legend(figure, plane)
    return _save(figure, path)


def overlay_sheet(path: str | Path, cases: Sequence[Picture]) -> Path:
    """Draw the worst, the median and the best of some cases by Dice, one row each, and return the PNG's path.

    Of an even number the lower median is taken; fewer than three cases are all shown. Raises ValueError
    without a case, and as overlay does.
    """
    if not cases:
        raise ValueError("cases must hold at least one case, got none")
    ranked = sorted(((_dice(case), number) for number, case in enumerate(cases)))
    chosen = {"worst": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]}
    if len(cases) == 2:
        del chosen["median"]
    if len(cases) == 1:
        chosen = {"only case": ranked[0]}

    figure = Figure((8.4, 3.0 * len(chosen) + 0.9), layout="constrained")
    planes = []
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(chosen), 1), dtype=object))
    for part, (rank, (dice, number)) in zip(parts, chosen.items(), strict=True):
        panels, plane = _slices(cases[number])
        part.suptitle(f"{rank}: Dice {dice:.3f}   ({_wrap(cases[number].name, 60)})", fontsize=11)
        for axes, panel in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel, outlines=True)
        planes.append(plane)
    _legend(figure, " and ".join(dict.fromkeys(planes)), f"{len(cases)} cases in all; ")
    return _save(figure, path)


def curves(path: str | Path, metrics_jsonl_path: str | Path) -> Path:
    """Draw loss (log scale), validation Dice and events of a training from its metrics.jsonl; return the PNG.

    A line is a JSON object with kind "train" (iteration, loss), "validation" (iteration, dice) or "event"
    (iteration, event); other kinds and keys are skipped. A last line without its newline is still being
    written and is skipped. A loss that a log scale cannot show (zero, negative, nan) leaves a gap.

    Raises:
        InputError: If the file cannot be read, a line is not such an object, or no loss stands in it.
    """
    source = Path(metrics_jsonl_path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read as metrics: {error}") from error
    loss: list[tuple[float, float]] = []
    dice: list[tuple[float, float]] = []
    events: dict[str, list[float]] = {}
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            if entry["kind"] == "train":
                value = float(entry["loss"])
                loss.append((float(entry["iteration"]), value if 0 < value < math.inf else math.nan))
            elif entry["kind"] == "validation":
                dice.append((float(entry["iteration"]), float(entry["dice"])))
            elif entry["kind"] == "event":
                events.setdefault(str(entry["event"]), []).append(float(entry["iteration"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{source}, line {number}, is not an entry of metrics.jsonl: {error!r}"
            ) from error
    if not any(math.isfinite(value) for _, value in loss):
        raise InputError(f"{source} holds no loss that can be drawn; it needs lines with kind 'train'")

    figure = Figure((7.5, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    x, y = _with_gaps(loss)
    top.plot(x, y, color="0.65", linewidth=0.7, label="loss")
    window = max(1, len(loss) // 50)
    if window > 1:
        smooth = [
            np.nanmedian(y[max(0, i - window) : i + 1]) if y[i] > 0 else math.nan for i in range(len(y))
        ]
        top.plot(x, smooth, color="black", linewidth=1.4, label=f"median of {window + 1}")
    top.set_yscale("log")
    top.set_ylabel("loss (log scale)")
    if dice:
        x, y = _with_gaps(dice)
        bottom.plot(x, y, color=REFERENCE, marker="o", markersize=4, label="validation Dice")
        best = max(dice, key=lambda entry: -1 if math.isnan(entry[1]) else entry[1])
        bottom.set_title(f"best validation Dice {best[1]:.3f} at iteration {best[0]:.0f}", fontsize=10)
    else:
        bottom.text(0.5, 0.5, "no validation yet", ha="center", va="center", transform=bottom.transAxes)
    bottom.set(xlabel="iteration", ylabel="Dice", ylim=(_floor([value for _, value in dice]), 1.01))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        for index, (event, places) in enumerate(events.items()):
            style = {"color": EVENTS[index % len(EVENTS)], "linestyle": ("--", ":", "-.")[index % 3]}
            for count, place in enumerate(places):
                name = f"{event} ({len(places)})" if axes is top and count == 0 else None
                axes.axvline(place, linewidth=1.3, label=name, **style)
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return _save(figure, path)


def box(path: str | Path, values: Mapping[str, Sequence[float]]) -> Path:
    """Draw a box (quartiles, median) over the single Dice scores of each name, and return the PNG's path.

    The whiskers reach to the last case within 1.5 times the box. Scores that are nan are left out and counted
    in the name. Raises ValueError if there is no name, or a name without a score.
    """
    scores = {name: np.asarray(score, dtype=np.float64) for name, score in values.items()}
    finite = {name: score[np.isfinite(score)] for name, score in scores.items()}
    if not finite or any(score.size == 0 for score in finite.values()):
        raise ValueError(f"values must hold at least one finite score per name, got {dict(values)}")
    labels = []
    for name, score in finite.items():
        missing = scores[name].size - score.size
        labels.append(f"{_wrap(name, 28)}\nn = {score.size}" + (f" ({missing} undefined)" if missing else ""))

    figure = Figure((7.5, 0.85 * len(finite) + 1.1), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(finite), 0, -1)
    style: dict[str, Any] = {"medianprops": {"color": "black", "linewidth": 1.8}, "showfliers": False}
    axes.boxplot(list(finite.values()), positions=rows, orientation="horizontal", widths=0.5, **style)
    for row, score in zip(rows, finite.values(), strict=True):
        # Spread by rank, not at random, so that the same scores give the same picture.
        spread = (np.arange(score.size) * 0.618 % 1 - 0.5) * 0.36
        axes.plot(np.sort(score), row + spread, "o", color=REFERENCE, markersize=4, alpha=0.7, zorder=0)
        text = f"median {np.median(score):.3f}"
        axes.annotate(text, (1.0, row), (6, 0), ("axes fraction", "data"), "offset points", va="center")
    axes.set(xlabel="Dice per case", xlim=(_floor(np.concatenate(list(finite.values()))), 1.01))
    axes.set_yticks(rows, labels)
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, path)


class _Panel(NamedTuple):
    image: Array  # (horizontal, vertical), as all three; the window of a slice that is shown
    reference: Array
    mask: Array
    spacing: tuple[float, float]
    letters: tuple[str, str]  # the ends of the horizontal and of the vertical axis, low then high
    limits: tuple[float, float]  # the intensities shown as black and as white
    caption: str


def _slices(case: Picture) -> tuple[list[_Panel], str]:
    """Return slices of a case, in RAS+ and cut to the organ's surroundings, and the name of their plane."""
    arrays = [np.asarray(array) for array in (case.image, case.reference, case.mask)]
    if arrays[0].ndim != 3 or any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(
            f"image, reference and mask must share a shape (X, Y, Z), got {[a.shape for a in arrays]}"
        )
    if len(case.spacing) != 3 or not all(0 < step < math.inf for step in case.spacing):
        raise ValueError(f"spacing must be three positive lengths in mm, got {tuple(case.spacing)}")
    order = [
        next((axis for axis, letter in enumerate(case.orientation) if letter in pair), -1)
        for pair in DIRECTIONS
    ]
    if sorted(order) != [0, 1, 2] or len(case.orientation) != 3:
        raise ValueError(f"orientation must be three letters as 'RAS' or 'LPS', got {case.orientation!r}")
    flips = tuple(slice(None, None, -1 if case.orientation[axis] in "LPI" else 1) for axis in order)
    image, reference, mask = (array.transpose(order)[flips] for array in arrays)
    spacing = [float(case.spacing[axis]) for axis in order]

    across = int(np.argmax(spacing)) if max(spacing) > 1.5 * sorted(spacing)[1] else 2
    left, up = (axis for axis in range(3) if axis != across)
    shown = (reference != 0) | (mask != 0)
    if not shown.any():
        shown = np.ones_like(shown)
    share = np.cumsum(shown.sum(axis=(left, up))) / shown.sum()
    chosen = [int(np.searchsorted(share, part)) for part in (0.1, 0.5, 0.9)]
    nearest = sorted(range(len(share)), key=lambda place: (abs(place - chosen[1]), place))
    places = sorted(list(dict.fromkeys(chosen + nearest))[:3])  # three even where the organ is thinner

    window: list[slice] = [slice(None)] * 3
    for axis in (left, up):
        inside = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = math.ceil(MARGIN_MM / spacing[axis])
        window[axis] = slice(max(0, int(inside[0]) - margin), int(inside[-1]) + margin + 1)
    part = image[tuple(window)]
    low, high = np.percentile(part[np.isfinite(part)], (0.5, 99.5)) if np.isfinite(part).any() else (0.0, 1.0)
    panels = []
    for place in places:
        window[across] = slice(place, place + 1)
        grey, labels, found = (array[tuple(window)].squeeze(across) for array in (image, reference, mask))
        caption = f"{PLANES[across]} slice {place + 1} of {len(share)}"
        letters, steps = (DIRECTIONS[left], DIRECTIONS[up]), (spacing[left], spacing[up])
        panels.append(_Panel(grey, labels, found, steps, letters, (float(low), float(high)), caption))
    return panels, PLANES[across]


def _draw(axes: Axes, panel: _Panel, outlines: bool) -> None:
    """Draw a slice in mm, with its directions and a 10 mm bar, and if asked with both outlines."""
    width, height = _size_mm(panel)
    low, high = panel.limits
    grey = np.round(np.clip((panel.image - low) / ((high - low) or 1.0), 0, 1) * (GREYS - 1))
    extent = (0.0, width, 0.0, height)
    axes.imshow(
        grey.T, cmap="gray", vmin=0, vmax=GREYS - 1, origin="lower", extent=extent, interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(0, height))
    axes.set_title(panel.caption, fontsize=9)
    ends = [(0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98)]
    sides = [("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top")]
    for letter, place, (ha, va) in zip("".join(panel.letters), ends, sides, strict=True):
        plate = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1.2}
        axes.text(
            *place, letter, color="white", ha=ha, va=va, fontsize=9, transform=axes.transAxes, bbox=plate
        )
    axes.plot([0.04 * width, 0.04 * width + 10], [0.04 * height] * 2, color="black", linewidth=4.5, zorder=3)
    axes.plot([0.04 * width, 0.04 * width + 10], [0.04 * height] * 2, color="white", linewidth=2.5, zorder=3)
    if outlines:
        for labels, colour, line in (
            (panel.reference, REFERENCE, WIDTHS[0]),
            (panel.mask, PREDICTION, WIDTHS[1]),
        ):
            steps = zip(labels.shape, panel.spacing, strict=True)
            x, y = ((np.arange(-1, size + 1) + 0.5) * step for size, step in steps)
            for value in np.unique(labels[labels != 0]):
                # The frame of zeros closes an outline that meets the edge.
                axes.contour(x, y, np.pad(labels == value, 1).T, [0.5], colors=[colour], linewidths=line)


def _legend(figure: Figure, plane: str, note: str = "") -> None:
    """Put the legend and what the reader must know of the view below a figure."""
    lines = [
        Line2D([], [], color=REFERENCE, linewidth=WIDTHS[0]),
        Line2D([], [], color=PREDICTION, linewidth=WIDTHS[1]),
    ]
    title = f"{note}{plane} slices, neurological convention (left is the patient's left); bar 10 mm"
    names = ["reference", "prediction"]
    figure.legend(
        lines, names, loc="outside lower center", ncols=2, title=title, title_fontsize=9, frameon=False
    )


def _size_mm(panel: _Panel) -> tuple[float, float]:
    """Return how wide and how high a panel is, in mm."""
    return panel.image.shape[0] * panel.spacing[0], panel.image.shape[1] * panel.spacing[1]


def _dice(case: Picture) -> float:
    """Return the Dice of all foreground together; 1 if both are empty."""
    return dice_score(np.asarray(case.mask) != 0, np.asarray(case.reference) != 0)


def _with_gaps(points: list[tuple[float, float]]) -> tuple[Array, Array]:
    """Return x and y of some points, with a nan wherever x goes back, as after a roll-back or a resume."""
    x, y = np.array(points, dtype=np.float64).T
    back = np.flatnonzero(np.diff(x) <= 0) + 1
    return np.insert(x, back, x[back]), np.insert(y, back, math.nan)


def _floor(scores: Sequence[float] | Array) -> float:
    """Return where a Dice axis begins: the tenth below the lowest score, with some room."""
    return max(0.0, math.floor((min((s for s in scores if math.isfinite(s)), default=0.0) - 0.03) * 10) / 10)


def _wrap(text: str, width: int) -> str:
    """Return a text with line breaks, so that a long name is not cut at the figure's edge."""
    return "\n".join(textwrap.wrap(text, width)) or text


def _save(figure: Figure, path: str | Path) -> Path:
    """Write a figure under another name of the same folder and suffix, then rename it; return the path."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    return Path(path)
