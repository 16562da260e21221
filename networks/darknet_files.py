"""Darknet's .weights files and what stands beside them: read into named tensors, and written.

A file is a header and then numbers (fp32, little-endian) without names, count or check sum: of each convolution in the
order of the .cfg its biases, or its batch norm's offsets, scales, means and variances, and then its weights. All that
can be checked is checked: the number of bytes before a tensor is made, that numbers are finite, variances not below 0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Config, plain
from drawing import class_palette
from networks.darknet_cfg import MOST_CLASSES, MOST_WEIGHTS, parse_cfg, with_classes
from networks.darknet_layers import Cfg, Convolution
from networks.darknet_text import sections_of, text_of
from networks.yolo_head import OVERLAP
from user_input.text_files import read_text

MOST_TEXT_BYTES = 2**20
VERSION = (0, 2, 5)  # of the files that are written: 20 bytes of header
NORM = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var")  # in the order of the file


class Header(NamedTuple):
    length: int  # bytes
    seen: int  # pictures of the training so far


def read_header(path: Path) -> Header:
    """Raises FileNotFoundError, or ValueError for what is no .weights file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: a pointer of Git LFS, not the file itself: fetch it with git lfs pull")
    if len(start) < 20:
        raise ValueError(f"{path}: {len(start)} bytes are no .weights file")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        raise ValueError(f"{path}: text, not a .weights file; a page of the server in place of it?")
    major, minor, revision = struct.unpack("<3i", start[:12])
    if major > 1000 or minor > 1000:
        raise ValueError(f"{path}: its header says that layers are transposed, which is not known here")
    if major != 0 or not 0 <= minor <= 2 or not 0 <= revision < 1000:
        raise ValueError(f"{path}: its header says version {major}.{minor}.{revision}; .weights files are 0.1 and 0.2")
    long = 10 * major + minor >= 2
    (seen,) = struct.unpack("<q" if long else "<i", start[12 : 20 if long else 16])
    return Header(20 if long else 16, max(0, seen))


def count_numbers(path: Path, header: Header) -> int:
    rest = path.stat().st_size - header.length
    if rest % 4:
        raise ValueError(f"{path}: truncated: {rest:,} bytes after its header are no whole number of floats")
    if rest // 4 > MOST_WEIGHTS:
        raise ValueError(f"{path}: it has {rest // 4:,} numbers; at most {MOST_WEIGHTS:,} are read")
    return rest // 4


