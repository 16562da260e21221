"""Latency of one prediction: networks alone, and back ends beside the way of public code. Run by benchmark.py."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import (
    MakeNetwork,
    Options,
    PeakMemory,
    bound_ms,
    describe,
    in_new_process,
    in_turn,
    median_and_range,
    once_ms,
    p95,
    print_table,
)
from deploy.backends import BACKENDS, Backend
from deploy.file_formats import write_openvino
from deploy.predictor import Predictor
from deploy.signature import make_signature
from images import read_image
from model import Network, count_cost
from tasks import DenseTask
from user_input.values import near
from utils import autocast, pick_precision, setup_cpu

# ---------------------------------------------------------------------------------------------- networks


def measure_networks(
    options: Options, networks: Mapping[str, MakeNetwork], batches: Sequence[int]
) -> list[dict[str, object]]:
    """Size, memory and time of networks alone, eager fp32 in channels_last."""
    results = []
    for batch in batches:
        found = [{"encoder": name, **in_new_process(measure_network, options, make, batch)}
                 for name, make in networks.items()]  # fmt: skip
        rows = [
            [f"`{item['encoder']}`", f"{item['parameters']:,}", f"{item['multiply_adds'] / 1e9:.2f} G",
             f"{item['memory_mb']:.0f}", median_and_range(item["ms"])]
            for item in found
        ]  # fmt: skip
        print_table(
            f"Network alone, {options.width}x{options.height}, batch {batch}, {found[0]['outputs']}, eager fp32, "
            "channels_last.",
            ["encoder", "parameters", "multiply-adds", "memory MB", "ms"], rows, options.repeats,
        )  # fmt: skip
        results.append({"batch": batch, "networks": found})
    return results


@torch.inference_mode()
def measure_network(options: Options, make: MakeNetwork, batch: int) -> dict[str, object]:
    setup_cpu(options.threads)
    with PeakMemory(options.device) as memory:
        network = options.network(make)
        images = torch.rand(batch, 3, options.height, options.width, device=options.device)
        images = images.to(memory_format=torch.channels_last)
        network(images)
    times = in_turn({"network": lambda: network(images)}, options.device, options.repeats)["network"]
    parameters, operations = count_cost(network, options.height, options.width)
    return {
        "outputs": describe(network.tasks), "parameters": parameters, "multiply_adds": operations,
        "memory_mb": memory.mb, "ms": times,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- back ends


class Reference:
    """The way of public code: eager NCHW fp32, raw outputs resized by OpenCV (cubic), argmax by numpy."""

    def __init__(self, network: Network) -> None:
        self.network = network.requires_grad_(False).to(memory_format=torch.contiguous_format)
        self.mean, self.std = (value.cpu().numpy().reshape(3) for value in (network.mean, network.std))

    @torch.enable_grad()  # no weight needs one; it makes pooling one 5x5, as in public code: decoders.max_pool_5x5
    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        height, width = image.shape[:2]
        pixels = ((image / 255 - self.mean) / self.std).transpose(2, 0, 1)[None].astype(np.float32)
        images = torch.from_numpy(pixels).to(self.network.mean.device)
        raws: dict[str, Tensor] = self.network.heads_of(self.network.maps(images), images.shape[-2:])
        found = {}
        for name, raw in raws.items():
            if not isinstance(self.network.tasks[name], DenseTask):  # things, which no public code of the kind has
                found[name] = self.network.tasks[name].decode(raw, (height, width))[0].cpu().numpy()
                continue
            small = raw[0].cpu().numpy().transpose(1, 2, 0)
            full = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)
            task = self.network.tasks[name]
            if task.gives == "classes":
                found[name] = full.argmax(2).astype(np.uint8)
            else:
                scores = task.scores(torch.from_numpy(full.transpose(2, 0, 1)[None]), (height, width))
                found[name] = task.decide(scores)[0].numpy()
        return found


class UnfoldedEager(Backend):
    """Plain PyTorch: channels_last and perhaps autocast; batch norms are not folded into the convolutions."""

    name = "unfolded eager"

    def __init__(self, network: Network, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(make_signature(network, network.tasks), device)
        self.network, self.precision = network, precision

    @property
    def arithmetic(self) -> torch.dtype:
        return self.precision

    def run(self, images: Tensor) -> list[Tensor]:
        images = images.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            return list(self.network(images).values())


OpenPredictor = Callable[[], Predictor]


def write_int8(network: Network, path: Path, picture: np.ndarray) -> Path:
    """An int8 file for OpenVINO; one picture (H, W, 3) will do, as the ranges do not change the time."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    write_openvino(network, make_signature(network, network.tasks, int8=True), path, [pixels])
    return path


