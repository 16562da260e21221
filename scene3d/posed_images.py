"""Pictures whose cameras are known, from disk: data sets of this project with poses, 7-Scenes, and TUM RGB-D."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from folders import read_folder, read_list
from images import read_label

# Microsoft's page of 7-Scenes: the depth camera's, 16 bits in millimetres, 65535 = none.
SEVEN_SCENES = {"fx": 585.0, "fy": 585.0, "cx": 320.0, "cy": 240.0, "width": 640, "height": 480}
# TUM's page "Intrinsic camera calibration", by the first letters of a sequence; depth in 1/5000 m.
TUM = {
    "freiburg1": {"fx": 517.3, "fy": 516.5, "cx": 318.6, "cy": 255.3, "width": 640, "height": 480},
    "freiburg2": {"fx": 520.9, "fy": 521.0, "cx": 325.1, "cy": 249.7, "width": 640, "height": 480},
    "freiburg3": {"fx": 535.4, "fy": 539.2, "cx": 320.1, "cy": 247.6, "width": 640, "height": 480},
}
TUM_ELSE = {"fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480}
TUM_APART = 0.02  # seconds between a picture, its depth and its pose, as TUM's associate.py has it


@dataclass(frozen=True)
class Shot:
    image: Path
    depth: Path | None  # as the camera measured it
    pose: np.ndarray  # (4, 4) float64: camera (x right, y down, z forward) to world, metres


@dataclass(frozen=True)
class Scan:
    name: str
    camera: Mapping[str, float]  # fx, fy, cx, cy of pictures of width x height
    shots: tuple[Shot, ...]
    metres_per_unit: float  # of the depth files
    most_m: float  # no depth beyond it is one

    def read_depth(self, shot: Shot) -> np.ndarray:
        """(H, W) float32 metres, 0 = none."""
        label = read_label(shot.depth)
        if label.ndim != 2:
            raise ValueError(f"{shot.depth}: depth has one number a pixel; this file has shape {label.shape}")
        depth = label.astype(np.float32) * np.float32(self.metres_per_unit)
        return np.where(depth <= self.most_m, depth, np.float32(0))


def read_scan(folder: Path, split: str = "") -> Scan:
    """The pictures of a folder with poses, in order; `split` of a data set of this project, "" for all of them.

    Raises FileNotFoundError or ValueError that says what is missing.
    """
    if (folder / "dataset.yaml").is_file():
        scan = _data_set(folder, split)
    elif (folder / "rgb.txt").is_file() and (folder / "groundtruth.txt").is_file():
        scan = _tum(folder)
    elif any(folder.glob("frame-*.pose.txt")):
        scan = _seven_scenes(folder)
    elif folder.is_dir():
        raise ValueError(
            f"{folder}: no poses in it; known are data sets with `poses:` in their dataset.yaml, sequences of 7-Scenes "
            "(frame-*.pose.txt) and of TUM RGB-D (rgb.txt, groundtruth.txt)"
        )
    else:
        raise FileNotFoundError(f"{folder}: no such folder")
    if not scan.shots:
        raise ValueError(f"{folder}: no picture in it has a pose")
    return scan


def read_pose(path: Path) -> np.ndarray:
    """A file of 4x4 numbers -> (4, 4) float64. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such pose")
    try:
        return check_pose(np.array([float(word) for word in path.read_text().split()]).reshape(4, 4), str(path))
    except ValueError as problem:
        raise ValueError(str(problem) if str(path) in str(problem) else f"{path}: not 4 x 4 numbers") from None


def check_pose(pose: np.ndarray, where: str) -> np.ndarray:
    """The pose, when it is a turn and a shift. Raises ValueError."""
    turn = pose[:3, :3]
    if not np.isfinite(pose).all() or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) or np.linalg.det(turn) < 0:
        raise ValueError(f"{where}: not the pose of a camera: its 3 x 3 part is no rotation")
    return pose


def _data_set(root: Path, split: str) -> Scan:
    folder = read_folder(root)
    if not folder.poses:
        raise ValueError(
            f"{root / 'dataset.yaml'}: it has no poses: the name of a folder of 4x4 text files, one a frame"
        )
    if not folder.camera:
        raise ValueError(f"{root / 'dataset.yaml'}: it has no camera: fx, fy, cx, cy, width, height")
    frames = [frame for name in ([split] if split else folder.splits) for frame in read_list(folder, name)]
    shots = [
        Shot(frame.image, frame.labels.get("depth"), read_pose(root / folder.poses / f"{frame.image.stem}.txt"))
        for frame in sorted(frames, key=lambda frame: frame.image)
    ]
    section = folder.sections.get("depth", {"metres_per_unit": 0.001, "max": 10.0})
    return Scan(folder.name, folder.camera, tuple(shots), section["metres_per_unit"], section["max"])


def _seven_scenes(root: Path) -> Scan:
    shots = []
    for path in sorted(root.glob("frame-*.pose.txt")):
        stem = path.name.removesuffix(".pose.txt")
        image, depth = root / f"{stem}.color.png", root / f"{stem}.depth.png"
        if not image.is_file():
            raise FileNotFoundError(f"{image}: no such picture, but it has a pose")
        shots.append(Shot(image, depth if depth.is_file() else None, read_pose(path)))
    return Scan(root.resolve().name, SEVEN_SCENES, tuple(shots), 0.001, 60.0)


def _tum(root: Path) -> Scan:
    images, depths = _tum_list(root / "rgb.txt"), _tum_list(root / "depth.txt")
    poses = _tum_list(root / "groundtruth.txt")
    shots = []
    for moment, words in images:
        depth, pose = (_nearest(entries, moment) for entries in (depths, poses))
        if pose is None:
            continue  # the cameras of the motion capture did not see it
        try:
            x, y, z, *quaternion = map(float, pose)
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = rotation(*quaternion), (x, y, z)
        except (TypeError, ValueError):
            raise ValueError(f"{root / 'groundtruth.txt'}: time {moment}: expected tx ty tz qx qy qz qw") from None
        shots.append(Shot(root / words[0], root / depth[0] if depth else None, matrix))
    kind = re.search("freiburg[123]", root.resolve().name)
    return Scan(root.resolve().name, TUM[kind[0]] if kind else TUM_ELSE, tuple(shots), 1 / 5000, 10.0)


def _tum_list(path: Path) -> list[tuple[float, list[str]]]:
    """(time, the other words) of each line, in order of time; [] without a file."""
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if words := line.partition("#")[0].split():
            try:
                entries.append((float(words[0]), words[1:]))
            except ValueError:
                raise ValueError(f"{path}:{number}: it should start with a time in seconds") from None
    return sorted(entries, key=lambda entry: entry[0])


def _nearest(entries: Sequence[tuple[float, list[str]]], moment: float) -> list[str] | None:
    place = bisect.bisect(entries, moment, key=lambda entry: entry[0])
    best = min(entries[max(0, place - 1) : place + 1], key=lambda entry: abs(entry[0] - moment), default=None)
    return best[1] if best and abs(best[0] - moment) <= TUM_APART else None


def rotation(x: float, y: float, z: float, w: float) -> np.ndarray:
    """A quaternion -> (3, 3). Raises ValueError when it has no length."""
    length = float(np.sqrt(x * x + y * y + z * z + w * w))
    if not length > 0:
        raise ValueError("a quaternion without length")
    x, y, z, w = x / length, y / length, z / length, w / length
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
