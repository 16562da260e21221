"""Things of a surface: by exact masks, depth and poses of a room made here, and by masks written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import write_posed_room

from deploy.field_of_view import FieldOfView
from reconstruct import main, reconstruct
from rooms.furnished_room import INSTANCE_DIVISOR, FurnishedRoom
from rooms.item import BOX, CABINET, SOFA, THINGS, Item
from rooms.textures import Material
from scene3d.floor_plan import page_axes
from scene3d.posed_images import read_scan
from scene3d.things import LONGEST_PX, MATCH, Matcher, pack_things
from tasks import NO_CLASS, Boxes, Depth, Instances, Segmentation
from tasks.box_formats import mask_boxes
from tasks.box_objects import OBJECT
from tasks.instance_records import record_of

NAMES = (*THINGS.values(), "wall")
COLORS = tuple((10 * number + 5, 250 - 10 * number, 77) for number in range(len(NAMES)))
TASKS = {
    "segmentation": Segmentation(classes=NAMES, colors=COLORS), "depth": Depth(),
    "instances": Instances(NAMES[:-1], COLORS[:-1], NAMES[-1:], COLORS[-1:]),
    "boxes": Boxes(classes=NAMES[:-1], colors=COLORS[:-1]),
}  # fmt: skip
WIDTH, HEIGHT, VOXEL_M = 240, 180, 0.02
UP = np.array([0.0, 0, 1])


# ---------------------------------------------------------------------------------------------- matching


def matched(*pictures: list[tuple[int, range]], vertices: int = 400) -> list[tuple[int, set[int], int]]:
    """Pictures of masks (class, vertices) -> (class, vertices, pictures) of each thing."""
    matcher = Matcher(vertices)
    for number, masks in enumerate(pictures):
        nothing = np.zeros(0, np.int64)
        matcher.add([(kind, 0.5, np.array(own)) for kind, own in masks], nothing, number)
    return [(thing.kind, set(thing.vertices.tolist()), len(thing.pictures)) for thing in matcher.joined()]


def test_masks_that_share_vertices_are_one_thing():
    found = matched([(1, range(100))], [(1, range(60, 160))], [(1, range(300, 400))])
    assert found == [(1, set(range(160)), 2), (1, set(range(300, 400)), 1)]
    few = int(100 * MATCH) - 1
    assert len(matched([(1, range(100))], [(1, range(100 - few, 200 - few))])) == 2, "a border is not enough"
    assert len(matched([(1, range(100))], [(2, range(100))])) == 2, "classes stay apart"


def test_the_sides_of_a_thing_meet_where_one_picture_shows_both():
    front, back = (1, range(100)), (1, range(100, 200))
    assert len(matched([front], [back])) == 2
    assert matched([front], [back], [(1, range(50, 150))]) == [(1, set(range(200)), 3)]


def test_neighbors_under_one_mask_by_mistake_stay_two():
    one, other, both = (1, range(100)), (1, range(100, 200)), (1, range(200))
    assert len(matched([one, other], [one, other], [both])) == 2
    assert len(matched([one, other], [both], [both])) == 1, "most pictures say that they are one"


def test_the_larger_overlap_wins():
    """A sliver that lies wholly in a thing does not take it from the mask that shows it."""
    found = matched([(1, range(100))], [(1, range(95, 100)), (1, range(95))])
    assert [(len(own), count) for _, own, count in found] == [(100, 2), (5, 1)]


def test_pictures_are_kept_small():
    size = (1000, 1300)
    maps = np.zeros((4, *size), np.float32)
    maps[:, 300:600, 300:900] = np.reshape([7, 3, 0.8, 2], (4, 1, 1))
    camera = {"fx": 900, "fy": 910, "cx": 650, "cy": 500}
    view = pack_things("instances", TASKS, {"instances": record_of(maps, 0.3)}, maps[3], camera, np.eye(4))
    step = -(-1300 // LONGEST_PX)
    np.testing.assert_array_equal(view.numbers(), (maps[0] > 0)[::step, ::step])
    assert max(view.size) <= LONGEST_PX and len(view.packed) < 5000
    assert view.camera == {"fx": 300, "fy": 910 / 3, "cx": 650 / 3, "cy": 500 / 3} and view.kinds.tolist() == [3]


def test_a_box_has_no_background():
    """By depth; and where the classes of the pixels know the box's class, by them."""
    depth, ids = np.full((40, 60), 5.0, np.float32), np.full((40, 60), NO_CLASS, np.uint8)
    depth[10:30, 20:40], ids[10:30, 20:35] = 2.0, 4
    objects = np.zeros(1, OBJECT)
    objects["box"], objects["class"], objects["distance_m"] = (15, 5, 45, 35), 4, 2.0
    camera = {"fx": 50, "fy": 50, "cx": 30, "cy": 20}
    for classes, width in ((ids, 15), (None, 20)):
        found = {"boxes": objects} | ({} if classes is None else {"segmentation": classes})
        tasks = {name: TASKS[name] for name in found}
        numbers = pack_things("boxes", tasks, found, depth, camera, np.eye(4)).numbers()
        expected = np.zeros((40, 60), bool)
        expected[10:30, 20 : 20 + width] = True
        np.testing.assert_array_equal(numbers, expected)


