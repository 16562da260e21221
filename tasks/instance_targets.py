"""What the head for instances learns: a heat map of centers, and from each pixel of a thing the way to its center.

Panoptic-DeepLab, Cheng et al., arXiv 1911.10194, section 3.1; bottom-up: nothing here depends on boxes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry import Pixels, resize_raw, sample_raw
from loss import Loss, sum_over
from tasks.instance_files import PART

SIGMA_PX = 6.0  # of the Gaussian around a center: 1.5 cells at stride 4
# Of the heat's loss, for Gaussians that fill a fiftieth of a picture, and of an offset's error in pixels. The paper's
# 0.01 is for pictures of 2049x1025, with offsets five times as long as in those of 320 to 640 pixels.
HEAT_WEIGHT, OFFSET_WEIGHT = 50.0, 0.02
HEAT, DOWN, RIGHT = range(3)  # channels of raw output (its heat is a logit) and of targets


def encode(codes: Tensor, pixels: Pixels) -> Tensor:
    """codes (B, H, W) of whole views -> targets (B, 3, rows, columns) float32 at `pixels`: heat in 0..1 (-1: nobody
    says), and the way to the center of mass of the thing's visible part, down and right in pixels (NaN: no thing)."""
    centers, which = centers_of(codes)  # (B, n, 2), (B, H, W)
    device = codes.device
    rows = torch.arange(codes.shape[1], device=device)[pixels.rows].float()
    columns = torch.arange(codes.shape[2], device=device)[pixels.columns].float()
    some, some_which = codes[:, pixels.rows, pixels.columns], which[:, pixels.rows, pixels.columns]
    target = torch.empty(len(codes), 3, len(rows), len(columns), device=device)
    for frame, (center, own) in enumerate(zip(centers, some_which, strict=True)):  # a frame at a time: (n, rows, cols)
        down, right = (
            torch.exp((line - at[:, None]).square() / (-2 * SIGMA_PX**2))
            for line, at in zip((rows, columns), center.unbind(1), strict=True)
        )
        heat = (down[:, :, None] * right[:, None, :]).nan_to_num()
        target[frame, HEAT] = heat.amax(0) if len(heat) else 0.0
        place = F.pad(center, (0, 0, 1, 0), value=torch.nan)[own]  # (rows, columns, 2)
        target[frame, DOWN] = place[..., 0] - rows[:, None]
        target[frame, RIGHT] = place[..., 1] - columns
    target[:, HEAT] = torch.where(some < 0, -1.0, target[:, HEAT])
    return target


def centers_of(codes: Tensor) -> tuple[Tensor, Tensor]:
    """codes (B, H, W) -> centers of mass (B, n, 2) row and column, NaN where a frame has fewer than n things; and
    (B, H, W) which of them a pixel belongs to, from 1 on, 0 = none."""
    frames, height, width = codes.shape
    which = torch.where(codes > 0, codes % PART, 0).long()
    most = int(which.max()) if which.numel() else 0
    key = (which + torch.arange(frames, device=codes.device)[:, None, None] * (most + 1)).flatten()
    rows = torch.arange(height, device=codes.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=codes.device).expand(height, width)
    count, *sums = (
        torch.bincount(key, weights, minlength=frames * (most + 1)).view(frames, most + 1)[:, 1:]
        for weights in (None, *(place.expand_as(codes).flatten().double() for place in (rows, columns)))
    )
    return (torch.stack(sums, dim=2) / count[..., None]).float(), which  # 0 / 0 is NaN


def weight_of(target: Tensor) -> float:
    """Labeled pixels of codes (B, H, W) or of `encode`'s targets."""
    return float(((target if target.dim() == 3 else target[:, HEAT]) >= 0).sum())


def at_pixels(raw: Tensor, pixels: Pixels) -> Tensor:
    """raw (B, 3, h, w) -> (B, 3, rows, columns): logits of heat, and offsets in pixels of the view.

    In raw output they are in cells of its map: in units of 32 pixels, steps of Adam were too coarse.
    """
    return _to_view(sample_raw(raw, pixels), raw, pixels.size)


def _to_view(values: Tensor, raw: Tensor, size: tuple[int, int]) -> Tensor:
    down, right = (side / of for side, of in zip(size, raw.shape[-2:], strict=True))  # pixels of the view in a cell
    return torch.stack([values[:, HEAT], values[:, DOWN] * down, values[:, RIGHT] * right], dim=1)


def instance_loss(raw: Tensor, target: Tensor) -> Loss:
    """`at_pixels`' raw output and `encode`'s target, or raw output of any size and codes -> (sum, weight).

    The heat's is the quality focal loss (Li et al., arXiv 2006.04388, equation 3, beta = 2): cross entropy to the
    Gaussian, times the squared error. In docs/INSTANCES.md it is beside the paper's, the squared error alone. Both
    parts are divided by the labeled pixels, also the offsets, which only pixels of things have: so frames and processes
    add up.
    """
    if target.dim() == 3:
        size = tuple(target.shape[-2:])
        raw, target = _to_view(resize_raw(raw, size), raw, size), encode(target, Pixels(size))
    labeled, things = target[:, HEAT] >= 0, ~target[:, DOWN].isnan()
    wanted, logit = target[:, HEAT].clamp(min=0), raw[:, HEAT].float()
    entropy = F.binary_cross_entropy_with_logits(logit, wanted, reduction="none")
    heat, weight = sum_over(entropy * (logit.sigmoid() - wanted).square(), labeled)
    off = (raw[:, DOWN:] - target[:, DOWN:].nan_to_num()).abs().sum(1)
    return HEAT_WEIGHT * heat + OFFSET_WEIGHT * sum_over(off, things)[0], weight
