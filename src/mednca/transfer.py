"""A rule that was learnt on other data as the start of a training.

What a rule knows of passing word from cell to cell serves any organ: a training that begins there needs far
fewer iterations than one from random weights. No torch here.

Channels of the two models are matched by what they are: an image channel by its modality and its neighbour,
a class by the foreground, the hidden ones by their order. Levels are matched from the finest on; coarser ones
than the start has begin as its coarsest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mednca.config import RunConfig
from mednca.errors import InputError
from mednca.modelfile import ModelFile

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Channels:
    """What the channels of a state are.

    Attributes:
        modalities: Channels of a scan.
        context: Neighbouring slices on each side.
        classes: K.
        count: n.
    """

    modalities: int
    context: int
    classes: int
    count: int

    @classmethod
    def of(cls, config: RunConfig) -> Channels:
        """Configuration -> its channels."""
        model, seen = config.model, config.preprocess
        return cls(seen.modalities, seen.context, model.classes, model.channels)

    @property
    def names(self) -> list[tuple[str, int, int]]:
        """What each channel is: ("image", modality, neighbour), ("class", number, 0) or ("hidden", number,
        0), in the order of the state (`mednca.slices.with_context`)."""
        around = range(-self.context, self.context + 1)
        images = [("image", modality, offset) for offset in around for modality in range(self.modalities)]
        named = images + [("class", number, 0) for number in range(self.classes)]
        return named + [("hidden", number, 0) for number in range(self.count - len(named))]


def why_not(start: RunConfig, config: RunConfig) -> str | None:
    """Two configurations -> why a model of the second cannot begin with weights of the first, or None."""
    old, new = start.model, config.model
    if not start.is_automaton or start.baseline or not config.is_automaton or config.baseline:
        return "only models of Med-NCA can begin with each other's weights"
    for name in ("perception", "channels"):
        if (had := getattr(old, name)) != (wanted := getattr(new, name)):
            return f"its {name} must be {wanted}, got {had}"
    return None


def matching(old: Channels, new: Channels) -> NDArray[np.float32]:
    """Channels of two models -> matrix (n, n): what each old channel (row) reads off the new ones (columns).

    A neighbouring slice that the new state does not have is read off the slice itself, a modality off the
    last one. Where there are more classes than before, each is an equal part of what was the foreground.
    """
    places = {name: place for place, name in enumerate(new.names)}
    result = np.zeros((old.count, new.count), np.float32)
    for row, (kind, number, offset) in enumerate(old.names):
        if kind == "image":
            near = max(-new.context, min(new.context, offset))
            result[row, places["image", min(number, new.modalities - 1), near]] = 1
        elif kind == "class" and new.classes != old.classes:
            for k in range(new.classes):
                result[row, places["class", k, 0]] = 1 / new.classes
        elif (place := places.get((kind, number, offset))) is not None:
            result[row, place] = 1
    return result


def transferred(start: ModelFile, config: RunConfig, fresh: dict[str, Array]) -> dict[str, Array]:
    """Model to begin with, configuration, and fresh weights of that configuration -> these with whatever the
    start has put in their place.

    Where both models have the same channels, levels and hidden units, they are the start's own weights.

    Raises:
        InputError: If the two do not fit.
    """
    if reason := why_not(start.config, config):
        raise InputError(f"the model to begin with, {start.card.get('name') or start.hash}: {reason}")
    old, new = start.config.model, config.model
    reads = matching(Channels.of(start.config), Channels.of(config))
    writes = (reads > 0).astype(np.float32)  # a class of several takes all of what the foreground took
    dense = new.perception == "dense"
    main = np.where(writes.any(axis=0), writes.argmax(axis=0), -1)  # new channel -> the first old one
    images = old.image_channels
    centre = [row for row, name in enumerate(Channels.of(start.config).names) if name[::2] == ("image", 0)]
    for column in range(new.image_channels):  # of several that read it, the slice itself rather than another
        main[column] = next((row for row in centre if reads[row, column]), main[column])
    n, units = new.channels, min(old.hidden, new.hidden)
    result = {name: array.copy() for name, array in fresh.items()}
    for level in range(len(new.scales)):
        source = max(0, len(old.scales) - len(new.scales) + level)
        had = {
            name.split(".", 2)[2]: a
            for name, a in start.weights.items()
            if name.startswith(f"levels.{source}.")
        }

        def put(name: str, values: Array, level: int = level) -> None:
            """Replace the beginning of an array."""
            place = result[f"levels.{level}.{name}"]
            place[tuple(slice(0, size) for size in values.shape)] = values

        for view in ("perceive_a", "perceive_b"):
            filters, bias = had[f"{view}.weight"], had[f"{view}.bias"]
            if dense:
                taken = np.einsum("oikl,ij->ojkl", filters, reads)
                new_ones = reads.any(axis=0)
                result[f"levels.{level}.{view}.weight"][:, new_ones] = taken[:, new_ones]
                put(f"{view}.bias", bias)
            else:
                known = main >= 0
                kept, kept_bias = (result[f"levels.{level}.{view}.{part}"] for part in ("weight", "bias"))
                kept[known], kept_bias[known] = filters[main[known]], bias[main[known]]
        into = had["update_in.weight"][:units]
        seen, a, b = (into[:, k * n : (k + 1) * n] for k in range(3))
        views = [a, b] if dense else [a @ reads, b @ reads]
        known = np.concatenate([reads.any(axis=0), *([[True] * n] * 2 if dense else [reads.any(axis=0)] * 2)])
        result[f"levels.{level}.update_in.weight"][:units, known] = np.concatenate(
            [seen @ reads, *views], axis=1
        )[:, known]
        put("update_in.bias", had["update_in.bias"][:units])
        out = np.zeros((n, units), np.float32)
        rows = (main >= images) & (np.arange(n) >= new.image_channels)
        out[rows] = had["update_out.weight"][main[rows], :units]
        put("update_out.weight", out)
    return result


def check_unseen(start: ModelFile, judged: list[str]) -> None:
    """Raise InputError where scans that a model is to be judged on have taught the one that it begins
    with."""
    known = sorted(set(start.card.get("training_cases") or ()) & set(judged))
    if known:
        name = start.card.get("name") or start.hash
        raise InputError(
            f"the model to begin with, {name}, was trained on {len(known)} of the cases that are held out "
            f"here, as {known[0]}; leave --init out, or take a model that has not seen them"
        )
