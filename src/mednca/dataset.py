"""A data set in memory: cases read and checked once, for training and validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mednca import coarse, field, second_look, spectrum
from mednca.cases import Case, CaseSet
from mednca.config import RunConfig
from mednca.errors import InputError
from mednca.fingerprint import Fingerprint, slice_axis
from mednca.io import read_case, read_label, spacing_known
from mednca.modelfile import shipped_model, shipped_models
from mednca.predict import largest_component
from mednca.roi import cut_out
from mednca.slices import prepare_image, prepare_label
from mednca.volume import Volume, same_affine

if TYPE_CHECKING:
    from mednca.augment import TrainingCase


#: Largest share of negative intensities where the bias field is taken out: noise about 0 may leave a few.
NEGATIVE = 0.01

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledScan:
    """A case with its image (M, X, Y, Z) and label (1, X, Y, Z) on one grid."""

    case: Case
    image: Volume
    label: Volume

    @property
    def id(self) -> str:
        """Id of the case."""
        return self.case.id


def load_scan(case: Case) -> LabelledScan:
    """Case -> its image and label.

    Raises:
        InputError: If a file is missing or unusable, or the label is on another grid.
    """
    if case.label is None:
        raise InputError(f"case {case.id}: has no label; training needs one, look with 'mednca doctor'")
    image = read_case(case.images, case.channels)
    label = read_label(case.label, like=image)
    if label.shape != image.shape:
        raise InputError(f"{case.label}: must have the shape of its image, {image.shape}, got {label.shape}")
    if not same_affine(label.affine, image.affine):
        raise InputError(f"{case.label}: must have the affine of its image {case.images[0]}; resample it")
    return LabelledScan(case, image, label)


def load_scans(
    cases: Sequence[Case], progress: Callable[[Sequence[Case]], Any] | None = None
) -> list[LabelledScan]:
    """Cases -> scans in memory; `progress` wraps the cases, as `tqdm.tqdm`. Raises InputError as
    `load_scan`."""
    scans = [load_scan(case) for case in (progress(cases) if progress else cases)]
    channels = {scan.image.channels for scan in scans}
    if len(channels) > 1:
        odd = next(scan for scan in scans if scan.image.channels != scans[0].image.channels)
        raise InputError(
            f"case {odd.id}: must have {scans[0].image.channels} channel(s) as {scans[0].id}, "
            f"got {odd.image.channels}; choose channels that all have with 'mednca data join --channels'"
        )
    return scans


def fingerprint(cases: CaseSet, scans: Sequence[LabelledScan]) -> Fingerprint:
    """Scans -> what a recipe must know of them.

    Raises:
        InputError: If there is no foreground at all, or a label value that `dataset.json` does not name.
    """
    values = sorted({int(v) for scan in scans for v in np.unique(scan.label.data)} - {0})
    if not values:
        raise InputError(f"{cases.root}: all labels are empty; there is nothing to learn")
    names = cases.labels or {value: f"label {value}" for value in values}
    for value in values:
        if value not in names or not 0 < value < 256:
            known = ", ".join(f"{v} {name}" for v, name in names.items())
            raise InputError(f"{cases.root}: label value {value} is not among the data set's ({known})")
    images = [scan.image.canonical() for scan in scans]
    spacing = np.median([volume.spacing for volume in images], axis=0)
    shapes = np.array([volume.shape for volume in images])
    data = Fingerprint(
        modalities=scans[0].image.channels,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        shape=voxels(np.median(shapes, axis=0)),
        labels=names,
        spacing_known=all(spacing_known(scan.case.images[0]) for scan in scans),
        least=voxels(shapes.min(axis=0)),
        largest=voxels(shapes.max(axis=0)),
        cases=len(scans),
        seen_by=seen_by({scan.id for scan in scans}),
    )
    found = [measured for scan in scans if (measured := foreground(scan.label)) is not None]
    chords, extents = (np.array([pair[i] for pair in found]) for i in (0, 1))
    return replace(
        data,
        slices=int(shapes[:, slice_axis(data)].sum()),
        extent=lengths(np.median(extents, axis=0)),
        extent_95=lengths(np.percentile(extents, 95, axis=0)),
        chord=lengths(np.median(chords, axis=0)),
        one_piece=float(np.mean([one_piece(scan.label) for scan in scans if scan.label.data.any()])),
        share=float(np.mean([np.mean(scan.label.data > 0) for scan in scans])),
        place=place([scan.label for scan in scans]),
    )


def place(labels: Sequence[Volume]) -> tuple[float, ...]:
    """Label volumes, one or more with foreground -> where that of any of them begins and ends along x, y, z
    in turn, as shares of the field of view, rounded outwards to a thousandth."""
    low, high = np.ones(3), np.zeros(3)
    for label in labels:
        inside = label.canonical().data[0] > 0
        for axis, length in enumerate(inside.shape):
            line = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            if len(line):
                low[axis] = min(low[axis], line[0] / length)
                high[axis] = max(high[axis], (line[-1] + 1) / length)
    ends = np.stack([np.floor(low * 1000), np.ceil(high * 1000)], axis=1) / 1000
    return tuple(ends.ravel().tolist())


def one_piece(label: Volume) -> bool:
    """Label volume with foreground -> whether its largest piece has 99 % of it."""
    inside = (label.data[0] > 0).astype(np.uint8)
    return bool(largest_component(inside).sum() >= 0.99 * inside.sum())


def seen_by(ids: set[str]) -> tuple[str, ...]:
    """Ids of scans -> hashes of the shipped models that were trained on some of them."""
    models = (shipped_model(name) for name in shipped_models())
    return tuple(model.hash for model in models if ids & set(model.card.get("training_cases") or ()))


def foreground(label: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Label volume -> mean length of a line through the foreground, and size of its bounding box, in mm along
    the RAS+ axes; None where there is no foreground."""
    canonical = label.canonical()
    inside = canonical.data[0] > 0
    if not inside.any():
        return None
    chord, extent = np.zeros(3), np.zeros(3)
    for axis in range(3):
        entries = inside & ~np.roll(inside, 1, axis)  # first voxels of a line...
        first = np.take(inside, 0, axis)  # ... also where it comes in over the edge of the scan
        starts = int(entries.sum()) - int(np.take(entries, 0, axis).sum()) + int(first.sum())
        chord[axis] = inside.sum() / starts
        line = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        extent[axis] = line[-1] - line[0] + 1
    return chord * canonical.spacing, extent * canonical.spacing


