"""The generated rooms: reproducible, geometrically exact, and with every class they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

import prepare
from rooms import generate, raycast, shading
from rooms.furnished_room import FurnishedRoom
from rooms.furniture import Maker
from rooms.item import WALL, turn
from rooms.raycast import Pinhole, Primitive, Scene
from rooms.shading import illuminate
from rooms.textures import Material, Texel

REQUIRED = {
    "wall": 0,
    "floor": 1,
    "cabinet": 2,
    "bed": 3,
    "chair": 4,
    "sofa": 5,
    "table": 6,
    "door": 7,
    "window": 8,
    "bookshelf": 9,
    "picture": 10,
    "floor mat": 19,
    "ceiling": 21,
    "books": 22,
    "lamp": 34,
}


@pytest.fixture(scope="module")
def frames() -> list[generate.RenderedFrame]:
    """Forty small frames of one set."""
    return [generate.render(0, index, 96, 72) for index in range(1, 41)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set written by this process alone."""
    output = tmp_path_factory.mktemp("one") / "rooms"
    generate.write(output, train=2, val=1, width=96, height=72, seed=3)
    return output


def rays(frame: generate.RenderedFrame) -> np.ndarray:
    """Camera-frame directions (H, W, 3) with z = 1 through the pixel centers."""
    camera = frame.camera
    v, u = np.indices(frame.depth.shape)
    x, y = (u - camera["cx"]) / camera["fx"], (v - camera["cy"]) / camera["fy"]
    return np.stack([x, y, np.ones_like(x)], -1)


def furnished(parts: list[Primitive], size: float = 6.0) -> Scene:
    """An empty cube of a room with its corner at the origin, and the given parts in it."""
    shell = []
    for axis, far in raycast.SIDES:
        center, half = np.full(3, size / 2), np.full(3, size / 2 + 0.5)
        center[axis], half[axis] = (size + 0.1 if far else -0.1), 0.1
        shell.append(Primitive("box", center, half, np.eye(3), 0, Material()))
    groups = [[raycast.SHELL + k] for k in range(len(parts))]
    return Scene(np.full(3, size, np.float32), shell + parts, groups, [])


def look(parts: list[Primitive], camera: Pinhole) -> tuple[np.ndarray, ...]:
    """Labels (H, W), depth (H, W) and normals (3, H, W) of the parts in a room."""
    scene = furnished(parts)
    _, seen, depth, normals = shading.render(scene, camera)
    return scene.label[seen], depth, normals


def test_bytes_depend_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    generate.write(again, train=2, val=1, width=96, height=72, seed=3, workers=2)
    generate.write(other, train=1, val=0, width=96, height=72, seed=4)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(names) == 3 * 5 + 3
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    first = "rgb/000001.png"
    assert (folder / first).read_bytes() != (folder / "rgb/000002.png").read_bytes()
    assert (folder / first).read_bytes() != (other / first).read_bytes()


def test_files_hold_what_render_returns(folder: Path) -> None:
    assert (folder / "train.txt").read_text().splitlines()[1] == "\t".join(
        f"{kind}/000002.png" for kind in ("rgb", "masks", "depth", "normals", "instances")
    )
    assert (folder / "val.txt").read_text().startswith("rgb/000003.png\t")
    frame = generate.render(3, 3, 96, 72)
    image, mask, depth, normals, things = (
        cv2.imread(str(folder / kind / "000003.png"), cv2.IMREAD_UNCHANGED)
        for kind in ("rgb", "masks", "depth", "normals", "instances")
    )
    assert (image.dtype, mask.dtype, depth.dtype, normals.dtype) == (np.uint8, np.uint8, np.uint16, np.uint8)
    np.testing.assert_array_equal(image[..., ::-1], frame.image)
    np.testing.assert_array_equal(mask, frame.segmentation)
    np.testing.assert_array_equal(things, frame.instances)
    np.testing.assert_allclose(depth * 0.0002, frame.depth, atol=0.00011)
    np.testing.assert_allclose(normals[..., ::-1] / 127.5 - 1, frame.normals, atol=0.5 / 127.5 + 1e-6)


