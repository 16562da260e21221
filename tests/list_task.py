"""A task whose label is a list: spots, of which a frame has as many as there are. Its head reads two of the decoder's
maps. It stands for tasks that are no maps, such as boxes, in the tests.

Label files hold a line "x y" for each spot, in shares of the frame. A label is (N, 2) pixels; (1, 2) NaN where nobody
says. A prediction is (B, N, 3): x, y in pixels and a score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from tasks import Task
from utils import whole_file


class SpotHead(nn.Module):
    """A score and an offset for each pixel of each map: (B, 3, all pixels of both)."""

    def __init__(self, channels, strides):
        super().__init__()
        self.strides = strides
        self.convs = nn.ModuleList(nn.Conv2d(count, 3, 1) for count in channels)

    def initialise(self):
        for conv in self.convs:
            nn.init.normal_(conv.weight, std=0.1)

    def forward(self, *maps):
        return torch.cat([conv(x).flatten(2) for conv, x in zip(self.convs, maps, strict=True)], dim=2)


class SpotMetrics:
    """Of frames with a label: how many spots there are, and how many have a prediction within 4 pixels."""

    def __init__(self):
        self.found = self.all = self.frames = 0

    def update(self, prediction, target):
        for found, label in zip(prediction, target, strict=True):
            if not label.isnan().any():
                self.frames += 1
                self.all += len(label)
                near = (label[:, None] - found[None, :, :2]).norm(dim=2).amin(1) < 4 if len(label) else label[:, 0]
                self.found += int(near.sum())

    def merge(self, other):
        self.found, self.all, self.frames = self.found + other.found, self.all + other.all, self.frames + other.frames

    def compute(self):
        return {"recall": self.found / max(1, self.all), "frames": self.frames} if self.frames else {}


@dataclass(frozen=True)
class Spots(Task):
    name = "spots"
    best = "recall"
    directions: ClassVar = {"recall": 1, "frames": 1}
    suffix = ".txt"

    def read(self, path, section, image):
        try:
            return np.array([line.split() for line in path.read_text().splitlines()], np.float32).reshape(-1, 2)
        except ValueError:
            raise ValueError(f"{path}: each line must be: x y") from None

    def at_size(self, label, size, section, path):
        return label * np.float32(size[::-1])

    def no_label(self, height, width):
        return np.full((1, 2), np.nan, np.float32)

    def view(self, label, view):
        moved = (np.column_stack([label, np.ones(len(label))]) @ view.matrix.T).astype(np.float32)
        inside = ((moved >= 0) & (moved < (view.width, view.height))).all(1)
        return moved[inside]

    def levels(self, strides):
        return tuple(index for index, stride in enumerate(strides) if stride in (8, 16))

    def head(self, channels, strides, config):
        return SpotHead(channels, strides)

    def weight(self, target):
        return float(sum(not label.isnan().any() for label in target))

    def loss(self, raw, target):
        values = [raw[number].square().mean() for number, label in enumerate(target) if not label.isnan().any()]
        return sum(values, start=raw.sum() * 0), raw.new_tensor(self.weight(target))

    def decode(self, raw, size):
        scores, places = raw[:, 0].sigmoid().topk(5)
        xy = raw[:, 1:].sigmoid() * raw.new_tensor(size[::-1]).view(1, 2, 1)
        xy = xy.gather(2, places[:, None].expand(-1, 2, -1)).transpose(1, 2)
        return torch.cat([xy, scores[..., None]], dim=2)

    def merge(self, views, size):
        parts = []
        for raw, _, mirror in views:
            part = self.decode(raw, size).clone()
            if mirror:
                part[..., 0] = size[1] - part[..., 0]
            parts.append(part)
        return torch.cat(parts, dim=1)

    def resize(self, prediction, before, size):
        ratio = prediction.new_tensor([size[1] / before[1], size[0] / before[0], 1])
        return prediction * ratio

    def metrics(self, protocol):
        return SpotMetrics()

    def draw(self, prediction, size=None, shown=None):
        height, width = shown or size
        picture = np.zeros((height, width, 3), np.uint8)
        for x, y in prediction[:, :2] * (width / size[1], height / size[0]):
            if np.isfinite(x):
                picture[min(int(y), height - 1), min(int(x), width - 1)] = 255
        return picture

    def save(self, prediction, path):
        """In shares of a frame of 100x100, for the tests."""
        with whole_file(path) as temporary:
            temporary.write_text("".join(f"{x / 100:.6f} {y / 100:.6f}\n" for x, y in prediction[:, :2]))
