"""Floor plan of a scanned place: which way is up, a picture from above in metres, and the area of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from drawing import Panel, palette_of
from scene3d.fusion import Surface
from tasks import NO_CLASS
from tasks.box_drawing import draw_boxes, draw_texts
from utils import require

CELL_M = 0.02
MAX_CELLS = 4000  # along a side of the plan; a larger place gets larger cells
UPRIGHT = np.cos(np.radians(25))  # a face whose normal is within 25 degrees of up or down counts as level
FACES_DOWN = -0.5  # cosine to up below which a face looks down, such as a ceiling: it is not part of the plan
LINES = 300  # so many lines of an outline would fill the plan
MARK_PX = 5  # from the middle of a mark to its sides
LEAST_M2 = 0.005  # a smaller area would be printed as 0.00

Color = tuple[int, int, int]
Mark = tuple[np.ndarray, str, Color]  # position (3,), or corners (n, 3) of what stands there, in the world; text; color


def facets(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """(M, 3) unit normals and (M,) areas in m2 of the triangles."""
    corners = surface.points[surface.triangles].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1)
    return cross / np.where(length > 0, length, 1)[:, None], length / 2


def find_up(surface: Surface, poses: Sequence[np.ndarray]) -> np.ndarray:
    """(3,) unit vector that points up: the mean up of the cameras, refined to the mean normal of level faces."""
    up = -np.mean([pose[:3, 1] for pose in poses], axis=0)
    if np.linalg.norm(up) < 1e-3:  # cameras upside down cancel the others
        up = -poses[0][:3, 1]
    up /= np.linalg.norm(up)
    normals, areas = facets(surface)
    for _ in range(5):
        cosine = normals @ up
        level = np.abs(cosine) > UPRIGHT
        if not areas[level].any():
            return up
        up = (normals[level] * (areas[level] * np.sign(cosine[level]))[:, None]).sum(0)
        up /= np.linalg.norm(up)
    return up


def page_axes(up: np.ndarray) -> np.ndarray:
    """(3, 3): unit vectors of the world to the right of the page, down the page, and up."""
    right = np.cross(up, [1.0, 0, 0] if abs(up[0]) < 0.9 else [0, 1.0, 0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, up), up])


@dataclass(frozen=True)
class FromAbove:
    """A surface seen from above."""

    top: np.ndarray  # (H, W) int64: for each cell the nearest point of the surface that lies on top, -1 = nothing
    cell_m: float
    axes: np.ndarray  # (2, 3): unit vectors of the world to the right and down the page
    corner_m: np.ndarray  # (2,): where the page begins along them

    def cells(self, xyz_m: np.ndarray) -> np.ndarray:
        """Points (N, 3) of the world -> their places on the page (N, 2), column and row in cells."""
        return (xyz_m @ self.axes.T - self.corner_m) / self.cell_m


def from_above(surface: Surface, up: np.ndarray) -> FromAbove:
    """What lies on top of a surface.

    One ray a cell, straight down through its middle (Open3D's RaycastingScene).
    """
    require("open3d")
    import open3d

    normals, _ = facets(surface)
    triangles = surface.triangles[normals @ up > FACES_DOWN]
    axes = page_axes(up)
    if not len(triangles):
        return FromAbove(np.full((1, 1), -1), CELL_M, axes[:2], np.zeros(2))
    points = surface.points @ axes.T  # x to the right, y down the page, z up
    shown = points[triangles.ravel()]
    low, high = shown.min(0), shown.max(0)
    extent = high - low
    cell_m = max(CELL_M, float(extent[:2].max()) / MAX_CELLS)
    width, height = np.maximum(np.ceil(extent[:2] / cell_m - 1e-3), 1).astype(int)
    points = points - [*low[:2], high[2]]  # near the origin float32 keeps all digits

    scene, core = open3d.t.geometry.RaycastingScene(), open3d.core
    scene.add_triangles(core.Tensor(points.astype(np.float32)), core.Tensor(triangles.astype(np.uint32)))
    rays = np.zeros((height, width, 6), np.float32)
    rays[..., 0] = (np.arange(width) + 0.5) * cell_m
    rays[..., 1] = ((np.arange(height) + 0.5) * cell_m)[:, None]
    rays[..., 2], rays[..., 5] = 1, -1
    hit = scene.cast_rays(core.Tensor(rays))
    triangle, (u, v) = hit["primitive_ids"].numpy(), np.moveaxis(hit["primitive_uvs"].numpy(), 2, 0)
    seen = triangle != scene.INVALID_ID
    corner = np.stack([1 - u - v, u, v]).argmax(0)
    top = np.full((height, width), -1)
    top[seen] = triangles[triangle[seen], corner[seen]]
    return FromAbove(top, cell_m, axes[:2], low[:2])


def draw_plan(
    surface: Surface,
    up: np.ndarray,
    classes: Sequence[str] = (),
    colors: Sequence[Color] = (),
    marks: Sequence[Mark] = (),
) -> tuple[Panel, dict[str, float]]:
    """The plan, and {class: m2 seen from above}, the largest first.

    Drawn in the colors of the classes, or without classes in the surface's own. `marks` are drawn over it: positions as
    squares, corners as an outline. Those outside of it are left out.
    """
    page = from_above(surface, up)
    top, cell_m = page.top, page.cell_m
    seen = top >= 0
    ids = np.where(seen, surface.classes[top], NO_CLASS)
    picture = np.full((*top.shape, 3), 255, np.uint8)
    picture[seen] = palette_of(colors)[ids[seen]] if len(classes) else surface.colors[top[seen]]
    counts = np.bincount(ids.ravel(), minlength=256)[: len(classes)] * cell_m**2
    areas = {classes[i]: float(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i] >= LEAST_M2}
    legend = [
        (f"{name} {area:.1f} m2", tuple(colors[classes.index(name)])) for name, area in areas.items() if area >= 0.05
    ]
    picture = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.rectangle(picture, (8, 8), (8 + round(2 / cell_m), 12), (0, 0, 0), -1)
    picture = _with_marks(picture, page, marks)
    return ("plan; the bar is 1 m", picture, legend), areas


def _with_marks(picture: np.ndarray, page: FromAbove, marks: Sequence[Mark]) -> np.ndarray:
    """The picture of a page, two pixels a cell, with a square or an outline, and a text for each mark; the first lies
    on top."""
    height, width = picture.shape[:2]
    squares: list[tuple[np.ndarray, str, Color]] = []
    outlines: list[tuple[np.ndarray, str, Color]] = []
    for place, text, color in marks[::-1]:
        ends = 2 * page.cells(np.atleast_2d(place))
        middle = (ends.min(0) + ends.max(0)) / 2
        if ((middle >= 0) & (middle < (width, height))).all():
            (squares if len(ends) == 1 else outlines).append((ends, text, color))
    line = max(1, round(min(height, width) / LINES))
    picture = picture.copy()
    for ends, _, color in outlines:
        for tone, thick in (((255, 255, 255), line + 2), (color, line)):  # seen on what has its class's color
            cv2.polylines(picture, [np.round(ends).astype(np.int32)], True, tone, thick, cv2.LINE_AA)
    plates = [(text, *(int(side) for side in ends.min(0)), color) for ends, text, color in outlines]
    picture = draw_texts(picture, plates)
    if not squares:
        return picture
    boxes = np.concatenate([np.concatenate([ends - MARK_PX, ends + MARK_PX], axis=1) for ends, _, _ in squares])
    return draw_boxes(picture, boxes, [text for _, text, _ in squares], [color for _, _, color in squares])
