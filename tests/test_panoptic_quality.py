"""Panoptic quality against torchmetrics and by hand, and masks as COCO's run lengths against pycocotools."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tasks.instance_files import PART, VOID
from tasks.instance_grouping import label_things
from tasks.panoptic_quality import PanopticMetrics
from tasks.rle import encode_mask

THINGS, STUFF = ("chair", "lamp"), ("wall", "floor")
WALL = 2


def prediction_of(kinds: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """(B, H, W) classes and numbers -> (B, 4, H, W)."""
    nothing = torch.zeros(kinds.shape)
    return torch.stack([numbers.float(), kinds.float(), nothing, nothing], dim=1)


def codes_of(kinds: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return torch.where(kinds < 0, VOID, (kinds + 1) * PART + numbers)


def values(found: tuple[list, list], wanted: tuple[list, list]) -> dict[str, float]:
    """Of one frame: (classes, numbers), lists of rows, -1 = none."""
    metrics = PanopticMetrics(THINGS, STUFF)
    metrics.update(prediction_of(*(torch.tensor([item]) for item in found)), codes_of(*map(torch.tensor, wanted))[None])
    return metrics.compute()


def random_map(generator: torch.Generator, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes from `least` on and numbers (2, 30, 40), in blocks, so that segments overlap by any share."""

    def blocks(low: int, high: int) -> torch.Tensor:
        small = torch.randint(low, high, (2, 6, 8), generator=generator)
        return small.repeat_interleave(5, 1).repeat_interleave(5, 2)

    kinds = blocks(least, 4)
    return kinds, torch.where((kinds >= 0) & (kinds < len(THINGS)), blocks(1, 4), 0)


@pytest.mark.parametrize("seed", range(8))
def test_torchmetrics_counts_the_same(seed):
    """Without pixels of no class in predictions, which torchmetrics takes for nobody's, and panopticapi for wrong."""
    from torchmetrics.detection import PanopticQuality

    generator = torch.Generator().manual_seed(seed)
    oracle = PanopticQuality(things={0, 1}, stuffs={2, 3}, return_sq_and_rq=True, return_per_class=True)
    metrics = PanopticMetrics(THINGS, STUFF)
    for _ in range(3):
        (kinds, numbers), (other_kinds, other_numbers) = random_map(generator, -1), random_map(generator, 0)
        copied = (torch.rand(kinds.shape, generator=generator) < 0.8) & (kinds >= 0)
        found = torch.where(copied, kinds, other_kinds)
        found_numbers = torch.where(copied, numbers, other_numbers)
        metrics.update(prediction_of(found, found_numbers), codes_of(kinds, numbers))
        target = torch.stack([torch.where(kinds < 0, 99, kinds), numbers], dim=-1)
        oracle.update(torch.stack([found, found_numbers], dim=-1), target)
    result, expected = metrics.compute(), oracle.compute()  # (C, 3)
    for part, rows in (("", slice(None)), ("_things", slice(2)), ("_stuff", slice(2, None))):
        for column, name in enumerate(("pq", "sq", "rq")):
            assert result[f"{name}{part}"] == pytest.approx(float(expected[rows, column].mean()), abs=1e-6)
    assert [result[f"pq/{name}"] for name in THINGS + STUFF] == pytest.approx(expected[:, 0].tolist(), abs=1e-6)
    assert 0.05 < result["pq"] < 0.99


def test_matches_misses_and_false_segments_by_hand():
    """Two chairs, of which one is found with an IoU of 2/3; a lamp that is not there; a wall without a fault."""
    wanted = ([[0, 0, 0, 0, 2, 2]], [[1, 1, 2, 2, 0, 0]])
    found = ([[0, 0, 0, 1, 2, 2]], [[5, 5, 5, 1, 0, 0]])  # numbers need not agree
    result = values(found, wanted)
    assert result["sq_things"] == pytest.approx((2 / 3 + 0) / 2)
    assert result["pq/chair"] == pytest.approx(2 / 3 / (1 + 1 / 2)) and result["pq/lamp"] == 0
    assert result["pq/wall"] == result["pq_stuff"] == result["rq_stuff"] == 1 and "pq/floor" not in result
    assert result["pq"] == pytest.approx((2 / 3 / 1.5 + 0 + 1) / 3)


def test_half_is_no_match_and_the_class_must_agree():
    assert values(([[0, -1]], [[1, 0]]), ([[0, 0]], [[1, 1]]))["pq/chair"] == 0
    result = values(([[1, 1]], [[1, 1]]), ([[0, 0]], [[1, 1]]))
    assert result["pq/chair"] == result["pq/lamp"] == result["pq"] == 0


