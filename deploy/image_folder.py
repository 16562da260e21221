"""Folders of pictures: which pictures, where their outputs go, and the pipeline that reads, predicts and writes."""

from __future__ import annotations

import errno
import glob
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import distributed
from deploy.pipeline import Pipeline, throughput_mode
from deploy.predictor import Predictor, save_predictions
from images import count_pixels, find_images, read_photo
from tasks import TASKS, Task
from utils import printable, whole_file

PIXELS_AT_ONCE = 2**25  # in memory between reading and writing: 100 images of 640x480, 2 of a large camera
WRITTEN_BY = "inference.py of joint segmentation and depth"  # in the description: its files may be replaced


# ---------------------------------------------------------------------------------------------- inputs


def expand_patterns(inputs: Sequence[str]) -> list[str]:
    """The inputs, with those that are patterns (*.jpg, **/*.png) replaced by the files and folders that match.

    Raises FileNotFoundError for a pattern without a match.
    """
    found: list[str] = []
    for item in inputs:
        if glob.has_magic(item) and not os.path.exists(item):
            matches = sorted(glob.glob(item, recursive=True))
            if not matches:
                raise FileNotFoundError(f"--input {item}: nothing matches this pattern")
            found += matches
        else:
            found.append(item)
    return found


def find_inputs(inputs: Sequence[str], output: Path) -> tuple[list[Path], Path]:
    """Images and folders of images -> (their image files, each once; the folder that outputs are named relative to).

    Raises FileNotFoundError or ValueError.
    """
    if len(inputs) == 1:
        source = Path(inputs[0])
        return find_images(source, output), source if source.is_dir() else source.parent
    files: dict[str, Path] = {}
    for item in inputs:
        for file in find_images(Path(item), output):
            files.setdefault(os.path.abspath(file), file)
    return list(files.values()), Path(os.path.commonpath([os.path.dirname(name) for name in files]))


def output_stems(images: Sequence[Path], source: Path, output: Path) -> list[Path]:
    """Where each image's outputs go: the same sub-folders; the full name where outputs would have the same names, such
    as those of photo.jpg and photo_objects.jpg: the description of the one is called as the objects of the other."""
    root = Path(os.path.abspath(source if source.is_dir() else source.parent))
    names = [Path(os.path.abspath(image)).relative_to(root) for image in images]
    # Without its ending, ..png would be the folder.
    stems = [name if name.stem in (".", "..") else name.with_suffix("") for name in names]
    count, full_names = Counter(stems), set(names)
    endings = {Path(file).stem for task in TASKS.values() for file in task.file_names("")}  # _depth, _objects, ...

    def is_output(stem: Path) -> bool:
        begins = (stem.name.removesuffix(ending) for ending in endings)
        others = (stem.with_name(begin) for begin in begins if begin not in ("", stem.name))
        return any(other in count or other in full_names for other in others)

    alone = [  # not a.jpg.png beside a.jpg and a.png
        count[stem] == 1 and stem not in full_names and not is_output(stem) for stem in stems
    ]
    return [output / (stem if ok else name) for stem, name, ok in zip(stems, names, alone, strict=True)]


# ---------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    image: Path
    stem: Path  # of its outputs
    batch: int = 0  # images of one number may share a batch: so the batches are the same with any number of processes

    @property
    def done(self) -> bool:
        """Whether all outputs are there: the overview comes last, and files are written whole."""
        return os.path.isfile(self.stem.with_name(f"{self.stem.name}_overview.jpg"))  # False for too long a name


