"""Average precision of boxes after COCO and PASCAL VOC, and how far off their distances are.

COCO: precision is the largest at this recall or a higher one, read at 101 recalls, and averaged over classes,
thresholds of IoU and recalls as pycocotools does. VOC: the area below that precision (since 2010), or its mean at 11
recalls (until 2009), averaged over classes. Classes without truths are left out. All detections of a frame without
truths are false positives. What a match is, and what is ignored, stands in tasks/box_matching.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tasks.box_matching import AREAS, COCO_RULES, RULES, THRESHOLDS, Shapes, match

DIRECTIONS: Mapping[str, int] = MappingProxyType({  # metric -> 1: higher is better, -1: lower is better
    "ap": 1, "ap50": 1, "ap75": 1, "ap_small": 1, "ap_medium": 1, "ap_large": 1, "ar100": 1, "voc_ap50": 1,
    "voc_ap50_11": 1, "distance_median": -1, "distance_rel": -1,
})  # fmt: skip
RECALLS = np.linspace(0, 1, 101)
ELEVEN = np.arange(11) / 10  # quotients, as recalls are: 3 hits of 10 truths are a recall of 0.3, exactly
AP50, AP75 = 0, 5  # indices into THRESHOLDS

RECORD = np.dtype([("score", "f4"), ("label", "i2"), ("hits", "i8"), ("ignored", "i8")])  # a detection: 22 bytes


def holds(sets: np.ndarray, rule: int | np.ndarray) -> np.ndarray:
    """Whether the rule is in each set of rules (tasks/box_matching.py)."""
    return (sets >> rule & 1).astype(bool)


@dataclass(frozen=True)
class Curves:
    """What the values of `BoxMetrics` are means of; NaN for classes without truths."""

    precision: np.ndarray  # (areas, thresholds, recalls, C)
    recall: np.ndarray  # (areas, thresholds, C): the highest that is reached
    voc: np.ndarray  # (2, C): average precision as an area, and at 11 recalls


def envelope(records: np.ndarray, rule: int, truths: int, tiny: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Recall, and the largest precision at this recall or a higher one, after each detection that the rule counts.

    records (N,) RECORD of a class, best score first. `tiny` is added to the number of detections.
    """
    hit = holds(records["hits"], rule)
    hit = hit[~holds(records["ignored"], rule)]
    hits = hit.cumsum()
    precision = hits / (np.arange(1, len(hit) + 1) + tiny)
    return hits / truths, np.maximum.accumulate(precision[::-1])[::-1]


