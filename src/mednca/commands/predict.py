"""Masks for scans, and how good they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from mednca.commands.bench import numbers
from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.cases import Case, CaseSet
    from mednca.report import Report


@dataclass(frozen=True)
class Predict:
    """Segment scans: a mask for each, on the scan's own grid and in its orientation.

    MODEL is a run folder, a .safetensors file or the name of a model that comes with mednca. Beside each mask
    a small JSON report is written: version, model, seed, seconds, volume, warnings. A model with a
    trust score ('mednca trust') also tells what Dice is to be expected, with an interval.

    Of several scans, one that cannot be segmented does not stop the others: it is told on stderr, and the
    exit status is 2 in the end. Otherwise nothing is written before all places for masks were found free.

    With a model of several channels, name_0000.nii.gz, name_0001.nii.gz, ... are one scan, as in nnU-Net. A
    folder with the files of one DICOM series is a scan, too; its mask is NIfTI.

    Examples:
        mednca predict hippocampus scan.nii.gz -o mask.nii.gz
        mednca predict runs/hippocampus scans/ -o masks/
        mednca predict runs/hippocampus a.nii.gz b.nii.gz -o masks/ --json > reports.json
        mednca predict trusted.safetensors scans/ -o sorted/ --review-below 0.8
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT...", help_behavior_hint="(required)")]
    """Scans, or folders of scans (NIfTI, MHA, NRRD, PNG, TIFF, DICOM)."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Mask to write, for one scan; folder for several."""
    channels: Annotated[str | None, arg(metavar="N,...", help_behavior_hint="(default: all)")] = None
    """Channels to use of scans that have more than the model takes, counted from 0."""
    seed: int = 0
    """Names the random stream of the fire masks; the same seed gives the same mask."""
    ensemble: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's)")] = None
    """Runs with other fire masks whose probabilities are averaged."""
    device: str = "cpu"
    """cpu or cuda."""
    engine: str = "auto"
    """auto (the fastest here), native (C), int16 (C, the same bits everywhere), numpy, folded or eager
    (PyTorch)."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per processor)")] = None
    """Threads of native and int16; the result does not depend on it."""
    gate: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: everywhere)")] = None
    """Compute the finer levels only within N pixels of what the coarse level found: faster, and what the
    coarse level misses stays missed. For native and int16."""
    anytime: Annotated[int | None, arg(metavar="[N]", help_behavior_hint="(default: all steps)")] = None
    """End a level of a slice when no pixel of its mask has changed for N steps (4, if N is left out): faster,
    and nearly the same mask."""
    review_below: Annotated[float | None, arg(metavar="DICE", help_behavior_hint="(default: no)")] = None
    """Sort masks into OUT/accepted and OUT/review, by whether their expected Dice is at least this; list all
    in OUT/review.csv."""
    uncertainty: bool = False
    """Also write NAME_uncertainty.nii.gz: standard deviation of the foreground's probability."""
    force: bool = False
    """Replace existing masks."""
    quiet: bool = False
    """No progress bar."""
    json: bool = False
    """Print the reports as JSON instead of a line for each scan."""

    def run(self) -> int:
        """Predict, and print a line or a report for each scan."""
        from tqdm import tqdm

        from mednca.card import model_warnings
        from mednca.modelfile import load_model
        from mednca.predict import Predictor, with_ensemble
        from mednca.segment import predict_files

        model = with_ensemble(load_model(self.model), self.ensemble)
        predictor = Predictor(
            model,
            self.device,
            self.seed,
            self.engine,
            threads=self.threads,
            gate=self.gate,
            patience=self.anytime,
            probability=self.uncertainty,
        )
        # This refuses what cannot be done, before anything is computed.
        told = predict_files(
            predictor,
            self.inputs,
            self.out,
            channels=numbers("--channels", self.channels) if self.channels is not None else (),
            force=self.force,
            progress=not self.quiet,
            uncertainty=self.uncertainty,
            review_below=self.review_below,
        )
        general = model_warnings(model)
        for warning in general:
            print(f"mednca: warning: {self.model}: {warning}", file=sys.stderr)
        reports: list[dict[str, Any]] = []
        for report in told:
            reports.append(report)
            if "error" in report:
                tqdm.write(f"mednca: error: {report['error']}", file=sys.stderr)
                continue
            for warning in report["warnings"]:
                if warning not in general:
                    tqdm.write(f"mednca: warning: {report['input']}: {warning}", file=sys.stderr)
            if not self.json:
                parts = [foreground(report), expected(report), f"{report['seconds']:.1f} s"]
                tqdm.write(f"{report['output']}: {', '.join(part for part in parts if part)}")
        if self.json:
            print(json.dumps(reports, indent=1))
        elif self.review_below is not None:
            held = sum(report.get("verdict") == "review" for report in reports)
            print(f"{self.out / 'review.csv'}: {held} of {len(reports)} masks to review")
        failed = sum("error" in report for report in reports)
        if failed:
            print(f"mednca: {failed} of {len(reports)} scans could not be segmented", file=sys.stderr)
        return 2 if failed else 0


