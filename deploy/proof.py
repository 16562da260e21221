"""Proof that an exported file gives what its checkpoint gives: both predict the same pictures, from their pixels on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deploy.backend_base import Backend, filled_up
from deploy.predictor import Predictor
from geometry import fitted_size, resize_image
from model import Network, decode
from tasks import Task, completed, decoded


@dataclass(frozen=True)
class Difference:
    """How a file's predictions of one task differ from the checkpoint's, over all pixels."""

    task: str
    changed: float  # share of what is counted
    counted: str  # pixels, or what else the task counts, and how many where the number tells something
    largest: float | None  # of real numbers, in the task's unit; None for classes
    agreement: float | None  # of classes: mean IoU of the file's map with the checkpoint's; None for real numbers
    finite: bool

    def __str__(self) -> str:
        detail = (
            f"mean IoU with the checkpoint's {self.agreement:.4f}" if self.largest is None else
            f"largest difference {self.largest:.2g}"
        )  # fmt: skip
        return f"{self.changed:.4%} of {self.counted} changed, {detail if self.finite else 'NaN or infinite values'}"


def several_sizes(pictures: Sequence[np.ndarray], size: tuple[int, int] | None) -> list[np.ndarray]:
    """The pictures, and the first one at other sizes and shapes. For a graph of a fixed size, all at that size, and the
    left half of the first one, which does not fill the graph."""
    if size is not None:
        whole = [resize_image(_cut_to_shape(picture, *size), *size) for picture in pictures]
        return [*whole, whole[0][:, : size[1] // 2]]
    height, width = pictures[0].shape[:2]
    others = [resize_image(pictures[0], max(1, height // 2), max(1, width // 2)), pictures[0][:, : max(1, width // 2)]]
    return [*pictures, *others]


def _cut_to_shape(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of the picture with the ratio of these sides."""
    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    sides = [max(1, round(scale * side)) for side in (height, width)]
    top, left = ((of - side) // 2 for of, side in zip(picture.shape, sides, strict=False))
    return picture[top : top + sides[0], left : left + sides[1]]


def reference(network: Network, tasks: Mapping[str, Task], picture: np.ndarray, backend: Backend) -> dict[str, Tensor]:
    """The checkpoint's predictions, at the size of the picture, from the picture at the size of the training.

    A file with its post-processing inside gives predictions at the size that it sees, which the reader enlarges. So
    does the reference then. And where the picture does not fill a graph of a fixed size, both see the same filled up.
    """
    size, fixed, units = picture.shape[:2], backend.signature.size, backend.signature.units_out
    fitted = backend.input_size(*size) if units or fixed else size
    whole = fixed or fitted
    if fixed:
        picture = as_picture(filled_up(as_images(resize_image(picture, *fitted)), whole))
    seen = fitted_size(*picture.shape[:2], network.config.long_side, network.config.short_side)
    raws = network(as_images(resize_image(picture, *seen)))
    if not units:
        if whole != fitted:
            raws = {name: task.crop(raws[name], fitted, whole) for name, task in tasks.items()}
        return decode(raws, dict.fromkeys(tasks, size), tasks)
    found = decoded(raws, dict.fromkeys(tasks, whole), tasks)
    if whole != fitted:
        found = {name: tasks[name].cut(value, fitted) for name, value in found.items()}
    return completed({name: tasks[name].resize(value, fitted, size) for name, value in found.items()}, tasks)


def as_images(picture: np.ndarray) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W)"""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]


def as_picture(images: Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3)"""
    return np.ascontiguousarray(images[0].permute(1, 2, 0).numpy())


@torch.inference_mode()
def differences(
    backend: Backend,
    network: Network,
    tasks: Mapping[str, Task],
    pictures: Sequence[np.ndarray],
    tolerance: float,
) -> Iterator[Difference]:
    """Compares a file with its network in eager fp32 on pictures (H, W, 3) uint8 of any size.

    tasks: the network's that the file gives. A class changed when it is another, a value when it is off by more than
    `tolerance` times itself, or a tenth of the mean value where it is below that; NaN and infinity always changed.
    """
    predictor = Predictor(backend)
    changed, pixels = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    largest: dict[str, float] = {}
    counts: dict[str, Tensor] = {}
    for picture in pictures:
        expected = reference(network, tasks, picture, backend)
        found = predictor.tensors([picture])
        for name, value in expected.items():
            other, task = found[name].cpu(), tasks[name]
            off, wrong, count = task.difference(other, value, tolerance)
            if value.is_floating_point():
                largest[name] = max(largest.get(name, 0.0), off)
            else:
                classes = task.channels
                pairs = torch.bincount(value.flatten().long() * classes + other.flatten().long(), minlength=classes**2)
                counts[name] = counts.get(name, 0) + pairs.view(classes, classes)
            changed[name] += wrong
            pixels[name] += count
    for name in tasks:
        agreement = mean_iou(counts[name]) if name in counts else None
        counted = "the pixels" if tasks[name].counted == "pixels" else f"{pixels[name]} {tasks[name].counted}"
        yield Difference(
            name,
            changed[name] / max(1, pixels[name]),
            counted,
            largest.get(name),
            agreement,
            largest.get(name, 0.0) < math.inf,
        )


def mean_iou(counts: Tensor) -> float:
    """Confusion counts (C, C) -> mean intersection over union of the classes that occur."""
    counts = counts.double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((counts.diagonal() / union)[union > 0].mean())
