"""The pictures of the README, from the project's own networks; `make media` makes all of them.

    python -m tools.readme_pictures architecture   # media/architecture.png
    python -m tools.readme_pictures results --checkpoint C --data dataset/camvid dataset/redkitchen  # media/results.jpg
    python -m tools.readme_pictures surface --checkpoint C --data dataset/redkitchen                 # media/surface.jpg
    python -m tools.readme_pictures cloud --checkpoint C --picture photo.jpg                         # media/cloud.jpg
    python -m tools.readme_pictures app --checkpoint C --picture photo.jpg   # media/app.jpg, from Chromium

Needs requirements/dev.txt.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.timing import some_tasks
from config import Config, Parser, convert
from dataset import read_label
from deploy.predictor import Predictor
from drawing import Panel, side_by_side
from folders import read_folder, read_list
from geometry import camera_with
from images import SAMPLE, read_image, write_jpeg
from model import Network, build_network
from scene3d.floor_plan import draw_plan, facets, find_up
from scene3d.fusion import Fusion, Surface, back_project, cloud, fuse, views_of
from scene3d.posed_images import read_scan
from tasks import task_giving
from utils import require, run, setup_cpu, whole_file

MEDIA = Path("media")
PANEL_WIDTH = 320  # pixels, as shown on a page
SURFACE_SIZE = (540, 720)
VOXEL_M, MOST_M = 0.02, 5.0


# ---------------------------------------------------------------------------------------------- architecture


def draw_architecture(network: Network, size: tuple[int, int], path: Path) -> None:
    """The encoder's features, what the decoder does with them, and the heads; sizes for images of `size`."""
    require("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    encoder, decoder = network.encoder, network.decoder
    figure = Figure((11.5, 4.6))
    axes = figure.subplots()
    axes.set(xlim=(-1, 124), ylim=(-4, 46))
    axes.axis("off")

    def box(x: float, y: float, width: float, text: str, color: str, height: float = 7) -> None:
        style = "round,pad=0.2,rounding_size=0.8"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor="#444444"))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.1})
        if text:
            place = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.6)
            axes.text(*place, text, ha="center", va="bottom", fontsize=7.5, color="#444444")

    def count(module: object) -> str:
        return f"{sum(value.numel() for value in module.parameters()) / 1e6:.2f} M parameters"

    height, width = size
    levels = decoder.levels[::-1]  # the finest is on top
    tops = [36 - 12 * row for row in range(len(levels))]
    box(0, tops[0], 14, f"image\n3 x {height} x {width}", "#eeeeee")
    for row, (indices, y) in enumerate(zip(levels, tops, strict=True)):
        stride = encoder.strides[indices[0]]
        channels = " + ".join(str(encoder.channels[i]) for i in indices)
        box(19, y, 25, f"stride {stride}: {channels} channels\n{height // stride} x {width // stride}", "#cfe2f3")
        box(53, y, 25, f"{decoder.width} x {height // stride} x {width // stride}\nReLU6, chained pooling", "#d9ead3")
        arrow((44.4, y + 3.5), (52.6, y + 3.5), "1x1")
        if row:
            arrow((31.5, tops[row - 1] - 0.4), (31.5, y + 7.4))
            arrow((65.5, y + 7.4), (65.5, tops[row - 1] - 0.4))
            axes.text(
                66.5, y + 9.5, "1x1, twice the size, added", ha="left", va="center", fontsize=7.5, color="#444444"
            )
    arrow((14.4, tops[0] + 3.5), (18.6, tops[0] + 3.5))
    axes.text(31.5, -2.5, f"encoder: {count(encoder)}", ha="center", fontsize=8.5)
    axes.text(65.5, -2.5, f"Light-Weight RefineNet: {count(decoder)}", ha="center", fontsize=8.5)
    stride = decoder.stride
    for row, (name, task) in enumerate(network.tasks.items()):
        y = tops[0] - 10 * row
        text = f"{name}: scale, ReLU6, 3x3\n{task.channels} x {height // stride} x {width // stride}"
        box(92, y, 30, text, "#fce5cd")
        arrow((78.4, tops[0] + 3.5), (91.6, y + 3.5))
    heads = "one head a task, " + count(network.heads)
    axes.text(107, tops[0] - 10 * len(network.tasks) + 5, heads, ha="center", fontsize=8.5)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", pad_inches=0.05)


