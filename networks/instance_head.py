"""The head for instances, networks/decoders.py's with a first value of its own for the heat of centers."""

from __future__ import annotations

import math

from torch import Tensor, nn

from networks.decoders import HEADS

PRIOR = 0.02  # of the heat at the beginning: most pixels are far from a center (as in arXiv 1708.02002, section 4.1)


class InstanceHead(nn.Module):
    """A map (B, width, h, w) -> (B, channels, h, w): first the heat of centers as a logit, then `channels - 1` more."""

    def __init__(self, kind: str, width: int, channels: int) -> None:
        super().__init__()
        self.layers = HEADS[kind](width, channels)

    def initialise(self) -> None:
        self.layers.initialise()
        nn.init.constant_(self.layers[-1].bias[:1], -math.log(1 / PRIOR - 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
