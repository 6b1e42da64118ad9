"""Ways to run a rule: the same states, at other speeds. tests/conformance holds each of them to the
definition, `mednca.nca.run_eager` in float64.

A backend is a `mednca.nca.Run` in a file of its own, over PyTorch's tensors, so that training can go back
through it. `numpy.py` is none of them: it needs no PyTorch, and only predicts. So do the engines in C of
`mednca.engine`; `mednca.predict` chooses between all of these.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, cast

from mednca import engine

if TYPE_CHECKING:
    from mednca.nca import Run

_log = logging.getLogger(__name__)

#: Name -> module and function. Loaded when asked for.
BACKENDS: dict[str, tuple[str, str]] = {
    "eager": ("mednca.nca", "run_eager"),
    "folded": ("mednca.backends.folded", "run_folded"),
    "native": ("mednca.backends.native", "run_native"),
}


def load(name: str) -> Run:
    """Name of a backend -> its run.

    Raises:
        ValueError: Where there is no backend of this name.
    """
    if name not in BACKENDS:
        raise ValueError(f"name must be one of {', '.join(BACKENDS)}, got {name!r}")
    module, function = BACKENDS[name]
    return cast("Run", getattr(importlib.import_module(module), function))


def choose(device: str, name: str = "auto", *, half: bool = False) -> Run:
    """Device ("cpu", "cuda:0", ...) and name of a backend -> its run; "auto" takes the fastest that works.

    That is `native` on the CPU; `folded` on every other device and, with a warning in the log, on a CPU
    without the C engine.

    Args:
        device: Where the rule runs.
        name: One of `BACKENDS`, or "auto".
        half: Whether products on the CPU are to be of bfloat16 numbers. Only `native` has them, on processors
            with AVX512_BF16; elsewhere a warning in the log says so, and they are of float32.

    Raises:
        ValueError: Where there is no backend of this name, or it does not work on this device or machine.
    """
    run = _choose(device, name)
    if not half or device.split(":")[0] != "cpu":
        return run
    if reason := why_no_half(device, name):
        _log.warning("products are of float32, not bfloat16: %s", reason)
        return run
    return cast("Run", importlib.import_module("mednca.backends.native").run_native_half)


def why_no_half(device: str, name: str = "auto") -> str:
    """Device and name of a backend -> why products on a CPU cannot be of bfloat16 numbers; nothing if they
    can, or the device is no CPU."""
    if device.split(":")[0] != "cpu":
        return ""
    if name not in ("auto", "native"):
        return f"the backend {name!r} has no such products, only 'native' has"
    if not engine.available():
        return engine.why_not()
    return "" if engine.has_bfloat16() else "this processor has no AVX512_BF16"


def _choose(device: str, name: str) -> Run:
    on_cpu = device.split(":")[0] == "cpu"
    if name not in ("auto", "native"):
        return load(name)
    if not on_cpu:
        if name == "native":
            raise ValueError(f"the backend 'native' runs on the CPU only, got device {device!r}; use 'auto'")
        return load("folded")
    if engine.available():
        return load("native")
    if name == "native":
        raise ValueError(f"the backend 'native' cannot be used: {engine.why_not()}; use 'auto'")
    _log.warning("training runs at about a third of the speed: %s", engine.why_not())
    return load("folded")
