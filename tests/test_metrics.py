from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metrics import DepthMetrics, NormalMetrics, Protocol, SegmentationMetrics

CLASSES = ("a", "b", "c", "d")


def test_segmentation_by_hand():
    metrics = SegmentationMetrics(CLASSES)
    # truth a a b b -, predicted a b b c a. d does not occur, c is only predicted.
    metrics.update(
        torch.tensor([[[0, 1, 1, 2, 0]]], dtype=torch.uint8), torch.tensor([[[0, 0, 1, 1, 255]]], dtype=torch.uint8)
    )
    values = metrics.compute()
    assert values == pytest.approx({
        "miou": (1 / 2 + 1 / 3) / 2, "pixel_accuracy": 0.5, "class_accuracy": 0.5,
        "dice": (2 / 3 + 2 / 4) / 2, "iou/a": 1 / 2, "iou/b": 1 / 3,
    })  # fmt: skip


def test_segmentation_equals_torchmetrics():
    import torchmetrics  # its import takes 3 s, in each process that collects this file

    random = torch.Generator().manual_seed(1)
    ours = SegmentationMetrics(CLASSES)
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=4, ignore_index=255, average="none")
    accuracy = torchmetrics.Accuracy("multiclass", num_classes=4, ignore_index=255, average="micro")
    dice = torchmetrics.F1Score("multiclass", num_classes=4, ignore_index=255, average="macro")
    for height in (5, 8, 13):
        target = torch.randint(0, 4, (2, height, 11), generator=random)
        prediction = torch.where(torch.rand(target.shape, generator=random) < 0.6, target, (target + 1) % 4)
        target[torch.rand(target.shape, generator=random) < 0.2] = 255
        ours.update(prediction.to(torch.uint8), target.to(torch.uint8))
        theirs.update(prediction, target)
        accuracy.update(prediction, target)
        dice.update(prediction, target)
    values = ours.compute()
    assert [values[f"iou/{name}"] for name in CLASSES] == pytest.approx(theirs.compute().tolist())
    assert values["pixel_accuracy"] == pytest.approx(accuracy.compute().item())
    assert values["dice"] == pytest.approx(dice.compute().item())
    of_iou = [2 * values[f"iou/{name}"] / (1 + values[f"iou/{name}"]) for name in CLASSES]
    assert values["dice"] == pytest.approx(sum(of_iou) / 4)


def test_depth_by_hand():
    metrics = DepthMetrics(Protocol())
    # Two valid pixels: 2 m seen as 1 m, and 4 m seen as 4 m.
    metrics.update(torch.tensor([[[1.0, 4.0, 7.0]]]), torch.tensor([[[2.0, 4.0, 0.0]]]))
    log2 = math.log(2)
    assert metrics.compute() == pytest.approx({
        "rmse": math.sqrt(1 / 2), "rmse_log": math.sqrt(log2**2 / 2), "abs_rel": 0.25, "sq_rel": 0.25,
        "log10": math.log10(2) / 2, "silog": 100 * math.sqrt(log2**2 / 2 - (log2 / 2) ** 2),
        "delta1": 0.5, "delta2": 0.5, "delta3": 0.5,
    })  # fmt: skip


def test_depth_pooled_and_per_image_differ_as_they_should():
    near = (torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[2.0, 3.0]]]))  # both off by 1 m
    far = (torch.tensor([[[5.0, 5.0]]]), torch.tensor([[[8.0, 0.0]]]))  # one off by 3 m
    for per_image, expected in ((False, math.sqrt((1 + 1 + 9) / 3)), (True, (1 + 3) / 2)):
        metrics = DepthMetrics(Protocol(per_image=per_image))
        for prediction, target in (near, far):
            metrics.update(prediction, target)
        assert metrics.compute()["rmse"] == pytest.approx(expected)


