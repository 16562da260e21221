"""Reading picture files: none starts a program, and none takes more memory than its pixels explain."""

from __future__ import annotations

import ast
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_layout import MODULES

from config import Config
from dataset import Frames
from folders import Folder, Frame
from geometry import CACHED, argmax_resized, resize_raw
from images import MAX_PIXELS, MAX_SIDE, count_pixels, open_image, read_image, read_label, row_parts, to_rgb
from sources.validate import check_frame
from tasks import Depth, Segmentation
from tasks.depth import softplus
from webpage.viewer import Viewer

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n(mark) (w) file closefile\nshowpage\n"


def frame_of(path: Path) -> Frame:
    return Frame(path, {}, "train.txt:1")


def through_training(path: Path) -> None:
    folder = Folder(path.parent, "set", {}, ("image",), {}, {})
    Frames(folder, [frame_of(path)], {}, Config(), train=True)[0, 0]


def through_check(path: Path) -> None:
    faults = check_frame(frame_of(path), Folder(path.parent, "set", {}, ("image",), {}, {}), {}).faults
    raise ValueError(faults[0].what if faults else "")


READERS: dict[str, Callable[[Path], object]] = {
    "inference": read_image, "labels": read_label, "check": through_check, "training": through_training,
    "page": lambda path: Viewer({}, path.parent, "eager", "cpu", 10**6).read(path),
}  # fmt: skip


@pytest.fixture
def fake_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `gs`, first on the path, would leave when it is started."""
    (tmp_path / "bin").mkdir()
    mark, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow looks for it once
    return mark


@pytest.mark.parametrize("reader", READERS)
def test_postscript_that_is_called_photo_starts_no_program(reader, fake_ghostscript, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(POSTSCRIPT)
    assert count_pixels(path) == 0
    with pytest.raises(ValueError, match=r"photo\.jpg: not an image that can be read; known formats: PNG"):
        READERS[reader](path)
    assert not fake_ghostscript.exists()


def test_ghostscript_would_have_been_started(fake_ghostscript, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(Exception, match="gs"), Image.open(tmp_path / "photo.jpg") as picture:
        picture.load()
    assert fake_ghostscript.exists()


@pytest.mark.parametrize("file", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_picture_is_opened_with_the_list_of_formats(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
            assert [ast.unparse(word.value) for word in node.keywords if word.arg == "formats"] == ["FORMATS"]


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (2**13 + 1, 2**13)])
def test_sides_and_pixels_have_limits(size, tmp_path):
    Image.new("1", size).save(tmp_path / "line.png")
    with pytest.raises(ValueError, match=r"line\.png: too large; at most 67,108,864 pixels and sides of 65,536"):
        open_image(tmp_path / "line.png")
    assert MAX_PIXELS == 67_108_864


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "F"])
def test_conversion_needs_little_more_memory_than_its_result(mode, tmp_path):
    height, width = 3000, 700
    picture = Image.new(mode, (width, height))
    picture.getexif()[0x0112] = 1
    assert peak_bytes(lambda: to_rgb(picture)) < 2.5 * height * width * 3


def test_rows_that_are_converted_apart_fit_together():
    """The white of 16 bits a pixel is that of the whole picture, and a palette's transparency that of all its rows."""
    values = np.arange(600, dtype=np.float32)[:, None].repeat(3, 1)  # above 255 in the last rows only
    rows = to_rgb(Image.fromarray(values))[:, 0, 0]
    assert rows[0] == 0 and rows[599] == round(599 / 65535 * 255) and (np.diff(rows.astype(int)) >= 0).all()
    palette = Image.new("P", (2, 600), 7)
    palette.putpalette([0, 0, 0] * 7 + [10, 20, 30])
    palette.putpixel((1, 599), 0)
    palette.info["transparency"] = 0
    pixels = to_rgb(palette)
    assert (pixels[:, 0] == (10, 20, 30)).all() and (pixels[599, 1] == 255).all()


# ------------------------------------------------------------------------------------- predictions of large photos


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory of numpy arrays that a call had at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_prediction_is_drawn_and_saved_without_copies(tmp_path):
    depth = np.full((4000, 3000), 2, np.float32)
    task = Segmentation(classes=("wall", "floor"), colors=((1, 2, 3), (4, 5, 6)))
    assert peak_bytes(lambda: task.legend(depth.astype(np.uint8))) < 30e6  # 12 million pixels, and a part's counts
    assert peak_bytes(lambda: Depth().save(depth, tmp_path / "depth.png")) < 50e6  # 24 MB are written
    assert np.array_equal(read_label(tmp_path / "depth.png"), np.full((4000, 3000), 2000))
    assert peak_bytes(lambda: softplus(torch.from_numpy(depth))) < 30e6
    assert max(part.size for part in row_parts(depth)) <= 2**20 and len(row_parts(depth[:2])) == 1


def test_large_pictures_are_interpolated_in_parts(monkeypatch):
    """One cell between outputs of the network may have tens of thousands of pixels."""
    sizes, lerp = [], torch.lerp
    monkeypatch.setattr(torch, "lerp", lambda *values: sizes.append((made := lerp(*values)).numel()) or made)
    raw = torch.randn(1, 10, 9, 12)
    found = argmax_resized(raw, (900, 1200))
    assert max(sizes) <= CACHED
    monkeypatch.undo()
    same = found == resize_raw(raw, (900, 1200)).argmax(1)
    assert same.float().mean() > 0.9999  # rounding decides where two are equal
