"""Teachers that look on: networks whose predictions for each view of a training are learned beside its labels.

Knowledge distillation (Hinton et al., arXiv 1503.02531, with temperature 1; Nekrasov et al., arXiv 1809.04766, section
III-B, take hard labels, for which teach.py makes files). They see the view itself, so that each new crop, zoom and
color gets an answer of its own, and frames without labels teach as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from loss import mean
from model import Network, load_network
from tasks import Task
from utils import autocast


def unfit(teacher: Task, student: Task) -> str:
    """Why a teacher's task cannot teach the student's; '' = it can."""
    return student.misfit(teacher.section()) if student.imitates else "it learns from labels alone"


class Teachers:
    """Networks of whose tasks one or more are a training's. Their mean is learned."""

    def __init__(
        self, paths: Sequence[Path], tasks: Mapping[str, Task], long_side: int, device: torch.device,
        precision: torch.dtype,
    ) -> None:  # fmt: skip
        """long_side: of the training's frames. Raises FileNotFoundError, or ValueError for a teacher that teaches
        nothing here."""
        self.tasks, self.long_side, self.device, self.precision = tasks, long_side, device, precision
        self.networks: list[Network] = []
        self.taught: dict[str, list[int]] = {}  # {task: which teachers have it}
        for number, path in enumerate(paths):
            try:
                network = load_network(path)
            except (FileNotFoundError, ValueError) as problem:
                raise type(problem)(f"teachers: {problem}") from None
            reasons = {name: unfit(own, tasks[name]) for name, own in network.tasks.items() if name in tasks}
            fitting = [name for name, reason in reasons.items() if not reason]
            if not fitting:
                why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                raise ValueError(
                    f"teachers: {path} has nothing to teach here: {why or 'its tasks are ' + ', '.join(network.tasks)}"
                )
            for name in fitting:
                self.taught.setdefault(name, []).append(number)
            self.networks.append(network.to(device, memory_format=torch.channels_last).requires_grad_(False).eval())

    @torch.no_grad()
    def advice(self, images: Tensor, raws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """images (B, 3, H, W) uint8 of views; raws: the student's raw outputs -> {task: what its `imitation` takes}, of
        the sizes of `raws`. Not in inference mode, whose tensors no gradient can be computed with."""
        answers = [self.ask(network, images) for network in self.networks]
        found = {}
        for name, numbers in self.taught.items():
            size = raws[name].shape[-2:]
            views = [self.networks[number].tasks[name].scores(answers[number][name], size) for number in numbers]
            found[name] = torch.stack([view.float() for view in views]).mean(0)
        return found

    def ask(self, network: Network, images: Tensor) -> dict[str, Tensor]:
        """The raw outputs of a teacher, which sees the views at the scale of its own training."""
        own = network.config.long_side
        if own and self.long_side and own != self.long_side:
            size = [max(1, round(side * own / self.long_side)) for side in images.shape[-2:]]
            images = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
        with autocast(self.device, self.precision):
            return network(images)

    def losses(self, images: Tensor, raws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{task: mean loss of the raw outputs against the teachers' predictions for the same views}."""
        return {
            name: mean(self.tasks[name].imitation(raws[name], advice))
            for name, advice in self.advice(images, raws).items()
        }
