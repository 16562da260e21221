"""Reads every file of a data set: what is wrong with it, what its labels hold, and a mosaic picture of it.

`python prepare.py check FOLDER` is the command.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from config import Config
from drawing import letterbox, side_by_side
from folders import Folder, Frame, list_lines, make_tasks, parse_line, read_folder
from images import read_image, write_png
from sources.parallel import in_threads
from tasks import Task
from user_input.poses import read_pose
from user_input.values import ManyErrors, near

EXAMPLES = 3  # of each kind of fault
MOST_NAMED = 100  # of faults of which one file may have many, such as bad boxes
TILES = 12  # frames of the mosaic
PANEL_WIDTH = 400  # pixels of a picture in the mosaic
GRAY = 235  # where a picture does not fill its panel

Item = TypeVar("Item")


# ---------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    kind: str
    where: str  # list file and line
    what: str
    one_of_many: bool = False  # in the same file: each of them is named


@dataclass
class Findings:
    """Of one frame."""

    frame: Frame
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, ...] = ()  # height, width; () = the image cannot be read
    content: str = ""  # the same for images whose files are the same
    surveys: dict[str, np.ndarray] = field(default_factory=dict)  # task -> Task.survey, until they are added up
    read: frozenset[str] = frozenset()  # tasks whose labels could be read


def list_frames(folder: Folder, split: str) -> tuple[list[Frame], list[Fault]]:
    """The frames of a split as `dataset.read_list` has them; what it refuses becomes a fault."""
    path = folder.root / folder.splits[split]
    try:
        lines = list(list_lines(folder, split))
    except (OSError, ValueError) as problem:
        return [], [Fault("unreadable list file", f"{path} (split {split!r})", str(problem))]
    frames, faults = [], []
    for where, line in lines:
        try:
            frames.append(parse_line(folder, where, line))
        except ValueError as problem:
            faults.append(Fault("wrong line", where, str(problem).removeprefix(f"{where}: ")))
    if not frames and not faults:
        faults.append(Fault("empty list file", f"{path} (split {split!r})", "no frames"))
    return frames, faults


def wrong_shape(size: tuple[int, ...], camera: Mapping[str, float]) -> str:
    """What is wrong with an image (height, width) whose shape is not that of the intrinsics; "" = nothing. Its size may
    be another, since intrinsics are scaled."""
    if not {"width", "height"} <= camera.keys():
        return ""
    if abs(size[1] * camera["height"] / (size[0] * camera["width"]) - 1) < 0.02:  # sides were rounded
        return ""
    return f"{size[1]}x{size[0]}, but the camera of dataset.yaml is of {camera['width']:g}x{camera['height']:g}"


def check_frame(frame: Frame, folder: Folder, tasks: Mapping[str, Task]) -> Findings:
    """Reads the files of a frame."""
    found = Findings(frame)

    def fault(kind: str, what: object) -> None:
        lines = what.lines if isinstance(what, ManyErrors) else (what,)
        many = isinstance(what, ManyErrors)
        found.faults += [Fault(kind, frame.where, " ".join(str(line).split()), many) for line in lines]

    def decoded(kind: str, read: Callable[..., object], *arguments: object) -> object:
        try:
            return read(*arguments)
        except FileNotFoundError as problem:
            fault("missing file", problem)
        except (ValueError, OSError) as problem:
            fault(f"unreadable {kind}", problem)
        return None

    image = decoded("image", read_image, frame.image)
    if image is not None:
        found.size = image.shape[:2]
        if said := wrong_shape(found.size, folder.camera):
            fault("another shape than the camera's", f"{frame.image}: {said}")
        found.content = hashlib.blake2b(frame.image.read_bytes()).hexdigest()
    if folder.poses:
        decoded("pose", read_pose, folder.root / folder.poses / f"{frame.image.stem}.txt")
    for name, task in tasks.items():
        if name not in frame.labels:
            continue
        column = folder.column_of(name)
        if column != name and column not in found.surveys:  # what is wrong with the file has been said
            continue
        path, section = frame.labels[name], folder.sections[name]
        stored = decoded("label", task.open, path, section, frame.image)
        if stored is None:
            continue
        try:
            label = task.read(path, section, frame.image)
        except ValueError as problem:
            fault(f"wrong {name} values", problem)
            continue
        if not found.size:  # what is not of a size is no label yet
            continue
        try:
            label = task.at_size(label, found.size, section, path)
        except ValueError as problem:
            fault(f"wrong {name} values" if isinstance(problem, ManyErrors) else "size mismatch", problem)
            continue
        if suspicion := task.suspicion(stored, label, section):
            fault(suspicion[0], f"{path}: {suspicion[1]}")
        found.surveys[name] = task.survey(label, section)
    found.read = frozenset(found.surveys)
    return found


def checked_tasks(folder: Folder) -> tuple[str, ...]:
    """The tasks with a column, and those whose labels follow from another's files, if they differ."""
    columns = folder.columns[1:]
    shown = {name: folder.sections[name] for name in columns}
    for name, section in folder.sections.items():
        if section not in shown.values():
            shown[name] = section
    return tuple(shown)


