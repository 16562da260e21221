"""Darknet files that are damaged, of something else, or of layers that are not known here: one line that says so."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import only_error_line
from darknet_nets import CONFIGS, numbers_for, thin, write_network

from config import Config
from model import build_network, load_network, network_from_checkpoint
from networks.darknet_cfg import parse_cfg
from networks.darknet_files import read_darknet
from networks.encoders import build_encoder
from tasks import CLASS_LISTS, OTHER_NAMES, Boxes

TEXT = thin("yolov3-tiny")
HEADER = struct.pack("<3iq", 0, 2, 0, 640)


def refusal(path: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_network(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- .weights


def test_a_truncated_file_says_how_far_it_goes(tmp_path):
    path = write_network(tmp_path, TEXT)
    content = path.read_bytes()
    layers = parse_cfg(TEXT, "test").convolutions
    count = sum(layer.weights for layer in layers)
    path.write_bytes(content[:-4])
    assert refusal(path) == (
        f"{path}: it has {count - 1:,} numbers, its .cfg takes {count:,}: truncated, or of another .cfg; they fill the "
        "first 12 of 13 convolutions, up to layer 21"
    )
    path.write_bytes(content[:-3])
    assert refusal(path) == f"{path}: truncated: {4 * count - 3:,} bytes after its header are no whole number of floats"
    first = 20 + 4 * sum(layer.weights for layer in layers[:3])
    path.write_bytes(content[:first])
    assert refusal(path).endswith("they are the first 3 of 13 convolutions, up to layer 4; a training takes them: "
                                  "--encoder_weights")  # fmt: skip
    path.write_bytes(content[:40])
    assert refusal(path).endswith("they fill not even the first convolution")


@pytest.mark.parametrize("classes", [1, 4, 20])
def test_a_file_of_other_classes_says_how_many(classes, tmp_path):
    path = write_network(tmp_path, thin("yolov3-tiny", classes=classes))
    (tmp_path / "net.cfg").write_text(TEXT)
    filters = 3 * (classes + 5)
    assert refusal(path).endswith(
        f"; {classes} classes would fit: classes={classes} in each [yolo], filters={filters} before it"
    )


def test_bytes_that_are_left_over(tmp_path):
    path = write_network(tmp_path, TEXT)
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")
    assert refusal(path).endswith(": 1 are left over, it belongs to another .cfg")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html><head><title>Not found</title>", "text, not a .weights file"),
        (b"", "0 bytes are no .weights file"),
        (struct.pack("<3iq", 0, 2000, 0, 1) + bytes(99), "its header says that layers are transposed"),
        (struct.pack("<3iq", 5, 7, 0, 1) + bytes(99), "its header says version 5.7.0"),
        (struct.pack("<3iq", 0, 2, -1, 1) + bytes(99), "its header says version 0.2.-1"),
    ],
)
def test_other_files(content, words, tmp_path):
    (tmp_path / "net.cfg").write_text(TEXT)
    (tmp_path / "net.weights").write_bytes(content)
    assert words in refusal(tmp_path / "net.weights")


def test_a_file_that_is_not_there(tmp_path):
    assert refusal(tmp_path / "net.weights") == f"{tmp_path / 'net.weights'}: no such file"


def changed(path: Path, at: int, value: float) -> Path:
    content = bytearray(path.read_bytes())
    content[20 + 4 * at : 24 + 4 * at] = struct.pack("<f", value)
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(value, tmp_path):
    path = changed(write_network(tmp_path, TEXT), 9, value)
    assert refusal(path) == f"{path}: layer 0 holds NaN or infinite weights"


def test_variances_below_0(tmp_path):
    path = changed(write_network(tmp_path, TEXT), 3 * 2, -1.0)  # 2 filters: offsets, scales, means, variances
    assert refusal(path) == f"{path}: layer 0 has variances below 0: another .cfg, or damaged"
    load_network(changed(path, 3 * 2, 0.0))


def test_a_large_file_takes_no_memory_before_it_is_known_to_fit(tmp_path):
    path = tmp_path / "net.weights"
    (tmp_path / "net.cfg").write_text(TEXT)
    with path.open("wb") as file:
        file.write(HEADER)
        file.truncate(20 + 2**32)  # a hole: it takes no disk either
    assert "it has 1,073,741,824 numbers; at most 268,435,456 are read" in refusal(path)


# ---------------------------------------------------------------------------------------------- first layers


def test_the_first_layers_start_an_encoder(tmp_path):
    whole = write_network(tmp_path, TEXT)
    layers = parse_cfg(TEXT, "test").convolutions
    part = tmp_path / "tiny.conv.8"
    part.write_bytes(whole.read_bytes()[: 20 + 4 * sum(layer.weights for layer in layers[:4])])
    fresh, given = (build_encoder("darknet", weights, 1, TEXT, True) for weights in ("none", str(part)))
    expected = load_network(whole).encoder.state_dict()
    filled = [name for name, value in given.state_dict().items() if torch.equal(value, expected[name])]
    assert {name.split(".")[1] for name in filled if name.endswith("conv.weight")} == {"0", "2", "4", "6"}
    assert given.seen == 640 and fresh.seen == 0
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(ValueError, match="they fill the first 3 of 13 convolutions, up to layer 4"):
        build_encoder("darknet", str(part), 1, TEXT, True)
    with pytest.raises(ValueError, match=r"darknet has none to download; give a \.weights file"):
        build_encoder("darknet", "imagenet", 1, TEXT, True)


# ---------------------------------------------------------------------------------------------- .cfg


def cfg_refusal(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse_cfg(text, "a.cfg")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[maxpool]", "[lstm]", "layer 1 [lstm]: this kind of layer is not known here; known: convolutional, maxpool"),
        ("[maxpool]", "[max pool", "a.cfg:20: '[maxpool' is no section; it takes [name]"),
        ("[net]", "[convolutional]", "not a darknet .cfg file: its first section is not [net]"),
        ("[net]", "a=1\n[net]", "a.cfg:1: 'a=1' stands before the first section"),
        ("filters=2\n", "filters 2\n", "'filters2' is neither [section] nor key=value"),
        ("filters=2\n", "filters=two\n", "layer 0 [convolutional]: filters is 'two'; it takes a whole number"),
        ("filters=2\n", "filters=999999\n", "filters is 999999; it must be 1 to 16384"),
        ("activation=leaky", "activation=leeky", "known here: linear, leaky, logistic"),
        (
            "activation=leaky",
            "activation=leaky\nantialiasing=1",
            "layer 0 [convolutional]: antialiasing=1 is not known",
        ),
        ("pad=1", "pad=0", "it has size 3 and padding 0; known here is size / 2: pad=1"),
        ("stride=1\npad", "stride=1\ngroups=2\npad", "groups is 2, which divides neither or not both of 3 inputs, 2"),
        (
            "size=2\nstride=2",
            "size=5\nstride=2\npadding=2",
            "it makes a map of 31x31 from 64x64; with stride 2 it must",
        ),
        ("layers=-4", "layers=-40", "layer 17 [route]: layers names layer -23; it takes one of the layers before it"),
        ("layers=-1,8", "layers=-1,2", "its inputs have different sizes: 4x4, 32x32"),
        ("layers=-4", "layers=-1", "layer 17 [route]: it reads a [yolo] layer, which gives boxes"),
        ("layers=-4", "layers=-2", "layer 17 reads the convolution before a [yolo], which gives its boxes"),
        ("classes=3", "classes=4", "layer 16 [yolo]: 3 anchors of 4 classes take 27 filters before it; it has 24"),
        ("mask=3,4,5", "mask=3,4,6", "mask is '3,4,6'; it takes different numbers in 0..5"),
        ("num=6", "num=9", "anchors has 12 numbers; num=9 takes twice as many"),
        ("anchors=10,", "anchors=-10,", "anchors: each number must be above 0"),
        ("activation=linear", "activation=leaky", "before it must stand a convolution without batch norm"),
        ("width=64", "width=70", "[net]: the input is 70x64; both must be multiples of 32"),
        ("width=64", "width=64000", "[net]: width is 64000; it must be 32 to 4096"),
        ("channels=3", "channels=1", "[net]: channels is 1; it must be 3 to 3"),
        ("stride=2\n\n[route]", "stride=64\n\n[route]", "stride is 64; it must be 1 to 32"),
    ],
)
def test_texts(old, new, words):
    assert TEXT.count(old)
    got = cfg_refusal(TEXT.replace(old, new, 1))
    assert got.startswith("a.cfg") and words in got


def test_memory_is_bounded():
    layer = "[convolutional]\nfilters={}\nsize=1\nactivation=linear\n"
    big = "[net]\nwidth=4096\nheight=4096\n" + layer.format(64)
    assert "its maps have 1,124,073,472 values at one time; at most 536,870,912" in cfg_refusal(big)
    # Small maps that are all needed at the end.
    many = "[net]\nwidth=1024\nheight=1024\n" + layer.format(16) * 40
    assert parse_cfg(many, "a.cfg").layers
    kept = many + "[route]\nlayers=" + ",".join(map(str, range(40))) + "\n"
    assert "values at one time" in cfg_refusal(kept)
    assert "weights; at most" in cfg_refusal("[net]\nwidth=32\nheight=32\n" + layer.format(16384) * 3)
    assert "it has 1001 layers; it takes 1 to 1000" in cfg_refusal("[net]\n" + layer.format(1) * 1001)


def test_a_network_without_boxes(tmp_path):
    text = TEXT.split("[yolo]")[0]
    (tmp_path / "net.cfg").write_text(text)
    (tmp_path / "net.weights").write_bytes(HEADER + numbers_for(parse_cfg(text, "test")).tobytes())
    assert refusal(tmp_path / "net.weights").endswith("it has no [yolo] layer, so the network finds no boxes")
    with pytest.raises(ValueError, match=r"box_layers: yolo takes the \[yolo\] layers of the \.cfg, but it has none"):
        build_encoder("darknet", "none", 1, text, True)
    with pytest.raises(ValueError, match=r"encoder: darknet takes its layers from a file: --encoder darknet:FILE\.cfg"):
        build_encoder("darknet")


def test_windows_lines_and_comments_change_nothing():
    text = (CONFIGS / "yolov3-tiny.cfg").read_text()
    noisy = text.replace("=", " = ").replace("\n", " # note\r\n").replace("[yolo] # note", "[yolo]\t")
    assert parse_cfg(noisy, "a.cfg") == parse_cfg(text, "a.cfg")


# ---------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("config", {"darknet_cfg": ""}, "darknet_cfg: not a darknet .cfg file|encoder: darknet takes its layers"),
        ("config", {"darknet_cfg": TEXT.replace("[maxpool]", "[lstm]", 1)}, "layer 1 [lstm]"),
        ("config", {"box_layers": "light"}, "decoder is 'none'"),
        ("config", {"encoder": "resnet18"}, "for --encoder darknet:FILE.cfg alone"),
        ("tasks", {"own_maps": 3}, "the .cfg has 2 [yolo] layers, but there are"),
        ("tasks", {"own_maps": 0}, "own_maps is 0; it must be 1 to 16 for yolo"),
        ("tasks", {"layers": "light"}, "own_maps is 2; it must be 1 to 16 for yolo, 0 for other layers"),
        ("tasks", {"own_maps": 10**9}, "own_maps is 1000000000"),
    ],
)
def test_settings_of_a_checkpoint_that_do_not_go_together(part, values, words, tmp_path):
    path = write_network(tmp_path, TEXT)
    content = read_darknet(path, None, CLASS_LISTS, OTHER_NAMES)
    (content["config"] if part == "config" else content["tasks"]["boxes"]).update(values)
    with pytest.raises(ValueError) as caught:
        network_from_checkpoint(content, path)
    assert re.search("|".join(map(re.escape, words.split("|"))), str(caught.value)), caught.value


def test_a_decoder_none_needs_the_encoders_boxes():
    task = Boxes(("a",), ((1, 2, 3),))
    with pytest.raises(ValueError, match=r"decoder is 'none': for --encoder darknet:FILE\.cfg alone"):
        build_network(Config(decoder="none"), {"boxes": task}, load_encoder=False)


def test_scripts_say_it_in_one_line(script, tmp_path):
    path = write_network(tmp_path, TEXT)
    path.write_bytes(path.read_bytes()[:-8])
    line = only_error_line(script("inference.py", "--checkpoint", path, "--output", tmp_path / "out"))
    assert "truncated, or of another .cfg" in line
