"""Trains one network for all tasks.

    python train.py                                        # the generated rooms, on a laptop
    python train.py --config configs/nyudv2_resnet50.yaml  # NYUDv2, on a GPU
    python train.py --resume runs/x                        # go on where a run stopped

A run folder holds config.yaml, log.jsonl (a line a report), TensorBoard events, last.pt and best.pt.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import platform
import signal
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import yaml
from torch import Tensor, nn

import rooms
from config import Config, Parser, add_settings, config_from, make_config, near, plain, settings_from
from dataset import Frames, class_frequencies, eval_loader, make_tasks, read_folder, read_list, train_loader
from evaluate import evaluate, predict_batch
from model import Network, build_network, count_cost, freeze_batch_norm, load_matching
from tasks import Task, tasks_from_plain, tasks_to_plain
from utils import (
    Log,
    autocast,
    git_commit,
    machine,
    pick_device,
    pick_precision,
    read_checkpoint,
    run,
    save_checkpoint,
    seed_everything,
    setup_cpu,
    side_by_side,
    whole_file,
)

# What may change when a run is resumed; everything else would make it another training.
RESUMABLE = {
    "data", "workers", "cache", "device", "precision", "channels_last", "compile", "threads", "eval_every",
    "log_every", "save_minutes",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- optimisation


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


# ---------------------------------------------------------------------------------------------- reports


@torch.inference_mode()
def validation_picture(network: Network, frames: Frames, index: int, device: torch.device) -> np.ndarray:
    """A validation frame: the image, then each task's label and prediction."""
    sample = frames[index]
    size = tuple(sample["image"].shape[1:])
    prediction = predict_batch(network, sample["image"][None].to(device), dict.fromkeys(network.tasks, size))
    panels = [("image", sample["image"].permute(1, 2, 0).numpy(), [])]
    for name, task in network.tasks.items():
        shown = prediction[name][0].cpu().numpy()
        label = sample[name].numpy()
        picture = task.draw(label)
        rows = np.linspace(0, picture.shape[0] - 1, size[0]).round().astype(int)
        columns = np.linspace(0, picture.shape[1] - 1, size[1]).round().astype(int)
        panels.append((f"{name}, label", picture[rows][:, columns], []))
        panels.append((f"{name}, predicted", task.draw(shown), task.legend(shown)))
    return side_by_side(panels)


def summary(training: Training, train_frames: Frames, val_frames: Frames, epoch_batches: int, total: int) -> str:
    """The first lines of a training."""
    config, device = training.config, training.device
    parameters, operations = count_cost(training.evaluated, *config.crop)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    cost = f"{parameters:,} parameters, {operations / 1e9:.2f} G multiply-adds at {config.crop[1]}x{config.crop[0]}"
    weights = ", ".join(f"{name} (weight {config.loss_weights.get(name, 1):g})" for name in training.network.tasks)
    frames = f"{len(train_frames)} training and {len(val_frames)} validation frames"
    return "\n".join([
        f"device    {machine(device)}, {str(training.precision).removeprefix('torch.')}, {versions}",
        f"network   {config.encoder}, {cost}",
        f"tasks     {weights}",
        f"data      {config.data}: {frames}, {epoch_batches} batches an epoch, {total} in all",
        f"settings  {' '.join(f'{name}={value}' for name, value in plain(config).items())}",
    ])  # fmt: skip


# ---------------------------------------------------------------------------------------------- training


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


def load_data(config: Config, resume: Mapping[str, object] | None) -> tuple[Frames, Frames]:
    """The training and the validation frames, with the tasks of `config`, or of the checkpoint to resume."""
    if config.data == Config.data and not Path(config.data).exists():
        print(f"{config.data} does not exist: generating it, once")
        rooms.write(Path(config.data), workers=2)
    data = read_folder(config.data)
    tasks = tasks_from_plain(resume["tasks"]) if resume else make_tasks(data, config)
    train_frames = Frames(data, read_list(data, config.train_split), tasks, config, train=True)
    if config.cache:
        train_frames.decode_all()
    if config.class_weights == "log" and not resume:
        for name, task in tasks.items():
            if hasattr(task, "class_weights"):
                weights = 1 / np.log(1.02 + class_frequencies(train_frames, task))
                tasks[name] = dataclasses.replace(task, class_weights=tuple(weights.tolist()))
    return train_frames, Frames(data, read_list(data, config.val_split), tasks, config, train=False)


