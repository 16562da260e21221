"""How surfaces look: materials, drawn at random by a `Palette`, and the linear colors of their textures.

A new texture is a function of a `Patch` and a row of TEXTURES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import cv2
import numpy as np

Color = tuple[float, float, float]  # sRGB, 0..1
WOODS = [(0.74, 0.57, 0.38), (0.45, 0.30, 0.19), (0.83, 0.68, 0.47), (0.56, 0.32, 0.20), (0.30, 0.22, 0.17)]
WHITES = [(0.92, 0.91, 0.88), (0.86, 0.85, 0.82), (0.70, 0.69, 0.67)]
PAINTS = [(0.93, 0.92, 0.89), (0.93, 0.89, 0.80), (0.83, 0.83, 0.82), (0.76, 0.83, 0.88), (0.78, 0.84, 0.75)]
PAINTS += [(0.92, 0.86, 0.66), (0.86, 0.72, 0.64), (0.70, 0.76, 0.80), (0.87, 0.80, 0.72)]


@dataclass(frozen=True)
class Material:
    """How a surface looks: a texture by name, two colors, its period [m], emitted light, a seed."""

    kind: str = "plain"
    color: Color = (0.8, 0.8, 0.8)
    second: Color = (0.6, 0.6, 0.6)
    scale: float = 0.1
    glow: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TEXTURES:
            raise ValueError(f"no texture is called {self.kind!r}; there are: {', '.join(TEXTURES)}")


@dataclass
class Texel:
    """Visible points, (n,) or (3, n) each, in metres."""

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


def shaded(color: Color, factor: float) -> Color:
    """A darker shade of a color."""
    return tuple(factor * np.array(color))


@lru_cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Tileable noise (512, 512) of 64 x 64 cells, values 0..1; and 4096 random numbers 0..1 for `hashed`."""
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
    """Smooth noise 0..1 with about one bump per unit of u and v."""
    table = _tables()[0].ravel()
    u, v = np.broadcast_arrays((u + 17.3 * seed) * 8, (v + 5.7 * seed) * 8)
    col, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = (u - col).astype(np.float32), (v - row).astype(np.float32)
    left, right, top, bottom = col & 511, (col + 1) & 511, (row & 511) * 512, ((row + 1) & 511) * 512
    upper = mix(table[top + left], table[top + right], fu)
    lower = mix(table[bottom + left], table[bottom + right], fu)
    return mix(upper, lower, fv)


def hashed(*integers: np.ndarray | float) -> np.ndarray:
    """Hash: random numbers 0..1 that depend on the integer parts alone."""
    mixed = sum(np.asarray(i).astype(np.int64) * k for i, k in zip(integers, (73, 1789, 389, 2969), strict=False))
    return _tables()[1][(mixed ^ (mixed >> 5)) & 4095]


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """a where t = 0, b where t = 1."""
    return a + (b - a) * t


def _period(x: np.ndarray, length: np.ndarray | float) -> np.ndarray:
    """Signed distance to the nearest multiple of `length`."""
    return x - np.round(x / length) * length


@dataclass
class Patch:
    """Points (n,) of one texture on flat faces, with the settings of their materials.

    a, b: the two linear colors (3, n). u, v: place on the face [m]; side: half size of the face (2, n) [m].
    """

    u: np.ndarray
    v: np.ndarray
    side: np.ndarray
    a: np.ndarray
    b: np.ndarray
    scale: np.ndarray
    seed: np.ndarray
    texel: Texel

    @property
    def edge(self) -> np.ndarray:
        """Distance to the nearest edge of the face [m]."""
        return np.minimum(self.side[0] - np.abs(self.u), self.side[1] - np.abs(self.v))

    def detail(self, size: float) -> np.ndarray:
        """How much of a detail of `size` [m] shows: 1 near, falling to 0 where a pixel spans more than it."""
        return np.clip(size / (2 * self.texel.pixel), 0, 1)

    def noise(self, per_u: float, per_v: float) -> np.ndarray:
        """Smooth noise 0..1; per_u and per_v: bumps a metre along u and v."""
        return noise(self.u * per_u, self.v * per_v, self.seed)

    def line(self, distance: np.ndarray, width: float) -> np.ndarray:
        """How much of a pixel a line covers, given the distance to its middle [m]."""
        pixel = self.texel.pixel
        return np.clip((width / 2 - np.abs(distance)) / pixel + 0.5, 0, 1) * np.minimum(1, width / pixel)

    def band(self, x: np.ndarray, width: float) -> np.ndarray:
        """1 on bands of half width `width` periods around the multiples of the scale, smooth over a pixel."""
        return np.clip((self.scale * width - np.abs(_period(x, self.scale))) / self.texel.pixel + 0.5, 0, 1)


