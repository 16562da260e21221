"""Pipeline: one thread reads, others predict and write what was read before, within a budget of memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from deploy.backend_base import Backend


@contextlib.contextmanager
def throughput_mode(backend: Backend, wanted: bool = True) -> Iterator[int]:
    """Sets the back end and PyTorch up for calls side by side, if `wanted`. Gives the number of calls."""
    threads = torch.get_num_threads()
    calls = backend.concurrent() if wanted else 1
    if calls > 1:
        torch.set_num_threads(1)  # each call has one core, also for what comes after the network
    try:
        yield calls
    finally:
        torch.set_num_threads(threads)


class Pipeline:
    """predict(item) in `calls` threads, then write(item, result) in `writers` threads; one writer keeps the order.

    `budget` bounds the cost of what is between reading and writing, such as pixels or frames. An item that costs more
    goes alone. The first error of a thread is raised by the next call or at the end of the block. After any error,
    Ctrl-C included, what has not begun is dropped and what runs is waited for.
    """

    def __init__(
        self,
        predict: Callable[[Any], Any],
        write: Callable[[Any, Any], None],
        budget: int,
        calls: int = 1,
        writers: int = 1,
    ) -> None:
        self.predict, self.write, self.budget, self.used = predict, write, budget, 0
        self.predicting, self.writing = ThreadPoolExecutor(calls), ThreadPoolExecutor(writers)
        self.unfinished: deque[tuple[int, Future[None]]] = deque()  # cost, writing; oldest first

    def reserve(self, cost: int) -> None:
        """Waits until something of this cost fits into the budget; call it before reading."""
        while self.unfinished and (self.used + cost > self.budget or self.unfinished[0][1].done()):
            self._finish_oldest()

    def put(self, item: object, cost: int) -> None:
        predicted = self.predicting.submit(self.predict, item)
        written = self.writing.submit(lambda: self.write(item, predicted.result()))
        self.used += cost
        self.unfinished.append((cost, written))

    def _finish_oldest(self) -> None:
        cost, written = self.unfinished.popleft()
        self.used -= cost
        written.result()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self.unfinished:
                self._finish_oldest()
        finally:
            self.predicting.shutdown(cancel_futures=True)
            self.writing.shutdown(cancel_futures=True)
