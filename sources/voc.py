"""PASCAL VOC 2007 and 2012, boxes and masks, as a data set folder: `python prepare.py voc`."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drawing import class_palette
from sources.archives import LABEL_FOLDERS, Member, Pair, Source, write_frames, write_image
from sources.download import download
from tasks import CLASS_LISTS, NO_CLASS
from user_input.flags import Parser
from utils import refuse_existing

URL = "http://host.robots.ox.ac.uk/pascal/VOC"
ARCHIVES = {  # address -> bytes
    f"{URL}/voc2007/VOCtrainval_06-Nov-2007.tar": 460_032_000,
    f"{URL}/voc2007/VOCtest_06-Nov-2007.tar": 451_020_800,
    f"{URL}/voc2012/VOCtrainval_11-May-2012.tar": 1_999_639_040,
}
YEAR = "(VOC2007|VOC2012)"
FILES = {  # what -> (pattern, layout)
    "list": (rf"{YEAR}/ImageSets/Main/(train|val|trainval|test)\.txt", "VOC2007/ImageSets/Main/*.txt"),
    "image": (rf"{YEAR}/JPEGImages/([^/]+)\.jpg", "VOC2007/JPEGImages/*.jpg"),
    "annotation": (rf"{YEAR}/Annotations/([^/]+)\.xml", "VOC2007/Annotations/*.xml"),
    "mask": (rf"{YEAR}/SegmentationClass/([^/]+)\.png", ""),
}
TEST = ("VOC2007", "test")  # the only test frames whose labels are public
MOST_XML_BYTES = 2**20
Found = dict[tuple[str, ...], Member]


def command(argv: Sequence[str]) -> int:
    """`python prepare.py voc`"""
    parser = Parser(prog="prepare.py voc", description="makes the PASCAL VOC folder: 16551 + 4952 frames, 20 classes")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--download", action="store_true", help="fetch the three official archives (2.9 GB)")
    names = " ".join(address.rpartition("/")[2] for address in ARCHIVES)
    help_images = f"{names}, some of them, or folders with VOC2007 and VOC2012 in them"
    source.add_argument("--images", type=Path, nargs="+", metavar="PATH", help=help_images)
    parser.add_argument("--output", type=Path, default=Path("dataset/voc"), help="default: dataset/voc")
    options = parser.parse_args(argv)
    refuse_existing(options.output)
    paths = options.images or []
    if options.download:
        for address, size in ARCHIVES.items():
            paths.append(options.output.parent / address.rpartition("/")[2])
            download(address, size, paths[-1], "python prepare.py voc --images FILE FILE FILE")
    with ExitStack() as stack:
        found = find_files([stack.enter_context(Source(path)) for path in paths])
        write(options.output, paths[0], found)
    return 0


def write(output: Path, archive: Path, found: Mapping[str, Found]) -> None:
    """Raises ValueError at a file of `found` that is not what its name says, and at `archive` for what is missing."""
    chosen = choose_lists(found["list"], archive)
    frames = [frame for split, keys in chosen.items() for key in keys for frame in frames_of(split, key, found)]
    seen: dict[str, VocFrame] = {}
    for frame in frames:
        if (twin := seen.setdefault(frame.name, frame)) is not frame:
            raise ValueError(f"{frame.image}: {twin.image} has the same name and is a frame as well")
    made_of = "; ".join(f"{split}: {' + '.join(map(' '.join, keys))}" for split, keys in chosen.items())
    print(made_of)
    description = {
        "name": "voc",
        "splits": {split: f"{split}.txt" for split in chosen},
        "columns": ["image", "boxes", "segmentation"],
        "boxes": {"format": "voc", "classes": "voc20"},
        "segmentation": {"classes": "voc21", "ignore": NO_CLASS, "colors": class_palette(21).tolist()},
    }
    comment = f"PASCAL VOC, by python prepare.py voc. {made_of}.\nMasks are there for a part of the frames."
    jobs = [(frame.split, frame.write) for frame in frames]
    write_frames(output, jobs, sum(frame.size for frame in frames), archive, description, comment)


# ---------------------------------------------------------------------------------------------- what archives hold


def find_files(sources: Sequence[Source]) -> dict[str, Found]:
    """{"list", "image", ...: {(year, name): file}} of all sources. Raises ValueError for another archive, and for a
    file that two of them have in different sizes."""
    found: dict[str, Found] = {}
    for what, (pattern, layout) in FILES.items():
        found[what] = {}
        for source in sources:
            for key, member in source.find(pattern, layout, f"one of VOC's archives ({URL})").items():
                if (twin := found[what].setdefault(key, member)).size != member.size:
                    raise ValueError(f"{member}: it differs from {twin}; give each archive once")
    return found


def choose_lists(lists: Found, archive: Path) -> dict[str, list[tuple[str, ...]]]:
    """{split: its lists, (year, name) each}: with VOC2007's test frames the usual split, which trains on all others;
    without them the official lists train and val. A split without a list is left out.

    Raises ValueError when there is none at all.
    """
    if TEST in lists:
        wanted = {"train": [("VOC2007", "trainval"), ("VOC2012", "trainval")], "val": [TEST]}
    else:
        wanted = {split: [("VOC2007", split), ("VOC2012", split)] for split in ("train", "val")}
    chosen = {split: [key for key in keys if key in lists] for split, keys in wanted.items()}
    chosen = {split: keys for split, keys in chosen.items() if keys}
    if not chosen:
        raise ValueError(f"{archive}: no list train.txt, val.txt or test.txt in VOC2007 or VOC2012/ImageSets/Main")
    return chosen


def read_ids(member: Member) -> list[str]:
    """The names of the frames of a list, one a line. Raises ValueError."""
    try:
        ids = [line.strip() for line in member.read().decode("ascii").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{member}: no list of names of frames, one a line") from None
    if wrong := next((name for name in ids if not re.fullmatch(r"[\w-]+", name)), ""):
        raise ValueError(f"{member}: {wrong!r} is no name of a frame")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{member}: a name stands there twice")
    return ids


def frames_of(split: str, key: tuple[str, ...], found: Mapping[str, Found]) -> list[VocFrame]:
    """The frames of a list. Raises ValueError when files of them are missing."""
    listed, year = found["list"][key], key[0]
    ids = read_ids(listed)
    for what in ("image", "annotation"):
        if missing := [name for name in ids if (year, name) not in found[what]]:
            count = f"{len(missing)} of {len(ids)} frames are without"
            raise ValueError(f"{listed}: the {what} of {missing[0]} is missing ({count}); is an archive cut off?")
    parts = (found["image"], found["annotation"])
    return [
        VocFrame(split, name, *(part[year, name] for part in parts), found["mask"].get((year, name))) for name in ids
    ]


# ---------------------------------------------------------------------------------------------- one frame


@dataclass(frozen=True)
class VocFrame:
    split: str
    name: str
    image: Member
    annotation: Member
    mask: Member | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.image.size + self.annotation.size + (self.mask.size if self.mask else 0)

    def write(self, part: Path) -> dict[str, str]:
        """Copies the files as they are; returns {column: file}. Raises ValueError that names the source."""
        boxes = f"{LABEL_FOLDERS['boxes']}/{self.name}.xml"
        check_annotation(self.annotation)
        self.annotation.copy(part / boxes)
        if self.mask:
            pair = Pair(self.split, self.name, self.image, self.mask, "segmentation")
            return {**pair.write(part, check_mask), "boxes": boxes}
        return {"image": write_image(part, self.name, self.image)[0], "boxes": boxes}


def check_annotation(member: Member) -> None:
    """Raises ValueError unless it is an annotation whose objects are of VOC's classes."""
    content = member.read(MOST_XML_BYTES)
    if b"<!" in content.replace(b"<!--", b""):  # entities, which may refer to each other without end
        raise ValueError(f"{member}: it has a document type or CDATA, which VOC's annotations have not")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as problem:
        raise ValueError(f"{member}: not readable as XML ({problem})") from None
    if root.tag != "annotation":
        raise ValueError(f"{member}: <{root.tag}> and no <annotation>, so it is not one of VOC's")
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if name not in CLASS_LISTS["voc20"]:
            raise ValueError(f"{member}: an object is {name!r}; allowed: {', '.join(CLASS_LISTS['voc20'])}")


def check_mask(stored: np.ndarray, path: Path) -> None:
    """The file stays as it is: its palette's indices are the classes. Raises ValueError for other values."""
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise ValueError(f"a mask has one 8-bit number a pixel; this file has shape {stored.shape}, {stored.dtype}")
    outside = (stored > 20) & (stored != NO_CLASS)
    if outside.any():
        raise ValueError(f"class {stored[outside][0]}; allowed: 0..20 and {NO_CLASS}")
