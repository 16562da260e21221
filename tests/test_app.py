"""The page in a real browser: a picture goes in, both results come out, and what is no picture gets a message."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, only_error_line
from PIL import Image

from app import CLOUD_POINTS, Viewer, cloud_plot, find_checkpoints, hover_plot, shares
from scene3d.fusion import Surface
from tasks import Depth, Segmentation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TASK = Segmentation(classes=("wall", "a < b", "chair"), colors=((1, 2, 3), (40, 50, 60), (7, 8, 9)))
MAX_PIXELS = 640 * 480


def test_shares_of_the_classes():
    ids = np.array([[1, 1, 1, 0], [1, 1, 1, 255]])
    depth = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    rows = shares(TASK, ids, depth)
    assert [row[1:] for row in rows] == [["a &lt; b", "75.0 %", "4.00 m"], ["wall", "12.5 %", "4.00 m"]]
    assert "rgb(40,50,60)" in rows[0][0] and shares(TASK, ids, None)[0][3] == ""


def test_metres_under_the_pointer_are_those_of_their_pixels():
    depth = np.random.default_rng(0).random((481, 641)).astype(np.float32) * 8
    ids = np.where(depth > 4, 1, 2).astype(np.uint8)
    heat = hover_plot(Depth(max_m=8.0), depth, ids, TASK.classes).data[0]
    assert heat.z.shape == (161, 214) and heat.dx == heat.dy == 3 and (heat.zmin, heat.zmax) == (0, 8)
    np.testing.assert_allclose(heat.z[100, 50], depth[300, 150], atol=5e-4)
    assert [heat.text[100, x] for x in range(214)] == ["a &lt; b" if d > 4 else "chair" for d in depth[300, ::3]]
    assert hover_plot(Depth(max_m=8.0), depth, None, ()).data[0].text is None


def test_the_cloud_has_the_points_of_each_class():
    rng = np.random.default_rng(0)
    points = rng.random((3 * CLOUD_POINTS, 3)).astype(np.float32)
    ids = np.repeat(np.array([0, 2, 255], np.uint8), CLOUD_POINTS)
    surface = Surface(points, rng.integers(0, 256, points.shape, np.uint8), ids, np.empty((0, 3), np.int32))
    figure = cloud_plot(surface, TASK.classes, TASK.colors)
    assert [trace.name for trace in figure.data] == ["wall", "chair", "points"]
    assert sum(len(trace.x) for trace in figure.data) == CLOUD_POINTS
    own = {tuple(np.round(point, 3)): color for point, color in zip(points, surface.colors, strict=True)}
    trace = figure.data[1]
    for place in range(0, len(trace.x), 997):  # y of a picture points down, z away from it
        color = own[tuple(np.float32(value) for value in (trace.x[place], -trace.z[place], trace.y[place]))]
        assert trace.marker.color[place] == "rgb({},{},{})".format(*color)


def test_names_of_networks(tmp_path):
    for name in ("a/best.pt", "b/best.pt", "c/x.onnx", "d/a/best.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [tmp_path / name for name in ("a/best.pt", "b/best.pt", "c/x.onnx")]
    assert find_checkpoints([str(path) for path in paths]) == dict(zip(("a", "b", "x.onnx"), paths, strict=True))
    both = [str(tmp_path / "a/best.pt"), str(tmp_path / "d/a/best.pt")]
    assert list(find_checkpoints(both)) == both


@pytest.mark.parametrize("missing", ["segmentation", "depth"])
def test_a_network_of_one_task(missing, script, tiny_settings, tmp_path):
    task = {"segmentation": "depth", "depth": "segmentation"}[missing]
    options = ["--config", tiny_settings, "--epochs", 1, "--eval_every", 1, "--tasks", task, "--run", tmp_path / "run"]
    assert script("train.py", *options).returncode == 0
    viewer = Viewer({"it": tmp_path / "run" / "best.pt"}, tmp_path, "eager", "cpu", MAX_PIXELS)
    (image, over), metres, rows, turn, files, line = viewer(
        str(ROOT / "media" / "sample.jpg"), "it", "all data sets", task, 60.0
    )
    assert image.shape == over.shape and task in line
    assert (metres is None, turn is None, bool(rows)) == (
        task == "segmentation",
        task == "segmentation",
        task != "depth",
    )
    assert {Path(path).suffix for path in files} == {".jpg", ".png"} | ({".ply"} if task == "depth" else set())
    for _ in range(6):
        viewer(str(ROOT / "media" / "sample.jpg"), "it", "all data sets", "", 60.0)
    assert not Path(files[0]).exists() and len([path for path in tmp_path.iterdir() if path.name != "run"]) == 4


def test_mistakes_get_one_line(script, trained, tmp_path):
    assert "nothing.pt: no such file" in only_error_line(script("app.py", "--checkpoint", tmp_path / "nothing.pt"))
    assert "--port must be" in only_error_line(script("app.py", "--port", 0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = script("app.py", "--checkpoint", trained / "best.pt", "--port", port, "--backend", "eager")
        assert f"port {port} of 127.0.0.1 cannot be had" in only_error_line(done)


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory) -> Iterator[str]:
    """Of a running app with two networks."""
    other = tmp_path_factory.mktemp("other") / "other" / "best.pt"
    other.parent.mkdir()
    shutil.copy(trained / "best.pt", other)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "app.py", "--checkpoint", trained / "best.pt", other, "--port", port,
               "--backend", "eager", "--max_mb", 2, "--max_pixels", MAX_PIXELS]  # fmt: skip
    kept = tmp_path_factory.mktemp("kept")
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(kept)}
    )
    try:
        line = process.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port} (trained, other)"), line
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert not list(kept.glob("app-*")), "uploads are still there"


@pytest.fixture
def page(address):
    """The app in headless Chromium; it may ask nobody but the app for anything."""
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
        page.set_default_timeout(60_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#upload input[type=file]", state="attached")
        yield page
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        browser.close()


def photo(tmp_path: Path) -> Path:
    """A real one where it is there."""
    real = sorted((SHARED / "data" / "redkitchen" / "rgb").glob("*")) or [ROOT / "media" / "sample.jpg"]
    return Path(shutil.copy(real[0], tmp_path / f"my photo{real[0].suffix}"))


def upload(page, path: Path) -> None:
    page.set_input_files("#upload input[type=file]", path)


def test_a_picture_goes_in_and_both_results_come_out(page, script, trained, tmp_path):
    path = photo(tmp_path)
    width, height = Image.open(path).size
    upload(page, path)
    page.wait_for_selector("#metres .js-plotly-plot .hm image, #metres .js-plotly-plot .heatmaplayer image")
    page.wait_for_selector("#cloud .js-plotly-plot canvas")
    assert page.locator("#slider img").count() == 2
    classes = page.inner_text("#classes")
    assert re.search(r"\d+\.\d %", classes) and re.search(r"\d\.\d\d m", classes)

    # What inference.py writes is what can be downloaded.
    done = script("inference.py", "--checkpoint", trained / "best.pt", "--input", path, "--output", tmp_path / "out",
                  "--backend", "eager")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("my photo_segmentation.png", "my photo_depth.png"):
        with page.expect_download() as download:
            page.locator(f'#files a[download="{name}"]').click()
        saved, expected = np.array(Image.open(download.value.path())), np.array(Image.open(tmp_path / "out" / name))
        assert saved.shape == expected.shape and (saved == expected).mean() > 0.999, name

    # Under the pointer: metres, as in the file, and the class.
    box = page.locator("#metres .js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#metres .hoverlayer text")
    shown = page.locator("#metres .hoverlayer").text_content()
    metres = float(re.search(r"(\d+\.\d\d) m", shown)[1])
    depth = np.array(Image.open(tmp_path / "out" / "my photo_depth.png")) / 1000
    height, width = depth.shape
    middle = depth[height // 2 - 12 : height // 2 + 12, width // 2 - 12 : width // 2 + 12]
    assert middle.min() - 0.01 <= metres <= middle.max() + 0.01, shown
    assert re.match(r"[a-z ]+\d", shown), shown  # the name of the class comes first

    page.get_by_label("depth", exact=True).check()  # another task over the picture, another network
    page.locator("#network input").click()
    page.get_by_role("option", name="other").click()
    page.get_by_text(f"other: {width} x {height} pixels").wait_for()


def test_what_is_no_picture_gets_a_message(page, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    upload(page, text)
    toast = page.locator(".toast-body")
    toast.wait_for()
    assert "notes.png: not an image that can be read" in toast.inner_text() and "/tmp" not in toast.inner_text()
    page.locator(".toast-close").click()
    page.get_by_label("Clear").first.click()
    Image.new("RGB", (641, 480)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.get_by_text("large.png: 307,680 pixels; at most 307,200").wait_for()
    page.locator(".toast-close").click()
    page.get_by_label("Clear").first.click()
    (tmp_path / "heavy.png").write_bytes(bytes(3 * 2**20))
    upload(page, tmp_path / "heavy.png")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.reload()  # and it goes on working
    page.locator("#sample").click()
    page.wait_for_selector("#metres .js-plotly-plot")


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x.png", "https://example.org/x.png", "dataset.py"])
def test_files_come_from_uploads_only(address, path):
    """As somebody would ask who does not use the page."""
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    upload = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "upload")
    call = next(item for item in config["dependencies"] if upload in item["inputs"])
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "trained", "all data sets", "depth", 60]
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
    answer = json.loads(said.strip().splitlines()[-1].removeprefix("data: "))
    assert answer["success"] is False and "plotly" not in said
    assert ("uploads only" in str(answer["output"]["error"])) == ("://" in path), answer
    for secret in (path, "../../../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/gradio_api/file={secret}")


def test_the_server_too_refuses_large_files(address):
    """Who does not use the page is not checked by it."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="heavy.png"\r\n\r\n'
    body += bytes(3 * 2**20) + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, kind))
    assert refused.value.code == 413
