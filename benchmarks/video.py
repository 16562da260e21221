"""Throughput of the parts of video prediction, and flicker with and without smoothing. Run by benchmark.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.timing import MakeNetwork, Options, in_turn, median_and_range, print_table
from deploy.predictor import Predictor
from deploy.video import File, Frame, Smoother, predict_video, video_writer, view_of

SECONDS, RATE = 4, 25
NOISE = 4.0  # gray levels: the noise of a webcam's sensor indoors
STRENGTHS = (0.0, 0.5, 0.8, 0.9)


def measure_videos(options: Options, networks: Mapping[str, MakeNetwork]) -> list[dict[str, object]]:
    return [measure_video(options, name, make) for name, make in networks.items()]


def measure_video(options: Options, name: str, make: MakeNetwork) -> dict[str, object]:
    """Frames per second for a clip whose picture moves, and the flicker of one that stands still."""
    image, network = options.picture(), options.network(make)
    predictor, many = options.predictor(network), options.predictor(network)  # `many` for calls side by side
    tasks, result = predictor.tasks, predictor(image)
    with tempfile.TemporaryDirectory() as folder:
        clip, output = Path(folder) / "clip.mp4", Path(folder) / "predicted.mp4"
        with video_writer(clip, Fraction(RATE)) as write:
            for number in range(SECONDS * RATE):
                write(number / RATE, np.roll(image, 4 * number, axis=1))

        def read() -> None:
            source = File(str(clip))
            for _ in source:
                pass
            source.close()

        def draw_and_write() -> None:
            with video_writer(Path(folder) / "drawn.mp4", Fraction(RATE)) as write:
                for number in range(SECONDS * RATE):
                    write(number / RATE, view_of(Frame(number / RATE, image), tasks, result, "side"))

        calls = {
            "reading alone": read,
            "prediction alone": lambda: [predictor(image) for _ in range(SECONDS * RATE)],
            "drawing and writing alone": draw_and_write,
            "inference.py, all of it": lambda: predict_video(many, str(clip), output),
        }
        times = in_turn(calls, options.device, options.repeats)
    rates = {part: [1000 * SECONDS * RATE / value for value in values] for part, values in times.items()}
    print_table(
        f"`{name}`, {SECONDS * RATE} frames of {options.width}x{options.height}, in {predictor.backend.name}.",
        ["part", "frames/s"], [[part, median_and_range(values, 1)] for part, values in rates.items()], options.repeats,
    )  # fmt: skip
    found = {strength: flicker(predictor, image, strength) for strength in STRENGTHS}
    print_flicker(found)
    return {"encoder": name, "frames_per_s": rates, "flicker": found}


def print_flicker(found: Mapping[float, Mapping[str, float]]) -> None:
    names = list(found[0.0])
    lines = [f"| {strength:g} | " + " | ".join(f"{values[name]:.4g}" for name in names) + " |"
             for strength, values in found.items()]  # fmt: skip
    head = f"| --smooth | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}\n"
    title = f"One picture with noise of {NOISE:g} gray levels: mean change from frame to frame."
    print(f"{title}\n\n{head}" + "\n".join(lines) + "\n", flush=True)


def noisy(image: np.ndarray, count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (image + rng.normal(0, NOISE, image.shape)).round().clip(0, 255).astype(np.uint8)


def flicker(predictor: Predictor, image: np.ndarray, strength: float, count: int = 40) -> dict[str, float]:
    """Change between frames of a still picture: {task: mean absolute change, or share of pixels with another class}.

    The first ten frames are left out: smoothing starts with them.
    """
    smoother, last, sums = Smoother(strength, predictor.backend.tasks), {}, {}
    for number, frame in enumerate(noisy(image, count)):
        now = predictor.batch([frame], smoother)[0]
        for name, value in now.items() if number > 10 else ():
            change = np.abs(value - last[name]) if np.issubdtype(value.dtype, np.floating) else value != last[name]
            sums[name] = sums.get(name, 0.0) + float(change.mean()) / (count - 11)
        last = now
    return sums
