"""The head of YOLOv3 (Redmon and Farhadi, arXiv 1804.02767, section 2) on a darknet encoder's maps.

One convolution a map gives for each cell and anchor x, y, width, height, objectness and classes. Predictions come in
the form that all heads for boxes have (networks/box_head.py), so that all that follows is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from networks.box_head import PRIOR, places
from networks.darknet_cfg import parse_cfg
from networks.darknet_layers import Yolo

MOST_OWN_MAPS = 16
OVERLAP = 0.45  # darknet's, of suppression
LARGEST_LOGARITHM = 10.0  # of a box's side over its anchor's: no infinity in half precision


class YoloHead(nn.Module):
    """Maps (B, channels[i], h, w), one for each [yolo] of the .cfg -> (B, N, 8 + classes) fp32, a row for each anchor
    and cell: as `BoxHead` has it, where the row's cell is moved so that its centre is the box's.

    The logit of a class is that of darknet's score, objectness times class. While it trains, rows are those of
    `training_row`.
    """

    def __init__(self, channels: Sequence[int], classes: int, text: str) -> None:
        super().__init__()
        cfg = parse_cfg(text, "darknet_cfg")
        if len(cfg.yolo) != len(channels):
            raise ValueError(f"boxes: the .cfg has {len(cfg.yolo)} [yolo] layers, but there are {len(channels)} maps")
        self.levels, self.classes = cfg.yolo, classes
        self.output = nn.ModuleList(
            nn.Conv2d(
                count, len(level.mask) * (classes + 5), layer.kernel, padding=layer.kernel // 2, groups=layer.groups
            )
            for count, level, layer in zip(channels, cfg.yolo, cfg.outputs, strict=True)
        )

    def initialise(self) -> None:
        for conv in self.output:
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
            nn.init.constant_(conv.bias.view(-1, self.classes + 5)[:, 4], -math.log(1 / PRIOR - 1))

    def forward(self, *maps: Tensor) -> Tensor:
        rows = []
        for x, level, conv in zip(maps, self.levels, self.output, strict=True):
            found = conv(x).float().unflatten(1, (len(level.mask), self.classes + 5)).flatten(3)  # (B, A, 5 + C, h * w)
            where = places(x).expand(found.shape[0], -1, -1)
            for part, anchor in zip(found.unbind(1), level.anchors, strict=True):
                make = training_row if self.training else row
                rows.append(make(part.transpose(1, 2), where, [side / level.stride for side in anchor], level))
        return torch.cat(rows, dim=1)


def offsets(found: Tensor, level: Yolo) -> tuple[Tensor, Tensor]:
    """found (B, h * w, 5 + C) -> where in its cell the box's centre is, 0..1, and the logarithms of its sides over the
    anchor's; (B, h * w, 2) each."""
    place = found[..., :2].sigmoid()
    if level.scale_xy != 1:
        place = place * level.scale_xy - (level.scale_xy - 1) / 2
    if level.new_coords:
        return place, 2 * (math.log(2) + F.logsigmoid(found[..., 2:4]))
    return place, found[..., 2:4].clamp(max=LARGEST_LOGARITHM)


def row(found: Tensor, where: Tensor, anchor: Sequence[float], level: Yolo) -> Tensor:
    """found (B, h * w, 5 + C), where (B, h * w, 4), an anchor's sides in cells -> (B, h * w, 8 + C) as of `BoxHead`."""
    place, logarithms = offsets(found, level)
    halves = [logarithms[..., side : side + 1].exp() * (anchor[side] / 2) for side in (0, 1)]
    # The logit of the product of two sigmoids, of `thing` and of `logits`, without the product.
    thing, logits = found[..., 4:5], found[..., 5:]
    logits = logits - F.softplus(-thing) - F.softplus(logits - F.softplus(thing))
    return torch.cat([where[..., :2] + place - 0.5, where[..., 2:], *halves, *halves, logits], dim=2)


AFTER_CLASSES = 4  # columns of `training_row`


def training_row(found: Tensor, where: Tensor, anchor: Sequence[float], level: Yolo) -> Tensor:
    """(B, h * w, 8 + C + 4): the cell's place as of `BoxHead`, `offsets`, logits of the classes and of "there is a
    thing", the layer's ignore_thresh, the anchor's sides in cells."""
    fixed = found.new_tensor([level.ignore, *anchor]).expand(*found.shape[:2], 3)
    return torch.cat([where, *offsets(found, level), found[..., 5:], found[..., 4:5], fixed], dim=2)


def fields_of_yolo(config: Config) -> dict[str, int | float]:
    """What the task of boxes has of its own with this head: the number of maps, those of the [yolo] layers of the
    encoder's .cfg, and darknet's suppression. {} for other heads."""
    if config.box_layers != "yolo":
        return {}
    return {"own_maps": len(parse_cfg(config.darknet_cfg, "darknet_cfg").yolo), "most_overlap": OVERLAP}
