"""The models that come with the package: a training on all cases, and a card with the out-of-fold figures.

    python reproduce/shipped.py DATA_ROOT --runs runs        fetal_head, hippocampus_robust and nuclei
    python reproduce/shipped.py DATA_ROOT --runs runs --only nuclei
    python reproduce/shipped.py --draw                       the pages of all models, from their files

trains what is not there yet (minutes of one core; a stopped one goes on), and writes

    src/mednca/models/NAME.safetensors   the model trained on all cases, with its card
    src/mednca/models/NAME.md            the card as a page

The figures are those of an experiment, which is trained first (`reproduce/organs.py`, `reproduce/table1.py`).
The hippocampus, whose figures are more, has a script of its own, `reproduce/hippocampus.py`. A trust score is
put into a model by `reproduce/trust.py --model`. Only data whose licence allows it: nothing is shipped that
was trained on PROMISE12 or on the chest X-rays.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from mednca.cases import find_cases
from mednca.config import RunConfig
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.modelfile import SHIPPED, ModelFile, load_model, save_model, shipped_model, shipped_models
from mednca.recipes import Fingerprint, native, robust
from mednca.report import MERGED
from mednca.train import train
from reproduce.catalogue import find
from reproduce.stored import read_result, result_path

#: The scores that go into a model's card.
TOLD = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD within {}",
    "hd95_mm": "HD95, {}",
    "assd_mm": "ASSD, {}",
    "volume_error": "volume error, relative",
    "soft_dice": "soft Dice (the paper's; no threshold)",
}
METHOD = "Method: Kalkhof J. et al., Med-NCA, IPMI 2023"
TUNED = (
    "The figures lean a little to the good side: the recipe was chosen in trials on two of these folds "
    "(`reproduce/experiments/`). What one run of fire masks gives stands in the report below under "
    "`single_run`."
)


SAME_RECIPE = (
    "The model here was trained on all of them by the same recipe, so these are the figures of the recipe, "
    "not those of this very file."
)


def robust_start(data: Fingerprint) -> RunConfig:
    """The robust recipe, begun with the rules of the shipped hippocampus: half as many iterations."""
    config = robust(data)
    begun = replace(config.train, iterations=5000, init=shipped_model("hippocampus").hash)
    return replace(config, train=begun)


@dataclass(frozen=True)
class Card:
    """What a card says that no training knows.

    Attributes:
        folder: The data set's, under DATA_ROOT.
        described: Organ and kind of image.
        data: Where the training scans come from.
        licence: Of the model.
        attribution: Whom to name.
        intended_use: What it is for, and what not.
        images: One line on what the model sees.
        fails: Where it fails.
        group: How cases are grouped, as `mednca train --group`.
        unit: Of a length: "mm", or "pixels" where the images do not tell their spacing.
        experiment: Whose figures are told, out of fold; "" is NAME_best.
        complete: Whether all folds of it must be there.
        recipe: By which the model is trained on all cases.
        figures: What the figures have to do with this very file.
        honest: What else must be said of the figures.
        report: Where every case's scores are stored, under `reproduce/results`.
        script: Which writes the model.
    """

    folder: str
    described: str
    data: str
    licence: str
    attribution: str
    intended_use: str
    images: str
    fails: str
    group: str | None = None
    unit: str = "mm"
    experiment: str = ""
    complete: bool = True
    recipe: Callable[[Fingerprint], RunConfig] = native
    figures: str = SAME_RECIPE
    honest: str = ""
    report: str = ""
    script: str = "shipped.py"


HIPPOCAMPUS = Card(
    "Task04_Hippocampus",
    "Hippocampus (anterior and posterior as one) in T1-weighted MRI that is cropped around it, "
    "about 35 x 50 x 36 mm",
    "Medical Segmentation Decathlon, Task04 Hippocampus (208 labelled volumes of its training part)",
    "CC-BY-SA 4.0, as the data it was trained on",
    "Antonelli M. et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128 (2022); "
    f"Simpson A. L. et al., arXiv:1902.09063 (2019). {METHOD}",
    "Research and teaching, on crops like those of Task04. Not a medical device; not for whole heads, "
    "other contrasts than T1 or other organs",
    "one T1 channel, 1 mm; axial, sagittal, coronal slices with one neighbour on each side",
    "It was trained on crops around the hippocampus at 1 mm. On a whole head, another contrast or "
    "another organ it still draws something. `mednca predict` warns where spacing or field of view "
    "lie far outside the training scans; it does not know other contrasts. The hippocampi are one "
    "class; left and right, anterior and posterior are not told apart.",
    group="pairs",
    honest=TUNED,
    report="hippocampus_oof.json",
    script="hippocampus.py",
)

CARDS = {
    "hippocampus": HIPPOCAMPUS,
    "hippocampus_robust": replace(
        HIPPOCAMPUS,
        described=f"{HIPPOCAMPUS.described}, for scans that are shaded, noisy, cut off or of other sizes; "
        "with a trust score",
        images="one T1 channel, 1 mm, unusual bias fields brought back to the usual; axial, sagittal, "
        "coronal slices with one neighbour on each side; another look where the organ has an unusual size or "
        "lines of k-space are unusual",
        fails="Slices of 6 mm and more, blur, turned scans, ghosts that took lines of k-space away and "
        "contrast that is turned over still cost it much: `docs/explanation/robustness.md` tells how much of "
        "each. Its trust score finds masks that went "
        "wrong; it hardly ranks good ones, and it cannot know where others draw the organ more "
        "generously. The hippocampi are one class; left and right, anterior and posterior are not told "
        "apart.",
        experiment="hippocampus_robust",
        complete=False,
        recipe=robust_start,
        figures="They are those of the recipe, by models that had not seen these people and were trained for "
        "10,000 iterations from random weights. The model here began with `hippocampus` and was trained on "
        "all 208 volumes for 5,000, so it has seen them all.",
        honest="The figures lean a little to the good side: settings of the recipe were chosen on fold 0.",
        report="table1/hippocampus_robust.json",
        script="shipped.py",
    ),
    "fetal_head": Card(
        "HC18_FetalHead",
        "Fetal head, filled, in 2D ultrasound of the standard plane for the head circumference",
        "HC18 Grand Challenge, Radboud University Medical Center: 120 images of 120 examinations of its "
        "training set, doi:10.5281/zenodo.1327317",
        "CC-BY-SA 4.0, as the model that it began with; the data it was trained on are CC BY 4.0",
        "van den Heuvel T. L. A. et al., Automated measurement of fetal head circumference using 2D "
        f"ultrasound images, PLoS ONE 13(8): e0200412 (2018). {METHOD}",
        "Research and teaching, on whole frames of about 800 x 540 pixels with one head in the standard "
        "plane. Not a medical device; not for measurements that a decision rests on",
        "one grey channel, resampled to cells of 12.5 pixels; the mask is drawn on the image's own pixels",
        "Now and then it misses: two of the 120 held-out images have a Dice under 0.6. It has seen the "
        "standard plane only, of one hospital's machines, in frames of about 800 x 540 pixels. The files do "
        "not tell how large a pixel is: a crop or a zoomed frame looks to it like a head of another size. It "
        "draws one region and fits no ellipse; shadows at the skull can leave a dent, which the ellipse of "
        "`reproduce/circumference.py` evens out.",
        unit="pixels",
        honest="The figures lean a little to the good side: how long it is trained and which piece of the "
        "mask is kept was decided with a look at folds 1 and 3.",
        report="organs/fetal_head_best.json",
    ),
    "nuclei": Card(
        "DSB2018_Nuclei",
        "Cell nuclei, all as one region, in fluorescence microscopy",
        "2018 Data Science Bowl, stage 1 (Broad Bioimage Benchmark Collection BBBC038): 81 dark-field grey "
        "images of 256 x 256",
        "CC-BY-SA 4.0, as the model that it began with; the data it was trained on are CC0 1.0",
        "Caicedo J. C. et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, "
        f"Nature Methods 16, 1247-1253 (2019). {METHOD}",
        "Research and teaching, on bright nuclei before a dark ground",
        "one grey channel on the image's own pixels",
        "It tells nucleus from background, not one nucleus from the next: those that touch are one region. "
        "Stained tissue, bright field and other magnifications are unknown to it. Images of one experiment "
        "look alike and the data do not say which belong together, so the folds may share experiments and "
        "the figures may be too good for images of another one.",
        unit="pixels",
        report="organs/nuclei_best.json",
    ),
}


def main() -> None:
    """Train what is missing, then write the models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, nargs="?", help="folder of the data sets' folders")
    parser.add_argument("--draw", action="store_true", help="train nothing, write the pages")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    others = [name for name, card in CARDS.items() if card.script == "shipped.py"]
    parser.add_argument("--only", nargs="+", choices=others, default=others, metavar="NAME")
    arguments = parser.parse_args()
    if arguments.draw:
        for name in shipped_models():
            atomic_write(SHIPPED / f"{name}.md", page(name, shipped_model(name)))
        return
    if arguments.data_root is None:
        parser.error("DATA_ROOT is needed to train; or give --draw")
    torch.set_num_threads(1)
    for name in arguments.only:
        try:
            result = experiment_result(name)
        except InputError as error:
            sys.exit(f"error: {error}")
        train_on_all(name, arguments.data_root, arguments.runs)
        folds = len({case["fold"] for case in result["cases"].values()})
        ship(name, arguments.runs, result["summary"][MERGED], len(result["cases"]), folds)


