"""Preparing NYUDv2 from each of its sources."""

from __future__ import annotations

import io
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import only_holds, png, shared, small_frame, write_zip
from helpers import existing_output_is_kept
from PIL import Image

import prepare
from config import Config
from folders import NYUD_LISTS, NYUD_YAML, make_tasks, read_folder, read_list
from images import read_image, read_label
from networks.encoders import PaperMobileNetV2
from sources import nyudv2
from tasks import CLASS_LISTS

PREFIXES = ["nyud/", "hydranets-data-2/nyud/"]
WEIGHTS = nyudv2.ENCODER_WEIGHTS


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A file with the tensors of the paper's encoder."""
    file = io.BytesIO()
    torch.save(PaperMobileNetV2().state_dict(), file)
    return file.getvalue()


def archive_content(frames: int = 5) -> dict[str, bytes]:
    """The files of a small public archive, relative to its nyud/; frame 1 is the validation split."""
    content, lines = {}, []
    for number in range(1, frames + 1):
        names = [f"{kind}/{number:06d}.png" for kind in ("rgb", "masks", "depth")]
        content.update(zip(names, map(png, small_frame(number)), strict=True))
        lines.append("\t".join(names) + "\n")
    content["train_list_depth.txt"] = "".join(lines[1:]).encode()
    content["val_list_depth.txt"] = lines[0].encode()
    return content


# ---------------------------------------------------------------------------------------------- archive


@pytest.mark.parametrize("prefix", PREFIXES)
def test_archive_is_unpacked_exactly(
    prefix: str, weights: bytes, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = archive_content()
    beside = {"cmap_nyud.npy": b"colors", WEIGHTS: weights, "rgb/.DS_Store": b""}
    junk = {
        f"__MACOSX/{prefix}._train_list_depth.txt": b"",
        "readme.txt": b"",
        "rgb/000009.png": b"not of the data set",
    }
    members = {prefix: b"", **junk, **{prefix + name: data for name, data in {**content, **beside}.items()}}
    write_zip(here / "a.zip", members)
    assert prepare.main(["nyudv2", "--archive", "a.zip"]) == 0
    output = here / "dataset/nyud"
    for name, data in content.items():
        assert (output / name).read_bytes() == data
    only_holds(output, "rgb", "masks", "depth", "dataset.yaml", *NYUD_LISTS.values())
    only_holds(here / "dataset", "nyud")
    assert not (output / "rgb/000009.png").exists()
    assert (here / "model" / WEIGHTS).read_bytes() == weights
    assert yaml.safe_load((output / "dataset.yaml").read_text()) == NYUD_YAML

    folder = read_folder(output)
    tasks = make_tasks(folder, Config())
    (frame,) = read_list(folder, "val")
    image, mask, depth = small_frame(1)
    np.testing.assert_array_equal(read_image(frame.image), image)
    read = {name: task.read(frame.labels[name], folder.sections[name], frame.image) for name, task in tasks.items()}
    np.testing.assert_array_equal(read["segmentation"], mask)
    np.testing.assert_allclose(read["depth"], depth / 5000, rtol=1e-6)
    assert "4 train frames, 1 val frames" in capsys.readouterr().out


def test_frames_are_held_out_of_the_training_frames(weights: bytes, here: Path, capsys) -> None:
    content = archive_content(70)
    write_zip(here / "a.zip", {**content, WEIGHTS: weights})
    assert prepare.main(["nyudv2", "--archive", "a.zip", "--hold_out"]) == 0
    folder = read_folder(here / "dataset/nyudv2")
    only_holds(folder.root, "rgb", "masks", "depth", "dataset.yaml", "train.txt", "val.txt", "trainval.txt", "test.txt")
    numbers = {split: [int(frame.image.stem) for frame in read_list(folder, split)] for split in folder.splits}
    # Of frames 2 to 70, the fourth block of 16: 50 to 65.
    assert numbers["val"] == list(range(50, 66)) and numbers["trainval"] == list(range(2, 71))
    assert numbers["train"] == [*range(2, 50), *range(66, 71)] and numbers["test"] == [1]
    assert "53 train frames, 16 val frames, 69 trainval frames, 1 test frames" in capsys.readouterr().out


def test_too_few_frames_to_hold_some_out(here: Path) -> None:
    write_zip(here / "a.zip", archive_content())
    with pytest.raises(ValueError, match=r"a\.zip: .*val"):
        prepare.main(["nyudv2", "--archive", "a.zip", "--hold_out"])
    content = archive_content()
    del content["val_list_depth.txt"]
    write_zip(here / "b.zip", content)
    with pytest.raises(ValueError, match=r"b\.zip: no val_list_depth\.txt in it, which --hold_out needs"):
        prepare.main(["nyudv2", "--archive", "b.zip", "--hold_out"])
    only_holds(here, "a.zip", "b.zip", "dataset")
    only_holds(here / "dataset")


def test_archive_without_weights_and_weights_that_exist(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {"nyud/" + name: data for name, data in archive_content(2).items()}
    nyudv2.unpack(write_zip(here / "a.zip", members), here / "one")
    assert nyudv2.ARCHIVE_URL in capsys.readouterr().out
    (here / "model").mkdir()
    (here / "model" / WEIGHTS).write_bytes(b"mine")
    nyudv2.unpack(write_zip(here / "b.zip", {**members, WEIGHTS: b"theirs"}), here / "two")
    assert (here / "model" / WEIGHTS).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"#!/bin/sh", "not a checkpoint"), (b"", "not a checkpoint"), ({"a": torch.zeros(1)}, "tensors of this network")],
)
def test_file_that_only_has_the_name_of_the_weights_is_left_out(
    data: object, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isinstance(data, bytes):
        torch.save(data, here / "other.pth")
        data = (here / "other.pth").read_bytes()
    members = {"nyud/" + name: content for name, content in archive_content(2).items()}
    nyudv2.unpack(write_zip(here / "a.zip", {**members, WEIGHTS: data}), here / "nyud")
    printed = capsys.readouterr().out
    assert f"the archive's {WEIGHTS} was left out: {WEIGHTS}: " in printed and message in printed
    assert not (here / "model").exists() and not (here / "nyud" / WEIGHTS).exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "rgb/../../secret.png"])
