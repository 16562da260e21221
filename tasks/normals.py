"""Surface normals: a unit vector for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

import loss
from geometry import View, normals_from_depth, resize_raw, unit
from images import read_label, write_png
from metrics import NormalMetrics, Protocol
from tasks.dense import DenseTask


def unit_length(x: Tensor) -> Tensor:
    """x (B, C, H, W), divided by its length over C. On a CPU it takes a sixtieth of the time of F.normalize."""
    return x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)


@dataclass(frozen=True)
class Normals(DenseTask):
    """Unit surface normals, camera frame (x right, y down, z forward), towards the camera: z < 0 where it faces us.

    Labels (H, W, 3) float32, 0, 0, 0 = none; predictions (B, 3, H, W). Files: 8-bit RGB, round(127.5 (n + 1)).
    """

    name = "normals"
    imitates = True
    best = "mean"
    directions: ClassVar = {"mean": -1, "median": -1, "within_11.25": 1, "within_22.5": 1, "within_30": 1}
    derived_from = "depth"
    needs_camera = True
    follows_camera = True
    sure = 0.95

    def read(self, path: Path, section: Mapping[str, object], image: Path) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 3 or label.shape[2] != 3 or label.dtype != np.uint8:
            raise ValueError(f"{path}: normals are 8-bit RGB; this file has shape {label.shape}, {label.dtype}")
        return unit(np.where(label.any(2, keepdims=True), label.astype(np.float32) / 127.5 - 1, 0))

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.float32)

    def derive(self, label: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        return normals_from_depth(label, camera)

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        # A view shows the scene with its points p moved to A p; planes then have the normals A^-T n. A is, in this
        # order, the mirror, the rotation, and the division of the depth by the zoom (see Depth.view).
        normal = super().view(label, view)
        turn = np.deg2rad(view.angle)  # cv2's angle is counter-clockwise on the screen, where y points down
        x = -normal[..., 0] if view.mirror else normal[..., 0]
        y, z = normal[..., 1], normal[..., 2] * view.zoom
        x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        return unit(np.stack([x, y, z], axis=2).astype(np.float32))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return super().to_tensor(label.transpose(2, 0, 1))

    @property
    def channels(self) -> int:
        return 3

    def weight(self, target: Tensor) -> float:
        return float((target != 0).any(1).sum())

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        return loss.cosine(resize_raw(raw, target.shape[-2:]), target, target.abs().sum(1) > 0)

    def imitation(self, raw: Tensor, advice: Tensor) -> loss.Loss:
        return self.loss(raw, advice)

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return unit_length(super().scores(raw, size))

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        scores = super().undo(scores, zoom, mirror)
        sign = scores.new_tensor([-1.0 if mirror else 1.0, 1.0, 1.0 / zoom])
        return unit_length(scores * sign[:, None, None])

    def decide(self, scores: Tensor) -> Tensor:
        return unit_length(scores)

    def for_camera(self, prediction: np.ndarray, zoom: float) -> np.ndarray:
        turned = prediction * np.array([1, 1, 1 / zoom], prediction.dtype)[:, None, None]
        return turned / np.linalg.norm(turned, axis=0).clip(1e-12)

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """The cosine of the angle between the two."""
        return F.cosine_similarity(scores, mirrored, dim=1).clamp(min=0)

    def metrics(self, protocol: Protocol) -> NormalMetrics:
        return NormalMetrics()

    def paint(self, prediction: np.ndarray) -> np.ndarray:
        """prediction (3, H, W), or a label (H, W, 3). x to red, y up to green, towards the camera to blue."""
        normal = prediction if prediction.shape[-1] == 3 else prediction.transpose(1, 2, 0)
        color = ((normal * [1, -1, -1] + 1) * 127.5).round().clip(0, 255)
        return np.where(normal.any(2, keepdims=True), color, 0).astype(np.uint8)

    def save(self, prediction: np.ndarray, path: Path) -> None:
        normal = prediction.transpose(1, 2, 0)
        stored = np.where(normal.any(2, keepdims=True), ((normal + 1) * 127.5).round().clip(0, 255), 0)
        write_png(path, stored.astype(np.uint8))
