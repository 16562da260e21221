"""Preparing NYUDv2 from each of its sources, and checking data sets."""

from __future__ import annotations

import io
import re
import shutil
import socket
import stat
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import Script, only_error_line, shared
from PIL import Image

import check
import prepare
from config import Config, read_yaml
from dataset import NYUD_LISTS, NYUD_YAML, make_tasks, read_folder, read_list
from tasks import CLASS_LISTS
from utils import read_image, read_label, write_png

PREFIXES = ["nyud/", "hydranets-data-2/nyud/"]
WEIGHTS = prepare.ENCODER_WEIGHTS


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def small_frame(number: int, height: int = 13, width: int = 17) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (H, W, 3), mask (H, W) of ids 0..39 and 255, depth (H, W) in 1/5000 m."""
    rng = np.random.default_rng(number)
    mask = rng.choice([*range(40), 255], (height, width)).astype(np.uint8)
    return rng.integers(0, 256, (height, width, 3), np.uint8), mask, rng.integers(5000, 49000, mask.shape, np.uint16)


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


def write_zip(path: Path, members: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_holds(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# ---------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name a command; allowed: nyudv2, check"),
        ("nyudv --download", "unknown command 'nyudv' .did you mean 'nyudv2'"),
        ("nyudv2", "--archive"),
        ("nyudv2 --mat a --archive b", "not allowed with"),
        ("nyudv2 --downlod", "--archive"),
        ("nyudv2 --download --ouput x", "unknown argument '--ouput' .did you mean '--output'"),
        ("nyudv2 --mat a", "--mat needs --splits"),
        ("nyudv2 --archive a --class-map b", "--class-map goes with --mat only"),
        ("nyudv2 --archive a --url b", "--url goes with --download only"),
        ("nyudv2 --download --size big", "--size is 'big'"),
        ("nyudv2 --download --url ftp://a", "allowed: an http"),
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
    for command in ("nyudv2", "check"):
        with pytest.raises(SystemExit) as end:
            prepare.main([command, "--help"])
        assert end.value.code == 0
    assert "--class-map" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- archive


@pytest.mark.parametrize("prefix", PREFIXES)
def test_archive_is_unpacked_exactly(prefix: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = archive_content()
    beside = {"cmap_nyud.npy": b"colours", WEIGHTS: b"weights", "rgb/.DS_Store": b""}
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
    assert (here / "model" / WEIGHTS).read_bytes() == b"weights"
    assert read_yaml(output / "dataset.yaml") == NYUD_YAML

    folder = read_folder(output)
    tasks = make_tasks(folder, Config())
    (frame,) = read_list(folder, "val")
    image, mask, depth = small_frame(1)
    np.testing.assert_array_equal(read_image(frame.image), image)
    read = {name: task.read(frame.labels[name], folder.sections[name]) for name, task in tasks.items()}
    np.testing.assert_array_equal(read["segmentation"], mask)
    np.testing.assert_allclose(read["depth"], depth / 5000, rtol=1e-6)
    assert "4 train frames, 1 val frames" in capsys.readouterr().out


def test_archive_without_weights_and_weights_that_exist(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {"nyud/" + name: data for name, data in archive_content(2).items()}
    prepare.unpack(write_zip(here / "a.zip", members), here / "one")
    assert prepare.ARCHIVE_URL in capsys.readouterr().out
    (here / "model").mkdir()
    (here / "model" / WEIGHTS).write_bytes(b"mine")
    prepare.unpack(write_zip(here / "b.zip", {**members, WEIGHTS: b"theirs"}), here / "two")
    assert (here / "model" / WEIGHTS).read_bytes() == b"mine"


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
        prepare.unpack(here / "in/a.zip", here / "in/out/nyud")
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
        prepare.unpack(path, here / "nyud")
    assert "\n" not in str(problem.value)
    only_holds(here, "a.zip")


def test_archive_with_a_password_or_without_a_data_set(here: Path) -> None:
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in archive_content(2).items()})
    data = path.read_bytes().replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")
    path.write_bytes(data.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0"))
    with pytest.raises(ValueError, match="encrypted"):
        prepare.unpack(path, here / "nyud")
    with pytest.raises(ValueError, match=r"no train_list_depth.txt in it"):
        prepare.unpack(write_zip(path, {"other/file.txt": b""}), here / "nyud")
    only_holds(here, "a.zip")


def test_archive_that_lacks_a_listed_file(here: Path) -> None:
    content = archive_content()
    del content["masks/000003.png"]
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in {**content, WEIGHTS: b""}.items()})
    message = r"a\.zip: train_list_depth\.txt:2: segmentation masks/000003\.png is missing"
    with pytest.raises(ValueError, match=message):
        prepare.unpack(path, here / "nyud")
    only_holds(here, "a.zip")


def test_existing_output_is_kept(here: Path) -> None:
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in archive_content(2).items()})
    for name in ("full", "empty", "empty.part"):
        (here / name).mkdir()
    for name in ("full/mine", "file", "empty.part/of a run that was killed"):
        (here / name).write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match=f"{name}: exists and is not an empty folder"):
            prepare.unpack(path, here / name)
    assert (here / "full/mine").read_text() == (here / "file").read_text() == "mine"
    prepare.unpack(path, here / "empty")
    assert read_list(read_folder(here / "empty"), "val")
    only_holds(here, "a.zip", "full", "file", "empty")


def test_full_disk_is_noticed_before_writing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(here / "a.zip", {"nyud/" + name: data for name, data in archive_content(2).items()})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(OSError, match="the disk has 10 left"):
        prepare.unpack(path, here / "nyud")
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
    words = "nyudv2 --mat labeled.mat --splits splits.mat --class-map map.mat --output out/nyud"
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


def test_mat_without_class_map_gives_depth_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mat(here / "labeled.mat", labels=None)
    write_meta(here / "splits.mat", trainNdxs=[1, 4], testNdxs=[2])
    prepare.convert_mat(here / "labeled.mat", here / "splits.mat", None, here / "nyud")
    assert "s-gupta/rcnn-depth" in capsys.readouterr().out
    folder = read_folder(here / "nyud")
    only_holds(folder.root, "rgb", "depth", "dataset.yaml", *NYUD_LISTS.values())
    assert (folder.root / NYUD_LISTS["train"]).read_text().splitlines()[1] == "rgb/000004.png\t-\tdepth/000004.png"
    assert all(set(frame.labels) == {"depth"} for frame in read_list(folder, "train"))


def test_true_splits_and_class_map() -> None:
    pytest.importorskip("scipy")
    meta = shared("data/nyudv2_meta")
    splits = prepare.read_splits(meta / "splits.mat")
    assert {name: len(numbers) for name, numbers in splits.items()} == {"train": 795, "val": 654}
    assert sorted(splits["train"] + splits["val"]) == list(range(1, 1450))
    table = prepare.read_class_map(meta / "classMapping40.mat")
    assert table.shape == (895,) and table[0] == 255 and sorted(set(table[1:].tolist())) == list(range(40))
    # A label that has the name of one of our 40 classes must become that class.
    scipy_io = pytest.importorskip("scipy.io")
    names = [str(name[0]) for name in scipy_io.loadmat(meta / "classMapping40.mat")["allClassName"][0]]
    classes = [name.replace("_", " ") for name in CLASS_LISTS["nyu40"]]
    both = [name for name in names if name in classes]
    assert len(both) > 30 and all(classes[table[1 + names.index(name)]] == name for name in both)


def test_true_splits_need_all_frames(here: Path) -> None:
    meta = shared("data/nyudv2_meta")
    mat = write_mat(here / "labeled.mat")
    with pytest.raises(ValueError, match=r"the train split has frame 1440, but .*labeled.mat has 4 frames"):
        prepare.convert_mat(mat, meta / "splits.mat", meta / "classMapping40.mat", here / "nyud")
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
        prepare.convert_mat(mat, here / "splits.mat", here / "map.mat", here / "nyud")
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
        prepare.convert_mat(write_mat(here / "labeled.mat"), here / "splits.mat", here / "map.mat", here / "nyud")
    assert not list(here.glob("nyud*"))


def test_files_that_are_not_matlab(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mat = write_mat(here / "labeled.mat")
    splits = write_meta(here / "splits.mat", trainNdxs=[1, 2], testNdxs=[3])
    with pytest.raises(FileNotFoundError, match=r"none\.mat: no such file"):
        prepare.convert_mat(mat, here / "none.mat", None, here / "nyud")
    with pytest.raises(ValueError, match=r"labeled\.mat: not a MATLAB 5 file"):
        prepare.convert_mat(mat, mat, None, here / "nyud")
    (here / "text.mat").write_text("words" * 200)
    for wrong in (splits, here / "text.mat"):
        with pytest.raises(ValueError, match="not an HDF5 file"):
            prepare.convert_mat(wrong, splits, None, here / "nyud")
    mat.write_bytes(cut(mat.read_bytes()))
    with pytest.raises(ValueError, match=r"not an HDF5 file .* or cut off"):
        prepare.convert_mat(mat, splits, None, here / "nyud")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"install them with: pip install -r requirements-prepare\.txt"):
        prepare.convert_mat(mat, splits, None, here / "nyud")
    assert not list(here.glob("nyud*"))


# ---------------------------------------------------------------------------------------------- download


class Server(ThreadingHTTPServer):
    """Serves `data` at every path, as told; `requests` holds the Range header of each request."""

    data = b""
    breaks = 0  # answers that end in the middle
    ranges = True  # whether it knows Range
    statuses: tuple[int, ...] = ()  # of the next answers, in place of the data
    length: int | None = None  # a false Content-Length


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.statuses:
            status, server.statuses = server.statuses[0], server.statuses[1:]
            self.send_error(status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        self.send_header("Content-Length", str(server.length or len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(prepare, "WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}/a.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def nyud_zip(folder: Path) -> bytes:
    members = {"nyud/" + name: data for name, data in archive_content().items()}
    path = write_zip(folder / "source.zip", members, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_is_taken_up_again(ranges: bool, here: Path, server: Server) -> None:
    server.data, server.breaks, server.ranges = nyud_zip(here), 1, ranges
    words = ["nyudv2", "--download", "--url", server.url, "--size", str(len(server.data))]
    assert prepare.main(words) == 0
    assert server.requests == [None, f"bytes={len(server.data) // 2}-"]
    assert (here / "dataset/hydranets-data-2.zip").read_bytes() == server.data
    only_holds(here / "dataset", "nyud", "hydranets-data-2.zip")
    assert len(read_list(read_folder(here / "dataset/nyud"), "train")) == 4
    with pytest.raises(FileExistsError):
        prepare.main(words)
    prepare.main([*words, "--output", "dataset/again"])
    assert len(server.requests) == 2  # the archive was there already


def test_download_goes_on_where_another_run_stopped(here: Path, server: Server) -> None:
    server.data = bytes(range(256)) * 40
    part = here / "a.zip.part"
    for kept, asked in ((server.data[:5000], ["bytes=5000-"]), (server.data, []), (server.data + b"x", [None])):
        part.write_bytes(kept)
        server.requests.clear()
        prepare.download(server.url, len(server.data), here / "a.zip")
        assert server.requests == asked
        assert (here / "a.zip").read_bytes() == server.data
        (here / "a.zip").unlink()
        only_holds(here)


def test_download_waits_for_a_busy_server(here: Path, server: Server) -> None:
    server.data, server.statuses = b"12345" * 100, (503, 416, 429)
    (here / "a.zip.part").write_bytes(server.data[:50])
    prepare.download(server.url, 500, here / "a.zip")
    assert server.requests == ["bytes=50-", "bytes=50-", None, None]
    assert (here / "a.zip").read_bytes() == server.data


@pytest.mark.parametrize(
    ("settings", "message", "requests"),
    [
        ({"data": b"123"}, "the server's file has 3 bytes, but 500 are expected", 1),
        ({"data": b"12" * 500}, "the server's file has 1,000 bytes", 1),
        ({"statuses": (404,)}, "the server says HTTP Error 404: Not Found; .* --archive FILE", 1),
        ({"statuses": (403,)}, "403", 1),
        ({"statuses": (500,) * 9}, "no connection to .* .Internal Server Error.; 0 of 500 bytes are kept", 5),
    ],
)
def test_failed_download(settings: dict[str, object], message: str, requests: int, here: Path, server: Server) -> None:
    for name, value in settings.items():
        setattr(server, name, value)
    with pytest.raises((ValueError, OSError), match=message) as problem:
        prepare.download(server.url, 500, here / "a.zip")
    assert "\n" not in str(problem.value)
    assert len(server.requests) == requests
    only_holds(here)


def test_download_that_never_ends_well_keeps_what_it_has(here: Path, server: Server) -> None:
    server.data, server.length = b"x" * 300, 500
    with pytest.raises(OSError, match=r"no connection to .* 300 of 500 bytes are kept: run it again"):
        server.ranges = False
        prepare.download(server.url, 500, here / "a.zip")
    only_holds(here, "a.zip.part")


def test_without_a_network_it_says_what_to_do(here: Path, server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens: the connection is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.zip"
        with pytest.raises(OSError, match=r"Connection refused.* with a browser, then: .*nyudv2 --archive FILE"):
            prepare.main(["nyudv2", "--download", "--url", url])
    only_holds(here / "dataset")


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
        assert mosaic.width > 4 * check.PANEL_WIDTH and mosaic.height > 300
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
        (lambda root: (root / "val.txt").write_bytes(b"\xff\xfe\0"), "unreadable list file", r"utf-8"),
        (lambda root: cut_image(root / "rgb/1.png"), "unreadable image", r"train.txt:1: .*rgb/1.png: damaged or trun"),
        (lambda root: cut_image(root / "masks/3.png"), "unreadable image", r"train.txt:3: .*masks/3.png"),
        (lambda root: (root / "depth/4.png").write_text("hi"), "unreadable image", r"depth/4.png: not an image"),
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
            "nothing labelled", r"masks/4.png: no pixel of this segmentation label",
        ),
        (lambda root: write_png(root / "depth/4.png", np.zeros(LABELS, U16)), "nothing labelled", r"depth/4.png"),
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
    write_png(folder / "tall.png", np.zeros((300, 40, 3), U8))
    append(folder / "val.txt", "tall.png\t-\t-\t-\n")
    assert prepare.main(["check", str(folder), "--output", "."]) == 0
    assert (here / "check.png").is_file()


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
    assert sum(len(check.list_frames(read_folder(folder), split)[0]) for split in ("train", "val")) == frames


def test_frames_of_the_mosaic_are_shared_among_the_splits() -> None:
    assert check.spread([range(100), range(100, 104), []], 12) == [0, 14, 28, 42, 57, 71, 85, 99, 100, 101, 102, 103]
    assert check.spread([range(3), range(3, 5)], 12) == [0, 1, 2, 3, 4]
    assert check.spread([[], []], 12) == []


def test_threads_stop_at_an_error() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    assert list(check.in_threads(work, [0, 1, 2], "test")) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        list(check.in_threads(work, range(50), "test"))
