"""Trains one network for all tasks.

    python train.py                                        # the generated rooms, on a laptop
    python train.py --config configs/nyudv2_resnet50.yaml  # NYUDv2, on a GPU
    python train.py --resume runs/x                        # go on where a run stopped
    torchrun --nproc-per-node 8 -- train.py --config FILE --run runs/x    # a process for each GPU

A run folder holds config.yaml, log.jsonl (a line a report), TensorBoard events, last.pt and best.pt.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

import distributed
from config import Config, Parser, add_settings, near, plain
from dataset import (
    Frames,
    Mixture,
    batches_of,
    eval_loader,
    frames_of_step,
    steps_per_epoch,
    train_loader,
)
from drawing import side_by_side
from folders import label_tasks
from model import Network, build_network, count_cost, freeze_batch_norm, predict_batch
from tasks import Task
from training.data import load_data
from training.evaluation import accumulate, values_of
from training.log import Log
from training.resume import resume_run, start_run
from training.step import Training, check_finite
from utils import machine, pick_device, pick_precision, run, seed_everything, setup_cpu, whole_file

# ---------------------------------------------------------------------------------------------- reports


@torch.inference_mode()
def validation_picture(network: Network, frames: Frames, index: int, device: torch.device) -> np.ndarray:
    """A validation frame: the image, then each task's label and prediction."""
    sample = frames[index]
    size = tuple(sample["image"].shape[1:])
    image = sample["image"][None].to(device)
    prediction = predict_batch(network, image, dict.fromkeys(network.tasks, size), tasks=frames.tasks)
    panels = [("image", sample["image"].permute(1, 2, 0).numpy(), [])]
    for name, task in frames.tasks.items():
        shown = prediction[name][0].cpu().numpy()
        label = sample[name].numpy()
        picture = task.draw(label)
        rows = np.linspace(0, picture.shape[0] - 1, size[0]).round().astype(int)
        columns = np.linspace(0, picture.shape[1] - 1, size[1]).round().astype(int)
        panels.append((f"{name}, label", picture[rows][:, columns], []))
        panels.append((f"{name}, predicted", task.draw(shown), task.legend(shown)))
    return side_by_side(panels)


