"""One step of training: optimizer, schedule, averaged weights, and what last.pt must hold to go on."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
from checkpoints import save_checkpoint
from config import Config, plain
from model import Network, freeze_batch_norm
from networks.encoders import load_matching
from tasks import tasks_to_plain
from training.weighting import build_weighting
from utils import autocast, git_commit

ADVICE = "Lower --lr_encoder and --lr_decoder, or set --precision fp32 or --clip_norm 1"


def build_optimizer(network: Network, config: Config, weighting: nn.Module | None = None) -> torch.optim.Optimizer:
    """Groups by part (encoder, or decoder and heads) and by whether the tensor decays (weights of convolutions do).

    What a task weighting learns has a group of its own, with ten times the decoder's rate.
    """
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
    if weighting is not None and (learned := list(weighting.parameters())):
        # AdamW moves a number by about the rate in a step, and a log variance has several units to go.
        rate = 10 * config.lr_decoder
        rates = {"base_lr": rate, "lr": rate, "weight_decay": 0.0}
        settings.append({"name": "weighting, no decay", "params": learned, **rates})
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


def convert_sync_batchnorm(network: Network, device: torch.device) -> None:
    """Batch norm over the frames of all processes. Raises ValueError on a CPU, for which PyTorch has none."""
    from timm.layers import convert_sync_batchnorm as convert  # PyTorch's own loses the activations in timm's

    if device.type != "cuda":
        raise ValueError("sync_bn: PyTorch has it for GPUs only; set --sync_bn false")
    network.encoder, network.decoder = convert(network.encoder), convert(network.decoder)


def check_finite(pending: list[tuple[int, dict[str, Tensor]]]) -> None:
    """Raises ValueError for the first loss that is not finite. Reads the losses of many steps at once, because
    each reading makes a GPU wait."""
    for step, losses in pending:
        for name, value in losses.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"step {step}: the {name} loss is {float(value)}; the last checkpoint is from before it. {ADVICE}"
                )


class Passes(nn.Module):
    """A network whose forward pass gives all that a step needs: what the heads share, and their raw outputs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shared = self.network.shared(images)
        return shared, self.network.heads_of(shared)


