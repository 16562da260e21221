"""One step of training: the losses of all its batches, the update, averaged weights, and the state in last.pt."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
from config import Config, plain
from geometry import Pixels
from model import Network
from networks.checkpoints import save_checkpoint
from networks.encoders import load_matching
from tasks import tasks_to_plain
from tasks.base import Target
from training.average import Average
from training.depthwise import faster_depthwise
from training.frozen import learned_maps, learned_tasks, to_train_mode
from training.mixture import frames_of_step
from training.optimizer import build_optimizer, rate_factor, restore_optimizer
from training.teachers import Teachers
from training.weighting import build_weighting
from utils import autocast, git_commit

ADVICE = "Lower --lr_encoder and --lr_decoder, or set --precision fp32 or --clip_norm 1"


def convert_sync_batchnorm(network: Network, device: torch.device) -> None:
    """Batch norm over the frames of all processes. Raises ValueError on a CPU, for which PyTorch has none."""
    from timm.layers import convert_sync_batchnorm as convert  # PyTorch's own loses the activations in timm's

    if device.type != "cuda":
        raise ValueError("sync_bn: PyTorch has it for GPUs only; set --sync_bn false")
    network.encoder, network.decoder = convert(network.encoder), convert(network.decoder)
    for name, head in network.heads.items():
        # A two-stage head is left out by a process whose frames have no labels for it: the others would wait.
        if not getattr(head, "needs_target", False):
            network.heads[name] = convert(head)


def check_finite(pending: Sequence[tuple[int, Mapping[str, Tensor]]]) -> None:
    """Raises ValueError for the first loss that is not finite.

    Called every `log_every` steps, not every step, because reading a loss waits for the GPU. Reads all in one copy.
    """
    losses = [(step, name, value) for step, values in pending for name, value in values.items()]
    if not losses:
        return
    for (step, name, _), value in zip(losses, torch.stack([item[2] for item in losses]).tolist(), strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"step {step}: the {name} loss is {value}; the last checkpoint is from before it. {ADVICE}"
            )


class Group(NamedTuple):
    """Labels whose losses are averaged together."""

    task: str
    domain: str  # the data set
    taught: bool  # by a teacher


class Labels(NamedTuple):
    """A group's labels in one batch."""

    frames: list[int]  # which frames of the batch
    target: Target  # on the CPU
    weight: float  # of the target, see Task.weight
    importance: float  # 1, or config.teacher_weight


class Total(NamedTuple):
    """What a group has in a whole step, in all processes."""

    frames: float
    weight: float


