"""Numbers about boxes, and what looks wrong with them, for the report of `prepare.py check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from tasks.stored_boxes import StoredBoxes
from tasks.survey import share_table

SIDES_PX = (8, 16, 32, 64, 96, 128, 256, 512)  # limits of the table of sizes; COCO's small and large end at 32 and 96
TINY_PX = 1.0  # a side below it is a slip of the mouse; COCO has boxes of 1.2 pixels
SHOWN = 5  # doubts about one file

FRAMES, WITHOUT, IGNORED, CLASSES = 2, 3, 4, 5  # places in a survey; the boxes of each class begin at CLASSES


def survey_boxes(label: np.ndarray, classes: int) -> np.ndarray:
    """(n, 7) -> [boxes, boxes, frames, frames without a box, boxes to ignore, boxes of each class, boxes of each size]

    Classes and sizes leave out what is to be ignored.
    """
    counted = label[label[:, 5] == 0]
    sides = np.sqrt((counted[:, 2] - counted[:, 0]) * (counted[:, 3] - counted[:, 1]))
    sizes = np.bincount(np.searchsorted(SIDES_PX, sides, side="right"), minlength=len(SIDES_PX) + 1)
    kinds = np.bincount(counted[:, 4].astype(int), minlength=classes)
    head = [len(label), len(label), 1, not len(label), len(label) - len(counted)]
    return np.concatenate([head, kinds, sizes]).astype(np.int64)


def box_coverage(survey: np.ndarray) -> str:
    """A sum of surveys in words."""
    parts = [f"{survey[0]:,} boxes"]
    parts += [f"{survey[IGNORED]:,} of them to ignore"] if survey[IGNORED] else []
    parts += [f"{survey[WITHOUT]:,} frames without one"] if survey[WITHOUT] else []
    return ", ".join(parts)


def box_survey_lines(surveys: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[str]:
    """{split: sum of surveys} -> lines for the report: boxes of each class, and how large they are."""
    last, lines = CLASSES + len(classes), []
    if any(values[CLASSES:].any() for values in surveys.values()):
        names = [f"{number:3d} {name}" for number, name in enumerate(classes)]
        lines.append("boxes: per cent of each class")
        lines += share_table(names, {split: values[CLASSES:last] for split, values in surveys.items()})
        limits = ["0", *map(str, SIDES_PX)]
        sizes = [f"{low:>3} to {high}" for low, high in pairwise(limits)] + [f"{limits[-1]:>3} or more"]
        lines += ["", "boxes: per cent of each size, square root of width x height in pixels"]
        lines += share_table(sizes, {split: values[last:] for split, values in surveys.items()})
    for split, values in surveys.items():
        boxes, frames = values[0], values[FRAMES]
        lines.append(f"  {split}: {boxes:,} boxes in {frames:,} frames, {boxes / max(1, frames):.1f} each")
    return lines


def suspicious_boxes(stored: StoredBoxes, label: np.ndarray) -> tuple[str, str] | None:
    """(kind of fault, what looks wrong), given what a file holds and its label (n, 7), or None."""
    doubts, first = list(stored.doubts), {}
    for place, box in zip(map(stored.in_file, stored.places), label, strict=True):
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) < TINY_PX:
            doubts.append(f"{place}: a box of {width:.2g} x {height:.2g} pixels")
        other = first.setdefault(tuple(box[:5].round(2).tolist()), place)
        if other != place:
            doubts.append(f"{place}: the same box as {other}")
    if not doubts:
        return None
    more = f"; and {len(doubts) - SHOWN} more" if len(doubts) > SHOWN else ""
    return "unlikely boxes", "; ".join(doubts[:SHOWN]) + more