def test_list_that_names_files_outside_is_refused(name: str, here: Path) -> None:
    Image.new("RGB", (17, 13)).save(here / "secret.png")
    content = archive_content(2)
    content["val_list_depth.txt"] = f"{name}\t-\tdepth/000001.png\n".encode()
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in content.items()})
    with pytest.raises(ValueError, match=r"a\.zip: val_list_depth\.txt:1: .* lies outside of the data set"):
        nyudv2.unpack(path, here / "nyud")
    only_holds(here, "a.zip", "secret.png")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/evil", "nyud/rgb/../../../evil", "nyud\\..\\..\\evil", "C:\\evil", "c:evil", "nyud/rgb/evil -> link"],
)
def test_archive_that_climbs_out_is_refused(name: str, here: Path) -> None:
    member = zipfile.ZipInfo(name)
    if "link" in name:
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = {"nyud/" + name: data for name, data in archive_content(2).items()}
    (here / "in").mkdir()
    write_zip(here / "in/a.zip", {**members, member: b"/etc/passwd"})
    with pytest.raises(ValueError, match="is a link" if "link" in name else "outside of the output folder"):
        nyudv2.unpack(here / "in/a.zip", here / "in/out/nyud")
    only_holds(here, "in")
    only_holds(here / "in/out")


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flip(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 20  # in the data of the first image, which is stored as it is
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "no zip archive, damaged or cut off"),
        (flip, "Bad CRC-32 for file 'nyud/rgb/000001.png'"),
        (lambda data: b"<html>sorry</html>", "it has 18 bytes, the public archive 812,068,227"),
        (lambda data: b"", "no zip archive"),
    ],
)
def test_damaged_archive(damage: Callable[[bytes], bytes], message: str, here: Path) -> None:
    members = {"nyud/" + name: data for name, data in archive_content().items()}
    path = write_zip(here / "a.zip", members, zipfile.ZIP_STORED)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as problem:
        nyudv2.unpack(path, here / "nyud")
    assert "\n" not in str(problem.value)
    only_holds(here, "a.zip")


def test_archive_with_a_password_or_without_a_data_set(here: Path) -> None:
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in archive_content(2).items()})
    data = path.read_bytes().replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")
    path.write_bytes(data.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0"))
    with pytest.raises(ValueError, match="encrypted"):
        nyudv2.unpack(path, here / "nyud")
    with pytest.raises(ValueError, match=r"no train_list_depth.txt in it"):
        nyudv2.unpack(write_zip(path, {"other/file.txt": b""}), here / "nyud")
    only_holds(here, "a.zip")


def test_archive_that_lacks_a_listed_file(here: Path) -> None:
    content = archive_content()
    del content["masks/000003.png"]
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in {**content, WEIGHTS: b""}.items()})
    message = r"a\.zip: train_list_depth\.txt:2: segmentation masks/000003\.png is missing"
    with pytest.raises(ValueError, match=message):
        nyudv2.unpack(path, here / "nyud")
    only_holds(here, "a.zip")


