"""What several test files build or check: networks, tasks, a stand-in for the published code, kept output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from config import Config, make_config
from drawing import class_palette
from networks.encoders import PaperMobileNetV2
from rooms import generate, raycast
from rooms.raycast import Pinhole
from tasks import Depth, Normals, Segmentation, Task

ENCODERS = [
    "mobilenetv2_paper", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenetv2_100",
    "tf_efficientnet_lite0", "convnext_tiny",
]  # fmt: skip


def tasks(classes: int = 40, normals: bool = False) -> dict[str, Task]:
    names = tuple(f"class_{number}" for number in range(classes))
    colors = tuple(tuple(color) for color in class_palette()[1 : classes + 1].tolist())
    made: dict[str, Task] = {"segmentation": Segmentation(classes=names, colors=colors), "depth": Depth()}
    return made | ({"normals": Normals()} if normals else {})


def settings(encoder: str, **values: object) -> Config:
    return make_config({"encoder": encoder, **values}, "test")


def existing_output_is_kept(here: Path, write: Callable[[Path], object]) -> None:
    """Asserts that `write` refuses a full folder and a file, and fills an empty one, `empty`, beside what looks like
    its temporary files: it removes what a killed run of its own has left, and nothing else."""
    for name in ("full", "empty", "empty.part", ".empty.a1b2c3d4.part"):
        (here / name).mkdir()
    for name in ("full/mine", "file", "empty.part/mine", ".empty.a1b2c3d4.part/of a run that was killed"):
        (here / name).write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match=f"{name}: exists and is not an empty folder"):
            write(here / name)
    assert (here / "full/mine").read_text() == (here / "file").read_text() == "mine"
    write(here / "empty")
    assert (here / "empty/dataset.yaml").is_file()
    assert (here / "empty.part/mine").read_text() == "mine"


@functools.cache
def published(classes: int = 40, normals: bool = False) -> nn.Module:
    """A network of torch's own parts that stands for the authors' code: the names of their checkpoints, and the forward
    pass that the paper describes. Nothing of their code is in it."""

    class Published(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder = PaperMobileNetV2()  # its layers have the published names
            for number in range(1, 9):
                self.add_module(f"layer{number}", encoder.get_submodule(f"layer{number}"))
            for number, inputs in zip(range(3, 9), (24, 32, 64, 96, 160, 320), strict=True):
                self.add_module(f"conv{number}", nn.Conv2d(inputs, 256, 1, bias=False))
            for number in range(1, 5):
                groups = 256 if number == 1 else 1
                chain = nn.ModuleDict({
                    f"{stage}_outvar_dimred": nn.Conv2d(256, 256, 1, bias=False, groups=groups) for stage in range(1, 5)
                })  # fmt: skip
                self.add_module(f"crp{number}", nn.Sequential(chain))
            for number in (2, 3, 4):
                self.add_module(f"conv_adapt{number}", nn.Conv2d(256, 256, 1, bias=False))
            outputs = {"segm": classes, "depth": 1} | ({"normal": 3} if normals else {})
            for name, channels in outputs.items():
                self.add_module(f"pre_{name}", nn.Conv2d(256, 256, 1, groups=256, bias=False))
                self.add_module(name, nn.Conv2d(256, channels, 3, padding=1))
            self.names = list(outputs)

        def pooled(self, number: int, x: torch.Tensor) -> torch.Tensor:
            top = x
            for stage in range(1, 5):
                conv = self.get_submodule(f"crp{number}.0.{stage}_outvar_dimred")
                top = conv(nn.functional.max_pool2d(top, 5, 1, 2))
                x = x + top
            return x

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            features = {}
            for number in range(1, 9):
                x = self.get_submodule(f"layer{number}")(x)
                features[number] = x
            lateral = {n: self.get_submodule(f"conv{n}")(features[n]) for n in range(3, 9)}
            y = self.pooled(4, nn.functional.relu6(lateral[8] + lateral[7]))
            for crp, adapt, parts in ((3, 4, (5, 6)), (2, 3, (4,)), (1, 2, (3,))):
                y = self.get_submodule(f"conv_adapt{adapt}")(y)
                y = nn.functional.interpolate(
                    y, size=lateral[parts[0]].shape[-2:], mode="bilinear", align_corners=False
                )
                y = self.pooled(crp, nn.functional.relu6(y + sum(lateral[part] for part in parts)))
            return [
                self.get_submodule(name)(nn.functional.relu6(self.get_submodule(f"pre_{name}")(y)))
                for name in self.names
            ]

    network = Published()
    for module in network.modules():  # lively outputs: random weights of the usual size, statistics near what they see
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(2, 3, 64, 96))
        for name in network.names:  # keep depth within some metres
            network.get_submodule(name).weight.mul_(0.3)
    return network.eval()


def write_posed_room(
    folder: Path, scene: raycast.Scene, values: np.ndarray, poses: Sequence[np.ndarray], size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A room as a data set with poses, whose gray pictures of this height and width have their number in the first
    pixel. Returns for each pose (camera to world) the exact depth (H, W), and the value of what each pixel sees."""
    height, width = size
    camera, frames, names = generate._intrinsics(width, height), [], []
    for name in ("rgb", "poses"):
        (folder / name).mkdir()
    for number, pose in enumerate(poses):
        depth, seen, _ = raycast.cast(scene, Pinhole(pose[:3, 3], pose[:3, :3], width, height, camera["fx"]))
        frames.append((depth.astype(np.float32), values[seen]))
        picture = np.full((height, width, 3), 128, np.uint8)
        picture[0, 0] = number
        cv2.imwrite(str(folder / f"rgb/{number:02d}.png"), picture)
        np.savetxt(folder / f"poses/{number:02d}.txt", pose)
        names.append(f"rgb/{number:02d}.png")
    (folder / "all.txt").write_text("\n".join(names))
    (folder / "dataset.yaml").write_text(yaml.safe_dump(
        {"name": "place", "splits": {"all": "all.txt"}, "columns": ["image"], "camera": camera, "poses": "poses"}
    ))  # fmt: skip
    return frames
