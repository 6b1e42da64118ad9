"""What the robust recipe is to hold, and all report cards side by side: cards.md and cards.png."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednca.files import atomic_write
from mednca.perturb import find as find_perturbations
from reproduce.catalogue import CARDS, find
from reproduce.stored_cards import BEFORE, NAMES, difference, read_card, row_of
from reproduce.tables import markdown, why_not


@dataclass(frozen=True)
class Claim:
    """What the default recipe is to hold.

    Attributes:
        perturbation: Its name.
        between: Severities, ends included.
        limit: Most points of 0.01 Dice that may be lost in the mean, at the worst of these severities.
        at_least: Instead: mean Dice above which it holds in any case.
        above: Or: points above the U-Net of the same training that are enough for ours.
        in_view: Whether only cases count in which the organ stays in view.
    """

    perturbation: str
    between: tuple[float, float]
    limit: float | None = None
    at_least: float | None = None
    above: float | None = None
    in_view: bool = False


CLAIMS = (
    Claim("translation", (0.1, 0.5), limit=1, in_view=True),
    Claim("translation_edge", (0.1, 0.5), limit=1, in_view=True),
    Claim("shape", (0.5, 2), limit=3),
    Claim("scale", (0.8, 1.5), limit=3),
    Claim("ghosting", (2.5, 2.5), at_least=0.75, above=12),
    Claim("anisotropy", (4, 4), limit=1),
    Claim("bias_field", (1.5, 1.5), limit=12),
    Claim("noise", (0.2, 0.2), limit=5),
)


def worst(card: dict[str, Any], claim: Claim) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Card and claim -> the severity in question at which most is lost, its entry, and the change there."""
    rows = card["report"]["perturbations"][claim.perturbation]["severities"]
    found = []
    for row in rows:
        if claim.between[0] <= row["severity"] <= claim.between[1]:
            (entry,) = row["models"]
            inside = claim.in_view and row["in_view"] < entry["n"]
            change = entry.get("change_in_view") if inside else entry["change"]
            if change is not None:
                found.append((row["severity"], entry, change))
    return min(found, key=lambda one: float(one[2]["mean"]))


def met(claim: Claim, name: str, cards: dict[str, dict[str, Any]]) -> bool:
    """Claim, name of a card and all cards by name -> whether the card holds it."""
    severity, entry, change = worst(cards[name], claim)
    if claim.limit is not None:
        return bool(-100 * change["mean"] <= claim.limit)
    ours, baseline = CARDS
    if name == ours and baseline in cards and claim.above is not None:
        ahead = difference(cards[ours], cards[baseline], f"{claim.perturbation} {severity:g}")["mean"]
        if 100 * ahead >= claim.above:
            return True
    return claim.at_least is not None and bool(entry["mean"] > claim.at_least)


def told(claim: Claim) -> str:
    """Claim -> what is asked for, in words."""
    if claim.limit is not None:
        return f"at most {claim.limit:g} lost" + (" where in view" if claim.in_view else "")
    return f"Dice of {claim.at_least}, or {claim.above:g} above the U-Net"


def draw(results: Path, *, quick: bool = False) -> list[Path]:
    """Folder of results -> cards.md and, where there is a card, cards.png."""
    cards = {name: read_card(name, results, quick=quick) for name in NAMES}
    there = {name: card for name, card in cards.items() if card is not None}
    text = [
        "# Report cards" + (" (QUICK MODE: no result)" if quick else ""),
        "Drawn by `python reproduce/cards.py --draw` from the files in `cards/`, which hold every case. Out "
        "of fold, hard Dice of all foreground on the grid of the perturbed image, one draw of each "
        "perturbation. Points are 0.01 Dice: the mean paired difference to the same case unperturbed, with a "
        "95 % interval over persons. What each severity is stands in `docs/reference/perturbations.md`.",
        markdown(
            (
                "model",
                "what it is",
                "cases",
                "persons",
                "folds missing",
                "unperturbed Dice",
                "least",
                "command",
            ),
            [_head(name, card) for name, card in cards.items()],
        ),
        "## What the recipe is to hold",
        "The worst of the severities named. *Met* or not is the mean's; the interval tells how sure that is.",
        markdown(
            ("perturbation", "asked for", *(row_of(name) for name in there)),
            [_row(claim, there) for claim in CLAIMS],
        ),
        "## Every perturbation",
        "Mean Dice at the worst severity, and points lost there.",
        markdown(
            ("perturbation", *(row_of(name) for name in there)),
            [_every(one.name, there) for one in find_perturbations()] if there else [],
        ),
    ]
    atomic_write(results / "cards.md", "\n\n".join(text) + "\n")
    return [results / "cards.md", *([_picture(there, results)] if there else [])]


