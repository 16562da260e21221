"""For tests of label files with boxes: a task `boxes` that reads them, with the head of list_task.Spots, and small data
sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from list_task import Spots

from config import Config
from dataset import Frames
from drawing import class_palette
from folders import make_tasks, read_folder, read_list
from images import write_png
from sources.validate import check_folder
from tasks.base import HERE
from tasks.box_drawing import box_text, draw_boxes
from tasks.box_files import boxes_at_size, open_boxes, read_box_section, read_boxes
from tasks.box_survey import box_coverage, box_survey_lines, survey_boxes, suspicious_boxes


@dataclass(frozen=True)
class StandIn(Spots):
    name = "boxes"
    best = "recall"
    directions: ClassVar = {"recall": 1, "frames": 1}

    classes: tuple[str, ...] = ()

    @classmethod
    def read_section(cls, section, where, root=HERE):
        return read_box_section(section, where, root)

    @classmethod
    def from_section(cls, section, config):
        return cls(section["classes"])

    def open(self, path, section, image):
        return open_boxes(path, section, image)

    def read(self, path, section, image):
        return read_boxes(path, section, image)

    def at_size(self, label, size, section, path):
        return boxes_at_size(label, size)

    def no_label(self, height, width):
        return np.full((1, 7), np.nan, np.float32)

    def view(self, label, view):
        corners = label[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) - 0.5  # to pixel centers, as the matrix has them
        moved = corners @ view.matrix[:, :2].T + view.matrix[:, 2] + 0.5
        return np.column_stack([moved.min(1), moved.max(1), label[:, 4:]]).astype(np.float32)

    def survey(self, label, section):
        return survey_boxes(label, len(self.classes))

    def coverage(self, survey):
        return box_coverage(survey)

    def suspicion(self, stored, label, section):
        return suspicious_boxes(stored, label)

    def survey_lines(self, surveys, section):
        return box_survey_lines(surveys, self.classes)

    def draw_over(self, picture, prediction):
        colors = class_palette()[1:].tolist()
        kinds = prediction[:, 4].astype(int)
        texts = [box_text(self.classes[kind]) for kind in kinds]
        return draw_boxes(picture, prediction[:, :4], texts, [tuple(colors[kind]) for kind in kinds])


def write_boxes(root: Path, section: dict[str, object], labels: dict[str, object], size: tuple[int, int]) -> Path:
    """A data set of one split, `train`, with a picture of this size for each label: {stem: content of its file}.

    Text and bytes are written as they are, arrays as PNG; None: nobody says; "@name": an existing file.
    """
    suffix = {"yolo": ".txt", "voc": ".xml", "coco": ".json", "instances": ".png"}[section["format"]]
    lines = []
    for stem, content in labels.items():
        write_png(root / f"images/{stem}.png", np.full((*size, 3), 128, np.uint8))
        file = f"labels/{stem}{suffix}"
        if content is None or (isinstance(content, str) and content.startswith("@")):
            file = content[1:] if content else "-"
        elif isinstance(content, np.ndarray):
            write_png(root / file, content)
        else:
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).write_bytes(content.encode() if isinstance(content, str) else content)
        lines.append(f"images/{stem}.png\t{file}\n")
    (root / "train.txt").write_text("".join(lines))
    described = {"splits": {"train": "train.txt"}, "columns": ["image", "boxes"], "boxes": section}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described))
    return root


def boxes_of(root: Path, split: str = "train") -> list[np.ndarray | None]:
    """The label of each frame as training and evaluation read it; None where nobody says."""
    folder = read_folder(root)
    config = Config(tasks=("boxes",))
    frames = Frames(folder, read_list(folder, split), make_tasks(folder, config), config, train=False)
    return [frames.read(index).get("boxes") for index in range(len(frames))]


def report_of(root: Path, capsys: pytest.CaptureFixture[str], faults: int = 1) -> str:
    """What `prepare.py check` prints about a data set with so many faults."""
    picture = root / "check.png"
    assert len(check_folder(root, picture=picture)) == faults
    return capsys.readouterr().out
