"""A scan in, a mask out, in the scan's own grid. `Predictor.predict(volume) -> Prediction` is the protocol by
which everything is judged."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mednca import __version__
from mednca.backends import BACKENDS, choose, load
from mednca.card import model_warnings
from mednca.errors import InputError
from mednca.modelfile import ModelFile
from mednca.nca import MedNCA, Run, probabilities
from mednca.slices import PreprocessConfig, pad_to, prepare_image, restore, with_context
from mednca.volume import Volume

#: Cells that are run at a time: bounds the memory, whatever the size of the scan.
CELLS = 1 << 17


@dataclass(frozen=True)
class Prediction:
    """What a model says of one scan.

    Attributes:
        mask: uint8 (1, X, Y, Z) in the scan's grid: 0 background, else the value of a class.
        probability: float32 (K, X, Y, Z), where it was asked for.
        report: Version, model hash, seed, device, seconds, foreground volume in ml, warnings.
    """

    mask: Volume
    probability: Volume | None
    report: dict[str, Any]


@dataclass
class Predictor:
    """A model, ready to be used.

    Attributes:
        file: The model with its configuration.
        device: "cpu" or "cuda".
        seed: Names the random stream of the fire masks; the same seed gives the same mask.
        engine: Name of the backend, or "auto".
        probability: Whether predictions carry probabilities.
    """

    file: ModelFile
    device: str = "cpu"
    seed: int = 0
    engine: str = "auto"
    probability: bool = False

    def __post_init__(self) -> None:
        self._run = choose_engine(self.device, self.engine)
        self._model = MedNCA.from_weights(self.file.config.model, self.file.weights).to(self.device)
        self._hash = self.file.hash

    @property
    def labels(self) -> dict[int, str]:
        """Value in the mask -> name of the class."""
        return dict(zip(self.file.config.values, self.file.config.labels, strict=True))

    def predict(self, volume: Volume, /, *, progress: Callable[[int, int], None] | None = None) -> Prediction:
        """Scan (M, X, Y, Z) -> mask in its grid.

        Args:
            volume: The scan, in whatever orientation.
            progress: Called with slices done and slices in all.

        Raises:
            InputError: If the scan does not have the model's number of channels.
        """
        started = time.perf_counter()
        config = self.file.config
        if volume.channels != config.preprocess.modalities:
            raise InputError(
                f"this model takes scans of {config.preprocess.modalities} channel(s), got {volume.channels}"
            )
        image = prepare_image(volume, config.preprocess)
        shares = predict_slices(
            self._model,
            image,
            config.preprocess,
            seed=self.seed,
            ensemble=config.predict.ensemble,
            run=self._run,
            progress=progress,
        )
        in_grid = restore(shares, volume, config.preprocess)
        mask = decide(in_grid, config.predict.threshold, config.values)
        if config.predict.largest_component:
            mask = largest_component(mask)
        voxel_ml = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000
        voxels = {name: int((mask == k).sum()) for k, name in self.labels.items()}
        report = {
            "mednca": __version__,
            "model": self.file.card.get("name", ""),
            "model_hash": self._hash,
            "seed": self.seed,
            "device": self.device,
            "engine": next((name for name in BACKENDS if load(name) is self._run), self.engine),
            "ensemble": config.predict.ensemble,
            "shape": list(volume.shape),
            "spacing_mm": [round(float(s), 6) for s in volume.spacing],
            "foreground_voxels": voxels,
            "foreground_ml": {name: round(count * voxel_ml, 6) for name, count in voxels.items()},
            "warnings": model_warnings(self.file) + plausibility(volume, self.file.card.get("fingerprint")),
            "seconds": round(time.perf_counter() - started, 3),
        }
        return Prediction(
            volume.with_data(mask[None]), volume.with_data(in_grid) if self.probability else None, report
        )


def with_ensemble(model: ModelFile, members: int | None) -> ModelFile:
    """Model -> the same with another number of fire-mask runs to average; None keeps the model's own.

    Raises:
        InputError: If the number is below 1.
    """
    if members is None:
        return model
    if members < 1:
        raise InputError(f"ensemble must be at least 1, got {members}")
    return replace(
        model, config=replace(model.config, predict=replace(model.config.predict, ensemble=members))
    )


def choose_engine(device: str, name: str) -> Run:
    """Device and name of an engine -> the engine.

    Raises:
        InputError: If there is no such device or engine here, or the engine does not run on the device.
    """
    check_device(device)
    try:
        return choose(device, name)
    except ValueError as error:
        raise InputError(f"engine {name!r} cannot be used: {error}") from error


def check_device(device: str) -> None:
    """Raise InputError for a device that this machine or this build of torch does not have."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:NUMBER', got {device!r}")
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(
            f"device {device!r} was asked for, but torch finds no CUDA device here; use --device cpu"
        )
    if (number := int(device.partition(":")[2] or 0)) and number >= torch.cuda.device_count():
        raise InputError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()} here")


