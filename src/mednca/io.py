"""Files of images and masks: read to a Volume, write back on the very grid of the input.

=====================  ===============================  ===============================================
.nii .nii.gz           nibabel                          (X, Y), (X, Y, Z) or (X, Y, Z, C), NIfTI-1 or -2
.mha .mhd .nrrd .nhdr  SimpleITK (extra `formats`)      2-D or 3-D, components are channels
.png                   Pillow (extra `formats`)         columns X, rows Y, grey or RGB; Z = 1
.tif .tiff             tifffile (extra `formats`)       the same, pages are slices
a folder of DICOM      SimpleITK (extra `formats`)      one series, see `dicom`; read only
=====================  ===============================  ===============================================

PNG and TIFF hold no place in the world and get the affine diag(-1, -1, 1). How each format is read is in
`formats`. What cannot be read is an `InputError` of one line; nothing that a library raises, warns of or
prints gets through.

Shapes: C channels, X x Y x Z voxels.
"""

from __future__ import annotations

import gzip
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mednca import dicom, formats
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.formats import suffix
from mednca.volume import Volume, same_affine


def supported_suffixes() -> tuple[str, ...]:
    """The endings of file names that can be read and written."""
    return tuple(formats.READERS)


def stem(path: str | Path) -> str:
    """Path -> the file's name without its ending: "a.b.nii.gz" gives "a.b"; a folder's name is whole."""
    name = Path(path).name
    if suffix(name):
        return name[: -len(suffix(name))]
    return name if Path(path).is_dir() else Path(name).stem


def is_image(path: str | Path) -> bool:
    """Path -> True if its name ends as an image's does and is not hidden, as ._x.nii of macOS is."""
    return bool(suffix(path)) and not Path(path).name.startswith(".")


def images_of(folder: Path) -> list[Path]:
    """Folder -> the images in it, sorted: files, and folders of it that hold DICOM files.

    Raises:
        InputError: If DICOM files lie in the folder itself, where nothing says which belong together.
    """
    inside = sorted(folder.iterdir())
    for path in inside:
        if dicom.is_file(path):
            raise InputError(f"{path}: DICOM files must lie in a folder of their own for each scan; make one")
    return [
        path
        for path in inside
        if (is_image(path) and path.is_file()) or (not path.name.startswith(".") and dicom.is_series(path))
    ]


def read_volume(path: str | Path, *, allow_nonfinite: bool = False) -> Volume:
    """Image file -> Volume (C, X, Y, Z), scaled as its header says.

    Integers stay integers of at most 32 bits; everything else is float32.

    Args:
        path: File with one of the supported endings, or folder of a DICOM series.
        allow_nonfinite: Let NaN and infinity through; otherwise they are refused.

    Raises:
        InputError: If the file cannot be read, is no 2-D or 3-D image of real numbers, or has no usable
        affine.
    """
    volume = _read(Path(path), label=False)
    if not allow_nonfinite:
        _check_finite(path, volume)
    return volume


