"""A ray caster in numpy: boxes, cones and cushions in a rectangular room -> colour, labels, depth, normals.

World frame: x and y along the walls, z up, metres. Camera frame: x right, y down, z forward. A ray direction
has camera z = 1, so the distance along it is the depth. There is no BLAS call in the casting or the shading:
the bytes do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rooms.textures import Material, Texel, linear, mix, texture

# The first primitives of a scene are the room: walls y=0, x=W, y=L, x=0 (counterclockwise), floor, ceiling.
SIDES = ((1, 0), (0, 1), (1, 1), (0, 0), (2, 0), (2, 1))  # axis; 0 at its start, 1 at its end
SHELL = len(SIDES)


@dataclass
class Primitive:
    """A convex solid: half sizes around a centre, `rotation` takes its own axes to the world's.

    A cone has radii half[0] below and half[0] * taper above; a cushion is a box cut by a wider ellipsoid.
    """

    shape: str
    centre: np.ndarray
    half: np.ndarray
    rotation: np.ndarray
    label: int
    material: Material
    taper: float = 1.0
    bulge: tuple[float, float, float] = (1.3, 1.3, 1.0)
    shadow: bool = True


@dataclass
class Light:
    """A "lamp" of radius `spread`, a "window" with half sides `across` and `up`, or the "sun" through it."""

    kind: str
    position: np.ndarray
    colour: np.ndarray
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
    """A room [m], its primitives (the shell first), groups of them for culling, lights, ambient colours."""

    size: np.ndarray
    primitives: list[Primitive]
    groups: list[list[int]]
    lights: list[Light]
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.25))
    bounce: np.ndarray = field(default_factory=lambda: np.full(3, 0.2))

    def __post_init__(self) -> None:
        parts = self.primitives
        self.centre = np.array([p.centre for p in parts], np.float32)
        self.half = np.array([p.half for p in parts], np.float32)
        self.rotation = np.array([p.rotation for p in parts], np.float32)
        self.label = np.array([p.label for p in parts], np.uint8)
        self.shape = np.array([p.shape for p in parts])
        self.kind = np.array([p.material.kind for p in parts])
        self.bulge = np.array([p.bulge for p in parts], np.float32)
        self.taper = np.array([p.taper for p in parts], np.float32)
        self.colours = linear(np.array([(p.material.colour, p.material.second) for p in parts]))
        rest = [(p.material.scale, p.material.glow, p.material.seed) for p in parts]
        self.scale, self.glow, self.seed = np.array(rest, np.float32).T
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
        extent = self.half * np.where(self.shape == "cone", np.maximum(1, self.taper), 1)[:, None] ** [1, 1, 0]
        self.corners = self.centre[:, None] + np.einsum("pij,pcj->pci", self.rotation, signs * extent[:, None])
        self.spheres = []
        for group in self.groups:
            low, high = self.corners[group].min((0, 1)), self.corners[group].max((0, 1))
            self.spheres.append(((low + high) / 2, np.linalg.norm(high - low) / 2))


@dataclass(frozen=True)
class Camera:
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
    """(3, 3) times (3, ...), without a term for a zero: most furniture is turned about z only."""
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
    turn = p.rotation.T.astype(np.float32)
    o = rotate(turn, origin - column(p.centre, origin))
    d = rotate(turn, direction) + np.float32(1e-12)  # never exactly zero
    inverse = 1 / d
    middle, reach = o * inverse, np.abs(inverse) * column(p.half, d)
    if p.shape == "cone":
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
        far = np.where(a > 0, high, np.where(rising, np.inf, low))
        return np.maximum(near, -middle[2] - reach[2]), np.minimum(far, reach[2] - middle[2])
    near, far = -middle - reach, reach - middle
    near = np.maximum(np.maximum(near[0], near[1]), near[2])
    far = np.minimum(np.minimum(far[0], far[1]), far[2])
    if p.shape == "cushion":
        axes = column(p.half * p.bulge, d)
        o, d = o / axes, d / axes
        a, b = dot(d, d), dot(o, d)
        root = b * b - a * (dot(o, o) - 1)
        miss, root = root < 0, np.sqrt(np.maximum(root, 0))
        near = np.where(miss, np.inf, np.maximum(near, (-b - root) / a))
        far = np.minimum(far, (-b + root) / a)
    return near, far


def _rectangles(scene: Scene, camera: Camera, samples: int) -> np.ndarray:
    """Where primitives may show on the grid of `samples`: (P, 4) rows from, to, columns from, to."""
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


def _exits(scene: Scene, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distances (3, ...) from inside the room to its walls along x, y and z; infinite for a parallel ray."""
    wall = np.where(direction > 0, column(scene.size, direction), 0)
    level = direction == 0
    return np.where(level, np.float32(np.inf), (wall - origin) / np.where(level, np.float32(1), direction))


