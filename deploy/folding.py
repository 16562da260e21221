"""Batch-norm folding and other rewritings of a trained network that keep what it computes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from model import Network


def simplified(network: Network) -> Network:
    """A copy in eval mode that computes the same, within rounding, with less: no batch norm, no thin convolutions.

    Each convolution carries the batch norm that follows it. Which one follows which is seen in a pass over a small
    image: a batch norm whose input is a convolution's output.
    """
    folded = copy.deepcopy(network).eval()
    produced: list[tuple[Tensor, nn.Module]] = []  # the tensors stay alive, so that none takes another's place
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        produced.append((output, module))

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pairs.extend((conv, module) for output, conv in produced if output is inputs[0])

    hooks = []
    for module in folded.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(note_input))
    with torch.no_grad():
        folded(torch.zeros(1, 3, 64, 64, device=network.mean.device))
    for hook in hooks:
        hook.remove()
    used = [id(conv) for conv, _ in pairs]
    replaced = {}
    for conv, norm in pairs:
        if used.count(id(conv)) > 1:
            continue  # one convolution for two batch norms
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
            transpose=isinstance(conv, nn.ConvTranspose2d),
        )  # fmt: skip
        replaced[norm] = getattr(norm, "act", nn.Identity())  # timm's batch norms have the activation inside
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if child in replaced:
                setattr(parent, name, replaced[child])
            elif is_thin(child):
                setattr(parent, name, split_taps(child))
    return folded.requires_grad_(False)


def is_thin(module: nn.Module) -> bool:
    """Whether it is a 3x3 convolution with very few outputs: back ends compute 16 at once, so that 1 costs like 16."""
    if not isinstance(module, nn.Conv2d) or module.out_channels > 3:
        return False
    shape = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def split_taps(conv: nn.Conv2d) -> nn.Sequential:
    """A 3x3 convolution as a 1x1 one, which gives what each of the 9 taps adds, and one that adds these up in place."""
    outputs, inputs = conv.weight.shape[:2]
    taps = nn.Conv2d(inputs, 9 * outputs, 1, bias=False)
    taps.weight = nn.Parameter(conv.weight.permute(0, 2, 3, 1).reshape(9 * outputs, inputs, 1, 1).contiguous())
    total = nn.Conv2d(9 * outputs, outputs, 3, padding=1, groups=outputs, bias=conv.bias is not None)
    total.weight = nn.Parameter(torch.eye(9).reshape(1, 9, 3, 3).repeat(outputs, 1, 1, 1).to(conv.weight))
    total.bias = conv.bias
    return nn.Sequential(taps, total)
