"""torchvision's published detectors: the `state_dict` of Faster R-CNN and Mask R-CNN with ResNet or MobileNetV3, and
of their second versions.

The file does not say which network it is for: names and shapes do. Two of MobileNetV3 have the same ones and differ in
the size of the pictures alone: the one whose file has 320 in its name sees small ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from config import Config, plain
from drawing import class_palette
from networks.darknet_files import names_in
from networks.rcnn_recipes import OVERLAP

MARKS = ("rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight")
COCO_OUTPUTS = 91
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's numbers 1 to 90, of which 80 stand for a class
MOST_OUTPUTS = 256
EPSILON = 1e-5  # of our batch norm
NORM = ("weight", "bias", "running_mean", "running_var")
RESNETS = {(6, True): "resnet50", (23, True): "resnet101", (36, True): "resnet152", (6, False): "resnet34",
           (2, False): "resnet18"}  # fmt: skip


def torchvision_state(content: object) -> Mapping[str, object] | None:
    """The `state_dict` of a detector in what a file holds: by itself, or as torchvision's references save it."""
    for found in (content, content.get("model") if isinstance(content, Mapping) else None):
        if isinstance(found, Mapping) and all(name in found for name in MARKS):
            return found
    return None


def read_torchvision(
    weights: Mapping[str, object], path: Path, class_lists: Mapping[str, Sequence[str]],
    other_names: Mapping[str, str],
) -> dict[str, object]:  # fmt: skip
    """The `state_dict` of a torchvision detector -> the content of a checkpoint of ours, in plain types.

    Raises ValueError in one line.
    """
    check_tensors(weights, path)
    if any(name.startswith("roi_heads.keypoint_") for name in weights):
        raise ValueError(f"{path}: a detector of keypoints, which this code has no task for")
    outputs = len(weights[MARKS[1]])
    settings, masks = settings_of(weights, path), "roi_heads.mask_predictor.mask_fcn_logits.weight" in weights
    spare = len(UNUSED) if outputs == COCO_OUTPUTS else 0
    count = outputs - 1 - spare
    # Not by the number of classes, as of darknet: a detector of 20 classes of one's own is not one of VOC's.
    without = class_lists["coco80"] if spare else tuple(f"class_{number}" for number in range(count))
    names = names_in(path.with_suffix(".names"), path.name, count, class_lists, other_names) or tuple(without)
    layers = settings["box_layers"]
    if masks:
        layers = settings["mask_layers"] = settings.pop("box_layers").replace("faster", "mask")
    name = "masks" if masks else "boxes"
    task = {
        "classes": names, "colors": tuple(map(tuple, class_palette()[1 : len(names) + 1].tolist())),
        "layers": layers, "most_overlap": OVERLAP, "spare": spare,
    }  # fmt: skip
    tensors = {our_name(key, name): value for key, value in with_norms(weights, settings, path).items()}
    if spare:
        tensors = {key: used_first(key, value, path) for key, value in tensors.items()}
    config = plain(Config()) | {"tasks": [name], "freeze_bn": True, **settings}
    return {"config": config, "tasks": {name: task}, "network": tensors}


def check_tensors(weights: Mapping[str, object], path: Path) -> None:
    """Raises ValueError for what is computed with here: tensors that say more than the file holds, or of other kinds
    and shapes. `check_weights` looks at the rest."""
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise ValueError(f"{path}: its state_dict holds more than named tensors")
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.device.type != "cpu":
            raise ValueError(
                f"{path}: {name} is {value.layout} on {value.device}; weights are dense tensors of numbers"
            )
    claimed, stored = sum(value.numel() * value.element_size() for value in weights.values()), path.stat().st_size
    if claimed > stored:
        raise ValueError(f"{path}: its tensors take {claimed:,} bytes, but the file has {stored:,}")
    for name, wanted in zip(MARKS, (4, 2), strict=True):
        shape = tuple(weights[name].shape)
        if len(shape) != wanted or not 2 <= shape[0] <= MOST_OUTPUTS:
            raise ValueError(f"{path}: {name} has shape {shape}; it takes 2 to {MOST_OUTPUTS} outputs")


