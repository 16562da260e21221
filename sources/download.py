"""Resumable downloads of large files."""

from __future__ import annotations

import http.client
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from sources.archives import CHUNK, refuse_full_disk

# Not every OSError: a full disk is not the network's fault.
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
ATTEMPTS = 5  # in a row without a byte
WAIT_S = 1.0  # before the second attempt; doubles with each
TIMEOUT_S = 30.0


def download(url: str, size: int, target: Path, command: str) -> None:
    """Downloads `url`, which has `size` bytes, to `target`. It resumes from `target`.part after a break.

    command: what a user runs after a download by hand. Raises OSError without a network, ValueError when the server
    has no such file, or one of another size.
    """
    if not url.startswith(("http://", "https://")) or size < 1:
        raise ValueError(f"{url!r}, {size} bytes; allowed: an http(s) address, and at least 1 byte")
    if target.is_file() and target.stat().st_size == size:
        print(f"{target}: downloaded already")
        return
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    if part.stat().st_size > size:
        part.write_bytes(b"")
    refuse_full_disk(part.parent, size - part.stat().st_size)
    failures, by_hand = 0, f"or download {url} with a browser, then: {command}"
    try:
        with tqdm(total=size, unit="B", unit_scale=True, desc=target.name, disable=None) as bar:
            while (before := part.stat().st_size) < size:
                problem = None
                try:
                    transfer(url, size, part, bar)
                except NETWORK_ERRORS as error:
                    problem, status = error, getattr(error, "code", 500)
                    if status == 416:  # "range not satisfiable": what we have is not the beginning of that file
                        part.write_bytes(b"")
                    elif status < 500 and status not in (408, 429):  # no use in trying again
                        raise ValueError(f"{url}: the server says {error}; try it later, {by_hand}") from None
                if (have := part.stat().st_size) < size:
                    reason = getattr(problem, "reason", problem) or "the connection broke"
                    failures = 0 if have > before else failures + 1
                    if failures == ATTEMPTS:
                        kept = f"{have:,} of {size:,} bytes are kept: run it again"
                        raise OSError(f"no connection to {url} ({reason}); {kept}, {by_hand}")
                    bar.write(f"{target.name}: {reason}; goes on from byte {have:,}", file=sys.stderr)
                    time.sleep(WAIT_S * 2 ** max(0, failures - 1))
        part.replace(target)
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def transfer(url: str, size: int, part: Path, bar: tqdm) -> None:
    """One request. Appends to `part`, or starts it over when the server does not support ranges."""
    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        covers = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        continues = response.status == 206 and covers is not None and int(covers[1]) == have
        if response.status == 206 and not continues:
            part.write_bytes(b"")
            raise ConnectionError("the server continues somewhere else; starting over")
        total = int(covers[2]) if covers else int(response.headers.get("Content-Length") or size)
        if total != size:
            raise ValueError(f"{url}: the server's file has {total:,} bytes, but {size:,} are expected")
        with part.open("ab" if continues else "wb") as file:
            bar.n = file.tell()
            while chunk := response.read1(CHUNK):  # what has arrived, so that a break loses nothing
                if file.tell() + len(chunk) > size:
                    raise ValueError(f"{url}: the server sends more than the expected {size:,} bytes")
                file.write(chunk)
                bar.update(len(chunk))
