"""Configurations: frozen dataclasses, validated when made, stored complete, read back strictly.

`RunConfig` holds one of each: what the model is, how scans become slices, how it is trained. What to compute
is configuration; where (paths, device) is an argument.

A setting that came after version 1 of the model file is declared with `field(metadata={"later": True})`.
While it holds its default it is stored in no model file and is no part of a model's hash (`to_dict`), so that
models that do not use it stay the same to the bit.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mednca.coarse import check_ways
from mednca.errors import InputError
from mednca.rule import MedNCAConfig
from mednca.second_look import check_sizes
from mednca.slices import PreprocessConfig
from mednca.spectrum import Usual, of_channels

T = TypeVar("T")


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied. Probabilities and ranges; 0 switches a part off.

    Attributes:
        flip: In-plane axes (0 rows, 1 columns) that may be mirrored, of slices along the main axis. Rows of
            an axial or coronal slice run from left to right, where anatomy is nearly symmetric. Slices along
            further axes are mirrored along the same axes of the body; where that is the axis that they are
            cut along, the order of the neighbouring slices is reversed.
        rotation: Largest angle in degrees.
        scale: Largest relative change of size, common to both axes; 0.2 draws from 1/1.2 to 1.2.
        stretch: Largest relative change of one axis against the other.
        translation: Largest shift as a share of the canvas.
        gamma: Largest exponent change, drawn as exp(+-gamma).
        brightness: Largest offset, and largest relative change of contrast, in units of the image range.
        noise: Largest standard deviation of Gaussian noise, in units of the image range.
        bias: Standard deviation of the logarithm of a smooth multiplicative field.
        artefacts: Share of the slices that are taken from copies of the scans with artefacts
            (`mednca.artefacts`).
        copies: Of each scan, where there are artefacts.
    """

    flip: tuple[int, ...] = (0,)
    rotation: float = 15.0
    scale: float = 0.2
    stretch: float = 0.1
    translation: float = 0.1
    gamma: float = 0.3
    brightness: float = 0.1
    noise: float = 0.05
    bias: float = 0.15
    artefacts: float = field(default=0.0, metadata={"later": True})
    copies: int = field(default=4, metadata={"later": True})

    def __post_init__(self) -> None:
        if any(axis not in (0, 1) for axis in self.flip):
            raise ValueError(f"flip must name in-plane axes 0 and 1, got {self.flip}")
        for name, value in dataclasses.asdict(self).items():
            if name != "flip" and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {value}")
        if self.artefacts > 1 or self.copies < 1:
            raise ValueError(
                f"artefacts must be a share and copies >= 1, got {self.artefacts} and {self.copies}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        iterations: Steps of the optimiser.
        batch_size: Slices per iteration.
        canvas: Height and width of the training image, seen whole by the coarsest level; None takes the
            largest slice of the training cases, up to 256.
        patch: Side of the window that each finer level sees, in its cells; None runs it on the whole canvas.
        foreground: Share of the slices, and of the patches, that are drawn around the foreground.
        learning_rate: Peak rate of Adam.
        betas: Of Adam. The official 0.5, 0.5 are a cause of its divergence.
        schedule: "cosine" warms up and decays to zero, `cycles` times; "exponential" multiplies by 0.9999
            per iteration (official).
        warmup: Iterations of linear warm-up.
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay of the running mean of the weights, which is what is kept; 0 keeps the last weights.
        coarse_weight: Weight of the same loss on the coarser levels (deep supervision); 0 has none.
        sentinel: Whether a watch ends stuck starts with a new seed and rolls diverged runs back.
        validate_every: Iterations between validations; 0 only at the end.
        validation_cases: Cases that are looked at then (the final report has all).
        checkpoint_every: Iterations between checkpoints.
        seed: Of everything: weights, samples, augmentation, fire masks.
        precision: Of the products on the CPU. "bfloat16" is faster where the processor has AVX512_BF16; on
            others training computes in float32, and a warning says so.
            On CUDA it is bfloat16 for every model. Weights, optimiser and, of cellular automata, states are
            float32 always.
        step_range: Least and largest factor on the steps of every level, drawn anew in each iteration, evenly
            on a logarithmic scale. A rule that has seen many numbers of steps keeps its mask when it runs on.
        step_range_from: Share of the training before which the model's own steps are run: a rule learns
            faster so, and learns to last in the rest.
        whole_weight: Weight of the Dice loss of all classes together, beside that of each; for one class it
            has nothing to add.
        cycles: How many times the learning rate of the cosine falls to zero; each cycle goes on with the
            weights of the one before and has half its peak (after the warm restarts of arXiv 1608.03983).
            `step_range_from` is a share of the first one.
        init: Hash of the model whose rules the training begins with (`mednca.transfer`); "" begins with
            random weights.
    """

    iterations: int = 5000
    batch_size: int = 16
    canvas: tuple[int, int] | None = None
    patch: int | None = 32
    foreground: float = 0.7
    learning_rate: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: Literal["cosine", "exponential"] = "cosine"
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.995
    coarse_weight: float = 0.3
    sentinel: bool = True
    validate_every: int = 500
    validation_cases: int = 6
    checkpoint_every: int = 100
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = field(default="float32", metadata={"later": True})
    step_range: tuple[float, float] = field(default=(1.0, 1.0), metadata={"later": True})
    step_range_from: float = field(default=0.0, metadata={"later": True})
    whole_weight: float = field(default=0.0, metadata={"later": True})
    cycles: int = field(default=1, metadata={"later": True})
    init: str = field(default="", metadata={"later": True})

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("warmup", "clip", "coarse_weight", "whole_weight", "validate_every", "validation_cases"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.ema < 1 or not 0 <= self.foreground <= 1:
            raise ValueError(
                f"ema must be in [0, 1) and foreground in [0, 1], got {self.ema} and {self.foreground}"
            )
        if not 1 <= self.cycles <= self.iterations:
            raise ValueError(f"cycles must be from 1 to the number of iterations, got {self.cycles}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be > 0 and finite, got {self.learning_rate}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if self.canvas is not None and (len(self.canvas) != 2 or min(self.canvas) < 1):
            raise ValueError(f"canvas must be two numbers >= 1, got {self.canvas}")
        if len(self.step_range) != 2 or not 0 < self.step_range[0] <= self.step_range[1] < math.inf:
            raise ValueError(f"step_range must be two numbers > 0, the least first, got {self.step_range}")
        if not 0 <= self.step_range_from <= 1:
            raise ValueError(f"step_range_from must be in [0, 1], got {self.step_range_from}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if self.schedule not in ("cosine", "exponential"):
            raise ValueError(f"schedule must be 'cosine' or 'exponential', got {self.schedule!r}")
        if self.patch is not None and self.patch < 2:
            raise ValueError(f"patch must be >= 2, got {self.patch}")
        if not re.fullmatch(r"([0-9a-f]{16})?", self.init):
            raise ValueError(
                f"init must be the hash of a model, 16 hexadecimal digits, or '', got {self.init!r}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")


@dataclass(frozen=True)
class PredictConfig:
    """How probabilities become a mask; part of every model file.

    Attributes:
        threshold: A voxel is foreground where the probability of all foreground classes together exceeds it.
        ensemble: Runs with other fire masks whose probabilities are averaged.
        mirror: Axes of the RAS+ volume along which runs see the scan mirrored, and their answer mirrored
            back: run i along the k-th of them where bit k of i is set, so the first sees it as it is.
        largest_component: Whether only one connected piece of the foreground is kept.
        piece: Which: the largest, or the surest, which has the highest mean probability of those that are at
            least a quarter as large as the largest.
        smoothing: How often the probabilities of neighbouring slices along the main axis are averaged, with
            weights 1, 2 and 1; a slice at an end is its own neighbour there. 2 is about a Gaussian with a
            standard deviation of one slice.
        sizes: What sizes of the organ are usual (`mednca.second_look`); a scan where it has another is looked
            at again. () is measured on the training cases, None looks once.
        spectrum: What is usual of the lines of k-space of each channel (`mednca.spectrum`): the numbers of
            its `Usual`, one after the other; a scan with others is looked at with these brought back, too. ()
            is measured on the training cases, None looks at it as it is.
        coarse: The longest way (mm) from slice to slice along each axis of the body that is usual
            (`mednca.coarse`); a scan of coarser voxels is drawn on between its slices. () is measured on the
            training cases, None sees it as it is.
    """

    threshold: float = 0.5
    ensemble: int = 1
    largest_component: bool = False
    mirror: tuple[int, ...] = field(default=(), metadata={"later": True})
    smoothing: int = field(default=0, metadata={"later": True})
    piece: Literal["largest", "surest"] = field(default="largest", metadata={"later": True})
    sizes: tuple[float, ...] | None = field(default=None, metadata={"later": True})
    spectrum: tuple[float, ...] | None = field(default=None, metadata={"later": True})
    coarse: tuple[float, ...] | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.ensemble < 1:
            raise ValueError(
                f"threshold must be in (0, 1) and ensemble >= 1, got {self.threshold} and {self.ensemble}"
            )
        if not 0 <= self.smoothing <= 1000:
            raise ValueError(f"smoothing must be from 0 to 1000, got {self.smoothing}")
        if self.piece not in ("largest", "surest"):
            raise ValueError(f"piece must be 'largest' or 'surest', got {self.piece!r}")
        check_sizes(self.sizes or ())
        check_ways(self.coarse or ())
        if len(set(self.mirror)) < len(self.mirror) or not set(self.mirror) <= {0, 1, 2}:
            raise ValueError(f"mirror must be none or some of 0, 1 and 2, each once, got {self.mirror}")

    def mirrored(self, run: int) -> tuple[int, ...]:
        """Number of a run, from 0 -> the axes along which it sees the scan mirrored."""
        return tuple(axis for bit, axis in enumerate(self.mirror) if run >> bit & 1)


@dataclass(frozen=True)
class BaselineConfig:
    """A network that the cellular automata are compared with; `mednca.baselines` builds it.

    Attributes:
        name: "unet"; "seg_nca", of the shape that `RunConfig.model` gives, with depthwise perception; or
            "smp:ENCODER" for a U-Net of segmentation-models-pytorch on that encoder.
        filters: Of the first block of the U-Net; each further one has twice as many.
        depth: Blocks of the U-Net on its way down; each but the last halves the image.
        norm: Normalisation after each convolution of the U-Net.
        copies: How often the network sees the image channels, side by side; the paper's U-Net saw its grey
            image three times.
    """

    name: str = "unet"
    filters: int = 64
    depth: int = 5
    norm: Literal["none", "batch", "instance"] = "none"
    copies: int = 1

    def __post_init__(self) -> None:
        encoder = self.name.removeprefix("smp:") if self.name.startswith("smp:") else ""
        if self.name not in ("unet", "seg_nca") and not encoder:
            raise ValueError(f"name must be 'unet', 'seg_nca' or 'smp:ENCODER', got {self.name!r}")
        for name in ("filters", "copies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 2 <= self.depth <= 8:
            raise ValueError(f"depth must be from 2 to 8, got {self.depth}")
        if self.norm not in ("none", "batch", "instance"):
            raise ValueError(f"norm must be 'none', 'batch' or 'instance', got {self.norm!r}")

    @property
    def automaton(self) -> bool:
        """Whether it is a cellular automaton, which every engine of Med-NCA runs."""
        return self.name == "seg_nca"

    @property
    def multiple(self) -> int:
        """What the height and width of an image must be a multiple of."""
        return {"unet": 1 << (self.depth - 1), "seg_nca": 1}.get(self.name, 32)

    @property
    def smallest(self) -> int:
        """The least height and width of an image: 2 x 2 cells at the bottom, for norms to have a variance."""
        return 2 * self.multiple


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training, apart from the data.

    Attributes:
        labels: Name of each of the K classes.
        values: Value of each class in label files and in masks.
        merge: Whether all labels of the data are merged into one class.
        model: Shape of the cellular automaton; of a baseline its image channels and classes, on one level.
        baseline: The network that is trained instead of Med-NCA; None trains Med-NCA.
    """

    recipe: str = "native"
    labels: tuple[str, ...] = ("foreground",)
    values: tuple[int, ...] = (1,)
    merge: bool = True
    model: MedNCAConfig = field(default_factory=MedNCAConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    baseline: BaselineConfig | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if len(self.labels) != self.model.classes:
            raise ValueError(
                f"labels must name the {self.model.classes} class(es) of the model, got {self.labels}"
            )
        if self.merge and self.model.classes != 1:
            raise ValueError(f"merge makes one class of all labels, the model has {self.model.classes}")
        different = len(set(self.values)) == len(self.values) == self.model.classes
        if not different or not all(0 < value < 256 for value in self.values):
            raise ValueError(
                f"values must be {self.model.classes} different numbers from 1 to 255, got {self.values}"
            )
        if self.model.image_channels != self.preprocess.image_channels:
            raise ValueError(
                f"model has {self.model.image_channels} image channels, its preprocessing gives "
                f"{self.preprocess.image_channels}"
            )
        if self.predict.spectrum:
            of_channels(self.predict.spectrum, self.preprocess.modalities)
        if self.baseline is not None and self.model.scales != (1,):
            raise ValueError(f"scales of the model must be (1,) for a baseline, got {self.model.scales}")
        if self.baseline is not None and self.baseline.automaton and self.model.perception != "depthwise":
            raise ValueError(f"perception must be 'depthwise' for seg_nca, got {self.model.perception!r}")

    @property
    def spectra(self) -> list[Usual]:
        """What is usual of the lines of k-space of each channel; nothing where scans are seen as they are.

        Raises:
            ValueError: If it is yet to be measured.
        """
        if self.predict.spectrum == ():
            raise ValueError("what is usual of lines of k-space is measured in training; give its numbers")
        return of_channels(self.predict.spectrum, self.preprocess.modalities) if self.predict.spectrum else []

    @property
    def is_automaton(self) -> bool:
        """Whether the model is a cellular automaton, which every engine runs."""
        return self.baseline is None or self.baseline.automaton

    @property
    def multiple(self) -> int:
        """What the height and width of an image must be a multiple of."""
        return (self.baseline or self.model).multiple

    @property
    def smallest(self) -> int:
        """The least height and width of an image."""
        return (self.baseline or self.model).smallest


def to_dict(config: Any, *, complete: bool = True) -> dict[str, Any]:
    """Config -> plain dictionary, ready for JSON, the same before and after it was stored.

    A whole number given for a float becomes one, as it will when read back: hashes are taken of this.

    Args:
        config: A frozen dataclass of this module.
        complete: False leaves out later settings that hold their default, as model files and hashes do.

    Raises:
        InputError: If a value does not have the type that its field says.
    """
    config = from_dict(type(config), dataclasses.asdict(config), type(config).__name__)
    return dataclasses.asdict(config) if complete else _without_later(config)


def _without_later(config: Any) -> dict[str, Any]:
    """Config -> plain dictionary without later settings that hold their default."""
    result = {}
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if part.metadata.get("later") and value == part.default:
            continue
        result[part.name] = _without_later(value) if dataclasses.is_dataclass(value) else value
    return result


def from_dict(kind: type[T], values: Any, where: str) -> T:
    """Plain dictionary -> config of the given kind, strictly.

    Args:
        kind: A frozen dataclass of this module or of the modules that it holds.
        values: What JSON gave.
        where: Name of the file, for the error.

    Raises:
        InputError: For an unknown key, a wrong type or a value out of range.
    """
    if not isinstance(values, dict):
        raise InputError(
            f"{where}: expected a table of settings for {kind.__name__}, got {type(values).__name__}"
        )
    values = upgraded(values) if (upgraded := getattr(kind, "upgraded", None)) else values
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(hints))}")
    try:
        return kind(
            **{name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()}
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}") from error


def merged(settings: dict[str, Any], changes: Any, where: str) -> dict[str, Any]:
    """Complete settings and a part of them -> the settings with the part put in, one level of nesting."""
    if not isinstance(changes, dict):
        raise InputError(f'{where}: expected a JSON object of settings, as {{"train": {{"patch": 48}}}}')
    result = dict(settings)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = {**result[name], **value} if inner else value
    return result


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value as JSON gave it -> as the type hint wants it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is not Ellipsis and len(value) != 2:
            raise InputError(f"{where}: expected two values, got {value!r}")
        inner = arguments[0]
        return tuple(_value(inner, item, where) for item in value)
    if origin is Literal and value in arguments:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise InputError(f"{where}: expected a finite number, got {value!r}")
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
