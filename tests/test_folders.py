"""List files and YAML files: only regular ones are read, and no more of them than makes sense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import folders
from folders import Folder, read_list
from sources.validate import list_frames
from user_input import text_files
from user_input.text_files import read_yaml


def folder_with(root: Path, train: str) -> Folder:
    return Folder(root, "set", {"train": train}, ("image",), {}, {})


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.txt")  # nobody writes: opening it would wait for ever
    return tmp_path / "pipe.txt"


@pytest.mark.parametrize("name", ["pipe.txt", "/dev/zero", "."])
def test_only_regular_files_are_lists(name, pipe):
    folder = folder_with(pipe.parent, name)
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        read_list(folder, "train")
    frames, faults = list_frames(folder, "train")
    assert not frames and [fault.kind for fault in faults] == ["unreadable list file"]


@pytest.mark.parametrize("name", ["pipe.txt", "/dev/zero"])
def test_only_regular_files_are_yaml(name, pipe):
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        read_yaml(pipe.parent / name)


def test_long_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("a.png\n" * 11)
    monkeypatch.setattr(folders, "MOST_FRAMES", 10)
    with pytest.raises(ValueError, match=r"train\.txt: 11 lines; at most 10 are read"):
        read_list(folder_with(tmp_path, "train.txt"), "train")
    monkeypatch.setattr(folders, "MOST_LIST_BYTES", 65)
    with pytest.raises(ValueError, match=r"train\.txt: more than 65 bytes"):
        read_list(folder_with(tmp_path, "train.txt"), "train")
    (tmp_path / "a.yaml").write_text("epochs: 1")
    assert read_yaml(tmp_path / "a.yaml") == {"epochs": "1"}
    monkeypatch.setattr(text_files, "MOST_YAML_BYTES", 8)
    with pytest.raises(ValueError, match=r"a\.yaml: more than 8 bytes"):
        read_yaml(tmp_path / "a.yaml")


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "train.txt").write_bytes("küche.png".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.txt: not a UTF-8 text file \(invalid .* at byte 1\)"):
        read_list(folder_with(tmp_path, "train.txt"), "train")
