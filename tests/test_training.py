"""The parts of a training, in this process: which epoch is kept, the optimizer, the data of a step."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import CPU, _signals_and_memory, built, settings  # noqa: F401

import dataset
import train
import utils
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
from training.step import Training, check_finite

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


# ---------------------------------------------------------------------------------------------- the optimizer


def test_a_first_step_that_the_scaler_skips_leaves_no_momentum(rooms_folder):
    """The scale of fp16 begins high, so that gradients overflow; SGD would start with what its memory held before."""
    training, _ = built(rooms_folder, optimizer="sgd")
    momenta = [state["momentum_buffer"] for state in training.optimizer.state.values()]
    assert len(momenta) == len(list(training.network.parameters())) and not any(item.any() for item in momenta)
    for parameter in training.network.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    training.optimizer.found_inf, training.optimizer.grad_scale = torch.ones(()), torch.ones(())
    training.optimizer.step()
    assert all(
        state["momentum_buffer"] is own for state, own in zip(training.optimizer.state.values(), momenta, strict=True)
    )
    assert not any(item.any() for item in momenta)


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


MEBIBYTE = 2**20


def write_group(folder: Path, **values: object) -> None:
    """A control group: its files memory.NAME."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_memory_that_caches_files_is_available(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  16000 kB\nMemFree:  100 kB\nMemAvailable:  9000 kB\nHugePages: 0\n")
    nowhere = tmp_path / "nowhere"
    assert available_memory(tmp_path / "meminfo", nowhere, nowhere) == 9000 * 1024
    assert available_memory(nowhere, nowhere, nowhere) > MEBIBYTE


@pytest.mark.parametrize(("group", "left"), [
    ("", 4), ("job", 3), ("job/step", 2), ("of/the/host", 4), ("full", 0), ("endless", 4),
])  # fmt: skip
def test_memory_of_a_container_is_what_its_limit_leaves(tmp_path, group, left):
    (tmp_path / "meminfo").write_text(f"MemAvailable:  {9 * 1024} kB\n")
    groups = {"": (10, 7, 1), "job": (5, 3, 1), "job/step": (2, 1, 1), "full": (3, 4, 0), "endless": (None, 4, 0)}
    for name, (limit, used, cached) in groups.items():
        most = limit * MEBIBYTE if limit else "max"
        stat = f"anon 0\ninactive_file {cached * MEBIBYTE}"
        write_group(tmp_path / "cgroup" / name, max=most, current=used * MEBIBYTE, stat=stat)
    (tmp_path / "own").write_text(f"0::/{group}\n")
    assert available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own") == left * MEBIBYTE


@pytest.mark.parametrize(("own", "left"), [("5:cpu,memory:/job\n0::/", 8), ("4:cpu:/job", 9)])
def test_memory_of_a_container_of_version_1(tmp_path, own, left):
    (tmp_path / "meminfo").write_text(f"MemAvailable:  {9 * 1024} kB\n")
    stat = f"inactive_file 0\ntotal_inactive_file {3 * MEBIBYTE}"
    group, limits = tmp_path / "cgroup/memory/job", {"limit_in_bytes": 20 * MEBIBYTE, "usage_in_bytes": 15 * MEBIBYTE}
    write_group(group, stat=stat, **limits)
    (tmp_path / "own").write_text(f"{own}\n")
    assert available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own") == left * MEBIBYTE


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
