"""Masks: each thing with its box and its own outline, in two stages (Mask R-CNN)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import loss
from config import Config
from drawing import class_palette
from geometry import Pixels
from metrics import Protocol
from networks.rcnn_recipes import MASK_SIDE, OVERLAP, RECIPES
from tasks.base import Size, Task, check_choice
from tasks.box_distance import quantile
from tasks.box_kinds import TwoStages, merged, mirrored
from tasks.box_selection import MOST_BOXES, differing_boxes
from tasks.classes import NO_CLASS, check_classes
from tasks.instance_files import DIVISOR, VOID
from tasks.instance_records import record_of
from tasks.instances import Instances
from tasks.mask_metrics import DIRECTIONS, MaskMetrics, mask_target
from tasks.mask_pasting import CELLS, HEIGHT, LEAST, WIDTH, as_maps

LAYERS = ("maskrcnn", "maskrcnn_v2")
ROWS = 6 + MASK_SIDE**2  # columns of raw output: corners in shares of the frame, score, class, cells
COLUMNS = CELLS + MASK_SIDE**2  # of a prediction
DISTANCE = 6


@dataclass(frozen=True)
class Masks(Instances):
    """Things with masks that may share pixels. Labels (H, W) int32 codes (tasks/instance_files.py); predictions
    (B, 100, 9 + 784): x1, y1, x2, y2, score, class, distance, height and width of the frame, 28 x 28 cells; best score
    first, score 0 = none. Shown and saved as instances are: of two that share pixels the better one has them."""

    name = "masks"
    best = "ap"
    counted = "boxes"
    scores_inside = False
    shares_files = ("instances", "boxes")
    directions: ClassVar = DIRECTIONS
    no_graph = "what Mask R-CNN computes depends on what it has found"

    layers: str = "maskrcnn"  # of the head: maskrcnn | maskrcnn_v2
    most_overlap: float = OVERLAP  # IoU with a better box of the class above which a box is the same thing
    spare: int = 0  # outputs of the head after those of the classes, which stand for nothing

    # ------------------------------------------------------------------------------ a data set's files

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Masks:
        names = section["things"]
        colors = tuple(map(tuple, class_palette()[1 : len(names) + 1].tolist()))
        return cls(names, colors, layers=config.mask_layers)

    def section(self) -> dict[str, object]:
        return {"format": "instances", "divisor": DIVISOR, "classes": list(self.classes)}

    def check_fields(self) -> None:
        check_classes(self.classes, self.colors)
        check_choice("layers", self.layers, LAYERS)
        if self.stuff or not 0 <= self.spare <= NO_CLASS:
            raise ValueError(
                f"spare is {self.spare}, stuff has {len(self.stuff)} names; it must be 0..{NO_CLASS}, and 0"
            )
        for name, most in (("most_overlap", OVERLAP), ("least_score", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be in 0..{most:g}")

    @classmethod
    def join(cls, tasks: Mapping[str, Masks], merge: bool) -> tuple[Masks, dict[str, Task]]:
        first = next(iter(tasks.values()))
        if any(task.classes != first.classes for task in tasks.values()):
            raise ValueError(f"masks: {' and '.join(tasks)} have different classes; one list is needed")
        return first, dict(tasks)

    def beside(self, tasks: Mapping[str, Task]) -> Masks:
        return self

    def with_thresholds(self, score: float | None, overlap: float | None) -> Masks:
        if overlap is not None and overlap > OVERLAP:
            raise ValueError(f"--overlap: {self.layers} takes at most {OVERLAP:g}")
        given = {"least_score": score, "most_overlap": overlap}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})

    # ------------------------------------------------------------------------------ the network

    def levels(self, strides: Sequence[int]) -> tuple[int, ...]:
        return tuple(range(len(strides)))

    def head(self, channels: Sequence[int], strides: Sequence[int], config: Config) -> nn.Module:
        from networks.rcnn_head import RcnnHead  # not above: torchvision takes a second to load

        recipe = RECIPES[self.layers]
        return RcnnHead(channels, strides, len(self.classes), mask_target, self.spare, recipe, masks=True)

    def thin(self, target: Tensor, pixels: Pixels) -> Tensor:
        return target

    def sample(self, raw: Tensor, pixels: Pixels) -> Tensor:
        return raw

    def weight(self, target: Tensor) -> float:
        return float(labeled_frames(target).sum())

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        """raw (B, losses) -> their sum; each frame with a label weighs 1, as in torchvision."""
        labeled = labeled_frames(target)
        return (raw.float().flatten(1).sum(1) * labeled).sum(), labeled.sum().float()

    def decode(self, raw: Tensor, size: Size) -> Tensor:
        return self._at_size(KIND.chosen(raw.float(), self.most_overlap), size)

    def merge(self, views: Sequence[tuple[Tensor, float, bool]], size: Size) -> Tensor:
        """The things of all views, of which those with the same box suppress each other."""
        found = [_mirrored(raw.float()) if flipped else raw.float() for raw, _, flipped in views]
        return self._at_size(merged(found, self.most_overlap), size)

    def _at_size(self, found: Tensor, size: Size) -> Tensor:
        height, width = size
        scale = found.new_tensor([width, height, width, height])
        frame = found.new_tensor([math.nan, height, width]).expand(*found.shape[:2], 3)
        return torch.cat([found[..., :4] * scale, found[..., 4:6], frame, found[..., 6:]], dim=2)

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        return KIND.crop(raw, size, padded)

    def cut(self, prediction: Tensor, size: Size) -> Tensor:
        """The boxes stay whole: their cells are shares of them."""
        frame = prediction.new_tensor(size).expand(*prediction.shape[:2], 2)
        return torch.cat([prediction[..., :HEIGHT], frame, prediction[..., CELLS:]], dim=2)

    def resize(self, prediction: Tensor, before: Size, size: Size) -> Tensor:
        y, x = (new / old for new, old in zip(size, before, strict=True))
        scale = torch.ones(prediction.shape[2], device=prediction.device)
        scale[:4], scale[HEIGHT], scale[WIDTH] = scale.new_tensor([x, y, x, y]), y, x
        return (prediction * scale).to(prediction.dtype)

    def complete(self, prediction: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        """With the median depth in the cells of each mask."""
        by_gift = {tasks[name].gives: name for name in others}
        if "metres" not in by_gift:
            return prediction
        far = mask_distances(prediction, others[by_gift["metres"]])
        return torch.cat([prediction[..., :DISTANCE], far[..., None], prediction[..., DISTANCE + 1 :]], dim=2)

    def complete_target(self, target: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        return target

    def smooth(self, earlier: Tensor, raw: Tensor, kept: Callable[[Size], Tensor]) -> Tensor:
        return raw

    # ------------------------------------------------------------------------------ reports

    def metrics(self, protocol: Protocol) -> MaskMetrics:
        return MaskMetrics(self.classes)

    def charts(self, metrics: MaskMetrics) -> dict[str, np.ndarray]:
        return {}

    def output_fault(self, value: Tensor, frames: int, size: Size | None) -> str:
        columns = ROWS if size is None else COLUMNS
        if value.is_floating_point() and value.dim() == 3 and value.shape[::2] == (frames, columns):
            return ""
        return f"is {value.dtype} {tuple(value.shape)}; expected numbers ({frames}, {MOST_BOXES}, {columns})"

    def difference(self, found: Tensor, wanted: Tensor, tolerance: float) -> tuple[float, int, int]:
        """Of the boxes, as the task `boxes` compares them."""
        pair = (item[..., : DISTANCE + 1].float() for item in (found, wanted))
        return differing_boxes(*pair, self.least_score, max(tolerance, 0.01))

    def arrays(self, prediction: Tensor) -> list[np.ndarray]:
        """A record () of each frame, see instance_records.record_type: of what is shown, where nothing overlaps."""
        return [self._shown(rows) for rows in prediction.float().cpu().numpy()]

    def _shown(self, rows: np.ndarray) -> np.ndarray:
        size = int(rows[0, HEIGHT]), int(rows[0, WIDTH])
        rows = rows[(rows[:, 4] >= self.least_score) & (rows[:, 4] > 0)]
        return record_of(as_maps(rows, size), self.least_score)


KIND = TwoStages("maskrcnn")


def labeled_frames(target: Tensor) -> Tensor:
    """Codes (B, H, W) -> (B,) whether anybody says what is in the frame."""
    return (target != VOID).flatten(1).any(1)


def _mirrored(rows: Tensor) -> Tensor:
    cells = rows[..., 6:].unflatten(2, (MASK_SIDE, MASK_SIDE)).flip(-1).flatten(2)
    return torch.cat([mirrored(rows[..., :6]), cells], dim=2)


def mask_distances(prediction: Tensor, depth: Tensor) -> Tensor:
    """prediction (B, K, 9 + 784), depth (B, H, W) metres, 0 = none -> (B, K) the median at the middles of the cells
    that are the thing; NaN where no depth is known."""
    height, width = depth.shape[-2:]
    shares = (torch.arange(MASK_SIDE, device=depth.device) + 0.5) / MASK_SIDE
    low, sides = prediction[..., :2, None], (prediction[..., 2:4] - prediction[..., :2])[..., None]
    columns, rows = (low + sides * shares).nan_to_num().floor().long().unbind(2)  # (B, K, 28)
    rows, columns = rows.clamp(0, height - 1)[..., :, None], columns.clamp(0, width - 1)[..., None, :]
    frame = torch.arange(len(depth), device=depth.device)[:, None, None, None]
    metres = depth[frame, rows, columns].float().flatten(2)
    return quantile(metres, (metres > 0) & (prediction[..., CELLS:] > LEAST), 0.5)
