"""The head for boxes: anchor-free, one light head that all levels of the decoder share.

Each cell of each level's map gives one box: its distances to the four sides, and a score for each class. As in FCOS
(Tian et al., arXiv 1904.01355) without its centerness; width, kernels and the batch norm for each level as in
NanoDet-Plus and RTMDet (arXiv 2212.07784, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACES = 4  # columns of a raw output that tell where its cell is: column, row, width and height of the map
SIDES = 4  # columns with the distances to the left, top, right and bottom side
FIRST_CLASS = PLACES + SIDES
WIDTH = 96  # channels
PRIOR = (
    0.01  # the score of each class at the beginning: nearly all cells are background (arXiv 1708.02002, section 4.1)
)
FIRST_DISTANCE = 3.0  # cells


class SeparableLayer(nn.Module):
    """5x5 within each channel and 1x1, with weights for all levels and a batch norm for each: levels see things of
    other sizes, so the statistics of their maps differ."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.mix = nn.Conv2d(width, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        return F.relu6(self.norms[level](self.mix(self.spatial(x))))


class PlainLayer(nn.Module):
    """3x3 over all channels, and a batch norm for each level."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        return F.relu6(self.norms[level](self.mix(x)))


LAYERS: dict[str, type[SeparableLayer] | type[PlainLayer]] = {"light": SeparableLayer, "plain": PlainLayer}


class BoxHead(nn.Module):
    """Maps (B, channels[i], h, w), from fine to coarse -> (B, N, 8 + classes) fp32, a row for each cell of all maps.

    A row holds column and row of its cell, width and height of its map in cells; the distances from the cell's centre
    to the box's left, top, right and bottom side in cells, above 0; and the logit of each class.
    """

    def __init__(self, channels: Sequence[int], classes: int, layer: str = "light", depth: int = 2) -> None:
        super().__init__()
        levels = len(channels)
        self.reduce = nn.ModuleList(nn.Conv2d(count, WIDTH, 1, bias=False) for count in channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in channels)
        self.layers = nn.ModuleList(LAYERS[layer](WIDTH, levels) for _ in range(depth))
        self.output = nn.Conv2d(WIDTH, SIDES + classes, 1)

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.constant_(self.output.bias[:SIDES], math.log(math.expm1(FIRST_DISTANCE)))  # before softplus
        nn.init.constant_(self.output.bias[SIDES:], -math.log(1 / PRIOR - 1))

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat([self.level(x, number) for number, x in enumerate(maps)], dim=1)

    def level(self, x: Tensor, number: int) -> Tensor:
        x = F.relu6(self.norms[number](self.reduce[number](x)))
        for layer in self.layers:
            x = layer(x, number)
        found = self.output(x).float().flatten(2).transpose(1, 2)  # (B, h * w, 4 + classes)
        sides, logits = F.softplus(found[..., :SIDES]), found[..., SIDES:]
        return torch.cat([places(x).expand(found.shape[0], -1, -1), sides, logits], dim=2)


def places(x: Tensor) -> Tensor:
    """A map (B, C, h, w) -> (1, h * w, 4): column and row of each cell, width and height of the map.

    Raw output that knows its cells can be cut and decoded without the network. Numbers below 256 are exact in bf16.
    """
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=torch.float32)[:, None].expand(height, width)
    columns = torch.arange(width, device=x.device, dtype=torch.float32)[None].expand(height, width)
    size = [torch.full_like(rows, 1.0) * width, torch.full_like(rows, 1.0) * height]
    return torch.stack([columns, rows, *size], dim=2).reshape(1, height * width, PLACES)
