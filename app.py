"""Web page for single pictures: see classes, depth and objects, turn the points in 3D, download the values.

    python app.py       # the networks of all runs, or the weights in model/, at http://127.0.0.1:7860
    python app.py --checkpoint a/best.pt b.xml --port 8000    # these; .onnx and .xml files as well

Serves this machine only, unless --host says otherwise. Pictures come from uploads alone, pages of other sites may not
send any, and the page loads nothing from outside. Needs requirements/app.txt.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import contextlib
import html
import os
import shutil
import signal
import socket
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.backends import BACKENDS
from images import SAMPLE
from networks.checkpoints import RUNS, SHIPPED, pick_checkpoint
from user_input.flags import Parser, number, positive_int
from utils import require, run, setup_cpu
from webpage.clicks import CLICK_CSS, CLICK_JS
from webpage.guard import Guard, uploads_only
from webpage.viewer import ALL, Viewer

if TYPE_CHECKING:
    import gradio

TITLE = "Joint semantic segmentation and depth"
QUEUE = 16  # requests that may wait
FILES_LIVE = 3600  # seconds until uploads and downloads are deleted


# ---------------------------------------------------------------------------------------------- the page

# File names as a whole; gradio would shorten them. The text of problems in red.
CSS = """
#files .filename, #upload .filename { display: block; overflow-wrap: anywhere; font-size: 0.9em; }
#files .stem, #files .ext, #upload .stem, #upload .ext { display: inline; white-space: normal; }
#line .problem { color: #b91c1c; }
"""


def in_words(problem: Exception) -> str:
    """HTML for the page. What we did not foresee is printed with its traceback, too."""
    if not isinstance(problem, ValueError | OSError):
        traceback.print_exception(problem)
        text = f"unexpected {type(problem).__name__}: {problem}; the terminal of app.py says more"
    else:
        text = str(problem)
    return f'<p class="problem"><b>This did not work.</b> {html.escape(text)}</p>'


def look(viewer: Viewer, upload: str | None, name: str, domain: str, over: str, fov: float) -> tuple[Any, ...]:
    """The updates of the page's parts for a picture; parts without anything to show are hidden."""
    import gradio

    if upload is None:
        return (gradio.skip(),) * 8
    try:
        *parts, files, line = viewer(upload, name, domain, over, fov)
    except Exception as problem:
        return *(gradio.update(value=None, visible=False),) * 6, gradio.update(value=None), in_words(problem)
    shown = [gradio.update(value=part, visible=part is not None) for part in parts]
    return *shown, files, f"<p>{html.escape(line)}</p>"


def offered(viewer: Viewer, name: str) -> tuple[list[str], list[str]]:
    """The data sets whose classes a network can keep to (ALL first), and the tasks to draw over the picture."""
    predictor = viewer.network(name)
    return [ALL, *predictor.backend.domains], list(predictor.tasks)


def choose(viewer: Viewer, name: str) -> tuple[Any, ...]:
    """The updates of both choices and of the line of text for another network."""
    import gradio

    try:
        domains, tasks = offered(viewer, name)
    except Exception as problem:
        hidden = gradio.update(visible=False)
        return hidden, hidden, in_words(problem)
    return (
        gradio.Dropdown(domains, value=ALL, visible=len(domains) > 2),
        gradio.Radio(tasks, value=tasks[0], visible=len(tasks) > 1),
        "",
    )


