"""Predicts on images.

    python inference.py                                   # the newest run on the picture in media/
    python inference.py --checkpoint C --input photo.jpg --output predictions
    python inference.py --checkpoint C --input folder/    # with its sub-folders
    python inference.py --checkpoint C --domain camvid    # a network of several data sets: this one's classes alone

For each image: NAME_segmentation.png (class ids, with a palette), NAME_depth.png (16 bits, millimetres), a picture
of each for looking at, NAME_depth_color.jpg, and NAME_overview.jpg with all of them side by side. In programs:

    predictor = Predictor("runs/x/best.pt")
    result = predictor(image)            # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from backends import BACKENDS, FILES, fastest
from config import Parser, convert
from images import IMAGE_SUFFIXES, Panel, read_image, side_by_side, write_jpeg
from predictor import Predictor
from tasks import Task
from utils import ahead, newest_checkpoint, pick_device, run, setup_cpu

SAMPLE = Path("media/sample.jpg")
FEW = 30  # images, for which a back end that takes seconds to set up does not pay


def save_predictions(
    stem: Path, image: np.ndarray, tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray]
) -> None:
    """Writes STEM_task.png, STEM_task_color.jpg and STEM_overview.jpg."""
    panels: list[Panel] = [("image", image, [])]
    for name, task in tasks.items():
        picture = task.draw(predictions[name])
        panels.append((name, picture, task.legend(predictions[name])))
        task.save(predictions[name], stem.with_name(f"{stem.name}_{name}.png"))
        write_jpeg(stem.with_name(f"{stem.name}_{name}_color.jpg"), picture)
    write_jpeg(stem.with_name(f"{stem.name}_overview.jpg"), side_by_side(panels))


def find_images(source: Path, output: Path) -> list[Path]:
    """The image files of a folder and its sub-folders, or the one file. What is in `output` is left out."""
    if source.is_file():
        return [source]
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    inside_output = output.resolve()
    if inside_output in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"--output {output} holds the input {source}: results and images would mix; choose another")
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and inside_output not in path.resolve().parents
    ]
    if not found:
        raise FileNotFoundError(f"{source}: no image in it; known endings: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def output_stems(images: Sequence[Path], source: Path, output: Path) -> list[Path]:
    """Where each image's outputs go: the same sub-folders; the full name where stems would collide."""
    root = source if source.is_dir() else source.parent
    names = [image.relative_to(root) for image in images]
    stems = [name.with_suffix("") for name in names]
    count, full_names = Counter(stems), set(names)
    alone = [count[stem] == 1 and stem not in full_names for stem in stems]  # a.jpg.png beside a.jpg and a.png
    return [output / (stem if ok else name) for stem, name, ok in zip(stems, names, alone, strict=True)]


def read(path: Path) -> np.ndarray | str:
    """The image, or what is wrong with the file."""
    try:
        return read_image(path)
    except (ValueError, FileNotFoundError) as problem:
        return " ".join(str(problem).split())


def groups(images: Iterable[tuple[Path, np.ndarray]], most: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Neighbours whose images have one size, at most `most` together."""
    group: list[tuple[Path, np.ndarray]] = []
    for item in images:
        if group and (len(group) == most or item[1].shape != group[0][1].shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def predict_files(predictor: Predictor, images: Sequence[Path], stems: Sequence[Path], batch_size: int) -> int:
    """Predicts and writes the outputs of each image; files are read and written in the background.

    Returns how many could not be read; each of them was reported in one line.
    """
    failed = 0

    def readable() -> Iterator[tuple[Path, np.ndarray]]:
        nonlocal failed
        for stem, content in zip(stems, ahead(read, images), strict=True):
            if isinstance(content, str):
                tqdm.write(f"error: {content}", file=sys.stderr)
                failed += 1
            else:
                yield stem, content

    def predict(group: list[tuple[Path, np.ndarray]]) -> list[tuple[Path, np.ndarray, dict[str, np.ndarray]]]:
        results = predictor.batch([image for _, image in group])
        return [(*item, result) for item, result in zip(group, results, strict=True)]

    def write(item: tuple[Path, np.ndarray, dict[str, np.ndarray]]) -> None:
        stem, image, predictions = item
        save_predictions(stem, image, predictor.tasks, predictions)

    few = len(images) < FEW
    calls, threads = 1 if few else predictor.backend.concurrent(), torch.get_num_threads()
    if calls > 1:
        torch.set_num_threads(1)  # each call has one core, also for what comes after the network
    try:
        predicted = ahead(predict, groups(readable(), batch_size), threads=calls, most=calls + 1)
        written = ahead(write, (item for group in predicted for item in group))
        for _ in tqdm(written, total=len(images), unit="image", disable=len(images) == 1 or not sys.stderr.isatty()):
            pass
    finally:
        torch.set_num_threads(threads)
    return failed


def main() -> int:
    parser = Parser(description="Predicts on images.")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="of train.py, or the paper's .ckpt; default: the newest run"
    )
    parser.add_argument("--input", default=str(SAMPLE), metavar="IMAGE|FOLDER", help=f"default: {SAMPLE}")
    parser.add_argument("--output", default="predictions", metavar="FOLDER", help="default: predictions")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training; default: all"
    )
    parser.add_argument("--mirror", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="auto: the fastest installed")
    parser.add_argument("--batch_size", default="1", help="images of one size in a call")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    arguments = parser.parse_args()
    setup_cpu(convert(arguments.threads, int, "command line: threads"))

    source, output = Path(arguments.input), Path(arguments.output)
    images = find_images(source, output)
    device = pick_device(arguments.device)
    path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
    backend, batch_size = arguments.backend, convert(arguments.batch_size, int, "command line: batch_size")
    if backend == "auto" and len(images) < FEW and fastest(device) != "eager" and path.suffix not in FILES:
        backend = "eager"
    predictor = Predictor(path, backend, arguments.device, arguments.precision, arguments.domain, arguments.mirror)
    print(
        f"{path} ({', '.join(predictor.tasks)}) in {predictor.backend.name} on {device}, "
        f"{len(images)} image{'s' if len(images) > 1 else ''}"
    )
    failed = predict_files(predictor, images, output_stems(images, source, output), batch_size)
    print(f"{len(images) - failed} of {len(images)} images predicted; look at {output}/*_overview.jpg")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
