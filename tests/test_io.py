"""Image files: every format round-trips on its grid, and every wrong file is one line of InputError."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mednca import io
from mednca.errors import InputError
from mednca.io import read_case, read_label, read_volume, write_mask
from mednca.volume import Volume

itk = pytest.importorskip("SimpleITK", reason="needs mednca[formats]")
pillow = pytest.importorskip("PIL.Image", reason="needs mednca[formats]")
tifffile = pytest.importorskip("tifffile", reason="needs mednca[formats]")

Array = NDArray[Any]
SHAPE = (4, 5, 6)
PIXELS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.array([[0.9, 0.1, 0.3, -12.5], [-0.2, 1.8, 0.1, 33.0], [-0.25, -0.1, 2.9, 7.25], [0, 0, 0, 1]])


def numbers(*shape: int, dtype: Any = np.int16) -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save_nifti(path: Path, data: Array, affine: Array | None = None, kind: Any = nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    nibabel.save(kind(data, np.eye(4) if affine is None else affine), path)
    return path


def mask_on(volume: Volume) -> Volume:
    """Volume -> a mask on its grid in which no axis or direction looks like another."""
    flat = np.random.default_rng(3).integers(0, 3, volume.shape)
    return volume.with_data(flat[None].astype(np.uint8))


def refused(action: Callable[[], object], *words: str) -> None:
    """The action must raise an InputError of one line that has all the words."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Any:
    """No library may print anything, not even from native code."""
    yield
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# Reading


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
def test_nifti_gives_stored_values_and_affine(tmp_path: Path, kind: Any, ending: str) -> None:
    volume = read_volume(save_nifti(tmp_path / f"x{ending}", numbers(*SHAPE), OBLIQUE, kind))
    np.testing.assert_array_equal(volume.data[0], numbers(*SHAPE))
    assert volume.data.dtype == np.int16
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(*SHAPE), np.eye(4))
    raw = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]))
    header["scl_slope"], header["scl_inter"] = 0.5, -10
    (tmp_path / "x.nii").write_bytes(header.binaryblock + bytes(raw[348:]))
    volume = read_volume(tmp_path / "x.nii")
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data[0], numbers(*SHAPE) * 0.5 - 10)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("u1", "u1"),
        ("i2", "i2"),
        ("u2", "u2"),
        ("i4", "i2"),
        ("i8", "i2"),
        ("f4", "f4"),
        ("f8", "f4"),
        (">i2", "i2"),
    ],
)
def test_number_types_are_kept_modest(tmp_path: Path, stored: str, read: str) -> None:
    image = nibabel.Nifti1Image(numbers(*SHAPE).astype(stored), np.eye(4), dtype=np.dtype(stored))
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert volume.data.dtype == np.dtype(read)
    np.testing.assert_array_equal(volume.data[0], numbers(*SHAPE))


def test_the_last_axis_of_a_4d_nifti_is_channels(tmp_path: Path) -> None:
    data = numbers(*SHAPE, 3)
    volume = read_volume(save_nifti(tmp_path / "x.nii.gz", data))
    assert (volume.channels, volume.shape) == (3, SHAPE)
    np.testing.assert_array_equal(volume.data[2], data[..., 2])
    one = read_volume(save_nifti(tmp_path / "y.nii", data[..., :1, None]))
    assert (one.channels, one.shape) == (1, SHAPE)


def test_a_2d_nifti_has_one_slice(tmp_path: Path) -> None:
    assert read_volume(save_nifti(tmp_path / "x.nii", numbers(4, 5))).shape == (4, 5, 1)


