"""Measures what prediction and training cost, and prints Markdown tables under a line that says where and when.

python benchmark.py                                             # parameters, multiply-adds and time of many networks
python benchmark.py backends --encoders mobilenetv2_paper       # one image in every back end, beside public code's way
python benchmark.py backends --checkpoint C --files c-int8.xml  # of a checkpoint, and of files that export.py wrote
python benchmark.py folder --encoders mobilenetv2_paper         # a folder of images: read, predict, write
python benchmark.py growth --plot growth.png                    # against size, batch, classes and tasks
python benchmark.py --train                                     # the training loop, data and all, against its network
python benchmark.py --train --config configs/camvid.yaml        # of another configuration
python benchmark.py --train --encoders resnet18,resnet50        # a training step on synthetic data
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openmp  # noqa: F401 - before torch

from benchmarks.latency import measure_backends, measure_networks
from benchmarks.scaling import measure_folders, measure_growth, plot_growth
from benchmarks.timing import Options, conditions, some_tasks, width_and_height, write_json
from benchmarks.training import measure_loop, measure_steps
from benchmarks.video import measure_videos
from config import Config, Parser, convert, make_config, read_yaml
from model import build_network, load_network
from utils import pick_device, require, run, setup_cpu

ENCODERS = "mobilenetv2_paper,mobilenetv2_100,tf_efficientnet_lite0,resnet18,resnet34,resnet50,resnet101,resnet152"
WHAT: dict[str, Callable[[Options, tuple[str, ...]], list[dict[str, object]]]] = {
    "networks": measure_networks, "backends": measure_backends, "folder": measure_folders, "growth": measure_growth,
    "video": measure_videos,
}  # fmt: skip


def main() -> None:
    parser = Parser(description="Measures what prediction costs, or training.")
    parser.add_argument("what", nargs="?", default="networks", choices=tuple(WHAT))
    parser.add_argument("--train", action="store_true", help="training instead of prediction")
    parser.add_argument("--config", metavar="YAML", help="its network with random weights; with --train its loop")
    parser.add_argument("--checkpoint", metavar="FILE", help="its network")
    parser.add_argument("--encoders", metavar="NAME,NAME,...", help=f"else; default of networks: {ENCODERS}")
    parser.add_argument("--files", nargs="+", default=(), metavar="FILE", help="of backends: of export.py")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="of backends: only these; default: all")
    parser.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--classes", default="40")
    parser.add_argument("--batch_size", metavar="N,N,...", help="default: 1, of --train 8")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--repeats", default="20")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    parser.add_argument("--plot", metavar="PNG", help="of growth")
    parser.add_argument("--json", metavar="FILE", help="write every single time into this file as well")
    arguments = parser.parse_args()
    width, height = width_and_height(arguments.size)
    classes, repeats, threads = (
        convert(getattr(arguments, name), int, f"command line: {name}") for name in ("classes", "repeats", "threads")
    )
    default = "8" if arguments.train else "1"
    batches = convert(arguments.batch_size or default, tuple[int, ...], "command line: batch_size")
    if not 1 <= classes <= 255 or min(repeats, *batches) < 1:
        raise ValueError("command line: classes are 1 to 255, repeats and batch_size 1 at least")
    if arguments.plot:
        require("matplotlib")
        if arguments.what != "growth":
            raise ValueError("command line: --plot is of growth")
    if bool(arguments.config) + bool(arguments.checkpoint) + bool(arguments.encoders) > 1:
        raise ValueError("command line: --config, --checkpoint and --encoders exclude each other")
    device = pick_device(arguments.device)
    where = conditions(device)
    print(f"{where}\n{width}x{height}, {classes} classes, median of {repeats} (fastest .. slowest)")
    default = ENCODERS if arguments.what == "networks" and not arguments.train else "mobilenetv2_paper"
    encoders = convert(arguments.encoders or default, tuple[str, ...], "command line: encoders")
    settings = make_config(read_yaml(Path(arguments.config)), arguments.config) if arguments.config else Config()
    machine = {"device": arguments.device, "precision": arguments.precision, "threads": str(threads)}
    settings = make_config(machine, "command line", settings)
    if arguments.train and arguments.encoders:
        results = measure_steps(
            settings, encoders, batches, classes=classes, height=height, width=width, repeats=repeats
        )
    elif arguments.train:
        results = measure_loop(settings, arguments.config or "config.py", repeats)
    else:
        setup_cpu(threads)
        source = None
        if arguments.checkpoint:
            source, encoders = load_network(arguments.checkpoint), (Path(arguments.checkpoint).name,)
        elif arguments.config:
            tasks = {name: task for name, task in some_tasks(classes, 255).items() if name in settings.tasks}
            source = build_network(settings, tasks, {"synthetic": tasks}, load_encoder=False)
            encoders = (Path(arguments.config).stem,)
        rows = convert(arguments.rows, tuple[str, ...], "command line: rows")
        options = Options(
            width, height, classes, batches, arguments.precision, repeats, device, source,
            tuple(map(Path, arguments.files)), threads, rows,
        )  # fmt: skip
        results = WHAT[arguments.what](options, encoders)
    if arguments.plot:
        plot_growth(results, Path(arguments.plot))
    if arguments.json:
        write_json(Path(arguments.json), {"conditions": where, "arguments": vars(arguments), "results": results})


if __name__ == "__main__":
    run(main)
