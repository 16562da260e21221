"""DenseTask: what tasks with a value for each pixel have in common.

Shapes: a label is (H, W) or (H, W, 3); a target (B, H, W) or (B, 3, H, W); raw output (B, channels, h, w), smaller
than the image; a prediction has the target's shape and physical units.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from geometry import Pixels, View, resize_nearest, resize_raw, sample_raw
from images import read_label
from networks.decoders import HEADS
from tasks.base import Size, Task, check_choice


@dataclass(frozen=True)
class DenseTask(Task):
    """A task with a value for each pixel."""

    fill: ClassVar[float] = 0.0  # "no label" in a label

    interpolation: str = "bilinear"  # how raw output is brought to full size

    def check_fields(self) -> None:
        check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))

    def check_part_of(self, head: DenseTask) -> None:
        if self.channels != head.channels:
            raise ValueError(f"{self.name}: it has {self.channels} outputs, its head {head.channels}")

    # Files

    def open(self, path: Path, section: Mapping[str, object], image: Path) -> np.ndarray:
        return read_label(path)

    def at_size(self, label: np.ndarray, size: Size, section: Mapping[str, object], path: Path) -> np.ndarray:
        if label.shape[:2] != size:
            got, wanted = (f"{width}x{height}" for height, width in (label.shape[:2], size))
            raise ValueError(f"{path}: {self.name} is {got}, but its image is {wanted}")
        return label

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width), self.fill, np.float32)

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        """Each pixel from the nearest one of the label: labels are never interpolated."""
        return view.sample(label, self.fill)

    def survey(self, label: np.ndarray, section: Mapping[str, object]) -> np.ndarray:
        """[labeled pixels, all pixels]"""
        labeled = label != self.fill
        return np.array([(labeled.any(2) if label.ndim == 3 else labeled).sum(), label.shape[0] * label.shape[1]])

    def coverage(self, survey: np.ndarray) -> str:
        return f"{survey[0] / survey[1]:.1%} of their pixels"

    def suspicion(self, stored: np.ndarray, label: np.ndarray, section: Mapping[str, object]) -> tuple[str, str] | None:
        if what := self.unlikely(stored, section):
            return f"unlikely {self.name}", what
        if not self.survey(label, section)[0]:
            return "nothing labeled", f"no pixel of this {self.name} label has a value; write '-' instead"
        return None

    def unlikely(self, stored: np.ndarray, section: Mapping[str, object]) -> str:
        """What looks wrong with the numbers in a label file, or ''."""
        return ""

    # Batches

    def collate(self, labels: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(labels))

    def pick(self, target: Tensor, frames: Sequence[int]) -> Tensor:
        return target[torch.tensor(frames).to(target.device, non_blocking=True)]

    # The network

    @property
    def channels(self) -> int:
        """Outputs of the head."""
        return 1

    def head(self, channels: Sequence[int], strides: Sequence[int], config: Config) -> nn.Module:
        return HEADS[config.head](channels[0], self.channels)

    def scores(self, raw: Tensor, size: Size) -> Tensor:
        """raw -> (B, channels, *size) that may be averaged over views: probabilities, metres, vectors."""
        return resize_raw(raw, size, self.interpolation)

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        """Scores of a zoomed and mirrored picture -> scores of the picture."""
        return scores.flip(-1) if mirror else scores

    def decide(self, scores: Tensor) -> Tensor:
        """Scores -> prediction."""
        return scores[:, 0]

    def decode(self, raw: Tensor, size: Size) -> Tensor:
        return self.decide(self.scores(raw, size))

    def merge(self, views: Sequence[tuple[Tensor, float, bool]], size: Size) -> Tensor:
        """The mean of the views' scores decides."""
        total: Tensor | float = 0.0
        for raw, zoom, mirror in views:
            total = self.undo(self.scores(raw, size), zoom, mirror) + total
        return self.decide(total / len(views))

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        height, width = (-(-side * of // by) for side, of, by in zip(raw.shape[-2:], size, padded, strict=True))
        return raw[..., :height, :width]

    def cut(self, prediction: Tensor, size: Size) -> Tensor:
        return prediction[..., : size[0], : size[1]]

    def resize(self, prediction: Tensor, before: Size, size: Size) -> Tensor:
        return resize_nearest(prediction, size)

    def smooth(self, earlier: Tensor, raw: Tensor, kept: Callable[[Size], Tensor]) -> Tensor:
        return torch.lerp(raw.float(), earlier.float(), kept(raw.shape[-2:]).to(raw.device))

    def thin(self, target: Tensor, pixels: Pixels) -> Tensor:
        """The target (B, H, W) or (B, 3, H, W) at these pixels."""
        return target[..., pixels.rows, pixels.columns]

    def sample(self, raw: Tensor, pixels: Pixels) -> Tensor:
        """raw (B, channels, h, w) -> (B, channels, rows, columns), what `loss` compares with `thin`'s target."""
        return sample_raw(raw, pixels)

    def weight(self, target: Tensor) -> float:
        """The weight that `loss` gives for this target, known before there is an output: its labeled pixels."""
        return float((target != self.fill).sum())

    # Labels of teachers

    def from_graph(self, output: Tensor, probabilities: bool) -> Tensor:
        """output (B, channels, h, w), or (B, h, w) where that is one."""
        raw = output[:, None] if output.ndim == 3 else output
        if raw.ndim != 4 or raw.shape[1] != self.channels:
            got = "x".join(map(str, raw.shape))
            raise ValueError(f"--teacher: its output is {got}, but its YAML file describes {self.channels} channels")
        return raw.clamp(min=1e-12).log() if probabilities else raw

    def translation(
        self, section: Mapping[str, object] | None, names: Mapping[str, str], where: str
    ) -> tuple[Task, Callable[[np.ndarray], np.ndarray]]:
        if names:
            raise ValueError(f"--map: {self.name} has no classes")
        return (self if section is None else self.from_section(section, Config())), lambda prediction: prediction

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """Scores of a picture and, `undo`ne, of its mirror image -> how sure it is, (B, H, W) in 0..1.

        By default how much less than 1 the two differ, which suits probabilities.
        """
        return 1 - (scores - mirrored).abs().amax(1)

    def teach(self, raw: Tensor, mirrored: Tensor, size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
        """The mean of both views decides; confidence is (H, W)."""
        plain, other = (
            self.undo(self.scores(item, size), 1.0, flipped) for item, flipped in ((raw, False), (mirrored, True))
        )
        predictions = self.arrays(self.decide((plain + other) / 2))
        return list(zip(predictions, self.confidence(plain, other).cpu().numpy(), strict=True))

    def keep_sure(self, prediction: np.ndarray, confidence: np.ndarray, least: float) -> tuple[np.ndarray, int, int]:
        """(H, W) or (3, H, W) with "no label" where the confidence (H, W) is below `least`; counts are of pixels."""
        sure = confidence >= least
        label = np.where(sure, prediction, prediction.dtype.type(self.fill))
        return label, int(sure.sum()), sure.size

    def output_fault(self, value: Tensor, frames: int, size: Size | None) -> str:
        floats, shape = True, (frames, self.channels)
        if size is not None:
            expected = self.decode(torch.zeros(1, self.channels, 2, 2), (2, 2))
            floats, shape = expected.is_floating_point(), (frames, *expected.shape[1:-2])
        right = value.is_floating_point() == floats and value.shape[:-2] == shape and value.dtype != torch.bool
        if not right or value.ndim < 3 or not value.numel():
            kind = "numbers" if floats else "whole numbers"
            got = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
            return f"is {got}; expected {kind} ({', '.join(map(str, shape))}, height, width)"
        if size is not None and value.shape[-2:] != size:
            return f"is {tuple(value.shape[-2:])} for pictures of {tuple(size)}; expected the same size"
        if not floats and not 0 <= int(value.min()) <= int(value.max()) < self.channels:
            return f"has ids {int(value.min())} .. {int(value.max())}; expected 0 .. {self.channels - 1}"
        return ""

    # Pictures

    def draw(self, prediction: np.ndarray, size: Size | None = None, shown: Size | None = None) -> np.ndarray:
        picture, size = self.paint(prediction), shown or size
        if size is None or size == picture.shape[:2]:
            return picture
        rows, columns = (
            np.linspace(0, of - 1, to).round().astype(int) for of, to in zip(picture.shape[:2], size, strict=True)
        )
        return picture[rows][:, columns]

    @abstractmethod
    def paint(self, prediction: np.ndarray) -> np.ndarray:
        """The prediction of a frame, or a label -> (H, W, 3) uint8 of the same size."""
