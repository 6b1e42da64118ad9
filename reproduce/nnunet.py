"""nnU-Net v2 on our folds, by its own commands, judged by our protocol: the nnU-Net points of Fig. 3.

    python reproduce/nnunet.py DATA --runs RUNS --group pairs [--trainer nnUNetTrainer_250epochs] [--fold 0]

nnU-Net must be installed (pip install nnunetv2). What is done is kept, so a call goes on where the last one
stopped. RUNS gets

    nnunet/                                         the data set in nnU-Net's folders, and its results
    NAME_nnunet_2d/seed_0/fold_0/report.json        our report on the fold's held-out cases, as of a training
    NAME_nnunet_2d/seed_0/fold_0/provenance.json    trainer, minutes, device, machine, versions, parameters

NAME is what --name says. The usual trainer has 1000 epochs of 250 iterations; another of nnU-Net's, such as
nnUNetTrainer_50epochs, has fewer, and is stored with the result, where it has to be told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mednca.cases import CaseSet, find_labelled_cases, split_folds
from mednca.errors import InputError
from mednca.evaluate import evaluate_masks
from mednca.files import atomic_write, read_json
from mednca.machine import machine
from mednca.nnunet import configurations, export_raw, find_masks, mask_labels, results_folder

FOLDS, SEED = 5, 0


#: Runs one of nnU-Net's programs, also beside a torchvision whose compiled operators cannot be loaded, which
#: nnU-Net imports and does not use.
LAUNCH = """
import sys
from importlib.metadata import entry_points
from mednca.baselines.encoders import import_torchvision
import_torchvision()
(program,) = entry_points(group="console_scripts", name=sys.argv[1])
sys.argv = sys.argv[1:]
sys.exit(program.load()())
"""


def check_installed() -> None:
    """Raise InputError if nnU-Net is not installed."""
    if not entry_points(group="console_scripts", name="nnUNetv2_train"):
        raise InputError("nnunetv2 is needed and not installed; pip install nnunetv2")


def call(out: Path, *words: str) -> None:
    """Folder of nnU-Net's folders and the words of a command -> it has run, its output on stderr.

    Raises:
        InputError: It failed.
    """
    folders = {name: str(out / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    program = [sys.executable, "-c", LAUNCH, *words]
    done = subprocess.run(program, env=os.environ | folders, stdout=sys.stderr, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(words)}: ended with exit status {done.returncode}; see what it printed")


def prepared(cases: CaseSet, out: Path, number: int, merge: bool, processes: int) -> Path:
    """Cases -> the exported data set, planned and preprocessed; what is there already is kept."""
    found = sorted((out / "nnUNet_raw").glob(f"Dataset{number:03d}_*/dataset.json"))
    if found:
        dataset = found[0].parent
    else:
        dataset = export_raw(cases, split_folds(cases, FOLDS, SEED), out, number=number, merge=merge)
    ready = out / "nnUNet_preprocessed" / dataset.name
    if len(read_json(dataset / "dataset.json")["labels"]) - 1 != (1 if merge else len(cases.labels)):
        raise InputError(f"{dataset}: was exported with other labels; remove it, or give another --number")
    kinds = configurations(dataset)
    if not all((ready / f"nnUNetPlans_{kind}").is_dir() for kind in kinds) or not list(ready.glob("*.done")):
        words = ["-d", str(number), "-c", *kinds, "--clean", "--verify_dataset_integrity"]
        words += ["-npfp", str(processes), "-np", *([str(processes)] * len(kinds))]
        call(out, "nnUNetv2_plan_and_preprocess", *words)
        (ready / "preprocessed.done").touch()
    return dataset


def parameters(dataset: Path, kind: str) -> int:
    """Prepared data set and configuration -> weights of nnU-Net's network."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    meta = read_json(dataset / "dataset.json")
    plans = dataset.parent.parent / "nnUNet_preprocessed" / dataset.name / "nnUNetPlans.json"
    chosen = PlansManager(str(plans)).get_configuration(kind)
    network = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        len(meta["channel_names"]),
        len(meta["labels"]),
    )
    return sum(weight.numel() for weight in network.parameters())


