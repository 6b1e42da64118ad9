"""The planner's choice, told with its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.fingerprint import Fingerprint
    from mednca.plan import Plan as Planned


@dataclass(frozen=True)
class Plan:
    """Tell what 'mednca train' would do with a folder of labelled scans, why, and what it would cost.

    Examples:
        mednca plan Task04_Hippocampus
        mednca plan Task04_Hippocampus --budget pi --json plan.json
        mednca plan Task04_Hippocampus --recipe native
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    recipe: Literal["robust", "native"] = "robust"
    """robust, as 'mednca train' does by default, or native, the same without what prepares a model for scans
    unlike those of training."""
    budget: Literal["pi", "laptop", "best"] = "best"
    """What may be spent: pi (at most 20,000 parameters, lean), laptop, or best (70,016, as the paper)."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person; see 'mednca train --help'. Changes nothing here but that the rule is checked."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the plan, its reasons and the complete configuration to this file."""
    force: bool = False
    """Replace an existing file."""

    def run(self) -> int:
        """Read the scans, and print the plan."""
        from tqdm import tqdm

        from mednca.cases import find_labelled_cases
        from mednca.dataset import fingerprint, load_scans
        from mednca.files import atomic_write
        from mednca.plan import to_json
        from mednca.recipes import planned

        if self.json is not None and self.json.exists() and not self.force:
            raise InputError(f"{self.json}: exists already; choose another name or give --force")
        cases = find_labelled_cases(self.data, self.group)
        scans = load_scans(cases.cases, lambda c: tqdm(c, unit="scan", leave=False, delay=2, disable=None))
        made = planned(self.recipe, fingerprint(cases, scans), self.budget)
        if self.json is not None:
            atomic_write(self.json, to_json(made), force=self.force)
        print(table(made))
        return 0


def table(made: Planned) -> str:
    """Plan -> what was found, what was chosen and why, and what it costs, for a person to read."""
    data, cost, train = made.data, made.cost, made.config.train
    unit = "mm" if data.spacing_known else "pixels"
    found = [
        ("scans", f"{data.cases}, with {data.slices} slices and {data.modalities} channel(s)"),
        ("size", f"{times(data.shape)}" + spread(data)),
        (
            "spacing",
            f"{times(data.spacing)} mm" if data.spacing_known else "not known: lengths are in pixels",
        ),
        ("labels", ", ".join(f"{value} {name}" for value, name in sorted(data.labels.items()))),
    ]
    if data.extent and data.extent_95 and data.chord and data.share is not None:
        found += [
            (
                "foreground",
                f"{100 * data.share:.3g} % of the voxels, {times(data.chord)} {unit} through on average",
            ),
            ("bounding box", f"{times(data.extent)} {unit}, 95th percentile {times(data.extent_95)}"),
        ]
    minutes = cost.iteration_seconds * train.iterations / 60
    spent = [
        ("parameters", f"{cost.parameters:,} (the paper's model: 70,016)"),
        (
            "multiply-adds",
            f"{cost.multiply_adds / 1e6:,.0f} million a slice, "
            f"{cost.fired_multiply_adds / 1e6:,.0f} million for the cells that fire",
        ),
        (
            "paper's model",
            f"{cost.ratio_64:.3g} times as many on the same grid with its 64 steps, "
            f"{cost.ratio_16:.3g} times with 16",
        ),
        (
            "training",
            f"about {minutes:.0f} minutes of one core and {cost.training_bytes / 1e9:.1f} GB (estimates)",
        ),
    ]
    lines = ["Found in the data (medians)"]
    lines += [f"  {name:15}{value}" for name, value in found]
    lines += ["", f"Chosen for the budget {made.budget!r}"]
    names = max(len(choice.value) for choice in made.choices) + 2
    lines += [f"  {choice.name:10}{choice.value:{names}}{choice.why}" for choice in made.choices]
    lines += ["", "Cost"]
    lines += [f"  {name:15}{value}" for name, value in spent]
    return "\n".join(lines)


def times(numbers: tuple[float, ...]) -> str:
    """Numbers -> "3 x 4 x 5"."""
    return " x ".join(f"{number:.4g}" for number in numbers)


def spread(data: Fingerprint) -> str:
    """Fingerprint -> " (2 x 3 x 4 to 4 x 5 x 6)", or nothing where all are alike."""
    if data.least is None or data.largest is None or data.least == data.largest:
        return ""
    return f" ({times(data.least)} to {times(data.largest)})"
