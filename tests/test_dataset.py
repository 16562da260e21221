from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import shared
from PIL import Image

from config import Config, make_config
from dataset import Frames, eval_loader
from folders import make_domains, make_tasks, read_folder, read_list
from geometry import View, fitted_size, random_view, resize_image, unit
from tasks import NO_CLASS, Depth, Normals, Segmentation
from training.mixture import Mixture, StepSampler, steps_per_epoch, train_loader

PLAIN = make_config({"long_side": 0, "color": 0, "workers": 0, "crop": "64,80", "zoom": "1,1", "mirror": False}, "test")
SEGMENTATION = Segmentation(classes=tuple("abcdefgh"), colors=((0, 0, 0),) * 8)


def frames_of(
    folder: Path, config: Config, train: bool, tasks: tuple[str, ...] = ("segmentation", "depth", "normals")
) -> Frames:
    data = read_folder(folder)
    config = dataclasses.replace(config, tasks=tasks)
    return Frames(data, read_list(data, "train" if train else "val"), make_tasks(data, config), config, train)


# ---------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("seed", range(40))
def test_a_marker_moves_alike_in_the_image_and_in_every_label(seed):
    """A bright blob at a random place of an odd-sized frame, through mirror, zoom, rotation, crop and padding."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(61, 140)), int(rng.integers(61, 140))
    config = make_config({"long_side": 0, "crop": "97,83", "zoom": "0.6,2", "rotation": 20}, "test")
    view = random_view(rng, height, width, config)
    x, y = int(rng.integers(8, width - 8)), int(rng.integers(8, height - 8))
    disc = np.zeros((height, width), np.uint8)
    cv2.circle(disc, (x, y), 6, 1, -1)
    image = np.repeat(disc[..., None] * 255, 3, axis=2)
    masks = {
        "image": view.resample(image, (0.0, 0.0, 0.0))[..., 0] > 127,
        "segmentation": SEGMENTATION.view(np.where(disc, 7, 0).astype(np.uint8), view) == 7,
        "depth": Depth().view(np.where(disc, 4.0, 0.0).astype(np.float32), view) > 0,
        "normals": Normals().view(disc[..., None] * np.float32([0, 0, -1]), view).any(2),
    }
    expected_x, expected_y = view.matrix @ (x, y, 1)
    inside = 8 * view.zoom < expected_x < 83 - 8 * view.zoom and 8 * view.zoom < expected_y < 97 - 8 * view.zoom
    for name, mask in masks.items():
        assert mask.shape == (97, 83)
        if inside:
            rows, columns = mask.nonzero()
            assert columns.mean() == pytest.approx(expected_x, abs=0.6), name
            assert rows.mean() == pytest.approx(expected_y, abs=0.6), name
        overlap = (mask & masks["image"]).sum() / max(1, (mask | masks["image"]).sum())
        assert overlap > 0.8 or masks["image"].sum() < 20, name


def test_views_reach_mirror_zoom_padding_and_every_corner():
    config = make_config({"long_side": 0, "crop": "50,50", "zoom": "0.5,2"}, "test")
    views = [random_view(np.random.default_rng(seed), 60, 70, config) for seed in range(300)]
    assert {view.mirror for view in views} == {True, False}
    assert min(view.zoom for view in views) < 0.55 and max(view.zoom for view in views) > 1.9
    covered = np.zeros((60, 70), bool)
    for view in views:
        ids = view.sample(np.arange(1, 60 * 70 + 1, dtype=np.float32).reshape(60, 70), fill=0)
        covered.ravel()[ids[ids > 0].astype(int) - 1] = True
        if view.zoom < 50 / 70:
            assert (ids == 0).any(), "a frame smaller than the crop is padded"
        if view.zoom > 50 / 60 + 0.02:
            assert (ids > 0).all(), "a frame larger than the crop fills it"
    assert covered.mean() > 0.98


def test_without_zoom_and_rotation_pixels_are_copied_exactly():
    image = np.random.default_rng(0).integers(0, 256, (61, 73, 3), np.uint8)
    config = dataclasses.replace(PLAIN, crop=(40, 50))
    view = random_view(np.random.default_rng(1), 61, 73, config)
    left, top = (-view.matrix[:, 2]).astype(int)
    assert np.array_equal(view.resample(image, (0, 0, 0)), image[top : top + 40, left : left + 50])


def test_a_view_is_as_sharp_as_an_image_in_evaluation():
    """With room to zoom in (frames larger than long_side) a view at zoom 1 is a part of what evaluation sees."""
    image = np.random.default_rng(0).integers(0, 256, (170, 300, 3), np.uint8)
    config = dataclasses.replace(PLAIN, crop=(40, 50), long_side=120)
    seen = resize_image(image, *fitted_size(170, 300, 120))
    view = random_view(np.random.default_rng(3), 170, 300, config)
    left, top = np.round(-view.turn[:, 2]).astype(int)
    assert np.array_equal(view.resample(image, (0, 0, 0)), seen[top : top + 40, left : left + 50])
    zoomed = dataclasses.replace(config, zoom=(2.0, 2.0))
    detail = random_view(np.random.default_rng(3), 170, 300, zoomed).resample(image, (0, 0, 0))
    assert detail.std() > 1.5 * seen.std(), "zooming in shows the frame's own detail, not enlarged pixels"


def test_labels_are_never_interpolated():
    rng = np.random.default_rng(2)
    ids = rng.choice(np.uint8([0, 3, 7, NO_CLASS]), (66, 90))
    depth = rng.choice(np.float32([0, 1.5, 4.0]), (66, 90))
    config = make_config({"long_side": 0, "crop": "64,64", "zoom": "0.7,1.9", "rotation": 15}, "test")
    for seed in range(20):
        view = random_view(np.random.default_rng(seed), 66, 90, config)
        assert set(np.unique(SEGMENTATION.view(ids, view))) <= {0, 3, 7, NO_CLASS}
        metres = Depth().view(depth, view) * np.float32(view.zoom)
        assert np.abs(metres[..., None] - np.float32([0, 1.5, 4.0])).min(-1).max() < 1e-5


def slanted_plane(height: int, width: int, focal_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth and normals of one plane, seen by a camera whose axis is in the middle."""
    normal = unit(np.float64([0.4, -0.5, -0.9]))
    x = (np.arange(width) - (width - 1) / 2) / focal_px
    y = (np.arange(height) - (height - 1) / 2) / focal_px
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))], axis=2)
    depth = -2.0 / (rays @ normal)
    assert (depth > 0).all()
    return depth.astype(np.float32), np.broadcast_to(normal, (height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("zoom", [0.8, 1.0, 1.7])
@pytest.mark.parametrize("angle", [0.0, 12.0])
def test_depth_and_normals_stay_one_surface(mirror, zoom, angle):
    """The warped depth, back-projected by the same camera, is a plane with the warped normal."""
    size, focal = 101, 120.0
    depth, normals = slanted_plane(size, size, focal)
    center = (size - 1) / 2
    zoomed = (round(size * zoom),) * 2
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2] @ np.diag([-1.0 if mirror else 1.0, 1.0])
    shift = np.full(2, center) - turn @ np.full(2, (zoomed[0] - 1) / 2)  # the principal point stays in the middle
    view = View((size, size), zoomed, np.column_stack([turn, shift]), size, size, zoomed[0] / size, mirror, angle)
    depth, normals = Depth().view(depth, view), Normals().view(normals, view)
    rows, columns = np.nonzero(depth)
    rays = np.stack([(columns - center) / focal, (rows - center) / focal, np.ones(len(rows))], axis=1)
    points = rays * depth[rows, columns][:, None]
    centered = points - points.mean(0)
    fitted = np.linalg.svd(centered, full_matrices=False)[2][2]
    mean = unit(normals[rows, columns].mean(0))
    assert abs(fitted @ mean) > 0.9995
    assert mean[2] < 0


def test_bringing_frames_to_the_networks_size_is_not_a_zoom():
    config = dataclasses.replace(PLAIN, crop=(34, 60), long_side=60)
    view = random_view(np.random.default_rng(0), 68, 120, config)
    assert view.zoom == 1 and view.zoomed_size == (34, 60)
    depth = np.full((68, 120), 3.0, np.float32)
    assert np.array_equal(Depth().view(depth, view), np.full((34, 60), 3.0, np.float32))


@pytest.mark.parametrize(("size", "long_side", "expected"), [
    ((480, 640), 0, (480, 640)), ((680, 1200), 480, (272, 480)), ((1200, 680), 480, (480, 272)),
    ((1, 5000), 100, (1, 100)),
])  # fmt: skip
def test_fitted_size(size, long_side, expected):
    assert fitted_size(*size, long_side) == expected


# ---------------------------------------------------------------------------------------------- frames and order


def test_training_and_evaluation_samples(rooms_folder):
    train = frames_of(rooms_folder, PLAIN, train=True)[(0, 0)]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in train.items()}
    assert shapes == {
        "image": ((3, 64, 80), torch.uint8), "segmentation": ((64, 80), torch.uint8),
        "depth": ((64, 80), torch.float32), "normals": ((3, 64, 80), torch.float32),
    }  # fmt: skip
    shrunk = frames_of(rooms_folder, dataclasses.replace(PLAIN, long_side=48), train=False)[0]
    assert shrunk["image"].shape == (3, 36, 48) and shrunk["depth"].shape == (72, 96), "labels stay at full size"