def plain(p: Patch) -> np.ndarray:
    return p.a * (0.97 + 0.06 * p.noise(6, 6))


def wood(p: Patch) -> np.ndarray:
    """Grain along the longer side; worn edges."""
    along, across = np.where(p.side[1] > p.side[0], np.stack([p.v, p.u]), np.stack([p.u, p.v]))
    wave = 2 * noise(along * 1.5, across * 4, p.seed)
    grain = noise(along * 2.5, across * 28 + wave, p.seed + hashed(p.seed, p.texel.axis))
    worn = np.clip(p.edge / 0.006, 0, 1)
    return mix(p.a, p.b, 0.5 + (grain - 0.5) * p.detail(0.03)) * (0.82 + 0.18 * mix(1.0, worn, p.detail(0.012)))


def planks(p: Patch) -> np.ndarray:
    """Floor boards with gaps, each of its own tone."""
    row = np.floor(p.v / p.scale)
    length = p.scale * 9
    shift = p.u + length * hashed(row, p.seed)
    tone = 0.82 + 0.36 * hashed(row, np.floor(shift / length), p.seed)
    grain = noise(p.u * 2 + 9 * hashed(row, p.seed), p.v * 35, p.seed)
    gap = np.maximum(p.line(_period(p.v, p.scale), 0.004), p.line(_period(shift, length), 0.004))
    return mix(p.a, p.b, 0.5 + (grain - 0.5) * p.detail(0.03)) * tone * (1 - 0.65 * gap)


def tiles(p: Patch) -> np.ndarray:
    """Marble tiles with grout."""
    tone = 0.92 + 0.16 * hashed(np.floor(p.u / p.scale), np.floor(p.v / p.scale), p.seed)
    marble = 0.9 + 0.2 * p.noise(5, 5)
    grout = np.maximum(p.line(_period(p.u, p.scale), 0.008), p.line(_period(p.v, p.scale), 0.008))
    return mix(p.a * tone * marble, p.b, grout)


def woven(p: Patch, threads: float) -> np.ndarray:
    """Cloth. threads: threads a metre."""
    weave = (p.noise(threads, threads) - 0.5) * p.detail(1.5 / threads)
    return mix(p.a, p.b, 0.5 * p.noise(4, 4)) * (1 + 0.4 * weave)


def stripes(p: Patch) -> np.ndarray:
    return mix(p.a, p.b, mix(0.5, p.band(p.u, 0.25), p.detail(0.03))) * (0.95 + 0.1 * p.noise(40, 40))


def plaid(p: Patch) -> np.ndarray:
    return mix(p.a, p.b, 0.5 * (p.band(p.u, 0.2) + p.band(p.v, 0.2))) * (0.92 + 0.16 * p.noise(60, 60))


def rug(p: Patch) -> np.ndarray:
    """A border, and diamonds inside it in most rugs."""
    border = np.abs(p.edge - 0.14) < 0.05
    diamond = np.abs(_period(p.u, p.scale)) + np.abs(_period(p.v, p.scale))
    figure = (np.abs(diamond - p.scale / 4) < p.scale / 8) & (p.edge > 0.24) & (hashed(p.seed) > 0.35)
    pile = 1 + 0.5 * (p.noise(70, 70) - 0.5) * p.detail(0.03)
    return mix(p.a, p.b, border | figure) * pile


