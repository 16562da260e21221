"""Poses of cameras in text files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MAX_COORDINATE_M = 1e5  # of a camera: a larger one is a mistake, and Open3D numbers its blocks of voxels in 32 bits


def read_pose(path: Path) -> np.ndarray:
    """A file of 4x4 numbers -> (4, 4) float64. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such pose")
    try:
        pose = np.array([float(word) for word in path.read_text().split()]).reshape(4, 4)
    except ValueError:
        raise ValueError(f"{path}: not 4 x 4 numbers") from None
    return check_pose(pose, str(path))


def check_pose(pose: np.ndarray, where: str) -> np.ndarray:
    """`pose`, if it is a rigid motion: a rotation and a translation. Raises ValueError."""
    rotation = pose[:3, :3]
    if (
        not np.isfinite(pose).all()
        or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2)
        or np.linalg.det(rotation) < 0
    ):
        raise ValueError(f"{where}: not the pose of a camera: its 3 x 3 part is no rotation")
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise ValueError(f"{where}: not the pose of a camera: its last row is not 0 0 0 1")
    if np.abs(pose[:3, 3]).max() > MAX_COORDINATE_M:
        raise ValueError(f"{where}: the camera is more than {MAX_COORDINATE_M / 1000:g} km from the origin")
    return pose
