"""How good a model is: every case through `predict`, and scores per case on the case's own grid.

    cases -> predictor.predict -> score_case per case -> summarise -> Report (see `report.py`)

Masks are thresholded; the paper's soft Dice stands beside them under its own name. The metrics of a region
are

    dice, iou, nsd          in [0, 1], higher is better
    hd95_mm, assd_mm        distances of the surfaces in mm
    volume_ml, label_volume_ml, volume_error     the mask's, the label's, (mask - label) / label
    soft_dice               only where the model gives probabilities

What they give for an empty mask or label stands in `metrics.py`.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

import mednca
from mednca import metrics
from mednca.errors import InputError
from mednca.report import MERGED, RESAMPLES, Report, Scores, summarise

if TYPE_CHECKING:
    from mednca.cases import Case
    from mednca.volume import Volume

#: Metrics of the surfaces, which need the extra `train`.
SURFACE = ("nsd", "hd95_mm", "assd_mm")
_log = logging.getLogger(__name__)


class Prediction(Protocol):
    """What a model says of one volume: a mask (1, X, Y, Z) of label values, and probabilities if it has them.

    Probabilities are (K, X, Y, Z), one channel for each of the K labels, in the order of their values.
    """

    @property
    def mask(self) -> Volume: ...
    @property
    def probability(self) -> Volume | None: ...


class Predictor(Protocol):
    """Whatever can be judged: it names its label values, and predicts a volume on that volume's grid."""

    @property
    def labels(self) -> Mapping[int, str]: ...
    def predict(self, volume: Volume, /) -> Prediction: ...


def evaluate(
    predictor: Predictor,
    cases: Sequence[Case],
    *,
    tolerance_mm: float = 1.0,
    labels: Mapping[int, str] | None = None,
    progress: Callable[[Sequence[Case]], Iterable[Case]] | None = None,
    seed: int = 0,
) -> Report:
    """Predict every case, compare with its label on the case's own grid -> report.

    `labels` names the values in the label files; left out, they are the model's. A model with a single label
    is held against all of them merged if `labels` names several, or if its label is called "foreground"; the
    report says so (`provenance["labels_merged"]` holds the values). Nothing else is ever merged.

    Without the libraries of the extra `train` the metrics of the surfaces are left out, with a warning in the
    log; `provenance["left_out"]` names them.

    Args:
        predictor: What to judge.
        cases: At least one, each with a label and an id of its own.
        tolerance_mm: For NSD.
        labels: Value -> name, in the label files.
        progress: Wraps the cases to show how far it is, as `tqdm.tqdm`.
        seed: Of the bootstrap.

    Raises:
        InputError: No cases, an id twice, no label file, a label on another grid than its image, or one with
            a
            value that the model does not know; files that cannot be read.
    """
    return _judge(
        lambda case, image: predictor.predict(image),
        predictor.labels,
        cases,
        tolerance_mm=tolerance_mm,
        labels=labels,
        progress=progress,
        seed=seed,
    )


def evaluate_masks(
    masks: Mapping[str, Path],
    known: Mapping[int, str],
    cases: Sequence[Case],
    *,
    tolerance_mm: float = 1.0,
    labels: Mapping[int, str] | None = None,
    progress: Callable[[Sequence[Case]], Iterable[Case]] | None = None,
    seed: int = 0,
) -> Report:
    """Case id -> mask file, value -> name of their labels, cases -> report, as `evaluate` makes it.

    For masks that another program wrote. Each must lie on the grid of its image; soft Dice is left out.

    Raises:
        InputError: As `evaluate`, and for a case without a mask, or a mask on another grid or with another
            value.
    """
    return _judge(
        lambda case, image: _read_mask(case, image, masks, known),
        known,
        cases,
        tolerance_mm=tolerance_mm,
        labels=labels,
        progress=progress,
        seed=seed,
    )


@dataclass(frozen=True)
class _Stored:
    """A mask that was read from a file."""

    mask: Volume
    probability: None = None


