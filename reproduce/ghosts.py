"""Ghosts of other kinds than TorchIO's: what bringing lines back is worth where it was not made for.

    python reproduce/ghosts.py DATA_ROOT

TorchIO's ghosting multiplies every n-th line of the k-space of the scan, which is a magnitude image, by a
number, and keeps what is negative then. A scanner reads complex lines and shows magnitudes. So the first 21
held-out cases of fold 0 of hippocampus_robust get ghosts that way too, along the axis and with the number n
of their report card, and are judged by the model of the fold with and without `predict.spectrum`, one run of
fire masks:

    lines       every n-th line multiplied by -1.5 (TorchIO's worst severity), then the magnitude
    breathing   line k multiplied by 1 + 0.9 cos(2 pi k / p + q), then the magnitude; p drawn from 2.5 to 9,
                not whole, q from a whole turn: a motion that changes what is read
    moving      line k multiplied by exp(0.8 i cos(2 pi k / p + q)), then the magnitude: a motion that
                changes the phase of lines alone

The line of frequency 0 stays. Writes reproduce/results/ghosts.json.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mednca.cases import Case
from mednca.dataset import load_scan
from mednca.metrics import dice_score
from mednca.perturb import planes, stream
from mednca.predict import Predictor
from reproduce.first_fold import SEED, data_root, opened, store, with_and_without

KINDS = ("none", "lines", "breathing", "moving")


def factors(kind: str, lines: int, random: np.random.Generator) -> NDArray[np.complex128]:
    """Kind of ghosts, number of lines and a generator -> a factor for each line, from the lowest to the
    highest frequency; 1 in the middle."""
    found = np.ones(lines, complex)
    number = int(random.integers(4, 11))
    period, turn = random.uniform(2.5, 9), random.uniform(0, 2 * np.pi)
    wave = np.cos(2 * np.pi * np.arange(lines) / period + turn)
    if kind == "lines":
        found[::number] = -1.5
    elif kind == "breathing":
        found += 0.9 * wave
    elif kind == "moving":
        found = np.exp(0.8j * wave)
    found[lines // 2] = 1
    return found


def ghosted(image: NDArray[np.float32], axis: int, by: NDArray[np.complex128]) -> NDArray[np.float32]:
    """Image, axis and a factor for each line along it -> the magnitude of what they make."""
    spectra = np.fft.fftshift(np.fft.fft(image, axis=axis), axes=axis)
    spectra *= by.reshape([-1 if other == axis else 1 for other in range(image.ndim)])
    return np.abs(np.fft.ifft(np.fft.ifftshift(spectra, axes=axis), axis=axis)).astype(np.float32)


def measure(case: Case, predictors: dict[str, Predictor]) -> dict[str, dict[str, float]]:
    """Case and predictors -> kind of ghosts -> Dice by each, and how many lines were changed."""
    scan = load_scan(case)
    image, label = scan.image, scan.label.data[0] > 0
    told = {}
    for kind in KINDS:
        random = stream(case.id, "ghosting", SEED)
        axis = planes(image)[int(random.integers(1, 3))]
        seen = image
        if kind != "none":
            by = factors(kind, image.shape[axis], random)
            seen = image.with_data(ghosted(image.data[0], axis, by)[None])
        found = {name: predictor.predict(seen) for name, predictor in predictors.items()}
        told[kind] = {
            name: round(dice_score(one.mask.data[0] > 0, label), 5) for name, one in found.items()
        } | {"lines_changed": found["with"].report["lines_changed"] or 0}
    return told


def summary(cases: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measured cases -> kind -> mean Dice by each, and in how many cases lines were changed."""
    return {
        kind: {
            **{
                name: round(statistics.fmean(case[kind][name] for case in cases.values()), 5)
                for name in ("with", "without")
            },
            "changed": sum(case[kind]["lines_changed"] > 0 for case in cases.values()),
        }
        for kind in KINDS
    }


def main() -> None:
    """Measure and write."""
    whole, chosen = opened(data_root(__doc__))
    model, predictors = with_and_without(whole, "spectrum")
    cases = {case.id: measure(case, predictors) for case in tqdm(chosen, unit="case")}
    store("ghosts", model, summary(cases), cases=cases)


if __name__ == "__main__":
    main()
