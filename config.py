"""The settings of a training run: edit the defaults here, or override them on the command line.

python train.py                                            # these defaults: the generated rooms, on a laptop
python train.py --config configs/nyudv2_resnet50.yaml      # a file of settings
python train.py --config FILE --batch_size 4 --crop 400,400
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from user_input.flags import Parser
from user_input.text_files import read_text, read_yaml
from user_input.values import convert, near


@dataclass(frozen=True)
class Config:
    # The defaults are those of the demo: small frames of generated rooms, minutes on a laptop. For real data start
    # from a file in configs/, or set at least long_side, crop, encoder_weights and epochs.

    # Data: folders (dataset/README.md describes them), each with its share of the training frames, whatever its
    # size: {dataset/camvid: 2, dataset/nyud: 1}, or a list for equal shares. The default one is generated when missing.
    data: dict[str, float] = field(default_factory=lambda: {"dataset/rooms": 1.0})
    merge_classes: bool = False  # classes of one name in several data sets are one class
    teacher_labels: str = ""  # folder of teach.py's labels in each data set, for frames that lack one; "" = none
    # The factor on the loss of a frame with a teacher's label; one with a human's weighs 1. It does not depend on the
    # other frames of a step: a task with labels of a teacher alone has this factor on its whole loss.
    teacher_weight: float = 0.5
    teachers: tuple[str, ...] = ()  # checkpoints whose predictions for each view are learned beside its labels
    imitation: float = 1.0  # the factor on that loss
    train_split: str = "train"
    val_split: str = "val"
    long_side: int = 192  # the network sees frames with this many pixels on their longer side; 0 = as they are
    short_side: int = 0  # and at most this many on their shorter side; 0 = any
    cache: bool = True  # keep the decoded frames in memory
    workers: int = 2  # loader processes; 0 = load in the training process

    # Augmentation of the training frames. Image and labels move together.
    crop: tuple[int, int] = (144, 176)  # height, width
    zoom: tuple[float, float] = (0.9, 1.4)  # depth is divided by it
    mirror: bool = True
    rotation: float = 0.0  # degrees, drawn from -rotation .. rotation
    color: float = 0.5  # strength of brightness, contrast, saturation and hue changes; 0 = none

    # Tasks. One head each; a task without a weight here weighs 1.
    tasks: tuple[str, ...] = ("segmentation", "depth")
    loss_weights: dict[str, float] = field(default_factory=lambda: {"segmentation": 1.0, "depth": 1.0})
    task_weighting: str = "fixed"  # fixed | uncertainty | dwa | upgrad, see training/weighting.py
    segmentation_loss: str = "cross_entropy"  # cross_entropy (binary with two classes) | dice | cross_entropy+dice
    class_weights: str = "log"  # none | log: 1 / ln(1.02 + frequency), ENet (arXiv 1606.02147, section 5.2)
    label_smoothing: float = 0.0  # of the classes' cross-entropy: this share of a pixel's label goes to all classes
    depth_activation: str = "softplus"  # softplus | exp | abs: from the head's raw output to metres
    depth_loss: str = "berhu"  # berhu | l1 | log (l1 of the logarithms), see loss.py
    depth_gradient: float = 0.0  # weight of the loss on depth's differences between neighbors; 0 = none
    # Of the head for boxes: light (5x5 within each channel, 1x1) | plain (3x3) | yolo: YOLOv3's, of the encoder darknet
    # | fasterrcnn: two stages, torchvision's, of the decoder fpn; _v2, _mobile, _mobile_320: as its published networks
    box_layers: str = "light"
    mask_layers: str = "maskrcnn"  # of the head for masks: maskrcnn | maskrcnn_v2, torchvision's
    loss_stride: int = 2  # compute the losses at every n-th pixel of each axis (other ones in each step): 1, 2 or 4

    # Network
    init: str = ""  # a checkpoint to start from: whatever fits, such as all but the head of other classes; "" = none
    # Tasks of `init`'s network that stay beside `tasks`, without labels and without training: boxes of a .weights file
    keep: tuple[str, ...] = ()
    # mobilenetv2_paper, any timm model with features at strides 4 to 32, unet, unet_512, darknet:FILE.cfg
    encoder: str = "resnet18"
    darknet_cfg: str = ""  # the text of the encoder darknet's .cfg file; darknet:FILE.cfg reads it
    encoder_weights: str = "none"  # imagenet (timm downloads them) | none | a .pth, .safetensors or .weights file
    # refinenet: light-weight, of the paper | unet | fpn: a feature pyramid | fpn_bn: one with batch norm | none: of
    # darknet's own boxes alone
    decoder: str = "refinenet"
    decoder_width: int = 256  # refinenet and fpn
    crp_stages: int = 4  # chained residual pooling, refinenet only
    context: str = "none"  # none | attention: at the coarsest stride, each place sees all others; refinenet only
    head: str = "conv"  # conv: 3x3, of the paper | separable: 3x3 for each channel, then 1x1
    # The probability that a training step leaves out the encoder's last residual block; from 0 for the first block it
    # grows linearly (stochastic depth, arXiv 1603.09382). timm's encoders only
    drop_path: float = 0.0
    dropout: float = 0.0  # share of the channels that the heads do not see in a training step
    unet_upsampling: str = "bilinear"  # transposed (as with the encoder unet) | bilinear (unet_512); unet only

    # Optimization
    epochs: int = 20
    batch_size: int = 4
    accumulate: int = 1  # batches of one optimizer step; together they hold frames for every task
    optimizer: str = "adamw"  # adamw | sgd
    lr_encoder: float = 1e-3
    lr_decoder: float = 1e-3
    momentum: float = 0.9  # sgd only
    weight_decay: float = 0.01
    schedule: str = "poly"  # poly (power 0.9) | cosine | constant, by step
    warmup_steps: int = 50
    clip_norm: float = 10.0  # 0 = off
    freeze_bn: bool = False  # keep the encoder's batch-norm statistics and scales as its weights have them
    freeze_encoder: bool = False  # train decoder and heads alone; the encoder stays bit for bit
    sync_bn: bool = False  # with several processes: batch norm over the frames of all of them; on GPUs only
    ema: float = 0.99  # decay of the averaged weights that are evaluated and kept; 0 = off

    # Machine
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    # auto | fp32 | bf16 | fp16. auto on a GPU: bf16, where it has none fp16; on a CPU with instructions for bf16
    # (avx512_bf16, amx_bf16): bf16 to train, fp32 to evaluate and predict; on other CPUs fp32
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    threads: int = 0  # CPU threads of the training process; 0 = torch's choice
    seed: int = 0

    # Reports and checkpoints
    best_metric: str = ""  # what best.pt follows: depth/rmse; with several data sets nyud/depth/rmse; "" = the first
    eval_every: int = 4  # epochs
    log_every: int = 20  # steps
    save_minutes: float = 5.0  # last.pt is also written inside long epochs; 0 = only after each epoch


TWO_STAGES = ("fasterrcnn", "fasterrcnn_v2", "fasterrcnn_mobile", "fasterrcnn_mobile_320")  # of box_layers
CHOICES = {
    "task_weighting": ("fixed", "uncertainty", "dwa", "upgrad"),
    "segmentation_loss": ("cross_entropy", "dice", "cross_entropy+dice"),
    "class_weights": ("none", "log"),
    "depth_activation": ("softplus", "exp", "abs"),
    "depth_loss": ("berhu", "l1", "log"),
    "box_layers": ("light", "plain", "yolo", *TWO_STAGES),
    "mask_layers": ("maskrcnn", "maskrcnn_v2"),
    "loss_stride": (1, 2, 4),
    "decoder": ("refinenet", "unet", "fpn", "fpn_bn", "none"),
    "context": ("none", "attention"),
    "head": ("conv", "separable"),
    "unet_upsampling": ("transposed", "bilinear"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("poly", "cosine", "constant"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
AT_LEAST = {
    "long_side": 0, "workers": 0, "rotation": 0, "color": 0, "decoder_width": 1, "crp_stages": 1, "epochs": 1,
    "batch_size": 1, "accumulate": 1, "lr_encoder": 0, "lr_decoder": 0, "momentum": 0, "weight_decay": 0,
    "warmup_steps": 0, "clip_norm": 0, "ema": 0, "threads": 0, "seed": 0, "eval_every": 1, "log_every": 1,
    "save_minutes": 0, "teacher_weight": 0, "imitation": 0, "label_smoothing": 0, "depth_gradient": 0, "dropout": 0,
    "drop_path": 0, "short_side": 0,
}  # fmt: skip
AT_MOST = {  # neither a slip of the finger nor a checkpoint of others may fill the memory or start 5000 processes
    "decoder_width": 2048, "crp_stages": 16, "long_side": 8192, "workers": 256, "threads": 1024, "rotation": 180,
    "color": 10, "epochs": 1_000_000, "batch_size": 65_536, "accumulate": 65_536, "momentum": 1, "teacher_weight": 100,
    "warmup_steps": 10**9, "eval_every": 10**9, "log_every": 10**9, "save_minutes": 10**6, "seed": 2**32 - 1,
    "label_smoothing": 0.9, "depth_gradient": 100, "dropout": 0.9, "drop_path": 0.9, "imitation": 100,
    "short_side": 8192,
}  # fmt: skip
LARGEST_CROP, LARGEST_ZOOM = 8192, 16.0
MOST_CFG_BYTES = 2**20  # of a .cfg file


def make_config(values: dict[str, object], where: str, base: Config | None = None) -> Config:
    """`base` (default: the defaults) with `values`, strings or plain values, converted to the fields' types.

    Raises ValueError that names `where`, the setting, what it got and what is allowed.
    """
    types = typing.get_type_hints(Config)
    for name in values:
        if name not in types:
            raise ValueError(f"{where}: unknown setting {name!r}{near(name, types)}")
    values = {name: _shares(value) if name == "data" else value for name, value in values.items()}
    converted = {name: convert(value, types[name], f"{where}: {name}") for name, value in values.items()}
    config = dataclasses.replace(base or Config(), **converted)
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            got = getattr(config, name)
            hint = near(str(got), map(str, allowed))
            raise ValueError(f"{where}: {name} is {got!r}; allowed: {', '.join(map(str, allowed))}{hint}")
    for name, least in AT_LEAST.items():
        if getattr(config, name) < least:
            raise ValueError(f"{where}: {name} is {getattr(config, name)}; it must be at least {least}")
    for name, most in AT_MOST.items():
        if getattr(config, name) > most:
            raise ValueError(f"{where}: {name} is {getattr(config, name)}; it must be at most {most}")
    if not 32 <= min(config.crop) <= max(config.crop) <= LARGEST_CROP:
        raise ValueError(
            f"{where}: crop is {config.crop}; height and width must be at least 32 and at most {LARGEST_CROP}"
        )
    if not 1 / LARGEST_ZOOM <= config.zoom[0] <= config.zoom[1] <= LARGEST_ZOOM:
        limits = f"{1 / LARGEST_ZOOM} <= least <= most <= {LARGEST_ZOOM:g}"
        raise ValueError(f"{where}: zoom is {config.zoom}; it takes least,most with {limits}")
    if config.ema >= 1:
        raise ValueError(f"{where}: ema is {config.ema}; it must be below 1")
    if not config.data:
        raise ValueError(f"{where}: data is empty; name at least one folder")
    for name, share in config.data.items():
        if share <= 0:
            raise ValueError(f"{where}: data: {name} has the share {share:g}; it must be above 0, or leave it out")
    if not config.tasks:
        raise ValueError(f"{where}: tasks is empty; name at least one")
    for name, weight in config.loss_weights.items():
        if weight < 0:
            raise ValueError(f"{where}: loss_weights: {name} is {weight:g}; it must be at least 0")
    return config


DARKNET = "darknet"  # the encoder whose layers a .cfg file describes


def with_darknet_file(config: Config) -> Config:
    """The settings with the text of the file that `encoder: darknet:FILE.cfg` names, so that a checkpoint holds it.

    Raises FileNotFoundError, or ValueError for settings of darknet with another encoder.
    """
    kind, colon, file = config.encoder.partition(":")
    if kind == DARKNET and colon:
        text = read_text(Path(file), MOST_CFG_BYTES).strip()  # as a checkpoint gives it back
        config = dataclasses.replace(config, encoder=DARKNET, darknet_cfg=text)
    check_darknet(config)
    return config


def check_darknet(config: Config) -> None:
    """Raises ValueError for settings of darknet with another encoder."""
    if config.encoder != DARKNET:
        for name, value in {"darknet_cfg": "", "box_layers": "yolo", "decoder": "none"}.items():
            if (getattr(config, name) == value) == bool(value):
                raise ValueError(f"{name} is {getattr(config, name)!r:.40}: for --encoder darknet:FILE.cfg alone")
    elif config.decoder == "none" and config.box_layers != "yolo":
        raise ValueError("decoder is 'none': for darknet's own boxes alone, --box_layers yolo")


def _shares(value: object) -> object:
    """`data` as it may be written (a folder, folder=share, or a list of these) -> {folder: share}, still text."""
    items = [item for item in value.split(",") if item.strip()] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        return value
    pairs = [item.rpartition("=") if "=" in item else (item, "=", "1") for item in items]
    return {folder.strip(): share for folder, _, share in pairs}


def plain(config: Config) -> dict[str, object]:
    """The settings as plain types, for checkpoints and YAML; `make_config` reads them back."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def add_settings(parser: Parser) -> None:
    """Gives `parser` a flag for every setting, and --config."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, see configs/")
    types = typing.get_type_hints(Config)
    for name, default in plain(Config()).items():
        optional_value = {"nargs": "?", "const": "true"} if types[name] is bool else {}
        choices = f"{' | '.join(map(str, CHOICES[name]))}; " if name in CHOICES else ""
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"{choices}default: {default!r}", **optional_value)


def settings_from(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings given as flags, as they stand on the command line."""
    names = [item.name for item in dataclasses.fields(Config)]
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def given_settings(arguments: argparse.Namespace) -> set[str]:
    """The names of the settings that --config's file or a flag sets."""
    in_file = read_yaml(Path(arguments.config)) if arguments.config else {}
    return {*in_file, *settings_from(arguments)}


def config_from(arguments: argparse.Namespace) -> Config:
    """The defaults, then --config's file, then the flags."""
    config = Config()
    if arguments.config:
        config = make_config(read_yaml(Path(arguments.config)), arguments.config)
    return with_darknet_file(make_config(settings_from(arguments), "command line", config))
