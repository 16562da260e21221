"""Boxes from a teacher: which of its boxes become labels, and which are ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.lib import recfunctions
from torch import Tensor

from config import Config
from drawing import class_palette
from tasks.classes import DROPPED, renamed_classes, translated

if TYPE_CHECKING:
    from tasks.base import Size
    from tasks.boxes import Boxes

UNSURE_SHARE = 0.5  # of the threshold: boxes with scores from there on, below the threshold, are ignored


class BoxTeaching:
    """The answers of tasks/teaching.py for boxes: a mixin.

    A box whose score is at least the threshold becomes a label, one whose score is at least half of it is ignored: a
    training takes it for no thing, and not for background either. Others are background.
    """

    sure: ClassVar[float] = 0.4  # scores of a network that learned the overlap of its boxes are below 1

    @classmethod
    def from_teacher(cls, section: Mapping[str, object], where: str) -> Boxes:
        raise ValueError(f"--teacher: {cls.name} takes a checkpoint of train.py, no network of another project")

    def translation(
        self: Boxes, section: Mapping[str, object] | None, names: Mapping[str, str], where: str
    ) -> tuple[Boxes, Callable[[np.ndarray], np.ndarray]]:
        """Also without a section, `names` rename and drop classes. A data set's class that no class of the teacher
        means is refused: the labels would teach that no such thing is there."""
        if section is None:
            classes = tuple(dict.fromkeys(name for name in renamed_classes(self.classes, names) if name != DROPPED))
            if not classes:
                raise ValueError("--map: it drops all classes of the teacher")
            colors = tuple(map(tuple, class_palette()[1 : len(classes) + 1].tolist()))
            target = type(self)(classes, colors)
        else:
            target = self.from_section(section, Config())
        means = translated(self.classes, names, target.classes, where)
        missing = [name for index, name in enumerate(target.classes) if index not in means]
        if missing:
            raise ValueError(
                f"{where}: the teacher finds no {missing[0]!r}, one of {len(missing)} such classes of the data set: a "
                "training would learn that none is there; put these frames into a data set of their own"
            )
        table = np.array(means)

        def translate(prediction: np.ndarray) -> np.ndarray:
            found = prediction.copy()
            found["class"] = table[prediction["class"]]
            return found

        return target, translate

    def teach(self: Boxes, raw: Tensor, mirrored: Tensor, size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
        """The boxes of both views, of which those of one thing suppress each other; the confidence is the score."""
        every = dataclasses.replace(self, least_score=0.0)
        found = every.arrays(every.merge([(raw, 1.0, False), (mirrored, 1.0, True)], size))
        return [(objects, objects["score"].copy()) for objects in found]

    def keep_sure(self, prediction: np.ndarray, confidence: np.ndarray, least: float) -> tuple[np.ndarray, int, int]:
        """The boxes with a field `ignore`; counts are of boxes that are not dropped and not background."""
        kept = (confidence >= UNSURE_SHARE * least) & (prediction["class"] >= 0)
        unsure = confidence[kept] < least
        label = recfunctions.append_fields(prediction[kept], "ignore", unsure, "?", usemask=False)
        return label, int((~unsure).sum()), len(label)
