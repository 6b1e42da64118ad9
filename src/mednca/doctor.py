"""A data set's check-up: what would break a training, or flatter its result, told before anyone trains.

Every case is opened once, one at a time. A bad case never stops the check-up: each problem is a finding.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import median
from typing import Any, Literal

import numpy as np

from mednca.cases import Case, CaseSet
from mednca.errors import InputError
from mednca.io import read_case, read_label, spacing_known
from mednca.volume import Volume, same_affine

#: Spacings outside of this range (mm), and a ratio of the widest to the narrowest above this, are hardly
#: meant.
SPACING_RANGE = (0.01, 50.0)
ANISOTROPY = 20.0
#: So many times the median size (voxels) is an outlier; labels of healthy and sick may differ more than
#: images.
IMAGE_OUTLIER = 8.0
LABEL_OUTLIER = 20.0
#: Sets smaller than this have no median worth comparing with.
ENOUGH = 5
#: Two scans of one person: their mean intensities agree within this ratio; so likely by chance at most.
ALIKE = 1.1
CHANCE = 1e-6


@dataclass(frozen=True)
class Finding:
    """One problem: how bad, of which case ("" for the set), found by which check, and what it is."""

    severity: Literal["error", "warning"]
    case: str
    check: str
    message: str


@dataclass(frozen=True)
class Fingerprint:
    """What one case looks like.

    Attributes:
        case: Its id.
        group: The person.
        shape: (X, Y, Z).
        channels: C.
        spacing: Along each axis in mm.
        orientation: Axis codes, as "RAS".
        dtype: Number type of the voxels once read.
        low: Least finite intensity, or None if there is none; `high` and `mean` alike.
        high: Greatest.
        mean: Mean.
        label_shape: Shape of the label, or None if it cannot be read.
        label_voxels: Class number -> voxels, without the background.
        digest: SHA-256 of shape and voxels.
    """

    case: str
    group: str
    shape: tuple[int, int, int]
    channels: int
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    low: float | None
    high: float | None
    mean: float | None
    label_shape: tuple[int, int, int] | None
    label_voxels: dict[int, int]
    digest: str


@dataclass(frozen=True)
class Audit:
    """The result of a check-up.

    Attributes:
        name: Of the set.
        cases: Number of cases, readable or not.
        labelled: Number of cases with a label.
        labels: Names of the classes.
        grouping: The rule for persons, or None.
        repeated: Group -> ids, for groups of more than one case.
        fingerprints: Of every case whose image can be read, sorted by id.
        findings: Errors first, then by check and case.
    """

    name: str
    cases: int
    labelled: int
    labels: dict[int, str]
    grouping: str | None
    repeated: dict[str, tuple[str, ...]]
    fingerprints: tuple[Fingerprint, ...]
    findings: tuple[Finding, ...]


def audit(cases: CaseSet, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Case set -> its check-up; every file is read once and nothing is raised for a bad one.

    Args:
        cases: The set.
        progress: Called after each case with the number done and the number of all.
    """
    findings = _strays(cases)
    prints: list[Fingerprint] = []
    labelled = sum(case.label is not None for case in cases.cases)
    unknown: list[str] = []
    for done, case in enumerate(cases.cases, start=1):
        problems, fingerprint = _examine(case, cases.labels, expect_label=labelled > 0)
        findings += problems
        if fingerprint:
            prints.append(fingerprint)
            if not spacing_known(case.images[0]):
                unknown.append(case.id)
        if progress:
            progress(done, len(cases.cases))
    if unknown:
        text = f"the files of {len(unknown)} cases store no spacing: millimetres would be pixels"
        findings.append(Finding("warning", "", "spacing unknown", text))
    findings += [*_channels(prints), *_duplicates(prints), *_outliers(prints)]
    groups: dict[str, list[str]] = {}
    for case in cases.cases:
        groups.setdefault(case.group, []).append(case.id)
    if cases.grouping is None:
        findings += _unsaid_pairs(prints)
    return Audit(
        name=cases.name,
        cases=len(cases.cases),
        labelled=labelled,
        labels=cases.labels,
        grouping=cases.grouping,
        repeated={name: tuple(ids) for name, ids in sorted(groups.items()) if len(ids) > 1},
        fingerprints=tuple(prints),
        findings=tuple(sorted(findings, key=lambda finding: (finding.severity, finding.check, finding.case))),
    )


def exit_code(result: Audit) -> int:
    """Audit -> 1 if there is an error, 0 if all is well or there are warnings only."""
    return int(any(finding.severity == "error" for finding in result.findings))


def to_json(result: Audit) -> str:
    """Audit -> all of it as JSON text."""
    return json.dumps(asdict(result), indent=1, allow_nan=False)


