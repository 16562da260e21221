"""What every back end answers: same call, same outputs, same metadata as `Network`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deploy.signature import Signature
from geometry import resize_image
from tasks import Task, completed, decoded
from utils import pick_precision

STATIC_SHAPES = 4  # sizes of images that have a graph of their own at the same time


class DeviceUnavailable(ValueError):
    """The back end does not run on this device; `--device auto` then takes the CPU."""


class Backend(ABC):
    """Images (B, 3, H, W) uint8 -> {task: raw output (B, channels, h, w)}, like a Network, without gradients.

    `config.long_side` is that of pictures for this back end: `Signature.long_side`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # packages
    min_side: ClassVar[int] = 1  # pixels: smaller pictures are enlarged
    in_one: ClassVar[bool] = False  # whether `predict` computes more than `outputs` and `finish` at once

    def __init__(
        self, signature: Signature, device: torch.device, where: str = "", computes_on: torch.device | None = None
    ) -> None:
        """device: of the outputs. computes_on: where the network runs, by default there. where: the file, or ''."""
        self.signature, self.device, self.where = signature, device, where
        self.computes_on = computes_on or device
        self.tasks, self.domains, self.cameras = signature.tasks, signature.domains, signature.cameras
        self.config = dataclasses.replace(signature.config, long_side=signature.long_side)

    def concurrent(self) -> int:
        """Throughput mode, for many images. Returns how many threads should call `run` at once."""
        return 1

    @property
    def arithmetic(self) -> torch.dtype:
        """What most of the work is done in."""
        return torch.int8 if self.signature.int8 else torch.float32

    @abstractmethod
    def run(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) uint8 of the graph's size -> its outputs on `device`, which are the caller's to keep."""

    @classmethod
    def pick_precision(cls, name: str, device: torch.device) -> torch.dtype | None:
        """auto | fp32 | bf16 | fp16 -> what to compute in; None leaves it to the back end."""
        return pick_precision(name, device)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which a picture of this size is resized."""
        size = self.signature.picture_size(height, width)
        return size if self.signature.size else tuple(max(self.min_side, side) for side in size)

    def require_raw(self, option: str) -> None:
        """Raises ValueError when the file gives predictions, so that `option` finds no raw outputs to work on."""
        if self.signature.units_out:
            raise ValueError(
                f"{option} needs the raw outputs of the network, but {self.where} has its post-processing inside: "
                "export it with --outputs raw"
            )

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 3, H, W) uint8 -> {task: the graph's output for them}: of any size, in any number."""
        height, width = self._fitting_size(*images.shape[-2:])
        if images.shape[-2:] != (height, width):
            resized = [resize_image(image.permute(1, 2, 0).cpu().numpy(), height, width) for image in images]
            images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        fixed = self.signature.size or (height, width)
        values = self._run_in_parts(filled_up(images, fixed))
        found = dict(zip(self.tasks, values, strict=True))
        if fixed == (height, width):
            return found
        if self.signature.units_out:
            return {name: self.tasks[name].cut(value, (height, width)) for name, value in found.items()}
        return {name: self.tasks[name].crop(value, (height, width), fixed) for name, value in found.items()}

    def _fitting_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of images for the graph: their own, unless they do not fit or are too small."""
        fixed = self.signature.size
        if fixed is None:
            return max(self.min_side, height), max(self.min_side, width)
        scale = min(1.0, fixed[0] / height, fixed[1] / width)
        return max(1, round(scale * height)), max(1, round(scale * width))

    def _run_in_parts(self, images: Tensor) -> list[Tensor]:
        """`run`, in batches of the graph's size where it has one."""
        batch, count = self.signature.batch, len(images)
        if not batch or batch == count:
            return self._checked(self.run(images), images)
        parts = []
        for part in images.split(batch):
            missing = batch - len(part)
            full = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append([value[: len(part)] for value in self._checked(self.run(full), full)])
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def _checked(self, values: Sequence[Tensor], images: Tensor) -> Sequence[Tensor]:
        """The outputs of `run`; those of a file (`where`) are compared with what its metadata promise.

        Raises ValueError when number, type, shape or range are others.
        """
        if not self.where:
            return values
        if len(values) != len(self.tasks):
            raise ValueError(f"{self.where}: it has {len(values)} outputs for {len(self.tasks)} tasks")
        for (name, task), value in zip(self.tasks.items(), values, strict=True):
            size = tuple(images.shape[-2:]) if self.signature.units_out else None
            if fault := task.output_fault(value, len(images), size):
                raise ValueError(f"{self.where}: its output {name!r} {fault}")
        return values

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Floats in 0..1 are rounded to 8 bits. Raises ValueError when the graph gives predictions, not raw outputs."""
        self.require_raw("this")
        if images.is_floating_point():
            images = (images * 255).round().to(torch.uint8)
        return self.outputs(images)

    @torch.inference_mode()
    def predict(
        self, images: Tensor, sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task] | None = None
    ) -> dict[str, Tensor]:
        """As Network.predict."""
        return self.finish(self.outputs(images), images.shape[-2:], sizes, self.tasks if tasks is None else tasks)

    def finish(
        self,
        outputs: Mapping[str, Tensor],
        seen: tuple[int, int],
        sizes: Mapping[str, tuple[int, int]],
        tasks: Mapping[str, Task],
    ) -> dict[str, Tensor]:
        """`outputs` for images of the size `seen` -> {task: prediction (B, ...) at sizes[task]}."""
        if self.signature.units_out:
            before = self._fitting_size(*seen)  # `outputs` has brought the images to it
            found = {name: task.resize(outputs[name], before, sizes[name]) for name, task in tasks.items()}
        else:
            found = decoded(outputs, sizes, tasks)
        return completed(found, tasks)


def filled_up(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images (B, 3, H, W) -> (B, 3, *size) by repeating the last row and column; they are not larger than that."""
    if images.shape[-2:] == size:
        return images
    rows, columns = (
        torch.arange(side, device=images.device).clamp(max=of - 1)
        for side, of in zip(size, images.shape[-2:], strict=True)
    )
    return images[:, :, rows][..., columns]
