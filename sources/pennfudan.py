"""Penn-Fudan, pedestrians with instance masks, as a data set folder: `python prepare.py pennfudan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sources.archives import Pair, Source, refuse_unpaired, write_data_set
from sources.download import download
from user_input.flags import Parser
from utils import refuse_existing

URL = "https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip"
BYTES = 53_723_336
FRAMES = 170
# There is no official split. The frames in order of their names, shuffled with this seed: the last quarter is
# validation. RandomState, because numpy keeps its numbers the same for ever (NEP 19).
SEED = 0


def command(argv: Sequence[str]) -> int:
    """`python prepare.py pennfudan`"""
    parser = Parser(prog="prepare.py pennfudan", description="makes the Penn-Fudan folder: 128 + 42 frames, people")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--download", action="store_true", help="fetch PennFudanPed.zip (54 MB)")
    source.add_argument("--images", type=Path, metavar="PATH", help="PennFudanPed.zip or its folder")
    parser.add_argument("--output", type=Path, default=Path("dataset/pennfudan"), help="default: dataset/pennfudan")
    options = parser.parse_args(argv)
    refuse_existing(options.output)
    archive = options.images
    if options.download:
        archive = options.output.parent / "PennFudanPed.zip"
        download(URL, BYTES, archive, "python prepare.py pennfudan --images FILE")
    with Source(archive) as source:
        pairs = split_pairs(source)
        description = {
            "name": "pennfudan",
            "splits": {"train": "train.txt", "val": "val.txt"},
            "columns": ["image", "instances"],
            "instances": {"classes": ["person"], "stuff": ["background"]},
        }
        comment = (
            f"Penn-Fudan, by python prepare.py pennfudan; our split: shuffled with seed {SEED}, then the last quarter"
        )
        counts = write_data_set(options.output, pairs, {"instances": check_instances}, description, comment)
    if sum(counts.values()) != FRAMES:
        print(f"Penn-Fudan has {FRAMES} frames")
    return 0


def split_pairs(source: Source) -> list[Pair]:
    """The frames in order of their names, with their split. Raises ValueError for another archive."""
    archive = f"PennFudanPed.zip ({URL})"
    images = source.find(r"PNGImages/([^/]+)\.png", "PNGImages/*.png", archive)
    masks = source.find(r"PedMasks/([^/]+)_mask\.png", "PedMasks/*_mask.png", archive)
    refuse_unpaired(images, masks)
    if len(images) < 4:
        raise ValueError(f"{source.path}: {len(images)} frames; the split needs 4, Penn-Fudan has {FRAMES}")
    val = validation_part(list(images))
    return [
        Pair("val" if key in val else "train", *key, images[key], masks[key], "instances") for key in sorted(images)
    ]


def validation_part(keys: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The last quarter, rounded down, of the keys in a random order that depends on the keys alone."""
    order = np.random.RandomState(SEED).permutation(len(keys))
    ordered = sorted(keys)
    return {ordered[number] for number in order[len(keys) - len(keys) // 4 :]}


def check_instances(stored: np.ndarray, path: Path) -> None:
    """The file stays as it is. Raises ValueError when it cannot be a mask of people."""
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise ValueError(f"a mask has one 8-bit number a pixel; this file has shape {stored.shape}, {stored.dtype}")
