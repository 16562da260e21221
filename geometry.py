"""Geometry of pictures: sizes, views (the random crops of a training), resizing, cameras and normals."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config

CACHED = 2**21  # numbers of a part of a computation that should stay in the caches of a processor
BAND = 2**24  # numbers of a part of a computation on a GPU: enough to keep it busy, and little of its memory
LEAST_SIDE = 32  # pixels of a side of an image: the coarsest features of an encoder span as many


@dataclass(frozen=True)
class View:
    """A crop of a frame: the frame is resized, then mirrored, rotated and shifted."""

    frame_size: tuple[int, int]  # height, width of the frame
    zoomed_size: tuple[int, int]  # height, width that it is resized to
    turn: np.ndarray  # (2, 3) float64, from pixel centres of the zoomed frame to pixel centres of the crop
    height: int
    width: int
    zoom: float = 1.0  # zoomed_size over the size at which the network sees frames in evaluation
    mirror: bool = False
    angle: float = 0.0  # degrees by which the picture is turned, as in cv2.getRotationMatrix2D

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3), from pixel centres of the frame to pixel centres of the crop."""
        y, x = (zoomed / frame for zoomed, frame in zip(self.zoomed_size, self.frame_size, strict=True))
        return self.turn @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])

    def sample(self, label: np.ndarray, fill: float) -> np.ndarray:
        """label (H, W) or (H, W, 3) -> the crop, each pixel from the nearest one of the frame; `fill` outside."""
        size = (self.width, self.height)
        return cv2.warpAffine(label, self.matrix, size, flags=cv2.INTER_NEAREST, borderValue=(fill,) * 4)

    def resample(self, image: np.ndarray, fill: tuple[float, float, float]) -> np.ndarray:
        """image (H, W, 3) -> the crop, averaged where it shrinks; `fill` outside.

        It is resized like an image in evaluation. Unless the view is rotated, its pixels are then copied: if views
        were less sharp than images in evaluation, the network would take sharpness for distance.
        """
        zoomed = resize_image(image, *self.zoomed_size)
        return cv2.warpAffine(zoomed, self.turn, (self.width, self.height), flags=cv2.INTER_LINEAR, borderValue=fill)


