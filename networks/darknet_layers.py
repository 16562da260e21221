"""The layers of a darknet network as its .cfg file describes them: what each reads, and the shape of what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IMAGE = -1  # as the number of a layer: the picture


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What all layers have. Numbers count from 0, without [net], as darknet's do."""

    number: int
    inputs: tuple[int, ...]  # the layers that it reads
    before: int  # channels of what it reads, all together
    channels: int  # of what it gives
    stride: int  # pixels of the picture that a pixel of its map spans
    size: tuple[int, int]  # height and width of its map, for an input of the file's size


@dataclass(frozen=True, kw_only=True)
class Convolution(Layer):
    kernel: int
    step: int
    groups: int
    norm: bool
    activation: str

    @property
    def weights(self) -> int:
        """Numbers in a .weights file."""
        return self.channels * (self.before // self.groups * self.kernel**2 + (4 if self.norm else 1))


@dataclass(frozen=True, kw_only=True)
class MaxPool(Layer):
    kernel: int
    step: int
    padding: int  # rows in all; half of them, rounded down, at the top


@dataclass(frozen=True, kw_only=True)
class Shortcut(Layer):
    activation: str


@dataclass(frozen=True, kw_only=True)
class Route(Layer):
    groups: int
    group: int  # which part of each input is taken


@dataclass(frozen=True, kw_only=True)
class Upsample(Layer):
    factor: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    probability: float


@dataclass(frozen=True, kw_only=True)
class Yolo(Layer):
    anchors: tuple[tuple[float, float], ...]  # width and height in pixels of those that are used here
    all_anchors: tuple[tuple[float, float], ...]
    mask: tuple[int, ...]  # which of all anchors these are
    classes: int
    scale_xy: float
    new_coords: bool  # scaled YOLOv4's: (2 sigmoid)^2 for width and height
    ignore: float  # IoU with any box above which a prediction is no negative


@dataclass(frozen=True)
class Cfg:
    """A whole file."""

    text: str  # without comments and blanks
    height: int
    width: int
    letterbox: bool  # False: the picture is stretched to width and height
    layers: tuple[Layer, ...]

    @property
    def yolo(self) -> tuple[Yolo, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, Convolution))

    @property
    def outputs(self) -> tuple[Convolution, ...]:
        """The convolution before each [yolo]."""
        return tuple(self.layers[layer.number - 1] for layer in self.yolo)

    @property
    def multiple(self) -> int:
        """Pixels: an input's sides are multiples of it."""
        return max(layer.stride for layer in self.layers)


def last_uses(layers: Sequence[Layer]) -> dict[int, int]:
    """{layer: the last one that reads it}"""
    return {source: layer.number for layer in layers for source in layer.inputs}