def predict_slices(
    model: MedNCA,
    image: NDArray[np.float32],
    preprocess: PreprocessConfig,
    *,
    seed: int,
    ensemble: int = 1,
    run: Run,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Prepared slices (S, M, H, W) -> probabilities of the foreground classes float32 (S, K, H, W).

    Slices are run a few at a time and their fire masks are named by their number, so that neither the memory
    nor the result depends on how many.
    """
    count, _, height, width = image.shape
    device = next(model.parameters()).device
    result = np.zeros((count, model.config.classes, height, width), np.float32)
    at_once = max(1, CELLS // (height * width))
    for start in range(0, count, at_once):
        numbers = np.arange(start, min(start + at_once, count))
        stack, inside = pad_to(
            with_context(image, numbers, preprocess.context), model.config.multiple, model.config.smallest
        )
        cells = torch.from_numpy(stack).to(device)
        items = torch.from_numpy(numbers).to(device)
        with torch.inference_mode():
            for member in range(ensemble):
                state, _ = model(cells, seed=seed + member, items=items, run=run)[-1]
                share = probabilities(model.logits(state))[..., inside[0], inside[1]]
                result[numbers] += share.float().cpu().numpy() / ensemble
        if progress:
            progress(int(numbers[-1]) + 1, count)
    return result


def decide(probability: NDArray[np.float32], threshold: float, values: tuple[int, ...]) -> NDArray[np.uint8]:
    """Probabilities (K, X, Y, Z) and the K values of the classes -> mask uint8 (X, Y, Z): the likeliest class
    where the foreground as a whole exceeds the threshold, else 0."""
    foreground = probability.sum(axis=0) > threshold
    return np.where(foreground, np.array(values, np.uint8)[probability.argmax(axis=0)], 0).astype(np.uint8)


def largest_component(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mask (X, Y, Z) -> the same with all but the largest connected piece of the foreground removed."""
    from scipy import ndimage

    pieces, count = ndimage.label(mask > 0)
    if count <= 1:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.where(pieces == sizes.argmax(), mask, 0).astype(np.uint8)


def plausibility(volume: Volume, fingerprint: dict[str, Any] | None) -> list[str]:
    """Scan and the range of the training scans -> warnings where it lies far outside (a factor of 1.5)."""
    if not fingerprint:
        return []
    canonical = volume.canonical()
    size = [n * s for n, s in zip(canonical.shape, canonical.spacing, strict=True)]
    warnings = []
    for name, values, unit in (("spacing", canonical.spacing, "mm"), ("field of view", size, "mm")):
        low, high = fingerprint["spacing_mm" if name == "spacing" else "size_mm"]
        if any(v < a / 1.5 or v > b * 1.5 for v, a, b in zip(values, low, high, strict=True)):
            got = " x ".join(f"{v:.3g}" for v in values)
            seen = " x ".join(f"{a:.3g}-{b:.3g}" for a, b in zip(low, high, strict=True))
            warnings.append(
                f"{name} {got} {unit} (axes R, A, S) lies outside what the model was trained on "
                f"({seen} {unit}); do not trust this mask unchecked"
            )
    return warnings
