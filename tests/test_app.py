"""The page: in a real browser once, and by requests to a server in this process."""

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
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, only_error_line
from PIL import Image

import app
from app import ALL, Viewer, choose, find_checkpoints, look, serve
from config import Config
from deploy.predictor import Predictor
from drawing import class_palette
from model import build_network
from networks.checkpoints import SHIPPED
from scene3d.fusion import Surface
from tasks import Boxes, Depth, Normals, Segmentation
from tasks.box_objects import OBJECT
from webpage import guard
from webpage.charts import CLOUD_POINTS, cloud_plot, hover_plot
from webpage.guard import delete_oldest, refusal
from webpage.tables import shares, things

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TASK = Segmentation(classes=("wall", "a < b", "chair"), colors=((1, 2, 3), (40, 50, 60), (7, 8, 9)))
MAX_PIXELS = 640 * 480


def test_shares_of_the_classes():
    ids = np.array([[1, 1, 1, 0], [1, 1, 1, 255]])
    depth = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    rows = shares(TASK, ids, depth)
    assert [row[1:] for row in rows] == [["a < b", "75.0 %", "4.00 m"], ["wall", "12.5 %", "4.00 m"]]
    assert "rgb(40,50,60)" in rows[0][0] and shares(TASK, ids, None)[0][3] == ""


def test_a_row_for_each_object():
    task = Boxes(classes=("night_stand", "chair"), colors=((1, 2, 3), (40, 50, 60)))
    objects = np.zeros(2, OBJECT)
    objects["score"], objects["class"], objects["distance_m"] = (0.914, 0.3), (1, 0), (2.304, np.nan)
    objects["xyz_m"] = ((0.4, -0.204, 2.304), (np.nan,) * 3)
    rows = things(task, objects)
    assert [row[1:] for row in rows] == [
        ["chair", "91%", "2.30 m", "0.40, -0.20, 2.30"],
        ["night stand", "30%", "", ""],
    ]
    assert "rgb(40,50,60)" in rows[0][0] and things(task, objects[:0]) == []


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


def test_without_checkpoints_all_runs_are_offered_or_the_weights_in_the_repository(here):
    with pytest.raises(FileNotFoundError, match="no run in runs/"):
        find_checkpoints([])
    SHIPPED.parent.mkdir()
    SHIPPED.touch()
    assert find_checkpoints([]) == {SHIPPED.name: SHIPPED}
    for name in ("a/best.pt", "b/best.pt", "b/last.pt"):
        Path("runs", name).parent.mkdir(parents=True, exist_ok=True)
        Path("runs", name).touch()
    assert find_checkpoints([]) == {"b": Path("runs/b/best.pt"), "a": Path("runs/a/best.pt")}


class RandomNetworks(Viewer):
    """A viewer of networks with random weights; the tasks of each are in its name."""

    def __init__(self, names: tuple[str, ...], folder: Path) -> None:
        super().__init__({name: Path(name) for name in names}, folder, "eager", "cpu", MAX_PIXELS)
        self.opened: dict[str, Predictor] = {}

    def network(self, name: str, domain: str = ALL) -> Predictor:
        if name not in self.opened:
            small = {"encoder": "mobilenetv2_100", "decoder_width": 16, "crp_stages": 1, "long_side": 96}
            colors = tuple(map(tuple, class_palette()[1:6].tolist()))
            known = {
                "segmentation": Segmentation(classes=tuple("abcde"), colors=colors), "depth": Depth(),
                "normals": Normals(), "boxes": Boxes(classes=tuple("abcde"), colors=colors, least_score=0.001),
            }  # fmt: skip
            tasks = {task: known[task] for task in name.split("+")}
            network = build_network(Config(encoder_weights="none", **small), tasks, load_encoder=False)
            self.opened[name] = Predictor(network.eval(), "eager", "cpu")
        return self.opened[name]


SAMPLE = str(ROOT / "media" / "sample.jpg")


