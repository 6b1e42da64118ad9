"""Recipes: functions of the data's fingerprint that return a complete configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

from mednca.config import AugmentConfig, BaselineConfig, PredictConfig, RunConfig, TrainConfig
from mednca.errors import InputError
from mednca.fingerprint import Fingerprint as Fingerprint
from mednca.fingerprint import slice_axis
from mednca.harden import hardened
from mednca.plan import BUDGETS, Plan, plan
from mednca.rule import MedNCAConfig
from mednca.slices import PreprocessConfig, plane_axes


def native(data: Fingerprint) -> RunConfig:
    """What the planner chooses with the budget "best", for scans like those of training. At most 70,016
    parameters, as the paper's model."""
    return plan(data).config


def robust(data: Fingerprint) -> RunConfig:
    """Ours and the default: what the planner chooses, prepared for scans that are not like those of training
    (`mednca.harden`)."""
    return hardened(plan(data)).config


def own_grid(data: Fingerprint) -> RunConfig:
    """The scan's own geometry, neighbouring slices as context, augmentation, and the paper's rule with 16
    steps."""
    volumetric = min(data.shape) > 1
    axis = slice_axis(data)
    rows, columns = plane_axes(axis)
    context = 1 if volumetric else 0
    model = MedNCAConfig(image_channels=data.modalities * (2 * context + 1), steps=(16, 16))
    spacing = (data.spacing[rows], data.spacing[columns]) if volumetric else None
    preprocess = PreprocessConfig(modalities=data.modalities, axes=(axis,), context=context, spacing=spacing)
    mirror = AugmentConfig(flip=(0,) if rows == 0 else ())  # left and right only: anatomy has no other mirror
    return RunConfig("own_grid", model=model, preprocess=preprocess, augment=mirror)


def quick(data: Fingerprint) -> RunConfig:
    """For a first look, as `make demo`: a model that learns in two minutes on one CPU core.

    The own grid with the compute-lean rule (depthwise filters, 16 channels for a scan of one modality),
    levels a factor of two apart, from a coarse one of some 24 to 48 cells across, and a short schedule: small
    batches, a higher learning rate, milder augmentation, a shorter running mean of the weights, and three
    runs with other fire masks averaged. Slices are cut along one axis, for speed.
    """
    config = own_grid(data)
    images = config.model.image_channels
    across = min(data.shape[axis] for axis in plane_axes(config.preprocess.axis))
    levels = max(1, int(math.log2(across / 24)))
    model = replace(
        config.model,
        channels=images + 13,
        hidden=64,
        perception="depthwise",
        scales=tuple(2**level for level in range(levels, -1, -1)),
        steps=(16,) + (8,) * levels,
    )
    augment = replace(
        config.augment,
        rotation=10.0,
        scale=0.1,
        stretch=0.05,
        gamma=0.15,
        brightness=0.05,
        noise=0.03,
        bias=0.1,
    )
    train = replace(
        config.train,
        iterations=2000,
        batch_size=8,
        learning_rate=1e-2,
        warmup=100,
        ema=0.99,
        coarse_weight=1.0,
        validate_every=250,
        validation_cases=4,
    )
    predict = replace(config.predict, ensemble=3)
    return replace(
        config,
        recipe="quick",
        model=model,
        augment=augment,
        train=train,
        predict=predict,
    )


def paper(data: Fingerprint, size: int, steps: int, batch_size: int, iterations: int) -> RunConfig:
    """The paper's setting as the authors' code has it (shared by the two recipes below)."""
    return RunConfig(
        model=MedNCAConfig(image_channels=data.modalities, steps=(steps, steps)),
        preprocess=PreprocessConfig(modalities=data.modalities, normalise="slice", size=(size, size)),
        augment=AugmentConfig((), *8 * (0.0,)),
        train=TrainConfig(
            iterations=iterations,
            batch_size=batch_size,
            canvas=(size, size),
            patch=size // 4,
            foreground=0.0,
            learning_rate=1.6e-3,
            betas=(0.5, 0.5),
            schedule="exponential",
            warmup=0,
            clip=0.0,
            ema=0.0,
            coarse_weight=0.0,
            sentinel=False,
        ),
        predict=PredictConfig(),
    )


def paper_hippocampus(data: Fingerprint) -> RunConfig:
    """The authors' hippocampus: slices stretched to 64 x 64, 16 steps, batch 40, nothing that stabilises
    training."""
    return replace(paper(data, 64, 16, 40, 30_000), recipe="paper_hippocampus")


def paper_prostate(data: Fingerprint) -> RunConfig:
    """The authors' prostate: slices stretched to 256 x 256, 64 steps, batch 20, nothing that stabilises
    training."""
    return replace(paper(data, 256, 64, 20, 30_000), recipe="paper_prostate")


