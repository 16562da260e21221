"""Encoders: images -> features at several strides. The paper's MobileNet-v2, U-Net's, and any of timm.

Each has `channels` and `strides` of its features, finest first, and the `mean` and `std` of the pixels that it wants.
"""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from config import DARKNET
from networks.checkpoints import check_weights, read_torch_file
from networks.darknet import build_darknet
from networks.torchvision_encoder import TorchvisionMobileNetV3
from user_input.values import near

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU6()] if act else []))


class InvertedResidual(nn.Module):
    """MobileNet-v2's block (arXiv 1801.04381, figure 3), with the expansion kept at t = 1."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.output = nn.Sequential(
            conv_bn_relu(inputs, hidden, 1),
            conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            conv_bn_relu(hidden, outputs, 1, act=False),
        )
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.output(x) if self.adds_input else self.output(x)


class PaperMobileNetV2(nn.Module):
    """The paper's encoder; the names of its layers are those of the published weights."""

    # expansion, channels, blocks, stride of the first block
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    STRIDES = (2, 4, 8, 16, 16, 32, 32)  # of the stages' outputs
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    no_download = (
        "give the file mobilenetv2-e6e8dd43.pth of the public NYUDv2 archive (dataset/README.md), "
        "or use the encoder mobilenetv2_100"
    )

    def __init__(self, finest_stride: int = 4) -> None:
        super().__init__()
        kept = [i for i, stride in enumerate(self.STRIDES) if stride >= finest_stride]
        self.channels = tuple(self.STAGES[i][1] for i in kept)
        self.strides = tuple(self.STRIDES[i] for i in kept)
        self.layer1 = conv_bn_relu(3, 32, 3, stride=2)
        width = 32
        for number, (expansion, outputs, blocks, stride) in enumerate(self.STAGES, 2):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(InvertedResidual(width, outputs, expansion, stride if block == 0 else 1))
                width = outputs
            self.add_module(f"layer{number}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer1(x)
        features = []
        for number in range(2, 9):
            x = self.get_submodule(f"layer{number}")(x)
            if number > 8 - len(self.channels):
                features.append(x)
        return features

    def load_file(self, path: Path) -> None:
        load_matching(self, read_weights(path), path)


def double_conv(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """U-Net's block: twice (3x3 convolution, ReLU), here with batch norm and padding that keeps the size."""
    layers = []
    for before, after in ((inputs, middle), (middle, outputs)):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def initialise_he(module: nn.Module) -> None:
    """Normal weights whose variance is 2 / inputs, as in U-Net's section 3 (He et al., arXiv 1502.01852)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class UNetEncoder(nn.Module):
    """The contracting path of U-Net, Ronneberger et al., arXiv 1505.04597, figure 1: a double convolution at
    stride 1, then four times (2x2 max-pool, double convolution), with padding and batch norm.

    The pool rounds odd sizes up, so that no row is dropped and a feature has ceil(size / stride) rows.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    no_download = "U-Net is trained from scratch (none), or from a file"

    def __init__(self, finest_stride: int = 1, widths: Sequence[int] = (64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        strides = [2**i for i in range(len(widths))]
        kept = [i for i, stride in enumerate(strides) if stride >= finest_stride]
        self.channels, self.strides = tuple(widths[i] for i in kept), tuple(strides[i] for i in kept)
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(double_conv(*pair, pair[1]) for pair in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.apply(initialise_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for number, stage in enumerate(self.stages):
            x = stage(self.pool(x) if number else x)
            if number >= len(self.stages) - len(self.channels):
                features.append(x)
        return features

    def load_file(self, path: Path) -> None:
        load_matching(self, read_weights(path), path)


class SameConv2d(nn.Conv2d):
    """TensorFlow's "same" padding, as timm's Conv2dSame: ceil(size / stride) outputs, the odd row of zeros at the end.

    timm's formula has a maximum in it, which torch.export carries through all later sizes: minutes for one export. In
    this one, for kernels at least as large as the stride, the sizes cancel.
    """

    def forward(self, x: Tensor) -> Tensor:
        added = []
        for size, kernel, stride, dilation in zip(
            x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
        ):
            total = (size - 1) // stride * stride + (kernel - 1) * dilation + 1 - size
            added = [total // 2, total - total // 2, *added]  # the last dimension comes first
        return F.conv2d(F.pad(x, added), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class TimmEncoder(nn.Module):
    """Any timm model whose features come at strides 4, 8, 16 and 32, and perhaps at finer ones."""

    def __init__(self, name: str, pretrained: bool = False, finest_stride: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        import timm  # only needed for its encoders, and slow to import

        if not timm.is_model(name):
            known = [*ENCODERS, "darknet:FILE.cfg", *timm.list_models()]
            raise ValueError(f"encoder: unknown name {name!r}{near(name, known)}; timm.list_models() lists them")
        info, reason = feature_info(name)
        indices = [i for i, stride in enumerate(info.reduction()) if stride >= finest_stride] if info else []
        self.strides = tuple(info.reduction()[i] for i in indices)
        if tuple(stride for stride in self.strides if stride >= 4) != (4, 8, 16, 32):
            got = reason or f"it has {', '.join(map(str, info.reduction()))}"
            raise ValueError(f"encoder: {name} has no features at strides 4, 8, 16 and 32, as decoders need; {got}")
        self.body = create(name, indices, pretrained, drop_path)
        for module in self.body.modules():
            if isinstance(module, timm.layers.Conv2dSame) and min(module.kernel_size) >= max(module.stride):
                module.__class__ = SameConv2d
        self.channels = tuple(info.channels()[i] for i in indices)
        data = timm.get_pretrained_cfg(name)
        self.mean, self.std = (data.mean, data.std) if data else (IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body(x)

    def load_file(self, path: Path) -> None:
        weights = read_weights(path)
        # timm flattens some models for feature extraction: stages.0.x becomes stages_0.x
        names = self.body.state_dict().keys()
        renamed = {
            key.replace(".", "_", 1) if key.replace(".", "_", 1) in names else key: value
            for key, value in weights.items()
        }
        load_matching(self.body, renamed, path)


class ShapesOnly(TorchFunctionMode):
    """Inside, new tensors have a shape and a type but no memory, as on torch's meta device: networks of any size are
    built at once. Tensors of given values and sequences stay, because timm reads numbers from them."""

    MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.MAKERS:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def feature_info(name: str) -> tuple[Any, str]:
    """(timm's FeatureInfo of a model, "") or (None, why it gives no features)."""
    import timm

    try:
        return timm.create_model(name, features_only=True).feature_info, ""
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as problem:
        return None, f"timm says: {' '.join(str(problem).split()) or type(problem).__name__}"


def create(name: str, indices: Sequence[int], pretrained: bool, drop_path: float = 0.0) -> nn.Module:
    """A timm model that gives these features. Raises ValueError where weights cannot be downloaded, and where the model
    has no blocks to leave out."""
    import timm

    make = partial(timm.create_model, name, features_only=True, out_indices=indices)
    if drop_path:
        make = partial(make, drop_path_rate=drop_path)
        try:
            plain = make()
        except TypeError:
            raise ValueError(f"drop_path: {name} has no residual blocks to leave out") from None
        if not pretrained:
            return plain
    if not pretrained:
        return make()
    _give_up_early_without_network()
    try:
        return make(pretrained=True)
    # The hub's client has its own error classes for each way of not answering.
    except Exception as problem:
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise ValueError(
            f"encoder_weights: no imagenet weights of {name} ({reason:.300}). "
            "Without a network: --encoder_weights FILE (.pth or .safetensors), or --encoder_weights none"
        ) from None


def _give_up_early_without_network() -> None:
    """The hub's client retries for most of a minute; without a route to the hub only its cache is asked."""
    import huggingface_hub.constants

    if urllib.request.getproxies():
        return  # then the client may get through where this test does not
    hub = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=5).close()
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True


ENCODERS: dict[str, Callable[[int], nn.Module]] = {  # name -> builder(finest_stride)
    "mobilenetv2_paper": PaperMobileNetV2,
    "torchvision_mobilenetv3": TorchvisionMobileNetV3,
    "unet": UNetEncoder,
    "unet_512": partial(UNetEncoder, widths=(64, 128, 256, 512, 512)),  # usual with bilinear upsampling
}


def build_encoder(
    name: str,
    weights: str = "none",
    finest_stride: int = 4,
    cfg: str = "",
    own_boxes: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """An encoder that gives its features from `finest_stride` on; weights: imagenet | none | a file.

    Of `darknet`, cfg is the text of its .cfg file; with own_boxes the maps of its [yolo] layers follow the features.
    Raises ValueError or FileNotFoundError in one line, also when timm's download is out of reach.
    """
    if drop_path and (name == DARKNET or name in ENCODERS):
        raise ValueError(f"drop_path: for timm's encoders, not for {name}")
    if name == DARKNET:
        encoder = build_darknet(cfg, finest_stride, own_boxes)
    elif name not in ENCODERS:
        encoder = TimmEncoder(name, weights == "imagenet", finest_stride, drop_path)
    else:
        encoder = ENCODERS[name](finest_stride)
    if weights == "imagenet" and hasattr(encoder, "no_download"):
        raise ValueError(f"encoder_weights: {name} has none to download; {encoder.no_download}")
    if weights not in ("imagenet", "none"):
        encoder.load_file(Path(weights))
    return encoder


def read_weights(path: Path) -> dict[str, Tensor]:
    """A .pth or .safetensors file of named tensors, without code. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"encoder_weights: {path}: no such file; allowed: imagenet, none, or a file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as problem:
            raise ValueError(f"{path}: not readable as safetensors ({problem})") from None
    content = read_torch_file(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected named tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_matching(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads every tensor of `module` from `weights`, which may hold more (a classifier). Raises ValueError."""
    chosen = check_weights(weights, module.state_dict(), path)
    module.load_state_dict(chosen, strict=False)
