"""Which checkpoint of a training is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from config import Config
from dataset import Frames
from tasks import Task
from user_input.values import near


@dataclass(frozen=True)
class Best:
    """The metric that best.pt follows."""

    name: str
    sign: int  # 1: higher is better, -1: lower is better
    headlines: tuple[str, ...]  # the deciding metric of each task with validation labels

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than the best so far. NaN is worse than every number."""
        if best is None or math.isnan(best):
            return best is None or not math.isnan(value)
        return self.sign * value > self.sign * best


def choose_best(config: Config, tasks: Mapping[str, Task], val: Mapping[str, Frames]) -> Best:
    """The metric to follow. Raises ValueError when it is unknown, or has no validation labels."""
    labeled = {
        f"{name}/{task}" if len(val) > 1 else task: own
        for name, frames in val.items()
        for number, (task, own) in enumerate(frames.tasks.items())
        if any(frames.weights(index)[number] for index in range(len(frames)))
    }
    if not labeled:
        raise ValueError(f"val_split: the split {config.val_split!r} has no labels for {', '.join(tasks)}")
    headlines = tuple(f"{name}/{own.best}" for name, own in labeled.items())
    name = config.best_metric or headlines[0]
    sign = direction(name, tasks, list(val))
    if not name.startswith(tuple(f"{item}/" for item in labeled)):
        raise ValueError(
            f"best_metric: the split {config.val_split!r} has no labels for {name!r}, only for {', '.join(labeled)}"
        )
    return Best(name, sign, headlines)


def direction(metric: str, tasks: Mapping[str, Task], domains: Sequence[str]) -> int:
    """1 if a higher value of "task/metric" is better, -1 if a lower one is. Raises ValueError for unknown ones.

    With several data sets it is "data set/task/metric".
    """
    prefixes = [f"{name}/" for name in domains] if len(domains) > 1 else [""]
    known = {
        f"{prefix}{name}/{key}": sign
        for prefix in prefixes
        for name, task in tasks.items()
        for key, sign in task.directions.items()
    }
    # segmentation/iou/chair is of the kind segmentation/iou
    stem = next((name for name in known if metric == name or metric.startswith(f"{name}/")), metric)
    if stem not in known:
        raise ValueError(f"best_metric is {metric!r}{near(metric, known)}; allowed: {', '.join(known)}")
    return known[stem]
