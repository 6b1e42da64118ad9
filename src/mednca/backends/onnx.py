"""A model that `mednca export --to onnx` wrote, as something that can be judged: the same slices, fire
masks and averages as everywhere, every step computed by ONNX Runtime. Needs the extra `onnx`, and no PyTorch.

Shapes: B slices, I image channels, K classes, n channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednca import coarse, second_look, spectrum
from mednca.backends.numpy import downscale, softmax
from mednca.config import PredictConfig, RunConfig
from mednca.errors import InputError
from mednca.fire import FireKey, fire_mask
from mednca.roi import cut_out, put_back
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig, prepare_image, restore, smoothed
from mednca.volume import Volume, along_body, spacing_of_body

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """A mask, as `evaluate.Prediction` has it; probabilities are left out."""

    mask: Volume
    probability: None = None


#: A scan, its probabilities (K, X, Y, Z) and its mask (X, Y, Z).
Seen = tuple[Volume, Array, NDArray[np.uint8]]


class Exported:
    """An exported folder, ready to predict; `labels` and `hash` are those of the model that it came from.

    Raises:
        InputError: If the folder lacks a level, or was not written by `mednca export`.
    """

    def __init__(self, folder: Path, seed: int = 0, ensemble: int | None = None) -> None:
        import onnxruntime

        files = sorted(folder.glob("level_*.onnx"))
        try:
            self._sessions = [onnxruntime.InferenceSession(str(file)) for file in files]
            told = [dict(session.get_modelmeta().custom_metadata_map) for session in self._sessions]
            self.config = configuration(told)
            self.hash = f"onnx-{told[0]['model_hash']}"
            if ensemble is not None:
                predict = replace(self.config.predict, ensemble=ensemble)
                self.config = replace(self.config, predict=predict)
                self.hash += f"-{ensemble}"
        except Exception as error:  # ONNX Runtime raises classes of its own, which it does not export
            why = str(error).partition("\n")[0]
            raise InputError(f"{folder}: is no model exported by mednca ({why}); export it again") from error
        self.seed = seed

    @property
    def labels(self) -> Mapping[int, str]:
        """Value in the mask -> name of the class."""
        return dict(zip(self.config.values, self.config.labels, strict=True))

    def predict(self, volume: Volume, /) -> Found:
        """Scan (M, X, Y, Z) -> mask in its grid.

        Raises:
            InputError: If the scan does not have the model's number of channels.
        """
        config = self.config
        if volume.channels != config.preprocess.modalities:
            raise InputError(
                f"this model takes scans of {config.preprocess.modalities} channel(s), got {volume.channels}"
            )

        def look(scan: Volume, _: bool = True) -> Seen:
            average = self._average(scan)
            return scan, average, self._mask(average, scan)

        def overlap_of(seen: Seen) -> float:
            return spectrum.expected_overlap(seen[1])

        def on_body(seen: Seen) -> tuple[NDArray[np.uint8], list[float]]:
            return along_body(seen[2][None], seen[0])[0], spacing_of_body(seen[0])

        drawn = coarse.drawn(volume, config.predict.coarse)
        seen, shown, _ = spectrum.settle(drawn.volume, look, overlap_of, config.spectra)
        shares, stretch = seen[1], tuple[float, ...]()
        if config.predict.sizes:
            seen, stretch = second_look.settle(shown, seen, look, on_body, config.predict.sizes)
            shares = second_look.resampled(seen[1], drawn.volume.shape) if stretch else seen[1]
        if drawn.axis is not None:
            shares = coarse.brought_back(shares, drawn.axis, volume.shape[drawn.axis])
        elif not stretch:
            return Found(volume.with_data(seen[2][None]))
        return Found(volume.with_data(self._mask(shares, volume)[None]))

    def _average(self, volume: Volume) -> Array:
        """Scan -> probabilities (K, X, Y, Z), averaged over runs and axes."""
        from mednca.predict import predict_slices

        config, views = self.config, self.config.preprocess.views
        part = cut_out(volume, config.preprocess.roi)
        average = np.zeros((config.model.classes, *part.shape), np.float32)
        for view in views:
            shares = predict_slices(
                self._share,
                replace(config, preprocess=view),
                prepare_image(part, view),
                seed=self.seed,
                ensemble=config.predict.ensemble,
            )
            average += restore(shares, part, view) / np.float32(len(views))
        lines = along_body(average, part)
        lines[:] = smoothed(lines, views[0].axis, config.predict.smoothing)
        return put_back(average, volume, config.preprocess.roi)

    def _mask(self, average: Array, volume: Volume) -> NDArray[np.uint8]:
        """Probabilities of a scan -> its mask (X, Y, Z)."""
        from mednca.predict import decide, largest_component, surest_component

        predict = self.config.predict
        mask = decide(average, predict.threshold, self.config.values)
        if predict.largest_component:
            turned = volume.with_data(mask[None]).canonical()
            if predict.piece == "surest":
                kept = surest_component(turned.data[0], volume.with_data(average).canonical().data)
            else:
                kept = largest_component(turned.data[0])
            mask = turned.with_data(kept[None]).oriented_like(volume).data[0]
        return mask

    def _share(self, image: Array, numbers: NDArray[np.int64], seed: int) -> Array:
        """Slices (B, I, H, W), their numbers (B,) and a seed -> probabilities (B, K, H, W)."""
        model = self.config.model
        first, last = model.image_channels, model.image_channels + model.classes
        state = np.zeros((len(image), model.channels, 1, 1), np.float32)
        for level, (session, scale) in enumerate(zip(self._sessions, model.scales, strict=True)):
            sharp = np.stack([downscale(one, scale) for one in image])
            height, width = sharp.shape[2:]
            state = state.repeat(height // state.shape[2], axis=2).repeat(width // state.shape[3], axis=3)
            state[:, :first] = sharp
            rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
            for step in range(model.steps[level]):
                fires = fire_mask(
                    FireKey(seed, level), step, numbers[:, None, None], rows, columns, model.fire_rate
                )
                (state,) = session.run(["next"], {"state": state, "fires": fires})
        shares = softmax(state[:, first:last].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(shares, np.float32)


def configuration(told: list[dict[str, str]]) -> RunConfig:
    """What the files of the levels say of themselves, coarse to fine -> how to predict with them.

    The number of hidden units is not told and not needed; all else is as in the model.

    Raises:
        KeyError, ValueError: If something is missing or is not what it should be.
    """
    if not told or len(told) != int(told[0]["levels"]):
        raise ValueError(f"it has {len(told)} of its levels")
    first = told[0]

    def numbers(name: str, kind: Any = int) -> tuple[Any, ...] | None:
        return tuple(kind(word) for word in first[name].split()) if first.get(name) else None

    preprocess = PreprocessConfig(
        modalities=int(first["modalities"]),
        axes=numbers("axes") or (2,),
        context=int(first["context"]),
        normalise="slice" if first["normalise"] == "slice" else "volume",
        spacing=numbers("spacing_mm", float),
        size=numbers("size"),
        roi=numbers("roi", float),
        field=numbers("field", float),
        margin=int(first.get("margin", 0)),
    )
    model = MedNCAConfig(
        image_channels=int(first["image_channels"]),
        classes=int(first["classes"]),
        channels=int(first["channels"]),
        scales=tuple(int(level["scale"]) for level in told),
        steps=tuple(int(level["steps"]) for level in told),
        fire_rate=float(first["fire_rate"]),
    )
    predict = PredictConfig(
        float(first["threshold"]),
        int(first["ensemble"]),
        first["largest_component"] == "True",
        numbers("mirror") or (),
        int(first.get("smoothing", 0)),
        "surest" if first.get("piece") == "surest" else "largest",
        numbers("sizes", float),
        numbers("spectrum", float),
        numbers("coarse", float),
    )
    return RunConfig(
        labels=tuple(first["labels"].split(", ")),
        values=numbers("values") or (1,),
        merge=model.classes == 1,
        model=model,
        preprocess=preprocess,
        predict=predict,
    )