# ---------------------------------------------------------------------------------------------- a room


class Exact:
    """Stands for a network: classes, depth and things of a room as they are. A picture's first pixel is its number."""

    def __init__(self, frames: list[tuple[np.ndarray, np.ndarray]], *names: str) -> None:
        self.frames, self.cameras, self.tasks = frames, {}, {name: TASKS[name] for name in names}
        self.field_of_view = FieldOfView(self, "", None)

    def with_probabilities(self, image: np.ndarray, task: str) -> tuple[dict[str, np.ndarray], None]:
        depth, values = self.frames[int(image[0, 0, 0])]
        of_class = values.astype(np.int64) // INSTANCE_DIVISOR - 1
        known = np.unique(values[values > 0])
        maps = np.zeros((4, *depth.shape), np.float32)
        maps[0], maps[1] = np.where(values > 0, np.searchsorted(known, values) + 1, 0), of_class
        maps[2] = np.where(values > 0, 0.9, 0)
        objects = np.zeros(len(known), OBJECT)
        for item, (value, box) in zip(objects, mask_boxes(values).items(), strict=True):
            item["box"], item["class"], item["score"] = box, value // INSTANCE_DIVISOR - 1, 0.9
            item["distance_m"], item["xyz_m"] = np.median(depth[values == value]), np.nan
        found = {"depth": depth, "instances": record_of(maps, 0.3), "boxes": objects}
        found["segmentation"] = np.where(values > 0, of_class, len(NAMES) - 1).astype(np.uint8)
        return {name: found[name] for name in self.tasks}, None


def block(label: int, *parts: tuple[float, float, float, float, float]) -> Item:
    """An item of boxes (x, y, width, depth, height) on the floor."""
    item = Item((1, 1, 1))
    for x, y, *size in parts:
        item.add(label, Material(), (x, y, 0), tuple(size))
    return item


# In a room of 5.5 x 5.5 m: label, parts, x, y, turned by radians. The first two touch.
STANDING = [
    (BOX, [(0, 0, 0.6, 0.5, 0.6)], 2.0, 2.7, 0.0), (BOX, [(0, 0, 0.6, 0.5, 0.4)], 2.6, 2.7, 0.0),
    (SOFA, [(0, 0, 1.2, 0.5, 0.5), (-0.35, 0.6, 0.5, 0.7, 0.5)], 3.3, 3.3, 0.0),
    (CABINET, [(0, 0, 0.8, 0.4, 0.9)], 3.6, 1.8, 0.5),
]  # fmt: skip


