"""The boxes task: its head, which cell learns which box, the loss, suppression, distances, and views."""

from __future__ import annotations

import dataclasses
import json
import math

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from config import Config
from geometry import Pixels, View, random_view
from metrics import Protocol
from networks.box_head import FIRST_CLASS, BoxHead, places
from tasks import Boxes, Depth, Segmentation
from tasks.box_distance import distances, quantile
from tasks.box_loss import CELLS_OF_A_BOX, assign, box_loss, weight_of
from tasks.box_selection import MOST_BOXES, boxes_in_cells, candidates, overlaps, suppress

CLASSES = ("chair", "table", "lamp")
TASK = Boxes(CLASSES, ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
NAN = math.nan


def label_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Rows of x1, y1, x2, y2, class[, ignore[, distance]]."""
    full = [(*row, *(0, NAN)[len(row) - 5 :]) for row in rows]
    return torch.tensor(full, dtype=torch.float32).reshape(-1, 7)


def raw_of(height: int, width: int, frames: int = 1, sides: float = 2.0, logit: float = -4.0) -> torch.Tensor:
    """Raw output of levels at strides 8 and 16 for frames of this size, the same everywhere."""
    parts = []
    for stride in (8, 16):
        where = places(torch.zeros(1, 1, math.ceil(height / stride), math.ceil(width / stride)))
        rest = torch.full((1, where.shape[1], 4 + len(CLASSES)), logit)
        rest[..., :4] = sides
        parts.append(torch.cat([where, rest], dim=2))
    return torch.cat(parts, dim=1).repeat(frames, 1, 1)


def thinned(target: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return TASK.thin(target, Pixels((height, width), 2, 1, 0))


# ---------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("layers", ["light", "plain"])
def test_a_head_tells_where_its_cells_are_and_starts_with_rare_classes(layers):
    torch.manual_seed(0)
    head = BoxHead((16, 24), 3, layers)
    head.initialise()
    raw = head.eval()(torch.randn(2, 16, 5, 7), torch.randn(2, 24, 3, 4))
    assert raw.shape == (2, 5 * 7 + 3 * 4, FIRST_CLASS + 3) and raw.dtype == torch.float32
    assert raw[0, 9, :4].tolist() == [2, 1, 7, 5] and raw[1, 35 + 11, :4].tolist() == [3, 2, 4, 3]
    assert torch.allclose(raw[..., 4:8], torch.tensor(3.0), atol=1.0)
    assert torch.allclose(raw[..., 8:].sigmoid(), torch.tensor(0.01), atol=0.01)
    # The weights are shared by the levels, statistics are not.
    names = dict(head.named_buffers())
    assert sum(name.startswith("layers.0.norms") and name.endswith("running_mean") for name in names) == 2


def test_cells_are_exact_in_half_precision():
    where = places(torch.zeros(1, 1, 256, 3, dtype=torch.bfloat16))
    assert torch.equal(where.to(torch.bfloat16).float(), where) and where[0, -1].tolist() == [2, 255, 3, 256]


def test_a_decoder_without_the_strides_is_refused():
    assert TASK.levels((4, 8, 16, 32)) == (1, 2, 3) and TASK.levels((1, 2, 4, 8)) == (3,)
    with pytest.raises(ValueError, match=r"boxes: the decoder has maps at strides 2, 4, none at \(8, 16, 32\)"):
        TASK.levels((2, 4))


# ---------------------------------------------------------------------------------------------- selection


def test_suppression_is_greedy_nms():
    """torchvision's operator decides the same, in crowds of boxes of two classes."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        corner = torch.rand(300, 2, generator=generator) * 0.3
        boxes = torch.cat([corner, corner + 0.02 + 0.2 * torch.rand(300, 2, generator=generator)], dim=1)
        scores = torch.rand(300, generator=generator).sort(descending=True).values
        classes = torch.randint(0, 2, (300,), generator=generator)
        found = torch.cat([boxes, scores[:, None], classes[:, None].float()], dim=1)[None]
        kept = suppress(found, 0.6)[0, :, 4].nonzero().flatten()
        assert torch.equal(kept, batched_nms(boxes, scores, classes, 0.6).sort().values) and 20 < len(kept) < 300


def test_few_cells_give_as_many_rows_as_many():
    raw = raw_of(40, 24, frames=2)
    raw[0, 3, FIRST_CLASS + 1] = 3.0
    found = TASK.decode(raw, (80, 48))
    assert found.shape == (2, MOST_BOXES, 7) and found[..., 6].isnan().all()
    assert found[0, 0, 4:6].tolist() == pytest.approx([torch.tensor(3.0).sigmoid().item(), 1])
    # Column 0, row 1 of 3 x 5 cells: centre 0.5, 1.5; the box goes 2 cells to each side and is cut at the frame.
    assert found[0, 0, :4].tolist() == pytest.approx([0, 0, 2.5 * 16, 3.5 * 16])
    assert [(candidates(raw)[0, row:, 4] > 0).any() for row in (20, 21)] == [True, False], "15 + 6 cells"


def test_padding_of_an_image_is_taken_away():
    """A graph of a fixed size sees an image with a border at the right and bottom; boxes follow, cells there do not."""
    raw = raw_of(64, 96)
    raw[0, :, FIRST_CLASS] = torch.linspace(0, 1, raw.shape[1])
    cut = TASK.crop(raw, (48, 60), (64, 96))
    boxes, inside = boxes_in_cells(cut)
    before, _ = boxes_in_cells(raw)
    assert torch.allclose(boxes * torch.tensor([60, 48, 60, 48]), before * torch.tensor([96, 64, 96, 64]), atol=1e-4)
    columns, rows = raw[0, :96, 0], raw[0, :96, 1]
    assert torch.equal(inside[0, :96], (columns + 0.5 < 60 / 8) & (rows + 0.5 < 48 / 8))
    assert (TASK.decode(cut, (48, 60))[..., 2] <= 60).all()


def test_views_are_merged_and_mirrored_back():
    plain, mirrored = raw_of(64, 96), raw_of(64, 96)
    plain[0, 2 * 12 + 3, FIRST_CLASS] = 4.0  # row 2, column 3 of 8 x 12
    mirrored[0, 2 * 12 + 8, FIRST_CLASS] = 5.0  # the same place
    mirrored[0, 5 * 12 + 1, FIRST_CLASS + 2] = 4.5
    found = TASK.merge([(plain, 1.0, False), (mirrored, 1.0, True)], (64, 96))[0]
    sure = found[found[:, 4] > 0.5]
    assert sure[:, 5].tolist() == [0, 2], "one chair and not two"
    assert sure[0, :4].tolist() == pytest.approx([12, 4, 44, 36]) and sure[0, 4].item() == pytest.approx(
        0.9933, abs=1e-4
    )
    assert sure[1, :4].tolist() == pytest.approx([96 - 28, 28, 96, 60])


def test_predictions_of_another_size():
    found = torch.tensor([[[1.0, 2, 3, 4, 0.5, 2, NAN]]])
    assert TASK.resize(found, (10, 20), (30, 20))[0, 0, :6].tolist() == [1, 6, 3, 12, 0.5, 2]


# ---------------------------------------------------------------------------------------------- assignment and loss


def test_each_box_gets_cells_and_a_cell_one_box():
    raw = raw_of(64, 64)
    found, _ = boxes_in_cells(raw)
    cells = (raw[..., :2] + 0.5) / raw[..., 2:4]
    boxes = torch.tensor([[[0, 0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9], [0.51, 0.51, 0.52, 0.52], [0, 0, 1, 1]]])
    real = torch.tensor([[True, True, True, False]])
    got = assign(cells, found, torch.full((1, 4, cells.shape[1]), 0.5), boxes, real)
    learned = [((got.box == number) & (got.quality > 0))[0] for number in range(4)]
    assert all(1 <= item.sum() <= CELLS_OF_A_BOX for item in learned[:3]) and not learned[3].any(), (
        "the last is ignored"
    )
    centers = cells[0][learned[0]]
    assert (centers < 0.5).all(), "only cells inside"
    nearest = (cells[0] - 0.515).norm(dim=1).argmin()
    assert learned[2].nonzero().flatten().tolist() == [int(nearest)], "a box without a cell gets the nearest"
    best = overlaps(boxes[0, :1], found[0])[0][learned[0]].max()
    assert got.quality[0][learned[0]].max() == pytest.approx(float(best), rel=1e-5)


def test_what_fills_up_a_batch_changes_nothing():
    raw = raw_of(64, 96, frames=2).requires_grad_()
    rows = label_of((8, 8, 40, 40, 0), (50, 10, 90, 60, 2)), label_of()
    target = thinned(TASK.collate(rows), 64, 96)
    more = torch.cat([target, thinned(TASK.collate([label_of()] * 2), 64, 96)], dim=1)
    (total, weight), (same, also) = box_loss(raw, target), box_loss(raw, more)
    assert total == same and weight == also == 2 + 4 * 2 == weight_of(target)
    apart = sum(box_loss(raw[i : i + 1], target[i : i + 1])[0] for i in range(2))
    assert total.item() == pytest.approx(apart.item(), rel=1e-5), "frames do not look at each other"


def test_a_frame_without_things_teaches_and_an_ignored_thing_does_not():
    raw = raw_of(64, 96, logit=0.0).requires_grad_()
    empty = thinned(TASK.collate([label_of()]), 64, 96)
    gradient = torch.autograd.grad(box_loss(raw, empty)[0], raw)[0]
    assert (gradient[..., FIRST_CLASS:] > 0).all() and not gradient[..., :FIRST_CLASS].any()
    ignored = thinned(TASK.collate([label_of((0, 0, 48, 64, 1, 1))]), 64, 96)
    gradient = torch.autograd.grad(box_loss(raw, ignored)[0], raw)[0]
    left = (raw[0, :, 0] + 0.5) / raw[0, :, 2] < 0.5
    assert (gradient[0, left, FIRST_CLASS + 1] == 0).all() and (gradient[0, left, FIRST_CLASS] > 0).all()
    assert (gradient[0, ~left, FIRST_CLASS:] > 0).all() and weight_of(ignored) == 1


def test_classes_of_other_data_sets_are_no_negatives():
    tasks = {"a": dataclasses.replace(TASK, classes=("chair",), colors=((1, 2, 3),)),
             "b": dataclasses.replace(TASK, classes=("table", "chair"), colors=((4, 5, 6), (1, 2, 3)))}  # fmt: skip
    head, parts = Boxes.join(tasks, merge=True)
    assert head.classes == ("chair", "table") and parts["a"].outputs == (0,) and parts["b"].outputs == (1, 0)
    raw = raw_of(64, 96)[..., : FIRST_CLASS + 2].clone().requires_grad_()
    for name, untouched in (("a", 1), ("b", None)):
        selected = parts[name].select(raw)
        target = parts[name].thin(parts[name].collate([label_of((8, 8, 40, 40, 0))]), Pixels((64, 96)))
        gradient = torch.autograd.grad(parts[name].loss(selected, target)[0], raw)[0]
        touched = gradient[0, :, FIRST_CLASS:].abs().sum(0) > 0
        assert touched.tolist() == [number != untouched for number in range(2)]
        parts[name].check_part_of(head)
    with pytest.raises(ValueError, match="boxes: it has 1 classes, its head 2"):
        dataclasses.replace(parts["a"], outputs=()).check_part_of(head)


def test_the_loss_leads_to_the_boxes():
    """Gradient descent on raw output alone ends at the labels: assignment, loss, decoding and metrics agree."""
    torch.manual_seed(0)
    labels = [
        label_of((5, 9, 37, 50, 0), (30, 20, 91, 60, 1), (70, 2, 84, 14, 2)),
        label_of((3, 3, 93, 61, 1)),
        label_of(),
    ]
    target = TASK.collate(labels)
    raw = raw_of(64, 96, frames=3)
    sides, logits = raw[..., 4:8].clone(), raw[..., 8:].clone()
    for value in (sides, logits):
        value.requires_grad_()
    optimizer = torch.optim.Adam([sides, logits], 0.1)
    for _ in range(150):
        total, weight = box_loss(
            torch.cat([raw[..., :4], sides.clamp(min=0.01), logits], dim=2), thinned(target, 64, 96)
        )
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    final = torch.cat([raw[..., :4], sides.clamp(min=0.01), logits], dim=2).detach()
    metrics = TASK.metrics(Protocol())
    metrics.update(TASK.decode(final, (64, 96)), target)
    values = metrics.compute()
    assert values["ap"] > 0.95 and values["ap50"] == pytest.approx(1) and values["voc_ap50"] == 1


# ---------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("seed", range(12))
def test_a_view_moves_boxes_as_it_moves_masks(seed):
    """Boxes of a view are those of the masks that the view samples, to a pixel."""
    rng = np.random.default_rng(seed)
    config = Config(crop=(96, 120), zoom=(0.6, 1.9), long_side=150, rotation=0.0)
    view = random_view(rng, 143, 211, config)
    corner = rng.integers(0, (150, 90), (6, 2))
    rows = np.column_stack(
        [corner, corner + rng.integers(8, 60, (6, 2)), rng.integers(0, 3, 6), np.zeros(6), np.ones(6)]
    )
    rows[:, 2:4] = np.minimum(rows[:, 2:4], (211, 143))
    moved = TASK.view(rows.astype(np.float32), view)
    expected = []
    for x1, y1, x2, y2, kind, _, _ in rows:
        mask = np.zeros((143, 211), np.uint8)
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        ys, xs = np.nonzero(view.sample(mask, 0))
        if len(xs):
            expected.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, kind))
    kept = moved[(moved[:, 2] - moved[:, 0] > 1) & (moved[:, 3] - moved[:, 1] > 1)]
    assert len(expected) >= len(kept) >= len(expected) - 2
    for row in kept:
        assert min(np.abs(np.array(item[:4]) - row[:4]).max() for item in expected if item[4] == row[4]) <= 1.01
    assert np.allclose(moved[:, 6], 1 / view.zoom)


