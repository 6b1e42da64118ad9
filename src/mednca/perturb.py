"""A case and a severity -> the case as another scanner, another field of view or a restless patient would
have given it; the label moves where the image moves.

    perturb("ghosting", image, label, 1.5, case="hippocampus_001", seed=0) -> Perturbed

Every perturbation is a function of (id of the case, its name, seed, severity) and of nothing else: what is
drawn (an axis, a direction, a pattern) comes from a counter-based generator named by the first three, so it
does not depend on order, and the severities of one case are one pattern that grows. MRI artefacts are those
of TorchIO, with severities in its parameters; geometry is resampled here, the image linearly, the label by
its nearest voxel. What leaves the field of view is gone from the label too; `Perturbed.kept` tells how much
stayed.

"In plane" are the two axes of a slice: the scan is cut across its coarsest axis where that is clearly
coarser, else axially; a flat image is its own slice, and nothing ever happens across it.

Shapes: image (C, X, Y, Z) of any real numbers, label (1, X, Y, Z) of whole numbers, on one grid.

Source: Pérez-García et al., TorchIO, 2021, doi:10.1016/j.cmpb.2021.106236; Med-NCA, sections 5.2 and 5.3.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mednca.errors import InputError
from mednca.slices import resize_matrix
from mednca.volume import Volume

Array = NDArray[Any]
Kind = Literal["geometry", "artefact", "contrast"]

#: Of the definitions below; a report made with others is not gone on with.
VERSION = 1


class Perturbed(NamedTuple):
    """A perturbed case: image, label on the same grid, and the share of its foreground that is in view."""

    image: Volume
    label: Volume
    kept: float


#: Image, label, severity and a generator -> what becomes of them.
Apply = Callable[[Volume, Volume, float, np.random.Generator], Perturbed]
#: Axis-aligned image (C, through, rows, columns), severity and a generator -> a transform of TorchIO.
Make = Callable[[Array, float, np.random.Generator], Any]


@dataclass(frozen=True)
class Perturbation:
    """One way in which a scan can differ, and how strongly.

    Attributes:
        name: As on the command line and in reports.
        kind: "geometry" moves or resamples, "artefact" is a fault of the scan, "contrast" maps intensities.
        parameter: What the severity is, with TorchIO's name for it.
        severities: From low to high, without `neutral`.
        quick: Those of quick mode.
        neutral: The severity at which nothing happens.
        apply: What it does.
    """

    name: str
    kind: Kind
    parameter: str
    severities: tuple[float, ...]
    quick: tuple[float, ...]
    neutral: float
    apply: Apply

    @property
    def by_torchio(self) -> bool:
        """Whether TorchIO does it."""
        return self.kind != "geometry" and self.name != "inversion"

    @property
    def logarithmic(self) -> bool:
        """Whether severities are factors, so that 0.5 is as far from 1 as 2 is."""
        return self.neutral == 1

    def position(self, severity: float) -> float:
        """Severity -> its place on the axis along which areas are measured."""
        return math.log2(severity) if self.logarithmic else severity


def perturb(
    perturbation: str | Perturbation,
    image: Volume,
    label: Volume,
    severity: float,
    *,
    case: str,
    seed: int = 0,
) -> Perturbed:
    """Perturbation, image, label, severity, id of the case and a seed -> the perturbed case.

    The neutral severity gives back the very arrays that came in.

    Raises:
        InputError: If there is no such perturbation, or TorchIO is needed and not installed.
        ValueError: If label and image are not on one grid, or the severity is not a number that the
            perturbation takes.
    """
    chosen = find([perturbation])[0] if isinstance(perturbation, str) else perturbation
    if label.shape != image.shape or label.channels != 1:
        raise ValueError(f"label must be (1, {image.shape}) as the image, got {label.data.shape}")
    if severity == chosen.neutral:
        return Perturbed(image, label, 1.0)
    low, high = min(*chosen.severities, chosen.neutral), max(*chosen.severities, chosen.neutral)
    if not low <= severity <= high:
        raise ValueError(f"severity of {chosen.name} must be from {low:g} to {high:g}, got {severity:g}")
    return chosen.apply(image, label, severity, stream(case, chosen.name, seed))


def stream(case: str, name: str, seed: int) -> np.random.Generator:
    """Id of a case, name of a perturbation and a seed -> the generator that is theirs alone."""
    digest = hashlib.sha256(json.dumps([case, name, seed]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def find(names: list[str] | None = None) -> tuple[Perturbation, ...]:
    """Names -> the perturbations, in their order here; none gives all.

    Raises:
        InputError: If there is none of a name.
    """
    known = {p.name: p for p in PERTURBATIONS}
    for name in names or ():
        if name not in known:
            raise InputError(f"there is no perturbation {name!r}; known are {', '.join(known)}")
    return tuple(p for p in PERTURBATIONS if not names or p.name in names)


# ---- Where is up ----


def planes(volume: Volume) -> tuple[int, int, int]:
    """Scan -> its own axes across which slices are cut, and that run along rows and columns of a slice.

    Of an axial slice rows run from left to right and columns from back to front.
    """
    world = io_orientation(volume.affine)[:, 0].astype(int).tolist()
    shape, spacing = volume.shape, volume.spacing
    through = world.index(2)
    coarsest = max(range(3), key=lambda axis: spacing[axis])
    if spacing[coarsest] > 1.5 * sorted(spacing)[1]:
        through = coarsest
    for axis in range(3):
        if shape[axis] == 1:
            through = axis
    rows, columns = sorted((axis for axis in range(3) if axis != through), key=lambda axis: world[axis])
    return through, rows, columns


# ---- Geometry ----


def _resample(image: Volume, label: Volume, factors: dict[int, float]) -> Perturbed:
    """Image, label, and axis -> factor of its number of voxels. The spacing that the header tells stays, so
    that a model sees the organ larger or smaller; the centre stays where it was."""
    data, classes = image.data.astype(np.float32), label.data
    for axis, factor in factors.items():
        old = image.shape[axis]
        new = max(2, round(old * factor)) if old > 1 else 1
        weights = resize_matrix(old, new, "linear")
        data = np.moveaxis(np.tensordot(data, weights, axes=(axis + 1, 1)), -1, axis + 1)
        nearest = ((np.arange(new) + 0.5) * old / new).astype(int)
        classes = np.take(classes, nearest, axis=axis + 1)
    return _on_new_grid(image, np.ascontiguousarray(data), np.ascontiguousarray(classes), 1.0)


def _on_new_grid(old: Volume, data: Array, classes: Array, kept: float) -> Perturbed:
    """Old grid and new arrays -> the case on a grid of the same axes, spacing and centre."""
    affine = old.affine.copy()
    change = (np.array(old.shape) - np.array(data.shape[1:])) / 2
    affine[:3, 3] += affine[:3, :3] @ change
    return Perturbed(Volume(data, affine), Volume(classes, affine), kept)


def _scale(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    _, rows, columns = planes(image)
    return _resample(image, label, {rows: severity, columns: severity})


def _scale_all(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    return _resample(image, label, dict.fromkeys(range(3), severity))


def _shape(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    return _resample(image, label, {planes(image)[2]: severity})


def _crop(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    """The middle of each slice, without a share of both in-plane axes."""
    window = [slice(None)] * 4
    for axis in planes(image)[1:]:
        size = image.shape[axis]
        left = (size - max(2, round(size * (1 - severity)))) // 2
        window[axis + 1] = slice(left, size - left)
    data, classes = image.data[tuple(window)], label.data[tuple(window)]
    return _on_new_grid(image, data.copy(), classes.copy(), _share(classes, label.data))


def _pad(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    """Black around each slice, a share of both in-plane axes at each end."""
    widths = [(0, 0)] * 4
    for axis in planes(image)[1:]:
        widths[axis + 1] = (round(severity * image.shape[axis]),) * 2
    data = np.stack([np.pad(channel, widths[1:], constant_values=channel.min()) for channel in image.data])
    return _on_new_grid(image, data, np.pad(label.data, widths), 1.0)


def _shift(edge: bool) -> Apply:
    """Move the content by a share of the image along one drawn in-plane direction of four; fill with the
    repeated edge, or with black."""

    def apply(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
        axis = planes(image)[1 + int(random.integers(2))]
        forward = bool(random.integers(2))
        size = image.shape[axis]
        source = np.arange(size) + (-1 if forward else 1) * round(severity * size)
        there = (source >= 0) & (source < size)
        data = np.take(image.data, source, axis=axis + 1, mode="clip")
        classes = np.take(label.data, source, axis=axis + 1, mode="clip")
        empty: list[Any] = [slice(None)] * 4
        empty[axis + 1] = np.flatnonzero(~there)
        classes[tuple(empty)] = 0
        if not edge:
            data[tuple(empty)] = image.data.min(axis=(1, 2, 3), keepdims=True)
        return Perturbed(image.with_data(data), label.with_data(classes), _share(classes, label.data))

    return apply


def _rotate(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    """Turn each slice about the middle of the scan, one way or the other; the edge is repeated outside."""
    from scipy.ndimage import affine_transform

    _, rows, columns = planes(image)
    angle = math.radians(severity) * (1 if random.integers(2) else -1)
    spacing = np.diag(image.spacing)
    turn = np.eye(3)
    turn[np.ix_((rows, columns), (rows, columns))] = [
        [math.cos(angle), -math.sin(angle)],
        [math.sin(angle), math.cos(angle)],
    ]
    back = np.linalg.inv(spacing) @ turn.T @ spacing  # new voxel -> old voxel, about the middle
    middle = (np.array(image.shape) - 1) / 2
    offset = middle - back @ middle
    data = [
        affine_transform(channel.astype(np.float32), back, offset, order=1, mode="nearest")
        for channel in image.data
    ]
    classes = affine_transform(label.data[0], back, offset, order=0, mode="constant", cval=0)
    inside = np.argwhere(label.data[0] != 0)
    gone = (inside - middle) @ np.linalg.inv(back).T + middle
    stayed = ((gone > -0.5) & (gone < np.array(image.shape) - 0.5)).all(axis=1)
    kept = float(stayed.mean()) if len(inside) else 1.0
    return Perturbed(image.with_data(np.stack(data)), label.with_data(classes[None]), kept)


def _share(left: Array, before: Array) -> float:
    """Label after and before -> share of the foreground voxels that are left; 1 where there were none."""
    count = int(np.count_nonzero(before))
    return int(np.count_nonzero(left)) / count if count else 1.0


# ---- Artefacts, by TorchIO ----


def require_torchio() -> Any:
    """TorchIO.

    Raises:
        InputError: If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("torchio")  # not by its name: mypy would read all of it
    except ImportError as error:
        raise InputError(
            f"artefacts need TorchIO, which cannot be loaded ({error}): pip install 'mednca[robustness]'"
        ) from error


