"""Which cell shall find which box, and the loss of the boxes.

Task-aligned assignment (TOOD, arXiv 2108.07755, section 3.2) for the whole batch at once, on padded boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import loss
from networks.box_head import FIRST_CLASS
from tasks.box_selection import boxes_in_cells, overlaps

CELLS_OF_A_BOX = 13  # that learn it
SHARPNESS = 6  # power of the overlap in the alignment of a cell with a box; that of the score is 1
BOX_WEIGHT = 2.5  # of the boxes' loss beside the classes' (PicoDet, arXiv 2111.00902)
UNIT = 1000.0  # generalized_box_iou_loss adds 1e-7 to areas: those of small boxes in shares are not far from it
# The classes' loss is usually divided by the summed quality of the assigned cells, which depends on the prediction.
# Losses here are (sum, weight) with a weight known before: about that sum, and more than 0 for a frame without boxes.
WEIGHT_OF_A_BOX = 4.0


class Assignment(NamedTuple):
    """For each cell (B, N): the box that it learns, an index of the target's, and how well it does, 0..1; 0 = none."""

    box: Tensor
    quality: Tensor


def inside(cells: Tensor, boxes: Tensor) -> Tensor:
    """Centres of cells (B, N, 2), boxes (B, M, 4), in shares -> (B, M, N) whether the centre lies in the box."""
    x, y = cells[:, None, :, 0], cells[:, None, :, 1]
    left, top, right, bottom = (side[..., None] for side in boxes.unbind(2))
    return (x > left) & (x < right) & (y > top) & (y < bottom)


@torch.no_grad()
def assign(cells: Tensor, found: Tensor, scores: Tensor, boxes: Tensor, real: Tensor) -> Assignment:
    """Which cells learn which boxes, in shares of the frame.

    cells (B, N, 2): centres; found (B, N, 4): predicted boxes; scores (B, M, N) of each box's class in each cell;
    boxes (B, M, 4); real (B, M): neither padding nor ignored.

    A box gets the cells inside it with the best alignment, score x overlap^6. A cell that several boxes get learns the
    one that it overlaps most. A box with no cell inside gets the nearest one, before all others.
    """
    overlap = overlaps(boxes, found)  # (B, M, N)
    alignment = scores * overlap.pow(SHARPNESS)
    within = inside(cells, boxes)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    nearest = torch.cdist(middle, cells).argmin(2, keepdim=True)  # (B, M, 1)
    alone = torch.zeros_like(within).scatter_(2, nearest, True)
    small = ~within.any(2, keepdim=True)
    within = torch.where(small, alone, within) & real[..., None]
    # Alignment is not below 0: outside, -1 comes after all cells within.
    order = torch.where(within, alignment, -1.0).topk(min(CELLS_OF_A_BOX, cells.shape[1]), dim=2).indices
    chosen = torch.zeros_like(within).scatter_(2, order, True) & within
    box = torch.where(chosen, overlap + small, -1.0).argmax(1)  # (B, N)
    chosen = chosen & (torch.arange(boxes.shape[1], device=box.device)[None, :, None] == box[:, None])
    # The best cell of a box has the quality of its best overlap, the others less.
    alignment, overlap = alignment * chosen, overlap * chosen
    most = alignment.amax(2, keepdim=True).clamp(min=1e-35)
    quality = (alignment / most * overlap.amax(2, keepdim=True)).amax(1)
    return Assignment(box, quality)


def box_loss(raw: Tensor, target: Tensor) -> loss.Loss:
    """raw (B, N, 8 + C); target (B, M, 7) as tasks/boxes.py has it, corners in shares -> (sum, weight).

    Quality focal loss of the classes (Li et al., arXiv 2006.04388, equation 5: targets are qualities, power 2) and
    generalized IoU of the assigned boxes. Cells in an ignored box are no negatives for its class.
    """
    from torchvision.ops import generalized_box_iou_loss  # not for predictions: torchvision takes a second to load

    raw, weight = raw.float(), weight_of(target)
    logits, (found, _) = raw[..., FIRST_CLASS:], boxes_in_cells(raw)
    said = ~unknown(target)
    target = target.nan_to_num()
    boxes, classes = target[..., :4], target[..., 4].long()
    present, ignored = classes >= 0, target[..., 5] > 0
    classes = classes.clamp(min=0)
    cells = (raw[..., :2] + 0.5) / raw[..., 2:4]
    scores = logits.detach().sigmoid().transpose(1, 2)  # (B, C, N)
    scores = scores.gather(1, classes[..., None].expand(-1, -1, scores.shape[2]))
    chosen = assign(cells, found.detach(), scores, boxes, present & ~ignored)

    quality = torch.zeros_like(logits)
    own = classes.gather(1, chosen.box)[..., None]
    quality = quality.scatter(2, own, chosen.quality[..., None])
    one_hot = F.one_hot(classes, logits.shape[2]).float() * (present & ignored)[..., None]  # (B, M, C)
    covered = inside(cells, boxes).float().transpose(1, 2) @ one_hot  # (B, N, C)
    counts = (covered == 0) | (quality > 0)
    terms = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    total = (terms * (quality - logits.sigmoid()).square() * counts).sum((1, 2))

    wanted = boxes.gather(1, chosen.box[..., None].expand(-1, -1, 4))
    off = generalized_box_iou_loss(UNIT * found, UNIT * wanted)
    total = total + BOX_WEIGHT * (off * chosen.quality).sum(1)
    return (total * said).sum(), weight


def unknown(target: Tensor) -> Tensor:
    """(B, M, 7) -> (B,) whether nobody says what is in the frame."""
    return target[..., 0].isnan().any(1)


def weight_of(target: Tensor) -> Tensor:
    """The weight () of a target (B, M, 7), known before there is an output. On its device: a loss must not wait."""
    real = (target[..., 4] >= 0) & (target[..., 5] == 0)
    return ((~unknown(target)).sum() + WEIGHT_OF_A_BOX * real.sum()).float()
