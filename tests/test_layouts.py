"""Folders in other projects' form: a YOLO folder with its data.yaml, and the csv lists of the YOLOv3 tutorial."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from box_sets import boxes_of, report_of
from conftest import shared

import folders
from folders import read_folder, read_list
from images import write_png
from tasks import CLASS_LISTS
from user_input.layouts import label_of


def picture(path: Path, label: str | None = None, label_path: Path | None = None) -> None:
    """Unlike that of any other name, so that it is no repetition."""
    write_png(path, np.full((50, 100, 3), [int(byte) for byte in path.stem.encode()[-3:].rjust(3)], np.uint8))
    if label is not None:
        file = label_path or path.with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(label)


BOX = "1 0.5 0.5 0.2 0.4\n"
WANTED = [40, 15, 60, 35, 1, 0]


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two training frames, one of which nobody labeled, and a validation frame on which nothing is to be seen."""
    root = tmp_path / "set"
    picture(root / "images/train/a.png", BOX, root / "labels/train/a.txt")
    picture(root / "images/train/deep/b.png")
    picture(root / "images/val/c.png", "", root / "labels/val/c.txt")
    (root / "images/train/readme.md").write_text("not a picture")
    describe(root)
    return root


def describe(root: Path, **changes: object) -> Path:
    values = {"path": ".", "train": "images/train", "val": "images/val", "names": ["cat", "dog"]} | changes
    (root / "data.yaml").write_text(yaml.safe_dump({key: item for key, item in values.items() if item is not None}))
    return root


def check_labels(root: Path) -> None:
    first, second = boxes_of(root)
    assert first[:, :6].tolist() == [WANTED] and second is None
    (third,) = boxes_of(root, "val")
    assert third.shape == (0, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"names": {1: "dog", 0: "cat"}, "nc": 2},
        {"path": None},
        {"path": "../datasets/elsewhere"},
        {"train": "../images/train", "val": "../set/images/val", "path": None},
        {"train": ["images/train/a.png.txt", "images/train/deep"]},
        {"train": "train.txt", "test": ""},
        {"train": "lists/train.txt", "download": "echo never", "roboflow": {"url": "x"}},
        {"val": ["images/val"], "test": "images/nowhere"},
    ],
    ids=["plain", "table of names", "no path", "path elsewhere", "of a download", "list of places", "list file",
         "list file in a folder", "no test"],
)  # fmt: skip
def test_a_yolo_folder_works_as_it_is(changes: dict[str, object], yolo: Path) -> None:
    (yolo / "images/train/a.png.txt").write_text("images/train/a.png\n")
    (yolo / "train.txt").write_text("./images/train/a.png\r\n\r\nimages/train/deep/b.png\r\n")
    (yolo / "lists").mkdir()
    (yolo / "lists/train.txt").write_text(f"../images/train/a.png\n{yolo}/images/train/deep/b.png\n")
    folder = read_folder(describe(yolo, **changes))
    assert folder.name == "set" and folder.columns == ("image", "boxes")
    assert folder.sections["boxes"]["classes"] == ("cat", "dog")
    check_labels(yolo)


