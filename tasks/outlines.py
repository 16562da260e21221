"""Outlines of things as COCO has them -> runs of pixels: polygons, and run lengths as numbers or text.

Runs are (n, 2) int64: the first pixel, and the one after the last, counted down the columns of a picture; in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tasks.rle import read_counts

Size = tuple[int, int]  # height, width

FINE = 5  # steps of a side of a pixel: polygons are drawn as pycocotools does
MOST_STEPS = 2**21  # of a polygon's length: 400,000 pixels
MOST_RUNS = 2**23  # of all things of a picture
SHOWN = 40


def runs_of(segmentation: object, size: Size) -> np.ndarray:
    """A `segmentation` of COCO's json in a picture of this size. Raises ValueError that says what is wrong."""
    if isinstance(segmentation, dict):
        return _runs_of_counts(segmentation, size)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation is {segmentation!r:.{SHOWN}}; it takes polygons or run lengths")
    parts, count = [], 0
    for number, polygon in enumerate(segmentation):
        parts.append(polygon_runs(_corners(polygon, number, size), size))
        count += len(parts[-1])
        if count > MOST_RUNS:
            raise ValueError(f"segmentation: more than {MOST_RUNS:,} runs of pixels, the most that are read")
    return united(parts)


def _runs_of_counts(entry: dict[str, object], size: Size) -> np.ndarray:
    own = entry.get("size")
    if not isinstance(own, list) or len(own) != 2 or not all(type(side) is int for side in own):
        raise ValueError(f"segmentation: size is {own!r:.{SHOWN}}; it takes [height, width]")
    if tuple(own) != size:
        raise ValueError(f"segmentation: a mask of {own[1]}x{own[0]}, its picture is {size[1]}x{size[0]}")
    try:
        edges = np.cumsum(read_counts(entry.get("counts"), size[0] * size[1]))
    except ValueError as problem:
        raise ValueError(f"segmentation: {problem}") from None
    runs = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    return united([runs[runs[:, 0] < runs[:, 1]]])


def _corners(polygon: object, number: int, size: Size) -> np.ndarray:
    """x and y of a polygon (n, 2), checked."""
    where = f"segmentation: polygon {number}"
    if not isinstance(polygon, list):
        raise ValueError(f"{where} is {polygon!r:.{SHOWN}}; it takes a list of x and y")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"{where} has {len(polygon):,} numbers; it takes x and y of at least 3 corners")
    height, width = size
    for place, value in enumerate(polygon):
        if type(value) not in (int, float) or not -math.inf < value < math.inf:
            raise ValueError(f"{where}: {'xy'[place % 2]} is {value!r:.{SHOWN}}; it takes a finite number")
        side = height if place % 2 else width
        if not -side <= value <= 2 * side:  # also what would take very long to draw
            far = f"farther than a side outside of the picture of {width}x{height}"
            raise ValueError(f"{where}: {'xy'[place % 2]} is {value!r:.{SHOWN}}, {far}")
    return np.array(polygon, np.float64).reshape(-1, 2)


def polygon_runs(corners: np.ndarray, size: Size) -> np.ndarray:
    """corners (n, 2) x, y -> runs of the pixels that pycocotools finds inside (its rleFrPoly, step for step).

    Each side is drawn on a grid that is five times as fine; where the line goes to the next column in the middle of a
    column of pixels, the pixels below change between outside and inside.
    """
    height, width = size
    start = np.trunc(FINE * corners + 0.5).astype(np.int64)
    end = np.roll(start, -1, axis=0)
    span = np.abs(end - start)
    long = np.where(span[:, 0] >= span[:, 1], 0, 1)  # the axis along which a side takes its steps
    steps = span.max(1)
    if (total := int(steps.sum()) + len(steps)) > MOST_STEPS:
        most = MOST_STEPS // FINE
        raise ValueError(f"segmentation: an outline of {total // FINE:,} pixels; at most {most:,} are read")
    side = np.arange(len(corners))
    turned = start[side, long] > end[side, long]
    low, high = np.where(turned[:, None], end, start), np.where(turned[:, None], start, end)
    slope = (high - low)[side, 1 - long] / np.maximum(steps, 1)
    which = np.repeat(side, steps + 1)
    step = np.arange(total) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    step = np.where(turned[which], steps[which] - step, step)
    along = step + low[side, long][which]
    across = np.trunc(low[side, 1 - long][which] + slope[which] * step + 0.5).astype(np.int64)
    x, y = np.where(long[which] == 0, (along, across), (across, along))

    before, after = x[:-1], x[1:]
    column = np.where(after < before, after, after - 1)
    middle = (before != after) & (column % FINE == FINE // 2) & (column >= 0) & (column < FINE * width)
    column = column[middle] // FINE
    row = -((FINE // 2 - np.minimum(y[:-1], y[1:])[middle]) // FINE)  # rounded up
    edges = np.sort(column * height + row.clip(0, height))
    if len(edges) % 2:
        edges = np.append(edges, height * width)
    runs = edges.reshape(-1, 2)
    return runs[runs[:, 0] < runs[:, 1]]


def box_runs(corners: Sequence[float], size: Size) -> np.ndarray:
    """The pixels that a box x1, y1, x2, y2 touches."""
    height, width = size
    left, top = (max(0, math.floor(value)) for value in corners[:2])
    right, bottom = (min(side, math.ceil(value)) for side, value in zip((width, height), corners[2:], strict=True))
    if left >= right or top >= bottom:
        return np.zeros((0, 2), np.int64)
    return np.arange(left, right)[:, None] * height + np.array([top, bottom])


def united(several: Sequence[np.ndarray]) -> np.ndarray:
    """The pixels of all of them; runs that touch become one."""
    if not several:
        return np.zeros((0, 2), np.int64)
    runs = np.concatenate(several)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 1])
    first = np.append(True, runs[1:, 0] > ends[:-1])[: len(runs)]
    return np.column_stack([runs[first, 0], ends[np.append(first[1:], True)[: len(runs)]]])


def paint(picture: np.ndarray, runs: np.ndarray, value: int, only: int | None = None) -> None:
    """Sets these pixels of a picture, flat, column by column; those of the value `only` where it is given."""
    if not len(runs):
        return
    first, last = int(runs[0, 0]), int(runs[-1, 1])
    change = np.zeros(last - first + 1, np.int8)
    change[runs[:, 0] - first] += 1
    change[runs[:, 1] - first] -= 1
    inside = np.cumsum(change[:-1], dtype=np.int8).view(bool)
    part = picture[first:last]
    part[inside if only is None else inside & (part == only)] = value
