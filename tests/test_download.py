"""Downloads that break off, by the command that needs them."""

from __future__ import annotations

import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import only_holds, write_zip
from test_nyudv2 import archive_content

import prepare
from folders import read_folder, read_list
from sources import download, nyudv2

COMMAND = "python prepare.py nyudv2 --archive FILE"


class Server(ThreadingHTTPServer):
    """Serves `data` at every path, as told; `requests` holds the Range header of each request."""

    data = b""
    breaks = 0  # answers that end in the middle
    ranges = True  # whether it knows Range
    statuses: tuple[int, ...] = ()  # of the next answers, in place of the data
    length: int | None = None  # a false Content-Length


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.statuses:
            status, server.statuses = server.statuses[0], server.statuses[1:]
            self.send_error(status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        self.send_header("Content-Length", str(server.length or len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}/a.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def nyud_zip(folder: Path) -> bytes:
    members = {"nyud/" + name: data for name, data in archive_content().items()}
    path = write_zip(folder / "source.zip", members, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_is_taken_up_again(
    ranges: bool, here: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.data, server.breaks, server.ranges = nyud_zip(here), 1, ranges
    monkeypatch.setattr(nyudv2, "ARCHIVE_URL", server.url)
    monkeypatch.setattr(nyudv2, "ARCHIVE_BYTES", len(server.data))
    words = ["nyudv2", "--download"]
    assert prepare.main(words) == 0
    assert server.requests == [None, f"bytes={len(server.data) // 2}-"]
    assert (here / "dataset/hydranets-data-2.zip").read_bytes() == server.data
    only_holds(here / "dataset", "nyud", "hydranets-data-2.zip")
    assert len(read_list(read_folder(here / "dataset/nyud"), "train")) == 4
    with pytest.raises(FileExistsError):
        prepare.main(words)
    prepare.main([*words, "--output", "dataset/again"])
    assert len(server.requests) == 2  # the archive was there already


def test_download_goes_on_where_another_run_stopped(here: Path, server: Server) -> None:
    server.data = bytes(range(256)) * 40
    part = here / "a.zip.part"
    for kept, asked in ((server.data[:5000], ["bytes=5000-"]), (server.data, []), (server.data + b"x", [None])):
        part.write_bytes(kept)
        server.requests.clear()
        download.download(server.url, len(server.data), here / "a.zip", COMMAND)
        assert server.requests == asked
        assert (here / "a.zip").read_bytes() == server.data
        (here / "a.zip").unlink()
        only_holds(here)


def test_download_waits_for_a_busy_server(here: Path, server: Server) -> None:
    server.data, server.statuses = b"12345" * 100, (503, 416, 429)
    (here / "a.zip.part").write_bytes(server.data[:50])
    download.download(server.url, 500, here / "a.zip", COMMAND)
    assert server.requests == ["bytes=50-", "bytes=50-", None, None]
    assert (here / "a.zip").read_bytes() == server.data


@pytest.mark.parametrize(
    ("settings", "message", "requests"),
    [
        ({"data": b"123"}, "the server's file has 3 bytes, but 500 are expected", 1),
        ({"data": b"12" * 500}, "the server's file has 1,000 bytes", 1),
        ({"statuses": (404,)}, "the server says HTTP Error 404: Not Found; .* --archive FILE", 1),
        ({"statuses": (403,)}, "403", 1),
        ({"statuses": (500,) * 9}, "no connection to .* .Internal Server Error.; 0 of 500 bytes are kept", 5),
    ],
)
def test_failed_download(settings: dict[str, object], message: str, requests: int, here: Path, server: Server) -> None:
    for name, value in settings.items():
        setattr(server, name, value)
    with pytest.raises((ValueError, OSError), match=message) as problem:
        download.download(server.url, 500, here / "a.zip", COMMAND)
    assert "\n" not in str(problem.value)
    assert len(server.requests) == requests
    only_holds(here)


def test_download_that_never_ends_well_keeps_what_it_has(here: Path, server: Server) -> None:
    server.data, server.length = b"x" * 300, 500
    with pytest.raises(OSError, match=r"no connection to .* 300 of 500 bytes are kept: run it again"):
        server.ranges = False
        download.download(server.url, 500, here / "a.zip", COMMAND)
    only_holds(here, "a.zip.part")


def test_without_a_network_it_says_what_to_do(here: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens: the connection is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.zip"
        monkeypatch.setattr(nyudv2, "ARCHIVE_URL", url)
        with pytest.raises(OSError, match=r"Connection refused.* with a browser, then: .*nyudv2 --archive FILE"):
            prepare.main(["nyudv2", "--download"])
    only_holds(here / "dataset")
