"""COCO from its zip archives and from unpacked folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from box_sets import boxes_of, report_of
from conftest import only_holds, write_zip
from official import Files, unpack
from official_boxes import COCO_BOXES, annotation, coco, coco_json, coco_name
from pycocotools import mask

import prepare
from sources import coco as source
from tasks import CLASS_LISTS
from tasks.instance_files import PART, VOID

NAMES = ("train2017", "val2017", "annotations_trainval2017")


def run(here: Path, files: dict[str, Files], names: tuple[str, ...] = NAMES) -> int:
    """The command with these archives, to `out`."""
    *images, annotations = [str(write_zip(here / f"{name}.zip", files[name])) for name in names]
    return prepare.main(["coco", "--images", *images, "--annotations", annotations, "--output", "out"])


def rows(root: Path, split: str) -> list[list[str]]:
    return [line.split("\t") for line in (root / f"{split}.txt").read_text().splitlines()]


@pytest.mark.parametrize("form", ["archives", "folders", "one folder"])
def test_coco(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = coco()
    if form == "archives":
        assert run(here, files) == 0
    else:
        for content in files.values():
            unpack(here / "coco", content)
        images = ["coco/train2017", "coco/val2017"] if form == "folders" else ["coco"]
        words = ["coco", "--images", *images, "--annotations", "coco/annotations", "--output", "out"]
        assert prepare.main(words) == 0
    assert capsys.readouterr().out == (
        "out: 3 train frames, 1 val frames\n1 boxes have no width or no height and were left out\n"
    )
    root = here / "out"
    only_holds(root, "rgb", "boxes", "dataset.yaml", "train.txt", "val.txt")
    assert yaml.safe_load((root / "dataset.yaml").read_text()) == {
        "name": "coco",
        "splits": {"train": "train.txt", "val": "val.txt"},
        "columns": ["image", "boxes"],
        "boxes": {"format": "coco", "classes": "coco80"},
    }
    found = {}
    for split, ids in (("train", (9, 25, 30)), ("val", (139,))):
        names = [coco_name(number) for number in ids]
        assert rows(root, split) == [[f"rgb/{name}", f"boxes/{name[:-4]}.json"] for name in names]
        for number, name in zip(ids, names, strict=True):
            assert (root / f"rgb/{name}").read_bytes() == files[f"{split}2017"][f"{split}2017/{name}"]
            found[number] = json.loads((root / f"boxes/{name[:-4]}.json").read_text())
            expected = {"id": number, "file_name": name, "width": 53, "height": 39}
            assert found[number]["images"] == [expected]
    boxes = {number: content["annotations"] for number, content in found.items()}
    # `id` is the place in the official list; annotation 8, which has no height, is left out.
    assert [item["id"] for item in boxes[9]] == [2] and [item["id"] for item in boxes[25]] == [1, 3]
    for item in boxes[9] + boxes[25]:
        official = COCO_BOXES[item["id"] - 1]
        assert item == {**{key: official[key] for key in item}, "id": item["id"]}
        assert set(item) == {"id", "image_id", "category_id", "bbox", "iscrowd", "segmentation"}
    assert boxes[30] == [] and [item["iscrowd"] for item in boxes[25]] == [0, 1]  # 30: nothing there
    assert found[25]["categories"] == [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    assert found[30]["categories"] == []


def test_training_reads_the_boxes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(here, coco())
    first, second, third = (label[:, :6].tolist() for label in boxes_of(here / "out"))
    assert first == [[0, 0, 53, 39, 16, 0]] and third == []
    assert second == [[1.5, 2.25, 11.5, 23, 79, 0], [3, 4, 33, 34, 0, 1]]
    np.testing.assert_array_equal(boxes_of(here / "out", "val")[0][:, :6], [[5, 5, 12, 13, 0, 0]])
    report_of(here / "out", capsys, 0)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_training_reads_the_outlines(mark: bytes, here: Path) -> None:
    """Of the first frame a triangle with corners (1.5, 2), (3, 4.25), (5, 6), which pycocotools draws."""
    files = coco()
    files[NAMES[2]][TRAIN] = mark + files[NAMES[2]][TRAIN]
    run(here, files)
    first, second, third = boxes_of(here / "out", task="instances")
    rle = mask.frPyObjects([[1.5, 2, 3, 4.25, 5, 6]], 39, 53)
    np.testing.assert_array_equal(first > 0, mask.decode(rle)[..., 0])
    assert set(np.unique(second)) == {0, VOID, (CLASS_LISTS["coco80"].index("toothbrush") + 1) * PART + 1}
    assert not third.any(), "nothing is there"


def test_one_split_alone(here: Path) -> None:
    assert run(here, coco(), NAMES[1:]) == 0
    assert yaml.safe_load((here / "out/dataset.yaml").read_text())["splits"] == {"val": "val.txt"}
    only_holds(here / "out", "rgb", "boxes", "dataset.yaml", "val.txt")


def test_images_of_no_entry_are_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = coco()
    files["val2017"]["val2017/000000000140.jpg"] = b""
    assert run(here, files) == 0
    assert "1 images have no entry in the annotations and were left out" in capsys.readouterr().out
    assert len(rows(here / "out", "val")) == 1


def test_the_classes_are_those_of_the_json_files() -> None:
    assert len(set(CLASS_LISTS["coco80"])) == 80
    assert [CLASS_LISTS["coco80"].index(name) for name in ("person", "stop sign", "tv", "toothbrush")] == [
        0,
        11,
        62,
        79,
    ]


# ---------------------------------------------------------------------------------------------- what is refused

TRAIN = "annotations/instances_train2017.json"
IMAGES = {9: coco_name(9), 25: coco_name(25), 30: coco_name(30)}


def boxes(*items: dict[str, object]) -> bytes:
    return coco_json(IMAGES, list(items))


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in annotation(5, 9, 1, [1, 2, 3, 4]).items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (boxes(annotation(5, 10, 1, [1, 2, 3, 4])), r"annotations\[0\]: its image_id is none of the 3 images"),
        (boxes(annotation(5, 9, 2, [1, 2, 3, 4])), r"annotations\[0\]: category_id 2 is none of the categories"),
        (boxes(annotation(5, 9, 1, [1, 2, 3])), r"annotations\[0\]: bbox is \[1, 2, 3\]; it takes \[x, y, width"),
        (boxes(annotation(5, 9, 1, [1, 2, -3, 4])), r"annotations\[0\]: bbox is"),
        (boxes(annotation(5, 9, 1, [1, 2, float("nan"), 4])), r"annotations\[0\]: bbox: width is nan"),
        (boxes(without("image_id")), r"annotations\[0\]: an annotation needs an image_id"),
        (coco_json({9: coco_name(9), 25: coco_name(9)}, []), "two images have the file_name 000000000009.jpg"),
        (coco_json({9: "../../evil.jpg"}, []), "file_name is '../../evil.jpg'; it takes a name such as"),
        (coco_json({9: "a\nb.jpg"}, []), "file_name is"),
        (coco_json({9: ""}, []), "a file_name of 0 letters"),
        (coco_json({}, []), "it has no images"),
        (coco_json({**IMAGES, 31: coco_name(31)}, []), "000000000031.jpg is missing .1 of 4 frames are without"),
        (boxes().replace(b'"person"', b'"grass"'), "category 'grass' is not one of COCO's 80 classes"),
        (
            boxes().replace(b'"images"', b'"pictures"'),
            "it has no images; a COCO file has images, annotations and categories",
        ),
        (boxes()[:-40], "not readable as JSON"),
        (boxes()[:-1], "the file ends too early"),
        (b"", "the file ends too early"),
        (b"<html>", "a COCO file is a table"),
        (b"[]", "a COCO file is a table"),
        (b"\xff\xfe{", "not a UTF-8 text file"),
    ],
)
def test_wrong_annotations_are_explained(content: bytes, message: str, here: Path) -> None:
    files = coco()
    files[NAMES[2]][TRAIN] = content
    with pytest.raises(ValueError, match=rf"annotations_trainval2017.zip: {TRAIN}.*: .*({message})") as problem:
        run(here, files)
    assert "\n" not in str(problem.value)
    only_holds(here, *(f"{name}.zip" for name in NAMES))


def put(archive: str, name: str, data: bytes) -> Callable[[dict[str, Files]], object]:
    return lambda files: files[archive].update({name: data})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files["train2017"].pop(f"train2017/{coco_name(25)}"), "000000000025.jpg is missing .1 of 3"),
        (
            lambda files: files["val2017"].clear(),
            r"val2017.zip: no \*.jpg in it, so it is not train2017.zip",
        ),
        (put("val2017", f"val2017/{coco_name(9)}", b""), f"val2017/{coco_name(9)}: .*train2017.zip has it as well"),
        (lambda files: files[NAMES[2]].clear(), "no instances_train2017.json in it, so it is not annotations_trainval"),
        (put(NAMES[2], TRAIN, coco_json({139: coco_name(139)}, [])), "is an image of the other split as well"),
        (put("train2017", f"train2017/{coco_name(9)}", b"\xff\xd8"), f"train2017/{coco_name(9)}: not an image"),
    ],
)
def test_wrong_archives_are_explained(change: Callable[[dict[str, Files]], object], message: str, here: Path) -> None:
    files = coco()
    change(files)
    with pytest.raises(ValueError, match=message) as problem:
        run(here, files)
    assert "\n" not in str(problem.value) and ".part" not in str(problem.value)
    only_holds(here, *(f"{name}.zip" for name in NAMES))


def test_annotations_of_other_images(here: Path) -> None:
    files = coco()
    files["train2017"] = {"a/1.jpg": b""}
    with pytest.raises(ValueError, match="none of its images is in --images, which takes train2017"):
        run(here, files, (NAMES[0], NAMES[2]))


@pytest.mark.parametrize(
    "words", ["coco --images a.zip", "coco --annotations a.zip", "coco --download --annotations a.zip", "coco"]
)
def test_wrong_words_are_explained(words: str, here: Path) -> None:
    with pytest.raises(ValueError, match="--images"):
        prepare.main(words.split())
    only_holds(here)


def test_download_names_the_official_archives(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, asked = coco(), {}

    def download(url: str, size: int, target: Path, command: str) -> None:
        asked[url.rpartition("/")[2]] = size
        assert command.startswith("python prepare.py coco --images")
        write_zip(target, files[target.stem])

    monkeypatch.setattr(source, "download", download)
    (here / "dataset").mkdir()
    assert prepare.main(["coco", "--download"]) == 0
    assert asked == {
        "train2017.zip": 19336861798, "val2017.zip": 815585330, "annotations_trainval2017.zip": 252907541,
    }  # fmt: skip
    assert len(rows(here / "dataset/coco", "train")) == 3
