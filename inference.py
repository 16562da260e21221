"""Predicts on images and videos.

    python inference.py                                   # the newest run, or the weights in model/, on a picture
    python inference.py --checkpoint C --input photo.jpg --output predictions
    python inference.py --checkpoint yolov3.weights --input photo.jpg    # darknet's; yolov3.cfg stands beside it
    python inference.py --checkpoint C --input folder/ more/*.jpg "set/**/*.png"    # folders with their sub-folders
    python inference.py --checkpoint C --input clip.mp4   # or camera:0, or rtsp://...: a video
    python inference.py --checkpoint C --domain camvid    # a network of several data sets: this one's classes alone
    torchrun --nproc-per-node 8 -- inference.py --checkpoint C --input folder/ --resume    # each process takes a part

For each image: NAME_segmentation.png (class ids, with a palette), NAME_depth.png (16 bits), a picture of each for
looking at, NAME_depth_color.jpg, and NAME_overview.jpg with all of them side by side; of a video, NAME_overview.mp4.
NAME.json has the class names and the unit of the depth (metres_per_unit). In programs:

    predictor = Predictor("runs/x/best.pt")
    result = predictor(image)            # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import argparse
import sys
from datetime import timedelta
from pathlib import Path

import torch

import distributed
from deploy.backends import BACKENDS
from deploy.field_of_view import FOV_HELP, fov_degrees
from deploy.image_folder import Job, expand_patterns, find_inputs, make_jobs, predict_files, refuse_files_of_others
from deploy.predictor import Predictor
from deploy.video import VIEWS, is_video, predict_video, video_name
from images import SAMPLE
from model import load_network, mixed_domains
from networks.checkpoints import CFG_HELP, DEFAULT_CHECKPOINT, check_sha256, pick_checkpoint
from user_input.flags import Parser, fraction, number, refuse
from utils import printable, run, setup_cpu

__all__ = ["Predictor"]  # `from inference import Predictor`

AS_LONG_AS_IT_TAKES = timedelta(days=30)
SETUP_PAYS_FROM = 30  # images: fewer take less time than a fast back end needs to start
VIDEO_OPTIONS = ("view", "smooth", "seconds")
IMAGE_OPTIONS = ("resume", "batch_size")


def make_parser() -> Parser:
    parser = Parser(description="Predicts on images and videos.")
    parser.add_argument(
        "--checkpoint", metavar="FILE",
        help=f"of train.py, a file of export.py, the paper's .ckpt, or darknet's .weights; {DEFAULT_CHECKPOINT}",
    )  # fmt: skip
    parser.add_argument("--cfg", default="", metavar="FILE", help=CFG_HELP)
    parser.add_argument(
        "--input", nargs="+", default=[str(SAMPLE)], metavar="INPUT",
        help=f"images, folders, patterns in quotes, or videos, camera:N, rtsp://...; default: {SAMPLE}",
    )  # fmt: skip
    parser.add_argument("--output", default="predictions", metavar="FOLDER", help="default: predictions")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training; default: all"
    )
    parser.add_argument("--fov", type=fov_degrees, metavar="DEGREES", help=FOV_HELP)
    parser.add_argument("--sha256", default="", metavar="HEX", help="refuse a checkpoint with another check sum")
    parser.add_argument("--mirror", action="store_true", help="average with the mirrored picture")
    parser.add_argument(
        "--score", type=fraction, metavar="0..1", help="least of the boxes and things that are shown; default: 0.3"
    )
    parser.add_argument(
        "--overlap", type=fraction, metavar="0..1",
        help="IoU with a better box of its class above which a box is left out; default: 0.6",
    )  # fmt: skip
    parser.add_argument(
        "--view", default="side", choices=VIEWS, help="of a video; overlay: predictions over the frames"
    )
    parser.add_argument(
        "--smooth", type=number(float, least=0, below=1), default=0.0, metavar="0..1",
        help="of a video: share of the earlier frames where nothing moves",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=number(float, least=0), default=0.0, help="of a video: its first seconds; 0 = all"
    )
    parser.add_argument("--resume", action="store_true", help="leave out images whose outputs are there already")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="auto: the fastest installed")
    parser.add_argument("--batch_size", type=number(int, 1, 4096), default=1, help="images of one size in a call")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--threads", type=number(int, 0, 1024), default=0, help="CPU threads; 0 = torch's choice")
    return parser


def predict_videos(predictor: Predictor, sources: list[str], arguments: argparse.Namespace) -> None:
    for source in sources:
        result = Path(arguments.output) / f"{video_name(source)}_overview.mp4"
        print(predict_video(predictor, source, result, arguments.view, arguments.smooth, arguments.seconds))


def predict_images(predictor: Predictor, jobs: list[Job], arguments: argparse.Namespace, few: bool) -> int:
    """The exit status: 1 when an image could not be predicted."""
    left = [job for job in jobs if not (arguments.resume and job.done)]
    refuse_files_of_others([job.stem for job in left], predictor.tasks)
    with distributed.together(torch.device("cpu"), AS_LONG_AS_IT_TAKES):
        failed = predict_files(predictor, left, few)
        earlier = f", {len(jobs) - len(left)} of an earlier run are there" if arguments.resume else ""
        line = f"{len(left) - failed} of {len(jobs)} images predicted{earlier}; look at {arguments.output}/"
        print(f"{process_name()}{printable(line)}*_overview.jpg", flush=True)
        distributed.wait()  # torchrun stops all others as soon as one returns that an image failed
    return 1 if failed else 0


def process_name() -> str:
    return f"process {distributed.rank()}: " if distributed.count() > 1 else ""


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    setup_cpu(arguments.threads)
    inputs, output = expand_patterns(arguments.input), Path(arguments.output)
    videos = [item for item in inputs if is_video(item)]
    if videos and len(videos) < len(inputs):
        raise ValueError("--input: images and videos go in calls of their own")
    if videos:
        refuse(parser, arguments, IMAGE_OPTIONS, "is for images; --input is a video")
        if arguments.smooth:
            refuse(parser, arguments, ["mirror"], "and --smooth do not go together")
    else:
        refuse(parser, arguments, VIDEO_OPTIONS, "is for videos; --input has images")
    images, root = ([], output) if videos else find_inputs(inputs, output)
    path = pick_checkpoint(arguments.checkpoint)
    check_sha256(path, arguments.sha256)
    few = not videos and len(images) < SETUP_PAYS_FROM
    source = load_network(path, arguments.cfg) if arguments.cfg else path
    predictor = Predictor(
        source, arguments.backend, arguments.device, arguments.precision, arguments.domain, arguments.mirror, few,
        arguments.score, arguments.overlap, arguments.fov,
    )  # fmt: skip
    if distributed.is_main() and (warning := mixed_domains(predictor.backend, arguments.domain)):
        print(f"warning: {warning}", file=sys.stderr)
    backend = predictor.backend
    about = f"{path} ({', '.join(predictor.tasks)}) in {backend.name} on {backend.computes_on}"
    if videos:
        print(printable(about), flush=True)
        predict_videos(predictor, videos, arguments)
        return 0
    jobs = make_jobs(images, root, output, arguments.batch_size)
    print(f"{process_name()}{printable(about)}, {len(jobs)} image{'s' if len(jobs) != 1 else ''}", flush=True)
    return predict_images(predictor, jobs, arguments, few)


if __name__ == "__main__":
    run(main)
