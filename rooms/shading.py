"""Light and color of what rays hit: soft shadows, ambient light, textures -> color, depth, normals."""

from __future__ import annotations

import numpy as np

from rooms.raycast import SHELL, SIDES, Pinhole, Scene, cast, column, dot, exits, first_hit, rotate
from rooms.textures import TEXTURES, Patch, Texel, mix


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


def albedo(scene: Scene, q: Texel) -> np.ndarray:
    """Linear color (3, n) of the texels; what glows may exceed 1."""
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
        a, b = scene.colors[ids].transpose(1, 2, 0)
        part = Texel(ids, q.point[:, index], local, q.normal[:, index], axis, q.direction[:, index], q.pixel[index])
        out[:, index] = TEXTURES[kind](Patch(*uv, side, a, b, scene.scale[ids], scene.seed[ids], part))
    return out


def illuminate(scene: Scene, q: Texel, pattern: np.ndarray) -> np.ndarray:
    """Light (3, n) that falls on the texels. pattern (n,): which of its 16 samples of each light a pixel takes."""
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
        index = np.flatnonzero(strength * light.color.max() > 0.004)
        reach = distance[index] - 0.01
        lit = first_hit(scene, lift[:, index], towards[:, index], reach) >= reach
        total[:, index] += column(light.color, total) * (strength[index] * lit)
    # ambient light from a hemisphere: one ray a pixel finds what is close and shuts it out
    sine = np.sqrt((pattern % 4 + 0.5) / 4)
    angle = (pattern // 4 + 0.25 + 0.5 * (pattern % 2)) * np.pi / 2
    helper = np.where(np.abs(q.normal[2]) > 0.9, np.array([[1], [0], [0]]), np.array([[0], [0], [1]]))
    tangent = np.stack([q.normal[i - 2] * helper[i - 1] - q.normal[i - 1] * helper[i - 2] for i in range(3)])
    tangent = tangent / np.sqrt(dot(tangent, tangent))
    other = np.stack([q.normal[i - 2] * tangent[i - 1] - q.normal[i - 1] * tangent[i - 2] for i in range(3)])
    way = tangent * (sine * np.cos(angle)) + other * (sine * np.sin(angle)) + q.normal * np.sqrt(1 - sine**2)
    way = way.astype(np.float32)
    limit = np.clip(exits(scene, lift, way).min(0), 0, 1.2)
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


def render(scene: Scene, camera: Pinhole) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Linear color (3, H, W), primitive (H, W) int32, depth [m] (H, W), camera-frame normals (3, H, W)."""
    depth, seen, directions = cast(scene, camera)
    shape = depth.shape
    flat = hit_points(scene, camera, directions.reshape(3, -1), depth.ravel(), seen.ravel())
    normal = flat.normal.reshape(3, *shape)
    order = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    rows, cols = np.indices(shape)
    light = illuminate(scene, flat, order[rows % 4, cols % 4].ravel()).reshape(3, *shape)
    light = _smooth(light, seen, normal)
    color = albedo(scene, flat).reshape(3, *shape)
    radiance = color * (light + scene.glow[seen])

    # Antialiasing: pixels that differ from their neighbors get four rays, which take the light of the pixels around.
    change = np.zeros(shape, bool)
    gray = color.mean(0)
    for axis in (0, 1):
        here = [slice(None)] * 2
        here[axis], there = slice(1, None), [slice(None)] * 2
        there[axis] = slice(None, -1)
        here, there = tuple(here), tuple(there)
        jump = (seen[here] != seen[there]) | (np.abs(gray[here] - gray[there]) > 0.04 + 0.1 * gray[here])
        jump |= dot(normal[(slice(None), *here)], normal[(slice(None), *there)]) < 0.97
        change[here] |= jump
        change[there] |= jump
    fine_depth, fine_seen, fine_directions = cast(scene, camera, 2)
    rows, cols = np.nonzero(change.repeat(2, 0).repeat(2, 1))
    sub = hit_points(scene, camera, fine_directions[:, rows, cols], fine_depth[rows, cols], fine_seen[rows, cols])
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
    return radiance, seen, depth, view.astype(np.float32)
