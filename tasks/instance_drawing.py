"""Pictures of a panoptic prediction: each thing in a color of its own, with its outline and its text; stuff paler."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tasks.box_drawing import Plate, box_text, draw_texts, text_size
from tasks.classes import NO_CLASS

Color = tuple[int, int, int]

THING_SHARE, STUFF_SHARE = 0.55, 0.3  # of a color over the picture
GOLDEN = 0.618034  # neighbors in a sequence of its multiples differ most
LIGHTEST, DARKEST = 0.45, -0.35  # how much white or black a thing's color has
WIDE_LETTERS = 3  # of a thing narrower than so many letters nothing is written


def thing_colors(numbers: np.ndarray, kinds: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """(n, 3) uint8: the color of each thing's class, lighter or darker by its number."""
    base = np.array([colors[kind] for kind in kinds], np.float64).reshape(-1, 3)
    change = (DARKEST + (LIGHTEST - DARKEST) * (numbers * GOLDEN % 1))[:, None]
    return np.where(change > 0, base + (255 - base) * change, base * (1 + change)).round().astype(np.uint8)


def draw_record(
    record: np.ndarray, picture: np.ndarray, names: Sequence[str], colors: Sequence[Color], things: int
) -> np.ndarray:
    """The picture (H, W, 3) uint8 of a frame, of any size, with the record drawn over it.

    names, colors: of the classes, of which the first `things` are things.
    """
    height, width = picture.shape[:2]
    rows, columns = (
        ((np.arange(to) + 0.5) * of / to).astype(int)
        for to, of in zip((height, width), record["number"].shape, strict=True)
    )
    number, kind = record["number"][rows][:, columns], record["class"][rows][:, columns]
    items = record["things"]
    palette = np.zeros((NO_CLASS + 1, 3), np.uint8)
    palette[: len(colors)] = np.reshape(colors, (-1, 3))
    own = np.zeros((int(record["number"].max(initial=0)) + 1, 3), np.uint8)
    own[items["number"]] = thing_colors(items["number"], items["class"], colors)
    of_thing = number > 0
    painted = np.where(of_thing[..., None], own[number], palette[kind])
    share = np.where(of_thing, THING_SHARE, np.where((kind != NO_CLASS) & (kind >= things), STUFF_SHARE, 0))
    drawn = (picture * (1 - share[..., None]) + painted * share[..., None]).round().astype(np.uint8)
    edge = outlines(number, max(1, round(min(height, width) / 300)))
    drawn[edge] = own[number][edge] // 2 + 127  # light, in the thing's color
    return draw_texts(drawn, _plates(items, record["number"].shape, picture, names, own))


def outlines(number: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels of things within `width` pixels of something else."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return (number > 0) & ((cv2.dilate(number, kernel) != number) | (cv2.erode(number, kernel) != number))


def _plates(
    items: np.ndarray, size: tuple[int, int], picture: np.ndarray, names: Sequence[str], own: np.ndarray
) -> list[Plate]:
    """The texts of the things, the best one last; small things have none."""
    scale = np.array([picture.shape[1] / size[1], picture.shape[0] / size[0]])
    letters, plates = text_size(picture), []
    for item in items[::-1]:
        left, top = item["box"][:2] * scale
        if (item["box"][2] - item["box"][0]) * scale[0] >= WIDE_LETTERS * letters / 2:
            color = tuple(own[item["number"]].tolist())
            text = box_text(names[item["class"]], float(item["distance_m"]), float(item["score"]))
            plates.append((text, int(left), int(top), color))
    return plates
