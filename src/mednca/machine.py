"""What this machine is: what stands beside every figure that was measured on it."""

from __future__ import annotations

import importlib.util
import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from mednca import __version__, engine


def machine() -> dict[str, Any]:
    """All of it, for JSON: processor, memory, system, load, and the versions of what computes here."""
    names = ("numpy", "torch", "onnxruntime", "openvino")
    versions = {"Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}
    return {
        "mednca": __version__,
        "date": date.today().isoformat(),
        "processor": processor(),
        "processors": processors(),
        "instructions": engine.instructions()[0] if engine.available() else None,
        "memory_mib": memory_mib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def processor() -> str:
    """Name of the processor, or of the board where the system tells that instead."""
    for path, key in ((Path("/proc/device-tree/model"), ""), (Path("/proc/cpuinfo"), "model name")):
        try:
            text = path.read_text("utf-8", errors="replace").strip("\0\n")
        except OSError:
            continue
        found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(key)]
        if not key or found:
            return found[0] if key else text
    return platform.processor() or platform.machine()


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_mib() -> int | None:
    """MiB of memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (AttributeError, ValueError, OSError):
        return None
