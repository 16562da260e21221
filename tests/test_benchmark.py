"""The benchmarks run and print what they should. How fast anything is, no test asks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, only_error_line
from torch import nn

import benchmark
from benchmarks import latency
from benchmarks.latency import Reference
from benchmarks.layers import layer_of, measure_layers
from benchmarks.scaling import Setting, growth_series, measure_folder, measure_growth, plot_growth
from benchmarks.timing import Options, describe, in_turn, p95, random_network, some_tasks, traffic
from config import Config
from deploy.predictor import Predictor
from model import count_cost
from tasks import TASKS
from tools import gpu

CPU = torch.device("cpu")
SMALL = Config(encoder="mobilenetv3_small_050", encoder_weights="none", decoder_width=16, crp_stages=1)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the sample picture is


def test_the_table_of_networks(script):
    done = script("benchmark.py", "--encoders", "mobilenetv2_paper,resnet18", "--size", "160x120", "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "| `mobilenetv2_paper` | 3,070,057 |" in done.stdout and "| `resnet18` | 12,501,353 |" in done.stdout
    assert "torch" in done.stdout.splitlines()[0]
    assert "160x120, batch 1, 40 classes + depth, eager fp32" in done.stdout and ", n = 1." in done.stdout


def test_back_ends_side_by_side(trained, tmp_path, monkeypatch, capsys):
    # The table of networks shows that they come back from new processes, which import torch for seconds each.
    monkeypatch.setattr(latency, "in_new_process", lambda call, *arguments: call(*arguments))
    report = tmp_path / "report.json"
    options = ["--size", "96x72", "--repeats", "2", "--batch_size", "1,2", "--rows", "eager,cudagraph"]
    benchmark.main(["backends", "--checkpoint", str(trained / "best.pt"), *options, "--json", str(report)])
    printed = capsys.readouterr().out
    found, larger = json.loads(report.read_text())["results"]
    assert (found["batch"], larger["batch"]) == (1, 2)
    assert {"reference", "eager"} <= found["ms"].keys() and all(len(times) == 2 for times in found["ms"].values())
    assert "cudagraph: left out" in printed or torch.cuda.is_available()
    assert found["backends"]["eager"]["network_ms"] > 0 and "| reference |" in printed
    assert "classes + depth + normals, 96x72, batch 2" in printed and ", n = 2." in printed


def test_back_ends_without_their_start(monkeypatch, capsys):
    monkeypatch.setattr(latency, "in_new_process", lambda *_: pytest.fail("a process of its own"))
    words = "backends --encoders mobilenetv3_small_050 --size 64x64 --repeats 1 --rows eager,cudagraph --no_start"
    benchmark.main(words.split())
    printed = capsys.readouterr().out
    assert "| eager | fp32 |  |  |  | 0." in printed and "\ncudagraph: left out (" in printed


def test_a_profile_of_a_prediction(tmp_path, monkeypatch):
    gpu.write_profile("mobilenetv3_small_050", "eager", CPU, tmp_path / "profile.log")
    table = (tmp_path / "profile.log").read_text()
    assert "Self CPU time total" in table and "conv2d" in table and "[1, 256, 120, 160]" in table
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        gpu.main()
    assert not (tmp_path / "none").exists()


def test_multiply_adds_and_bytes_of_a_layer():
    maps, small = ("f32", (1, 8, 6, 10)), ("bf16", (1, 4, 3, 5))
    dense = layer_of("a", "Convolution", 1.0, [small, ("bf16", (6, 4, 3, 3))], [("bf16", (1, 6, 3, 5))])
    assert (dense.kind, dense.arithmetic, dense.multiply_adds) == ("convolution 3x3", "bf16", 6 * 15 * 4 * 9)
    assert dense.moved == 2 * (4 * 15 + 6 * 4 * 9 + 6 * 15)
    for weights in ((8, 1, 3, 3), (8, 1, 1, 3, 3)):  # as ONNX and as OpenVINO have them
        each = layer_of("b", "Convolution", 1.0, [maps, ("f32", weights)], [maps])
        assert (each.kind, each.multiply_adds) == ("convolution, depthwise", 8 * 60 * 9)
    pool = layer_of("c", "MaxPool", 1.0, [("uint8", (1, 8, 6, 10))], [("uint8", (1, 8, 6, 10))])
    assert (pool.kind, pool.arithmetic, pool.multiply_adds, pool.moved) == ("max-pooling", "int8", 0, 2 * 480)
    index = layer_of("d", "Shape", 1.0, [maps], [("int64", (4,))])
    assert (index.kind, index.moved) == ("Shape", 4 * 480 + 8 * 4)


def test_where_the_milliseconds_go(capsys, tmp_path):
    """The programs' own layers do all multiply-adds of the network, but for the channels that they fill up."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump({"encoder": SMALL.encoder, "decoder_width": 16, "crp_stages": 1}))
    command = ["layers", "--config", str(config), "--size", "96x64", "--repeats", "2", "--classes", "16"]
    benchmark.main([*command, "--rows", "openvino fp32,onnxruntime", "--json", str(tmp_path / "layers.json")])
    printed = capsys.readouterr().out
    assert "openvino fp32: layers by kind" in printed and "onnxruntime: the slowest layers" in printed
    _, wanted = count_cost(random_network(dataclasses.replace(SMALL, long_side=96), 16).eval(), 64, 96)
    results = json.loads((tmp_path / "layers.json").read_text())["results"]
    for result in results:
        assert len(result["ms"]) == 2 and sum(layer["ms"] for layer in result["layers"]) > 0
        done = sum(layer["multiply_adds"] for layer in result["layers"])
        assert 1 <= done / wanted < (1.3 if result["row"] == "onnxruntime" else 1.05), result["row"]
        kinds = {layer["kind"] for layer in result["layers"]}
        assert {"convolution 1x1", "convolution 3x3", "convolution, depthwise", "max-pooling", "upsampling"} <= kinds
    with pytest.raises(ValueError, match="unknown name 'fast'"):
        benchmark.main(["layers", "--rows", "fast"])
    with pytest.raises(ValueError, match="measured on the CPU, not on cuda"):
        measure_layers(Options(64, 96, 1, torch.device("cuda")), {})


