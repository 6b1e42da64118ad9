"""What the data are like: the numbers that recipes go by. `dataset.fingerprint` measures them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprint:
    """What a recipe must know of the data. Axes are those of RAS+.

    Attributes:
        modalities: Channels of a scan.
        spacing: Median spacing in mm; in pixels, so 1, where the files do not know it.
        shape: Median number of voxels.
        labels: Value in the label files -> name of each foreground label.
        spacing_known: Whether the spacing is more than a placeholder.
        least: Least number of voxels of any scan; None is as `shape`.
        largest: Largest number of voxels of any scan; None is as `shape`.
        cases: Number of scans.
        slices: Number of slices along the axis that is cut.
        extent: Median size in mm of the foreground's bounding box; None where it was not measured.
        extent_95: 95th percentile of the same.
        chord: Mean length in mm of a line along each axis through the foreground; median over the scans.
        share: Share of the voxels that are foreground.
        one_piece: Share of the scans with foreground where the largest piece has 99 % of it.
        place: Least and largest place of any foreground voxel, along x, y and z in turn, as shares of the
            field of view; None where it was not measured.
        seen_by: Hashes of the shipped models that were trained on some of these scans, by their ids.
    """

    modalities: int
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    labels: dict[int, str]
    spacing_known: bool = True
    least: tuple[int, int, int] | None = None
    largest: tuple[int, int, int] | None = None
    cases: int = 1
    slices: int = 1
    extent: tuple[float, float, float] | None = None
    extent_95: tuple[float, float, float] | None = None
    chord: tuple[float, float, float] | None = None
    share: float | None = None
    one_piece: float | None = None
    place: tuple[float, ...] | None = None
    seen_by: tuple[str, ...] = ()


def slice_axis(data: Fingerprint) -> int:
    """The axis to cut along: the coarsest one where it is clearly coarser, else axial; the flat one in 2D."""
    for axis in range(3):
        if data.shape[axis] == 1:
            return axis
    largest = max(range(3), key=lambda a: data.spacing[a])
    others = [s for a, s in enumerate(data.spacing) if a != largest]
    return largest if data.spacing[largest] > 1.5 * max(others) else 2


def slice_axes(data: Fingerprint) -> tuple[int, ...]:
    """The axes to cut along, the main one first: all three of a nearly isotropic volume, with known spacings
    within a factor of 1.5 and at least 16 voxels along each axis; else one."""
    main = slice_axis(data)
    if not data.spacing_known or min(data.shape) < 16 or max(data.spacing) > 1.5 * min(data.spacing):
        return (main,)
    return (main, *(axis for axis in range(3) if axis != main))
