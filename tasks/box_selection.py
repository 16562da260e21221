"""Raw output of the box head -> boxes: decoding, and non-maximum suppression without an operator of its own.

Only comparisons, sorting and products of fixed shapes: the same code runs in PyTorch, ONNX and OpenVINO.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from networks.box_head import FIRST_CLASS, PLACES

CANDIDATES = 300  # best boxes of a frame that suppress each other
MOST_BOXES = 100  # of a frame, as COCO's metrics take
LEAST_SIDE = 1e-3  # of a box, as a share of the frame's
ROUNDS = 8  # 600 random crowds of 300 boxes were exact after at most 9 rounds, 8 differed in none of them


def boxes_in_cells(raw: Tensor) -> tuple[Tensor, Tensor]:
    """raw (B, N, 8 + C) -> (boxes (B, N, 4) in shares of the frame, inside (B, N): the cell's centre is in the frame).

    Corners x1, y1, x2, y2; they may lie outside of 0..1.
    """
    centers, size = raw[..., :2] + 0.5, raw[..., 2:PLACES]
    sides = raw[..., PLACES:FIRST_CLASS]
    corners = torch.cat([centers - sides[..., :2], centers + sides[..., 2:]], dim=2)
    return corners / torch.cat([size, size], dim=2), (centers < size).all(2)


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)"""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes (..., n, 4) with others (..., m, 4) -> (..., n, m)."""
    first, second = boxes[..., :, None, :].unbind(-1), others[..., None, :, :].unbind(-1)
    # One side after the other: (n, m, 2) numbers at once take twice the time on a CPU.
    width, height = (
        (torch.minimum(first[side + 2], second[side + 2]) - torch.maximum(first[side], second[side])).clamp(0)
        for side in (0, 1)
    )
    shared = width * height
    return shared / (area(boxes)[..., :, None] + area(others)[..., None, :] - shared).clamp(min=1e-9)


def candidates(raw: Tensor) -> Tensor:
    """raw (B, N, 8 + C) -> (B, 300, 6) the boxes with the best scores: corners in shares, score, class.

    A cell gives its best class alone. Where there are fewer cells, the rest has score 0.
    """
    boxes, inside = boxes_in_cells(raw)
    logits, classes = raw[..., FIRST_CLASS:].max(2)
    scores, boxes = logits.sigmoid(), boxes.clamp(0, 1)
    usable = inside & ((boxes[..., 2:] - boxes[..., :2]) > LEAST_SIDE).all(2)
    found = torch.cat([boxes, (scores * usable)[..., None], classes[..., None].to(boxes)], dim=2)
    padding = found.new_zeros((1, CANDIDATES, 6)).expand(found.shape[0], -1, -1)
    return best_of(torch.cat([found, padding], dim=1), CANDIDATES)


def best_of(found: Tensor, count: int) -> Tensor:
    """The `count` rows of (B, K, 6) with the best scores, best first."""
    order = found[..., 4].topk(count, dim=1).indices
    return found.gather(1, order[..., None].expand(-1, -1, found.shape[2]))


def suppress(found: Tensor, most_overlap: float) -> Tensor:
    """(B, K, 6), best first -> the same with score 0 where a better box of the class overlaps by more than this IoU.

    Greedy suppression as a fixed point: a box stays when no staying better box suppresses it (the idea is that of
    Cluster-NMS, arXiv 2005.03572). Each round settles the next ones of a chain of boxes: one that is longer than
    ROUNDS may end in another way than greedy suppression does.
    """
    same = found[:, :, None, 5] == found[:, None, :, 5]
    better = torch.ones(found.shape[1], found.shape[1], device=found.device).triu(1)  # [i, j]: i is before j
    clash = better * (same & (overlaps(found[..., :4], found[..., :4]) > most_overlap)).float()  # (B, K, K)
    stays = torch.ones_like(found[..., 4])
    for _ in range(ROUNDS):
        stays = (torch.bmm(stays[:, None], clash)[:, 0] == 0).float()  # how many staying better boxes suppress each
    return torch.cat([found[..., :4], (found[..., 4] * stays)[..., None], found[..., 5:]], dim=2)


def select_boxes(found: Tensor, most_overlap: float) -> Tensor:
    """Candidates (B, K, 6), best first -> (B, 100, 6) after suppression, best first; score 0 = no box."""
    return best_of(suppress(found, most_overlap), MOST_BOXES)


def clipped(found: Tensor, size: tuple[int, int]) -> Tensor:
    """Predictions (B, K, 7) in pixels -> within a frame of this size, best first; a box of which nothing is left there
    has score 0."""
    height, width = size
    corners = torch.minimum(found[..., :4].clamp(min=0), found.new_tensor([width, height, width, height]))
    seen = ((corners[..., 2:] - corners[..., :2]) > LEAST_SIDE * found.new_tensor([width, height])).all(2)
    rows = torch.cat([corners, (found[..., 4] * seen)[..., None], found[..., 5:]], dim=2)
    return best_of(rows, rows.shape[1])


ROUGH = 0.05  # from this tolerance on, as of int8, boxes are compared as detections are


def counterparts(boxes: Tensor, others: Tensor, tolerance: float) -> Tensor:
    """Boxes (n, 7) and others (m, 7) of one frame -> (n, m): whether the other stands for the same thing.

    It has the class, an IoU above 0.9, and a score that is off by at most `tolerance`. From `ROUGH` on: the class, an
    IoU of at least 0.5, as AP50 asks for, and at least half of the score.
    """
    same, shared = boxes[:, None, 5] == others[None, :, 5], overlaps(boxes[:, :4], others[:, :4])
    scores, theirs = boxes[:, None, 4], others[None, :, 4]
    if tolerance < ROUGH:
        return same & (shared > 0.9) & ((scores - theirs).abs() <= tolerance)
    return same & (shared >= 0.5) & (theirs >= scores / 2)


def differing_boxes(found: Tensor, wanted: Tensor, least_score: float, tolerance: float) -> tuple[float, int, int]:
    """Two predictions (B, K, 7) -> (largest difference of the corners of the same box in pixels, boxes without a
    counterpart in the other prediction, boxes in all), of those with `least_score` in either."""
    off, changed, count = 0.0, 0, 0
    for mine, theirs in zip(found, wanted, strict=True):
        for boxes, others in ((mine, theirs), (theirs, mine)):
            boxes = boxes[boxes[:, 4] >= least_score]
            if not boxes.isfinite()[:, :6].all():
                return math.inf, len(boxes), len(boxes)
            count += len(boxes)
            if not len(boxes):
                continue
            close = counterparts(boxes, others, tolerance)
            changed += int((~close.any(1)).sum())
            gaps = (boxes[:, None, :4] - others[None, :, :4]).abs().amax(2)
            gaps = torch.where(close, gaps, torch.inf).amin(1)
            off = max(off, float(gaps[close.any(1)].max()) if close.any() else 0.0)
    return off, changed, count