class Passes(nn.Module):
    """A network whose forward pass returns the map that the heads share, and their raw outputs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, targets: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        shared = self.network.shared(images)
        return shared, self.network.heads_of(shared, images.shape[-2:], targets)


class Training:
    """The state of a run, which last.pt stores and restores: weights, average, optimizer, scaler, counters.

    Each of several processes takes its part of a step's frames, and all make the same update: that of one process with
    all of the frames. Exceptions: batch norm uses the statistics of one process's frames (with sync_bn, of all), and
    berHu's threshold and Dice are computed over one micro-batch of one process.
    """

    def __init__(
        self, network: Network, config: Config, device: torch.device, precision: torch.dtype, total_steps: int
    ) -> None:
        self.network, self.config, self.device, self.precision = network, config, device, precision
        self.total_steps = total_steps
        to_train_mode(network)
        self.learned = learned_tasks(network)
        # Those whose heads choose by the target what they compute; their raw outputs are losses of frames.
        needing = [name for name in self.learned if getattr(network.heads[name], "needs_target", False)]
        self.sampled = {name: network.tasks[name] for name in needing}
        # Whether all convolutions on a GPU see one size; those of two-stage heads see as many regions as were found.
        self.has_one_size = device.type == "cuda" and not self.sampled
        self.average = Average(network, config.ema) if config.ema else None
        self.teachers = None
        if config.teachers:
            paths, own = [Path(item) for item in config.teachers], {name: network.tasks[name] for name in self.learned}
            self.teachers = Teachers(paths, own, config.long_side, device, precision)
        self.passes: nn.Module = Passes(network)
        if distributed.count() > 1:
            if config.task_weighting == "upgrad":
                raise ValueError("task_weighting: upgrad compares gradients of whole steps: one process only")
            if config.sync_bn:
                convert_sync_batchnorm(network, device)
            self.passes = DistributedDataParallel(self.passes, [device] if device.type == "cuda" else None)
        self.weighting = build_weighting(config.task_weighting, self.learned, config.loss_weights).to(device)
        self.optimizer = build_optimizer(network, config, self.weighting)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.step, self.data_steps = 0, 0  # of the optimizer, and of the data: fp16 skips some updates
        self.commit = git_commit()  # of the code that runs, whatever is committed while it trains
        self.epoch_losses: dict[str, Tensor] = {}  # task -> (2,) sum of its losses in this epoch, and of steps
        self.best: float | None = None
        self.metrics: dict[str, float] = {}

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated and saved: the average, or without one the network itself."""
        return self.average.network if self.average else self.network

    def take_step(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """An optimizer step on batches of `mixture.train_loader`. Returns the mean losses by name: those of the tasks,
        and with several data sets or with labels of teachers also those of each, data set/task[/teacher]."""
        pixels = self.loss_pixels(tuple(batches[0]["image"].shape[-2:]))
        parts = [self.split(batch, pixels) for batch in batches]
        totals = self.count_labels(parts)
        sums = {group: torch.zeros((), device=self.device) for group in totals}
        taught = self.teachers.taught if self.teachers else ()
        imitated = {task: torch.zeros((), device=self.device) for task in taught}
        for number, (batch, labels) in enumerate(zip(batches, parts, strict=True)):
            last = number == len(batches) - 1
            # Gradients go through the network of processes once a step.
            alone = contextlib.nullcontext() if last or distributed.count() == 1 else self.passes.no_sync()
            with alone:
                self.accumulate(batch, labels, pixels, totals, sums, imitated)
        self.update()
        self.data_steps += 1
        if distributed.count() > 1:
            reduced = distributed.reduced(torch.stack([*sums.values(), *imitated.values()])).unbind()
            sums = dict(zip(sums, reduced[: len(sums)], strict=True))
            imitated = dict(zip(imitated, reduced[len(sums) :], strict=True))
        return self.means(sums, totals) | {f"{task}/imitation": value for task, value in imitated.items()}

    def means(self, sums: Mapping[Group, Tensor], totals: Mapping[Group, Total]) -> dict[str, Tensor]:
        """The step's losses by name, from the sums of its groups. A task's is the mean over its labeled frames."""
        means: dict[str, Tensor] = {}
        for task in self.network.tasks:
            groups = [group for group in sums if group.task == task]
            if not groups:
                continue
            values = {group: sums[group] / (totals[group].weight or 1.0) for group in groups}
            frames = sum(totals[group].frames for group in groups)
            means |= {self.group_name(group): value for group, value in values.items()}
            means[task] = sum(value * (totals[group].frames / frames) for group, value in values.items())
            entry = torch.stack([means[task], torch.ones_like(means[task])])
            self.epoch_losses[task] = self.epoch_losses[task] + entry if task in self.epoch_losses else entry
        return means

    def end_epoch(self) -> None:
        """Gives the epoch's mean losses to the task weighting."""
        self.weighting.end_epoch({task: float(total / count) for task, (total, count) in self.epoch_losses.items()})
        self.epoch_losses = {}

    def loss_pixels(self, size: tuple[int, int]) -> Pixels:
        """The pixels of this step's views at which the losses are computed: equal in all processes, and after a resume.

        A new offset for each step, so that every pixel is used in the long run.
        """
        stride = self.config.loss_stride
        top, left = np.random.default_rng([self.config.seed, self.data_steps]).integers(stride, size=2).tolist()
        return Pixels(size, stride, top, left)

    def split(self, batch: Mapping[str, Tensor], pixels: Pixels) -> dict[Group, Labels]:
        """The labels of a batch by group, on the CPU, at `pixels`: full-size labels never go to the device."""
        names, parts = list(self.network.domains), {}
        for number, task in enumerate(self.learned):
            members: dict[Group, list[int]] = {}
            rows = zip(batch["domain"].tolist(), batch["weight"][:, number].tolist(), strict=True)
            for frame, (domain, weight) in enumerate(rows):
                if weight:
                    members.setdefault(Group(task, names[domain], weight != 1), []).append(frame)
            for group, frames in members.items():
                own = self.network.domains[group.domain][task]
                target = own.thin(batch[task], pixels)
                target = own.move(target if len(frames) == len(target) else own.pick(target, frames), Tensor.contiguous)
                parts[group] = Labels(frames, target, own.weight(target), float(batch["weight"][frames[0], number]))
        return parts

    def group_name(self, group: Group) -> str:
        name = f"{group.domain}/{group.task}" if len(self.network.domains) > 1 else group.task
        return f"{name}/teacher" if group.taught else name

    def count_labels(self, parts: Sequence[Mapping[Group, Labels]]) -> dict[Group, Total]:
        """The labeled frames of the step and what their labels weigh, for each group, in all processes."""
        # Also the groups that only other processes have.
        groups = itertools.starmap(Group, itertools.product(self.network.tasks, self.network.domains, (False, True)))
        counts = {group: [0.0, 0.0] for group in groups}
        for group, labels in itertools.chain.from_iterable(part.items() for part in parts):
            counts[group][0] += len(labels.frames)
            counts[group][1] += labels.weight
        summed = distributed.add_up(list(itertools.chain.from_iterable(counts.values())))
        pairs = zip(summed[::2], summed[1::2], strict=True)
        totals = {group: Total(*pair) for group, pair in zip(counts, pairs, strict=True)}
        return {group: total for group, total in totals.items() if total.frames}

    def accumulate(
        self,
        batch: Mapping[str, Tensor],
        labels: Mapping[Group, Labels],
        pixels: Pixels,
        totals: Mapping[Group, Total],
        sums: dict[Group, Tensor],
        imitated: dict[str, Tensor],
    ) -> None:
        """Adds a batch's gradients to those of the step, and its losses to `sums` and, against the teachers, as its
        part of the step's mean, to `imitated`; `totals` are those of the step."""
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        images = batch["image"].to(self.device, non_blocking=True, memory_format=layout)
        # Whole, with the frames that have no label.
        targets = {task: own.move(own.thin(batch[task], pixels), self.upload) for task, own in self.sampled.items()}
        faster = faster_depthwise(self.device, self.precision, self.config.compile)
        with autocast(self.device, self.precision), faster:
            shared, outputs = self.passes(images, targets) if targets else self.passes(images)
        shared = learned_maps(self.network, shared)
        losses: dict[str, Tensor] = {}
        portions: dict[str, float] = {}  # of the step's labeled frames
        for group, (frames, target, _, importance) in labels.items():
            own, raw = self.network.domains[group.domain][group.task], outputs[group.task]
            if len(frames) < len(images):
                raw = raw[self.upload(torch.tensor(frames))]
            total, _ = own.loss(own.sample(own.select(raw), pixels), own.move(target, self.upload))
            sums[group] += total.detach()
            # The mean over the group's labeled pixels of the whole step, weighted by the group's share of the task's
            # labeled frames: a sparsely labeled data set counts as its frames do.
            in_step = sum(item.frames for other, item in totals.items() if other.task == group.task)
            scale = importance * totals[group].frames / in_step / (totals[group].weight or 1.0)
            losses[group.task] = losses.get(group.task, 0.0) + scale * total
            portions[group.task] = portions.get(group.task, 0.0) + len(frames) / in_step
        for task, value in self.teachers.losses(images, outputs).items() if self.teachers else ():
            part = len(images) / frames_of_step(self.config)
            losses[task] = losses.get(task, 0.0) + self.config.imitation * part * value
            imitated[task] += part * value.detach()
            portions.setdefault(task, 0.0 if any(group.task == task for group in totals) else part)
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

    def upload(self, tensor: Tensor) -> Tensor:
        """To the device, without waiting for it: a GPU copies pinned memory while it computes."""
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)

    def update(self) -> None:
        """The optimizer step that follows on the gradients."""
        for parameter in self.weighting.parameters() if distributed.count() > 1 else ():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = distributed.reduced(gradient) / distributed.count()
        factor = rate_factor(self.config, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 0.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # fp16: the scaler skips an update whose gradients overflow, and lowers its scale. The schedule waits.
        if self.scaler.is_enabled() and self.scaler.get_scale() < scale:
            return
        self.step += 1
        if self.average:
            self.average.update(self.network)

    def learning_rates(self) -> dict[str, float]:
        """Those of the last update, as the optimizer has them."""
        rates = {group["name"].partition(",")[0]: group["lr"] for group in self.optimizer.param_groups}
        return {f"lr_{part}": rates[part] for part in ("encoder", "decoder") if part in rates}

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
            "cameras": self.network.cameras,
            "network": self.evaluated.state_dict(), "metrics": self.metrics, "step": self.step, "commit": self.commit,
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
        """Continues from the content of last.pt, which `resume.check_state` has checked. Raises ValueError."""
        state = content["training"]
        load_matching(self.network, state["network"], path)
        try:
            self.weighting.load_state_dict(state["weighting"])
            restore_optimizer(self.optimizer, state["optimizer"])
            # Empty where the run had no scaler before: then it starts with its default scale.
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as problem:
            words = " ".join(str(problem).split())
            raise ValueError(f"{path}: its training state does not fit this network ({words})") from None
        if self.average:
            load_matching(self.average.network, content["network"], path)
            self.average.updates = state["average_updates"]
        torch.set_rng_state(state["rng"])
        self.epoch_losses = {task: value.to(self.device) for task, value in state["epoch_losses"].items()}
        self.data_steps, self.best = state["data_steps"], state["best"]
        self.step, self.metrics = content["step"], content["metrics"]
