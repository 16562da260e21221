"""COCO panoptic PNG files: things, stuff and crowds, for instances and for segmentation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from coco_sets import frames_of, labels_of, write_set
from conftest import shared
from PIL import Image

from config import Config
from folders import label_tasks, make_domains, read_folder
from images import read_label, write_png
from sources.validate import check_folder
from tasks import CLASS_LISTS, coco_panoptic, panoptic_files
from tasks.coco_panoptic import parse_panoptic
from tasks.instance_files import PART, VOID
from tasks.segmentation import Segmentation

THINGS, STUFF = ["cat", "dog"], ["sky", "grass"]
SECTION = {"format": "coco_panoptic", "classes": THINGS, "stuff": STUFF}
CATEGORIES = [
    {"id": 17, "name": "cat", "isthing": 1}, {"id": 90, "name": "dog", "isthing": 1},
    {"id": 187, "name": "sky", "isthing": 0}, {"id": 193, "name": "grass", "isthing": 0},
]  # fmt: skip
CAT, DOG, SKY, GRASS = (item["id"] for item in CATEGORIES)
# Ids whose colors use all three bytes, as COCO's do.
IDS = np.array([
    [3226956, 3226956, 8345097, 8345097, 0],
    [3226956, 255, 8345097, 16777215, 0],
    [65536, 255, 256, 16777215, 7],
])  # fmt: skip
SEGMENTS = {
    3226956: (CAT, 0), 255: (CAT, 0), 8345097: (SKY, 0), 16777215: (DOG, 1), 65536: (DOG, 0), 256: (GRASS, 0),
    7: (SKY, 0),
}  # fmt: skip


def as_colors(ids: np.ndarray) -> np.ndarray:
    """As COCO's panopticapi writes them: id = R + 256 G + 256 * 256 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)


def listed(segments: object = SEGMENTS, categories: object = CATEGORIES, name: str = "a.png") -> str:
    if isinstance(segments, dict):
        segments = [
            {"id": own, "category_id": category, "iscrowd": crowd, "area": 1, "bbox": [0, 0, 1, 1]}
            for own, (category, crowd) in segments.items()
        ]
    entry = {"image_id": 1, "file_name": name, "segments_info": segments}
    images = [{"id": 1, "file_name": "a.jpg", "height": 3, "width": 5}]
    return json.dumps({"images": images, "annotations": [entry], "categories": categories})


def write_panoptic(
    root: Path, ids: np.ndarray = IDS, text: str | None = None, section: dict[str, object] = SECTION, **other: object
) -> Path:
    write_set(root, as_colors(ids), section, "panoptic_train/a.png", **other)
    (root / "panoptic_train.json").write_text(listed() if text is None else text)
    return root


# ---------------------------------------------------------------------------------------------- COCO panoptic


def test_ids_are_three_bytes_of_color():
    rng = np.random.default_rng(0)
    ids = np.append(rng.integers(0, 2**24, 33), [0, 255, 256, 65535, 65536, 2**24 - 1]).reshape(13, 3)
    np.testing.assert_array_equal(coco_panoptic.numbers_of(as_colors(ids), Path("a.png")), ids)


def test_things_stuff_crowds_and_what_nobody_says(tmp_path):
    root = write_panoptic(tmp_path)
    codes, classes = labels_of(root)[0], labels_of(root, "segmentation")[0]
    np.testing.assert_array_equal(
        codes,  # numbers in the order of the ids: 255, 65536, 3226956
        [
            [PART + 3, PART + 3, 0, 0, VOID],
            [PART + 3, PART + 1, 0, VOID, VOID],
            [2 * PART + 2, PART + 1, 0, VOID, 0],
        ],
    )
    np.testing.assert_array_equal(classes, [[0, 0, 2, 2, 255], [0, 0, 2, 1, 255], [1, 0, 3, 1, 2]])
    assert codes.dtype == np.int32 and classes.dtype == np.uint8
    assert label_tasks(read_folder(root)) == ["segmentation", "instances", "masks"]
    np.testing.assert_array_equal(labels_of(root, "masks")[0], codes)


def test_one_file_is_a_panoptic_target(tmp_path):
    """Of instances beside segmentation: stuff has its class, and a crowd is nobody's."""
    root = write_panoptic(tmp_path)
    heads, _ = make_domains([read_folder(root)], Config(tasks=("segmentation", "instances")))
    assert heads["instances"].classes == ("cat", "dog") and heads["instances"].stuff == ("sky", "grass")
    sample = frames_of(root, "segmentation", "instances").read(0)
    codes, classes = (torch.from_numpy(sample[name])[None] for name in ("instances", "segmentation"))
    target = heads["instances"].complete_target(codes, {"segmentation": classes}, heads)
    sky, grass = 3 * PART, 4 * PART
    assert target[0, :, 2:].tolist() == [[sky, sky, VOID], [sky, VOID, VOID], [grass, VOID, sky]]