@dataclass(frozen=True)
class Evaluate:
    """Judge a model on labelled scans: Dice, IoU, HD95, ASSD, NSD and volumes, per case, mean, sd and
    interval.

    MODEL may also be a folder of masks that some program wrote, each named as its case, or the folder in
    which nnU-Net has its folds (fold_0, fold_1, ...): then each case's mask by the fold that has not seen it
    is judged.

    Examples:
        mednca evaluate hippocampus Task04_Hippocampus --group pairs --json report.json
        mednca evaluate runs/hippocampus Task04_Hippocampus --cases held_out.txt
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file, name of a shipped model, or folder of masks."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the whole report, with every case, to this file."""
    tolerance: float = 1.0
    """Tolerance of NSD in mm."""
    cases: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: all cases)")] = None
    """Text file with the ids of the cases to judge, one a line; all others are left out."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person: intervals draw persons, not scans. See 'mednca train --help'."""
    labels: Annotated[
        Literal["merged", "separate"] | None,
        arg(metavar="merged|separate", help_behavior_hint="(default: as dataset.json beside the masks says)"),
    ] = None
    """For a folder of masks: whether they hold one class for all labels, or one for each."""
    seed: int = 0
    """Names the random stream of the fire masks."""
    ensemble: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's)")] = None
    """Runs with other fire masks whose probabilities are averaged."""
    device: str = "cpu"
    """cpu or cuda."""
    engine: str = "auto"
    """auto (the fastest here), native (C), int16 (C, the same bits everywhere), numpy, folded or eager
    (PyTorch)."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per processor)")] = None
    """Threads of native and int16; the result does not depend on it."""
    gate: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: everywhere)")] = None
    """Compute the finer levels only within N pixels of what the coarse level found: faster, and what the
    coarse level misses stays missed. For native and int16."""
    anytime: Annotated[int | None, arg(metavar="[N]", help_behavior_hint="(default: all steps)")] = None
    """End a level of a slice when no pixel of its mask has changed for N steps (4, if N is left out): faster,
    and nearly the same mask."""
    force: bool = False
    """Replace an existing report."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Evaluate, and print the table."""
        from mednca.nnunet import find_masks

        if self.json is not None and self.json.exists() and not self.force:
            raise InputError(f"{self.json}: exists already; choose another name or give --force")
        if not self.tolerance >= 0:
            raise InputError(f"tolerance must be 0 mm or more, got {self.tolerance:g}")
        masks = find_masks(Path(self.model))
        report = self.judge_masks(masks) if masks else self.judge_model()
        if self.json is not None:
            report.write(self.json, force=self.force)
        print(report.table())
        return 0

    def chosen(self) -> tuple[CaseSet, tuple[Case, ...]]:
        """The data set, and those of its cases that are to be judged."""
        from mednca.cases import find_labelled_cases
        from mednca.files import read_lines

        found = find_labelled_cases(self.data, self.group)
        if self.cases is None:
            return found, found.cases
        wanted = read_lines(self.cases)
        missing = sorted(wanted - {case.id for case in found.cases})
        if missing:
            raise InputError(f"{self.cases}: case {missing[0]} is not in {self.data}")
        return found, tuple(case for case in found.cases if case.id in wanted)

    def bar(self, cases: Sequence[Case]) -> Iterable[Case]:
        """Cases -> the same, with a progress bar on stderr."""
        from tqdm import tqdm

        wrapped: Iterable[Case] = tqdm(cases, unit="scan", disable=True if self.quiet else None)
        return wrapped

    def judge_model(self) -> Report:
        """The report on a model."""
        from mednca.evaluate import evaluate
        from mednca.modelfile import load_model
        from mednca.predict import Predictor, saturation, with_ensemble

        if self.labels is not None:
            raise InputError(f"--labels is for a folder of masks, {self.model} is a model; leave it out")
        model = with_ensemble(load_model(self.model), self.ensemble)
        found, chosen = self.chosen()
        predictor = Predictor(
            model,
            self.device,
            self.seed,
            self.engine,
            probability=True,
            threads=self.threads,
            gate=self.gate,
            patience=self.anytime,
            signals=False,
        )
        seen = sorted({case.id for case in chosen} & set(model.card.get("training_cases", [])))
        if seen:
            print(
                f"mednca: warning: the model was trained on {len(seen)} of these {len(chosen)} cases "
                f"(as {seen[0]}); this is no independent test",
                file=sys.stderr,
            )
        report = evaluate(
            predictor,
            chosen,
            tolerance_mm=self.tolerance,
            labels=found.labels or None,
            progress=self.bar,
        )
        for warning in saturation(predictor.saturated):
            print(f"mednca: warning: {warning}", file=sys.stderr)
        told: dict[str, Any] = {"model": str(self.model), "model_hash": model.hash, "device": self.device}
        told |= {"data": found.name, "fire_seed": self.seed, "trained_on": seen}
        told |= {"engine": predictor.engine, "gate": self.gate, "patience": self.anytime}
        told |= {"saturated": predictor.saturated}
        return replace(report, provenance=report.provenance | told)

    def judge_masks(self, masks: dict[str, dict[str, Path]]) -> Report:
        """Masks of each fold ("" for a plain folder) -> the report on them, out of fold for several."""
        from mednca.evaluate import evaluate_masks
        from mednca.nnunet import FOREGROUND, mask_labels
        from mednca.report import merge_reports

        for option in fields(self):
            of_models = option.name in ("seed", "ensemble", "device", "engine", "threads", "gate", "anytime")
            if of_models and getattr(self, option.name) != option.default:
                raise InputError(
                    f"--{option.name} is for a model, {self.model} is a folder of masks; leave it out"
                )
        found, chosen = self.chosen()
        known = mask_labels(Path(self.model)) if self.labels is None else {}
        if not known:
            known = {1: FOREGROUND} if self.labels == "merged" else found.labels
        if not known:
            raise InputError(f"{self.model}: nothing says what its values mean; give --labels merged")
        by_id = {case.id: case for case in chosen}
        every = {name for inside in masks.values() for name in inside}
        strange = sorted(every - set(by_id)) if self.cases is None else []
        if strange:
            raise InputError(f"{self.model}: holds a mask {strange[0]}, which is no case of {self.data}")
        without = sorted(set(by_id) - every)
        if without and ("" in masks or len(without) == len(by_id)):
            raise InputError(
                f"{self.model}: has no mask of {len(without)} of the {len(by_id)} cases, as {without[0]}; "
                "add them, or name the cases to judge with --cases"
            )
        if without:
            print(
                f"mednca: warning: {self.model} has no mask of {len(without)} of the {len(by_id)} cases, as "
                f"{without[0]}: folds are missing, and this is a report on the others",
                file=sys.stderr,
            )
        reports = {
            fold: evaluate_masks(
                inside,
                known,
                [by_id[name] for name in sorted(inside) if name in by_id],
                tolerance_mm=self.tolerance,
                labels=found.labels or None,
                progress=self.bar,
            )
            for fold, inside in masks.items()
            if by_id.keys() & inside.keys()
        }
        report = reports[""] if "" in reports else merge_reports(reports)
        if leaked := report.provenance.get("groups_in_several_folds"):
            print(
                f"mednca: warning: {len(leaked)} person(s), as {leaked[0]}, are in several folds; this is no "
                "independent test",
                file=sys.stderr,
            )
        told = {"model": str(self.model), "data": found.name, "without_mask": without}
        return replace(report, provenance=report.provenance | told)


def expected(report: dict[str, Any]) -> str:
    """Report of a prediction -> the expected Dice, and why it is low; "" where the model cannot tell."""
    if report["trust"] is None:
        return ""
    from mednca.trust import in_words

    return in_words(report["trust"])


def foreground(report: dict[str, Any]) -> str:
    """Report of a prediction -> how much there is of each class: ml, or voxels where mm mean nothing."""
    voxels = report["foreground_voxels"]
    return ", ".join(
        f"{name} {voxels[name]} voxels" if ml is None else f"{name} {ml:.3g} ml"
        for name, ml in report["foreground_ml"].items()
    )
