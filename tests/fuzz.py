"""Looks for input that breaks the readers of lists, descriptions, settings and checkpoints, by coverage (atheris).

    make fuzz                                    # a minute for each reader
    PYTHONPATH=. python tests/fuzz.py list -max_total_time=600

A reader may refuse with ValueError or FileNotFoundError that says so in one line; everything else is a bug.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["config", "user_input", "folders", "tasks", "utils", "model"]):
    from config import Config, make_config, plain
    from folders import Folder, parse_line, read_folder, read_list
    from model import load_network
    from networks.checkpoints import CHECKPOINT_FORMAT, CHECKPOINT_VERSION
    from tasks import Depth, tasks_to_plain
    from user_input.text_files import parse_yaml

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
SMALL = Config(encoder="mobilenetv3_small_050", decoder_width=8, crp_stages=1, tasks=("depth",))
HEADER = {
    "version": CHECKPOINT_VERSION, "config": plain(SMALL), "tasks": tasks_to_plain({"depth": Depth()}), "domains": {},
}  # fmt: skip

DATASET = b"""\
name: room
splits: {train: train.txt, val: val.txt}
columns: [image, segmentation, depth]
segmentation: {classes: [wall, floor], colors: [[1, 2, 3], [4, 5, 6]], ignore: 255}
depth: {metres_per_unit: 0.001, max: 10.0}
camera: {fx: 600.0, fy: 600.0, cx: 599.5, cy: 339.5, width: 1200, height: 680}
"""


def refuses(call: object, *arguments: object) -> None:
    """Calls; what a reader may say is fine, when it is one line."""
    try:
        call(*arguments)
    except (ValueError, FileNotFoundError) as problem:
        if "\n" in str(problem):
            raise AssertionError(f"more than a line: {problem!r}") from problem


def fuzz_list(data: bytes) -> None:
    (FOLDER / "train.txt").write_bytes(data)
    folder = Folder(FOLDER, "x", {"train": "train.txt"}, ("image", "segmentation", "depth"), {}, {})
    refuses(read_list, folder, "train")
    refuses(parse_line, folder, "train.txt:1", data.decode(errors="replace"))


def fuzz_dataset(data: bytes) -> None:
    (FOLDER / "dataset.yaml").write_bytes(data)
    refuses(read_folder, FOLDER)
    refuses(lambda: make_config(parse_yaml(data.decode(errors="replace"), Path("x.yaml")), "x.yaml"))


def fuzz_checkpoint(data: bytes) -> None:
    path = FOLDER / "x.pt"
    path.write_bytes(data)
    refuses(load_network, path)


def fuzz_settings(data: bytes) -> None:
    """The settings in the head of a safetensors file without weights."""
    path = FOLDER / "x.safetensors"
    head = json.dumps({"__metadata__": {CHECKPOINT_FORMAT: data.decode(errors="replace")}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    refuses(load_network, path)


def small_checkpoint() -> bytes:
    torch.save({"format": CHECKPOINT_FORMAT, **HEADER, "network": {}, "metrics": {}, "step": 0}, FOLDER / "seed.pt")
    return (FOLDER / "seed.pt").read_bytes()


# name: (what reads, an input that it takes, to start from)
FUZZERS = {
    "list": (fuzz_list, lambda: b"rgb/1.png\tmasks/1.png\tdepth/1.png\nrgb/2.png\t-\tdepth/2.png\n"),
    "dataset": (fuzz_dataset, lambda: DATASET),
    "checkpoint": (fuzz_checkpoint, small_checkpoint),
    "settings": (fuzz_settings, lambda: json.dumps(HEADER).encode()),
}

if __name__ == "__main__":
    target, seed = FUZZERS[sys.argv.pop(1)]
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    (corpus / "seed").write_bytes(seed())
    atheris.Setup([*sys.argv, str(corpus)], target)
    atheris.Fuzz()
