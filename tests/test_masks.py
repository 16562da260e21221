"""Masks of Mask R-CNN: equal to torchvision's own, their average precision, frames without labels, and the commands."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import only_error_line
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_two_stages import SIZE, Backbone, note_labels, of_few_regions
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from config import Config, make_config
from geometry import Pixels
from images import read_label, read_photo, write_png
from metrics import Protocol
from model import Network, build_network, predict_batch
from networks import rcnn_head
from networks.rcnn_head import unsaid_share
from networks.rcnn_recipes import MASK_SIDE
from tasks import Depth, Masks
from tasks.instance_files import PART, VOID
from tasks.mask_metrics import MaskMetrics, mask_target
from tasks.mask_pasting import CELLS, as_maps, paste
from tasks.masks import ROWS
from training.optimizer import build_optimizer

CLASSES = ("chair", "table")
TASK = Masks.from_section({"things": CLASSES}, Config())
SETTINGS = {"encoder": "resnet18", "decoder": "fpn", "decoder_width": 16, "tasks": "masks"}


def network_of(**tasks: object) -> Network:
    return build_network(make_config(SETTINGS, "test"), {**tasks, "masks": TASK})


def codes_of(*things: tuple[int, int, int, int, int], size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Discs in x1, y1, x2, y2 of a class -> codes (H, W), the later ones on top."""
    codes = torch.zeros(size, dtype=torch.int32)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    for number, (x1, y1, x2, y2, kind) in enumerate(things, 1):
        inside = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 < 0.25
        codes[inside] = (kind + 1) * PART + number
    return codes