def test_what_mostly_leaves_a_view_is_ignored():
    view = View((100, 100), (100, 100), np.array([[1.0, 0, -50], [0, 1, 0]]), 100, 50)  # the right half
    rows = label_of(
        (10, 10, 40, 40, 0), (30, 10, 60, 40, 1), (45, 10, 75, 40, 2), (49, 10, 51, 90, 0), (60, 1, 90, 9, 1, 1)
    )
    moved = TASK.view(rows.numpy(), view)
    assert moved[:, :6].tolist() == [
        [0, 10, 10, 40, 1, 1],
        [0, 10, 25, 40, 2, 0],
        [0, 10, 1, 90, 0, 1],
        [10, 1, 40, 9, 1, 1],
    ]
    assert TASK.view(np.zeros((0, 7), np.float32), view).shape == (0, 7)
    turned = cv2.getRotationMatrix2D((50, 50), 90, 1.0)
    assert TASK.view(label_of((10, 20, 30, 60, 0)).numpy(), View((100, 100), (100, 100), turned, 100, 100)).shape == (
        1,
        7,
    )


# ---------------------------------------------------------------------------------------------- distances


def test_the_distance_is_that_of_the_things_own_pixels():
    depth, classes = torch.full((1, 60, 80), 5.0), torch.zeros(1, 60, 80, dtype=torch.uint8)
    depth[0, 20:40, 20:40], classes[0, 20:40, 20:40] = 2.0, 7
    depth[0, 30:40, 20:40] = 0  # no reading
    boxes = torch.tensor([[[15.0, 15, 45, 45], [15, 15, 45, 45], [50, 0, 80, 60], [0, 0, 0, 0]]])
    found = distances(boxes, depth, classes, torch.tensor([[7, 3, 0, -1]]))
    # The second box's class is nowhere in it: the lower quartile of all its readings.
    assert found[0].tolist() == [2, 2, 5, 5]
    assert distances(boxes, depth, None, None)[0, :3].tolist() == [2, 2, 5]
    assert distances(boxes, torch.zeros(1, 60, 80), None, None).isnan().all()
    values = torch.tensor([[[4.0, 1, 3, 2]]])
    assert quantile(values, values > 1, 0.5).item() == 3 and quantile(values, values > 9, 0.5).isnan()


