"""The command line of prepare.py, and checking data sets."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Script, only_error_line, only_holds, shared, small_frame
from PIL import Image

import prepare
from config import Config
from folders import make_tasks, read_folder
from images import read_label, write_png
from sources import validate
from sources.parallel import in_threads

U8, U16, F32 = np.uint8, np.uint16, np.float32


# ---------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "",
            "allowed: rooms, nyudv2, kitti, camvid, carvana, voc, coco, pennfudan, redkitchen, replica, check, anchors",
        ),
        ("nyudv --download", "unknown command 'nyudv' .did you mean 'nyudv2'"),
        ("nyudv2", "--archive"),
        ("nyudv2 --mat a --archive b", "not allowed with"),
        ("nyudv2 --downlod", "--archive"),
        ("nyudv2 --download --ouput x", "unknown argument '--ouput' .did you mean '--output'"),
        ("nyudv2 --mat a", "--mat needs --splits"),
        ("nyudv2 --archive a --class_map b", "--class_map goes with --mat only"),
        ("nyudv2 --mat a --splits b --class-map c", "unknown argument '--class-map' .did you mean '--class_map'"),
        ("nyudv2 --download --url http://a", "unknown argument '--url'"),
        ("nyudv2 --archive none.zip", "none.zip: no such file"),
        ("check", "FOLDER"),
        ("check nowhere", "nowhere: no such data set"),
    ],
)
def test_bad_command_lines_are_explained(words: str, message: str, here: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        prepare.main(words.split())
    only_holds(here)


def test_script_prints_one_error_line(script: Script, tmp_path: Path) -> None:
    assert "did you mean 'check'" in only_error_line(script("prepare.py", "chek", "x", cwd=tmp_path))
    only_holds(tmp_path)


def test_help_of_the_script_and_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--help"]) == 0
    commands = "rooms nyudv2 kitti camvid carvana voc coco pennfudan redkitchen replica check anchors"
    for command in commands.split():
        with pytest.raises(SystemExit) as end:
            prepare.main([command, "--help"])
        assert end.value.code == 0
    assert "--class_map" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- check


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A sound data set: 4 training and 2 validation frames with every kind of label, and one depth-only frame."""
    root = tmp_path / "data"
    for number in range(1, 7):
        image, mask, depth = small_frame(number, 24, 32)
        write_png(root / f"rgb/{number}.png", image)
        write_png(root / f"masks/{number}.png", np.where(mask > 2, 255, mask).astype(np.uint8))
        write_png(root / f"depth/{number}.png", depth // 5)
        normals = np.full((24, 32, 3), [127, 127, 0], np.uint8)
        write_png(root / f"normals/{number}.png", normals)
    cells = ["rgb/{0}.png\tmasks/{0}.png\tdepth/{0}.png\tnormals/{0}.png"] * 5
    cells.append("rgb/{0}.png\t-\tdepth/{0}.png\t-")
    lines = [cell.format(number) + "\n" for number, cell in enumerate(cells, 1)]
    (root / "train.txt").write_text("".join(lines[:4]))
    (root / "val.txt").write_text("".join(lines[4:]))
    (root / "dataset.yaml").write_text(
        "splits: {train: train.txt, val: val.txt}\ncolumns: [image, segmentation, depth, normals]\n"
        "segmentation: {classes: [floor, shelf, person]}\ndepth: {metres_per_unit: 0.001}\n"
    )
    return root


def test_sound_folder(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["check", str(data)]) == 0
    with Image.open(here / "check_data.png") as mosaic:
        assert mosaic.width > 4 * validate.PANEL_WIDTH and mosaic.height > 300
    printed = capsys.readouterr().out
    assert "nothing is wrong" in printed and "check_data.png: 6 frames" in printed
    assert re.search(r"train +4 +32x24 +4, \d", printed) and re.search(r"val +2 +32x24 +1, ", printed)
    shares = {
        name: [float(share) for share in re.search(rf"{name} +([\d.]+) +([\d.]+)  #", printed).groups()]
        for name in ("floor", "shelf", "person")
    }
    masks = np.concatenate([read_label(data / f"masks/{number}.png").ravel() for number in range(1, 5)])
    wanted = 100 * np.bincount(masks[masks < 3]) / (masks < 3).sum()
    np.testing.assert_allclose([train for train, _ in shares.values()], wanted, atol=0.006)
    depth = np.concatenate([read_label(data / f"depth/{number}.png").ravel() for number in range(1, 5)]) / 1000
    least, median, most = map(float, re.search(r"train: least (\S+) m, median (\S+) m, most (\S+) m", printed).groups())
    np.testing.assert_allclose([least, median, most], [depth.min(), np.median(depth), depth.max()], atol=0.011)


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line)


