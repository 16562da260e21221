"""Checkpoints that lie: each is refused in one line that names the file, before memory is taken."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import published, settings, tasks
from safetensors.torch import save_file
from torch import Tensor

from config import plain
from model import build_network, load_network
from networks.checkpoints import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_VERSION,
    SHIPPED,
    check_weights,
    pick_checkpoint,
    read_torch_file,
    save_checkpoint,
)
from networks.encoders import ShapesOnly, build_encoder
from tasks import tasks_to_plain

Content = dict[str, object]


@pytest.fixture(scope="module")
def good() -> Content:
    config = settings("mobilenetv3_small_050", decoder_width=8, crp_stages=1, encoder_weights="none")
    own = tasks(6, normals=True)
    network = build_network(config, own, {"rooms": own})
    return {
        "config": plain(config), "tasks": tasks_to_plain(own), "domains": {"rooms": tasks_to_plain(own)},
        "network": network.state_dict(), "metrics": {}, "step": 1,
    }  # fmt: skip


def write(path: Path, content: Content) -> Path:
    if path.suffix != ".safetensors":
        save_checkpoint(path, content)
        return path
    text = json.dumps(
        {"version": CHECKPOINT_VERSION, **{name: content[name] for name in ("config", "tasks", "domains")}}
    )
    save_file({name: value.contiguous() for name, value in content["network"].items()}, path, {CHECKPOINT_FORMAT: text})
    return path


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as problem:
        load_network(path)
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 600
    return str(problem.value)


def with_field(content: Content, task: str, field: str, value: object) -> Content:
    states = content["tasks"]
    return {**content, "tasks": {**states, task: {**states[task], field: value}}}


FIELDS = [  # task, field, value, what the line says
    ("depth", "interpolation", "bogus", "depth: interpolation is 'bogus'; allowed: bilinear, bicubic"),
    ("normals", "interpolation", "trilinear", "interpolation is 'trilinear' (did you mean 'bilinear'?)"),
    ("depth", "interpolation", ["bilinear"], "interpolation is a list of 1; it takes text"),
    ("segmentation", "colors", [[1, 2, 3]], "colors has 1 entries; it takes 6"),
    ("segmentation", "colors", [[300, 0, 0]] * 6, "it takes 6 of three numbers in 0..255"),
    ("segmentation", "colors", [[0, 0]] * 6, "colors is a list of 2; it takes a list of 3"),
    ("segmentation", "colors", None, "colors is None; it takes a list"),
    ("segmentation", "classes", list(range(6)), "classes is 0; it takes text"),
    ("segmentation", "classes", ["a"] * 6, "classes has 6 names; it takes 1 to 255 different ones"),
    ("segmentation", "classes", ["\x1b[2J", *"abcde"], "of printable letters"),
    ("segmentation", "classes", [], "classes has 0 names"),
    ("segmentation", "outputs", [999] * 6, "outputs has 6 numbers; it takes none, or 6 numbers in 0..5"),
    ("segmentation", "outputs", [0, 1], "outputs has 2 numbers"),
    ("segmentation", "outputs", "all", "outputs is 'all'; it takes a list"),
    ("segmentation", "class_weights", [1.0], "class_weights has 1 numbers"),
    ("segmentation", "class_weights", [-1.0] * 6, "it takes none, or 6 from 0 on"),
    ("segmentation", "loss_kind", "diced", "loss_kind is 'diced' (did you mean 'dice'?)"),
    ("depth", "max_m", "far", "max_m is 'far'; it takes a finite number"),
    ("depth", "max_m", True, "max_m is True; it takes a finite number"),
    ("depth", "max_m", 0.0, "max_m is 0; it must be above 0"),
    ("depth", "activation", "__import__", "activation is '__import__'; allowed: softplus, exp, abs"),
    ("depth", "unit", "feet", "depth: unknown field 'unit'"),
]


@pytest.mark.parametrize(("task", "field", "value", "message"), FIELDS)
def test_fields_of_tasks(task, field, value, message, good, tmp_path):
    assert message in refused(write(tmp_path / "a.pt", with_field(good, task, field, value)))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_every_kind_of_file_is_checked(suffix, good, tmp_path):
    path = tmp_path / f"a{suffix}"
    assert load_network(write(path, good)).tasks["depth"].max_m == 10
    assert "max_m is -1" in refused(write(path, with_field(good, "depth", "max_m", -1.0)))
    name = next(iter(good["network"]))
    half = {**good["network"], name: torch.full_like(good["network"][name], torch.nan)}
    assert f"{name} holds NaN or infinite weights" in refused(write(path, {**good, "network": half}))


def test_not_a_float(good, tmp_path):
    content = with_field(good, "depth", "max_m", float("inf"))
    assert "max_m is inf; it takes a finite number" in refused(write(tmp_path / "a.pt", content))


def bomb(levels: int = 12) -> list:
    value: list = [0] * 10
    for _ in range(levels):
        value = [value] * 10  # ten names for one list: kilobytes in the file, 10^13 values when written out
    return value


@pytest.mark.parametrize(("changes", "message"), [
    ({"tasks": {}}, "tasks is a dict of 0; it takes a table of at least one task"),
    ({"tasks": []}, "tasks is of type list; it takes a table"),
    ({"tasks": {"depth": 3}}, "depth is 3; it takes a table of its fields"),
    ({"tasks": {"smell": {}}}, "unknown task 'smell'"),
    ({"domains": {"rooms": {"depth": {}, "smell": {}}}}, "unknown task 'smell'"),
    ({"domains": 5}, "domains is of type int"),
    ({"config": {"data": bomb()}}, "config holds more than 100,000 values"),
    ({"config": {"tasks": torch.zeros(1)}}, "config holds a value of type Tensor; it takes plain types"),
    ({"config": {"encoder": "x" * 1000}}, "unknown"),
])  # fmt: skip
def test_settings(changes, message, good, tmp_path):
    if "encoder" in changes.get("config", {}):
        changes = {"config": {"encoder": "resnet18x" * 3}}
        message = "encoder: unknown name"
    assert message in refused(write(tmp_path / "a.pt", {**good, **changes}))


def test_a_data_set_reads_outputs_that_its_head_has(good, tmp_path):
    own = {**good["tasks"]["segmentation"], "outputs": [0, 1, 2, 3, 4, 6]}
    domains = {"rooms": {**good["tasks"], "segmentation": own}}
    assert "6 numbers in 0..5" in refused(write(tmp_path / "a.pt", {**good, "domains": domains}))
    few = {**own, "classes": ["a", "b"], "colors": [[0, 0, 0]] * 2, "outputs": []}
    domains = {"rooms": {**good["tasks"], "segmentation": few}}
    assert "it has 2 outputs, its head 6" in refused(write(tmp_path / "a.pt", {**good, "domains": domains}))


# ---------------------------------------------------------------------------------------------- weights

WEIGHTS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "inf": (lambda w: torch.full_like(w, torch.inf), "holds NaN or infinite weights"),
    "complex": (lambda w: w.to(torch.complex64), "is torch.complex64, this network needs torch.float32"),
    "int8": (lambda w: w.to(torch.int8), "is torch.int8"),
    "sparse": (lambda w: w.to_sparse(), "is torch.sparse_coo on cpu; weights are dense"),
    "meta": (lambda w: w.to("meta"), "on meta; weights are dense"),
    "shape": (lambda w: w[:1], "has shape"),
    "number": (lambda w: 1.0, "tensors of this network are not in it"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_kinds_of_weights(kind, good, tmp_path):
    name = next(name for name, value in good["network"].items() if value.ndim == 4)
    change, message = WEIGHTS[kind]
    path = write(tmp_path / "a.pt", {**good, "network": {**good["network"], name: change(good["network"][name])}})
    line = refused(path)
    assert message in line and name in line


def test_expanded_tensors_are_not_believed(good, tmp_path):
    thin = {name: torch.zeros(1).expand(value.shape) for name, value in good["network"].items() if value.ndim}
    thin |= {name: value for name, value in good["network"].items() if not value.ndim}
    line = refused(write(tmp_path / "a.pt", {**good, "network": thin}))
    assert "its tensors take" in line and "but the file has" in line


def test_half_precision_and_older_files_still_load(good, tmp_path):
    halves = {name: value.half() if value.is_floating_point() else value for name, value in good["network"].items()}
    without = {name: value for name, value in halves.items() if not name.endswith("num_batches_tracked")}
    network = load_network(write(tmp_path / "a.pt", {**good, "network": without}))
    assert all(value.dtype == torch.float32 for value in network.parameters())


def test_an_encoder_of_gigabytes_is_not_built(good, tmp_path, monkeypatch):
    """A file of kilobytes names it: shapes are compared first, and memory is taken for none of its tensors."""
    huge = {**good, "config": {**good["config"], "encoder": "convnextv2_huge"}}
    real = []
    monkeypatch.setattr(
        "model.build_network", lambda *rest, **named: real.append(made := build_network(*rest, **named)) or made
    )
    assert "tensors of this network are not in it" in refused(write(tmp_path / "a.pt", huge))
    assert len(real) == 1 and all(item.is_meta for item in real[0].parameters())


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenetv2_paper", "unet", "tf_efficientnet_lite0"])
def test_a_network_without_memory_has_the_shapes_of_the_real_one(name):
    with ShapesOnly():
        shapes = build_encoder(name)
    real = build_encoder(name)
    assert all(item.is_meta for item in shapes.parameters()) and not any(item.is_meta for item in real.parameters())
    assert {key: (value.shape, value.dtype) for key, value in shapes.state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in real.state_dict().items()
    }


def test_compressed_archives_are_not_inflated(good, tmp_path):
    path = write(tmp_path / "a.pt", good)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in archive.infolist():
            packed.writestr(member.filename, bytes(10 * len(archive.read(member))))
    with pytest.raises(ValueError, match=r"b\.pt: its members are compressed"):
        read_torch_file(tmp_path / "b.pt")


def test_names_of_weights(good, tmp_path):
    path = write(tmp_path / "a.pt", good)
    for weights in (3, [1], {1: torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"a\.pt: its weights are not named tensors"):
            check_weights(weights, {}, path)


# ------------------------------------------------------------------------------- the paper's checkpoints


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return published(6).state_dict()


@pytest.mark.parametrize(("changes", "message"), [
    ({7: torch.zeros(1)}, "holds more than named tensors"),
    ({"segm.weight": torch.tensor(1.0)}, r"segm.weight has shape ()"),
    ({"segm.weight": torch.zeros(1).expand(10**9, 256, 3, 3)}, "it takes (1 to 255 classes"),
    ({"segm.weight": torch.zeros(1).expand(200, 256, 3, 3)}, "shape"),
    ({"segm.weight": "none"}, "holds more than named tensors"),
    ({"depth.weight": torch.full((1, 256, 3, 3), torch.nan)}, "holds NaN"),
    ({"crpx.0": torch.zeros(1), "conv_adapt": torch.zeros(1)}, ""),
])  # fmt: skip
def test_published_checkpoints(changes, message, theirs, tmp_path):
    path = tmp_path / "ExpKITTI_joint.ckpt"
    torch.save({"state_dict": {**theirs, **changes}}, path)
    if message:
        assert message in refused(path)
    else:
        assert load_network(path).config.long_side == 1216


# ---------------------------------------------------------------------------------------------- the default


def test_the_default_is_the_newest_run_or_the_weights_in_the_repository(here, capsys):
    with pytest.raises(FileNotFoundError, match=f"no run in runs/, no {SHIPPED}: train one"):
        pick_checkpoint(None)
    expected = [(SHIPPED, SHIPPED), ("runs/a/last.pt", "runs/a/last.pt"), ("runs/a/best.pt", "runs/a/best.pt")]
    expected.append(("runs/b/last.pt", "runs/b/last.pt"))  # a run that was written later
    for number, (made, chosen) in enumerate(expected):
        Path(made).parent.mkdir(parents=True, exist_ok=True)
        Path(made).touch()
        os.utime(made, (number, number))
        assert pick_checkpoint(None) == Path(chosen)
        why = "the weights in the repository: there is no run in runs/" if made is SHIPPED else "the newest run"
        assert capsys.readouterr().out == f"checkpoint {chosen} ({why})\n"
    assert pick_checkpoint("mine.pt") == Path("mine.pt") and not capsys.readouterr().out


def test_one_of_several_processes_says_which_checkpoint(here, capsys, monkeypatch):
    SHIPPED.parent.mkdir()
    SHIPPED.touch()
    monkeypatch.setenv("RANK", "1")
    assert pick_checkpoint(None) == SHIPPED and not capsys.readouterr().out
