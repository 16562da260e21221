"""Settings that a recipe may turn on: where training starts from, context, heads, dropout, smoothing, depth losses."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import only_error_line

from config import Config, make_config
from folders import read_folder, read_list
from images import read_label
from model import Network, build_network, count_cost, load_network
from networks.checkpoints import read_checkpoint, save_checkpoint
from networks.decoders import Attention, Head, SeparableHead
from networks.encoders import build_encoder
from tasks import Depth, Segmentation
from training.average import average_with
from training.balance import last_layer, move_logits
from training.resume import start_from

TASKS = {"segmentation": Segmentation(classes=("a", "b"), colors=((0, 0, 0), (9, 9, 9))), "depth": Depth()}
SMALL = {"encoder": "resnet18", "decoder_width": 16, "crp_stages": 1}


def small(**settings: object) -> Network:
    return build_network(make_config({**SMALL, **settings}, "test"), TASKS).eval()


# ---------------------------------------------------------------------------------------------- context


def test_new_attention_changes_nothing_and_then_mixes_all_places():
    attention = Attention(8)
    attention.initialise()
    x = torch.rand(2, 8, 5, 7)
    assert torch.equal(attention(x), x)
    torch.nn.init.xavier_uniform_(attention.output.weight)
    changed = x.clone()
    changed[0, :, 0, 0] += 5
    moved = (attention(changed) - attention(x)).abs().amax(1)
    assert (moved[0] > 0).all(), "the farthest place, too"
    assert not moved[1].any(), "other pictures stay apart"


def test_attention_is_that_of_its_formula():
    attention = Attention(8, heads=2)
    attention.initialise()
    torch.nn.init.xavier_uniform_(attention.output.weight)
    x = torch.rand(1, 8, 3, 5)
    tokens = (x + attention.position(x)).flatten(2)[0].T  # (15, 8)
    projected = tokens @ attention.projections.weight[:, :, 0, 0].T + attention.projections.bias
    mixed = []
    for head in range(2):
        query, key, value = (projected[:, 8 * part + 4 * head :][:, :4] for part in range(3))
        mixed.append((query @ key.T / 2).softmax(1) @ value)
    expected = torch.cat(mixed, 1) @ attention.output.weight[:, :, 0, 0].T + attention.output.bias
    assert torch.allclose(attention(x), x + expected.T.reshape(1, 8, 3, 5), atol=1e-5)


# ---------------------------------------------------------------------------------------------- heads


def test_separable_heads_cost_a_sixth_and_start_like_a_1x1():
    costs = [count_cost(small(head=kind), 64, 64)[1] for kind in ("conv", "separable")]
    # Of 40 classes and depth: convolutions at one resolution, so their weights are their multiply-adds.
    whole, thin = (
        sum(item.numel() for count in (40, 1) for item in kind(128, count).parameters() if item.ndim > 1)
        for kind in (Head, SeparableHead)
    )
    assert costs[1] < costs[0] and 5.5 < whole / thin < 6.5
    head = SeparableHead(16, 3)
    head.initialise()
    x = torch.rand(1, 16, 6, 7)
    assert torch.allclose(head(x), F.conv2d(x, head[3].weight), atol=1e-6)


def test_dropout_drops_channels_for_the_heads_in_training_only():
    network = small(dropout=0.5)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert torch.equal(network(image)["depth"], network(image)["depth"])
    seen = []
    network.heads["depth"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.train()
    shared = [torch.ones(1, 16, 4, 4)]
    network.heads_of(shared)
    kept = seen[0][0].flatten(1)
    assert set(kept.flatten().tolist()) == {0.0, 2.0} and (kept == kept[:, :1]).all(), "whole channels"


def test_drop_path_leaves_out_blocks_in_training_only():
    network, same = small(drop_path=0.5), small()
    assert network.state_dict().keys() == same.state_dict().keys()
    network.load_state_dict(same.state_dict())
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(network(image)["depth"], same(image)["depth"])
    chances = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert chances == sorted(chances) and chances[-1] == 0.5
    block = network.encoder.body.layer4[1].train()  # the last one
    torch.nn.init.ones_(block.bn2.weight)  # timm lets it begin at 0, where the block does nothing
    given = torch.rand(64, 512, 2, 2)
    passed = (block(given) == given).flatten(1).all(1)
    assert 10 < passed.sum() < 54, "about half of the pictures pass by it"


def test_drop_path_needs_blocks():
    for encoder, message in (("vgg11", "vgg11 has no residual blocks"), ("mobilenetv2_paper", "for timm's encoders")):
        with pytest.raises(ValueError, match=f"^drop_path: .*{message}"):
            build_encoder(encoder, drop_path=0.1)
    with pytest.raises(ValueError, match=r"^drop_path: vgg11 has no residual blocks"):
        build_encoder("vgg11", "imagenet", drop_path=0.1)


# ---------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", ["berhu", "l1", "log"])
def test_a_depth_loss_adds_up_over_frames(kind):
    """berHu's threshold is that of the frames given; the others do not know which frames share a batch."""
    task = dataclasses.replace(Depth(), loss_kind=kind, gradient_weight=0.5)
    raw, target = torch.randn(2, 1, 6, 7), 5 * torch.rand(2, 6, 7)
    target[1, 2:] = 0
    total, weight = task.loss(raw, target)
    halves = [task.loss(raw[i : i + 1], target[i : i + 1]) for i in range(2)]
    assert weight == sum(half[1] for half in halves) == task.weight(target)
    if kind != "berhu":
        assert torch.allclose(total, halves[0][0] + halves[1][0])
    plain = dataclasses.replace(task, gradient_weight=0.0).loss(raw, target)[0]
    assert total > plain > 0


