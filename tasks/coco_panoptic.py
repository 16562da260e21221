"""COCO panoptic json: what the segments of many pictures are. The pictures of their numbers are PNG files beside it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks.coco_json import MOST_CATEGORIES, MOST_IMAGES, MOST_NAME, find_by_end, open_json
from user_input.file_cache import FileCache
from user_input.json_stream import JsonStream

MOST_SEGMENTS = 2**24  # of a file; panoptic_train2017.json has 1.3 million
MOST_ID = 2**24  # R + 256 G + 256 * 256 B
KEPT_FILES = 8


@dataclass
class PanopticFile:
    """PNG files by index; segments as columns, in order of their files."""

    path: Path
    names: dict[int, str] = field(default_factory=dict)  # index -> file_name
    by_name: dict[str, list[int]] = field(default_factory=dict)  # last part of file_name -> indices
    first: array = field(default_factory=lambda: array("i", [0]))  # segment of each index, and one more
    categories: dict[object, tuple[str, bool]] = field(default_factory=dict)  # id -> name, isthing
    kinds: dict[object, int] = field(default_factory=dict)  # category id -> its number in `kind`
    id: array = field(default_factory=lambda: array("i"))
    kind: array = field(default_factory=lambda: array("i"))
    crowd: array = field(default_factory=lambda: array("b"))

    def add_category(self, entry: object) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str) or "name" not in entry:
            raise ValueError("a category needs an id and a name")
        if entry.get("isthing") not in (0, 1):
            raise ValueError("a category needs isthing, 0 or 1: this is no panoptic json")
        self.categories[entry["id"]] = (str(entry["name"])[:MOST_NAME], bool(entry["isthing"]))
        if len(self.categories) > MOST_CATEGORIES:
            raise ValueError(f"more than {MOST_CATEGORIES:,} categories")

    def add_annotation(self, entry: object) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise ValueError("an annotation of a panoptic json needs the file_name of a PNG file")
        segments, name = entry.get("segments_info"), entry["file_name"].replace("\\", "/")
        if not isinstance(segments, list) or not 0 < len(name) <= MOST_NAME:
            raise ValueError("an annotation of a panoptic json needs segments_info, a list, and a file_name")
        for number, segment in enumerate(segments):
            self._add_segment(number, segment)
        if len(self.id) > MOST_SEGMENTS or len(self.names) == MOST_IMAGES:
            raise ValueError(f"more than {MOST_SEGMENTS:,} segments or {MOST_IMAGES:,} images, the most that are read")
        self.by_name.setdefault(name.rpartition("/")[2], []).append(len(self.names))
        self.names[len(self.names)] = name
        self.first.append(len(self.id))

    def _add_segment(self, number: int, segment: object) -> None:
        if not isinstance(segment, dict):
            raise ValueError(f"segments_info[{number}] is no table")
        own, kind = segment.get("id"), segment.get("category_id")
        if type(own) is not int or not 0 < own < MOST_ID:
            raise ValueError(f"segments_info[{number}]: id is {own!r:.40}; it takes a whole number of 1..{MOST_ID - 1}")
        if not isinstance(kind, int | str):
            raise ValueError(f"segments_info[{number}]: it has no category_id")
        self.id.append(own)
        self.kind.append(self.kinds.setdefault(kind, len(self.kinds)))
        if len(self.kinds) > MOST_CATEGORIES:
            raise ValueError(f"more than {MOST_CATEGORIES:,} categories")
        self.crowd.append(bool(segment.get("iscrowd")))

    def segments(self, png: Path) -> dict[int, tuple[object, bool]]:
        """{id: (category id, iscrowd)} of a PNG file. Raises ValueError when it is not listed, or not alone."""
        index, kinds = find_by_end(png, self.path, self.names, self.by_name), list(self.kinds)
        found: dict[int, tuple[object, bool]] = {}
        for place in range(self.first[index], self.first[index + 1]):
            if self.id[place] in found:
                raise ValueError(f"{self.path}: {self.names[index]!r:.80}: two segments have the id {self.id[place]}")
            found[self.id[place]] = (kinds[self.kind[place]], bool(self.crowd[place]))
        return found


def parse_panoptic(path: Path) -> PanopticFile:
    """Raises FileNotFoundError, or ValueError with file and line."""
    found = PanopticFile(path)
    try:
        with open_json(path) as file:
            stream = JsonStream(file, path)
            for key, number, entry in stream.lists(("annotations", "categories"), "a panoptic json"):
                try:
                    found.add_category(entry) if key == "categories" else found.add_annotation(entry)
                except ValueError as problem:
                    stream.fail(f"{key}[{number}]: {problem}")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a UTF-8 text file ({problem.reason})") from None
    return found


_files: FileCache[PanopticFile] = FileCache(KEPT_FILES)


def open_panoptic(path: Path) -> PanopticFile:
    """`parse_panoptic`, once for each file in this process."""
    return _files.get(path, parse_panoptic)


def json_of(png: Path) -> Path:
    """Where COCO has it: beside the folder of the PNG files, with the folder's name."""
    return png.parent.parent / f"{png.parent.name}.json"


def numbers_of(pixels: np.ndarray, png: Path) -> np.ndarray:
    """A PNG file (H, W, 3) uint8 -> ids (H, W) int32. Raises ValueError for another kind of picture."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"{png}: a panoptic PNG has ids as colors, 8 bits of red, green and blue; this file has shape "
            f"{pixels.shape}, {pixels.dtype}"
        )
    ids = pixels[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids *= 256
        ids += pixels[..., channel]
    return ids
