"""U-Nets on well-known encoders, as in the paper's Fig. 3: a wrapper of segmentation-models-pytorch.

The paper names the families EfficientNet, MobileNetV2, DenseNet, ResNet18 and VGG11, and the library; the
smallest of each there are `ENCODERS`. Any other encoder of the library works too. All weights start at
random: weights from ImageNet would have to be fetched, and the paper does not say that it used them.
"""

from __future__ import annotations

import importlib
import re

import torch
from torch import nn

from mednca.config import RunConfig
from mednca.errors import InputError

#: Those of the paper, with the weights of a U-Net of one image channel and one class.
ENCODERS = {
    "efficientnet-b0": 6_250_893,
    "mobilenet_v2": 6_628_369,
    "densenet121": 13_601_361,
    "resnet18": 14_321_937,
    "vgg11": 18_252_881,
}
#: Compiled operators without which torchvision does not let itself be imported. None of the encoders has one.
_UNUSED = 8
_kept: list[torch.library.Library] = []  # what is declared lasts as long as its library object


def build(config: RunConfig) -> nn.Module:
    """Configuration -> a U-Net on the encoder that it names, from image (B, copies * I, H, W), sides
    multiples of 32, to logits (B, K, H, W).

    Raises:
        InputError: If there is no such encoder, or segmentation-models-pytorch cannot be used here.
    """
    settings = config.baseline
    assert settings is not None
    encoder = settings.name.partition(":")[2]
    try:
        import_torchvision()
        library = importlib.import_module("segmentation_models_pytorch")
    except ImportError as error:
        raise InputError(
            f"baseline {settings.name!r} needs {error.name or error}: pip install 'mednca[baselines]'"
        ) from error
    try:
        network: nn.Module = library.Unet(
            encoder,
            encoder_weights=None,
            in_channels=settings.copies * config.model.image_channels,
            classes=config.model.classes,
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"baseline {settings.name!r}: segmentation-models-pytorch has no such encoder; take "
            f"{', '.join(ENCODERS)} or another of its names"
        ) from error
    return network


def import_torchvision() -> None:
    """Import torchvision, also where its compiled operators do not fit the build of torch.

    On a machine without a GPU, a package index may offer no other torchvision than a CUDA build, whose
    operators cannot be loaded beside torch's CPU build; the import then ends with the first operator that is
    missing. The networks in it are plain PyTorch. So each missing operator is declared, without a
    computation: no result changes, and whoever calls it is told that it does nothing on this machine.

    Raises:
        ImportError: If torchvision is not installed.
        InputError: If it cannot be imported for another reason.
    """
    for _ in range(_UNUSED):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                reason = str(error).partition("\n")[0]
                break
            reason = missing[0]
            _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
            _kept[-1].define(f"{missing[1]}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    raise InputError(
        f"torchvision cannot be used beside torch {torch.__version__} ({reason}); install the build that "
        "belongs to it, as https://pytorch.org/get-started tells"
    )