@pytest.mark.parametrize("names", [("segmentation", "depth"), ("depth",), ("normals", "segmentation")], ids=str)
def test_a_folder(names, capsys):
    pytest.importorskip("openvino")
    options = Options(72, 96, 2, CPU)
    measure_folder(options, "some", partial(random_network, SMALL, 5, names))
    printed = capsys.readouterr().out
    assert "| inference.py, " in printed and "8 JPEG files of 96x72" in printed
    assert f"{describe({name: some_tasks(5, 3)[name] for name in names})}.\n" in printed and ", n = 3." in printed


def test_what_each_task_adds(capsys, tmp_path):
    options = ["--encoders", "mobilenetv3_small_050", "--size", "96x72", "--repeats", "2", "--backends", "eager,auto"]
    benchmark.main(["tasks", *options, "--classes", "7", "--json", str(tmp_path / "times.json")])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows.pop(1)  # the line below the titles
    assert [row[1].strip() for row in rows] == ["tasks", "segmentation", "+ depth", "+ boxes"]
    parameters = [int(row[2].replace(",", "")) for row in rows[1:]]
    assert parameters[0] < parameters[1] < parameters[2]
    results = json.loads((tmp_path / "times.json").read_text())["results"]
    assert [(item["backend"], len(item["tasks"]), len(item["ms"])) for item in results] == [
        (backend, count, 2) for count in (1, 2, 3) for backend in ("eager", "auto")
    ]
    for words, message in (("--backends fast", "unknown 'fast'"), ("--tasks depht", "unknown task 'depht'")):
        with pytest.raises(ValueError, match=message):
            benchmark.main(["tasks", *words.split()])


def test_networks_of_all_tasks_have_classes():
    tasks = some_tasks(5, len(TASKS))
    assert list(tasks) == list(TASKS) and len(tasks["boxes"].classes) == len(tasks["segmentation"].classes) == 5
    network = random_network(dataclasses.replace(SMALL, long_side=0), 5, list(TASKS)).eval()
    found = Reference(network)(np.zeros((72, 96, 3), np.uint8))
    assert found["segmentation"].shape == (72, 96) and found["boxes"].shape[1] == 7


