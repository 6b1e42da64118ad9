"""DICOM: a folder is read as the stack that it is, or refused in one line that says what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mednca import dicom
from mednca.cli import main
from mednca.errors import InputError
from mednca.io import read_label, read_volume, write_mask
from mednca.modelfile import save_model
from tests.prostate import ORIGIN, SPACING, TILT, as_itk, itk, organ, write_dicom
from tests.small import tiny_model

DATA = Path(os.environ.get("MEDNCA_DATA") or Path(__file__).parents[2] / "shared" / "data")
LPS = np.diag([-1.0, -1.0, 1.0])
SHAPE = (9, 7, 5)


def voxels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.int16)


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Any:
    """No library may print anything, not even from native code."""
    yield
    assert capfd.readouterr() == ("", "")


def test_slices_are_ordered_by_position_whatever_the_files_are_called(tmp_path: Path) -> None:
    volume = read_volume(write_dicom(tmp_path / "a", voxels(), order=[3, 0, 4, 1, 2]))
    np.testing.assert_array_equal(volume.data[0], voxels())
    np.testing.assert_array_equal(read_volume(write_dicom(tmp_path / "b", voxels())).data[0], voxels())


def test_the_world_is_turned_from_lps_to_ras(tmp_path: Path) -> None:
    volume = read_volume(write_dicom(tmp_path / "a", voxels()))
    np.testing.assert_allclose(volume.affine[:3, :3], LPS @ TILT * SPACING, atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], LPS @ ORIGIN, atol=1e-6)
    assert volume.orientation == "LPS"


def test_spacing_is_the_distance_of_the_slices_not_their_thickness(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", voxels(), SliceThickness=1)
    assert read_volume(folder).spacing == pytest.approx(SPACING)


def test_values_are_scaled_as_each_header_says(tmp_path: Path) -> None:
    alike = write_dicom(tmp_path / "alike", voxels(), RescaleSlope=2, RescaleIntercept=-10)
    np.testing.assert_array_equal(read_volume(alike).data[0], 2 * voxels() - 10)
    slopes = (1, 2, 0.5, 4, 0.25)
    each = write_dicom(tmp_path / "each", voxels(), RescaleSlope=slopes, RescaleIntercept=3)
    np.testing.assert_array_equal(read_volume(each).data[0], voxels() * np.float32(slopes) + 3)


def test_the_series_may_lie_further_down_and_its_files_have_no_ending(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "study" / "series", voxels(), ending="")
    (tmp_path / "a" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a" / ".DS_Store").write_text("")
    (tmp_path / "a" / "LICENSE.txt").write_text("free")
    np.testing.assert_array_equal(read_volume(tmp_path / "a").data[0], voxels())


def test_a_mask_is_written_on_the_grid_of_a_series(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", voxels())
    volume = read_volume(folder)
    shape, affine = dicom.grid(folder)
    assert shape == SHAPE
    np.testing.assert_array_equal(affine, volume.affine)
    mask = volume.with_data((voxels()[None] % 2).astype(np.uint8))
    for name in ("m.nii.gz", "m.nrrd"):
        written = read_label(write_mask(tmp_path / name, mask, folder))
        np.testing.assert_array_equal(written.data, mask.data)
        np.testing.assert_allclose(written.affine, volume.affine, atol=1e-5)


def test_a_label_drawn_on_the_series_is_turned_to_its_axes(tmp_path: Path) -> None:
    image, label = organ(0, SHAPE)
    volume = read_volume(write_dicom(tmp_path / "a", image))
    stored = as_itk(label)
    for name, turned in (
        ("same", stored),
        ("flipped", stored[:, :, ::-1]),
        ("permuted", itk.PermuteAxes(stored, (2, 0, 1))),
    ):
        itk.WriteImage(turned, str(tmp_path / f"{name}.nrrd"))
        found = read_label(tmp_path / f"{name}.nrrd", like=volume)
        np.testing.assert_array_equal(found.data[0], label)
        np.testing.assert_allclose(found.affine, volume.affine, atol=1e-6)
    stored.SetSpacing((0.5, 0.625, 3.3))  # another grid stays another grid: the caller refuses it
    itk.WriteImage(stored, str(tmp_path / "other.nrrd"))
    assert read_label(tmp_path / "other.nrrd", like=volume).spacing == pytest.approx((0.5, 0.625, 3.3))


def test_several_series_are_refused_and_listed(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "1", voxels())
    write_dicom(tmp_path / "a" / "2", voxels(), series="1.2.826.0.1.7.2", description="ADC")
    refused(
        lambda: read_volume(tmp_path / "a"),
        "one DICOM series, got 2",
        "t2_tse_tra (5 files, 1, 1.2.826.0.1.7.1)",
        "ADC (5 files, 2, 1.2.826.0.1.7.2)",
    )


def test_a_missing_slice_is_told_with_its_neighbours(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", voxels())
    (folder / "000003.dcm").unlink()
    refused(lambda: read_volume(folder), "evenly spaced", "000004.dcm and 000002.dcm", "6 mm", "missing")
    refused(lambda: dicom.grid(folder), "evenly spaced")


def test_uneven_slices_are_refused_but_rounded_positions_are_not(tmp_path: Path) -> None:
    normal = TILT[:, 2]
    last = ORIGIN + 12 * normal
    write_dicom(tmp_path / "uneven", voxels(), positions={4: last + 0.5 * normal})
    refused(lambda: read_volume(tmp_path / "uneven"), "evenly spaced", "3.5 mm")
    write_dicom(tmp_path / "close", voxels(), positions={4: last - 0.5 * normal})
    refused(lambda: read_volume(tmp_path / "close"), "evenly spaced", "2.5 mm")
    rounded = {z: np.round(ORIGIN + 3 * z * normal, 2) for z in range(5)}
    volume = read_volume(write_dicom(tmp_path / "rounded", voxels(), positions=rounded))
    assert volume.spacing == pytest.approx(SPACING, abs=0.005)


def test_two_slices_in_one_place_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", voxels(), positions={4: ORIGIN + 9 * TILT[:, 2]})
    refused(lambda: read_volume(tmp_path / "a"), "same", "one echo")


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    sheared = {z: ORIGIN + 3 * z * TILT[:, 2] + z * TILT[:, 1] for z in range(5)}
    write_dicom(tmp_path / "a", voxels(), positions=sheared)
    refused(lambda: read_volume(tmp_path / "a"), "right angles", "4 mm")


def test_a_slice_unlike_the_others_is_named(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", voxels())
    write_dicom(tmp_path / "b", voxels((9, 8, 1)))
    (tmp_path / "b" / "000000.dcm").rename(folder / "900000.dcm")
    refused(lambda: read_volume(folder), "900000.dcm", "localiser")


def test_a_file_without_a_place_or_with_many_frames_is_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", voxels(), ImagePositionPatient=None)
    refused(lambda: read_volume(tmp_path / "a"), "000000.dcm", "position of its slice")
    write_dicom(tmp_path / "b", voxels(), NumberOfFrames=3)
    refused(lambda: read_volume(tmp_path / "b"), "000000.dcm", "3 frames", "NIfTI")


def test_files_that_are_no_slices_are_refused(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", voxels())
    whole = (folder / "000002.dcm").read_bytes()
    (folder / "000002.dcm").write_bytes(whole[:300])
    refused(lambda: read_volume(folder), "000002.dcm")
    (folder / "000002.dcm").write_text("no DICOM at all")
    refused(lambda: read_volume(folder), "000002.dcm", "cannot be read as DICOM")
    (tmp_path / "empty").mkdir()
    refused(lambda: read_volume(tmp_path / "empty"), "folder without DICOM")


def command(capfd: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capfd.readouterr()
    assert (stopped.value.code or 0) == status, err
    return out, err


def test_a_series_is_segmented_to_nifti_on_its_own_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model.safetensors", tiny_model())
    image, _ = organ(0, (24, 20, 5))
    write_dicom(tmp_path / "one", image)
    command(capfd, "predict", "model.safetensors", "one", "-o", "mask.nii.gz")
    mask, volume = read_label(tmp_path / "mask.nii.gz"), read_volume(tmp_path / "one")
    assert mask.shape == volume.shape
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-5)
    report = json.loads((tmp_path / "mask.json").read_text())
    assert report["input"] == "one" and report["spacing_mm"] == pytest.approx(SPACING)
    for name in ("p.1", "p.2"):
        write_dicom(tmp_path / "many" / name / "series", image)
    command(capfd, "predict", "model.safetensors", "many", "-o", "masks")
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "p.1.json",
        "p.1.nii.gz",
        "p.2.json",
        "p.2.nii.gz",
    ]
    np.testing.assert_array_equal(read_label(tmp_path / "masks" / "p.1.nii.gz").data, mask.data)


@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no data: set MEDNCA_DATA to the folder of dicom")
@pytest.mark.parametrize(
    ("name", "shape", "spacing", "values"),
    [
        ("ProstateT2_Prostate3T-03-0001", (384, 384, 19), (0.5, 0.5, 3.0), None),
        ("BrainT1post_PGBM-003", (280, 320, 22), (0.6875, 0.6875, 6.5), None),
        ("HippoCrop_PGBM-006", (36, 48, 35), (1, 1, 1), 5076),
    ],
)
def test_real_series_are_read_as_simpleitk_reads_them(
    name: str, shape: tuple[int, int, int], spacing: tuple[float, float, float], values: int | None
) -> None:
    volume = read_volume(DATA / "dicom" / name)
    assert volume.shape == shape and volume.spacing == pytest.approx(spacing, abs=1e-5)
    files = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(DATA / "dicom" / name))
    image = itk.ReadImage(files)
    np.testing.assert_array_equal(volume.data[0], itk.GetArrayFromImage(image).T)
    for corner in np.ndindex(2, 2, 2):
        index = [int(c) * (n - 1) for c, n in zip(corner, shape, strict=True)]
        ours = (volume.affine @ [*index, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(ours, image.TransformIndexToPhysicalPoint(index), atol=1e-4)
    assert values is None or volume.data.max() == values
