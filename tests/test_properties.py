"""What must hold for any input: hypothesis looks for one that breaks it (always the same ones: derandomize)."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import ENCODERS, tasks
from helpers import settings as network_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from config import AT_LEAST, CHOICES, Config, make_config, plain
from folders import Folder, parse_line
from geometry import View
from metrics import DepthMetrics, Protocol, SegmentationMetrics
from model import Network, build_network
from rooms import generate
from tasks import NO_CLASS, Depth, Normals, Segmentation
from user_input.text_files import parse_yaml

often = settings(derandomize=True, deadline=None, max_examples=100)
seldom = settings(derandomize=True, deadline=None, max_examples=8)  # where each takes a while


# ---------------------------------------------------------------------------------------------- settings and lists


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20)


def values_of(kind: object, name: str) -> st.SearchStrategy[object]:
    """Allowed values of a field of Config."""
    if name in CHOICES:
        return st.sampled_from(CHOICES[name])
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        if arguments[-1] is Ellipsis:
            return st.lists(st.sampled_from(["segmentation", "depth", "normals"]), min_size=1, unique=True).map(tuple)
        return (
            st.tuples(*(values_of(item, "crop" if item is int else "zoom") for item in arguments))
            .map(sorted)
            .map(tuple)
        )
    if typing.get_origin(kind) is dict:
        return st.dictionaries(words.map(lambda word: word.replace(",", "")).filter(str.strip),
                               st.floats(0.125, 8), min_size=1, max_size=3)  # fmt: skip
    least = AT_LEAST.get(name, 1)
    return {
        bool: st.booleans(), int: st.integers(max(least, 32 if name == "crop" else 0), 2**20),
        float: st.floats(max(least, 0.125), 0.875 if name in ("ema", "momentum") else 16.0), str: words,
    }[kind]  # fmt: skip


@often
@given(st.data())
def test_settings_survive_the_file(data):
    kinds = typing.get_type_hints(Config)
    names = data.draw(st.lists(st.sampled_from(sorted(kinds)), unique=True, max_size=6))
    values = {name: data.draw(values_of(kinds[name], name), name) for name in names}
    try:
        made = make_config(plain(dataclasses.replace(Config(), **values)), "test")
    except ValueError:
        return  # a combination that is not allowed
    text = yaml.safe_dump(plain(made), sort_keys=False, allow_unicode=True)
    assert make_config(parse_yaml(text, Path("test.yaml")), "test") == made


@often
@given(st.text(max_size=300))
def test_any_text_is_yaml_or_refused(text):
    try:
        values = parse_yaml(text, Path("x.yaml"))
        make_config(values, "x.yaml")
    except ValueError as problem:
        assert "x.yaml" in str(problem) and "\n" not in str(problem)


@often
@given(st.lists(words.map(str.strip).filter(lambda cell: cell and cell != "-"), min_size=1, max_size=4), st.data())
def test_a_line_of_a_list_file_is_read_back(cells, data):
    columns = ("image", "segmentation", "depth", "normals")[: len(cells)]
    absent = [data.draw(st.booleans()) if number else False for number in range(len(cells))]
    line = "\t".join("-" if gone else cell for cell, gone in zip(cells, absent, strict=True))
    folder = Folder(Path("data"), "data", {}, columns, {}, {})
    frame = parse_line(folder, "train.txt:1", line)
    assert frame.image == Path("data") / cells[0]
    expected = zip(columns[1:], cells[1:], absent[1:], strict=True)
    assert frame.labels == {column: Path("data") / cell for column, cell, gone in expected if not gone}
    with pytest.raises(ValueError, match=r"train\.txt:1"):
        parse_line(folder, "train.txt:1", line + "\tmore")


# ---------------------------------------------------------------------------------------------- geometry


@seldom
@given(st.integers(0, 40), st.sampled_from([1.5, 2.0, 3.0]), st.booleans(), st.data())
def test_views_of_labels_are_the_room_rendered_again(index, zoom, mirror, data):
    """A view at zoom z is a part of the room rendered with z times the pixels: depth over z, normals turned with it."""
    height, width = 48, 64
    frame = generate.render(5, index, width, height)
    large = generate.render(5, index, round(width * zoom), round(height * zoom))
    zoomed = large.depth.shape
    top, left = (data.draw(st.integers(0, side - crop)) for side, crop in zip(zoomed, (32, 40), strict=True))
    turn = np.array([[-1.0 if mirror else 1.0, 0, zoomed[1] - 1.0 if mirror else 0.0], [0, 1, 0]])
    turn[:, 2] -= left, top
    view = View((height, width), zoomed, turn, 32, 40, zoom, mirror)
    ids = Segmentation(classes=tuple(map(str, range(40)))).view(frame.segmentation, view)
    depth, normals = Depth().view(frame.depth, view), Normals().view(frame.normals, view)

    def again(label: np.ndarray) -> np.ndarray:
        label = label[:, ::-1] if mirror else label
        return label[top : top + 32, left : left + 40]

    # A pixel of the frame stands for z x z of the view: edges move by up to one pixel of the frame.
    same = again(large.segmentation) == ids
    assert same.mean() > 0.8 and (ids != NO_CLASS).any()
    true_depth = again(large.depth) / zoom
    close = np.abs(depth - true_depth) < 0.1 * true_depth
    assert close[same].mean() > 0.9
    direction = again(large.normals).astype(np.float64) * [-1.0 if mirror else 1.0, 1.0, zoom]
    direction /= np.maximum(np.linalg.norm(direction, axis=2, keepdims=True), 1e-9)
    angles = np.degrees(np.arccos(np.clip((direction * normals).sum(2), -1, 1)))
    assert np.median(angles[same]) < 1 and (angles[same] < 10).mean() > 0.85


# ---------------------------------------------------------------------------------------------- metrics


@often
@given(
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(1, 17),
    st.integers(1, 13),
    st.integers(0, 2**31),
    st.floats(0, 0.9),
)
def test_segmentation_equals_torchmetrics_on_any_maps(classes, batch, height, width, seed, unlabeled):
    import torchmetrics  # as in test_metrics.py

    random = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (batch, height, width), generator=random)
    prediction = torch.randint(0, classes, (batch, height, width), generator=random)
    target[torch.rand(target.shape, generator=random) < unlabeled] = NO_CLASS
    names = tuple(map(str, range(classes)))
    whole, parts = SegmentationMetrics(names), [SegmentationMetrics(names) for _ in range(batch)]
    whole.update(prediction.to(torch.uint8), target.to(torch.uint8))
    for number, part in enumerate(parts):
        part.update(prediction[number : number + 1], target[number : number + 1].to(torch.uint8))
        if number:
            parts[0].merge(part)
    values = whole.compute()
    assert values == parts[0].compute(), "the same from several processes"
    if (target == NO_CLASS).all():
        assert values == {}
        return
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=classes, ignore_index=NO_CLASS, average="none")
    iou = theirs(prediction, target)
    occurring = sorted(set(target.unique().tolist()) - {NO_CLASS})
    for number in occurring:
        assert values[f"iou/{number}"] == pytest.approx(iou[number].item(), abs=1e-6)
    assert values["miou"] == pytest.approx(iou[occurring].mean().item(), abs=1e-6)


@often
@given(st.integers(1, 5), st.integers(1, 17), st.integers(1, 13), st.integers(0, 2**31), st.booleans())
def test_depth_equals_torchmetrics_on_any_maps(batch, height, width, seed, per_image):
    import torchmetrics  # as in test_metrics.py

    random = torch.Generator().manual_seed(seed)
    target = 10 * torch.rand(batch, height, width, generator=random) + 0.01
    prediction = 10 * torch.rand(batch, height, width, generator=random) + 0.01
    target[torch.rand(target.shape, generator=random) < 0.3] = 0
    protocol = Protocol(per_image=per_image)
    whole, one, other = (DepthMetrics(protocol) for _ in range(3))
    whole.update(prediction, target)
    one.update(prediction[::2], target[::2])
    if batch > 1:
        other.update(prediction[1::2], target[1::2])
    one.merge(other)
    values = whole.compute()
    assert values == one.compute(), "equal in every bit from two processes"
    valid = target > 0
    if not valid.any():
        assert values == {}
    elif not per_image:
        error = torchmetrics.MeanSquaredError(squared=False)(prediction[valid].double(), target[valid].double())
        assert values["rmse"] == pytest.approx(error.item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------- networks


@pytest.fixture(scope="module", params=ENCODERS)
def network(request: pytest.FixtureRequest) -> Network:
    return build_network(network_settings(request.param, decoder_width=8, crp_stages=1), tasks(normals=True)).eval()


@settings(seldom, max_examples=6)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 2))
def test_every_encoder_takes_any_size(network, height, width, batch):
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    sizes = dict.fromkeys(network.tasks, (height, width))
    with torch.inference_mode():
        found = network.predict(images, sizes)
    for name, value in found.items():
        assert value.shape[0] == batch and value.shape[-2:] == (height, width), name
        assert not value.is_floating_point() or value.isfinite().all(), name
