"""Files that people and attackers give to programs that read images, and checkpoints that are not as they should be."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from networks.checkpoints import read_checkpoint

HEIGHT, WIDTH = 48, 64
FORMATS = {".png": {}, ".jpg": {"quality": 90}, ".tif": {"compression": "tiff_lzw"}, ".webp": {"quality": 80}}


@dataclass(frozen=True)
class Case:
    group: str
    name: str  # of the file
    content: bytes | Callable[[Path], None]
    # "read": as a picture of this size; "refused": in a line; "either": it is not said; "ignored": it is no image file.
    outcome: str
    size: tuple[int, int] = (HEIGHT, WIDTH)
    pixels: np.ndarray | None = None  # what it must be read as, exactly


def picture() -> np.ndarray:
    """(48, 64, 3) uint8: slopes and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    slopes = np.stack([4 * rows, 3 * columns, 255 - 2 * rows - 2 * columns], axis=2)
    return (slopes + rng.integers(0, 20, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, suffix: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    kinds = {".jpg": "jpeg", ".tif": "tiff", ".pgm": "ppm"}
    image.save(file, format=kinds.get(suffix, suffix[1:]), **options)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------- damage


def damaged() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for suffix, options in FORMATS.items():
        whole = encoded(picture(), suffix, **options)
        kind = suffix[1:]
        changed = "refused" if suffix == ".png" else "either"  # the only one of them with check sums
        for percent in range(5, 100, 5):
            yield Case("truncated", f"cut{percent}{suffix}", whole[: len(whole) * percent // 100], "refused")
        for number in range(15):
            content = bytearray(whole)
            content[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
            yield Case("one bit changed", f"bit{number}{suffix}", bytes(content), changed)
        for number in range(5):
            start = (number * len(whole)) // 5
            content = whole[:start] + bytes(32) + whole[start + 32 :]
            yield Case("32 bytes zero", f"zero{number}{suffix}", content, changed if number else "refused")
        yield Case("no image inside", f"text_{kind}{suffix}", b"This is no picture.\n", "refused")
        yield Case("no image inside", f"empty_{kind}{suffix}", b"", "refused")
        yield Case("no image inside", f"noise_{kind}{suffix}", rng.bytes(5000), "refused")
        yield Case("no image inside", f"html_{kind}{suffix}", b"<html><body>404 Not Found</body></html>", "refused")
        other = next(item for item in FORMATS if item != suffix)
        renamed = encoded(picture(), other, **FORMATS[other])
        yield Case("another format's ending", f"is_{other[1:]}{suffix}", renamed, "read")


# ---------------------------------------------------------------------------------------------- kinds of images


def kinds() -> Iterator[Case]:
    image = picture()
    grey = image[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)

    def case(name: str, content: bytes, pixels: np.ndarray | None = None, size: tuple[int, int] = (HEIGHT, WIDTH)):
        return Case("kinds of images", name, content, "read", size, pixels)

    palette = Image.fromarray(image).quantize(64)
    clear = Image.fromarray(np.dstack([image, np.full((HEIGHT, WIDTH), 255, np.uint8)]), "RGBA")
    hidden = Image.fromarray(np.dstack([image, np.zeros((HEIGHT, WIDTH), np.uint8)]), "RGBA")
    white = np.full_like(image, 255)
    deep = grey.astype(np.uint16) * 257
    float_image = Image.fromarray(grey.astype(np.float32) / 255)
    holes = grey.astype(np.float32) / 255
    holes[:5], holes[5:9] = np.nan, np.inf
    yield case("rgb.png", encoded(image, ".png"), image)
    yield case("grey.png", encoded(grey, ".png"), three)
    yield case("one_bit.png", encoded(Image.fromarray(grey).convert("1"), ".png"))
    yield case("palette.png", encoded(palette, ".png"), np.array(palette.convert("RGB")))
    yield case("palette_transparent.png", encoded(palette, ".png", transparency=0))
    yield case("rgba_opaque.png", encoded(clear, ".png"), image)
    yield case("rgba_transparent.png", encoded(hidden, ".png"), white)
    yield case("grey_alpha.png", encoded(Image.fromarray(grey).convert("LA"), ".png"), three)
    yield case("grey_16_bits.png", encoded(deep, ".png"), three)
    yield case("rgb_16_bits.png", cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)[1].tobytes())
    yield case("progressive.jpg", encoded(image, ".jpg", progressive=True))
    yield case("grey.jpg", encoded(grey, ".jpg"))
    yield case("cmyk.jpg", encoded(Image.fromarray(image).convert("CMYK"), ".jpg"))
    yield case("cmyk.tif", encoded(Image.fromarray(image).convert("CMYK"), ".tif"))
    yield case("lab.tif", encoded(Image.fromarray(image).convert("LAB"), ".tif"))
    yield case("ycbcr.tif", encoded(Image.fromarray(image).convert("YCbCr"), ".tif", compression="jpeg"))
    yield case("float.tif", encoded(float_image, ".tif"), three)
    yield case("float_with_holes.tif", encoded(Image.fromarray(holes), ".tif"))
    yield case("grey_16_bits.tif", encoded(deep, ".tif"), three)
    yield case("grey_32_bits.tif", encoded(Image.fromarray(grey.astype(np.int32) * 1000), ".tif"))
    pages = {"save_all": True, "append_images": [Image.fromarray(image[::-1])]}
    yield case("two_pages.tif", encoded(image, ".tif", **pages), image)
    yield case("deflate.tif", encoded(image, ".tif", compression="tiff_adobe_deflate"), image)
    yield case("lossless.webp", encoded(image, ".webp", lossless=True), image)
    yield case("alpha.webp", encoded(clear, ".webp", lossless=True), image)
    yield case("animated.gif", encoded(palette, ".gif", save_all=True, append_images=[palette.rotate(180)]))
    yield case("plain.bmp", encoded(image, ".bmp"), image)
    yield case("plain.ppm", encoded(image, ".ppm"), image)
    yield case("plain.pgm", encoded(grey, ".pgm"), three)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = orientation >= 5
        size = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
        yield case(f"orientation{orientation}.jpg", encoded(image, ".jpg", exif=exif), size=size)
    for name, height, width in (
        ("1x1", 1, 1), ("1x2", 2, 1), ("20000x1", 1, 20000), ("1x20000", 20000, 1), ("7x5", 5, 7), ("3000x2", 2, 3000),
    ):  # fmt: skip
        flat = np.full((height, width, 3), 90, np.uint8)
        yield Case("odd sizes", f"{name}.png", encoded(flat, ".png"), "read", (height, width), flat)


# ---------------------------------------------------------------------------------------------- attacks


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """A PNG file with this head, whatever follows."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, payload in (head, *chunks, (b"IDAT", data), (b"IEND", b"")):
        content += struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
    return content


def flat_png(width: int, height: int) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    return png_of(width, height, data=b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()]))


def attacks() -> Iterator[Case]:
    def case(name: str, content: bytes | Callable[[Path], None], outcome: str = "refused") -> Case:
        return Case("bombs and tricks", name, content, outcome)

    yield case("head_of_60000x60000.png", png_of(60_000, 60_000))
    yield case("head_of_2147483647.png", png_of(2**31 - 1, 2**31 - 1))
    yield case("zero_wide.png", png_of(0, 10))
    yield case("81_megapixels_in_79_kB.png", flat_png(9000, 9000))
    inflated = zlib.compress(bytes(200_000_000), 9)
    note = (b"zTXt", b"Comment\0\0" + inflated)
    small = zlib.compress(bytes((WIDTH + 1) * HEIGHT))
    yield case("200_MB_of_comment.png", png_of(WIDTH, HEIGHT, note, data=small))
    yield case("200_MB_of_pixels_too_many.png", png_of(WIDTH, HEIGHT, data=inflated), "read")
    gif = bytearray(encoded(Image.new("P", (8, 8)), ".gif"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    yield case("canvas_of_65535.gif", bytes(gif))
    jpeg = bytearray(encoded(picture(), ".jpg"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65500, 65500)
    yield case("head_of_65500.jpg", bytes(jpeg))
    bmp = bytearray(encoded(picture(), ".bmp"))
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    yield case("head_of_2_to_30.bmp", bytes(bmp))
    yield case("ppm_of_a_billion.ppm", b"P6 40000 40000 255\n")
    tiff = bytearray(encoded(picture(), ".tif"))
    yield case("offsets_point_to_themselves.tif", bytes(tiff[:4]) + struct.pack("<I", 4) + bytes(tiff[8:]))
    yield case("a_gigabyte_of_holes.png", lambda path: os.truncate(touched(path), 2**30))
    yield case("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n")
    yield case("windows_metafile.png", b"\xd7\xcd\xc6\x9a" + bytes(100))
    yield case("line_of_1100000.png", flat_png(1_100_000, 1))
    yield case("script.png", b"#!/bin/sh\ntouch /tmp/executed\n")
    yield case("pickle.png", b"cos\nsystem\n(S'touch executed'\ntR.")


def touched(path: Path) -> Path:
    path.touch()
    return path


def names() -> Iterator[Case]:
    content = encoded(picture(), ".png")
    for name in (
        "two\nlines.png", "tab\there.png", "Wohnküche 木 🛋.png", "cafe\u0301.png", "-rf.png", "--output.png",
        "$(touch executed).png", "a;b&c|d.png", "quote'\".png", "percent%s%n.png", " blanks around .png", "..png",
        "...png.png", "con.png", "a.tar.png", "UPPER.PNG", os.fsdecode(b"not_utf8_\xff\xfe.png"),
    ):  # fmt: skip
        yield Case("names", name, content, "read")
    # Inference refuses it: the names of its outputs would be longer still.
    yield Case("names", "n" * 251 + ".png", content, "either")


def no_files() -> Iterator[Case]:
    def loop(path: Path) -> None:
        path.symlink_to(path.name)

    def tree(path: Path) -> None:
        path.mkdir()
        (path / "up").symlink_to("..", target_is_directory=True)

    for name, make in (
        ("link_to_itself.png", loop),
        ("link_to_nothing.png", lambda path: path.symlink_to("nowhere/at/all.png")),
        ("pipe.png", os.mkfifo),
        ("folder.png", lambda path: path.mkdir()),
        ("folder_with_a_loop", tree),
    ):
        yield Case("links, pipes, folders", name, make, "ignored")
    if os.geteuid():
        yield Case("links, pipes, folders", "secret.png", lambda path: touched(path).chmod(0), "refused")


def all_cases() -> list[Case]:
    return [*damaged(), *kinds(), *attacks(), *names(), *no_files()]


def write_cases(folder: Path, cases: list[Case]) -> None:
    folder.mkdir(parents=True)
    for case in cases:
        path = folder / case.name
        path.write_bytes(case.content) if isinstance(case.content, bytes) else case.content(path)


# ---------------------------------------------------------------------------------------------- checkpoints


class Code:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def checkpoints(good: Path) -> Iterator[tuple[str, str, bytes | dict[str, object]]]:
    """(group, name, content: bytes, or what torch.save writes) made from a good checkpoint."""
    rng = np.random.default_rng(2)
    whole, content = good.read_bytes(), read_checkpoint(good)
    for percent in range(0, 100, 5):
        yield "truncated", f"cut{percent}.pt", whole[: len(whole) * percent // 100]
    for number in range(40):
        flipped = bytearray(whole)
        flipped[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        yield "one bit changed", f"bit{number}.pt", bytes(flipped)
    network = content["network"]
    first = next(iter(network))
    classes = [{"name": f"class_{i}", "color": [i, i, i]} for i in range(7)]
    yield "code inside", "code.pt", {**content, "metrics": Code()}
    yield "code inside", "only_code.pt", {"network": Code()}
    yield "code inside", "plain_pickle.pt", pickle.dumps(Code())
    yield "code inside", "pickle_in_old_format.pt", pickle.dumps({"format": content["format"], "network": Code()}, 2)
    yield "wrong content", "other_shape.pt", {**content, "network": {**network, first: network[first][..., :1]}}
    yield "wrong content", "no_weights.pt", {**content, "network": {}}
    yield "wrong content", "weights_are_words.pt", {**content, "network": "none"}
    yield "wrong content", "weights_are_numbers.pt", {**content, "network": dict.fromkeys(network, 1.0)}
    yield "wrong content", "fewer_weights.pt", {**content, "network": {first: network[first]}}
    yield "wrong content", "newer.pt", {**content, "version": 99}
    yield "wrong content", "no_version.pt", {k: v for k, v in content.items() if k != "version"}
    yield "wrong content", "no_config.pt", {k: v for k, v in content.items() if k != "config"}
    yield "wrong content", "of_others.pt", {"model": network, "epoch": 3}
    yield "wrong content", "a_list.pt", [1, 2, 3]  # type: ignore[misc]
    tasks, config = content["tasks"], content["config"]
    for name, task, field, value in (
        ("unknown_activation", "depth", "activation", "__import__"), ("max_m_is_nan", "depth", "max_m", float("nan")),
        ("few_colors", "segmentation", "colors", [[1, 2, 3]]), ("numbers_for_names", "segmentation", "classes", [1, 2]),
        ("outputs_beyond", "segmentation", "outputs", [999]),
    ):  # fmt: skip
        yield "wrong content", f"{name}.pt", {**content, "tasks": {**tasks, task: {**tasks[task], field: value}}}
    yield "wrong content", "no_tasks.pt", {**content, "tasks": {}}
    for name, change in (
        ("nan", lambda w: torch.full_like(w, torch.nan)), ("int8", lambda w: w.to(torch.int8)),
        ("complex", lambda w: w.to(torch.complex64)), ("sparse", lambda w: w.to_sparse()),
        ("meta", lambda w: w.to("meta")),
    ):  # fmt: skip
        yield "wrong content", f"{name}_weights.pt", {**content, "network": {**network, first: change(network[first])}}
    thin = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in network.items()}
    yield "wrong content", "weights_said_once.pt", {**content, "network": thin}
    yield "wrong content", "huge_encoder.pt", {**content, "config": {**config, "encoder": "convnextv2_huge"}}
    other_classes = {**tasks, "segmentation": {**tasks["segmentation"], "classes": classes}}
    yield "wrong content", "other_classes.pt", {**content, "tasks": other_classes}
    yield "wrong content", "unknown_task.pt", {**content, "tasks": {"smell": tasks["segmentation"]}}
    yield "wrong content", "unknown_setting.pt", {**content, "config": {**content["config"], "colors": 1}}
    yield "wrong content", "unknown_encoder.pt", {**content, "config": {**content["config"], "encoder": "x" * 1000}}
    yield "wrong content", "a_billion_wide.pt", {**content, "config": {**content["config"], "decoder_width": 10**9}}
    yield "no checkpoint", "empty.pt", b""
    yield "no checkpoint", "text.pt", b"weights\n"
    yield "no checkpoint", "a_letter.pt", b"M"  # found by tests/fuzz.py
    yield "no checkpoint", "picture.pt", encoded(picture(), ".png")
    yield "no checkpoint", "zeros.pt", bytes(100_000)
