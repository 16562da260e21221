"""One value from text: conversion by type, and the did-you-mean suggestion of error messages."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterable, Sequence

KIND_NAMES = {int: "a whole number", float: "a number", str: "text"}


class ManyErrors(ValueError):
    """Several things that are wrong with one file, a line each. As text: the first, and how many follow."""

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[0] + (f" (and {len(lines) - 1} more in this file)" if len(lines) > 1 else ""))
        self.lines = lines


def near(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for a name that looks like a known one, else ''."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def convert(value: object, kind: type, where: str) -> object:
    """`value` as `kind`: str, int, float, bool, tuple[...] or dict[str, ...]. Raises ValueError at `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise ValueError(f"{where} is {value!r}; it takes a list")
        items = [item.strip() if isinstance(item, str) else item for item in items if item != ""]
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise ValueError(f"{where} is {value!r}; it takes {len(arguments)} values")
        return tuple(convert(item, arguments[0], where) for item in items)
    if origin is dict:
        if isinstance(value, str):
            pairs = [pair.partition("=") for pair in value.split(",") if pair]
            if not all(separator for _, separator, _ in pairs):
                raise ValueError(f"{where} is {value!r}; it takes name=value,name=value")
            value = {name.strip(): item for name, _, item in pairs}
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}; it takes names with values")
        return {name: convert(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"{where} is {value!r}; it takes one {kind.__name__}")
    text = str(value).strip()
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
        if text.lower() not in words and text != "0":
            raise ValueError(f"{where} is {value!r}; it takes true or false")
        return words.get(text.lower(), False)
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"{where} is {value!r}; it takes {KIND_NAMES[kind]}") from None
    if kind is float and not math.isfinite(number):
        raise ValueError(f"{where} is {value!r}; it takes a finite number")
    return number
