"""Videos, streams and cameras: frames in, a video of the predictions out."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from deploy.image_folder import refuse_files_of_others, write_description
from deploy.pipeline import Pipeline, throughput_mode
from deploy.predictor import PIXELS_TO_SEE, Predictor
from drawing import Panel, side_by_side
from geometry import stride_for
from tasks import Task
from utils import printable, require, whole_file

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "udp://", "srt://")
TICKS = 90_000  # a second: the clock of most containers
STREAM_WAIT = 10.0  # seconds without a sign of life
VIEWS = ("side", "overlay")
LEGEND_LINES = 3
MAX_FRAME_PIXELS = 2**25  # 33.6 million: 8K fits
MAX_GAP = 3600.0  # seconds between frames; a longer one is a damaged time, and MP4 holds no more than 6 hours
SHEET_SIDES = (16, 16_384)  # pixels: the least and the most that the encoder takes
MAX_CAMERA = 99


def is_video(source: str) -> bool:
    return source.startswith(("camera:", *STREAMS)) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def video_name(source: str) -> str:
    """Stem for output files: the file's own, or for a live source e.g. `camera-20261121-101500`."""
    live = source.startswith(("camera:", *STREAMS))
    return f"{re.split('[:/]', source)[0]}-{datetime.now():%Y%m%d-%H%M%S}" if live else Path(source).stem


@dataclass(frozen=True)
class Frame:
    seconds: float  # since the first one
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright; of one size in all frames of a source


# ---------------------------------------------------------------------------------------------- sources


class File:
    """A file or a stream, by FFmpeg. Packets that cannot be decoded are left out and counted in `broken`.

    Raises FileNotFoundError or ValueError when it cannot be opened.
    """

    def __init__(self, source: str) -> None:
        require("av")
        import av

        self.source, self.live, self.broken, self.errors = source, source.startswith(STREAMS), 0, av.FFmpegError
        if not self.live and not Path(source).is_file():
            raise FileNotFoundError(f"{source}: no such file")
        try:
            options = {"rtsp_transport": "tcp"} if source.startswith("rtsp://") else {}
            self.container = av.open(source, options=options, timeout=STREAM_WAIT if self.live else None)
        except (av.FFmpegError, OSError) as problem:
            raise ValueError(f"{source}: not a video that can be read ({problem.strerror})") from None
        if not self.container.streams.video:
            raise ValueError(f"{source}: it has no pictures")
        self.stream = self.container.streams.video[0]
        self._check_size(self.stream.codec_context)
        self.stream.thread_type = "AUTO"
        self.rate = self.stream.average_rate or Fraction(25)
        length = self.container.duration / av.time_base if self.container.duration else 0.0
        self.count = 0 if self.live else self.stream.frames or round(length * self.rate)

    def _check_size(self, frame: object) -> None:
        """Raises ValueError for what would fill the memory; frame: something with a width and a height."""
        if frame.width * frame.height > MAX_FRAME_PIXELS:
            raise ValueError(
                f"{self.source}: frames of {frame.width}x{frame.height}; at most {MAX_FRAME_PIXELS} pixels, as in 8K"
            )

    def __iter__(self) -> Iterator[Frame]:
        size, first, seconds = None, None, 0.0
        for packet in self._packets():
            try:
                decoded = packet.decode()
            except self.errors:
                self.broken += 1
                continue
            for frame in decoded:
                self._check_size(frame)
                if frame.time is None:
                    seconds += float(1 / self.rate)
                else:
                    first = frame.time if first is None else first
                    if frame.time - first > seconds + MAX_GAP:  # later times go on from here
                        first = frame.time - seconds - float(1 / self.rate)
                    seconds = max(frame.time - first, seconds)
                size = size or (frame.width, frame.height)
                image = frame.reformat(*size, format="rgb24").to_ndarray()
                yield Frame(seconds, np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4)))

    def _packets(self) -> Iterator[object]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except self.errors:  # the container itself is cut off or damaged: nothing comes after it
                self.broken += 1
                return
            if packet is None:
                return
            yield packet

    def close(self) -> None:
        self.container.close()


