"""Anchors of a data set's boxes for the [yolo] layers of a .cfg file: `python prepare.py anchors`.

K-means with the distance 1 - IoU (Redmon and Farhadi, YOLO9000, arXiv 1612.08242, section 2), of widths and heights at
the network's input: boxes lie on one corner, so that places do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config import Config
from folders import Frame, make_tasks, read_folder, read_list
from images import read_image
from sources.parallel import in_threads
from tasks import task_giving
from tasks.boxes import IGNORE
from user_input.flags import Parser, number, width_and_height

MOST_ANCHORS = 64
LEAST_SIDE, MOST_SIDE = 32, 8192  # of the network's input
STARTS = 20  # the best of so many runs of k-means is taken
ROUNDS = 300  # of one run, at most
MOST_SHAPES = 100_000  # of more, an even selection is clustered
SCALINGS = {
    "letterbox": "the longer side of a picture becomes the longer side of the input, its shape stays",
    "stretch": "a picture is stretched to width and height, as with letter_box=0",
}


def overlaps(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 2) width, height with others (m, 2) on the same corner -> (n, m)."""
    shared = np.minimum(shapes[:, None], others[None]).prod(2)
    return shared / (shapes.prod(1)[:, None] + others.prod(1)[None] - shared)


def find_anchors(shapes: np.ndarray, count: int) -> np.ndarray:
    """shapes (n, 2) width, height, above 0 -> (count, 2), smallest area first: of some runs of k-means that with the
    highest mean IoU of the shapes with their best anchor. The same shapes in any order give the same.

    Raises ValueError for fewer different shapes than anchors.
    """
    different, times = np.unique(np.asarray(shapes, np.float64), axis=0, return_counts=True)
    if len(different) < count:
        raise ValueError(
            f"{len(different)} different shapes of boxes, but {count} anchors are wanted; --count {len(different)} "
            "is the most"
        )
    if len(different) > MOST_SHAPES:
        chosen = np.linspace(0, len(different) - 1, MOST_SHAPES).round().astype(int)
        different, times = different[chosen], times[chosen]
    rng = np.random.default_rng(0)
    runs = [_k_means(different, times, _first(different, times, count, rng)) for _ in range(STARTS)]
    best = max(runs, key=lambda anchors: np.average(overlaps(different, anchors).max(1), weights=times))
    return best[np.argsort(best.prod(1), kind="stable")]


def _first(shapes: np.ndarray, times: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Shapes far from each other, drawn one after the other by how badly the ones before fit (k-means++)."""
    chosen = [rng.choice(len(shapes), p=times / times.sum())]
    while len(chosen) < count:
        misfit = times * (1 - overlaps(shapes, shapes[chosen]).max(1)).clip(0)
        misfit[chosen] = 0
        chosen.append(rng.choice(len(shapes), p=misfit / misfit.sum()))
    return shapes[chosen]


def _k_means(shapes: np.ndarray, times: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Each shape goes to its best anchor, each anchor becomes the mean of its shapes, until nothing moves."""
    before = None
    for _ in range(ROUNDS):
        fit = overlaps(shapes, anchors)
        own = fit.argmax(1)
        if before is not None and np.array_equal(own, before):
            break
        before, anchors = own, anchors.copy()
        for index in range(len(anchors)):
            mine = own == index
            # An anchor that lost all its shapes takes the shape that is served worst.
            worst = shapes[fit.max(1).argmin()]
            anchors[index] = np.average(shapes[mine], axis=0, weights=times[mine]) if mine.any() else worst
    return anchors


def shapes_at_input(corners: np.ndarray, picture: tuple[int, int], size: tuple[int, int], scaling: str) -> np.ndarray:
    """Boxes (n, 4+) x1, y1, x2, y2 in a picture of (height, width) -> their widths and heights (n, 2) in pixels of an
    input of `size` (height, width)."""
    sides = (corners[:, 2:4] - corners[:, :2]).astype(np.float64)
    if scaling == "letterbox":
        return sides * (max(size) / max(picture))
    return sides * (size[1] / picture[1], size[0] / picture[0])


def read_shapes(root: Path, split: str, size: tuple[int, int], scaling: str) -> tuple[np.ndarray, int]:
    """(widths and heights (n, 2) of the boxes of a split at the network's input, number of frames with a label file).

    Boxes that are to be ignored are left out. Raises FileNotFoundError or ValueError.
    """
    folder = read_folder(root)
    name = task_giving("objects")
    if name not in folder.sections:
        raise ValueError(f"{root}: it has no {name} labels; it has: {', '.join(folder.sections) or 'none'}")
    task, section = make_tasks(folder, Config(tasks=(name,)))[name], folder.sections[name]
    frames = [frame for frame in read_list(folder, split) if name in frame.labels]

    def shapes_of(frame: Frame) -> np.ndarray:
        picture = read_image(frame.image).shape[:2]
        path = frame.labels[name]
        label = task.at_size(task.read(path, section, frame.image), picture, section, path)
        return shapes_at_input(label[label[:, IGNORE] == 0], picture, size, scaling)

    found = [np.empty((0, 2)), *in_threads(shapes_of, frames, name)]
    shapes = np.concatenate(found)
    if not len(shapes):
        raise ValueError(f"{root}: no box in the {len(frames)} frames of the split {split!r} that have a label file")
    return shapes, len(frames)


def one_or_two_sides(text: str) -> tuple[int, int]:
    """An argparse type: 416, or 416x256 as WIDTHxHEIGHT -> (height, width)."""
    return width_and_height(LEAST_SIDE, MOST_SIDE)(text if "x" in text.lower() else f"{text}x{text}")


def command(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="prepare.py anchors",
        description="k-means anchors of a data set's boxes, as the line of each [yolo] of a .cfg file",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name}: {what}" for name, what in SCALINGS.items()),
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="a data set with boxes")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--count", type=number(int, 1, MOST_ANCHORS), default=9, help="of anchors; default: 9")
    parser.add_argument(
        "--size", type=one_or_two_sides, default=(416, 416), metavar="N|WIDTHxHEIGHT",
        help="of the network's input, as in [net]; default: 416",
    )  # fmt: skip
    parser.add_argument(
        "--scaling", choices=tuple(SCALINGS), default="letterbox", help="of pictures to it; default: letterbox"
    )
    options = parser.parse_args(argv)
    shapes, frames = read_shapes(options.data, options.split, options.size, options.scaling)
    try:
        anchors = find_anchors(shapes, options.count).round(1).clip(0.1)
    except ValueError as problem:
        raise ValueError(f"{options.data}: {problem}") from None
    fit = overlaps(shapes, anchors).max(1)
    height, width = options.size
    print(f"{len(shapes)} boxes of {frames} frames ({options.split}), {options.scaling} to {width}x{height}")
    print(f"anchors = {line_of(anchors)}")
    print(f"mean IoU of a box with its best anchor {fit.mean():.4f}, least {fit.min():.4f}")
    return 0


def line_of(anchors: np.ndarray) -> str:
    """As [yolo] has it, which takes numbers with a point as well."""
    return ", ".join(f"{width:g},{height:g}" for width, height in anchors)
