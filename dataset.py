"""Data sets: a folder with list files -> batches of images and labels. dataset/README.md describes the folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# albumentations asks the package index for a newer version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from config import Config, convert, near, read_yaml
from geometry import fitted_size, random_view, resize_image
from tasks import TASKS, Task, check_keys
from utils import read_image

PADDING_RGB = (124, 116, 104)  # the ImageNet mean: close to zero after normalisation

# The public NYUDv2 archive has no dataset.yaml; this is what it would say.
NYUD_LISTS = {"train": "train_list_depth.txt", "val": "val_list_depth.txt"}
NYUD_YAML: dict[str, object] = {
    "name": "nyud",
    "splits": NYUD_LISTS,
    "columns": ["image", "segmentation", "depth"],
    "segmentation": {"classes": "nyu40", "ignore": "255"},
    "depth": {"metres_per_unit": "0.0002", "max": "10"},
    "camera": {"fx": "518.9", "fy": "519.5", "cx": "325.6", "cy": "253.7", "width": "640", "height": "480"},
}


# ---------------------------------------------------------------------------------------------- folders


@dataclass(frozen=True)
class Folder:
    """A data set on disk, as its dataset.yaml describes it."""

    root: Path
    name: str
    splits: dict[str, str]  # split -> list file
    columns: tuple[str, ...]  # of the list files: "image" and tasks
    sections: dict[str, dict[str, object]]  # task -> what Task.read_section made of its part of dataset.yaml
    camera: dict[str, float]  # fx, fy, cx, cy, width, height in pixels; {} = not known


@dataclass(frozen=True)
class Frame:
    image: Path
    labels: dict[str, Path]  # task -> file; a task without a label is not in it
    where: str  # list file and line


def read_folder(path: str | Path) -> Folder:
    """Reads a data set's description. Raises FileNotFoundError, or ValueError with file and key."""
    root = Path(path)
    yaml_file = root / "dataset.yaml"
    if yaml_file.is_file():
        values, where = read_yaml(yaml_file), str(yaml_file)
    elif (root / NYUD_LISTS["train"]).is_file():
        values, where = NYUD_YAML, f"{root} (public NYUDv2 archive)"
    elif root.is_dir():
        raise FileNotFoundError(f"{root}: it has no dataset.yaml; dataset/README.md shows one")
    else:
        raise FileNotFoundError(
            f"{root}: no such data set. Three ways to get one: `python rooms.py` generates furnished rooms; "
            "`python prepare.py nyudv2 --download` fetches NYUDv2 (812 MB); or make a folder of your own images "
            "as dataset/README.md shows"
        )
    check_keys(values, {"name", "splits", "columns", "camera", "poses", *TASKS}, where)
    for key in ("splits", "columns"):
        if key not in values:
            raise ValueError(f"{where}: {key} is missing")
    splits = convert(values["splits"], dict[str, str], f"{where}: splits")
    columns = convert(values["columns"], tuple[str, ...], f"{where}: columns")
    if not columns or columns[0] != "image" or len(set(columns)) != len(columns):
        raise ValueError(f"{where}: columns must start with image and name each task once; got {', '.join(columns)}")
    for column in columns[1:]:
        if column not in TASKS:
            raise ValueError(f"{where}: unknown column {column!r}{near(column, TASKS)}; allowed: {', '.join(TASKS)}")
    sections = {task: TASKS[task].read_section(values.get(task) or {}, f"{where}: {task}") for task in columns[1:]}
    camera = convert(values.get("camera") or {}, dict[str, float], f"{where}: camera")
    return Folder(root, str(values.get("name") or root.name), splits, columns, sections, camera)


