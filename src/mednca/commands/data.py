"""Data sets: audited, made, fetched, joined."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mednca.commands.bench import numbers
from mednca.errors import InputError


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
class Get:
    """Fetch a public data set: Task04_Hippocampus (27 MB) or Task05_Prostate (229 MB) of the Medical
    Segmentation Decathlon.

    The archive is checked and unpacked whole or not at all. After a stop, or where the connection was cut,
    the same command goes on with what has arrived.

    Examples:
        mednca data get Task04_Hippocampus
        mednca data get Task05_Prostate -o data/Task05_Prostate
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Task04_Hippocampus or Task05_Prostate."""
    out: Annotated[
        Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="(default: the set's name)")
    ] = None
    """Folder to make."""
    mirror: Annotated[
        str | None, arg(metavar="URL", help_behavior_hint="(default: the AWS Open Data registry)")
    ] = None
    """Address of another folder that has NAME.tar; the checksum holds for it too."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        """Fetch, and print what the set is and what it asks of its users."""
        from mednca.download import ARCHIVES, MSD, get

        folder = get(self.name, self.out, mirror=self.mirror or MSD, progress=not self.quiet)
        archive = ARCHIVES[self.name]
        print(f"{folder}: {archive.about}")
        print(f"licence: {archive.licence}: give credit, and share what you make of it alike")
        print(f"cite: {archive.reference}")
        return 0


@dataclass(frozen=True)
class Join:
    """Make one data set of several: a folder with a dataset.json that lists their labelled cases, each with
    its source.

    No scan is copied or changed. Every command takes the folder as DATA; reports also tell each source alone.
    Sets whose scans have different channels need --channels: those named are used, in that order, and must
    mean the same in all sets. One set is enough, to choose its channels or to leave cases out.

    Examples:
        mednca data join Task05_Prostate NCI-ISBI-2013 -o Prostate --channels 0
        mednca data join Task05_Prostate -o Task05_T2 --channels 0
    """

    data: Annotated[Positional[tuple[Path, ...]], arg(metavar="DATA...", help_behavior_hint="(required)")]
    """Folders of the data sets."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")]
    """Folder to make."""
    channels: Annotated[str | None, arg(metavar="N,...", help_behavior_hint="(default: all)")] = None
    """Channels to use, counted from 0; 0 of Task05_Prostate is T2."""
    leave_out: Annotated[str | None, arg(metavar="ID,...", help_behavior_hint="(default: none)")] = None
    """Cases to leave out."""
    force: bool = False
    """Replace a joined set."""

    def run(self) -> int:
        """Join, and print how many cases of which source there are."""
        from mednca.join import join

        found = join(
            self.data,
            self.out,
            channels=numbers("--channels", self.channels) if self.channels is not None else (),
            leave_out=self.leave_out.split(",") if self.leave_out is not None else (),
            force=self.force,
        )
        counts = Counter(case.source for case in found.cases)
        told = ", ".join(f"{count} of {source}" for source, count in counts.items())
        print(f"{self.out}: {len(found.cases)} labelled cases, {told}")
        print("labels: " + ", ".join(f"{value} {name}" for value, name in found.labels.items()))
        if found.licence:
            print(f"licence: {found.licence}")
        return 0
