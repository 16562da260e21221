"""How the benchmarks measure: calls in turn, what the machine can do at best, and memory."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import nn

from config import Config, convert
from deploy.backends import Backend
from deploy.predictor import Predictor
from drawing import class_palette
from images import SAMPLE, read_image
from model import Network, build_network, count_cost
from tasks import TASKS, Segmentation, Task
from utils import machine, whole_file

Result = TypeVar("Result")


def in_turn(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of `repeats` calls of each. They take turns, so that what disturbs the machine disturbs all.

    At each turn the first call does not count: it finds the caches, and the threads, of the one before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def once_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def p95(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.95 * len(times)))]


def spread(times: list[float], digits: int = 0) -> str:
    """median (fastest .. slowest)"""
    return f"{statistics.median(times):.{digits}f} ({min(times):.{digits}f} .. {max(times):.{digits}f})"


def conditions(device: torch.device) -> str:
    """The machine of a measurement, in a line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return (
        f"{machine(device)} ({processor}, {os.cpu_count()} cores), torch {torch.__version__}, "
        f"Python {platform.python_version()}, {date.today()}"
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    print(f"\n{title}\n\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n", flush=True)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")


def width_and_height(size: str) -> tuple[int, int]:
    """640x480 -> (640, 480). Raises ValueError."""
    width, height = convert(size.replace("x", ","), tuple[int, int], "command line: size")
    if min(width, height) < 32:
        raise ValueError(f"command line: size is {size}; 32x32 is the least")
    return width, height


def some_tasks(classes: int, count: int = 2) -> dict[str, Task]:
    """The first `count` of all tasks, segmentation with this many classes first."""
    names = tuple(f"class_{number}" for number in range(classes))
    colors = tuple(tuple(color) for color in class_palette()[1 : classes + 1].tolist())
    made: dict[str, Task] = {"segmentation": Segmentation(classes=names, colors=colors)}
    made |= {name: TASKS[name]() for name in TASKS if name not in made}
    return dict(list(made.items())[:count])


@dataclass(frozen=True)
class Options:
    """What is measured, from the command line."""

    width: int
    height: int
    classes: int
    batches: tuple[int, ...]
    precision: str
    repeats: int
    device: torch.device
    source: Network | None  # of a checkpoint or a configuration, instead of encoders with random weights
    files: tuple[Path, ...]
    threads: int
    rows: tuple[str, ...]  # of the table of back ends; none = all

    def network(self, encoder: str, tasks: Mapping[str, Task] | None = None) -> Network:
        """A network that sees images of this size."""
        if self.source is not None:
            network = copy.deepcopy(self.source)
        else:
            tasks = tasks or some_tasks(self.classes)
            network = build_network(Config(encoder=encoder, encoder_weights="none"), tasks, {"synthetic": tasks})
        network.config = dataclasses.replace(network.config, long_side=max(self.width, self.height))
        return network.eval().to(self.device, memory_format=torch.channels_last)

    def predictor(self, source: Network | Path | Backend, backend: str = "auto", precision: str = "") -> Predictor:
        return Predictor(source, backend, str(self.device), precision or self.precision)

    def picture(self) -> np.ndarray:
        """A photo of this size, (H, W, 3) uint8."""
        return cv2.resize(read_image(SAMPLE), (self.width, self.height), interpolation=cv2.INTER_CUBIC)


# ---------------------------------------------------------------------------------------------- the machine's best


def peak_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds a second of a matrix product, the best of a few."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = ((100 * torch.rand(side, side, device=device)).to(dtype) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"product": lambda: a @ b}
    if dtype == torch.int8:
        calls = {"product": lambda: torch._int_mm(a, b)}  # a @ b has no fast way for integers
    elif device.type == "cpu":
        # The same product as a convolution: PyTorch has two libraries, and which is faster depends on the processor.
        image, weight = a.t().reshape(1, side, -1, 32).contiguous(memory_format=torch.channels_last), b[..., None, None]
        calls["convolution"] = lambda: torch.nn.functional.conv2d(image, weight)
    times = in_turn(calls, device, 6)
    return side**3 / (min(map(min, times.values())) / 1000)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that are read and written by a copy larger than the caches, the best of a few."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    best = min(in_turn({"copy": lambda: target.copy_(source)}, device, 8)["copy"])
    return 2 * source.numel() * source.element_size() / (best / 1000)


def traffic(network: Network, height: int, width: int) -> int:
    """Numbers that convolutions read and write for one image: their weights, inputs and outputs."""
    total = 0

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += inputs[0].numel() + output.numel() + sum(item.numel() for item in module.parameters())

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, kinds)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, height, width, device=network.mean.device))
    for hook in hooks:
        hook.remove()
    return total


@torch.inference_mode()
def bound_ms(
    network: Network, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Milliseconds below which an image cannot be, by the multiply-adds and by the memory traffic of convolutions."""
    _, operations = count_cost(network, height, width)
    moved = traffic(network, height, width) * dtype.itemsize
    return 1000 * operations / peak_rate(device, dtype), 1000 * moved / bandwidth(device)


# ---------------------------------------------------------------------------------------------- memory


def in_new_process(call: Callable[..., Result], *arguments: object) -> Result:
    """call(*arguments) where nothing was loaded, compiled or freed before. What it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


class PeakMemory:
    """`with PeakMemory(device) as peak: ...` then peak.mb: by how much memory rose at most, in MB.

    Memory that was freed before may be used again unnoticed: measure in a new process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.mb = device, float("nan")

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *problem: object) -> None:
        if self.device.type == "cuda":
            self.mb = (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e6
        else:
            self.mb = (_status("VmHWM") - self.before) / 1e6


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
