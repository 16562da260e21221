"""What holds for each command that reads archives: unsafe, damaged and missing ones, and the output folder."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Script, only_error_line, only_holds, write_zip
from helpers import existing_output_is_kept
from official import archives
from official_boxes import boxes_archives
from PIL import Image

import prepare
from folders import read_folder
from sources.archives import Source, finish

COMMANDS = ["kitti", "camvid", "carvana", "voc", "coco", "pennfudan"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Command -> its words, for small archives."""
    folder = tmp_path_factory.mktemp("archives")
    return archives(folder) | boxes_archives(folder)


def with_copies(words: list[str], here: Path) -> tuple[list[str], Path]:
    """The words with copies of the archives in here/in, and the first of these."""
    (here / "in").mkdir()
    ends = (".zip", ".tar")
    copies = [str(shutil.copy(word, here / "in")) if word.endswith(ends) else word for word in words]
    return copies, Path(next(word for word in copies if word.endswith(ends)))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../../evil", "a\\..\\..\\evil", "C:\\evil", "evil -> link"])
def test_archive_that_climbs_out_is_refused(command: str, name: str, small: dict[str, list[str]], here: Path) -> None:
    words, first = with_copies(small[command], here)
    if first.suffix == ".tar":
        add_to_tar(first, name)
    else:
        member = zipfile.ZipInfo(name)
        if "link" in name:
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(first, "a") as file:
            file.writestr(member, b"/etc/passwd")
    with pytest.raises(ValueError, match="is a link" if "link" in name else "outside of the output folder"):
        prepare.main([command, *words, "--output", "out"])
    only_holds(here, "in")


def add_to_tar(path: Path, name: str) -> None:
    """A link of this name to /etc/passwd, or a file."""
    member = tarfile.TarInfo(name)
    if "link" in name:
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path, "a") as file:
        file.addfile(member)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flip(data: bytes) -> bytes:
    at = len(data) // 3
    return data[:at] + bytes(255 - byte for byte in data[at : at + 2000]) + data[at + 2000 :]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"<html>sorry</html>", lambda data: b""])
def test_damaged_archive(
    command: str, damage: Callable[[bytes], bytes], small: dict[str, list[str]], here: Path
) -> None:
    words, first = with_copies(small[command], here)
    first.write_bytes(damage(first.read_bytes()))
    kind = first.suffix[1:]
    message = rf"in/\w.*\.{kind}: no {kind} archive, damaged or cut off .*; delete it and download it again"
    with pytest.raises(ValueError, match=message) as problem:
        prepare.main([command, *words, "--output", "out"])
    assert "\n" not in str(problem.value)
    only_holds(here, "in")


@pytest.mark.parametrize("command", COMMANDS)
def test_existing_output_is_kept(command: str, small: dict[str, list[str]], here: Path) -> None:
    existing_output_is_kept(here, lambda path: prepare.main([command, *small[command], "--output", path.name]))
    only_holds(here, "full", "file", "empty", "empty.part")


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_is_noticed_before_writing(
    command: str, small: dict[str, list[str]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(OSError, match="the disk has 10 left"):
        prepare.main([command, *small[command], "--output", "out"])
    only_holds(here)


@pytest.mark.parametrize("command", COMMANDS)
def test_script_prints_one_error_line_for_each_wrong_path(
    command: str, small: dict[str, list[str]], script: Script, tmp_path: Path
) -> None:
    words = [word.replace(".zip", ".rar").replace(".tar", ".rar") for word in small[command]]
    assert "no such file or folder" in only_error_line(script("prepare.py", command, *words, cwd=tmp_path))
    only_holds(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_default_output_and_same_result_twice(command: str, small: dict[str, list[str]], here: Path) -> None:
    prepare.main([command, *small[command]])
    prepare.main([command, *small[command], "--output", "again"])
    first, second = here / "dataset" / command, here / "again"
    names = sorted(path.relative_to(first) for path in first.rglob("*"))
    assert names == sorted(path.relative_to(second) for path in second.rglob("*"))
    assert all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names if (first / name).is_file()
    )


def test_source_reads_folders_and_archives_alike(here: Path) -> None:
    files = {"a/1.txt": b"one", "a/b/2.txt": b"two", "3.csv": b"three"}
    for name, data in files.items():
        (here / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "folder" / name).write_bytes(data)
    write_zip(here / "archive.zip", {"a/": b"", "__MACOSX/a/1.txt": b"", **files})
    for path in (here / "folder", here / "archive.zip"):
        with Source(path) as source:
            found = source.find(r"(\d)\.txt")
            assert {key: (member.name, member.size) for key, member in found.items()} == {
                ("1",): ("a/1.txt", 3), ("2",): ("a/b/2.txt", 3),
            }  # fmt: skip
            found["2",].copy(here / "copy" / path.name)
            assert (here / "copy" / path.name).read_bytes() == b"two"
            with pytest.raises(ValueError, match=rf"{path.name}: it has 3\.csv and a/1\.txt; give the one"):
                source.find(r"\d\.\w+")


def test_pipes_are_refused(here: Path) -> None:
    os.mkfifo(here / "pipe")
    with pytest.raises(ValueError, match="pipe: neither a file nor a folder"):
        prepare.main(["carvana", "--images", "pipe", "--masks", "pipe"])
    (here / "folder").mkdir()
    os.mkfifo(here / "folder/1.txt")
    with Source(here / "folder") as source:
        member = source.find(r"(\d)\.txt")["1",]
        for use in (member.read, lambda: member.copy(here / "copy")):
            with pytest.raises((ValueError, OSError), match="pipe"):
                use()


def test_description_is_written_as_it_is(here: Path) -> None:
    """Names with quotes and words that YAML takes for other things stay, and numbers are numbers."""
    names = ["driver's seat", "no", "010", "1e3", "~", "a: b", "# c", "tür"]
    description = {
        "name": "it's",
        "splits": {"train": "train.txt"},
        "columns": ["image", "segmentation", "depth"],
        "segmentation": {"classes": names, "ignore": 255},
        "depth": {"metres_per_unit": 1 / 256, "max": 80.0},
    }
    Image.new("RGB", (3, 2)).save(here / "a.png")
    (here / "train.txt").write_text("a.png\t-\t-\n")
    assert finish(here, here / "out", here / "source", description, "two\nlines") == {"train": 1}
    text = (here / "dataset.yaml").read_text(encoding="utf-8")
    assert text.startswith("# two\n# lines\n")
    assert yaml.safe_load(text) == description
    folder = read_folder(here)
    assert folder.name == "it's" and folder.sections["segmentation"]["classes"] == tuple(names)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_unpacks_at_once_is_refused(compression: int, here: Path) -> None:
    write_zip(here / "a.zip", {"a.png": bytes(10_000)}, compression)
    with Source(here / "a.zip") as source:
        member = source.find(r"a\.png")[()]
        with pytest.raises(ValueError, match=r"a\.zip: .*a\.png is compressed by (bzip2|lzma); stored and deflated"):
            member.copy(here / "copy.png")
    only_holds(here, "a.zip")
