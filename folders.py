"""Data sets on disk: dataset.yaml, list files, and the tasks that have labels. dataset/README.md shows one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config import Config
from images import IMAGE_SUFFIXES
from tasks import TASKS, Task, all_beside
from tasks.base import check_keys
from user_input.layouts import MOST_LIST_BYTES, Layout, csv_lines, csv_values, tab_lines, yolo_layout
from user_input.text_files import read_text, read_yaml
from user_input.values import convert, near

MOST_FRAMES = 2**18  # of a list file; the largest of the public data sets have 10^5 frames
TEACHER_FILE = "teacher.yaml"  # beside a teacher's label files: who it was, and its settings

# The public NYUDv2 archive has no dataset.yaml; this is what it would say.
NYUD_LISTS = {"train": "train_list_depth.txt", "val": "val_list_depth.txt"}
NYUD_YAML: dict[str, object] = {
    "name": "nyud",
    "splits": NYUD_LISTS,
    "columns": ["image", "segmentation", "depth"],
    "segmentation": {"classes": "nyu40", "ignore": 255},
    "depth": {"metres_per_unit": 0.0002, "max": 10.0},
    "camera": {"fx": 518.9, "fy": 519.5, "cx": 325.6, "cy": 253.7, "width": 640, "height": 480},
}


@dataclass(frozen=True)
class Folder:
    """A data set on disk, as its dataset.yaml describes it."""

    root: Path
    name: str
    splits: dict[str, str]  # split -> list file
    columns: tuple[str, ...]  # of the list files: "image" and tasks
    # Task -> what Task.read_section made of its part of dataset.yaml; a task without a column has labels in another's
    # files (Task.shares_files).
    sections: dict[str, dict[str, object]]
    camera: dict[str, float]  # fx, fy, cx, cy, width, height in pixels; {} = not known
    poses: str = ""  # folder of 4x4 text files, camera to world in metres, with the names of the images; "" = none
    taught: dict[str, dict[str, object]] = field(default_factory=dict)  # task -> section of a teacher's label files
    layout: Layout | None = None  # of a folder in another project's form; None: it has list files

    @property
    def derived(self) -> dict[str, str]:
        """{task whose labels can be derived here: the task from whose labels}"""
        return {
            name: kind.derived_from
            for name, kind in TASKS.items()
            if kind.derived_from in self.sections and not (kind.needs_camera and not self.camera)
        }

    def column_of(self, task: str) -> str:
        """The column that names the files with labels of a task: its own, or that of another; "" = there is none."""
        return next((name for name in (task, *TASKS[task].shares_files) if name in self.columns), "")


@dataclass(frozen=True)
class Frame:
    image: Path
    labels: dict[str, Path]  # task -> file; a task without a label is not in it
    where: str  # list file and line
    taught: dict[str, Path] = field(default_factory=dict)  # task -> file of a teacher, where `labels` has none


def read_folder(path: str | Path, teacher_labels: str = "") -> Folder:
    """Reads a data set's description, and the descriptions of teachers' labels (teach.py) in its `teacher_labels`.

    Raises FileNotFoundError, or ValueError with file and key.
    """
    root = Path(path)
    yaml_file, layout = root / "dataset.yaml", None
    if yaml_file.is_file():
        values, where = read_yaml(yaml_file), str(yaml_file)
    elif (root / NYUD_LISTS["train"]).is_file():
        values, where = NYUD_YAML, f"{root} (public NYUDv2 archive)"
    elif (layout := yolo_layout(root, IMAGE_SUFFIXES)) is not None:
        values, where = layout.values, layout.where
    elif (described := csv_values(root)) is not None:
        values, where = described, f"{root} (csv lists)"
    elif root.is_dir():
        raise FileNotFoundError(
            f"{root}: it has no dataset.yaml (nor the data.yaml of a YOLO folder); dataset/README.md shows one"
        )
    else:
        raise FileNotFoundError(
            f"{root}: no such data set. Three ways to get one: `python prepare.py rooms` generates furnished rooms; "
            "`python prepare.py nyudv2 --download` fetches NYUDv2 (812 MB) as dataset/nyud, with --hold_out as "
            "dataset/nyudv2; or make a folder of your own images as dataset/README.md shows"
        )
    check_keys(values, {"name", "splits", "columns", "camera", "poses", *TASKS}, where)
    for key in ("splits", "columns"):
        if key not in values:
            raise ValueError(f"{where}: {key} is missing")
    splits = convert(values["splits"], dict[str, str], f"{where}: splits")
    columns = convert(values["columns"], tuple[str, ...], f"{where}: columns")
    if not columns or columns[0] != "image" or len(set(columns)) != len(columns):
        raise ValueError(f"{where}: columns must start with image and name each task once; got {', '.join(columns)}")
    for column in columns[1:]:
        if column not in TASKS:
            raise ValueError(f"{where}: unknown column {column!r}{near(column, TASKS)}; allowed: {', '.join(TASKS)}")
    sections = {
        task: TASKS[task].read_section(values.get(task) or {}, f"{where}: {task}", root) for task in columns[1:]
    }
    camera = convert(values.get("camera") or {}, dict[str, float], f"{where}: camera")
    name = str(values.get("name") or root.resolve().name)
    if "/" in name:
        raise ValueError(f"{where}: name is {name!r}; it must not hold a slash")
    if camera and not {"fx", "fy", "cx", "cy"} <= camera.keys():
        raise ValueError(f"{where}: camera needs fx, fy, cx and cy; it has {', '.join(camera)}")
    for key in ("fx", "fy", "width", "height"):
        if not 1 <= camera.get(key, 1) <= 1e6:
            raise ValueError(f"{where}: camera: {key} is {camera[key]:g}; allowed: 1 to 1000000 pixels")
    taught = {}
    for task in TASKS if teacher_labels else ():
        file = root / teacher_labels / task / TEACHER_FILE
        if file.is_file():
            taught[task] = TASKS[task].read_section(read_yaml(file).get("section") or {}, f"{file}: section", root)
    folder = Folder(root, name, splits, columns, sections, camera, str(values.get("poses") or ""), taught, layout)
    return dataclasses.replace(folder, sections=sections | shared_sections(folder, values, where))


def shared_sections(folder: Folder, values: Mapping[str, object], where: str) -> dict[str, dict[str, object]]:
    """The sections of tasks without a column whose labels stand in another task's files. `values` of dataset.yaml."""
    found = {}
    for task, kind in TASKS.items():
        column = folder.column_of(task)
        if column in ("", task):
            continue
        own, place = values.get(task) or {}, f"{where}: {task}"
        check_keys(own, set(own) if isinstance(own, Mapping) else set(), place)
        section = kind.section_within(folder.sections[column], own, place)
        if section is not None and (own or kind.labels_in(label_files(folder, column), section)):
            found[task] = section
    return found


