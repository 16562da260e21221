"""Shared by the commands of prepare.py: reading archives (zip, tar) and folders, and writing a data set folder."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import yaml

from folders import read_folder, read_list
from images import read_image, read_label, write_png
from sources import tar_files
from sources.parallel import in_threads
from utils import whole_folder

CHUNK = 1 << 20  # bytes
LABEL_FOLDERS = {"segmentation": "masks", "depth": "depth", "boxes": "boxes", "instances": "instances"}


# ---------------------------------------------------------------------------------------------- zip archives


@contextlib.contextmanager
def zip_errors(archive: Path, advice: str = "delete it and download it again") -> Iterator[None]:
    """Turns zipfile's errors (damage, unsupported compression, password) into a ValueError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as problem:
        raise ValueError(f"{archive}: no zip archive, damaged or cut off ({problem}); {advice}") from None


def refuse_unsafe(file: zipfile.ZipFile, archive: Path) -> None:
    """Raises ValueError for members that would be written outside of the output folder, and for links."""
    refuse_outside(file.namelist(), archive)
    for member in file.infolist():
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{archive}: member {member.filename!r} is a link, which is not accepted")


def refuse_outside(members: Iterable[str], archive: Path) -> None:
    """Raises ValueError for names that would be written outside of the output folder."""
    for member in members:
        name = member.replace("\\", "/")
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
            raise ValueError(f"{archive}: member {member!r} would be written outside of the output folder")


