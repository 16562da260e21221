"""Checkpoints of the YOLOv3 tutorial (aladdinpersson/Machine-Learning-Collection): `checkpoint.pth.tar`.

Its network is yolov3.cfg with layers of other names, its anchors in shares of the picture, rounded, and with
objectness before the box in each output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from networks.darknet import EPSILON
from networks.darknet_cfg import MOST_CLASSES, parse_cfg, with_classes
from networks.darknet_files import class_names, name_of, network_content, read_cfg
from networks.darknet_text import sections_of, text_of
from user_input.text_files import read_text

OWN_CFG = Path(__file__).parents[1] / "configs" / "darknet" / "yolov3.cfg"
SIZE = 416
# Shares of SIZE, of the finest maps first, as in a .cfg; the file does not hold them.
ANCHORS = (
    (0.02, 0.03), (0.04, 0.07), (0.08, 0.06), (0.07, 0.15), (0.15, 0.11), (0.14, 0.29), (0.28, 0.22), (0.38, 0.48),
    (0.9, 0.78),
)  # fmt: skip
NORM_EPSILON = 1e-5  # of its batch norm
CONVOLUTION = re.compile(r"layers\.(\d+)\.(?:(?:layers|pred)\.)?(?:(\d+)\.)?(?:(\d+)\.)?conv\.weight")


def is_tutorial(weights: object) -> bool:
    """Whether a `state_dict` has the tutorial's names."""
    return isinstance(weights, Mapping) and "layers.0.conv.weight" in weights and "layers.0.bn.weight" in weights


def own_cfg(classes: int) -> str:
    """The .cfg of the tutorial's network for so many classes."""
    sections = sections_of(with_classes(read_text(OWN_CFG, 2**20), classes), str(OWN_CFG))
    sections[0][1].update(width=str(SIZE), height=str(SIZE))
    line = ",".join(f"{SIZE * width:g},{SIZE * height:g}" for width, height in ANCHORS)
    for kind, values in sections:
        if kind == "yolo":
            values.update(anchors=line)
    return text_of(sections)


def read_tutorial(
    weights: Mapping[str, object],
    path: Path,
    cfg_path: Path | None,
    class_lists: Mapping[str, Sequence[str]],
    other_names: Mapping[str, str],
) -> dict[str, object]:
    """The `state_dict` of a tutorial's checkpoint -> the content of a checkpoint of ours, in plain types.

    cfg_path: a .cfg with other anchors, or of another network of the same kind. Raises ValueError in one line.
    """
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise ValueError(f"{path}: its state_dict holds more than named tensors")
    found = {tuple(int(item or 0) for item in match.groups()): name for name in weights if (match := _match(name))}
    names = [name.removesuffix("conv.weight") for _, name in sorted(found.items())]
    outputs = [name for name in names if f"{name}conv.bias" in weights]
    channels = {len(weights[f"{name}conv.bias"].flatten()) for name in outputs}
    classes = min(channels, default=0) // 3 - 5
    if len(channels) != 1 or channels != {3 * (classes + 5)} or not 1 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"{path}: not a checkpoint of the YOLOv3 tutorial: its outputs have {sorted(channels)} channels, where 3 x "
            f"(classes + 5) are expected"
        )
    text = with_classes(read_cfg(cfg_path).text, classes) if cfg_path else own_cfg(classes)
    cfg = parse_cfg(text, str(cfg_path or OWN_CFG))
    layers = cfg.convolutions
    if len(layers) != len(names):
        raise ValueError(f"{path}: it has {len(names)} convolutions, {cfg_path or 'YOLOv3'} has {len(layers)}")
    output_layers = [layer.number for layer in cfg.outputs]
    tensors: dict[str, Tensor] = {"encoder.seen": torch.tensor(0)}
    for name, layer in zip(names, layers, strict=True):
        own = _tensors(weights, name, path)
        shape = (layer.channels, layer.before // layer.groups, layer.kernel, layer.kernel)
        if own["conv.weight"].shape != shape or layer.norm != ("norm.weight" in own):
            got = tuple(own["conv.weight"].shape)
            raise ValueError(f"{path}: {name}conv.weight has shape {got}, layer {layer.number} of the .cfg {shape}")
        if layer.number in output_layers:
            own = {key: _box_first(value, classes) for key, value in own.items()}
        tensors |= {name_of(cfg, layer.number, key): value for key, value in own.items()}
    return network_content(cfg, class_names(path, classes, class_lists, other_names), tensors)


def _match(name: str) -> re.Match[str] | None:
    return CONVOLUTION.fullmatch(name)


def _tensors(weights: Mapping[str, Tensor], name: str, path: Path) -> dict[str, Tensor]:
    """A convolution's tensors in our names; the batch norm of an output is there, but has no part in it."""
    if f"{name}conv.bias" in weights:
        return {"conv.weight": weights[f"{name}conv.weight"], "conv.bias": weights[f"{name}conv.bias"]}
    own = {"conv.weight": weights[f"{name}conv.weight"]}
    for key in ("weight", "bias", "running_mean", "running_var"):
        if f"{name}bn.{key}" not in weights:
            raise ValueError(f"{path}: {name}bn.{key} is not in it")
        own[f"norm.{key}"] = weights[f"{name}bn.{key}"]
    if not (own["norm.running_var"] >= 0).all():
        raise ValueError(f"{path}: {name}bn.running_var holds NaN, or variances below 0")
    # What is added to variances differs: the sum stays.
    own["norm.running_var"] = own["norm.running_var"] + (NORM_EPSILON - EPSILON)
    return own


def _box_first(values: Tensor, classes: int) -> Tensor:
    """Channels (3 x (thing, x, y, w, h, classes), ...) -> (3 x (x, y, w, h, thing, classes), ...)."""
    parts = values.unflatten(0, (3, classes + 5))
    return torch.cat([parts[:, 1:5], parts[:, :1], parts[:, 5:]], dim=1).flatten(0, 1)
