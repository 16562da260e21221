"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

import loss
from config import CHOICES, Config
from drawing import bars, class_palette, confusion, palette_of
from geometry import argmax_resized, resize_raw
from images import read_label, row_parts, write_png
from metrics import Protocol, SegmentationMetrics
from tasks.base import HERE, Task, check_choice, check_keys
from tasks.classes import (
    CLASS_LISTS,
    NO_CLASS,
    SharesClasses,
    check_classes,
    check_outputs,
    renamed_classes,
    translated,
)
from tasks.dense import DenseTask
from tasks.instance_sections import classes_within
from tasks.panoptic_files import PANOPTIC, open_panoptic_file, panoptic_classes
from tasks.survey import share_table
from user_input.values import convert, near


@dataclass(frozen=True)
class Segmentation(SharesClasses, DenseTask):
    """A class for each pixel. Labels (H, W) uint8 ids, 255 = none; predictions (B, H, W) uint8."""

    name = "segmentation"
    imitates = True
    best = "miou"
    gives = "classes"
    directions: ClassVar = {"miou": 1, "pixel_accuracy": 1, "class_accuracy": 1, "dice": 1, "iou": 1}
    fill = NO_CLASS
    shares_files = ("instances",)

    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    class_weights: tuple[float, ...] = ()  # () = all 1
    outputs: tuple[int, ...] = ()  # of the head that data sets share: those of its classes; () = all, in order
    loss_kind: str = "cross_entropy"  # cross_entropy | dice | cross_entropy+dice
    label_smoothing: float = 0.0

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
        check_keys(section, {"classes", "ignore", "colors", "values"}, where)
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
        values = convert(section.get("values") or tuple(range(len(classes))), tuple[int, ...], f"{where}.values")
        if len(set(values)) != len(values) or len(values) != len(classes) or min(values) < 0 or max(values) >= 2**16:
            raise ValueError(f"{where}.values must be {len(classes)} different numbers of 0..65535, one for each class")
        nothing = -1 if NO_CLASS in values else NO_CLASS  # a mask has no number below 0: no pixel is without a label
        ignore = convert(section.get("ignore", nothing), int, f"{where}.ignore")
        if ignore in values and "values" in section:
            raise ValueError(f"{where}.ignore is {ignore}, which {where}.values gives to a class")
        return {"classes": tuple(classes), "colors": colors, "ignore": ignore, "values": values}

    @classmethod
    def section_within(
        cls, other: Mapping[str, object], own: Mapping[str, object], where: str
    ) -> dict[str, object] | None:
        """Of files that say what each pixel is, things and stuff alike."""
        within = classes_within(other)
        if within is None:
            return None
        check_keys(own, {"classes", "colors"}, where)
        return cls.read_section({**({} if "classes" in own else within), **own}, where) | {"panoptic": other}

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Segmentation:
        return cls(
            classes=section["classes"],
            colors=section["colors"],
            loss_kind=config.segmentation_loss,
            label_smoothing=config.label_smoothing,
        )

    def section(self) -> dict[str, object]:
        return {"classes": list(self.classes), "colors": [list(color) for color in self.colors], "ignore": NO_CLASS}

    def check_fields(self) -> None:
        super().check_fields()
        check_choice("loss_kind", self.loss_kind, CHOICES["segmentation_loss"])
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing:g}; it must be from 0 on and below 1")
        check_classes(self.classes, self.colors)
        count = len(self.classes)
        if self.class_weights and (len(self.class_weights) != count or min(self.class_weights) < 0):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers; it takes none, or {count} from 0 on"
            )

    def check_part_of(self, head: Segmentation) -> None:
        if not self.outputs:
            super().check_part_of(head)
        else:
            check_outputs(self, head.channels)

    def open(self, path: Path, section: Mapping[str, object], image: Path) -> np.ndarray:
        panoptic = section.get("panoptic")
        whole = panoptic and panoptic["format"] in PANOPTIC
        return open_panoptic_file(path, panoptic)[0] if whole else read_label(path)

    def read(self, path: Path, section: Mapping[str, object], image: Path) -> np.ndarray:
        if "panoptic" in section:
            return panoptic_classes(path, section["panoptic"], self.classes)
        label = read_label(path)
        if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
            raise ValueError(
                f"{path}: a mask has one integer a pixel; this file has shape {label.shape}, {label.dtype}"
            )
        ignored = label == section["ignore"]
        ids, known = label, f"0..{len(self.classes) - 1}"
        values = section.get("values", ())
        if values and values != tuple(range(len(values))):
            known, table = ", ".join(map(str, values)), np.full(2**16, -1)
            table[list(values)] = range(len(values))
            ids = np.where((label >= 0) & (label < len(table)), table[label.clip(0, len(table) - 1)], -1)
        outside = ((ids < 0) | (ids >= len(self.classes))) & ~ignored
        if outside.any():
            no_label = f" and {section['ignore']} (no label)" if section["ignore"] >= 0 else ""
            raise ValueError(f"{path}: class id {label[outside][0]}; allowed: {known}{no_label}")
        return np.where(ignored, NO_CLASS, ids).astype(np.uint8)

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width), NO_CLASS, np.uint8)

    def class_counts(self, label: np.ndarray) -> np.ndarray:
        return np.bincount(label[label != NO_CLASS], minlength=len(self.classes))

    def with_class_weights(self, weights: Sequence[float]) -> Segmentation:
        return dataclasses.replace(self, class_weights=tuple(weights))

    def survey(self, label: np.ndarray, section: Mapping[str, object]) -> np.ndarray:
        """[labeled pixels, all pixels, pixels of each class]"""
        return np.concatenate([super().survey(label, section), self.class_counts(label)])

    def doubt(self, survey: np.ndarray, section: Mapping[str, object]) -> tuple[str, str] | None:
        labeled, pixels, first, *others = survey.tolist()
        if section["ignore"] != NO_CLASS or not others or any(others) or not 0 < first == labeled < pixels:
            return None
        advice = (
            f"all pixels are 0 ({self.classes[0]}) or {NO_CLASS} (no label: they neither teach nor count). Where "
            f"{NO_CLASS} is the object, write into dataset.yaml: "
            "segmentation: {classes: [background, object], values: [0, 255]}"
        )
        return f"masks of 0 and {NO_CLASS}", advice

    def survey_lines(self, surveys: Mapping[str, np.ndarray], section: Mapping[str, object]) -> list[str]:
        names = [f"{number:3d} {name}" for number, name in enumerate(self.classes)]
        lines = ["segmentation: per cent of the labeled pixels"]
        return lines + share_table(names, {split: values[2:] for split, values in surveys.items()})

    @property
    def channels(self) -> int:
        return len(self.classes)

    def select(self, raw: Tensor) -> Tensor:
        if not self.outputs:
            return raw
        first, last = self.outputs[0], self.outputs[-1]
        if self.outputs == tuple(range(first, last + 1)):
            return raw[:, first : last + 1]
        # Not raw[:, list]: on a GPU, copying the list there would wait for the forward pass.
        channels = raw.unbind(1)
        return torch.stack([channels[output] for output in self.outputs], dim=1)

    def weight(self, target: Tensor) -> float:
        counts = torch.bincount(target.flatten(), minlength=NO_CLASS + 1)[: len(self.classes)].tolist()
        return float(sum(map(operator.mul, counts, self.class_weights or [1.0] * len(counts))))

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        weights = _on_device(self.class_weights, raw.device) if self.class_weights else None
        logits, valid = resize_raw(raw, target.shape[-2:]), target != NO_CLASS
        if self.loss_kind == "dice":
            return loss.dice(logits, target, valid)
        total, weight = loss.cross_entropy(logits, target, valid, weights, self.label_smoothing)
        if self.loss_kind == "cross_entropy+dice":
            total = total + loss.mean(loss.dice(logits, target, valid)) * weight
        return total, weight

    def imitation(self, raw: Tensor, advice: Tensor) -> loss.Loss:
        """Cross-entropy with the teachers' probabilities (B, C, h, w), in which unlikely classes have their part."""
        return loss.soft_cross_entropy(raw, advice)

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return super().scores(raw, size).softmax(1)

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(1).to(torch.uint8)

    def decode(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        if self.interpolation == "bilinear":  # softmax keeps the order of the classes
            return argmax_resized(raw, size)
        return self.decide(resize_raw(raw, size, self.interpolation))

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """The probability of the most probable class."""
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
        if section is None:
            renamed_classes(self.classes, names)
            if names:
                raise ValueError("--map: the data set has no class list: the labels take the teacher's")
            return self, lambda prediction: prediction
        target = self.from_section(section, Config())
        means = translated(self.classes, names, target.classes, where)
        table = np.full(256, NO_CLASS, np.uint8)
        table[: len(means)] = [NO_CLASS if index < 0 else index for index in means]
        return target, lambda prediction: table[prediction]

    @property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8; black where there is no class."""
        return palette_of(self.colors)

    def paint(self, prediction: np.ndarray) -> np.ndarray:
        return cv2.applyColorMap(prediction.astype(np.uint8), self.palette[:, None])

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        # In parts: bincount makes eight bytes of each pixel.
        counts = sum(np.bincount(rows.ravel(), minlength=256) for rows in row_parts(prediction))[: len(self.classes)]
        largest_first = [i for i in np.argsort(-counts, kind="stable") if counts[i] * 200 >= prediction.size]
        return [(self.classes[i].replace("_", " "), self.colors[i]) for i in largest_first]

    def save(self, prediction: np.ndarray, path: Path) -> None:
        write_png(path, prediction.astype(np.uint8), self.palette)


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied once: each copy to a GPU waits for what it is doing."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)
