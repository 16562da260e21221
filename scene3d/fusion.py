"""Colored, labeled points from one image, and a TSDF fusion of many posed images into one surface. All in metres."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deploy.predictor import Predictor
from geometry import scaled_camera
from images import read_image
from scene3d.objects import SIGHTING, sightings_of
from scene3d.posed_images import Scan, Shot
from scene3d.things import PictureThings, pack_things
from tasks import NO_CLASS, task_giving, task_of_things
from utils import require, whole_file

MIN_PROBABILITY = 1e-3  # floor for the logarithms, so that one over-confident frame cannot outvote the rest
BLOCK = 8  # voxels along a side of a block, the unit of allocation


@dataclass(frozen=True)
class Surface:
    """A mesh; without triangles, a point cloud."""

    points: np.ndarray  # (N, 3) float32, metres
    colors: np.ndarray  # (N, 3) uint8
    classes: np.ndarray  # (N,) uint8, 255 = none
    triangles: np.ndarray  # (M, 3) int32
    things: np.ndarray | None = None  # (N,) uint16: number of the thing, 0 = none; None = nobody looked for things

    def write(self, path: Path) -> None:
        """A binary PLY file; each vertex has red, green, blue and class_id, and thing_id where things are known."""
        numbered = [] if self.things is None else [("thing_id", "<i4")]  # Open3D skips shorts
        vertices = np.empty(len(self.points), np.dtype([
            *((name, "<f4") for name in "xyz"), *((name, "u1") for name in ("red", "green", "blue", "class_id")),
            *numbered,
        ]))  # fmt: skip
        for number, name in enumerate("xyz"):
            vertices[name] = self.points[:, number]
        for number, name in enumerate(("red", "green", "blue")):
            vertices[name] = self.colors[:, number]
        vertices["class_id"] = self.classes
        if numbered:
            vertices["thing_id"] = self.things
        faces = np.empty(len(self.triangles), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
        faces["count"], faces["corners"] = 3, self.triangles
        head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
        head += [f"property float {name}" for name in "xyz"]
        head += [f"property uchar {name}" for name in ("red", "green", "blue", "class_id")]
        head += [f"property int {name}" for name, _ in numbered]
        if len(faces):
            head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write(("\n".join([*head, "end_header"]) + "\n").encode())
            file.write(vertices.tobytes())
            if len(faces):
                file.write(faces.tobytes())


def back_project(depth: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
    """depth (H, W) in metres; camera: fx, fy, cx, cy for this size -> points (H, W, 3) float32, camera frame."""
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float32)
    x = (columns - np.float32(camera["cx"])) / np.float32(camera["fx"]) * depth
    y = (rows - np.float32(camera["cy"])) / np.float32(camera["fy"]) * depth
    return np.stack([x, y, depth], axis=2)


def cloud(
    image: np.ndarray, depth: np.ndarray, classes: np.ndarray | None, camera: Mapping[str, float], max_depth_m: float
) -> Surface:
    """The points of one image: image (H, W, 3), depth (H, W) in metres, classes (H, W) ids.

    Pixels without depth, or with more than `max_depth_m`, give no point.
    """
    seen = (depth > 0) & (depth <= max_depth_m)
    ids = np.full(depth.shape, NO_CLASS, np.uint8) if classes is None else classes
    points = back_project(depth, scaled_camera(camera, *depth.shape))[seen]
    return Surface(points, image[seen], ids[seen].astype(np.uint8), np.empty((0, 3), np.int32))


class Fusion:
    """Truncated signed distance field (TSDF) over sparse blocks of voxels: Open3D's VoxelBlockGrid.

    Each voxel also has a color and class probabilities. A frame multiplies these with its own, and they are normalized:
    SemanticFusion (McCormac et al., ICRA 2017), equation 2.
    """

    def __init__(self, voxel_m: float, classes: int = 0, max_depth_m: float = 5.0, blocks: int = 4_000) -> None:
        require("open3d")
        import open3d

        self.o3d, self.voxel_m, self.count, self.max_depth_m = open3d, voxel_m, classes, max_depth_m
        names, channels = ["tsdf", "weight", "color"], [1, 1, 3]
        if classes:
            names, channels = [*names, "classes"], [*channels, classes]
        core = open3d.core
        self.grid = open3d.t.geometry.VoxelBlockGrid(
            names, [core.float32] * len(names), [core.SizeVector([n]) for n in channels], voxel_m, BLOCK, blocks
        )

    def add(
        self,
        image: np.ndarray,
        depth: np.ndarray,
        camera: Mapping[str, float],
        pose: np.ndarray,
        probabilities: np.ndarray | None = None,
    ) -> None:
        """Integrates a frame: image (H, W, 3) uint8; depth (H, W) float32 metres, 0 = none; camera: fx, fy, cx, cy for
        this size; pose (4, 4): camera to world; probabilities (C, h, w), of any size."""
        core, geometry = self.o3d.core, self.o3d.t.geometry
        depth = np.where(depth <= self.max_depth_m, depth, 0).astype(np.float32)
        if not depth.any():
            return
        intrinsic = np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1]])
        k, to_camera = core.Tensor(intrinsic), core.Tensor(np.linalg.inv(pose))
        picture = geometry.Image(core.Tensor(np.ascontiguousarray(image).astype(np.float32) / 255))
        distances = geometry.Image(core.Tensor(np.ascontiguousarray(depth)[..., None]))
        blocks = self.grid.compute_unique_block_coordinates(distances, k, to_camera, 1.0, self.max_depth_m)
        self.grid.integrate(blocks, distances, picture, k, to_camera, 1.0, self.max_depth_m)
        if probabilities is not None and self.count:
            self._vote(blocks, depth, intrinsic, np.linalg.inv(pose), probabilities)

    def _vote(
        self, blocks: object, depth: np.ndarray, intrinsic: np.ndarray, to_camera: np.ndarray, probabilities: np.ndarray
    ) -> None:
        """Multiplies the class probabilities of voxels within two voxels of the frame's depth with the frame's."""
        found, inside = self.grid.hashmap().find(blocks)
        points, index = self.grid.voxel_coordinates_and_flattened_indices(found[inside].to(self.o3d.core.int32))
        points, index = points.numpy() @ to_camera[:3, :3].T + to_camera[:3, 3], index.numpy()
        front = points[:, 2] > 1e-3
        points, index = points[front], index[front]
        pixels = points @ intrinsic.T
        column, row = (np.rint(pixels[:, axis] / pixels[:, 2]).astype(np.int64) for axis in (0, 1))
        height, width = depth.shape
        shown = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        points, index, column, row = points[shown], index[shown], column[shown], row[shown]
        measured = depth[row, column]
        near = (measured > 0) & (np.abs(measured - points[:, 2]) < 2 * self.voxel_m)
        index, column, row = index[near], column[near], row[near]
        log = np.log(np.maximum(probabilities, MIN_PROBABILITY)).astype(np.float32)
        rows, columns = row * log.shape[1] // height, column * log.shape[2] // width
        votes = self.grid.attribute("classes").numpy().reshape(-1, self.count)  # a view
        updated = votes[index] + log[:, rows, columns].T
        votes[index] = updated - updated.max(1, keepdims=True)  # only ratios count

    def mesh(self, views: int = 3) -> Surface:
        """The surface, where at least `views` frames observed it. Raises ValueError when there is none."""
        mesh = self.grid.extract_triangle_mesh(views - 0.5) if self.grid.hashmap().size() else None
        if mesh is None or "indices" not in mesh.triangle or not len(mesh.triangle.indices):
            raise ValueError(f"no surface: no place was seen by {views} images whose depths agree")
        points = mesh.vertex.positions.numpy().astype(np.float32)
        colors = (mesh.vertex.colors.numpy() * 255).round().clip(0, 255).astype(np.uint8)
        return Surface(points, colors, self._classes_at(points), mesh.triangle.indices.numpy().astype(np.int32))

    def _classes_at(self, points: np.ndarray) -> np.ndarray:
        """The most probable class at each point; 255 where no frame gave one."""
        if not self.count:
            return np.full(len(points), NO_CLASS, np.uint8)
        voxels = np.rint(points / self.voxel_m).astype(np.int64)
        blocks, places = voxels // BLOCK, voxels % BLOCK
        keys, which = np.unique(blocks, axis=0, return_inverse=True)
        found, inside = self.grid.hashmap().find(self.o3d.core.Tensor(keys.astype(np.int32)))
        block = found.numpy().astype(np.int64)[which.ravel()]
        index = ((block * BLOCK + places[:, 2]) * BLOCK + places[:, 1]) * BLOCK + places[:, 0]
        known = inside.numpy()[which.ravel()]
        votes = self.grid.attribute("classes").numpy().reshape(-1, self.count)[np.where(known, index, 0)]
        return np.where(known & votes.any(1), votes.argmax(1), NO_CLASS).astype(np.uint8)


def fuse(
    scan: Scan, shots: Sequence[Shot], fusion: Fusion, predictor: Predictor | None, only_measured: bool = False
) -> tuple[np.ndarray, list[PictureThings]]:
    """Integrates the images: predicted depth and classes, or without a predictor the measured depth.

    Returns the sightings of objects (scene3d/objects.py) up to the fusion's largest depth, and the things of each
    picture (scene3d/things.py); both empty where the predictor has no such task. `only_measured` drops predicted depth
    where no depth was measured. Raises ValueError when sizes differ.
    """
    sightings, things = [np.zeros(0, SIGHTING)], []
    tasks = predictor.tasks if predictor else {}
    by_object, by_thing = task_giving("objects", tasks), task_of_things(tasks)
    for number, shot in enumerate(tqdm(shots, unit="image", disable=not sys.stderr.isatty())):
        image, probabilities = read_image(shot.image), None
        if predictor is None:
            depth = scan.read_depth(shot)
        else:
            predictions, probabilities = predictor.with_probabilities(image, task_giving("classes", predictor.tasks))
            depth = predictions[task_giving("metres", predictor.tasks)]
            if only_measured:
                measured = scan.read_depth(shot)
                check_size(shot, measured, image)
                depth = np.where(measured > 0, depth, 0)
        check_size(shot, depth, image)
        camera = scaled_camera(scan.camera, *depth.shape)
        fusion.add(image, depth, camera, shot.pose, probabilities)
        if by_object:
            objects = predictor.tasks[by_object].in_space(predictions[by_object], camera)
            near = objects[objects["distance_m"] <= fusion.max_depth_m]
            sightings.append(sightings_of(near, camera, shot.pose, depth.shape, number))
        if by_thing:
            things.append(pack_things(by_thing, tasks, predictions, depth, camera, shot.pose))
    return np.concatenate(sightings), things


def check_size(shot: Shot, depth: np.ndarray, image: np.ndarray) -> None:
    """Raises ValueError unless depth (H, W) has the size of the image (H, W, 3)."""
    if depth.shape != image.shape[:2]:
        sizes = " and ".join(f"{size[1]}x{size[0]}" for size in (depth.shape, image.shape))
        raise ValueError(f"{shot.depth}: its size differs from that of {shot.image}: {sizes}")


def views_of(shots: Sequence[Shot]) -> int:
    """Minimum number of observations of a voxel for it to be part of the surface: 3, or fewer for up to 20 images."""
    return min(3, -(-len(shots) // 10))