def test_a_prediction_takes_its_distance_from_the_other_tasks():
    tasks = {"segmentation": Segmentation(("wall", "chair"), ((1, 1, 1), (2, 2, 2))), "depth": Depth(), "boxes": TASK}
    classes = torch.zeros(1, 64, 96, dtype=torch.uint8)
    classes[0, :, 48:] = 1
    depth = torch.full((1, 64, 96), 4.0)
    depth[0, :, 48:] = 1.5
    found = torch.tensor([[[30.0, 10, 66, 50, 0.9, 0, NAN], [30, 10, 66, 50, 0.8, 1, NAN], [0, 0, 9, 9, 0.8, 0, 9.0]]])
    others = {"segmentation": classes, "depth": depth, "boxes": found}
    assert TASK.complete(found, others, tasks)[0, :, 6].tolist() == [1.5, 1.5, 9.0], "what is known stays"
    assert TASK.complete(found, {"boxes": found}, tasks)[0, :2, 6].isnan().all()
    target = TASK.collate([label_of((30, 10, 66, 50, 0))])
    target = torch.cat([target, TASK.collate([label_of()])], dim=1)
    assert TASK.complete_target(target, others, tasks)[0, :, 6].nan_to_num(-1).tolist() == [1.5, -1]


# ---------------------------------------------------------------------------------------------- what users get


