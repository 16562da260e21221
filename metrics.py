"""Metrics: accumulators with update(prediction, target) and compute() -> {name: value}.

Sums stay on the device of the predictions. Values do not depend on how frames are split into batches and processes:
counts are integers, and sums of real numbers are kept for each image.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass

import torch
from torch import Tensor

EIGEN_CROP = (45, 471, 41, 601)  # rows and columns of a 480x640 frame that Eigen et al. evaluate (NYUDv2)
# Rows and columns that Garg et al. (ECCV 2016, arXiv 1603.04992) evaluate (KITTI), as shares of the frame.
GARG_CROP = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
CROPS = ("none", "eigen", "garg")


@dataclass(frozen=True)
class Protocol:
    """How depth is evaluated. Papers differ in it: NYUDv2 takes crop eigen and cap 10, KITTI crop garg and cap 80."""

    crop: str = "none"  # one of CROPS
    cap_m: float = 0.0  # leave out ground truth beyond it and clamp predictions to it; 0 = no cap
    per_image: bool = False  # average over images instead of pooling all pixels


def crop_of(kind: str, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of a frame inside a crop of CROPS. Raises ValueError for a size that it is not for."""
    if kind == "none":
        return slice(None), slice(None)
    if kind == "garg":
        sides = (height, height, width, width)
        top, bottom, left, right = (int(share * side) for share, side in zip(GARG_CROP, sides, strict=True))
    elif (height, width) == (480, 640):
        top, bottom, left, right = EIGEN_CROP
    else:
        raise ValueError(f"crop eigen is defined for 640x480 frames; this one is {width}x{height}")
    return slice(top, bottom), slice(left, right)


class Metrics(typing.Protocol):
    """An accumulator of one task: predictions and targets are what the task makes them."""

    def update(self, prediction: typing.Any, target: typing.Any) -> None: ...

    def merge(self, other: typing.Self) -> None:
        """Adds what another process has counted; its tensors are on the CPU."""

    def compute(self) -> dict[str, float]: ...


class SegmentationMetrics:
    """Intersection over union and Dice from one confusion matrix of all pixels."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.confusion: Tensor | None = None  # (C, C) counts, row = ground truth

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction (B, H, W) class ids; target (B, H, W), where ids >= C mean "no label"."""
        count = len(self.classes)
        # Pixels without a label get an entry behind the matrix, which is faster than to select the others.
        pairs = torch.where(target < count, target.int() * count + prediction.int(), count * count).flatten()
        matrix = torch.bincount(pairs, minlength=count * count + 1)[:-1].view(count, count)
        self.confusion = matrix if self.confusion is None else self.confusion + matrix

    def merge(self, other: SegmentationMetrics) -> None:
        if other.confusion is not None:
            self.confusion = other.confusion + (0 if self.confusion is None else self.confusion.cpu())

    def compute(self) -> dict[str, float]:
        """Shares in 0..1. Means are over the classes that occur in the ground truth; {} without a valid pixel.

        dice is 2 TP / (2 TP + FP + FN), also called F1; that of one class is 2 iou / (1 + iou).
        """
        if self.confusion is None or not self.confusion.any():
            return {}
        matrix = self.confusion.double().cpu()
        hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        occurs = truth > 0
        iou = hits / (truth + predicted - hits).clamp(min=1)
        dice = 2 * hits / (truth + predicted).clamp(min=1)
        values = {
            "miou": iou[occurs].mean().item(),
            "pixel_accuracy": (hits.sum() / truth.sum()).item(),
            "class_accuracy": (hits[occurs] / truth[occurs]).mean().item(),
            "dice": dice[occurs].mean().item(),
        }
        return values | {f"iou/{self.classes[i]}": iou[i].item() for i in occurs.nonzero().flatten().tolist()}


