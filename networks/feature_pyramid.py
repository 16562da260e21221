"""Feature pyramid (Lin et al., arXiv 1612.03144), torchvision's: the decoder of Faster R-CNN and of Panoptic FPN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from config import Config


class FeaturePyramid(nn.Module):
    """Features at strides 4 .. 32 -> a map of `width` channels at each stride, and one at twice the coarsest.

    1x1 laterals are added to what comes from the next coarser stride, enlarged without interpolation; then 3x3. Of
    several features at one stride the last is used, unless there are no others.
    """

    finest_stride: ClassVar = 4

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, norm: bool = False) -> None:
        """norm: batch norm behind each convolution."""
        super().__init__()
        # Not above: torchvision takes a second to load.
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        last = {stride: index for index, stride in enumerate(strides)}
        self.levels = [last[stride] for stride in sorted(last)] if len(last) > 1 else list(range(len(strides)))
        inputs, layer = [channels[level] for level in self.levels], nn.BatchNorm2d if norm else None
        self.fpn = FeaturePyramidNetwork(inputs, width, LastLevelMaxPool(), layer)
        self.strides = (*(strides[level] for level in self.levels), 2 * max(strides))
        self.channels = (width,) * len(self.strides)
        self.width, self.stride = width, self.strides[0]

    @classmethod
    def from_config(cls, config: Config, channels: Sequence[int], strides: Sequence[int]) -> FeaturePyramid:
        return cls(channels, strides, config.decoder_width, config.decoder == "fpn_bn")

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.fpn({str(level): features[level] for level in self.levels}).values())
