"""Traits mean what they say, whatever the scale of the intensities and however the scan is turned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mednca.trust import traits

SPACING = (1.0, 2.0, 3.0)
SIGNALS = {"nqm": 0.1, "samples": 9, "axes": 0.05, "flips": 0.01, "levels": 0.9}


def box() -> NDArray[np.uint8]:
    """A mask of 4 x 6 x 2 voxels in 16 x 16 x 8."""
    mask = np.zeros((16, 16, 8), np.uint8)
    mask[2:6, 5:11, 3:5] = 1
    return mask


def image(seed: int = 0) -> NDArray[Any]:
    """Brighter in the box, with a little noise."""
    random = np.random.default_rng(seed)
    return (100.0 + 50 * (box() > 0) + random.normal(0, 5, box().shape))[None]


def measured(
    data: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    probability: NDArray[Any] | None = None,
    spread: NDArray[Any] | None = None,
    **more: Any,
) -> traits.Traits:
    """The box, or something else -> its traits."""
    mask = box() if mask is None else mask
    probability = mask.astype(np.float32)[None] if probability is None else probability
    options: dict[str, Any] = {"spacing": SPACING, "signals": SIGNALS, "largest": 1.0} | more
    spread = np.zeros((1, *mask.shape), np.float32) if spread is None else spread
    return traits.measure(image() if data is None else data, mask, probability, spread, **options)


def test_a_box_has_its_size_and_place() -> None:
    found = measured()
    assert found["volume"] == pytest.approx(4 * 6 * 2 * 6 / 1000)
    assert [found[f"extent_{axis}"] for axis in "ras"] == [4, 12, 6]
    assert [found[f"size_{axis}"] for axis in "ras"] == [16, 32, 24]
    assert [found[f"position_{axis}"] for axis in "ras"] == [4 / 16, 8 / 16, 4 / 8]
    assert found["voxel"] == pytest.approx(6 ** (1 / 3), rel=1e-5)
    area = 2 * (12 * 6 + 4 * 6 + 4 * 12)
    assert found["roughness"] == pytest.approx(area / (4 * 12 * 6) ** (2 / 3), rel=1e-5)
    assert found["elongation"] == pytest.approx(12 / 4, rel=1e-5)  # spread of a box goes with its length
    assert found["border"] == 0 and found["largest"] == 1 and found["nqm"] == 0.1 and found["levels"] == 0.9


def test_a_mask_at_the_edge_is_told() -> None:
    mask = np.zeros((16, 16, 8), np.uint8)
    mask[0:2, 5:9, 3:5] = 1
    assert measured(mask=mask)["border"] == 0.5
    flat = mask[:, :, 3:4]
    told = measured(image()[..., 3:4], flat)
    assert told["border"] == 0.5  # the ends of an axis of one voxel are no edge
    assert told["noise_s"] is None and told["noise_r"] is not None


def test_sureness_is_that_of_the_probabilities() -> None:
    half = np.where(box() > 0, 0.5, 0.0).astype(np.float32)[None]
    found = measured(probability=half)
    assert found["entropy"] == pytest.approx(1) and found["confidence"] == pytest.approx(0.5)
    assert found["overlap"] == pytest.approx(2 * 0.5 / 1.5, rel=1e-5)
    certain = measured()
    assert certain["entropy"] == 0 and certain["confidence"] == 1 and certain["overlap"] == 1


def test_how_sure_the_least_sure_part_of_a_mask_is() -> None:
    shares = np.zeros(box().shape)
    shares[box() > 0] = np.linspace(0.5, 1.0, int(box().sum()))
    found = measured(probability=shares[None])
    assert [found[f"sure_{percent}"] for percent in (5, 10, 25, 50)] == pytest.approx(
        [0.525, 0.55, 0.625, 0.75]
    )


def test_each_end_has_its_own_disagreement() -> None:
    """Four voxels along R, of which one is a fifth and more; six along A, of which two are; two along S."""
    spread = np.zeros((2, *box().shape), np.float32)
    spread[0] = 9  # of the samples: that of the axes counts, where there are several
    spread[1, 5] = 0.2 * (box()[5] > 0)
    spread[1, :, 5:7] += 0.1 * (box()[:, 5:7] > 0)
    found = measured(spread=spread)
    told = [found[f"apart_{end}"] for ends in traits.ENDS for end in ends]
    third = 0.1 / 3
    wanted = [third, 0.2 + third, 0.15, 0.05, 0.05 + third, 0.05 + third]
    assert told == pytest.approx(wanted, rel=1e-5)
    assert measured(spread=spread[1:])["apart_front"] == pytest.approx(0.05)


def test_what_has_no_ends_has_no_disagreement_there() -> None:
    flat = box().copy()
    flat[:, :, 4] = 0
    assert measured(mask=flat)["apart_lower"] is None and measured(mask=flat)["apart_left"] == 0
    without = measured(spread=np.zeros((0, *box().shape), np.float32))
    assert all(without[f"apart_{end}"] is None for ends in traits.ENDS for end in ends)


def test_the_steepness_is_that_for_each_mm() -> None:
    """A ramp along the axis A, with voxels of 2 mm; smoothing leaves it as it is."""
    ramp = np.broadcast_to(np.arange(16.0)[None, :, None], box().shape)[None]
    for data in (ramp, 7 - 3 * ramp):
        found = measured(data)
        for name in ("within_10", "within_90", "around_90"):
            assert found[name] == pytest.approx(1 / 15 / 2, rel=1e-5), name


def test_a_blurred_edge_is_less_steep() -> None:
    edge = 100.0 * (box() > 0)
    blurred = (2 * edge + np.roll(edge, 1, 1) + np.roll(edge, -1, 1)) / 4
    assert measured(blurred[None])["around_90"] < 0.95 * measured(edge[None])["around_90"]


def test_two_classes_count_together() -> None:
    parts = np.stack([box() * 0.5, box() * 0.4]).astype(np.float32)
    assert measured(probability=parts)["confidence"] == pytest.approx(0.9, rel=1e-5)


def test_brightness_and_gain_do_not_matter() -> None:
    first, second = measured(), measured(image() * 7 - 300)
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_what_is_in_the_mask_is_held_against_what_is_around() -> None:
    found = measured()
    assert found["contrast"] > 0.5 and found["inside"] > 0.6
    assert measured(-image())["contrast"] == pytest.approx(-found["contrast"], rel=1e-3)


def test_noise_blur_and_shade_are_seen() -> None:
    random = np.random.default_rng(1)
    steps = np.linspace(0, 1, 16)
    smooth = np.broadcast_to(np.sin(6 * steps)[:, None, None] + steps[None, :, None], (16, 16, 8))[None]
    noisy = smooth + random.normal(0, 0.3, smooth.shape)
    assert measured(noisy)["noise_r"] > 2 * measured(smooth)["noise_r"]
    assert measured(noisy)["edges"] > measured(smooth)["edges"]
    shaded = image() + 200 * steps[None, :, None, None]
    assert measured(shaded)["uneven"] > 3 * measured()["uneven"]
    padded = np.pad(image(), ((0, 0), (8, 8), (0, 0), (0, 0)))
    mask = np.pad(box(), ((8, 8), (0, 0), (0, 0)))
    assert measured(padded, mask)["black"] > 0.45 > 0.1 > measured()["black"]


def test_an_empty_mask_has_only_the_traits_of_the_scan() -> None:
    found = measured(mask=np.zeros_like(box()))
    for name, value in found.items():
        if traits.find(name).kind == "mask":
            assert value is None, name
        if traits.find(name).kind == "scan":
            assert value is not None, name
    assert found["levels"] is None and found["entropy"] is None


def test_a_constant_image_has_no_intensities_and_raises_nothing() -> None:
    found = measured(np.full((1, 16, 16, 8), 7))
    assert all(found[trait.name] is None for trait in traits.INTENSITIES)
    assert found["volume"] is not None


def test_channels_are_told_apart() -> None:
    two = measured(np.concatenate([image(), -image()]))
    assert two["contrast.1"] == pytest.approx(-two["contrast"], rel=1e-3)
    assert list(two) == traits.names(2) and traits.find("contrast.1") is traits.find("contrast")
    for name in ("volume.1", "contrast.x", "beauty"):
        with pytest.raises(KeyError):
            traits.find(name)


def test_no_signals_are_no_traits() -> None:
    found = measured(signals=None)
    assert found["nqm"] is None and found["flips"] is None and found["volume"] is not None


def test_a_large_scan_is_judged_by_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured()
    monkeypatch.setattr(traits, "VOXELS", 512)
    part = measured()
    for name in ("median", "edges", "noise_r", "uneven"):
        assert part[name] == pytest.approx(whole[name], rel=0.5, abs=0.1)
    assert part["contrast"] == pytest.approx(whole["contrast"], rel=0.2)


def test_steepness_is_smoothed_over_three_voxels() -> None:
    """One bright plane becomes 1/4, 1/2, 1/4 along the axis A; the other axes are even."""
    plane = np.zeros((3, 9, 3))
    plane[:, 4] = 1
    for step in (1.0, 2.0):
        found = traits._steepness(plane, (1.0, step, 1.0), 1)[1, :, 1] * step
        assert found == pytest.approx([0, 0, 0.125, 0.25, 0, 0.25, 0.125, 0, 0])


@pytest.mark.parametrize("every", [2, 3, 5])
def test_steepness_of_some_slices_is_that_of_all_there(every: int) -> None:
    data = np.random.default_rng(0).normal(size=(11, 6, 5))
    some, whole = (traits._steepness(data, SPACING, step) for step in (every, 1))
    assert np.array_equal(some, whole[::every])


def test_steepness_is_told_of_every_so_manieth_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    data = random.normal(size=(1, *box().shape))
    whole = measured(data)
    monkeypatch.setattr(traits, "VOXELS", 200)  # the box around the mask has 8 x 10 x 6
    part = measured(data)
    for name in ("within_10", "within_90", "around_90"):
        assert part[name] != whole[name]
        assert part[name] == pytest.approx(whole[name], rel=0.5)