def test_nifti_in_micrometres_is_read_in_mm(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(*SHAPE), np.diag([500.0, 500, 1000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert volume.spacing == pytest.approx((0.5, 0.5, 1.0))
    write_mask(tmp_path / "m.nii", mask_on(volume), tmp_path / "x.nii")
    assert read_label(tmp_path / "m.nii").spacing == pytest.approx((0.5, 0.5, 1.0))


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_itk_files_are_turned_from_lps_to_ras(tmp_path: Path, ending: str) -> None:
    image = itk.GetImageFromArray(numbers(6, 5, 4))  # (Z, Y, X)
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetSpacing((1.0, 2.0, 3.0))
    itk.WriteImage(image, str(tmp_path / f"x{ending}"))
    volume = read_volume(tmp_path / f"x{ending}")
    assert volume.orientation == "LPS"
    np.testing.assert_allclose(volume.affine[:3, 3], (-10, -20, 30), atol=1e-9)
    assert volume.spacing == pytest.approx((1, 2, 3))
    np.testing.assert_array_equal(volume.data[0], numbers(6, 5, 4).T)


def test_itk_vectors_are_channels_and_2d_has_one_slice(tmp_path: Path) -> None:
    itk.WriteImage(itk.GetImageFromArray(numbers(6, 5, 4, 2), isVector=True), str(tmp_path / "x.nrrd"))
    volume = read_volume(tmp_path / "x.nrrd")
    assert (volume.channels, volume.shape) == (2, SHAPE)
    np.testing.assert_array_equal(volume.data[1], numbers(6, 5, 4, 2)[..., 1].T)
    itk.WriteImage(itk.GetImageFromArray(numbers(5, 4)), str(tmp_path / "y.mha"))
    assert read_volume(tmp_path / "y.mha").shape == (4, 5, 1)


def test_rows_of_a_png_are_y_and_columns_x(tmp_path: Path) -> None:
    picture = numbers(3, 7, dtype=np.uint8)
    pillow.fromarray(picture).save(tmp_path / "x.png")
    volume = read_volume(tmp_path / "x.png")
    assert (volume.shape, volume.orientation) == ((7, 3, 1), "LPS")
    np.testing.assert_array_equal(volume.data[0, :, :, 0], picture.T)


def test_png_colours_are_channels_and_opaque_alpha_goes(tmp_path: Path) -> None:
    picture = numbers(3, 7, 3, dtype=np.uint8)
    opaque = np.concatenate([picture, np.full((3, 7, 1), 255, np.uint8)], axis=2)
    for name, saved in (("rgb", picture), ("rgba", opaque)):
        pillow.fromarray(saved).save(tmp_path / f"{name}.png")
        volume = read_volume(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(volume.data[..., 0], picture.transpose(2, 1, 0))
    opaque[0, 0, 3] = 0
    pillow.fromarray(opaque).save(tmp_path / "t.png")
    refused(lambda: read_volume(tmp_path / "t.png"), "t.png", "transparent")


def test_png_of_16_bit_grey_keeps_its_values(tmp_path: Path) -> None:
    picture = (numbers(3, 7) * 3000).astype(np.uint16)
    pillow.fromarray(picture).save(tmp_path / "x.png")
    volume = read_volume(tmp_path / "x.png")
    assert volume.data.dtype == np.uint16
    np.testing.assert_array_equal(volume.data[0, ..., 0], picture.T)


def small_png(path: Path, bits: int, colour: int, rows: list[bytes], width: int) -> Path:
    """Write a PNG of any bit depth by hand: Pillow writes few of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(("bits", "row", "values"), [(1, b"\x50", [0, 1, 0, 1]), (2, b"\x1b", [0, 1, 2, 3])])
def test_class_numbers_in_a_png_of_few_bits_do_not_move(
    tmp_path: Path, bits: int, row: bytes, values: list[int]
) -> None:
    label = read_label(small_png(tmp_path / "x.png", bits, 0, [row], 4))
    assert label.data.ravel().tolist() == values


def test_4_bit_class_numbers_do_not_move(tmp_path: Path) -> None:
    assert read_label(small_png(tmp_path / "x.png", 4, 0, [b"\x12\xf0"], 4)).data.ravel().tolist() == [
        1,
        2,
        15,
        0,
    ]


def test_png_of_16_bit_colour_is_refused_not_cut(tmp_path: Path) -> None:
    refused(lambda: read_volume(small_png(tmp_path / "x.png", 16, 2, [b"\1\2" * 3], 1)), "x.png", "16 bit")


def test_a_palette_is_fine_for_a_label_only(tmp_path: Path) -> None:
    image = pillow.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "x.png")
    assert read_label(tmp_path / "x.png").data.ravel().tolist() == [0, 1, 2]
    refused(lambda: read_volume(tmp_path / "x.png"), "palette")


def test_tiff_pages_are_slices_and_samples_channels(tmp_path: Path) -> None:
    pages, colours = numbers(3, 5, 4, dtype=np.float32), numbers(5, 4, 3, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tiff", colours, photometric="rgb")
    np.testing.assert_array_equal(read_volume(tmp_path / "p.tif").data[0], pages.T)
    np.testing.assert_array_equal(read_volume(tmp_path / "c.tiff").data[..., 0], colours.transpose(2, 1, 0))


def test_tiff_that_would_be_misread_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "w.tif", numbers(5, 4, dtype=np.uint8), photometric="miniswhite")
    refused(lambda: read_volume(tmp_path / "w.tif"), "MINISWHITE")
    with tifffile.TiffWriter(tmp_path / "k.tif") as writer:
        writer.write(numbers(5, 4), photometric="minisblack")
        writer.write(numbers(6, 4), photometric="minisblack")
    refused(lambda: read_volume(tmp_path / "k.tif"), "alike")


def test_labels_are_whole_numbers_however_stored(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "x.nii.gz", numbers(*SHAPE, dtype=np.float64))
    assert read_label(path).data.dtype == np.uint8
    np.testing.assert_array_equal(read_label(path).data[0], numbers(*SHAPE))
    assert read_label(save_nifti(tmp_path / "n.nii", -numbers(*SHAPE))).data.dtype == np.int16
    refused(lambda: read_label(save_nifti(tmp_path / "h.nii", np.full(SHAPE, 0.5))), "h.nii", "whole", "0.5")
    refused(lambda: read_label(save_nifti(tmp_path / "b.nii", np.full(SHAPE, 1e6))), "b.nii", "16 bits")
    refused(lambda: read_label(save_nifti(tmp_path / "c.nii", numbers(*SHAPE, 2))), "c.nii", "one channel")


def test_files_of_a_case_are_stacked_in_order(tmp_path: Path) -> None:
    first = save_nifti(tmp_path / "x_0000.nii", numbers(*SHAPE), OBLIQUE)
    second = save_nifti(tmp_path / "x_0001.nii", numbers(*SHAPE, dtype=np.float32) / 2, OBLIQUE)
    volume = read_case([first, second])
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, np.stack([numbers(*SHAPE), numbers(*SHAPE) / 2]))
    other, moved = save_nifti(tmp_path / "s.nii", numbers(4, 5, 7), OBLIQUE), OBLIQUE.copy()
    refused(lambda: read_case([first, other]), "s.nii", "(4, 5, 7)")
    moved[0, 3] += 2e-3
    refused(
        lambda: read_case([first, save_nifti(tmp_path / "m.nii", numbers(*SHAPE), moved)]), "m.nii", "affine"
    )
    moved[0, 3] -= 1.5e-3
    assert read_case([first, save_nifti(tmp_path / "n.nii", numbers(*SHAPE), moved)]).channels == 2


# What cannot be read


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    refused(lambda: read_volume(tmp_path / "x.nii"), "x.nii", "there is none")
    refused(lambda: read_volume(tmp_path), str(tmp_path), "folder")
    (tmp_path / "x.docx").write_text("x")
    refused(lambda: read_volume(tmp_path / "x.docx"), "x.docx", ".nii.gz")


@pytest.mark.parametrize("ending", io.supported_suffixes())
@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"x" * 2000, gzip.compress(b"hello", mtime=0)],  # one time for both test workers
    ids=["empty", "short", "long", "gzip"],
)
def test_files_of_something_else_are_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"bad{ending}"
    path.write_bytes(content)
    refused(lambda: read_volume(path), str(path))
    refused(lambda: read_label(path), str(path))


@pytest.mark.parametrize("ending", io.supported_suffixes())
@pytest.mark.parametrize("part", [0.15, 0.5, 0.9])
def test_files_cut_off_are_refused(tmp_path: Path, ending: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 1), dtype=np.uint8)
    path = tmp_path / f"cut{ending}"
    like = tmp_path / "like.png"
    pillow.fromarray(noise[..., 0].T).save(like)
    write_mask(path, Volume(noise[None], PIXELS), like)
    body = max(tmp_path.glob("cut*"), key=lambda file: file.stat().st_size)
    body.write_bytes(body.read_bytes()[: int(part * body.stat().st_size)])
    refused(lambda: read_volume(path), str(path))


def test_a_flipped_bit_in_a_gzip_is_found(tmp_path: Path) -> None:
    raw = nibabel.Nifti1Image(numbers(*SHAPE), np.eye(4)).to_bytes()
    packed = bytearray(gzip.compress(raw, 0))  # stored: only the checksum can tell
    packed[-20] ^= 1
    (tmp_path / "x.nii.gz").write_bytes(packed)
    refused(lambda: read_volume(tmp_path / "x.nii.gz"), "x.nii.gz", "CRC")


def test_voxels_that_are_no_real_finite_numbers_are_refused(tmp_path: Path) -> None:
    data = numbers(*SHAPE, dtype=np.float32)
    data[1, 2, 3], data[0, 0, 0] = np.nan, np.inf
    path = save_nifti(tmp_path / "nan.nii", data)
    refused(lambda: read_volume(path), "nan.nii", "2")
    refused(lambda: read_label(path), "nan.nii", "finite")
    assert np.isnan(read_volume(path, allow_nonfinite=True).data[0, 1, 2, 3])
    refused(lambda: read_volume(save_nifti(tmp_path / "c.nii", data.astype(np.complex64))), "c.nii", "real")
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(lambda: read_volume(save_nifti(tmp_path / "rgb.nii", rgb)), "rgb.nii", "RGB")
    itk.WriteImage(itk.GetImageFromArray(data.astype(np.complex64)), str(tmp_path / "c.mha"))
    refused(lambda: read_volume(tmp_path / "c.mha"), "c.mha", "real")


def test_grids_that_are_no_volume_are_refused(tmp_path: Path) -> None:
    refused(lambda: read_volume(save_nifti(tmp_path / "5d.nii", numbers(2, 3, 4, 1, 2))), "5d.nii", "axes")
    raw = bytearray(nibabel.Nifti1Image(numbers(*SHAPE), np.eye(4)).to_bytes())
    raw[42:44] = b"\0\0"
    (tmp_path / "zero.nii").write_bytes(raw)
    refused(lambda: read_volume(tmp_path / "zero.nii"), "zero.nii", "empty", "(0, 5, 6)")
    flat = nibabel.Nifti1Image(numbers(*SHAPE), None)
    flat.header["sform_code"], flat.header["srow_x"], flat.header["srow_y"] = 1, (1, 0, 0, 0), (2, 0, 0, 0)
    (tmp_path / "flat.nii").write_bytes(flat.to_bytes())
    refused(lambda: read_volume(tmp_path / "flat.nii"), "flat.nii", "invertible")
    huge = bytearray(nibabel.Nifti1Image(numbers(*SHAPE), np.eye(4)).to_bytes())
    huge[42:48] = b"\x30\x75" * 3
    (tmp_path / "huge.nii").write_bytes(huge)
    refused(lambda: read_volume(tmp_path / "huge.nii"), "huge.nii")


def test_what_libraries_log_of_an_odd_header_stays_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = bytearray(nibabel.Nifti1Image(numbers(*SHAPE), np.eye(4)).to_bytes())
    raw[108:112] = np.float32(360).tobytes()  # voxels at no multiple of 16: nibabel logs a warning
    raw[352:352] = bytes(8)
    (tmp_path / "x.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_volume(tmp_path / "x.nii").data[0], numbers(*SHAPE))
    assert not caplog.records


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("SimpleITK", "x.mha"), ("PIL.Image", "x.png"), ("tifffile", "x.tif")):
        (tmp_path / name).write_bytes(b"something")
        monkeypatch.setitem(sys.modules, module, None)
        refused(lambda name=name: read_volume(tmp_path / name), name, "pip install 'mednca[formats]'")


# Writing


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("source", [".nii.gz", ".nii2", ".mha", ".nrrd"])
@pytest.mark.parametrize("target", [".nii.gz", ".nii", ".mha", ".nrrd", ".nhdr"])
def test_masks_keep_any_grid_in_any_format(tmp_path: Path, source: str, target: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.diag(rng.uniform(0.2, 6, 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    like = tmp_path / ("like" + source.replace("nii2", "nii"))
    if source.startswith(".nii"):
        save_nifti(
            like, numbers(*SHAPE), affine, nibabel.Nifti2Image if source == ".nii2" else nibabel.Nifti1Image
        )
    else:
        lps, spacing = PIXELS @ affine, np.linalg.norm(affine[:3, :3], axis=0)
        image = itk.GetImageFromArray(numbers(6, 5, 4))
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        itk.WriteImage(image, str(like))
    volume = read_volume(like)
    tolerance = (
        2e-5 if source == ".nii.gz" or target.startswith(".nii") else 1e-6
    )  # NIfTI holds float32: 200 mm
    np.testing.assert_allclose(volume.affine, affine, atol=tolerance)
    mask = mask_on(volume)
    written = write_mask(tmp_path / f"mask{target}", mask, like, force=True)
    back = read_label(written)
    np.testing.assert_array_equal(back.data, mask.data)
    exact = source.startswith(".nii") and target.startswith(".nii")
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9 if exact else tolerance)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 4), (0, 0), (3, 2)])
def test_nifti_keeps_version_codes_and_unit_but_no_text(
    tmp_path: Path, kind: Any, codes: tuple[int, int]
) -> None:
    image = kind(numbers(*SHAPE, 2), np.diag([-2.0, 3, 1.5, 1]))
    image.set_qform(np.diag([-2.0, 3, 1.5, 1]), code=codes[0])
    image.set_sform(np.diag([-2.0, 3, 1.5, 1]), code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"Jane Doe"
    (tmp_path / "x.nii").write_bytes(image.to_bytes())
    write_mask(tmp_path / "m.nii.gz", mask_on(read_volume(tmp_path / "x.nii")), tmp_path / "x.nii")
    back = nibabel.load(tmp_path / "m.nii.gz")
    assert type(back) is kind
    header = back.header
    assert (int(header["qform_code"]), int(header["sform_code"])) == codes
    assert header.get_data_dtype() == np.uint8
    assert (back.shape, header.get_xyzt_units()) == (SHAPE, ("mm", "sec"))
    assert header.get_slope_inter() in ((1, 0), (None, None))
    np.testing.assert_array_equal(header.get_best_affine(), image.header.get_best_affine())
    assert b"Jane" not in header.binaryblock


def test_2d_inputs_give_2d_masks(tmp_path: Path) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(4, 5))
    write_mask(tmp_path / "m.nii", mask_on(read_volume(like)), like)
    assert nibabel.load(tmp_path / "m.nii").shape == (4, 5)
    itk.WriteImage(itk.GetImageFromArray(numbers(5, 4)), str(tmp_path / "y.mha"))
    write_mask(tmp_path / "m.mha", mask_on(read_volume(tmp_path / "y.mha")), tmp_path / "y.mha")
    assert itk.ReadImage(str(tmp_path / "m.mha")).GetSize() == (4, 5)


@pytest.mark.parametrize("target", [".png", ".tif", ".tiff", ".nii.gz", ".mha"])
def test_masks_of_pictures_come_back(tmp_path: Path, target: str) -> None:
    pillow.fromarray(numbers(5, 7, dtype=np.uint8)).save(tmp_path / "x.png")
    mask = mask_on(read_volume(tmp_path / "x.png"))
    back = read_label(write_mask(tmp_path / f"m{target}", mask, tmp_path / "x.png"))
    np.testing.assert_array_equal(back.data, mask.data)
    np.testing.assert_allclose(back.affine, PIXELS, atol=1e-6)


@pytest.mark.parametrize("pages", [2, 3, 4])
def test_masks_of_tiff_stacks_come_back(tmp_path: Path, pages: int) -> None:
    tifffile.imwrite(tmp_path / "x.tif", numbers(pages, 5, 7), photometric="minisblack")
    mask = mask_on(read_volume(tmp_path / "x.tif"))
    back = read_label(write_mask(tmp_path / "m.tif", mask, tmp_path / "x.tif"))
    np.testing.assert_array_equal(back.data, mask.data)
    refused(lambda: write_mask(tmp_path / "m.png", mask, tmp_path / "x.tif"), "m.png", "one slice")
    assert not (tmp_path / "m.png").exists()


def test_a_picture_cannot_hold_an_affine(tmp_path: Path) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(4, 5, 1), np.diag([2.0, 2, 2, 1]))
    for name in ("m.png", "m.tif"):
        refused(
            lambda name=name: write_mask(tmp_path / name, mask_on(read_volume(like)), like), name, "affine"
        )


def test_an_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(*SHAPE))
    mask = mask_on(read_volume(like))
    (tmp_path / "m.nii").write_text("precious")
    (tmp_path / "m.zraw").write_text("precious")
    for name in ("m.nii", "m.mhd"):
        refused(lambda name=name: write_mask(tmp_path / name, mask, like), "exists already")
    assert (tmp_path / "m.nii").read_text() == (tmp_path / "m.zraw").read_text() == "precious"
    write_mask(tmp_path / "m.nii", mask, like, force=True)
    np.testing.assert_array_equal(read_label(tmp_path / "m.nii").data, mask.data)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.mha", "m.mhd", "m.nrrd"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(*SHAPE))
    mask = mask_on(read_volume(like))
    before = sorted(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        refused(lambda: write_mask(tmp_path / name, mask, like), name, "No space left")
    assert sorted(tmp_path.iterdir()) == before
    refused(lambda: write_mask(tmp_path / "nowhere" / name, mask, like), name, "No such file")
    refused(lambda: write_mask(tmp_path / "x.nii" / name, mask, like), name)
    refused(lambda: write_mask(tmp_path / "m.docx", mask, like), "m.docx", ".nii.gz")
    (tmp_path / f"d{name}").mkdir()
    refused(lambda: write_mask(tmp_path / f"d{name}", mask, like, force=True), "folder")


@pytest.mark.parametrize("name", ["m.mhd", "m.nhdr"])
def test_of_two_files_the_header_comes_last(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(*SHAPE))
    order: list[str] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        order.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_mask(tmp_path / name, mask_on(read_volume(like)), like)
    assert len(order) == 2
    assert order[-1] == name


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(*SHAPE))
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(lambda: write_mask(tmp_path / "locked" / "m.nii", mask_on(read_volume(like)), like), "m.nii")


def test_a_mask_must_be_uint8_on_the_grid_of_its_image(tmp_path: Path) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(*SHAPE))
    for wrong in (
        Volume(np.zeros((1, *SHAPE)), np.eye(4)),
        Volume(np.zeros((2, *SHAPE), np.uint8), np.eye(4)),
        Volume(np.zeros((1, 4, 5, 7), np.uint8), np.eye(4)),
        Volume(np.zeros((1, *SHAPE), np.uint8), np.diag([-1.0, 1, 1, 1])),
    ):
        with pytest.raises(ValueError, match="mask must be"):
            write_mask(tmp_path / "m.nii", wrong, like)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.mha", "m.nrrd"])
def test_the_same_mask_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    like = save_nifti(tmp_path / "x.nii", numbers(*SHAPE))
    mask = mask_on(read_volume(like))
    first = write_mask(tmp_path / name, mask, like).read_bytes()
    assert write_mask(tmp_path / name, mask, like, force=True).read_bytes() == first


def test_names() -> None:
    assert [io.stem(name) for name in ("a/x.y.nii.gz", "X.NII.GZ", "p.png", "q.docx")] == [
        "x.y",
        "X",
        "p",
        "q",
    ]
    assert [io.is_image(name) for name in ("x.nii", "._x.nii", ".DS_Store", "x.raw", ".nii", "a.NRRD")] == [
        True, False, False, False, False, True
    ]  # fmt: skip


def test_a_placeholder_spacing_is_told_from_a_real_one(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(*SHAPE), np.eye(4))
    nibabel.save(image, tmp_path / "u.nii")
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "k.nii.gz")
    assert not io.spacing_known(tmp_path / "u.nii")
    assert io.spacing_known(tmp_path / "k.nii.gz")
