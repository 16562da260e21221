from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, shared
from helpers import settings, tasks
from PIL import Image
from torch import nn

from deploy import backends
from deploy.backends import BACKENDS, Backend, open_backend
from deploy.folding import simplified
from deploy.image_folder import Job, predict_files
from deploy.predictor import Predictor
from deploy.signature import Signature, make_signature
from images import read_image
from model import Network, build_network, load_network
from tasks import tasks_to_plain

FAST = [name for name, kind in BACKENDS.items() if name not in ("compile", "cudagraph", "tensorrt")]


def installed(name: str) -> None:
    for package in BACKENDS[name].needs:
        pytest.importorskip(package)


def trained_like(encoder: str, **values: object) -> Network:
    """A network whose batch norms do something and whose outputs are not all alike."""
    torch.manual_seed(0)
    network = build_network(settings(encoder, long_side=0, **values), tasks(6, normals=True))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def network() -> Network:
    return trained_like("mobilenetv2_paper", decoder_width=32)


@pytest.fixture(scope="module")
def opened(network: Network) -> Callable[[str], Backend]:
    """opened(name) -> the network in this back end, in fp32; opened once, which takes seconds."""

    @functools.cache
    def call(name: str) -> Backend:
        installed(name)
        return open_backend(network, name, precision="fp32")

    return call


@pytest.mark.parametrize(("encoder", "values"), [
    ("mobilenetv2_paper", {}), ("tf_efficientnet_lite0", {}), ("resnet18", {}), ("resnet50", {}), ("convnext_tiny", {}),
    ("unet_512", {"decoder": "unet"}), ("unet", {"decoder": "unet", "unet_upsampling": "transposed"}),
], ids=str)  # fmt: skip
def test_the_simplified_network_gives_the_same(encoder, values):
    network = trained_like(encoder, **values).double()
    images = torch.randint(0, 256, (1, 3, 67, 93), dtype=torch.uint8)
    folded = simplified(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        before, after = network(images), folded(images)
    for name, value in before.items():
        assert torch.allclose(after[name], value, rtol=0, atol=1e-9 * float(value.abs().max())), name
    assert all(isinstance(folded.heads[name][2], nn.Sequential) for name in ("depth", "normals"))
    assert encoder == "convnext_tiny" or any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", FAST)
def test_every_back_end_gives_what_the_network_gives(name, network, opened):
    backend = opened(name)
    for shape in ((1, 96, 128), (2, 61, 87), (1, 33, 200)):  # one back end, several sizes and batches
        images = torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
        with torch.inference_mode():
            expected = network(images)
        for task, raw in backend(images).items():
            # Random weights amplify rounding a thousandfold (1e-6 on the image becomes 1e-3 here).
            assert raw.shape == expected[task].shape and raw.dtype == torch.float32
            assert torch.allclose(raw, expected[task], atol=5e-3 * float(expected[task].abs().max())), (task, shape)


@pytest.mark.parametrize("name", FAST)
def test_every_back_end_predicts_at_the_size_of_the_picture(name, network, opened):
    image = np.random.default_rng(0).integers(0, 256, (75, 101, 3), np.uint8)
    reference, result = Predictor(network, "eager")(image), Predictor(opened(name))(image)
    assert result["segmentation"].shape == (75, 101) and result["segmentation"].dtype == np.uint8
    assert (result["segmentation"] == reference["segmentation"]).mean() > 0.999
    assert np.allclose(result["depth"], reference["depth"], rtol=1e-2, atol=1e-3)
    again = Predictor(network, name, precision="fp32", mirror=True)(image)
    assert again["depth"].shape == (75, 101) and not np.array_equal(again["depth"], result["depth"])


@pytest.mark.parametrize("name", FAST)
def test_results_are_the_callers_to_keep(name, opened):
    predictor = Predictor(opened(name))
    rng = np.random.default_rng(0)
    first = predictor(rng.integers(0, 256, (64, 96, 3), np.uint8))
    kept = {task: value.copy() for task, value in first.items()}
    predictor(rng.integers(0, 256, (64, 96, 3), np.uint8))
    assert all(np.array_equal(first[task], kept[task]) for task in kept)


def test_a_batch_is_its_images(network):
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8) for seed in range(3)]
    predictor = Predictor(network, "eager")
    for image, together in zip(images, predictor.batch(images), strict=True):
        alone = predictor(image)
        assert (together["segmentation"] == alone["segmentation"]).mean() > 0.999
        assert np.allclose(together["depth"], alone["depth"], rtol=1e-3, atol=1e-4)


