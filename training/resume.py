"""How a run begins: in a new folder, from where an earlier one stopped, or again after torchrun lost a process."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import distributed
from checkpoints import read_checkpoint
from config import Config, config_from, make_config, settings_from

# What may change when a run is resumed; everything else would make it another training.
RESUMABLE = {
    "data", "workers", "cache", "device", "precision", "channels_last", "compile", "threads", "eval_every",
    "log_every", "save_minutes",
}  # fmt: skip


def start_run(arguments: argparse.Namespace) -> tuple[Path, Config, dict[str, object] | None]:
    """The folder and the settings of a new run."""
    config = config_from(arguments)
    if distributed.count() > 1 and not arguments.run:
        raise ValueError("--run is needed with several processes, so that all of them write to one folder")
    folder = Path(arguments.run or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.encoder}")
    if (folder / "last.pt").exists():
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):  # torchrun --max-restarts, with the same command
            content = read_checkpoint(folder / "last.pt")
            return folder, regrouped(config, content), content
        raise ValueError(f"{folder} holds a run: go on with --resume {folder}, or choose another --run")
    folder.mkdir(parents=True, exist_ok=True)
    return folder, config, None


def resume_run(arguments: argparse.Namespace) -> tuple[Path, Config, dict[str, object]]:
    """The folder, the settings and the content of last.pt of a run to go on with."""
    if arguments.run or arguments.config:
        raise ValueError("--resume takes the run's own settings: leave out --run and --config")
    folder = Path(arguments.resume)
    folder = folder.parent if folder.suffix == ".pt" else folder
    content = read_checkpoint(folder / "last.pt")
    if "training" not in content:
        raise ValueError(f"{folder / 'last.pt'}: it holds no state to go on from")
    if "domains" not in content:
        raise ValueError(f"{folder / 'last.pt'}: an earlier version of this code wrote it; go on with that one")
    changes = settings_from(arguments)
    for name in changes:
        if name not in RESUMABLE:
            raise ValueError(f"--{name} cannot change when a run is resumed; these can: {', '.join(sorted(RESUMABLE))}")
    config = make_config(changes, "command line", make_config(content["config"], str(folder / "last.pt")))
    return folder, regrouped(config, content), content


def regrouped(config: Config, content: Mapping[str, object]) -> Config:
    """The settings with which as many processes as there are now take the steps of the run's checkpoint, which may have
    had another number of them. Raises ValueError when they cannot share a step's frames evenly."""
    before, now = content["training"].get("processes", 1), distributed.count()
    if before == now:
        return config
    frames = config.batch_size * config.accumulate * before
    if frames % now:
        raise ValueError(f"--resume: a step has {frames} frames, which {now} processes cannot share evenly")
    batch = max(size for size in range(1, config.batch_size + 1) if frames // now % size == 0)
    return dataclasses.replace(config, batch_size=batch, accumulate=frames // now // batch)
