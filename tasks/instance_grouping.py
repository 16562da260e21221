"""From heat map and offsets to things: peaks are centers, and each pixel goes to the center that it points at.

Without a loop over pixels. Panoptic-DeepLab, arXiv 1911.10194, section 3.2; its merging with classes is `label_things`.

A grouped prediction is (B, 4, H, W) float32: NUMBER of the thing (0 = none), CLASS (-1 = none), SCORE, DISTANCE in
metres (0 = not known); all pixels of a thing have the same values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry import argmax_resized, resize_raw
from tasks.instance_targets import DOWN, HEAT, RIGHT

MOST_THINGS = 100  # of a frame
WINDOW = 5  # cells: a center is the largest value within so many, 20 pixels at stride 4
NUMBER, CLASS, SCORE, DISTANCE = range(4)
FAR = -1e9  # of a place without a center: no number is smaller


def group(raw: Tensor, size: tuple[int, int], least: float) -> Tensor:
    """raw (B, 3, h, w) -> grouped prediction for frames of this size, in which every pixel belongs to a thing of class
    0 if there is one. `least` is the heat of a center; raw output has its logit.

    Of the centers c, the nearest to where a pixel points, p, has the largest 2 p.c - c.c. That is linear in p, so the
    bilinear resize of small maps of it, one for each center, gives what resized offsets would.
    """
    raw = raw.float()
    height, width = raw.shape[-2:]
    scores, rows, columns = peaks(raw[:, HEAT].sigmoid(), least)
    down = torch.arange(height, device=raw.device)[:, None] + raw[:, DOWN] - height / 2
    right = torch.arange(width, device=raw.device) + raw[:, RIGHT] - width / 2
    rows, columns = (rows - height / 2)[..., None, None], (columns - width / 2)[..., None, None]  # (B, n, 1, 1)
    near = 2 * (down[:, None] * rows + right[:, None] * columns) - rows.square() - columns.square()
    found = scores > 0
    best = argmax_resized(torch.where(found[..., None, None], near, FAR), size).long()  # (B, *size)
    score = scores.gather(1, best.flatten(1)).view(best.shape)
    number = torch.where(score > 0, best + 1, 0).float()
    nothing = torch.zeros_like(score)
    return torch.stack([number, torch.where(score > 0, nothing, -1.0), score, nothing], dim=1)


def peaks(heat: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """heat (B, h, w) -> of its peaks, best first: scores in 0..1 (0 = none), rows and columns, (B, n) each."""
    width = heat.shape[2]
    highest = F.max_pool2d(heat[:, None], WINDOW, stride=1, padding=WINDOW // 2)[:, 0]
    values = torch.where((heat == highest) & (heat >= least), heat, 0.0).flatten(1).clamp(max=1)
    # Filled up: a small picture has fewer cells than MOST_THINGS.
    scores, places = F.pad(values, (0, MOST_THINGS)).topk(MOST_THINGS)
    fixed = torch.jit.is_tracing() or torch.compiler.is_compiling() or heat.device.type != "cpu"
    if not fixed:  # as many as the fullest frame has; a GPU would have to wait for this number
        count = max(1, int((scores > 0).sum(1).max()))
        scores, places = scores[:, :count], places[:, :count]
    rows = places // width
    return scores, rows.float(), (places - rows * width).float()  # not %: ONNX has none for a width that is open


def averaged(views: list[tuple[Tensor, bool]]) -> Tensor:
    """(raw output, whether it is mirrored) of several views of the same frames -> their mean, of the first's size."""
    size, total = tuple(views[0][0].shape[-2:]), torch.zeros(())
    for raw, mirrored in views:
        down, right = (side / of for side, of in zip(size, raw.shape[-2:], strict=True))
        values = resize_raw(raw, size)
        values = values.flip(-1) if mirrored else values
        total = total.to(raw.device) + torch.stack(
            [values[:, HEAT], values[:, DOWN] * down, values[:, RIGHT] * (-right if mirrored else right)], dim=1
        )
    return total / len(views)


def label_things(grouped: Tensor, classes: Tensor, things: int) -> Tensor:
    """Panoptic prediction: a grouped one, and classes (B, H, W) of each pixel -> what is left of its things.

    Classes below `things` are those of things, others are stuff, -1 is none. A thing has the pixels with a class of
    things, and the class that most of them have; where there is no thing for such a pixel, it has no class.
    """
    number = grouped[:, NUMBER].long()
    of_thing = (classes >= 0) & (classes < things) & (number > 0)
    number = torch.where(of_thing, number, 0)
    key = _keys(number)
    votes = torch.bincount((key * things + classes.clamp(min=0))[of_thing], minlength=len(number) * STEP * things)
    chosen = votes.view(-1, things).argmax(1)[key]
    kind = torch.where(of_thing, chosen, torch.where(classes >= things, classes, -1))
    score = torch.where(of_thing, grouped[:, SCORE], 0.0)
    return torch.stack([number.float(), kind.float(), score, torch.zeros_like(score)], dim=1)


STEP = MOST_THINGS + 1  # keys of a frame


def _keys(number: Tensor) -> Tensor:
    """number (B, H, W) -> different keys for the things of different frames."""
    return number + torch.arange(len(number), device=number.device)[:, None, None] * STEP


def with_distances(grouped: Tensor, depth: Tensor) -> Tensor:
    """A panoptic prediction with the median depth of each thing's pixels; depth (B, H, W) metres, 0 = none."""
    number = grouped[:, NUMBER].long()
    known = (number > 0) & (depth > 0)
    key, metres = _keys(number)[known], depth[known].float()
    order = metres.argsort()
    order = order[key[order].argsort(stable=True)]  # by thing, and in each by depth
    count = torch.bincount(key, minlength=len(number) * STEP)
    middle = count.cumsum(0) - count + (count - 1).clamp(min=0) // 2
    median = torch.where(count > 0, F.pad(metres[order], (0, 1))[middle.clamp(max=len(metres))], 0.0)
    far = torch.where(number > 0, median[_keys(number)], 0.0)
    return torch.cat([grouped[:, :DISTANCE], far[:, None]], dim=1)
