"""Box labels, a file for each frame: YOLO text, PASCAL VOC XML, masks with a number for each thing, and what
inference.py writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.parsers import expat

import numpy as np

from images import read_label
from tasks.stored_boxes import FARTHEST, MOST_BOXES, WHOLE, StoredBoxes
from user_input.text_files import read_bytes, read_json, read_text

MOST_BYTES = 2**24  # of a label file
MOST_LEVELS = 32  # of elements inside each other in an XML file
MOST_ID = 2**24  # in a mask: what 24 bits of color may be made of
ROUNDING = 0.01  # of the picture: how far numbers of YOLO files may lie outside 0..1


# ---------------------------------------------------------------------------------------------- YOLO


def read_yolo(stored: StoredBoxes) -> None:
    """Lines `class x y w h`: center and size in shares of the picture; or `class` and x y of each corner of a polygon.

    A sixth number is a confidence, which is not used.
    """
    stored.size, stored.in_shares = WHOLE, True
    for number, line in enumerate(read_text(stored.path, MOST_BYTES).splitlines(), 1):
        if not (cells := line.split()):
            continue
        place = f"{stored.path}:{number}"
        try:
            corners, kind = _yolo_line(cells)
        except ValueError as problem:
            stored.count_one()
            stored.faults.append(f"{place}: {problem}")
            continue
        stored.add(place, corners, kind)


def _yolo_line(cells: list[str]) -> tuple[tuple[float, ...], int]:
    """Corners in shares, and class id. Raises ValueError that says what is wrong."""
    count = len(cells)
    if not (count in (5, 6) or (count >= 7 and count % 2)):
        raise ValueError(f"{count} values; a line takes `class x y w h`, or `class` and x y of at least 3 corners")
    values = [_number(cell) for cell in cells]
    kind, *shares = values
    if not math.isfinite(kind) or kind != int(kind):
        raise ValueError(f"class {cells[0]!r:.40}; it takes a whole number")
    for value, cell in zip(shares, cells[1:], strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{cell!r:.40} is no finite number")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            negative = value < 0 and count in (5, 6) and cell in cells[3:5]
            what = "width and height are above 0" if negative else "YOLO labels are in shares of the picture, 0 to 1"
            raise ValueError(f"{cell:.40}; {what}")
    if count > 6:
        return (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])), int(kind)
    x, y, width, height = shares[:4]
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), int(kind)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r:.40} is no number") from None


# ---------------------------------------------------------------------------------------------- VOC

CORNERS = ("xmin", "ymin", "xmax", "ymax")
OF_OBJECT = {("name",), ("difficult",), *(("bndbox", name) for name in CORNERS)}
OF_PICTURE = {("filename",), ("size", "width"), ("size", "height")}


class _VocXml:
    """What of an XML file is used. A DOCTYPE is refused: with it come entities, which may multiply or name files."""

    def __init__(self, content: bytes) -> None:
        self.tags: list[str] = []
        self.text: list[str] = []
        self.picture: dict[str, str] = {}
        self.objects: list[tuple[int, dict[str, str]]] = []  # line, name -> text
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.StartElementHandler, self.parser.EndElementHandler = self.start, self.end
        self.parser.CharacterDataHandler = self.text.append
        try:
            self.parser.Parse(content, True)
        except expat.ExpatError as problem:
            raise ValueError(f"not readable as XML: {expat.ErrorString(problem.code)}") from None
        except (LookupError, UnicodeError) as problem:  # of the encoding that it names
            raise ValueError(f"not readable as XML: {problem}") from None

    def doctype(self, name: str, *others: object) -> None:
        raise ValueError(f"a DOCTYPE ({name!r:.40}), which label files have no use for, is not accepted")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.tags.append(tag)
        self.text.clear()
        if self.tags[0] != "annotation":
            raise ValueError(f"a VOC label begins with <annotation>, this file with <{tag:.40}>")
        if len(self.tags) > MOST_LEVELS:
            raise ValueError(f"elements inside each other, more than {MOST_LEVELS} levels deep")
        if self.tags == ["annotation", "object"]:
            if len(self.objects) == MOST_BOXES:
                raise ValueError(f"more than {MOST_BOXES:,} boxes in a frame, the most that are read")
            self.objects.append((self.parser.CurrentLineNumber, {}))

    def end(self, tag: str) -> None:
        inside = tuple(self.tags[1:])
        text = "".join(self.text).strip()
        if inside in OF_PICTURE:
            self.picture.setdefault(tag, text)
        elif inside[:1] == ("object",) and inside[1:] in OF_OBJECT:
            self.objects[-1][1].setdefault(tag, text)
        self.text.clear()
        self.tags.pop()


def read_voc(stored: StoredBoxes, image: Path) -> None:
    """A PASCAL VOC annotation: corners are 1-based and inclusive, `difficult` objects are to be ignored.

    Boxes of parts (<part>) are not read. `image` is the frame's picture, which <filename> should name.
    """
    content = read_bytes(stored.path, MOST_BYTES)
    try:
        file = _VocXml(content)
        stored.size = _voc_size(file.picture)
    except ValueError as problem:
        raise ValueError(f"{stored.path}: {problem}") from None
    named = file.picture.get("filename", "").replace("\\", "/").rpartition("/")[2]
    if named and Path(named).stem != image.stem and named != image.stem:
        stored.doubts.append(f"it says that it is about {named!r:.80}, its image is {image.name}")
    for line, values in file.objects:
        place = f"{stored.path}:{line}"
        try:
            x1, y1, x2, y2 = (_voc_number(values, name) for name in CORNERS)
            kind = values["name"]
        except KeyError as problem:
            stored.count_one()
            stored.faults.append(f"{place}: this object has no {problem.args[0]}")
            continue
        except ValueError as problem:
            stored.count_one()
            stored.faults.append(f"{place}: {problem}")
            continue
        difficult = values.get("difficult", "").lower() in ("1", "true")
        if (fault := _swapped(x1, x2, "x") or _swapped(y1, y2, "y")) and all(map(math.isfinite, (x1, y1, x2, y2))):
            stored.count_one()
            stored.faults.append(f"{place}: {fault}")
            continue
        stored.add(place, (x1 - 1, y1 - 1, x2, y2), kind, difficult)


def _voc_number(values: Mapping[str, str], name: str) -> float:
    try:
        return float(values[name])
    except ValueError:
        raise ValueError(f"{name} is {values[name]!r:.40}; it takes a number") from None


def _swapped(low: float, high: float, axis: str) -> str:
    """In VOC's own numbers: a box from 8 to 7 has no pixel, one from 8 to 8 has one."""
    if high < low:
        return f"swapped corners: {axis}min is {low:g}, {axis}max {high:g}"
    return ""