def test_description_is_the_one_the_loader_reads(folder: Path) -> None:
    yaml = pytest.importorskip("yaml")
    text = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert text["name"] == "rooms" and text["splits"] == {"train": "train.txt", "val": "val.txt"}
    assert text["columns"] == ["image", "segmentation", "depth", "normals", "boxes"]
    assert text["segmentation"] == {"classes": "nyu40", "ignore": 255}
    assert text["depth"] == {"metres_per_unit": 0.0002, "max": 10.0}
    assert text["camera"] == pytest.approx(generate.render(3, 1, 96, 72).camera, abs=1e-5)


def test_every_pixel_has_depth_label_and_a_normal_towards_the_camera(frames: list[generate.RenderedFrame]) -> None:
    for frame in frames:
        assert frame.image.shape == (72, 96, 3) and frame.image.dtype == np.uint8
        assert frame.segmentation.max() < 40
        assert frame.depth.min() > 0.2 and frame.depth.max() < 13
        np.testing.assert_allclose(np.linalg.norm(frame.normals, axis=-1), 1, atol=1e-4)
        assert ((frame.normals * rays(frame)).sum(-1) < 0).all()


def test_every_promised_class_occurs(frames: list[generate.RenderedFrame]) -> None:
    share = sum(np.bincount(frame.segmentation.ravel(), minlength=256) for frame in frames)
    assert not [name for name, label in REQUIRED.items() if share[label] == 0]


def test_pictures_are_neither_dark_nor_washed_out(frames: list[generate.RenderedFrame]) -> None:
    for frame in frames:
        assert 60 < frame.image.mean() < 215 and frame.image.std() > 20
        assert np.bincount(frame.segmentation.ravel()).max() < 0.75 * frame.segmentation.size


def test_points_of_a_wall_lie_on_a_plane(frames: list[generate.RenderedFrame]) -> None:
    walls = 0
    for frame in frames[:10]:
        points = (rays(frame) * frame.depth[..., None])[frame.segmentation == WALL]
        normals = frame.normals[frame.segmentation == WALL]
        for normal in np.unique(normals.round(3), axis=0):
            chosen = np.linalg.norm(normals - normal, axis=1) < 2e-3
            if chosen.sum() < 300:
                continue
            offset = points[chosen] @ normals[chosen][0]
            # the skirting board stands 15 mm off the wall and is a wall too
            offset = offset[np.abs(offset - np.median(offset)) < 0.010]
            assert offset.size > 0.6 * chosen.sum()
            assert np.ptp(offset) < 0.002
            walls += 1
    assert walls >= 10


def test_a_box_straight_ahead_is_where_it_was_put() -> None:
    box = Primitive("box", np.array([3.0, 3.0, 3.0]), np.array([0.5, 0.5, 0.25]), np.eye(3), 7, Material())
    forward_y = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)  # right x, down -z, forward y
    camera = Pinhole(np.array([3.0, 0.5, 3.0]), forward_y, 101, 81, 100.0)
    label, depth, normals = look([box], camera)
    # the near side is 2 m away: 0.5 m and 0.25 m to the sides are 25 and 12.5 pixels; the wall is at 5.5 m
    v, u = np.indices(depth.shape)
    expected = (np.abs(u - 50) <= 25) & (np.abs(v - 40) <= 12)
    border = np.abs(u - 50) == 25
    np.testing.assert_array_equal((label == 7) | border, expected | border)
    np.testing.assert_allclose(depth[expected & ~border], 2.0, rtol=1e-6)
    assert depth[0, 50] == pytest.approx(5.5, rel=1e-6)
    np.testing.assert_allclose(normals[:, 40, 50], [0, 0, -1], atol=1e-6)