# ---------------------------------------------------------------------------------------------- results


def smaller(image: np.ndarray, width: int = PANEL_WIDTH) -> np.ndarray:
    height = round(image.shape[0] * width / image.shape[1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def draw_results(predictor: Predictor, root: Path, split: str, count: int) -> np.ndarray:
    """`count` frames of a split, evenly spaced, a row each: the tasks that it has labels for, and these beside them."""
    folder = read_folder(root)
    if folder.name not in predictor.backend.domains:
        raise ValueError(f"{root}: the network was not trained on {folder.name}")
    predictor = Predictor(predictor.backend, domain=folder.name)
    frames = read_list(folder, split)
    rows = []
    for place in np.linspace(0, len(frames) - 1, count + 2)[1:-1]:
        frame = frames[round(place)]
        image = read_image(frame.image)
        found = predictor(image)
        panels: list[Panel] = [("image", smaller(image), [])]
        for name, task in predictor.tasks.items():
            if name in frame.labels:
                label = read_label(task, frame.labels[name], folder.sections[name], image.shape[:2])
                size = image.shape[:2]
                panels.append((name, smaller(task.draw(found[name], size)), task.legend(found[name])))
                panels.append((f"{name}, labelled", smaller(task.draw(label, size)), []))
        rows.append(side_by_side(panels, lines=2))
    return np.concatenate(rows)


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One below the other, on white where one is narrower."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(item, ((0, 0), (0, width - item.shape[1]), (0, 0)), constant_values=255) for item in pictures]
    return np.concatenate(wide)


# ---------------------------------------------------------------------------------------------- surfaces


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4) the pose, camera to world, of a camera that looks from `eye` at `target`."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(forward, right), forward], axis=1), eye
    return pose


def render(surface: Surface, colors: np.ndarray, pose: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
    """(H, W, 3) uint8: what a camera sees of a mesh with colours (N, 3) of its points, lit from where it stands.

    What faces away is left out, so that one can look into a room from outside.
    """
    require("open3d")
    import open3d

    height, width = SURFACE_SIZE
    eye = pose[:3, 3]
    normals, _ = facets(surface)
    towards = eye - surface.points[surface.triangles[:, 0]]
    cosine = (normals * towards).sum(1) / np.linalg.norm(towards, axis=1)
    front = np.flatnonzero(cosine > 0.02)
    scene, core = open3d.t.geometry.RaycastingScene(), open3d.core
    scene.add_triangles(core.Tensor(surface.points), core.Tensor(surface.triangles[front].astype(np.uint32)))
    rays = back_project(np.ones((height, width), np.float32), camera) @ pose[:3, :3].T.astype(np.float32)
    rays = np.concatenate([np.broadcast_to(eye.astype(np.float32), rays.shape), rays], axis=2)
    hit = scene.cast_rays(core.Tensor(np.ascontiguousarray(rays)))
    triangle, uv = hit["primitive_ids"].numpy(), hit["primitive_uvs"].numpy()
    seen = triangle != scene.INVALID_ID
    triangle, uv = front[triangle[seen]], uv[seen]
    weights = np.stack([1 - uv.sum(1), uv[:, 0], uv[:, 1]], axis=1)
    shade = 0.55 + 0.45 * cosine[triangle]
    picture = np.full((height, width, 3), 255, np.uint8)
    mixed = (colors[surface.triangles[triangle]] * weights[..., None]).sum(1) * shade[:, None]
    picture[seen] = mixed.round().clip(0, 255).astype(np.uint8)
    return picture


def draw_surface(predictor: Predictor, root: Path) -> np.ndarray:
    """The surface of a folder with poses, of predicted depth: its colours, its classes, and the plan."""
    missing = [what for what in ("classes", "metres") if not task_giving(what, predictor.tasks)]
    if missing:
        raise ValueError(f"the network gives no {' and no '.join(missing)}")
    scan = read_scan(root)
    task = predictor.tasks[task_giving("classes", predictor.tasks)]
    fusion = Fusion(VOXEL_M, len(task.classes), MOST_M)
    fuse(scan, scan.shots, fusion, predictor)
    surface = fusion.mesh(views_of(scan.shots))
    poses = [shot.pose for shot in scan.shots]
    up = find_up(surface, poses)
    ahead = np.mean([pose[:3, 2] for pose in poses], axis=0)
    ahead -= up * (ahead @ up)
    ahead /= np.linalg.norm(ahead)
    middle = np.median(surface.points, axis=0)
    far = np.percentile(np.linalg.norm(surface.points - middle, axis=1), 90)
    pose = look_at(middle - 1.5 * far * ahead + 1.2 * far * up, middle, up)
    camera = camera_with(60, SURFACE_SIZE[1], SURFACE_SIZE[0])
    palette = np.full((256, 3), 160, np.uint8)
    palette[: len(task.colors)] = np.reshape(task.colors, (-1, 3))
    panels: list[Panel] = [
        ("the surface", render(surface, surface.colors, pose, camera), []),
        ("its classes", render(surface, palette[surface.classes], pose, camera), task.legend(surface.classes)),
    ]
    (title, plan, _), _ = draw_plan(surface, up, task.classes, task.colors)
    lying = plan if plan.shape[1] > plan.shape[0] else np.rot90(plan)
    return side_by_side([*panels, (title, on_white(lying, *SURFACE_SIZE), [])], lines=2)


def splat(points: np.ndarray, colors: np.ndarray, pose: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
    """(H, W, 3) uint8: points (N, 3) with colours (N, 3) as a camera sees them, each as a small square."""
    height, width = SURFACE_SIZE
    to_camera = np.linalg.inv(pose)
    seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    front = seen[:, 2] > 0.1
    seen, colors = seen[front], colors[front]
    order = np.argsort(-seen[:, 2], kind="stable")  # the nearest are drawn last
    seen, colors = seen[order], colors[order]
    columns = np.rint(seen[:, 0] / seen[:, 2] * camera["fx"] + camera["cx"]).astype(int)
    rows = np.rint(seen[:, 1] / seen[:, 2] * camera["fy"] + camera["cy"]).astype(int)
    picture = np.full((height + 1, width + 1, 3), 255, np.uint8)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    for down in (0, 1):
        for right in (0, 1):
            picture[rows[inside] + down, columns[inside] + right] = colors[inside]
    return picture[:height, :width]


def draw_cloud(predictor: Predictor, path: Path, fov: float = 60.0) -> np.ndarray:
    """A picture, and its points from the left, from above, and from the left in the colours of their classes."""
    image = read_image(path)
    found = predictor(image)
    by_class, by_metres = (task_giving(what, predictor.tasks) for what in ("classes", "metres"))
    task, camera = predictor.tasks[by_class], camera_with(fov, image.shape[1], image.shape[0])
    points = cloud(image, found[by_metres], found[by_class], camera, MOST_M)
    middle = np.median(points.points, axis=0).astype(np.float64)
    up, camera = np.array([0.0, -1, 0]), camera_with(fov, SURFACE_SIZE[1], SURFACE_SIZE[0])
    x, y, far = middle
    left = look_at(np.array([x - 0.7 * far, y - 0.25 * far, -0.1 * far]), middle, up)
    above = look_at(np.array([x, y - 1.1 * far, 0.2 * far]), middle, up)
    palette = np.reshape(task.colors, (-1, 3)).astype(np.uint8)
    return side_by_side([
        ("image", on_white(image, *SURFACE_SIZE), []),
        ("its points from the left", splat(points.points, points.colors, left, camera), []),
        ("from above", splat(points.points, points.colors, above, camera), []),
        ("classes", splat(points.points, palette[points.classes], left, camera), task.legend(found[by_class])),
    ], lines=2)  # fmt: skip


def on_white(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture in the middle of a page of this size, as large as fits."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    page = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page


# ---------------------------------------------------------------------------------------------- the app


def photograph_app(checkpoint: Path, picture: Path, size: tuple[int, int], port: int) -> np.ndarray:
    """(H, W, 3) uint8: the page in Chromium, with the answer for a picture."""
    require("playwright", "gradio")
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        raise ValueError("there is no Chromium to look at the page: apt install chromium")
    command = [sys.executable, "app.py", "--checkpoint", checkpoint, "--port", port]
    app = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        address = app.stdout.readline().split()
        if not address:
            raise ValueError("app.py did not start")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
            )
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.goto(address[0])
            page.set_input_files("#upload input[type=file]", picture)
            page.wait_for_selector("#cloud canvas", timeout=120_000)
            box = page.locator("#metres .nsewdrag").first.bounding_box()
            page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.62 * box["height"])
            page.wait_for_selector("#metres .hoverlayer text")
            page.wait_for_timeout(3000)  # the 3D view draws itself
            shot = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
            browser.close()
    finally:
        app.terminate()
        app.wait()
    return cv2.cvtColor(shot, cv2.COLOR_BGR2RGB)


def main() -> None:
    parser = Parser(description="The pictures of the README.")
    parser.add_argument("what", choices=("architecture", "results", "surface", "cloud", "app"))
    parser.add_argument("--checkpoint", metavar="FILE")
    parser.add_argument(
        "--data", nargs="+", metavar="FOLDER", help="results: data sets of the training; surface: pictures with poses"
    )
    parser.add_argument("--split", default="val")
    parser.add_argument("--frames", default="2", help="results: how many of each")
    parser.add_argument("--picture", default=str(SAMPLE), metavar="IMAGE", help="cloud, app: a photo")
    parser.add_argument("--name", help="of the file in media/, without its ending")
    arguments = parser.parse_args()
    setup_cpu()
    if arguments.what != "architecture" and not arguments.checkpoint:
        raise ValueError("--checkpoint is needed")
    if arguments.what in ("results", "surface") and not arguments.data:
        raise ValueError("--data is needed")
    output = MEDIA / f"{arguments.name or arguments.what}.jpg"
    if arguments.what == "architecture":
        tasks = some_tasks(classes=40)
        network = build_network(Config(encoder="mobilenetv2_paper", encoder_weights="none"), tasks)
        output = output.with_suffix(".png")
        draw_architecture(network, (480, 640), output)
    elif arguments.what == "results":
        rows = convert(arguments.frames, int, "--frames")
        predictor = Predictor(arguments.checkpoint)
        write_jpeg(
            output, stack([draw_results(predictor, Path(item), arguments.split, rows) for item in arguments.data])
        )
    elif arguments.what == "surface":
        write_jpeg(output, smaller(draw_surface(Predictor(arguments.checkpoint), Path(arguments.data[0])), 1440))
    elif arguments.what == "cloud":
        write_jpeg(output, smaller(draw_cloud(Predictor(arguments.checkpoint), Path(arguments.picture)), 1440))
    else:
        write_jpeg(output, photograph_app(Path(arguments.checkpoint), Path(arguments.picture), (1400, 960), 7899))
    print(f"{output}: {output.stat().st_size // 1024} kB")


if __name__ == "__main__":
    run(main)