def table(result: Audit, most: int = 8) -> str:
    """Audit -> plain text for a terminal: the set in a few lines, then its findings, `most` of each kind."""
    prints = result.fingerprints
    scans = sum(map(len, result.repeated.values()))
    persons = result.cases - scans + len(result.repeated)
    several = f"{persons}, {len(result.repeated)} with more than one scan"
    rows = [
        ("set", result.name),
        ("cases", f"{result.cases}, {result.labelled} with a label, {len(prints)} readable"),
        ("persons", several if result.grouping else "no rule given"),
    ]
    if prints:
        rows += [
            ("shape", " x ".join(_range(p.shape[axis] for p in prints) for axis in range(3))),
            ("spacing", " x ".join(_range(p.spacing[axis] for p in prints) for axis in range(3)) + " mm"),
            ("orientation", _counts(p.orientation for p in prints)),
            ("voxels", _counts(f"{p.dtype} x {p.channels}" if p.channels > 1 else p.dtype for p in prints)),
            ("least", _range(p.low for p in prints if p.low is not None)),
            ("greatest", _range(p.high for p in prints if p.high is not None)),
        ]
    for number in sorted({number for p in prints for number in p.label_voxels}):
        present = [p.label_voxels[number] for p in prints if number in p.label_voxels]
        name = f"{number} {result.labels.get(number, '')}".strip()
        rows.append((f"label {name}", f"{_range(present)} voxels in {len(present)} cases"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    for (severity, check), group in groupby(
        result.findings, key=lambda finding: (finding.severity, finding.check)
    ):
        found = list(group)
        lines += ["", f"{severity}: {check} ({len(found)})"]
        lines += [f"  {f.case + ': ' if f.case else ''}{f.message}" for f in found[:most]]
        lines += [f"  and {len(found) - most} more"] if len(found) > most else []
    count = Counter(finding.severity for finding in result.findings)
    return "\n".join([*lines, "", f"errors: {count['error']}, warnings: {count['warning']}"])


def _range(values: Iterable[float]) -> str:
    """Numbers -> "least-greatest", or the one there is."""
    found = sorted(values)
    if not found:
        return "-"
    return f"{found[0]:.6g}" if found[0] == found[-1] else f"{found[0]:.6g}..{found[-1]:.6g}"


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in Counter(values).most_common())


def _strays(cases: CaseSet) -> list[Finding]:
    images = {path.parent for case in cases.cases for path in case.images}
    findings = []
    for path in cases.strays:
        if path.parent in images:
            findings.append(Finding("warning", path.name, "unused image", "belongs to no case of the set"))
        else:
            findings.append(Finding("error", path.name, "label without image", "add the image or remove it"))
    return findings


def _examine(
    case: Case, labels: dict[int, str], expect_label: bool
) -> tuple[list[Finding], Fingerprint | None]:
    """Case -> its own problems, and what it looks like if its image can be read."""
    findings: list[Finding] = []

    def error(check: str, message: str) -> None:
        findings.append(Finding("error", case.id, check, message))

    def warning(check: str, message: str) -> None:
        findings.append(Finding("warning", case.id, check, message))

    image = label = None
    try:
        image = read_case(case.images, case.channels, allow_nonfinite=True)
    except (InputError, ValueError) as problem:
        error("unreadable image", str(problem))
    try:
        label = read_label(case.label, like=image) if case.label else None
    except InputError as problem:
        error("unusable label", str(problem))
    if case.label is None and expect_label:
        error("image without label", "others have one; add it or take the case out")
    voxels: dict[int, int] = {}
    if label:
        values, counts = np.unique(label.data, return_counts=True)
        voxels = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}
        unknown = sorted(voxels.keys() - labels.keys()) if labels else []
        if unknown:
            error("unknown label", f"values {unknown} are not in dataset.json, which names {sorted(labels)}")
        if not voxels:
            warning("empty label", "no foreground at all")
        elif missing := sorted(labels.keys() - voxels.keys()):
            warning("class missing", ", ".join(f"{number} {labels[number]}" for number in missing))
    if not image:
        return findings, None
    if label and label.shape != image.shape:
        error("shapes differ", f"image {image.shape}, label {label.shape}")
    elif label and not same_affine(label.affine, image.affine):
        off = np.abs(label.affine - image.affine).max()
        error("affines differ", f"image and label lie apart, an entry by {off:.4g} mm; resample the label")
    finite = image.data[np.isfinite(image.data)]
    if finite.size < image.data.size:
        error(
            "not finite", f"{image.data.size - finite.size} of {image.data.size} voxels are NaN or infinite"
        )
    constant = [c for c, channel in enumerate(image.data) if channel.min() == channel.max()]
    if constant:
        error(
            "constant image", f"channel {constant[0]} holds the one value {image.data[constant[0]].flat[0]:g}"
        )
    low, high = min(image.spacing), max(image.spacing)
    if low < SPACING_RANGE[0] or high > SPACING_RANGE[1] or high / low > ANISOTROPY:
        warning("odd spacing", f"{' x '.join(f'{s:.4g}' for s in image.spacing)} mm; is the header right?")
    return findings, _fingerprint(case, image, finite, label, voxels)


