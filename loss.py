"""Losses: pure functions (prediction, target, valid) -> (sum, weight), two scalars in fp32.

The loss of a training step is the sum over all its frames divided by their weight, so that it does not depend on how
the frames are split over micro-batches and processes. Sum and weight are those of the valid pixels. Without a valid
pixel both are 0, and so is the gradient: a batch may lack every label of a task.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = tuple[Tensor, Tensor]  # sum, weight


def mean(loss: Loss) -> Tensor:
    """sum / weight; 0 if nothing is valid."""
    total, weight = loss
    return total / torch.where(weight > 0, weight, 1.0)


def sum_over(values: Tensor, valid: Tensor) -> Loss:
    """The sum of `values` where `valid` (same shape), and the number of valid pixels."""
    # where() and not a product: 0 * NaN is NaN, and invalid pixels hold arbitrary values.
    return torch.where(valid, values, 0.0).sum(), valid.sum().float()


def cross_entropy(
    logits: Tensor, target: Tensor, valid: Tensor, class_weights: Tensor | None = None, smoothing: float = 0.0
) -> Loss:
    """logits (B, C, H, W), target (B, H, W) class ids, valid (B, H, W) -> (sum, weight).

    With class weights (C,), `weight` is the sum of the pixels' class weights: the mean is that of
    `torch.nn.CrossEntropyLoss`. With two classes it is the binary cross-entropy of logits[:, 1] - logits[:, 0].
    `smoothing` spreads this share of a label over all classes.
    """
    ids = torch.where(valid, target.long(), -1)
    total = F.cross_entropy(
        logits.float(), ids, class_weights, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    if class_weights is None:
        return total, valid.sum().float()
    return total, torch.where(valid, class_weights[ids.clamp(min=0)], 0.0).sum()


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Loss:
    """Cross-entropy against probabilities of the classes, both (B, C, H, W) -> (sum, weight), over all pixels."""
    total = -(probabilities * logits.float().log_softmax(1)).sum()
    return total, torch.ones_like(total) * (probabilities.numel() // probabilities.shape[1])


def dice(logits: Tensor, target: Tensor, valid: Tensor) -> Loss:
    """logits (B, C, H, W), target (B, H, W) class ids, valid (B, H, W) -> 1 - mean soft Dice score, times the pixels.

    Score 2 sum(p g) / (sum(p^2) + sum(g^2)), Milletari et al., arXiv 1606.04797, section 3, with the softmax p. The
    sums are over the frames given, so this loss does depend on which frames share a micro-batch. The mean is over the
    classes that occur; with two classes: background and foreground.
    """
    # where() before the softmax as well: its gradient at a NaN would be NaN.
    mask = valid[:, None]
    shares = torch.where(mask, logits.float(), 0.0).softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    truth = (target[:, None] == classes) & mask  # (B, C, H, W)
    hits = torch.where(truth, shares, 0.0).sum((0, 2, 3))  # (C,)
    predicted = torch.where(mask, shares.square(), 0.0).sum((0, 2, 3))
    pixels = truth.sum((0, 2, 3))
    occurs = pixels > 0  # then the denominator is at least 1 and needs no smoothing term
    score = 2 * hits / torch.where(occurs, predicted + pixels, 1.0)
    value = torch.where(occurs, 1 - score, 0.0).sum() / occurs.sum().clamp(min=1)
    count = valid.sum().float()
    return value * count, count


def berhu(prediction: Tensor, target: Tensor, valid: Tensor) -> Loss:
    """Reverse Huber loss over metres, all (B, H, W) -> (sum, weight). Laina et al., arXiv 1606.00373, section 3.2.

    |e| up to c, (e^2 + c^2) / 2c beyond it. c is a fifth of the largest error of the frames given, as in the paper: it
    depends on which frames share a micro-batch.
    """
    error = torch.where(valid, prediction.float() - target, 0.0).abs()
    c = (0.2 * error.detach().amax()).clamp(min=1e-6)
    return sum_over(torch.where(error <= c, error, (error.square() + c * c) / (2 * c)), valid)


def l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Loss:
    """Absolute difference, all (B, H, W) -> (sum, weight)."""
    return sum_over((prediction.float() - target).abs(), valid)


def log_l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Loss:
    """Absolute difference of the logarithms, all (B, H, W) in metres -> (sum, weight): errors relative to distance."""
    # where() before the logarithm as well: its gradient at 0 would be infinite.
    logarithms = (torch.where(valid, value, 1.0).clamp(min=1e-3).log() for value in (prediction.float(), target))
    return l1(*logarithms, valid)


def gradient(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """How much the errors of neighbors differ, all (B, H, W) -> the sum over pairs of valid pixels, across and down.

    Edges and slopes count, a shift of the whole does not. Li and Snavely, arXiv 1804.00607, section 4.1, at one scale.
    """
    error = torch.where(valid, prediction.float() - target, 0.0)
    across = sum_over((error[:, :, 1:] - error[:, :, :-1]).abs(), valid[:, :, 1:] & valid[:, :, :-1])
    down = sum_over((error[:, 1:] - error[:, :-1]).abs(), valid[:, 1:] & valid[:, :-1])
    return across[0] + down[0]


def cosine(prediction: Tensor, target: Tensor, valid: Tensor) -> Loss:
    """1 - cosine between vectors: prediction and target (B, 3, H, W), valid (B, H, W) -> (sum, weight)."""
    return sum_over(1 - F.cosine_similarity(prediction.float(), target, dim=1, eps=1e-6), valid)
