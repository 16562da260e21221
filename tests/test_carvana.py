"""Carvana from Kaggle's archives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import only_holds, write_zip
from official import Files, assert_training_reads, car_mask, carvana, gif, labels_of, picture, png, read_back, unpack
from PIL import Image

import prepare

WORDS = "carvana --images train.zip --masks masks.zip --output out/carvana"


@pytest.mark.parametrize("form", ["archives", "folders"])
def test_carvana(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = carvana(20)
    if form == "archives":
        write_zip(here / "train.zip", {**images, "__MACOSX/train/._0000d4463b50_01.jpg": b""})
        write_zip(here / "masks.zip", masks)
        assert prepare.main(WORDS.split()) == 0
    else:
        unpack(here, {**images, **masks})
        assert prepare.main("carvana --images train --masks train_masks --output out/carvana".split()) == 0
    assert capsys.readouterr().out == "out/carvana: 32 train frames, 4 val frames, 4 test frames\n"
    folder, splits = read_back(here / "out/carvana")
    only_holds(folder.root, "rgb", "masks", "dataset.yaml", "train.txt", "val.txt", "test.txt")
    assert folder.sections["segmentation"]["classes"] == ("background", "car")
    cars = {split: {name[:4] for name in frames} for split, frames in splits.items()}
    assert cars["val"] == {"0008", "0012"} and cars["test"] == {"0009", "0013"}  # hexadecimal: cars 8, 18 and 9, 19
    assert len(cars["train"]) == 16 and not cars["train"] & (cars["val"] | cars["test"])
    for frames in splits.values():
        for name, frame in frames.items():
            assert frame.image.read_bytes() == images[f"train/{name}"]
            mask = car_mask(10 * int(name[:4], 16) + int(name[13:15]))
            np.testing.assert_array_equal(labels_of(folder, frame)["segmentation"], mask)
            with Image.open(frame.labels["segmentation"]) as file:
                assert file.format == "PNG" and file.mode == "P"
    assert_training_reads(folder)


def test_masks_of_one_value_and_grayscale_masks(here: Path) -> None:
    images, masks = carvana(10)
    masks["train_masks/0000d4463b50_01_mask.gif"] = gif(np.zeros((39, 53), np.uint8))
    masks["train_masks/0000d4463b50_16_mask.gif"] = gif(np.ones((39, 53), np.uint8))  # Pillow drops the unused black
    masks["train_masks/0001d4463b50_01_mask.gif"] = png(car_mask(1) * 255)  # what some decoders make of such a GIF
    write_zip(here / "train.zip", images)
    write_zip(here / "masks.zip", masks)
    prepare.main(WORDS.split())
    folder, splits = read_back(here / "out/carvana")

    def mask(name: str) -> np.ndarray:
        return labels_of(folder, splits["train"][name])["segmentation"]

    assert not mask("0000d4463b50_01.jpg").any() and mask("0000d4463b50_16.jpg").all()
    np.testing.assert_array_equal(mask("0001d4463b50_01.jpg"), car_mask(1))


def drop(part: str) -> Callable[[Files], Files]:
    return lambda files: {name: data for name, data in files.items() if part not in name}


def put(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: data}


IMAGE, MASK = "train/0001d4463b50_16.jpg", "train_masks/0001d4463b50_16_mask.gif"
THREE = np.tile(np.arange(3, dtype=np.uint8), (39, 18))[:, :53]


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (drop(".jpg"), dict, "train.zip: no ID_NN.jpg in it, so it is not train.zip .https://www.kaggle.com"),
        (dict, drop(".gif"), "masks.zip: no ID_NN_mask.gif in it, so it is not train_masks.zip"),
        (drop(IMAGE), dict, f"masks.zip: {MASK}: its image is missing .1 of 40 files"),
        (dict, drop(MASK), f"train.zip: {IMAGE}: its label is missing .1 of 40 files"),
        (lambda files: carvana(9)[0], lambda files: carvana(9)[1], "train.zip: 9 cars; the splits need 10"),
        (dict, put(MASK, gif(np.zeros((39, 52)))), f"masks.zip: {MASK}: it is 52x39, but its image .*{IMAGE} is 53x39"),
        (dict, put(MASK, gif(car_mask(1))[:-200]), f"masks.zip: {MASK}: damaged or truncated image"),
        (dict, put(MASK, png(THREE)), rf"{MASK}: a mask of Carvana is black and white; .* gray values \[0, 1, 2\]"),
        (dict, put(MASK, png(picture(1))), f"{MASK}: a mask of Carvana is black and white"),
        (put(IMAGE, b"\xff\xd8\xff"), dict, f"train.zip: {IMAGE}: not an image"),
        (put("train_hq/0001d4463b50_16.jpg", b""), dict, f"train.zip: it has {IMAGE} and train_hq/0001d"),
    ],
)
def test_wrong_archives_are_explained(
    images: Callable[[Files], Files], masks: Callable[[Files], Files], message: str, here: Path
) -> None:
    files = carvana(20)
    write_zip(here / "train.zip", images({"readme.txt": b"", **files[0]}))
    write_zip(here / "masks.zip", masks({"readme.txt": b"", **files[1]}))
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main(WORDS.split())
    assert "\n" not in str(problem.value) and ".part" not in str(problem.value)
    only_holds(here, *(["out"] if (here / "out").exists() else []), "masks.zip", "train.zip")
    assert not (here / "out").exists() or not any((here / "out").iterdir())
