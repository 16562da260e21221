"""Preparing office 0 of Replica: objects to classes, and archives that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import only_holds, png, shared, write_zip
from PIL import Image

import prepare
from config import Config
from drawing import class_palette
from folders import make_tasks, read_folder, read_list
from images import read_label
from sources import replica
from tasks import CLASS_LISTS

PREFIX = "CSCI5561_Project-main/"
INFO = "detection_segmentation/dataset/office_0/info_semantic.json"
OBJECTS = {8: "wall", 5: "rug", 2: "anonymize_picture", 28: "tissue-paper", 49: "undefined", 67: "other-leaf"}


def objects(number: int) -> np.ndarray:
    return np.random.default_rng(number).choice([0, *OBJECTS], (6, 9)).astype(np.uint8)


def members(**changed: bytes | None) -> dict[str, bytes]:
    """The files of seven frames in the layout of Aadit-Munjal/CSCI5561_Project. `changed` replaces, None leaves out."""
    listed = [{"class_id": -1, "class_name": name, "id": number} for number, name in OBJECTS.items()]
    content: dict[str, bytes | None] = {
        "depth_0.png": b"", "README.md": b"", INFO: json.dumps({"objects": listed}).encode(),
        "detection_segmentation/dataset/masks/train/semantic_instance_0.png": b"",
    }  # fmt: skip
    for number in range(7):
        rng = np.random.default_rng(number)
        content[f"rgb/{number:04d}.png"] = png(rng.integers(0, 256, (6, 9, 3), np.uint8))
        content[f"depth/{number:04d}.png"] = png(rng.integers(500, 4000, (6, 9), np.uint16))
        content[f"semantic_instance-viz/{number:04d}.png"] = png(class_palette()[objects(number)])
    return {PREFIX + name: data for name, data in (content | changed).items() if data is not None}


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "SPLITS", {"train": range(4), "val": range(4, 6)})


def test_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = members()
    write_zip(here / "a.zip", content)
    assert prepare.main(["replica", "--images", "a.zip"]) == 0
    assert "4 train frames, 2 val frames" in capsys.readouterr().out
    root = here / "dataset/replica_office0"
    only_holds(root, "rgb", "masks", "depth", "instances", "dataset.yaml", "train.txt", "val.txt")
    line = "rgb/0004.png\tmasks/0004.png\tdepth/0004.png\tinstances/0004.png"
    assert (root / "val.txt").read_text().splitlines()[0] == line
    for kind in ("rgb", "depth"):
        assert (root / kind / "0005.png").read_bytes() == content[f"{PREFIX}{kind}/0005.png"]
    folder = read_folder(root)
    assert folder.camera["fx"] == 600
    classes = CLASS_LISTS["nyu40"]
    names = {8: "wall", 5: "floor_mat", 2: "picture", 28: "other_prop"}
    table = np.full(256, 255, np.uint8)
    for number, name in names.items():
        table[number] = classes.index(name)
    frame = read_list(folder, "val")[1]
    tasks = make_tasks(folder, Config())
    read = {name: task.read(frame.labels[name], folder.sections[name], frame.image) for name, task in tasks.items()}
    np.testing.assert_array_equal(read["segmentation"], table[objects(5)])
    np.testing.assert_array_equal(read_label(root / "instances/0005.png"), objects(5))
    boxes = make_tasks(folder, Config(tasks=("boxes",)))["boxes"]
    assert boxes.classes == ("picture", "floor_mat", "other_prop"), "in the order of nyu40, without walls"
    section, file = folder.sections["boxes"], frame.labels["boxes"]
    label = boxes.at_size(boxes.read(file, section, frame.image), (6, 9), section, file)
    wanted = []
    for number, name in ((2, "picture"), (5, "floor_mat"), (28, "other_prop")):
        ys, xs = np.nonzero(objects(5) == number)
        wanted.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, boxes.classes.index(name)])
    np.testing.assert_array_equal(label[:, :5], wanted)
    np.testing.assert_allclose(read["depth"], read_label(root / "depth/0005.png") * 0.001, rtol=1e-6)


def test_masks_may_hold_the_numbers_of_the_objects(here: Path) -> None:
    write_zip(here / "a.zip", members(**{"semantic_instance-viz/0002.png": png(objects(2))}))
    prepare.main(["replica", "--images", "a.zip", "--output", "one"])
    write_zip(here / "a.zip", members())
    prepare.main(["replica", "--images", "a.zip", "--output", "two"])
    np.testing.assert_array_equal(read_label(here / "one/masks/0002.png"), read_label(here / "two/masks/0002.png"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rgb/0003.png", None, r"a\.zip: no rgb/0003\.png, which is of the train split"),
        ("semantic_instance-viz/0005.png", None, r"no semantic_instance-viz/0005\.png, which is of the val split"),
        (INFO, None, r"no office_0/info_semantic\.json in it, so it is not CSCI5561_Project"),
        (INFO, b"{", r"info_semantic\.json: not a list of objects"),
        (INFO, b'{"objects": [{"class_name": "wall", "id": 900}]}', r"info_semantic\.json: not a list of objects"),
        (INFO, b"[" * 100000, r"info_semantic\.json: not a list of objects"),
        ("semantic_instance-viz/0001.png", png(np.full((6, 9, 3), 3, np.uint8)),
         r"semantic_instance-viz/0001\.png: 100% of its pixels have colors of no object, such as .3, 3, 3."),
        ("semantic_instance-viz/0001.png", png(np.full((6, 9), 300, np.uint16)), r"0001\.png: it has object 300"),
        ("depth/0001.png", png(np.ones((6, 9), np.uint8)), r"depth/0001\.png: a depth map has one 16-bit number"),
        ("depth/0001.png", png(np.ones((5, 9), np.uint16)), r"depth/0001\.png: it is 9x5, but its image .* is 9x6"),
        ("rgb/0001.png", b"broken", r"rgb/0001\.png"),
    ],
)  # fmt: skip
def test_wrong_archives_are_explained(name: str, data: bytes | None, message: str, here: Path) -> None:
    write_zip(here / "a.zip", members(**{name: data}))
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main(["replica", "--images", "a.zip", "--output", "out"])
    assert "\n" not in str(problem.value)
    only_holds(here, "a.zip")


def test_classes_are_those_of_the_measured_figures() -> None:
    folder = shared("data/replica_office0")
    listed = json.loads((folder / "instances.json").read_text())
    table = np.full(256, 255, np.uint8)
    for number, name in listed.items():
        if name in replica.NYU40:
            table[int(number)] = CLASS_LISTS["nyu40"].index(replica.NYU40[name])
    for number in range(0, 60, 6):
        mask, instances = (np.array(Image.open(folder / kind / f"{number:04d}.png")) for kind in ("masks", "instances"))
        np.testing.assert_array_equal(table[instances], mask)
    for split, numbers in {"train": range(48), "val": range(48, 60)}.items():
        assert [line[4:8] for line in (folder / f"{split}.txt").read_text().splitlines()] == [
            f"{number:04d}" for number in numbers
        ]
