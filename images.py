"""Image files and pictures: reading what people have, writing, colours, panels side by side."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import whole_file

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
SAMPLE = Path("media/sample.jpg")
MAX_PIXELS = 2**26  # 67 million: a larger picture is an attack or a mistake for this network
JPEG_SIDE = 65_500  # what the format allows


def write_png(path: Path, image: np.ndarray, palette: np.ndarray | None = None) -> None:
    """image (H, W, 3) uint8, (H, W) uint8 or (H, W) uint16; palette (256, 3) uint8 makes (H, W) uint8 indexed.

    Compressed for speed: with the usual settings, writing takes longer than the network (README, Speed).
    """
    if palette is None:
        data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()
    else:  # which OpenCV does not write
        picture, file = Image.fromarray(image), io.BytesIO()
        picture.putpalette(palette.astype(np.uint8).tobytes())
        picture.save(file, format="png", compress_level=1)
        data = file.getvalue()
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """image (H, W, 3) uint8, for looking at: a tenth of the time of a PNG file where it holds a photo.

    Made smaller where it is longer than the format allows.
    """
    if max(image.shape) > JPEG_SIDE:
        scale = JPEG_SIDE / max(image.shape)
        height, width = (max(1, int(scale * side)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def find_images(source: Path, output: Path) -> list[Path]:
    """The image files of a folder and its sub-folders, or the one file. What is in `output` is left out."""
    if source.is_file():
        return [source]
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    inside_output = output.resolve()
    if inside_output in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"--output {output} holds the input {source}: results and images would mix; choose another")
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and inside_output not in path.resolve().parents
    ]
    if not found:
        raise FileNotFoundError(f"{source}: no image in it; known endings: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What Pillow raises in here becomes a ValueError that says what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    except PermissionError:
        raise ValueError(f"{path}: not allowed to read it") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that can be read") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: more than {MAX_PIXELS} pixels") from None
    # Its decoders raise whatever their parsing stumbles over; each means that the file is damaged.
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
        zlib.error, AttributeError, ZeroDivisionError, RuntimeError,
    ) as problem:  # fmt: skip
        raise ValueError(f"{path}: damaged or truncated image ({problem})") from None


def open_image(path: str | Path) -> Image.Image:
    """The decoded file. Raises FileNotFoundError, or ValueError that says what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with reading(path):
        picture = Image.open(path)
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        picture.load()
    return picture


def count_pixels(path: Path) -> int:
    """As the file's head says, without decoding it; 0 when it does not."""
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except Exception:  # whatever is wrong with it, `open_image` will say it
        return 0


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Any Pillow mode -> (H, W, 3) uint8, upright by its EXIF orientation, transparent parts on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 and 32 bits a pixel: Pillow would clip at 255
        values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0, neginf=0)
        top = values.max(initial=0)
        ranges = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
        full = next((limit for limit in ranges if top <= limit), top)
        return np.repeat((values.clip(0) / full * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def read_image(path: str | Path) -> np.ndarray:
    """An image file -> (H, W, 3) uint8 RGB, see `open_image` and `to_rgb`."""
    picture = open_image(path)
    with reading(Path(path)):
        return to_rgb(picture)


def read_label(path: Path) -> np.ndarray:
    """A label file as it is stored: (H, W) integers (indices of a palette image), or (H, W, 3)."""
    return np.array(open_image(path))


# ---------------------------------------------------------------------------------------------- pictures