@pytest.mark.parametrize("place", ["beside the folder", "named", "named in a folder"])
def test_where_the_json_stands(tmp_path, place):
    root = write_panoptic(tmp_path)
    if place != "beside the folder":
        name = "all.json" if place == "named" else "annotations/all.json"
        (root / name).parent.mkdir(exist_ok=True)
        (root / "panoptic_train.json").rename(root / name)
        with pytest.raises(FileNotFoundError, match=r"panoptic_train\.json: no such file"):
            labels_of(root)
        values = yaml.safe_load((root / "dataset.yaml").read_text())
        values["instances"]["json"] = name
        (root / "dataset.yaml").write_text(yaml.safe_dump(values))
    assert (labels_of(root)[0] > 0).sum() == 6


def test_some_classes_of_many(tmp_path):
    codes = labels_of(write_panoptic(tmp_path, section=SECTION | {"things": ["dog"]}))[0]
    assert codes[0].tolist() == [0, 0, 0, 0, VOID] and codes[2, 0] == PART + 1
    section = {"format": "coco_panoptic", "classes": ["dog"], "stuff": ["sky"], "other_classes": "leave_out"}
    root = write_panoptic(tmp_path, section=section)
    assert labels_of(root)[0][0].tolist() == [0, 0, 0, 0, VOID]
    assert labels_of(root, "segmentation")[0].tolist() == [
        [255, 255, 1, 1, 255], [255, 255, 1, 0, 255], [0, 255, 255, 0, 1],
    ]  # fmt: skip
    things = write_panoptic(tmp_path, section={"format": "coco_panoptic", "classes": THINGS})
    assert (labels_of(things)[0] > 0).sum() == 6 and "segmentation" not in label_tasks(read_folder(things))
    as_stuff = write_panoptic(tmp_path, section=SECTION | {"classes": ["dog"], "stuff": [*STUFF, "cat"]})
    assert labels_of(as_stuff)[0][0].tolist() == [0, 0, 0, 0, VOID]
    assert labels_of(as_stuff, "segmentation")[0][0].tolist() == [3, 3, 1, 1, 255]


def test_segmentation_may_have_classes_and_colors_of_its_own(tmp_path):
    own = {"classes": ["grass", "sky", "dog", "cat"], "colors": [[number] * 3 for number in range(4)]}
    root = write_panoptic(tmp_path, segmentation=own)
    assert labels_of(root, "segmentation")[0].tolist() == [[3, 3, 1, 1, 255], [3, 3, 1, 2, 255], [2, 3, 0, 2, 1]]
    assert read_folder(root).sections["segmentation"]["colors"][3] == (3, 3, 3)
    with pytest.raises(ValueError, match=r"segmentation: unknown key 'ignore'; allowed: classes, colors"):
        read_folder(write_panoptic(tmp_path, segmentation={"ignore": 3}))


def changed(**other: object) -> dict[str, object]:
    return {"id": 7, "category_id": SKY} | other


