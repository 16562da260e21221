"""What the page answers for a picture: predictions of the chosen network, and what is shown of them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.predictor import Predictor, save_predictions
from geometry import camera_with, stride_for
from images import count_pixels, read_photo
from scene3d.fusion import cloud
from tasks import task_giving, task_of_things
from webpage.charts import cloud_plot, hover_plot
from webpage.clicks import picture_to_click
from webpage.guard import ANSWER
from webpage.tables import shares, things

NETWORKS_KEPT = 2  # in memory
ANSWERS_KEPT = 4  # folders of results
STEM_BYTES = 200  # of the names of results: file systems allow 255 with the endings
ALL = "all data sets"  # the choice that leaves the network whole
SHOWN_SIDE = 1280  # pixels of the pictures on the page
FILE_POINTS = 2_000_000  # in the PLY file
MAX_DEPTH_M = 100.0  # of the points


class Viewer:
    """Answers the page. checkpoints: {name: file}, each loaded when it is first chosen."""

    def __init__(
        self, checkpoints: Mapping[str, Path], folder: Path, backend: str, device: str, max_pixels: int
    ) -> None:
        self.checkpoints, self.folder, self.max_pixels = checkpoints, folder, max_pixels
        self.backend, self.device = backend, device
        self.networks: OrderedDict[str, Predictor] = OrderedDict()
        self.answers: deque[Path] = deque()

    def network(self, name: str) -> Predictor:
        """Raises ValueError or FileNotFoundError."""
        if name not in self.networks:
            while len(self.networks) >= NETWORKS_KEPT:  # before the next one is loaded
                self.networks.popitem(last=False)
            self.networks[name] = Predictor(self.checkpoints[name], self.backend, self.device)
        self.networks.move_to_end(name)
        return self.networks[name]

    def new_folder(self) -> Path:
        self.answers.append(Path(tempfile.mkdtemp(prefix=ANSWER, dir=self.folder)))
        if len(self.answers) > ANSWERS_KEPT:
            shutil.rmtree(self.answers.popleft(), ignore_errors=True)
        return self.answers[-1]

    def read(self, upload: Path) -> tuple[np.ndarray, float | None]:
        """See images.read_photo. Raises ValueError that names the file as it was uploaded, without its folder."""
        pixels = count_pixels(upload)
        if pixels > self.max_pixels:
            raise ValueError(f"{upload.name}: {pixels:,} pixels; at most {self.max_pixels:,} are taken here")
        try:
            return read_photo(upload)
        except (ValueError, FileNotFoundError) as problem:
            raise ValueError(str(problem).replace(str(upload), upload.name)) from None

    def __call__(self, upload: str, name: str, domain: str, over: str, fov: float) -> tuple[Any, ...]:
        """Predicts. name: of the network; domain: a data set of its training, or ALL; over: the task to draw over the
        picture; fov: horizontal, in degrees, 0 = as its EXIF data say, and without them 60 for the points alone.

        Returns the values of the page's parts: (picture, overlay), depth chart, rows of classes, rows of objects, 3D
        chart, HTML of the picture to click, files, and a line of text; None where the network has no such task. Raises
        ValueError or FileNotFoundError.
        """
        image, known = self.read(Path(upload))
        backend = self.network(name).backend
        predictor = Predictor(backend, domain="" if domain == ALL else domain, fov=fov or None)
        began = time.perf_counter()
        found = predictor(image, known)
        took_ms = 1000 * (time.perf_counter() - began)
        height, width = image.shape[:2]
        tasks, view = predictor.tasks, predictor.field_of_view
        by_class, by_metres = task_giving("classes", tasks), task_giving("metres", tasks)
        ids, depth = found.get(by_class), found.get(by_metres)
        classes, colors = (tasks[by_class].classes, tasks[by_class].colors) if by_class else ((), ())

        stem = self.new_folder() / (Path(upload).stem.encode()[:STEM_BYTES].decode(errors="ignore") or "picture")
        save_predictions(stem, image, tasks, found, Path(upload).name)
        metres = turn = None
        if depth is not None:
            metres = hover_plot(tasks[by_metres], depth, ids, classes)
            step = stride_for(height, width, FILE_POINTS)
            few, few_depth = image[::step, ::step], depth[::step, ::step]
            few_ids = None if ids is None else ids[::step, ::step]
            camera = camera_with(view.degrees(known, height, width), few.shape[1], few.shape[0])
            points = cloud(few, few_depth, few_ids, camera, MAX_DEPTH_M)
            points.write(stem.with_name(f"{stem.name}.ply"))
            turn = cloud_plot(points, classes, colors)

        step = -(-max(height, width) // SHOWN_SIDE)
        shown = image[::step, ::step]
        over_image = tasks[over].overlay(found[over], shown, (height, width), 0.65) if over in tasks else shown
        line = f"{name}: {width} x {height} pixels, {took_ms:.0f} ms in {predictor.backend.name}; {', '.join(tasks)}"
        about = view.line(known, height, width)
        rows = shares(tasks[by_class], ids, depth) if by_class else None
        drawn = {over: tasks[over]} if over in tasks else {}
        by_thing = task_of_things(drawn) or task_of_things(tasks)  # what is drawn can be clicked
        objects = things(tasks[by_thing], found[by_thing], (height, width)) if by_thing else None
        seen = picture_to_click(over_image, tasks, found, (height, width), by_thing)
        files = sorted(str(path) for path in stem.parent.iterdir())
        line = f"{line}; {about}" if about else line
        return (shown, over_image), metres, rows, objects, turn, seen, files, line
