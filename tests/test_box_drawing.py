"""Boxes on pictures, and the numbers about them in the report of `prepare.py check`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks import box_drawing
from tasks.box_drawing import box_text, draw_boxes
from tasks.box_survey import box_coverage, box_survey_lines, survey_boxes, suspicious_boxes
from tasks.stored_boxes import StoredBoxes

RED, BLUE = (220, 0, 0), (0, 0, 220)


def test_a_box_is_drawn_on_the_pixels_that_it_covers() -> None:
    picture = np.full((100, 200, 3), 90, np.uint8)
    drawn = draw_boxes(picture, np.float32([[20, 30, 60, 70]]), [""], [RED])
    rows, columns = np.nonzero((drawn == RED).all(2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (20, 30, 60, 70)
    assert (picture == 90).all(), "the picture that was given stays as it is"
    assert (drawn[31:69, 21:59] == 90).all() and (drawn[:30] == 90).all()


@pytest.mark.parametrize("size", [(9, 9), (30, 40), (60, 25), (480, 640), (3000, 4000)])
@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (0.97, 0.97, 1, 1), (0.5, 0, 0.6, 0.1), (-1, -1, 2, 2), (0.2, 0.9, 0.3, 1)]
)
def test_text_stays_inside_the_picture(
    size: tuple[int, int], box: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole where there is room for 7 pixels a letter, and as large as a letter of a legend or larger."""
    plates = []
    real = box_drawing.ImageDraw.ImageDraw.rectangle

    def rectangle(self: object, corners: tuple[int, ...], **options: object) -> None:
        if "fill" in options:
            plates.append(corners)
        real(self, corners, **options)

    monkeypatch.setattr(box_drawing.ImageDraw.ImageDraw, "rectangle", rectangle)
    height, width = size
    corners = np.float32([box]) * [width, height, width, height]
    drawn = draw_boxes(np.zeros((*size, 3), np.uint8), corners, ["person 2.3 m 87%"], [BLUE])
    assert drawn.shape == (*size, 3)
    for left, top, right, bottom in plates:
        assert left >= 0 and top >= 0 and right < width and bottom < height
        letters = (drawn[top : bottom + 1, left : right + 1] > 200).all(2)
        assert letters.any() and not letters[:, -1].any(), "letters end before their plate does"
        assert bottom - top + 1 >= 1.2 * max(7, min(height, width) / 24) or width < 200
    assert len(plates) == (min(size) > 9)


def test_boxes_without_numbers_and_no_boxes() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(draw_boxes(picture, np.zeros((0, 4)), [], []), picture)
    assert np.array_equal(draw_boxes(picture, np.full((1, 4), np.nan), ["nobody says"], [RED]), picture)
    with pytest.raises(ValueError, match="zip"):
        draw_boxes(picture, np.zeros((2, 4)), ["one"], [RED])


def test_letters_are_dark_on_light_colors() -> None:
    for color, dark in (((250, 250, 90), True), ((0, 0, 160), False)):
        drawn = draw_boxes(np.full((100, 100, 3), 128, np.uint8), np.float32([[10, 40, 90, 90]]), ["HHHH"], [color])
        assert (drawn.sum(2) < 60).any() == dark and (drawn.min(2) > 230).any() != dark


def test_text_of_a_box() -> None:
    assert box_text("traffic_light") == "traffic light"
    assert box_text("person", 2.345, 0.871) == "person 2.3 m 87%"
    assert box_text("car", float("nan"), 0.5) == "car 50%" and box_text("car", 123.4) == "car 123 m"
    assert box_text("car", None, float("nan")) == "car"


# ---------------------------------------------------------------------------------------------- numbers

LABEL = np.float32([
    [0, 0, 8, 8, 1, 0, np.nan], [0, 0, 32, 32, 1, 0, np.nan], [0, 0, 31, 33, 0, 0, np.nan],
    [0, 0, 90, 90, 2, 1, np.nan],
])  # fmt: skip


def test_surveys_add_up() -> None:
    nothing = survey_boxes(np.zeros((0, 7), np.float32), 3)
    total = survey_boxes(LABEL, 3) + nothing
    assert total[:8].tolist() == [4, 4, 2, 1, 1, 1, 2, 0]
    assert total[8:].tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0], "8 and 32 begin a row of their own"
    assert box_coverage(total) == "4 boxes, 1 of them to ignore, 1 frames without one"
    assert box_coverage(nothing) == "0 boxes, 1 frames without one"
    lines = box_survey_lines({"train": total, "val": nothing}, ("cat", "dog", "owl"))
    assert any(line.split()[:4] == ["1", "dog", "66.67", "-"] for line in lines)
    assert "  none at all: 2 owl" in lines and "  train: 4 boxes in 2 frames, 2.0 each" in lines
    assert any(line.split()[:4] == ["8", "to", "16", "33.33"] for line in lines)
    assert "  val: 0 boxes in 1 frames, 0.0 each" in lines
    assert box_survey_lines({"train": nothing}, ("cat", "dog", "owl")) == ["  train: 0 boxes in 1 frames, 0.0 each"]


def test_what_looks_wrong() -> None:
    path = Path("a.txt")
    stored = StoredBoxes(path, ("cat", "dog"), size=(50, 100))
    for line, corners in enumerate([(0, 0, 8, 8), (0, 0, 8, 8), (1, 1, 1.5, 9), (-3, 0, 9, 9), (60, 0, 101, 50)], 1):
        stored.add(f"{path}:{line}", corners, 1)
    stored.add(f"{path}:6", (0, 0, 8, 8), 0)  # another class in the same place
    kind, what = suspicious_boxes(stored, stored.label((50, 100), "boxes"))
    assert kind == "unlikely boxes" and what.split("; ") == [
        "line 4: the box ends 3% of the picture outside of it", "line 2: the same box as line 1",
        "line 3: a box of 0.5 x 8 pixels",
    ]  # fmt: skip
    many = StoredBoxes(path, ("cat",), size=(50, 100))
    for line in range(9):
        many.add(f"{path}:{line}", (0, 0, 8, 8), 0)
    assert suspicious_boxes(many, many.label((50, 100), "boxes"))[1].endswith("; and 3 more")
    sound = StoredBoxes(path, ("cat",), size=(50, 100))
    sound.add("a.txt:1", (0, 0, 8, 8), 0)
    assert suspicious_boxes(sound, sound.label((50, 100), "boxes")) is None
