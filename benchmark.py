"""Prints what networks cost.

python benchmark.py                          # parameters, multiply-adds and time of one 640x480 image
python benchmark.py --train --size 320x240   # time of a training step; on a CPU also what utils.setup_cpu saves
python benchmark.py --encoders resnet34 --size 320x240 --classes 11
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch

from config import Config, Parser, convert
from model import Network, build_network, count_cost
from optimize import Training
from tasks import Depth, Segmentation, Task
from utils import class_palette, machine, pick_device, pick_precision, run, setup_cpu

ENCODERS = "mobilenetv2_paper,mobilenetv2_100,tf_efficientnet_lite0,resnet18,resnet34,resnet50,resnet101,resnet152"


def times_ms(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each of `repeats` calls, after two that do not count."""
    times = []
    for number in range(repeats + 2):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(1000 * (time.perf_counter() - began))
    return times


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ({min(times):.0f} .. {max(times):.0f})"


def inference_row(network: Network, height: int, width: int, device: torch.device, repeats: int) -> str:
    images = torch.rand(1, 3, height, width, device=device).to(memory_format=torch.channels_last)
    network.eval()
    with torch.inference_mode():
        times = times_ms(lambda: network(images), device, repeats)
    parameters, operations = count_cost(network, height, width)
    return f"{parameters:,} | {operations / 1e9:.2f} G | {spread(times)}"


def training_row(training: Training, height: int, width: int, repeats: int) -> str:
    batch = training.config.batch_size
    samples = {
        "image": torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8),
        "segmentation": torch.randint(0, training.network.tasks["segmentation"].channels, (batch, height, width)),
        "depth": 10 * torch.rand(batch, height, width),
        "domain": torch.zeros(batch, dtype=torch.long),
        "weight": torch.ones(batch, 2),
    }
    training.network.train()

    def step() -> None:
        training.take_step([samples])

    times = times_ms(step, training.device, repeats)
    return f"{spread(times)} | {1000 * batch / statistics.median(times):.1f}"


def main() -> None:
    parser = Parser(description="Prints what networks cost.")
    parser.add_argument("--encoders", metavar="NAME,NAME,...", help=f"default: {ENCODERS}")
    parser.add_argument("--train", action="store_true", help="time training steps instead of single images")
    parser.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--classes", default="40")
    parser.add_argument("--batch_size", default="8", help="of --train")
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16", "fp16"), help="of --train")
    parser.add_argument("--repeats", default="10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    arguments = parser.parse_args()
    width, height = convert(arguments.size.replace("x", ","), tuple[int, int], "command line: size")
    classes, repeats, batch, threads = (
        convert(getattr(arguments, name), int, f"command line: {name}")
        for name in ("classes", "repeats", "batch_size", "threads")
    )
    if min(width, height) < 32 or not 1 <= classes <= 255 or min(repeats, batch) < 1:
        raise ValueError(
            "command line: size is 32x32 at least, classes are 1 to 255, repeats and batch_size 1 at least"
        )
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    names = tuple(f"class_{number}" for number in range(classes))
    colors = tuple(tuple(color) for color in class_palette()[1 : classes + 1].tolist())
    tasks: dict[str, Task] = {"segmentation": Segmentation(classes=names, colors=colors), "depth": Depth()}
    if threads:
        torch.set_num_threads(threads)
    what = f"Training step, batch {batch}, {precision}" if arguments.train else "Network alone, batch 1, eager fp32"
    print(
        f"{what}, channels_last, {width}x{height}, {classes} classes + depth; {machine(device)}, "
        f"torch {torch.__version__}, Python {platform.python_version()}; median of {repeats} (fastest .. slowest)\n"
    )
    if arguments.train:
        print("| encoder | freed memory | ms a step | images/s |\n|---|---|---|---|")
        encoders = convert(arguments.encoders or Config.encoder, tuple[str, ...], "command line: encoders")
        # What glibc does cannot be undone, so the other way comes first.
        passes = ("returned", "kept") if device.type == "cpu" else ("",)
    else:
        print("| encoder | parameters | multiply-adds | ms |\n|---|---|---|---|")
        encoders = convert(arguments.encoders or ENCODERS, tuple[str, ...], "command line: encoders")
        passes = ("kept",)
    for memory in passes:
        if memory == "kept":
            setup_cpu()
        for encoder in encoders:
            config = Config(encoder=encoder, encoder_weights="none", batch_size=batch)
            network = build_network(config, tasks, {"synthetic": tasks}).to(device, memory_format=torch.channels_last)
            if arguments.train:
                row = training_row(
                    Training(network, config, device, precision, total_steps=100), height, width, repeats
                )
                print(f"| `{encoder}` | {memory} | {row} |", flush=True)
            else:
                print(f"| `{encoder}` | {inference_row(network, height, width, device, repeats)} |", flush=True)


if __name__ == "__main__":
    run(main)
