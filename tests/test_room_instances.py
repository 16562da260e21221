"""Instance masks of the generated rooms: one value for each thing, of one class, the same from every camera."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from rooms import generate, raycast
from rooms.furnished_room import FurnishedRoom
from rooms.item import (
    BED,
    BOOKS,
    BOOKSHELF,
    BOX,
    CABINET,
    CEILING,
    CHAIR,
    CURTAIN,
    DESK,
    DOOR,
    FLOOR,
    LAMP,
    NIGHT_STAND,
    PICTURE,
    PILLOW,
    PROP,
    RUG,
    SOFA,
    TABLE,
    TELEVISION,
    THINGS,
    WALL,
    WINDOW,
    Item,
)
from rooms.raycast import Pinhole
from rooms.textures import Material
from tasks import CLASS_LISTS

LABELS = list(THINGS)
SIZE = {"train": 3, "val": 1, "width": 96, "height": 72, "seed": 3}
NORTH = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)  # a camera's right, down and forward: x, -z, y
SOUTH = np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], float)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("things") / "rooms"
    generate.write(output, **SIZE)
    return output


def empty_room(seed: int = 0) -> FurnishedRoom:
    room = FurnishedRoom(np.random.default_rng(seed))
    room.size = np.array([6.0, 6.0, 3.0])
    return room


def random_room(seed: int) -> FurnishedRoom:
    room = FurnishedRoom(np.random.default_rng(seed))
    room.add_openings(day=1.0)
    room.furnish(lamp_on=False)
    return room


def look(room: FurnishedRoom, position: tuple[float, float, float], rotation: np.ndarray) -> tuple[np.ndarray, ...]:
    """Instance mask (81, 101), labels (81, 101) and seen points (3, 81, 101) of a camera with a focal length of 100."""
    scene = room.scene()
    depth, seen, directions = raycast.cast(scene, Pinhole(np.array(position, float), rotation, 101, 81, 100.0))
    return room.instances()[seen], scene.label[seen], np.reshape(position, (3, 1, 1)) + directions * depth


def things(room: FurnishedRoom) -> dict[int, list[list[int]]]:
    """Label -> for each of its things, in the order of their numbers, the primitives it consists of."""
    values = room.instances()
    found: dict[int, list[list[int]]] = {}
    for value in np.unique(values[values > 0]).tolist():
        found.setdefault(LABELS[value // 256 - 1], []).append(np.flatnonzero(values == value).tolist())
        assert value % 256 == len(found[LABELS[value // 256 - 1]]), "numbers start at 1 and leave none out"
    return found


def count(item: Item) -> dict[int, int]:
    """Label -> things of an item that stands alone in a room."""
    room = empty_room()
    room.stand(item, 3, 3, 0.3, check=False)
    return {label: len(found) for label, found in things(room).items()}


# ---------------------------------------------------------------------------------------------- files


def test_processes_write_the_same_masks(folder: Path, tmp_path: Path) -> None:
    generate.write(tmp_path / "workers", **SIZE, workers=2)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "workers") for path in (tmp_path / "workers").rglob("*.*")}
    assert all((folder / name).read_bytes() == (tmp_path / "workers" / name).read_bytes() for name in files)
    assert {Path(f"instances/{number:06d}.png") for number in (1, 2, 3, 4)} < files


def test_description(folder: Path) -> None:
    text = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert text["columns"] == ["image", "segmentation", "depth", "normals", "boxes"]
    assert text["boxes"] == {"format": "instances", "divisor": 256, "classes": list(THINGS.values())}
    for split, numbers in (("train", (1, 2, 3)), ("val", (4,))):
        rows = [line.split("\t") for line in (folder / f"{split}.txt").read_text().splitlines()]
        assert [row[4] for row in rows] == [f"instances/{number:06d}.png" for number in numbers]
        assert {len(row) for row in rows} == {5}


def test_names_are_those_of_the_class_masks() -> None:
    assert {label: CLASS_LISTS["nyu40"][label] for label in THINGS} == THINGS


def test_the_class_of_a_thing_is_that_of_the_class_mask(folder: Path) -> None:
    classes = yaml.safe_load((folder / "dataset.yaml").read_text())["boxes"]["classes"]
    label_of = np.array([-1, *(CLASS_LISTS["nyu40"].index(name) for name in classes)])
    for number in (1, 2, 3, 4):
        name = f"{number:06d}.png"
        values = cv2.imread(str(folder / "instances" / name), cv2.IMREAD_UNCHANGED)
        labels = cv2.imread(str(folder / "masks" / name), cv2.IMREAD_UNCHANGED)
        assert values.dtype == np.uint16 and values.shape == labels.shape == (72, 96)
        np.testing.assert_array_equal(values, generate.render(3, number, 96, 72).instances)
        assert len(np.unique(values)) > 5
        np.testing.assert_array_equal(values == 0, np.isin(labels, (WALL, FLOOR, CEILING)))
        np.testing.assert_array_equal(label_of[values // 256][values > 0], labels[values > 0])
        assert (values[values > 0] % 256 > 0).all()


# ---------------------------------------------------------------------------------------------- things


def test_a_thing_has_one_value_from_every_camera() -> None:
    room = empty_room()
    for x in (2.1, 3.0, 3.9):
        room.stand(room.make.chair(), x, 3.0, 0.2, check=False)
    chair = 256 * (LABELS.index(CHAIR) + 1)
    for position, rotation in (((3.0, 0.5, 1.0), NORTH), ((3.0, 5.5, 1.0), SOUTH), ((2.7, 0.1, 1.3), NORTH)):
        values, _, points = look(room, position, rotation)
        for number, x in ((1, 2.1), (2, 3.0), (3, 3.9)):
            seen = points[:, values == chair + number]
            assert seen.shape[1] > 100 and np.abs(seen[0] - x).max() < 0.4, (position, number)


def test_size_changes_no_value() -> None:
    small, large = generate.render(0, 2, 96, 72).instances, generate.render(0, 2, 288, 216).instances
    assert len(np.unique(small)) > 5
    assert (large[1::3, 1::3] == small).mean() > 0.999


def test_things_of_one_class_that_touch_are_apart() -> None:
    room = empty_room()
    cube = Item((1, 1, 1))
    cube.add(BOX, Material(), (0, 0, 0), (1, 1, 1))
    for x in (2.5, 3.5):  # the same item twice, side by side
        room.stand(cube, x, 4.0, 0, check=False)
    values, labels, points = look(room, (3.0, 0.5, 0.5), NORTH)
    box = 256 * (LABELS.index(BOX) + 1)
    np.testing.assert_array_equal(values, np.where(labels == BOX, np.where(points[0] < 3, box + 1, box + 2), 0))
    assert (values == box + 1).sum() > 500 and (values == box + 2).sum() > 500


def test_the_box_of_a_mask_encloses_the_thing() -> None:
    room = empty_room()
    item = Item((1.0, 1.0, 0.5))  # of two parts: the whole is 1 m wide and 0.5 m high
    item.add(TABLE, Material(), (-0.25, 0, 0), (0.502, 1.0, 0.5))
    item.add(TABLE, Material(), (0.25, 0, 0), (0.502, 1.0, 0.2))
    room.stand(item, 3.0, 3.0, 0, z=1.25, check=False)
    values, *_ = look(room, (3.0, 0.5, 1.5), NORTH)
    rows, columns = np.nonzero(values == 256 * (LABELS.index(TABLE) + 1) + 1)
    # 2 m away a pixel spans 20 mm, and pixel centers lie at 20 mm * k from the middle of the picture
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (25, 28, 76, 53)
    assert (values[28:42, 51:76] == 0).all()  # the box is not full


def test_an_item_is_one_thing_and_what_lies_on_it_another() -> None:
    for seed in range(30):
        make = empty_room(seed).make
        for label, item in (
            (CHAIR, make.chair()), (PICTURE, make.picture()), (DOOR, make.door()), (BOX, make.carton()),
            (RUG, make.rug(2, 1)), (TELEVISION, make.screen(1)), (LAMP, make.lamp(1.5)), (CABINET, make.wardrobe()),
            (LAMP, make.ceiling_lamp(lit=False)), (PROP, make.plant()), (PROP, make.vase()), (BOOKS, make.pile()),
        ):  # fmt: skip
            assert count(item) == {label: 1}
        window = count(make.window(1.5, 0.9, 2.1, day=1.0))
        assert window in ({WINDOW: 1}, {WINDOW: 1, CURTAIN: 1})
        for label, item in ((BED, make.bed()), (SOFA, make.sofa(3))):
            pillows = sum(part.label == PILLOW for part in item.parts)
            assert count(item) == {label: 1} | ({PILLOW: pillows} if pillows else {})
        assert count(make.night_stand()) in ({NIGHT_STAND: 1, LAMP: 1}, {NIGHT_STAND: 1, BOOKS: 1})
        sideboard, desk = Counter(count(make.sideboard())), count(make.desk())
        assert sideboard.pop(CABINET) == 1 and sideboard.total() == 2
        assert desk.pop(DESK) == 1 and desk in (
            {LAMP: 1}, {BOOKS: 1}, {TELEVISION: 1, LAMP: 1}, {TELEVISION: 1, BOOKS: 1}
        )  # fmt: skip


def test_rows_of_books_end_at_gaps_and_boards() -> None:
    several = 0
    for seed in range(20):
        room = empty_room()
        room.stand(empty_room(seed).make.bookshelf(), 3, 3, 0, check=False)
        found, parts = things(room), room.scene().primitives
        assert len(found[BOOKSHELF]) == 1
        rows = []  # of spans along the shelf: height of the board, from, to
        for row in found[BOOKS]:
            spans = sorted((parts[k].center[0] - parts[k].half[0], parts[k].center[0] + parts[k].half[0]) for k in row)
            assert all(b[0] - a[1] == pytest.approx(0.004) for a, b in itertools.pairwise(spans))
            (board,) = {round(float(parts[k].center[2] - parts[k].half[2]), 6) for k in row}
            rows.append((board, spans[0][0], spans[-1][1]))
            several += len(row) > 1
        rows.sort()
        for (board, _, end), (other, start, _) in itertools.pairwise(rows):
            assert other > board or start - end > 0.1
    assert several > 20


@pytest.mark.parametrize("seed", range(12))
def test_a_room_has_the_things_of_its_furniture(seed: int) -> None:
    room = random_room(seed)
    found, scene = things(room), room.scene()
    parts = [part for item in room.items for part in item.parts]
    numbers = Counter({label: len(of_class) for label, of_class in found.items()})
    for label in (BED, CHAIR, SOFA, TABLE, DOOR, WINDOW, BOOKSHELF, PICTURE, DESK, CURTAIN, RUG, BOX, NIGHT_STAND):
        assert numbers[label] == sum(any(part.label == label for part in item.parts) for item in room.items)
    assert numbers[PILLOW] == sum(part.label == PILLOW for part in parts)
    assert numbers[TELEVISION] * 4 == sum(part.label == TELEVISION for part in parts)  # two of a foot, case, picture
    assert numbers[LAMP] == sum(part.label == LAMP and part.material.glow > 0 for part in parts)  # shades
    assert numbers[PROP] == sum(part.label == PROP and part.shape == "cone" for part in parts)  # pots
    assert numbers.total() > 8
    widest = {LAMP: 0.8, PROP: 1.4, PILLOW: 1, BOOKS: 1.5, CHAIR: 1.1, TELEVISION: 1.5}
    for label, limit in widest.items():
        for thing in found.get(label, []):
            assert np.ptp(scene.corners[thing].reshape(-1, 3)[:, :2], axis=0).max() < limit  # over the floor


def test_more_things_than_numbers() -> None:
    room = empty_room()
    chair = room.make.chair()
    for _ in range(255):
        room.stand(chair, 3, 3, 0, check=False)
    assert room.instances().max() == 256 * (LABELS.index(CHAIR) + 1) + 255
    room.stand(chair, 3, 3, 0, check=False)
    with pytest.raises(ValueError, match="256 things of class chair; an instance mask numbers at most 255"):
        room.instances()