@pytest.mark.parametrize(
    ("ids", "text", "message"),
    [
        (IDS + (IDS == 7) * 2, None, r"a\.png: number 9 at x 4, y 2: .*panoptic_train\.json has no segment of this id"),
        (IDS, listed(SEGMENTS | {7: (5, 0)}), "number 7 at x 4, y 2: .*json: category_id 5 is none of its 4 categ"),
        (IDS, listed(categories=[*CATEGORIES[:3], {"id": 193, "name": "x", "isthing": 1}]), "number 256 .* class 'x'"),
        (IDS, listed(categories=[{**CATEGORIES[0], "isthing": 0}, *CATEGORIES[1:]]), "'cat' is stuff there, and a th"),
        (IDS, listed(name="b.png"), r"panoptic_train\.json: none of its 1 images is .*a\.png"),
        (IDS, listed([changed(), changed()]), r"json: 'a\.png': two segments have the id 7"),
        (IDS, listed([changed(id=2**24)]), r"json:1: annotations\[0\]: segments_info\[0\]: id is 16777216; it takes"),
        (IDS, listed([changed(id=0)]), r"segments_info\[0\]: id is 0; it takes a whole number of 1\.\.16777215"),
        (IDS, listed([changed(id=True)]), "id is True"),
        (IDS, listed([changed(id=float("nan"))]), "id is nan"),
        (IDS, listed([changed(id="7")]), "id is '7'"),
        (IDS, listed([changed(category_id=None)]), r"segments_info\[0\]: it has no category_id"),
        (IDS, listed([7]), r"segments_info\[0\] is no table"),
        (IDS, listed(None), r"annotations\[0\]: an annotation of a panoptic json needs segments_info"),
        (IDS, listed(categories=[{"id": 1, "name": "x"}]), r"categories\[0\]: a category needs isthing, 0 or 1"),
        (IDS, listed(categories=[{"id": [], "name": "x"}]), r"categories\[0\]: a category needs an id and a name"),
        (IDS, '{"annotations": [{"image_id": 1}]}', "an annotation of a panoptic json needs the file_name"),
        (IDS, '{"annotations": []}', "json: it has no categories; a panoptic json has annotations and categories"),
        (IDS, "[]", "json:1: a panoptic json is a table"),
        (IDS, "{", "json:1: the file ends too early"),
        (IDS, '{"annotations": {}}', "annotations must be one list"),
        (IDS, "\xff", "json: not a UTF-8 text file"),
    ],
)
def test_a_bad_panoptic_label_is_one_line(tmp_path, ids, text, message):
    root = write_panoptic(tmp_path, ids, text if text != "\xff" else "")
    if text == "\xff":
        (root / "panoptic_train.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=message) as caught:
        labels_of(root)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_picture_of_another_kind_is_no_panoptic_png(tmp_path, mode):
    root = write_panoptic(tmp_path)
    picture = Image.fromarray(np.zeros((3, 5), np.uint16 if mode == "I;16" else np.uint8))
    (picture if mode == "I;16" else picture.convert(mode)).save(root / "panoptic_train/a.png")
    with pytest.raises(ValueError, match=r"a\.png: a panoptic PNG has ids as colors"):
        labels_of(root)


def test_a_file_of_another_size(tmp_path):
    root = write_panoptic(tmp_path)
    write_png(root / "rgb/a.png", np.zeros((3, 6, 3), np.uint8))
    for task in ("instances", "segmentation"):
        with pytest.raises(ValueError, match=rf"a\.png: {task} is 5x3, but its image is 6x3"):
            labels_of(root, task)


@pytest.mark.parametrize("limit", ["MOST_SEGMENTS", "MOST_IMAGES", "MOST_CATEGORIES", "MOST_NAME"])
def test_a_json_of_absurd_size_is_refused(tmp_path, monkeypatch, limit):
    path = tmp_path / "a.json"
    path.write_text(listed())
    monkeypatch.setattr(coco_panoptic, limit, 0 if limit == "MOST_IMAGES" else 1)
    with pytest.raises(ValueError, match=r"a\.json:1: .*(more than 1|0 images|needs segments_info)"):
        parse_panoptic(path)


def test_a_frame_of_too_many_segments(tmp_path, monkeypatch):
    root = write_panoptic(tmp_path)
    monkeypatch.setattr(panoptic_files, "MOST_SEGMENTS", 7)
    with pytest.raises(ValueError, match=r"a\.png: 8 segments in a frame; at most 7 are read"):
        labels_of(root)


def test_every_bad_number_of_a_frame_is_named(tmp_path, capsys):
    text = listed({own: value for own, value in SEGMENTS.items() if own not in (255, 256)})
    assert len(check_folder(write_panoptic(tmp_path, text=text))) == 2, "once, not again for segmentation"
    printed = capsys.readouterr().out
    assert "number 255 at x 1, y 1" in printed and "number 256 at x 2, y 2" in printed


def test_the_report_has_things_and_stuff(tmp_path, capsys):
    assert check_folder(write_panoptic(tmp_path)) == []
    printed = capsys.readouterr().out
    assert re.search(r"instances labels +segmentation labels", printed) and "masks" not in printed
    assert "instances: 2 cat, 1 dog" in printed and re.search(r"sky +3\d\.\d\d", printed)


def test_real_masks_as_panoptic_files(tmp_path):
    """COCO's own ids of stuff, and its things' classes each as one thing."""
    mask = read_label(shared("data/coco128/masks/train2017/000000000009.png"))
    kinds = np.unique(mask[mask > 0]).tolist()
    ids = np.where(mask > 0, mask.astype(np.int64) * 65537 + 11, 0)
    names = CLASS_LISTS["coco80"]
    categories = [
        {"id": kind, "name": names[kind % 80] if kind <= 90 else f"stuff {kind}", "isthing": int(kind <= 90)}
        for kind in kinds
    ]
    section = {
        "format": "coco_panoptic",
        "classes": "coco80",
        "stuff": [f"stuff {kind}" for kind in kinds if kind > 90],
    }
    text = listed({kind * 65537 + 11: (kind, 0) for kind in kinds}, categories)
    root = write_panoptic(tmp_path, ids, text, section)
    codes, classes = labels_of(root)[0], labels_of(root, "segmentation")[0]
    assert len(kinds) > 2 and any(kind <= 90 for kind in kinds)
    for kind in kinds:
        here = mask == kind
        assert (codes[here] // PART == (kind % 80 + 1 if kind <= 90 else 0)).all()
        assert len(np.unique(codes[here])) == 1 and len(np.unique(classes[here])) == 1
    assert (codes[mask == 0] == VOID).all() and (classes[mask == 0] == 255).all()


def test_the_stuff_of_coco_has_a_name():
    stuff = CLASS_LISTS["coco53"]
    assert len(set(stuff)) == 53 and (stuff[0], stuff[20], stuff[-1]) == ("banner", "road", "rug-merged")
    assert not set(stuff) & set(CLASS_LISTS["coco80"])


def test_masks_with_one_stuff_say_the_class_of_each_pixel(tmp_path):
    ids = np.array([[0, 7, 9, 255]], np.uint8)
    section = {"classes": ["cat", "dog"], "values": {7: "dog", 9: "cat"}, "ignore": 255, "stuff": ["grass"]}
    root = write_set(tmp_path, ids, section, "instances/a.png")
    folder = read_folder(root)
    assert folder.sections["segmentation"]["classes"] == ("grass", "cat", "dog")
    assert labels_of(root, task="segmentation")[0].tolist() == [[0, 2, 1, 255]]
    fewer = folder.sections["segmentation"] | {"classes": ("dog", "cat"), "colors": ((0, 0, 0), (1, 1, 1))}
    with pytest.raises(ValueError, match=r"a\.png: .*grass"):
        Segmentation.from_section(fewer, Config()).read(root / "instances/a.png", fewer, root / "rgb/a.png")
    assert labels_of(root, task="boxes")[0][:, :5].tolist() == [[1, 0, 2, 1, 1], [2, 0, 3, 1, 0]]


def test_other_formats_say_nothing_of_other_pixels(tmp_path):
    masks = {"format": "instances", "classes": ("a", "b"), "things": ("a",), "stuff": ()}
    for stuff in ((), ("c",), ("b", "c")):  # where `b` is, no thing is
        assert Segmentation.section_within(masks | {"stuff": stuff}, {}, "test") is None
    assert Segmentation.section_within(masks | {"stuff": ("b",)}, {}, "test")["classes"] == ("b", "a")
    assert Segmentation.section_within({"format": "coco", "classes": ("a",), "stuff": ("b",)}, {}, "test") is None


# ---------------------------------------------------------------------------------------------- the real commands


def test_one_panoptic_file_a_frame_trains_two_tasks(script, rooms_folder, tiny_settings, tmp_path):
    """Rooms whose masks of classes and of things have become one PNG with a json."""
    root = tmp_path / "rooms"
    shutil.copytree(rooms_folder, root)
    described = yaml.safe_load((root / "dataset.yaml").read_text())
    kinds, names = described["boxes"]["classes"], CLASS_LISTS["nyu40"]
    stuff = [name for name in names if name not in kinds]
    categories = [{"id": number, "name": name, "isthing": int(name in kinds)} for number, name in enumerate(names)]
    for split in ("train", "val"):
        lines, entries = [], []
        for line in (root / f"{split}.txt").read_text().splitlines():
            cells = dict(zip(described["columns"], line.split("\t"), strict=True))
            masks, things = (read_label(root / cells[name]).astype(np.int64) for name in ("segmentation", "boxes"))
            ids = np.where(things > 0, 2**16 + things, np.where(masks < len(names), 1 + masks, 0))
            segments = [
                {"id": own, "category_id": names.index(kinds[(own - 2**16) // 256 - 1]) if own > 2**16 else own - 1}
                for own in np.unique(ids[ids > 0]).tolist()
            ]
            name = Path(cells["image"]).name
            write_png(root / split / name, as_colors(ids))
            entries.append({"file_name": name, "segments_info": segments})
            lines.append(f"{cells['image']}\t{split}/{name}")
        (root / f"{split}.txt").write_text("\n".join(lines))
        (root / f"{split}.json").write_text(json.dumps({"annotations": entries, "categories": categories}))
    section = {"format": "coco_panoptic", "classes": [*kinds], "stuff": stuff}
    described |= {"columns": ["image", "instances"], "instances": section, "segmentation": {"classes": "nyu40"}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described))
    new, old = (frames_of(place, "segmentation", "instances").read(0) for place in (root, rooms_folder))
    np.testing.assert_array_equal(new["segmentation"], old["segmentation"])
    np.testing.assert_array_equal(new["instances"] // PART, old["instances"] // PART)
    words = ["--config", tiny_settings, "--data", root, "--tasks", "segmentation,instances"]
    done = script("train.py", *words, "--epochs", 1, "--eval_every", 1, "--run", tmp_path / "run")
    assert done.returncode == 0 and "instances/pq" in done.stdout and "segmentation/miou" in done.stdout, done.stderr