class Camera:
    """A camera of this machine, by its number. Raises ValueError when it does not answer."""

    live, count, broken = True, 0, 0

    def __init__(self, number: str) -> None:
        self.source = f"camera:{number}"
        if not number.isdecimal() or len(number) > 9 or int(number) > MAX_CAMERA:
            raise ValueError(f"--input {self.source}: expected a number of 0..{MAX_CAMERA}, such as camera:0")
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would say it in its own words
        self.capture = cv2.VideoCapture(int(number))
        cv2.utils.logging.setLogLevel(level)
        if not self.capture.isOpened():
            raise ValueError(f"{self.source}: there is no such camera, or another program has it")
        self.rate = Fraction(round(self.capture.get(cv2.CAP_PROP_FPS)) or 30)

    def __iter__(self) -> Iterator[Frame]:
        began = None
        while True:
            found, image = self.capture.read()
            if not found:
                return
            now = time.monotonic()
            began = now if began is None else began
            yield Frame(now - began, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))

    def close(self) -> None:
        self.capture.release()


def open_source(source: str) -> File | Camera:
    return Camera(source.removeprefix("camera:")) if source.startswith("camera:") else File(source)


class Newest:
    """The newest frame of a live source: what comes while the network works is left out and counted in `dropped`."""

    def __init__(self, source: File | Camera) -> None:
        self.source, self.changed = source, threading.Condition()
        self.frame: Frame | None = None
        self.problem: Exception | None = None
        self.ended, self.dropped = False, 0
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            for frame in self.source:
                with self.changed:
                    self.dropped += self.frame is not None
                    self.frame = frame
                    self.changed.notify()
                if self.ended:
                    break
        except Exception as problem:
            self.problem = problem
        with self.changed:
            self.ended = True
            self.changed.notify()

    def stop(self) -> bool:
        """Stops reading and wakes waiting consumers. Returns True once the reader thread has ended."""
        with self.changed:
            self.ended = True
            self.changed.notify()
        self.thread.join(STREAM_WAIT)
        return not self.thread.is_alive()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.frame is not None or self.ended)
                frame, self.frame = self.frame, None
            if frame is None:
                if self.problem:
                    raise self.problem
                return
            yield frame


# ---------------------------------------------------------------------------------------------- smoothing


class Smoother:
    """Averages the network's raw outputs over time where the picture stands still.

    A pixel whose color differs by `moved` or more from the last frame's is taken as it is; one that stays the same
    takes 1 - `strength` of the new output. It works on raw outputs, before they become classes or metres; what is
    averaged is the task's business (Task.smooth).
    """

    def __init__(self, strength: float, tasks: Mapping[str, Task], moved: float = 24.0) -> None:
        self.strength, self.tasks, self.moved = strength, tasks, moved
        self.image: Tensor | None = None
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, pixels: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """pixels (1, 3, H, W) uint8, raw outputs of one frame -> the averaged outputs."""

        def kept(size: tuple[int, int]) -> Tensor:
            now, before = (F.interpolate(image, size, mode="area") for image in (pixels.float(), self.image.float()))
            change = (now - before).abs().amax(1, keepdim=True)
            return self.strength * (1 - change / self.moved).clamp(0, 1)

        if self.image is None or self.image.shape != pixels.shape:
            self.outputs = dict(outputs)
        else:
            for name, value in outputs.items():
                self.outputs[name] = self.tasks[name].smooth(self.outputs[name], value, kept)
        self.image = pixels
        return dict(self.outputs)


