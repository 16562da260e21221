"""Kaggle's Carvana archives as a data set folder: `python prepare.py carvana`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from images import open_image
from sources.archives import Pair, Source, refuse_unpaired, write_classes, write_data_set
from user_input.flags import Parser
from utils import refuse_existing

CARVANA_URL = "https://www.kaggle.com/c/carvana-image-masking-challenge/data"
CLASSES = {"background": [0, 0, 0], "car": [0, 0, 142]}
KEY = r"([0-9a-f]+)_(\d\d)"  # car, view
# Labels are public for Kaggle's training cars only, so all splits come from them. A car is in one split with all
# of its 16 views: of every ten cars, in order of their ids, the 9th is validation and the 10th is test.
SPLITS = ("train",) * 8 + ("val", "test")


def command(argv: Sequence[str]) -> int:
    """`python prepare.py carvana`"""
    parser = Parser(prog="prepare.py carvana", description="makes the Carvana folder: 318 cars, 16 views each")
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help="train.zip or its folder")
    parser.add_argument("--masks", type=Path, required=True, metavar="PATH", help="train_masks.zip or its folder")
    parser.add_argument("--output", type=Path, default=Path("dataset/carvana"), help="default: dataset/carvana")
    options = parser.parse_args(argv)
    refuse_existing(options.output)
    with ExitStack() as stack:
        images, masks = (stack.enter_context(Source(path)) for path in (options.images, options.masks))
        images = images.find(KEY + r"\.jpg", "ID_NN.jpg", f"train.zip ({CARVANA_URL})")
        masks = masks.find(KEY + r"_mask\.gif", "ID_NN_mask.gif", f"train_masks.zip ({CARVANA_URL})")
        refuse_unpaired(images, masks)
        cars = sorted({car for car, _ in images})
        if len(cars) < len(SPLITS):
            raise ValueError(f"{options.images}: {len(cars)} cars; the splits need {len(SPLITS)}, Kaggle has 318")
        splits = {car: SPLITS[number % len(SPLITS)] for number, car in enumerate(cars)}
        pairs = [Pair(splits[key[0]], "_".join(key), images[key], masks[key], "segmentation") for key in sorted(images)]
        description = {
            "name": "carvana",
            "splits": {split: f"{split}.txt" for split in ("train", "val", "test")},
            "columns": ["image", "segmentation"],
            "segmentation": {"classes": list(CLASSES), "ignore": 255, "colors": list(CLASSES.values())},
        }
        comment = "Carvana, by python prepare.py carvana; no car is in two splits"
        write_data_set(options.output, pairs, {"segmentation": write_mask}, description, comment)
    return 0


def write_mask(stored: np.ndarray, path: Path) -> None:
    """Rewrites the GIF at `path` (black and a white car, by its palette) as a PNG of 0 and 1. Raises ValueError."""
    gray = np.array(open_image(path).convert("L"))  # not `stored`: a palette may have white at 0
    if not np.isin(gray, (0, 255)).all():
        values = np.unique(gray)[:5].tolist()
        raise ValueError(f"a mask of Carvana is black and white; this file has the gray values {values}")
    write_classes(path, (gray > 0).astype(np.uint8), list(CLASSES.values()))
