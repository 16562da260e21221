"""Teachers that look on at a training: what is learned from them, and how it is counted."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import only_error_line
from small_training import CPU, _signals_and_memory, built, settings  # noqa: F401
from torch import Tensor, nn

import loss
import train
from model import load_network
from networks.checkpoints import read_checkpoint
from training.teachers import Teachers


@pytest.fixture(scope="module")
def teacher(rooms_folder, tmp_path_factory) -> Path:
    """A trained network of another encoder and width."""
    folder = tmp_path_factory.mktemp("teacher")
    train.train(settings(rooms_folder, epochs=8, eval_every=8, lr_decoder=1e-2, decoder_width=16), folder)
    return folder / "best.pt"


def without_masks(rooms_folder: Path, folder: Path) -> Path:
    """The rooms, of which no training frame has a mask."""
    shutil.copytree(rooms_folder, folder)
    rows = [line.split("\t") for line in (folder / "train.txt").read_text().splitlines()]
    (folder / "train.txt").write_text("\n".join("\t".join([row[0], "-", *row[2:]]) for row in rows))
    return folder


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: item.grad.clone() for name, item in network.named_parameters() if item.grad is not None}


def test_soft_cross_entropy_is_that_of_pytorch():
    logits, other = torch.randn(2, 2, 5, 7, 3, dtype=torch.float64)
    total, weight = loss.soft_cross_entropy(logits, other.softmax(1))
    assert weight == 2 * 7 * 3
    assert total / weight == pytest.approx(float(F.cross_entropy(logits.float(), other.softmax(1).float())), rel=1e-6)
    logits = logits.float().requires_grad_()
    sum(loss.soft_cross_entropy(logits, logits.detach().softmax(1))[:1]).backward()
    assert logits.grad.abs().max() < 1e-6, "nothing to learn from oneself"


def test_the_loss_is_that_of_the_views_that_the_student_sees(rooms_folder, teacher):
    training, (batch, *_) = built(rooms_folder, teachers=f"{teacher},{teacher}", ema=0)
    network, wise = training.network, load_network(teacher)
    images = batch["image"]
    with torch.no_grad():
        raws, answers = network(images), wise(images)
    own, own_depth = raws["segmentation"], F.softplus(raws["depth"])
    theirs = answers["segmentation"].softmax(1)
    wanted = -(theirs * own.log_softmax(1)).sum(1).mean()
    metres = F.softplus(answers["depth"])
    wanted_depth = loss.mean(loss.berhu(own_depth[:, 0], metres[:, 0], metres[:, 0] > 0))
    losses = training.take_step([batch])
    assert float(losses["segmentation/imitation"]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(losses["depth/imitation"]) == pytest.approx(float(wanted_depth), rel=1e-4)
    assert set(losses) == {"segmentation", "depth", "segmentation/imitation", "depth/imitation"}


def test_the_factor_is_on_the_teachers_part_of_the_gradient(rooms_folder, teacher, monkeypatch):
    """Gradients are those of the labels, plus the factor times those of the teachers."""
    monkeypatch.setattr("training.step.Training.update", lambda self: None)
    found = {}
    for factor in (0, 1, 3):
        torch.manual_seed(0)
        training, (batch, *_) = built(rooms_folder, teachers=teacher, imitation=factor, ema=0)
        training.take_step([batch])
        found[factor] = gradients(training.network)
    torch.manual_seed(0)
    plain, (batch, *_) = built(rooms_folder, ema=0)
    plain.take_step([batch])
    for name, alone in gradients(plain.network).items():
        torch.testing.assert_close(found[0][name], alone)
        once, thrice = found[1][name] - alone, found[3][name] - alone
        torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=2e-5 * float(alone.abs().max() + 1))
    assert any((found[1][name] - alone).abs().max() > 1e-3 for name, alone in gradients(plain.network).items())


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_parts_of_a_step_add_up(rooms_folder, teacher, tmp_path, monkeypatch, weighting):
    """2 x 2 frames make the step of 1 x 4, also of a task without any label."""
    monkeypatch.setattr("training.step.Training.update", lambda self: None)
    folder, found, reported = without_masks(rooms_folder, tmp_path / "rooms"), [], []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        training, batches = built(
            folder, teachers=teacher, batch_size=batch_size, accumulate=accumulate, depth_loss="l1", ema=0,
            task_weighting=weighting, tasks="segmentation,depth",
        )  # fmt: skip
        training.network.eval()  # batch norm sees parts of a step
        losses = training.take_step(batches[:accumulate])
        found.append(gradients(training.network) | gradients(training.weighting))
        reported.append({name: float(value) for name, value in losses.items()})
    assert reported[0] == pytest.approx(reported[1], rel=1e-4) and "segmentation/imitation" in reported[0]
    assert "segmentation" not in reported[0], "no label"
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))
    heads = [gradient for name, gradient in found[0].items() if name.startswith("heads.segmentation.")]
    assert heads and all(gradient.abs().max() > 0 for gradient in heads)


def test_a_teacher_sees_its_own_scale(rooms_folder, teacher, monkeypatch):
    tasks = load_network(teacher).tasks
    teachers = Teachers([teacher], tasks, 64, CPU, torch.float32)
    (network,), seen = teachers.networks, []
    network.config = dataclasses.replace(network.config, long_side=96)
    monkeypatch.setattr(network, "shared", lambda images: seen.append(images) or type(network).shared(network, images))
    images = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)
    raws = {"segmentation": torch.zeros(2, 40, 10, 16), "depth": torch.zeros(2, 1, 10, 16)}
    advice = teachers.advice(images, raws)
    assert seen[0].shape == (2, 3, 60, 96) and float(seen[0].min()) >= 0 and 0.5 < float(seen[0].max()) <= 1.001
    assert {name: tuple(value.shape) for name, value in advice.items()} == {
        "segmentation": (2, 40, 10, 16), "depth": (2, 1, 10, 16)
    }  # fmt: skip
    assert advice["segmentation"].sum(1).sub(1).abs().max() < 1e-4


def test_a_student_comes_closer_to_its_teacher(rooms_folder, teacher, tmp_path):
    """Without any label of its own for classes."""
    folder = without_masks(rooms_folder, tmp_path / "rooms")
    training, batches = built(folder, teachers=teacher, tasks="segmentation,depth", lr_decoder=1e-2, ema=0)
    values = [float(training.take_step([batches[0]])["segmentation/imitation"]) for _ in range(12)]
    assert values[-1] < 0.8 * values[0], values


def test_teachers_that_do_not_fit_are_refused(rooms_folder, teacher, tmp_path):
    tasks = load_network(teacher).tasks
    few = dataclasses.replace(tasks["segmentation"], classes=("a", "b"), colors=((0, 0, 0),) * 2)
    with pytest.raises(ValueError, match="nothing to teach here: segmentation: 40 classes and not 2"):
        Teachers([teacher], {"segmentation": few}, 64, CPU, torch.float32)
    with pytest.raises(ValueError, match="its tasks are segmentation, depth"):
        Teachers([teacher], {}, 64, CPU, torch.float32)
    (tmp_path / "text.pt").write_text("text")
    for name, kind in (("none.pt", FileNotFoundError), ("text.pt", ValueError)):
        with pytest.raises(kind, match=rf"^teachers: {re.escape(str(tmp_path / name))}: "):
            Teachers([tmp_path / name], tasks, 64, CPU, torch.float32)
    # A part of what it knows is enough.
    assert set(Teachers([teacher], {"depth": tasks["depth"]}, 64, CPU, torch.float32).taught) == {"depth"}


def test_the_command(script, tiny_settings, trained, tmp_path):
    options = ["--config", tiny_settings, "--run", tmp_path / "run", "--epochs", 1, "--teachers", trained / "best.pt"]
    done = script("train.py", *options, "--imitation", 0.5)
    assert done.returncode == 0, done.stderr
    assert "teachers  1, of segmentation, depth" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("segmentation/imitation" in row for row in rows if row["kind"] == "train")
    config = read_checkpoint(tmp_path / "run" / "best.pt")["config"]
    assert config["teachers"] == [str(trained / "best.pt")] and config["imitation"] == 0.5
    line = only_error_line(
        script("train.py", "--config", tiny_settings, "--teachers", "none.pt", "--run", tmp_path / "x")
    )
    assert "none.pt" in line
    assert {path.name for path in (tmp_path / "x").iterdir()} == {".lock"}, "the folder can be trained into"
