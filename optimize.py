"""One step of training: optimizer, schedule, averaged weights, and what last.pt must hold to go on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from config import Config, plain
from encoders import load_matching
from model import Network, freeze_batch_norm
from tasks import tasks_to_plain
from utils import autocast, git_commit, save_checkpoint


def build_optimizer(network: Network, config: Config) -> torch.optim.Optimizer:
    """Groups by part (encoder, or decoder and heads) and by whether the tensor decays (weights of convolutions do)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoder."), parameter.ndim > 1), []).append(parameter)
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
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr_decoder, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(settings, lr=config.lr_decoder, fused=True)


def rate_factor(config: Config, step: int, total: int) -> float:
    """What the learning rates are multiplied with at optimizer step `step` of `total`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    factors = {"poly": (1 - progress) ** 0.9, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
    return factors[config.schedule]


class Average:
    """Exponential moving average of the weights and of the batch-norm statistics."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    def update(self, network: Network) -> None:
        self.updates += 1
        # Short memory at first: the average should not carry the initial weights along.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = (
            [value for value in part.state_dict().values() if value.is_floating_point()]
            for part in (self.network, network)
        )
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def check_finite(pending: list[tuple[int, dict[str, Tensor]]]) -> None:
    """Raises ValueError for the first loss that is not finite. Reads the losses of many steps at once, because
    each reading makes a GPU wait."""
    for step, losses in pending:
        for name, value in losses.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"step {step}: the {name} loss is {float(value)}; the last checkpoint is from before it. "
                    "Lower --lr_encoder and --lr_decoder, or set --precision fp32 or --clip_norm 1"
                )


class Training:
    """What a run consists of and what its last.pt must bring back: weights, average, optimizer, scaler, counters."""

    def __init__(
        self, network: Network, config: Config, device: torch.device, precision: torch.dtype, batches: int
    ) -> None:
        self.network, self.config, self.device, self.precision = network, config, device, precision
        self.total_steps = math.ceil(batches / config.accumulate)
        if config.freeze_bn:
            freeze_batch_norm(network)
        self.average = Average(network, config.ema) if config.ema else None
        self.optimizer = build_optimizer(network, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.step, self.batches = 0, 0  # optimizer steps; batches of data
        self.rate = 0.0  # what the learning rates were last multiplied with
        self.best: float | None = None
        self.metrics: dict[str, float] = {}

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated and kept."""
        return self.average.network if self.average else self.network

    def backward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds the gradients of a batch; returns {task: loss}."""
        config = self.config
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        images = batch["image"].to(self.device, non_blocking=True, memory_format=layout)
        with autocast(self.device, self.precision):
            outputs = self.network(images)
        stride = config.loss_stride
        losses = {}
        for name, task in self.network.tasks.items():
            target = batch[name].to(self.device, non_blocking=True)
            losses[name] = task.loss(outputs[name], target[..., stride // 2 :: stride, stride // 2 :: stride])
        total = sum(config.loss_weights.get(name, 1.0) * value for name, value in losses.items())
        self.scaler.scale(total / config.accumulate).backward()
        return {name: value.detach() for name, value in losses.items()}

    def update(self) -> None:
        """The optimizer step that follows on `accumulate` batches."""
        self.rate = rate_factor(self.config, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.rate
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 0.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # fp16 leaves out a step whose gradients overflow, and lowers the scale: the schedule waits for it.
        if self.scaler.is_enabled() and self.scaler.get_scale() < scale:
            return
        self.step += 1
        if self.average:
            self.average.update(self.network)

    def save(self, path: Path, resumable: bool) -> None:
        content: dict[str, object] = {
            "config": plain(self.config), "tasks": tasks_to_plain(self.network.tasks),
            "network": self.evaluated.state_dict(), "metrics": self.metrics, "step": self.step, "commit": git_commit(),
        }  # fmt: skip
        if resumable:
            content["training"] = {
                "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "average_updates": self.average.updates if self.average else 0,
                "batches": self.batches, "best": self.best, "rng": torch.get_rng_state(),
            }  # fmt: skip
        save_checkpoint(path, content)

    def restore(self, content: Mapping[str, object], path: Path) -> None:
        state = content["training"]
        load_matching(self.network, state["network"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            load_matching(self.average.network, content["network"], path)
            self.average.updates = state["average_updates"]
        torch.set_rng_state(state["rng"])
        self.batches, self.best = state["batches"], state["best"]
        self.step, self.metrics = content["step"], content["metrics"]
