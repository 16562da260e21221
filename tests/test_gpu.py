"""On a GPU what the CPU gives: back ends, training steps, whole trainings, evaluation. Skipped where there is none."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from small_training import _signals_and_memory, built  # noqa: F401
from test_backends import trained_like

from benchmarks.timing import random_network
from config import Config
from dataset import Frames, eval_loader
from deploy.backend_base import STATIC_SHAPES
from deploy.backends import Backend, open_backend
from deploy.predictor import Predictor
from folders import read_folder, read_list
from geometry import argmax_resized
from images import SAMPLE, read_image
from model import Network, load_network
from networks.checkpoints import SHIPPED
from training.evaluation import accumulate, values_of
from training.step import convert_sync_batchnorm

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(GPU.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]  # fmt: skip
SHAPES = ((1, 96, 128), (2, 61, 87), (1, 33, 200), (3, 480, 640), (1, 96, 128))


@pytest.fixture(autouse=True)
def _whole_fp32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions of fp32 in fp32: by default a GPU rounds their inputs to 10 bits (TF32)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield


def close(found: torch.Tensor, expected: torch.Tensor, share: float) -> bool:
    """Whether no value is farther off than this share of the largest."""
    return bool(((found.float().cpu() - expected.float().cpu()).abs() <= share * expected.abs().max().cpu()).all())


# ---------------------------------------------------------------------------------------------- back ends


@pytest.fixture(scope="module")
def network() -> Network:
    return trained_like("mobilenetv2_paper", decoder_width=32)


@pytest.fixture(scope="module")
def opened(network: Network) -> Callable[[str], Backend]:
    return functools.cache(lambda name: open_backend(copy.deepcopy(network), name, GPU, "fp32"))


@pytest.mark.parametrize("name", ["eager", "cudagraph"])
def test_a_back_end_gives_what_the_cpu_gives(name, network, opened):
    for shape in SHAPES:  # one back end, several sizes and batches in turn
        images = torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
        sizes = dict.fromkeys(network.tasks, shape[1:])
        with torch.inference_mode():
            expected = network(images)
            raw = opened(name)(images)
            for _ in range(2):  # a graph is made at the second time
                found = opened(name).predict(images, sizes)
            whole = open_backend(network, "eager").predict(images, sizes)
        for task, value in raw.items():
            assert close(value, expected[task], 5e-3), (task, shape)
        assert (found["segmentation"].cpu() == whole["segmentation"]).float().mean() > 0.999, shape
        assert close(found["depth"], whole["depth"], 1e-2), shape


def test_graphs_of_many_sizes_come_and_go(network):
    backend = open_backend(copy.deepcopy(network), "cudagraph", GPU, "fp32")
    sides = [32 * number for number in range(1, STATIC_SHAPES + 4)]
    images = {side: torch.randint(0, 256, (1, 3, 64, side), dtype=torch.uint8) for side in sides}
    for _ in range(2):  # a graph is made at the second time
        first = {side: Predictor(backend)(image[0].permute(1, 2, 0).numpy()) for side, image in images.items()}
    kept = copy.deepcopy(first)
    for side in range(40, 140):  # these push what the graphs read out of the cache of geometry.py
        argmax_resized(torch.zeros(1, 6, 16, 16, device=GPU), (side, side))
    for side in reversed(sides):
        again = Predictor(backend)(images[side][0].permute(1, 2, 0).numpy())
        assert np.array_equal(again["segmentation"], first[side]["segmentation"]), side
        assert np.array_equal(first[side]["depth"], kept[side]["depth"]), "results are the caller's to keep"


@pytest.mark.parametrize("name", ["eager", "cudagraph"])
def test_calls_from_several_threads(name, network):
    backend = open_backend(copy.deepcopy(network), name, GPU, "fp32")
    pictures = [np.random.default_rng(seed).integers(0, 256, (64, 96 + 32 * (seed % 3), 3), np.uint8)
                for seed in range(24)]  # fmt: skip
    predictor = Predictor(backend)
    expected = [predictor(picture)["depth"] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(predictor, pictures), expected, strict=True):
            assert np.allclose(found["depth"], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["eager", "cudagraph"])
def test_the_shipped_weights_see_the_same_on_a_photograph(name, precision):
    picture = read_image(SAMPLE)
    expected = Predictor(SHIPPED, "eager", "cpu", "fp32")(picture)
    predictor = Predictor(SHIPPED, name, GPU.type, precision)
    found = [predictor(picture) for _ in range(2)][1]
    same, off = {"fp32": (0.999, 1e-3), "fp16": (0.99, 0.01), "bf16": (0.96, 0.05)}[precision]
    assert (found["segmentation"] == expected["segmentation"]).mean() > same
    assert np.abs(found["depth"] / expected["depth"] - 1).mean() < off


@pytest.mark.parametrize("name", ["boxes", "instances"])
def test_things_with_their_distances_follow_a_graph(name):
    """How much there is to compute for them depends on what was found, which no graph can do."""
    config = Config(encoder="mobilenetv2_100", decoder_width=16, crp_stages=1)
    network = random_network(config, 6, ("segmentation", "depth", name)).eval()
    backends = [open_backend(copy.deepcopy(network), kind, GPU, "fp32") for kind in ("eager", "cudagraph")]
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    for _ in range(3):
        found, wanted = (item.predict(images, dict.fromkeys(network.tasks, (96, 128))) for item in backends)
        for task, value in found.items():
            assert torch.allclose(value.float(), wanted[task].float(), 1e-3, 1e-3, equal_nan=True), task
    assert len(backends[1].graphs) == 1


def test_compile_gives_the_same():
    network = trained_like("resnet18", decoder_width=16, crp_stages=1)
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(images)
        found = open_backend(copy.deepcopy(network), "compile", GPU, "fp32")(images)
    assert all(close(found[task], expected[task], 5e-3) for task in expected)


def test_a_graph_file_runs_where_its_runtime_runs(network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    backend = open_backend(copy.deepcopy(network), "onnxruntime", "auto")  # falls back where the package is the CPU's
    assert close(backend(torch.zeros(1, 3, 96, 128, dtype=torch.uint8))["depth"],
                 network(torch.zeros(1, 3, 96, 128, dtype=torch.uint8))["depth"], 5e-3)  # fmt: skip
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match="this onnxruntime has no CUDAExecutionProvider"):
            open_backend(copy.deepcopy(network), "onnxruntime", GPU)


# ---------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_has_the_losses_of_the_cpu(precision, rooms_folder):
    """fp16 has a gradient scaler, which begins too high: its first updates are skipped."""
    losses = {}
    for device in ("cpu", GPU.type):
        torch.manual_seed(0)
        on_cpu = device == "cpu"
        training, batches = built(rooms_folder, device=device, precision="fp32" if on_cpu else precision, batch_size=8)
        losses[device] = {name: float(value) for name, value in training.take_step(batches[:1]).items()}
        for batch in batches[1:3]:
            training.take_step([batch])
        assert training.scaler.is_enabled() == (not on_cpu and precision == "fp16")
        assert all(value.isfinite().all() for value in training.network.state_dict().values())
        assert training.data_steps == 3 and (training.step == 3 or precision == "fp16")
    share = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.01}[precision]
    assert losses[GPU.type] == pytest.approx(losses["cpu"], rel=share)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_batches_of_four_are_one_of_eight(precision, rooms_folder):
    values = {"device": GPU.type, "precision": precision, "freeze_bn": "true", "optimizer": "sgd", "lr_encoder": 1e-2,
              "lr_decoder": 1e-2, "warmup_steps": 0, "depth_loss": "l1"}  # fmt: skip
    weights = []
    for batch, accumulate_ in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        training, batches = built(rooms_folder, batch_size=batch, accumulate=accumulate_, **values)
        before = {name: value.clone() for name, value in training.network.named_parameters()}
        if training.scaler.is_enabled():
            training.scaler = torch.amp.GradScaler(GPU.type, init_scale=1024.0)
        training.take_step(batches[:accumulate_])
        weights.append({name: value - before[name] for name, value in training.network.named_parameters()})
    share = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02}[precision]
    for name, change in weights[0].items():
        if change.abs().max() > 0:
            assert (weights[1][name] - change).norm() <= share * change.norm() + 1e-6, name


def test_batch_norm_of_all_processes_in_one_is_batch_norm(rooms_folder):
    torch.manual_seed(0)
    training, batches = built(rooms_folder, device=GPU.type, precision="fp32", batch_size=8)
    images = batches[0]["image"].to(GPU)
    expected = copy.deepcopy(training.network).train()(images)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        convert_sync_batchnorm(training.network, GPU)
        assert any("SyncB" in type(module).__name__ for module in training.network.modules())
        found = training.network.train()(images)
        sum(value.float().mean() for value in found.values()).backward()
    finally:
        dist.destroy_process_group()
    assert all(close(found[task].detach(), expected[task].detach(), 5e-3) for task in expected)


# ---------------------------------------------------------------------------------------------- whole trainings


def run(*words: object, timeout: int = 240) -> str:
    """A script in a process of its own: a fork could not use the GPU. Returns what it printed."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SMALL = (
    "--long_side", 0, "--crop", "64,64", "--decoder_width", 16, "--crp_stages", 1, "--batch_size", 4, "--epochs", 2,
    "--eval_every", 1, "--class_weights", "none", "--log_every", 1, "--workers", 2, "--encoder", "mobilenetv2_100",
)  # fmt: skip


