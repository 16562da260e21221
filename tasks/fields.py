"""Checks the fields of a task that were read from a file, before anything is built from them."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping

from tasks.base import Task
from user_input.values import near


def task_from_fields(kind: type[Task], state: object) -> Task:
    """The task with these fields. Raises ValueError that names the field, what it got and what is allowed."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{kind.name} is {shown(state)}; it takes a table of its fields")
    known = field_types(kind)
    for name in state:
        if name not in known:
            raise ValueError(f"{kind.name}: unknown field {shown(name)}{near(str(name), known)}, of another version")
    try:
        task = kind(**{name: as_type(value, known[name], name) for name, value in state.items()})
        task.check_fields()
    except ValueError as problem:
        raise ValueError(f"{kind.name}: {problem}") from None
    return task


def field_types(kind: type[Task]) -> dict[str, object]:
    """{field: its type}. Not `get_type_hints(kind)`: Python 3.10 refuses classes that hold a plain ClassVar."""
    names, found = {field.name for field in dataclasses.fields(kind)}, {}
    for base in reversed(kind.__mro__):
        own = {name: hint for name, hint in vars(base).get("__annotations__", {}).items() if name in names}
        holder = types.SimpleNamespace(__annotations__=own)
        found |= typing.get_type_hints(holder, vars(sys.modules[base.__module__]))
    return found


def as_type(value: object, hint: object, name: str) -> object:
    """The value, with tuples for lists, if it is of the type that a field says. Raises ValueError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            raise ValueError(f"{name} is {shown(value)}; it takes a list{_length(inner)}")
        return tuple(as_type(item, inner[0], name) for item in value)
    if origin in (typing.Union, types.UnionType):
        return value if value is None else as_type(value, inner[0], name)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is not float and type(value) is hint:
        return value
    raise ValueError(f"{name} is {shown(value)}; it takes {_NAMES.get(hint, hint)}")


_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def _length(inner: tuple[object, ...]) -> str:
    return "" if inner[-1] is Ellipsis else f" of {len(inner)}"


def shown(value: object) -> str:
    """A value in an error message: short, whatever a file has put there."""
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value) if isinstance(value, int | float | str | bool | None) else f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
