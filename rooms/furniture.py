"""Furniture as solids: a `Maker` draws random beds, chairs, lamps, doors, ...

Labels are the classes of NYUDv2-40, counted from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rooms.raycast import Light, Primitive
from rooms.textures import WHITES, WOODS, Material, Palette, shaded

WALL, FLOOR, CABINET, BED, CHAIR, SOFA, TABLE, DOOR, WINDOW, BOOKSHELF, PICTURE = range(11)
DESK, CURTAIN, PILLOW, RUG, CEILING, BOOKS, TELEVISION = 13, 15, 17, 19, 21, 22, 24
BOX, NIGHT_STAND, LAMP, PROP = 28, 31, 34, 39


def turn(yaw: float) -> np.ndarray:
    """Rotation about z; quarter turns come out exact."""
    c, s = np.round([np.cos(yaw), np.sin(yaw)], 12)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@dataclass
class Item:
    """Furniture in its own frame: x along its back, y away from the wall, z up, from the middle of its footprint."""

    size: tuple[float, float, float]  # width, depth, height [m]
    parts: list[Primitive] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)

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

    def put(self, other: Item, x: float, y: float, z: float, yaw: float = 0.0) -> None:
        """Adds the parts and lights of another item, turned by `yaw` [rad], at (x, y, z) of this one's frame."""
        rotation, shift = turn(yaw), np.array([x, y, z])
        for p in other.parts:
            self.parts.append(replace(p, center=rotation @ p.center + shift, rotation=rotation @ p.rotation))
        for light in other.lights:
            self.lights.append(light.moved(rotation, shift))