def check_frames(
    frames: Sequence[Frame], folder: Folder, tasks: Mapping[str, Task], what: str
) -> tuple[list[Findings], dict[str, np.ndarray]]:
    """Reads all frames of a split. Returns what was found, and {task: sum of the labels' surveys}.

    Surveys are added up as they come: a histogram for each frame would take gigabytes.
    """
    found, sums = [], {}
    for item in in_threads(lambda frame: check_frame(frame, folder, tasks), frames, what):
        for name, survey in item.surveys.items():
            sums[name] = sums[name] + survey if name in sums else survey
        item.surveys.clear()
        found.append(item)
    return found, sums


def find_repeats(found: Mapping[str, Sequence[Findings]]) -> list[Fault]:
    """Images of one split that are in another one as well, by the content of their files."""
    faults, first = [], {}
    for split, items in found.items():
        for item in items:
            known_split, known = first.setdefault(item.content or str(item.frame.image), (split, item.frame))
            if known_split != split:
                what = f"{item.frame.image} is also in {known_split}, {known.where}"
                faults.append(Fault("image in two splits", item.frame.where, what))
    return faults


# ---------------------------------------------------------------------------------------------- reports


def overview(
    found: Mapping[str, Sequence[Findings]], tasks: Mapping[str, Task], sums: Mapping[str, Mapping[str, np.ndarray]]
) -> list[str]:
    """Frames, sizes and labels of each split; sums[split][task] is the sum of its frames' surveys."""
    rows = [["split", "frames", "sizes", *(f"{name} labels" for name in tasks)]]
    for split, items in found.items():
        sizes = Counter(f"{item.size[1]}x{item.size[0]}" for item in items if item.size).most_common()
        more = f" and {len(sizes) - 2} more" if len(sizes) > 2 else ""
        row = [split, str(len(items)), ", ".join(size for size, _ in sizes[:2]) + more]
        for name, task in tasks.items():
            count = sum(name in item.read for item in items)
            row.append(f"{count}, {task.coverage(sums[split][name])}" if count else "0")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """Each kind with its count and its first examples."""
    lines = []
    for kind, count in Counter(fault.kind for fault in faults).most_common():
        lines.append(f"  {kind}: {count}")
        examples = [fault for fault in faults if fault.kind == kind]
        most = MOST_NAMED if examples[0].one_of_many else EXAMPLES
        lines += [f"    {fault.where}: {fault.what}" for fault in examples[:most]]
        lines += [f"    ... and {count - most} more"] if count > most else []
    return lines


def spread(groups: Sequence[Sequence[Item]], count: int) -> list[Item]:
    """`count` items in order, shared evenly among the groups, evenly spaced in each."""
    shares = [0] * len(groups)
    for _ in range(min(count, sum(map(len, groups)))):
        rest = [number for number, group in enumerate(groups) if shares[number] < len(group)]
        shares[min(rest, key=lambda number: shares[number])] += 1
    return [
        group[round(index)]
        for group, share in zip(groups, shares, strict=True)
        for index in np.linspace(0, len(group) - 1, share)
    ]


