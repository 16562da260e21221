"""Reads every file of a data set: what is wrong with it, what its labels hold, and a mosaic picture of it.

`python prepare.py check FOLDER` is the command.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from config import Config, near
from drawing import side_by_side
from folders import Folder, Frame, list_lines, make_tasks, parse_line, read_folder
from images import read_image, read_label, write_png
from tasks import NO_CLASS, Task

EXAMPLES = 3  # of each kind of fault
TILES = 12  # frames of the mosaic
PANEL_WIDTH = 400  # pixels of a picture in the mosaic
BAR = 30  # characters of the longest bar
DEPTH_BINS = 10_000  # from 0 to the data set's maximum: millimetres at 10 m
USUAL_DEPTH_M = (0.1, 100.0)  # a median outside says that metres_per_unit is wrong

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], what: str) -> Iterator[Result]:
    """function(item) of each, in order, with a progress bar: decoding and encoding leave the interpreter free."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from tqdm(pool.map(function, items), what, len(items), leave=False, disable=None)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the rest is not wanted


# ---------------------------------------------------------------------------------------------- what labels hold


@dataclass(frozen=True)
class Survey:
    """How the labels of a task are summed up: each gives [labelled pixels, pixels, ...], and these add up."""

    task: Task
    section: Mapping[str, object]

    def count(self, label: np.ndarray) -> np.ndarray:
        labelled = label != self.task.fill
        return np.array([(labelled.any(2) if label.ndim == 3 else labelled).sum(), label.shape[0] * label.shape[1]])

    def suspicion(self, raw: np.ndarray) -> str:
        """What looks wrong in the stored values of a label, or ''."""
        return ""

    def report(self, counts: Mapping[str, np.ndarray]) -> list[str]:
        """Lines about the sums of each split."""
        return []


class ClassSurvey(Survey):
    def count(self, label: np.ndarray) -> np.ndarray:
        ids = np.bincount(label[label != NO_CLASS], minlength=len(self.task.classes))
        return np.concatenate([super().count(label), ids])

    def report(self, counts: Mapping[str, np.ndarray]) -> list[str]:
        names = [f"{number:3d} {name}" for number, name in enumerate(self.task.classes)]
        lines = ["segmentation: per cent of the labelled pixels"]
        return lines + table(names, {split: values[2:] for split, values in counts.items()})


class DepthSurvey(Survey):
    def count(self, label: np.ndarray) -> np.ndarray:
        steps = (label[label > 0] * (DEPTH_BINS / self.section["max"])).astype(np.int64)
        bins = np.bincount(np.minimum(steps, DEPTH_BINS - 1), minlength=DEPTH_BINS)
        return np.concatenate([super().count(label), bins])

    def suspicion(self, raw: np.ndarray) -> str:
        metres = raw[raw > 0].astype(np.float64) * self.section["metres_per_unit"]
        if not metres.size:
            return ""
        median, top, scale = np.median(metres), self.section["max"], self.section["metres_per_unit"]
        if not USUAL_DEPTH_M[0] <= median <= USUAL_DEPTH_M[1]:
            return f"half of the readings lie below {median:.4g} m; is metres_per_unit {scale:g} right?"
        beyond = (metres > top).mean()
        if beyond > 0.5:
            return f"{beyond:.0%} of the readings lie beyond max ({top:g} m); is metres_per_unit {scale:g} right?"
        return ""

    def report(self, counts: Mapping[str, np.ndarray]) -> list[str]:
        top = self.section["max"]
        centers = (np.arange(DEPTH_BINS) + 0.5) * top / DEPTH_BINS
        step = next((step for step in (0.1, 1, 5, 10, 50, 100) if top <= 20 * step), top / 20)
        rows = (centers / step).astype(int)
        names = [f"{row * step:4g} to {(row + 1) * step:g} m" for row in range(rows[-1] + 1)]
        lines = ["depth: per cent of the readings"]
        lines += table(names, {split: np.bincount(rows, values[2:]) for split, values in counts.items()})
        for split, values in counts.items():
            if values[0]:
                reached = np.cumsum(values[2:]) / values[0]
                least, median, most = (centers[np.searchsorted(reached, share)] for share in (1e-12, 0.5, 1 - 1e-12))
                lines.append(f"  {split}: least {least:.2f} m, median {median:.2f} m, most {most:.2f} m")
        return lines


