"""Command lines: argparse with one-line errors, and argument types with ranges."""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Callable, Iterable, Sequence

from user_input.values import KIND_NAMES, convert, near


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ValueErrors of one line that name the nearest flag."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> argparse.Namespace:
        result, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise ValueError(f"unknown argument {unknown[0]!r}{near(unknown[0].partition('=')[0], flags)}")
        return result


def number(
    kind: type[int] | type[float],
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Callable[[str], int | float]:
    """An argparse type: a whole number (int) or a number (float) in a range; `above` and `below` leave out the end."""
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    allowed = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit))

    def read(text: str) -> int | float:
        try:
            value = convert(text, kind, "it")
        except ValueError:
            value = math.nan
        if not (least <= value <= most and above < value < below):
            raise argparse.ArgumentTypeError(
                f"got {text!r}; it takes {KIND_NAMES[kind]}{', ' if allowed else ''}{allowed}"
            )
        return value

    return read


positive_int = number(int, least=1)
fraction = number(float, least=0, most=1)


def width_and_height(least: int, most: int) -> Callable[[str], tuple[int, int]]:
    """An argparse type: WIDTHxHEIGHT in pixels, each in a range -> (height, width)."""

    def read(text: str) -> tuple[int, int]:
        sides = text.lower().split("x")
        try:
            width, height = (convert(side, int, "it") for side in sides)
        except ValueError:
            width = height = -1
        if not all(least <= side <= most for side in (width, height)):
            raise argparse.ArgumentTypeError(
                f"got {text!r}; it takes WIDTHxHEIGHT, such as 640x480, each at least {least} and at most {most}"
            )
        return height, width

    return read


def refuse(parser: Parser, arguments: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Raises ValueError for the first of these options that is not at its default: it would do nothing."""
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            raise ValueError(f"--{name} {reason}")
