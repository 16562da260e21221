"""COCO json: the things of many pictures in one file, which is read value by value and kept as columns of numbers.

The 448 MB of instances_train2017.json become some 60 MB: outlines stay in the file, and are read when they are wanted.
Each process reads a file once, and again when it has changed.
"""

from __future__ import annotations

import codecs
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TextIO

import numpy as np

from tasks.stored_boxes import FARTHEST, StoredBoxes
from user_input.file_cache import FileCache
from user_input.json_stream import JsonStream

MOST_FILE_BYTES = 2**32
MOST_IMAGES, MOST_ANNOTATIONS, MOST_CATEGORIES = 2**20, 2**23, 2**16
MOST_FAULTS = 10_000  # that are told apart; a file with more has another form
MOST_NAME = 1024  # characters of a file name
KEPT_FILES = 8


# ---------------------------------------------------------------------------------------------- the content


@dataclass
class CocoFile:
    """Pictures by index; boxes as columns, which `finish` sorts by picture."""

    path: Path
    ids: dict[object, int] = field(default_factory=dict)  # image id -> index
    names: dict[int, str] = field(default_factory=dict)  # index -> file_name
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # index -> height, width
    by_name: dict[str, list[int]] = field(default_factory=dict)  # last part of file_name -> indices
    categories: dict[object, str] = field(default_factory=dict)
    kinds: dict[object, int] = field(default_factory=dict)  # category id -> its number in `kind`
    faults: dict[int, list[str]] = field(default_factory=dict)  # index -> lines
    boxes: array | np.ndarray = field(default_factory=lambda: array("d"))  # x, y, w, h of all
    image: array | np.ndarray = field(default_factory=lambda: array("i"))  # index
    kind: array | np.ndarray = field(default_factory=lambda: array("i"))
    crowd: array | np.ndarray = field(default_factory=lambda: array("b"))
    number: array | np.ndarray = field(default_factory=lambda: array("i"))  # in the list of annotations, from 0
    span: array | np.ndarray = field(default_factory=lambda: array("q"))  # first byte and length in the file, of all
    fault_count: int = 0

    def index(self, image_id: object) -> int:
        if not isinstance(image_id, int | str) or len(str(image_id)) > MOST_NAME:
            raise ValueError("an image id is a whole number or text")
        index = self.ids.setdefault(image_id, len(self.ids))
        if len(self.ids) > MOST_IMAGES:
            raise ValueError(f"more than {MOST_IMAGES:,} images, the most that are read")
        return index

    def add_image(self, entry: object) -> None:
        if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("file_name"), str):
            raise ValueError("an image needs an id and a file_name")
        index, name = self.index(entry["id"]), entry["file_name"].replace("\\", "/")
        if index in self.names:
            raise ValueError(f"two images have the id {entry['id']!r:.40}")
        if not name or len(name) > MOST_NAME:
            raise ValueError(f"a file_name of {len(name):,} letters; it takes 1 to {MOST_NAME:,}")
        self.names[index] = name
        self.by_name.setdefault(name.rpartition("/")[2], []).append(index)
        sides = [entry.get("height"), entry.get("width")]
        if all(isinstance(side, int) and 0 < side < 2**31 for side in sides):
            self.sizes[index] = (sides[0], sides[1])

    def add_category(self, entry: object) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str) or "name" not in entry:
            raise ValueError("a category needs an id and a name")
        self.categories[entry["id"]] = str(entry["name"])[:MOST_NAME]
        if len(self.categories) > MOST_CATEGORIES:
            raise ValueError(f"more than {MOST_CATEGORIES:,} categories")

    def add_annotation(self, number: int, entry: object, first: int = 0, last: int = 0) -> None:
        """The entry stands in the bytes `first` to `last` of the file."""
        if number >= MOST_ANNOTATIONS:
            raise ValueError(f"more than {MOST_ANNOTATIONS:,} annotations, the most that are read")
        if not isinstance(entry, dict) or "image_id" not in entry:
            raise ValueError("an annotation needs an image_id")
        index = self.index(entry["image_id"])
        try:
            box, kind = _box(entry), entry.get("category_id")
            if not isinstance(kind, int | str):
                raise ValueError("it has no category_id")
        except ValueError as problem:
            self.fault_count += 1
            if self.fault_count > MOST_FAULTS:
                raise ValueError(
                    f"more than {MOST_FAULTS:,} bad annotations, of which this is one: {problem}"
                ) from None
            self.faults.setdefault(index, []).append(f"{self.place(number)}: {problem}")
            return
        self.kind.append(self.kinds.setdefault(kind, len(self.kinds)))
        if len(self.kinds) > MOST_CATEGORIES:
            raise ValueError(f"more than {MOST_CATEGORIES:,} categories")
        self.boxes.extend(box)
        self.image.append(index)
        self.crowd.append(bool(entry.get("iscrowd")))
        self.number.append(number)
        self.span.extend((first, last - first))

    def place(self, number: int) -> str:
        return f"{self.path}: annotations[{number}]"

    def finish(self) -> None:
        columns = [
            np.frombuffer(column, column.typecode) for column in (self.image, self.kind, self.crowd, self.number)
        ]
        order = np.argsort(columns[0], kind="stable")
        self.image, self.kind, self.crowd, self.number = (column[order] for column in columns)
        self.boxes = np.asarray(self.boxes).reshape(-1, 4)[order]
        self.span = np.frombuffer(self.span, "q").reshape(-1, 2)[order]

    def outline(self, row: int, file: BinaryIO) -> object:
        """The value `segmentation` of an annotation; `file` is this json, open. Raises ValueError when it has
        changed."""
        file.seek(int(self.span[row, 0]))
        try:
            return json.loads(file.read(int(self.span[row, 1])))["segmentation"]
        except KeyError:
            return None
        except (ValueError, TypeError):
            raise ValueError(f"{self.place(int(self.number[row]))}: the file has changed while it was read") from None

    def find(self, image: Path) -> int:
        """The index of a picture. Raises ValueError when it is not there, or not alone."""
        return find_by_end(image, self.path, self.names, self.by_name)


