"""Pictures for people: charts for TensorBoard, palettes, letterboxing, and panels side by side with legends."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Panel = tuple[str, np.ndarray, list[tuple[str, tuple[int, int, int]]]]  # title, (H, W, 3) uint8, legend

LINE = 18  # pixels: height of a line of text, of the text itself, and length of a bar for 1
TEXT = 12
BAR = 240
BLUE, GREY = (64, 112, 176), (236, 236, 236)
PLOT = (360, 270)  # pixels: width and height of the area that curves are drawn in
CURVES = (BLUE, (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0), (140, 140, 140))


# ---------------------------------------------------------------------------------------------- charts
# With Pillow: matplotlib takes seconds for the numbers of a confusion matrix, at each evaluation of a training.


def _width(font: ImageFont.FreeTypeFont, names: Sequence[str]) -> int:
    return round(max(font.getlength(name) for name in names)) + 12


def bars(names: Sequence[str], values: Sequence[float]) -> np.ndarray:
    """Bar chart: a bar for each name, values in 0..1, NaN = none -> (H, W, 3) uint8."""
    font = ImageFont.load_default(TEXT)
    left = _width(font, names)
    sheet = Image.new("RGB", (left + BAR + 60, LINE * len(names) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        top = 3 + LINE * number
        draw.text((6, top + 1), name, fill="black", font=font)
        draw.rectangle((left, top + 2, left + BAR, top + LINE - 3), fill=GREY)
        if not np.isnan(value):
            draw.rectangle((left, top + 2, left + round(BAR * value), top + LINE - 3), fill=BLUE)
            draw.text((left + BAR + 8, top + 1), f"{value:.1%}", fill="black", font=font)
    return np.array(sheet)


def confusion(names: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """Confusion matrix: counts (C, C), row = true class -> (H, W, 3) uint8.

    In per cent of each row, from white (0) to dark (100); columns are numbered like the rows.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    font = ImageFont.load_default(TEXT)
    labels = [f"{number} {name}" for number, name in enumerate(names)]
    left, cell = _width(font, labels), LINE + 8
    sheet = Image.new("RGB", (left + cell * len(names) + 6, cell * len(names) + LINE + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        top = LINE + cell * row
        draw.text((6, top + 5), label, fill="black", font=font)
        draw.text((left + cell * row + 5, 2), str(row), fill="black", font=font)
        for column, share in enumerate(shares[row]):
            color = tuple(round(255 + share * (to - 255)) for to in BLUE)
            x = left + cell * column
            draw.rectangle((x, top, x + cell - 2, top + cell - 2), fill=color, outline=GREY)
            if share >= 0.005:
                draw.text((x + 3, top + 5), f"{100 * share:.0f}", fill="white" if share > 0.5 else "black", font=font)
    return np.array(sheet)


def curves(lines: Mapping[str, tuple[np.ndarray, np.ndarray]], across: str, up: str) -> np.ndarray:
    """Line chart: {name: (x, y)} in 0..1, NaN = a gap; `across` and `up` name the axes -> (H, W, 3) uint8.

    The legend stands below. Colors repeat after eight lines.
    """
    font = ImageFont.load_default(TEXT)
    left, top, (width, height) = 36, LINE + 6, PLOT
    bottom = top + height
    legend = bottom + 2 * LINE + 10
    size = (max(left + width + 20, 40 + _width(font, [*lines, ""])), legend + LINE * len(lines) + 4)
    fine = 4  # lines are drawn four times as large, for smooth edges
    sheet = Image.new("RGB", (fine * size[0], fine * size[1]), "white")
    draw = ImageDraw.Draw(sheet)
    places = [(tick / 5, left + width * tick / 5, bottom - height * tick / 5) for tick in range(6)]
    for _, x, y in places:
        draw.line((fine * x, fine * top, fine * x, fine * bottom), GREY, fine)
        draw.line((fine * left, fine * y, fine * (left + width), fine * y), GREY, fine)
    axes = [(left, top), (left, bottom), (left + width, bottom)]
    draw.line([(fine * x, fine * y) for x, y in axes], "black", fine)
    for number, (x, y) in enumerate(lines.values()):
        color = CURVES[number % len(CURVES)]
        points = np.column_stack([left + width * np.asarray(x), bottom - height * np.asarray(y)])
        for start, end in itertools.pairwise(fine * points):
            if np.isfinite([start, end]).all():
                draw.line((*start, *end), color, 2 * fine)
        y = legend + LINE * number + LINE / 2 - 1
        draw.line((fine * 10, fine * y, fine * 30, fine * y), color, 3 * fine)
    sheet = sheet.reduce(fine)
    draw = ImageDraw.Draw(sheet)
    for value, x, y in places:
        draw.text((x, bottom + 4), f"{value:.1f}", "black", font, anchor="ma")
        draw.text((left - 6, y), f"{value:.1f}", "black", font, anchor="rm")
    draw.text((left, top - 6), up, "black", font, anchor="ls")
    draw.text((left + width, bottom + LINE + 4), across, "black", font, anchor="ra")
    for number, name in enumerate(lines):
        draw.text((38, legend + LINE * number + LINE / 2 - 1), name, "black", font, anchor="lm")
    return np.array(sheet)


# ---------------------------------------------------------------------------------------------- colors and pages


def class_palette(count: int = 256) -> np.ndarray:
    """(count, 3) uint8 colors by the bit pattern of PASCAL VOC's devkit (VOCcode/VOClabelcolormap.m)."""
    ids = np.arange(count)
    palette = np.zeros((count, 3), np.uint8)
    for shift in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> channel) & 1) << (7 - shift)).astype(np.uint8)
        ids = ids >> 3
    return palette