@pytest.mark.parametrize("tasks", ["depth", "segmentation", "normals", "boxes", "depth+boxes", "segmentation+depth"])
def test_parts_of_the_page_for_tasks_that_a_network_lacks_are_hidden(tasks, tmp_path):
    pytest.importorskip("gradio")
    viewer = RandomNetworks((tasks,), tmp_path)
    slider, chart, rows, objects, points, files, line = look(viewer, SAMPLE, tasks, ALL, tasks.split("+")[0], 60.0)
    picture, over = slider["value"]
    assert picture.shape == over.shape and slider["visible"] and f"; {tasks.replace('+', ', ')}" in line
    depth, classes = "depth" in tasks, "segmentation" in tasks
    assert (chart["visible"], points["visible"], rows["visible"]) == (depth, depth, classes)
    assert (chart["value"] is None, points["value"] is None, bool(rows["value"])) == (not depth, not depth, classes)
    boxes = "boxes" in tasks
    assert objects["visible"] == bool(objects["value"]) == boxes
    suffixes = {".jpg"} | ({".png"} if tasks != "boxes" else set()) | ({".ply"} if depth else set())
    assert {Path(path).suffix for path in files} == suffixes | ({".json"} if boxes else set())
    if boxes:
        (file,) = (Path(path) for path in files if path.endswith("_objects.json"))
        saved = json.loads(file.read_text())
        assert (saved["image"], saved["width"], saved["height"]) == ("sample.jpg", 640, 480)
        assert len(saved["objects"]) == len(objects["value"])
        for (_, _, score, metres, place), item in zip(objects["value"], saved["objects"], strict=True):
            assert score == f"{item['score']:.0%}"
            assert (metres != "") == (item["distance_m"] is not None) == depth == (place != "")
    domain, choice, text = choose(viewer, tasks)
    assert text == "" and choice.visible == ("+" in tasks) and not domain.visible


def test_old_answers_go(tmp_path):
    viewer = RandomNetworks(("depth",), tmp_path)
    first = viewer(SAMPLE, "depth", ALL, "", 60.0)[5]
    for _ in range(5):
        viewer(SAMPLE, "depth", ALL, "", 60.0)
    assert not Path(first[0]).exists() and len(list(tmp_path.iterdir())) == app.ANSWERS_KEPT


def test_names_of_results_are_whole(tmp_path):
    name = "living room, seen from the door on a Sunday afternoon in November, before anybody had tidied up (2)"
    shutil.copy(SAMPLE, tmp_path / f"{name}.jpg")
    files = RandomNetworks(("depth",), tmp_path / "..")(str(tmp_path / f"{name}.jpg"), "depth", ALL, "", 60.0)[5]
    assert f"{name}_depth.png" in {Path(file).name for file in files}


@pytest.mark.parametrize(("problem", "words"), [
    (ValueError("a < b"), "a &lt; b"), (MemoryError(), "unexpected MemoryError"),
    (RuntimeError("shape <x>"), "unexpected RuntimeError: shape &lt;x&gt;; the terminal of app.py says more"),
], ids=repr)  # fmt: skip
def test_a_problem_is_one_message_that_stays(problem, words, tmp_path, capsys):
    pytest.importorskip("gradio")

    class Broken(RandomNetworks):
        def network(self, name: str, domain: str = ALL) -> Predictor:
            raise problem

    viewer = Broken(("depth",), tmp_path)
    *parts, files, line = look(viewer, SAMPLE, "depth", ALL, "", 60.0)
    assert words in line and "<x>" not in line
    assert all(part["value"] is None and not part["visible"] for part in parts) and files["value"] is None
    assert words in choose(viewer, "depth")[-1]
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(problem, ValueError))


def test_the_oldest_network_goes_before_the_next_is_loaded(monkeypatch, tmp_path):
    alive, most = set(), []

    class Counted:
        def __init__(self, path: Path, *_: object) -> None:
            self.path = path
            alive.add(path)
            most.append(len(alive))

        def __del__(self) -> None:
            alive.discard(self.path)

    monkeypatch.setattr(app, "Predictor", Counted)
    viewer = Viewer({name: Path(name) for name in "abc"}, tmp_path, "eager", "cpu", MAX_PIXELS)
    for name in "abcab":
        viewer.network(name)
    assert max(most) == app.NETWORKS_KEPT


