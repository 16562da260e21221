"""What a task answers. tasks.py has the tasks.

Shapes: a *label* is what a file gives, numpy (H, W) or (H, W, 3); a *target* is a batch of labels on the device,
(B, H, W) or (B, 3, H, W); *raw* is the output of the head, (B, channels, h, w), smaller than the input; a
*prediction* has the target's shape and physical units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from config import Config, near
from geometry import View, resize_raw
from metrics import Metrics, Protocol


@dataclass(frozen=True)
class Task(ABC):
    """What the classes below answer. Their fields are plain types: they are the task's part of a checkpoint."""

    name: ClassVar[str]
    best: ClassVar[str]  # the metric that decides
    directions: ClassVar[Mapping[str, int]]  # metric -> 1: higher is better, -1: lower is better
    fill: ClassVar[float] = 0.0  # "no label" in a label
    derived_from: ClassVar[str] = ""  # a task from whose label `derive` makes this task's, where a frame has no file
    needs_camera: ClassVar[bool] = False  # `derive` does
    sure: ClassVar[float] = 0.7  # confidence from which on a teacher's prediction becomes a label

    interpolation: str = "bilinear"  # how raw output is brought to full size

    # A data set: its section of dataset.yaml, and its files.

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str) -> dict[str, object]:
        """Checks the section `name:` of a dataset.yaml and converts its values. Raises ValueError."""
        check_keys(section, set(), where)
        return {}

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Task:
        """The task for a data set with this section."""
        return cls()

    def section(self) -> dict[str, object]:
        """The section, in plain types, that describes the files that `save` writes."""
        return {}

    def check_fields(self) -> None:
        """Raises ValueError for values that no data set and no settings lead to: checkpoints may hold anything."""
        check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))

    def check_part_of(self, head: Task) -> None:
        """Raises ValueError unless `select` can take this task's outputs from those of the head."""
        if self.channels != head.channels:
            raise ValueError(f"{self.name}: it has {self.channels} outputs, its head {head.channels}")

    @classmethod
    def join(cls, tasks: Mapping[str, Task], merge: bool) -> tuple[Task, dict[str, Task]]:
        """{data set: its task} -> the task of the head that they share, {data set: its task as part of that}.

        Raises ValueError when they do not go together.
        """
        return next(iter(tasks.values())), dict(tasks)

    @abstractmethod
    def read(self, path: Path, section: Mapping[str, object]) -> np.ndarray:
        """A label file -> label. Raises ValueError that names the file."""

    def no_label(self, height: int, width: int) -> np.ndarray:
        """A label without anything labelled."""
        return np.full((height, width), self.fill, np.float32)

    def derive(self, label: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        """The label of the task `derived_from` -> a label of this task. camera: fx, fy, cx, cy of this frame."""
        raise NotImplementedError(f"{self.name} names `derived_from`, so it must say how")

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        """The label as the view's camera sees it; never interpolated."""
        return view.sample(label, self.fill)

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(label))

    # The network.

    @property
    def channels(self) -> int:
        """Outputs of the head."""
        return 1

    def select(self, raw: Tensor) -> Tensor:
        """The outputs of the shared head -> this data set's, (B, channels, h, w)."""
        return raw

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """raw (B, channels, h, w), target of any size -> scalar; 0 when nothing is labelled."""

    def scores(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        """raw -> (B, channels, *size) that may be averaged over views: probabilities, metres, vectors."""
        return resize_raw(raw, size, self.interpolation)

    def undo(self, scores: Tensor, zoom: float, mirror: bool) -> Tensor:
        """Scores of a zoomed and mirrored picture -> scores of the picture."""
        return scores.flip(-1) if mirror else scores

    def decide(self, scores: Tensor) -> Tensor:
        """Scores -> prediction."""
        return scores[:, 0]

    def confidence(self, scores: Tensor, mirrored: Tensor) -> Tensor:
        """Scores of a picture and, `undo`ne, of its mirror image -> how sure it is, (B, H, W) in 0..1.

        By default how much less than 1 the two differ, which suits probabilities.
        """
        return 1 - (scores - mirrored).abs().amax(1)

    def decode(self, raw: Tensor, size: tuple[int, int]) -> Tensor:
        """raw -> prediction at full size."""
        return self.decide(self.scores(raw, size))

    # Labels of teachers, see teach.py.

    @classmethod
    def from_teacher(cls, section: Mapping[str, object], where: str) -> Task:
        """The task of a network of others, whose outputs are described like the labels of a data set."""
        return cls.from_section(cls.read_section(section, where), Config())

    def translation(
        self, section: Mapping[str, object] | None, names: Mapping[str, str], where: str
    ) -> tuple[Task, Callable[[np.ndarray], np.ndarray]]:
        """The data set's own task (`section` is its section, None when it has none), and a function from a prediction
        of this task to one of that. `names` rename classes. Raises ValueError when they do not fit."""
        if names:
            raise ValueError(f"--map: {self.name} has no classes")
        return (self if section is None else self.from_section(section, Config())), lambda prediction: prediction

    def blank(self, prediction: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """The prediction, (H, W) or (3, H, W), with "no label" where `sure` (H, W) is False."""
        return np.where(sure, prediction, prediction.dtype.type(self.fill))

    # Reports.

    @abstractmethod
    def metrics(self, protocol: Protocol) -> Metrics:
        """A new accumulator."""

    def charts(self, metrics: Metrics) -> dict[str, np.ndarray]:
        """{name: picture (H, W, 3) uint8 of what was measured}, for TensorBoard."""
        return {}

    @abstractmethod
    def draw(self, prediction: np.ndarray) -> np.ndarray:
        """A prediction or label -> (H, W, 3) uint8 picture, comparable between frames."""

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        """(text, colour) entries that explain the picture."""
        return []

    @abstractmethod
    def save(self, prediction: np.ndarray, path: Path) -> None:
        """Writes the values to a PNG that `read` reads back."""


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r:.60}{near(str(value), allowed)}; allowed: {', '.join(allowed)}")


def check_keys(section: object, known: set[str], where: str) -> None:
    if not isinstance(section, Mapping):
        raise ValueError(f"{where} must hold 'name: value' lines")
    for key in section:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{near(key, known)}; allowed: {', '.join(sorted(known)) or 'none'}"
            )
