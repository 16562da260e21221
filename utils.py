"""What several scripts need: errors, devices, seeds, whole files, the log, checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import processes

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

CHECKPOINT_FORMAT = "joint-segmentation-depth"
CHECKPOINT_VERSION = 1


# ---------------------------------------------------------------------------------------------- errors

OUT_OF_MEMORY = (
    "out of memory: lower --batch_size (--accumulate makes up for it) or --crop in training, the size of the images "
    "or --scales elsewhere"
)


def run(main: Callable[[], int | None]) -> None:
    """Runs a script. What a user can cause becomes one line, `error: ...`, and exit status 2.

    TRACEBACK=1 in the environment shows where it came from.
    """
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except (torch.OutOfMemoryError, MemoryError):
        _fail(OUT_OF_MEMORY)
    except RuntimeError as problem:
        if "can't allocate memory" in str(problem) or "not enough memory" in str(problem):
            _fail(OUT_OF_MEMORY)
        if "gloo" in str(problem) or isinstance(problem, torch.distributed.DistBackendError):
            _fail(f"another process of this run ended ({str(problem).splitlines()[0]})")
        if "DataLoader worker" not in str(problem):
            raise
        _fail("a loader process died, often for lack of memory: lower --workers, or set --cache false")
    except (ValueError, OSError) as problem:
        # What has a number and words of its own, and no file, says all in the words.
        own = isinstance(problem, OSError) and problem.filename is None and problem.strerror
        _fail(own or str(problem) or type(problem).__name__)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # that they end is no error now
        for child in multiprocessing.active_children():  # loaders of which something still holds the iterator
            child.kill()


def _fail(message: str) -> None:
    if os.environ.get("TRACEBACK"):
        raise
    if message.startswith("Caught ") and "Traceback" in message:
        # An error of a loader process comes with its traceback, whose last line is the error.
        message = message.strip().splitlines()[-1].partition(": ")[2]
    who = "" if processes.is_main() else f"process {processes.rank()}: "
    print(f"error: {who}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


# ---------------------------------------------------------------------------------------------- machine


def pick_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N -> device. Raises ValueError when it is not there.

    Under torchrun each process takes a GPU of its own, unless one is named.
    """
    own = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    if name in ("auto", "cuda"):
        name = own if name == "cuda" or torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def machine(device: torch.device) -> str:
    """The device in words, for the conditions line of a measurement."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """auto | fp32 | bf16 | fp16 -> the dtype to autocast to; float32 = no autocast."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """The mixed-precision region for `dtype`; does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def setup_cpu(threads: int = 0) -> None:
    """Call once at the start of a script that runs the network on a CPU.

    glibc returns each freed activation map to the kernel and gets zeroed pages for the next one, which costs more
    than the convolutions: keeping the memory makes a training step here about twice as fast (README, Speed).
    """
    if threads:
        torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to do
        libc = ctypes.CDLL("libc.so.6")
        m_mmap_max, m_trim_threshold, m_arena_max = -4, -1, -8  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_arena_max, 1)  # the backward pass runs in a thread of its own


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def git_commit() -> str:
    """The commit of this code, with '+' when files differ from it; '' outside a checkout."""
    here = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10)
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + ("+" if commit.returncode == 0 and changed.stdout.strip() else "")


# ---------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it at the end: `path` is written whole or not at all.

    Raises OSError that names `path` when the disk is full or not to be written to.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; give what a plain open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as problem:
        if problem.errno not in UNWRITABLE:
            raise
        what = f"{path}: could not be written, what was there stays ({problem.strerror})"
        raise OSError(problem.errno, what) from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def refuse_existing(output: Path) -> None:
    """Raises FileExistsError unless `output` is absent or an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: exists and is not an empty folder; remove it or choose another --output")


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that becomes `output` at the end: it appears whole or not at all."""
    refuse_existing(output)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        if output.exists():
            output.rmdir()
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# ---------------------------------------------------------------------------------------------- log


class Log:
    """log.jsonl, TensorBoard, and a progress bar, or lines where nobody watches one.

    Without a folder it keeps silent, as in all processes but the main one.
    """

    def __init__(self, folder: Path | None, total: int, first: int) -> None:
        self.file = (folder / "log.jsonl").open("a") if folder else None
        self.board = SummaryWriter(str(folder)) if folder else None
        watched = folder and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=first, unit="batch", disable=not watched, dynamic_ncols=True)
        self.total, self.reports = total, 0

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        try:
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as problem:
            raise OSError(f"{self.file.name}: the log could not be written ({problem.strerror})") from None

    def losses(self, step: int, losses: Mapping[str, float], others: Mapping[str, float]) -> None:
        if not self.file:
            return
        self._write("train", step, {**losses, **others})
        shown = {name: f"{value:.3f}" for name, value in losses.items()}
        shown["images/s"] = f"{others['images_per_s']:.1f}"
        shown["waiting for data"] = f"{others['waiting_for_data']:.0%}"
        self.bar.set_postfix(shown)
        if self.bar.disable and self.reports % 10 == 0:
            print(
                f"batch {step}/{self.total}  " + "  ".join(f"{name} {value}" for name, value in shown.items()),
                flush=True,
            )
        self.reports += 1

    def metrics(self, step: int, title: str, metrics: Mapping[str, float], headlines: Sequence[str]) -> None:
        if not self.file:
            return
        self._write("val", step, metrics)
        self.bar.write(f"{title}  " + "  ".join(f"{name} {metrics[name]:.4f}" for name in headlines if name in metrics))
        sys.stdout.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """image (H, W, 3) uint8"""
        if self.board:
            self.board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        for part in (self.bar, self.board, self.file):
            if part is not None:
                part.close()


# ---------------------------------------------------------------------------------------------- checkpoints


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
    digest = hashlib.sha256()
    with path.open("rb") as file:
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
