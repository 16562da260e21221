"""The pictures of the README, from the project's own networks; `make media` makes all of them.

    python -m tools.readme_pictures overview --checkpoint C --picture photo.jpg      # media/overview.jpg
    python -m tools.readme_pictures results --checkpoint C --data dataset/camvid dataset/redkitchen  # media/results.jpg
    python -m tools.readme_pictures surface --checkpoint C --data dataset/redkitchen                 # media/surface.jpg
    python -m tools.readme_pictures cloud --checkpoint C --picture photo.jpg                         # media/cloud.jpg
    python -m tools.readme_pictures app --checkpoint C --picture photo.jpg      # media/app.jpg, from Chromium
    python -m tools.readme_pictures stack --pictures predictions/worst/*.jpg --name worst     # below one another

Run it in the root of the repository. Needs requirements/dev.txt.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from dataset import read_label
from deploy.predictor import Predictor
from drawing import Panel, letterbox, palette_of, side_by_side
from folders import read_folder, read_list
from geometry import camera_with
from images import SAMPLE, read_image, read_photo, write_jpeg
from scene3d.floor_plan import draw_plan, facets, find_up
from scene3d.fusion import Fusion, Surface, back_project, cloud, fuse, views_of
from scene3d.posed_images import read_scan
from tasks import task_giving
from user_input.flags import Parser, positive_int
from utils import require, run, setup_cpu

MEDIA = Path("media")
PANEL_WIDTH = 320  # pixels, as shown in the README
WIDTH = 1440  # of pictures that are a single row
STACK_WIDTH = 960
SURFACE_SIZE = (540, 720)  # height, width
PAGE_SIZE = (1400, 960)  # width, height of the browser
VOXEL_M, MAX_DEPTH_M = 0.02, 5.0


# ---------------------------------------------------------------------------------------------- predictions


def smaller(image: np.ndarray, width: int = PANEL_WIDTH) -> np.ndarray:
    height = round(image.shape[0] * width / image.shape[1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def draw_overview(predictor: Predictor, path: Path) -> np.ndarray:
    """A picture beside all that the network predicts, as inference.py draws it."""
    image, focal = read_photo(path)
    found = predictor(image, focal)
    panels: list[Panel] = [("image", image, [])]
    for name, task in predictor.tasks.items():
        panels.append((name, task.panel(found[name], image), task.legend(found[name])))
    return side_by_side(panels)


def draw_results(predictor: Predictor, root: Path, split: str, count: int) -> np.ndarray:
    """`count` evenly spaced frames of a split, a row each: for each labeled task its prediction and its label."""
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
                label = read_label(task, frame.labels[name], folder.sections[name], frame.image, image.shape[:2])
                size = image.shape[:2]
                panels.append((name, smaller(task.draw(found[name], size)), task.legend(found[name])))
                panels.append((f"{name}, labeled", smaller(task.draw(label, size)), []))
        rows.append(side_by_side(panels, lines=2))
    return np.concatenate(rows)


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """The pictures below one another; narrower ones are filled up with white."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(item, ((0, 0), (0, width - item.shape[1]), (0, 0)), constant_values=255) for item in pictures]
    return np.concatenate(wide)


# ---------------------------------------------------------------------------------------------- surfaces


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Pose (4, 4), camera to world, of a camera at `eye` that looks at `target`."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(forward, right), forward], axis=1), eye
    return pose


