"""A page in the browser: drop a picture, see what everything is and how far away, turn it around, take the values.

    python app.py                                              # the networks of all runs, at http://127.0.0.1:7860
    python app.py --checkpoint a/best.pt b.xml --port 8000    # these; .onnx and .xml files as well

For this machine only unless --host says otherwise. Pictures come from uploads and nowhere else, and nothing leaves the
machine: the page loads nothing from outside. Needs requirements/app.txt.
"""

from __future__ import annotations

import html
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openmp  # noqa: F401 - before torch

import cv2
import numpy as np

from checkpoints import newest_checkpoint
from config import Parser, convert
from deploy.backends import BACKENDS
from deploy.predictor import Predictor, save_predictions
from geometry import camera_with
from images import SAMPLE, count_pixels, read_image
from scene3d.fusion import Surface, cloud
from tasks import Task, task_giving
from utils import require, run, setup_cpu

if TYPE_CHECKING:
    import gradio
    import plotly.graph_objects

Move = Callable[["str | Path | None"], Awaitable["str | None"]]

NETWORKS_KEPT = 2  # in memory
ANSWERS_KEPT = 4  # folders of files; the page copies what it shows
QUEUE = 16  # people who may wait
FILES_LIVE = 3600  # seconds until uploads and downloads are deleted
ALL = "all data sets"  # of the training
SHOWN_SIDE = 1280  # pixels of the pictures on the page
HOVER_SIDE = 320  # values under the pointer
CLOUD_POINTS = 20_000  # on the page
FILE_POINTS = 2_000_000  # in the PLY file
FARTHEST = 100.0  # metres


def every_nth(height: int, width: int, most: float) -> int:
    """The step with which so many of the pixels remain, at most."""
    return max(1, int(np.ceil(np.sqrt(height * width / most))))


def shares(task: Task, ids: np.ndarray, depth: np.ndarray | None) -> list[list[str]]:
    """A row for each class in the picture, largest first: its colour, name, share, and median distance."""
    rows = []
    counts = np.bincount(ids.ravel(), minlength=256)[: len(task.classes)]
    for number in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
        box = '<span style="color:rgb({},{},{})">&#9632;</span>'.format(*task.colors[number])
        metres = f"{np.median(depth[ids == number]):.2f} m" if depth is not None else ""
        rows.append([box, html.escape(task.classes[number]), f"{100 * counts[number] / ids.size:.1f} %", metres])
    return rows


