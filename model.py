"""The network: an encoder, the Light-Weight RefineNet decoder, one small head for each task.

Decoder and heads follow Nekrasov et al., arXiv 1809.04766 and 1810.03272. With the encoder `mobilenetv2_paper`
and 40 classes + depth it is the network of that paper, 3,070,057 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, make_config
from encoders import build_encoder, load_matching
from published import read_published
from tasks import Task, tasks_from_plain
from utils import CHECKPOINT_FORMAT, read_checkpoint, read_torch_file

# ---------------------------------------------------------------------------------------------- decoder


class ChannelScale(nn.Module):
    """A depthwise 1x1 convolution without bias, as the multiplication that it is; same weight shape and name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1)


class ChainedPooling(nn.Module):
    """Chained residual pooling: a running sum of `stages` times (5x5 max-pool, 1x1 convolution)."""

    def __init__(self, channels: int, stages: int, depthwise: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.convs = nn.ModuleList(
            ChannelScale(channels) if depthwise else nn.Conv2d(channels, channels, 1, bias=False) for _ in range(stages)
        )

    def forward(self, x: Tensor) -> Tensor:
        path = x
        for conv in self.convs:
            path = conv(self.pool(path))
            x = x + path
        return x


class LightWeightRefineNet(nn.Module):
    """Features at strides 4 .. 32 -> one map of `width` channels at stride 4.

    From the coarsest stride to the finest: 1x1 laterals are added to what comes from below, ReLU6, chained
    pooling (depthwise at the finest), then a 1x1 adaptation and bilinear upsampling.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, crp_stages: int) -> None:
        super().__init__()
        self.levels = [
            [i for i, stride in enumerate(strides) if stride == level] for level in sorted(set(strides), reverse=True)
        ]
        count = len(self.levels)
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, width, 1, bias=False) for inputs in channels)
        self.pooling = nn.ModuleList(ChainedPooling(width, crp_stages, level == count - 1) for level in range(count))
        self.adapt = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(count - 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x: Tensor | None = None
        for level, indices in enumerate(self.levels):
            parts = [self.laterals[i](features[i]) for i in indices]
            if x is not None:
                adapted = self.adapt[level - 1](x)
                parts.append(F.interpolate(adapted, size=parts[0].shape[-2:], mode="bilinear", align_corners=False))
            x = self.pooling[level](F.relu6(sum(parts[1:], parts[0])))
        return x


def build_head(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(ChannelScale(width), nn.ReLU6(), nn.Conv2d(width, channels, 3, padding=1))


# ---------------------------------------------------------------------------------------------- network


class Network(nn.Module):
    """Images (B, 3, H, W), uint8 or floats in 0..1, RGB -> {task: raw output (B, channels, ceil(H/4), ceil(W/4))}.

    It knows its tasks and the settings of its training, so that nothing has to be said again when it is used.
    """

    def __init__(self, encoder: nn.Module, tasks: Mapping[str, Task], config: Config) -> None:
        super().__init__()
        self.tasks, self.config = dict(tasks), config
        width = config.decoder_width
        self.encoder = encoder
        self.decoder = LightWeightRefineNet(encoder.channels, encoder.strides, width, config.crp_stages)
        self.heads = nn.ModuleDict({name: build_head(width, task.channels) for name, task in tasks.items()})
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)
        for part in (self.decoder, self.heads):
            part.apply(_initialise)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        features = self.encoder((images - self.mean) / self.std)
        shared = self.decoder(features)  # (B, width, H/4, W/4)
        return {name: head(shared) for name, head in self.heads.items()}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ChannelScale):
        nn.init.ones_(module.weight)


def build_network(config: Config, tasks: Mapping[str, Task], load_encoder: bool = True) -> Network:
    """The network that `config` describes; `load_encoder=False` when the weights come from a checkpoint."""
    encoder = build_encoder(config.encoder, config.encoder_weights if load_encoder else "none")
    return Network(encoder, tasks, config)


def freeze_batch_norm(network: nn.Module) -> None:
    """Keeps the statistics and the scales of batch norm as they are; call it after each `.train()`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.requires_grad_(False)


def count_cost(network: Network, height: int, width: int) -> tuple[int, int]:
    """(parameters, multiply-adds of the convolutions for one image)."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    training = network.training
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, height, width, device=device))
    network.train(training)
    return sum(item.numel() for item in network.parameters()), counter.get_total_flops() // 2


# ---------------------------------------------------------------------------------------------- loading


def load_network(path: str | Path) -> Network:
    """A checkpoint of ours, or one that the paper's authors published -> network in eval mode on the CPU.

    Raises FileNotFoundError or ValueError in one line.
    """
    path = Path(path)
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") != CHECKPOINT_FORMAT and "state_dict" in content:
        config, tasks, weights = read_published(content["state_dict"], path)
        network = build_network(config, tasks, load_encoder=False)
        load_matching(network, weights, path)
        return network.eval()
    return network_from_checkpoint(read_checkpoint(path), path)


def network_from_checkpoint(content: Mapping[str, object], path: Path) -> Network:
    """The network of a checkpoint's content (`utils.read_checkpoint`), in eval mode."""
    try:
        config = make_config(content["config"], str(path))
        tasks = tasks_from_plain(content["tasks"])
        network = build_network(config, tasks, load_encoder=False)
    except (ValueError, AttributeError, TypeError) as problem:
        raise ValueError(f"{path}: its settings do not fit this code: {problem}") from None
    if not isinstance(content["network"], dict):
        raise ValueError(f"{path}: its weights are not named tensors")
    load_matching(network, content["network"], path)
    return network.eval()
