"""The experiments: what is trained on which data, by which recipe, judged how. A list to read, and to add to.

A protocol is a stored split of `folds.py`. The name of an experiment is that of its result,
`results/<table>/<name>.json`, and of its folder of runs, `RUNS/<name>/seed_0/fold_0` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Our own models: what the planner chooses for a budget. The first is the default recipe.
BEST, LEAN = "native", "plan:pi"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Experiment:
    """One model on one data set in one protocol.

    Attributes:
        name: Of its result and of its folder of runs.
        row: The row of the table, or the point of the figure.
        split: Name of a stored split.
        recipe: Name of a recipe, or "plan:BUDGET".
        changes: Settings that replace the recipe's, one level of nesting.
        separate: Whether each label is a class of its own.
        seeds: Of the trainings.
        minutes: Rough core-minutes of one training, for the plan; None if nobody knows.
        by: What trains it: "mednca", or "nnunet", which has commands of its own.
        why: Reason for which it was not run, where there is one to tell.
    """

    name: str
    row: str
    split: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    separate: bool = False
    seeds: tuple[int, ...] = (0,)
    minutes: float | None = None
    by: str = "mednca"
    why: str = ""


#: Row of the paper's Table 1 -> (hippocampus mean, sd), (prostate mean, sd), parameters as printed. The
#: paper's Dice is soft. One sd is a misprint there (0.870), one count follows from no reading of the formula
#: (h = 64: ours has 53,504).
PAPER: dict[str, tuple[tuple[float, float | None], tuple[float, float], int]] = {
    "Med-NCA": ((0.886, 0.042), (0.838, 0.083), 70_016),
    "Med-NCA, n = 16": ((0.873, 0.033), (0.822, 0.087), 25_920),
    "Med-NCA, h = 64": ((0.858, 0.047), (0.808, 0.125), 47_530),
    "one backbone, 64 x 64": ((0.871, None), (0.789, 0.132), 35_008),
    "Seg. NCA": ((0.805, 0.045), (0.634, 0.190), 39_472),
    "U-Net": ((0.858, 0.044), (0.799, 0.099), 36_951_555),
}

#: Core-minutes of one training of the paper's recipe (30,000 iterations), as rough as a count of cell updates
#: against measured trainings of other recipes makes them: on the hippocampus and on the prostate.
ROUGH = {"med_nca": (100, 3000), "med_nca_n16": (40, 1100), "med_nca_h64": (70, 2000)}

#: Name, row of the table, recipe ("paper": the one for the organ), changes, seeds.
_ROWS: tuple[tuple[str, str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ("med_nca", "Med-NCA", "paper", {}, SEEDS),
    ("med_nca_n16", "Med-NCA, n = 16", "paper", {"model": {"channels": 16}}, (0,)),
    ("med_nca_h64", "Med-NCA, h = 64", "paper", {"model": {"hidden": 64}}, (0,)),
    ("backbone", "one backbone, 64 x 64", "backbone", {}, (0,)),
    ("seg_nca", "Seg. NCA", "seg_nca", {}, (0,)),
    ("unet_plain", "U-Net", "unet_plain", {}, (0,)),
    ("unet", "U-Net, our training", "unet", {}, (0,)),
    ("best", "ours, best", BEST, {}, (0,)),
    ("lean", "ours, lean", LEAN, {}, (0,)),
)


def _rows() -> Iterator[Experiment]:
    """The rows of Table 1 on both data sets, then the other protocols of the hippocampus."""
    for at, organ in enumerate(("hippocampus", "prostate")):
        split = "prostate" if at else "hippocampus_by_person"
        for name, row, recipe, changes, seeds in _ROWS:
            told = f"paper_{organ}" if recipe == "paper" else recipe
            minutes = ROUGH[name][at] if name in ROUGH else None
            yield Experiment(f"{organ}_{name}", row, split, told, changes, seeds=seeds, minutes=minutes)
    person, volume = "hippocampus_by_person", "hippocampus_by_volume"
    paper = "paper_hippocampus"
    yield Experiment("hippocampus_med_nca_by_volume", "Med-NCA", volume, paper, minutes=ROUGH["med_nca"][0])
    yield Experiment("hippocampus_best_by_volume", "ours, best", volume, BEST)
    yield Experiment("hippocampus_best_authors", "ours, best", "hippocampus_authors", BEST)
    yield Experiment(
        "hippocampus_best_classes", "ours, best, a class for each label", person, BEST, separate=True
    )


TABLE1: tuple[Experiment, ...] = tuple(_rows())

#: Encoders of segmentation-models-pytorch, the smallest of each kind, as in the paper's Fig. 3.
ENCODERS = ("efficientnet-b0", "mobilenet_v2", "densenet121", "resnet18", "vgg11")

FIG3: tuple[Experiment, ...] = (
    *(
        Experiment(
            *(f"hippocampus_unet_{encoder}", f"U-Net, {encoder}", "hippocampus_by_person", "unet"),
            changes={"baseline": {"name": f"smp:{encoder}"}},
        )
        for encoder in ENCODERS
    ),
    *(
        Experiment(
            f"hippocampus_nnunet_{kind}", f"nnU-Net {kind}", "hippocampus_by_person", kind, by="nnunet"
        )
        for kind in ("2d", "3d_fullres")
    ),
)

#: Organ -> its split.
ORGANS = {"prostate": "prostate", "fetal_head": "fetal_head", "lungs": "lungs", "nuclei": "nuclei"}

ORGAN_SETS: tuple[Experiment, ...] = tuple(
    Experiment(f"{organ}_{name}", row, split, recipe, separate=organ == "lungs")
    for organ, split in ORGANS.items()
    for name, row, recipe in (("best", "ours, best", BEST), ("unet", "U-Net, our training", "unet"))
    if organ != "prostate"  # it stands in Table 1
)

EVERYTHING = (*TABLE1, *FIG3, *ORGAN_SETS)
#: Where the result of an experiment lies: its table.
TABLES = {"table1": TABLE1, "fig3": FIG3, "organs": ORGAN_SETS}


def table_of(experiment: Experiment) -> str:
    """Experiment -> the table that it belongs to."""
    return next(name for name, rows in TABLES.items() if experiment.name in {e.name for e in rows})


def find(names: list[str], among: tuple[Experiment, ...] = EVERYTHING) -> tuple[Experiment, ...]:
    """Names, or beginnings of names -> the experiments; none gives all.

    Raises:
        InputError: If a name fits nothing.
    """
    from mednca.errors import InputError

    chosen: dict[str, Experiment] = {}
    for name in names:
        fitting = [e for e in among if e.name == name] or [e for e in among if e.name.startswith(name)]
        if not fitting:
            raise InputError(
                f"{name}: there is no such experiment; known are {', '.join(e.name for e in among)}"
            )
        chosen |= {e.name: e for e in fitting}
    return tuple(chosen.values()) if names else among