def label_files(folder: Folder, column: str) -> Iterator[Path]:
    """The files of a column, split after split, as far as the list files can be read."""
    for split in folder.splits:
        with contextlib.suppress(OSError, ValueError):
            for where, line in list_lines(folder, split):
                labels = parse_line(folder, where, line).labels
                if column in labels:
                    yield labels[column]


def teacher_file(folder: Folder, image: Path, teacher_labels: str, task: str) -> Path:
    """The path of a teacher's label: that of the image inside the data set, below the folder `teacher_labels`/task.

    Raises ValueError for an image outside of the data set.
    """
    try:
        inside = Path(os.path.normpath(image)).relative_to(os.path.normpath(folder.root))
    except ValueError:
        raise ValueError(f"{image}: it is outside of {folder.root}, where a teacher's label could not lie") from None
    return folder.root / teacher_labels / task / inside.with_name(f"{inside.name}{TASKS[task].suffix}")


def read_list(folder: Folder, split: str, teacher_labels: str = "", check_files: bool = True) -> list[Frame]:
    """The frames of a split, in order; a label of a teacher stands in where a frame has no other.

    Raises ValueError with list file and line; also for a missing file, unless `check_files` is False.
    """
    if split not in folder.splits:
        raise ValueError(
            f"{folder.root}: no split {split!r}{near(split, folder.splits)}; it has: {', '.join(folder.splits)}"
        )
    path = folder.root / folder.splits[split]
    frames = [parse_line(folder, where, line) for where, line in list_lines(folder, split)]
    for frame in frames if check_files else ():
        for column, file in {"image": frame.image, **frame.labels}.items():
            if not file.is_file():
                raise FileNotFoundError(f"{frame.where}: {column} {file} is missing")
    if not frames:
        raise ValueError(f"{path}: no frames (split {split!r})")
    for frame in frames:
        for task in folder.taught:
            if task not in frame.labels and folder.derived.get(task) not in frame.labels:
                file = teacher_file(folder, frame.image, teacher_labels, task)
                if file.is_file():
                    frame.taught[task] = file
    return frames


def list_lines(folder: Folder, split: str) -> Iterator[tuple[str, str]]:
    """(list file and line, text) of each frame of a split, with a tab between the columns.

    Raises FileNotFoundError or ValueError: at most MOST_FRAMES lines and MOST_LIST_BYTES are read.
    """
    path = folder.root / folder.splits[split]
    if folder.layout is not None:
        lines = list(itertools.islice(folder.layout.lines(split), MOST_FRAMES + 1))
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such list file (split {split!r})")
    else:
        rows = read_text(path, MOST_LIST_BYTES)
        lines = list(csv_lines(rows, path, folder.root) if path.suffix == ".csv" else tab_lines(rows, path))
    if len(lines) > MOST_FRAMES:
        raise ValueError(f"{path}: {len(lines):,} lines; at most {MOST_FRAMES:,} are read")
    yield from lines


