"""The head of Faster R-CNN (Ren et al., arXiv 1506.01497), and of Mask R-CNN (He et al., arXiv 1703.06870), on a
feature pyramid, of torchvision's own modules.

What torchvision's `FasterRCNN` and `MaskRCNN` do behind their backbone, with the names of their weights. Two things
differ: losses are those of each frame, so that frames add up over batches and processes, and what is to be ignored is
looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

import distributed
from networks.rcnn_recipes import MASK_SIDE, OVERLAP, RECIPES, Recipe

# Of a frame: boxes (n, 4) and ignored (m, 4) in pixels, labels (n,) from 1 on. Of one with masks also masks (n, H, W),
# and unsaid (H + 1, W + 1): how many pixels above and left of a corner nobody says anything about.
Target = dict[str, Tensor]
TargetOf = Callable[[Tensor, Sequence[int]], Target | None]  # a frame's label and size -> target; None: nobody says

MOST_BOXES = 100  # of a frame
LEAST_SCORE = 0.05
OF_MASKS = "masks"  # torchvision's name of them in targets and in what it finds
OF_FOUND = ("boxes", "labels", "scores")  # what torchvision says of a frame; labels from 1 on
LOSSES = ("objectness", "proposals", "classes", "boxes", "masks")
MASK_WIDTH, MASK_LAYERS = 256, 4
IGNORED_SHARE = 0.5  # of a box without a thing: if more of it lies in an ignored box, it is no background either
ANCHOR_SIDE = 8  # cells of its map: 32 pixels at stride 4, ..., 512 at stride 64
SIDES = (32, 64, 128, 256, 512)  # pixels
RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width
HIDDEN = 1024  # numbers that describe a region
REGION = 7  # cells of a region's side


def in_ignored(boxes: Tensor, ignored: Tensor) -> Tensor:
    """boxes (n, 4), ignored (m, 4) -> (n,) whether one of the ignored boxes has more than a half of the box."""
    if not len(ignored):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.maximum(boxes[:, None, :2], ignored[None, :, :2])
    sides = (torch.minimum(boxes[:, None, 2:], ignored[None, :, 2:]) - low).clamp(min=0)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (sides.prod(2) > IGNORED_SHARE * own[:, None]).any(1)


def unsaid_share(boxes: Tensor, unsaid: Tensor) -> Tensor:
    """boxes (n, 4), unsaid as in `Target` -> (n,) the share of what a box has of the picture."""
    low, high = boxes.new_zeros(2), boxes.new_tensor([unsaid.shape[1] - 1, unsaid.shape[0] - 1])
    x1, y1, x2, y2 = boxes.view(-1, 2, 2).clamp(low, high).round().long().flatten(1).unbind(1)
    inside = unsaid[y2, x2] - unsaid[y1, x2] - unsaid[y2, x1] + unsaid[y1, x1]
    return inside / ((x2 - x1) * (y2 - y1)).clamp(min=1)


def no_background(boxes: Tensor, target: Target) -> Tensor:
    """(n,) whether boxes without a thing are no background either."""
    found = in_ignored(boxes, target["ignored"])
    return found | (unsaid_share(boxes, target["unsaid"]) > IGNORED_SHARE) if "unsaid" in target else found


def stacked(frames: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Two losses of each frame -> (B,) each."""
    return tuple(torch.stack(values) for values in zip(*frames, strict=True))


def nothing(*outputs: Tensor) -> tuple[Tensor, ...]:
    """The losses of a frame of which nothing was drawn, since all of it is ignored: 0, with a gradient of 0."""
    return tuple(value.sum() * 0.0 for value in outputs)


