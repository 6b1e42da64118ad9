"""The experiments: what is trained on which data, by which recipe, judged how. A list to read, and to add to.

A protocol is a stored split of `folds.py`. The name of an experiment is that of its result,
`results/<table>/<name>.json`, and of its folder of runs, `RUNS/<name>/seed_0/fold_0` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Our own models: what the planner chooses for a budget.
BEST, LEAN = "native", "plan:pi"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Experiment:
    """One model on one data set in one protocol.

    Attributes:
        name: Of its result and of its folder of runs.
        row: The row of the table, or the point of the figure.
        split: Name of a stored split.
        recipe: Name of a recipe, "robust:BUDGET" or "plan:BUDGET".
        changes: Settings that replace the recipe's, one level of nesting.
        separate: Whether each label is a class of its own.
        start: Experiment whose models, of the same seed and fold, the trainings begin with.
        seeds: Of the trainings.
        folds: The only folds that are trained; none gives all.
        cases: Held-out cases of each fold that are judged, the first ones; None judges all.
        minutes: Rough core-minutes of one training, for the plan; None if nobody knows.
        by: What trains it: "mednca", or "nnunet", which has commands of its own.
        kept: Whether the models of its folds are stored in the tree, for what is measured with them later.
        why: Reason for which it was not run, where there is one to tell.
    """

    name: str
    row: str
    split: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    separate: bool = False
    start: str = ""
    seeds: tuple[int, ...] = (0,)
    folds: tuple[str, ...] = ()
    cases: int | None = None
    minutes: float | None = None
    by: str = "mednca"
    kept: bool = False
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

#: Trainings are as long as two cores could do in a few hours all together, not as long as the authors'
#: (187,484 iterations): a setting of them here, told in the result as all settings are.
_PAPER, _WIDE, _UNET = (
    {"train": {"iterations": 3000, "validate_every": 1000}},
    {"train": {"iterations": 1000, "batch_size": 4, "validate_every": 500}},
    {"train": {"iterations": 800, "batch_size": 8, "validate_every": 400, "checkpoint_every": 400}},
)
#: A U-Net of 16 first filters instead of 64 (2.3 million weights): in the same time it sees many more slices.
_SMALL_UNET = {
    "train": {"iterations": 3000, "batch_size": 8, "validate_every": 1000, "checkpoint_every": 1000},
    "baseline": {"filters": 16},
}
#: What `recipes.hardened` sets, for a U-Net trained the same way.
_ROBUST = {
    "preprocess": {"field": [], "margin": 6},
    "augment": {"artefacts": 0.3},
    "predict": {"sizes": [], "spectrum": [], "coarse": []},
}
#: The prostate's robust model, of one fold.
PROSTATE_CARD = "prostate_robust"
_PERSON, _VOLUME, _AUTHORS = "hippocampus_by_person", "hippocampus_by_volume", "hippocampus_authors"
_LARGE = "its cost on slices of 256 x 256 is days of this machine"
_EPOCHS = "an epoch of it takes 35 to 40 minutes of a core of this machine, and it has 1000"
_NO_PAPER = "the paper's images cannot be had; on PROMISE12 only our own models and the U-Net are compared"


def _with(changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**changes, **more}


def _rows() -> Iterator[Experiment]:
    """The rows of Table 1 on both data sets, then other protocols of the hippocampus.

    The paper's rows, and ours beside them, are trained on the authors' own split: one training each.
    """
    paper = "paper_hippocampus"
    yield Experiment("hippocampus_med_nca", "Med-NCA", _AUTHORS, paper, _PAPER, seeds=SEEDS, minutes=10)
    narrow, few = _with(_PAPER, model={"channels": 16}), _with(_PAPER, model={"hidden": 64})
    yield Experiment("hippocampus_med_nca_n16", "Med-NCA, n = 16", _AUTHORS, paper, narrow, minutes=5)
    yield Experiment("hippocampus_med_nca_h64", "Med-NCA, h = 64", _AUTHORS, paper, few, minutes=8)
    yield Experiment("hippocampus_backbone", "one backbone, 64 x 64", _AUTHORS, "backbone", _WIDE, minutes=12)
    yield Experiment("hippocampus_seg_nca", "Seg. NCA", _AUTHORS, "seg_nca", _WIDE, minutes=12)
    longer = _with(_SMALL_UNET, train=_SMALL_UNET["train"] | {"iterations": 6000})
    large = "U-Net of full size, our training"
    yield Experiment("hippocampus_unet_plain", "U-Net", _AUTHORS, "unet_plain", longer, minutes=9)
    yield Experiment("hippocampus_unet_authors", "U-Net, our training", _AUTHORS, "unet", longer, minutes=9)
    yield Experiment("hippocampus_unet_large_authors", large, _AUTHORS, "unet", _UNET, minutes=22)
    yield Experiment("hippocampus_best_authors", "ours, best", _AUTHORS, BEST, minutes=13)
    twice = {"train": {"iterations": 20_000}}
    yield Experiment(
        "hippocampus_best_authors_long", "ours, best, twice as long", _AUTHORS, BEST, twice, minutes=26
    )
    yield Experiment("hippocampus_lean_authors", "ours, lean", _AUTHORS, LEAN, minutes=7)
    yield Experiment("hippocampus_best", "ours, best", _PERSON, BEST, minutes=13)
    yield Experiment("hippocampus_lean", "ours, lean", _PERSON, LEAN, minutes=7)
    yield Experiment("hippocampus_unet", "U-Net, our training", _PERSON, "unet", longer, minutes=9)
    robust = "ours, best, robust"
    seldom = {"train": {"validate_every": 0}}
    yield Experiment("hippocampus_robust", robust, _PERSON, "robust", seldom, minutes=14, kept=True)
    prepared = _with(longer, **_ROBUST)
    yield Experiment("hippocampus_unet_robust", "U-Net, robust", _PERSON, "unet", prepared, minutes=11)
    half = {"train": {"iterations": 10_000, "validate_every": 0}}  # of what the planner sets
    yield Experiment(
        PROSTATE_CARD, "ours, best, robust", "prostate", "robust", half, folds=("fold_0",), minutes=40
    )
    yield Experiment("hippocampus_lean_by_volume", "ours, lean", _VOLUME, LEAN, minutes=7)
    yield Experiment(
        "hippocampus_best_classes",
        "ours, best, a class for each label",
        _PERSON,
        BEST,
        {"train": {"whole_weight": 1.0, "iterations": 4000}},
        separate=True,
        start="hippocampus_best",
        minutes=8,
    )
    for name, row, recipe, changes, minutes, why in (
        ("med_nca", "Med-NCA", "paper_prostate", {}, 3000, _NO_PAPER),
        ("med_nca_n16", "Med-NCA, n = 16", "paper_prostate", {"model": {"channels": 16}}, 1100, _NO_PAPER),
        ("med_nca_h64", "Med-NCA, h = 64", "paper_prostate", {"model": {"hidden": 64}}, 2000, _NO_PAPER),
        ("backbone", "one backbone, 64 x 64", "backbone", {}, None, _NO_PAPER),
        ("seg_nca", "Seg. NCA", "seg_nca", {}, None, _NO_PAPER),
        ("unet_plain", "U-Net", "unet_plain", {}, None, _LARGE),
        ("unet", "U-Net, our training", "unet", _SMALL_UNET, 4, ""),
        ("best", "ours, best", BEST, {}, 24, ""),
        ("lean", "ours, lean", LEAN, {}, 8, ""),
    ):
        yield Experiment(f"prostate_{name}", row, "prostate", recipe, changes, minutes=minutes, why=why)


TABLE1: tuple[Experiment, ...] = tuple(_rows())

#: Encoders of segmentation-models-pytorch, the smallest of each kind, as in the paper's Fig. 3.
ENCODERS = ("efficientnet-b0", "mobilenet_v2", "densenet121", "resnet18", "vgg11")

FIG3: tuple[Experiment, ...] = (
    *(
        Experiment(
            *(f"hippocampus_unet_{encoder}", f"U-Net, {encoder}", _AUTHORS, "unet"),
            changes=_with(_UNET, baseline={"name": f"smp:{encoder}"}),
            minutes=6,
        )
        for encoder in ENCODERS
    ),
    *(
        Experiment(
            *(f"hippocampus_nnunet_{kind}", f"nnU-Net {kind}", _PERSON, kind),
            by="nnunet",
            why=_EPOCHS,
        )
        for kind in ("2d", "3d_fullres")
    ),
)

#: Organ -> its split.
ORGANS = {"prostate": "prostate", "fetal_head": "fetal_head", "lungs": "lungs", "nuclei": "nuclei"}

ORGAN_SETS: tuple[Experiment, ...] = tuple(
    Experiment(
        *(f"{organ}_{name}", row, split, recipe, changes),
        separate=organ == "lungs",
        folds=folds,
        minutes=minutes,
    )
    for organ, split in ORGANS.items()
    for name, row, recipe, changes, minutes, folds in (
        ("best", "ours, best", BEST, {}, 5, ()),
        ("robust", "ours, best, robust", "robust", {"train": {"validate_every": 0}}, 12, ("fold_0",)),
        ("unet", "U-Net, our training", "unet", _SMALL_UNET, 4, ()),
    )
    if organ != "prostate"  # it stands in Table 1
)

#: Does it learn every time? Many seeds on one fold, few iterations, and few cases judged, to save time.
_SHORT = {"iterations": 600, "cycles": 1, "validate_every": 0}
#: The prostate is learnt slowly: a fifth of what the planner sets.
_LONGER = _SHORT | {"iterations": 4000}
#: What the official code trains with, where it can be set apart from the model and its slices: its optimiser
#: without anything that stabilises, no augmentation, a fixed number of steps.
_OFFICIAL = {
    "train": _LONGER
    | {
        "learning_rate": 1.6e-3,
        "betas": (0.5, 0.5),
        "schedule": "exponential",
        "warmup": 0,
        "clip": 0.0,
        "ema": 0.0,
        "coarse_weight": 0.0,
        "sentinel": False,
        "step_range": (1.0, 1.0),
        "step_range_from": 0.0,
        "init": "",
    },
    "augment": {
        "flip": (),
        **dict.fromkeys(("rotation", "scale", "stretch", "translation"), 0.0),
        **dict.fromkeys(("gamma", "brightness", "noise", "bias"), 0.0),
    },
}

#: The official prostate setting itself, 64 steps on 20 slices of 256 x 256, takes minutes for an iteration.
RELIABILITY: tuple[Experiment, ...] = tuple(
    Experiment(
        f"reliability_{name}",
        row,
        split,
        recipe,
        changes,
        seeds=tuple(range(seeds)),
        folds=("fold_0",),
        cases=12,
        minutes=minutes,
    )
    for name, row, split, recipe, changes, seeds, minutes in (
        ("hippocampus", "recipe native", _PERSON, BEST, {"train": _SHORT}, 10, 2),
        ("hippocampus_official", "official settings", _PERSON, "paper_hippocampus", {"train": _SHORT}, 10, 3),
        ("prostate", "recipe native", "prostate", BEST, {"train": _LONGER}, 5, 27),
        ("prostate_official", "official training of our model", "prostate", BEST, _OFFICIAL, 5, 27),
    )
)

#: Those that have a report card: ours, and the U-Net trained the same way.
CARDS = ("hippocampus_robust", "hippocampus_unet_robust")

EVERYTHING = (*TABLE1, *FIG3, *ORGAN_SETS, *RELIABILITY)
#: Where the result of an experiment lies: its table.
TABLES = {"table1": TABLE1, "fig3": FIG3, "organs": ORGAN_SETS, "reliability": RELIABILITY}


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