def find_by_end(file: Path, table: Path, names: Mapping[int, str], by_name: Mapping[str, Sequence[int]]) -> int:
    """The index in `names` of a file that the json `table` lists, by the end of its path. Raises ValueError when it is
    not there, or not alone.

    The whole file_name is the end of the path, or else the path below the folder that the file and the json share is
    the end of file_name; of several, the longest.
    """
    parts = Path(os.path.abspath(file)).parts
    shared = Path(os.path.commonpath([os.path.abspath(file), os.path.abspath(table)])).parts
    below = len(parts) - len(shared)
    found: dict[tuple[bool, int], list[int]] = {}
    choices = by_name.get(file.name, [])
    for index in choices:
        other = [part for part in PurePosixPath(names[index]).parts if part not in ("/", ".")]
        same = 0
        while same < min(len(other), len(parts)) and other[-1 - same] == parts[-1 - same]:
            same += 1
        if same == len(other) or same >= below:
            found.setdefault((same == len(other), same), []).append(index)
    if not found:
        elsewhere = f"; it has {names[choices[0]]!r:.80}" if choices else ""
        raise ValueError(f"{table}: none of its {len(names):,} images is {file}{elsewhere}")
    best = found[max(found)]
    if len(best) > 1:
        listed = ", ".join(repr(names[index]) for index in best[:3])
        raise ValueError(f"{table}: several of its images may be {file}: {listed:.200}")
    return best[0]


def _box(entry: dict[str, object]) -> Sequence[float]:
    """x, y, w, h of an annotation; of one with polygons alone, those around them. Raises ValueError."""
    box = entry.get("bbox")
    if box is None and isinstance(entry.get("segmentation"), list):
        numbers = [value for polygon in entry["segmentation"] if isinstance(polygon, list) for value in polygon]
        if not numbers or len(numbers) % 2 or not all(map(_is_number, numbers)):
            raise ValueError("it has no bbox, and its polygons are not lists of x and y")
        x, y = min(numbers[::2]), min(numbers[1::2])
        box = [x, y, max(numbers[::2]) - x, max(numbers[1::2]) - y]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"bbox is {box!r:.60}; it takes [x, y, width, height]")
    for name, value in zip(("x", "y", "width", "height"), box, strict=True):
        if not -FARTHEST < value < FARTHEST:  # nor is NaN
            raise ValueError(f"bbox: {name} is {value!r:.40}; it takes a finite number of pixels")
    if min(box[2:]) < 0:
        raise ValueError(f"bbox is {box!r:.60}; width and height are above 0 (these may be swapped corners)")
    return box


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------- reading


def open_json(path: Path) -> TextIO:
    """A large json as text, whose bytes `JsonStream.position` counts. Raises FileNotFoundError, or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.stat().st_size > MOST_FILE_BYTES:
        raise ValueError(f"{path}: more than {MOST_FILE_BYTES:,} bytes, the most that is read of such a file")
    return path.open(encoding="utf-8-sig", newline="")


def parse_coco(path: Path, name: Path | None = None) -> CocoFile:
    """Raises FileNotFoundError, or ValueError with file and line; `name` is the file's name in errors."""
    with open_json(path) as file:
        found = CocoFile(name or path)
        stream = JsonStream(file, found.path)
        try:
            for key, number, entry in stream.lists(("images", "annotations", "categories"), "a COCO file"):
                try:
                    if key == "images":
                        found.add_image(entry)
                    elif key == "categories":
                        found.add_category(entry)
                    else:
                        found.add_annotation(number, entry, stream.began, stream.position)
                except ValueError as problem:
                    stream.fail(f"{key}[{number}]: {problem}")
        except UnicodeDecodeError as problem:
            raise ValueError(f"{found.path}: not a UTF-8 text file ({problem.reason})") from None
    found.finish()
    with path.open("rb") as file:
        found.span[:, 0] += len(codecs.BOM_UTF8) * (file.read(3) == codecs.BOM_UTF8)
    return found


_files: FileCache[CocoFile] = FileCache(KEPT_FILES)


def open_coco(path: Path) -> CocoFile:
    """`parse_coco`, once for each file in this process; what is wrong with it is remembered as well."""
    return _files.get(path, parse_coco)


def annotations_of(file: CocoFile, stored: StoredBoxes, image: Path) -> Iterator[tuple[int, str, str]]:
    """(row, place, class) of each annotation of the picture `image`; what is wrong with others becomes faults."""
    index = file.find(image)
    stored.size = file.sizes.get(index)
    for fault in file.faults.get(index, []):
        stored.count_one()
        stored.faults.append(fault)
    first, last = np.searchsorted(file.image, [index, index + 1])
    kinds = list(file.kinds)
    for row in range(first, last):
        place, category = file.place(int(file.number[row])), kinds[file.kind[row]]
        if category in file.categories:
            yield row, place, file.categories[category]
            continue
        stored.count_one()
        stored.faults.append(f"{place}: category_id {category!r:.40} is none of its {len(file.categories)} categories")


def read_coco(stored: StoredBoxes, image: Path) -> None:
    """The boxes of the picture `image`; `iscrowd` ones are to be ignored. A picture without annotations has none."""
    file = open_coco(stored.path)
    for row, place, name in annotations_of(file, stored, image):
        x, y, width, height = file.boxes[row].tolist()
        stored.add(place, (x, y, x + width, y + height), name, bool(file.crowd[row]))
