"""k-means anchors of a data set's boxes, and the command that prints them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from box_sets import write_boxes
from conftest import only_error_line, shared
from darknet_nets import CONFIGS

import prepare
from networks.darknet_cfg import parse_cfg
from sources import anchors
from sources.anchors import find_anchors, overlaps, shapes_at_input

YOLO = {"format": "yolo", "classes": ["a", "b"]}


def fit(shapes: np.ndarray, found: np.ndarray) -> float:
    return float(overlaps(shapes, found).max(1).mean())


def test_overlaps_by_hand():
    shapes, others = np.array([[2.0, 4.0], [3.0, 3.0]]), np.array([[4.0, 2.0], [2.0, 4.0]])
    assert overlaps(shapes, others) == pytest.approx(np.array([[4 / 12, 1.0], [6 / 11, 6 / 11]]))


def test_clusters_made_by_hand_are_found():
    centers = np.array([[10, 30], [60, 20], [100, 200], [300, 150]])
    offsets = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1], [0, 0]])
    shapes = (centers[:, None] + offsets[None]).reshape(-1, 2)
    assert find_anchors(shapes, 4) == pytest.approx(centers[[0, 1, 2, 3]])
    shuffled = np.random.default_rng(1).permutation(np.repeat(shapes, 3, axis=0))
    assert find_anchors(shuffled, 4).tolist() == find_anchors(shapes, 4).tolist(), "order and copies do not count"


def test_frequent_shapes_weigh_more():
    shapes = np.array([[10.0, 10.0]] * 9 + [[20.0, 20.0]] + [[200.0, 200.0]])
    assert find_anchors(shapes, 2) == pytest.approx(np.array([[11.0, 11.0], [200.0, 200.0]]))


@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_all_partitions_in_which_nothing_moves(seed):
    """Of 8 shapes in 3 parts, 5796 ways: those whose means are the anchors that serve their own parts best."""
    shapes = np.random.default_rng(seed).uniform(5, 300, (8, 2))
    still = []
    for way in map(np.array, itertools.product(range(3), repeat=8)):
        if set(way) == {0, 1, 2}:
            means = np.stack([shapes[way == part].mean(0) for part in range(3)])
            if np.array_equal(overlaps(shapes, means).argmax(1), way):
                still.append(fit(shapes, means))
    found = find_anchors(shapes, 3)
    assert fit(shapes, found) == pytest.approx(max(still)), sorted(set(still))
    assert found.prod(1).tolist() == sorted(found.prod(1))


def test_as_many_anchors_as_shapes_are_the_shapes_and_more_are_refused():
    shapes = np.array([[5.0, 9.0], [50.0, 20.0], [5.0, 9.0], [7.0, 7.0]])
    assert find_anchors(shapes, 3).tolist() == [[5, 9], [7, 7], [50, 20]]
    with pytest.raises(
        ValueError, match="3 different shapes of boxes, but 4 anchors are wanted; --count 3 is the most"
    ):
        find_anchors(shapes, 4)


def test_an_even_part_of_very_many_shapes_is_clustered(monkeypatch):
    monkeypatch.setattr(anchors, "MOST_SHAPES", 50)
    shapes = np.random.default_rng(0).uniform(5, 300, (2000, 2))
    few = find_anchors(shapes, 5)
    monkeypatch.undo()
    assert fit(shapes, few) == pytest.approx(fit(shapes, find_anchors(shapes, 5)), abs=0.05)


def test_pictures_are_scaled_as_the_network_sees_them():
    boxes = np.array([[10, 20, 110, 70, 0, 0, 0]], np.float32)  # 100 x 50 in a picture of 400 x 200
    assert shapes_at_input(boxes, (200, 400), (416, 416), "letterbox").tolist() == [[104, 52]]
    assert shapes_at_input(boxes, (200, 400), (416, 416), "stretch").tolist() == [[104, 104]]
    assert shapes_at_input(boxes, (200, 400), (160, 320), "letterbox").tolist() == [[80, 40]]
    assert shapes_at_input(boxes, (200, 400), (320, 160), "letterbox").tolist() == [[80, 40]], "the longer side counts"
    assert shapes_at_input(boxes, (200, 400), (320, 160), "stretch").tolist() == [[40, 80]]


def test_the_command_prints_a_line_of_a_cfg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"a": "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.25 0.1\n", "b": "0 0.5 0.5 0.5 0.5\n", "c": "", "d": None}
    data = write_boxes(tmp_path / "data", YOLO, labels, (100, 200))
    words = ["anchors", "--data", str(data), "--count", "2", "--size", "416"]
    assert prepare.main(words) == 0
    printed = capsys.readouterr().out
    assert printed == (
        "3 boxes of 3 frames (train), letterbox to 416x416\n"
        "anchors = 104,20.8, 208,104\n"
        "mean IoU of a box with its best anchor 1.0000, least 1.0000\n"
    )
    assert prepare.main([*words, "--scaling", "stretch"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line == "anchors = 104,41.6, 208,208"
    # A .cfg with that line is read.
    text = re.sub(r"(?m)^anchors *=.*$", line, (CONFIGS / "yolov3-tiny.cfg").read_text())
    text = re.sub(r"(?m)^num *=.*$", "num=2", re.sub(r"(?m)^mask *=.*$", "mask=0,1", text)).replace("=255", "=170")
    assert parse_cfg(text, "test").yolo[0].anchors == ((104, 41.6), (208, 208))


def test_ignored_boxes_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thing = (
        "<object><name>a</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax>"
        "<ymax>50</ymax></bndbox></object>"
    )
    text = f"<annotation>{thing.format(0, 20)}{thing.format(1, 40)}</annotation>"
    data = write_boxes(tmp_path / "data", {"format": "voc", "classes": ["a"]}, {"a": text}, (100, 100))
    assert prepare.main(["anchors", "--data", str(data), "--count", "1", "--size", "100"]) == 0
    assert "\nanchors = 20,50\n" in capsys.readouterr().out


def test_data_without_boxes_is_one_line(script, rooms_folder, tmp_path):
    words = ("prepare.py", "anchors", "--data")
    masks = write_boxes(tmp_path / "none", YOLO, {"a": "", "b": None}, (50, 60))
    assert only_error_line(script(*words, masks)) == (
        f"error: {masks}: no box in the 1 frames of the split 'train' that have a label file"
    )
    few = write_boxes(tmp_path / "few", YOLO, {"a": "0 .5 .5 .5 .5\n0 .5 .5 .5 .5\n"}, (50, 60))
    assert only_error_line(script(*words, few)) == (
        f"error: {few}: 1 different shapes of boxes, but 9 anchors are wanted; --count 1 is the most"
    )
    dense = shared("data/replica_office0")
    assert only_error_line(script(*words, dense)) == (
        f"error: {dense}: it has no boxes labels; it has: segmentation, depth"
    )
    for more, message in (
        (("--size", "0"), "it takes WIDTHxHEIGHT"),
        (("--size", "wide"), "it takes"),
        (("--count", "0"), "at least 1"),
        (("--split", "tran"), "no split 'tran' (did you mean 'train'?)"),
        (("--scaling", "crop"), "invalid choice"),
    ):
        assert message in only_error_line(script(*words, few, *more)), more


def test_anchors_of_real_boxes_fit_them_better_than_those_of_coco(capsys: pytest.CaptureFixture[str]) -> None:
    data = shared("data/coco128")
    assert prepare.main(["anchors", "--data", str(data)]) == 0
    first, line, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("817 boxes of 101 frames (train)")
    found = np.array([float(item) for item in line.removeprefix("anchors = ").split(",")]).reshape(-1, 2)
    shapes, _ = anchors.read_shapes(data, "train", (416, 416), "letterbox")
    published = parse_cfg((CONFIGS / "yolov3.cfg").read_text(), "yolov3").yolo[0].all_anchors
    assert fit(shapes, found) > fit(shapes, np.array(published)) + 0.015