def corners(place: int) -> list[np.ndarray]:
    """The rectangles on the floor of the thing, (4, 2) each."""
    _, parts, x, y, yaw = STANDING[place]
    turn = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    return [
        np.array([(a + i * w / 2, b + j * d / 2) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]) @ turn.T + (x, y)
        for a, b, w, d, _ in parts
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[np.ndarray, np.ndarray]]]:
    """The room as a data set with poses, seen from 48 places; and what is seen."""
    folder = tmp_path_factory.mktemp("place")
    room = FurnishedRoom(np.random.default_rng(0))
    room.size = np.array([5.5, 5.5, 2.5])
    room.shell = room._draw_shell()
    for label, parts, x, y, yaw in STANDING:
        room.stand(block(label, *parts), x, y, yaw, check=False)
    scene, values = room.scene(), room.instances()
    poses = []
    for number, angle in enumerate(np.linspace(0, 4 * np.pi, 48, endpoint=False)):
        side = np.array([math.cos(angle), math.sin(angle)])
        position = np.array([*(2.75 + 2.5 * side), 1.3 + number / 48])
        forward = np.array([2.75, 2.75, 0.2]) - position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, UP)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(forward, right), forward], 1), position
        poses.append(pose)
    frames = write_posed_room(folder, scene, values, poses, (HEIGHT, WIDTH))
    return folder, frames


