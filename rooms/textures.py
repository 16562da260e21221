"""How surfaces look: materials, drawn at random by a `Palette`, and the linear colours of their textures.

A new texture is a branch of `texture`, and a name for `Material.kind`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

Colour = tuple[float, float, float]  # sRGB, 0..1
WOODS = [(0.74, 0.57, 0.38), (0.45, 0.30, 0.19), (0.83, 0.68, 0.47), (0.56, 0.32, 0.20), (0.30, 0.22, 0.17)]
WHITES = [(0.92, 0.91, 0.88), (0.86, 0.85, 0.82), (0.70, 0.69, 0.67)]
PAINTS = [(0.93, 0.92, 0.89), (0.93, 0.89, 0.80), (0.83, 0.83, 0.82), (0.76, 0.83, 0.88), (0.78, 0.84, 0.75)]
PAINTS += [(0.92, 0.86, 0.66), (0.86, 0.72, 0.64), (0.70, 0.76, 0.80), (0.87, 0.80, 0.72)]


@dataclass(frozen=True)
class Material:
    """How a surface looks: a texture by name, two colours, its period [m], emitted light, a seed."""

    kind: str = "plain"
    colour: Colour = (0.8, 0.8, 0.8)
    second: Colour = (0.6, 0.6, 0.6)
    scale: float = 0.1
    glow: float = 0.0
    seed: int = 0


@dataclass
class Texel:
    """Visible points as flat lists of n, (n,) or (3, n), in metres: what a texture may look at."""

    ids: np.ndarray
    point: np.ndarray
    local: np.ndarray
    normal: np.ndarray
    axis: np.ndarray  # the local axis the surface faces most
    direction: np.ndarray
    pixel: np.ndarray  # size of a pixel on the surface, for fading what is finer


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0..1 -> linear light (the plain 2.2 power), float32."""
    return (np.clip(srgb, 0, 1) ** 2.2).astype(np.float32)


def shaded(colour: Colour, factor: float) -> Colour:
    """A darker shade of a colour."""
    return tuple(factor * np.array(colour))


@lru_cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """A tileable 512 x 512 noise of 64 x 64 cells, values 0..1, and 4096 random numbers to hash with."""
    rng = np.random.default_rng(0)
    noise = 0.0
    for cells, weight in ((64, 1.0), (128, 0.5), (256, 0.25)):
        grid = np.pad(rng.random((cells, cells), np.float32), 4, mode="wrap")
        zoom = 512 // cells
        fine = cv2.resize(grid, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        noise = noise + weight * fine[4 * zoom : -4 * zoom, 4 * zoom : -4 * zoom]
    ranks = noise.ravel().argsort().argsort().reshape(512, 512)  # every value equally often
    return (ranks / 512**2).astype(np.float32), rng.random(4096).astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray, seed: np.ndarray | float = 0) -> np.ndarray:
    """Smooth noise 0..1 with about one bump a unit."""
    table = _tables()[0].ravel()
    u, v = np.broadcast_arrays((u + 17.3 * seed) * 8, (v + 5.7 * seed) * 8)
    col, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = (u - col).astype(np.float32), (v - row).astype(np.float32)
    left, right, top, bottom = col & 511, (col + 1) & 511, (row & 511) * 512, ((row + 1) & 511) * 512
    upper = mix(table[top + left], table[top + right], fu)
    lower = mix(table[bottom + left], table[bottom + right], fu)
    return mix(upper, lower, fv)


def hashed(*integers: np.ndarray | float) -> np.ndarray:
    """Random numbers 0..1 that depend on (rounded) integers only."""
    mixed = sum(np.asarray(i).astype(np.int64) * k for i, k in zip(integers, (73, 1789, 389, 2969), strict=False))
    return _tables()[1][(mixed ^ (mixed >> 5)) & 4095]


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """a where t = 0, b where t = 1."""
    return a + (b - a) * t


def _line(distance: np.ndarray, width: float, pixel: np.ndarray) -> np.ndarray:
    """How much of a pixel a line covers, given the distance to its middle [m]."""
    return np.clip((width / 2 - np.abs(distance)) / pixel + 0.5, 0, 1) * np.minimum(1, width / pixel)


def _period(x: np.ndarray, length: np.ndarray | float) -> np.ndarray:
    """Signed distance to the nearest multiple of `length`."""
    return x - np.round(x / length) * length


