"""Depthwise convolutions of a training in bf16 on a CPU: the gradients are those of torch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import settings, tasks
from small_training import CPU, _signals_and_memory, built  # noqa: F401
from torch import Tensor

from model import build_network
from networks.decoders import ChannelScale
from training import step
from training.depthwise import Depthwise, Faster, depthwise, faster_depthwise
from utils import autocast

CASES = [
    (kernel, stride, padding, size)
    for kernel, stride in itertools.product((3, 4, 5, 7, (5, 3), (1, 7)), (1, 2, 3, (2, 1)))
    for padding, size in (((2, 2), (17, 12)), ((0, 0), (19, 8)), ((1, 0), (16, 11)))
]


def tensors(kernel: int | tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    shapes = ((2, 6, *size), (6, 1, rows, columns), (6,))
    return tuple(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), CASES, ids=str)
def test_the_gradients_are_those_of_the_convolution(kernel, stride, padding, size):
    """In fp64, where nothing is rounded; with strides that leave rows over, and blocks that overlap."""
    given = tensors(kernel, size, torch.float64)
    stride = (stride, stride) if isinstance(stride, int) else stride
    expected = F.conv2d(*given, stride, padding, 1, 6)
    weights = torch.randn_like(expected)
    found = Depthwise.apply(*given, stride, padding)
    assert torch.equal(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), given),
        torch.autograd.grad((expected * weights).sum(), given), strict=True,
    ):  # fmt: skip
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_in_bf16_they_are_what_torch_rounds_to(memory):
    given = [item.detach() for item in tensors(5, (33, 40), torch.float32)]
    found = []
    for faster in (True, False):
        x, weight, bias = (item.clone().requires_grad_() for item in given)
        with autocast(CPU, torch.bfloat16), faster_depthwise(CPU, torch.bfloat16 if faster else torch.float32):
            output = F.conv2d(x.contiguous(memory_format=memory), weight, bias, 2, 2, 1, 6)
        assert output.dtype == torch.bfloat16 and ("Depthwise" in type(output.grad_fn).__name__) == faster
        found.append(torch.autograd.grad(output.float().square().sum(), (x, weight, bias)))
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == torch.float32 and (mine - theirs).norm() < 0.01 * theirs.norm()


def test_other_convolutions_are_torchs():
    x, weight = torch.randn(1, 6, 9, 9), torch.randn(6, 1, 5, 5)
    assert depthwise(x, weight, groups=6, padding=2) is not None
    for other in (
        {"weight": torch.randn(6, 1, 3, 3)}, {"dilation": 2}, {"padding": "same"}, {"weight": torch.randn(12, 1, 5, 5)},
        {"weight": torch.randn(6, 6, 5, 5), "groups": 1}, {"weight": torch.randn(6, 2, 5, 5), "groups": 3},
    ):  # fmt: skip
        assert depthwise(**{"x": x, "weight": weight, "groups": 6, **other}) is None, other
    with Faster():
        assert F.conv2d(x, weight, groups=6).dtype == torch.float32, "without autocast nothing changes"
        with torch.no_grad(), autocast(CPU, torch.bfloat16):
            assert F.conv2d(x, weight.requires_grad_(), groups=6).grad_fn is None
    for device, precision, compiled in (
        (torch.device("cuda:0"), torch.bfloat16, False), (CPU, torch.float32, False), (CPU, torch.bfloat16, True),
    ):  # fmt: skip
        assert not isinstance(faster_depthwise(device, precision, compiled), Faster)


@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "mobilenetv2_paper", "convnext_atto"])
def test_a_networks_gradients_are_the_same(encoder):
    """Of one with padding of its own, of one without, and of one with 7x7 and biases."""
    network = build_network(settings(encoder, decoder_width=8, crp_stages=1), tasks(4)).train()
    images = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
    seen = []
    for precision in (torch.bfloat16, torch.float32):
        network.zero_grad()
        with autocast(CPU, torch.bfloat16), faster_depthwise(CPU, precision):
            outputs = network(images)
        sum(value.float().square().mean() for value in outputs.values()).backward()
        seen.append({name: item.grad.clone() for name, item in network.named_parameters()})
    for name, value in seen[0].items():
        assert (value - seen[1][name]).norm() <= 0.05 * seen[1][name].norm() + 1e-6, name


def test_a_training_in_bf16_uses_it(rooms_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(step, "faster_depthwise", lambda *words: asked.append(words) or faster_depthwise(*words))
    training, batches = built(rooms_folder, precision="bf16", encoder="tf_efficientnet_lite0")
    losses = training.take_step(batches[:1])
    assert asked == [(CPU, torch.bfloat16, False)] and all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_the_scale_of_channels_is_the_same_in_training(memory):
    scale = ChannelScale(5)
    torch.nn.init.normal_(scale.weight)
    x = torch.randn(2, 5, 6, 7).contiguous(memory_format=memory).requires_grad_()
    with torch.no_grad():
        expected = scale(x)
    found = scale(x)
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    weights = torch.randn_like(x)
    of_x, of_weight = torch.autograd.grad((found * weights).sum(), (x, scale.weight))
    assert torch.allclose(of_x, weights * scale.weight.view(1, -1, 1, 1))
    assert torch.allclose(of_weight.flatten(), (weights * x).sum((0, 2, 3)), atol=1e-5)
