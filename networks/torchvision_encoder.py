"""torchvision's MobileNetV3 as its published detectors have it: two features, both at stride 32."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn


class TorchvisionMobileNetV3(nn.Module):
    """MobileNetV3-Large (Howard et al., arXiv 1905.02244): the first block at stride 32, and the last layer.

    Its weights have torchvision's names, behind `body.`.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    no_download = "take a published detector with --init FILE, or the encoder mobilenetv3_large_100 of timm"
    LAYERS: ClassVar = {"13": 160, "16": 960}  # in the order of torchvision: channels

    def __init__(self, finest_stride: int = 4) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v3_large  # not above: it takes a second to load
        from torchvision.models._utils import IntermediateLayerGetter

        features = mobilenet_v3_large(weights=None, norm_layer=nn.BatchNorm2d).features
        self.body = IntermediateLayerGetter(features, {name: name for name in self.LAYERS})
        self.channels, self.strides = tuple(self.LAYERS.values()), (32, 32)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.body(x).values())

    def load_file(self, path: Path) -> None:
        raise ValueError(f"encoder_weights: {path}: {self.no_download}")
