"""Rare classes are found more often: the logits of a trained network, moved by how frequent each class is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset import class_frequencies
from folders import Folder
from model import Network
from training.evaluation import Settings, frames_of, pick_tasks


def balance_classes(network: Network, folder: Folder, path: Path, settings: Settings, strength: float) -> None:
    """Takes `strength * log(frequency)` off each class's logit, in the bias of its head's last layer, with the
    frequencies of the classes in the training split of a data set: logit adjustment (Menon et al., arXiv 2007.07314).

    path: of the network, for errors. strength: 0 = nothing; 1 = as if all classes were equally frequent. Classes
    without a labeled pixel move as if they were everywhere, so that they are not found more often.
    Raises ValueError where no task of the network has classes and labels there, or its head ends without a bias.
    """
    balanced = False
    for name, task in pick_tasks(network, folder, path).items():
        if name not in folder.sections or not task.class_counts(task.no_label(1, 1)).size:
            continue
        layer = last_layer(network.heads[name])
        if layer is None:
            raise ValueError(f"{path}: the head for {name} ends without a bias, which balancing classes would move")
        frames = frames_of(network, folder, network.config.train_split, {name: task}, settings)
        channels = task.select(torch.arange(layer.out_channels)[None])[0]
        move_logits(layer.bias, channels, class_frequencies(frames, task), strength)
        balanced = True
    if not balanced:
        raise ValueError(f"{path}: none of its tasks has classes for each pixel that {folder.root} labels")


def last_layer(head: nn.Module) -> nn.Conv2d | None:
    """The convolution that gives a head's output; None if it has no bias."""
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    return layers[-1] if layers and layers[-1].bias is not None else None


@torch.no_grad()
def move_logits(bias: Tensor, channels: Tensor, frequencies: np.ndarray, strength: float) -> None:
    """bias (O,); channels (C,): which of its elements are those of the classes; frequencies (C,), their sum 1."""
    shares = torch.from_numpy(np.where(frequencies > 0, frequencies, 1.0))
    bias[channels] -= (strength * shares.log()).to(bias)
