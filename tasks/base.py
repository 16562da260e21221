"""Task: what every task answers. tasks/dense.py adds what tasks with a value for each pixel have in common.

- A *label* is what `read` and `at_size` make of a label file: numpy, of any shape and length.
- A *target* is a batch of labels, what `collate` makes of them. It may be a list, where labels differ in length.
- *Raw* output is what the head gives for a batch: one tensor, whose first dimension is the batch.
- A *prediction* is what `decode` makes of raw output, in physical units: one tensor, batch first.
  `arrays` takes it apart into frames.

A frame without a label differs from one on whose label nothing is to be seen: it has no label file, `no_label` stands
for it, and it adds nothing to losses and metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from geometry import Pixels, View
from loss import Loss
from metrics import Metrics, Protocol
from tasks.scene import InScene
from tasks.teaching import Teachable
from tasks.together import TakesFromOthers
from user_input.values import near

Size = tuple[int, int]  # height, width
HERE = Path()
Target = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Task(Teachable, TakesFromOthers, InScene, ABC):
    """Base class of all tasks. Subclasses are frozen dataclasses of plain types, stored as they are in checkpoints."""

    name: ClassVar[str]
    best: ClassVar[str]  # the metric that decides which checkpoint is kept
    directions: ClassVar[Mapping[str, int]]  # metric -> 1: higher is better, -1: lower is better
    gives: ClassVar[str] = ""  # of a prediction: "classes" or "metres" in each pixel; "objects", "things"
    counted: ClassVar[str] = "pixels"  # what `difference` counts
    scores_inside: ClassVar[bool] = False  # whether `decode` itself leaves out what is below the task's `least_score`
    no_graph: ClassVar[str] = ""  # why its head cannot be in an exported graph; it runs in PyTorch alone then
    suffix: ClassVar[str] = ".png"  # of the files that `save` writes

    def __init_subclass__(cls, **arguments: object) -> None:
        """Raises TypeError where the class is written, not in the middle of a training."""
        super().__init_subclass__(**arguments)
        if cls.derived_from and cls.derive is Task.derive:
            raise TypeError(f"{cls.__name__}: derived_from is {cls.derived_from!r}, so it must define derive()")

    # ------------------------------------------------------------------------------ a data set's files

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
        """Checks the section `name:` of a dataset.yaml and converts its values. Raises ValueError.

        `root` is the data set's folder, for files that the section names.
        """
        check_keys(section, set(), where)
        return {}

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Task:
        """The task for a data set with this section."""
        return cls()

    def section(self) -> dict[str, object]:
        """The section of a dataset.yaml, in plain types, for files that `save` writes."""
        return {}

    def misfit(self, section: Mapping[str, object]) -> str:
        """Why labels of a data set with this section mean something else than predictions of this task; '' = they
        mean the same."""
        return ""

    def continues(self, other: Task) -> bool:
        """Whether a head may start from the weights of `other`'s: its outputs mean the same."""
        return not self.misfit(other.section())

    def check_fields(self) -> None:
        """Raises ValueError for values that no data set and no settings lead to: checkpoints may hold anything."""
        return

    def with_thresholds(self, score: float | None, overlap: float | None) -> Task:
        """The task with other thresholds of its predictions, where it has any; None keeps one. In 0..1."""
        return self

    def check_part_of(self, head: Task) -> None:
        """Raises ValueError unless `select` can take this task's outputs from those of the head."""
        return

    @classmethod
    def join(cls, tasks: Mapping[str, Task], merge: bool) -> tuple[Task, dict[str, Task]]:
        """One head for several data sets: {data set: its task} -> (task of the head, {data set: its part of the head}).

        Raises ValueError when they do not go together.
        """
        return next(iter(tasks.values())), dict(tasks)

    @property
    def is_part(self) -> bool:
        """Whether the task is a data set's part of a head whose other outputs were trained apart from it."""
        return False

    def open(self, path: Path, section: Mapping[str, object], image: Path) -> object:
        """What a label file holds, before `read` makes sense of it. Raises FileNotFoundError, or ValueError for a file
        of another kind."""
        return path.read_bytes()

    @abstractmethod
    def read(self, path: Path, section: Mapping[str, object], image: Path) -> object:
        """A label file -> what `at_size` makes a label of; of a map, the label itself. Raises ValueError that names
        the file, and is one of `ManyErrors` where several things in it are wrong.

        `image` is the frame's picture: a file with the labels of many pictures is searched for it.
        """

    def at_size(self, label: object, size: Size, section: Mapping[str, object], path: Path) -> np.ndarray:
        """What `read` gave -> the label of a frame of this size, such as shares of the frame -> pixels.

        Raises ValueError, which names the file, when it is of another size.
        """
        return label

    @abstractmethod
    def no_label(self, height: int, width: int) -> np.ndarray:
        """Stands for the label of a frame of which nobody says anything."""

    def derive(self, label: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        """The label of the task `derived_from` -> a label of this task. camera: fx, fy, cx, cy of this frame."""
        raise NotImplementedError(f"{self.name} has no derived_from, so no label is derived")

    @abstractmethod
    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        """The label as the view's camera sees it, of the view's size."""

    def class_counts(self, label: np.ndarray) -> np.ndarray:
        """(C,) how often each class occurs in a label; (0,) for a task without class weights."""
        return np.zeros(0, np.int64)

    def with_class_weights(self, weights: Sequence[float]) -> Task:
        """The task with a weight for each class in its loss."""
        return self

    # ------------------------------------------------------------------------------ what a data set's labels hold

    def survey(self, label: np.ndarray, section: Mapping[str, object]) -> np.ndarray:
        """Numbers about a label that add up over frames; the first is how much is labeled, of how much in all."""
        return np.array([len(label), len(label)])

    def coverage(self, survey: np.ndarray) -> str:
        """A sum of `survey`s in words."""
        return f"{survey[0]} objects"

    def suspicion(self, stored: object, label: np.ndarray, section: Mapping[str, object]) -> tuple[str, str] | None:
        """(kind of fault, what looks wrong) about a label that could be read, or None. `stored` is what `open` gave."""
        return None

    def doubt(self, survey: np.ndarray, section: Mapping[str, object]) -> tuple[str, str] | None:
        """(kind of fault, what looks wrong) about all labels of a data set, given the sum of their surveys, or None."""
        return None

    def survey_lines(self, surveys: Mapping[str, np.ndarray], section: Mapping[str, object]) -> list[str]:
        """{split: sum of `survey`s} -> lines for the report of `prepare.py check`."""
        return []

    # ------------------------------------------------------------------------------ batches

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(label))

    def collate(self, labels: Sequence[Tensor]) -> Target:
        """Labels as `to_tensor` gives them -> target. Labels that differ in length stay a list."""
        return list(labels)

    def move(self, target: Target, send: Callable[[Tensor], Tensor]) -> Target:
        """The target on another device; `send` takes a tensor there."""
        return send(target) if isinstance(target, Tensor) else [send(label) for label in target]

    def pick(self, target: Target, frames: Sequence[int]) -> Target:
        """The target of some frames of the batch, by their indices."""
        return [target[frame] for frame in frames]

    # ------------------------------------------------------------------------------ the network

    def levels(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Which of the decoder's maps the head reads: indices of their strides, which go from fine to coarse."""
        return (0,)

    @abstractmethod
    def head(self, channels: Sequence[int], strides: Sequence[int], config: Config) -> nn.Module:
        """A module from the maps of `levels`, (B, channels[i], h, w) each, to raw output: `head(*maps)`.

        Its method `initialise` sets its initial weights; the network calls it when all its parts exist.
        """

    def select(self, raw: Tensor) -> Tensor:
        """Raw output of the head that data sets share -> what belongs to this task's data set."""
        return raw

    def first_output(self, labels: Iterable[np.ndarray]) -> float | None:
        """The raw output to begin a training with, from some of its labels; None leaves it at 0."""
        return None

    # The loss. `loss_stride` lets maps be compared at some of their pixels only; other targets are taken whole.

    def thin(self, target: Target, pixels: Pixels) -> Target:
        """The target at these pixels of the view; all of a target that is no map."""
        return target

    def sample(self, raw: Tensor, pixels: Pixels) -> Tensor:
        """Raw output -> what `loss` compares with `thin`'s target."""
        return raw

    @abstractmethod
    def weight(self, target: Target) -> float:
        """The weight that `loss` gives for this target, known before there is an output."""

    @abstractmethod
    def loss(self, raw: Tensor, target: Target) -> Loss:
        """`sample`d raw output, `thin`ned target -> (sum, weight) as in loss.py; both 0 when nothing is labeled."""

    @abstractmethod
    def decode(self, raw: Tensor, size: Size) -> Tensor:
        """Raw output -> prediction for frames of this size."""

    @abstractmethod
    def merge(self, views: Sequence[tuple[Tensor, float, bool]], size: Size) -> Tensor:
        """One prediction from several views of the same frames: (raw output, zoom, whether it is mirrored) each."""

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        """Raw output for images that were padded from `size` to `padded` at the bottom and right -> for the images."""
        return raw

    def cut(self, prediction: Tensor, size: Size) -> Tensor:
        """A prediction for frames that were padded at the bottom and right -> for their parts of this size."""
        return prediction

    def resize(self, prediction: Tensor, before: Size, size: Size) -> Tensor:
        """A prediction for frames of size `before` -> for frames of this size."""
        return prediction

    def smooth(self, earlier: Tensor, raw: Tensor, kept: Callable[[Size], Tensor]) -> Tensor:
        """Averages raw output of a video over time. kept(size) is (1, 1, *size): the share of what was there."""
        return raw

    # ------------------------------------------------------------------------------ reports

    @abstractmethod
    def metrics(self, protocol: Protocol) -> Metrics:
        """A new accumulator."""

    def charts(self, metrics: Metrics) -> dict[str, np.ndarray]:
        """{name: picture (H, W, 3) uint8 of what was measured}, for TensorBoard."""
        return {}

    def arrays(self, prediction: Tensor) -> list[np.ndarray]:
        """The prediction of each frame of the batch."""
        return list(prediction.cpu().numpy())

    def difference(self, found: Tensor, wanted: Tensor, tolerance: float) -> tuple[float, int, int]:
        """How two predictions differ: (largest difference of numbers, values that changed, values in all).

        A class changed when it is another, a number when it is off by more than `tolerance` times itself. NaN and
        infinity always changed, and the largest difference is infinite then.
        """
        if not wanted.is_floating_point():
            return 0.0, int((found != wanted).sum()), wanted.numel()
        off = torch.where(found.isfinite(), (found - wanted).abs(), torch.inf)
        small = max(1e-3, 0.1 * float(wanted.abs().mean()))  # near 0, rounding is no share of the value
        changed = ~(off <= tolerance * wanted.abs().clamp(min=small))
        return float(off.max()) if off.numel() else 0.0, int(changed.sum()), wanted.numel()

    def output_fault(self, value: Tensor, frames: int, size: Size | None) -> str:
        """What is wrong with the output of a file for so many frames, "" = nothing. It is raw output, or with `size` a
        prediction for frames of this size."""
        return "" if len(value) == frames else f"is {tuple(value.shape)}; expected ({frames}, ...)"

    @abstractmethod
    def draw(self, prediction: np.ndarray, size: Size | None = None, shown: Size | None = None) -> np.ndarray:
        """The prediction of a frame of this size, or a label -> picture (*shown, 3) uint8, with the same colors in all
        frames. By default a picture has the frame's size, which a map knows by itself.
        """

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        """(text, color) entries that explain the picture."""
        return []

    def draw_over(self, picture: np.ndarray, prediction: np.ndarray, size: Size | None = None) -> np.ndarray | None:
        """The picture (H, W, 3) uint8 of a frame with its prediction, or its label, drawn over it; None: the task is
        shown by `draw` alone. `size` is the frame's, by default the picture's."""
        return None

    def panel(self, prediction: np.ndarray, picture: np.ndarray, size: Size | None = None) -> np.ndarray:
        """The prediction as it is shown beside the picture of its frame, at the picture's size."""
        drawn = self.draw_over(picture, prediction, size)
        return self.draw(prediction, size or picture.shape[:2], picture.shape[:2]) if drawn is None else drawn

    def overlay(
        self, prediction: np.ndarray, picture: np.ndarray, size: Size | None = None, share: float = 0.6
    ) -> np.ndarray:
        """The picture of a frame under its prediction; `share` is that of the prediction's colors where it has all."""
        drawn = self.draw_over(picture, prediction, size)
        if drawn is not None:
            return drawn
        drawn = self.draw(prediction, size or picture.shape[:2], picture.shape[:2])
        return cv2.addWeighted(picture, 1 - share, drawn, share, 0)

    @classmethod
    def file_name(cls, stem: str) -> str:
        """Of the file that `save` writes for the picture `stem`."""
        return f"{stem}_{cls.name}{cls.suffix}"

    @classmethod
    def file_names(cls, stem: str) -> tuple[str, ...]:
        """Of all files that `save_frame` writes for the picture `stem`."""
        return (cls.file_name(stem),)

    @abstractmethod
    def save(self, prediction: np.ndarray, path: Path) -> None:
        """Writes the values of a frame to a file that `read` reads back."""

    def save_frame(self, prediction: np.ndarray, path: Path, image: str, size: Size) -> None:
        """`save`, for files that say what their picture is called and how large it is."""
        self.save(prediction, path)


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r:.60}{near(str(value), allowed)}; allowed: {', '.join(allowed)}")


def check_keys(section: object, known: set[str], where: str) -> None:
    """Raises ValueError for a section that is no mapping, and for a key that is not known."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{where} must hold 'name: value' lines")
    for key in section:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{near(key, known)}; allowed: {', '.join(sorted(known)) or 'none'}"
            )
