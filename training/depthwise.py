"""Depthwise convolutions in bf16 on a CPU, with a backward pass from the parts for which oneDNN has fast kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

BLOCK = 3  # the largest side of a kernel whose gradient oneDNN computes fast


def faster_depthwise(
    device: torch.device, precision: torch.dtype, compiled: bool = False
) -> contextlib.AbstractContextManager:
    """Inside, depthwise convolutions get `Depthwise`'s backward pass, in bf16 on a CPU. It does nothing otherwise, nor
    for networks that torch.compile turns into code of its own."""
    wanted = device.type == "cpu" and precision == torch.bfloat16 and not compiled
    return Faster() if wanted else contextlib.nullcontext()


class Faster(TorchFunctionMode):
    """Gives each call of F.conv2d inside to `depthwise` first, where gradients and autocast are on."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            found = depthwise(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    """F.conv2d with `Depthwise`'s backward pass; None = another kind of convolution, or one that is fast as it is."""
    if x.ndim != 4 or not groups == x.shape[1] == len(weight) or weight.shape[1] != 1 or isinstance(padding, str):
        return None
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    if dilation != (1, 1) or (max(weight.shape[-2:]) <= BLOCK and max(stride) == 1):
        return None
    x, weight, bias = (item if item is None else item.bfloat16() for item in (x, weight, bias))
    return Depthwise.apply(x, weight, bias, stride, padding)


class Depthwise(torch.autograd.Function):
    """A depthwise convolution of tensors in bf16.

    oneDNN (of torch 2.14, on an AMD EPYC with AVX-512) takes 24 to 47 forward passes for the gradient of a kernel of
    5x5 or 7x7, and 1 to 3 for that of 3x3: so it is put together from blocks of 3x3. For the gradient of the input of a
    strided convolution it takes 18 to 35, and 1 without a stride: so zeros stand where the stride skips.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            every = gradient if max(ctx.stride) == 1 else _spread(gradient, x, weight, ctx.stride, ctx.padding)
            of_x = _gradients(every, x, weight, (1, 1), ctx.padding, (True, False))[0]
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Of the input and of the weight, as torch computes them; wanted: which of the two."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), (*wanted, False)
    )[:2]


def _spread(gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The gradient of a strided convolution's output as that of one with stride 1: 0 at what the strided one skips."""
    height, width = (side + 2 * added - kernel + 1 for side, added, kernel in
                     zip(x.shape[-2:], padding, weight.shape[-2:], strict=True))  # fmt: skip
    every = gradient.new_zeros(len(x), height, width, x.shape[1]).permute(0, 3, 1, 2)  # channels last
    every[:, :, :: stride[0], :: stride[1]] = gradient
    return every


def _starts(side: int) -> list[int]:
    """Where blocks begin that cover the side of a kernel; they may overlap."""
    return [*range(0, side - BLOCK, BLOCK), max(0, side - BLOCK)]


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    if max(weight.shape[-2:]) <= BLOCK:
        return _gradients(gradient, x, weight, stride, padding, (False, True))[1]
    found, x = torch.empty_like(weight), F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for top in _starts(weight.shape[2]):
        for left in _starts(weight.shape[3]):
            block = weight[:, :, top : top + BLOCK, left : left + BLOCK]
            # The part of the input that these taps see: as many steps of the stride as the output has.
            height, width = ((count - 1) * step + side for count, step, side in
                             zip(gradient.shape[-2:], stride, block.shape[-2:], strict=True))  # fmt: skip
            seen = x[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            found[:, :, top : top + BLOCK, left : left + BLOCK] = _gradients(
                gradient, seen, block.contiguous(), stride, (0, 0), (False, True)
            )[1]
    return found
