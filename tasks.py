"""The tasks. A class answers everything in which tasks differ; nothing else asks which task it is.

A new task is a subclass of Task in TASKS (the README adds one). With several data sets each has its own object of a
task, with its own classes or range, which reads its part of the head that they share (`join`, `select`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import loss
from charts import bars, confusion
from config import Config, convert, near
from geometry import View, argmax_resized, normals_from_depth, resize_raw, unit
from images import class_palette, read_label, write_png
from metrics import DepthMetrics, NormalMetrics, Protocol, SegmentationMetrics
from task import Task, check_keys

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
class Segmentation(Task):
    """A class for each pixel. Labels (H, W) uint8 ids, 255 = none; predictions (B, H, W) uint8."""

    name = "segmentation"
    best = "miou"
    directions: ClassVar = {"miou": 1, "pixel_accuracy": 1, "class_accuracy": 1, "dice": 1, "iou": 1}
    fill = NO_CLASS

    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    class_weights: tuple[float, ...] = ()  # () = all 1
    outputs: tuple[int, ...] = ()  # which outputs of the shared head are its classes; () = all, in order
    loss_kind: str = "cross_entropy"  # cross_entropy | dice | cross_entropy+dice

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
        return cls(classes=section["classes"], colors=section["colors"], loss_kind=config.segmentation_loss)

    def section(self) -> dict[str, object]:
        return {"classes": list(self.classes), "colors": [list(color) for color in self.colors], "ignore": NO_CLASS}

    @classmethod
    def join(cls, tasks: Mapping[str, Segmentation], merge: bool) -> tuple[Segmentation, dict[str, Task]]:
        """Equal class lists share their outputs; others get outputs of their own, unless `merge` joins equal names.

        As in the paper (section IV-D), 46 outputs are the 40 classes of NYUDv2 and then the 6 of KITTI.
        """
        joined: dict[tuple[str, ...], int] = {}  # (class,) when merged, else (class, data set that brought its list)
        owners: dict[tuple[str, ...], str] = {}  # class list -> the first data set that has it
        colors, parts = [], {}
        for name, task in tasks.items():
            owner = owners.setdefault(task.classes, name)
            keys = [(item,) if merge else (item, owner) for item in task.classes]
            for key, color in zip(keys, task.colors, strict=True):
                if key not in joined:
                    joined[key] = len(joined)
                    colors.append(color)
            parts[name] = tuple(joined[key] for key in keys)
        if len(joined) > NO_CLASS:
            raise ValueError(
                f"data: the class lists of {', '.join(owners.values())} have {len(joined)} classes together; "
                f"at most {NO_CLASS} fit into 8-bit masks"
            )
        count = Counter(key[0] for key in joined)
        names = tuple(key[0] if count[key[0]] == 1 else f"{key[0]} ({key[1]})" for key in joined)
        everything = tuple(range(len(names)))
        first = next(iter(tasks.values()))
        union = cls(first.interpolation, names, _different(colors), loss_kind=first.loss_kind)
        # A data set that has all classes in order reads the head as it is.
        return union, {
            name: dataclasses.replace(task, outputs=() if parts[name] == everything else parts[name])
            for name, task in tasks.items()
        }

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

    def select(self, raw: Tensor) -> Tensor:
        return raw[:, self.outputs] if self.outputs else raw

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        weights = torch.tensor(self.class_weights, device=raw.device) if self.class_weights else None
        logits, valid = resize_raw(raw, target.shape[-2:]), target != NO_CLASS
        parts = {
            "cross_entropy": lambda: loss.cross_entropy(logits, target, valid, weights),
            "dice": lambda: loss.dice(logits, target, valid),
        }
        return sum((parts[name]() for name in self.loss_kind.split("+")), start=logits.new_zeros(()))

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return super().scores(raw, size).softmax(1)

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(1).to(torch.uint8)

    def decode(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        if self.interpolation == "bilinear":  # softmax does not change the largest
            return argmax_resized(raw, size)
        return self.decide(resize_raw(raw, size, self.interpolation))

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """The probability of the class that is chosen."""
        return ((scores + mirrored) / 2).amax(1)

    def metrics(self, protocol: Protocol) -> SegmentationMetrics:
        return SegmentationMetrics(self.classes)

    def charts(self, metrics: SegmentationMetrics) -> dict[str, np.ndarray]:
        if metrics.confusion is None:
            return {}
        found = metrics.compute()
        values = [found.get(f"iou/{name}", float("nan")) for name in self.classes]
        return {
            "iou": bars(self.classes, values),
            "confusion": confusion(self.classes, metrics.confusion.cpu().numpy()),
        }

    def translation(
        self, section: Mapping[str, object] | None, names: Mapping[str, str], where: str
    ) -> tuple[Task, Callable[[np.ndarray], np.ndarray]]:
        for name in names:
            if name not in self.classes:
                raise ValueError(f"--map: the teacher has no class {name!r}{near(name, self.classes)}")
        renamed = [names.get(name, name) for name in self.classes]
        if section is None:
            if names:
                raise ValueError("--map: the data set has no class list: the labels take the teacher's")
            return self, lambda prediction: prediction
        target = self.from_section(section, Config())
        unknown = [name for name in renamed if name != "-" and name not in target.classes]
        if unknown:
            raise ValueError(
                f"{where}: {len(unknown)} of the teacher's {len(self.classes)} classes are not the data set's, such as "
                f"{unknown[0]!r}{near(unknown[0], target.classes)}; --map FILE says which are which (or - for none)"
            )
        table = np.full(256, NO_CLASS, np.uint8)
        table[: len(renamed)] = [NO_CLASS if name == "-" else target.classes.index(name) for name in renamed]
        return target, lambda prediction: table[prediction]

    @property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8; black where there is no class."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.colors)] = self.colors
        return palette

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        return cv2.applyColorMap(prediction.astype(np.uint8), self.palette[:, None])

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        counts = np.bincount(prediction.ravel(), minlength=256)[: len(self.classes)]
        largest_first = [i for i in np.argsort(-counts, kind="stable") if counts[i] * 200 >= prediction.size]
        return [(self.classes[i].replace("_", " "), self.colors[i]) for i in largest_first]

    def save(self, prediction: np.ndarray, path: Path) -> None:
        write_png(path, prediction.astype(np.uint8), self.palette)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)). Where nothing learns on a CPU by numpy: its vector instructions take an eighth of the time."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
    if not plain or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return F.softplus(x)
    values = x.numpy()
    return torch.from_numpy(np.maximum(values, 0) + np.log(1 + np.exp(-np.abs(values))))


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

    ACTIVATIONS: ClassVar = {"softplus": softplus, "exp": torch.exp, "abs": torch.abs}

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

    sure = 0.9

    @property
    def metres_per_unit(self) -> float:
        """Of the files that `save` writes: millimetres, or where 16 bits of these do not reach, 1/256 m as in KITTI."""
        return 0.001 if self.max_m <= 65 else 1 / 256

    def section(self) -> dict[str, object]:
        return {"metres_per_unit": self.metres_per_unit, "max": self.max_m}

    @classmethod
    def from_teacher(cls, section: Mapping[str, object], where: str) -> Depth:
        # Others' networks give metres, or what `scale` makes metres of.
        return dataclasses.replace(super().from_teacher({"metres_per_unit": 1.0, **section}, where), activation="abs")

    @classmethod
    def join(cls, tasks: Mapping[str, Depth], merge: bool) -> tuple[Depth, dict[str, Task]]:
        return max(tasks.values(), key=lambda task: task.max_m), dict(tasks)

    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 2 or label.dtype == bool:
            raise ValueError(f"{path}: depth has one number a pixel; this file has shape {label.shape}, {label.dtype}")
        depth = np.nan_to_num(label.astype(np.float32), posinf=0, neginf=0) * np.float32(section["metres_per_unit"])
        return np.where((depth > 0) & (depth <= section["max"]), depth, np.float32(0))

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        # What a zoom of z shows is what the same camera would see of the scene at 1/z of the distance.
        return super().view(label, view) / np.float32(view.zoom)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        # In tenths of the range: beside a room of 10 m, a road of 80 m would be all that counts.
        error = loss.berhu(self.scores(raw, target.shape[-2:])[:, 0], target, target > 0)
        return error * (10 / self.max_m)

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return self.ACTIVATIONS[self.activation](super().scores(raw, size))

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        return super().undo(scores, zoom, mirror) * zoom

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """The ratio of the smaller to the larger distance."""
        return (torch.minimum(scores, mirrored) / torch.maximum(scores, mirrored).clamp(min=1e-6))[:, 0]

    def metrics(self, protocol: Protocol) -> DepthMetrics:
        return DepthMetrics(protocol)

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        near_is_bright = 255 * (1 - np.clip(prediction / self.max_m, 0, 1))
        colored = cv2.applyColorMap(near_is_bright.round().astype(np.uint8), cv2.COLORMAP_TURBO)
        colored[prediction <= 0] = 0
        return cv2.cvtColor(colored, cv2.COLOR_BGR2RGB)

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        ticks = np.linspace(0, self.max_m, 6)
        colors = self.draw(np.maximum(ticks, 1e-6)[None].astype(np.float32))[0]
        return [
            (f"{tick:g} m", tuple(int(value) for value in color)) for tick, color in zip(ticks, colors, strict=True)
        ]

    def save(self, prediction: np.ndarray, path: Path) -> None:
        """16 bits, `metres_per_unit`."""
        write_png(path, (prediction / self.metres_per_unit).round().clip(0, 65535).astype(np.uint16))


def unit_length(x: Tensor) -> Tensor:
    """x (B, C, H, W) -> the same directions over C with length 1; on a CPU in a sixtieth of F.normalize's time."""
    return x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)