class DepthMetrics:
    """Errors of Eigen et al. (arXiv 1406.2283, section 4) and SILog as KITTI defines it (times 100)."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.rows: list[Tensor] = []  # one row of sums an image

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Both (B, H, W) in metres; target 0 means "no reading"."""
        rows, columns = crop_of(self.protocol.crop, *target.shape[1:])
        prediction, target = prediction[:, rows, columns], target[:, rows, columns]
        cap = self.protocol.cap_m or torch.inf
        valid = (target > 0) & (target <= cap)
        # Invalid pixels become 1 m in both, so that they add 0 to each sum. Logarithms need a lower limit: 1 mm.
        truth = torch.where(valid, target, 1.0).double()
        depth = torch.where(valid, prediction.double().clamp(1e-3, cap), 1.0)
        error, quotient = depth - truth, depth / truth
        log_error, ratio = quotient.log(), torch.maximum(quotient, 1 / quotient)
        terms = [
            error.square(), log_error.square(), log_error, error.abs() / truth, error.square() / truth,
            (log_error / math.log(10)).abs(),
            *(valid & (ratio < 1.25**power) for power in (1, 2, 3)), valid,
        ]  # fmt: skip
        self.rows.append(torch.stack([term.double().flatten(1).sum(1) for term in terms], dim=1))

    def merge(self, other: DepthMetrics) -> None:
        self.rows = [rows.cpu() for rows in self.rows] + other.rows

    def compute(self) -> dict[str, float]:
        """Metres for rmse, per cent for silog, shares for delta1..3; {} without a valid pixel."""
        rows = torch.cat(self.rows).cpu() if self.rows else torch.zeros(0, 10)
        rows = rows[rows[:, -1] > 0]
        if not len(rows):
            return {}
        if not self.protocol.per_image:
            rows = torch.tensor([[math.fsum(column) for column in rows.T.tolist()]], dtype=torch.float64)
        square, log_square, log, abs_rel, sq_rel, log10, *deltas = (rows[:, :-1] / rows[:, -1:]).unbind(1)
        values = {
            "rmse": square.sqrt(),
            "rmse_log": log_square.sqrt(),
            "abs_rel": abs_rel,
            "sq_rel": sq_rel,
            "log10": log10,
            "silog": 100 * (log_square - log.square()).clamp(min=0).sqrt(),
            **{f"delta{power}": share for power, share in enumerate(deltas, 1)},
        }
        return {name: math.fsum(value.tolist()) / len(value) for name, value in values.items()}


class NormalMetrics:
    """Angles between predicted and true normals, in degrees, pooled over pixels."""

    BINS = 18_000  # of 0.01 degrees: the median is exact to half a bin, without keeping all angles

    def __init__(self) -> None:
        self.histogram: Tensor | None = None
        self.sums: list[Tensor] = []  # of the angles of each image

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Both (B, 3, H, W); target 0, 0, 0 means "no label"."""
        valid = target.abs().sum(1) > 0
        # atan2 and not acos: acos is inexact near 0 degrees.
        cross = torch.linalg.cross(prediction.double(), target.double(), dim=1).norm(dim=1)
        angle = torch.rad2deg(torch.atan2(cross, (prediction.double() * target.double()).sum(1)))
        bins = (angle[valid] * (self.BINS / 180)).long().clamp(max=self.BINS - 1)
        counts = torch.bincount(bins, minlength=self.BINS)
        self.histogram = counts if self.histogram is None else self.histogram + counts
        self.sums.append((angle * valid).flatten(1).sum(1))

    def merge(self, other: NormalMetrics) -> None:
        if other.histogram is not None:
            self.histogram = other.histogram + (0 if self.histogram is None else self.histogram.cpu())
        self.sums = [sums.cpu() for sums in self.sums] + other.sums

    def compute(self) -> dict[str, float]:
        """mean and median in degrees, shares below 11.25, 22.5 and 30 degrees; {} without a valid pixel."""
        if self.histogram is None or not self.histogram.any():
            return {}
        below = self.histogram.cumsum(0).cpu()
        count = below[-1].item()
        width = 180 / self.BINS
        median = (torch.searchsorted(below, (count + 1) // 2).item() + 0.5) * width
        shares = {f"within_{limit:g}": below[round(limit / width) - 1].item() / count for limit in (11.25, 22.5, 30)}
        total = math.fsum(torch.cat(self.sums).tolist())
        return {"mean": total / count, "median": median, **shares}
