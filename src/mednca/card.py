"""What a person wants to know of a model before they use it, as text."""

from __future__ import annotations

import textwrap
from typing import Any

from mednca.config import BaselineConfig
from mednca.modelfile import ModelFile
from mednca.rule import MedNCAConfig

AXES = ("sagittal", "coronal", "axial")
WIDTH = 100


def describe(model: ModelFile) -> str:
    """Model -> its card, one "name   value" a line; what the model file does not state is left out."""
    config, card = model.config, model.card
    decision = [f"threshold {config.predict.threshold:g}"]
    if config.predict.ensemble > 1:
        decision.append(f"mean of {config.predict.ensemble} runs")
    if config.predict.smoothing:
        decision.append(f"neighbouring slices averaged {config.predict.smoothing} times")
    if config.predict.largest_component:
        decision.append(f"{config.predict.piece} component only")
    labels = zip(config.values, config.labels, strict=True)
    rows = {
        "model": f"{card.get('name') or 'unnamed'} ({model.hash})",
        "description": card.get("description"),
        "parameters": f"{model.parameters:,}",
        "network": _baseline(config.baseline) if config.baseline else None,
        **(_rule(config.model) if config.is_automaton else {}),
        "input": _input(model),
        "labels": ", ".join(f"{value} {name}" for value, name in labels)
        + (" (all labels of the data merged)" if config.merge else ""),
        "mask": ", ".join(decision),
        "recipe": config.recipe,
        "trained on": _training(card),
        "began with": _began(card.get("began_with")),
        "range": _ranges(card.get("fingerprint")),
        "scores": _scores(card.get("scores")),
        "trust": _trust(card.get("trust")) if model.trust else None,
        "licence": card.get("licence"),
        "attribution": card.get("attribution"),
        "intended use": card.get("intended_use") or "research; not a medical device",
        "notes": card.get("notes"),
        "warning": "; ".join(model_warnings(model)) or None,
    }
    width = max(map(len, rows)) + 2
    lines = []
    for name, text in rows.items():
        for number, part in enumerate(str(text).splitlines() if text else []):
            first = f"{name if number == 0 else '':{width}}"
            lines.append(
                textwrap.fill(
                    part,
                    WIDTH,
                    initial_indent=first,
                    subsequent_indent=" " * width,
                    break_long_words=False,
                )
            )
    return "\n".join(lines)


def model_warnings(model: ModelFile) -> list[str]:
    """Model -> what speaks against using it, whatever the scan."""
    if model.card.get("finished", True):
        return []
    done, wanted = model.card.get("iterations", "?"), model.config.train.iterations
    return [f"the training of this model is not finished (iteration {done} of {wanted})"]


def _rule(rule: MedNCAConfig) -> dict[str, str]:
    levels = ", ".join(
        f"1/{scale} of the resolution" if scale > 1 else "full resolution" for scale in rule.scales
    )
    return {
        "levels": f"{len(rule.scales)}: {levels}",
        "steps": f"{' + '.join(map(str, rule.steps))}, each cell updates with a chance of {rule.fire_rate:g}",
        "cells": f"{rule.channels} channels, {rule.hidden} hidden units, {rule.perception} perception",
    }


def _baseline(network: BaselineConfig) -> str:
    told = [f"the baseline {network.name!r}"]
    if network.name == "unet":
        told.append(f"{network.depth} blocks, {network.filters} filters in the first, norm {network.norm}")
    if network.copies > 1:
        told.append(f"sees the image {network.copies} times")
    if not network.automaton:
        told.append("predicts with the extra train only")
    return ", ".join(told)


def _input(model: ModelFile) -> str:
    config = model.config.preprocess
    parts = [f"{config.modalities} channel(s)", f"{', '.join(AXES[axis] for axis in config.axes)} slices"]
    if config.context:
        parts.append(f"each with {config.context} neighbour(s) on both sides")
    if config.size:
        parts.append(f"stretched to {config.size[0]} x {config.size[1]}")
    elif config.spacing:
        parts.append(f"resampled to {config.spacing[0]:.3g} x {config.spacing[1]:.3g} mm")
    if config.field is not None:
        parts.append("unusual bias fields brought back to the usual")
    parts.append(f"intensities scaled per {config.normalise}")
    if model.config.predict.sizes is not None:
        parts.append("a second look where the organ has an unusual size")
    if model.config.predict.spectrum is not None:
        parts.append("another look where lines of k-space are unusual")
    if model.config.predict.coarse is not None:
        parts.append("drawn on between slices that are far apart")
    return ", ".join(parts)


def _training(card: dict[str, Any]) -> str | None:
    cases = card.get("training_cases")
    told = [str(card["data"])] if card.get("data") else []
    told += [f"{len(cases)} cases"] if cases else []
    told += [f"{card['iterations']:,} iterations"] if isinstance(card.get("iterations"), int) else []
    return ", ".join(told) or None


def _began(start: Any) -> str | None:
    """What the card says of the model that the training began with -> its name, hash, data and licence."""
    if not isinstance(start, dict) or not start.get("hash"):
        return None
    told = f"the rules of {start.get('name') or 'a model'} ({start['hash']})"
    data = [str(start[name]) for name in ("data", "licence") if start.get(name)]
    return told + (f", trained on {', '.join(data)}" if data else "")


def _trust(told: Any) -> str:
    """What the card says of the trust score -> text."""
    if not isinstance(told, dict) or not isinstance(told.get("predictions"), int):
        return "tells what Dice to expect"
    text = f"tells what Dice to expect; fitted to {told['predictions']} predictions"
    text += f" of {told['persons']} persons" if told.get("persons") else ""
    cells = [(name, told.get(name)) for name in ("spearman", "coverage", "flagged", "false_alarms")]
    parts = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in cells if isinstance(value, float)]
    return text + (f" ({', '.join(parts)})" if parts else "")


def _ranges(fingerprint: Any) -> str | None:
    """Fingerprint of the training scans -> the spacing and size that the model has seen."""
    if not isinstance(fingerprint, dict) or not {"spacing_mm", "size_mm"} <= set(fingerprint):
        return None
    told = []
    for name in ("spacing", "size"):
        low, high = fingerprint[f"{name}_mm"]
        pairs = zip(low, high, strict=True)
        told.append(f"{name} {' x '.join(f'{a:.3g}' if a == b else f'{a:.3g}-{b:.3g}' for a, b in pairs)} mm")
    return ", ".join(told) + " (axes R, A, S)"


def _scores(scores: Any) -> str | None:
    """Scores of the card, {"dice": {"mean": ..., "sd": ...}, "cases": [...]}, maybe with a protocol -> text,
    a line for each score, Dice first."""
    if not isinstance(scores, dict):
        return None
    told = []
    for name in sorted(scores, key=lambda name: (name != "dice", name)):
        value = scores[name]
        if isinstance(value, dict) and isinstance(value.get("mean"), int | float):
            spread = [f"sd {value['sd']:.4f}"] if isinstance(value.get("sd"), int | float) else []
            if isinstance(value.get("ci95"), list) and len(value["ci95"]) == 2 and None not in value["ci95"]:
                spread.append("95 % interval {:.4f} to {:.4f}".format(*value["ci95"]))
            told.append(f"{name} {value['mean']:.4f}" + (f" ({', '.join(spread)})" if spread else ""))
    cases = scores.get("cases")
    if told and isinstance(cases, list) and cases:
        told.append(f"on {len(cases)} cases that it was not trained on")
    if told and isinstance(scores.get("protocol"), str):
        told.append(scores["protocol"])
    return "\n".join(told) if told else None
