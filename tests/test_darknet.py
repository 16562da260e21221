"""Darknet's files as networks: the layers by plain formulas, OpenCV 4's outputs, and all that follows a network."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest
import torch
from conftest import ROOT, only_error_line, shared
from darknet_nets import CONFIGS, by_hand, found_by, numbers_for, thin, write_network
from helpers import tasks

from config import Config, make_config, plain, with_darknet_file
from model import build_network, load_network
from networks.darknet_cfg import parse_cfg
from networks.darknet_files import read_cfg, write_darknet
from tasks import CLASS_LISTS, Boxes
from tasks.box_selection import boxes_in_cells

COUNTS = {"yolov3": 62_001_757, "yolov3-voc": 61_678_657, "yolov3-spp": 63_052_381, "yolov3-tiny": 8_858_734}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_weights_is_the_published_one(name):
    cfg = read_cfg(CONFIGS / f"{name}.cfg")
    assert sum(layer.weights for layer in cfg.convolutions) == COUNTS[name]
    assert f"{COUNTS[name]:,} numbers" in (CONFIGS / f"{name}.cfg").read_text()
    if name != "yolov3-tiny":  # darknet53.conv.74
        assert sum(layer.weights for layer in cfg.convolutions if layer.number < 74) == 40_620_640


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_layers_by_hand(name, size, tmp_path):
    text = thin(name)
    x = torch.rand(2, 3, *size)
    found = found_by(load_network(write_network(tmp_path, text)), x)
    expected = by_hand(text, numbers_for(parse_cfg(text, "test")), x).float()
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), (found - expected).abs().max()
    assert found[..., 4:].std() > 0.01, "lively outputs"


ODD = """[net]
width=64
height=32

# groups, odd kernels, every activation, parts of a map, several sources, old names of sections
[conv]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish

[conv]
filters=8
size=5
stride=2
pad=1
groups=4
activation=swish ; a comment

[route]
layers=-1
groups=2
group_id=1

[maxpool]
size=3
stride=2

[conv]
filters=6
batch_normalize=1
activation=ACTIVATION

[conv]
filters=6
size=3
pad=1

[dropout]
probability=.5

[shortcut]
from=-2,-3
activation=leaky

[max]
size=2
stride=1

[maxpool]
size=4
stride=2
padding=3

[maxpool]
size=2
stride=2

[upsample]
stride=4

[route]
layers=-1,4,-9

[conv]
filters=14
activation=linear

[yolo]
classes=2
num=3
mask=2,0
anchors=4,6, 10.5,7, 20,30
scale_x_y=1.2

[route]
layers=7

[conv]
size=3
pad=1
filters=14
activation=logistic

