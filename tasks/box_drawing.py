"""Boxes with text on a picture, readable at any size of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Plate = tuple[str, int, int, Color]  # text, left and top of what it names, in pixels, and its color

LEAST_TEXT, MOST_TEXT = 10, 200  # pixels
SMALLEST_TEXT = 7  # pixels: where even this is too wide, the text is cut
LEAST_LETTERS = 3  # that a cut text keeps; else there is none


def box_text(name: str, distance_m: float | None = None, score: float | None = None) -> str:
    """What stands on a box: `person 2.3 m 87%`. Without what is None or NaN."""
    parts = [name.replace("_", " ")]
    if distance_m is not None and math.isfinite(distance_m):
        parts.append(f"{distance_m:.1f} m" if distance_m < 100 else f"{distance_m:.0f} m")
    if score is not None and math.isfinite(score):
        parts.append(f"{score:.0%}")
    return " ".join(parts)


def draw_boxes(picture: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colors: Sequence[Color]) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 with boxes (n, 4) x1, y1, x2, y2 in its pixels, in order; the last lies on
    top. Boxes with NaN are left out, others are cut at the border. Lines and letters grow with the picture.
    """
    height, width = picture.shape[:2]
    page = Image.fromarray(np.ascontiguousarray(picture))
    draw = ImageDraw.Draw(page)
    line = max(1, round(min(height, width) / 200))
    size = text_size(picture)
    plates: list[Plate] = []
    for box, text, color in zip(np.reshape(boxes, (-1, 4)), texts, colors, strict=True):
        if not np.isfinite(box).all():
            continue
        # The pixels that a box covers: the last one ends where the box ends.
        left, right = (int(value) for value in np.clip([np.floor(box[0]), np.ceil(box[2]) - 1], 0, width - 1))
        top, bottom = (int(value) for value in np.clip([np.floor(box[1]), np.ceil(box[3]) - 1], 0, height - 1))
        right, bottom = max(left, right), max(top, bottom)
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        plates.append((text, left, top, color))
    for text, left, top, color in plates:  # over all lines
        _write(draw, text, left, top, page.size, size, color)
    return np.array(page)


def draw_texts(picture: np.ndarray, plates: Sequence[Plate]) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 with texts on plates; the last lies on top."""
    page = Image.fromarray(np.ascontiguousarray(picture))
    draw = ImageDraw.Draw(page)
    for text, left, top, color in plates:
        _write(draw, text, left, top, page.size, text_size(picture), color)
    return np.array(page)


def text_size(picture: np.ndarray) -> int:
    """The height of letters in pixels on a picture (H, W, 3)."""
    return min(MOST_TEXT, max(LEAST_TEXT, round(min(picture.shape[:2]) / 24)))


def _write(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, page: tuple[int, int], size: int, color: Color
) -> None:
    """The text on a plate in the box's color: above the box's corner, or below it where there is no room above."""
    width, height = page
    text, size = _fitted(text, size, width, height)
    if not text:
        return
    font = _font(size)
    plate_width, plate_height = math.ceil(font.getlength(text)) + 4, math.ceil(size * 1.25)
    left = min(left, width - plate_width)
    top = top - plate_height if top >= plate_height else min(top, height - plate_height)
    draw.rectangle((left, top, left + plate_width - 1, top + plate_height - 1), fill=color)
    red, green, blue = color
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    draw.text((left + 2, top + plate_height / 2), text, fill="white" if dark else "black", font=font, anchor="lm")


def _fitted(text: str, size: int, width: int, height: int) -> tuple[str, int]:
    """The text and its size so that it fits into a page; '' where nothing does."""
    while size > SMALLEST_TEXT and (_font(size).getlength(text) + 4 > width or size * 1.25 > height):
        size -= 1
    if math.ceil(size * 1.25) > height:
        return "", size
    cut = text
    while cut and math.ceil(_font(size).getlength(cut)) + 4 > width:
        cut = cut[:-1].rstrip()
    return (cut, size) if cut == text or len(cut) >= LEAST_LETTERS else ("", size)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
