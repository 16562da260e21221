"""A training of seconds, in the process of the tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train
import utils
from config import Config, make_config
from model import build_network
from training.data import load_data
from training.mixture import train_loader
from training.step import Training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _signals_and_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training changes the process's signal handlers and its allocator."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(train, "setup_cpu", lambda *_: None)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def settings(folder: Path, **values: object) -> Config:
    return make_config(
        {"data": str(folder), "long_side": 0, "crop": "64,64", "encoder": "mobilenetv2_100", "decoder_width": 8,
         "crp_stages": 1, "batch_size": 4, "epochs": 2, "eval_every": 1, "warmup_steps": 2, "workers": 0, "color": 0,
         "device": "cpu", "class_weights": "none", **{name: str(value) for name, value in values.items()}}, "test",
    )  # fmt: skip


def built(folder: Path, **values: object) -> tuple[Training, list[dict[str, torch.Tensor]]]:
    """A training, and a batch for each of some steps; in fp32, so that gradients can be compared on any machine."""
    config = settings(folder, **({"precision": "fp32"} | values))
    tasks, mixture, val = load_data(config, None)
    network = build_network(config, tasks, {name: frames.tasks for name, frames in val.items()})
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    device = torch.device(config.device)
    precision = utils.pick_precision(config.precision, device)
    return Training(network.to(device).train(), config, device, precision, 12), list(train_loader(mixture, config, 12))