def predictors(
    options: Options, make: MakeNetwork, folder: Path, files: Sequence[Path], rows: Sequence[str]
) -> dict[str, OpenPredictor]:
    """{row of the table: a function that opens its predictor}, all rows or those named. `folder`: for files.

    Raises ValueError for an unknown row.
    """
    network, device = options.network(make), options.device
    half = pick_precision("auto", device) if device.type == "cuda" else torch.bfloat16
    opened: dict[str, OpenPredictor] = {
        "channels_last": lambda: options.predictor(UnfoldedEager(network, device, torch.float32)),
        "autocast": lambda: options.predictor(UnfoldedEager(network, device, half)),
    }
    for name in BACKENDS:
        opened[name] = lambda name=name: options.predictor(network, name)
    opened["openvino fp32"] = lambda: options.predictor(network, "openvino", "fp32")

    opened["openvino int8"] = lambda: options.predictor(write_int8(network, folder / "int8.xml", options.picture()))
    for path in files:
        opened[path.name] = lambda path=path: options.predictor(path)
    for row in rows:
        if row not in opened:
            raise ValueError(f"--rows: unknown name {row!r}{near(row, opened)}; known: {', '.join(opened)}")
    return {row: opened[row] for row in rows or opened}


def measure_backends(
    options: Options, networks: Mapping[str, MakeNetwork], batches: Sequence[int], files: Sequence[Path] = (),
    rows: Sequence[str] = (), start: bool = True,
) -> list[dict[str, object]]:  # fmt: skip
    """Back ends and files of export.py in turn beside the reference; `rows` names those wanted, () = all.

    start: also what each takes before its first prediction, and its memory, in a process of its own.
    """
    return [
        measure_backends_of(options, name, make, batch, files, rows, start)
        for name, make in networks.items()
        for batch in batches
    ]


def measure_backends_of(
    options: Options,
    name: str,
    make: MakeNetwork,
    batch: int,
    files: Sequence[Path],
    rows: Sequence[str],
    start: bool = True,
) -> dict[str, object]:
    image = options.picture()
    images, reference = [image] * batch, Reference(options.network(make))
    calls: dict[str, Callable[[], object]] = {"reference": lambda: [reference(item) for item in images]}
    found: dict[str, dict[str, float]] = {"reference": {"first_ms": once_ms(calls["reference"])}}
    arithmetic = {"reference": torch.float32}
    with tempfile.TemporaryDirectory() as folder:
        for title, opened in predictors(options, make, Path(folder), files, rows).items():
            try:
                before = in_new_process(measure_first, options, make, batch, title, files) if start else {}
                predictor = opened()
            except ValueError as problem:
                print(f"{title}: left out ({problem})", flush=True)
                continue
            predictor.batch(images)
            calls[title] = lambda predictor=predictor: predictor.batch(images)
            found[title] = before | measure_parts(predictor, images, options)
            arithmetic[title] = predictor.backend.arithmetic
    times = in_turn(calls, options.device, options.repeats)
    network = options.network(make)
    bounds = {
        dtype: bound_ms(network, options.height, options.width, options.device, dtype)
        for dtype in dict.fromkeys(arithmetic.values())
    }
    print_backends(options, name, network, batch, found, times, arithmetic, bounds)
    plain_bounds = {name_of(dtype): values for dtype, values in bounds.items()}
    return {"encoder": name, "batch": batch, "roofline_ms": plain_bounds, "ms": times, "backends": found}


