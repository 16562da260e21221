"""Preparing red kitchen: the split, the registration of depth and color, the poses, and archives that are wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import only_holds, png, shared, write_zip

import prepare
from config import Config
from folders import make_tasks, read_folder, read_list
from images import read_label
from sources import redkitchen
from sources.redkitchen import HEIGHT, WIDTH, register_depth

PREFIXES = {"jpg": "tsdf-fusion-python-master/data/", "png": "redkitchen/seq-01/"}
POSE = np.array([[0.0, 0, 1, 2], [0, 1, 0, -1], [-1, 0, 0, 0.5], [0, 0, 0, 1]])


def depth_map() -> np.ndarray:
    """A wall at 2.5 m and a box at 1 m before it; without readings above, and at one pixel of 7-Scenes' own kind."""
    depth = np.full((HEIGHT, WIDTH), 2500, np.uint16)
    depth[200:280, 300:400] = 1000
    depth[:40], depth[470, 600] = 0, 65535
    return depth


def members(suffix: str = "jpg", frames: range = range(12)) -> dict[str, bytes]:
    """The files of a short sequence in the layout of andyzeng/tsdf-fusion-python (jpg) or of 7-Scenes (png)."""
    image = (
        np.random.default_rng(0).integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3), np.uint8).repeat(40, 0).repeat(40, 1)
    )
    color = png(image) if suffix == "png" else cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    depth, pose = png(depth_map()), "\n".join(" ".join(f"{x:.7e}" for x in row) + "\t" for row in POSE).encode()
    content = {"camera-intrinsics.txt": b"585 0 320\n0 585 240\n0 0 1\n"}
    for number in frames:
        for kind, data in ((f"color.{suffix}", color), ("depth.png", depth), ("pose.txt", pose)):
            content[f"frame-{number:06d}.{kind}"] = data
    return {PREFIXES[suffix] + name: data for name, data in content.items()}


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redkitchen, "SPLITS", {"train": range(0, 6, 3), "val": range(9, 12, 3)})


