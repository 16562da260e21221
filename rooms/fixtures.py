"""Fixtures: random doors, windows, pictures and ceiling lamps, which hang on walls and the ceiling."""

from __future__ import annotations

import numpy as np

from rooms.item import CURTAIN, DOOR, LAMP, PICTURE, WINDOW, Item
from rooms.raycast import Light
from rooms.textures import WHITES, WOODS, Material, Palette, shaded


class Fixtures(Palette):
    """Draws what hangs on walls and the ceiling: every method returns one random item."""

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