# ---------------------------------------------------------------------------------------------- who may ask


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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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


# ---------------------------------------------------------------------------------------------- script and browser


def test_mistakes_get_one_line(script, trained, tmp_path):
    assert "nothing.pt: no such file" in only_error_line(script("app.py", "--checkpoint", tmp_path / "nothing.pt"))
    assert "--port: got '0'" in only_error_line(script("app.py", "--port", 0))
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
    port = free_port()
    command = [sys.executable, ROOT / "app.py", "--checkpoint", trained / "best.pt", other, "--port", port,
               "--backend", "eager", "--max_mb", 2, "--max_pixels", MAX_PIXELS]  # fmt: skip
    kept = tmp_path_factory.mktemp("kept")
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(kept)}
    )
    try:
        assert process.stdout.readline() == f"loading {trained / 'best.pt'} ...\n"
        line = process.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port} (trained, other)"), line
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert not list(kept.glob("app-*")), "uploads are still there"


@contextmanager
def browser(address: str) -> Iterator:
    """The app in headless Chromium; it may ask nobody but the app for anything."""
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        page = chromium.new_page(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
        page.set_default_timeout(60_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#upload input[type=file]", state="attached")
        yield page
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        chromium.close()


@pytest.fixture
def page(address):
    with browser(address) as page:
        yield page


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
    assert not page.locator("#objects").is_visible(), "this network predicts no boxes"

    name = page.locator("#files .filename").first
    assert name.inner_text().startswith("my photo") and name.evaluate("it => it.scrollWidth <= it.clientWidth + 1")

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
    page.locator("#metres .js-plotly-plot .nsewdrag").first.hover()
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
    page.get_by_text("notes.png: not an image that can be read").wait_for()
    assert "/tmp" not in page.inner_text("#line") and not page.locator(".toast-body").count()
    assert not page.locator("#metres").is_visible() and not page.locator("#classes").is_visible()
    page.get_by_label("Clear").first.click()
    Image.new("RGB", (641, 480)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.get_by_text("large.png: 307,680 pixels; at most 307,200").wait_for()
    page.get_by_label("Clear").first.click()
    (tmp_path / "heavy.png").write_bytes(bytes(3 * 2**20))
    upload(page, tmp_path / "heavy.png")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.reload()  # and it goes on working
    page.locator("#sample").click()
    page.wait_for_selector("#metres .js-plotly-plot")


def test_objects_stand_beside_the_classes(tmp_path):
    """With a field of view, each has a position; the points move to the next row."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        port = free_port()
        served = serve(RandomNetworks(("segmentation+depth+boxes",), tmp_path), "127.0.0.1", port, max_mb=2)
        try:
            with browser(f"http://127.0.0.1:{port}") as page:
                page.get_by_label("boxes", exact=True).check()
                upload(page, photo(tmp_path))
                page.wait_for_selector("#cloud .js-plotly-plot canvas")
                page.wait_for_function("/\\d+%\\s+\\d+\\.\\d\\d m/.test(document.querySelector('#objects').innerText)")
                assert not re.search(r"\d, -?\d+\.\d\d,", page.inner_text("#objects")), "the camera is not known"
                page.locator("#fov input[type=number]").fill("60")
                page.locator("#fov input[type=number]").blur()
                page.wait_for_function("/\\d, -?\\d+\\.\\d\\d, \\d/.test(document.querySelector('#objects').innerText)")
                classes, objects, points = (
                    page.locator(name).bounding_box() for name in ("#classes", "#objects", "#cloud")
                )
                assert abs(classes["y"] - objects["y"]) < 5 and classes["x"] + classes["width"] <= objects["x"]
                assert points["y"] >= classes["y"] + classes["height"]
                names = page.locator("#files a").evaluate_all("links => links.map(link => link.download)")
                assert "my photo_objects.json" in names
        finally:
            served.close(verbose=False)
