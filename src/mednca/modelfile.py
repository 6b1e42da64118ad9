"""One model, one file: weights and everything needed to use them, in a versioned `.safetensors`. Never
pickle.

The header's metadata holds one entry, `mednca`, a JSON object::

    {"format": "mednca-model", "version": 1, "config": {...}, "card": {...}, "range": {...}, "trust": {...}}

`config` is the `RunConfig` (levels, steps, preprocessing, labels, threshold, post-processing, training),
complete but for settings that are younger than the format and hold their default; `card` says what a user
must know: training cases, scores, data, licence, attribution; `range`, which may be missing, has the largest
magnitudes that a calibration saw, which the engine `int16` needs; `trust`, which may be missing too, is a
fitted trust score (`mednca.trust`). Arrays are float32, named as
`mednca.rule.weight_shapes` has them; those of a baseline (`config.baseline`) as its network names them, which
is checked where the network is built. Nothing here needs torch.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from mednca.config import RunConfig, from_dict, to_dict
from mednca.errors import InputError
from mednca.files import atomic_write
from mednca.rule import MedNCAConfig, weight_shapes
from mednca.trust import Trust
from mednca.trust import from_json as trust_from_json
from mednca.trust import to_json as trust_to_json

FORMAT = "mednca-model"
#: Of models that draw coarse scans on; of those that know what lines of k-space are usual 6, with a margin 5,
#: that know what fields or sizes are usual 4, of several axes 2, all others 1, which older programs read.
VERSION = 7
#: The models that come with the package.
SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelFile:
    """A trained model: configuration, weights by name, its card and, once calibrated, its range and trust
    score.

    `card` may hold: name, description, training_cases, iterations, finished, scores, data, licence,
    attribution, began_with, intended_use, fingerprint (spacing_mm and size_mm, each [least, largest] per
    RAS+ axis, of the training scans), trust (of what the trust score was fitted to, and how good it is).
    `range`, where there is one, is what `check_range` takes. Neither it nor the trust score changes a mask,
    so they are no part of the hash.
    """

    config: RunConfig
    weights: dict[str, NDArray[np.float32]]
    card: dict[str, Any] = field(default_factory=dict)
    range: dict[str, Any] | None = None
    trust: Trust | None = None

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of configuration and weights: names the model in
        reports."""
        digest = hashlib.sha256(json.dumps(stored(self.config), sort_keys=True).encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].tobytes())
        return digest.hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Number of learnt weights: without the filters that Seg. NCA is given, and without the statistics of
        batch norms."""
        given = r"\.perceive_[ab]\." if self.config.baseline and self.config.baseline.automaton else "$^"
        return sum(
            array.size
            for name, array in self.weights.items()
            if not re.search(rf"{given}|\.running_(mean|var)$", name)
        )

    def require_automaton(self, what: str) -> None:
        """Raise InputError for a baseline that is no cellular automaton: `what` cannot take it."""
        if self.config.baseline is not None and not self.config.is_automaton:
            name, baseline = self.card.get("name") or self.hash, self.config.baseline.name
            raise InputError(f"{what} takes cellular automata; the model {name} is the baseline {baseline!r}")


def save_model(path: Path, model: ModelFile, *, force: bool = True) -> Path:
    """Model -> one file, atomically.

    Raises:
        InputError: If the file exists and `force` is not set, or cannot be written.
        ValueError: If the range does not fit the model.
    """
    return atomic_write(path, to_bytes(model), force=force)


def to_bytes(model: ModelFile) -> bytes:
    """Model -> the content of its file. What is not finite in the card is stored as null: JSON knows no NaN.

    Raises:
        ValueError: If the range does not fit the model.
    """
    seen, sizes = model.config.preprocess, model.config.predict.sizes
    usual = seen.field is not None or sizes is not None
    lines = model.config.predict.spectrum is not None
    version = 6 if lines else 5 if seen.margin else 4 if usual else 2 if len(seen.axes) > 1 else 1
    version = version if model.config.predict.coarse is None else VERSION
    header: dict[str, Any] = {"format": FORMAT, "version": version, "config": stored(model.config)}
    header["card"] = _without_nan(model.card)
    if model.range is not None:
        header["range"] = check_range(model.range, model.config.model)
    if model.trust is not None:
        header["trust"] = trust_to_json(model.trust)
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in model.weights.items()}
    return safetensors.numpy.save(weights, {"mednca": json.dumps(header, sort_keys=True, allow_nan=False)})


def stored(config: RunConfig) -> dict[str, Any]:
    """Configuration -> as model files hold it and as the hash is taken of it.

    Later settings that hold their default are left out. One axis is stored as `axis`, as it was before a
    model could have several: such a model keeps its hash, and older programs read it.
    """
    values = to_dict(config, complete=False)
    if len(config.preprocess.axes) == 1:
        values["preprocess"]["axis"] = values["preprocess"].pop("axes")[0]
    return values


def check_range(value: Any, config: MedNCAConfig) -> dict[str, Any]:
    """Largest magnitudes that a calibration saw, and the config of its model -> the same, known to be sound.

    They are {"levels": [{"state": n numbers, "views": 2n, "hidden": h}, ...]}, one table for each level: of
    the channels of the state, of the two perceived views, and of the hidden units before the ReLU.

    Raises:
        ValueError: If a part is missing or unknown, has another length, or a number that is not finite and at
            least 0.
    """
    lengths = {"state": config.channels, "views": 2 * config.channels, "hidden": config.hidden}
    levels = value.get("levels") if isinstance(value, dict) and set(value) == {"levels"} else None
    if not isinstance(levels, list) or len(levels) != len(config.scales):
        raise ValueError(
            f"range must hold 'levels', a list of {len(config.scales)} tables, one for each level"
        )
    for number, level in enumerate(levels):
        if not isinstance(level, dict) or set(level) != set(lengths):
            raise ValueError(f"range of level {number} must hold {', '.join(lengths)}, and nothing else")
        for name, length in lengths.items():
            numbers = level[name]
            if not isinstance(numbers, list) or len(numbers) != length:
                got = len(numbers) if isinstance(numbers, list) else type(numbers).__name__
                raise ValueError(f"range of level {number}: {name} must have {length} numbers, got {got}")
            if not all(type(x) in (int, float) and 0 <= x <= sys.float_info.max for x in numbers):
                raise ValueError(f"range of level {number}: {name} must be finite numbers of at least 0")
    return {"levels": [{name: [float(x) for x in level[name]] for name in lengths} for level in levels]}


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
    expected = weight_shapes(config.model)
    if not config.is_automaton:  # only its network knows: mednca.baselines.from_weights checks
        expected = {name: array.shape for name, array in weights.items()}
    for name, shape in expected.items():
        if name not in weights:
            raise InputError(f"{path}: weights {name!r} are missing; get the file again")
        if weights[name].shape != shape:
            raise InputError(f"{path}: weights {name!r} must have shape {shape}, got {weights[name].shape}")
        if not np.isfinite(weights[name]).all():
            raise InputError(f"{path}: weights {name!r} are not finite; get the file again")
    unknown = sorted(set(weights) - set(expected))
    if unknown:
        raise InputError(
            f"{path}: unknown weights {unknown[0]!r} for a model of {len(config.model.scales)} levels"
        )
    try:
        seen = None if header.get("range") is None else check_range(header["range"], config.model)
    except ValueError as error:
        raise InputError(f"{path}: {error}; calibrate the model again") from error
    score = header.get("trust")
    sure = None if score is None else trust_from_json(score, f"{path}: trust")
    return ModelFile(config, weights, card, seen, sure)


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


@functools.cache
def shipped_model(name: str) -> ModelFile:
    """Name of a shipped model -> the model, read once."""
    return load_model(SHIPPED / f"{name}.safetensors")


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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Path -> header and weights, or an InputError that says what the file is not."""
    try:
        with safetensors.safe_open(str(path), "np") as file:
            metadata = file.metadata() or {}
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no dictionary
            weights = {name: file.get_tensor(name) for name, kind in types.items() if kind == "F32"}
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
    for name, kind in types.items():
        if kind != "F32":
            raise InputError(f"{path}: weights {name!r} must be float32 (F32), got {kind}")
    return header, weights