def train(config: Config, folder: Path, resume: Mapping[str, object] | None = None) -> None:
    """Trains into the run folder; `resume` is the content of its last.pt."""
    # Machine and data
    setup_cpu(config.threads)
    seed_everything(config.seed)
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    train_frames, val_frames = load_data(config, resume)
    tasks = val_frames.tasks
    best_name = config.best_metric or next(f"{name}/{task.best}" for name, task in tasks.items())
    sign = direction(best_name, tasks)
    first_batch = resume["training"]["batches"] if resume else 0
    loader = train_loader(train_frames, config, first_batch, pin=device.type == "cuda")
    val_loader = eval_loader(val_frames, config, pin=device.type == "cuda")
    epoch_batches = loader.batch_sampler.batches_per_epoch
    total = epoch_batches * config.epochs
    if first_batch >= total:
        print(f"{folder} is complete: {config.epochs} epochs")
        return

    # Network
    network = build_network(config, tasks, load_encoder=not resume).to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    training = Training(network, config, device, precision, total)
    if resume:
        training.restore(resume, folder / "last.pt")
    print(f"run       {folder}\n{summary(training, train_frames, val_frames, epoch_batches, total)}", flush=True)
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(plain(config), sort_keys=False))
    network.train()
    if config.freeze_bn:
        freeze_batch_norm(network)
    if config.compile:
        network.compile()

    log = Log(folder, total, first_batch)
    stop = StopRequest()
    pending: list[tuple[int, dict[str, Tensor]]] = []  # losses that were not yet looked at
    saved_at = reported_at = time.monotonic()
    waited = 0.0
    batches = iter(loader)
    for done in range(first_batch + 1, total + 1):
        # Step
        began = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - began
        pending.append((done, training.backward(batch)))
        training.batches = done
        whole_step = done % config.accumulate == 0 or done == total
        if whole_step:
            training.update()
        log.bar.update()

        # Report
        epoch_ended, epoch = done % epoch_batches == 0, done // epoch_batches
        due = config.save_minutes and time.monotonic() - saved_at > 60 * config.save_minutes
        if done % config.log_every == 0 or epoch_ended or due or stop.requested:
            check_finite(pending)
        if done % config.log_every == 0 or done == total:
            elapsed = time.monotonic() - reported_at
            means = {name: sum(float(losses[name]) for _, losses in pending) / len(pending) for name in tasks}
            log.losses(done, means, {
                "images_per_s": len(pending) * config.batch_size / elapsed, "waiting_for_data": waited / elapsed,
                "lr_encoder": config.lr_encoder * training.rate, "lr_decoder": config.lr_decoder * training.rate,
                "epoch": done / epoch_batches,
            })  # fmt: skip
            pending.clear()
            waited, reported_at = 0.0, time.monotonic()

        # Evaluate
        if epoch_ended and (epoch % config.eval_every == 0 or epoch == config.epochs):
            began = time.monotonic()
            training.metrics = evaluate(training.evaluated, val_loader, device, precision)
            if best_name not in training.metrics:
                raise ValueError(f"best_metric: the split {config.val_split!r} has no labels for {best_name!r}")
            is_best = training.best is None or sign * training.metrics[best_name] > sign * training.best
            log.metrics(done, f"epoch {epoch}/{config.epochs}{' (best)' if is_best else ''}", training.metrics,
                        [f"{name}/{task.best}" for name, task in tasks.items()])  # fmt: skip
            for index in range(min(3, len(val_frames))):
                log.picture(done, f"val/{index}", validation_picture(training.evaluated, val_frames, index, device))
            if is_best:
                training.best = training.metrics[best_name]
                training.save(folder / "best.pt", resumable=False)
            reported_at += time.monotonic() - began

        # Save. Between accumulated batches there is a part of a gradient that no checkpoint holds.
        if whole_step and (epoch_ended or due or stop.requested):
            training.save(folder / "last.pt", resumable=True)
            saved_at = time.monotonic()
            if stop.requested and done < total:
                log.close()
                print(f"stopped after batch {done}; go on with: python train.py --resume {folder}")
                sys.exit(128 + stop.requested)
    log.close()
    print(f"best {best_name} {training.best:.4f}, in {folder / 'best.pt'}")


def direction(metric: str, tasks: Mapping[str, Task]) -> int:
    """1 when a higher value of "task/metric" is better, -1 when a lower one is. Raises ValueError for others."""
    known = {f"{name}/{key}": sign for name, task in tasks.items() for key, sign in task.directions.items()}
    task, _, name = metric.partition("/")
    stem = f"{task}/{name.partition('/')[0]}"  # segmentation/iou/chair is of the kind segmentation/iou
    if stem not in known:
        raise ValueError(f"best_metric is {metric!r}{near(metric, known)}; allowed: {', '.join(known)}")
    return known[stem]


class StopRequest:
    """Ctrl-C and SIGTERM: the step in hand is finished and saved first. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    parser = Parser(description="Trains one network for all tasks. Every setting of config.py is a flag.")
    add_settings(parser)
    parser.add_argument("--run", metavar="FOLDER", help="where to write; default: runs/<date and time>-<encoder>")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with this run")
    arguments = parser.parse_args()
    if not arguments.resume:
        config = config_from(arguments)
        folder = Path(arguments.run or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.encoder}")
        if (folder / "last.pt").exists():
            raise ValueError(f"{folder} holds a run: go on with --resume {folder}, or choose another --run")
        folder.mkdir(parents=True, exist_ok=True)
        train(config, folder)
        return
    if arguments.run or arguments.config:
        raise ValueError("--resume takes the run's own settings: leave out --run and --config")
    folder = Path(arguments.resume)
    folder = folder.parent if folder.suffix == ".pt" else folder
    content = read_checkpoint(folder / "last.pt")
    if "training" not in content:
        raise ValueError(f"{folder / 'last.pt'}: it holds no state to go on from")
    changes = settings_from(arguments)
    for name in changes:
        if name not in RESUMABLE:
            raise ValueError(f"--{name} cannot change when a run is resumed; these can: {', '.join(sorted(RESUMABLE))}")
    config = make_config(changes, "command line", make_config(content["config"], str(folder / "last.pt")))
    train(config, folder, resume=content)


if __name__ == "__main__":
    run(main)
