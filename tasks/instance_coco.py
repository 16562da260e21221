"""Instances of a COCO json: polygons and run lengths of one picture's things -> codes (tasks/instance_files.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from tasks.coco_json import annotations_of, open_coco, open_json
from tasks.instance_files import PART, VOID
from tasks.outlines import MOST_RUNS, box_runs, paint, runs_of, united
from tasks.stored_boxes import Size, StoredBoxes, class_index
from user_input.file_cache import FileCache
from user_input.json_stream import JsonStream
from user_input.values import ManyErrors

MOST_BYTES = 2**24  # of the json, about one picture
LOOKED_AT = 1000  # annotations of a file, to see whether it has outlines
MOST_FILES = 20  # that are looked at
KEPT_FILES = 64


@dataclass
class CocoThing:
    place: str  # in the file
    kind: int  # index in `things`; -1: a crowd
    segmentation: object  # as the file has it; None: it has none
    box: tuple[float, ...]  # x1, y1, x2, y2


@dataclass
class CocoThings:
    """What a COCO json says about the things of one picture, whose size may not be known yet."""

    path: Path
    size: Size | None = None
    things: list[CocoThing] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def codes(self, size: Size, name: str) -> np.ndarray:
        """(H, W) int32. Where things share pixels, the smaller one has them, of equally large ones the later one.

        Crowds, and boxes of things without an outline, are VOID where nothing else is. Raises ValueError, ManyErrors
        with a line for each thing that cannot be drawn. `name` is the task's.
        """
        if self.size and self.size != size:
            got, wanted = (f"{width}x{height}" for height, width in (self.size, size))
            raise ValueError(f"{self.path}: a label for another picture: {name} of {got}, its image is {wanted}")
        drawn, unsaid, faults, total = [], [], [], 0
        for thing in self.things:
            try:
                runs = runs_of(thing.segmentation, size) if thing.segmentation else box_runs(thing.box, size)
            except ValueError as problem:
                faults.append(f"{thing.place}: {problem}")
                continue
            total += len(runs)
            if total > MOST_RUNS:
                raise ValueError(f"{self.path}: outlines of more than {MOST_RUNS:,} runs of pixels in a frame")
            if thing.kind < 0 or not thing.segmentation:
                unsaid.append(runs)
            else:
                drawn.append(((thing.kind + 1) * PART + len(drawn) + 1, runs))
        if faults:
            raise ManyErrors(*faults)
        codes = np.zeros(size[0] * size[1], np.int32)
        paint(codes, united(unsaid), VOID)
        for code, runs in sorted(drawn, key=lambda item: -int((item[1][:, 1] - item[1][:, 0]).sum())):
            paint(codes, runs, code)
        return np.ascontiguousarray(codes.reshape(size[1], size[0]).T)


def open_things(path: Path, section: Mapping[str, object], image: Path) -> CocoThings:
    """The things of the picture `image`, bad ones as `faults`. Raises FileNotFoundError, or ValueError for a file of
    another form, and where `image` is not in it."""
    file, stored = open_coco(path), StoredBoxes(path, section["classes"], section["other_classes"])
    things = section["things"]
    found, size = CocoThings(path, faults=stored.faults), 0
    with path.open("rb") as content:
        for row, place, category in annotations_of(file, stored, image):
            stored.count_one()
            size += int(file.span[row, 1])
            if size > MOST_BYTES:
                raise ValueError(f"{place}: more than {MOST_BYTES:,} bytes about a frame, the most that are read")
            index = class_index(category, section["classes"])
            if index is None:
                if section["other_classes"] == "error":
                    stored.faults.append(f"{place}: {stored.unknown(category)}")
                continue
            if (name := section["classes"][index]) not in things:
                continue
            x, y, width, height = file.boxes[row].tolist()
            kind, box = -1 if file.crowd[row] else things.index(name), (x, y, x + width, y + height)
            found.things.append(CocoThing(place, kind, file.outline(row, content), box))
    found.size = stored.size
    return found


def read_things(path: Path, section: Mapping[str, object], image: Path) -> CocoThings:
    """`open_things`. Raises ManyErrors for bad ones."""
    found = open_things(path, section, image)
    if found.faults:
        raise ManyErrors(*found.faults)
    return found


# ---------------------------------------------------------------------------------------------- are there outlines?


def outlines_in(files: Iterable[Path]) -> bool:
    """Whether COCO json files that are label files of boxes have outlines as well, by the first annotations. Files
    that cannot be read may have some: who reads them will say what is wrong."""
    for path in islice(dict.fromkeys(islice(files, MOST_FILES)), MOST_FILES):
        try:
            has = _looked_at.get(path, _has_outlines)
        except (OSError, ValueError):
            return True
        if has is not None:
            return has
    return True


def _has_outlines(path: Path) -> bool | None:
    """None: it has no annotations."""
    with open_json(path) as file:
        stream = JsonStream(file, path)
        if stream.peek() != "{":
            return None
        for key in stream.names():
            if key != "annotations" or stream.peek() != "[":
                stream.skip()
                continue
            found = None
            for entry in islice(stream.items(), LOOKED_AT):
                found = bool(isinstance(entry, dict) and entry.get("segmentation"))
                if found:
                    break
            return found
    return None


_looked_at: FileCache[bool | None] = FileCache(KEPT_FILES)
