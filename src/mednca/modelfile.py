"""One model, one file: weights and everything needed to use them, in a versioned `.safetensors`. Never
pickle.

The header's metadata holds one entry, `mednca`, a JSON object::

    {"format": "mednca-model", "version": 1, "config": {...}, "card": {...}}

`config` is the complete `RunConfig` (levels, steps, preprocessing, labels, threshold, post-processing,
training); `card` says what a user must know: training cases, scores, data, licence, attribution. Tensors are
float32, named as in `MedNCA.state_dict()`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mednca.config import RunConfig, from_dict, to_dict
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.nca import MedNCA

FORMAT = "mednca-model"
VERSION = 1
#: The models that come with the package.
SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelFile:
    """A trained model: configuration, weights by name, and its card.

    `card` may hold: name, description, training_cases, iterations, finished, scores, data, licence,
    attribution, intended_use, fingerprint (spacing_mm and size_mm, each [least, largest] per RAS+ axis, of
    the training scans).
    """

    config: RunConfig
    weights: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of configuration and weights: names the model in
        reports."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.weights.values())

    def build(self) -> MedNCA:
        """The model itself, with these weights, ready for inference."""
        with torch.device("meta"):  # no memory, and no draw from torch's global generator
            model = MedNCA(self.config.model)
        model.to_empty(device="cpu").load_state_dict(self.weights)
        return model.eval().requires_grad_(False)


def save_model(path: Path, model: ModelFile, *, force: bool = True) -> Path:
    """Model -> one file, atomically. What is not finite in the card is stored as null: JSON knows no NaN.

    Raises:
        InputError: If the file exists and `force` is not set, or cannot be written.
    """
    card = _without_nan(model.card)
    header = {"format": FORMAT, "version": VERSION, "config": to_dict(model.config), "card": card}
    weights = {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.weights.items()}
    content = safetensors.torch.save(weights, {"mednca": json.dumps(header, sort_keys=True, allow_nan=False)})
    return atomic_write(path, content, force=force)


def load_model(source: str | Path) -> ModelFile:
    """Run folder, `.safetensors` file or name of a shipped model -> the model.

    Raises:
        InputError: If there is no such model, or the file is damaged, foreign, of a newer version or
            inconsistent.
    """
    path = find_model(source)
    header, weights = _read(path)
    config = from_dict(RunConfig, header.get("config"), f"{path}: config")
    card = header.get("card", {})
    if not isinstance(card, dict):
        raise InputError(f"{path}: card: expected a table, got {type(card).__name__}")
    with torch.device("meta"):  # shapes alone: a header may ask for more than there is memory
        expected = MedNCA(config.model).state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise InputError(f"{path}: weights {name!r} are missing; get the file again")
        if weights[name].shape != tensor.shape:
            raise InputError(
                f"{path}: weights {name!r} must have shape {tuple(tensor.shape)}, "
                f"got {tuple(weights[name].shape)}"
            )
        if weights[name].dtype != torch.float32:
            raise InputError(f"{path}: weights {name!r} must be float32, got {weights[name].dtype}")
        if not torch.isfinite(weights[name]).all():
            raise InputError(f"{path}: weights {name!r} are not finite; get the file again")
    unknown = sorted(set(weights) - set(expected))
    if unknown:
        raise InputError(
            f"{path}: unknown weights {unknown[0]!r} for a model of {len(config.model.scales)} levels"
        )
    return ModelFile(config, weights, card)


def find_model(source: str | Path) -> Path:
    """Run folder, file or name of a shipped model -> path of the model file."""
    path = Path(source)
    shipped = SHIPPED / f"{source}.safetensors"
    is_shipped = path.name == str(source) and shipped.is_file()
    if path.is_dir():
        if (path / "model.safetensors").is_file():
            return path / "model.safetensors"
        folds = sorted(path.glob("fold_*/model.safetensors"))
        if folds:
            raise InputError(f"{path}: a cross-validation; name one of its models, as {folds[0].parent}")
        if (path / "config.json").is_file():
            raise InputError(f"{path}: this run has no model yet; go on with 'mednca train ... --resume'")
        if is_shipped:  # a folder of that name that is no run does not hide the model
            return shipped
        raise InputError(f"{path}: not a run folder (no model.safetensors in it)")
    if path.is_file():
        return path
    if is_shipped:
        return shipped
    names = ", ".join(shipped_models()) or "none"
    raise InputError(
        f"{source}: no such model; expected a run folder, a .safetensors file or a shipped model ({names})"
    )


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.safetensors"))


def _without_nan(value: Any) -> Any:
    """What JSON can hold, and NaN and infinity -> the same with None for each of these."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Path -> header and weights, or an InputError that says what the file is not."""
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the library has one exception type, which it does not promise to raise alone
        raise InputError(
            f"{path}: not a complete .safetensors file ({error}); it may be cut off, get it again"
        ) from error
    try:
        header = json.loads(metadata["mednca"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: a .safetensors file, but not a mednca model (no 'mednca' in its header)"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path}: not a mednca model (expected format {FORMAT!r} in its header)")
    if type(header.get("version")) is not int or header["version"] < 1:
        raise InputError(f"{path}: model format version must be a number >= 1, got {header.get('version')!r}")
    if header["version"] > VERSION:
        raise InputError(
            f"{path}: model format version {header['version']} is newer than this mednca reads "
            f"({VERSION}); upgrade with 'pip install -U mednca'"
        )
    return header, weights