def test_depth_equals_torchmetrics_whatever_the_batches():
    import torchmetrics

    random = torch.Generator().manual_seed(2)
    target = torch.rand(6, 9, 7, generator=random) * 9 + 0.5
    prediction = target * (0.7 + 0.6 * torch.rand(target.shape, generator=random))
    rmse = torchmetrics.MeanSquaredError(squared=False)(prediction, target).item()
    log_rmse = torchmetrics.MeanSquaredError(squared=False)(prediction.log(), target.log()).item()
    abs_rel = torchmetrics.MeanAbsolutePercentageError()(prediction, target).item()
    for size in (1, 4, 6):
        metrics = DepthMetrics(Protocol())
        for first in range(0, 6, size):
            metrics.update(prediction[first : first + size], target[first : first + size])
        values = metrics.compute()
        assert [values["rmse"], values["rmse_log"], values["abs_rel"]] == pytest.approx(
            [rmse, log_rmse, abs_rel], rel=1e-5
        )


def test_depth_cap_leaves_out_and_clamps():
    metrics = DepthMetrics(Protocol(cap_m=10))
    metrics.update(torch.tensor([[[12.0, 3.0]]]), torch.tensor([[[9.0, 11.0]]]))
    assert metrics.compute()["rmse"] == pytest.approx(1.0)


def test_eigen_crop():
    target = torch.zeros(1, 480, 640)
    target[0, 44, 100] = target[0, 471, 100] = target[0, 100, 40] = target[0, 100, 601] = 5.0  # just outside
    target[0, 45, 41] = target[0, 470, 600] = 2.0  # just inside
    metrics = DepthMetrics(Protocol(crop="eigen"))
    metrics.update(torch.ones(1, 480, 640), target)
    assert metrics.compute()["rmse"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="640x480"):
        metrics.update(torch.ones(1, 48, 64), torch.ones(1, 48, 64))


def test_the_crop_of_garg():
    """Rows 153 to 370 and columns 44 to 1196 of a KITTI frame of 375x1242, as in the usual evaluation scripts."""
    target = torch.zeros(1, 375, 1242)
    target[0, 152, 600] = target[0, 371, 600] = target[0, 200, 43] = target[0, 200, 1197] = 5.0  # just outside
    target[0, 153, 44] = target[0, 370, 1196] = 2.0  # just inside
    metrics = DepthMetrics(Protocol(crop="garg", cap_m=80))
    metrics.update(torch.ones(1, 375, 1242), target)
    assert metrics.compute()["rmse"] == pytest.approx(1.0)
    metrics.update(torch.ones(1, 8, 9), torch.ones(1, 8, 9))  # of any size
    assert len(torch.cat(metrics.rows)) == 2


def test_normals_by_hand():
    angles = np.deg2rad([0, 10, 20, 25, 90])
    prediction = torch.tensor(np.stack([np.sin(angles), 0 * angles, -np.cos(angles)])).reshape(1, 3, 1, 5).float()
    target = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand_as(prediction).clone()
    metrics = NormalMetrics()
    metrics.update(prediction, target)
    target[..., 4] = 0  # no label
    metrics.update(prediction, target)
    values = metrics.compute()
    assert values["mean"] == pytest.approx((2 * (0 + 10 + 20 + 25) + 90) / 9, abs=1e-3)
    assert values["median"] == pytest.approx(20, abs=0.01)
    assert [values["within_11.25"], values["within_22.5"], values["within_30"]] == pytest.approx([4 / 9, 6 / 9, 8 / 9])


@pytest.mark.parametrize("metrics", [SegmentationMetrics(CLASSES), DepthMetrics(Protocol()), NormalMetrics()])
def test_nothing_labeled_gives_no_numbers(metrics):
    assert metrics.compute() == {}
    if isinstance(metrics, SegmentationMetrics):
        metrics.update(torch.zeros(1, 3, 3, dtype=torch.uint8), torch.full((1, 3, 3), 255, dtype=torch.uint8))
    elif isinstance(metrics, DepthMetrics):
        metrics.update(torch.ones(1, 3, 3), torch.zeros(1, 3, 3))
    else:
        metrics.update(torch.ones(1, 3, 3, 3), torch.zeros(1, 3, 3, 3))
    assert metrics.compute() == {}
