"""nifti.c against nibabel: the same values, in the same place, and masks of the same bytes."""

from __future__ import annotations

import itertools
import struct
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mednca.io import read_volume, write_mask
from tests.runtime.builds import built

Array = NDArray[Any]
OBLIQUE = np.array([[0.9, 0.1, 0.3, -12.5], [-0.2, 1.8, 0.1, 33.0], [-0.25, -0.1, 2.9, 7.25], [0, 0, 0, 1]])
TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
MAKERS = {1: (nibabel.Nifti1Header, nibabel.Nifti1Image), 2: (nibabel.Nifti2Header, nibabel.Nifti2Image)}


def write(
    path: Path,
    data: Array,
    affine: Array | None = OBLIQUE,
    *,
    version: int = 1,
    order: str = "<",
    fields: dict[str, Any] | None = None,
) -> Path:
    """Path, data as stored and header fields to set -> a NIfTI file; no affine leaves both codes at 0."""
    kind, image = MAKERS[version]
    header = kind(endianness=order)
    header.set_data_dtype(data.dtype.newbyteorder(order))
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = (1.5, 2.0, 2.5)
    nifti = image(data, affine, header=header)
    raw = bytearray(nifti.to_bytes())
    if fields:  # as they are: nibabel would put them in order
        stored = kind(bytes(raw[: kind.sizeof_hdr]), order, check=False)
        for name, value in fields.items():
            stored[name] = value
        raw[: kind.sizeof_hdr] = stored.binaryblock
    path.write_bytes(bytes(raw))
    return path


def read_in_c(path: Path, folder: Path, name: str = "mask.nii") -> tuple[Array, Array, bytes]:
    """NIfTI file -> values float32 (C, X, Y, Z) in RAS+, spacing, and a mask that counts voxels."""
    mask = folder / name
    done = subprocess.run(
        [built("host", "show_scan"), path, mask], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    line, _, raw = done.stdout.partition(b"\n")
    numbers = line.split()
    return (
        np.frombuffer(raw, "<f4").reshape([int(n) for n in numbers[:4]]),
        np.array([float(n) for n in numbers[4:]]),
        mask.read_bytes(),
    )


def check(path: Path, folder: Path) -> None:
    """What C makes of a file must be what Python makes of it: values, spacing, and the bytes of a mask."""
    values, spacing, mask = read_in_c(path, folder)
    volume = read_volume(path)
    canonical = volume.canonical()
    np.testing.assert_array_equal(values, canonical.data.astype(np.float32))
    np.testing.assert_allclose(spacing, canonical.spacing, rtol=1e-15)  # a quaternion may cost the last bit
    count = np.arange(np.prod(volume.shape)) % 251
    counted = volume.with_data(count.reshape(volume.shape, order="F")[None].astype(np.uint8))
    assert mask == write_mask(folder / "expected.nii", counted, path, force=True).read_bytes()


def numbers(dtype: str, *shape: int) -> Array:
    """Type and shape -> numbers over a part of the type's range, most of them whole."""
    random = np.random.default_rng(1)
    if dtype[0] == "f":
        return random.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(max(limits.min, -(2**30)), min(limits.max, 2**30), shape).astype(dtype)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_number_type_is_read_in_both_byte_orders(
    tmp_path: Path, dtype: str, order: str, version: int
) -> None:
    data = numbers(dtype, 3, 4, 5)
    check(write(tmp_path / "a.nii", data, version=version, order=order), tmp_path)
    fields = {"scl_slope": 0.37, "scl_inter": -11.25}
    check(write(tmp_path / "b.nii", data, version=version, order=order, fields=fields), tmp_path)


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**62])
def test_64_bit_numbers_that_do_not_fit_32_bits_keep_their_value(tmp_path: Path, value: int) -> None:
    data = numbers("i8", 3, 4, 5)
    data[1, 2, 3] = value
    check(write(tmp_path / "a.nii", data), tmp_path)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0, 5), (np.nan, 5), (np.inf, 5), (1, 0), (1, 3), (-2, 0), (1e-30, 1e30)]
)
def test_values_are_scaled_as_the_header_says(tmp_path: Path, slope: float, intercept: float) -> None:
    fields = {"scl_slope": slope, "scl_inter": intercept}
    check(write(tmp_path / "a.nii", numbers("i2", 3, 4, 5), fields=fields), tmp_path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "shape", [(3, 4), (3, 4, 1), (3, 4, 5), (3, 4, 5, 1), (3, 4, 5, 2), (3, 4, 5, 2, 1, 1)]
)
def test_images_have_two_axes_to_four(tmp_path: Path, shape: tuple[int, ...], version: int) -> None:
    check(write(tmp_path / "a.nii", numbers("i2", *shape), version=version), tmp_path)
    check(write(tmp_path / "b.nii", numbers("i2", *shape), None, version=version), tmp_path)