def test_a_video(trained, capsys):
    pytest.importorskip("av")
    benchmark.main(["video", "--checkpoint", str(trained / "best.pt"), "--size", "96x72", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "| inference.py, all of it |" in printed and ", n = 1." in printed
    rows = [line.split("|") for line in printed.splitlines() if line.startswith(("| 0 |", "| 0.9 |"))]
    assert float(rows[1][3]) < 0.5 * float(rows[0][3]), "smoothed depth flickers less"


def test_growth(tmp_path, capsys):
    few = {"size": [Setting(0.004, "64x64", 64, 64)], "tasks": [Setting(3, "3", 128, 96, classes=5, tasks=3)]}
    results = measure_growth(Options(64, 64, 1, CPU), ("mobilenetv3_small_050",), few, (1, 2))
    assert [(item["series"], item["value"], item["x"], item["threads"]) for item in results] == [
        ("size", "64x64", 0.004, 1), ("size", "64x64", 0.004, 2), ("tasks", "3", 3, 1), ("tasks", "3", 3, 2),
    ]  # fmt: skip
    assert results[2]["multiply_adds"] > results[0]["multiply_adds"] and results[0]["memory_mb"] > 1
    printed = capsys.readouterr().out
    assert printed.count("| multiply-adds | ms a batch, 1 thread | ms a batch, 2 threads | memory MB |") == 2
    assert "| tasks | multiply-adds |" in printed and "\n| 64x64 | 0." in printed
    plot_growth(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_axes_of_growth_are_true_to_scale(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **_: drawn.append((list(x), list(y))))
    series = growth_series(480, 640)
    results = [{"encoder": "a", "series": name, "x": setting.x, "ms": [2.0], "memory_mb": 3.0, "threads": 1}
               for name, settings in series.items() for setting in settings]  # fmt: skip
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    plot_growth(results, tmp_path / "growth.png")
    assert [set(y) for _, y in drawn] == [{2.0}, {3.0}] * len(series), "a chart of the time, one of the memory"
    by_name = dict(zip(series, drawn[::2], strict=True))
    assert by_name["batch"][0] == [1, 2, 4, 8, 16] and by_name["classes"][0] == [2, 10, 40, 150]
    assert by_name["size"][0][2] == pytest.approx(0.3072) and series["size"][-1].label == "1920x1080"


def test_training_steps(script):
    options = ["--encoders", "mobilenetv2_100", "--size", "64x48", "--repeats", 1, "--batch_size", 2, "--device", "cpu"]
    done = script("benchmark.py", "train", *options, "--precision", "fp32,bf16")
    assert done.returncode == 0, done.stderr
    for precision, memory in itertools.product(("fp32", "bf16"), ("returned", "kept")):
        assert f"| `mobilenetv2_100` | 2 | {precision} | {memory} |" in done.stdout


def test_the_training_loop(tiny_settings, capsys):
    benchmark.main(["train", "--config", str(tiny_settings), "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "waiting for data" in printed and "Validation, 4 frames of" in printed
    assert "64x64" in printed and printed.count(", n = 3.") == 2 and "640x480" not in printed


def test_the_configuration_keeps_its_own_precision(tiny_settings, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "measure_loop", lambda config, *_: seen.append((config.precision, config.threads)))
    values = yaml.safe_load(tiny_settings.read_text()) | {"precision": "bf16", "threads": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    benchmark.main(["train", "--config", str(tmp_path / "c.yaml")])
    benchmark.main(["train", "--config", str(tmp_path / "c.yaml"), "--precision", "auto", "--threads", "1"])
    assert seen == [("bf16", 3), ("auto", 1)]


def test_p95_is_no_maximum():
    times = [*map(float, range(1, 20)), 1000.0]
    assert p95(times) == pytest.approx(np.percentile(times, 95)) and 19 < p95(times) < 100


def test_the_reference_is_the_same_network():
    torch.manual_seed(0)
    network = random_network(dataclasses.replace(SMALL, long_side=0, decoder_width=32), 5).eval()
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


def test_without_a_command_networks_are_measured(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "COMMANDS", {"networks": seen.append, "train": pytest.fail})
    for words in ([], ["--size", "64x64"], ["networks", "--size", "64x64"]):
        benchmark.main(words)
    assert seen == [[], ["--size", "64x64"], ["--size", "64x64"]]


def test_mistakes_get_one_line_of_the_script(script):
    assert "did you mean 'resnet18'?" in only_error_line(script("benchmark.py", "--encoders", "resnet1"))


@pytest.mark.parametrize(("words", "message"), [
    ("--size 640", "--size: got '640'"), ("--size 1x1", "--size"), ("--repeats 0", "--repeats"),
    ("--batch_size 1,0", "--batch_size"), ("--batch_size ,", "--batch_size"), ("--classes 256", "--classes"),
    ("--threads -1", "--threads"), ("backends --size 64x64 --rows egaer", "did you mean 'eager'?"),
    ("--train", "python benchmark.py train"), ("folder --train --repeats 1", "python benchmark.py train"),
    ("fodler", "unknown command 'fodler' (did you mean 'folder'?)"),
    ("growth --checkpoint x.pt", "unknown argument '--checkpoint'"), ("growth --config x.yaml", "'--config'"),
    ("folder --rows eager", "unknown argument '--rows'"), ("folder --files a.xml", "unknown argument '--files'"),
    ("networks --plot x.png", "unknown argument '--plot'"), ("networks --precision bf16", "'--precision'"),
    ("train --size 64x64", "--size is for --encoders"), ("train --batch_size 2", "--batch_size is for --encoders"),
    ("train --precision fp32,bf16", "several of --precision are for --encoders"),
    ("train --precision fp32,bf61", "unknown 'bf61' (did you mean 'bf16'?)"),
    ("train --config x.yaml --encoders resnet18", "not allowed with"),
    ("networks --checkpoint x.pt --classes 3", "--classes is for random weights"),
    ("networks --config x.yaml --checkpoint x.pt", "not allowed with"),
])  # fmt: skip
def test_mistakes_are_named(words, message):
    with pytest.raises(ValueError) as caught:
        benchmark.main(words.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)