@dataclass(frozen=True)
class Normals(Task):
    """Unit surface normals, camera frame (x right, y down, z forward), towards the camera: z < 0 where it faces us.

    Labels (H, W, 3) float32, 0, 0, 0 = none; predictions (B, 3, H, W). Files: 8-bit RGB, round(127.5 (n + 1)).
    """

    name = "normals"
    best = "mean"
    directions: ClassVar = {"mean": -1, "median": -1, "within_11.25": 1, "within_22.5": 1, "within_30": 1}
    derived_from = "depth"
    needs_camera = True
    sure = 0.95

    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 3 or label.shape[2] != 3 or label.dtype != np.uint8:
            raise ValueError(f"{path}: normals are 8-bit RGB; this file has shape {label.shape}, {label.dtype}")
        return unit(np.where(label.any(2, keepdims=True), label.astype(np.float32) / 127.5 - 1, 0))

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.float32)

    def derive(self, label: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        return normals_from_depth(label, camera)

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
        return unit_length(super().scores(raw, size))

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        scores = super().undo(scores, zoom, mirror)
        sign = scores.new_tensor([-1.0 if mirror else 1.0, 1.0, 1.0 / zoom])
        return unit_length(scores * sign[:, None, None])

    def decide(self, scores: Tensor) -> Tensor:
        return unit_length(scores)

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """The cosine of the angle between the two."""
        return F.cosine_similarity(scores, mirrored, dim=1).clamp(min=0)

    def metrics(self, protocol: Protocol) -> NormalMetrics:
        return NormalMetrics()

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        """prediction (3, H, W), or a label (H, W, 3). x to red, y up to green, towards the camera to blue."""
        normal = prediction if prediction.shape[-1] == 3 else prediction.transpose(1, 2, 0)
        color = ((normal * [1, -1, -1] + 1) * 127.5).round().clip(0, 255)
        return np.where(normal.any(2, keepdims=True), color, 0).astype(np.uint8)

    def save(self, prediction: np.ndarray, path: Path) -> None:
        normal = prediction.transpose(1, 2, 0)
        stored = np.where(normal.any(2, keepdims=True), ((normal + 1) * 127.5).round().clip(0, 255), 0)
        write_png(path, stored.astype(np.uint8))


TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation, Depth, Normals)}


def _different(colors: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """The colours, where one stands twice replaced by one of the palette that is free."""
    used = set(colors)
    free = (color for color in map(tuple, class_palette()[1:].tolist()) if color not in used)
    seen: set[tuple[int, int, int]] = set()
    result = []
    for color in colors:
        result.append(next(free) if color in seen else color)
        seen.add(color)
    return tuple(result)


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
