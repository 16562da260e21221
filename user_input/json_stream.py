"""JSON files that are too large to be held in memory: one value at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

MOST_VALUE = 2**24  # characters of one value
CHUNK = 2**20  # characters that are read at once, at least

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_AFTER_A_VALUE = tuple(",:]} \t\r\n")


class JsonStream:
    """A JSON file as its values come: no more of it is in memory than one value."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.at, self.lines = "", 0, 1  # what is in memory, the place in it, and the line where it begins
        self.began = 0  # `position` of the last value
        self._bytes, self._counted = 0, 0  # of all that is before self.text[_counted]

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}:{self.line}: {what}")

    @property
    def line(self) -> int:
        return self.lines + self.text.count("\n", 0, self.at)

    @property
    def position(self) -> int:
        """Bytes of UTF-8 before the next character: the place in a file that was opened with newline="", behind its
        byte order mark."""
        new = self.text if self.text.isascii() else self.text[self._counted : self.at].encode()
        self._bytes += self.at - self._counted if new is self.text else len(new)
        self._counted = self.at
        return self._bytes

    def more(self) -> bool:
        """Reads on, as much as there is in memory already. False: the file has ended."""
        self.lines, self._bytes, self._counted = self.line, self.position, 0
        rest = self.text[self.at :]
        chunk = self.file.read(max(CHUNK, len(rest)))
        self.text, self.at = rest + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                self.fail("the file ends too early")

    def take(self, wanted: str) -> None:
        if (got := self.peek()) != wanted:
            self.fail(f"not readable as JSON: {wanted!r} was expected, not {got!r}")
        self.at += 1

    def value(self) -> object:
        self.peek()
        self.began = self.position
        while True:
            value, end, wrong = None, -1, ""
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except RecursionError:
                self.fail("it is nested too deeply")
            except ValueError as problem:
                wrong = str(problem).partition(": line")[0]
            if end > 0 and self.text[end : end + 1] in _AFTER_A_VALUE:  # else a number may go on in the next piece
                self.at = end
                return value
            if len(self.text) - self.at > MOST_VALUE:  # what is not complete by then is wrong or an attack
                self.fail(f"not readable as JSON: {wrong or 'too long'} (in {MOST_VALUE:,} characters)")
            if not self.more():
                if end < 0:
                    self.fail(f"not readable as JSON: {wrong}")
                self.at = end
                return value

    def items(self) -> Iterator[object]:
        """The values of a list."""
        self.take("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.at += 1
                yield self.value()
        self.take("]")

    def names(self) -> Iterator[str]:
        """The names in a table. Before the next one, the caller must have read the value."""
        self.take("{")
        more = self.peek() != "}"
        while more:
            name = self.value()
            if not isinstance(name, str):
                self.fail(f"not readable as JSON: a name was expected, not {name!r:.40}")
            self.take(":")
            yield name
            if more := self.peek() == ",":
                self.at += 1
        self.take("}")

    def lists(self, names: Sequence[str], what: str) -> Iterator[tuple[str, int, object]]:
        """(name, number, value) of all values of the lists with these names, in a file that is one table; the rest is
        left out. `what` is such a file, for errors: "a COCO file". Raises ValueError, also where a list is missing."""
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        if self.peek() != "{":
            self.fail(f"{what} is a table with {listed}")
        seen = set()
        for name in self.names():
            if name not in names:
                self.skip()
                continue
            if name in seen or self.peek() != "[":
                self.fail(f"{name} must be one list")
            seen.add(name)
            for number, value in enumerate(self.items()):
                yield name, number, value
        if missing := [name for name in names if name not in seen]:
            raise ValueError(f"{self.path}: it has no {', '.join(missing)}; {what} has {listed}")

    def skip(self) -> None:
        if self.peek() == "[":
            for _ in self.items():
                pass
        else:
            self.value()
