"""The commands: one dataclass each, what the library does under the same names; `cli` runs them.

Fields are options, their docstrings the help. A command imports what it needs when it runs, so that help is
quick and works without the extras.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.config import RunConfig
    from mednca.recipes import Fingerprint


@dataclass(frozen=True)
class Train:
    """Train a model on a folder of labelled scans and judge it on scans that it never saw.

    DATA is in MSD layout (dataset.json, imagesTr, labelsTr), nnU-Net raw layout or a pair of folders images/
    and labels/. RUN becomes a run folder with the model (model.safetensors), its report, its curve and all
    that is needed to go on after a stop.

    Examples:
        mednca train Task04_Hippocampus -o runs/hippocampus --group pairs
        mednca train Task04_Hippocampus -o runs/hippocampus_cv --group pairs --folds 5
        mednca train Task04_Hippocampus -o runs/hippocampus --group pairs --resume
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="RUN")]
    """Run folder to make; with --folds the folder of its runs."""
    recipe: str = "native"
    """native (ours), quick (lean, for a first look), paper_hippocampus or paper_prostate (the paper's)."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the recipe alone)")] = (
        None
    )
    """JSON file of settings that replace the recipe's, as {"train": {"patch": 48}}; see 'mednca info'."""
    labels: Literal["merged", "separate"] = "merged"
    """One class for all labels (the recipes' way) or one for each."""
    iterations: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Steps of the optimiser."""
    batch_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Slices per step."""
    learning_rate: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: the recipe's)")] = (
        None
    )
    """Peak learning rate."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the recipe's)")] = None
    """Of everything random: split, weights, samples, augmentation, fire masks."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person, so that no person is on both sides of a split: pairs (numbers 2k-1 and 2k, as in
    MSD Task04), re:PATTERN (its one group, in the case id) or csv:FILE:COLUMN."""
    folds: int = 0
    """Cross-validate with this many folds; 0 keeps one part out."""
    fold: Annotated[int | None, arg(metavar="I", help_behavior_hint="(default: all)")] = None
    """Train this fold only, from 0."""
    validation: float = 0.2
    """Share of the cases that is kept out and reported on; 0 trains on all."""
    device: str = "cpu"
    """cpu or cuda."""
    engine: str = "auto"
    """Way to run the rule: auto, native (C), folded or eager (PyTorch)."""
    resume: bool = False
    """Go on where a stopped training was."""
    force: bool = False
    """Replace an existing run."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Train, and print the table of the held-out cases."""
        from mednca.cases import find_labelled_cases
        from mednca.train import check_engine, train

        check_engine(self.device, self.engine)  # refuse before the data are read and a run folder is made
        cases = find_labelled_cases(self.data, self.group)
        report = train(
            cases,
            self.out,
            self.configure,
            folds=self.folds,
            fold=self.fold,
            validation=self.validation,
            device=self.device,
            engine=self.engine,
            resume=self.resume,
            force=self.force,
            progress=not self.quiet,
        )
        if report is not None:
            print(report.table())
        print(f"{self.out}: done")
        return 0

    def configure(self, data: Fingerprint) -> RunConfig:
        """Fingerprint of the data -> the recipe's configuration with the options put in."""
        from mednca.config import RunConfig, from_dict, merged, to_dict
        from mednca.files import read_json
        from mednca.recipes import recipe, with_classes

        config = recipe(self.recipe, data)
        if self.labels == "separate":
            config = with_classes(config, data.labels)
        if self.config is not None:
            settings = merged(to_dict(config), read_json(self.config), str(self.config))
            config = from_dict(RunConfig, settings, str(self.config))
        names = ("iterations", "batch_size", "learning_rate", "seed")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        try:
            return replace(config, train=replace(config.train, **given))
        except ValueError as error:
            raise InputError(str(error)) from error


@dataclass(frozen=True)
class Predict:
    """Segment scans: a mask for each, on the scan's own grid and in its orientation.

    MODEL is a run folder, a .safetensors file or the name of a model that comes with mednca. Beside each mask
    a small JSON report is written: version, model, seed, seconds, volume, warnings.

    Of several scans, one that cannot be segmented does not stop the others: it is told on stderr, and the
    exit status is 2 in the end. Otherwise nothing is written before all places for masks were found free.

    With a model of several channels, name_0000.nii.gz, name_0001.nii.gz, ... are one scan, as in nnU-Net.

    Examples:
        mednca predict hippocampus scan.nii.gz -o mask.nii.gz
        mednca predict runs/hippocampus scans/ -o masks/
        mednca predict runs/hippocampus a.nii.gz b.nii.gz -o masks/ --json > reports.json
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT...", help_behavior_hint="(required)")]
    """Scans, or folders of scans (NIfTI, MHA, NRRD, PNG, TIFF)."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Mask to write, for one scan; folder for several."""
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
            model, self.device, self.seed, self.engine, threads=self.threads, gate=self.gate
        )
        # This refuses what cannot be done, before anything is computed.
        told = predict_files(predictor, self.inputs, self.out, force=self.force, progress=not self.quiet)
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
                tqdm.write(f"{report['output']}: {foreground(report)}, {report['seconds']:.1f} s")
        if self.json:
            print(json.dumps(reports, indent=1))
        failed = sum("error" in report for report in reports)
        if failed:
            print(f"mednca: {failed} of {len(reports)} scans could not be segmented", file=sys.stderr)
        return 2 if failed else 0


