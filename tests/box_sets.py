"""Small data sets with boxes, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from config import Config
from dataset import Frames
from folders import make_tasks, read_folder, read_list
from images import write_png
from sources.validate import check_folder


def write_boxes(root: Path, section: dict[str, object], labels: dict[str, object], size: tuple[int, int]) -> Path:
    """A data set of one split, `train`, with a picture of this size for each label: {stem: content of its file}.

    Text and bytes are written as they are, arrays as PNG; None: nobody says; "@name": an existing file.
    """
    suffix = {"yolo": ".txt", "voc": ".xml", "coco": ".json", "instances": ".png"}[section["format"]]
    lines = []
    for stem, content in labels.items():
        write_png(root / f"images/{stem}.png", np.full((*size, 3), 128, np.uint8))
        file = f"labels/{stem}{suffix}"
        if content is None or (isinstance(content, str) and content.startswith("@")):
            file = content[1:] if content else "-"
        elif isinstance(content, np.ndarray):
            write_png(root / file, content)
        else:
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).write_bytes(content.encode() if isinstance(content, str) else content)
        lines.append(f"images/{stem}.png\t{file}\n")
    (root / "train.txt").write_text("".join(lines))
    described = {"splits": {"train": "train.txt"}, "columns": ["image", "boxes"], "boxes": section}
    (root / "dataset.yaml").write_text(yaml.safe_dump(described))
    return root


def boxes_of(root: Path, split: str = "train", task: str = "boxes") -> list[np.ndarray | None]:
    """The label of each frame as training and evaluation read it; None where nobody says."""
    folder = read_folder(root)
    config = Config(tasks=(task,))
    frames = Frames(folder, read_list(folder, split), make_tasks(folder, config), config, train=False)
    return [frames.read(index).get(task) for index in range(len(frames))]


def report_of(root: Path, capsys: pytest.CaptureFixture[str], faults: int = 1) -> str:
    """What `prepare.py check` prints about a data set with so many faults."""
    picture = root / "check.png"
    assert len(check_folder(root, picture=picture)) == faults
    return capsys.readouterr().out
