"""Outlines of things on the floor."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from scene3d.footprints import file_names, footprint


def flat(*rectangles: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles (x1, y1, x2, y2) -> points and triangles."""
    points = np.array([[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in rectangles]).reshape(-1, 2)
    triangles = [[4 * k + i for i in corners] for k in range(len(rectangles)) for corners in ((0, 1, 2), (0, 2, 3))]
    return points, np.array(triangles)


def area(ends: np.ndarray) -> float:
    return cv2.contourArea(ends.astype(np.float32))


def test_a_footprint_is_an_outline_and_no_hull():
    ends = footprint(*flat((-3, 5, -1, 5.5), (-3, 5, -2.5, 7)))
    assert len(ends) == 6 and area(ends) == pytest.approx(2 * 0.5 + 0.5 * 1.5, abs=0.03)
    np.testing.assert_allclose([ends.min(0), ends.max(0)], [(-3, 5), (-1, 7)], atol=0.01)


def test_parts_have_one_hull_and_crumbs_do_not_count():
    ends = footprint(*flat((0, 0, 1, 1), (2, 0, 3, 1), (9, 9, 9.2, 9.2)))
    assert area(ends) == pytest.approx(3, abs=0.05) and ends.max() < 3.02


def test_a_wall_seen_from_above_is_a_line():
    ends = footprint(np.array([(0, 0), (1, 0), (1.0, 0)]), np.array([[0, 1, 2]]))
    np.testing.assert_allclose([ends.min(0), ends.max(0)], [(0, 0), (1, 0)], atol=0.011)


def test_names_of_files():
    listed = [{"class": "night_stand"}, {"class": "../../a b"}]
    assert file_names(listed) == ["01_night_stand.ply", "02_______a_b.ply"]
    assert file_names([{"class": "x"}] * 100)[0] == "001_x.ply"
