"""What people would take instead: two networks, one for classes and one for metres. Run by benchmark.py.

Their weights are random, which costs the same time as trained ones. The accuracy in the table is what their authors
publish, on data of theirs.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.latency import Reference
from benchmarks.timing import (
    Options,
    PeakMemory,
    in_new_process,
    in_turn,
    median_and_range,
    print_table,
    random_network,
)
from config import Config
from deploy.graph_backends import openvino_core
from deploy.predictor import Predictor
from geometry import resize_image
from model import Network, count_cost, load_network
from networks.checkpoints import SHIPPED
from utils import require, setup_cpu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which all of them take
PATCH = 14  # pixels of a side, of Depth Anything's encoder
PAPER = "mobilenetv2_paper"
PAPER_ACCURACY = "42.0 % mIoU and 0.56 m on NYUDv2, by a trained one"
PUBLIC, OURS = "the paper's network as public code runs it", "the paper's network here"
CLASSES = 40
Size = tuple[int, int]


# ---------------------------------------------------------------------------------------------- their networks


def segformer() -> nn.Module:
    """SegFormer-B0 (Xie et al., arXiv 2105.15203): images -> (B, classes, h/4, w/4)."""
    require("transformers")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return Answer(SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES)), "logits")


def depth_anything() -> nn.Module:
    """Depth Anything V2 Small (Yang et al., arXiv 2406.09414): images -> (B, 1, h, w)."""
    require("transformers")
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    return Answer(DepthAnythingForDepthEstimation(DepthAnythingConfig()), "predicted_depth")


def deeplab() -> nn.Module:
    """torchvision's DeepLabV3 with MobileNetV3-Large: images -> (B, classes, h, w)."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return Answer(deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES), "out")


