"""How a run begins: in a new folder, from where an earlier one stopped, or again after torchrun lost a process."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

import distributed
from config import Config, config_from, given_settings, make_config, settings_from
from folders import label_tasks, read_folder
from model import Network, load_network
from networks.checkpoints import read_checkpoint
from training.frozen import check_frozen, refuse_new_weights

# What may change when a run is resumed; everything else would make it another training.
RESUMABLE = {
    "data", "workers", "cache", "device", "precision", "channels_last", "compile", "threads", "eval_every",
    "log_every", "save_minutes",
}  # fmt: skip
LOCK = ".lock"  # in each run folder, also the sign that the folder is a run


# ---------------------------------------------------------------------------------------------- a new run


def start_run(arguments: argparse.Namespace) -> tuple[Path, Config, dict[str, object] | None]:
    """The folder and the settings of a new run. Raises ValueError for a folder that holds anything but a run."""
    config = config_from(arguments)
    check_frozen(config)
    if distributed.count() > 1 and not arguments.run:
        raise ValueError("--run is needed with several processes, so that all of them write to one folder")
    folder = Path(arguments.run or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.encoder}")
    if (folder / "last.pt").exists():
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):  # torchrun --max-restarts, with the same command
            content = read_state(folder / "last.pt")
            config = make_config(content["config"], str(folder / "last.pt"))
            return folder, regrouped(config, content), content
        raise ValueError(f"{folder} holds a run: go on with --resume {folder}, or choose another --run")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run: {folder} is a file; give a new or empty folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise ValueError(f"--run: {folder} is not empty and holds no run; give a new or empty folder")
    given = given_settings(arguments)
    if "tasks" not in given:
        config = with_labeled_tasks(config)
    advise(config, given)
    return folder, config, None


def with_labeled_tasks(config: Config) -> Config:
    """The settings with those tasks for which the data have labels, where nobody chose any."""
    if not all(Path(path).is_dir() for path in config.data):  # the demo's data may not have been generated yet
        return config
    offered = {task for path in config.data for task in label_tasks(read_folder(path, config.teacher_labels))}
    tasks = tuple(task for task in config.tasks if task in offered)
    if tasks == config.tasks or not tasks:
        return config
    if distributed.is_main():
        missing = ", ".join(task for task in config.tasks if task not in tasks)
        print(f"tasks     {', '.join(tasks)}: {', '.join(config.data)} has no labels for {missing}")
    return dataclasses.replace(config, tasks=tasks)


def advise(config: Config, given: set[str]) -> None:
    """Prints a line where settings of the demo meet other data."""
    demo = Config()
    left = [
        f"--{name} {getattr(config, name)}"
        for name in ("long_side", "encoder_weights")
        if name not in given
        and getattr(config, name) == getattr(demo, name)
        and not (name == "encoder_weights" and config.init)
    ]
    if left and config.data != demo.data and distributed.is_main():
        print(
            f"advice    {' and '.join(left)} suit the demo's small generated rooms; for photographs start from "
            "a file in configs/, or set e.g. --long_side 640 --crop 384,512 --encoder_weights imagenet"
        )


def start_from(network: Network, path: Path) -> str:
    """Gives the network those weights of a checkpoint that fit it, and returns a line that says which.

    A head fits when its outputs mean the same. Raises FileNotFoundError or ValueError: another encoder never fits.
    """
    given = load_network(path)
    if given.config.encoder != network.config.encoder:
        theirs, own = given.config.encoder, network.config.encoder
        raise ValueError(f"init: {path} has the encoder {theirs}, this network {own}: --encoder {theirs} takes it")
    other = {
        f"heads.{name}." for name, task in network.tasks.items()
        if name not in given.tasks or not task.continues(given.tasks[name])
    }  # fmt: skip
    weights, wanted = given.state_dict(), network.state_dict()
    chosen = {
        name: weights[name] for name, tensor in wanted.items()
        if name in weights and weights[name].shape == tensor.shape and not name.startswith(tuple(other))
    }  # fmt: skip
    network.load_state_dict(chosen, strict=False)
    refuse_new_weights(network, [name for name in wanted if name not in chosen], path)
    new = dict.fromkeys(name.rpartition(".")[0] for name in wanted if name not in chosen)
    return f"{path}, {len(chosen)} of {len(wanted)} tensors; new: {', '.join(new) or 'nothing'}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other training writes into the folder. Raises ValueError when one does.

    The system frees the lock when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_main():
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows
        (folder / LOCK).touch()
        yield
        return
    with (folder / LOCK).open("ab+", buffering=0) as file:
        try:
            # Not flock: forked loader processes would inherit it, and may outlive this process by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(20).decode(errors="replace").strip()
            raise ValueError(f"{folder}: another training (process {owner}) writes into it") from None
        with contextlib.suppress(OSError):  # a full disk: the lock itself takes no space
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        yield


# ---------------------------------------------------------------------------------------------- a run to go on with


def resume_run(arguments: argparse.Namespace) -> tuple[Path, Config, dict[str, object]]:
    """The folder, the settings and the content of last.pt of a run to go on with."""
    if arguments.run or arguments.config:
        raise ValueError("--resume takes the run's own settings: leave out --run and --config")
    folder = Path(arguments.resume)
    folder = folder.parent if folder.suffix == ".pt" else folder
    content = read_state(folder / "last.pt")
    changes = settings_from(arguments)
    for name in changes:
        if name not in RESUMABLE:
            raise ValueError(f"--{name} cannot change when a run is resumed; these can: {', '.join(sorted(RESUMABLE))}")
    config = make_config(changes, "command line", make_config(content["config"], str(folder / "last.pt")))
    return folder, regrouped(config, content), content


def read_state(path: Path) -> dict[str, object]:
    """A checkpoint that a training can go on from. Raises FileNotFoundError or ValueError."""
    content = read_checkpoint(path)
    if "training" not in content:
        raise ValueError(f"{path}: it holds no state to go on from")
    if "domains" not in content:
        raise ValueError(f"{path}: an earlier version of this code wrote it; go on with that one")
    check_state(content, path)
    return content


def check_state(content: Mapping[str, object], path: Path) -> None:
    """Raises ValueError where the parts of the content that a training goes on from are not of the expected kind."""

    def check(name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{path}: {name} is missing or damaged; it must be {wanted}")

    def whole(value: object, least: int = 0) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def tensors(value: object) -> bool:
        return isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values())

    state = content["training"]
    check("training", isinstance(state, dict), "a table")
    for name in ("config", "tasks", "domains", "metrics"):
        check(name, isinstance(content[name], dict), "a table")
    check("domains", all(isinstance(tasks, dict) for tasks in content["domains"].values()), "a table of tables")
    metrics = content["metrics"].values()
    check("metrics", all(isinstance(value, int | float) for value in metrics), "a table of numbers")
    for name, where, least in (
        ("step", content, 0), ("data_steps", state, 0), ("average_updates", state, 0), ("processes", state, 1),
    ):  # fmt: skip
        value = where.get(name, 1 if name == "processes" else None)
        check(name, whole(value, least), f"a whole number of at least {least}")
    check("step", content["step"] <= state["data_steps"], "at most data_steps")
    for name in ("network", "weighting"):
        check(f"training.{name}", tensors(state.get(name)), "a table of tensors")
    check("training.scaler", isinstance(state.get("scaler"), dict), "a table")
    optimizer = state.get("optimizer")
    fits = isinstance(optimizer, dict) and isinstance(optimizer.get("state"), dict)
    check("training.optimizer", fits and isinstance(optimizer.get("param_groups"), list), "an optimizer's state")
    losses = state.get("epoch_losses")
    fits = tensors(losses) and all(value.shape == (2,) for value in losses.values())
    check("training.epoch_losses", fits, "a table of pairs")
    check("training.best", "best" in state and isinstance(state["best"], float | int | None), "a number or none")
    rng, wanted = state.get("rng"), torch.get_rng_state()
    fits = isinstance(rng, Tensor) and rng.dtype == wanted.dtype and rng.shape == wanted.shape
    check("training.rng", fits, f"{len(wanted)} bytes")


def regrouped(config: Config, content: Mapping[str, object]) -> Config:
    """The settings with which this number of processes takes the steps of the run's checkpoint, which may have had
    another number of them. Raises ValueError when they cannot share a step's frames evenly."""
    before, now = content["training"].get("processes", 1), distributed.count()
    if before == now:
        return config
    frames = config.batch_size * config.accumulate * before
    if frames % now:
        raise ValueError(f"--resume: a step has {frames} frames, which {now} processes cannot share evenly")
    batch = max(size for size in range(1, config.batch_size + 1) if frames // now % size == 0)
    return dataclasses.replace(config, batch_size=batch, accumulate=frames // now // batch)