def _artefact(make: Make, *, unit: bool = False) -> Apply:
    """How a transform is made -> how it is applied; the label stays. With `unit`, to intensities on which the
    0.5th percentile of a channel is 0 and the 99.5th is 1.

    TorchIO is given the scan as (through, rows, columns), its middle at the origin and its axes along those
    of the world: it turns about the origin, and what moves in a flat image must stay in its plane.
    """

    def apply(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
        tio = require_torchio()
        import torch

        axes = planes(image)
        data = image.data.astype(np.float32).transpose(0, *(axis + 1 for axis in axes))
        low, range_ = _range(data) if unit else (np.float32(0), np.float32(1))
        data = np.ascontiguousarray((data - low) / range_)
        affine = np.diag([*(image.spacing[axis] for axis in axes), 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(data.shape[1:]) - 1) / 2)
        subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(data), affine=affine))
        with torch.random.fork_rng(devices=[]):  # leaves torch's own generator where it was
            found = make(data, severity, random)(subject).image.data.numpy()
        back = np.argsort(axes)
        found = (found * range_ + low).transpose(0, *(axis + 1 for axis in back))
        return Perturbed(image.with_data(np.ascontiguousarray(found, np.float32)), label, 1.0)

    return apply


def _range(data: Array) -> tuple[Array, Array]:
    """Image (C, ...) -> its 0.5th percentile and how far above it the 99.5th is, per channel
    (C, 1, 1, 1)."""
    low, high = np.percentile(data, (0.5, 99.5), axis=(1, 2, 3), keepdims=True)
    return low.astype(np.float32), np.where(high > low, high - low, 1).astype(np.float32)