def epochs(trainer: str) -> int:
    """Name of nnU-Net's trainer -> its epochs."""
    told = re.search(r"_(\d+)epochs?", trainer)
    return int(told[1]) if told else 1000


def train_fold(
    cases: CaseSet, dataset: Path, kind: str, fold: int, place: Path, trainer: str, device: str
) -> None:
    """Prepared data set, configuration and fold -> trained, its held-out cases judged, both files written."""
    file = place / "provenance.json"
    told: dict[str, Any] = read_json(file) if file.is_file() else {"minutes": 0.0, "sessions": 0}
    if told.get("trainer", trainer) != trainer:
        raise InputError(f"{place}: was trained by {told['trainer']}; remove it, or give another --name")
    if (place / "report.json").is_file():
        return
    results = results_folder(dataset, kind, trainer)
    begun = any((results / f"fold_{fold}").glob("checkpoint_*.pth"))
    words = ["nnUNetv2_train", dataset.name[len("Dataset") :][:3], kind, str(fold), "-tr", trainer]
    words += ["-device", device]
    started = time.perf_counter()
    try:
        call(dataset.parent.parent, *words, *(["--c"] if begun else []))
    finally:  # also of a session that is stopped
        told |= {
            "minutes": round(told["minutes"] + (time.perf_counter() - started) / 60, 2),
            "sessions": told["sessions"] + 1,
            "command": " ".join(words),
            "trainer": trainer,
            "epochs": epochs(trainer),
            "parameters": parameters(dataset, kind),
            "device": device,
            "machine": machine(),
            "versions": {name: installed(name) for name in ("nnunetv2", "torch")},
        }
        atomic_write(file, json.dumps(told, indent=1) + "\n")
    masks = find_masks(results).get(f"fold_{fold}", {})
    held_out = [case for case in cases.cases if case.id in split_folds(cases, FOLDS, SEED)[fold]]
    report = evaluate_masks(masks, mask_labels(results), held_out, labels=cases.labels or None)
    report.write(place / "report.json")  # last: it marks the fold as complete
    print(f"{place}: dice {report.summary['merged']['dice']['mean']:.4f}")


def installed(name: str) -> str | None:
    """Name of a package -> its version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, train what is missing, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--name", default="hippocampus")
    parser.add_argument("--group", help="what makes a person, as for mednca train")
    parser.add_argument("--number", type=int, default=4, help="of the data set in nnU-Net's folders")
    parser.add_argument("--separate", action="store_true", help="a class for each label")
    parser.add_argument("--kind", action="append", choices=("2d", "3d_fullres"), help="default: all")
    parser.add_argument("--fold", type=int, action="append", choices=range(FOLDS), help="default: all")
    parser.add_argument("--trainer", default="nnUNetTrainer")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu", "mps"))
    parser.add_argument("--processes", type=int, default=2, help="of the preprocessing")
    asked = parser.parse_args(arguments)
    try:
        check_installed()
        cases = find_labelled_cases(asked.data, asked.group)
        out = (asked.runs / "nnunet").absolute()
        dataset = prepared(cases, out, asked.number, not asked.separate, asked.processes)
        kinds = [kind for kind in configurations(dataset) if not asked.kind or kind in asked.kind]
        todo = [(kind, fold) for kind in kinds for fold in asked.fold or range(FOLDS)]
        for kind, fold in tqdm(todo, unit="fold"):
            place = asked.runs / f"{asked.name}_nnunet_{kind}" / f"seed_{SEED}" / f"fold_{fold}"
            train_fold(cases, dataset, kind, fold, place, asked.trainer, asked.device)
    except InputError as error:
        print(f"nnunet.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
