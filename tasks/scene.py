"""What a task answers about the scene in front of a camera: metres by another camera, places, single things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tasks.box_objects import OBJECT


class InScene:
    """The part of `Task` about the scene: a mixin, with the answers of a task that gives neither metres nor things."""

    follows_camera: ClassVar[bool] = False  # whether `for_camera` changes anything

    def for_camera(self, prediction: np.ndarray, zoom: float) -> np.ndarray:
        """A frame's prediction, if its camera's focal length is `zoom` times that of the training's: by such a camera
        things look as if they were nearer by this factor."""
        return prediction

    def in_space(self, prediction: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        """A frame's prediction with positions in metres, given its intrinsics fx, fy, cx, cy in pixels."""
        return prediction

    def thing_map(self, prediction: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The prediction of a frame of this size -> which thing each pixel shows (H, W) uint16, from 1 on, 0 = none,
        and the things in this order, (n,) with the fields of box_objects.OBJECT."""
        return np.zeros(size, np.uint16), np.zeros(0, OBJECT)
