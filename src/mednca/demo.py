"""The quick start, `make demo`: scans in, a trained and judged model out, with pictures and an explanation.

Without data of one's own it makes synthetic scans (phantoms). Everything is done by the functions that the
command line calls too: `train` with the recipe `quick`, which keeps a part of the cases out and judges the
model on them, then `predict_files` for their masks.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tyro.conf import arg

from mednca.cli import guarded
from mednca.errors import InputError

if TYPE_CHECKING:
    from mednca.cases import Case
    from mednca.report import Report

MARKER = ".made-by-mednca-demo"
#: All that the demo writes into its folder, and all that it ever removes from it.
PARTS = ("phantoms", "run", "masks", "metrics.json", "overlay.png", "curve.png", "README.txt")
HELD_OUT = 0.25  # share of the cases that are kept out of training
PHANTOMS = 32


@dataclass(frozen=True)
class Demo:
    """Train a small model, judge it on scans that it never saw, and explain the result.

    Examples:
        python -m mednca.demo --out demo
        python -m mednca.demo --data Task04_Hippocampus --group pairs --out demo
    """

    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("demo")
    """Folder to write; one that an earlier demo made is replaced."""
    data: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Real labelled scans instead of phantoms: a folder as 'mednca train' takes it."""
    group: str | None = None
    """What makes a person, with --data; see 'mednca train --help'."""
    iterations: int | None = None
    """Steps of the optimiser, instead of the recipe's number."""

    def run(self) -> int:
        """Do it all, and print the summary."""
        print(demo(self.out, self.data, group=self.group, iterations=self.iterations))
        return 0


def demo(
    out: Path,
    data: Path | None = None,
    *,
    group: str | None = None,
    iterations: int | None = None,
    phantoms: int = PHANTOMS,
    progress: bool = True,
) -> str:
    """Folder to write, and labelled scans or none -> a trained and judged model in it, and what to say of it.

    Args:
        out: Gets `run` (the run folder), `masks`, `metrics.json`, `overlay.png`, `curve.png`, `README.txt`
            and, without data, `phantoms`.
        data: Folder of a data set; None makes phantoms.
        group: What makes a person, as `find_cases` takes it.
        iterations: Steps of the optimiser, instead of the recipe's number.
        phantoms: How many to make.
        progress: Whether to show progress on stderr.

    Raises:
        InputError: If `out` exists and no demo made it, or the data cannot be used.
    """
    from mednca.cases import find_cases
    from mednca.config import RunConfig
    from mednca.recipes import Fingerprint, quick
    from mednca.synthetic import write_phantoms
    from mednca.train import train

    if group is not None and data is None:
        raise InputError("--group tells the persons of real scans apart; give --data as well")
    if iterations is not None and iterations < 1:
        raise InputError(f"--iterations must be at least 1, got {iterations}")
    # Data that cannot be used are refused before the last demo's result is removed.
    cases = find_cases(data, group=group, require_labels=True) if data is not None else None
    prepare(out, data)
    if cases is None:
        if progress:
            print(f"making {phantoms} synthetic scans ...", file=sys.stderr)
        cases = find_cases(write_phantoms(out / "phantoms", phantoms, seed=0))

    def configure(fingerprint: Fingerprint) -> RunConfig:
        config = quick(fingerprint)
        return replace(config, train=replace(config.train, iterations=iterations or config.train.iterations))

    started, worked = time.perf_counter(), time.process_time()
    report = train(cases, out / "run", configure, validation=HELD_OUT, progress=progress)
    assert report is not None  # a part was kept out
    told: dict[str, Any] = {"data": cases.name, "seconds": round(time.perf_counter() - started, 1)}
    told["cpu_seconds"] = round(time.process_time() - worked, 1)
    replace(report, provenance=report.provenance | told).write(out / "metrics.json")
    by_id = {case.id: case for case in cases.cases}
    draw(out, [by_id[name] for name in report.cases], progress=progress)
    shutil.copyfile(out / "run" / "curve.png", out / "curve.png")
    text = summary(out, data, report, told["seconds"])
    (out / "README.txt").write_text(text + "\n", encoding="utf-8")
    return text


def prepare(out: Path, data: Path | None) -> None:
    """Make the demo's folder, or remove from one what an earlier demo wrote; nothing else is ever removed.

    Raises:
        InputError: If the folder exists and no demo made it, or the data lie in what would be removed.
    """
    if data is not None and any(data.resolve().is_relative_to((out / part).resolve()) for part in PARTS):
        raise InputError(f"{data}: lies in what the demo writes anew; move it, or give another --out")
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and was not made by a demo; give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("mednca.demo replaces what it made in this folder.\n", encoding="utf-8")
    for part in PARTS:
        path = out / part
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def draw(out: Path, held_out: Sequence[Case], *, progress: bool) -> None:
    """Cases that were kept out -> their masks in `masks`; the worst, median and best as a picture."""
    import nibabel as nib

    from mednca.figures import Picture, overlay_sheet
    from mednca.io import read_case, read_label
    from mednca.modelfile import load_model
    from mednca.predict import Predictor
    from mednca.segment import predict_files

    (out / "masks").mkdir()
    files = [path for case in held_out for path in case.images]
    predictor = Predictor(load_model(str(out / "run")))
    pictures = []
    for case, told in zip(
        held_out,
        predict_files(predictor, files, out / "masks", channels=held_out[0].channels, progress=progress),
        strict=True,
    ):
        if "error" in told:
            raise InputError(told["error"])
        assert case.label is not None, case.id  # `train` has judged it
        image = read_case(case.images, case.channels)
        label, mask = read_label(case.label, like=image), read_label(told["output"])
        pictures.append(
            Picture(
                name=case.id,
                image=image.data[0],
                reference=(label.data[0] > 0).astype(np.uint8),
                mask=mask.data[0],
                spacing=[float(step) for step in image.spacing],
                orientation="".join(nib.orientations.aff2axcodes(image.affine)),
            )
        )
    overlay_sheet(out / "overlay.png", pictures)