def train(rooms_folder: Path, folder: Path, *words: object) -> list[dict[str, object]]:
    run("train.py", "--data", rooms_folder, "--run", folder, *SMALL, "--device", GPU.type, *words)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "words",
    [
        ("--precision", "fp16"),
        ("--tasks", "segmentation,depth,normals,boxes,instances", "--task_weighting", "uncertainty"),
        ("--task_weighting", "upgrad", "--precision", "fp32"),
        ("--ema", 0, "--freeze_bn", "true", "--optimizer", "sgd", "--segmentation_loss", "cross_entropy+dice"),
        ("--context", "attention", "--drop_path", 0.2, "--dropout", 0.1, "--depth_loss", "log", "--rotation", 5),
        ("--tasks", "boxes,masks", "--decoder", "fpn", "--box_layers", "fasterrcnn", "--encoder", "resnet18"),
        ("--tasks", "segmentation,boxes", "--box_layers", "yolo", "--crop", "96,96",
         "--encoder", "darknet:configs/darknet/yolov3-tiny.cfg"),
        ("--encoder", "unet_512", "--decoder", "unet", "--loss_stride", 1),
        ("--teachers", SHIPPED, "--merge_classes", "true"),
        ("--compile", "true", "--encoder", "resnet18", "--epochs", 1),
    ],
    ids=lambda words: " ".join(str(word) for word in words[:2]),
)  # fmt: skip
def test_trainings(words, rooms_folder, tmp_path):
    """Each of the parts that a training may have, to its checkpoint and the evaluation of it."""
    if "upgrad" in words:
        pytest.importorskip("torchjd")
    assert train(rooms_folder, tmp_path / "run", *words)
    run("evaluate.py", "--checkpoint", tmp_path / "run" / "best.pt", "--device", GPU.type)
    run("inference.py", "--checkpoint", tmp_path / "run" / "best.pt", "--input", SAMPLE, "--output", tmp_path,
        "--device", GPU.type)  # fmt: skip


