"""Light and color of what rays hit: soft shadows, ambient light, textures -> color, depth, normals."""

from __future__ import annotations

import numpy as np

from rooms.raycast import SHELL, SIDES, Light, Pinhole, Scene, cast, column, dot, exits, first_hit, rotate
from rooms.textures import TEXTURES, Patch, Texel, mix

# Bayer's matrix: which of its 16 samples of each light a pixel takes, so that 4 x 4 neighbors take all of them.
BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))


def hit_points(scene: Scene, camera: Pinhole, directions: np.ndarray, depth: np.ndarray, ids: np.ndarray) -> Texel:
    """Points, normals (unit, towards the camera) and local coordinates of what rays (3, n) hit."""
    point = column(camera.position, directions) + directions * depth
    turn = scene.rotation.transpose(1, 2, 0)[:, :, ids]
    center, half = scene.center[ids].T, scene.half[ids].T
    local = sum(turn[j] * (point[j] - center[j]) for j in range(3))
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


def albedo(scene: Scene, texel: Texel) -> np.ndarray:
    """Linear color (3, n) of the texels; what glows may exceed 1."""
    out = np.empty((3, texel.ids.size), np.float32)
    kinds = scene.kind[texel.ids]
    for kind in np.unique(scene.kind):
        index = np.flatnonzero(kinds == kind)
        if not index.size:
            continue
        ids, local, axis = texel.ids[index], texel.local[:, index], texel.axis[index]
        half = scene.half[ids].T
        flat_u, flat_v = axis == 0, axis == 2
        uv = np.stack([np.where(flat_u, local[1], local[0]), np.where(flat_v, local[1], local[2])])
        side = np.stack([np.where(flat_u, half[1], half[0]), np.where(flat_v, half[1], half[2])])
        a, b = scene.colors[ids].transpose(1, 2, 0)
        part = Texel(
            ids,
            texel.point[:, index],
            local,
            texel.normal[:, index],
            axis,
            texel.direction[:, index],
            texel.pixel[index],
        )
        out[:, index] = TEXTURES[kind](Patch(*uv, side, a, b, scene.scale[ids], scene.seed[ids], part))
    return out


def illuminate(scene: Scene, texel: Texel, pattern: np.ndarray) -> np.ndarray:
    """Light (3, n) that falls on the texels. pattern (n,): which of its 16 samples of each light a pixel takes."""
    lift = texel.point + texel.normal * np.float32(2e-3)
    total = np.zeros_like(texel.point)
    for light in scene.lights:
        arrive = _sunlight if light.kind == "sun" else _lamplight
        towards, distance, strength = arrive(light, lift, texel.normal, pattern)
        index = np.flatnonzero(strength * light.color.max() > 0.004)
        reach = distance[index] - 0.01
        lit = first_hit(scene, lift[:, index], towards[:, index], reach) >= reach
        total[:, index] += column(light.color, total) * (strength[index] * lit)
    return total + _ambient(scene, lift, texel.normal, pattern)


