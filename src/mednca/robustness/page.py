"""The report card as one HTML file that needs nothing else: curves, tables, and one case at every severity.

Slices are shown in the neurological convention, the patient's left on the left, with their whole field of
view: reference broad and blue, the model orange, a baseline thin, dashed and purple.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mednca.dataset import LabelledScan
from mednca.figures import EVENTS, GREYS, PREDICTION, REFERENCE, WIDTHS
from mednca.metrics import dice_score
from mednca.perturb import PERTURBATIONS, planes
from mednca.robustness import CLEAN, Contender, Job, apply
from mednca.robustness.report import decimals, explanation, points, title
from mednca.volume import Volume

BASELINE = EVENTS[2]
#: Of the curves: the model's is the first.
COLOURS = (PREDICTION, BASELINE)
COLUMNS = 4
DPI = 90


class View(NamedTuple):
    """One slice to show: image, reference and masks (rows, columns), spacing in mm, and what stands above."""

    image: NDArray[Any]
    reference: NDArray[Any]
    masks: tuple[NDArray[Any], ...]
    spacing: tuple[float, float]
    caption: str


def page(report: Mapping[str, Any], strips: Mapping[str, bytes], case: str) -> str:
    """Content of report.json, perturbation -> PNG of one case at its severities, and its id -> HTML."""
    models = report["models"]
    name = html.escape(models[0]["name"])
    parts = [f"<h1>Robustness of {name}</h1>"]
    for role, model in zip(("Model", "Baseline"), models, strict=False):
        clean = model["clean"]
        notes = "".join(f"<br><em>{html.escape(note)}</em>" for note in model["notes"])
        parts.append(
            f"<p><b>{role}</b> {html.escape(model['name'])} <code>{model['hash']}</code>: unperturbed Dice "
            f"{decimals(clean['mean'])} &plusmn; {decimals(clean['sd'])}, least {decimals(clean['min'])} "
            f"({html.escape(clean['worst_case'])}){notes}</p>"
        )
    parts += [f"<p>{html.escape(line)}</p>" for line in explanation(report)]
    parts.append(_picture(curves(report), "Dice over severity, a panel for each perturbation"))
    parts.append(
        f"<p>The pictures below show case {html.escape(case)}, whose unperturbed Dice is the median.</p>"
    )
    for which, one in report["perturbations"].items():
        parts.append(f"<h2>{title(which)}</h2><p>Severity: {html.escape(one['parameter'])}.</p>")
        parts.append(table(one, len(models)))
        if which in strips:
            parts.append(_picture(strips[which], f"{title(which)} at each severity"))
    versions = ", ".join(f"{key} {value}" for key, value in report["provenance"]["versions"].items())
    parts.append(f"<footer>Research software, not a medical device. {html.escape(versions)}.</footer>")
    return _PAGE.format(title=f"Robustness of {name}", body="\n".join(parts))


def table(one: Mapping[str, Any], models: int) -> str:
    """A perturbation of the report -> its table as HTML."""
    head = ["severity", "label in view"]
    for role in ("model", "baseline")[:models]:
        head += [f"{role}: mean", "sd", "least", "change, points"]
    head += ["model - baseline, points"] if models == 2 else []
    rows = []
    for row in one["severities"]:
        cells = [f"{row['severity']:g}", f"{100 * row['kept']:.0f} %"]
        for entry in row["models"]:
            change = points(entry["change"])
            if "change_in_view" in entry:
                inside = points(entry["change_in_view"], interval=False)
                change += f"; {inside} where in view ({row['in_view']} cases)"
            cells += [decimals(entry["mean"]), decimals(entry["sd"]), decimals(entry["min"]), change]
        cells += [points(row["difference"])] if models == 2 else []
        rows.append(cells)
    cells = ["area", ""]
    for area in one["area"]:
        cells += [decimals(area["mean"]), decimals(area["sd"]), decimals(area["min"]), ""]
    cells += [points(one["area_difference"])] if models == 2 else []
    rows.append(cells)
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


# ---- Curves ----


def curves(report: Mapping[str, Any]) -> bytes:
    """Content of report.json -> PNG with a panel for each perturbation: mean Dice over the severity, with the
    95 % interval as a band and the least case as a thin line."""
    rows = -(-len(report["perturbations"]) // COLUMNS)
    figure = Figure((3.1 * COLUMNS, 2.5 * rows + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)).ravel()
    for axes, (name, one) in zip(panels, report["perturbations"].items(), strict=False):
        panel(axes, name, one, report["models"])
    for axes in panels[len(report["perturbations"]) :]:
        axes.axis("off")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=model["name"])
        for colour, model in zip(COLOURS, report["models"], strict=False)
    ]
    handles.append(Line2D([], [], color="0.5", linewidth=0.8, linestyle=":", label="least case"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return _png(figure)


def panel(
    axes: Axes,
    name: str,
    one: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    colours: Sequence[str] = COLOURS,
) -> None:
    """Axes, a perturbation of the report, its models and their colours -> the perturbation's curves."""
    place = next(p for p in PERTURBATIONS if p.name == name).position
    for at, (colour, model) in enumerate(zip(colours, models, strict=False)):
        rows = [(place(row["severity"]), row["models"][at]) for row in one["severities"]]
        rows = sorted([(place(one["neutral"]), model["clean"]), *rows], key=lambda row: row[0])
        x = [row[0] for row in rows]
        axes.plot(x, [row[1]["mean"] for row in rows], color=colour, marker="o", markersize=3.5)
        axes.plot(x, [row[1]["min"] for row in rows], color=colour, linewidth=0.8, linestyle=":")
        if all(row[1]["ci95"][0] is not None for row in rows):
            low, high = zip(*(row[1]["ci95"] for row in rows), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.axvline(place(one["neutral"]), color="0.6", linewidth=0.8)
    ticks = [one["neutral"], *(row["severity"] for row in one["severities"])]
    axes.set_xticks([place(tick) for tick in ticks], [f"{tick:g}" for tick in ticks], fontsize=7)
    axes.set(ylim=(0, 1.02))
    axes.set_title(title(name), fontsize=10)
    axes.set_xlabel(one["parameter"], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(alpha=0.3)


# ---- One case at every severity ----


def strips(
    scan: LabelledScan,
    jobs: Sequence[Job],
    contenders: Sequence[Contender],
    progress: Callable[[Sequence[str]], Iterable[str]] | None = None,
) -> dict[str, bytes]:
    """Case, jobs and contenders -> perturbation -> PNG: one slice of the case at each severity, the first
    seed, with the outlines of reference and masks. The masks are predicted anew."""
    names = list(dict.fromkeys(job.perturbation for job in jobs if job.perturbation != CLEAN))
    clean = view(scan, Job(CLEAN, 0.0, 0), contenders)
    found = {}
    for name in progress(names) if progress else names:
        these = sorted(job for job in jobs if job.perturbation == name and job.seed == 0)
        found[name] = strip([clean, *(view(scan, job, contenders) for job in these)], contenders)
    return found


def view(scan: LabelledScan, job: Job, contenders: Sequence[Contender]) -> View:
    """Case, job and contenders -> the slice in which the label is largest, or the middle one."""
    image, label, _ = apply(scan, job)
    masks = [one.mask(scan.id, job, image) for one in contenders]
    shown, reference = image.canonical(), label.canonical().data[0] != 0
    axes = planes(shown)
    arrays = [
        shown.data[0],
        reference,
        *(Volume(mask[None], image.affine).canonical().data[0] != 0 for mask in masks),
    ]
    slices = [array.transpose(axes) for array in arrays]
    sizes = slices[1].sum(axis=(1, 2))
    at = int(sizes.argmax()) if sizes.any() else len(sizes) // 2
    name = "unperturbed" if job.perturbation == CLEAN else f"{job.severity:g}"
    scores = ", ".join(f"{dice_score(mask, reference):.2f}" for mask in arrays[2:])
    spacing = (shown.spacing[axes[1]], shown.spacing[axes[2]])
    first, second, *rest = (array[at] for array in slices)
    return View(first, second, tuple(rest), spacing, f"{name}\nDice {scores}")


def strip(views: Sequence[View], contenders: Sequence[Contender]) -> bytes:
    """Views -> PNG with all of them side by side, each as large as its field of view allows."""
    figure = Figure((1.75 * len(views), 2.5), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(views), squeeze=False)[0], views, strict=True):
        _draw(axes, one)
    names = ["reference", *(contender.name for contender in contenders)]
    styles = _styles(len(contenders))
    handles = [Line2D([], [], label=name, **style) for name, style in zip(names, styles, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return _png(figure)


def _draw(axes: Axes, one: View) -> None:
    width, height = (n * step for n, step in zip(one.image.shape, one.spacing, strict=True))
    low, high = np.percentile(one.image, (0.5, 99.5))
    grey = np.round(np.clip((one.image - low) / ((high - low) or 1.0), 0, 1) * (GREYS - 1))
    extent = (0.0, width, 0.0, height)
    axes.imshow(grey.T, cmap="gray", vmin=0, vmax=GREYS - 1, origin="lower", extent=extent)
    x, y = ((np.arange(-1, n + 1) + 0.5) * step for n, step in zip(one.image.shape, one.spacing, strict=True))
    for mask, style in zip((one.reference, *one.masks), _styles(len(one.masks)), strict=True):
        if mask.any():
            axes.contour(
                *(x, y, np.pad(mask, 1).T.astype(float), [0.5]),
                colors=[style["color"]],
                linewidths=style["linewidth"],
                linestyles=style["linestyle"],
            )
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(0, height))
    axes.set_title(one.caption, fontsize=8)


def _styles(masks: int) -> list[dict[str, Any]]:
    """Number of masks -> how the reference and each of them is drawn."""
    return [
        {"color": REFERENCE, "linewidth": WIDTHS[0], "linestyle": "-"},
        {"color": PREDICTION, "linewidth": WIDTHS[1], "linestyle": "-"},
        {"color": BASELINE, "linewidth": 1.0, "linestyle": "--"},
    ][: masks + 1]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def _picture(png: bytes, what: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{data}">'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color:
#222; }} img {{ max-width: 100%; display: block; margin: 1em 0; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #ddd; padding: 3px 9px; text-align: right; }}
h2 {{ margin-top: 2em; border-top: 1px solid #ccc; padding-top: 0.6em; }}
footer {{ margin: 3em 0 1em; color: #666; font-size: 13px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