def test_split_is_that_of_the_measured_figures() -> None:
    folder = shared("data/redkitchen")
    redkitchen_splits = {"train": range(0, 600, 3), "val": range(630, 720, 3)}
    for split, numbers in redkitchen_splits.items():
        lines = [f"rgb/{number:06d}.jpg\tdepth/{number:06d}.png" for number in numbers]
        assert (folder / f"{split}.txt").read_text().splitlines() == lines


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_registered_folder(suffix: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = members(suffix)
    write_zip(here / "a.zip", content)
    assert prepare.main(["redkitchen", "--images", "a.zip"]) == 0
    assert "2 train frames, 1 val frames" in capsys.readouterr().out
    root = here / "dataset/redkitchen"
    only_holds(root, "rgb", "depth", "poses", "dataset.yaml", "train.txt", "val.txt")
    assert (root / "train.txt").read_text().splitlines()[1] == f"rgb/000003.{suffix}\tdepth/000003.png"
    source = content[f"{PREFIXES[suffix]}frame-000009.color.{suffix}"]
    assert (root / f"rgb/000009.{suffix}").read_bytes() == source
    folder = read_folder(root)
    assert folder.camera["fx"] == folder.camera["fy"] == 525
    (frame,) = read_list(folder, "val")
    stored = np.where(depth_map() == 65535, 0, depth_map())
    np.testing.assert_array_equal(read_label(frame.labels["depth"]), register_depth(stored))
    depth = make_tasks(folder, Config(tasks=("depth",)))["depth"].read(
        frame.labels["depth"], folder.sections["depth"], frame.image
    )
    assert set(np.unique(depth).round(3)) == {0, 1.0, 2.5}
    pose = np.loadtxt(root / folder.poses / "000009.txt")
    np.testing.assert_allclose(pose[:3, :3], POSE[:3, :3])
    np.testing.assert_allclose(pose[:3, 3], [2, -1, 0.475])  # 25 mm along the camera's x axis, the world's -z


def test_unregistered_folder(here: Path) -> None:
    for name, data in members().items():
        (here / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "in" / name).write_bytes(data)
    prepare.main(["redkitchen", "--unregistered", "--images", "in", "--output", "out"])
    folder = read_folder(here / "out")
    assert folder.camera["fx"] == 585
    assert "NOT registered" in (here / "out/dataset.yaml").read_text()
    stored = np.where(depth_map() == 65535, 0, depth_map())
    np.testing.assert_array_equal(read_label(here / "out/depth/000003.png"), stored)
    np.testing.assert_allclose(np.loadtxt(here / "out/poses/000009.txt"), POSE)


def test_nearer_points_hide_farther_ones_and_what_is_not_seen_is_empty() -> None:
    found = register_depth(np.where(depth_map() == 65535, 0, depth_map()))
    # The box: from 525 / 585 of its distance to the center, moved by 525 * 25 mm / 1 m = 13.1 px to the left.
    rows, columns = np.nonzero(found == 1000)
    assert (rows.min(), rows.max()) == (204, 275)
    assert (columns.min(), columns.max()) == (round(320 - 17.95 - 13.125), round(320 + 70.9 - 13.125))
    assert (found[204:276, 289:379] == 1000).all()
    # The wall moves by 5.25 px only: a strip beside the box is seen by the color camera alone.
    assert (found[210:270, 380:385] == 0).all() and (found[210:270, 387:500] == 2500).all()
    assert (found[:60] == 0).all() and (found[:, :26] == 0).all() and (found[:, 604:] == 0).all()


def test_points_stay_where_they_are_in_the_world() -> None:
    depth = np.zeros((HEIGHT, WIDTH), np.uint16)
    depth[77, 450] = 1730
    ((row, column),) = np.argwhere(register_depth(depth))
    old = POSE @ [(450 - 320) / 585 * 1.73, (77 - 240) / 585 * 1.73, 1.73, 1]
    new = redkitchen.color_pose(POSE) @ [(column - 320) / 525 * 1.73, (row - 240) / 525 * 1.73, 1.73, 1]
    np.testing.assert_allclose(new, old, atol=0.5 * 1.73 / 525)  # half a pixel


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("frame-000003.pose.txt", None, r"in\.zip: no frame-000003\.pose\.txt, which is of the train split"),
        ("frame-000009.color.jpg", None, r"no frame-000009\.color\.jpg, which is of the val split"),
        ("frame-000003.pose.txt", b"1 2 3", r"frame-000003\.pose\.txt: not a camera pose"),
        ("frame-000003.pose.txt", b"1 2\n3 x\n", r"frame-000003\.pose\.txt: not 4 lines of 4 numbers"),
        ("frame-000003.pose.txt", b"2 0 0 0\n0 2 0 0\n0 0 2 0\n0 0 0 1\n", r"frame-000003\.pose\.txt: not a camera"),
        ("frame-000003.pose.txt", b"nan 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", r"frame-000003\.pose\.txt: not a cam"),
        ("frame-000003.depth.png", png(np.zeros((HEIGHT, WIDTH), np.uint8)), r"000003\.depth\.png: .* 16-bit .* uint8"),
        ("frame-000003.depth.png", png(np.ones((5, 7), np.uint16)), r"000003\.depth\.png: it is 7x5, but its image"),
        ("../other/frame-000003.depth.png", b"", r"outside of the output folder"),
        ("seq-02/frame-000003.depth.png", b"", r"it has .* and .*; give the one folder that is meant"),
    ],
)
def test_wrong_archives_are_explained(name: str, data: bytes | None, message: str, here: Path) -> None:
    content = members()
    if data is None:
        del content[PREFIXES["jpg"] + name]
    else:
        content[PREFIXES["jpg"] + name] = data
    write_zip(here / "in.zip", content)
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main(["redkitchen", "--images", "in.zip", "--output", "out"])
    assert "\n" not in str(problem.value)
    only_holds(here, "in.zip")


def shift_of_edges(images: list[np.ndarray], depths: list[np.ndarray]) -> list[int]:
    """How many pixels color edges lie to the right of depth edges, in the left, middle and right third."""
    steps = range(-35, 36)
    score = np.zeros((3, len(steps)))
    for image, depth in zip(images, depths, strict=True):
        color = np.abs(cv2.Sobel(cv2.GaussianBlur(image, (0, 0), 1), cv2.CV_32F, 1, 0)).clip(max=150)
        color -= color.mean()
        a, b = depth[:, :-2].astype(np.float32), depth[:, 2:].astype(np.float32)
        edge = np.pad((a > 0) & (b > 0) & (np.abs(a - b) > 0.06 * np.minimum(a, b)), ((0, 0), (1, 1)))
        for third, start in enumerate((40, 230, 410)):
            part = edge[:, start : start + 190].astype(np.float32)
            for number, step in enumerate(steps):
                score[third, number] += (part * color[:, start + step : start + step + 190]).sum()
    return (score.argmax(1) - 35).tolist()


def test_edges_of_color_and_depth_meet() -> None:
    folder = shared("data/redkitchen")
    names = [f"{number:06d}" for number in range(0, 600, 18)]
    images = [cv2.imread(str(folder / f"rgb/{name}.jpg"), cv2.IMREAD_GRAYSCALE) for name in names]
    depths = [read_label(folder / f"depth/{name}.png").astype(np.uint16) for name in names]
    left, middle, right = shift_of_edges(images, depths)
    assert left > 10 and -9 < middle < -3 and right < -15
    assert max(map(abs, shift_of_edges(images, [register_depth(depth) for depth in depths]))) <= 2
