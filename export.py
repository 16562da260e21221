"""Writes a checkpoint as a file for other programs, and proves that the file gives what the checkpoint gives.

    python export.py --checkpoint C --format onnx                        # runs/x/best.onnx, images of any size
    python export.py --checkpoint C --format openvino --size 640x480     # .xml and .bin, for pictures of this size
    python export.py --checkpoint C --format torch                       # .pt2, torch.export
    python export.py --checkpoint C --format aotinductor --size 640x480  # .pt2 with machine code for this processor
    python export.py --checkpoint C --format openvino --int8             # calibrated on the training frames
    python export.py --checkpoint C --format safetensors                 # the weights and settings, as others read them
    python export.py --checkpoint C --format safetensors --half          # the same in half the bytes
    python export.py --checkpoint C --average D --format safetensors     # of the mean of both trainings' weights
    python export.py --checkpoint C --balance 0.3 --format safetensors   # rare classes are found more often
    python export.py --checkpoint C --format darknet                     # .weights, .cfg, .names; encoder darknet alone

The graph takes uint8 RGB (B, H, W, 3) and gives class ids, metres, ... at the size of the image: pre-processing and
post-processing are inside unless --input float or --outputs raw leaves them to the caller. With --size, the graph also
resizes the picture to the size of the training; without, the caller does, to `long_side` of the file's metadata. The
metadata say what goes in and what the outputs mean (deploy/signature.py). `inference.py --checkpoint FILE` runs .onnx,
.xml and .safetensors like a checkpoint.

The file appears under its name after it has passed the check: a file that was there before stays until then.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.backends import Backend
from deploy.file_formats import FORMATS, replacing
from deploy.proof import differences, several_sizes
from deploy.signature import MAX_BATCH, MAX_SIDE, Signature, make_signature
from folders import read_folder, read_list
from geometry import resize_image
from images import SAMPLE, find_images, read_image
from metrics import Protocol
from model import LEAST_SIDE, Network, load_network, mixed_domains, tasks_of
from networks.checkpoints import CFG_HELP, DEFAULT_CHECKPOINT, file_sha256, pick_checkpoint
from tasks import Task
from training.average import average_with
from training.balance import balance_classes
from training.evaluation import Settings, evaluate_folder, pick_tasks
from user_input.flags import Parser, fraction, number, positive_int, refuse, width_and_height
from utils import run, setup_cpu

CHECKED_PICTURES = 8
GRAPH_OPTIONS = ("size", "batch", "input", "outputs", "domain")


# ---------------------------------------------------------------------------------------------- pictures


def split_files(folders: Sequence[str], split: str, count: int) -> list[Path]:
    """The images of about `count` frames of a split, evenly taken."""
    files: list[Path] = []
    for root in folders:
        frames = read_list(read_folder(root), split)
        some = min(-(-count // len(folders)), len(frames))
        chosen = np.linspace(0, len(frames) - 1, some).round().astype(int)
        files += [frames[int(index)].image for index in chosen]
    return files


def calibration_files(arguments: argparse.Namespace, folders: Sequence[str], split: str) -> list[Path]:
    """Training frames of the data sets; without --data and where none of the network's is here, those of --images."""
    if arguments.data or not arguments.images or any(Path(root).is_dir() for root in folders):
        return split_files(folders, split, arguments.frames)
    files = find_images(Path(arguments.images), Path(arguments.images) / "no output")[: arguments.frames]
    print(f"calibrated on {len(files)} pictures of {arguments.images}: no {', '.join(folders)} here")
    return files


def calibration_images(files: Sequence[Path], signature: Signature) -> list[Tensor]:
    """(3, H, W) uint8 each, as the graph takes them."""
    images = []
    for file in files:
        picture = read_image(file)
        size = signature.size or signature.picture_size(*picture.shape[:2])
        images.append(torch.from_numpy(np.ascontiguousarray(resize_image(picture, *size))).permute(2, 0, 1))
    return images


# ---------------------------------------------------------------------------------------------- proof