def texture(
    kind: str,
    uv: np.ndarray,
    side: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    scale: np.ndarray,
    seed: np.ndarray,
    q: Texel,
) -> np.ndarray:
    """Linear colour (3, n) of one kind of material at uv (2, n) on faces of half size `side` (2, n) [m]."""
    u, v = uv
    edge = np.minimum(side[0] - np.abs(u), side[1] - np.abs(v))

    def detail(size: float) -> np.ndarray:  # 1 near, 0 where a pixel spans more than the detail
        return np.clip(size / (2 * q.pixel), 0, 1)

    if kind == "wood":
        along, across = np.where(side[1] > side[0], uv[::-1], uv)
        grain = noise(along * 2.5, across * 28 + 2 * noise(along * 1.5, across * 4, seed), seed + hashed(seed, q.axis))
        worn = np.clip(edge / 0.006, 0, 1)
        return mix(a, b, 0.5 + (grain - 0.5) * detail(0.03)) * (0.82 + 0.18 * mix(1.0, worn, detail(0.012)))
    if kind == "planks":
        row = np.floor(v / scale)
        length = scale * 9
        shift = u + length * hashed(row, seed)
        tone = 0.82 + 0.36 * hashed(row, np.floor(shift / length), seed)
        grain = noise(u * 2 + 9 * hashed(row, seed), v * 35, seed)
        gap = np.maximum(_line(_period(v, scale), 0.004, q.pixel), _line(_period(shift, length), 0.004, q.pixel))
        return mix(a, b, 0.5 + (grain - 0.5) * detail(0.03)) * tone * (1 - 0.65 * gap)
    if kind == "tiles":
        tone = 0.92 + 0.16 * hashed(np.floor(u / scale), np.floor(v / scale), seed)
        marble = 0.9 + 0.2 * noise(u * 5, v * 5, seed)
        grout = np.maximum(_line(_period(u, scale), 0.008, q.pixel), _line(_period(v, scale), 0.008, q.pixel))
        return mix(a * tone * marble, b, grout)
    if kind in ("fabric", "carpet"):
        fine = 90 if kind == "fabric" else 60
        weave = (noise(u * fine, v * fine, seed) - 0.5) * detail(1.5 / fine)
        return mix(a, b, 0.5 * noise(u * 4, v * 4, seed)) * (1 + 0.4 * weave)
    if kind == "stripes":
        m = np.clip((scale / 4 - np.abs(_period(u, scale))) / q.pixel + 0.5, 0, 1)
        return mix(a, b, mix(0.5, m, detail(0.03))) * (0.95 + 0.1 * noise(u * 40, v * 40, seed))
    if kind == "plaid":
        one = np.clip((scale / 5 - np.abs(_period(u, scale))) / q.pixel + 0.5, 0, 1)
        two = np.clip((scale / 5 - np.abs(_period(v, scale))) / q.pixel + 0.5, 0, 1)
        return mix(a, b, 0.5 * (one + two)) * (0.92 + 0.16 * noise(u * 60, v * 60, seed))
    if kind == "rug":
        border = np.abs(edge - 0.14) < 0.05
        diamond = np.abs(_period(u, scale)) + np.abs(_period(v, scale))
        figure = (np.abs(diamond - scale / 4) < scale / 8) & (edge > 0.24) & (hashed(seed) > 0.35)
        pile = 1 + 0.5 * (noise(u * 70, v * 70, seed) - 0.5) * detail(0.03)
        return mix(a, b, border | figure) * pile
    if kind == "curtain":
        fold = np.sin(2 * np.pi * u / scale + 3 * noise(u * 3, v * 0.4, seed))
        return mix(a, b, 0.15 * noise(u * 3, v, seed)) * (0.78 + 0.22 * fold)
    if kind == "panels":  # a door leaf: raised panels, lit from above
        inner = np.stack([np.abs(np.abs(u) - 0.5 * side[0]) - 0.33 * side[0], np.abs(_period(v + 0.02, scale))])
        inner[1] -= 0.36 * scale
        frame = np.maximum(inner[0], inner[1])
        light = np.where(v - np.floor(v / scale) * scale > scale / 2, 1, -1)
        groove = _line(frame, 0.018, q.pixel)
        grain = noise(u * 25, v * 2, seed) - 0.5
        return mix(a, b, 0.4 + 0.5 * grain * detail(0.03)) * (1 - groove * (0.28 + 0.12 * light))
    if kind == "books":
        place = u / scale + 0.35 * np.sin(3.1 * np.floor(u / scale) + seed)
        book = np.floor(place)
        near = np.minimum(place - book, book + 1 - place) * scale
        hue = np.stack(
            [0.35 + 0.65 * hashed(book, seed, 1), 0.3 + 0.5 * hashed(book, seed, 2), 0.8 * hashed(book, seed, 3)]
        )
        value = 0.08 + 0.75 * hashed(book, seed, 7) ** 1.5
        spine = value * mix(1.0, hue / hue.max(0), 0.35 + 0.6 * hashed(book, seed, 9))
        band = np.abs(v / side[1] - 0.5 + hashed(book, seed, 11)) < 0.12
        spine = mix(spine, mix(0.7, spine[::-1], hashed(book, seed, 13)), band * 0.7)
        return np.where(q.axis == 2, 0.6, spine * (1 - 0.6 * _line(near, 0.006, q.pixel)))
    if kind == "picture":
        style = np.floor(hashed(seed, 3) * 3)
        inks = [0.12 + 0.75 * np.stack([hashed(seed, j, c) for c in range(3)]) ** 1.5 for j in range(5)]
        inks = [mix(ink, ink.mean(0), 0.45) for ink in inks]
        hill = noise(u * 4 / scale, 0 * v, seed) * 0.7 - 0.5
        sky = mix(inks[0] * 0.5 + 0.5, inks[1], np.clip(0.5 + v / side[1] / 2, 0, 1))
        scene_ = np.where(v / side[1] < hill, inks[2] * 0.6, sky)
        scene_ = np.where(v / side[1] < hill * 0.6 - 0.4, inks[3] * 0.5, scene_)
        x, y = np.floor(u / scale * 5 / (1 + hashed(seed, 5))), np.floor(v / scale * 4)
        pick = np.floor(hashed(x, y, seed) * 4)
        blocks = np.select([pick == j for j in range(3)], [inks[j] for j in range(3)], inks[3])
        blob = np.floor(noise(u * 3 / scale, v * 3 / scale, seed) * 4)
        swirl = np.select([blob == j for j in range(3)], [inks[j] for j in range(3)], inks[4])
        return np.select([style == 0, style == 1], [scene_, blocks], swirl)
    if kind == "outdoors":
        azimuth = np.arctan2(q.direction[1], q.direction[0])
        rise = q.direction[2] / np.hypot(q.direction[0], q.direction[1])
        sky = mix(b, a, np.clip(rise * 1.6 + 0.25, 0, 1))
        cloud = np.clip(noise(azimuth * 5, rise * 9, seed) * 2.4 - 1.3, 0, 1) * np.clip(rise * 4, 0, 1)
        sky = mix(sky, np.maximum(b, a.max(0)) * 1.1, cloud * 0.8)
        tree = 0.02 + 0.22 * noise(azimuth * 7, 0 * rise, seed) * hashed(seed, 1)
        leaves = np.array([[0.05], [0.10], [0.03]]) * (0.5 + noise(azimuth * 60, rise * 60, seed)) * b.mean(0)
        grass = np.array([[0.13], [0.20], [0.06]]) * (0.7 + 0.6 * noise(azimuth * 9, rise * 30, seed)) * b.mean(0)
        return np.where(rise > tree, sky, np.where(rise > -0.03, leaves, grass))
    if kind == "screen":
        shine = np.clip(0.5 + (u / side[0] + v / side[1]) / 4, 0, 1) ** 3
        return np.where(edge < 0.012, 0.012, mix(a, b, 0.35 * shine))
    if kind == "leaves":
        return mix(a, b, noise(q.local[0] * 30, q.local[1] * 30 + q.local[2] * 40, seed))
    return a * (0.97 + 0.06 * noise(u * 6, v * 6, seed))