def hover_plot(
    task: Task, depth: np.ndarray, ids: np.ndarray | None, classes: Sequence[str]
) -> plotly.graph_objects.Figure:
    """depth (H, W) metres in the colours of its task, ids (H, W) of the classes: both appear under the pointer."""
    import plotly.graph_objects as go

    step = -(-max(depth.shape) // HOVER_SIDE)
    seen, names = depth[::step, ::step], None
    if ids is not None:
        names = np.array([html.escape(name) for name in classes] + [""] * (256 - len(classes)), object)
        names = names[ids[::step, ::step]]
    # Near is red, as in the pictures that inference.py writes.
    heat = go.Heatmap(
        z=seen.round(3), dx=step, dy=step, zmin=0, zmax=task.max_m, colorscale="Turbo", reversescale=True,
        colorbar={"title": "m", "thickness": 12}, text=names,
        hovertemplate=("" if names is None else "%{text}<br>") + "<b>%{z:.2f} m</b><extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0}, template="plotly_white", height=400)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


def cloud_plot(
    surface: Surface, classes: Sequence[str], colors: Sequence[tuple[int, int, int]]
) -> plotly.graph_objects.Figure:
    """The points, to be turned around; a button changes between the picture's colours and those of the classes."""
    import plotly.graph_objects as go

    chosen = np.random.default_rng(0).permutation(len(surface.points))[:CLOUD_POINTS]
    points, ids = surface.points[chosen], surface.classes[chosen]
    own = np.array([f"rgb({r},{g},{b})" for r, g, b in surface.colors[chosen].tolist()], object)
    figure, by_picture, by_class = go.Figure(), [], []
    for number, count in enumerate(np.bincount(ids, minlength=256)):
        if not count:
            continue
        here = ids == number
        x, y, z = points[here].T.round(3)
        known = number < len(classes)
        by_picture.append(own[here])
        by_class.append("rgb({},{},{})".format(*colors[number]) if known else "gray")
        figure.add_scatter3d(
            x=x, y=z, z=-y, mode="markers", marker={"size": 2, "color": by_picture[-1]},
            name=html.escape(classes[number]) if known else "points", hovertemplate="%{y:.2f} m",
        )  # fmt: skip
    buttons = [
        {
            "label": "colours of the picture",
            "method": "update",
            "args": [{"marker.color": by_picture}, {"showlegend": False}],
        },
        {"label": "of the classes", "method": "update", "args": [{"marker.color": by_class}, {"showlegend": True}]},
    ]
    menu = {"type": "buttons", "direction": "left", "x": 0, "y": 0, "xanchor": "left", "yanchor": "bottom"}
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, template="plotly_white", height=400, showlegend=False,
        legend={"itemsizing": "constant"},
        scene={
            "aspectmode": "data", "camera": {"eye": {"x": 0.3, "y": -1.6, "z": 0.4}},
            "xaxis_title": "x, m", "yaxis_title": "distance, m", "zaxis_title": "height, m",
        },
        updatemenus=[menu | {"buttons": buttons}] if classes else [],
    )  # fmt: skip
    return figure


class Viewer:
    """What the page calls. checkpoints: {name: file}, each loaded when it is first chosen."""

    def __init__(
        self, checkpoints: Mapping[str, Path], folder: Path, backend: str, device: str, max_pixels: int
    ) -> None:
        self.checkpoints, self.folder, self.max_pixels = checkpoints, folder, max_pixels
        self.backend, self.device = backend, device
        self.networks: OrderedDict[str, Predictor] = OrderedDict()
        self.answers: deque[Path] = deque()

    def network(self, name: str, domain: str = ALL) -> Predictor:
        """Raises ValueError or FileNotFoundError."""
        if name not in self.networks:
            self.networks[name] = Predictor(self.checkpoints[name], self.backend, self.device)
        self.networks.move_to_end(name)
        if len(self.networks) > NETWORKS_KEPT:
            self.networks.popitem(last=False)
        whole = self.networks[name]
        return whole if domain == ALL else Predictor(whole.backend, domain=domain, device=self.device)

    def new_folder(self) -> Path:
        self.answers.append(Path(tempfile.mkdtemp(dir=self.folder)))
        if len(self.answers) > ANSWERS_KEPT:
            shutil.rmtree(self.answers.popleft(), ignore_errors=True)
        return self.answers[-1]

    def read(self, upload: Path) -> np.ndarray:
        """Raises ValueError that names the picture as its owner does."""
        pixels = count_pixels(upload)
        if pixels > self.max_pixels:
            raise ValueError(f"{upload.name}: {pixels:,} pixels; at most {self.max_pixels:,} are taken here")
        try:
            return read_image(upload)
        except (ValueError, FileNotFoundError) as problem:
            raise ValueError(str(problem).replace(str(upload), upload.name)) from None

    def __call__(self, upload: str, name: str, domain: str, over: str, fov: float) -> tuple[Any, ...]:
        """A picture's file, a network and a data set of its training, the task over the picture, degrees -> for each
        part of the page what it shows. Raises ValueError or FileNotFoundError."""
        image = self.read(Path(upload))
        predictor = self.network(name, domain)
        began = time.perf_counter()
        found = predictor(image)
        took_ms = 1000 * (time.perf_counter() - began)
        height, width = image.shape[:2]
        tasks = predictor.tasks
        by_class, by_metres = task_giving("classes", tasks), task_giving("metres", tasks)
        ids, depth = found.get(by_class), found.get(by_metres)
        classes, colors = (tasks[by_class].classes, tasks[by_class].colors) if by_class else ((), ())

        stem = self.new_folder() / (Path(upload).stem[:80] or "picture")
        save_predictions(stem, image, tasks, found)
        metres = turn = None
        if depth is not None:
            metres = hover_plot(tasks[by_metres], depth, ids, classes)
            step = every_nth(height, width, FILE_POINTS)
            few, few_depth = image[::step, ::step], depth[::step, ::step]
            few_ids = None if ids is None else ids[::step, ::step]
            camera = camera_with(fov, few.shape[1], few.shape[0])
            points = cloud(few, few_depth, few_ids, camera, FARTHEST)
            points.write(stem.with_name(f"{stem.name}.ply"))
            turn = cloud_plot(points, classes, colors)

        step = -(-max(height, width) // SHOWN_SIDE)
        shown = image[::step, ::step]
        drawn = tasks[over].draw(found[over], (height, width), shown.shape[:2]) if over in tasks else shown
        over_image = cv2.addWeighted(shown, 0.35, drawn, 0.65, 0)
        line = f"{name}: {width} x {height} pixels, {took_ms:.0f} ms in {predictor.backend.name}; {', '.join(tasks)}"
        rows = shares(tasks[by_class], ids, depth) if by_class else []
        files = sorted(str(path) for path in stem.parent.iterdir())
        return (shown, over_image), metres, rows, turn, files, line


def uploads_only(move: Move) -> Move:
    """How gradio takes a file that a request names, without addresses of files elsewhere, which it would fetch."""
    import gradio

    async def refuse_addresses(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gradio.Error("pictures are taken from uploads only", print_exception=False)
        return await move(path)

    return refuse_addresses


def make_page(viewer: Viewer) -> gradio.Blocks:
    import gradio

    def said(problem: Exception) -> gradio.Error:
        return gradio.Error(html.escape(str(problem)), print_exception=False, title="This did not work")

    def look(upload: str | None, name: str, domain: str, over: str, fov: float) -> tuple[Any, ...]:
        if upload is None:
            return None, None, [], None, None, ""
        try:
            return viewer(upload, name, domain, over, fov)
        except (ValueError, OSError) as problem:
            raise said(problem) from None

    def choose(name: str) -> tuple[Any, ...]:
        """A network's data sets, and the tasks of which one is shown over the picture."""
        try:
            predictor = viewer.network(name)
        except (ValueError, OSError) as problem:
            raise said(problem) from None
        domains, tasks = [ALL, *predictor.backend.domains], list(predictor.tasks)
        return (
            gradio.Dropdown(domains, value=ALL, visible=len(domains) > 2),
            gradio.Radio(tasks, value=tasks[0], visible=len(tasks) > 1),
        )

    names = list(viewer.checkpoints)
    with gradio.Blocks(
        title="What everything is, and how far away",
        analytics_enabled=False,
        delete_cache=(FILES_LIVE // 4, FILES_LIVE),
    ) as page:  # fmt: skip
        gradio.Markdown("# What everything is, and how far away")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=340):
                upload = gradio.File(label="Picture", elem_id="upload", height=140)
                sample = gradio.Button("Take the sample picture", elem_id="sample", visible=SAMPLE.is_file())
                name = gradio.Dropdown(names, value=names[0], label="Network", elem_id="network")
                domain = gradio.Dropdown([ALL], value=ALL, label="Classes of", visible=False)
                over = gradio.Radio([], label="Over the picture", elem_id="over")
                fov = gradio.Slider(20, 120, 60, step=1, label="Horizontal field of view, degrees (for 3D)")
                line = gradio.Markdown(elem_id="line")
                files = gradio.File(label="Values and pictures", elem_id="files", interactive=False)
            with gradio.Column(scale=3):
                with gradio.Row():
                    slider = gradio.ImageSlider(
                        label="Picture | what was seen", elem_id="slider", format="jpeg", max_height=400,
                        interactive=False, buttons=["fullscreen"],
                    )  # fmt: skip
                    metres = gradio.Plot(label="Under the pointer: metres and class", elem_id="metres")
                with gradio.Row():
                    table = gradio.Dataframe(
                        headers=["", "class", "share", "distance"], datatype=["html", "str", "str", "str"],
                        column_widths=["10%", "40%", "25%", "25%"], label="Classes", elem_id="classes",
                        interactive=False, max_height=400,
                    )  # fmt: skip
                    turn = gradio.Plot(label="In 3D: drag to turn", elem_id="cloud")
        upload.async_move_resource_to_block_cache = uploads_only(upload.async_move_resource_to_block_cache)
        hidden = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "network"}
        inputs, outputs = [upload, name, domain, over, fov], [slider, metres, table, turn, files, line]
        page.load(choose, name, [domain, over], **hidden)
        name.change(choose, name, [domain, over], **hidden).then(look, inputs, outputs, **hidden)
        sample.click(lambda: str(SAMPLE), None, upload, **hidden)
        changes = [upload.change, domain.input, over.input, fov.release]
        gradio.on(changes, look, inputs, outputs, trigger_mode="always_last", **hidden)
    return page.queue(max_size=QUEUE, api_open=False)


def find_checkpoints(given: Sequence[str]) -> dict[str, Path]:
    """{name on the page: file}. Raises FileNotFoundError or ValueError."""
    files = [Path(item) for item in given]
    if not files:
        newest = newest_checkpoint()
        others = sorted(newest.parents[1].glob("*/best.pt"))
        files = [newest, *(path for path in others if path != newest)]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"--checkpoint: {path}: no such file")
    short = [path.parent.name if path.name == "best.pt" and path.parent.name else path.name for path in files]
    return {name if short.count(name) == 1 else str(path): path for name, path in zip(short, files, strict=True)}


def main() -> None:
    parser = Parser(description="A page in the browser: segmentation, depth and a cloud of points of pictures.")
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="FILE", help="default: best.pt of all runs")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: this one only")
    parser.add_argument("--port", default="7860")
    parser.add_argument("--max_mb", default="20", help="of an uploaded file")
    parser.add_argument("--max_pixels", default="25000000", help="of a picture")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="auto: the fastest installed")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    port, max_mb, max_pixels = (
        convert(getattr(arguments, name), int, f"--{name}") for name in ("port", "max_mb", "max_pixels")
    )
    if not 0 < port < 65536 or max_mb < 1 or max_pixels < 1:
        raise ValueError("--port must be within 1 .. 65535, --max_mb and --max_pixels at least 1")
    require("gradio", "plotly")
    setup_cpu()
    checkpoints = find_checkpoints(arguments.checkpoint)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not without deleting the uploads
    with tempfile.TemporaryDirectory(prefix="app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads and downloads: gone when the app ends
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio

        viewer = Viewer(checkpoints, Path(folder), arguments.backend, arguments.device, max_pixels)
        viewer.network(next(iter(checkpoints)))  # mistakes come now, and the first picture need not wait
        page = make_page(viewer)
        try:
            page.launch(
                server_name=arguments.host, server_port=port, max_file_size=max_mb * 2**20, share=False, quiet=True,
                prevent_thread_lock=True, ssr_mode=False, footer_links=[], mcp_server=False, strict_cors=True,
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )  # fmt: skip
        except OSError as problem:
            raise ValueError(
                f"port {port} of {arguments.host} cannot be had ({problem}); choose another: --port"
            ) from None
        print(f"http://{arguments.host}:{port} ({', '.join(checkpoints)}); Ctrl-C ends it", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()


if __name__ == "__main__":
    run(main)
