"""Darknet's loss of YOLOv3 (Redmon and Farhadi, arXiv 1804.02767, section 2; pjreddie/darknet, src/yolo_layer.c)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import loss
from networks.box_head import FIRST_CLASS
from networks.yolo_head import AFTER_CLASSES
from tasks.box_loss import inside, unknown, weight_of
from tasks.box_selection import overlaps

CHUNK = 2**24  # overlaps that are computed at one time


def yolo_loss(raw: Tensor, target: Tensor) -> loss.Loss:
    """raw (B, N, 8 + C + 4), rows of `yolo_head.training_row`; target (B, M, 7) as tasks/boxes.py has it, corners in
    shares -> (sum, weight), with the weight of `box_loss`.

    A box is learned by one row: of the anchor with its shape, in the cell of its centre. Squared errors of the centre
    in its cell and of the sides' logarithms count 2 - width x height; "there is a thing" and the classes are binary.
    Other rows learn that nothing is there, unless their box overlaps any by more than the layer's ignore_thresh, or
    their cell lies in a box that is to be ignored.
    """
    weight, said = weight_of(target), ~unknown(target)
    raw, target = raw.float(), target.nan_to_num()
    where, size, classes = raw[..., :2], raw[..., 2:4], raw.shape[2] - FIRST_CLASS - AFTER_CLASSES
    place, logarithms = raw[..., 4:6], raw[..., 6:FIRST_CLASS]
    thing, anchors = raw[..., FIRST_CLASS + classes], raw[..., -2:]
    boxes, kinds = target[..., :4], target[..., 4].long()
    present, ignored = kinds >= 0, target[..., 5] > 0
    frame, box, chosen = learned(where, size, anchors, boxes, present & ~ignored & said[:, None])

    covered = (inside((where + 0.5) / size, boxes) & (present & ignored)[..., None]).any(1)
    nothing = ~covered & (best_overlaps(raw, boxes, present) <= raw[..., -3]) & said[:, None]
    nothing[frame, chosen] = False
    total = (F.binary_cross_entropy_with_logits(thing, torch.zeros_like(thing), reduction="none") * nothing).sum()
    if len(frame):
        own, cells = boxes[frame, box], size[frame, chosen]
        middle, sides = (own[:, :2] + own[:, 2:]) / 2 * cells, (own[:, 2:] - own[:, :2]) * cells
        scale = 2 - (sides / cells).prod(1, keepdim=True)
        wanted = (sides.clamp(min=1e-6) / anchors[frame, chosen]).log()
        off = (place[frame, chosen] - (middle - where[frame, chosen])).square()
        off = off + (logarithms[frame, chosen] - wanted).square()
        logits = raw[frame, chosen, FIRST_CLASS : FIRST_CLASS + classes]
        one_hot = F.one_hot(kinds[frame, box], classes).to(logits)
        total = total + (scale * off).sum() / 2
        total = total + F.softplus(-thing[frame, chosen]).sum()
        total = total + F.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum")
    return total, weight


@torch.no_grad()
def learned(where: Tensor, size: Tensor, anchors: Tensor, boxes: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells (B, N, 2) of rows, their maps' sizes and their anchors in cells, boxes (B, M, 4) in shares -> (frame, box,
    row) of each box of `real` (B, M) whose centre is in the frame."""
    sides = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    frames, numbers = (real & (middle >= 0).all(2) & (middle < 1).all(2)).nonzero(as_tuple=True)
    rows = []
    for frame, number in zip(frames.tolist(), numbers.tolist(), strict=True):
        in_cell = ((middle[frame, number] * size[frame]).floor() == where[frame]).all(1)
        shape, anchor = sides[frame, number], anchors[frame] / size[frame]  # both in shares of the frame
        shared = torch.minimum(shape, anchor).prod(1)
        rows.append((shared / (shape.prod() + anchor.prod(1) - shared) * in_cell).argmax())
    return frames, numbers, torch.stack(rows) if rows else frames


@torch.no_grad()
def best_overlaps(raw: Tensor, boxes: Tensor, present: Tensor) -> Tensor:
    """(B, N) the IoU of each row's box with the box of its frame that it overlaps most."""
    half = raw[..., 6:FIRST_CLASS].exp() * raw[..., -2:] / 2
    middle = raw[..., :2] + raw[..., 4:6]
    size = torch.cat([raw[..., 2:4]] * 2, dim=2)
    found = torch.cat([middle - half, middle + half], dim=2) / size
    part = max(1, CHUNK // max(1, found.shape[0] * boxes.shape[1]))
    best = [(overlaps(boxes, some) * present[..., None]).amax(1) for some in found.split(part, dim=1)]
    return torch.cat(best, dim=1)
