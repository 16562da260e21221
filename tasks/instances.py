"""Instances: each thing with an outline of its own, and with the classes of segmentation panoptic labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import loss
from config import Config
from drawing import bars, class_palette
from geometry import Pixels, View, resize_nearest
from metrics import Protocol
from networks.instance_head import InstanceHead
from tasks.base import HERE, Size, Task
from tasks.classes import NO_CLASS, check_classes, differing_classes
from tasks.instance_coco import CocoThings, outlines_in
from tasks.instance_drawing import draw_record
from tasks.instance_files import DIVISOR, PART, VOID
from tasks.instance_grouping import CLASS, NUMBER, averaged, group, label_things, with_distances
from tasks.instance_records import numbered, placed, record_of, record_of_label, write_mask, write_things
from tasks.instance_sections import (
    instances_at_size,
    open_instances,
    read_instance_section,
    read_instances,
    section_of_boxes,
)
from tasks.instance_targets import at_pixels, encode, instance_loss, weight_of
from tasks.panoptic_quality import DIRECTIONS, PanopticMetrics

CHANNELS = 3  # of raw output: heat of centers, and the way to the center, down and right
EMPTY_PAGE = 40  # gray on which things are drawn without a picture
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Instances(Task):
    """Things, one by one. Labels (H, W) int32 codes (tasks/instance_files.py); predictions (B, 4, H, W): number of the
    thing, class, score, distance (tasks/instance_grouping.py). Classes are those of things, then those of stuff.

    The classes of the pixels are those of another task, such as segmentation: without one, all is one class.
    """

    name = "instances"
    best = "pq"
    gives = "things"
    follows_camera = True  # its distances
    directions: ClassVar = DIRECTIONS
    shares_files = ("boxes",)
    scores_inside = True

    classes: tuple[str, ...] = ()  # of things
    colors: tuple[Color, ...] = ()
    stuff: tuple[str, ...] = ()
    stuff_colors: tuple[Color, ...] = ()
    least_score: float = 0.3  # heat of a center, as of boxes

    # ------------------------------------------------------------------------------ a data set's files

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
        return read_instance_section(section, where, root)

    @classmethod
    def section_within(
        cls, other: Mapping[str, object], own: Mapping[str, object], where: str
    ) -> dict[str, object] | None:
        return section_of_boxes(other, own, where)

    @classmethod
    def labels_in(cls, files: Iterable[Path], section: Mapping[str, object]) -> bool:
        return section["format"] != "coco" or outlines_in(files)

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Instances:
        names, stuff = section["things"], section["stuff"]
        colors = tuple(map(tuple, class_palette()[1 : len(names) + len(stuff) + 1].tolist()))
        return cls(names, colors[: len(names)], stuff, colors[len(names) :])

    def section(self) -> dict[str, object]:
        return {"format": "instances", "divisor": DIVISOR, "classes": list(self.classes), "stuff": list(self.stuff)}

    def misfit(self, section: Mapping[str, object]) -> str:
        return differing_classes(section.get("things", section["classes"]), self.classes)

    def check_fields(self) -> None:
        check_classes((*self.classes, *self.stuff), (*self.colors, *self.stuff_colors))
        if not self.classes or len(self.colors) != len(self.classes):
            raise ValueError(f"colors has {len(self.colors)} entries; it takes one for each of its classes")
        if not 0 <= self.least_score <= 1:
            raise ValueError(f"least_score is {self.least_score:g}; it must be in 0..1")

    @classmethod
    def join(cls, tasks: Mapping[str, Instances], merge: bool) -> tuple[Instances, dict[str, Task]]:
        """Outputs do not depend on classes: the head has the things of all data sets."""
        colors = {
            name: color
            for task in reversed(tasks.values())
            for name, color in zip(task.classes, task.colors, strict=True)
        }
        names = tuple(dict.fromkeys(name for task in tasks.values() for name in task.classes))
        stuff = tuple(dict.fromkeys(name for task in tasks.values() for name in task.stuff if name not in colors))
        first = next(iter(tasks.values()))
        palette = tuple(map(tuple, class_palette()[1 : len(stuff) + 1].tolist()))
        head = dataclasses.replace(
            first, classes=names, colors=tuple(colors[name] for name in names), stuff=stuff, stuff_colors=palette
        )
        return head, dict(tasks)

    def beside(self, tasks: Mapping[str, Task]) -> Instances:
        """With the colors of the classes, and unless dataset.yaml says which are stuff, all that are no things."""
        of_pixels = next((task for task in tasks.values() if task.gives == "classes"), None)
        if of_pixels is None:
            raise ValueError(
                "tasks: instances needs a task that gives the class of each pixel; add segmentation to the tasks"
            )
        color_of = dict(zip(of_pixels.classes, of_pixels.colors, strict=True))
        for kind, names in (("things", self.classes), ("stuff", self.stuff)):
            if unknown := [name for name in names if name not in color_of]:
                # As `join_classes` calls classes that several data sets have.
                apart = any(other.startswith(f"{unknown[0]} (") for other in of_pixels.classes)
                hint = "; --merge_classes makes one of those with the same name" if apart else ""
                raise ValueError(
                    f"instances: {unknown[0]!r} of its {kind} is no class of {of_pixels.name}; its classes are "
                    f"{', '.join(of_pixels.classes)}{hint}"
                )
        stuff = self.stuff or tuple(name for name in of_pixels.classes if name not in self.classes)
        colors = (tuple(color_of[name] for name in names) for names in (self.classes, stuff))
        return dataclasses.replace(self, stuff=stuff, **dict(zip(("colors", "stuff_colors"), colors, strict=True)))

    def with_thresholds(self, score: float | None, overlap: float | None) -> Instances:
        return self if score is None else dataclasses.replace(self, least_score=score)

    def open(self, path: Path, section: Mapping[str, object], image: Path) -> object:
        return open_instances(path, section, image)

    def read(self, path: Path, section: Mapping[str, object], image: Path) -> np.ndarray | CocoThings:
        return read_instances(path, section, image)

    def at_size(
        self, label: np.ndarray | CocoThings, size: Size, section: Mapping[str, object], path: Path
    ) -> np.ndarray:
        return instances_at_size(label, size, path, self.name)

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width), VOID, np.int32)

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        return view.sample(label, VOID)

    # ------------------------------------------------------------------------------ what a data set's labels hold

    def survey(self, label: np.ndarray, section: Mapping[str, object]) -> np.ndarray:
        """[labeled pixels, all pixels, things of each class]"""
        kinds = np.unique(label[label > 0]) // PART - 1
        return np.array([(label != VOID).sum(), label.size, *np.bincount(kinds, minlength=len(self.classes))])

    def coverage(self, survey: np.ndarray) -> str:
        return f"{survey[2:].sum()} things"

    def survey_lines(self, surveys: Mapping[str, np.ndarray], section: Mapping[str, object]) -> list[str]:
        total = sum(surveys.values())[2:]
        found = [f"{count} {name}" for name, count in zip(self.classes, total, strict=True) if count]
        return [f"instances: {', '.join(found) or 'none'}"]

    # ------------------------------------------------------------------------------ batches

    def collate(self, labels: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(labels))

    def pick(self, target: Tensor, frames: Sequence[int]) -> Tensor:
        return target[torch.tensor(frames).to(target.device, non_blocking=True)]

    # ------------------------------------------------------------------------------ the network

    def head(self, channels: Sequence[int], strides: Sequence[int], config: Config) -> nn.Module:
        return InstanceHead(config.head, channels[0], CHANNELS)

    def thin(self, target: Tensor, pixels: Pixels) -> Tensor:
        """Heat and offsets at these pixels: centers are those of all pixels of the view."""
        return encode(target, pixels)

    def sample(self, raw: Tensor, pixels: Pixels) -> Tensor:
        return at_pixels(raw, pixels)

    def weight(self, target: Tensor) -> float:
        return weight_of(target)

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        return instance_loss(raw, target)

    def decode(self, raw: Tensor, size: Size) -> Tensor:
        """All pixels belong to things of the first class: `complete` has the classes of the pixels."""
        return group(raw, size, self.least_score)

    def merge(self, views: Sequence[tuple[Tensor, float, bool]], size: Size) -> Tensor:
        return self.decode(averaged([(raw, mirrored) for raw, _, mirrored in views]), size)

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        height, width = (-(-side * of // by) for side, of, by in zip(raw.shape[-2:], size, padded, strict=True))
        return raw[..., :height, :width]

    def cut(self, prediction: Tensor, size: Size) -> Tensor:
        return prediction[..., : size[0], : size[1]]

    def resize(self, prediction: Tensor, before: Size, size: Size) -> Tensor:
        return resize_nearest(prediction, size)

    def complete(self, prediction: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        by_gift = {tasks[name].gives: name for name in others}
        if "classes" in by_gift:
            classes = self._own_classes(others[by_gift["classes"]], tasks[by_gift["classes"]])
            prediction = label_things(prediction, classes, len(self.classes))
        return with_distances(prediction, others[by_gift["metres"]]) if "metres" in by_gift else prediction

    def complete_target(self, target: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        """With the codes of stuff, by the classes of the pixels that are no things. Where the class is that of a thing,
        which then has no number, nobody says; where it is not known, no thing is there."""
        by_gift = {tasks[name].gives: name for name in others}
        if "classes" not in by_gift:
            return target
        classes = self._own_classes(others[by_gift["classes"]], tasks[by_gift["classes"]])
        stuff = torch.where(classes >= len(self.classes), (classes + 1) * PART, VOID)
        return torch.where((target == 0) & (classes >= 0), stuff.to(target.dtype), target)

    def _own_classes(self, ids: Tensor, task: Task) -> Tensor:
        """(B, H, W) classes of the task that gives them -> our classes, things first; -1 = none of them."""
        names = (*self.classes, *self.stuff)
        table = [names.index(name) if name in names else -1 for name in task.classes]
        table += [-1] * (NO_CLASS + 1 - len(table))
        return torch.tensor(table, device=ids.device)[ids.long()]

    def smooth(self, earlier: Tensor, raw: Tensor, kept: Callable[[Size], Tensor]) -> Tensor:
        return torch.lerp(raw.float(), earlier.float(), kept(raw.shape[-2:]).to(raw.device))

    # ------------------------------------------------------------------------------ reports

    def metrics(self, protocol: Protocol) -> PanopticMetrics:
        return PanopticMetrics(self.classes, self.stuff)

    def charts(self, metrics: PanopticMetrics) -> dict[str, np.ndarray]:
        found = metrics.compute()
        names = [name for name in (*self.classes, *self.stuff) if f"pq/{name}" in found]
        return {"pq": bars(names, [found[f"pq/{name}"] for name in names])} if names else {}

    def output_fault(self, value: Tensor, frames: int, size: Size | None) -> str:
        channels = CHANNELS if size is None else 4
        good = value.is_floating_point() and value.ndim == 4 and value.shape[:2] == (frames, channels) and value.numel()
        if not good or (size is not None and value.shape[-2:] != size):
            where = "height, width" if size is None else f"{size[0]}, {size[1]}"
            kind = str(value.dtype).removeprefix("torch.")
            return f"is {kind} {tuple(value.shape)}; expected numbers ({frames}, {channels}, {where})"
        return ""

    def difference(self, found: Tensor, wanted: Tensor, tolerance: float) -> tuple[float, int, int]:
        """(largest difference of scores, pixels of another thing or class, all pixels). Numbers may differ: the same
        thing is that which most pixels of a thing have."""
        changed, largest = 0, 0.0
        for one, other in zip(found.float(), wanted.float(), strict=True):
            new, old = one[NUMBER].long(), other[NUMBER].long()
            most = int(max(new.max(), old.max())) + 1
            pairs = torch.bincount((old * most + new).flatten(), minlength=most * most).view(most, most)
            same = (pairs.argmax(1)[old] == new) & (one[CLASS] == other[CLASS])
            changed += int((~same).sum())
            off = (one[2] - other[2]).abs()[same]
            largest = max(largest, float(off.max()) if off.numel() else 0.0)
        return largest, changed, wanted[:, 0].numel()

    def arrays(self, prediction: Tensor) -> list[np.ndarray]:
        """A record () of each frame, see instance_records.record_type."""
        return [record_of(maps, self.least_score) for maps in prediction.float().cpu().numpy()]

    def for_camera(self, prediction: np.ndarray, zoom: float) -> np.ndarray:
        scaled = prediction.copy()
        scaled["things"]["distance_m"] *= np.float32(zoom)
        return scaled

    def in_space(self, prediction: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        return placed(prediction, camera)

    def thing_map(self, prediction: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
        return numbered(prediction)

    # ------------------------------------------------------------------------------ pictures and files

    def draw(self, prediction: np.ndarray, size: Size | None = None, shown: Size | None = None) -> np.ndarray:
        record = self._record(prediction)
        page = np.full((*(shown or size or record["number"].shape), 3), EMPTY_PAGE, np.uint8)
        return self.draw_over(page, record)

    def draw_over(self, picture: np.ndarray, prediction: np.ndarray, size: Size | None = None) -> np.ndarray:
        names, colors = (*self.classes, *self.stuff), (*self.colors, *self.stuff_colors)
        return draw_record(self._record(prediction), picture, names, colors, len(self.classes))

    @staticmethod
    def _record(prediction: np.ndarray) -> np.ndarray:
        return prediction if prediction.dtype.names else record_of_label(prediction)

    def legend(self, prediction: np.ndarray) -> list[tuple[str, Color]]:
        kinds, counts = np.unique(self._record(prediction)["things"]["class"], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(f"{self.classes[kinds[i]].replace('_', ' ')} {counts[i]}", self.colors[kinds[i]]) for i in order]

    @classmethod
    def file_names(cls, stem: str) -> tuple[str, ...]:
        return cls.file_name(stem), f"{stem}_{cls.name}.json"

    def save(self, prediction: np.ndarray, path: Path) -> None:
        write_mask(prediction, path)

    def save_frame(self, prediction: np.ndarray, path: Path, image: str, size: Size) -> None:
        """Also, beside it, the list of the things with their masks."""
        self.save(prediction, path)
        write_things(path.with_suffix(".json"), prediction, self.classes, image)
