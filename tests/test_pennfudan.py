"""Penn-Fudan from its archive, and from the real folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from box_sets import boxes_of, report_of
from conftest import only_holds, shared, write_zip
from official import Files, png, unpack
from official_boxes import pennfudan, people

import prepare
from images import read_label
from sources import pennfudan as source
from sources.pennfudan import validation_part


def lists(root: Path) -> dict[str, list[list[str]]]:
    """{split: the cells of each line}"""
    return {
        split: [line.split("\t") for line in (root / f"{split}.txt").read_text().splitlines()]
        for split in ("train", "val")
    }


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_pennfudan(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pennfudan(9)
    write_zip(here / "a.zip", files) if form == "archive" else unpack(here, files)
    images = "a.zip" if form == "archive" else "PennFudanPed"
    assert prepare.main(["pennfudan", "--images", images, "--output", "out"]) == 0
    printed = "out: 7 train frames, 2 val frames\nPenn-Fudan has 170 frames\n"
    assert capsys.readouterr().out == printed
    only_holds(here / "out", "rgb", "instances", "dataset.yaml", "train.txt", "val.txt")
    assert yaml.safe_load((here / "out/dataset.yaml").read_text()) == {
        "name": "pennfudan",
        "splits": {"train": "train.txt", "val": "val.txt"},
        "columns": ["image", "instances"],
        "instances": {"classes": ["person"], "stuff": ["background"]},
    }
    found = lists(here / "out")
    cells = sorted(found["train"] + found["val"])
    assert len(cells) == 9 and len(found["val"]) == 2
    labels = {
        image: (label, classes)
        for split, lines in found.items()
        for (image, _), label, classes in zip(
            lines, boxes_of(here / "out", split), boxes_of(here / "out", split, "segmentation"), strict=True
        )
    }
    for number, (image, mask) in enumerate(cells):
        name = Path(image).stem
        assert (image, mask) == (f"rgb/{name}.png", f"instances/{name}.png") and name.endswith(f"Ped{number:05d}")
        assert (here / "out" / image).read_bytes() == files[f"PennFudanPed/PNGImages/{name}.png"]
        assert (here / "out" / mask).read_bytes() == files[f"PennFudanPed/PedMasks/{name}_mask.png"]
        np.testing.assert_array_equal(read_label(here / "out" / mask), people(number))
        label, classes = labels[image]
        np.testing.assert_array_equal(classes, people(number) > 0)  # 0 = background, 1 = person
        assert label[:, :6].tolist() == [[4, 3, 10 + number % 5, 20, 0, 0], [30, 10, 40, 30, 0, 0]]
    report_of(here / "out", capsys, 0)


def test_split_depends_on_the_names_alone() -> None:
    keys = [(f"{number:03d}",) for number in range(170)]
    val = validation_part(keys)
    assert len(val) == 42 and val == validation_part(keys[::-1])
    # Written down once, so that a new version of numpy cannot change the split.
    assert sorted(int(name) for (name,) in val)[:6] == [9, 17, 21, 25, 28, 29]


def test_real_frames(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = shared("data/pennfudan/PennFudanPed")
    assert prepare.main(["pennfudan", "--images", str(real), "--output", "out"]) == 0
    assert capsys.readouterr().out.startswith("out: 60 train frames, 20 val frames\n")
    found = lists(here / "out")
    assert not {image for image, _ in found["train"]} & {image for image, _ in found["val"]}
    assert {image[4:9] for image, _ in found["val"]} == {"Fudan", "PennP"}
    differences = []
    for image, boxes in found["train"] + found["val"]:
        name = Path(image).stem
        assert (here / "out" / image).read_bytes() == (real / f"PNGImages/{name}.png").read_bytes()
        ids = read_label(here / "out" / boxes)
        text = (real / f"Annotation/{name}.txt").read_text()
        corners = np.array(re.findall(r": \((\d+), (\d+)\) - \((\d+), (\d+)\)", text), int)  # counted from 1
        assert ids.max() == len(corners)
        for number, said in enumerate(corners, 1):
            rows, columns = np.nonzero(ids == number)
            seen = np.array([columns.min(), rows.min(), columns.max(), rows.max()]) + 1
            differences.append(np.abs(seen - said).max())
    report_of(here / "out", capsys, 0)
    # Penn-Fudan's own boxes are the extents of its masks, but for a few that differ by a pixel or three.
    assert len(differences) == 204 and differences.count(0) == 198 and max(differences) == 3


def put(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: data}


def drop(part: str) -> Callable[[Files], Files]:
    return lambda files: {name: data for name, data in files.items() if part not in name}


IMAGE, MASK = "PennFudanPed/PNGImages/PennPed00005.png", "PennFudanPed/PedMasks/PennPed00005_mask.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("PNGImages"), r"a.zip: no PNGImages/\*.png in it, so it is not PennFudanPed.zip .https://www.cis.upenn"),
        (drop("PedMasks"), r"a.zip: no PedMasks/\*_mask.png in it"),
        (drop(MASK), f"a.zip: {IMAGE}: its label is missing .1 of 8 files"),
        (drop(IMAGE), f"a.zip: {MASK}: its image is missing .1 of 8 files"),
        (lambda files: pennfudan(3), "a.zip: 3 frames; the split needs 4, Penn-Fudan has 170"),
        (put(MASK, png(people(0)[1:])), f"a.zip: {MASK}: it is 53x38, but its image .*{IMAGE} is 53x39"),
        (put(MASK, png(np.zeros((39, 53, 3), np.uint8))), rf"{MASK}: a mask has one 8-bit number .* \(39, 53, 3\)"),
        (put(MASK, png(people(0).astype(np.uint16))), f"{MASK}: a mask has one 8-bit number .* uint16"),
        (put(MASK, b"GIF89a"), f"a.zip: {MASK}: not an image|a.zip: {MASK}: damaged"),
        (put(IMAGE, png(people(0))[:-60]), f"a.zip: {IMAGE}: damaged or truncated image"),
    ],
)
def test_wrong_archive_is_explained(change: Callable[[Files], Files], message: str, here: Path) -> None:
    write_zip(here / "a.zip", change(pennfudan()))
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main("pennfudan --images a.zip --output out".split())
    assert "\n" not in str(problem.value) and ".part" not in str(problem.value)
    only_holds(here, "a.zip")


def test_download_names_the_public_archive(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, size: int, target: Path, command: str) -> None:
        asked.append((url, size, command))
        write_zip(target, pennfudan())

    monkeypatch.setattr(source, "download", download)
    (here / "dataset").mkdir()
    assert prepare.main(["pennfudan", "--download"]) == 0
    command = "python prepare.py pennfudan --images FILE"
    assert asked == [("https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip", 53723336, command)]
    assert len(lists(here / "dataset/pennfudan")["train"]) == 6
    with pytest.raises(FileExistsError):
        prepare.main(["pennfudan", "--download"])
    assert len(asked) == 1
