"""Who may ask the page, by requests to a server in this process, and how the script ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_networks import SAMPLE, RandomNetworks, free_port
from conftest import ROOT, only_error_line

from app import serve
from webpage import guard
from webpage.guard import delete_oldest, refusal
from webpage.viewer import ALL


@pytest.mark.parametrize(("host", "origin", "fine"), [
    ("127.0.0.1:7860", "", True), ("127.0.0.1:7860", "http://127.0.0.1:7860", True), ("[::1]:7860", "", True),
    ("localhost:7860", "http://localhost:7860", True), ("LOCALHOST:7860", "", True), ("192.168.0.7:7860", "", True),
    ("desk.example.org", "https://desk.example.org", True),
    ("evil.example", "", False), ("evil.example:7860", "http://evil.example:7860", False), ("", "", False),
    ("127.0.0.1.evil.example:7860", "", False), ("127.0.0.1:7860", "http://evil.example", False),
    ("127.0.0.1:7860", "null", False), ("127.0.0.1:7860", "http://127.0.0.1:8000", False),
])  # fmt: skip
def test_foreign_hosts_and_origins_are_refused(host, origin, fine):
    assert (refusal(host, origin, ("localhost", "desk.example.org")) == "") == fine


def test_the_oldest_files_go_first(tmp_path):
    for number, name in enumerate(["a", "b", "answer-1", "c", "d"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(bytes(100))
        os.utime(tmp_path / name, (number, number))
    delete_oldest(tmp_path, most=3, most_bytes=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer-1", "b", "c", "d"]
    delete_oldest(tmp_path, most=3, most_bytes=150)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer-1", "d"]
    delete_oldest(tmp_path, most=3, most_bytes=50)
    assert (tmp_path / "d").exists(), "the newest stays, it was uploaded just now"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The page in this process: its address and its folder of files."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setattr(guard, "UPLOADS_KEPT", 3)
        port = free_port()
        page = serve(RandomNetworks(("segmentation+depth",), folder), "127.0.0.1", port, max_mb=2)
        yield f"http://127.0.0.1:{port}", folder
        page.close(verbose=False)


def post(address: str, data: bytes, **headers: str) -> bytes:
    """Uploads a file as a browser does."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"} | headers
    return urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, kind)).read()


def test_the_server_refuses_foreign_pages_and_names(server):
    address, folder = server
    assert urllib.request.urlopen(address).status == 200
    before = sorted(folder.iterdir())
    for headers in (
        {"Origin": "http://evil.example"},
        {"Host": "evil.example"},
        {"Origin": "null"},
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(address, b"anything", **headers)
        assert refused.value.code == 403
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(f"{address}/config", headers=headers))
    assert sorted(folder.iterdir()) == before
    assert b"a.png" in post(address, b"anything", Origin=address)


def test_the_server_keeps_few_uploads(server):
    address, folder = server
    for number in range(6):
        kept = json.loads(post(address, bytes([number]) * 10))
    assert Path(kept[0]).is_file(), "the last one stays"
    assert len([path for path in folder.iterdir() if not path.name.startswith("answer-")]) <= 3


def test_the_server_too_refuses_large_files(server):
    """For requests that do not come from the page, which checks the size itself."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server[0], bytes(3 * 2**20))
    assert refused.value.code == 413


def ask(address: str, path: str) -> dict[str, object]:
    """The answer to a request for this file, sent without the page."""
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    upload = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "upload")
    call = next(item for item in config["dependencies"] if upload in item["inputs"])
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "segmentation+depth", ALL, None, 60]
    body = {"data": data, "fn_index": call["id"], "session_hash": "anybody", "trigger_id": upload}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request)
    said = ""
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=anybody", timeout=60) as stream:
        for line in stream:
            said += line.decode()
            if "process_completed" in said:
                break
    return json.loads(said.strip().splitlines()[-1].removeprefix("data: "))


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x.png", "https://example.org/x.png", "dataset.py"])
def test_files_come_from_uploads_only(server, path):
    address, _ = server
    answer = ask(address, path)
    assert answer["success"] is False and "plotly" not in str(answer)
    assert ("uploads only" in str(answer["output"]["error"])) == ("://" in path), answer
    for secret in (path, "../../../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/gradio_api/file={secret}")


def test_an_uploaded_picture_is_answered(server):
    address, _ = server
    answer = ask(address, json.loads(post(address, Path(SAMPLE).read_bytes()))[0])
    assert answer["success"] and "plotly" in str(answer) and "640 x 480 pixels" in str(answer["output"]["data"][-1])


def test_it_ends_while_it_is_busy(tmp_path):
    """SIGTERM, while a thread is busy with a picture."""
    (tmp_path / "app-x").mkdir()
    busy = f"""
import threading, time
from pathlib import Path
import app
app.end_at_signals(Path({str(tmp_path / "app-x")!r}))
threading.Thread(target=lambda: time.sleep(600)).start()
print("ready", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", busy], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=60) == 128 + 15
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == []


def test_mistakes_get_one_line(script, trained, tmp_path):
    assert "nothing.pt: no such file" in only_error_line(script("app.py", "--checkpoint", tmp_path / "nothing.pt"))
    assert "--port: got '0'" in only_error_line(script("app.py", "--port", 0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = script("app.py", "--checkpoint", trained / "best.pt", "--port", port, "--backend", "eager")
        assert f"port {port} of 127.0.0.1 cannot be had" in only_error_line(done)
