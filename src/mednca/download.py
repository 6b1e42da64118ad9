"""Public data sets: fetched once, checked, unpacked whole or not at all.

pooch downloads and checks; going on with a download that was cut off is done here, with a request for the
rest of the file. What has arrived stays beside the target as `.NAME.tar.part`.
"""

from __future__ import annotations

import importlib
import logging
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from mednca.errors import InputError

_log = logging.getLogger(__name__)
#: Where the archives of the Medical Segmentation Decathlon lie: AWS Open Data, as MONAI's DecathlonDataset
#: takes them.
MSD = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
MSD_PAPER = "Antonelli et al., Nature Communications 13:4128 (2022), doi:10.1038/s41467-022-30695-9"
#: Requests in a row that bring nothing before the download is given up.
PATIENCE = 3
#: Seconds before the next request, times the number of those that brought nothing.
PAUSE = 2.0
CHUNK = 1 << 16
TIMEOUT = 30.0


@dataclass(frozen=True)
class Archive:
    """A public data set: the checksum of its archive, how much it is, and what it asks of its users."""

    name: str
    checksum: str
    megabytes: int
    about: str
    licence: str
    reference: str


#: The checksums are those of MONAI's DecathlonDataset (monai/apps/datasets.py).
ARCHIVES = {
    archive.name: archive
    for archive in (
        Archive(
            "Task04_Hippocampus",
            "md5:9d24dba78a72977dbd1d2e110310f31b",
            27,
            "hippocampus, T1 MRI, 260 labelled volumes, Vanderbilt University Medical Center",
            "CC-BY-SA 4.0",
            MSD_PAPER,
        ),
        Archive(
            "Task05_Prostate",
            "md5:35138f08b1efaef89d7424d2bcc928db",
            229,
            "prostate, T2 and ADC MRI, 32 labelled volumes, Radboud University Medical Center",
            "CC-BY-SA 4.0",
            MSD_PAPER,
        ),
    )
}


def get(name: str, out: Path | None = None, *, mirror: str = MSD, progress: bool = True) -> Path:
    """Name of a public data set -> its folder, downloaded, checked and unpacked.

    A download that was cut off goes on where it was when the same is asked for again.

    Args:
        name: One of `ARCHIVES`.
        out: Folder to make; None makes one of the set's name in the current folder.
        mirror: Address of the folder that has NAME.tar.
        progress: Whether to show progress on stderr.

    Raises:
        InputError: If there is no such set, the folder exists, the server cannot be reached, its answer is no
            archive, or the file has another checksum.
    """
    if name not in ARCHIVES:
        raise InputError(f"{name}: is not among the sets that can be fetched, {', '.join(ARCHIVES)}")
    archive, out = ARCHIVES[name], Path(name) if out is None else Path(out)
    if out.exists():
        raise InputError(f"{out}: exists already and is left as it is; remove it or choose another name")
    importlib.import_module("pooch")  # before anything is made
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.parent / f".{name}.tar.part"
    if not (part.exists() and checksum(part) == archive.checksum):
        fetch(f"{mirror.rstrip('/')}/{name}.tar", part, name, progress=progress)
        if checksum(part) != archive.checksum:
            part.unlink()
            raise InputError(
                f"{name}: the file that arrived is not the one that was published ({archive.checksum}), and "
                "was removed; try again, or look for another mirror"
            )
    unpack(part, out, name)
    part.unlink()
    return out


def checksum(path: Path) -> str:
    """File -> its checksum, as `ARCHIVES` has it."""
    return f"md5:{importlib.import_module('pooch').file_hash(path, alg='md5')}"


def fetch(url: str, part: Path, name: str, *, progress: bool = True) -> None:
    """Address -> the file, complete; goes on with what is there, and where the connection is cut.

    Args:
        url: Address of the file.
        part: Where to write.
        name: What to call it in messages.
        progress: Whether to show progress on stderr.

    Raises:
        InputError: If the server cannot be reached, or does not have the file.
    """
    pooch, requests = importlib.import_module("pooch"), importlib.import_module("requests")
    idle = 0
    while True:
        with part.open("ab") as file:
            before = part.stat().st_size

            answers: list[Any] = []

            def check(
                response: Any,
                file: BinaryIO = file,
                start: int = before,
                answers: list[Any] = answers,
                **_: Any,
            ) -> None:
                """Drop what is there where the server sends the whole file, or says that it is too much."""
                answers.append(response)
                if start and response.status_code in (200, 416):
                    file.truncate(0)

            if before:
                _log.info("%s: going on after %.1f MB", name, before / 1e6)
            hidden = None if progress else True  # None shows the bar on a terminal only
            # pooch asks whether the bar is true, which one without a total cannot tell, and sets the total.
            bar = tqdm(desc=name, total=1, unit="B", unit_scale=True, disable=hidden, leave=False)
            download = pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=CHUNK,
                timeout=TIMEOUT,
                headers={"Accept-Encoding": "identity"} | ({"Range": f"bytes={before}-"} if before else {}),
                hooks={"response": check},
            )
            try:
                download(url, file, None)
                return
            except requests.HTTPError as error:
                if error.response.status_code == 416 and before:
                    continue  # from the start: what was there was not a beginning of this file
                _forget_empty(part)
                raise InputError(
                    f"{name}: {url} answers {error.response.status_code} {error.response.reason}; try later, "
                    "or give another --mirror"
                ) from error
            except requests.RequestException as error:
                idle = 0 if part.stat().st_size > before else idle + 1
                if idle == PATIENCE or (idle and not part.stat().st_size):
                    kept = part.stat().st_size
                    _forget_empty(part)
                    stays = f"; {kept / 1e6:.1f} MB are kept, the same command goes on" if kept else ""
                    raise InputError(
                        f"{name}: {url} cannot be reached ({type(error).__name__}); is this machine online?"
                        f"{stays}"
                    ) from error
                time.sleep(idle * PAUSE)
            finally:
                bar.close()
                for answer in answers:  # pooch leaves one open that was not read to its end
                    answer.close()


def unpack(archive: Path, out: Path, name: str) -> None:
    """Tar archive and the name of the folder in it -> that folder as `out`, whole or not at all.

    Raises:
        InputError: If it is no such archive, a member would lie outside the folder, or the disk does not take
            it.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # refuses links and names that lead out of the folder
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{archive}: cannot be unpacked ({error}); remove it and try again") from error
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
        found = [path for path in sorted(Path(folder).iterdir()) if not path.name.startswith(".")]
        if [path.name for path in found] != [name] or not found[0].is_dir():
            told = ", ".join(path.name for path in found) or "nothing"
            raise InputError(f"{archive}: must hold the folder {name} and no other, got {told}")
        found[0].replace(out)


def _forget_empty(part: Path) -> None:
    """Remove a partial download in which nothing is."""
    if not part.stat().st_size:
        part.unlink()
