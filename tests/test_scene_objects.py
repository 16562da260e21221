"""Objects of many pictures in the world: by exact boxes and depth of generated rooms, and by sightings written here."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import write_posed_room

from deploy.field_of_view import FieldOfView
from reconstruct import image_to_cloud, main, reconstruct
from rooms import generate
from rooms.furnished_room import INSTANCE_DIVISOR, FurnishedRoom
from rooms.item import THINGS
from scene3d.floor_plan import draw_plan, from_above
from scene3d.fusion import Surface
from scene3d.objects import LEAST_RADIUS_M, SIGHTING, merge_sightings, sightings_of
from scene3d.posed_images import read_scan
from tasks import NO_CLASS, Boxes, Depth, Segmentation, completed
from tasks.box_formats import mask_boxes
from tasks.box_objects import OBJECT

NAMES = tuple(THINGS.values())
BLUE = (9, 9, 200)
COLORS = (BLUE,) * len(NAMES)
TASKS = {
    "segmentation": Segmentation(classes=NAMES, colors=COLORS), "depth": Depth(),
    "boxes": Boxes(classes=NAMES, colors=COLORS),
}  # fmt: skip
WIDTH, HEIGHT = 160, 120


def sighting(place: tuple[float, float, float], kind: int = 0, score: float = 0.9, **values: object) -> np.ndarray:
    found = np.zeros(1, SIGHTING)
    found["xyz_m"], found["class"], found["score"], found["extent_m"] = place, kind, score, (0.5, 0.5)
    for name, value in values.items():
        found[name] = value
    return found


def merged(*sightings: np.ndarray, least: int = 1) -> np.ndarray:
    return merge_sightings(np.concatenate(sightings), least)


# ---------------------------------------------------------------------------------------------- the rule


def test_sightings_of_one_thing_become_one():
    places = [(0, 0, 0), (0.2, 0, 0), (0.1, 0, 0.1), (3, 0, 0)]
    found = merged(*(sighting(place, picture=number) for number, place in enumerate(places)))
    assert found["sightings"].tolist() == [3, 1]
    np.testing.assert_allclose(found["xyz_m"], [(0.1, 0, 0.1 / 3), (3, 0, 0)], atol=1e-9)
    assert merged(*(sighting((0, 0, 0), picture=3) for _ in range(4)))["sightings"].tolist() == [1], "one picture"


def test_classes_stay_apart_and_the_best_score_comes_first():
    found = merged(sighting((0, 0, 0), 1, 0.4), sighting((0, 0, 0), 2, 0.8), sighting((0, 0, 0), 1, 0.6))
    assert found["class"].tolist() == [2, 1] and found["score"].tolist() == [0.8, 0.6]


@pytest.mark.parametrize("extent", [0.1, 0.5, 2.0])
def test_the_radius_follows_the_extent(extent):
    radius = max(LEAST_RADIUS_M, extent / 2)
    for share, count in ((0.95, 1), (1.05, 2)):
        pair = (sighting((0, 0, 0), extent_m=extent), sighting((share * radius, 0, 0), score=0.5, extent_m=extent))
        assert len(merged(*pair)) == count


def test_a_thing_seen_from_all_sides_lies_amid_its_sightings():
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    sides = [sighting((0.24 * math.cos(a), 0.24 * math.sin(a), 0), picture=i, score=0.9 - 0.001 * i,
                      extent_m=(0.7, 0.7)) for i, a in enumerate(angles)]  # fmt: skip
    found = merged(*sides)
    assert found["sightings"].tolist() == [12] and np.abs(found["xyz_m"]).max() < 0.01


def test_boxes_that_the_border_cuts_hardly_count():
    whole, cut = sighting((0, 0, 0), score=0.4), sighting((0.2, 0, 0), score=0.9, cut=True, picture=1, extent_m=0.1)
    found = merged(whole, cut)
    assert found["sightings"].tolist() == [2] and np.abs(found["xyz_m"]).max() < 0.001
    np.testing.assert_allclose(found["extent_m"], 0.5, atol=0.002)
    assert merged(cut)["xyz_m"][0].tolist() == [0.2, 0, 0], "better than nothing"


def test_what_few_pictures_show_is_left_out():
    twice = [sighting((0, 0, 0), picture=number) for number in range(2)]
    assert merged(*twice, sighting((9, 0, 0)), least=2)["sightings"].tolist() == [2]
    assert len(merge_sightings(np.zeros(0, SIGHTING))) == 0


def test_many_sightings_take_seconds():
    rng = np.random.default_rng(0)
    many = np.zeros(50_000, SIGHTING)
    middles = rng.uniform(-50, 50, (500, 3))
    many["xyz_m"] = middles[rng.integers(0, 500, len(many))] + rng.normal(0, 0.02, (len(many), 3))
    many["score"], many["picture"], many["extent_m"] = rng.random(len(many)), np.arange(len(many)), 0.5
    found = merge_sightings(many, 3)
    assert len(found) == 500 and found["sightings"].sum() == 50_000


def test_a_box_is_placed_by_the_pose():
    objects = np.zeros(2, OBJECT)
    objects["box"], objects["score"], objects["distance_m"] = ((10, 20, 30, 60), (0, 5, 8, 9)), 0.5, 2
    objects["xyz_m"] = ((1, 0, 2), (np.nan, np.nan, np.nan))
    pose = np.array([[0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    found = sightings_of(objects, {"fx": 100, "fy": 80, "cx": 0, "cy": 0}, pose, (100, 100), 4)
    assert found["xyz_m"].tolist() == [[7, 6, 6]] and found["picture"].tolist() == [4] and not found["cut"].any()
    np.testing.assert_allclose(found["extent_m"], [[0.4, 1.0]])
    objects["xyz_m"] = 1
    assert sightings_of(objects, {"fx": 1, "fy": 1}, pose, (100, 100), 0)["cut"].tolist() == [False, True]
    assert sightings_of(objects, {"fx": 1, "fy": 1}, pose, (60, 100), 0)["cut"].tolist() == [True, True]


# ---------------------------------------------------------------------------------------------- a generated room


class Exact:
    """Stands for a network: classes, depth and boxes of a room as they are. A picture's first pixel is its number."""

    def __init__(self, frames: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.tasks, self.frames, self.cameras = TASKS, frames, {}
        self.field_of_view = FieldOfView(self, "", None)

    def __call__(self, image: np.ndarray, focal: float | None = None) -> dict[str, np.ndarray]:
        depth, instances = self.frames[int(image[0, 0, 0])]
        rows = [(*box, 0.9, number // INSTANCE_DIVISOR - 1, math.nan) for number, box in mask_boxes(instances).items()]
        ids = np.where(instances > 0, instances // INSTANCE_DIVISOR - 1, NO_CLASS).astype(np.uint8)
        found = {"segmentation": torch.from_numpy(ids)[None]}
        found |= {"depth": torch.from_numpy(depth)[None], "boxes": torch.tensor([rows], dtype=torch.float32)}
        return {name: self.tasks[name].arrays(value)[0] for name, value in completed(found, self.tasks).items()}

    def with_probabilities(self, image: np.ndarray, task: str) -> tuple[dict[str, np.ndarray], None]:
        return self(image), None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exact, dict[int, np.ndarray]]:
    """A room seen from 24 places as a data set with poses; what is seen; and each thing's corners in the world."""
    folder = tmp_path_factory.mktemp("place")
    room = FurnishedRoom(np.random.default_rng(5))
    room.add_openings(1.0)
    room.furnish(lamp_on=False)
    scene, values = room.scene(), room.instances()
    middle, poses = room.size / 2, []
    for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        forward = np.array([math.cos(angle), math.sin(angle), -0.35])
        forward /= np.linalg.norm(forward)
        right = np.array([math.sin(angle), -math.cos(angle), 0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        pose[:3, 3] = middle - [1.1 * math.cos(angle), 1.1 * math.sin(angle), 0]
        pose[2, 3] = 1.6
        poses.append(pose)
    frames = write_posed_room(folder, scene, values, poses, (HEIGHT, WIDTH))
    corners = {value: scene.corners[values == value].reshape(-1, 3) for value in np.unique(values[values > 0]).tolist()}
    return folder, Exact(frames), corners


def test_objects_of_a_room_stand_where_they_are(place, tmp_path):
    pytest.importorskip("open3d", exc_type=ImportError)
    folder, exact, corners = place
    scan = read_scan(folder)
    report = reconstruct(scan, scan.shots, exact, tmp_path / "room.ply", 0.05, 8.0)
    objects = report["objects"]
    # A thing that three pictures show: its box in the world, and where it was found.
    seen = Counter(value for _, instances in exact.frames for value in np.unique(instances[instances > 0]).tolist())
    places = {value: [] for value, count in seen.items() if count >= 3}
    for item in objects:
        own = [value for value in corners if NAMES[value // INSTANCE_DIVISOR - 1] == item["class"]]
        gaps = [gap_to(corners[value], item["xyz_m"]) for value in own]
        places.setdefault(own[int(np.argmin(gaps))], []).append(min(gaps))
    assert max(gap for gaps in places.values() for gap in gaps) < 0.05, "metres outside of the thing's own box"
    assert sum(map(bool, places.values())) >= 0.95 * len(places) > 20, "nearly each is found"
    assert sum(len(gaps) > 1 for gaps in places.values()) <= 0.15 * len(places), "few are found twice"
    assert all(item["sightings"] >= 3 and len(item["extent_m"]) == 2 for item in objects)


def gap_to(points: np.ndarray, place: list[float]) -> float:
    """Metres from a place to the box around these points (n, 3); 0 inside."""
    outside = np.maximum(points.min(0) - place, place - points.max(0)).clip(0)
    return float(np.linalg.norm(outside))


def test_a_folder_gets_a_list_and_marks_on_the_plan(place, tmp_path, monkeypatch):
    pytest.importorskip("open3d", exc_type=ImportError)
    folder, exact, _ = place
    monkeypatch.setattr("reconstruct.Predictor", lambda *_, **__: exact)
    (tmp_path / "x.pt").touch()
    output = tmp_path / "room.ply"
    words = [
        "reconstruct.py",
        "--input",
        folder,
        "--checkpoint",
        tmp_path / "x.pt",
        "--output",
        output,
        "--voxel",
        0.05,
    ]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    main()
    objects = json.loads((tmp_path / "room.json").read_text())["objects"]
    assert objects and set(objects[0]) == {"class", "score", "xyz_m", "extent_m", "sightings"}
    plan = cv2.imread(str(tmp_path / "room_plan.png"))[..., ::-1]
    assert (plan == BLUE).all(2).sum() > 200, "squares and plates in the color of the class"


def test_one_image_gets_its_objects_with_their_places_in_the_cloud(place, tmp_path):
    folder, exact, _ = place
    path, listed = folder / "rgb/03.png", tmp_path / "photo.json"
    camera = generate._intrinsics(WIDTH, HEIGHT)
    points = image_to_cloud(exact, path, camera, None, listed)
    content = json.loads(listed.read_text())
    assert (content["image"], content["width"], content["height"]) == ("03.png", WIDTH, HEIGHT)
    assert len(content["objects"]) == len(mask_boxes(exact.frames[3][1]))
    for item in content["objects"]:
        x1, y1, x2, y2 = item["box"]
        column, row = (
            ((x1 + x2 - 1) / 2 - camera["cx"]) / camera["fx"],
            ((y1 + y2 - 1) / 2 - camera["cy"]) / camera["fy"],
        )
        np.testing.assert_allclose(item["xyz_m"], np.array([column, row, 1]) * item["distance_m"], atol=2e-3)
    few = image_to_cloud(exact, path, camera, 2.5, listed)
    near = json.loads(listed.read_text())["objects"]
    assert len(few.points) < len(points.points) and near == [i for i in content["objects"] if i["distance_m"] <= 2.5]


def test_marks_stand_where_things_are_on_the_plan():
    pytest.importorskip("open3d", exc_type=ImportError)
    corners = np.array([[1, 2, 0], [5, 2, 0], [1, 4, 0], [5, 4, 0]], np.float32)
    triangles = np.array([[0, 1, 2], [2, 1, 3]], np.int32)
    floor = Surface(corners, np.full((4, 3), 7, np.uint8), np.full(4, NO_CLASS, np.uint8), triangles)
    page = from_above(floor, np.array([0, 0, 1.0]))
    place, outside = np.array([3.0, 3.5, 0.7]), np.array([9.0, 3, 0])
    (_, picture, _), _ = draw_plan(
        floor, np.array([0, 0, 1.0]), marks=[(place, "", BLUE), (outside, "chair", (1, 2, 3))]
    )
    rows, columns = np.nonzero((picture == BLUE).all(2))
    middle = 2 * page.cells(place[None])[0]
    np.testing.assert_allclose([columns.min() + columns.max(), rows.min() + rows.max()], 2 * middle, atol=3)
    side = 2 * np.array(page.top.shape[::-1])
    assert ((middle > 0) & (middle < side)).all() and not (picture == (1, 2, 3)).all(2).any()
