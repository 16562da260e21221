"""Trains one network for all tasks.

    python train.py                                        # the generated rooms, on a laptop
    python train.py --config configs/nyudv2_resnet50.yaml  # NYUDv2, on a GPU
    python train.py --resume runs/x                        # go on where a run stopped

A run folder holds config.yaml, log.jsonl (a line a report), TensorBoard events, last.pt and best.pt.
"""

from __future__ import annotations

import dataclasses
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
from torch import Tensor

import rooms
from config import Config, Parser, add_settings, config_from, make_config, near, plain, settings_from
from dataset import Frames, class_frequencies, eval_loader, make_tasks, read_folder, read_list, train_loader
from evaluate import evaluate, predict_batch
from model import Network, build_network, count_cost, freeze_batch_norm
from optimize import Training, check_finite
from tasks import Task, tasks_from_plain
from utils import (
    Log,
    machine,
    pick_device,
    pick_precision,
    read_checkpoint,
    run,
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
