"""Checkpoints: written by one function, read by one, in plain types and tensors, without code."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import distributed
from utils import whole_file

RUNS = Path("runs")
SHIPPED = Path("model/nyudv2_lite0.safetensors")  # rooms: docs/NYUDV2.md
DEFAULT_CHECKPOINT = f"default: best.pt of the newest run; without a run, {SHIPPED}"
CFG_HELP = "the layers of a .weights file of darknet; default: the file beside it with this ending"
CHECKPOINT_FORMAT = "joint-segmentation-depth"
CHECKPOINT_VERSION = 1
MOST_VALUES = 100_000  # names and numbers in the settings of a checkpoint


def save_checkpoint(path: Path, content: dict[str, object]) -> None:
    """Writes `content` (plain types and tensors) with our format mark, whole or not at all."""
    with whole_file(path) as temporary:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, **content}, temporary)
        except RuntimeError:  # torch's archive writer does not say why; most often the disk is full
            free = shutil.disk_usage(path.parent).free / 2**20
            what = f"{path}: could not be written, what was there stays; {free:.0f} MiB are free on its disk"
            raise OSError(what) from None


def file_sha256(path: Path) -> str:
    """Of an OpenVINO model: of its .xml and then its .bin, which has the weights."""
    digest = hashlib.sha256()
    weights = path.with_suffix(".bin")
    for part_of_it in [path, weights] if path.suffix.lower() == ".xml" and weights.is_file() else [path]:
        with part_of_it.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raises ValueError when the file is another than the one with this check sum; "" checks nothing."""
    if expected and path.is_file() and (found := file_sha256(path)) != expected.lower():
        raise ValueError(f"--sha256: {path} has {found}, which is not the given one: it is another file, or damaged")


class NotStored(Exception):
    """The file says that it holds more than it does."""


def check_archive(path: Path) -> None:
    """Raises ValueError for wrong check sums, which torch does not look at, and NotStored for what would be inflated:
    torch itself stores tensors as they are."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise NotStored("its members are compressed, which those of torch.save are not")
        if archive.testzip():
            raise ValueError(f"{path}: not a checkpoint, or damaged")


def read_torch_file(path: Path) -> object:
    """A file of torch.save, on the CPU. Code in it is never run. Raises FileNotFoundError or ValueError."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file in it, such as {path / 'best.pt'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if zipfile.is_zipfile(path):
                check_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except NotStored as problem:
        raise ValueError(f"{path}: {problem}") from None
    except pickle.UnpicklingError as problem:
        # torch's words for a file that names functions or classes, which weights never need.
        if "global" in str(problem).lower():
            raise ValueError(f"{path}: it holds code or objects besides weights, and is not loaded") from None
        raise ValueError(f"{path}: not a checkpoint, or damaged") from None
    except PermissionError:
        raise ValueError(f"{path}: not allowed to read it") from None
    except MemoryError:
        raise
    except Exception:  # torch's readers raise what their parsing of a damaged archive stumbles over, even struct.error
        raise ValueError(f"{path}: not a checkpoint, or damaged") from None


def read_checkpoint(path: Path) -> dict[str, object]:
    """What `save_checkpoint` wrote. Raises FileNotFoundError or ValueError."""
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this project")
    if content.get("version") != CHECKPOINT_VERSION:
        version = content.get("version")
        raise ValueError(f"{path}: checkpoint version {version!r}, but this code reads {CHECKPOINT_VERSION}: update it")
    missing = {"config", "tasks", "network", "metrics", "step"} - content.keys()
    if missing:
        raise ValueError(f"{path}: the checkpoint lacks {', '.join(sorted(missing))}")
    for name in ("config", "tasks", "domains", "cameras"):
        check_plain(content.get(name, {}), f"{path}: {name}")
    return content


def check_plain(value: object, where: str) -> None:
    """Raises ValueError unless it is a table of plain types, of at most MOST_VALUES values in all.

    Lists that share their items can say far more than the file holds, and error messages repeat what they got.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} is of type {type(value).__name__}; it takes a table")
    count, open_values = 0, [value]
    while open_values:
        item = open_values.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"{where} holds more than {MOST_VALUES:,} values")
        if isinstance(item, dict):
            open_values += item.keys()
        if isinstance(item, dict | list | tuple):
            open_values += item.values() if isinstance(item, dict) else item
        elif not isinstance(item, str | int | float | bool | None):
            raise ValueError(f"{where} holds a value of type {type(item).__name__}; it takes plain types")


def check_weights(weights: object, wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Those of the named tensors that the network wants (its state_dict; shapes and types are enough).

    Raises ValueError that names a tensor which is missing, of another shape or kind, not finite, or larger than the
    file: `expand`ed tensors repeat what is stored once.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path}: its weights are not named tensors")
    # Counters of batch norm are absent in weights from before torch 0.4.1 and of no use here.
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    missing += [name for name in wanted if not isinstance(weights.get(name, wanted[name]), Tensor)]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(wanted)} tensors of this network are not in it, e.g. {missing[0]}"
        )
    chosen = {name: weights[name] for name in wanted if name in weights}
    for name, tensor in chosen.items():
        need = wanted[name]
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(
                f"{path}: {name} is {tensor.layout} on {tensor.device}; weights are dense tensors of numbers"
            )
        if tensor.shape != need.shape:
            got = tuple(tensor.shape)
            raise ValueError(f"{path}: {name} has shape {got}, this network needs {tuple(need.shape)}")
        if tensor.is_complex() or tensor.is_floating_point() != need.is_floating_point():
            raise ValueError(f"{path}: {name} is {tensor.dtype}, this network needs {need.dtype}")
    claimed, stored = sum(tensor.numel() * tensor.element_size() for tensor in chosen.values()), path.stat().st_size
    if claimed > stored:
        raise ValueError(f"{path}: its tensors take {claimed:,} bytes, but the file has {stored:,}")
    for name, tensor in chosen.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinite weights")
    return chosen


def pick_checkpoint(given: str | Path | None) -> Path:
    """The checkpoint that a command works with: the given one, else the newest run's best.pt (or last.pt), else the
    weights in the repository. Prints which one it is where none was given.

    Raises FileNotFoundError when there is none.
    """
    if given:
        return Path(given)
    runs = sorted(RUNS.glob("*/last.pt"), key=lambda path: path.stat().st_mtime)
    if runs:
        best = runs[-1].with_name("best.pt")
        path, why = best if best.is_file() else runs[-1], "the newest run"
    elif SHIPPED.is_file():
        path, why = SHIPPED, f"the weights in the repository: there is no run in {RUNS}/"
    else:
        raise FileNotFoundError(f"no run in {RUNS}/, no {SHIPPED}: train one (python train.py) or give --checkpoint")
    if distributed.is_main():
        print(f"checkpoint {path} ({why})", flush=True)
    return path
