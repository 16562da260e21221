"""Label files that say of each pixel what it is, things and stuff alike: COCO panoptic, and Cityscapes' instance ids.

They give the codes of instances (tasks/instance_files.py), and the classes of segmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from images import read_label
from tasks.box_formats import read_mask
from tasks.cityscapes import name_of_number
from tasks.classes import NO_CLASS
from tasks.coco_panoptic import json_of, numbers_of, open_panoptic
from tasks.instance_files import PART, VOID, numbers_in, read_codes
from tasks.stored_boxes import StoredBoxes, class_index
from user_input.values import ManyErrors

PANOPTIC = ("coco_panoptic", "cityscapes")  # formats
MOST_SEGMENTS = 2000  # of a frame


@dataclass(frozen=True)
class Segment:
    name: str  # of its class; "": nobody says what it is
    single: bool  # one thing; else stuff, or a group of things
    stuff: bool = False  # the file says that its class is never counted


def panoptic_codes(path: Path, section: Mapping[str, object]) -> np.ndarray:
    """A panoptic file -> codes (H, W) int32 by the classes `section["things"]`; stuff is no thing, and nobody says
    what a group is.

    Raises FileNotFoundError, or ValueError: ManyErrors with a line for each number of no class.
    """
    classes, things = section["classes"], section["things"]
    stored = StoredBoxes(path, classes, section["other_classes"])

    def code(segment: Segment) -> int:
        index = class_index(segment.name, classes)
        if index is None:
            if not segment.stuff and class_index(segment.name, section["stuff"]) is None:
                _refuse(stored, segment)
            return 0
        if classes[index] not in things:
            return 0
        if segment.stuff:
            raise ValueError(f"class {segment.name!r:.60} is stuff there, and a thing in dataset.yaml")
        if not segment.single:
            return VOID
        stored.count_one()
        return (things.index(classes[index]) + 1) * PART + stored.count

    return _translated(path, section, code, VOID).astype(np.int32)


def panoptic_classes(path: Path, section: Mapping[str, object], classes: tuple[str, ...]) -> np.ndarray:
    """A panoptic file, or a mask of things with one class of stuff -> classes (H, W) uint8, 255 = none.

    Raises as `panoptic_codes` does.
    """
    stored = StoredBoxes(path, classes, section["other_classes"])
    if section["format"] not in PANOPTIC:
        names = ("", *section["stuff"], *section["things"])  # of VOID, 0, PART, 2 * PART, ...
        which = read_codes(path, section) // PART + 1
        table = np.full(len(names), NO_CLASS, np.uint8)
        for place in numbers_in(which).tolist():
            if (index := class_index(names[place], classes)) is not None:
                table[place] = index
            elif names[place] and stored.other_classes == "error":
                raise ValueError(f"{path}: {stored.unknown(names[place])}")
        return table[which]

    def kind(segment: Segment) -> int:
        index = class_index(segment.name, classes)
        if index is None:
            _refuse(stored, segment)
            return NO_CLASS
        return index

    return _translated(path, section, kind, NO_CLASS).astype(np.uint8)


def _refuse(stored: StoredBoxes, segment: Segment) -> None:
    if stored.other_classes == "error":
        raise ValueError(stored.unknown(segment.name))


def _translated(
    path: Path, section: Mapping[str, object], value_of: Callable[[Segment], int], nobody_says: int
) -> np.ndarray:
    """The numbers of a file, each replaced."""
    mask, segment_of = open_panoptic_file(path, section)
    numbers = numbers_in(mask)
    if len(numbers) > MOST_SEGMENTS:
        raise ValueError(f"{path}: {len(numbers):,} segments in a frame; at most {MOST_SEGMENTS:,} are read")
    table, faults = np.zeros(int(numbers[-1]) + 1 if len(numbers) else 1, np.int32), []
    for number in numbers.tolist():
        try:
            segment = segment_of(number)
            table[number] = value_of(segment) if segment.name else nobody_says
        except ValueError as problem:
            y, x = np.argwhere(mask == number)[0]
            faults.append(f"{path}: number {number} at x {x}, y {y}: {problem}")
    if faults:
        raise ManyErrors(*faults)
    return table[mask]


def open_panoptic_file(path: Path, section: Mapping[str, object]) -> tuple[np.ndarray, Callable[[int], Segment]]:
    """(H, W) numbers, and what each stands for: a function that raises ValueError for one that stands for nothing.

    Raises FileNotFoundError, or ValueError that names the file.
    """
    if section["format"] == "cityscapes":
        return read_mask(path), lambda number: Segment(*name_of_number(number))
    mask = numbers_of(read_label(path), path)
    file = open_panoptic(section["json"] or json_of(path))
    segments = file.segments(path)

    def segment_of(number: int) -> Segment:
        if number == 0:
            return Segment("", False)
        if number not in segments:
            raise ValueError(f"{file.path} has no segment of this id")
        category, crowd = segments[number]
        if category not in file.categories:
            raise ValueError(
                f"{file.path}: category_id {category!r:.40} is none of its {len(file.categories)} categories"
            )
        name, is_thing = file.categories[category]
        return Segment(name, is_thing and not crowd, not is_thing)

    return mask, segment_of
