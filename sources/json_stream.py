"""Large JSON files, an object at a time: COCO's have 470 MB, which Python makes gigabytes of at once."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import IO

CHUNK = 1 << 20  # characters
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
MOST_OBJECT = 2**22  # characters of one object; the longest of COCO's are outlines of crowds, below 2**18


def read_objects(file: IO[bytes]) -> Iterator[tuple[str, dict[str, object]]]:
    """(key, object) of a table whose values are objects or lists of objects, in order: a list gives its items.

    Raises ValueError that says what is wrong; the caller knows which file it is.
    """
    text = Text(file)
    text.take("{")
    while (key := text.list_item("}")) is not None:
        if not isinstance(key, str):
            raise ValueError("it is no table of names and values")
        text.take(":")
        if text.peek() == "[":
            text.take("[")
            while (item := text.list_item("]")) is not None:
                yield key, as_object(item, key)
        else:
            yield key, as_object(text.value(), key)
    if text.peek():
        raise ValueError("something follows its end")


def as_object(value: object, key: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} holds something else than objects")
    return value


class Text:
    """A text file and a place in it, of which only a part is in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = io.TextIOWrapper(file, encoding="utf-8")
        self.text, self.at = "", 0
        self.decode = json.JSONDecoder().raw_decode
        self.first = True  # the next item of a list or a table has no comma before it

    def more(self, least: int = 0) -> bool:
        """Reads on; forgets what lies before the place. False at the end of the file."""
        read = self.file.read(max(CHUNK, least))
        self.text, self.at = self.text[self.at :] + read, 0
        return bool(read)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self.at = WHITE_SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> None:
        if (found := self.peek()) != expected:
            raise ValueError(f"{expected!r} is missing, {repr(found) if found else 'its end'} stands there")
        self.at += 1
        self.first = expected in "{["

    def list_item(self, end: str) -> object | None:
        """The next string or object of a list or table, or None after its last one, whose `end` is taken."""
        if self.peek() == end:
            self.take(end)
            return None
        if not self.first:
            self.take(",")
        self.first = False
        return self.value()

    def value(self) -> object:
        """The string or object at the place. (Of a number, which has no end mark, a part might be in memory.)"""
        if self.peek() not in '"{':
            raise ValueError(f"a text or an object is expected, {self.peek() or 'the end'!r} stands there")
        while True:
            try:
                value, self.at = self.decode(self.text, self.at)
                return value
            except json.JSONDecodeError as problem:
                here = len(self.text) - self.at
                if here > MOST_OBJECT:
                    raise ValueError(f"an object has more than {MOST_OBJECT:,} characters, or {problem.msg}") from None
                if not self.more(here):  # twice as much each time
                    raise ValueError(f"damaged or cut off ({problem.msg})") from None
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
