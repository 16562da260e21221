"""The tasks, one file each. A task answers all that differs between tasks; nothing outside asks which task it is.

A new task is a subclass of Task, or of DenseTask when it has a value for each pixel, and a row of TASKS
(docs/TASKS.md shows one).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from tasks.base import Task
from tasks.boxes import Boxes
from tasks.classes import CLASS_LISTS, NO_CLASS, OTHER_NAMES
from tasks.dense import DenseTask
from tasks.depth import Depth
from tasks.fields import shown, task_from_fields
from tasks.instances import Instances
from tasks.masks import Masks
from tasks.normals import Normals
from tasks.segmentation import Segmentation
from user_input.values import near

__all__ = [
    "CLASS_LISTS",
    "NO_CLASS",
    "OTHER_NAMES",
    "TASKS",
    "Boxes",
    "DenseTask",
    "Depth",
    "Instances",
    "Masks",
    "Normals",
    "Segmentation",
    "Task",
    "all_beside",
    "check_parts",
    "completed",
    "decoded",
    "task_giving",
    "task_of_things",
    "tasks_from_plain",
    "tasks_to_plain",
]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation, Depth, Normals, Boxes, Instances, Masks)}


def task_giving(what: str, tasks: Mapping[str, Task | type[Task]] = TASKS) -> str:
    """The name of the first task whose predictions hold `what` (Task.gives); "" = none does."""
    return next((name for name, task in tasks.items() if task.gives == what), "")


def task_of_things(tasks: Mapping[str, Task]) -> str:
    """The name of the first task that says which pixels are whose (Task.thing_map), outlines before boxes; "" = none
    does."""
    return task_giving("things", tasks) or task_giving("objects", tasks)


def decoded(
    raws: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task]
) -> dict[str, Tensor]:
    """{task: raw output of the head that data sets share} -> {task: prediction at sizes[task]}, not `completed` yet."""
    return {name: task.decode(task.select(raws[name]), sizes[name]) for name, task in tasks.items()}


def completed(found: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> dict[str, Tensor]:
    """{task: prediction} of the same frames, with what one task takes of the others'."""
    return {name: tasks[name].complete(value, found, tasks) for name, value in found.items()}


def all_beside(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """The tasks of a training, each of which knows the others. Raises ValueError when one misses another."""
    return {name: task.beside(tasks) for name, task in tasks.items()}


def tasks_to_plain(tasks: Mapping[str, Task]) -> dict[str, dict[str, object]]:
    """The tasks as plain types, for a checkpoint."""
    return {name: dataclasses.asdict(task) for name, task in tasks.items()}


def tasks_from_plain(states: Mapping[str, Mapping[str, object]]) -> dict[str, Task]:
    """Reads `tasks_to_plain` back. Raises ValueError for a task, a field or a value that this code does not have."""
    if not isinstance(states, Mapping) or not states:
        raise ValueError(f"tasks is {shown(states)}; it takes a table of at least one task")
    for name in states:
        if name not in TASKS:
            raise ValueError(f"unknown task {shown(name)}{near(str(name), TASKS)}; this code has: {', '.join(TASKS)}")
    return {name: task_from_fields(TASKS[name], state) for name, state in states.items()}


def check_parts(tasks: Mapping[str, Task], domains: Mapping[str, Mapping[str, Task]]) -> None:
    """Raises ValueError unless the heads of `tasks` give what each data set's tasks read."""
    for task in tasks.values():
        task.check_part_of(task)
    for domain, own in domains.items():
        if not isinstance(domain, str) or not own.keys() <= tasks.keys():
            raise ValueError(f"data set {shown(domain)} has the tasks {', '.join(own)}, the heads {', '.join(tasks)}")
        for name, task in own.items():
            task.check_part_of(tasks[name])
