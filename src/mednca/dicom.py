"""A scan as DICOM: a folder that holds the files of one series, in it or below -> voxels and affine.

SimpleITK decodes the files. Before that their headers are checked here, because a reader of single files
cannot see what is wrong with a stack: slices are put in order by position, whatever the files are called, and
several series, missing slices or slices that are not one even stack are refused.

Shapes: X columns, Y rows, Z slices; DICOM's world is LPS+, the affine's is RAS+ (mm).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca.errors import InputError
from mednca.formats import PIXELS, extra, itk_affine, quiet_itk, suffix

Array = NDArray[Any]
#: Steps between slices may differ by this share: positions are often stored with a decimal or two.
UNEVEN = 0.05
#: So far (mm) may slices be shifted against each other in their plane, as by a tilted gantry.
SHEAR = 0.1

_SERIES, _DESCRIPTION, _FRAMES = "0020|000e", "0008|103e", "0028|0008"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_SLOPE, _INTERCEPT = "0028|1053", "0028|1052"


@dataclass(frozen=True)
class _Header:
    """What one file says of itself: its series, and where its slice lies (LPS+, mm)."""

    path: Path
    series: str
    description: str
    position: Array
    orientation: Array
    spacing: Array
    size: tuple[int, ...]
    scaling: tuple[str, str]


def is_file(path: Path) -> bool:
    """Path -> True for a DICOM file: by its ending, or, if it has no image's, by the mark at byte 128."""
    name = path.name.lower()
    if name.startswith(".") or name == "dicomdir" or not path.is_file():
        return False
    if name.endswith((".dcm", ".ima")):
        return True
    if suffix(path):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_series(path: Path) -> bool:
    """Path -> True for a folder that holds a DICOM file, in it or below."""
    return path.is_dir() and next(_files(path), None) is not None


def read(folder: Path) -> tuple[Array, Array]:
    """Folder of one series -> voxels (1, X, Y, Z), scaled as the headers say, and affine.

    Raises:
        InputError: If the files are not one evenly spaced stack of grey slices.
    """
    itk = extra("SimpleITK", folder)
    with quiet_itk(itk):
        headers = _stack(itk, folder)
        names = [str(header.path) for header in headers]
        if len({header.scaling for header in headers}) > 1:  # the first file's would decide the number type
            image = itk.ReadImage(names, itk.sitkFloat32)
        else:
            image = itk.ReadImage(names)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: slices must be grey, got colours; convert the series to NIfTI")
    return itk.GetArrayFromImage(image)[..., None].transpose(3, 2, 1, 0), _affine(headers, itk_affine(image))


def grid(folder: Path) -> tuple[tuple[int, ...], Array]:
    """Folder of one series -> (X, Y, Z) and affine, from the headers alone. Raises InputError as `read`."""
    itk = extra("SimpleITK", folder)
    with quiet_itk(itk):
        headers = _stack(itk, folder)
        reader = itk.ImageFileReader()
        reader.SetFileName(str(headers[0].path))
        reader.ReadImageInformation()
        affine = itk_affine(reader)
    return (*headers[0].size, len(headers)), _affine(headers, affine)


def _files(folder: Path) -> Iterator[Path]:
    """Folder -> the DICOM files in it and below."""
    return (path for path in folder.rglob("*") if is_file(path))


def _stack(itk: Any, folder: Path) -> list[_Header]:
    """Folder -> the headers of its one series, in the order of the slices, checked."""
    headers = [_header(itk, path) for path in sorted(_files(folder))]
    if not headers:
        raise InputError(f"{folder}: expected DICOM files in this folder, there is none")
    series: dict[str, list[_Header]] = {}
    for header in headers:
        series.setdefault(header.series, []).append(header)
    if len(series) > 1:
        told = "; ".join(
            f"{found[0].description or 'no description'} ({len(found)} files, "
            f"{found[0].path.relative_to(folder).parent.as_posix()}, {uid})"
            for uid, found in sorted(series.items())
        )
        raise InputError(f"{folder}: expected one DICOM series, got {len(series)}: {told}; keep one of them")
    first = headers[0]
    for header in headers[1:]:
        alike = header.size == first.size and np.allclose(header.spacing, first.spacing, rtol=1e-3)
        if not alike or not np.allclose(header.orientation, first.orientation, atol=1e-3):
            raise InputError(
                f"{header.path}: must have the size, spacing and orientation of {first.path.name}, got "
                "others; take the file out (is it a localiser?)"
            )
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    headers.sort(key=lambda header: float(header.position @ normal))
    if len(headers) > 1:
        _check_steps(folder, headers, normal)
    return headers


def _check_steps(folder: Path, headers: list[_Header], normal: Array) -> None:
    """Raise InputError unless the slices, in order, are evenly spaced along their normal."""
    positions = np.array([header.position for header in headers])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    for number, step in enumerate(steps):
        pair = f"{headers[number].path.name} and {headers[number + 1].path.name}"
        if step < 1e-3:
            raise InputError(
                f"{folder}: a slice must stand in one place, {pair} stand in the same; keep one image "
                "per place (one echo, one time)"
            )
        if abs(step - usual) > UNEVEN * usual:
            raise InputError(
                f"{folder}: slices must be evenly spaced, got {step:.4g} mm between {pair} and {usual:.4g} "
                f"mm elsewhere; {'a slice is missing, copy the series again' if step > usual else 'split it'}"
            )
    shift = (positions[-1] - positions[0]) - (positions[-1] - positions[0]) @ normal * normal
    if np.linalg.norm(shift) > SHEAR * (len(headers) - 1):
        raise InputError(
            f"{folder}: slices must be stacked at right angles to their plane, these shift by "
            f"{np.linalg.norm(shift):.3g} mm from first to last (a tilted gantry); resample the series"
        )


def _header(itk: Any, path: Path) -> _Header:
    """DICOM file -> its header."""
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.SetImageIO("GDCMImageIO")
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as DICOM; is the file complete?") from error

    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip().strip("\0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int, name: str) -> Array:
        try:
            found = np.array([float(part) for part in text(tag).split("\\")])
        except ValueError:
            found = np.empty(0)
        if len(found) != count or not np.isfinite(found).all():
            raise InputError(f"{path}: needs {name}, got {text(tag) or 'none'!r}; is it a slice of a scan?")
        return found

    if int(text(_FRAMES) or 1) > 1:
        raise InputError(f"{path}: expected one slice, got {text(_FRAMES)} frames; convert it to NIfTI")
    return _Header(
        path=path,
        series=text(_SERIES),
        description=text(_DESCRIPTION),
        position=numbers(_POSITION, 3, "the position of its slice"),
        orientation=numbers(_ORIENTATION, 6, "the orientation of its slice"),
        spacing=numbers(_SPACING, 2, "the spacing of its pixels"),
        size=tuple(reader.GetSize()[:2]),
        scaling=(text(_SLOPE), text(_INTERCEPT)),
    )


def _affine(headers: list[_Header], affine: Array) -> Array:
    """Headers in order and ITK's affine -> the same, its step between slices taken from the first to the
    last."""
    if len(headers) > 1:
        affine = affine.copy()
        step = (headers[-1].position - headers[0].position) / (len(headers) - 1)
        affine[:3, 2], affine[:3, 3] = PIXELS[:3, :3] @ step, PIXELS[:3, :3] @ headers[0].position
    return affine
