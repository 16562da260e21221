"""COCO 2017, boxes and outlines of 80 classes, as a data set folder: `python prepare.py coco`.

Each loader process would read the 470 MB of instances_train2017.json, which takes 15 s. Each frame gets a file of its
own instead, in the same form: its entry of `images`, its `annotations` and their `categories`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from sources.archives import LABEL_FOLDERS, Member, Source, refuse_full_disk, write_frames, write_image
from sources.download import download
from tasks import CLASS_LISTS
from tasks.coco_json import MOST_FILE_BYTES, CocoFile, parse_coco
from user_input.flags import Parser
from user_input.values import ManyErrors
from utils import refuse_existing

URL = "http://images.cocodataset.org"
ARCHIVES = {  # address -> bytes
    f"{URL}/annotations/annotations_trainval2017.zip": 252_907_541,
    f"{URL}/zips/val2017.zip": 815_585_330,
    f"{URL}/zips/train2017.zip": 19_336_861_798,
}
SPLITS = ("train", "val")
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
    on_the_disk = next(folder for folder in options.output.absolute().parents if folder.is_dir())
    with ExitStack() as stack:
        pictures = find_pictures([stack.enter_context(Source(path)) for path in images])
        source = stack.enter_context(Source(annotations))
        unpacked = stack.enter_context(tempfile.TemporaryDirectory(dir=on_the_disk, prefix=".coco-"))
        write(options.output, source, pictures, Path(unpacked))
    return 0


def write(output: Path, source: Source, pictures: Images, unpacked: Path) -> None:
    """Raises ValueError when pictures of a split, or all of both, are missing. `unpacked`: for the json files, until
    all is written."""
    archive = f"annotations_trainval2017.zip ({URL})"
    files = source.find(r"instances_(train|val)2017\.json", "instances_train2017.json", archive)
    frames: list[tuple[str, Callable[[Path], dict[str, str]]]] = []
    known: set[str] = set()
    size = flat = 0
    for split in (split for split in SPLITS if (split,) in files):
        labels = read_labels(files[split,], unpacked)
        names = labels.names
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
        flat += int((~labels.whole).sum())
        pairs = zip(labels.indices, names, strict=True)
        frames += [(split, partial(write_frame, labels, index, pictures[name,])) for index, name in pairs]
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


def write_frame(labels: Labels, index: int, picture: Member, part: Path) -> dict[str, str]:
    """Copies the picture as it is, and writes its label file; returns {column: file}."""
    name = picture.name.rpartition("/")[2].removesuffix(".jpg")
    boxes = f"{LABEL_FOLDERS['boxes']}/{name}.json"
    (part / boxes).parent.mkdir(exist_ok=True)
    (part / boxes).write_text(json.dumps(labels.of_image(index), separators=(",", ":")))
    return {"image": write_image(part, name, picture)[0], "boxes": boxes}


# ---------------------------------------------------------------------------------------------- the json files


def read_labels(member: Member, unpacked: Path) -> Labels:
    """An instances_*.json. Raises ValueError for a file of another form, a bad box, and one of no image or class."""
    where, path = Path(str(member)), member.source.path / member.name
    if not member.source.path.is_dir():  # outlines are read from where they stand in the file
        if member.size > MOST_FILE_BYTES:
            raise ValueError(f"{where}: more than {MOST_FILE_BYTES:,} bytes, the most that is read of such a file")
        refuse_full_disk(unpacked, member.size)
        path = unpacked / where.name
        member.copy(path)
    labels = parse_coco(path, where)
    if faults := [line for lines in labels.faults.values() for line in lines]:
        raise ManyErrors(*faults)
    if not labels.names:
        raise ValueError(f"{where}: it has no images")
    for name in labels.categories.values():
        if name not in CLASS_LISTS["coco80"]:
            raise ValueError(f"{where}: category {name!r:.80} is not one of COCO's 80 classes")
    for name in labels.names.values():
        if not re.fullmatch(r"[\w-]+\.jpg", name):
            raise ValueError(f"{where}: file_name is {name!r:.80}; it takes a name such as 000000000009.jpg")
    if twin := next((name for name, images in labels.by_name.items() if len(images) > 1), ""):
        raise ValueError(f"{where}: two images have the file_name {twin}")
    kinds = list(labels.kinds)
    for image, kind, number in zip(labels.image.tolist(), labels.kind.tolist(), labels.number.tolist(), strict=True):
        if image not in labels.names:
            raise ValueError(f"{labels.place(number)}: its image_id is none of the {len(labels.names):,} images")
        if kinds[kind] not in labels.categories:
            raise ValueError(f"{labels.place(number)}: category_id {kinds[kind]!r:.40} is none of the categories")
    return Labels(labels, path)


class Labels:
    """The labels of one split, for one image after the other. `path`: the json, which has the outlines."""

    def __init__(self, file: CocoFile, path: Path) -> None:
        self.file, self.path = file, path
        self.ids = list(file.ids)  # index -> image id
        self.kinds = list(file.kinds)  # number in file.kind -> category id
        self.indices = sorted(file.names)
        # Two boxes of train2017 have no height or no width.
        self.whole = file.boxes[:, 2:].min(1, initial=np.inf) > 0

    @property
    def names(self) -> list[str]:
        """File names of the images, in order."""
        return [self.file.names[index] for index in self.indices]

    def of_image(self, index: int) -> dict[str, object]:
        """What COCO's json says about one image, without boxes that have no area.

        `id` of an annotation is its place in the official list, from 1 on.
        """
        file, image_id = self.file, self.ids[index]
        first, last = np.searchsorted(file.image, [index, index + 1])
        annotations = []
        with self.path.open("rb") as content:
            for row in (first + np.flatnonzero(self.whole[first:last])).tolist():
                entry = {
                    "id": int(file.number[row]) + 1,
                    "image_id": image_id,
                    "category_id": self.kinds[file.kind[row]],
                    "bbox": file.boxes[row].tolist(),
                    "iscrowd": int(file.crowd[row]),
                }
                if outline := file.outline(row, content):
                    entry["segmentation"] = outline
                annotations.append(entry)
        height, width = file.sizes.get(index, (0, 0))
        used = sorted({item["category_id"] for item in annotations}, key=str)
        return {
            "images": [{"id": image_id, "file_name": file.names[index], "width": width, "height": height}],
            "annotations": annotations,
            "categories": [{"id": category, "name": file.categories[category]} for category in used],
        }