@pytest.fixture(scope="module")
def written(place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what reconstruct.py writes of it."""
    pytest.importorskip("open3d", exc_type=ImportError)
    folder, frames = place
    output = tmp_path_factory.mktemp("written")
    (output / "room_things").mkdir()
    for name in ("77_chair.ply", "notes.ply"):
        (output / "room_things" / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reconstruct.Predictor", lambda *_, **__: Exact(frames, "segmentation", "depth", "instances"))
        (output / "x.pt").touch()
        words = [
            "--input",
            folder,
            "--checkpoint",
            output / "x.pt",
            "--output",
            output / "room.ply",
            "--voxel",
            VOXEL_M,
        ]
        patch.setattr("sys.argv", ["reconstruct.py", *map(str, words)])
        main()
    return output


def of_place(objects: list[dict[str, object]]) -> dict[int, dict[str, object]]:
    """{place in STANDING: the thing of its class that is nearest}."""
    found = {}
    for item in objects:
        own = [k for k, (label, *_) in enumerate(STANDING) if THINGS[label] == item["class"]]
        middles = [np.concatenate(corners(k)).mean(0) for k in own]
        found[own[int(np.argmin([np.linalg.norm(middle - item["xyz_m"][:2]) for middle in middles]))]] = item
    return found


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signed metres from the border of a polygon (n, 2) to points (m, 2), above 0 inside."""
    line = polygon.astype(np.float32)[:, None]
    return np.array([cv2.pointPolygonTest(line, (float(x), float(y)), True) for x, y in points])


def test_things_stand_where_they_are(written):
    content = json.loads((written / "room_objects.json").read_text())
    objects = content["objects"]
    assert sorted(item["class"] for item in objects) == ["box", "box", "cabinet", "sofa"], "no more and no fewer"
    assert np.allclose(content["up"], UP, atol=0.02) and abs(content["floor_m"]) < 0.02
    found = of_place(objects)
    assert sorted(found) == [0, 1, 2, 3], "the two boxes that touch are two"
    for number, item in found.items():
        ends = np.array(item["footprint_m"])
        assert np.abs(ends[:, 2]).max() < 0.03, "it lies on the floor"
        truth = corners(number)
        # Every corner of the thing is close to the outline's border or in it, and no corner of the outline is far off.
        for rectangle in truth:
            assert inside(ends[:, :2], rectangle).min() > -0.04
        assert max(max(inside(rectangle, [end])[0] for rectangle in truth) for end in ends[:, :2]) < 0.05
        assert min(max(inside(rectangle, [end])[0] for rectangle in truth) for end in ends[:, :2]) > -0.1
        sizes = [(w, d) for _, _, w, d, _ in STANDING[number][1]]
        assert item["footprint_m2"] == pytest.approx(sum(w * d for w, d in sizes), rel=0.26)  # fused sides bulge
        height = STANDING[number][1][0][4]
        assert item["extent_m"][2] == pytest.approx(height, abs=0.04) and abs(item["above_floor_m"]) < 0.04
        assert item["xyz_m"][2] == pytest.approx(height / 2, abs=0.04)
        if len(sizes) == 1:
            np.testing.assert_allclose(item["xyz_m"][:2], np.mean(truth[0], axis=0), atol=0.03)
            np.testing.assert_allclose(item["extent_m"][:2], sorted(sizes[0])[::-1], atol=0.1)
        assert item["pictures"] > 20 and item["score"] == 0.9


def read_numbers(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) and thing_id (N,) of a PLY file, read by Open3D."""
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    mesh = open3d.t.io.read_point_cloud(str(path))
    return mesh.point.positions.numpy(), mesh.point["thing_id"].numpy().ravel()


def test_each_thing_is_apart(written):
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    objects = json.loads((written / "room_objects.json").read_text())["objects"]
    points, numbers = read_numbers(written / "room_points.ply")
    assert [item["number"] for item in objects] == [1, 2, 3, 4] and numbers.max() == 4
    assert np.bincount(numbers)[1:].tolist() == [item["vertices"] for item in objects]
    floor = (points[:, 2] < 0.02) & (np.abs(points[:, :2] - (0.8, 0.8)).max(1) < 0.4)
    assert floor.sum() > 100 and not numbers[floor].any(), "floor is no thing"
    names = sorted(path.name for path in (written / "room_things").iterdir())
    assert names == sorted([*(Path(item["file"]).name for item in objects), "notes.ply"]), "77_chair.ply is gone"
    for item in objects:
        mesh = open3d.io.read_triangle_mesh(str(written / item["file"]))
        np.testing.assert_array_equal(np.asarray(mesh.vertices, np.float32), points[numbers == item["number"]])
        corners_of = np.asarray(mesh.triangles)
        assert len(corners_of) > len(points[numbers == item["number"]]) and corners_of.max() < item["vertices"]
    number = of_place(objects)[0]["number"]
    x = points[numbers == number][:, 0]
    assert x.max() < 2.3 + 0.03 and x.min() > 1.7 - 0.05, "it ends where its neighbor begins"


def test_the_plan_shows_the_outlines(written):
    plan = cv2.imread(str(written / "room_plan.png"))[..., ::-1]
    objects = json.loads((written / "room_objects.json").read_text())
    points, _ = read_numbers(written / "room_points.ply")
    axes = page_axes(np.array(objects["up"]))
    low = (points @ axes[:2].T).min(0)
    for item in objects["objects"]:
        color = COLORS[NAMES.index(item["class"])]
        drawn = (plan == color).all(2)
        places = ((np.array(item["footprint_m"]) @ axes[:2].T - low) * 100).round().astype(int)  # 2 pixels for 2 cm
        for column, row in places:
            assert drawn[max(0, row - 6) : row + 7, max(0, column - 6) : column + 7].any(), item["class"]


def test_boxes_and_classes_do_as_well(place, tmp_path):
    pytest.importorskip("open3d", exc_type=ImportError)
    folder, frames = place
    scan = read_scan(folder)
    reconstruct(scan, scan.shots, Exact(frames, "segmentation", "depth", "boxes"), tmp_path / "room.ply", VOXEL_M, 8.0)
    objects = json.loads((tmp_path / "room_objects.json").read_text())["objects"]
    found = of_place([item for item in objects if item["class"] != "box"])
    assert sorted(found) == [2, 3]
    for number, item in found.items():
        area_m2 = sum(w * d for _, _, w, d, _ in STANDING[number][1])
        assert item["footprint_m2"] == pytest.approx(area_m2, rel=0.3)


def test_a_place_without_things(place, tmp_path):
    pytest.importorskip("open3d", exc_type=ImportError)
    folder, frames = place
    scan, bare = read_scan(folder), [(depth, np.zeros_like(values)) for depth, values in frames]
    exact = Exact(bare, "segmentation", "depth", "instances")
    reconstruct(scan, scan.shots, exact, tmp_path / "room.ply", 0.08, 8.0)
    assert json.loads((tmp_path / "room_objects.json").read_text())["objects"] == []
    assert not (tmp_path / "room_things").exists() and not read_numbers(tmp_path / "room.ply")[1].any()
