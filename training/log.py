"""What a training writes down: log.jsonl, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Log:
    """log.jsonl, TensorBoard, and a progress bar, or lines where nobody watches one.

    Without a folder it keeps silent, as in all processes but the main one.
    """

    def __init__(self, folder: Path | None, total: int, first: int) -> None:
        self.file = (folder / "log.jsonl").open("a") if folder else None
        self.board = SummaryWriter(str(folder)) if folder else None
        watched = folder and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=first, unit="batch", disable=not watched, dynamic_ncols=True)
        self.total, self.reports = total, 0

    def _write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        try:
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as problem:
            raise OSError(f"{self.file.name}: the log could not be written ({problem.strerror})") from None

    def losses(self, step: int, losses: Mapping[str, float], others: Mapping[str, float]) -> None:
        if not self.file:
            return
        self._write("train", step, {**losses, **others})
        shown = {name: f"{value:.3f}" for name, value in losses.items()}
        shown["images/s"] = f"{others['images_per_s']:.1f}"
        shown["waiting for data"] = f"{others['waiting_for_data']:.0%}"
        self.bar.set_postfix(shown)
        if self.bar.disable and self.reports % 10 == 0:
            print(
                f"batch {step}/{self.total}  " + "  ".join(f"{name} {value}" for name, value in shown.items()),
                flush=True,
            )
        self.reports += 1

    def metrics(self, step: int, title: str, metrics: Mapping[str, float], headlines: Sequence[str]) -> None:
        if not self.file:
            return
        self._write("val", step, metrics)
        self.bar.write(f"{title}  " + "  ".join(f"{name} {metrics[name]:.4f}" for name in headlines if name in metrics))
        sys.stdout.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """image (H, W, 3) uint8"""
        if self.board:
            self.board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        for part in (self.bar, self.board, self.file):
            if part is not None:
                part.close()
