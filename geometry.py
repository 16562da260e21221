"""Geometry of pictures: sizes, and views, the random crops of a training."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from config import Config


@dataclass(frozen=True)
class View:
    """A part of a frame as a crop: the frame is brought to a size, then mirrored, turned and shifted."""

    frame_size: tuple[int, int]  # height, width of the frame
    zoomed_size: tuple[int, int]  # the size that it is brought to
    turn: np.ndarray  # (2, 3) float64, from pixel centres of the zoomed frame to pixel centres of the crop
    height: int
    width: int
    zoom: float = 1.0  # by how much it is larger than the network sees frames in evaluation
    mirror: bool = False
    angle: float = 0.0  # degrees by which the picture is turned, as in cv2.getRotationMatrix2D

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3), from pixel centres of the frame to pixel centres of the crop."""
        y, x = (zoomed / frame for zoomed, frame in zip(self.zoomed_size, self.frame_size, strict=True))
        return self.turn @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])

    def sample(self, label: np.ndarray, fill: float) -> np.ndarray:
        """label (H, W) or (H, W, 3) -> the crop, each pixel from the nearest one of the frame; `fill` outside."""
        size = (self.width, self.height)
        return cv2.warpAffine(label, self.matrix, size, flags=cv2.INTER_NEAREST, borderValue=(fill,) * 4)

    def resample(self, image: np.ndarray, fill: tuple[float, float, float]) -> np.ndarray:
        """image (H, W, 3) -> the crop, averaged where it shrinks; `fill` outside.

        Resized like an image in evaluation and then, unless it is turned, copied: were views less sharp than the
        images of the evaluation, the network would take sharpness for distance.
        """
        zoomed = resize_image(image, *self.zoomed_size)
        return cv2.warpAffine(zoomed, self.turn, (self.width, self.height), flags=cv2.INTER_LINEAR, borderValue=fill)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image (H, W, 3) -> (height, width, 3), averaging where it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resize_raw(raw: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """raw (B, C, h, w) -> (B, C, *size) in fp32."""
    if raw.shape[-2:] == size:
        return raw.float()
    return F.interpolate(raw.float(), size=size, mode=mode, align_corners=False)


def fitted_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) of a frame whose longer side becomes `long_side`; 0 leaves it."""
    if not long_side:
        return height, width
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def random_view(rng: np.random.Generator, height: int, width: int, config: Config) -> View:
    """A mirrored, turned, zoomed crop of a frame (height, width); padded where the zoomed frame is smaller."""
    zoom = float(np.exp(rng.uniform(*np.log(config.zoom))))
    mirror = bool(config.mirror and rng.random() < 0.5)
    angle = float(rng.uniform(-config.rotation, config.rotation))
    zoomed = tuple(max(1, round(zoom * side)) for side in fitted_size(height, width, config.long_side))
    # An offset in whole pixels: the pixels of the zoomed frame are copied. Negative where there is room to spare.
    top, left = (
        int(rng.integers(min(0, room), max(0, room) + 1))
        for room in (zoomed[0] - config.crop[0], zoomed[1] - config.crop[1])
    )
    center = np.array([(zoomed[1] - 1) / 2, (zoomed[0] - 1) / 2])
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2] @ np.diag([-1.0 if mirror else 1.0, 1.0])
    turn = np.column_stack([turn, center - (left, top) - turn @ center])
    return View((height, width), zoomed, turn, *config.crop, zoom, mirror, angle)
