"""What several scripts need: errors in one line, devices, seeds, atomic writes, optional packages."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import distributed

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


# ---------------------------------------------------------------------------------------------- errors

OUT_OF_MEMORY = (
    "out of memory: lower --batch_size (--accumulate makes up for it) or --crop in training, the size of the images "
    "or --scales elsewhere"
)


def run(main: Callable[[], int | None]) -> None:
    """Runs a script. What a user can cause becomes one line, `error: ...`, and exit status 2.

    TRACEBACK=1 in the environment shows where it came from.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # so that temporary files are removed, as after Ctrl-C
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # up to here startup.py has ended the script
            signal.signal(signal.SIGINT, signal.default_int_handler)
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
        # For an OSError with errno and message but no file name, the message alone is enough.
        own = isinstance(problem, OSError) and problem.filename is None and problem.strerror
        _fail(own or str(problem) or type(problem).__name__)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # that they end is no error now
        for child in multiprocessing.active_children():  # loaders of which something still holds the iterator
            child.kill()


def printable(text: str) -> str:
    """Text for a terminal: control characters, such as escape sequences in the name of a file, as backslash codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _fail(message: str) -> None:
    if os.environ.get("TRACEBACK"):
        raise
    if message.startswith("Caught ") and "Traceback" in message:
        # An error of a loader process comes with its traceback, whose last line is the error.
        message = message.strip().splitlines()[-1].partition(": ")[2]
    who = "" if distributed.is_main() else f"process {distributed.rank()}: "
    print(f"error: {who}{printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)


# ---------------------------------------------------------------------------------------------- machine


def pick_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N -> device. Raises ValueError when it is not there.

    Under torchrun each process takes a GPU of its own, unless one is named; else it is the first. A CUDA device has its
    number, without which torch.cuda.set_device takes none.
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
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


def pick_precision(name: str, device: torch.device, training: bool = False) -> torch.dtype:
    """auto | fp32 | bf16 | fp16 -> the dtype to autocast to; float32 = no autocast.

    On a CPU `auto` is bfloat16 only for a training, where the processor has instructions for it (docs/BENCHMARKS.md,
    Training). Raises ValueError for another name.
    """
    if name == "auto":
        if device.type == "cpu":
            can = torch.cpu.get_capabilities()
            fast = training and (can.get("avx512_bf16") or can.get("amx_bf16"))
            return torch.bfloat16 if fast else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in known:
        raise ValueError(f"precision {name!r} is none of auto, {', '.join(known)}")
    return known[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """The mixed-precision region for `dtype`; does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def setup_cpu(threads: int = 0, device: torch.device | None = None) -> None:
    """Sets the number of threads and, unless `device` is a GPU, keeps freed memory. Call once, at a script's start.

    glibc returns each freed activation map to the kernel and gets zeroed pages for the next one, which costs more
    than the convolutions: keeping the memory makes a training step here about twice as fast (README, Speed). Beside a
    GPU it would only make the threads that decode and pin frames share one lock.
    """
    if threads:
        torch.set_num_threads(threads)
    if device is not None and device.type == "cuda":
        return
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
    """Atomic write: a temporary path beside `path` that replaces it at the end.

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
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; give what a plain open() would have given
        temporary.replace(path)
    except OSError as problem:
        if problem.errno not in UNWRITABLE:
            raise
        what = f"{path}: could not be written, what was there stays ({problem.strerror})"
        raise OSError(problem.errno, what) from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_existing(output: Path) -> None:
    """Raises FileExistsError unless `output` is absent or an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: exists and is not an empty folder; remove it or choose another --output")


@contextlib.contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Inside, no other process writes `output`. Raises ValueError when one does.

    A lock on a hidden file beside it, which the system frees when the process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = output.with_name(f".{output.name}.lock")
    while True:
        with path.open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(
                    f"{output}: another process writes it; wait for it, or choose another --output"
                ) from None
            except OSError:  # a file system without locks
                pass
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # the process before us removed it after we had opened it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Atomic write of a folder: a temporary one beside `output` that becomes `output` at the end.

    Raises FileExistsError where something is there, ValueError while another process writes it, and OSError that names
    `output` when the disk is full or not to be written to.
    """
    refuse_existing(output)
    part = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(output):
            for left in output.parent.glob(f".{glob.escape(output.name)}.????????.part"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            part = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".part"))
            part.chmod(0o777 & ~_umask())
            yield part
            if output.exists():
                output.rmdir()
            part.rename(output)
    except OSError as problem:
        of_others = problem.filename is not None and not (part and str(problem.filename).startswith(str(part)))
        if problem.errno not in UNWRITABLE or of_others:
            raise
        raise OSError(problem.errno, f"{output}: could not be written ({problem.strerror})") from None
    finally:
        if part:
            shutil.rmtree(part, ignore_errors=True)


# ---------------------------------------------------------------------------------------------- optional packages


OPTIONAL = {  # package -> what brings it
    "matplotlib": "requirements.txt",
    "av": "requirements/video.txt",
    "open3d": "requirements/3d.txt",
    "gradio": "requirements/app.txt",
    "plotly": "requirements/app.txt",
    "playwright": "requirements/dev.txt",
    "transformers": "requirements/peers.txt",
}


SYSTEM = "on Debian: apt install libusb-1.0-0 libgl1 libegl1"  # for open3d


def require(*packages: str) -> None:
    """Raises ValueError that says what to install."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            file = OPTIONAL.get(package, "requirements/deploy.txt")
            raise ValueError(f"{package} is not installed: pip install -r {file}") from None
        except ImportError as problem:  # it is there, but a library of the system is not
            hint = f"; {SYSTEM}" if package == "open3d" else ""
            raise ValueError(f"{package} does not load: {problem}{hint}") from None
