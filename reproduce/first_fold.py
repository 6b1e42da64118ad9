"""What ghosts.py and thick.py share: the model of fold 0 in the tree, the cases of its report card, and how
what was measured on them is stored."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mednca import __version__
from mednca.cases import Case
from mednca.files import atomic_write, read_json
from mednca.modelfile import ModelFile, load_model
from mednca.predict import Predictor, with_ensemble
from reproduce.catalogue import find
from reproduce.folds import load
from reproduce.runs import MODELS
from reproduce.stored import RESULTS

EXPERIMENT, FOLD, CASES = "hippocampus_robust", "fold_0", 21
SEED = 0


def data_root(description: str | None) -> Path:
    """What a script is for -> the folder of the data sets, from the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_root", type=Path, help="folder that holds Task04_Hippocampus")
    root: Path = parser.parse_args().data_root
    return root


def opened(root: Path) -> tuple[ModelFile, list[Case]]:
    """Folder of the data sets -> the model of the fold, and its first held-out cases."""
    run = MODELS / EXPERIMENT / FOLD
    by_id = {case.id: case for case in load(find([EXPERIMENT])[0].split).cases(root).cases}
    names = read_json(run / "split.json")["validation"][:CASES]
    return load_model(run / "model.safetensors"), [by_id[name] for name in names]


def with_and_without(whole: ModelFile, setting: str) -> tuple[ModelFile, dict[str, Predictor]]:
    """Model and a setting of its predictions -> the model with one run of fire masks, and what predicts by it
    with that setting and without."""
    model = with_ensemble(whole, 1)
    plain = replace(
        model, config=replace(model.config, predict=replace(model.config.predict, **{setting: None}))
    )
    return model, {
        name: Predictor(file, engine="native", signals=False, trust=False)
        for name, file in (("with", model), ("without", plain))
    }


def store(name: str, model: ModelFile, summary: dict[str, Any], **measured: Any) -> None:
    """Name of a script, model, statistics and what they are of -> results/NAME.json; the statistics are
    printed."""
    told = {
        "command": f"python reproduce/{name}.py DATA_ROOT",
        "data": load(find([EXPERIMENT])[0].split).split.data,
        "model": model.hash,
        "seed": SEED,
        "mednca": __version__,
    }
    content = {"summary": summary, "provenance": told, **measured}
    atomic_write(RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n", force=True)
    print(json.dumps(summary, indent=1))
