"""Several processes, one job, as torchrun starts them. In a single process nothing here does anything.

torchrun tells each process its RANK, its LOCAL_RANK on the machine, and the WORLD_SIZE.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process writes and prints: rank 0."""
    return rank() == 0


@contextlib.contextmanager
def together(device: torch.device, patience: timedelta | None = None) -> Iterator[None]:
    """Inside, the processes can communicate: NCCL between GPUs, gloo for tensors on the CPU.

    A process that waits longer than `patience` (default: torch's, some minutes) for another one fails.
    """
    if count() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=patience, store=fresh_store(), rank=rank(), world_size=count())
    yield
    dist.destroy_process_group()  # not after an error, where it would wait for the others


def fresh_store() -> dist.Store:
    """The key-value store in which the processes find each other's addresses, without those of an earlier attempt.

    When torchrun restarts the processes, its store still holds the addresses of the dead ones (torch 2.15). So each
    process publishes a random token. Rank 0's token becomes the key prefix of this attempt after all ranks have
    confirmed it: keys left over from an earlier attempt are never read.
    """
    store, word = next(rendezvous("env://"))[0], uuid.uuid4().hex
    others = range(1, count())
    if not is_main():
        store.set(f"hello/{rank()}", word)
        name, hellos = "", {}
        while hellos.get(str(rank())) != word:
            name, hellos = json.loads(store.get("welcome"))
            time.sleep(0.02)
        store.set(f"ready/{rank()}", name)
        return dist.PrefixStore(name, store)
    ready: dict[int, str] = {}
    while ready != dict.fromkeys(others, word):
        hellos = {other: store.get(f"hello/{other}").decode() for other in others}
        store.set("welcome", json.dumps([word, hellos]))
        time.sleep(0.02)
        ready = {other: store.get(f"ready/{other}").decode() for other in others if store.check([f"ready/{other}"])}
    return dist.PrefixStore(word, store)


def wait() -> None:
    """Barrier: returns when all processes have called it."""
    if count() > 1:
        dist.barrier()


def gather(item: Item) -> list[Item]:
    """The item of each process, in order, with its tensors on the CPU."""
    if count() == 1:
        return [item]
    file = io.BytesIO()
    torch.save(item, file)
    everyones: list[bytes] = [b""] * count()
    dist.all_gather_object(everyones, file.getvalue())
    # From the job's own processes, not from a file.
    return [torch.load(io.BytesIO(content), map_location="cpu", weights_only=False) for content in everyones]


def add_up(values: Sequence[float]) -> list[float]:
    """The sum of each value over the processes, in fp64."""
    return reduced(torch.tensor(values, dtype=torch.float64)).tolist() if count() > 1 else list(values)


def highest(values: Sequence[int]) -> list[int]:
    """The largest of the processes' values, for each."""
    return reduced(torch.tensor(values, dtype=torch.long), dist.ReduceOp.MAX).tolist() if count() > 1 else list(values)


def reduced(tensor: Tensor, how: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
    """`tensor` in place: its sum over the processes."""
    if count() > 1:
        dist.all_reduce(tensor, how)
    return tensor


def as_in_main(module: nn.Module) -> None:
    """Broadcasts the module's parameters and buffers from rank 0."""
    if count() > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, 0)
