"""KITTI's semantic and depth benchmarks as a data set folder: `python prepare.py kitti`.

The two benchmarks label different frames, so each frame has a mask or a depth map. The layouts of the archives are in
the readme files of KITTI's development kits, devkit_semantics.zip and devkit_depth.zip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from sources.archives import Member, Pair, Source, check_depth, refuse_unpaired, write_classes, write_data_set
from tasks.cityscapes import CITYSCAPES, LAST_ID
from user_input.flags import Parser, positive_int, refuse
from utils import refuse_existing

SEMANTICS_URL = "https://www.cvlibs.net/datasets/kitti/eval_semseg.php?benchmark=semantics2015"
DEPTH_URL = "https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_prediction"

# The masks hold the label ids of Cityscapes. 255 stands for the license plates' -1; the benchmark leaves out all ids
# that are not in CITYSCAPES.
# The categories of labels.py, "object" (poles, lights, signs) being part of "construction". Each has the color of
# its first class.
SIX = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence", "pole", "traffic_light", "traffic_sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
SIX_COMMENT = (
    "The 6 classes are our grouping of the 19 of Cityscapes: its categories, with 'object' (poles, lights, signs) in\n"
    "'construction'. They are not the 6 classes of Nekrasov et al. (2019), whose list is not published."
)
SPLIT_COMMENT = (
    "KITTI has no validation split of the frames with masks: every fifth is one of it here, and frames of one drive\n"
    "can be in both."
)
OVERLAP_COMMENT = (
    "Masks and depth maps are of the same drives: an image with a mask in val may be close to one in train."
)
DEPTH_SECTION = {"metres_per_unit": 1 / 256, "max": 80.0}  # 16-bit PNG, value / 256 = metres, 0 = no reading
VAL_EVERY = 5  # of the 200 labeled frames, and of the drives of --selection: the 5th, 10th, ... are validation
DRIVE, FRAME = r"(\d{4}_\d\d_\d\d_drive_\d{4}_sync)", r"(\d{10})"


def command(argv: Sequence[str]) -> int:
    """`python prepare.py kitti`"""
    parser = Parser(prog="prepare.py kitti", description="makes the KITTI folder; archives may be unpacked already")
    parser.add_argument("--semantics", type=Path, metavar="ZIP", help="data_semantics.zip: 160 + 40 frames with masks")
    parser.add_argument("--depth", type=Path, metavar="ZIP", help="data_depth_annotated.zip: depth maps, no images")
    help_raw = "with --depth: the raw data, e.g. 2011_09_26_drive_0001_sync.zip ..., which holds the images"
    parser.add_argument("--raw", type=Path, nargs="+", metavar="PATH", help=help_raw)
    help_every = "with --depth: every Nth depth map of each training drive, default 5 (two a second)"
    parser.add_argument("--every", type=positive_int, metavar="N", help=help_every)
    help_selection = "data_depth_selection.zip: 1000 depth maps with images; with --depth they are its validation split"
    parser.add_argument("--selection", type=Path, metavar="ZIP", help=help_selection)
    help_classes = "with --semantics: 19 of Cityscapes (default), or 6 groups of them"
    parser.add_argument("--classes", choices=("19", "6"), help=help_classes)
    parser.add_argument("--output", type=Path, default=Path("dataset/kitti"), help="default: dataset/kitti")
    options = parser.parse_args(argv)
    if not options.depth:
        refuse(parser, options, ("raw", "every"), "goes with --depth only")
    if not options.semantics:
        refuse(parser, options, ("classes",), "goes with --semantics only")
    if options.depth and not options.raw:
        raise ValueError("--depth needs --raw: data_depth_annotated.zip has no images, KITTI's raw data has them")
    if not (options.semantics or options.depth or options.selection):
        raise ValueError("name at least one of --semantics, --depth and --selection")
    refuse_existing(options.output)

    with ExitStack() as stack:

        def opened(path: Path) -> Source:
            return stack.enter_context(Source(path))

        pairs = semantic_pairs(opened(options.semantics)) if options.semantics else []
        if options.depth:
            splits = ("train",) if options.selection else ("train", "val")
            raw = [opened(path) for path in options.raw]
            pairs += depth_pairs(opened(options.depth), raw, options.every or 5, splits)
        if options.selection:
            pairs += selected_pairs(opened(options.selection), all_val=options.depth is not None)
        write(options.output, pairs, options.classes or "19")
    return 0


def write(output: Path, pairs: Sequence[Pair], classes: str) -> None:
    names, colors, table = class_table(classes)
    sections = {"segmentation": {"classes": names, "ignore": 255, "colors": colors}, "depth": DEPTH_SECTION}
    tasks = [task for task in sections if any(pair.task == task for pair in pairs)]

    def write_mask(stored: np.ndarray, path: Path) -> None:
        write_classes(path, train_ids(stored, table), colors)

    description = {
        "name": "kitti",
        "splits": {"train": "train.txt", "val": "val.txt"},
        "columns": ["image", *tasks],
        **{task: sections[task] for task in tasks},
    }
    comment = "KITTI, by python prepare.py kitti. No camera: the drives have different ones."
    if "segmentation" in tasks:
        comment += f"\n{SPLIT_COMMENT}" + (f"\n{SIX_COMMENT}" if classes == "6" else "")
    if len(tasks) == 2:
        comment += f"\n{OVERLAP_COMMENT}"
    write_data_set(output, pairs, {"segmentation": write_mask, "depth": check_depth}, description, comment)


# ---------------------------------------------------------------------------------------------- labels


def class_table(classes: str) -> tuple[list[str], list[list[int]], np.ndarray]:
    """'19' or '6' -> names, colors, and (256,) uint8 from Cityscapes' label ids to class ids, 255 = no label."""
    groups = SIX if classes == "6" else {name: (name,) for name in CITYSCAPES}
    table = np.full(256, 255, np.uint8)
    for number, members in enumerate(groups.values()):
        table[[CITYSCAPES[name][0] for name in members]] = number
    return list(groups), [list(CITYSCAPES[members[0]][1]) for members in groups.values()], table


