"""A folder of pictures: read, predict and write at the same time."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import distributed
from deploy.predictor import Predictor, save_predictions
from images import count_pixels, read_image

PIXELS_AT_ONCE = 2**25  # in memory between reading and writing: 100 images of 640x480, 2 of a large camera


def output_stems(images: Sequence[Path], source: Path, output: Path) -> list[Path]:
    """Where each image's outputs go: the same sub-folders; the full name where stems would collide."""
    root = source if source.is_dir() else source.parent
    names = [image.relative_to(root) for image in images]
    # Without its ending, ..png would be the folder.
    stems = [name if name.stem in (".", "..") else name.with_suffix("") for name in names]
    count, full_names = Counter(stems), set(names)
    alone = [count[stem] == 1 and stem not in full_names for stem in stems]  # a.jpg.png beside a.jpg and a.png
    return [output / (stem if ok else name) for stem, name, ok in zip(stems, names, alone, strict=True)]


@dataclass(frozen=True)
class Job:
    image: Path
    stem: Path  # of its outputs
    run: int = 0  # images of one run may share a batch: so the batches are the same with any number of processes

    @property
    def done(self) -> bool:
        """Whether all outputs are there: the overview comes last, and files are written whole."""
        return os.path.isfile(self.stem.with_name(f"{self.stem.name}_overview.jpg"))  # False for too long a name


def make_jobs(images: Sequence[Path], source: Path, output: Path, batch_size: int) -> list[Job]:
    """Those of this process."""
    stems = output_stems(images, source, output)
    jobs = [Job(*pair, number // batch_size) for number, pair in enumerate(zip(images, stems, strict=True))]
    return [job for job in jobs if job.run % distributed.count() == distributed.rank()]


class Room:
    """For so many pixels at a time; who finds it empty always gets in."""

    def __init__(self, pixels: int) -> None:
        self.pixels = self.free = pixels
        self.changed = threading.Condition()

    def take(self, pixels: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: pixels <= self.free or self.free == self.pixels)
            self.free -= pixels

    def give(self, pixels: int) -> None:
        with self.changed:
            self.free += pixels
            self.changed.notify()


def predict_files(predictor: Predictor, jobs: Sequence[Job], few: bool = False) -> int:
    """Predicts and writes the outputs of each image: reading, the network and writing go on at the same time.

    For `few` images the back end is not set up for many. Returns how many could not be read or have names that are too
    long for their outputs; each got one line.
    """
    calls, threads = 1 if few else predictor.backend.concurrent(), torch.get_num_threads()
    if calls > 1:
        torch.set_num_threads(1)  # each call has one core, also for what comes after the network
    room, failed, problems = Room(PIXELS_AT_ONCE), [], []
    shown = len(jobs) > 1 and sys.stderr.isatty() and distributed.is_main()
    bar = tqdm(total=len(jobs), unit="image", disable=not shown)

    def refuse(job: Job, problem: Exception, pixels: int) -> None:
        tqdm.write(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
        failed.append(job)
        room.give(pixels)
        bar.update()

    def write(job: Job, image: np.ndarray, result: Mapping[str, np.ndarray], pixels: int) -> None:
        try:
            save_predictions(job.stem, image, predictor.tasks, result)
        except OSError as problem:
            if problem.errno == errno.ENAMETOOLONG:
                refuse(job, ValueError(f"{job.image}: its name is too long for those of its outputs"), pixels)
                return
            problems.append(problem)
        except Exception as problem:
            problems.append(problem)
        room.give(pixels)
        bar.update()

    def predict(group: Sequence[tuple[Job, np.ndarray, int]]) -> None:
        try:
            results = predictor.batch([image for _, image, _ in group])
            for (job, image, pixels), result in zip(group, results, strict=True):
                writing.submit(write, job, image, result, pixels)
        except Exception as problem:
            problems.append(problem)
            room.give(sum(pixels for _, _, pixels in group))

    with bar, ThreadPoolExecutor(2) as writing, ThreadPoolExecutor(calls) as predicting:
        for _, run in itertools.groupby(jobs, lambda job: job.run):
            sizes = [(job, count_pixels(job.image)) for job in run]
            room.take(sum(pixels for _, pixels in sizes))  # of the whole run, so that its batches come together
            found: list[tuple[Job, np.ndarray, int]] = []
            for job, pixels in sizes:
                try:
                    found.append((job, read_image(job.image), pixels))
                except (ValueError, FileNotFoundError) as problem:
                    refuse(job, problem, pixels)
            for _, group in itertools.groupby(found, lambda item: item[1].shape):
                predicting.submit(predict, list(group))
            if problems:  # of the back end or the disk: the other images would have them too
                break
    torch.set_num_threads(threads)
    if problems:
        raise problems[0]
    return len(failed)
