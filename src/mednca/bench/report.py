"""What a benchmark found: a table to be read, and all of it to be stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mednca.bench.measure import Times


@dataclass(frozen=True)
class Row:
    """What was measured of one engine in one job.

    Attributes:
        job: Name of the slice or scan.
        engine: Its name.
        threads: How many; None where the engine decides.
        times: Of each round.
        memory_mib: See `memory`; None where it was not measured.
        apart: See `difference`, on a small slice against NumPy in float64; None for a scan.
    """

    job: str
    engine: str
    threads: int | None
    times: Times
    memory_mib: dict[str, float] | None = None
    apart: dict[str, float] | None = None


@dataclass(frozen=True)
class Report:
    """What a benchmark found, to be read (`table`) and to be stored (`to_dict`)."""

    model: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rows = []
        for row in self.rows:
            told = asdict(row) | {"median_s": row.times.median, "times_native": self.against_native(row)}
            rows.append(told | told.pop("times"))
        return {"model": self.model, "machine": self.machine, "rows": rows, "notes": self.notes}

    def against_native(self, row: Row) -> float | None:
        """How many times as long as `native` with as many threads; None for itself, or without it."""
        for other in self.rows:
            same = other.job == row.job and row.threads in (None, other.threads)
            if same and other.engine == "native" != row.engine:
                return round(row.times.median / other.times.median, 3)
        return None

    def table(self) -> str:
        """Markdown that can be pasted into a message."""
        lines = [["job", "engine", "threads", "seconds: median (min to max)", "times native", "memory, MiB"]]
        for row in self.rows:
            times = self.against_native(row)
            seconds = row.times.seconds
            median, least, most = map(_digits, (row.times.median, min(seconds), max(seconds)))
            lines.append(
                [
                    row.job,
                    row.engine,
                    str(row.threads or "its own"),
                    f"{median} ({least} to {most})",
                    "" if times is None else f"{times:.2f}",
                    f"{row.memory_mib['above_python']:.0f}" if row.memory_mib else "",
                ]
            )
        filled = [k for k in range(len(lines[0])) if any(line[k] for line in lines[1:])]
        widths = {k: max(len(line[k]) for line in lines) for k in filled}
        told = ["| " + " | ".join(f"{line[k]:{widths[k]}}" for k in filled) + " |" for line in lines]
        told.insert(1, "|" + "|".join("-" * (widths[k] + 2) for k in filled) + "|")
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([*self.head(), "", *told, *notes])

    def head(self) -> list[str]:
        """What was run, and on what, in lines."""
        model, here = self.model, self.machine
        runs = f", mean of {model['ensemble']} runs for a scan" if model["ensemble"] > 1 else ""
        versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
        told = f", {here['instructions']}" if here["instructions"] else ""
        return [
            f"{model['name']} ({model['hash']}), {' + '.join(map(str, model['steps']))} steps{runs}; "
            f"mednca {here['mednca']}, {here['date']}",
            f"{here['processor']}, {here['processors']} processor(s){told}; {here['system']}",
            versions,
        ]


def _digits(seconds: float) -> str:
    """Seconds -> text of three digits that count."""
    return f"{seconds:.{max(0, 2 - int(np.floor(np.log10(max(seconds, 1e-9)))))}f}"
