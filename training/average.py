"""Averaged weights: over the steps of a training, which are evaluated and kept, and of several trainings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from model import Network


class Average:
    """Exponential moving average of the weights and of the batch-norm statistics."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    def update(self, network: Network) -> None:
        self.updates += 1
        # Short memory at first, so that the initial weights are soon forgotten.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = (
            [value for value in part.state_dict().values() if value.is_floating_point()]
            for part in (self.network, network)
        )
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def average_with(network: Network, others: Mapping[Path, Network]) -> None:
    """Gives the network the mean of its own weights and those of others, {file: network}, batch-norm statistics
    included: of trainings that began with the same weights it is often better than each (Wortsman et al., arXiv
    2203.05482). Raises ValueError, which names the file, for another network or other tasks.
    """
    own = network.state_dict()
    for path, other in others.items():
        if reason := _differs(network, other):
            raise ValueError(f"{path}: {reason}; only weights of the same network and tasks have a mean")
    states = [other.state_dict() for other in others.values()]
    for name, value in own.items():
        if value.is_floating_point():  # the rest are counters
            value.copy_(torch.stack([value.double(), *(state[name].double() for state in states)]).mean(0))


def _differs(network: Network, other: Network) -> str:
    """In what two networks differ; "" = in nothing that keeps their weights from having a mean."""
    for name in ("encoder", "decoder"):
        if getattr(network.config, name) != getattr(other.config, name):
            return f"its {name} is {getattr(other.config, name)}, not {getattr(network.config, name)}"
    if network.tasks.keys() != other.tasks.keys():
        return f"its tasks are {', '.join(other.tasks)}, not {', '.join(network.tasks)}"
    for name, task in network.tasks.items():
        if not other.tasks[name].continues(task):
            return f"{name}: {other.tasks[name].misfit(task.section())}"
    shapes, others = ({name: value.shape for name, value in item.state_dict().items()} for item in (network, other))
    changed = next((name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)), "")
    return f"{changed} is not the same" if changed else ""
