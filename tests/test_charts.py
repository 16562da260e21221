from __future__ import annotations

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drawing import BAR, BLUE, bars, confusion, letterbox, palette_of
from metrics import Protocol
from tasks import Segmentation


def blue(picture: np.ndarray) -> np.ndarray:
    return (picture == BLUE).all(2)


def test_bars_are_as_long_as_the_values():
    picture = bars(["a", "long name", "none"], [1.0, 0.25, float("nan")])
    lengths = [int(blue(row[None]).sum()) for row in picture[[12, 30, 48]]]
    assert lengths == [BAR + 1, BAR // 4 + 1, 0]


def test_the_diagonal_of_a_perfect_matrix_is_dark():
    picture = confusion(["a", "b", "c"], np.diag([5, 0, 7]))
    assert (blue(picture).sum(0) > 0).any() and picture.dtype == np.uint8
    dark = blue(picture)
    thirds = np.array_split(dark[18 : 18 + 3 * 26], 3)
    assert thirds[0].sum() > 200 and thirds[2].sum() > 200 and thirds[1].sum() == 0, "class b does not occur"
    first, last = (np.flatnonzero(part.any(0)) for part in (thirds[0], thirds[2]))
    assert last.min() > first.max()


def test_a_letterboxed_picture_is_whole():
    page = letterbox(np.zeros((30, 90, 3), np.uint8), 60, 60)
    assert page.shape == (60, 60, 3) and (page == 0).all(2).sum() == 60 * 20
    assert (page[:20] == 255).all() and (page[40:] == 255).all(), "in the middle"
    assert letterbox(np.zeros((1, 5000, 3), np.uint8), 40, 50, fill=235).shape == (40, 50, 3)


def test_a_palette_has_a_color_for_each_id():
    palette = palette_of(((1, 2, 3), (4, 5, 6)), other=160)
    assert palette[:3].tolist() == [[1, 2, 3], [4, 5, 6], [160, 160, 160]] and palette.shape == (256, 3)
    assert (palette_of(()) == 0).all()


def test_a_task_without_labels_has_none():
    task = Segmentation("bilinear", ("a", "b"), ((1, 2, 3), (4, 5, 6)))
    metrics = task.metrics(Protocol())
    assert task.charts(metrics) == {}
    metrics.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert set(task.charts(metrics)) == {"iou", "confusion"}


def test_a_training_shows_them(trained):
    board = EventAccumulator(str(trained))
    board.Reload()
    images, scalars = board.Tags()["images"], board.Tags()["scalars"]
    assert {"val/segmentation/iou", "val/segmentation/confusion", "val/rooms/0"} <= set(images)
    wanted = {"train/depth", "train/lr_encoder", "train/lr_decoder", "train/images_per_s", "val/depth/rmse"}
    assert wanted <= set(scalars)
