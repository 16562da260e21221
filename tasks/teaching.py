"""What a task answers about labels of teachers (teach.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from config import Config
from loss import Loss

if TYPE_CHECKING:
    from tasks.base import Size, Task


class Teachable:
    """The part of `Task` for teachers: a mixin, whose answers say that the task cannot be taught."""

    sure: ClassVar[float] = 0.7  # default of teach.py --threshold: the least confidence of a teacher's label
    imitates: ClassVar[bool] = False  # whether it has an `imitation`

    @classmethod
    def from_teacher(cls, section: Mapping[str, object], where: str) -> Task:
        """The task of another project's network, whose outputs are described like the labels of a data set."""
        return cls.from_section(cls.read_section(section, where), Config())

    def from_graph(self, output: Tensor, probabilities: bool) -> Tensor:
        """The output of another project's network -> raw output. Raises ValueError for one of another shape."""
        raise ValueError(f"--teacher: {self.name} takes no teacher of another project")

    def translation(
        self, section: Mapping[str, object] | None, names: Mapping[str, str], where: str
    ) -> tuple[Task, Callable[[np.ndarray], np.ndarray]]:
        """(the data set's own task, a function from this task's predictions to that one's).

        `section` is the data set's, None when it has none; `names` rename classes. Raises ValueError when they do not
        fit.
        """
        raise ValueError(f"--task: {self.name} cannot be taught")

    def teach(self, raw: Tensor, mirrored: Tensor, size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
        """Raw outputs for frames of this size and for their mirror images -> (prediction, its confidence in 0..1) of
        each frame."""
        raise ValueError(f"--task: {self.name} cannot be taught")

    def keep_sure(self, prediction: np.ndarray, confidence: np.ndarray, least: float) -> tuple[np.ndarray, int, int]:
        """A teacher's prediction -> (label of what it is sure of, how much that is, of how much)."""
        raise ValueError(f"--task: {self.name} cannot be taught")

    def imitation(self, raw: Tensor, advice: Tensor) -> Loss:
        """Raw output, and what teachers predict for the same views at its size (the mean of their `scores`) -> (sum,
        weight) as in loss.py. See training/teachers.py."""
        raise NotImplementedError(f"{self.name} learns from labels alone")
