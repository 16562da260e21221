"""Evaluates a checkpoint on a split of a data set.

python evaluate.py --checkpoint runs/x/best.pt                      # the data set that it was trained on
python evaluate.py --checkpoint C --data dataset/nyud --split val --crop eigen --cap 10 --mirror
python evaluate.py --checkpoint runs/joint/best.pt --against runs/camvid/best.pt runs/redkitchen/best.pt  # Delta-m
python evaluate.py --checkpoint C --worst 8                         # and pictures of the worst frames
torchrun --nproc-per-node 8 -- evaluate.py --checkpoint C    # each process takes a part of the frames
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

import distributed
from config import make_config
from dataset import Frames
from deploy.backends import BACKENDS, Backend, open_network
from folders import Folder, read_folder
from metrics import CROPS, Protocol
from model import Network
from networks.checkpoints import CFG_HELP, DEFAULT_CHECKPOINT, check_sha256, pick_checkpoint
from tasks import Task
from training.evaluation import Settings, evaluate_folder, frames_of, pick_tasks
from training.worst_frames import write_worst
from user_input.flags import Parser, number
from user_input.values import convert
from utils import pick_device, pick_precision, run, setup_cpu, whole_file


def table(tasks: Mapping[str, Task], values: Mapping[str, float]) -> str:
    """The values for a terminal: one line a task, then one line a class."""
    lines = []
    for name in tasks:
        mine = {key.split("/", 1)[1]: value for key, value in values.items() if key.startswith(f"{name}/")}
        if not mine:
            lines.append(f"{name:13} no labels in this split")
            continue
        lines.append(f"{name:13} " + "  ".join(f"{key} {value:.4g}" for key, value in mine.items() if "/" not in key))
        parts = {key.split("/", 1)[1]: value for key, value in mine.items() if "/" in key}
        lines += [f"    {key:20} {value:.4f}" for key, value in sorted(parts.items(), key=lambda item: -item[1])]
    return "\n".join(lines)


def compare(
    joint: Iterable[tuple[Folder, Mapping[str, Task], Mapping[str, float]]],
    singles: Mapping[Path, Network | Backend],
    split: str,
    settings: Settings,
) -> list[dict[str, object]]:
    """A row for each task of each data set: how the joint network compares with the single-task one among `singles`.

    The change is relative and positive where the joint network is better: Delta-m of Maninis et al.
    (arXiv 1904.08918, section 4) is their mean. Raises ValueError for a task with no network to compare with, or two.
    """
    rows: list[dict[str, object]] = []
    for folder, tasks, values in joint:
        for name, task in tasks.items():
            if f"{name}/{task.best}" not in values:
                continue  # no labels there
            fitting = []
            for path, network in singles.items():
                if name in network.tasks and (not network.domains or folder.name in network.domains):
                    fitting.append(path)
            if len(fitting) != 1:
                got = " and ".join(map(str, fitting)) or "none of them"
                raise ValueError(
                    f"--against: one checkpoint is needed that was trained for {name} on {folder.name}; got {got}"
                )
            network = singles[fitting[0]]
            own = {name: pick_tasks(network, folder, fitting[0])[name]}
            single, _ = evaluate_folder(network, folder, split, own, settings_for(network, settings))
            before, after = single[f"{name}/{task.best}"], values[f"{name}/{task.best}"]
            if not before:
                raise ValueError(
                    f"--against: {fitting[0]} has {task.best} 0 on {folder.name}: no change can be relative to it"
                )
            rows.append({
                "metric": f"{folder.name}/{name}/{task.best}", "checkpoint": str(fitting[0]), "single": before,
                "joint": after, "change": task.directions[task.best] * (after - before) / before,
            })  # fmt: skip
    return rows


def settings_for(network: Network | Backend, settings: Settings) -> Settings:
    """The settings with the device that the network's predictions are on: back ends may give them on the CPU."""
    return dataclasses.replace(settings, device=network.device) if isinstance(network, Backend) else settings


def scales_of(text: str) -> tuple[float, ...]:
    """An argparse type: S,S,... -> scales of the picture."""
    try:
        scales = convert(text, tuple[float, ...], "it")
    except ValueError:
        scales = ()
    if not scales or not all(0.1 <= scale <= 10 for scale in scales):
        raise argparse.ArgumentTypeError(f"got {text!r}; it takes numbers of 0.1 to 10, such as 0.75,1,1.25")
    return scales


def check_views(network: Network | Backend, arguments: argparse.Namespace) -> None:
    """Raises ValueError when a file cannot give what --mirror or --scales ask for."""
    if not isinstance(network, Backend):
        return
    if arguments.mirror:
        network.require_raw("--mirror")
    if arguments.scales != (1.0,):
        network.require_raw("--scales")
        if network.signature.size:
            raise ValueError(f"--scales needs a graph of any size; {network.where} takes one size: leave out --size")