@dataclass(frozen=True)
class Evaluate:
    """Judge a model on labelled scans: Dice, IoU, HD95, ASSD, NSD and volumes, per case, mean, sd and
    interval.

    Examples:
        mednca evaluate hippocampus Task04_Hippocampus --group pairs --json report.json
        mednca evaluate runs/hippocampus Task04_Hippocampus --cases held_out.txt
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model."""
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
    force: bool = False
    """Replace an existing report."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Evaluate, and print the table."""
        from tqdm import tqdm

        from mednca.cases import find_labelled_cases
        from mednca.evaluate import evaluate
        from mednca.files import read_lines
        from mednca.modelfile import load_model
        from mednca.predict import Predictor, saturation, with_ensemble

        if self.json is not None and self.json.exists() and not self.force:
            raise InputError(f"{self.json}: exists already; choose another name or give --force")
        if not self.tolerance >= 0:
            raise InputError(f"tolerance must be 0 mm or more, got {self.tolerance:g}")
        model = with_ensemble(load_model(self.model), self.ensemble)
        found = find_labelled_cases(self.data, self.group)
        chosen = found.cases
        if self.cases is not None:
            wanted = read_lines(self.cases)
            missing = sorted(wanted - {case.id for case in chosen})
            if missing:
                raise InputError(f"{self.cases}: case {missing[0]} is not in {self.data}")
            chosen = tuple(case for case in chosen if case.id in wanted)
        predictor = Predictor(
            model,
            self.device,
            self.seed,
            self.engine,
            probability=True,
            threads=self.threads,
            gate=self.gate,
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
            progress=lambda c: tqdm(c, unit="scan", disable=True if self.quiet else None),
        )
        for warning in saturation(predictor.saturated):
            print(f"mednca: warning: {warning}", file=sys.stderr)
        told: dict[str, Any] = {"model": str(self.model), "model_hash": model.hash, "device": self.device}
        told |= {"data": found.name, "fire_seed": self.seed, "trained_on": seen}
        told |= {"engine": predictor.engine, "gate": self.gate, "saturated": predictor.saturated}
        report = replace(report, provenance=report.provenance | told)
        if self.json is not None:
            report.write(self.json, force=self.force)
        print(report.table())
        return 0


@dataclass(frozen=True)
class Info:
    """Tell what a model is: its rule, its data, its scores, its licence.

    Examples:
        mednca info hippocampus
        mednca info runs/hippocampus --json
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model."""
    json: bool = False
    """Print everything, the complete configuration too, as JSON."""

    def run(self) -> int:
        """Print the card."""
        from mednca.card import describe
        from mednca.config import to_dict
        from mednca.modelfile import load_model

        model = load_model(self.model)
        if self.json:
            told: dict[str, Any] = {"hash": model.hash, "parameters": model.parameters}
            told["calibrated"] = model.range is not None
            print(json.dumps(told | {"config": to_dict(model.config), "card": model.card}, indent=1))
        else:
            print(describe(model))
        return 0


@dataclass(frozen=True)
class Doctor:
    """Audit a data set before anything is trained on it: pairs, grids, labels, intensities, duplicates,
    persons.

    Exit status 0 if it is sound (warnings may stand), 1 if there is an error.

    Examples:
        mednca doctor Task04_Hippocampus
        mednca doctor Task04_Hippocampus --group pairs --json audit.json
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person; see 'mednca train --help'."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write every finding and fingerprint to this file."""
    force: bool = False
    """Replace an existing file."""

    def run(self) -> int:
        """Audit, and print the table."""
        from tqdm import tqdm

        from mednca.cases import find_cases
        from mednca.doctor import audit, exit_code, table, to_json
        from mednca.files import atomic_write

        if self.json is not None and self.json.exists() and not self.force:
            raise InputError(f"{self.json}: exists already; choose another name or give --force")
        found = find_cases(self.data, group=self.group)
        with tqdm(total=len(found.cases), unit="scan", leave=False, delay=2, disable=None) as bar:
            result = audit(found, lambda done, _: bar.update(done - bar.n) and None)
        if self.json is not None:
            atomic_write(self.json, to_json(result), force=self.force)
        print(table(result))
        return exit_code(result)


@dataclass(frozen=True)
class Phantoms:
    """Make a data set of synthetic scans with labels: to try everything without a patient's scan.

    Examples:
        mednca phantoms phantoms/ --count 24
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder to make, in MSD layout."""
    count: int = 24
    """Number of scans."""
    seed: int = 0
    """The same seed makes the same scans."""
    force: bool = False
    """Replace a folder of phantoms."""

    def run(self) -> int:
        """Make the phantoms."""
        from mednca.synthetic import write_phantoms

        if self.count < 1:
            raise InputError(f"--count must be at least 1, got {self.count}")
        print(f"{write_phantoms(self.folder, self.count, self.seed, self.force)}: {self.count} scans")
        return 0


