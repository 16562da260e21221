"""Speed of training: a step on synthetic data, the loop of a configuration, validation. Run by benchmark.py."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.timing import in_turn, median_and_range, print_table, some_tasks
from config import Config
from dataset import Frames, eval_loader
from model import build_network
from tasks import Depth, Segmentation, Task
from training.data import load_data
from training.depthwise import faster_depthwise
from training.evaluation import accumulate, values_of
from training.mixture import train_loader
from training.step import Training
from utils import autocast, pick_device, pick_precision, setup_cpu

BLOCKS = 3  # of the loop, after one to warm up
VALIDATIONS = 3


def bare_pass(training: Training, height: int, width: int) -> Callable[[], None]:
    """Forward and backward of the network on one synthetic batch: no losses, no optimizer, no data."""
    network, batch = training.network, training.config.batch_size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=training.device)
    images = images.to(memory_format=torch.channels_last)

    def call() -> None:
        faster = faster_depthwise(training.device, training.precision, training.config.compile)
        with autocast(training.device, training.precision), faster:
            outputs = network(images)
        sum(value.float().mean() for value in outputs.values()).backward()
        network.zero_grad(set_to_none=True)

    return call


def make_training(config: Config, tasks: Mapping[str, Task], domains: Mapping[str, Mapping[str, Task]]) -> Training:
    device = pick_device(config.device)
    network = build_network(config, tasks, domains).to(device, memory_format=torch.channels_last).train()
    return Training(network, config, device, pick_precision(config.precision, device, training=True), total_steps=10**6)


# ---------------------------------------------------------------------------------------------- a step


def step_calls(config: Config, classes: int, height: int, width: int) -> dict[str, Callable[[], None]]:
    """A training step on synthetic data, and forward and backward alone."""
    tasks, batch = some_tasks(classes), config.batch_size
    training = make_training(config, tasks, {"synthetic": tasks})
    samples = {
        "image": torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8),
        Segmentation.name: torch.randint(0, classes, (batch, height, width)),
        Depth.name: 10 * torch.rand(batch, height, width),
        "domain": torch.zeros(batch, dtype=torch.long),
        "weight": torch.ones(batch, 2),
    }
    return {"step": lambda: training.take_step([samples]), "bare": bare_pass(training, height, width)}


def measure_steps(
    config: Config,
    encoders: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    repeats: int,
    **sizes: int,
) -> list[dict[str, object]]:
    """Milliseconds of `step_calls` for each encoder and batch, all precisions in turn; on a CPU also as it would be
    without utils.setup_cpu."""
    device = pick_device(config.device)
    rows, results = [], []
    # setup_cpu cannot be undone, so the way without it comes first.
    for memory in ("returned", "kept") if device.type == "cpu" else ("",):
        if memory == "kept":
            setup_cpu(config.threads)
        for encoder, batch in itertools.product(encoders, batches):
            setting = dataclasses.replace(config, encoder=encoder, encoder_weights="none", batch_size=batch)
            each = {name: step_calls(dataclasses.replace(setting, precision=name), **sizes) for name in precisions}
            calls = {(name, what): call for name, pair in each.items() for what, call in pair.items()}
            times = in_turn(calls, device, repeats)
            for name in precisions:
                row = {"encoder": encoder, "batch": batch, "precision": name, "memory": memory}
                whole, alone = times[name, "step"], times[name, "bare"]
                step, bare = statistics.median(whole), statistics.median(alone)
                cells = [f"{1000 * batch / step:.1f}", f"{bare / step:.2f}"]
                rows.append([f"`{encoder}`", batch, name, memory, *map(median_and_range, (whole, alone)), *cells])
                results.append(row | {"ms": {"step": whole, "bare": alone}})
    title = f"A training step, {sizes['width']}x{sizes['height']}, {sizes['classes']} classes + depth, channels_last."
    columns = ["encoder", "batch", "precision", "freed memory", "ms a step", "ms forward and backward alone"]
    print_table(title, [*columns, "images/s", "ratio"], rows, repeats)
    return results


# ---------------------------------------------------------------------------------------------- the loop


def measure_loop(config: Config, where: str, repeats: int) -> list[dict[str, object]]:
    """Images per second of the training loop with its data, against forward and backward alone; then validation."""
    setup_cpu(config.threads)
    tasks, mixture, val = load_data(config, None)
    training = make_training(config, tasks, {name: frames.tasks for name, frames in val.items()})
    on_gpu = training.device.type == "cuda"
    batches = iter(train_loader(mixture, config, 10**6, 0, pin=on_gpu))
    bare, waiting_s = bare_pass(training, *config.crop), 0.0

    def loop() -> None:
        nonlocal waiting_s
        began = time.perf_counter()
        step = [next(batches) for _ in range(config.accumulate)]
        waiting_s += time.perf_counter() - began
        training.take_step(step)

    # In blocks: if single calls took turns, the loader would also work during the bare passes.
    rates: dict[str, list[float]] = {"bare": [], "loop": []}
    shares = []
    for block in range(1 + BLOCKS):
        for name, call, images in (("bare", bare, 1), ("loop", loop, config.accumulate)):
            waiting_s, began = 0.0, time.perf_counter()
            for _ in range(repeats):
                call()
            if on_gpu:
                torch.cuda.synchronize(training.device)
            elapsed = time.perf_counter() - began
            if block:  # the first is a warm-up
                rates[name].append(repeats * images * config.batch_size / elapsed)
                shares += [waiting_s / elapsed] if name == "loop" else []
    ratio, share = statistics.median(rates["loop"]) / statistics.median(rates["bare"]), statistics.median(shares)
    print_table(
        f"{where}: `{config.encoder}`, batch {config.batch_size}, {config.crop[1]}x{config.crop[0]}, "
        f"{', '.join(tasks)}; blocks of {repeats} steps.",
        ["forward and backward alone, images/s", "loop, images/s", "ratio", "waiting for data"],
        [[median_and_range(rates["bare"], 1), median_and_range(rates["loop"], 1), f"{ratio:.2f}", f"{share:.1%}"]],
        BLOCKS,
    )
    results = [{"images_per_s": rates, "ratio": ratio, "waiting": share}]
    return results + [measure_validation(training, frames) for frames in val.values()]


def measure_validation(training: Training, frames: Frames) -> dict[str, object]:
    """Seconds of an evaluation on all validation frames, and of its forward passes alone."""
    network, device = training.evaluated, training.device
    precision = pick_precision(training.config.precision, device)
    loader = eval_loader(frames, training.config, pin=device.type == "cuda")
    shapes = [batch["image"].shape for batches in loader for batch in batches]
    images = {shape: torch.zeros(shape, dtype=torch.uint8, device=device) for shape in shapes}
    images = {shape: image.to(memory_format=torch.channels_last) for shape, image in images.items()}

    @torch.inference_mode()
    def forward() -> None:
        with autocast(device, precision):
            for shape in shapes:
                network(images[shape])

    calls = {
        "forward": forward,
        "whole": lambda: values_of(accumulate(network, loader, device, precision, tasks=frames.tasks)),
    }
    times = in_turn(calls, device, VALIDATIONS)
    forward_ms, whole_ms = (statistics.median(times[name]) for name in ("forward", "whole"))
    print_table(
        f"Validation, {len(frames)} frames of {frames.folder.root}.",
        ["forward passes alone, s", "evaluation, s", "ratio"],
        [[f"{forward_ms / 1000:.2f}", f"{whole_ms / 1000:.2f}", f"{whole_ms / forward_ms:.2f}"]],
        VALIDATIONS,
    )
    return {"validation": str(frames.folder.root), "ms": times}