def test_label_smoothing_reaches_the_loss():
    task = dataclasses.replace(TASKS["segmentation"], label_smoothing=0.2)
    raw, target = torch.tensor([[[[9.0]], [[-9.0]]]]), torch.zeros(1, 1, 1, dtype=torch.uint8)
    assert task.loss(raw, target)[0].item() == pytest.approx(0.1 * 18, rel=1e-3)
    assert Segmentation.from_section(
        {"classes": ("a", "b"), "colors": ((0, 0, 0), (9, 9, 9))}, Config(label_smoothing=0.2)
    ).label_smoothing == 0.2  # fmt: skip


# ---------------------------------------------------------------------------------------------- init


def test_a_training_starts_from_a_checkpoint(trained):
    given = load_network(trained / "best.pt")
    network = build_network(dataclasses.replace(given.config, context="attention", encoder_weights="none"), given.tasks)
    line = start_from(network, trained / "best.pt")
    fresh = {name for name in network.state_dict() if name.startswith("decoder.context.")}
    for name, value in network.state_dict().items():
        assert name in fresh or torch.equal(value, given.state_dict()[name]), name
    parts = "decoder.context.position, decoder.context.projections, decoder.context.output"
    assert (
        line == f"{trained / 'best.pt'}, {len(given.state_dict())} of {len(network.state_dict())} tensors; new: {parts}"
    )
    with torch.inference_mode():
        image = torch.randint(256, (1, 3, 70, 90), dtype=torch.uint8)
        for name, raw in network.eval()(image).items():
            assert torch.allclose(raw, given(image)[name], atol=1e-5), "attention starts as nothing"


def test_heads_whose_outputs_mean_something_else_start_anew(trained):
    given = load_network(trained / "best.pt")
    classes = tuple(reversed(given.tasks["segmentation"].classes))
    tasks = {
        "segmentation": dataclasses.replace(given.tasks["segmentation"], classes=classes),
        "depth": dataclasses.replace(given.tasks["depth"], activation="exp"),
        "normals": given.tasks["normals"],
    }
    network = build_network(given.config, tasks, load_encoder=False)
    line = start_from(network, trained / "best.pt")
    same = {
        name: torch.equal(network.heads[name][-1].weight, given.heads[name][-1].weight) for name in network.tasks
    }  # fmt: skip
    assert same == {"segmentation": False, "depth": False, "normals": True}
    assert "heads.normals" not in line and "heads.segmentation.2" in line and "heads.depth.2" in line


def test_train_with_everything(trained, tiny_settings, script, tmp_path):
    """From a checkpoint, with all options at once; evaluated, resumed and exported like any other."""
    options = {
        "--context": "attention", "--head": "separable", "--dropout": 0.1, "--drop_path": 0.1, "--label_smoothing": 0.1,
        "--depth_loss": "log", "--depth_gradient": 0.5, "--init": trained / "best.pt", "--epochs": 1, "--eval_every": 1,
    }  # fmt: skip
    run = tmp_path / "run"
    done = script("train.py", "--config", tiny_settings, "--run", run, *itertools.chain(*options.items()))
    assert done.returncode == 0, done.stderr
    assert f"init      {trained / 'best.pt'}, " in done.stdout and "heads.depth.2, heads.depth.3" in done.stdout
    assert script("train.py", "--resume", run).returncode == 0
    done = script("export.py", "--checkpoint", run / "best.pt", "--output", tmp_path / "net.onnx")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_encoder_must_be_the_same(trained, tiny_settings, script, tmp_path):
    line = only_error_line(
        script("train.py", "--config", tiny_settings, "--encoder", "resnet18", "--init", trained / "best.pt",
               "--run", tmp_path / "run")
    )  # fmt: skip
    needed = "this network resnet18: --encoder mobilenetv2_100 takes it"
    assert line == f"error: init: {trained / 'best.pt'} has the encoder mobilenetv2_100, {needed}"
    missing = Path("no.pt")
    line = only_error_line(
        script("train.py", "--config", tiny_settings, "--init", missing, "--run", tmp_path / "other")
    )
    assert "no.pt: no such file" in line


