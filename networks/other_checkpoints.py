"""Checkpoints of other projects: whose it is, and what it is in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from networks.checkpoints import CHECKPOINT_FORMAT
from networks.paper_checkpoints import read_published
from networks.torchvision_checkpoints import read_torchvision, torchvision_state
from networks.tutorial_checkpoints import is_tutorial, read_tutorial


def read_others(
    content: object,
    path: Path,
    cfg: Path | None,
    class_lists: Mapping[str, Sequence[str]],
    other_names: Mapping[str, str],
) -> dict[str, object] | None:
    """What a file of torch.save holds -> the content of a checkpoint of ours; None: it is none of the known ones.

    Of the paper's authors, of the YOLOv3 tutorial (cfg: its .cfg), of torchvision's detectors. Raises ValueError in one
    line.
    """
    if not isinstance(content, Mapping) or content.get("format") == CHECKPOINT_FORMAT:
        return None
    if "state_dict" in content and is_tutorial(content["state_dict"]):
        return read_tutorial(content["state_dict"], path, cfg, class_lists, other_names)
    if cfg:
        raise ValueError(f"--cfg is for a .weights file of darknet; {path} holds its settings")
    if "state_dict" in content:
        return read_published(content["state_dict"], path, class_lists["nyu40"])
    weights = torchvision_state(content)
    return None if weights is None else read_torchvision(weights, path, class_lists, other_names)
