"""A scanned place from above: which way is up, a plan in metres, and the area of each class."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from drawing import Panel
from scene3d.fusion import Surface
from tasks import NO_CLASS

CELL_M = 0.02
UPRIGHT = np.cos(np.radians(25))  # how far a floor may lean against what the cameras take for down
FACES_DOWN = -0.5  # undersides of ceilings and tables are not seen from above


def facets(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """(M, 3) unit normals and (M,) areas in m2 of the triangles."""
    corners = surface.points[surface.triangles].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1)
    return cross / np.where(length > 0, length, 1)[:, None], length / 2


def sample(surface: Surface, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` points (count, 3), evenly over the surface, and the triangle of each."""
    _, areas = facets(surface)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(areas), count, p=areas / areas.sum())
    a, b = rng.random((2, count, 1))
    a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
    first, second, third = (surface.points[surface.triangles[chosen, corner]] for corner in range(3))
    return first + a * (second - first) + b * (third - first), chosen


def find_up(surface: Surface, poses: Sequence[np.ndarray]) -> np.ndarray:
    """(3,) the unit vector that points up: what the cameras have above them on average, made exact by the surfaces that
    lie across it, floors and tables."""
    up = -np.mean([pose[:3, 1] for pose in poses], axis=0)
    up /= np.linalg.norm(up)
    normals, areas = facets(surface)
    for _ in range(5):
        along = normals @ up
        level = np.abs(along) > UPRIGHT
        if not level.any():
            return up
        up = (normals[level] * (areas[level] * np.sign(along[level]))[:, None]).sum(0)
        up /= np.linalg.norm(up)
    return up


def draw_plan(
    surface: Surface, up: np.ndarray, classes: Sequence[str] = (), colors: Sequence[tuple[int, int, int]] = ()
) -> tuple[Panel, dict[str, float]]:
    """The plan (its colours are those of the classes, or the surface's own) and {class: m2 seen from above}."""
    normals, areas = facets(surface)
    points, triangle = sample(surface, int(4 * areas.sum() / CELL_M**2))
    seen = normals[triangle] @ up > FACES_DOWN
    points, triangle = points[seen], triangle[seen]
    right = np.cross(up, [1.0, 0, 0] if abs(up[0]) < 0.9 else [0, 1.0, 0])
    right /= np.linalg.norm(right)
    across = np.stack([points @ right, points @ np.cross(right, up)], axis=1)
    cells = np.floor((across - across.min(0)) / CELL_M).astype(int)
    width, height = cells.max(0) + 1
    order = np.argsort(points @ up, kind="stable")  # the highest is written last
    corner = surface.triangles[triangle[order], 0]
    picture, top = np.full((height, width, 3), 255, np.uint8), np.full((height, width), NO_CLASS, np.uint8)
    rows, columns = cells[order, 1], cells[order, 0]
    top[rows, columns] = surface.classes[corner]
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = np.reshape(colors, (-1, 3))
    picture[rows, columns] = palette[surface.classes[corner]] if len(classes) else surface.colors[corner]
    counts = np.bincount(top.ravel(), minlength=256)[: len(classes)] * CELL_M**2
    found = {classes[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0}
    legend = [(f"{name} {area:.1f} m2", tuple(colors[classes.index(name)])) for name, area in found.items()]
    picture = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    metre = round(2 / CELL_M)
    cv2.rectangle(picture, (8, 8), (8 + metre, 12), (0, 0, 0), -1)
    return ("plan; the bar is 1 m", picture, legend), found
