"""Faster R-CNN on our encoders: equal to torchvision's own, frames without labels, ignored boxes, and the commands."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import only_error_line
from test_processes import in_processes
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

import distributed
from config import Config, make_config
from deploy.backends import open_backend
from geometry import Pixels
from images import read_photo, write_png
from metrics import Protocol
from model import Network, build_network, predict_batch
from networks.rcnn_head import RcnnHead, in_ignored
from tasks import Boxes, Depth, Segmentation
from training.optimizer import build_optimizer

CLASSES = ("chair", "table")
TASK = Boxes.from_section({"classes": CLASSES}, Config(box_layers="fasterrcnn"))
NAN = math.nan
SETTINGS = {"encoder": "resnet18", "decoder": "fpn", "decoder_width": 16, "box_layers": "fasterrcnn", "tasks": "boxes"}
SIZE = (107, 150)  # height, width: no multiples of 32


def network_of(**tasks: object) -> Network:
    return build_network(make_config(SETTINGS, "test"), {**tasks, "boxes": TASK})


def target_of(*frames: list[tuple[float, ...]] | None) -> torch.Tensor:
    """Of each frame the rows x1, y1, x2, y2, class[, ignore] in pixels, or None: nobody says -> (B, M, 7) in shares."""
    labels = []
    for rows in frames:
        full = [(*row, *(0, NAN)[len(row) - 5 :]) for row in rows or ()]
        label = TASK.no_label(*SIZE) if rows is None else np.array(full, np.float32).reshape(-1, 7)
        labels.append(torch.from_numpy(label))
    return TASK.thin(TASK.collate(labels), Pixels(SIZE))


def losses_of(network: Network, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return network.heads_of(network.shared(images), images.shape[-2:], {"boxes": target})["boxes"]


class Backbone(nn.Module):
    """Our encoder and decoder as torchvision takes them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.decoder, self.out_channels = network.encoder, network.decoder, network.decoder.width

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(("0", "1", "2", "3", "pool"), self.decoder(self.encoder(images)), strict=True))


def torchvisions(network: Network) -> FasterRCNN:
    """torchvision's own model with these weights, for images of SIZE."""
    made = FasterRCNN(Backbone(network), 1 + len(CLASSES), min_size=SIZE[0], max_size=SIZE[1])
    head = network.heads["boxes"]
    made.rpn.load_state_dict(head.rpn.state_dict())
    made.roi_heads.load_state_dict(head.roi_heads.state_dict())
    return made


def lively(images: torch.Tensor) -> Network:
    """A new network that finds each class somewhere in these images."""
    network = network_of()
    head = network.heads["boxes"]
    with torch.no_grad():
        head.rpn.head.cls_logits.weight.mul_(30)
        predictor = head.roi_heads.box_predictor
        predictor.cls_score.weight.normal_()
        seen = []
        hook = predictor.register_forward_hook(lambda _, given, made: seen.append(made[0].mean(0)))
        network.eval()(images)
        hook.remove()
        predictor.cls_score.bias -= seen[0]
    return network


# ---------------------------------------------------------------------------------------------- as torchvision


@torch.inference_mode()
def test_it_finds_what_torchvisions_own_model_finds():
    image = read_photo("media/photo.jpg")[0][:107, :150]
    images = torch.from_numpy(np.stack([image, image[:, ::-1]])).permute(0, 3, 1, 2)
    network = lively(images)
    raw = network(images)["boxes"]
    assert raw.shape == (2, 100, 6)
    wanted = torchvisions(network).eval()([image.float() / 255 for image in images])
    for found, own in zip(TASK.decode(raw, SIZE), wanted, strict=True):
        count = len(own["scores"])
        assert count > 20 and not found[count:, 4].any()
        assert torch.allclose(found[:count, :4], own["boxes"], atol=1e-3)
        assert torch.allclose(found[:count, 4], own["scores"], atol=1e-6)
        assert torch.equal(found[:count, 5].long() + 1, own["labels"]) and own["labels"].unique().numel() == 2


