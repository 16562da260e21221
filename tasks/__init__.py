"""The tasks, one file each. A task answers all that differs between tasks; nothing outside asks which task it is.

A new task is a subclass of Task that stands in TASKS (docs/TASKS.md adds one).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from config import near
from tasks.base import Task
from tasks.depth import Depth
from tasks.normals import Normals
from tasks.segmentation import CLASS_LISTS, NO_CLASS, Segmentation

__all__ = [
    "CLASS_LISTS",
    "NO_CLASS",
    "TASKS",
    "Depth",
    "Normals",
    "Segmentation",
    "Task",
    "tasks_from_plain",
    "tasks_to_plain",
]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation, Depth, Normals)}


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