def _ghosting(data: Array, severity: float, random: np.random.Generator) -> Any:
    axis, ghosts = int(random.integers(1, 3)), int(random.integers(4, 11))
    return require_torchio().Ghosting(ghosts, axis, severity, None)


def _anisotropy(data: Array, severity: float, random: np.random.Generator) -> Any:
    """Its random choice has one outcome. The scan is as long as whole voxels of the coarse grid meanwhile:
    TorchIO leaves black what lies beyond the last of them."""
    tio = require_torchio()
    axis = int(random.integers(1 if data.shape[1] == 1 else 0, 3))
    size = data.shape[axis + 1]
    more = math.ceil(math.ceil(size / severity) * severity) - size
    ends = [0] * 6
    ends[2 * axis : 2 * axis + 2] = more // 2, more - more // 2
    factor = max(1.0, severity * (1 - 1e-6))  # or rounding may take a whole voxel away
    coarse = tio.RandomAnisotropy((axis,), (factor, factor))
    return tio.Compose([tio.Pad(tuple(ends), padding_mode="edge"), coarse, tio.Crop(tuple(ends))])


def _bias_field(data: Array, severity: float, random: np.random.Generator) -> Any:
    coefficients = severity * random.uniform(-1, 1, 20)  # of a polynomial of order 3 in three variables
    return require_torchio().BiasField(coefficients.tolist(), 3)


