"""Darknet networks: the layers of a .cfg file as an encoder.

Its features are, for decoders, the last map of each stride before the network goes back to finer ones; and, where boxes
come from the file's own [yolo] layers, the maps that these are computed from (`networks/yolo_head.py` does that).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.checkpoints import check_weights
from networks.darknet_cfg import backbone_of, parse_cfg
from networks.darknet_files import read_first_layers
from networks.darknet_layers import (
    IMAGE,
    Cfg,
    Convolution,
    Dropout,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    last_uses,
)

DENSE_STRIDES = (4, 8, 16, 32)  # that decoders need
SLOPE = 0.1  # of leaky below 0
# Added to variances. Darknet has 1e-6 (to the deviation) on a CPU and 1e-5 on a GPU, OpenCV 4 this. On Yolo-Fastest the
# last two move boxes by up to 0.06 % of the picture.
EPSILON = 1e-6

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Identity, "leaky": lambda: nn.LeakyReLU(SLOPE), "logistic": nn.Sigmoid, "relu": nn.ReLU,
    "relu6": nn.ReLU6, "elu": nn.ELU, "tanh": nn.Tanh, "mish": nn.Mish, "swish": nn.SiLU,
}  # fmt: skip


class Pool(nn.Module):
    """Darknet's max-pool: of `padding` rows and columns, half (rounded down) stand at the top and left.

    Padding counts as lower than all values. Repeating the border does the same, as each window holds a part of it.
    """

    def __init__(self, kernel: int, step: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.step, self.before, self.after = kernel, step, padding // 2, padding - padding // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.before == self.after <= self.kernel // 2:
            return F.max_pool2d(x, self.kernel, self.step, self.before)
        if (self.kernel, self.step, self.before, self.after) == (2, 2, 0, 1):
            return F.max_pool2d(x, 2, 2, ceil_mode=True)
        padded = F.pad(x, (self.before, self.after) * 2, mode="replicate")
        return F.max_pool2d(padded, self.kernel, self.step)


def module_of(layer: Layer) -> nn.Module:
    """What the layer does to its input, or to the sum of its inputs, or to what it chooses of them."""
    if isinstance(layer, Convolution):
        parts: dict[str, nn.Module] = {
            "conv": nn.Conv2d(
                layer.before, layer.channels, layer.kernel, layer.step, layer.kernel // 2, groups=layer.groups,
                bias=not layer.norm,
            )
        }  # fmt: skip
        if layer.norm:
            parts["norm"] = nn.BatchNorm2d(layer.channels, eps=EPSILON)
        return nn.Sequential(OrderedDict(parts, act=ACTIVATIONS[layer.activation]()))
    if isinstance(layer, MaxPool):
        return Pool(layer.kernel, layer.step, layer.padding)
    if isinstance(layer, Shortcut):
        return ACTIVATIONS[layer.activation]()
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.probability)
    return nn.Identity()  # what is left has no numbers of its own


class Darknet(nn.Module):
    """The layers that lead to the wanted maps.

    finest_stride: of the features for decoders. own: also the maps before each [yolo], after them. The picture (0..1,
    RGB) is padded with gray at the right and bottom to multiples of `multiple`, or stretched to `stretch` (height,
    width) where the file says letter_box=0.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    fill = 0.5  # of the padding
    no_download = "give a .weights file, such as darknet53.conv.74"

    def __init__(self, cfg: Cfg, finest_stride: int = 4, own: bool = False) -> None:
        super().__init__()
        self.cfg, self.multiple = cfg, cfg.multiple
        self.stretch = None if cfg.letterbox else (cfg.height, cfg.width)
        last = {layer.stride: layer for layer in backbone_of(cfg)}
        dense = [last[stride] for stride in sorted(last) if stride >= finest_stride]
        if dense and tuple(layer.stride for layer in dense if layer.stride >= 4) != DENSE_STRIDES:
            got = ", ".join(map(str, sorted(last)))
            raise ValueError(
                f"encoder: the .cfg has no maps at strides 4, 8, 16 and 32, as decoders need; it has {got}"
            )
        if own and not cfg.yolo:
            raise ValueError("box_layers: yolo takes the [yolo] layers of the .cfg, but it has none")
        own_maps = [cfg.layers[layer.inputs[0]] for layer in cfg.outputs] if own else []
        self.own_maps = len(own_maps)
        wanted = [*dense, *own_maps]
        self.wanted = [layer.number for layer in wanted]
        self.channels, self.strides = tuple(layer.channels for layer in wanted), tuple(layer.stride for layer in wanted)
        needed = set(self.wanted)
        for layer in reversed(cfg.layers):
            needed |= set(layer.inputs) if layer.number in needed else set()
        self.plan = [layer for layer in cfg.layers if layer.number in needed]
        self.last = last_uses(self.plan)
        self.layers = nn.ModuleDict({str(layer.number): module_of(layer) for layer in self.plan})
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # pictures, as darknet counts in its files
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, sizes = {IMAGE: x}, {1: x.shape[-2:]}
        for layer in self.plan:
            y = self.run(layer, [maps[number] for number in layer.inputs], sizes)
            sizes.setdefault(layer.stride, y.shape[-2:])
            maps[layer.number] = y
            for number in layer.inputs:  # frees the memory of what no later layer reads
                if self.last[number] == layer.number and number not in self.wanted:
                    maps.pop(number, None)
        return [maps[number] for number in self.wanted]

    def run(self, layer: Layer, inputs: Sequence[Tensor], sizes: dict[int, torch.Size]) -> Tensor:
        """A layer's map. `sizes` are those of each stride so far."""
        x = inputs[0]
        if isinstance(layer, Route):
            if layer.groups > 1:
                inputs = [item.chunk(layer.groups, dim=1)[layer.group] for item in inputs]
            x = torch.cat(list(inputs), dim=1) if len(inputs) > 1 else inputs[0]
        elif isinstance(layer, Shortcut):
            x = sum(inputs[1:], x)
        elif isinstance(layer, Upsample):
            # To the size that this stride's maps have: a graph of any size then knows that the two are equal.
            x = F.interpolate(x, size=sizes[layer.stride], mode="nearest")
            x = x * layer.scale if layer.scale != 1 else x
        return self.layers[str(layer.number)](x)

    def load_file(self, path: Path) -> None:
        """A .weights file of the whole network, or one of its first layers (`darknet53.conv.74`)."""
        weights, self.seen[...] = read_first_layers(path, self.cfg)
        own = self.state_dict()
        given = {name: weights[name] for name in own if name in weights}
        check_weights(given, {name: own[name] for name in given}, path)
        self.load_state_dict(given, strict=False)


def build_darknet(text: str, finest_stride: int, own: bool) -> Darknet:
    """The encoder `darknet` for the text of a .cfg file. Raises ValueError."""
    if not text:
        raise ValueError("encoder: darknet takes its layers from a file: --encoder darknet:FILE.cfg")
    return Darknet(parse_cfg(text, "darknet_cfg"), finest_stride, own)
