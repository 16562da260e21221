"""The benchmarks run and print what they should. How fast anything is, no test asks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, only_error_line
from test_model import settings, tasks
from torch import nn

from benchmarks import scaling
from benchmarks.latency import Reference
from benchmarks.scaling import Point, growing, measure_growth, plot_growth
from benchmarks.timing import Options, in_turn, traffic
from deploy.predictor import Predictor
from model import build_network


def test_the_table_of_networks(script):
    done = script("benchmark.py", "--encoders", "mobilenetv2_paper,resnet18", "--size", "160x120", "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "| `mobilenetv2_paper` | 3,070,057 |" in done.stdout and "| `resnet18` | 12,501,353 |" in done.stdout
    assert "160x120" in done.stdout and "torch" in done.stdout


def test_back_ends_side_by_side(script, trained, tmp_path):
    report = tmp_path / "report.json"
    done = script("benchmark.py", "backends", "--checkpoint", trained / "best.pt", "--size", "96x72", "--repeats", 2,
                  "--batch_size", "1,2", "--rows", "eager,cudagraph", "--json", report)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, larger = json.loads(report.read_text())["results"]
    assert (found["batch"], larger["batch"]) == (1, 2)
    assert {"reference", "eager"} <= found["ms"].keys() and all(len(times) == 2 for times in found["ms"].values())
    assert "cudagraph: left out" in done.stdout or torch.cuda.is_available()
    assert found["backends"]["eager"]["network_ms"] > 0 and "| reference |" in done.stdout


def test_a_folder(script):
    done = script("benchmark.py", "folder", "--size", "96x72", "--repeats", 2, "--classes", 5)
    assert done.returncode == 0, done.stderr
    assert "| inference.py, " in done.stdout and "8 JPEG files of 96x72" in done.stdout


def test_a_video(script, trained):
    pytest.importorskip("av")
    done = script("benchmark.py", "video", "--checkpoint", trained / "best.pt", "--size", "96x72", "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "| inference.py, all of it |" in done.stdout
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith(("| 0 |", "| 0.9 |"))]
    assert float(rows[1][3]) < 0.5 * float(rows[0][3]), "smoothed depth flickers less"


def test_growth(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    few = {"size": {"64x64": Point(64, 64), "96x64": Point(96, 64)}, "tasks": {"3": Point(64, 64, classes=5, tasks=3)}}
    monkeypatch.setattr(scaling, "growing", lambda options: few)
    monkeypatch.chdir(ROOT)
    options = Options(64, 64, 5, (1,), "auto", 1, torch.device("cpu"), None, (), 0, ())
    results = measure_growth(options, ("mobilenetv2_paper",))
    assert [(item["series"], item["value"]) for item in results] == [
        ("size", "64x64"),
        ("size", "96x64"),
        ("tasks", "3"),
    ]
    assert results[1]["multiply_adds"] > results[0]["multiply_adds"] and "| tasks | 3 |" in capsys.readouterr().out
    plot_growth(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_what_grows():
    everything = growing(Options(640, 480, 40, (1,), "auto", 1, torch.device("cpu"), None, (), 0, ()))
    assert everything.keys() == {"size", "batch", "classes", "tasks"} and "1280x960" in everything["size"]


def test_training_steps(script):
    options = ["--encoders", "mobilenetv2_100", "--size", "64x48", "--repeats", 1, "--batch_size", 2, "--device", "cpu"]
    done = script("benchmark.py", "--train", *options)
    assert done.returncode == 0, done.stderr
    assert "| `mobilenetv2_100` | 2 | returned |" in done.stdout and "| `mobilenetv2_100` | 2 | kept |" in done.stdout


def test_the_training_loop(script, tiny_settings):
    done = script("benchmark.py", "--train", "--config", tiny_settings, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "waiting for data" in done.stdout and "Validation, 4 frames of" in done.stdout


def test_the_reference_is_the_same_network():
    torch.manual_seed(0)
    network = build_network(settings("mobilenetv2_100", long_side=0, decoder_width=32), tasks(5)).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    ours, theirs = Predictor(network, "eager")(image), Reference(network)(image)
    assert (ours["segmentation"] == theirs["segmentation"]).mean() > 0.9, "bilinear and cubic are not quite the same"


def test_calls_take_turns():
    order = []
    times = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, torch.device("cpu"), 3)
    assert order == ["a", "a", "b", "b"] * 3 and [len(values) for values in times.values()] == [3, 3]


def test_traffic_by_hand():
    convolution = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False))
    convolution.mean = torch.zeros(3)
    assert traffic(convolution, 32, 48) == (3 + 64) * 32 * 48 + 3 * 64 * 9


def test_mistakes_get_one_line(script):
    assert "did you mean 'resnet18'?" in only_error_line(script("benchmark.py", "--encoders", "resnet1"))
    assert "size" in only_error_line(script("benchmark.py", "--size", "640"))
    unknown = only_error_line(script("benchmark.py", "backends", "--size", "64x64", "--rows", "egaer"))
    assert "did you mean 'eager'?" in unknown
    assert "repeats" in only_error_line(script("benchmark.py", "--train", "--repeats", 0))
