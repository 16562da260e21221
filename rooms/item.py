"""An item of a room as labeled solids. Labels are the classes of NYUDv2-40, counted from 0."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rooms.raycast import Light, Primitive
from rooms.textures import Material

WALL, FLOOR, CABINET, BED, CHAIR, SOFA, TABLE, DOOR, WINDOW, BOOKSHELF, PICTURE = range(11)
DESK, CURTAIN, PILLOW, RUG, CEILING, BOOKS, TELEVISION = 13, 15, 17, 19, 21, 22, 24
BOX, NIGHT_STAND, LAMP, PROP = 28, 31, 34, 39
# What can be counted: all but walls (with their skirting boards), floors and ceilings. The names are those of nyu40.
THINGS = {
    CABINET: "cabinet",
    BED: "bed",
    CHAIR: "chair",
    SOFA: "sofa",
    TABLE: "table",
    DOOR: "door",
    WINDOW: "window",
    BOOKSHELF: "bookshelf",
    PICTURE: "picture",
    DESK: "desk",
    CURTAIN: "curtain",
    PILLOW: "pillow",
    RUG: "floor_mat",
    BOOKS: "books",
    TELEVISION: "television",
    BOX: "box",
    NIGHT_STAND: "night_stand",
    LAMP: "lamp",
    PROP: "other_prop",
}


def turn(yaw: float) -> np.ndarray:
    """Rotation about z; quarter turns come out exact."""
    c, s = np.round([np.cos(yaw), np.sin(yaw)], 12)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@dataclass
class Item:
    """Furniture in its own frame: x along its back, y away from the wall, z up, from the middle of its footprint.

    All parts of one label are one thing, except where they have different numbers `Primitive.thing`: a bed and each
    pillow on it, the two vases on a sideboard.
    """

    size: tuple[float, float, float]  # width, depth, height [m]
    parts: list[Primitive] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    things: int = 1  # the numbers 0 .. things - 1 are in use

    def another_thing(self) -> int:
        """A number for parts that are a thing of their own."""
        self.things += 1
        return self.things - 1

    def add(
        self,
        label: int,
        material: Material,
        where: tuple[float, float, float],
        size: tuple[float, float, float],
        shape: str = "box",
        yaw: float = 0.0,
        lean: float = 0.0,
        **more: object,
    ) -> None:
        """Adds a solid of `size` [m], the middle of its underside at `where`; yaw is about z, lean about x [rad]."""
        c, s = np.cos(lean), np.sin(lean)
        rotation = turn(yaw) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        half = np.array(size, float) / 2
        center = np.array(where, float) + np.array([0, 0, half[2]])
        self.parts.append(Primitive(shape, center, half, rotation, label, material, **more))

    def legs(self, label: int, material: Material, width: float, depth: float, height: float, thick: float) -> None:
        """Four legs at the corners of a rectangle."""
        for x in (-1, 1):
            for y in (-1, 1):
                spot = (x * (width - thick) / 2, y * (depth - thick) / 2, 0)
                self.add(label, material, spot, (thick, thick, height))

    def put(self, other: Item, x: float, y: float, z: float, yaw: float = 0.0, joined: bool = False) -> None:
        """Adds the parts and lights of another item, turned by `yaw` [rad], at (x, y, z) of this one's frame.

        joined: they belong to the things of this item, as the drawers of a desk do.
        """
        rotation, shift, first = turn(yaw), np.array([x, y, z]), 0 if joined else self.things
        for p in other.parts:
            center, turned = rotation @ p.center + shift, rotation @ p.rotation
            self.parts.append(replace(p, center=center, rotation=turned, thing=p.thing + first))
        self.things = max(self.things, first + other.things)
        for light in other.lights:
            self.lights.append(light.moved(rotation, shift))