def palette_of(colors: Sequence[tuple[int, int, int]], other: int = 0) -> np.ndarray:
    """(256, 3) uint8: the color of each class id; `other` in all channels for ids without a color."""
    palette = np.full((256, 3), other, np.uint8)
    palette[: len(colors)] = np.reshape(colors, (-1, 3))
    return palette


def letterbox(picture: np.ndarray, height: int, width: int, fill: int = 255) -> np.ndarray:
    """picture (H, W, 3) uint8, as large as fits, in the middle of a page (height, width, 3) filled with `fill`."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    rows, columns = (
        max(1, min(room, round(scale * side))) for room, side in zip((height, width), picture.shape[:2], strict=True)
    )
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    page = np.full((height, width, 3), fill, np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    page[top : top + rows, left : left + columns] = cv2.resize(picture, (columns, rows), interpolation=interpolation)
    return page


def side_by_side(panels: Sequence[Panel], lines: int = 0) -> np.ndarray:
    """Panels of one size in a row, each with its title and legend below -> (H, W, 3) uint8.

    lines: height of the text in lines; 0 = as many as the longest legend needs.
    """
    height, width = panels[0][1].shape[:2]
    size = max(10, round(min(width / 28, height / 12)))
    captions = [caption(width, size, title, tuple(legend)) for title, _, legend in panels]
    strip = round(1.5 * size) * lines + size // 4 if lines else max(len(drawn) for drawn in captions)
    sheet = np.full((height + strip, width * len(panels), 3), 255, np.uint8)
    for column, ((_, picture, _), drawn) in enumerate(zip(panels, captions, strict=True)):
        place = slice(column * width, (column + 1) * width)
        sheet[:height, place] = picture
        sheet[height : height + len(drawn), place] = drawn[:strip]
    return sheet


@lru_cache(maxsize=8)  # the frames of a video often have the same
def caption(width: int, size: int, title: str, legend: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """The text below a panel, in letters of `size` pixels -> (as high as it needs, width, 3) uint8, read-only."""
    font = ImageFont.load_default(size)
    line, margin = round(1.5 * size), size // 2
    x, y = margin, margin // 2
    drawing = [(x, y, title, None)]  # x, y, text, color of its box or None
    x += round(font.getlength(title)) + size
    for text, color in legend:
        needed = round(font.getlength(text)) + size + margin
        if x + needed > width:
            x, y = margin, y + line
        drawing.append((x, y, text, color))
        x += needed + margin
    sheet = Image.new("RGB", (width, y + line + margin // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for left, top, text, color in drawing:
        if color is not None:
            draw.rectangle((left, top + size // 4, left + size, top + size // 4 + size), fill=color, outline="gray")
            left += size + margin
        draw.text((left, top), text, fill="black", font=font)
    drawn = np.array(sheet)
    drawn.setflags(write=False)
    return drawn
