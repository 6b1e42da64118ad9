"""Data sets: audited, or made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

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
