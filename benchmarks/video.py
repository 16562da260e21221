"""What a video costs, part by part, and what smoothing does to its flicker. Run by benchmark.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.timing import Options, in_turn, spread, table
from deploy.predictor import Predictor
from deploy.video import File, Frame, Smoother, predict_video, video_writer, view_of

SECONDS, RATE = 4, 25
NOISE = 4.0  # grey levels: what a webcam's sensor has indoors
STRENGTHS = (0.0, 0.5, 0.8, 0.9)


def measure_videos(options: Options, encoders: tuple[str, ...]) -> list[dict[str, object]]:
    return [measure_video(options, encoder) for encoder in encoders]


def measure_video(options: Options, encoder: str) -> dict[str, object]:
    """Frames a second of a clip whose picture moves, and the flicker of one that stands still."""
    image, network = options.picture(), options.network(encoder)
    predictor, many = options.predictor(network), options.predictor(network)  # `many` for calls side by side
    tasks, result = predictor.tasks, predictor(image)
    with tempfile.TemporaryDirectory() as name:
        clip, output = Path(name) / "clip.mp4", Path(name) / "predicted.mp4"
        with video_writer(clip, Fraction(RATE)) as write:
            for number in range(SECONDS * RATE):
                write(number / RATE, np.roll(image, 4 * number, axis=1))

        def read() -> None:
            source = File(str(clip))
            for _ in source:
                pass
            source.close()

        def draw_and_write() -> None:
            with video_writer(Path(name) / "drawn.mp4", Fraction(RATE)) as write:
                for number in range(SECONDS * RATE):
                    write(number / RATE, view_of(Frame(number / RATE, image), tasks, result, "side"))

        calls = {
            "reading alone": read,
            "prediction alone": lambda: [predictor(image) for _ in range(SECONDS * RATE)],
            "drawing and writing alone": draw_and_write,
            "inference.py, all of it": lambda: predict_video(many, str(clip), output),
        }
        times = in_turn(calls, options.device, max(1, options.repeats // 5))
    rates = {name: [1000 * SECONDS * RATE / value for value in values] for name, values in times.items()}
    title = f"`{encoder}`, {SECONDS * RATE} frames of {options.width}x{options.height}, in {predictor.backend.name}"
    table(title, ["part", "frames/s"], [[name, spread(values, 1)] for name, values in rates.items()])
    found = {strength: flicker(predictor, image, strength) for strength in STRENGTHS}
    names = list(found[0.0])
    rows = [[f"{strength:g}", *(f"{values[name]:.4g}" for name in names)] for strength, values in found.items()]
    table(
        f"One picture with noise of {NOISE:g} grey levels, mean change from frame to frame", ["--smooth", *names], rows
    )
    return {"encoder": encoder, "frames_per_s": rates, "flicker": found}


def noisy(image: np.ndarray, count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (image + rng.normal(0, NOISE, image.shape)).round().clip(0, 255).astype(np.uint8)


def flicker(predictor: Predictor, image: np.ndarray, strength: float, count: int = 40) -> dict[str, float]:
    """{task: mean |change| of a value, or share of the pixels whose class changes} between frames of a still picture,
    after the first ten."""
    smoother, last, sums = Smoother(strength), {}, {}
    for number, frame in enumerate(noisy(image, count)):
        now = predictor.batch([frame], smoother)[0]
        for name, value in now.items() if number > 10 else ():
            change = np.abs(value - last[name]) if np.issubdtype(value.dtype, np.floating) else value != last[name]
            sums[name] = sums.get(name, 0.0) + float(change.mean()) / (count - 11)
        last = now
    return sums