def test_objects_are_saved_as_they_are_documented(tmp_path):
    prediction = torch.tensor(
        [[[1.0, 2.004, 30, 40, 0.91, 0, 2.3104], [5, 5, 9, 9, 0.31, 2, NAN], [0, 0, 1, 1, 0.2, 1, 1]]]
    )
    objects = TASK.arrays(prediction)[0]
    assert objects["class"].tolist() == [0, 2], "below the least score nothing is shown"
    path = tmp_path / TASK.file_name("photo")
    TASK.save_frame(objects, path, "photo.jpg", (48, 64))
    assert path.name == "photo_objects.json"
    assert json.loads(path.read_text()) == {
        "image": "photo.jpg", "width": 64, "height": 48,
        "objects": [
            {"class": "chair", "score": 0.91, "box": [1, 2, 30, 40], "distance_m": 2.31, "xyz_m": None},
            {"class": "lamp", "score": 0.31, "box": [5, 5, 9, 9], "distance_m": None, "xyz_m": None},
        ],
    }  # fmt: skip
    assert len(TASK.with_thresholds(0.1, None).arrays(prediction)[0]) == 3
    assert TASK.with_thresholds(None, 0.5).most_overlap == 0.5


def test_objects_stand_in_space():
    found = TASK.arrays(torch.tensor([[[20.0, 20, 41, 61, 0.9, 1, 2.0], [0, 0, 9, 9, 0.8, 0, NAN]]]))[0]
    placed = TASK.in_space(TASK.for_camera(found, 1.5), {"fx": 100, "fy": 50, "cx": 40, "cy": 30})
    assert placed["xyz_m"][0].tolist() == pytest.approx([(30 - 40) / 100 * 3, (40 - 30) / 50 * 3, 3])
    assert np.isnan(placed["xyz_m"][1]).all() and found["distance_m"][0] == 2


