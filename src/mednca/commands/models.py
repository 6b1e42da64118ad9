"""Model files: what they are, and other forms of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from mednca.errors import InputError


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
            told["trust"] = model.trust is not None
            print(json.dumps(told | {"config": to_dict(model.config), "card": model.card}, indent=1))
        else:
            print(describe(model))
        return 0


@dataclass(frozen=True)
class Calibrate:
    """Add to a model what 16-bit arithmetic (--engine int16) needs: the range of its numbers on some scans.

    'mednca train' does this by itself; this is for older and imported models. Give scans like those that the
    model was trained on, no labels. Weights and hash of the model stay as they are.

    Examples:
        mednca calibrate runs/hippocampus scans/ -o calibrated.safetensors
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, .safetensors file or name of a shipped model."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT...", help_behavior_hint="(required)")]
    """Scans, or folders of scans."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """Model file to write."""
    scans: int = 32
    """Scans to draw from those given."""
    seed: int = 0
    """Draws the scans and slices and names the fire masks."""
    force: bool = False
    """Replace an existing file."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Measure, and write the model with its range."""
        import numpy as np
        from tqdm import tqdm

        from mednca.calibrate import measure_range
        from mednca.io import read_case
        from mednca.modelfile import load_model, save_model
        from mednca.segment import find_scans
        from mednca.slices import prepare_image

        if self.scans < 1:
            raise InputError(f"--scans must be at least 1, got {self.scans}")
        if self.out.exists() and not self.force:
            raise InputError(f"{self.out}: exists already; choose another name or give --force")
        model = load_model(self.model)
        preprocess = model.config.preprocess
        found = find_scans(self.inputs, preprocess.modalities)
        drawn = np.random.default_rng(self.seed).permutation(len(found))[: self.scans].tolist()
        images = []
        for scan in (found[at] for at in drawn):
            volume = read_case(scan.files)
            if volume.channels != preprocess.modalities:
                raise InputError(
                    f"{scan.files[0]}: this model takes scans of {preprocess.modalities} channel(s), "
                    f"got {volume.channels}"
                )
            images += [prepare_image(volume, view) for view in preprocess.views]
        with tqdm(unit="pixel", unit_scale=True, delay=2, disable=True if self.quiet else None) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            measured = measure_range(model, images, seed=self.seed, progress=show)
        print(f"{save_model(self.out, replace(model, range=measured), force=self.force)}: done")
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
