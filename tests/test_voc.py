"""PASCAL VOC from its tar archives and from unpacked folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from box_sets import boxes_of, report_of
from conftest import only_holds, png
from official import HEIGHT, WIDTH, Files, jpeg, picture, unpack
from official_boxes import TEST, TRAINVAL, TRAINVAL_2012, voc, voc_ids, voc_mask, voc_xml, write_tar
from PIL import Image

import prepare
from drawing import class_palette
from images import read_label
from sources import voc as source
from tasks import CLASS_LISTS

NAMES = (TRAINVAL, TEST, TRAINVAL_2012)


def run(here: Path, files: dict[str, Files], names: tuple[str, ...] = NAMES) -> int:
    """The command with these archives, to `out`."""
    paths = [write_tar(here / f"{name}.tar", files[name]) for name in names]
    return prepare.main(["voc", "--images", *(path.name for path in paths), "--output", "out"])


def rows(root: Path, split: str) -> list[list[str]]:
    return [line.split("\t") for line in (root / f"{split}.txt").read_text().splitlines()]


def stems(root: Path, split: str) -> list[str]:
    return [Path(image).stem for image, _, _ in rows(root, split)]


@pytest.mark.parametrize("form", ["archives", "folder", "folders"])
def test_voc(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = voc()
    everything = {name: data for part in files.values() for name, data in part.items()}
    if form == "archives":
        assert run(here, files) == 0
    else:
        places = {name: "all" if form == "folder" else name for name in NAMES}
        for name, place in places.items():
            unpack(here / place, files[name])
        assert prepare.main(["voc", "--images", *dict.fromkeys(places.values()), "--output", "out"]) == 0
    assert capsys.readouterr().out == (
        "train: VOC2007 trainval + VOC2012 trainval; val: VOC2007 test\nout: 5 train frames, 2 val frames\n"
    )
    root = here / "out"
    only_holds(root, "rgb", "boxes", "masks", "dataset.yaml", "train.txt", "val.txt")
    assert yaml.safe_load((root / "dataset.yaml").read_text()) == {
        "name": "voc",
        "splits": {"train": "train.txt", "val": "val.txt"},
        "columns": ["image", "boxes", "segmentation"],
        "boxes": {"format": "voc", "classes": "voc20"},
        "segmentation": {"classes": "voc21", "ignore": 255, "colors": class_palette(21).tolist()},
    }
    # 2007_000032, which has labels, is in no list of Main: it may be one of VOC2007's test frames.
    assert stems(root, "train") == ["000005", "000007", "000009", "2008_000002", "2008_000003"]
    assert stems(root, "val") == ["000001", "000002"]
    for label in boxes_of(root) + boxes_of(root, "val"):
        assert label[:, :6].tolist() == [[0, 0, 20, 30, 11, 0], [4, 5, WIDTH, HEIGHT, 14, 1]]
    report_of(root, capsys, 0)
    masked = set()
    for image, boxes, mask in rows(root, "train") + rows(root, "val"):
        name = Path(image).stem
        devkit = f"VOCdevkit/VOC{'2012' if name.startswith('2008') else '2007'}"
        assert (image, boxes) == (f"rgb/{name}.jpg", f"boxes/{name}.xml")
        assert (root / image).read_bytes() == everything[f"{devkit}/JPEGImages/{name}.jpg"]
        assert (root / boxes).read_bytes() == everything[f"{devkit}/Annotations/{name}.xml"]
        if mask != "-":
            masked.add(name)
            assert mask == f"masks/{name}.png"
            np.testing.assert_array_equal(read_label(root / mask), voc_ids(name))
            with Image.open(root / mask) as file:
                assert file.mode == "P"
    assert masked == {"000007", "000009", "000002", "2008_000003"}


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        ((TRAINVAL, TEST), ["000005", "000007", "000009"], ["000001", "000002"]),
        ((TRAINVAL_2012,), ["2008_000002"], ["2008_000003"]),
        ((TRAINVAL,), ["000005", "000009"], ["000007"]),
        ((TRAINVAL, TRAINVAL_2012), ["000005", "000009", "2008_000002"], ["000007", "2008_000003"]),
        ((TRAINVAL_2012, TEST), ["2008_000002", "2008_000003"], ["000001", "000002"]),
        ((TEST,), None, ["000001", "000002"]),
    ],
)
def test_a_part_of_the_archives(names: tuple[str, ...], train: list[str] | None, val: list[str], here: Path) -> None:
    assert run(here, voc(), names) == 0
    assert stems(here / "out", "val") == val
    if train is None:
        assert yaml.safe_load((here / "out/dataset.yaml").read_text())["splits"] == {"val": "val.txt"}
        assert not (here / "out/train.txt").exists()
    else:
        assert stems(here / "out", "train") == train


def test_a_file_that_two_archives_have_counts_once(here: Path) -> None:
    files = voc()
    shared = {name: data for name, data in files[TRAINVAL].items() if "000005" in name}
    files[TEST] |= shared
    assert run(here, files) == 0
    files[TEST]["VOCdevkit/VOC2007/JPEGImages/000005.jpg"] += b"0"
    (here / "again").mkdir()
    with pytest.raises(ValueError, match=r"VOCtest_06-Nov-2007.tar: .*000005.jpg: it differs from .*VOCtrainval_06"):
        paths = [str(write_tar(here / f"again/{name}.tar", files[name])) for name in NAMES]
        prepare.main(["voc", "--images", *paths, "--output", "twice"])


def test_the_classes_are_those_of_the_devkit() -> None:
    assert CLASS_LISTS["voc21"][1:] == CLASS_LISTS["voc20"] == tuple(sorted(CLASS_LISTS["voc20"]))
    assert len(CLASS_LISTS["voc20"]) == 20 and CLASS_LISTS["voc21"][0] == "background"
    assert CLASS_LISTS["voc21"][15] == "person"  # whose color in the masks is (192, 128, 128)


# ---------------------------------------------------------------------------------------------- what is refused

ROOT = "VOCdevkit/VOC2007"
LIST, XML = f"{ROOT}/ImageSets/Main/trainval.txt", f"{ROOT}/Annotations/000007.xml"
IMAGE, MASK = f"{ROOT}/JPEGImages/000007.jpg", f"{ROOT}/SegmentationClass/000007.png"
BOMB = b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
WOLF = [("cow", 0, (1, 2, 3, 4)), ("wolf", 0, (1, 2, 3, 4))]


def put(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: data}


def drop(part: str) -> Callable[[Files], Files]:
    return lambda files: {name: data for name, data in files.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("Main"), r"no VOC2007/ImageSets/Main/\*.txt in it, so it is not one of VOC's archives .http://host"),
        (drop("JPEGImages"), r"no VOC2007/JPEGImages/\*.jpg in it"),
        (drop("Annotations"), r"no VOC2007/Annotations/\*.xml in it"),
        (drop(IMAGE), f"{LIST}: the image of 000007 is missing .1 of 3 frames are without.; is an archive cut off"),
        (drop(XML), f"{LIST}: the annotation of 000007 is missing .1 of 3 frames"),
        (put(LIST, b"../../000007\r\n"), f"{LIST}: '../../000007' is no name of a frame"),
        (put(LIST, b"000007 1\r\n"), f"{LIST}: '000007 1' is no name of a frame"),
        (put(LIST, b"000007\r\n000007\r\n"), f"{LIST}: a name stands there twice"),
        (put(LIST, b"\xff\xfe0\x000\x00"), f"{LIST}: no list of names of frames"),
        (put(LIST, b"2008_000003\n"), f"{LIST}: the image of 2008_000003 is missing"),
        (put(LIST, b"\n"), "train.txt: no frames|in either"),
        (put(IMAGE, b"\xff\xd8\xff"), f"{IMAGE}: not an image"),
        (put(IMAGE, jpeg(picture(7))[:-900]), f"{IMAGE}: damaged or truncated image"),
        (put(XML, voc_xml("VOC2007", "000007")[:-20]), f"{XML}: not readable as XML"),
        (put(XML, BOMB), f"{XML}: it has a document type or CDATA"),
        (put(XML, b"<html></html>"), f"{XML}: <html> and no <annotation>"),
        (put(XML, b""), f"{XML}: not readable as XML .no element found"),
        (
            put(XML, voc_xml("VOC2007", "7", [("cow", 0, (1, 2, 3, 4)), ("wolf", 0, (1, 2, 3, 4))])),
            "an object is 'wolf'",
        ),
        (put(XML, b"<a>" * 2**19), f"{XML}: it has 1,572,864 bytes; at most 1,048,576 are read"),
        (put(MASK, voc_mask(voc_ids("000007")[:-1])), f"{MASK}: it is 53x38, but its image .*{IMAGE} is 53x39"),
        (put(MASK, png(picture(7))), rf"{MASK}: a mask has one 8-bit number a pixel; .* \(39, 53, 3\)"),
        (put(MASK, voc_mask(np.full((39, 53), 21, np.uint8))), f"{MASK}: class 21; allowed: 0..20 and 255"),
    ],
)
def test_wrong_archive_is_explained(change: Callable[[Files], Files], message: str, here: Path) -> None:
    files = voc()
    files[TRAINVAL] = change(files[TRAINVAL])
    names = (TRAINVAL, TEST) if "no frames" in message else NAMES
    with pytest.raises(ValueError, match=message) as problem:
        run(here, files, names)
    assert "\n" not in str(problem.value) and ".part" not in str(problem.value)
    only_holds(here, *(f"{name}.tar" for name in names))


def test_frames_of_one_name_are_refused(here: Path) -> None:
    files = voc()
    renamed = {name.replace("2008_000002", "000005"): data for name, data in files[TRAINVAL_2012].items()}
    files[TRAINVAL_2012] = {name: data.replace(b"2008_000002", b"000005") for name, data in renamed.items()}
    with pytest.raises(ValueError, match=r"VOC2012/JPEGImages/000005.jpg: .*VOC2007/.*/000005.jpg has the same name"):
        run(here, files)


def test_download_names_the_official_archives(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, asked = voc(), []

    def download(url: str, size: int, target: Path, command: str) -> None:
        asked.append((url.rpartition("/")[2], size))
        assert command.startswith("python prepare.py voc --images")
        write_tar(target, files[target.stem])

    monkeypatch.setattr(source, "download", download)
    (here / "dataset").mkdir()
    assert prepare.main(["voc", "--download"]) == 0
    assert asked == [(f"{TRAINVAL}.tar", 460032000), (f"{TEST}.tar", 451020800), (f"{TRAINVAL_2012}.tar", 1999639040)]
    assert len(stems(here / "dataset/voc", "train")) == 5
