"""The network as a graph for other programs: what goes in, what comes out, and what a file says about itself."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from config import Config, make_config, plain, read_json
from model import Network
from tasks import Task, tasks_from_plain, tasks_to_plain

INPUT = "image"
METADATA_KEY = "joint-segmentation-depth"
METADATA_VERSION = 1
LEAST = 33  # pixels of an open side: the coarsest map then has 2, and torch.export takes a size of 1 for a constant
OPTIONAL = {  # package -> what brings it
    "av": "requirements-video.txt",
    "open3d": "requirements-3d.txt",
    "gradio": "requirements-app.txt",
    "plotly": "requirements-app.txt",
    "playwright": "requirements-dev.txt",
}
SYSTEM = "on Debian: apt install libusb-1.0-0 libgl1 libegl1"  # for open3d


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, and what its outputs mean."""

    tasks: Mapping[str, Task]  # in the order of the outputs, which have their names
    config: Config  # of the training: the size at which the network sees images
    domains: Mapping[str, Mapping[str, Task]] = dataclasses.field(default_factory=dict)
    bytes_in: bool = True  # image: (B, H, W, 3) uint8 RGB; else (B, 3, H, W) float32, (x / 255 - mean) / std
    units_out: bool = False  # predictions at the size of the image; else raw outputs of the heads
    size: tuple[int, int] | None = None  # height and width of the image; None = any
    batch: int = 0  # images in a call; 0 = any number
    int8: bool = False  # quantised
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def to_json(self) -> str:
        return json.dumps({
            "version": METADATA_VERSION, "tasks": tasks_to_plain(self.tasks), "config": plain(self.config),
            "domains": {name: tasks_to_plain(tasks) for name, tasks in self.domains.items()},
            "bytes_in": self.bytes_in, "units_out": self.units_out, "size": self.size, "batch": self.batch,
            "int8": self.int8, "mean": self.mean, "std": self.std,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str, where: str) -> Signature:
        """Reads `to_json` back. Raises ValueError that names the file."""
        try:
            content = read_json(text)
            version = content.pop("version")
            if version != METADATA_VERSION:
                raise ValueError(f"its metadata are of version {version!r}, this code reads {METADATA_VERSION}")
            content["tasks"] = tasks_from_plain(content["tasks"])
            content["config"] = make_config(content["config"], where)
            content["domains"] = {name: tasks_from_plain(tasks) for name, tasks in content["domains"].items()}
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise ValueError(f"{where}: its metadata do not fit this code ({problem})") from None


class Graph(nn.Module):
    """A network with pre-processing and post-processing as its signature says; outputs in the order of the tasks."""

    def __init__(self, network: Network, signature: Signature) -> None:
        super().__init__()
        self.network, self.signature = network, signature

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.signature.bytes_in:
            image = image.permute(0, 3, 1, 2).float() / 255
            image = (image - self.network.mean) / self.network.std
        size = image.shape[-2:]
        raws = self.network.heads_of(self.network.decoder(self.network.encoder(image)))
        outputs = [task.select(raws[name]) for name, task in self.signature.tasks.items()]
        if self.signature.units_out:
            tasks = self.signature.tasks.values()
            outputs = [task.decode(raw, size) for task, raw in zip(tasks, outputs, strict=True)]
        return tuple(outputs)


def sign(
    network: Network,
    tasks: Mapping[str, Task],
    bytes_in: bool = True,
    units_out: bool = False,
    size: tuple[int, int] | None = None,
    batch: int = 0,
    int8: bool = False,
) -> Signature:
    """The signature of a graph of the network that gives these tasks: its own, or those of one of its data sets."""
    domains = network.domains if tasks == network.tasks and not units_out else {}
    mean, std = (tuple(value.flatten().tolist()) for value in (network.mean, network.std))
    return Signature(tasks, network.config, domains, bytes_in, units_out, size, batch, int8, mean, std)


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


# ---------------------------------------------------------------------------------------------- conversion


def require(*packages: str) -> None:
    """Raises ValueError that says what to install."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            file = OPTIONAL.get(package, "requirements-deploy.txt")
            raise ValueError(f"{package} is not installed: pip install -r {file}") from None
        except ImportError as problem:  # it is there, but a library of the system is not
            hint = f"; {SYSTEM}" if package == "open3d" else ""
            raise ValueError(f"{package} does not load: {problem}{hint}") from None


def network_input(images: Tensor, signature: Signature) -> np.ndarray:
    """images (B, 3, H, W) uint8 -> what the graph takes."""
    if signature.bytes_in:
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (signature.mean, signature.std))
    return np.ascontiguousarray(((images.cpu().float() / 255 - mean) / std).numpy())


def example_image(signature: Signature) -> Tensor:
    height, width = signature.size or (96, 128)
    batch = signature.batch or 2  # an exporter takes a size of 1 for a constant
    shape = (batch, height, width, 3) if signature.bytes_in else (batch, 3, height, width)
    return torch.zeros(shape, dtype=torch.uint8 if signature.bytes_in else torch.float32)


def dynamic_shapes(signature: Signature) -> tuple[dict[int, torch.export.Dim]] | None:
    """Which sides of the input torch.export must keep open."""
    height, width = (1, 2) if signature.bytes_in else (2, 3)
    open_sides = {} if signature.batch else {0: torch.export.Dim("batch", min=1)}
    if signature.size is None:
        open_sides |= {height: torch.export.Dim("height", min=LEAST), width: torch.export.Dim("width", min=LEAST)}
    return (open_sides,) if open_sides else None


def to_onnx(network: Network, signature: Signature) -> object:
    """The graph as an onnx.ModelProto with its signature in the metadata."""
    require("onnx", "onnxscript")
    graph, example = Graph(simplified(network).cpu().float(), signature).eval(), example_image(signature)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, (example,), dynamo=True, input_names=[INPUT], output_names=list(signature.tasks),
            dynamic_shapes=dynamic_shapes(signature), verbose=False,
        )  # fmt: skip
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, signature.to_json()
    return model


def to_openvino(network: Network, signature: Signature) -> object:
    """The graph as an openvino.Model with its signature in the metadata."""
    require("openvino")
    import openvino

    graph, example = Graph(simplified(network).cpu().float(), signature).eval(), example_image(signature)
    batch, (height, width) = signature.batch or -1, signature.size or (-1, -1)
    shape = [batch, height, width, 3] if signature.bytes_in else [batch, 3, height, width]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(graph, example_input=example, input=[(INPUT, shape)])
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, signature.tasks, strict=True):
        output.set_names({name})
    model.set_rt_info(signature.to_json(), METADATA_KEY)
    return model
