from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import shared

import reconstruct
from deploy.field_of_view import FieldOfView
from geometry import camera_with, scaled_camera
from reconstruct import camera, image_to_cloud
from scene3d.comparison import surface_metrics
from scene3d.floor_plan import draw_plan, facets, find_up
from scene3d.fusion import Fusion, Surface, back_project, cloud
from scene3d.posed_images import TUM, Scan, read_scan
from tasks import NO_CLASS, Depth

CAMERA = {"fx": 80.0, "fy": 82.0, "cx": 59.5, "cy": 44.0, "width": 120, "height": 90}
SIZE_M = (4.0, 2.4, 3.0)  # of the room: x, height (y down), z
COLORS = np.array(
    [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40], [40, 200, 200], [200, 40, 200]], np.uint8
)
FLOOR = 3  # the plane y = height, in the world's frame, where y points down


def read_ply(path: Path) -> Surface:
    """What Surface.write wrote, read independently by its head."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    counts = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("element")}
    vertex = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("class_id", "u1")])
    vertices = np.frombuffer(body, vertex, counts["vertex"])
    face = np.dtype([("count", "u1"), ("corners", "<i4", 3)])
    faces = np.frombuffer(body, face, counts.get("face", 0), vertex.itemsize * len(vertices))
    assert len(body) == vertex.itemsize * len(vertices) + face.itemsize * len(faces)
    assert (faces["count"] == 3).all()
    return Surface(vertices["xyz"], vertices["rgb"], vertices["class_id"], faces["corners"])


def pose_at(position: tuple[float, float, float], around: float, down: float = 0.0) -> np.ndarray:
    """Camera to world: turned around the vertical by radians, then tilted."""
    turn = np.array([[np.cos(around), 0, np.sin(around)], [0, 1, 0], [-np.sin(around), 0, np.cos(around)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(down), np.sin(down)], [0, -np.sin(down), np.cos(down)]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn @ tilt, position
    return pose


def look(pose: np.ndarray, camera: Mapping[str, float] = CAMERA) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image, depth and wall number of the empty room [0, x] x [0, height] x [0, z] seen from inside."""
    height, width = int(camera["height"]), int(camera["width"])
    rays = back_project(np.ones((height, width), np.float32), camera).astype(np.float64) @ pose[:3, :3].T
    best, wall = np.full((height, width), np.inf), np.zeros((height, width), int)
    for axis in range(3):
        for side, at in enumerate((0.0, SIZE_M[axis])):
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (at - pose[axis, 3]) / rays[..., axis]  # the ray's z is 1: t is the depth
            hit = (t > 1e-6) & (t < best)
            best[hit], wall[hit] = t[hit], 2 * axis + side
    return COLORS[wall], best.astype(np.float32), wall


POSES = [
    pose_at((2 + 0.3 * np.cos(a), 1.2, 1.5 + 0.3 * np.sin(a)), a, down)
    for down, count in ((-1.3, 8), (-0.5, 24), (0.5, 24), (1.3, 8))
    for a in np.linspace(0, 2 * np.pi, count, endpoint=False)
]


@pytest.fixture(scope="module")
def fused() -> tuple[Fusion, Surface]:
    pytest.importorskip("open3d", exc_type=ImportError)
    fusion = Fusion(0.04, classes=6, max_depth_m=6.0)
    rng = np.random.default_rng(0)
    for pose in POSES:
        image, depth, wall = look(pose)
        # The frame is wrong in one of eight pixels, and never certain.
        said = np.where(rng.random(wall.shape) < 0.85, wall, rng.integers(0, 6, wall.shape))
        probabilities = np.where(np.arange(6)[:, None, None] == said, 0.5, 0.1)
        fusion.add(image, depth, CAMERA, pose, probabilities)
    return fusion, fusion.mesh()