def _noise(data: Array, severity: float, random: np.random.Generator) -> Any:
    return require_torchio().Noise(0.0, severity, int(random.integers(1 << 31)))


def _motion(data: Array, severity: float, random: np.random.Generator) -> Any:
    """Two movements, each drawn as TorchIO's RandomMotion does; k-space is filled along the columns."""
    degrees, millimetres = severity * random.uniform(-1, 1, (2, 2, 3))
    if data.shape[1] == 1:
        degrees[:, 1:], millimetres[:, 0] = 0, 0
    times = (np.array([1.0, 2.0]) + random.uniform(-0.3, 0.3, 2)) / 3
    return require_torchio().Motion(degrees, millimetres, times, "linear")


def _spike(data: Array, severity: float, random: np.random.Generator) -> Any:
    return require_torchio().Spike(random.uniform(0, 1, (1, 3)), severity)


def _blur(data: Array, severity: float, random: np.random.Generator) -> Any:
    across = 0.0 if data.shape[1] == 1 else severity
    return require_torchio().Blur((across, severity, severity))


def _gamma(data: Array, severity: float, random: np.random.Generator) -> Any:
    return require_torchio().Gamma(math.exp(severity))


def _invert(image: Volume, label: Volume, severity: float, random: np.random.Generator) -> Perturbed:
    """Dark for bright: each channel mirrored at the middle of its range."""
    data = image.data.astype(np.float32)
    low, range_ = _range(data)
    return Perturbed(image.with_data(2 * low + range_ - data), label, 1.0)


# ---- The list ----

