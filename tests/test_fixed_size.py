"""Graphs of a fixed size and pictures that do not fill them: predictions inside the graph are those of raw outputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import settings, tasks
from torch import Tensor

from deploy.backend_base import Backend, filled_up
from deploy.conversion import Graph, Resize
from deploy.predictor import Predictor
from deploy.proof import differences, several_sizes
from deploy.signature import Signature, make_signature
from geometry import resize_image
from model import Network, build_network
from tasks import Boxes, Instances, Masks
from tasks.box_selection import clipped

SIZE = (96, 128)  # of the graph
CLASSES = (("class_0", "class_1"), ((255, 0, 0), (0, 255, 0)))


class Fixed(Backend):
    """The graph of a file, in PyTorch."""

    name = "fixed"

    def __init__(self, network: Network, units: bool) -> None:
        super().__init__(
            make_signature(network, network.tasks, units_out=units, size=SIZE), torch.device("cpu"), "the file"
        )
        self.graph = Graph(network, self.signature).eval()

    def run(self, images: Tensor) -> list[Tensor]:
        return list(self.graph(images.permute(0, 2, 3, 1).contiguous()))


class CropsPredictions(Fixed):
    """A back end that takes predictions for raw outputs."""

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        own, size = images.shape[-2:], self.signature.size
        found = dict(zip(self.tasks, self.run(filled_up(images, size)), strict=True))
        return {name: self.tasks[name].crop(value, own, size) for name, value in found.items()}


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    made = tasks(4)
    made |= {
        "boxes": Boxes(*CLASSES, least_score=0.001),
        "instances": Instances(*CLASSES, least_score=0.0).beside(made),
    }
    config = settings("resnet18", long_side=128, decoder_width=16, tasks=tuple(made), encoder_weights="none")
    network = build_network(config, made).eval()
    for module in network.heads["boxes"].modules():  # scores that differ, so that the order is the same everywhere
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.2)
    return network


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(96, 64), (40, 128), (300, 150)], ids=str)
def test_predictions_inside_a_graph_are_those_of_raw_outputs(network, size):
    raw, units = (Predictor(Fixed(network, inside))(picture(*size)) for inside in (False, True))
    assert raw["depth"].shape == units["depth"].shape == size
    assert (raw["segmentation"] == units["segmentation"]).mean() > 0.8
    assert raw["instances"]["number"].shape == units["instances"]["number"].shape == size
    height, width = size
    assert (units["boxes"]["box"] >= 0).all() and (units["boxes"]["box"] <= (width, height, width, height)).all()
    # Those of raw output are chosen when what is outside is gone, so that some differ.
    shared = 0
    for box in raw["boxes"][:20]:
        close = np.abs(units["boxes"]["box"] - box["box"]).max(1) < 0.02 * max(size)
        shared += bool((close & (units["boxes"]["class"] == box["class"])).any())
    assert shared >= 12


@pytest.mark.parametrize("units", [False, True])
def test_a_picture_that_is_shrunk_to_fit_has_its_boxes_in_its_own_pixels(network, units):
    """As evaluate.py calls it: images of any size, predictions of the same."""
    backend, image = Fixed(network, units), torch.from_numpy(picture(192, 96)).permute(2, 0, 1)[None]
    sizes = dict.fromkeys(network.tasks, (192, 96))
    found = backend.predict(image, sizes)
    with torch.inference_mode():
        expected = backend.finish(backend.outputs(image), (96, 48), sizes, backend.tasks)
    for name, value in found.items():
        assert torch.allclose(value.nan_to_num(), expected[name].nan_to_num()), name
    assert found["boxes"][..., 2].max() > 90 and found["boxes"][..., 3].max() > 180, "up to the right and lower edge"


@pytest.mark.parametrize("units", [False, True])
def test_the_proof_takes_a_picture_that_does_not_fill_the_graph(network, units):
    pictures = several_sizes([picture(96, 128)], SIZE)
    assert [item.shape[:2] for item in pictures] == [SIZE, (96, 64)]
    for item in differences(Fixed(network, units), network, network.tasks, pictures, 0.01):
        assert item.finite and item.changed < 0.002, item


def test_the_proof_finds_predictions_that_are_cropped_as_raw_outputs(network):
    pictures = several_sizes([picture(96, 128)], SIZE)
    for kind, broken in ((Fixed, False), (CropsPredictions, True)):
        found = {item.task: item for item in differences(kind(network, True), network, network.tasks, pictures, 0.01)}
        assert (found["boxes"].changed > 0.1) == broken and found["depth"].changed < 0.002


def test_a_score_that_a_file_cannot_give_is_refused(network):
    """Things with a lower score than the file's are not in its predictions of instances any more."""
    higher = dataclasses.replace(network.tasks["instances"], least_score=0.3)
    raw, units = (Fixed(network, inside) for inside in (False, True))
    for backend in (raw, units):
        backend.tasks = {**network.tasks, "instances": higher}
    with pytest.raises(ValueError, match=r"^--score below 0\.3, with instances, needs the raw outputs .* the file has"):
        Predictor(units, score=0.1)
    assert Predictor(units, score=0.4).tasks["instances"].least_score == 0.4
    assert Predictor(raw, score=0.1).tasks["instances"].least_score == 0.1


def test_boxes_are_cut_at_the_frame():
    nan = float("nan")
    found = torch.tensor([[
        [50.0, 10, 90, 40, 0.9, 1, nan], [10, 10, 90, 70, 0.8, 1, nan], [5, 5, 20, 20, 0.7, 0, 2]
    ]])  # fmt: skip
    cut = clipped(found, (60, 50))[0]
    assert cut[:, 4].tolist() == pytest.approx([0.8, 0.7, 0])
    assert cut[0, :4].tolist() == [10, 10, 50, 60] and cut[1, :4].tolist() == [5, 5, 20, 20] and cut[1, 6] == 2


def test_masks_keep_their_cells():
    found = torch.rand(1, 3, 9 + 28 * 28)
    cut = Masks(*CLASSES).cut(found, (60, 50))
    assert torch.equal(cut[..., :7], found[..., :7]) and torch.equal(cut[..., 9:], found[..., 9:])
    assert cut[0, 0, 7:9].tolist() == [60, 50]


@pytest.mark.parametrize(("size", "long_side"), [
    ((480, 640), 560),  # of the weights in the repository: one value in 20 is a half
    ((480, 640), 320), ((480, 640), 160), ((480, 640), 426), ((93, 125), 80), ((360, 640), 480), ((200, 120), 160),
], ids=str)  # fmt: skip
def test_a_graph_resizes_as_pictures_are_resized(size, long_side):
    signature = Signature(tasks(), settings("resnet18", long_side=long_side), size=size)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = Resize(signature)(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0).numpy()
    assert (found == resize_image(pixels, *signature.network_size)).mean() > 0.9995
