"""Decoders: an encoder's features -> maps for the heads, from fine to coarse. Light-Weight RefineNet and U-Net,
and in a file of its own the feature pyramid.

Each has `channels` and `strides`, those of its maps; `width` and `stride`, those of the finest map; and
`finest_stride`, the finest stride whose features it uses. A stride is the number of image pixels that a pixel of the
map spans. `initialise` is a call of its own: the network makes it when all its parts exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from networks.encoders import double_conv, initialise_he
from networks.feature_pyramid import FeaturePyramid

# ------------------------------------------------------------------------------------ Light-Weight RefineNet


class ChannelScale(nn.Module):
    """A depthwise 1x1 convolution without bias, as the multiplication that it is; same weight shape and name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.flatten().to(x.dtype)  # autocast leaves multiplications in fp32
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Channels last, torch's loop is a fifth as long: in bf16 it does not see that channels are contiguous.
            return (x.permute(0, 2, 3, 1) * scale).permute(0, 3, 1, 2)
        return x * scale.view(1, -1, 1, 1)


class ChainedPooling(nn.Module):
    """Chained residual pooling: a running sum of `stages` times (5x5 max-pool, 1x1 convolution)."""

    def __init__(self, channels: int, stages: int, depthwise: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            ChannelScale(channels) if depthwise else nn.Conv2d(channels, channels, 1, bias=False) for _ in range(stages)
        )

    def forward(self, x: Tensor) -> Tensor:
        path = x
        for conv in self.convs:
            path = conv(max_pool_5x5(path))
            x = x + path
        return x


def max_pool_5x5(x: Tensor) -> Tensor:
    """x (B, C, h, w) -> the same shape; the largest value within two pixels.

    Without gradients as a column and then a row: the same values from 10 comparisons instead of 25. With them each
    of the two would have a backward pass, which costs more than the forward pass saves. On a CPU as maxima of shifted
    maps, in half of the time of torch's pooling as long as a map stays in the caches, and in the same beyond.
    """
    if torch.is_grad_enabled():
        return F.max_pool2d(x, 5, stride=1, padding=2)
    if x.device.type == "cpu" and not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
        for axis in (2, 3):
            pooled = x.clone()
            for shift in range(1, min(3, x.shape[axis])):
                rest = x.shape[axis] - shift
                for begin, other in ((0, shift), (shift, 0)):
                    part = pooled.narrow(axis, begin, rest)
                    torch.maximum(part, x.narrow(axis, other, rest), out=part)
            x = pooled
        return x
    return F.max_pool2d(F.max_pool2d(x, (5, 1), stride=1, padding=(2, 0)), (1, 5), stride=1, padding=(0, 2))