def test_losses_are_those_of_torchvision():
    """Of one frame to the last digit; of two, whose frames draw equally many samples, as their mean."""
    network = lively(torch.rand(1, 3, *SIZE))
    made = torchvisions(network).train()
    made.backbone.eval(), network.heads.train()
    rows = [[(10, 20, 70, 100, 0), (60, 5, 149, 90, 1)], [(30, 30, 120, 95, 1)]]
    targets = []
    for frame in rows:
        table = torch.tensor(frame)
        targets.append({"boxes": table[:, :4].float(), "labels": table[:, 4] + 1})
    for frames in (1, 2):
        images = torch.rand(frames, 3, *SIZE)
        torch.manual_seed(5)
        found = losses_of(network, images, target_of(*rows[:frames]))
        torch.manual_seed(5)
        x = network.whole_cells((images - network.mean) / network.std)
        listed = ImageList(x, [SIZE] * frames)
        maps = made.backbone(x)
        proposals, first = made.rpn(listed, maps, targets[:frames])
        _, second = made.roi_heads(maps, proposals, listed.image_sizes, targets[:frames])
        wanted = torch.stack([*first.values(), *second.values()])
        assert torch.allclose(found.mean(0), wanted, rtol=1e-4, atol=1e-6), (found.mean(0), wanted)
        assert (found > 0).all()
        total, weight = TASK.loss(found, target_of(*rows[:frames]))
        assert weight == frames and (total / weight).item() == pytest.approx(wanted.sum().item(), rel=1e-4)


# ---------------------------------------------------------------------------------------------- frames and labels


def test_frames_of_which_nobody_says_anything_take_no_part():
    network, images = network_of().train(), torch.rand(3, 3, *SIZE)
    network.encoder.eval()
    rows = [(10, 20, 70, 100, 0)]
    target = target_of(None, rows, [])
    torch.manual_seed(1)
    losses = losses_of(network, images, target)
    assert not losses[0].any() and (losses[1] > 0).all()
    assert losses[2].gt(0).tolist() == [True, False, True, False], "nothing is there: background alone"
    torch.manual_seed(1)
    alone = losses_of(network, images[1:], target_of(rows, []))
    assert torch.allclose(losses[1:], alone, rtol=1e-5)
    assert TASK.weight(target) == 2 and not losses_of(network, images[:1], target_of(None)).any()
    gradient = torch.autograd.grad(losses[1:].sum(), list(network.parameters()), allow_unused=True)
    assert all(item is not None for item in gradient)


def test_with_several_processes_each_weight_has_a_gradient(monkeypatch):
    """Of a process without labels, too: the others wait for it."""
    network, images = network_of().train(), torch.rand(1, 3, 64, 64)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    losses = losses_of(network, images, target_of(None))
    assert not losses.any()
    gradient = torch.autograd.grad(losses.sum(), list(network.parameters()))
    assert not any(item.any() for item in gradient)


def test_ignored_boxes_are_neither_things_nor_background():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60], [0, 0, 8, 8]])
    ignored = torch.tensor([[0.0, 0, 100, 9], [2, 2, 6, 6]])
    assert in_ignored(boxes, ignored).tolist() == [True, False, False, True]
    assert not in_ignored(boxes, ignored[:0]).any()
    network = network_of().train()
    head: RcnnHead = network.heads["boxes"]
    drawn: dict[str, list[torch.Tensor]] = {}
    for name, part in (("anchors", head.rpn), ("regions", head.roi_heads)):
        note_labels(part, drawn.setdefault(name, []))
    everything = (0, 0, SIZE[1], SIZE[0], 0, 1)
    losses = losses_of(network, torch.rand(2, 3, *SIZE), target_of([everything], [(20, 20, 90, 90, 1), everything]))
    assert not losses[0, 1:].any() and losses.isfinite().all(), "only anchors outside of the first frame are drawn"
    assert (losses[1] > 0).all(), "a thing within what is ignored is a thing"
    for name, labels in drawn.items():
        for own, things in zip(labels, (False, True), strict=True):
            assert bool((own >= 1).any()) == things and (own == -1).sum() > 0.5 * len(own)
            assert name == "anchors" or not (own == 0).any(), "regions are cut at the border of the frame"


def note_labels(part: nn.Module, labels: list[torch.Tensor]) -> None:
    """Lists the labels from which a part draws: above 0 a thing, 0 background, -1 neither."""
    draw = part.fg_bg_sampler

    def noting(own: list[torch.Tensor]) -> object:
        labels.extend(own)
        return draw(own)

    part.fg_bg_sampler = noting