def test_a_turned_box_a_ball_and_a_cylinder_have_the_normals_of_geometry() -> None:
    forward_y = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    camera = Pinhole(np.array([3.0, 0.5, 3.0]), forward_y, 101, 81, 100.0)
    c = np.sqrt(0.5)
    turn = np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]])
    box = Primitive("box", np.array([3.0, 3.0, 3.0]), np.full(3, 0.5), turn, 7, Material())
    label, depth, normals = look([box], camera)
    assert depth[40, 50] == pytest.approx(2.5 - np.sqrt(0.5), abs=1e-5)  # an edge points at the camera
    np.testing.assert_allclose(normals[:, 40, 54], [c, 0, -c], atol=1e-6)
    np.testing.assert_allclose(normals[:, 40, 46], [-c, 0, -c], atol=1e-6)

    ball = Primitive("cushion", np.array([3.0, 3.0, 3.0]), np.full(3, 0.5), np.eye(3), 7, Material(), bulge=(1, 1, 1))
    tube = Primitive("cone", np.array([3.0, 3.0, 3.0]), np.full(3, 0.5), np.eye(3), 7, Material())
    v, u = np.indices(depth.shape)
    ray = np.stack([(u - 50) / 100, (v - 40) / 100, np.ones(u.shape)])
    for part, axes in ((ball, [1, 1, 1]), (tube, [1, 0, 1])):
        label, depth, normals = look([part], camera)
        assert depth[40, 50] == pytest.approx(2.0, abs=1e-5)
        hit = (label == 7) & (np.abs(v - 40) < 10)
        outward = (ray * depth - np.array([0, 0, 2.5])[:, None, None]) * np.array(axes)[:, None, None] / 0.5
        np.testing.assert_allclose((outward**2).sum(0)[hit], 1, atol=1e-3)
        np.testing.assert_allclose(normals[:, hit], outward[:, hit], atol=5e-3)


def test_the_nearer_thing_hides_the_farther() -> None:
    forward_y = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    camera = Pinhole(np.array([3.0, 0.5, 3.0]), forward_y, 41, 31, 40.0)
    parts = [
        Primitive("box", np.array([3.0, y, 3.0]), np.full(3, 0.3), np.eye(3), label, Material())
        for y, label in ((4.0, 3), (2.0, 4), (5.0, 5))
    ]
    for order in ((0, 1, 2), (2, 1, 0)):
        label, depth, _ = look([parts[k] for k in order], camera)
        assert label[15, 20] == 4 and depth[15, 20] == pytest.approx(1.2, abs=1e-5)
        assert set(np.unique(label)) == {0, 4}


def test_a_lamp_leaves_a_shadow_behind_a_box() -> None:
    box = Primitive("box", np.array([3.0, 3.0, 1.0]), np.array([0.5, 0.5, 0.05]), np.eye(3), 7, Material())
    scene = furnished([box])
    start = np.array([[3.0, 3.0, 0.0], [5.0, 3.0, 0.0]], np.float32).T
    up = np.array([[0, 0, 1], [0, 0, 1]], np.float32).T
    distance = raycast.first_hit(scene, start, up, np.full(2, 5.0, np.float32))
    np.testing.assert_allclose(distance, [0.95, 5.0], atol=1e-6)


@pytest.mark.parametrize("sun", [False, True])
def test_a_window_lights_alike_from_each_wall(sun: bool) -> None:
    rng = np.random.default_rng(4)
    window = Maker(rng).window(1.5, 0.9, 2.1, day=1.0)
    kinds = [light.kind for light in window.lights]
    assert kinds == ["window", "sun"]
    window.lights = [light for light in window.lights if (light.kind == "sun") == sun]
    grid = np.linspace(-1.9, 1.9, 33)
    x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
    light = []
    for wall in range(4):
        room = FurnishedRoom(np.random.default_rng(0))
        room.size = np.array([4.0, 4.0, 2.6])
        room.stand(window, *room.spot(wall, 2.0, 0.051), check=False)
        scene = room.scene()
        turned = turn(wall * np.pi / 2)  # the same points of the floor, as the window sees them
        point = (turned @ np.stack([x, y, 0 * x]) + np.array([[2.0], [2.0], [0.0]])).astype(np.float32)
        up = np.tile(np.float32([[0], [0], [1]]), x.size)
        floor = Texel(np.full(x.size, 4), point, point, up, np.full(x.size, 2), -up, np.full(x.size, 0.01))
        scene.ambient = scene.bounce = np.zeros(3)
        light.append(illuminate(scene, floor, np.arange(x.size) % 16)[0])
    assert light[0].mean() > 0.1
    for wall in (1, 2, 3):
        assert light[wall].mean() == pytest.approx(light[0].mean(), rel=0.02)
        assert np.abs(light[wall] - light[0]).mean() < 0.05 * light[0].mean()


