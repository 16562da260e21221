"""The picture to click: what the page says about a place, and in a real browser, which thing it names."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from app_networks import MAX_PIXELS, free_port
from PIL import Image
from test_app_browser import browser, upload

from app import serve
from deploy.field_of_view import FieldOfView
from tasks import NO_CLASS, Boxes, Depth, Instances, Normals, Segmentation
from tasks.box_objects import OBJECT
from tasks.instance_grouping import CLASS, DISTANCE, NUMBER
from tasks.instance_records import record_of
from webpage.charts import chart_step
from webpage.clicks import outline, picture_to_click, thing_text
from webpage.viewer import Viewer

CLASSES, COLORS = ("wall", "night_stand", "a < b"), ((90, 90, 90), (200, 40, 40), (40, 40, 200))
SIZE = HEIGHT, WIDTH = 240, 320
SEGMENTATION, DEPTH = Segmentation(classes=CLASSES, colors=COLORS), Depth()
INSTANCES = Instances(CLASSES[1:], COLORS[1:], CLASSES[:1], COLORS[:1])
BOXES = Boxes(classes=CLASSES[1:], colors=COLORS[1:])


def room() -> dict[str, np.ndarray]:
    """A wall 3 m away; a night stand 2 m away, an L whose right arm is low; before it `a < b`, 1.5 m away; and a corner
    of no class without depth."""
    maps = np.zeros((4, *SIZE), np.float32)
    maps[CLASS] = 2  # of INSTANCES: the wall
    for part in ((slice(40, 200), slice(40, 80)), (slice(160, 200), slice(80, 200))):
        maps[(slice(None), *part)] = np.reshape([3, 0, 0.87, 2.0], (4, 1, 1))
    maps[:, 170:190, 50:70] = np.reshape([1, 1, 0.5, 1.5], (4, 1, 1))
    depth = np.where(maps[NUMBER] > 0, maps[DISTANCE], 3.0).astype(np.float32)
    ids = np.array([1, 2, 0], np.uint8)[maps[CLASS].astype(int)]
    ids[:16, :16], depth[:16, :16] = NO_CLASS, 0
    camera = {"fx": 100, "fy": 100, "cx": 159.5, "cy": 119.5}
    boxes = np.zeros(2, OBJECT)
    boxes["box"], boxes["class"] = ((40, 40, 200, 200), (50, 170, 70, 190)), (0, 1)
    boxes["score"], boxes["distance_m"], boxes["xyz_m"] = (0.9, 0.6), (2, 1.5), np.nan
    return {
        "segmentation": ids, "depth": depth, "instances": INSTANCES.in_space(record_of(maps, 0.3), camera),
        "boxes": boxes,
    }  # fmt: skip


TASKS = {"segmentation": SEGMENTATION, "depth": DEPTH, "instances": INSTANCES, "boxes": BOXES}
GRAY = np.full((*SIZE, 3), 128, np.uint8)
STAND = (160 * 40 + 40 * 120 - 20 * 20) / (WIDTH * HEIGHT)  # its share


def known(page: str) -> dict[str, object]:
    return json.loads(html.unescape(re.search(r'data-known="([^"]*)"', page)[1]))


def paths(page: str) -> dict[int, np.ndarray]:
    """{thing: which pixels of the frame its path covers}, by another rasterizer."""
    found = {}
    for number, drawn in re.findall(r'<path data-thing="(\d+)" d="([^"]*)"', page):
        lines = [np.array(re.findall(r"([-\d.]+) ([-\d.]+)", part), float) for part in drawn.split("Z")[:-1]]
        fine = np.zeros((8 * HEIGHT, 8 * WIDTH), np.uint8)
        cv2.fillPoly(fine, [np.round(8 * line).astype(np.int32) for line in lines], 1)
        found[int(number)] = fine[4::8, 4::8] > 0  # the middles of the pixels
    return found


def test_words_about_a_thing():
    item = np.zeros((), OBJECT)
    item["class"], item["score"], item["distance_m"], item["xyz_m"] = 0, 0.874, 2.304, (0.4, -0.204, 2.304)
    expected = "night stand, 87%, 2.30 m away, 4.2% of the picture, at x 0.40, y -0.20, z 2.30 m"
    assert thing_text(CLASSES[1:], item, 0.042) == expected
    item["score"], item["distance_m"], item["xyz_m"] = np.nan, np.nan, np.nan
    assert thing_text(CLASSES[1:], item, 0.5) == "night stand, 50.0% of the picture"


def test_each_thing_is_a_path_of_its_own_pixels():
    found = room()
    page = picture_to_click(GRAY, TASKS, found, SIZE, "instances")
    shares = {1: 400 / (WIDTH * HEIGHT), 3: STAND}
    numbers = found["instances"]["things"]["number"].tolist()
    assert numbers == [3, 1], "best score first"
    for place, own in paths(page).items():
        mask = found["instances"]["number"] == numbers[place]
        assert (own != mask).sum() <= 0.01 * mask.sum() and mask.mean() == pytest.approx(shares[numbers[place]])
    texts = known(page)["things"]
    assert texts[0].startswith(f"night stand, 87%, 2.00 m away, {STAND:.1%} of the picture, at x ")
    assert texts[1].startswith("a < b, 50%, 1.50 m away, 0.5% of the picture, at x ")
    assert "<script" not in page and "a < b" not in page, "names are escaped"
    half = picture_to_click(GRAY[::2, ::2], TASKS, found, SIZE, "instances")
    for own, fine in zip(paths(half).values(), paths(page).values(), strict=True):
        assert (own != fine).sum() <= 0.1 * fine.sum() and fine.sum() > 300, "paths are in pixels of the frame"


@pytest.mark.parametrize("shape", ["dot", "ring", "corner"])
def test_outlines_hold_the_middle_of_each_pixel(shape):
    mask = np.zeros((9, 12), bool)
    if shape == "dot":
        mask[4, 5] = True
    else:
        mask[1:8, 2:10] = True
        mask[(slice(3, 6), slice(4, 8)) if shape == "ring" else (slice(0, 5), slice(5, 12))] = False
    fine = np.zeros((8 * 9, 8 * 12), np.uint8)
    cv2.fillPoly(fine, [np.round(8 * line).astype(np.int32) for line in outline(mask)], 1)
    np.testing.assert_array_equal(fine[4::8, 4::8] > 0, mask)
    rows, columns = np.nonzero(mask)
    ends = np.concatenate(outline(mask))
    sides = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    np.testing.assert_allclose(ends.min(0) + ends.max(0), sides.sum(0))


def test_a_box_is_clicked_before_the_larger_one_behind_it():
    page = picture_to_click(GRAY, TASKS, room(), SIZE, "boxes")
    assert list(paths(page)) == [0, 1], "the last one lies on top"
    assert [int(own.sum()) for own in paths(page).values()] == pytest.approx([160**2, 20**2], rel=0.02)
    assert known(page)["things"] == [
        f"night stand, 90%, 2.00 m away, {160**2 / WIDTH / HEIGHT:.1%} of the picture",
        f"a < b, 60%, 1.50 m away, {20**2 / WIDTH / HEIGHT:.1%} of the picture",
    ]
    numbers, _ = BOXES.thing_map(room()["boxes"], SIZE)
    assert (np.unique(numbers, return_counts=True)[1] == [WIDTH * HEIGHT - 160**2, 160**2 - 400, 400]).all()


def test_maps_are_as_small_as_the_depth_chart():
    size = (1000, 1501)
    depth = np.full(size, 7.25, np.float32)
    depth[0, 0], depth[0, 5], depth[5, 0] = np.nan, 700.0, 0.006
    found = {"segmentation": np.full(size, 1, np.uint8), "depth": depth}
    tasks = {"segmentation": SEGMENTATION, "depth": DEPTH}
    values = known(picture_to_click(np.zeros((500, 751, 3), np.uint8), tasks, found, size, ""))
    step, columns, rows = (values[name] for name in ("step", "columns", "rows"))
    assert (step, columns, rows) == (chart_step(size), 301, 200)
    metres = np.frombuffer(base64.b64decode(values["metres"]), "<u2").reshape(rows, columns)
    assert metres[0, 0] == 0 and metres[0, 1] == 65535 and metres[1, 0] == 1 and metres[2, 2] == 725
    assert len(base64.b64decode(values["classes"])) == rows * columns and values["names"][1] == "night stand"
    assert picture_to_click(GRAY, {"normals": Normals()}, {}, SIZE, "") is None


class FixedPredictor:
    """Stands for a network, and for the predictor of it: the same room in each picture. With a field of view, all is
    twice as far away."""

    name = "fixed"

    def __init__(self, tasks: dict[str, object], fov: float | None = None) -> None:
        self.zoom = 2.0 if fov else 1.0
        self.tasks, self.backend, self.domains, self.cameras = tasks, self, {}, {}
        self.field_of_view = FieldOfView(self, "", None)

    def __call__(self, image: np.ndarray, focal: float | None = None) -> dict[str, np.ndarray]:
        return {name: task.for_camera(room()[name], self.zoom) for name, task in self.tasks.items()}


@contextmanager
def page_of(tmp_path: Path, *names: str) -> Iterator:
    """The app in a browser, with a network of these tasks, after an upload; and the addresses it asked for."""
    pytest.importorskip("gradio")
    tasks = {name: TASKS[name] for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setattr("webpage.viewer.Predictor", lambda *_, fov=None, **__: FixedPredictor(tasks, fov))
        port = free_port()
        viewer = Viewer({"fixed": Path("fixed")}, tmp_path, "eager", "cpu", MAX_PIXELS)
        served = serve(viewer, "127.0.0.1", port, max_mb=2)
        try:
            with browser(f"http://127.0.0.1:{port}") as page:
                Image.fromarray(GRAY).save(tmp_path / "gray.png")
                upload(page, tmp_path / "gray.png")
                page.wait_for_selector("#seen .picture img")
                page.wait_for_selector("#slider img")
                yield page
        finally:
            served.close(verbose=False)


def click(page, column: int, row: int) -> str:
    """Clicks at the middle of a pixel of the frame; what the page says then."""
    box = page.locator("#seen .picture img").bounding_box()
    page.locator("#seen .picture").click(
        position={"x": (column + 0.5) / WIDTH * box["width"], "y": (row + 0.5) / HEIGHT * box["height"]}
    )
    return page.locator("#seen .said").inner_text()


def test_a_click_names_the_thing(tmp_path):
    with page_of(tmp_path, "segmentation", "depth", "instances") as page:
        assert page.locator("#seen .said").inner_text() == "Click a thing to see what it is."
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        for column, row in ((60, 60), (190, 180), (45, 180)):  # both arms of the L, and beside what stands before it
            text = click(page, column, row)
            assert text.startswith(f"night stand, 87%, 2.00 m away, {STAND:.1%} of the picture"), text
        assert page.locator("#seen path.chosen").count() == 1
        assert click(page, 60, 180).startswith("a < b, 50%, 1.50 m away, 0.5% of the picture")
        assert page.locator("#seen path.chosen").get_attribute("data-thing") == "1"
        assert click(page, 150, 100) == "wall, 3.00 m" and not page.locator("#seen path.chosen").count()
        assert click(page, 5, 5) == "no class, distance not known"
        assert not asked, "a click asks the server for nothing"
        page.locator("#fov input[type=number]").fill("60")  # another answer in the same part of the page
        page.locator("#fov input[type=number]").blur()
        page.wait_for_function("document.querySelector('#seen .said').innerText.startsWith('Click')")
        assert click(page, 60, 60).startswith("night stand, 87%, 4.00 m away")
        assert "night stand" in page.inner_text("#objects"), "the table lists the things, too"


def test_without_things_a_click_names_class_and_metres(tmp_path):
    with page_of(tmp_path, "segmentation", "depth") as page:
        assert page.locator("#seen .said").inner_text() == "Click a place to see what it is."
        assert [click(page, *place) for place in ((60, 60), (60, 180), (300, 230))] == [
            "night stand, 2.00 m", "a < b, 1.50 m", "wall, 3.00 m",
        ]  # fmt: skip
