"""Objects: what a prediction of boxes gives for one frame, as an array and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils import whole_file

OBJECT = np.dtype([
    ("box", "f4", 4), ("score", "f4"), ("class", "i4"), ("distance_m", "f4"), ("xyz_m", "f4", 3),
])  # fmt: skip


def fill_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) x1, y1, x2, y2 in pixels -> (H, W) uint16: for each pixel, from 1 on, the smallest of the boxes that
    cover its middle, 0 = none."""
    found = np.zeros(size, np.uint16)
    corners = np.ceil(np.clip(boxes, 0, [*size[::-1]] * 2) - 0.5).astype(int)
    for k in np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable"):
        left, top, right, bottom = corners[k]
        found[top:bottom, left:right] = k + 1
    return found


def write_objects(path: Path, objects: np.ndarray, classes: Sequence[str], image: str, size: tuple[int, int]) -> None:
    """Writes {"image", "width", "height", "objects": [{"class", "score", "box", "distance_m", "xyz_m"}]}; null: not
    known. Of labels of a teacher, which have a field `ignore`, also "ignore": true for what is ignored."""
    unsure = objects["ignore"] if "ignore" in objects.dtype.names else np.zeros(len(objects), bool)
    listed = [
        described(item, classes) | ({"ignore": True} if ignore else {})
        for item, ignore in zip(objects, unsure, strict=True)
    ]
    content = {"image": image, "width": size[1], "height": size[0], "objects": listed}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def described(item: np.void, classes: Sequence[str]) -> dict[str, object]:
    """An object as files have it."""
    return {
        "class": classes[item["class"]], "score": rounded(item["score"], 4),
        "box": [rounded(value, 2) for value in item["box"]], "distance_m": rounded(item["distance_m"], 3),
        "xyz_m": None if np.isnan(item["xyz_m"]).any() else [rounded(value, 3) for value in item["xyz_m"]],
    }  # fmt: skip


def rounded(value: np.floating, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None
