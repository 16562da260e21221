"""The tasks. A class answers everything in which tasks differ; nothing else asks which task it is.

A new task is a subclass of Task in TASKS. Shapes: a *label* is what a file gives, numpy (H, W) or (H, W, 3);
a *target* is a batch of labels on the device, (B, H, W) or (B, 3, H, W); *raw* is the output of the head,
(B, channels, h, w) at a quarter of the input; a *prediction* has the target's shape and physical units.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import loss
from config import Config, convert, near
from geometry import View, resize_raw
from metrics import DepthMetrics, NormalMetrics, Protocol, SegmentationMetrics
from utils import class_palette, read_label, write_png

NO_CLASS = 255  # "no label" in segmentation labels, whatever number the data set uses for it

CLASS_LISTS = {
    # Gupta et al., CVPR 2013: the 40 classes of NYUDv2, in the order of classMapping40.mat.
    "nyu40": tuple(
        (
            "wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves "
            "curtain dresser pillow mirror floor_mat clothes ceiling books refrigerator television paper towel "
            "shower_curtain box whiteboard person night_stand toilet sink lamp bathtub bag other_structure "
            "other_furniture other_prop"
        ).split()
    )
}


@dataclass(frozen=True)
class Task(ABC):
    """What the classes below answer. Their fields are plain types: they are the task's part of a checkpoint."""

    name: ClassVar[str]
    best: ClassVar[str]  # the metric that decides
    directions: ClassVar[Mapping[str, int]]  # metric -> 1: higher is better, -1: lower is better
    fill: ClassVar[float] = 0.0  # "no label" in a label

    interpolation: str = "bilinear"  # how raw output is brought to full size

    # A data set: its section of dataset.yaml, and its files.

    @classmethod
    @abstractmethod
    def read_section(cls, section: Mapping[str, object], where: str) -> dict[str, object]:
        """Checks the section `name:` of a dataset.yaml and converts its values. Raises ValueError."""

    @classmethod
    @abstractmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Task:
        """The task for a data set with this section."""

    @abstractmethod
    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        """A label file -> label. Raises ValueError that names the file."""

    @abstractmethod
    def no_label(self, height: int, width: int) -> np.ndarray:
        """A label without anything labelled."""

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        """The label as the view's camera sees it; never interpolated."""
        return view.sample(label, self.fill)

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(label))

    # The network.

    @property
    @abstractmethod
    def channels(self) -> int:
        """Outputs of the head."""

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """raw (B, channels, h, w), target of any size -> scalar; 0 when nothing is labelled."""

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        """raw -> (B, channels, *size) that may be averaged over views: probabilities, metres, vectors."""
        return resize_raw(raw, size, self.interpolation)

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        """Scores of a zoomed and mirrored picture -> scores of the picture."""
        return scores.flip(-1) if mirror else scores

    @abstractmethod
    def decide(self, scores: Tensor) -> Tensor:
        """Scores -> prediction."""

    def decode(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        """raw -> prediction at full size."""
        return self.decide(self.scores(raw, size))

    # Reports.

    @abstractmethod
    def metrics(self, protocol: Protocol) -> SegmentationMetrics | DepthMetrics | NormalMetrics:
        """A new accumulator."""

    @abstractmethod
    def draw(self, prediction: np.ndarray) -> np.ndarray:
        """A prediction or label -> (H, W, 3) uint8 picture, comparable between frames."""

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        """(text, colour) entries that explain the picture."""
        return []

    @abstractmethod
    def save(self, prediction: np.ndarray, path: Path) -> None:
        """Writes the values to a PNG that `read` reads back."""


@dataclass(frozen=True)
class Segmentation(Task):
    """A class for each pixel. Labels (H, W) uint8 ids, 255 = none; predictions (B, H, W) uint8."""

    name = "segmentation"
    best = "miou"
    directions: ClassVar = {"miou": 1, "pixel_accuracy": 1, "class_accuracy": 1, "iou": 1}
    fill = NO_CLASS

    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    class_weights: tuple[float, ...] = ()  # () = all 1

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str) -> dict[str, object]:
        check_keys(section, {"classes", "ignore", "colors"}, where)
        classes = section.get("classes")
        if isinstance(classes, str):
            if classes not in CLASS_LISTS:
                known = ", ".join(CLASS_LISTS)
                raise ValueError(
                    f"{where}.classes is {classes!r}{near(classes, CLASS_LISTS)}; a list, or one of: {known}"
                )
            classes = CLASS_LISTS[classes]
        if not classes or not all(isinstance(item, str) for item in classes) or len(set(classes)) != len(classes):
            raise ValueError(f"{where}.classes must be a list of different names, or one of: {', '.join(CLASS_LISTS)}")
        if len(classes) > NO_CLASS:
            raise ValueError(f"{where}.classes has {len(classes)} names; at most {NO_CLASS} fit into 8-bit masks")
        colors = section.get("colors") or class_palette()[1 : len(classes) + 1].tolist()
        if not isinstance(colors, list) or len(colors) != len(classes):
            raise ValueError(f"{where}.colors must be a list of {len(classes)} entries [red, green, blue]")
        colors = tuple(convert(color, tuple[int, int, int], f"{where}.colors") for color in colors)
        if not all(0 <= value <= 255 for color in colors for value in color):
            raise ValueError(f"{where}.colors holds a value outside 0..255")
        ignore = convert(section.get("ignore", NO_CLASS), int, f"{where}.ignore")
        return {"classes": tuple(classes), "colors": colors, "ignore": ignore}

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Segmentation:
        return cls(classes=section["classes"], colors=section["colors"])

    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
            raise ValueError(
                f"{path}: a mask has one integer a pixel; this file has shape {label.shape}, {label.dtype}"
            )
        ignored = label == section["ignore"]
        outside = ((label < 0) | (label >= len(self.classes))) & ~ignored
        if outside.any():
            top = len(self.classes) - 1
            raise ValueError(
                f"{path}: class id {label[outside][0]}; allowed: 0..{top} and {section['ignore']} (no label)"
            )
        return np.where(ignored, NO_CLASS, label).astype(np.uint8)

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width), NO_CLASS, np.uint8)

    @property
    def channels(self) -> int:
        return len(self.classes)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        weights = torch.tensor(self.class_weights, device=raw.device) if self.class_weights else None
        return loss.cross_entropy(resize_raw(raw, target.shape[-2:]), target, target != NO_CLASS, weights)

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return super().scores(raw, size).softmax(1)

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(1).to(torch.uint8)

    def decode(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return self.decide(resize_raw(raw, size, self.interpolation))  # softmax does not change the largest

    def metrics(self, protocol: Protocol) -> SegmentationMetrics:
        return SegmentationMetrics(self.classes)

    @property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8; black where there is no class."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.colors)] = self.colors
        return palette

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        return self.palette[prediction]

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        counts = np.bincount(prediction.ravel(), minlength=256)[: len(self.classes)]
        largest_first = [i for i in np.argsort(-counts, kind="stable") if counts[i] * 200 >= prediction.size]
        return [(self.classes[i].replace("_", " "), self.colors[i]) for i in largest_first]

    def save(self, prediction: np.ndarray, path: Path) -> None:
        write_png(path, prediction.astype(np.uint8), self.palette)


@dataclass(frozen=True)
class Depth(Task):
    """Distance along the optical axis. Labels (H, W) float32 metres, 0 = none; predictions (B, H, W) metres."""

    name = "depth"
    best = "rmse"
    directions: ClassVar = {
        "rmse": -1, "rmse_log": -1, "abs_rel": -1, "sq_rel": -1, "log10": -1, "silog": -1,
        "delta1": 1, "delta2": 1, "delta3": 1,
    }  # fmt: skip

    max_m: float = 10.0  # labels beyond it do not count; pictures end there
    activation: str = "softplus"

    ACTIVATIONS: ClassVar = {"softplus": F.softplus, "exp": torch.exp, "abs": torch.abs}

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str) -> dict[str, object]:
        check_keys(section, {"metres_per_unit", "max"}, where)
        if "metres_per_unit" not in section:
            raise ValueError(f"{where}.metres_per_unit is missing, e.g. 0.001 for depth in millimetres")
        scale = convert(section["metres_per_unit"], float, f"{where}.metres_per_unit")
        top = convert(section.get("max", 10.0), float, f"{where}.max")
        if scale <= 0 or top <= 0:
            raise ValueError(f"{where}: metres_per_unit and max must be above 0")
        return {"metres_per_unit": scale, "max": top}

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Depth:
        return cls(max_m=section["max"], activation=config.depth_activation)

    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 2 or label.dtype == bool:
            raise ValueError(f"{path}: depth has one number a pixel; this file has shape {label.shape}, {label.dtype}")
        depth = np.nan_to_num(label.astype(np.float32), posinf=0, neginf=0) * np.float32(section["metres_per_unit"])
        return np.where((depth > 0) & (depth <= section["max"]), depth, np.float32(0))

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width), np.float32)

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        # What a zoom of z shows is what the same camera would see of the scene at 1/z of the distance.
        return super().view(label, view) / np.float32(view.zoom)

    @property
    def channels(self) -> int:
        return 1

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        return loss.berhu(self.scores(raw, target.shape[-2:])[:, 0], target, target > 0)

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return self.ACTIVATIONS[self.activation](super().scores(raw, size))

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        return super().undo(scores, zoom, mirror) * zoom

    def decide(self, scores: Tensor) -> Tensor:
        return scores[:, 0]

    def metrics(self, protocol: Protocol) -> DepthMetrics:
        return DepthMetrics(protocol)

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        near_is_bright = 255 * (1 - np.clip(prediction / self.max_m, 0, 1))
        colored = cv2.applyColorMap(near_is_bright.round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
        return np.where(prediction[..., None] > 0, colored, 0).astype(np.uint8)

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        ticks = np.linspace(0, self.max_m, 6)
        colors = self.draw(np.maximum(ticks, 1e-6)[None].astype(np.float32))[0]
        return [
            (f"{tick:g} m", tuple(int(value) for value in color)) for tick, color in zip(ticks, colors, strict=True)
        ]

    def save(self, prediction: np.ndarray, path: Path) -> None:
        """16 bits in millimetres."""
        write_png(path, (prediction * 1000).round().clip(0, 65535).astype(np.uint16))


@dataclass(frozen=True)
class Normals(Task):
    """Unit surface normals, camera frame (x right, y down, z forward), towards the camera: z < 0 where it faces us.

    Labels (H, W, 3) float32, 0, 0, 0 = none; predictions (B, 3, H, W). Files: 8-bit RGB, round(127.5 (n + 1)).
    """

    name = "normals"
    best = "mean"
    directions: ClassVar = {"mean": -1, "median": -1, "within_11.25": 1, "within_22.5": 1, "within_30": 1}

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str) -> dict[str, object]:
        check_keys(section, set(), where)
        return {}

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Normals:
        return cls()

    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 3 or label.shape[2] != 3 or label.dtype != np.uint8:
            raise ValueError(f"{path}: normals are 8-bit RGB; this file has shape {label.shape}, {label.dtype}")
        return unit(np.where(label.any(2, keepdims=True), label.astype(np.float32) / 127.5 - 1, 0))

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.float32)

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        # The picture's changes of the scene are p' = A p; planes then have the normals A^-T n. In order: the
        # mirror, the turn, and the division of the depth by the zoom (see Depth.view).
        normal = super().view(label, view)
        turn = np.deg2rad(view.angle)  # cv2's angle is counter-clockwise on the screen, where y points down
        x = -normal[..., 0] if view.mirror else normal[..., 0]
        y, z = normal[..., 1], normal[..., 2] * view.zoom
        x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        return unit(np.stack([x, y, z], axis=2).astype(np.float32))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return super().to_tensor(label.transpose(2, 0, 1))

    @property
    def channels(self) -> int:
        return 3

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        return loss.cosine(resize_raw(raw, target.shape[-2:]), target, target.abs().sum(1) > 0)

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return F.normalize(super().scores(raw, size), dim=1)

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        scores = super().undo(scores, zoom, mirror)
        sign = scores.new_tensor([-1.0 if mirror else 1.0, 1.0, 1.0 / zoom])
        return F.normalize(scores * sign[:, None, None], dim=1)

    def decide(self, scores: Tensor) -> Tensor:
        return F.normalize(scores, dim=1)

    def metrics(self, protocol: Protocol) -> NormalMetrics:
        return NormalMetrics()

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        """prediction (3, H, W), or a label (H, W, 3). x to red, y up to green, towards the camera to blue."""
        normal = prediction if prediction.shape[-1] == 3 else prediction.transpose(1, 2, 0)
        color = ((normal * [1, -1, -1] + 1) * 127.5).round().clip(0, 255)
        return np.where(normal.any(2, keepdims=True), color, 0).astype(np.uint8)

    def save(self, prediction: np.ndarray, path: Path) -> None:
        write_png(path, ((prediction.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation, Depth, Normals)}


def unit(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) -> the same directions with length 1; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def check_keys(section: object, known: set[str], where: str) -> None:
    if not isinstance(section, Mapping):
        raise ValueError(f"{where} must hold 'name: value' lines")
    for key in section:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{near(key, known)}; allowed: {', '.join(sorted(known)) or 'none'}"
            )


def tasks_to_plain(tasks: Mapping[str, Task]) -> dict[str, dict[str, object]]:
    """The tasks as plain types, for a checkpoint."""
    return {name: dataclasses.asdict(task) for name, task in tasks.items()}


def tasks_from_plain(states: Mapping[str, Mapping[str, object]]) -> dict[str, Task]:
    """Reads `tasks_to_plain` back. Raises ValueError for a task or a field that this code does not know."""
    tasks: dict[str, Task] = {}
    for name, state in states.items():
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}{near(name, TASKS)}; this code has: {', '.join(TASKS)}")
        try:
            tasks[name] = TASKS[name](**state)
        except TypeError as problem:
            raise ValueError(f"task {name!r} of another version ({problem})") from None
    return tasks