def _read_mask(case: Case, image: Volume, masks: Mapping[str, Path], known: Mapping[int, str]) -> _Stored:
    """Case and its image -> its mask, on the grid of the image."""
    from mednca.io import read_label

    if case.id not in masks:
        raise InputError(f"case {case.id}: has no mask; add it, or leave the case out with --cases")
    path = masks[case.id]
    mask = read_label(path)
    if unknown := sorted(_values(mask.data) - set(known)):
        raise InputError(f"{path}: holds the values {unknown}, the labels of the masks are {dict(known)}")
    if mask.shape != image.shape:
        raise InputError(f"{path}: must have the shape of its image, {image.shape}, got {mask.shape}")
    if (apart := _apart(mask, image)) is not None:
        raise InputError(f"{path}: must lie on the grid of its image, a corner is {apart:.3g} mm off")
    return _Stored(mask)


def _judge(
    predict: Callable[[Case, Volume], Prediction],
    known: Mapping[int, str],
    cases: Sequence[Case],
    *,
    tolerance_mm: float,
    labels: Mapping[int, str] | None,
    progress: Callable[[Sequence[Case]], Iterable[Case]] | None,
    seed: int,
) -> Report:
    """How a case with its image gets its prediction, the labels of predictions, cases -> report."""
    from mednca.io import read_case, read_label  # here: reading reports and summing up needs no image formats

    known = dict(known)
    _check_labels(known)
    named = dict(known if labels is None else labels)
    merge = len(known) == 1 and (len(named) > 1 or "foreground" in known.values())
    _check_cases(cases)
    surfaces = metrics.surfaces_available()
    if not surfaces:
        told = ", ".join(SURFACE)
        _log.warning("%s are left out: they need the extra train, pip install 'mednca[train]'", told)
    scores: dict[str, Scores] = {}
    merged: set[int] = set()
    for case in progress(cases) if progress else cases:
        assert case.label is not None  # _check_cases
        image = read_case(case.images, case.channels)
        label = read_label(case.label, like=image)
        reference = label.data[0]
        values = _values(reference)
        accepted = values if merge and labels is None else set(named if merge else known)
        if unknown := sorted(values - accepted):
            raise InputError(
                f"case {case.id}: label {case.label} holds the values {unknown}, the model knows {known}; "
                "name the values in `labels` if a model of one label should be held against all of them"
            )
        if merge:
            merged |= values
            (only,) = known
            reference = np.where(reference != 0, only, 0)
        prediction = predict(case, image)
        _check_grids(case, prediction.mask, label)
        probability = None if prediction.probability is None else prediction.probability.data
        spacing = [float(step) for step in label.spacing]
        scores[case.id] = score_case(
            prediction.mask.data[0], reference, spacing, known, tolerance_mm, probability, surfaces=surfaces
        )
    groups = {case.id: str(case.group or case.id) for case in cases}
    provenance = {
        "tolerance_mm": tolerance_mm,
        "labels": {str(value): name for value, name in known.items()},
        "labels_merged": sorted(merged) if merged - set(known) else [],
        "left_out": [] if surfaces else list(SURFACE),
        "seed": seed,
        "resamples": RESAMPLES,
        "versions": {
            "mednca": mednca.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    sources = {case.id: case.source for case in cases if case.source}
    return Report(scores, summarise(scores, groups, seed=seed), provenance, groups, sources=sources)


def score_case(
    mask: npt.NDArray[Any],
    label: npt.NDArray[Any],
    spacing: Sequence[float],
    labels: Mapping[int, str],
    tolerance_mm: float,
    probability: npt.NDArray[Any] | None = None,
    *,
    surfaces: bool = True,
) -> Scores:
    """Mask and label (X, Y, Z) of label values, spacing (mm) -> the scores of each label and of "merged".

    With `probability` (K, X, Y, Z), or (X, Y, Z) for one label, soft Dice too: channel k belongs to the k-th
    smallest value in `labels`, "merged" takes the largest channel of each voxel. Without `surfaces` the
    metrics of the surfaces are left out.

    Raises:
        InputError: The extra `train` is not installed, and `surfaces` are asked for.
        ValueError: A value is not in `labels`, a name is "merged" or used twice, shapes do not fit; see
            `metrics.py`.
    """
    _check_labels(labels)
    for name, array in (("mask", mask), ("label", label)):
        if unknown := _values(array) - set(labels):
            raise ValueError(f"{name} must hold 0 and {sorted(labels)} only, not {sorted(unknown)}")
    regions = {labels[value]: (mask == value, label == value) for value in sorted(labels)}
    chances: dict[str, npt.NDArray[Any]] = {}
    if probability is not None:
        channels = probability if probability.ndim == 4 else probability[np.newaxis]
        if channels.shape != (len(labels), *mask.shape):
            expected = (len(labels), *mask.shape)
            raise ValueError(
                f"probability must have shape {expected}, one channel per label, not {channels.shape}"
            )
        chances = dict(zip(regions, channels, strict=True)) | {MERGED: channels.max(axis=0)}
    tolerance = tolerance_mm if surfaces else None
    scores = {
        region: _score(ours, theirs, spacing, tolerance, chances.get(region))
        for region, (ours, theirs) in regions.items()
    }
    if len(scores) == 1:  # the same arrays: do not compute them twice
        return scores | {MERGED: dict(next(iter(scores.values())))}
    return scores | {MERGED: _score(mask != 0, label != 0, spacing, tolerance, chances.get(MERGED))}


def _score(
    mask: npt.NDArray[np.bool_],
    label: npt.NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance_mm: float | None,
    probability: npt.NDArray[Any] | None,
) -> dict[str, float]:
    """Without a tolerance the metrics of the surfaces are left out."""
    scores = {"dice": metrics.dice_score(mask, label), "iou": metrics.iou_score(mask, label)}
    if tolerance_mm is not None:
        surface = metrics.surface_scores(mask, label, spacing, tolerance_mm)
        scores |= {"nsd": surface.nsd_score, "hd95_mm": surface.hd95_mm, "assd_mm": surface.assd_mm}
    scores |= {
        "volume_ml": metrics.volume_ml(mask, spacing),
        "label_volume_ml": metrics.volume_ml(label, spacing),
        "volume_error": metrics.volume_error(mask, label),
    }
    if probability is not None:
        scores["soft_dice"] = metrics.soft_dice_score(probability, label)
    return scores


def _values(array: npt.NDArray[Any]) -> set[int]:
    """A label map -> the values in it, without 0."""
    if array.dtype.kind not in "biu":
        raise TypeError(f"a label map must be of an integer type, not {array.dtype}")
    return {int(value) for value in np.unique(array)} - {0}


def _check_labels(labels: Mapping[int, str]) -> None:
    names = list(labels.values())
    if not labels or 0 in labels or MERGED in names or len(set(names)) < len(names):
        raise ValueError(
            f'labels must give non-zero values names of their own, none "{MERGED}", not {dict(labels)}'
        )


def _check_cases(cases: Collection[Case]) -> None:
    if not cases:
        raise InputError("there are no cases to evaluate")
    seen: set[str] = set()
    for case in cases:
        if case.label is None:
            raise InputError(f"case {case.id} has no label to compare with; give one or leave the case out")
        if case.id in seen:
            raise InputError(f"two cases have the id {case.id}; give each its own")
        seen.add(case.id)


def _check_grids(case: Case, mask: Volume, label: Volume) -> None:
    """Raise if a label does not lie on the grid of its image, to a tenth of a voxel at the grid's corners."""
    if mask.data.shape[1:] != label.data.shape[1:]:
        raise InputError(
            f"case {case.id}: label {case.label} must have the shape of its image, {mask.data.shape[1:]}, "
            f"not {label.data.shape[1:]}; resample it"
        )
    if (apart := _apart(mask, label)) is not None:
        raise InputError(
            f"case {case.id}: label {case.label} must lie on the grid of its image, but their affines put a "
            f"corner {apart:.3g} mm apart; resample it or mend its header"
        )


def _apart(first: Volume, second: Volume) -> float | None:
    """Two volumes of one shape -> the largest distance (mm) of their corners, None for less than a tenth of a
    voxel."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(first.data.shape[1:])[:, np.newaxis] - 1)
    positions = np.concatenate([corners, np.ones((1, 8))])  # (4, 8)
    apart = float(np.linalg.norm(((first.affine - second.affine) @ positions)[:3], axis=0).max())
    # Along an axis of length 1 the spacing is often meaningless.
    steps = [step for step, size in zip(second.spacing, first.data.shape[1:], strict=True) if size > 1]
    return None if apart <= 0.1 * min(steps or second.spacing) else apart
