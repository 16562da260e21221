"""Measures prediction and training. Prints Markdown tables below a line that names machine, versions and date.

python benchmark.py                                             # networks: parameters, multiply-adds and time of many
python benchmark.py backends --encoders mobilenetv2_paper       # one image in every back end, beside public code's way
python benchmark.py backends --checkpoint C --files c-int8.xml  # of a checkpoint, and of files of export.py
python benchmark.py folder --encoders mobilenetv2_paper         # a folder of images: read, predict, write
python benchmark.py growth --plot growth.png                    # against size, batch, classes and tasks
python benchmark.py layers --rows "openvino,openvino int8"      # where the milliseconds go, layer by layer
python benchmark.py peers                                       # beside two networks of others, such as SegFormer
python benchmark.py tasks --tasks segmentation,depth,boxes      # what each task adds
python benchmark.py video --checkpoint C                        # the parts of video prediction, and flicker
python benchmark.py train                                       # the training loop with its data, against its network
python benchmark.py train --config configs/camvid.yaml          # of another configuration
python benchmark.py train --encoders resnet18,resnet50          # a training step on synthetic data
python benchmark.py train --encoders resnet18 --precision fp32,bf16

`python benchmark.py COMMAND --help` names the options of a command.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.latency import measure_backends, measure_networks
from benchmarks.layers import ROWS as LAYER_ROWS
from benchmarks.layers import measure_layers
from benchmarks.peers import measure_peers
from benchmarks.scaling import growth_series, measure_folders, measure_growth, measure_tasks, plot_growth
from benchmarks.timing import MakeNetwork, Options, conditions, random_network, write_json
from benchmarks.training import measure_loop, measure_steps
from benchmarks.video import measure_videos
from config import Config, make_config
from deploy.backends import BACKENDS
from model import load_network
from user_input.flags import Parser, number, positive_int, refuse, width_and_height
from user_input.text_files import read_yaml
from user_input.values import near
from utils import pick_device, run, setup_cpu

MANY = "mobilenetv2_paper,mobilenetv2_100,tf_efficientnet_lite0,resnet18,resnet34,resnet50,resnet101,resnet152"
ONE = "mobilenetv2_paper"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
Item = TypeVar("Item")
class_count = number(int, least=1, most=255)

# ---------------------------------------------------------------------------------------------- options


def list_of(read: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """An argparse type: values that are separated by commas."""

    def read_all(text: str) -> tuple[Item, ...]:
        items = tuple(read(item.strip()) for item in text.split(",") if item.strip())
        if not items:
            raise argparse.ArgumentTypeError(f"got {text!r}; it takes a list that is separated by commas")
        return items

    return read_all


def make_parser(command: str, repeats: int, precision: str | None = "auto") -> Parser:
    """A parser with the options of all commands. precision: the default, None = the command has no choice."""
    parser = Parser(prog=f"benchmark.py {command}")
    parser.add_argument("--repeats", type=positive_int, default=repeats, help=f"default: {repeats}")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    threads = number(int, least=0, most=1024)
    parser.add_argument("--threads", type=threads, default=0, help="CPU threads; 0 = torch's choice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single time into this file")
    if precision:
        parser.add_argument("--precision", default=precision, choices=PRECISIONS)
    return parser


def add_size(parser: Parser) -> None:
    parser.add_argument("--size", type=width_and_height(32, 8192), default=(480, 640), metavar="WIDTHxHEIGHT")


def add_networks(parser: Parser, default: str) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="measure its network")
    source.add_argument("--config", type=Path, metavar="YAML", help="measure its network, with random weights")
    source.add_argument(
        "--encoders", type=list_of(str), default=list_of(str)(default), metavar="NAME,NAME,...",
        help=f"measure networks with these encoders and random weights; default: {default}",
    )  # fmt: skip
    parser.add_argument("--classes", type=class_count, default=40, help="of random weights; default: 40")


def networks_from(parser: Parser, arguments: argparse.Namespace) -> dict[str, MakeNetwork]:
    """{name in the tables: a function that makes the network}."""
    if arguments.checkpoint:
        refuse(parser, arguments, ("classes",), "is for random weights; a checkpoint has its own classes")
        return {arguments.checkpoint.name: partial(load_network, arguments.checkpoint)}
    if arguments.config:
        config = make_config(read_yaml(arguments.config), str(arguments.config))
        return {arguments.config.stem: partial(random_network, config, arguments.classes)}
    configs = {name: Config(encoder=name, encoder_weights="none") for name in arguments.encoders}
    return {name: partial(random_network, config, arguments.classes) for name, config in configs.items()}


def options_from(arguments: argparse.Namespace, precision: str = "") -> Options:
    height, width = arguments.size
    device = pick_device(arguments.device)
    setup_cpu(arguments.threads)
    return Options(height, width, arguments.repeats, device, precision or arguments.precision, arguments.threads)


def start(device: torch.device) -> str:
    """Prints the conditions line and returns it."""
    where = conditions(device)
    print(where, flush=True)
    return where


def finish(arguments: argparse.Namespace, where: str, results: object) -> None:
    if arguments.json:
        write_json(arguments.json, {"conditions": where, "arguments": vars(arguments), "results": results})


# ---------------------------------------------------------------------------------------------- commands


def networks(words: Sequence[str]) -> None:
    parser = make_parser("networks", 20, precision=None)
    add_size(parser)
    add_networks(parser, MANY)
    parser.add_argument("--batch_size", type=list_of(positive_int), default=(1,), metavar="N,N,...")
    arguments = parser.parse_args(words)
    options, made = options_from(arguments, "fp32"), networks_from(parser, arguments)
    where = start(options.device)
    finish(arguments, where, measure_networks(options, made, arguments.batch_size))


def backends(words: Sequence[str]) -> None:
    parser = make_parser("backends", 20)
    add_size(parser)
    add_networks(parser, ONE)
    parser.add_argument("--batch_size", type=list_of(positive_int), default=(1,), metavar="N,N,...")
    parser.add_argument("--files", type=Path, nargs="+", default=(), metavar="FILE", help="of export.py; a row each")
    parser.add_argument("--rows", type=list_of(str), default=(), metavar="NAME,...", help="only these; default: all")
    parser.add_argument("--no_start", action="store_true", help="leave out load, first call and memory")
    arguments = parser.parse_args(words)
    options, made = options_from(arguments), networks_from(parser, arguments)
    where = start(options.device)
    results = measure_backends(
        options, made, arguments.batch_size, arguments.files, arguments.rows, not arguments.no_start
    )
    finish(arguments, where, results)


def layers(words: Sequence[str]) -> None:
    parser = make_parser("layers", 20)
    add_size(parser)
    add_networks(parser, ONE)
    parser.add_argument("--files", type=Path, nargs="+", default=(), metavar="FILE", help="of export.py, instead")
    parser.add_argument("--rows", type=list_of(str), default=(), metavar="NAME,...", help=", ".join(LAYER_ROWS))
    arguments = parser.parse_args(words)
    options, made = options_from(arguments), networks_from(parser, arguments)
    where = start(options.device)
    finish(arguments, where, measure_layers(options, made, arguments.rows, arguments.files))


def peers(words: Sequence[str]) -> None:
    parser = make_parser("peers", 10, precision=None)
    add_size(parser)
    arguments = parser.parse_args(words)
    options = options_from(arguments, "auto")
    where = start(options.device)
    finish(arguments, where, measure_peers(options))


def folder(words: Sequence[str]) -> None:
    measured_as_a_whole("folder", 20, measure_folders, words)


def video(words: Sequence[str]) -> None:
    measured_as_a_whole("video", 4, measure_videos, words)


def measured_as_a_whole(
    name: str, repeats: int, measure: Callable[..., list[dict[str, object]]], words: Sequence[str]
) -> None:
    """A command whose only options are the size and the networks."""
    parser = make_parser(name, repeats)
    add_size(parser)
    add_networks(parser, ONE)
    arguments = parser.parse_args(words)
    options, made = options_from(arguments), networks_from(parser, arguments)
    where = start(options.device)
    finish(arguments, where, measure(options, made))


def growth(words: Sequence[str]) -> None:
    parser = make_parser("growth", 20)
    add_size(parser)
    parser.add_argument("--encoders", type=list_of(str), default=(ONE,), metavar="NAME,...", help=f"default: {ONE}")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the curves")
    counts = list_of(number(int, least=1, most=1024))
    parser.add_argument("--each_threads", type=counts, metavar="N,N,...", help="in place of --threads: each of these")
    arguments = parser.parse_args(words)
    options = options_from(arguments)
    where = start(options.device)
    threads = arguments.each_threads or (torch.get_num_threads(),)
    results = measure_growth(options, arguments.encoders, growth_series(options.height, options.width), threads)
    if arguments.plot:
        plot_growth(results, arguments.plot)
    finish(arguments, where, results)


def tasks(words: Sequence[str]) -> None:
    parser = make_parser("tasks", 20)
    add_size(parser)
    parser.add_argument("--encoders", type=list_of(str), default=(ONE,), metavar="NAME,...", help=f"default: {ONE}")
    default = ("segmentation", "depth", "boxes")
    parser.add_argument("--tasks", type=list_of(str), default=default, metavar="NAME,...", help=",".join(default))
    parser.add_argument("--backends", type=list_of(str), default=("auto",), metavar="NAME,...", help="default: auto")
    parser.add_argument("--classes", type=class_count, default=40, help="of each task that has some; default: 40")
    arguments = parser.parse_args(words)
    for name in arguments.backends:
        if name not in ("auto", *BACKENDS):
            raise ValueError(f"--backends: unknown {name!r}{near(name, BACKENDS)}; known: auto, {', '.join(BACKENDS)}")
    options = options_from(arguments)
    where = start(options.device)
    results = measure_tasks(options, arguments.encoders, arguments.tasks, arguments.backends, arguments.classes)
    finish(arguments, where, results)


def train(words: Sequence[str]) -> None:
    parser = make_parser("train", 20, precision=None)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="YAML", help="measure its loop; default: that of config.py")
    source.add_argument("--encoders", type=list_of(str), metavar="NAME,...", help="measure steps on synthetic data")
    default = "default: the configuration's; several with --encoders"
    parser.add_argument("--precision", type=list_of(str), metavar="NAME,NAME,...", help=default)
    steps = parser.add_argument_group("of --encoders")
    steps.add_argument("--batch_size", type=list_of(positive_int), default=(8,), metavar="N,N,...")
    steps.add_argument("--classes", type=class_count, default=40)
    add_size(steps)
    arguments = parser.parse_args(words)
    for name in arguments.precision or ():
        if name not in PRECISIONS:
            parser.error(f"--precision: unknown {name!r}{near(name, PRECISIONS)}; known: {', '.join(PRECISIONS)}")
    if not arguments.encoders:
        names = ("batch_size", "classes", "size")
        refuse(parser, arguments, names, "is for --encoders; a configuration has its own")
        if arguments.precision and len(arguments.precision) > 1:
            parser.error("several of --precision are for --encoders")
    config = make_config(read_yaml(arguments.config), str(arguments.config)) if arguments.config else Config()
    precisions = arguments.precision or (config.precision,)
    config = dataclasses.replace(
        config,
        device=config.device if arguments.device == "auto" else arguments.device,
        precision=precisions[0],
        threads=arguments.threads or config.threads,
    )
    where = start(pick_device(config.device))
    if arguments.encoders:
        height, width = arguments.size
        sizes = {"classes": arguments.classes, "height": height, "width": width, "repeats": arguments.repeats}
        results = measure_steps(config, arguments.encoders, arguments.batch_size, precisions, **sizes)
    else:
        results = measure_loop(config, str(arguments.config or "config.py"), arguments.repeats)
    finish(arguments, where, results)


COMMANDS = {
    "networks": networks, "backends": backends, "layers": layers, "peers": peers, "folder": folder, "growth": growth,
    "tasks": tasks, "video": video, "train": train,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Without a command: networks. Raises ValueError."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    if "--train" in words:
        raise ValueError("--train is now a command: python benchmark.py train")
    if not words or words[0].startswith("-"):
        words = ["networks", *words]
    if words[0] not in COMMANDS:
        raise ValueError(f"unknown command {words[0]!r}{near(words[0], COMMANDS)}; allowed: {', '.join(COMMANDS)}")
    COMMANDS[words[0]](words[1:])


if __name__ == "__main__":
    run(main)
