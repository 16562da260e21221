"""How far away the thing in a box is, from the depth and the classes of the same frame."""

from __future__ import annotations

import torch
from torch import Tensor

POINTS = 16  # of each axis, in the middle half of a box
LEAST_SHARE = 0.1  # of these points that show the box's class
LOWER_QUARTILE = 0.25


def distances(boxes: Tensor, depth: Tensor, classes: Tensor | None, own: Tensor | None) -> Tensor:
    """Metres along the optical axis (B, K) of what is in the boxes; NaN where no depth is known.

    boxes (B, K, 4) pixels of the frame; depth (B, H, W) metres, 0 = none; classes (B, H, W) ids, and own (B, K) the id
    of the thing in each box, -1 = none of them; or None for both.
    The median depth of the points in the middle half of the box that show its class. Where few do, the lower quartile
    of all: things stand before what is behind them.
    """
    frame = torch.arange(len(depth), device=depth.device)[:, None, None]
    rows, columns = middle_points(boxes, tuple(depth.shape[-2:]))
    metres = depth[frame, rows, columns].float()  # (B, K, 256)
    known = metres > 0
    near = quantile(metres, known, LOWER_QUARTILE)
    if classes is None or own is None:
        return near
    same = known & (classes[frame, rows, columns].long() == own[..., None])
    enough = same.sum(2) >= LEAST_SHARE * known.sum(2).clamp(min=1)
    return torch.where(enough, quantile(metres, same, 0.5), near)


def middle_points(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """boxes (B, K, 4) -> rows and columns (B, K, 256) of pixels in their middle half, inside a frame of this size."""
    shares = 0.25 + 0.5 * (torch.arange(POINTS, device=boxes.device) + 0.5) / POINTS
    points = boxes[..., :2, None] + (boxes[..., 2:] - boxes[..., :2])[..., None] * shares  # (B, K, 2, 16)
    columns, rows = points.nan_to_num().floor().long().unbind(2)
    rows, columns = rows.clamp(0, size[0] - 1), columns.clamp(0, size[1] - 1)
    grid = (*rows.shape, POINTS)
    return rows[..., :, None].expand(grid).flatten(2), columns[..., None, :].expand(grid).flatten(2)


def quantile(values: Tensor, chosen: Tensor, share: float) -> Tensor:
    """The value at this share of the `chosen` ones among (B, K, n), the lower of two -> (B, K); NaN without any."""
    ordered = torch.where(chosen, values, torch.inf).sort(2).values
    count = chosen.sum(2, keepdim=True)
    found = ordered.gather(2, ((count - 1) * share).long().clamp(min=0))[..., 0]
    return torch.where(count[..., 0] > 0, found, torch.nan)
