"""Panoptic quality: how well segments are found, things and stuff alike. Kirillov et al., arXiv 1801.00868.

Beside it the average precision of the things, for which a detector such as Mask R-CNN is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.instance_files import PART, VOID
from tasks.instance_grouping import CLASS, NUMBER, SCORE
from tasks.mask_metrics import MaskMetrics

LEAST_IOU = 0.5  # of a segment and its match; above it there is at most one
MOST_VOID = 0.5  # of a found segment: with more of it where nobody says, it is neither right nor wrong
PARTS = ("", "_things", "_stuff")
NO_THING = 1  # a code that no segment has
OF_THINGS = ("ap", "ap50", "box_ap", "box_ap50")
DIRECTIONS = {f"{name}{part}": 1 for part in PARTS for name in ("pq", "sq", "rq")} | dict.fromkeys(OF_THINGS, 1)


def codes_of(prediction: Tensor) -> Tensor:
    """A panoptic prediction (B, 4, H, W) -> codes (B, H, W) as targets have them; VOID where it has no class."""
    kind, number = prediction[:, CLASS].long(), prediction[:, NUMBER].long()
    return torch.where(kind >= 0, (kind + 1) * PART + number, VOID)


class PanopticMetrics:
    """Counts of matched, missing and false segments of each class, and the IoU of the matched ones of each frame; and
    `MaskMetrics` of the things, by their scores.

    Pixels of which the target does not say what they are do not count: they are taken out of both, as panopticapi does.
    Where it says no more than that there is no thing, a thing is wrong, and stuff does not count. Pixels without a
    class in the prediction are missing there.
    """

    def __init__(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        self.things, self.stuff = tuple(things), tuple(stuff)
        self.counts = torch.zeros(3, len(self.things) + len(self.stuff), dtype=torch.int64)  # matched, false, missing
        self.overlaps: list[Tensor] = []  # (C,) sums of IoU, one for each frame
        self.masks = MaskMetrics(self.things)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction (B, 4, H, W); target (B, H, W) codes: VOID = nobody says, 0 = no thing, stuff is not said."""
        for found, scores, wanted in zip(codes_of(prediction), prediction[:, SCORE], target, strict=True):
            self.count_frame(found, wanted.long())
            if not (wanted == VOID).all():
                first_stuff = (len(self.things) + 1) * PART
                things, truths = (torch.where(codes < first_stuff, codes, 0).cpu().numpy() for codes in (found, wanted))
                self.masks.add_codes(things, scores.float().cpu().numpy(), truths)

    def count_frame(self, found: Tensor, wanted: Tensor) -> None:
        """Codes (H, W) of one frame each."""
        classes, first_stuff = self.counts.shape[1], (len(self.things) + 1) * PART
        wanted = torch.where(wanted >= PART, wanted, torch.where(wanted == 0, NO_THING, 0))
        found = torch.where(found >= PART, found, 0)
        pairs, pixels = (wanted * (PART * (classes + 1)) + found).flatten().unique(return_counts=True)
        pairs, pixels = pairs.cpu(), pixels.cpu().double()
        truth, found = pairs // (PART * (classes + 1)), pairs % (PART * (classes + 1))
        # Segments by their codes; [which] goes from pairs to them.
        true_codes, true_of = truth.unique(return_inverse=True)
        found_codes, found_of = found.unique(return_inverse=True)
        true_area = torch.zeros(len(true_codes), dtype=torch.float64).index_add_(0, true_of, pixels)
        found_area = torch.zeros(len(found_codes), dtype=torch.float64).index_add_(0, found_of, pixels)
        void = (truth == 0) | ((truth == NO_THING) & (found >= first_stuff))
        in_void = torch.zeros_like(found_area).index_add_(0, found_of[void], pixels[void])
        union = true_area[true_of] + (found_area - in_void)[found_of] - pixels
        overlap = pixels / union.clamp(min=1)
        right = (truth >= PART) & (truth // PART == found // PART) & (overlap > LEAST_IOU)
        matched = truth[right] // PART - 1
        missing = torch.ones(len(true_codes), dtype=torch.bool).index_fill_(0, true_of[right], False)
        false = (in_void / found_area <= MOST_VOID).index_fill_(0, found_of[right], False)
        for row, kinds in enumerate((matched, _classes(found_codes, false), _classes(true_codes, missing))):
            self.counts[row] += torch.bincount(kinds, minlength=classes)
        if truth.any():
            sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, matched, overlap[right])
            self.overlaps.append(sums)

    def merge(self, other: PanopticMetrics) -> None:
        self.counts = self.counts + other.counts
        self.overlaps = self.overlaps + other.overlaps
        self.masks.merge(other.masks)

    def compute(self) -> dict[str, float]:
        """pq = sq * rq of each class; their means over all classes that occur, over things, over stuff. In 0..1.

        pq/NAME is that of a class; ap and box_ap are those of the masks and boxes of things. {} when nobody says
        anything of any frame.
        """
        if not self.overlaps:
            return {}
        matched, false, missing = self.counts.double().tolist()
        overlap = [math.fsum(column) for column in torch.stack(self.overlaps).T.tolist()]
        rows: dict[int, tuple[float, float, float]] = {}  # class -> pq, sq, rq
        for index, (hits, wrong, left, total) in enumerate(zip(matched, false, missing, overlap, strict=True)):
            if hits + wrong + left:
                sq, rq = total / max(hits, 1), hits / (hits + wrong / 2 + left / 2)
                rows[index] = (sq * rq, sq, rq)
        count, values = len(self.things), {}
        for part, chosen in (
            ("", rows), ("_things", [i for i in rows if i < count]), ("_stuff", [i for i in rows if i >= count]),
        ):  # fmt: skip
            for place, name in enumerate(("pq", "sq", "rq")):
                if chosen:
                    values[f"{name}{part}"] = math.fsum(rows[i][place] for i in chosen) / len(chosen)
        names = (*self.things, *self.stuff)
        precision = self.masks.compute()
        values |= {name: precision[name] for name in OF_THINGS if name in precision}
        return values | {f"pq/{names[index]}": row[0] for index, row in rows.items()}


def _classes(codes: Tensor, chosen: Tensor) -> Tensor:
    """The classes of the chosen codes; codes below PART have none."""
    return codes[chosen & (codes >= PART)] // PART - 1
