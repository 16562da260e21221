"""Checks of class lists, and how data sets with different ones share the outputs of one head."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from drawing import class_palette
from tasks.class_lists import CLASS_LISTS as CLASS_LISTS  # for all that use the rest of this file
from tasks.class_lists import OTHER_NAMES as OTHER_NAMES
from user_input.values import near

if TYPE_CHECKING:
    from tasks.base import Task

DROPPED = "-"  # in teach.py --map: a teacher's class that no label takes
NO_CLASS = 255  # "no label" in masks as `read` gives them; files may use another number


class WithClasses(Protocol):
    """A task with a class list; `outputs` are those of its classes in the head that data sets share."""

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    outputs: tuple[int, ...]  # () = all, in order


Classed = TypeVar("Classed", bound="WithClasses")


def differing_classes(theirs: Sequence[str], own: Sequence[str]) -> str:
    """Why labels of one class list mean something else than those of another; '' = they mean the same."""
    if len(theirs) != len(own):
        return f"{len(theirs)} classes and not {len(own)}"
    return next((f"{its!r} and not {mine!r}" for its, mine in zip(theirs, own, strict=True) if its != mine), "")


def translated(own: Sequence[str], names: Mapping[str, str], target: Sequence[str], where: str) -> list[int]:
    """For each class of a teacher the index of the data set's class that it means, -1 = none.

    `names` rename the teacher's classes, "-" drops one. Raises ValueError for names that the one or the other has not.
    """
    renamed = renamed_classes(own, names)
    unknown = [name for name in renamed if name != DROPPED and name not in target]
    if unknown:
        raise ValueError(
            f"{where}: {len(unknown)} of the teacher's {len(own)} classes are not the data set's, such as "
            f"{unknown[0]!r}{near(unknown[0], target)}; --map FILE says which are which (or - for none)"
        )
    return [-1 if name == DROPPED else target.index(name) for name in renamed]


def renamed_classes(own: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The names of a teacher's classes after --map. Raises ValueError for a class that the teacher has not."""
    for name in names:
        if name not in own:
            raise ValueError(f"--map: the teacher has no class {name!r}{near(name, own)}")
    return [names.get(name, name) for name in own]


def check_classes(classes: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> None:
    """Raises ValueError for lists that no data set has: a file may hold anything."""
    count = len(classes)
    if not 1 <= count <= NO_CLASS or len(set(classes)) != count or not all(map(str.isprintable, classes)):
        raise ValueError(f"classes has {count} names; it takes 1 to {NO_CLASS} different ones of printable letters")
    if len(colors) != count or not all(0 <= value <= 255 for color in colors for value in color):
        raise ValueError(f"colors has {len(colors)} entries; it takes {count} of three numbers in 0..255")


def check_outputs(task: WithClasses, channels: int) -> None:
    """Raises ValueError unless `outputs` names one of the head's `channels` classes for each class of the task."""
    if len(task.outputs) != len(task.classes) or not all(0 <= item < channels for item in task.outputs):
        what = f"{len(task.classes)} numbers in 0..{channels - 1}, one for each class"
        raise ValueError(f"{task.name}: outputs has {len(task.outputs)} numbers; it takes none, or {what}")


def join_classes(tasks: Mapping[str, Classed], merge: bool) -> tuple[Classed, dict[str, Task]]:
    """One head for several data sets, see Task.join.

    Data sets with equal class lists share outputs, others get outputs of their own; `merge` gives equal names of all
    lists one output. In the paper (section IV-D) 46 outputs are the 40 classes of NYUDv2, then the 6 of KITTI.
    """
    joined: dict[tuple[str, ...], int] = {}  # (class,) when merged, else (class, data set that brought its list)
    owners: dict[tuple[str, ...], str] = {}  # class list -> the first data set that has it
    colors, parts = [], {}
    for name, task in tasks.items():
        owner = owners.setdefault(task.classes, name)
        keys = [(item,) if merge else (item, owner) for item in task.classes]
        for key, color in zip(keys, task.colors, strict=True):
            if key not in joined:
                joined[key] = len(joined)
                colors.append(color)
        parts[name] = tuple(joined[key] for key in keys)
    if len(joined) > NO_CLASS:
        raise ValueError(
            f"data: the class lists of {', '.join(owners.values())} have {len(joined)} classes together; "
            f"at most {NO_CLASS} fit into 8-bit masks"
        )
    count = Counter(key[0] for key in joined)
    names = tuple(key[0] if count[key[0]] == 1 else f"{key[0]} ({key[1]})" for key in joined)
    everything = tuple(range(len(names)))
    first = next(iter(tasks.values()))
    union = dataclasses.replace(first, classes=names, colors=_different(colors), outputs=())
    # A data set whose classes are those of the head, in order, takes all outputs as they are.
    return union, {
        name: dataclasses.replace(task, outputs=() if parts[name] == everything else parts[name])
        for name, task in tasks.items()
    }


class SharesClasses:
    """What tasks with a class list (`WithClasses`) answer alike: a mixin, which stands before the task's base class."""

    def misfit(self: WithClasses, section: Mapping[str, object]) -> str:
        return differing_classes(section["classes"], self.classes)

    @property
    def is_part(self: WithClasses) -> bool:
        return bool(self.outputs)

    @classmethod
    def join(cls, tasks: Mapping[str, Classed], merge: bool) -> tuple[Classed, dict[str, Task]]:
        return join_classes(tasks, merge)


def _different(colors: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """The colors, with each repetition replaced by an unused color of the palette."""
    used = set(colors)
    free = (color for color in map(tuple, class_palette()[1:].tolist()) if color not in used)
    seen: set[tuple[int, int, int]] = set()
    result = []
    for color in colors:
        result.append(next(free) if color in seen else color)
        seen.add(color)
    return tuple(result)
