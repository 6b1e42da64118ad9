"""A medical image with its place in the world: voxels and the affine that belongs to them.

Axes are turned and flipped here, never resampled, and every way there has an exact way back. World
coordinates are NIfTI's and nibabel's: millimetres, RAS+ (x to the patient's right, y to the front, z up).

Shapes: C channels, X x Y x Z voxels; a 2-D image has Z = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import ArrayLike, NDArray

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
#: Below this determinant of its normalised columns an affine counts as singular: its axes lie in one plane.
_SINGULAR = 1e-6


def check_affine(affine: ArrayLike) -> NDArray[np.float64]:
    """Affine (4, 4), any number type -> a float64 copy that is known to be finite and invertible.

    Raises:
        ValueError: If it has another shape, a value that is not finite, a last row other than 0 0 0 1, or
            axes that do not span the space.
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"affine must be 4 x 4, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("affine must be finite, got NaN or infinity")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"affine must have the last row 0 0 0 1, got {matrix[3].tolist()}")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not lengths.all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < _SINGULAR:
        raise ValueError(f"affine must be invertible, got axes {matrix[:3, :3].tolist()}")
    return matrix


def same_affine(first: ArrayLike, second: ArrayLike, tolerance: float = 1e-3) -> bool:
    """Two affines (4, 4) -> True where no entry differs by more than the tolerance (mm)."""
    return bool(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).max() <= tolerance)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a mask on its grid.

    Attributes:
        data: (C, X, Y, Z) in any number type, no axis empty.
        affine: float64 (4, 4), voxel index (x, y, z, 1) -> RAS+ position in mm of the voxel's centre. Kept as
            a read-only copy.

    Raises:
        ValueError: If the data are not 4-D, an axis is empty, or the affine is not finite and invertible.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        if data.ndim != 4:
            raise ValueError(f"data must have 4 axes (C, X, Y, Z), got shape {data.shape}")
        if not data.size:
            raise ValueError(f"data must have no empty axis, got shape {data.shape}")
        affine = check_affine(self.affine)
        affine.flags.writeable = False
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "affine", affine)

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return int(self.data.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis, (X, Y, Z)."""
        x, y, z = self.data.shape[1:]
        return int(x), int(y), int(z)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Where each axis points to: "RAS" means right, anterior (front) and superior (head)."""
        return "".join(aff2axcodes(self.affine))

    def with_data(self, data: NDArray[Any]) -> Volume:
        """Data (C', X, Y, Z) -> a Volume of them on this grid.

        Raises:
            ValueError: If the data do not fit the grid.
        """
        if data.ndim != 4 or data.shape[1:] != self.shape:
            raise ValueError(f"data must have the shape (C, X, Y, Z) with {self.shape}, got {data.shape}")
        return Volume(data, self.affine)

    def canonical(self) -> Volume:
        """The same voxels with axes permuted and flipped so that they run as close to RAS+ as they can."""
        return self._turned(io_orientation(self.affine))

    def oriented(self, codes: str) -> Volume:
        """Axis codes such as "LPS" -> the same voxels with axes permuted and flipped to run that way.

        An oblique axis counts as the world axis that it is closest to. The data are a contiguous copy.

        Raises:
            ValueError: If the codes do not name each of the three world axes once.
        """
        codes = codes.upper()
        if len(codes) != 3 or {min(code, _OPPOSITE.get(code, "?")) for code in codes} != {"A", "I", "L"}:
            raise ValueError(f"codes must name R or L, A or P, and S or I once each, as 'RAS'; got {codes!r}")
        return self._turned(ornt_transform(io_orientation(self.affine), axcodes2ornt(codes)))

    def oriented_like(self, other: Volume) -> Volume:
        """Another Volume of the same grid, turned otherwise -> these voxels on its axes, with its affine.

        The way back from `canonical` and `oriented`. It is read off the two affines rather than off the axis
        codes, so that it is exact for axes at 45 degrees too, whose codes are a toss-up.

        Raises:
            ValueError: If the two grids are not the same up to permuted and flipped axes.
        """
        step = np.linalg.solve(self.affine[:3, :3], other.affine[:3, :3])  # column j: its axis j in ours
        turn = np.rint(step)
        if np.allclose(step, turn, atol=1e-4) and np.array_equal(np.abs(turn).sum(axis=0), (1, 1, 1)):
            target = np.abs(turn).argmax(axis=1)
            if sorted(target.tolist()) == [0, 1, 2]:
                turned = self._turned(np.stack([target, turn.sum(axis=1)], axis=1))
                if turned.shape == other.shape and same_affine(turned.affine, other.affine):
                    return Volume(turned.data, other.affine)
        raise ValueError(
            "other must be the same grid up to permuted and flipped axes; "
            f"got {other.shape} {other.orientation} for {self.shape} {self.orientation}"
        )

    def _turned(self, turn: NDArray[np.float64]) -> Volume:
        """Orientation (3, 2) of nibabel: where each axis goes, and its sign -> the turned Volume."""
        channels = [np.ascontiguousarray(apply_orientation(channel, turn)) for channel in self.data]
        return Volume(np.stack(channels), self.affine @ inv_ornt_aff(turn, self.shape))


def along_body(data: NDArray[Any], volume: Volume) -> NDArray[Any]:
    """Array (C, X, Y, Z) in the grid of a scan -> a view of it on axes as close to RAS+ as they can."""
    turned = apply_orientation(np.moveaxis(data, 0, -1), io_orientation(volume.affine))
    view: NDArray[Any] = np.moveaxis(turned, -1, 0)
    assert np.may_share_memory(view, data)
    return view


def spacing_of_body(volume: Volume) -> list[float]:
    """Scan -> its spacing (mm) along the axes of `along_body`."""
    spacing = np.empty(3)
    spacing[io_orientation(volume.affine)[:, 0].astype(int)] = volume.spacing
    found: list[float] = spacing.tolist()
    return found
