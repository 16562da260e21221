"""The data of a training, as its settings say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, compress
from pathlib import Path

import numpy as np

import distributed
from config import Config
from dataset import Frames, class_frequencies
from folders import make_domains, read_folder, read_list, refuse_shared_frames
from rooms.generate import write as write_rooms
from tasks import Task, tasks_from_plain
from training.frozen import kept_tasks
from training.mixture import Mixture


def load_data(
    config: Config, resume: Mapping[str, object] | None
) -> tuple[dict[str, Task], Mixture, dict[str, Frames]]:
    """The tasks of the heads, the training frames, and each data set's validation frames.

    The tasks are those of `config`, or of the checkpoint to resume.
    """
    if distributed.is_main() and config.data == Config().data and not Path(next(iter(config.data))).exists():
        print(f"{next(iter(config.data))} does not exist: generating it, once")
        write_rooms(Path(next(iter(config.data))), workers=2)
    distributed.wait()
    folders = [read_folder(path, config.teacher_labels) for path in config.data]
    if config.teacher_labels and not any(folder.taught for folder in folders):
        raise ValueError(
            f"teacher_labels: no data set has labels in {config.teacher_labels}/: python teach.py makes them"
        )
    heads, domains = make_domains(folders, config)
    heads |= kept_tasks(config) if not resume else {}
    if resume:
        stored = {name: tasks_from_plain(tasks) for name, tasks in resume["domains"].items()}
        if stored.keys() != domains.keys():
            raise ValueError(f"data: {', '.join(domains)}, but the run was started with {', '.join(stored)}")
        heads, domains = tasks_from_plain(resume["tasks"]), stored
    train_lists = [read_list(folder, config.train_split, config.teacher_labels) for folder in folders]
    val_lists = [read_list(folder, config.val_split) for folder in folders]
    # Training and validating on one split is allowed, to check that the network can overfit.
    if config.val_split != config.train_split:
        refuse_shared_frames(list(chain(*train_lists)), list(chain(*val_lists)))
    parts, val = [], {}
    for folder, train_list, val_list in zip(folders, train_lists, val_lists, strict=True):
        part = Frames(folder, train_list, domains[folder.name], config, train=True)
        if config.cache:
            part.decode_all(range(len(part)))
        if config.class_weights == "log" and not resume:
            for number, (name, task) in enumerate(part.tasks.items()):
                labeled = any(part.weights(index)[number] for index in range(len(part)))
                if labeled:
                    weights = 1 / np.log(1.02 + class_frequencies(part, task))
                    part.tasks[name] = task.with_class_weights(weights.tolist())
        parts.append(part)
        val[folder.name] = Frames(folder, val_list, part.tasks, config, train=False)
        if config.cache:
            frames = val[folder.name]
            frames.decode_all(range(distributed.rank(), len(frames), distributed.count()))  # what eval_loader takes
    return heads, Mixture(parts, list(config.data.values())), val


def cameras_of(mixture: Mixture) -> dict[str, dict[str, float]]:
    """The cameras of the training frames, as model.cameras_from_plain describes them."""
    cameras: dict[str, dict[str, float]] = {}
    for part in mixture.parts:
        folder, follow = part.folder, [task.follows_camera for task in part.tasks.values()]
        if not any(any(compress(part.weights(index), follow)) for index in range(len(part))):
            continue
        cameras[folder.name] = {}
        if folder.camera:
            # Intrinsics without a size are those of the frames as they are.
            sized = {"width", "height"} <= folder.camera.keys()
            sides = (folder.camera["width"], folder.camera["height"]) if sized else part.read(0)["image"].shape[:2]
            cameras[folder.name] = {"focal_px": folder.camera["fx"], "long_side": float(max(sides))}
    return cameras


def some_labels(mixture: Mixture, task: str, most: int = 64) -> Iterator[np.ndarray]:
    """Training labels of a task as they are on disk, at most so many, from all over the data sets."""
    places = [
        (part, index)
        for part in mixture.parts
        for index in range(len(part))
        if task in part.tasks and part.weights(index)[list(part.tasks).index(task)]
    ]
    for part, index in places[:: max(1, -(-len(places) // most))]:
        yield part.arrays(index)[task]
