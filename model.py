"""The network: an encoder, a decoder, one small head for each task.

Decoder and heads follow Nekrasov et al., arXiv 1809.04766 and 1810.03272. With the encoder `mobilenetv2_paper`
and 40 classes + depth it is the network of that paper, 3,070,057 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from config import Config, check_darknet, make_config
from geometry import LEAST_SIDE, resize_raw
from networks.checkpoints import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_VERSION,
    check_plain,
    check_weights,
    read_checkpoint,
    read_torch_file,
)
from networks.darknet_files import read_darknet
from networks.decoders import DECODERS, build_decoder
from networks.encoders import ShapesOnly, build_encoder, read_weights
from networks.other_checkpoints import read_others
from tasks import CLASS_LISTS, OTHER_NAMES, Task, check_parts, completed, decoded, tasks_from_plain
from tasks.fields import shown
from user_input.text_files import read_json
from user_input.values import near

# ---------------------------------------------------------------------------------------------- network


class Network(nn.Module):
    """Images (B, 3, H, W), uint8 or floats in 0..1, RGB -> {task: raw output}; of a task with a value for each pixel
    (B, channels, h, w), where h and w are those of the image over `decoder.stride`, rounded up.

    It holds its tasks, those of each data set that it was trained on (`domains`) and the settings of its training.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Mapping[str, Task],
        config: Config,
        domains: Mapping[str, Mapping[str, Task]] | None = None,
    ) -> None:
        super().__init__()
        self.tasks, self.config = dict(tasks), config
        self.domains = {name: dict(own) for name, own in (domains or {}).items()}
        self.cameras: dict[str, dict[str, float]] = {}  # of the training, see `cameras_from_plain`
        self.encoder = encoder
        self.decoder = build_decoder(config, encoder.channels, encoder.strides, getattr(encoder, "own_maps", 0))
        # {task: indices of the decoder's maps that its head reads}
        self.levels = {name: tuple(task.levels(self.decoder.strides)) for name, task in tasks.items()}
        self.used = sorted({level for levels in self.levels.values() for level in levels})
        self.heads = nn.ModuleDict()
        for name, task in tasks.items():
            channels = [self.decoder.channels[level] for level in self.levels[name]]
            self.heads[name] = task.head(channels, [self.decoder.strides[i] for i in self.levels[name]], config)
        parts = (encoder, *self.heads.values())
        self.multiple = math.lcm(*(getattr(part, "multiple", 1) for part in parts))
        self.stretch, self.fill = getattr(encoder, "stretch", None), getattr(encoder, "fill", 0.0)
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)
        for part in (self.decoder, *self.heads.values()):
            part.initialise()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.heads_of(self.shared(images), images.shape[-2:])

    def shared(self, images: Tensor) -> list[Tensor]:
        """Images -> the maps (B, width, h, w) that the heads read, the finest first."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = (images - self.mean) / self.std
        if min(images.shape[-2:]) < LEAST_SIDE:
            images = resize_raw(images, tuple(max(side, LEAST_SIDE) for side in images.shape[-2:]))  # in fp32
        return self.maps(images.to(next(self.encoder.parameters()).dtype))

    def maps(self, normalized: Tensor) -> list[Tensor]:
        """Images, normalized by the encoder's mean and std -> the maps that the heads read."""
        maps = self.decoder(self.encoder(self.whole_cells(normalized)))
        # Finer maps are computed from coarser ones. With an alias of each, the gradient by a map is that of the heads
        # that read it, and no other map's.
        return [maps[level].view_as(maps[level]) if len(self.used) > 1 else maps[level] for level in self.used]

    def whole_cells(self, images: Tensor) -> Tensor:
        """Images as an encoder takes them whose maps must not be rounded up: stretched to its one size, or padded at
        the right and bottom to multiples of a number of pixels."""
        if self.stretch:
            return resize_raw(images, self.stretch).to(images.dtype)
        if self.multiple == 1:
            return images
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple), value=self.fill)

    @torch.inference_mode()
    def predict(
        self, images: Tensor, sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task] | None = None
    ) -> dict[str, Tensor]:
        """images (B, 3, H, W) -> {task: prediction (B, ...) at sizes[task]}.

        `tasks` are those of a data set (one of `domains`), by default the network's, with all classes.
        """
        return decode(self(images), sizes, self.tasks if tasks is None else tasks)

    def heads_of(
        self,
        shared: Sequence[Tensor],
        size: Sequence[int] | None = None,
        targets: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The maps of `shared` -> {task: raw output}, for images of this size; None: no side of theirs was padded.

        targets: while it trains, of the tasks whose heads need them (`needs_target`), for all of the images.
        """
        if self.training and self.config.dropout:
            shared = [F.dropout2d(item, self.config.dropout) for item in shared]  # whole channels
        maps = dict(zip(self.used, shared, strict=True))
        raws = {}
        for name, head in self.heads.items():
            own = [maps[level] for level in self.levels[name]]
            if getattr(head, "needs_target", False):
                raws[name] = head(*own, size=self.sides(size), target=(targets or {}).get(name))
                continue
            raws[name] = head(*own)
            if size is not None and not self.stretch and self.multiple != 1:
                sides = self.sides(size)
                padded = [side + -side % self.multiple for side in sides]
                raws[name] = self.tasks[name].crop(raws[name], sides, padded)
        return raws

    def sides(self, size: Sequence[int]) -> list[int]:
        """Height and width of images of this size before they are padded."""
        return [max(side, LEAST_SIDE) if isinstance(side, int) else side for side in self.stretch or size]


def decode(
    raws: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task]
) -> dict[str, Tensor]:
    """{task: raw output of the head that data sets share} -> {task: prediction at sizes[task]}."""
    return completed(decoded(raws, sizes, tasks), tasks)


def tasks_of(network: Network, domain: str, path: Path) -> dict[str, Task]:
    """The tasks of the data set `domain` of the training, or for "" those of the heads that all data sets share.

    Raises ValueError, which names the checkpoint `path`.
    """
    if not domain:
        return network.tasks
    if domain not in network.domains:
        known = ", ".join(network.domains) or "no data sets"
        raise ValueError(f"--domain: {path} does not know {domain!r}{near(domain, network.domains)}; it has: {known}")
    return {**network.tasks, **network.domains[domain]}  # what was kept from another network is in no data set


def mixed_domains(network: Network, domain: str) -> str:
    """A warning for users who name no data set of a network whose data sets have class lists of their own; '' = none.

    Outputs of different class lists were trained apart: which of them is largest says little.
    """
    views = network.domains.values()
    mixed = [name for name in network.tasks if any(name in own and own[name].is_part for own in views)]
    if domain or not mixed:
        return ""
    return (
        f"{', '.join(mixed)}: the classes of {' and '.join(network.domains)} were trained apart and compete here; "
        f"--domain takes those of one, such as --domain {next(iter(network.domains))}"
    )


def camera_of(network: Network, domain: str) -> dict[str, float]:
    """The camera of the training's frames, {"focal_px", "long_side"}: of the data set `domain`, for "" that of all.

    {} = not known, or the data sets have different ones. Frames of other sizes, but of one field of view, are of one.
    """
    if domain in network.cameras:
        return network.cameras[domain]
    first, *_ = cameras = list(network.cameras.values()) or [{}]
    views = [camera["focal_px"] / camera["long_side"] if camera else 0.0 for camera in cameras]
    return first if all(math.isclose(view, views[0], rel_tol=1e-3) for view in views) else {}


def cameras_from_plain(states: object) -> dict[str, dict[str, float]]:
    """{data set: {"focal_px": focal length, "long_side": longer side of its frames, both in pixels}, {} = not known}.

    A data set without labels that depend on the camera is not in it. Raises ValueError for anything else.
    """
    if not isinstance(states, Mapping):
        raise ValueError(f"cameras is {shown(states)}; it takes a table of data sets")
    for name, camera in states.items():
        known = isinstance(name, str) and isinstance(camera, Mapping) and camera.keys() == {"focal_px", "long_side"}
        if camera != {} and not (known and all(type(x) in (int, float) and 0 < x <= 1e6 for x in camera.values())):
            raise ValueError(f"cameras: {shown(name)} takes focal_px and long_side, above 0, at most 1000000 pixels")
    return {name: dict(camera) for name, camera in states.items()}


def build_network(
    config: Config,
    tasks: Mapping[str, Task],
    domains: Mapping[str, Mapping[str, Task]] | None = None,
    load_encoder: bool = True,
) -> Network:
    """The network that `config` describes; `load_encoder=False` when the weights come from a checkpoint."""
    weights = config.encoder_weights if load_encoder else "none"
    check_darknet(config)
    finest = DECODERS[config.decoder].finest_stride
    own_boxes = config.box_layers == "yolo"
    encoder = build_encoder(config.encoder, weights, finest, config.darknet_cfg, own_boxes, config.drop_path)
    return Network(encoder, tasks, config, domains)


def freeze_batch_norm(network: nn.Module) -> None:
    """Freezes statistics, scales and offsets of batch norm. Call it after each `.train()`, which undoes it."""
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


def load_network(path: str | Path, cfg: str | Path | None = None) -> Network:
    """A checkpoint of ours or of others (networks/other_checkpoints.py), or darknet's .weights -> network in eval mode
    on the CPU. cfg: the .cfg file of .weights, None = the one beside it; of the tutorial, None = its own network.

    Raises FileNotFoundError or ValueError in one line.
    """
    path, cfg = Path(path), Path(cfg) if cfg else None
    if path.suffix == ".weights":
        return network_from_checkpoint(read_darknet(path, cfg, CLASS_LISTS, OTHER_NAMES), path)
    if path.suffix != ".safetensors":
        content = read_others(read_torch_file(path), path, cfg, CLASS_LISTS, OTHER_NAMES)
        if content is not None:
            return network_from_checkpoint(content, path)
    if cfg:
        raise ValueError(f"--cfg is for a .weights file of darknet; {path} holds its settings")
    return network_from_checkpoint(
        read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path), path
    )


def read_safetensors(path: Path) -> dict[str, object]:
    """A file of export.py --format safetensors -> content of a checkpoint. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    weights = read_weights(path)
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(CHECKPOINT_FORMAT)
    if text is None:
        raise ValueError(f"{path}: not a file of export.py: it does not say what network its weights are for")
    try:
        content = read_json(text)
    except ValueError:
        content = {}
    if not {"version", "config", "tasks"} <= content.keys():
        raise ValueError(f"{path}: its settings are damaged")
    for name in ("config", "tasks", "domains", "cameras"):
        check_plain(content.get(name, {}), f"{path}: {name}")
    if (version := content["version"]) != CHECKPOINT_VERSION:
        raise ValueError(f"{path}: checkpoint version {version!r}, but this code reads {CHECKPOINT_VERSION}: update it")
    return {**content, "network": weights}


def network_from_checkpoint(content: Mapping[str, object], path: Path) -> Network:
    """The network of a checkpoint's content (`read_checkpoint`), in eval mode."""
    try:
        config = make_config(content["config"], str(path))
        tasks = tasks_from_plain(content["tasks"])
        domains = {name: tasks_from_plain(own) for name, own in content.get("domains", {}).items()}
        cameras = cameras_from_plain(content.get("cameras", {}))
        network = network_with(config, tasks, domains, content["network"], path)
        network.cameras = cameras
        return network
    except (AttributeError, TypeError) as problem:
        raise ValueError(f"{path}: its settings do not fit this code: {problem}") from None
    except ValueError as problem:
        if str(problem).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: its settings do not fit this code: {problem}") from None


def network_with(
    config: Config,
    tasks: Mapping[str, Task],
    domains: Mapping[str, Mapping[str, Task]],
    weights: object,
    path: Path,
) -> Network:
    """The network with these weights of a file, in eval mode. Raises ValueError.

    Shapes are compared before memory is taken: a file of some kilobytes may name the largest encoder.
    """
    check_parts(tasks, domains)
    with ShapesOnly():
        wanted = build_network(config, tasks, domains, load_encoder=False).state_dict()
    chosen = check_weights(weights, wanted, path)
    network = build_network(config, tasks, domains, load_encoder=False)
    network.load_state_dict(chosen, strict=False)
    return network.eval()


def predict_batch(
    network: Network,
    images: Tensor,
    sizes: Mapping[str, tuple[int, int]],
    mirror: bool = False,
    tasks: Mapping[str, Task] | None = None,
) -> dict[str, Tensor]:
    """images (B, 3, H, W) uint8 -> {task: prediction (B, ...) at sizes[task]}; with `mirror`, merged with that of the
    mirror image.

    `tasks` are those of a data set (one of `network.domains`), by default the network's, with all classes.
    """
    return predict_scales(network, {1.0: images}, sizes, mirror, tasks)


def predict_scales(
    network: Network,
    images: Mapping[float, Tensor],
    sizes: Mapping[str, tuple[int, int]],
    mirror: bool = False,
    tasks: Mapping[str, Task] | None = None,
) -> dict[str, Tensor]:
    """`predict_batch` of frames at several scales, {scale: (B, 3, H, W) uint8}: each task merges what it sees there.

    The pictures of a scale should be resized from the frames themselves, as the views of a training are: a network
    takes sharpness for distance.
    """
    tasks = network.tasks if tasks is None else tasks
    if tuple(images) == (1.0,) and not mirror:
        return network.predict(images[1.0], sizes, tasks)
    views: dict[str, list[tuple[Tensor, float, bool]]] = {name: [] for name in tasks}
    for scale, pixels in images.items():
        for flipped in (False, True) if mirror else (False,):
            raws = network(pixels.flip(-1) if flipped else pixels)
            for name, task in tasks.items():
                views[name].append((task.select(raws[name]), scale, flipped))
    return completed({name: task.merge(views[name], sizes[name]) for name, task in tasks.items()}, tasks)