class Answer(nn.Module):
    """A network, of whose outputs one is taken, as (B, channels, h, w)."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, images: Tensor) -> Tensor:
        found = self.network(images)[self.output]
        return found if found.ndim == 4 else found[:, None]


class MidasLike(nn.Module):
    """A network of the size of MiDaS v2.1 small (Ranftl et al., arXiv 1907.01341): EfficientNet-Lite3, the maps of four
    strides added up from coarse to fine by residual blocks of 3x3 convolutions, one value for each second pixel."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        import timm

        self.encoder = timm.create_model("tf_efficientnet_lite3", features_only=True, out_indices=(1, 2, 3, 4))
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in self.encoder.feature_info.channels()
        )
        self.before, self.after = (nn.ModuleList(Residual(width) for _ in self.laterals) for _ in range(2))
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(width // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        maps = [lateral(item) for lateral, item in zip(self.laterals, self.encoder(images), strict=True)]
        x = self.after[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            x = F.interpolate(x, size=maps[level].shape[-2:], mode="bilinear", align_corners=True)
            x = self.after[level](x + self.before[level](maps[level]))
        return self.head(x)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())


def square(side: int, height: int, width: int) -> Size:
    return side, side


def shorter_side(side: int, multiple: int, height: int, width: int) -> Size:
    """(height, width) of which the shorter is `side`, in whole multiples."""
    scale = side / min(height, width)
    return tuple(round(length * scale / multiple) * multiple for length in (height, width))


@dataclass(frozen=True)
class Peer:
    """A network of others. size: (height, width) of a picture -> that at which its authors show it pictures."""

    make: Callable[[], nn.Module]
    size: Callable[[int, int], Size]
    gives: str  # classes | metres
    published: str


PEERS = {
    "SegFormer-B0": Peer(segformer, partial(square, 512), "classes", "of ADE20K: in arXiv 2105.15203"),
    "Depth Anything V2 Small": Peer(
        depth_anything, partial(shorter_side, 518, PATCH), "metres", "up to scale and shift: in arXiv 2406.09414"
    ),
    "DeepLabV3, MobileNetV3-Large": Peer(
        deeplab, partial(shorter_side, 520, 1), "classes", "60.3 % mIoU on COCO, VOC's 21 classes"
    ),
    "like MiDaS small": Peer(MidasLike, partial(square, 256), "metres", ""),
}
PAIRS = (("SegFormer-B0", "Depth Anything V2 Small"), ("DeepLabV3, MobileNetV3-Large", "like MiDaS small"))


# ---------------------------------------------------------------------------------------------- from pixels to values


class Whole(nn.Module):
    """(1, H, W, 3) uint8 of the network's size -> class ids (H, W) uint8 or values (H, W) at the picture's size."""

    def __init__(self, peer: Peer, size: Size) -> None:
        super().__init__()
        self.network, self.gives, self.size = peer.make().eval(), peer.gives, size
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        found = F.interpolate(self.network(images), self.size, mode="bilinear", align_corners=False)[0]
        return found.argmax(0).to(torch.uint8) if self.gives == "classes" else found[0]


class InEager:
    """In PyTorch, fp32, channels_last."""

    name = "eager, fp32"

    def __init__(self, peer: Peer, size: Size) -> None:
        self.peer, self.size = peer, size
        self.whole = Whole(peer, size).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.run(np.ascontiguousarray(resize_image(image, *self.peer.size(*self.size)))[None])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        return self.whole(torch.from_numpy(pixels)).numpy()


class InOpenVino(InEager):
    """In OpenVINO, in the precision that it takes by itself; all of it in the graph but the resizing."""

    name = "OpenVINO"

    def __init__(self, peer: Peer, size: Size) -> None:
        super().__init__(peer, size)
        import openvino

        shape = [1, *peer.size(*size), 3]
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing sizes that do not change here
            model = openvino.convert_model(
                self.whole, example_input=torch.zeros(shape, dtype=torch.uint8), input=[shape]
            )
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.request = openvino_core().compile_model(model, "CPU", options).create_infer_request()

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self.request.infer([pixels], share_inputs=True)
        return self.request.get_output_tensor(0).data.copy()


WAYS = (InEager, InOpenVino)  # the last is the fastest of all of them


# ---------------------------------------------------------------------------------------------- the table


def measure_peers(options: Options) -> dict[str, object]:
    """Ours beside them, all in turn. Raises ValueError without a package that is needed."""
    if options.device.type != "cpu":
        raise ValueError(f"peers are measured on the CPU, not on {options.device}: --device cpu")
    require("openvino", "transformers")
    size, image = (options.height, options.width), options.picture()
    openers: dict[str, Open] = {}
    costs: dict[str, tuple[int, int]] = {}
    for name, peer in PEERS.items():
        cost = cost_of(peer, size)
        for way in WAYS:
            openers[f"{name}, {way.name}"], costs[f"{name}, {way.name}"] = partial(way, peer, size), cost
    cost = count_cost(paper(options), *size)
    for name, opener in {PUBLIC: open_public, OURS: open_ours}.items():
        openers[name], costs[name] = partial(opener, options), cost
    if SHIPPED.is_file():
        openers[SHIPPED.name] = partial(open_shipped, options)
        costs[SHIPPED.name] = count_cost(load_network(SHIPPED), *open_shipped(options).backend.input_size(*size))
    memory = {row: in_new_process(memory_mb, opener, image, options.threads) for row, opener in openers.items()}
    calls = {row: partial(opener(), image) for row, opener in openers.items()}
    for pair in PAIRS:
        row, parts = f"**{' + '.join(pair)}**, {WAYS[-1].name}", [f"{name}, {WAYS[-1].name}" for name in pair]
        calls[row] = partial(in_sequence, [calls[part] for part in parts])
        costs[row] = tuple(map(sum, zip(*(costs[part] for part in parts), strict=True)))
        memory[row] = sum(memory[part] for part in parts)
    times = in_turn(calls, options.device, options.repeats)
    print_peers(times, costs, memory, size, options.repeats)
    return {"ms": times, "cost": costs, "memory_mb": memory}


Predict = Callable[[np.ndarray], object]
Open = Callable[[], Predict]


def in_sequence(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def cost_of(peer: Peer, size: Size) -> tuple[int, int]:
    """(parameters, multiply-adds of convolutions and matrix products)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = peer.make().eval()
    # The counter knows attention on a CPU only as the matrix products that it is made of.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, *peer.size(*size)))
    return sum(item.numel() for item in network.parameters()), counter.get_total_flops() // 2


def memory_mb(opener: Open, image: np.ndarray, threads: int) -> float:
    """By how much the memory of a new process rises for opening it and for a first picture."""
    setup_cpu(threads)
    with PeakMemory(torch.device("cpu")) as memory:
        opener()(image)
    return memory.mb


def paper(options: Options) -> Network:
    return options.network(partial(random_network, Config(encoder=PAPER, encoder_weights="none"), CLASSES))


def open_public(options: Options) -> Predict:
    return Reference(paper(options))


def open_ours(options: Options) -> Predict:
    return options.predictor(paper(options))


def open_shipped(options: Options) -> Predictor:
    return options.predictor(SHIPPED)


def print_peers(
    times: Mapping[str, Sequence[float]], costs: Mapping[str, tuple[int, int]], memory: Mapping[str, float],
    size: Size, repeats: int,
) -> None:  # fmt: skip
    base, rows = statistics.median(times[OURS]), []
    for row, each in times.items():
        parameters, operations = costs[row]
        rows.append([
            row, f"{parameters / 1e6:.1f} M", f"{operations / 1e9:.1f} G", f"{memory[row]:.0f}",
            median_and_range(each, 1), f"{statistics.median(each) / base:.1f}", published(row),
        ])  # fmt: skip
    print_table(
        f"A picture of {size[1]}x{size[0]}: from decoded uint8 pixels to values at full size, {CLASSES} classes; "
        "networks of others at the size that their authors take, with random weights.",
        ["network", "parameters", "multiply-adds", "memory MB", "ms", "times ours", "published accuracy"],
        rows, repeats,
    )  # fmt: skip


def published(row: str) -> str:
    """What the authors of a row's network publish."""
    known = {name: peer.published for name, peer in PEERS.items()} | dict.fromkeys((PUBLIC, OURS), PAPER_ACCURACY)
    return next((text for name, text in known.items() if row.startswith(name)), "")
