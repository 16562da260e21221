"""Throughput on folders, and growth of the latency with size, batch, classes and tasks. Run by benchmark.py."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.latency import Reference
from benchmarks.timing import MakeNetwork, Options, describe, in_turn, median_and_range, print_table, random_network
from config import Config
from deploy.image_folder import Job, output_stems, predict_files
from deploy.predictor import save_predictions
from images import read_image
from model import count_cost
from tasks import TASKS
from utils import whole_file

# ---------------------------------------------------------------------------------------------- folder


FOLDER_REPEATS = 3  # of each way through the folder


def measure_folders(options: Options, networks: Mapping[str, MakeNetwork]) -> list[dict[str, object]]:
    return [measure_folder(options, name, make) for name, make in networks.items()]


def measure_folder(options: Options, name: str, make: MakeNetwork) -> dict[str, object]:
    """Images per second for a folder: JPEG files are read, all outputs are written."""
    count, image = 4 * options.repeats, options.picture()
    few = options.repeats
    reference, network = Reference(options.network(make)), options.network(make)
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
        times = in_turn({name: call for name, (_, call) in calls.items()}, options.device, FOLDER_REPEATS)
    rates = {way: [1000 * calls[way][0] / value for value in values] for way, values in times.items()}
    rows = [[way, median_and_range(values, 1)] for way, values in rates.items()]
    title = f"`{name}`, {count} JPEG files of {options.width}x{options.height}, {describe(network.tasks)}."
    print_table(title, ["way", "images/s"], rows, FOLDER_REPEATS)
    return {"encoder": name, "images": count, "images_per_s": rates}


# ---------------------------------------------------------------------------------------------- growth


@dataclass(frozen=True)
class Setting:
    """One measurement of a series. `x` is its place on the axis, `label` its name in the table."""

    x: float
    label: str
    height: int
    width: int
    batch: int = 1
    classes: int = 40
    tasks: int = 2


AXES = {"size": "megapixels", "batch": "images", "classes": "classes", "tasks": "tasks"}  # series -> what x counts


def growth_series(height: int, width: int) -> dict[str, list[Setting]]:
    """{series: settings}; each series varies one thing and leaves the rest at one image, 40 classes + depth."""
    sizes = [(height * quarters // 4, width * quarters // 4) for quarters in (2, 3, 4, 6, 8)]
    return {
        "size": [Setting(rows * columns / 1e6, f"{columns}x{rows}", rows, columns) for rows, columns in sizes],
        "batch": [Setting(count, str(count), height, width, batch=count) for count in (1, 2, 4, 8)],
        "classes": [Setting(count, str(count), height, width, classes=count) for count in (2, 10, 40, 150)],
        "tasks": [Setting(count, str(count), height, width, tasks=count) for count in range(1, len(TASKS) + 1)],
    }


def measure_growth(
    options: Options, encoders: Sequence[str], series: Mapping[str, Sequence[Setting]]
) -> list[dict[str, object]]:
    """Milliseconds of the whole prediction in the fastest back end, for networks with random weights."""
    results = []
    for encoder in encoders:
        rows, config = [], Config(encoder=encoder, encoder_weights="none")
        for name, settings in series.items():
            calls, costs = {}, {}
            for setting in settings:
                own = dataclasses.replace(options, height=setting.height, width=setting.width)
                names = list(TASKS)[: setting.tasks]
                network = own.network(partial(random_network, config, setting.classes, names))
                predictor, images = own.predictor(network), [own.picture()] * setting.batch
                calls[setting.label] = partial(predictor.batch, images)
                costs[setting.label] = count_cost(network, setting.height, setting.width)[1] * setting.batch
            times = in_turn(calls, options.device, options.repeats)
            for setting in settings:
                cost, own_times = costs[setting.label], times[setting.label]
                rows.append([name, setting.label, f"{cost / 1e9:.2f} G", median_and_range(own_times, 1)])
                point = {"encoder": encoder, "series": name, "value": setting.label, "x": setting.x}
                results.append({**point, "multiply_adds": cost, "ms": own_times})
        print_table(
            f"`{encoder}`, back end {predictor.backend.name}; one image of {options.width}x{options.height}, "
            "40 classes + depth, unless it grows.",
            ["what grows", "to", "multiply-adds", "ms a batch"], rows, options.repeats,
        )  # fmt: skip
    return results


def measure_tasks(
    options: Options, encoders: Sequence[str], names: Sequence[str], backends: Sequence[str], classes: int
) -> list[dict[str, object]]:
    """What each task adds: milliseconds of the whole prediction with the first task, with two, and so on.

    All of an encoder's networks are measured in turn, so that the ratios hold on a machine that does other work, too.
    """
    results = []
    for encoder in encoders:
        config, sets = Config(encoder=encoder, encoder_weights="none"), [names[: i + 1] for i in range(len(names))]
        costs, calls = {}, {}
        for chosen in sets:
            network = options.network(partial(random_network, config, classes, chosen))
            costs[tuple(chosen)] = count_cost(network, options.height, options.width)
            for backend in backends:
                predictor = options.predictor(
                    options.network(partial(random_network, config, classes, chosen)), backend
                )
                calls[f"{','.join(chosen)} {backend}"] = partial(predictor, options.picture())
        times = in_turn(calls, options.device, options.repeats)
        rows = []
        for number, chosen in enumerate(sets):
            parameters, operations = costs[tuple(chosen)]
            cells = [f"{'+ ' if number else ''}{chosen[-1]}", f"{parameters:,}", f"{operations / 1e9:.2f} G"]
            for backend in backends:
                own = times[f"{','.join(chosen)} {backend}"]
                before = times[f"{','.join(sets[max(number - 1, 0)])} {backend}"]
                ratio = statistics.median(own) / statistics.median(before)
                cells += [median_and_range(own, 1), f"{ratio - 1:+.1%}" if number else ""]
                results.append({"encoder": encoder, "tasks": list(chosen), "backend": backend, "ms": own})
            rows.append(cells)
        columns = [title for backend in backends for title in (f"{backend} ms", "more")]
        print_table(
            f"`{encoder}`, {classes} classes, {options.width}x{options.height}, batch 1: from images to predictions.",
            ["tasks", "parameters", "multiply-adds", *columns], rows, options.repeats,
        )  # fmt: skip
    return results


def plot_growth(results: Sequence[Mapping[str, object]], path: Path) -> None:
    """`measure_growth` as a PNG: a chart for each series. Both axes are linear and start at 0."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(item["series"] for item in results))
    encoders = list(dict.fromkeys(item["encoder"] for item in results))
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for encoder in encoders:
            points = [item for item in results if item["series"] == name and item["encoder"] == encoder]
            middles = [statistics.median(item["ms"]) for item in points]
            axes.plot([item["x"] for item in points], middles, marker="o", label=encoder)
        axes.set_title(name)
        axes.set_xlabel(AXES[name])
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ms a batch")
    figure.axes[0].legend(fontsize=7)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
