"""The tasks, one file each. A task answers all that differs between tasks; nothing outside asks which task it is.

A new task is a subclass of Task, or of DenseTask when it has a value for each pixel, and a row of TASKS
(docs/TASKS.md shows one).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from config import near
from tasks.base import Task
from tasks.dense import DenseTask
from tasks.depth import Depth
from tasks.normals import Normals
from tasks.segmentation import CLASS_LISTS, NO_CLASS, Segmentation

__all__ = [
    "CLASS_LISTS",
    "NO_CLASS",
    "TASKS",
    "DenseTask",
    "Depth",
    "Normals",
    "Segmentation",
    "Task",
    "task_giving",
    "tasks_from_plain",
    "tasks_to_plain",
]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation, Depth, Normals)}


def task_giving(what: str, tasks: Mapping[str, Task | type[Task]] = TASKS) -> str:
    """The name of the first task whose predictions hold `what` in each pixel (Task.gives); "" = none does."""
    return next((name for name, task in tasks.items() if task.gives == what), "")


def tasks_to_plain(tasks: Mapping[str, Task]) -> dict[str, dict[str, object]]:
    """The tasks as plain types, for a checkpoint."""
    return {name: dataclasses.asdict(task) for name, task in tasks.items()}


def tasks_from_plain(states: Mapping[str, Mapping[str, object]]) -> dict[str, Task]:
    """Reads `tasks_to_plain` back. Raises ValueError for a task or a field that this code does not know."""
    tasks: dict[str, Task] = {}
    for name, state in states.items():
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}{near(name, TASKS)}; this code has: {', '.join(TASKS)}")
        try:
            tasks[name] = TASKS[name](**state)
        except TypeError as problem:
            raise ValueError(f"task {name!r} of another version ({problem})") from None
    return tasks