def distance_to_walls(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) metres to the nearest wall of the room, and which it is."""
    away = np.stack([np.abs(points[:, axis] - at) for axis in range(3) for at in (0.0, SIZE_M[axis])], axis=1)
    return away.min(1), away.argmin(1)


def test_a_room_seen_from_inside_comes_out_as_it_is(fused):
    _, surface = fused
    away, wall = distance_to_walls(surface.points)
    assert np.percentile(away, 95) < 0.02 and away.max() < 0.15  # half a voxel; corners are cut
    flat = np.sort(np.abs(surface.points[:, None, :] - np.stack([np.zeros(3), SIZE_M])), axis=1).min(1)
    inner = np.sort(flat, axis=1)[:, 1] > 0.15  # a wall's middle, away from the corners
    assert (surface.classes[inner] == wall[inner]).mean() > 0.99, "frames that are often wrong agree in the end"
    assert (np.abs(surface.colors[inner].astype(int) - COLORS[wall[inner]]) < 12).all(1).mean() > 0.99
    areas = facets(surface)[1].sum()
    x, y, z = SIZE_M
    assert areas == pytest.approx(2 * (x * y + y * z + x * z), rel=0.05)


def test_probabilities_are_multiplied():
    pytest.importorskip("open3d", exc_type=ImportError)
    fusion = Fusion(0.04, classes=3, max_depth_m=6.0)
    pose = pose_at((2, 1.2, 1.5), 0)
    image, depth, _ = look(pose)
    frames = [(0.5, 0.4, 0.1), (0.3, 0.4, 0.3), (0.35, 0.4, 0.25)]  # one is for class 0, the product for class 1
    for values in frames:
        fusion.add(image, depth, CAMERA, pose, np.tile(np.reshape(values, (3, 1, 1)), (1, 9, 12)))
    votes = fusion.grid.attribute("classes").numpy().reshape(-1, 3)
    votes = votes[votes.any(1)]
    expected = np.log(np.prod(frames, axis=0))
    assert len(votes) > 1000 and np.allclose(votes, expected - expected.max(), atol=1e-4)
    assert (fusion.mesh().classes == 1).mean() > 0.99, "the rest is where the surface ends"


def test_frames_without_classes_or_depth_leave_none():
    pytest.importorskip("open3d", exc_type=ImportError)
    fusion = Fusion(0.04, max_depth_m=6.0)
    with pytest.raises(ValueError, match="no surface"):
        fusion.mesh()
    image, depth, _ = look(POSES[0])
    fusion.add(image, np.zeros_like(depth), CAMERA, POSES[0])
    for _ in range(4):
        fusion.add(image, depth, CAMERA, POSES[0])
    assert (fusion.mesh().classes == NO_CLASS).all()


def test_plan_has_the_room_s_size(fused):
    _, surface = fused
    up = find_up(surface, POSES)
    assert np.allclose(up, [0, -1, 0], atol=1e-3)
    names = [f"side {number}" for number in range(6)]
    (title, picture, legend), areas = draw_plan(surface, up, names, [tuple(map(int, color)) for color in COLORS])
    floor = areas[names[FLOOR]]
    assert floor == pytest.approx(SIZE_M[0] * SIZE_M[2], rel=0.05)  # the edges of the fused floor are rounded
    assert areas.get(names[2], 0) < 0.3, "the ceiling is not seen from above"
    assert sorted(picture.shape[:2]) == pytest.approx([100 * SIZE_M[2], 100 * SIZE_M[0]], abs=12)
    assert legend[0] == (f"{names[FLOOR]} {floor:.1f} m2", tuple(map(int, COLORS[FLOOR]))) and "1 m" in title


def test_up_is_found_when_the_cameras_lean(fused):
    _, surface = fused
    lean = [pose @ pose_at((0, 0, 0), 0, 0.15) for pose in POSES]
    assert np.allclose(find_up(surface, lean), [0, -1, 0], atol=1e-3)


def rectangle(width: float, height: float, z: float = 0.0, tilt: float = 0.0, classes: int = 0) -> Surface:
    """In the plane z, whose normal points up (+z), turned around the x axis by radians."""
    points = np.array([[0, 0, 0], [width, 0, 0], [0, height, 0], [width, height, 0]], np.float32)
    points = points @ np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    points = (points + np.array([0, 0, z])).astype(np.float32)
    triangles = np.array([[0, 1, 2], [2, 1, 3]], np.int32)
    return Surface(points, np.full((4, 3), 7, np.uint8), np.full(4, classes, np.uint8), triangles)


def joined(*surfaces: Surface) -> Surface:
    shifts = np.cumsum([0, *(len(item.points) for item in surfaces[:-1])])
    return Surface(
        *(np.concatenate([getattr(item, name) for item in surfaces]) for name in ("points", "colors", "classes")),
        np.concatenate([item.triangles + shift for item, shift in zip(surfaces, shifts, strict=True)]).astype(np.int32),
    )  # fmt: skip


UP = np.array([0.0, 0, 1])
TWO = (("floor", "table"), ((1, 2, 3), (4, 5, 6)))


@pytest.mark.parametrize(("width", "height", "tilt"), [(2, 2, 0.0), (2, 1.03, 0.0), (3, 2, 0.9), (0.5, 0.5, 0.3)])
def test_areas_of_the_plan_are_exact(width, height, tilt):
    pytest.importorskip("open3d", exc_type=ImportError)
    _, areas = draw_plan(rectangle(width, height, 5.0, tilt), UP, *TWO)
    assert areas == {"floor": pytest.approx(width * height * np.cos(tilt), rel=0.02 if width < 1 else 0.01)}


def test_what_lies_on_top_counts():
    pytest.importorskip("open3d", exc_type=ImportError)
    table, ceiling = rectangle(1, 1, 0.7, classes=1), rectangle(2, 2, 2.5, classes=1)
    ceiling = Surface(ceiling.points, ceiling.colors, ceiling.classes, ceiling.triangles[:, ::-1])  # it looks down
    (title, picture, legend), areas = draw_plan(joined(rectangle(2, 2), table, ceiling), UP, *TWO)
    assert areas == {"floor": pytest.approx(3, rel=0.01), "table": pytest.approx(1, rel=0.01)}
    assert list(areas) == ["floor", "table"] and legend[1] == ("table 1.0 m2", (4, 5, 6))
    assert picture.shape == (200, 200, 3) and "1 m" in title
    found = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert found == {(1, 2, 3), (4, 5, 6), (0, 0, 0)}


def test_areas_too_small_to_print_are_left_out():
    pytest.importorskip("open3d", exc_type=ImportError)
    (_, _, legend), areas = draw_plan(joined(rectangle(2, 2), rectangle(0.06, 0.06, 1, classes=1)), UP, *TWO)
    assert list(areas) == ["floor"] and len(legend) == 1


def test_a_surface_that_only_looks_down_has_an_empty_plan():
    pytest.importorskip("open3d", exc_type=ImportError)
    (_, picture, legend), areas = draw_plan(rectangle(1, 1), -UP, *TWO)
    assert areas == {} and legend == [] and picture.ndim == 3


def test_cameras_that_cancel_each_other_leave_an_up():
    assert np.allclose(find_up(rectangle(1, 1), [np.eye(4), pose_at((0, 0, 0), 0, np.pi)]), [0, -1, 0])


def test_metrics_of_known_planes():
    pytest.importorskip("open3d", exc_type=ImportError)
    plane, higher = rectangle(1, 1), rectangle(1, 1, 0.03)
    found = surface_metrics(higher, plane)
    assert found["accuracy"] == pytest.approx(0.03, abs=1e-3) and found["f_score"] == 1
    assert surface_metrics(higher, plane, within_m=0.02)["f_score"] == 0
    found = surface_metrics(rectangle(0.5, 1), plane)
    assert found["precision"] == 1 and found["recall"] == pytest.approx(0.55, abs=0.01)
    assert found["f_score"] == pytest.approx(2 * 0.55 / 1.55, abs=0.01)
    assert found["completeness"] == pytest.approx(0.125, abs=5e-3)


# ---------------------------------------------------------------------------------------------- files and commands


def test_what_is_written_can_be_read(tmp_path):
    rng = np.random.default_rng(0)
    surface = Surface(
        rng.random((7, 3), np.float32), rng.integers(0, 256, (7, 3), np.uint8), rng.integers(0, 256, 7, np.uint8),
        rng.integers(0, 7, (5, 3)).astype(np.int32),
    )  # fmt: skip
    surface.write(tmp_path / "x.ply")
    again = read_ply(tmp_path / "x.ply")
    for name in ("points", "colors", "classes", "triangles"):
        assert np.array_equal(getattr(again, name), getattr(surface, name)), name
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    others = o3d.t.io.read_triangle_mesh(str(tmp_path / "x.ply"))
    assert np.array_equal(others.vertex.positions.numpy(), surface.points)
    assert np.array_equal((255 * others.vertex.colors.numpy()).round(), surface.colors)
    assert np.array_equal(others.triangle.indices.numpy(), surface.triangles)


def test_a_cloud_is_where_the_walls_are():
    pose = pose_at((2, 1.2, 1.5), 0.7)
    image, depth, wall = look(pose)
    small = cv2.resize(depth, (60, 45), interpolation=cv2.INTER_NEAREST_EXACT)
    found, ids = cloud(image, depth, wall.astype(np.uint8), CAMERA, 2.5), wall[depth <= 2.5]
    away, nearest = distance_to_walls(found.points @ pose[:3, :3].T + pose[:3, 3])
    assert away.max() < 1e-4 and np.array_equal(found.classes, ids)
    assert (nearest == ids).mean() > 0.99 and found.points[:, 2].max() <= 2.5
    # The camera is of the full size, the picture of half of it.
    world = cloud(image[::2, ::2], small, None, CAMERA, 9).points @ pose[:3, :3].T + pose[:3, 3]
    assert distance_to_walls(world)[0].max() < 0.05


def test_intrinsics_on_the_command_line():
    assert camera("500,510,1,2") == {"fx": 500, "fy": 510, "cx": 1, "cy": 2}
    found = camera_with(90, 641, 481)
    assert found["fx"] == found["fy"] == pytest.approx(320.5) and found["cx"] == 320 and found["cy"] == 240


@pytest.fixture(scope="module")
def scan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The room as a data set with poses."""
    folder = tmp_path_factory.mktemp("scan")
    for name in ("rgb", "depth", "poses"):
        (folder / name).mkdir()
    lines = []
    for number, pose in enumerate(POSES):
        image, depth, _ = look(pose)
        cv2.imwrite(str(folder / "rgb" / f"{number:03d}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / "depth" / f"{number:03d}.png"), (1000 * depth).round().astype(np.uint16))
        np.savetxt(folder / "poses" / f"{number:03d}.txt", pose)
        lines.append(f"rgb/{number:03d}.png\tdepth/{number:03d}.png")
    (folder / "train.txt").write_text("\n".join(lines[:-4]))
    (folder / "val.txt").write_text("\n".join(lines[-4:]))
    (folder / "dataset.yaml").write_text(yaml.safe_dump({
        "name": "room", "splits": {"train": "train.txt", "val": "val.txt"}, "columns": ["image", "depth"],
        "depth": {"metres_per_unit": 0.001, "max": 10.0}, "camera": CAMERA, "poses": "poses",
    }))  # fmt: skip
    return folder


def test_the_commands(scan_folder, trained, script, tmp_path):
    pytest.importorskip("open3d", exc_type=ImportError)
    output = tmp_path / "room.ply"
    done = script("reconstruct.py", "--input", scan_folder, "--depth", "measured", "--voxel", 0.04, "--output", output)
    assert done.returncode == 0, done.stderr
    surface = read_ply(output)
    assert np.percentile(distance_to_walls(surface.points)[0], 95) < 0.02
    points = read_ply(tmp_path / "room_points.ply")
    assert np.array_equal(points.points, surface.points) and not len(points.triangles) and len(surface.triangles)
    report = json.loads((tmp_path / "room.json").read_text())
    assert (tmp_path / "room_plan.png").is_file() and report["pictures"] == len(POSES)
    done = script("reconstruct.py", "--input", scan_folder, "--checkpoint", trained / "best.pt", "--voxel", 0.08,
                  "--every", 8, "--compare", "--output", output)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "room.json").read_text())
    assert 0 <= report["against_measured"]["f_score"] <= 1 and report["pictures"] == 8
    assert "m2 seen from above" in done.stdout and "f_score" in done.stdout
    done = script("reconstruct.py", "--input", scan_folder / "rgb" / "003.png", "--checkpoint", trained / "best.pt",
                  "--fov", 70, "--output", tmp_path / "photo.ply")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = read_ply(tmp_path / "photo.ply")
    assert len(found.points) == 120 * 90 and not len(found.triangles)
    assert np.array_equal(found.colors, look(POSES[3])[0].reshape(-1, 3))


