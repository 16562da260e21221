"""Resuming a training, in this process, and the folder of a run: locks, and what is refused."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from small_training import CPU, _signals_and_memory, built, settings  # noqa: F401

import train
from config import Config, add_settings
from networks.checkpoints import read_checkpoint
from training.resume import RESUMABLE, locked, read_state, start_run
from user_input.flags import Parser


def flags(*words: object) -> argparse.Namespace:
    parser = Parser()
    add_settings(parser)
    parser.add_argument("--run")
    parser.add_argument("--resume")
    return parser.parse_args(list(map(str, words)))


# ---------------------------------------------------------------------------------------------- resuming

OTHER = {
    "data": None, "workers": 1, "cache": "false", "precision": "bf16", "channels_last": "false", "eval_every": 2,
    "log_every": 1, "save_minutes": 0, "threads": 1,
}  # fmt: skip


class StopAt:
    """In place of StopRequest: SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @property
    def requested(self) -> int:
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else 0


@pytest.fixture(scope="module")
def whole_run(rooms_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a run, and of one that was stopped after 4 of 6 steps."""
    whole, stopped = (tmp_path_factory.mktemp("runs") / name for name in ("whole", "stopped"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "setup_cpu", lambda *_: None)
        train.train(settings(rooms_folder), whole)
        patch.setattr(train, "StopRequest", lambda: StopAt(4))
        with pytest.raises(SystemExit) as caught:
            train.train(settings(rooms_folder), stopped)
    assert caught.value.code == 128 + signal.SIGTERM
    assert read_checkpoint(stopped / "last.pt")["step"] == 4
    return whole, stopped


def test_every_setting_that_may_change_is_tried():
    assert RESUMABLE - OTHER.keys() == {"device", "compile"}, "these need a GPU and a compiler"


@pytest.mark.parametrize("name", OTHER)
def test_a_run_goes_on_with_another_setting(whole_run, rooms_folder, tmp_path, name):
    whole, folder = read_state(whole_run[0] / "last.pt"), tmp_path / "run"
    shutil.copytree(whole_run[1], folder)
    if name == "data":
        shutil.copytree(rooms_folder, tmp_path / "rooms")
    value = tmp_path / "rooms" if name == "data" else OTHER[name]
    threads = torch.get_num_threads()
    train.train(settings(rooms_folder, **{name: value}), folder, read_state(folder / "last.pt"))
    torch.set_num_threads(threads)
    found = read_state(folder / "last.pt")
    assert found["step"] == 6
    tolerance = {"precision": 0.05, "channels_last": 0.01}.get(name, 0)
    for key, value in whole["training"]["network"].items():
        if tolerance and "running" in key:  # batch norm's statistics: those of bf16 are far off
            continue
        assert torch.allclose(found["training"]["network"][key].float(), value.float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_moments_follow_the_memory_layout(rooms_folder, tmp_path, optimizer):
    """A fused optimizer pairs moments and parameters as they lie in memory."""
    first, batches = built(rooms_folder, optimizer=optimizer, ema=0)
    for batch in batches[:3]:
        first.take_step([batch])
    first.save(tmp_path / "last.pt", resumable=True)
    for layout in ("true", "false"):
        other, _ = built(rooms_folder, optimizer=optimizer, ema=0, channels_last=layout)
        other.restore(read_state(tmp_path / "last.pt"), tmp_path / "last.pt")
        for mine, theirs in zip(first.network.parameters(), other.network.parameters(), strict=True):
            for name, value in first.optimizer.state[mine].items():
                found = other.optimizer.state[theirs][name]
                assert torch.equal(found, value)
                assert name == "step" or found.stride() == theirs.stride()


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "fp16")])
def test_fp16_may_begin_and_end_at_a_resume(rooms_folder, tmp_path, before, after):
    first, batches = built(rooms_folder, precision=before)
    first.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=before == "fp16")
    first.take_step([batches[0]])
    assert first.step == 1
    first.save(tmp_path / "last.pt", resumable=True)
    other, _ = built(rooms_folder, precision=after)
    other.restore(read_state(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert other.step == 1 and other.scaler.is_enabled() == (after == "fp16")
    if before == after:
        assert other.scaler.get_scale() == 256
    other.take_step([batches[1]])
    assert other.data_steps == 2


DAMAGES: dict[str, Callable[[dict], object]] = {
    "training is missing or": lambda content: content.update(training=[1, 2]),
    "data_steps is missing": lambda content: content["training"].pop("data_steps"),
    "data_steps": lambda content: content["training"].update(data_steps="four"),
    "data_steps is": lambda content: content["training"].update(data_steps=-3),
    "step is": lambda content: content.update(step=-1),
    "at most data_steps": lambda content: content.update(step=99),
    "average_updates": lambda content: content["training"].update(average_updates=1.5),
    "processes": lambda content: content["training"].update(processes=0),
    "training.network": lambda content: content["training"].update(network={"a": 1}),
    "training.weighting": lambda content: content["training"].pop("weighting"),
    "training.scaler": lambda content: content["training"].update(scaler=None),
    "training.optimizer": lambda content: content["training"].update(optimizer={}),
    "training.epoch_losses": lambda content: content["training"].update(epoch_losses={"depth": 1.0}),
    "training.best": lambda content: content["training"].update(best="high"),
    "training.rng": lambda content: content["training"].update(rng=torch.zeros(3, dtype=torch.uint8)),
    "metrics": lambda content: content.update(metrics={"depth/rmse": "low"}),
    "domains": lambda content: content.update(domains={"rooms": 4}),
    "config": lambda content: content.update(config=[]),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_state_is_named(whole_run, tmp_path, words):
    content = read_checkpoint(whole_run[1] / "last.pt")
    DAMAGES[words](content)
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'last.pt'}: .*{words}"):
        read_state(tmp_path / "last.pt")


@pytest.mark.parametrize("damage", ["groups", "moments", "weighting"])
def test_a_state_of_another_network_is_named(rooms_folder, whole_run, damage):
    content = copy.deepcopy(read_state(whole_run[1] / "last.pt"))
    optimizer = content["training"]["optimizer"]
    if damage == "groups":
        optimizer["param_groups"].pop()
    elif damage == "moments":
        optimizer["state"][0]["exp_avg"] = torch.zeros(2)
    else:
        content["training"]["weighting"] = {"log_variance.depth": torch.zeros(())}
    training, _ = built(rooms_folder)
    path = whole_run[1] / "last.pt"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: its training state does not fit this network"):
        training.restore(content, path)


# ---------------------------------------------------------------------------------------------- the run's folder

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("4711")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def test_two_trainings_do_not_share_a_folder(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"^{tmp_path}: another training \(process 4711\) writes into it"),
            locked(tmp_path),
        ):
            raise AssertionError("it was given away twice")
    finally:
        other.kill()
        other.communicate()
    with locked(tmp_path):  # of a dead process nothing is left
        assert (tmp_path / ".lock").is_file()


def test_a_folder_of_the_users_own_is_refused(rooms_folder, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.yaml").write_text("mine")
    (own / ".x.tmp").write_text("mine")
    words = ["--data", rooms_folder, "--run", own]
    with pytest.raises(ValueError, match=rf"^--run: {own} is not empty and holds no run"):
        start_run(flags(*words))
    assert sorted(path.name for path in own.iterdir()) == [".x.tmp", "config.yaml"]
    (own / ".lock").touch()  # a run that ended before its first checkpoint
    assert start_run(flags(*words))[0] == own
    with pytest.raises(ValueError, match="is a file; give a new or empty folder"):
        start_run(flags("--data", rooms_folder, "--run", own / "config.yaml"))


def test_tasks_are_those_with_labels_unless_they_were_named(rooms_folder, tmp_path, capsys):
    folder = tmp_path / "masks"
    shutil.copytree(rooms_folder, folder)
    values = yaml.safe_load((folder / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values | {"columns": ["image", "segmentation"]}))
    config = start_run(flags("--data", folder))[1]
    assert config.tasks == ("segmentation",)
    assert f"tasks     segmentation: {folder} has no labels for depth" in capsys.readouterr().out
    assert start_run(flags("--data", folder, "--tasks", "segmentation,depth"))[1].tasks == ("segmentation", "depth")
    assert start_run(flags("--data", rooms_folder))[1].tasks == Config().tasks
    assert "tasks " not in capsys.readouterr().out


def test_settings_of_the_demo_are_named_where_the_data_are_others(rooms_folder, tmp_path, capsys):
    start_run(flags("--data", rooms_folder))
    assert "advice    --long_side 192 and --encoder_weights none suit the demo" in capsys.readouterr().out
    start_run(flags("--data", rooms_folder, "--long_side", 192))
    assert "advice    --encoder_weights none suit" in capsys.readouterr().out
    start_run(flags("--data", rooms_folder, "--long_side", 192, "--encoder_weights", "none"))
    (tmp_path / "c.yaml").write_text(f"data: {rooms_folder}\nlong_side: 480\nencoder_weights: imagenet\n")
    start_run(flags("--config", tmp_path / "c.yaml"))
    start_run(flags("--encoder", "resnet18"))
    assert "advice" not in capsys.readouterr().out