def experiment_result(name: str) -> dict[str, Any]:
    """Model -> the stored result of its experiment.

    Raises:
        InputError: If it is not there, or folds are missing that its card is to tell of.
    """
    (experiment,) = find([CARDS[name].experiment or f"{name}_best"])
    result = read_result(result_path(experiment))
    if result is None or not result["cases"] or (CARDS[name].complete and result["missing"]):
        script = "table1" if CARDS[name].experiment else "organs"
        raise InputError(
            f"{name}: has no figures yet; python reproduce/{script}.py DATA_ROOT --only {experiment.name}"
        )
    return result


def run_folder(name: str, runs: Path) -> Path:
    """Model and folder of runs -> the run folder of its training on all cases."""
    return runs / f"{name}_all"


def train_on_all(name: str, data_root: Path, runs: Path) -> None:
    """Model, folder of the data sets and folder of runs -> its run folder, trained on all cases unless it
    is there."""
    card = CARDS[name]
    cases = find_cases(data_root / card.folder, group=card.group, require_labels=True)
    train(cases, run_folder(name, runs), card.recipe, validation=0, resume=True)


def ship(name: str, runs: Path, summary: dict[str, Any], cases: int, folds: int = 5) -> ModelFile:
    """Model, folder of runs, statistics of the merged foreground over that many cases of so many of the five
    folds -> the model with its card, written into the package."""
    model = with_card(name, load_model(run_folder(name, runs)), summary, cases, folds)
    save_model(SHIPPED / f"{name}.safetensors", model)
    atomic_write(SHIPPED / f"{name}.md", page(name, model))
    return model