@dataclass(frozen=True)
class ImportOfficial:
    """Turn the rule pair that the paper's authors publish (model0.pth, model1.pth, config.json) into one
    file.

    Examples:
        mednca import-official authors_checkpoint -o authors.safetensors
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder with model0.pth, model1.pth and config.json."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """Model file to write."""
    force: bool = False
    """Replace an existing file."""

    def run(self) -> int:
        """Import."""
        from mednca.modelfile import save_model
        from mednca.official import import_official

        print(f"{save_model(self.out, import_official(self.folder), force=self.force)}: done")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a model in another form: for ONNX runtimes, or as a C header for a machine without files.

    onnx makes a folder: level_0.onnx, level_1.onnx, ... with one step of each level and the fire mask as an
    input, a page that tells the way to a mask, and example.py, which goes it with NumPy and ONNX Runtime
    alone. c makes a header with the bytes of the model file, which mednca_open() of runtime/c takes.

    Examples:
        mednca export hippocampus --to onnx -o hippocampus_onnx
        mednca export hippocampus --to c -o hippocampus.h
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model."""
    to: Literal["onnx", "c"]
    """The form."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """Folder to make (onnx), or header to write (c)."""
    force: bool = False
    """Replace existing files."""

    def run(self) -> int:
        """Export, and print a line for each file."""
        from mednca.export import export

        for path in export(self.model, self.to, self.out, force=self.force):
            print(f"{path}: {path.stat().st_size:,} bytes")
        return 0


@dataclass(frozen=True)
class Bench:
    """Tell how fast this machine runs a model: seconds of a slice and of a scan, memory, in one table.

    The seconds of a slice are of one run of the model; those of a scan are of all that 'mednca predict' does
    but reading and writing files. With --compare the same slices also go through PyTorch, ONNX Runtime and
    OpenVINO, where they are installed, in turns.

    Examples:
        mednca bench
        mednca bench hippocampus --size 64x64 --threads 1 --json bench.json
        mednca bench runs/hippocampus --compare
    """

    model: Annotated[Positional[str], arg(metavar="[MODEL]")] = "hippocampus"
    """Run folder, .safetensors file or name of a shipped model."""
    size: Annotated[str, arg(metavar="HxW,...")] = "64x64,256x256"
    """Rows and columns of the slices."""
    steps: Annotated[str | None, arg(metavar="N,...", help_behavior_hint="(default: the model's)")] = None
    """Steps of each level, coarse to fine. Masks of other numbers than the model's mean nothing."""
    threads: Annotated[str | None, arg(metavar="N,...", help_behavior_hint="(default: 1 and all)")] = None
    """Numbers of threads."""
    repeats: int = 5
    """Rounds that count; one of warming up goes before."""
    compare: bool = False
    """Also time NumPy, PyTorch, ONNX Runtime and OpenVINO."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write every measurement to this file."""
    force: bool = False
    """Replace an existing file."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Measure, and print the table."""
        from tqdm import tqdm

        from mednca.bench import bench
        from mednca.files import atomic_write

        if self.json is not None and self.json.exists() and not self.force:
            raise InputError(f"{self.json}: exists already; choose another name or give --force")
        sizes = [tuple(numbers("--size", part, "x")) for part in self.size.split(",")]
        if any(len(size) != 2 for size in sizes):
            raise InputError(f"--size must be like 256x256 or 64x64,256x256, got {self.size!r}")
        with tqdm(leave=False, delay=2, disable=True if self.quiet else None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            report = bench(
                self.model,
                sizes=[(size[0], size[1]) for size in sizes],
                steps=None if self.steps is None else numbers("--steps", self.steps),
                threads=None if self.threads is None else numbers("--threads", self.threads),
                repeats=self.repeats,
                compare=self.compare,
                progress=progress,
            )
        if self.json is not None:
            atomic_write(self.json, json.dumps(report.to_dict(), indent=1) + "\n", force=self.force)
        print(report.table())
        return 0


def numbers(option: str, text: str, between: str = ",") -> list[int]:
    """Name and text of an option, and what separates its numbers -> the numbers."""
    try:
        return [int(part) for part in text.split(between)]
    except ValueError:
        raise InputError(f"{option} must be whole numbers with {between!r} between, got {text!r}") from None


def foreground(report: dict[str, Any]) -> str:
    """Report of a prediction -> how much there is of each class: ml, or voxels where mm mean nothing."""
    voxels = report["foreground_voxels"]
    return ", ".join(
        f"{name} {voxels[name]} voxels" if ml is None else f"{name} {ml:.3g} ml"
        for name, ml in report["foreground_ml"].items()
    )


#: Name on the command line -> command.
COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "predict": Predict,
    "evaluate": Evaluate,
    "info": Info,
    "doctor": Doctor,
    "phantoms": Phantoms,
    "import-official": ImportOfficial,
    "export": Export,
    "bench": Bench,
}
