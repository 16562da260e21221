"""The benchmark beside networks of others: what it compares gives what it should. How fast, no test asks."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import benchmark
from benchmarks import peers
from benchmarks.peers import PEERS, InEager, InOpenVino, Peer, cost_of, measure_peers, shorter_side, square
from benchmarks.timing import Options

SIDE = 56  # of pictures that the networks see here: four patches of Depth Anything


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("openvino")
    monkeypatch.chdir(ROOT)  # where the sample picture and the weights are
    small = {name: dataclasses.replace(peer, size=partial(square, SIDE)) for name, peer in PEERS.items()}
    monkeypatch.setattr(peers, "PEERS", small)


def test_networks_have_the_sizes_that_are_published():
    parameters = {name: cost_of(peer, (SIDE, SIDE))[0] for name, peer in peers.PEERS.items()}
    # Published in millions: 3.8 with ADE20K's 150 classes, 24.8, 11.0 with VOC's 21.
    wanted = {"SegFormer-B0": 3.7, "Depth Anything V2 Small": 24.8, "DeepLabV3, MobileNetV3-Large": 11.0}
    assert {name: round(parameters[name] / 1e6, 1) for name in wanted} == wanted


class Attend(nn.Module):
    """Attention of 5 places with 8 numbers in two heads, to each other."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.new_ones(1, 2, 5, 4)
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_counts():
    assert cost_of(Peer(Attend, partial(square, SIDE), "metres", ""), (SIDE, SIDE)) == (0, 2 * 5 * 5 * 8)


def test_sizes_at_which_authors_show_pictures():
    assert shorter_side(518, 14, 480, 640) == (518, 686) and shorter_side(520, 1, 333, 500) == (520, 781)
    assert square(512, 480, 640) == (512, 512)


def test_ways_of_a_network_agree():
    """The graph in OpenVINO is the network: it gives what PyTorch gives for the same weights, in bf16 at worst."""
    image, peer = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8), peers.PEERS["like MiDaS small"]
    torch.manual_seed(0)
    in_torch = InEager(peer, image.shape[:2])
    torch.manual_seed(0)
    found, wanted = InOpenVino(peer, image.shape[:2])(image), in_torch(image)
    assert found.shape == wanted.shape == (40, 72) and wanted.std() > 0
    assert np.abs(found - wanted).mean() < 0.1 * wanted.std()


def test_the_table(monkeypatch, capsys):
    few = {name: peers.PEERS[name] for name in peers.PAIRS[1]}
    monkeypatch.setattr(peers, "PEERS", few)
    monkeypatch.setattr(peers, "PAIRS", peers.PAIRS[1:])
    monkeypatch.setattr(peers, "PAPER", "mobilenetv3_small_050")  # a smaller one, and no weights, in the test's time
    monkeypatch.setattr(peers, "SHIPPED", ROOT / "nothing")
    monkeypatch.setattr(peers, "in_new_process", lambda call, opener, *_: float(len(str(opener))))
    results = measure_peers(Options(48, 64, 2, torch.device("cpu")))
    printed = capsys.readouterr().out
    pair = "**DeepLabV3, MobileNetV3-Large + like MiDaS small**, OpenVINO"
    assert f"| {pair} | 18.4 M |" in printed and "| the paper's network here | " in printed
    times = results["ms"]
    assert len(times) == 7 and all(len(each) == 2 for each in times.values())
    parts = [f"{name}, OpenVINO" for name in peers.PAIRS[0]]
    assert results["memory_mb"][pair] == sum(results["memory_mb"][part] for part in parts)
    with pytest.raises(ValueError, match="measured on the CPU, not on cuda"):
        measure_peers(Options(48, 64, 2, torch.device("cuda")))


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"transformers is not installed: pip install -r requirements/peers\.txt"):
        benchmark.main(["peers", "--size", "64x48", "--repeats", "1"])
