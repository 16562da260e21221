"""Uncompressed tar archives, read without unpacking them: an index of the files inside, and the bytes of one.

tarfile only parses the headers: it never writes a file, so no link, device or owner of an archive comes to the disk.
A tar archive has no check sums of its content. A damaged file shows when it is decoded, a truncated archive here.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import NamedTuple

COPY = 1 << 16  # bytes that are read at once
BLOCK = 512  # bytes: headers and contents start at multiples of it, and a block of zeros ends the archive
MOST_HEADER_BYTES = 2**16  # of one long name or extended header, whose length the archive says
MOST_FILES = 2**18  # VOC 2012, the largest, has 40,000
GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"


class Part(NamedTuple):
    """Where the content of a file lies in the archive."""

    start: int  # byte
    size: int  # bytes


class HeaderReader(io.RawIOBase):
    """A file for tarfile: it refuses to read more at once than a header may have, so that memory is bounded."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def is_tar(path: Path) -> bool:
    """Whether a file is meant as a tar archive, by its name or its first header."""
    name = path.name.lower()
    if name.endswith((".tar", ".tgz")) or ".tar." in name:
        return True
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def read_index(path: Path) -> dict[str, Part]:
    """{name: where} of the files in a tar archive.

    Raises ValueError for an archive that is compressed, damaged or cut off, and for one with links, devices, two files
    of one name, or more than MOST_FILES.
    """
    index: dict[str, Part] = {}
    total = path.stat().st_size
    with path.open("rb") as file:
        if file.read(6).startswith((GZIP, BZIP2, XZ)):
            raise ValueError(f"{path}: a compressed tar archive; unpack it and give the folder")
        file.seek(0)
        try:
            tar = tarfile.TarFile(fileobj=HeaderReader(file), mode="r", encoding="utf-8")
            while (member := tar.next()) is not None:
                tar.members.clear()  # which would grow with the archive
                refuse_unsafe_kind(member, path)
                end = member.offset_data + member.size
                if member.size < 0 or end > total:
                    raise tarfile.ReadError(f"{member.name} ends at byte {end:,} of {total:,}")
                if member.name in index:
                    raise ValueError(f"{path}: it holds {member.name!r} twice")
                if len(index) == MOST_FILES:
                    raise ValueError(f"{path}: more than {MOST_FILES:,} files, the most that are read")
                if member.isreg():
                    index[member.name] = Part(member.offset_data, member.size)
            # tarfile takes whatever is no header for the end.
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset:,}")
        except (tarfile.TarError, OverflowError, UnicodeError) as problem:
            advice = "delete it and download it again"
            raise ValueError(f"{path}: no tar archive, damaged or cut off ({problem}); {advice}") from None
    return index


def refuse_unsafe_kind(member: tarfile.TarInfo, path: Path) -> None:
    """Raises ValueError for what is neither a plain file nor a folder."""
    if member.issym() or member.islnk():
        raise ValueError(f"{path}: member {member.name!r} is a link, which is not accepted")
    if member.issparse() or not (member.isreg() or member.isdir()):
        kind = "a sparse file" if member.issparse() else "a device or a pipe"
        raise ValueError(f"{path}: member {member.name!r} is {kind}, which is not accepted")


def open_part(path: Path, part: Part) -> io.BufferedReader:
    """The content of a file in an archive. Several threads may each have one. Reading raises ValueError when it ends
    early."""
    return io.BufferedReader(PartReader(path, part), COPY)


class PartReader(io.RawIOBase):
    """`open_part` without a buffer: a read may give less than was asked for."""

    def __init__(self, path: Path, part: Part) -> None:
        self.path, self.left = path, part.size
        self.file = path.open("rb")
        self.file.seek(part.start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self.file.readinto(memoryview(buffer)[: self.left])
        if not count and self.left and len(buffer):
            raise ValueError(f"{self.path}: it ends {self.left:,} bytes early: it has changed since it was opened")
        self.left -= count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()
