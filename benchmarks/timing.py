"""How the benchmarks measure: calls that take turns, roofline bounds, and peak memory."""

from __future__ import annotations

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

from config import Config
from deploy.backends import Backend
from deploy.predictor import Predictor
from drawing import class_palette
from images import read_image
from model import Network, build_network, count_cost
from tasks import TASKS, Task
from user_input.values import near
from utils import machine, whole_file

Result = TypeVar("Result")
PICTURE = Path("media/sample.jpg")  # its figures are compared over months: not images.SAMPLE, which may change


def in_turn(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """{name: milliseconds of `repeats` calls}. The calls take turns, so that a disturbance of the machine hits all.

    Each turn starts with a call that is not timed: it would find the caches and threads of the call before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def once_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def p95(times: Sequence[float]) -> float:
    """95th percentile, interpolated."""
    return float(np.percentile(times, 95))


def median_and_range(times: Sequence[float], digits: int = 0) -> str:
    """median (fastest .. slowest)"""
    return f"{statistics.median(times):.{digits}f} ({min(times):.{digits}f} .. {max(times):.{digits}f})"


def conditions(device: torch.device) -> str:
    """Machine, versions and date of a measurement, in one line."""
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


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], repeats: int) -> None:
    """Prints a Markdown table whose cells are medians of `repeats` measurements."""
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    print(f"\n{title}\nMedian (fastest .. slowest), n = {repeats}.\n\n{table}\n", flush=True)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(f"written to {path}")


# ---------------------------------------------------------------------------------------------- what is measured

MakeNetwork = Callable[[], Network]  # a function that other processes can be given


def some_tasks(classes: int, count: int = 2) -> dict[str, Task]:
    """The first `count` of all tasks; those with classes have this many."""
    names = tuple(f"class_{number}" for number in range(classes))
    colors = tuple(tuple(color) for color in class_palette()[1 : classes + 1].tolist())
    own = {
        name: {"classes": names, "colors": colors} if hasattr(task, "classes") else {} for name, task in TASKS.items()
    }
    return {name: TASKS[name](**own[name]) for name in list(TASKS)[:count]}


def random_network(config: Config, classes: int, names: Sequence[str] | None = None) -> Network:
    """A network with random weights. names: its tasks; None = those of `config`. Raises ValueError."""
    known, wanted = some_tasks(classes, len(TASKS)), config.tasks if names is None else names
    for name in wanted:
        if name not in known:
            raise ValueError(f"tasks: unknown task {name!r}{near(name, known)}; allowed: {', '.join(known)}")
    tasks = {name: known[name] for name in wanted}
    return build_network(config, tasks, {"synthetic": tasks}, load_encoder=False)


def describe(tasks: Mapping[str, Task]) -> str:
    """The outputs of a network, such as "40 classes + depth"."""
    return " + ".join(f"{len(task.classes)} classes" if hasattr(task, "classes") else name
                      for name, task in tasks.items())  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How predictions are measured."""

    height: int
    width: int
    repeats: int
    device: torch.device
    precision: str = "auto"
    threads: int = 0

    def network(self, make: MakeNetwork) -> Network:
        """A new network that sees images at this size, on the device."""
        network = make()
        network.config = dataclasses.replace(network.config, long_side=max(self.width, self.height))
        return network.eval().to(self.device, memory_format=torch.channels_last)

    def predictor(self, source: Network | Path | Backend, backend: str = "auto", precision: str = "") -> Predictor:
        return Predictor(source, backend, str(self.device), precision or self.precision)

    def picture(self) -> np.ndarray:
        """A generated room of this size, (H, W, 3) uint8."""
        return cv2.resize(read_image(PICTURE), (self.width, self.height), interpolation=cv2.INTER_CUBIC)


# ---------------------------------------------------------------------------------------------- roofline


def peak_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds per second of a large matrix product; the best of six."""
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
    """Bytes per second, read plus written, of a copy larger than the caches; the best of eight."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    best = min(in_turn({"copy": lambda: target.copy_(source)}, device, 8)["copy"])
    return 2 * source.numel() * source.element_size() / (best / 1000)


def traffic(network: Network, height: int, width: int) -> int:
    """Memory traffic of the convolutions for one image, in numbers: weights, inputs and outputs."""
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
    """Roofline: lower bounds in ms for one image, from arithmetic and from memory traffic of the convolutions."""
    _, operations = count_cost(network, height, width)
    moved = traffic(network, height, width) * dtype.itemsize
    return 1000 * operations / peak_rate(device, dtype), 1000 * moved / bandwidth(device)


# ---------------------------------------------------------------------------------------------- memory


def in_new_process(call: Callable[..., Result], *arguments: object) -> Result:
    """call(*arguments) in a fresh process: nothing is loaded, compiled or freed yet. Its exception is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


class PeakMemory:
    """`with PeakMemory(device) as peak: ...`, then peak.mb: the largest rise of memory, in MB.

    Measure in a new process: memory that was freed earlier could be reused without a rise.
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
