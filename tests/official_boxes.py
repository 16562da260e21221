"""Small archives in the layouts of PASCAL VOC, COCO and Penn-Fudan, and a stand-in for the task of their boxes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from conftest import png, write_zip
from official import HEIGHT, WIDTH, Files, jpeg, picture
from PIL import Image

from drawing import class_palette


def write_tar(path: Path, files: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT, mode: str = "w") -> Path:
    """The files and their folders, as `tar cf` writes them."""
    with tarfile.open(path, mode, format=form) as tar:
        folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) not in (".", "/")}
        for name in sorted(folders):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_100_000_000.5 if form == tarfile.PAX_FORMAT else 1_100_000_000
            tar.addfile(member, io.BytesIO(data))
    return path


# ---------------------------------------------------------------------------------------------- PASCAL VOC

TRAINVAL, TEST, TRAINVAL_2012 = "VOCtrainval_06-Nov-2007", "VOCtest_06-Nov-2007", "VOCtrainval_11-May-2012"
OBJECTS = [("dog", 0, (1, 1, 20, 30)), ("person", 1, (5, 6, WIDTH, HEIGHT))]  # class, difficult, corners from 1 on
PART = "<part><name>head</name><bndbox><xmin>6</xmin><ymin>7</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"


def voc_xml(year: str, name: str, objects: list[tuple[str, int, tuple[int, ...]]] = OBJECTS) -> bytes:
    """An annotation; the last object has a part, as the people of 2012."""
    lines = [
        "<annotation>", f"\t<folder>{year}</folder>", f"\t<filename>{name}.jpg</filename>",
        "\t<source><database>The VOC2007 Database</database><image>flickr</image></source>",
        f"\t<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>", "\t<segmented>0</segmented>",
    ]  # fmt: skip
    for number, (kind, difficult, corners) in enumerate(objects):
        names = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in names)
        part = PART if number == len(objects) - 1 else ""
        lines.append(
            f"\t<object><name>{kind}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
            f"<bndbox>{box}</bndbox>{part}</object>"
        )
    return "\n".join([*lines, "</annotation>", ""]).encode()


def voc_picture(name: str) -> np.ndarray:
    return picture(int(name.replace("_", "")))


def voc_ids(name: str) -> np.ndarray:
    """(H, W) uint8 classes of a frame: each of 0..20 and 255."""
    values = np.resize(np.array([*range(21), 255], np.uint8), HEIGHT * WIDTH)
    return np.random.default_rng(int(name[-6:])).permutation(values).reshape(HEIGHT, WIDTH)


def voc_mask(ids: np.ndarray) -> bytes:
    """A mask with the palette of VOC."""
    image, file = Image.fromarray(ids), io.BytesIO()
    image.putpalette(class_palette().tobytes())
    image.save(file, "png")
    return file.getvalue()


def voc_year(year: str, lists: Mapping[str, list[str]], masks: list[str], others: list[str], end: str) -> Files:
    """A part of VOCdevkit: `lists` of ImageSets/Main, frames with `masks`, and frames that no list of Main has."""
    root, files = f"VOCdevkit/{year}", {}
    for name in sorted({*others, *(name for names in lists.values() for name in names)}):
        files[f"{root}/Annotations/{name}.xml"] = voc_xml(year, name)
    for split, names in lists.items():
        files[f"{root}/ImageSets/Main/{split}.txt"] = "".join(name + end for name in names).encode()
        files[f"{root}/ImageSets/Main/dog_{split}.txt"] = "".join(f"{name}  1{end}" for name in names).encode()
        files[f"{root}/ImageSets/Segmentation/{split}.txt"] = "".join(name + end for name in masks).encode()
    for name in sorted({*others, *(name for names in lists.values() for name in names)}):
        files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(voc_picture(name))
    for name in masks:
        files[f"{root}/SegmentationClass/{name}.png"] = voc_mask(voc_ids(name))
        files[f"{root}/SegmentationObject/{name}.png"] = voc_mask(voc_ids(name) % 3)
    return files


def voc() -> dict[str, Files]:
    """{archive: files}. A frame has `voc_picture` and `voc_ids` of its name. Lists of 2007 have CRLF, those of 2012 LF.

    2007_000032 has labels and is in no list of Main: it is one of VOC2007's frames, maybe a test frame.
    """
    train, val = ["000005", "000009"], ["000007"]
    lists = {"train": train, "val": val, "trainval": sorted(train + val)}
    later = {"train": ["2008_000002"], "val": ["2008_000003"], "trainval": ["2008_000002", "2008_000003"]}
    return {
        TRAINVAL: voc_year("VOC2007", lists, ["000007", "000009"], [], "\r\n"),
        TEST: voc_year("VOC2007", {"test": ["000001", "000002"]}, ["000002"], [], "\r\n"),
        TRAINVAL_2012: voc_year("VOC2012", later, ["2007_000032", "2008_000003"], ["2007_000032"], "\n"),
    }


# ---------------------------------------------------------------------------------------------- COCO

CATEGORIES = {1: "person", 18: "dog", 90: "toothbrush"}  # ids of COCO, which have gaps


def coco_json(images: Mapping[int, str], annotations: list[dict[str, object]]) -> bytes:
    """An instances_*.json; the order of its keys, and spaces, as in COCO's."""
    content = {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
        "images": [
            {"license": 4, "file_name": name, "height": HEIGHT, "width": WIDTH, "id": number, "flickr_url": "http://a"}
            for number, name in images.items()
        ],
        "annotations": annotations,
        "categories": [{"supercategory": "thing", "id": key, "name": name} for key, name in CATEGORIES.items()],
    }
    return json.dumps(content).encode()