def make_parser() -> Parser:
    parser = Parser(description="Evaluates a checkpoint on a split of a data set.")
    parser.add_argument("--checkpoint", metavar="FILE", help=DEFAULT_CHECKPOINT)
    parser.add_argument("--cfg", default="", metavar="FILE", help=CFG_HELP)
    parser.add_argument("--data", metavar="FOLDER", help="default: the data sets of the training")
    parser.add_argument("--split", help="default: the validation split of the training")
    parser.add_argument("--domain", default="", metavar="NAME", help="predict as for this data set of the training")
    parser.add_argument("--against", nargs="+", metavar="FILE", help="single-task checkpoints, for Delta-m")
    parser.add_argument("--crop", default="none", choices=CROPS, help="of depth: eigen for NYUDv2, garg for KITTI")
    parser.add_argument(
        "--cap", type=number(float, least=0), default=0.0, metavar="METRES",
        help="of depth: leave out what is deeper; KITTI: 80; 0 = none",
    )  # fmt: skip
    parser.add_argument("--per_image", action="store_true", help="average depth errors over images, not over pixels")
    parser.add_argument("--sha256", default="", metavar="HEX", help="refuse a checkpoint with another check sum")
    parser.add_argument("--mirror", action="store_true", help="average with the mirrored picture")
    parser.add_argument(
        "--scales", type=scales_of, default=(1.0,), metavar="S,S,...", help="average over these scales of the picture"
    )
    parser.add_argument(
        "--worst", type=number(int, 1, 1000), metavar="N",
        help="also draw the N frames that are worst in each task, beside the report",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=number(int, 1, 4096), default=4)
    parser.add_argument(
        "--workers", type=number(int, 0, 256), default=2,
        help="loader processes on a GPU; on a CPU frames are read in this one",
    )  # fmt: skip
    parser.add_argument(
        "--backend", default="", choices=("auto", *BACKENDS),
        help="compute in this one (inference.py); default: PyTorch, as trained",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--output", metavar="JSON", help="default: beside the checkpoint")
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    setup_cpu()
    device = pick_device(arguments.device)
    with distributed.together(device):
        report(arguments, device)


def report(arguments: argparse.Namespace, device: torch.device) -> None:
    """Evaluates as the command line says, prints the tables and writes the reports."""
    path = pick_checkpoint(arguments.checkpoint)
    check_sha256(path, arguments.sha256)
    network = open_network(path, arguments.backend, arguments.device, arguments.precision, arguments.cfg)
    check_views(network, arguments)
    config = make_config(
        {"batch_size": arguments.batch_size, "workers": arguments.workers, "device": arguments.device,
         "precision": arguments.precision},
        "command line", network.config,
    )  # fmt: skip
    protocol = Protocol(arguments.crop, arguments.cap, arguments.per_image)
    settings = Settings(config, device, protocol, arguments.scales, arguments.mirror)
    split = arguments.split or config.val_split
    folders = [read_folder(folder) for folder in ([arguments.data] if arguments.data else config.data)]
    if arguments.output and len(folders) > 1 and not arguments.against:
        raise ValueError(f"--output takes one report, but there are {len(folders)} data sets: choose one with --data")
    singles = {Path(item): open_network(Path(item), device=arguments.device) for item in arguments.against or ()}
    for single in singles.values():
        check_views(single, arguments)

    results: dict[str, tuple[Folder, dict[str, Task], dict[str, float]]] = {}
    for folder in folders:
        tasks = pick_tasks(network, folder, path, arguments.domain)
        values, count = evaluate_folder(network, folder, split, tasks, settings_for(network, settings))
        results[folder.name] = folder, tasks, values
        if not distributed.is_main():
            continue
        print(f"{path} on {count} frames of {folder.root} ({split})")
        print(table(tasks, values))
        own = arguments.against or not arguments.output
        output = path.with_name(f"{path.stem}-{folder.name}-{split}.json") if own else Path(arguments.output)
        content = {
            "checkpoint": str(path), "data": str(folder.root), "split": split, "frames": count,
            "protocol": dataclasses.asdict(protocol), "scales": list(arguments.scales), "mirror": arguments.mirror,
            "metrics": values,
        }  # fmt: skip
        if arguments.worst:
            mine = settings_for(network, settings)
            frames = frames_of(network, folder, split, tasks, mine)
            content["worst"] = draw_worst(network, frames, arguments.worst, output.with_suffix(""), mine)
        write_report(output, content)
    if singles:
        rows = compare(results.values(), singles, split, settings)
        if not distributed.is_main():
            return
        mean = sum(row["change"] for row in rows) / len(rows)
        width = max(len(row["metric"]) for row in rows)
        print(f"\n{'':{width}}   single    joint   change")
        for row in rows:
            print(f"{row['metric']:{width}}  {row['single']:7.4f}  {row['joint']:7.4f}  {row['change']:+7.2%}")
        print(f"{'Delta-m':{width}}  {'':7}  {'':7}  {mean:+7.2%}")
        output = Path(arguments.output) if arguments.output else path.with_name(f"{path.stem}-delta-m.json")
        write_report(output, {"checkpoint": str(path), "split": split, "changes": rows, "delta_m": mean})


def draw_worst(
    network: Network | Backend, frames: Frames, count: int, folder: Path, settings: Settings
) -> dict[str, list[dict[str, object]]]:
    """Draws the worst frames of each task into the folder, prints their list and returns it."""
    precision = pick_precision(settings.config.precision, settings.device)
    worst = write_worst(network, frames, count, folder, settings.device, precision, settings.protocol, settings.mirror)
    for name, rows in worst.items():
        for row in rows:
            metric = frames.tasks[name].best
            print(f"{name:13} {metric} {row[metric]:.4g}  {row['image']}  drawn in {row['picture']}")
    return worst


def write_report(path: Path, report: Mapping[str, object]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    run(main)
