"""Darknet's loss: which row learns which box, the terms by hand, and a network that learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import only_error_line
from darknet_nets import thin, write_network

from config import Config
from geometry import Pixels
from model import build_network, load_network
from networks.darknet_cfg import parse_cfg
from tasks import Boxes
from tasks.yolo_loss import learned, yolo_loss

TEXT = thin("yolov3-tiny", by=8)  # strides 32 and 16; anchors 10,14 23,27 37,58 81,82 135,169 344,319
CLASSES, COLORS = ("a", "b", "c"), ((9, 9, 9), (8, 8, 8), (7, 7, 7))
TASK = Boxes(CLASSES, COLORS, layers="yolo", own_maps=2)
NAN = math.nan


def network() -> torch.nn.Module:
    config = Config(encoder="darknet", darknet_cfg=TEXT, decoder="none", box_layers="yolo", tasks=("boxes",))
    return build_network(config, {"boxes": TASK}).train()


def target_of(*rows: tuple[float, ...], side: int = 64) -> torch.Tensor:
    """Rows x1, y1, x2, y2, class, ignore in pixels of a square picture -> (1, M, 7) in shares."""
    label = torch.tensor([(*row, NAN) for row in rows], dtype=torch.float32).reshape(-1, 7)
    return TASK.thin(TASK.collate([label]), Pixels((side, side)))


def raw_rows(side: int = 64) -> torch.Tensor:
    torch.manual_seed(1)
    return network()(torch.rand(1, 3, side, side))["boxes"].detach().requires_grad_()


def test_a_box_is_learned_by_the_anchor_of_its_shape_in_the_cell_of_its_centre():
    raw = raw_rows()
    assert raw.shape == (1, 3 * 2 * 2 + 3 * 4 * 4, 8 + 3 + 4)
    # 24 x 26 pixels around (40, 20): anchor 23,27, the second of the mask 0,1,2 at stride 16: column 2, row 1.
    # 63 x 63 around (32.1, 32.1): anchor 81,82 of the mask 3,4,5 at stride 32: column 1, row 1.
    target = target_of((28, 7, 52, 33, 1, 0), (0.6, 0.6, 63.6, 63.6, 2, 0), (0, 0, 9, 9, 0, 1))
    real = torch.tensor([[True, True, False]])
    frames, boxes, rows = learned(raw[..., :2], raw[..., 2:4], raw[..., -2:], target[..., :4], real)
    assert frames.tolist() == [0, 0] and boxes.tolist() == [0, 1]
    assert rows.tolist() == [12 + 16 + 4 * 1 + 2, 3]


def test_the_terms_by_hand():
    raw, target = raw_rows(), target_of((28, 7, 52, 33, 1, 0))
    total, weight = yolo_loss(raw, target)
    row = raw[0, 34]
    assert row[:4].tolist() == [2, 1, 4, 4] and row[-2:].tolist() == pytest.approx([23 / 16, 27 / 16])
    assert row[-3].item() == pytest.approx(0.7), "ignore_thresh of the file"
    scale = 2 - 24 * 26 / 64**2
    off = (row[4] - 0.5) ** 2 + (row[5] - 0.25) ** 2
    off = off + (row[6] - math.log(24 / 23)) ** 2 + (row[7] - math.log(26 / 27)) ** 2
    expected = scale * off / 2 - F.logsigmoid(row[11])
    expected = expected + F.binary_cross_entropy_with_logits(row[8:11], torch.tensor([0.0, 1.0, 0.0]), reduction="sum")
    others = torch.arange(raw.shape[1]) != 34
    expected = expected + F.softplus(raw[0, others, 11]).sum()  # no other box overlaps it by 0.7
    assert total.item() == pytest.approx(expected.item(), rel=1e-5) and weight.item() == TASK.weight(target) == 5


def test_what_overlaps_a_box_or_lies_in_an_ignored_one_is_no_negative():
    raw = raw_rows().detach().clone()
    target = target_of((28, 7, 52, 33, 1, 0))
    # The same box from the next cell: its centre is moved by -1 cell.
    raw[0, 33, 4:8] = torch.tensor([1.5, 0.25, math.log(24 / 23), math.log(26 / 27)])
    raw.requires_grad_()
    yolo_loss(raw, target)[0].backward()
    silent = (raw.grad[0, :, 11] == 0).nonzero().flatten().tolist()
    assert silent == [33]
    raw.grad = None
    yolo_loss(raw, target_of((0, 0, 30, 64, 1, 1)))[0].backward()
    places = (raw[0, :, :2] + 0.5) / raw[0, :, 2:4]
    assert torch.equal(raw.grad[0, :, 11] == 0, places[:, 0] < 30 / 64)
    assert (raw.grad[0, :, 4:11] == 0).all(), "an ignored box teaches nothing"


def test_nobody_says_and_nothing_there():
    raw = raw_rows()
    total, weight = yolo_loss(raw, TASK.collate([torch.from_numpy(TASK.no_label(64, 64))]))
    total.backward()
    assert total.item() == weight.item() == 0 and not raw.grad.any()
    total, weight = yolo_loss(raw, target_of())
    assert total.item() == pytest.approx(F.softplus(raw[0, :, 11]).sum().item(), rel=1e-5) and weight.item() == 1


def test_a_network_learns_its_picture():
    torch.manual_seed(0)
    made = network()
    pixels = torch.full((1, 3, 64, 64), 0.2)
    pixels[..., 7:33, 28:52] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    target = target_of((28, 7, 52, 33, 1, 0))
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(60):
        loss, _ = TASK.loss(made(pixels.repeat(2, 1, 1, 1))["boxes"], target.repeat(2, 1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.train()
    for module in made.modules():  # statistics of this one picture
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    made(pixels.repeat(2, 1, 1, 1))
    with torch.no_grad():
        found = TASK.decode(made.eval()(pixels)["boxes"], (64, 64))[0, 0]
    assert found[4] > 0.6 and found[5] == 1
    assert found[:4].tolist() == pytest.approx([28, 7, 52, 33], abs=4)


def test_training_goes_on_from_weights_of_other_classes(script, rooms_folder, tmp_path):
    weights = write_network(tmp_path, TEXT, seen=640)
    words = [
        "train.py", "--data", rooms_folder, "--tasks", "boxes", "--encoder", f"darknet:{tmp_path / 'net.cfg'}",
        "--init", weights, "--decoder", "none", "--box_layers", "yolo", "--long_side", 0, "--crop", "64,64",
        "--epochs", 1, "--eval_every", 1, "--workers", 0, "--threads", 1, "--device", "cpu",
    ]  # fmt: skip
    done = script(*words, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "new: heads.boxes.output.0, heads.boxes.output.1\n" in done.stdout
    trained = load_network(tmp_path / "run" / "last.pt")
    assert (
        trained.config.darknet_cfg == parse_cfg(TEXT, "test").text.strip() and len(trained.tasks["boxes"].classes) > 3
    )
    done = script("evaluate.py", "--checkpoint", tmp_path / "run/last.pt", "--workers", 0)
    assert done.returncode == 0 and "boxes" in done.stdout, done.stderr
    line = only_error_line(script(*words[:5], "--box_layers", "yolo", "--run", tmp_path / "other"))
    assert line == "error: box_layers is 'yolo': for --encoder darknet:FILE.cfg alone"


def test_data_sets_of_other_classes_are_refused():
    other = Boxes(("x", "y"), COLORS[:2], layers="yolo", own_maps=2)
    with pytest.raises(ValueError, match="box_layers: yolo takes data sets of one class list"):
        Boxes.join({"one": TASK, "two": other}, merge=False)
    assert Boxes.join({"one": TASK, "two": TASK}, merge=False)[0] == TASK
