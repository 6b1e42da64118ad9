"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mednca.errors import InputError


@contextlib.contextmanager
def replacing(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Path -> a temporary path beside it with the same suffixes, which takes its place when the block ends
    well.

    Raises:
        InputError: If the file exists and `force` is not set, or the folder cannot be written to.
    """
    path = Path(path)
    if not force and path.exists():
        raise InputError(f"{path}: exists already; choose another name or give --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", suffix="-" + path.name, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes | str, *, force: bool = True) -> Path:
    """Path and content -> the file, whole or not at all; durable once this returns."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, force=force) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(Path(path).parent)
    return Path(path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that a killed process could not remove itself."""
    for path in folder.glob(".part-*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a renaming in a folder durable, where the system can: Windows and some network disks cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> Any:
    """Path -> what the JSON file holds."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error


def read_lines(path: Path) -> set[str]:
    """Path -> the lines of a text file that are not empty."""
    try:
        return {line.strip() for line in path.read_text().splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error


def whole_lines(path: Path) -> list[bytes]:
    """A file of lines that a killed program may have left, there or not -> its lines. A last line without its
    end is removed from the file.

    Raises:
        InputError: If it cannot be read.
    """
    if not path.is_file():
        return []
    try:
        whole, end, torn = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if torn:
        atomic_write(path, whole + end)
    return whole.splitlines()
