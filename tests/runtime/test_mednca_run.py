"""mednca-run as a person meets it: masks as Python makes them, errors of one line, files whole or absent."""

from __future__ import annotations

import gzip
import re
import resource
import signal
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from mednca import engine
from mednca.calibrate import measure_range
from mednca.field import FLAT
from mednca.io import read_volume, write_mask
from mednca.metrics import dice_score
from mednca.modelfile import SHIPPED, ModelFile, save_model
from mednca.predict import Predictor
from mednca.slices import prepare_image
from mednca.synthetic import phantom
from tests.runtime.builds import add_ranges, command, run, succeeded
from tests.small import FIELD, tiny_model, voxels, write_nifti

SHIPPED_MODEL = SHIPPED / "hippocampus.safetensors"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a model for both kinds of numbers and a scan of 12 x 14 x 6 voxels."""
    scan = write_nifti(tmp_path / "scan.nii.gz", voxels())
    save_model(tmp_path / "model.safetensors", calibrated(tiny_model(), scan))
    return tmp_path


def calibrated(model: ModelFile, scan: Path) -> ModelFile:
    """Model and scan -> the model with the range of its numbers on the scan."""
    images = [prepare_image(read_volume(scan), view) for view in model.config.preprocess.views]
    return replace(model, range=measure_range(model, images))


def python_mask(model: ModelFile, scan: Path, to: Path, seed: int = 0, engine: str = "eager") -> Path:
    """Model and scan -> the mask that Python makes of it, as a file."""
    mask = Predictor(model, seed=seed, engine=engine).predict(read_volume(scan)).mask
    return write_mask(to, mask, scan, force=True)


def data(path: Path) -> Any:
    return np.asarray(nibabel.load(path).dataobj)


def agree(path: Path, other: Path, least: float = 0.999) -> None:
    """Two masks: the same header, and at least this share of voxels and this Dice of the foreground alike."""
    assert nibabel.load(path).header == nibabel.load(other).header
    first, second = data(path), data(other)
    assert len(np.unique(second)) > 1, "a mask of one value shows nothing"
    assert (first == second).mean() >= least
    assert dice_score(first > 0, second > 0) >= least


# ---- Masks ----


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"context": 1},
        {"modalities": 2},
        {"classes": 3},
        {"axes": (0,), "spacing": (1.3, 0.8)},
        {"axes": (1,), "normalise": "slice"},
        {"size": (20, 16), "normalise": "slice"},
        {"axes": (2, 0, 1), "context": 1},
        {"axes": (1, 2), "classes": 2, "spacing": (1.2, 1.2)},
        {"axes": (2, 1, 0), "size": (20, 16)},
        {"axes": (2, 0), "context": 1, "roi": (0.0, 0.85, 0.15, 1.0, 0.3, 0.7)},
        {"axes": (1,), "classes": 2, "smoothing": 2, "roi": (0.0, 0.85, 0.15, 1.0, 0.1, 0.9)},
        {"axes": (2, 1), "smoothing": 1},
        {"field": FIELD * 2, "modalities": 2, "spacing": (1.3, 0.8)},
        {"margin": 4, "axes": (2, 1), "context": 1},
        {"field": FLAT.numbers, "axes": (2, 0), "context": 1, "roi": (0.0, 0.85, 0.15, 1.0, 0.3, 0.7)},
    ],
    ids=str,
)
@pytest.mark.parametrize("numbers", ["fp32", "int16"])
def test_masks_are_those_of_python(tmp_path: Path, kind: dict[str, Any], numbers: str) -> None:
    model = tiny_model(**kind)
    shape = (12, 14, 6) if kind.get("modalities", 1) == 1 else (12, 14, 6, 2)
    affine = np.array([[0, -1.1, 0, 3], [0.9, 0, 0.1, 4], [0, 0.1, -2, 5], [0, 0, 0, 1]])
    scan = write_nifti(tmp_path / "scan.nii.gz", voxels(1, shape), affine)
    model = calibrated(model, scan)
    path = save_model(tmp_path / "model.safetensors", model)
    mask = tmp_path / "mask.nii.gz"
    done = run(path, scan, "-o", mask, "--seed", 3, *(["--int16"] if numbers == "int16" else []))
    assert done.returncode == 0 and ("reaches the border of the part" in done.stderr) == ("roi" in kind)
    if numbers == "fp32":
        agree(mask, python_mask(model, scan, tmp_path / "python.nii.gz", seed=3))
    elif engine.available():  # the same bits
        agree(mask, python_mask(model, scan, tmp_path / "python.nii.gz", seed=3, engine="int16"), 1)


def test_the_shipped_model_gives_the_mask_of_pytorch_on_a_phantom(tmp_path: Path) -> None:
    from mednca.modelfile import load_model

    image, _, affine = phantom(0)
    scan = write_nifti(tmp_path / "scan.nii.gz", image, affine)
    expected = python_mask(load_model("hippocampus"), scan, tmp_path / "python.nii.gz")
    said = succeeded(SHIPPED_MODEL, scan, "-o", tmp_path / "mask.nii.gz", "--quiet")
    agree(tmp_path / "mask.nii.gz", expected)
    assert re.fullmatch(r"\S+mask\.nii\.gz: \d+ foreground voxels, \d+\.\d s\n", said)


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
@pytest.mark.parametrize("numbers", [(), ("--int16",)], ids=["fp32", "int16"])
@pytest.mark.parametrize("axes", [(2,), (2, 0, 1)], ids=["one axis", "three axes"])
def test_masks_do_not_depend_on_threads(
    world: Path, threads: int, numbers: tuple[str, ...], axes: tuple[int, ...]
) -> None:
    if len(axes) > 1:
        model = calibrated(tiny_model(axes=axes), world / "scan.nii.gz")
        save_model(world / "model.safetensors", model)

    def mask(count: int) -> bytes:
        out = world / f"mask{count}.nii"
        succeeded(world / "model.safetensors", world / "scan.nii.gz", "-o", out, "--threads", count, *numbers)
        return out.read_bytes()

    assert mask(threads) == mask(1)  # 6 slices: some are shared, some are not


def test_ensemble_seed_and_gate_do_what_they_say(world: Path) -> None:
    model, scan = world / "model.safetensors", world / "scan.nii.gz"

    def mask(*options: object) -> Any:
        succeeded(model, scan, "-o", world / "mask.nii", "--force", *options)
        return data(world / "mask.nii")

    plain = mask()
    assert np.array_equal(plain, mask("--seed=0", "--ensemble=1"))
    assert not np.array_equal(plain, mask("--seed", 1))
    assert np.array_equal(mask("--seed", -1), mask("--seed", 2**32 - 1))
    assert not np.array_equal(plain, mask("--ensemble", 5))
    assert np.array_equal(plain, mask("--gate", 100))
    assert np.array_equal(plain, mask("--anytime", 3))  # no level has more steps
    file = tiny_model()
    averaged = ModelFile(file.config, file.weights, file.card)
    from mednca.predict import with_ensemble

    expected = python_mask(with_ensemble(averaged, 5), scan, world / "python.nii.gz")
    succeeded(model, scan, "-o", world / "five.nii.gz", "--ensemble", 5)
    agree(world / "five.nii.gz", expected)


@pytest.mark.parametrize("piece", ["largest", "surest"])
@pytest.mark.parametrize("kind", [{}, {"axes": (2, 0), "smoothing": 1, "classes": 2}], ids=str)
def test_only_one_piece_is_kept_where_the_model_says_so(
    tmp_path: Path, piece: str, kind: dict[str, Any]
) -> None:
    model = tiny_model(**kind)
    config = replace(model.config, predict=replace(model.config.predict, largest_component=True, piece=piece))
    kept = ModelFile(config, model.weights, model.card)
    save_model(tmp_path / "model.safetensors", kept)
    # slices at random: many pieces, in file axes that are not those of the world
    affine = np.array([[0, 0, 2, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    scan = write_nifti(tmp_path / "scan.nii.gz", voxels(2), affine)
    expected = python_mask(kept, scan, tmp_path / "python.nii")
    succeeded(tmp_path / "model.safetensors", scan, "-o", tmp_path / "mask.nii")
    assert (data(expected) > 0).sum() < (data(python_mask(model, scan, tmp_path / "all.nii")) > 0).sum()
    assert np.array_equal(data(tmp_path / "mask.nii"), data(expected))


def test_endings_may_be_in_capitals(world: Path) -> None:
    (world / "scan.nii.gz").rename(world / "SCAN.NII.GZ")
    succeeded(world / "model.safetensors", world / "SCAN.NII.GZ", "-o", world / "MASK.NII.GZ")
    assert (world / "MASK.NII.GZ").read_bytes()[:2] == b"\x1f\x8b"


def test_a_model_that_does_not_work_on_a_scan_makes_no_mask(world: Path) -> None:
    model = tiny_model()
    large = ModelFile(model.config, {name: weight * 1e18 for name, weight in model.weights.items()}, {})
    save_model(world / "large.safetensors", large)
    before = set(world.iterdir())
    done = run(world / "large.safetensors", world / "scan.nii.gz", "-o", world / "mask.nii.gz")
    refused(done, "scan.nii.gz: the model's answer is not finite for")
    assert set(world.iterdir()) == before


def test_a_run_folder_names_its_model(world: Path) -> None:
    (world / "run").mkdir()
    (world / "model.safetensors").rename(world / "run" / "model.safetensors")
    succeeded(world / "run", world / "scan.nii.gz", "-o", world / "mask.nii.gz")


# ---- Files ----


def test_a_mask_is_replaced_only_by_force(world: Path) -> None:
    words = (world / "model.safetensors", world / "scan.nii.gz", "-o", world / "mask.nii.gz")
    succeeded(*words)
    first = (world / "mask.nii.gz").read_bytes()
    (world / "mask.nii.gz").write_bytes(b"mine")
    refused(run(*words), "mask.nii.gz: exists already", "--force")
    assert (world / "mask.nii.gz").read_bytes() == b"mine"
    succeeded(*words, "--force")
    assert (world / "mask.nii.gz").read_bytes() == first


def test_a_mask_has_the_rights_of_any_new_file(world: Path) -> None:
    succeeded(world / "model.safetensors", world / "scan.nii.gz", "-o", world / "mask.nii.gz")
    (world / "other").write_text("")
    assert (world / "mask.nii.gz").stat().st_mode == (world / "other").stat().st_mode


def wide_scan(folder: Path) -> tuple[Path, Path]:
    """Folder -> a model that is quick on any scan, and a scan whose mask takes a while to write."""
    model = save_model(folder / "quick.safetensors", tiny_model(size=(8, 8), normalise="slice"))
    return model, write_nifti(folder / "wide.nii", voxels(0, (400, 400, 40)))


@pytest.mark.parametrize(("name", "limit"), [("wide.nii", 1 << 20), ("scan.nii.gz", 100)])
def test_a_full_disk_is_an_error_and_leaves_nothing(world: Path, name: str, limit: int) -> None:
    """While the mask is written, and at the end, when the last bytes leave the program."""
    model, _ = wide_scan(world)
    before = set(world.iterdir())
    done = subprocess.run(
        [*command("host"), model, world / name, "-o", world / "mask.nii"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    refused(done, "mask.nii: cannot be written")
    assert set(world.iterdir()) == before


def test_a_stop_while_the_mask_is_written_leaves_nothing(tmp_path: Path) -> None:
    model, scan = wide_scan(tmp_path)
    before = set(tmp_path.iterdir())
    words = [*command("host"), model, scan, "-o", tmp_path / "mask.nii.gz", "--threads", "1"]
    for _ in range(10):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(p.name.startswith(".part-") for p in tmp_path.iterdir()):
            pass
        process.send_signal(signal.SIGINT)
        if process.wait() == -signal.SIGINT:
            assert set(tmp_path.iterdir()) == before
            return
        (tmp_path / "mask.nii.gz").unlink()
    pytest.fail("the mask was always written before the signal came")


def test_progress_appears_after_two_seconds_and_a_stop_leaves_nothing(world: Path) -> None:
    before = set(world.iterdir())
    words = [world / "model.safetensors", world / "scan.nii.gz", "-o", world / "mask.nii.gz"]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command("host"), *words, "--ensemble", "10000", "--instructions", "portable", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    line = process.stderr.readline()
    assert time.monotonic() - start >= 2
    assert re.fullmatch(r"mednca-run: [1-9]\d %, about \d+:\d\d min left\n", line)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    process.stderr.close()
    assert set(world.iterdir()) == before


# ---- What it says ----


def test_anytime_stops_where_python_does_and_says_how_early(world: Path) -> None:
    scan = world / "scan.nii.gz"
    file = tiny_model()
    file = replace(file, config=replace(file.config, model=replace(file.config.model, steps=(20, 20))))
    model = save_model(world / "long.safetensors", file)
    expected = Predictor(file, engine="native", patience=1).predict(read_volume(scan))
    said = succeeded(model, scan, "-o", world / "mask.nii.gz", "--anytime", 1)
    assert np.array_equal(data(world / "mask.nii.gz"), expected.mask.data[0])
    share = 100 * expected.report["steps_run"] / expected.report["steps_all"]
    assert said.endswith(f", {share:.0f} % of the steps\n") and share < 99


def test_help_names_every_option_and_info_tells_what_a_model_is(world: Path) -> None:
    text = succeeded("--help")
    assert text == succeeded("-h") == succeeded()
    for option in (
        "--out",
        "--int16",
        "--gate",
        "--anytime",
        "--seed",
        "--ensemble",
        "--threads",
        "--instructions",
    ):
        assert re.search(rf"^ .*{option}\b", text, re.M), option
    for option in ("--force", "--quiet", "--bench", "--size", "--steps", "--info"):
        assert option in text
    assert max(map(len, text.splitlines())) <= 110
    info = succeeded(world / "model.safetensors", "--info")
    assert "1 channel(s), cut into axial slices" in info
    assert f"{tiny_model().parameters} parameters, 8 channels, 8 hidden units, dense" in info
    assert "downscaled by 4, 1; steps 2+3" in info
    assert re.search(r"--int16 +possible", info)
    three = save_model(world / "three.safetensors", tiny_model(axes=(2, 0, 1)))
    assert "1 channel(s), cut into axial, sagittal, coronal slices" in succeeded(three, "--info")
    assert "seconds" in succeeded(three, "--bench", "--size", "16x20")
    field = save_model(world / "field.safetensors", tiny_model(field=FIELD))
    assert "seconds" in succeeded(field, "--bench", "--size", "16x20")
    bare = save_model(world / "bare.safetensors", tiny_model())
    assert re.search(r"--int16 +not possible", succeeded(bare, "--info"))


def test_the_benchmark_prints_what_a_user_can_paste(world: Path) -> None:
    out = succeeded(world / "model.safetensors", "--bench", "--size", "24x32", "--threads", 2, "--int16")
    for word in ("machine", "instructions", "seconds", "cells", "memory"):
        assert re.search(rf"^{word} +\S", out, re.M), out
    (line,) = re.findall(r"^to paste +(.*)$", out, re.M)
    assert "2 threads" in line and "int16" in line and "24 x 32 cells" in line and "steps 2+3" in line
    assert "steps 1+1" in succeeded(world / "model.safetensors", "--bench", "--size", "8x8", "--steps", "1,1")


def test_numbers_beyond_the_range_of_int16_are_told(world: Path) -> None:
    add_ranges(world / "model.safetensors", state=0.001, units=0.001)
    done = run(world / "model.safetensors", world / "scan.nii.gz", "-o", world / "mask.nii", "--int16")
    assert done.returncode == 0
    assert re.fullmatch(r"mednca-run: warning: .*scan.nii.gz: [1-9]\d* numbers did not fit .*\n", done.stderr)
    bench = succeeded(world / "model.safetensors", "--bench", "--size", "8x8", "--int16")
    assert re.search(r"^saturated +[1-9]", bench, re.M)


# ---- Memory ----


def peak_megabytes(words: list[object]) -> float:
    """Words of a command that must go well -> the most memory it had, as the system tells while it runs."""
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        text = status.read_text()
        if f"Name:\t{Path(str(words[0])).name}\n" in text and (
            found := re.search(r"VmHWM:\s+(\d+) kB", text)
        ):
            peak = int(found[1])
    assert process.returncode == 0 and peak
    return peak / 1024


def paper_model(path: Path) -> Path:
    """Path -> the paper's model, 70,016 parameters, with one step on each level."""
    import torch

    from mednca.config import RunConfig
    from mednca.nca import MedNCA, MedNCAConfig

    config = MedNCAConfig(steps=(1, 1))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in MedNCA(config).state_dict().items()
    }
    return add_ranges(save_model(path, ModelFile(RunConfig("paper", model=config), weights)))


