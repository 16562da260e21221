"""What makes the README's pictures."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import pytest
from conftest import only_error_line
from PIL import Image

from geometry import camera_with
from scene3d.fusion import Surface
from tools import readme_pictures
from tools.readme_pictures import SURFACE_SIZE, look_at, render, splat

PICTURES = "tools.readme_pictures"


def square(turned: bool = False) -> Surface:
    """2 m wide, at z = 3, seen from the origin; its left half is red, its right half blue."""
    points = np.array([[x, y, 3.0] for x in (-1, 0, 0, 1) for y in (-1, 1)], np.float32)
    colors = np.repeat(np.array([[250, 0, 0], [0, 0, 250]], np.uint8), 4, axis=0)
    triangles = np.array([[0, 1, 2], [2, 1, 3], [4, 5, 6], [6, 5, 7]], np.int32)
    triangles = triangles if turned else triangles[:, ::-1]
    return Surface(points, colors, np.zeros(8, np.uint8), np.ascontiguousarray(triangles))


def test_a_surface_is_seen_from_its_front():
    pytest.importorskip("open3d", exc_type=ImportError)
    camera, (height, width) = camera_with(90, SURFACE_SIZE[1], SURFACE_SIZE[0]), SURFACE_SIZE
    pose = look_at(np.zeros(3), np.array([0.0, 0, 5]), np.array([0.0, -1, 0]))
    np.testing.assert_allclose(pose, np.eye(4), atol=1e-12)
    fronts = [render(square(turned), square().colors, pose, camera) for turned in (False, True)]
    shown = [picture for picture in fronts if (picture < 255).any()]
    assert len(shown) == 1  # the other one shows its back
    seen = (shown[0] < 255).any(2)
    half = round(width / 2 / 3)  # 1 m at 3 m with 90 degrees
    rows, columns = np.nonzero(seen)
    assert abs(np.ptp(columns) - 2 * half) <= 3 and abs(np.ptp(rows) - 2 * half) <= 3
    left, right = shown[0][height // 2, width // 2 - half // 2], shown[0][height // 2, width // 2 + half // 2]
    assert left[0] > 200 and left[2] == 0 and right[2] > 200 and right[0] == 0


def test_the_nearest_point_is_seen():
    points = np.array([[0, 0, 2.0], [0, 0, 4], [0, 0, -3], [4, 0, 4]])
    colors = np.array([[10, 0, 0], [0, 20, 0], [0, 0, 30], [40, 0, 0]], np.uint8)
    picture = splat(points, colors, np.eye(4), camera_with(100, SURFACE_SIZE[1], SURFACE_SIZE[0]))
    found = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert found == {(255, 255, 255), (10, 0, 0), (40, 0, 0)}
    assert ((picture < 255).any(2)).sum() == 8


def test_look_at_keeps_up():
    pose = look_at(np.array([1.0, 2, 3]), np.array([4.0, 2, 3]), np.array([0.0, 0, 1]))
    np.testing.assert_allclose(pose[:3, 2], [1, 0, 0], atol=1e-12)  # forward
    np.testing.assert_allclose(pose[:3, 1], [0, 0, -1], atol=1e-12)  # down
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_the_script(script, trained, rooms_folder, tmp_path):
    data = [rooms_folder, rooms_folder]
    options = ["--checkpoint", trained / "best.pt", "--data", *data, "--frames", 2, "--name", "rooms"]
    done = script(PICTURES, "results", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    width, height = Image.open(tmp_path / "media" / "rooms.jpg").size
    # The image; segmentation, depth and normals, each predicted and labeled.
    assert width == 7 * 320 and height > 4 * 240
    options = ["--checkpoint", trained / "best.pt", "--picture", min((rooms_folder / "rgb").iterdir())]
    done = script(PICTURES, "cloud", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "media" / "cloud.jpg").width == 1440
    done = script(PICTURES, "overview", *options, "--name", "room", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    width, height = Image.open(options[-1]).size
    drawn = Image.open(tmp_path / "media" / "room.jpg")
    assert drawn.width == 4 * width and drawn.height > height  # the image and three tasks
    rooms = [tmp_path / "media" / "room.jpg"] * 2
    done = script(PICTURES, "stack", "--pictures", *rooms, "--name", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    two = Image.open(tmp_path / "media" / "two.jpg")
    assert two.width == 960 and two.height == 2 * round(960 * drawn.height / drawn.width)
    shutil.copytree(rooms_folder, tmp_path / "other")
    yaml_file = tmp_path / "other" / "dataset.yaml"
    yaml_file.write_text(yaml_file.read_text().replace("name: rooms", "name: other"))
    options = ["--checkpoint", trained / "best.pt", "--data", tmp_path / "other"]
    assert "the network was not trained on other" in only_error_line(script(PICTURES, "results", *options))


@pytest.mark.parametrize(("words", "message"), [
    ("surface", "--checkpoint is needed"), ("stack", "--pictures is needed"),
    ("surface --checkpoint x.pt", "--data is needed"),
    ("results --checkpoint x.pt", "--data is needed"), ("results --checkpoint x.pt --frames 0", "--frames: got '0'"),
    ("architecture", "invalid choice"),
])  # fmt: skip
def test_mistakes_are_named(monkeypatch, words, message):
    monkeypatch.setattr(sys, "argv", ["readme_pictures", *words.split()])
    with pytest.raises(ValueError, match=re.escape(message)):
        readme_pictures.main()