class Palette:
    """Draws the colours and materials of one room."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.main_wood = self.wood()
        self.cloth_hue = rng.random()

    def pick(self, options: Iterable[Colour]) -> Colour:
        """One of the colours, a little off."""
        options = list(options)
        return self.vary(options[self.rng.integers(len(options))])

    def vary(self, colour: Colour, by: float = 0.04) -> Colour:
        """A neighbouring colour."""
        return tuple(np.clip(np.array(colour) * self.rng.normal(1, by) + self.rng.normal(0, by / 3, 3), 0, 1))

    def hue(self, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None) -> Colour:
        """A colour with saturation and value from the given ranges."""
        hue = self.rng.random() if hue is None else hue
        wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        s, v = self.rng.uniform(*saturation), self.rng.uniform(*value)
        return tuple(v * (1 - s + s * wheel))

    def seeded(self, kind: str, colour: Colour, second: Colour, scale: float = 0.1, **more: float) -> Material:
        """A material with a random seed."""
        return Material(kind, colour, second, scale, seed=int(self.rng.integers(1000)), **more)

    def wood(self) -> Material:
        """Some wood, sometimes painted."""
        if self.rng.random() < 0.3:
            paint = self.pick(WHITES)
            return self.seeded("wood", paint, self.vary(paint, 0.01))
        tone = self.pick(WOODS)
        return self.seeded("wood", tone, shaded(tone, 0.72))

    def house_wood(self) -> Material:
        """Mostly the wood of the other furniture in the room."""
        return self.main_wood if self.rng.random() < 0.6 else self.wood()

    def cloth(
        self, saturation: tuple[float, float] = (0.05, 0.5), value: tuple[float, float] = (0.3, 0.85)
    ) -> Material:
        """Plain fabric, often near the room's own hue."""
        near = (self.cloth_hue + self.rng.normal(0, 0.04)) % 1 if self.rng.random() < 0.6 else None
        colour = self.hue(saturation, value, near)
        return self.seeded("fabric", colour, shaded(colour, 0.85))

    def pattern(self) -> Material:
        """Fabric with a pattern, or plain."""
        kind = self.rng.choice(["stripes", "plaid", "fabric"], p=[0.3, 0.25, 0.45])
        one = self.hue((0.1, 0.65), (0.4, 0.9))
        two = self.pick(WHITES) if kind != "fabric" else shaded(one, 0.9)
        return self.seeded(str(kind), one, two, self.rng.uniform(0.06, 0.2))
