"""Image files: reading what people have (bounded formats, sizes and memory), and writing PNG and JPEG."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils import whole_file

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
SAMPLE = Path("media/photo.jpg")  # media/README.md says whose it is
# Pillow's own decoders, which work inside this process. Without a list it goes by the content: it would run Ghostscript
# on PostScript that is called photo.jpg. (JPEG includes the several pictures of a phone's MPO file.)
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
MAX_PIXELS = 2**26  # 67 million: a larger picture is an attack or a mistake for this network
MAX_SIDE = 2**16  # pixels: Pillow and the encoders of our outputs fail beyond it
JPEG_SIDE = 65_500  # what the format allows
ROWS = 256  # that are converted at once
FILM_DIAGONAL_MM = math.hypot(36, 24)
FILM_FOCAL_MM = (4, 4000)  # from the widest to the longest lenses that there are


def write_png(path: Path, image: np.ndarray, palette: np.ndarray | None = None) -> None:
    """image (H, W, 3) uint8, (H, W) uint8 or (H, W) uint16; palette (256, 3) uint8 makes (H, W) uint8 indexed.

    Compressed for speed: with the usual settings, writing takes longer than the network (README, Speed).
    """
    if palette is None:
        data = cv2.imencode(".png", to_bgr(image) if image.ndim == 3 else image)[1].tobytes()
    else:  # which OpenCV does not write
        picture, file = Image.fromarray(image), io.BytesIO()
        picture.putpalette(palette.astype(np.uint8).tobytes())
        picture.save(file, format="png", compress_level=1)
        data = file.getvalue()
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def to_bgr(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> as OpenCV has it. OpenCV takes a view, image[..., ::-1], too, but copies it slowly: that alone
    takes more time than to encode a JPEG file."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """image (H, W, 3) uint8, for looking at: a tenth of the time of a PNG file where it holds a photo.

    Made smaller where it is longer than the format allows.
    """
    if max(image.shape) > JPEG_SIDE:
        scale = JPEG_SIDE / max(image.shape)
        height, width = (max(1, int(scale * side)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", to_bgr(image), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
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
    """Turns the errors of Pillow into ValueError that names the file and says what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    except PermissionError:
        raise ValueError(f"{path}: not allowed to read it") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that can be read; known formats: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path}: too large; at most {MAX_PIXELS:,} pixels and sides of {MAX_SIDE:,} are read"
        ) from None
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
        picture = Image.open(path, formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
            raise Image.DecompressionBombError
        picture.load()
    return picture


def count_pixels(path: Path) -> int:
    """Width times height by the file's header, without decoding it; 0 for a file that `open_image` refuses."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.width * picture.height
    except Exception:  # whatever is wrong with it, `open_image` will say it
        return 0


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Any Pillow mode -> (H, W, 3) uint8, upright by its EXIF orientation, transparent parts on white.

    Turns `picture` itself, and converts some rows at a time: copies of a large photo are hundreds of megabytes each.
    """
    ImageOps.exif_transpose(picture, in_place=True)
    deep = picture.mode.startswith("I") or picture.mode == "F"
    full = full_scale(picture) if deep else 0.0
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    for top, band in bands(picture):
        if deep:
            pixels[top : top + ROWS] = (values_of(band).clip(0) / full * 255).round().astype(np.uint8)[..., None]
            continue
        if "A" in band.getbands() or "transparency" in band.info:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        pixels[top : top + ROWS] = np.asarray(band.convert("RGB"))
    return pixels


def bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, the next ROWS rows) from top to bottom."""
    for top in range(0, picture.height, ROWS):
        yield top, picture.crop((0, top, picture.width, min(top + ROWS, picture.height)))


def values_of(band: Image.Image) -> np.ndarray:
    """(H, W) float64 of a picture of 16 or 32 bits a pixel; what is not finite is 0."""
    return np.nan_to_num(np.asarray(band).astype(np.float64), posinf=0, neginf=0)


def full_scale(picture: Image.Image) -> float:
    """What is white in a picture of 16 or 32 bits a pixel: the first usual range that holds all values, or the largest
    value. Pillow's own conversion clips at 255."""
    top = max(float(values_of(band).max(initial=0)) for _, band in bands(picture))
    ranges = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    return next((limit for limit in ranges if top <= limit), top)


def row_parts(array: np.ndarray) -> list[np.ndarray]:
    """(H, ...) -> views of some rows each: what is computed of one part at a time needs no copies of a large photo."""
    return np.array_split(array, max(1, -(-array.size // 2**20)))


def read_photo(path: str | Path) -> tuple[np.ndarray, float | None]:
    """An image file -> (H, W, 3) uint8 RGB, see `open_image` and `to_rgb`, and its focal length in units of its longer
    side, see `exif_focal`."""
    picture = open_image(path)
    focal = exif_focal(picture)
    with reading(Path(path)):
        return to_rgb(picture), focal


def read_image(path: str | Path) -> np.ndarray:
    """An image file -> (H, W, 3) uint8 RGB, see `open_image` and `to_rgb`."""
    return read_photo(path)[0]


def exif_focal(picture: Image.Image) -> float | None:
    """The focal length by EXIF's FocalLengthIn35mmFilm in units of the picture's longer side; None = it does not say.

    The field of view over the diagonal is that of 35 mm film with this focal length (CIPA DCG-001): of pictures of
    other shapes, the widths differ. A picture that was cropped afterwards still says what it said before.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            focal_mm = float(picture.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm])
    except Exception:  # none; or damaged, on which Pillow's parser raises whatever it stumbles over
        return None
    if not FILM_FOCAL_MM[0] <= focal_mm <= FILM_FOCAL_MM[1]:  # 0 says "not known"
        return None
    return focal_mm / FILM_DIAGONAL_MM * math.hypot(*picture.size) / max(picture.size)


def read_label(path: Path) -> np.ndarray:
    """A label file as it is stored: (H, W) integers (indices of a palette image), or (H, W, 3)."""
    return np.array(open_image(path))
