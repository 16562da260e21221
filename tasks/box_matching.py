"""Which predicted box finds which true one, in one frame, by the rules of COCO and PASCAL VOC.

A row of a label: x1, y1, x2, y2, class, ignore, distance. A row of a prediction: x1, y1, x2, y2, score, class,
distance. Coordinates are continuous pixels of the frame: the left edge of the first pixel is 0, the right edge of the
last one is the width. Distances are metres, NaN where unknown.

COCO (pycocotools, Params and evaluateImg): a detection takes the best truth of its class that is still free and whose
IoU is at least the threshold. The 100 best detections of a frame *and class* count. Areas are those of the boxes; the
limits belong to both ranges. Truths outside the area range are taken only where no other one is left. What takes them
is not counted, and neither are detections outside that take none. A truth with `ignore` is a crowd, which is not
counted either: any number of detections can take it, and its IoU is the intersection over the detection's area.

VOC (devkit, VOCevaldet.m): a detection goes to the best truth of its class, if their IoU is more than 0.5. It is a
false positive when a better detection went there. A truth with `ignore` is difficult: neither it nor what goes to it
is counted. All detections of a frame count. The devkit adds 1 pixel to widths and heights, because its corners are the
first and the last pixel of a box, 1-based. In our coordinates such a box is (xmin - 1, ymin - 1, xmax, ymax), and its
IoU is the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
# Square pixels. COCO's highest limit is 1e10; without it, infinite boxes are false positives as well.
AREAS = {"": (0, np.inf), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, np.inf)}
LIMITS = np.array(list(AREAS.values()))
MOST = 100  # detections of a frame and class

# A rule is a way to count. A set of rules is an integer: COCO's thresholds for the first area range are bits 0..9,
# those for the second are bits 10..19, and so on; VOC's rule is the bit after them.
COCO_RULES = len(AREAS) * len(THRESHOLDS)
RULES = COCO_RULES + 1
COCO, VOC = (1 << COCO_RULES) - 1, 1 << COCO_RULES
FIRST = [1 << (len(THRESHOLDS) * number) for number in range(len(AREAS))]  # the first rule of each area range
OF_AREA = np.array([((1 << len(THRESHOLDS)) - 1) * first for first in FIRST])
# The number of thresholds that an IoU reaches -> COCO's rules that it satisfies.
REACHED = [sum(((1 << count) - 1) * first for first in FIRST) for count in range(len(THRESHOLDS) + 1)]


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """(N, 4...) -> (N,) square pixels; 0 for a box that is turned inside out."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def overlaps(boxes: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, 4...), (G, 4...) fp64 -> intersection over union, and intersection over the area of the box, (D, G) each.

    0 or NaN, which match nothing, for boxes that have no area or are not finite.
    """
    low = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    sides = np.maximum(np.minimum(boxes[:, None, 2:4], truths[None, :, 2:4]) - low, 0)
    both, own = sides[..., 0] * sides[..., 1], areas_of(boxes)[:, None]
    return both / (own + areas_of(truths) - both), both / own


class Shapes(NamedTuple):
    """What of D detections and G truths is compared in place of boxes, fp64."""

    iou: np.ndarray  # (D, G)
    inside: np.ndarray  # (D, G) intersection over the area of the detection
    areas: np.ndarray  # (D,) square pixels
    truths: np.ndarray  # (G,)


def boxes_as_shapes(boxes: np.ndarray, truths: np.ndarray) -> Shapes:
    return Shapes(*overlaps(boxes, truths), areas_of(boxes), areas_of(truths))


def outside(areas: np.ndarray) -> np.ndarray:
    """(N,) areas -> (N,) int64, the COCO rules whose area range they are outside of."""
    return ((areas[:, None] < LIMITS[:, 0]) | (areas[:, None] > LIMITS[:, 1])) @ OF_AREA


@dataclass(frozen=True)
class Matches:
    """Sets of rules, int64, and what was found."""

    hits: np.ndarray  # (D,) the rules by which a detection is a true positive
    ignored: np.ndarray  # (D,) those by which it is not counted; by all others it is a false positive
    counted: np.ndarray  # (G,) those by which a truth is to be found
    pairs: np.ndarray  # (N, 2) detection and truth of each true positive of COCO at IoU 0.5


@np.errstate(invalid="ignore", divide="ignore")  # a network may give any numbers
def match(boxes: np.ndarray, truths: np.ndarray, shapes: Shapes | None = None) -> Matches:
    """boxes (D, 7), best score first, and truths (G, 7), both fp64. shapes: such as masks; None: the boxes."""
    shapes = shapes or boxes_as_shapes(boxes, truths)
    # Whether enough better detections have its class.
    late = np.tril(boxes[:, 5:6] == boxes[None, :, 5], -1).sum(1) >= MOST
    same = boxes[:, 5:6] == truths[None, :, 4]
    iou, inside = (values * same for values in shapes[:2])
    crowd = truths[:, 5] != 0
    not_counted = np.where(crowd, COCO, outside(shapes.truths))
    alone = np.where(late, COCO, outside(shapes.areas))
    hits, ignored, pairs = match_coco(np.where(crowd, inside, iou) * ~late[:, None], crowd, not_counted, alone)
    voc_hits, voc_ignored = match_voc(iou, crowd)
    return Matches(hits | VOC * voc_hits, ignored | VOC * voc_ignored, ~not_counted & COCO | VOC * ~crowd, pairs)


def match_coco(
    iou: np.ndarray, crowd: np.ndarray, not_counted: np.ndarray, alone: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy matching by all rules at once -> hits (D,), ignored (D,) and pairs (N, 2), as in `Matches`.

    iou (D, G); crowd (G,); not_counted (G,): the rules by which a truth is not to be found; alone (D,): those by which
    a detection that takes nothing is ignored.
    """
    detection, truth = np.nonzero(iou >= THRESHOLDS[0])
    overlap = iou[detection, truth]
    order = np.lexsort((-truth, -overlap, detection))  # each detection's best truth first; of equals the last
    reached = np.searchsorted(THRESHOLDS, overlap[order], side="right").tolist()
    candidates: dict[int, list[tuple[int, int]]] = {}
    for number, index, count in zip(detection[order].tolist(), truth[order].tolist(), reached, strict=True):
        candidates.setdefault(number, []).append((index, REACHED[count]))
    hits, ignored, pairs = np.zeros_like(alone), alone.copy(), []
    free = [COCO] * len(crowd)  # the rules by which each truth can still be taken
    crowds, unwanted = crowd.tolist(), not_counted.tolist()
    for number, near in candidates.items():
        left = COCO  # the rules by which this detection has taken nothing yet
        for index, rules in near:
            taken = left & rules & free[index] & ~unwanted[index]
            left ^= taken
            free[index] ^= taken
            if taken & 1:
                pairs.append((number, index))
        hits[number] = COCO ^ left
        without = left
        for index, rules in near:
            taken = left & rules & free[index] & unwanted[index]
            left ^= taken
            if not crowds[index]:
                free[index] ^= taken
        ignored[number] = (without ^ left) | (left & int(alone[number]))
    return hits, ignored, np.array(pairs, np.int64).reshape(-1, 2)


def match_voc(iou: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """iou (D, G); difficult (G,) -> hits and ignored, (D,) bool each."""
    hits, ignored = np.zeros((2, len(iou)), bool)
    taken = np.zeros(len(difficult), bool)
    for number in np.flatnonzero((iou > 0.5).any(1)):
        best = iou[number].argmax()  # of equals the first
        ignored[number] = difficult[best]
        hits[number] = not (difficult[best] or taken[best])
        taken[best] = True
    return hits, ignored
