"""Generates a synthetic indoor data set: images, classes, exact depth, exact normals, and things one by one.

    python prepare.py rooms                                             # dataset/rooms: 240 + 40 frames of 320x240
    python prepare.py rooms --output FOLDER --train 1000 --size 640x480 --workers 4

Every frame shows another room; it depends on the seed and the number of the frame alone. This module chooses the
camera, develops the photograph and writes the files. The room is in furnished_room.py, its furniture in furniture.py,
doors, windows and pictures in fixtures.py, rays in raycast.py, light in shading.py, surfaces in textures.py.

The column `boxes` is an instance mask: a 16-bit PNG of the value 256 * (class + 1) + number. Classes are those of the
section `boxes` of dataset.yaml, counted from 0; the things of a class have numbers from 1 to 255. Walls, floor and
ceiling are 0. A thing keeps its number in every picture of its room. It has all its parts (a chair its legs), but what
stands or lies on it is another one (pillows on a bed).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from rooms import raycast, shading
from rooms.furnished_room import INSTANCE_DIVISOR, FurnishedRoom
from rooms.item import LAMP, THINGS, WINDOW
from rooms.raycast import Pinhole, Scene
from rooms.textures import linear
from user_input.flags import Parser, number, width_and_height

UNITS_PER_METER = 5000
FOLDERS = {"image": "rgb", "segmentation": "masks", "depth": "depth", "normals": "normals", "boxes": "instances"}
LEAST_SIDE = 16  # pixels


@dataclass
class RenderedFrame:
    """A rendered frame. depth [m], normals in the camera frame; camera: fx, fy, cx, cy, width, height [px]."""

    image: np.ndarray  # (H, W, 3) uint8
    segmentation: np.ndarray  # (H, W) uint8
    depth: np.ndarray  # (H, W) float32
    normals: np.ndarray  # (H, W, 3) float32
    instances: np.ndarray  # (H, W) uint16, see FurnishedRoom.instances
    camera: dict[str, float]


@dataclass(frozen=True)
class RoomSet:
    """A data set that is being written: where, its size in pixels, and its seed."""

    folder: Path
    width: int
    height: int
    seed: int


def _intrinsics(width: int, height: int) -> dict[str, float]:
    """The section `camera` of a picture of that size in pixels; it sees what NYUDv2's camera sees."""
    focal = 518.9 * width / 640
    return {"fx": focal, "fy": focal, "cx": (width - 1) / 2, "cy": (height - 1) / 2, "width": width, "height": height}