def test_existing_output_is_kept(here: Path) -> None:
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in archive_content(2).items()})
    existing_output_is_kept(here, lambda output: nyudv2.unpack(path, output))
    assert read_list(read_folder(here / "empty"), "val")
    only_holds(here, "a.zip", "full", "file", "empty", "empty.part")


def test_full_disk_is_noticed_before_writing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in archive_content(2).items()})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(OSError, match="the disk has 10 left"):
        nyudv2.unpack(path, here / "nyud")
    only_holds(here, "a.zip")


# ---------------------------------------------------------------------------------------------- official files


def write_mat(path: Path, frames: int = 4, height: int = 13, width: int = 17, **changed: np.ndarray | None) -> Path:
    """A small nyu_depth_v2_labeled.mat. `changed` replaces arrays (None: leaves them out), as h5py shows them."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (frames, 3, width, height), np.uint8),
        "depths": rng.uniform(0.7, 10, (frames, width, height)).astype(np.float32),
        "labels": rng.integers(0, 895, (frames, width, height), np.uint16),
    }
    with h5py.File(path, "w") as file:
        for name, array in {**arrays, **changed}.items():
            if array is not None:
                file.create_dataset(name, data=array, chunks=True, compression="gzip")
    return path


def write_meta(path: Path, **variables: object) -> Path:
    """A MATLAB 5 file; columns of numbers as in splits.mat."""
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(path, {name: np.array(value, np.uint16)[:, None] for name, value in variables.items()})
    return path


@pytest.mark.parametrize(("height", "width"), [(480, 640), (13, 17)])
def test_mat_is_converted_exactly(height: int, width: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5py = pytest.importorskip("h5py")
    scipy_io = pytest.importorskip("scipy.io")
    mat = write_mat(here / "labeled.mat", 3, height, width)
    with h5py.File(mat, "r+") as file:
        file["depths"][1, :4, 0] = [0, 13.1068, 13.2, np.nan]
        arrays = {name: file[name][:] for name in file}
    classes = np.random.default_rng(1).integers(1, 41, 894)
    scipy_io.savemat(here / "map.mat", {"mapClass": classes[None].astype(np.uint8)})
    write_meta(here / "splits.mat", trainNdxs=[2, 3], testNdxs=[1])
    words = "nyudv2 --mat labeled.mat --splits splits.mat --class_map map.mat --output out/nyud"
    assert prepare.main(words.split()) == 0

    folder = read_folder(here / "out/nyud")
    only_holds(folder.root, "rgb", "masks", "depth", "dataset.yaml", *NYUD_LISTS.values())
    assert (folder.root / NYUD_LISTS["val"]).read_text() == "rgb/000001.png\tmasks/000001.png\tdepth/000001.png\n"
    frames = read_list(folder, "val") + read_list(folder, "train")
    assert [frame.image.name for frame in frames] == ["000001.png", "000002.png", "000003.png"]
    table = np.concatenate([[255], classes - 1])
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(read_image(frame.image), arrays["images"][index].transpose(2, 1, 0))
        np.testing.assert_array_equal(read_label(frame.labels["segmentation"]), table[arrays["labels"][index].T])
        wanted = np.nan_to_num(arrays["depths"][index].T)
        stored = read_label(frame.labels["depth"])
        assert stored.dtype == np.uint16
        np.testing.assert_allclose(stored / 5000, np.where(wanted > 13.107, 0, wanted), atol=1.01e-4)
    assert read_label(frames[1].labels["depth"])[0, :4].tolist() == [0, 65534, 0, 0]
    assert "1 depth values do not fit" in capsys.readouterr().out


def test_things_of_the_official_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thing is a label with a number; two labels may be one class, and then their things must not become one."""
    h5py, scipy_io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    mat = write_mat(here / "labeled.mat", 2, 24, 32)
    labels, numbers = np.zeros((2, 24, 32), np.uint16), np.zeros((2, 24, 32), np.uint8)
    for row, (label, number) in enumerate([(1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (0, 0)]):
        labels[:, 4 * row : 4 * row + 4], numbers[:, 4 * row : 4 * row + 4] = label, number
    with h5py.File(mat, "r+") as file:
        file["labels"][:] = labels.transpose(0, 2, 1)
        file["instances"] = numbers.transpose(0, 2, 1)
    names = list(CLASS_LISTS["nyu40"])
    classes = np.ones(894, np.uint8)
    classes[:4] = [1 + names.index(name) for name in ("wall", "chair", "chair", "lamp")]
    scipy_io.savemat(here / "map.mat", {"mapClass": classes[None]})
    write_meta(here / "splits.mat", trainNdxs=[1], testNdxs=[2])
    assert prepare.main("nyudv2 --mat labeled.mat --splits splits.mat --class_map map.mat".split()) == 0
    folder = read_folder(here / "dataset/nyud")
    stored = read_label(folder.root / "instances/000001.png")
    chair, lamp = (256 * (nyudv2.THINGS.index(name) + 1) for name in ("chair", "lamp"))
    assert stored[::4, 0].tolist() == [0, chair + 1, chair + 2, chair + 3, lamp + 1, 65535]
    assert (stored == np.repeat(stored[::4, :1], 4, 0)).all()
    assert "wall" not in nyudv2.THINGS and len(nyudv2.THINGS) == 37
    (frame,) = read_list(folder, "train")
    tasks = make_tasks(folder, Config(tasks=("segmentation", "depth", "instances")))
    label = tasks["instances"].read(frame.labels["instances"], folder.sections["instances"], frame.image)
    assert len(np.unique(label)) == 6
    assert prepare.main(["check", "dataset/nyud"]) == 0, capsys.readouterr().out


def test_more_things_of_a_class_than_a_file_can_have() -> None:
    chair = CLASS_LISTS["nyu40"].index("chair")
    labels, numbers = np.repeat([[1, 2]], [255, 45], axis=1), np.concatenate([[*range(1, 256)], [*range(1, 46)]])[None]
    found = nyudv2.things(labels, numbers.astype(np.uint8), np.array([255, chair, chair], np.uint8))
    assert len(set(found[0, :255].tolist())) == 255 and (found[0, 255:] == 65535).all()


def test_mat_without_class_map_gives_depth_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mat(here / "labeled.mat", labels=None)
    write_meta(here / "splits.mat", trainNdxs=[1, 4], testNdxs=[2])
    nyudv2.convert_mat(here / "labeled.mat", here / "splits.mat", None, here / "nyud")
    assert "s-gupta/rcnn-depth" in capsys.readouterr().out
    folder = read_folder(here / "nyud")
    only_holds(folder.root, "rgb", "depth", "dataset.yaml", *NYUD_LISTS.values())
    assert (folder.root / NYUD_LISTS["train"]).read_text().splitlines()[1] == "rgb/000004.png\t-\tdepth/000004.png"
    assert all(set(frame.labels) == {"depth"} for frame in read_list(folder, "train"))


def test_true_splits_and_class_map() -> None:
    pytest.importorskip("scipy")
    meta = shared("data/nyudv2_meta")
    splits = nyudv2.read_splits(meta / "splits.mat")
    assert {name: len(numbers) for name, numbers in splits.items()} == {"train": 795, "val": 654}
    assert sorted(splits["train"] + splits["val"]) == list(range(1, 1450))
    table = nyudv2.read_class_map(meta / "classMapping40.mat")
    assert table.shape == (895,) and table[0] == 255 and sorted(set(table[1:].tolist())) == list(range(40))
    # A label that has the name of one of our 40 classes must become that class.
    scipy_io = pytest.importorskip("scipy.io")
    names = [str(name[0]) for name in scipy_io.loadmat(meta / "classMapping40.mat")["allClassName"][0]]
    classes = [name.replace("_", " ") for name in CLASS_LISTS["nyu40"]]
    both = [name for name in names if name in classes]
    assert len(both) > 30 and all(classes[table[1 + names.index(name)]] == name for name in both)


def test_the_frames_of_the_weights_in_the_repository(here: Path) -> None:
    """Held out of the true training frames are those on which docs/NYUDV2.md measures."""
    pytest.importorskip("scipy")
    splits, folder = nyudv2.read_splits(shared("data/nyudv2_meta") / "splits.mat"), shared("data/nyudv2")
    for split, numbers in splits.items():
        lines = [f"rgb/{number:06d}.png\tmasks/{number:06d}.png\tdepth/{number:06d}.png\n" for number in numbers]
        (here / NYUD_LISTS[split]).write_text("".join(reversed(lines)))
    nyudv2.with_lists(here, True, here)
    for split in ("train", "val", "trainval"):
        found, wanted = (
            [int(Path(line.split("\t")[0]).stem) for line in (root / f"{split}.txt").read_text().splitlines()]
            for root in (here, folder)
        )
        assert found == wanted
    assert len((here / "test.txt").read_text().splitlines()) == 654


def test_true_splits_need_all_frames(here: Path) -> None:
    meta = shared("data/nyudv2_meta")
    mat = write_mat(here / "labeled.mat")
    with pytest.raises(ValueError, match=r"the train split has frame 1440, but .*labeled.mat has 4 frames"):
        nyudv2.convert_mat(mat, meta / "splits.mat", meta / "classMapping40.mat", here / "nyud")
    only_holds(here, "labeled.mat")


U8, U16, F32 = np.uint8, np.uint16, np.float32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "no array 'images'; it has: depths, labels"),
        ({"labels": None}, "no array 'labels'; it has: depths, images"),
        ({"images": np.zeros((13, 17, 3, 4), U8)}, r"expected uint8 \(N, 3, W, H\)"),
        ({"images": np.zeros((4, 3, 17), U8)}, r"expected uint8 \(N, 3, W, H\)"),
        ({"images": np.zeros((4, 3, 17, 13), U16)}, "images is uint16"),
        ({"depths": np.zeros((4, 13, 17), F32)}, r"depths is float32 \(4, 13, 17\), images \(4, 3, 17, 13\)"),
        ({"depths": np.zeros((3, 17, 13), F32)}, "depths is float32"),
        ({"depths": np.zeros((4, 17, 13), U16)}, "depths is uint16"),
        ({"labels": np.zeros((4, 17, 13), F32)}, "labels is float32"),
        ({"labels": np.full((4, 17, 13), 895, U16)}, "frame 1 has label 895; allowed: 0..894"),
    ],
)
def test_wrong_mat_is_explained(changed: dict[str, np.ndarray | None], message: str, here: Path) -> None:
    mat = write_mat(here / "labeled.mat", **changed)
    write_meta(here / "splits.mat", trainNdxs=[1, 2], testNdxs=[3])
    write_meta(here / "map.mat", mapClass=[1] * 894)
    with pytest.raises(ValueError, match=message):
        nyudv2.convert_mat(mat, here / "splits.mat", here / "map.mat", here / "nyud")
    only_holds(here, "labeled.mat", "splits.mat", "map.mat")


