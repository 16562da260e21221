"""Cityscapes' instance ids: things, stuff and groups, for instances and for segmentation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from coco_sets import labels_of, write_set

from config import Config
from folders import make_domains, read_folder
from images import write_png
from sources.kitti import CITYSCAPES
from tasks.cityscapes import CITYSCAPES_THINGS
from tasks.instance_files import PART, VOID


def write_cityscapes(root: Path, ids: np.ndarray, **section: object) -> Path:
    name = "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png"
    return write_set(root, ids.astype(np.uint16), {"format": "cityscapes"} | section, name)


def test_cityscapes_things_stuff_and_groups(tmp_path):
    ids = np.array([
        [7, 24000, 24001, 26000, 26], [23, 24, 33999, 33, 0], [9, 29000, 30, 4, 29], [25999, 27000, 28000, 31000, 32000]
    ])  # fmt: skip
    root = write_cityscapes(tmp_path, ids)
    codes, classes = labels_of(root)[0], labels_of(root, "segmentation")[0]
    kinds = np.where(codes > 0, codes // PART, codes).tolist()
    assert kinds == [[0, 1, 1, 3, VOID], [0, VOID, 8, VOID, VOID], [VOID] * 5, [2, 4, 5, 6, 7]]
    assert len(np.unique(codes[codes > 0])) == 9
    assert classes.tolist() == [[0, 11, 11, 13, 13], [10, 11, 18, 18, 255], [255] * 5, [12, 14, 15, 16, 17]]


def test_the_classes_of_cityscapes(tmp_path):
    folder = read_folder(write_cityscapes(tmp_path, np.array([[7]])))
    assert folder.sections["instances"]["things"] == CITYSCAPES_THINGS
    assert {name: CITYSCAPES[name][0] for name in CITYSCAPES_THINGS} == {
        "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip
    assert folder.sections["segmentation"]["classes"] == tuple(CITYSCAPES) and len(CITYSCAPES) == 19
    assert folder.sections["segmentation"]["colors"][13] == (0, 0, 142)
    heads, _ = make_domains([folder], Config(tasks=("segmentation", "instances")))
    assert heads["instances"].stuff == tuple(CITYSCAPES)[:11]


def test_some_things_of_cityscapes(tmp_path):
    codes = labels_of(write_cityscapes(tmp_path, np.array([[24000, 26001, 26, 24, 7]]), things=["car"]))[0]
    assert codes.tolist() == [[0, PART + 1, VOID, 0, 0]]


@pytest.mark.parametrize("number", [34, 999, 1000, 7000, 23001, 34000, 65535])
def test_a_number_of_no_id_of_cityscapes(tmp_path, number):
    root = write_cityscapes(tmp_path, np.array([[7, 7], [7, number], [7, number]]))
    with pytest.raises(ValueError, match=rf"instanceIds\.png: number {number} at x 1, y 1: it is none of Cityscapes' "):
        labels_of(root)


def test_a_color_picture_is_no_file_of_instance_ids(tmp_path):
    root = write_cityscapes(tmp_path, np.array([[7]]))
    write_png(next(root.rglob("*Ids.png")), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"instanceIds\.png: a mask has one integer a pixel"):
        labels_of(root)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"format": "cityscapes", "classes": ["car"]}, "instances: unknown key 'classes'"),
        ({"format": "cityscapes", "things": ["cars"]}, "things: 'cars' (did you mean 'car'?) is none of its classes"),
        ({"format": "cityscape"}, "format is 'cityscape' (did you mean 'cityscapes'?)"),
        ({"format": "coco_panoptic"}, "instances.classes must be a list of different names"),
        ({"format": "coco_panoptic", "classes": ["a"], "divisor": 256}, "instances.divisor is for format: instances"),
        ({"format": "coco", "classes": ["a"], "json": "x.json"}, "unknown key 'json'"),
        ({"format": "coco_panoptic", "classes": "coco80", "stuff": ["cat"]}, "stuff: 'cat' is a thing as well"),
    ],
)
def test_wrong_sections(tmp_path, section, message):
    root = write_cityscapes(tmp_path, np.array([[7]]))
    values = yaml.safe_load((root / "dataset.yaml").read_text()) | {"instances": section}
    (root / "dataset.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_folder(root)
