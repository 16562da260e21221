"""The checkpoints that the paper's authors published (repository DrSleep/multi-task-refinenet)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from config import Config, plain
from drawing import class_palette

MAX_CLASSES = 255  # ids of 8-bit masks, without that of "no label"
Plain = dict[str, dict[str, object]]  # {task: its fields}, as in a checkpoint of ours


def read_published(weights: object, path: Path, nyu40: Sequence[str]) -> dict[str, object]:
    """The `state_dict` of a published .ckpt -> the content of a checkpoint of ours, in plain types; nyu40 are the
    names of the 40 classes of NYUDv2. Raises ValueError for anything else.

    Outputs are used as in the published code: cubic upsampling, |depth| in metres. Images are resized to the frames of
    the training: 640 pixels for NYUDv2, 1216 for KITTI, 640 after a training on both.
    """
    if not isinstance(weights, dict) or not {"segm.weight", "depth.weight"} <= {
        str(name).removeprefix("module.") for name in weights
    }:
        raise ValueError(f"{path}: neither a checkpoint of this project nor one of the paper's authors")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise ValueError(f"{path}: its state_dict holds more than named tensors")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    shape = tuple(weights["segm.weight"].shape)
    if len(shape) != 4 or not 1 <= shape[0] <= MAX_CLASSES:
        raise ValueError(
            f"{path}: segm.weight has shape {shape}; it takes (1 to {MAX_CLASSES} classes, channels, 3, 3)"
        )
    classes = shape[0]
    nyu, kitti = tuple(nyu40), tuple(f"kitti_{number}" for number in range(6))
    known = {40: nyu, 6: kitti, 46: nyu + kitti}
    names = known.get(classes, tuple(f"class_{number}" for number in range(classes)))
    # Color index: class + 1 on NYUDv2, class on KITTI. Pictures end at 80 m on the road (KITTI's range), at 10 m in
    # rooms.
    first, max_m = (0, 80.0) if classes == 6 else (1, 10.0)
    tasks = plain_tasks(names, first, max_m)
    if "normal.weight" in weights:
        tasks["normals"] = {"interpolation": "bicubic"}
    domains: dict[str, Plain] = {}
    if classes == 46:
        domains = {
            "nyud": plain_tasks(nyu, 1, 10.0, outputs=range(40)),
            "kitti": plain_tasks(kitti, 0, 80.0, outputs=range(40, 46)),
        }
    # Trained on both, the network knows two sizes. Photos are more like NYUDv2's frames, in shape and angle of view,
    # and the checkpoint of KITTI alone is there for roads. As they are, large photos would fill the memory.
    long_side = 1216 if classes == 6 else 640
    # The Kinect's color camera by NYUDv2's toolbox. KITTI's drives have different cameras.
    cameras = {"nyud": {"focal_px": 518.9, "long_side": 640.0}} if classes in (40, 46) else {}
    cameras |= {"kitti": {}} if classes in (6, 46) else {}
    config = Config(encoder="mobilenetv2_paper", long_side=long_side, tasks=tuple(tasks))
    return {
        "config": plain(config), "tasks": tasks, "domains": domains, "cameras": cameras,
        "network": {published_name(name): value for name, value in weights.items()},
    }  # fmt: skip


def plain_tasks(names: Sequence[str], first_color: int, max_m: float, outputs: Sequence[int] = ()) -> Plain:
    """Segmentation with colors from `first_color` of the palette on, and depth."""
    colors = class_palette()[first_color : first_color + len(names)].tolist()
    return {
        "segmentation": {
            "interpolation": "bicubic", "classes": tuple(names), "colors": tuple(map(tuple, colors)),
            "outputs": tuple(outputs),
        },
        "depth": {"interpolation": "bicubic", "max_m": max_m, "activation": "abs"},
    }  # fmt: skip


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