def test_objects_are_drawn_over_the_picture_at_its_size():
    objects = TASK.arrays(torch.tensor([[[20.0, 20, 60, 80, 0.9, 1, 2.0]]]))[0]
    picture = TASK.draw_over(np.zeros((50, 100, 3), np.uint8), objects, (100, 200))
    green = (picture == (0, 255, 0)).all(2)
    ys, xs = np.nonzero(green[10:])
    assert (xs.min(), ys.max() + 10) == (10, 39) and green[25, 29] and not green[25, 45]
    label = label_of((20, 20, 60, 80, 1, 1)).numpy()
    assert TASK.draw(label, (100, 200), (50, 100)).shape == (50, 100, 3)
    assert TASK.legend(objects) == [("table 1", (0, 255, 0))] == TASK.legend(label)


def test_how_two_predictions_differ():
    wanted = torch.tensor([[[0.0, 0, 50, 50, 0.9, 0, NAN], [50, 0, 90, 50, 0.4, 1, NAN], [0, 0, 9, 9, 0.01, 1, NAN]]])
    same = wanted.clone()
    same[0, 0, 2] = 50.5
    assert TASK.difference(same, wanted, 0.01) == (0.5, 0, 4)
    other = wanted.clone()
    other[0, 1, 5] = 2
    assert TASK.difference(other, wanted, 0.01)[1:] == (2, 4), "one is missing and one too many"
    other[0, 0, 0] = NAN
    assert TASK.difference(other, wanted, 0.01)[0] == math.inf


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 9, 10), None), ((2, 100, 6), (8, 8)), ((1, 9, 11), None), ((2, 0, 11), None)]
)
def test_outputs_of_files_are_checked(shape, size):
    assert "expected numbers (2, boxes, " in TASK.output_fault(torch.zeros(shape), 2, size)
    assert not TASK.output_fault(torch.zeros(2, 9, 11), 2, None) and not TASK.output_fault(
        torch.zeros(2, 5, 7), 2, (8, 8)
    )