def settings_of(weights: Mapping[str, Tensor], path: Path) -> dict[str, object]:
    """Encoder, decoder, head, and the size of the pictures in its training."""
    width = weights[MARKS[0]].shape[1]
    common = {"decoder": "fpn", "decoder_width": width, "long_side": 1333, "short_side": 800}
    if "backbone.body.0.0.weight" in weights:
        encoder = {"encoder": "torchvision_mobilenetv3", "box_layers": "fasterrcnn_mobile"}
        if "320" in path.name:
            encoder |= {"box_layers": "fasterrcnn_mobile_320", "long_side": 640, "short_side": 320}
        return common | encoder
    blocks = len({name.split(".")[3] for name in weights if name.startswith("backbone.body.layer3.")})
    kind = (blocks, "backbone.body.layer1.0.conv3.weight" in weights)
    if kind not in RESNETS:
        raise ValueError(f"{path}: a torchvision detector whose encoder is none of {', '.join(RESNETS.values())}, "
                         "MobileNetV3")  # fmt: skip
    if "roi_heads.box_head.fc6.weight" in weights:
        return common | {"encoder": RESNETS[kind], "box_layers": "fasterrcnn"}
    return common | {"encoder": RESNETS[kind], "box_layers": "fasterrcnn_v2", "decoder": "fpn_bn"}


def our_name(name: str, task: str) -> str:
    """The name in `Network`; those of files from before torchvision 0.13 differ from today's."""
    words = name.split(".")
    if name.startswith("roi_heads.mask_head.mask_fcn"):  # mask_fcn1 to mask_fcn4
        number = words[2].removeprefix("mask_fcn")
        words[2:3] = [str(int(number) - 1) if number.isdecimal() else number, "0"]
    if name.startswith("backbone.fpn.") and len(words) == 5:  # inner_blocks.0.weight
        words.insert(4, "0")
    if name.startswith("rpn.head.conv.") and len(words) == 4:
        words[3:3] = ["0", "0"]
    if words[:2] == ["backbone", "body"]:
        return ".".join(["encoder", *words[1:]])
    if words[:2] == ["backbone", "fpn"]:
        return ".".join(["decoder", *words[1:]])
    return ".".join(["heads", task, *words])


def with_norms(weights: Mapping[str, Tensor], settings: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    """The weights with batch norms that give what theirs give.

    Frozen ones, which have no `num_batches_tracked`, are without an epsilon in torchvision's published ResNet: a
    variance may be smaller than it. Their scale and offset are computed here, with a mean of 0 and a variance of 1.
    """
    found = dict(weights)
    norms = [name.removesuffix("running_var") for name in weights if name.endswith("running_var")]
    for norm in norms:
        if missing := [part for part in NORM if norm + part not in weights]:
            raise ValueError(f"{path}: {norm}{missing[0]} is not in it")
        scale, offset, mean, variance = values = [weights[norm + part] for part in NORM]
        if not all(value.is_floating_point() and value.shape == scale.shape for value in values):
            raise ValueError(f"{path}: the tensors of {norm.removesuffix('.')} are not floats of one shape")
        frozen = f"{norm}num_batches_tracked" not in weights
        if not frozen or settings["encoder"] == "torchvision_mobilenetv3":
            continue
        if not (variance > 0).all():
            raise ValueError(f"{path}: {norm}running_var holds NaN, or variances that are not above 0")
        scale = scale * variance.rsqrt()
        found[f"{norm}weight"], found[f"{norm}bias"] = scale, offset - mean * scale
        found[f"{norm}running_mean"] = torch.zeros_like(mean)
        found[f"{norm}running_var"] = torch.full_like(variance, 1 - EPSILON)
    return found


def used_first(name: str, value: Tensor, path: Path) -> Tensor:
    """Outputs of the background and of COCO's 90 numbers -> of the background, of the 80 classes, of the others."""
    if ".box_predictor." not in name and ".mask_fcn_logits." not in name:
        return value
    order = [number for number in range(COCO_OUTPUTS) if number not in UNUSED] + list(UNUSED)
    if not value.dim() or len(value) not in (COCO_OUTPUTS, 4 * COCO_OUTPUTS):
        raise ValueError(f"{path}: {name} has shape {tuple(value.shape)}; it takes {COCO_OUTPUTS} outputs")
    return value.unflatten(0, (COCO_OUTPUTS, -1))[order].flatten(0, 1)