def with_card(name: str, model: ModelFile, summary: dict[str, Any], cases: int, folds: int = 5) -> ModelFile:
    """Model trained on all cases, statistics of the merged foreground -> the model with its card."""
    card = CARDS[name]
    parts = f"{'' if folds == 5 else f'{folds} of '}5 folds by {'person' if card.group else 'image'}"
    scores = {
        "protocol": (
            f"{parts}, out of fold, {'merged foreground, ' if card.group else ''}native grid, "
            f"mean of {model.config.predict.ensemble} runs of fire masks"
        ),
        "cases": cases,
    } | {key: {k: summary[key][k] for k in ("mean", "sd", "ci95", "min")} for key in TOLD if key in summary}
    told = {
        "name": name,
        "description": card.described,
        "data": card.data,
        "licence": card.licence,
        "attribution": card.attribution,
        "intended_use": card.intended_use,
    }
    return replace(model, card=model.card | told | {"scores": scores})


def page(name: str, model: ModelFile) -> str:
    """Model with its card -> the card as Markdown."""
    told, card, config, scores = CARDS[name], model.card, model.config, model.card["scores"]
    flat = told.unit == "pixels"
    rows = [
        "| {} | {:.3f} | {:.3f} | {:.3f} to {:.3f} |".format(
            what.format("1 mm" if key == "nsd" and not flat else "1 pixel" if key == "nsd" else told.unit),
            *(scores[key]["mean"], scores[key]["sd"], *scores[key]["ci95"]),
        )
        for key, what in TOLD.items()
        if key in scores
    ]
    low, high = card["fingerprint"]["size_mm"]
    sides = zip(low[: 2 if flat else 3], high, strict=False)
    size = " x ".join(f"{a:.0f}-{b:.0f}" if b > a else f"{a:.0f}" for a, b in sides)
    view = f"{size} pixels" if flat else f"field of view {size} mm (axes R, A, S)"
    steps = ", ".join(str(count) for count in config.model.steps)
    return "\n".join(
        [
            f"# {card['name']}",
            "",
            f"{card['description']}. **Not a medical device.**",
            "",
            "| | |",
            "|---|---|",
            f"| model | Med-NCA, {model.parameters:,} parameters, {len(config.model.scales)} levels of "
            f"{steps} steps, hash `{model.hash}` |",
            f"| input | {told.images} |",
            f"| trained on | {len(card['training_cases'])} {'images' if flat else 'volumes'}, {view} |",
            f"| data | {card['data']} |",
            *began_with(card),
            f"| licence | {card['licence']} |",
            f"| attribution | {card['attribution']} |",
            f"| intended use | {card['intended_use']} |",
            f"| training | recipe `{config.recipe}`, {config.train.iterations:,} iterations of "
            f"{config.train.batch_size} slices, seed {config.train.seed} |",
            "",
            "## What it scores",
            "",
            f"{scores['protocol']}. {told.figures} {told.honest}".rstrip(),
            "",
            "| | mean | sd | 95 % interval of the mean |",
            "|---|---|---|---|",
            *rows,
            "",
            f"The worst of the {scores['cases']} cases has Dice {scores['dice']['min']:.3f}. Every case is "
            f"in `reproduce/results/{told.report}`; the command is in `reproduce/{told.script}`.",
            "",
            *trusted(card),
            "## Where it fails",
            "",
            told.fails,
            "",
        ]
    )


def trusted(card: dict[str, Any]) -> list[str]:
    """Card -> how good its trust score is; nothing where it has none."""
    told = card.get("trust")
    if not told:
        return []
    return [
        "## When to trust it",
        "",
        "With every mask it tells the Dice that is to be expected, and an interval that is to hold nine of "
        f"ten. On {told['predictions']} predictions of {told['persons']} people, clean and perturbed, by "
        "models and scores that had not seen them: rank correlation of expected and true Dice "
        f"{told['spearman']:.2f}; of the masks with a Dice below {told['below']:g}, "
        f"{100 * told['flagged']:.0f} % are flagged, of the others {100 * told['false_alarms']:.0f} %; the "
        f"interval holds {100 * told['coverage']:.0f} %. All of it is in `reproduce/results/trust.md`.",
        "",
    ]


def began_with(card: dict[str, Any]) -> list[str]:
    """Card -> the row that tells whose rules the training began with; none where they were drawn."""
    begin = card.get("began_with")
    if not begin:
        return []
    told = [f"`{begin['hash']}`", *(begin[key] for key in ("data", "licence", "attribution") if key in begin)]
    return [f"| began with | {begin.get('name', 'a model')}: {'; '.join(told)} |"]


if __name__ == "__main__":
    main()
