"""Tar archives as `sources.archives.Source` reads them: right ones, and those that nobody should unpack."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import only_holds, write_zip
from official_boxes import write_tar

from sources import tar_files
from sources.archives import Source

LONG = "a/" + "very_long_name_" * 12 + ".txt"
FILES = {"a/1.txt": b"one", "a/b/2.txt": b"x" * 1500, "a/empty.txt": b"", LONG: b"y" * 512, "a/ü.txt": b"z"}


def content(path: Path) -> dict[str, bytes]:
    with Source(path) as source:
        return {member.name: member.read() for member in source.find("([^/]*)").values()}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.tar", "without_ending"])
def test_files_are_read_and_copied(form: int, name: str, here: Path) -> None:
    files = {**FILES}
    if form == tarfile.USTAR_FORMAT:  # which has no names of this length
        del files[LONG]
    path = write_tar(here / name, files, form)
    assert content(path) == files
    with Source(path) as source:
        for member in source.find("([^/]*)").values():
            key = member.name
            assert member.size == len(files[key])
            member.copy(here / "copy" / key)
            assert (here / "copy" / key).read_bytes() == files[key]
            with member.open() as file:
                assert file.read(2) + file.read() == files[key]
        with pytest.raises(ValueError, match=r"2\.txt: it has 1,500 bytes; at most 100 are read"):
            source.find(r"2\.txt")[()].read(100)


def test_archive_of_the_system(here: Path) -> None:
    """Names with ./, owners, and blocks of 10 kB."""
    for name, data in FILES.items():
        (here / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "in" / name).write_bytes(data)
    if os.system("tar --version > /dev/null 2>&1"):
        pytest.skip("needs tar")
    assert os.system("tar cf a.tar -C in .") == 0
    assert content(here / "a.tar") == {f"./{name}": data for name, data in FILES.items()}


def test_many_threads_read_one_archive(here: Path) -> None:
    files = {f"{number}.txt": os.urandom(50_000 + number) for number in range(40)}
    wrong = []
    with Source(write_tar(here / "a.tar", files)) as source:
        members = source.find("(.*)")

        def read() -> None:
            wrong.extend(key for (key,), member in members.items() if member.read() != files[key])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# ---------------------------------------------------------------------------------------------- what is refused


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: object) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("evil", tarfile.SYMTYPE, "a.tar: member 'evil' is a link, which is not accepted"),
        ("evil", tarfile.LNKTYPE, "is a link"),
        ("evil", tarfile.CHRTYPE, "a.tar: member 'evil' is a device or a pipe, which is not accepted"),
        ("evil", tarfile.BLKTYPE, "is a device or a pipe"),
        ("evil", tarfile.FIFOTYPE, "is a device or a pipe"),
        ("evil", b"V", "is a device or a pipe"),  # GNU's name of a volume
        ("evil", tarfile.GNUTYPE_SPARSE, "is a sparse file"),
        ("../evil", tarfile.REGTYPE, "'../evil' would be written outside of the output folder"),
        ("/evil", tarfile.REGTYPE, "'/evil' would be written outside"),
        ("a/../../evil", tarfile.REGTYPE, "would be written outside"),
        ("a\\..\\..\\evil", tarfile.REGTYPE, "would be written outside"),
        ("C:\\evil", tarfile.REGTYPE, "would be written outside"),
        ("a.txt", tarfile.REGTYPE, "it holds 'a.txt' twice"),
    ],
)
def test_unsafe_members_are_refused(name: str, kind: bytes, message: str, here: Path) -> None:
    (here / "a.tar").write_bytes(header("a.txt") + header(name, kind, linkname="a.txt") + END)
    with pytest.raises(ValueError, match=message):
        Source(here / "a.tar")
    only_holds(here, "a.tar")


def long_name(size: int) -> bytes:
    return header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("x", kind, len(records)) + records + bytes(-len(records) % 512)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    return f"{len(text) + 2}{text}".encode()


def negative(data: bytes) -> bytes:
    """The header with a size of -512, in base 256, and a right check sum."""
    data = data[:124] + b"\xff" * 10 + b"\xfe\x00" + data[136:148] + b" " * 8 + data[156:]
    return data[:148] + b"%06o\0 " % sum(data) + data[156:]


WHOLE = header("a.txt", size=700) + b"x" * 700 + bytes(324)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"<html>sorry</html>", "truncated header|bad checksum|invalid header"),
        (b"x" * 5000, "bad checksum|invalid header"),
        (WHOLE, "no header and no end mark at byte 1,536"),  # all its files, and no end mark: more may have followed
        (WHOLE[:1000], "a.txt ends at byte 1,212 of 1,000"),
        (WHOLE[:1212], "unexpected end of data|no end mark"),
        (WHOLE + WHOLE[:300], "no header and no end mark at byte 1,536"),
        (WHOLE + b"x" * 512 + END, "no header and no end mark at byte 1,536"),
        (WHOLE + WHOLE.replace(b"a.txt", b"b.txt"), "no header and no end mark|bad checksum"),
        (header("a.txt", size=2**40) + END, "a.txt ends at byte 1,099,511,628,288 of 1,536"),
        (long_name(2**40) + END, "a header of 1,099,511,628,288 bytes|a header of 1,099,511,627,776 bytes"),
        (long_name(2**17) + bytes(2**17) + WHOLE + END, "a header of 131,072 bytes"),
        (negative(header("a.txt")) + END, "a.txt ends at byte 0 of|invalid header|negative"),
        (negative(long_name(0)) + END, "a header of -512 bytes|invalid header"),
        (pax(record("size", "-512")) + WHOLE + END, "ends at byte|invalid header"),
        (pax(record("GNU.sparse.size", "9") + record("GNU.sparse.numblocks", "0")) + WHOLE + END, "sparse"),
        (header("x", tarfile.XHDTYPE, 2**30) + END, "a header of 1,073,741,824 bytes"),
        (gzip.compress(WHOLE + END, mtime=0), "a compressed tar archive; unpack it and give the folder"),
        (b"BZh91AY&SY", "a compressed tar archive"),
    ],
)
def test_damaged_archives_are_refused(data: bytes, message: str, here: Path) -> None:
    (here / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.tar: .*({message})") as problem:
        Source(here / "a.tar")
    assert "\n" not in str(problem.value)
    only_holds(here, "a.tar")


def test_every_cut_is_noticed(here: Path) -> None:
    """Up to the end mark; the zeros after it are padding."""
    whole = write_tar(here / "whole.tar", {"a/1.txt": b"1" * 600, "a/2.txt": b"2" * 10}).read_bytes()
    end = whole.rindex(b"2222222222") + 512 - whole.rindex(b"2222222222") % 512
    assert whole[end : end + 512] == bytes(512)
    for length in range(0, end + 512, 37):
        (here / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar: no tar archive, damaged or cut off .*; delete it"):
            Source(here / "cut.tar")


def test_file_that_shrinks_while_it_is_read(here: Path) -> None:
    path = write_tar(here / "a.tar", {"a.txt": b"x" * 5000})
    with Source(path) as source:
        member = source.find(r"a\.txt")[()]
        os.truncate(path, 2000)
        for use in (member.read, lambda: member.copy(here / "copy")):
            with pytest.raises(ValueError, match=r"a\.tar: it ends [\d,]+ bytes early"):
                use()


def test_number_of_files_is_limited(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_files, "MOST_FILES", 3)
    files = {f"{number}.txt": b"" for number in range(3)}
    assert content(write_tar(here / "a.tar", files)) == files
    with pytest.raises(ValueError, match=r"b\.tar: more than 3 files, the most that are read"):
        Source(write_tar(here / "b.tar", {**files, "3.txt": b""}))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: write_tar(path, FILES), True),
        (lambda path: write_zip(path, FILES), False),
        (lambda path: path.write_bytes(b""), False),
    ],
)
def test_tar_is_told_from_zip_by_its_content(write: Callable[[Path], object], expected: bool, here: Path) -> None:
    write(here / "archive")
    assert tar_files.is_tar(here / "archive") is expected
    for name in ("a.tar", "a.TAR", "a.tar.gz", "a.tgz"):
        (here / name).write_bytes(io.BytesIO(b"x").read())
        assert tar_files.is_tar(here / name)