class Training:
    """What a run consists of and what its last.pt must bring back: weights, average, optimizer, scaler, counters.

    In several processes each takes its part of a step's frames, and all make the same update: that of one process
    with all of the frames, but for batch norm, whose statistics are those of one process's frames (or, with sync_bn,
    of all).
    """

    def __init__(
        self, network: Network, config: Config, device: torch.device, precision: torch.dtype, total_steps: int
    ) -> None:
        self.network, self.config, self.device, self.precision = network, config, device, precision
        self.total_steps = total_steps
        if config.freeze_bn:
            freeze_batch_norm(network)
        self.average = Average(network, config.ema) if config.ema else None
        self.passes: nn.Module = Passes(network)
        if distributed.count() > 1:
            if config.task_weighting == "upgrad":
                raise ValueError("task_weighting: upgrad compares gradients of whole steps: one process only")
            if config.sync_bn:
                convert_sync_batchnorm(network, device)
            self.passes = DistributedDataParallel(self.passes, [device] if device.type == "cuda" else None)
        self.weighting = build_weighting(config.task_weighting, list(network.tasks), config.loss_weights).to(device)
        self.optimizer = build_optimizer(network, config, self.weighting)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.step, self.data_steps = 0, 0  # steps of the optimizer, and of the data: fp16 leaves some out
        self.rate = 0.0  # what the learning rates were last multiplied with
        self.epoch_losses: dict[str, Tensor] = {}  # task -> (2,) sum of its losses in this epoch, and of steps
        self.best: float | None = None
        self.metrics: dict[str, float] = {}

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated and kept."""
        return self.average.network if self.average else self.network

    def take_step(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """An optimizer step on batches of `dataset.train_loader`. Returns the mean losses by name: those of the tasks,
        and with several data sets or with labels of teachers also those of each, data set/task[/teacher]."""
        frames = self.count_frames(batches)
        sums = {name: torch.zeros((), device=self.device) for name in frames}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            # Gradients go through the network of processes once a step.
            alone = contextlib.nullcontext() if last or distributed.count() == 1 else self.passes.no_sync()
            with alone:
                self.accumulate(batch, frames, sums)
        self.update()
        self.data_steps += 1
        if distributed.count() > 1:
            totals = distributed.reduced(torch.stack(list(sums.values())))
            sums = dict(zip(sums, totals, strict=True))
        means = {name: value / frames[name] for name, value in sums.items()}
        for task in self.network.tasks:
            if task in means:
                entry = torch.stack([means[task], torch.ones_like(means[task])])
                self.epoch_losses[task] = self.epoch_losses[task] + entry if task in self.epoch_losses else entry
        return means

    def end_epoch(self) -> None:
        """Tells the task weighting how the epoch went."""
        self.weighting.end_epoch({task: float(total / count) for task, (total, count) in self.epoch_losses.items()})
        self.epoch_losses = {}

    def groups(self, batch: Mapping[str, Tensor], task: str) -> dict[tuple[str, float], list[int]]:
        """{(data set, weight): the frames with a label for the task}, from the CPU's copy: no GPU is waited for."""
        weights = batch["weight"][:, list(self.network.tasks).index(task)].tolist()
        names = list(self.network.domains)
        found: dict[tuple[str, float], list[int]] = {}
        for frame, (domain, weight) in enumerate(zip(batch["domain"].tolist(), weights, strict=True)):
            if weight:
                found.setdefault((names[domain], weight), []).append(frame)
        return found

    def group_name(self, task: str, domain: str, weight: float) -> str:
        name = f"{domain}/{task}" if len(self.network.domains) > 1 else task
        return name if weight == 1 else f"{name}/teacher"

    def count_frames(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, int]:
        """How many labelled frames of the step there are for each task and each group, in all processes."""
        counts: dict[str, int] = {}
        for task in self.network.tasks:  # each name, also of what only another process has
            names = [self.group_name(task, domain, weight) for weight in (1, 0) for domain in self.network.domains]
            counts |= dict.fromkeys((task, *names), 0)
        for batch in batches:
            for task in self.network.tasks:
                for (domain, weight), members in self.groups(batch, task).items():
                    for name in dict.fromkeys((task, self.group_name(task, domain, weight))):
                        counts[name] += len(members)
        totals = zip(counts, distributed.add_up(list(counts.values())), strict=True)
        return {name: total for name, total in totals if total}

    def accumulate(self, batch: Mapping[str, Tensor], frames: Mapping[str, int], sums: dict[str, Tensor]) -> None:
        """Adds a batch's gradients to those of the step, and its losses to `sums`; `frames` are those of the step."""
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        images = batch["image"].to(self.device, non_blocking=True, memory_format=layout)
        with autocast(self.device, self.precision):
            shared, outputs = self.passes(images)
        losses: dict[str, Tensor] = {}
        portions: dict[str, float] = {}  # of the step's labelled frames
        stride = self.config.loss_stride
        for task, raws in outputs.items():
            target = batch[task].to(self.device, non_blocking=True)[..., stride // 2 :: stride, stride // 2 :: stride]
            for (domain, weight), members in self.groups(batch, task).items():
                own, raw, label = self.network.domains[domain][task], raws, target
                if len(members) < len(images):
                    chosen = torch.tensor(members).to(self.device, non_blocking=True)
                    raw, label = raw[chosen], target[chosen]
                value = own.loss(own.select(raw), label)
                # A frame without a label for the task adds nothing; each other one adds the same, in whichever of
                # the step's batches and in whatever company it is.
                part = (weight * len(members) / frames[task]) * value
                losses[task] = losses[task] + part if task in losses else part
                portions[task] = portions.get(task, 0.0) + len(members) / frames[task]
                for name in dict.fromkeys((task, self.group_name(task, domain, weight))):
                    sums[name] = sums[name] + len(members) * value.detach()
        if distributed.count() == 1:
            self.weighting.backward(losses, shared, self.scaler.scale, portions)
            return
        # DistributedDataParallel waits for a gradient of every parameter, also of a head without labels here. It takes
        # the mean over the processes, and a step's loss is the sum of theirs.
        nothing = sum(raw.float().mean() for raw in outputs.values()) * 0.0
        losses = {task: value + nothing for task, value in losses.items()}
        if losses:
            self.weighting.backward(
                losses, shared, lambda value: self.scaler.scale(value * distributed.count()), portions
            )
        else:
            self.scaler.scale(nothing).backward()

    def update(self) -> None:
        """The optimizer step that follows on the gradients."""
        for parameter in self.weighting.parameters() if distributed.count() > 1 else ():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = distributed.reduced(gradient) / distributed.count()
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
        """Writes a checkpoint; of several processes, the main one does.

        Raises ValueError, and leaves the last one as it is, when the weights are not finite.
        """
        if not distributed.is_main():
            return
        values = [value for value in self.network.state_dict().values() if value.is_floating_point()]
        if not torch.stack(torch._foreach_norm(values)).isfinite().all():
            raise ValueError(f"step {self.data_steps}: the weights are not finite; {path} stays as it was. {ADVICE}")
        content: dict[str, object] = {
            "config": plain(self.config), "tasks": tasks_to_plain(self.network.tasks),
            "domains": {name: tasks_to_plain(tasks) for name, tasks in self.network.domains.items()},
            "network": self.evaluated.state_dict(), "metrics": self.metrics, "step": self.step, "commit": git_commit(),
        }  # fmt: skip
        if resumable:
            content["training"] = {
                "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "weighting": self.weighting.state_dict(), "scaler": self.scaler.state_dict(),
                "average_updates": self.average.updates if self.average else 0,
                "data_steps": self.data_steps, "epoch_losses": self.epoch_losses, "best": self.best,
                "rng": torch.get_rng_state(), "processes": distributed.count(),
            }  # fmt: skip
        save_checkpoint(path, content)

    def restore(self, content: Mapping[str, object], path: Path) -> None:
        state = content["training"]
        load_matching(self.network, state["network"], path)
        self.weighting.load_state_dict(state["weighting"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            load_matching(self.average.network, content["network"], path)
            self.average.updates = state["average_updates"]
        torch.set_rng_state(state["rng"])
        self.epoch_losses = {task: value.to(self.device) for task, value in state["epoch_losses"].items()}
        self.data_steps, self.best = state["data_steps"], state["best"]
        self.step, self.metrics = content["step"], content["metrics"]
