"""Data sets as other projects lay them out: a YOLO folder with its data.yaml, and csv lists with label files.

Each is described as a dataset.yaml would describe it, and its frames become lines of a list file: paths relative to the
data set's folder with a tab between them, and '-' where there is no label file, so that nobody says what is there.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from user_input.text_files import read_text, read_yaml
from user_input.values import convert

MOST_LIST_BYTES = 2**27
VAL_EVERY = 5  # where val is the folder of train: every fifth frame is validated on, the others are trained on
NAMES_FILES = ("classes.txt", "obj.names", "voc.names", "coco.names")
KNOWN_FOLDERS = {"voc": "voc20", "coco": "coco80"}  # part of a folder's name -> its class list


def tab_lines(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """(list file and line, text) of each line that is not empty."""
    yield from ((f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


# ---------------------------------------------------------------------------------------------- csv


def csv_lines(text: str, path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """(list file and line, text with tabs) of each row `image,label`. A first row without a file name is a header.

    What does not lie in the data set's folder is looked for in its `images` and `labels`. Raises ValueError.
    """
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    first = True
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                if not (first and not Path(cells[0]).suffix):
                    found = [_inside(root, cell, "labels" if column else "images") for column, cell in enumerate(cells)]
                    yield f"{path}:{rows.line_num}", "\t".join(found)
                first = False
    except csv.Error as problem:
        raise ValueError(f"{path}:{rows.line_num}: not readable as csv ({problem})") from None


def _inside(root: Path, cell: str, folder: str) -> str:
    if cell in ("", "-"):
        return "-"
    elsewhere = f"{folder}/{cell}"
    return elsewhere if not (root / cell).is_file() and (root / elsewhere).is_file() else cell


def csv_values(root: Path) -> dict[str, object] | None:
    """What a dataset.yaml would say of a folder with train.csv, images/ and labels/ in YOLO's form; None: it is none.

    Raises ValueError when nothing says what its classes are called.
    """
    if not ((root / "train.csv").is_file() and all((root / name).is_dir() for name in ("images", "labels"))):
        return None
    there = {split: f"{split}.csv" for split in ("train", "val", "test") if (root / f"{split}.csv").is_file()}
    # The tutorial has two lists, and validates on test.csv.
    splits = there if "val" in there else {"val" if split == "test" else split: name for split, name in there.items()}
    boxes = {"format": "yolo", "classes": _class_names(root)}
    return {"splits": splits, "columns": ["image", "boxes"], "boxes": boxes}


def _class_names(root: Path) -> object:
    for name in NAMES_FILES:
        if (root / name).is_file():
            return [line.strip() for line in read_text(root / name, 2**20).splitlines() if line.strip()]
    for part, known in KNOWN_FOLDERS.items():
        if part in root.resolve().name.lower():
            return known
    raise ValueError(
        f"{root}: it has train.csv, images and labels, but nothing says what its classes are called; write their names "
        f"into {root / NAMES_FILES[0]}, one a line, in order"
    )


# ---------------------------------------------------------------------------------------------- YOLO


@dataclass(frozen=True)
class Layout:
    """A folder of images with YOLO's label files beside them."""

    root: Path
    where: str  # the file that describes it
    values: dict[str, object]  # what a dataset.yaml would say
    sources: dict[str, tuple[Path, ...]]  # split -> folders of images, and list files
    suffixes: Collection[str]  # of images

    def lines(self, split: str) -> Iterator[tuple[str, str]]:
        """(where it is said, line of a list file) for each frame, in order. Raises FileNotFoundError or ValueError."""
        other = {"train": "val", "val": "train"}.get(split, "")
        shared = self.sources.get(other) == self.sources[split]
        for number, (where, image) in enumerate(self.images(split)):
            if shared and (number % VAL_EVERY == VAL_EVERY - 1) != (split == "val"):
                continue
            label = label_of(image)
            yield where, f"{image}\t{label if (self.root / label).is_file() else '-'}"

    def images(self, split: str) -> Iterator[tuple[str, str]]:
        """(where it is said, path relative to the root, or absolute when outside) of each image."""
        for source in self.sources[split]:
            if source.is_dir():
                for path in sorted(source.rglob("*")):
                    if path.suffix.lower() in self.suffixes and path.is_file():
                        yield str(path), self.inside(path)
            else:
                for where, line in tab_lines(self.list_text(source, split), source):
                    # Relative to the data set, or to the list file itself.
                    choices = [self.root / line.strip(), source.parent / line.strip()]
                    yield where, self.inside(next((path for path in choices if path.is_file()), choices[0]))

    def list_text(self, source: Path, split: str) -> str:
        if not source.exists():
            raise FileNotFoundError(f"{self.where}: {split}: {source}: no such folder or list file")
        return read_text(source, MOST_LIST_BYTES)

    def inside(self, path: Path) -> str:
        normal, root = os.path.normpath(path), os.path.normpath(self.root)
        return str(Path(normal).relative_to(root)) if Path(normal).is_relative_to(root) else os.path.abspath(path)


def label_of(image: str) -> str:
    """The label file of an image: the last folder called images becomes labels; else it lies beside the image."""
    parts = list(Path(image).with_suffix(".txt").parts)
    for number in range(len(parts) - 2, -1, -1):
        if parts[number] == "images":
            parts[number] = "labels"
            break
    return str(Path(*parts))


def yolo_layout(root: Path, suffixes: Collection[str]) -> Layout | None:
    """The folder that a data.yaml in it describes; None when there is none. Raises ValueError with file and key."""
    file = root / "data.yaml"
    if not file.is_file():
        return None
    values = read_yaml(file)
    names = _names(values.get("names"), f"{file}: names")
    if values.get("nc") and convert(values["nc"], int, f"{file}: nc") != len(names):
        raise ValueError(f"{file}: nc is {values['nc']}, but names has {len(names)}")
    base = root / convert(values.get("path", ""), str, f"{file}: path")
    sources = {}
    for split in ("train", "val", "test"):
        given = values.get(split)
        entries = [given] if isinstance(given, str) else given or []
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{file}: {split} must be a folder, a list file, or a list of them")
        if found := tuple(_place(entry, base, root) for entry in entries if entry not in ("", "null", "~")):
            sources[split] = found
    if not sources:
        raise ValueError(f"{file}: train is missing: a folder of images, or a list file")
    shown = {split: os.path.relpath(found[0], root) for split, found in sources.items()}
    boxes = {"format": "yolo", "classes": names}
    values = {"splits": shown, "columns": ["image", "boxes"], "boxes": boxes}
    return Layout(root, str(file), values, sources, suffixes)


def _names(names: object, where: str) -> list[str]:
    if isinstance(names, dict):
        numbers = {convert(key, int, where): name for key, name in names.items()}
        missing = next((number for number in range(len(numbers)) if number not in numbers), None)
        if missing is not None:
            raise ValueError(f"{where} has {len(numbers)} entries, but none for class {missing}")
        names = [numbers[number] for number in range(len(numbers))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} must be a list of class names, or {{0: name, 1: name, ...}}")
    return names


def _place(entry: str, base: Path, root: Path) -> Path:
    """Where a folder or list file of data.yaml is: below its `path`, or, in many downloads, below the file itself."""
    plain = entry
    while plain.startswith(("../", "./")):
        plain = plain.partition("/")[2]
    choices = (base / entry, root / entry, root / plain)
    return next((choice for choice in choices if choice.exists()), choices[0])
