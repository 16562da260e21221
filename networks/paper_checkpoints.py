"""The checkpoints that the paper's authors published (repository DrSleep/multi-task-refinenet)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from config import Config
from drawing import class_palette
from tasks import CLASS_LISTS, NO_CLASS, Depth, Normals, Segmentation, Task

Published = tuple[Config, dict[str, Task], dict[str, dict[str, Task]], dict[str, Tensor]]


def read_published(weights: object, path: Path) -> Published:
    """The `state_dict` of a published .ckpt (repository DrSleep/multi-task-refinenet) ->
    settings, tasks, those of each data set when it was trained on both, and weights by our names.

    The outputs are used as the published code does: cubic upsampling, |depth| in metres. Images are brought to the
    size of the frames of the training: 640 pixels for NYUDv2, 1216 for KITTI, as they are when it was trained on both.
    """
    if not isinstance(weights, dict) or not {"segm.weight", "depth.weight"} <= {
        str(name).removeprefix("module.") for name in weights
    }:
        raise ValueError(f"{path}: neither a checkpoint of this project nor one of the paper's authors")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise ValueError(f"{path}: its state_dict holds more than named tensors")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    shape = tuple(weights["segm.weight"].shape)
    if len(shape) != 4 or not 1 <= shape[0] <= NO_CLASS:
        raise ValueError(f"{path}: segm.weight has shape {shape}; it takes (1 to {NO_CLASS} classes, channels, 3, 3)")
    classes = shape[0]
    nyu, kitti = CLASS_LISTS["nyu40"], tuple(f"kitti_{number}" for number in range(6))
    known = {40: nyu, 6: kitti, 46: nyu + kitti}
    names = known.get(classes, tuple(f"class_{number}" for number in range(classes)))
    # Color index: class + 1 on NYUDv2, class on KITTI.
    palette = class_palette()
    colors = palette[:classes] if classes == 6 else palette[1 : classes + 1]
    tasks: dict[str, Task] = {
        "segmentation": Segmentation("bicubic", names, tuple(tuple(color) for color in colors.tolist())),
        # Pictures end at 80 m on the road (KITTI's range), at 10 m in rooms.
        "depth": Depth("bicubic", max_m=80.0 if classes == 6 else 10.0, activation="abs"),
    }
    if "normal.weight" in weights:
        tasks["normals"] = Normals("bicubic")
    domains: dict[str, dict[str, Task]] = {}
    if classes == 46:
        parts = {"nyud": (range(40), palette[1:41], 10.0), "kitti": (range(40, 46), palette[:6], 80.0)}
        for name, (outputs, own, max_m) in parts.items():
            own_names = tuple(names[output] for output in outputs)
            own_colors = tuple(tuple(color) for color in own.tolist())
            domains[name] = {
                "segmentation": Segmentation("bicubic", own_names, own_colors, outputs=tuple(outputs)),
                "depth": Depth("bicubic", max_m=max_m, activation="abs"),
            }
    long_side = {46: 0, 6: 1216}.get(classes, 640)
    config = Config(encoder="mobilenetv2_paper", long_side=long_side, tasks=tuple(tasks))
    return config, tasks, domains, {published_name(name): value for name, value in weights.items()}


def published_name(name: str) -> str:
    """The name in `Network` of a tensor of the authors' checkpoints; another name stays."""
    try:
        return _renamed(name)
    except (ValueError, IndexError):  # such as crpX without a number
        return name


def _renamed(name: str) -> str:
    part, _, rest = name.partition(".")
    heads = {"segm": "segmentation", "depth": "depth", "normal": "normals"}
    if part.startswith("layer"):
        return f"encoder.{name}"
    if part.startswith("conv_adapt"):  # conv_adapt4 leaves the coarsest level, our adapt.0
        return f"decoder.adapt.{4 - int(part[-1])}.{rest}"
    if part.startswith("conv"):  # conv3 .. conv8 take layer3 .. layer8
        return f"decoder.laterals.{int(part[-1]) - 3}.{rest}"
    if part.startswith("crp"):  # crp4 is the coarsest; its stages are 0.1_outvar_dimred .. 0.4_outvar_dimred
        stage = int(rest.split(".")[1].partition("_")[0]) - 1
        return f"decoder.pooling.{4 - int(part[-1])}.convs.{stage}.weight"
    if part.removeprefix("pre_") in heads:
        return f"heads.{heads[part.removeprefix('pre_')]}.{0 if part.startswith('pre_') else 2}.{rest}"
    return name
