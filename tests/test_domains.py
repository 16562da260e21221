"""Several data sets in one network: what a step holds, slices of the heads, losses by group, mistakes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import only_error_line, start_training, wait_for
from PIL import Image

from config import Config, make_config
from dataset import Frames
from folders import make_domains, read_folder, read_list
from model import build_network, mixed_domains
from networks.checkpoints import read_checkpoint
from tasks import Depth, Segmentation
from training.mixture import Mixture, Pool, StepSampler
from training.step import Training

GREY = (9, 9, 9)


def segmentation(*names: str) -> Segmentation:
    return Segmentation(classes=names, colors=tuple((number, 0, 0) for number in range(len(names))))


# ---------------------------------------------------------------------------------------------- what a step holds


class Pools:
    """A mixture of which only the pools matter."""

    def __init__(self, *pools: Pool) -> None:
        self._pools = list(pools)
        self.parts = range(1 + max(pool.domain for pool in pools))

    def pools(self) -> list[Pool]:
        return self._pools


def config(**values: object) -> Config:
    return make_config({"batch_size": 6, **values}, "test")


def steps_of(sampler: StepSampler) -> list[list[tuple[int, int, int]]]:
    batches = list(sampler)
    size = sampler.accumulate
    return [list(chain(*batches[start : start + size])) for start in range(0, len(batches), size)]


@pytest.mark.parametrize(
    ("shares", "batch", "accumulate"), [((2, 1), 6, 1), ((3, 1), 6, 1), ((1, 1), 3, 2), ((7, 2), 4, 3)]
)
def test_steps_hold_the_wanted_ratio_whatever_the_sizes(shares, batch, accumulate):
    pools = Pools(Pool(0, (0,), range(10_000), shares[0]), Pool(1, (1,), range(17), shares[1]))
    steps = steps_of(StepSampler(pools, config(batch_size=batch, accumulate=accumulate), 90))
    assert len(steps) == 90 and {len(step) for step in steps} == {batch * accumulate}
    taken = np.cumsum([sum(domain == 1 for _, domain, _ in step) for step in steps])
    wanted = np.arange(1, 91) * batch * accumulate * shares[1] / sum(shares)
    assert np.abs(taken - wanted).max() <= 1, "never more than a frame away from the ratio"


def test_no_task_and_no_data_set_starves():
    """A share of 1 to 1000, and a task that 2 of 500 frames of one data set have labels for."""
    rare = [Pool(0, (0,), range(2, 500), 0.996), Pool(0, (0, 1), [0, 1], 0.004), Pool(1, (2,), range(90_000), 1000)]
    steps = steps_of(StepSampler(Pools(*rare), config(batch_size=2, accumulate=2), 50))
    for step in steps:
        assert {domain for _, domain, _ in step} == {0, 1}
        assert any(domain == 0 and index < 2 for _, domain, index in step)


def test_partial_labels_within_a_data_set_keep_frames_equally_frequent():
    pools = Pools(Pool(0, (0, 1), range(12), 12), Pool(0, (1,), range(12, 48), 36))
    steps = steps_of(StepSampler(pools, config(), 80))
    assert all(any(index < 12 for *_, index in step) for step in steps)
    seen = Counter(index for step in steps for *_, index in step)
    assert set(seen.values()) == {10}, "480 frames are ten rounds of 48"


def test_each_round_is_another_permutation():
    steps = steps_of(StepSampler(Pools(Pool(0, (0,), range(12), 1)), config(batch_size=4), 9))
    rounds = [list(chain(*steps[start : start + 3])) for start in (0, 3, 6)]
    for number, keys in enumerate(rounds):
        assert {turn for turn, *_ in keys} == {number} and {index for *_, index in keys} == set(range(12))
    assert len({tuple(index for *_, index in keys) for keys in rounds}) == 3


def test_batches_of_a_step_are_alike_and_steps_resume_anywhere():
    pools = Pools(Pool(0, (0,), range(31), 2), Pool(1, (1,), range(7), 1))
    settings = config(batch_size=3, accumulate=4)
    whole = list(StepSampler(pools, settings, 20))
    assert all(sum(domain for _, domain, _ in batch) == 1 for batch in whole), "two and one in each batch"
    for first in (1, 7, 20):
        sampler = StepSampler(pools, settings, 20, first)
        assert list(sampler) == whole[4 * first :] and len(sampler) == len(whole) - 4 * first


def test_too_few_frames_for_all_tasks():
    pools = Pools(*(Pool(number, (number,), range(5), 1) for number in range(3)))
    with pytest.raises(ValueError, match="is 2, but a step needs 3 frames"):
        StepSampler(pools, config(batch_size=2), 1)


# ---------------------------------------------------------------------------------------------- shared heads


def test_different_class_lists_get_outputs_of_their_own_as_in_the_paper():
    nyu, kitti = segmentation(*(f"n{i}" for i in range(40))), segmentation(*(f"k{i}" for i in range(6)))
    head, parts = Segmentation.join({"nyud": nyu, "kitti": kitti, "more": nyu}, merge=False)
    assert head.classes == nyu.classes + kitti.classes and head.channels == 46
    assert parts["nyud"].outputs == parts["more"].outputs == tuple(range(40))
    assert parts["kitti"].outputs == tuple(range(40, 46))
    raw = torch.arange(46.0)[None, :, None, None].expand(2, 46, 3, 4)
    assert parts["kitti"].select(raw)[0, :, 0, 0].tolist() == [40, 41, 42, 43, 44, 45]
    assert len(set(head.colors)) == 46


def test_classes_of_one_name_stay_apart_unless_they_are_merged():
    parts = {"a": segmentation("road", "car", "sky"), "b": segmentation("car", "tree", "road")}
    head, _ = Segmentation.join(parts, merge=False)
    assert head.classes == ("road (a)", "car (a)", "sky", "car (b)", "tree", "road (b)")
    head, parts = Segmentation.join(parts, merge=True)
    assert head.classes == ("road", "car", "sky", "tree")
    assert parts["a"].outputs == (0, 1, 2) and parts["b"].outputs == (1, 3, 0)
    assert parts["b"].classes == ("car", "tree", "road")


def test_equal_class_lists_and_single_data_sets_use_the_whole_head():
    one = segmentation("a", "b")
    head, parts = Segmentation.join({"x": one, "y": one}, merge=False)
    assert head.classes == ("a", "b") and parts["x"].outputs == parts["y"].outputs == ()


def test_classes_that_were_trained_apart_get_a_warning(two_sets):
    """Without --domain the largest of 80 outputs would win, of which no step compared the first 40 with the others."""
    apart = prepared(two_sets, tasks="segmentation")[1].network
    assert mixed_domains(apart, "") == "" and mixed_domains(apart, "masks_only") == "", "one class list"
    values = yaml.safe_load((two_sets[1] / "dataset.yaml").read_text())
    names = [f"thing_{number}" for number in range(40)]
    (two_sets[1] / "dataset.yaml").write_text(yaml.safe_dump(values | {"segmentation": {"classes": names}}))
    apart = prepared(two_sets, tasks="segmentation")[1].network
    line = mixed_domains(apart, "")
    assert line.startswith("segmentation: the classes of masks_only and depth_only were trained apart")
    assert "--domain masks_only" in line and "\n" not in line
    assert mixed_domains(apart, "depth_only") == ""


def test_too_many_classes():
    lists = {name: segmentation(*(f"{name}{i}" for i in range(200))) for name in "ab"}
    with pytest.raises(ValueError, match="400 classes together; at most 255"):
        Segmentation.join(lists, merge=False)


def test_depth_has_one_head_and_each_data_set_its_range():
    head, parts = Depth.join({"room": Depth(max_m=10), "road": Depth(max_m=80)}, merge=False)
    assert head.max_m == 80 and {name: part.max_m for name, part in parts.items()} == {"room": 10, "road": 80}
    # The same relative error costs the same in both.
    raw = torch.zeros(1, 1, 4, 4)
    level = float(torch.nn.functional.softplus(torch.zeros(())))
    room, _ = parts["room"].loss(raw, torch.full((1, 4, 4), level + 1.0))
    road, _ = parts["road"].loss(raw, torch.full((1, 4, 4), level + 8.0))
    assert float(room) == pytest.approx(float(road), rel=1e-5)


# ---------------------------------------------------------------------------------------------- losses and gradients


def prepared(folders: tuple[Path, ...], **values: object) -> tuple[Config, Training, Mixture]:
    settings = make_config(
        {"data": {str(folder): "1" for folder in folders}, "encoder": "mobilenetv2_100", "decoder_width": "8",
         "crp_stages": "1", "crop": "64,64", "long_side": "0", "ema": "0", "clip_norm": "0", "loss_stride": "1",
         "freeze_bn": "true", "workers": "0", **values}, "test",
    )  # fmt: skip
    read = [read_folder(folder) for folder in folders]
    heads, domains = make_domains(read, settings)
    network = build_network(settings, heads, domains)
    training = Training(network, settings, torch.device("cpu"), torch.float32, 10)
    parts = [Frames(item, read_list(item, "train"), domains[item.name], settings, True) for item in read]
    return settings, training, Mixture(parts, [1.0] * len(parts))


def stacked(mixture: Mixture, keys: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([mixture[key] for key in keys])


def gradients(training: Training, batches: list[dict[str, torch.Tensor]]) -> tuple[dict, dict]:
    """The gradients of a step, and its losses."""
    found = {}

    def keep() -> None:
        found.update(
            {name: item.grad.clone() for name, item in training.network.named_parameters() if item.grad is not None}
        )
        training.optimizer.zero_grad()

    training.update = keep
    training.network.eval()
    return found, training.take_step(batches)


def test_losses_are_named_by_task_and_data_set(two_sets):
    _, training, mixture = prepared(two_sets)
    _, losses = gradients(training, [stacked(mixture, [(0, 0, 0), (0, 0, 1), (0, 1, 0)])])
    assert losses.keys() == {"segmentation", "depth", "masks_only/segmentation", "depth_only/depth"}
    assert losses["segmentation"] == losses["masks_only/segmentation"]


def test_a_frame_without_a_label_adds_nothing(two_sets):
    """The gradient of the segmentation head is that of the batch of its own frames alone."""
    _, training, mixture = prepared(two_sets)
    alone, _ = gradients(training, [stacked(mixture, [(0, 0, 0), (0, 0, 1)])])
    mixed, _ = gradients(training, [stacked(mixture, [(0, 0, 0), (0, 1, 3), (0, 0, 1), (0, 1, 4)])])
    assert "heads.depth.2.weight" not in alone or not alone["heads.depth.2.weight"].any()
    assert torch.allclose(alone["heads.segmentation.2.weight"], mixed["heads.segmentation.2.weight"], atol=1e-7)


def test_accumulated_batches_weigh_frames_as_one_batch_would(two_sets):
    """A task with one labeled frame in one of two batches counts as much as one that both have."""
    _, training, mixture = prepared(two_sets)
    keys = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)]
    whole, _ = gradients(training, [stacked(mixture, keys)])
    parts, _ = gradients(training, [stacked(mixture, keys[:3]), stacked(mixture, keys[3:])])
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=2e-6), name


@pytest.fixture
def patchy(rooms_folder: Path, tmp_path: Path) -> Path:
    """Rooms of whose masks and depth different parts are missing; one mask is empty."""
    folder = tmp_path / "patchy"
    shutil.copytree(rooms_folder, folder)
    for number, line in enumerate((folder / "train.txt").read_text().splitlines()):
        _, mask, depth, *_ = line.split("\t")
        for name, fill in ((mask, 255), (depth, 0)):
            values = np.array(Image.open(folder / name))
            values[: 6 * number, : 30 + number] = fill
            if number == 2 and name == mask:
                values[:] = fill
            Image.fromarray(values).save(folder / name)
    return folder


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3)], ids=str)
def test_accumulated_batches_are_one_batch_whatever_is_labeled(patchy, sizes):
    """With void, padding, class weights and the pixels of a stride. Depth is left out: berHu's threshold differs."""
    _, training, mixture = prepared((patchy,), tasks="segmentation,normals", zoom="0.4,1.4", loss_stride="2")
    own = training.network.domains[mixture.parts[0].folder.name]
    own["segmentation"] = dataclasses.replace(own["segmentation"], class_weights=tuple(np.geomspace(1, 20, 40)))
    samples = [mixture[0, 0, index] for index in range(4)]
    labeled = [float((sample["segmentation"] != 255).float().mean()) for sample in samples]
    assert max(labeled) > 2 * sorted(labeled)[1] and min(labeled) == 0, "frames that differ"
    whole, losses = gradients(training, [torch.utils.data.default_collate(samples)])
    training.data_steps = 0  # the same pixels
    batches = [samples[: sizes[0]], samples[sizes[0] :]]
    parts, losses_of_parts = gradients(training, list(map(torch.utils.data.default_collate, batches)))
    assert len(whole) > 50
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], rtol=1e-4, atol=2e-6), name
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(
        {name: float(value) for name, value in losses_of_parts.items()}, rel=1e-5
    )