def read_label(path: str | Path, like: Volume | None = None) -> Volume:
    """Label file -> Volume (1, X, Y, Z) of whole numbers: uint8, or int16 where they do not fit.

    Args:
        path: The file.
        like: Its image. A label on the same grid whose axes are only permuted or flipped, as NRRD files drawn
            on a DICOM series often are, is turned to the image's axes, voxel for voxel. Any other grid is
            left as it is.

    Raises:
        InputError: As `read_volume`, and if there is more than one channel, or a value that is not a whole
            number of 16 bits.
    """
    volume = _read(Path(path), label=True)
    data = volume.data
    if volume.channels != 1:
        raise InputError(f"{path}: a label must have one channel, got {volume.channels}; save class numbers")
    _check_finite(path, volume)
    if data.dtype.kind == "f" and (broken := data[data != np.rint(data)]).size:
        raise InputError(f"{path}: a label must hold whole numbers, got {broken[0]:g}; save class numbers")
    low, high = data.min(), data.max()
    for dtype in (np.uint8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            label = volume.with_data(data.astype(dtype))
            return label if like is None else _turned_like(label, like)
    raise InputError(f"{path}: label values must fit 16 bits, got {low:g} to {high:g}; is it the image?")


def _turned_like(label: Volume, image: Volume) -> Volume:
    """Label and image -> the label on the image's axes, if it lies on the same grid; else as it is."""
    if label.shape == image.shape and same_affine(label.affine, image.affine):
        return label
    try:
        return label.oriented_like(image)
    except ValueError:
        return label


def read_case(
    paths: Sequence[str | Path], channels: Sequence[int] = (), *, allow_nonfinite: bool = False
) -> Volume:
    """Files of one case, each one or more channels on the same grid -> one Volume of all channels, in order.

    Args:
        paths: The files.
        channels: Numbers, from 0, of the channels to keep, in this order; all where none is named.
        allow_nonfinite: As for `read_volume`.

    Raises:
        ValueError: If there is no path.
        InputError: As `read_volume`, and if shapes differ, or affines by more than 1e-3, or there is no such
            channel.
    """
    if not paths:
        raise ValueError("paths must name at least one file, got none")
    volume = _joined(paths, [read_volume(path, allow_nonfinite=allow_nonfinite) for path in paths])
    for channel in channels:
        if not 0 <= channel < volume.channels:
            raise InputError(
                f"{paths[0]}: channel {channel} was asked for, got a scan of {volume.channels} channel(s), "
                "counted from 0; choose others"
            )
    return volume.with_data(volume.data[list(channels)]) if channels else volume


def _joined(paths: Sequence[str | Path], volumes: Sequence[Volume]) -> Volume:
    """Paths and their volumes -> one Volume of all channels."""
    first = volumes[0]
    if len(volumes) == 1:
        return first
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        if volume.shape != first.shape:
            raise InputError(
                f"{path}: must have the shape of {paths[0]}, {first.shape}, got {volume.shape}; resample it"
            )
        if not same_affine(volume.affine, first.affine):
            raise InputError(f"{path}: must have the affine of {paths[0]}; resample it to that grid")
    return first.with_data(_modest(np.concatenate([volume.data for volume in volumes])))


def spacing_known(path: str | Path) -> bool:
    """Image file -> False if its spacing is no more than a placeholder, so that millimetres mean nothing.

    That is so for PNG and TIFF, and for a NIfTI of 1 x 1 x 1 without a unit.

    Raises:
        InputError: If the header cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return True  # DICOM: a slice without its spacing is refused
    if suffix(path) not in formats.NIFTI:
        return suffix(path) in formats.ITK
    with _reading(path):
        header, _ = formats.nifti(path)
        return bool(header["xyzt_units"] & 7) or not np.array_equal(header["pixdim"][1:4], (1, 1, 1))


def write_map(path: Path, values: Volume, *, force: bool = False) -> Path:
    """Map (1, X, Y, Z) of any real numbers, path that ends in .nii or .nii.gz -> the path, float32 with the
    map's affine. The same map gives the same bytes.

    Raises:
        InputError: If the file exists and `force` is not set, or the disk does not take it.
    """
    make: Any = nibabel.Nifti1Image  # nibabel has types for a part of it only
    image = make(values.data[0].astype(np.float32), values.affine)
    image.header.set_xyzt_units("mm")
    raw = image.to_bytes()
    return atomic_write(
        path, gzip.compress(raw, 6, mtime=0) if path.name.endswith(".gz") else raw, force=force
    )


def write_mask(path: str | Path, mask: Volume, like: str | Path, *, force: bool = False) -> Path:
    """Mask uint8 (1, X, Y, Z) on the grid of the image file `like` -> the path, written in the format of its
    ending.

    A NIfTI keeps the version, both affines with their codes, and the unit of a NIfTI input. The file appears
    complete or not at all; of the two files of .mhd and .nhdr the header comes last. The same mask gives the
    same bytes.

    Args:
        path: Where to write, in a folder that exists.
        mask: The mask.
        like: The file, or the folder of a DICOM series, that the image was read from.
        force: Replace a file that is there.

    Raises:
        ValueError: If the mask is not uint8 with one channel, or not on the grid of `like`.
        InputError: If the file exists, its format cannot hold the mask, or the disk does not take it.
    """
    path, like = Path(path), Path(like)
    if mask.data.dtype != np.uint8 or mask.channels != 1:
        raise ValueError(f"mask must be uint8 with one channel, got {mask.data.dtype} with {mask.channels}")
    writer = formats.WRITERS.get(suffix(path))
    if writer is None:
        raise InputError(f"{path}: the ending must be one of {' '.join(supported_suffixes())}")
    with _reading(like):
        shape, affine = (dicom if like.is_dir() else formats).grid(like)
    if (*shape, 1)[:3] != mask.shape or not same_affine(affine, mask.affine):
        raise ValueError(f"mask must be on the grid of {like}, {shape}; got {mask.shape} {mask.orientation}")
    _check_free(path, force)
    try:
        # A folder beside the target: same disk, same name (headers name their data file), gone at the end.
        with tempfile.TemporaryDirectory(prefix=".mednca-", dir=path.parent) as folder:
            with _quiet():
                writer(Path(folder) / path.name, mask.data[0].reshape(shape), mask.affine, like)
            files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
            for file in files:
                _check_free(path.with_name(file.name), force)
            for file in files:
                file.replace(path.with_name(file.name))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)
        raise InputError(f"{path}: cannot be written: {reason}; check the folder and the disk") from error
    return path


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path}: cannot be written, it is a folder; choose another name")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; choose another name, or force it to be replaced")


def _read(path: Path, label: bool) -> Volume:
    """Path -> Volume of integers or float32; only a label may be stored as the indices of a palette."""
    with _reading(path):
        if path.is_dir():
            data, affine = dicom.read(path)
        else:
            data, affine = formats.READERS[suffix(path)](path, label)
        if data.dtype.kind not in "biuf":
            raise InputError(f"{path}: voxels must be real numbers, got {data.dtype}; convert the file")
        return Volume(_modest(data), affine)


def _modest(data: NDArray[Any]) -> NDArray[Any]:
    """Real numbers -> integers as they are up to 16 bits, else int16, uint16 or int32; or float32."""
    if data.dtype.kind == "b":
        return np.ascontiguousarray(data, np.uint8)
    if data.dtype.kind in "iu" and data.size:
        if data.dtype.itemsize <= 2:
            return np.ascontiguousarray(data, data.dtype.newbyteorder("="))
        for dtype in (np.int16, np.uint16, np.int32):
            if np.iinfo(dtype).min <= data.min() and data.max() <= np.iinfo(dtype).max:
                return np.ascontiguousarray(data, dtype)
    return np.ascontiguousarray(data, np.float32)


def _check_finite(path: str | Path, volume: Volume) -> None:
    data = volume.data
    if data.dtype.kind == "f" and (count := int(data.size - np.isfinite(data).sum())):
        raise InputError(f"{path}: voxels must be finite, got {count} that are NaN or infinite; repair them")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings and log lines of the libraries in."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "tifffile")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse what is no image file; turn whatever a library raises on a damaged one into an InputError."""
    if path.is_dir() and not dicom.is_series(path):
        raise InputError(f"{path}: expected an image file, got a folder without DICOM; name a file in it")
    if not path.exists():
        raise InputError(f"{path}: expected an image file, there is none; check the path")
    if not path.is_dir() and not suffix(path):
        raise InputError(f"{path}: the ending must be one of {' '.join(formats.READERS)}; convert the file")
    try:
        if not path.is_dir() and not path.stat().st_size:
            raise InputError(f"{path}: expected an image, got an empty file; copy it again")
        with _quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as {suffix(path) or 'DICOM'}: {_one_line(error)}; is the file complete?"
        ) from error


def _one_line(error: Exception) -> str:
    """Exception -> its text in one line; of ITK's long stories the end, which gives the reason."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return (lines[-1] if isinstance(error, RuntimeError) and lines else "; ".join(lines)) or type(
        error
    ).__name__
