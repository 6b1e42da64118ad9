"""Public sets: checked, resumed, unpacked whole or not at all; every failure is one line. No network here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mednca import download
from mednca.cases import find_cases
from mednca.cli import main
from mednca.errors import InputError
from tests.small import voxels, write_nifti

pytest.importorskip("pooch", reason="needs mednca[data]")
requests = pytest.importorskip("requests", reason="needs mednca[data]")
NAME = "Task04_Hippocampus"


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


class Server:
    """A server of one file: what it holds, how it misbehaves, and which ranges it was asked for."""

    def __init__(self) -> None:
        self.content = b""
        self.cut_after: list[int] = []  # bytes after which the next answers end
        self.ranges = True
        self.status = 0
        self.asked: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.asked.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
                if server.status or self.path != f"/msd/{NAME}.tar":
                    self.send_error(server.status or 404)
                    return
                if start >= len(server.content):
                    self.send_error(416)
                    return
                body = server.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/msd/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a small Task04; the current folder is empty."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "CHUNK", 100)
    made = tmp_path / "made" / NAME
    for number in (1, 3):
        write_nifti(made / "imagesTr" / f"hippocampus_{number:03d}.nii.gz", voxels(number))
        write_nifti(made / "labelsTr" / f"hippocampus_{number:03d}.nii.gz", voxels(number) % 3)
    (made / "._imagesTr").write_bytes(b"macOS")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(made, NAME)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    server = Server()
    hold(server, packed.getvalue(), monkeypatch)
    yield server
    server.server.shutdown()
    server.server.server_close()


def hold(server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server hold this, and its checksum be the published one."""
    server.content = content
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    archive = replace(download.ARCHIVES[NAME], checksum=checksum)
    monkeypatch.setitem(download.ARCHIVES, NAME, archive)


def fetch(server: Server) -> Path:
    return download.get(NAME, mirror=server.url, progress=False)


def left() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_a_set_is_fetched_checked_and_unpacked(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "get", NAME, "--mirror", server.url])
    out, err = capsys.readouterr()
    assert not stopped.value.code, err
    assert left() == [NAME] and server.asked == [None]
    assert [case.id for case in find_cases(NAME).cases] == ["hippocampus_001", "hippocampus_003"]
    assert "licence: CC-BY-SA 4.0" in out and "doi:10.1038/s41467-022-30695-9" in out
    assert NAME in err, "no progress was shown"
    refused(lambda: fetch(server), NAME, "exists already")


def test_a_cut_connection_is_taken_up_where_it_was(server: Server) -> None:
    server.cut_after = [1000, 500]
    fetch(server)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert left() == [NAME]


@pytest.mark.parametrize("status", [0, 503])
def test_no_connection_is_left_open(status: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    ask = requests.get
    monkeypatch.setattr(requests, "get", lambda *a, **k: answers.append(ask(*a, **k)) or answers[-1])
    server.cut_after, server.status = [1000, 500], status
    with pytest.raises(InputError) if status else contextlib.nullcontext():
        fetch(server)
    assert len(answers) == (1 if status else 3)
    assert all(answer.raw.closed for answer in answers)


def test_a_stopped_download_goes_on_with_the_next_call(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after = [2000, 0, 0, 0]
    refused(lambda: fetch(server), "cannot be reached", "0.0 MB are kept", "same command")
    assert left() == [f".{NAME}.tar.part"]
    assert Path(f".{NAME}.tar.part").read_bytes() == server.content[:2000]
    server.cut_after, server.asked = [], []
    fetch(server)
    assert server.asked == ["bytes=2000-"] and left() == [NAME]


def test_a_server_without_ranges_is_asked_for_the_whole(server: Server) -> None:
    server.ranges = False
    Path(f".{NAME}.tar.part").write_bytes(server.content[:700])
    fetch(server)
    assert left() == [NAME]


def test_a_complete_file_is_not_fetched_again(server: Server) -> None:
    Path(f".{NAME}.tar.part").write_bytes(server.content)
    fetch(server)
    assert server.asked == [] and left() == [NAME]


def test_a_file_that_is_too_long_is_fetched_anew(server: Server) -> None:
    Path(f".{NAME}.tar.part").write_bytes(server.content + b"more")
    fetch(server)
    assert server.asked == [f"bytes={len(server.content) + 4}-", None] and left() == [NAME]


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server: Server) -> None:
    server.content = server.content[:-1] + b"x"
    refused(lambda: fetch(server), NAME, "not the one that was published", "md5:")
    assert left() == []


def test_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(InputError, match=r"cannot be reached.*online") as caught:
        download.get(NAME, mirror=f"http://127.0.0.1:{port}", progress=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_told(server: Server) -> None:
    server.status = 503
    refused(lambda: fetch(server), "503", "--mirror")
    assert left() == [] and server.asked == [None]
    refused(lambda: download.get("Task99_Nothing"), "Task99_Nothing", NAME)


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "link"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(f"{NAME}/{name}" if name == "link" else name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "../../secret"
        tar.addfile(member)
    hold(server, packed.getvalue(), monkeypatch)
    with pytest.raises(InputError):
        fetch(server)
    assert left() == [f".{NAME}.tar.part"] and not (Path.cwd().parent / "outside.txt").exists()


def test_an_archive_of_several_folders_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("a/x", "b/x"):
            tar.addfile(tarfile.TarInfo(name))
    hold(server, packed.getvalue(), monkeypatch)
    refused(lambda: fetch(server), f"the folder {NAME} and no other, got a, b")


def test_the_published_checksums_are_those_of_monai() -> None:
    assert {name: archive.checksum for name, archive in download.ARCHIVES.items()} == {
        "Task04_Hippocampus": "md5:9d24dba78a72977dbd1d2e110310f31b",
        "Task05_Prostate": "md5:35138f08b1efaef89d7424d2bcc928db",
    }
    assert download.MSD == "https://msd-for-monai.s3-us-west-2.amazonaws.com"