#: Name, kind, neutral severity, what it does, what the severity is. In the order of a report.
_TABLE: tuple[tuple[str, Kind, float, Apply, str], ...] = (
    ("scale", "geometry", 1.0, _scale, "factor of the size in plane"),
    ("scale_all", "geometry", 1.0, _scale_all, "factor of the size along all axes"),
    ("shape", "geometry", 1.0, _shape, "factor of the height of a slice alone"),
    ("crop", "geometry", 0.0, _crop, "share of height and width cut off"),
    ("pad", "geometry", 0.0, _pad, "black added at each side, share of the size"),
    ("translation", "geometry", 0.0, _shift(edge=False), "shift, share of the image; black fill"),
    ("translation_edge", "geometry", 0.0, _shift(edge=True), "shift, share of the image; edge repeated"),
    ("rotation", "geometry", 0.0, _rotate, "degrees in plane"),
    ("ghosting", "artefact", 0.0, _artefact(_ghosting), "intensity (4 to 10 ghosts)"),
    ("anisotropy", "artefact", 1.0, _artefact(_anisotropy), "downsampling of one axis"),
    ("bias_field", "artefact", 0.0, _artefact(_bias_field), "coefficients (order 3)"),
    ("noise", "artefact", 0.0, _artefact(_noise, unit=True), "std, share of the intensity range"),
    ("motion", "artefact", 0.0, _artefact(_motion), "degrees, and translation in mm"),
    ("spike", "artefact", 0.0, _artefact(_spike), "intensity (1 spike)"),
    ("blur", "artefact", 0.0, _artefact(_blur), "std in mm"),
    ("gamma", "contrast", 0.0, _artefact(_gamma, unit=True), "log_gamma"),
    ("inversion", "contrast", 0.0, _invert, "1 is dark for bright"),
)
_FACTORS = (0.5, 0.65, 0.8, 1.25, 1.5, 2.0)
_SHIFTS = (0.1, 0.2, 0.3, 0.4, 0.5)
#: Severities, and those of quick mode. They contain the points that the paper's text tells of its Figs. 5 and
#: 6: scale 0.8 and 1.5, anisotropy 4. For the others it gives no numbers; they reach from what is seen in
#: practice to beyond it.
_SEVERITIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "scale": (_FACTORS, (0.5, 0.8, 1.5, 2.0)),
    "scale_all": (_FACTORS, (0.8, 1.5)),
    "shape": (_FACTORS, (0.5, 0.8, 1.25, 2.0)),
    "crop": ((0.1, 0.2, 0.3, 0.4), (0.2, 0.4)),
    "pad": ((0.125, 0.25, 0.5), (0.25,)),
    "translation": (_SHIFTS, (0.1, 0.3, 0.5)),
    "translation_edge": (_SHIFTS, (0.3,)),
    "rotation": ((15.0, 30.0, 45.0, 90.0), (15.0, 45.0)),
    "ghosting": ((0.5, 1.0, 1.5, 2.0, 2.5), (1.0, 2.5)),
    "anisotropy": ((2.0, 3.0, 4.0, 6.0, 8.0), (4.0, 8.0)),
    "bias_field": ((0.25, 0.5, 0.75, 1.0, 1.5), (0.5, 1.5)),
    "noise": ((0.05, 0.1, 0.2, 0.3), (0.1, 0.2)),
    "motion": ((2.0, 5.0, 10.0, 15.0), (5.0, 10.0)),
    "spike": ((0.25, 0.5, 1.0, 2.0), (0.5, 2.0)),
    "blur": ((0.5, 1.0, 2.0, 3.0), (1.0, 2.0)),
    "gamma": ((-0.9, -0.6, -0.3, 0.3, 0.6, 0.9), (-0.6, 0.6)),
    "inversion": ((1.0,), (1.0,)),
}
PERTURBATIONS: tuple[Perturbation, ...] = tuple(
    Perturbation(name, kind, parameter, *_SEVERITIES[name], neutral, apply)
    for name, kind, neutral, apply, parameter in _TABLE
)
