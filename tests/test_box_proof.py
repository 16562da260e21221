"""When the boxes of a quantized file are those of its checkpoint: compared as detections are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import ROOT, shared
from torch import Tensor

from deploy.backend_base import Backend
from deploy.proof import differences
from deploy.signature import make_signature
from images import SAMPLE, read_image
from model import Network, load_network
from tasks.box_selection import counterparts

INT8, EXACT = 0.1, 0.01  # tolerances of export.py
LIMIT = 0.1  # of export.py --int8


def row(x: float = 0, width: float = 100, score: float = 0.8, kind: int = 1) -> list[float]:
    return [x, 0, x + width, 100, score, kind, float("nan")]


@pytest.mark.parametrize(
    ("other", "exact", "rough"),
    [
        (row(), True, True),
        (row(x=4), True, True),  # IoU 0.92
        (row(x=10), False, True),  # IoU 0.82
        (row(x=30), False, True),  # IoU 0.54
        (row(width=200), False, True),  # IoU 0.5
        (row(x=35), False, False),  # IoU 0.48
        (row(score=0.795), True, True),
        (row(score=0.7), False, True),
        (row(score=0.4), False, True),
        (row(score=0.39), False, False),
        (row(score=1.0), False, True),
        (row(kind=2), False, False),
    ],
)
def test_what_stands_for_the_same_thing(other, exact, rough):
    boxes, others = torch.tensor([row()]), torch.tensor([row(x=500), other])
    for tolerance, expected in ((EXACT, exact), (INT8, rough)):
        assert counterparts(boxes, others, tolerance).tolist() == [[False, expected]]


class Changed(Backend):
    """The network's raw output after `change`."""

    name = "changed"

    def __init__(self, network: Network, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(make_signature(network, network.tasks), torch.device("cpu"))
        self.network, self.change = network, change

    def run(self, images: Tensor) -> list[Tensor]:
        return [self.change(self.network(images)["boxes"])]


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(shared("weights/yolo-fastest") / "yolo-fastest-1.1.weights")


def places(raw: Tensor, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Boxes moved to the right by a share of their width, with other sides. Columns: cell x, y, map's size, sides."""
    raw = raw.clone()
    width = raw[..., 4] + raw[..., 6]
    raw[..., 0] += shift * width
    raw[..., 4:8] *= scale
    return raw


def logits(raw: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([raw[..., :8], change(raw[..., 8:])], dim=2)


NOISE = torch.Generator().manual_seed(0)
GOOD = {
    "the same": lambda raw: raw,
    "boxes a tenth off": lambda raw: places(raw, 0.1),
    "boxes a fifth too large": lambda raw: places(raw, scale=1.2),
    "lower scores": lambda raw: logits(raw, lambda values: values - 0.3),
    "noise of a rounding": lambda raw: logits(
        raw, lambda values: values + 0.05 * torch.randn(values.shape, generator=NOISE)
    ),
}
BROKEN = {
    "boxes half off": lambda raw: places(raw, 0.5),
    "boxes twice as large": lambda raw: places(raw, scale=2.0),
    "other classes": lambda raw: logits(raw, lambda values: values.roll(1, 2)),
    "nothing is found": lambda raw: logits(raw, lambda values: values - 20),
    "much that is not there": lambda raw: logits(raw, lambda values: values + 4),
    "no numbers": lambda raw: raw * float("nan"),
}


def changed(network: Network, change: Callable[[Tensor], Tensor], tolerance: float) -> tuple[float, bool]:
    pictures = [read_image(ROOT / "media" / "photo.jpg"), read_image(ROOT / SAMPLE)]
    (found,) = differences(Changed(network, change), network, network.tasks, pictures, tolerance)
    return found.changed, found.finite


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_passes(name, network):
    share, finite = changed(network, GOOD[name], INT8)
    assert finite and share <= LIMIT
    if "boxes" in name:
        assert changed(network, GOOD[name], EXACT)[0] > 0.5, "a file in fp32 has to be closer"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_fails(name, network):
    share, finite = changed(network, BROKEN[name], INT8)
    assert not finite or share > 2 * LIMIT, share