def unet(data: Fingerprint) -> RunConfig:
    """The classic U-Net with everything that the native recipe gives Med-NCA: its slices with their
    neighbours, its augmentation, its choice of slices, warm-up, clipping and running mean. 36,951,425 weights
    for a scan of one modality and one class."""
    config = native(data)
    return replace(
        config,
        recipe="unet",
        model=replace(config.model, scales=(1,), steps=(1,)),
        train=replace(
            config.train,
            iterations=config.train.iterations // config.train.cycles,
            cycles=1,
            patch=None,
            learning_rate=3e-4,
            coarse_weight=0.0,
            checkpoint_every=500,  # 1.2 GB each
            precision="bfloat16",
            step_range=(1.0, 1.0),
            step_range_from=0.0,
            init="",
        ),
        # It draws nothing: runs differ by what they see mirrored.
        predict=replace(config.predict, ensemble=2 ** len(config.predict.mirror)),
        baseline=BaselineConfig("unet"),
    )


def unet_plain(data: Fingerprint) -> RunConfig:
    """The classic U-Net in customary settings: slices along one axis, each seen three times as in the paper,
    no augmentation, all slices equally often, plain Adam."""
    config = unet(data)
    return replace(
        config,
        recipe="unet_plain",
        model=replace(config.model, image_channels=data.modalities),
        preprocess=replace(config.preprocess, axes=config.preprocess.axes[:1], context=0),
        augment=AugmentConfig((), *8 * (0.0,)),
        train=replace(config.train, foreground=0.0, betas=(0.9, 0.999), clip=0.0, ema=0.0, sentinel=False),
        predict=replace(config.predict, ensemble=1, mirror=(), smoothing=0),
        baseline=BaselineConfig("unet", copies=3),
    )


def backbone(data: Fingerprint) -> RunConfig:
    """The paper's single rule: one level on slices stretched to 64 x 64, 64 steps. The learning rate too is
    the paper's; augmentation and all that makes training reliable are ours. 35,008 weights for a scan of one
    modality."""
    config = own_grid(data)
    return replace(
        config,
        recipe="backbone",
        model=MedNCAConfig(data.modalities, scales=(1,), steps=(64,)),
        preprocess=PreprocessConfig(data.modalities, normalise="slice", size=(64, 64)),
        augment=replace(config.augment, flip=(0,)),
        train=replace(config.train, patch=None, learning_rate=1.6e-3, coarse_weight=0.0),
    )


def seg_nca(data: Fingerprint) -> RunConfig:
    """Seg. NCA in our reading (`mednca.baselines.seg_nca`) on the slices of the backbone, as long. 39,474
    weights."""
    config = backbone(data)
    model = replace(config.model, hidden=306, perception="depthwise")
    return replace(config, recipe="seg_nca", model=model, baseline=BaselineConfig("seg_nca"))


#: Name on the command line -> recipe.
RECIPES: dict[str, Callable[[Fingerprint], RunConfig]] = {
    "robust": robust,
    "native": native,
    "quick": quick,
    "paper_hippocampus": paper_hippocampus,
    "paper_prostate": paper_prostate,
    "backbone": backbone,
    "seg_nca": seg_nca,
    "unet": unet,
    "unet_plain": unet_plain,
}
#: Those that the planner makes, for a budget. The first is the default.
PLANNED = ("robust", "native")


def recipe(name: str, data: Fingerprint, budget: str | None = None) -> RunConfig:
    """Name, fingerprint and, for `native` and `robust`, the planner's budget (None: "best") -> configuration.

    Raises:
        InputError: If there is no such recipe or budget, the recipe takes no budget, or it does not fit the
            data.
    """
    check_recipe(name, budget)
    try:
        return RECIPES[name](data) if budget is None else planned(name, data, budget).config
    except ValueError as error:
        raise InputError(f"recipe {name!r} does not fit {data.modalities} channel(s): {error}") from error


def planned(name: str, data: Fingerprint, budget: str = "best") -> Plan:
    """Name of a recipe that the planner makes, fingerprint and budget -> the plan behind it.

    Raises:
        InputError: If the planner does not make this recipe, or there is no such budget.
        ValueError: If it does not fit the data.
    """
    check_recipe(name, budget)
    made = plan(data, budget)
    return hardened(made) if name == "robust" else made


def check_recipe(name: str, budget: str | None) -> None:
    """Raise InputError for a recipe or a budget that is not there, or that do not go together."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is not known; choose one of {', '.join(RECIPES)}")
    if budget is not None and name not in PLANNED:
        raise InputError(
            f"budget {budget!r} is for the recipes {' and '.join(PLANNED)}, got {name!r}; leave one out"
        )
    if budget is not None and budget not in BUDGETS:
        raise InputError(f"budget {budget!r} is not known; choose one of {', '.join(BUDGETS)}")


def with_classes(config: RunConfig, labels: dict[int, str]) -> RunConfig:
    """Configuration and labels (value -> name) -> the same with a class for each label instead of one for
    all; without mirroring where a name tells left from right.

    Raises:
        InputError: If the model has no room for so many, or a value is no class number.
    """
    values = tuple(sorted(labels))
    names = tuple(labels[value] for value in values)
    sided = any(re.search(r"(?<![a-z])(left|right|[lr])(?![a-z])", name.lower()) for name in names)
    if sided:
        augment, predict = replace(config.augment, flip=()), replace(config.predict, mirror=())
        config = replace(config, augment=augment, predict=predict)
    try:
        model = replace(config.model, classes=len(values))
        return replace(config, labels=names, values=values, merge=False, model=model)
    except ValueError as error:
        raise InputError(f"labels {', '.join(names)}: cannot have a class each: {error}") from error