def make_page(viewer: Viewer) -> gradio.Blocks:
    import gradio

    names = list(viewer.checkpoints)
    # Not in an event at loading: gradio's page closes the stream of its answers when none is due, and loses the answer
    # to a picture that comes at that moment.
    domains, tasks = offered(viewer, names[0])
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(FILES_LIVE // 4, FILES_LIVE)) as page:
        gradio.Markdown(f"# {TITLE}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=340):
                upload = gradio.File(label="Picture", elem_id="upload", height=140)
                sample = gradio.Button("Take the sample picture", elem_id="sample", visible=SAMPLE.is_file())
                name = gradio.Dropdown(names, value=names[0], label="Network", elem_id="network")
                domain = gradio.Dropdown(domains, value=ALL, label="Classes of", visible=len(domains) > 2)
                over = gradio.Radio(
                    tasks, value=tasks[0], label="Over the picture", elem_id="over", visible=len(tasks) > 1
                )
                label = "Horizontal field of view, degrees (0: by EXIF data)"
                fov = gradio.Slider(0, 120, 0, step=1, label=label, elem_id="fov")
                line = gradio.HTML(elem_id="line")
                files = gradio.File(label="Values and pictures", elem_id="files", interactive=False)
            with gradio.Column(scale=3):
                with gradio.Row():
                    slider = gradio.ImageSlider(
                        label="Picture | prediction", elem_id="slider", format="jpeg", max_height=400,
                        interactive=False, buttons=["fullscreen"],
                    )  # fmt: skip
                    metres = gradio.Plot(label="Depth: point at a place for metres and class", elem_id="metres")
                seen = gradio.HTML(elem_id="seen", visible=False, css_template=CLICK_CSS, js_on_load=CLICK_JS)
                with gradio.Row():
                    table = gradio.Dataframe(
                        headers=["", "class", "share", "distance"], datatype=["html", "str", "str", "str"],
                        column_widths=["10%", "40%", "25%", "25%"], label="Classes", elem_id="classes",
                        interactive=False, max_height=400, min_width=300,
                    )  # fmt: skip
                    # Its width moves the points to the next row; without objects they stand beside the classes.
                    objects = gradio.Dataframe(
                        headers=["", "object", "score", "distance", "x, y, z"], datatype=["html"] + ["str"] * 4,
                        column_widths=["6%", "24%", "13%", "17%", "40%"], label="Objects; x right, y down, z forward",
                        elem_id="objects", interactive=False, max_height=400, min_width=500, visible=False,
                    )  # fmt: skip
                    turn = gradio.Plot(label="In 3D: drag to turn", elem_id="cloud", min_width=300)
        # Not public: requirements/app.txt keeps gradio's version, and without the method there must be no page.
        if not hasattr(upload, "async_move_resource_to_block_cache"):
            raise ValueError("this version of gradio takes files in another way: pip install -r requirements/app.txt")
        upload.async_move_resource_to_block_cache = uploads_only(upload.async_move_resource_to_block_cache)
        hidden = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "network"}
        inputs, outputs = [upload, name, domain, over, fov], [slider, metres, table, objects, turn, seen, files, line]

        def answer(*values: Any) -> tuple[Any, ...]:
            return look(viewer, *values)

        def offer(chosen: str) -> tuple[Any, ...]:
            return choose(viewer, chosen)

        name.change(offer, name, [domain, over, line], **hidden).then(answer, inputs, outputs, **hidden)
        sample.click(lambda: str(SAMPLE), None, upload, **hidden)
        changes = [upload.change, domain.input, over.input, fov.release]
        gradio.on(changes, answer, inputs, outputs, trigger_mode="always_last", **hidden)
    return page.queue(max_size=QUEUE, api_open=False)


def serve(viewer: Viewer, host: str, port: int, max_mb: int, names: Sequence[str] = ()) -> gradio.Blocks:
    """Starts the page in threads of its own. Raises ValueError when the port cannot be had."""
    import gradio
    from starlette.middleware import Middleware

    page = make_page(viewer)
    known = ("localhost", host.lower(), socket.gethostname().lower(), *(name.lower() for name in names))
    guard = Middleware(Guard, names=known, folder=viewer.folder)
    try:
        page.launch(
            server_name=host, server_port=port, max_file_size=max_mb * 2**20, share=False, quiet=True,
            prevent_thread_lock=True, ssr_mode=False, footer_links=[], mcp_server=False, strict_cors=True, css=CSS,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            app_kwargs={"middleware": [guard]},
        )  # fmt: skip
    except OSError as problem:
        raise ValueError(f"port {port} of {host} cannot be had ({problem}); choose another: --port") from None
    return page


def find_checkpoints(given: Sequence[str]) -> dict[str, Path]:
    """{name on the page: file}. Raises FileNotFoundError or ValueError."""
    files = [Path(item) for item in given]
    if not files:
        first = pick_checkpoint(None)
        files = [first, *(path for path in sorted(RUNS.glob("*/best.pt")) if path != first)]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"--checkpoint: {path}: no such file")
    short = [path.parent.name if path.name == "best.pt" and path.parent.name else path.name for path in files]
    return {name if short.count(name) == 1 else str(path): path for name, path in zip(short, files, strict=True)}


def end_at_signals(folder: Path) -> None:
    """SIGTERM and Ctrl-C delete the folder and end the process at once: a thread may be busy with a picture."""

    def end(number: int, _: object) -> None:
        gone = folder.with_name(folder.name + ".gone")  # under this name nobody writes into it any more
        with contextlib.suppress(OSError):
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def main() -> None:
    parser = Parser(description="Web page for single pictures: segmentation, depth and a point cloud.")
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="FILE", help=f"default: those of all runs, or {SHIPPED}"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: this one only")
    parser.add_argument("--port", type=number(int, least=1, most=65535), default=7860)
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME", help="other names of this server, such as that of a proxy"
    )
    parser.add_argument("--max_mb", type=positive_int, default=20, help="of an uploaded file; default: 20")
    parser.add_argument("--max_pixels", type=positive_int, default=25_000_000, help="of a picture; default: 25000000")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="auto: the fastest installed")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    require("gradio", "plotly")
    checkpoints = find_checkpoints(arguments.checkpoint)
    first = next(iter(checkpoints))
    print(f"loading {checkpoints[first]} ...", flush=True)
    setup_cpu()
    with tempfile.TemporaryDirectory(prefix="app-") as folder:
        end_at_signals(Path(folder))
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads and downloads: gone when the app ends
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        viewer = Viewer(checkpoints, Path(folder), arguments.backend, arguments.device, arguments.max_pixels)
        viewer.network(first)  # mistakes come now, and the first picture need not wait
        page = serve(viewer, arguments.host, arguments.port, arguments.max_mb, arguments.names)
        print(f"http://{arguments.host}:{arguments.port} ({', '.join(checkpoints)}); Ctrl-C ends it", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()


if __name__ == "__main__":
    run(main)