def test_a_training_goes_on_where_it_stopped(rooms_folder, tmp_path):
    """With deterministic kernels where there are some; the sums of the others differ in their last bits."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    words = ("--precision", "fp32", "--epochs", 3, "--warmup_steps", 2)
    train(rooms_folder, whole, *words)
    code = (
        "import sys, signal, train\n"
        "class StopAt:\n    left = 5\n    @property\n    def requested(self):\n"
        "        self.left -= 1\n        return signal.SIGTERM if self.left <= 0 else 0\n"
        "train.StopRequest = StopAt\nsys.argv = sys.argv[1:]\ntrain.main()\n"
    )
    words = ["--data", rooms_folder, "--run", part, *SMALL, "--device", GPU.type, *words]
    stopped = subprocess.run(
        [sys.executable, "-c", code, "train.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert stopped.returncode == 128 + 15, stopped.stderr[-2000:]
    run("train.py", "--resume", part)
    one, other = (load_network(folder / "last.pt").state_dict() for folder in (whole, part))
    for name, value in one.items():
        if value.is_floating_point():
            assert (other[name] - value).norm() <= 0.02 * value.norm() + 1e-3, name


def test_evaluation_has_the_values_of_the_cpu(rooms_folder):
    network = load_network(SHIPPED)
    folder = read_folder(rooms_folder)
    config = Config(data={str(rooms_folder): 1.0}, long_side=network.config.long_side, batch_size=3, workers=2)
    frames = Frames(folder, read_list(folder, "val"), {"depth": network.tasks["depth"]}, config, train=False)
    values = [
        values_of(accumulate(network.to(device), eval_loader(frames, config, pin=device == GPU), device,
                             tasks=frames.tasks))
        for device in (torch.device("cpu"), GPU)
    ]  # fmt: skip
    assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-4)
