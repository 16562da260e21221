"""Averaged weights, which are evaluated and kept."""

from __future__ import annotations

import copy

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