def annotation(identity: int, image: int, category: int, bbox: list[float], iscrowd: int = 0) -> dict[str, object]:
    counts = {"counts": [3, 4, HEIGHT * WIDTH - 7], "size": [HEIGHT, WIDTH]}
    outline: object = counts if iscrowd else [[1.5, 2, 3, 4.25, 5, 6]]
    return {
        "segmentation": outline, "area": 12.5, "iscrowd": iscrowd, "image_id": image, "bbox": bbox,
        "category_id": category, "id": identity,
    }  # fmt: skip


COCO_BOXES = [  # not in order of their images; image 30 of train has none, and the last box of 9 has no height
    annotation(7, 25, 90, [1.5, 2.25, 10, 20.75]),
    annotation(3, 9, 18, [0, 0, 53, 39]),
    annotation(900100000025, 25, 1, [3, 4, 30, 30], iscrowd=1),
    annotation(8, 9, 1, [4, 4, 5, 0]),
]


def coco_name(number: int) -> str:
    return f"{number:012d}.jpg"


def coco() -> dict[str, Files]:
    """{archive: files}. Frame n has `picture(n)`."""
    train, val = (9, 25, 30), (139,)
    boxes = {"train": COCO_BOXES, "val": [annotation(11, 139, 1, [5, 5, 7, 8])]}
    split = {"train": train, "val": val}
    annotations = {
        f"annotations/instances_{name}2017.json": coco_json({i: coco_name(i) for i in ids}, boxes[name])
        for name, ids in split.items()
    }
    annotations["annotations/captions_val2017.json"] = b"{}"
    return {
        **{
            f"{name}2017": {f"{name}2017/{coco_name(number)}": jpeg(picture(number)) for number in ids}
            for name, ids in split.items()
        },
        "annotations_trainval2017": annotations,
    }


# ---------------------------------------------------------------------------------------------- Penn-Fudan


def people(number: int) -> np.ndarray:
    """(H, W) uint8: two people, 0 elsewhere."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[3:20, 4 : 10 + number % 5] = 1
    ids[10:30, 30:40] = 2
    return ids


def pennfudan(count: int = 8) -> Files:
    """PennFudanPed.zip; frame n has `picture(n)` and `people(n)`."""
    files = {"PennFudanPed/readme.txt": b"", "PennFudanPed/added-object-list.txt": b""}
    for number in range(count):
        name = f"{'Fudan' if number < count // 2 else 'Penn'}Ped{number:05d}"
        files[f"PennFudanPed/PNGImages/{name}.png"] = png(picture(number))
        files[f"PennFudanPed/PedMasks/{name}_mask.png"] = png(people(number))
        files[f"PennFudanPed/Annotation/{name}.txt"] = b"# Compatible with PASCAL Annotation Version 1.00\n"
    return files


# ---------------------------------------------------------------------------------------------- every command


def boxes_archives(folder: Path) -> dict[str, list[str]]:
    """Writes small archives to `folder`: command -> its words, without --output."""
    tars = [str(write_tar(folder / f"{name}.tar", files)) for name, files in voc().items()]
    zips = {**coco(), "PennFudanPed": pennfudan()}
    train, val, annotations, people = (str(write_zip(folder / f"{name}.zip", zips[name])) for name in zips)
    return {
        "voc": ["--images", *tars],
        "coco": ["--images", train, val, "--annotations", annotations],
        "pennfudan": ["--images", people],
    }
