"""Checkpoints of the YOLOv3 tutorial, written here in its layout with random weights, and computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import only_error_line
from darknet_nets import found_by, thin, write_network

from images import write_png
from model import load_network
from networks import tutorial_checkpoints
from networks.darknet_cfg import parse_cfg
from networks.tutorial_checkpoints import own_cfg

CLASSES, BY, SIDE = 3, 16, 64
# Shares of the picture of 416 pixels: of the maps at strides 32, 16 and 8.
ANCHORS = (
    ((0.28, 0.22), (0.38, 0.48), (0.9, 0.78)), ((0.07, 0.15), (0.15, 0.11), (0.14, 0.29)),
    ((0.02, 0.03), (0.04, 0.07), (0.08, 0.06)),
)  # fmt: skip


class Tutorial:
    """The network as the tutorial describes it: call(x) makes the weights at the first time."""

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}
        self.rng = torch.Generator().manual_seed(0)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.rng) * (high - low) + low

    def block(self, name: str, x: torch.Tensor, filters: int, kernel: int, stride: int = 1, last: bool = False):
        key, count = f"{name}.conv.weight", filters if last else max(2, filters // BY)
        if key not in self.state:
            inputs = x.shape[1] * kernel**2
            weight = torch.randn(count, x.shape[1], kernel, kernel, generator=self.rng) * (1 / inputs) ** 0.5
            self.state[key] = weight
            if last:
                self.state[f"{name}.conv.bias"] = self.uniform(-1, 1, count)
            values = {
                "weight": self.uniform(0.5, 1.5, count), "bias": self.uniform(-0.3, 0.3, count),
                "running_mean": self.uniform(-0.3, 0.3, count), "running_var": self.uniform(0.5, 2, count),
            }  # fmt: skip
            if name == "layers.0":  # so small that what is added to it counts
                values |= {"running_var": self.uniform(1e-4, 2e-4, count), "weight": self.uniform(0.01, 0.02, count)}
            self.state |= {f"{name}.bn.{part}": value for part, value in values.items()}
            self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
        bn = [self.state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        y = F.conv2d(x, self.state[key], self.state.get(f"{name}.conv.bias"), stride, kernel // 2)
        return y if last else F.leaky_relu(F.batch_norm(y, *bn, eps=1e-5), 0.1)

    def residual(self, number: int, x: torch.Tensor, filters: int, repeats: int, added: bool = True) -> torch.Tensor:
        for repeat in range(repeats):
            name = f"layers.{number}.layers.{repeat}"
            y = self.block(f"{name}.0", x, filters // 2, 1)
            y = self.block(f"{name}.1", y, filters, 3)
            x = x + y if added else y
        return x

    def head(self, number: int, x: torch.Tensor, filters: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(what goes on, (B, 3, S, S, 5 + classes))"""
        x = self.residual(number, x, 2 * filters, 1, added=False)
        x = self.block(f"layers.{number + 1}", x, filters, 1)
        y = self.block(f"layers.{number + 2}.pred.0", x, 2 * filters, 3)
        y = self.block(f"layers.{number + 2}.pred.1", y, 3 * (5 + CLASSES), 1, last=True)
        return x, y.unflatten(1, (3, 5 + CLASSES)).permute(0, 1, 3, 4, 2)

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.block("layers.0", x, 32, 3)
        kept = []
        for number, (filters, repeats) in enumerate(((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))):
            x = self.block(f"layers.{2 * number + 1}", x, filters, 3, 2)
            x = self.residual(2 * number + 2, x, filters, repeats)
            kept += [x] if repeats == 8 else []
        found = []
        for number, filters in ((11, 512), (18, 256), (25, 128)):
            x = self.block(f"layers.{number}", x, filters, 1)
            x = self.block(f"layers.{number + 1}", x, 2 * filters, 3)
            x, output = self.head(number + 2, x, filters)
            found.append(output)
            if filters > 128:
                x = self.block(f"layers.{number + 5}", x, filters // 2, 1)
                x = torch.cat([F.interpolate(x, scale_factor=2), kept.pop()], 1)
        return found


def decoded(outputs: list[torch.Tensor]) -> torch.Tensor:
    """(B, N, 4 + classes): centre and sides in shares of the picture; objectness times class."""
    rows = []
    for output, anchors in zip(outputs, ANCHORS, strict=True):
        thing, place, sides, classes = output.split((1, 2, 2, CLASSES), dim=4)
        side = output.shape[2]
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        middle = (place.sigmoid() + torch.stack([x, y], 2)) / side
        sides = sides.exp() * torch.tensor(anchors).view(1, 3, 1, 1, 2)
        rows.append(torch.cat([middle, sides, thing.sigmoid() * classes.sigmoid()], 4).flatten(1, 3))
    return torch.cat(rows, 1)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tutorial]:
    """checkpoint.pth.tar of a thin network, with an optimizer's state; the .cfg is as thin."""
    made = Tutorial()
    made(torch.zeros(1, 3, SIDE, SIDE))
    (tmp_path / "thin.cfg").write_text(thin("yolov3", BY, 80, SIDE))
    monkeypatch.setattr(tutorial_checkpoints, "OWN_CFG", tmp_path / "thin.cfg")
    monkeypatch.setattr(tutorial_checkpoints, "SIZE", SIDE)
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": made.state, "optimizer": optimizer}, path)
    return path, made


