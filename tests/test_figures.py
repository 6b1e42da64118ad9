"""Figures are whole PNG files that show outlines in place and the right way round, and say their Dice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from mednca import figures
from mednca.errors import InputError
from mednca.figures import PREDICTION, REFERENCE, Picture, box, curves, overlay, overlay_sheet

SHAPE, SPACING = (40, 30, 20), (1.0, 1.2, 1.1)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the figures saved in a test say, as drawn text."""
    said: list[str] = []
    save = Figure.savefig

    def listen(figure: Figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        said.extend(dict.fromkeys(text.get_text() for text in figure.findobj(Text)))

    monkeypatch.setattr(Figure, "savefig", listen)
    return said


def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image bright at the left in front, a reference there and a mask at the right behind; in RAS."""
    image = np.random.default_rng(0).uniform(0.3, 0.5, SHAPE)
    image[:12, 20:] += 0.5
    reference, mask = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[4:14, 18:26, 6:14] = 1
    mask[22:32, 4:12, 6:14] = 1
    return image, reference, mask


def pixels(path: Path, colour: str) -> np.ndarray:
    """Rows and columns (n, 2) of the pixels that have a colour."""
    picture = imread(path)
    assert picture.ndim == 3 and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return np.argwhere(np.abs(picture[..., :3] - to_rgb(colour)).max(axis=-1) < 0.03)


def panel_rows(path: Path) -> slice:
    """The rows above the legend, which has the outlines' colours too."""
    return slice(0, int(imread(path).shape[0] - 60))


def outline(path: Path, colour: str) -> np.ndarray:
    found = pixels(path, colour)
    return found[found[:, 0] < panel_rows(path).stop]


def lines(*entries: dict[str, object]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_outlines_lie_at_their_place_in_neurological_view(tmp_path: Path, texts: list[str]):
    path = overlay(tmp_path / "a.png", *scan(), SPACING, "case 7")
    reference, prediction = outline(path, REFERENCE), outline(path, PREDICTION)
    width = imread(path).shape[1]
    assert len(reference) > 500 and len(prediction) > 200
    assert reference[:, 1].min() > width / 2  # the left column is the plain image
    assert prediction[:, 1].min() > width / 2
    assert reference[:, 1].max() < prediction[:, 1].min()  # the reference is on the patient's left
    assert reference[:, 0].min() < prediction[:, 0].min()  # and in front
    assert "case 7\nDice 0.000" in texts
    assert {
        "L",
        "R",
        "A",
        "P",
        "reference",
        "prediction",
        "axial slice 7 of 20",
        "axial slice 14 of 20",
    } <= set(texts)
    assert any("neurological convention" in text for text in texts)


def test_the_outline_has_the_objects_size_in_mm(tmp_path: Path):
    """A box of 10 x 8 voxels of 1 x 3 mm: 24 mm high and 10 mm wide, on the page too."""
    image, reference, _ = scan()
    path = overlay(tmp_path / "a.png", image, reference, np.zeros(SHAPE, np.uint8), (1.0, 3.0, 3.0), "box")
    found = outline(path, REFERENCE)
    blank = np.flatnonzero(np.diff(np.unique(found[:, 0])) > 20)
    first = np.unique(found[:, 0])[: blank[0] + 1]  # the rows of the first of three panels
    stroke = figures.WIDTHS[0] / 72 * figures.DPI
    height, breadth = np.ptp(first) - stroke, np.ptp(found[:, 1]) - stroke
    assert height / breadth == pytest.approx(2.4, rel=0.08)  # outlines are whole pixels wide


def test_the_order_of_the_axes_does_not_change_the_picture(tmp_path: Path):
    arrays = scan()
    plain = overlay(tmp_path / "a.png", *arrays, SPACING, "case")
    turned = overlay(tmp_path / "b.png", *(a[::-1, ::-1] for a in arrays), SPACING, "case", orientation="LPS")
    moved = [a.transpose(2, 0, 1)[:, ::-1] for a in arrays]
    swapped = overlay(tmp_path / "c.png", *moved, (1.1, 1.0, 1.2), "case", orientation="SLA")
    assert plain.read_bytes() == turned.read_bytes() == swapped.read_bytes()
    mirrored = overlay(tmp_path / "d.png", *arrays, SPACING, "case", orientation="LAS")
    assert mirrored.read_bytes() != plain.read_bytes()


def test_every_class_has_its_outline(tmp_path: Path):
    image, reference, mask = scan()
    one = overlay(tmp_path / "a.png", image, reference, mask, SPACING, "case")
    reference[4:14, 18:22][reference[4:14, 18:22] > 0] = 2
    two = overlay(tmp_path / "b.png", image, reference, mask, SPACING, "case")
    assert len(outline(two, REFERENCE)) > 1.1 * len(outline(one, REFERENCE))


def test_thick_slices_are_cut_across_and_thin_organs_shown_with_neighbours(tmp_path: Path, texts: list[str]):
    image, reference, mask = scan()
    overlay(tmp_path / "a.png", image, reference, mask, (1.0, 4.0, 1.0), "case")
    assert any(text.startswith("coronal slice") for text in texts) and {"L", "R", "I", "S"} <= set(texts)
    texts.clear()
    mask[:], reference[:, :, :9], reference[:, :, 10:] = 0, 0, 0
    overlay(tmp_path / "b.png", image, reference, mask, SPACING, "case")
    assert {f"axial slice {number} of 20" for number in (9, 10, 11)} <= set(texts)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_empty_masks_and_flat_images_are_drawn(tmp_path: Path, texts: list[str], value: float):
    empty = np.zeros(SHAPE, np.uint8)
    path = overlay(tmp_path / "a.png", np.full(SHAPE, value), empty, empty, SPACING, "case")
    assert len(outline(path, REFERENCE)) == 0
    assert "case\nDice 1.000" in texts


def test_a_sheet_names_worst_median_and_best(tmp_path: Path, texts: list[str]):
    image, reference, _ = scan()
    cases = [
        Picture(f"case {step}", image, reference, np.roll(reference, step, 0), SPACING)
        for step in (2, 0, 8, 4, 6)
    ]
    path = overlay_sheet(tmp_path / "sheet.png", cases)
    titles = ["worst: Dice 0.200   (case 8)", "median: Dice 0.600   (case 4)", "best: Dice 1.000   (case 0)"]
    assert [text for text in texts if "Dice" in text] == titles
    assert path.stat().st_size < 300_000
    texts.clear()
    overlay_sheet(path, cases[:1])
    assert any(text.startswith("only case: Dice 0.800") for text in texts)
    texts.clear()
    overlay_sheet(path, cases[:2])
    assert [text.split(":")[0] for text in texts if "Dice" in text] == ["worst", "best"]
    with pytest.raises(ValueError, match="at least one case"):
        overlay_sheet(path, [])


def test_curves_show_losses_dice_and_events(tmp_path: Path, texts: list[str]):
    source = tmp_path / "metrics.jsonl"
    train = [
        {"kind": "train", "iteration": i, "loss": 2.0 / (i + 1), "learning_rate": 1e-3} for i in range(120)
    ]
    train[50]["loss"] = float("nan")
    dice = [{"kind": "validation", "iteration": i, "dice": d} for i, d in ((40, 0.5), (80, 0.9), (119, 0.8))]
    event = {"kind": "event", "iteration": 60, "event": "rolled back", "reason": "loss is not finite"}
    source.write_text(lines(*train, *dice, event) + '{"kind": "tra')  # a line that is being written
    path = curves(tmp_path / "curves.png", source)
    assert {"rolled back (1)", "best validation Dice 0.900 at iteration 80"} <= set(texts)
    marks = pixels(path, figures.EVENTS[0])
    assert len(marks) > 100 and np.unique(marks[:, 1], return_counts=True)[1].max() > 100  # an upright line
    assert abs(np.median(marks[:, 1]) / imread(path).shape[1] - 0.54) < 0.05  # near the middle: 60 of 120
    assert path.stat().st_size < 300_000


def test_a_curve_that_goes_back_is_not_joined():
    x, y = figures._with_gaps([(0, 1.0), (10, 2.0), (5, 3.0), (15, 4.0)])
    np.testing.assert_array_equal(x, (0, 10, 5, 5, 15))
    np.testing.assert_array_equal(y, (1, 2, np.nan, 3, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "holds no loss"),
        (lines({"kind": "train", "iteration": 0, "loss": 1.0}) + "oops\n", "line 2, is not an entry"),
        (lines({"kind": "train", "iteration": 0}), "line 1, is not an entry"),
        ("[1]\n", "line 1, is not an entry"),
    ],
)
def test_metrics_that_cannot_be_drawn_are_named(tmp_path: Path, text: str | None, message: str):
    source = tmp_path / "metrics.jsonl"
    if text is not None:
        source.write_text(text)
    with pytest.raises(InputError, match=f"metrics.jsonl.*{message}"):
        curves(tmp_path / "curves.png", source)
    assert not (tmp_path / "curves.png").exists()


def test_boxes_show_each_name_with_its_cases(tmp_path: Path, texts: list[str]):
    path = box(tmp_path / "box.png", {"ours": [0.9, 0.8, 0.95], "theirs": [0.7, float("nan"), 0.72]})
    assert {"ours\nn = 3", "theirs\nn = 2 (1 undefined)", "median 0.900", "median 0.710"} <= set(texts)
    assert imread(path).std() > 0.05 and path.stat().st_size < 300_000
    for empty in ({}, {"ours": []}, {"ours": [float("nan")]}):
        with pytest.raises(ValueError, match="at least one finite score"):
            box(path, empty)


def test_a_failure_leaves_the_old_figure_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = box(tmp_path / "box.png", {"ours": [0.9]})
    before = path.read_bytes()

    def fails_half_way(figure: Figure, target: Path, **_: object) -> None:
        assert target.suffix == ".png" and target.parent == tmp_path
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fails_half_way)
    with pytest.raises(InputError, match="disk full"):
        box(path, {"ours": [0.5]})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_misuse_is_named(tmp_path: Path):
    image, reference, mask = scan()
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="share a shape"):
        overlay(path, image, reference, mask[1:], SPACING, "case")
    with pytest.raises(ValueError, match="spacing must be"):
        overlay(path, image, reference, mask, (1.0, 0.0, 1.0), "case")
    for orientation in ("RA", "RRS", "XYZ", "RASA"):
        with pytest.raises(ValueError, match="orientation must be"):
            overlay(path, image, reference, mask, SPACING, "case", orientation=orientation)
    assert not path.exists()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "mednca.figures")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"mednca\[train\]"):
        __import__("mednca.figures")
