"""Large files that many frames share: each process reads one once, and again when it has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Content = TypeVar("Content")


class FileCache(Generic[Content]):
    """The contents of the files that were read last; what is wrong with one is remembered as well."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._files: OrderedDict[tuple[object, ...], Content | ValueError] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, path: Path, parse: Callable[[Path], Content]) -> Content:
        """parse(path), or what it gave before. Raises what it raises."""
        if not path.is_file():
            return parse(path)
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        with self._lock:  # threads that want the same file wait for the one that reads it
            if key not in self._files:
                try:
                    self._files[key] = parse(path)
                except ValueError as problem:
                    self._files[key] = problem
                while len(self._files) > self.most:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            found = self._files[key]
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        return found
