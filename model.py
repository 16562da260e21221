"""The network: an encoder, the Light-Weight RefineNet decoder, one small head for each task.

Decoder and heads follow Nekrasov et al., arXiv 1809.04766 and 1810.03272. With the encoder `mobilenetv2_paper`
and 40 classes + depth it is the network of that paper, 3,070,057 parameters.
"""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, make_config, near
from tasks import CLASS_LISTS, Depth, Normals, Segmentation, Task, tasks_from_plain
from utils import CHECKPOINT_FORMAT, class_palette, read_checkpoint, read_torch_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ---------------------------------------------------------------------------------------------- encoders


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
    channels = (24, 32, 64, 96, 160, 320)
    strides = (4, 8, 16, 16, 32, 32)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = conv_bn_relu(3, 32, 3, stride=2)
        width = 32
        for number, (expansion, outputs, blocks, stride) in enumerate(self.STAGES, 2):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(InvertedResidual(width, outputs, expansion, stride if block == 0 else 1))
                width = outputs
            self.add_module(f"layer{number}", stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer2(self.layer1(x))
        features = []
        for number in range(3, 9):
            x = self.get_submodule(f"layer{number}")(x)
            features.append(x)
        return features

    def load_file(self, path: Path) -> None:
        load_matching(self, read_weights(path), path)


class TimmEncoder(nn.Module):
    """Any timm model whose features come at strides 4, 8, 16 and 32."""

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        import timm  # only needed for its encoders, and slow to import

        if not timm.is_model(name):
            known = [*ENCODERS, *timm.list_models()]
            raise ValueError(f"encoder: unknown name {name!r}{near(name, known)}; timm.list_models() lists them")
        try:
            info = timm.create_model(name, features_only=True).feature_info
            indices = [i for i, stride in enumerate(info.reduction()) if stride >= 4]
            self.strides = tuple(info.reduction()[i] for i in indices)
        except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError):
            self.strides = ()
        if self.strides != (4, 8, 16, 32):
            raise ValueError(f"encoder: {name} has no features at strides 4, 8, 16 and 32, which the decoder needs")
        if pretrained:
            _give_up_early_without_network()
        try:
            self.body = timm.create_model(name, features_only=True, out_indices=indices, pretrained=pretrained)
        # The hub's client has its own error classes for each way of not answering.
        except Exception as problem:
            raise ValueError(
                f"encoder_weights: imagenet weights of {name} could not be downloaded ({type(problem).__name__}). "
                "Without a network: --encoder_weights FILE (.pth or .safetensors), or --encoder_weights none"
            ) from None
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


ENCODERS: dict[str, Callable[[], nn.Module]] = {"mobilenetv2_paper": PaperMobileNetV2}


def build_encoder(name: str, weights: str = "none") -> nn.Module:
    """An encoder with `channels`, `strides`, `mean`, `std`; weights: imagenet | none | a file.

    Raises ValueError or FileNotFoundError in one line, also when timm's download is out of reach.
    """
    if name not in ENCODERS:
        encoder = TimmEncoder(name, pretrained=weights == "imagenet")
    elif weights == "imagenet":
        raise ValueError(
            f"encoder_weights: {name} has none to download; give the file mobilenetv2-e6e8dd43.pth of the public "
            "NYUDv2 archive (dataset/README.md), or use the encoder mobilenetv2_100"
        )
    else:
        encoder = ENCODERS[name]()
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
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected named tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_matching(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads every tensor of `module` from `weights`, which may hold more (a classifier). Raises ValueError."""
    wanted = module.state_dict()
    # Counters of batch norm are absent in weights from before torch 0.4.1 and of no use here.
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(wanted)} tensors of this network are not in it, e.g. {missing[0]}"
        )
    for name, tensor in wanted.items():
        if name in weights and weights[name].shape != tensor.shape:
            got, need = tuple(weights[name].shape), tuple(tensor.shape)
            raise ValueError(f"{path}: {name} has shape {got}, this network needs {need}")
    module.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


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
        return load_published(content["state_dict"], path)
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


def load_published(weights: object, path: Path) -> Network:
    """The `state_dict` of a published .ckpt (repository DrSleep/multi-task-refinenet) -> network.

    Its outputs are used as the published code does: cubic upsampling, |depth| in metres, no resizing of the image.
    """
    if not isinstance(weights, dict) or not {"segm.weight", "depth.weight"} <= {
        str(name).removeprefix("module.") for name in weights
    }:
        raise ValueError(f"{path}: neither a checkpoint of this project nor one of the paper's authors")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    classes = len(weights["segm.weight"])
    nyu, kitti = CLASS_LISTS["nyu40"], tuple(f"kitti_{number}" for number in range(6))
    known = {40: nyu, 6: kitti, 46: nyu + kitti}
    names = known.get(classes, tuple(f"class_{number}" for number in range(classes)))
    # Colour index: class + 1 on NYUDv2, class on KITTI.
    palette = class_palette()
    colors = palette[:classes] if classes == 6 else palette[1 : classes + 1]
    tasks: dict[str, Task] = {
        "segmentation": Segmentation("bicubic", names, tuple(tuple(color) for color in colors.tolist())),
        # Pictures end at 80 m on the road (KITTI's range), at 10 m in rooms.
        "depth": Depth("bicubic", max_m=80.0 if classes == 6 else 10.0, activation="abs"),
    }
    if "normal.weight" in weights:
        tasks["normals"] = Normals("bicubic")
    network = Network(PaperMobileNetV2(), tasks, Config(encoder="mobilenetv2_paper", long_side=0, tasks=tuple(tasks)))
    renamed = {published_name(name): value for name, value in weights.items()}
    load_matching(network, renamed, path)
    return network.eval()


def published_name(name: str) -> str:
    """The name in `Network` of a tensor of the authors' checkpoints."""
    part, _, rest = name.partition(".")
    heads = {"segm": "segmentation", "depth": "depth", "normal": "normals"}
    if part.startswith("layer"):
        return f"encoder.{name}"
    if part.startswith("conv_adapt"):  # conv_adapt4 leaves the coarsest level, our adapt.0
        return f"decoder.adapt.{4 - int(part[-1])}.{rest}"
    if part.startswith("conv"):  # conv3 .. conv8 take layer3 .. layer8
        return f"decoder.laterals.{int(part[-1]) - 3}.{rest}"
    if part.startswith("crp"):  # crp4 is the coarsest; its stages are 0.1_outvar_dimred .. 0.4_outvar_dimred
        stage = int(rest.split(".")[1].partition("_")[0]) - 1
        return f"decoder.pooling.{4 - int(part[-1])}.convs.{stage}.weight"
    if part.removeprefix("pre_") in heads:
        return f"heads.{heads[part.removeprefix('pre_')]}.{0 if part.startswith('pre_') else 2}.{rest}"
    return name
