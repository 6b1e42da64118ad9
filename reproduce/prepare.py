"""What the recipe says now of models that were trained before: settings that need no training.

    python reproduce/prepare.py DATA_ROOT

The models of folds in the tree (`reproduce/models/`), and the shipped model of the recipe, get what their
recipe has and they have not, where that is measured on the training scans and changes nothing that is learnt:
which lines of k-space (`mednca.spectrum`) and which distances of slices (`mednca.coarse`) are usual. They are
measured, as in training, on the scans that the model has seen. Models that have both stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from mednca.dataset import LabelledScan, load_scans, measured
from mednca.files import read_json
from mednca.modelfile import SHIPPED, ModelFile, load_model, save_model
from reproduce.catalogue import find
from reproduce.folds import load
from reproduce.runs import MODELS

#: Whose recipe the shipped model of the same name has.
EXPERIMENT = "hippocampus_robust"
#: Of predictions, that need no training.
SETTINGS = ("spectrum", "coarse")


def completed(model: ModelFile, scans: list[LabelledScan]) -> ModelFile:
    """Model and the scans that it was trained on -> the same, with what it lacks of what is usual of them."""
    predict = model.config.predict
    lacking = {name: () for name in SETTINGS if getattr(predict, name) is None}
    asked = replace(model.config, predict=replace(predict, **lacking))
    return replace(model, config=measured(asked, scans))


def main() -> None:
    """Complete what is not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds the data sets")
    root = parser.parse_args().data_root
    paths = [*sorted(MODELS.glob("*/*/model.safetensors")), SHIPPED / f"{EXPERIMENT}.safetensors"]
    for path in paths:
        model = load_model(path)
        if any(getattr(model.config.predict, name) is None for name in SETTINGS):
            shipped = path.parent == SHIPPED
            (experiment,) = find([EXPERIMENT if shipped else path.parents[1].name])
            told = (
                model.card["training_cases"] if shipped else read_json(path.parent / "split.json")["training"]
            )
            seen = set(told)
            cases = [case for case in load(experiment.split).cases(root).cases if case.id in seen]
            scans = load_scans(cases, lambda c, path=path: tqdm(c, desc=path.parent.name, unit="scan"))
            save_model(path, completed(model, scans))
            print(path)


if __name__ == "__main__":
    main()
