"""Where a network is wrong: the frames of a split with the worst metrics, and pictures of them beside their labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import Frames, scaled_name
from deploy.backends import Backend
from drawing import Panel, side_by_side
from images import write_jpeg
from metrics import Protocol
from model import Network, predict_scales
from tasks import Task
from utils import autocast


@torch.inference_mode()
def predict_frame(
    network: Network | Backend,
    frames: Frames,
    sample: Mapping[str, Tensor],
    size: tuple[int, int],
    device: torch.device,
    precision: torch.dtype = torch.float32,
    mirror: bool = False,
) -> dict[str, Tensor]:
    """A sample of evaluation -> {task: prediction (1, ...) for a frame of `size`}. The network must be in eval mode."""
    images = {
        scale: sample[scaled_name(scale)][None].to(device, memory_format=torch.channels_last) for scale in frames.scales
    }
    with autocast(device, precision):
        return predict_scales(network, images, dict.fromkeys(frames.tasks, size), mirror, frames.tasks)


def draw_frame(
    tasks: Mapping[str, Task], sample: Mapping[str, Tensor], found: Mapping[str, Tensor], size: tuple[int, int]
) -> np.ndarray:
    """The image of a sample of evaluation, then each task's label and prediction, side by side.

    size: of the frame that the predictions are for.
    """
    image = sample["image"].permute(1, 2, 0).numpy()
    panels: list[Panel] = [("image", image, [])]
    for name, task in tasks.items():
        (shown,), label_size = task.arrays(found[name]), tuple(sample["size"].tolist())
        panels.append((f"{name}, label", task.draw(sample[name].numpy(), label_size, image.shape[:2]), []))
        panels.append((f"{name}, predicted", task.draw(shown, size, image.shape[:2]), task.legend(shown)))
    return side_by_side(panels)


@torch.inference_mode()
def write_worst(
    network: Network | Backend,
    frames: Frames,
    count: int,
    folder: Path,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    mirror: bool = False,
) -> dict[str, list[dict[str, object]]]:
    """Draws the frames with the worst values of each task into FOLDER/TASK-RANK.jpg.

    By each task's deciding metric, of one frame alone; frames without a value do not take part. Returns
    {task: [{"image", metric: value, "picture"}, ...]}, the worst first.
    """
    values: dict[str, list[tuple[float, int]]] = {name: [] for name in frames.tasks}

    def predict(index: int) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[int, int]]:
        sample = frames[index]
        size = tuple(sample["size"].tolist())
        return sample, predict_frame(network, frames, sample, size, device, precision, mirror), size

    for index in tqdm(range(len(frames)), desc="worst frames", disable=None, leave=False):
        sample, found, _ = predict(index)
        targets = {}
        for name, task in frames.tasks.items():
            targets[name] = task.move(
                task.collate([sample[name]]), functools.partial(Tensor.to, device=found[name].device)
            )
        for name, task in frames.tasks.items():
            metrics = task.metrics(protocol)
            metrics.update(found[name], task.complete_target(targets[name], targets, frames.tasks))
            value = metrics.compute().get(task.best, math.nan)
            if math.isfinite(value):
                values[name].append((task.directions[task.best] * value, index))
    folder.mkdir(parents=True, exist_ok=True)
    worst: dict[str, list[dict[str, object]]] = {}
    for name, task in frames.tasks.items():
        worst[name] = []
        for rank, (value, index) in enumerate(sorted(values[name])[:count], 1):
            picture = folder / f"{name}-{rank}.jpg"
            sample, found, size = predict(index)
            write_jpeg(picture, draw_frame(frames.tasks, sample, found, size))
            worst[name].append({
                "image": str(frames.frames[index].image), task.best: task.directions[task.best] * value,
                "picture": str(picture),
            })  # fmt: skip
    return worst
