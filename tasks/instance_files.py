"""Labels of instances: what they are, and masks with a number for each thing.

A label is (H, W) int32 *codes*: VOID = nobody says, 0 = no thing, else (class + 1) * PART + number, where numbers from
1 on count the things of the frame. Stuff, which has no numbers, has codes in panoptic targets alone, with number 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tasks.box_files import class_of_number
from tasks.box_formats import MOST_ID, read_mask
from tasks.stored_boxes import MOST_BOXES, StoredBoxes, class_index
from user_input.values import ManyErrors

VOID = -1
PART = 2**16  # of a code: what is above it is the class + 1
DIVISOR = 256  # of the files that are written: DIVISOR * (class + 1) + number


def read_codes(path: Path, section: Mapping[str, object]) -> np.ndarray:
    """A mask with a number for each thing -> codes (H, W) int32 by the classes `section["things"]`.

    Raises FileNotFoundError, or ValueError: ManyErrors with a line for each number of no class.
    """
    mask = read_mask(path)
    numbers = numbers_in(mask)
    things, stored = section["things"], StoredBoxes(path, section["classes"], section["other_classes"])
    codes = np.zeros(len(numbers), np.int32)
    found = 0
    for place, number in enumerate(numbers.tolist()):
        if number == section["ignore"]:
            codes[place] = VOID
            continue
        if number == 0:
            continue
        stored.count_one()
        kind = class_of_number(number, section)
        index = class_index(kind, section["classes"]) if isinstance(kind, str) else kind
        if index is None:
            if section["other_classes"] == "error":
                stored.faults.append(f"{path}: number {number}: {stored.unknown(kind)}")
            continue
        name = section["classes"][index]
        if name in things:
            found += 1
            codes[place] = (things.index(name) + 1) * PART + found
    if stored.faults:
        raise ManyErrors(*stored.faults)
    assert found <= MOST_BOXES < PART, "count_one limits the things of a frame"
    table = np.zeros(int(numbers[-1]) + 1, np.int32) if len(numbers) else np.zeros(1, np.int32)
    table[numbers] = codes
    return table[mask]


def numbers_in(mask: np.ndarray) -> np.ndarray:
    """The different numbers of a mask, in order; without sorting its pixels."""
    if not mask.size:
        return np.zeros(0, np.int64)
    seen = np.zeros(int(mask.max()) + 1, bool)
    assert len(seen) <= MOST_ID, "read_mask limits the numbers"
    seen[mask] = True
    return np.flatnonzero(seen)


def mask_to_save(numbers: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Numbers of things (H, W), 0 = none, and their classes -> a 16-bit mask as the task's `section` describes it."""
    things = numbers > 0
    return np.where(things, (classes.astype(np.uint16) + 1) * DIVISOR + numbers, 0).astype(np.uint16)