@pytest.mark.parametrize(
    ("splits", "classes", "message"),
    [
        ({"trainNdxs": [1]}, [1] * 894, "splits.mat: no variable 'testNdxs'; it has: trainNdxs"),
        ({"trainNdxs": [0, 1], "testNdxs": [2]}, [1] * 894, "frame 0; frames are counted from 1"),
        ({"trainNdxs": [1, 2], "testNdxs": [2]}, [1] * 894, "a frame stands twice"),
        ({"trainNdxs": [1, 5], "testNdxs": [2]}, [1] * 894, "has frame 5, but .* has 4 frames"),
        ({"trainNdxs": [], "testNdxs": [2]}, [1] * 894, "must hold whole numbers; it has 0"),
        ({"trainNdxs": [1], "testNdxs": [2]}, [1] * 893, "mapClass has 893 values 1..1; expected 894 of 1..40"),
        ({"trainNdxs": [1], "testNdxs": [2]}, [41] * 894, "mapClass has 894 values 41..41"),
    ],
)
def test_wrong_splits_and_class_maps_are_explained(
    splits: dict[str, list[int]], classes: list[int], message: str, here: Path
) -> None:
    write_meta(here / "splits.mat", **splits)
    write_meta(here / "map.mat", mapClass=classes)
    with pytest.raises(ValueError, match=message):
        nyudv2.convert_mat(write_mat(here / "labeled.mat"), here / "splits.mat", here / "map.mat", here / "nyud")
    assert not list(here.glob("nyud*"))


def test_files_that_are_not_matlab(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mat = write_mat(here / "labeled.mat")
    splits = write_meta(here / "splits.mat", trainNdxs=[1, 2], testNdxs=[3])
    with pytest.raises(FileNotFoundError, match=r"none\.mat: no such file"):
        nyudv2.convert_mat(mat, here / "none.mat", None, here / "nyud")
    with pytest.raises(ValueError, match=r"labeled\.mat: not a MATLAB 5 file"):
        nyudv2.convert_mat(mat, mat, None, here / "nyud")
    (here / "text.mat").write_text("words" * 200)
    for wrong in (splits, here / "text.mat"):
        with pytest.raises(ValueError, match="not an HDF5 file"):
            nyudv2.convert_mat(wrong, splits, None, here / "nyud")
    mat.write_bytes(cut(mat.read_bytes()))
    with pytest.raises(ValueError, match=r"not an HDF5 file .* or cut off"):
        nyudv2.convert_mat(mat, splits, None, here / "nyud")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"install them with: pip install -r requirements/prepare\.txt"):
        nyudv2.convert_mat(mat, splits, None, here / "nyud")
    assert not list(here.glob("nyud*"))
