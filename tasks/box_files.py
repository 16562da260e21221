"""Label files with boxes: the section `boxes:` of a dataset.yaml, and a file of one of its formats -> a label.

A label is (n, 7) float32: x1, y1, x2, y2 in pixels of the frame (the left and top edge of the first pixel is 0, the
right edge of the last one the width), class index, ignore (0 or 1), distance in metres (NaN: unknown).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tasks.base import HERE, check_choice, check_keys
from tasks.box_formats import read_instances, read_objects, read_voc, read_yolo
from tasks.classes import CLASS_LISTS, NO_CLASS
from tasks.coco_json import read_coco
from tasks.stored_boxes import Size, StoredBoxes
from user_input.text_files import read_json, read_text
from user_input.values import convert, near

FORMATS = ("yolo", "voc", "coco", "instances", "objects")
ONLY_INSTANCES = ("divisor", "values", "ignore")
MOST_CLASSES = 10_000
MOST_VALUES_BYTES = 2**22  # of the json file that `values` may name


# ---------------------------------------------------------------------------------------------- dataset.yaml


def read_box_section(section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
    """Checks the section `boxes:` of a dataset.yaml in the folder `root`. Raises ValueError at `where`.

    Returns format, classes, other_classes; of instances also divisor (0 = none), values ({number: class}) and ignore
    (-1 = none).
    """
    check_keys(section, {"format", "classes", "other_classes", *ONLY_INSTANCES}, where)
    if "format" not in section:
        raise ValueError(f"{where}.format is missing; allowed: {', '.join(FORMATS)}")
    form, others = section["format"], section.get("other_classes", "error")
    check_choice(f"{where}.format", form, FORMATS)
    check_choice(f"{where}.other_classes", others, ("error", "leave_out"))
    for key in ONLY_INSTANCES:
        if key in section and form != "instances":
            raise ValueError(f"{where}.{key} is for format: instances; this is {form}")
    result = {"format": form, "classes": _classes(section.get("classes"), where), "other_classes": others}
    if form != "instances":
        return result
    divisor = convert(section.get("divisor", 0), int, f"{where}.divisor")
    if "divisor" in section and divisor < 2:
        raise ValueError(f"{where}.divisor is {divisor}; it takes a whole number from 2 on, such as 256 or 1000")
    values = _values(section.get("values"), where, root)
    if divisor and values:
        raise ValueError(f"{where} takes divisor or values, not both")
    return result | {
        "divisor": divisor, "values": values, "ignore": convert(section.get("ignore", -1), int, f"{where}.ignore")
    }  # fmt: skip


def with_few_classes(section: dict[str, object], where: str) -> dict[str, object]:
    """The section, if boxes can have as many classes; masks may name more, of which some are things. Raises
    ValueError."""
    if (count := len(section["classes"])) > NO_CLASS:
        raise ValueError(f"{where}.classes has {count} names; boxes take at most {NO_CLASS} classes")
    return section


def _classes(classes: object, where: str) -> tuple[str, ...]:
    known = ", ".join(CLASS_LISTS)
    if isinstance(classes, str):
        if classes not in CLASS_LISTS:
            raise ValueError(f"{where}.classes is {classes!r}{near(classes, CLASS_LISTS)}; a list, or one of: {known}")
        return CLASS_LISTS[classes]
    usable = isinstance(classes, list | tuple) and classes and all(isinstance(item, str) for item in classes)
    if not usable or len(set(classes)) != len(classes):
        raise ValueError(f"{where}.classes must be a list of different names, or one of: {known}")
    if len(classes) > MOST_CLASSES or not all(name and name.isprintable() for name in classes):
        raise ValueError(f"{where}.classes takes up to {MOST_CLASSES:,} names of printable letters")
    return tuple(classes)


def _values(values: object, where: str, root: Path) -> dict[int, str]:
    """{number in a mask: name of its class}; {} when it is not said."""
    if isinstance(values, str):
        file, text = root / values, read_text(root / values, MOST_VALUES_BYTES)
        try:
            values = read_json(text)
        except ValueError as problem:
            raise ValueError(f"{where}.values: {file}: not readable as JSON ({problem})") from None
    named = convert(values or {}, dict[str, str], f"{where}.values")
    return {convert(number, int, f"{where}.values"): name for number, name in named.items()}


# ---------------------------------------------------------------------------------------------- label files


def open_boxes(path: Path, section: Mapping[str, object], image: Path) -> StoredBoxes:
    """A label file as it is; bad boxes are its `faults`. `image` is the frame's picture.

    Raises FileNotFoundError, or ValueError for a file of another form.
    """
    stored = StoredBoxes(path, section["classes"], section["other_classes"])
    if section["format"] == "yolo":
        read_yolo(stored)
    elif section["format"] == "voc":
        read_voc(stored, image)
    elif section["format"] == "coco":
        read_coco(stored, image)
    elif section["format"] == "objects":
        read_objects(stored)
    else:
        read_instances(stored, lambda number: class_of_number(number, section), section["ignore"])
    return stored


def class_of_number(number: int, section: Mapping[str, object]) -> int | str | None:
    """The class of a thing by its number in a mask: an index, a name, or None for none."""
    if section["values"]:
        return section["values"].get(number)
    index = number // section["divisor"] - 1 if section["divisor"] else 0
    return index if 0 <= index < len(section["classes"]) else None


def read_boxes(path: Path, section: Mapping[str, object], image: Path) -> StoredBoxes:
    """`open_boxes`, without a bad box. Raises FileNotFoundError, or ValueError: ManyErrors with a line for each."""
    stored = open_boxes(path, section, image)
    stored.refuse_faults()
    return stored


def boxes_at_size(stored: StoredBoxes, size: Size, name: str = "boxes") -> np.ndarray:
    """The label of a frame of this size. Raises ValueError when it is of another picture, see StoredBoxes.label."""
    return stored.label(size, name)