def cast(scene: Scene, camera: Camera, samples: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What every ray sees first: depth [m] (H, W) float32, primitive (H, W) int32, directions (3, H, W)."""
    directions = camera.directions(samples)
    origin = camera.position.astype(np.float32).reshape(3, 1, 1)
    exits = _exits(scene, origin, directions)
    depth = exits.min(0)
    axis = exits.argmin(0)
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
    for group, (centre, radius) in zip(scene.groups, scene.spheres, strict=True):
        solid = [k for k in group if scene.primitives[k].shadow]
        if not solid:
            continue
        offset = column(centre, start) - start
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


def surface(scene: Scene, camera: Camera, directions: np.ndarray, depth: np.ndarray, ids: np.ndarray) -> Texel:
    """Points, normals (unit, towards the camera) and local coordinates of what rays (3, n) hit."""
    point = column(camera.position, directions) + directions * depth
    turn = scene.rotation.transpose(1, 2, 0)[:, :, ids]
    centre, half = scene.centre[ids].T, scene.half[ids].T
    local = sum(turn[j] * (point[j] - centre[j]) for j in range(3))
    view = sum(turn[j] * directions[j] for j in range(3))
    # a box: of the sides that face the camera, the one the point is nearest to
    room = ids < SHELL  # seen from within: the wall slabs are ordinary boxes outside the room
    gap = np.where(local * view < 0, np.abs(np.abs(local) - half), np.inf)
    axis = gap.argmin(0)
    axis = np.where(room, np.array([axis for axis, _ in SIDES])[np.minimum(ids, SHELL - 1)], axis)
    rows = np.arange(3)[:, None]
    normal = np.where(rows == axis, -np.sign(view), 0).astype(np.float32)
    cushion = scene.shape[ids] == "cushion"
    if cushion.any():
        axes = half * scene.bulge[ids].T
        rounded = cushion & (((local / axes) ** 2).sum(0) > 0.999)
        curved = local / axes**2
        normal = np.where(rounded, curved / np.maximum(np.sqrt(dot(curved, curved)), 1e-9), normal)
    cone = scene.shape[ids] == "cone"
    if cone.any():
        slope = (scene.taper[ids] - 1) * half[0] / (2 * half[2])
        radius = (scene.taper[ids] + 1) * half[0] / 2 + slope * local[2]
        across = np.hypot(local[0], local[1])
        side = np.abs(across - radius) < np.abs(np.abs(local[2]) - half[2])
        flat = np.stack([0 * slope, 0 * slope, -np.sign(view[2])])
        curved = np.stack([local[0], local[1], -slope * across])
        curved = np.where(side, curved / np.maximum(np.sqrt(dot(curved, curved)), 1e-9), flat)
        normal = np.where(cone, curved, normal)
    axis = np.abs(normal).argmax(0)
    normal = np.stack([dot(turn[i], normal) for i in range(3)])
    # rounding may turn a normal at a silhouette away by a hair
    length = np.sqrt(dot(directions, directions))
    facing = dot(normal, directions) / length
    normal = normal - np.maximum(facing + 1e-3, 0) * directions / length
    normal = (normal / np.sqrt(dot(normal, normal))).astype(np.float32)
    pixel = depth / camera.focal_px / np.maximum(-facing, 0.15)
    return Texel(ids, point, local, normal, axis, directions / length, pixel.astype(np.float32))


def albedo(scene: Scene, q: Texel) -> np.ndarray:
    """Linear colour (3, n) of the texels; what glows may exceed 1."""
    out = np.empty((3, q.ids.size), np.float32)
    kinds = scene.kind[q.ids]
    for kind in np.unique(scene.kind):
        index = np.flatnonzero(kinds == kind)
        if not index.size:
            continue
        ids, local, axis = q.ids[index], q.local[:, index], q.axis[index]
        half = scene.half[ids].T
        flat_u, flat_v = axis == 0, axis == 2
        uv = np.stack([np.where(flat_u, local[1], local[0]), np.where(flat_v, local[1], local[2])])
        side = np.stack([np.where(flat_u, half[1], half[0]), np.where(flat_v, half[1], half[2])])
        a, b = scene.colours[ids].transpose(1, 2, 0)
        part = Texel(ids, q.point[:, index], local, q.normal[:, index], axis, q.direction[:, index], q.pixel[index])
        out[:, index] = texture(kind, uv, side, a, b, scene.scale[ids], scene.seed[ids], part)
    return out


def illuminate(scene: Scene, q: Texel, pattern: np.ndarray) -> np.ndarray:
    """Light (3, n) falling on the texels: every pixel takes one of 16 samples (`pattern`) of each light."""
    lift = q.point + q.normal * np.float32(2e-3)
    first, second = (pattern // 4 + 0.5) / 4 * 2 - 1, (pattern % 4 + 0.5) / 4 * 2 - 1
    first, second = first.astype(np.float32), second.astype(np.float32)
    total = np.zeros_like(q.point)
    for light in scene.lights:
        here = column(light.position, lift)
        if light.kind == "sun":
            way = -light.towards / np.linalg.norm(light.towards)
            towards = np.broadcast_to(column(way, lift), lift.shape) + 0.006 * np.stack([first, second, -first])
            face = column(np.cross(light.across, light.up), lift)
            bottom = dot(face, towards)
            distance = dot(face, here - lift) / np.where(np.abs(bottom) < 1e-6, 1e-6, bottom)
            at = lift + towards * distance - here
            inside = (np.abs(dot(at, column(light.across, at))) < light.across @ light.across) & (
                np.abs(dot(at, column(light.up, at))) < light.up @ light.up
            )
            strength = np.maximum(dot(q.normal, towards), 0) * (inside & (distance > 0))
        else:
            if light.kind == "window":
                offset = column(light.across, lift) * first + column(light.up, lift) * second
            else:
                offset = light.spread * np.stack([first, second, first * second])
            towards = here + offset - lift
            square = dot(towards, towards)
            distance = np.sqrt(square)
            towards = towards / distance
            strength = np.maximum(dot(q.normal, towards), 0) / (square + 0.15)
            if light.kind == "window":
                area = 4 * np.linalg.norm(light.across) * np.linalg.norm(light.up)
                strength = strength * area * np.maximum(-dot(towards, column(light.towards, towards)), 0)
        index = np.flatnonzero(strength * light.colour.max() > 0.004)
        reach = distance[index] - 0.01
        lit = first_hit(scene, lift[:, index], towards[:, index], reach) >= reach
        total[:, index] += column(light.colour, total) * (strength[index] * lit)
    # ambient light from a hemisphere: one ray a pixel finds what is close and shuts it out
    sine = np.sqrt((pattern % 4 + 0.5) / 4)
    angle = (pattern // 4 + 0.25 + 0.5 * (pattern % 2)) * np.pi / 2
    helper = np.where(np.abs(q.normal[2]) > 0.9, np.array([[1], [0], [0]]), np.array([[0], [0], [1]]))
    tangent = np.stack([q.normal[i - 2] * helper[i - 1] - q.normal[i - 1] * helper[i - 2] for i in range(3)])
    tangent = tangent / np.sqrt(dot(tangent, tangent))
    other = np.stack([q.normal[i - 2] * tangent[i - 1] - q.normal[i - 1] * tangent[i - 2] for i in range(3)])
    way = tangent * (sine * np.cos(angle)) + other * (sine * np.sin(angle)) + q.normal * np.sqrt(1 - sine**2)
    way = way.astype(np.float32)
    limit = np.clip(_exits(scene, lift, way).min(0), 0, 1.2)
    open_ = 0.25 + 0.75 * np.sqrt(first_hit(scene, lift, way, limit) / 1.2)
    tint = mix(column(scene.bounce, way), column(scene.ambient, way), 0.5 + 0.5 * q.normal[2])
    return total + tint * open_


def _smooth(light: np.ndarray, seen: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Mean of `light` (3, H, W) over 4 x 4 pixels, which hold all 16 samples, without crossing surfaces."""
    for axis in (2, 1):
        size = light.shape[axis]
        total, weight = np.zeros_like(light), np.zeros(seen.shape, np.float32)
        for step in (-2, -1, 0, 1):
            index = np.clip(np.arange(size) + step, 0, size - 1)
            same = (seen.take(index, axis - 1) == seen) & (dot(normal.take(index, axis), normal) > 0.8)
            total += light.take(index, axis) * same
            weight += same
        light = total / weight
    return light


def render(scene: Scene, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Linear colour (3, H, W), labels (H, W) uint8, depth [m] (H, W), camera-frame normals (3, H, W)."""
    depth, seen, directions = cast(scene, camera)
    shape = depth.shape
    flat = surface(scene, camera, directions.reshape(3, -1), depth.ravel(), seen.ravel())
    normal = flat.normal.reshape(3, *shape)
    order = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    rows, cols = np.indices(shape)
    light = illuminate(scene, flat, order[rows % 4, cols % 4].ravel()).reshape(3, *shape)
    light = _smooth(light, seen, normal)
    colour = albedo(scene, flat).reshape(3, *shape)
    radiance = colour * (light + scene.glow[seen])

    # where neighbours differ, four rays a pixel take the place of one; they borrow the light around them
    change = np.zeros(shape, bool)
    grey = colour.mean(0)
    for axis in (0, 1):
        here = [slice(None)] * 2
        here[axis], there = slice(1, None), [slice(None)] * 2
        there[axis] = slice(None, -1)
        here, there = tuple(here), tuple(there)
        jump = (seen[here] != seen[there]) | (np.abs(grey[here] - grey[there]) > 0.04 + 0.1 * grey[here])
        jump |= dot(normal[(slice(None), *here)], normal[(slice(None), *there)]) < 0.97
        change[here] |= jump
        change[there] |= jump
    fine_depth, fine_seen, fine_directions = cast(scene, camera, 2)
    rows, cols = np.nonzero(change.repeat(2, 0).repeat(2, 1))
    sub = surface(scene, camera, fine_directions[:, rows, cols], fine_depth[rows, cols], fine_seen[rows, cols])
    best = np.full(rows.size, -1.0, np.float32)
    borrowed = np.zeros((3, rows.size), np.float32)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y = np.clip(rows // 2 + dy * (rows % 2 * 2 - 1), 0, shape[0] - 1)
        x = np.clip(cols // 2 + dx * (cols % 2 * 2 - 1), 0, shape[1] - 1)
        score = (seen[y, x] == sub.ids) + 0.9 * dot(normal[:, y, x], sub.normal)
        better = score > best + 0.05
        best = np.where(better, score, best)
        borrowed = np.where(better, light[:, y, x], borrowed)
    fine = albedo(scene, sub) * (borrowed + scene.glow[sub.ids])
    total = np.zeros_like(radiance)
    for k in range(3):
        np.add.at(total[k], (rows // 2, cols // 2), np.minimum(fine[k], 1.2) / 4)
    radiance = np.where(change, total, radiance)
    view = rotate(camera.rotation.T, normal)
    return radiance, scene.label[seen], depth, view.astype(np.float32)