class FreeOutput(torch.nn.Module):
    """In place of a network: its raw output of depth is the parameter."""

    def __init__(self, raw: torch.Tensor) -> None:
        super().__init__()
        self.raw = torch.nn.Parameter(raw)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.raw, {"depth": self.raw}


@pytest.mark.parametrize(("stride", "side"), [(1, 96), (2, 96), (4, 96), (2, 98), (4, 98)])
def test_the_loss_compares_outputs_and_labels_at_the_same_pixels(rooms_folder, stride, side):
    """A ramp of one meter a column, fitted through the training's step and decoded, is where it was."""
    _, training, _ = prepared((rooms_folder,), tasks="depth", loss_stride=stride, depth_activation="abs")
    (domain,) = training.network.domains.values()
    ramp = torch.arange(float(side)).expand(1, side, side).contiguous() + 20
    ramp += torch.arange(float(side))[:, None] / 2
    batch = {
        "image": torch.zeros(1, 3, side, side, dtype=torch.uint8), "depth": ramp,
        "domain": torch.zeros(1, dtype=torch.long), "weight": torch.ones(1, 1),
    }  # fmt: skip
    small = -(-side // 4)
    training.passes = FreeOutput(torch.full((1, 1, small, small), 80.0))
    optimizer = torch.optim.Adam(training.passes.parameters(), lr=8.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    training.update = update
    for _ in range(400):
        training.take_step([batch])
    with torch.no_grad():
        off = domain["depth"].decode(training.passes.raw, (side, side)) - ramp
    inside = off[0, 8:-8, 8:-8]
    assert inside.abs().mean() < 0.05, "in columns"


def test_each_pixel_is_used_and_all_processes_use_the_same(rooms_folder):
    _, training, _ = prepared((rooms_folder,), loss_stride="4")
    seen = []
    for step in range(200):
        training.data_steps = step
        seen.append(training.loss_pixels((64, 64)))
    assert {(pixels.top, pixels.left) for pixels in seen} == set(itertools.product(range(4), range(4)))
    assert training.loss_pixels((64, 64)) == seen[-1], "from the step number alone"


def test_outputs_of_other_data_sets_get_no_gradient(rooms_folder, two_sets, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(two_sets[0], other)
    values = yaml.safe_load((other / "dataset.yaml").read_text())
    names = [f"thing_{number}" for number in range(40)]
    (other / "dataset.yaml").write_text(yaml.safe_dump(values | {"name": "other", "segmentation": {"classes": names}}))
    _, training, mixture = prepared((two_sets[0], other), tasks="segmentation")
    assert training.network.tasks["segmentation"].channels == 80
    found, _ = gradients(training, [stacked(mixture, [(0, 1, 0), (0, 1, 1)])])
    grown = found["heads.segmentation.2.bias"].abs()
    assert grown[40:].any() and not grown[:40].any()


def test_teacher_labels_weigh_less(two_sets):
    _, training, mixture = prepared(two_sets)
    batch = stacked(mixture, [(0, 0, 0), (0, 0, 1)])
    full, _ = gradients(training, [batch])
    batch["weight"] = batch["weight"] * 0.25
    taught, losses = gradients(training, [batch])
    assert "masks_only/segmentation/teacher" in losses
    name = "heads.segmentation.2.weight"
    assert torch.allclose(0.25 * full[name], taught[name], atol=1e-8)


# ---------------------------------------------------------------------------------------------- the scripts


TINY = (
    "--long_side", 0, "--crop", "64,64", "--encoder", "mobilenetv2_100", "--decoder_width", 16, "--crp_stages", 1,
    "--batch_size", 4, "--epochs", 2, "--eval_every", 1, "--warmup_steps", 2, "--workers", 0, "--device", "cpu",
    "--threads", 1, "--class_weights", "none", "--log_every", 2,
)  # fmt: skip


def test_two_data_sets_from_training_to_pictures(script, two_sets, tmp_path):
    both = f"{two_sets[0]}=2,{two_sets[1]}=1"
    done = script("train.py", "--data", both, *TINY, "--run", tmp_path / "joint")
    assert done.returncode == 0, done.stderr
    assert "masks_only: share 67%, 12 training frames (12 segmentation, 0 depth)" in done.stdout
    entries = [json.loads(line) for line in (tmp_path / "joint" / "log.jsonl").read_text().splitlines()]
    names = {name for entry in entries for name in entry}
    assert {"masks_only/segmentation", "depth_only/depth", "segmentation", "depth"} <= names
    assert {"masks_only/segmentation/miou", "depth_only/depth/rmse"} <= names
    assert "masks_only/depth/rmse" not in names
    content = read_checkpoint(tmp_path / "joint" / "best.pt")
    assert content["domains"].keys() == {"masks_only", "depth_only"}

    # Each data set alone, and how much worse or better the joint network is.
    for folder, task in zip(two_sets, ("segmentation", "depth"), strict=True):
        single = script("train.py", "--data", folder, "--tasks", task, *TINY, "--run", tmp_path / task)
        assert single.returncode == 0, single.stderr
    done = script(
        "evaluate.py", "--checkpoint", tmp_path / "joint/best.pt", "--workers", 0,
        "--against", tmp_path / "segmentation/best.pt", tmp_path / "depth/best.pt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "joint" / "best-delta-m.json").read_text())
    rows = report["changes"]
    assert [row["metric"] for row in rows] == ["masks_only/segmentation/miou", "depth_only/depth/rmse"]
    miou, rmse = rows
    assert miou["change"] == pytest.approx((miou["joint"] - miou["single"]) / miou["single"])
    assert rmse["change"] == pytest.approx((rmse["single"] - rmse["joint"]) / rmse["single"])
    assert report["delta_m"] == pytest.approx((miou["change"] + rmse["change"]) / 2)
    metrics = json.loads((tmp_path / "joint" / "best-masks_only-val.json").read_text())["metrics"]
    assert metrics["segmentation/miou"] == pytest.approx(content["metrics"]["masks_only/segmentation/miou"])

    # Pictures, with all classes and with those of one data set.
    sample = next((two_sets[0] / "rgb").iterdir())
    for options in ([], ["--domain", "masks_only"]):
        done = script("inference.py", "--checkpoint", tmp_path / "joint/best.pt", "--input", sample,
                      "--output", tmp_path / "out", *options)  # fmt: skip
        assert done.returncode == 0, done.stderr
    line = only_error_line(
        script("inference.py", "--checkpoint", tmp_path / "joint/best.pt", "--input", sample, "--domain", "mask_only")
    )
    assert "did you mean 'masks_only'?" in line


def test_a_resumed_run_with_two_data_sets_ends_with_the_same_weights(script, two_sets, tmp_path):
    options = ["--data", f"{two_sets[0]},{two_sets[1]}", *TINY, "--accumulate", 2, "--batch_size", 2,
               "--task_weighting", "dwa", "--epochs", 3]  # fmt: skip
    assert script("train.py", *options, "--run", tmp_path / "whole").returncode == 0
    process = start_training([*options, "--run", tmp_path / "broken"])
    wait_for(tmp_path / "broken" / "log.jsonl", '"step": 8', process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert script("train.py", "--resume", tmp_path / "broken").returncode == 0
    whole, broken = (read_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    for name, value in whole["network"].items():
        assert torch.equal(value, broken["network"][name]), name


@pytest.mark.parametrize("weighting", ["uncertainty", "upgrad"])
def test_task_weightings_train(script, two_sets, tmp_path, weighting):
    if weighting == "upgrad":
        pytest.importorskip("torchjd")
    data = f"{two_sets[0]},{two_sets[1]}"
    done = script("train.py", "--data", data, *TINY, "--task_weighting", weighting, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    weights = [entry["weight/depth"] for entry in entries if entry["kind"] == "train"]
    assert len(weights) == 6 and all(weight > 0 for weight in weights)
    if weighting == "uncertainty":
        assert weights[-1] != 1 and len(set(weights)) == 6, "they are learned"


def test_mistakes_with_several_data_sets(script, two_sets, tmp_path):
    masks, depth = two_sets
    line = only_error_line(script("train.py", "--data", f"{masks}=1,{depth}=0"))
    assert "data: " in line and "has the share 0" in line
    line = only_error_line(script("train.py", "--data", f"{masks},{depth}", "--tasks", "segmentation"))
    assert f"no training frame of {depth} has a label for segmentation" in line
    line = only_error_line(script("train.py", "--data", f"{masks},{depth}", "--teacher_labels", "taught"))
    assert "python teach.py makes them" in line
    values = yaml.safe_load((depth / "dataset.yaml").read_text())
    other = {"classes": ["floor", "wall"]}
    (depth / "dataset.yaml").write_text(yaml.safe_dump(values | {"name": "masks_only", "segmentation": other}))
    line = only_error_line(script("train.py", "--data", f"{masks},{depth}"))
    assert "are both called 'masks_only', and their class lists differ" in line
    (depth / "dataset.yaml").write_text(yaml.safe_dump(values | {"columns": ["image", "depth"]}))
    line = only_error_line(script("train.py", "--data", f"{masks},{depth}", "--tasks", "segmentation"))
    assert f"data: {depth} has no label that a task wants: it has depth" in line
