"""Average precision of masks, and of their boxes, after COCO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tasks.average_precision import BoxMetrics
from tasks.box_formats import mask_boxes
from tasks.box_matching import Shapes, areas_of, boxes_as_shapes
from tasks.instance_files import PART, VOID
from tasks.mask_pasting import shared_pixels

OF_MASKS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
OF_BOXES = ("ap", "ap50", "ap75")
DIRECTIONS: Mapping[str, int] = MappingProxyType(
    dict.fromkeys((*OF_MASKS, *(f"box_{name}" for name in OF_BOXES)), 1)
)  # metric -> 1: higher is better


class MaskMetrics:
    """COCO's average precision: of masks, where a thing's area is its pixels, and of boxes around them.

    Pixels of which nobody says anything are a crowd of each class: what has more than a half of itself there is not
    counted.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.masks, self.boxes = BoxMetrics(classes), BoxMetrics(classes)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction (B, K, 9 + 28 * 28) as of tasks/masks.py; target (B, H, W) codes."""
        for rows, codes in zip(prediction.float().cpu().numpy(), target.cpu().numpy(), strict=True):
            if not (codes == VOID).all():
                rows = rows[rows[:, 4] > 0]
                self.add_frame(rows[np.argsort(-rows[:, 4], kind="stable")], codes)

    def add_frame(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Detections (D, 9 + 28 * 28), best first, and codes (H, W) of a frame."""
        self.add_masks(rows[:, :7].copy(), codes, lambda which, count: shared_pixels(rows, which, count))

    def add_codes(self, found: np.ndarray, scores: np.ndarray, codes: np.ndarray) -> None:
        """Codes of found things, their scores, and codes of the label, (H, W) each, of a frame."""
        corners = mask_boxes(found)
        things = np.array(list(corners), np.int64)
        number = np.searchsorted(things, found)
        number[found <= 0] = len(things)  # no thing
        rows = np.zeros((len(things), 7), np.float32)
        rows[:, :4] = np.array(list(corners.values())).reshape(-1, 4)
        rows[:, 5] = things // PART - 1
        for row, (x1, y1, x2, _) in enumerate(corners.values()):
            first = x1 + int((found[y1, x1:x2] == things[row]).argmax())
            rows[row, 4] = scores[y1, first]  # all pixels of a thing have the same
        order = np.argsort(-rows[:, 4], kind="stable")

        def shared(which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            both = np.bincount((number * count + which).ravel(), minlength=(len(things) + 1) * count)
            pixels = both.reshape(-1, count)[order]
            return pixels, pixels.sum(1)

        self.add_masks(rows[order], codes, shared)

    def add_masks(
        self, found: np.ndarray, codes: np.ndarray, share: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """found (D, 7), best first, as of boxes; codes (H, W) of the label; share(numbers (H, W) below `count`, count):
        how many pixels of each number each detection has (D, count), and how many in all (D,)."""
        corners = mask_boxes(codes)  # those below 0 are no things
        things, void = np.array(list(corners), np.int64), bool((codes == VOID).any())
        which, count = np.searchsorted(things, codes) + 2, len(things) + 2
        which[codes == 0], which[codes == VOID] = 0, 1
        shared, areas = share(which, count)
        truths = np.zeros((len(things), 7), np.float32)
        truths[:, :4] = np.array(list(corners.values())).reshape(-1, 4)
        truths[:, 4], truths[:, 6] = things // PART - 1, np.nan
        pixels = np.bincount(which.ravel(), minlength=count)
        found[:, 6] = np.nan
        both = shared[:, 2:].astype(np.float64)
        of_masks = Shapes(
            both / np.maximum(areas[:, None] + pixels[None, 2:] - both, 1), both / np.maximum(areas, 1)[:, None],
            areas.astype(np.float64), pixels[2:].astype(np.float64),
        )  # fmt: skip
        of_boxes = boxes_as_shapes(found.astype(np.float64), truths.astype(np.float64))
        if void:
            in_void = (shared[:, 1] / np.maximum(areas, 1), void_in_boxes(found, codes == VOID))
            crowd = np.zeros((len(self.classes), 7), np.float32)
            crowd[:, 4], crowd[:, 5], crowd[:, 6] = np.arange(len(self.classes)), 1, np.nan
            truths = np.concatenate([truths, crowd])
            of_masks, of_boxes = (
                with_crowd(shapes, inside, len(crowd), float(pixels[1]))
                for shapes, inside in zip((of_masks, of_boxes), in_void, strict=True)
            )
        self.masks.add_frame(found, truths, of_masks)
        self.boxes.add_frame(found, truths, of_boxes)

    def merge(self, other: MaskMetrics) -> None:
        self.masks.merge(other.masks)
        self.boxes.merge(other.boxes)

    def compute(self) -> dict[str, float]:
        """Shares in 0..1; {} without things. ap/NAME is that of a class, of masks."""
        masks, boxes = self.masks.compute(), self.boxes.compute()
        values = {name: value for name, value in masks.items() if name.partition("/")[0] in OF_MASKS}
        return values | {f"box_{name}": boxes[name] for name in OF_BOXES if name in boxes}


def void_in_boxes(boxes: np.ndarray, void: np.ndarray) -> np.ndarray:
    """boxes (D, 4...), void (H, W) bool -> (D,) the share of a box's pixels that are void."""
    sums = np.pad(void.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    high = np.array([void.shape[1], void.shape[0]] * 2)
    x1, y1, x2, y2 = boxes[:, :4].clip(0, high).round().astype(int).T
    inside = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return inside / np.maximum(areas_of(boxes), 1)


def with_crowd(shapes: Shapes, inside: np.ndarray, count: int, area: float) -> Shapes:
    """The shapes with `count` truths more, of which detections have the share `inside` (D,) of their own area."""
    columns = np.repeat(inside[:, None], count, axis=1)
    return Shapes(
        np.concatenate([shapes.iou, np.zeros_like(columns)], axis=1),
        np.concatenate([shapes.inside, columns], axis=1),
        shapes.areas,
        np.append(shapes.truths, [area] * count),
    )


def mask_target(codes: Tensor, size: tuple[int, int]) -> dict[str, Tensor] | None:
    """Codes (H, W) of a frame -> a target of networks/rcnn_head.py; None: nobody says. What is thinner than two pixels
    is neither a thing nor background."""
    from torchvision.ops import masks_to_boxes  # not above: torchvision takes a second to load

    void = codes == VOID
    if void.all():
        return None
    numbers = codes[codes > 0].unique()
    masks = codes[None] == numbers[:, None, None]
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # the right edge of the last pixel
    large = (boxes[:, 2:] - boxes[:, :2] >= 2).all(1)
    target = {
        "boxes": boxes[large], "labels": (numbers[large] // PART).long(), "ignored": boxes[~large],
        "masks": masks[large],
    }  # fmt: skip
    if void.any():
        sums = void.float().cumsum(0).cumsum(1)
        target["unsaid"] = torch.nn.functional.pad(sums, (1, 0, 1, 0))
    return target