SURVEYS: dict[str, type[Survey]] = {"segmentation": ClassSurvey, "depth": DepthSurvey}


def table(names: Sequence[str], columns: Mapping[str, np.ndarray]) -> list[str]:
    """Rows of shares in per cent, a column for each split, and a bar for all splits together."""
    total = sum(columns.values())
    shares = {split: 100 * values / max(1, values.sum()) for split, values in columns.items()}
    name_width = max(map(len, names))
    widths = {split: max(7, len(split) + 2) for split in columns}
    lines = [" " * (name_width + 2) + "".join(f"{split:>{widths[split]}}" for split in columns)]
    for row, name in enumerate(names):
        if total[row]:
            present = {split: f"{shares[split][row]:.2f}" if values[row] else "-" for split, values in columns.items()}
            cells = "".join(f"{present[split]:>{widths[split]}}" for split in columns)
            lines.append(f"  {name:{name_width}}{cells}  {'#' * round(BAR * total[row] / total.max())}".rstrip())
    never = [name.strip() for row, name in enumerate(names) if not total[row]]
    return lines + ([f"  none at all: {', '.join(never)}"] if never else [])


# ---------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    kind: str
    where: str  # list file and line
    what: str


@dataclass
class Findings:
    """Of one frame."""

    frame: Frame
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, ...] = ()  # height, width; () = the image cannot be read
    content: str = ""  # the same for images whose files are the same
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # task -> Survey.count


def list_frames(folder: Folder, split: str) -> tuple[list[Frame], list[Fault]]:
    """The frames of a split as `dataset.read_list` has them; what it refuses becomes a fault."""
    path = folder.root / folder.splits[split]
    try:
        lines = list(list_lines(path))
    except (OSError, ValueError) as problem:
        return [], [Fault("unreadable list file", f"{path} (split {split!r})", str(problem))]
    frames, faults = [], []
    for number, line in lines:
        try:
            frames.append(parse_line(folder, f"{path}:{number}", line))
        except ValueError as problem:
            where, _, what = str(problem).rpartition(f":{number}: ")
            faults.append(Fault("wrong line", f"{where}:{number}", what))
    if not frames and not faults:
        faults.append(Fault("empty list file", f"{path} (split {split!r})", "no frames"))
    return frames, faults


