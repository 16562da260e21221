"""A loop over files in threads: decoding and encoding of pictures release the interpreter's lock (GIL)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], what: str) -> Iterator[Result]:
    """function(item) of each item, in order, with a progress bar called `what`.

    After an error, after Ctrl-C, and when the caller stops early, the items that wait are not begun.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from tqdm(pool.map(function, items), what, len(items), leave=False, disable=None)
    finally:
        pool.shutdown(cancel_futures=True)