def summary(training: Training, mixture: Mixture, val: Mapping[str, Frames], epoch_steps: int) -> str:
    """The first lines of a training."""
    config, device = training.config, training.device
    parameters, operations = count_cost(training.evaluated, *config.crop)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    cost = f"{parameters:,} parameters, {operations / 1e9:.2f} G multiply-adds at {config.crop[1]}x{config.crop[0]}"
    weights = ", ".join(f"{name} (weight {config.loss_weights.get(name, 1):g})" for name in training.network.tasks)
    lines = [
        f"device    {machine(device)}, {str(training.precision).removeprefix('torch.')}, {versions}",
        f"network   {config.encoder}, {config.decoder}, {cost}",
        f"tasks     {weights}, {config.task_weighting}",
    ]
    for part, share in zip(mixture.parts, mixture.shares, strict=True):
        name, labels = part.folder.name, []
        for task, of_frames in zip(part.tasks, zip(*map(part.weights, range(len(part))), strict=True), strict=True):
            taught = sum(task in frame.taught for frame in part.frames) if config.teacher_weight else 0
            human = sum(weight > 0 for weight in of_frames) - taught
            teacher = f" + {taught} of a teacher (weight {config.teacher_weight:g})" if taught else ""
            labels.append(f"{human} {task}{teacher}")
        lines.append(
            f"data      {name}: share {share / sum(mixture.shares):.0%}, {len(part)} training frames "
            f"({', '.join(labels)}), {len(val[name])} validation frames"
        )
    lines.append(f"steps     {epoch_steps} an epoch, {training.total_steps} in all, {config.accumulate} batches each")
    lines.append(f"settings  {' '.join(f'{name}={value}' for name, value in plain(config).items())}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- training


def evaluate_all(
    network: Network, loaders: Mapping[str, DataLoader], device: torch.device, precision: torch.dtype
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """{"task/metric": value}, or {"data set/task/metric": value} with several data sets; and pictures of metrics."""
    values, charts = {}, {}
    was_training = network.training
    network.eval()
    for name, loader in loaders.items():
        prefix = f"{name}/" if len(loaders) > 1 else ""
        tasks = loader.dataset.tasks
        metrics = accumulate(network, loader, device, precision, tasks=tasks)
        values |= {prefix + key: value for key, value in values_of(metrics).items()}
        for task, item in metrics.items():
            charts |= {f"{prefix}{task}/{key}": chart for key, chart in tasks[task].charts(item).items()}
    network.train(was_training)
    if network.config.freeze_bn:
        freeze_batch_norm(network)
    return values, charts


def mean_losses(steps: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, float]:
    """The mean of each loss over the steps that have it."""
    names = dict.fromkeys(name for _, losses in steps for name in losses)
    having = {name: [losses[name] for _, losses in steps if name in losses] for name in names}
    return {name: torch.stack(values).mean().item() for name, values in having.items()}


def train(config: Config, folder: Path, resume: Mapping[str, object] | None = None) -> None:
    """Trains into the run folder; `resume` is the content of its last.pt."""
    # Machine and data
    setup_cpu(config.threads)
    seed_everything(config.seed)
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    tasks, mixture, val = load_data(config, resume)
    headlines = {
        f"{name}/{task}/{own.best}" if len(val) > 1 else f"{task}/{own.best}": own.directions[own.best]
        for name, frames in val.items()
        for task, own in frames.tasks.items()
        if task in label_tasks(frames.folder)
    }
    best_name = config.best_metric or next(iter(headlines))
    sign = direction(best_name, tasks, list(val))
    epoch_steps = steps_per_epoch(mixture, config)
    total = epoch_steps * config.epochs
    first_step = resume["training"]["data_steps"] if resume else 0
    loader = train_loader(mixture, config, total, first_step, pin=device.type == "cuda")
    val_loaders = {name: eval_loader(frames, config, pin=device.type == "cuda") for name, frames in val.items()}
    if first_step >= total:
        print(f"{folder} is complete: {config.epochs} epochs")
        return

    # Network
    domains = {name: frames.tasks for name, frames in val.items()}
    network = build_network(config, tasks, domains, load_encoder=not resume).to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    training = Training(network, config, device, precision, total)
    if resume:
        training.restore(resume, folder / "last.pt")
    if distributed.is_main():
        for part in folder.glob(".*.tmp"):  # a checkpoint in whose writing the run was killed
            part.unlink()
        print(f"run       {folder}\n{summary(training, mixture, val, epoch_steps)}", flush=True)
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(plain(config), sort_keys=False))
    network.train()
    if config.freeze_bn:
        freeze_batch_norm(network)
    if config.compile:
        network.encoder.compile()
        network.decoder.compile()

    log = Log(folder if distributed.is_main() else None, total, first_step)
    if not resume:
        training.save(folder / "last.pt", resumable=True)  # so that --resume works from the first step on
    stop = StopRequest()
    pending: list[tuple[int, dict[str, Tensor]]] = []  # losses that were not yet looked at
    saved_at = reported_at = time.monotonic()
    waited = 0.0
    batches = batches_of(loader)
    for done in range(first_step + 1, total + 1):
        # Step
        began = time.monotonic()
        try:
            step = [next(batches) for _ in range(config.accumulate)]
        except (ValueError, OSError, RuntimeError):  # a file is gone or damaged, or a loader process died
            check_finite(pending)
            training.save(folder / "last.pt", resumable=True)
            raise
        waited += time.monotonic() - began
        pending.append((done, training.take_step(step)))
        log.bar.update()

        # Report
        epoch_ended, epoch = done % epoch_steps == 0, done // epoch_steps
        late = config.save_minutes and time.monotonic() - saved_at > 60 * config.save_minutes
        due, stopping = distributed.highest([bool(late) and distributed.is_main(), stop.requested])
        if done % config.log_every == 0 or epoch_ended or due or stopping:
            check_finite(pending)
        if done % config.log_every == 0 or done == total:
            elapsed = time.monotonic() - reported_at
            means = mean_losses(pending)
            frames = len(pending) * frames_of_step(config)
            log.losses(done, means, {
                "images_per_s": frames / elapsed, "waiting_for_data": waited / elapsed,
                "lr_encoder": config.lr_encoder * training.rate, "lr_decoder": config.lr_decoder * training.rate,
                **{f"weight/{name}": value for name, value in training.weighting.factors().items()},
                "epoch": done / epoch_steps,
            })  # fmt: skip
            pending.clear()
            waited, reported_at = 0.0, time.monotonic()

        # Evaluate
        if epoch_ended:
            training.end_epoch()
        if epoch_ended and (epoch % config.eval_every == 0 or epoch == config.epochs):
            began = time.monotonic()
            distributed.as_in_main(training.evaluated)  # batch norm's statistics differ
            training.metrics, charts = evaluate_all(training.evaluated, val_loaders, device, precision)
            if best_name not in training.metrics:
                raise ValueError(f"best_metric: the split {config.val_split!r} has no labels for {best_name!r}")
            is_best = training.best is None or sign * training.metrics[best_name] > sign * training.best
            title = f"epoch {epoch}/{config.epochs}{' (best)' if is_best else ''}"
            log.metrics(done, title, training.metrics, list(headlines))
            for name, chart in charts.items():
                log.picture(done, f"val/{name}", chart)
            for name, frames in val.items() if distributed.is_main() else ():
                for index in range(min(3, len(frames))):
                    picture = validation_picture(training.evaluated, frames, index, device)
                    log.picture(done, f"val/{name}/{index}", picture)
            if is_best:
                training.best = training.metrics[best_name]
                training.save(folder / "best.pt", resumable=False)
            reported_at += time.monotonic() - began

        # Save
        if epoch_ended or due or stopping:
            training.save(folder / "last.pt", resumable=True)
            saved_at = time.monotonic()
            if stopping and done < total:
                log.close()
                if distributed.is_main():
                    print(f"stopped after step {done}; go on with: python train.py --resume {folder}")
                sys.exit(128 + stopping)
    log.close()
    if distributed.is_main():
        print(f"best {best_name} {training.best:.4f}, in {folder / 'best.pt'}")


def direction(metric: str, tasks: Mapping[str, Task], domains: Sequence[str]) -> int:
    """1 when a higher value of "task/metric" is better, -1 when a lower one is. Raises ValueError for others.

    With several data sets it is "data set/task/metric".
    """
    prefixes = [f"{name}/" for name in domains] if len(domains) > 1 else [""]
    known = {
        f"{prefix}{name}/{key}": sign
        for prefix in prefixes
        for name, task in tasks.items()
        for key, sign in task.directions.items()
    }
    # segmentation/iou/chair is of the kind segmentation/iou
    stem = next((name for name in known if metric == name or metric.startswith(f"{name}/")), metric)
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
    folder, config, content = start_run(arguments) if not arguments.resume else resume_run(arguments)
    with distributed.together(pick_device(config.device)):
        train(config, folder, content)


if __name__ == "__main__":
    run(main)
