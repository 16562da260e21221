"""The signature of a graph: what goes in, what comes out, and what that means; each exported file holds its own."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from config import Config, make_config, plain
from geometry import fitted_size
from images import MAX_PIXELS
from model import LEAST_SIDE, Network, cameras_from_plain
from tasks import Task, tasks_from_plain, tasks_to_plain
from user_input.text_files import read_json

INPUT = "image"
METADATA_KEY = "joint-segmentation-depth"
METADATA_VERSION = 2  # 1: a graph of a fixed size did not bring the picture to the size of the training
MIN_DYNAMIC_SIDE = 33  # pixels: the coarsest map then has 2, and torch.export takes a size of 1 for a constant
MAX_SIDE = 2**14  # pixels: of a graph of one size, and of the pictures of the training
MAX_BATCH = 2**12


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, and what its outputs mean."""

    tasks: Mapping[str, Task]  # in the order of the outputs, which have their names
    config: Config  # of the training: the size at which the network sees images
    domains: Mapping[str, Mapping[str, Task]] = dataclasses.field(default_factory=dict)
    cameras: Mapping[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # model.cameras_from_plain
    bytes_in: bool = True  # image: (B, H, W, 3) uint8 RGB; else (B, 3, H, W) float32, (x / 255 - mean) / std
    units_out: bool = False  # predictions at the size of the image; else raw outputs of the heads
    size: tuple[int, int] | None = None  # height and width of the image; None = any
    batch: int = 0  # images in a call; 0 = any number
    int8: bool = False  # quantized
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    # While the graph is made: the tasks that select their outputs of the network's heads. Not in the file.
    heads: Mapping[str, Task] = dataclasses.field(default_factory=dict, compare=False)

    @cached_property
    def network_size(self) -> tuple[int, int] | None:
        """Height and width to which a graph of a fixed size brings the image first; None in one of any size."""
        if self.size is None:
            return None
        return tuple(
            max(LEAST_SIDE, side) for side in fitted_size(*self.size, self.config.long_side, self.config.short_side)
        )

    @property
    def long_side(self) -> int:
        """Pixels on the longer side of a picture for this graph, so that the network sees it as in training; 0 = as it
        is. A graph of a fixed size brings its whole input to the size of the training."""
        return max(self.size) if self.size and self.config.long_side else self.config.long_side

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which a picture of this size is resized for the graph.

        A graph of a fixed size gets it at the scale of the training, smaller only where it does not fit.
        """
        short_side = 0 if self.size else self.config.short_side
        fitted = fitted_size(height, width, self.long_side, short_side)
        if self.size is None:
            return fitted
        if fitted[0] <= self.size[0] and fitted[1] <= self.size[1]:
            return fitted
        scale = min(self.size[0] / fitted[0], self.size[1] / fitted[1])
        return tuple(min(most, max(1, round(scale * side))) for most, side in zip(self.size, fitted, strict=True))

    def to_json(self) -> str:
        return json.dumps({
            "version": METADATA_VERSION, "tasks": tasks_to_plain(self.tasks), "config": plain(self.config),
            "domains": {name: tasks_to_plain(tasks) for name, tasks in self.domains.items()},
            "cameras": dict(self.cameras), "bytes_in": self.bytes_in, "units_out": self.units_out, "size": self.size,
            "batch": self.batch,
            "int8": self.int8, "mean": self.mean, "std": self.std,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str, where: str) -> Signature:
        """Reads `to_json` back and checks it. Raises ValueError that names the file."""
        try:
            content = read_json(text)
            version = content.pop("version")
            if version != METADATA_VERSION:
                raise ValueError(
                    f"its metadata are of version {version!r}, this code reads {METADATA_VERSION}: export it again"
                )
            content["tasks"] = tasks_from_plain(content["tasks"])
            content["config"] = make_config(content["config"], where)
            content["domains"] = {name: tasks_from_plain(tasks) for name, tasks in content["domains"].items()}
            content["cameras"] = cameras_from_plain(content.get("cameras", {}))  # absent in earlier files
            signature = cls(**content)
            signature.check()
            return signature
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise ValueError(f"{where}: its metadata do not fit this code ({problem})") from None

    def check(self) -> None:
        """Raises ValueError for values that no file of export.py has."""
        if not self.tasks:
            raise ValueError("tasks is empty")
        for name in ("bytes_in", "units_out", "int8"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is true or false")
        if not _is_whole(self.batch, 0, MAX_BATCH):
            raise ValueError(f"batch is {self.batch!r}; it is a whole number of 0..{MAX_BATCH}")
        if self.size is not None:
            sides = self.size if isinstance(self.size, tuple) else ()
            if len(sides) != 2 or not all(_is_whole(side, LEAST_SIDE, MAX_SIDE) for side in sides):
                raise ValueError(f"size is {self.size!r}; it is height and width, each {LEAST_SIDE}..{MAX_SIDE}")
            if math.prod(sides) > MAX_PIXELS:
                raise ValueError(f"size is {self.size!r}; a picture has at most {MAX_PIXELS} pixels")
        if self.config.long_side > MAX_SIDE:
            raise ValueError(f"long_side is {self.config.long_side}; it is at most {MAX_SIDE}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != 3 or not all(map(_is_finite, values)):
                raise ValueError(f"{name} is {values!r}; it is three numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; each is above 0")

    def in_words(self) -> dict[str, str]:
        """Metadata for people and other programs: long_side (pixels), input, outputs, classes ({task: names}, JSON)."""
        batch = self.batch or "N"
        height, width = self.size or ("height", "width")
        layout = (
            f"uint8 ({batch}, {height}, {width}, 3), RGB" if self.bytes_in else
            f"float32 ({batch}, 3, {height}, {width}), RGB, (pixel / 255 - {list(self.mean)}) / {list(self.std)}"
        )  # fmt: skip
        if self.size:
            seen = "the graph resizes it to the size of the training: give pictures of this shape, or pad them"
        elif self.long_side:
            limit = f", or its shorter one {self.config.short_side} if that is less" if self.config.short_side else ""
            what = f"its longer side has {self.long_side} pixels{limit}"
            seen = f"resize each picture first, so that {what}, as in training"
        else:
            seen = "give pictures as they are, as in training"
        what = "predictions at the size of the input" if self.units_out else "raw outputs of the heads, smaller"
        kinds = (f"{name}: {' '.join(type(task).__doc__.split())}" for name, task in self.tasks.items())
        classes = {name: task.section()["classes"] for name, task in self.tasks.items() if "classes" in task.section()}
        return {
            "long_side": str(self.long_side),
            "input": f"{INPUT}: {layout}; {seen}",
            "outputs": f"{what}; {' '.join(kinds)}",
            "classes": json.dumps(classes),
        }


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def make_signature(
    network: Network,
    tasks: Mapping[str, Task],
    bytes_in: bool = True,
    units_out: bool = False,
    size: tuple[int, int] | None = None,
    batch: int = 0,
    int8: bool = False,
) -> Signature:
    """The signature of a graph of the network that gives these tasks: its own, or those of one of its data sets."""
    whole = tasks == network.tasks
    domains = network.domains if whole and not units_out else {}
    mean, std = (tuple(value.flatten().tolist()) for value in (network.mean, network.std))
    # The graph selects a data set's outputs of a shared head, so that its own are all that the reader sees.
    own = tasks if whole else {name: _of_all_outputs(task) for name, task in tasks.items()}
    # Of a graph for one data set, its camera alone.
    views = {name: {**network.tasks, **of_set} for name, of_set in network.domains.items()}
    mine = {name: camera for name, camera in network.cameras.items() if views.get(name) == tasks}
    cameras = network.cameras if whole else mine or network.cameras
    return Signature(
        own, network.config, domains, cameras, bytes_in, units_out, size, batch, int8, mean, std, heads=tasks
    )  # fmt: skip


def _of_all_outputs(task: Task) -> Task:
    return dataclasses.replace(task, outputs=()) if getattr(task, "outputs", ()) else task


def network_input(images: Tensor, signature: Signature) -> np.ndarray:
    """images (B, 3, H, W) uint8 -> what the graph takes."""
    if signature.bytes_in:
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (signature.mean, signature.std))
    return np.ascontiguousarray(((images.cpu().float() / 255 - mean) / std).numpy())


def example_image(signature: Signature) -> Tensor:
    height, width = signature.size or (96, 128)
    batch = signature.batch or 2  # an exporter takes a size of 1 for a constant
    shape = (batch, height, width, 3) if signature.bytes_in else (batch, 3, height, width)
    return torch.zeros(shape, dtype=torch.uint8 if signature.bytes_in else torch.float32)


def dynamic_shapes(signature: Signature) -> tuple[dict[int, torch.export.Dim]] | None:
    """Which sides of the input torch.export must keep open."""
    height, width = (1, 2) if signature.bytes_in else (2, 3)
    open_sides = {} if signature.batch else {0: torch.export.Dim("batch", min=1)}
    if signature.size is None:
        open_sides |= {
            side: torch.export.Dim(name, min=MIN_DYNAMIC_SIDE) for side, name in ((height, "height"), (width, "width"))
        }
    return (open_sides,) if open_sides else None
