"""A scan in, a mask out, in the scan's own grid. `Predictor.predict(volume) -> Prediction` is the protocol by
which everything is judged.

Two engines, `native` and `int16`, take a scan through all of this in C (`mednca.engine`). The others compute
slices, and `slices.py` leads there and back: `numpy` and, with PyTorch, `folded` and `eager`.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mednca import __version__, backends, coarse, engine, second_look, signals, spectrum
from mednca.backends import numpy as in_numpy
from mednca.card import model_warnings
from mednca.config import BaselineConfig, RunConfig
from mednca.engine.binding import UNITS
from mednca.engine.threads import Progress, in_turn
from mednca.errors import InputError
from mednca.machine import processors
from mednca.modelfile import ModelFile, to_bytes
from mednca.roi import cut_out, put_back, touches
from mednca.slices import (
    PreprocessConfig,
    mirrored,
    mirrored_plane,
    pad_to,
    prepare_image,
    restore,
    smoothed,
    with_context,
)
from mednca.trust import Expected, assess, traits
from mednca.volume import Volume, along_body, spacing_of_body

if TYPE_CHECKING:
    from torch import Tensor

    from mednca.nca import Run

#: Engines of prediction: in C with float32, in C with 16-bit integers, in NumPy, two ways in PyTorch.
ENGINES = ("native", "int16", "numpy", "folded", "eager")
IN_C = ("native", "int16")
#: Cells that are run at a time by the engines that are not in C: bounds the memory.
CELLS = 1 << 17

Array = NDArray[np.float32]
#: Mask (X, Y, Z), probabilities (K, X, Y, Z), their spread (1 or 2, X, Y, Z), and counts for the report.
Found = tuple[NDArray[np.uint8], Array, Array, dict[str, Any]]
#: Computes slices: image (B, I, H, W), numbers of the slices (B,) and a seed -> probabilities (B, K, H, W).
Share = Callable[[Array, NDArray[np.int64], int], Array]
_log = logging.getLogger(__name__)


class WatchedShare(Protocol):
    """A `Share` that lets somebody look on."""

    def __call__(
        self, image: Array, numbers: NDArray[np.int64], seed: int, watch: signals.Watch | None = None, /
    ) -> Array: ...


@dataclass(frozen=True)
class Prediction:
    """What a model says of one scan.

    Attributes:
        mask: uint8 (1, X, Y, Z) in the scan's grid: 0 background, else the value of a class.
        probability: float32 (K, X, Y, Z), where it was asked for.
        report: Version, model hash, seed, device, engine, seconds, foreground volume in ml, signals,
            trust, warnings.
        spread: float32 (1, X, Y, Z), where probabilities and signals were asked for: the standard deviation
            of the samples of the foreground's probability (`mednca.signals`). Of a model of several axes
            (2, X, Y, Z): also of its means along each axis.
        look: The look at the scan that it comes from; of a second one (`mednca.second_look`) on a grid of its
            own.
    """

    mask: Volume
    probability: Volume | None
    report: dict[str, Any]
    spread: Volume | None = None
    look: Look | None = None


@dataclass(frozen=True)
class Look:
    """What a model says of a scan that it has looked at once, on the grid that it was shown.

    Attributes:
        volume: The scan.
        mask: uint8 (X, Y, Z).
        probability: float32 (K, X, Y, Z), or (0, X, Y, Z) where nobody wanted it.
        spread: As in `Prediction`, without a volume; (0, X, Y, Z) where nobody wanted it.
        told: Counts and signals for the report.
        largest: Share of the foreground that was in the piece that is kept; None where all are.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    probability: Array
    spread: Array
    told: dict[str, Any]
    largest: float | None

    def on_body(self) -> tuple[NDArray[np.uint8], list[float]]:
        """Its mask and spacing (mm) on axes as close to RAS+ as they can be."""
        return along_body(self.mask[None], self.volume)[0], spacing_of_body(self.volume)

    def overlap(self) -> float:
        """How right the mask is by its own probabilities, which must be there."""
        return spectrum.expected_overlap(self.probability)

    def traits(self) -> traits.Traits:
        """Its traits (`mednca.trust.traits`); probabilities must be there."""
        (mask, spacing), largest = self.on_body(), self.largest
        if largest is None and mask.any():
            largest = np.count_nonzero(largest_component(np.ascontiguousarray(mask))) / np.count_nonzero(mask)
        return traits.measure(
            along_body(self.volume.data, self.volume),
            mask,
            along_body(self.probability, self.volume),
            along_body(self.spread, self.volume),
            spacing=spacing,
            signals=self.told["signals"],
            largest=largest,
        )