def test_the_walls_have_one_order() -> None:
    room = FurnishedRoom(np.random.default_rng(0))
    for wall in range(4):
        axis, far = raycast.SIDES[wall]
        x, y, yaw = room.spot(wall, 1.0, 0.0)
        assert (x, y)[axis] == (room.size[axis] if far else 0)
        inward = (turn(yaw) @ [0, 1, 0])[axis]
        assert inward == (-1 if far else 1)
        slab = room.shell[wall]
        assert slab.center[axis] == pytest.approx(room.size[axis] + 0.1 if far else -0.1)


def test_a_room_is_drawn_once() -> None:
    room = FurnishedRoom(np.random.default_rng(0))
    first, second = room.scene(), room.scene()
    assert [p.material for p in first.primitives] == [p.material for p in second.primitives]


@pytest.mark.parametrize("size", [(97, 73), (64, 96)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    frame = generate.render(1, 1, *size)
    assert frame.image.shape == (size[1], size[0], 3)
    assert frame.depth.shape == frame.segmentation.shape == frame.normals.shape[:2] == (size[1], size[0])
    assert frame.camera["cx"] == (size[0] - 1) / 2


def test_size_changes_the_pixels_only() -> None:
    small, large = generate.render(0, 2, 96, 72), generate.render(0, 2, 288, 216)
    same = large.segmentation[1::3, 1::3] == small.segmentation  # the middles of 3 x 3 blocks are the same rays
    assert same.mean() > 0.999
    np.testing.assert_allclose(large.depth[1::3, 1::3][same], small.depth[same], rtol=1e-3)


def test_refuses_to_overwrite_and_to_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="exists and is not an empty"):
        generate.write(tmp_path, train=1, val=0, width=32, height=24)
    assert (tmp_path / "kept.txt").read_text() == "kept"
    with pytest.raises(ValueError, match="at least one, of at least 16x16"):
        generate.write(tmp_path / "none", train=0, val=0)
    assert not (tmp_path / "none").exists()


def test_workers_do_not_import_the_script_that_starts_them(tmp_path: Path) -> None:
    caller = tmp_path / "caller.py"
    caller.write_text(
        f"print('imported', flush=True)\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from rooms.generate import write\n"
        "write('set', train=2, val=0, width=32, height=24, workers=2)\n"
    )
    done = subprocess.run([sys.executable, caller], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported"]
    assert len(list((tmp_path / "set" / "rgb").iterdir())) == 2


def test_what_goes_wrong_in_a_worker_is_raised(tmp_path: Path) -> None:
    absent = generate.RoomSet(tmp_path / "absent", 32, 24, 0)
    with pytest.raises(OSError, match="could not be written"):
        list(generate._save_all(absent, range(1, 3), workers=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "3x"), "WIDTHxHEIGHT"),
        (("--trian", "3"), "did you mean '--train'?"),
        (("--train", "many"), "argument --train: got 'many'; it takes a whole number"),
        (("--workers", "-1"), "argument --workers: got '-1'; it takes a whole number, at least 0 and at most 256"),
        (("--size", "8x8"), "argument --size: got '8x8'; it takes WIDTHxHEIGHT"),
        (("--output", "."), "exists and is not an empty"),
    ],
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], message: str, here: Path) -> None:
    (here / "kept.txt").write_text("kept")
    with pytest.raises((ValueError, OSError)) as problem:
        prepare.main(["rooms", *arguments])
    assert message in str(problem.value) and "\n" not in str(problem.value)
    assert [path.name for path in here.iterdir()] == ["kept.txt"]


def test_unknown_texture_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no texture is called 'plian'; there are: plain, wood"):
        Material("plian")