def prove(
    backend: Backend, network: Network, tasks: dict[str, Task], files: Sequence[Path], tolerance: float, limit: float
) -> list[str]:
    """Prints how the file differs from the checkpoint on pictures; returns the tasks in which it does too much."""
    pictures = several_sizes([read_image(file) for file in files], backend.signature.size)
    failed = []
    for difference in differences(backend, network, tasks, pictures, tolerance):
        print(f"{difference.task:13} on {len(pictures)} pictures: {difference}", flush=True)
        if not difference.finite or not difference.changed <= limit:
            failed.append(difference.task)
    return failed


def evaluation_settings(network: Network) -> Settings:
    """As the network was trained, on this processor."""
    return Settings(network.config, torch.device("cpu"), Protocol(), (1.0,), False)


def compare_metrics(network: Network, backend: Backend, root: str, path: Path) -> None:
    """Prints the deciding metric of each task on the validation frames for the checkpoint and for the file."""
    folder, split = read_folder(root), network.config.val_split
    settings = evaluation_settings(network)
    try:
        tasks = pick_tasks(network, folder, path)
    except ValueError as problem:  # the file is written, and good for pictures
        print(f"{folder.name}: not compared ({problem})")
        return
    # The section says what predictions mean: classes, range. Settings of the training, such as weights, may differ.
    other = [name for name, task in tasks.items() if backend.tasks[name].section() != task.section()]
    if backend.signature.units_out and other:
        print(
            f"{folder.name}: not compared, {', '.join(other)} of the file are those of all data sets; --domain "
            f"{folder.name} gives this one's alone, --outputs raw leaves the choice to the reader"
        )
        return
    rows = [evaluate_folder(item, folder, split, tasks, settings)[0] for item in (network, backend)]
    for name, task in tasks.items():
        key = f"{name}/{task.best}"
        if key in rows[0]:
            before, after = (row[key] for row in rows)
            print(f"{f'{folder.name}/{key}':32} {before:.4f} -> {after:.4f} ({after - before:+.4f})")


# ---------------------------------------------------------------------------------------------- command


def make_parser() -> Parser:
    parser = Parser(description="Writes a checkpoint as a file for other programs, and checks the file.")
    parser.add_argument("--checkpoint", metavar="FILE", help=DEFAULT_CHECKPOINT)
    parser.add_argument("--cfg", default="", metavar="FILE", help=CFG_HELP)
    parser.add_argument(
        "--average", nargs="+", default=(), metavar="FILE",
        help="checkpoints of the same network: the mean of all weights",
    )  # fmt: skip
    parser.add_argument(
        "--balance", type=fraction, default=0.0, metavar="0..1",
        help="find classes that are rare in the training frames of --data more often; default: 0, not at all",
    )  # fmt: skip
    parser.add_argument("--format", default="onnx", choices=tuple(FORMATS))
    parser.add_argument("--output", metavar="FILE", help="default: beside the checkpoint")
    parser.add_argument(
        "--size", type=width_and_height(LEAST_SIDE, MAX_SIDE), metavar="WIDTHxHEIGHT",
        help="of the pictures; default: any",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=number(int, 0, MAX_BATCH), help="pictures in a call; default: 0, any number; aotinductor: 1"
    )
    parser.add_argument("--input", default="bytes", choices=("bytes", "float"), help="float: normalized by the caller")
    parser.add_argument("--outputs", default="units", choices=("units", "raw"), help="raw: the heads' outputs, small")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training"
    )
    parser.add_argument("--int8", action="store_true", help="quantize; calibrated on the training frames of --data")
    parser.add_argument("--half", action="store_true", help="of safetensors: weights in fp16, half the bytes")
    parser.add_argument("--frames", type=positive_int, default=128, help="of --int8; default: 128")
    parser.add_argument("--data", metavar="FOLDER", help="of --int8 and --balance; default: those of the training")
    parser.add_argument(
        "--images",
        metavar="IMAGE|FOLDER",
        help=f"to check the file on, and without the training's data "
        f"for --int8 to calibrate with; default: {SAMPLE}, of --int8 validation frames",
    )
    parser.add_argument(
        "--limit", type=fraction, metavar="0..1",
        help="share of pixels that may change; default: 0.001, half 0.01, int8 0.1",
    )  # fmt: skip
    return parser