def test_a_real_frame_in_every_back_end():
    frame = shared("data/camvid")
    picture = read_image(next(path for path in sorted(frame.rglob("*.png")) if "annot" not in str(path.parent)))
    weights = shared("weights/tf_efficientnet_lite0-imagenet.safetensors")
    network = build_network(
        settings("tf_efficientnet_lite0", encoder_weights=str(weights), long_side=480), tasks()
    ).eval()
    reference = Predictor(network, "eager")(picture)
    for name in FAST:
        if not all(importlib.util.find_spec(package) for package in BACKENDS[name].needs):
            continue
        result = Predictor(network, name, precision="fp32")(picture)
        assert (result["segmentation"] == reference["segmentation"]).mean() > 0.998, name
        assert np.allclose(result["depth"], reference["depth"], rtol=1e-2), name


def test_a_signature_comes_back_from_its_text(network):
    signature = make_signature(network, network.tasks, size=(480, 640), batch=1)
    back = Signature.from_json(signature.to_json(), "x")
    assert back == signature and tasks_to_plain(back.tasks) == tasks_to_plain(network.tasks)
    with pytest.raises(ValueError, match=r"^x: its metadata do not fit this code \(.*version 9"):
        Signature.from_json(signature.to_json().replace('"version": 2', '"version": 9'), "x")
    with pytest.raises(ValueError, match=r"^x: its metadata do not fit"):
        Signature.from_json("[]", "x")


def test_mistakes_are_named(network, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'openvino'"):
        open_backend(network, "openvin")
    with pytest.raises(ValueError, match="needs a CUDA device"):
        open_backend(network, "cudagraph")
    with pytest.raises(FileNotFoundError, match=r"x\.onnx: no such file"):
        open_backend(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"--backend openvino: .*x\.onnx runs in onnxruntime"):
        (tmp_path / "x.onnx").write_text("text")
        open_backend(tmp_path / "x.onnx", "openvino")


def test_a_missing_package_says_what_to_install(network, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"openvino is not installed: pip install -r requirements/deploy\.txt"):
        open_backend(network, "openvino")
    assert backends.fastest(torch.device("cpu")) == "eager"
    assert (ROOT / "requirements/deploy.txt").is_file()


def test_calls_from_several_threads(network):
    installed("openvino")
    backend = open_backend(network, "openvino", precision="fp32")
    images = [torch.randint(0, 256, (1, 3, 64, 96 + 32 * (number % 2)), dtype=torch.uint8) for number in range(12)]
    expected = [backend(image)["depth"] for image in images]
    with ThreadPoolExecutor(backend.concurrent()) as pool:
        for raws, wanted in zip(pool.map(backend, images), expected, strict=True):
            assert torch.allclose(raws["depth"], wanted, atol=5e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["eager", "openvino"])  # ONNX files: test_export
def test_a_trained_checkpoint_predicts_in_every_back_end(name, trained, rooms_folder):
    installed(name)
    picture = read_image(rooms_folder / "rgb" / "000001.png")
    expected = Predictor(load_network(trained / "best.pt"), "eager", precision="fp32")(picture)
    found = Predictor(trained / "best.pt", name, precision="fp32")(picture)
    assert (found["segmentation"] == expected["segmentation"]).mean() > 0.999
    assert np.allclose(found["depth"], expected["depth"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_a_folder_in_streams_gives_what_single_images_give(name, trained, rooms_folder, tmp_path):
    installed(name)
    predictor = Predictor(trained / "best.pt", name, precision="fp32")
    pictures = sorted((rooms_folder / "rgb").iterdir())[:6]
    expected = [predictor(read_image(picture))["segmentation"] for picture in pictures]
    threads = torch.get_num_threads()
    stems = [tmp_path / picture.stem for picture in pictures]
    jobs = [Job(*pair, number // 2) for number, pair in enumerate(zip(pictures, stems, strict=True))]
    assert predict_files(predictor, [*jobs, Job(tmp_path / "none.png", tmp_path / "none")]) == 1
    assert torch.get_num_threads() == threads
    for stem, wanted in zip(stems, expected, strict=True):
        found = np.asarray(Image.open(f"{stem}_segmentation.png"))
        assert (found == wanted).mean() > 0.999 and Path(f"{stem}_overview.jpg").is_file()


def test_signals_survive_back_ends_that_come_and_go(tmp_path):
    installed("openvino")
    program = tmp_path / "program.py"
    program.write_text("""
import faulthandler, signal, sys
faulthandler.enable()  # as pytest does: signals get a stack of their own
import torch
from test_backends import trained_like
from deploy.backends import open_backend
network, image = trained_like("resnet18", decoder_width=16), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
first, second = (open_backend(network, "openvino") for _ in range(2))
first(image), second(image)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
signal.raise_signal(signal.SIGUSR1)
""")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, str(program)], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "heard" in done.stdout, (done.returncode, done.stderr)
