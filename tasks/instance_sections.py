"""The section `instances:` of a dataset.yaml, and a label file of one of its formats -> a label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from images import read_label
from tasks.base import HERE, Size, check_choice, check_keys
from tasks.box_files import read_box_section
from tasks.cityscapes import CITYSCAPES, CITYSCAPES_THINGS
from tasks.classes import CLASS_LISTS, NO_CLASS
from tasks.instance_coco import CocoThings, open_things, read_things
from tasks.instance_files import read_codes
from tasks.panoptic_files import PANOPTIC, open_panoptic_file, panoptic_codes
from user_input.values import convert, near

FORMATS = ("instances", "coco", *PANOPTIC)
OF_BOXES = ("instances", "coco")  # formats of boxes and of instances alike
ONLY_OURS = ("things", "stuff")


def read_instance_section(section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
    """Checks the section `instances:` of a dataset.yaml in the folder `root`. Raises ValueError at `where`.

    It takes what `boxes` of the format takes, and: `things`, those of its classes that are counted one by one
    (default: all); `stuff`, the classes of segmentation that are not (default: all others). coco_panoptic also takes
    `json`, the file that says what the ids are; cityscapes has its own classes.
    """
    form = section.get("format", "instances")
    check_choice(f"{where}.format", form, FORMATS)
    if form == "cityscapes":
        check_keys(section, {"format", *ONLY_OURS}, where)
        fixed = {"format": form, "classes": CITYSCAPES_THINGS, "other_classes": "leave_out"}
        return _with_things(fixed, section, where)
    boxes = {key: value for key, value in section.items() if key not in ONLY_OURS}
    if form != "coco_panoptic":
        return _with_things(read_box_section(boxes | {"format": form}, where, root), section, where)
    json = convert(boxes.pop("json", ""), str, f"{where}.json")
    checked = read_box_section(boxes | {"format": "coco"}, where, root)
    return _with_things({**checked, "format": form, "json": root / json if json else None}, section, where)


def section_of_boxes(boxes: Mapping[str, object], own: Mapping[str, object], where: str) -> dict[str, object] | None:
    """The section for label files of another task that hold instances, or boxes with outlines; else None.

    `own` is the section `instances:`, which may say `things` and `stuff` alone then.
    """
    if "things" not in boxes and boxes["format"] not in OF_BOXES:
        return None
    for key in own:
        if key not in ONLY_OURS:
            raise ValueError(
                f"{where}.{key}: its labels are those of another column, whose section says it"
                f"{near(str(key), ONLY_OURS)}; allowed here: {', '.join(ONLY_OURS)}"
            )
    return _with_things(boxes, {key: boxes[key] for key in ONLY_OURS if key in boxes} | own, where)


def _with_things(boxes: Mapping[str, object], own: Mapping[str, object], where: str) -> dict[str, object]:
    classes, stuff = boxes["classes"], own.get("stuff") or ()
    named = CLASS_LISTS.get(stuff) if isinstance(stuff, str) else None
    stuff = named or convert(stuff, tuple[str, ...], f"{where}.stuff")
    things = convert(own.get("things") or classes, tuple[str, ...], f"{where}.things")
    for name in things:
        if name not in classes:
            raise ValueError(f"{where}.things: {name!r:.60}{near(name, classes)} is none of its classes")
    for name in stuff:
        if name in things:
            raise ValueError(f"{where}.stuff: {name!r:.60} is a thing as well")
    if not 0 < len(things) + len(stuff) < NO_CLASS:
        raise ValueError(f"{where}: {len(things) + len(stuff)} things and stuff; allowed: 1 to {NO_CLASS - 1}")
    return {**boxes, "things": tuple(name for name in classes if name in things), "stuff": stuff}


def boxes_within(section: Mapping[str, object]) -> dict[str, object] | None:
    """The section `boxes:` for files of this one; None for formats that give none, and for more classes than boxes can
    have."""
    if section["format"] not in OF_BOXES or len(section["classes"]) > NO_CLASS:
        return None
    return {key: value for key, value in section.items() if key not in ONLY_OURS}


def classes_within(section: Mapping[str, object]) -> dict[str, object] | None:
    """`classes`, and `colors` where they are known, of a section whose files say what each pixel is; else None.

    Masks of things alone say it when there is one class of stuff: it is where no thing is.
    """
    if section["format"] == "cityscapes":
        return {"classes": list(CITYSCAPES), "colors": [list(map(str, color)) for _, color in CITYSCAPES.values()]}
    if section["format"] in PANOPTIC and section["stuff"]:
        return {"classes": list(dict.fromkeys((*section["classes"], *section["stuff"])))}
    if section["format"] == "instances" and len(section["stuff"]) == 1:
        names = (*section["stuff"], *section["things"])
        return {"classes": list(names)} if set(section["classes"]) <= set(names) else None
    return None


# ---------------------------------------------------------------------------------------------- label files


def open_instances(path: Path, section: Mapping[str, object], image: Path) -> object:
    """A label file as it is. Raises FileNotFoundError, or ValueError for a file of another form."""
    if section["format"] == "coco":
        return open_things(path, section, image)
    return open_panoptic_file(path, section)[0] if section["format"] in PANOPTIC else read_label(path)


def read_instances(path: Path, section: Mapping[str, object], image: Path) -> np.ndarray | CocoThings:
    """A label file -> codes (H, W), or things whose outlines become codes when the picture's size is known.

    Raises FileNotFoundError, or ValueError: ManyErrors with a line for each thing that cannot be used.
    """
    if section["format"] == "coco":
        return read_things(path, section, image)
    return (panoptic_codes if section["format"] in PANOPTIC else read_codes)(path, section)


def instances_at_size(label: np.ndarray | CocoThings, size: Size, path: Path, name: str) -> np.ndarray:
    """Codes (H, W) of a frame of this size. Raises ValueError when the label has another. `name` is the task's."""
    if isinstance(label, CocoThings):
        return label.codes(size, name)
    if label.shape != size:
        got, wanted = (f"{width}x{height}" for height, width in (label.shape, size))
        raise ValueError(f"{path}: {name} is {got}, but its image is {wanted}")
    return label
