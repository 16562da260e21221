"""Parts of a network that a training leaves as they are: a frozen encoder, and heads of tasks that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

import distributed
from config import Config
from model import Network, freeze_batch_norm, load_network
from tasks import Task
from user_input.values import near


def check_frozen(config: Config) -> None:
    """Raises ValueError for settings that would keep random weights, or train what is kept."""
    if config.freeze_encoder and not config.init and config.encoder_weights == "none":
        raise ValueError("freeze_encoder: its weights would stay random; give --init or --encoder_weights")
    if config.keep and not config.init:
        raise ValueError(f"keep: {', '.join(config.keep)}: of which network? --init names it")
    if config.keep and not config.freeze_encoder and distributed.count() > 1:
        raise ValueError("keep: with several processes it needs --freeze_encoder true")  # DDP wants all gradients
    both = [name for name in config.keep if name in config.tasks]
    if both:
        raise ValueError(f"keep: {', '.join(both)} is also one of tasks; what is kept is not trained")


def kept_tasks(config: Config) -> dict[str, Task]:
    """The tasks of the network `init` that the setting `keep` names. Raises ValueError, or FileNotFoundError."""
    if not config.keep:
        return {}
    given = load_network(config.init).tasks
    for name in config.keep:
        if name not in given:
            raise ValueError(f"keep: {config.init} has no task {name!r}{near(name, given)}; it has: {', '.join(given)}")
    return {name: given[name] for name in config.keep}


def refuse_new_weights(network: Network, new: Sequence[str], path: Path) -> None:
    """Raises ValueError where `new`, the tensors that did not come from the file, are some of a kept head."""
    for name in network.config.keep:
        missing = [tensor for tensor in new if tensor.startswith((f"heads.{name}.", "encoder."))]
        if missing:
            raise ValueError(
                f"keep: {name} of {path} does not fit this network, such as {missing[0]}; encoder, decoder and "
                "box_layers must be such that its head reads the same maps"
            )


def learned_tasks(network: Network) -> list[str]:
    return [name for name in network.tasks if name not in network.config.keep]


def learned_maps(network: Network, shared: Sequence[Tensor]) -> list[Tensor]:
    """Of the maps of `Network.shared` those that learned tasks read and that depend on weights in training."""
    read = {level for name in learned_tasks(network) for level in network.levels[name]}
    return [item for item, level in zip(shared, network.used, strict=True) if level in read and item.requires_grad]


def to_train_mode(network: Network) -> None:
    """Like `network.train()`, but what the settings freeze stays as it is, batch norm's statistics included."""
    network.train()
    frozen: list[nn.Module] = [network.heads[name] for name in network.config.keep]
    if network.config.freeze_encoder:
        frozen.append(network.encoder)
    elif network.config.freeze_bn:
        freeze_batch_norm(network.encoder)
    for part in frozen:
        part.eval().requires_grad_(False)