class Maker(Palette):
    """Draws furniture: every method returns one random item."""

    def pillow(
        self, item: Item, x: float, y: float, z: float, size: tuple[float, float, float], lean: float, yaw: float = 0.0
    ) -> None:
        """A pillow of its own color."""
        cloth = self.pattern() if self.rng.random() < 0.5 else self.cloth((0, 0.6), (0.6, 0.95))
        bulge = (1.3, 1.0, 1.3) if size[1] < size[2] else (1.3, 1.3, 1.0)
        item.add(PILLOW, cloth, (x, y, z), size, "cushion", lean=lean, yaw=yaw, bulge=bulge)

    def bed(self) -> Item:
        """Frame, headboard, mattress, blanket with a turned edge, pillows."""
        rng, wood = self.rng, self.house_wood()
        width, length = rng.uniform(1.2, 1.8), rng.uniform(1.95, 2.1)
        item = Item((width + 0.06, length + 0.1, 1.0))
        back, head = -length / 2, rng.uniform(0.85, 1.15)
        padded = self.cloth() if rng.random() < 0.35 else wood
        item.add(BED, padded, (0, back - 0.01, 0), (width + 0.06, 0.06, head))
        item.add(BED, wood, (0, 0.03, 0.08), (width + 0.04, length, 0.22))
        item.legs(BED, wood, width, length, 0.08, 0.08)
        item.add(BED, wood, (0, length / 2 + 0.02, 0), (width + 0.06, 0.04, rng.uniform(0.3, 0.5)))
        sheet = self.seeded("fabric", self.pick(WHITES), self.pick(WHITES[:1]))
        item.add(BED, sheet, (0, 0.02, 0.3), (width - 0.02, length - 0.04, 0.2))
        blanket, lining = self.pattern(), self.cloth((0, 0.3), (0.7, 0.95))
        cover = length * rng.uniform(0.6, 0.72)
        item.add(BED, blanket, (0, length / 2 - cover / 2 + 0.005, 0.27), (width + 0.03, cover, 0.255))
        item.add(BED, lining, (0, length / 2 - cover, 0.275), (width + 0.035, 0.22, 0.262))
        if rng.random() < 0.4:
            item.add(BED, self.pattern(), (0, length / 2 - 0.35, 0.28), (width + 0.045, 0.5, 0.27))
        for x in (-width / 4, width / 4) if width > 1.3 else (0,):
            wide = min(0.68, width / 2 - 0.06) if width > 1.3 else 0.68
            self.pillow(item, x, back + 0.2, 0.49, (wide, 0.42, 0.16), rng.uniform(0.3, 0.7))
        if rng.random() < 0.6:
            self.pillow(item, rng.normal(0, 0.1), back + 0.46, 0.5, (0.42, 0.38, 0.14), 0.75, rng.normal(0, 0.15))
        return item

    def sofa(self, seats: int) -> Item:
        """Base, arms, back, a cushion below and behind each seat, pillows; one seat makes an armchair."""
        rng, cloth = self.rng, self.cloth((0.02, 0.5), (0.22, 0.75))
        seat, arm, deep = rng.uniform(0.58, 0.68), rng.uniform(0.13, 0.22), rng.uniform(0.82, 0.95)
        width, top = seats * seat + 2 * arm, rng.uniform(0.78, 0.9)
        item = Item((width, deep, top))
        foot = replace(self.main_wood, kind="plain")
        item.legs(SOFA, foot, width - 0.06, deep - 0.06, 0.1, 0.05)
        item.add(SOFA, cloth, (0, 0, 0.09), (width, deep, 0.2))
        item.add(SOFA, cloth, (0, -deep / 2 + 0.1, 0.2), (width, 0.2, top - 0.22))
        for side in (-1, 1):
            item.add(SOFA, cloth, (side * (width - arm) / 2, 0, 0.2), (arm, deep, rng.uniform(0.38, 0.4)))
        for k in range(seats):
            x = (k - (seats - 1) / 2) * seat
            bulge = (1.9, 1.9, 1.0)
            item.add(SOFA, cloth, (x, 0.1, 0.27), (seat - 0.01, deep - 0.22, 0.19), "cushion", bulge=bulge)
            item.add(
                SOFA,
                cloth,
                (x, -deep / 2 + 0.27, 0.43),
                (seat - 0.02, 0.2, 0.45),
                "cushion",
                lean=0.16,
                bulge=(1.9, 1, 1.9),
            )
        for k in rng.permutation(seats)[: rng.integers(0, seats + 1)]:
            x = (k - (seats - 1) / 2) * seat + rng.uniform(-0.06, 0.06)
            self.pillow(item, x, -deep / 2 + 0.46, 0.5, (0.42, 0.16, 0.4), 0.35, rng.normal(0, 0.15))
        return item

    def chair(self, wood: Material | None = None) -> Item:
        """Four legs, a seat, posts and slats (or a panel) behind; sits at the table with its back to -y."""
        rng, wood = self.rng, wood or self.house_wood()
        item = Item((0.44, 0.46, 0.92))
        item.legs(CHAIR, wood, 0.42, 0.42, 0.43, 0.04)
        seat = self.cloth() if rng.random() < 0.4 else wood
        item.add(CHAIR, seat, (0, 0, 0.43), (0.44, 0.44, 0.05))
        for side in (-1, 1):
            item.add(CHAIR, wood, (side * 0.19, -0.205, 0.46), (0.04, 0.035, 0.47), lean=0.08)
        style = rng.integers(3)
        if style == 0:
            item.add(CHAIR, seat, (0, -0.21, 0.58), (0.34, 0.03, 0.32), lean=0.08)
        elif style == 1:
            for z in (0.58, 0.7, 0.82):
                item.add(CHAIR, wood, (0, -0.207 - 0.08 * (z - 0.68), z), (0.34, 0.02, 0.07), lean=0.08)
        else:
            item.add(CHAIR, wood, (0, -0.225, 0.84), (0.36, 0.025, 0.08), lean=0.08)
            for x in (-0.11, 0, 0.11):
                item.add(CHAIR, wood, (x, -0.208, 0.48), (0.025, 0.02, 0.38), lean=0.08)
        return item

    def table(self, width: float, depth: float, height: float, wood: Material) -> Item:
        """A top on four legs with a frame below, or a round one on a column."""
        item = Item((width, depth, height))
        if abs(width - depth) < 1e-6:
            foot = replace(wood, kind="plain")
            item.add(TABLE, wood, (0, 0, height - 0.035), (width, width, 0.035), "cone")
            item.add(TABLE, foot, (0, 0, 0.02), (0.1, 0.1, height - 0.05), "cone", taper=0.9)
            item.add(TABLE, foot, (0, 0, 0), (0.55 * width, 0.55 * width, 0.03), "cone", taper=0.8)
        else:
            item.add(TABLE, wood, (0, 0, height - 0.035), (width, depth, 0.035))
            item.legs(TABLE, wood, width - 0.06, depth - 0.06, height - 0.03, 0.06)
            for y in (-1, 1):
                item.add(TABLE, wood, (0, y * (depth / 2 - 0.06), height - 0.11), (width - 0.14, 0.02, 0.08))
        if self.rng.random() < 0.6:
            item.put(self.vase(), self.rng.normal(0, 0.08), self.rng.normal(0, 0.05), height)
        if self.rng.random() < 0.4:
            item.put(self.pile(), -0.28 * width, self.rng.normal(0, 0.05), height, self.rng.normal(0, 0.5))
        return item

    def vase(self) -> Item:
        """A pot with a plant or without."""
        rng, item, tall = self.rng, Item((0.2, 0.2, 0.4)), self.rng.uniform(0.12, 0.24)
        pot = Material("plain", self.hue((0.1, 0.6), (0.4, 0.95)))
        item.add(PROP, pot, (0, 0, 0), (0.1, 0.1, tall), "cone", taper=rng.uniform(1.1, 1.5))
        if rng.random() < 0.6:
            self.leaves(item, tall, 0.16, 4)
        return item

    def leaves(self, item: Item, z: float, radius: float, count: int) -> None:
        """A bush of leaning green ellipsoids."""
        green = self.seeded(
            "leaves", self.hue((0.5, 0.75), (0.35, 0.6), self.rng.uniform(0.24, 0.36)), (0.1, 0.22, 0.08)
        )
        for k in range(count):
            angle, lean = 2 * np.pi * k / count + self.rng.normal(0, 0.3), self.rng.uniform(0.35, 0.8)
            spot = turn(angle) @ [0, -0.75 * radius * np.sin(lean), 0] + [0, 0, z - 0.15 * radius]
            size = (0.6 * radius, 0.22 * radius, 2 * radius)
            item.add(PROP, green, spot, size, "cushion", yaw=angle, lean=lean, bulge=(1, 1, 1))

    def plant(self) -> Item:
        """A large plant in a pot on the floor."""
        item, pot = Item((0.6, 0.6, 1.2)), Material("plain", self.hue((0.1, 0.6), (0.35, 0.9)))
        item.add(PROP, pot, (0, 0, 0), (0.24, 0.24, 0.3), "cone", taper=1.35)
        self.leaves(item, 0.32, self.rng.uniform(0.32, 0.45), 9)
        return item

    def pile(self) -> Item:
        """Two to four books lying on each other."""
        item, z = Item((0.3, 0.2, 0.1)), 0.0
        for _ in range(self.rng.integers(2, 5)):
            thick = self.rng.uniform(0.02, 0.04)
            cover = Material("plain", self.hue((0.2, 0.8), (0.2, 0.8)))
            item.add(BOOKS, cover, (0, 0, z), (0.24, 0.17, thick), yaw=self.rng.normal(0, 0.15))
            z += thick
        return item

    def bookshelf(self) -> Item:
        """Sides, boards, a back and rows of books of uneven height."""
        rng, wood = self.rng, self.house_wood()
        width, deep, high = rng.uniform(0.7, 1.2), rng.uniform(0.26, 0.32), rng.uniform(1.5, 2.15)
        item = Item((width, deep, high))
        dark = replace(wood, color=shaded(wood.color, 0.8), second=shaded(wood.second, 0.8))
        item.add(BOOKSHELF, dark, (0, -deep / 2 + 0.01, 0), (width, 0.02, high))
        for side in (-1, 1):
            item.add(BOOKSHELF, wood, (side * (width - 0.03) / 2, 0, 0), (0.03, deep, high))
        rows = int(high / 0.36)
        for k in range(rows + 1):
            z = 0.06 + k * (high - 0.085) / rows
            item.add(BOOKSHELF, wood, (0, 0.005, z), (width - 0.06, deep - 0.01, 0.025))
            x, right = -width / 2 + 0.035, width / 2 - 0.035
            while k < rows and x < right - 0.1:
                run = min(rng.uniform(0.15, 0.5), right - x)
                if rng.random() < 0.82:
                    size = (run, rng.uniform(0.16, 0.2), rng.uniform(0.2, 0.28))
                    books = self.seeded("books", (0.5, 0.4, 0.3), (0.8, 0.8, 0.8), rng.uniform(0.024, 0.042))
                    item.add(BOOKS, books, (x + run / 2, deep / 2 - 0.04 - size[1] / 2, z + 0.025), size)
                x += run + 0.004
        return item

    def cabinet(self, kind: int, width: float, deep: float, high: float, rows: int, columns: int) -> Item:
        """A carcass with a door or drawer front a cell, each with a knob."""
        wood = self.house_wood()
        item = Item((width, deep, high))
        inside = replace(wood, color=shaded(wood.color, 0.45), second=shaded(wood.second, 0.45))
        item.add(kind, inside, (0, -0.01, 0.06), (width - 0.02, deep - 0.03, high - 0.08))
        item.add(kind, wood, (0, 0, high - 0.03), (width, deep, 0.03))
        for side in (-1, 1):
            item.add(kind, wood, (side * (width / 2 - 0.01), 0, 0), (0.02, deep - 0.005, high - 0.03))
        item.add(kind, wood, (0, -0.02, 0), (width - 0.04, deep - 0.06, 0.06))
        cell_w, cell_h = (width - 0.04) / columns, (high - 0.09) / rows
        metal = Material("plain", self.pick([(0.75, 0.75, 0.76), (0.2, 0.19, 0.18), (0.72, 0.6, 0.35)]))
        for row in range(rows):
            for col in range(columns):
                x, z = (col - (columns - 1) / 2) * cell_w, 0.06 + row * cell_h
                item.add(kind, wood, (x, deep / 2 - 0.015, z + 0.004), (cell_w - 0.012, 0.02, cell_h - 0.012))
                upright = cell_h > cell_w
                knob = (0.02, 0.03, min(0.16, cell_h / 4)) if upright else (min(0.14, cell_w / 3), 0.03, 0.02)
                inward = (cell_w / 2 - 0.05) * (1 if col < columns / 2 else -1) if upright else 0
                item.add(kind, metal, (x + inward, deep / 2 + 0.01, z + 0.55 * cell_h), knob)
        return item

    def night_stand(self) -> Item:
        """A small chest of two drawers, with a lamp or books on top."""
        item = self.cabinet(NIGHT_STAND, self.rng.uniform(0.4, 0.5), 0.38, self.rng.uniform(0.45, 0.55), 2, 1)
        high = item.size[2]
        if self.rng.random() < 0.75:
            item.put(self.lamp(0.45), 0, 0, high)
        else:
            item.put(self.pile(), 0, 0, high, self.rng.normal(0, 0.4))
        return item

    def lamp(self, high: float) -> Item:
        """A standing lamp: foot, stem, shade; it may be lit."""
        item, on = Item((0.36, 0.36, high)), self.rng.random() < 0.7
        metal = Material("plain", self.pick([(0.3, 0.28, 0.26), (0.7, 0.68, 0.62), (0.5, 0.36, 0.2)]))
        shade = 0.24 + 0.1 * (high > 1)
        tall = 0.2 + 0.05 * (high > 1)
        item.add(LAMP, metal, (0, 0, 0), (0.55 * shade, 0.55 * shade, 0.025), "cone", taper=0.9)
        item.add(LAMP, metal, (0, 0, 0.02), (0.025, 0.025, high - tall), "cone")
        tone = self.hue((0.05, 0.35), (0.85, 0.98), self.rng.uniform(0.06, 0.14))
        glow = Material("plain", tone, glow=1.6 if on else 0.12)
        taper = self.rng.uniform(0.55, 0.9)
        item.add(LAMP, glow, (0, 0, high - tall), (shade, shade, tall), "cone", taper=taper, shadow=False)
        if on:
            color = np.array([1.0, 0.72, 0.42]) * self.rng.uniform(0.25, 0.5)
            item.lights.append(Light("lamp", np.array([0, 0, high - tall / 2]), color, 0.06))
        return item

    def desk(self) -> Item:
        """A top, drawers on one side, a panel on the other, a screen, a lamp or books."""
        rng, wood = self.rng, self.house_wood()
        width, deep = rng.uniform(1.1, 1.5), rng.uniform(0.58, 0.7)
        item, side = Item((width, deep, 0.74)), rng.choice([-1, 1])
        item.add(DESK, wood, (0, 0, 0.71), (width, deep, 0.03))
        item.add(DESK, wood, (-side * (width / 2 - 0.02), 0, 0), (0.03, deep - 0.04, 0.71))
        item.put(self.cabinet(DESK, 0.38, deep - 0.05, 0.7, 3, 1), side * (width / 2 - 0.21), 0, 0)
        item.add(DESK, wood, (0, -deep / 2 + 0.05, 0.35), (width - 0.4, 0.02, 0.36))
        if rng.random() < 0.75:
            item.put(self.screen(rng.uniform(0.5, 0.6)), -side * 0.1, -deep / 2 + 0.18, 0.74, rng.normal(0, 0.1))
        item.put(self.lamp(0.45) if rng.random() < 0.6 else self.pile(), side * (width / 2 - 0.17), -0.1, 0.74)
        return item

    def screen(self, width: float) -> Item:
        """A television or a monitor on a foot."""
        high, item = width * 0.58, Item((width, 0.2, width * 0.58 + 0.08))
        black = Material("plain", (0.09, 0.09, 0.095))
        item.add(TELEVISION, black, (0, 0, 0), (width * 0.4, 0.18, 0.012))
        item.add(TELEVISION, black, (0, -0.01, 0), (0.06, 0.04, 0.1))
        item.add(TELEVISION, black, (0, 0, 0.07), (width, 0.035, high))
        lit = self.seeded("picture", (0, 0, 0), (0, 0, 0), 0.4, glow=0.5)
        face = lit if self.rng.random() < 0.3 else self.seeded("screen", (0.11, 0.12, 0.14), (0.55, 0.6, 0.7))
        item.add(TELEVISION, face, (0, 0.015, 0.082), (width - 0.03, 0.01, high - 0.024))
        return item

    def carton(self) -> Item:
        """A cardboard box with tape along its top."""
        w, d, h = self.rng.uniform((0.3, 0.28, 0.22), (0.55, 0.42, 0.45))
        item, card = Item((w, d, h)), self.vary((0.70, 0.53, 0.35), 0.06)
        item.add(BOX, Material("plain", card), (0, 0, 0), (w, d, h))
        item.add(BOX, Material("plain", self.vary((0.82, 0.72, 0.55))), (0, 0, 0.001), (w + 0.004, 0.06, h + 0.002))
        return item

    def rug(self, width: float, depth: float) -> Item:
        """A flat rug with a border."""
        hue = self.rng.choice([self.rng.random(), self.rng.uniform(-0.02, 0.12)])
        one, two = self.hue((0.2, 0.6), (0.25, 0.7), hue % 1), self.hue((0.05, 0.3), (0.6, 0.92))
        item = Item((width, depth, 0.015))
        item.add(RUG, self.seeded("rug", one, two, self.rng.uniform(0.2, 0.4)), (0, 0, 0), (width, depth, 0.014))
        return item

    def door(self) -> Item:
        """A frame, a paneled leaf and a handle, flat on the wall."""
        item, wide, high = Item((1.0, 0.06, 2.08)), 0.82, 2.02
        white = self.rng.random() < 0.6
        tone = self.pick(WHITES[:2]) if white else self.pick(WOODS)
        frame = Material("plain", tone if self.rng.random() < 0.7 else self.pick(WHITES))
        leaf = self.seeded("panels", tone, shaded(tone, 0.97 if white else 0.8), high / 3)
        item.add(DOOR, leaf, (0, -0.01, 0), (wide, 0.04, high))
        for side in (-1, 1):
            item.add(DOOR, frame, (side * (wide + 0.08) / 2, 0, 0), (0.08, 0.06, high))
        item.add(DOOR, frame, (0, 0, high), (wide + 0.16, 0.06, 0.08))
        metal = Material("plain", (0.62, 0.6, 0.55))
        side = self.rng.choice([-1, 1])
        item.add(DOOR, metal, (side * 0.35, 0.02, 0.98), (0.045, 0.02, 0.2))
        item.add(DOOR, metal, (side * 0.31, 0.05, 1.03), (0.12, 0.02, 0.022))
        return item

    def window(self, width: float, low: float, high: float, day: float) -> Item:
        """A framed window between two heights [m], with a view, often with curtains; it gives light."""
        rng, tall = self.rng, high - low
        item = Item((width + 0.16, 0.1, high))
        frame = Material("plain", self.pick(WHITES[:1] if rng.random() < 0.75 else WOODS))
        sky, haze = (0.42, 0.6, 0.88), (0.93, 0.95, 0.97)
        if day < 0.3:
            sky, haze = (0.10, 0.13, 0.30), (0.42, 0.36, 0.45)
        view = self.seeded("outdoors", self.vary(sky), self.vary(haze), glow=0.4 + 1.2 * day)
        item.add(WINDOW, view, (0, -0.035, low), (width, 0.02, tall))
        for side in (-1, 1):
            item.add(WINDOW, frame, (side * (width + 0.07) / 2, -0.01, low - 0.07), (0.07, 0.08, tall + 0.14))
        for z in (low - 0.07, high):
            item.add(WINDOW, frame, (0, -0.01, z), (width, 0.08, 0.07))
        item.add(WINDOW, frame, (0, 0.02, low - 0.1), (width + 0.2, 0.16, 0.03))
        panes = max(2, round(width / 0.65))
        for k in range(1, panes):
            item.add(WINDOW, frame, ((k / panes - 0.5) * width, -0.02, low), (0.05, 0.05, tall))
        if rng.random() < 0.4:
            item.add(WINDOW, frame, (0, -0.02, low + 0.66 * tall), (width, 0.045, 0.04))
        if rng.random() < 0.65:
            cloth = self.hue((0.05, 0.6), (0.45, 0.92), self.cloth_hue if rng.random() < 0.5 else None)
            hang = self.seeded("curtain", cloth, shaded(cloth, 0.8), rng.uniform(0.08, 0.13), glow=0.06 * day)
            reach, bottom = rng.uniform(0.3, 0.45), 0.03 if rng.random() < 0.7 else low - 0.2
            for side in (-1, 1):
                spot = (side * (width / 2 + 0.12), 0.07, bottom)
                item.add(CURTAIN, hang, spot, (reach, 0.05, high + 0.14 - bottom))
            rod = Material("plain", (0.3, 0.27, 0.24))
            item.add(CURTAIN, rod, (0, 0.07, high + 0.14), (width + 0.7, 0.025, 0.025))
            item.size = (width + 0.75, 0.12, high)
        color = np.array([0.80, 0.92, 1.08]) * day * 2.6
        across, up = np.array([width / 2, 0, 0]), np.array([0, 0, tall / 2])
        middle = np.array([0, 0.0, (low + high) / 2])
        item.lights.append(Light("window", middle, color, 0, across, up, np.array([0, 1.0, 0])))
        if day > 0.6 and rng.random() < 0.6:
            sun = np.array([rng.uniform(-0.7, 0.7), 1.0, -rng.uniform(0.45, 1.1)])
            item.lights.append(Light("sun", middle, np.array([1.0, 0.86, 0.66]) * 2.6, 0, across, up, sun))
        return item

    def picture(self) -> Item:
        """A framed picture, flat on the wall."""
        w, h = self.rng.uniform((0.35, 0.3), (0.95, 0.75))
        item = Item((w, 0.04, h))
        frame = Material("plain", self.pick([(0.12, 0.11, 0.1), (0.9, 0.89, 0.86), (0.6, 0.45, 0.22), *WOODS]))
        item.add(PICTURE, frame, (0, 0, 0), (w, 0.03, h))
        if self.rng.random() < 0.6:
            item.add(PICTURE, Material("plain", (0.93, 0.92, 0.89)), (0, 0.002, 0.025), (w - 0.05, 0.03, h - 0.05))
            w, h = w - 0.1, h - 0.1
        canvas = self.seeded("picture", (0, 0, 0), (0, 0, 0), max(w, h))
        item.add(PICTURE, canvas, (0, 0.004, (item.size[2] - h) / 2 + 0.025), (w - 0.05, 0.03, h - 0.05))
        return item

    def ceiling_lamp(self, lit: bool) -> Item:
        """A flat light on the ceiling, or a shade or globe on a cord; hangs down from z = 0."""
        rng, style = self.rng, self.rng.integers(3)
        drop = 0.12 if style == 0 else rng.uniform(0.35, 0.65)
        item = Item((0.5, 0.5, drop))
        glow = Material("plain", (1.0, 0.95, 0.85), glow=2.2 if lit else 0.15)
        dark = Material("plain", self.pick([(0.15, 0.15, 0.15), (0.8, 0.8, 0.78)]))
        if style == 0:
            item.add(LAMP, glow, (0, 0, -0.1), (0.42, 0.42, 0.095), "cone", taper=1.1, shadow=False)
        else:
            item.add(LAMP, dark, (0, 0, -drop + 0.1), (0.015, 0.015, drop - 0.1), "cone", shadow=False)
            size = (0.32, 0.32, 0.32) if style == 1 else (0.5, 0.5, 0.22)
            shape = {"shape": "cushion", "bulge": (1, 1, 1)} if style == 1 else {"shape": "cone", "taper": 0.6}
            item.add(LAMP, glow, (0, 0, -drop), size, shadow=False, **shape)
        warm = np.array([1.0, rng.uniform(0.78, 0.9), rng.uniform(0.52, 0.75)])
        if lit:
            item.lights.append(Light("lamp", np.array([0, 0, -max(drop, 0.25)]), warm * 2.4, 0.1))
        return item

    def wardrobe(self) -> Item:
        """A tall cabinet with two or three doors."""
        columns = int(self.rng.integers(2, 4))
        return self.cabinet(CABINET, 0.5 * columns, 0.56, self.rng.uniform(1.9, 2.1), 1, columns)

    def sideboard(self) -> Item:
        """A low cabinet with something on top."""
        rng = self.rng
        columns, high = int(rng.integers(2, 5)), rng.uniform(0.7, 0.95)
        item = self.cabinet(CABINET, 0.42 * columns, 0.42, high, int(rng.integers(1, 4)), columns)
        tops = [self.vase, self.pile, lambda: self.lamp(0.5)]
        for side in (-1, 1):
            item.put(tops[rng.integers(3)](), side * 0.14 * columns, 0, high)
        return item
