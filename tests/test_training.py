"""The parts of a training, in this process: which epoch is kept, resuming, schedules, locks, what is refused."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dataset
import train
import utils
from config import Config, add_settings, make_config
from dataset import Frames, available_memory, class_frequencies, eval_loader
from folders import read_folder, read_list
from model import build_network, load_network
from networks.checkpoints import read_checkpoint
from networks.decoders import ChannelScale
from tasks import Depth
from training import step
from training.best import Best
from training.data import load_data
from training.evaluation import accumulate, values_of
from training.mixture import train_loader
from training.resume import RESUMABLE, locked, read_state, start_run
from training.step import Training, check_finite
from user_input.flags import Parser

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


def flags(*words: object) -> argparse.Namespace:
    parser = Parser()
    add_settings(parser)
    parser.add_argument("--run")
    parser.add_argument("--resume")
    return parser.parse_args(list(map(str, words)))


def built(folder: Path, **values: object) -> tuple[Training, list[dict[str, torch.Tensor]]]:
    """A training, and a batch for each of some steps."""
    config = settings(folder, **values)
    tasks, mixture, val = load_data(config, None)
    network = build_network(config, tasks, {name: frames.tasks for name, frames in val.items()})
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    precision = utils.pick_precision(config.precision, CPU)
    return Training(network.train(), config, CPU, precision, 12), list(train_loader(mixture, config, 12))


# ---------------------------------------------------------------------------------------------- which epoch is kept

NAN = float("nan")


@pytest.mark.parametrize(("metric", "values", "best"), [
    ("segmentation/miou", (0.2, 0.5, 0.3), 2), ("depth/rmse", (3.0, 1.0, 2.0), 2), ("depth/rmse", (NAN, 2.0, NAN), 2),
    ("segmentation/miou", (NAN, 0.1, 0.4), 3), ("depth/delta1", (0.5, 0.5, 0.5), 1),
])  # fmt: skip
def test_best_is_the_best_epoch(rooms_folder, tmp_path, monkeypatch, metric, values, best):
    found = iter(values)
    monkeypatch.setattr(train, "evaluate_all", lambda *_: ({metric: next(found)}, {}))
    train.train(settings(rooms_folder, epochs=3, best_metric=metric), tmp_path)
    content = read_checkpoint(tmp_path / "best.pt")
    assert content["step"] == 3 * best and content["metrics"] == {metric: values[best - 1]}
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 9


def test_nan_is_worse_than_every_number():
    rising, falling = Best("a", 1, ()), Best("b", -1, ())
    for best in (rising, falling):
        assert best.improves(NAN, None) and best.improves(0.0, NAN)
        assert not best.improves(NAN, NAN) and not best.improves(NAN, 5.0)
    assert rising.improves(2.0, 1.0) and not rising.improves(1.0, 1.0) and falling.improves(1.0, 2.0)


@pytest.mark.parametrize("ema", [0, 0.9])
def test_the_kept_network_is_the_one_that_was_evaluated(rooms_folder, tmp_path, ema):
    """Pictures of validation frames must not change batch norm's statistics before the network is saved."""
    config = settings(rooms_folder, ema=ema)
    train.train(config, tmp_path)
    network = load_network(tmp_path / "best.pt")
    folder = read_folder(rooms_folder)
    frames = Frames(folder, read_list(folder, "val"), network.tasks, config, train=False)
    again = values_of(accumulate(network, eval_loader(frames, config), CPU))
    assert again == pytest.approx(read_checkpoint(tmp_path / "best.pt")["metrics"], abs=1e-6)


def without_labels(rooms_folder: Path, folder: Path, column: int, lists: tuple[str, ...]) -> Path:
    shutil.copytree(rooms_folder, folder)
    for name in lists:
        lines = [line.split("\t") for line in (folder / name).read_text().splitlines()]
        kept = ["\t".join([*cells[:column], "-", *cells[column + 1 :]]) for cells in lines]
        (folder / name).write_text("\n".join(kept))
    return folder


