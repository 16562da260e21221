"""From pictures to 3D: coloured, labelled surfaces and clouds of points in metres, with a plan from above.

    python reconstruct.py --input photo.jpg --fov 60 --output photo.ply         # one picture: a cloud of points
    python reconstruct.py --input dataset/redkitchen --output kitchen.ply       # pictures with poses: one surface
    python reconstruct.py --input dataset/redkitchen --depth measured           # of the camera's own depth
    python reconstruct.py --input dataset/redkitchen --split val --compare      # of both, and how far they are apart

Folders with poses: data sets of this project, 7-Scenes, TUM RGB-D (scans.py). The PLY file has red, green, blue and
class_id for each point; beside that of a surface lie NAME_points.ply, the same points without triangles, NAME_plan.png,
and NAME.json with what the numbers mean.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import openmp  # noqa: F401 - before torch

from checkpoints import newest_checkpoint
from config import Parser, convert
from deploy.backends import BACKENDS
from deploy.predictor import Predictor
from drawing import side_by_side
from geometry import camera_with
from images import SAMPLE, read_image, write_png
from metrics import surface_metrics
from scene3d.floor_plan import draw_plan, find_up, sample
from scene3d.fusion import Fusion, Surface, cloud, fuse, views_of
from scene3d.posed_images import Scan, Shot, read_scan
from utils import run, setup_cpu, whole_file

POINTS = 200_000  # on each surface, to compare them


# ---------------------------------------------------------------------------------------------- one picture


def camera_of(text: str, fov: float, width: int, height: int) -> dict[str, float]:
    """--camera fx,fy,cx,cy, or a horizontal field of view in degrees -> intrinsics of pictures of this size."""
    if text:
        values = convert(text, tuple[float, ...], "--camera")
        if len(values) != 4 or min(values[:2]) <= 0:
            raise ValueError(f"--camera {text}: expected fx,fy,cx,cy in pixels, fx and fy above 0")
        return dict(zip(("fx", "fy", "cx", "cy"), values, strict=True))
    return camera_with(fov, width, height)


def picture_to_cloud(predictor: Predictor, path: Path, camera: str, fov: float, most_m: float) -> Surface:
    image = read_image(path)
    found = predictor(image)
    intrinsics = camera_of(camera, fov, image.shape[1], image.shape[0])
    return cloud(image, found["depth"], found.get("segmentation"), intrinsics, most_m)


# ---------------------------------------------------------------------------------------------- many


def compare(scan: Scan, shots: Sequence[Shot], predictor: Predictor, voxel_m: float, most_m: float) -> dict[str, float]:
    """Metrics of the surface of predicted depth against that of measured depth, where both look at the same pixels."""
    clouds = []
    for source in (predictor, None):
        fusion = Fusion(voxel_m, most_m=most_m)
        fuse(scan, shots, fusion, source, only_measured=source is not None)
        clouds.append(sample(fusion.mesh(views_of(shots)), POINTS)[0])
    return surface_metrics(*clouds)


def reconstruct(
    scan: Scan, shots: Sequence[Shot], predictor: Predictor | None, output: Path, voxel_m: float, most_m: float
) -> dict[str, object]:
    """Writes the surface and its plan. Returns what is known of them."""
    task = predictor.tasks.get("segmentation") if predictor else None
    classes, colors = (task.classes, task.colors) if task else ((), ())
    fusion, began = Fusion(voxel_m, len(classes), most_m), time.monotonic()
    fuse(scan, shots, fusion, predictor)
    rate = len(shots) / (time.monotonic() - began)
    surface = fusion.mesh(views_of(shots))
    surface.write(output)
    points = dataclasses.replace(surface, triangles=surface.triangles[:0])  # for programs that read clouds alone
    points.write(output.with_name(f"{output.stem}_points.ply"))
    panel, areas = draw_plan(surface, find_up(surface, [shot.pose for shot in shots]), classes, colors)
    write_png(output.with_name(f"{output.stem}_plan.png"), side_by_side([panel]))
    print(f"{output}: {len(surface.points):,} points, {len(surface.triangles):,} triangles of {len(shots)} pictures, "
          f"{rate:.1f} pictures a second")  # fmt: skip
    for name, area in areas.items():
        print(f"{name:24} {area:6.2f} m2 seen from above")
    return {"pictures": len(shots), "voxel_m": voxel_m, "classes": list(classes), "areas_m2": areas, "rate": rate}


def main() -> None:
    parser = Parser(description="From pictures to surfaces and clouds of points in metres.")
    parser.add_argument("--input", default=str(SAMPLE), metavar="IMAGE|FOLDER", help=f"default: {SAMPLE}")
    parser.add_argument("--checkpoint", metavar="FILE", help="default: the newest run's best.pt")
    parser.add_argument("--output", default="reconstruction.ply", metavar="PLY")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training"
    )
    parser.add_argument("--fov", default="60", metavar="DEGREES", help="of one picture: its horizontal field of view")
    parser.add_argument(
        "--camera", default="", metavar="fx,fy,cx,cy", help="of one picture, in pixels; instead of --fov"
    )
    parser.add_argument("--depth", default="predicted", choices=("predicted", "measured"))
    parser.add_argument("--split", default="", help="of a folder with dataset.yaml; default: all its pictures")
    parser.add_argument("--every", default="1", metavar="N", help="each Nth picture")
    parser.add_argument("--voxel", default="0.02", metavar="METRES")
    parser.add_argument("--max_depth", default="5", metavar="METRES", help="what is farther away is left out")
    parser.add_argument("--compare", action="store_true", help="also measure predicted against measured depth")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    setup_cpu()
    fov, voxel_m, most_m = (
        convert(getattr(arguments, name), float, f"--{name}") for name in ("fov", "voxel", "max_depth")
    )
    every = convert(arguments.every, int, "--every")
    if min(voxel_m, most_m) <= 0 or every < 1:
        raise ValueError("--voxel and --max_depth must be above 0, --every at least 1")
    source, output = Path(arguments.input), Path(arguments.output)
    if output.suffix != ".ply":
        raise ValueError(f"--output: {output} should end in .ply")
    predictor = None
    if arguments.depth == "predicted" or arguments.compare or source.is_file():
        path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
        backend = "eager" if arguments.backend == "auto" and source.is_file() else arguments.backend
        predictor = Predictor(path, backend, arguments.device, domain=arguments.domain)
        if "depth" not in predictor.tasks:
            raise ValueError(f"{path}: it predicts no depth, but {', '.join(predictor.tasks)}")
    if source.is_file():
        found = picture_to_cloud(predictor, source, arguments.camera, fov, most_m)
        found.write(output)
        print(f"{output}: {len(found.points):,} points")
        return
    scan = read_scan(source, arguments.split)
    shots = scan.shots[::every]
    measured = arguments.depth == "measured"
    if measured or arguments.compare:
        shots = [shot for shot in shots if shot.depth]
        if not shots:
            raise ValueError(f"{source}: none of its pictures has measured depth")
    report = reconstruct(scan, shots, None if measured else predictor, output, voxel_m, most_m)
    if arguments.compare:
        report["against_measured"] = compare(scan, shots, predictor, voxel_m, most_m)
        print("  ".join(f"{name} {value:.4f}" for name, value in report["against_measured"].items()))
    with whole_file(output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    run(main)