class ProposalHead(rpn.RPNHead):
    """In mixed precision, what becomes corners is computed in fp32."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [self.conv(own) for own in x]
        with torch.autocast(x[0].device.type, enabled=False):
            pairs = [(self.cls_logits(own.float()), self.bbox_pred(own.float())) for own in hidden]
        return tuple(list(own) for own in zip(*pairs, strict=True))


class Predictor(FastRCNNPredictor):
    """In mixed precision, it computes in fp32."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Proposals(rpn.RegionProposalNetwork):
    """Regions that may hold a thing. Losses (B,): of each frame."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for own, corners, target in zip(labels, anchors, targets, strict=True):
            own[(own == 0) & no_background(corners, target)] = -1  # is not drawn
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        counts = [len(own) for own in labels]
        frames = zip(objectness.split(counts), pred_bbox_deltas.split(counts), labels, regression_targets, strict=True)
        loss = super().compute_loss
        return stacked([loss(x, y, [a], [b]) if (a >= 0).any() else nothing(x, y) for x, y, a, b in frames])


class Regions(roi_heads.RoIHeads):
    """The class and the box of each proposal."""

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        self.targets = targets
        return super().select_training_samples(proposals, targets)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for own, corners, target in zip(labels, proposals, self.targets, strict=True):
            own[(own == 0) & no_background(corners, target)] = -1
        return matched, labels

    def losses(
        self, maps: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]], targets: list[Target]
    ) -> tuple[Tensor, ...]:
        """(B,) each: of the classes, of the boxes, and where it has masks, of these."""
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals, sizes)))
        counts = [len(own) for own in labels]
        frames = zip(logits.split(counts), deltas.split(counts), labels, wanted, strict=True)
        loss = roi_heads.fastrcnn_loss
        found = stacked([loss(x, y, [a], [b]) if len(a) else nothing(x, y) for x, y, a, b in frames])
        if not self.has_mask():
            return found
        things = [own > 0 for own in labels]
        regions, matched = ([own[of] for own, of in zip(items, things, strict=True)] for items in (proposals, matched))
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, regions, sizes)))
        frames = zip(logits.split([len(own) for own in regions]), regions, targets, matched, strict=True)
        loss = roi_heads.maskrcnn_loss
        of_masks = [loss(x, [own], [target[OF_MASKS]], [target["labels"]], [a]) for x, own, target, a in frames]
        return *found, torch.stack(of_masks)


def pooling(strides: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """Regions of maps -> (side x side). torchvision takes the maps' scales from the first picture it sees, which is
    wrong for a very small one; here they are known."""
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return pool


class RcnnHead(nn.Module):
    """Maps (B, width, h, w) at strides 4 to 64, and the size of the images -> (B, 100, 6) detections: corners x1, y1,
    x2, y2 in shares of the images, score, class; best first, score 0 = none. With masks (B, 100, 6 + 28 * 28): 0..1 in
    each cell of the box. Corners are computed in fp32: those of half precision are pixels off.

    While it trains: the target -> (B, 4 or 5), the losses of each frame. Frames without a label have 0, and draw no
    proposals. The maps are those of images whose sides were padded to multiples of `multiple`.
    """

    needs_target: ClassVar = True  # the network gives it `size`, and while it trains `target`
    multiple: ClassVar = 32

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        target_of: TargetOf,
        spare: int = 0,
        recipe: Recipe = RECIPES["fasterrcnn"],
        masks: bool = False,
    ) -> None:
        """classes: those that are found; spare: further outputs that take part in scores and stand for nothing."""
        super().__init__()
        self.target_of, self.masks = target_of, masks
        if len(set(channels)) != 1 or len(strides) < 2:
            raise ValueError("Faster and Mask R-CNN read maps of one width, as those of --decoder fpn")
        width, self.strides, self.classes = channels[0], tuple(strides), classes
        sides = tuple(SIDES if recipe.every_side else (ANCHOR_SIDE * stride,) for stride in strides)
        self.rpn = Proposals(
            AnchorGenerator(sides, (RATIOS,) * len(strides)),
            ProposalHead(width, len(RATIOS) * len(sides[0]), recipe.proposal_layers),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": recipe.proposals},
            post_nms_top_n={"training": 2000, "testing": recipe.proposals}, nms_thresh=0.7,
            score_thresh=recipe.least_objectness,
        )  # fmt: skip
        pooled = strides[:-1]  # the coarsest map gives proposals alone
        convolutions = [width] * recipe.region_layers
        hidden = (
            FastRCNNConvFCHead((width, REGION, REGION), convolutions, [HIDDEN], nn.BatchNorm2d) if convolutions else
            TwoMLPHead(width * REGION**2, HIDDEN)
        )  # fmt: skip
        self.roi_heads = Regions(
            pooling(pooled, REGION), hidden, Predictor(HIDDEN, 1 + classes + spare), fg_iou_thresh=0.5,
            bg_iou_thresh=0.5, batch_size_per_image=512, positive_fraction=0.25, bbox_reg_weights=None,
            score_thresh=LEAST_SCORE, nms_thresh=OVERLAP, detections_per_img=MOST_BOXES,
        )  # fmt: skip

        if masks:
            layers, norm = [MASK_WIDTH] * MASK_LAYERS, nn.BatchNorm2d if convolutions else None
            self.roi_heads.mask_roi_pool = pooling(pooled, MASK_SIDE // 2)
            self.roi_heads.mask_head = MaskRCNNHeads(width, layers, 1, norm)
            self.roi_heads.mask_predictor = MaskRCNNPredictor(MASK_WIDTH, MASK_WIDTH, 1 + classes + spare)

    def initialise(self) -> None:
        """As torchvision's constructors do."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.rpn.head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        if self.masks:  # torchvision's weights of 1 and more for few classes begin with a loss of 10
            nn.init.normal_(self.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.001)

    def forward(self, *maps: Tensor, size: Sequence[int] | None = None, target: Tensor | None = None) -> Tensor:
        """size: height and width of the images; None: they were not padded."""
        named = {str(level): x.float() for level, x in enumerate(maps)}  # anchors have the maps' precision
        if size is None:
            size = [side * self.strides[0] for side in maps[0].shape[-2:]]
        if self.training:
            return self.losses(named, size, target)
        images = self.images(named, len(maps[0]), size)
        proposals, _ = self.rpn(images, named)
        found, _ = self.roi_heads(named, proposals, images.image_sizes)
        return torch.stack([self.rows(item, size) for item in found])

    def images(self, maps: dict[str, Tensor], frames: int, size: Sequence[int]) -> ImageList:
        """What torchvision knows of the images: the size to which they were padded, and their own."""
        height, width = (side * self.strides[0] for side in maps["0"].shape[-2:])
        return ImageList(maps["0"].new_zeros(()).expand(frames, 3, height, width), [tuple(size)] * frames)

    def rows(self, found: Target, size: Sequence[int]) -> Tensor:
        """A frame's detections as torchvision gives them, best first -> (100, 6)."""
        height, width = size
        corners, labels, scores = (found[name] for name in OF_FOUND)
        corners = corners / corners.new_tensor([width, height, width, height])
        columns = [corners, scores[:, None], labels[:, None] - 1]
        if self.masks:
            columns.append(found[OF_MASKS].flatten(1))
        table = torch.cat(columns, dim=1)[labels <= self.classes]
        return F.pad(table, (0, 0, 0, MOST_BOXES - len(table)))

    def losses(self, maps: dict[str, Tensor], size: Sequence[int], target: Tensor | None) -> Tensor:
        assert target is not None, "in training, this head takes the target"
        found = [self.target_of(item, size) for item in target]
        labeled = [number for number, item in enumerate(found) if item is not None]
        losses = maps["0"].new_zeros(len(target), len(LOSSES) if self.masks else len(LOSSES) - 1)
        if labeled:
            which = torch.tensor(labeled, device=losses.device)
            own = {name: value if len(labeled) == len(target) else value[which] for name, value in maps.items()}
            targets = [found[number] for number in labeled]
            images = self.images(own, len(labeled), size)
            proposals, of_proposals = self.rpn(images, own, targets)
            of_regions = self.roi_heads.losses(own, proposals, images.image_sizes, targets)
            losses = losses.index_copy(0, which, torch.stack([*of_proposals.values(), *of_regions], dim=1))
        if distributed.count() > 1:  # whose processes wait for a gradient of every weight
            used = sum(value.sum() for value in (*self.parameters(), *maps.values()))
            losses = losses + 0.0 * used
        return losses
