"""The file formats, one reader and one writer each; `io` adds the checks and errors that they share.

A reader takes a path and whether class numbers are expected, and gives the voxels (C, X, Y, Z) as stored with
the affine (voxel index -> RAS+ mm). A writer takes the file to make, uint8 voxels in the shape to store,
their affine, and the file that they belong to. Adding a format takes these two functions and a line in each
table at the end. Readers raise `InputError` where they can say what is wrong, and else let their
library raise.
"""

from __future__ import annotations

import gzip
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mednca.errors import InputError

Array = NDArray[Any]
#: Pictures have no place in the world: column 0 lies at the patient's right, row 0 in front, a pixel counts
#: as 1 mm. The same matrix turns ITK's world (LPS+) into NIfTI's (RAS+), and back.
PIXELS = np.diag([-1.0, -1.0, 1.0, 1.0])
NIFTI = (".nii", ".nii.gz")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
TIFF = (".tif", ".tiff")

_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's code of metre, millimetre, micrometre
_PLACE: tuple[str, ...] = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)
_PLACE += ("srow_x", "srow_y", "srow_z", "xyzt_units")


def suffix(path: str | Path) -> str:
    """Path -> its supported ending in lower case, ".nii.gz" in one piece; "" for any other file."""
    name = Path(path).name.lower()
    return next((ending for ending in (".nii.gz", *READERS) if name.endswith(ending) and name != ending), "")


def extra(module: str, path: Path) -> Any:
    """Name of an optional package, and the file that needs it -> the module.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"PIL.Image": "Pillow"}.get(module, module)
        kind = suffix(path) or "DICOM"
        raise InputError(f"{path}: {kind} needs {package}: pip install 'mednca[formats]'") from error


def grid(path: Path) -> tuple[tuple[int, ...], Array]:
    """Image file -> the shape of its grid as stored, of two or three axes, and its affine."""
    if suffix(path) in NIFTI:
        header, _ = nifti(path)
        return header.get_data_shape()[:3], _nifti_affine(header)
    if suffix(path) in ITK:
        reader = extra("SimpleITK", path).ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return reader.GetSize(), itk_affine(reader)
    data, affine = READERS[suffix(path)](path, True)
    return data.shape[1:], affine


def nifti(path: Path, whole: bool = False) -> tuple[Any, bytes]:
    """NIfTI file -> its header (version 1 or 2) and its bytes, unpacked; the first 540 unless `whole`."""
    try:
        with gzip.open(path) if suffix(path) == ".nii.gz" else path.open("rb") as file:
            raw = bytes(file.read(-1 if whole else 540))  # only at the end gzip compares its checksum
    except EOFError as error:
        raise InputError(f"{path}: the file is cut off; copy it again") from error
    second = raw[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
    kind: Any = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    if not kind.may_contain_header(raw):
        raise InputError(f"{path}: expected NIfTI, got something else; is the file what its name says?")
    return kind(raw[: kind.sizeof_hdr]), raw


def _nifti_affine(header: Any) -> Array:
    """Header -> affine in mm, whatever the unit of the file."""
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _read_nifti(path: Path, label: bool) -> tuple[Array, Array]:
    header, raw = nifti(path, whole=True)
    stored = header.get_data_shape()
    shape = list(stored)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 4:
        raise InputError(f"{path}: expected axes (X, Y, Z, channels), got {stored}; split the file")
    if 0 in shape:
        raise InputError(f"{path}: no axis may be empty, got the shape {stored}; copy it again")
    if header.get_data_dtype().fields:
        raise InputError(f"{path}: voxels must be real numbers, got RGB colours; convert them to channels")
    kind: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    data = np.asarray(kind.from_bytes(raw).dataobj).reshape(shape + [1] * (4 - len(shape)), order="F")
    return np.moveaxis(data, 3, 0), _nifti_affine(header)


def _write_nifti(file: Path, data: Array, affine: Array, like: Path) -> None:
    header = nibabel.Nifti1Header()
    if suffix(like) in NIFTI:  # nothing else is taken over: a header may hold a patient's name
        source, _ = nifti(like)
        header = type(source)()
        header["pixdim"][:4] = source["pixdim"][:4]
        for field in _PLACE:
            header[field] = source[field]
    else:
        header.set_xyzt_units("mm")
        header.set_qform(affine, code=1)
        header.set_sform(affine, code=1)
    header.set_data_dtype(np.uint8)
    kind: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    raw = kind(data, None, header=header).to_bytes()
    file.write_bytes(gzip.compress(raw, 6, mtime=0) if suffix(file) == ".nii.gz" else raw)


@contextmanager
def _mute() -> Iterator[None]:
    """Send what native code prints to stderr nowhere: MetaImage prints whole stories about a damaged file."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def quiet_itk(itk: Any) -> Iterator[None]:
    """Keep what ITK, and the libraries in it, warn of and print to themselves."""
    shown = itk.ProcessObject.GetGlobalWarningDisplay()
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with _mute():
            yield
    finally:
        itk.ProcessObject.SetGlobalWarningDisplay(shown)


def itk_affine(image: Any) -> Array:
    """SimpleITK image, or reader of one, with 2 or 3 axes -> affine."""
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:axes, :axes] = np.reshape(image.GetDirection(), (axes, axes)) * np.asarray(image.GetSpacing())
    affine[:axes, 3] = image.GetOrigin()
    return PIXELS @ affine


