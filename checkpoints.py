"""Checkpoints: written by one function, read by one, in plain types and tensors, without code."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import torch

from utils import whole_file

CHECKPOINT_FORMAT = "joint-segmentation-depth"


CHECKPOINT_VERSION = 1


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


def read_torch_file(path: Path) -> object:
    """A file of torch.save, on the CPU. Code in it is never run. Raises FileNotFoundError or ValueError."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file in it, such as {path / 'best.pt'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch does not look at the check sums of the archive.
            if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
                raise ValueError(f"{path}: not a checkpoint, or damaged")
            return torch.load(path, map_location="cpu", weights_only=True)
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
    return content


def newest_checkpoint(runs: Path = Path("runs")) -> Path:
    """best.pt of the run that was written last, or its last.pt."""
    found = sorted(runs.glob("*/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no run in {runs}/: train one (python train.py) or give --checkpoint")
    best = found[-1].with_name("best.pt")
    return best if best.is_file() else found[-1]
