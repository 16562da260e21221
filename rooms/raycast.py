"""A ray caster in numpy: which of the boxes, cones and cushions in a rectangular room each ray hits, and where.

World frame: x and y along the walls, z up, metres. Camera frame: x right, y down, z forward. A ray direction
has camera z = 1, so the distance along it is the depth. There is no BLAS call in the casting or the shading:
the bytes do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rooms.textures import Material, linear

# The first primitives of a scene are the room: walls y=0, x=W, y=L, x=0 (counterclockwise), floor, ceiling.
SIDES = ((1, 0), (0, 1), (1, 1), (0, 0), (2, 0), (2, 1))  # axis; 0 at its start, 1 at its end
SHELL = len(SIDES)


@dataclass
class Primitive:
    """A convex solid: half sizes around a center, `rotation` takes its own axes to the world's.

    A cone has radii half[0] below and half[0] * taper above; a cushion is a box cut by a wider ellipsoid.
    """

    shape: str
    center: np.ndarray
    half: np.ndarray
    rotation: np.ndarray
    label: int
    material: Material
    taper: float = 1.0
    bulge: tuple[float, float, float] = (1.3, 1.3, 1.0)
    shadow: bool = True
    thing: int = 0  # which thing of its item it is a part of; casting rays does not ask


@dataclass
class Light:
    """A "lamp" of radius `spread`, a "window" with half sides `across` and `up`, or the "sun" through it."""

    kind: str
    position: np.ndarray
    color: np.ndarray
    spread: float = 0.0
    across: np.ndarray | None = None
    up: np.ndarray | None = None
    towards: np.ndarray | None = None  # a window's normal into the room, or the direction of the sunlight

    def moved(self, rotation: np.ndarray, shift: np.ndarray) -> Light:
        """The light after a rotation (3, 3) about the origin and a shift (3,): a new object."""
        turned = {
            name: rotation @ vector
            for name in ("across", "up", "towards")
            if (vector := getattr(self, name)) is not None
        }
        return replace(self, position=rotation @ self.position + shift, **turned)


@dataclass
class Scene:
    """A room [m], its primitives (the shell first), groups of them for culling, lights, ambient colors."""

    size: np.ndarray
    primitives: list[Primitive]
    groups: list[list[int]]
    lights: list[Light]
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.25))
    bounce: np.ndarray = field(default_factory=lambda: np.full(3, 0.2))

    def __post_init__(self) -> None:
        parts = self.primitives
        self.center = np.array([p.center for p in parts], np.float32)
        self.half = np.array([p.half for p in parts], np.float32)
        self.rotation = np.array([p.rotation for p in parts], np.float32)
        self.label = np.array([p.label for p in parts], np.uint8)
        self.shape = np.array([p.shape for p in parts])
        self.kind = np.array([p.material.kind for p in parts])
        self.bulge = np.array([p.bulge for p in parts], np.float32)
        self.taper = np.array([p.taper for p in parts], np.float32)
        self.colors = linear(np.array([(p.material.color, p.material.second) for p in parts]))
        rest = [(p.material.scale, p.material.glow, p.material.seed) for p in parts]
        self.scale, self.glow, self.seed = np.array(rest, np.float32).T
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
        extent = self.half * np.where(self.shape == "cone", np.maximum(1, self.taper), 1)[:, None] ** [1, 1, 0]
        self.corners = self.center[:, None] + np.einsum("pij,pcj->pci", self.rotation, signs * extent[:, None])
        self.spheres = []
        for group in self.groups:
            low, high = self.corners[group].min((0, 1)), self.corners[group].max((0, 1))
            self.spheres.append(((low + high) / 2, np.linalg.norm(high - low) / 2))


@dataclass(frozen=True)
class Pinhole:
    """A pinhole camera: world position, rotation (columns: right, down, forward), intrinsics in pixels."""

    position: np.ndarray
    rotation: np.ndarray
    width: int
    height: int
    focal_px: float

    def directions(self, samples: int = 1) -> np.ndarray:
        """World directions (3, H * samples, W * samples) through a regular grid within every pixel."""
        u = (np.arange(self.width * samples) + 0.5) / samples - self.width / 2
        v = (np.arange(self.height * samples) + 0.5) / samples - self.height / 2
        x, y = np.meshgrid(u / self.focal_px, v / self.focal_px)
        return rotate(self.rotation, np.stack([x, y, np.ones_like(x)])).astype(np.float32)


def rotate(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) times vectors (3, ...). It leaves out terms with a zero: most furniture is turned about z only."""
    rows = []
    for row in matrix:
        terms = [vector[j] if row[j] == 1 else vector[j] * row[j] for j in range(3) if row[j] != 0]
        rows.append(sum(terms[1:], terms[0]))
    return np.stack(rows)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot product of (3, ...) and (3, ...)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def column(vector: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A 3-vector shaped to broadcast against (3, ...)."""
    return np.asarray(vector, np.float32).reshape(3, *[1] * (like.ndim - 1))


def intersect(p: Primitive, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (near, far) at which rays (3, ...) enter and leave a primitive; near >= far is a miss."""
    to_own_axes = p.rotation.T.astype(np.float32)
    o = rotate(to_own_axes, origin - column(p.center, origin))
    d = rotate(to_own_axes, direction) + np.float32(1e-12)  # never exactly zero
    inverse = 1 / d
    middle, reach = o * inverse, np.abs(inverse) * column(p.half, d)
    if p.shape == "cone":
        near, far = _intersect_mantle(p, o, d)
        return np.maximum(near, -middle[2] - reach[2]), np.minimum(far, reach[2] - middle[2])
    near, far = -middle - reach, reach - middle
    near = np.maximum(np.maximum(near[0], near[1]), near[2])
    far = np.minimum(np.minimum(far[0], far[1]), far[2])
    if p.shape == "cushion":
        first, last = _intersect_ellipsoid(p, o, d)
        return np.maximum(near, first), np.minimum(far, last)
    return near, far


def _intersect_mantle(p: Primitive, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(near, far) of the endless mantle of a cone, for rays from `o` along `d` in the cone's own axes."""
    slope = (p.taper - 1) * p.half[0] / (2 * p.half[2])
    radius = (p.taper + 1) * p.half[0] / 2 + slope * o[2]
    a = d[0] ** 2 + d[1] ** 2 - slope**2 * d[2] ** 2
    b = o[0] * d[0] + o[1] * d[1] - slope * d[2] * radius
    root = np.sqrt(np.maximum(b * b - a * (o[0] ** 2 + o[1] ** 2 - radius**2), 0))
    one, two = (-b - root) / a, (-b + root) / a
    low, high = np.minimum(one, two), np.maximum(one, two)
    # steeper than the side (a < 0): inside before the first root or after the second
    rising = slope * d[2] > 0
    near = np.where(a > 0, low, np.where(rising, high, -np.inf))
    return near, np.where(a > 0, high, np.where(rising, np.inf, low))


def _intersect_ellipsoid(p: Primitive, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(near, far) of the ellipsoid that cuts a cushion, for rays from `o` along `d` in the cushion's own axes."""
    axes = column(p.half * p.bulge, d)
    o, d = o / axes, d / axes
    a, b = dot(d, d), dot(o, d)
    root = b * b - a * (dot(o, o) - 1)
    miss, root = root < 0, np.sqrt(np.maximum(root, 0))
    return np.where(miss, np.inf, (-b - root) / a), (-b + root) / a


def _rectangles(scene: Scene, camera: Pinhole, samples: int) -> np.ndarray:
    """Bounding rectangles of the primitives on the grid of samples: (P, 4) rows from, to, columns from, to."""
    near = 0.02
    offset = scene.corners - camera.position.astype(np.float32)
    view = np.einsum("pcj,ji->pci", offset, camera.rotation.astype(np.float32))
    # the twelve edges of the bounding box, cut at the near plane
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (0, 4), (1, 5), (2, 6), (3, 7)]
    first, last = view[:, [a for a, _ in pairs]], view[:, [b for _, b in pairs]]
    step = np.where(first[..., 2] == last[..., 2], 1, last[..., 2] - first[..., 2])
    cut = first + (last - first) * np.clip((near - first[..., 2]) / step, 0, 1)[..., None]
    points = np.concatenate([view, cut], 1)
    shown = points[..., 2] >= near * 0.999
    xy = points[..., :2] / np.maximum(points[..., 2:], near * 0.5) * camera.focal_px
    low = np.where(shown[..., None], xy, np.inf).min(1)
    high = np.where(shown[..., None], xy, -np.inf).max(1)
    size = np.array([camera.width, camera.height])
    limits = size * samples
    low = np.clip(np.floor((low + size / 2) * samples) - 1, 0, limits)
    high = np.clip(np.ceil((high + size / 2) * samples) + 1, 0, limits)
    return np.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], 1).astype(int)


