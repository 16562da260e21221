"""Office 0 of the Replica data set, 60 frames with classes, depth and objects: `python prepare.py replica`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from drawing import class_palette
from images import write_png
from sources.archives import Member, Pair, Source, check_depth, write_frames
from tasks import CLASS_LISTS, NO_CLASS
from user_input.flags import Parser
from utils import refuse_existing

URL = "https://github.com/Aadit-Munjal/CSCI5561_Project"
SPLITS = {"train": range(48), "val": range(48, 60)}  # ours, in order of time; the archive has 81 frames

FOLDERS = ("rgb", "depth", "semantic_instance-viz")
INSTANCES = "instances"  # folder of the written masks with the number of the object in each pixel
STUFF = ("wall", "floor", "ceiling")  # no things: without boxes
# Our mapping from the classes of the objects in this room to those of NYUDv2-40. Objects of other names ("undefined",
# "other-leaf") have no label.
NYU40 = {
    "wall": "wall", "floor": "floor", "ceiling": "ceiling", "door": "door", "chair": "chair", "sofa": "sofa",
    "table": "table", "blinds": "blinds", "rug": "floor_mat", "anonymize_picture": "picture", "lamp": "lamp",
    "tv-screen": "television", "panel": "whiteboard", "pillar": "other_structure",
    **dict.fromkeys(
        ("anonymize_text", "bin", "camera", "clock", "desk-organizer", "indoor-plant", "plant-stand", "switch",
         "tablet", "tissue-paper", "vent", "wall-plug"),
        "other_prop",
    ),
}  # fmt: skip


def command(argv: Sequence[str]) -> int:
    """`python prepare.py replica`"""
    parser = Parser(prog="prepare.py replica", description="makes the folder of Replica's office 0: 48 + 12 frames")
    help_images = "CSCI5561_Project-main.zip or its folder"
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help=help_images)
    default = Path("dataset/replica_office0")
    parser.add_argument("--output", type=Path, default=default, help=f"default: {default}")
    options = parser.parse_args(argv)
    refuse_existing(options.output)
    with ExitStack() as stack:
        source = stack.enter_context(Source(options.images))
        write(options.output, source)
    return 0


def write(output: Path, source: Source) -> None:
    """Raises ValueError when a file of the splits is missing or is not what its name says."""
    pairs = find_pairs(source)
    objects = read_objects(source)
    things = {number: name for number, name in objects.items() if name not in STUFF}
    table = np.full(256, NO_CLASS, np.uint8)
    for number, name in objects.items():
        table[number] = CLASS_LISTS["nyu40"].index(name)
    converters = {"segmentation": partial(write_mask, table=table), "depth": check_depth}

    def write_frame(part: Path, both: tuple[Pair, Pair]) -> dict[str, str]:
        files = {name: file for pair in both for name, file in pair.write(part, converters[pair.task]).items()}
        return files | {"boxes": f"{INSTANCES}/{both[0].name}.png"}

    description = {
        "name": "replica_office0",
        "splits": {split: f"{split}.txt" for split in SPLITS},
        "columns": ["image", "segmentation", "depth", "boxes"],
        "segmentation": {"classes": "nyu40", "ignore": NO_CLASS},
        "depth": {"metres_per_unit": 0.001, "max": 10.0},
        "boxes": {
            "format": "instances",
            "classes": [name for name in CLASS_LISTS["nyu40"] if name in things.values()],
            "other_classes": "leave_out",
            "values": things,
        },
        "camera": {"fx": 600.0, "fy": 600.0, "cx": 599.5, "cy": 339.5, "width": 1200, "height": 680},
    }
    comment = "Office 0 of the Replica data set, by python prepare.py replica; our split, in order of time."
    jobs = [(both[0].split, partial(write_frame, both=both)) for both in pairs]
    size = sum(pair.size for both in pairs for pair in both)
    write_frames(output, jobs, size, source.path, description, comment)


def find_pairs(source: Source) -> list[tuple[Pair, Pair]]:
    """(image and mask, image and depth) of each frame. Raises ValueError when one is missing."""
    archive = f"CSCI5561_Project ({URL})"
    found = {kind: source.find(rf"{kind}/(\d{{4}})\.png", f"{kind}/0000.png", archive) for kind in FOLDERS}
    pairs = []
    for split, numbers in SPLITS.items():
        for key in ((f"{number:04d}",) for number in numbers):
            for kind, files in found.items():
                if key not in files:
                    raise ValueError(f"{source.path}: no {kind}/{key[0]}.png, which is of the {split} split")
            image, depth, mask = (files[key] for files in found.values())
            pairs.append((Pair(split, key[0], image, mask, "segmentation"), Pair(split, key[0], image, depth, "depth")))
    return pairs


def read_objects(source: Source) -> dict[int, str]:
    """{number of an object in the room: its class of NYUDv2-40}, without those of no class. Raises ValueError."""
    names = source.find(r"office_0/info_semantic\.json", "office_0/info_semantic.json", f"CSCI5561_Project ({URL})")
    member: Member = next(iter(names.values()))
    try:
        objects = {
            int(item["id"]): NYU40[item["class_name"]]
            for item in json.loads(member.read())["objects"]
            if item["class_name"] in NYU40
        }
        if not all(0 < number < 256 for number in objects):
            raise ValueError(f"numbers {min(objects)} to {max(objects)}")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise ValueError(f"{member}: not a list of objects with names and numbers below 256 ({reason})") from None
    return objects


def write_mask(stored: np.ndarray, path: Path, table: np.ndarray) -> None:
    """The picture of the objects, each in the color of its number in PASCAL VOC's palette -> classes at `path`, and the
    numbers in the folder INSTANCES beside.

    Those colors are imgviz's, which the renderer of the frames drew with. A file of numbers (H, W) does as well.
    Raises ValueError for colors that are not of the palette.
    """
    if stored.ndim == 3:
        codes = stored[..., :3].astype(np.int64) @ (1 << 16, 1 << 8, 1)
        palette = class_palette().astype(np.int64) @ (1 << 16, 1 << 8, 1)
        order = palette.argsort()
        place = order[np.searchsorted(palette[order], codes).clip(max=255)]
        wrong = palette[place] != codes
        if wrong.any():
            color = ", ".join(map(str, stored[wrong][0][:3]))
            raise ValueError(f"{wrong.mean():.0%} of its pixels have colors of no object, such as ({color})")
        stored = place
    if stored.min() < 0 or stored.max() > 255:
        raise ValueError(f"it has object {stored.max()}; the objects of this room have numbers below 256")
    write_png(path, table[stored])
    numbers = path.parents[1] / INSTANCES / path.name
    numbers.parent.mkdir(exist_ok=True)
    write_png(numbers, stored.astype(np.uint8))
