"""The settings of a training run: edit the defaults here, or override them on the command line.

python train.py                                            # these defaults: the generated rooms, on a laptop
python train.py --config configs/nyudv2_resnet50.yaml      # a file of settings
python train.py --config FILE --batch_size 4 --crop 400,400
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml


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
    train_split: str = "train"
    val_split: str = "val"
    long_side: int = 192  # the network sees frames with this many pixels on their longer side; 0 = as they are
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
    depth_activation: str = "softplus"  # softplus | exp | abs: from the head's raw output to metres
    loss_stride: int = 2  # compute the losses at every n-th pixel of each axis (other ones in each step): 1, 2 or 4

    # Network
    encoder: str = "resnet18"  # mobilenetv2_paper, any timm model with features at strides 4 to 32, unet, unet_512
    encoder_weights: str = "none"  # imagenet (timm downloads them) | none | a .pth or .safetensors file
    decoder: str = "refinenet"  # refinenet: light-weight, of the paper | unet
    decoder_width: int = 256  # refinenet only
    crp_stages: int = 4  # chained residual pooling, refinenet only
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
    sync_bn: bool = False  # with several processes: batch norm over the frames of all of them; on GPUs only
    ema: float = 0.99  # decay of the averaged weights that are evaluated and kept; 0 = off

    # Machine
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: str = "auto"  # auto | fp32 | bf16 | fp16; auto is bf16 on a GPU that has it, fp32 on a CPU
    channels_last: bool = True
    compile: bool = False
    threads: int = 0  # CPU threads of the training process; 0 = torch's choice
    seed: int = 0

    # Reports and checkpoints
    best_metric: str = ""  # what best.pt follows: depth/rmse; with several data sets nyud/depth/rmse; "" = the first
    eval_every: int = 4  # epochs
    log_every: int = 20  # steps
    save_minutes: float = 5.0  # last.pt is also written inside long epochs; 0 = only after each epoch


CHOICES = {
    "task_weighting": ("fixed", "uncertainty", "dwa", "upgrad"),
    "segmentation_loss": ("cross_entropy", "dice", "cross_entropy+dice"),
    "class_weights": ("none", "log"),
    "depth_activation": ("softplus", "exp", "abs"),
    "loss_stride": (1, 2, 4),
    "decoder": ("refinenet", "unet"),
    "unet_upsampling": ("transposed", "bilinear"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("poly", "cosine", "constant"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
MOST_YAML_BYTES = 2**20
AT_LEAST = {
    "long_side": 0, "workers": 0, "rotation": 0, "color": 0, "decoder_width": 1, "crp_stages": 1, "epochs": 1,
    "batch_size": 1, "accumulate": 1, "lr_encoder": 0, "lr_decoder": 0, "momentum": 0, "weight_decay": 0,
    "warmup_steps": 0, "clip_norm": 0, "ema": 0, "threads": 0, "seed": 0, "eval_every": 1, "log_every": 1,
    "save_minutes": 0, "teacher_weight": 0,
}  # fmt: skip
AT_MOST = {  # neither a slip of the finger nor a checkpoint of others may fill the memory or start 5000 processes
    "decoder_width": 2048, "crp_stages": 16, "long_side": 8192, "workers": 256, "threads": 1024, "rotation": 180,
    "color": 10, "epochs": 1_000_000, "batch_size": 65_536, "accumulate": 65_536, "momentum": 1, "teacher_weight": 100,
    "warmup_steps": 10**9, "eval_every": 10**9, "log_every": 10**9, "save_minutes": 10**6, "seed": 2**32 - 1,
}  # fmt: skip
LARGEST_CROP, LARGEST_ZOOM = 8192, 16.0


def near(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for a name that looks like a known one, else ''."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


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


def _shares(value: object) -> object:
    """`data` as it may be written (a folder, folder=share, or a list of these) -> {folder: share}, still text."""
    items = [item for item in value.split(",") if item.strip()] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        return value
    pairs = [item.rpartition("=") if "=" in item else (item, "=", "1") for item in items]
    return {folder.strip(): share for folder, _, share in pairs}


def convert(value: object, kind: type, where: str) -> object:
    """`value` as `kind`: str, int, float, bool, tuple[...] or dict[str, ...]. Raises ValueError at `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise ValueError(f"{where} is {value!r}; it takes a list")
        items = [item.strip() if isinstance(item, str) else item for item in items if item != ""]
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise ValueError(f"{where} is {value!r}; it takes {len(arguments)} values")
        return tuple(convert(item, arguments[0], where) for item in items)
    if origin is dict:
        if isinstance(value, str):
            pairs = [pair.partition("=") for pair in value.split(",") if pair]
            if not all(separator for _, separator, _ in pairs):
                raise ValueError(f"{where} is {value!r}; it takes name=value,name=value")
            value = {name.strip(): item for name, _, item in pairs}
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}; it takes names with values")
        return {name: convert(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"{where} is {value!r}; it takes one {kind.__name__}")
    text = str(value).strip()
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
        if text.lower() not in words and text != "0":
            raise ValueError(f"{where} is {value!r}; it takes true or false")
        return words.get(text.lower(), False)
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"{where} is {value!r}; it takes {_NAMES[kind]}") from None
    if kind is float and not math.isfinite(number):
        raise ValueError(f"{where} is {value!r}; it takes a finite number")
    return number


_NAMES = {int: "a whole number", float: "a number", str: "text"}


def plain(config: Config) -> dict[str, object]:
    """The settings as plain types, for checkpoints and YAML; `make_config` reads them back."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def read_json(text: str) -> dict[str, object]:
    """What json.dumps made of plain values, with tuples for the lists. Raises ValueError."""

    def tuples(value: object) -> object:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        content = json.loads(text, object_hook=lambda entry: {key: tuples(value) for key, value in entry.items()})
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is no table of names and values")
    return content


def read_yaml(path: Path) -> dict[str, object]:
    """A YAML file as nested dicts and lists whose leaves are all strings.

    The reader of a value converts it by the type that it wants, so that `1e-4` is a number, `off` a word where
    a word is wanted, and `010` ten. Tags and aliases are refused: nothing from a file is executed or multiplied.
    Raises FileNotFoundError, or ValueError with file and line.
    """
    return parse_yaml(read_text(path, MOST_YAML_BYTES), path)


def read_text(path: Path, most_bytes: int) -> str:
    """A UTF-8 text file. Raises FileNotFoundError for what is no regular file, such as a pipe or a device, which may
    have no end, and ValueError for more than `most_bytes` or another encoding; both name the file."""
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path}: more than {most_bytes:,} bytes, the most that is read of such a file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a UTF-8 text file ({problem.reason} at byte {problem.start:,})") from None


def parse_yaml(text: str, path: Path) -> dict[str, object]:
    """`read_yaml` of text that stands in the file, or shall stand there."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as problem:
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(problem).split())}") from None
    seen: set[int] = set()

    def build(node: yaml.Node) -> object:
        line = f"{path}:{node.start_mark.line + 1}"
        if id(node) in seen:
            raise ValueError(f"{line}: YAML aliases (*name) are not accepted")
        seen.add(id(node))
        if node.tag.rpartition(":")[2] not in ("str", "seq", "map"):
            raise ValueError(f"{line}: YAML tag {node.tag!r} is not accepted")
        if isinstance(node, yaml.ScalarNode):
            return node.value
        if isinstance(node, yaml.SequenceNode):
            return [build(item) for item in node.value]
        result: dict[str, object] = {}
        for key, item in node.value:
            name = build(key)
            if not isinstance(name, str) or name in result:
                raise ValueError(f"{line}: {name!r} is not a name, or stands twice")
            result[name] = build(item)
        return result

    values = {} if node is None else build(node)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected 'name: value' lines")
    return values


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ValueErrors of one line that name the nearest flag."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> argparse.Namespace:
        result, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise ValueError(f"unknown argument {unknown[0]!r}{near(unknown[0].partition('=')[0], flags)}")
        return result


def number(
    kind: type[int] | type[float],
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Callable[[str], int | float]:
    """An argparse type: a whole number (int) or a number (float) in a range; `above` and `below` leave out the end."""
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    allowed = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit))

    def read(text: str) -> int | float:
        try:
            value = convert(text, kind, "it")
        except ValueError:
            value = math.nan
        if not (least <= value <= most and above < value < below):
            raise argparse.ArgumentTypeError(f"got {text!r}; it takes {_NAMES[kind]}{', ' if allowed else ''}{allowed}")
        return value

    return read


positive_int = number(int, least=1)
fraction = number(float, least=0, most=1)


def width_and_height(least: int, most: int) -> Callable[[str], tuple[int, int]]:
    """An argparse type: WIDTHxHEIGHT in pixels, each in a range -> (height, width)."""

    def read(text: str) -> tuple[int, int]:
        sides = text.lower().split("x")
        try:
            width, height = (convert(side, int, "it") for side in sides)
        except ValueError:
            width = height = -1
        if not all(least <= side <= most for side in (width, height)):
            raise argparse.ArgumentTypeError(
                f"got {text!r}; it takes WIDTHxHEIGHT, such as 640x480, each at least {least} and at most {most}"
            )
        return height, width

    return read


def refuse(parser: Parser, arguments: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Raises ValueError for the first of these options that is not at its default: it would do nothing."""
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            raise ValueError(f"--{name} {reason}")


def add_settings(parser: Parser) -> None:
    """Gives `parser` a flag for every setting, and --config."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, see configs/")
    types = typing.get_type_hints(Config)
    for name, default in plain(Config()).items():
        optional_value = {"nargs": "?", "const": "true"} if types[name] is bool else {}
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"default: {default!r}", **optional_value)


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
    return make_config(settings_from(arguments), "command line", config)
