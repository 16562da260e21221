"""The optimizer of a training: groups of parameters, the schedule, and how its state is restored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from config import Config
from model import Network


def build_optimizer(network: Network, config: Config, weighting: nn.Module | None = None) -> torch.optim.Optimizer:
    """Groups by part (encoder, or decoder and heads) and by weight decay.

    Weights of convolutions decay. Biases and scales (one number for each channel, as in batch norm) do not: a scale
    starts at 1, and decay would pull it to 0. The parameters of a task weighting are a group of their own, with ten
    times the decoder's learning rate.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = parameter.numel() > parameter.shape[0]
            groups.setdefault((name.startswith("encoder."), decays), []).append(parameter)
    settings = [
        {
            "name": f"{'encoder' if in_encoder else 'decoder'}, {'decay' if decays else 'no decay'}",
            "params": parameters,
            "base_lr": config.lr_encoder if in_encoder else config.lr_decoder,
            "lr": config.lr_encoder if in_encoder else config.lr_decoder,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (in_encoder, decays), parameters in groups.items()
    ]
    if weighting is not None and (learned := list(weighting.parameters())):
        # AdamW changes a number by about the rate in each step, and a log variance has to change by several units.
        rate = 10 * config.lr_decoder
        rates = {"base_lr": rate, "lr": rate, "weight_decay": 0.0}
        settings.append({"name": "weighting, no decay", "params": learned, **rates})
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(settings, lr=config.lr_decoder, momentum=config.momentum, fused=True)
        # The first step would begin with the memory as it is, and keep it where the scaler of fp16 skips that step.
        for parameter in itertools.chain(*(group["params"] for group in optimizer.param_groups if config.momentum)):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return optimizer
    return torch.optim.AdamW(settings, lr=config.lr_decoder, fused=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Loads moments and step counts; rates and other settings stay those of `optimizer`. Raises ValueError."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or name == "step":
                continue
            if value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")
            # A fused optimizer pairs elements as they lie in memory, and channels_last may have changed since.
            values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def rate_factor(config: Config, step: int, total: int) -> float:
    """The factor on the learning rates at optimizer step `step` of `total`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    factors = {"poly": (1 - progress) ** 0.9, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return factors[config.schedule]
