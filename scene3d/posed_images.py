"""Posed images on disk: data sets of this project with poses, 7-Scenes, and TUM RGB-D."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from folders import read_folder, read_list
from images import read_label
from tasks import task_giving
from user_input.poses import check_pose, read_pose

# 7-Scenes (Microsoft's page): intrinsics of the depth camera; depth in millimetres, 65535 = none. Color and depth are
# not registered: the focal length of the color camera is about 525.
SEVEN_SCENES = {"fx": 585.0, "fy": 585.0, "cx": 320.0, "cy": 240.0, "width": 640, "height": 480}
# TUM RGB-D, for all sequences: the page "File Formats" recommends ROS's default intrinsics, without undistortion, since
# the registered depth images cannot be undistorted easily. Depth in 1/5000 m.
TUM = {"fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480}
MAX_TIME_DIFFERENCE_S = 0.02  # between an image, its depth and its pose; the default of TUM's associate.py


@dataclass(frozen=True)
class Shot:
    image: Path
    depth: Path | None  # measured depth
    pose: np.ndarray  # (4, 4) float64: camera (x right, y down, z forward) to world, metres


@dataclass(frozen=True)
class Scan:
    name: str
    camera: Mapping[str, float]  # fx, fy, cx, cy in pixels, for images of width x height
    shots: tuple[Shot, ...]
    metres_per_unit: float  # of the depth files
    max_depth_m: float  # measured depth beyond this is treated as missing

    def read_depth(self, shot: Shot) -> np.ndarray:
        """(H, W) float32 metres, 0 = none. Raises ValueError."""
        label = read_label(shot.depth)
        if label.ndim != 2:
            raise ValueError(f"{shot.depth}: depth has one number a pixel; this file has shape {label.shape}")
        depth = label.astype(np.float32) * np.float32(self.metres_per_unit)
        return np.where(depth <= self.max_depth_m, depth, np.float32(0))


def read_scan(folder: Path, split: str = "") -> Scan:
    """The posed images of a folder, in order. `split`: of a folder with dataset.yaml; "" = all splits.

    Raises FileNotFoundError or ValueError that says what is missing.
    """
    if split and folder.is_dir() and not (folder / "dataset.yaml").is_file():
        raise ValueError(f"--split {split}: {folder} has no dataset.yaml, so it has no splits")
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


def _data_set(root: Path, split: str) -> Scan:
    folder = read_folder(root)
    if not folder.poses:
        raise ValueError(
            f"{root / 'dataset.yaml'}: it has no poses: the name of a folder of 4x4 text files, one a frame"
        )
    if not folder.camera:
        raise ValueError(f"{root / 'dataset.yaml'}: it has no camera: fx, fy, cx, cy, width, height")
    metres = task_giving("metres")
    frames = [frame for name in ([split] if split else folder.splits) for frame in read_list(folder, name)]
    shots = [
        Shot(frame.image, frame.labels.get(metres), read_pose(root / folder.poses / f"{frame.image.stem}.txt"))
        for frame in sorted(frames, key=lambda frame: frame.image)
    ]
    section = folder.sections.get(metres, {"metres_per_unit": 0.001, "max": 10.0})
    return Scan(folder.name, folder.camera, tuple(shots), section["metres_per_unit"], section["max"])


def _seven_scenes(root: Path) -> Scan:
    shots = []
    for path in sorted(root.glob("frame-*.pose.txt")):
        stem = path.name.removesuffix(".pose.txt")
        images = [root / f"{stem}.color.{ending}" for ending in ("png", "jpg")]
        image = next((file for file in images if file.is_file()), None)
        if image is None:
            raise FileNotFoundError(f"{images[0]} (or .jpg): no such image, but it has a pose")
        depth = root / f"{stem}.depth.png"
        shots.append(Shot(image, depth if depth.is_file() else None, read_pose(path)))
    return Scan(root.resolve().name, SEVEN_SCENES, tuple(shots), 0.001, 60.0)


def _tum(root: Path) -> Scan:
    images, depths, poses = (_tum_list(root / f"{name}.txt") for name in ("rgb", "depth", "groundtruth"))
    shots = []
    for moment, words in images:
        depth, pose = (_nearest(entries, moment) for entries in (depths, poses))
        if pose is None:
            continue  # the motion capture lost the camera
        where = f"{root / 'groundtruth.txt'}: time {pose[0]}"
        shots.append(Shot(root / words[1], root / depth[1] if depth else None, _tum_pose(pose[1:], where)))
    return Scan(root.resolve().name, TUM, tuple(shots), 1 / 5000, 10.0)


def _tum_pose(words: Sequence[str], where: str) -> np.ndarray:
    """tx ty tz qx qy qz qw -> (4, 4). Raises ValueError."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    try:
        x, y, z, *quaternion = map(float, words)
        pose[:3, :3], pose[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), (x, y, z)
    except ValueError:
        raise ValueError(f"{where}: expected tx ty tz qx qy qz qw, got {' '.join(words)!r}") from None
    return check_pose(pose, where)


def _tum_list(path: Path) -> list[tuple[float, list[str]]]:
    """[(time in seconds, words of the line)], in order of time; [] without a file. Raises ValueError."""
    if not path.is_file():
        return []
    entries = []
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            moment = float(words[0])
        except ValueError:
            moment = math.nan
        if not math.isfinite(moment) or len(words) < 2:
            raise ValueError(f"{path}:{number}: expected a time in seconds and a file or a pose, got {line.strip()!r}")
        entries.append((moment, words))
    return sorted(entries, key=lambda entry: entry[0])


def _nearest(entries: Sequence[tuple[float, list[str]]], moment: float) -> list[str] | None:
    place = bisect.bisect(entries, moment, key=lambda entry: entry[0])
    best = min(entries[max(0, place - 1) : place + 1], key=lambda entry: abs(entry[0] - moment), default=None)
    return best[1] if best and abs(best[0] - moment) <= MAX_TIME_DIFFERENCE_S else None