def _read_itk(path: Path, label: bool) -> tuple[Array, Array]:
    itk = extra("SimpleITK", path)
    with quiet_itk(itk):
        image = itk.ReadImage(str(path))
    if image.GetDimension() > 3:
        raise InputError(
            f"{path}: expected 2 or 3 axes, got {image.GetDimension()}; store channels as vectors"
        )
    data = itk.GetArrayFromImage(image)  # (Z, Y, X, C), without Z or C where there is none
    if image.GetNumberOfComponentsPerPixel() == 1:
        data = data[..., None]
    if image.GetDimension() == 2:
        data = data[None]
    return data.transpose(3, 2, 1, 0), itk_affine(image)


def _write_itk(file: Path, data: Array, affine: Array, like: Path) -> None:
    itk = extra("SimpleITK", file)
    axes = data.ndim
    matrix = PIXELS @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = itk.GetImageFromArray(data.T)
    image.SetSpacing(spacing[:axes].tolist())
    image.SetDirection((matrix[:3, :3] / spacing)[:axes, :axes].ravel().tolist())
    image.SetOrigin(matrix[:axes, 3].tolist())
    itk.WriteImage(image, str(file), True)


def _read_png(path: Path, label: bool) -> tuple[Array, Array]:
    pillow = extra("PIL.Image", path)
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or not start.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"{path}: expected PNG, got something else; is the file what its name says?")
    bits, colour = start[24], start[25]  # colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha
    if bits == 16 and colour:
        raise InputError(f"{path}: 16 bit PNG must be grey (Pillow cuts colours short); write TIFF")
    if colour == 3 and not label:
        raise InputError(f"{path}: an image must not use a palette; convert it to grey or RGB")
    with pillow.open(path) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{path}: a PNG must hold one image, got an animation of {image.n_frames}")
        data = np.asarray(image)
    if colour == 0 and bits in (2, 4):
        data = data // (255 // (2**bits - 1))  # Pillow stretches them to 8 bit; class numbers must not move
    if bits == 16:
        data = data.astype(np.uint16)
    data = data if data.ndim == 3 else data[..., None]
    if colour in (4, 6):
        data = _without_alpha(path, data, 1)
    return data.transpose(2, 1, 0)[..., None], PIXELS


def _without_alpha(path: Path, data: Array, count: int) -> Array:
    """Samples (..., S), the last `count` of them alpha -> the others, if nothing is transparent."""
    alpha = data[..., -count:]
    if (alpha != np.iinfo(data.dtype).max).any():
        raise InputError(f"{path}: pixels must be opaque, some are transparent; save the file without alpha")
    return data[..., :-count]


def _write_png(file: Path, data: Array, affine: Array, like: Path) -> None:
    if data.ndim == 3 and data.shape[2] != 1:
        raise InputError(f"{file.name}: PNG holds one slice, got {data.shape[2]}; write .nii.gz or .tif")
    _check_pixels(file, affine)
    extra("PIL.Image", file).fromarray(np.ascontiguousarray(data.reshape(data.shape[:2]).T)).save(file)


def _check_pixels(file: Path, affine: Array) -> None:
    if not np.allclose(affine, PIXELS, atol=1e-3):
        raise InputError(f"{file.name}: {suffix(file)} cannot hold the input's affine; write .nii.gz")


def _read_tiff(path: Path, label: bool) -> tuple[Array, Array]:
    with extra("tifffile", path).TiffFile(path) as file:
        if len(file.series) != 1:
            raise InputError(f"{path}: pages must be alike, got {len(file.series)} kinds; split the file")
        page, series = file.pages[0], file.series[0]
        axes, data, photometric = series.axes, series.asarray(), page.photometric.name
        alpha = sum(int(kind) in (1, 2) for kind in page.extrasamples)
    if photometric not in ("MINISBLACK", "RGB") and not (photometric == "PALETTE" and label):
        raise InputError(f"{path}: expected grey with 0 as black, or RGB; got {photometric}; convert it")
    keep = [axis for axis, size in enumerate(data.shape) if size > 1 or axes[axis] in "YX"]
    axes, data = "".join(axes[axis] for axis in keep), data.reshape([data.shape[axis] for axis in keep])
    depth, samples = [a for a in axes if a in "ZQIT"], [a for a in axes if a in "SC"]
    if len(depth) > 1 or len(samples) > 1 or set(axes) - set("YXZQITSC"):
        raise InputError(f"{path}: expected rows, columns, slices and channels at most, got the axes {axes}")
    order = ["X", "Y", *depth, *samples]
    data = data.transpose([axes.index(axis) for axis in order])
    data = data if samples else data[..., None]
    data = data if depth else data[:, :, None]
    data = _without_alpha(path, data, alpha) if alpha else data
    return np.moveaxis(data, 3, 0), PIXELS


def _write_tiff(file: Path, data: Array, affine: Array, like: Path) -> None:
    _check_pixels(file, affine)
    pages = np.ascontiguousarray(data.T)
    extra("tifffile", file).imwrite(file, pages, photometric="minisblack", metadata=None, compression="zlib")


Reader = Callable[[Path, bool], tuple[Array, Array]]
Writer = Callable[[Path, Array, Array, Path], None]
READERS: dict[str, Reader] = {
    **dict.fromkeys(NIFTI, _read_nifti),
    **dict.fromkeys(ITK, _read_itk),
    ".png": _read_png,
    **dict.fromkeys(TIFF, _read_tiff),
}
WRITERS: dict[str, Writer] = {
    **dict.fromkeys(NIFTI, _write_nifti),
    **dict.fromkeys(ITK, _write_itk),
    ".png": _write_png,
    **dict.fromkeys(TIFF, _write_tiff),
}
