"""What the tests of the page share: networks with random weights, and a free port."""

from __future__ import annotations

import socket
from pathlib import Path

from conftest import ROOT

from config import Config
from deploy.predictor import Predictor
from drawing import class_palette
from model import build_network
from tasks import Boxes, Depth, Normals, Segmentation
from webpage.viewer import ALL, Viewer

MAX_PIXELS = 640 * 480
SAMPLE = str(ROOT / "media" / "sample.jpg")


class RandomNetworks(Viewer):
    """A viewer of networks with random weights; the tasks of each are in its name."""

    def __init__(self, names: tuple[str, ...], folder: Path) -> None:
        super().__init__({name: Path(name) for name in names}, folder, "eager", "cpu", MAX_PIXELS)
        self.opened: dict[str, Predictor] = {}

    def network(self, name: str, domain: str = ALL) -> Predictor:
        if name not in self.opened:
            small = {"encoder": "mobilenetv2_100", "decoder_width": 16, "crp_stages": 1, "long_side": 96}
            colors = tuple(map(tuple, class_palette()[1:6].tolist()))
            known = {
                "segmentation": Segmentation(classes=tuple("abcde"), colors=colors), "depth": Depth(),
                "normals": Normals(), "boxes": Boxes(classes=tuple("abcde"), colors=colors, least_score=0.001),
            }  # fmt: skip
            tasks = {task: known[task] for task in name.split("+")}
            network = build_network(Config(encoder_weights="none", **small), tasks, load_encoder=False)
            self.opened[name] = Predictor(network.eval(), "eager", "cpu")
        return self.opened[name]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
