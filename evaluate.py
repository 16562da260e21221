"""Evaluates a checkpoint on a split of a data set.

python evaluate.py --checkpoint runs/x/best.pt                      # the data set that it was trained on
python evaluate.py --checkpoint C --data dataset/nyud --split val --crop eigen --cap 10 --mirror
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Parser, convert, make_config
from dataset import Folder, Frames, eval_loader, read_folder, read_list
from geometry import resize_raw
from metrics import Protocol
from model import Network, load_network
from tasks import TASKS, Task
from utils import autocast, newest_checkpoint, pick_device, pick_precision, run, setup_cpu, whole_file


def predict_batch(
    network: Network,
    images: Tensor,
    sizes: Mapping[str, tuple[int, int]],
    scales: Iterable[float] = (1.0,),
    mirror: bool = False,
) -> dict[str, Tensor]:
    """images (B, 3, H, W) uint8 -> {task: prediction (B, ...) at sizes[task]}.

    With several scales, or mirrored as well, the scores of all views are averaged.
    """
    scales = tuple(scales)
    if scales == (1.0,) and not mirror:
        return {name: network.tasks[name].decode(raw, sizes[name]) for name, raw in network(images).items()}
    total: dict[str, Tensor] = {}
    for scale in scales:
        size = tuple(max(32, round(side * scale)) for side in images.shape[-2:])
        scaled = resize_raw(images / 255, size).clamp(0, 1)
        for flipped in (False, True) if mirror else (False,):
            for name, raw in network(scaled.flip(-1) if flipped else scaled).items():
                task = network.tasks[name]
                scores = task.undo(task.scores(raw, sizes[name]), scale, flipped)
                total[name] = total[name] + scores if name in total else scores
    views = len(scales) * (2 if mirror else 1)
    return {name: network.tasks[name].decide(scores / views) for name, scores in total.items()}


@torch.inference_mode()
def evaluate(
    network: Network,
    loader: DataLoader,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    scales: Iterable[float] = (1.0,),
    mirror: bool = False,
    progress: bool = False,
) -> dict[str, float]:
    """{"task/metric": value} over every frame of `loader` (`dataset.eval_loader`), at ground-truth size."""
    was_training = network.training
    network.eval()
    metrics = {name: task.metrics(protocol) for name, task in network.tasks.items()}
    for batches in tqdm(loader, desc="evaluate", disable=None if progress else True, leave=False):
        for batch in batches:
            images = batch["image"].to(device, non_blocking=True, memory_format=torch.channels_last)
            targets = {name: batch[name].to(device, non_blocking=True) for name in metrics}
            sizes = {name: tuple(target.shape[-2:]) for name, target in targets.items()}
            with autocast(device, precision):
                predictions = predict_batch(network, images, sizes, scales, mirror)
            for name, accumulator in metrics.items():
                accumulator.update(predictions[name], targets[name])
    network.train(was_training)
    return {f"{task}/{name}": value for task, item in metrics.items() for name, value in item.compute().items()}


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


def check_tasks(network: Network, folder: Folder, path: Path) -> None:
    """Raises ValueError when the checkpoint's classes are not the data set's, or no task has labels there."""
    if not set(network.tasks) & set(folder.sections):
        raise ValueError(
            f"{folder.root} has labels for {', '.join(folder.sections)}, {path} for {', '.join(network.tasks)}"
        )
    for name, task in network.tasks.items():
        theirs = folder.sections.get(name, {}).get("classes")
        if theirs is not None and theirs != task.classes:
            raise ValueError(
                f"{folder.root}: its classes are not those of {path} ({len(theirs)} and {len(task.classes)})"
            )


def main() -> None:
    parser = Parser(description="Evaluates a checkpoint on a split of a data set.")
    parser.add_argument("--checkpoint", metavar="FILE", help="default: the newest run's best.pt")
    parser.add_argument("--data", metavar="FOLDER", help="default: the data set of the training")
    parser.add_argument("--split", help="default: the validation split of the training")
    parser.add_argument("--crop", default="none", choices=("none", "eigen"), help="for depth, as in Eigen et al.")
    parser.add_argument("--cap", default="0", metavar="METRES", help="leave out deeper ground truth and clamp to it")
    parser.add_argument("--per_image", action="store_true", help="average depth errors over images, not over pixels")
    parser.add_argument("--mirror", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--scales", default="1", metavar="S,S,...", help="average over these scales of the picture")
    parser.add_argument("--batch_size", default="4")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--output", metavar="JSON", help="default: beside the checkpoint")
    arguments = parser.parse_args()
    setup_cpu()

    path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
    network = load_network(path)
    config = make_config(
        {"batch_size": arguments.batch_size, "workers": arguments.workers, "device": arguments.device,
         "precision": arguments.precision},
        "command line", network.config,
    )  # fmt: skip
    scales = convert(arguments.scales, tuple[float, ...], "command line: scales")
    cap = convert(arguments.cap, float, "command line: cap")
    if not scales or min(scales) <= 0 or cap < 0:
        raise ValueError("command line: scales must be above 0, and cap not below 0")
    protocol = Protocol(arguments.crop, cap, arguments.per_image)

    folder = read_folder(arguments.data or config.data)
    check_tasks(network, folder, path)
    split = arguments.split or config.val_split
    # A task without labels in this data set is predicted, but has nothing to be compared with.
    sections = {name: folder.sections.get(name, {}) for name in TASKS}
    frames = Frames(
        dataclasses.replace(folder, sections=sections), read_list(folder, split), network.tasks, config, train=False
    )
    device = pick_device(config.device)
    network = network.to(device, memory_format=torch.channels_last)
    values = evaluate(
        network, eval_loader(frames, config), device, pick_precision(config.precision, device), protocol,
        scales, arguments.mirror, progress=True,
    )  # fmt: skip
    print(f"{path} on {len(frames)} frames of {folder.root} ({split})")
    print(table(network.tasks, values))
    report = {
        "checkpoint": str(path), "data": str(folder.root), "split": split, "frames": len(frames),
        "protocol": dataclasses.asdict(protocol), "scales": list(scales), "mirror": arguments.mirror, "metrics": values,
    }  # fmt: skip
    output = Path(arguments.output) if arguments.output else path.with_name(f"{path.stem}-{folder.name}-{split}.json")
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    run(main)
