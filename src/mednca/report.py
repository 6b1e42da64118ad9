"""What was measured: scores per case, their summary with intervals, and reports to store, merge and compare.

A `Scores` maps region -> metric -> value, as `evaluate.score_case` makes it: the regions are the labels'
names and "merged" (all labels as one foreground). nan is a value that does not exist, as a distance to an
empty mask; it is null in JSON, left out of means and counted as `missing`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mednca.errors import InputError
from mednca.files import atomic_write

Scores = dict[str, dict[str, float]]
Summary = dict[str, dict[str, dict[str, Any]]]

MERGED = "merged"
FORMAT, VERSION = "mednca-report", 1
RESAMPLES = 10_000


@dataclass(frozen=True)
class Report:
    """Measured results with their provenance.

    Attributes:
        cases: Case id -> scores.
        summary: Region -> metric -> statistics, as `summarise` gives them.
        provenance: How it was measured: versions, tolerance, labels, seed.
        groups: Case id -> group (person); two cases of one group are not independent.
        folds: Case id -> the fold whose model saw it as held-out data; empty unless made by `merge_reports`.
        sources: Case id -> the set that it came from, where several were joined.
    """

    cases: dict[str, Scores]
    summary: Summary
    provenance: dict[str, Any]
    groups: dict[str, str] = field(default_factory=dict)
    folds: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def by_source(self) -> dict[str, Summary]:
        """Source -> summary of its cases, as `summarise` gives it; empty where no set was joined."""
        found = {}
        for source in sorted(set(self.sources.values())):
            cases = {name: self.cases[name] for name in self.cases if self.sources.get(name) == source}
            groups = {name: self.groups.get(name, name) for name in cases}
            found[source] = summarise(cases, groups, seed=self.provenance.get("seed", 0))
        return found

    def to_json(self) -> str:
        """The report -> JSON text; nan becomes null. `from_json` reads it back."""
        cases = {
            name: {
                "group": self.groups.get(name, name),
                **({"fold": self.folds[name]} if name in self.folds else {}),
                **({"source": self.sources[name]} if name in self.sources else {}),
                "scores": scores,
            }
            for name, scores in self.cases.items()
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "provenance": self.provenance,
            "summary": self.summary,
            **({"summary_by_source": self.by_source} if self.sources else {}),
            "cases": cases,
        }
        return json.dumps(_nan_to_null(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str = "report") -> Report:
        """JSON text -> report. `name` (a file's) is for messages.

        Raises:
            InputError: It is no report, a damaged one, or one of a later version.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{name} is not JSON ({error}); expected a report of `mednca evaluate`"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f'{name} is not a report of mednca: no "format": "{FORMAT}" in it')
        if content.get("version") != VERSION:
            raise InputError(
                f"{name} has report version {content.get('version')}, this mednca reads {VERSION}; update it"
            )
        try:
            cases = content["cases"]
            return cls(
                cases={
                    case: {
                        region: {
                            metric: math.nan if value is None else value for metric, value in values.items()
                        }
                        for region, values in entry["scores"].items()
                    }
                    for case, entry in cases.items()
                },
                summary=_null_to_nan(content["summary"]),
                provenance=content["provenance"],
                groups={case: entry["group"] for case, entry in cases.items()},
                folds={case: entry["fold"] for case, entry in cases.items() if "fold" in entry},
                sources={case: entry["source"] for case, entry in cases.items() if "source" in entry},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{name} is a damaged report ({error!r}); evaluate again") from error

    def write(self, path: str | Path, force: bool = False) -> None:
        """Write the JSON to a file, whole or not at all.

        Raises:
            InputError: The folder does not exist, or the file does and `force` is not set.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")
        atomic_write(target, self.to_json(), force=force)

    def table(self) -> str:
        """The summary as text, at most 100 columns; with a single label, without the equal merged rows."""
        regions = [region for region in self.summary if region != MERGED] + [MERGED]
        if len(regions) == 2:
            regions.remove(MERGED)
        width = min(14, max(len(region) for region in regions))
        persons = len({self.groups.get(case, case) for case in self.cases})
        header = "mean      sd        95 % interval   median      min      max     n"
        lines = [f"{'':{width}}  {'':<15}  {header}"]
        for region in regions:
            for at, (metric, row) in enumerate(self.summary[region].items()):
                first = f"{region if at == 0 else '':{width}.{width}}  {metric:<15}"
                low, high = row["ci95"]
                numbers = "".join(f"{_short(row[key]):>9}" for key in ("median", "min", "max"))
                lines.append(
                    f"{first}{_short(row['mean']):>8}{_short(row['sd']):>8}"
                    f"{_short(low):>9} ..{_short(high):>8}{numbers}{row['n']:>6}"
                )
        for source, summary in self.by_source.items():
            there = {m: row for m, row in summary[MERGED].items() if m in ("dice", "nsd", "hd95_mm")}
            told = ", ".join(f"{m} {_short(row['mean'])} sd {_short(row['sd'])}" for m, row in there.items())
            count = sum(found == source for found in self.sources.values())
            lines.append(f"{source} ({count} cases): {told}")
        lines += [
            "",
            f"{len(self.cases)} cases of {persons} groups. n: cases that have the value. sd: population.",
            f"Interval of the mean: bootstrap over groups. nsd: within {self.provenance['tolerance_mm']} mm.",
        ]
        if left_out := self.provenance.get("left_out"):
            lines[-1] = "Interval of the mean: bootstrap over groups."
            lines.append(f"Not measured, as the extra train is not installed: {', '.join(left_out)}.")
        if self.provenance.get("labels_merged"):
            values = ", ".join(str(value) for value in self.provenance["labels_merged"])
            lines.append(f"The model has one label; label values {values} were merged into it.")
        return "\n".join(lines)


def summarise(
    cases: Mapping[str, Scores],
    groups: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Summary:
    """Case id -> scores, case id -> group (default: each case its own) -> statistics per region and metric.

    These are mean, sd (population, ddof 0, as in the paper), median, min, max; n, the cases that have the
    value, and missing, the others; and ci95, the 95 % interval of the mean: percentiles of a bootstrap that
    draws *groups* with replacement. Two scans of one person are not independent, and drawing cases would give
    too narrow an interval. It is too narrow anyway for few groups (fewer than about 20), and nan for one. The
    mean weighs cases, not groups, alike. What no case has is nan.

    Raises:
        ValueError: There are no cases, or one has no group.
    """
    if not cases:
        raise ValueError("summarise needs at least one case")
    member = _members(cases, groups)
    regions = {region: None for scores in cases.values() for region in scores}
    summary: Summary = {}
    for region in regions:
        names = {metric: None for scores in cases.values() for metric in scores.get(region, {})}
        summary[region] = {}
        for metric in names:
            values = np.array(
                [scores.get(region, {}).get(metric, math.nan) for scores in cases.values()], np.float64
            )
            summary[region][metric] = _statistics(values, member, seed, resamples)
    return summary


def _members(cases: Collection[str], groups: Mapping[str, str] | None) -> npt.NDArray[np.intp]:
    """Case ids and their groups -> the number of the group of each case, (N,)."""
    if groups is None:
        return np.arange(len(cases))
    if lost := [case for case in cases if case not in groups]:
        raise ValueError(f"groups must name the group of every case; none for {', '.join(lost[:5])}")
    _, member = np.unique([groups[case] for case in cases], return_inverse=True)
    return member


def _statistics(
    values: npt.NDArray[np.float64], member: npt.NDArray[np.intp], seed: int, resamples: int
) -> dict[str, Any]:
    """Values (N,), nan where missing, and their groups (N,) -> statistics."""
    there = np.isfinite(values)
    found = values[there]
    nothing = math.nan
    return {
        "mean": float(found.mean()) if found.size else nothing,
        "sd": float(found.std()) if found.size else nothing,
        "median": float(np.median(found)) if found.size else nothing,
        "min": float(found.min()) if found.size else nothing,
        "max": float(found.max()) if found.size else nothing,
        "ci95": bootstrap_interval(found, member[there], seed=seed, resamples=resamples),
        "n": int(found.size),
        "missing": int(values.size - found.size),
    }


def bootstrap_interval(
    values: npt.NDArray[np.float64],
    member: npt.NDArray[np.intp],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[float]:
    """Values (N,) and the number of each one's group (N,) -> [low, high], a cluster bootstrap of the mean.

    Draws as many groups as there are, with replacement and with all their values, `resamples` times, and
    takes the percentiles of the means. The order of the values has no influence but through rounding. [nan,
    nan] for fewer than two groups. `scipy.stats.bootstrap` would draw values, not groups.

    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    _, member = np.unique(member, return_inverse=True)
    groups = int(member.max(initial=-1)) + 1
    if groups < 2:
        return [math.nan, math.nan]
    sums, counts = np.bincount(member, values), np.bincount(member)
    # In one order, whatever order the cases came in: the drawn numbers then mean the same groups.
    order = np.lexsort((counts, sums))
    drawn = np.random.default_rng(seed).integers(groups, size=(resamples, groups), dtype=np.int32)
    means = sums[order][drawn].sum(axis=1) / counts[order][drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def merge_reports(reports: Mapping[str, Report], *, seed: int = 0) -> Report:
    """Fold name -> report on its held-out cases -> one out-of-fold report, with each case's fold.

    The summary is over cases, as if one model had judged all of them. Groups (persons) that stand in several
    folds were seen by the other fold's model in training: they are listed in
    `provenance["groups_in_several_folds"]`.

    Raises:
        InputError: No reports, a case in two of them, or tolerances or labels that differ.
    """
    if not reports:
        raise InputError("merging needs at least one report")
    first_name, first = next(iter(reports.items()))
    cases: dict[str, Scores] = {}
    groups: dict[str, str] = {}
    folds: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name, report in reports.items():
        for key in ("tolerance_mm", "labels"):
            if report.provenance.get(key) != first.provenance.get(key):
                raise InputError(
                    f"reports {first_name} and {name} differ in {key}: {first.provenance.get(key)} and "
                    f"{report.provenance.get(key)}; evaluate them alike"
                )
        if twice := sorted(report.cases.keys() & cases.keys()):
            raise InputError(
                f"case {twice[0]} is in reports {folds[twice[0]]} and {name} ({len(twice)} such cases); "
                "a case is held out once"
            )
        cases |= report.cases
        groups |= {case: report.groups.get(case, case) for case in report.cases}
        folds |= dict.fromkeys(report.cases, name)
        sources |= report.sources
    where: dict[str, set[str]] = {}
    for case, group in groups.items():
        where.setdefault(group, set()).add(folds[case])
    merged = {value for report in reports.values() for value in report.provenance.get("labels_merged", ())}
    provenance = {
        "tolerance_mm": first.provenance.get("tolerance_mm"),
        "labels": first.provenance.get("labels"),
        "labels_merged": sorted(merged),
        "seed": seed,
        "resamples": RESAMPLES,
        "groups_in_several_folds": sorted(group for group, names in where.items() if len(names) > 1),
        "folds": {name: report.provenance for name, report in reports.items()},
    }
    return Report(cases, summarise(cases, groups, seed=seed), provenance, groups, folds, sources)


def paired_difference(
    report_a: Report,
    report_b: Report,
    metric: str,
    *,
    region: str = MERGED,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Two reports on the same cases -> statistics of a - b per case, as `summarise` gives them.

    A difference whose interval leaves out 0 is one that other persons would likely show too. Cases where
    either value is nan are `missing`.

    Raises:
        InputError: The reports hold other cases or groups, lack the metric, or took NSD at other tolerances.
    """
    if report_a.cases.keys() != report_b.cases.keys():
        odd = sorted(report_a.cases.keys() ^ report_b.cases.keys())
        raise InputError(f"paired reports must hold the same cases; {len(odd)} are in one only, as {odd[0]}")
    if report_a.groups != report_b.groups:
        raise InputError("paired reports must have the same groups; evaluate both with the same case list")
    tolerances = [report.provenance.get("tolerance_mm") for report in (report_a, report_b)]
    if metric == "nsd" and tolerances[0] != tolerances[1]:
        raise InputError(
            f"the reports took nsd within {tolerances[0]} and {tolerances[1]} mm; evaluate them alike"
        )
    for name, report in (("a", report_a), ("b", report_b)):
        if not any(metric in scores.get(region, {}) for scores in report.cases.values()):
            raise InputError(f"report {name} has no {metric} of {region}")

    def value(report: Report, case: str) -> float:
        return report.cases[case].get(region, {}).get(metric, math.nan)

    difference = np.array(
        [value(report_a, case) - value(report_b, case) for case in report_a.cases], np.float64
    )
    groups = {case: report_a.groups.get(case, case) for case in report_a.cases}
    return _statistics(difference, _members(report_a.cases, groups), seed, resamples)


def _short(value: float) -> str:
    """A number in at most 8 characters."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def _nan_to_null(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _nan_to_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_nan_to_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _null_to_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _null_to_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_null_to_nan(value) for value in content]
    return math.nan if content is None else content
