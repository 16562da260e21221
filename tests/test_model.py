from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import shared
from helpers import ENCODERS, published, settings, tasks
from timm.layers import Conv2dSame
from torch import nn

from config import plain
from deploy.predictor import Predictor
from model import build_network, count_cost, freeze_batch_norm, load_network
from networks.checkpoints import save_checkpoint
from networks.decoders import ChainedPooling, ChannelScale, max_pool_5x5
from networks.encoders import PaperMobileNetV2, SameConv2d, TimmEncoder, build_encoder
from tasks import CLASS_LISTS, tasks_to_plain


@pytest.mark.parametrize(("classes", "normals", "parameters"), [
    (40, False, 3_070_057),  # the paper's NYUDv2 network
    (6, False, 2_991_687),  # KITTI-6, "2.99 M"
    (40, True, 3_077_228),  # with normals, "3.077 M"
    (46, False, 3_083_887),  # NYUDv2 + KITTI, "3.084 M"
])  # fmt: skip
def test_the_papers_networks_have_the_papers_sizes(classes, normals, parameters):
    network = build_network(settings("mobilenetv2_paper"), tasks(classes, normals))
    counted, operations = count_cost(network, 480, 640)
    assert counted == parameters
    if classes == 40 and not normals:
        assert operations / 1e9 == pytest.approx(5.9, abs=0.05)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_takes_odd_sizes(encoder):
    network = build_network(settings(encoder, decoder_width=16, crp_stages=2), tasks(normals=True)).eval()
    with torch.inference_mode():
        for height, width in ((97, 131), (64, 33)):
            outputs = network(torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8))
            for name, task in network.tasks.items():
                quarter = (-(-height // 4), -(-width // 4)) if encoder != "convnext_tiny" else (height // 4, width // 4)
                assert outputs[name].shape == (1, task.channels, *quarter)
                assert task.decode(outputs[name], (height, width)).shape[-2:] == (height, width)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (7, 3, 2), (2, 2, 1)])
def test_same_padding_is_that_of_timm(kernel, stride, dilation):
    conv = Conv2dSame(2, 3, kernel, stride, dilation=dilation)
    images = [torch.randn(1, 2, height, width) for height in range(1, 14) for width in (1, 6, 7)]
    with torch.no_grad():
        expected = [conv(image) for image in images]
        conv.__class__ = SameConv2d
        assert all(torch.equal(conv(image), value) for image, value in zip(images, expected, strict=True))
    encoder = build_encoder("tf_efficientnet_lite0")
    assert any(isinstance(module, SameConv2d) for module in encoder.modules())
    assert not any(isinstance(module, Conv2dSame) for module in encoder.modules())


def test_bytes_and_floats_are_the_same_picture():
    network = build_network(settings("resnet18", decoder_width=16), tasks()).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        for name, raw in network(pixels).items():
            assert torch.equal(raw, network(pixels.float() / 255)[name])


def test_the_encoders_own_mean_and_std_are_used():
    network = build_network(settings("tf_efficientnet_lite0", decoder_width=16), tasks())
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert build_network(settings("resnet18", decoder_width=16), tasks()).mean.flatten()[0] == pytest.approx(0.485)


def test_channel_scale_is_a_depthwise_convolution():
    x, weight = torch.randn(2, 8, 5, 7), torch.randn(8, 1, 1, 1)
    scale = ChannelScale(8)
    scale.load_state_dict({"weight": weight})
    assert torch.allclose(scale(x), nn.functional.conv2d(x, weight, groups=8), atol=1e-6)


def test_chained_pooling_by_hand():
    pooling = ChainedPooling(1, 2, depthwise=True)
    pooling.convs[0].weight.data.fill_(2.0)
    pooling.convs[1].weight.data.fill_(0.5)
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    expected = x.clone()
    expected[0, 0, 2:7, 2:7] += 2  # a 5x5 maximum, doubled
    expected[0, 0] += 1  # the maximum of that over 5x5, halved: reaches 4 pixels from the middle, the whole picture
    assert torch.equal(pooling(x), expected)


