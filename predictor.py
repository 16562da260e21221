"""The one way from pictures to predictions: a network in the fastest back end, with what comes before and after it.

predictor = Predictor("runs/x/best.pt")     # or a file of export.py
result = predictor(image)                   # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backends import Backend, open_backend
from evaluate import predict_batch
from geometry import resize_image
from model import Network, tasks_of
from utils import pick_device


class Predictor:
    """Images (H, W, 3) uint8 RGB of any size -> {task: prediction at the image's size}, numpy.

    "segmentation": (H, W) uint8 class ids; "depth": (H, W) float32 metres; "normals": (3, H, W) float32.

    source: a checkpoint, a file of export.py, a network, or an open back end. backend: auto, or a name in
    backends.BACKENDS. domain: a data set of the training whose classes and range are wanted, "" for all. mirror:
    average with the mirrored picture.
    Raises ValueError or FileNotFoundError in one line.
    """

    def __init__(
        self,
        source: str | Path | Network | Backend,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        domain: str = "",
        mirror: bool = False,
    ) -> None:
        source = Path(source) if isinstance(source, str) else source
        self.backend = open_backend(source, backend, pick_device(device), precision)
        self.tasks = tasks_of(self.backend, domain, source)
        self.mirror = mirror

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return self.batch([image])[0]

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images of one size -> (B, 3, h, w) uint8 at the size at which the network wants them."""
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"expected images (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        size = self.backend.input_size(*images[0].shape[:2])
        fitted = [resize_image(image, *size) for image in images]
        pixels = torch.from_numpy(fitted[0][None] if len(fitted) == 1 else np.stack(fitted)).permute(0, 3, 1, 2)
        return pixels.pin_memory() if self.backend.device.type == "cuda" else pixels

    @torch.inference_mode()
    def batch(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Images of one size -> their predictions."""
        sizes = dict.fromkeys(self.tasks, images[0].shape[:2])
        found = predict_batch(self.backend, self.pixels(images), sizes, mirror=self.mirror, tasks=self.tasks)
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        return [{name: value[number] for name, value in arrays.items()} for number in range(len(images))]