def of_few_regions(head: RcnnHead) -> None:
    """For trainings of seconds."""
    head.roi_heads.fg_bg_sampler.batch_size_per_image = 32  # of 512
    head.rpn._pre_nms_top_n["training"], head.rpn._post_nms_top_n["training"] = 300, 128  # of 2000


def test_it_learns_two_frames_by_heart():
    torch.manual_seed(0)
    config = make_config({**SETTINGS, "lr_encoder": 2e-3, "lr_decoder": 2e-3}, "test")
    network = build_network(config, {"boxes": TASK})
    size = (64, 96)
    pictures = np.full((2, *size, 3), 90, np.uint8)
    rows = [[(8, 8, 40, 56, 0), (52, 16, 92, 44, 1)], [(30, 10, 80, 50, 1)]]
    for picture, frame in zip(pictures, rows, strict=True):
        for x1, y1, x2, y2, kind in frame:
            picture[y1:y2, x1:x2] = ((220, 40, 40), (40, 60, 220))[kind]
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    labels = TASK.collate([torch.tensor([(*row, 0, NAN) for row in frame], dtype=torch.float32) for frame in rows])
    target = TASK.thin(labels, Pixels(size))
    optimizer = build_optimizer(network, config)
    of_few_regions(network.heads["boxes"])
    network.train(), network.encoder.eval()
    for _ in range(45):
        total, weight = TASK.loss(losses_of(network, images, target), target)
        optimizer.zero_grad()
        (total / weight).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    metrics = TASK.metrics(Protocol())
    metrics.update(network.eval().predict(images, {"boxes": size})["boxes"], labels)
    values = metrics.compute()
    assert values["ap50"] == pytest.approx(1) and values["ap"] > 0.4, values


# ---------------------------------------------------------------------------------------------- the task


def test_rows_are_cut_mirrored_and_suppressed():
    raw = torch.zeros(1, 100, 6)
    raw[0, :2] = torch.tensor([[0.1, 0.2, 0.5, 0.6, 0.9, 1], [0.1, 0.2, 0.4, 0.6, 0.8, 1]])  # IoU 0.75
    assert (TASK.decode(raw, SIZE)[0, :, 4] > 0).sum() == 2, "the head has suppressed already"
    assert (TASK.with_thresholds(None, 0.4).decode(raw, SIZE)[0, :, 4] > 0).sum() == 1
    with pytest.raises(ValueError, match=r"--overlap: fasterrcnn takes at most 0\.5"):
        TASK.with_thresholds(None, 0.6)
    found = TASK.merge([(raw, 1.0, False), (raw, 1.0, True)], (100, 100))[0]
    sure = found[found[:, 4] > 0]
    assert sorted(sure[:, :4].round().tolist()) == [[10, 20, 50, 60], [50, 20, 90, 60]]
    cut = TASK.crop(raw, (50, 40), (100, 100))[0, 0, :4].tolist()
    assert cut == pytest.approx([0.25, 0.4, 1, 1])
    assert not TASK.output_fault(raw, 1, None) and "expected numbers (1, boxes, 6)" in TASK.output_fault(
        raw[..., :5], 1, None
    )


def test_what_does_not_fit_is_refused():
    others = {"a": TASK, "b": dataclasses.replace(TASK, classes=("lamp",), colors=((1, 2, 3),))}
    with pytest.raises(ValueError, match="box_layers: fasterrcnn takes data sets of one class list"):
        Boxes.join(others, merge=False)
    with pytest.raises(ValueError, match="Faster and Mask R-CNN read maps of one width, as those of --decoder fpn"):
        build_network(make_config({**SETTINGS, "decoder": "unet"}, "test"), {"boxes": TASK})
    for field, message in (({"spare": 256}, "spare is 256"), ({"layers": "twostage"}, "layers is 'twostage'")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TASK, **field).check_fields()
    with pytest.raises(ValueError, match="spare is 1; it must be 0"):
        dataclasses.replace(TASK, layers="light", spare=1).check_fields()