def stride_for(height: int, width: int, most: int) -> int:
    """The least stride s with which map[::s, ::s] keeps at most `most` pixels."""
    stride = max(1, math.ceil(math.sqrt(height * width / most)))
    while -(-height // stride) * -(-width // stride) > most:  # the last row and column are kept where they are begun
        stride += 1
    return stride


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image (H, W, 3) -> (height, width, 3), averaging where it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def resize_raw(raw: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """raw (B, C, h, w) -> (B, C, *size) in fp32."""
    # Not while a graph for any size is compiled: the comparison would bind the graph to this size.
    if not torch.compiler.is_compiling() and raw.shape[-2:] == size:
        return raw.float()
    return F.interpolate(raw.float(), size=size, mode=mode, align_corners=False)


def resize_nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, ..., h, w) -> (B, ..., *size), each pixel from the nearest one."""
    rows, columns = (
        ((torch.arange(to, device=values.device) + 0.5) * of / to).long()
        for to, of in zip(size, values.shape[-2:], strict=True)
    )
    return values[..., rows, :][..., columns]


@dataclass(frozen=True)
class Pixels:
    """Every `stride`-th pixel of both axes of a view, from row `top` and column `left` on."""

    size: tuple[int, int]  # height, width of the view
    stride: int = 1
    top: int = 0
    left: int = 0

    @property
    def rows(self) -> slice:
        return slice(self.top, None, self.stride)

    @property
    def columns(self) -> slice:
        return slice(self.left, None, self.stride)


def sample_raw(raw: Tensor, pixels: Pixels) -> Tensor:
    """raw (B, C, h, w) -> (B, C, rows, columns) in fp32: `resize_raw(raw, pixels.size)` at these pixels only."""
    if pixels.stride == 1:
        return resize_raw(raw, pixels.size)
    # Columns by a product, rows by gather and lerp: the fastest of the ways that were tried, forward and backward.
    values = raw.float() @ _column_weights(raw.shape[3], pixels.size[1], raw.device)[:, pixels.columns]
    upper, lower, weight = (tap[pixels.rows] for tap in _taps(raw.shape[2], pixels.size[0], raw.device))
    return torch.lerp(values.index_select(2, upper), values.index_select(2, lower), weight[:, None])


def argmax_resized(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize and argmax in one: raw (B, C, h, w) -> (B, *size) uint8, `resize_raw(raw, size).argmax(1)`.

    A bilinear value is a weighted mean of four neighboring inputs. Where all four have the same largest channel, so do
    all pixels between them: only the other cells, along borders, are interpolated. Where two channels are equal,
    rounding decides. A traced graph computes all pixels.
    """
    height, width = size
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return resize_raw(raw, size).argmax(1).to(torch.uint8)
    if raw.device.type != "cpu":
        return argmax_in_bands(raw, size)
    batch, channels, rows, columns = raw.shape
    top, bottom, y_weights, y_pixels, y_cells = _cells(rows, height)
    left, right, x_weights, x_pixels, x_cells = _cells(columns, width)
    maps = raw.float().transpose(0, 1).reshape(channels, -1)  # (C, B * h * w): maxima along the first axis are fast
    largest = first_of_largest(maps).view(batch, rows, columns)
    upper, lower = largest.index_select(1, top), largest.index_select(1, bottom)
    first = upper.index_select(2, left)  # (B, cells, cells), as the others
    mixed = first != upper.index_select(2, right)
    mixed |= (first != lower.index_select(2, left)) | (first != lower.index_select(2, right))
    result = first.index_select(2, x_cells).index_select(1, y_cells).view(-1)  # (B * height * width)
    # A part at a time stays in the processor's cache, and in memory where a cell of a large photo has many pixels.
    part = max(1, min(2048, CACHED // (channels * y_pixels.shape[1] * x_pixels.shape[1])))
    for image, i, j in zip(*(index.split(part) for index in mixed.nonzero(as_tuple=True)), strict=True):
        above, below = (image * rows + top[i]) * columns, (image * rows + bottom[i]) * columns
        # Cells are the last axis, as they are many: the loops along it are what a processor is fast at.
        sides = [
            torch.lerp(
                maps.index_select(1, above + side[j])[:, None],
                maps.index_select(1, below + side[j])[:, None],
                y_weights[i].T.contiguous(),
            )
            for side in (left, right)
        ]  # (C, rows of a cell, N)
        values = torch.lerp(sides[0][:, :, None], sides[1][:, :, None], x_weights[j].T.contiguous())
        lines = (image[:, None] * height + y_pixels[i]).T[:, None] * width
        result.scatter_(0, (lines + x_pixels[j].T).reshape(-1), first_of_largest(values).reshape(-1))
    return result.view(batch, height, width)


def first_of_largest(values: Tensor) -> Tensor:
    """values (C, ...) in fp32 -> `values.argmax(0)`, uint8, which by itself takes 20 times as long as a maximum.

    The largest values become 0 and others fall far below; the largest of these plus the channels counted backward is
    the first of the largest. Differences below 1e-27 count as none; it is 0 where a value is NaN or infinite.
    """
    backward = torch.arange(len(values) - 1, -1, -1, dtype=torch.float32).view(-1, *[1] * (values.ndim - 1))
    late = (values - values.amax(0)).mul_(1e30).add_(backward).amax(0)
    return (len(values) - 1 - late.nan_to_num_(len(values) - 1)).to(torch.uint8)


def argmax_in_bands(raw: Tensor, size: tuple[int, int], rows: int = 0) -> Tensor:
    """`argmax_resized` on a GPU: resize and argmax of some rows at a time, by default of as many as give BAND numbers.
    nonzero(), to find the cells along borders, would wait for the GPU."""
    rows = rows or max(64, BAND // (raw.shape[0] * raw.shape[1] * size[1]))
    top, bottom, y_weights = _taps(raw.shape[2], size[0], raw.device)
    left, right, x_weights = _taps(raw.shape[3], size[1], raw.device)
    raw, bands = raw.float(), []
    for begin in range(0, size[0], rows):
        band = slice(begin, begin + rows)
        values = torch.lerp(raw[:, :, top[band]], raw[:, :, bottom[band]], y_weights[band, None])
        values = torch.lerp(values[..., left], values[..., right], x_weights)
        bands.append(values.argmax(1).to(torch.uint8))
    return torch.cat(bands, dim=1)


_this_thread = threading.local()


@contextlib.contextmanager
def taps_kept() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """The tensors with which this thread resizes inside. They are cached, and may be thrown out; a CUDA graph, which
    reads them where they were, needs them as long as it lives."""
    _this_thread.kept = kept = []
    try:
        yield kept
    finally:
        del _this_thread.kept


def _taps(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One axis of a bilinear resize: for each output its two inputs, and the weight of the second."""
    found = _cached_taps(inputs, outputs, device)
    if hasattr(_this_thread, "kept"):
        _this_thread.kept.append(found)
    return found


@lru_cache(maxsize=64)
def _cached_taps(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):  # the cached tensors are for training as well
        source = ((torch.arange(outputs, dtype=torch.float64) + 0.5) * inputs / outputs - 0.5).clamp(min=0)
        first = source.floor()
        indices = (index.long().clamp(max=inputs - 1).to(device) for index in (first, first + 1))
        return (*indices, (source - first).float().to(device))


@lru_cache(maxsize=64)
def _column_weights(inputs: int, outputs: int, device: torch.device) -> Tensor:
    """One axis of a bilinear resize as a matrix (inputs, outputs)."""
    first, second, weight = (tap[:, None] for tap in _taps(inputs, outputs, device))
    with torch.inference_mode(False):
        matrix = torch.zeros(outputs, inputs, device=device)
        return matrix.scatter_add_(1, first, 1 - weight).scatter_add_(1, second, weight).T


@lru_cache(maxsize=64)
def _cells(inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Groups the outputs of a bilinear resize of one axis by their cell: the two inputs between which they lie.

    Returns, per cell: its left and right input (cells,), and of its outputs the weights of the right input and the
    indices (cells, n), where n is the most outputs of a cell and other cells repeat their last. And the cell of each
    output (outputs,).
    """
    source = (torch.arange(outputs, dtype=torch.float64) + 0.5) * inputs / outputs - 0.5
    cell = source.floor().long() + 1  # 0 .. inputs
    # Only cells with outputs are kept: when shrinking, some have none.
    cells, compact, counts = cell.unique_consecutive(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    pixels = first[:, None] + torch.arange(int(counts.max())).minimum(counts[:, None] - 1)
    weights = (source - source.floor())[pixels].float()
    return (cells - 1).clamp(min=0), cells.clamp(max=inputs - 1), weights, pixels, compact


def fitted_size(height: int, width: int, long_side: int, short_side: int = 0) -> tuple[int, int]:
    """(height, width) of a frame resized so that its longer side is `long_side`, or if its shorter one would be more
    than `short_side`, so that this is it; 0 keeps its size, and sets no limit."""
    if not long_side:
        return height, width
    scale = long_side / max(height, width)
    if short_side:
        scale = min(scale, short_side / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def random_view(rng: np.random.Generator, height: int, width: int, config: Config) -> View:
    """A mirrored, turned, zoomed crop of a frame (height, width); padded where the zoomed frame is smaller."""
    zoom = float(np.exp(rng.uniform(*np.log(config.zoom))))
    mirror = bool(config.mirror and rng.random() < 0.5)
    angle = float(rng.uniform(-config.rotation, config.rotation))
    zoomed = tuple(
        max(1, round(zoom * side)) for side in fitted_size(height, width, config.long_side, config.short_side)
    )
    # An offset in whole pixels: the pixels of the zoomed frame are copied. Negative where there is room to spare.
    top, left = (
        int(rng.integers(min(0, room), max(0, room) + 1))
        for room in (zoomed[0] - config.crop[0], zoomed[1] - config.crop[1])
    )
    center = np.array([(zoomed[1] - 1) / 2, (zoomed[0] - 1) / 2])
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2] @ np.diag([-1.0 if mirror else 1.0, 1.0])
    turn = np.column_stack([turn, center - (left, top) - turn @ center])
    return View((height, width), zoomed, turn, *config.crop, zoom, mirror, angle)


# ---------------------------------------------------------------------------------------------- surfaces


def unit(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) -> the same directions with length 1; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def scaled_camera(camera: Mapping[str, float], height: int, width: int) -> dict[str, float]:
    """Intrinsics for frames of this size. Those of `camera` are for its width and height, or for any size without."""
    x, y = width / camera.get("width", width), height / camera.get("height", height)
    # Pixel centres are at whole numbers: the corner of the picture is at -0.5.
    return {
        "fx": camera["fx"] * x, "fy": camera["fy"] * y,
        "cx": (camera["cx"] + 0.5) * x - 0.5, "cy": (camera["cy"] + 0.5) * y - 0.5,
    }  # fmt: skip


def camera_with(fov: float, width: int, height: int) -> dict[str, float]:
    """Intrinsics of frames of this size with a horizontal field of view in degrees. Raises ValueError."""
    if not 0 < fov < 180:
        raise ValueError(f"the field of view is {fov:g}; it must be between 0 and 180 degrees")
    focal_px = width / 2 / math.tan(math.radians(fov / 2))
    return {"fx": focal_px, "fy": focal_px, "cx": (width - 1) / 2, "cy": (height - 1) / 2}


def focal_with(fov: float, height: int, width: int) -> float:
    """Focal length, in units of the longer side, of a picture with a horizontal field of view in degrees."""
    return camera_with(fov, width, height)["fx"] / max(height, width)


def fov_with(focal: float, height: int, width: int) -> float:
    """The inverse of `focal_with`."""
    return math.degrees(2 * math.atan(width / 2 / (focal * max(height, width))))


def normals_from_depth(depth: np.ndarray, camera: Mapping[str, float], residual: float = 0.01) -> np.ndarray:
    """depth (H, W) metres, 0 = none; camera fx, fy, cx, cy in pixels -> (H, W, 3) float32 unit normals, 0 = none.

    A plane n.P = d seen at pixel ray (x, y, 1) has the inverse depth (n_x x + n_y y + n_z) / d, which is linear: the
    normal is that of a least-squares fit of the inverse depth in a window. There is none where less than half of
    the window has depth, or where the fit is off by more than `residual` of the depth: at edges.
    """
    height, width = depth.shape
    radius = max(2, round(max(height, width) / 128))  # against the noise and the steps of real depth
    # Coordinates relative to the middle of the picture: the sums below lose no digits.
    x = np.broadcast_to((np.arange(width) - camera["cx"]) / camera["fx"], depth.shape)
    y = np.broadcast_to((np.arange(height)[:, None] - camera["cy"]) / camera["fy"], depth.shape)
    valid = depth > 0
    inverse = np.where(valid, 1 / np.where(valid, depth, 1).astype(np.float64), 0)

    def mean(values: np.ndarray) -> np.ndarray:
        size = (2 * radius + 1, 2 * radius + 1)
        return cv2.boxFilter(np.where(valid, values, 0.0), cv2.CV_64F, size, borderType=cv2.BORDER_CONSTANT)

    share = mean(np.ones(depth.shape))
    enough = share > 0.5
    share = np.where(enough, share, 1)
    mean_x, mean_y, mean_d = (mean(values) / share for values in (x, y, inverse))
    xx, yy, xy = (mean(values) / share for values in (x * x, y * y, x * y))
    xx, yy, xy = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    xd = mean(x * inverse) / share - mean_x * mean_d
    yd = mean(y * inverse) / share - mean_y * mean_d
    determinant = np.maximum(xx * yy - xy * xy, 1e-30)
    a, b = (yy * xd - xy * yd) / determinant, (xx * yd - xy * xd) / determinant
    c = mean_d - a * mean_x - b * mean_y
    variance = mean(inverse * inverse) / share - mean_d**2 - a * xd - b * yd
    good = valid & enough & (np.sqrt(np.maximum(variance, 0)) <= residual * mean_d)
    # The fit's normal points away from the camera.
    return np.where(good[..., None], unit(-np.stack([a, b, c], axis=2)), 0).astype(np.float32)
