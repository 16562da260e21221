"""What a graph takes and gives, and what its outputs mean; each exported file holds its signature."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import Config, make_config, plain, read_json
from model import Network
from tasks import Task, tasks_from_plain, tasks_to_plain

INPUT = "image"


METADATA_KEY = "joint-segmentation-depth"


METADATA_VERSION = 1


LEAST = 33  # pixels of an open side: the coarsest map then has 2, and torch.export takes a size of 1 for a constant


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, and what its outputs mean."""

    tasks: Mapping[str, Task]  # in the order of the outputs, which have their names
    config: Config  # of the training: the size at which the network sees images
    domains: Mapping[str, Mapping[str, Task]] = dataclasses.field(default_factory=dict)
    bytes_in: bool = True  # image: (B, H, W, 3) uint8 RGB; else (B, 3, H, W) float32, (x / 255 - mean) / std
    units_out: bool = False  # predictions at the size of the image; else raw outputs of the heads
    size: tuple[int, int] | None = None  # height and width of the image; None = any
    batch: int = 0  # images in a call; 0 = any number
    int8: bool = False  # quantised
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def to_json(self) -> str:
        return json.dumps({
            "version": METADATA_VERSION, "tasks": tasks_to_plain(self.tasks), "config": plain(self.config),
            "domains": {name: tasks_to_plain(tasks) for name, tasks in self.domains.items()},
            "bytes_in": self.bytes_in, "units_out": self.units_out, "size": self.size, "batch": self.batch,
            "int8": self.int8, "mean": self.mean, "std": self.std,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str, where: str) -> Signature:
        """Reads `to_json` back. Raises ValueError that names the file."""
        try:
            content = read_json(text)
            version = content.pop("version")
            if version != METADATA_VERSION:
                raise ValueError(f"its metadata are of version {version!r}, this code reads {METADATA_VERSION}")
            content["tasks"] = tasks_from_plain(content["tasks"])
            content["config"] = make_config(content["config"], where)
            content["domains"] = {name: tasks_from_plain(tasks) for name, tasks in content["domains"].items()}
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise ValueError(f"{where}: its metadata do not fit this code ({problem})") from None


def sign(
    network: Network,
    tasks: Mapping[str, Task],
    bytes_in: bool = True,
    units_out: bool = False,
    size: tuple[int, int] | None = None,
    batch: int = 0,
    int8: bool = False,
) -> Signature:
    """The signature of a graph of the network that gives these tasks: its own, or those of one of its data sets."""
    domains = network.domains if tasks == network.tasks and not units_out else {}
    mean, std = (tuple(value.flatten().tolist()) for value in (network.mean, network.std))
    return Signature(tasks, network.config, domains, bytes_in, units_out, size, batch, int8, mean, std)


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
        open_sides |= {height: torch.export.Dim("height", min=LEAST), width: torch.export.Dim("width", min=LEAST)}
    return (open_sides,) if open_sides else None
