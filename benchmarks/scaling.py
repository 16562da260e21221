"""Throughput on folders, and growth of the latency with size, batch, classes and tasks. Run by benchmark.py."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.latency import Reference
from benchmarks.timing import (
    MakeNetwork,
    Options,
    PeakMemory,
    describe,
    in_new_process,
    in_turn,
    median_and_range,
    print_table,
    random_network,
    some_tasks,
)
from config import Config
from deploy.image_folder import Job, output_stems, predict_files
from deploy.predictor import save_predictions
from images import read_image
from model import count_cost
from tasks import TASKS
from utils import setup_cpu, whole_file

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
FULL_HD = (1080, 1920)
IN_GRAPHS = [name for name, task in some_tasks(2, len(TASKS)).items() if not task.no_graph]  # of every back end


def growth_series(height: int, width: int) -> dict[str, list[Setting]]:
    """{series: settings}; each series varies one thing and leaves the rest at one image, 40 classes + depth."""
    sizes = [*((height * quarters // 4, width * quarters // 4) for quarters in (2, 3, 4, 6, 8)), FULL_HD]
    sizes = sorted(set(sizes), key=lambda size: size[0] * size[1])
    return {
        "size": [Setting(rows * columns / 1e6, f"{columns}x{rows}", rows, columns) for rows, columns in sizes],
        "batch": [Setting(count, str(count), height, width, batch=count) for count in (1, 2, 4, 8, 16)],
        "classes": [Setting(count, str(count), height, width, classes=count) for count in (2, 10, 40, 150)],
        "tasks": [Setting(count, str(count), height, width, tasks=count) for count in range(1, len(IN_GRAPHS) + 1)],
    }


def measure_growth(
    options: Options, encoders: Sequence[str], series: Mapping[str, Sequence[Setting]], threads: Sequence[int]
) -> list[dict[str, object]]:
    """Milliseconds and MB of the whole prediction in the fastest back end, for networks with random weights.

    Each number of `threads` is measured; memory is that of the last one.
    """
    results = []
    for encoder in encoders:
        config = Config(encoder=encoder, encoder_weights="none")
        for name, settings in series.items():
            rows, calls, points = [], {}, []
            for setting in settings:
                own = dataclasses.replace(options, height=setting.height, width=setting.width, threads=threads[-1])
                make = partial(random_network, config, setting.classes, IN_GRAPHS[: setting.tasks])
                cost = count_cost(own.network(make), setting.height, setting.width)[1] * setting.batch
                memory = in_new_process(peak_mb, own, make, setting.batch)
                for count in threads:
                    setup_cpu(count)  # a back end takes its threads when it is opened
                    call = partial(own.predictor(own.network(make)).batch, [own.picture()] * setting.batch)
                    calls[setting.label, count] = partial(with_threads, count, call)
                points.append({
                    "encoder": encoder, "series": name, "value": setting.label, "x": setting.x, "multiply_adds": cost,
                    "memory_mb": memory,
                })  # fmt: skip
            times = in_turn(calls, options.device, options.repeats)
            for point in points:
                own_times = [times[point["value"], count] for count in threads]
                cells = [median_and_range(values, 1) for values in own_times]
                cost, memory = f"{point['multiply_adds'] / 1e9:.2f} G", f"{point['memory_mb']:.0f}"
                rows.append([point["value"], cost, *cells, memory])
                pairs = zip(threads, own_times, strict=True)
                results += [{**point, "threads": count, "ms": values} for count, values in pairs]
            columns = [f"ms a batch, {count} thread{'s' * (count > 1)}" for count in threads]
            print_table(
                f"`{encoder}`, back end {call.func.__self__.backend.name}; one image of "
                f"{options.width}x{options.height}, 40 classes + depth, unless it grows. Memory: by how much that of a "
                "new process rises.",
                [name, "multiply-adds", *columns, "memory MB"], rows, options.repeats,
            )  # fmt: skip
    return results


def with_threads(count: int, call: Callable[[], object]) -> object:
    setup_cpu(count)
    return call()


def peak_mb(options: Options, make: MakeNetwork, batch: int) -> float:
    """How far memory rises when a predictor is opened and predicts."""
    setup_cpu(options.threads)
    images = [options.picture()] * batch
    with PeakMemory(options.device) as memory:
        options.predictor(options.network(make)).batch(images)
    return memory.mb


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
    """`measure_growth` as a PNG: for each series a chart of the time and one of the memory. All axes are linear and
    start at 0."""
    from matplotlib.figure import Figure

    names, encoders, threads = (
        list(dict.fromkeys(item[key] for item in results)) for key in ("series", "encoder", "threads")
    )
    figure = Figure(figsize=(3.2 * len(names), 5.4), layout="constrained")
    charts = figure.subplots(2, len(names), squeeze=False)
    for (upper, lower), name in zip(charts.T, names, strict=True):
        for encoder in encoders:
            for count in threads:
                points = [
                    item for item in results
                    if (item["series"], item["encoder"], item["threads"]) == (name, encoder, count)
                ]  # fmt: skip
                places = [item["x"] for item in points]
                label = encoder if len(threads) == 1 else f"{encoder}, {count} thread{'s' * (count > 1)}"
                upper.plot(places, [statistics.median(item["ms"]) for item in points], marker="o", label=label)
            lower.plot(places, [item["memory_mb"] for item in points], marker="o", label=encoder)
        upper.set_title(name)
        lower.set_xlabel(AXES[name])
        for axes in (upper, lower):
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
    for axes, label in zip(charts[:, 0], ("ms a batch", "MB"), strict=True):
        axes.set_ylabel(label)
        axes.legend(fontsize=7)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
