"""A frame's instances as one array, and as files: what a panoptic prediction gives to a program and to a user."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from images import write_png
from tasks.box_formats import mask_boxes
from tasks.box_objects import OBJECT, described
from tasks.classes import NO_CLASS
from tasks.instance_files import PART, mask_to_save
from tasks.instance_grouping import CLASS, DISTANCE, NUMBER, SCORE
from tasks.rle import encode_mask
from utils import whole_file

# `middle`: x, y of the center of mass in pixels, the center of the first pixel is 0, 0; `pixels`: how many it has.
THING = np.dtype([*OBJECT.descr, ("number", "u2"), ("middle", "f4", 2), ("pixels", "i8")])


def record_type(height: int, width: int, things: int) -> np.dtype:
    """Of a frame: `number` (H, W) of the thing, 0 = none; `class` (H, W), 255 = none; `things` (n,)."""
    return np.dtype([("number", "u2", (height, width)), ("class", "u1", (height, width)), ("things", THING, (things,))])


def record_of(maps: np.ndarray, least: float) -> np.ndarray:
    """A panoptic prediction (4, H, W) of one frame -> its record (), the things best first; those with a lower score
    than `least` are left out."""
    number = np.where(maps[SCORE] >= least, maps[NUMBER], 0).astype(np.uint16)
    lost = (maps[NUMBER] > 0) & (number == 0)
    kind = np.where((maps[CLASS] < 0) | lost, NO_CLASS, maps[CLASS]).astype(np.uint8)
    return _record(number, kind, maps[SCORE], maps[DISTANCE])


def record_of_label(codes: np.ndarray) -> np.ndarray:
    """A label, codes (H, W), as a record; scores and distances are NaN."""
    number = np.where(codes > 0, codes % PART, 0).astype(np.uint16)
    kind = np.where(codes > 0, codes // PART - 1, NO_CLASS).astype(np.uint8)
    nothing = np.full(codes.shape, np.nan, np.float32)
    return _record(number, kind, nothing, nothing)


def _record(number: np.ndarray, kind: np.ndarray, score: np.ndarray, distance: np.ndarray) -> np.ndarray:
    boxes = mask_boxes(number)
    record = np.zeros((), record_type(*number.shape, len(boxes)))
    record["number"], record["class"] = number, kind
    if not boxes:
        return record
    things, ids = record["things"], np.array(list(boxes))
    flat = number.ravel()
    counts = np.bincount(flat, minlength=ids[-1] + 1)[ids]
    first = np.zeros(ids[-1] + 1, np.int64)
    first[flat[::-1]] = np.arange(flat.size)[::-1]  # a pixel of each
    first = first[ids]
    things["number"], things["box"], things["pixels"] = ids, np.array(list(boxes.values())), counts
    things["score"], things["class"] = score.ravel()[first], kind.ravel()[first]
    known = distance.ravel()[first]
    things["distance_m"], things["xyz_m"] = np.where(known > 0, known, np.nan), np.nan
    height, width = number.shape
    places = np.broadcast_to(np.arange(width), number.shape), np.broadcast_to(np.arange(height)[:, None], number.shape)
    things["middle"] = np.stack(
        [np.bincount(flat, place.ravel(), minlength=ids[-1] + 1)[ids] / counts for place in places], axis=1
    )
    order = np.argsort(-np.nan_to_num(things["score"]), kind="stable")
    record["things"] = things[order]
    return record


def placed(record: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
    """The record with `xyz_m` of its things: x right, y down, z forward: their centers of mass at their distances."""
    found = record.copy()
    x, y = record["things"]["middle"].T
    rays = np.stack([(x - camera["cx"]) / camera["fx"], (y - camera["cy"]) / camera["fy"], np.ones(len(x))], axis=1)
    found["things"]["xyz_m"] = rays * record["things"]["distance_m"][:, None]
    return found


def numbered(record: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A record -> the place of each pixel's thing in `things`, from 1 on, 0 = none (H, W) uint16; and `things`."""
    things = record["things"]
    place = np.zeros(int(record["number"].max(initial=0)) + 1, np.uint16)
    place[things["number"]] = np.arange(1, len(things) + 1)
    return place[record["number"]], things


def write_mask(record: np.ndarray, path: Path) -> None:
    """A 16-bit PNG, 256 * (class + 1) + number of each thing, 0 elsewhere."""
    write_png(path, mask_to_save(record["number"], record["class"]))


def write_things(path: Path, record: np.ndarray, classes: Sequence[str], image: str) -> None:
    """The things as a list of objects (tasks/box_objects.py), each also with its number in the mask, its mask as COCO
    has it, and its share of the frame's pixels."""
    height, width = record["number"].shape
    listed = [
        {
            **described(thing, classes), "number": int(thing["number"]),
            "share": round(float(thing["pixels"] / record["number"].size), 5),
            "mask": encode_mask(record["number"] == thing["number"]),
        }
        for thing in record["things"]
    ]  # fmt: skip
    content = {"image": image, "width": width, "height": height, "objects": listed}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