def curtain(p: Patch) -> np.ndarray:
    """Vertical folds."""
    fold = np.sin(2 * np.pi * p.u / p.scale + 3 * p.noise(3, 0.4))
    return mix(p.a, p.b, 0.15 * p.noise(3, 1)) * (0.78 + 0.22 * fold)


def panels(p: Patch) -> np.ndarray:
    """A door leaf: raised panels, lit from above."""
    inner = np.stack([np.abs(np.abs(p.u) - 0.5 * p.side[0]) - 0.33 * p.side[0], np.abs(_period(p.v + 0.02, p.scale))])
    inner[1] -= 0.36 * p.scale
    frame = np.maximum(inner[0], inner[1])
    light = np.where(p.v - np.floor(p.v / p.scale) * p.scale > p.scale / 2, 1, -1)
    groove = p.line(frame, 0.018)
    grain = p.noise(25, 2) - 0.5
    return mix(p.a, p.b, 0.4 + 0.5 * grain * p.detail(0.03)) * (1 - groove * (0.28 + 0.12 * light))


def books(p: Patch) -> np.ndarray:
    """A row of spines, each of its own color and with a band; paper on top."""
    place = p.u / p.scale + 0.35 * np.sin(3.1 * np.floor(p.u / p.scale) + p.seed)
    book = np.floor(place)
    near = np.minimum(place - book, book + 1 - place) * p.scale
    hue = np.stack(
        [0.35 + 0.65 * hashed(book, p.seed, 1), 0.3 + 0.5 * hashed(book, p.seed, 2), 0.8 * hashed(book, p.seed, 3)]
    )
    value = 0.08 + 0.75 * hashed(book, p.seed, 7) ** 1.5
    spine = value * mix(1.0, hue / hue.max(0), 0.35 + 0.6 * hashed(book, p.seed, 9))
    band = np.abs(p.v / p.side[1] - 0.5 + hashed(book, p.seed, 11)) < 0.12
    spine = mix(spine, mix(0.7, spine[::-1], hashed(book, p.seed, 13)), band * 0.7)
    return np.where(p.texel.axis == 2, 0.6, spine * (1 - 0.6 * p.line(near, 0.006)))


def picture(p: Patch) -> np.ndarray:
    """One of three kinds of painting: hills, rectangles, swirls."""
    u, v, side, scale, seed = p.u, p.v, p.side, p.scale, p.seed
    style = np.floor(hashed(seed, 3) * 3)
    inks = [0.12 + 0.75 * np.stack([hashed(seed, j, c) for c in range(3)]) ** 1.5 for j in range(5)]
    inks = [mix(ink, ink.mean(0), 0.45) for ink in inks]
    hill = noise(u * 4 / scale, 0 * v, seed) * 0.7 - 0.5
    sky = mix(inks[0] * 0.5 + 0.5, inks[1], np.clip(0.5 + v / side[1] / 2, 0, 1))
    hills = np.where(v / side[1] < hill, inks[2] * 0.6, sky)
    hills = np.where(v / side[1] < hill * 0.6 - 0.4, inks[3] * 0.5, hills)
    x, y = np.floor(u / scale * 5 / (1 + hashed(seed, 5))), np.floor(v / scale * 4)
    pick = np.floor(hashed(x, y, seed) * 4)
    blocks = np.select([pick == j for j in range(3)], [inks[j] for j in range(3)], inks[3])
    blob = np.floor(noise(u * 3 / scale, v * 3 / scale, seed) * 4)
    swirl = np.select([blob == j for j in range(3)], [inks[j] for j in range(3)], inks[4])
    return np.select([style == 0, style == 1], [hills, blocks], swirl)