def extract(file: zipfile.ZipFile, member: zipfile.ZipInfo | str, path: Path) -> None:
    """Writes a member to `path`. Reading to the end checks the CRC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_member(file, member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)


def open_member(file: zipfile.ZipFile, member: zipfile.ZipInfo | str) -> IO[bytes]:
    """`file.open(member)` in bounded memory. Raises BadZipFile for bzip2 and LZMA.

    zipfile inflates all that a piece of such a stream holds at once: 45 bytes of bzip2 are 45 MB of zeros. None of the
    public archives has them.
    """
    info = member if isinstance(member, zipfile.ZipInfo) else file.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = zipfile.compressor_names.get(info.compress_type, info.compress_type)
        raise zipfile.BadZipFile(f"{info.filename} is compressed by {method}; stored and deflated members are read")
    return file.open(info)


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raises OSError when `needed` bytes do not fit; `folder` exists."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder}: {needed:,} bytes are needed, but the disk has {free:,} left")


# ---------------------------------------------------------------------------------------------- sources


class Source:
    """A zip or tar archive, or a folder with the same content. A context manager.

    Raises FileNotFoundError, or ValueError for something else and for an unsafe archive (`refuse_unsafe`,
    `tar_files.read_index`).
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        self.path, self.zip = path, None
        self.tar: dict[str, tar_files.Part] | None = None
        if path.is_dir():
            found = (Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
            self.names = [file.relative_to(path).as_posix() for file in found]
        elif not path.is_file():
            raise ValueError(f"{path}: neither a file nor a folder, but a pipe or a device")
        elif tar_files.is_tar(path):
            self.tar = tar_files.read_index(path)
            refuse_outside(self.tar, path)
            self.names = list(self.tar)
        else:
            with zip_errors(path):
                self.zip = zipfile.ZipFile(path)
            refuse_unsafe(self.zip, path)
            self.names = [member.filename for member in self.zip.infolist() if not member.is_dir()]
        self.names = sorted(name for name in self.names if not name.startswith("__MACOSX/"))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.zip:
            self.zip.close()

    def find(self, pattern: str, layout: str = "", archive: str = "") -> dict[tuple[str, ...], Member]:
        """{groups of `pattern`: file} for the files whose path ends with this regular expression.

        Raises ValueError when two files have the same groups. With `layout` and `archive`, which say what was expected,
        also when there is none.
        """
        found: dict[tuple[str, ...], Member] = {}
        for name in self.names:
            match = re.fullmatch(f"(?:.*/)?{pattern}", name)
            if match and (twin := found.setdefault(match.groups(), Member(self, name))).name != name:
                raise ValueError(f"{self.path}: it has {twin.name} and {name}; give the one folder that is meant")
        if layout and not found:
            raise ValueError(f"{self.path}: no {layout} in it, so it is not {archive}")
        return found


@dataclass(frozen=True)
class Member:
    """A file of a source."""

    source: Source
    name: str

    def __str__(self) -> str:
        return f"{self.source.path}: {self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def size(self) -> int:
        """Bytes."""
        if self.source.zip:
            return self.source.zip.getinfo(self.name).file_size
        if self.source.tar is not None:
            return self.source.tar[self.name].size
        return (self.source.path / self.name).stat().st_size

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its content as a stream. Raises ValueError for a pipe or a device in a folder, and for damage."""
        source = self.source
        if source.zip:
            with zip_errors(source.path), open_member(source.zip, self.name) as file:
                yield file
        elif source.tar is not None:
            with tar_files.open_part(source.path, source.tar[self.name]) as file:
                yield file
        else:
            if not (source.path / self.name).is_file():
                raise ValueError(f"{self}: not a file, but a pipe or a device")
            with (source.path / self.name).open("rb") as file:
                yield file

    def copy(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.source.path.is_dir():
            shutil.copyfile(self.source.path / self.name, target)
            return
        with self.open() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)

    def read(self, most: int = 16 * CHUNK) -> bytes:
        """The content of a small file. Raises ValueError when it has more than `most` bytes."""
        if self.size > most:
            raise ValueError(f"{self}: it has {self.size:,} bytes; at most {most:,} are read")
        with self.open() as file:
            return file.read(most)

    def load(self, target: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        """Copies the file to `target` and returns read(target). Raises ValueError that names the source."""
        self.copy(target)
        try:
            return read(target)
        except ValueError as problem:
            raise ValueError(str(problem).replace(str(target), str(self))) from None


def refuse_unpaired(images: Mapping[tuple[str, ...], Member], labels: Mapping[tuple[str, ...], Member]) -> None:
    """Raises ValueError for an image without a label of the same key, and for a label without an image."""
    for some, others, what in ((images, labels, "label"), (labels, images, "image")):
        if missing := [member for key, member in some.items() if key not in others]:
            raise ValueError(f"{missing[0]}: its {what} is missing ({len(missing)} of {len(some)} files are without)")


# ---------------------------------------------------------------------------------------------- the written folder


@dataclass(frozen=True)
class Pair:
    """An image with one label, to be written."""

    split: str
    name: str  # of the written files, without a suffix
    image: Member
    label: Member
    task: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.image.size + self.label.size

    def write(self, part: Path, convert: Callable[[np.ndarray, Path], None]) -> dict[str, str]:
        """Copies the image to part/rgb and the label to part/masks or part/depth; returns {column: file}.

        convert(label, file): gets the decoded label and its copy, which it may replace. Raises ValueError that names
        the source, also when image and label differ in size.
        """
        image, (height, width) = write_image(part, self.name, self.image)
        label = f"{LABEL_FOLDERS[self.task]}/{self.name}.png"
        stored = self.label.load(part / label, read_label)
        if stored.shape[:2] != (height, width):
            got = f"{stored.shape[1]}x{stored.shape[0]}"
            raise ValueError(f"{self.label}: it is {got}, but its image {self.image} is {width}x{height}")
        try:
            convert(stored, part / label)
        except ValueError as problem:
            raise ValueError(f"{self.label}: {problem}") from None
        return {"image": image, self.task: label}


def write_image(part: Path, name: str, image: Member) -> tuple[str, tuple[int, int]]:
    """Copies an image to part/rgb; returns the file, and height and width. Raises ValueError that names the source."""
    file = f"rgb/{name}{image.suffix}"
    return file, image.load(part / file, read_image).shape[:2]


def check_depth(stored: np.ndarray, path: Path) -> None:
    """The file stays as it is. Raises ValueError when it cannot be a depth map."""
    if stored.ndim != 2 or stored.dtype == np.uint8 or stored.dtype == bool:
        raise ValueError(f"a depth map has one 16-bit number a pixel; this file has {stored.shape}, {stored.dtype}")


def write_classes(path: Path, ids: np.ndarray, colors: Sequence[Sequence[int]]) -> None:
    """Writes ids (H, W) uint8 as an 8-bit PNG with the colors of the classes as its palette; 255 = no label, black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    write_png(path, ids, palette)


def write_list(path: Path, frames: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Writes a list file. frames: {column: file} each; '-' stands for a missing label."""
    lines = ["\t".join(frame.get(column, "-") for column in columns) + "\n" for frame in frames]
    path.write_text("".join(lines))


def finish(part: Path, output: Path, source: Path, description: Mapping[str, object], comment: str) -> dict[str, int]:
    """Writes dataset.yaml and reads the lists back; returns the number of frames of each split.

    Raises ValueError at `source` when a listed file is missing or outside of the folder, or a split is empty.
    """
    text = yaml.safe_dump(description, default_flow_style=None, sort_keys=False, width=120, allow_unicode=True)
    comment = "".join(f"# {line}\n" for line in comment.splitlines())
    (part / "dataset.yaml").write_text(comment + text, encoding="utf-8")
    folder = read_folder(part)
    try:
        lists = {split: read_list(folder, split) for split in folder.splits}
        for frame in chain(*lists.values()):
            for file in (frame.image, *frame.labels.values()):
                if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(part)):
                    raise ValueError(f"{frame.where}: {file} lies outside of the data set")
    except (ValueError, OSError) as problem:
        raise ValueError(f"{source}: {str(problem).replace(f'{part}/', '')}") from None
    counts = {split: len(frames) for split, frames in lists.items()}
    print(f"{output}: " + ", ".join(f"{count} {split} frames" for split, count in counts.items()))
    return counts


def write_frames(
    output: Path,
    frames: Sequence[tuple[str, Callable[[Path], dict[str, str]]]],
    size: int,
    source: Path,
    description: Mapping[str, object],
    comment: str,
) -> dict[str, int]:
    """Writes folder `output` with its lists and dataset.yaml, whole or not at all; the number of frames of each split.

    frames: (split, write), where write(folder) writes the files of the frame and returns {column: file}.
    size: bytes that they need at most. source: the archive that an error names.
    """
    with whole_folder(output) as part:
        refuse_full_disk(output.parent, size)
        rows = in_threads(lambda frame: frame[1](part), frames, "write")
        lists: dict[str, list[dict[str, str]]] = {split: [] for split in description["splits"]}
        for (split, _), row in zip(frames, rows, strict=True):
            lists[split].append(row)
        for split, chosen in lists.items():
            write_list(part / description["splits"][split], chosen, description["columns"])
        return finish(part, output, source, description, comment)


def write_data_set(
    output: Path,
    pairs: Sequence[Pair],
    converters: Mapping[str, Callable[[np.ndarray, Path], None]],
    description: Mapping[str, object],
    comment: str,
) -> dict[str, int]:
    """`write_frames` of frames with one label each. converters: what `Pair.write` does with the labels of each task."""
    frames = [(pair.split, partial(pair.write, convert=converters[pair.task])) for pair in pairs]
    size = sum(pair.size for pair in pairs)
    return write_frames(output, frames, size, pairs[0].label.source.path, description, comment)
