"""Which requests the page answers, and how many files of it are kept."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Move = Callable[["str | Path | None"], Awaitable["str | None"]]

ANSWER = "answer-"  # folders with this prefix are the app's own, which it deletes itself
UPLOADS_KEPT = 100  # files of the page (uploads, pictures shown); the oldest go first
UPLOADS_KEPT_BYTES = 2**30


def refusal(host: str, origin: str, names: Sequence[str]) -> str:
    """Why a request is refused, or ''. host, origin: its headers; names: under which this machine may be asked.

    A name of somebody else's that leads here is DNS rebinding; addresses in numbers cannot be rebound. Another origin
    is a page of another site that sends in the name of its reader.
    """
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if name not in names:
            return f"{name!r} is no name of this server; allow it with --names"
    if origin and urlsplit(origin).netloc != host:
        return f"requests from pages of {origin} are refused"
    return ""


def uploads_only(move: Move) -> Move:
    """Wraps gradio's file intake so that URLs are refused: gradio would download them (SSRF)."""
    import gradio

    async def refuse_addresses(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gradio.Error("pictures are taken from uploads only", print_exception=False)
        return await move(path)

    return refuse_addresses


def delete_oldest(folder: Path, most: int, most_bytes: int) -> None:
    """Deletes the oldest sub-folders that hold gradio's files until at most so many, and so many bytes, are left."""
    with contextlib.suppress(OSError):  # another request deletes as well
        found = [(path.stat().st_mtime, path) for path in folder.iterdir() if not path.name.startswith(ANSWER)]
        total = 0
        for number, (_, path) in enumerate(sorted(found, reverse=True), 1):
            total += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if number > most or (total > most_bytes and number > 1):
                shutil.rmtree(path, ignore_errors=True)


class Guard:
    """ASGI middleware: refuses requests by `refusal`, and deletes the oldest files after each upload."""

    def __init__(self, app: ASGIApp, names: Sequence[str], folder: Path) -> None:
        self.app, self.names, self.folder = app, names, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] == "http":
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            if problem := refusal(headers.get("host", ""), headers.get("origin", ""), self.names):
                await PlainTextResponse(problem, 403)(scope, receive, send)
                return
            if scope["method"] == "POST" and scope["path"].endswith("/upload"):
                send = self.deletes_first(send)
        await self.app(scope, receive, send)

    def deletes_first(self, send: Send) -> Send:
        """`send` that deletes the oldest files before the answer: whoever has it sees no more files than allowed."""

        async def send_after(message: Message) -> None:
            if message["type"] == "http.response.start":
                delete_oldest(self.folder, UPLOADS_KEPT, UPLOADS_KEPT_BYTES)
            await send(message)

        return send_after