def test_where_nobody_says_nothing_counts():
    wanted = ([[0, 0, -1, -1, -1, 2]], [[1, 1, 0, 0, 0, 0]])
    # The chair goes on where nobody says; the lamp stands there with two of its three pixels.
    found = ([[0, 0, 0, 1, 1, 2]], [[1, 1, 1, 1, 1, 0]])
    assert values(found, wanted)["pq"] == 1
    assert "pq/lamp" not in values(([[0, 1, 1, 1]], [[1, 1, 1, 1]]), ([[0, -1, -1, 0]], [[1, 0, 0, 1]]))
    half_in_void = values(([[0, 1, 1, 0]], [[1, 1, 1, 1]]), ([[0, -1, 0, 0]], [[1, 0, 1, 1]]))
    assert half_in_void["pq/lamp"] == 0, "not more than half of it"


def test_a_frame_of_which_nobody_says_anything_is_left_out():
    assert values(([[0, 0]], [[1, 1]]), ([[-1, -1]], [[0, 0]])) == {}


def test_a_thing_is_wrong_where_the_label_says_that_there_is_none():
    """Code 0: a mask says that no thing is there, and no label says which stuff is."""
    metrics = PanopticMetrics(THINGS, STUFF)
    chair = PART + 1
    found = (torch.tensor([[[0, 0, 0, 0, 2, 2]]]), torch.tensor([[[1, 1, 2, 2, 0, 0]]]))
    metrics.update(prediction_of(*found), torch.tensor([[[chair, chair, 0, 0, 0, 0]]]))
    result = metrics.compute()
    assert result["pq/chair"] == pytest.approx(1 / 1.5) and "pq/wall" not in result
    assert result["ap50"] < 1, "with a score as high as the right one's"
    metrics.update(prediction_of(*found), torch.full((1, 1, 6), VOID))
    assert metrics.compute() == result, "a frame of which nobody says anything"
    wide = (torch.tensor([[[0, 0, 0, 0, 0, 2]]]), torch.tensor([[[1, 1, 1, 1, 1, 0]]]))
    metrics = PanopticMetrics(THINGS, STUFF)
    metrics.update(prediction_of(*wide), torch.tensor([[[chair, chair, chair, 0, VOID, VOID]]]))
    assert metrics.compute()["sq_things"] == pytest.approx(3 / 4), "pixels without a thing are a part of the union"


def test_false_things_count_in_frames_without_a_thing():
    metrics = PanopticMetrics(THINGS, STUFF)
    metrics.update(prediction_of(torch.tensor([[[0, 2]]]), torch.tensor([[[1, 0]]])), torch.zeros(1, 1, 2).int())
    assert metrics.compute()["pq/chair"] == 0 and "pq/wall" not in metrics.compute()


def test_processes_add_up_whatever_their_frames():
    generator = torch.Generator().manual_seed(3)
    frames = [(random_map(generator, 0), random_map(generator, -1)) for _ in range(5)]
    frames[0] = (frames[0][1], frames[0][1])  # one that is right
    whole, parts = PanopticMetrics(THINGS, STUFF), [PanopticMetrics(THINGS, STUFF) for _ in range(3)]
    for number, (found, wanted) in enumerate(frames):
        for metrics in (whole, parts[number % 3]):
            metrics.update(prediction_of(*found), codes_of(*wanted))
    first = copy.deepcopy(parts[2])
    for other in parts[:2]:
        first.merge(other)
    assert first.compute() == whole.compute() and whole.compute()["pq"] > 0


def test_a_prediction_is_its_own_truth():
    kinds, numbers = random_map(torch.Generator().manual_seed(1), 0)
    grouped = prediction_of(torch.zeros_like(kinds), numbers)
    found = label_things(grouped, kinds, len(THINGS))
    target = codes_of(found[:, 1].long(), found[:, 0].long())
    metrics = PanopticMetrics(THINGS, STUFF)
    metrics.update(found, target)
    assert metrics.compute()["pq"] == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (40, 50), (7, 900)])
@pytest.mark.parametrize("share", [0, 0.03, 0.5, 0.97, 1])
def test_masks_are_what_pycocotools_writes(shape, share):
    from pycocotools import mask as coco

    mask = np.random.default_rng(0).random(shape) < share
    written = encode_mask(mask)
    assert written["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(coco.decode(written), mask)


def test_long_runs_are_written_as_pycocotools_does():
    from pycocotools import mask as coco

    mask = np.zeros((500, 700), bool)
    mask[100:300, 50:600], mask[400:] = True, True
    assert encode_mask(mask)["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
