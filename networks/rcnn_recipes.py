"""What torchvision's published two-stage detectors differ in, and what they share with the tasks that read their rows.

Apart from the head itself (networks/rcnn_head.py), since torchvision takes a second to load.
"""

from __future__ import annotations

from dataclasses import dataclass

OVERLAP = 0.5  # IoU with a better box of its class above which a box is left out
MASK_SIDE = 28  # cells of a mask


@dataclass(frozen=True)
class Recipe:
    """What differs between torchvision's published networks."""

    every_side: bool = False  # anchors of all SIDES in each map, and not of one
    least_objectness: float = 0.0  # of a proposal
    proposals: int = 1000  # of a picture, when it does not train
    proposal_layers: int = 1  # 3x3
    region_layers: int = 0  # 3x3 with batch norm, before the linear ones


RECIPES = {
    "fasterrcnn": Recipe(),
    "fasterrcnn_v2": Recipe(proposal_layers=2, region_layers=4),
    "maskrcnn": Recipe(),
    "maskrcnn_v2": Recipe(proposal_layers=2, region_layers=4),
    "fasterrcnn_mobile": Recipe(every_side=True, least_objectness=0.05),
    "fasterrcnn_mobile_320": Recipe(every_side=True, least_objectness=0.05, proposals=150),
}
