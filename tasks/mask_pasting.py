"""Masks of boxes -> pixels of the frame, and what of them overlaps a label.

As torchvision's `paste_masks_in_image`: a box has 28 x 28 cells, one more at each side is empty, what lies between is
bilinear, and above 0.5 it is the thing.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from networks.rcnn_recipes import MASK_SIDE

LEAST = 0.5
LEAST_LEFT = 0.5  # of a mask, beside better ones
# Columns of a detection: x1, y1, x2, y2 in pixels, score, class, distance, height and width of the frame, then cells.
HEIGHT, WIDTH, CELLS = 7, 8, 9


def paste(row: np.ndarray) -> tuple[int, int, np.ndarray]:
    """A detection (CELLS + 28 * 28,) -> left, top, and which pixels of the frame from there on it has (h, w) bool."""
    height, width = int(row[HEIGHT]), int(row[WIDTH])
    cells = np.pad(row[CELLS:].reshape(MASK_SIDE, MASK_SIDE).astype(np.float32), 1)
    middle, half = (row[2:4] + row[:2]) / 2, (row[2:4] - row[:2]) / 2 * ((MASK_SIDE + 2) / MASK_SIDE)
    x1, y1, x2, y2 = (int(value) for value in np.concatenate([middle - half, middle + half]))
    sides = max(1, x2 - x1 + 1), max(1, y2 - y1 + 1)
    whole = cv2.resize(cells, sides, interpolation=cv2.INTER_LINEAR) > LEAST
    left, top = max(0, x1), max(0, y1)
    return left, top, whole[top - y1 : max(0, height - y1), left - x1 : max(0, width - x1)]


def pasted(rows: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Detections (D, CELLS + 28 * 28) -> for each the part of the frame that holds it, and its pixels there."""
    for row in rows:
        left, top, mask = paste(row)
        yield (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])), mask


def as_maps(rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Detections, best first -> a panoptic prediction (4, H, W) as tasks/instance_grouping.py has it: number, class,
    score, distance. Of two that share pixels the better one has them, and one of which less than a half is left is
    taken for the same thing again (Kirillov et al., arXiv 1801.00868, section 5)."""
    maps = np.zeros((4, *size), np.float32)
    maps[1] = -1
    for number, (part, mask) in enumerate(pasted(rows), 1):
        own, row = maps[(slice(None), *part)], rows[number - 1]
        free = mask & (own[0] == 0)
        if free.sum() >= LEAST_LEFT * mask.sum():
            own[:, free] = np.nan_to_num([number, row[5], row[4], row[6]])[:, None]
    return maps


def shared_pixels(rows: np.ndarray, which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Detections (D, ...) and a label (H, W) of numbers below `count` -> how many pixels of each number each detection
    has (D, count), and how many in all (D,)."""
    shared = np.zeros((len(rows), count), np.int64)
    for number, (part, mask) in enumerate(pasted(rows)):
        shared[number] = np.bincount(which[part][mask], minlength=count)
    return shared, shared.sum(1)