def outdoors(p: Patch) -> np.ndarray:
    """The view from a window by the direction of the ray: sky with clouds, trees, grass."""
    a, b, seed, direction = p.a, p.b, p.seed, p.texel.direction
    azimuth = np.arctan2(direction[1], direction[0])
    rise = direction[2] / np.hypot(direction[0], direction[1])
    sky = mix(b, a, np.clip(rise * 1.6 + 0.25, 0, 1))
    cloud = np.clip(noise(azimuth * 5, rise * 9, seed) * 2.4 - 1.3, 0, 1) * np.clip(rise * 4, 0, 1)
    sky = mix(sky, np.maximum(b, a.max(0)) * 1.1, cloud * 0.8)
    tree = 0.02 + 0.22 * noise(azimuth * 7, 0 * rise, seed) * hashed(seed, 1)
    foliage = np.array([[0.05], [0.10], [0.03]]) * (0.5 + noise(azimuth * 60, rise * 60, seed)) * b.mean(0)
    grass = np.array([[0.13], [0.20], [0.06]]) * (0.7 + 0.6 * noise(azimuth * 9, rise * 30, seed)) * b.mean(0)
    return np.where(rise > tree, sky, np.where(rise > -0.03, foliage, grass))


def screen(p: Patch) -> np.ndarray:
    """A dark screen with a shine across it."""
    shine = np.clip(0.5 + (p.u / p.side[0] + p.v / p.side[1]) / 4, 0, 1) ** 3
    return np.where(p.edge < 0.012, 0.012, mix(p.a, p.b, 0.35 * shine))


def leaves(p: Patch) -> np.ndarray:
    local = p.texel.local
    return mix(p.a, p.b, noise(local[0] * 30, local[1] * 30 + local[2] * 40, p.seed))


# Material.kind -> linear color (3, n) of a patch.
TEXTURES: dict[str, Callable[[Patch], np.ndarray]] = {
    "plain": plain,
    "wood": wood,
    "planks": planks,
    "tiles": tiles,
    "fabric": partial(woven, threads=90),
    "carpet": partial(woven, threads=60),
    "stripes": stripes,
    "plaid": plaid,
    "rug": rug,
    "curtain": curtain,
    "panels": panels,
    "books": books,
    "picture": picture,
    "outdoors": outdoors,
    "screen": screen,
    "leaves": leaves,
}


class Palette:
    """Draws the colors and materials of one room."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.main_wood = self.wood()
        self.cloth_hue = rng.random()

    def pick(self, options: Iterable[Color]) -> Color:
        """One of the colors, a little off."""
        options = list(options)
        return self.vary(options[self.rng.integers(len(options))])

    def vary(self, color: Color, by: float = 0.04) -> Color:
        """A similar color: brightness changed by about the share `by`."""
        return tuple(np.clip(np.array(color) * self.rng.normal(1, by) + self.rng.normal(0, by / 3, 3), 0, 1))

    def hue(self, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None) -> Color:
        """A color with saturation and value from the given ranges."""
        hue = self.rng.random() if hue is None else hue
        wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        s, v = self.rng.uniform(*saturation), self.rng.uniform(*value)
        return tuple(v * (1 - s + s * wheel))

    def seeded(self, kind: str, color: Color, second: Color, scale: float = 0.1, **more: float) -> Material:
        """A material with a random seed."""
        return Material(kind, color, second, scale, seed=int(self.rng.integers(1000)), **more)

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
        color = self.hue(saturation, value, near)
        return self.seeded("fabric", color, shaded(color, 0.85))

    def pattern(self) -> Material:
        """Fabric with a pattern, or plain."""
        kind = self.rng.choice(["stripes", "plaid", "fabric"], p=[0.3, 0.25, 0.45])
        one = self.hue((0.1, 0.65), (0.4, 0.9))
        two = self.pick(WHITES) if kind != "fabric" else shaded(one, 0.9)
        return self.seeded(str(kind), one, two, self.rng.uniform(0.06, 0.2))
