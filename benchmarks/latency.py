"""What one prediction costs: the networks, and the back ends beside public code's way. Run by benchmark.py."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Options, PeakMemory, bound_ms, in_new_process, in_turn, once_ms, p95, spread, table
from config import near
from deploy.backends import BACKENDS, Backend
from deploy.file_formats import write_openvino
from deploy.predictor import Predictor
from deploy.signature import make_signature
from images import read_image
from model import Network, count_cost
from utils import autocast, pick_precision, setup_cpu

# ---------------------------------------------------------------------------------------------- networks


def measure_networks(options: Options, encoders: tuple[str, ...]) -> list[dict[str, object]]:
    """Size and time of networks alone, eager fp32 in channels_last."""
    return [measure_batch(options, encoders, batch) for batch in options.batches]


def measure_batch(options: Options, encoders: tuple[str, ...], batch: int) -> dict[str, object]:
    results = [in_new_process(measure_network, options, encoder, batch) for encoder in encoders]
    rows = [
        [f"`{item['encoder']}`", f"{item['parameters']:,}", f"{item['multiply_adds'] / 1e9:.2f} G",
         f"{item['memory_mb']:.0f}", spread(item["ms"])]
        for item in results
    ]  # fmt: skip
    columns = ["encoder", "parameters", "multiply-adds", "memory MB", "ms"]
    table(f"Network alone, batch {batch}, eager fp32, channels_last", columns, rows)
    return {"batch": batch, "networks": results}


@torch.inference_mode()
def measure_network(options: Options, encoder: str, batch: int) -> dict[str, object]:
    setup_cpu(options.threads)
    with PeakMemory(options.device) as memory:
        network = options.network(encoder)
        images = torch.rand(batch, 3, options.height, options.width, device=options.device)
        images = images.to(memory_format=torch.channels_last)
        network(images)
    times = in_turn({"network": lambda: network(images)}, options.device, options.repeats)["network"]
    parameters, operations = count_cost(network, options.height, options.width)
    return {
        "encoder": encoder, "parameters": parameters, "multiply_adds": operations, "memory_mb": memory.mb, "ms": times,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- back ends


class Reference:
    """As public code predicts: eager NCHW fp32, raw outputs resized by OpenCV (cubic), argmax by numpy."""

    def __init__(self, network: Network) -> None:
        self.network = network.requires_grad_(False).to(memory_format=torch.contiguous_format)
        self.mean, self.std = (value.cpu().numpy().reshape(3) for value in (network.mean, network.std))

    @torch.enable_grad()  # no weight wants one: what it changes is that pooling is one 5x5, see decoders.max_pool_5x5
    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        height, width = image.shape[:2]
        pixels = ((image / 255 - self.mean) / self.std).transpose(2, 0, 1)[None].astype(np.float32)
        images = torch.from_numpy(pixels).to(self.network.mean.device)
        raws: dict[str, Tensor] = self.network.heads_of(self.network.maps(images))
        full = {
            name: cv2.resize(raw[0].cpu().numpy().transpose(1, 2, 0), (width, height), interpolation=cv2.INTER_CUBIC)
            for name, raw in raws.items()
        }
        classes = full.pop("segmentation").argmax(2).astype(np.uint8)
        return {"segmentation": classes, **{name: np.abs(value) for name, value in full.items()}}


class Plain(Backend):
    """PyTorch as it comes: channels_last and perhaps autocast, nothing folded."""

    name = "plain"

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


def predictors(options: Options, encoder: str, folder: Path) -> dict[str, Callable[[], Predictor]]:
    """{title of a row: what opens it}; `folder` is for files."""
    network, device = options.network(encoder), options.device
    half = pick_precision("auto", device) if device.type == "cuda" else torch.bfloat16
    opened: dict[str, Callable[[], Predictor]] = {
        "channels_last": lambda: options.predictor(Plain(network, device, torch.float32)),
        "autocast": lambda: options.predictor(Plain(network, device, half)),
    }
    for name in BACKENDS:
        opened[name] = lambda name=name: options.predictor(network, name)
    opened["openvino fp32"] = lambda: options.predictor(network, "openvino", "fp32")

    def quantized() -> Predictor:
        path, signature = folder / "int8.xml", make_signature(network, network.tasks, int8=True)
        pixels = torch.from_numpy(options.picture()).permute(2, 0, 1)  # one will do: the ranges do not change the time
        write_openvino(network, signature, path, [pixels])
        return options.predictor(path)

    opened["openvino int8"] = quantized
    for path in options.files:
        opened[path.name] = lambda path=path: options.predictor(path)
    for row in options.rows:
        if row not in opened:
            raise ValueError(f"command line: rows: unknown name {row!r}{near(row, opened)}; known: {', '.join(opened)}")
    return {row: opened[row] for row in options.rows or opened}


def measure_backends(options: Options, encoders: tuple[str, ...]) -> list[dict[str, object]]:
    """Back ends, by default all that are installed, in turn beside the reference."""
    return [measure_backends_of(options, encoder, batch) for encoder in encoders for batch in options.batches]


def measure_backends_of(options: Options, encoder: str, batch: int) -> dict[str, object]:
    image = options.picture()
    images, reference = [image] * batch, Reference(options.network(encoder))
    calls: dict[str, Callable[[], object]] = {"reference": lambda: [reference(item) for item in images]}
    found: dict[str, dict[str, float]] = {"reference": {"first_ms": once_ms(calls["reference"])}}
    arithmetic = {"reference": torch.float32}
    with tempfile.TemporaryDirectory() as folder:
        for title, opened in predictors(options, encoder, Path(folder)).items():
            try:
                found[title] = in_new_process(measure_first, options, encoder, batch, title)
            except ValueError as problem:
                print(f"{title}: left out ({problem})", flush=True)
                continue
            predictor = opened()
            predictor.batch(images)
            calls[title] = lambda predictor=predictor: predictor.batch(images)
            found[title] |= measure_parts(predictor, images, options)
            arithmetic[title] = predictor.backend.arithmetic
    times = in_turn(calls, options.device, options.repeats)
    network = options.network(encoder)
    bounds = {
        dtype: bound_ms(network, options.height, options.width, options.device, dtype)
        for dtype in dict.fromkeys(arithmetic.values())
    }
    parameters, operations = count_cost(network, options.height, options.width)
    base = statistics.median(times["reference"])
    rows = []
    for title, measured in found.items():
        each = [value / batch for value in times[title]]
        middle = statistics.median(each)
        cells = [f"{measured[name]:.{digits}f}" if name in measured else "" for name, digits in COLUMNS.items()]
        bound = max(bounds[arithmetic[title]])
        share = f"{bound * batch / measured['network_ms']:.0%}" if "network_ms" in measured else ""
        ratio = f"{base / batch / middle:.1f}"
        rows.append(
            [
                title,
                name_of(arithmetic[title]),
                *cells,
                spread(each, 1),
                f"{p95(each):.1f}",
                f"{1000 / middle:.1f}",
                ratio,
                share,
            ]
        )
    rooflines = ", ".join(f"{name_of(dtype)} {x:.1f} and {y:.1f} ms" for dtype, (x, y) in bounds.items())
    parts = [name.replace("_", " ") for name in COLUMNS][3:]
    table(
        f"`{encoder}`, {parameters:,} parameters, {operations / 1e9:.2f} G multiply-adds, batch {batch}: from decoded "
        f"uint8 images to full-size predictions.\nRoofline of an image, arithmetic and memory: {rooflines}. Decoding a "
        f"JPEG file of this size: {decode_ms(image, options):.1f} ms.",
        ["back end", "in", "load s", "first call ms", "memory MB", *parts,
         "ms an image", "p95", "images/s", "times faster", "roofline / network"],
        rows,
    )  # fmt: skip
    plain_bounds = {name_of(dtype): values for dtype, values in bounds.items()}
    return {"encoder": encoder, "batch": batch, "roofline_ms": plain_bounds, "ms": times, "backends": found}


def name_of(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "int8")


def measure_first(options: Options, encoder: str, batch: int, title: str) -> dict[str, float]:
    """What it takes to open a back end, and its first call."""
    setup_cpu(options.threads)
    images = [options.picture()] * batch
    with tempfile.TemporaryDirectory() as folder, PeakMemory(options.device) as memory:
        opened = predictors(options, encoder, Path(folder))[title]
        began = time.perf_counter()
        predictor = opened()
        loaded_s = time.perf_counter() - began
        first_ms = once_ms(lambda: predictor.batch(images))
    return {"load_s": loaded_s, "first_ms": first_ms, "memory_mb": memory.mb}


COLUMNS = {  # and digits
    "load_s": 1, "first_ms": 0, "memory_mb": 0, "before_ms": 1, "copies_ms": 1, "network_ms": 1, "after_ms": 1,
}  # fmt: skip


def measure_parts(predictor: Predictor, images: list[np.ndarray], options: Options) -> dict[str, float]:
    """Medians of what the prediction of a batch consists of."""
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
            "network_ms": lambda: backend.outputs(moved),
            "after_ms": lambda: backend.finish(outputs, moved.shape[-2:], sizes, backend.tasks),
        }
        times = in_turn(calls, options.device, options.repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def decode_ms(image: np.ndarray, options: Options) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        cv2.imwrite(str(path), image[..., ::-1])
        return statistics.median(in_turn({"read": lambda: read_image(path)}, options.device, options.repeats)["read"])
