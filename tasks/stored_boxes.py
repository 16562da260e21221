"""StoredBoxes: the boxes of one frame as a label file has them, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from tasks.classes import OTHER_NAMES
from user_input.values import ManyErrors, near

MOST_BOXES = 1000  # of a frame; more are an attack or a mistake
SLACK = 0.02  # of a side of the picture: a box that ends farther outside is doubted
FARTHEST = 1e9  # pixels or metres from 0: a json may hold whole numbers that no float can
SHOWN = 8  # classes in a message
WHOLE = (1, 1)  # the size of the picture in label files whose numbers are shares of it

Size = tuple[int, int]  # height, width


@dataclass
class StoredBoxes:
    """What a label file says about one frame. `add` collects the boxes; what is wrong with one becomes a fault."""

    path: Path
    classes: tuple[str, ...]
    other_classes: str = "error"  # error | leave_out: what becomes of a box whose class is not among them
    size: Size | None = None  # of the picture that the file is about; None: the file does not say it
    in_shares: bool = False  # corners are shares of the picture, and size is WHOLE
    rows: list[tuple[float, ...]] = field(default_factory=list)  # x1, y1, x2, y2, class index, ignore, distance_m
    places: list[str] = field(default_factory=list)  # where each row stands: file, and line or number
    faults: list[str] = field(default_factory=list)  # lines about boxes that cannot be used
    doubts: list[str] = field(default_factory=list)  # what looks wrong, in words
    count: int = 0  # of all boxes in the file

    def add(
        self,
        place: str,
        corners: Sequence[float],
        kind: int | str | None,
        ignore: bool = False,
        distance_m: float = math.nan,
    ) -> None:
        """A box x1, y1, x2, y2, and its class by number or by name. Raises ValueError for one too many."""
        self.count_one()
        index = class_index(kind, self.classes) if isinstance(kind, str) else kind
        if index is None or not 0 <= index < len(self.classes):
            if self.other_classes == "error":
                self.faults.append(f"{place}: {self.unknown(kind)}")
            return
        if fault := _corner_fault(corners) or (outside(corners, self.size) if self.size else ""):
            self.faults.append(f"{place}: {fault}")
            return
        if self.size and (share := share_outside(corners, self.size)) > SLACK:
            self.doubts.append(f"{self.in_file(place)}: the box ends {share:.0%} of the picture outside of it")
        self.rows.append((*map(float, corners), float(index), float(ignore), distance_m))
        self.places.append(place)

    def count_one(self) -> None:
        self.count += 1
        if self.count > MOST_BOXES:
            raise ValueError(f"{self.path}: more than {MOST_BOXES:,} boxes in a frame, the most that are read")

    def refuse_faults(self) -> None:
        if self.faults:
            raise ManyErrors(*self.faults)

    def label(self, size: Size, name: str) -> np.ndarray:
        """(n, 7) float32 x1, y1, x2, y2 in pixels, clipped to a frame of this size; class, ignore, distance (or NaN).

        Raises ValueError for a frame of another size, and for boxes outside of it. `name` is the task's.
        """
        if self.size and self.size != size and not self.in_shares:
            got, wanted = (f"{width}x{height}" for height, width in (self.size, size))
            turned = " (turned by its EXIF entry)" if self.size == size[::-1] else ""
            what = f"a label for another picture: {name} of {got}, its image is {wanted}{turned}"
            raise ValueError(f"{self.path}: {what}")
        rows = np.array(self.rows, np.float64).reshape(-1, 7)
        height, width = size
        scale = np.array((width, height, width, height) if self.in_shares else (1, 1, 1, 1))
        corners = (rows[:, :4] * scale).clip(0, (width, height, width, height)).astype(np.float32)
        faults = []
        for place, row, (x1, y1, x2, y2) in zip(self.places, self.rows, corners, strict=True):
            if x1 >= x2 or y1 >= y2:  # possible where the file did not say the size, and by rounding to 32 bits
                without = f"a box without area: {row[2] - row[0]:.4g} x {row[3] - row[1]:.4g}"
                faults.append(f"{place}: {outside(row[:4], self.size or size) or without}")
        if faults:
            raise ManyErrors(*faults)
        return np.column_stack([corners, rows[:, 4:]]).astype(np.float32)

    def unknown(self, kind: int | str | None) -> str:
        """What is wrong with a class that is none of `classes`."""
        if kind is None:
            return f"it stands for none of the {len(self.classes)} classes in dataset.yaml"
        if isinstance(kind, int):
            return f"class {kind}; allowed: 0..{len(self.classes) - 1}"
        names = ", ".join(self.classes[:SHOWN]) + (", ..." if len(self.classes) > SHOWN else "")
        return f"class {kind!r:.60}{near(kind, self.classes)}; dataset.yaml has {names}"

    def in_file(self, place: str) -> str:
        """A place without the name of the file."""
        rest = place.removeprefix(f"{self.path}:").strip()
        return f"line {rest}" if rest.isdigit() else rest


def _corner_fault(corners: Sequence[float]) -> str:
    """What is wrong with x1, y1, x2, y2 in any picture, or ''."""
    for name, value in zip(("x1", "y1", "x2", "y2"), corners, strict=True):
        if not -FARTHEST < value < FARTHEST:  # nor is NaN
            return f"{name} is {value!r:.40}; a corner takes finite numbers within +-{FARTHEST:g}"
    x1, y1, x2, y2 = corners
    for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
        if high < low:
            return f"swapped corners: {axis} goes from {low:g} to {high:g}"
    if x1 == x2 or y1 == y2:
        return f"a box without area: {x2 - x1:g} x {y2 - y1:g}"
    return ""


def outside(corners: Sequence[float], size: Size) -> str:
    """Says that a box does not touch a picture of this size, or ''."""
    x1, y1, x2, y2 = corners
    height, width = size
    if x1 < width and y1 < height and x2 > 0 and y2 > 0:
        return ""
    what = "in shares of it" if size == WHOLE else f"of {width}x{height}"
    return f"a box outside of the picture: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}, {what}"


def share_outside(corners: Sequence[float], size: Size) -> float:
    """How far a box ends outside of a picture, as a share of its side."""
    x1, y1, x2, y2 = corners
    height, width = size
    return max(-x1 / width, -y1 / height, x2 / width - 1, y2 / height - 1, 0.0)


def class_index(name: str, classes: tuple[str, ...]) -> int | None:
    """The index of a class by its name, also by the other name of a class of COCO or VOC; None: it is none of them."""
    found = _indices(classes)
    return found.get(name, found.get(_plain(name)))


def _plain(name: str) -> str:
    words = name.lower().replace("_", " ").replace("-", " ").strip()
    return OTHER_NAMES.get(words, words)


@lru_cache(maxsize=32)
def _indices(classes: tuple[str, ...]) -> dict[str, int]:
    plain = {_plain(name): index for index, name in reversed(list(enumerate(classes)))}
    return plain | {name: index for index, name in enumerate(classes)}
