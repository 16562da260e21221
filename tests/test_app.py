"""What the page shows for a picture: tables, plots, parts, messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from app_networks import MAX_PIXELS, SAMPLE, RandomNetworks

from app import choose, find_checkpoints, look, make_page
from deploy.predictor import Predictor
from networks.checkpoints import SHIPPED
from scene3d.fusion import Surface
from tasks import Boxes, Depth, Segmentation
from tasks.box_objects import OBJECT
from webpage.charts import CLOUD_POINTS, cloud_plot, hover_plot
from webpage.tables import shares, things
from webpage.viewer import ALL, ANSWERS_KEPT, NETWORKS_KEPT, Viewer

TASK = Segmentation(classes=("wall", "a < b", "chair"), colors=((1, 2, 3), (40, 50, 60), (7, 8, 9)))


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
    rows = things(task, objects, (9, 9))
    assert [row[1:] for row in rows] == [
        ["chair", "91%", "2.30 m", "0.40, -0.20, 2.30"],
        ["night stand", "30%", "", ""],
    ]
    assert "rgb(40,50,60)" in rows[0][0] and things(task, objects[:0], (9, 9)) == []


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


@pytest.mark.parametrize("tasks", ["depth", "segmentation", "normals", "boxes", "depth+boxes", "segmentation+depth"])
def test_parts_of_the_page_for_tasks_that_a_network_lacks_are_hidden(tasks, tmp_path):
    pytest.importorskip("gradio")
    viewer = RandomNetworks((tasks,), tmp_path)
    answer = look(viewer, SAMPLE, tasks, ALL, tasks.split("+")[0], 60.0)
    slider, chart, rows, objects, points, seen, files, line = answer
    picture, over = slider["value"]
    assert picture.shape == over.shape and slider["visible"] and f"; {tasks.replace('+', ', ')}" in line
    depth, classes = "depth" in tasks, "segmentation" in tasks
    assert (chart["visible"], points["visible"], rows["visible"]) == (depth, depth, classes)
    assert (chart["value"] is None, points["value"] is None, bool(rows["value"])) == (not depth, not depth, classes)
    assert seen["visible"] == (tasks != "normals") == (seen["value"] is not None)
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


def test_the_page_asks_for_nothing_when_it_is_loaded(tmp_path):
    """An answer that is due then would close the stream in which a quick visitor's picture is answered."""
    pytest.importorskip("gradio")
    config = make_page(RandomNetworks(("segmentation+depth", "depth"), tmp_path)).config
    events = {event for dependency in config["dependencies"] for _, event in dependency["targets"]}
    assert {"change", "input", "release", "click"} <= events and "load" not in events
    over = next(item["props"] for item in config["components"] if item["props"].get("elem_id") == "over")
    assert over["value"] == "segmentation" and over["visible"]
    assert [name for name, _ in over["choices"]] == ["segmentation", "depth"]


def test_old_answers_go(tmp_path):
    viewer = RandomNetworks(("depth",), tmp_path)
    first = viewer(SAMPLE, "depth", ALL, "", 60.0)[6]
    for _ in range(5):
        viewer(SAMPLE, "depth", ALL, "", 60.0)
    assert not Path(first[0]).exists() and len(list(tmp_path.iterdir())) == ANSWERS_KEPT


def test_names_of_results_are_whole(tmp_path):
    name = "living room, seen from the door on a Sunday afternoon in November, before anybody had tidied up (2)"
    shutil.copy(SAMPLE, tmp_path / f"{name}.jpg")
    files = RandomNetworks(("depth",), tmp_path / "..")(str(tmp_path / f"{name}.jpg"), "depth", ALL, "", 60.0)[6]
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

    monkeypatch.setattr("webpage.viewer.Predictor", Counted)
    viewer = Viewer({name: Path(name) for name in "abc"}, tmp_path, "eager", "cpu", MAX_PIXELS)
    for name in "abcab":
        viewer.network(name)
    assert max(most) == NETWORKS_KEPT
