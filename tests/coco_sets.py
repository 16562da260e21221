"""COCO json files with outlines, data sets of them, and what is read of them as instances."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

from config import Config
from dataset import Frames
from folders import make_tasks, read_folder, read_list
from images import write_png
from tasks.rle import encode_mask

SECTION = {"format": "coco", "classes": ["cat", "dog"]}
CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 17, "name": "cat"}]
CAT, DOG = 17, 90


def annotation(segmentation: object, category: int = CAT, image: int = 1, **other: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": [1, 1, 3, 2], "segmentation": segmentation} | other


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    """The polygon whose pixels are x1 to x2, y1 to y2."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def polygons_of(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask with a margin of half a pixel."""
    large = cv2.resize(mask.astype(np.uint8), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [((item[:, 0] + 0.5) / 4).ravel().tolist() for item in contours if len(item) > 2]


def counted(mask: np.ndarray) -> dict[str, object]:
    """Run lengths as a list of numbers."""
    flat = mask.T.ravel().astype(int)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[-1], flat, [-1]])))).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def texted(mask: np.ndarray) -> dict[str, object]:
    return encode_mask(mask)


def write_coco(
    root: Path,
    size: tuple[int, int],
    *annotations: dict[str, object],
    stems: tuple[str, ...] = ("a",),
    column: str = "instances",
    section: dict[str, object] = SECTION,
    text: str | bytes | None = None,
    **other: object,
) -> Path:
    """A data set whose frames all have the label file all.json; images are 1, 2, ...; `other` of dataset.yaml."""
    for stem in stems:
        write_png(root / f"rgb/{stem}.png", np.full((*size, 3), 128, np.uint8))
    images = [
        {"id": number, "file_name": f"{stem}.png", "height": size[0], "width": size[1]}
        for number, stem in enumerate(stems, 1)
    ]
    content = {"images": images, "annotations": list(annotations), "categories": CATEGORIES}
    text = json.dumps(content) if text is None else text
    (root / "all.json").write_bytes(text.encode() if isinstance(text, str) else text)
    (root / "train.txt").write_text("".join(f"rgb/{stem}.png\tall.json\n" for stem in stems))
    described = {"splits": {"train": "train.txt"}, "columns": ["image", column], column: section}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described | other))
    return root


def write_set(root: Path, label: np.ndarray, section: dict[str, object], name: str, **other: object) -> Path:
    """A data set of one frame, whose label file is `name`; `other` of dataset.yaml."""
    write_png(root / "rgb/a.png", np.full((*label.shape[:2], 3), 128, np.uint8))
    write_png(root / name, label)
    (root / "train.txt").write_text(f"rgb/a.png\t{name}\n")
    described = {"splits": {"train": "train.txt"}, "columns": ["image", "instances"], "instances": section}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described | other))
    return root


def frames_of(root: Path, *tasks: str, train: bool = False, **settings: object) -> Frames:
    folder, config = read_folder(root), Config(tasks=tasks, **settings)
    return Frames(folder, read_list(folder, "train"), make_tasks(folder, config), config, train)


def labels_of(root: Path, task: str = "instances") -> list[np.ndarray]:
    """The label of each frame as training and evaluation read it."""
    frames = frames_of(root, task)
    return [frames.read(index)[task] for index in range(len(frames))]