def _look_along(way: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotation (3, 3) of a camera that looks about along `way` (2,), a little down, held almost level."""
    yaw = np.arctan2(*way[::-1]) + rng.normal(0, 0.1)
    pitch, roll = np.radians(rng.uniform(4, 22)), np.radians(rng.normal(0, 1))
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    down = np.cross(forward, right)
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    return np.stack([right, down, forward], 1)


def _aim(room: FurnishedRoom, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A random camera pose (position, rotation) from which much of the room is seen; None when no try was good."""
    best, pose = -np.inf, None
    for _ in range(40):
        x, y = (0.3 + (room.size[:2] - 0.6) * rng.beta(0.5, 0.5, 2)).tolist()  # mostly near walls and corners
        spot, height = np.array([x, y]), rng.uniform(1.25, 1.75)
        if any((spot > t.low - 0.3).all() and (spot < t.high + 0.3).all() for t in room.taken if t.height > 0):
            continue
        target = room.size[:2] * rng.uniform(0.3, 0.7, 2)
        if np.linalg.norm(target - spot) < 0.8:
            continue
        rotation, position = _look_along(target - spot, rng), np.array([x, y, height])
        probe = Pinhole(position, rotation, 32, 24, _intrinsics(32, 24)["fx"])
        depth, seen, _ = raycast.cast(scene, probe)
        share = np.bincount(scene.label[seen].ravel(), minlength=40) / seen.size
        if share.max() > 0.5 or np.median(depth) < 1.5 or (depth < 0.8).mean() > 0.08 or depth.min() < 0.3:
            continue
        spread = -(share * np.log(share + 1e-9)).sum() + 0.1 * (share > 0.01).sum() + 0.25 * min(np.median(depth), 4)
        if spread > best:
            best, pose = spread, (position, rotation)
        if spread > 3.6:
            break
    return pose


def _develop(radiance: np.ndarray, lit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear light (3, H, W) -> photograph (H, W, 3) uint8: exposure, glare, white balance, tone, noise."""
    height, width = radiance.shape[1:]
    gray = radiance.mean(0)[~lit]
    # a middle gray for most of the picture, unless that would burn out the brightest tenth of it
    gain = min(rng.uniform(0.30, 0.42) / np.exp(np.log(gray + 1e-3).mean()), 0.95 / np.quantile(gray, 0.9))
    exposed = radiance * gain * rng.normal(1, 0.03, (3, 1, 1))
    exposed = np.minimum(exposed, 6).astype(np.float32).transpose(1, 2, 0)
    glare = cv2.GaussianBlur(np.maximum(exposed - 0.9, 0), (0, 0), 0.03 * width)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    exposed = (exposed + 0.12 * glare) * (1 - 0.10 * (x * x + y * y))[..., None]
    toned = exposed * (1 + exposed / 6.0) / (1 + exposed)
    shown = np.clip(1.15 * toned, 0, 1) ** (1 / 2.2)
    shown = shown + 0.25 * (shown * shown * (3 - 2 * shown) - shown)  # a little contrast
    shown = shown + rng.normal(0, rng.uniform(0.003, 0.009), shown.shape)
    return np.round(255 * np.clip(shown, 0, 1)).astype(np.uint8)


def render(seed: int, index: int, width: int, height: int) -> RenderedFrame:
    """Frame `index` of the data set `seed`. The size in pixels changes neither the room nor the camera."""
    rng = np.random.default_rng([seed, index])
    pose = None
    while pose is None:
        day = rng.uniform(0.7, 1.0) if rng.random() < 0.8 else rng.uniform(0.05, 0.12)
        room = FurnishedRoom(rng)
        room.add_openings(day)
        room.furnish(lamp_on=day < 0.3 or rng.random() < 0.6)
        scene = room.scene()
        pose = _aim(room, scene, rng)
    wall, floor = (linear(np.array(material.color)) for material in (room.wall_material, room.floor_material))
    strength = 0.15 + 0.23 * day
    scene.ambient = strength * (0.55 + 0.45 * wall)
    scene.bounce = strength * (0.35 + 0.65 * floor)
    camera = _intrinsics(width, height)
    radiance, seen, depth, normals = shading.render(scene, Pinhole(*pose, width, height, camera["fx"]))
    labels = scene.label[seen]
    lit = (labels == WINDOW) | (labels == LAMP)
    image = _develop(radiance, lit, rng)
    normals = np.ascontiguousarray(normals.transpose(1, 2, 0))
    return RenderedFrame(image, labels, depth, normals, room.instances()[seen], camera)


def _save(data: RoomSet, index: int) -> None:
    """Renders one frame and writes a file of it into each folder."""
    frame = render(data.seed, index, data.width, data.height)
    pictures = {
        "image": frame.image[..., ::-1],
        "segmentation": frame.segmentation,
        "depth": np.round(frame.depth * UNITS_PER_METER).astype(np.uint16),
        "normals": np.round(127.5 * (frame.normals + 1)).astype(np.uint8)[..., ::-1],
        "boxes": frame.instances,
    }
    for column, folder in FOLDERS.items():
        path = data.folder / folder / f"{index:06d}.png"
        if not cv2.imwrite(str(path), pictures[column]):
            raise OSError(f"{path}: could not be written")


def _save_all(data: RoomSet, numbers: range, workers: int) -> Iterator[int]:
    """Renders the frames, in this process or in `workers` others; yields the number of each one that is done."""
    if not workers:
        for index in numbers:
            _save(data, index)
            yield index
        return
    # Not multiprocessing: its processes import the caller's script, which is torch and all when that is train.py.
    settings = (data.width, data.height, data.seed)
    command = [sys.executable, "-m", "rooms.generate", str(data.folder.resolve()), *map(str, settings)]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with contextlib.ExitStack() as stack:
        processes = []
        for k in range(workers):
            share = numbers[k::workers]
            bounds = map(str, (share.start, share.stop, share.step))
            process = subprocess.Popen([*command, *bounds], stdout=subprocess.PIPE, text=True, env=environment)
            processes.append(stack.enter_context(process))
            stack.callback(process.terminate)  # without effect on one that has ended
        for index, process in zip(numbers, itertools.cycle(processes), strict=False):
            answer = process.stdout.readline().strip()
            if answer != str(index):
                raise OSError(answer or f"the process that renders frame {index} ended early")
            yield index


def _work(folder: str, *settings: str) -> None:
    """A process of `_save_all`: prints a line for each frame, its number or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends this process when the parent is gone
    width, height, seed, *bounds = map(int, settings)
    data = RoomSet(Path(folder), width, height, seed)
    for index in range(*bounds):
        try:
            _save(data, index)
        except (OSError, ValueError, MemoryError) as problem:
            print(" ".join(str(problem).split()) or type(problem).__name__)
            return
        print(index, flush=True)


def write(
    output: Path,
    train: int = 240,
    val: int = 40,
    width: int = 320,
    height: int = 240,
    seed: int = 0,
    workers: int = 0,
) -> None:
    """Writes frames 1..train and train+1..train+val with their labels; `output` appears when all are written.

    Raises FileExistsError when `output` is not empty, ValueError for a wrong number or size.
    """
    output = Path(output)
    if min(seed, workers) < 0:
        raise ValueError(f"seed is {seed} and workers is {workers}; they must be at least 0")
    if min(train, val) < 0 or train + val == 0 or min(width, height) < LEAST_SIDE:
        raise ValueError(
            f"{train} + {val} frames of {width}x{height}; allowed: at least one, of at least {LEAST_SIDE}x{LEAST_SIDE}"
        )
    from utils import whole_folder  # it imports torch, which the worker processes of this module do without

    numbers = range(1, train + val + 1)
    with whole_folder(output) as part:
        data = RoomSet(part, width, height, seed)
        for name in FOLDERS.values():
            (part / name).mkdir()
        for _ in tqdm(_save_all(data, numbers, workers), "rooms", len(numbers), disable=None):
            pass
        _describe(data, numbers, train)


def _describe(data: RoomSet, numbers: range, train: int) -> None:
    """Writes the list files and dataset.yaml."""
    for name, chosen in (("train", numbers[:train]), ("val", numbers[train:])):
        lines = ["\t".join(f"{folder}/{n:06d}.png" for folder in FOLDERS.values()) for n in chosen]
        (data.folder / f"{name}.txt").write_text("".join(line + "\n" for line in lines))
    width, height, val = data.width, data.height, len(numbers) - train
    camera = ", ".join(f"{name}: {round(value, 6)}" for name, value in _intrinsics(width, height).items())
    text = f"""# python prepare.py rooms --train {train} --val {val} --size {width}x{height} --seed {data.seed}
name: rooms
splits: {{train: train.txt, val: val.txt}}
columns: [{", ".join(FOLDERS)}]
segmentation: {{classes: nyu40, ignore: 255}}
depth: {{metres_per_unit: {1 / UNITS_PER_METER}, max: 10.0}}   # 1/{UNITS_PER_METER} m
camera: {{{camera}}}
boxes:   # a pixel is {INSTANCE_DIVISOR} * (class + 1) + number of the thing; 0 is no thing
  format: instances
  divisor: {INSTANCE_DIVISOR}
  classes: [{", ".join(THINGS.values())}]
"""
    (data.folder / "dataset.yaml").write_text(text)


def command(argv: Sequence[str]) -> int:
    """`python prepare.py rooms`"""
    parser = Parser(prog="prepare.py rooms", description=__doc__.splitlines()[0])
    default = Path("dataset/rooms")
    parser.add_argument("--output", type=Path, default=default, metavar="FOLDER", help=f"default: {default}")
    frames = number(int, 0, 999_999)
    parser.add_argument("--train", type=frames, default=240, metavar="FRAMES", help="default: 240")
    parser.add_argument("--val", type=frames, default=40, metavar="FRAMES", help="default: 40")
    size = width_and_height(LEAST_SIDE, 4096)
    parser.add_argument("--size", type=size, default=(240, 320), metavar="WIDTHxHEIGHT", help="default: 320x240 pixels")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="default: 0")
    help_workers = "processes that render; 0 = this one alone (default)"
    parser.add_argument("--workers", type=number(int, 0, 256), default=0, help=help_workers)
    options = parser.parse_args(argv)
    height, width = options.size
    write(options.output, options.train, options.val, width, height, options.seed, options.workers)
    return 0


if __name__ == "__main__":  # a process of `_save_all`
    _work(*sys.argv[1:])