def _head(name: str, card: dict[str, Any] | None) -> list[str]:
    from mednca.robustness.report import decimals

    row = row_of(name)
    if card is None:
        experiment = find([CARDS[0] if name == BEFORE else name])[0]
        told = (
            "not run: no models of its folds were to be had yet" if experiment.kept else why_not(experiment)
        )
        return [name, row, told, "", "", "", "", ""]
    report = card["report"]
    clean = report["models"][0]["clean"]
    return [
        name,
        row,
        *(str(report[key]) for key in ("cases", "persons")),
        str(len(card["missing"])),
        f"{decimals(clean['mean'])} ± {decimals(clean['sd'])}",
        decimals(clean["min"]),
        f"`{report['provenance']['command']}`",
    ]


def _row(claim: Claim, cards: dict[str, dict[str, Any]]) -> list[str]:
    """Claim and cards -> its row of the table."""
    from mednca.robustness.report import decimals, points, title

    low, high = claim.between
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    cells = [f"{title(claim.perturbation)} {span}", told(claim)]
    for name, card in cards.items():
        severity, entry, change = worst(card, claim)
        at = "" if low == high else f" at {severity:g}"
        cells.append(
            f"{decimals(entry['mean'])}, {points(change)}{at}{': met' if met(claim, name, cards) else ''}"
        )
    return cells


def _every(name: str, cards: dict[str, dict[str, Any]]) -> list[str]:
    """Perturbation and cards -> its row of the table of all."""
    from mednca.robustness.report import decimals, points, title, worst_row

    cells = [title(name)]
    for card in cards.values():
        row = worst_row(card["report"]["perturbations"][name], 0)
        (entry,) = row["models"]
        cells.append(f"{decimals(entry['mean'])} at {row['severity']:g}, {points(entry['change'])}")
    return cells


def _picture(cards: dict[str, dict[str, Any]], results: Path) -> Path:
    """Cards -> a panel for each perturbation, a curve for each card."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from mednca.files import replacing
    from mednca.robustness.page import panel

    colours = [f"C{number}" for number in range(len(cards))]
    perturbations = find_perturbations()
    columns = 5
    figure = Figure((3.0 * columns, 2.5 * -(-len(perturbations) // columns) + 0.5), layout="constrained")
    panels = figure.subplots(-(-len(perturbations) // columns), columns, sharey=True, squeeze=False).ravel()
    for axes, one in zip(panels, perturbations, strict=False):
        for colour, card in zip(colours, cards.values(), strict=True):
            report = card["report"]
            panel(axes, one.name, report["perturbations"][one.name], report["models"], colours=(colour,))
    for axes in panels[len(perturbations) :]:
        axes.axis("off")
    handles = [
        Line2D(
            *([], []),
            color=colour,
            marker="o",
            markersize=4,
            label=f"{row_of(name)} ({card['report']['cases']} cases)",
        )
        for colour, (name, card) in zip(colours, cards.items(), strict=True)
    ]
    handles.append(Line2D([], [], color="0.5", linewidth=0.8, linestyle=":", label="least case"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    with replacing(results / "cards.png") as path:
        figure.savefig(path, dpi=80, format="png")
    return results / "cards.png"