def _on_light(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place (n,), (n,) of each sample on a light, -1..1."""
    first, second = (pattern // 4 + 0.5) / 4 * 2 - 1, (pattern % 4 + 0.5) / 4 * 2 - 1
    return first.astype(np.float32), second.astype(np.float32)


def _sunlight(
    light: Light, point: np.ndarray, normal: np.ndarray, pattern: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction (3, n) towards the sun, distance (n,) to the window it shines through, and its strength (n,)."""
    first, second = _on_light(pattern)
    here = column(light.position, point)
    way = -light.towards / np.linalg.norm(light.towards)
    towards = np.broadcast_to(column(way, point), point.shape) + 0.006 * np.stack([first, second, -first])
    face = column(np.cross(light.across, light.up), point)
    bottom = dot(face, towards)
    distance = dot(face, here - point) / np.where(np.abs(bottom) < 1e-6, 1e-6, bottom)
    at = point + towards * distance - here
    inside = (np.abs(dot(at, column(light.across, at))) < light.across @ light.across) & (
        np.abs(dot(at, column(light.up, at))) < light.up @ light.up
    )
    return towards, distance, np.maximum(dot(normal, towards), 0) * (inside & (distance > 0))


def _lamplight(
    light: Light, point: np.ndarray, normal: np.ndarray, pattern: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction (3, n) towards a sample of a lamp or a window, its distance (n,) and its strength (n,)."""
    first, second = _on_light(pattern)
    if light.kind == "window":
        offset = column(light.across, point) * first + column(light.up, point) * second
    else:
        offset = light.spread * np.stack([first, second, first * second])
    towards = column(light.position, point) + offset - point
    square = dot(towards, towards)
    distance = np.sqrt(square)
    towards = towards / distance
    strength = np.maximum(dot(normal, towards), 0) / (square + 0.15)
    if light.kind == "window":
        area = 4 * np.linalg.norm(light.across) * np.linalg.norm(light.up)
        strength = strength * area * np.maximum(-dot(towards, column(light.towards, towards)), 0)
    return towards, distance, strength


def _ambient(scene: Scene, point: np.ndarray, normal: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Light (3, n) from a hemisphere: one ray a pixel finds what is close and shuts it out."""
    sine = np.sqrt((pattern % 4 + 0.5) / 4)
    angle = (pattern // 4 + 0.25 + 0.5 * (pattern % 2)) * np.pi / 2
    helper = np.where(np.abs(normal[2]) > 0.9, np.array([[1], [0], [0]]), np.array([[0], [0], [1]]))
    tangent = _cross(normal, helper)
    tangent = tangent / np.sqrt(dot(tangent, tangent))
    way = tangent * (sine * np.cos(angle)) + _cross(normal, tangent) * (sine * np.sin(angle))
    way = (way + normal * np.sqrt(1 - sine**2)).astype(np.float32)
    limit = np.clip(exits(scene, point, way).min(0), 0, 1.2)
    openness = 0.25 + 0.75 * np.sqrt(first_hit(scene, point, way, limit) / 1.2)
    return mix(column(scene.bounce, way), column(scene.ambient, way), 0.5 + 0.5 * normal[2]) * openness


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product of (3, n) and (3, n)."""
    return np.stack([a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)])


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


def _changes(seen: np.ndarray, gray: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Pixels (H, W) that differ from a neighbor in what they show, in brightness or in direction."""
    change = np.zeros(seen.shape, bool)
    for axis in (0, 1):
        here, there = [slice(None)] * 2, [slice(None)] * 2
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        here, there = tuple(here), tuple(there)
        jump = (seen[here] != seen[there]) | (np.abs(gray[here] - gray[there]) > 0.04 + 0.1 * gray[here])
        jump |= dot(normal[(slice(None), *here)], normal[(slice(None), *there)]) < 0.97
        change[here] |= jump
        change[there] |= jump
    return change


def _antialias(
    scene: Scene, camera: Pinhole, change: np.ndarray, light: np.ndarray, seen: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """Linear color (3, H, W) of the pixels in `change`: four rays each, with the light of the pixels around them."""
    depth, ids, directions = cast(scene, camera, 2)
    rows, cols = np.nonzero(change.repeat(2, 0).repeat(2, 1))
    fine = hit_points(scene, camera, directions[:, rows, cols], depth[rows, cols], ids[rows, cols])
    best = np.full(rows.size, -1.0, np.float32)
    borrowed = np.zeros((3, rows.size), np.float32)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y = np.clip(rows // 2 + dy * (rows % 2 * 2 - 1), 0, seen.shape[0] - 1)
        x = np.clip(cols // 2 + dx * (cols % 2 * 2 - 1), 0, seen.shape[1] - 1)
        score = (seen[y, x] == fine.ids) + 0.9 * dot(normal[:, y, x], fine.normal)
        better = score > best + 0.05
        best = np.where(better, score, best)
        borrowed = np.where(better, light[:, y, x], borrowed)
    color = albedo(scene, fine) * (borrowed + scene.glow[fine.ids])
    total = np.zeros_like(light)
    for k in range(3):
        np.add.at(total[k], (rows // 2, cols // 2), np.minimum(color[k], 1.2) / 4)
    return total


def render(scene: Scene, camera: Pinhole) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Linear color (3, H, W), primitive (H, W) int32, depth [m] (H, W), camera-frame normals (3, H, W)."""
    depth, seen, directions = cast(scene, camera)
    shape = depth.shape
    texel = hit_points(scene, camera, directions.reshape(3, -1), depth.ravel(), seen.ravel())
    normal = texel.normal.reshape(3, *shape)
    rows, cols = np.indices(shape)
    pattern = np.array(BAYER)[rows % 4, cols % 4].ravel()
    light = _smooth(illuminate(scene, texel, pattern).reshape(3, *shape), seen, normal)
    color = albedo(scene, texel).reshape(3, *shape)
    change = _changes(seen, color.mean(0), normal)
    edges = _antialias(scene, camera, change, light, seen, normal)
    radiance = np.where(change, edges, color * (light + scene.glow[seen]))
    view = rotate(camera.rotation.T, normal)
    return radiance, seen, depth, view.astype(np.float32)
