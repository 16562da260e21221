"""Kinds of heads for boxes: what differs between them, from the maps that they read to boxes of a frame.

Rows of all kinds: (B, K, 6) corners in shares of the frame, score, class; best first, score 0 = none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

import loss
from config import TWO_STAGES, Config
from networks.box_head import FIRST_CLASS, BoxHead
from networks.rcnn_recipes import OVERLAP, RECIPES
from networks.yolo_head import YoloHead
from tasks.box_loss import box_loss, unknown, weight_of
from tasks.box_selection import best_of, candidates, select_boxes
from tasks.yolo_loss import yolo_loss

Size = tuple[int, int]  # height, width
STRIDES = (8, 16, 32)  # of the maps whose cells find boxes


class Cells:
    """Each cell of the decoder's maps gives a box (networks/box_head.py)."""

    one_list: ClassVar[bool] = False  # whether all data sets must have the same classes
    no_graph: ClassVar[str] = ""  # why it cannot be in a file or in a back end with graphs; "" = it can
    most_overlap: ClassVar[float] = 1.0  # that can be asked for
    in_cells: ClassVar[bool] = True  # whether raw output is (B, N, 8 + classes)

    def __init__(self, layers: str) -> None:
        self.layers = layers

    def levels(self, strides: Sequence[int], own_maps: int) -> tuple[int, ...]:
        found = tuple(index for index, stride in enumerate(strides) if stride in STRIDES)
        if not found:
            raise ValueError(
                f"boxes: the decoder has maps at strides {', '.join(map(str, strides))}, none at {STRIDES}"
            )
        return found

    def head(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, spare: int, config: Config
    ) -> nn.Module:
        return BoxHead(channels, classes, self.layers)

    def weight(self, target: Tensor) -> Tensor:
        return weight_of(target)

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        return box_loss(raw, target)

    def rows(self, raw: Tensor) -> Tensor:
        return candidates(raw.float())

    def chosen(self, rows: Tensor, most_overlap: float) -> Tensor:
        """Rows of one view -> (B, 100, 6), none of which overlaps a better one of its class by more than this IoU."""
        return select_boxes(rows, most_overlap)

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        """The maps' sizes in cells become those of the image, which need not be whole."""
        (height, width), (tall, wide) = size, padded
        # Without a tensor of these numbers: they are open where a graph for any size is made.
        places = [raw[..., :2], raw[..., 2:3] * width / wide, raw[..., 3:4] * height / tall]
        return torch.cat([*places, raw[..., 4:]], dim=2)

    def columns(self, classes: int) -> int:
        """Of raw output."""
        return FIRST_CLASS + classes


class OwnCells(Cells):
    """The same of a darknet encoder's own maps (networks/yolo_head.py)."""

    one_list = True

    def levels(self, strides: Sequence[int], own_maps: int) -> tuple[int, ...]:
        return tuple(range(len(strides) - own_maps, len(strides)))

    def head(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, spare: int, config: Config
    ) -> nn.Module:
        return YoloHead(channels, classes, config.darknet_cfg)

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        return yolo_loss(raw, target)


class TwoStages(Cells):
    """Proposals first, then the class and the box of each (networks/rcnn_head.py). Raw output are rows, already without
    those that overlap a better one by more than a half, and while it trains the losses of each frame."""

    one_list = True
    no_graph = "what two-stage detectors (box_layers fasterrcnn) compute depends on what they have found"
    most_overlap = OVERLAP
    in_cells = False

    def levels(self, strides: Sequence[int], own_maps: int) -> tuple[int, ...]:
        return tuple(range(len(strides)))

    def head(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, spare: int, config: Config
    ) -> nn.Module:
        from networks.rcnn_head import RcnnHead  # not above: torchvision takes a second to load

        return RcnnHead(channels, strides, classes, frame_target, spare, RECIPES[self.layers])

    def weight(self, target: Tensor) -> Tensor:
        return (~unknown(target)).sum().float()

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        """raw (B, losses) -> their sum; each frame weighs 1, as in torchvision."""
        said = ~unknown(target)
        return (raw.float().sum(1) * said).sum(), self.weight(target)

    def rows(self, raw: Tensor) -> Tensor:
        return raw.float()

    def chosen(self, rows: Tensor, most_overlap: float) -> Tensor:
        # The head's own suppression is final: a second one at the same IoU would decide by rounding errors.
        return rows if most_overlap >= self.most_overlap else select_boxes(rows, most_overlap)

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        (height, width), (tall, wide) = size, padded
        scale = raw.new_tensor([wide / width, tall / height, wide / width, tall / height])
        return torch.cat([(raw[..., :4] * scale).clamp(0, 1), raw[..., 4:]], dim=2)

    def columns(self, classes: int) -> int:
        return 6


def frame_target(rows: Tensor, size: Sequence[int]) -> dict[str, Tensor] | None:
    """The boxes (M, 7) of a frame in shares of it, as tasks/boxes.py has them -> a target of networks/rcnn_head.py."""
    if unknown(rows[None]):
        return None
    height, width = size
    boxes = rows[:, :4] * rows.new_tensor([width, height, width, height])
    present, ignored = rows[:, 4] >= 0, rows[:, 5] > 0
    real = present & ~ignored
    return {"boxes": boxes[real], "labels": rows[real, 4].long() + 1, "ignored": boxes[present & ignored]}


KINDS: dict[str, Cells] = {
    "light": Cells("light"), "plain": Cells("plain"), "yolo": OwnCells("yolo"),
    **{name: TwoStages(name) for name in TWO_STAGES},
}  # fmt: skip


def merged(views: Sequence[Tensor], most_overlap: float) -> Tensor:
    """Rows of several views of the same frames -> (B, 100, 6): those of one thing suppress each other."""
    together = torch.cat(list(views), dim=1)
    return select_boxes(best_of(together, together.shape[1]), most_overlap)


def mirrored(rows: Tensor) -> Tensor:
    """The rows of the mirrored frame."""
    return torch.cat([1 - rows[..., 2:3], rows[..., 1:2], 1 - rows[..., :1], rows[..., 3:]], dim=2)
