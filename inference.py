"""Predicts on images.

    python inference.py                                   # the newest run on the picture in media/
    python inference.py --checkpoint C --input photo.jpg --output predictions
    python inference.py --checkpoint C --input folder/    # with its sub-folders
    python inference.py --checkpoint C --domain camvid    # a network of several data sets: this one's classes alone

For each image: NAME_segmentation.png (class ids, with a palette), NAME_depth.png (16 bits, millimetres), a coloured
picture of each, and NAME_overview.png with all of them side by side. In programs:

    network = load_network("runs/x/best.pt")
    result = predict(network, image)     # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import Parser, convert
from evaluate import predict_batch
from geometry import fitted_size, resize_image
from model import Network, load_network, tasks_of
from tasks import Task
from utils import (
    IMAGE_SUFFIXES,
    autocast,
    newest_checkpoint,
    pick_device,
    pick_precision,
    read_image,
    run,
    setup_cpu,
    side_by_side,
    write_png,
)  # fmt: skip

SAMPLE = Path("media/sample.jpg")


@torch.inference_mode()
def predict(
    network: Network,
    image: np.ndarray,
    precision: torch.dtype = torch.float32,
    mirror: bool = False,
    tasks: Mapping[str, Task] | None = None,
) -> dict[str, np.ndarray]:
    """image (H, W, 3) uint8 RGB -> {task: prediction at the image's size}, on the network's device.

    `tasks` are those of a data set, network.domains[name]; by default the network's, with all classes.
    "segmentation": (H, W) uint8 class ids; "depth": (H, W) float32 metres; "normals": (3, H, W) float32.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    device = network.mean.device
    size = image.shape[:2]
    fitted = resize_image(image, *fitted_size(*size, network.config.long_side))
    pixels = (
        torch.from_numpy(np.ascontiguousarray(fitted)).to(device).permute(2, 0, 1)[None]
    )  # (1, 3, h, w), channels last
    with autocast(device, precision):
        predictions = predict_batch(network, pixels, dict.fromkeys(network.tasks, size), mirror=mirror, tasks=tasks)
    return {name: value[0].cpu().numpy() for name, value in predictions.items()}


def overview(image: np.ndarray, tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """The image and each prediction side by side, (h, w, 3) uint8."""
    panels = [(name, task.draw(predictions[name]), task.legend(predictions[name])) for name, task in tasks.items()]
    return side_by_side([("image", image, []), *panels])


def save_predictions(
    stem: Path, image: np.ndarray, tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray]
) -> None:
    """Writes STEM_task.png, STEM_task_color.png and STEM_overview.png."""
    for name, task in tasks.items():
        task.save(predictions[name], stem.with_name(f"{stem.name}_{name}.png"))
        write_png(stem.with_name(f"{stem.name}_{name}_color.png"), task.draw(predictions[name]))
    write_png(stem.with_name(f"{stem.name}_overview.png"), overview(image, tasks, predictions))


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
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    arguments = parser.parse_args()
    setup_cpu(convert(arguments.threads, int, "command line: threads"))

    source, output = Path(arguments.input), Path(arguments.output)
    images = find_images(source, output)
    device = pick_device(arguments.device)
    precision = pick_precision(arguments.precision, device)
    path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
    network = load_network(path).to(device, memory_format=torch.channels_last)
    tasks = tasks_of(network, arguments.domain, path)
    print(f"{path} ({', '.join(network.tasks)}) on {device}, {len(images)} image{'s' if len(images) > 1 else ''}")
    failed = 0
    stems = output_stems(images, source, output)
    for image_path, stem in zip(tqdm(images, disable=len(images) == 1 or not sys.stderr.isatty()), stems, strict=True):
        try:
            image = read_image(image_path)
        except (ValueError, FileNotFoundError) as problem:
            tqdm.write(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
            failed += 1
            continue
        save_predictions(stem, image, tasks, predict(network, image, precision, arguments.mirror, tasks))
    print(f"{len(images) - failed} of {len(images)} images predicted; look at {output}/*_overview.png")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