@pytest.mark.parametrize("turn", TURNS)
def test_axes_are_turned_to_ras_from_all_48_orientations(tmp_path: Path, turn: tuple[Any, Any]) -> None:
    order, signs = turn
    affine = np.eye(4)
    affine[:3] = OBLIQUE[:3]
    affine[:3, :3] = OBLIQUE[:3, :3][:, order] * signs
    check(write(tmp_path / "a.nii", numbers("i2", 3, 4, 5), affine), tmp_path)


def test_axes_are_turned_as_nibabel_turns_them_under_any_rotation_and_shear(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    data = numbers("i2", 3, 4, 5)
    for number in range(75):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(random_state=number).as_matrix() * random.uniform(0.1, 9, 3)
        if number % 2:
            affine[:3, :3] += random.normal(0, 0.3, (3, 3))
        if number >= 60:  # axes at any angle to each other
            affine[:3, :3] = random.normal(0, 1, (3, 3)) * random.uniform(0.1, 9, 3)
        affine[:3, 3] = random.normal(0, 50, 3)
        check(write(tmp_path / "a.nii", data, affine), tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_the_sform_counts_then_the_qform_then_the_voxel_sizes(tmp_path: Path, version: int) -> None:
    data = numbers("i2", 3, 4, 5)
    for sform, qform in itertools.product((0, 1, 4, 77), (0, 1, 2, -3)):
        fields = {
            "sform_code": sform,
            "qform_code": qform,
            "quatern_b": 0.5,
            "quatern_c": -0.5,
            "quatern_d": 0.5,
            "qoffset_y": 17.5,
        }
        check(write(tmp_path / "a.nii", data, version=version, fields=fields), tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_quaternions_of_any_rotation_are_understood(tmp_path: Path, version: int) -> None:
    data = numbers("i2", 3, 4, 5)
    turns = [Rotation.random(random_state=number) for number in range(15)]
    turns += [Rotation.from_rotvec(np.pi * np.eye(3)[axis]) for axis in range(3)]  # half a turn: w = 0
    for turn, side in itertools.product(turns, (1, -1)):
        b, c, d, w = turn.as_quat()
        b, c, d = (-b, -c, -d) if w < 0 else (b, c, d)
        fields = {"quatern_b": b, "quatern_c": c, "quatern_d": d, "qform_code": 1, "sform_code": 0}
        fields |= {"pixdim": [side, 1.5, 2, 2.5, 1, 1, 1, 1]}
        check(write(tmp_path / "a.nii", data, version=version, fields=fields), tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [0, 1.5, 2, 2.5, 1, 1, 1, 1]},
        {"pixdim": [1, 0, -2, 2.5, 1, 1, 1, 1]},
        {"bitpix": 77},
        {"sizeof_hdr": 0},
        {"xyzt_units": 1},
        {"xyzt_units": 3 | 16},
        {"xyzt_units": 0},
        {"descrip": b"SMITH, JOHN", "aux_file": b"x", "cal_max": 3, "intent_name": b"y", "toffset": 2},
    ],
)
def test_odd_headers_are_mended_as_nibabel_mends_them(tmp_path: Path, fields: dict[str, Any]) -> None:
    data = numbers("i2", 3, 4, 5)
    for codes in ({"sform_code": 0}, {"sform_code": 0, "qform_code": 0}, {}):
        check(write(tmp_path / "a.nii", data, fields=fields | codes), tmp_path)


def test_nothing_of_a_scan_but_its_place_gets_into_a_mask(tmp_path: Path) -> None:
    fields = {"descrip": b"SMITH, JOHN", "aux_file": b"JOHN", "intent_name": b"JOHN", "db_name": b"JOHN"}
    path = write(tmp_path / "a.nii", numbers("i2", 3, 4, 5), fields=fields)
    assert b"JOHN" not in read_in_c(path, tmp_path)[2]
    assert b"JOHN" in path.read_bytes()


def test_what_stands_between_header_and_voxels_is_passed_over(tmp_path: Path) -> None:
    data = numbers("f4", 3, 4, 5)
    raw = write(tmp_path / "a.nii", data, fields={"vox_offset": 400}).read_bytes()
    extension = struct.pack("<4B2i", 1, 0, 0, 0, 48, 6) + b"a comment".ljust(40, b"\0")
    (tmp_path / "a.nii").write_bytes(raw[:348] + extension + raw[352:])
    check(tmp_path / "a.nii", tmp_path)


def test_packed_files_are_read_and_written_as_python_has_them(tmp_path: Path) -> None:
    import gzip

    raw = write(tmp_path / "a.nii", numbers("f4", 30, 40, 50)).read_bytes()
    plain, _, mask = read_in_c(tmp_path / "a.nii", tmp_path)
    half = len(raw) // 2
    whole, members = gzip.compress(raw), gzip.compress(raw[:half]) + gzip.compress(raw[half:], 1)
    for packed in (whole, members, members + b"\0" * 1000):
        (tmp_path / "b.nii.gz").write_bytes(packed)
        values, _, written = read_in_c(tmp_path / "b.nii.gz", tmp_path, "mask.nii.gz")
        np.testing.assert_array_equal(values, plain)
        assert gzip.decompress(written) == mask
        assert written[4:8] == b"\0\0\0\0"  # no time: the same mask is the same file