class Attention(nn.Module):
    """Global context: self-attention between all places of a coarse map (B, C, h, w), added to it.

    Multi-head attention of Vaswani et al., arXiv 1706.03762, section 3.2, without normalization. The last convolution
    starts at 0, so that a trained network stays what it was when this is added to it. A depthwise 3x3 convolution tells
    places apart (Chu et al., arXiv 2102.10882).
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads if channels % heads == 0 else 1
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.projections = nn.Conv2d(channels, 3 * channels, 1)  # queries, keys, values
        self.output = nn.Conv2d(channels, channels, 1)

    def initialise(self) -> None:
        """After `initialise_small`: queries and keys of usual size."""
        nn.init.xavier_uniform_(self.projections.weight)
        nn.init.zeros_(self.output.weight), nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        projected = self.projections(x + self.position(x)).flatten(2)  # (B, 3C, h * w)
        parts = projected.view(batch, 3, self.heads, channels // self.heads, height * width).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(*parts)  # (B, heads, h * w, C / heads)
        return x + self.output(mixed.transpose(2, 3).reshape(batch, channels, height, width))


class LightWeightRefineNet(nn.Module):
    """Features at strides 4 .. 32 -> a map of `width` channels at each stride, the finest first.

    From the coarsest stride to the finest: 1x1 laterals are added to what comes from below, ReLU6, chained
    pooling (depthwise at the finest), then a 1x1 adaptation and bilinear upsampling. With `attention`, each place of
    the coarsest map sees all others.
    """

    finest_stride: ClassVar = 4

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], width: int, crp_stages: int, attention: bool = False
    ) -> None:
        super().__init__()
        self.width, self.stride = width, min(strides)
        self.levels = [
            [i for i, stride in enumerate(strides) if stride == level] for level in sorted(set(strides), reverse=True)
        ]
        count = len(self.levels)
        self.channels, self.strides = (width,) * count, tuple(sorted(set(strides)))
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, width, 1, bias=False) for inputs in channels)
        self.pooling = nn.ModuleList(ChainedPooling(width, crp_stages, level == count - 1) for level in range(count))
        self.adapt = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(count - 1))
        self.context = Attention(width) if attention else nn.Identity()

    @classmethod
    def from_config(cls, config: Config, channels: Sequence[int], strides: Sequence[int]) -> LightWeightRefineNet:
        return cls(channels, strides, config.decoder_width, config.crp_stages, config.context == "attention")

    def initialise(self) -> None:
        self.apply(initialise_small)
        if isinstance(self.context, Attention):
            self.context.initialise()

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x: Tensor | None = None
        maps = []
        for level, indices in enumerate(self.levels):
            parts = [self.laterals[i](features[i]) for i in indices]
            if x is not None:
                adapted = self.adapt[level - 1](x)
                parts.append(F.interpolate(adapted, size=parts[0].shape[-2:], mode="bilinear", align_corners=False))
            x = F.relu6(sum(parts[1:], parts[0]))
            x = self.pooling[level](self.context(x) if level == 0 else x)
            maps.append(x)
        return tuple(reversed(maps))


class Head(nn.Sequential):
    """A map (B, width, h, w) -> (B, channels, h, w), as in the paper's network."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(ChannelScale(width), nn.ReLU6(), nn.Conv2d(width, channels, 3, padding=1))

    def initialise(self) -> None:
        self.apply(initialise_small)


class SeparableHead(nn.Sequential):
    """A map (B, width, h, w) -> (B, channels, h, w): 3x3 within each channel, then 1x1.

    Two of them for 128 channels, 40 classes and depth take a sixth of the multiply-adds of two `Head`s.
    """

    def __init__(self, width: int, channels: int) -> None:
        spatial = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        super().__init__(ChannelScale(width), nn.ReLU6(), spatial, nn.Conv2d(width, channels, 1))

    def initialise(self) -> None:
        self.apply(initialise_small)
        nn.init.dirac_(self[2].weight, groups=self[2].groups)  # small weights after small ones would hardly learn


HEADS: dict[str, type[nn.Sequential]] = {"conv": Head, "separable": SeparableHead}


