from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loss
from config import make_config
from deploy.backends import open_backend
from model import build_network
from networks.decoders import DECODERS, Head, LightWeightRefineNet, UNet, build_decoder, fit, initialise_small
from networks.encoders import PaperMobileNetV2, UNetEncoder, build_encoder
from tasks import Depth, Segmentation

SIZES = ((97, 131), (33, 47), (64, 96))
TINY = (8, 16, 32, 64, 128)
SETTINGS = [
    SimpleNamespace(decoder="refinenet", decoder_width=16, crp_stages=2, context="none"),
    SimpleNamespace(decoder="refinenet", decoder_width=16, crp_stages=2, context="attention"),
    SimpleNamespace(decoder="unet", unet_upsampling="transposed"),
    SimpleNamespace(decoder="unet", unet_upsampling="bilinear"),
]


def parameters(*modules: nn.Module) -> int:
    return sum(item.numel() for module in modules for item in module.parameters())


def unet(encoder: nn.Module, transposed: bool) -> UNet:
    decoder = UNet(encoder.channels, encoder.strides, transposed)
    decoder.initialise()
    return decoder


# ---------------------------------------------------------------------------------------------- every decoder


@pytest.mark.parametrize("config", SETTINGS, ids=["refinenet", "attention", "transposed", "bilinear"])
@pytest.mark.parametrize(
    "name",
    ["unet", "mobilenetv2_paper", "resnet18", "tf_efficientnet_lite0", "mobilenetv2_100", "convnext_atto", "vgg11_bn"],
)
def test_every_decoder_takes_every_encoder_at_odd_sizes(name, config):
    finest = DECODERS[config.decoder].finest_stride
    # The usual width is slow on a CPU; the strides are the same.
    encoder = UNetEncoder(finest, TINY) if name == "unet" else build_encoder(name, finest_stride=finest)
    decoder = build_decoder(config, encoder.channels, encoder.strides)
    decoder.initialise()
    encoders_finest = {"unet": 1, "vgg11_bn": 1, "convnext_atto": 4}.get(name, 2)
    assert decoder.stride == encoder.strides[0] == max(finest, encoders_finest)
    encoder.eval(), decoder.eval()
    with torch.inference_mode():
        for height, width in SIZES:
            features = encoder(torch.randn(1, 3, height, width))
            assert [item.shape[1] for item in features] == list(encoder.channels)
            # Some encoders drop the odd row, others keep it; the decoder follows.
            maps = decoder(features)
            assert maps[0].shape == (1, decoder.width, *features[0].shape[-2:])
            assert [item.shape[1] for item in maps] == list(decoder.channels)
            last = dict(zip(encoder.strides, features, strict=True))
            assert [item.shape[-2:] for item in maps] == [last[stride].shape[-2:] for stride in decoder.strides]
            for stride, feature in zip(encoder.strides, features, strict=True):
                sizes = zip((height, width), feature.shape[-2:], strict=True)
                assert all(got in (full // stride, -(-full // stride)) for full, got in sizes)


@pytest.mark.parametrize("config", SETTINGS, ids=["refinenet", "attention", "transposed", "bilinear"])
def test_every_stride_and_every_parameter_is_used(config):
    channels, strides = (4, 6, 8, 10, 12), (4, 8, 16, 16, 32)
    decoder = build_decoder(config, channels, strides).train()
    decoder.initialise()
    features = [
        torch.randn(2, count, 96 // stride, 64 // stride, requires_grad=True)
        for count, stride in zip(channels, strides, strict=True)
    ]
    decoder(features)[0].square().sum().backward()
    used = [feature.grad is not None and bool(feature.grad.any()) for feature in features]
    assert used == [True, True, config.decoder != "unet", True, True]  # U-Net: the last one of a stride
    assert all(item.grad is not None and item.grad.isfinite().all() for item in decoder.parameters())


@pytest.mark.parametrize("config", SETTINGS[2:], ids=["transposed", "bilinear"])
def test_strides_may_lie_apart(config):
    decoder = build_decoder(config, (4, 8, 7), (2, 8, 32)).eval()
    features = [torch.randn(1, 4, 35, 51), torch.randn(1, 8, 9, 13), torch.randn(1, 7, 3, 4)]
    assert decoder(features)[0].shape == (1, 4, 35, 51)
    assert (decoder.width, decoder.stride) == (4, 2)


def test_the_network_draws_the_same_random_numbers_as_ever():
    """Encoder, decoder, heads, then the decoder's initial weights, then the heads': runs of one seed repeat."""
    tasks = {"segmentation": Segmentation(classes=("a", "b"), colors=((0, 0, 0), (9, 9, 9))), "depth": Depth()}
    config = make_config({"encoder": "resnet18", "decoder_width": 16, "crp_stages": 2}, "test")
    torch.manual_seed(5)
    network = build_network(config, tasks)
    torch.manual_seed(5)
    encoder = build_encoder("resnet18")
    decoder = LightWeightRefineNet(encoder.channels, encoder.strides, 16, 2)
    heads = nn.ModuleDict({name: Head(16, task.channels) for name, task in tasks.items()})
    decoder.initialise()
    heads.apply(initialise_small)
    for part, expected in (("encoder", encoder), ("decoder", decoder), ("heads", heads)):
        actual = network.get_submodule(part).state_dict()
        assert actual.keys() == expected.state_dict().keys()
        assert all(torch.equal(value, actual[name]) for name, value in expected.state_dict().items()), part


# ---------------------------------------------------------------------------------------------- U-Net


@pytest.mark.parametrize(("name", "transposed", "classes", "expected"), [
    ("unet", True, 2, 31_037_698),  # milesial/Pytorch-UNet, UNet(3, 2, bilinear=False)
    ("unet_512", False, 1, 17_262_977),  # UNet(3, 1, bilinear=True)
    ("unet", False, 0, 29_061_440),
])  # fmt: skip
def test_unet_has_the_parameters_that_people_know(name, transposed, classes, expected):
    with torch.device("meta"):
        encoder = build_encoder(name, finest_stride=1)
        decoder = UNet(encoder.channels, encoder.strides, transposed)
    assert parameters(encoder, decoder) + classes * (decoder.width + 1) == expected
    assert (decoder.width, decoder.stride) == (64, 1)


def test_unet_is_the_network_of_the_papers_figure():
    """The forward pass written again from figure 1 with torch's functions, on the weights in their order."""
    encoder = UNetEncoder(widths=(4, 8, 16))
    decoder = unet(encoder, transposed=True)
    weights = iter([*encoder.parameters(), *decoder.convs.parameters()])
    ups = iter(decoder.upsample.parameters())

    def twice(x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.conv2d(x, next(weights), padding=1)
            x = F.relu(F.batch_norm(x, None, None, next(weights), next(weights), training=True))
        return x

    image = torch.randn(2, 3, 24, 32)
    one = twice(image)
    two = twice(F.max_pool2d(one, 2))
    three = twice(F.max_pool2d(two, 2))
    up = twice(torch.cat([two, F.conv_transpose2d(three, next(ups), next(ups), stride=2)], 1))
    up = twice(torch.cat([one, F.conv_transpose2d(up, next(ups), next(ups), stride=2)], 1))
    assert torch.allclose(decoder.train()(encoder.train()(image))[0], up, atol=1e-5)
    assert next(weights, None) is None and next(ups, None) is None


@pytest.mark.parametrize("transposed", [True, False])
def test_upsampled_pixels_stay_where_they_were(transposed):
    upsample = UNet((1, 2), (4, 8), transposed).upsample[0]
    if transposed:
        nn.init.constant_(upsample.weight, 0.5), nn.init.zeros_(upsample.bias)
    coarse = torch.arange(12.0).reshape(1, 1, 3, 4).expand(1, 2, 3, 4)
    blocks = F.avg_pool2d(upsample(coarse), 2)[:, 0]  # each pixel becomes 2x2
    # Bilinear interpolation keeps the means of a slope, except where it ends.
    assert torch.allclose(blocks[:, 1, 1:3], coarse[:, 0, 1, 1:3])
    assert not transposed or torch.allclose(blocks, coarse[:, 0])


def test_fit_crops_and_repeats_at_the_far_end():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert torch.equal(fit(x, 2, 3), x)
    assert fit(x, 1, 2).tolist() == [[[[0, 1]]]]
    assert fit(x, 3, 4).tolist() == [[[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]]]
    assert fit(x, 3, 2).tolist() == [[[[0, 1], [3, 4], [3, 4]]]]


@pytest.mark.parametrize("transposed", [True, False])
def test_unet_starts_with_unit_scale(transposed):
    """He's weights: a feature's variance neither vanishes nor grows before batch norm has seen anything."""
    encoder = UNetEncoder(widths=TINY)
    decoder = unet(encoder, transposed)
    encoder.eval(), decoder.eval()  # batch norm is the identity now
    with torch.inference_mode():
        output = decoder(encoder(torch.randn(2, 3, 64, 64)))[0]
    assert 0.1 < output.square().mean() < 10
    assert encoder.stages[3][0].weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_small_unet_learns_a_picture(transposed):
    encoder = UNetEncoder(widths=TINY)
    network = nn.Sequential(encoder, unet(encoder, transposed)).train()
    last = nn.Conv2d(8, 2, 1)
    image = torch.rand(1, 3, 33, 47)
    target = (F.avg_pool2d(image, 5, 1, 2)[:, 0] > 0.5).long()
    valid = torch.ones_like(target, dtype=torch.bool)
    optimizer = torch.optim.Adam([*network.parameters(), *last.parameters()], lr=0.01)
    values = []
    for _ in range(25):
        logits = last(network(image)[0])
        value = loss.mean(loss.cross_entropy(logits, target, valid)) + loss.mean(loss.dice(logits, target, valid))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.4 * values[0], values


# ---------------------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize(("name", "finest", "strides"), [
    ("resnet18", 4, (4, 8, 16, 32)), ("resnet18", 2, (2, 4, 8, 16, 32)), ("resnet18", 1, (2, 4, 8, 16, 32)),
    ("convnext_atto", 2, (4, 8, 16, 32)), ("mobilenetv2_paper", 4, (4, 8, 16, 16, 32, 32)),
    ("mobilenetv2_paper", 2, (2, 4, 8, 16, 16, 32, 32)), ("unet", 4, (4, 8, 16)), ("unet", 1, (1, 2, 4, 8, 16)),
])  # fmt: skip
def test_features_begin_at_the_finest_stride(name, finest, strides):
    encoder = build_encoder(name, finest_stride=finest)
    assert encoder.strides == strides and len(encoder.channels) == len(strides)


def test_a_finer_start_changes_no_other_feature():
    coarse, fine = PaperMobileNetV2().eval(), PaperMobileNetV2(2).eval()
    fine.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        first, *others = fine(image)
        assert first.shape == (1, 16, 32, 32)
        assert all(torch.equal(a, b) for a, b in zip(others, coarse(image), strict=True))


def test_unet_encoder_weights_come_from_a_file(tmp_path):
    source = UNetEncoder(widths=(64, 128, 256, 512, 512))
    torch.save(source.state_dict(), tmp_path / "unet.pth")
    loaded = build_encoder("unet_512", str(tmp_path / "unet.pth"))
    assert torch.equal(loaded.stages[4][3].weight, source.stages[4][3].weight)
    with pytest.raises(ValueError, match=r"stages\.4\.0\.weight has shape"):
        build_encoder("unet", str(tmp_path / "unet.pth"))
    with pytest.raises(ValueError, match="unet has none to download"):
        build_encoder("unet", "imagenet")


# ------------------------------------------------------------------------------------------- the feature pyramid


@pytest.mark.parametrize("kind", ["fpn", "fpn_bn"])
def test_a_feature_pyramid_has_one_map_more_and_uses_the_last_feature_of_a_stride(kind):
    config = SimpleNamespace(decoder=kind, decoder_width=16)
    channels, strides = (4, 6, 8, 10, 12), (4, 8, 16, 16, 32)
    decoder = build_decoder(config, channels, strides)
    decoder.initialise()
    assert (decoder.strides, decoder.channels) == ((4, 8, 16, 32, 64), (16,) * 5)
    for height, width in SIZES:
        features = [
            torch.randn(2, count, -(-height // stride), -(-width // stride), requires_grad=True)
            for count, stride in zip(channels, strides, strict=True)
        ]
        maps = decoder(features)
        used = [features[level] for level in (0, 1, 3, 4)]
        assert [item.shape[-2:] for item in maps[:4]] == [item.shape[-2:] for item in used]
        assert torch.equal(maps[4], maps[3][..., ::2, ::2])
        inputs = [*used, *decoder.parameters()]
        assert all(item.any() for item in torch.autograd.grad(sum((item**3).sum() for item in maps), inputs))
    with_two = build_decoder(config, (5, 7), (32, 32))
    assert with_two.strides == (32, 32, 64), "of one stride alone, all features"
    assert [item.shape[-2:] for item in with_two([torch.rand(1, 5, 3, 4), torch.rand(1, 7, 3, 4)])][:2] == [(3, 4)] * 2


def test_dense_tasks_on_a_feature_pyramid_are_in_a_graph_of_any_size():
    pytest.importorskip("onnxruntime", reason="needs requirements/deploy.txt")
    config = make_config({"encoder": "mobilenetv2_paper", "decoder": "fpn", "decoder_width": 16}, "test")
    network = build_network(config, {"depth": Depth()}).eval()
    nn.init.normal_(network.heads["depth"][-1].weight)
    backend = open_backend(network, "onnxruntime", precision="fp32")
    for height, width in SIZES[:2]:
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        with torch.inference_mode():
            wanted = network(image)["depth"]
        assert wanted.shape[-2:] == (-(-height // 4), -(-width // 4)) and wanted.std() > 0.01
        assert torch.allclose(backend(image)["depth"], wanted, rtol=1e-3, atol=1e-4)
