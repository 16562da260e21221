"""The page in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from app_networks import MAX_PIXELS, RandomNetworks, free_port
from conftest import ROOT, SHARED
from PIL import Image

from app import serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
