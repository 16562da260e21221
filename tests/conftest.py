"""Fixtures: a tiny generated data set, and the real frames where they are present."""

from __future__ import annotations

import startup  # noqa: F401 - so that the fork server has the environment that the tests have from here on

import fcntl
import io
import os
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import forkserver
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# A shell's background process ignores SIGINT, and so would all scripts that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
LONGEST = (
    "test_train", "test_processes", "test_faults", "test_export", "test_domains", "test_teach", "test_benchmark",
    "test_hostile", "test_video", "test_app",
)  # fmt: skip


def shared(name: str) -> Path:
    """A file or folder of real data beside the checkout; skips the test when it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the real data {name}, which is not part of the repository")
    return path


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


def made_once(name: str, make: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `name`, which make(folder) fills. The worker processes of a run share it: the first that asks makes
    it, and the others wait."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent  # each worker has a folder of its own in that of the run
    folder, unfinished = common / name, common / f".{name}"
    with (common / f".{name}.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a worker that failed
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def rooms_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 4 validation rooms of 96x72. Both workers read it: change a copy."""
    from rooms import generate

    return made_once(
        "rooms", lambda folder: generate.write(folder, train=12, val=4, width=96, height=72, seed=3), tmp_path_factory
    )


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _fork_server_ends() -> Iterator[None]:
    """With the last test, so that coverage counts what it ran, too."""
    yield
    forkserver.SERVER.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that two processes end at about the same time."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def script() -> Script:
    """script("train.py", "--epochs", 2, cwd=...) runs it as a user would and returns what it printed.

    A module of a folder has its dotted name.
    It runs in a fork of a process that has imported torch (tests/forkserver.py); with fresh=True in a new process.
    """

    def call(
        name: str, *arguments: object, cwd: Path | None = None, fresh: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        process = forkserver.start(
            name, *arguments, cwd=cwd or ROOT, environment={**forkserver.ENVIRONMENT, **environment}, fresh=fresh
        )
        try:
            out, errors = process.communicate(timeout=300)
        finally:
            process.kill()  # does nothing when it has ended
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    return call


def make_two_sets(rooms_folder: Path, where: Path) -> tuple[Path, Path]:
    """Rooms with masks only, and rooms with depth only whose class list has other names; no frame has both labels."""
    folders = []
    for name, column in (("masks_only", 1), ("depth_only", 2)):
        folder = where / name
        shutil.copytree(rooms_folder, folder)
        values = yaml.safe_load((folder / "dataset.yaml").read_text())
        (folder / "dataset.yaml").write_text(yaml.safe_dump(values | {"name": name}))
        for split in ("train.txt", "val.txt"):
            lines = [line.split("\t") for line in (folder / split).read_text().splitlines()]
            kept = [[cell if number in (0, column) else "-" for number, cell in enumerate(cells)] for cells in lines]
            (folder / split).write_text("\n".join("\t".join(cells) for cells in kept))
        folders.append(folder)
    return folders[0], folders[1]


@pytest.fixture
def two_sets(rooms_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    return make_two_sets(rooms_folder, tmp_path)


@pytest.fixture(scope="session")
def tiny_settings(rooms_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file with which a training takes seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = {
        "data": str(rooms_folder), "long_side": 0, "crop": [64, 64], "encoder": "mobilenetv2_100",
        "decoder_width": 16, "crp_stages": 1, "class_weights": "none", "batch_size": 4, "epochs": 4, "eval_every": 2,
        "warmup_steps": 2, "workers": 0, "device": "cpu", "threads": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def trained(script: Script, tiny_settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four epochs with all three tasks. A copy: scripts write beside the checkpoint."""

    def train(folder: Path) -> None:
        done = script("train.py", "--config", tiny_settings, "--tasks", "segmentation,depth,normals", "--run", folder)
        assert done.returncode == 0, done.stderr

    common = made_once("trained", train, tmp_path_factory)
    return shutil.copytree(common, tmp_path_factory.mktemp("runs") / "trained")


def only_error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one `error:` line of a script that was given something wrong."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def start_training(arguments: list[object], cwd: Path | None = None) -> forkserver.Fork | subprocess.Popen[str]:
    """Starts train.py in a session of its own."""
    return forkserver.start("train.py", *arguments, cwd=cwd, new_session=True)


def wait_for(path: Path, line: str, process: forkserver.Fork | subprocess.Popen[str], times: int = 1) -> None:
    """Waits until the file holds `line` so many times."""
    deadline = time.monotonic() + 120
    while not (path.is_file() and path.read_text().count(line) >= times):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------- preparing data sets


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_holds(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def small_frame(number: int, height: int = 13, width: int = 17) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (H, W, 3), mask (H, W) of ids 0..39 and 255, depth (H, W) in 1/5000 m."""
    rng = np.random.default_rng(number)
    mask = rng.choice([*range(40), 255], (height, width)).astype(np.uint8)
    return rng.integers(0, 256, (height, width, 3), np.uint8), mask, rng.integers(5000, 49000, mask.shape, np.uint16)


def write_zip(path: Path, members: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path
