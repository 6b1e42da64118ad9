"""The way to nnU-Net."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mednca.errors import InputError


@dataclass(frozen=True)
class ExportNnunet:
    """Write a data set in nnU-Net's raw layout, with the folds of 'mednca train', and print the commands that
    come next.

    nnU-Net v2 is a program of its own (pip install nnunetv2) and not needed for this. The commands on stdout
    are a shell script: all that is not a command is a comment.

    Examples:
        mednca data export-nnunet Task04_Hippocampus -o nnunet --folds 5 --group pairs > nnunet.sh
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of the data set."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")]
    """Folder that gets nnUNet_raw, nnUNet_preprocessed and, later, nnUNet_results."""
    number: Annotated[int, arg(metavar="N")] = 1
    """Number of the data set, by which nnU-Net calls it: 1 to 999."""
    labels: Literal["merged", "separate"] = "merged"
    """One class for all labels, or one for each."""
    folds: int = 5
    """Number of folds."""
    group: Annotated[
        str | None, arg(metavar="RULE", help_behavior_hint="(default: every case is a person)")
    ] = None
    """What makes a person, so that none is on both sides of a split; see 'mednca train --help'."""
    seed: int = 0
    """Of the folds: the same as 'mednca train' has with the same seed, folds and group."""
    trainer: str = "nnUNetTrainer"
    """nnU-Net's trainer in the commands: nnUNetTrainer has 1000 epochs, nnUNetTrainer_250epochs fewer."""
    device: str = "cuda"
    """Device in the commands: cuda, cpu or mps."""
    copy: bool = False
    """Copy the files instead of linking to them, so that DIR can be moved to another machine."""
    force: bool = False
    """Replace the data set of this number."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Export, and print the commands."""
        from tqdm import tqdm

        from mednca.cases import find_labelled_cases, split_folds
        from mednca.nnunet import configurations, export_raw, next_commands, results_folder

        if self.folds < 2:
            raise InputError(f"--folds must be at least 2, got {self.folds}")
        if not 1 <= self.number <= 999:
            raise InputError(f"--number must be from 1 to 999, got {self.number}")
        found = find_labelled_cases(self.data, self.group)
        dataset = export_raw(
            found,
            split_folds(found, self.folds, self.seed),
            self.out.absolute(),
            number=self.number,
            merge=self.labels == "merged",
            copy=self.copy,
            force=self.force,
            progress=lambda c: tqdm(c, unit="scan", delay=2, disable=True if self.quiet else None),
        )
        print(f"# {dataset}: {len(found.cases)} cases, {self.folds} folds, labels {self.labels}")
        print("\n".join(next_commands(dataset, trainer=self.trainer, device=self.device)))
        print("# then judge the masks that each fold made of the cases that it had not seen:")
        group = f" --group {shlex.quote(self.group)}" if self.group else ""
        data = shlex.quote(str(self.data.absolute()))
        for kind in configurations(dataset):
            where = shlex.quote(str(results_folder(dataset, kind, self.trainer)))
            print(f"mednca evaluate {where} {data}{group} --json nnunet_{kind}.json")
        folds = " ".join(str(fold) for fold in range(self.folds))
        print("# and so are new scans segmented, with files named as in imagesTr:")
        for kind in configurations(dataset):
            print(
                f"# nnUNetv2_predict -d {self.number} -c {kind} -f {folds} -tr {self.trainer} "
                f"-device {self.device} -i SCANS -o MASKS"
            )
        return 0
