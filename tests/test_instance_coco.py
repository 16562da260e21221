"""Instances of COCO json files: whose pixels they are, what follows from boxes, views, and the real commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from coco_sets import (
    DOG,
    SECTION,
    annotation,
    counted,
    frames_of,
    labels_of,
    polygons_of,
    rectangle,
    texted,
    write_coco,
)
from conftest import shared

from folders import label_tasks, read_folder
from geometry import random_view
from images import read_label
from sources.validate import check_folder
from tasks import instance_coco
from tasks.coco_json import open_coco
from tasks.instance_files import PART, VOID

SIZE = (7, 9)  # height, width
CAT_1, CAT_2, DOG_1, DOG_2 = PART + 1, PART + 2, 2 * PART + 1, 2 * PART + 2


def codes_of(tmp_path: Path, *annotations: dict[str, object], **section: object) -> np.ndarray:
    return labels_of(write_coco(tmp_path, SIZE, *annotations, section=SECTION | section))[0]


def pixels(*rows: slice, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask


# ---------------------------------------------------------------------------------------------- labels


def test_polygons_and_run_lengths_are_things_and_crowds_are_not_said(tmp_path):
    crowd = pixels(slice(0, 7), slice(5, 9))
    codes = codes_of(
        tmp_path, annotation(rectangle(1, 1, 3, 3)), annotation(counted(pixels(slice(4, 6), slice(0, 6))), DOG),
        annotation(counted(crowd), iscrowd=1), annotation(texted(pixels(slice(0, 1), slice(0, 2))), DOG),
    )  # fmt: skip
    wanted = np.where(crowd, VOID, 0)
    wanted[1:3, 1:3], wanted[4:6, 0:6], wanted[0, 0:2] = CAT_1, DOG_2, 2 * PART + 3
    np.testing.assert_array_equal(codes, wanted)
    assert codes.dtype == np.int32 and codes.flags.c_contiguous


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_thing_lies_on_top(tmp_path, order):
    large, small = rectangle(0, 0, 6, 6), rectangle(2, 2, 5, 4)
    codes = codes_of(tmp_path, *[annotation(large), annotation(small, DOG)][::order])
    assert (codes[2:4, 2:5] // PART == 2).all() and (codes // PART == 1).sum() == 36 - 6


def test_of_equally_large_things_the_later_one_lies_on_top(tmp_path):
    codes = codes_of(tmp_path, annotation(rectangle(0, 0, 4, 2)), annotation(rectangle(2, 0, 6, 2), DOG))
    assert codes[0].tolist() == [CAT_1, CAT_1, DOG_2, DOG_2, DOG_2, DOG_2, 0, 0, 0]


def test_a_thing_has_several_polygons(tmp_path):
    codes = codes_of(tmp_path, annotation(rectangle(0, 0, 2, 2) + rectangle(1, 1, 4, 3)))
    assert (codes == CAT_1).sum() == 4 + 6 - 1


@pytest.mark.parametrize("none", [None, [], "missing"])
def test_where_a_thing_without_an_outline_is_nobody_says(tmp_path, none):
    bare = annotation(none, bbox=[2.5, 1, 3, 2])
    if none == "missing":
        del bare["segmentation"]
    codes = codes_of(tmp_path, bare, annotation(rectangle(0, 0, 4, 2), DOG))
    assert codes[1].tolist() == [DOG_1] * 4 + [VOID, VOID, 0, 0, 0] and (codes == VOID).sum() == 2 + 4


def test_other_classes_and_classes_that_are_no_things(tmp_path):
    both = annotation(rectangle(0, 0, 2, 2)), annotation(rectangle(1, 1, 4, 3), DOG)
    assert (codes_of(tmp_path, *both, things=["dog"]) == PART + 1).sum() == 6
    assert (codes_of(tmp_path, *both, classes=["cat"], other_classes="leave_out") == PART + 1).sum() == 4
    with pytest.raises(ValueError, match=r"all\.json: annotations\[1\]: class 'dog' \(did you mean 'doge'\?\)"):
        codes_of(tmp_path, *both, classes=["cat", "doge"])


def test_each_picture_has_its_own(tmp_path):
    things = [annotation(rectangle(0, 0, 2, 2), image=2), annotation(rectangle(0, 0, 3, 3)), annotation(None, image=2)]
    a, b, c = labels_of(write_coco(tmp_path, SIZE, *things, stems=("a", "b", "c")))
    assert (a > 0).sum() == 9 and (b > 0).sum() == 4 and (b == VOID).sum() == 6 - 1 and not c.any()


@pytest.mark.parametrize("form", ["pretty", "CRLF", "BOM", "letters", "annotations first", "in small pieces"])
def test_outlines_are_found_in_any_form_of_the_file(tmp_path, form, monkeypatch):
    things = [annotation(rectangle(0, 0, 2, 2), note="é日😀"), annotation(rectangle(3, 0, 6, 2), DOG, note="ü")]
    root = write_coco(tmp_path, SIZE, *things)
    content = json.loads((root / "all.json").read_text())
    if form == "annotations first":
        content = dict(sorted(content.items()))
    if form == "in small pieces":
        monkeypatch.setattr("user_input.json_stream.CHUNK", 7)
    text = json.dumps(content, indent=3 if form in ("pretty", "CRLF") else None, ensure_ascii=form == "pretty")
    text = f"\ufeff{text}" if form == "BOM" else text.replace("\n", "\r\n") if form == "CRLF" else text
    (root / "all.json").write_bytes(text.encode())
    assert labels_of(root)[0][0].tolist() == [CAT_1, CAT_1, 0, DOG_2, DOG_2, DOG_2, 0, 0, 0]


# ---------------------------------------------------------------------------------------------- what is refused


def test_each_bad_thing_is_named_with_its_place(tmp_path, capsys):
    bad = [
        annotation([[0, 0, 3, 0, 3]]), annotation(rectangle(0, 0, 2, 2)), annotation([[0, 0, float("nan"), 0, 3, 3]]),
        annotation({"size": [7, 9], "counts": [60, 9]}), annotation({"size": [9, 7], "counts": [63]}),
    ]  # fmt: skip
    assert len(check_folder(write_coco(tmp_path, SIZE, *bad))) == 4
    printed = capsys.readouterr().out
    for number, what in (
        (0, "polygon 0 has 5 numbers"), (2, "polygon 0: x is nan"), (3, "its runs have 69 pixels, its size 63"),
        (4, "a mask of 7x9, its picture is 9x7"),
    ):  # fmt: skip
        assert f"train.txt:1: {tmp_path}/all.json: annotations[{number}]: segmentation: {what}" in printed
    assert "annotations[1]" not in printed


def test_a_bad_category_is_named_before_outlines_are_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"all\.json: annotations\[0\]: category_id 5 is none of its 2 categories"):
        codes_of(tmp_path, annotation(rectangle(0, 0, 2, 2), 5))


def test_a_label_for_another_picture(tmp_path):
    root = write_coco(tmp_path, SIZE, annotation(rectangle(0, 0, 2, 2)))
    (root / "all.json").write_text((root / "all.json").read_text().replace('"height": 7', '"height": 8'))
    with pytest.raises(ValueError, match=r"all\.json: a label for another picture: instances of 9x8, its image is 9x7"):
        labels_of(root)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MOST_BYTES", r"annotations\[0\]: more than 5 bytes about a frame"),
        ("MOST_RUNS", "outlines of more than 5 runs of pixels in a frame"),
    ],
)
def test_what_is_read_about_a_frame_is_limited(tmp_path, monkeypatch, limit, message):
    things = [annotation(rectangle(0, 0, 3, 3)), annotation(rectangle(3, 3, 6, 6))]
    monkeypatch.setattr(instance_coco, limit, 5)
    with pytest.raises(ValueError, match=r"all\.json: .*" + message):
        codes_of(tmp_path, *things)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    root = write_coco(tmp_path, SIZE, annotation(rectangle(0, 0, 3, 3)))
    file = open_coco(root / "all.json")
    first, length = file.span[0].tolist()
    for content in (b"", b"[1]" * 500, b" " * first + b"[1]".ljust(length)):
        (root / "all.json").write_bytes(content)
        with (
            (root / "all.json").open("rb") as changed,
            pytest.raises(ValueError, match=r"all\.json: annotations\[0\]: the file has changed"),
        ):
            file.outline(0, changed)


def test_more_things_than_a_frame_may_have(tmp_path):
    with pytest.raises(ValueError, match="more than 1,000 boxes in a frame"):
        codes_of(tmp_path, *[annotation(rectangle(0, 0, 3, 3))] * 1001)


# ---------------------------------------------------------------------------------------------- other tasks


def test_instances_follow_from_boxes_with_outlines(tmp_path, capsys):
    things = [annotation(rectangle(1, 1, 4, 3)), annotation(rectangle(5, 1, 8, 3), DOG, bbox=[5, 1, 3, 2])]
    root = write_coco(tmp_path, SIZE, *things, column="boxes", stems=("a", "b"))
    assert label_tasks(read_folder(root)) == ["boxes", "instances", "masks"]
    for task in ("instances", "masks"):
        label, empty = labels_of(root, task)
        assert label[1].tolist() == [0, CAT_1, CAT_1, CAT_1, 0, DOG_2, DOG_2, DOG_2, 0] and not empty.any()
    assert labels_of(root, "boxes")[0][:, :5].tolist() == [[1, 1, 4, 3, 0], [5, 1, 8, 3, 1]]
    assert check_folder(root) == []
    printed = capsys.readouterr().out
    assert re.search(r"boxes labels +instances labels", printed) and "instances: 1 cat, 1 dog" in printed
    only = write_coco(tmp_path / "only", SIZE, *things, column="boxes", instances={"things": ["dog"]})
    assert (labels_of(only)[0] == PART + 1).sum() == 6


def test_boxes_without_outlines_are_boxes_alone(tmp_path):
    empty = write_coco(tmp_path / "empty", SIZE, column="boxes")
    assert "instances" in label_tasks(read_folder(empty)), "nothing is there: that is a label as well"
    bare = write_coco(tmp_path / "bare", SIZE, *[annotation([])] * 3, column="boxes")
    assert label_tasks(read_folder(bare)) == ["boxes"]
    some = write_coco(tmp_path / "some", SIZE, annotation([]), annotation(rectangle(0, 0, 3, 3)), column="boxes")
    assert "instances" in label_tasks(read_folder(some))
    said = write_coco(tmp_path / "said", SIZE, annotation([]), column="boxes", instances={"things": ["dog", "cat"]})
    assert "instances" in label_tasks(read_folder(said))


def test_what_is_wrong_with_the_file_of_boxes_is_said_once(tmp_path, capsys):
    root = write_coco(tmp_path, SIZE, annotation(rectangle(0, 0, 3, 3)), column="boxes", text="{")
    assert len(check_folder(root)) == 1 and capsys.readouterr().out.count("all.json") == 1
    root = write_coco(tmp_path, SIZE, annotation(rectangle(0, 0, 3, 3), bbox=[0, 0, 0, 0]), column="boxes")
    assert len(check_folder(root)) == 1
    root = write_coco(tmp_path, SIZE, annotation([[0, 0, 3, 3]]), column="boxes")
    assert len(check_folder(root)) == 1 and "wrong instances values: 1" in capsys.readouterr().out


def test_masks_take_the_column_instances_before_boxes(tmp_path):
    root = write_coco(tmp_path, SIZE, annotation(rectangle(0, 0, 3, 3)))
    np.testing.assert_array_equal(labels_of(root, "masks")[0], labels_of(root)[0])
    values = yaml.safe_load((root / "dataset.yaml").read_text())
    values |= {"columns": ["image", "boxes", "instances"], "boxes": {"format": "yolo", "classes": ["cat"]}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(values))
    (root / "a.txt").write_text("")
    (root / "train.txt").write_text("rgb/a.png\ta.txt\tall.json\nrgb/a.png\t-\tall.json\n")
    assert read_folder(root).sections["masks"] == read_folder(root).sections["instances"]
    assert [(label > 0).sum() for label in labels_of(root, "masks")] == [9, 9]


# ---------------------------------------------------------------------------------------------- views


def test_outlines_move_with_the_picture(tmp_path):
    """Cut, zoomed and mirrored: the things are where their corners go."""
    size = (97, 131)
    shapes = {PART + 1: [[10, 12, 60, 20, 40, 80, 15, 70]], 2 * PART + 2: [[70, 40, 125, 35, 110, 90]]}
    things = [annotation(shapes[PART + 1]), annotation(shapes[2 * PART + 2], DOG)]
    root = write_coco(tmp_path, size, *things)
    settings = {"crop": (80, 90), "zoom": (0.7, 1.6), "rotation": 10.0, "long_side": 0}
    frames, mirrored, seen = frames_of(root, "instances", train=True, **settings), set(), 0
    for number in range(30):
        label = frames[(number, 0)]["instances"].numpy()
        view = random_view(np.random.default_rng([frames.config.seed, number, 0]), *size, frames.config)
        mirrored.add(view.mirror)
        for code, (corners,) in shapes.items():
            points = np.array(corners).reshape(-1, 2) - 0.5
            moved = points @ view.matrix[:, :2].T + view.matrix[:, 2]
            wanted = np.zeros((80, 90), np.uint8)
            cv2.fillPoly(wanted, [np.round(moved * 16).astype(np.int32)], 1, shift=4)
            found = label == code
            if wanted.sum() > 300:
                seen += 1
                assert (found & (wanted > 0)).sum() / (found | (wanted > 0)).sum() > 0.85
        assert set(np.unique(label)) <= {VOID, 0, *shapes}
    assert mirrored == {True, False} and seen > 30


# ---------------------------------------------------------------------------------------------- real masks


@pytest.mark.parametrize("form", [counted, texted])
@pytest.mark.parametrize(
    "name", ["replica_office0/instances/0007.png", "pennfudan/PennFudanPed/PedMasks/FudanPed00001_mask.png"]
)
def test_real_masks_as_run_lengths_are_the_same_codes(tmp_path, name, form):
    mask = read_label(shared(f"data/{name}"))
    numbers = np.unique(mask[mask > 0]).tolist()
    assert len(numbers) > 1
    things = [annotation(form(mask == number), bbox=[0, 0, 1, 1]) for number in numbers]
    codes = labels_of(write_coco(tmp_path, mask.shape, *things))[0]
    wanted = np.where(mask > 0, PART + 1 + np.searchsorted(numbers, mask), 0)
    np.testing.assert_array_equal(codes, wanted)


def test_a_json_without_outlines_of_real_boxes(tmp_path):
    """As `prepare.py coco` writes it: the outlines are left out."""
    labels = shared("data/coco128/labels/train2017")
    rows = [line.split() for line in next(iter(sorted(labels.glob("*.txt")))).read_text().splitlines()]
    boxes = [[100 * (float(v[1]) - float(v[3]) / 2), 0, 100 * float(v[3]), 50 * float(v[4])] for v in rows]
    things = [annotation(None, bbox=box) for box in boxes]
    root = write_coco(tmp_path, (50, 101), *things, column="boxes")
    assert len(labels_of(root, "boxes")[0]) == len(rows) > 2 and label_tasks(read_folder(root)) == ["boxes"]


# ---------------------------------------------------------------------------------------------- the real commands


def outlined_rooms(rooms_folder: Path, root: Path) -> Path:
    """A copy whose masks of things have become polygons in one json."""
    shutil.copytree(rooms_folder, root)
    described, section = yaml.safe_load((root / "dataset.yaml").read_text()), read_folder(root).sections["boxes"]
    images, things = [], []
    for split in ("train", "val"):
        lines = []
        for line in (root / f"{split}.txt").read_text().splitlines():
            cells = dict(zip(described["columns"], line.split("\t"), strict=True))
            images.append({"id": len(images), "file_name": cells["image"], "height": 72, "width": 96})
            label = read_label(root / cells["boxes"])
            for number in np.unique(label[label > 0]).tolist():
                if outlines := polygons_of(label == number):
                    things.append(annotation(outlines, number // section["divisor"] - 1, len(images) - 1))
            lines.append("\t".join([cells["image"], cells["segmentation"], cells["depth"], "things.json"]))
        (root / f"{split}.txt").write_text("\n".join(lines))
    categories = [{"id": number, "name": name} for number, name in enumerate(section["classes"])]
    (root / "things.json").write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    described |= {"name": "outlined", "columns": ["image", "segmentation", "depth", "instances"]}
    described["instances"] = {"format": "coco", "classes": list(section["classes"])}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described))
    return root


def test_polygons_are_trained_on(script, rooms_folder, tiny_settings, tmp_path):
    """Rooms whose masks have become polygons: one epoch of instances beside two other tasks."""
    root = outlined_rooms(rooms_folder, tmp_path / "rooms")
    polygons, masks = (frames_of(place, "instances") for place in (root, rooms_folder))
    for index in range(3):
        found, wanted = (frames.read(index)["instances"] // PART for frames in (polygons, masks))
        assert (found == wanted).mean() > 0.97 and len(np.unique(found)) > 2
    words = ["--config", tiny_settings, "--data", root, "--epochs", 1, "--eval_every", 1]
    done = script("train.py", *words, "--tasks", "segmentation,depth,instances", "--run", tmp_path / "run")
    assert done.returncode == 0 and "instances/pq" in done.stdout, done.stderr