def make_jobs(images: Sequence[Path], source: Path, output: Path, batch_size: int) -> list[Job]:
    """Those of this process."""
    stems = output_stems(images, source, output)
    jobs = [Job(*pair, number // batch_size) for number, pair in enumerate(zip(images, stems, strict=True))]
    return [job for job in jobs if job.batch % distributed.count() == distributed.rank()]


def refuse_files_of_others(stems: Sequence[Path], tasks: Mapping[str, Task], video: bool = False) -> None:
    """Raises ValueError when an output would replace a file that no earlier call has written.

    The description STEM.json says which files are of an earlier call.
    """
    for stem in stems:
        description = stem.with_name(f"{stem.name}.json")
        if written_by_us(description):
            continue
        names = [description.name, f"{stem.name}_overview.{'mp4' if video else 'jpg'}"]
        for name, task in () if video else tasks.items():
            names += [*task.file_names(stem.name), f"{stem.name}_{name}_color.jpg"]
        for path in map(stem.with_name, names):
            if os.path.lexists(path):
                raise ValueError(f"{path}: exists, and is not a result of inference.py; choose another --output")


def written_by_us(description: Path) -> bool:
    try:
        with description.open(encoding="utf-8") as file:
            return WRITTEN_BY in file.read(1000)
    except (OSError, ValueError):
        return False


def write_description(
    stem: Path, image: str, height: int, width: int, tasks: Mapping[str, Task], video: bool, zoom: float = 1.0
) -> None:
    """Writes STEM.json: what is in the outputs of a picture or video, with class names and units, and by what they were
    scaled for its camera."""
    described = {
        name: ({} if video else {"file": task.file_name(stem.name)}) | task.section() for name, task in tasks.items()
    }
    content = {"written_by": WRITTEN_BY, "image": image, "width": width, "height": height, "tasks": described}
    if zoom != 1:
        content["scaled_by"] = zoom
    with whole_file(stem.with_name(f"{stem.name}.json")) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


# ---------------------------------------------------------------------------------------------- the pipeline

Read = tuple[Job, np.ndarray, float | None]  # its image, and the focal length that its EXIF data say
MOST_LINES = 3  # about fields of view


def predict_files(predictor: Predictor, jobs: Sequence[Job], few: bool = False) -> int:
    """Predicts and writes the outputs of each image: reading, the network and writing go on at the same time.

    For `few` images the back end is not set up for many. Returns how many could not be read or have names that are too
    long for their outputs; each got one line.
    """
    failed: list[Job] = []
    view, said = predictor.field_of_view, set[str]()
    shown = len(jobs) > 1 and sys.stderr.isatty() and distributed.is_main()

    def refuse(job: Job, problem: Exception) -> None:
        tqdm.write(f"error: {printable(' '.join(str(problem).split()))}", file=sys.stderr)
        failed.append(job)
        bar.update()

    def read(batch: Sequence[Job]) -> Iterator[Read]:
        for job in batch:
            try:
                image, exif = read_photo(job.image)
                said.add(view.line(exif, *image.shape[:2]))
                yield job, image, exif
            except (ValueError, FileNotFoundError) as problem:
                refuse(job, problem)

    def predict(group: Sequence[Read]) -> list[dict[str, np.ndarray]]:
        return predictor.batch([image for _, image, _ in group], focals=[exif for _, _, exif in group])

    def write(group: Sequence[Read], results: Sequence[Mapping[str, np.ndarray]]) -> None:
        for (job, image, exif), result in zip(group, results, strict=True):
            try:
                zoom = view.zoom(exif, *image.shape[:2])
                write_description(job.stem, job.image.name, *image.shape[:2], predictor.tasks, video=False, zoom=zoom)
                save_predictions(job.stem, image, predictor.tasks, result, job.image.name)
                bar.update()
            except OSError as problem:
                if problem.errno != errno.ENAMETOOLONG:
                    raise
                refuse(job, ValueError(f"{job.image}: its name is too long for those of its outputs"))

    with (
        tqdm(total=len(jobs), unit="image", disable=not shown) as bar,
        throughput_mode(predictor.backend, not few) as calls,
        Pipeline(predict, write, PIXELS_AT_ONCE, calls, writers=2) as pipeline,
    ):
        for _, batch in itertools.groupby(jobs, lambda job: job.batch):
            batch = list(batch)
            pipeline.reserve(sum(count_pixels(job.image) for job in batch))
            for _, same in itertools.groupby(read(batch), lambda item: item[1].shape):
                group = list(same)
                pipeline.put(group, sum(image.shape[0] * image.shape[1] for _, image, _ in group))
    lines = sorted(said - {""})
    for line in lines[:MOST_LINES]:
        print(line, flush=True)
    if len(lines) > MOST_LINES:
        print(f"and {len(lines) - MOST_LINES} more such lines; scaled_by in each picture's .json says it")
    return len(failed)
