"""KITTI from archives in the official layouts: masks only, depth only, both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import only_holds, png, write_zip
from official import (
    DRIVES,
    Files,
    assert_training_reads,
    depth_annotated,
    depth_selection,
    depth_units,
    label_ids,
    labels_of,
    picture,
    raw_drive,
    read_back,
    semantics,
    unpack,
)

import prepare
from images import read_image
from sources import kitti

# Label id -> train id, as cityscapesScripts' labels.py has them; all others have 255.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
    28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
# Label id -> category of labels.py without void; "object", 17, 19 and 20, is with "construction".
SIX_IDS = {
    7: 0, 8: 0, 11: 1, 12: 1, 13: 1, 17: 1, 19: 1, 20: 1, 21: 2, 22: 2, 23: 3, 24: 4, 25: 4, 26: 5, 27: 5, 28: 5,
    31: 5, 32: 5, 33: 5,
}  # fmt: skip


def run(words: str) -> None:
    assert prepare.main(["kitti", *words.split(), "--output", "out/kitti"]) == 0


def mapped(ids: np.ndarray, table: dict[int, int]) -> np.ndarray:
    return np.array([table.get(number, 255) for number in range(256)], np.uint8)[ids]


def metres(units: np.ndarray) -> np.ndarray:
    return np.where(units <= 80 * 256, units / 256, 0)


@pytest.mark.parametrize(("classes", "table"), [("19", TRAIN_IDS), ("6", SIX_IDS)])
def test_masks(classes: str, table: dict[int, int], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = semantics(10)
    write_zip(here / "data_semantics.zip", files)
    run(f"--semantics data_semantics.zip --classes {classes}")
    assert "8 train frames, 2 val frames" in capsys.readouterr().out
    folder, splits = read_back(here / "out/kitti")
    only_holds(folder.root, "rgb", "masks", "dataset.yaml", "train.txt", "val.txt")
    assert folder.columns == ("image", "segmentation") and folder.camera == {}
    assert list(splits["val"]) == ["000004_10.png", "000009_10.png"]
    for name, frame in {**splits["train"], **splits["val"]}.items():
        assert frame.image.read_bytes() == files[f"training/image_2/{name}"]
        np.testing.assert_array_equal(labels_of(folder, frame)["segmentation"], mapped(label_ids(int(name[:6])), table))
    names = folder.sections["segmentation"]["classes"]
    assert len(names) == len(folder.sections["segmentation"]["colors"]) == int(classes)
    if classes == "19":
        assert names[:2] == ("road", "sidewalk") and names[13] == "car" and names[18] == "bicycle"
        assert folder.sections["segmentation"]["colors"][13] == (0, 0, 142)
    else:
        assert names == ("flat", "construction", "nature", "sky", "human", "vehicle")
        assert "our grouping" in (folder.root / "dataset.yaml").read_text()
    assert_training_reads(folder)


def write_depth(here: Path, **counts: int) -> Files:
    files = depth_annotated(**counts)
    write_zip(here / "data_depth_annotated.zip", files)
    (here / "raw").mkdir()
    for drive in DRIVES[:3]:
        write_zip(here / f"raw/{drive}.zip", raw_drive(drive, counts["val" if drive == DRIVES[1] else "train"]))
    return files


ZIPS = " ".join(f"raw/{drive}.zip" for drive in DRIVES[:3])


@pytest.mark.parametrize(("every", "kept"), [("", [5, 10]), ("--every 1", [*range(5, 12)]), ("--every 3", [5, 8, 11])])
def test_depth_maps(every: str, kept: list[int], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_depth(here, train=7, val=3)
    run(f"--depth data_depth_annotated.zip --raw {ZIPS} {every}")
    assert capsys.readouterr().out == f"out/kitti: {2 * len(kept)} train frames, 3 val frames\n"
    folder, splits = read_back(here / "out/kitti")
    only_holds(folder.root, "rgb", "depth", "dataset.yaml", "train.txt", "val.txt")
    assert folder.columns == ("image", "depth") and folder.camera == {}
    names = [f"{drive}_{number:010d}_image_02.png" for drive in (DRIVES[0], DRIVES[2]) for number in kept]
    assert list(splits["train"]) == names
    assert list(splits["val"]) == [f"{DRIVES[1]}_{number:010d}_image_02.png" for number in (5, 6, 7)]
    for name, frame in {**splits["train"], **splits["val"]}.items():
        drive, number = name[:26], int(name[27:37])
        np.testing.assert_array_equal(read_image(frame.image), picture(2000 + 100 * DRIVES.index(drive) + number))
        np.testing.assert_array_equal(labels_of(folder, frame)["depth"], metres(depth_units(number)).astype(np.float32))
    assert labels_of(folder, frame)["depth"][0, :4].tolist() == [0, 1, 80, 0]  # beyond 80 m nothing counts
    assert_training_reads(folder)


def test_raw_data_in_folders_and_as_jpeg(here: Path) -> None:
    write_zip(here / "depth.zip", depth_annotated(train=2, val=1))
    unpack(here / "raw", raw_drive(DRIVES[0], 2))
    jpegs = {name.replace(".png", ".jpg"): data for name, data in raw_drive(DRIVES[1], 2).items()}
    unpack(here / "drives", {name.partition("/")[2]: data for name, data in jpegs.items()})
    run("--depth depth.zip --raw raw drives --every 1")
    _, splits = read_back(here / "out/kitti")
    assert list(splits["train"]) == [f"{DRIVES[0]}_{number:010d}_image_02.png" for number in (5, 6)]
    assert list(splits["val"]) == [f"{DRIVES[1]}_0000000005_image_02.jpg"]


def test_depth_maps_without_an_image_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_depth(here, train=4, val=1)
    run(f"--depth data_depth_annotated.zip --raw raw/{DRIVES[0]}.zip raw/{DRIVES[1]}.zip --every 2")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 of 5 depth maps were left out: their images are not in --raw"
    assert printed[1].endswith("2 train frames, 1 val frames") and len(printed) == 2
    for raw in (f"raw/{DRIVES[0]}.zip", f"raw/{DRIVES[1]}.zip"):
        with pytest.raises(ValueError, match=r"no image of its \d+ (train|val) depth maps is in --raw"):
            prepare.main(["kitti", *f"--depth data_depth_annotated.zip --raw {raw} --output out/none".split()])
    only_holds(here / "out", "kitti")


def test_selection_alone_is_split_by_drives(here: Path) -> None:
    write_zip(here / "selection.zip", depth_selection())
    run("--selection selection.zip")
    folder, splits = read_back(here / "out/kitti")
    assert {name[:26] for name in splits["val"]} == {DRIVES[4]}
    assert {name[:26] for name in splits["train"]} == {*DRIVES} - {DRIVES[4]}
    assert len(splits["train"]) == 10 and len(splits["val"]) == 2
    frame = splits["val"][f"{DRIVES[4]}_0000000009_image_03_cropped.png"]
    np.testing.assert_array_equal(read_image(frame.image), picture(4, 31, 45))
    np.testing.assert_array_equal(labels_of(folder, frame)["depth"], metres(depth_units(4, 31, 45)).astype(np.float32))
    assert_training_reads(folder)


def test_selection_with_the_image_names_of_the_readme(here: Path) -> None:
    unpack(
        here / "depth",
        {name.replace("_image_00", "_groundtruth_depth_00"): data for name, data in depth_selection().items()},
    )
    run("--selection depth/depth_selection")
    assert sum(map(len, read_back(here / "out/kitti")[1].values())) == 12


def test_masks_and_depth_are_of_different_frames(here: Path) -> None:
    write_zip(here / "semantics.zip", semantics(5))
    write_depth(here, train=7, val=3)
    write_zip(here / "selection.zip", depth_selection([DRIVES[1]]))
    run(f"--semantics semantics.zip --depth data_depth_annotated.zip --raw {ZIPS} --selection selection.zip")
    folder, splits = read_back(here / "out/kitti")
    assert folder.columns == ("image", "segmentation", "depth")
    assert {split: len(frames) for split, frames in splits.items()} == {"train": 4 + 4, "val": 1 + 2}
    lines = (folder.root / "train.txt").read_text().splitlines()
    assert lines[0] == "rgb/000000_10.png\tmasks/000000_10.png\t-"
    assert lines[-1] == "rgb/{0}.png\t-\tdepth/{0}.png".format(f"{DRIVES[2]}_0000000010_image_02")
    assert all(len(frame.labels) == 1 for frames in splits.values() for frame in frames.values())
    assert "_cropped" in list(splits["val"])[-1]
    assert_training_reads(folder)


def test_masks_and_selection(here: Path) -> None:
    unpack(here / "semantics", semantics(5))
    write_zip(here / "selection.zip", depth_selection())
    run("--semantics semantics --selection selection.zip --classes 6")
    folder, splits = read_back(here / "out/kitti")
    assert {split: len(frames) for split, frames in splits.items()} == {"train": 4 + 10, "val": 1 + 2}
    assert_training_reads(folder)


def test_groups_hold_each_class_once() -> None:
    assert sorted(name for group in kitti.SIX.values() for name in group) == sorted(kitti.CITYSCAPES)
    assert len({color for _, color in kitti.CITYSCAPES.values()}) == 19
    assert kitti.class_table("19")[2][255] == kitti.class_table("6")[2][0] == 255


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name at least one of --semantics, --depth and --selection"),
        ("--depth a.zip", "--depth needs --raw"),
        ("--semantics a.zip --raw b", "--raw goes with --depth only"),
        ("--semantics a.zip --every 2", "--every goes with --depth only"),
        ("--selection a.zip --classes 6", "--classes goes with --semantics only"),
        ("--semantics a.zip --classes 7", "invalid choice: '7'"),
        ("--depth a.zip --raw b --every two", "argument --every: got 'two'; it takes a whole number, at least 1"),
        ("--depth a.zip --raw b --every 0", "argument --every: got '0'; it takes a whole number, at least 1"),
        ("--semantics a.zip", "a.zip: no such file or folder"),
        ("--semantic a.zip", "unknown argument '--semantic' .did you mean '--semantics'"),
    ],
)
def test_bad_command_lines_are_explained(words: str, message: str, here: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        prepare.main(["kitti", *words.split()])
    only_holds(here)


def drop(part: str) -> Callable[[Files], Files]:
    return lambda files: {name: data for name, data in files.items() if part not in name}


def put(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: data}


MASK, IMAGE = "training/semantic/000002_10.png", "training/image_2/000002_10.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("training/semantic/"), r"a.zip: no training/semantic/\*.png in it, so it is not data_semantics.zip"),
        (drop("training"), r"no training/image_2/\*.png in it"),
        (drop(MASK), r"training/image_2/000002_10.png: its label is missing .1 of 10 files"),
        (drop(IMAGE), r"a.zip: training/semantic/000002_10.png: its image is missing .1 of 10"),
        (put(MASK, png(np.zeros((39, 52), np.uint8))), f"a.zip: {MASK}: it is 52x39, but its image .*{IMAGE} is 53x39"),
        (put(MASK, png(np.full((39, 53), 34, np.uint8))), f"{MASK}: label id 34; allowed: 0..33 and 255"),
        (put(MASK, png(picture(1))), f"{MASK}: a mask has one 8-bit number a pixel; .* .39, 53, 3"),
        (put(MASK, png(np.zeros((39, 53), np.uint16))), f"{MASK}: a mask has one 8-bit number"),
        (put(MASK, png(label_ids(1))[:-200]), f"a.zip: {MASK}: damaged or truncated image"),
        (put(IMAGE, b"hello"), f"a.zip: {IMAGE}: not an image that can be read"),
        (put(f"copy/{MASK}", b""), f"it has copy/{MASK} and {MASK}; give the one"),
        (lambda files: semantics(4), "a.zip: val.txt: no frames"),
    ],
)  # fmt: skip
def test_wrong_masks_are_explained(change: Callable[[Files], Files], message: str, here: Path) -> None:
    write_zip(here / "a.zip", change(semantics(10)))
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main(["kitti", "--semantics", "a.zip", "--output", "kitti"])
    assert "\n" not in str(problem.value) and ".part" not in str(problem.value)
    only_holds(here, "a.zip")


DEPTH = f"train/{DRIVES[0]}/proj_depth/groundtruth/image_02/0000000005.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("groundtruth/image_02"), "a.zip: no train/DRIVE_sync/.* in it, so it is not data_depth_annotated.zip"),
        (drop("val/"), "no image of its 0 val depth maps"),
        (put(DEPTH, png(np.zeros((39, 53), np.uint8))), f"a.zip: {DEPTH}: a depth map has one 16-bit number a pixel"),
        (put(DEPTH, png(depth_units(1, 39, 50))), f"{DEPTH}: it is 50x39, but its image raw.zip: .*5.png is 53x39"),
        (put(DEPTH, png(depth_units(1))[:300]), f"a.zip: {DEPTH}: damaged or truncated"),
    ],
)
def test_wrong_depth_maps_are_explained(change: Callable[[Files], Files], message: str, here: Path) -> None:
    write_zip(here / "a.zip", change(depth_annotated(train=1, val=1)))
    write_zip(here / "raw.zip", raw_drive(DRIVES[0], 1) | raw_drive(DRIVES[1], 1))
    with pytest.raises(ValueError, match=message):
        prepare.main("kitti --depth a.zip --raw raw.zip --output kitti".split())
    only_holds(here, "a.zip", "raw.zip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop("val_selection_cropped/image"),
            r"a.zip: no val_selection_cropped/image/\*.png in it, so it is not data_d",
        ),
        (drop("groundtruth_depth"), r"no val_selection_cropped/groundtruth_depth/\*.png in it"),
        (drop(f"image/{DRIVES[3]}_image_0000000008_image_02"), "its image is missing .1 of 12"),
        (drop(DRIVES[4]), None),
        (lambda files: depth_selection(DRIVES[:4]), "a.zip: val.txt: no frames"),
    ],
)
def test_wrong_selection_is_explained(change: Callable[[Files], Files], message: str | None, here: Path) -> None:
    write_zip(here / "a.zip", change(depth_selection()))
    if message is None:  # five drives are enough
        run("--selection a.zip")
        return
    with pytest.raises(ValueError, match=message):
        prepare.main("kitti --selection a.zip --output kitti".split())
    only_holds(here, "a.zip")
