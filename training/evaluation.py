"""Metrics of a network over the frames of data sets: used in training, by evaluate.py and by export.py."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import distributed
from config import Config
from dataset import Frames, eval_loader, scaled_name
from deploy.backends import Backend
from folders import Folder, label_tasks, read_list
from metrics import Metrics, Protocol
from model import Network, predict_scales, tasks_of
from tasks import Task
from utils import autocast, pick_precision


@torch.inference_mode()
def accumulate(
    network: Network | Backend,
    loader: DataLoader,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    mirror: bool = False,
    progress: bool = False,
    tasks: Mapping[str, Task] | None = None,
) -> dict[str, Metrics]:
    """{task: metrics} of every frame of `loader` (`dataset.eval_loader`) at ground-truth size, seen at the scales that
    its frames have.

    With several processes, over the frames of all their loaders. `tasks` are those of the loader's data set, by default
    the network's. The network must be in eval mode.
    """
    tasks = network.tasks if tasks is None else tasks
    metrics = {name: task.metrics(protocol) for name, task in tasks.items()}
    shown = progress and distributed.is_main()
    for batches in tqdm(loader, desc="evaluate", disable=None if shown else True, leave=False):
        for batch in batches:
            images = {
                scale: batch[scaled_name(scale)].to(device, non_blocking=True, memory_format=torch.channels_last)
                for scale in loader.dataset.scales
            }
            sizes = dict.fromkeys(tasks, tuple(batch["size"][0].tolist()))
            with autocast(device, precision):
                predictions = predict_scales(network, images, sizes, mirror, tasks)
            targets = {}
            for name, prediction in predictions.items():
                # Where the prediction is: a back end may compute on another device than `device`.
                send = functools.partial(Tensor.to, device=prediction.device, non_blocking=True)
                targets[name] = tasks[name].move(batch[name], send)
            for name, prediction in predictions.items():
                metrics[name].update(prediction, tasks[name].complete_target(targets[name], targets, tasks))
    mine, *others = distributed.gather(metrics)
    for theirs in others:
        for name, item in mine.items():
            item.merge(theirs[name])
    return mine


def values_of(metrics: Mapping[str, Metrics]) -> dict[str, float]:
    """{"task/metric": value}"""
    return {f"{task}/{name}": value for task, item in metrics.items() for name, value in item.compute().items()}


def pick_tasks(network: Network | Backend, folder: Folder, path: Path, domain: str = "") -> dict[str, Task]:
    """The tasks to evaluate on a data set: those of `domain`, or else the first that fit its labels, of the network's
    data set of the same name, of its other data sets, of all its heads.

    Raises ValueError when none fit, or no task has labels there.
    """
    labeled = label_tasks(folder)
    if not set(network.tasks) & set(labeled):
        raise ValueError(f"{folder.root} has labels for {', '.join(labeled)}, {path} for {', '.join(network.tasks)}")
    named = [network.domains[folder.name]] if folder.name in network.domains else []
    choices = [*named, *network.domains.values(), network.tasks]
    if domain:
        choices = [tasks_of(network, domain, path)]
    reasons = []
    for tasks in choices:
        misfits = [task.misfit(folder.sections[name]) for name, task in tasks.items() if name in folder.sections]
        if not any(misfits) and (domain or set(tasks) & set(labeled)):  # a kept task is in none of the data sets
            return tasks
        reasons += list(filter(None, misfits))[:1]
    raise ValueError(
        f"{folder.root}: its classes are not those of {path}: it has {' or '.join(dict.fromkeys(reasons))}"
    )


@dataclass(frozen=True)
class Settings:
    """How checkpoints are evaluated, from the command line."""

    config: Config  # of the first checkpoint, with what the command line changes: machine, data, split
    device: torch.device
    protocol: Protocol
    scales: tuple[float, ...]
    mirror: bool


def frames_of(
    network: Network | Backend, folder: Folder, split: str, tasks: Mapping[str, Task], settings: Settings
) -> Frames:
    """The frames of a split, at the size that the network takes."""
    # The size of the images is the network's own; the machine's settings are those of the command line.
    own = network.config
    config = dataclasses.replace(settings.config, long_side=own.long_side, short_side=own.short_side)
    return Frames(folder, read_list(folder, split), tasks, config, False, settings.scales)


def evaluate_folder(
    network: Network | Backend, folder: Folder, split: str, tasks: Mapping[str, Task], settings: Settings
) -> tuple[dict[str, float], int]:
    """The metrics on a split of a data set, and its number of frames."""
    frames = frames_of(network, folder, split, tasks, settings)
    if isinstance(network, Network):
        network = network.to(settings.device, memory_format=torch.channels_last)
    precision = pick_precision(settings.config.precision, settings.device)
    metrics = accumulate(
        network, eval_loader(frames, frames.config, pin=settings.device.type == "cuda"), settings.device, precision,
        settings.protocol, settings.mirror, progress=True, tasks=tasks,
    )  # fmt: skip
    return values_of(metrics), len(frames)