def _voc_size(picture: Mapping[str, str]) -> tuple[int, int] | None:
    """height, width; None when the file does not say it (some tools write 0)."""
    sides = []
    for name in ("height", "width"):
        text = picture.get(name, "") or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"{name} is {text!r:.40}; it takes a whole number")
        sides.append(int(text))
    return (sides[0], sides[1]) if all(sides) else None


# ---------------------------------------------------------------------------------------------- our own files


def read_objects(stored: StoredBoxes) -> None:
    """{"width", "height", "objects": [{"class": name, "box": [x1, y1, x2, y2], "distance_m": metres or null, "ignore":
    true or false}]}, as `inference.py` and teach.py write it; other entries are not used."""
    text = read_text(stored.path, MOST_BYTES)
    try:
        content = read_json(text)
        size = tuple(content[side] for side in ("height", "width"))
        objects = content["objects"]
        if not all(type(side) is int and side >= 0 for side in size) or not isinstance(objects, tuple):
            raise ValueError("width, height or objects is something else")
    except (KeyError, ValueError) as problem:
        what = f"{problem} is missing" if isinstance(problem, KeyError) else problem
        raise ValueError(f"{stored.path}: not a file of objects as inference.py writes it ({what})") from None
    stored.size = size if all(size) else None  # 0: of no picture
    for number, item in enumerate(objects, 1):
        place = f"{stored.path}: object {number}"
        item = item if isinstance(item, dict) else {}
        corners, kind, distance_m = item.get("box"), item.get("class"), item.get("distance_m")
        numbers = (*corners, 0 if distance_m is None else distance_m) if isinstance(corners, tuple) else ()
        if len(numbers) != 5 or not isinstance(kind, str) or not all(type(value) in (int, float) for value in numbers):
            stored.count_one()
            stored.faults.append(f"{place}: it takes class (a name), box (four numbers), distance_m (a number or null)")
            continue
        if distance_m is not None and abs(distance_m) >= FARTHEST:
            stored.count_one()
            stored.faults.append(f"{place}: distance_m is {distance_m!r:.40}; it takes metres within +-{FARTHEST:g}")
            continue
        if not isinstance(ignore := item.get("ignore", False), bool):
            stored.count_one()
            stored.faults.append(f"{place}: ignore is {ignore!r:.40}; it takes true or false")
            continue
        stored.add(place, corners, kind, ignore, math.nan if distance_m is None else float(distance_m))


# ---------------------------------------------------------------------------------------------- masks


def read_instances(stored: StoredBoxes, kind_of: Callable[[int], int | str | None], ignore: int) -> None:
    """A mask with the number of a thing in each of its pixels, 0 where there is none -> a box around each thing.

    kind_of(number) is its class, None for none; pixels of the number `ignore` are no thing.
    """
    mask = read_mask(stored.path)
    stored.size = mask.shape
    for number, corners in mask_boxes(mask).items():
        if number == ignore:
            continue
        stored.add(f"{stored.path}: number {number}", corners, kind_of(number))


def read_mask(path: Path) -> np.ndarray:
    """A file with a number for each pixel -> (H, W) integers from 0 on. Raises FileNotFoundError or ValueError."""
    mask = read_label(path)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"{path}: a mask has one integer a pixel; this file has shape {mask.shape}, {mask.dtype}")
    if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) < MOST_ID:
        raise ValueError(f"{path}: numbers {mask.min()} to {mask.max()}; allowed: 0..{MOST_ID - 1}")
    return mask


def mask_boxes(mask: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """mask (H, W) of numbers -> {number: x1, y1, x2, y2} of all that are not 0. x2, y2: the last pixel + 1."""
    height, width = mask.shape
    begins = np.ones((height, width), bool)
    begins[:, 1:] = mask[:, 1:] != mask[:, :-1]
    first = np.flatnonzero(begins)  # of each run of equal pixels in a row: far fewer than pixels
    last = np.append(first[1:], height * width) - 1
    numbers = mask.ravel()[first]
    of_things = numbers > 0
    first, last, numbers = first[of_things], last[of_things], numbers[of_things]
    ids, which = np.unique(numbers, return_inverse=True)
    low, high = np.full((2, len(ids)), max(height, width)), np.full((2, len(ids)), -1)
    for axis, (begin, end) in enumerate(((first % width, last % width), (first // width, last // width))):
        np.minimum.at(low[axis], which, begin)
        np.maximum.at(high[axis], which, end)
    corners = np.concatenate([low, high + 1]).T.tolist()
    return {number: tuple(box) for number, box in zip(ids.tolist(), corners, strict=True)}