def mosaic(frames: Sequence[tuple[str, Frame]], folder: Folder, tasks: Mapping[str, Task]) -> np.ndarray:
    """(split, frame) pairs as rows of image and labels -> (H, W, 3) uint8."""
    tiles, height = [], 0
    for split, frame in frames:
        image = read_image(frame.image)
        proportional = round(PANEL_WIDTH * image.shape[0] / image.shape[1])
        height = height or min(PANEL_WIDTH, max(PANEL_WIDTH // 8, proportional))
        name = f"{split}: {frame.image.name}"
        title = name if len(name) <= 44 else f"{name[:20]}...{name[-21:]}"
        panels = [(title, letterbox(image, height, PANEL_WIDTH, GRAY), [])]
        for name, task in tasks.items():
            if name not in frame.labels:
                panels.append((f"no {name} label", np.full((height, PANEL_WIDTH, 3), GRAY, np.uint8), []))
                continue
            size, path, section = image.shape[:2], frame.labels[name], folder.sections[name]
            label = task.at_size(task.read(path, section, frame.image), size, section, path)
            picture = letterbox(task.panel(label, image, size), height, PANEL_WIDTH, GRAY)
            panels.append((name, picture, task.legend(label)[:8]))
        tiles.append(side_by_side(panels))
    across, gap = max(1, 6 // (1 + len(tasks))), 16
    rows = []
    for start in range(0, len(tiles), across):
        row = tiles[start : start + across]
        tall = max(tile.shape[0] for tile in row) + gap
        sheet = np.full((tall, min(across, len(tiles)) * (tiles[0].shape[1] + gap), 3), 255, np.uint8)
        for column, tile in enumerate(row):
            left = gap // 2 + column * (tile.shape[1] + gap)
            sheet[gap // 2 : gap // 2 + tile.shape[0], left : left + tile.shape[1]] = tile
        rows.append(sheet)
    return np.concatenate(rows)


def check_folder(path: Path, split: str | None = None, picture: Path | None = None) -> list[Fault]:
    """Checks one split, or all, of a data set, prints the report and writes the mosaic to `picture`.

    Raises FileNotFoundError or ValueError when its dataset.yaml cannot be used.
    """
    folder = read_folder(path)
    if split is not None and split not in folder.splits:
        hint = near(split, folder.splits)
        raise ValueError(f"--split: {path} has no split {split!r}{hint}; it has: {', '.join(folder.splits)}")
    names = checked_tasks(folder)
    tasks = make_tasks(folder, Config(tasks=names)) if names else {}
    found: dict[str, list[Findings]] = {}
    sums: dict[str, dict[str, np.ndarray]] = {}
    faults: list[Fault] = []
    for name in [split] if split else folder.splits:
        frames, list_faults = list_frames(folder, name)
        found[name], sums[name] = check_frames(frames, folder, tasks, name)
        faults += list_faults + [fault for item in found[name] for fault in item.faults]
    faults += find_repeats(found)
    for name, task in tasks.items():
        total = sum(of_tasks[name] for of_tasks in sums.values() if name in of_tasks)
        if np.any(total) and (doubt := task.doubt(total, folder.sections[name])):
            faults.append(Fault(doubt[0], str(folder.root), doubt[1]))

    print(f"{folder.name}: {folder.root}")
    print("\n".join(overview(found, tasks, sums)))
    for name, task in tasks.items():
        if of_splits := {split: of_tasks[name] for split, of_tasks in sums.items() if name in of_tasks}:
            lines = task.survey_lines(of_splits, folder.sections[name])
            print("\n".join(["", *lines] if lines else []))
    readable = [
        [(split, item.frame) for item in items if item.size and item.read == item.frame.labels.keys() & tasks.keys()]
        for split, items in found.items()
    ]
    if picture is not None and (frames := spread(readable, TILES)):
        write_png(picture, mosaic(frames, folder, tasks))
        print(f"\n{picture}: {len(frames)} frames with their labels")
    print("\n".join(["", f"{len(faults)} faults:", *fault_lines(faults)]) if faults else "\nnothing is wrong")
    return faults