# ---------------------------------------------------------------------------------------------- the mean of trainings


def test_the_mean_of_trainings():
    first, second, third = small(), small(), small()
    third.encoder.body.bn1.num_batches_tracked += 5
    names = ("encoder.body.conv1.weight", "encoder.body.bn1.running_var", "encoder.body.bn1.bias")
    expected = {name: sum(network.state_dict()[name] for network in (first, second, third)) / 3 for name in names}
    counter = int(first.encoder.body.bn1.num_batches_tracked)
    average_with(first, {Path("second.pt"): second, Path("third.pt"): third})
    for name, value in expected.items():
        assert torch.allclose(first.state_dict()[name], value, atol=1e-6), name
    assert int(first.encoder.body.bn1.num_batches_tracked) == counter


@pytest.mark.parametrize(("other", "message"), [
    ({"encoder": "resnet34"}, "other.pt: its encoder is resnet34, not resnet18; only weights of the same network"),
    ({"decoder_width": 24}, "is not the same; only weights"), ({"head": "separable"}, "is not the same; only weights"),
], ids=str)  # fmt: skip
def test_other_networks_have_no_mean(other, message):
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        average_with(network, {Path("same.pt"): small(), Path("other.pt"): small(**other)})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_networks_of_other_classes_have_no_mean():
    tasks = {**TASKS, "segmentation": Segmentation(classes=("b", "a"), colors=((0, 0, 0), (9, 9, 9)))}
    other = build_network(make_config(SMALL, "test"), tasks).eval()
    with pytest.raises(ValueError, match=r"other\.pt: segmentation: .*; only weights"):
        average_with(small(), {Path("other.pt"): other})
    other = build_network(make_config(SMALL, "test"), {"depth": Depth()}).eval()
    with pytest.raises(ValueError, match="its tasks are depth, not segmentation, depth"):
        average_with(small(), {Path("other.pt"): other})


# ---------------------------------------------------------------------------------------------- balanced classes


def test_moved_logits_are_those_of_rarer_classes():
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    frequencies = np.array([0.6, 0.3, 0.1, 0.0])
    bias = torch.zeros(5)
    move_logits(bias, torch.tensor([4, 1, 2, 0]), frequencies, 0.5)  # output 3 is another data set's
    moved = (logits + bias).softmax(1)
    expected = logits.softmax(1) / torch.tensor([1.0, 0.3, 0.1, 1.0, 0.6]).sqrt()
    assert torch.allclose(moved, expected / expected.sum(1, keepdim=True), atol=1e-6)


def test_export_balances_the_classes_of_the_training_frames(trained, script, tmp_path):
    checkpoint, output = trained / "best.pt", tmp_path / "net.safetensors"
    options = ("--checkpoint", checkpoint, "--format", "safetensors", "--output", output)
    done = script("export.py", *options, "--balance", 0.5)
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = load_network(checkpoint), load_network(output)
    folder = read_folder(next(iter(before.config.data)))
    masks = [read_label(frame.labels["segmentation"]).flatten() for frame in read_list(folder, "train")]
    counts = np.bincount(np.concatenate(masks), minlength=256)[:40]
    change = torch.tensor([-0.5 * math.log(count / counts.sum()) if count else 0.0 for count in counts])
    for name, value in before.state_dict().items():
        moved = after.state_dict()[name] - value
        expected = change if name == "heads.segmentation.2.bias" else torch.zeros(())
        assert torch.allclose(moved.float(), expected.float(), atol=1e-5), name
    assert 5 < int((change > 0).sum()) < 40, "classes with and without labels"
    done = script("export.py", *options)
    assert done.returncode == 0 and torch.equal(
        load_network(output).heads["segmentation"][2].bias, before.heads["segmentation"][2].bias
    )


def test_what_cannot_be_balanced_is_one_line(trained, script, tmp_path):
    output = tmp_path / "net.safetensors"
    options = ("--checkpoint", trained / "best.pt", "--format", "safetensors", "--output", output)
    line = only_error_line(script("export.py", *options, "--data", "anywhere"))
    assert line == "error: --data is of --int8 and --balance"
    line = only_error_line(script("export.py", *options, "--balance", 1.5))
    assert "--balance" in line and "1.5" in line
    content = read_checkpoint(trained / "best.pt")
    content["config"]["data"] = {**content["config"]["data"], "dataset/other": 1.0}
    save_checkpoint(tmp_path / "two.pt", content)
    line = only_error_line(script("export.py", "--checkpoint", tmp_path / "two.pt", *options[2:], "--balance", 0.5))
    assert "two.pt was trained on " in line and line.endswith("--data says whose classes count")
    assert not output.exists()


def test_a_head_without_a_bias_is_not_balanced():
    assert last_layer(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False))) is None
    head = small().heads["segmentation"]
    assert last_layer(head) is head[2]
