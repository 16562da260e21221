"""Surface normals from depth: planes of known direction, rendered rooms, real sensors."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import shared

from config import Config
from dataset import Frames
from folders import make_domains, read_folder, read_list
from geometry import (
    Pixels,
    argmax_in_bands,
    argmax_resized,
    first_of_largest,
    normals_from_depth,
    resize_raw,
    sample_raw,
    scaled_camera,
    stride_for,
    taps_kept,
)
from tasks import Depth, Normals

CAMERA = {"fx": 110.0, "fy": 95.0, "cx": 60.3, "cy": 41.7}


def rays(height: int, width: int, camera: dict[str, float]) -> np.ndarray:
    """(H, W, 3): the point at depth 1 that each pixel sees."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    x, y = (x - camera["cx"]) / camera["fx"], (y - camera["cy"]) / camera["fy"]
    return np.stack([x, y, np.ones_like(x)], axis=2)


def plane(normal: tuple[float, float, float], distance: float, height: int = 83, width: int = 121) -> np.ndarray:
    """Depth of the plane n.P = -distance, whose normal points towards the camera."""
    return -distance / (rays(height, width, CAMERA) @ np.array(normal))


def degrees(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((first * second).sum(2), -1, 1)))


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.6, 0, -0.8), (-0.3, 0.5, -0.8), (0.1, -0.85, -0.5)])
def test_a_plane_has_its_normal(normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    depth = plane(tuple(normal), 2.0)
    assert (depth > 0).all(), "the whole picture sees the plane"
    found = normals_from_depth(depth.astype(np.float32), CAMERA)
    seen = found.any(2)
    # In a corner of the picture a quarter of the window is left.
    assert seen.mean() > 0.95
    assert degrees(found[seen][None], normal[None, None]).max() < 0.05
    # As files store it: 1/5000 m.
    stored = (np.round(depth * 5000) / 5000).astype(np.float32)
    found = normals_from_depth(stored, CAMERA)
    assert np.median(degrees(found[found.any(2)][None], normal[None, None])) < 0.5


def test_no_normal_at_edges_and_where_depth_is_missing():
    depth = plane((0, 0, -1), 2.0).astype(np.float32)
    depth[:, 60:] = 3.0  # a step
    depth[20:40, 10:30] = 0
    depth[70, 5] = 0
    found = normals_from_depth(depth, CAMERA)
    assert not found[:, 59:61].any() and not found[20:40, 10:30].any() and not found[70, 5].any()
    assert found[70, 6].any(), "a hole of one pixel does not spread"
    assert found[50, 30].tolist() == pytest.approx([0, 0, -1], abs=1e-5)
    assert not normals_from_depth(np.zeros((31, 17), np.float32), CAMERA).any()


def test_intrinsics_follow_the_size_of_the_frame():
    camera = CAMERA | {"width": 121.0, "height": 83.0}
    assert scaled_camera(camera, 83, 121) == pytest.approx(CAMERA)
    double = scaled_camera(camera, 166, 242)
    assert double["fx"] == 220 and double["cx"] == pytest.approx(2 * 60.3 + 0.5)
    assert scaled_camera(CAMERA, 10, 10) == pytest.approx(CAMERA), "no size: as they are"


def without_normals(folder: Path, tmp_path: Path, **changes: object) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    values = yaml.safe_load((copy / "dataset.yaml").read_text())
    values = {key: value for key, value in (values | changes).items() if value is not None}
    (copy / "dataset.yaml").write_text(yaml.safe_dump(values | {"columns": ["image", "segmentation", "depth"]}))
    for split in ("train.txt", "val.txt"):
        lines = (copy / split).read_text().splitlines()
        (copy / split).write_text("\n".join("\t".join(line.split("\t")[:3]) for line in lines))
    return copy


def frames_with_normals(path: Path) -> Frames:
    folder = read_folder(path)
    config = dataclasses.replace(Config(), long_side=0, tasks=("depth", "normals"))
    _, domains = make_domains([folder], config)
    return Frames(folder, read_list(folder, "val"), domains[folder.name], config, train=False)


def test_derived_normals_of_rooms_are_the_rendered_ones(rooms_folder, tmp_path):
    derived, rendered = (frames_with_normals(path) for path in (without_normals(rooms_folder, tmp_path), rooms_folder))
    for index in range(len(derived)):
        assert derived.weights(index) == (1.0, 1.0)
        found, truth = (frames.read(index)["normals"] for frames in (derived, rendered))
        both = found.any(2) & truth.any(2)
        assert both.mean() > 0.5
        assert np.median(degrees(found, truth)[both]) < 1


def test_without_intrinsics_there_are_none(rooms_folder, tmp_path):
    path = without_normals(rooms_folder, tmp_path, camera=None)
    with pytest.raises(ValueError, match="has no normals labels; it has: segmentation, depth"):
        frames_with_normals(path)


@pytest.mark.parametrize("name", ["redkitchen", "replica_office0", "nyud"])
def test_real_depth_gives_normals_that_face_the_camera(name):
    folder = read_folder(shared("data") / name)
    task, section = Depth.from_section(folder.sections["depth"], Config()), folder.sections["depth"]
    frame = read_list(folder, "val")[0]
    depth = task.read(frame.labels["depth"], section, frame.image)
    found = Normals().derive(depth, scaled_camera(folder.camera, *depth.shape))
    seen = found.any(2)
    assert seen.mean() > 0.35
    towards = (found * rays(*depth.shape, folder.camera)).sum(2)[seen]
    assert (towards < 0).mean() > 0.999
    # Floors and tables look up: somewhere in each of these rooms.
    assert (found[..., 1] < -0.7).mean() > 0.005


# ---------------------------------------------------------------------------------------------- argmax


@pytest.mark.parametrize(("small", "large", "classes"), [
    ((12, 16), (48, 64), 40), ((7, 5), (23, 17), 3), ((9, 13), (9, 13), 5), ((20, 30), (7, 11), 6), ((1, 1), (5, 9), 4),
    ((3, 2), (100, 7), 2), ((30, 40), (123, 157), 19), ((15, 20), (60, 80), 255),
], ids=str)  # fmt: skip
def test_the_argmax_is_that_of_the_resized_map(small, large, classes):
    noise = torch.randn(2, classes, *small)  # every cell is a border
    smooth = resize_raw(torch.randn(2, classes, 3, 4), small)  # few are
    raws = (noise, smooth, noise.to(memory_format=torch.channels_last), smooth.bfloat16())
    for raw, way in itertools.product(raws, (argmax_resized, argmax_in_bands, partial(argmax_in_bands, rows=16))):
        expected, found = resize_raw(raw, large), way(raw, large)
        assert found.dtype == torch.uint8 and found.shape == (2, *large)
        wrong = found != expected.argmax(1)
        top = expected.topk(2, dim=1).values
        assert not (wrong & (top[:, 0] - top[:, 1] > 1e-5)).any(), "only rounding may decide differently"
        assert wrong.float().mean() < (0.01 if raw.dtype == torch.bfloat16 else 1e-4)


def test_a_graph_can_keep_what_a_resize_reads():
    """The cache holds 64 pairs of sizes; a CUDA graph goes on reading the tensors that it was captured with."""
    raw = torch.rand(1, 3, 5, 7)
    with taps_kept() as kept:
        argmax_in_bands(raw, (20, 28))
    assert [len(taps[0]) for taps in kept] == [20, 28]
    for side in range(40, 120):
        argmax_in_bands(raw, (side, side))
    with taps_kept() as later:
        argmax_in_bands(raw, (20, 28))
    assert len(kept) == 2 and later[0][0] is not kept[0][0], "the cache has new ones, and these are still there"


def test_the_first_of_the_largest():
    values = torch.randint(0, 4, (7, 5, 90)).float()  # most have several
    assert (first_of_largest(values) == values.argmax(0)).all()
    values = torch.randn(255, 400) * 10.0 ** torch.randint(-20, 20, (400,))
    assert (first_of_largest(values) == values.argmax(0)).all()
    near = torch.tensor([[1.0, -1e9], [1.0000001, -1e9], [0.5, -1e9 + 64]])  # neighboring numbers
    assert first_of_largest(near).tolist() == [1, 2]
    odd = torch.tensor([[-torch.inf, 0.0, 1.0], [-torch.inf, -torch.inf, torch.nan]])
    assert first_of_largest(odd).tolist() == [0, 0, 0] and first_of_largest(odd).dtype == torch.uint8


def test_equal_values_and_single_classes():
    assert (argmax_resized(torch.zeros(1, 5, 6, 7), (24, 28)) == 0).all()
    assert (argmax_resized(torch.randn(1, 1, 6, 7), (24, 28)) == 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("stride", "top", "left"), [(1, 0, 0), (2, 0, 1), (4, 3, 0), (4, 1, 2)])
@pytest.mark.parametrize("size", [(96, 64), (98, 61)])
def test_sampled_outputs_are_those_of_the_resized(size, stride, top, left, layout):
    raw = torch.randn(2, 3, 25, 16).to(memory_format=layout).requires_grad_()
    expected = resize_raw(raw, size)[..., top::stride, left::stride]
    found = sample_raw(raw, Pixels(size, stride, top, left))
    assert torch.allclose(found, expected, atol=5e-5)
    direction = torch.randn_like(expected)
    first, second = (torch.autograd.grad((value * direction).sum(), raw)[0] for value in (found, expected))
    assert torch.allclose(first, second, atol=1e-3)


def test_what_evaluation_has_cached_serves_training():
    with torch.inference_mode():
        argmax_in_bands(torch.randn(1, 3, 17, 19), (67, 75))
        sample_raw(torch.randn(1, 3, 17, 19), Pixels((67, 75), 2))
    raw = torch.randn(1, 3, 17, 19, requires_grad=True)
    sample_raw(raw, Pixels((67, 75), 2)).square().sum().backward()
    assert raw.grad.any()


@pytest.mark.parametrize(("height", "width", "most"), [(480, 640, 10**6), (5, 1, 2), (3000, 4000, 2**20), (1, 999, 7)])
def test_a_stride_keeps_at_most_so_many_pixels_and_no_fewer_than_it_must(height, width, most):
    def kept(stride: int) -> int:
        return len(range(0, height, stride)) * len(range(0, width, stride))

    stride = stride_for(height, width, most)
    assert kept(stride) <= most and (stride == 1 or kept(stride - 1) > most)
