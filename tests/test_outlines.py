"""Polygons and run lengths become the pixels that pycocotools finds, and what is wrong with them is said."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from coco_sets import counted, rectangle, texted

from tasks import outlines, rle
from tasks.outlines import box_runs, paint, polygon_runs, runs_of, united


def mask_of(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    flat = np.zeros(size[0] * size[1], np.int32)
    paint(flat, runs, 1)
    return flat.reshape(size[::-1]).T.astype(bool)


def random_polygons(rng: np.random.Generator, size: tuple[int, int], digits: int | None) -> list[list[float]]:
    """They reach out of the picture, cross themselves and each other, and have a corner twice."""
    found = []
    for _ in range(int(rng.integers(1, 4))):
        corners = rng.uniform(-0.5, 1.5, (int(rng.integers(3, 12)), 2)) * size[::-1]
        corners[1] = corners[0]
        found.append((corners if digits is None else corners.round(digits)).ravel().tolist())
    return found


@pytest.mark.parametrize("digits", [None, 2, 1, 0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (37, 53), (64, 5)])
def test_polygons_are_drawn_as_pycocotools_does(size, digits):
    coco = pytest.importorskip("pycocotools.mask")
    rng, seen = np.random.default_rng(size[1]), 0
    for _ in range(100):
        polygons = random_polygons(rng, size, digits)
        wanted = coco.decode(coco.merge(coco.frPyObjects(polygons, *size)))
        found = runs_of(polygons, size)
        np.testing.assert_array_equal(mask_of(found, size), wanted)
        assert (found[:, 1] - found[:, 0]).sum() == wanted.sum(), "what shares pixels counts once"
        seen += 0 < wanted.sum() < wanted.size
    assert seen > 50 or size == (1, 1)


def test_a_large_polygon_is_nearly_that_of_opencv():
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    corners = np.stack([150 + 90 * np.cos(angles), 100 + 70 * np.sin(2 * angles + 0.3) * np.cos(angles)], axis=1)
    filled = np.zeros((200, 300), np.uint8)
    cv2.fillPoly(filled, [np.round(corners * 16 - 8).astype(np.int32)], 1, shift=4)
    found = mask_of(runs_of([corners.ravel().tolist()], (200, 300)), (200, 300))
    both, either = (found & (filled > 0)).sum(), (found | (filled > 0)).sum()
    assert both / either > 0.93 and found.sum() > 3000


def test_a_rectangle_covers_its_pixels():
    assert np.argwhere(mask_of(runs_of(rectangle(2, 1, 5, 3), (7, 9)), (7, 9))).tolist() == [
        [y, x] for y in (1, 2) for x in (2, 3, 4)
    ]
    assert mask_of(runs_of(rectangle(-9, -7, 18, 14), (7, 9)), (7, 9)).all()


@pytest.mark.parametrize("share", [0, 0.03, 0.5, 0.97, 1])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (41, 29), (300, 400)])
def test_run_lengths_are_read_back(size, share):
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random(size) < share
        for form in (counted(mask), texted(mask)):
            np.testing.assert_array_equal(mask_of(runs_of(form, size), size), mask)


def test_run_lengths_as_text_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    for size in ((5, 7), (123, 457), (640, 480)):
        noise = cv2.GaussianBlur(rng.random(size).astype(np.float32), (0, 0), 3)
        mask = noise > np.median(noise)
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        np.testing.assert_array_equal(mask_of(runs_of({"size": list(size), "counts": text}, size), size), mask)


def test_boxes_touch_their_pixels():
    found = mask_of(box_runs((1.5, -3, 3.2, 2.5), (4, 6)), (4, 6))
    assert np.argwhere(found).tolist() == [[y, x] for y in (0, 1, 2) for x in (1, 2, 3)]
    assert box_runs((-1e9, -1e9, 1e9, 1e9), (4, 6)).tolist() == [[4 * x, 4 * x + 4] for x in range(6)]
    assert not len(box_runs((7, 0, 9, 3), (4, 6))) and not len(box_runs((0, 5, 3, 9), (4, 6)))


def test_runs_that_touch_become_one():
    runs = [np.array([[4, 9], [20, 21]]), np.array([[2, 3], [6, 7], [9, 12]]), np.zeros((0, 2), np.int64)]
    assert united(runs).tolist() == [[2, 3], [4, 12], [20, 21]]
    assert united([]).shape == united([np.zeros((0, 2), np.int64)]).shape == (0, 2)


SIZE = (4, 6)
GOOD = [0, 0, 3, 0, 3, 3]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("x", "segmentation is 'x'; it takes polygons or run lengths"),
        (7, "segmentation is 7; it takes"),
        (GOOD, "polygon 0 is 0; it takes a list of x and y"),
        ([GOOD, [1, 2, 3, 4]], "polygon 1 has 4 numbers; it takes x and y of at least 3 corners"),
        ([[*GOOD, 5]], "polygon 0 has 7 numbers"),
        ([[*GOOD, 5, float("nan")]], "polygon 0: y is nan; it takes a finite number"),
        ([[*GOOD, float("inf"), 5]], "polygon 0: x is inf; it takes a finite number"),
        ([[*GOOD, 10**400, 5]], "polygon 0: x is 1000"),
        ([[*GOOD, "5", 5]], "polygon 0: x is '5'; it takes a finite number"),
        ([[*GOOD, True, 5]], "polygon 0: x is True; it takes a finite number"),
        ([[*GOOD, 13, 1]], "polygon 0: x is 13, farther than a side outside of the picture of 6x4"),
        ([[*GOOD, 1, -4.5]], "polygon 0: y is -4.5, farther than a side outside"),
        ({"counts": [24]}, "size is None; it takes [height, width]"),
        ({"size": [4, True], "counts": [24]}, "size is [4, True]; it takes"),
        ({"size": [6, 4], "counts": [24]}, "a mask of 4x6, its picture is 6x4"),
        ({"size": [4, 6]}, "counts is None; it takes a text, or a list of whole numbers of 0..24"),
        ({"size": [4, 6], "counts": [20, 5]}, "its runs have 25 pixels, its size 24"),
        ({"size": [4, 6], "counts": [20]}, "its runs have 20 pixels, its size 24"),
        ({"size": [4, 6], "counts": []}, "its runs have 0 pixels, its size 24"),
        ({"size": [4, 6], "counts": ""}, "its runs have 0 pixels, its size 24"),
        ({"size": [4, 6], "counts": [25, -1]}, "it takes a text, or a list of whole numbers of 0..24"),
        ({"size": [4, 6], "counts": [24.0]}, "counts is [24.0]; it takes"),
        ({"size": [4, 6], "counts": [10**400]}, "counts is [1000"),
        ({"size": [4, 6], "counts": "é"}, "counts is 'é'; it is no text of run lengths"),
        ({"size": [4, 6], "counts": "\ud800"}, "it is no text of run lengths"),
        ({"size": [4, 6], "counts": "0 "}, "counts is '0 '; it is no text of run lengths"),
        ({"size": [4, 6], "counts": "00P"}, "counts is '00P'; it is no text of run lengths"),
        ({"size": [4, 6], "counts": "PPPPPPPP0"}, "a number of 9 letters; at most 7 are read"),
        ({"size": [4, 6], "counts": "PPPPPP?"}, "counts has a run of 16,106,127,360 pixels"),
        ({"size": [4, 6], "counts": "O0"}, "counts has a run of -1 pixels"),
    ],
)
def test_what_is_wrong_is_said(segmentation, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        runs_of(segmentation, SIZE)
    assert len(str(caught.value)) < 200


def test_lengths_are_limited(monkeypatch):
    zigzag = np.tile([[0.0, 0.0], [500.0, 400.0]], (5000, 1))
    with pytest.raises(ValueError, match=r"an outline of \d,\d\d\d,\d\d\d pixels; at most 419,430 are read"):
        polygon_runs(zigzag, (400, 500))
    many = [[0, 0, 5, 0, 5, 4]] * 30
    assert runs_of(many, SIZE).shape == (4, 2)
    monkeypatch.setattr(outlines, "MOST_RUNS", 100)
    with pytest.raises(ValueError, match="segmentation: more than 100 runs of pixels"):
        runs_of(many, SIZE)
    assert rle.MOST_LETTERS * 5 > 26, "runs of the largest picture fit"
