"""Exported models: the ONNX files give the mask that the package gives, with NumPy and ONNX Runtime alone."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from mednca.backends.onnx import Exported
from mednca.errors import InputError
from mednca.export import export
from mednca.field import FLAT, Usual, shaded_as_usual
from mednca.fire import FireKey, absorb, fire_mask
from mednca.modelfile import ModelFile, load_model, save_model
from mednca.predict import Predictor, decide, predict_slices, share_with
from mednca.rule import weight_shapes
from mednca.slices import rescale
from mednca.spectrum import candidates
from mednca.volume import Volume
from tests.small import FIELD, tiny_model, voxels

onnx = pytest.importorskip("onnx", reason="needs pip install 'mednca[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="needs pip install 'mednca[onnx]'")

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "one channel": tiny_model(card={"licence": "a licence", "attribution": "the makers"}),
    "neighbours": tiny_model(context=1),
    "two classes, two channels": tiny_model(classes=2, modalities=2, axes=(1,)),
    "scaled by slice": tiny_model(context=2, size=(19, 22), normalise="slice"),
}


def with_rule(model: ModelFile, **rule: Any) -> ModelFile:
    """Model -> one of another rule, its weights random."""
    config = replace(model.config, model=replace(model.config.model, **rule))
    random = np.random.default_rng(5)
    weights = {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in weight_shapes(config.model).items()
    }
    return ModelFile(config, weights, model.card)


MODELS["three levels, one of factor 3"] = with_rule(tiny_model(), scales=(6, 2, 1), steps=(2, 1, 2))
MODELS["depthwise, an ensemble"] = with_rule(
    replace(
        tiny_model(),
        config=replace(tiny_model().config, predict=replace(tiny_model().config.predict, ensemble=3)),
    ),
    perception="depthwise",
)
MODELS["mirrored, with neighbours"] = replace(
    tiny_model(context=1),
    config=replace(
        tiny_model(context=1).config,
        predict=replace(tiny_model().config.predict, ensemble=8, mirror=(1, 2, 0)),
    ),
)
MODELS["smoothed"] = tiny_model(context=1, smoothing=2)
MODELS["with usual fields, two channels"] = tiny_model(modalities=2, context=1, field=FIELD * 2)
MODELS["with a margin"] = tiny_model(context=1, margin=6)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The program that goes into the folder, as a module."""
    spec = importlib.util.spec_from_file_location("example", ROOT / "src/mednca/export_example.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected_mask(model: ModelFile, scan: NDArray[np.float32], number: int) -> NDArray[np.uint8]:
    """Model, slices (S, M, H, W) and the number of one -> its mask by the definition."""
    config = model.config
    if shadings := config.preprocess.shadings:
        channels = zip(scan.swapaxes(0, 1), shadings, strict=True)
        scan = np.stack([shaded_as_usual(channel, usual) for channel, usual in channels], axis=1)
    if config.preprocess.normalise == "volume":
        scan = np.stack([rescale(channel) for channel in scan.swapaxes(0, 1)], axis=1)
    else:
        scan = np.stack([[rescale(channel) for channel in channels] for channels in scan])
    share = share_with(model, "eager", "cpu")
    shares = predict_slices(share, config, scan, seed=0, ensemble=config.predict.ensemble)
    assert 0.03 < (shares.sum(axis=1) > 0.5).mean() < 0.97  # no trivial mask
    for _ in range(config.predict.smoothing):
        shares = convolve1d(shares, [0.25, 0.5, 0.25], axis=0, mode="nearest")
    return decide(shares[number], config.predict.threshold, config.values)


@pytest.mark.parametrize("name", MODELS)
def test_the_program_in_the_folder_makes_the_mask_of_the_package(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    source = save_model(tmp_path / "m.safetensors", model)
    export(source, "onnx", tmp_path / "out")
    shape = (5, model.config.preprocess.modalities, 19, 22)
    scan = np.random.default_rng(1).normal(100, 30, shape).astype(np.float32)
    np.save(tmp_path / "scan.npy", scan)
    for number in (0, 3):
        words = [sys.executable, "-I", "example.py", "../scan.npy", str(number), "../mask.npy"]
        done = subprocess.run(words, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        mask = np.load(tmp_path / "mask.npy")
        expected = expected_mask(model, scan, number)
        assert mask.dtype == np.uint8 and mask.shape == expected.shape
        assert (mask != expected).mean() < 0.003, name  # a logit of almost 0 may fall to either side


def test_the_folder_tells_what_is_usual(tmp_path: Path) -> None:
    MODELS["sizes"] = tiny_model(sizes=(4.5, 5.0, 6.0, 1.3, 1.3, 2.0))
    told, pages = {}, {}
    for name in ("with usual fields, two channels", "sizes", "one channel", "with a margin"):
        export(save_model(tmp_path / "m.safetensors", MODELS[name]), "onnx", tmp_path / name)
        file = onnx.load(tmp_path / name / "level_0.onnx")
        told[name] = {entry.key: entry.value for entry in file.metadata_props}
        pages[name] = " ".join((tmp_path / name / "README.md").read_text().split())
    del MODELS["sizes"]
    fields, sizes, plain, margin = told.values()
    assert margin["margin"] == "6" and "margin" not in plain
    assert tuple(map(float, fields["field"].split())) == FIELD * 2 and "field" not in plain
    assert sizes["sizes"] == "4.5 5.0 6.0 1.3 1.3 2.0" and "sizes" not in plain
    said = (
        "brought back to it, as `shaded_as_usual` in",
        "size along an axis, the standard deviation",
        "and by at least 6 pixels at each side",
    )
    assert [[line in page for line in said] for page in pages.values()] == [
        [True, False, False],
        [False, True, False],
        [False, False, False],
        [False, False, True],
    ]


@pytest.mark.parametrize("shape", [(60, 7, 30), (1, 40, 9), (2, 25, 24), (3, 3, 3), (20, 20, 20)])
@pytest.mark.parametrize(
    "seen", [FLAT, Usual(*FIELD[:1], FIELD[1:]), Usual(1.4, FIELD[1:]), Usual(9.0, FIELD[1:])]
)
def test_the_program_shades_as_the_package(
    example: ModuleType, shape: tuple[int, int, int], seen: Usual
) -> None:
    """To rounding; also where air is 0 or less, and where there are too few positive voxels."""
    random = np.random.default_rng(0)
    channel = (np.exp(random.normal(5, 1, shape)) * random.choice([0, 1, 1, 1, -1], shape)).astype(np.float32)
    assert np.allclose(
        example.shaded_as_usual(channel, np.array(seen.numbers)),
        shaded_as_usual(channel, seen),
        rtol=1e-6,
        atol=0,
    )
    channel = (10.0 ** random.uniform(-44, 38, shape)).astype(np.float32)  # float32 has no more
    assert np.allclose(
        example.shaded_as_usual(channel, np.array(seen.numbers)),
        shaded_as_usual(channel, seen),
        rtol=1e-6,
        atol=0,
    )


@settings(deadline=None)
@given(
    key=st.tuples(*[st.integers(0, 2**32 - 1)] * 2, st.integers(0, 500), st.integers(0, 2**31)),
    rate=st.floats(1e-6, 1.0),
)
def test_the_program_draws_the_same_fire_masks(
    key: tuple[int, ...], rate: float, example: ModuleType
) -> None:
    seed, level, step, item = key
    rows, columns = np.arange(9)[None, :, None], np.arange(11)[None, None, :]
    expected = fire_mask(FireKey(seed, level), step, np.array([[[item]]]), rows, columns, rate)
    assert np.array_equal(example.fire_mask(key, 9, 11, rate), expected)


def test_a_cell_whose_hash_is_at_the_fire_rate_stays(example: ModuleType) -> None:
    word = 0
    for value in (1, 0, 2, 3, 4, 5):  # seed, level, step, slice, row, column
        word = absorb(word, value)
    at = word >> 8
    assert not example.fire_mask((1, 0, 2, 3), 6, 6, at / (1 << 24))[0, 4, 5]
    assert example.fire_mask((1, 0, 2, 3), 6, 6, (at + 1) / (1 << 24))[0, 4, 5]


def test_every_file_says_what_it_is(tmp_path: Path) -> None:
    model = MODELS["one channel"]
    export(save_model(tmp_path / "m.safetensors", model), "onnx", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "example.py",
        "level_0.onnx",
        "level_1.onnx",
    ]
    for level in range(2):
        made = onnx.load(tmp_path / "out" / f"level_{level}.onnx")
        told = {entry.key: entry.value for entry in made.metadata_props}
        assert told["model_hash"] == model.hash and told["level"] == str(level) and told["levels"] == "2"
        assert told["scale"] == ("4", "1")[level] and told["steps"] == ("2", "3")[level]
        assert told["fire_rate"] == "0.5" and told["classes"] == "1" and told["image_channels"] == "1"
        assert told["licence"] == "a licence" and told["attribution"] == "the makers"
        assert [(o.domain, o.version) for o in made.opset_import] == [("", 13)]
    page = (tmp_path / "out" / "README.md").read_text()
    assert model.hash in page and "opset 13" in page and "a licence" in page and "the makers" in page
    assert max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 120


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    source = save_model(tmp_path / "m.safetensors", MODELS["neighbours"])
    first, again = (export(source, "onnx", tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_the_shipped_model_exports_with_its_licence(tmp_path: Path) -> None:
    export("hippocampus", "onnx", tmp_path / "out")
    told = {e.key: e.value for e in onnx.load(tmp_path / "out" / "level_1.onnx").metadata_props}
    card = load_model("hippocampus").card
    assert told["licence"] == card["licence"] and told["attribution"] == card["attribution"]


def test_nothing_is_replaced_without_force_and_nothing_half_written(tmp_path: Path) -> None:
    source = save_model(tmp_path / "m.safetensors", MODELS["one channel"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README\.md: exists already; .*--force"):
        export(source, "onnx", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]
    export(source, "onnx", tmp_path / "out", force=True)
    assert "mine" not in (tmp_path / "out" / "README.md").read_text()


def test_a_place_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    source = save_model(tmp_path / "m.safetensors", MODELS["one channel"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; --to onnx makes a folder"):
        export(source, "onnx", tmp_path / "file")
    with pytest.raises(InputError, match=r"--to c makes a header; name a file that ends in \.h"):
        export(source, "c", tmp_path / "model.c")
    with pytest.raises(InputError, match="form must be one of onnx, c, got 'coreml'"):
        export(source, "coreml", tmp_path / "out")


def without(module: str, tmp_path: Path, form: str, out: str) -> subprocess.CompletedProcess[str]:
    """Name of a module -> what `mednca export` does in a process where it cannot be imported."""
    save_model(tmp_path / "m.safetensors", MODELS["one channel"])
    program = f"""
import sys

class Absent:
    def find_spec(self, name, *more):
        if name.split(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)

sys.meta_path.insert(0, Absent())
from mednca.cli import main
main(["export", "m.safetensors", "--to", {form!r}, "-o", {out!r}])
"""
    words = [sys.executable, "-c", program]
    return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_export_does_not_need_torch(tmp_path: Path) -> None:
    for form, out in (("onnx", "folder"), ("c", "model.h")):
        done = without("torch", tmp_path, form, out)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert out in done.stdout and (tmp_path / out).exists()


def test_without_onnx_the_extra_is_named(tmp_path: Path) -> None:
    done = without("onnx", tmp_path, "onnx", "folder")
    assert done.returncode == 2 and "pip install 'mednca[onnx]'" in done.stderr
    assert not (tmp_path / "folder").exists()
    assert without("onnx", tmp_path, "c", "model.h").returncode == 0


@pytest.mark.parametrize(
    "kind",
    [
        {"smoothing": 2},
        {"smoothing": 1, "axes": (0, 2), "classes": 2, "context": 1},
        {"smoothing": 3, "roi": (0.1, 0.9, 0.0, 1.0, 0.3, 1.0)},
        {"field": FIELD},
        {"margin": 5, "axes": (2, 0)},
        {"sizes": (3.0, 3.0, 3.0, 1.01, 1.3, 9.0)},
        {"spectrum": (0.1, *72 * (0.0,)), "sizes": (3.0, 3.0, 3.0, 1.01, 1.3, 9.0)},
        {"coarse": (0.5, 1.0, 1.0), "axes": (2, 0), "sizes": (3.0, 3.0, 3.0, 1.01, 1.3, 9.0)},
        {"coarse": (1.0, 0.7, 1.0)},
        {"field": FIELD, "axes": (1, 2), "spacing": (1.2, 1.2), "roi": (0.1, 0.9, 0.0, 1.0, 0.3, 1.0)},
    ],
    ids=lambda kind: "+".join(kind),
)
def test_an_exported_folder_is_judged_by_the_masks_of_the_model(kind: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**kind)
    export(save_model(tmp_path / "m.safetensors", model), "onnx", tmp_path / "out")
    exported = Exported(tmp_path / "out")
    assert exported.config.preprocess == model.config.preprocess
    assert exported.config.predict == model.config.predict
    affine = np.array([[0, 0, -1.5, 9], [-1.0, 0, 0, 4], [0, 1.0, 0, 2], [0, 0, 0, 1]])
    scan = Volume(np.random.default_rng(2).normal(9, size=(1, 16, 15, 9)).astype(np.float32), affine)
    found, expected = (one.predict(scan).mask.data for one in (exported, Predictor(model)))
    if "coarse" in kind:
        drawn = Predictor(model).predict(scan).report["drawn_on"]
        assert drawn == (9 if "sizes" in kind else None)
    if "spectrum" in kind:
        assert len(candidates(scan, model.config.spectra)) == 2
    assert 0.03 < (expected > 0).mean() < 0.97
    assert (found != expected).mean() < 0.003


# ---- C ----

MAIN = """
int main(void)
{
    int64_t shape[3];
    if (fread(shape, 8, 3, stdin) != 3)
        return 2;
    size_t count = (size_t)(shape[0] * shape[1] * shape[2]);
    int16_t *voxels = malloc(2 * count);
    uint8_t *mask = malloc(count);
    if (fread(voxels, 2, count, stdin) != count || segment(voxels, shape[0], shape[1], shape[2], mask))
        return 2;
    return fwrite(mask, 1, count, stdout) != count;
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler called cc")
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"axes": (1, 0, 2), "classes": 2},
        {"smoothing": 2},
        {"field": FIELD},
        {"field": FIELD, "axes": (0, 2), "smoothing": 1},
        {"margin": 6},
    ],
    ids=["one axis", "three axes", "smoothed", "field", "field, two axes, smoothed", "margin"],
)
def test_the_header_s_own_example_compiles_and_makes_the_mask_of_the_package(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(context=1, card={"name": "*/ int bad;", "licence": "a */ licence"}, **kind)
    source = save_model(tmp_path / "m.safetensors", model)
    (header,) = export(source, "c", tmp_path / "my model.h")
    comment = header.read_text("ascii").partition(" */")[0]
    code = re.findall(r"^ \*     (.*)$|^ \*()$", comment, flags=re.M)
    program = "\n".join(line for line, _ in code) + MAIN
    assert "mednca_slice" in program
    (tmp_path / "main.c").write_text(program)
    runtime = ROOT / "runtime" / "c"
    words = ["cc", "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{runtime}", "main.c"]
    done = subprocess.run(
        [*words, str(runtime / "mednca.c"), "-o", "main"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scan = voxels()
    given = np.array(scan.shape, np.int64).tobytes() + scan.tobytes("F")
    assert ("mednca_field(&job" in program) == ("field" in kind)
    done = subprocess.run([tmp_path / "main"], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    mask = np.frombuffer(done.stdout, np.uint8).reshape(scan.shape, order="F")
    expected = Predictor(model).predict(Volume(scan[None], np.eye(4))).mask.data[0]
    assert 0.03 < (expected > 0).mean() < 0.97
    assert (mask != expected).mean() < 0.003


def test_the_header_holds_the_bytes_of_the_model_file(tmp_path: Path) -> None:
    source = save_model(tmp_path / "m.safetensors", MODELS["one channel"])
    (header,) = export(source, "c", tmp_path / "if.h")
    text = header.read_text("ascii")
    numbers = text.partition("= {\n")[2].partition("\n}")[0]
    assert bytes(map(int, numbers.replace("\n", "").rstrip(",").split(","))) == source.read_bytes()
    assert "unsigned char model_if[" in text and hashlib.sha256(source.read_bytes()).hexdigest() in text