@dataclass
class Predictor:
    """A model, ready to be used.

    Attributes:
        file: The model with its configuration.
        device: "cpu" or "cuda".
        seed: Names the random stream of the fire masks; the same seed gives the same mask.
        engine: One of `ENGINES`, or "auto"; once made, the one that is used.
        probability: Whether predictions carry probabilities.
        threads: Of the engines in C; None takes as many as this process has processors. The result does not
            depend on it.
        gate: Of the engines in C: finer levels are computed only within so many pixels of the coarse
            foreground. None computes them everywhere.
        patience: A level of a slice ends when no pixel of its mask has changed for so many steps
            (`mednca.signals`). None runs all steps.
        signals: Whether the report tells what the model's answer looks like from inside (`mednca.signals`).
            Mask and probabilities are the same to the bit.
        trust: Whether the report tells what Dice is to be expected, of a model with a trust score
            (`mednca.trust`) that is run as it was calibrated: see `without_trust`. Needs signals.
        saturated: Numbers so far that did not fit the range of `int16`.

    Raises:
        InputError: If engine, device or model cannot be used so.
    """

    file: ModelFile
    device: str = "cpu"
    seed: int = 0
    engine: str = "auto"
    probability: bool = False
    threads: int | None = None
    gate: int | None = None
    patience: int | None = None
    signals: bool = True
    trust: bool = True
    saturated: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.engine = choose_engine(self.device, self.engine, self.file.config.baseline)
        for name, value, least in (("threads", self.threads, 1), ("gate", self.gate, 0)):
            if value is not None and self.engine not in IN_C:
                raise InputError(f"{name} is for the engines {' and '.join(IN_C)}, this one is {self.engine}")
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be at least 1 step, got {self.patience}")
        if self.patience is not None and not self.file.config.is_automaton:
            raise InputError("patience is for cellular automata, this model is none; leave it out")
        self._hash = self.file.hash
        if self.engine in IN_C:
            self.threads = self.threads or processors()
            self._model = open_in_c(
                self.file,
                self.engine,
                seed=self.seed,
                gate=self.gate,
                patience=self.patience,
                signals=self.signals,
            )
        else:
            self.share = share_with(self.file, self.engine, self.device)

    @property
    def without_trust(self) -> str:
        """Why no Dice can be expected of its masks; "" where one can."""
        score = self.file.trust
        if score is None:
            return "the model has no trust score; 'mednca trust' makes one"
        if self.gate is not None or self.patience is not None:
            option = "gate" if self.gate is not None else "anytime"
            return f"its trust score was made without {option}; leave that out"
        members = self.file.config.predict.ensemble
        if members != score.ensemble:
            return f"its trust score was made with an ensemble of {score.ensemble}, this is one of {members}"
        return ""

    @property
    def _judges(self) -> bool:
        return self.trust and self.signals and not self.without_trust

    @property
    def labels(self) -> dict[int, str]:
        """Value in the mask -> name of the class."""
        return dict(zip(self.file.config.values, self.file.config.labels, strict=True))

    def predict(self, volume: Volume, /, *, progress: Progress | None = None) -> Prediction:
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
        drawn = coarse.drawn(volume, config.predict.coarse)
        seen, stretch, lines = self._looks(drawn.volume, progress, shares=drawn.axis is not None)
        look = self._brought_back(seen, drawn.volume) if stretch else seen
        if drawn.axis is not None:
            look = self._brought_back(look, volume, drawn.axis)
        mask, told, roi = look.mask, look.told, config.preprocess.roi
        voxel_ml = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000
        voxels = {name: int((mask == k).sum()) for k, name in self.labels.items()}
        report = {
            "mednca": __version__,
            "model": self.file.card.get("name", ""),
            "model_hash": self._hash,
            "seed": self.seed,
            "device": self.device,
            "engine": self.engine,
            "instructions": self._model.facts.instructions.decode() if self.engine in IN_C else None,
            "threads": self.threads,
            "gate": self.gate,
            "patience": self.patience,
            "ensemble": config.predict.ensemble,
            "shape": list(volume.shape),
            "spacing_mm": [round(float(s), 6) for s in volume.spacing],
            "foreground_voxels": voxels,
            "foreground_ml": {name: round(count * voxel_ml, 6) for name, count in voxels.items()},
            **told,
            "largest_piece": look.largest,
            "stretched": [round(factor, 4) for factor in stretch] or None,
            "lines_changed": lines or None,
            "drawn_on": drawn.slices or None,
            "trust": None,
        }
        if self._judges:
            assert self.file.trust is not None
            report["trust"] = self._expected(seen).told(self.file.trust.coverage)
        report["seconds"] = round(time.perf_counter() - started, 3)
        told_of = model_warnings(self.file) + plausibility(volume, self.file.card.get("fingerprint"))
        if touches(mask, volume, roi):
            told_of.append(
                "the mask reaches the border of the part of the scan that the model looks at; the organ may "
                "go on beyond it"
            )
        if stretch:
            told_of.append(of_size(stretch))
        if lines:
            told_of.append(spectrum.told_of(lines))
        if drawn.slices:
            told_of.append(coarse.told_of(drawn, volume))
        report["warnings"] = told_of + trouble(told)
        return Prediction(
            volume.with_data(mask[None]),
            volume.with_data(look.probability) if self.probability else None,
            report,
            volume.with_data(look.spread) if self.probability and self.signals else None,
            seen,
        )

    def _looks(
        self, volume: Volume, progress: Progress | None, *, shares: bool
    ) -> tuple[Look, tuple[float, ...], int]:
        """Scan -> the look at it that counts, with probabilities where they are wanted; by what each of its
        axes was stretched for that, as long as it was (`mednca.second_look`); how many of its lines were
        changed for that (`mednca.spectrum`)."""
        config = self.file.config

        def again(other: Volume, compared: bool = True) -> Look:
            return self._look(other, progress, shares=shares or compared)

        seen, shown, lines = spectrum.settle(volume, again, Look.overlap, config.spectra)
        if not config.predict.sizes:
            return seen, (), lines
        return *second_look.settle(shown, seen, again, Look.on_body, config.predict.sizes), lines

    def _look(self, volume: Volume, progress: Progress | None, *, shares: bool = False) -> Look:
        """Scan -> what one run of the model, or of its ensemble, says of it; with probabilities also where
        nobody else wants them."""
        if self.engine in IN_C:
            mask, probability, spread, told = self._in_c(volume, progress, shares=shares)
        else:
            mask, probability, spread, told = self._in_slices(volume, progress)
        return Look(volume, mask, probability, spread, told, self._one_piece(mask, probability, volume))

    def _one_piece(self, mask: NDArray[np.uint8], probability: Array, volume: Volume) -> float | None:
        """Mask (X, Y, Z), with all but one of its pieces removed in place where the model wants that -> the
        share that stayed; None where it does not."""
        predict = self.file.config.predict
        if not predict.largest_component:
            return None
        body = along_body(mask[None], volume)[0]
        before = np.count_nonzero(body)
        if predict.piece == "surest":
            body[...] = surest_component(body, along_body(probability, volume))
        else:
            body[...] = largest_component(body)
        return round(np.count_nonzero(body) / before, 6) if before else 1.0

    def _brought_back(self, look: Look, volume: Volume, axis: int | None = None) -> Look:
        """A look at a scan that was stretched, or drawn on along an axis, and the scan -> the same on the
        scan's own grid."""
        predict = self.file.config.predict

        def back(data: Array) -> Array:
            if axis is None:
                return second_look.resampled(data, volume.shape)
            return coarse.brought_back(data, axis, volume.shape[axis])

        probability = back(look.probability)
        mask = decide(probability, predict.threshold, self.file.config.values)
        self._one_piece(mask, probability, volume)
        return replace(look, volume=volume, mask=mask, probability=probability, spread=back(look.spread))

    def _expected(self, look: Look) -> Expected:
        """Look at a scan -> what is to be expected of its mask."""
        assert self.file.trust is not None
        if look.told["not_finite"]:
            return Expected(0.0, 0.0, 1.0, ("the model gave numbers that are not finite",), True)
        return assess(self.file.trust, look.traits())

    def _in_c(self, volume: Volume, progress: Progress | None, *, shares: bool) -> Found:
        """Scan -> mask, probabilities if wanted, and counts, all in C and in the grid of the scan."""
        assert self.threads is not None
        mask = np.zeros((1, *volume.shape), np.uint8)
        surest = self.file.config.predict.largest_component and self.file.config.predict.piece == "surest"
        wanted = self.probability or self._judges or surest or shares
        classes = self.file.config.model.classes if wanted else 0
        probability = np.zeros((classes, *volume.shape), np.float32)
        views = len(self.file.config.preprocess.views)
        several = 1 + (views > 1) if (self.probability and self.signals) or self._judges else 0
        spread = np.zeros((several, *volume.shape), np.float32)
        counts = self._model.segment(
            along_body(readable(volume.data), volume),
            along_body(mask, volume)[0],
            along_body(probability, volume) if classes else None,
            along_body(spread, volume) if several else None,
            spacing=spacing_of_body(volume),
            threads=self.threads,
            progress=progress,
        )
        self.saturated += counts.saturated
        computed = round(counts.cells / max(1, counts.all), 4)
        told = {
            "computed": computed,
            "steps_run": counts.steps,
            "steps_all": counts.all,
            "saturated": counts.saturated,
            "not_finite": counts.broken,
        }
        sums = (counts.mean / UNITS, counts.spread / UNITS, counts.axes / UNITS)
        sure = self.signals and not counts.broken
        told["signals"] = signals.told(self.file.config, counts, *sums) if sure else None
        return mask[0], probability, spread, told

    def _in_slices(self, volume: Volume, progress: Progress | None) -> Found:
        """The same, by whatever computes slices."""
        config, whole = self.file.config, volume
        views, roi = config.preprocess.views, config.preprocess.roi
        volume = cut_out(whole, roi)
        average = np.zeros((config.model.classes, *volume.shape), np.float32)
        not_finite = 0
        shape = volume.canonical().shape
        tell = in_turn(progress, [shape[view.axis] for view in views])
        counts, spread = signals.Counts(), signals.Spread()
        for view, told in zip(views, tell, strict=True):
            image = prepare_image(volume, view)
            lookout = Lookout(self, counts, image.shape)
            shares = predict_slices(
                lookout,
                replace(config, preprocess=view),
                image,
                seed=self.seed,
                ensemble=config.predict.ensemble,
                progress=told,
            )
            not_finite += int((~np.isfinite(shares)).sum())
            average += restore(shares, volume, view) / np.float32(len(views))
            if self.signals:
                spread.add(restore(lookout.in_place(view), volume, view))
        lines = along_body(average, volume)
        lines[:] = smoothed(lines, views[0].axis, config.predict.smoothing)
        mask = decide(average, config.predict.threshold, config.values)
        steps = {"steps_run": counts.steps or None, "steps_all": counts.all or None}
        facts: dict[str, Any] = {
            "computed": None,
            **steps,
            "saturated": None,
            "not_finite": not_finite,
            "signals": None,
        }
        apart = spread.deviations() if self.signals else np.zeros((0, *volume.shape), np.float32)
        if self.signals and not not_finite:
            sums = [float(part.sum(dtype=float)) for part in (average, apart[0], apart[-1])]
            facts["signals"] = signals.told(config, counts, *sums)
        mask, average, apart = (put_back(part, whole, roi) for part in (mask[None], average, apart))
        return mask[0], average, apart, facts