def losses_of(network: Network, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return network.heads_of(network.shared(images), images.shape[-2:], {"masks": target})["masks"]


def torchvisions(network: Network) -> MaskRCNN:
    made = MaskRCNN(Backbone(network), 1 + len(CLASSES), min_size=SIZE[0], max_size=SIZE[1])
    head = network.heads["masks"]
    made.rpn.load_state_dict(head.rpn.state_dict())
    made.roi_heads.load_state_dict(head.roi_heads.state_dict())
    return made


def lively(images: torch.Tensor) -> Network:
    """A new network with masks that are no boxes."""
    network = network_of()
    head = network.heads["masks"]
    with torch.no_grad():
        head.rpn.head.cls_logits.weight.mul_(30)
        head.roi_heads.mask_predictor.mask_fcn_logits.weight.normal_()
        seen = []
        hook = head.roi_heads.mask_predictor.register_forward_hook(lambda _, given, made: seen.append(made))
        network.eval()(images)
        hook.remove()
        head.roi_heads.mask_predictor.mask_fcn_logits.bias -= seen[0].mean((0, 2, 3))
    return network


# ---------------------------------------------------------------------------------------------- as torchvision


@torch.inference_mode()
def test_it_gives_the_masks_of_torchvisions_own_model():
    image = read_photo("media/photo.jpg")[0][: SIZE[0], : SIZE[1]]
    images = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    network = lively(images)
    raw = network(images)["masks"]
    assert raw.shape == (1, 100, ROWS) and rcnn_head.MASK_SIDE == MASK_SIDE
    found = TASK.decode(raw, SIZE)[0]
    wanted = torchvisions(network).eval()([images[0].float() / 255])[0]
    count = len(wanted["scores"])
    assert count > 20 and torch.allclose(found[:count, :4], wanted["boxes"], atol=1e-3)
    assert torch.allclose(found[:count, 4], wanted["scores"], atol=1e-6) and not found[count:, 4].any()
    shares = []
    for row, mask in zip(found[:count].numpy(), wanted["masks"][:, 0].numpy() > 0.5, strict=True):
        left, top, own = paste(row)
        whole = np.zeros(SIZE, bool)
        whole[top : top + own.shape[0], left : left + own.shape[1]] = own
        assert (whole != mask).sum() <= 2, "a pixel at the threshold may be rounded to either side"
        shares.append(mask.sum() / max(1, (row[2] - row[0]) * (row[3] - row[1])))
    assert min(shares) < 0.4 and max(shares) > 0.6


def test_losses_are_those_of_torchvision():
    network = lively(torch.rand(1, 3, *SIZE))
    made = torchvisions(network).train()
    made.backbone.eval(), network.heads.train()
    codes = torch.stack([codes_of((10, 20, 70, 100, 0), (60, 5, 149, 90, 1)), codes_of((30, 30, 120, 95, 1))])
    images = torch.rand(2, 3, *SIZE)
    torch.manual_seed(5)
    found = losses_of(network, images, codes)
    torch.manual_seed(5)
    x = network.whole_cells((images - network.mean) / network.std)
    listed, maps = ImageList(x, [SIZE] * 2), made.backbone(x)
    targets = [
        {name: value for name, value in mask_target(own, SIZE).items() if name in ("boxes", "labels", "masks")}
        for own in codes
    ]
    assert [len(target["labels"]) for target in targets] == [2, 1]
    proposals, first = made.rpn(listed, maps, targets)
    _, second = made.roi_heads(maps, proposals, listed.image_sizes, targets)
    assert found.shape == (2, 5) and (found > 0).all()
    wanted = [*first.values(), *(second[name] for name in ("loss_classifier", "loss_box_reg"))]
    assert torch.allclose(found.mean(0)[:4], torch.stack(wanted), rtol=1e-4)
    # torchvision takes the mean over the regions of both frames, we that of each frame.
    low, high = found[:, 4].min(), found[:, 4].max()
    assert low <= second["loss_mask"] <= high
    torch.manual_seed(5)
    one = losses_of(network, images[:1], codes[:1])[0]
    torch.manual_seed(5)
    maps = made.backbone(x[:1])
    listed = ImageList(x[:1], [SIZE])
    proposals, _ = made.rpn(listed, maps, targets[:1])
    _, second = made.roi_heads(maps, proposals, listed.image_sizes, targets[:1])
    assert one[4].item() == pytest.approx(second["loss_mask"].item(), rel=1e-4)


# ---------------------------------------------------------------------------------------------- labels


def test_a_target_has_a_mask_for_each_thing():
    codes = codes_of((10, 20, 70, 100, 0), (60, 5, 149, 90, 1))
    codes[:3, :50] = VOID
    codes[105, 3] = PART + 9  # a thing of one pixel
    target = mask_target(codes, SIZE)
    assert target["labels"].tolist() == [1, 2] and target["boxes"][1].tolist() == [60, 5, 149, 90]
    assert target["ignored"].tolist() == [[3, 105, 4, 106]]
    assert [int(mask.sum()) for mask in target["masks"]] == [
        int((codes == PART + 1).sum()),
        int((codes == 2 * PART + 2).sum()),
    ]
    boxes = torch.tensor([[0.0, 0, 50, 3], [0, 0, 50, 6], [0, 0, 100, 3], [60, 60, 70, 70], [-9, -9, 0, 0]])
    assert unsaid_share(boxes, target["unsaid"]).tolist() == pytest.approx([1, 0.5, 0.5, 0, 0])
    assert mask_target(torch.full(SIZE, VOID, dtype=torch.int32), SIZE) is None
    nothing = mask_target(codes_of(), SIZE)
    assert nothing["boxes"].shape == (0, 4) and nothing["masks"].shape == (0, *SIZE) and "unsaid" not in nothing


def test_frames_without_labels_take_no_part_and_unsaid_pixels_are_no_background():
    network, images = network_of().train(), torch.rand(3, 3, *SIZE)
    network.encoder.eval()
    codes = torch.stack([codes_of(), codes_of((10, 20, 70, 100, 0)), torch.full(SIZE, VOID, dtype=torch.int32)])
    losses = losses_of(network, images, codes)
    assert (losses > 0).tolist() == [[True, False, True, False, False], [True] * 5, [False] * 5]
    total, weight = TASK.loss(losses, codes)
    assert weight == TASK.weight(codes) == 2 and torch.isclose(total, losses.sum())
    assert not losses_of(network, images[:1], codes[2:]).any()
    drawn: list[torch.Tensor] = []
    note_labels(network.heads["masks"].roi_heads, drawn)
    half = codes_of((10, 20, 70, 100, 0))
    half[half == 0] = VOID
    assert losses_of(network, images[:1], half[None]).isfinite().all()
    assert (drawn[0] >= 1).any() and (drawn[0] == 0).sum() < 0.2 * len(drawn[0]) < (drawn[0] == -1).sum()


def test_it_learns_two_frames_by_heart(monkeypatch):
    monkeypatch.setattr(rcnn_head, "MASK_WIDTH", 32)  # of 256: seconds
    torch.manual_seed(0)
    config = make_config({**SETTINGS, "lr_encoder": 2e-3, "lr_decoder": 2e-3}, "test")
    network, size = build_network(config, {"masks": TASK}), (64, 96)
    things = [[(8, 8, 40, 56, 0), (50, 12, 92, 48, 1)], [(30, 10, 80, 50, 1)]]
    codes = torch.stack([codes_of(*frame, size=size) for frame in things])
    colors = torch.tensor([[90, 90, 90], [220, 40, 40], [40, 60, 220]], dtype=torch.uint8)
    images = colors[(codes // PART).long()].permute(0, 3, 1, 2).contiguous()
    optimizer = build_optimizer(network, config)
    of_few_regions(network.heads["masks"])
    network.train(), network.encoder.eval()
    for _ in range(45):
        total, weight = TASK.loss(losses_of(network, images, codes), codes)
        optimizer.zero_grad()
        (total / weight).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    metrics = TASK.metrics(Protocol())
    metrics.update(network.eval().predict(images, {"masks": size})["masks"], codes)
    values = metrics.compute()
    assert values["ap50"] == pytest.approx(1) == values["box_ap50"], values
    assert values["ap"] > 0.4, values


# ---------------------------------------------------------------------------------------------- metrics


def detections(rng: np.random.Generator, codes: np.ndarray, count: int) -> np.ndarray:
    """Rows near the things of a label, with masks of blobs."""
    rows = np.zeros((count, CELLS + MASK_SIDE**2), np.float32)
    boxes = [
        (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, code // PART - 1)
        for code in np.unique(codes[codes > 0])
        for ys, xs in [np.nonzero(codes == code)]
    ]
    place = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE - 0.5
    for row in rows:
        box = boxes[rng.integers(len(boxes))]
        low = (np.array(box[:2]) + rng.normal(0, 3, 2)).clip(0, (SIZE[1] - 4, SIZE[0] - 4))
        high = np.maximum((np.array(box[2:4]) + rng.normal(0, 3, 2)).clip(0, SIZE[::-1]), low + 2)
        kind = box[4] if rng.random() < 0.9 else rng.integers(len(CLASSES))
        row[:CELLS] = [*low, *high, rng.uniform(0.1, 1), kind, np.nan, *SIZE]
        round_one = place[:, None] ** 2 + place**2 < rng.uniform(0.1, 0.3)
        row[CELLS:] = (round_one * 0.9 + 0.05).ravel()
    return rows[np.argsort(-rows[:, 4], kind="stable")]


Found = tuple[np.ndarray, int, float, list[float]]  # mask (H, W), class, score, x1, y1, x2, y2


def pasted(rows: np.ndarray) -> list[Found]:
    found = []
    for row in rows:
        left, top, own = paste(row)
        whole = np.zeros(SIZE, np.uint8)
        whole[top : top + own.shape[0], left : left + own.shape[1]] = own
        found.append((whole, int(row[5]), float(row[4]), row[:4].astype(float).tolist()))
    return found


def official(frames: list[tuple[list[Found], np.ndarray]], kind: str) -> dict[str, float]:
    """pycocotools' numbers for detections and codes; kind: segm | bbox."""
    data: dict[str, list] = {"images": [], "annotations": [], "info": []}
    data["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    results = []
    for image, (detected, codes) in enumerate(frames, 1):
        data["images"].append({"id": image, "height": SIZE[0], "width": SIZE[1]})
        regions = [(codes == code, int(code) // PART, 0) for code in np.unique(codes[codes > 0])]
        if (codes == VOID).any():
            regions += [(codes == VOID, number + 1, 1) for number in range(len(CLASSES))]
        for mask, category, crowd in regions:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            data["annotations"].append({
                "id": len(data["annotations"]) + 1, "image_id": image, "category_id": category, "iscrowd": crowd,
                "segmentation": rle, "area": int(mask.sum()), "bbox": coco_mask.toBbox(rle).tolist(),
            })  # fmt: skip
        for whole, category, score, (x1, y1, x2, y2) in detected:
            found = {"image_id": image, "category_id": category + 1, "score": score}
            found |= {"segmentation": coco_mask.encode(np.asfortranarray(whole))} if kind == "segm" else {
                "bbox": [x1, y1, x2 - x1, y2 - y1]}  # fmt: skip
            results.append(found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), kind)
        run.evaluate(), run.accumulate(), run.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "", "", "ar100")
    return {name: value for name, value in zip(names, run.stats, strict=False) if name and value > -1}


def made_frames(void: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(4)
    frames = []
    for number in range(6):
        things = []
        for _ in range(5):
            x, y, width, height = (*rng.integers(0, 60, 2).tolist(), *rng.integers(9, 60, 2).tolist())
            things.append((x, y, x + width, y + height, int(rng.integers(2))))
        codes = codes_of(*things).numpy()
        if void:
            codes[60:, :40] = VOID
        frames.append((detections(rng, codes, 30 + number), codes))
    return frames


def measured(frames: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    metrics, other = MaskMetrics(CLASSES), MaskMetrics(CLASSES)
    for number, (rows, codes) in enumerate(frames):
        part = (torch.from_numpy(rows)[None], torch.from_numpy(codes)[None])
        (other if number % 2 else metrics).update(*part)
    metrics.merge(other)
    return metrics.compute()


@pytest.mark.parametrize("void", [False, True])
def test_average_precision_is_that_of_pycocotools(void):
    frames = made_frames(void)
    found, frames = measured(frames), [(pasted(rows), codes) for rows, codes in frames]
    wanted = official(frames, "segm")
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert 0.1 < found["ap"] < 0.9 and {"ap_small", "ap_medium"} <= wanted.keys()
    if not void:  # a crowd is its mask here, in pycocotools a box
        boxes = official(frames, "bbox")
        assert {name: found[f"box_{name}"] for name in ("ap", "ap50", "ap75")} == pytest.approx(
            {name: boxes[name] for name in ("ap", "ap50", "ap75")}, abs=1e-9
        )
    empty = MaskMetrics(CLASSES)
    empty.update(torch.from_numpy(made_frames(void)[0][0])[None], torch.full((1, *SIZE), VOID))
    assert empty.compute() == {}


@pytest.mark.parametrize("void", [False, True])
def test_average_precision_of_things_that_share_no_pixels_is_that_of_pycocotools(void):
    """Maps as the task `instances` gives them: a number for each thing, with its class and its score."""
    metrics, frames = MaskMetrics(CLASSES), []
    for rows, codes in made_frames(void):
        found, scores, regions = np.full(SIZE, VOID, np.int64), np.zeros(SIZE, np.float32), []
        for number, (whole, category, score, _) in reversed(list(enumerate(pasted(rows[:8]), 1))):
            found[whole > 0], scores[whole > 0] = (category + 1) * PART + number, score
        for code in np.unique(found[found > 0]).tolist():
            mask = found == code
            ys, xs = np.nonzero(mask)
            box = [float(xs.min()), float(ys.min()), xs.max() + 1.0, ys.max() + 1.0]
            regions.append((mask.astype(np.uint8), code // PART - 1, float(scores[mask][0]), box))
        metrics.add_codes(found, scores, codes)
        frames.append((regions, codes))
    wanted, found = official(frames, "segm"), metrics.compute()
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9) and 0.05 < found["ap"] < 0.9
    if not void:
        assert found["box_ap"] == pytest.approx(official(frames, "bbox")["ap"], abs=1e-9)


# ---------------------------------------------------------------------------------------------- the task


def square(x1: float, score: float, kind: int = 0, filled: float = 1.0) -> torch.Tensor:
    """A row of raw output: a box of a quarter of the frame's sides whose left part is the thing."""
    cells = torch.zeros(MASK_SIDE, MASK_SIDE)
    cells[:, : round(filled * MASK_SIDE)] = 1.0
    return torch.cat([torch.tensor([x1, 0.25, x1 + 0.25, 0.5, score, kind]), cells.flatten()])


def test_masks_move_with_the_views():
    raw = torch.zeros(1, 100, ROWS)
    raw[0, 0] = square(0.125, 0.9, filled=0.5)
    size = (64, 160)
    task = dataclasses.replace(TASK, least_score=0.1)
    plain = task.arrays(task.decode(raw, size))[0]
    ys, xs = np.nonzero(plain["number"])
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == pytest.approx((20, 40, 16, 32), abs=1)
    back = task.arrays(task.merge([(raw, 1.0, True)], size))[0]
    ys, xs = np.nonzero(back["number"])
    assert (xs.min(), xs.max() + 1) == pytest.approx((120, 140), abs=1)
    larger = task.arrays(task.resize(task.decode(raw, size), size, (128, 160)))[0]
    assert larger["number"].shape == (128, 160) and np.nonzero(larger["number"])[0].max() + 1 == pytest.approx(
        64, abs=1
    )


def test_the_better_thing_has_the_shared_pixels_and_its_own_distance():
    raw = torch.zeros(1, 100, ROWS)
    raw[0, 0], raw[0, 1] = square(0.25, 0.9), square(0.4, 0.8, kind=1)
    raw[0, 2] = square(0.75, 0.05)
    size = (64, 64)
    depth = torch.full((1, *size), 5.0)
    depth[0, :, :32] = 2.0
    found = TASK.complete(TASK.decode(raw, size), {"depth": depth}, {"depth": Depth(), "masks": TASK})
    assert found[0, :2, 6].tolist() == [2, 5] and found[0, :2, 7:9].tolist() == [[64, 64]] * 2
    record = TASK.arrays(found)[0]
    assert record["things"]["class"].tolist() == [0, 1], "the third is below the least score"
    assert record["number"][20, 30] == 1 and record["number"][20, 36] == 2
    assert record["things"]["distance_m"].tolist() == [2, 5]
    found[0, 1, :4] = found[0, 0, :4] + torch.tensor([6.0, 0, 6, 0])  # more than a half is the better one's
    assert TASK.arrays(found)[0]["things"]["class"].tolist() == [0]
    assert as_maps(found[0, :0].numpy(), size).shape == (4, *size)
    with pytest.raises(ValueError, match=r"--overlap: maskrcnn takes at most 0\.5"):
        TASK.with_thresholds(None, 0.7)
    others = {"a": TASK, "b": dataclasses.replace(TASK, classes=("lamp", "bed"))}
    with pytest.raises(ValueError, match="masks: a and b have different classes"):
        Masks.join(others, merge=False)
    for field, message in (
        ({"layers": "x"}, "layers is 'x'"),
        ({"spare": -1}, "spare is -1"),
        ({"most_overlap": 0.6}, "0..0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TASK, **field).check_fields()


@torch.inference_mode()
def test_it_stands_beside_depth_at_any_size(monkeypatch):
    monkeypatch.setattr(rcnn_head, "MASK_WIDTH", 32)
    network = network_of(depth=Depth()).eval()
    size = (33, 47)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    found = predict_batch(network, images, dict.fromkeys(network.tasks, size), mirror=True)
    assert found["depth"].shape == (1, *size) and found["masks"].shape == (1, 100, 9 + 784)
    assert TASK.thin(torch.zeros(2, *size), Pixels(size)).shape == (2, *size)


# ---------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Six frames with a disc each but for one with none; of the last one nobody says anything."""
    rng, lines = np.random.default_rng(0), []
    for number in range(6):
        x, y = rng.integers(2, 30, 2).tolist()
        codes = codes_of((x, y, x + 30, y + 18, 0), size=(50, 70)).numpy() if number != 3 else np.zeros((50, 70), int)
        picture = rng.integers(0, 60, (50, 70, 3), np.uint8)
        picture[codes > 0] = 230
        write_png(tmp_path / f"set/{number}.png", picture)
        write_png(tmp_path / f"set/{number}_mask.png", (codes > 0).astype(np.uint8))
        lines.append(f"{number}.png\t{'-' if number == 5 else f'{number}_mask.png'}\n")
    (tmp_path / "set/train.txt").write_text("".join(lines[2:]))
    (tmp_path / "set/val.txt").write_text("".join(lines[:2]))
    described = {"splits": {"train": "train.txt", "val": "val.txt"}, "columns": ["image", "boxes"],
                 "boxes": {"format": "instances", "classes": ["disc"]}}  # fmt: skip
    (tmp_path / "set/dataset.yaml").write_text(yaml.safe_dump(described))
    return tmp_path / "set"


def test_it_goes_through_all_commands(discs, script, tmp_path):
    given = [item for name, value in SETTINGS.items() for item in (f"--{name}", value)]
    done = script(
        "train.py", "--data", discs, "--long_side", 0, "--crop", "48,64", "--device", "cpu", "--threads", 1,
        "--workers", 0, "--batch_size", 2, "--epochs", 1, "--eval_every", 1, *given, "--run", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best, photo, out = tmp_path / "run/best.pt", discs / "0.png", tmp_path / "out"
    done = script("evaluate.py", "--checkpoint", best, "--mirror", "--device", "cpu")
    assert done.returncode == 0 and "box_ap50" in done.stdout, done.stderr
    done = script("inference.py", "--checkpoint", best, "--input", photo, "--output", out, "--score", 0.01)
    assert done.returncode == 0, done.stderr
    written = json.loads((out / "0_masks.json").read_text())
    mask = read_label(out / "0_masks.png")
    assert (written["width"], written["height"]) == (70, 50) and written["objects"]
    for thing in written["objects"]:
        own = coco_mask.decode({**thing["mask"], "counts": thing["mask"]["counts"].encode()})
        assert np.array_equal(own > 0, mask == 256 + thing["number"]) and thing["class"] == "disc"
    line = only_error_line(script("export.py", "--checkpoint", best, "--format", "openvino"))
    assert "masks: what Mask R-CNN computes depends on what it has found" in line
