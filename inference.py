"""Predicts on images.

    python inference.py                                   # the newest run on the picture in media/
    python inference.py --checkpoint C --input photo.jpg --output predictions
    python inference.py --checkpoint C --input folder/    # with its sub-folders
    python inference.py --checkpoint C --input clip.mp4   # or camera:0, or rtsp://...: a video
    python inference.py --checkpoint C --domain camvid    # a network of several data sets: this one's classes alone
    torchrun --nproc-per-node 8 -- inference.py --checkpoint C --input folder/ --resume    # each process takes a part

For each image: NAME_segmentation.png (class ids, with a palette), NAME_depth.png (16 bits, millimetres), a picture
of each for looking at, NAME_depth_color.jpg, and NAME_overview.jpg with all of them side by side; of a video,
NAME_overview.mp4. In programs:

    predictor = Predictor("runs/x/best.pt")
    result = predictor(image)            # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

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
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import processes
from backends import BACKENDS, FILES, fastest
from config import Parser, convert
from images import SAMPLE, count_pixels, find_images, read_image
from predictor import Predictor, save_predictions
from utils import check_sha256, newest_checkpoint, pick_device, run, setup_cpu
from video import VIEWS, is_video, predict_video, video_name

PIXELS_AT_ONCE = 2**25  # in memory between reading and writing: 100 images of 640x480, 2 of a large camera
AS_LONG_AS_IT_TAKES = timedelta(days=30)
FEW = 30  # images, for which a back end that takes seconds to set up does not pay


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
    return [job for job in jobs if job.run % processes.count() == processes.rank()]


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
    shown = len(jobs) > 1 and sys.stderr.isatty() and processes.is_main()
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


def main() -> int:
    parser = Parser(description="Predicts on images.")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="of train.py, or the paper's .ckpt; default: the newest run"
    )
    parser.add_argument(
        "--input", default=str(SAMPLE), metavar="IMAGE|FOLDER|VIDEO|camera:N|rtsp://...", help=f"default: {SAMPLE}"
    )
    parser.add_argument("--output", default="predictions", metavar="FOLDER", help="default: predictions")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training; default: all"
    )
    parser.add_argument("--sha256", default="", metavar="HEX", help="refuse a checkpoint with another check sum")
    parser.add_argument("--mirror", action="store_true", help="average with the mirrored picture")
    parser.add_argument(
        "--view", default="side", choices=VIEWS, help="of a video; overlay: predictions over the frames"
    )
    parser.add_argument(
        "--smooth", default="0", metavar="0..1", help="of a video: share of the earlier frames where nothing moves"
    )
    parser.add_argument("--seconds", default="0", help="of a video: as many of it; 0 = all")
    parser.add_argument("--resume", action="store_true", help="leave out images whose outputs are there already")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="auto: the fastest installed")
    parser.add_argument("--batch_size", default="1", help="images of one size in a call")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    arguments = parser.parse_args()
    setup_cpu(convert(arguments.threads, int, "command line: threads"))

    source, output, video = Path(arguments.input), Path(arguments.output), is_video(arguments.input)
    smoothing, seconds = (convert(getattr(arguments, name), float, f"--{name}") for name in ("smooth", "seconds"))
    if not 0 <= smoothing < 1 or seconds < 0:
        raise ValueError("--smooth must be at least 0 and below 1, --seconds at least 0")
    if smoothing and (arguments.mirror or not video):
        raise ValueError("--smooth is for videos, without --mirror")
    images = [] if video else find_images(source, output)
    device = pick_device(arguments.device)
    path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
    check_sha256(path, arguments.sha256)
    backend, batch_size = arguments.backend, convert(arguments.batch_size, int, "command line: batch_size")
    if (
        not video
        and backend == "auto"
        and len(images) < FEW
        and fastest(device) != "eager"
        and path.suffix not in FILES
    ):
        backend = "eager"
    predictor = Predictor(path, backend, arguments.device, arguments.precision, arguments.domain, arguments.mirror)
    if video:
        print(f"{path} ({', '.join(predictor.tasks)}) in {predictor.backend.name} on {device}", flush=True)
        result = output / f"{video_name(arguments.input)}_overview.mp4"
        print(predict_video(predictor, arguments.input, result, arguments.view, smoothing, seconds))
        return 0
    jobs = make_jobs(images, source, output, batch_size)
    left = [job for job in jobs if not (arguments.resume and job.done)]
    who = f"process {processes.rank()}: " if processes.count() > 1 else ""
    print(
        f"{who}{path} ({', '.join(predictor.tasks)}) in {predictor.backend.name} on {device}, "
        f"{len(jobs)} image{'s' if len(jobs) != 1 else ''}"
    )
    with processes.together(torch.device("cpu"), AS_LONG_AS_IT_TAKES):
        failed = predict_files(predictor, left, few=len(images) < FEW)
        earlier = f", {len(jobs) - len(left)} of an earlier run are there" if arguments.resume else ""
        line = f"{who}{len(left) - failed} of {len(jobs)} images predicted{earlier}; look at {output}/*_overview.jpg"
        print(line, flush=True)
        processes.wait()  # torchrun stops all others as soon as one returns that an image failed
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
