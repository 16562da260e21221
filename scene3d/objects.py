"""Objects in the world: what several posed pictures show of one thing becomes one thing.

A sighting is a box of one picture, placed in the world by its distance and the picture's pose. How `merge_sightings`
makes things of them, for each class by itself: the best sighting that is left is the first of a thing; all within the
thing's radius belong to it, and its position is their mean, three times over, so that it comes to lie amid sightings
from all sides. The radius is half of the larger side of the first, at least LEAST_RADIUS_M. A box that the picture's
border cuts hardly counts for position and extent, and is the first of a thing only when no whole box is left: its
middle is not the thing's. What fewer pictures show than `least` is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

LEAST_RADIUS_M = 0.25
ROUNDS = 3  # of moving a thing to the mean of its sightings
CUT_WEIGHT = 1e-3  # of a box at the picture's border, against a whole one
BORDER_PX = 1.5

SIGHTING = np.dtype([
    ("xyz_m", "f8", 3), ("extent_m", "f8", 2), ("score", "f8"), ("class", "i8"), ("picture", "i8"), ("cut", "?"),
])  # fmt: skip
THING = np.dtype([("xyz_m", "f8", 3), ("extent_m", "f8", 2), ("score", "f8"), ("class", "i8"), ("sightings", "i8")])


def sightings_of(
    objects: np.ndarray, camera: Mapping[str, float], pose: np.ndarray, size: tuple[int, int], picture: int
) -> np.ndarray:
    """The objects of a picture (tasks/box_objects.py) -> those with a position, in the world.

    camera: fx, fy, cx, cy; pose (4, 4): camera to world; size: height and width of the picture; picture: its number.
    """
    placed = objects[np.isfinite(objects["xyz_m"]).all(1)]
    found, boxes = np.zeros(len(placed), SIGHTING), placed["box"].astype(np.float64)
    found["xyz_m"] = placed["xyz_m"] @ pose[:3, :3].T + pose[:3, 3]
    sides_px = boxes[:, 2:] - boxes[:, :2]
    found["extent_m"] = sides_px / [camera["fx"], camera["fy"]] * placed["distance_m"][:, None]
    found["score"], found["class"], found["picture"] = placed["score"], placed["class"], picture
    found["cut"] = (boxes[:, :2] < BORDER_PX).any(1) | (boxes[:, 2:] > np.array(size[::-1]) - BORDER_PX).any(1)
    return found


def merge_sightings(sightings: np.ndarray, least: int = 1) -> np.ndarray:
    """(n,) SIGHTING -> things (m,) THING, best score first, each shown by at least `least` pictures.

    `score` is that of the best sighting, `sightings` the number of pictures, `extent_m` width and height as seen.
    """
    things = []
    for kind in np.unique(sightings["class"]):
        own = sightings[sightings["class"] == kind]
        left = own[np.lexsort((own["picture"], -own["score"], own["cut"]))]
        while len(left):
            members = _members(left)
            thing = _thing(left[members])
            if thing["sightings"] >= least:
                things.append(thing)
            left = left[~members]
    found = np.array(things, THING)
    return found[np.argsort(-found["score"], kind="stable")]


def _members(left: np.ndarray) -> np.ndarray:
    """Which sightings show the same thing as the first, (n,) bool; the first always does."""
    middle, radius = left["xyz_m"][0], max(LEAST_RADIUS_M, left["extent_m"][0].max() / 2)
    for _ in range(ROUNDS):
        members = np.linalg.norm(left["xyz_m"] - middle, axis=1) <= radius
        members[0] = True
        middle = np.average(left["xyz_m"][members], axis=0, weights=_weights(left[members]))
    return members


def _weights(members: np.ndarray) -> np.ndarray:
    return np.maximum(members["score"], 1e-6) * np.where(members["cut"], CUT_WEIGHT, 1.0)


def _thing(members: np.ndarray) -> np.void:
    thing, weights = np.zeros((), THING), _weights(members)
    for name in ("xyz_m", "extent_m"):
        thing[name] = np.average(members[name], axis=0, weights=weights)
    thing["score"], thing["class"] = members["score"].max(), members["class"][0]
    thing["sightings"] = len(np.unique(members["picture"]))
    return thing[()]


def plain_things(things: np.ndarray, classes: Sequence[str]) -> list[dict[str, object]]:
    """For JSON: [{"class", "score", "xyz_m", "extent_m", "sightings"}]."""
    return [
        {
            "class": classes[thing["class"]], "score": round(float(thing["score"]), 4),
            "xyz_m": thing["xyz_m"].round(3).tolist(), "extent_m": thing["extent_m"].round(3).tolist(),
            "sightings": int(thing["sightings"]),
        }
        for thing in things
    ]  # fmt: skip
