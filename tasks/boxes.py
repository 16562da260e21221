"""Boxes of things, each with its class and its distance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import loss
from config import Config
from drawing import class_palette, curves
from geometry import Pixels, View
from metrics import Protocol
from networks.box_head import FIRST_CLASS
from networks.yolo_head import MOST_OWN_MAPS, fields_of_yolo
from tasks.average_precision import DIRECTIONS, BoxMetrics
from tasks.base import HERE, Size, Task, check_choice
from tasks.box_distance import distances
from tasks.box_drawing import box_text, draw_boxes
from tasks.box_files import boxes_at_size, open_boxes, read_box_section, read_boxes, with_few_classes
from tasks.box_kinds import KINDS, Cells, merged, mirrored
from tasks.box_objects import OBJECT, fill_boxes, write_objects
from tasks.box_selection import clipped, differing_boxes
from tasks.box_survey import box_coverage, box_survey_lines, survey_boxes, suspicious_boxes
from tasks.box_teaching import BoxTeaching
from tasks.classes import NO_CLASS, SharesClasses, check_classes, check_outputs
from tasks.instance_sections import boxes_within
from tasks.stored_boxes import StoredBoxes

LEAST_VISIBLE = 0.5  # of a box in a view: what is seen less of is neither a thing to find nor background
LEAST_SIDE_PX = 2.0
CLASS, IGNORE, SCORE, FOUND_CLASS, DISTANCE = 4, 5, 4, 5, 6  # columns of labels, and of predictions
EMPTY_PAGE = 40  # gray on which boxes are drawn without a picture


@dataclass(frozen=True)
class Boxes(SharesClasses, BoxTeaching, Task):
    """Boxes of things. Labels (n, 7): x1, y1, x2, y2 in pixels, class, ignore, distance in metres. Predictions
    (B, 100, 7): x1, y1, x2, y2, score, class, distance; best score first, score 0 = none. Unknown distances are NaN."""

    name = "boxes"
    best = "ap"
    gives = "objects"
    follows_camera = True  # its distances
    counted = "boxes"
    directions: ClassVar = DIRECTIONS
    suffix = ".json"
    shares_files = ("instances",)

    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    outputs: tuple[int, ...] = ()  # of the head that data sets share: those of its classes; () = all, in order
    layers: str = "light"  # of the head: light | plain | yolo | fasterrcnn
    own_maps: int = 0  # of the encoder, which the head `yolo` reads; 0 = the decoder's
    most_overlap: float = 0.6  # IoU with a better box of the class above which a box is the same thing
    least_score: float = 0.3  # of the boxes that are shown and saved; metrics take all
    spare: int = 0  # outputs of the head fasterrcnn after those of the classes, which stand for nothing

    # ------------------------------------------------------------------------------ a data set's files

    @classmethod
    def read_section(cls, section: Mapping[str, object], where: str, root: Path = HERE) -> dict[str, object]:
        return with_few_classes(read_box_section(section, where, root), where)

    @classmethod
    def section_within(
        cls, other: Mapping[str, object], own: Mapping[str, object], where: str
    ) -> dict[str, object] | None:
        """Around the things of masks, and of COCO's json. A section of its own is that of files which no list names."""
        return None if own else boxes_within(other)

    @classmethod
    def from_section(cls, section: Mapping[str, object], config: Config) -> Boxes:
        classes = section["classes"]
        colors = tuple(map(tuple, class_palette()[1 : len(classes) + 1].tolist()))
        most = min(cls.most_overlap, KINDS[config.box_layers].most_overlap)
        fields = {"most_overlap": most, **fields_of_yolo(config)}
        return cls(classes, colors, layers=config.box_layers, **fields)

    @property
    def kind(self) -> Cells:
        """What the kind of the head answers."""
        return KINDS[self.layers]

    def section(self) -> dict[str, object]:
        return {"format": "objects", "classes": list(self.classes)}

    def check_fields(self) -> None:
        check_classes(self.classes, self.colors)
        check_choice("layers", self.layers, tuple(KINDS))
        if not 0 <= self.spare <= (0 if self.kind.in_cells else NO_CLASS):
            raise ValueError(f"spare is {self.spare}; it must be 0, or with layers fasterrcnn at most {NO_CLASS}")
        if (self.layers == "yolo") != (0 < self.own_maps <= MOST_OWN_MAPS):
            raise ValueError(
                f"own_maps is {self.own_maps}; it must be 1 to {MOST_OWN_MAPS} for yolo, 0 for other layers"
            )
        for name in ("most_overlap", "least_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be in 0..1")

    def check_part_of(self, head: Boxes) -> None:
        if self.outputs:
            check_outputs(self, len(head.classes))
        elif len(self.classes) != len(head.classes):
            raise ValueError(f"boxes: it has {len(self.classes)} classes, its head {len(head.classes)}")

    @classmethod
    def join(cls, tasks: Mapping[str, Boxes], merge: bool) -> tuple[Boxes, dict[str, Boxes]]:
        head, parts = super().join(tasks, merge)
        if head.kind.one_list and any(part.is_part for part in parts.values()):
            raise ValueError(
                f"box_layers: {head.layers} takes data sets of one class list; light and plain take several"
            )
        return head, parts

    def with_thresholds(self, score: float | None, overlap: float | None) -> Boxes:
        if overlap is not None and overlap > self.kind.most_overlap:
            raise ValueError(f"--overlap: {self.layers} takes at most {self.kind.most_overlap:g}")
        given = {"least_score": score, "most_overlap": overlap}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})

    def open(self, path: Path, section: Mapping[str, object], image: Path) -> StoredBoxes:
        return open_boxes(path, section, image)

    def read(self, path: Path, section: Mapping[str, object], image: Path) -> StoredBoxes:
        return read_boxes(path, section, image)

    def at_size(self, label: StoredBoxes, size: Size, section: Mapping[str, object], path: Path) -> np.ndarray:
        return boxes_at_size(label, size)

    def no_label(self, height: int, width: int) -> np.ndarray:
        return np.full((1, 7), np.nan, np.float32)

    def view(self, label: np.ndarray, view: View) -> np.ndarray:
        """Boxes around the corners as the view sees them, cut at its border. Those of which less than half is seen are
        to be ignored, those of which nothing is seen are left out. The camera of a zoomed view is nearer."""
        # To pixel centres, as the matrix has them, and back.
        corners = label[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) - 0.5
        moved = corners @ view.matrix[:, :2].T + view.matrix[:, 2] + 0.5
        whole = np.concatenate([moved.min(1), moved.max(1)], axis=1)
        seen = whole.clip(0, np.array([view.width, view.height] * 2))
        sides, all_sides = seen[:, 2:] - seen[:, :2], whole[:, 2:] - whole[:, :2]
        share = sides.prod(1) / np.maximum(all_sides.prod(1), 1e-9)
        ignore = (label[:, IGNORE] > 0) | (share < LEAST_VISIBLE) | (sides.min(1) < LEAST_SIDE_PX)
        rows = np.column_stack([seen, label[:, CLASS], ignore, label[:, DISTANCE] / view.zoom])
        return rows[sides.min(1) > 0].astype(np.float32)

    # ------------------------------------------------------------------------------ what a data set's labels hold

    def survey(self, label: np.ndarray, section: Mapping[str, object]) -> np.ndarray:
        return survey_boxes(label, len(self.classes))

    def coverage(self, survey: np.ndarray) -> str:
        return box_coverage(survey)

    def suspicion(self, stored: object, label: np.ndarray, section: Mapping[str, object]) -> tuple[str, str] | None:
        return suspicious_boxes(stored, label)

    def survey_lines(self, surveys: Mapping[str, np.ndarray], section: Mapping[str, object]) -> list[str]:
        return box_survey_lines(surveys, self.classes)

    # ------------------------------------------------------------------------------ batches

    def collate(self, labels: Sequence[Tensor]) -> Tensor:
        """(n, 7) each -> (B, M, 7), where rows of class -1 fill up."""
        most = max(1, *(len(label) for label in labels))
        target = labels[0].new_zeros(len(labels), most, 7)
        target[..., CLASS], target[..., DISTANCE] = -1, math.nan
        for row, label in zip(target, labels, strict=True):
            row[: len(label)] = label
        return target

    def pick(self, target: Tensor, frames: Sequence[int]) -> Tensor:
        return target[torch.tensor(frames).to(target.device, non_blocking=True)]

    # ------------------------------------------------------------------------------ the network

    def levels(self, strides: Sequence[int]) -> tuple[int, ...]:
        return self.kind.levels(strides, self.own_maps)

    def head(self, channels: Sequence[int], strides: Sequence[int], config: Config) -> nn.Module:
        return self.kind.head(channels, strides, len(self.classes), self.spare, config)

    @property
    def no_graph(self) -> str:
        return self.kind.no_graph

    def select(self, raw: Tensor) -> Tensor:
        if not self.outputs:
            return raw
        # Not raw[..., list]: on a GPU, copying the list there would wait for the forward pass.
        columns = raw[..., FIRST_CLASS:].unbind(2)
        return torch.cat([raw[..., :FIRST_CLASS], torch.stack([columns[output] for output in self.outputs], 2)], dim=2)

    def thin(self, target: Tensor, pixels: Pixels) -> Tensor:
        """Corners in shares of the view, as the loss takes them; all boxes."""
        height, width = pixels.size
        return target / target.new_tensor([width, height, width, height, 1, 1, 1])

    def weight(self, target: Tensor) -> float:
        return float(self.kind.weight(target))

    def loss(self, raw: Tensor, target: Tensor) -> loss.Loss:
        return self.kind.loss(raw, target)

    def decode(self, raw: Tensor, size: Size) -> Tensor:
        return self._at_size(self.kind.chosen(self.kind.rows(raw), self.most_overlap), size)

    def merge(self, views: Sequence[tuple[Tensor, float, bool]], size: Size) -> Tensor:
        """The boxes of all views, of which those of one thing suppress each other."""
        found = [mirrored(self.kind.rows(raw)) if flipped else self.kind.rows(raw) for raw, _, flipped in views]
        return self._at_size(merged(found, self.most_overlap), size)

    def _at_size(self, found: Tensor, size: Size) -> Tensor:
        """(B, K, 6) in shares of the frame -> a prediction in its pixels, without distances."""
        height, width = size
        corners = torch.stack([found[..., column] * side for column, side in enumerate((width, height) * 2)], dim=2)
        return torch.cat([corners, found[..., 4:], torch.full_like(found[..., :1], math.nan)], dim=2)

    def crop(self, raw: Tensor, size: Size, padded: Size) -> Tensor:
        return self.kind.crop(raw, size, padded)

    def cut(self, prediction: Tensor, size: Size) -> Tensor:
        return clipped(prediction, size)

    def resize(self, prediction: Tensor, before: Size, size: Size) -> Tensor:
        y, x = (new / old for new, old in zip(size, before, strict=True))
        return prediction * prediction.new_tensor([x, y, x, y, 1, 1, 1])

    def complete(self, prediction: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        return self._with_distances(prediction, prediction[..., FOUND_CLASS], others, tasks)

    def complete_target(self, target: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
        return self._with_distances(target, target[..., CLASS], others, tasks)

    def _with_distances(
        self, boxes: Tensor, kinds: Tensor, others: Mapping[str, Tensor], tasks: Mapping[str, Task]
    ) -> Tensor:
        """The boxes with distances, where they are not known, by the metres and the classes of the same frame."""
        gives = {tasks[name].gives: name for name in others}
        if "metres" not in gives:
            return boxes
        classes = own = None
        if "classes" in gives:
            classes, names = others[gives["classes"]], tasks[gives["classes"]].classes
            ids = boxes.new_tensor([names.index(name) if name in names else -1 for name in self.classes])
            own = ids[kinds.nan_to_num().clamp(min=0).long()].long()
        far = distances(boxes[..., :4], others[gives["metres"]], classes, own)
        known = boxes[..., DISTANCE]
        far = torch.where(known.isnan() & (kinds >= 0), far, known)
        return torch.cat([boxes[..., :DISTANCE], far[..., None]], dim=2)

    # ------------------------------------------------------------------------------ reports

    def metrics(self, protocol: Protocol) -> BoxMetrics:
        return BoxMetrics(self.classes)

    def charts(self, metrics: BoxMetrics) -> dict[str, np.ndarray]:
        lines = metrics.precision_recall()
        return {"precision_recall": curves(lines, "recall", "precision")} if lines else {}

    def output_fault(self, value: Tensor, frames: int, size: Size | None) -> str:
        columns = self.kind.columns(len(self.classes)) if size is None else 7
        if value.is_floating_point() and value.dim() == 3 and value.shape[::2] == (frames, columns) and value.shape[1]:
            return ""
        kind = str(value.dtype).removeprefix("torch.")
        return f"is {kind} {tuple(value.shape)}; expected numbers ({frames}, boxes, {columns})"

    def arrays(self, prediction: Tensor) -> list[np.ndarray]:
        """Of each frame the objects whose score is at least `least_score`, best first, as a structured array: `box` (4)
        in pixels, `score`, `class`, `distance_m` along the optical axis, `xyz_m` (3); NaN where it is not known."""
        return [self.objects(rows) for rows in prediction.float().cpu().numpy()]

    def objects(self, rows: np.ndarray) -> np.ndarray:
        """(K, 7) as predicted -> structured array."""
        rows = rows[(rows[:, SCORE] >= self.least_score) & (rows[:, SCORE] > 0)]
        found = np.zeros(len(rows), OBJECT)
        found["box"], found["score"], found["class"] = rows[:, :4], rows[:, SCORE], rows[:, FOUND_CLASS]
        found["distance_m"], found["xyz_m"] = rows[:, DISTANCE], np.nan
        return found

    def for_camera(self, prediction: np.ndarray, zoom: float) -> np.ndarray:
        scaled = prediction.copy()
        scaled["distance_m"] *= np.float32(zoom)
        return scaled

    def in_space(self, prediction: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
        """With `xyz_m`: x right, y down, z forward, of the middle of each box at its distance."""
        placed, boxes = prediction.copy(), prediction["box"]
        # Pixel centres are at whole numbers: the left edge of the picture is at -0.5.
        x, y = (boxes[:, 0] + boxes[:, 2] - 1) / 2, (boxes[:, 1] + boxes[:, 3] - 1) / 2
        rays = np.stack([(x - camera["cx"]) / camera["fx"], (y - camera["cy"]) / camera["fy"], np.ones(len(x))], axis=1)
        placed["xyz_m"] = rays * prediction["distance_m"][:, None]
        return placed

    def thing_map(self, prediction: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Of the boxes that cover a pixel, the smallest has it."""
        return fill_boxes(prediction["box"], size), prediction

    def difference(self, found: Tensor, wanted: Tensor, tolerance: float) -> tuple[float, int, int]:
        """(largest difference of the corners of the same box in pixels, boxes without a counterpart, boxes in all).

        Counted are boxes with `least_score`; `counterparts` says which is one, for a tolerance of at least 0.01.
        """
        return differing_boxes(found.float(), wanted.float(), self.least_score, max(tolerance, 0.01))

    def draw(self, prediction: np.ndarray, size: Size | None = None, shown: Size | None = None) -> np.ndarray:
        page = np.full((*(shown or size), 3), EMPTY_PAGE, np.uint8)
        return self.draw_over(page, prediction, size)

    def draw_over(self, picture: np.ndarray, prediction: np.ndarray, size: Size | None = None) -> np.ndarray:
        height, width = size or picture.shape[:2]
        scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
        if prediction.dtype == OBJECT:
            items = prediction[::-1]  # the best one on top
            boxes, kinds = items["box"], items["class"]
            texts = [box_text(self.classes[i["class"]], i["distance_m"], i["score"]) for i in items]
        else:  # a label
            boxes, kinds = prediction[:, :4], np.nan_to_num(prediction[:, CLASS]).astype(int)
            texts = [
                box_text(self.classes[kind], row[DISTANCE]) + (" (ignored)" if row[IGNORE] else "")
                for kind, row in zip(kinds, prediction, strict=True)
            ]
        return draw_boxes(picture, boxes * scale, texts, [self.colors[kind] for kind in kinds])

    def legend(self, prediction: np.ndarray) -> list[tuple[str, tuple[int, int, int]]]:
        column = prediction["class"] if prediction.dtype == OBJECT else prediction[:, CLASS]
        kinds, counts = np.unique(column[np.isfinite(column)].astype(int), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(f"{self.classes[kinds[i]].replace('_', ' ')} {counts[i]}", self.colors[kinds[i]]) for i in order]

    @classmethod
    def file_name(cls, stem: str) -> str:
        return f"{stem}_objects.json"

    def save(self, prediction: np.ndarray, path: Path) -> None:
        """Without picture and size, as labels whose boxes are of any size have them."""
        self.save_frame(prediction, path, "", (0, 0))

    def save_frame(self, prediction: np.ndarray, path: Path, image: str, size: Size) -> None:
        write_objects(path, prediction, self.classes, image, size)