def check_frame(frame: Frame, surveys: Mapping[str, Survey]) -> Findings:
    """Reads the files of a frame."""
    found = Findings(frame)

    def fault(kind: str, what: object) -> None:
        found.faults.append(Fault(kind, frame.where, " ".join(str(what).split())))

    def decoded(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | None:
        try:
            return read(path)
        except FileNotFoundError as problem:
            fault("missing file", problem)
        except (ValueError, OSError) as problem:
            fault("unreadable image", problem)
        return None

    image = decoded(read_image, frame.image)
    if image is not None:
        found.size = image.shape[:2]
        found.content = hashlib.blake2b(frame.image.read_bytes()).hexdigest()
    for name, path in frame.labels.items():
        raw, survey = decoded(read_label, path), surveys[name]
        if raw is None:
            continue
        if found.size and raw.shape[:2] != found.size:
            got, wanted = (f"{size[1]}x{size[0]}" for size in (raw.shape, found.size))
            fault("size mismatch", f"{path}: {name} is {got}, but its image is {wanted}")
        try:
            label = survey.task.read(path, survey.section)
        except ValueError as problem:
            fault(f"wrong {name} values", problem)
            continue
        if suspicion := survey.suspicion(raw):
            fault(f"unlikely {name}", f"{path}: {suspicion}")
        counts = survey.count(label)
        if not counts[0] and not suspicion:
            fault("nothing labelled", f"{path}: no pixel of this {name} label has a value; write '-' instead")
        found.counts[name] = counts
    return found


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


def overview(found: Mapping[str, Sequence[Findings]], tasks: Sequence[str]) -> list[str]:
    """Frames, sizes and labels of each split."""
    rows = [["split", "frames", "sizes", *(f"{name} labels" for name in tasks)]]
    for split, items in found.items():
        sizes = Counter(f"{item.size[1]}x{item.size[0]}" for item in items if item.size).most_common()
        more = f" and {len(sizes) - 2} more" if len(sizes) > 2 else ""
        row = [split, str(len(items)), ", ".join(size for size, _ in sizes[:2]) + more]
        for name in tasks:
            counts = [item.counts[name][:2] for item in items if name in item.counts]
            labelled, pixels = np.sum(counts, axis=0) if counts else (0, 1)
            row.append(f"{len(counts)}, {labelled / pixels:.1%} of their pixels" if counts else "0")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """Each kind with its count and its first examples."""
    lines = []
    for kind, count in Counter(fault.kind for fault in faults).most_common():
        lines.append(f"  {kind}: {count}")
        examples = [fault for fault in faults if fault.kind == kind][:EXAMPLES]
        lines += [f"    {fault.where}: {fault.what}" for fault in examples]
        lines += [f"    ... and {count - EXAMPLES} more"] if count > EXAMPLES else []
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


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """picture (H, W, 3) as large as it fits into (height, width, 3), on grey."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = (max(1, min(width, round(picture.shape[1] * scale))), max(1, min(height, round(picture.shape[0] * scale))))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    sheet = np.full((height, width, 3), 235, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    sheet[top : top + size[1], left : left + size[0]] = small
    return sheet


def mosaic(frames: Sequence[tuple[str, Frame]], surveys: Mapping[str, Survey]) -> np.ndarray:
    """(split, frame) pairs as rows of image and labels -> (H, W, 3) uint8."""
    tiles, height = [], 0
    for split, frame in frames:
        image = read_image(frame.image)
        proportional = round(PANEL_WIDTH * image.shape[0] / image.shape[1])
        height = height or min(PANEL_WIDTH, max(PANEL_WIDTH // 8, proportional))
        name = f"{split}: {frame.image.name}"
        panels = [(name if len(name) <= 44 else f"{name[:20]}...{name[-21:]}", fit(image, height, PANEL_WIDTH), [])]
        for task, survey in surveys.items():
            if task not in frame.labels:
                panels.append((f"no {task} label", np.full((height, PANEL_WIDTH, 3), 235, np.uint8), []))
                continue
            label = survey.task.read(frame.labels[task], survey.section)
            picture = fit(survey.task.draw(label), height, PANEL_WIDTH)
            panels.append((task, picture, survey.task.legend(label)[:8]))
        tiles.append(side_by_side(panels))
    across, gap = max(1, 6 // (1 + len(surveys))), 16
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
    names = tuple(folder.sections)
    tasks = make_tasks(folder, Config(tasks=names)) if names else {}
    surveys = {name: SURVEYS.get(name, Survey)(tasks[name], folder.sections[name]) for name in names}
    found: dict[str, list[Findings]] = {}
    faults: list[Fault] = []
    for name in [split] if split else folder.splits:
        frames, list_faults = list_frames(folder, name)
        found[name] = list(in_threads(lambda frame: check_frame(frame, surveys), frames, name))
        faults += list_faults + [fault for item in found[name] for fault in item.faults]
    faults += find_repeats(found)

    print(f"{folder.name}: {folder.root}")
    print("\n".join(overview(found, names)))
    for name, survey in surveys.items():
        counted = {
            split: [item.counts[name] for item in items if name in item.counts] for split, items in found.items()
        }
        if sums := {split: np.sum(counts, axis=0) for split, counts in counted.items() if counts}:
            lines = survey.report(sums)
            print("\n".join(["", *lines] if lines else []))
    readable = [
        [(split, item.frame) for item in items if item.size and item.counts.keys() == item.frame.labels.keys()]
        for split, items in found.items()
    ]
    if picture is not None and (frames := spread(readable, TILES)):
        write_png(picture, mosaic(frames, surveys))
        print(f"\n{picture}: {len(frames)} frames with their labels")
    print("\n".join(["", f"{len(faults)} faults:", *fault_lines(faults)]) if faults else "\nnothing is wrong")
    return faults
