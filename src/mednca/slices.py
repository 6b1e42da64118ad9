"""Volumes to slices and the exact way back: what stands between a scan in its own grid and the cells of a
model.

Everything here is NumPy. A volume is first brought to its closest RAS+ axes (a permutation and flips, no
resampling), cut along one axis, normalised, and, if the model wants it, resized in plane; probabilities go
the same way back, so a mask has the grid, the shape and the orientation of the scan it belongs to. A model of
several axes looks at a scan once along each (`PreprocessConfig.views`).

Shapes: M modalities (channels of the scan), S slices, H x W pixels of a slice after resizing, K classes;
I = M (2 context + 1) image channels that a model sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mednca.field import FLAT, Usual, of_channels, shaded_as_usual
from mednca.roi import check_roi

if TYPE_CHECKING:
    from mednca.volume import Volume

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PreprocessConfig:
    """How a scan becomes slices; part of every model file.

    Attributes:
        modalities: M, channels of a scan.
        axes: Axes of the RAS+ volume that slices are cut along: 0 sagittal, 1 coronal, 2 axial. The first is
            the main one. Of several, the model is trained on the slices along each, and its probabilities
            along each are averaged.
        context: Neighbouring slices on each side that come along as further image channels (edge slices
            repeat).
        normalise: "volume" clips each channel of a volume to its 0.5 and 99.5 percentile and scales to [0,
            1]; "slice" does so per slice, after resizing, as the authors' code does.
        spacing: In-plane spacing in mm that slices are resampled to (native recipe); None keeps the scan's
            own. With several axes both numbers are the same, so that the slices along each have one scale.
        size: Height and width that every slice is stretched to, whatever its shape (the paper's recipe);
            replaces `spacing`. With several axes it is that of the slices along each.
        roi: The part of the scan that is looked at (`mednca.roi`); None looks at all of it. What is
            said here of a scan is then said of that part.
        field: What is usual of the bias field of each channel, of which only that is left (`mednca.field`):
            the numbers of its `Usual`, one after the other. () is measured on the training scans, None leaves
            every field. With "volume" only.
        margin: Pixels by which every slice, as the model sees it, goes on at least at each side, its edge
            repeated.

    Raises:
        ValueError: Where a value is out of its range.
    """

    modalities: int = 1
    axes: tuple[int, ...] = (2,)
    context: int = 0
    normalise: Literal["volume", "slice"] = "volume"
    spacing: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    roi: tuple[float, ...] | None = dataclasses.field(default=None, metadata={"later": True})
    field: tuple[float, ...] | None = dataclasses.field(default=None, metadata={"later": True})
    margin: int = dataclasses.field(default=0, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.modalities < 1 or self.context < 0:
            raise ValueError(
                f"modalities must be >= 1 and context >= 0, got {self.modalities} and {self.context}"
            )
        if not self.axes or len(set(self.axes)) < len(self.axes) or not set(self.axes) <= {0, 1, 2}:
            raise ValueError(f"axes must be one or several of 0, 1 and 2, each once, got {self.axes}")
        if self.normalise not in ("volume", "slice"):
            raise ValueError(f"normalise must be 'volume' or 'slice', got {self.normalise!r}")
        if not 0 <= self.margin <= 1024:
            raise ValueError(f"margin must be from 0 to 1024 pixels, got {self.margin}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 2):
            raise ValueError(f"size must be two numbers >= 2, got {self.size}")
        spacing = (1.0, 1.0) if self.spacing is None else self.spacing
        if len(spacing) != 2 or not all(0 < step < np.inf for step in spacing):
            raise ValueError(f"spacing must be two numbers > 0 (mm), got {self.spacing}")
        if self.roi is not None:
            check_roi(self.roi)
        if self.field is not None and self.normalise != "volume":
            raise ValueError(f"normalise must be 'volume' where field is on, got {self.normalise!r}")
        if self.field:
            of_channels(self.field, self.modalities)
        if len(self.axes) > 1 and self.size is None and spacing[0] != spacing[1]:
            raise ValueError(f"spacing must be one number, twice, with several axes, got {self.spacing}")

    @staticmethod
    def upgraded(values: dict[str, Any]) -> dict[str, Any]:
        """Settings as a file holds them -> as they are now: one `axis` becomes `axes`; `field` was once told
        by true, which made every scan flat, or false."""
        result = dict(values)
        if "axis" in values and "axes" not in values:
            result["axes"] = [result.pop("axis")]
        if isinstance(values.get("field"), bool):
            flat = FLAT.numbers * int(values.get("modalities", 1))
            result["field"] = flat if values["field"] else None
        return result

    @property
    def shadings(self) -> list[Usual]:
        """What is usual of the field of each channel, nothing where every field is left.

        Raises:
            ValueError: If it is yet to be measured.
        """
        if self.field == ():
            raise ValueError("what is usual of the bias field is measured in training; give its numbers")
        return of_channels(self.field, self.modalities) if self.field else []

    @property
    def views(self) -> tuple[PreprocessConfig, ...]:
        """For each axis, the main one first, how a scan becomes slices along it alone."""
        return tuple(replace(self, axes=(axis,)) for axis in self.axes)

    @property
    def axis(self) -> int:
        """The axis of a view.

        Raises:
            ValueError: If there are several.
        """
        if len(self.axes) > 1:
            raise ValueError(f"slices are cut along one axis, got {self.axes}; take one of the views")
        return self.axes[0]

    @property
    def image_channels(self) -> int:
        """I, the image channels that a model of this preprocessing has."""
        return self.modalities * (2 * self.context + 1)


def plane_axes(axis: int) -> tuple[int, int]:
    """Slice axis -> the two in-plane axes of the RAS+ volume, rows first."""
    rows, columns = (a for a in range(3) if a != axis)
    return rows, columns


def cut(data: NDArray[np.generic], axis: int) -> NDArray[np.generic]:
    """RAS+ array (C, X, Y, Z) -> slices (S, C, H, W)."""
    return np.ascontiguousarray(np.moveaxis(data, axis + 1, 0))


def join(slices: NDArray[np.generic], axis: int) -> NDArray[np.generic]:
    """Slices (S, C, H, W) -> RAS+ array (C, X, Y, Z); the inverse of `cut`."""
    return np.ascontiguousarray(np.moveaxis(slices, 0, axis + 1))


def plane_size(
    shape: tuple[int, ...], spacing: tuple[float, ...], config: PreprocessConfig
) -> tuple[int, int]:
    """RAS+ shape and spacing (mm) of a scan -> height and width that its slices are resized to."""
    rows, columns = plane_axes(config.axis)
    if config.size is not None:
        return config.size
    if config.spacing is None:
        return shape[rows], shape[columns]
    height = max(2, round(shape[rows] * spacing[rows] / config.spacing[0]))
    width = max(2, round(shape[columns] * spacing[columns] / config.spacing[1]))
    return height, width


def prepare_image(volume: Volume, config: PreprocessConfig) -> Array:
    """Scan in its own grid and a view -> normalised slices float32 (S, M, H, W), without context or padding.

    Raises:
        ValueError: If the scan has another number of channels than `config.modalities`, or there are several
            axes.
    """
    if volume.channels != config.modalities:
        raise ValueError(f"scan must have {config.modalities} channel(s), got {volume.channels}")
    canonical = volume.canonical()
    data = canonical.data.astype(np.float32)
    size = plane_size(canonical.shape, canonical.spacing, config)
    if shadings := config.shadings:
        data = np.stack([shaded_as_usual(*of) for of in zip(data, shadings, strict=True)])
    if config.normalise == "volume":
        data = np.stack([rescale(channel) for channel in data])
    slices = resize(cut(data, config.axis).astype(np.float32), size, "cubic" if config.size else "linear")
    if config.normalise == "slice":
        slices = np.stack([[rescale(channel) for channel in image] for image in slices])
    return slices


def prepare_label(volume: Volume, config: PreprocessConfig, classes: int) -> NDArray[np.uint8]:
    """Label volume (1, X, Y, Z) with values 0 to `classes` -> slices uint8 (S, H, W) on the grid of the
    image's."""
    canonical = volume.canonical()
    size = plane_size(canonical.shape, canonical.spacing, config)
    slices = cut(canonical.data, config.axis)[:, 0]
    if slices.shape[1:] == size:
        return slices.astype(np.uint8)
    if config.size is not None:
        rows, columns = nearest(slices.shape[1], size[0]), nearest(slices.shape[2], size[1])
        return slices[:, rows][:, :, columns].astype(np.uint8)
    shares = np.stack([(slices == k) for k in range(classes + 1)], axis=1).astype(np.float32)
    label: NDArray[np.uint8] = resize(shares, size, "linear").argmax(axis=1).astype(np.uint8)
    return label


def restore(probability: Array, like: Volume, config: PreprocessConfig) -> Array:
    """Probabilities of slices (S, K, H, W) -> of voxels float32 (K, X, Y, Z) in the grid of the scan
    `like`."""
    canonical = like.canonical()
    rows, columns = plane_axes(config.axis)
    slices = resize(probability, (canonical.shape[rows], canonical.shape[columns]), "linear")
    joined = canonical.with_data(join(slices, config.axis).astype(np.float32))
    return joined.oriented_like(like).data.astype(np.float32)


def with_context(slices: Array, indices: NDArray[np.int64], context: int) -> Array:
    """Slices (S, M, H, W) and the numbers of B of them -> image (B, I, H, W) with the neighbours as
    channels."""
    around = np.clip(indices[:, None] + np.arange(-context, context + 1), 0, len(slices) - 1)
    picked: Array = slices[around].reshape(len(indices), -1, *slices.shape[2:])
    return picked


def smoothed(probability: Array, axis: int, times: int) -> Array:
    """Probabilities (K, X, Y, Z) -> their averages over neighbours along an axis of the volume, with weights
    1, 2 and 1, so many times; at the ends a voxel is its own neighbour."""
    lines = np.moveaxis(probability, 1 + axis, -1)
    for _ in range(times):
        edged = np.concatenate([lines[..., :1], lines, lines[..., -1:]], axis=-1)
        lines = np.float32(0.25) * (edged[..., :-2] + edged[..., 2:]) + np.float32(0.5) * lines
    return np.moveaxis(lines, -1, 1 + axis)


def mirrored(image: Array, config: PreprocessConfig, axes: Sequence[int]) -> Array:
    """Image (B, I, H, W) of slices along one axis of the RAS+ volume -> what it would be if the scan was
    mirrored along some axes: in the plane, and, across it, with the neighbours in reverse order."""
    if config.axis in axes:
        neighbours = image.reshape(len(image), -1, config.modalities, *image.shape[2:])
        image = neighbours[:, ::-1].reshape(image.shape)
    return mirrored_plane(image, config, axes)


def mirrored_plane(slices: Array, config: PreprocessConfig, axes: Sequence[int]) -> Array:
    """Slices (..., H, W) along one axis of the RAS+ volume -> the same, mirrored along those of some axes
    that lie in their plane."""
    flips = tuple(place - 2 for place, axis in enumerate(plane_axes(config.axis)) if axis in axes)
    return np.ascontiguousarray(np.flip(slices, flips)) if flips else slices


def padded_size(size: tuple[int, int], multiple: int, smallest: int, margin: int = 0) -> tuple[int, int]:
    """Height and width of an image -> the least ones that are multiples of a number, no smaller than another,
    and have room for a margin at each side."""
    height, width = (max(smallest, -(-(length + 2 * margin) // multiple) * multiple) for length in size)
    return height, width


def pad_to(image: Array, multiple: int, smallest: int, margin: int = 0) -> tuple[Array, tuple[slice, slice]]:
    """Image (..., H, W) -> padded at its edges by repetition to a size that a model takes, by `margin` or
    more at each side, and where the image is."""
    pads, inside = [], []
    targets = padded_size((image.shape[-2], image.shape[-1]), multiple, smallest, margin)
    for size, target in zip(image.shape[-2:], targets, strict=True):
        before = (target - size) // 2
        pads.append((before, target - size - before))
        inside.append(slice(before, before + size))
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + pads, mode="edge")
    return padded, (inside[0], inside[1])


def rescale(image: NDArray[np.floating]) -> Array:
    """Any array -> clipped to its 0.5 and 99.5 percentile and scaled to [0, 1]; a constant one becomes
    zeros."""
    low, high = np.percentile(image, (0.5, 99.5))
    if not high > low:
        low, high = float(image.min()), float(image.max())
    if not high > low:
        return np.zeros(image.shape, np.float32)
    scaled: Array = ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)
    return scaled


def resize(slices: Array, size: tuple[int, int], kernel: Literal["linear", "cubic"]) -> Array:
    """Slices (S, C, H, W) -> float32 (S, C, *size): the same field of view, pixel areas aligned, edges
    repeated.

    "linear" widens its kernel where it shrinks, so that no pixel is passed over; "cubic" is Keys' kernel with
    a = -0.75 without widening, the customary one of image libraries.
    """
    for axis, length in ((2, size[0]), (3, size[1])):
        if slices.shape[axis] != length:
            weights = resize_matrix(slices.shape[axis], length, kernel)
            slices = np.moveaxis(np.tensordot(slices, weights, axes=(axis, 1)), -1, axis)
    return np.ascontiguousarray(slices, dtype=np.float32)


@lru_cache(maxsize=256)
def resize_matrix(old: int, new: int, kernel: Literal["linear", "cubic"]) -> Array:
    """Lengths -> float32 (new, old): row i holds the weights of the old pixels in new pixel i; rows sum to
    1."""
    ratio = old / new
    centres = (np.arange(new) + 0.5) * ratio - 0.5
    stretch = max(1.0, ratio) if kernel == "linear" else 1.0
    reach = int(np.ceil(stretch if kernel == "linear" else 2.0))
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)[None, :]
    distance = np.abs(taps - centres[:, None]) / stretch
    if kernel == "linear":
        weights = np.clip(1.0 - distance, 0.0, None)
    else:
        a = -0.75
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    exact = np.zeros((new, old))
    np.add.at(exact, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), weights)
    matrix = exact.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def nearest(old: int, new: int) -> NDArray[np.int64]:
    """Lengths -> int64 (new,): the old pixel that each new pixel's first corner falls into, which is what the
    authors' code gets from OpenCV (INTER_NEAREST)."""
    return np.minimum(np.arange(new) * old // new, old - 1)
