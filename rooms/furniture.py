"""Furniture as solids: a `Maker` draws random beds, chairs, tables, shelves, lamps, ..."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rooms.fixtures import Fixtures
from rooms.item import (
    BED,
    BOOKS,
    BOOKSHELF,
    BOX,
    CABINET,
    CHAIR,
    DESK,
    LAMP,
    NIGHT_STAND,
    PILLOW,
    PROP,
    RUG,
    SOFA,
    TABLE,
    TELEVISION,
    Item,
    turn,
)
from rooms.raycast import Light
from rooms.textures import WHITES, Material, shaded


class Maker(Fixtures):
    """Draws furniture and fixtures: every method returns one random item."""

    def pillow(
        self, item: Item, x: float, y: float, z: float, size: tuple[float, float, float], lean: float, yaw: float = 0.0
    ) -> None:
        """A pillow of its own color."""
        cloth = self.pattern() if self.rng.random() < 0.5 else self.cloth((0, 0.6), (0.6, 0.95))
        bulge = (1.3, 1.0, 1.3) if size[1] < size[2] else (1.3, 1.3, 1.0)
        thing = item.another_thing()
        item.add(PILLOW, cloth, (x, y, z), size, "cushion", lean=lean, yaw=yaw, bulge=bulge, thing=thing)

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
        """Sides, boards, a back and rows of books of uneven height; books up to the next gap are one thing."""
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
            x, right, row = -width / 2 + 0.035, width / 2 - 0.035, item.another_thing()
            while k < rows and x < right - 0.1:
                run = min(rng.uniform(0.15, 0.5), right - x)
                if rng.random() < 0.82:
                    size = (run, rng.uniform(0.16, 0.2), rng.uniform(0.2, 0.28))
                    books = self.seeded("books", (0.5, 0.4, 0.3), (0.8, 0.8, 0.8), rng.uniform(0.024, 0.042))
                    item.add(BOOKS, books, (x + run / 2, deep / 2 - 0.04 - size[1] / 2, z + 0.025), size, thing=row)
                else:
                    row = item.another_thing()
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
        item.put(self.cabinet(DESK, 0.38, deep - 0.05, 0.7, 3, 1), side * (width / 2 - 0.21), 0, 0, joined=True)
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
