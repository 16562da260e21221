"""Red kitchen, a Kinect sequence of 7-Scenes with depth and camera poses: `python prepare.py redkitchen`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from images import write_png
from sources.archives import Member, Pair, Source, write_frames
from user_input.flags import Parser
from utils import refuse_existing

TSDF_URL = "https://github.com/andyzeng/tsdf-fusion-python"
SCENES_URL = "https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/"

# Our split, in order of time: every third frame. The tenth of them between train and val is left out, because
# the frames of a video look like their neighbors.
SPLITS = {"train": range(0, 600, 3), "val": range(630, 720, 3)}
WIDTH, HEIGHT = 640, 480
NO_READING = 65535  # in 7-Scenes' own files; 0 in TSDF-fusion's copy

# The two cameras of the Kinect. 7-Scenes gives the depth camera's intrinsics, and its poses are the depth camera's;
# 525 px is the usual focal length of the color camera. The baseline is the Kinect's. With these, the edges of color
# and depth meet within 1 px in each third of the picture (tests/test_redkitchen.py). A general Kinect calibration
# (LIRIS, as DSAC* uses for 7-Scenes) left 5 to 7 px here.
DEPTH_FOCAL_PX, COLOR_FOCAL_PX = 585.0, 525.0
CENTER = (320.0, 240.0)
DEPTH_TO_COLOR_M = np.array([-0.025, 0.0, 0.0])  # from the depth camera's coordinates to the color camera's


def command(argv: Sequence[str]) -> int:
    """`python prepare.py redkitchen`"""
    parser = Parser(prog="prepare.py redkitchen", description="makes the red kitchen folder: 200 + 30 frames, poses")
    help_images = "tsdf-fusion-python-master.zip, or a sequence of 7-Scenes' red kitchen (seq-NN.zip); or the folder"
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help=help_images)
    help_unregistered = "leave depth as the depth camera sees it: up to 26 px beside what the image shows"
    parser.add_argument("--unregistered", action="store_true", help=help_unregistered)
    parser.add_argument("--output", type=Path, default=Path("dataset/redkitchen"), help="default: dataset/redkitchen")
    options = parser.parse_args(argv)
    refuse_existing(options.output)
    with ExitStack() as stack:
        source = stack.enter_context(Source(options.images))
        frames = find_frames(source)
        write(options.output, source, frames, register=not options.unregistered)
    return 0


@dataclass(frozen=True)
class PosedFrame:
    """The files of a frame: image and depth, and the camera's pose as text."""

    pair: Pair
    pose: Member

    def write(self, part: Path, register: bool) -> dict[str, str]:
        """Writes rgb/NUMBER.jpg (or .png), depth/NUMBER.png and poses/NUMBER.txt; {column: file}."""

        def write_depth(stored: np.ndarray, path: Path) -> None:
            if stored.dtype == np.uint8 or stored.shape != (HEIGHT, WIDTH):
                got = f"{'x'.join(map(str, stored.shape[::-1]))}, {stored.dtype}"
                raise ValueError(f"depth of a Kinect has {WIDTH}x{HEIGHT} 16-bit numbers; this file has {got}")
            depth_mm = np.where(stored == NO_READING, 0, stored).astype(np.uint16)
            write_png(path, register_depth(depth_mm) if register else depth_mm)

        row = self.pair.write(part, write_depth)
        pose = read_pose(self.pose, part / f"poses/{self.pair.name}.txt")
        np.savetxt(part / f"poses/{self.pair.name}.txt", color_pose(pose) if register else pose)
        return row