def print_backends(
    options: Options, name: str, network: Network, batch: int, found: Mapping[str, Mapping[str, float]],
    times: Mapping[str, Sequence[float]], arithmetic: Mapping[str, torch.dtype],
    bounds: Mapping[torch.dtype, tuple[float, float]],
) -> None:  # fmt: skip
    """The table of `measure_backends_of`."""
    base, rows = statistics.median(times["reference"]) / batch, []
    finer = 2 if options.device.type == "cuda" else 0  # more digits: there a network takes a millisecond
    for title, measured in found.items():
        each = [value / batch for value in times[title]]
        middle = statistics.median(each)
        cells = [f"{measured[part]:.{digits + (finer if part in PARTS else 0)}f}" if part in measured else ""
                 for part, digits in COLUMNS.items()]  # fmt: skip
        bound = max(bounds[arithmetic[title]])
        share = f"{bound * batch / measured['network_ms']:.0%}" if "network_ms" in measured else ""
        last = [f"{p95(each):.{1 + finer}f}", f"{1000 / middle:.1f}", f"{base / middle:.1f}", share]
        rows.append([title, name_of(arithmetic[title]), *cells, median_and_range(each, 1 + finer), *last])
    parameters, operations = count_cost(network, options.height, options.width)
    digits = 1 + finer
    rooflines = ", ".join(f"{name_of(dtype)} {x:.{digits}f} and {y:.{digits}f} ms" for dtype, (x, y) in bounds.items())
    parts = [part.replace("_", " ") for part in PARTS]
    print_table(
        f"`{name}`, {parameters:,} parameters, {operations / 1e9:.2f} G multiply-adds, {describe(network.tasks)}, "
        f"{options.width}x{options.height}, batch {batch}: from decoded uint8 images to full-size predictions.\n"
        f"Roofline of an image, arithmetic and memory: {rooflines}. Decoding a JPEG file of this size: "
        f"{decode_ms(options.picture(), options):.1f} ms.",
        ["back end", "in", "load s", "first call ms", "memory MB", *parts,
         "ms an image", "p95", "images/s", "times faster", "roofline / network"],
        rows, options.repeats,
    )  # fmt: skip


def name_of(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "int8")


def measure_first(
    options: Options, make: MakeNetwork, batch: int, title: str, files: Sequence[Path]
) -> dict[str, float]:
    """Time and memory for opening a back end and for its first call."""
    setup_cpu(options.threads)
    images = [options.picture()] * batch
    with tempfile.TemporaryDirectory() as folder, PeakMemory(options.device) as memory:
        opened = predictors(options, make, Path(folder), files, (title,))[title]
        began = time.perf_counter()
        predictor = opened()
        loaded_s = time.perf_counter() - began
        first_ms = once_ms(lambda: predictor.batch(images))
    return {"load_s": loaded_s, "first_ms": first_ms, "memory_mb": memory.mb}


COLUMNS = {  # of the table: digits after the point
    "load_s": 1, "first_ms": 0, "memory_mb": 0, "before_ms": 1, "copies_ms": 1, "network_ms": 1, "after_ms": 1,
}  # fmt: skip
PARTS = tuple(COLUMNS)[3:]  # of one prediction


def measure_parts(predictor: Predictor, images: list[np.ndarray], options: Options) -> dict[str, float]:
    """Medians of the parts of a prediction: before the network, copies, network, after it. Where network and what is
    after it are one, that time stands for the network's."""
    backend = predictor.backend
    sizes = dict.fromkeys(backend.tasks, images[0].shape[:2])
    pixels = predictor.pixels(images)
    with torch.inference_mode():
        moved = pixels.to(backend.device)
        outputs = backend.outputs(moved)
        results = backend.finish(outputs, moved.shape[-2:], sizes, backend.tasks)
        calls = {
            "before_ms": lambda: predictor.pixels(images),
            "copies_ms": lambda: (pixels.to(backend.device), [value.cpu() for value in results.values()]),
        }
        if backend.in_one:
            calls["network_ms"] = lambda: backend.predict(moved, sizes)
        else:
            calls["network_ms"] = lambda: backend.outputs(moved)
            calls["after_ms"] = lambda: backend.finish(outputs, moved.shape[-2:], sizes, backend.tasks)
        times = in_turn(calls, options.device, options.repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def decode_ms(image: np.ndarray, options: Options) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        cv2.imwrite(str(path), image[..., ::-1])
        return statistics.median(in_turn({"read": lambda: read_image(path)}, options.device, options.repeats)["read"])
