"""Small darknet networks with random weights, and their outputs by plain formulas, for the tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor

from networks.darknet_cfg import parse_cfg
from networks.darknet_layers import Cfg
from networks.darknet_text import sections_of, text_of
from tasks.box_selection import boxes_in_cells

CONFIGS = ROOT / "configs" / "darknet"


def thin(name: str, by: int = 16, classes: int = 3, side: int = 64) -> str:
    """A file of configs/darknet with so many times fewer filters, other classes and another input."""
    sections = sections_of((CONFIGS / f"{name}.cfg").read_text(), name)
    sections[0][1].update(width=str(side), height=str(side))
    for number, (kind, values) in enumerate(sections):
        before_yolo = number + 1 < len(sections) and sections[number + 1][0] == "yolo"
        if kind == "convolutional":
            count = len(sections[number + 1][1]["mask"].split(",")) * (classes + 5) if before_yolo else 0
            values["filters"] = str(count or max(2, int(values["filters"]) // by))
        if kind == "yolo":
            values["classes"] = str(classes)
    return text_of(sections)


def numbers_for(cfg: Cfg, seed: int = 0) -> np.ndarray:
    """Random weights in the order of the file: lively maps of usual size, variances well above 0."""
    rng, parts = np.random.default_rng(seed), []
    for layer in cfg.convolutions:
        count = layer.channels
        if layer.norm:
            parts += [rng.normal(0, 0.3, count), rng.uniform(0.3, 0.9, count), rng.normal(0, 0.3, count)]
            parts.append(rng.uniform(0.5, 2, count))
        else:
            parts.append(rng.normal(0, 0.5, count))
        inputs = layer.before // layer.groups * layer.kernel**2
        parts.append(rng.normal(0, (1 / inputs) ** 0.5, count * inputs))
    return np.concatenate(parts).astype("<f4")


def write_network(folder: Path, text: str, seed: int = 0, seen: int = 640, minor: int = 2, name: str = "net") -> Path:
    """NAME.cfg and NAME.weights in the folder; returns the latter."""
    (folder / f"{name}.cfg").write_text(text)
    header = struct.pack("<3iq", 0, minor, 0, seen) if minor >= 2 else struct.pack("<4i", 0, minor, 0, seen)
    path = folder / f"{name}.weights"
    path.write_bytes(header + numbers_for(parse_cfg(text, "test"), seed).tobytes())
    return path


def activated(x: Tensor, kind: str) -> Tensor:
    exp = torch.exp(x.clamp(max=30))
    return {
        "linear": x, "leaky": torch.where(x > 0, x, 0.1 * x), "logistic": 1 / (1 + torch.exp(-x)),
        "relu": x.clamp(min=0), "relu6": x.clamp(0, 6), "elu": torch.where(x > 0, x, exp - 1),
        "tanh": (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1), "mish": x * torch.tanh(torch.log(1 + exp)),
        "swish": x / (1 + torch.exp(-x)),
    }[kind]  # fmt: skip


def by_hand(text: str, numbers: np.ndarray, x: Tensor) -> Tensor:
    """The network in fp64 straight from its sections: (B, N, 4 + C) centre, sides in shares of x, score of each class;
    the rows of a level anchor by anchor."""
    maps: list[Tensor] = []
    found, at = [], 0
    x = x.double()
    frame = x.shape

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return torch.from_numpy(numbers[at - count : at].astype(np.float64)).reshape(shape)

    for kind, raw in sections_of(text, "test")[1:]:
        values = {"stride": "1", "size": "1", "groups": "1", "activation": "logistic", "batch_normalize": "0", **raw}
        size, step, groups = int(values["size"]), int(values["stride"]), int(values["groups"])
        sources = [int(item) for item in values.get("layers", values.get("from", "")).split(",") if item]
        chosen = [maps[len(maps) + item if item < 0 else item] for item in sources]
        if kind == "convolutional":
            count = int(values["filters"])
            first = take(count)
            norm = [take(count) for _ in range(3)] if values["batch_normalize"] == "1" else []
            x = F.conv2d(x, take(count, x.shape[1] // groups, size, size), None, step, size // 2, groups=groups)
            if norm:
                scale, mean, variance = (item.view(-1, 1, 1) for item in norm)
                x = (x - mean) / torch.sqrt(variance) * scale
            x = activated(x + first.view(-1, 1, 1), values["activation"])
        elif kind == "maxpool":
            size = int(raw.get("size", step))
            pad = int(values.get("padding", size - 1))
            sides = pad // 2, pad - pad // 2
            x = F.max_pool2d(F.pad(x, (*sides, *sides), value=-torch.inf), size, step)
        elif kind == "shortcut":
            x = activated(x + sum(chosen), values.get("activation", "linear"))
        elif kind == "route":
            part = int(values.get("group_id", 0))
            width = [item.shape[1] // groups for item in chosen]
            x = torch.cat([item[:, part * n : (part + 1) * n] for item, n in zip(chosen, width, strict=True)], 1)
        elif kind == "upsample":
            x = x.repeat_interleave(int(values["stride"]), 2).repeat_interleave(int(values["stride"]), 3)
        elif kind == "yolo":
            found.append(decoded(x, values, frame))
        maps.append(x)
    assert at == len(numbers)
    return torch.cat(found, 1)


def decoded(x: Tensor, values: dict[str, str], frame: torch.Size) -> Tensor:
    """A [yolo] layer's input -> (B, N, 4 + C)."""
    height, width = x.shape[2:]
    anchors = [float(item) for item in values["anchors"].split(",")]
    scale, new = float(values.get("scale_x_y", 1)), values.get("new_coords") == "1"
    rows = []
    for number, part in zip(
        map(int, values["mask"].split(",")), x.chunk(len(values["mask"].split(",")), 1), strict=True
    ):
        # With new_coords the convolution before has had the sigmoid.
        squashed = part if new else 1 / (1 + torch.exp(-part))
        column, line = torch.arange(width).view(1, 1, -1), torch.arange(height).view(1, -1, 1)
        cx = (squashed[:, 0] * scale - (scale - 1) / 2 + column) / width
        cy = (squashed[:, 1] * scale - (scale - 1) / 2 + line) / height
        w, h = ((2 * part[:, side]) ** 2 if new else torch.exp(part[:, side]) for side in (2, 3))
        w, h = w * anchors[2 * number] / frame[3], h * anchors[2 * number + 1] / frame[2]
        scores = squashed[:, 4:5] * squashed[:, 5:]
        rows.append(torch.cat([torch.stack([cx, cy, w, h], 1), scores], 1).flatten(2).transpose(1, 2))
    return torch.cat(rows, 1)


def found_by(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(B, N, 4 + C) as `by_hand` gives it."""
    with torch.no_grad():
        raw = network(x)["boxes"]
    boxes, _ = boxes_in_cells(raw)
    middle, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([middle, sides, raw[..., 8:].sigmoid()], dim=2)