def test_it_gives_what_the_tutorials_network_gives(saved):
    path, made = saved
    network = load_network(path)
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = decoded(made(x))
    found = found_by(network, x)
    assert found.shape == expected.shape == (2, 3 * (4 + 16 + 64), 4 + CLASSES)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), (found - expected).abs().max()
    assert found[..., 4:].std() > 0.01 and found[..., 2:4].std() > 0.01
    assert network.config.long_side == SIDE and network.tasks["boxes"].classes == ("class_0", "class_1", "class_2")


def test_the_order_of_the_file_and_its_way_of_saving_do_not_count(saved, tmp_path):
    path, made = saved
    shuffled = dict(sorted(made.state.items(), key=lambda item: hash(item[0])))
    torch.save({"state_dict": shuffled}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    first, second = load_network(path).state_dict(), load_network(tmp_path / "old.pth.tar").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_whole_network_is_yolov3_with_its_own_anchors():
    cfg = parse_cfg(own_cfg(20), "test")
    assert sum(layer.weights for layer in cfg.convolutions) == 61_678_657
    anchors = [[(round(w / 416, 4), round(h / 416, 4)) for w, h in level.anchors] for level in cfg.yolo]
    assert anchors == [list(level) for level in ANCHORS]
    assert (cfg.width, cfg.height, cfg.letterbox) == (416, 416, True)


def test_another_cfg_gives_other_anchors(saved, tmp_path):
    path, _ = saved
    x = torch.rand(1, 3, SIDE, SIDE)
    own, others = found_by(load_network(path), x), found_by(load_network(path, tmp_path / "thin.cfg"), x)
    assert torch.allclose(own[..., :2], others[..., :2], atol=1e-5)
    assert not torch.allclose(own[..., 2:4], others[..., 2:4], atol=1e-3)
    wide = write_network(tmp_path, thin("yolov3", 8, CLASSES, SIDE)).with_suffix(".cfg")
    with pytest.raises(
        ValueError, match=r"layers\.0\.conv\.weight has shape \(2, 3, 3, 3\), layer 0 of the \.cfg \(4, 3"
    ):
        load_network(path, wide)
    tiny = write_network(tmp_path, thin("yolov3-tiny")).with_suffix(".cfg")
    with pytest.raises(ValueError, match=r"it has 75 convolutions, .*net\.cfg has 13"):
        load_network(path, tiny)


def test_names_come_from_the_file_beside_it_and_inference_runs(saved, script, tmp_path):
    path, _ = saved
    names = tmp_path / "checkpoint.pth.names"
    names.write_text("cat\ndog\nperson\n")
    (tmp_path / "anchors.cfg").write_text(own_cfg(CLASSES))
    picture = tmp_path / "a.png"
    write_png(picture, np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    done = script(
        "inference.py", "--checkpoint", path, "--cfg", tmp_path / "anchors.cfg", "--input", picture, "--output",
        tmp_path / "out", "--score", 0.01,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = {item["class"] for item in json.loads((tmp_path / "out/a_objects.json").read_text())["objects"]}
    assert kinds and kinds <= {"cat", "dog", "person"}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_what_is_no_such_checkpoint_is_one_line(saved, script, tmp_path):
    _, made = saved
    torch.save({"state_dict": made.state, "optimizer": Evil()}, tmp_path / "evil.pth.tar")
    done = script("inference.py", "--checkpoint", tmp_path / "evil.pth.tar", "--input", "media/photo.jpg")
    line = only_error_line(done)
    assert line == f"error: {tmp_path / 'evil.pth.tar'}: it holds code or objects besides weights, and is not loaded"
    assert "executed" not in done.stdout + done.stderr

    def changed(**values: object) -> Path:
        state = {name: value for name, value in (made.state | values).items() if value is not None}
        torch.save({"state_dict": state}, tmp_path / "changed.pth.tar")
        return tmp_path / "changed.pth.tar"

    last = "layers.15.pred.1.conv.bias"
    for values, message in (
        ({"layers.0.conv.weight": torch.zeros(2, 3, 5, 5)}, r"layers\.0\.conv\.weight has shape \(2, 3, 5, 5\)"),
        ({"layers.1.bn.running_var": -made.state["layers.1.bn.running_var"]}, "NaN, or variances below 0"),
        ({"layers.1.bn.bias": None}, r"layers\.1\.bn\.bias is not in it"),
        ({"layers.29.pred.1.conv.weight": None}, "it has 74 convolutions"),
        ({last: torch.zeros(23)}, r"its outputs have \[23, 24\] channels"),
        ({last: None}, r"layers\.15\.pred\.1\.conv\.weight has shape"),
        ({"layers.0.conv.weight": made.state["layers.0.conv.weight"] * torch.nan}, "holds NaN or infinite weights"),
        ({"layers.3.conv.weight": 3}, "its state_dict holds more than named tensors"),
        ({"layers.1.bn.bias": torch.zeros(9)}, "norm.bias has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            load_network(changed(**values))