def fails(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The message of a command that is refused, in this process."""
    monkeypatch.setattr(sys, "argv", ["reconstruct.py", *map(str, arguments)])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        reconstruct.main()
    return str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--input", "nowhere"), "nowhere: no such folder"), (("--output", "room.obj"), "should end in .ply"),
    (("--voxel", 0), "--voxel: got '0'"), (("--every", 0), "--every"), (("--max_depth", "nan"), "--max_depth"),
    (("--input", "EMPTY"), "no poses in it"), (("--split", "test"), "no split 'test'"),
    (("--input", "EMPTY", "--split", "val"), "has no dataset.yaml"),
    (("--fov", 70), "--fov is for one image"), (("--camera", "5,5,1,1"), "--camera is for one image"),
    (("--checkpoint", "x.pt"), "--checkpoint does nothing with --depth measured"),
    (("--domain", "rooms"), "--domain does nothing with --depth measured"),
    (("--fov", 0.5), "--fov: got '0.5'"), (("--fov", 180), "--fov"), (("--camera", "1e-9,1,0,0"), "--camera: got"),
    (("--camera", "1,2,3"), "takes fx,fy,cx,cy"), (("--fov", 50, "--camera", "5,5,1,1"), "not allowed with"),
], ids=str)  # fmt: skip
def test_mistakes_get_one_line(scan_folder, monkeypatch, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [tmp_path / "empty" if item == "EMPTY" else item for item in arguments]
    given = ["--input", scan_folder, "--depth", "measured", "--output", tmp_path / "x.ply", *arguments]
    assert message in fails(monkeypatch, *given)
    assert not (tmp_path / "x.ply").exists()


@pytest.mark.parametrize("option", [
    ("--depth", "measured"), ("--split", "val"), ("--every", 7), ("--voxel", 0.5), ("--compare",)
], ids=str)  # fmt: skip
def test_options_of_folders_are_refused_for_one_image(scan_folder, monkeypatch, option):
    message = fails(monkeypatch, "--input", scan_folder / "rgb" / "003.png", *option)
    assert f"{option[0]} is for folders" in message


def test_depth_of_another_size_is_found_before_the_first_fusion(scan_folder, monkeypatch, tmp_path):
    shutil.copytree(scan_folder, tmp_path / "scan")
    cv2.imwrite(str(tmp_path / "scan" / "depth" / "060.png"), np.full((45, 60), 1000, np.uint16))
    monkeypatch.setattr(reconstruct, "fuse", lambda *_, **__: pytest.fail("it fused before it looked"))
    message = fails(monkeypatch, "--input", tmp_path / "scan", "--depth", "measured", "--output", tmp_path / "x.ply")
    assert "060.png: 2700 pixels, but its image" in message


class FlatDepth:
    """Stands for a network: everything is as far away as it says."""

    def __init__(self, depth_m: float) -> None:
        self.tasks, self.depth_m, self.cameras = {"depth": Depth(max_m=80.0)}, depth_m, {}
        self.field_of_view = FieldOfView(self, "", None)

    def __call__(self, image: np.ndarray, focal: float | None = None) -> dict[str, np.ndarray]:
        return {"depth": np.full(image.shape[:2], self.depth_m, np.float32)}


def test_points_of_one_image_reach_as_far_as_the_network(scan_folder):
    path = scan_folder / "rgb" / "003.png"
    assert len(image_to_cloud(FlatDepth(60), path, None, None).points) == 120 * 90
    assert len(image_to_cloud(FlatDepth(60), path, camera("80,80,0,0"), 61.0).points) == 120 * 90
    with pytest.raises(ValueError, match=r"003.png: no point is left: .* 60.00 m away, beyond --max_depth 5"):
        image_to_cloud(FlatDepth(60), path, None, 5.0)


def test_a_file_of_export_py_runs_in_its_own_back_end(scan_folder, monkeypatch, tmp_path):
    asked = []

    def predictor(path: Path, backend: str, *_: object, **__: object) -> FlatDepth:
        asked.append(backend)
        return FlatDepth(2)

    monkeypatch.setattr(reconstruct, "Predictor", predictor)
    for name in ("best.ONNX", "best.xml", "best.pt"):
        arguments = ["--input", scan_folder / "rgb" / "003.png", "--checkpoint", name, "--output", tmp_path / "x.ply"]
        monkeypatch.setattr(sys, "argv", ["reconstruct.py", *map(str, arguments)])
        reconstruct.main()
    assert asked == ["auto", "auto", "eager"]


# ---------------------------------------------------------------------------------------------- scans


def test_tum(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg1_desk"
    folder.mkdir()
    (folder / "rgb.txt").write_text("# color images\n# file\n1.00 rgb/a.png\n2.00 rgb/b.png\n3.00 rgb/c.png\n")
    (folder / "depth.txt").write_text("1.01 depth/a.png\n3.30 depth/far.png\n")
    half = np.sqrt(0.5)
    (folder / "groundtruth.txt").write_text(
        f"# tx ty tz qx qy qz qw\n0.99 1 2 3 0 0 0 1\n3.01 4 5 6 0 {half} 0 {half}\n"
    )
    scan = read_scan(folder)
    assert scan.camera == TUM and (TUM["fx"], TUM["cy"]) == (525.0, 239.5) and scan.metres_per_unit == 1 / 5000
    assert [shot.image.name for shot in scan.shots] == ["a.png", "c.png"], "b has no pose"
    assert scan.shots[0].depth == folder / "depth" / "a.png" and scan.shots[1].depth is None
    assert np.allclose(scan.shots[0].pose, [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert np.allclose(scan.shots[1].pose[:3, :3], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)


def test_seven_scenes(tmp_path):
    for number in (0, 5):
        ending = "jpg" if number else "png"  # as others distribute parts of it
        cv2.imwrite(str(tmp_path / f"frame-{number:06d}.color.{ending}"), np.zeros((4, 5, 3), np.uint8))
        cv2.imwrite(str(tmp_path / f"frame-{number:06d}.depth.png"), np.array([[1500, 65535, 0]], np.uint16))
        np.savetxt(tmp_path / f"frame-{number:06d}.pose.txt", POSES[number])
    scan = read_scan(tmp_path)
    assert len(scan.shots) == 2 and np.allclose(scan.shots[1].pose, POSES[5])
    assert [shot.image.suffix for shot in scan.shots] == [".png", ".jpg"]
    assert np.allclose(scan.read_depth(scan.shots[0]), [[1.5, 0, 0]])
    scan.shots[1].image.unlink()
    with pytest.raises(FileNotFoundError, match=r"frame-000005.color.png \(or .jpg\): no such image"):
        read_scan(tmp_path)


@pytest.mark.parametrize(("file", "line", "message"), [
    ("rgb", "1.0", "rgb.txt:1: expected a time in seconds and a file"), ("rgb", "x rgb/a.png", "rgb.txt:1"),
    ("depth", "nan depth/a.png", "depth.txt:1"), ("rgb", b"\xff\xfe", "rgb.txt: not a text file"),
    ("groundtruth", "1.0 1 2 3 0 0 0", "expected tx ty tz qx qy qz qw"),
    ("groundtruth", "1.0 1 2 3 0 0 0 0", "expected tx ty tz qx qy qz qw"),
    ("groundtruth", "1.0 nan 2 3 0 0 0 1", "groundtruth.txt: time 1.0: not the pose"),
    ("groundtruth", "1.0 1e30 2 3 0 0 0 1", "100 km from the origin"),
], ids=str)  # fmt: skip
def test_bad_lines_of_tum_are_named(tmp_path, file, line, message):
    texts = {"rgb": "1.0 rgb/a.png", "depth": "1.0 depth/a.png", "groundtruth": "1.0 1 2 3 0 0 0 1"} | {file: line}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        read_scan(tmp_path)


@pytest.mark.parametrize("camera", [{"width": 0}, {"height": -64}, {"fx": 0}, {"fy": 1e-9}], ids=str)
def test_impossible_cameras_are_refused(scan_folder, tmp_path, camera):
    values = yaml.safe_load((scan_folder / "dataset.yaml").read_text())
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(values | {"camera": CAMERA | camera}))
    with pytest.raises(ValueError, match=f"dataset.yaml: camera: {next(iter(camera))} is"):
        read_scan(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("1 0 0", "not 4 x 4 numbers"), ("a" * 16, "not 4 x 4 numbers"), (" ".join(["nan"] * 16), "no rotation"),
    ("2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "no rotation"), ("-1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "no rotation"),
    ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 0", "last row"), ("1 0 0 1e9 0 1 0 0 0 0 1 0 0 0 0 1", "km from the origin"),
    (None, "no such pose"),
], ids=str)  # fmt: skip
def test_bad_poses_are_named(scan_folder, tmp_path, text, message):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "all.txt").write_text("a.png")
    values = yaml.safe_load((scan_folder / "dataset.yaml").read_text()) | {
        "splits": {"all": "all.txt"}, "columns": ["image"], "poses": "."
    }  # fmt: skip
    values.pop("depth")
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(values))
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_scan(tmp_path)
    assert str(tmp_path / "a.txt") in str(caught.value)


def test_real_frames_fit_together():
    pytest.importorskip("open3d", exc_type=ImportError)
    scan: Scan = read_scan(shared("data/redkitchen"), "val")
    fusion = Fusion(0.04, max_depth_m=4.0)
    for shot in scan.shots[:-1:3]:
        depth = scan.read_depth(shot)
        fusion.add(np.zeros((*depth.shape, 3), np.uint8), depth, scaled_camera(scan.camera, *depth.shape), shot.pose)
    surface = fusion.mesh()
    last = scan.shots[-1]
    depth = scan.read_depth(last)
    seen = back_project(depth, scaled_camera(scan.camera, *depth.shape))[(depth > 0) & (depth < 3)]
    points = seen[::97] @ last.pose[:3, :3].T + last.pose[:3, 3]
    from scipy.spatial import cKDTree

    away = cKDTree(surface.points).query(points)[0]
    assert np.median(away) < 0.03, "a frame that was not fused lies on the surface of those that were"
