"""Darknet's .cfg files: text -> checked layers, each with what it reads and the shape of what it gives.

The syntax is that of pjreddie's and AlexeyAB's darknet (src/parser.c): sections in square brackets that may repeat,
`key=value` lines, blanks of no meaning. A layer or a setting that would change the result and is not known here is
refused by name and layer number; keys of the training are kept and not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from networks.darknet_layers import (
    IMAGE,
    Cfg,
    Convolution,
    Dropout,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    last_uses,
)  # fmt: skip
from networks.darknet_text import Section, sections_of, text_of
from user_input.values import near

MOST_FILTERS, MOST_KERNEL, MOST_SOURCES, MOST_ANCHORS = 16_384, 64, 64, 64
MOST_SIDE = 4096  # pixels of the input
MOST_WEIGHTS = 2**28  # numbers, 1 GiB
MOST_VALUES = 2**29  # of the maps that are needed at one time, 2 GiB, for an input of the file's size
MOST_CLASSES = 255


# ---------------------------------------------------------------------------------------------- layers

ACTIVATIONS = ("linear", "leaky", "logistic", "relu", "relu6", "elu", "tanh", "mish", "swish")
NAMES = {
    "convolutional": "convolutional", "conv": "convolutional", "maxpool": "maxpool", "max": "maxpool",
    "shortcut": "shortcut", "route": "route", "upsample": "upsample", "yolo": "yolo", "dropout": "dropout",
}  # fmt: skip


class Builder:
    """The layers read so far."""

    def __init__(self, height: int, width: int) -> None:
        self.size, self.layers = (height, width), []

    def at(self, number: int) -> tuple[int, int, tuple[int, int]]:
        """Channels, stride and size of a layer's map."""
        if number == IMAGE:
            return 3, 1, self.size
        layer = self.layers[number]
        return layer.channels, layer.stride, layer.size

    def sources(self, section: Section, key: str) -> tuple[int, ...]:
        """Layers as darknet counts them: below 0 from here backwards, else from the first."""
        number, found = len(self.layers), []
        for value in section.many(key, int, MOST_SOURCES):
            source = number + value if value < 0 else value
            if not 0 <= source < number:
                raise section.fail(
                    f"{key} names layer {source}; it takes one of the layers before it, 0 to {number - 1}"
                )
            found.append(source)
        return tuple(found)

    def same_size(self, section: Section, inputs: Sequence[int]) -> None:
        sizes = {self.at(item)[2] for item in inputs}
        if len(sizes) > 1:
            raise section.fail(f"its inputs have different sizes: {', '.join(f'{w}x{h}' for h, w in sorted(sizes))}")

    def shape(self, inputs: Sequence[int], **changes: object) -> dict[str, object]:
        """The fields of `Layer`, by default those of a map like the first input's."""
        channels, stride, size = self.at(inputs[0])
        before = sum(self.at(item)[0] for item in inputs)
        fields = {"number": len(self.layers), "inputs": tuple(inputs), "before": before}
        return {**fields, "channels": channels, "stride": stride, "size": size, **changes}

    def stepped(self, section: Section, before: int, made: Sequence[int], step: int) -> dict[str, object]:
        """Stride and size after a layer that takes each `step`-th place; `made` is the size that darknet gives it."""
        _, stride, size = self.at(before)
        wanted = tuple(-(-side // step) for side in size)
        if tuple(made) != wanted:
            raise section.fail(
                f"it makes a map of {made[1]}x{made[0]} from {size[1]}x{size[0]}; with stride {step} it must be "
                f"{wanted[1]}x{wanted[0]}, or cells would not lie where the picture has them"
            )
        return {"stride": stride * step, "size": wanted}

    def convolutional(self, section: Section) -> Convolution:
        section.refuse(
            "binary", "xnor", "bin_output", "flipped", "antialiasing", "share_index", "sway", "rotate", "stretch",
            "stretch_sway", "coordconv", "assisted_excitation",
        )  # fmt: skip
        section.whole("dilation", 1, 1, 1)
        before = len(self.layers) - 1
        inputs, _, size = self.at(before)
        filters, kernel = section.whole("filters", 1, 1, MOST_FILTERS), section.whole("size", 1, 1, MOST_KERNEL)
        step, groups = section.whole("stride", 1, 1, 32), section.whole("groups", 1, 1, MOST_FILTERS)
        for key in ("stride_x", "stride_y"):
            section.whole(key, step, step, step)
        if inputs % groups or filters % groups:
            raise section.fail(
                f"groups is {groups}, which divides neither or not both of {inputs} inputs, {filters} filters"
            )
        padding = kernel // 2 if section.whole("pad", 0) else section.whole("padding", 0, 0, MOST_KERNEL)
        if padding != kernel // 2:
            raise section.fail(f"it has size {kernel} and padding {padding}; known here is size / 2: pad=1")
        changes = self.stepped(section, before, [(side + 2 * padding - kernel) // step + 1 for side in size], step)
        return Convolution(
            **self.shape([before], channels=filters, **changes), kernel=kernel, step=step, groups=groups,
            norm=bool(section.whole("batch_normalize", 0)),
            activation=section.choice("activation", "logistic", ACTIVATIONS),
        )  # fmt: skip

    def maxpool(self, section: Section) -> MaxPool:
        section.refuse("maxpool_depth", "out_channels", "antialiasing")
        before = len(self.layers) - 1
        step = section.whole("stride", 1, 1, 32)
        for key in ("stride_x", "stride_y"):
            section.whole(key, step, step, step)
        kernel = section.whole("size", step, 1, MOST_KERNEL)
        padding = section.whole("padding", kernel - 1, 0, 2 * (kernel - 1))
        made = [(side + padding - kernel) // step + 1 for side in self.at(before)[2]]
        changes = self.stepped(section, before, made, step)
        return MaxPool(**self.shape([before], **changes), kernel=kernel, step=step, padding=padding)

    def shortcut(self, section: Section) -> Shortcut:
        section.refuse("weights_type", "weights_normalization")
        inputs = (len(self.layers) - 1, *self.sources(section, "from"))
        self.same_size(section, inputs)
        if len(counts := {self.at(item)[0] for item in inputs}) > 1:
            raise section.fail(
                f"its inputs have {', '.join(map(str, sorted(counts)))} channels; known here: equally many"
            )
        return Shortcut(**self.shape(inputs), activation=section.choice("activation", "linear", ACTIVATIONS))

    def route(self, section: Section) -> Route:
        inputs = self.sources(section, "layers")
        self.same_size(section, inputs)
        groups = section.whole("groups", 1, 1, MOST_FILTERS)
        counts = [self.at(item)[0] for item in inputs]
        if any(count % groups for count in counts):
            raise section.fail(f"groups is {groups}, which does not divide {', '.join(map(str, counts))} channels")
        group = section.whole("group_id", 0, 0, groups - 1)
        return Route(**self.shape(inputs, channels=sum(counts) // groups), groups=groups, group=group)

    def upsample(self, section: Section) -> Upsample:
        before = len(self.layers) - 1
        _, stride, size = self.at(before)
        factor = section.whole("stride", 2, 1, 32)
        if stride % factor:
            raise section.fail(f"stride is {factor}, but a pixel of its map spans {stride} pixels of the picture")
        size = tuple(factor * side for side in size)
        shape = self.shape([before], stride=stride // factor, size=size)
        return Upsample(**shape, factor=factor, scale=section.real("scale", 1, -1000, 1000))

    def dropout(self, section: Section) -> Dropout:
        probability = section.real("probability", 0.5, 0, 0.99)
        return Dropout(**self.shape([len(self.layers) - 1]), probability=probability)

    def yolo(self, section: Section) -> Yolo:
        section.refuse("embedding_layer")
        before = self.layers[-1] if self.layers else None
        classes = section.whole("classes", 20, 1, MOST_CLASSES)
        numbers = section.many("anchors", float, 2 * MOST_ANCHORS)
        pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
        if len(numbers) % 2 or len(pairs) != section.whole("num", 1, 1, MOST_ANCHORS):
            raise section.fail(
                f"anchors has {len(numbers)} numbers; num={section.values.get('num', 1)} takes twice as many"
            )
        if not all(0 < side <= 1e5 for side in numbers):
            raise section.fail("anchors: each number must be above 0, at most 100000 pixels")
        mask = section.many("mask", int, MOST_ANCHORS) if "mask" in section.values else tuple(range(len(pairs)))
        if len(set(mask)) != len(mask) or not all(0 <= item < len(pairs) for item in mask):
            raise section.fail(
                f"mask is {section.values['mask']!r:.60}; it takes different numbers in 0..{len(pairs) - 1}"
            )
        new_coords = bool(section.whole("new_coords", 0))
        filters, activation = len(mask) * (classes + 5), "logistic" if new_coords else "linear"
        if not isinstance(before, Convolution) or before.norm or before.activation != activation:
            raise section.fail(f"before it must stand a convolution without batch norm, activation={activation}")
        if before.channels != filters:
            raise section.fail(
                f"{len(mask)} anchors of {classes} classes take {filters} filters before it; it has {before.channels}"
            )
        if self.layers and any(classes != layer.classes for layer in self.layers if isinstance(layer, Yolo)):
            raise section.fail(f"it has {classes} classes, an earlier [yolo] has others")
        return Yolo(
            **self.shape([before.number]), anchors=tuple(pairs[item] for item in mask), all_anchors=pairs, mask=mask,
            classes=classes, scale_xy=section.real("scale_x_y", 1, 1, 4), new_coords=new_coords,
            ignore=section.real("ignore_thresh", 0.5, 0, 1),
        )  # fmt: skip


@lru_cache(maxsize=16)
def parse_cfg(text: str, where: str) -> Cfg:
    """The text of a .cfg file, `where` as error messages call it. Raises ValueError in one line."""
    (_, net), *sections = sections_of(text, where)
    section = Section(net, f"{where}: [net]")
    section.whole("channels", 3, 3, 3)
    height, width = (section.whole(key, 416, 32, MOST_SIDE) for key in ("height", "width"))
    check_input(height, width, 32, where)
    builder = Builder(height, width)
    for number, (name, values) in enumerate(sections):
        here = Section(values, f"{where}: layer {number} [{name}]")
        if name not in NAMES:
            known = list(dict.fromkeys(NAMES.values()))
            raise here.fail(f"this kind of layer is not known here; known: {', '.join(known)}{near(name, known)}")
        layer = getattr(builder, NAMES[name])(here)
        if any(isinstance(builder.layers[item], Yolo) for item in layer.inputs if item != IMAGE):
            raise here.fail("it reads a [yolo] layer, which gives boxes; start with [route]")
        builder.layers.append(layer)
    cfg = Cfg(
        text_of(sections_of(text, where)), height, width, bool(section.whole("letter_box", 1)), tuple(builder.layers)
    )
    check_cfg(cfg, where)
    return cfg


def with_classes(text: str, classes: int) -> str:
    """The text of a checked file for another number of classes: those of [yolo], and the filters before it."""
    sections = sections_of(text, "cfg")
    for layer in parse_cfg(text, "cfg").yolo:
        # Sections count [net] as well.
        sections[layer.number + 1][1]["classes"] = str(classes)
        sections[layer.number][1]["filters"] = str(len(layer.mask) * (classes + 5))
    return text_of(sections)


def check_input(height: int, width: int, multiple: int, where: str) -> None:
    if height % multiple or width % multiple:
        raise ValueError(f"{where}: [net]: the input is {width}x{height}; both must be multiples of {multiple}")


def check_cfg(cfg: Cfg, where: str) -> None:
    """Raises ValueError for a file that would take too much memory, or whose parts do not go together."""
    check_input(cfg.height, cfg.width, cfg.multiple, where)
    if (weights := sum(layer.weights for layer in cfg.convolutions)) > MOST_WEIGHTS:
        raise ValueError(f"{where}: it has {weights:,} weights; at most {MOST_WEIGHTS:,} are read")
    if (values := most_values(cfg)) > MOST_VALUES:
        raise ValueError(
            f"{where}: for its input of {cfg.width}x{cfg.height} its maps have {values:,} values at one time; at most "
            f"{MOST_VALUES:,} are computed: lower width and height, or the number of filters"
        )
    outputs = {layer.number for layer in cfg.outputs}
    for layer in cfg.layers:
        if not isinstance(layer, Yolo) and outputs & set(layer.inputs):
            raise ValueError(
                f"{where}: layer {layer.number} reads the convolution before a [yolo], which gives its boxes"
            )


def most_values(cfg: Cfg) -> int:
    """The values of all maps that are needed at the same time, at most."""
    last, held, most = last_uses(cfg.layers), {IMAGE: 3 * cfg.height * cfg.width}, 0
    for layer in cfg.layers:
        held[layer.number] = layer.channels * math.prod(layer.size)
        most = max(most, sum(held.values()))
        held = {number: count for number, count in held.items() if last.get(number, IMAGE) > layer.number}
    return most


def backbone_of(cfg: Cfg) -> list[Layer]:
    """The layers before the first one that goes back to a finer stride, and before the first output."""
    found: list[Layer] = []
    outputs = {layer.number for layer in cfg.outputs}
    for layer in cfg.layers:
        if layer.number in outputs or (found and layer.stride < found[-1].stride):
            break
        found.append(layer)
    return found
