"""Frames of a data set -> samples and batches. folders.py reads its description, training/mixture.py mixes several."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import distributed
from config import Config
from folders import Folder, Frame
from geometry import LEAST_SIDE, fitted_size, random_view, resize_image, scaled_camera
from images import read_image
from tasks import TASKS, Task
from tasks.base import Target

Batch = dict[str, Tensor | Target]

PADDING_RGB = (124, 116, 104)  # the ImageNet mean: close to zero after normalisation

# ---------------------------------------------------------------------------------------------- frames


def color_changes(strength: float) -> Callable[..., dict[str, np.ndarray]]:
    """Of brightness, contrast, saturation and hue: call(image=(H, W, 3) uint8) -> {"image": the changed one}."""
    # It asks the package index for a newer version when it is imported, which takes most of a second besides.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    factors = (max(0.1, 1 - 0.6 * strength), 1 + 0.6 * strength)
    hue = min(0.5, 0.1 * strength)
    return albumentations.ColorJitter(factors, factors, factors, (-hue, hue), p=0.8)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that this process can still get: of the machine, and of its container or batch job.

    Unlike free memory, it includes what Linux uses to cache files.
    """
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        machine = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):  # not Linux
        machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *cgroup_memory(cgroups, own_cgroup)])


def cgroup_memory(cgroups: Path, own_cgroup: Path) -> list[int]:
    """Bytes that are left to each control group, version 1 or 2, that this process is in and that has a limit."""
    try:
        lines = [line.split(":", 2) for line in own_cgroup.read_text().splitlines()]
    except OSError:  # not Linux
        return []
    left = []
    for _, controllers, path in lines:
        if not controllers:
            mount, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # The limits of all groups above count, too. In a container the path may be the host's, which is not there:
        # then the container's own group is the mount itself.
        group = mount / path.strip("/")
        groups = [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
        for folder in groups:
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such group, or "max": no limit
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left.append(max(0, limit - used + int(stat[names[2]])))
    return left


class Frames(Dataset):
    """Frames of a list with their labels, as tensors: {"image": (3, H, W) uint8, task: label, ...}.

    In training, item (..., index) is a random view. It depends on the seed and these numbers alone: it is the same
    with any number of workers, and after a resume. In evaluation, item `index` is the image at the network's
    resolution, the labels as they are on disk, and "size" (2,), height and width of the frame; with several `scales`
    also the image at each of them, see `scaled_name`.
    """

    def __init__(
        self,
        folder: Folder,
        frames: Sequence[Frame],
        tasks: Mapping[str, Task],
        config: Config,
        train: bool,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        self.folder, self.frames, self.tasks, self.config, self.train = folder, frames, tasks, config, train
        self.scales = tuple(scales)
        self.decoded: dict[int, dict[str, np.ndarray]] = {}  # by index, see `decode_all`
        # Before OpenCV starts threads of its own: they would not survive the fork of the loader processes, which
        # would wait for them forever. The frames are the parallel work here.
        cv2.setNumThreads(1)
        self.color = color_changes(config.color) if train and config.color else None

    def __len__(self) -> int:
        return len(self.frames)

    def weights(self, index: int) -> tuple[float, ...]:
        """For each task what the frame's label weighs: 1, teacher_weight for a teacher's, 0 for none."""
        frame = self.frames[index]
        return tuple(
            1.0
            if name in frame.labels or self.folder.derived.get(name) in frame.labels
            else self.config.teacher_weight * (name in frame.taught)
            for name in self.tasks
        )

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The decoded image and labels of a frame, at their own size; a task without a label is not in it."""
        frame = self.frames[index]
        image = read_image(frame.image)
        arrays = {"image": image}
        for (name, task), weight in zip(self.tasks.items(), self.weights(index), strict=True):
            if not weight:
                continue
            size, source = image.shape[:2], self.folder.derived.get(name, "")
            if name in frame.labels:
                arrays[name] = read_label(task, frame.labels[name], self.folder.sections[name], frame.image, size)
            elif source in frame.labels:
                section = self.folder.sections[source]
                given = TASKS[source].from_section(section, self.config)
                label = read_label(given, frame.labels[source], section, frame.image, size)
                arrays[name] = task.derive(label, scaled_camera(self.folder.camera, *size))
            else:
                arrays[name] = read_label(task, frame.taught[name], self.folder.taught[name], frame.image, size)
        return arrays

    def decode_all(self, indices: Sequence[int]) -> None:
        """Keeps these frames in memory, shared with loader processes that are forked later, if they fit."""
        if not indices:
            return
        fullest = max(indices, key=lambda index: sum(weight > 0 for weight in self.weights(index)))
        needed = len(indices) * sum(array.nbytes for array in self.read(fullest).values())
        # The other training processes of this machine keep their frames at the same time.
        free = available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if needed > 0.7 * free:
            print(
                f"cache: {needed / 2**30:.1f} GiB of frames do not fit into {free / 2**30:.1f} GiB: reading from disk"
            )
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.decoded = dict(zip(indices, pool.map(self.read, indices), strict=True))

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """`read`, or what `decode_all` keeps."""
        return self.decoded[index] if index in self.decoded else self.read(index)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Tensor]:
        index = key[-1] if self.train else key
        arrays = self.arrays(index)
        image = arrays["image"]
        if self.train:
            rng = np.random.default_rng([self.config.seed, *key])
            view = random_view(rng, *image.shape[:2], self.config)
            image = view.resample(image, PADDING_RGB)
            if self.config.color:
                self.color.set_random_seed(int(rng.integers(2**31)))
                image = self.color(image=image)["image"]
            labels = {
                name: task.view(arrays[name], view) if name in arrays else task.no_label(*self.config.crop)
                for name, task in self.tasks.items()
            }
            tensors = {"image": image_tensor(image)}
        else:
            size = image.shape[:2]
            labels = {
                name: arrays[name] if name in arrays else task.no_label(*size) for name, task in self.tasks.items()
            }
            fitted = fitted_size(*size, self.config.long_side, self.config.short_side)
            tensors = {"size": torch.tensor(size), "image": image_tensor(resize_image(image, *fitted))}
            for scale in self.scales:
                # From the frame itself, as the views of a training: a network takes sharpness for distance.
                scaled = (max(LEAST_SIDE, round(side * scale)) for side in fitted)
                if scale != 1:
                    tensors[scaled_name(scale)] = image_tensor(resize_image(image, *scaled))
        return tensors | {name: task.to_tensor(labels[name]) for name, task in self.tasks.items()}


def read_label(task: Task, path: Path, section: Mapping[str, object], image: Path, size: tuple[int, int]) -> np.ndarray:
    """The label of a frame, given its picture's file and size. Raises ValueError that names the file."""
    return task.at_size(task.read(path, section, image), size, section, path)


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W)"""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def scaled_name(scale: float) -> str:
    """The key of the image at a scale in samples and batches of evaluation."""
    return "image" if scale == 1 else f"image at {scale:g}"


def class_frequencies(frames: Frames, task: Task) -> np.ndarray:
    """(C,) share of each class among all labels of the frames; (0,) for a task without class weights.

    Raises ValueError when nothing is labeled.
    """
    labels = (frames.arrays(index).get(task.name) for index in range(len(frames)))
    counts = np.asarray(sum(task.class_counts(label) for label in labels if label is not None))
    if counts.shape == (0,):
        return counts
    if not counts.any():
        raise ValueError(f"{frames.folder.root}: no pixel has a class, so that no class has a frequency ({task.name})")
    return counts / counts.sum()


def collate(samples: Sequence[Mapping[str, Tensor]], tasks: Mapping[str, Task]) -> Batch:
    """Samples with images of one size -> batch: each task collates its labels, everything else is stacked."""
    return {
        name: (tasks[name].collate if name in tasks else torch.stack)([sample[name] for sample in samples])
        for name in samples[0]
    }


def group_by_shape(samples: Sequence[Mapping[str, Tensor]], tasks: Mapping[str, Task]) -> list[Batch]:
    """Samples of evaluation -> a batch for each size of frames and of images."""
    groups: dict[tuple[int, ...], list[Mapping[str, Tensor]]] = {}
    for sample in samples:
        groups.setdefault((*sample["image"].shape, *sample["size"].tolist()), []).append(sample)
    return [collate(group, tasks) for group in groups.values()]


def _start_worker(worker: int) -> None:
    # Ctrl-C and what a scheduler sends reach the loaders too, but the training process first finishes its step and
    # saves: SIGTERM ends a loader a minute later. `utils.run` ends them with the script.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60))


def loader_of(frames: Dataset, config: Config, pin: bool, **arguments: object) -> DataLoader:
    """A DataLoader with `workers` processes. `pin` its batches for a GPU; the other arguments are DataLoader's."""
    # Forked workers share the decoded frames of the parent instead of copying them.
    fork = {"multiprocessing_context": multiprocessing.get_context("fork"), "prefetch_factor": 4}
    return DataLoader(
        frames, num_workers=config.workers, pin_memory=pin, worker_init_fn=_start_worker,
        **(fork if config.workers else {}), **arguments,
    )  # fmt: skip


def batches_of(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """Iterates over the loader. A dead worker raises RuntimeError here, when its batch is requested.

    PyTorch's SIGCHLD handler would raise anywhere, also in an optimizer step or while a checkpoint is written.
    """
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield from batches
    except (ConnectionError, EOFError) as problem:  # it died while it handed over a batch
        raise RuntimeError(f"DataLoader worker: {problem}") from None


def eval_loader(frames: Frames, config: Config, pin: bool = False) -> DataLoader:
    """Lists of batches (see `group_by_shape`); every frame once, in order, in one of the processes.

    `pin` for a GPU. Without one the network takes all cores, and other processes beside it cost more than they save.
    """
    if not pin:
        config = dataclasses.replace(config, workers=0)
    own = range(distributed.rank(), len(frames), distributed.count())
    together = functools.partial(group_by_shape, tasks=frames.tasks)
    return loader_of(frames, config, pin, batch_size=config.batch_size, collate_fn=together, sampler=own)
