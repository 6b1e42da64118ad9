"""Networks that Med-NCA is compared with, behind its interface: trained, stored, predicted with and judged by
the same code.

`build` makes the network of a configuration. Each lies in a file of its own, a plain `torch.nn.Module` from
image to logits, which `Baseline` wraps. One more takes such a file, an entry in `NETWORKS` and its name in
`mednca.config.BaselineConfig`.

Shapes: B items, I image channels, K classes, H x W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mednca.config import RunConfig
from mednca.errors import InputError
from mednca.nca import MedNCA, Run, Window

#: Name, up to a colon -> module and function: configuration -> network from image (B, copies * I, H, W) to
#: logits (B, K, H, W), or one with the interface of `MedNCA`. Loaded when asked for.
NETWORKS: dict[str, tuple[str, str]] = {
    "unet": ("mednca.baselines.unet", "build"),
    "seg_nca": ("mednca.baselines.seg_nca", "build"),
    "smp": ("mednca.baselines.encoders", "build"),
}


class Baseline(nn.Module):
    """A network from image to logits behind the interface of `MedNCA`: one level, the whole image, no
    chance."""

    def __init__(self, config: RunConfig, network: nn.Module) -> None:
        super().__init__()
        assert config.baseline is not None
        self.config = config.baseline
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        image: Tensor,
        *,
        seed: int,
        items: Tensor,
        patches: Sequence[tuple[Tensor, tuple[int, int]]] | None = None,
        steps: Sequence[int] | None = None,
        run: Run | None = None,
    ) -> list[tuple[Tensor, Window]]:
        """Image (B, I, H, W) -> logits (B, K, H, W) and the window that covers the image.

        Args:
            image: float; H and W multiples of `config.multiple`, at least `config.smallest`.
            seed: Not used: nothing is drawn.
            items: int64 (B,), numbers that tell the images apart.
            patches: Not used: the whole image is seen at once.
            steps: Not used.
            run: Not used.
        """
        height, width = image.shape[-2:]
        multiple, smallest = self.config.multiple, self.config.smallest
        if height % multiple or width % multiple or min(height, width) < smallest:
            raise ValueError(
                f"image height and width must be multiples of {multiple} and at least {smallest}, "
                f"got {height} x {width}"
            )
        seen = image.repeat(1, self.config.copies, 1, 1).contiguous(memory_format=torch.channels_last)
        return [(self.network(seen), Window.whole(items, height, width))]

    def logits(self, cells: Tensor) -> Tensor:
        """Logits (B, K, H, W) -> the same."""
        return cells

    def weights(self) -> dict[str, Any]:
        """The NumPy arrays float32 of the network by name, copied, with the statistics of its norms: what a
        model file holds."""
        return {name: tensor.float().numpy().copy() for name, tensor in _arrays(self).items()}


#: What is trained and predicted with.
Network = MedNCA | Baseline


def build(config: RunConfig) -> Network:
    """Configuration -> its network with fresh weights, drawn from torch's global generator.

    Raises:
        InputError: If there is no such baseline, or a library that it needs is missing.
    """
    if config.baseline is None:
        return MedNCA(config.model)
    kind = config.baseline.name.partition(":")[0]
    if kind not in NETWORKS:
        raise InputError(f"baseline must be one of {', '.join(NETWORKS)}, got {config.baseline.name!r}")
    module, function = NETWORKS[kind]
    make = cast("Callable[[RunConfig], nn.Module]", getattr(importlib.import_module(module), function))
    network = make(config)
    return network if isinstance(network, MedNCA) else Baseline(config, network)


def from_weights(config: RunConfig, weights: Mapping[str, Any]) -> Network:
    """Configuration and NumPy arrays by name (a model file's) -> its network, ready for inference.

    Raises:
        InputError: If the arrays are not those of the network.
    """
    if config.baseline is None or config.is_automaton:
        return MedNCA.from_weights(config.model, weights)
    with torch.random.fork_rng(devices=[]):
        network = build(config)
    for name, tensor in (expected := _arrays(network)).items():
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != tuple(tensor.shape):
            raise InputError(
                f"baseline {config.baseline.name!r}: weights {name!r} must have shape {tuple(tensor.shape)}, "
                f"got {shape or 'none'}; get the model file again"
            )
    if unknown := sorted(set(weights) - set(expected)):
        raise InputError(
            f"baseline {config.baseline.name!r}: unknown weights {unknown[0]!r}; get the model file again"
        )
    network.load_state_dict({name: torch.tensor(weights[name]) for name in expected}, strict=False)
    return network.eval().requires_grad_(False)


def _arrays(network: nn.Module) -> dict[str, Tensor]:
    """Network -> its weights and statistics by name; counters of a batch norm, which nothing reads, are left
    out."""
    arrays = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return {name: tensor for name, tensor in arrays.items() if tensor.is_floating_point()}
