"""Monocular depth: metres along the optical axis for each pixel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import loss
from config import Config
from geometry import View
from images import read_label, row_parts, write_png
from metrics import DepthMetrics, Protocol
from tasks.base import HERE, Task, check_choice, check_keys
from tasks.dense import DenseTask
from tasks.survey import share_table
from user_input.values import convert

HISTOGRAM_BINS = 10_000  # of `survey`, from 0 to the data set's maximum: millimetres at 10 m
USUAL_DEPTH_M = (0.1, 100.0)  # a median outside says that metres_per_unit is wrong

PART = 2**20  # values


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)). On a CPU without gradients numpy computes it, in an eighth of torch's time."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
    if not plain or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return F.softplus(x)
    result = torch.empty(x.shape)
    # Part by part: the four arrays of a formula would each have the size of a large photo.
    for part, values in zip(result.view(-1).split(PART), x.reshape(-1).split(PART), strict=True):
        values = values.numpy()
        np.add(np.maximum(values, 0), np.log(1 + np.exp(-np.abs(values))), out=part.numpy())
    return result


@dataclass(frozen=True)
class Depth(DenseTask):
    """Distance along the optical axis. Labels (H, W) float32 metres, 0 = none; predictions (B, H, W) metres."""

    name = "depth"
    imitates = True
    best = "rmse"
    gives = "metres"
    follows_camera = True
    sure = 0.9
    directions: ClassVar = {
        "rmse": -1, "rmse_log": -1, "abs_rel": -1, "sq_rel": -1, "log10": -1, "silog": -1,
        "delta1": 1, "delta2": 1, "delta3": 1,
    }  # fmt: skip

    max_m: float = 10.0  # labels beyond it do not count; pictures end there
    activation: str = "softplus"
    loss_kind: str = "berhu"  # berhu | l1 | log
    gradient_weight: float = 0.0  # of loss.gradient, beside a pixel's loss

    ACTIVATIONS: ClassVar = {"softplus": softplus, "exp": torch.exp, "abs": torch.abs}
    LOSSES: ClassVar = {"berhu": loss.berhu, "l1": loss.l1, "log": loss.log_l1}

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
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
        return cls(
            max_m=section["max"],
            activation=config.depth_activation,
            loss_kind=config.depth_loss,
            gradient_weight=config.depth_gradient,
        )

    @property
    def metres_per_unit(self) -> float:
        """The unit of the files that `save` writes: 1 mm, or for ranges above 65 m, which 16 bits of millimetres do
        not hold, 1/256 m as in KITTI."""
        return 0.001 if self.max_m <= 65 else 1 / 256

    def section(self) -> dict[str, object]:
        return {"metres_per_unit": self.metres_per_unit, "max": self.max_m}

    def continues(self, other: Depth) -> bool:
        return super().continues(other) and other.activation == self.activation

    def check_fields(self) -> None:
        super().check_fields()
        check_choice("activation", self.activation, tuple(self.ACTIVATIONS))
        check_choice("loss_kind", self.loss_kind, tuple(self.LOSSES))
        if self.max_m <= 0:
            raise ValueError(f"max_m is {self.max_m:g}; it must be above 0")

    @classmethod
    def from_teacher(cls, section: Mapping[str, object], where: str) -> Depth:
        # Other projects' networks give metres, after a multiplication with `scale`.
        return dataclasses.replace(super().from_teacher({"metres_per_unit": 1.0, **section}, where), activation="abs")

    @classmethod
    def join(cls, tasks: Mapping[str, Depth], merge: bool) -> tuple[Depth, dict[str, Task]]:
        return max(tasks.values(), key=lambda task: task.max_m), dict(tasks)

    def read(self, path: Path, section: Mapping[str, object], image: Path) -> np.ndarray:
        label = read_label(path)
        if label.ndim != 2 or label.dtype == bool:
            raise ValueError(f"{path}: depth has one number a pixel; this file has shape {label.shape}, {label.dtype}")
        depth = np.nan_to_num(label.astype(np.float32), posinf=0, neginf=0) * np.float32(section["metres_per_unit"])
        return np.where((depth > 0) & (depth <= section["max"]), depth, np.float32(0))

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        # A zoom of z shows what the same camera would see if everything were at 1/z of its distance.
        return super().view(label, view) / np.float32(view.zoom)

    def survey(self, label: np.ndarray, section: Mapping[str, object]) -> np.ndarray:
        """[labeled pixels, all pixels, histogram of the depth]"""
        steps = (label[label > 0] * (HISTOGRAM_BINS / section["max"])).astype(np.int64)
        bins = np.bincount(np.minimum(steps, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
        return np.concatenate([super().survey(label, section), bins])

    def unlikely(self, stored: np.ndarray, section: Mapping[str, object]) -> str:
        metres = stored[stored > 0].astype(np.float64) * section["metres_per_unit"]
        if not metres.size:
            return ""
        median, top, scale = np.median(metres), section["max"], section["metres_per_unit"]
        if not USUAL_DEPTH_M[0] <= median <= USUAL_DEPTH_M[1]:
            return f"half of the readings lie below {median:.4g} m; is metres_per_unit {scale:g} right?"
        beyond = (metres > top).mean()
        if beyond > 0.5:
            return f"{beyond:.0%} of the readings lie beyond max ({top:g} m); is metres_per_unit {scale:g} right?"
        return ""

    def survey_lines(self, surveys: Mapping[str, np.ndarray], section: Mapping[str, object]) -> list[str]:
        top = section["max"]
        centers = (np.arange(HISTOGRAM_BINS) + 0.5) * top / HISTOGRAM_BINS
        step = next((step for step in (0.1, 1, 5, 10, 50, 100) if top <= 20 * step), top / 20)
        rows = (centers / step).astype(int)
        names = [f"{row * step:4g} to {(row + 1) * step:g} m" for row in range(rows[-1] + 1)]
        lines = ["depth: per cent of the readings"]
        lines += share_table(names, {split: np.bincount(rows, values[2:]) for split, values in surveys.items()})
        for split, values in surveys.items():
            if values[0]:
                reached = np.cumsum(values[2:]) / values[0]
                least, median, most = (centers[np.searchsorted(reached, share)] for share in (1e-12, 0.5, 1 - 1e-12))
                lines.append(f"  {split}: least {least:.2f} m, median {median:.2f} m, most {most:.2f} m")
        return lines

    def first_output(self, labels: Iterable[np.ndarray]) -> float | None:
        """Decodes to the mean of the labels' mean depths."""
        means = [float(label[label > 0].mean()) for label in labels if (label > 0).any()]
        if not means:
            return None
        depth = max(1e-3, sum(means) / len(means))
        return {"softplus": depth + math.log(-math.expm1(-depth)), "exp": math.log(depth), "abs": depth}[
            self.activation
        ]

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        depth, valid = self.scores(raw, target.shape[-2:])[:, 0], target > 0
        total, weight = self.LOSSES[self.loss_kind](depth, target, valid)
        # Scaled by 10 / max_m, so that data sets with different depth ranges contribute losses of similar size.
        scale = 10 / self.max_m
        if self.loss_kind != "log":
            total = total * scale
        if self.gradient_weight:
            total = total + self.gradient_weight * scale * loss.gradient(depth, target, valid)
        return total, weight

    def imitation(self, raw: Tensor, advice: Tensor) -> loss.Loss:
        return self.loss(raw, advice[:, 0])

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        return self.ACTIVATIONS[self.activation](super().scores(raw, size))

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        return super().undo(scores, zoom, mirror) * zoom  # the inverse of `view`

    def for_camera(self, prediction: np.ndarray, zoom: float) -> np.ndarray:
        return prediction * np.float32(zoom)

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """The ratio of the smaller to the larger distance."""
        return (torch.minimum(scores, mirrored) / torch.maximum(scores, mirrored).clamp(min=1e-6))[:, 0]

    def metrics(self, protocol: Protocol) -> DepthMetrics:
        return DepthMetrics(protocol)

    def paint(self, prediction: np.ndarray) -> np.ndarray:
        near_is_bright = 255 * (1 - np.clip(prediction / self.max_m, 0, 1))
        colored = cv2.applyColorMap(near_is_bright.round().astype(np.uint8), cv2.COLORMAP_TURBO)
        colored[prediction <= 0] = 0
        return cv2.cvtColor(colored, cv2.COLOR_BGR2RGB)

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        ticks = np.linspace(0, self.max_m, 6)
        colors = self.paint(np.maximum(ticks, 1e-6)[None].astype(np.float32))[0]
        return [
            (f"{tick:g} m", tuple(int(value) for value in color)) for tick, color in zip(ticks, colors, strict=True)
        ]

    def save(self, prediction: np.ndarray, path: Path) -> None:
        """A 16-bit PNG in `metres_per_unit`."""
        stored = np.empty(prediction.shape, np.uint16)
        for rows, depth in zip(row_parts(stored), row_parts(prediction), strict=True):
            rows[:] = (depth / self.metres_per_unit).round().clip(0, 65535)
        write_png(path, stored)