[yolo]
classes=2
num=3
mask=1,0
anchors=4,6, 10.5,7, 20,30
scale_x_y=1.05
new_coords=1
"""


@pytest.mark.parametrize("kind", ["linear", "leaky", "logistic", "relu", "relu6", "elu", "tanh", "mish", "swish"])
def test_rare_layers_by_hand(kind, tmp_path):
    text = ODD.replace("ACTIVATION", kind)
    x = torch.rand(1, 3, 96, 64)
    found = found_by(load_network(write_network(tmp_path, text)), x)
    canonical = {"conv": "convolutional", "max": "maxpool"}
    plain_names = re.sub(r"\[(conv|max)\]", lambda match: f"[{canonical[match[1]]}]", text)
    expected = by_hand(plain_names, numbers_for(parse_cfg(text, "test")), x).float()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), (found - expected).abs().max()


def disk(height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 of an orange disk on grass."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((x - width * 0.5) / (width * 0.28), (y - height * 0.45) / (height * 0.3))
    grass = np.stack([60 + 0 * x, 120 + 40 * y / height, 60 + 20 * x / width], 2)
    orange = np.stack([230 - 60 * radius, 130 - 40 * radius, 40 - 10 * radius], 2)
    picture = np.where((radius < 1)[..., None], orange, grass)
    picture[np.abs(radius - 0.5) < 0.04] = 30
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_networks_give_what_opencv_4_gives(name):
    """tests/darknet_golden.json: OpenCV 4.14.0, readNetFromDarknet with thresh=0 and nms_threshold=0 in [yolo]."""
    network = load_network(shared("weights/yolo-fastest") / f"{name}.weights")
    golden = json.loads((ROOT / "tests" / "darknet_golden.json").read_text())[name]
    for case in golden:
        height, width = case["size"]
        pixels = torch.from_numpy(disk(height, width)).permute(2, 0, 1)[None]
        found = found_by(network, pixels.float() / 255)[0]
        assert len(found) == case["rows"]
        rows = torch.tensor([[*values] for _, *values in case["values"]])
        mine = torch.stack([
            torch.stack([*found[number, :4], found[number, 4:].max(), found[number, 4:].mean()])
            for number, *_ in case["values"]
        ])  # fmt: skip
        assert torch.allclose(mine, rows, rtol=0, atol=1e-4), (mine - rows).abs().max()
        assert rows[:, 4].max() > 0.5, "a frisbee"


def test_a_picture_of_any_size_is_padded_at_the_right_and_bottom(tmp_path):
    network = load_network(write_network(tmp_path, thin("yolov3-tiny", side=96)))
    x = torch.rand(1, 3, 41, 90)
    padded = torch.full((1, 3, 64, 96), 0.5)
    padded[..., :41, :90] = x
    with torch.no_grad():
        part, whole = network(x)["boxes"], network(padded)["boxes"]
    assert torch.equal(part[..., :2], whole[..., :2]) and torch.equal(part[..., 4:], whole[..., 4:])
    boxes, others = boxes_in_cells(part)[0], boxes_in_cells(whole)[0]
    assert torch.allclose(boxes * torch.tensor([90, 41, 90, 41]), others * torch.tensor([96, 64, 96, 64]), atol=1e-3)
    inside = boxes_in_cells(part)[1]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert torch.equal(inside, (middle < 1).all(2)) and 0 < inside.float().mean() < 1


def test_letter_box_0_stretches_the_picture(tmp_path):
    text = thin("yolov3-tiny", side=96).replace("channels=3", "channels=3\nletter_box=0")
    network = load_network(write_network(tmp_path, text))
    x = torch.rand(1, 3, 50, 130)
    stretched = torch.nn.functional.interpolate(x, (96, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        found = network(x)["boxes"]
    expected = by_hand(text, numbers_for(parse_cfg(text, "test")), stretched).float()
    boxes = boxes_in_cells(found)[0]
    assert torch.allclose(boxes[..., 2:] - boxes[..., :2], expected[..., 2:4], atol=1e-4)
    assert network.config.long_side == 192


# ---------------------------------------------------------------------------------------------- commands


def test_inference_finds_things_in_the_photograph(script, tmp_path):
    weights = shared("weights/yolo-fastest") / "yolo-fastest-1.1.weights"
    done = script("inference.py", "--checkpoint", weights, "--input", "media/photo.jpg", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    (best, *_) = json.loads((tmp_path / "photo_objects.json").read_text())["objects"]
    assert best["class"] == "potted plant" and best["score"] > 0.6
    left, top, right, bottom = best["box"]
    assert 150 < left < 230 and 50 < top < 120 and 320 < right < 400 and 300 < bottom < 400
    assert (tmp_path / "photo_overview.jpg").is_file()


def test_cfg_is_given_or_refused(script, tmp_path):
    weights = write_network(tmp_path, thin("yolov3-tiny"))
    (tmp_path / "net.cfg").rename(tmp_path / "other.cfg")
    words = ("inference.py", "--checkpoint", weights, "--input", "media/sample.jpg", "--output", tmp_path / "out")
    assert only_error_line(script(*words)) == (
        f"error: {weights}: its layers stand in {tmp_path / 'net.cfg'}, which is not there; --cfg FILE names another"
    )
    done = script(*words, "--cfg", tmp_path / "other.cfg")
    assert done.returncode == 0, done.stderr
    done = script("evaluate.py", "--checkpoint", "model/nyudv2_lite0.safetensors", "--cfg", tmp_path / "other.cfg")
    assert "--cfg is for a .weights file of darknet" in only_error_line(done)


@pytest.mark.parametrize("form", ["onnx", "xml", "safetensors"])
def test_exported_files_give_the_same(form, script, tmp_path):
    # Of 75 convolutions ONNX's exporter makes a graph in half a minute, of the smaller network's 13 in seconds.
    weights = write_network(tmp_path, thin("yolov3-tiny" if form == "onnx" else "yolov3", side=96))
    kind = {"onnx": "onnx", "xml": "openvino", "safetensors": "safetensors"}[form]
    output = tmp_path / f"net.{form}"
    done = script(
        "export.py", "--checkpoint", weights, "--format", kind, "--output", output, "--images", "media/sample.jpg"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "0.0000% of" in done.stdout
    if form == "safetensors":
        again, before = load_network(output), load_network(weights)
        assert again.config == before.config and again.encoder.seen == 640
        for name, value in before.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


# ---------------------------------------------------------------------------------------------- names and settings


def test_names_come_from_the_file_beside_it(tmp_path):
    weights = write_network(tmp_path, thin("yolov3-tiny"))
    assert load_network(weights).tasks["boxes"].classes == ("class_0", "class_1", "class_2")
    (tmp_path / "things.names").write_text("cat\nsofa\n\ndog\n")
    assert load_network(weights).tasks["boxes"].classes == ("cat", "sofa", "dog"), "no list of COCO: no word is changed"
    (tmp_path / "net.names").write_text("a\nb\nc\n")
    assert load_network(weights).tasks["boxes"].classes == ("a", "b", "c")
    (tmp_path / "net.names").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"net.names: it has 2 names, but the .cfg of net.weights has 3 classes"):
        load_network(weights)


def test_old_words_of_coco_become_those_of_its_json_files(tmp_path):
    weights = write_network(tmp_path, thin("yolov3-tiny", classes=80))
    old = {"airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor", "motorcycle": "motorbike"}
    (tmp_path / "coco.names").write_text("\n".join(old.get(name, name) for name in CLASS_LISTS["coco80"]))
    assert load_network(weights).tasks["boxes"].classes == CLASS_LISTS["coco80"]
    (tmp_path / "coco.names").unlink()
    assert load_network(weights).tasks["boxes"].classes == CLASS_LISTS["coco80"]


def test_settings_of_darknet_are_refused_elsewhere(tmp_path):
    (tmp_path / "a.cfg").write_text(thin("yolov3-tiny"))
    config = with_darknet_file(make_config({"encoder": f"darknet:{tmp_path / 'a.cfg'}"}, "test"))
    assert config.encoder == "darknet" and config.darknet_cfg.startswith("[net]")
    assert make_config(plain(config), "again") == config
    for values, words in (
        ({"box_layers": "yolo"}, "box_layers is 'yolo': for --encoder darknet:FILE.cfg alone"),
        ({"decoder": "none"}, "decoder is 'none': for --encoder darknet:FILE.cfg alone"),
        ({"darknet_cfg": "[net]"}, "darknet_cfg is '\\[net\\]': for --encoder darknet:FILE.cfg alone"),
        ({"encoder": f"darknet:{tmp_path / 'a.cfg'}", "decoder": "none"}, "decoder is 'none': for darknet's own boxes"),
    ):
        with pytest.raises(ValueError, match=words):
            with_darknet_file(make_config(values, "test"))
    with pytest.raises(FileNotFoundError, match=r"no\.cfg: no such file"):
        with_darknet_file(make_config({"encoder": "darknet:no.cfg"}, "test"))


def test_headers_of_16_and_20_bytes(tmp_path):
    text = thin("yolov3-tiny")
    new, old = write_network(tmp_path, text, name="new"), write_network(tmp_path, text, minor=1, name="old")
    assert new.stat().st_size == old.stat().st_size + 4
    first, second = load_network(new).state_dict(), load_network(old).state_dict()
    assert first["encoder.seen"] == second["encoder.seen"] == 640
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert struct.unpack("<3iq", new.read_bytes()[:20]) == (0, 2, 0, 640)


# ---------------------------------------------------------------------------------------------- written back


def test_a_network_is_written_back_bit_for_bit(script, tmp_path):
    weights = write_network(tmp_path, thin("yolov3", side=96))
    (tmp_path / "net.names").write_text("a\nb\nc\n")
    output = tmp_path / "again" / "other.weights"
    words = ("export.py", "--checkpoint", weights, "--format", "darknet", "--images", "media/sample.jpg")
    done = script(*words, "--output", output)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes()[12:] == weights.read_bytes()[12:], "pictures seen, and all numbers"
    assert output.with_suffix(".names").read_text() == "a\nb\nc\n"
    assert parse_cfg(output.with_suffix(".cfg").read_text(), "a") == parse_cfg((tmp_path / "net.cfg").read_text(), "a")
    assert "--size is of a graph; --format darknet holds" in only_error_line(script(*words, "--size", "64x64"))
    assert "is the checkpoint" in only_error_line(script(*words))


def test_other_classes_and_another_size_are_written_into_the_cfg(tmp_path):
    network = load_network(write_network(tmp_path, thin("yolov3-tiny", classes=5)))
    config = make_config({"long_side": 128, "darknet_cfg": thin("yolov3-tiny")}, "test", network.config)
    write_darknet(tmp_path / "out.weights", config, network.tasks["boxes"].classes, network.state_dict())
    again = load_network(tmp_path / "out.weights")
    assert again.config.long_side == 128 and len(again.tasks["boxes"].classes) == 5
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"long_side 100; a \.cfg takes multiples of 32"):
        write_darknet(tmp_path / "b.weights", make_config({"long_side": 100}, "test", config), ("a",) * 5, {})
    with pytest.raises(ValueError, match="this one has the encoder resnet18 and the decoder refinenet"):
        write_darknet(tmp_path / "b.weights", Config(), ("a",), {})


# ---------------------------------------------------------------------------------------------- as an encoder


@pytest.mark.parametrize("layers", ["light", "yolo"])
def test_a_darknet_file_feeds_our_decoder(layers):
    """Its maps at strides 4 to 32 give classes and metres of each pixel, its own last maps boxes."""
    config = Config(
        encoder="darknet", darknet_cfg=thin("yolov3"), box_layers=layers, decoder_width=16, crp_stages=1,
        tasks=("segmentation", "depth", "boxes"),
    )  # fmt: skip
    boxes = Boxes.from_section({"classes": ("a", "b", "c")}, config)
    network = build_network(config, {**tasks(5), "boxes": boxes}).eval()
    assert network.encoder.strides == ((4, 8, 16, 32, 32, 16, 8) if layers == "yolo" else (4, 8, 16, 32))
    images = torch.randint(0, 256, (1, 3, 41, 90), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images.float() / 255, (0, 6, 0, 23), value=0.5)
    with torch.no_grad():
        raw, whole = network(images), network(padded)
    assert raw["segmentation"].shape == (1, 5, 11, 23) and raw["depth"].shape == (1, 1, 11, 23)
    assert torch.equal(raw["depth"], whole["depth"][..., :11, :23])
    found = network.predict(images, dict.fromkeys(network.tasks, (41, 90)))
    assert found["segmentation"].shape == (1, 41, 90) and found["boxes"].shape == (1, 100, 7)


def test_a_tiny_network_without_the_strides_of_decoders_says_so():
    text = thin("yolov3-tiny").replace("stride=2\n\n[conv", "stride=1\n\n[conv", 1)
    with pytest.raises(
        ValueError, match=r"no maps at strides 4, 8, 16 and 32, as decoders need; it has 1, 2, 4, 8, 16"
    ):
        build_network(Config(encoder="darknet", darknet_cfg=text), tasks(5))
