"""The text of darknet's .cfg files: sections in square brackets that may repeat, `key=value` lines, blanks without
meaning, and values that are checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from user_input.values import convert, near

MOST_LAYERS = 1000
Values = Mapping[str, str]


def sections_of(text: str, where: str) -> list[tuple[str, dict[str, str]]]:
    """Text -> (name, {key: value}) of each section. Raises ValueError with the line."""
    sections: list[tuple[str, dict[str, str]]] = []
    for number, raw in enumerate(text.split("\n"), 1):  # split() below takes \r away
        line = "".join(raw.partition("#")[0].partition(";")[0].split())
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]") or not line[1:-1].isidentifier():
                raise ValueError(f"{where}:{number}: {line!r:.60} is no section; it takes [name]")
            sections.append((line[1:-1], {}))
            continue
        key, separator, value = line.partition("=")
        if not separator or not key:
            raise ValueError(f"{where}:{number}: {line!r:.60} is neither [section] nor key=value")
        if not sections:
            raise ValueError(f"{where}:{number}: {line!r:.60} stands before the first section; that is [net]")
        sections[-1][1][key] = value
    if not sections or sections[0][0] not in ("net", "network"):
        raise ValueError(f"{where}: not a darknet .cfg file: its first section is not [net]")
    if not 1 <= len(sections) - 1 <= MOST_LAYERS:
        raise ValueError(f"{where}: it has {len(sections) - 1} layers; it takes 1 to {MOST_LAYERS}")
    return sections


def text_of(sections: Sequence[tuple[str, Values]]) -> str:
    """The opposite of `sections_of`."""
    parts = (
        "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in values.items())]) for name, values in sections
    )
    return "\n\n".join(parts) + "\n"


class Section:
    """The values of a section, converted and checked. Errors name file, layer and key."""

    def __init__(self, values: Values, where: str) -> None:
        self.values, self.where = values, where

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.where}: {what}")

    def whole(self, key: str, default: int, least: int = 0, most: int = 1) -> int:
        value = convert(self.values.get(key, default), int, f"{self.where}: {key}")
        if not least <= value <= most:
            raise self.fail(f"{key} is {value}; it must be {least} to {most}")
        return value

    def real(self, key: str, default: float, least: float, most: float) -> float:
        value = convert(self.values.get(key, default), float, f"{self.where}: {key}")
        if not least <= value <= most:
            raise self.fail(f"{key} is {value:g}; it must be {least:g} to {most:g}")
        return value

    def many(self, key: str, kind: type, most: int) -> tuple:
        if key not in self.values:
            raise self.fail(f"it has no {key}")
        values = convert(self.values[key].rstrip(","), tuple[kind, ...], f"{self.where}: {key}")
        if not 1 <= len(values) <= most:
            raise self.fail(f"{key} has {len(values)} values; it takes 1 to {most}")
        return values

    def choice(self, key: str, default: str, allowed: Sequence[str]) -> str:
        value = self.values.get(key, default)
        if value not in allowed:
            raise self.fail(f"{key} is {value!r:.60}; known here: {', '.join(allowed)}{near(value, allowed)}")
        return value

    def refuse(self, *keys: str) -> None:
        """Keys that would change the result, unless they say no."""
        for key in keys:
            if self.values.get(key, "0") not in ("0", "none"):
                raise self.fail(f"{key}={self.values[key]:.40} is not known here")