def read_list(folder: Folder, split: str) -> list[Frame]:
    """The frames of a split, in order. Raises ValueError with list file and line, also for a missing file."""
    if split not in folder.splits:
        raise ValueError(
            f"{folder.root}: no split {split!r}{near(split, folder.splits)}; it has: {', '.join(folder.splits)}"
        )
    path = folder.root / folder.splits[split]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list file (split {split!r})")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a UTF-8 text file") from None
    frames = [parse_line(folder, f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    for frame in frames:
        for column, file in {"image": frame.image, **frame.labels}.items():
            if not file.is_file():
                raise FileNotFoundError(f"{frame.where}: {column} {file} is missing")
    if not frames:
        raise ValueError(f"{path}: no frames (split {split!r})")
    return frames


def parse_line(folder: Folder, where: str, line: str) -> Frame:
    """A line of a list file. Raises ValueError at `where` for too few or too many columns, or no image."""
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != len(folder.columns):
        wanted = "<tab>".join(folder.columns)
        raise ValueError(f"{where}: {len(cells)} columns, but dataset.yaml says {len(folder.columns)}: {wanted}")
    if cells[0] == "-":
        raise ValueError(f"{where}: a frame needs an image, '-' is for labels")
    image, *labels = (folder.root / cell for cell in cells)
    named = zip(folder.columns[1:], cells[1:], labels, strict=True)
    return Frame(image, {column: file for column, cell, file in named if cell != "-"}, where)


def make_tasks(folder: Folder, config: Config) -> dict[str, Task]:
    """The tasks that `config` names, for this data set. Raises ValueError when it has no such label."""
    tasks = {}
    for name in config.tasks:
        if name not in TASKS:
            raise ValueError(f"tasks: unknown task {name!r}{near(name, TASKS)}; allowed: {', '.join(TASKS)}")
        if name not in folder.sections:
            raise ValueError(f"tasks: {folder.root} has no {name} labels; it has: {', '.join(folder.sections)}")
        tasks[name] = TASKS[name].from_section(folder.sections[name], config)
    for name in config.loss_weights:
        if name not in TASKS:
            raise ValueError(f"loss_weights: unknown task {name!r}{near(name, TASKS)}; allowed: {', '.join(TASKS)}")
    return tasks


# ---------------------------------------------------------------------------------------------- frames


class Frames(Dataset):
    """Frames of a list with their labels, as tensors: {"image": (3, H, W) uint8, task: label, ...}.

    In training, item (epoch, index) is a random view that depends on nothing but (seed, epoch, index): the same
    with any number of workers, and after a resume. In evaluation, item `index` is the image at the network's
    resolution and the labels as they are on disk.
    """

    def __init__(self, folder: Folder, frames: Sequence[Frame], tasks: Mapping[str, Task], config: Config, train: bool):
        self.folder, self.frames, self.tasks, self.config, self.train = folder, frames, tasks, config, train
        self.decoded: list[dict[str, np.ndarray]] | None = None
        # Before OpenCV starts threads of its own: they would not survive the fork of the loader processes, which
        # would wait for them forever. The frames are the parallel work here.
        cv2.setNumThreads(1)
        factors = (max(0.1, 1 - 0.6 * config.color), 1 + 0.6 * config.color)
        hue = min(0.5, 0.1 * config.color)
        self.color = albumentations.ColorJitter(factors, factors, factors, (-hue, hue), p=0.8)

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The decoded files of a frame, at their own size."""
        frame = self.frames[index]
        image = read_image(frame.image)
        full_size = image.shape[:2]
        arrays = {"image": image}
        for name, task in self.tasks.items():
            label = task.no_label(*full_size)
            if name in frame.labels:
                label = task.read(frame.labels[name], self.folder.sections[name])
                if label.shape[:2] != full_size:
                    got, wanted = f"{label.shape[1]}x{label.shape[0]}", f"{full_size[1]}x{full_size[0]}"
                    raise ValueError(f"{frame.labels[name]}: {name} is {got}, but its image is {wanted}")
            arrays[name] = label
        return arrays

    def decode_all(self) -> None:
        """Keeps every frame in memory, shared with loader processes that are forked later."""
        first = self.read(0)
        needed = len(self) * sum(array.nbytes for array in first.values())
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > 0.7 * free:
            print(
                f"cache: {needed / 2**30:.1f} GiB of frames do not fit into {free / 2**30:.1f} GiB: reading from disk"
            )
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.decoded = list(pool.map(self.read, range(len(self))))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if self.train else (0, key)
        arrays = self.decoded[index] if self.decoded else self.read(index)
        image = arrays["image"]
        if self.train:
            rng = np.random.default_rng([self.config.seed, epoch, index])
            view = random_view(rng, *image.shape[:2], self.config)
            image = view.resample(image, PADDING_RGB)
            if self.config.color:
                self.color.set_random_seed(int(rng.integers(2**31)))
                image = self.color(image=image)["image"]
            arrays = {name: task.view(arrays[name], view) for name, task in self.tasks.items()}
        else:
            image = resize_image(image, *fitted_size(*image.shape[:2], self.config.long_side))
        tensors = {name: task.to_tensor(arrays[name]) for name, task in self.tasks.items()}
        return {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), **tensors}


def class_frequencies(frames: Frames, task: Task) -> np.ndarray:
    """(C,) share of each class among the labelled pixels of the frames. Raises ValueError when there are none."""
    counts = np.zeros(256, np.int64)
    for index in range(len(frames)):
        label = (frames.decoded[index] if frames.decoded else frames.read(index))[task.name]
        counts += np.bincount(label.ravel(), minlength=256)
    counts = counts[: task.channels]
    if not counts.any():
        raise ValueError(f"class_weights: {frames.folder.root} has no labelled pixel")
    return counts / counts.sum()


class EpochSampler:
    """Batches of (epoch, index) for epochs first_batch // len .. epochs - 1, without a break between epochs.

    Each epoch is a permutation that depends on (seed, epoch) only. The frames that do not fill a batch are
    left out of that epoch; another epoch leaves out others.
    """

    def __init__(self, frames: int, batch_size: int, epochs: int, seed: int, first_batch: int = 0) -> None:
        self.frames, self.batch_size, self.seed = frames, batch_size, seed
        self.batches_per_epoch = frames // batch_size
        self.first_batch, self.end = first_batch, epochs * self.batches_per_epoch

    def __len__(self) -> int:
        return max(0, self.end - self.first_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(self.first_batch, self.end):
            epoch, batch = divmod(number, self.batches_per_epoch)
            if batch == 0 or number == self.first_batch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.frames)
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in chosen]


def group_by_shape(samples: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Stacks the samples of equal shapes: a batch of frames of several sizes becomes several batches."""
    groups: dict[tuple[torch.Size, ...], list[dict[str, Tensor]]] = {}
    for sample in samples:
        groups.setdefault(tuple(value.shape for value in sample.values()), []).append(sample)
    return [{name: torch.stack([item[name] for item in group]) for name in group[0]} for group in groups.values()]


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides when its loaders end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _loader(frames: Frames, config: Config, pin: bool, **arguments: object) -> DataLoader:
    # Forked workers share the decoded frames of the parent instead of copying them.
    fork = {"multiprocessing_context": multiprocessing.get_context("fork"), "prefetch_factor": 4}
    return DataLoader(
        frames, num_workers=config.workers, pin_memory=pin, worker_init_fn=_start_worker,
        **(fork if config.workers else {}), **arguments,
    )  # fmt: skip


def train_loader(frames: Frames, config: Config, first_batch: int = 0, pin: bool = False) -> DataLoader:
    """Batches {"image": (B, 3, h, w) uint8, task: (B, ...)} of all epochs from `first_batch` on."""
    if len(frames) < config.batch_size:
        raise ValueError(f"batch_size is {config.batch_size}, but the data set has {len(frames)} training frames")
    sampler = EpochSampler(len(frames), config.batch_size, config.epochs, config.seed, first_batch)
    return _loader(frames, config, pin, batch_sampler=sampler)


def eval_loader(frames: Frames, config: Config, pin: bool = False) -> DataLoader:
    """Lists of batches of equal shapes (see `group_by_shape`); every frame once, in order."""
    return _loader(frames, config, pin, batch_size=config.batch_size, collate_fn=group_by_shape)
