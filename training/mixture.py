"""Training frames of several data sets: which of them each optimizer step holds."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import distributed
from config import Config
from dataset import Frames, collate, loader_of


class Mixture(Dataset):
    """Training frames of several data sets.

    mixture[round, data set, index] is the sample of `Frames` plus "domain" (the data set's number) and "weight" (a
    float for each task, 0 = no label, see `Frames.weights`).
    """

    def __init__(self, parts: Sequence[Frames], shares: Sequence[float]) -> None:
        self.parts, self.shares = parts, shares
        self.tasks = parts[0].tasks  # all parts collate labels in the same way

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        _, domain, index = key
        part = self.parts[domain]
        return {**part[key], "domain": torch.tensor(domain), "weight": torch.tensor(part.weights(index))}

    def pools(self) -> list[Pool]:
        """Frames of one data set with labels for the same tasks; those without any label are left out.

        Raises ValueError for a data set that has no labeled frame.
        """
        pools = []
        for domain, (part, share) in enumerate(zip(self.parts, self.shares, strict=True)):
            groups: dict[tuple[int, ...], list[int]] = {}
            for index in range(len(part)):
                labeled = tuple(task for task, weight in enumerate(part.weights(index)) if weight)
                groups.setdefault(labeled, []).append(index)
            groups.pop((), None)
            if not groups:
                raise ValueError(
                    f"data: no training frame of {part.folder.root} has a label for {', '.join(part.tasks)}"
                )
            frames = sum(map(len, groups.values()))
            pools += [
                Pool(domain, tasks, indices, share * len(indices) / frames) for tasks, indices in sorted(groups.items())
            ]
        return pools


@dataclass(frozen=True)
class Pool:
    domain: int
    tasks: tuple[int, ...]  # for which its frames have labels
    frames: Sequence[int]  # their indices in the data set
    share: float  # of the training frames, up to a common factor


class StepSampler:
    """Batches of (round, data set, index), `accumulate` of them for each optimizer step, without an end of epoch.

    Stride scheduling: each frame is drawn from the pool whose count is furthest below its share, so that the ratio of
    the shares is exact in the long run. Each step holds at least one frame of each data set and one for each task. A
    pool is shuffled once per pass (round); the order depends only on seed, pool and round. Raises ValueError when a
    step has too few frames for that.
    """

    def __init__(self, mixture: Mixture, config: Config, steps: int, first_step: int = 0) -> None:
        self.pools, self.steps, self.first_step = mixture.pools(), steps, first_step
        self.seed, self.accumulate = config.seed, config.accumulate
        self.step_frames = frames_of_step(config)
        # Each step must hold a frame from one pool of each of these lists. The shortest list comes first.
        needs = [[p for p, pool in enumerate(self.pools) if pool.domain == d] for d in range(len(mixture.parts))]
        tasks = sorted({task for pool in self.pools for task in pool.tasks})
        needs += [[p for p, pool in enumerate(self.pools) if task in pool.tasks] for task in tasks]
        self.needs = sorted(needs, key=len)
        taken = [0.0] * len(self.pools)
        least, frames = len(self._required(taken)), self.step_frames
        if least > frames:
            raise ValueError(
                f"batch_size x accumulate is {frames}, but a step needs {least} frames to hold one of each data set "
                "and one for each task"
            )

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step) * self.accumulate

    def _required(self, taken: Sequence[float]) -> list[int]:
        """The pools of the frames that a step must hold; of several choices, the pool furthest below its share."""
        chosen: list[int] = []
        for need in self.needs:
            if not set(need) & set(chosen):
                chosen.append(min(need, key=lambda pool: ((taken[pool] + 1) / self.pools[pool].share, pool)))
        return chosen

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        taken = [0] * len(self.pools)
        orders: dict[int, tuple[int, np.ndarray]] = {}  # pool -> its round and that round's permutation
        for step in range(self.steps):
            chosen = self._required(taken)
            for pool in chosen:
                taken[pool] += 1
            while len(chosen) < self.step_frames:
                pool = min(range(len(self.pools)), key=lambda pool: ((taken[pool] + 1) / self.pools[pool].share, pool))
                taken[pool] += 1
                chosen.append(pool)
            if step < self.first_step:
                continue
            # Round-robin: each batch of the step, in each process, gets its part of each pool.
            frames = []
            for pool, count in sorted(Counter(chosen).items()):
                size = len(self.pools[pool].frames)
                for number in range(taken[pool] - count, taken[pool]):
                    turn, position = divmod(number, size)
                    if orders.get(pool, (-1,))[0] != turn:
                        orders[pool] = turn, np.random.default_rng([self.seed, pool, turn]).permutation(size)
                    index = self.pools[pool].frames[orders[pool][1][position]]
                    frames.append((turn, self.pools[pool].domain, int(index)))
            for batch in range(self.accumulate):
                part = batch * distributed.count() + distributed.rank()
                yield frames[part :: self.accumulate * distributed.count()]


def frames_of_step(config: Config) -> int:
    """In all processes together."""
    return config.batch_size * config.accumulate * distributed.count()


def steps_per_epoch(mixture: Mixture, config: Config) -> int:
    """Steps that go through as many frames as all data sets have labeled. Raises ValueError when there are too few."""
    frames, labeled = frames_of_step(config), sum(len(pool.frames) for pool in mixture.pools())
    if labeled < frames:
        several = {"batch_size": 1, "accumulate": config.accumulate, "processes": distributed.count()}
        setting = " x ".join(name for name, number in several.items() if number > 1 or name == "batch_size")
        raise ValueError(f"{setting} is {frames}, but the data set has {labeled} training frames with labels")
    return labeled // frames


def train_loader(mixture: Mixture, config: Config, steps: int, first_step: int = 0, pin: bool = False) -> DataLoader:
    """The batches {"image": (B, 3, h, w) uint8, task: target, "domain", "weight"} of the steps from `first_step`."""
    together = functools.partial(collate, tasks=mixture.tasks)
    sampler = StepSampler(mixture, config, steps, first_step)
    return loader_of(mixture, config, pin, batch_sampler=sampler, collate_fn=together)