def exits(scene: Scene, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distances (3, ...) from inside the room to its walls along x, y and z; infinite for a parallel ray."""
    wall = np.where(direction > 0, column(scene.size, direction), 0)
    level = direction == 0
    return np.where(level, np.float32(np.inf), (wall - origin) / np.where(level, np.float32(1), direction))


def cast(scene: Scene, camera: Pinhole, samples: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First hit of every ray: depth [m] (H, W) float32, primitive (H, W) int32, directions (3, H, W)."""
    directions = camera.directions(samples)
    origin = camera.position.astype(np.float32).reshape(3, 1, 1)
    to_walls = exits(scene, origin, directions)
    depth, axis = to_walls.min(0), to_walls.argmin(0)
    outward = np.take_along_axis(directions, axis[None], 0)[0] > 0
    number = np.array([[SIDES.index((axis, far)) for far in (0, 1)] for axis in range(3)], np.int32)
    seen = number[axis, outward.astype(int)]
    rectangles = _rectangles(scene, camera, samples)
    for k in range(SHELL, len(scene.primitives)):
        top, bottom, left, right = rectangles[k]
        if top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        near, far = intersect(scene.primitives[k], origin, directions[:, top:bottom, left:right])
        hit = (near < far) & (near > 1e-3) & (near < depth[window])
        np.copyto(depth[window], near, where=hit)
        np.copyto(seen[window], k, where=hit)
    return depth, seen, directions


def first_hit(scene: Scene, start: np.ndarray, direction: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Distance (n,) to the furniture along unit rays (3, n), `limit` (n,) where nothing is nearer."""
    nearest = limit.astype(np.float32).copy()
    for group, (center, radius) in zip(scene.groups, scene.spheres, strict=True):
        solid = [k for k in group if scene.primitives[k].shadow]
        if not solid:
            continue
        offset = column(center, start) - start
        along = dot(offset, direction)
        inside = (dot(offset, offset) - along * along < radius**2) & (along > -radius) & (along < nearest + radius)
        index = np.flatnonzero(inside)
        if not index.size:
            continue
        o, d, t = start[:, index], direction[:, index], nearest[index]
        for k in solid:
            near, far = intersect(scene.primitives[k], o, d)
            np.copyto(t, near, where=(near < far) & (near > 1e-4) & (near < t))
        nearest[index] = t
    return nearest
