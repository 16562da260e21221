"""Label files with boxes: each format through read_folder, Frames and `prepare.py check`, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from box_sets import boxes_of, report_of, write_boxes
from conftest import shared
from PIL import Image

from images import read_label
from sources import validate
from tasks import CLASS_LISTS, Boxes, box_formats, stored_boxes
from tasks.box_files import boxes_at_size, read_box_section, read_boxes
from tasks.box_formats import mask_boxes
from tasks.stored_boxes import class_index
from user_input.values import ManyErrors

SIZE = (50, 100)  # height, width
YOLO = {"format": "yolo", "classes": ["cat", "dog"]}
VOC = {"format": "voc", "classes": ["cat", "dog"]}


def one(root: Path, section: dict[str, object], content: object, size: tuple[int, int] = SIZE) -> list[list[float]]:
    """The label of one frame, without the distance, which no file says."""
    (label,) = boxes_of(write_boxes(root, section, {"a": content}, size))
    assert label.dtype == np.float32 and label.shape[1] == 7 and np.isnan(label[:, 6]).all()
    return label[:, :6].tolist()


# ---------------------------------------------------------------------------------------------- YOLO


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1 0.5 0.5 0.2 0.4", [40, 15, 60, 35, 1, 0]),
        ("\ufeff1 0.5 0.5 0.2 0.4\r\n\r\n", [40, 15, 60, 35, 1, 0]),  # byte order mark, CRLF, an empty line
        ("1.0\t0.5  0.5 0.2 4e-1", [40, 15, 60, 35, 1, 0]),
        ("1 0.5 0.5 0.2 0.4 0.93", [40, 15, 60, 35, 1, 0]),  # with a confidence
        ("0 0.1 0.2 0.5 0.2 0.3 0.8", [10, 10, 50, 40, 0, 0]),  # a polygon of three corners
        ("0 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8", [10, 10, 50, 40, 0, 0]),  # of four, or an oriented box
        ("0 0.5 0.5 1.000001 1.0", [0, 0, 100, 50, 0, 0]),  # rounding
        ("0 1.0 0.5 0.01 0.2", [99.5, 20, 100, 30, 0, 0]),  # half of it lies outside
    ],
)
def test_lines_of_yolo(text: str, wanted: list[float], tmp_path: Path) -> None:
    np.testing.assert_allclose(one(tmp_path, YOLO, text), [wanted], atol=1e-4)


def test_an_empty_file_says_nothing_is_there_and_no_file_that_nobody_says(tmp_path: Path) -> None:
    empty, absent = boxes_of(write_boxes(tmp_path, YOLO, {"a": "", "b": None}, SIZE))
    assert empty.shape == (0, 7) and absent is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2; allowed: 0..1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1; allowed: 0..1"),
        ("0.5 0.5 0.5 0.1 0.1", "class '0.5'; it takes a whole number"),
        ("cat 0.5 0.5 0.1 0.1", "'cat' is no number"),
        ("0 nan 0.5 0.1 0.1", "'nan' is no finite number"),
        ("0 0.5 0.5 0.1 inf", "'inf' is no finite number"),
        ("0 0.5 0.5 0.1", "4 values; a line takes `class x y w h`"),
        ("0,0.5,0.5,0.1,0.1", "1 values; a line takes"),
        ("0 0.1 0.2 0.5 0.2 0.3 0.8 0.9", "8 values; a line takes"),
        ("0 40 20 10 10", "40; YOLO labels are in shares of the picture, 0 to 1"),
        ("0 0.5 0.5 -0.1 0.1", "-0.1; width and height are above 0"),
        ("0 0.5 0.5 0 0.1", "a box without area: 0 x 0.1"),
        ("0 0.5 0.5 1e-12 0.1", "a box without area: 1e-12 x"),  # in 32 bits
        ("0 1.0 0.5 1e-12 0.1", "a box without area"),  # what of it is in the picture
        ("0 1.005 0.5 0.005 0.1", "a box outside of the picture: x 1.0025 to 1.0075"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    root = write_boxes(tmp_path, YOLO, {"a": f"0 0.5 0.5 0.1 0.1\n{line}\n"}, SIZE)
    with pytest.raises(ValueError, match=r"labels/a\.txt:2: ") as caught:
        boxes_of(root)
    assert message in str(caught.value)


def test_every_bad_box_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "".join(f"{kind} 0.5 0.5 0.1 0.1\n" for kind in range(7))
    root = write_boxes(tmp_path, YOLO, {"a": bad, "b": "1 0.5 0.5 0.1 0.1"}, SIZE)
    with pytest.raises(ManyErrors, match=r"a.txt:3: class 2; .* \(and 4 more in this file\)") as caught:
        boxes_of(root)
    assert len(caught.value.lines) == 5
    printed = report_of(root, capsys, faults=5)
    assert "wrong boxes values: 5" in printed and "... and" not in printed
    for line in range(3, 8):
        assert f"train.txt:1: {root}/labels/a.txt:{line}: class {line - 1}" in printed
    assert "1, 1 boxes" in printed, "the other frame is counted"


def test_an_error_of_many_lines_goes_from_a_loader_process_to_the_training() -> None:
    error = ManyErrors("a.txt:1: x", "a.txt:2: y")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.txt:1: x (and 1 more in this file)"


def test_classes_that_are_not_listed_may_be_left_out(tmp_path: Path) -> None:
    section = YOLO | {"other_classes": "leave_out"}
    assert one(tmp_path, section, "7 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.2 0.4\n") == [[40, 15, 60, 35, 1, 0]]


# ---------------------------------------------------------------------------------------------- VOC


def voc(
    box: str = "<xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>10</ymax>",
    size: str = "<size><width>100</width><height>50</height><depth>3</depth></size>",
    more: str = "",
    head: str = "",
    name: str = "dog",
) -> str:
    thing = f"<object>\n<name>{name}</name>{more}<bndbox>{box}</bndbox></object>"
    return f"{head}<annotation>\n<filename>a.png</filename>{size}\n{thing}</annotation>"


PART = "<part><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (voc(), [10, 5, 20, 10, 1, 0]),  # 1-based, inclusive
        (voc("<xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>50</ymax>"), [0, 0, 100, 50, 1, 0]),
        (voc("<xmin>7</xmin><ymin>8</ymin><xmax>7</xmax><ymax>8</ymax>"), [6, 7, 7, 8, 1, 0]),  # one pixel
        (voc("<xmin>0</xmin><ymin>0</ymin><xmax>101</xmax><ymax>51</ymax>"), [0, 0, 100, 50, 1, 0]),  # by one too many
        (voc("<xmax>20.5</xmax><ymax>10</ymax><xmin>11.0</xmin><ymin> 6 </ymin>"), [10, 5, 20.5, 10, 1, 0]),
        (voc(more="<pose/><difficult>1</difficult>"), [10, 5, 20, 10, 1, 1]),
        (voc(more="<difficult>0</difficult>"), [10, 5, 20, 10, 1, 0]),
        (voc(more=PART), [10, 5, 20, 10, 1, 0]),  # a part's box is none of the object's
        (voc(size=""), [10, 5, 20, 10, 1, 0]),
        (voc(size="<size><width>0</width><height>0</height></size>"), [10, 5, 20, 10, 1, 0]),
        (voc().replace("\n", "\r\n"), [10, 5, 20, 10, 1, 0]),
        (voc(head="\ufeff<?xml version='1.0'?>"), [10, 5, 20, 10, 1, 0]),
        (voc(head="<?xml version='1.0' encoding='latin-1'?><!-- ö -->").encode("latin-1"), [10, 5, 20, 10, 1, 0]),
    ],
)
def test_voc_objects(text: str | bytes, wanted: list[float], tmp_path: Path) -> None:
    assert one(tmp_path, VOC, text) == [wanted]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [0, 0, 10**400, 3]}, "object 1: x2 is 1000.*; a corner takes finite numbers within"),
        ({"box": [-(10**400), 0, 5, 3]}, "object 1: x1 is -1000"),
        ({"box": [0, 0, 1e9, 3]}, "object 1: x2 is 1000000000.0; a corner"),
        ({"distance_m": 10**400}, "object 1: distance_m is 1000.*; it takes metres within"),
        ({"distance_m": -(10**400)}, "object 1: distance_m is -1000"),
    ],
    ids=["x2", "x1", "1e9", "distance", "negative distance"],
)
def test_objects_with_numbers_that_no_float_can_hold(change, message, tmp_path: Path) -> None:
    item = {"class": "cat", "box": [1, 1, 3, 3], "distance_m": 1} | change
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"width": 100, "height": 50, "objects": [item]}))
    section = read_box_section({"format": "objects", "classes": ["cat"]}, "x")
    with pytest.raises(ManyErrors, match=message):
        read_boxes(path, section, tmp_path / "a.png")


def test_more_classes_than_boxes_can_have() -> None:
    section = {"format": "coco", "classes": [f"class {number}" for number in range(256)]}
    with pytest.raises(ValueError, match=r"^x: boxes\.classes has 256 names; boxes take at most 255 classes$"):
        Boxes.read_section(section, "x: boxes")
    assert len(Boxes.read_section(section | {"classes": section["classes"][:255]}, "x")["classes"]) == 255
    assert Boxes.section_within(read_box_section(section, "x") | {"things": ("class 0",)}, {}, "x") is None


def test_a_voc_file_without_objects_says_that_nothing_is_there(tmp_path: Path) -> None:
    assert one(tmp_path, VOC, "<annotation><filename>a.png</filename></annotation>") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc(name="dgo"), "a.xml:3: class 'dgo' (did you mean 'dog'?); dataset.yaml has cat, dog"),
        (voc("<xmin>20</xmin><ymin>6</ymin><xmax>11</xmax><ymax>10</ymax>"),
         "a.xml:3: swapped corners: xmin is 20, xmax 11"),
        (voc("<xmin>1</xmin><ymin>9</ymin><xmax>11</xmax><ymax>8</ymax>"), "a.xml:3: swapped corners: ymin is 9,"),
        (voc("<xmin>NaN</xmin><ymin>6</ymin><xmax>11</xmax><ymax>10</ymax>"), "a.xml:3: x1 is nan"),
        (voc("<xmin>one</xmin><ymin>6</ymin><xmax>11</xmax><ymax>10</ymax>"), "a.xml:3: xmin is 'one'; it takes"),
        (voc("<xmin>1</xmin><ymin>6</ymin><ymax>10</ymax>"), "a.xml:3: this object has no xmax"),
        (voc("<xmin>120</xmin><ymin>6</ymin><xmax>130</xmax><ymax>10</ymax>"),
         "a.xml:3: a box outside of the picture: x 119 to 130, y 5 to 10, of 100x50"),
        (voc("<xmin>120</xmin><ymin>6</ymin><xmax>130</xmax><ymax>10</ymax>", size=""),
         "a.xml:3: a box outside of the picture"),
        (voc(size="<size><width>640</width><height>480</height></size>"),
         "a.xml: a label for another picture: boxes of 640x480, its image is 100x50"),
        (voc(size="<size><width>50</width><height>100</height></size>"), "its image is 100x50 (turned by its EXIF"),
        (voc(size="<size><width>wide</width><height>100</height></size>"), "width is 'wide'; it takes a whole number"),
        ("<html><annotation/></html>", "a VOC label begins with <annotation>, this file with <html>"),
        ("<annotation><object>", "a.xml: not readable as XML: no element found"),
        ("", "a.xml: not readable as XML: no element found"),
        ("0 0.5 0.5 0.1 0.1", "a.xml: not readable as XML: syntax error"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "a.xml: not readable as XML: unknown encoding"),
        (f"<annotation>{'<a>' * 40}{'</a>' * 40}</annotation>", "more than 32 levels deep"),
    ],
)  # fmt: skip
def test_a_bad_voc_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    root = write_boxes(tmp_path, VOC, {"a": text}, SIZE)
    with pytest.raises(ValueError, match=r"labels/a\.xml") as caught:
        boxes_of(root)
    assert message in str(caught.value) and "\n" not in str(caught.value)


BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "lol"}">' for n in range(12))


@pytest.mark.parametrize(
    "doctype",
    [f"<!DOCTYPE annotation [{BOMB}]>", '<!DOCTYPE annotation [<!ENTITY e11 SYSTEM "secret.txt">]>',
     '<!DOCTYPE annotation SYSTEM "secret.txt">', '<!DOCTYPE annotation [<!ENTITY % e11 SYSTEM "secret.txt"> %e11;]>'],
    ids=["bomb", "external entity", "external DTD", "parameter entity"],
)  # fmt: skip
def test_entities_are_refused_before_they_are_expanded(doctype: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("dog")
    root = write_boxes(tmp_path, VOC, {"a": voc(head=doctype, name="&e11;")}, SIZE)
    with pytest.raises(ValueError, match=r"a\.xml: a DOCTYPE \('annotation'\), which label files have no use for"):
        boxes_of(root)


# ---------------------------------------------------------------------------------------------- masks of instances


def things(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """A mask of SIZE with a number in each rectangle: number, x1, y1, x2, y2."""
    mask = np.zeros(SIZE, np.uint16)
    for number, x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = number
    return mask


MASK = things((256, 0, 0, 10, 5), (513, 20, 10, 21, 11), (514, 90, 40, 100, 50), (7, 30, 30, 40, 44))


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ({"classes": ["thing"], "ignore": "514"},
         [[30, 30, 40, 44, 0, 0], [0, 0, 10, 5, 0, 0], [20, 10, 21, 11, 0, 0]]),
        ({"classes": ["cat", "dog"], "divisor": "256", "other_classes": "leave_out"},
         [[0, 0, 10, 5, 0, 0], [20, 10, 21, 11, 1, 0], [90, 40, 100, 50, 1, 0]]),
        ({"classes": ["cat", "dog"], "values": {"7": "dog", "514": "cat", "256": "wall"}, "other_classes": "leave_out"},
         [[30, 30, 40, 44, 1, 0], [90, 40, 100, 50, 0, 0]]),
        ({"classes": ["cat", "dog"], "values": "ids.json", "other_classes": "leave_out"}, [[0, 0, 10, 5, 0, 0]]),
    ],
    ids=["one class", "divisor", "values", "values in a file"],
)  # fmt: skip
def test_masks_of_instances(section: dict[str, object], wanted: list[list[float]], tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text('{"256": "cat"}')
    assert one(tmp_path, {"format": "instances"} | section, MASK) == wanted


@pytest.mark.parametrize(
    ("section", "mask", "message"),
    [
        ({"classes": ["cat"], "divisor": "256"}, MASK, "number 7: it stands for none of the 1 classes"),
        ({"classes": ["cat"], "values": {"7": "cta"}}, things((7, 1, 1, 5, 5)), "number 7: class 'cta' (did you mean"),
        ({"classes": ["cat"]}, np.zeros((20, 100), np.uint8), "a label for another picture: boxes of 100x20"),
        ({"classes": ["cat"]}, np.zeros((*SIZE, 3), np.uint8), "a mask has one integer a pixel; this file has shape"),
    ],
)  # fmt: skip
def test_a_bad_mask_is_named(section: dict[str, object], mask: np.ndarray, message: str, tmp_path: Path) -> None:
    root = write_boxes(tmp_path, {"format": "instances"} | section, {"a": mask}, SIZE)
    with pytest.raises(ValueError, match=r"labels/a\.png: ") as caught:
        boxes_of(root)
    assert message in str(caught.value)


def test_boxes_around_random_masks_are_the_extent_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.choice([0, 0, 0, 1, 5, 300], (int(rng.integers(1, 9)), int(rng.integers(1, 9))))
        wanted = {}
        for number in set(mask[mask > 0].tolist()):
            rows, columns = np.nonzero(mask == number)
            wanted[number] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert mask_boxes(mask) == wanted


# ---------------------------------------------------------------------------------------------- limits and sections


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_boxes, "MOST_BOXES", 3)
    monkeypatch.setattr(box_formats, "MOST_BOXES", 3)
    line, thing = "0 0.5 0.5 0.1 0.1\n", re.search("<object>.*</object>", voc(), re.DOTALL)[0]
    mask = things(*((number, 10 * number, 0, 10 * number + 5, 9) for number in range(1, 6)))
    for number, (section, few, many) in enumerate((
        (YOLO, line * 3, line * 4), (YOLO, line * 3, line * 3 + "0 nan 0 0 0"),
        (VOC, f"<annotation>{thing * 3}</annotation>", f"<annotation>{thing * 4}</annotation>"),
        ({"format": "instances", "classes": ["a"]}, np.where(mask > 3, 0, mask), mask),
    )):  # fmt: skip
        root = tmp_path / str(number)
        assert len(one(root, section, few)) == 3
        with pytest.raises(ValueError, match=r"a.*: more than 3 boxes in a frame, the most that are read"):
            one(root, section, many)
    monkeypatch.setattr(box_formats, "MOST_BYTES", 40)
    for section, text in ((YOLO, line * 3), (VOC, voc())):
        with pytest.raises(ValueError, match="more than 40 bytes"):
            one(tmp_path / "long", section, text)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"classes": ["a"]}, "boxes.format is missing; allowed: yolo, voc, coco, instances"),
        ({"format": "yollo", "classes": ["a"]}, "boxes.format is 'yollo' (did you mean 'yolo'?)"),
        ({"format": "yolo"}, "boxes.classes must be a list of different names, or one of: nyu40, voc20, voc21, coco80"),
        ({"format": "yolo", "classes": "coco81"}, "boxes.classes is 'coco81' (did you mean 'coco80'?)"),
        ({"format": "yolo", "classes": ["a", "a"]}, "boxes.classes must be a list of different names"),
        ({"format": "yolo", "classes": ["a\x1b"]}, "names of printable letters"),
        ({"format": "yolo", "classes": ["a"], "other_classes": "ignore"}, "allowed: error, leave_out"),
        ({"format": "yolo", "classes": ["a"], "divisor": "256"}, "boxes.divisor is for format: instances; this"),
        ({"format": "instances", "classes": ["a"], "divisor": "1"}, "boxes.divisor is 1; it takes a whole number"),
        ({"format": "instances", "classes": ["a"], "values": {"x": "a"}}, "boxes.values is 'x'; it takes"),
        ({"format": "instances", "classes": ["a"], "values": {"1": "a"}, "divisor": "9"}, "divisor or values, not"),
        ({"format": "instances", "classes": ["a"], "values": "no.json"}, "no.json: no such file"),
        ({"format": "instances", "classes": ["a"], "values": "bad.json"}, "bad.json: not readable as JSON"),
        ({"format": "yolo", "classes": ["a"], "klasses": "b"}, "unknown key 'klasses' (did you mean 'classes'?)"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_explained(section: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[1")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_box_section(section, "dataset.yaml: boxes", tmp_path)
    assert message in str(caught.value)


def test_known_class_lists_and_their_other_names() -> None:
    coco, voc_names = CLASS_LISTS["coco80"], CLASS_LISTS["voc20"]
    assert len(set(coco)) == 80 and coco[0] == "person" and coco[79] == "toothbrush"
    assert list(voc_names) == sorted(set(voc_names)) and len(voc_names) == 20
    assert all(class_index(name, coco) is not None for name in voc_names), "each class of VOC is one of COCO"
    assert coco[class_index("tvmonitor", coco)] == "tv" and voc_names[class_index("couch", voc_names)] == "sofa"
    assert coco[class_index("Cell_Phone", coco)] == "cell phone" and class_index("racoon", coco) is None


def test_a_picture_that_cannot_be_read_is_named_beside_its_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_boxes(tmp_path, YOLO, {"a": "1 0.5 0.5 0.2 0.4"}, SIZE)
    (root / "images/a.png").write_text("no picture")
    assert "unreadable image: 1" in report_of(root, capsys)


def test_what_looks_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "1 0.5 0.5 0.2 0.4\n" * 2 + "0 0.9 0.5 0.3 0.2\n0 0.5 0.5 0.005 0.5\n"
    printed = report_of(write_boxes(tmp_path, YOLO, {"a": text}, SIZE), capsys)
    assert "unlikely boxes: 1" in printed
    for doubt in ("line 3: the box ends 5% of the picture outside", "line 2: the same box as line 1",
                  "line 4: a box of 0.5 x 25 pixels"):  # fmt: skip
        assert doubt in printed
    other = voc().replace("a.png", "C:\\pictures\\b.png")
    assert "about 'b.png', its image is a.png" in report_of(write_boxes(tmp_path, VOC, {"a": other}, SIZE), capsys)


def test_many_faults_of_many_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "MOST_NAMED", 8)
    root = write_boxes(tmp_path, YOLO, {f"{n}": "9 0.5 0.5 0.1 0.1\n" * 4 for n in range(3)}, SIZE)
    printed = report_of(root, capsys, faults=12)
    assert printed.count("class 9") == 8 and "... and 4 more" in printed


SOUND = {
    "yolo": "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.5 0.2 0.3 0.8\r\n",
    "voc": voc(more=PART),
    "coco": '{"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}],\n "categories": [{"id": 3, '
    '"name": "dog"}], "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2.5, 3, 4], "iscrowd": 0}]}',
}


@pytest.mark.parametrize("form", SOUND)
def test_damaged_files_are_labels_or_one_line(form: str, tmp_path: Path) -> None:
    """Bytes are changed, left out, doubled: what comes of it has corners in the picture, or is a line about a file."""
    rng = np.random.default_rng(0)
    section = read_box_section({"format": form, "classes": ["cat", "dog"]}, "test")
    pieces = [b"-", b"e9", b"nan", b"\0", b"\xff", b"<", b"&a;", b'"', b"[", b"}", b"1" * 400, b" ", b"\n", b"9", b"."]
    outcomes = []
    for number in range(300):
        text = bytearray(SOUND[form].encode())
        for _ in range(int(rng.integers(1, 4))):
            at, kind = int(rng.integers(len(text))), int(rng.integers(3))
            end = at + int(rng.integers(1, 12))
            text[at : at if kind == 1 else end] = b"" if kind == 0 else pieces[int(rng.integers(len(pieces)))]
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text)
        try:
            label = boxes_at_size(read_boxes(path, section, tmp_path / "a.png"), SIZE)
        except ValueError as problem:
            outcomes.append("refused")
            assert path.name in str(problem) and "\n" not in str(problem) and len(str(problem)) < 500
            continue
        outcomes.append("read")
        assert ((label[:, :4] >= 0) & (label[:, :4] <= [100, 50, 100, 50])).all()
        assert (label[:, 2:4] > label[:, :2]).all() and set(label[:, 4]) <= {0, 1}
    assert min(outcomes.count("read"), outcomes.count("refused")) >= 3


# ---------------------------------------------------------------------------------------------- real data


def real_set(root: Path, section: dict[str, object], pairs: list[tuple[Path, Path]]) -> Path:
    """A data set whose list names files elsewhere."""
    (root / "train.txt").write_text("".join(f"{image}\t{label}\n" for image, label in pairs))
    described = {"splits": {"train": "train.txt"}, "columns": ["image", "boxes"], "boxes": section}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described))
    return root


def test_masks_of_real_people_have_the_boxes_that_their_makers_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared("data/pennfudan") / "PennFudanPed"
    section = read_box_section({"format": "instances", "classes": ["person"]}, "test")
    number, equal = 0, 0
    for text in sorted((data / "Annotation").glob("*.txt")):
        image = data / f"PNGImages/{text.stem}.png"
        mask = data / f"PedMasks/{text.stem}_mask.png"
        numbers = re.findall(r"Bounding box.*: \((\d+), (\d+)\) - \((\d+), (\d+)\)", text.read_text())
        wanted = np.array(numbers, float) - [1, 1, 0, 0]  # "Top left pixel co-ordinates : (1, 1)"
        found = boxes_at_size(read_boxes(mask, section, image), read_label(mask).shape)[:, :4]
        assert len(found) == len(wanted)
        number += len(wanted)
        equal += int((found == wanted).all(1).sum())
    assert number > 150 and equal >= 0.95 * number, "6 of 204 masks differ from the text beside them"
    pairs = [(image, data / f"PedMasks/{image.stem}_mask.png") for image in sorted((data / "PNGImages").iterdir())]
    printed = report_of(
        real_set(tmp_path, {"format": "instances", "classes": ["person"]}, pairs[:12]), capsys, faults=0
    )
    assert re.search(r"train +12 .* 12, [23]\d boxes", printed) and (tmp_path / "check.png").is_file()


def test_real_voc_files_and_a_truncated_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared("data/raccoon")
    labels = sorted((data / "annotations").iterdir())
    pairs = [(data / f"images/{label.stem}.jpg", label) for label in labels]
    section = {"format": "voc", "classes": ["raccoon"], "other_classes": "leave_out"}
    printed = report_of(real_set(tmp_path, section, pairs), capsys)
    assert "unreadable image: 1" in printed and "00090.jpg: damaged or truncated" in printed
    assert re.search(r"train +41 .* 40, 4\d boxes", printed)
    pairs = [pair for pair in pairs if pair[0].stem != "00090"]
    labels = boxes_of(real_set(tmp_path, section, pairs))
    for (image, path), label in zip(pairs, labels, strict=True):
        numbers = re.findall(r"<x?y?m..>(\d+)<", path.read_text())
        wanted = np.array(numbers, float).reshape(-1, 4) - [1, 1, 0, 0]
        width, height = Image.open(image).size
        np.testing.assert_array_equal(label[:, :4], wanted.clip(0, [width, height, width, height]))


def test_instances_of_a_real_room(tmp_path: Path) -> None:
    data = shared("data/replica_office0")
    if not (data / "instances.json").is_file():
        pytest.skip("needs replica_office0/instances.json")
    wanted = ["chair", "sofa", "table"]
    section = {"format": "instances", "classes": wanted, "values": str(data / "instances.json")}
    pairs = [(data / f"rgb/{stem}.jpg", data / f"instances/{stem}.png") for stem in ("0000", "0040")]
    with pytest.raises(ManyErrors, match=r"0000\.png: number \d+: class '.*'; dataset.yaml has chair, sofa, table"):
        boxes_of(real_set(tmp_path, section, pairs))
    labels = boxes_of(real_set(tmp_path, section | {"other_classes": "leave_out"}, pairs))
    mask = read_label(pairs[0][1])
    rows, columns = np.nonzero(mask == 12)  # a table, by instances.json
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, wanted.index("table"), 0]
    assert box in labels[0][:, :6].tolist() and all(len(label) for label in labels)
