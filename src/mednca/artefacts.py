"""Copies of training scans with artefacts, so that a model has seen what robustness is judged by.

A copy is a function of (id of the case, number of the copy, seed): one or two artefacts of `mednca.perturb`
of one draw, each as strong as anything from nothing to its worst severity. Half of the copies show another
field of view, with their label, but not where the model looks at a part of it alone: the organ would leave
that part. Other geometry is varied slice by slice, in `mednca.augment`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mednca.dataset import LabelledScan
from mednca.perturb import PERTURBATIONS, Perturbation, find, perturb, stream

#: What a scanner or a patient does to an image. Dark for bright is another modality, not an artefact.
ARTEFACTS = tuple(p for p in PERTURBATIONS if p.kind != "geometry" and p.name != "inversion")
#: Those that cost a model most, and are drawn twice as often as the others.
OFTEN = ("ghosting", "anisotropy")
SHARES = np.array([2.0 if p.name in OFTEN else 1.0 for p in ARTEFACTS])
SHARES /= SHARES.sum()
#: Chance that a copy has a second one.
TWO = 0.3
#: Chance that a copy shows another field of view, and how. What is measured on a whole scan, its percentiles
#: and its shading, changes with it.
VIEWS, ANOTHER_VIEW = find(["crop", "translation", "translation_edge"]), 0.5


def copies(scan: LabelledScan, count: int, seed: int, *, other_views: bool = True) -> Iterator[LabelledScan]:
    """Scan, number of copies and a seed -> the copies, with artefacts.

    Without `other_views`, all show the field of view that the scan has; their artefacts are the same.

    Raises:
        InputError: If TorchIO, which makes them, is not installed.
    """
    for number in range(count):
        random = stream(scan.id, f"copy {number}", seed)
        image, label = scan.image, scan.label
        case = f"{scan.id} {number}"
        if random.random() < ANOTHER_VIEW:
            view = VIEWS[int(random.integers(len(VIEWS)))]
            strength = severity(view, random)
            if other_views:
                image, label, _ = perturb(view, image, label, strength, case=case, seed=seed)
        several = 1 + int(random.random() < TWO)
        for which in random.choice(len(ARTEFACTS), several, replace=False, p=SHARES):
            chosen = ARTEFACTS[which]
            image = perturb(chosen, image, label, severity(chosen, random), case=case, seed=seed).image
        yield replace(scan, image=image, label=label)


def severity(artefact: Perturbation, random: np.random.Generator) -> float:
    """Artefact and a generator -> a severity, evenly between its neutral and its worst one on each side."""
    ends = {min(artefact.severities), max(artefact.severities)} - {artefact.neutral}
    worst = [end for end in sorted(ends) if end == max(ends) or end < artefact.neutral]
    end = worst[int(random.integers(len(worst)))]
    share = random.random()
    if artefact.logarithmic:
        return float(artefact.neutral * (end / artefact.neutral) ** share)
    return float(artefact.neutral + (end - artefact.neutral) * share)