def cut_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


LABELS = (24, 32)


@pytest.mark.parametrize(
    ("spoil", "kind", "example"),
    [
        (lambda root: (root / "rgb/2.png").unlink(), "missing file", r"train.txt:2: .*rgb/2.png: no such file"),
        (lambda root: (root / "depth/5.png").unlink(), "missing file", r"val.txt:1: .*depth/5.png"),
        (lambda root: append(root / "train.txt", "rgb/9.png masks/9.png\n"), "wrong line", r"train.txt:5: 1 columns"),
        (lambda root: append(root / "val.txt", "-\t-\t-\t-\n"), "wrong line", r"val.txt:3: a frame needs"),
        (lambda root: (root / "val.txt").write_text("\n"), "empty list file", r"val.txt"),
        (lambda root: (root / "val.txt").unlink(), "unreadable list file", r"val.txt .split 'val'"),
        (lambda root: (root / "val.txt").write_bytes(b"\xff\xfe\0"), "unreadable list file", r"val.txt: not a UTF-8"),
        (lambda root: cut_image(root / "rgb/1.png"), "unreadable image", r"train.txt:1: .*rgb/1.png: damaged or trun"),
        (lambda root: cut_image(root / "masks/3.png"), "unreadable label", r"train.txt:3: .*masks/3.png"),
        (lambda root: (root / "depth/4.png").write_text("hi"), "unreadable label", r"depth/4.png: not an image"),
        (
            lambda root: write_png(root / "masks/4.png", np.zeros((24, 30), U8)),
            "size mismatch", r"train.txt:4: .*masks/4.png: segmentation is 30x24, but its image is 32x24",
        ),
        (
            lambda root: write_png(root / "masks/4.png", np.full(LABELS, 3, U8)),
            "wrong segmentation values", r"train.txt:4: .*class id 3; allowed: 0..2 and 255",
        ),
        (
            lambda root: write_png(root / "depth/4.png", np.zeros((*LABELS, 3), U8)),
            "wrong depth values", r"depth/4.png: depth has one number a pixel",
        ),
        (
            lambda root: write_png(root / "masks/4.png", np.full(LABELS, 255, U8)),
            "nothing labeled", r"masks/4.png: no pixel of this segmentation label",
        ),
        (lambda root: write_png(root / "depth/4.png", np.zeros(LABELS, U16)), "nothing labeled", r"depth/4.png"),
        (lambda root: write_png(root / "depth/4.png", np.full(LABELS, 9, U16)), "unlikely depth", r"below 0.009 m"),
        (lambda root: write_png(root / "depth/4.png", np.full(LABELS, 20000, U16)), "unlikely depth", r"100% .* max"),
        (
            lambda root: shutil.copy(root / "rgb/1.png", root / "rgb/5.png"),
            "image in two splits", r"val.txt:1: .*rgb/5.png is also in train, .*train.txt:1",
        ),
        (
            lambda root: append(root / "val.txt", "rgb/3.png\t-\t-\t-\n"),
            "image in two splits", r"val.txt:3: .*rgb/3.png is also in train, .*train.txt:3",
        ),
    ],
)  # fmt: skip
def test_each_fault_is_named(
    spoil: Callable[[Path], object], kind: str, example: str, data: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(data)
    assert prepare.main(["check", str(data), "--output", "pictures"]) == 1
    printed = capsys.readouterr().out
    assert f"  {kind}: 1\n" in printed and "1 faults:" in printed
    assert re.search(example, printed[printed.index("1 faults:") :])
    only_holds(here / "pictures", "check.png")


def test_what_is_kept_of_a_frame_is_small(data: Path) -> None:
    """Histograms are added up as frames are read: one for each frame of a large data set would fill the memory."""
    folder = read_folder(data)
    tasks = make_tasks(folder, Config(tasks=tuple(folder.sections)))
    frames, _ = validate.list_frames(folder, "train")
    found, sums = validate.check_frames(frames, folder, tasks, "train")
    assert [item.read for item in found] == [{"segmentation", "depth", "normals"}] * 4
    assert not any(item.surveys for item in found)
    wanted = sum(tasks["depth"].survey(read_label(frame.labels["depth"]) * np.float32(0.001),
                                       folder.sections["depth"]) for frame in frames)  # fmt: skip
    assert np.array_equal(sums["depth"], wanted)


def test_wrong_scale_of_a_whole_data_set(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (data / "dataset.yaml").read_text()
    for scale in ("0.000001", "1"):
        (data / "dataset.yaml").write_text(text.replace("0.001", scale))
        assert prepare.main(["check", str(data)]) == 1
        printed = capsys.readouterr().out
        assert "unlikely depth: 6" in printed and "... and 3 more" in printed and "is metres_per_unit" in printed


def test_one_split_only(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "rgb/5.png").unlink()
    assert prepare.main(["check", str(data), "--split", "train"]) == 0
    assert "val" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no split 'vall' \(did you mean 'val'\?\); it has: train, val"):
        prepare.main(["check", str(data), "--split", "vall"])


def test_generated_rooms_and_frames_of_several_sizes(rooms_folder: Path, here: Path) -> None:
    folder = here / "rooms"
    shutil.copytree(rooms_folder, folder)
    write_png(folder / "small.png", np.zeros((36, 48, 3), U8))
    append(folder / "val.txt", "small.png\t-\t-\t-\t-\n")
    assert prepare.main(["check", str(folder), "--output", "."]) == 0
    assert (here / "check.png").is_file()


def test_cameras_and_poses_are_checked(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "poses").mkdir()
    for number in range(1, 7):
        np.savetxt(data / f"poses/{number}.txt", np.eye(4))
    text = (data / "dataset.yaml").read_text() + "poses: poses\n"
    camera = "camera: {{fx: 30, fy: 30, cx: 16, cy: 12, width: {}, height: {}}}\n".format
    (data / "dataset.yaml").write_text(text + camera(64, 48))  # of larger images of the same shape
    assert prepare.main(["check", str(data)]) == 0
    (data / "poses/1.txt").unlink()
    (data / "poses/2.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n")
    np.savetxt(data / "poses/3.txt", np.diag([1, 1, -1, 1]))
    (data / "dataset.yaml").write_text(text + camera(64, 64))
    capsys.readouterr()
    assert prepare.main(["check", str(data)]) == 1
    printed = capsys.readouterr().out
    assert "1.txt: no such pose" in printed and "2.txt: not 4 x 4 numbers" in printed
    assert "3.txt: not the pose of a camera: its 3 x 3 part is no rotation" in printed
    assert "another shape than the camera's: 6" in printed and "but the camera of dataset.yaml is of 64x64" in printed


def test_images_alone_are_a_data_set(data: Path, here: Path) -> None:
    for split in ("train", "val"):
        lines = (data / f"{split}.txt").read_text().splitlines()
        (data / f"{split}.txt").write_text("".join(line.split("\t")[0] + "\n" for line in lines))
    (data / "dataset.yaml").write_text("splits: {train: train.txt, val: val.txt}\ncolumns: [image]\n")
    assert prepare.main(["check", str(data)]) == 0


def test_script_exits_with_1_when_something_is_wrong(data: Path, script: Script, tmp_path: Path) -> None:
    (data / "rgb/2.png").unlink()
    done = script("prepare.py", "check", data, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "missing file: 1" in done.stdout and (tmp_path / "check_data.png").is_file()


@pytest.mark.parametrize(
    ("name", "frames"), [("nyud", 14), ("replica_office0", 60), ("camvid", 468), ("redkitchen", 230)]
)
def test_real_data_is_sound(name: str, frames: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared(f"data/{name}")
    assert prepare.main(["check", str(folder), "--split", "val"]) == 0
    assert (here / f"check_{name}.png").is_file()
    assert sum(len(validate.list_frames(read_folder(folder), split)[0]) for split in ("train", "val")) == frames


def test_frames_of_the_mosaic_are_shared_among_the_splits() -> None:
    assert validate.spread([range(100), range(100, 104), []], 12) == [0, 14, 28, 42, 57, 71, 85, 99, 100, 101, 102, 103]
    assert validate.spread([range(3), range(3, 5)], 12) == [0, 1, 2, 3, 4]
    assert validate.spread([[], []], 12) == []


def test_threads_stop_at_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    begun, stopped = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        if number > 3:
            stopped.wait(0.05)
        return number

    assert list(in_threads(work, [0, 1, 2], "test")) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        list(in_threads(work, range(200), "test"))
    assert len(begun) < 100


def binary_masks(root: Path, section: str, values: tuple[int, ...] = (0, 255)) -> Path:
    """A data set of two frames whose masks hold these values alone."""
    (root / "dataset.yaml").write_text(
        f"splits: {{train: train.txt, val: val.txt}}\ncolumns: [image, segmentation]\nsegmentation: {section}\n"
    )
    for number, split in enumerate(("train", "val")):
        rng = np.random.default_rng(number)
        write_png(root / f"{split}.png", rng.integers(0, 256, (6, 8, 3), U8))
        write_png(root / f"{split}_mask.png", rng.choice(np.array(values, U8), (6, 8)))
        (root / f"{split}.txt").write_text(f"{split}.png\t{split}_mask.png\n")
    return root


def test_masks_of_0_and_255_are_doubted_and_values_read_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary_masks(here, "{classes: [background, object]}")
    assert prepare.main(["check", "."]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    (advice,) = re.findall(r"masks of 0 and 255: 1 .*? write into dataset\.yaml: segmentation: (\{.*?\})", printed)
    binary_masks(here, advice)
    assert prepare.main(["check", "."]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    folder = read_folder(here)
    label = make_tasks(folder, Config(tasks=("segmentation",)))["segmentation"].read(
        here / "val_mask.png", folder.sections["segmentation"], here / "val.png"
    )
    np.testing.assert_array_equal(label, read_label(here / "val_mask.png") // 255)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("{classes: [background, object]}", (0, 1, 255)),
        ("{classes: [background, object], ignore: 0}", (0, 1)),
        ("{classes: [object]}", (0, 255)),  # the class where somebody labeled it, nothing elsewhere
        ("{classes: [background, object]}", (0,)),
    ],
)
def test_other_masks_are_not_doubted(section: str, values: tuple[int, ...], here: Path) -> None:
    assert prepare.main(["check", str(binary_masks(here, section, values))]) == 0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{classes: [a, b], values: [0]}", "values must be 2 different numbers"),
        ("{classes: [a, b], values: [3, 3]}", "values must be 2 different numbers"),
        ("{classes: [a, b], values: [0, -1]}", "values must be 2 different numbers of 0..65535"),
        ("{classes: [a, b], values: [0, 255], ignore: 255}", "ignore is 255, which .*values gives to a class"),
        ("{classes: [a, b], values: x}", "values"),
    ],
)
def test_wrong_values_are_explained(section: str, message: str, here: Path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare.main(["check", str(binary_masks(here, section))])


def test_a_value_of_no_class_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["check", str(binary_masks(here, "{classes: [a, b], values: [0, 200]}", (0, 7)))]) == 1
    assert "class id 7; allowed: 0, 200 and 255 (no label)" in capsys.readouterr().out