def check_options(parser: Parser, arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that mean nothing together."""
    if arguments.format in ("safetensors", "darknet"):
        refuse(parser, arguments, GRAPH_OPTIONS, f"is of a graph; --format {arguments.format} holds the whole network")
    if arguments.half and arguments.format != "safetensors":
        raise ValueError(f"--half goes with --format safetensors, not {arguments.format}")
    if arguments.int8 and arguments.format not in ("onnx", "openvino"):
        raise ValueError(f"--int8 goes with --format onnx or openvino, not {arguments.format}")
    if not arguments.int8:
        refuse(parser, arguments, ("frames",), "is of --int8")
    if not arguments.int8 and not arguments.balance:
        refuse(parser, arguments, ("data",), "is of --int8 and --balance")


def output_path(arguments: argparse.Namespace, checkpoint: Path, suffix: str) -> Path:
    beside = checkpoint.with_name(f"{checkpoint.stem}{'-int8' if arguments.int8 else ''}{suffix}")
    output = Path(arguments.output or beside)
    if output.suffix != suffix:
        raise ValueError(f"--output: {output} should end in {suffix}")
    if output.is_dir():
        raise ValueError(f"--output: {output} is a folder")
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise ValueError(f"--output: {output} is the checkpoint")
    return output


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    setup_cpu()
    check_options(parser, arguments)
    path = pick_checkpoint(arguments.checkpoint)
    suffix, write = FORMATS[arguments.format]
    output = output_path(arguments, path, suffix)
    network = load_network(path, arguments.cfg)
    average_with(network, {Path(other): load_network(other, arguments.cfg) for other in arguments.average})
    folders = [arguments.data] if arguments.data else list(network.config.data)
    if arguments.balance:
        if len(folders) != 1:
            raise ValueError(f"--balance: {path} was trained on {', '.join(folders)}; --data says whose classes count")
        balance_classes(network, read_folder(folders[0]), path, evaluation_settings(network), arguments.balance)
    tasks = tasks_of(network, arguments.domain, path)
    if warning := mixed_domains(network, arguments.domain):
        print(f"warning: {warning}", file=sys.stderr)
    batch = arguments.batch if arguments.batch is not None else int(arguments.format == "aotinductor")
    signature = make_signature(
        network, tasks, arguments.input == "bytes", arguments.outputs == "units", arguments.size, batch, arguments.int8
    )
    calibration: list[Tensor] = []
    if arguments.int8:
        files = calibration_files(arguments, folders, network.config.train_split)
        calibration = calibration_images(files, signature)
    if arguments.int8 and not arguments.images:
        files = split_files(folders, network.config.val_split, CHECKED_PICTURES)
    else:
        source = Path(arguments.images or SAMPLE)
        files = find_images(source, source / "no output")[:CHECKED_PICTURES]
    limit = arguments.limit
    if limit is None:
        limit = 0.1 if arguments.int8 else 0.01 if arguments.half else 0.001

    with replacing(output) as temporary:
        written_network = copy.deepcopy(network).half() if arguments.half else network
        backend = write(written_network, signature, temporary, calibration)
        failed = prove(backend, network, tasks, files, 0.1 if arguments.int8 else 0.01, limit)
        if failed:
            raise ValueError(
                f"{output} would differ from {path} in more than {limit:.2%} of what is compared, or not be finite: "
                f"{', '.join(failed)}; it is not written"
            )
    backend.where = str(output)
    written = [output, output.with_suffix(".bin")] if suffix == ".xml" else [output]
    print(f"{output}: {', '.join(tasks)}; {sum(file.stat().st_size for file in written) / 1e6:.1f} MB")
    print(f"sha256 {file_sha256(output)}{' (.xml and then .bin)' if suffix == '.xml' else ''}")
    if arguments.format not in ("safetensors", "darknet"):
        print(f"input {signature.in_words()['input']}")
    for folder in folders if arguments.int8 else ():
        if arguments.data or Path(folder).is_dir():
            compare_metrics(network, backend, folder, path)


if __name__ == "__main__":
    run(main)
