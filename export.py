"""Writes a checkpoint as a file for other programs, and proves that the file gives what the checkpoint gives.

    python export.py --checkpoint C --format onnx                        # runs/x/best.onnx, images of any size
    python export.py --checkpoint C --format openvino --size 640x480     # .xml and .bin, for this size
    python export.py --checkpoint C --format torch                       # .pt2, torch.export
    python export.py --checkpoint C --format aotinductor --size 640x480  # .pt2 with machine code for this processor
    python export.py --checkpoint C --format openvino --int8             # calibrated on the training frames
    python export.py --checkpoint C --format safetensors                 # the weights and settings, as others read them

The graph takes uint8 RGB (B, H, W, 3) and gives class ids, metres, ... at the size of the image: pre-processing and
post-processing are inside unless --input float or --outputs raw leaves them to the caller. What the outputs mean is in
the file (graph.Signature). `inference.py --checkpoint FILE` runs .onnx, .xml and .safetensors like a checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import openmp  # noqa: F401 - before torch

import numpy as np
import torch
from torch import Tensor

from checkpoints import file_sha256, newest_checkpoint
from config import Parser, convert
from dataset import Frames
from deploy.backends import Backend
from deploy.file_formats import FORMATS
from deploy.signature import sign
from folders import read_folder, read_list
from geometry import resize_image
from images import SAMPLE, find_images, read_image
from metrics import Protocol
from model import Network, load_network, tasks_of
from training.evaluation import Settings, evaluate_folder, pick_tasks
from utils import run, setup_cpu

CHECKED = 8  # images


# ---------------------------------------------------------------------------------------------- images


def sample_frames(
    network: Network, folders: Sequence[str], split: str, count: int, size: tuple[int, int] | None
) -> list[Tensor]:
    """About `count` frames of a split, evenly taken, (3, H, W) uint8, as the network sees them."""
    images: list[Tensor] = []
    for root in folders:
        folder = read_folder(root)
        frames = Frames(folder, read_list(folder, split), {}, network.config, train=False)
        some = min(-(-count // len(folders)), len(frames))
        chosen = np.linspace(0, len(frames) - 1, some).round().astype(int)
        images += [frames[int(index)]["image"] for index in chosen]
    if size is None:
        return images
    return [torch.from_numpy(resize_image(image.permute(1, 2, 0).numpy(), *size)).permute(2, 0, 1) for image in images]


# ---------------------------------------------------------------------------------------------- proof


def read_images(source: Path, backend: Backend) -> list[Tensor]:
    """The first pictures of a folder, or the one file, (3, H, W) uint8, as the graph takes them."""
    images = []
    for file in find_images(source, source / "no output")[:CHECKED]:
        picture = read_image(file)
        size = backend.signature.size or backend.input_size(*picture.shape[:2])
        images.append(torch.from_numpy(np.ascontiguousarray(resize_image(picture, *size))).permute(2, 0, 1))
    return images


def check(
    backend: Backend, network: Network, images: Sequence[Tensor], tolerance: float
) -> Iterator[tuple[str, float, float]]:
    """(task, largest difference to the network in eager fp32, share of the pixels that changed) over the images.

    A class changed when it is another, a value when it is off by more than `tolerance` times itself.
    """
    largest = dict.fromkeys(backend.tasks, 0.0)
    changed, pixels = dict.fromkeys(backend.tasks, 0), dict.fromkeys(backend.tasks, 0)
    for image in images:
        batch = image[None].expand(max(1, backend.signature.batch), -1, -1, -1)
        sizes = dict.fromkeys(backend.tasks, tuple(image.shape[1:]))
        mine, reference = backend.predict(batch, sizes), network.predict(batch, sizes, backend.tasks)
        for name, value in reference.items():
            other = mine[name]
            if value.is_floating_point():
                difference = (other - value).abs()
                wrong = difference > tolerance * value.abs().clamp(min=1e-3)
                largest[name] = max(largest[name], float(difference.max()))
            else:
                wrong = other != value
            changed[name] += int(wrong.sum())
            pixels[name] += wrong.numel()
    for name in backend.tasks:
        yield name, largest[name], changed[name] / pixels[name]


def compare_metrics(network: Network, backend: Backend, root: str, path: Path) -> None:
    """Prints the deciding metric of each task on the validation frames for the checkpoint and for the file."""
    folder, split = read_folder(root), network.config.val_split
    settings = Settings(network.config, torch.device("cpu"), Protocol(), (1.0,), False)
    tasks = pick_tasks(network, folder, path)
    if backend.signature.units_out and any(backend.tasks.get(name) != task for name, task in tasks.items()):
        print(f"{folder.name}: not compared; --domain {folder.name} gives its classes alone, --outputs raw all of them")
        return
    rows = [evaluate_folder(item, folder, split, tasks, settings)[0] for item in (network, backend)]
    for name, task in tasks.items():
        key = f"{name}/{task.best}"
        if key in rows[0]:
            before, after = (row[key] for row in rows)
            print(f"{f'{folder.name}/{key}':32} {before:.4f} -> {after:.4f} ({after - before:+.4f})")


def signature_options(arguments: argparse.Namespace) -> str:
    """The first option that says how a graph shall be, or ''."""
    usual = {"size": "any", "batch": "1", "input": "bytes", "outputs": "units", "domain": ""}
    return next((f"--{name}" for name, value in usual.items() if getattr(arguments, name) != value), "")


def main() -> None:
    parser = Parser(description="Writes a checkpoint as a file for other programs, and checks the file.")
    parser.add_argument("--checkpoint", metavar="FILE", help="default: the newest run's best.pt")
    parser.add_argument("--format", default="onnx", choices=tuple(FORMATS))
    parser.add_argument("--output", metavar="FILE", help="default: beside the checkpoint")
    parser.add_argument("--size", default="any", metavar="WIDTHxHEIGHT", help="of the images; default: any")
    parser.add_argument("--batch", default="1", help="images in a call; 0 = any number")
    parser.add_argument("--input", default="bytes", choices=("bytes", "float"), help="float: normalized by the caller")
    parser.add_argument("--outputs", default="units", choices=("units", "raw"), help="raw: the heads' outputs, small")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training"
    )
    parser.add_argument("--int8", action="store_true", help="quantise; calibrated on the training frames of --data")
    parser.add_argument("--frames", default="128", help="of --int8")
    parser.add_argument("--data", metavar="FOLDER", help="of --int8; default: those of the training")
    parser.add_argument(
        "--images", metavar="IMAGE|FOLDER", help=f"to check the file on; default: {SAMPLE}, of --int8 validation frames"
    )
    parser.add_argument("--limit", metavar="0..1", help="share of pixels that may change; default 0.001, int8 0.1")
    arguments = parser.parse_args()
    setup_cpu()
    path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
    size = None
    if arguments.size != "any":
        width, height = convert(arguments.size.replace("x", ","), tuple[int, int], "--size")
        if min(width, height) < 32:
            raise ValueError(f"--size is {arguments.size}; 32x32 is the least")
        size = (height, width)
    batch, frames = (convert(getattr(arguments, name), int, f"--{name}") for name in ("batch", "frames"))
    limit = convert(arguments.limit or (0.1 if arguments.int8 else 0.001), float, "--limit")
    if batch < 0 or frames < 1 or not 0 <= limit <= 1:
        raise ValueError("--batch must be at least 0, --frames at least 1, --limit between 0 and 1")
    if arguments.format == "safetensors" and signature_options(arguments):
        raise ValueError(f"--format safetensors holds the whole network; it has no {signature_options(arguments)}")
    if arguments.int8 and arguments.format not in ("onnx", "openvino"):
        raise ValueError(f"--int8 goes with --format onnx or openvino, not {arguments.format}")
    suffix, write = FORMATS[arguments.format]
    output = (
        Path(arguments.output)
        if arguments.output
        else path.with_name(f"{path.stem}{'-int8' if arguments.int8 else ''}{suffix}")
    )
    if output.suffix != suffix:
        raise ValueError(f"--output: {output} should end in {suffix}")

    network = load_network(path)
    tasks = tasks_of(network, arguments.domain, path)
    signature = sign(
        network, tasks, arguments.input == "bytes", arguments.outputs == "units", size, batch, arguments.int8
    )
    folders = [arguments.data] if arguments.data else list(network.config.data)
    calibration: list[Tensor] = []
    if arguments.int8:
        calibration = sample_frames(network, folders, network.config.train_split, frames, size)
    backend = write(network, signature, output, calibration)
    written = [file for file in (output, output.with_suffix(".bin")) if file.is_file()]
    print(f"{output}: {', '.join(tasks)}; {sum(file.stat().st_size for file in written) / 1e6:.1f} MB")
    print(f"sha256 {file_sha256(output)}")

    if arguments.int8 and not arguments.images:
        images = sample_frames(network, folders, network.config.val_split, CHECKED, size)
    else:
        images = read_images(Path(arguments.images or SAMPLE), backend)
    tolerance = 0.1 if arguments.int8 else 0.01
    failed = []
    for name, largest, share in check(backend, network, images, tolerance):
        print(f"{name:13} on {len(images)} images: largest difference {largest:.2g}, {share:.4%} of the pixels changed")
        failed += [name] if share > limit else []
    for folder in folders if arguments.int8 else ():
        compare_metrics(network, backend, folder, path)
    if failed:
        raise ValueError(f"{output} differs from {path} in more than {limit:.2%} of the pixels: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
