"""What many predictions cost: folders, and growth with size, batch, classes and tasks. Run by benchmark.py."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.latency import Reference
from benchmarks.timing import Options, in_turn, some_tasks, spread, table
from deploy.image_folder import Job, output_stems, predict_files
from deploy.predictor import save_predictions
from images import read_image
from model import count_cost
from tasks import TASKS
from utils import whole_file

# ---------------------------------------------------------------------------------------------- folder


def measure_folders(options: Options, encoders: tuple[str, ...]) -> list[dict[str, object]]:
    return [measure_folder(options, encoder) for encoder in encoders]


def measure_folder(options: Options, encoder: str) -> dict[str, object]:
    """Images a second of a whole folder, read from JPEG files, all outputs written."""
    count, image = 4 * options.repeats, options.picture()
    few = options.repeats
    reference, network = Reference(options.network(encoder)), options.network(encoder)
    predictor, many = options.predictor(network), options.predictor(network)  # `many` for calls side by side
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "images"
        source.mkdir()
        for number in range(count):
            shifted = np.roll(image, number * options.width // count, axis=1)
            cv2.imwrite(str(source / f"{number:04d}.jpg"), shifted[..., ::-1])
        images = sorted(source.iterdir())
        stems = output_stems(images, source, Path(folder) / "predictions")
        jobs = [Job(*pair, number) for number, pair in enumerate(zip(images, stems, strict=True))]

        def one_by_one() -> None:
            for path, stem in zip(images[:few], stems[:few], strict=True):
                picture = read_image(path)
                save_predictions(stem, picture, predictor.tasks, reference(picture))

        def read_alone() -> None:
            for path in images[:few]:
                read_image(path)

        def write_alone() -> None:
            result = predictor(image)
            for stem in stems[:few]:
                save_predictions(stem, image, predictor.tasks, result)

        pixels = predictor.pixels([image])
        predictor(image)
        calls = {
            "public code's way, one image after the other": (few, one_by_one),
            f"inference.py, {predictor.backend.name}": (count, lambda: predict_files(many, jobs)),
            "prediction alone": (few, lambda: [predictor(image) for _ in range(few)]),
            "the bare network": (few, lambda: [predictor.backend(pixels) for _ in range(few)]),
            "reading alone, one thread": (few, read_alone),
            "writing alone, one thread": (few, write_alone),
        }
        times = in_turn({name: call for name, (_, call) in calls.items()}, options.device, 3)
    rates = {name: [1000 * calls[name][0] / value for value in values] for name, values in times.items()}
    rows = [[name, spread(values, 1)] for name, values in rates.items()]
    table(f"`{encoder}`, {count} JPEG files of {options.width}x{options.height}", ["way", "images/s"], rows)
    return {"encoder": encoder, "images": count, "images_per_s": rates}


# ---------------------------------------------------------------------------------------------- growth


@dataclass(frozen=True)
class Point:
    """What one prediction is of."""

    width: int
    height: int
    batch: int = 1
    classes: int = 40
    tasks: int = 2


def growing(options: Options) -> dict[str, dict[str, Point]]:
    """{what grows: {to what: point}}, one thing at a time."""
    width, height = options.width, options.height
    sizes = [(width * quarters // 4, height * quarters // 4) for quarters in (2, 3, 4, 6, 8)]
    return {
        "size": {f"{x}x{y}": Point(x, y) for x, y in sizes},
        "batch": {str(batch): Point(width, height, batch=batch) for batch in (1, 2, 4, 8)},
        "classes": {str(count): Point(width, height, classes=count) for count in (2, 10, 40, 150)},
        "tasks": {str(count): Point(width, height, tasks=count) for count in range(1, len(TASKS) + 1)},
    }


def measure_growth(options: Options, encoders: tuple[str, ...]) -> list[dict[str, object]]:
    """Milliseconds of the whole prediction against one thing at a time, in the fastest back end."""
    results = []
    for encoder in encoders:
        rows = []
        for name, points in growing(options).items():
            calls, costs = {}, {}
            for value, point in points.items():
                setting = dataclasses.replace(options, width=point.width, height=point.height)
                network = setting.network(encoder, some_tasks(point.classes, point.tasks))
                predictor, images = setting.predictor(network), [setting.picture()] * point.batch
                calls[value] = lambda predictor=predictor, images=images: predictor.batch(images)
                costs[value] = count_cost(network, point.height, point.width)[1] * point.batch
            for value, times in in_turn(calls, options.device, options.repeats).items():
                rows.append([name, value, f"{costs[value] / 1e9:.2f} G", spread(times, 1)])
                point = {"encoder": encoder, "series": name, "value": value}
                results.append({**point, "multiply_adds": costs[value], "ms": times})
        title = f"`{encoder}`, back end {predictor.backend.name}, 40 classes + depth, one image, unless it grows"
        table(title, ["what grows", "to", "multiply-adds", "ms a batch"], rows)
    return results


def plot_growth(results: list[dict[str, object]], path: Path) -> None:
    """One picture of `measure_growth`, as PNG."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(item["series"] for item in results))
    encoders = list(dict.fromkeys(item["encoder"] for item in results))
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for encoder in encoders:
            points = [item for item in results if item["series"] == name and item["encoder"] == encoder]
            middles = [statistics.median(item["ms"]) for item in points]
            axes.plot([item["value"] for item in points], middles, marker="o", label=encoder)
        axes.set_title(name)
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ms a batch")
    figure.axes[0].legend(fontsize=7)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