def initialise_small(module: nn.Module) -> None:
    """For the heads and the RefineNet: normal weights of 0.01, as in the published training; a scale starts at 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ChannelScale):
        nn.init.ones_(module.weight)


# ------------------------------------------------------------------------------------------------------ U-Net


class UNet(nn.Module):
    """The expanding path of U-Net, Ronneberger et al., arXiv 1505.04597, figure 1, over the features of any encoder.

    From the coarsest stride to the finest, which its map has: upsample, concatenate the encoder's feature, double
    convolution (with padding and batch norm). Of several features at one stride the last is used.

    - transposed: a 2x2 transposed convolution halves the channels. With the encoder `unet` this is the paper's
      network with the 31,037,568 parameters of the usual Carvana implementations, less their output layer.
    - bilinear: the double convolution reduces the channels to those of the next feature. With the encoder
      `unet_512`, half as wide at stride 16, it has their 17,262,912; with `unet`, as wide as in the paper there,
      29,061,440.
    """

    finest_stride: ClassVar = 1  # all that the encoder has

    def __init__(self, channels: Sequence[int], strides: Sequence[int], transposed: bool) -> None:
        super().__init__()
        last = {stride: i for i, stride in enumerate(strides)}
        self.levels = [last[stride] for stride in sorted(last, reverse=True)]
        self.width, self.stride = channels[self.levels[-1]], min(strides)
        self.upsample, self.convs = nn.ModuleList(), nn.ModuleList()
        width = channels[self.levels[0]]
        self.strides = tuple(sorted(last))
        made = [width]  # channels of the maps, the coarsest first
        for coarse, fine, finer in zip(self.levels, self.levels[1:], [*self.levels[2:], self.levels[-1]], strict=False):
            ratio, skip = strides[coarse] // strides[fine], channels[fine]
            if transposed:
                self.upsample.append(nn.ConvTranspose2d(width, width // 2, ratio, stride=ratio))
                joined, outputs = width // 2 + skip, skip
            else:
                self.upsample.append(nn.Upsample(scale_factor=ratio, mode="bilinear"))
                joined, outputs = width + skip, channels[finer]
            self.convs.append(double_conv(joined, skip, outputs))
            width = outputs
            made.append(width)
        self.channels = tuple(reversed(made))

    @classmethod
    def from_config(cls, config: Config, channels: Sequence[int], strides: Sequence[int]) -> UNet:
        return cls(channels, strides, transposed=config.unet_upsampling == "transposed")

    def initialise(self) -> None:
        self.apply(initialise_he)
        for module in self.upsample:
            if isinstance(module, nn.ConvTranspose2d):
                # Every output has one input pixel, and no ReLU behind it.
                nn.init.normal_(module.weight, std=module.in_channels**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x = features[self.levels[0]]
        maps = [x]
        for level, upsample, conv in zip(self.levels[1:], self.upsample, self.convs, strict=True):
            skip = features[level]
            x = conv(torch.cat([skip, fit(upsample(x), *skip.shape[-2:])], dim=1))
            maps.append(x)
        return tuple(reversed(maps))


def fit(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width), cropped or repeated at the bottom and at the right.

    Encoders round odd sizes up or down there, so that nothing else has to move.
    """
    missing = max(height - x.shape[-2], 0), max(width - x.shape[-1], 0)
    if any(missing):
        x = F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
    return x[..., :height, :width]


# ----------------------------------------------------------------------------------------- the encoder's own maps


class NoDecoder(nn.Module):
    """No map of its own: the heads read those of the encoder's own output layers (`WithOwnMaps`)."""

    finest_stride: ClassVar = 2**31  # no features

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides, self.width, self.stride = (), (), 0, 0

    @classmethod
    def from_config(cls, config: Config, channels: Sequence[int], strides: Sequence[int]) -> NoDecoder:
        return cls()

    def initialise(self) -> None:
        return

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return ()


class WithOwnMaps(nn.Module):
    """A decoder, whose maps are followed by the encoder's last `count` ones: those of its own output layers."""

    def __init__(self, inner: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.count = inner, len(channels)
        self.channels, self.strides = (*inner.channels, *channels), (*inner.strides, *strides)
        self.width, self.stride = inner.width or channels[0], inner.stride or strides[0]

    def initialise(self) -> None:
        self.inner.initialise()

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*self.inner(features[: -self.count]), *features[-self.count :])


# -------------------------------------------------------------------------------------------------- the table

DECODERS: dict[str, type[LightWeightRefineNet] | type[UNet] | type[FeaturePyramid] | type[NoDecoder]] = {
    "refinenet": LightWeightRefineNet, "unet": UNet, "fpn": FeaturePyramid,
    "fpn_bn": FeaturePyramid, "none": NoDecoder,
}  # fmt: skip


def build_decoder(config: Config, channels: Sequence[int], strides: Sequence[int], own_maps: int = 0) -> nn.Module:
    """The decoder `config.decoder` for features with these channels and strides; `initialise` it afterwards.

    The last `own_maps` of them are those of the encoder's own output layers.
    """
    count = len(channels) - own_maps
    inner = DECODERS[config.decoder].from_config(config, channels[:count], strides[:count])
    return WithOwnMaps(inner, channels[count:], strides[count:]) if own_maps else inner
