"""How a model holds up when the scans are not as they were in training."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.cases import Case, CaseSet
    from mednca.evaluate import Predictor
    from mednca.modelfile import ModelFile
    from mednca.perturb import Perturbation
    from mednca.robustness import Contender, Job, Scores


@dataclass(frozen=True)
class Robustness:
    """Judge a model on perturbed scans: scale, shape, translation, rotation, MRI artefacts, noise, contrast.

    Writes a report card: index.html with curves and pictures, summary.md, report.json, and scores.jsonl
    with a line for each prediction. A stopped run goes on where it was when it is called again.

    MODEL is a run folder (judged on its validation cases), a folder of fold runs (each case is judged by the
    model that has not seen it), a .safetensors file, the name of a shipped model, or a folder that 'mednca
    export --to onnx' wrote. Cases that a model was trained on are left out.

    The artefacts need the extra 'robustness' (TorchIO).

    Examples:
        mednca robustness hippocampus Task04_Hippocampus --all-cases --quick --only noise,scale -o report
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, folder of fold runs, .safetensors file, shipped model or ONNX folder."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="REPORT")]
    """Folder of the report, to be begun or gone on with."""
    baseline: Annotated[str | None, arg(metavar="MODEL2", help_behavior_hint="")] = None
    """Another model, judged on the same cases beside the first."""
    masks: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Instead of a baseline: masks that another program made of the images of --write-images."""
    write_images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Also write the perturbed images and labels, named as nnU-Net reads them, and an index.json."""
    quick: bool = False
    """Few severities, at most 24 cases, one run of fire masks."""
    only: Annotated[str | None, arg(metavar="NAME,...", help_behavior_hint="(default: all)")] = None
    """Perturbations to judge, by name."""
    seeds: int = 1
    """Draws of each perturbation per case; their mean counts."""
    cases: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: all cases)")] = None
    """Text file with the ids of the cases to judge, one a line; all others are left out."""
    all_cases: bool = False
    """Judge a single model on its training cases too; the report says so."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person: intervals draw persons, not scans. See 'mednca train --help'."""
    seed: int = 0
    """Names the random stream of the fire masks, and draws the cases of --quick."""
    ensemble: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's)")] = None
    """Runs with other fire masks whose probabilities are averaged; one with --quick, if not given."""
    device: str = "cpu"
    """cpu or cuda."""
    engine: str = "auto"
    """As for 'mednca predict'."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per processor)")] = None
    """Threads of native and int16; the result does not depend on it."""
    gate: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: everywhere)")] = None
    """As for 'mednca predict'."""
    force: bool = False
    """Replace an existing report instead of going on with it."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Measure, report, and print the summary."""
        from mednca.dataset import load_scan
        from mednca.files import atomic_write
        from mednca.robustness import measure
        from mednca.robustness.folder import describe, open_report
        from mednca.robustness.images import write_images
        from mednca.robustness.page import page, strips
        from mednca.robustness.report import card, summary

        data, contenders, cases, jobs = self.prepare()
        options = {"fire_seed": self.seed, "engine": self.engine, "gate": self.gate}
        setting = describe(data, contenders, options)
        path = open_report(self.out, setting, force=self.force)
        if self.write_images is not None:
            write_images(
                cases, jobs, self.write_images, folds=contenders[0].folds, progress=self.bar("images")
            )
        scores = measure(
            contenders, cases, jobs, path, labels=data.labels or None, progress=self.bar("predictions")
        )
        report = card(contenders, cases, jobs, scores, self.provenance(data))
        shown = typical(contenders[0], cases, scores)
        pictures = strips(load_scan(shown), jobs, contenders, self.bar("pictures"))
        atomic_write(self.out / "index.html", page(report, pictures, shown.id))
        text = summary(report)
        atomic_write(self.out / "summary.md", text)
        atomic_write(self.out / "report.json", json.dumps(report, indent=1) + "\n")
        print(text, end="")
        return 0

    def prepare(self) -> tuple[CaseSet, list[Contender], tuple[Case, ...], list[Job]]:
        """The data set, what is judged, on which cases, and what is done to them; refuses what cannot be."""
        from mednca.cases import find_labelled_cases
        from mednca.files import read_lines
        from mednca.perturb import require_torchio
        from mednca.robustness import QUICK_CASES, draw_cases, list_jobs
        from mednca.robustness.contenders import open_masks, open_model, together

        if self.baseline is not None and self.masks is not None:
            raise InputError("--baseline and --masks are two ways to name what is compared; give one")
        perturbations = self.chosen()
        if any(one.by_torchio for one in perturbations):
            require_torchio()
        jobs = list_jobs(perturbations, quick=self.quick, seeds=self.seeds)
        data = find_labelled_cases(self.data, self.group)
        cases = tuple(case for case in data.cases if case.label)
        if self.cases is not None:
            wanted = read_lines(self.cases)
            if missing := sorted(wanted - {case.id for case in cases}):
                raise InputError(f"{self.cases}: case {missing[0]} is not in {self.data}")
            cases = tuple(case for case in cases if case.id in wanted)
        contenders = [
            open_model(
                *(source, cases, self.predictor),
                all_cases=self.all_cases,
                ensemble=1 if self.quick and self.ensemble is None else self.ensemble,
                seed=self.seed,
            )
            for source in (self.model, self.baseline)
            if source is not None
        ]
        cases = together(contenders, cases)
        if self.quick:
            cases = draw_cases(cases, QUICK_CASES, self.seed)
        if self.masks is not None:
            contenders.append(open_masks(self.masks, cases, jobs))
        return data, contenders, cases, jobs

    def chosen(self) -> tuple[Perturbation, ...]:
        """The perturbations that were asked for."""
        from mednca.perturb import find

        if self.only is None:
            return find()
        names = [name.strip() for name in self.only.split(",") if name.strip()]
        if not names:
            raise InputError("--only must name at least one perturbation, as noise,scale")
        return find(names)

    def predictor(self, file: ModelFile) -> Predictor:
        """A model as it is judged here."""
        from mednca.predict import Predictor

        return Predictor(file, self.device, self.seed, self.engine, threads=self.threads, gate=self.gate)

    def provenance(self, data: CaseSet) -> dict[str, Any]:
        """How it is measured."""
        from importlib.metadata import PackageNotFoundError, version

        from mednca import __version__, perturb

        versions = {"mednca": __version__, "python": platform.python_version()}
        for package in ("numpy", "scipy", "torchio", "torch"):
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "none"
        return {
            "data": data.name,
            "quick": self.quick,
            "seeds": self.seeds,
            "fire_seed": self.seed,
            "ensemble": self.ensemble or (1 if self.quick else None),
            "engine": self.engine,
            "device": self.device,
            "gate": self.gate,
            "perturbations": perturb.VERSION,
            "versions": versions,
        }

    def bar(self, unit: str) -> Any:
        """Unit -> what wraps a list to show a progress bar on stderr."""
        from tqdm import tqdm

        def wrap(items: Sequence[Any]) -> Iterable[Any]:
            wrapped: Iterable[Any] = tqdm(items, unit=f" {unit}", disable=True if self.quiet else None)
            return wrapped

        return wrap


def typical(one: Contender, cases: Sequence[Case], scores: Scores) -> Case:
    """Contender, cases and scores -> the case of the median unperturbed Dice, the lower one of two."""
    from mednca.robustness import CLEAN, Job

    ranked = sorted(cases, key=lambda case: (scores[one.key(case.id, Job(CLEAN, 0.0, 0))].dice, case.id))
    return ranked[(len(ranked) - 1) // 2]
