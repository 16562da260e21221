"""Numbers that should not change unnoticed: generated rooms, metrics and a forward pass. `test_golden.py` compares.

PYTHONPATH=. python tests/golden.py    # writes golden.json anew, after a change that is meant
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from helpers import settings, tasks

from metrics import DepthMetrics, NormalMetrics, Protocol, SegmentationMetrics
from model import build_network
from rooms import generate

FILE = Path(__file__).with_name("golden.json")


def summary(values: np.ndarray) -> list[float]:
    """Mean, deviation, and seven quantiles."""
    values = np.asarray(values, np.float64)
    return [float(values.mean()), float(values.std()), *map(float, np.quantile(values, np.linspace(0, 1, 7)))]


def room(seed: int, index: int) -> dict[str, list[float]]:
    frame = generate.render(seed, index, 96, 72)
    found = {name: summary(getattr(frame, name)) for name in ("image", "depth", "normals")}
    shares = np.bincount(frame.segmentation.ravel(), minlength=40)[:40] / frame.segmentation.size
    return found | {"classes": shares.tolist()}


def metrics() -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    ids, seen = (torch.from_numpy(rng.integers(0, 5, (3, 17, 23), np.uint8)) for _ in range(2))
    ids[:, :4] = 255
    depth, near = (torch.from_numpy(rng.uniform(0.1, 9, (3, 17, 23)).astype(np.float32)) for _ in range(2))
    depth[:, ::5] = 0
    normals, other = (torch.from_numpy(rng.normal(size=(3, 3, 17, 23)).astype(np.float32)) for _ in range(2))
    found = {}
    for name, accumulator, prediction, target in (
        ("segmentation", SegmentationMetrics(tuple("abcde")), seen, ids),
        ("depth", DepthMetrics(Protocol()), near, depth),
        ("depth, capped, per image", DepthMetrics(Protocol("none", 5.0, True)), near, depth),
        ("normals", NormalMetrics(), other, normals),
    ):
        accumulator.update(prediction, target)
        found[name] = accumulator.compute()
    return found


def forward(encoder: str) -> dict[str, list[float]]:
    """Of a network with random weights, in double precision: what is left differs by 1e-12 from machine to machine."""
    torch.manual_seed(0)
    network = build_network(settings(encoder, decoder_width=16), tasks(6, normals=True)).eval().double()
    image = torch.from_numpy(generate.render(1, 0, 96, 72).image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        outputs = network(image)
        scaled = {name: value / value.abs().max() for name, value in outputs.items()}
    return {name: summary(value.numpy()) for name, value in scaled.items()}


def everything() -> dict[str, object]:
    return {
        "rooms": {f"{seed}/{index}": room(seed, index) for seed, index in ((0, 0), (0, 7), (3, 1))},
        "metrics": metrics(),
        "forward": {name: forward(name) for name in ("mobilenetv2_paper", "resnet18", "tf_efficientnet_lite0")},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(everything(), indent=1) + "\n")