def parse_line(folder: Folder, where: str, line: str) -> Frame:
    """A line of a list file. Raises ValueError at `where` for too few or too many columns, or no image."""
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != len(folder.columns):
        wanted = "<tab>".join(folder.columns)
        raise ValueError(f"{where}: {len(cells)} columns, but dataset.yaml says {len(folder.columns)}: {wanted}")
    if cells[0] == "-":
        raise ValueError(f"{where}: a frame needs an image, '-' is for labels")
    image, *labels = (folder.root / cell for cell in cells)
    named = zip(folder.columns[1:], cells[1:], labels, strict=True)
    found = {column: file for column, cell, file in named if cell != "-"}
    shared = {task: folder.column_of(task) for task in folder.sections if task not in folder.columns}
    return Frame(image, found | {task: found[of] for task, of in shared.items() if of in found}, where)


def label_tasks(folder: Folder) -> list[str]:
    """The tasks for which a data set has labels: files, a teacher's files, or labels derived from another task's."""
    return [name for name in TASKS if name in folder.sections or name in folder.taught or name in folder.derived]


def make_tasks(folder: Folder, config: Config) -> dict[str, Task]:
    """The tasks of `config` for which this data set has labels. Raises ValueError when there is none."""
    for where, names in (("tasks", config.tasks), ("loss_weights", config.loss_weights)):
        for name in names:
            if name not in TASKS:
                raise ValueError(f"{where}: unknown task {name!r}{near(name, TASKS)}; allowed: {', '.join(TASKS)}")
    offered = label_tasks(folder)
    tasks = {}
    for name in config.tasks:
        if name in offered:
            default = TASKS[name].read_section({}, name) if name in folder.derived else {}
            section = folder.sections.get(name) or folder.taught.get(name) or default
            tasks[name] = TASKS[name].from_section(section, config)
    if not tasks:
        raise ValueError(
            f"data: {folder.root} has no label that a task wants: it has {', '.join(offered) or 'none'}, "
            f"the tasks are {', '.join(config.tasks)}"
        )
    return tasks


def make_domains(folders: Sequence[Folder], config: Config) -> tuple[dict[str, Task], dict[str, dict[str, Task]]]:
    """Returns (heads, domains): heads[task] defines the output layer that all data sets share; domains[data set][task]
    is that data set's view of it, its classes and its range.

    A data set without labels for a task takes that of the head. Raises ValueError for two data sets of one name, and
    for a task without labels.
    """
    by_name = {folder.name: folder for folder in folders}
    own = {folder.name: make_tasks(folder, config) for folder in folders}
    for folder in folders:
        if by_name[folder.name] is not folder:
            other = by_name[folder.name]
            theirs = make_tasks(other, config)
            both = [name for name in theirs if name in folder.sections and name in other.sections]
            differ = any(theirs[name].misfit(folder.sections[name]) for name in both)
            clash = ", and their class lists differ" if differ else ""
            raise ValueError(
                f"data: {folder.root} and {other.root} are both called {folder.name!r}{clash}; "
                "give each a name of its own in its dataset.yaml"
            )
    heads: dict[str, Task] = {}
    lent: set[tuple[str, str]] = set()  # (data set, task without labels there)
    for task in config.tasks:
        labeled = {name: tasks[task] for name, tasks in own.items() if task in tasks}
        if not labeled:
            roots = ", ".join(str(folder.root) for folder in folders)
            has = dict.fromkeys(name for folder in folders for name in label_tasks(folder))
            raise ValueError(f"tasks: {roots} has no {task} labels; it has: {', '.join(has)}")
        heads[task], parts = TASKS[task].join(labeled, config.merge_classes)
        for name in own:
            own[name][task] = parts.get(name, heads[task])
            if name not in parts:
                lent.add((name, task))
    heads = all_beside(heads)
    return heads, {name: _domain(name, own[name], heads, lent) for name in own}


def _domain(
    name: str, own: Mapping[str, Task], heads: Mapping[str, Task], lent: Container[tuple[str, str]]
) -> dict[str, Task]:
    """The tasks of a data set, each of which knows the others. One without labels there need not fit them: it is the
    head's then."""
    tasks = {}
    for task in heads:
        try:
            tasks[task] = own[task].beside(own)
        except ValueError:
            if (name, task) not in lent:
                raise
            tasks[task] = heads[task]
    return tasks


def refuse_shared_frames(train: Sequence[Frame], val: Sequence[Frame]) -> None:
    """Raises ValueError for an image that is both trained on and evaluated on."""
    trained = {os.path.realpath(frame.image): frame for frame in train}
    for frame in val:
        if other := trained.get(os.path.realpath(frame.image)):
            raise ValueError(f"{frame.where}: {frame.image} is a training frame as well, in {other.where}")
