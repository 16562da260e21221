"""Predictor: pictures to predictions, with a network in the fastest back end and all steps before and after it.

predictor = Predictor("runs/x/best.pt")     # or a file of export.py
result = predictor(image)                   # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.backends import Backend, open_backend
from deploy.field_of_view import FieldOfView
from drawing import Panel, side_by_side
from geometry import camera_with, fov_with, resize_image, stride_for
from images import write_jpeg
from model import Network, predict_batch, tasks_of
from tasks import Task

PIXELS_TO_SEE = 2**23
PINNED = 2**26  # bytes of predictions on a GPU that are copied to pinned memory

Change = Callable[[Tensor, Mapping[str, Tensor]], Mapping[str, Tensor]]


class Predictor:
    """Images (H, W, 3) uint8 RGB of any size -> {task: prediction at the image's size}, numpy.

    "segmentation": (H, W) uint8 class ids; "depth": (H, W) float32 metres; "normals": (3, H, W) float32; "boxes": a
    structured array with `box`, `score`, `class`, `distance_m`, `xyz_m` (tasks/boxes.py).

    source: a checkpoint, a file of export.py, a network, or an open back end. backend: auto, or a name in
    backends.BACKENDS. device: auto, cpu, cuda, cuda:N. domain: a data set of the training whose classes and range are
    wanted, "" for all. mirror: average with the mirrored picture. few: for a few pictures, for which a back end that
    takes seconds to set up does not pay. score: least of the boxes that are given. overlap: IoU with a better box of
    its class above which a box is left out. fov: horizontal field of view of all pictures in degrees; None = as
    `focal` says in each call, 0 = not known (deploy/field_of_view.py).
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
        few: bool = False,
        score: float | None = None,
        overlap: float | None = None,
        fov: float | None = None,
    ) -> None:
        for name, value in (("score", score), ("overlap", overlap)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; allowed: 0 to 1")
        source = Path(source) if isinstance(source, str) else source
        self.backend = open_backend(source, backend, device, precision, few)
        tasks = tasks_of(self.backend, domain, source)
        self.tasks = {name: task.with_thresholds(score, overlap) for name, task in tasks.items()}
        self.field_of_view = FieldOfView(self.backend, domain, fov)
        self.mirror = mirror
        if mirror:
            self.backend.require_raw("--mirror")
        if overlap is not None:
            self.backend.require_raw("--overlap")
        for name, task in tasks.items():
            if score is not None and task.scores_inside and score < task.least_score:
                self.backend.require_raw(f"--score below {task.least_score:g}, with {name},")

    def __call__(self, image: np.ndarray, focal: float | None = None) -> dict[str, np.ndarray]:
        """focal: of the picture, in units of its longer side (images.read_photo); None = not known."""
        return self.batch([image], focals=[focal])[0]

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images of one size -> (B, 3, h, w) uint8 at the size at which the network wants them."""
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"expected images (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        size = self.backend.input_size(*images[0].shape[:2])
        fitted = [np.ascontiguousarray(resize_image(image, *size)) for image in images]  # torch takes no flipped views
        pixels = torch.from_numpy(fitted[0][None] if len(fitted) == 1 else np.stack(fitted)).permute(0, 3, 1, 2)
        return pixels.pin_memory() if self.backend.device.type == "cuda" else pixels

    def batch(
        self, images: Sequence[np.ndarray], change: Change | None = None, focals: Sequence[float | None] = ()
    ) -> list[dict[str, np.ndarray]]:
        """Images of one size, and their focal lengths where known -> their predictions. `change` works on the network's
        raw outputs, (pixels, outputs) -> outputs, before they become predictions (video.Smoother)."""
        pairs = zip(self._arrays(self.tensors(images, change)), focals or [None] * len(images), strict=True)
        return [self._for_camera(arrays, focal, images[0].shape[:2]) for arrays, focal in pairs]

    @torch.inference_mode()
    def tensors(self, images: Sequence[np.ndarray], change: Change | None = None) -> dict[str, Tensor]:
        """{task: prediction (B, ...)} for images of one size and the camera of the training."""
        sizes = dict.fromkeys(self.tasks, images[0].shape[:2])
        pixels = self.pixels(images)
        if change is None:
            return predict_batch(self.backend, pixels, sizes, mirror=self.mirror, tasks=self.tasks)
        return self.backend.finish(change(pixels, self.backend(pixels)), pixels.shape[-2:], sizes, self.tasks)

    @torch.inference_mode()
    def with_probabilities(self, image: np.ndarray, task: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The predictions of an image, and a task's scores (C, h, w) as small as the network gives them: probabilities,
        for one with classes; None where the network has no such task. A file with its post-processing inside gives
        classes alone: the probability of each pixel's class is 1."""
        pixels = self.pixels([image])
        sizes = dict.fromkeys(self.tasks, image.shape[:2])
        if self.backend.signature.units_out:
            outputs = self.backend.outputs(pixels)
            found = self.backend.finish(
                outputs, pixels.shape[-2:], dict.fromkeys(self.tasks, image.shape[:2]), self.tasks
            )
            ids = outputs.get(task)
            scores = None if ids is None else torch.nn.functional.one_hot(ids[0].long(), self.tasks[task].channels)
            return self._arrays(found)[0], None if scores is None else scores.permute(2, 0, 1).float().numpy()
        raw = self.backend(pixels)
        found = self.backend.finish(raw, pixels.shape[-2:], sizes, self.tasks)
        if task not in self.tasks:
            return self._arrays(found)[0], None
        own = self.tasks[task]
        scores = own.scores(own.select(raw[task].float()), raw[task].shape[-2:])
        return self._arrays(found)[0], scores[0].cpu().numpy()

    def _for_camera(
        self, found: dict[str, np.ndarray], focal: float | None, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        zoom = self.field_of_view.zoom(focal, *size)
        if zoom != 1:
            found = {name: self.tasks[name].for_camera(item, zoom) for name, item in found.items()}
        if (known := self.field_of_view.focal(focal, *size)) is None:
            return found
        camera = camera_with(fov_with(known, *size), size[1], size[0])
        return {name: self.tasks[name].in_space(item, camera) for name, item in found.items()}

    def _arrays(self, found: Mapping[str, Tensor]) -> list[dict[str, np.ndarray]]:
        # One wait for all copies, into pinned memory, which is fast: PyTorch keeps it, so not that of large pictures.
        if 0 < sum(value.nbytes for value in found.values() if value.is_cuda) < PINNED:
            found = {name: value.to("cpu", non_blocking=True) for name, value in found.items()}
            torch.cuda.current_stream(self.backend.device).synchronize()
        arrays = [self.tasks[name].arrays(value) for name, value in found.items()]
        return [dict(zip(found, values, strict=True)) for values in zip(*arrays, strict=True)]


def save_predictions(
    stem: Path, image: np.ndarray, tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray], name: str = ""
) -> None:
    """Writes STEM_task.png (or what the task saves), STEM_task_color.jpg and STEM_overview.jpg. `name` is that of the
    image's file."""
    # Pictures for looking at need not have all pixels of a very large image.
    step = stride_for(*image.shape[:2], PIXELS_TO_SEE)
    panels: list[Panel] = [("image", image[::step, ::step], [])]
    for kind, task in tasks.items():
        size, found = image.shape[:2], predictions[kind]
        picture = task.panel(found, panels[0][1], size)
        panels.append((kind, picture, task.legend(found)))
        task.save_frame(found, stem.with_name(task.file_name(stem.name)), name, size)
        write_jpeg(stem.with_name(f"{stem.name}_{kind}_color.jpg"), picture)
    write_jpeg(stem.with_name(f"{stem.name}_overview.jpg"), side_by_side(panels))