def read_at(recalls: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The precision of an `envelope` at these recalls; 0 beyond the highest one."""
    return np.append(precision, 0)[np.searchsorted(recall, recalls)]


def curves_of(records: np.ndarray, truths: np.ndarray) -> Curves:
    """records (N,) RECORD, where those of equal score stay in their order; truths (C, RULES): how many there are."""
    records = records[np.argsort(-records["score"], kind="stable")]
    records = records[np.argsort(records["label"], kind="stable")]
    ends = np.searchsorted(records["label"], np.arange(len(truths) + 1))
    precision = np.full((COCO_RULES, len(RECALLS), len(truths)), np.nan)
    recall, voc = np.full((COCO_RULES, len(truths)), np.nan), np.full((2, len(truths)), np.nan)
    for label, rule in np.argwhere(truths):
        own, count = records[ends[label] : ends[label + 1]], truths[label, rule]
        if rule < COCO_RULES:
            # pycocotools adds the smallest step above 1; so a perfect AP of one detection is 1 - 2e-16.
            found, best = envelope(own, rule, count, np.spacing(1))
            recall[rule, label] = found[-1] if len(found) else 0
            precision[rule, :, label] = read_at(RECALLS, found, best)
        else:
            found, best = envelope(own, rule, count)
            voc[:, label] = (np.diff(found, prepend=0) * best).sum(), read_at(ELEVEN, found, best).mean()
    shape = (len(AREAS), len(THRESHOLDS))
    return Curves(precision.reshape(*shape, *precision.shape[1:]), recall.reshape(*shape, -1), voc)


def mean(values: np.ndarray) -> float:
    """Of what is not NaN. In the order of pycocotools, for the same last digit."""
    return float(values[~np.isnan(values)].mean())


class BoxMetrics:
    """Average precision and errors of distances.

    Detections of equal score in different frames stand in the order of the frames' digests, not in that of `update` and
    `merge`. So the values are the same, bit for bit, however frames are split into batches and processes.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.truths = np.zeros((len(classes), RULES), np.int64)
        self.frames: list[tuple[bytes, np.ndarray]] = []  # digest, (N,) RECORD
        self.distances: list[np.ndarray] = []  # (N, 2) metres, predicted and true, of hits of IoU 0.5 with both

    def update(self, prediction: Tensor, target: Tensor | Sequence[Tensor]) -> None:
        """prediction (B, K, 7): x1, y1, x2, y2, score, class, distance; rows with score 0 are no boxes.

        target: B labels (n, 7) of x1, y1, x2, y2, class, ignore, distance, or all of them in one tensor (B, M, 7),
        where rows with class -1 are padding. A row of NaN: nobody says what is there, and the frame is left out.
        Raises ValueError for another shape, and for classes and corners that cannot be.
        """
        if prediction.dim() != 3 or prediction.shape[2] != 7 or len(prediction) != len(target):
            raise ValueError(
                f"boxes: got predictions of shape {tuple(prediction.shape)} for {len(target)} frames; "
                "they must be (frames, boxes, 7)"
            )
        # One copy from the device for all labels.
        labels = torch.cat(list(target)).float().cpu().split([len(label) for label in target]) if len(target) else ()
        for boxes, label in zip(prediction.float().cpu().numpy(), labels, strict=True):
            truths = label.numpy()
            truths = truths[truths[:, 4] != -1]
            if not np.isnan(truths).all(1).any():
                self.add_frame(boxes[boxes[:, 4] > 0], truths)

    def add_frame(self, boxes: np.ndarray, truths: np.ndarray, shapes: Shapes | None = None) -> None:
        """The detections (D, 7) and truths (G, 7) of a frame. With `shapes` of them, as masks are, the detections must
        be sorted, best first."""
        for what, ids in (("prediction", boxes[:, 5]), ("label", truths[:, 4])):
            wrong = ids[~((ids >= 0) & (ids < len(self.classes)) & (ids == np.floor(ids)))]
            if len(wrong):
                raise ValueError(f"boxes: a {what} has class {wrong[0]:g}; allowed: 0..{len(self.classes) - 1}")
        if not np.isfinite(truths[:, :4]).all():
            raise ValueError("boxes: a label has corners that are not finite")
        if shapes is None:
            boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
        found = match(boxes.astype(np.float64), truths.astype(np.float64), shapes)
        records = np.empty(len(boxes), RECORD)
        records["score"], records["label"] = boxes[:, 4], boxes[:, 5]
        records["hits"], records["ignored"] = found.hits, found.ignored
        # The truths come first: where they differ, the order is the same for the predictions of all networks.
        digest = b"".join(hashlib.blake2b(values.tobytes(), digest_size=8).digest() for values in (truths, boxes))
        self.frames.append((digest, records))
        np.add.at(self.truths, truths[:, 4].astype(int), holds(found.counted[:, None], np.arange(RULES)))
        distances = np.column_stack([boxes[found.pairs[:, 0], 6], truths[found.pairs[:, 1], 6]])
        known = np.isfinite(distances).all(1) & (distances[:, 1] > 0)
        self.distances.append(distances[known])

    def merge(self, other: BoxMetrics) -> None:
        self.truths = self.truths + other.truths
        self.frames, self.distances = self.frames + other.frames, self.distances + other.distances

    def _curves(self) -> Curves:
        ordered = sorted(self.frames, key=lambda frame: frame[0])
        return curves_of(np.concatenate([np.empty(0, RECORD), *(records for _, records in ordered)]), self.truths)

    def compute(self) -> dict[str, float]:
        """Shares in 0..1; distance_median in metres, distance_rel a share of the true distance.

        A value that no truth decides is left out: {} without truths, no ap_large without large ones.
        """
        if not self.truths.any():
            return {}
        found = self._curves()
        precision, recall = found.precision, found.recall
        parts = {
            "ap": precision[0], "ap50": precision[0, AP50], "ap75": precision[0, AP75],
            **{f"ap{name}": precision[number] for number, name in enumerate(AREAS) if name},
            "ar100": recall[0], "voc_ap50": found.voc[0], "voc_ap50_11": found.voc[1],
            **{f"ap/{name}": precision[0, :, :, number] for number, name in enumerate(self.classes)},
        }  # fmt: skip
        values = {name: mean(part) for name, part in parts.items() if not np.isnan(part).all()}
        pairs = np.concatenate(self.distances)
        if len(pairs):
            errors = np.abs(pairs[:, 0].astype(np.float64) - pairs[:, 1])
            values |= {
                "distance_median": float(np.median(errors)),
                "distance_rel": float(np.median(errors / pairs[:, 1])),
            }
        return values

    def precision_recall(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{name: (recalls, precision)} after COCO, averaged over the classes, for a chart; {} without truths."""
        precision = self._curves().precision[0]
        precision = precision[..., ~np.isnan(precision[0, 0])]
        if not precision.size:
            return {}
        parts = {"IoU .50": precision[AP50], "IoU .75": precision[AP75], "IoU .50:.95": precision.mean(0)}
        return {f"{name}  AP {part.mean():.3f}": (RECALLS, part.mean(1)) for name, part in parts.items()}
