"""The numbers of Cityscapes: cityscapesScripts, cityscapesscripts/helpers/labels.py."""

from __future__ import annotations

# Names, ids and colors of the classes that count, in the order of their train ids.
CITYSCAPES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic_light": (19, (250, 170, 30)),
    "traffic_sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CITYSCAPES_THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
FIRST_THING, LAST_ID = 24, 33  # caravan (29) and trailer (30) are things as well, which do not count
PART = 1000  # of the numbers in *_gtFine_instanceIds.png: id * PART + thing; an id alone is stuff or a group

_NAMES = {number: name for name, (number, _) in CITYSCAPES.items()}


def name_of_number(number: int) -> tuple[str, bool]:
    """A number in a file *_gtFine_instanceIds.png -> (class, whether it is one thing); class "": it does not count.

    Raises ValueError for a number that stands for nothing.
    """
    single = number >= PART
    kind = number // PART if single else number
    if not (FIRST_THING if single else 0) <= kind <= LAST_ID:
        allowed = f"0..{LAST_ID}, or {FIRST_THING}..{LAST_ID} times {PART} and the number of a thing"
        raise ValueError(f"it is none of Cityscapes' instance ids: {allowed}")
    return _NAMES.get(kind, ""), single