def misfit(count: int, cfg: Cfg) -> str:
    """Why a file of so many numbers is not one of this network; '' = it is."""
    layers = cfg.convolutions
    wanted = sum(layer.weights for layer in layers)
    if count == wanted:
        return ""
    per_class = sum(
        len(layer.mask) * (conv.before // conv.groups * conv.kernel**2 + 1)
        for layer, conv in zip(cfg.yolo, cfg.outputs, strict=True)
    )
    what = f"it has {count:,} numbers, its .cfg takes {wanted:,}"
    classes, left = divmod(count - wanted, per_class) if per_class else (0, 1)
    if not left and 1 <= (classes := cfg.yolo[0].classes + classes) <= MOST_CLASSES:
        filters = ", ".join(dict.fromkeys(str(len(layer.mask) * (classes + 5)) for layer in cfg.yolo))
        return f"{what}; {classes} classes would fit: classes={classes} in each [yolo], filters={filters} before it"
    if count > wanted:
        return f"{what}: {count - wanted:,} are left over, it belongs to another .cfg"
    filled, rest = first_filled(count, layers)
    last = (
        f"the first {filled} of {len(layers)} convolutions, up to layer {layers[filled - 1].number}" if filled else ""
    )
    if filled and not rest:
        return f"{what}: they are {last}; a training takes them: --encoder_weights"
    return f"{what}: truncated, or of another .cfg; they fill {last or 'not even the first convolution'}"


def first_filled(count: int, layers: Sequence[Convolution]) -> tuple[int, int]:
    """(how many of the convolutions so many numbers fill, how many numbers are left)."""
    for number, layer in enumerate(layers):
        if count < layer.weights:
            return number, count
        count -= layer.weights
    return len(layers), count


def tensors_of(path: Path, header: Header, layers: Sequence[Convolution]) -> dict[int, dict[str, Tensor]]:
    """{number of a layer: {name: tensor}}; the file holds enough for these layers. Raises ValueError."""
    count = sum(layer.weights for layer in layers)
    numbers = torch.from_numpy(np.fromfile(path, "<f4", count, offset=header.length).astype(np.float32, copy=False))
    found: dict[int, dict[str, Tensor]] = {}
    at = 0
    for layer in layers:
        own = numbers[at : at + layer.weights]
        at += layer.weights
        if not own.isfinite().all():
            raise ValueError(f"{path}: layer {layer.number} holds NaN or infinite weights")
        names = NORM if layer.norm else ("conv.bias",)
        values = dict(zip(names, own[: len(names) * layer.channels].view(len(names), -1), strict=True))
        if layer.norm and (values["norm.running_var"] < 0).any():
            raise ValueError(f"{path}: layer {layer.number} has variances below 0: another .cfg, or damaged")
        shape = layer.channels, layer.before // layer.groups, layer.kernel, layer.kernel
        values["conv.weight"] = own[len(names) * layer.channels :].view(shape)
        found[layer.number] = values
    return found


def read_first_layers(path: Path, cfg: Cfg) -> tuple[dict[str, Tensor], int]:
    """A whole .weights file, or one of the first layers of this or of a network that goes on in another way -> ({name
    in the encoder: tensor}, pictures seen). Raises FileNotFoundError or ValueError."""
    header = read_header(path)
    count = count_numbers(path, header)
    filled, rest = first_filled(count, cfg.convolutions)
    if (rest and misfit(count, cfg)) or not filled:
        raise ValueError(f"{path}: {misfit(count, cfg)}")
    found = tensors_of(path, header, cfg.convolutions[:filled])
    weights = {f"layers.{number}.{name}": value for number, own in found.items() for name, value in own.items()}
    return weights, header.seen


# ---------------------------------------------------------------------------------------------- a whole network


def read_cfg(path: Path) -> Cfg:
    return parse_cfg(read_text(path, MOST_TEXT_BYTES), str(path))


def read_darknet(
    path: Path, cfg_path: Path | None, class_lists: Mapping[str, Sequence[str]], other_names: Mapping[str, str]
) -> dict[str, object]:
    """A .weights file, with the .cfg beside it or a given one -> the content of a checkpoint of ours, in plain types.

    Raises FileNotFoundError or ValueError in one line.
    """
    header = read_header(path)
    beside = cfg_path or path.with_suffix(".cfg")
    if not beside.is_file():
        raise FileNotFoundError(f"{path}: its layers stand in {beside}, which is not there; --cfg FILE names another")
    cfg = read_cfg(beside)
    if not cfg.yolo:
        raise ValueError(f"{beside}: it has no [yolo] layer, so the network finds no boxes")
    if problem := misfit(count_numbers(path, header), cfg):
        raise ValueError(f"{path}: {problem}")
    weights: dict[str, Tensor] = {"encoder.seen": torch.tensor(header.seen)}
    for number, values in tensors_of(path, header, cfg.convolutions).items():
        weights |= {name_of(cfg, number, name): value for name, value in values.items()}
    return network_content(cfg, class_names(path, cfg.yolo[0].classes, class_lists, other_names), weights)


def network_content(cfg: Cfg, names: Sequence[str], weights: Mapping[str, Tensor]) -> dict[str, object]:
    """A darknet network as the content of a checkpoint of ours, in plain types."""
    # Stretched to the network's size from twice as many pixels: two steps blur, and the second one averages in pairs.
    long_side = max(cfg.height, cfg.width) * (1 if cfg.letterbox else 2)
    config = Config(
        encoder="darknet",
        darknet_cfg=cfg.text,
        decoder="none",
        box_layers="yolo",
        long_side=long_side,
        tasks=("boxes",),
    )
    boxes = {
        "classes": names, "colors": tuple(map(tuple, class_palette()[1 : len(names) + 1].tolist())), "layers": "yolo",
        "own_maps": len(cfg.yolo), "most_overlap": OVERLAP,
    }  # fmt: skip
    return {"config": plain(config), "tasks": {"boxes": boxes}, "network": weights}


def name_of(cfg: Cfg, number: int, name: str) -> str:
    """The name in `Network` of a layer's tensor: those of the convolution before a [yolo] are the head's."""
    outputs = [layer.number for layer in cfg.outputs]
    if number in outputs:
        return f"heads.boxes.output.{outputs.index(number)}.{name.removeprefix('conv.')}"
    return f"encoder.layers.{number}.{name}"


def write_darknet(path: Path, config: Config, classes: Sequence[str], weights: Mapping[str, Tensor]) -> None:
    """Writes x.weights, and beside it x.cfg and x.names; `weights` are a network's, in its names.

    Raises ValueError for a network that no .cfg describes.
    """
    if config.encoder != "darknet" or config.decoder != "none":
        raise ValueError(
            f"--format darknet takes a network of --encoder darknet:FILE.cfg --decoder none; this one has the encoder "
            f"{config.encoder} and the decoder {config.decoder}"
        )
    sections = sections_of(with_classes(config.darknet_cfg, len(classes)), "darknet_cfg")
    cfg = parse_cfg(text_of(sections), "darknet_cfg")
    if cfg.letterbox and config.long_side != max(cfg.height, cfg.width):
        if not config.long_side or config.long_side % cfg.multiple:
            raise ValueError(
                f"--format darknet: the network sees pictures with long_side {config.long_side}; a .cfg takes "
                f"multiples of {cfg.multiple}"
            )
        sections[0][1].update(width=str(config.long_side), height=str(config.long_side))
    path.with_suffix(".cfg").write_text(text_of(sections), encoding="utf-8")
    path.with_suffix(".names").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    with path.open("wb") as file:
        file.write(struct.pack("<3iq", *VERSION, int(weights["encoder.seen"])))
        for layer in cfg.convolutions:
            for name in (*(NORM if layer.norm else ("conv.bias",)), "conv.weight"):
                values = weights[name_of(cfg, layer.number, name)]
                file.write(values.detach().float().contiguous().numpy().astype("<f4").tobytes())


def class_names(
    path: Path, count: int, class_lists: Mapping[str, Sequence[str]], other_names: Mapping[str, str]
) -> tuple[str, ...]:
    """The names in the file x.names beside x.weights, or in the only .names file there; without one, COCO's for 80
    classes, VOC's for 20. COCO's old words (motorbike) become those of its json files. Raises ValueError."""
    known = {80: class_lists["coco80"], 20: class_lists["voc20"]}
    others = sorted(path.parent.glob("*.names"))
    file = path.with_suffix(".names") if path.with_suffix(".names") in others or len(others) != 1 else others[0]
    without = known.get(count, [f"class_{number}" for number in range(count)])
    return names_in(file, f"the .cfg of {path.name}", count, class_lists, other_names) or tuple(without)


def names_in(
    file: Path, what: str, count: int, class_lists: Mapping[str, Sequence[str]], other_names: Mapping[str, str]
) -> tuple[str, ...]:
    """The names in a .names file, () where it is not there. COCO's old words (motorbike) become those of its json
    files. Raises ValueError when there are not `count`, as `what` has it."""
    if not file.is_file():
        return ()
    names = [line.strip() for line in read_text(file, MOST_TEXT_BYTES).splitlines() if line.strip()]
    if len(names) != count:
        raise ValueError(f"{file}: it has {len(names)} names, but {what} has {count} classes")
    new = tuple(other_names.get(name, name) for name in names)
    return new if new == tuple(class_lists["coco80"]) else tuple(names)
