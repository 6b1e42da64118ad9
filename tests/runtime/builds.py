"""Programs of runtime/c for the tests: built when they are first asked for. A test that needs a compiler or
an emulator which is not here is skipped, and says what to install."""

from __future__ import annotations

import fcntl
import functools
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "runtime" / "c"

#: What a target of the Makefile is compiled with, and the Debian package of it.
COMPILERS = {
    "armv6": ("arm-linux-gnueabi-gcc", "gcc-arm-linux-gnueabi libc6-dev-armel-cross"),
    "aarch64": ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    "x86-64": ("x86_64-linux-gnu-gcc", "gcc libc6-dev"),
}
#: How programs for other machines are run here.
EMULATORS = {"armv6": ("qemu-arm", "-cpu", "arm1176"), "aarch64": ("qemu-aarch64",)}


def need(program: str, package: str) -> None:
    """Skip the test where a program is missing."""
    if not shutil.which(program):
        pytest.skip(f"needs {program}: apt-get install {package}")


@functools.cache
def built(target: str, name: str = "mednca-run") -> Path:
    """Folder under runtime/c/build and name of a program -> its path, up to date."""
    need("make", "make")
    compiler, package = COMPILERS.get(target, ("cc", "gcc libc6-dev"))
    need(compiler, package)
    (SOURCE / "build").mkdir(exist_ok=True)
    with (SOURCE / "build" / ".lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-C", str(SOURCE), f"build/{target}/{name}"], capture_output=True, text=True, check=False
        )
    assert made.returncode == 0, made.stderr
    assert "warning:" not in made.stderr, made.stderr
    return SOURCE / "build" / target / name


def command(target: str) -> list[str]:
    """Target -> the words that run its mednca-run here."""
    emulator = EMULATORS.get(target, ())
    if emulator:
        need(emulator[0], "qemu-user")
    return [*emulator, str(built(target))]


def run(*words: object, target: str = "host", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Arguments of mednca-run -> what became of it."""
    return subprocess.run(
        [*command(target), *map(str, words)], capture_output=True, text=True, timeout=timeout, check=False
    )


def succeeded(*words: object, target: str = "host") -> str:
    """Arguments of a mednca-run that must go well -> its standard output."""
    done = run(*words, target=target)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def add_ranges(model: Path, state: float = 64.0, units: float = 128.0) -> Path:
    """Model file -> the same file with ranges for int16: of states, and of views and hidden units."""
    content = model.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["mednca"])
    rule = about["config"]["model"]
    n, h = rule["channels"], rule["hidden"]
    level = {"state": [state] * n, "views": [units] * 2 * n, "hidden": [units] * h}
    about["range"] = {"levels": [level] * len(rule["scales"])}
    header["__metadata__"]["mednca"] = json.dumps(about)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    model.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return model