def train_ids(stored: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(H, W) label ids -> (H, W) uint8 class ids. Raises ValueError for values that are not label ids."""
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise ValueError(f"a mask has one 8-bit number a pixel; this file has shape {stored.shape}, {stored.dtype}")
    outside = (stored > LAST_ID) & (stored != 255)
    if outside.any():
        raise ValueError(f"label id {stored[outside][0]}; allowed: 0..{LAST_ID} and 255, the ids of Cityscapes")
    return table[stored]


# ---------------------------------------------------------------------------------------------- frames


def semantic_pairs(source: Source) -> list[Pair]:
    """The frames of data_semantics.zip. It has no validation split: every fifth frame goes into ours."""
    archive = f"data_semantics.zip ({SEMANTICS_URL})"
    images = source.find(r"training/image_2/([^/]+)\.png", "training/image_2/*.png", archive)
    masks = source.find(r"training/semantic/([^/]+)\.png", "training/semantic/*.png", archive)
    refuse_unpaired(images, masks)
    return [
        Pair("val" if number % VAL_EVERY == 0 else "train", *key, images[key], masks[key], "segmentation")
        for number, key in enumerate(sorted(images), 1)
    ]


def depth_pairs(source: Source, raw: Sequence[Source], every: int, splits: Sequence[str]) -> list[Pair]:
    """The left camera's frames of data_depth_annotated.zip whose images are in `raw`.

    Of the training frames of a drive it takes each `every`th. Prints how many frames have no image. Raises ValueError
    when a split has no frame.
    """
    pattern = rf"(train|val)/{DRIVE}/proj_depth/groundtruth/image_02/{FRAME}\.png"
    layout = "train/DRIVE_sync/proj_depth/groundtruth/image_02/*.png"
    maps = source.find(pattern, layout, f"data_depth_annotated.zip ({DEPTH_URL})")
    images: dict[tuple[str, ...], Member] = {}
    for folder in raw:
        # JPEG: monodepth's instructions convert the raw images.
        images = folder.find(rf"{DRIVE}/image_02/data/{FRAME}\.(?:png|jpg)") | images
    pairs, wanted, seen = [], Counter(), Counter()
    for (split, drive, frame), label in sorted(maps.items()):
        seen[split, drive] += 1
        if split not in splits or (split == "train" and seen[split, drive] % every != 1 % every):
            continue
        wanted[split] += 1
        if image := images.get((drive, frame)):
            pairs.append(Pair(split, f"{drive}_{frame}_image_02", image, label, "depth"))
    found = Counter(pair.split for pair in pairs)
    for split in splits:
        if not found[split]:
            raise ValueError(
                f"{source.path}: no image of its {wanted[split]} {split} depth maps is in --raw, which takes archives "
                "and folders with 2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png and the like"
            )
    if missing := wanted.total() - found.total():
        print(f"{missing} of {wanted.total()} depth maps were left out: their images are not in --raw")
    return pairs


def selected_pairs(source: Source, all_val: bool) -> list[Pair]:
    """The frames of data_depth_selection.zip: all for validation, or every fifth drive."""
    folder, archive = "val_selection_cropped/", f"data_depth_selection.zip ({DEPTH_URL})"
    end = rf"_{FRAME}_(image_0[23])\.png"
    pattern = f"{folder}image/{DRIVE}_(?:image|groundtruth_depth){end}"  # the readme says one, the archive the other
    images = source.find(pattern, f"{folder}image/*.png", archive)
    pattern = f"{folder}groundtruth_depth/{DRIVE}_groundtruth_depth{end}"
    maps = source.find(pattern, f"{folder}groundtruth_depth/*.png", archive)
    refuse_unpaired(images, maps)
    drives = sorted({drive for drive, _, _ in images})
    val = drives if all_val else drives[VAL_EVERY - 1 :: VAL_EVERY]
    return [
        Pair("val" if key[0] in val else "train", "_".join((*key, "cropped")), images[key], maps[key], "depth")
        for key in sorted(images)
    ]