def test_pooling_is_the_same_with_and_without_gradients():
    # Also where the window hangs over the border, over both, and where a value is not a number.
    for size in ((17, 9), (1, 1), (1, 7), (2, 3), (3, 4), (5, 1)):
        x = torch.randn(2, 3, *size)
        x[0, 0, 0, 0] = torch.nan
        for given in (x, x.to(memory_format=torch.channels_last), x.bfloat16()):
            before = given.clone()
            expected = nn.functional.max_pool2d(given, 5, 1, 2)
            with torch.no_grad():
                assert torch.equal(max_pool_5x5(given).nan_to_num(99), expected.nan_to_num(99)), size
            assert torch.equal(given.nan_to_num(99), before.nan_to_num(99)), "the map itself stays"
    x = torch.randn(2, 3, 17, 9)
    x.requires_grad_()
    max_pool_5x5(x).sum().backward()
    assert float(x.grad.sum()) == x.numel()


def test_encoder_weights_from_a_file_are_all_used():
    file = shared("weights/tf_efficientnet_lite0-imagenet.safetensors")
    encoder = build_encoder("tf_efficientnet_lite0", str(file))
    assert isinstance(encoder, TimmEncoder)
    # Trained batch-norm statistics are not the initial 0 and 1.
    means = [module.running_mean.abs().mean() for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert min(means) > 0


def test_encoder_weights_of_both_formats_and_with_prefixes(tmp_path):
    from safetensors.torch import save_file

    source = PaperMobileNetV2()
    nn.init.normal_(source.layer1[0].weight)
    weights = source.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "a.pth")
    save_file(weights | {"classifier.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        loaded = build_encoder("mobilenetv2_paper", str(tmp_path / file))
        assert torch.equal(loaded.layer1[0].weight, source.layer1[0].weight)


@pytest.mark.parametrize(
    ("encoder", "weights", "message"),
    [
        ("resnet5", "none", "did you mean 'resnet50'?"),
        ("vit_tiny_patch16_224", "none", "no features at strides 4, 8, 16 and 32"),
        ("resnet18", "nowhere.pth", "nowhere.pth: no such file"),
        ("mobilenetv2_paper", "imagenet", "mobilenetv2-e6e8dd43.pth"),
        ("resnet18", "OTHER", "not in it, e.g. conv1.weight"),
        ("mobilenetv2_paper", "SHAPES", "layer1.0.weight has shape (1,), this network needs (32, 3, 3, 3)"),
        ("resnet18", "TEXT", "not a checkpoint, or damaged"),
        ("resnet18", "TEXT.safetensors", "not readable as safetensors"),
    ],
)
def test_mistakes_with_encoders_are_named(tmp_path, encoder, weights, message):
    if weights.isupper() or weights.startswith("TEXT"):
        path = tmp_path / weights
        shapes = {name: torch.zeros(1) for name in PaperMobileNetV2().state_dict()}
        path.write_text("text") if weights.startswith("TEXT") else torch.save(shapes, path)
        weights = str(path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build_encoder(encoder, weights)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_network_the_download_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens on port 9
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="--encoder_weights FILE"):
        build_encoder("resnet18", "imagenet")


def test_what_timm_says_is_not_swallowed(monkeypatch):
    import timm

    with pytest.raises(ValueError, match="as decoders need; it has 16, 16, 16"):
        build_encoder("vit_tiny_patch16_224")

    real = timm.create_model

    def odd(name: str, out_indices: tuple[int, ...] | None = None, **options: object) -> torch.nn.Module:
        if broken == "features" or out_indices is not None:
            raise RuntimeError("odd\nweights")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", odd)
    broken = "features"
    with pytest.raises(ValueError, match="as decoders need; timm says: odd weights"):
        build_encoder("resnet18")
    broken = "network"
    with pytest.raises(RuntimeError, match="odd"):  # nothing was to be downloaded: it is no user's mistake
        build_encoder("resnet18")
    monkeypatch.setattr("networks.encoders._give_up_early_without_network", lambda: None)
    with pytest.raises(ValueError, match=r"no imagenet weights of resnet18 \(RuntimeError: odd weights\)"):
        build_encoder("resnet18", "imagenet")


def test_frozen_batch_norm_does_not_move():
    network = build_network(settings("resnet18", decoder_width=16), tasks()).train()
    freeze_batch_norm(network)
    before = {name: value.clone() for name, value in network.state_dict().items() if "bn" in name}
    optimizer = torch.optim.SGD([item for item in network.parameters() if item.requires_grad], lr=0.1)
    sum(raw.square().mean() for raw in network(torch.rand(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    assert before and all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert network.training and network.encoder.body.conv1.weight.grad is not None


# ---------------------------------------------------------------------------------------------- published checkpoints


@pytest.mark.parametrize(("classes", "normals"), [(40, False), (6, False), (46, False), (40, True)])
@pytest.mark.parametrize("legacy", [False, True])
def test_published_checkpoints_give_what_the_published_inference_gives(tmp_path, classes, normals, legacy):
    theirs = published(classes, normals)
    path = tmp_path / "ExpNYUD_joint.ckpt"
    torch.save({"state_dict": theirs.state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8), (0, 0), 4)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)

    # The published inference: normalise, network, cubic resize of the raw outputs, argmax, |depth|.
    normal = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        raw = theirs(torch.from_numpy(normal.transpose(2, 0, 1)[None]).float())
    full = [cv2.resize(item[0].numpy().transpose(1, 2, 0), (131, 97), interpolation=cv2.INTER_CUBIC) for item in raw]

    network = load_network(path)
    assert network.config.long_side == {40: 640, 6: 1216, 46: 640}[classes], "the size of the training's frames"
    network.config = dataclasses.replace(network.config, long_side=0)  # theirs takes the picture as it is
    ours = Predictor(network, "eager")(image)
    assert (ours["segmentation"] == full[0].argmax(2)).mean() > 0.999
    assert len(np.unique(ours["segmentation"])) > 2, "a constant map would show nothing"
    # Random weights amplify rounding, which differs with the number of threads.
    assert np.allclose(ours["depth"], np.abs(full[1]), atol=5e-3 * np.abs(full[1]).max())
    if normals:
        expected = full[2] / np.linalg.norm(full[2], axis=2, keepdims=True)
        assert np.allclose(ours["normals"].transpose(1, 2, 0), expected, atol=2e-2)
    if classes == 40:
        assert network.tasks["segmentation"].classes == CLASS_LISTS["nyu40"]
        assert network.tasks["segmentation"].colors[0] == (128, 0, 0), "color index class + 1"
    if classes == 6:
        assert network.tasks["segmentation"].colors[0] == (0, 0, 0), "color index class"
    if classes == 46:
        road = Predictor(network, "eager", domain="kitti")(image)["segmentation"]
        assert (road == full[0][..., 40:].argmax(2)).mean() > 0.999, "KITTI has the last six outputs"


def test_other_peoples_checkpoints_are_refused(tmp_path):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="neither a checkpoint of this project nor one of the paper's authors"):
        load_network(tmp_path / "other.ckpt")
    incomplete = dict(published().state_dict())
    incomplete.pop("conv5.weight")
    torch.save({"state_dict": incomplete}, tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match=r"1 of \d+ tensors of this network are not in it, e.g. decoder.laterals.2"):
        load_network(tmp_path / "half.ckpt")


def test_a_checkpoint_loads_where_its_encoder_weights_are_gone(tmp_path: Path):
    config = settings("mobilenetv2_paper", encoder_weights="gone.pth", decoder_width=16)
    network = build_network(config, tasks(), load_encoder=False)
    content = {
        "config": plain(config),
        "tasks": tasks_to_plain(tasks()),
        "network": network.state_dict(),
        "metrics": {},
        "step": 0,
    }
    save_checkpoint(tmp_path / "c.pt", content)
    loaded = load_network(tmp_path / "c.pt")
    assert torch.equal(loaded.decoder.adapt[0].weight, network.decoder.adapt[0].weight) and not loaded.training
