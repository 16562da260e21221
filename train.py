"""Trains one network for all tasks.

    python train.py                                        # the generated rooms, on a laptop
    python train.py --config configs/nyudv2_resnet50.yaml  # NYUDv2, on a GPU
    python train.py --resume runs/x                        # go on where a run stopped
    torchrun --nproc-per-node 8 -- train.py --config FILE --run runs/x    # a process for each GPU

A run folder holds config.yaml, log.jsonl (a line a report), TensorBoard events, last.pt and best.pt.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

import distributed
from config import Config, add_settings, plain
from dataset import Frames, batches_of, eval_loader
from model import Network, build_network, count_cost
from tasks import Task
from training.best import Best, choose_best
from training.data import cameras_of, load_data, some_labels
from training.evaluation import accumulate, values_of
from training.frozen import to_train_mode
from training.log import Log
from training.mixture import Mixture, frames_of_step, steps_per_epoch, train_loader
from training.resume import locked, resume_run, start_from, start_run
from training.step import Training, check_finite
from training.worst_frames import draw_frame, predict_frame
from user_input.flags import Parser
from utils import machine, pick_device, pick_precision, run, seed_everything, setup_cpu, whole_file

# ---------------------------------------------------------------------------------------------- reports


def summary(training: Training, mixture: Mixture, val: Mapping[str, Frames], epoch_steps: int) -> str:
    """The first lines of a training."""
    config, device = training.config, training.device
    parameters, operations = count_cost(training.evaluated, *config.crop)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    cost = f"{parameters:,} parameters, {operations / 1e9:.2f} G multiply-adds at {config.crop[1]}x{config.crop[0]}"
    weights = ", ".join(f"{name} (weight {config.loss_weights.get(name, 1):g})" for name in training.learned)
    kept = f"; kept: {', '.join(config.keep)}" if config.keep else ""
    lines = [
        f"device    {machine(device)}, {str(training.precision).removeprefix('torch.')}, {versions}",
        f"network   {config.encoder}, {config.decoder}, {cost}",
        f"tasks     {weights}, {config.task_weighting}{kept}",
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
    if training.teachers:
        lines.append(f"teachers  {len(config.teachers)}, of {', '.join(training.teachers.taught)}")
    lines.append(f"steps     {epoch_steps} an epoch, {training.total_steps} in all, {config.accumulate} batches each")
    # Of a text of many lines, such as a .cfg file, config.yaml has the rest.
    settings = {name: str(value).partition("\n")[0] for name, value in plain(config).items()}
    lines.append(f"settings  {' '.join(f'{name}={value}' for name, value in settings.items())}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- training


def evaluate_all(
    network: Network, loaders: Mapping[str, DataLoader], device: torch.device, precision: torch.dtype
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """{"task/metric": value}, or {"data set/task/metric": value} with several data sets; and pictures of metrics.

    The network must be in eval mode.
    """
    values, charts = {}, {}
    for name, loader in loaders.items():
        prefix = f"{name}/" if len(loaders) > 1 else ""
        tasks = loader.dataset.tasks
        metrics = accumulate(network, loader, device, precision, tasks=tasks)
        values |= {prefix + key: value for key, value in values_of(metrics).items()}
        for task, item in metrics.items():
            charts |= {f"{prefix}{task}/{key}": chart for key, chart in tasks[task].charts(item).items()}
    return values, charts


def mean_losses(steps: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, float]:
    """The mean of each loss over the steps that have it."""
    names = dict.fromkeys(name for _, losses in steps for name in losses)
    having = {name: [losses[name] for _, losses in steps if name in losses] for name in names}
    return {name: torch.stack(values).mean().item() for name, values in having.items()}


@dataclass(frozen=True)
class Run:
    """What the loop of a training works with."""

    folder: Path
    training: Training
    loader: DataLoader
    val_loaders: Mapping[str, DataLoader]
    best: Best
    epoch_steps: int
    first_step: int
    log: Log


class Progress:
    """The losses and times since the last report."""

    def __init__(self) -> None:
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.checked = 0  # how many of them were found to be finite
        self.waited_s, self.since = 0.0, time.monotonic()

    def check(self) -> None:
        """Raises ValueError for a loss that is not finite."""
        check_finite(self.pending[self.checked :])
        self.checked = len(self.pending)

    def report(self, run: Run, done: int) -> None:
        """Writes the means since the last report to the log."""
        elapsed, training = time.monotonic() - self.since, run.training
        run.log.losses(done, mean_losses(self.pending), {
            "images_per_s": len(self.pending) * frames_of_step(training.config) / elapsed,
            "waiting_for_data": self.waited_s / elapsed, **training.learning_rates(),
            **{f"weight/{name}": value for name, value in training.weighting.factors().items()},
            "epoch": done / run.epoch_steps,
        })  # fmt: skip
        self.__init__()


def train(config: Config, folder: Path, resume: Mapping[str, object] | None = None) -> None:
    """Trains into the run folder; `resume` is the content of its last.pt."""
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # also for the thread that pins memory
    setup_cpu(config.threads, device)
    seed_everything(config.seed)
    tasks, mixture, val = load_data(config, resume)
    best = choose_best(config, tasks, val)
    total = steps_per_epoch(mixture, config) * config.epochs
    if resume and resume["training"]["data_steps"] >= total:
        print(f"{folder} is complete: {config.epochs} epochs")
        return
    run = prepare(config, folder, resume, tasks, mixture, val, best, device)
    torch.backends.cudnn.benchmark = run.training.has_one_size
    loop(run)
    run.log.close()
    if distributed.is_main():
        print(f"best {best.name} {run.training.best:.4f}, in {folder / 'best.pt'}")


def prepare(
    config: Config,
    folder: Path,
    resume: Mapping[str, object] | None,
    tasks: Mapping[str, Task],
    mixture: Mixture,
    val: Mapping[str, Frames],
    best: Best,
    device: torch.device,
) -> Run:
    """Builds the network, restores or saves the first state, and prints what will be trained."""
    precision = pick_precision(config.precision, device, training=True)
    epoch_steps, pin = steps_per_epoch(mixture, config), device.type == "cuda"
    total = epoch_steps * config.epochs
    domains = {name: frames.tasks for name, frames in val.items()}
    network = build_network(config, tasks, domains, load_encoder=not (resume or config.init))
    network.cameras = cameras_of(mixture)
    started = ""
    if not resume:
        start_heads(network, mixture)
        started = f"init      {start_from(network, Path(config.init))}\n" if config.init else ""
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    training = Training(network, config, device, precision, total)
    if resume:
        training.restore(resume, folder / "last.pt")
    if device.type == "cuda":  # other channels are dropped in each process, and after a stop not the first ones again
        torch.cuda.manual_seed((config.seed + training.data_steps) * distributed.count() + distributed.rank())
    if distributed.is_main():
        for part in folder.glob(".*.tmp"):  # of a checkpoint that was being written when the run was killed
            part.unlink()
        print(f"run       {folder}\n{started}{summary(training, mixture, val, epoch_steps)}", flush=True)
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(plain(config), sort_keys=False))
    to_train_mode(network)
    if config.compile:
        network.encoder.compile()
        network.decoder.compile()
    if not resume:
        training.save(folder / "last.pt", resumable=True)  # so that --resume works from the first step on
    first_step = training.data_steps
    loader = train_loader(mixture, config, total, first_step, pin)
    val_loaders = {name: eval_loader(frames, config, pin) for name, frames in val.items()}
    log = Log(folder if distributed.is_main() else None, total, first_step)
    return Run(folder, training, loader, val_loaders, best, epoch_steps, first_step, log)


@torch.no_grad()
def start_heads(network: Network, mixture: Mixture) -> None:
    """Lets the heads begin at the mean of some training labels where a task wants it: roads are not 0.7 m away."""
    for name, task in network.tasks.items():
        bias = task.first_output(some_labels(mixture, name))
        if bias is not None:
            network.heads[name][-1].bias.fill_(bias)


def loop(run: Run) -> None:
    """All steps from the first one on; saves and exits when a signal asks for it."""
    training, config, stop, progress = run.training, run.training.config, StopRequest(), Progress()
    batches, saved_at = batches_of(run.loader), time.monotonic()
    for done in range(run.first_step + 1, training.total_steps + 1):
        began = time.monotonic()
        try:
            step = [next(batches) for _ in range(config.accumulate)]
        except (ValueError, OSError, RuntimeError):  # a file is missing or damaged, or a loader process died
            progress.check()
            training.save(run.folder / "last.pt", resumable=True)
            raise
        progress.waited_s += time.monotonic() - began
        progress.pending.append((done, training.take_step(step)))
        run.log.bar.update()

        epoch_ended = done % run.epoch_steps == 0
        late = config.save_minutes and time.monotonic() - saved_at > 60 * config.save_minutes
        due, stopping = ask_all(bool(late) and distributed.is_main(), stop.requested, done, epoch_ended)
        if done % config.log_every == 0 or epoch_ended or due or stopping:
            progress.check()
        if done % config.log_every == 0 or done == training.total_steps:
            progress.report(run, done)
        if epoch_ended:
            training.end_epoch()
            epoch = done // run.epoch_steps
            if epoch % config.eval_every == 0 or epoch == config.epochs:
                began = time.monotonic()
                evaluate_and_keep(run, epoch, done)
                progress.since += time.monotonic() - began
        if epoch_ended or due or stopping:
            training.save(run.folder / "last.pt", resumable=True)
            saved_at = time.monotonic()
        if stopping and done < training.total_steps:
            run.log.close()
            if distributed.is_main():
                print(f"stopped after step {done}; go on with: python train.py --resume {run.folder}")
            sys.exit(128 + stopping)


ASK_EVERY = 10  # steps; each question makes the processes wait for each other


def ask_all(due: int, stopping: int, done: int, epoch_ended: bool) -> tuple[int, int]:
    """Whether any process wants to save, and the signal that any of them got. Not asked in every step."""
    if distributed.count() > 1 and done % ASK_EVERY and not epoch_ended:
        return 0, 0
    due, stopping = distributed.highest([due, stopping])
    return due, stopping


def evaluate_and_keep(run: Run, epoch: int, done: int) -> None:
    """Evaluates, logs metrics and pictures, and writes best.pt if the network is the best so far."""
    training, best, log = run.training, run.best, run.log
    network, device = training.evaluated, training.device
    precision = pick_precision(training.config.precision, device)  # evaluate.py's: the same numbers
    distributed.as_in_main(network)  # the batch-norm statistics of the processes differ
    # In eval mode until it is saved: without an average this is the network that is trained.
    network.eval()
    torch.backends.cudnn.benchmark = False  # frames have many sizes
    training.metrics, charts = evaluate_all(network, run.val_loaders, device, precision)
    if best.name not in training.metrics:
        split = training.config.val_split
        raise ValueError(f"best_metric: the split {split!r} has no labels for {best.name!r}")
    improved = best.improves(training.metrics[best.name], training.best)
    title = f"epoch {epoch}/{training.config.epochs}{' (best)' if improved else ''}"
    log.metrics(done, title, training.metrics, best.headlines)
    for name, chart in charts.items():
        log.picture(done, f"val/{name}", chart)
    for name, loader in run.val_loaders.items() if distributed.is_main() else ():
        for index in range(min(3, len(loader.dataset))):
            frames, sample = loader.dataset, loader.dataset[index]
            size = tuple(sample["image"].shape[1:])  # the predictions need not be larger than they are shown
            found = predict_frame(network, frames, sample, size, device, precision)
            picture = draw_frame(frames.tasks, sample, found, size)
            log.picture(done, f"val/{name}/{index}", picture)
    if improved:
        training.best = training.metrics[best.name]
        training.save(run.folder / "best.pt", resumable=False)
    torch.backends.cudnn.benchmark = training.has_one_size
    to_train_mode(training.network)


class StopRequest:
    """Ctrl-C and SIGTERM: the current step is finished and saved first. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    parser = Parser(
        description="Trains one network for all tasks. Settings are those of config.py, which explains them."
    )
    add_settings(parser)
    parser.add_argument("--run", metavar="FOLDER", help="where to write; default: runs/<date and time>-<encoder>")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with this run")
    arguments = parser.parse_args()
    folder, config, content = start_run(arguments) if not arguments.resume else resume_run(arguments)
    with locked(folder), distributed.together(pick_device(config.device)):
        train(config, folder, content)


if __name__ == "__main__":
    run(main)
