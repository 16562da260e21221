"""A task `boxes` that reads the label files of boxes, with the head of list_task.Spots: it stands for tasks with boxes
where their files are tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from list_task import Spots

from drawing import class_palette
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
