"""Where the things of a surface stand: each one's surface apart, its outline on the floor, its size and its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from scene3d.floor_plan import UPRIGHT, facets, page_axes
from scene3d.fusion import Surface

CELL_M = 0.01  # of the raster in which outlines are found
MAX_CELLS = 4000  # along a side of it; a larger thing gets larger cells
SUBPIXEL = 4  # binary digits of the corners in the raster
FLOOR = 0.05  # share of what looks up and lies lower than the floor, such as mistakes
PART = 0.1  # of the area of a thing's largest part, for a part to count


def part_of(surface: Surface, chosen: np.ndarray) -> Surface:
    """The part of a surface with these vertices, (N,) bool, and the triangles between them."""
    place = np.cumsum(chosen) - 1
    triangles = place[surface.triangles[chosen[surface.triangles].all(1)]].astype(np.int32)
    things = None if surface.things is None else surface.things[chosen]
    return Surface(surface.points[chosen], surface.colors[chosen], surface.classes[chosen], triangles, things)


def floor_height(surface: Surface, up: np.ndarray) -> float:
    """Metres along `up` to the lowest level that looks up."""
    normals, areas = facets(surface)
    level = normals @ up > UPRIGHT
    if not level.any():
        return float((surface.points @ up).min(initial=0))
    heights = surface.points[surface.triangles[level, 0]] @ up
    order = np.argsort(heights)
    below = np.cumsum(areas[level][order])
    return float(heights[order][np.searchsorted(below, FLOOR * below[-1])])


def footprint(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """points (N, 2) in metres, triangles (M, 3) -> the outline (n, 2) of what they cover, without its holes; of several
    parts their convex hull."""
    low = points.min(0)
    cell_m = max(CELL_M, float(np.ptp(points, axis=0).max()) / MAX_CELLS)
    places = (points - low) / cell_m + 1
    width, height = (int(side) + 2 for side in places.max(0))
    raster = np.zeros((height, width), np.uint8)
    corners = np.round((places - 0.5) * 2**SUBPIXEL).astype(np.int32)  # the middle of a cell is a whole number
    for triangle in corners[triangles]:
        cv2.fillConvexPoly(raster, triangle, 1, cv2.LINE_8, SUBPIXEL)
    lines = cv2.findContours(raster, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    areas = np.array([cv2.contourArea(line) for line in lines])
    parts = [line for line, area in zip(lines, areas, strict=True) if area >= PART * areas.max()]
    whole = parts[0] if len(parts) == 1 else cv2.convexHull(np.concatenate(parts))
    return (cv2.approxPolyDP(whole, 1.0, True)[:, 0] - 0.5) * cell_m + low


def describe(
    surface: Surface, found: np.ndarray, up: np.ndarray, classes: Sequence[str], floor_m: float
) -> list[dict[str, object]]:
    """For JSON: the things (n,) FOUND (scene3d/things.py), whose numbers the surface's vertices have. Metres, in the
    frame of the poses; floor_m: along `up`."""
    axes, listed = page_axes(up), []
    for number, thing in enumerate(found, 1):
        own = part_of(surface, surface.things == number)
        places = own.points @ axes.T
        ends = footprint(places[:, :2], own.triangles)
        bottom, top = places[:, 2].min(), places[:, 2].max()
        (x, y), sides, _ = cv2.minAreaRect(ends.astype(np.float32))
        middle = np.array([x, y, (bottom + top) / 2]) @ axes
        on_floor = np.column_stack([ends, np.full(len(ends), floor_m)]) @ axes
        listed.append({
            "number": number, "class": classes[thing["class"]], "score": round(float(thing["score"]), 4),
            "pictures": int(thing["pictures"]), "vertices": int(thing["vertices"]), "xyz_m": _rounded(middle),
            "extent_m": _rounded([max(sides), min(sides), top - bottom]), "above_floor_m": _rounded(bottom - floor_m),
            "footprint_m": _rounded(on_floor), "footprint_m2": _rounded(cv2.contourArea(ends.astype(np.float32))),
        })  # fmt: skip
    return listed


def file_names(listed: Sequence[Mapping[str, object]]) -> list[str]:
    """`01_chair.ply`, ... for each of `describe`'s things."""
    digits = max(2, len(str(len(listed))))
    plain = ("".join(letter if letter.isalnum() else "_" for letter in str(item["class"])) for item in listed)
    return [f"{number:0{digits}}_{name}.ply" for number, name in enumerate(plain, 1)]


def _rounded(values: object) -> object:
    return np.round(np.asarray(values, np.float64), 3).tolist()