def test_scales_are_resized_from_the_frame_itself(rooms_folder):
    """A scale above 1 shows detail that the image at the network's resolution has lost, as a zoomed view does."""
    config = dataclasses.replace(PLAIN, long_side=48)
    data = read_folder(rooms_folder)
    frames = Frames(data, read_list(data, "val"), make_tasks(data, config), config, False, (1.0, 2.0, 0.75))
    sample, frame = frames[0], frames.read(0)["image"]
    assert sample["size"].tolist() == [72, 96]
    for name, size in (("image", (36, 48)), ("image at 2", (72, 96)), ("image at 0.75", (32, 36))):
        assert torch.equal(sample[name], torch.from_numpy(resize_image(frame, *size).transpose(2, 0, 1))), name
    (batch, *_), *_ = eval_loader(frames, config)
    assert batch["image at 2"].shape[1:] == (3, 72, 96)


def test_a_sample_depends_on_seed_epoch_and_index_only(rooms_folder):
    config = dataclasses.replace(Config(), crop=(48, 48), workers=0)
    first, second = (frames_of(rooms_folder, config, train=True) for _ in range(2))
    second.decode_all(range(len(second)))
    [second[(5, index)] for index in range(4)]  # other samples in between change nothing
    for name, value in first[(1, 2)].items():
        assert torch.equal(value, second[(1, 2)][name])
    assert not torch.equal(first[(1, 2)]["image"], first[(2, 2)]["image"])
    other_seed = frames_of(rooms_folder, dataclasses.replace(config, seed=1), train=True)
    assert not torch.equal(first[(1, 2)]["image"], other_seed[(1, 2)]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_with_any_number_of_workers(rooms_folder, workers):
    config = dataclasses.replace(Config(), crop=(48, 48), workers=workers, batch_size=4)
    frames = frames_of(rooms_folder, config, train=True)
    frames.decode_all(range(len(frames)))
    mixture = Mixture([frames], [1.0])
    batches = list(train_loader(mixture, config, steps=6))
    assert len(batches) == 6
    # The sum pins order and augmentation; both parametrisations must agree with loading in this process.
    expected = [mixture[key]["image"].sum() for batch in StepSampler(mixture, config, 6) for key in batch]
    assert [image.sum() for batch in batches for image in batch["image"]] == expected


def test_evaluation_counts_every_frame_of_every_size(rooms_folder, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(rooms_folder, folder)
    for sub in ("rgb", "masks", "depth", "normals"):  # the second validation frame becomes smaller
        name = (folder / "val.txt").read_text().splitlines()[1].split("\t")[0].split("/")[1]
        picture = Image.open(folder / sub / name)
        picture.crop((0, 0, 71, 53)).save(folder / sub / name)
    config = dataclasses.replace(PLAIN, batch_size=3)
    batches = [batch for group in eval_loader(frames_of(folder, config, train=False), config) for batch in group]
    assert sorted(tuple(batch["image"].shape) for batch in batches) == [(1, 3, 53, 71), (1, 3, 72, 96), (2, 3, 72, 96)]


# ---------------------------------------------------------------------------------------------- folders and faults


def edit(folder: Path, tmp_path: Path, **changes: object) -> Path:
    """A copy of a data set with other values in its dataset.yaml; None removes a key."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    values = yaml.safe_load((copy / "dataset.yaml").read_text()) | changes
    (copy / "dataset.yaml").write_text(
        yaml.safe_dump({key: value for key, value in values.items() if value is not None})
    )
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": []}, "unknown key 'colums' (did you mean 'columns'?)"),
        ({"columns": None}, "columns is missing"),
        ({"columns": ["image", "segmentation", "dept", "normals"]}, "unknown column 'dept' (did you mean 'depth'?)"),
        ({"columns": ["depth", "image"]}, "must start with image"),
        ({"segmentation": {"classes": "nyu4"}}, "did you mean 'nyu40'?"),
        ({"segmentation": {"classes": ["a", "a"]}}, "different names"),
        ({"segmentation": {"clases": ["a"]}}, "did you mean 'classes'?"),
        ({"segmentation": {"classes": ["a"], "colors": [[0, 0, 300]]}}, "0..255"),
        ({"depth": {"max": 10}}, "metres_per_unit is missing"),
        ({"depth": {"metres_per_unit": -1}}, "above 0"),
        ({"depth": {"metres_per_unit": "much"}}, "it takes a number"),
        ({"splits": {"train": "nowhere.txt"}}, "nowhere.txt: no such list file"),
        ({"splits": {"trian": "train.txt"}}, "no split 'train' (did you mean 'trian'?)"),
        ({"camera": {"fx": "wide"}}, "it takes a number"),
    ],
)
def test_a_wrong_description_is_named(rooms_folder, tmp_path, changes, message):
    folder = edit(rooms_folder, tmp_path, **changes)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_list(read_folder(folder), "train")
    assert message in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rgb/000001.png\tmasks/000001.png", "train.txt:2: 2 columns, but dataset.yaml says 5"),
        ("rgb/000001.png masks/000001.png", "train.txt:2: 1 columns"),
        ("rgb/nowhere.png\t-\t-\t-\t-", "train.txt:2: image"),
        ("-\t-\t-\t-\t-", "train.txt:2: a frame needs an image"),
    ],
)
def test_a_wrong_line_is_named(rooms_folder, tmp_path, line, message):
    folder = edit(rooms_folder, tmp_path)
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_list(read_folder(folder), "train")
    assert message in str(caught.value)


def first_file(folder: Path, sub: str) -> Path:
    return folder / sub / (folder / "train.txt").read_text().split("\t")[0].split("/")[1]


def damage(folder: Path, kind: str) -> str:
    """Breaks the first training frame and says what the message must hold."""
    mask, depth, image = (first_file(folder, sub) for sub in ("masks", "depth", "rgb"))
    if kind == "class id":
        Image.fromarray(np.full((72, 96), 77, np.uint8)).save(mask)
        return "class id 77; allowed: 0..39 and 255"
    if kind == "mask of colors":
        Image.fromarray(np.zeros((72, 96, 3), np.uint8)).save(mask)
        return "one integer a pixel"
    if kind == "size":
        Image.fromarray(np.zeros((70, 96), np.uint16)).save(depth)
        return "depth is 96x70, but its image is 96x72"
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:1500])
        return "damaged or truncated"
    image.write_text("not a picture")
    return "not an image"


@pytest.mark.parametrize("kind", ["class id", "mask of colors", "size", "truncated", "text"])
def test_a_wrong_file_is_named(rooms_folder, tmp_path, kind):
    folder = edit(rooms_folder, tmp_path)
    message = damage(folder, kind)
    with pytest.raises(ValueError, match=message) as caught:
        frames_of(folder, PLAIN, train=True)[(0, 0)]
    assert str(folder) in str(caught.value)


def test_missing_data_says_how_to_get_some(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_folder(tmp_path / "nyud")
    for way in ("prepare.py rooms", "prepare.py nyudv2", "dataset/README.md"):
        assert way in str(caught.value)


def test_the_public_nyudv2_archive_needs_no_description(rooms_folder, tmp_path):
    folder = tmp_path / "nyud"
    shutil.copytree(rooms_folder, folder)
    (folder / "dataset.yaml").unlink()
    for split, name in (("train", "train_list_depth.txt"), ("val", "val_list_depth.txt")):
        lines = [line.split("\t")[:3] for line in (folder / f"{split}.txt").read_text().splitlines()]
        (folder / name).write_text("".join("\t".join(line) + "\n" for line in lines))
    data = read_folder(folder)
    assert len(read_list(data, "train")) == 12 and len(data.sections["segmentation"]["classes"]) == 40
    depth = frames_of(folder, PLAIN, train=False, tasks=("depth",))[0]["depth"]
    assert torch.equal(depth, frames_of(rooms_folder, PLAIN, train=False, tasks=("depth",))[0]["depth"])


@pytest.mark.parametrize("name", ["nyud", "replica_office0", "camvid", "redkitchen"])
def test_real_frames(name):
    data = read_folder(shared(f"data/{name}"))
    tasks = tuple(data.sections)
    frames = frames_of(data.root, dataclasses.replace(PLAIN, crop=(240, 320)), train=True, tasks=tasks)
    sample = frames[(0, 0)]
    assert sample["image"].shape == (3, 240, 320)
    partial = name == "nyud"  # its training frames have depth only
    if "segmentation" in tasks:
        assert (sample["segmentation"] == NO_CLASS).all() == partial
    if "depth" in tasks:
        assert 0.3 < sample["depth"][sample["depth"] > 0].median() < 6


def test_an_epoch_goes_through_the_labeled_frames(rooms_folder, tmp_path):
    folder = tmp_path / "rooms"
    shutil.copytree(rooms_folder, folder)
    lines = [line.split("\t") for line in (folder / "train.txt").read_text().splitlines()]
    lines = [
        "\t".join(["-" if i == 1 and n < 8 else cell for i, cell in enumerate(row)]) for n, row in enumerate(lines)
    ]
    (folder / "train.txt").write_text("\n".join(lines))
    config = dataclasses.replace(PLAIN, batch_size=2)
    for tasks, steps in ((("segmentation",), 2), (("depth",), 6), (("segmentation", "depth"), 6)):
        mixture = Mixture([frames_of(folder, config, train=True, tasks=tasks)], [1.0])
        assert steps_per_epoch(mixture, config) == steps, "4 of 12 frames have a mask, all have depth"


def test_too_few_frames_for_a_batch(rooms_folder):
    config = dataclasses.replace(PLAIN, batch_size=13)
    with pytest.raises(ValueError, match="batch_size is 13, but the data set has 12 training frames"):
        steps_per_epoch(Mixture([frames_of(rooms_folder, config, train=True)], [1.0]), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": "segmentation,dpeth"}, "did you mean 'depth'?"),
        ({"loss_weights": "dpeth=1"}, "did you mean 'depth'?"),
    ],
)
def test_misspelt_tasks_are_named(rooms_folder, settings, message):
    with pytest.raises(ValueError, match="unknown task") as caught:
        make_tasks(read_folder(rooms_folder), make_config(settings, "test"))
    assert message in str(caught.value)


def test_a_task_without_labels_in_the_data_set(rooms_folder, tmp_path):
    folder = tmp_path / "segmentation_only"
    shutil.copytree(rooms_folder, folder)
    values = yaml.safe_load((folder / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values | {"columns": ["image", "segmentation"]}))
    with pytest.raises(ValueError, match="has no depth labels; it has: segmentation"):
        make_domains([read_folder(folder)], Config())