def _fingerprint(
    case: Case, image: Volume, finite: np.ndarray[Any, Any], label: Volume | None, voxels: dict[int, int]
) -> Fingerprint:
    some = finite.size > 0
    return Fingerprint(
        case=case.id,
        group=case.group,
        shape=image.shape,
        channels=image.channels,
        spacing=image.spacing,
        orientation=image.orientation,
        dtype=str(image.data.dtype),
        low=float(finite.min()) if some else None,
        high=float(finite.max()) if some else None,
        mean=float(finite.mean(dtype=np.float64)) if some else None,
        label_shape=label.shape if label else None,
        label_voxels=voxels,
        digest=hashlib.sha256(repr(image.data.shape).encode() + image.data.tobytes()).hexdigest(),
    )


def _channels(prints: list[Fingerprint]) -> list[Finding]:
    """Cases with another number of channels than most have: a model takes one number only."""
    if len({p.channels for p in prints}) < 2:
        return []
    usual = Counter(p.channels for p in prints).most_common(1)[0][0]
    text = "{} channel(s), most have {}; choose with 'mednca data join --channels'"
    return [
        Finding("error", p.case, "channels differ", text.format(p.channels, usual))
        for p in prints
        if p.channels != usual
    ]


def _duplicates(prints: list[Fingerprint]) -> list[Finding]:
    """The same voxels under two ids: an error where a split could part them."""
    first: dict[str, Fingerprint] = {}
    findings = []
    for p in prints:
        other = first.setdefault(p.digest, p)
        if other is not p:
            parted = other.group != p.group
            text = f"the same voxels as {other.case}{'; a split may part them' if parted else ''}"
            findings.append(Finding("error" if parted else "warning", p.case, "duplicate image", text))
    return findings


def _outliers(prints: list[Fingerprint]) -> list[Finding]:
    """Grids and labels that are many times larger than the median: no crop, or not this organ."""
    if len(prints) < ENOUGH:
        return []
    findings = []
    usual = median(math.prod(p.shape) for p in prints)
    labels = [sum(p.label_voxels.values()) for p in prints if p.label_voxels]
    usual_label = median(labels) if len(labels) >= ENOUGH else math.inf
    for p in prints:
        for what, shape in (("image", p.shape), ("label", p.label_shape)):
            if shape and math.prod(shape) > IMAGE_OUTLIER * usual:
                times = math.prod(shape) / usual
                text = f"the grid of the {what}, {shape}, has {times:.0f} times the voxels of the median"
                findings.append(Finding("warning", p.case, "size outlier", text))
        if (voxels := sum(p.label_voxels.values())) > LABEL_OUTLIER * usual_label:
            text = f"the foreground, {voxels} voxels, is {voxels / usual_label:.0f} times the median"
            findings.append(Finding("warning", p.case, "size outlier", text))
    return findings


def _unsaid_pairs(prints: list[Fingerprint]) -> list[Finding]:
    """Signs that the scans 2k - 1 and 2k are of one person, as in MSD Task04: their mean intensities agree.

    Compared with how often any two scans agree, and 2k with 2k + 1: a set whose neighbours are all alike,
    because it was collected site by site, is no set of pairs.
    """
    means: dict[int, float] = {}
    for p in prints:
        numbers = re.findall(r"\d+", p.case)
        if numbers and p.mean and p.mean > 0:
            means[int(numbers[-1])] = math.log(p.mean)
    limit = math.log(ALIKE)

    def agreement(parity: int) -> tuple[int, int]:
        steps = [abs(means[n + 1] - means[n]) <= limit for n in means if n % 2 == parity and n + 1 in means]
        return sum(steps), len(steps)

    agree, pairs = agreement(1)
    control, controls = agreement(0)
    if not pairs or not controls:
        return []
    values = np.array(list(means.values()))
    any_two = ((np.abs(values[:, None] - values) <= limit).sum() - len(values)) / (
        len(values) * (len(values) - 1)
    )
    rate = max(float(any_two), control / controls)
    chance = sum(math.comb(pairs, n) * rate**n * (1 - rate) ** (pairs - n) for n in range(agree, pairs + 1))
    if chance > CHANCE:
        return []
    text = (
        f"of {pairs} numbers 2k-1 and 2k, {agree} have mean intensities within 10 %, and "
        f"{control} of {controls} of 2k and 2k+1: two scans of one person? then split with --group pairs"
    )
    return [Finding("warning", "", "persons", text)]