def test_frames_say_where_they_come_from(yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (yolo / "labels/train/a.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    printed = report_of(yolo, capsys)
    assert f"{yolo}/images/train/a.png: {yolo}/labels/train/a.txt:1: class 7; allowed: 0..1" in printed
    describe(yolo, train="train.txt")
    (yolo / "train.txt").write_text("images/train/a.png\nimages/none.png\n")
    printed = report_of(yolo, capsys, faults=2)
    assert f"train.txt:1: {yolo}/labels/train/a.txt:1" in printed
    assert f"train.txt:2: {yolo}/images/none.png: no such file" in printed
    assert describe(yolo, train="images/train") and report_of(yolo, capsys), "and a mosaic is no frame of the set"


@pytest.mark.parametrize("same", ["folder", "list file"])
def test_train_and_val_in_one_place_are_divided(same: str, tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / f"images/{number:02}.png", BOX, tmp_path / f"labels/{number:02}.txt")
    (tmp_path / "all.txt").write_text("".join(f"images/{number:02}.png\n" for number in range(12)))
    place = "images" if same == "folder" else "all.txt"
    folder = read_folder(describe(tmp_path, train=place, val=f"./{place}"))
    train, val = ([frame.image.stem for frame in read_list(folder, split)] for split in ("train", "val"))
    assert val == ["04", "09"] and len(train) == 10 and not set(train) & set(val)


def test_where_label_files_lie() -> None:
    assert label_of("images/a.b.jpg") == "labels/a.b.txt"
    assert label_of("images/x/images/y/a.jpg") == "images/x/labels/y/a.txt", "the last folder of this name"
    assert label_of("train/images/a.jpg") == "train/labels/a.txt"
    assert label_of("train/a.jpg") == "train/a.txt" and label_of("images.jpg") == "images.txt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "data.yaml: names must be a list of class names"),
        ({"names": {0: "cat", 2: "dog"}}, "data.yaml: names has 2 entries, but none for class 1"),
        ({"names": {"cat": 0}}, "data.yaml: names is 'cat'; it takes a whole number"),
        ({"names": ["cat", "cat"]}, "data.yaml: boxes.classes must be a list of different names"),
        ({"nc": 3}, "data.yaml: nc is 3, but names has 2"),
        ({"train": None, "val": None}, "data.yaml: train is missing"),
        ({"train": {"a": "b"}}, "data.yaml: train must be a folder, a list file, or a list of them"),
        ({"train": "images/none"}, "images/none: no such folder or list file"),
        ({"train": "images/empty"}, "images/empty: no frames (split 'train')"),
        ({"train": "images/train/a.png"}, "a.png: not a UTF-8 text file"),
    ],
)
def test_a_wrong_data_yaml_is_explained(changes: dict[str, object], message: str, yolo: Path) -> None:
    (yolo / "images/empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_list(read_folder(describe(yolo, **changes)), "train")
    assert message in str(caught.value) and str(yolo) in str(caught.value)


def test_nothing_in_a_data_yaml_is_executed(yolo: Path) -> None:
    (yolo / "data.yaml").write_text("names: !!python/object/apply:os.system ['touch hacked']\ntrain: images/train\n")
    with pytest.raises(ValueError, match=r"data\.yaml:1: YAML tag .* is not accepted"):
        read_folder(yolo)


def test_a_dataset_yaml_comes_first(yolo: Path) -> None:
    (yolo / "dataset.yaml").write_text("splits: {train: t.txt}\ncolumns: [image]\n")
    assert read_folder(yolo).columns == ("image",)


def test_too_many_frames_are_refused(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MOST_FRAMES", 1)
    with pytest.raises(ValueError, match=r"images/train: .* at most 1 are read"):
        read_list(read_folder(yolo), "train")


# ---------------------------------------------------------------------------------------------- csv


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    root = tmp_path / "PASCAL_VOC"
    for name in ("000007", "000009", "000012"):
        picture(root / f"images/{name}.png", BOX, root / f"labels/{name}.txt")
    (root / "train.csv").write_text("000007.png,000007.txt\r\n000009.png,000009.txt\r\n")
    (root / "test.csv").write_text("000012.png,000012.txt\n")
    return root


@pytest.mark.parametrize("header", ["", "image,label\n", '"img","text"\n\n'])
def test_the_first_row_of_a_csv_may_be_a_header(header: str, tutorial: Path) -> None:
    (tutorial / "train.csv").write_text(header + (tutorial / "train.csv").read_text())
    folder = read_folder(tutorial)
    assert folder.splits == {"train": "train.csv", "val": "test.csv"}
    assert folder.sections["boxes"]["classes"] == CLASS_LISTS["voc20"]
    frames = read_list(folder, "train")
    assert [frame.image.stem for frame in frames] == ["000007", "000009"]
    assert frames[1].labels["boxes"] == tutorial / "labels/000009.txt"
    assert frames[1].where == f"{tutorial / 'train.csv'}:{2 + header.count(chr(10))}"
    assert boxes_of(tutorial, "val")[0][:, :6].tolist() == [WANTED]


def test_a_csv_with_val_and_test(tutorial: Path) -> None:
    shutil.copy(tutorial / "train.csv", tutorial / "val.csv")
    splits = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}
    assert read_folder(tutorial).splits == splits


def test_names_of_classes_beside_a_csv(tutorial: Path) -> None:
    plain = tutorial.rename(tutorial.with_name("mine"))
    with pytest.raises(ValueError, match=r"mine: .* write their names into .*mine/classes\.txt, one a line"):
        read_folder(plain)
    (plain / "classes.txt").write_text("cat\r\ntraffic light\r\n\r\n")
    assert read_folder(plain).sections["boxes"]["classes"] == ("cat", "traffic light")


def test_csv_lists_of_a_dataset_yaml(tutorial: Path) -> None:
    """Paths relative to the folder work beside bare names; an empty cell is no label."""
    (tutorial / "dataset.yaml").write_text(
        "splits: {train: mixed.csv}\ncolumns: [image, boxes]\nboxes: {format: yolo, classes: [cat, dog]}\n"
    )
    (tutorial / "mixed.csv").write_text('images/000007.png, "labels/000007.txt"\n000009.png,-\n000012.png,\n')
    first, *others = boxes_of(tutorial)
    assert first[:, :6].tolist() == [WANTED] and others == [None, None]
    (tutorial / "mixed.csv").write_text("000007.png\n")
    with pytest.raises(ValueError, match=r"mixed\.csv:1: 1 columns, but dataset\.yaml says 2"):
        read_list(read_folder(tutorial), "train")
    (tutorial / "mixed.csv").write_text("000007.png,none.txt\n")
    with pytest.raises(FileNotFoundError, match=r"mixed\.csv:1: boxes .*none\.txt is missing"):
        read_list(read_folder(tutorial), "train")
    (tutorial / "mixed.csv").write_text(f"000007.png,{'a' * 200_000}\n")
    with pytest.raises(ValueError, match=r"mixed\.csv:1: not readable as csv \(field larger"):
        read_list(read_folder(tutorial), "train")


# ---------------------------------------------------------------------------------------------- real data


def test_coco128_works_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared("data/coco128")
    folder = read_folder(data)
    assert folder.sections["boxes"]["classes"] == CLASS_LISTS["coco80"]
    train, val = (read_list(folder, split) for split in ("train", "val"))
    assert len(train) + len(val) == 128 and len(val) == 25
    assert sum("boxes" not in frame.labels for frame in train + val) == 2, "two have no label file"
    number = 0
    for split in ("train", "val"):
        for frame, label in zip(read_list(folder, split), boxes_of(data, split), strict=True):
            if label is not None:
                lines = np.loadtxt(frame.labels["boxes"], ndmin=2)
                assert len(label) == len(lines) and (label[:, 4] == lines[:, 0]).all()
                number += len(label)
                assert (label[:, :2] >= 0).all() and (label[:, 2:4] > label[:, :2]).all()
    assert number == 929
    copy = tmp_path / "coco128"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("masks"))
    printed = report_of(copy, capsys, faults=0)
    assert "817 boxes" in printed and "0 person" in printed and (copy / "check.png").is_file()