def test_it_runs_in_pytorch_alone():
    network = network_of(depth=Depth()).eval()
    assert open_backend(network, "auto").name == "eager"
    for name in ("compile", "openvino"):
        with pytest.raises(
            ValueError, match=f"--backend {name}: boxes: what two-stage detectors .* eager alone runs it"
        ):
            open_backend(network, name)
    half = open_backend(network, "eager", precision="bf16")
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert half(images)["boxes"].dtype == torch.float32 and half(images)["depth"].dtype == torch.bfloat16


def test_dense_tasks_stand_beside_it_at_any_size():
    """The padding of the pictures is not in their maps: each task's prediction is of the picture alone."""
    colors = ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    network = network_of(segmentation=Segmentation(classes=("wall", *CLASSES), colors=colors), depth=Depth()).eval()
    for size in ((33, 47), (107, 150)):
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        raws = network(images)
        assert {name: tuple(raw.shape[1:]) for name, raw in raws.items()} == {
            "segmentation": (3, -(-size[0] // 4), -(-size[1] // 4)), "depth": (1, -(-size[0] // 4), -(-size[1] // 4)),
            "boxes": (100, 6),
        }  # fmt: skip
        found = predict_batch(network, images, dict.fromkeys(network.tasks, size), mirror=True)
        assert found["segmentation"].shape == found["depth"].shape == (2, *size)
        assert (found["boxes"][..., 6][found["boxes"][..., 4] > 0] > 0).all(), "distances come from depth"


# ---------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Six frames with a box each but for one with none and one of which nobody says anything."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(6):
        picture = rng.integers(0, 60, (50, 70, 3), np.uint8)
        x, y = rng.integers(2, 30, 2).tolist()
        picture[y : y + 18, x : x + 30] = 230
        write_png(tmp_path / f"set/{number}.png", picture)
        label = tmp_path / f"set/{number}.txt"
        label.write_text("" if number == 4 else f"0 {(x + 15) / 70} {(y + 9) / 50} {30 / 70} {18 / 50}\n")
        lines.append(f"{number}.png\t{'-' if number == 5 else label.name}\n")
    (tmp_path / "set/train.txt").write_text("".join(lines[2:]))
    (tmp_path / "set/val.txt").write_text("".join(lines[:2]))
    described = {"splits": {"train": "train.txt", "val": "val.txt"}, "columns": ["image", "boxes"],
                 "boxes": {"format": "yolo", "classes": ["square"]}}  # fmt: skip
    (tmp_path / "set/dataset.yaml").write_text(yaml.safe_dump(described))
    return tmp_path / "set"


def test_it_goes_through_all_commands(squares, script, tmp_path):
    words = ["--data", squares, "--long_side", 0, "--crop", "48,64", "--device", "cpu", "--threads", 1, "--workers", 0,
             "--batch_size", 1, "--epochs", 1, "--eval_every", 1, "--accumulate", 2]  # fmt: skip
    given = [item for name, value in SETTINGS.items() for item in (f"--{name}", value)]
    done = script("train.py", *words, *given, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    best = tmp_path / "run/best.pt"
    done = script("evaluate.py", "--checkpoint", best, "--mirror", "--device", "cpu")
    assert done.returncode == 0 and "ap50" in done.stdout, done.stderr
    done = in_processes(2, "train.py", *words, *given, "--accumulate", 1, "--run", tmp_path / "both")
    assert done.returncode == 0 and (tmp_path / "both/best.pt").is_file(), done.stderr
    photo, out = squares / "0.png", tmp_path / "out"
    done = script("inference.py", "--checkpoint", best, "--input", photo, "--output", out, "--score", 0.01)
    assert done.returncode == 0, done.stderr
    objects = json.loads((out / "0_objects.json").read_text())["objects"]
    assert objects and {item["class"] for item in objects} == {"square"}
    line = only_error_line(script("inference.py", "--checkpoint", best, "--input", photo, "--backend", "onnxruntime"))
    assert line.startswith(
        "error: --backend onnxruntime: boxes: what two-stage detectors (box_layers fasterrcnn) compute"
    )
    line = only_error_line(script("export.py", "--checkpoint", best, "--format", "onnx"))
    assert "boxes: what two-stage detectors" in line and line.endswith("--format safetensors run in PyTorch")
    done = script("export.py", "--checkpoint", best, "--format", "safetensors", "--images", photo)
    assert done.returncode == 0 and (tmp_path / "run/best.safetensors").is_file(), done.stderr