def find_frames(source: Source) -> list[PosedFrame]:
    """The frames of both splits. Raises ValueError when a file of one of them is missing."""
    archive = f"red kitchen of 7-Scenes ({TSDF_URL}, {SCENES_URL})"
    images = source.find(r"frame-(\d{6})\.color\.(?:png|jpg)", "frame-000000.color.jpg (or .png)", archive)
    depths = source.find(r"frame-(\d{6})\.depth\.png", "frame-000000.depth.png", archive)
    poses = source.find(r"frame-(\d{6})\.pose\.txt", "frame-000000.pose.txt", archive)
    frames = []
    for split, numbers in SPLITS.items():
        for key in ((f"{number:06d}",) for number in numbers):
            for kind, found in (("color.jpg", images), ("depth.png", depths), ("pose.txt", poses)):
                if key not in found:
                    raise ValueError(f"{source.path}: no frame-{key[0]}.{kind}, which is of the {split} split")
            frames.append(PosedFrame(Pair(split, key[0], images[key], depths[key], "depth"), poses[key]))
    return frames


def write(output: Path, source: Source, frames: Sequence[PosedFrame], register: bool) -> None:
    focal = COLOR_FOCAL_PX if register else DEPTH_FOCAL_PX
    description = {
        "name": "redkitchen",
        "splits": {split: f"{split}.txt" for split in SPLITS},
        "columns": ["image", "depth"],
        "depth": {"metres_per_unit": 0.001, "max": 10.0},
        "camera": {
            "fx": focal, "fy": focal, "cx": CENTER[0], "cy": CENTER[1], "width": WIDTH, "height": HEIGHT,
        },
        "poses": "poses",
    }  # fmt: skip
    comment = "Red kitchen (7-Scenes), by python prepare.py redkitchen; our split, in order of time.\n" + (
        "Depth is seen from the color camera; camera and poses are the color camera's."
        if register
        else "Depth is NOT registered: it lies up to 26 px beside the image. Camera and poses are the depth camera's."
    )
    jobs = [(frame.pair.split, lambda part, frame=frame: frame.write(part, register)) for frame in frames]
    write_frames(output, jobs, sum(frame.pair.size for frame in frames), source.path, description, comment)


# ---------------------------------------------------------------------------------------------- geometry


def register_depth(depth_mm: np.ndarray) -> np.ndarray:
    """Depth (H, W) uint16 of the depth camera -> the same seen from the color camera, 0 where nothing is seen.

    Each reading is moved as a point; where several fall on one pixel, the nearest hides the others (z-buffer). The
    color camera sees more: a border of 33 px left and right and 24 px above and below stays without readings.
    """
    v, u = np.nonzero(depth_mm)
    z = depth_mm[v, u].astype(np.float64)
    ray = np.stack([(u - CENTER[0]) / DEPTH_FOCAL_PX, (v - CENTER[1]) / DEPTH_FOCAL_PX, np.ones_like(z)])
    x, y, z = ray * z + 1000 * DEPTH_TO_COLOR_M[:, None]
    column = np.round(COLOR_FOCAL_PX * x / z + CENTER[0]).astype(int)
    row = np.round(COLOR_FOCAL_PX * y / z + CENTER[1]).astype(int)
    height, width = depth_mm.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, row[inside] * width + column[inside], z[inside])
    return np.where(np.isfinite(nearest), np.round(nearest), 0).astype(np.uint16).reshape(height, width)


def color_pose(pose: np.ndarray) -> np.ndarray:
    """Camera-to-world (4, 4) of the depth camera -> that of the color camera."""
    moved = pose.copy()
    moved[:3, 3] -= pose[:3, :3] @ DEPTH_TO_COLOR_M
    return moved


def read_pose(member: Member, target: Path) -> np.ndarray:
    """A text file of 4x4 numbers, camera to world [m]; it is copied to `target`. Raises ValueError."""

    def parse(path: Path) -> np.ndarray:
        try:
            pose = np.loadtxt(io.StringIO(path.read_text(encoding="ascii")), ndmin=2)
        except ValueError as problem:
            raise ValueError(f"{path}: not 4 lines of 4 numbers ({' '.join(str(problem).split())})") from None
        turn = pose[:3, :3]
        if pose.shape != (4, 4) or not np.isfinite(pose).all() or np.abs(turn @ turn.T - np.eye(3)).max() > 0.01:
            raise ValueError(f"{path}: not a camera pose: 4 lines of 4 numbers, a rotation and a place in metres")
        return pose

    return member.load(target, parse)