def test_the_deciding_metric_is_checked_before_the_first_step(rooms_folder, tmp_path):
    folder = without_labels(rooms_folder, tmp_path / "data", 1, ("val.txt",))
    with pytest.raises(ValueError, match="the split 'val' has no labels for 'segmentation/miou', only for depth"):
        train.train(settings(folder, best_metric="segmentation/miou"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train.train(settings(folder, epochs=1), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run/last.pt")["training"]["best"] > 0, "the first that has labels: depth"


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


# ---------------------------------------------------------------------------------------------- the optimizer


def test_scales_that_start_at_1_do_not_decay(rooms_folder):
    training, _ = built(rooms_folder, weight_decay=0.1)
    decay = {id(item): group["weight_decay"] for group in training.optimizer.param_groups for item in group["params"]}
    scales = [module.weight for module in training.network.modules() if isinstance(module, ChannelScale)]
    assert scales and all(decay[id(weight)] == 0 for weight in scales)
    kernels = [module.weight for module in training.network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert kernels and all(decay[id(weight)] == 0.1 for weight in kernels)


def test_rates_of_each_group_and_step(rooms_folder):
    training, batches = built(rooms_folder, lr_encoder=1e-4, lr_decoder=1e-3, task_weighting="uncertainty")
    for number, batch in enumerate(batches[:5]):
        training.take_step([batch])
        factor = (number + 1) / 2 if number < 2 else (1 - (number - 2) / 10) ** 0.9
        rates = {group["name"].partition(",")[0]: group["lr"] for group in training.optimizer.param_groups}
        assert rates == pytest.approx({"encoder": 1e-4 * factor, "decoder": 1e-3 * factor, "weighting": 1e-2 * factor})
        assert training.learning_rates() == {"lr_encoder": rates["encoder"], "lr_decoder": rates["decoder"]}


def test_an_fp16_step_that_overflows_is_left_out(rooms_folder):
    training, batches = built(rooms_folder, precision="fp16", ema=0.9, clip_norm=1)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    training.take_step([batches[0]])
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)  # every gradient becomes infinite
    before = {name: value.clone() for name, value in training.network.named_parameters()}
    average = training.average.updates
    training.take_step([batches[1]])
    assert (training.step, training.data_steps, training.average.updates) == (1, 2, average)
    assert all(torch.equal(value, before[name]) for name, value in training.network.named_parameters())
    assert training.scaler.get_scale() < 2.0**100
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    training.take_step([batches[2]])
    assert (training.step, training.data_steps) == (2, 3)
    assert training.learning_rates()["lr_encoder"] == pytest.approx(1e-3), "the second of two steps of warm-up"


def test_losses_that_are_not_finite_are_named():
    fine, infinite = {"depth": torch.tensor(1.0)}, {"depth": torch.tensor(2.0), "normals": torch.tensor(math.inf)}
    check_finite([])
    check_finite([(1, fine), (2, fine)])
    with pytest.raises(ValueError, match="step 7: the normals loss is inf"):
        check_finite([(6, fine), (7, infinite), (8, infinite)])


def test_the_commit_is_that_of_the_start(rooms_folder, tmp_path, monkeypatch):
    commits = iter(["first", "second"])
    monkeypatch.setattr(step, "git_commit", lambda: next(commits))
    training, _ = built(rooms_folder)
    for _ in range(2):
        training.save(tmp_path / "last.pt", resumable=True)
    assert read_checkpoint(tmp_path / "last.pt")["commit"] == "first"


def test_frozen_batch_norm_is_the_encoders(rooms_folder):
    training, _ = built(rooms_folder, freeze_bn="true", decoder="unet", crop="32,32")
    norms = {
        name: module
        for name, module in training.network.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    train.to_train_mode(training.network)
    assert {name.partition(".")[0] for name in norms} == {"encoder", "decoder"}
    for name, module in norms.items():
        inside = name.startswith("encoder.")
        assert module.training != inside and all(item.requires_grad != inside for item in module.parameters())


# ---------------------------------------------------------------------------------------------- data


def test_log_class_weights(rooms_folder):
    config = settings(rooms_folder, class_weights="log")
    _, mixture, val = load_data(config, None)
    task = mixture.parts[0].tasks["segmentation"]
    shares = class_frequencies(mixture.parts[0], task)
    assert task.class_weights == pytest.approx([1 / math.log(1.02 + share) for share in shares])
    assert max(task.class_weights) == pytest.approx(1 / math.log(1.02)), "a class that does not occur"
    assert next(iter(val.values())).tasks["segmentation"] == task
    # In the loss of a step: the mean weighted by them.
    network = build_network(config, load_data(config, None)[0], {"rooms": mixture.parts[0].tasks}).eval()
    training = Training(network, dataclasses.replace(config, loss_stride=1), CPU, torch.float32, 10)
    training.update = lambda: None
    batch = next(iter(train_loader(mixture, config, 1)))
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(
            network(batch["image"])["segmentation"], size=(64, 64), mode="bilinear"
        )
    expected = torch.nn.functional.cross_entropy(
        logits, batch["segmentation"].long(), torch.tensor(task.class_weights), ignore_index=255
    )
    assert float(training.take_step([batch])["segmentation"]) == pytest.approx(float(expected), rel=1e-4)


def test_a_cache_that_does_not_fit(rooms_folder, monkeypatch, capsys):
    needed = 12 * 96 * 72 * (3 + 1 + 4)  # image, mask, depth
    monkeypatch.setattr(dataset, "available_memory", lambda: int(needed / 0.7) + 100)
    part = load_data(settings(rooms_folder), None)[1].parts[0]
    assert len(part.decoded) == 12 and not capsys.readouterr().out
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # another process of this machine keeps as many
    other = load_data(settings(rooms_folder), None)[1].parts[0]
    assert not other.decoded and "do not fit" in capsys.readouterr().out
    assert all(torch.equal(value, other[0, 0, 3][name]) for name, value in part[0, 0, 3].items())


def test_each_process_keeps_its_own_validation_frames(rooms_folder, monkeypatch):
    monkeypatch.setattr("distributed.count", lambda: 3)
    monkeypatch.setattr("distributed.rank", lambda: 1)
    monkeypatch.setattr("distributed.wait", lambda: None)
    _, mixture, val = load_data(settings(rooms_folder), None)
    assert list(val["rooms"].decoded) == [1] and len(mixture.parts[0].decoded) == 12


def test_memory_that_caches_files_is_available(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  16000 kB\nMemFree:  100 kB\nMemAvailable:  9000 kB\nHugePages: 0\n")
    assert available_memory(tmp_path / "meminfo") == 9000 * 1024
    assert available_memory(tmp_path / "nowhere") > 2**20


def test_without_changes_of_color_nothing_is_loaded_for_them(rooms_folder, monkeypatch):
    def refuse(strength: float) -> None:
        raise AssertionError("albumentations takes most of a second")

    monkeypatch.setattr(dataset, "color_changes", refuse)
    assert load_data(settings(rooms_folder), None)[1].parts[0].color is None
    with pytest.raises(AssertionError):
        load_data(settings(rooms_folder, color=0.5), None)


@pytest.mark.parametrize("activation", list(Depth.ACTIVATIONS))
def test_depth_begins_at_the_mean_of_the_training_depth(rooms_folder, activation):
    config = settings(rooms_folder, depth_activation=activation)
    tasks, mixture, _ = load_data(config, None)
    network = build_network(config, tasks).eval()
    train.start_heads(network, mixture)
    mean = np.mean([label[label > 0].mean() for label in (item["depth"] for item in mixture.parts[0].decoded.values())])
    depth = network.predict(
        torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), {"depth": (64, 64)}, {"depth": tasks["depth"]}
    )["depth"]
    assert float(depth.mean()) == pytest.approx(mean, rel=0.05)
    assert Depth().first_output([]) is None and Depth().first_output([np.zeros((3, 4), np.float32)]) is None


def test_a_run_begins_at_the_mean_depth(rooms_folder, tmp_path):
    train.train(settings(rooms_folder, epochs=1, lr_encoder=0, lr_decoder=0), tmp_path)
    heads = load_network(tmp_path / "best.pt").heads
    assert heads["depth"][-1].bias > 1 and not heads["segmentation"][-1].bias.any()


def test_malloc_is_left_alone_beside_a_gpu(monkeypatch):
    called = []
    monkeypatch.setattr(
        utils.ctypes, "CDLL", lambda name: called.append(name) or argparse.Namespace(mallopt=lambda *_: 1)
    )
    utils.setup_cpu(0, torch.device("cuda"))
    assert not called
    utils.setup_cpu(0, CPU)
    assert called


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
