"""What a task takes from the other tasks of its data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from tasks.base import Target, Task


class TakesFromOthers:
    """The part of `Task` about the others: a mixin, whose answers say that the task takes nothing."""

    derived_from: ClassVar[str] = ""  # the task whose label `derive` takes, for frames without a file of this task
    needs_camera: ClassVar[bool] = False  # whether `derive` needs the intrinsics
    # Tasks whose label files may hold labels of this one, see `section_within`: the first that has a column.
    shares_files: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def section_within(
        cls, other: Mapping[str, object], own: Mapping[str, object], where: str
    ) -> dict[str, object] | None:
        """The section for the files of a task of `shares_files`, given its section; None: they hold no such labels.

        `own` is what dataset.yaml says about this task, which has no column. Raises ValueError at `where`.
        """
        return None

    @classmethod
    def labels_in(cls, files: Iterable[Path], section: Mapping[str, object]) -> bool:
        """Whether the files of `section_within`'s `section` hold labels of this task, where the files must say it.
        They may not be there."""
        return True

    def beside(self: Task, tasks: Mapping[str, Task]) -> Task:
        """The task of a training, which knows the others of its data set, such as their classes.

        Raises ValueError when it cannot be trained without one that is not there.
        """
        return self

    def complete(self, prediction: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        """The prediction with what follows from those of all `tasks` for the same frames, such as distances."""
        return prediction

    def complete_target(self, target: Target, others: Mapping[str, Target], tasks: Mapping[str, Task]) -> Target:
        """`complete` of a target of evaluation, by the frames' other targets."""
        return target
