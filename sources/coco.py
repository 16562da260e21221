"""COCO 2017, boxes of 80 classes, as a data set folder: `python prepare.py coco`.

instances_train2017.json has 470 MB, which each loader process would read. Each frame gets a file of its own instead, in
the same form: its entry of `images`, its `annotations` without the outlines, and their `categories`.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from sources.archives import LABEL_FOLDERS, Member, Source, write_frames, write_image
from sources.download import download
from sources.json_stream import read_objects
from tasks import CLASS_LISTS
from user_input.flags import Parser
from utils import refuse_existing

URL = "http://images.cocodataset.org"
ARCHIVES = {  # address -> bytes
    f"{URL}/annotations/annotations_trainval2017.zip": 252_907_541,
    f"{URL}/zips/val2017.zip": 815_585_330,
    f"{URL}/zips/train2017.zip": 19_336_861_798,
}
SPLITS = ("train", "val")
MOST_IMAGES, MOST_ANNOTATIONS = 2**18, 2**22  # of one json file; COCO's have 118,287 and 860,001
LABEL_BYTES = 2**13  # of a written label file, for the disk; most have fewer
Images = Mapping[tuple[str, ...], Member]


def command(argv: Sequence[str]) -> int:
    """`python prepare.py coco`"""
    parser = Parser(prog="prepare.py coco", description="makes the COCO folder: 118287 + 5000 frames, 80 classes")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--download", action="store_true", help="fetch the three official archives (20.4 GB)")
    help_images = "train2017.zip val2017.zip, one of them, or their folders"
    source.add_argument("--images", type=Path, nargs="+", metavar="PATH", help=help_images)
    help_annotations = "with --images: annotations_trainval2017.zip or its folder"
    parser.add_argument("--annotations", type=Path, metavar="PATH", help=help_annotations)
    parser.add_argument("--output", type=Path, default=Path("dataset/coco"), help="default: dataset/coco")
    options = parser.parse_args(argv)
    if bool(options.images) != bool(options.annotations):
        raise ValueError("--images and --annotations go together: the boxes are in annotations_trainval2017.zip")
    refuse_existing(options.output)
    annotations, images = options.annotations, options.images
    if options.download:
        annotations, *images = (options.output.parent / address.rpartition("/")[2] for address in ARCHIVES)
        for file, (address, size) in zip((annotations, *images), ARCHIVES.items(), strict=True):
            download(address, size, file, "python prepare.py coco --images FILE FILE --annotations FILE")
    with ExitStack() as stack:
        pictures = find_pictures([stack.enter_context(Source(path)) for path in images])
        write(options.output, stack.enter_context(Source(annotations)), pictures)
    return 0


def write(output: Path, source: Source, pictures: Images) -> None:
    """Raises ValueError when pictures of a split, or all of both, are missing."""
    archive = f"annotations_trainval2017.zip ({URL})"
    files = source.find(r"instances_(train|val)2017\.json", "instances_train2017.json", archive)
    frames: list[tuple[str, Callable[[Path], dict[str, str]]]] = []
    known: set[str] = set()
    size = flat = 0
    for split in (split for split in SPLITS if (split,) in files):
        labels = Labels(files[split,])
        names = labels.names()
        missing = [name for name in names if (name,) not in pictures]
        if len(missing) == len(names):  # the archive of the other split alone
            continue
        if missing:
            count = f"{len(missing)} of {len(names)} frames are without"
            raise ValueError(f"{files[split,]}: the image {missing[0]} is missing ({count}); is an archive cut off?")
        if twin := next((name for name in names if name in known), ""):
            raise ValueError(f"{files[split,]}: {twin} is an image of the other split as well")
        known.update(names)
        size += sum(pictures[name,].size + LABEL_BYTES for name in names)
        flat += labels.flat
        frames += [(split, partial(write_frame, labels, i, pictures[name,])) for i, name in enumerate(names)]
    if not frames:
        raise ValueError(f"{source.path}: none of its images is in --images, which takes train2017.zip and val2017.zip")
    splits = dict.fromkeys(split for split, _ in frames)
    description = {
        "name": "coco",
        "splits": {split: f"{split}.txt" for split in splits},
        "columns": ["image", "boxes"],
        "boxes": {"format": "coco", "classes": "coco80"},
    }
    write_frames(output, frames, size, source.path, description, "COCO 2017, by python prepare.py coco")
    if flat:
        print(f"{flat} boxes have no width or no height and were left out")
    if others := len(pictures) - len(known):
        print(f"{others:,} images have no entry in the annotations and were left out")


def find_pictures(sources: Sequence[Source]) -> Images:
    """{(file name,): file} of all sources. Raises ValueError for another archive, and for a name that two have."""
    pictures: dict[tuple[str, ...], Member] = {}
    for source in sources:
        for key, member in source.find(r"([^/]+\.jpg)", "*.jpg", f"train2017.zip or val2017.zip ({URL})").items():
            if (twin := pictures.setdefault(key, member)) is not member:
                raise ValueError(f"{member}: {twin.source.path} has it as well; give each archive once")
    return pictures


def write_frame(labels: Labels, number: int, picture: Member, part: Path) -> dict[str, str]:
    """Copies the picture as it is, and writes its label file; returns {column: file}."""
    name = picture.name.rpartition("/")[2].removesuffix(".jpg")
    boxes = f"{LABEL_FOLDERS['boxes']}/{name}.json"
    (part / boxes).parent.mkdir(exist_ok=True)
    (part / boxes).write_text(json.dumps(labels.of_image(number), separators=(",", ":")))
    return {"image": write_image(part, name, picture)[0], "boxes": boxes}


# ---------------------------------------------------------------------------------------------- the json files


class Labels:
    """The images and boxes of an instances_*.json, in compact form: of 860,000 boxes 50 MB.

    Raises ValueError for a file of another form, and for boxes of no image or no category.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.images: list[tuple[int, str, int, int]] = []  # id, file name, width, height
        self.categories: dict[int, str] = {}
        self.flat = 0  # boxes without an area
        self._numbers, self._boxes = array("q"), array("d")  # image, id, category, crowd; x, y, width, height
        readers = {"images": self._add_image, "annotations": self._add_box, "categories": self._add_category}
        with member.open() as file:
            try:
                for key, item in read_objects(file):
                    if key in readers:
                        readers[key](item)
                self._check()
            except ValueError as problem:
                raise ValueError(f"{member}: {problem}") from None
        numbers = np.array(self._numbers, np.int64).reshape(-1, 4)
        order = np.argsort(numbers[:, 0], kind="stable")
        self.numbers, self.boxes = numbers[order], np.array(self._boxes).reshape(-1, 4)[order]
        del self._numbers, self._boxes

    def names(self) -> list[str]:
        """File names of the images, in order."""
        return [name for _, name, _, _ in self.images]

    def of_image(self, number: int) -> dict[str, object]:
        """What COCO's json says about one image, without the outlines."""
        identity, name, width, height = self.images[number]
        first, last = np.searchsorted(self.numbers[:, 0], [identity, identity + 1])
        annotations = [
            {"id": item, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            for (image, item, category, crowd), box in zip(
                self.numbers[first:last].tolist(), self.boxes[first:last].tolist(), strict=True
            )
        ]
        used = sorted({item["category_id"] for item in annotations})
        return {
            "images": [{"id": identity, "file_name": name, "width": width, "height": height}],
            "annotations": annotations,
            "categories": [{"id": category, "name": self.categories[category]} for category in used],
        }

    def _add_image(self, item: Mapping[str, object]) -> None:
        name = item.get("file_name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+\.jpg", name):
            raise ValueError(f"images: file_name is {str(name)[:80]!r}; it takes a name such as 000000000009.jpg")
        if len(self.images) == MOST_IMAGES:
            raise ValueError(f"more than {MOST_IMAGES:,} images, the most that are read")
        self.images.append((whole(item, "id"), name, whole(item, "width", 1), whole(item, "height", 1)))

    def _add_category(self, item: Mapping[str, object]) -> None:
        name = item.get("name")
        if name not in CLASS_LISTS["coco80"]:
            raise ValueError(f"category {str(name)[:80]!r} is not one of COCO's 80 classes")
        self.categories[whole(item, "id")] = name

    def _add_box(self, item: Mapping[str, object]) -> None:
        box, identity = item.get("bbox"), whole(item, "id")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or min(box[2:]) < 0:
            raise ValueError(f"annotation {identity}: bbox is {str(box)[:80]}; it takes x, y, width and height")
        crowd = whole(item, "iscrowd") if "iscrowd" in item else 0
        if crowd > 1:
            raise ValueError(f"annotation {identity}: iscrowd is {crowd}; allowed: 0 and 1")
        if len(self._boxes) == 4 * MOST_ANNOTATIONS:
            raise ValueError(f"more than {MOST_ANNOTATIONS:,} annotations, the most that are read")
        numbers = (whole(item, "image_id"), identity, whole(item, "category_id"), crowd)
        if min(box[2:]) == 0:
            self.flat += 1
            return
        self._numbers.extend(numbers)
        self._boxes.extend(box)

    def _check(self) -> None:
        """Raises ValueError unless each box has its image and category, and no image stands twice."""
        if not self.images:
            raise ValueError("it has no images")
        ids = {image[0] for image in self.images}
        if len(ids) < len(self.images) or len(set(self.names())) < len(self.images):
            raise ValueError("an image stands there twice")
        for image, identity, category in zip(
            self._numbers[0::4], self._numbers[1::4], self._numbers[2::4], strict=True
        ):
            if image not in ids:
                raise ValueError(f"annotation {identity}: no image has the id {image}")
            if category not in self.categories:
                raise ValueError(f"annotation {identity}: no category has the id {category}")


def whole(item: Mapping[str, object], key: str, least: int = 0) -> int:
    """A whole number of an object. Raises ValueError."""
    value = item.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**53:
        raise ValueError(f"{key} is {str(value)[:80]!r}; it takes a whole number from {least} on")
    return value


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9