def summary(out: Path, data: Path | None, report: Report, seconds: float) -> str:
    """Folder of a demo and its report -> what was done, what the numbers mean and what to type next."""
    from mednca.checkpoint import RunFolder
    from mednca.modelfile import load_model

    run = RunFolder(out / "run")
    settings, split = run.config().train, run.split()
    training, held_out = len(split["training"]), len(split["validation"])
    made = data is None
    source = "synthetic scans (phantoms) were made" if made else f"labelled scans were read ({data})"
    done = (
        f"{training + held_out} {source}. A Med-NCA of {load_model(str(run.path)).parameters:,} parameters "
        f"learnt to outline the labelled organ from {training} of them, in {settings.iterations} steps of "
        f"{settings.batch_size} slices on the CPU. Then it segmented the other {held_out}, which it had "
        f"never seen. That took {_duration(seconds)}."
    )
    scores = report.summary["merged"]
    tolerance = f"{report.provenance['tolerance_mm']:g} mm"
    lines = ["What was done", *_wrapped(done), "", f"How good it is, on the {held_out} held-out scans"]
    for name, value, meaning in (
        ("Dice", _row(scores["dice"], 3), "overlap with the reference: 0 none, 1 perfect"),
        ("HD95", _row(scores["hd95_mm"], 1, " mm"), "95 % of the border is at most this far off"),
        ("NSD", _row(scores["nsd"], 3), f"share of the border that is right to {tolerance}"),
    ):
        lines.append(f"  {name:<5} {value:<29} {meaning}")
    lines += [*_wrapped("Mean over the scans (least to largest). " + _caution(data, split))]
    lines += ["", "What to look at"]
    for name, meaning in (
        ("overlay.png", "worst, median and best held-out scan: reference blue, model orange"),
        ("curve.png", "the training: the loss falls, the Dice of some held-out scans rises"),
        ("masks", "the model's mask of each held-out scan, on the scan's own grid"),
        ("metrics.json", "every score of every held-out scan"),
        ("run", "the run folder; the model is model.safetensors in it"),
    ):
        lines.append(f"  {(out / name).as_posix():<20}  {meaning}")
    command, model = _command(), shlex.quote((out / "run").as_posix())
    lines += ["", "What to type next"]
    for meaning, typed in (
        ("segment a scan", f"{command} predict {model} SCAN.nii.gz -o mask.nii.gz"),
        ("check a folder of your own labelled scans", f"{command} doctor FOLDER"),
        ("this demo on them", "make demo DATA=FOLDER"),
        (
            "train on them in earnest, with settings planned from them",
            f"{command} train FOLDER -o runs/first",
        ),
    ):
        lines.append(f"  {typed}\n      {meaning}")
    return "\n".join(lines)


def _caution(data: Path | None, split: dict[str, Any]) -> str:
    """Data or none, and the split -> what the numbers do not say."""
    if data is None:
        return (
            "A Dice of about 0.9 shows that the installation works and that the method learns. On phantoms "
            "the numbers say nothing about patients."
        )
    text = (
        "This was a short training, so that the demo ends soon; the recipe of 'mednca train' is longer and "
        "does better."
    )
    if split["grouping"] is None:
        text += (
            " Every scan was taken for a person of its own: if a person has several, say so with --group, or "
            "the numbers are too good."
        )
    return text


def _row(statistics: dict[str, Any], digits: int, unit: str = "") -> str:
    """Statistics of a metric -> mean, and the range over the cases."""
    if not statistics["n"]:
        return "undefined: masks are empty"
    mean, low, high = (f"{statistics[key]:.{digits}f}" for key in ("mean", "min", "max"))
    missing = f", {statistics['missing']} undefined" if statistics["missing"] else ""
    return f"{mean}{unit}  ({low} to {high}{missing})"


def _wrapped(text: str) -> list[str]:
    """Text -> indented lines of at most 88 characters."""
    lines = textwrap.wrap(text, 86, break_long_words=False, break_on_hyphens=False)
    return [f"  {line}" for line in lines]


def _duration(seconds: float) -> str:
    """Seconds -> "48 s" or "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _command() -> str:
    """How the command line is called from here: by name, or by the interpreter that `make` has set up."""
    interpreter, here = Path(sys.executable), Path.cwd()
    if shutil.which("mednca") or not interpreter.is_relative_to(here):
        return "mednca"
    return f"{shlex.quote(interpreter.relative_to(here).as_posix())} -m mednca"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments (default: the process's) -> the demo, then exit: 0 done, 2 a mistake to mend."""
    logging.basicConfig(level=logging.WARNING, format="mednca: %(message)s", stream=sys.stderr)
    command = tyro.cli(Demo, args=arguments, prog="python -m mednca.demo")
    sys.exit(guarded(command.run, stopped="give the same command to start again"))


if __name__ == "__main__":
    main()