@pytest.mark.parametrize("numbers", [(), ("--int16",)], ids=["fp32", "int16"])
def test_a_slice_of_320_x_320_takes_at_most_24_megabytes(tmp_path: Path, numbers: tuple[str, ...]) -> None:
    model = paper_model(tmp_path / "model.safetensors")
    program = command("x86-64")
    scan = write_nifti(tmp_path / "scan.nii.gz", voxels(0, (320, 320, 1)))
    words = [*program, model, scan, "-o", tmp_path / "mask.nii.gz", "--threads", 1, *numbers]
    one = peak_megabytes(words)
    assert one <= 24
    scan = write_nifti(tmp_path / "scan.nii.gz", voxels(0, (320, 320, 24)))
    # 4.7 MB of voxels and 2.3 MB of mask come on top: there is no copy of the scan in another number type
    assert peak_megabytes([*words, "--force"]) <= one + 8


# ---- Errors ----


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """A command must have ended with status 2 and one line that has all the words."""
    assert done.returncode == 2, done
    assert re.fullmatch(r"mednca-run: error: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr
    assert not done.stdout


def with_fields(version: int = 1, shape: tuple[int, ...] = (4, 5, 6), **fields: Any) -> bytes:
    """Header fields -> a NIfTI file with them."""
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    image = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    raw = bytearray(image(voxels(0, shape), np.eye(4)).to_bytes())
    header = kind(bytes(raw[: kind.sizeof_hdr]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[: kind.sizeof_hdr] = header.binaryblock
    return bytes(raw)


def floats(value: float) -> bytes:
    """A scan of float32 with this value in one place."""
    array = np.ones((4, 5, 6), np.float32)
    array[1, 2, 3] = value
    return nibabel.Nifti1Image(array, np.eye(4)).to_bytes()


GOOD = with_fields()
HUGE = {"dim": [3, 2**40, 2**40, 2**40, 1, 1, 1, 1]}
SCANS = {
    "empty": (b"", "empty file"),
    "text": (b"this is no scan at all" * 100, "expected NIfTI"),
    "short": (GOOD[:200], "expected NIfTI"),
    "cut off": (GOOD[:-1], "cut off"),
    "only a header": (GOOD[:352], "cut off"),
    "pair": (with_fields(magic=b"ni1"), "pair .hdr and .img"),
    "pair, version 2": (with_fields(2, magic=b"ni2"), "pair .hdr and .img"),
    "line ends": (GOOD[:0] + with_fields(2, eol_check=[10, 10, 26, 10]), "line ends"),
    "NaN": (floats(np.nan), "voxels must be finite, got 1"),
    "infinity": (floats(-np.inf), "voxels must be finite, got 1"),
    "infinity by scaling": (
        with_fields(scl_slope=1e38),
        "voxels must be finite",
    ),
    "intercept": (with_fields(scl_slope=2, scl_inter=np.inf), "scl_inter must be finite"),
    "singular": (with_fields(srow_z=[0, 0, 0, 0]), "affine must be invertible"),
    "nearly singular": (
        with_fields(srow_y=[0, 1, 1, 0], srow_z=[0, 0, 1e-7, 0]),
        "affine must be invertible",
    ),
    "affine of NaN": (with_fields(srow_x=[np.nan, 0, 0, 0]), "affine must be finite"),
    "quaternion": (with_fields(sform_code=0, qform_code=1, quatern_b=2), "quaternion"),
    "colours": (with_fields(datatype=128), "RGB"),
    "complex": (with_fields(datatype=32), "NIfTI type 32"),
    "bits": (with_fields(datatype=1), "NIfTI type 1"),
    "no axes": (with_fields(dim=[0, 4, 5, 6, 1, 1, 1, 1]), "axes"),
    "one axis": (with_fields(dim=[1, 120, 1, 1, 1, 1, 1, 1]), "axes"),
    "five axes": (with_fields(dim=[5, 2, 5, 2, 2, 3, 1, 1]), "split the file"),
    "empty axis": (with_fields(dim=[3, 4, 0, 6, 1, 1, 1, 1]), "no axis may be empty"),
    "negative axis": (with_fields(dim=[3, 4, -5, 6, 1, 1, 1, 1]), "no axis may be empty"),
    "too large": (with_fields(dim=[4, 32767, 32767, 32767, 32767, 1, 1, 1]), "cut off"),
    "overflow": (with_fields(2, **HUGE), "cut off"),
    "offset": (with_fields(vox_offset=300), "vox_offset"),
    "offset beyond": (with_fields(vox_offset=1e14), "cut off"),
    "offset NaN": (with_fields(vox_offset=np.nan), "vox_offset"),
    "two channels": (with_fields(shape=(4, 5, 3, 2)), "1 channel(s), got 2"),
    "packed, cut off": (gzip.compress(GOOD)[:-20], "cut off"),
    "packed, checksum": (gzip.compress(GOOD)[:-6] + b"\0" * 6, "damaged"),
    "packed, rubbish behind": (gzip.compress(GOOD) + b"rubbish", "damaged"),
    "packed, damaged": (gzip.compress(GOOD)[:60] + b"\xff" * 40 + gzip.compress(GOOD)[100:], "damaged"),
    "packed, only a header": (gzip.compress(GOOD[:352]), "cut off"),
    "packed, nothing": (gzip.compress(b""), "expected NIfTI"),
}


@pytest.mark.parametrize("name", SCANS)
def test_a_wrong_scan_is_one_line_and_leaves_nothing(world: Path, name: str) -> None:
    content, word = SCANS[name]
    scan = world / ("wrong.nii.gz" if content[:2] == b"\x1f\x8b" else "wrong.nii")
    scan.write_bytes(content)
    before = set(world.iterdir())
    refused(run(world / "model.safetensors", scan, "-o", world / "mask.nii.gz"), f"{scan}: ", word)
    assert set(world.iterdir()) == before


def test_a_right_scan_made_the_same_way_is_taken(world: Path) -> None:
    for number, content in enumerate((GOOD, with_fields(2), gzip.compress(GOOD), floats(3e38))):
        scan = world / f"right{number}.nii.gz"
        scan.write_bytes(content)
        succeeded(world / "model.safetensors", scan, "-o", world / f"mask{number}.nii.gz")


def headed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish",
        b"\xff" * 100,
        headed(b"{}"),
        headed(b'{"__metadata__": {"mednca": "{}"}}'),
        headed(b"[" * 99),
    ],
)
def test_a_wrong_model_is_one_line(world: Path, content: bytes) -> None:
    (world / "model.safetensors").write_bytes(content)
    done = run(world / "model.safetensors", world / "scan.nii.gz", "-o", world / "mask.nii.gz")
    refused(done, "model.safetensors: ")


def test_a_model_that_is_cut_off_is_one_line(world: Path) -> None:
    content = (world / "model.safetensors").read_bytes()
    for size in (len(content) - 1, len(content) // 2, 100, 8):
        (world / "model.safetensors").write_bytes(content[:size])
        refused(run(world / "model.safetensors", "--info"), "model.safetensors: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere.safetensors scan.nii.gz -o m.nii", "nowhere.safetensors: expected a model"),
        ("folder.nii scan.nii.gz -o m.nii", "no model.safetensors in it"),
        ("model.safetensors nowhere.nii -o m.nii", "nowhere.nii: expected a scan, there is none"),
        ("model.safetensors folder.nii -o m.nii", "got a folder"),
        ("model.safetensors /dev/null -o m.nii", "the ending must be .nii"),
        ("model.safetensors null.nii -o m.nii", "null.nii: expected a scan, got something that is no file"),
        ("model.safetensors scan.hdr -o m.nii", "join them to one .nii"),
        ("model.safetensors scan.img.gz -o m.nii", "join them to one .nii"),
        ("model.safetensors scan.mha -o m.nii", "the ending must be .nii"),
        ("model.safetensors scan.nii.gz", "name the mask to write"),
        ("model.safetensors -o m.nii", "expected a scan"),
        ("-o m.nii", "expected MODEL"),
        ("model.safetensors scan.nii.gz -o m.png", "m.png: the ending must be .nii"),
        ("model.safetensors scan.nii.gz -o .nii", "the ending must be .nii"),
        ("model.safetensors scan.nii.gz -o nowhere/m.nii", "cannot be written"),
        ("model.safetensors scan.nii.gz -o folder.nii --force", "it is a folder"),
        ("model.safetensors scan.nii.gz -o scan.nii.gz --force", "would replace an input"),
        ("model.safetensors scan.nii.gz -o link.nii.gz --force", "would replace an input"),
        ("model.safetensors scan.nii.gz scan.nii.gz -o m.nii", "one scan at a time"),
        ("model.safetensors scan.nii.gz -o", "--out: a value must follow"),
        ("model.safetensors scan.nii.gz -o m.nii --fast", "--fast: there is no such option"),
        ("model.safetensors scan.nii.gz -o m.nii --force=yes", "takes no value"),
        ("model.safetensors scan.nii.gz -o m.nii --threads 0", "from 1 to 64, got '0'"),
        ("model.safetensors scan.nii.gz -o m.nii --threads two", "got 'two'"),
        ("model.safetensors scan.nii.gz -o m.nii --gate -1", "--gate"),
        ("model.safetensors scan.nii.gz -o m.nii --anytime 0", "--anytime"),
        ("model.safetensors scan.nii.gz -o m.nii --ensemble 0", "--ensemble"),
        ("model.safetensors scan.nii.gz -o m.nii --seed 1.5", "--seed"),
        ("model.safetensors scan.nii.gz -o m.nii --instructions fast", "portable; got 'fast'"),
        ("model.safetensors scan.nii.gz -o m.nii --steps 1,1", "--steps goes with --bench"),
        ("model.safetensors --bench --steps 1", "this model has 2 levels, got steps for 1"),
        ("model.safetensors --bench --steps 1,0", "--steps"),
        ("model.safetensors --bench --size 64", "as 256x256, got '64'"),
        ("model.safetensors --bench --size 1x64", "--size"),
        ("model.safetensors --bench --info", "give one of them"),
        ("model.safetensors scan.nii.gz --info", "leave it out"),
        ("other.safetensors scan.nii.gz -o m.nii --int16", "other.safetensors: the model holds no ranges"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(world: Path, words: str, said: str) -> None:
    (world / "folder.nii").mkdir()
    (world / "link.nii.gz").symlink_to("scan.nii.gz")
    (world / "null.nii").symlink_to("/dev/null")
    save_model(world / "other.safetensors", tiny_model())
    before = set(world.iterdir())
    done = subprocess.run(
        [*command("host"), *words.split()], capture_output=True, text=True, check=False, cwd=world, timeout=60
    )
    refused(done, said)
    assert set(world.iterdir()) == before