# ---------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def video_writer(path: Path, rate: Fraction) -> Iterator[Callable[[float, np.ndarray], None]]:
    """Gives write(seconds, image (H, W, 3) uint8), for an H.264 video in which frames keep their times.

    Written atomically. All images have the size of the first. Raises ValueError if no frame was written.
    """
    import av

    stream, last, smallest = None, -1, SHEET_SIDES[0]
    with whole_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:

        def write(seconds: float, image: np.ndarray) -> None:
            nonlocal stream, last
            missing = [max(0, smallest - side) for side in image.shape[:2]]
            image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], constant_values=255)
            height, width = (side - side % 2 for side in image.shape[:2])  # H.264 halves the colors' resolution
            if stream is None:
                stream = container.add_stream("libx264", rate, {"crf": "20", "preset": "superfast"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
            # By OpenCV, in a tenth of FFmpeg's time: colors are those of every second pixel, not means.
            planes = cv2.cvtColor(np.ascontiguousarray(image[:height, :width]), cv2.COLOR_RGB2YUV_I420)
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            last = frame.pts = max(round(seconds * TICKS), last + 1)
            frame.time_base = Fraction(1, TICKS)
            container.mux(stream.encode(frame))

        yield write
        if stream is None:
            raise ValueError("no picture in it could be decoded")
        container.mux(stream.encode())


def view_of(frame: Frame, tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray], view: str) -> np.ndarray:
    """The frame and each task's picture in a row, or, as an overlay, each task's picture over the frame.

    Smaller where the row would be longer than a video can be, or a picture larger than one looks at.
    """
    height, width = frame.image.shape[:2]
    count, most = len(tasks) + (view == "side"), SHEET_SIDES[1]
    # Half of the height for text: that of a narrow picture may be higher than the picture.
    step = max(stride_for(height, width, PIXELS_TO_SEE), -(-count * width // most), -(-height // (most // 2)))
    image = np.ascontiguousarray(frame.image[::step, ::step])
    panels: list[Panel] = [("image", image, [])] if view == "side" else []
    for name, task in tasks.items():
        show = task.overlay if view == "overlay" else task.panel
        panels.append((name, show(predictions[name], image, (height, width)), task.legend(predictions[name])))
    return side_by_side(panels, lines=LEGEND_LINES)


def predict_video(
    predictor: Predictor, source: str, output: Path, view: str = "side", smoothing: float = 0.0, seconds: float = 0.0
) -> str:
    """Writes the video of a source's predictions, of its first `seconds` (0: all), and its description. Returns what
    was done, in a line.

    Reading, the network and writing go on at the same time. Ctrl-C ends the video where it is, whole. Raises
    FileNotFoundError or ValueError.
    """
    if smoothing:
        predictor.backend.require_raw("--smooth")
    stem = output.with_name(output.stem.removesuffix("_overview"))
    refuse_files_of_others([stem], predictor.tasks, video=True)
    frames = open_source(source)
    newest = Newest(frames) if frames.live else None
    smoother = Smoother(smoothing, predictor.backend.tasks) if smoothing else None
    count, began, reader_ended = 0, time.monotonic(), newest is None

    def predict(frame: Frame) -> dict[str, np.ndarray]:
        return predictor.batch([frame.image], smoother)[0]

    def write(frame: Frame, predictions: Mapping[str, np.ndarray]) -> None:
        write_frame(frame.seconds, view_of(frame, predictor.tasks, predictions, view))

    try:
        with (
            throughput_mode(predictor.backend, not (newest or smoother)) as calls,
            video_writer(output, frames.rate) as write_frame,
            Pipeline(predict, write, calls + 1, calls) as pipeline,
            tqdm(total=frames.count or None, unit="frame", disable=not sys.stderr.isatty()) as bar,
        ):
            incoming = iter(newest or frames)
            try:
                while (frame := next(incoming, None)) is not None and not 0 < seconds <= frame.seconds:
                    if not count:
                        size, camera = frame.image.shape[:2], predictor.field_of_view
                        if line := camera.line(None, *size):
                            print(line, flush=True)
                        write_description(stem, source, *size, predictor.tasks, True, camera.zoom(None, *size))
                    pipeline.put(frame, 1)
                    pipeline.reserve(1)  # before the next one is taken: of a live source it is the newest then
                    count += 1
                    bar.update()
            except KeyboardInterrupt:
                pass
            finally:
                reader_ended = newest.stop() if newest else True
    except ValueError as problem:
        raise ValueError(problem if str(problem).startswith(source) else f"{source}: {problem}") from None
    finally:
        if reader_ended:  # closed while another thread reads it, FFmpeg crashes
            frames.close()
    rate = count / (time.monotonic() - began)
    left_out = f", {newest.dropped} left out to stay with the newest" if newest else ""
    broken = f", {frames.broken} broken packets left out" if frames.broken else ""
    return printable(f"{output}: {count} frames, {rate:.1f} a second{left_out}{broken}")
