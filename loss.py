"""Losses: pure functions (prediction, target, valid) -> scalar.

Each is computed in fp32 over the valid pixels of the batch, all but `dice` as their mean. Without a valid pixel it
is 0, with a gradient of 0, so that a batch may lack every label of a task.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid` (same shape); 0 if nothing is valid."""
    # where() and not a product: 0 * NaN is NaN, and what stands at invalid pixels is arbitrary.
    total = torch.where(valid, values, 0.0).sum()
    return total / valid.sum().clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """logits (B, C, H, W), target (B, H, W) class ids, valid (B, H, W) -> scalar.

    With class weights (C,) it is the weighted mean, as in `torch.nn.CrossEntropyLoss`. With two classes it is the
    binary cross-entropy of logits[:, 1] - logits[:, 0].
    """
    ids = torch.where(valid, target.long(), -1)
    total = F.cross_entropy(logits.float(), ids, class_weights, ignore_index=-1, reduction="sum")
    if class_weights is None:
        return total / valid.sum().clamp(min=1)
    weight = torch.where(valid, class_weights[ids.clamp(min=0)], 0.0).sum()
    return total / torch.where(weight > 0, weight, 1.0)


def dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """logits (B, C, H, W), target (B, H, W) class ids, valid (B, H, W) -> scalar: 1 - the mean soft Dice score.

    Score 2 sum(p g) / (sum(p^2) + sum(g^2)), Milletari et al., arXiv 1606.04797, section 3, with the softmax p and
    sums over the batch; the mean is over the classes that occur, with two classes: background and foreground.
    """
    # where() before the softmax as well: its gradient at a NaN would be NaN.
    mask = valid[:, None]
    shares = torch.where(mask, logits.float(), 0.0).softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    truth = (target[:, None] == classes) & mask  # (B, C, H, W)
    hits = torch.where(truth, shares, 0.0).sum((0, 2, 3))  # (C,)
    predicted = torch.where(mask, shares.square(), 0.0).sum((0, 2, 3))
    pixels = truth.sum((0, 2, 3))
    occurs = pixels > 0  # then the denominator is at least 1: no term to smooth it
    score = 2 * hits / torch.where(occurs, predicted + pixels, 1.0)
    return torch.where(occurs, 1 - score, 0.0).sum() / occurs.sum().clamp(min=1)


def berhu(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Reverse Huber loss over metres, all (B, H, W) -> scalar. Laina et al., arXiv 1606.00373, section 3.2.

    |e| up to c, (e^2 + c^2) / 2c beyond it, with c a fifth of the largest error of the batch.
    """
    error = torch.where(valid, prediction.float() - target, 0.0).abs()
    c = (0.2 * error.detach().amax()).clamp(min=1e-6)
    return mean_over(torch.where(error <= c, error, (error.square() + c * c) / (2 * c)), valid)


def cosine(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - cosine between vectors: prediction and target (B, 3, H, W), valid (B, H, W) -> scalar."""
    return mean_over(1 - F.cosine_similarity(prediction.float(), target, dim=1, eps=1e-6), valid)