def render(surface: Surface, colors: np.ndarray, pose: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
    """Renders a mesh with colors (N, 3) of its points, lit from the camera -> (H, W, 3) uint8.

    Back faces are culled, so that one can look into a room from outside.
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
    """The surface of a folder with poses, of predicted depth: its colors, its classes, and the plan."""
    missing = [what for what in ("classes", "metres") if not task_giving(what, predictor.tasks)]
    if missing:
        raise ValueError(f"the network gives no {' and no '.join(missing)}")
    scan = read_scan(root)
    task = predictor.tasks[task_giving("classes", predictor.tasks)]
    fusion = Fusion(VOXEL_M, len(task.classes), MAX_DEPTH_M)
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
    palette = palette_of(task.colors, other=160)
    panels: list[Panel] = [
        ("the surface", render(surface, surface.colors, pose, camera), []),
        ("its classes", render(surface, palette[surface.classes], pose, camera), task.legend(surface.classes)),
    ]
    (title, plan, _), _ = draw_plan(surface, up, task.classes, task.colors)
    lying = plan if plan.shape[1] > plan.shape[0] else np.rot90(plan)
    return side_by_side([*panels, (title, letterbox(lying, *SURFACE_SIZE), [])], lines=2)


def splat(points: np.ndarray, colors: np.ndarray, pose: np.ndarray, camera: Mapping[str, float]) -> np.ndarray:
    """Renders points (N, 3) with colors (N, 3), each as a square of 2x2 pixels -> (H, W, 3) uint8."""
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
    """A picture; its points from the left, from above, and from the left in the colors of their classes."""
    image = read_image(path)
    found = predictor(image)
    by_class, by_metres = (task_giving(what, predictor.tasks) for what in ("classes", "metres"))
    task, camera = predictor.tasks[by_class], camera_with(fov, image.shape[1], image.shape[0])
    points = cloud(image, found[by_metres], found[by_class], camera, MAX_DEPTH_M)
    middle = np.median(points.points, axis=0).astype(np.float64)
    up, camera = np.array([0.0, -1, 0]), camera_with(fov, SURFACE_SIZE[1], SURFACE_SIZE[0])
    x, y, far = middle
    left = look_at(np.array([x - 0.7 * far, y - 0.25 * far, -0.1 * far]), middle, up)
    above = look_at(np.array([x, y - 1.1 * far, 0.2 * far]), middle, up)
    palette = palette_of(task.colors)
    return side_by_side([
        ("image", letterbox(image, *SURFACE_SIZE), []),
        ("its points from the left", splat(points.points, points.colors, left, camera), []),
        ("from above", splat(points.points, points.colors, above, camera), []),
        ("classes", splat(points.points, palette[points.classes], left, camera), task.legend(found[by_class])),
    ], lines=2)  # fmt: skip


# ---------------------------------------------------------------------------------------------- the app


def photograph_app(checkpoint: Path, picture: Path, size: tuple[int, int]) -> np.ndarray:
    """Screenshot (H, W, 3) uint8 of the page in Chromium, with the answer for a picture."""
    require("playwright", "gradio")
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        raise ValueError("there is no Chromium to look at the page: apt install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, Path(__file__).parents[1] / "app.py", "--checkpoint", checkpoint, "--port", port]
    app = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        address = next((line.split()[0] for line in app.stdout if line.startswith("http")), None)
        if address is None:
            raise ValueError("app.py did not start")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
            )
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.goto(address)
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
    parser.add_argument("what", choices=("overview", "results", "surface", "cloud", "app", "stack"))
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="for all but stack")
    parser.add_argument(
        "--data", nargs="+", type=Path, metavar="FOLDER",
        help="results: data sets of the training; surface: one folder of posed images",
    )  # fmt: skip
    parser.add_argument("--split", default="val", help="results: of the data sets")
    parser.add_argument("--frames", type=positive_int, default=2, help="results: how many of each data set")
    parser.add_argument("--picture", type=Path, default=SAMPLE, metavar="IMAGE", help="overview, cloud, app: a photo")
    parser.add_argument(
        "--pictures", nargs="+", type=Path, metavar="FILE", help="stack: such as evaluate.py --worst draws"
    )
    parser.add_argument("--name", help="of the file in media/, without its ending; default: what is drawn")
    arguments = parser.parse_args()
    needed = {"results": ("checkpoint", "data"), "surface": ("checkpoint", "data"), "stack": ("pictures",)}
    for option in needed.get(arguments.what, ("checkpoint",)):
        if not getattr(arguments, option):
            raise ValueError(f"--{option} is needed")
    setup_cpu()
    output = MEDIA / f"{arguments.name or arguments.what}.jpg"
    if arguments.what == "app":
        picture = photograph_app(arguments.checkpoint, arguments.picture, PAGE_SIZE)
    elif arguments.what == "stack":
        picture = stack([smaller(read_image(path), STACK_WIDTH) for path in arguments.pictures])
    else:
        predictor = Predictor(arguments.checkpoint)
        if arguments.what == "results":
            rows = [draw_results(predictor, folder, arguments.split, arguments.frames) for folder in arguments.data]
            picture = stack(rows)
        elif arguments.what == "surface":
            picture = smaller(draw_surface(predictor, arguments.data[0]), WIDTH)
        else:
            draw = draw_overview if arguments.what == "overview" else draw_cloud
            picture = draw(predictor, arguments.picture)
            picture = smaller(picture, min(WIDTH, picture.shape[1]))
    write_jpeg(output, picture)
    print(f"{output}: {output.stat().st_size // 1024} kB")


if __name__ == "__main__":
    run(main)
