"""3D reconstruction: colored and labeled points of one image, or one fused surface of many posed images.

    python reconstruct.py --input photo.jpg --fov 60 --output photo.ply         # one image: a point cloud
    python reconstruct.py --input dataset/redkitchen --output kitchen.ply       # posed images: one surface
    python reconstruct.py --input dataset/redkitchen --depth measured           # from measured, not predicted depth
    python reconstruct.py --input dataset/redkitchen --split val --compare      # from both, and how far they are apart

Folders of posed images: data sets of this project with `poses:`, 7-Scenes, TUM RGB-D (scene3d/posed_images.py). All in
metres. The PLY file has red, green, blue and class_id for each point. A surface comes with NAME_points.ply (the points
without triangles), NAME_plan.png (the floor plan) and NAME.json (classes, areas, metrics). With a network that predicts
boxes, NAME.json has the objects, too: of one image as in inference.py's NAME_objects.json, each with its position in
the cloud; of many, those of the whole place (scene3d/objects.py).

With a network of instances, masks or boxes, each thing of a surface stands apart: thing_id of its points in the PLY
file, NAME_things/01_chair.ply, ..., and NAME_objects.json with its place, size and outline on the floor (docs/
INSTANCES.md), which the plan shows.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import argparse
import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.backends import BACKENDS, FILES
from deploy.field_of_view import UNKNOWN_DEGREES, fov_degrees
from deploy.predictor import Predictor
from drawing import side_by_side
from geometry import camera_with
from images import SAMPLE, count_pixels, read_photo, write_png
from networks.checkpoints import DEFAULT_CHECKPOINT, pick_checkpoint
from scene3d.comparison import surface_metrics
from scene3d.floor_plan import Mark, draw_plan, find_up
from scene3d.footprints import describe, file_names, floor_height, part_of
from scene3d.fusion import Fusion, Surface, cloud, fuse, views_of
from scene3d.objects import merge_sightings, plain_things
from scene3d.posed_images import Scan, Shot, read_scan
from scene3d.things import number_vertices
from tasks import Task, task_giving, task_of_things
from user_input.flags import Parser, number, positive_int, refuse
from user_input.values import convert
from utils import run, setup_cpu, whole_file

MAX_DEPTH_M = 5.0  # default for folders: beyond, the depth of a Kinect and of these networks is poor
MAX_PIXELS = 1e6  # of intrinsics: larger ones are mistakes


# ---------------------------------------------------------------------------------------------- one image


def camera(text: str) -> dict[str, float]:
    """An argparse type: fx,fy,cx,cy in pixels -> intrinsics."""
    try:
        fx, fy, cx, cy = convert(text, tuple[float, ...], "it")
    except ValueError:
        fx = fy = cx = cy = 0.0
    if not (min(fx, fy) >= 1 and max(fx, fy, abs(cx), abs(cy)) <= MAX_PIXELS):
        raise argparse.ArgumentTypeError(f"got {text!r}; it takes fx,fy,cx,cy in pixels, fx and fy at least 1")
    return {"fx": fx, "fy": fy, "cx": cx, "cy": cy}


def image_to_cloud(
    predictor: Predictor,
    path: Path,
    intrinsics: Mapping[str, float] | None,
    max_depth_m: float | None,
    listed: Path | None = None,
) -> Surface:
    """The points of one image; where the network predicts boxes, its objects go into the file `listed`.

    Without intrinsics, its camera has the predictor's field of view, or that of the image's EXIF data, or
    UNKNOWN_DEGREES.
    max_depth_m: farther points are left out; None = the task's range. Raises ValueError when no point is left.
    """
    image, known = read_photo(path)
    size, view, source = image.shape[:2], predictor.field_of_view, "EXIF"
    if intrinsics:
        known, source = intrinsics["fx"] / max(size), "--camera"
    else:
        intrinsics = camera_with(view.degrees(known, *size), size[1], size[0])
    if line := view.line(known, *size, source):
        print(line, flush=True)
    found = predictor(image, known)
    name = task_giving("metres", predictor.tasks)
    depth, classes = found[name], found.get(task_giving("classes", predictor.tasks))
    if max_depth_m is None:
        max_depth_m = predictor.tasks[name].max_m
    points = cloud(image, depth, classes, intrinsics, max_depth_m)
    if not len(points.points):
        beyond = f"the nearest pixel is {depth.min():.2f} m away, beyond --max_depth {max_depth_m:g}"
        raise ValueError(f"{path}: no point is left: {beyond}")
    if listed and (name := task_giving("objects", predictor.tasks)):
        objects = predictor.tasks[name].in_space(found[name], intrinsics)
        near = objects[~(objects["distance_m"] > max_depth_m)]
        predictor.tasks[name].save_frame(near, listed, path.name, size)
    return points


# ---------------------------------------------------------------------------------------------- many images


def check_depth_sizes(shots: Sequence[Shot]) -> None:
    """Raises ValueError for measured depth of another size than its image, by the headers of the files."""
    for shot in shots:
        pixels, expected = count_pixels(shot.depth), count_pixels(shot.image)
        if pixels and expected and pixels != expected:
            raise ValueError(f"{shot.depth}: {pixels} pixels, but its image {shot.image} has {expected}")


def compare(
    scan: Scan, shots: Sequence[Shot], predictor: Predictor, voxel_m: float, max_depth_m: float
) -> dict[str, float]:
    """Metrics of the surface of predicted depth against that of measured depth, both from the same pixels."""
    surfaces = []
    for source in (predictor, None):
        fusion = Fusion(voxel_m, max_depth_m=max_depth_m)
        fuse(scan, shots, fusion, source, only_measured=source is not None)
        surfaces.append(fusion.mesh(views_of(shots)))
    return surface_metrics(*surfaces)


def reconstruct(
    scan: Scan, shots: Sequence[Shot], predictor: Predictor | None, output: Path, voxel_m: float, max_depth_m: float
) -> dict[str, object]:
    """Writes the surface, its points and its plan. Returns the content of NAME.json."""
    tasks, views = predictor.tasks if predictor else {}, views_of(shots)
    task, by_object = tasks.get(task_giving("classes", tasks)), task_giving("objects", tasks)
    classes, colors = (task.classes, task.colors) if task else ((), ())
    fusion, began = Fusion(voxel_m, len(classes), max_depth_m), time.monotonic()
    sightings, pictures = fuse(scan, shots, fusion, predictor)
    rate = len(shots) / (time.monotonic() - began)
    surface = fusion.mesh(views)
    up = find_up(surface, [shot.pose for shot in shots])
    marks: list[Mark] = []
    if by_thing := task_of_things(tasks):
        numbers, found = number_vertices(surface, pictures, voxel_m, max_depth_m, views)
        surface = dataclasses.replace(surface, things=numbers)
        marks = write_apart(surface, found, up, tasks[by_thing], output)
    panel, areas = draw_plan(surface, up, classes, colors, marks)
    surface.write(output)
    points = dataclasses.replace(surface, triangles=surface.triangles[:0])  # for programs that read only clouds
    points.write(output.with_name(f"{output.stem}_points.ply"))
    write_png(output.with_name(f"{output.stem}_plan.png"), side_by_side([panel]))
    print(f"{output}: {len(surface.points):,} points, {len(surface.triangles):,} triangles of {len(shots)} pictures, "
          f"{rate:.1f} pictures a second")  # fmt: skip
    for name, area in areas.items():
        if area < 0.005:
            continue  # nothing of two digits
        print(f"{name:24} {area:6.2f} m2 seen from above")
    report = {"pictures": len(shots), "voxel_m": voxel_m, "classes": list(classes), "areas_m2": areas, "rate": rate}
    for name, count in Counter(text for _, text, _ in marks).most_common():
        print(f"{name:24} {count:3} in the place")
    if not by_object:
        return report
    things = merge_sightings(sightings, views)  # as many views as of a place of the surface
    return report | {"objects": plain_things(things, tasks[by_object].classes)}


def write_apart(surface: Surface, found: np.ndarray, up: np.ndarray, task: Task, output: Path) -> list[Mark]:
    """Writes each thing of a numbered surface into a file of its own, and the list of all. Returns their outlines for
    the plan. found: see scene3d/things.py."""
    floor_m = floor_height(surface, up)
    listed = describe(surface, found, up, task.classes, floor_m)
    folder = output.with_name(f"{output.stem}_things")
    for item, name in zip(listed, file_names(listed), strict=True):
        part_of(surface, surface.things == item["number"]).write(folder / name)
        item["file"] = f"{folder.name}/{name}"
    for path in folder.glob("*.ply"):
        if re.fullmatch(r"\d{2,}_\w+\.ply", path.name) and path.name not in file_names(listed):
            path.unlink()  # of an earlier surface with more things
    content = {"up": up.tolist(), "floor_m": floor_m, "objects": listed}
    with whole_file(output.with_name(f"{output.stem}_objects.json")) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
    return [
        (np.array(item["footprint_m"]), item["class"].replace("_", " "), task.colors[thing["class"]])
        for item, thing in zip(listed, found, strict=True)
    ]


def reconstruct_folder(arguments: argparse.Namespace, predictor: Predictor | None) -> None:
    """The command for a folder of posed images."""
    scan = read_scan(arguments.input, arguments.split)
    shots = scan.shots[:: arguments.every]
    measured = arguments.depth == "measured"
    if measured or arguments.compare:
        shots = [shot for shot in shots if shot.depth]
        if not shots:
            raise ValueError(f"{arguments.input}: none of its pictures has measured depth")
        check_depth_sizes(shots)
    max_depth_m = MAX_DEPTH_M if arguments.max_depth is None else arguments.max_depth
    report = reconstruct(scan, shots, None if measured else predictor, arguments.output, arguments.voxel, max_depth_m)
    if arguments.compare:
        report["against_measured"] = compare(scan, shots, predictor, arguments.voxel, max_depth_m)
        print("  ".join(f"{name} {value:.4f}" for name, value in report["against_measured"].items()))
    with whole_file(arguments.output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(report, indent=1))


# ---------------------------------------------------------------------------------------------- command line


def make_parser() -> Parser:
    parser = Parser(description="From images to point clouds and surfaces in metres.")
    parser.add_argument("--input", type=Path, default=SAMPLE, metavar="IMAGE|FOLDER", help=f"default: {SAMPLE}")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=DEFAULT_CHECKPOINT)
    parser.add_argument("--output", type=Path, default=Path("reconstruction.ply"), metavar="PLY")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training"
    )
    parser.add_argument(
        "--max_depth", type=number(float, least=0.01, most=1000), metavar="METRES",
        help=f"leave out what is farther away; default: the network's range for an image, {MAX_DEPTH_M:g} for a folder",
    )  # fmt: skip
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    parser.add_argument("--device", default="auto")
    image = parser.add_mutually_exclusive_group()
    image.add_argument(
        "--fov", type=fov_degrees, metavar="DEGREES",
        help="of one image: its horizontal field of view, by which its depth is scaled, too; 0: nobody knows it; "
        f"default: by its EXIF data; without them {UNKNOWN_DEGREES:g} for the points alone",
    )  # fmt: skip
    image.add_argument("--camera", type=camera, metavar="fx,fy,cx,cy", help="of one image: its intrinsics in pixels")
    folder = parser.add_argument_group("folders of posed images")
    folder.add_argument("--depth", default="predicted", choices=("predicted", "measured"))
    folder.add_argument("--split", default="", help="of a folder with dataset.yaml; default: all splits")
    folder.add_argument("--every", type=positive_int, default=1, metavar="N", help="use each Nth image")
    folder.add_argument("--voxel", type=number(float, least=0.001, most=1), default=0.02, metavar="METRES")
    folder.add_argument("--compare", action="store_true", help="also measure predicted against measured depth")
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    source, output, one = arguments.input, arguments.output, arguments.input.is_file()
    if output.suffix != ".ply":
        raise ValueError(f"--output: {output} should end in .ply")
    if one:
        names = ("depth", "split", "every", "voxel", "compare")
        refuse(parser, arguments, names, f"is for folders of posed images; {source} is one image")
    else:
        refuse(parser, arguments, ("fov", "camera"), f"is for one image; {source} is none")
    predictor = None
    if arguments.depth == "predicted" or arguments.compare:
        path = pick_checkpoint(arguments.checkpoint)
        # One image does not repay the seconds that a faster back end takes to start.
        eager = one and arguments.backend == "auto" and path.suffix.lower() not in FILES
        setup_cpu()
        backend, fov = "eager" if eager else arguments.backend, arguments.fov
        predictor = Predictor(path, backend, arguments.device, domain=arguments.domain, fov=fov)
        if not task_giving("metres", predictor.tasks):
            raise ValueError(f"{path}: it predicts no depth, but {', '.join(predictor.tasks)}")
    else:
        names = ("checkpoint", "domain", "backend", "device")
        refuse(parser, arguments, names, "does nothing with --depth measured alone")
    if one:
        points = image_to_cloud(predictor, source, arguments.camera, arguments.max_depth, output.with_suffix(".json"))
        points.write(output)
        print(f"{output}: {len(points.points):,} points")
    else:
        reconstruct_folder(arguments, predictor)


if __name__ == "__main__":
    run(main)
