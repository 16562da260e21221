"""Predicts on images.

    python inference.py                                   # the newest run on the picture in media/
    python inference.py --checkpoint C --input photo.jpg --output predictions
    python inference.py --checkpoint C --input folder/    # with its sub-folders
    python inference.py --checkpoint C --input clip.mp4   # or camera:0, or rtsp://...: a video
    python inference.py --checkpoint C --domain camvid    # a network of several data sets: this one's classes alone
    torchrun --nproc-per-node 8 -- inference.py --checkpoint C --input folder/ --resume    # each process takes a part

For each image: NAME_segmentation.png (class ids, with a palette), NAME_depth.png (16 bits, millimetres), a picture
of each for looking at, NAME_depth_color.jpg, and NAME_overview.jpg with all of them side by side; of a video,
NAME_overview.mp4. In programs:

    predictor = Predictor("runs/x/best.pt")
    result = predictor(image)            # {"segmentation": (H, W) ids, "depth": (H, W) metres}
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import openmp  # noqa: F401 - before torch

import torch

import distributed
from checkpoints import check_sha256, newest_checkpoint
from config import Parser, convert
from deploy.backends import BACKENDS, FILES, fastest
from deploy.image_folder import make_jobs, predict_files
from deploy.predictor import Predictor
from deploy.video import VIEWS, is_video, predict_video, video_name
from images import SAMPLE, find_images
from utils import pick_device, run, setup_cpu

AS_LONG_AS_IT_TAKES = timedelta(days=30)
FEW = 30  # images, for which a back end that takes seconds to set up does not pay


def main() -> int:
    parser = Parser(description="Predicts on images.")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="of train.py, or the paper's .ckpt; default: the newest run"
    )
    parser.add_argument(
        "--input", default=str(SAMPLE), metavar="IMAGE|FOLDER|VIDEO|camera:N|rtsp://...", help=f"default: {SAMPLE}"
    )
    parser.add_argument("--output", default="predictions", metavar="FOLDER", help="default: predictions")
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="classes and range of this data set of the training; default: all"
    )
    parser.add_argument("--sha256", default="", metavar="HEX", help="refuse a checkpoint with another check sum")
    parser.add_argument("--mirror", action="store_true", help="average with the mirrored picture")
    parser.add_argument(
        "--view", default="side", choices=VIEWS, help="of a video; overlay: predictions over the frames"
    )
    parser.add_argument(
        "--smooth", default="0", metavar="0..1", help="of a video: share of the earlier frames where nothing moves"
    )
    parser.add_argument("--seconds", default="0", help="of a video: as many of it; 0 = all")
    parser.add_argument("--resume", action="store_true", help="leave out images whose outputs are there already")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="auto: the fastest installed")
    parser.add_argument("--batch_size", default="1", help="images of one size in a call")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    arguments = parser.parse_args()
    setup_cpu(convert(arguments.threads, int, "command line: threads"))

    source, output, video = Path(arguments.input), Path(arguments.output), is_video(arguments.input)
    smoothing, seconds = (convert(getattr(arguments, name), float, f"--{name}") for name in ("smooth", "seconds"))
    if not 0 <= smoothing < 1 or seconds < 0:
        raise ValueError("--smooth must be at least 0 and below 1, --seconds at least 0")
    if smoothing and (arguments.mirror or not video):
        raise ValueError("--smooth is for videos, without --mirror")
    images = [] if video else find_images(source, output)
    device = pick_device(arguments.device)
    path = Path(arguments.checkpoint) if arguments.checkpoint else newest_checkpoint()
    check_sha256(path, arguments.sha256)
    backend, batch_size = arguments.backend, convert(arguments.batch_size, int, "command line: batch_size")
    if (
        not video
        and backend == "auto"
        and len(images) < FEW
        and fastest(device) != "eager"
        and path.suffix not in FILES
    ):
        backend = "eager"
    predictor = Predictor(path, backend, arguments.device, arguments.precision, arguments.domain, arguments.mirror)
    if video:
        print(f"{path} ({', '.join(predictor.tasks)}) in {predictor.backend.name} on {device}", flush=True)
        result = output / f"{video_name(arguments.input)}_overview.mp4"
        print(predict_video(predictor, arguments.input, result, arguments.view, smoothing, seconds))
        return 0
    jobs = make_jobs(images, source, output, batch_size)
    left = [job for job in jobs if not (arguments.resume and job.done)]
    who = f"process {distributed.rank()}: " if distributed.count() > 1 else ""
    print(
        f"{who}{path} ({', '.join(predictor.tasks)}) in {predictor.backend.name} on {device}, "
        f"{len(jobs)} image{'s' if len(jobs) != 1 else ''}"
    )
    with distributed.together(torch.device("cpu"), AS_LONG_AS_IT_TAKES):
        failed = predict_files(predictor, left, few=len(images) < FEW)
        earlier = f", {len(jobs) - len(left)} of an earlier run are there" if arguments.resume else ""
        line = f"{who}{len(left) - failed} of {len(jobs)} images predicted{earlier}; look at {output}/*_overview.jpg"
        print(line, flush=True)
        distributed.wait()  # torchrun stops all others as soon as one returns that an image failed
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
