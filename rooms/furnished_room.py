"""A random furnished room: where its furniture stands, and the look of walls and floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rooms.furniture import Maker
from rooms.item import CABINET, CEILING, CURTAIN, FLOOR, RUG, THINGS, WALL, Item, turn
from rooms.raycast import SIDES, Primitive, Scene
from rooms.textures import PAINTS, WHITES, WOODS, Material, shaded

INSTANCE_DIVISOR = 256  # a value of an instance mask is INSTANCE_DIVISOR * (class + 1) + number, from 1 in each class


class Footprint(NamedTuple):
    """Floor that is taken: a rectangle between two corners (2,) [m], and the height of what stands there."""

    low: np.ndarray
    high: np.ndarray
    height: float


class Stretch(NamedTuple):
    """A part of a wall that is taken: from `start` to `end` along it, from `low` to `high` above the floor [m]."""

    start: float
    end: float
    low: float
    high: float


class FurnishedRoom:
    """A room of random size. It starts empty; its methods add furniture where it fits."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.make = rng, Maker(rng)
        self.size = rng.uniform((3.4, 3.6, 2.4), (5.2, 5.8, 2.8))
        self.items: list[Item] = []
        self.taken: list[Footprint] = []
        self.walls: list[list[Stretch]] = [[], [], [], []]
        self.shell = self._draw_shell()

    def length(self, wall: int) -> float:
        """Length of a wall [m]; walls 0..3 are y=0, x=W, y=L, x=0, as in raycast.SIDES."""
        return float(self.size[wall % 2])

    def spot(self, wall: int, along: float, out: float) -> tuple[float, float, float]:
        """(x, y, yaw) in the world for furniture whose back faces a wall: `along` the wall and `out` from it [m]."""
        w, d = self.size[:2]
        x, y = [(along, out), (w - out, along), (w - along, d - out), (out, d - along)][wall]
        return x, y, wall * np.pi / 2

    def fits(self, low: np.ndarray, high: np.ndarray, margin: float = 0.04) -> bool:
        """Whether a footprint lies inside the room and overlaps no other."""
        if (low < 0.005).any() or (high > self.size[:2] - 0.005).any():
            return False
        return all((low > other.high + margin).any() or (high < other.low - margin).any() for other in self.taken)

    def stand(self, item: Item, x: float, y: float, yaw: float, z: float = 0.0, check: bool = True) -> bool:
        """Places furniture; False where something is in the way. Unchecked furniture takes up no floor."""
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        reach = np.array([c * item.size[0] + s * item.size[1], s * item.size[0] + c * item.size[1]]) / 2
        low, high = np.array([x, y]) - reach, np.array([x, y]) + reach
        if check:
            if not self.fits(low, high):
                return False
            self.taken.append(Footprint(low, high, item.size[2]))
        placed = Item(item.size)
        placed.put(item, x, y, z, yaw)
        self.items.append(placed)
        return True

    def is_free(self, wall: int, place: Stretch) -> bool:
        """Whether a stretch of wall is free of doors, windows, pictures and tall furniture."""
        if place.start < 0.02 or place.end > self.length(wall) - 0.02:
            return False
        return not any(
            place.start < other.end and place.end > other.start and place.low < other.high and place.high > other.low
            for other in self.walls[wall]
        )

    def stand_at_wall(
        self, item: Item, walls: Iterable[int] = range(4), along: float | None = None
    ) -> tuple[int, float] | None:
        """Places furniture with its back to a wall; (wall, place along it), or None where nothing is free."""
        walls = list(walls)
        for _ in range(24 if along is None else len(walls)):
            wall = walls[self.rng.integers(len(walls))]
            half = item.size[0] / 2
            place = self.rng.uniform(half, max(half, self.length(wall) - half)) if along is None else along
            x, y, yaw = self.spot(wall, place, item.size[1] / 2 + 0.03)
            stretch = Stretch(place - half, place + half, 0, item.size[2])
            if self.is_free(wall, stretch) and self.stand(item, x, y, yaw):
                self.walls[wall].append(stretch)
                return wall, place
        return None

    def hang(
        self, item: Item, low: float, depth: float, walls: Iterable[int] = range(4), edge: float = 0.1
    ) -> int | None:
        """Hangs an item on a free stretch of a wall, its underside at `low` [m]; returns the wall, or None."""
        walls = list(walls)
        for _ in range(16):
            wall = walls[self.rng.integers(len(walls))]
            half = item.size[0] / 2 + edge
            if self.length(wall) < 2 * half + 0.1:
                continue
            place = self.rng.uniform(half, self.length(wall) - half)
            stretch = Stretch(place - half, place + half, low, low + item.size[2])
            if self.is_free(wall, stretch):
                self.walls[wall].append(stretch)
                x, y, yaw = self.spot(wall, place, depth)
                return wall if self.stand(item, x, y, yaw, low, check=False) else None
        return None

    def add_openings(self, day: float) -> None:
        """Adds a door, one or two windows and the skirting boards. day: brightness of the daylight, 0..1."""
        self._add_door()
        for _ in range(self.rng.choice([1, 2], p=[0.6, 0.4])):
            self._add_window(day)
        self._add_skirting_boards()

    def _add_door(self) -> None:
        wall = self.hang(self.make.door(), 0, 0.031)
        if wall is not None:  # room to walk in
            stretch = self.walls[wall][-1]
            spot = np.array(self.spot(wall, (stretch.start + stretch.end) / 2, 0.45)[:2])
            self.taken.append(Footprint(spot - 0.42, spot + 0.42, 0.0))

    def _add_window(self, day: float) -> None:
        """A wall has one window at most."""
        low = self.rng.uniform(0.75, 0.95)
        window = self.make.window(self.rng.uniform(1.0, 2.0), low, self.rng.uniform(2.0, 2.15), day)
        walls = [wall for wall in range(4) if not any(other.low > 0 for other in self.walls[wall])]
        wall = self.hang(window, 0, 0.051, walls, edge=0.02)
        if wall is None:
            return
        stretches = self.walls[wall]
        start, end, _, top = stretches.pop()
        stretches.append(Stretch(start, end, low - 0.12, top + 0.25))  # low furniture may stand below it
        if any(p.label == CURTAIN and p.center[2] - p.half[2] < 0.1 for p in window.parts):
            stretches += [Stretch(start, start + 0.5, 0.01, top), Stretch(end - 0.5, end, 0.01, top)]

    def _add_skirting_boards(self) -> None:
        """Along all walls but for the door."""
        make = self.make
        board = Material("plain", make.pick(WHITES[:1]) if self.rng.random() < 0.7 else make.main_wood.color)
        for wall in range(4):
            gaps = sorted((other.start + 0.1, other.end - 0.1) for other in self.walls[wall] if other.low == 0)
            start = 0.0
            for gap, end in [*gaps, (self.length(wall), 0)]:
                if gap - start > 0.05:
                    strip = Item((gap - start, 0.015, 0.09))
                    strip.add(WALL, board, (0, 0, 0), strip.size)
                    x, y, yaw = self.spot(wall, (start + gap) / 2, 0.0085)
                    self.stand(strip, x, y, yaw, check=False)
                start = end

    def furnish(self, lamp_on: bool) -> None:
        """Adds the furniture of one of four kinds of room, more furniture where it fits, and the ceiling lamp."""
        rng, make = self.rng, self.make
        kind = rng.choice(["bedroom", "living", "dining", "studio"], p=[0.35, 0.24, 0.21, 0.2])
        if kind in ("bedroom", "studio"):
            self.add_bed()
        if kind in ("living", "studio"):
            self.add_sofa()
        if kind == "dining":
            self.add_dining_table()
        if kind in ("bedroom", "studio") and rng.random() < 0.6:
            self.add_desk()
        extras: list[tuple[float, Callable[[], Item]]] = [
            (0.75, make.bookshelf),
            (0.85, make.wardrobe),
            (0.5, make.sideboard),
            (0.35, lambda: make.lamp(rng.uniform(1.4, 1.7))),
            (0.45, make.plant),
            (0.3, lambda: make.sofa(1)),
            (0.4, make.carton),
            (0.3, make.chair),
            (0.15, make.carton),
        ]
        for chance, build in extras:
            if rng.random() < chance:
                self.stand_at_wall(build())
        if kind in ("bedroom", "dining") and rng.random() < 0.4:
            self.add_desk()
        for _ in range(rng.integers(2, 6)):
            self.hang(make.picture(), rng.uniform(1.3, 1.55), 0.016, edge=0.08)
        if not self.has_rug() and rng.random() < 0.5:
            w, d = self.size[:2]
            self.stand(make.rug(0.45 * w, 0.45 * d), w / 2, d / 2, 0, check=False)
        lamp = make.ceiling_lamp(lit=lamp_on)
        self.stand(lamp, *(self.size[:2] * rng.uniform(0.42, 0.58, 2)), 0, self.size[2], check=False)

    def has_rug(self) -> bool:
        """Whether a rug lies in the room; two would overlap."""
        return any(p.label == RUG for item in self.items for p in item.parts)

    def add_rug_before(self, wall: int, along: float, out: float, width: float, depth: float) -> None:
        """Lays a rug in front of furniture at a wall, inside the room."""
        x, y, yaw = self.spot(wall, along, out)
        reach = np.array([width, depth] if wall % 2 == 0 else [depth, width]) / 2
        x, y = np.clip([x, y], reach + 0.05, np.maximum(self.size[:2] - reach - 0.05, reach + 0.05))
        if (2 * reach < self.size[:2] - 0.1).all() and not self.has_rug():
            self.stand(self.make.rug(width, depth), x, y, yaw, check=False)

    def add_bed(self) -> None:
        """Adds a bed with night stands and perhaps a rug."""
        bed = self.make.bed()
        place = self.stand_at_wall(bed)
        if place is None:
            return
        wall, along = place
        for side in (-1, 1):
            stand = self.make.night_stand()
            if self.rng.random() < 0.85:
                self.stand_at_wall(stand, [wall], along + side * (bed.size[0] / 2 + stand.size[0] / 2 + 0.06))
        if self.rng.random() < 0.55:
            self.add_rug_before(wall, along, bed.size[1] * 0.75, bed.size[0] + 1.0, 1.5)

    def add_sofa(self) -> None:
        """Adds a sofa, a low table in front of it, and a television opposite."""
        rng, make = self.rng, self.make
        sofa = make.sofa(int(rng.integers(2, 4)))
        place = self.stand_at_wall(sofa)
        if place is None:
            return
        wall, along = place
        if rng.random() < 0.75:
            self.add_rug_before(wall, along, sofa.size[1] + 0.55, sofa.size[0] + 0.2, 1.6)
        if rng.random() < 0.85:
            width = rng.uniform(0.8, 1.1)
            table = make.table(width, rng.choice([width, 0.55]), rng.uniform(0.38, 0.45), make.house_wood())
            x, y, yaw = self.spot(wall, along, sofa.size[1] + 0.42 + table.size[1] / 2)
            self.stand(table, x, y, yaw)
        if rng.random() < 0.8:
            stand = make.cabinet(CABINET, rng.uniform(1.2, 1.7), 0.42, rng.uniform(0.45, 0.6), 1, 3)
            stand.put(make.screen(rng.uniform(0.85, 1.15)), 0, -0.04, stand.size[2])
            self.stand_at_wall(replace(stand, size=(*stand.size[:2], 1.3)), [(wall + 2) % 4])

    def add_dining_table(self) -> None:
        """Adds a table with chairs around it, away from the walls."""
        rng, make = self.rng, self.make
        width = rng.uniform(1.0, 1.7)
        deep = width if width < 1.15 else rng.uniform(0.8, 0.95)
        table, wood = make.table(width, deep, 0.75, make.house_wood()), make.house_wood()
        for _ in range(20):
            x, y = rng.uniform(1.2, self.size[:2] - 1.2)
            yaw = rng.integers(2) * np.pi / 2
            if self.stand(replace(table, size=(width + 0.9, deep + 0.9, 0.75)), x, y, yaw):
                break
        else:
            return
        if rng.random() < 0.4:
            self.stand(make.rug(width + 1.0, deep + 1.0), x, y, yaw, check=False)
        sides = (
            [(0, 1), (0, -1)] if deep == width else [(-width / 4, 1), (width / 4, 1), (-width / 4, -1), (width / 4, -1)]
        )
        model = make.chair(wood)
        for offset, side in [*sides, (None, 1), (None, -1)]:
            if rng.random() < 0.85:
                pulled = rng.uniform(0.05, 0.22)
                spot = (side * (width / 2 + pulled), 0) if offset is None else (offset, side * (deep / 2 + pulled))
                facing = side * np.pi / 2 if offset is None else np.pi * (side > 0)
                dx, dy = (turn(yaw) @ [*spot, 0])[:2]
                self.stand(model, x + dx, y + dy, yaw + facing + rng.normal(0, 0.12), check=False)

    def add_desk(self) -> None:
        """Adds a desk with a chair."""
        desk = self.make.desk()
        place = self.stand_at_wall(replace(desk, size=(desk.size[0], desk.size[1], 1.2)))
        if place is not None:
            x, y, yaw = self.spot(*place, desk.size[1] + self.rng.uniform(0.36, 0.5))
            self.stand(self.make.chair(), x, y, yaw + np.pi + self.rng.uniform(-0.25, 0.25))

    def _draw_shell(self) -> list[Primitive]:
        """Walls, floor and ceiling as slabs around the room, in the order of raycast.SIDES."""
        rng, make = self.rng, self.make
        paint = make.pick(PAINTS)
        wall = make.seeded("plain", paint, paint)
        if rng.random() < 0.2:
            wall = make.seeded("stripes", paint, shaded(paint, 0.93), rng.uniform(0.12, 0.3))
        accent = make.seeded(
            "plain", make.pick(PAINTS) if rng.random() < 0.5 else make.hue((0.2, 0.5), (0.4, 0.75)), paint
        )
        accents = rng.permutation(4) == 0 if rng.random() < 0.35 else np.zeros(4, bool)
        style = rng.choice(["planks", "planks", "tiles", "carpet"])
        if style == "planks":
            tone = make.pick(WOODS)
            floor = make.seeded("planks", tone, shaded(tone, 0.8), rng.uniform(0.09, 0.16))
        elif style == "tiles":
            tone = make.pick([(0.82, 0.79, 0.73), (0.66, 0.62, 0.57), (0.74, 0.55, 0.42), (0.85, 0.85, 0.84)])
            floor = make.seeded("tiles", tone, shaded(tone, 0.72), rng.uniform(0.3, 0.5))
        else:
            tone = make.pick([(0.68, 0.62, 0.53), (0.56, 0.56, 0.57), (0.48, 0.42, 0.37), (0.5, 0.56, 0.6)])
            floor = make.seeded("carpet", tone, shaded(tone, 0.88))
        ceiling = Material("plain", make.pick([(0.94, 0.94, 0.92)]))
        self.wall_material, self.floor_material = wall, floor
        parts = []
        for k, (axis, far) in enumerate(SIDES):
            center, half = self.size / 2, self.size / 2 + 0.5
            center[axis], half[axis] = (self.size[axis] + 0.1 if far else -0.1), 0.1
            look = (accent if accents[k] else wall) if k < 4 else (floor, ceiling)[k - 4]
            parts.append(Primitive("box", center, half, np.eye(3), (WALL, WALL, WALL, WALL, FLOOR, CEILING)[k], look))
        return parts

    def scene(self) -> Scene:
        """The room as solids and lights for the ray caster."""
        parts, groups, lights = list(self.shell), [], []
        for item in self.items:
            groups.append(list(range(len(parts), len(parts) + len(item.parts))))
            parts += item.parts
            lights += item.lights
        return Scene(self.size.astype(np.float32), parts, groups, lights)

    def instances(self) -> np.ndarray:
        """Values (P,) uint16 of an instance mask for the primitives of `scene`; 0 where it is no thing.

        The class counts in the order of THINGS, the number in the order in which the room was furnished: both are the
        same from every camera. Raises ValueError for more things of a class than have a number.
        """
        values = [0] * len(self.shell)
        numbers: dict[int, dict[tuple[int, int], int]] = {label: {} for label in THINGS}  # label -> thing -> number
        classes = {label: place for place, label in enumerate(THINGS, 1)}
        for place, item in enumerate(self.items):
            for part in item.parts:
                known = numbers.get(part.label)
                if known is None:
                    values.append(0)
                    continue
                number = known.setdefault((place, part.thing), len(known) + 1)
                values.append(INSTANCE_DIVISOR * classes[part.label] + number)
        for label, known in numbers.items():
            if len(known) >= INSTANCE_DIVISOR:
                name, most = THINGS[label], INSTANCE_DIVISOR - 1
                raise ValueError(f"room: {len(known)} things of class {name}; an instance mask numbers at most {most}")
        return np.array(values, np.uint16)
