"""COCO json: which picture's boxes they are, what is refused, and that a large file takes little memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from box_sets import boxes_of, report_of, write_boxes

from tasks import coco_json
from tasks.coco_json import open_coco, parse_coco
from user_input import json_stream
from user_input.json_stream import JsonStream

SIZE = (50, 100)  # height, width
COCO = {"format": "coco", "classes": ["cat", "dog"]}


def content(*annotations: dict[str, object], names: tuple[str, ...] = ("a.png", "b.png"), **other: object) -> dict:
    """Images 10, 20, ... of these names; categories whose ids have gaps."""
    images = [
        {"id": 10 * number, "file_name": name, "width": 100, "height": 50} for number, name in enumerate(names, 1)
    ]
    categories = [{"id": 90, "name": "dog"}, {"id": 17, "name": "cat"}]
    return {"info": {}, "images": images, "annotations": list(annotations), "categories": categories} | other


def box(bbox: object = (10, 5, 20, 10), image_id: object = 10, category_id: object = 90, **other: object) -> dict:
    return {"id": 7, "image_id": image_id, "category_id": category_id, "bbox": bbox} | other


def write(root: Path, text: object, *stems: str, section: dict[str, object] = COCO) -> Path:
    """A data set whose frames all have the label file all.json."""
    root.mkdir(exist_ok=True)
    (root / "all.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return write_boxes(root, section, dict.fromkeys(stems or ("a",), "@all.json"), SIZE)


def test_ids_with_gaps_crowds_and_pictures_without_boxes(tmp_path: Path) -> None:
    boxes = [box((0, 0, 100, 50), 20, 17, iscrowd=1), box(), box([1.5, 2, 3, 4.25], 20, 17, iscrowd=0)]
    a, b, c = boxes_of(write(tmp_path, content(*boxes, names=("a.png", "b.png", "c.png")), "a", "b", "c"))
    assert a[:, :6].tolist() == [[10, 5, 30, 15, 1, 0]]
    assert b[:, :6].tolist() == [[0, 0, 100, 50, 0, 1], [1.5, 2, 4.5, 6.25, 0, 0]]
    assert c.shape == (0, 7) and np.isnan(a[:, 6]).all()


@pytest.mark.parametrize("order", ["annotations first", "ids of text", "no sizes", "pretty", "BOM"])
def test_other_forms_of_the_same(order: str, tmp_path: Path) -> None:
    values = content(box())
    if order == "annotations first":
        values = dict(sorted(values.items()))
    if order == "ids of text":
        values["images"][0]["id"] = values["annotations"][0]["image_id"] = "ten"
    if order == "no sizes":
        del values["images"][0]["width"]
    text = json.dumps(values, indent=2 if order == "pretty" else None)
    root = write(tmp_path, f"\ufeff{text}" if order == "BOM" else text)
    assert boxes_of(root)[0][:, :6].tolist() == [[10, 5, 30, 15, 1, 0]]


def test_polygons_without_a_box(tmp_path: Path) -> None:
    shape = box(None, segmentation=[[10, 5, 30, 5, 30, 9], [12, 15, 20, 9]])
    assert boxes_of(write(tmp_path, content(shape)))[0][:, :6].tolist() == [[10, 5, 30, 15, 1, 0]]


@pytest.mark.parametrize(
    ("name", "path", "found"),
    [
        ("x.png", "train/x.png", True),
        ("train/x.png", "data/train/x.png", True),
        ("./train/x.png", "data/train/x.png", True),
        ("train\\x.png", "data/train/x.png", True),
        ("/home/somebody/coco/data/x.png", "data/x.png", True),  # its end is the path below the json's folder
        ("val/x.png", "train/x.png", False),
        ("rain/x.png", "train/x.png", False),
        ("y.png", "train/x.png", False),
    ],
)
def test_a_picture_is_found_by_the_end_of_its_path(name: str, path: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps(content(names=(name,))))
    file = parse_coco(tmp_path / "all.json")
    if found:
        assert file.find(tmp_path / path) == 0
    else:
        with pytest.raises(ValueError, match=r"all\.json: none of its 1 images is .*x\.png"):
            file.find(tmp_path / path)


def test_pictures_of_one_name_in_several_folders_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("u/x.png", "v/x.png", "x.png", "w/v/x.png", "y.png", "y.png")
    (tmp_path / "all.json").write_text(json.dumps(content(names=names)))
    file = parse_coco(tmp_path / "all.json")
    found = {path: file.find(tmp_path / path) for path in ("u/x.png", "v/x.png", "t/x.png", "w/v/x.png", "x.png")}
    assert [names[index] for index in found.values()] == ["u/x.png", "v/x.png", "x.png", "w/v/x.png", "x.png"]
    with pytest.raises(ValueError, match=r"several of its images may be .*y\.png"):
        file.find(tmp_path / "y.png")
    monkeypatch.chdir(tmp_path)
    assert file.find(Path("v/x.png")) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (box((10, 5, -3, 10)), "annotations[0]: bbox is [10, 5, -3, 10]; width and height are above 0"),
        (box((10, 5, 0, 10)), "annotations[0]: a box without area: 0 x 10"),
        (box((200, 5, 20, 10)), "annotations[0]: a box outside of the picture: x 200 to 220, y 5 to 15, of 100x50"),
        (box((float("nan"), 5, 20, 10)), "annotations[0]: bbox: x is nan; it takes a finite number"),
        (box((10, 5, 1e999, 10)), "annotations[0]: bbox: width is inf"),
        (box((10**400, 5, 1, 10)), "annotations[0]: bbox: x is 1000"),
        (box((10, 5, 20)), "annotations[0]: bbox is [10, 5, 20]; it takes [x, y, width, height]"),
        (box("10,5,20,10"), "annotations[0]: bbox is '10,5,20,10'; it takes"),
        (box((10, 5, "20", 10)), "it takes [x, y, width, height]"),
        (box((10, 5, True, 10)), "it takes [x, y, width, height]"),
        (box(None), "annotations[0]: bbox is None; it takes"),
        (box(None, segmentation=[[1, 2, "x"]]), "annotations[0]: it has no bbox, and its polygons are not"),
        (box(category_id=18), "annotations[0]: category_id 18 is none of its 2 categories"),
        (box(category_id=None), "annotations[0]: it has no category_id"),
    ],
)
def test_a_bad_annotation_is_named(bad: dict, message: str, tmp_path: Path) -> None:
    root = write(tmp_path, content(bad, box((1, 1, 2, 2), 20)), "a", "b")
    with pytest.raises(ValueError, match=r"all\.json: annotations") as caught:
        boxes_of(root)
    assert message in str(caught.value)


def test_every_bad_annotation_of_a_frame_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [box((10, 5, 0, 10)), box(category_id=18), box((10, 5, 20)), box(), box((-9, -9, 3, 3)), box()]
    root = write(tmp_path, content(*bad, box((1, 1, 2, 2), 20)), "a", "b")
    printed = report_of(root, capsys, faults=4)
    for number in (0, 1, 2, 4):
        assert f"train.txt:1: {root}/all.json: annotations[{number}]: " in printed
    assert "annotations[3]" not in printed and "annotations[6]" not in printed


def test_a_class_that_is_not_listed(tmp_path: Path) -> None:
    values = content(box(), box((1, 1, 2, 2), category_id=17))
    root = write(tmp_path, values, section={"format": "coco", "classes": ["cat", "doge"]})
    with pytest.raises(ValueError, match=r"annotations\[0\]: class 'dog' \(did you mean 'doge'\?\)"):
        boxes_of(root)
    left_out = {"format": "coco", "classes": ["cat"], "other_classes": "leave_out"}
    assert boxes_of(write(tmp_path, values, section=left_out))[0][:, :6].tolist() == [[1, 1, 3, 3, 0, 0]]


def test_a_label_for_another_picture(tmp_path: Path) -> None:
    values = content(box())
    values["images"][0]["width"] = 640
    with pytest.raises(ValueError, match=r"all.json: a label for another picture: boxes of 640x50, its image"):
        boxes_of(write(tmp_path, values))


IMAGE = '{"id": 1, "file_name": "a.png"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "all.json:1: the file ends too early"),
        ("[]", "all.json:1: a COCO file is a table with images"),
        ('{"images": [', "the file ends too early"),
        ('{"images": [{"id": 1, "file_name": "a.pn', "all.json:1: not readable as JSON: Unterminated string"),
        ('{"images": [],\n "annotations": [],\n "categories" []}', "all.json:3: not readable as JSON: ':' was"),
        ('{"images": []\n "annotations": []}', "all.json:2: not readable as JSON"),
        ('{"images": [], "annotations": []}', "it has no categories; a COCO file has images, annotations and cat"),
        ('{"images": {}}', "all.json:1: images must be one list"),
        ('{"images": [], "images": []}', "all.json:1: images must be one list"),
        ('{"images": [{"id": 1}]}', "images[0]: an image needs an id and a file_name"),
        ('{"images": [7]}', "images[0]: an image needs an id and a file_name"),
        ('{"images": [{"id": [], "file_name": "a"}]}', "an image id is a whole number or text"),
        (f'{{"images": [{IMAGE}, {IMAGE}]}}', "images[1]: two images have the id 1"),
        ('{"annotations": [{"id": 1}]}', "annotations[0]: an annotation needs an image_id"),
        ('{"categories": [{"id": 1}]}', "categories[0]: a category needs an id and a name"),
        (f'{{"images": {"[" * 100_000}', "all.json:1: it is nested too deeply"),
        (f'{{"info": {"[" * 100_000}', "all.json:1: it is nested too deeply"),
        ('{1: 2}', "a name was expected"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all\.json") as caught:
        boxes_of(write(tmp_path, text))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_other_encodings_and_no_regular_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"info": "küche"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json: not a UTF-8 text file"):
        parse_coco(tmp_path / "a.json")
    os.mkfifo(tmp_path / "pipe.json")
    for name, what in (("pipe.json", "not a regular file"), ("none.json", "no such file")):
        with pytest.raises(FileNotFoundError, match=f"{name}: {what}"):
            open_coco(tmp_path / name)


@pytest.mark.parametrize(
    "limit", ["MOST_IMAGES", "MOST_ANNOTATIONS", "MOST_CATEGORIES", "MOST_FAULTS", "MOST_FILE_BYTES"]
)
def test_limits(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content(box(), box((1, 2)), box((3, 4)))))
    parse_coco(path)
    monkeypatch.setattr(coco_json, limit, 1)
    with pytest.raises(ValueError, match=r"all\.json.*(more than 1 |and 1 others are bad)"):
        parse_coco(path)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(coco_json, "parse_coco", lambda path: read.append(path) or parse_coco(path))
    root = write(tmp_path, content(box(), box((1, 1, 2, 2), 20)), "a", "b")
    assert [len(label) for label in boxes_of(root) + boxes_of(root)] == [1, 1, 1, 1] and len(read) == 1
    (root / "all.json").write_text(json.dumps(content(box(), box())))
    assert [len(label) for label in boxes_of(root)] == [2, 0] and len(read) == 2
    (root / "all.json").write_text("{")
    for _ in range(2):  # what is wrong is remembered, too: a check would read a large file for each frame
        with pytest.raises(ValueError, match="ends too early"):
            boxes_of(root)
    assert len(read) == 3
    for number in range(coco_json.KEPT_FILES + 3):
        (tmp_path / f"{number}.json").write_text(json.dumps(content()))
        open_coco(tmp_path / f"{number}.json")
    assert len(coco_json._files) == coco_json.KEPT_FILES


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_values_are_read_alike_in_any_pieces(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": [1, -2.5, 'ä\\"\n', None, [True], {}], "b": {"c": [[]]}, "": 123456, "e": [], "f": 1e-7}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values, indent=1))
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    with path.open() as file:
        stream = JsonStream(file, path)
        found = {name: list(stream.items()) if stream.peek() == "[" else stream.value() for name in stream.names()}
        assert found == values and stream.line == len(path.read_text().splitlines())


@pytest.mark.parametrize("kind", ["polygons", "one endless value"])
def test_a_large_file_takes_little_memory(kind: str, tmp_path: Path) -> None:
    """30 MB: many polygons are read and not kept, and a value without an end is given up before the file's end."""
    path = tmp_path / "large.json"
    annotation = json.dumps(box(segmentation=[list(range(40_000))]))
    head, tail = json.dumps(content()).split('"annotations": []')
    with path.open("w") as file:
        file.write(f'{head}"annotations": [')
        for number in range(130):
            file.write(f"{',' if number else ''}{annotation if kind == 'polygons' else '[' + '1,' * 120_000}")
        file.write(f"]{tail}" if kind == "polygons" else "")
    assert path.stat().st_size > 30e6
    pipe, end = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=measure, args=(path, end))
    child.start()
    result, megabytes = pipe.recv()
    child.join()
    if kind == "polygons":
        assert result == 130 and megabytes < 30
    else:
        assert "large.json:1: not readable as JSON" in result and "(in 16,777,216 characters)" in result
        assert megabytes < 300


def measure(path: Path, end: Connection) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = len(parse_coco(path).image)
    except ValueError as problem:
        result = str(problem)
    end.send((result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024))