def voxels(values: NDArray[np.generic]) -> tuple[int, int, int]:
    """Three numbers -> whole ones."""
    x, y, z = values.tolist()
    return int(x), int(y), int(z)


def lengths(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Three lengths -> rounded to a thousandth."""
    x, y, z = values.tolist()
    return round(x, 3), round(y, 3), round(z, 3)


def class_numbers(label: Volume, config: RunConfig) -> Volume:
    """Label volume with the data's values -> uint8 with the model's classes, 1 to K."""
    if config.merge:
        return label.with_data((label.data > 0).astype(np.uint8))
    numbers = np.zeros(label.data.shape, np.uint8)
    for number, value in enumerate(config.values, start=1):
        numbers[label.data == value] = number
    return label.with_data(numbers)


def training_cases(scan: LabelledScan, config: RunConfig) -> list[TrainingCase]:
    """Scan -> its slices along each axis of the model, as the model sees them, with the classes of the model.

    Raises:
        InputError: If the scan has another number of channels than the configuration says.
    """
    from mednca.augment import TrainingCase  # imports torch, which a fingerprint does without

    if scan.image.channels != config.preprocess.modalities:
        raise InputError(
            f"case {scan.id}: the configuration is for {config.preprocess.modalities} channel(s), "
            f"got {scan.image.channels}"
        )
    roi = config.preprocess.roi
    image, classes = cut_out(scan.image, roi), cut_out(class_numbers(scan.label, config), roi)
    return [
        TrainingCase(
            scan.id,
            prepare_image(image, view),
            prepare_label(classes, view, config.model.classes),
            view.axis,
        )
        for view in config.preprocess.views
    ]


def with_fitting_field(config: RunConfig, scans: Sequence[LabelledScan]) -> RunConfig:
    """Configuration and all scans -> the same; where what is usual of bias fields is yet to be measured and a
    scan has many negative intensities, which would be lost, fields are left, and a warning says so.

    Raises:
        InputError: If there is such a scan and the configuration tells what is usual.
    """
    if config.preprocess.field is None:
        return config
    for scan in scans:
        part = cut_out(scan.image, config.preprocess.roi)
        share = max(float(np.mean(channel < 0)) for channel in part.data)
        if share > NEGATIVE:
            why = (
                f"case {scan.id}: has {100 * share:.2g} % negative intensities, as CT has; a bias field is a "
                "factor on positive ones"
            )
            if config.preprocess.field:
                raise InputError(f"{why}; train with preprocess.field null")
            _log.warning("bias fields are left as they are: %s", why)
            return replace(config, preprocess=replace(config.preprocess, field=None))
    return config


def measured(config: RunConfig, scans: Sequence[LabelledScan]) -> RunConfig:
    """Configuration and the training scans -> the same with what is usual of them, where it is to be
    measured: bias fields (`mednca.field`), sizes of the organ (`mednca.second_look`), lines of k-space
    (`mednca.spectrum`) and distances of slices (`mednca.coarse`). None where they do not tell."""
    preprocess, predict = config.preprocess, config.predict
    if preprocess.field == ():
        images = [cut_out(scan.image, preprocess.roi).canonical().data for scan in scans]
        channels = range(preprocess.modalities)
        found = [field.usual(image[channel].astype(np.float32) for image in images) for channel in channels]
        preprocess = replace(preprocess, field=_of_all(found))
    if predict.sizes == ():
        labels = [cut_out(class_numbers(scan.label, config), preprocess.roi).canonical() for scan in scans]
        sizes = second_look.usual((label.data[0], label.spacing) for label in labels)
        predict = replace(predict, sizes=sizes)
    if predict.spectrum == ():
        images = [scan.image.canonical().data for scan in scans]
        channels = range(preprocess.modalities)
        lines = [
            spectrum.usual(image[channel].astype(np.float32) for image in images) for channel in channels
        ]
        predict = replace(predict, spectrum=_of_all(lines))
    if predict.coarse == ():
        predict = replace(predict, coarse=coarse.usual(scan.image for scan in scans))
    return replace(config, preprocess=preprocess, predict=predict)


def _of_all(found: Sequence[field.Usual | spectrum.Usual | None]) -> tuple[float, ...] | None:
    """What is usual of each channel -> the numbers of all; None where one does not tell."""
    told = [one.numbers for one in found if one is not None]
    return tuple(number for numbers in told for number in numbers) if len(told) == len(found) else None


def unmeasured(config: RunConfig) -> RunConfig:
    """Configuration of a training -> the same with what was measured on its scans left to be measured, so
    that trainings on other scans of a data set can be compared."""
    preprocess, predict = config.preprocess, config.predict
    if preprocess.field is not None:
        preprocess = replace(preprocess, field=())
    if predict.sizes is not None:
        predict = replace(predict, sizes=())
    if predict.spectrum is not None:
        predict = replace(predict, spectrum=())
    if predict.coarse is not None:
        predict = replace(predict, coarse=())
    return replace(config, preprocess=preprocess, predict=predict)


def scan_ranges(scans: Sequence[LabelledScan]) -> dict[str, list[list[float]]]:
    """Scans -> least and largest spacing (mm) and field of view (mm) along the RAS+ axes, for the model's
    card."""
    canonical = [scan.image.canonical() for scan in scans]
    spacing = np.array([volume.spacing for volume in canonical])
    size = spacing * np.array([volume.shape for volume in canonical])
    return {
        "spacing_mm": [spacing.min(axis=0).round(4).tolist(), spacing.max(axis=0).round(4).tolist()],
        "size_mm": [size.min(axis=0).round(3).tolist(), size.max(axis=0).round(3).tolist()],
    }