class Lookout:
    """Computes slices along one axis as a predictor does, and looks on.

    Attributes:
        samples: float32 (slices, S, H, W): the foreground's probability in each sample.
    """

    def __init__(self, predictor: Predictor, counts: signals.Counts, shape: tuple[int, ...]) -> None:
        """Predictor, counts to add to, shape (slices, M, H, W) of the image -> what computes its slices."""
        config = predictor.file.config
        axes, runs = len(config.preprocess.views), config.predict.ensemble
        self._predictor, self._counts, self._alone = predictor, counts, axes * runs == 1
        of_all = signals.samples(config) // axes if predictor.signals else 0
        self.samples = np.zeros((shape[0], of_all, *shape[2:]), np.float32)

    def __call__(self, image: Array, numbers: NDArray[np.int64], seed: int) -> Array:
        """Padded slices (B, I, H, W), their numbers (B,) and a seed -> probabilities (B, K, H, W)."""
        if self._predictor.engine != "numpy":
            return self._run(image, numbers, seed)
        parts = [self._run(image[i : i + 1], numbers[i : i + 1], seed) for i in range(len(numbers))]
        return np.concatenate(parts)

    def in_place(self, view: PreprocessConfig) -> Array:
        """The view that was computed -> the samples, those of mirrored runs mirrored back."""
        if self._alone:
            return self.samples
        predict = self._predictor.file.config.predict
        runs = []
        for run in range(self.samples.shape[1]):
            axes = predict.mirrored(run)
            sample = mirrored_plane(self.samples[:, run], view, axes)
            runs.append(sample[::-1] if view.axis in axes else sample)
        return np.stack(runs, axis=1)

    def _run(self, image: Array, numbers: NDArray[np.int64], seed: int) -> Array:
        of, config = self._predictor, self._predictor.file.config
        tops = [(a - b) // 2 for a, b in zip(image.shape[2:], self.samples.shape[2:], strict=True)]
        rows, columns = (slice(at, at + n) for at, n in zip(tops, self.samples.shape[2:], strict=True))
        watch = signals.Watch(
            config.model,
            config.predict.threshold,
            (rows, columns),
            self._counts,
            patience=of.patience,
            signals=of.signals,
            samples=of.signals and self._alone,
        )
        found = of.share(image, numbers, seed, watch if config.is_automaton else None)
        if of.signals:
            taken = [*watch.taken, found[..., rows, columns].sum(axis=1)]
            first = (seed - of.seed) * len(taken)
            self.samples[numbers, first : first + len(taken)] = np.stack(taken, axis=1)
        return found


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


# ---- Engines ----


def choose_engine(device: str, name: str = "auto", baseline: BaselineConfig | None = None) -> str:
    """Device, name of an engine of prediction, and what is predicted with where it is not Med-NCA -> the
    engine's name; "auto" takes the fastest that works.

    That is `native` on the CPU, or `numpy`, with a warning in the log, where the C library is missing, and
    `folded` on every other device; for a baseline that is no cellular automaton `eager`, in float32.

    Raises:
        InputError: If there is no such device or engine here, or the engine does not run on the device or
            does not run the baseline.
    """
    check_device(device)
    if name not in ("auto", *ENGINES):
        raise InputError(f"engine must be auto or one of {', '.join(ENGINES)}, got {name!r}")
    if baseline is not None and not baseline.automaton:
        if name not in ("auto", "eager"):
            raise InputError(
                f"the engine {name!r} runs cellular automata, this model is the baseline {baseline.name!r}; "
                "use 'auto' or 'eager'"
            )
        return "eager"
    if device != "cpu":
        if name in ("native", "int16", "numpy"):
            raise InputError(f"the engine {name!r} runs on the CPU only, got device {device!r}; use 'auto'")
        return "folded" if name == "auto" else name
    if name in ("auto", "native") and engine.available():
        return "native"
    if name in IN_C and not engine.available():
        raise InputError(f"the engine {name!r} cannot be used: {engine.why_not()}")
    if name == "auto":
        _warn_once(engine.why_not())
        return "numpy"
    return name


@functools.cache
def _warn_once(why: str) -> None:
    _log.warning("prediction runs in NumPy, about three times as slow as in C: %s", why)


def check_device(device: str) -> None:
    """Raise InputError for a device that this machine or this build of torch does not have."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:NUMBER', got {device!r}")
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"device {device!r} was asked for, but torch finds no CUDA device here; use --device cpu"
        )
    if (number := int(device.partition(":")[2] or 0)) and number >= torch.cuda.device_count():
        raise InputError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()} here")


def open_in_c(file: ModelFile, name: str, **options: Any) -> engine.Model:
    """Model and name of an engine in C -> the model, opened by it with options of `engine.Model`.

    Raises:
        InputError: If the engine cannot run the model.
    """
    numbers = "int16" if name == "int16" else "fp32"
    try:
        return engine.Model(to_bytes(file), numbers=numbers, **options)
    except InputError as error:
        model = file.card.get("name") or file.hash
        raise InputError(f"the engine {name!r} cannot run the model {model}: {error}") from error


def share_with(file: ModelFile, name: str, device: str = "cpu") -> WatchedShare:
    """Model and name of an engine that is not in C -> how it computes slices."""
    if name == "numpy":
        rules = in_numpy.fold(file.config.model, file.weights)
        return functools.partial(in_numpy.probabilities, file.config.model, rules)
    return share_with_torch(file, backends.load(name), device)


def share_with_torch(file: ModelFile, run: Run, device: str = "cpu") -> WatchedShare:
    """Model and a way to run a rule in PyTorch -> how it computes slices. A watch is for `run_eager` and
    `run_folded`."""
    import torch

    from mednca.baselines import from_weights
    from mednca.nca import probabilities

    model = from_weights(file.config, file.weights).to(device)

    def share(
        image: Array, numbers: NDArray[np.int64], seed: int, watch: signals.Watch | None = None
    ) -> Array:
        going = torch.ones(len(image), 1, 1, dtype=torch.bool, device=device)

        def look(level: int, done: int, state: Tensor) -> Tensor:
            assert watch is not None
            if watch.looks(level, done):
                logits = model.logits(state).permute(0, 2, 3, 1).float().cpu().numpy()
                going[:] = torch.from_numpy(watch(level, done, logits)).view(-1, 1, 1)
            return going

        watched: Any = run  # those that the docstring names take one more argument
        chosen = run if watch is None else functools.partial(watched, watch=look)
        try:
            cells, items = torch.from_numpy(image).to(device), torch.from_numpy(numbers).to(device)
            with torch.inference_mode():
                state, _ = model(cells, seed=seed, items=items, run=chosen)[-1]
                found: Array = probabilities(model.logits(state)).float().cpu().numpy()
            return found
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    return share


# ---- Slices ----


def predict_slices(
    share: Share,
    config: RunConfig,
    image: Array,
    *,
    seed: int,
    ensemble: int = 1,
    progress: Progress | None = None,
) -> Array:
    """Prepared slices (S, M, H, W) -> probabilities of the foreground classes float32 (S, K, H, W).

    Slices are run a few at a time and their fire masks are named by their number, so that neither the memory
    nor the result depends on how many.
    """
    count, _, height, width = image.shape
    result = np.zeros((count, config.model.classes, height, width), np.float32)
    at_once = max(1, CELLS // (height * width))
    for start in range(0, count, at_once):
        numbers = np.arange(start, min(start + at_once, count))
        seen = with_context(image, numbers, config.preprocess.context)
        for member in range(ensemble):
            axes = config.predict.mirrored(member)
            turned = mirrored(seen, config.preprocess, axes)
            stack, inside = pad_to(turned, config.multiple, config.smallest, config.preprocess.margin)
            named = count - 1 - numbers if config.preprocess.axis in axes else numbers
            found = share(stack, named, seed + member)[..., inside[0], inside[1]]
            result[numbers] += mirrored_plane(found, config.preprocess, axes) / ensemble
        if progress:
            progress(int(numbers[-1]) + 1, count)
    return result


def decide(probability: Array, threshold: float, values: tuple[int, ...]) -> NDArray[np.uint8]:
    """Probabilities (K, X, Y, Z) and the K values of the classes -> mask uint8 (X, Y, Z): the likeliest class
    where the foreground as a whole exceeds the threshold, else 0."""
    foreground = probability.sum(axis=0) > threshold
    return np.where(foreground, np.array(values, np.uint8)[probability.argmax(axis=0)], 0).astype(np.uint8)


# ---- Arrays ----


def readable(data: NDArray[Any]) -> NDArray[Any]:
    """Array of any number type -> the same, or float32 where the C library does not know the type."""
    known = data.dtype.kind + str(data.dtype.itemsize) in (
        "b1",
        "i1",
        "u1",
        "i2",
        "u2",
        "i4",
        "u4",
        "f4",
        "f8",
    )
    return data if known and data.dtype.isnative else data.astype(np.float32)


def largest_component(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mask (X, Y, Z) -> the same with all but the largest piece of its foreground removed.

    Voxels are joined by their faces; of two pieces of one size the one with the first voxel stays.
    """
    if not engine.available():
        return in_numpy.one_piece(mask)
    found = mask.copy()
    engine.largest_component(found)
    return found


def surest_component(mask: NDArray[np.uint8], probability: Array) -> NDArray[np.uint8]:
    """Mask (X, Y, Z) and probabilities (K, X, Y, Z) -> the mask with all but its surest piece removed: that
    of the highest mean probability, of those that are at least a quarter as large as the largest."""
    if not engine.available():
        return in_numpy.one_piece(mask, probability.sum(axis=0, dtype=float))
    found = mask.copy()
    engine.surest_component(found, np.ascontiguousarray(probability, np.float32))
    return found


# ---- Warnings ----


def trouble(told: dict[str, Any]) -> list[str]:
    """Counts of a prediction -> warnings of what went wrong while it was computed."""
    warnings = []
    if told["not_finite"]:
        warnings.append("the model gave numbers that are not finite for this scan; do not use this mask")
    return warnings + saturation(told["saturated"] or 0)


def saturation(count: int) -> list[str]:
    """Numbers that did not fit the range of `int16` -> a warning, or none for none."""
    if not count:
        return []
    return [
        f"{count} numbers did not fit the range that the model was calibrated for and were cut to it; "
        "compare with --engine native"
    ]


def of_size(stretch: Sequence[float]) -> str:
    """By what each axis of a scan was stretched -> the warning."""
    by = " x ".join(f"{factor:.2g}" for factor in stretch)
    return (
        f"the organ is larger or smaller here than in any training scan; the scan was stretched by {by} to "
        "its usual size and looked at again; check that the header tells the true spacing"
    )


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
